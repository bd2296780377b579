/** What travels between StoreClient and its workers. */
import type { StorageErrorCode, StorageErrorDetail } from '../storage/object/errors.js';
import type { StoreConfig } from '../storage/object/open-store.js';
import type { Capabilities, Limits, ObjectStore } from '../storage/object/store.js';

/** Calls that are forwarded as they are: method and arguments, with the signal taken out of the options. */
export type StoreMethod = {
  [K in keyof ObjectStore]: ObjectStore[K] extends (...args: never[]) => Promise<unknown> ? K : never;
}[keyof ObjectStore];

export interface StoreWorkerData {
  readonly config: StoreConfig;
  /** Name of the BroadcastChannel on which ids of calls to give up come. */
  readonly abortChannel: string;
}

export interface StoreTask {
  readonly method: StoreMethod | 'describe';
  readonly args: readonly unknown[];
  /** Where among the arguments the options are, to put a signal in; −1: this call cannot be given up. */
  readonly optionsAt: number;
  readonly id: number;
}

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
