/**
 * The port between the object file system and whatever keeps objects: S3, Google Cloud Storage, memory.
 *
 * Methods reject with StorageError only. They make one attempt: deadlines, retries and limits are layers above
 * (layers/), so that each store stays a thin translation of its provider's API. Keys are strings of Unicode text as both
 * providers have them, at most `limits.keyBytes` of UTF-8; whoever has other bytes escapes them first.
 */

/** One state of one object: an ETag on S3, generation and metageneration on Google Cloud Storage. Compared, never looked into. */
export type Version = string;

/** On S3 the version of an empty object, unless it is encrypted with a key of its own. https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html */
export const EMPTY_MD5 = 'd41d8cd98f00b204e9800998ecf8427e';

/** User metadata: lower-case names, printable ASCII values (stores encode what their protocol cannot carry). */
export type Metadata = Readonly<Record<string, string>>;

/**
 * What is attached to an object beside its content and metadata, by the names of HTTP headers in lower case ("content-type",
 * "x-amz-storage-class"): of those in attachments.ts.
 */
export type ObjectHeaders = Readonly<Record<string, string>>;

export interface ObjectInfo {
  readonly key: string;
  /** Bytes. */
  readonly size: number;
  readonly version: Version;
  /** When the provider stored it, milliseconds since 1970. */
  readonly modified_ms: number;
  /**
   * The provider has said this so long after it stored the object that whatever replaces it has a later `modified_ms`, by whole seconds, even with the same
   * version. Absent: not so, or not known.
   */
  readonly isSettled?: true;
  /** null in a listing of a provider whose listings have none. */
  readonly metadata: Metadata | null;
  /** null as well where a listing has none. */
  readonly headers: ObjectHeaders | null;
  /** Told by a listing without headers: of an archive's class. Whether it is restored head() tells. */
  readonly archiveClass?: true;
}

/** What is sent: bytes in memory, or a range of an open file, which is not to change until the call is done. */
export type Body = Uint8Array | { readonly fd: number; readonly offset: number; readonly bytes: number };

/** Where a read goes: memory of JavaScript, or native memory that every thread of the process can reach. */
export type Target = Uint8Array | { readonly address: number; readonly bytes: number };

/** A write that is to lose instead of overwriting: no object there yet, or exactly this one. */
export type Condition = { readonly absent: true } | { readonly version: Version };

export interface CallOptions {
  /** Gives up: rejects with `aborted`. What was under way may or may not take effect. */
  readonly signal?: AbortSignal;
}

export interface HeadOptions extends CallOptions {
  /**
   * What a new object in place of this one has to be sent with is asked for as well, where it takes requests of its own (tags): `denied` when
   * that is not allowed, which a change of the object would be too.
   */
  readonly attachments?: boolean;
}

export interface PutOptions extends CallOptions {
  readonly metadata?: Metadata;
  /** As head() gives them of the object that is replaced: tags that they only count are asked for, and stay. */
  readonly headers?: ObjectHeaders;
  readonly condition?: Condition;
}

export interface ReadOptions extends CallOptions {
  /**
   * Only this version: `changed` when there is another one, `not-found` when there is none. Another one with the same
   * content (setMetadata by somebody) may be read where the provider can tell; a write on condition of it fails.
   */
  readonly version?: Version;
  readonly offset: number;
  /** Filled from its start; the range asked for is as long. */
  readonly into: Target;
}

/** Where an object's content goes that is fetched along with what there is to know of it. */
export interface FetchOptions extends CallOptions {
  /** Filled from its start, as far as the object goes; not empty. */
  readonly into: Target;
}

export interface Fetched {
  readonly info: ObjectInfo;
  /** So many have come: fewer than `info.size` where there was no room for more. They are of the version that `info` is of. */
  readonly bytes: number;
}

export interface CopyCallOptions extends CallOptions {
  /** As one request of the provider's: `too-large` for what would take many, which may take hours. */
  readonly inOne?: boolean;
}

export interface CopyOptions extends PutOptions, CopyCallOptions {
  /** Only this version of the source: `changed` otherwise. */
  readonly sourceVersion?: Version;
  // metadata and headers replace those of the source; without metadata both are kept. Tags that `headers` only count are those of the source
}

export interface RenameOptions extends CallOptions {
  /** Of the source: `changed` when it is another one. */
  readonly version: Version;
  /** Of what is there under the new name. */
  readonly condition?: Condition;
}

export interface ListOptions extends CallOptions {
  readonly prefix: string;
  /** '/' to collapse what has one behind the prefix into `prefixes`; absent: everything below. */
  readonly delimiter?: '/';
  /** Only keys after this one, in the order of UTF-8 bytes. */
  readonly after?: string;
  /** From an earlier page. */
  readonly token?: string;
  /** At most so many entries, 1..1000. */
  readonly limit?: number;
}

/** Objects and prefixes are each in the order of the UTF-8 bytes of their names. */
export interface ListPage {
  readonly objects: readonly ObjectInfo[];
  readonly prefixes: readonly string[];
  /** null: this was the last one. A page may be empty and yet have a successor. */
  readonly next: string | null;
}

