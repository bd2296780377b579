/** Which method of the API a request is, and what it answers. https://cloud.google.com/storage/docs/json_api/v1 */
import { randomUUID } from 'node:crypto';
import type { IncomingHttpHeaders } from 'node:http';
import { ApiError, invalid } from './errors.js';
import type { Operation } from './faults.js';
import { list, partial } from './listing.js';
import { media, type Answer } from './media.js';
import { resourceOf, writableOf, type Bucket, type Query, type Stored } from './objects.js';
import type { GcsServer } from './server.js';
import { json, mediaUpload, multipartUpload, type Progress, type Received } from './uploads.js';

export interface Route {
  readonly operation: Operation;
  readonly bucket: string | null;
  readonly object: string | null;
  /** Of rewrites and copies; `bucket` and `object` are the source then. */
  readonly target: { readonly bucket: string; readonly object: string } | null;
  readonly query: Query;
}

/** Method and path to operation; groups are bucket, object, target bucket (empty: the same), target object. */
const ROUTES: readonly (readonly [string, RegExp, Operation])[] = [
  ['GET', /^\/storage\/v1\/b\/([^/]+)$/, 'buckets.get'],
  ['GET', /^\/storage\/v1\/b\/([^/]+)\/o$/, 'objects.list'],
  ['GET', /^(?:\/download)?\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)$/, 'objects.get'],
  ['PATCH', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)$/, 'objects.patch'],
  ['DELETE', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)$/, 'objects.delete'],
  ['POST', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)\/compose$/, 'objects.compose'],
  ['POST', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)\/rewriteTo\/b\/([^/]+)\/o\/([^/]+)$/, 'objects.rewrite'],
  ['POST', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)\/copyTo\/b\/([^/]+)\/o\/([^/]+)$/, 'objects.copy'],
  ['POST', /^\/storage\/v1\/b\/([^/]+)\/o\/([^/]+)\/moveTo()\/o\/([^/]+)$/, 'objects.move'],
  ['POST', /^\/upload\/storage\/v1\/b\/([^/]+)\/o$/, 'objects.insert'],
  ['PUT', /^\/upload\/storage\/v1\/b\/([^/]+)\/o$/, 'upload.put'],
  ['DELETE', /^\/upload\/storage\/v1\/b\/([^/]+)\/o$/, 'upload.cancel'],
  ['POST', /^\/token$/, 'token'],
];

/** @throws ApiError for what the API does not have */
export function routeOf(method: string, url: string, headers: IncomingHttpHeaders): Route {
  const [path, search = ''] = url.split('?', 2);
  const query = new Map<string, string>();
  for (const [name, value] of new URLSearchParams(search)) if (!query.has(name)) query.set(name, value);
  for (const [verb, pattern, operation] of ROUTES) {
    const match = verb === method ? pattern.exec(path) : null;
    if (match === null) continue;
    const [bucket = null, object = null, targetBucket, targetObject] = match.slice(1).map((part) => (part === undefined ? undefined : decode(part)));
    const target = targetBucket === undefined || targetObject === undefined ? null : { bucket: targetBucket === '' ? bucket! : targetBucket, object: targetObject };
    const name = object ?? query.get('name') ?? null;
    return { operation: refine(operation, query, headers, path), bucket, object: name, target, query };
  }
  throw new ApiError(404, 'notFound', 'Not Found');
}

function refine(operation: Operation, query: Query, headers: IncomingHttpHeaders, path: string): Operation {
  if (operation === 'objects.get' && (query.get('alt') === 'media' || path.startsWith('/download/'))) return 'objects.media';
  if (operation === 'objects.insert' && query.get('uploadType') === 'resumable') return 'upload.start';
  if (operation === 'upload.put' && (headers['content-range'] ?? '').startsWith('bytes */')) return 'upload.status';
  return operation;
}

function decode(part: string): string {
  try {
    return decodeURIComponent(part);
  } catch {
    throw invalid('Malformed percent-encoding in the path.');
  }
}

/** Do what was asked. @throws ApiError */
export function handle(server: GcsServer, route: Route, received: Received, headers: IncomingHttpHeaders): Answer {
  const { operation, query } = route;
  if (operation === 'token') return token(server);
  const bucket = server.bucket(route.bucket ?? '');
  const name = route.object ?? '';
  const resource = (stored: Stored): Answer => answer(resourceOf(bucket.name, stored), query);
  switch (operation) {
    case 'buckets.get':
      return answer(bucketResource(bucket), query);
    case 'objects.list':
      return answer(list(bucket, query), query);
    case 'objects.get':
      return resource(bucket.get(name, query));
    case 'objects.media':
      return media(bucket.get(name, query), headers.range, header(headers['accept-encoding']));
    case 'objects.insert':
      return resource(insert(bucket, received.content, headers['content-type'], query));
    case 'objects.patch':
      return resource(bucket.patch(name, json(received.content), query));
    case 'objects.delete':
      bucket.delete(name, query);
      return { status: 204, headers: {}, body: Buffer.alloc(0) };
    case 'objects.compose':
      return resource(bucket.compose(name, json(received.content), query));
    case 'objects.copy':
      return answer(resourceOf(route.target!.bucket, copyWhole(server, bucket, route, received)), query);
    case 'objects.move':
      return resource(bucket.move(name, route.target!.object, query));
    case 'objects.rewrite':
      return rewrite(server, bucket, route, received);
    case 'upload.start': {
      const id = server.sessions.start(bucket, received.content, query, header(headers['x-upload-content-type']), header(headers['x-upload-content-length']));
      const url = server.options.sessionsAt === undefined ? server.url : server.url.replace('127.0.0.1', server.options.sessionsAt);
      const location = `${url}/upload/storage/v1/b/${encodeURIComponent(bucket.name)}/o?uploadType=resumable&upload_id=${id}`;
      return { status: 200, headers: { location, 'x-guploader-uploadid': id }, body: Buffer.alloc(0) };
    }
    case 'upload.put':
    case 'upload.status':
      return progress(server.sessions.put(query.get('upload_id') ?? '', received, headers['content-range']), query);
    case 'upload.cancel':
      server.sessions.cancel(query.get('upload_id') ?? '');
      return { status: 499, headers: {}, body: Buffer.alloc(0) };
  }
}

