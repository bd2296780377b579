/**
 * The calls that a share makes all the time, one request each. Two do them: the SDK (s3-sdk.ts), and requests of our own (s3-lean.ts),
 * which take a tenth of its CPU time. docs/adr/0011-lean-s3-requests.md
 *
 * They reject with StorageError, or with what toStorageError() (s3-errors.ts) understands.
 */
import type { Body, Condition, ListOptions, ListPage, ObjectHeaders, ObjectInfo, Part, Upload, Version } from '../store.js';

/** How an object is described that is made; metadata as it travels. */
export interface Description {
  readonly metadata: Readonly<Record<string, string>>;
  readonly headers: ObjectHeaders;
}

export interface GetCall {
  /** For messages: "read s3://bucket/key". */
  readonly operation: string;
  readonly offset: number;
  /** Not empty. Filled from its start, and untouched once the call is over. */
  readonly into: Uint8Array;
  readonly version?: Version;
  readonly signal: AbortSignal | undefined;
}

export interface Got {
  readonly bytes: number;
  /** null: the provider does not say how long the whole object is. */
  readonly info: ObjectInfo | null;
}

export interface PutCall {
  readonly operation: string;
  readonly described: Description;
  readonly condition?: Condition;
  readonly signal: AbortSignal | undefined;
}

export interface CopyCall {
  readonly operation: string;
  /** Replaces that of the source, and all that HTTP says of its content. */
  readonly metadata?: Description['metadata'];
  /** Besides, what a copy has not by itself. */
  readonly headers: ObjectHeaders;
  readonly sourceVersion?: Version;
  readonly condition?: Condition;
  readonly signal: AbortSignal | undefined;
}

export interface PartCall {
  readonly operation: string;
  readonly signal: AbortSignal | undefined;
}

export interface S3Calls {
  head(key: string, operation: string, signal: AbortSignal | undefined): Promise<ObjectInfo>;
  get(key: string, call: GetCall): Promise<Got>;
  put(key: string, body: Body, call: PutCall): Promise<Version>;
  remove(key: string, version: Version | undefined, operation: string, signal: AbortSignal | undefined): Promise<void>;
  copy(from: string, to: string, call: CopyCall): Promise<Version>;
  list(options: ListOptions, operation: string): Promise<ListPage>;
  putPart(upload: Upload, number: number, body: Body, call: PartCall): Promise<Part>;
}
