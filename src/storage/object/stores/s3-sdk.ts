/** The calls of s3-calls.ts, by the SDK: for what is not asked for with plain signatures (directory buckets, access points of several regions). */
import type { Readable } from 'node:stream';
import {
  CopyObjectCommand, DeleteObjectCommand, GetObjectCommand, HeadObjectCommand, ListObjectsV2Command, PutObjectCommand, UploadPartCommand,
  type GetObjectCommandOutput, type HeadObjectCommandOutput, type S3Client,
} from '@aws-sdk/client-s3';
import { bodyBytes, bodyStream } from '../body.js';
import { archiveClass, TAGS } from '../attachments.js';
import { StorageError } from '../errors.js';
import type { Body, ListOptions, ListPage, ObjectHeaders, ObjectInfo, Part, Upload, Version } from '../store.js';
import type { CopyCall, Description, GetCall, Got, PartCall, PutCall, S3Calls } from './s3-calls.js';
import type { S3Options } from './s3-options.js';
import { AnswerReader } from './answer-reader.js';
import { conditionOf, copySource, decodeKey, decodeMetadata, quoted } from './s3-values.js';

/** What every request has, as the SDK calls it. */
export interface Common {
  readonly Bucket: string;
  readonly ExpectedBucketOwner?: string;
  readonly RequestPayer?: 'requester';
}

export function commonOf(options: S3Options): Common {
  return {
    Bucket: options.bucket,
    ...(options.expectedBucketOwner === undefined ? {} : { ExpectedBucketOwner: options.expectedBucketOwner }),
    ...(options.requesterPays === true ? { RequestPayer: 'requester' as const } : {}),
  };
}

/** What every object that is made has. */
export function makingOf(options: S3Options): Record<string, string> {
  return {
    ...(options.storageClass === undefined ? {} : { StorageClass: options.storageClass }),
    ...(options.serverSideEncryption === undefined ? {} : { ServerSideEncryption: options.serverSideEncryption }),
    ...(options.kmsKeyId === undefined ? {} : { SSEKMSKeyId: options.kmsKeyId }),
  };
}

export function describedOf({ metadata, headers }: Description): Described {
  const described: Record<string, unknown> = { Metadata: { ...metadata } };
  for (const [name, member] of MEMBERS) {
    const value = headers[name];
    if (value === undefined || value === '') continue;
    if (member === 'BucketKeyEnabled') described[member] = value === 'true';
    else if (!DATES.has(member)) described[member] = value;
    else if (!Number.isNaN(Date.parse(value))) described[member] = new Date(value);
  }
  return described as unknown as Described;
}

/** What the SDK calls them. */
const MEMBERS = [
  ['content-type', 'ContentType'], ['cache-control', 'CacheControl'], ['content-disposition', 'ContentDisposition'], ['content-encoding', 'ContentEncoding'],
  ['content-language', 'ContentLanguage'], ['expires', 'Expires'], ['x-amz-storage-class', 'StorageClass'], ['x-amz-website-redirect-location', 'WebsiteRedirectLocation'],
  ['x-amz-server-side-encryption', 'ServerSideEncryption'], ['x-amz-server-side-encryption-aws-kms-key-id', 'SSEKMSKeyId'],
  ['x-amz-server-side-encryption-bucket-key-enabled', 'BucketKeyEnabled'], ['x-amz-object-lock-mode', 'ObjectLockMode'],
  ['x-amz-object-lock-retain-until-date', 'ObjectLockRetainUntilDate'], ['x-amz-object-lock-legal-hold', 'ObjectLockLegalHoldStatus'], ['x-amz-tagging', 'Tagging'],
] as const;
const KEY_BYTES = 1024;
const DATES: ReadonlySet<string> = new Set(['Expires', 'ObjectLockRetainUntilDate']);
/** What is only told. */
const TOLD = [['x-amz-tagging-count', 'TagCount'], ['x-amz-restore', 'Restore'], ['x-amz-archive-status', 'ArchiveStatus']] as const;

type Described = { readonly Metadata: Record<string, string> } & { readonly ContentType?: string };

function headersOf(out: HeadObjectCommandOutput & GetObjectCommandOutput): ObjectHeaders {
  const found: [string, string][] = [];
  for (const [name, member] of [...MEMBERS, ...TOLD]) {
    const value = member === 'Expires' ? out.ExpiresString : member === 'Tagging' ? undefined : out[member];
    if (value !== undefined) found.push([name, value instanceof Date ? value.toISOString() : String(value)]);
  }
  return Object.fromEntries(found);
}

export const obeying = (signal: AbortSignal | undefined): { abortSignal?: AbortSignal } => (signal === undefined ? {} : { abortSignal: signal });

export class SdkCalls implements S3Calls {
  readonly #common: Common;
  readonly #making: Record<string, string>;

  constructor(
    readonly client: S3Client,
    readonly options: S3Options,
  ) {
    this.#common = commonOf(options);
    this.#making = makingOf(options);
  }

