/**
 * Google Cloud Storage by its JSON API. https://cloud.google.com/storage/docs/json_api
 *
 * A version is a generation and a metageneration (see versionOf). Temporary objects of uploads in parts are below a
 * reserved prefix, which listings hide and writes refuse (see gcs-parts.ts).
 */
import type { IncomingHttpHeaders } from 'node:http';
import { targetBytes, targetView } from '../body.js';
import { StorageError } from '../errors.js';
import type {
  Body, CallOptions, Capabilities, Condition, CopyOptions, Fetched, Limits, ListOptions, ListPage, Metadata, ObjectInfo, ObjectStore, Part, PartSource, PutOptions,
  ReadOptions, RenameOptions, Upload, UploadInfo, Version,
} from '../store.js';
import { AnswerReader } from './answer-reader.js';
import { checkCrc32c } from './gcs-crc32c.js';
import { GcsHttp, type GcsConnection } from './gcs-http.js';
import { pageOf } from './gcs-listing.js';
import { GcsParts } from './gcs-parts.js';
import {
  FIELDS, OCTETS, bucketPath, fieldsOf, infoOf, keyNameOf, metadataBytes, objectOfKey, objectPath, parseVersion, preconditions, versionOf, type GcsObject,
} from './gcs-resource.js';
import { RESUMABLE_FROM_BYTES, insert } from './gcs-uploads.js';

/** Where parts are kept until they are an object: hidden from list(), refused by put() and copy(). */
export const GCS_TEMPORARY_PREFIX = '.bucketfsd-uploads/';

const MIB = 1 << 20;
const TIB = MIB * MIB;

/** https://cloud.google.com/storage/quotas#objects. Compose has no least size; the number of parts is our own bound. */
export const GCS_LIMITS: Limits = {
  // https://cloud.google.com/storage/docs/objects#naming
  keyBytes: 1024, excludedKeys: /[\r\n]|^\.well-known\/acme-challenge\//, metadataBytes: 8 * 1024, putBytes: 5 * TIB, objectBytes: 5 * TIB, partMinBytes: 1, partMaxBytes: 5 * TIB, parts: 10_000,
};

const CAPABILITIES: Capabilities = {
  putIfAbsent: true, putIfVersion: true, completeIfAbsent: true, completeIfVersion: true, copyIfAbsent: true, copyIfVersion: true, deleteIfVersion: true,
  atomicDelete: true, copyPart: 'whole', copyPartIfVersion: true, rename: true, listingHasMetadata: true, metadataInPlace: true, fetch: false,
};

export interface GcsOptions extends GcsConnection {
  readonly bucket: string;
  /** For what is written; absent: the bucket's. */
  readonly storageClass?: string;
  /** projects/P/locations/L/keyRings/R/cryptoKeys/K; absent: the bucket's, or Google's own. */
  readonly kmsKeyName?: string;
  /** Instead of GCS_TEMPORARY_PREFIX, for who may write below one prefix only. Ends with a slash. */
  readonly temporaryPrefix?: string;
  /** Bytes from which on a body is sent by a resumable session; tests take fewer. */
  readonly resumableFromBytes?: number;
}

const JSON_TYPE = { 'content-type': 'application/json; charset=UTF-8' };
const RANGE_NOT_SATISFIABLE = 416;
/** Calls of a rewrite in a row that may rewrite nothing. */
const STILL_MAX = 100;

export class GcsStore implements ObjectStore {
  readonly kind = 'gcs';
  readonly location: string;
  readonly limits = GCS_LIMITS;
  readonly capabilities = CAPABILITIES;
  readonly #http: GcsHttp;
  readonly #parts: GcsParts;
  readonly #bucket: string;
  readonly #temporary: string;
  readonly #defaults: Readonly<Record<string, string>>;

