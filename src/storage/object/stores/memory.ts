/**
 * Objects in memory: the reference for what a store does, and the store of tests. It does all that the port knows, at
 * once and in order; `capabilities` and `limits` can be cut down to play a lesser provider, which ignores the conditions
 * that it does not honour, as Ceph RGW does.
 */
import { createHash } from 'node:crypto';
import { archiveClass, hasUnknownTags, inherited, isArchived, STORAGE_CLASS, TAG_COUNT, TAGS } from '../attachments.js';
import { bodyContent, targetView } from '../body.js';
import { StorageError } from '../errors.js';
import { compareUtf8 } from '../listing.js';
import type {
  Body, CallOptions, Capabilities, Condition, CopyOptions, Fetched, FetchOptions, HeadOptions, Limits, ListOptions, ListPage, Metadata, ObjectHeaders, ObjectInfo, ObjectStore, Part, PartSource,
  PutOptions, ReadOptions, RenameOptions, Upload, UploadInfo, Version,
} from '../store.js';

interface Stored {
  readonly content: Uint8Array;
  readonly info: ObjectInfo;
  /** As the header has them; '' for none. */
  readonly tags: string;
}

interface Begun {
  readonly key: string;
  readonly options: PutOptions;
  readonly begun_ms: number;
  readonly parts: Map<number, Uint8Array>;
}

/** Everything that a store has at one moment. */
export interface MemoryContents {
  readonly objects: ReadonlyMap<string, Stored>;
  readonly uploads: ReadonlyMap<string, Begun>;
  readonly sequence: number;
}

const MIB = 1 << 20;
const LIST_MAX = 1000;

/** S3's numbers, which are the tighter ones. */
export const MEMORY_LIMITS: Limits = {
  keyBytes: 1024, metadataBytes: 2048, putBytes: 5 * 1024 * MIB, objectBytes: 50_000_000 * MIB, partMinBytes: 5 * MIB, partMaxBytes: 5 * 1024 * MIB, parts: 10_000,
};

const EVERYTHING: Capabilities = {
  putIfAbsent: true, putIfVersion: true, completeIfAbsent: true, completeIfVersion: true, copyIfAbsent: true, copyIfVersion: true, deleteIfVersion: true,
  atomicDelete: true, copyPart: 'range', copyPartIfVersion: true, rename: true, listingHasMetadata: true, metadataInPlace: true, fetch: true,
};

export class MemoryStore implements ObjectStore {
  readonly kind = 'memory';
  readonly location: string;
  readonly limits: Limits;
  readonly capabilities: Capabilities;
  readonly #objects: Map<string, Stored>;
  readonly #uploads: Map<string, Begun>;
  readonly #etags: boolean;
  #sequence: number;

  /** `etags`: versions are those of S3, which are of the content; else each write makes another one. */
  constructor(options: { name?: string; limits?: Partial<Limits>; capabilities?: Partial<Capabilities>; contents?: MemoryContents; etags?: boolean } = {}) {
    this.location = `memory:${options.name ?? ''}`;
    this.#etags = options.etags ?? false;
    this.limits = { ...MEMORY_LIMITS, ...options.limits };
    this.capabilities = { ...EVERYTHING, ...options.capabilities };
    const { objects = [], uploads = [], sequence = 0 } = options.contents ?? {};
    this.#objects = new Map(objects);
    this.#uploads = copied(uploads);
    this.#sequence = sequence;
  }