const header = (value: string | string[] | undefined): string | undefined => (Array.isArray(value) ? value[0] : value);

function answer(value: unknown, query: Query, status = 200): Answer {
  const body = Buffer.from(JSON.stringify(partial(value, query.get('fields'))));
  return { status, headers: { 'content-type': 'application/json; charset=UTF-8' }, body };
}

function insert(bucket: Bucket, body: Buffer, contentType: string | undefined, query: Query): Stored {
  switch (query.get('uploadType')) {
    case 'media':
      return mediaUpload(bucket, body, contentType, query);
    case 'multipart':
      return multipartUpload(bucket, body, contentType, query);
    default:
      throw invalid('Invalid value for uploadType', 'uploadType');
  }
}

/** 308 says by Range which bytes are kept; none is said by leaving it out. */
function progress(state: Progress, query: Query): Answer {
  if ('stored' in state) return answer(resourceOf(state.bucket.name, state.stored), query);
  return { status: 308, headers: state.persisted === 0 ? {} : { range: `bytes=0-${state.persisted - 1}` }, body: Buffer.alloc(0) };
}

/**
 * Metadata in the request replaces all of the source's; without any the copy has that of the source. Its class and key are those of the request, or of the
 * bucket; contexts come along.
 */
function copyWhole(server: GcsServer, bucket: Bucket, { object, target, query }: Route, received: Received): Stored {
  const source = bucket.source(object ?? '', query);
  const { storageClass, contexts = source.fields.contexts, ...given } = writableOf(json(received.content));
  const { storageClass: _class, kmsKeyName: _key, temporaryHold: _hold, eventBasedHold: _event, contexts: _contexts, ...own } = source.fields;
  const fields = {
    ...(Object.keys(given).length === 0 ? own : given), ...(storageClass === undefined ? {} : { storageClass }), ...(contexts === undefined ? {} : { contexts }),
  };
  const made = { content: source.content, fields, ...(source.componentCount === null ? {} : { componentCount: source.componentCount }) };
  return server.bucket(target!.bucket).insert(target!.object, made, query);
}

/** https://cloud.google.com/storage/docs/json_api/v1/objects/rewrite */
function rewrite(server: GcsServer, bucket: Bucket, route: Route, received: Received): Answer {
  const { query } = route;
  const source = bucket.source(route.object ?? '', query);
  const perCall = Number(query.get('maxBytesRewrittenPerCall') ?? server.options.rewriteBytesPerCall ?? Infinity);
  const given = query.get('rewriteToken');
  const before = given === undefined ? { generation: source.generation, bytes: 0 } : server.rewrites.get(given);
  if (before === undefined || before.generation !== source.generation) throw invalid('Invalid rewrite token.', 'rewriteToken');
  const bytes = Math.min(source.content.length, before.bytes + perCall);
  const common = { kind: 'storage#rewriteResponse', totalBytesRewritten: String(bytes), objectSize: String(source.content.length) };
  if (given !== undefined) server.rewrites.delete(given);
  if (bytes < source.content.length) {
    server.bucket(route.target!.bucket).requireTarget(route.target!.object, query);
    const rewriteToken = randomUUID();
    server.rewrites.set(rewriteToken, { generation: source.generation, bytes });
    return answer({ ...common, done: false, rewriteToken }, query);
  }
  return answer({ ...common, done: true, resource: resourceOf(route.target!.bucket, copyWhole(server, bucket, route, received)) }, query);
}

/** https://cloud.google.com/storage/docs/json_api/v1/buckets#resource */
function bucketResource(bucket: Bucket): unknown {
  return {
    kind: 'storage#bucket', id: bucket.name, name: bucket.name, metageneration: '1', location: bucket.options.location ?? 'US', storageClass: 'STANDARD', etag: 'CAE=',
    timeCreated: new Date(bucket.created_ms).toISOString(), updated: new Date(bucket.created_ms).toISOString(),
    ...(bucket.options.requesterPays === true ? { billing: { requesterPays: true } } : {}),
  };
}

/** A token for workload identity federation. RFC 8693 §2.2, RFC 6749 §5.2 */
function token(server: GcsServer): Answer {
  const { tokens } = server;
  const plain = new Map<string, string>();
  if ('error' in tokens) return answer({ error: tokens.error, error_description: tokens.description }, plain, 400);
  return answer(
    { access_token: server.issueToken(), issued_token_type: 'urn:ietf:params:oauth:token-type:access_token', token_type: 'Bearer', expires_in: tokens.lifetime_s }, plain,
  );
}
