/** What the S3 server of the tests answers: requests of S3's API as calls of a MemoryStore. */
import { StorageError } from '../../../src/storage/object/errors.js';
import { HEADERS, KEPT, TAGS } from '../../../src/storage/object/attachments.js';
import type { Condition, ObjectHeaders, ObjectInfo, ObjectStore, Part } from '../../../src/storage/object/store.js';
import type { S3Request } from './server.js';

export interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string>>;
  readonly body: Buffer;
}

export class Refusal extends Error {
  constructor(
    readonly status: number,
    readonly code: string,
    message: string,
    /** Elements of the answer besides. */
    readonly more = '',
    readonly headers: Readonly<Record<string, string>> = {},
  ) {
    super(message);
  }
}

const XML = { 'content-type': 'application/xml' };
const NOTHING = Buffer.alloc(0);
const PAGE = 1000;

export function refusalOf(error: unknown): Answer {
  const { status, code, message = '', more = '', headers = {} } = error instanceof StorageError ? translated(error) : (error as Partial<Refusal>);
  if (status === undefined || code === undefined) throw error;
  return { ...xml('Error', `<Code>${code}</Code><Message>${text(message)}</Message>${more}<RequestId>request-1</RequestId>`, status), headers: { ...XML, ...headers } };
}

function translated(error: StorageError): Refusal {
  switch (error.code) {
    case 'not-found':
      return new Refusal(404, 'NoSuchKey', 'The specified key does not exist.');
    case 'archived':
      return new Refusal(403, 'InvalidObjectState', "The operation is not valid for the object's storage class");
    case 'changed':
      return new Refusal(412, 'PreconditionFailed', 'At least one of the pre-conditions you specified did not hold');
    default:
      return new Refusal(400, 'InvalidRequest', error.message);
  }
}

/** `lock`: elements of the bucket's default retention. */
export async function perform(store: ObjectStore, request: S3Request, body: Buffer, lock: string | null = null): Promise<Answer> {
  const { key, query, headers } = request;
  const upload = { key, id: query.get('uploadId') ?? '' };
  const number = Number(query.get('partNumber'));
  switch (request.operation) {
    case 'list':
      return list(store, query);
    case 'head':
      return { status: 200, headers: headersOf(await store.head(key)), body: NOTHING };
    case 'get':
      return get(store, key, headers);
    case 'tags':
      return tags(await store.head(key, { attachments: true }));
    case 'lock':
      if (lock === null) throw new Refusal(404, 'ObjectLockConfigurationNotFoundError', 'Object Lock configuration does not exist for this bucket');
      return xml('ObjectLockConfiguration', `<ObjectLockEnabled>Enabled</ObjectLockEnabled><Rule><DefaultRetention>${lock}</DefaultRetention></Rule>`);
    case 'put':
      return tagged(await store.put(key, body, { ...conditionOf(headers), ...described(headers) }));
    case 'delete':
      await store.remove(key, headers['if-match'] === undefined ? {} : { version: unquoted(headers['if-match']) });
      return { status: 204, headers: {}, body: NOTHING };
    case 'copy': {
      const options = { ...conditionOf(headers), ...copied(await store.head(sourceOf(headers), { attachments: true }), headers) };
      return xml('CopyObjectResult', etag(await store.copy(sourceOf(headers), key, { ...options, ...sourceVersion(headers) })));
    }
    case 'begin':
      return xml('InitiateMultipartUploadResult', `<UploadId>${(await store.beginUpload(key, described(headers))).id}</UploadId>`);
    case 'part':
      return tagged((await store.putPart(upload, number, body)).tag);
    case 'copy-part': {
      const [, from, to] = /^bytes=(\d+)-(\d+)$/.exec(String(headers['x-amz-copy-source-range']))!;
      const source = { key: sourceOf(headers), version: unquoted(headers['x-amz-copy-source-if-match']), offset: Number(from), bytes: Number(to) - Number(from) + 1 };
      return xml('CopyPartResult', etag((await store.copyPart(upload, number, source)).tag));
    }
    case 'complete':
      return xml('CompleteMultipartUploadResult', etag(await store.completeUpload(upload, partsOf(body), conditionOf(headers))));
    case 'abort':
      await store.abortUpload(upload);
      return { status: 204, headers: {}, body: NOTHING };
    case 'uploads': {
      const { uploads } = await store.listUploads({ prefix: query.get('prefix') ?? '' });
      return xml('ListMultipartUploadsResult', uploads.map(({ key, id, begun_ms }) =>
        `<Upload><Key>${encodeURIComponent(key)}</Key><UploadId>${id}</UploadId><Initiated>${new Date(begun_ms).toISOString()}</Initiated></Upload>`).join(''));
    }
  }
}

async function get(store: ObjectStore, key: string, headers: S3Request['headers']): Promise<Answer> {
  const info = await store.head(key);
  const [, from = '0', to = String(info.size - 1)] = /^bytes=(\d+)-(\d+)$/.exec(headers.range ?? '') ?? [];
  const offset = Number(from);
  if (headers['if-match'] !== undefined && unquoted(headers['if-match']) !== info.version) throw new Refusal(412, 'PreconditionFailed', 'changed');
  if (headers.range !== undefined && offset >= info.size) throw new Refusal(416, 'InvalidRange', 'The requested range is not satisfiable');
  const body = Buffer.alloc(Math.min(Number(to) + 1, info.size) - offset);
  await store.read(key, { offset, into: body });
  const range = headers.range === undefined ? {} : { 'content-range': `bytes ${offset}-${offset + body.length - 1}/${info.size}` };
  return { status: headers.range === undefined ? 200 : 206, headers: { ...headersOf(info), 'content-length': String(body.length), ...range }, body };
}

