/**
 * Amazon S3, and what speaks its protocol. https://docs.aws.amazon.com/AmazonS3/latest/API/
 *
 * A version is an ETag, without its quotes: two objects with the same content, sent in the same way, have the same.
 */
import { Agent as HttpAgent } from 'node:http';
import { Agent as HttpsAgent } from 'node:https';
import type { Readable } from 'node:stream';
import {
  AbortMultipartUploadCommand, CompleteMultipartUploadCommand, CopyObjectCommand, CreateMultipartUploadCommand, DeleteObjectCommand, GetObjectCommand,
  HeadObjectCommand, ListMultipartUploadsCommand, ListObjectsV2Command, PutObjectCommand, S3Client, UploadPartCommand, UploadPartCopyCommand,
  type S3ClientConfig,
} from '@aws-sdk/client-s3';
import { bodyBytes, bodyStream, targetView } from '../body.js';
import { StorageError } from '../errors.js';
import type {
  Body, CallOptions, Capabilities, Condition, CopyOptions, Limits, ListOptions, ListPage, Metadata, ObjectInfo, ObjectStore, Part, PartSource, PutOptions,
  ReadOptions, Upload, UploadInfo, Version,
} from '../store.js';
import { toStorageError } from './s3-errors.js';

const KIB = 1 << 10;
const MIB = 1 << 20;
const GIB = 1 << 30;

/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/qfacts.html; an object as large as 10,000 parts can make it. */
export const S3_LIMITS: Limits = {
  keyBytes: 1024, metadataBytes: 2 * KIB, putBytes: 5 * GIB, objectBytes: 10_000 * 5 * GIB, partMinBytes: 5 * MIB, partMaxBytes: 5 * GIB, parts: 10_000,
};

/** AWS itself; others are asked (probe.ts). */
const AWS: Capabilities = {
  putIfAbsent: true, putIfVersion: true, completeIfAbsent: true, completeIfVersion: true, copyIfAbsent: true, copyIfVersion: true, deleteIfVersion: true,
  copyPart: 'range', copyPartIfVersion: true, rename: false, listingHasMetadata: false, metadataInPlace: false,
};

const SOCKETS = 256;
const COPY_MAX_BYTES = 5 * GIB;
const COPY_PART_BYTES = GIB;

export interface S3Options {
  readonly bucket: string;
  readonly region?: string;
  readonly endpoint?: string;
  readonly pathStyle?: boolean;
  readonly profile?: string;
  readonly unsigned?: boolean;
  readonly requesterPays?: boolean;
  readonly expectedBucketOwner?: string;
  readonly storageClass?: string;
  /** Certificates in PEM. */
  readonly ca?: string;
  readonly serverSideEncryption?: 'AES256' | 'aws:kms';
  readonly kmsKeyId?: string;
  /** Instead of the SDK's chain. */
  readonly credentials?: { readonly accessKeyId: string; readonly secretAccessKey: string; readonly sessionToken?: string };
  readonly capabilities?: Capabilities;
}

export class S3Store implements ObjectStore {
  readonly kind = 's3';
  readonly location: string;
  readonly limits = S3_LIMITS;
  readonly capabilities: Capabilities;
  readonly #client: S3Client;
  #renewing: Promise<void> | null = null;
  /** How often there were other credentials. */
  #generation = 0;
  /** What every request has. */
  readonly #common: { Bucket: string; ExpectedBucketOwner?: string; RequestPayer?: 'requester' };
  /** What every object that is made has. */
  readonly #making: Record<string, string>;

