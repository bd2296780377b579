/**
 * Checksums of content, and bodies as they are sent with them.
 * https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity.html
 */
import { createHash } from 'node:crypto';
import { crc32 } from 'node:zlib';
import { bodyBytes, bodyContent } from '../body.js';
import { StorageError } from '../errors.js';
import type { Body } from '../store.js';
import { crc32c, crc32cText as base64 } from './gcs-crc32c.js';
import { STEP, type Content, type Framing, type Header } from './http-content.js';
import { sha256Hex } from './s3-sign.js';

/** Files up to this are sent as one piece of memory, with their hash. */
const AT_ONCE = STEP;

export const NOTHING_HASH = sha256Hex('');
/** https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html: content that is not part of the signature */
const UNSIGNED = 'UNSIGNED-PAYLOAD';
/** https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-streaming-trailers.html: nor is this, but a checksum comes behind it */
export const UNSIGNED_TRAILER = 'STREAMING-UNSIGNED-PAYLOAD-TRAILER';
const TRAILER = 'x-amz-checksum-crc32';

/** How a body is sent. */
export interface Prepared {
  readonly headers: readonly Header[];
  readonly contentHash: string;
  readonly content: Content;
}

export const NO_BODY: Prepared = { headers: [], contentHash: NOTHING_HASH, content: null };

/** @param checksums whether the provider gets CRC-32 of it. @throws StorageError `short-body` when the file ends before the range does */
export function prepared(body: Body, checksums: boolean, operation: string): Prepared {
  const bytes = bodyBytes(body);
  if (body instanceof Uint8Array || bytes <= AT_ONCE) {
    const content = bodyContent(body, operation);
    const sum: Header[] = checksums ? [['x-amz-sdk-checksum-algorithm', 'CRC32'], [TRAILER, base64(crc32(content))]] : [];
    return { headers: [['content-length', String(bytes)], ...sum], contentHash: sha256Hex(content), content: [content] };
  }
  if (!checksums) return { headers: [['content-length', String(bytes)]], contentHash: UNSIGNED, content: { range: body } };
  const headers: Header[] = [
    ['content-encoding', 'aws-chunked'], ['content-length', String(chunkedBytes(bytes))], ['x-amz-decoded-content-length', String(bytes)],
    ['x-amz-sdk-checksum-algorithm', 'CRC32'], ['x-amz-trailer', TRAILER],
  ];
  return { headers, contentHash: UNSIGNED_TRAILER, content: { range: body, framing: chunks } };
}

/** What comes before the bytes of a chunk. */
const chunkHead = (bytes: number): string => `${bytes.toString(16)}\r\n`;
const CHUNK_END = '\r\n';
/** Behind the last chunk; base64 of four bytes has eight characters always. */
const chunkedEnd = (sum: number): string => `0\r\n${TRAILER}:${base64(sum)}\r\n\r\n`;

/** The chunks of STREAMING-UNSIGNED-PAYLOAD-TRAILER. */
function chunks(): Framing {
  let sum = 0;
  return (piece, isLast) => {
    sum = crc32(piece, sum);
    return [chunkHead(piece.length), isLast ? CHUNK_END + chunkedEnd(sum) : CHUNK_END];
  };
}

function chunkedBytes(bytes: number): number {
  const framed = (size: number): number => chunkHead(size).length + size + CHUNK_END.length;
  const rest = bytes % STEP;
  return Math.floor(bytes / STEP) * framed(STEP) + (rest === 0 ? 0 : framed(rest)) + chunkedEnd(0).length;
}

const digest = (algorithm: string) => (bytes: Uint8Array): string => createHash(algorithm).update(bytes).digest('base64');

/** The headers that a checksum of the bytes may be in. The first of an answer is compared: the fastest that there are several of. */
const SUMS: readonly (readonly [header: string, of: (bytes: Uint8Array) => string])[] = [
  ['x-amz-checksum-crc32', (bytes) => base64(crc32(bytes))],
  ['x-amz-checksum-sha256', digest('sha256')],
  ['x-amz-checksum-sha1', digest('sha1')],
  ['x-amz-checksum-crc32c', (bytes) => base64(crc32c(bytes))],
  ['x-amz-checksum-crc64nvme', (bytes) => crc64nvme(bytes)],
  ['x-amz-checksum-md5', digest('md5')],
  ['x-amz-checksum-sha512', digest('sha512')],
];

