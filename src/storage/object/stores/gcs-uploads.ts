/**
 * Sending an object: small ones in one request with their metadata (multipart), big ones by a resumable session, which
 * goes on where a connection broke. Both say the CRC-32C beforehand, so that nothing else than these bytes is stored.
 * https://cloud.google.com/storage/docs/uploads-downloads
 */
import { randomUUID } from 'node:crypto';
import { bodyBytes, bodyContent } from '../body.js';
import { StorageError } from '../errors.js';
import type { Body } from '../store.js';
import { AnswerReader } from './answer-reader.js';
import { bodyCrc32c, crc32cText } from './gcs-crc32c.js';
import type { GcsCall, GcsHttp, Payload } from './gcs-http.js';
import { FIELDS, OCTETS, objectOfKey, objectPath, type GcsObject, type Preconditions } from './gcs-resource.js';
import type { Received } from './http-connection.js';
import { STEP, type Framing } from './http-content.js';

export interface Insert {
  readonly operation: string;
  readonly bucket: string;
  readonly key: string;
  /** Writable fields of the resource. */
  readonly resource: Readonly<Record<string, unknown>> & { readonly contentType?: string };
  readonly conditions: Preconditions;
  readonly kmsKeyName: string | undefined;
  readonly signal: AbortSignal | undefined;
}

/** From this size on a session is worth its second request. */
export const RESUMABLE_FROM_BYTES = 16 << 20;
/** What a cancelled session is waited for, when the caller does not wait any more. */
const CANCEL_MS = 10_000;
const RESUME_INCOMPLETE = 308;
const CLIENT_CLOSED_REQUEST = 499;

export async function insert(http: GcsHttp, made: Insert, given: Body, resumableFromBytes: number): Promise<GcsObject> {
  objectPath(made.bucket, made.key, made.operation); // refuses names that cannot be asked for afterwards
  // What fits into one piece is read once: for its checksum, and to be sent
  const body = bodyBytes(given) <= STEP ? bodyContent(given, made.operation) : given;
  const crc32c = crc32cText(await bodyCrc32c(body, made.operation));
  const resource = { contentType: OCTETS, ...made.resource, name: made.key, crc32c };
  return bodyBytes(body) < Math.max(1, resumableFromBytes) ? multipart(http, made, resource, body) : resumable(http, made, resource, body);
}

function callOf(made: Insert, uploadType: 'multipart' | 'resumable'): Pick<GcsCall, 'operation' | 'method' | 'path' | 'query' | 'signal' | 'mutates' | 'bucketOnly'> {
  return {
    operation: made.operation, method: 'POST', path: `/upload/storage/v1/b/${encodeURIComponent(made.bucket)}/o`,
    query: { uploadType, name: made.key, fields: FIELDS, kmsKeyName: made.kmsKeyName, ...made.conditions }, signal: made.signal, mutates: true, bucketOnly: true,
  };
}

/** RFC 2387: the resource and the content in one body. */
function multipart(http: GcsHttp, made: Insert, resource: { contentType: string }, body: Body): Promise<GcsObject> {
  const boundary = `part-${randomUUID()}`;
  const head =
    `--${boundary}\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n${JSON.stringify(resource)}\r\n--${boundary}\r\nContent-Type: ${OCTETS}\r\n\r\n`;
  const tail = `\r\n--${boundary}--\r\n`;
  return http.object({
    ...callOf(made, 'multipart'), headers: { 'content-type': `multipart/related; boundary=${boundary}` }, body: between(head, body, tail),
  }, made.key);
}

function between(head: string, body: Body, tail: string): Payload {
  const bytes = Buffer.byteLength(head) + bodyBytes(body) + Buffer.byteLength(tail);
  if (body instanceof Uint8Array) return { bytes, content: [Buffer.from(head), body, Buffer.from(tail)] };
  const framing = (): Framing => {
    let before = head;
    return (_piece, isLast) => {
      const around = [before, isLast ? tail : ''] as const;
      before = '';
      return around;
    };
  };
  return { bytes, content: { range: body, framing } };
}

function restOf(body: Body, from: number): Payload {
  const bytes = bodyBytes(body) - from;
  return { bytes, content: body instanceof Uint8Array ? [body.subarray(from)] : { range: { fd: body.fd, offset: body.offset + from, bytes } } };
}

