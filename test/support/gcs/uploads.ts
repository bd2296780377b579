/**
 * Uploads: in one request (media, multipart) and resumable ones.
 * https://cloud.google.com/storage/docs/json_api/v1/objects/insert
 * https://cloud.google.com/storage/docs/performing-resumable-uploads
 */
import { randomUUID } from 'node:crypto';
import { ApiError, invalid } from './errors.js';
import { checkName, writableOf, type Bucket, type Query, type Resource, type Stored } from './objects.js';

/** What is kept of a resumable upload that was cut off, and the size that all but the last request must be a multiple of. */
export const QUANTUM = 256 * 1024;

/** A request body as it came: all of it, or what had come when the connection broke. */
export interface Received {
  readonly content: Buffer;
  readonly broken: boolean;
}

export function mediaUpload(bucket: Bucket, body: Buffer, contentType: string | undefined, query: Query): Stored {
  const name = query.get('name') ?? '';
  return bucket.insert(name, { content: body, fields: contentType === undefined ? {} : { contentType } }, query);
}

/** multipart/related of two parts: the resource as JSON, then the content. RFC 2387 */
export function multipartUpload(bucket: Bucket, body: Buffer, contentType: string | undefined, query: Query): Stored {
  const boundary = /^multipart\/related\s*;.*\bboundary=(?:"([^"]+)"|([^\s;]+))/i.exec(contentType ?? '');
  if (boundary === null) throw new ApiError(400, 'badContent', 'The multipart/related upload has no boundary.');
  const parts = splitParts(body, boundary[1] ?? boundary[2]);
  if (parts.length !== 2) throw new ApiError(400, 'badContent', `Expected two parts in the multipart upload, found ${parts.length}.`);
  const resource = json(parts[0].content);
  return insertResource(bucket, resource, parts[1].content, parts[1].type, query);
}

function splitParts(body: Buffer, boundary: string): { type: string | undefined; content: Buffer }[] {
  const delimiter = Buffer.from(`\r\n--${boundary}`);
  const text = Buffer.concat([Buffer.from('\r\n'), body]);
  const parts: { type: string | undefined; content: Buffer }[] = [];
  let at = text.indexOf(delimiter);
  while (at >= 0) {
    const start = at + delimiter.length;
    if (text.subarray(start, start + 2).toString() === '--') return parts;
    const end = text.indexOf(delimiter, start);
    const head = text.indexOf('\r\n\r\n', start);
    if (end < 0 || head < 0 || head > end) break;
    const type = /^content-type:\s*(.*)$/im.exec(text.subarray(start, head).toString())?.[1].trim();
    parts.push({ type, content: text.subarray(head + 4, end) });
    at = end;
  }
  throw new ApiError(400, 'badContent', 'The multipart/related upload does not end with its boundary.');
}

function insertResource(bucket: Bucket, resource: Resource, content: Buffer, type: string | undefined, query: Query): Stored {
  const name = query.get('name') ?? (typeof resource.name === 'string' ? resource.name : '');
  const fields = writableOf(resource);
  if (fields.contentType === undefined && type !== undefined) fields.contentType = type;
  return bucket.insert(name, { content: Buffer.from(content), fields }, query, resource);
}

export function json(body: Buffer): Resource {
  if (body.length === 0) return {};
  try {
    const value: unknown = JSON.parse(body.toString());
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Resource;
  } catch {
    // said below
  }
  throw new ApiError(400, 'parseError', 'Parse Error');
}

interface Session {
  readonly bucket: Bucket;
  readonly resource: Resource;
  readonly type: string | undefined;
  readonly query: Query;
  /** From X-Upload-Content-Length. */
  readonly announced: number | null;
  content: Buffer;
  done: Stored | null;
}

/** What a request to a session gets: the object, or how far it has come. */
export type Progress = { readonly stored: Stored; readonly bucket: Bucket } | { readonly persisted: number };

export class Sessions {
  readonly #sessions = new Map<string, Session>();

  /** @returns the id of the session. Preconditions are looked at when the last byte has come. */
  start(bucket: Bucket, body: Buffer, query: Query, type: string | undefined, length: string | undefined): string {
    const resource = json(body);
    checkName(query.get('name') ?? (typeof resource.name === 'string' ? resource.name : ''));
    const id = randomUUID();
    this.#sessions.set(id, { bucket, resource, type, query, announced: length === undefined ? null : Number(length), content: Buffer.alloc(0), done: null });
    return id;
  }

  /** Sessions that were neither finished nor cancelled. */
  get open(): number {
    return [...this.#sessions.values()].filter((session) => session.done === null).length;
  }

  cancel(id: string): void {
    this.#existing(id);
    this.#sessions.delete(id);
  }

  put(id: string, received: Received, contentRange: string | undefined): Progress {
    const session = this.#existing(id);
    if (session.done !== null) return { stored: session.done, bucket: session.bucket };
    const range: ContentRange = contentRange === undefined ? { start: 0, end: null, total: null } : parseContentRange(contentRange);
    if (range.start === null) { // a question how far it has come
      return range.total !== null && range.total === session.content.length ? this.#finish(session) : { persisted: session.content.length };
    }
    if (range.start > session.content.length) throw invalid(`Invalid request. Bytes ${session.content.length} to ${range.start} are missing.`);
    if (range.end !== null && !received.broken && received.content.length !== range.end - range.start + 1) {
      throw invalid('Invalid request. The number of bytes is not that of the Content-Range header.');
    }
    const isLast = !received.broken && (range.total === null ? range.end === null : range.start + received.content.length === range.total);
    if (!isLast && !received.broken && received.content.length % QUANTUM !== 0) {
      throw invalid(`Invalid request. The number of bytes uploaded is required to be a multiple of ${QUANTUM}, except for the final request.`);
    }
    const all = Buffer.concat([session.content.subarray(0, range.start), received.content]);
    const kept = isLast ? all : all.subarray(0, all.length - (all.length % QUANTUM));
    if (isLast || kept.length > session.content.length) session.content = kept;
    return isLast ? this.#finish(session) : { persisted: session.content.length };
  }

  #finish(session: Session): Progress {
    const { bucket, resource, content, type, query, announced } = session;
    if (announced !== null && announced !== content.length) throw invalid('Invalid request. The size is not that of X-Upload-Content-Length.');
    session.done = insertResource(bucket, resource, content, type, query);
    return { stored: session.done, bucket };
  }

  #existing(id: string): Session {
    const session = this.#sessions.get(id);
    if (session === undefined) throw new ApiError(404, 'notFound', 'No such upload session.');
    return session;
  }
}

interface ContentRange {
  /** null: nothing is sent, this is a question. */
  readonly start: number | null;
  /** null: up to the end of the body, which is that of the object. */
  readonly end: number | null;
  readonly total: number | null;
}

/** "bytes 0-99/100", "bytes 0-99/*", or with an asterisk for what is not known or not sent. */
function parseContentRange(header: string): ContentRange {
  const match = /^bytes (?:(\d+)-(\d+|\*)|\*)\/(\d+|\*)$/.exec(header);
  if (match === null) throw invalid(`Failed to parse Content-Range header ${header}`);
  return {
    start: match[1] === undefined ? null : Number(match[1]),
    end: match[2] === undefined || match[2] === '*' ? null : Number(match[2]),
    total: match[3] === '*' ? null : Number(match[3]),
  };
}