/** Of an object in parts this is no checksum of its bytes, but one of the checksums of its parts; their number follows. */
const OF_PARTS = /-\d{1,5}$/;

/**
 * Whether what came is what the answer's headers say. @returns false when they have a checksum, but none that is known here.
 * @throws StorageError `checksum`
 */
export function verified(headers: Readonly<Record<string, string | string[] | undefined>>, bytes: Uint8Array, operation: string): boolean {
  for (const [header, of] of SUMS) {
    const expected = headers[header];
    if (typeof expected !== 'string' || OF_PARTS.test(expected)) continue;
    const found = of(bytes);
    if (found !== expected) throw new StorageError('checksum', operation, { providerMessage: `${header} says ${expected}, and the bytes that came have ${found}` });
    return true;
  }
  return !Object.keys(headers).some((name) =>
    name.startsWith('x-amz-checksum-') && name !== 'x-amz-checksum-type' && typeof headers[name] === 'string' && !OF_PARTS.test(headers[name]));
}

/**
 * CRC-64/NVME (reflected polynomial 0x9a6c9329ac4bc9b5), which S3 computes for what came without a checksum. Table k is a byte followed by
 * k bytes of zeros, in words of 32 bits: upper, lower.
 */
const CRC64: { readonly high: Int32Array; readonly low: Int32Array } = { high: new Int32Array(8 * 256), low: new Int32Array(8 * 256) };

function fillCrc64(): void {
  const { high, low } = CRC64;
  for (let byte = 0; byte < 256; byte++) {
    let crc = BigInt(byte);
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1n) !== 0n ? (crc >> 1n) ^ 0x9a6c9329ac4bc9b5n : crc >> 1n;
    high[byte] = Number(crc >> 32n);
    low[byte] = Number(crc & 0xffffffffn);
  }
  for (let at = 256; at < high.length; at++) {
    const [h, l] = [high[at - 256], low[at - 256]];
    low[at] = ((l >>> 8) | (h << 24)) ^ low[l & 0xff];
    high[at] = (h >>> 8) ^ high[l & 0xff];
  }
}

/** @returns eight bytes, most significant first, in base64 */
export function crc64nvme(bytes: Uint8Array): string {
  const { high, low } = CRC64;
  if (low[255] === 0) fillCrc64();
  let h = -1;
  let l = -1;
  let i = 0;
  for (const end = bytes.length - 7; i < end; i += 8) {
    const x = l ^ (bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24));
    const y = h ^ (bytes[i + 4] | (bytes[i + 5] << 8) | (bytes[i + 6] << 16) | (bytes[i + 7] << 24));
    const a = 1792 + (x & 0xff), b = 1536 + ((x >>> 8) & 0xff), c = 1280 + ((x >>> 16) & 0xff), d = 1024 + (x >>> 24);
    const e = 768 + (y & 0xff), f = 512 + ((y >>> 8) & 0xff), g = 256 + ((y >>> 16) & 0xff), k = y >>> 24;
    h = high[a] ^ high[b] ^ high[c] ^ high[d] ^ high[e] ^ high[f] ^ high[g] ^ high[k];
    l = low[a] ^ low[b] ^ low[c] ^ low[d] ^ low[e] ^ low[f] ^ low[g] ^ low[k];
  }
  for (; i < bytes.length; i++) {
    const at = (l ^ bytes[i]) & 0xff;
    l = ((l >>> 8) | (h << 24)) ^ low[at];
    h = (h >>> 8) ^ high[at];
  }
  const sum = Buffer.alloc(8);
  sum.writeInt32BE(~h, 0);
  sum.writeInt32BE(~l, 4);
  return sum.toString('base64');
}