  /** For another store, which goes on from here. */
  contents(): MemoryContents {
    return { objects: new Map(this.#objects), uploads: copied(this.#uploads), sequence: this.#sequence };
  }

  async check(options: CallOptions = {}): Promise<void> {
    this.#begin('check', '', options);
  }

  async head(key: string, options: HeadOptions = {}): Promise<ObjectInfo> {
    const { info, tags } = this.#existing(this.#begin('head', key, options), key);
    return options.attachments === true && tags !== '' ? { ...info, headers: { ...info.headers, [TAGS]: tags } } : info;
  }

  /** What others do to an object that is there, without a new version of it; for tests. */
  attach(key: string, headers: ObjectHeaders): void {
    const stored = this.#existing('attach', key);
    const { [TAGS]: tags = stored.tags, ...rest } = headers;
    this.#objects.set(key, { content: stored.content, tags, info: { ...stored.info, headers: { ...stored.info.headers, ...rest, ...counted(tags) } } });
  }

  async read(key: string, options: ReadOptions): Promise<number> {
    const operation = this.#begin('read', key, options);
    const { content, info } = this.#readable(operation, key);
    if (options.version !== undefined && info.version !== options.version) throw new StorageError('changed', operation);
    const into = targetView(options.into);
    const part = content.subarray(options.offset, options.offset + into.length);
    into.set(part);
    return part.length;
  }

  async fetch(key: string, options: FetchOptions): Promise<Fetched> {
    const operation = this.#begin('fetch', key, options);
    if (!this.capabilities.fetch) throw new StorageError('unsupported', operation);
    const { content, info } = this.#readable(operation, key);
    const into = targetView(options.into);
    const part = content.subarray(0, into.length);
    into.set(part);
    return { info, bytes: part.length };
  }

  async put(key: string, body: Body, options: PutOptions = {}): Promise<Version> {
    const operation = this.#begin('put', key, options);
    const content = bodyContent(body, operation).slice();
    if (content.length > this.limits.putBytes) throw new StorageError('too-large', operation);
    return this.#store(operation, key, content, this.#honoured(options, 'putIfAbsent', 'putIfVersion'), key);
  }

  async remove(key: string, options: CallOptions & { readonly version?: Version } = {}): Promise<void> {
    const operation = this.#begin('remove', key, options);
    if (options.version !== undefined && this.capabilities.deleteIfVersion) this.#require(operation, key, { version: options.version });
    this.#objects.delete(key);
  }

  async copy(from: string, to: string, options: CopyOptions = {}): Promise<Version> {
    const operation = this.#begin('copy', `${from} to ${to}`, options);
    const source = this.#readable(operation, from);
    if (options.sourceVersion !== undefined && source.info.version !== options.sourceVersion) throw new StorageError('changed', operation);
    const metadata = options.metadata ?? source.info.metadata ?? {};
    const headers = options.headers ?? (options.metadata === undefined ? source.info.headers! : {});
    return this.#store(operation, to, source.content, this.#honoured({ ...options, metadata, headers }, 'copyIfAbsent', 'copyIfVersion'), from);
  }

  async rename(from: string, to: string, options: RenameOptions): Promise<Version> {
    const operation = this.#begin('rename', `${from} to ${to}`, options);
    if (!this.capabilities.rename) throw new StorageError('unsupported', operation);
    if (from === to) throw new StorageError('invalid', operation);
    const { content, info } = this.#existing(operation, from);
    if (info.version !== options.version) throw new StorageError('changed', operation);
    const { condition } = options;
    const version = this.#store(operation, to, content, {
      metadata: info.metadata ?? {}, headers: info.headers!, ...(condition === undefined ? {} : { condition }),
    }, from);
    this.#objects.delete(from);
    return version;
  }

  async setMetadata(key: string, version: Version, metadata: Metadata, options: CallOptions = {}): Promise<Version> {
    const operation = this.#begin('set metadata of', key, options);
    const { content, info } = this.capabilities.metadataInPlace ? this.#existing(operation, key) : this.#readable(operation, key);
    if (info.version !== version) throw new StorageError('changed', operation);
    return this.#store(operation, key, content, { metadata, headers: info.headers! }, key);
  }

