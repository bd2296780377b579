/**
 * The calls of s3-calls.ts by requests of our own, signed with Signature Version 4. What is sent is what the SDK would send, but for what it
 * says of itself. Each call names the page that says what it asks for and gets; all are below https://docs.aws.amazon.com/AmazonS3/latest/API/
 */
import type { S3Client } from '@aws-sdk/client-s3';
import { bodyBytes } from '../body.js';
import { StorageError } from '../errors.js';
import { archiveClass, KEPT, TAGS } from '../attachments.js';
import type { Body, Condition, ObjectHeaders, ListOptions, ListPage, ObjectInfo, Part, Upload, Version } from '../store.js';
import type { CopyCall, Description, GetCall, Got, PartCall, PutCall, S3Calls } from './s3-calls.js';
import { NO_BODY, prepared, UNSIGNED_TRAILER, verified, type Prepared } from './s3-checksums.js';
import { isGood, type Received, type Sending } from './http-connection.js';
import { CONNECT_MS } from './http-connections.js';
import type { Header } from './http-content.js';
import type { Agents, Endpoint } from './s3-endpoint.js';
import { S3Refusal } from './s3-errors.js';
import { hasChecksums, type S3Options } from './s3-options.js';
import { escapedKey, queryOf, Signer } from './s3-sign.js';
import { AnswerReader, type AnsweredRange } from './answer-reader.js';
import { PAGE_MAX } from './list-pages.js';
import { conditionOf, copySource, decodeKey, decodeMetadata, quoted } from './s3-values.js';
import { childText, parseXml, type Element } from './s3-xml.js';

/** A clock that is so far off is put right by that of the provider, as the SDK does; S3 refuses 15 minutes. */
const SKEW_MS = 240_000;
/** See ObjectInfo.isSettled: a second, which Last-Modified is cut to, and as much as clocks of one provider differ. */
const SETTLED_MS = 5_000;
const USER_AGENT: Header = ['user-agent', 'bucketfsd'];
const META = 'x-amz-meta-';
const CONTENT_ENCODING = 'content-encoding';
/** https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html */
const KEY_BYTES = 1024;
/** What an entry of a listing takes at most: a key, each byte of it as %XX, and some hundred bytes besides; and what a page has before them. */
const PAGE_ENTRY_BYTES = 8 << 10;
const PAGE_HEAD_BYTES = 64 << 10;

interface Request {
  readonly method: 'HEAD' | 'GET' | 'PUT' | 'DELETE';
  /** null: the bucket. */
  readonly key: string | null;
  readonly operation: string;
  readonly query?: string;
  readonly headers?: readonly Header[];
  readonly body?: Body;
  readonly into?: Sending['into'];
  readonly inspect?: Sending['inspect'];
  readonly answerMax_bytes?: number;
  readonly signal: AbortSignal | undefined;
}

export class LeanCalls implements S3Calls {
  readonly #signer: Signer;
  readonly #checksums: boolean;
  /** Of every request. */
  readonly #common: readonly Header[];
  /** Of every object that is made. */
  readonly #making: readonly Header[];