  constructor(readonly options: S3Options) {
    this.location = `s3://${options.bucket}`;
    this.capabilities = options.capabilities ?? AWS;
    this.#client = new S3Client(clientConfig(options));
    this.#common = {
      Bucket: options.bucket,
      ...(options.expectedBucketOwner === undefined ? {} : { ExpectedBucketOwner: options.expectedBucketOwner }),
      ...(options.requesterPays === true ? { RequestPayer: 'requester' as const } : {}),
    };
    this.#making = {
      ...(options.storageClass === undefined ? {} : { StorageClass: options.storageClass }),
      ...(options.serverSideEncryption === undefined ? {} : { ServerSideEncryption: options.serverSideEncryption }),
      ...(options.kmsKeyId === undefined ? {} : { SSEKMSKeyId: options.kmsKeyId }),
    };
  }

  async check(options: CallOptions = {}): Promise<void> {
    // Not HeadBucket: its errors have no body that would say what is wrong
    const out = await this.#call('check', '', false, options, (o) => this.#client.send(new ListObjectsV2Command({ ...this.#common, MaxKeys: 1 }), o));
    // Any web server answers something
    if (out.Name === undefined && out.IsTruncated === undefined) throw new StorageError('invalid', `check ${this.location}`, { providerMessage: 'the answer is no listing of S3' });
  }

  async head(key: string, options: CallOptions = {}): Promise<ObjectInfo> {
    const out = await this.#call('head', key, false, options, (o) => this.#client.send(new HeadObjectCommand({ ...this.#common, Key: key }), o));
    return {
      key, size: out.ContentLength ?? 0, version: version(out.ETag), modified_ms: out.LastModified?.getTime() ?? 0,
      metadata: decodeMetadata(out.Metadata ?? {}), contentType: out.ContentType ?? null,
    };
  }

  async read(key: string, options: ReadOptions): Promise<number> {
    const into = targetView(options.into);
    if (into.length === 0) return 0;
    const { offset } = options;
    const operation = `read ${this.location}/${key}`;
    try {
      return await this.#call('read', key, false, options, async (o) => {
        const Range = `bytes=${offset}-${offset + into.length - 1}`;
        const IfMatch = options.version === undefined ? {} : { IfMatch: quoted(options.version) };
        const out = await this.#client.send(new GetObjectCommand({ ...this.#common, Key: key, Range, ...IfMatch }), o);
        const announced = rangeBytes(out.ContentRange, offset, out.ContentLength, operation);
        return receive(out.Body as Readable, into, announced, operation);
      });
    } catch (error) {
      if (!(error instanceof StorageError) || error.detail.status !== 416) throw error;
      // Beyond the end of what is there. RFC 9110 §13.2.2 has the version compared first, and not everybody keeps to it
      if (options.version !== undefined && (await this.head(key, options)).version !== options.version) throw new StorageError('changed', operation, { status: 416 });
      return 0;
    }
  }

  async put(key: string, body: Body, options: PutOptions = {}): Promise<Version> {
    const operation = `put ${this.location}/${key}`;
    const ContentLength = bodyBytes(body);
    if (ContentLength > S3_LIMITS.putBytes) throw new StorageError('too-large', operation);
    const described = this.#described(operation, options);
    const out = await this.#call('put', key, true, options, (o) =>
      this.#client.send(
        new PutObjectCommand({ ...this.#common, ...this.#making, ...described, Key: key, Body: content(body, operation), ContentLength, ...conditionOf(options.condition) }),
        o,
      ));
    return version(out.ETag);
  }

  async remove(key: string, options: CallOptions & { readonly version?: Version } = {}): Promise<void> {
    const { version: only } = options;
    const IfMatch = only === undefined ? {} : { IfMatch: quoted(only) };
    await this.#call('remove', key, only !== undefined, options, (o) => this.#client.send(new DeleteObjectCommand({ ...this.#common, Key: key, ...IfMatch }), o));
  }

  async copy(from: string, to: string, options: CopyOptions = {}): Promise<Version> {
    const operation = `copy ${this.location}/${from} to ${to}`;
    const described = options.metadata === undefined ? {} : { ...this.#described(operation, options), MetadataDirective: 'REPLACE' as const };
    const IfMatch = options.sourceVersion === undefined ? {} : { CopySourceIfMatch: quoted(options.sourceVersion) };
    try {
      const out = await this.#call('copy', `${from} to ${to}`, true, options, (o) =>
        this.#client.send(
          new CopyObjectCommand({ ...this.#common, ...this.#making, ...described, ...IfMatch, Key: to, CopySource: this.#source(from), ...conditionOf(options.condition) }), o,
        ));
      return version(out.CopyObjectResult?.ETag);
    } catch (error) {
      if (!(error instanceof StorageError) || (error.code !== 'too-large' && error.code !== 'invalid')) throw error;
      const info = await this.head(from, options);
      if (info.size <= COPY_MAX_BYTES) throw error;
      return this.#copyInParts(info, to, options);
    }
  }

  /** An object of more than 5 GiB. */
  async #copyInParts(source: ObjectInfo, to: string, options: CopyOptions): Promise<Version> {
    if (options.sourceVersion !== undefined && source.version !== options.sourceVersion) throw new StorageError('changed', `copy ${this.location}/${source.key} to ${to}`);
    const metadata = options.metadata ?? source.metadata ?? {};
    const contentType = options.contentType ?? (options.metadata === undefined ? source.contentType : null);
    const upload = await this.beginUpload(to, { ...options, metadata, ...(contentType === null ? {} : { contentType }) });
    const partBytes = Math.max(COPY_PART_BYTES, Math.ceil(source.size / S3_LIMITS.parts));
    try {
      const parts: Part[] = [];
      for (let offset = 0, number = 1; offset < source.size; offset += partBytes, number++) {
        const bytes = Math.min(partBytes, source.size - offset);
        parts.push(await this.copyPart(upload, number, { key: source.key, version: source.version, offset, bytes }, options));
      }
      return await this.completeUpload(upload, parts, options);
    } catch (error) {
      await this.abortUpload(upload).catch(() => undefined);
      throw error;
    }
  }

  /** RenameObject is there for directory buckets only, which have no versions to compare. */
  async rename(from: string, to: string): Promise<Version> {
    throw new StorageError('unsupported', `rename ${this.location}/${from} to ${to}`);
  }

  async setMetadata(key: string, of: Version, metadata: Metadata, options: CallOptions = {}): Promise<Version> {
    const { contentType } = await this.head(key, options);
    return this.copy(key, key, {
      ...options, metadata, sourceVersion: of, ...(contentType === null ? {} : { contentType }),
      ...(this.capabilities.copyIfVersion ? { condition: { version: of } } : {}),
    });
  }

  async list(options: ListOptions): Promise<ListPage> {
    const { prefix, delimiter, after, token, limit } = options;
    const out = await this.#call('list', prefix, false, options, (o) =>
      this.#client.send(
        new ListObjectsV2Command({
          ...this.#common, Prefix: prefix, Delimiter: delimiter, StartAfter: after, ContinuationToken: token, MaxKeys: limit, EncodingType: 'url',
        }), o,
      ));
    const objects = (out.Contents ?? []).map((one) => ({
      key: decodeKey(one.Key ?? ''), size: one.Size ?? 0, version: version(one.ETag), modified_ms: one.LastModified?.getTime() ?? 0, metadata: null, contentType: null,
    }));
    const prefixes = (out.CommonPrefixes ?? []).map((one) => decodeKey(one.Prefix ?? ''));
    return { objects, prefixes, next: out.IsTruncated === true ? out.NextContinuationToken ?? null : null };
  }

  async beginUpload(key: string, options: PutOptions = {}): Promise<Upload> {
    const described = this.#described(`begin upload of ${this.location}/${key}`, options);
    const out = await this.#call('begin upload of', key, true, options, (o) =>
      this.#client.send(new CreateMultipartUploadCommand({ ...this.#common, ...this.#making, ...described, Key: key }), o));
    return { key, id: out.UploadId! };
  }

  async putPart(upload: Upload, number: number, body: Body, options: CallOptions = {}): Promise<Part> {
    const operation = `put part ${number} of ${this.location}/${upload.key}`;
    const bytes = bodyBytes(body);
    const out = await this.#call(`put part ${number} of`, upload.key, true, options, (o) =>
      this.#client.send(
        new UploadPartCommand({ ...this.#common, Key: upload.key, UploadId: upload.id, PartNumber: number, Body: content(body, operation), ContentLength: bytes }), o,
      ));
    return { number, tag: version(out.ETag), bytes };
  }

  async copyPart(upload: Upload, number: number, source: PartSource, options: CallOptions = {}): Promise<Part> {
    if (this.capabilities.copyPart !== 'range') throw new StorageError('unsupported', `copy part of ${this.location}/${upload.key}`);
    const out = await this.#call(`copy part ${number} of`, upload.key, true, options, (o) =>
      this.#client.send(
        new UploadPartCopyCommand({
          ...this.#common, Key: upload.key, UploadId: upload.id, PartNumber: number, CopySource: this.#source(source.key),
          CopySourceIfMatch: quoted(source.version), CopySourceRange: `bytes=${source.offset}-${source.offset + source.bytes - 1}`,
        }), o,
      ));
    return { number, tag: version(out.CopyPartResult?.ETag), bytes: source.bytes };
  }

  async completeUpload(upload: Upload, parts: readonly Part[], options: CallOptions & { readonly condition?: Condition } = {}): Promise<Version> {
    const Parts = parts.map((part) => ({ PartNumber: part.number, ETag: quoted(part.tag) }));
    const out = await this.#call('complete upload of', upload.key, true, options, (o) =>
      this.#client.send(
        new CompleteMultipartUploadCommand({ ...this.#common, Key: upload.key, UploadId: upload.id, MultipartUpload: { Parts }, ...conditionOf(options.condition) }), o,
      ));
    return version(out.ETag);
  }

  async abortUpload(upload: Upload, options: CallOptions = {}): Promise<void> {
    try {
      await this.#call('abort upload of', upload.key, true, options, (o) =>
        this.#client.send(new AbortMultipartUploadCommand({ ...this.#common, Key: upload.key, UploadId: upload.id }), o));
    } catch (error) {
      if (!(error instanceof StorageError && error.code === 'not-found')) throw error;
    }
  }

  async listUploads(options: CallOptions & { readonly prefix: string; readonly token?: string }): Promise<{ uploads: UploadInfo[]; next: string | null }> {
    const [KeyMarker, UploadIdMarker] = options.token === undefined ? [] : (JSON.parse(options.token) as [string, string]);
    const out = await this.#call('list uploads below', options.prefix, false, options, (o) =>
      this.#client.send(new ListMultipartUploadsCommand({ ...this.#common, Prefix: options.prefix, KeyMarker, UploadIdMarker, EncodingType: 'url' }), o));
    const uploads = (out.Uploads ?? []).map((one) => ({ key: decodeKey(one.Key ?? ''), id: one.UploadId ?? '', begun_ms: one.Initiated?.getTime() ?? 0 }));
    const next = out.IsTruncated === true ? JSON.stringify([decodeKey(out.NextKeyMarker ?? ''), out.NextUploadIdMarker ?? '']) : null;
    return { uploads, next };
  }

  async close(): Promise<void> {
    this.#client.destroy();
  }

  async #call<T>(what: string, subject: string, changes: boolean, options: CallOptions, send: (o: { abortSignal?: AbortSignal }) => Promise<T>): Promise<T> {
    const operation = `${what} ${this.location}/${subject}`;
    const { signal } = options;
    if (signal?.aborted === true) throw new StorageError('aborted', operation);
    for (let renewed = false; ; renewed = true) {
      const generation = this.#generation;
      try {
        return await send(signal === undefined ? {} : { abortSignal: signal });
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
    const { credentials } = this.#client.config;
    try {
      const before = await credentials();
      const now = await credentials({ forceRefresh: true });
      if (before.accessKeyId !== now.accessKeyId || before.secretAccessKey !== now.secretAccessKey || before.sessionToken !== now.sessionToken) this.#generation++;
    } catch {
      // What the provider has said is the reason that counts
    }
  }

  #described(operation: string, { metadata = {}, contentType }: PutOptions): { Metadata: Record<string, string>; ContentType?: string } {
    const encoded = encodeMetadata(metadata);
    const bytes = Object.entries(encoded).reduce((sum, [name, value]) => sum + name.length + value.length, 0);
    if (bytes > S3_LIMITS.metadataBytes) throw new StorageError('too-large', operation, { providerMessage: `${bytes} bytes of metadata, and S3 takes ${S3_LIMITS.metadataBytes}` });
    return { Metadata: encoded, ...(contentType === undefined ? {} : { ContentType: contentType }) };
  }

  #source(key: string): string {
    return `${this.options.bucket}/${key}`.split('/').map(encodeURIComponent).join('/');
  }
}

