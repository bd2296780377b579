/**
 * Reads what an endpoint sends: numbers, versions, dates, keys, tokens, locations, ranges, texts. Both stores read every answer with it.
 *
 * The rule *nothing of an answer counts before it was read here*: a value has the type and the range that the rest of the daemon relies on, or
 * the call fails with a StorageError. What is missing is never replaced by a value that means something, such as a size of 0.
 */
import { StorageError } from '../errors.js';
import type { Metadata, Version } from '../store.js';

/** Of names and values together: more than any provider takes, and less than a head of HTTP has. */
const METADATA_MAX_BYTES = 64 << 10;
/** S3's are some hundred bytes, and those of services that put the last key into it, as %XX or in base64, some 3 KiB. */
const TOKEN_MAX_LENGTH = 4 << 10;
const ETAG_MAX_LENGTH = 1 << 10;
/** 9999-12-31, and as far back. */
const TIME_MAX_MS = 253_402_300_799_999;
const SAID_MAX_LENGTH = 500;

/** What was asked for of an object's content. Bytes. */
export interface Wanted {
  readonly offset: number;
  readonly length: number;
}

/** What follows of it, by Content-Range: "bytes 5-9/100". */
export interface AnsweredRange {
  readonly bytes: number;
  /** Of the whole object; null: it is not said. */
  readonly size: number | null;
}

export type Fields = Readonly<Record<string, unknown>>;

export class AnswerReader {
  constructor(
    /** For messages: "head s3://bucket/key". */
    readonly operation: string,
    /** The call changes something: that its answer makes no sense does not say whether it did. */
    readonly changes = false,
  ) {}

  /** The error for an answer that makes no sense. */
  wrong(why: string): StorageError {
    return new StorageError('unexpected', this.operation, { providerMessage: `the answer makes no sense: ${why}`, ...(this.changes ? { ambiguous: true } : {}) });
  }

  /** A whole number in decimal digits, 0 to `max`. @throws StorageError */
  count(what: string, value: unknown, max = Number.MAX_SAFE_INTEGER): number {
    const number = typeof value === 'number' ? value : typeof value === 'string' && /^\d{1,16}$/.test(value) ? Number(value) : NaN;
    if (!Number.isSafeInteger(number) || number < 0 || number > max) throw this.wrong(`${what} is ${shown(value)}`);
    return number;
  }

  /** A generation of Google Cloud Storage: 64 bits as decimal digits. https://cloud.google.com/storage/docs/json_api/v1/objects @throws StorageError */
  generation(what: string, value: unknown): string {
    if (typeof value !== 'string' || !/^\d{1,19}$/.test(value)) throw this.wrong(`${what} is ${shown(value)}`);
    return value;
  }

  /** An entity tag without its quotes: one that a condition can have, so no weak one. RFC 9110 §8.8.3 @throws StorageError */
  etag(value: unknown): Version {
    const text = typeof value === 'string' ? value.trim() : '';
    const tag = text.length >= 2 && text.startsWith('"') && text.endsWith('"') ? text.slice(1, -1) : text;
    if (tag === '' || tag.length > ETAG_MAX_LENGTH || !/^[\x21\x23-\x7e]+$/.test(tag)) throw this.wrong(`the ETag is ${shown(value)}`);
    return tag;
  }

  /** Milliseconds since 1970. @throws StorageError */
  time_ms(what: string, value: unknown): number {
    const ms = value instanceof Date ? value.getTime() : typeof value === 'string' && value.length < 64 ? Date.parse(value) : NaN;
    if (!Number.isFinite(ms) || Math.abs(ms) > TIME_MAX_MS) throw this.wrong(`${what} is ${shown(value)}`);
    return ms;
  }

  /** Of a page, an upload, a copy that goes on: sent back as it is. @throws StorageError */
  token(what: string, value: unknown): string {
    if (typeof value !== 'string' || value === '' || value.length > TOKEN_MAX_LENGTH || !isText(value)) throw this.wrong(`${what} is ${shown(value)}`);
    return value;
  }

  /** The name of an object, or of what begins like several. @throws StorageError */
  key(value: unknown, prefix: string, maxBytes: number): string {
    if (typeof value !== 'string' || value === '' || !isText(value) || Buffer.byteLength(value) > maxBytes) throw this.wrong(`a key is ${shown(value)}`);
    if (!value.startsWith(prefix)) throw this.wrong(`the key ${shown(value)} does not begin with ${shown(prefix)}`);
    return value;
  }

  /** @throws StorageError */
  text(what: string, value: unknown, maxLength: number): string {
    if (typeof value !== 'string' || value.length > maxLength || !isText(value)) throw this.wrong(`${what} is ${shown(value)}`);
    return value;
  }