  constructor(
    readonly endpoint: Endpoint,
    readonly options: S3Options,
    readonly agents: Agents,
    /** Has the credentials, and knows the provider's clock. */
    readonly client: S3Client,
    /** For what is too rare to be here. */
    readonly sdk: S3Calls,
  ) {
    this.#signer = new Signer(endpoint.region);
    this.#checksums = hasChecksums(options);
    this.#common = [
      ['host', endpoint.url.host],
      ...given('x-amz-expected-bucket-owner', options.expectedBucketOwner), ...given('x-amz-request-payer', options.requesterPays === true ? 'requester' : undefined),
    ];
    this.#making = [
      ...given('x-amz-storage-class', options.storageClass), ...given('x-amz-server-side-encryption', options.serverSideEncryption),
      ...given('x-amz-server-side-encryption-aws-kms-key-id', options.kmsKeyId),
    ];
  }

  /** API_HeadObject.html: headers as of GET, and no body even when it is refused. */
  async head(key: string, operation: string, signal: AbortSignal | undefined): Promise<ObjectInfo> {
    const { headers } = await this.#request({ method: 'HEAD', key, operation, signal });
    const read = new AnswerReader(operation);
    return infoOf(read, key, read.count('its length', headers['content-length']), headers);
  }

  /** API_GetObject.html: Range and If-Match as in HTTP; with x-amz-checksum-mode, the checksum of what was asked for where there is one. */
  async get(key: string, call: GetCall): Promise<Got> {
    const { operation, offset, into, version: only, signal } = call;
    const read = new AnswerReader(operation);
    let announced: AnsweredRange = { bytes: 0, size: null };
    const { headers, bytes, status } = await this.#request({
      method: 'GET', key, operation, signal, into,
      headers: [
        ['range', `bytes=${offset}-${offset + into.length - 1}`], ...given('if-match', only === undefined ? undefined : quoted(only)),
        ...given('x-amz-checksum-mode', this.#checksums ? 'ENABLED' : undefined),
      ],
      inspect: (told) => {
        announced = read.range(told['content-range'], { offset, length: into.length });
        if (only !== undefined && read.etag(told.etag) !== only) throw new StorageError('changed', operation, { providerMessage: 'another version came than was asked for' });
      },
    });
    if (bytes !== announced.bytes) throw new StorageError('short-body', operation, { status, providerMessage: `${bytes} of ${announced.bytes} bytes came` });
    if (this.#checksums && !verified(headers, into.subarray(0, bytes), operation)) return this.sdk.get(key, call);
    return { bytes, info: announced.size === null ? null : infoOf(read, key, announced.size, headers) };
  }

  /** API_PutObject.html: If-None-Match and If-Match; 412 when they fail, 409 when somebody else is faster. */
  async put(key: string, body: Body, { operation, described, condition, signal }: PutCall): Promise<Version> {
    const { headers } = await this.#request({
      method: 'PUT', key, operation, body, signal, headers: [...this.#making, ...describedBy({ ...described, headers: { 'content-type': 'application/octet-stream', ...described.headers } }), ...conditioned(condition)],
    });
    return new AnswerReader(operation, true).etag(headers.etag);
  }

  /** API_DeleteObject.html: 204 whether there was one or not; If-Match: 412, or 404. */
  async remove(key: string, only: Version | undefined, operation: string, signal: AbortSignal | undefined): Promise<void> {
    await this.#request({ method: 'DELETE', key, operation, signal, headers: given('if-match', only === undefined ? undefined : quoted(only)) });
  }

  /** API_CopyObject.html: a 200 may be an error all the same, which the document says; an empty one is a copy that was given up. */
  async copy(from: string, to: string, { operation, metadata, headers, sourceVersion, condition, signal }: CopyCall): Promise<Version> {
    const replaced: Header[] = describedBy({ metadata: metadata ?? {}, headers });
    if (metadata !== undefined) replaced.push(['x-amz-metadata-directive', 'REPLACE']);
    if (headers[TAGS] !== undefined) replaced.push(['x-amz-tagging-directive', 'REPLACE']);
    const received = await this.#request({
      method: 'PUT', key: to, operation, signal,
      headers: [
        ['content-length', '0'], ...this.#making, ...replaced, ...conditioned(condition), ['x-amz-copy-source', copySource(this.options.bucket, from)],
        ...given('x-amz-copy-source-if-match', sourceVersion === undefined ? undefined : quoted(sourceVersion)),
      ],
    });
    if (received.body.length === 0) throw new S3Refusal({ status: 503, headers: received.headers, code: 'InternalError', message: 'the copy was given up' });
    return new AnswerReader(operation, true).etag(childText(documentOf(received, 'CopyObjectResult', operation, true), 'ETag'));
  }

  /** API_ListObjectsV2.html: keys as in URLs (encoding-type), in the order of UTF-8 bytes; the next page by NextContinuationToken. */
  async list({ prefix, delimiter, after, token, limit, signal }: ListOptions, operation: string): Promise<ListPage> {
    const query = queryOf({
      'list-type': 2, 'encoding-type': 'url', prefix, delimiter, 'start-after': after, 'continuation-token': token, 'max-keys': limit,
    });
    const read = new AnswerReader(operation);
    const answerMax_bytes = PAGE_HEAD_BYTES + (limit ?? PAGE_MAX) * PAGE_ENTRY_BYTES;
    const listing = documentOf(await this.#request({ method: 'GET', key: null, query, operation, signal, answerMax_bytes }), 'ListBucketResult', operation, false);
    const objects: ObjectInfo[] = [];
    const prefixes: string[] = [];
    for (const element of listing.children) {
      if (element.name === 'Contents') objects.push(listed(read, element, prefix));
      else if (element.name === 'CommonPrefixes') prefixes.push(read.key(decodeKey(childText(element, 'Prefix') ?? ''), prefix, KEY_BYTES));
    }
    const truncated = childText(listing, 'IsTruncated') ?? '';
    if (truncated !== 'true' && truncated !== 'false') throw read.wrong('it does not say whether there is more');
    return { objects, prefixes, next: truncated === 'true' ? read.token('the token of the next page', childText(listing, 'NextContinuationToken')) : null };
  }

  /** API_UploadPart.html */
  async putPart(upload: Upload, number: number, body: Body, { operation, signal }: PartCall): Promise<Part> {
    const query = queryOf({ partNumber: number, uploadId: upload.id });
    const { headers } = await this.#request({ method: 'PUT', key: upload.key, query, operation, body, signal });
    return { number, tag: new AnswerReader(operation, true).etag(headers.etag), bytes: bodyBytes(body) };
  }

  /** One attempt; a second one if the first was refused for the time of its signature, and the answer tells what time it is. */
  async #request(request: Request): Promise<Received> {
    const { body, operation } = request;
    const content = body === undefined ? NO_BODY : prepared(body, this.#checksums, operation);
    for (let corrected = false; ; corrected = true) {
      const received = await this.agents.own.send(await this.#sending(request, content));
      const error = refusal(received);
      if (error === null) return received;
      if (corrected || !this.#correctClock(received)) throw error;
    }
  }

  async #sending({ method, key, operation, query = '', headers = [], into, inspect, answerMax_bytes, signal }: Request, { headers: more, contentHash, content }: Prepared): Promise<Sending> {
    const { url, base } = this.endpoint;
    const path = key === null ? `${base}/` : `${base}/${escapedKey(key)}`;
    const plain = [...this.#common, ...withEncoding(headers, more)];
    const signed = this.options.unsigned === true ? anonymous(plain, contentHash) : await this.#signed({ method, path, query, headers: plain, contentHash });
    signed.push(USER_AGENT);
    return {
      url, method, target: query === '' ? path : `${path}?${query}`, headers: signed,
      content, operation, connect_ms: CONNECT_MS, signal, ...(into === undefined ? {} : { into }), ...(inspect === undefined ? {} : { inspect }),
      ...(answerMax_bytes === undefined ? {} : { answerMax_bytes }),
    };
  }

  async #signed(request: Parameters<Signer['sign']>[0]): Promise<Header[]> {
    const { credentials, systemClockOffset } = this.client.config;
    return this.#signer.sign(request, await credentials(), Date.now() + systemClockOffset);
  }

  /** The SDK's offset is used and set, so that its requests have the same time. @returns whether it is another one now */
  #correctClock({ status, headers }: Received): boolean {
    const date_ms = Date.parse(headers.date ?? '');
    if ((status !== 403 && status !== 400) || Number.isNaN(date_ms) || headers.age !== undefined || this.options.unsigned === true) return false;
    const offset_ms = date_ms - Date.now();
    const { config } = this.client;
    if (Math.abs(offset_ms - config.systemClockOffset) < SKEW_MS) return false;
    config.systemClockOffset = offset_ms;
    return true;
  }
}