function clientConfig(options: S3Options): S3ClientConfig {
  const aws = options.endpoint === undefined;
  const checksums = aws ? 'WHEN_SUPPORTED' : 'WHEN_REQUIRED';
  const agent = { keepAlive: true, maxSockets: SOCKETS };
  return {
    // Attempts are counted by the layer above, which knows what may be tried again
    maxAttempts: 1,
    requestHandler: { httpAgent: new HttpAgent(agent), httpsAgent: new HttpsAgent({ ...agent, ...(options.ca === undefined ? {} : { ca: options.ca }) }), connectionTimeout: 10_000 },
    requestChecksumCalculation: checksums,
    responseChecksumValidation: checksums,
    followRegionRedirects: true,
    ...(options.endpoint === undefined ? {} : { endpoint: options.endpoint }),
    // Others than AWS seldom look at it, but requests are signed with one
    ...(options.region !== undefined ? { region: options.region } : aws || process.env['AWS_REGION'] !== undefined ? {} : { region: 'us-east-1' }),
    ...(options.pathStyle === true ? { forcePathStyle: true } : {}),
    ...(options.profile === undefined ? {} : { profile: options.profile }),
    // The SDK reads the files of profiles once in a process, unless its chain of providers is told this (SourceProfileInit)
    ...(options.credentials === undefined ? ({ ignoreCache: true } as object) : { credentials: options.credentials }),
    ...(options.unsigned === true ? { signer: { sign: async (request) => request }, credentials: { accessKeyId: '', secretAccessKey: '' } } : {}),
  };
}