  async list(options: ListOptions): Promise<ListPage> {
    this.#begin('list', options.prefix, options);
    const { prefix, delimiter, limit = LIST_MAX } = options;
    const after = options.token ?? options.after ?? '';
    const objects: ObjectInfo[] = [];
    const prefixes: string[] = [];
    let last = '';
    for (const key of [...this.#objects.keys()].sort(compareUtf8)) {
      if (!key.startsWith(prefix)) continue;
      const cut = delimiter === undefined ? -1 : key.indexOf(delimiter, prefix.length);
      const name = cut < 0 ? key : key.slice(0, cut + 1);
      if (name === last || compareUtf8(name, after) <= 0) continue;
      if (objects.length + prefixes.length === limit) return { objects, prefixes, next: last };
      last = name;
      if (cut >= 0) prefixes.push(name);
      else objects.push(this.#listed(this.#objects.get(key)!.info));
    }
    return { objects, prefixes, next: null };
  }

  #listed(info: ObjectInfo): ObjectInfo {
    return this.capabilities.listingHasMetadata ? info : { ...info, metadata: null, headers: null, ...archiveClass(info.headers![STORAGE_CLASS]) };
  }

  async beginUpload(key: string, options: PutOptions = {}): Promise<Upload> {
    this.#checkMetadata(this.#begin('begin upload of', key, options), options.metadata);
    const id = `upload-${++this.#sequence}`;
    this.#uploads.set(id, { key, options, begun_ms: Date.now(), parts: new Map() });
    return { key, id };
  }

  async putPart(upload: Upload, number: number, body: Body, options: CallOptions = {}): Promise<Part> {
    const operation = this.#begin(`put part ${number} of`, upload.key, options);
    return this.#storePart(operation, upload, number, bodyContent(body, operation).slice());
  }

  async copyPart(upload: Upload, number: number, source: PartSource, options: CallOptions = {}): Promise<Part> {
    const operation = this.#begin(`copy part ${number} of`, upload.key, options);
    const { content, info } = this.#readable(operation, source.key);
    if (info.version !== source.version && this.capabilities.copyPartIfVersion) throw new StorageError('changed', operation);
    const { copyPart } = this.capabilities;
    const whole = source.offset === 0 && source.bytes === content.length;
    if (copyPart === 'none' || (copyPart === 'whole' && !whole)) throw new StorageError('unsupported', operation);
    if (source.bytes === 0) throw new StorageError('invalid', operation);
    if (source.offset + source.bytes > content.length) throw new StorageError('changed', operation, { status: 416 });
    return this.#storePart(operation, upload, number, content.slice(source.offset, source.offset + source.bytes));
  }

  #storePart(operation: string, upload: Upload, number: number, content: Uint8Array): Part {
    const begun = this.#begun(operation, upload);
    if (!Number.isInteger(number) || number < 1 || number > this.limits.parts) throw new StorageError('invalid', operation);
    if (content.length > this.limits.partMaxBytes) throw new StorageError('too-large', operation);
    begun.parts.set(number, content);
    return { number, tag: digest(content), bytes: content.length };
  }

  async completeUpload(upload: Upload, parts: readonly Part[], options: CallOptions & { readonly condition?: Condition } = {}): Promise<Version> {
    const operation = this.#begin('complete upload of', upload.key, options);
    const begun = this.#begun(operation, upload);
    // As Ceph; S3 would leave out what is not listed
    if (parts.length === 0 || parts.length < begun.parts.size) throw new StorageError('invalid', operation);
    const contents = parts.map((part, i) => {
      const content = begun.parts.get(part.number);
      if (content === undefined || digest(content) !== part.tag) throw new StorageError('invalid', operation);
      if (i > 0 && part.number <= parts[i - 1].number) throw new StorageError('invalid', operation);
      if (i < parts.length - 1 && content.length < this.limits.partMinBytes) throw new StorageError('invalid', operation);
      return content;
    });
    const { condition } = options;
    const made = this.#honoured({ ...begun.options, ...(condition === undefined ? {} : { condition }) }, 'completeIfAbsent', 'completeIfVersion');
    const version = this.#store(operation, upload.key, Buffer.concat(contents), made, upload.key, this.#etags ? tagOfParts(contents) : undefined);
    this.#uploads.delete(upload.id);
    return version;
  }

  async abortUpload(upload: Upload, options: CallOptions = {}): Promise<void> {
    this.#begin('abort upload of', upload.key, options);
    this.#uploads.delete(upload.id);
  }

  async listUploads(options: CallOptions & { readonly prefix: string; readonly token?: string }): Promise<{ uploads: UploadInfo[]; next: null }> {
    this.#begin('list uploads below', options.prefix, options);
    const uploads = [...this.#uploads].filter(([, begun]) => begun.key.startsWith(options.prefix)).map(([id, { key, begun_ms }]) => ({ id, key, begun_ms }));
    return { uploads: uploads.sort((a, b) => compareUtf8(a.key, b.key)), next: null };
  }

  async close(): Promise<void> {}

  #begin(what: string, subject: string, options: CallOptions): string {
    const operation = `${what} ${this.location}/${subject}`;
    if (options.signal?.aborted === true) throw new StorageError('aborted', operation);
    return operation;
  }