function keptOf(headers: Received['headers']): ObjectHeaders {
  const kept: Record<string, string> = {};
  for (const name of KEPT) {
    const value = headers[name];
    if (typeof value === 'string') kept[name] = value;
  }
  return kept;
}

/** How the content is stored, and how it travels, in the order of the SDK. https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming.html */
function withEncoding(headers: readonly Header[], more: readonly Header[]): Header[] {
  const stored = headers.find(([name]) => name === CONTENT_ENCODING);
  const travels = more.find(([name]) => name === CONTENT_ENCODING);
  if (stored === undefined || travels === undefined) return [...headers, ...more];
  return [...[...headers, ...more].filter(([name]) => name !== CONTENT_ENCODING), [CONTENT_ENCODING, `${stored[1]},${travels[1]}`]];
}

const given = (name: string, value: string | undefined): readonly Header[] => (value === undefined ? [] : [[name, value]]);

const anonymous = (headers: Header[], contentHash: string): Header[] => (contentHash === UNSIGNED_TRAILER ? [...headers, ['x-amz-content-sha256', contentHash]] : headers);

function describedBy({ metadata, headers }: Description): Header[] {
  return [...Object.entries(headers).filter(([, value]) => value !== ''), ...Object.entries(metadata).map(([name, value]): Header => [META + name, value])];
}