const quoted = (tag: string): string => `"${tag}"`;

function version(tag: string | undefined): Version {
  return (tag ?? '').replace(/^"(.*)"$/s, '$1');
}

function conditionOf(condition: Condition | undefined): { IfNoneMatch?: string; IfMatch?: string } {
  if (condition === undefined) return {};
  return 'absent' in condition ? { IfNoneMatch: '*' } : { IfMatch: quoted(condition.version) };
}

function content(body: Body, operation: string): Uint8Array | Readable {
  return body instanceof Uint8Array ? body : body.bytes === 0 ? new Uint8Array(0) : bodyStream(body, operation);
}

/** Keys in listings with EncodingType=url: as in forms, or with %20 for a space. Bytes that are no UTF-8, which S3 itself has not, are U+FFFD. */
function decodeKey(encoded: string): string {
  const plain = encoded.replaceAll('+', ' ');
  try {
    return decodeURIComponent(plain);
  } catch {
    return Buffer.concat(plain.split(/(%[0-9A-Fa-f]{2})/).map((part, i) => Buffer.from(i % 2 === 1 ? part.slice(1) : part, i % 2 === 1 ? 'hex' : 'utf8'))).toString();
  }
}

/** Bytes that follow, by Content-Range: "bytes 5-9/100". */
function rangeBytes(range: string | undefined, offset: number, length: number | undefined, operation: string): number {
  const parsed = /^bytes (\d+)-(\d+)\//.exec(range ?? '');
  if (parsed === null || Number(parsed[1]) !== offset) {
    throw new StorageError('invalid', operation, { providerMessage: `asked for bytes from ${offset}, got ${range ?? `all ${length ?? '?'}`}` });
  }
  return Number(parsed[2]) - offset + 1;
}

