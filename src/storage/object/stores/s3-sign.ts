/**
 * Signature Version 4, as S3 wants it: paths are escaped once and not normalised, and the hash of the content is a header.
 * https://docs.aws.amazon.com/AmazonS3/latest/API/sig-v4-header-based-auth.html
 */
import { createHash, createHmac } from 'node:crypto';
import type { Header } from './http-content.js';

export interface Credentials {
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
  readonly sessionToken?: string;
}

export interface Unsigned {
  readonly method: string;
  /** Escaped; as it is sent, without query. */
  readonly path: string;
  /** Escaped, in the order of names; as it is sent. */
  readonly query: string;
  /** All that are to be signed, `host` among them. */
  readonly headers: readonly Header[];
  /** Of the content: SHA-256 in hex, or one of the words for content that is not signed. */
  readonly contentHash: string;
}

/** Sent, but not signed: what is between here and the provider may change it. The SDK does the same. */
const CACHE_CONTROL = 'cache-control';

const ALGORITHM = 'AWS4-HMAC-SHA256';

export const sha256Hex = (data: string | Uint8Array): string => createHash('sha256').update(data).digest('hex');
const hmac = (key: string | Buffer, data: string): Buffer => createHmac('sha256', key).update(data).digest();

/** Escapes all but unreserved characters; encodeURIComponent spares five more. */
export function escaped(text: string): string {
  return encodeURIComponent(text).replace(/[!'()*]/g, (character) => `%${character.charCodeAt(0).toString(16).toUpperCase()}`);
}

/** A key as a path, whose slashes stay. */
export function escapedKey(key: string): string {
  return /^[\w.~/-]*$/.test(key) ? key : key.split('/').map(escaped).join('/');
}

/** "name=value&...", escaped, in order; without those that are undefined. */
export function queryOf(parameters: Readonly<Record<string, string | number | undefined>>): string {
  return Object.keys(parameters).sort()
    .flatMap((name) => (parameters[name] === undefined ? [] : [`${escaped(name)}=${escaped(String(parameters[name]))}`]))
    .join('&');
}

/** For one region. The key is derived once for a day and its credentials. */
export class Signer {
  #day = '';
  #secret = '';
  #key: Buffer = Buffer.alloc(0);

  constructor(readonly region: string) {}

  /** @returns all headers that the request has then */
  sign(request: Unsigned, credentials: Credentials, now_ms: number): Header[] {
    const time = new Date(now_ms).toISOString().replace(/[-:]|\.\d+/g, '');
    const day = time.slice(0, 8);
    const headers: Header[] = [...request.headers, ['x-amz-content-sha256', request.contentHash], ['x-amz-date', time]];
    if (credentials.sessionToken !== undefined && credentials.sessionToken !== '') headers.push(['x-amz-security-token', credentials.sessionToken]);
    headers.sort(([a], [b]) => (a < b ? -1 : a > b ? 1 : 0));
    let lines = '';
    let names = '';
    for (const [name, value] of headers) {
      if (name === CACHE_CONTROL) continue;
      lines += `${name}:${canonical(value)}\n`;
      names += names === '' ? name : `;${name}`;
    }
    const scope = `${day}/${this.region}/s3/aws4_request`;
    const summary = sha256Hex(`${request.method}\n${request.path}\n${request.query}\n${lines}\n${names}\n${request.contentHash}`);
    const signature = createHmac('sha256', this.#keyFor(day, credentials)).update(`${ALGORITHM}\n${time}\n${scope}\n${summary}`).digest('hex');
    headers.push(['authorization', `${ALGORITHM} Credential=${credentials.accessKeyId}/${scope}, SignedHeaders=${names}, Signature=${signature}`]);
    return headers;
  }

  #keyFor(day: string, { secretAccessKey }: Credentials): Buffer {
    if (day !== this.#day || secretAccessKey !== this.#secret) {
      this.#key = [day, this.region, 's3', 'aws4_request'].reduce<string | Buffer>(hmac, `AWS4${secretAccessKey}`) as Buffer;
      this.#day = day;
      this.#secret = secretAccessKey;
    }
    return this.#key;
  }
}

/** Without spaces around, and with single ones inside. */
function canonical(value: string): string {
  return /^\s|\s$|\s\s|[^\S ]/.test(value) ? value.trim().replace(/\s+/g, ' ') : value;
}
