/** CRC-32C (Castagnoli, reflected polynomial 0x82f63b78), as Google Cloud Storage checks content. RFC 3720 appendix B.4 */
import { read } from 'node:fs';
import { promisify } from 'node:util';
import { StorageError } from '../errors.js';
import type { Body } from '../store.js';

const POLYNOMIAL = 0x82f63b78;
/** Bytes of a file that are read, and worked on without a pause, at once. */
const STEP = 1 << 20;

const readFd = promisify(read);

/** Eight tables of 256: table k is a byte followed by k bytes of zeros, so that eight bytes are done in one step. */
const TABLES = ((): Int32Array => {
  const tables = new Int32Array(8 * 256);
  for (let byte = 0; byte < 256; byte++) {
    let crc = byte;
    for (let bit = 0; bit < 8; bit++) crc = (crc & 1) !== 0 ? (crc >>> 1) ^ POLYNOMIAL : crc >>> 1;
    tables[byte] = crc;
  }
  for (let at = 256; at < tables.length; at++) tables[at] = (tables[at - 256] >>> 8) ^ tables[tables[at - 256] & 0xff];
  return tables;
})();

/** @param crc of what came before; 0 at the start. @returns u32 */
export function crc32c(bytes: Uint8Array, crc = 0): number {
  let c = ~crc;
  let i = 0;
  for (const end = bytes.length - 7; i < end; i += 8) {
    const x = c ^ (bytes[i] | (bytes[i + 1] << 8) | (bytes[i + 2] << 16) | (bytes[i + 3] << 24));
    c =
      TABLES[1792 + (x & 0xff)] ^ TABLES[1536 + ((x >>> 8) & 0xff)] ^ TABLES[1280 + ((x >>> 16) & 0xff)] ^ TABLES[1024 + (x >>> 24)] ^
      TABLES[768 + bytes[i + 4]] ^ TABLES[512 + bytes[i + 5]] ^ TABLES[256 + bytes[i + 6]] ^ TABLES[bytes[i + 7]];
  }
  for (; i < bytes.length; i++) c = (c >>> 8) ^ TABLES[(c ^ bytes[i]) & 0xff];
  return ~c >>> 0;
}

/** As resources and headers have it: the four bytes, most significant first, in base64. */
export function crc32cText(crc: number): string {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(crc);
  return bytes.toString('base64');
}

/** @param sums of an answer: x-goog-hash, which may have none. @throws StorageError `checksum` when these are other bytes */
export function checkCrc32c(bytes: Uint8Array, sums: string | string[] | undefined, operation: string): void {
  const sum = /(?:^|,\s*)crc32c=([A-Za-z0-9+/=]+)/.exec(String(sums ?? ''))?.[1];
  if (sum === undefined || crc32cText(crc32c(bytes)) === sum) return;
  throw new StorageError('checksum', operation, { providerMessage: `these bytes have not the CRC-32C ${sum}` });
}

/** @throws StorageError `short-body` when the file ends before the range does */
export async function bodyCrc32c(body: Body, operation: string): Promise<number> {
  if (body instanceof Uint8Array) return crc32c(body);
  const buffer = Buffer.allocUnsafe(Math.min(STEP, body.bytes));
  let crc = 0;
  for (let at = 0; at < body.bytes; ) {
    const { bytesRead } = await readFd(body.fd, buffer, 0, Math.min(buffer.length, body.bytes - at), body.offset + at);
    if (bytesRead === 0) throw new StorageError('short-body', operation, { providerMessage: `the file ends ${body.bytes - at} bytes early` });
    crc = crc32c(buffer.subarray(0, bytesRead), crc);
    at += bytesRead;
  }
  return crc;
}
