/** What travels between StoreClient and its workers. */
import type { StorageErrorCode, StorageErrorDetail } from '../storage/object/errors.js';
import type { Capabilities, Limits, ObjectStore } from '../storage/object/store.js';

/** Calls that are forwarded as they are: method and arguments, with the signal taken out of the options. */
export type StoreMethod = {
  [K in keyof ObjectStore]: ObjectStore[K] extends (...args: never[]) => Promise<unknown> ? K : never;
}[keyof ObjectStore];

export interface StoreTask {
  readonly method: StoreMethod | 'describe';
  readonly args: readonly unknown[];
  /** Where among the arguments the options are, to put a signal in; −1: this call cannot be given up. */
  readonly optionsAt: number;
}

/** A call and its id; or the id alone, to give it up. Several travel together. */
export type StoreMessage = readonly [id: number, task: StoreTask] | number;

/** These, too. */
export type StoreReply = readonly [id: number, answer: StoreAnswer];

/** Errors lose their class on the way. `read`: the bytes, where the caller's buffer is not shared with the worker. */
export type StoreAnswer =
  | { readonly ok: true; readonly value: unknown; readonly read?: Uint8Array }
  | { readonly ok: false; readonly code: StorageErrorCode; readonly operation: string; readonly detail: StorageErrorDetail }
  | { readonly ok: false; readonly code: null; readonly message: string; readonly stack: string };

export interface StoreDescription {
  readonly kind: ObjectStore['kind'];
  readonly location: string;
  readonly limits: Limits;
  readonly capabilities: Capabilities;
}