  #existing(operation: string, key: string): Stored {
    const stored = this.#objects.get(key);
    if (stored === undefined) throw new StorageError('not-found', operation, { status: 404 });
    return stored;
  }

  #readable(operation: string, key: string): Stored {
    const stored = this.#existing(operation, key);
    if (isArchived(stored.info.headers!)) throw new StorageError('archived', operation, { status: 403, providerCode: 'InvalidObjectState' });
    return stored;
  }

  #begun(operation: string, upload: Upload): Begun {
    const begun = this.#uploads.get(upload.id);
    if (begun === undefined || begun.key !== upload.key) throw new StorageError('not-found', operation, { status: 404 });
    return begun;
  }

  #require(operation: string, key: string, condition: Condition | undefined): void {
    if (condition === undefined) return;
    const there = this.#objects.get(key)?.info.version;
    if ('absent' in condition) {
      if (there !== undefined) throw new StorageError('changed', operation, { status: 412 });
    } else if (there !== condition.version) {
      throw there === undefined ? new StorageError('not-found', operation, { status: 404 }) : new StorageError('changed', operation, { status: 412 });
    }
  }

  /** Without a condition that is not looked at. */
  #honoured(options: PutOptions, ifAbsent: keyof Capabilities, ifVersion: keyof Capabilities): PutOptions {
    const { condition, ...rest } = options;
    return condition === undefined || !this.capabilities['absent' in condition ? ifAbsent : ifVersion] ? rest : options;
  }

  #checkMetadata(operation: string, metadata: Metadata = {}): void {
    const bytes = Object.entries(metadata).reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    if (bytes > this.limits.metadataBytes) throw new StorageError('too-large', operation, { status: 400, providerCode: 'MetadataTooLarge' });
  }

  /** `tagsOf`: the object whose tags are meant where the headers only count them. `etag`: of the content, if it is not its digest. */
  #store(operation: string, key: string, content: Uint8Array, options: PutOptions, tagsOf: string, etag?: string): Version {
    if (key === '' || Buffer.byteLength(key) > this.limits.keyBytes) throw new StorageError('invalid', operation, { status: 400, providerCode: 'KeyTooLongError' });
    if (content.length > this.limits.objectBytes) throw new StorageError('too-large', operation);
    this.#checkMetadata(operation, options.metadata);
    this.#require(operation, key, options.condition);
    const version = this.#etags ? etag ?? md5(content) : String(++this.#sequence);
    const given = options.headers ?? {};
    const tags = hasUnknownTags(given) ? this.#objects.get(tagsOf)?.tags ?? '' : given[TAGS] ?? '';
    const kept = Object.entries(inherited(given)).filter(([name]) => name !== TAGS && name !== TAG_COUNT);
    const headers = { 'content-type': 'application/octet-stream', ...Object.fromEntries(kept), ...counted(tags) };
    this.#objects.set(key, { content, tags, info: { key, size: content.length, version, modified_ms: Date.now(), metadata: { ...options.metadata }, headers } });
    return version;
  }
}

const counted = (tags: string): ObjectHeaders => (tags === '' ? {} : { [TAG_COUNT]: String(tags.split('&').length) });

const copied = (uploads: Iterable<readonly [string, Begun]>): Map<string, Begun> => new Map([...uploads].map(([id, begun]) => [id, { ...begun, parts: new Map(begun.parts) }]));

const md5 = (content: Uint8Array): string => createHash('md5').update(content).digest('hex');

/** As S3 makes it: of the digests of the parts, and how many they are. */
const tagOfParts = (parts: readonly Uint8Array[]): string => `${md5(Buffer.concat(parts.map((part) => Buffer.from(md5(part), 'hex'))))}-${parts.length}`;

const digest = (content: Uint8Array): string => createHash('sha256').update(content).digest('hex');