  constructor(readonly options: GcsOptions) {
    this.#bucket = options.bucket;
    this.location = `gs://${options.bucket}`;
    this.#temporary = options.temporaryPrefix ?? GCS_TEMPORARY_PREFIX;
    this.#http = new GcsHttp(options);
    this.#defaults = options.storageClass === undefined ? {} : { storageClass: options.storageClass };
    this.#parts = new GcsParts({
      http: this.#http, bucket: options.bucket, prefix: this.#temporary, kmsKeyName: options.kmsKeyName, defaults: this.#defaults,
      resumableFromBytes: options.resumableFromBytes ?? RESUMABLE_FROM_BYTES,
    });
  }

  /** A listing, since who may use objects need not be allowed to look at the bucket. */
  async check({ signal }: CallOptions = {}): Promise<void> {
    const operation = `check ${this.location}`;
    await this.#http.json({ operation, method: 'GET', path: `${bucketPath(this.#bucket)}/o`, query: { maxResults: 1, fields: 'nextPageToken' }, signal, bucketOnly: true });
  }

  async head(key: string, { signal }: CallOptions = {}): Promise<ObjectInfo> {
    return infoOf(await this.#object(`head ${this.location}/${key}`, key, {}, signal));
  }

  async read(key: string, { version, offset, into, signal }: ReadOptions): Promise<number> {
    const operation = `read ${this.location}/${key}`;
    const generation = version === undefined ? undefined : parseVersion(version, operation).generation;
    const length = targetBytes(into);
    if (length === 0) {
      await this.#sizeOf(operation, key, generation, signal);
      return 0;
    }
    const place = targetView(into);
    let announced: Announced = { bytes: 0, size: 0 };
    const { status, headers, bytes } = await this.#http.call({
      operation, method: 'GET', path: objectPath(this.#bucket, key, operation), query: { alt: 'media', ifGenerationMatch: generation }, signal,
      // gzip: what is stored, not what could be unpacked of it (https://cloud.google.com/storage/docs/transcoding)
      headers: { range: `bytes=${offset}-${offset + length - 1}`, 'accept-encoding': 'gzip' }, also: [RANGE_NOT_SATISFIABLE],
      into: place, inspect: (told, status) => (announced = announcedBy(told, status, { operation, offset, length, generation })),
    });
    if (status === RANGE_NOT_SATISFIABLE) {
      const size = /^bytes \*\/(\d+)$/.exec(headers['content-range'] ?? '')?.[1];
      const read = new AnswerReader(operation);
      const known = size !== undefined ? read.count('a size', size) : await this.#sizeOf(operation, key, generation, signal);
      if (offset < known) throw read.wrong(`a range inside of ${known} bytes was refused`);
      return 0;
    }
    if (bytes !== announced.bytes) throw new StorageError('short-body', operation, { status, providerMessage: `${bytes} of the ${announced.bytes} bytes announced` });
    if (offset === 0 && bytes === announced.size) checkCrc32c(place.subarray(0, bytes), headers['x-goog-hash'], operation);
    return bytes;
  }

  /** Which of an object's metadata is told along with its media the documentation does not say; listings have all of it. */
  async fetch(key: string): Promise<Fetched> {
    throw new StorageError('unsupported', `fetch ${this.location}/${key}`);
  }

  async put(key: string, body: Body, options: PutOptions = {}): Promise<Version> {
    const operation = `put ${this.location}/${key}`;
    this.#checkTarget(operation, key, options.metadata);
    const { kmsKeyName = keyNameOf(options.headers), resumableFromBytes = RESUMABLE_FROM_BYTES } = this.options;
    const made = {
      operation, bucket: this.#bucket, key, resource: this.#resource(options), conditions: preconditions(options.condition, operation), kmsKeyName, signal: options.signal,
    };
    return versionOf(await insert(this.#http, made, body, resumableFromBytes));
  }

  async remove(key: string, { version, signal }: CallOptions & { readonly version?: Version } = {}): Promise<void> {
    const operation = `remove ${this.location}/${key}`;
    const query = { ...preconditions(version === undefined ? undefined : { version }, operation) };
    try {
      await this.#http.call({ operation, method: 'DELETE', path: objectPath(this.#bucket, key, operation), query, signal, mutates: true });
    } catch (error) {
      if (version === undefined && error instanceof StorageError && error.code === 'not-found') return;
      throw error;
    }
  }

  async copy(from: string, to: string, options: CopyOptions = {}): Promise<Version> {
    const operation = `copy ${this.location}/${from} to ${to}`;
    this.#checkTarget(operation, to, options.metadata);
    const { signal } = options;
    const source = await this.#sourceOf(operation, from, options);
    const query = {
      ...preconditions(options.condition, operation), destinationKmsKeyName: this.options.kmsKeyName ?? source.kmsKeyName, fields: `done,rewriteToken,totalBytesRewritten,resource(${FIELDS})`,
      ifSourceGenerationMatch: source.generation, ifSourceMetagenerationMatch: source.metageneration,
    };
    const path = `${objectPath(this.#bucket, from, operation)}/rewriteTo${objectPath(this.#bucket, to, operation).replace('/storage/v1', '')}`;
    const body = { body: Buffer.from(JSON.stringify(source.resource)), headers: JSON_TYPE };
    for (let rewriteToken: string | undefined, rewritten = 0, still = 0; ;) {
      const { read, fields } = await this.#http.json({ operation, method: 'POST', path, query: { ...query, rewriteToken }, ...body, signal, mutates: true });
      if (read.flag('whether it is done', fields['done'])) return versionOf(objectOfKey(read, fields['resource'], to));
      rewriteToken = read.token('the token of a rewrite that is not done', fields['rewriteToken']);
      const now = read.count('what is rewritten', fields['totalBytesRewritten'], source.size);
      still = now > rewritten ? 0 : still + 1;
      if (still > STILL_MAX) throw read.wrong(`${still} calls in a row have rewritten nothing`);
      rewritten = now;
    }
  }

  /** https://cloud.google.com/storage/docs/json_api/v1/objects/move */
  async rename(from: string, to: string, { version, condition, signal }: RenameOptions): Promise<Version> {
    const operation = `rename ${this.location}/${from} to ${to}`;
    this.#checkTarget(operation, to, undefined);
    const source = parseVersion(version, operation);
    const object = await this.#http.object({
      operation, method: 'POST', path: `${objectPath(this.#bucket, from, operation)}/moveTo/o/${encodeURIComponent(to)}`, signal, mutates: true,
      query: {
        ...preconditions(condition, operation), ifSourceGenerationMatch: source.generation, ifSourceMetagenerationMatch: source.metageneration, fields: FIELDS,
      },
    }, to);
    return versionOf(object);
  }

  /** What the copy shall be: a resource in the request replaces all of the source's, and without one a copy is of the bucket's class. */
  async #sourceOf(operation: string, from: string, options: CopyOptions): Promise<{ size: number; generation: string; metageneration: string; kmsKeyName: string | undefined; resource: object }> {
    const wanted = options.sourceVersion === undefined ? {} : preconditions({ version: options.sourceVersion }, operation);
    const source = await this.#object(operation, from, { ...wanted }, options.signal);
    const { size, generation, metageneration } = source;
    const { 'content-type': type, ...told } = infoOf(source).headers!;
    const headers = { 'content-type': options.metadata === undefined ? type ?? OCTETS : OCTETS, ...told, ...options.headers };
    const resource = { ...this.#resource({ headers }), metadata: options.metadata ?? source.metadata };
    return { size, generation, metageneration, kmsKeyName: keyNameOf(headers), resource };
  }

  /** A patch, which keeps names that it does not mention: those that are to go have to be known first. */
  async setMetadata(key: string, version: Version, metadata: Metadata, { signal }: CallOptions = {}): Promise<Version> {
    const operation = `set metadata of ${this.location}/${key}`;
    this.#checkTarget(operation, key, metadata);
    const conditions = preconditions({ version }, operation);
    const there = await this.#object(operation, key, { ...conditions }, signal);
    const gone = Object.keys(there.metadata ?? {}).filter((name) => !Object.hasOwn(metadata, name));
    const change = { metadata: { ...Object.fromEntries(gone.map((name) => [name, null])), ...metadata } };
    const object = await this.#http.object({
      operation, method: 'PATCH', path: objectPath(this.#bucket, key, operation), query: { ...conditions, fields: FIELDS }, headers: JSON_TYPE,
      body: Buffer.from(JSON.stringify(change)), signal, mutates: true,
    }, key);
    return versionOf(object);
  }

  async list(options: ListOptions): Promise<ListPage> {
    const page = await pageOf(this.#http, this.#bucket, `list ${this.location}/${options.prefix}`, options);
    const isListed = (key: string): boolean => !key.startsWith(this.#temporary);
    return { objects: page.objects.filter(({ key }) => isListed(key)), prefixes: page.prefixes.filter(isListed), next: page.next };
  }

  async beginUpload(key: string, options: PutOptions = {}): Promise<Upload> {
    const operation = `begin upload of ${this.location}/${key}`;
    this.#checkTarget(operation, key, options.metadata);
    objectPath(this.#bucket, key, operation);
    return this.#parts.begin(operation, key, options);
  }

  async putPart(upload: Upload, number: number, body: Body, { signal }: CallOptions = {}): Promise<Part> {
    const operation = `put part ${number} of ${this.location}/${upload.key}`;
    this.#checkPart(operation, number);
    return this.#parts.put(operation, upload, number, body, signal);
  }

  async copyPart(upload: Upload, number: number, source: PartSource, { signal }: CallOptions = {}): Promise<Part> {
    const operation = `copy part ${number} of ${this.location}/${upload.key}`;
    this.#checkPart(operation, number);
    return this.#parts.copy(operation, upload, number, source, signal);
  }

  async completeUpload(upload: Upload, parts: readonly Part[], options: CallOptions & { readonly condition?: Condition } = {}): Promise<Version> {
    return versionOf(await this.#parts.complete(`complete upload of ${this.location}/${upload.key}`, upload, parts, options));
  }

  /** Also what a completed upload has left behind. */
  async abortUpload(upload: Upload, { signal }: CallOptions = {}): Promise<void> {
    await this.#parts.abort(`abort upload of ${this.location}/${upload.key}`, upload, signal);
  }

  async listUploads({ prefix, token, signal }: CallOptions & { readonly prefix: string; readonly token?: string }): Promise<{ uploads: UploadInfo[]; next: string | null }> {
    return this.#parts.list(`list uploads below ${this.location}/${prefix}`, prefix, token, signal);
  }

  /** Waits a few seconds for what completed uploads leave behind to be deleted. */
  async close(): Promise<void> {
    await this.#parts.close();
    this.#http.close();
  }

  #object(operation: string, key: string, query: Readonly<Record<string, string | undefined>>, signal: AbortSignal | undefined): Promise<GcsObject> {
    return this.#http.object({ operation, method: 'GET', path: objectPath(this.#bucket, key, operation), query: { ...query, fields: FIELDS }, signal }, key);
  }

  async #sizeOf(operation: string, key: string, generation: string | undefined, signal: AbortSignal | undefined): Promise<number> {
    const query = { ifGenerationMatch: generation, fields: 'size' };
    const { read, fields } = await this.#http.json({ operation, method: 'GET', path: objectPath(this.#bucket, key, operation), query, signal });
    return read.count('a size', fields['size']);
  }

  #resource({ metadata, headers = {} }: PutOptions): Record<string, unknown> {
    return { ...fieldsOf(headers), ...this.#defaults, ...(metadata === undefined ? {} : { metadata }) };
  }

  #checkTarget(operation: string, key: string, metadata: Metadata = {}): void {
    if (key.startsWith(this.#temporary)) throw new StorageError('denied', operation, { providerMessage: `names below ${this.#temporary} are reserved` });
    if (metadataBytes(metadata) > this.limits.metadataBytes) {
      throw new StorageError('too-large', operation, { providerMessage: `metadata has at most ${this.limits.metadataBytes} bytes` });
    }
  }

  #checkPart(operation: string, number: number): void {
    if (!Number.isInteger(number) || number < 1 || number > this.limits.parts) throw new StorageError('invalid', operation, { providerMessage: 'no such part number' });
  }
}

interface Announced {
  /** That follow. */
  readonly bytes: number;
  /** Of the whole object. */
  readonly size: number;
}

interface Wanted {
  readonly operation: string;
  readonly offset: number;
  readonly length: number;
  readonly generation: string | undefined;
}

/** @throws StorageError unless the content that follows is what was asked for */
function announcedBy(headers: IncomingHttpHeaders, status: number, { operation, offset, length, generation }: Wanted): Announced {
  const read = new AnswerReader(operation);
  const got = headers['x-goog-generation'];
  if (generation !== undefined && got !== undefined && got !== generation) {
    throw new StorageError('changed', operation, { status, providerMessage: `generation ${String(got)}` });
  }
  if (headers['content-range'] !== undefined) {
    const { bytes, size } = read.range(headers['content-range'], { offset, length });
    if (size === null) throw read.wrong('it does not say how long the object is');
    return { bytes, size };
  }
  // An empty object has no ranges and may come whole
  const size = read.count('its length', headers['content-length']);
  if (offset !== 0 || size > length) throw read.wrong('another range came than was asked for');
  return { bytes: size, size };
}
