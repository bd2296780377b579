/**
 * The objects of a bucket and their history: each change has the request that made it, and the state before and after. A request takes
 * effect at one moment. A copy takes two: it reads its source first and writes later.
 */
import { createHash } from 'node:crypto';
import { REMOVED } from '../../src/storage/object/asking.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { compareUtf8 } from '../../src/storage/object/listing.js';
import type {
  Condition, ListOptions, ListPage, Metadata, ObjectHeaders, ObjectInfo, Part, PutOptions, Upload, UploadInfo, Version,
} from '../../src/storage/object/store.js';
import type { Provider } from './provider.js';

/** A request of a client. */
export interface Call {
  readonly number: number;
  /** Name of the guest, or of another client. */
  readonly client: string;
  readonly operation: string;
  readonly key: string;
  readonly issued_ms: number;
  /** Number of changes of the bucket by then. */
  readonly issuedAt: number;
  /** A good answer was delivered. */
  answered: boolean;
  /** The copied object. */
  source: Revision | null;
  /** Time at which a completed upload was begun. */
  begun_ms: number;
  /** Number of changes when the condition was compared; null where that is one step with the change. */
  comparedAt: number | null;
}

/** One state of one object. */
export interface Revision {
  readonly id: number;
  readonly key: string;
  readonly content: Buffer;
  readonly metadata: Metadata;
  readonly headers: ObjectHeaders;
  readonly version: Version;
  /** ETag, or generation: it stays when only metadata changes. */
  readonly tag: string;
  readonly modified_ms: number;
  readonly by: string;
  readonly call: Call;
}

export interface Change {
  readonly number: number;
  readonly at_ms: number;
  readonly key: string;
  readonly before: Revision | null;
  readonly after: Revision | null;
  readonly call: Call;
}

interface Begun {
  readonly key: string;
  readonly options: PutOptions;
  readonly begun_ms: number;
  readonly parts: Map<number, Buffer>;
  readonly call: Call;
  /** The client has the upload's id. */
  isKnown: boolean;
}

const LIST_MAX = 1000;
const unlessRemoved = (there: Revision | null): Revision | null => (there !== null && REMOVED in there.metadata ? null : there);
const md5 = (content: Uint8Array): string => createHash('md5').update(content).digest('hex');

export class Bucket {
  readonly changes: Change[] = [];
  /** Every state of a key in order; null: no object. */
  readonly history = new Map<string, { readonly change: number; readonly at_ms: number; readonly revision: Revision | null }[]>();
  readonly uploads = new Map<string, Begun>();
  readonly #objects = new Map<string, Revision>();
  #ids = 0;

  constructor(
    readonly provider: Provider,
    readonly now_ms: () => number,
    readonly onChange: (change: Change) => void,
  ) {}

  /** An object; null where there is none, or only what stands for a removed one. */
  at(key: string): Revision | null {
    return unlessRemoved(this.#at(key));
  }

  keys(): string[] {
    return this.#keys().filter((key) => this.at(key) !== null);
  }

  /** Keys at which something stands for a removed object. */
  removed(): string[] {
    return this.#keys().filter((key) => this.at(key) === null);
  }

  #at(key: string): Revision | null {
    return this.#objects.get(key) ?? null;
  }

  #keys(): string[] {
    return [...this.#objects.keys()].sort(compareUtf8);
  }

  /** State of a key after so many changes. */
  stateAt(key: string, change: number): Revision | null {
    return (this.history.get(key) ?? []).findLast((one) => one.change <= change)?.revision ?? null;
  }

  /** All states of a key since there were so many changes. */
  statesSince(key: string, change: number): (Revision | null)[] {
    const all = this.history.get(key) ?? [];
    return [this.stateAt(key, change), ...all.filter((one) => one.change > change).map((one) => one.revision)];
  }

  /** Whether its request was sent before what was there had been removed: nothing can stop it then. */
  cameLate({ key, id, call }: Revision): boolean {
    const all = this.history.get(key) ?? [];
    const removed = all[all.findIndex(({ revision }) => revision?.id === id) - 1];
    return removed?.revision === null && call.issuedAt < removed.change;
  }

