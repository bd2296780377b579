/**
 * File names ↔ components of keys, one to one.
 *
 * A key is cut at its slashes; nearly every component is a file name as it is. What is not gets an escape, which begins
 * with "%~" so that a person can type it:
 *
 *   component of the key             name in the guest
 *   '' (as in a//b, or /a)           %~e
 *   '.' and '..'                     %~d  %~dd
 *   "%~" inside                      %~~
 *   longer than 255 bytes, or NUL    its beginning, %~l and 32 hex digits of a hash: found again by listing
 *   the object foo, where there is
 *   also something below foo/        foo%~f  (foo is the directory; once that is gone, foo is the object's name too)
 *
 * The other way round, names are bytes and keys are Unicode text: a byte that is not part of valid UTF-8 is %~xHH in the
 * key, and a lone surrogate cannot come up. A key may have a NUL, which no name has. Names that contain "%~" in a way that no key leads to are refused
 * (EINVAL) instead of being given a second name.
 */
import { createHash } from 'node:crypto';

export const NAME_MAX_BYTES = 255;

const LEAD = '%~';
const FILE_SUFFIX = '%~f';
const LONG_MARK = '%~l';
const HASH_DIGITS = 32;
/** Beginning of a long component that its name keeps. */
const LONG_HEAD_BYTES = NAME_MAX_BYTES - LONG_MARK.length - HASH_DIGITS - FILE_SUFFIX.length;

const WHOLE = new Map([['', '%~e'], ['.', '%~d'], ['..', '%~dd']]);
const WHOLE_BACK = new Map([...WHOLE].map(([component, name]) => [name, component]));

/** What a name stands for. */
export type Named =
  | { readonly kind: 'component'; readonly component: string; /** Only the object, not what is below it. */ readonly object: boolean }
  /** A component that begins so and hashes so. */
  | { readonly kind: 'long'; readonly head: string; readonly hash: string; readonly object: boolean };

/** The name of a component of a key; `clash`: of the object, where a directory has the plain name. */
export function nameOf(component: string, clash = false): Uint8Array {
  const plain = WHOLE.get(component) ?? escape(component);
  const bytes = typeof plain === 'string' ? Buffer.from(plain) : plain;
  const suffix = clash ? FILE_SUFFIX : '';
  if (bytes.length + suffix.length <= NAME_MAX_BYTES && !component.includes('\0')) return clash ? Buffer.concat([bytes, Buffer.from(suffix)]) : bytes;
  return Buffer.from(headOf(component) + LONG_MARK + hashOf(component) + suffix);
}

/** What a name stands for, or null for one that no key leads to. */
export function parseName(name: Uint8Array): Named | null {
  let text = Buffer.from(name).toString('latin1');
  if (text === '' || text === '.' || text === '..' || text.includes('/') || text.includes('\0')) return null;
  const object = text.endsWith(FILE_SUFFIX) && !tildeEscaped(text, text.length - FILE_SUFFIX.length);
  if (object) text = text.slice(0, -FILE_SUFFIX.length);
  const whole = WHOLE_BACK.get(text);
  if (whole !== undefined) return { kind: 'component', component: whole, object };
  const long = /^(.*)%~l([0-9a-f]{32})$/s.exec(text);
  if (long !== null) {
    const head = Buffer.from(long[1], 'latin1').toString();
    return isHead(head) ? { kind: 'long', head, hash: long[2], object } : null;
  }
  const component = unescape(Buffer.from(text, 'latin1'));
  if (component === null || component === '') return null;
  // One name for one component: what would be called otherwise has not been found by this name
  return Buffer.from(nameOf(component, object)).equals(Buffer.from(name)) ? { kind: 'component', component, object } : null;
}

/** Whether a component is the one that a long name stands for. */
export function isLong(component: string, named: Named & { kind: 'long' }): boolean {
  return hashOf(component) === named.hash && headOf(component) === named.head;
}

const hashOf = (component: string): string => createHash('sha256').update(component).digest('hex').slice(0, HASH_DIGITS);