  async head(key: string, operation: string, signal: AbortSignal | undefined): Promise<ObjectInfo> {
    const out = await this.client.send(new HeadObjectCommand({ ...this.#common, Key: key }), obeying(signal));
    const read = new AnswerReader(operation);
    return infoOf(read, key, read.count('its length', out.ContentLength), out);
  }

  async get(key: string, { operation, offset, into, version: only, signal }: GetCall): Promise<Got> {
    const Range = `bytes=${offset}-${offset + into.length - 1}`;
    const IfMatch = only === undefined ? {} : { IfMatch: quoted(only) };
    const out = await this.client.send(new GetObjectCommand({ ...this.#common, Key: key, Range, ...IfMatch }), obeying(signal));
    const read = new AnswerReader(operation);
    const range = read.range(out.ContentRange, { offset, length: into.length });
    if (only !== undefined && read.etag(out.ETag) !== only) throw new StorageError('changed', operation, { providerMessage: 'another version came than was asked for' });
    return { bytes: await receive(out.Body as Readable, into, range.bytes, operation), info: range.size === null ? null : infoOf(read, key, range.size, out) };
  }

  async put(key: string, body: Body, { operation, described, condition, signal }: PutCall): Promise<Version> {
    const input = {
      ...this.#common, ...this.#making, ...describedOf(described), ...conditionOf(condition), Key: key, Body: content(body, operation), ContentLength: bodyBytes(body),
    };
    const out = await this.client.send(new PutObjectCommand(input), obeying(signal));
    return new AnswerReader(operation, true).etag(out.ETag);
  }

  async remove(key: string, only: Version | undefined, _operation: string, signal: AbortSignal | undefined): Promise<void> {
    const IfMatch = only === undefined ? {} : { IfMatch: quoted(only) };
    await this.client.send(new DeleteObjectCommand({ ...this.#common, Key: key, ...IfMatch }), obeying(signal));
  }

  async copy(from: string, to: string, { operation, metadata, headers, sourceVersion, condition, signal }: CopyCall): Promise<Version> {
    const { Metadata, ...attached } = describedOf({ metadata: metadata ?? {}, headers });
    const replaced = {
      ...attached, ...(metadata === undefined ? {} : { Metadata, MetadataDirective: 'REPLACE' as const }), ...(headers[TAGS] === undefined ? {} : { TaggingDirective: 'REPLACE' as const }),
    };
    const IfMatch = sourceVersion === undefined ? {} : { CopySourceIfMatch: quoted(sourceVersion) };
    const input = {
      ...this.#common, ...this.#making, ...replaced, ...IfMatch, ...conditionOf(condition), Key: to, CopySource: copySource(this.options.bucket, from),
    };
    const out = await this.client.send(new CopyObjectCommand(input), obeying(signal));
    return new AnswerReader(operation, true).etag(out.CopyObjectResult?.ETag);
  }

  async list({ prefix, delimiter, after, token, limit, signal }: ListOptions, operation: string): Promise<ListPage> {
    const read = new AnswerReader(operation);
    const out = await this.client.send(
      new ListObjectsV2Command({
        ...this.#common, Prefix: prefix, Delimiter: delimiter, StartAfter: after, ContinuationToken: token, MaxKeys: limit, EncodingType: 'url',
      }), obeying(signal),
    );
    const objects = (out.Contents ?? []).map((one) => ({
      key: read.key(decodeKey(one.Key ?? ''), prefix, KEY_BYTES), size: read.count('a size', one.Size), version: read.etag(one.ETag), modified_ms: read.time_ms('a date', one.LastModified),
      metadata: null, headers: null,
      ...archiveClass(one.StorageClass),
    }));
    const prefixes = (out.CommonPrefixes ?? []).map((one) => read.key(decodeKey(one.Prefix ?? ''), prefix, KEY_BYTES));
    return { objects, prefixes, next: read.flag('whether there is more', out.IsTruncated) ? read.token('the token of the next page', out.NextContinuationToken) : null };
  }

  async putPart(upload: Upload, number: number, body: Body, { operation, signal }: PartCall): Promise<Part> {
    const bytes = bodyBytes(body);
    const input = { ...this.#common, Key: upload.key, UploadId: upload.id, PartNumber: number, Body: content(body, operation), ContentLength: bytes };
    const out = await this.client.send(new UploadPartCommand(input), obeying(signal));
    return { number, tag: new AnswerReader(operation, true).etag(out.ETag), bytes };
  }
}

function infoOf(read: AnswerReader, key: string, size: number, out: GetObjectCommandOutput | HeadObjectCommandOutput): ObjectInfo {
  return {
    key, size, version: read.etag(out.ETag), modified_ms: read.time_ms('its date', out.LastModified), metadata: decodeMetadata(out.Metadata ?? {}), headers: headersOf(out),
  };
}

function content(body: Body, operation: string): Uint8Array | Readable {
  return body instanceof Uint8Array ? body : body.bytes === 0 ? new Uint8Array(0) : bodyStream(body, operation);
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