  /** @throws StorageError `not-found` */
  existing(operation: string, key: string): Revision {
    const there = this.#objects.get(key);
    if (there === undefined) throw new StorageError('not-found', operation, { status: 404 });
    return there;
  }

  infoOf({ key, content, version, modified_ms, metadata, headers }: Revision): ObjectInfo {
    return { key, size: content.length, version, modified_ms, metadata, headers };
  }

  put(call: Call, content: Buffer, options: PutOptions): Revision {
    return this.#store(call, call.key, content, md5(content), options);
  }

  /** The first half of a removal: whether its condition holds. */
  compare(call: Call, version: Version | undefined): void {
    if (version === undefined || !this.provider.capabilities.deleteIfVersion) return;
    this.#require(call.operation, call.key, { version });
    call.comparedAt = this.changes.length;
  }

  remove(call: Call, version: Version | undefined): void {
    const { deleteIfVersion, atomicDelete } = this.provider.capabilities;
    if (version !== undefined && deleteIfVersion && atomicDelete) this.#require(call.operation, call.key, { version });
    const before = this.#at(call.key);
    if (before === null) return;
    this.#objects.delete(call.key);
    this.#changed(call, call.key, before, null);
  }

  /** The second half of a copy; `to` gets what the source was. */
  finishCopy(call: Call, source: Revision, to: string, options: PutOptions): Revision {
    const { copyKeepsEtag, capabilities } = this.provider;
    const tag = copyKeepsEtag ? source.tag : md5(source.content);
    const { condition } = options;
    const honoured = condition !== undefined && ('absent' in condition ? capabilities.copyIfAbsent : capabilities.copyIfVersion);
    return this.#store(call, to, source.content, tag, { ...options, ...(honoured ? {} : { condition: undefined }) } as PutOptions);
  }

  rename(call: Call, to: string, version: Version, condition: Condition | undefined): Revision {
    const source = this.existing(call.operation, call.key);
    if (source.version !== version) throw new StorageError('changed', call.operation, { status: 412 });
    call.source = source;
    const { metadata, headers } = source;
    const made = this.#store(call, to, source.content, source.tag, { metadata, headers, ...(condition === undefined ? {} : { condition }) });
    this.#objects.delete(call.key);
    this.#changed(call, call.key, source, null);
    return made;
  }

  /** In place, where the provider does that. */
  patch(call: Call, version: Version, metadata: Metadata): Revision {
    const there = this.existing(call.operation, call.key);
    if (there.version !== version) throw new StorageError('changed', call.operation, { status: 412 });
    const [generation, meta] = there.version.split('.');
    return this.#set(call, { ...there, metadata: { ...metadata }, version: `${generation}.${Number(meta) + 1}` });
  }

  list(options: ListOptions): ListPage {
    const { prefix, delimiter, limit = LIST_MAX } = options;
    const after = options.token ?? options.after ?? '';
    const objects: ObjectInfo[] = [];
    const prefixes: string[] = [];
    let last = '';
    for (const key of this.#keys()) {
      if (!key.startsWith(prefix)) continue;
      const cut = delimiter === undefined ? -1 : key.indexOf(delimiter, prefix.length);
      const name = cut < 0 ? key : key.slice(0, cut + 1);
      if (name === last || compareUtf8(name, after) <= 0) continue;
      if (objects.length + prefixes.length === limit) return { objects, prefixes, next: last };
      last = name;
      if (cut >= 0) prefixes.push(name);
      else objects.push(this.#listed(this.#objects.get(key)!));
    }
    return { objects, prefixes, next: null };
  }

  #listed(revision: Revision): ObjectInfo {
    const info = this.infoOf(revision);
    return this.provider.capabilities.listingHasMetadata ? info : { ...info, metadata: null, headers: null };
  }

  beginUpload(call: Call, options: PutOptions): Upload {
    this.#checkMetadata(call.operation, options.metadata);
    const id = `upload-${++this.#ids}`;
    this.uploads.set(id, { key: call.key, options, begun_ms: this.now_ms(), parts: new Map(), call, isKnown: false });
    return { key: call.key, id };
  }

  putPart(call: Call, upload: Upload, number: number, content: Buffer): Part {
    const begun = this.#begun(call.operation, upload);
    const { limits } = this.provider;
    if (number < 1 || number > limits.parts) throw new StorageError('invalid', call.operation);
    if (content.length > limits.partMaxBytes) throw new StorageError('too-large', call.operation);
    begun.parts.set(number, content);
    return { number, tag: md5(content), bytes: content.length };
  }