/** As much of the component as fits, in whole characters and up to a NUL, without its last escape if that would be cut. */
function headOf(component: string): string {
  let head = '';
  let bytes = 0;
  for (const character of component) {
    bytes += Buffer.byteLength(character);
    if (bytes > LONG_HEAD_BYTES || character === '\0') break;
    head += character;
  }
  // All that is before the first "__" is how the component begins
  return head === '' ? '__' : head.replaceAll(LEAD, '__');
}

const isHead = (head: string): boolean => !head.includes(LEAD) && Buffer.byteLength(head) <= LONG_HEAD_BYTES && head.length > 0;

/** Whether the "%~" at `at` is the second half of an escaped one: "%~~" before it. */
function tildeEscaped(text: string, at: number): boolean {
  return at >= 2 && text.slice(at - 2, at) === LEAD && !tildeEscaped(text, at - 2);
}

/** Component → name bytes. Canonical %~xHH (a byte that is no UTF-8) becomes the byte, any other "%~" becomes "%~~". */
function escape(component: string): Buffer | string {
  if (!component.includes(LEAD)) return component;
  const pieces: Buffer[] = [];
  let at = 0;
  for (let i = component.indexOf(LEAD); i >= 0; i = component.indexOf(LEAD, at)) {
    pieces.push(Buffer.from(component.slice(at, i)));
    const hex = /^%~x([89a-f][0-9a-f])/.exec(component.slice(i, i + 5));
    pieces.push(hex === null ? Buffer.from('%~~') : Buffer.from(hex[1], 'hex'));
    at = i + (hex === null ? 2 : 5);
  }
  pieces.push(Buffer.from(component.slice(at)));
  const name = Buffer.concat(pieces);
  // Bytes that make valid UTF-8 together would be taken for characters: then every "%~" is a plain one
  return unescape(name) === component ? name : component.replaceAll(LEAD, '%~~');
}

/** Name bytes → component; null where "%~" is followed by anything but "~". */
function unescape(name: Buffer): string | null {
  let component = '';
  for (const [valid, bytes] of runs(name)) component += valid ? unescapeText(bytes.toString()) ?? '\0' : [...bytes].map((b) => `%~x${b.toString(16)}`).join('');
  return component.includes('\0') ? null : component;
}

function unescapeText(text: string): string | null {
  let bad = false;
  const plain = text.replace(/%~(~?)/g, (_all, tilde: string) => {
    bad ||= tilde === '';
    return LEAD;
  });
  return bad ? null : plain;
}

/** The bytes cut into runs that are valid UTF-8 and runs that are not. */
function* runs(bytes: Buffer): Generator<[valid: boolean, bytes: Buffer]> {
  let from = 0;
  for (let at = 0; at < bytes.length; ) {
    const length = characterBytes(bytes, at);
    if (length > 0) {
      at += length;
      continue;
    }
    if (at > from) yield [true, bytes.subarray(from, at)];
    yield [false, bytes.subarray(at, at + 1)];
    from = ++at;
  }
  if (from < bytes.length) yield [true, bytes.subarray(from)];
}

/** Bytes of the UTF-8 character at `at` (RFC 3629), or 0 if there is none. */
function characterBytes(bytes: Uint8Array, at: number): number {
  const first = bytes[at];
  if (first < 0x80) return 1;
  const length = first >= 0xc2 && first <= 0xdf ? 2 : first >= 0xe0 && first <= 0xef ? 3 : first >= 0xf0 && first <= 0xf4 ? 4 : 0;
  if (length === 0 || at + length > bytes.length) return 0;
  const second = bytes[at + 1];
  const low = first === 0xe0 ? 0xa0 : first === 0xf0 ? 0x90 : 0x80;
  const high = first === 0xed ? 0x9f : first === 0xf4 ? 0x8f : 0xbf;
  if (second < low || second > high) return 0;
  for (let i = 2; i < length; i++) if ((bytes[at + i] & 0xc0) !== 0x80) return 0;
  return length;
}

/** The prefix of the directory that an object's key is in: '' or something that ends with a slash. */
export const directoryOf = (key: string): string => key.slice(0, key.lastIndexOf('/') + 1);
