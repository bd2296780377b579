/**
 * What POSIX knows of a file, in the user metadata of its object: every convention in use is read, one is written.
 *
 *   read: s3fs      mode (decimal), uid, gid, mtime, ctime, atime (seconds[.fraction]), xattr; a link's target is its body
 *         geesefs   the same, rdev, --symlink-target
 *         rclone    mode (octal), uid, gid, mtime, atime (RFC 3339 or seconds)
 *         gcsfuse   gcsfuse_mtime (RFC 3339), gcsfuse_symlink_target
 *         gcloud    goog-reserved-posix-mode (octal), -uid, -gid, goog-reserved-file-mtime, -atime, goog-reserved-file-is-symlink
 *         DataSync, FSx   file-permissions (octal), file-owner, file-group, file-mtime, file-atime (nanoseconds with "ns")
 *   written on S3: s3fs's.  On Google Cloud Storage: gcloud's and gcsfuse's, and s3fs's for what those lack.
 *
 * A value that makes no sense counts as absent and is named in `ignored`. What other tools keep in the metadata stays.
 */
import { S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import type { Metadata } from './store.js';

/** Seconds since 1970 (may be negative) and nanoseconds of the second. */
export interface Time {
  readonly seconds: number;
  readonly nanoseconds: number;
}

/** null: the object does not say. */
export interface PosixMetadata {
  /** Type and permission bits; without type bits where only permissions are known. */
  readonly mode: number | null;
  readonly uid: number | null;
  readonly gid: number | null;
  readonly rdev: number | null;
  readonly mtime: Time | null;
  readonly atime: Time | null;
  readonly ctime: Time | null;
  /** The target where the metadata has it; '' says that the body is the target. */
  readonly symlink: string | null;
  readonly xattrs: ReadonlyMap<string, Uint8Array> | null;
}

export type Convention = 's3' | 'gcs';

const ID_MAX = 0xfffffffe;
/** 12 bits of major and 20 of minor number. */
const DEVICE_MAX = 0xffffffff;
export const PERMISSIONS = 0o7777;
const TYPES: ReadonlySet<number> = new Set([0o010000, 0o020000, 0o040000, 0o060000, 0o100000, 0o120000, 0o140000]);
/** 9999-12-31, and as far back: whatever is farther is a mistake. */
const SECONDS_MAX = 253_402_300_799;

type Reader<T> = (value: string) => T | null;

const readers = {
  mode: readMode,
  octal: (value: string) => (/^0?[0-7]{1,6}$/.test(value) ? validMode(parseInt(value, 8)) : null),
  // 2^32 − 1 is nobody's (chown(2))
  id: (value: string) => numberUpTo(value, ID_MAX),
  device: (value: string) => numberUpTo(value, DEVICE_MAX),
  time: readTime,
} as const;

/** First the names that count most. */
const NAMES = {
  mode: [['mode', readers.mode], ['goog-reserved-posix-mode', readers.octal], ['file-permissions', readers.octal]],
  uid: [['uid', readers.id], ['goog-reserved-posix-uid', readers.id], ['file-owner', readers.id]],
  gid: [['gid', readers.id], ['goog-reserved-posix-gid', readers.id], ['file-group', readers.id]],
  rdev: [['rdev', readers.device]],
  mtime: [['mtime', readers.time], ['gcsfuse_mtime', readers.time], ['goog-reserved-file-mtime', readers.time], ['file-mtime', readers.time]],
  atime: [['atime', readers.time], ['goog-reserved-file-atime', readers.time], ['file-atime', readers.time]],
  ctime: [['ctime', readers.time]],
} as const satisfies Record<string, readonly (readonly [name: string, read: Reader<unknown>])[]>;

const SYMLINK_TARGETS = ['gcsfuse_symlink_target', '--symlink-target'] as const;
const IS_SYMLINK = 'goog-reserved-file-is-symlink';
const XATTR = 'xattr';

/** Every name that this module writes or that would contradict what it writes. */
const MANAGED: ReadonlySet<string> = new Set([...Object.values(NAMES).flat().map(([name]) => name), ...SYMLINK_TARGETS, IS_SYMLINK, XATTR]);

export interface Read {
  readonly posix: PosixMetadata;
  /** Names whose values make no sense. */
  readonly ignored: readonly string[];
}

export function readPosix(metadata: Metadata): Read {
  const ignored: string[] = [];
  const first = <T>(names: readonly (readonly [string, Reader<T>])[]): T | null => {
    let found: T | null = null;
    for (const [name, read] of names) {
      const value = metadata[name];
      if (value === undefined || value === '') continue;
      const result = read(value.trim());
      if (result === null) ignored.push(name);
      else found ??= result;
    }
    return found;
  };
  const symlink = SYMLINK_TARGETS.map((name) => metadata[name]).find((target) => target !== undefined && target !== '');
  const mode = first(NAMES.mode);
  const isLink = symlink !== undefined || metadata[IS_SYMLINK] === 'true' || (mode !== null && (mode & S_IFMT) === S_IFLNK);
  const xattrs = metadata[XATTR] === undefined ? null : readXattrs(metadata[XATTR]);
  if (metadata[XATTR] !== undefined && xattrs === null) ignored.push(XATTR);
  return {
    posix: {
      mode: isLink ? S_IFLNK | 0o777 : mode,
      uid: first(NAMES.uid),
      gid: first(NAMES.gid),
      rdev: first(NAMES.rdev),
      mtime: first(NAMES.mtime),
      atime: first(NAMES.atime),
      ctime: first(NAMES.ctime),
      symlink: isLink ? symlink ?? '' : null,
      xattrs,
    },
    ignored,
  };
}

/**
 * The metadata of an object for these facts; what `kept` has under names of no convention stays. A link's target is to be
 * the body as well.
 */
export function writePosix(posix: PosixMetadata, convention: Convention, kept: Metadata): Record<string, string> {
  const out: Record<string, string> = {};
  for (const [name, value] of Object.entries(kept)) if (!MANAGED.has(name)) out[name] = value;
  const put = (name: string, value: string | null): void => {
    if (value !== null) out[name] = value;
  };
  const { mode } = posix;
  const gcs = convention === 'gcs';
  const type = mode === null ? 0 : mode & S_IFMT;
  // gcloud's has permissions only
  if (gcs) put('goog-reserved-posix-mode', mode === null ? null : (mode & PERMISSIONS).toString(8));
  if (!gcs || (type !== S_IFREG && type !== 0 && type !== S_IFLNK)) put('mode', mode === null ? null : String(mode));
  put(gcs ? 'goog-reserved-posix-uid' : 'uid', decimal(posix.uid));
  put(gcs ? 'goog-reserved-posix-gid' : 'gid', decimal(posix.gid));
  put('rdev', decimal(posix.rdev));
  if (gcs) {
    put('goog-reserved-file-mtime', posix.mtime === null ? null : String(posix.mtime.seconds));
    put('gcsfuse_mtime', posix.mtime === null ? null : rfc3339(posix.mtime));
    put('goog-reserved-file-atime', posix.atime === null ? null : String(posix.atime.seconds));
    // s3fs's has the nanoseconds
    if (posix.atime !== null && posix.atime.nanoseconds > 0) put('atime', fraction(posix.atime));
    if (posix.symlink !== null) {
      put(IS_SYMLINK, 'true');
      put('gcsfuse_symlink_target', posix.symlink);
    }
  } else {
    put('mtime', fraction(posix.mtime));
    put('atime', fraction(posix.atime));
  }
  put('ctime', fraction(posix.ctime));
  if (posix.xattrs !== null && posix.xattrs.size > 0) out[XATTR] = writeXattrs(posix.xattrs);
  return out;
}

function numberUpTo(value: string, max: number): number | null {
  return /^\d{1,10}$/.test(value) && Number(value) <= max ? Number(value) : null;
}

const decimal = (value: number | null): string | null => (value === null ? null : String(value));

/** s3fs writes type and permissions in decimal, others in octal: 33188 and 100644 are the same. */
function readMode(value: string): number | null {
  if (!/^\d{1,7}$/.test(value)) return null;
  const mode = Number(value);
  if (!value.startsWith('0') && mode <= 0o177777 && TYPES.has(mode & S_IFMT)) return mode;
  return /^[0-7]+$/.test(value) ? validMode(parseInt(value, 8)) : null;
}

function validMode(mode: number): number | null {
  return mode <= 0o177777 && ((mode & S_IFMT) === 0 || TYPES.has(mode & S_IFMT)) ? mode : null;
}

function readTime(value: string): Time | null {
  const decimal = /^(-?\d{1,12})(?:\.(\d{1,20}))?$/.exec(value);
  if (decimal !== null) return time(Number(decimal[1]), decimal[2] ?? '', decimal[1].startsWith('-'));
  const nanoseconds = /^(\d{1,19})ns$/.exec(value);
  if (nanoseconds !== null) return time(Number(nanoseconds[1].slice(0, -9) || '0'), nanoseconds[1].slice(-9).padStart(9, '0'), false);
  const date = /^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,20}))?(Z|[+-]\d\d:\d\d)$/i.exec(value);
  if (date === null) return null;
  const seconds = Date.parse(`${date[1]}${date[3]}`) / 1000;
  return Number.isNaN(seconds) ? null : time(seconds, date[2] ?? '', false);
}

