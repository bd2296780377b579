/**
 * Amazon S3, and what speaks its protocol. https://docs.aws.amazon.com/AmazonS3/latest/API/
 *
 * A version is an ETag, without its quotes: two objects with the same content, sent in the same way, have the same.
 */
import {
  AbortMultipartUploadCommand, CompleteMultipartUploadCommand, CreateMultipartUploadCommand, ListMultipartUploadsCommand, ListObjectsV2Command, UploadPartCopyCommand,
} from '@aws-sdk/client-s3';
import { bodyBytes, targetView } from '../body.js';
import { conditionalCopy, conditionalCopyOptions, conditionalSetMetadata, copyHonours, withConditionalCopy } from '../conditional-copy.js';
import { StorageError } from '../errors.js';
import { compareUtf8 } from '../listing.js';
import type {
  Body, CallOptions, Capabilities, Condition, CopyCallOptions, CopyOptions, Fetched, FetchOptions, HeadOptions, Limits, ListOptions, ListPage, Metadata, ObjectInfo, ObjectStore, Part, PartSource,
  PutOptions, ReadOptions, Upload, UploadInfo, Version,
} from '../store.js';
import type { Description } from './s3-calls.js';
import { notCopied, S3Attachments } from './s3-attachments.js';
import { S3Connection } from './s3-connection.js';
import { toStorageError } from './s3-errors.js';
import type { S3Options } from './s3-options.js';
import { commonOf, describedOf, makingOf, obeying, type Common } from './s3-sdk.js';
import { AnswerReader } from './answer-reader.js';
import { checkedPage, PAGE_MAX, placeOf } from './list-pages.js';
import { conditionOf, copySource, decodeKey, encodeMetadata, quoted } from './s3-values.js';

export type { S3Options } from './s3-options.js';

const KIB = 1 << 10;
const MIB = 1 << 20;
const GIB = 1 << 30;

/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html; an object as large as 10,000 parts can make it. */
export const S3_LIMITS: Limits = {
  keyBytes: 1024, metadataBytes: 2 * KIB, putBytes: 5 * GIB, objectBytes: 10_000 * 5 * GIB, partMinBytes: 5 * MIB, partMaxBytes: 5 * GIB, parts: 10_000,
};

/**
 * AWS itself; others are asked (probe.ts). Conditions of copies and removals are there since autumn 2025, evaluated together with the write.
 * https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html, .../conditional-deletes.html
 */
const AWS: Capabilities = {
  putIfAbsent: true, putIfVersion: true, completeIfAbsent: true, completeIfVersion: true, copyIfAbsent: true, copyIfVersion: true, deleteIfVersion: true,
  atomicDelete: true, copyPart: 'range', copyPartIfVersion: true, rename: false, listingHasMetadata: false, metadataInPlace: false, fetch: true,
};

const COPY_MAX_BYTES = 5 * GIB;
/** Where names may not be listed, HEAD is denied for each one that is not there: for that long GET is not asked why. */
const DENIED_MS = 60_000;

export class S3Store implements ObjectStore {
  readonly kind = 's3';
  readonly location: string;
  readonly limits = S3_LIMITS;
  /** Of what this class does: see copy(). */
  readonly capabilities: Capabilities;
  readonly #provider: Capabilities;
  readonly #connection: S3Connection;
  readonly #attachments: S3Attachments;
  readonly #common: Common;
  readonly #making: Record<string, string>;
  #renewing: Promise<void> | null = null;
  /** How often there were other credentials. */
  #generation = 0;
  /** When GET was denied as HEAD was. */
  #denied_ms = -Infinity;