  completeUpload(call: Call, upload: Upload, parts: readonly Part[], condition: Condition | undefined): Revision {
    const begun = this.#begun(call.operation, upload);
    const { limits, versions } = this.provider;
    // As Ceph; S3 would leave out what is not listed
    if (parts.length === 0 || parts.length < begun.parts.size) throw new StorageError('invalid', call.operation);
    const contents = parts.map((part, i) => {
      const content = begun.parts.get(part.number);
      const inOrder = i === 0 || part.number > parts[i - 1].number;
      if (content === undefined || md5(content) !== part.tag || !inOrder) throw new StorageError('invalid', call.operation);
      if (i < parts.length - 1 && content.length < limits.partMinBytes) throw new StorageError('invalid', call.operation);
      return content;
    });
    const content = Buffer.concat(contents);
    call.begun_ms = begun.call.issued_ms;
    const tag = versions === 'etag' ? `${md5(Buffer.from(parts.map((part) => part.tag).join(''), 'hex'))}-${parts.length}` : '';
    const made = this.#store(call, upload.key, content, tag, { ...begun.options, ...(condition === undefined ? {} : { condition }) });
    this.uploads.delete(upload.id);
    return made;
  }

  abortUpload(upload: Upload): void {
    this.uploads.delete(upload.id);
  }

  listUploads(prefix: string): UploadInfo[] {
    const found = [...this.uploads].filter(([, begun]) => begun.key.startsWith(prefix)).map(([id, { key, begun_ms }]) => ({ id, key, begun_ms }));
    return found.sort((a, b) => compareUtf8(a.key, b.key));
  }

  #begun(operation: string, upload: Upload): Begun {
    const begun = this.uploads.get(upload.id);
    if (begun === undefined || begun.key !== upload.key) throw new StorageError('not-found', operation, { status: 404 });
    return begun;
  }

  #checkMetadata(operation: string, metadata: Metadata = {}): void {
    const bytes = Object.entries(metadata).reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    if (bytes > this.provider.limits.metadataBytes) throw new StorageError('too-large', operation, { status: 400, providerCode: 'MetadataTooLarge' });
  }

  #require(operation: string, key: string, condition: Condition): void {
    const there = this.#at(key)?.version;
    if ('absent' in condition) {
      if (there !== undefined) throw new StorageError('changed', operation, { status: 412 });
    } else if (there !== condition.version) {
      throw there === undefined ? new StorageError('not-found', operation, { status: 404 }) : new StorageError('changed', operation, { status: 412 });
    }
  }

  #store(call: Call, key: string, content: Buffer, etag: string, { metadata = {}, headers = {}, condition }: PutOptions): Revision {
    this.#checkMetadata(call.operation, metadata);
    const { capabilities, versions } = this.provider;
    if (condition !== undefined && ('absent' in condition ? capabilities.putIfAbsent : capabilities.putIfVersion)) this.#require(call.operation, key, condition);
    const tag = versions === 'etag' ? etag : String(1_000 + this.#ids);
    return this.#set(call, {
      id: 0, key, content, metadata: { ...metadata }, headers: { 'content-type': 'application/octet-stream', ...headers }, tag,
      version: versions === 'etag' ? tag : `${tag}.1`, modified_ms: this.now_ms(), by: '', call,
    });
  }

  #set(call: Call, like: Revision): Revision {
    const before = this.#at(like.key);
    const made = { ...like, id: ++this.#ids, by: call.client, call };
    this.#objects.set(like.key, made);
    this.#changed(call, like.key, before, made);
    return made;
  }

  #changed(call: Call, key: string, was: Revision | null, is: Revision | null): void {
    const [before, after] = [unlessRemoved(was), unlessRemoved(is)];
    if (before === null && after === null) return;
    const change = { number: this.changes.length + 1, at_ms: this.now_ms(), key, before, after, call };
    this.changes.push(change);
    const all = this.history.get(key) ?? [];
    all.push({ change: change.number, at_ms: change.at_ms, revision: after });
    this.history.set(key, all);
    this.onChange(change);
  }
}