/** An upload in parts that nobody sees until it is completed. */
export interface Upload {
  readonly key: string;
  readonly id: string;
}

export interface UploadInfo extends Upload {
  /** Milliseconds since 1970. */
  readonly begun_ms: number;
}

/** Part numbers count from 1; parts may be sent in any order, and again. */
export interface Part {
  readonly number: number;
  readonly tag: string;
  readonly bytes: number;
}

export interface PartSource {
  readonly key: string;
  readonly version: Version;
  readonly offset: number;
  readonly bytes: number;
}

export interface Limits {
  readonly keyBytes: number;
  /** Keys that no object can have. */
  readonly excludedKeys?: RegExp;
  /** All names and values of one object's metadata together. */
  readonly metadataBytes: number;
  /** Of one put(), and of an object. */
  readonly putBytes: number;
  readonly objectBytes: number;
  /** All parts but the last have at least the former. */
  readonly partMinBytes: number;
  readonly partMaxBytes: number;
  readonly parts: number;
}

/**
 * What this store does; probed where providers of one protocol differ. A condition that is not honoured is ignored or refused: whoever writes has to
 * know, see settle.ts.
 */
export interface Capabilities {
  readonly putIfAbsent: boolean;
  readonly putIfVersion: boolean;
  readonly completeIfAbsent: boolean;
  readonly completeIfVersion: boolean;
  /** Of what is at the destination. */
  readonly copyIfAbsent: boolean;
  /** So does setMetadata(), which is such a copy unless it is done in place. */
  readonly copyIfVersion: boolean;
  readonly deleteIfVersion: boolean;
  /** A remove of one version excludes a write to it at the same moment; elsewhere the version is compared before, and what is there by then is removed. */
  readonly atomicDelete: boolean;
  /** What the server copies into parts: every range of an object, whole objects only, or none. */
  readonly copyPart: 'range' | 'whole' | 'none';
  /** copyPart() of another version than the one named fails; where it does not, whoever copies has to compare afterwards. */
  readonly copyPartIfVersion: boolean;
  /** Objects are renamed as one step. */
  readonly rename: boolean;
  readonly listingHasMetadata: boolean;
  /** setMetadata() costs no copy of the content. */
  readonly metadataInPlace: boolean;
  /** fetch() is there. */
  readonly fetch: boolean;
}

export interface ObjectStore {
  readonly kind: 's3' | 'gcs' | 'memory';
  /** For people: s3://bucket */
  readonly location: string;
  readonly limits: Limits;
  /** The most this kind of store can do; probe() tells what this one does. */
  readonly capabilities: Capabilities;

  /** One cheap call: the bucket exists and may be listed. Rejects with `no-bucket`, `denied`, `bad-credentials` ... */
  check(options?: CallOptions): Promise<void>;

  head(key: string, options?: HeadOptions): Promise<ObjectInfo>;
  /** @returns bytes read: fewer than asked for only at the end of the object, 0 at and beyond it. */
  read(key: string, options: ReadOptions): Promise<number>;
  /** head() and read() of the beginning, of one version, as one request; `unsupported` unless capabilities.fetch. */
  fetch(key: string, options: FetchOptions): Promise<Fetched>;
  put(key: string, body: Body, options?: PutOptions): Promise<Version>;
  /** Removing what is not there is no error, unless a version was named: then `changed` (or `not-found`). */
  remove(key: string, options?: CallOptions & { readonly version?: Version }): Promise<void>;
  copy(from: string, to: string, options?: CopyOptions): Promise<Version>;
  /** The object with its metadata has another key, all at once; `unsupported` unless capabilities.rename. @returns the version it has there */
  rename(from: string, to: string, options: RenameOptions): Promise<Version>;
  /** Replace the metadata of exactly this version. @returns the version it has then, a new one or not. */
  setMetadata(key: string, version: Version, metadata: Metadata, options?: CopyCallOptions): Promise<Version>;
  list(options: ListOptions): Promise<ListPage>;

  beginUpload(key: string, options?: PutOptions): Promise<Upload>;
  putPart(upload: Upload, number: number, body: Body, options?: CallOptions): Promise<Part>;
  /** `unsupported` for what capabilities.copyPart excludes; `changed` where the object that is there is too short for the range: it is another version. */
  copyPart(upload: Upload, number: number, source: PartSource, options?: CallOptions): Promise<Part>;
  /** Make the object of these parts, in the order of their numbers: of all that were put, since some providers refuse to leave out any. */
  completeUpload(upload: Upload, parts: readonly Part[], options?: CallOptions & { readonly condition?: Condition }): Promise<Version>;
  /** Aborting what is completed or aborted is no error. */
  abortUpload(upload: Upload, options?: CallOptions): Promise<void>;
  listUploads(options: CallOptions & { readonly prefix: string; readonly token?: string }): Promise<{ readonly uploads: readonly UploadInfo[]; readonly next: string | null }>;

  /** Close connections. */
  close(): Promise<void>;
}