  constructor(readonly options: S3Options) {
    this.location = `s3://${options.bucket}`;
    this.#provider = options.capabilities ?? AWS;
    this.capabilities = withConditionalCopy(this.#provider);
    this.#connection = new S3Connection(options);
    this.#attachments = new S3Attachments(options, this.#connection, (what, subject, given, attempt) => this.#call(what, subject, false, given, attempt));
    this.#common = commonOf(options);
    this.#making = makingOf(options);
  }

  async check(options: CallOptions = {}): Promise<void> {
    // Not HeadBucket: its errors have no body that would say what is wrong
    const out = await this.#call('check', '', false, options, (signal) => this.#connection.client.send(new ListObjectsV2Command({ ...this.#common, MaxKeys: 1 }), obeying(signal)));
    // Any web server answers something
    if (out.Name === undefined && out.IsTruncated === undefined) throw new StorageError('invalid', `check ${this.location}`, { providerMessage: 'the answer is no listing of S3' });
  }

  async head(key: string, options: HeadOptions = {}): Promise<ObjectInfo> {
    const info = await this.#head(key, options);
    if (options.attachments !== true) return info;
    const headers = await this.#attachments.withTags(key, info.headers!, options);
    await this.#attachments.sendable(null, headers, options);
    return { ...info, headers };
  }

  /** An answer to HEAD has no body that says why it is refused. If it can be the credentials, GET is asked, which says so and gets new ones. */
  async #head(key: string, options: CallOptions): Promise<ObjectInfo> {
    for (let asked = false; ; asked = true) {
      try {
        return await this.#call('head', key, false, options, (signal, operation) => this.#connection.run((calls) => calls.head(key, operation, signal)));
      } catch (error) {
        const status = error instanceof StorageError ? error.detail.status : 0;
        if (asked || (status !== 400 && (status !== 403 || performance.now() < this.#denied_ms + DENIED_MS))) throw error;
      }
      try {
        const into = new Uint8Array(1);
        await this.#call('read', key, false, options, (signal, operation) => this.#connection.run((calls) => calls.get(key, { operation, offset: 0, into, signal })));
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        if (error.code === 'denied') this.#denied_ms = performance.now();
        // That there is no such object, or no first byte, is what HEAD can say
        if (error.detail.status !== 404 && error.detail.status !== 416) throw error;
      }
    }
  }

  async read(key: string, options: ReadOptions): Promise<number> {
    const into = targetView(options.into);
    if (into.length === 0) return 0;
    const { offset, version: only } = options;
    try {
      const { bytes } = await this.#call('read', key, false, options, (signal, operation) =>
        this.#connection.run((calls) => calls.get(key, { operation, offset, into, signal, ...(only === undefined ? {} : { version: only }) })));
      return bytes;
    } catch (error) {
      if (!(error instanceof StorageError) || error.detail.status !== 416) throw error;
      // Beyond the end of what is there. RFC 9110 §13.2.2 has the version compared first, and not everybody keeps to it
      const { version, size } = await this.head(key, options);
      // Of what HEAD tells there is such a range: then it is not what is read
      if ((only !== undefined && version !== only) || offset < size) throw new StorageError('changed', error.operation, { status: 416 });
      return 0;
    }
  }

  async fetch(key: string, options: FetchOptions): Promise<Fetched> {
    const into = targetView(options.into);
    try {
      const { info, bytes } = await this.#call('fetch', key, false, options, (signal, operation) =>
        this.#connection.run((calls) => calls.get(key, { operation, offset: 0, into, signal })));
      if (info === null) throw new StorageError('unexpected', `fetch ${this.location}/${key}`, { providerMessage: 'the answer does not say how long the object is' });
      return { info, bytes };
    } catch (error) {
      if (!(error instanceof StorageError) || error.detail.status !== 416) throw error;
      // Of an empty object there is no range
      const info = await this.head(key, options);
      if (info.size > 0) throw new AnswerReader(error.operation).wrong(`a range inside of ${info.size} bytes was refused`);
      return { info, bytes: 0 };
    }
  }

  async put(key: string, body: Body, options: PutOptions = {}): Promise<Version> {
    const of = `put ${this.location}/${key}`;
    if (bodyBytes(body) > S3_LIMITS.putBytes) throw new StorageError('too-large', of);
    const { condition } = options;
    const replaces = condition === undefined || 'version' in condition;
    const described = await this.#described(of, replaces ? key : null, options);
    return this.#call('put', key, true, options, (signal, operation) =>
      this.#connection.run((calls) => calls.put(key, body, { operation, described, signal, ...(condition === undefined ? {} : { condition }) })));
  }

  async remove(key: string, options: CallOptions & { readonly version?: Version } = {}): Promise<void> {
    const { version: only } = options;
    await this.#call('remove', key, only !== undefined, options, (signal, operation) => this.#connection.run((calls) => calls.remove(key, only, operation, signal)));
  }

  /**
   * CopyObject, unless the provider's is known not to look at the condition: see conditional-copy.ts. With `metadata` the headers are those that were
   * given. Without, S3 copies what it says of the content, and all else is sent again.
   */
  async copy(from: string, to: string, options: CopyOptions = {}): Promise<Version> {
    const { sourceVersion, condition } = options;
    if (condition !== undefined && this.#copiesByWriting(condition, to)) return conditionalCopy(this, from, to, { ...options, condition }, conditionalCopyOptions());
    const operation = `copy ${this.location}/${from} to ${to}`;
    const source = options.metadata === undefined ? await this.head(from, options) : null;
    if (source !== null && source.size > COPY_MAX_BYTES) return this.#copyInParts(from, to, options);
    const { metadata, headers } = await this.#described(operation, from, source === null ? options : { headers: notCopied(source.headers!) });
    // What is sent again is that of this version
    const only = sourceVersion ?? source?.version;
    const expected = { ...(only === undefined ? {} : { sourceVersion: only }), ...(condition === undefined ? {} : { condition }) };
    try {
      return await this.#call('copy', `${from} to ${to}`, true, options, (signal, operation) =>
        this.#connection.run((calls) => calls.copy(from, to, { operation, signal, headers, ...(source === null ? { metadata } : {}), ...expected })));
    } catch (error) {
      if (source !== null || !(error instanceof StorageError) || (error.code !== 'too-large' && error.code !== 'invalid')) throw error;
      if ((await this.head(from, options)).size <= COPY_MAX_BYTES) throw error;
      return this.#copyInParts(from, to, options);
    }
  }

  /** Whether CopyObject is known not to look at this condition. @throws StorageError `unsupported` where no other write does */
  #copiesByWriting(condition: Condition, to: string): boolean {
    if (copyHonours(this.#provider, condition)) return false;
    if (copyHonours(this.capabilities, condition)) return true;
    throw new StorageError('unsupported', `copy to ${this.location}/${to}`, { providerMessage: 'the provider honours no condition' });
  }

  /** An object of more than 5 GiB. */
  #copyInParts(from: string, to: string, options: CopyOptions): Promise<Version> {
    if (options.inOne === true) throw new StorageError('too-large', `copy ${this.location}/${from} to ${to}`, { providerMessage: 'a copy of more than 5 GiB takes parts' });
    return conditionalCopy(this, from, to, options, conditionalCopyOptions());
  }

  /** RenameObject is there for directory buckets only, which have no versions to compare. */
  async rename(from: string, to: string): Promise<Version> {
    throw new StorageError('unsupported', `rename ${this.location}/${from} to ${to}`);
  }

  /** The ETag stays when the content does: of two that are made at the same time the last counts. */
  async setMetadata(key: string, of: Version, metadata: Metadata, options: CopyCallOptions = {}): Promise<Version> {
    const condition = { version: of };
    if (this.#copiesByWriting(condition, key)) return conditionalSetMetadata(this, key, of, metadata, options, conditionalCopyOptions());
    const { headers } = await this.head(key, options);
    return this.copy(key, key, { ...options, metadata, sourceVersion: of, headers: headers!, condition });
  }

  async list(options: ListOptions): Promise<ListPage> {
    const place = placeOf(options);
    const { token: _token, ...rest } = options;
    const asked = { ...rest, limit: options.limit ?? PAGE_MAX, ...(place.token === undefined ? {} : { token: place.token }) };
    return this.#call('list', options.prefix, false, options, async (_signal, operation) =>
      checkedPage(new AnswerReader(operation), await this.#connection.run((calls) => calls.list(asked, operation)), options, place));
  }

  async beginUpload(key: string, options: PutOptions = {}): Promise<Upload> {
    const described = await this.#described(`begin upload of ${this.location}/${key}`, key, options);
    return this.#call('begin upload of', key, true, options, async (signal, operation) => {
      const out = await this.#connection.client.send(new CreateMultipartUploadCommand({ ...this.#common, ...this.#making, ...describedOf(described), Key: key }), obeying(signal));
      return { key, id: new AnswerReader(operation, true).token('the id of the upload', out.UploadId) };
    });
  }

  async putPart(upload: Upload, number: number, body: Body, options: CallOptions = {}): Promise<Part> {
    return this.#call(`put part ${number} of`, upload.key, true, options, (signal, operation) =>
      this.#connection.run((calls) => calls.putPart(upload, number, body, { operation, signal })));
  }

  async copyPart(upload: Upload, number: number, source: PartSource, options: CallOptions = {}): Promise<Part> {
    if (this.capabilities.copyPart !== 'range') throw new StorageError('unsupported', `copy part of ${this.location}/${upload.key}`);
    const out = await this.#call(`copy part ${number} of`, upload.key, true, options, (signal) =>
      this.#connection.client.send(
        new UploadPartCopyCommand({
          ...this.#common, Key: upload.key, UploadId: upload.id, PartNumber: number, CopySource: copySource(this.options.bucket, source.key),
          CopySourceIfMatch: quoted(source.version), CopySourceRange: `bytes=${source.offset}-${source.offset + source.bytes - 1}`,
        }), obeying(signal),
      )).catch((error: unknown) => {
      // Where the version is not compared: of one that is shorter, and perhaps gone again by now
      throw error instanceof StorageError && error.detail.status === 416 ? new StorageError('changed', error.operation, { status: 416 }) : error;
    });
    return { number, tag: new AnswerReader(`copy part ${number} of ${this.location}/${upload.key}`, true).etag(out.CopyPartResult?.ETag), bytes: source.bytes };
  }

  async completeUpload(upload: Upload, parts: readonly Part[], options: CallOptions & { readonly condition?: Condition } = {}): Promise<Version> {
    const Parts = parts.map((part) => ({ PartNumber: part.number, ETag: quoted(part.tag) }));
    const out = await this.#call('complete upload of', upload.key, true, options, (signal) =>
      this.#connection.client.send(
        new CompleteMultipartUploadCommand({ ...this.#common, Key: upload.key, UploadId: upload.id, MultipartUpload: { Parts }, ...conditionOf(options.condition) }), obeying(signal),
      ));
    return new AnswerReader(`complete upload of ${this.location}/${upload.key}`, true).etag(out.ETag);
  }

  async abortUpload(upload: Upload, options: CallOptions = {}): Promise<void> {
    try {
      await this.#call('abort upload of', upload.key, true, options, (signal) =>
        this.#connection.client.send(new AbortMultipartUploadCommand({ ...this.#common, Key: upload.key, UploadId: upload.id }), obeying(signal)));
    } catch (error) {
      if (!(error instanceof StorageError && error.code === 'not-found')) throw error;
    }
  }

  async listUploads(options: CallOptions & { readonly prefix: string; readonly token?: string }): Promise<{ uploads: UploadInfo[]; next: string | null }> {
    const [KeyMarker, UploadIdMarker] = options.token === undefined ? [] : (JSON.parse(options.token) as [string, string]);
    const out = await this.#call('list uploads below', options.prefix, false, options, (signal) =>
      this.#connection.client.send(new ListMultipartUploadsCommand({ ...this.#common, Prefix: options.prefix, KeyMarker, UploadIdMarker, EncodingType: 'url' }), obeying(signal)));
    const read = new AnswerReader(`list uploads below ${this.location}/${options.prefix}`);
    const uploads = read.list('the list of uploads', out.Uploads, PAGE_MAX).map((one) => {
      const { Key, UploadId, Initiated } = one as NonNullable<typeof out.Uploads>[number];
      return { key: read.key(decodeKey(Key ?? ''), options.prefix, S3_LIMITS.keyBytes), id: read.token('the id of an upload', UploadId), begun_ms: read.time_ms('a date', Initiated) };
    });
    if (out.IsTruncated !== true) return { uploads, next: null };
    const key = read.key(decodeKey(out.NextKeyMarker ?? ''), options.prefix, S3_LIMITS.keyBytes);
    const id = read.token('the id of an upload', out.NextUploadIdMarker);
    const order = KeyMarker === undefined ? 1 : compareUtf8(key, KeyMarker);
    // Several uploads of one key are in the order of their time
    if (order < 0 || (order === 0 && (uploads.length === 0 || id === UploadIdMarker))) throw read.wrong('the next page is this one');
    return { uploads, next: JSON.stringify([key, id]) };
  }

  async close(): Promise<void> {
    this.#connection.close();
  }

  async #call<T>(
    what: string, subject: string, changes: boolean, { signal }: CallOptions, attempt: (signal: AbortSignal | undefined, operation: string) => Promise<T>,
  ): Promise<T> {
    const operation = `${what} ${this.location}/${subject}`;
    if (signal?.aborted === true) throw new StorageError('aborted', operation);
    for (let renewed = false; ; renewed = true) {
      const generation = this.#generation;
      try {
        return await attempt(signal, operation);
      } catch (error) {
        const known = toStorageError(error, operation, changes);
        if (signal?.aborted) throw known.code === 'aborted' ? known : new StorageError('aborted', operation, { ...known.detail });
        // A request that was refused so has done nothing
        const refused = known.detail.status !== undefined && (known.code === 'expired' || known.code === 'bad-credentials');
        if (!refused || renewed || !(await this.#renewCredentials(generation))) throw known;
      }
    }
  }

  /** Whoever has given us credentials may have better ones by now: a file that was written anew, a role. @returns whether there are others than then */
  async #renewCredentials(generation: number): Promise<boolean> {
    if (generation === this.#generation) await (this.#renewing ??= this.#askForCredentials().finally(() => (this.#renewing = null)));
    return generation !== this.#generation;
  }

  async #askForCredentials(): Promise<void> {
    const { credentials } = this.#connection.client.config;
    try {
      const before = await credentials();
      const now = await credentials({ forceRefresh: true });
      if (before.accessKeyId !== now.accessKeyId || before.secretAccessKey !== now.secretAccessKey || before.sessionToken !== now.sessionToken) this.#generation++;
    } catch {
      // What the provider has said is the reason that counts
    }
  }

  /** `from`: the object whose tags are meant where the headers only count them; null: none. */
  async #described(operation: string, from: string | null, options: PutOptions): Promise<Description> {
    const { metadata = {}, headers = {} } = options;
    const encoded = encodeMetadata(metadata);
    const bytes = Object.entries(encoded).reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    if (bytes > S3_LIMITS.metadataBytes) throw new StorageError('too-large', operation, { providerMessage: `${bytes} bytes of metadata, and S3 takes ${S3_LIMITS.metadataBytes}` });
    return { metadata: encoded, headers: await this.#attachments.sendable(from, headers, options) };
  }
}
