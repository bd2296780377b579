/** Object content, whole or a range of it. https://cloud.google.com/storage/docs/json_api/v1/objects/get, RFC 9110 §14 */
import { gunzipSync } from 'node:zlib';
import { ApiError } from './errors.js';
import { etagOf, type Stored } from './objects.js';

export interface Answer {
  readonly status: number;
  readonly headers: Record<string, string>;
  readonly body: Buffer;
}

export function media(stored: Stored, range: string | undefined, acceptEncoding: string | undefined): Answer {
  const { fields } = stored;
  const headers: Record<string, string> = {
    'content-type': fields.contentType ?? 'application/octet-stream',
    etag: etagOf(stored),
    'last-modified': new Date(stored.updated_ms).toUTCString(),
    'x-goog-generation': String(stored.generation),
    'x-goog-metageneration': String(stored.metageneration),
    'x-goog-hash': `crc32c=${stored.crc32c}${stored.md5Hash === null ? '' : `,md5=${stored.md5Hash}`}`,
    'x-goog-stored-content-encoding': fields.contentEncoding ?? 'identity',
    'x-goog-stored-content-length': String(stored.content.length),
    'x-goog-storage-class': fields.storageClass ?? 'STANDARD',
    'accept-ranges': 'bytes',
    ...(stored.componentCount === null ? {} : { 'x-goog-component-count': String(stored.componentCount) }),
  };
  // https://cloud.google.com/storage/docs/transcoding: unless the caller takes gzip, it gets the unpacked whole.
  if (fields.contentEncoding === 'gzip' && !/\bgzip\b/.test(acceptEncoding ?? '')) {
    return { status: 200, headers, body: gunzipSync(stored.content) };
  }
  if (fields.contentEncoding !== undefined) headers['content-encoding'] = fields.contentEncoding;
  const wanted = parseRange(range, stored.content.length);
  if (wanted === null) return { status: 200, headers, body: stored.content };
  headers['content-range'] = `bytes ${wanted.start}-${wanted.end}/${stored.content.length}`;
  return { status: 206, headers, body: stored.content.subarray(wanted.start, wanted.end + 1) };
}

/** null: no range, or none that one has to heed. @throws 416 */
function parseRange(header: string | undefined, size: number): { start: number; end: number } | null {
  const match = /^bytes=(\d*)-(\d*)$/.exec(header ?? '');
  if (match === null || (match[1] === '' && match[2] === '')) return null;
  const [first, last] = [match[1], match[2]];
  if (first !== '' && last !== '' && Number(last) < Number(first)) return null;
  const start = first === '' ? Math.max(0, size - Number(last)) : Number(first);
  const end = first === '' || last === '' ? size - 1 : Math.min(Number(last), size - 1);
  if (start >= size || (first === '' && Number(last) === 0)) {
    throw new ApiError(416, 'requestedRangeNotSatisfiable', 'Request range not satisfiable', {
      locationType: 'header', location: 'Range', headers: { 'content-range': `bytes */${size}` },
    });
  }
  return { start, end };
}