function conditioned(condition: Condition | undefined): readonly Header[] {
  const { IfNoneMatch, IfMatch } = conditionOf(condition);
  return [...given('if-none-match', IfNoneMatch), ...given('if-match', IfMatch)];
}

function infoOf(read: AnswerReader, key: string, size: number, headers: Received['headers']): ObjectInfo {
  const metadata: Record<string, string> = {};
  for (const name in headers) if (name.startsWith(META)) metadata[name.slice(META.length)] = String(headers[name]);
  const modified_ms = read.time_ms('its date', headers['last-modified']);
  // Both times are the provider's; what was stored by somebody in between says how old it is
  const isSettled = headers.age === undefined && Date.parse(headers.date ?? '') - modified_ms >= SETTLED_MS;
  return {
    key, size, version: read.etag(headers.etag), modified_ms, metadata: decodeMetadata(metadata), headers: keptOf(headers), ...(isSettled ? { isSettled } : {}),
  };
}

function listed(read: AnswerReader, element: Element, prefix: string): ObjectInfo {
  let [key, size, tag, modified, storageClass] = ['', '', '', '', ''];
  for (const { name, text } of element.children) {
    if (name === 'Key') key = text;
    else if (name === 'Size') size = text;
    else if (name === 'ETag') tag = text;
    else if (name === 'LastModified') modified = text;
    else if (name === 'StorageClass') storageClass = text;
  }
  return {
    key: read.key(decodeKey(key), prefix, KEY_BYTES), size: read.count('a size', size), version: read.etag(tag), modified_ms: read.time_ms('a date', modified), metadata: null, headers: null,
    ...archiveClass(storageClass),
  };
}

/** ErrorResponses.html: an element Error with Code and Message; also with status 200, where the work took long. */
function refusal({ status, headers, body }: Received): S3Refusal | null {
  const good = isGood(status);
  if (good && !body.subarray(-64).toString('latin1').trimEnd().endsWith('</Error>')) return null;
  const document = errorOf(body);
  if (good && document === null) return null;
  const [code, message, region] = ['Code', 'Message', 'Region'].map((name) => (document === null ? undefined : childText(document, name)));
  return new S3Refusal({ status: good ? 503 : status, headers, code, message, region });
}

/** Some services answer with HTML, or with nothing. */
function errorOf(body: Buffer): Element | null {
  try {
    const document = parseXml(body.toString());
    return document.name === 'Error' ? document : null;
  } catch {
    return null;
  }
}

function documentOf({ status, body }: Received, name: string, operation: string, changes: boolean): Element {
  const wrong = (providerMessage: string, cause?: unknown): StorageError =>
    new StorageError('unexpected', operation, { status, providerMessage, ...(changes ? { ambiguous: true } : {}), ...(cause === undefined ? {} : { cause }) });
  let document: Element;
  try {
    document = parseXml(body.toString());
  } catch (error) {
    throw wrong(`the answer is no XML: ${(error as Error).message}`, error);
  }
  if (document.name !== name) throw wrong(`the answer is ${document.name}, not ${name}`);
  return document;
}