async function list(store: ObjectStore, query: URLSearchParams): Promise<Answer> {
  const limit = Number(query.get('max-keys') ?? PAGE);
  const [after, token] = [query.get('start-after'), query.get('continuation-token')];
  const page = await store.list({
    prefix: query.get('prefix') ?? '', limit, ...(query.get('delimiter') === '/' ? { delimiter: '/' as const } : {}), ...(after === null ? {} : { after }),
    ...(token === null ? {} : { token: decodeURIComponent(token) }),
  });
  const objects = page.objects.map((one) =>
    `<Contents><Key>${encodeURIComponent(one.key)}</Key><Size>${one.size}</Size>${etag(one.version)}<LastModified>${new Date(one.modified_ms).toISOString()}</LastModified>${one.archiveClass === true ? '<StorageClass>GLACIER</StorageClass>' : ''}</Contents>`);
  const prefixes = page.prefixes.map((prefix) => `<CommonPrefixes><Prefix>${encodeURIComponent(prefix)}</Prefix></CommonPrefixes>`);
  const next = page.next === null ? '' : `<NextContinuationToken>${encodeURIComponent(page.next)}</NextContinuationToken>`;
  return xml('ListBucketResult', `<Name>bucket</Name><IsTruncated>${page.next !== null}</IsTruncated>${next}${objects.join('')}${prefixes.join('')}`);
}

function headersOf({ size, version, modified_ms, metadata, headers }: ObjectInfo): Record<string, string> {
  const own = Object.entries(metadata ?? {}).map(([name, value]) => [`x-amz-meta-${name}`, value] as const);
  return {
    'content-length': String(size), etag: `"${version}"`, 'last-modified': new Date(modified_ms).toUTCString(), ...pick(headers!, (name) => KEPT.includes(name)),
    ...Object.fromEntries(own),
  };
}

function described(headers: S3Request['headers']): { metadata: Record<string, string>; headers: Record<string, string> } {
  const metadata = Object.fromEntries(
    Object.entries(headers).filter(([name]) => name.startsWith('x-amz-meta-')).map(([name, value]) => [name.slice('x-amz-meta-'.length), String(value)]));
  const kept = Object.fromEntries(HEADERS.flatMap((name) => (headers[name] === undefined ? [] : [[name, String(headers[name])]])));
  return { metadata, headers: kept };
}

/** What a copy has: directives decide of metadata and tags, and what is neither comes from the request alone. API_CopyObject.html */
function copied(source: ObjectInfo, headers: S3Request['headers']): { metadata: Record<string, string>; headers: ObjectHeaders } {
  const asked = described(headers);
  const replaces = headers['x-amz-metadata-directive'] === 'REPLACE';
  const own = pick(source.headers!, (name) => !name.startsWith('x-amz-'));
  const { [TAGS]: given = '', ...rest } = asked.headers;
  const tags = headers['x-amz-tagging-directive'] === 'REPLACE' ? given : source.headers![TAGS] ?? '';
  return { metadata: replaces ? asked.metadata : { ...source.metadata }, headers: { ...(replaces ? {} : own), ...rest, [TAGS]: tags } };
}

const pick = (headers: ObjectHeaders, wanted: (name: string) => boolean): ObjectHeaders => Object.fromEntries(Object.entries(headers).filter(([name]) => wanted(name)));

/** API_GetObjectTagging.html */
function tags({ headers }: ObjectInfo): Answer {
  const set = [...new URLSearchParams(headers![TAGS] ?? '')].map(([name, value]) => `<Tag><Key>${text(name)}</Key><Value>${text(value)}</Value></Tag>`);
  return xml('Tagging', `<TagSet>${set.join('')}</TagSet>`);
}

function conditionOf(headers: S3Request['headers']): { condition?: Condition } {
  if (headers['if-none-match'] === '*') return { condition: { absent: true } };
  return headers['if-match'] === undefined ? {} : { condition: { version: unquoted(headers['if-match']) } };
}

const sourceVersion = (headers: S3Request['headers']): { sourceVersion?: string } =>
  headers['x-amz-copy-source-if-match'] === undefined ? {} : { sourceVersion: unquoted(headers['x-amz-copy-source-if-match']) };

/** "bucket/key", of this bucket. */
function sourceOf(headers: S3Request['headers']): string {
  const source = decodeURIComponent(String(headers['x-amz-copy-source']));
  return source.slice(source.indexOf('/', 1) + 1);
}

const partsOf = (body: Buffer): Part[] =>
  [...body.toString().matchAll(/<Part>(.*?)<\/Part>/gs)].map(([, part]) => ({
    number: Number(/<PartNumber>(\d+)</.exec(part)![1]), tag: /<ETag>(?:&quot;|")?([^<"&]+)/.exec(part)?.[1] ?? '', bytes: 0,
  }));

const unquoted = (tag: string | string[] | undefined): string => String(tag).replace(/^"(.*)"$/, '$1');
const etag = (version: string): string => `<ETag>&quot;${version}&quot;</ETag>`;
const text = (value: string): string => value.replaceAll('&', '&amp;').replaceAll('<', '&lt;');
const tagged = (version: string): Answer => ({ status: 200, headers: { etag: `"${version}"` }, body: NOTHING });

function xml(name: string, content: string, status = 200): Answer {
  return { status, headers: XML, body: Buffer.from(`<?xml version="1.0" encoding="UTF-8"?>\n<${name}>${content}</${name}>`) };
}