  flag(what: string, value: unknown): boolean {
    if (typeof value !== 'boolean') throw this.wrong(`${what} is ${shown(value)}`);
    return value;
  }

  /** An object of JSON. @throws StorageError */
  fields(what: string, value: unknown): Fields {
    if (typeof value !== 'object' || value === null || Array.isArray(value)) throw this.wrong(`${what} is ${shown(value)}`);
    return value as Fields;
  }

  /** A list of JSON; one that is empty may be left out. @throws StorageError */
  list(what: string, value: unknown = [], max: number): readonly unknown[] {
    if (!Array.isArray(value) || value.length > max) throw this.wrong(`${what} is ${Array.isArray(value) ? `of ${value.length} entries, not at most ${max}` : shown(value)}`);
    return value;
  }

  json(body: Buffer): Fields {
    let value: unknown;
    try {
      value = JSON.parse(body.toString());
    } catch {
      throw this.wrong('it is no JSON');
    }
    return this.fields('it', value);
  }

  /** Metadata of JSON; what has none may leave it out. @throws StorageError */
  metadata(value: unknown = {}): Metadata {
    let bytes = 0;
    const entries = Object.entries(this.fields('the metadata', value)).map(([name, one]) => {
      const text = this.text(`the metadata ${shown(name)}`, one, METADATA_MAX_BYTES);
      bytes += name.length + text.length;
      return [name, text] as const;
    });
    if (bytes > METADATA_MAX_BYTES) throw this.wrong(`it has ${bytes} bytes of metadata`);
    return Object.fromEntries(entries);
  }

  /**
   * Where a request goes on: at the endpoint that was asked, and nowhere else. Content and whatever lets one write it are not for a host that somebody in
   * between has named. @throws StorageError
   */
  location(value: unknown, endpoint: URL): URL {
    const text = this.token('the location', value);
    const url = URL.canParse(text) ? new URL(text) : null;
    if (url === null || url.origin !== endpoint.origin || url.username !== '' || url.password !== '') throw this.wrong(`it goes on at ${shown(value)}, which is not at ${endpoint.origin}`);
    return url;
  }

  /** The range that follows: the one that was asked for, or all that there is of it. @throws StorageError */
  range(value: unknown, wanted: Wanted): AnsweredRange {
    const parsed = typeof value === 'string' ? /^bytes (\d{1,16})-(\d{1,16})\/(\d{1,16}|\*)$/.exec(value) : null;
    if (parsed === null) throw this.#range(wanted, value);
    const [from, to] = [this.count('a range', parsed[1]), this.count('a range', parsed[2])];
    const size = parsed[3] === '*' ? null : this.count('a size', parsed[3]);
    const end = wanted.offset + wanted.length;
    if (from !== wanted.offset || to + 1 !== (size === null ? end : Math.min(end, size)) || to < from) throw this.#range(wanted, value);
    return { bytes: to - from + 1, size };
  }

  #range({ offset, length }: Wanted, value: unknown): StorageError {
    return this.wrong(`asked for ${length} bytes from ${offset}, got ${value === undefined ? 'no range' : shown(value)}`);
  }
}

/** A region that an answer names: one that can be a part of a host's name. undefined: it names none. */
export const regionIn = (value: unknown): string | undefined => (typeof value === 'string' && /^[a-z0-9-]{1,64}$/.test(value) ? value : undefined);

/** What a provider says in its own words, for people: one line, and not a long one. undefined: nothing. */
export function saidIn(value: unknown): string | undefined {
  if (typeof value !== 'string') return undefined;
  const line = value.slice(0, SAID_MAX_LENGTH).replace(/[\p{Cc}\p{Surrogate}\u2028\u2029]+/gu, ' ');
  return line.trim() === '' ? undefined : line;
}

/** Milliseconds to wait, from seconds or a date; null: it does not say. RFC 9110 §10.2.3 */
export function retryAfterIn(value: unknown, now_ms = Date.now()): number | null {
  if (typeof value !== 'string' || value.length > 64) return null;
  if (/^\d{1,9}$/.test(value.trim())) return Number(value) * 1000;
  const date = Date.parse(value);
  return Number.isNaN(date) ? null : Math.max(0, date - now_ms);
}

/** Without halves of surrogate pairs, which no UTF-8 has. */
const isText = (value: string): boolean => !/\p{Surrogate}/u.test(value);

/** A value in a message. */
function shown(value: unknown): string {
  if (value === undefined) return 'missing';
  const text = typeof value === 'string' ? JSON.stringify(value.length > 80 ? `${value.slice(0, 80)}...` : value) : Array.isArray(value) ? 'a list' : typeof value === 'object' && value !== null && !(value instanceof Date) ? 'an object' : String(value);
  return saidIn(text) ?? text;
}
