/** How S3 writes what requests and answers carry: ETags, keys of listings, metadata. */
import type { Condition, Metadata } from '../store.js';

export const quoted = (tag: string): string => `"${tag}"`;

export function conditionOf(condition: Condition | undefined): { IfNoneMatch?: string; IfMatch?: string } {
  if (condition === undefined) return {};
  return 'absent' in condition ? { IfNoneMatch: '*' } : { IfMatch: quoted(condition.version) };
}

/** As CopySource has it: "bucket/key", each part of it escaped. */
export function copySource(bucket: string, key: string): string {
  return `${bucket}/${key}`.split('/').map(encodeURIComponent).join('/');
}

/** Keys in listings with EncodingType=url: as in forms, or with %20 for a space. Bytes that are no UTF-8, which S3 itself has not, are U+FFFD. */
export function decodeKey(encoded: string): string {
  if (!/[+%]/.test(encoded)) return encoded;
  const plain = encoded.replaceAll('+', ' ');
  try {
    return decodeURIComponent(plain);
  } catch {
    return Buffer.concat(plain.split(/(%[0-9A-Fa-f]{2})/).map((part, i) => Buffer.from(i % 2 === 1 ? part.slice(1) : part, i % 2 === 1 ? 'hex' : 'utf8'))).toString();
  }
}

/** RFC 2047, which AWS uses itself where metadata is not ASCII; also for spaces at the ends, which HTTP drops. */
const ENCODED = /^=\?UTF-8\?B\?([A-Za-z0-9+/=]*)\?=$/;
const PLAIN = /^(?! )[\x20-\x7e]*(?<! )$/;

export function encodeMetadata(metadata: Metadata): Record<string, string> {
  const encode = (value: string): string => (PLAIN.test(value) && !ENCODED.test(value) ? value : `=?UTF-8?B?${Buffer.from(value).toString('base64')}?=`);
  return Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name.toLowerCase(), encode(value)]));
}

export function decodeMetadata(metadata: Readonly<Record<string, string>>): Metadata {
  const decode = (value: string): string => {
    const encoded = ENCODED.exec(value);
    return encoded === null ? value : Buffer.from(encoded[1], 'base64').toString();
  };
  return Object.fromEntries(Object.entries(metadata).map(([name, value]) => [name.toLowerCase(), decode(value)]));
}