/** `digits`: decimals of the second. A negative number of seconds counts away from zero, a timespec always forward. */
function time(seconds: number, digits: string, negative: boolean): Time | null {
  const nanoseconds = Number(digits.slice(0, 9).padEnd(9, '0'));
  if (Math.abs(seconds) > SECONDS_MAX) return null;
  if (negative && nanoseconds > 0) return { seconds: seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds };
  return { seconds: seconds + 0, nanoseconds };
}

function fraction(time: Time | null): string | null {
  if (time === null) return null;
  const { seconds, nanoseconds } = time;
  if (nanoseconds === 0) return String(seconds);
  if (seconds >= 0) return `${seconds}.${String(nanoseconds).padStart(9, '0')}`;
  return `-${-(seconds + 1)}.${String(1_000_000_000 - nanoseconds).padStart(9, '0')}`;
}

function rfc3339(time: Time): string {
  const whole = new Date(time.seconds * 1000).toISOString().slice(0, 19);
  return `${whole}${time.nanoseconds === 0 ? '' : `.${String(time.nanoseconds).padStart(9, '0')}`}Z`;
}

/** s3fs: a JSON object of base64 values, URL-encoded. */
function readXattrs(value: string): Map<string, Uint8Array> | null {
  try {
    const parsed: unknown = JSON.parse(decodeURIComponent(value));
    if (typeof parsed !== 'object' || parsed === null || Array.isArray(parsed)) return null;
    const xattrs = new Map<string, Uint8Array>();
    for (const [name, base64] of Object.entries(parsed)) {
      if (name === '' || name.includes('\0') || Buffer.byteLength(name) > 255 || typeof base64 !== 'string') return null;
      const bytes = Buffer.from(base64, 'base64');
      if (bytes.toString('base64').replace(/=+$/, '') !== base64.replace(/=+$/, '')) return null;
      xattrs.set(name, new Uint8Array(bytes));
    }
    return xattrs;
  } catch {
    return null;
  }
}

function writeXattrs(xattrs: ReadonlyMap<string, Uint8Array>): string {
  const encoded = [...xattrs].map(([name, value]) => [name, Buffer.from(value).toString('base64')] as const);
  return encodeURIComponent(JSON.stringify(Object.fromEntries(encoded)));
}
