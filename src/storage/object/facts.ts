/** What a guest is told of an object or a directory: from the listing, the metadata, and defaults. */
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import { STATX, STATX_BASIC_STATS } from '../statx.js';
import { PERMISSIONS, type Time } from './posix-metadata.js';
import { readBelieved } from './privileges.js';
import type { Metadata, ObjectHeaders, ObjectInfo, Version } from './store.js';

/** For what objects do not say. */
export interface Defaults {
  readonly uid: number;
  readonly gid: number;
  /** Permission bits. */
  readonly fileMode: number;
  readonly directoryMode: number;
  /** Whether metadata may lend rights in the guest: see privileges.ts. */
  readonly privileged: boolean;
}

export interface Facts {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  readonly size: number;
  readonly mtime: Time;
  readonly atime: Time;
  readonly ctime: Time;
  /** Of the object; null for a directory without a marker. */
  readonly version: Version | null;
  /** A link's target; '' when the body is the target; null for what is no link. */
  readonly symlink: string | null;
  readonly xattrs: ReadonlyMap<string, Uint8Array>;
  /** All of the object's metadata as it is there, also what others keep in it; null: not known. */
  readonly kept: Metadata | null;
  readonly headers: ObjectHeaders | null;
}

const NO_XATTRS: ReadonlyMap<string, Uint8Array> = new Map();
const BLOCK_BYTES = 512;
const NANOSECONDS_MAX = 999_999_999;
/** What programs take as the best size of a read: one request of the guest. */
const BLKSIZE = 1 << 17;

export interface Described {
  readonly facts: Facts;
  /** Names of metadata that make no sense or do not count, for the log. */
  readonly ignored: readonly string[];
}

/** `usePosix`: whether metadata counts. Directories: `info` is the marker's, null if there is none. */
export function describeObject(info: ObjectInfo, defaults: Defaults, usePosix: boolean): Described {
  const { posix, ignored } = readBelieved(usePosix ? info.metadata ?? {} : {}, defaults.privileged, false);
  const modified = timeOf(info.modified_ms);
  const mtime = posix.mtime ?? modified;
  const type = posix.mode === null || (posix.mode & S_IFMT) === 0 ? S_IFREG : posix.mode & S_IFMT;
  // An object with content is no directory, whatever it says of itself: it could not be read any more
  const kind = type === S_IFDIR ? S_IFREG : type;
  return {
    ignored,
    facts: {
      mode: kind | (posix.mode === null ? defaults.fileMode : posix.mode & PERMISSIONS),
      uid: posix.uid ?? defaults.uid,
      gid: posix.gid ?? defaults.gid,
      rdev: posix.rdev ?? 0,
      size: kind === S_IFREG ? info.size : kind === S_IFLNK ? Buffer.byteLength(posix.symlink ?? '') || info.size : 0,
      mtime,
      atime: posix.atime ?? mtime,
      ctime: posix.ctime ?? modified,
      version: info.version,
      symlink: kind === S_IFLNK ? posix.symlink ?? '' : null,
      xattrs: posix.xattrs ?? NO_XATTRS,
      kept: info.metadata,
      headers: info.headers,
    },
  };
}

export function describeDirectory(marker: ObjectInfo | null, defaults: Defaults, usePosix: boolean, started: Time): Described {
  const { posix, ignored } = readBelieved(usePosix ? marker?.metadata ?? {} : {}, defaults.privileged, true);
  const modified = marker === null ? started : timeOf(marker.modified_ms);
  const mtime = posix.mtime ?? modified;
  return {
    ignored,
    facts: {
      mode: S_IFDIR | (posix.mode === null ? defaults.directoryMode : posix.mode & PERMISSIONS),
      uid: posix.uid ?? defaults.uid,
      gid: posix.gid ?? defaults.gid,
      rdev: 0,
      size: 0,
      mtime,
      atime: posix.atime ?? mtime,
      ctime: posix.ctime ?? modified,
      version: marker?.version ?? null,
      symlink: null,
      xattrs: posix.xattrs ?? NO_XATTRS,
      kept: marker?.metadata ?? null,
      headers: marker?.headers ?? null,
    },
  };
}

export function timeOf(ms: number): Time {
  const seconds = Math.floor(ms / 1000);
  return { seconds, nanoseconds: Math.min(NANOSECONDS_MAX, Math.round((ms - seconds * 1000) * 1e6)) };
}

/** A bucket has no size: what df(1) shows is large, and nothing of it is used. struct statvfs, see fuse/reply.ts. */
export function putStatfs(words: Uint32Array): void {
  words.fill(0, 0, 32);
  words[0] = words[2] = 4096;
  const blocks = 2 ** 38; // 1 PiB of 4 KiB
  for (const field of [2, 3, 4, 5, 6]) {
    words[field * 2] = blocks >>> 0;
    words[field * 2 + 1] = Math.floor(blocks / 2 ** 32);
  }
  words[20] = 255;
}

/** Into struct statx, as words. */
export function putStatx(words: Int32Array, facts: Facts, inoLow: number, inoHigh: number, nlink = 1): void {
  words.fill(0, 0, STATX.WORDS);
  const directory = (facts.mode & S_IFMT) === S_IFDIR;
  words[STATX.MASK] = STATX_BASIC_STATS;
  words[STATX.BLKSIZE] = BLKSIZE;
  // Nobody counts the subdirectories of a directory: 1 says so (find(1) and others know)
  words[STATX.NLINK] = nlink;
  words[STATX.UID] = facts.uid;
  words[STATX.GID] = facts.gid;
  words[STATX.MODE] = facts.mode;
  words[STATX.INO] = inoLow;
  words[STATX.INO + 1] = inoHigh;
  put64(words, STATX.SIZE, facts.size);
  put64(words, STATX.BLOCKS, directory ? 0 : Math.ceil(facts.size / BLOCK_BYTES));
  putTime(words, STATX.ATIME, STATX.ATIME_NSEC, facts.atime);
  putTime(words, STATX.MTIME, STATX.MTIME_NSEC, facts.mtime);
  putTime(words, STATX.CTIME, STATX.CTIME_NSEC, facts.ctime);
  // dev_t of Linux user space (makedev(3)) in 32 bits, as mknod has it
  words[STATX.RDEV_MAJOR] = (facts.rdev >>> 8) & 0xfff;
  words[STATX.RDEV_MINOR] = (facts.rdev & 0xff) | ((facts.rdev >>> 12) & 0xfff00);
}

function put64(words: Int32Array, at: number, value: number): void {
  words[at] = value | 0 || value >>> 0;
  words[at + 1] = Math.floor(value / 2 ** 32);
}

function putTime(words: Int32Array, at: number, nsecAt: number, time: Time): void {
  put64(words, at, time.seconds);
  words[nsecAt] = time.nanoseconds;
}