async function receive(stream: Readable, into: Uint8Array, announced: number, operation: string): Promise<number> {
  let at = 0;
  for await (const chunk of stream) {
    const bytes = chunk as Uint8Array;
    if (at + bytes.length > into.length) {
      stream.destroy();
      throw new StorageError('short-body', operation, { providerMessage: 'more bytes came than were asked for' });
    }
    into.set(bytes, at);
    at += bytes.length;
  }
  if (at !== announced) throw new StorageError('short-body', operation, { providerMessage: `${at} of ${announced} bytes came` });
  return at;
}

/** RFC 2047, which AWS uses itself where metadata is not ASCII; also for spaces at the ends, which HTTP drops. */
const ENCODED = /^=\?UTF-8\?B\?([A-Za-z0-9+/=]*)\?=$/;
const PLAIN = /^(?! )[\x20-\x7e]*(?<! )$/;

function encodeMetadata(metadata: Metadata): Record<string, string> {
  const encode = (value: string): string => (PLAIN.test(value) && !ENCODED.test(value) ? value : `=?UTF-8?B?${Buffer.from(value).toString('base64')}?=`);
  return Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name.toLowerCase(), encode(value)]));
}

function decodeMetadata(metadata: Readonly<Record<string, string>>): Metadata {
  const decode = (value: string): string => {
    const encoded = ENCODED.exec(value);
    return encoded === null ? value : Buffer.from(encoded[1], 'base64').toString();
  };
  return Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name.toLowerCase(), decode(value)]));
}