/** Sends the rest again after each interruption that something came through before. */
async function resumable(http: GcsHttp, made: Insert, resource: { contentType: string }, body: Body): Promise<GcsObject> {
  const session = await begin(http, made, resource, bodyBytes(body));
  for (let from = 0; ;) {
    try {
      return await sendFrom(http, made, session, body, from);
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const state = mayGoOn(error) ? await stateOf(http, made, session, bodyBytes(body)) : null;
      if (state !== null && 'object' in state) return state.object;
      if (state !== null && state.persisted > from) {
        from = state.persisted;
        continue;
      }
      if (!isOver(error)) void cancel(http, made, session); // which nobody has to wait for
      throw error;
    }
  }
}

/** The provider has refused it for good: there is no session any more. */
const isOver = ({ detail }: StorageError): boolean => detail.status !== undefined && detail.status >= 400 && detail.ambiguous !== true;

const mayGoOn = (error: StorageError): boolean => error.code === 'interrupted' || error.code === 'timeout' || error.code === 'unavailable';

async function begin(http: GcsHttp, made: Insert, resource: { contentType: string }, bytes: number): Promise<URL> {
  const { headers } = await http.call({
    ...callOf(made, 'resumable'),
    headers: { 'content-type': 'application/json; charset=UTF-8', 'x-upload-content-type': resource.contentType, 'x-upload-content-length': String(bytes) },
    body: Buffer.from(JSON.stringify(resource)),
    mutates: false, // a session that nobody knows of comes to nothing
  });
  return new AnswerReader(made.operation).location(headers.location, http.endpoint);
}

async function sendFrom(http: GcsHttp, made: Insert, session: URL, body: Body, from: number): Promise<GcsObject> {
  const bytes = bodyBytes(body);
  const answer = await http.call({
    operation: made.operation, method: 'PUT', path: session, signal: made.signal, mutates: true,
    headers: { 'content-range': `bytes ${from}-${bytes - 1}/${bytes}` },
    body: restOf(body, from),
    also: [RESUME_INCOMPLETE],
  }).catch((error: unknown) => {
    throw asOfSession(error);
  });
  if (answer.status === RESUME_INCOMPLETE) {
    throw new StorageError('interrupted', made.operation, { status: answer.status, providerMessage: 'the provider kept a part of what was sent', ambiguous: true });
  }
  return objectOf(answer, made);
}

/** How far the session has come, or the object that it became; null when it does not say. */
async function stateOf(http: GcsHttp, made: Insert, session: URL, bytes: number): Promise<{ persisted: number } | { object: GcsObject } | null> {
  try {
    const answer = await http.call({
      operation: made.operation, method: 'PUT', path: session, signal: made.signal, headers: { 'content-range': `bytes */${bytes}` }, also: [RESUME_INCOMPLETE],
    });
    if (answer.status !== RESUME_INCOMPLETE) return { object: objectOf(answer, made) };
    const kept = /^bytes=0-(\d+)$/.exec(answer.headers.range ?? '');
    // All of it would be the object, and no session any more
    return { persisted: kept === null ? 0 : new AnswerReader(made.operation, true).count('what the session has', kept[1], bytes - 2) + 1 };
  } catch (error) {
    if (error instanceof StorageError) return null;
    throw error;
  }
}

function objectOf(answer: Received, { operation, key }: Insert): GcsObject {
  const read = new AnswerReader(operation, true);
  return objectOfKey(read, read.json(answer.body), key);
}

/** A session that is not found is over; the call may begin another. */
function asOfSession(error: unknown): unknown {
  if (!(error instanceof StorageError) || error.code !== 'not-found') return error;
  return new StorageError('unavailable', error.operation, { ...error.detail, providerMessage: 'the upload session is over', ambiguous: true });
}

/**
 * Ends a session that nobody will go on with. What is in doubt stays so, even when the provider says that it was
 * cancelled: all of it may have been there, and become the object, before.
 */
function cancel(http: GcsHttp, made: Insert, session: URL): Promise<void> {
  return http
    .call({ operation: made.operation, method: 'DELETE', path: session, signal: AbortSignal.timeout(CANCEL_MS), also: [CLIENT_CLOSED_REQUEST] })
    .then(() => {}, () => {});
}
