/**
 * The one table of FUSE operations: code, smallest argument size, how arguments are decoded, which method of the
 * file system serves them, and the shape of the reply. Decoding, dispatch, reply room and log names all come
 * from here; an opcode without a row is ENOSYS.
 */
import { E } from '../base/errno.js';
import type { FileSystem } from '../storage/filesystem.js';
import * as abi from './abi.js';
import { decodeCopyFileRange, decodeCreate, decodeIoctl, decodeLk, decodeSetattr, decodeSetxattr, decodeTmpfile } from './decode.js';
import { EXTENDED_BYTES, OUT_HEADER_BYTES, type FuseRequest } from './request.js';

/** What follows the header of a successful reply. */
export type ReplyKind =
  | 'never' | 'empty' | 'entry' | 'attr' | 'open' | 'create' | 'data' | 'written' | 'statfs' | 'buffer' | 'sized-buffer' | 'entries'
  | 'lock' | 'position' | 'ioctl' | 'statx' | 'copied64';

type ResultBound = 'none' | 'size' | 'length' | 'reply';

export interface Operation {
  readonly name: string;
  readonly code: number;
  /** Bytes of fixed arguments. */
  readonly in: number;
  /** Bytes that are read besides, at most: names, small values; 0 where there is nothing, or file data. */
  readonly rest: number;
  readonly reply: ReplyKind;
  /** Bytes of the fixed reply after the header; refused beforehand when the guest left less room. */
  readonly out: number;
  /** What bounds a result: nothing but 0 is one, the size or the length that was asked for, the room of the reply block. */
  readonly result: ResultBound;
  /** Arguments into the request; 0 or −errno. */
  readonly decode: (r: FuseRequest) => number;
  readonly run: (fs: FileSystem, r: FuseRequest) => number;
}

/** max_pages of INIT counts the guest's pages: 256 of 64 KiB on arm64. Only WRITE is bounded in bytes, by max_write. */
const READ_MAX_BYTES = 1 << 24;
const WRITE_MAX_BYTES = 1 << 20;

/** An attribute's value, or a list of names: XATTR_SIZE_MAX, XATTR_LIST_MAX. */
const REPLY_MAX_BYTES = 65536;
/** Its reply is that of WRITE, and the bytes are those of another argument. */
const COPY_FILE_RANGE = 47;

/**
 * Rule: the operation bounds the arguments that are read and kept, whatever length the request says. The rest is not looked at; where extensions end the
 * arguments (EXTENDED_BYTES) it is E2BIG.
 */
const NAME_BYTES = 256;
const IOCTL_BYTES = 4096;
const XATTR_BYTES = NAME_BYTES + 65536;

const nothing = (): number => 0;

const fhAndFlags = (r: FuseRequest): number => {
  r.readFh(abi.FsyncIn.fh);
  r.flags = r.u32(abi.FsyncIn.flags);
  return 0;
};

const openIn = (r: FuseRequest): number => {
  r.flags = r.u32(abi.OpenIn.flags);
  r.fuseFlags = r.u32(abi.OpenIn.openFlags);
  return 0;
};

const releaseIn = (r: FuseRequest): number => {
  r.readFh(abi.ReleaseIn.fh);
  r.fuseFlags = r.u32(abi.ReleaseIn.releaseFlags);
  r.readOwner(abi.ReleaseIn.lockOwner);
  return 0;
};

const oneName = (r: FuseRequest): number => Math.min(0, r.readComponent(0, r.name));

function readIn(r: FuseRequest): number {
  r.readFh(abi.ReadIn.fh);
  r.offset = r.offset64(abi.ReadIn.offset);
  r.size = r.u32(abi.ReadIn.size);
  r.flags = r.u32(abi.ReadIn.flags);
  if (r.size > READ_MAX_BYTES) return -E.INVAL;
  return r.locateData(true, OUT_HEADER_BYTES, r.size);
}

function writeIn(r: FuseRequest): number {
  r.readFh(abi.WriteIn.fh);
  r.offset = r.size64(abi.WriteIn.offset);
  r.size = r.u32(abi.WriteIn.size);
  r.fuseFlags = r.u32(abi.WriteIn.writeFlags);
  r.flags = r.u32(abi.WriteIn.flags);
  if (r.offset < 0 || r.offset + r.size > Number.MAX_SAFE_INTEGER) return -E.FBIG;
  // A header that promises fewer bytes than the payload, or a payload shorter than promised
  if (r.size > WRITE_MAX_BYTES || r.size > r.argBytes - abi.WriteIn.bytes) return -E.INVAL;
  return r.locateData(false, abi.InHeader.bytes + abi.WriteIn.bytes, r.size);
}

/** READDIR: the offset is an opaque 64-bit value of ours, kept in two halves. */
function readdirIn(r: FuseRequest): number {
  r.readFh(abi.ReadIn.fh);
  r.readNode2(abi.ReadIn.offset);
  r.size = Math.min(r.u32(abi.ReadIn.size), r.message.writeBytes - OUT_HEADER_BYTES, 65536);
  return 0;
}

function renameIn(r: FuseRequest): number {
  r.readNode2(abi.RenameIn.newdir);
  r.flags = 0;
  const next = r.readComponent(abi.RenameIn.bytes, r.name);
  return next < 0 ? next : Math.min(0, r.readComponent(next, r.name2));
}

function rename2In(r: FuseRequest): number {
  r.readNode2(abi.Rename2In.newdir);
  r.flags = r.u32(abi.Rename2In.flags);
  const next = r.readComponent(abi.Rename2In.bytes, r.name);
  return next < 0 ? next : Math.min(0, r.readComponent(next, r.name2));
}

function linkIn(r: FuseRequest): number {
  r.readNode2(abi.LinkIn.oldnodeid);
  return Math.min(0, r.readComponent(abi.LinkIn.bytes, r.name));
}

function mknodIn(r: FuseRequest): number {
  r.mode = r.u32(abi.MknodIn.mode);
  const rdev = r.u32(abi.MknodIn.rdev);
  r.umask = r.u32(abi.MknodIn.umask) & 0o777;
  // new_decode_dev() and then the C library's makedev(): the same value below 2^32
  r.rdev = rdev;
  const next = r.readComponent(abi.MknodIn.bytes, r.name);
  return next < 0 ? next : r.readExtensions(next, r.hasSecurityContexts);
}

function mkdirIn(r: FuseRequest): number {
  r.mode = r.u32(abi.MkdirIn.mode);
  r.umask = r.u32(abi.MkdirIn.umask) & 0o777;
  const next = r.readComponent(abi.MkdirIn.bytes, r.name);
  return next < 0 ? next : r.readExtensions(next, r.hasSecurityContexts);
}

function symlinkIn(r: FuseRequest): number {
  r.umask = 0;
  let next = r.readComponent(0, r.name);
  if (next >= 0) next = r.readTarget(next);
  return next < 0 ? next : r.readExtensions(next, r.hasSecurityContexts);
}

function getxattrIn(r: FuseRequest): number {
  r.size = r.u32(abi.GetxattrIn.size);
  if (r.size > r.message.writeBytes - OUT_HEADER_BYTES) return -E.INVAL;
  return Math.min(0, r.readXattrName(abi.GetxattrIn.bytes, r.name));
}

function listxattrIn(r: FuseRequest): number {
  r.size = r.u32(abi.GetxattrIn.size);
  return r.size > r.message.writeBytes - OUT_HEADER_BYTES ? -E.INVAL : 0;
}

function fallocateIn(r: FuseRequest): number {
  r.readFh(abi.FallocateIn.fh);
  r.offset = r.size64(abi.FallocateIn.offset);
  r.length = r.size64(abi.FallocateIn.length);
  r.flags = r.u32(abi.FallocateIn.mode);
  return r.offset < 0 || r.length < 0 || r.offset + r.length > Number.MAX_SAFE_INTEGER ? -E.FBIG : 0;
}

function lseekIn(r: FuseRequest): number {
  r.readFh(abi.LseekIn.fh);
  r.offset = r.offset64(abi.LseekIn.offset);
  r.flags = r.u32(abi.LseekIn.whence);
  return 0;
}

function getattrIn(r: FuseRequest): number {
  r.hasFh = (r.u32(abi.GetattrIn.flags) & abi.GETATTR_FH) !== 0;
  if (r.hasFh) r.readFh(abi.GetattrIn.fh);
  return 0;
}

function statxIn(r: FuseRequest): number {
  r.hasFh = (r.u32(abi.StatxIn.getattrFlags) & abi.GETATTR_FH) !== 0;
  r.readFh(abi.StatxIn.fh);
  return 0;
}

function accessIn(r: FuseRequest): number {
  r.flags = r.u32(abi.AccessIn.mask) & 7;
  r.suppGid = -1;
  r.umask = 0;
  return 0;
}

function flushIn(r: FuseRequest): number {
  r.readFh(abi.FlushIn.fh);
  r.readOwner(abi.FlushIn.lockOwner);
  return 0;
}

type Row = readonly [
  code: number, inBytes: number, rest: number, reply: ReplyKind, decode: (r: FuseRequest) => number,
  run: (fs: FileSystem, r: FuseRequest) => number,
];

const ROWS = {
  LOOKUP: [1, 0, NAME_BYTES, 'entry', oneName, (fs, r) => fs.lookup(r)],
  GETATTR: [3, abi.GetattrIn.bytes, 0, 'attr', getattrIn, (fs, r) => fs.getattr(r)],
  SETATTR: [4, abi.SetattrIn.bytes, 0, 'attr', decodeSetattr, (fs, r) => fs.setattr(r)],
  READLINK: [5, 0, 0, 'buffer', nothing, (fs, r) => fs.readlink(r)],
  SYMLINK: [6, 0, EXTENDED_BYTES, 'entry', symlinkIn, (fs, r) => fs.symlink(r)],
  MKNOD: [8, abi.MknodIn.bytes, EXTENDED_BYTES, 'entry', mknodIn, (fs, r) => fs.mknod(r)],
  MKDIR: [9, abi.MkdirIn.bytes, EXTENDED_BYTES, 'entry', mkdirIn, (fs, r) => fs.mkdir(r)],
  UNLINK: [10, 0, NAME_BYTES, 'empty', oneName, (fs, r) => fs.unlink(r)],
  RMDIR: [11, 0, NAME_BYTES, 'empty', oneName, (fs, r) => fs.rmdir(r)],
  RENAME: [12, abi.RenameIn.bytes, 2 * NAME_BYTES, 'empty', renameIn, (fs, r) => fs.rename(r)],
  LINK: [13, abi.LinkIn.bytes, NAME_BYTES, 'entry', linkIn, (fs, r) => fs.link(r)],
  OPEN: [14, abi.OpenIn.bytes, 0, 'open', openIn, (fs, r) => fs.open(r)],
  READ: [15, abi.ReadIn.bytes, 0, 'data', readIn, (fs, r) => fs.read(r)],
  WRITE: [16, abi.WriteIn.bytes, 0, 'written', writeIn, (fs, r) => fs.write(r)],
  STATFS: [17, 0, 0, 'statfs', nothing, (fs, r) => fs.statfs(r)],
  RELEASE: [18, abi.ReleaseIn.bytes, 0, 'empty', releaseIn, (fs, r) => fs.release(r)],
  FSYNC: [20, abi.FsyncIn.bytes, 0, 'empty', fhAndFlags, (fs, r) => fs.fsync(r)],
  SETXATTR: [21, abi.SETXATTR_COMPAT_BYTES, XATTR_BYTES, 'empty', decodeSetxattr, (fs, r) => fs.setxattr(r)],
  GETXATTR: [22, abi.GetxattrIn.bytes, NAME_BYTES, 'sized-buffer', getxattrIn, (fs, r) => fs.getxattr(r)],
  LISTXATTR: [23, abi.GetxattrIn.bytes, 0, 'sized-buffer', listxattrIn, (fs, r) => fs.listxattr(r)],
  REMOVEXATTR: [24, 0, NAME_BYTES, 'empty', (r) => Math.min(0, r.readXattrName(0, r.name)), (fs, r) => fs.removexattr(r)],
  FLUSH: [25, abi.FlushIn.bytes, 0, 'empty', flushIn, (fs, r) => fs.flush(r)],
  OPENDIR: [27, abi.OpenIn.bytes, 0, 'open', openIn, (fs, r) => fs.opendir(r)],
  READDIR: [28, abi.ReadIn.bytes, 0, 'entries', readdirIn, (fs, r) => fs.readdir(r)],
  RELEASEDIR: [29, abi.ReleaseIn.bytes, 0, 'empty', releaseIn, (fs, r) => fs.releasedir(r)],
  FSYNCDIR: [30, abi.FsyncIn.bytes, 0, 'empty', fhAndFlags, (fs, r) => fs.fsyncdir(r)],
  GETLK: [31, abi.LkIn.bytes, 0, 'lock', (r) => decodeLk(r, 0), (fs, r) => fs.getlk(r)],
  SETLK: [32, abi.LkIn.bytes, 0, 'empty', (r) => decodeLk(r, 0), (fs, r) => fs.setlk(r)],
  SETLKW: [33, abi.LkIn.bytes, 0, 'empty', (r) => decodeLk(r, 1), (fs, r) => fs.setlk(r)],
  ACCESS: [34, abi.AccessIn.bytes, 0, 'empty', accessIn, (fs, r) => fs.access(r)],
  CREATE: [35, abi.CreateIn.bytes, EXTENDED_BYTES, 'create', decodeCreate, (fs, r) => fs.create(r)],
  IOCTL: [39, abi.IoctlIn.bytes, IOCTL_BYTES, 'ioctl', decodeIoctl, (fs, r) => fs.ioctl(r)],
  FALLOCATE: [43, abi.FallocateIn.bytes, 0, 'empty', fallocateIn, (fs, r) => fs.fallocate(r)],
  READDIRPLUS: [44, abi.ReadIn.bytes, 0, 'entries', readdirIn, (fs, r) => fs.readdirplus(r)],
  RENAME2: [45, abi.Rename2In.bytes, 2 * NAME_BYTES, 'empty', rename2In, (fs, r) => fs.rename(r)],
  LSEEK: [46, abi.LseekIn.bytes, 0, 'position', lseekIn, (fs, r) => fs.lseek(r)],
  COPY_FILE_RANGE: [COPY_FILE_RANGE, abi.CopyFileRangeIn.bytes, 0, 'written', decodeCopyFileRange, (fs, r) => fs.copyFileRange(r)],
  SYNCFS: [50, 8, 0, 'empty', nothing, (fs, r) => fs.syncfs(r)],
  TMPFILE: [51, abi.CreateIn.bytes, EXTENDED_BYTES, 'create', decodeTmpfile, (fs, r) => fs.tmpfile(r)],
  STATX: [52, abi.StatxIn.bytes, 0, 'statx', statxIn, (fs, r) => fs.getattr(r)],
  COPY_FILE_RANGE_64: [53, abi.CopyFileRangeIn.bytes, 0, 'copied64', decodeCopyFileRange, (fs, r) => fs.copyFileRange(r)],
} as const satisfies Record<string, Row>;

const OUT_BYTES: Record<ReplyKind, number> = {
  never: 0,
  empty: 0,
  entry: abi.ENTRY_OUT_BYTES,
  attr: abi.ATTR_OUT_BYTES,
  open: abi.OpenOut.bytes,
  create: abi.ENTRY_OUT_BYTES + abi.OpenOut.bytes,
  data: 0,
  written: abi.WriteOut.bytes,
  statfs: abi.StatfsOut.bytes,
  buffer: 0,
  'sized-buffer': 0,
  entries: 0,
  lock: abi.LkOut.bytes,
  position: abi.LseekOut.bytes,
  ioctl: abi.IoctlOut.bytes,
  statx: abi.StatxOut.bytes + 256,
  copied64: abi.CopyFileRangeOut.bytes,
};

const RESULTS: Partial<Record<ReplyKind, ResultBound>> = {
  data: 'size', written: 'size', entries: 'size', ioctl: 'size', copied64: 'length', buffer: 'reply', 'sized-buffer': 'reply',
};

/** Operations by name; those that the server itself serves (INIT, FORGET ...) are in server.ts. */
export const OPERATIONS: readonly Operation[] = Object.entries(ROWS as Record<string, Row>).map(
  ([name, [code, bytes, rest, reply, decode, run]]) => ({ name, code, in: bytes, rest, reply, out: OUT_BYTES[reply], result: code === COPY_FILE_RANGE ? 'length' : RESULTS[reply] ?? 'none', decode, run }),
);

/** The largest result that the request asked for: bytes where the reply has any, else 0. */
export function mostOf(r: FuseRequest): number {
  switch (r.op.result) {
    case 'none':
      return 0;
    case 'size':
      return r.size;
    case 'length':
      return r.length;
    case 'reply':
      return REPLY_MAX_BYTES;
  }
}

/** Operations by opcode. */
export const BY_CODE: readonly (Operation | undefined)[] = (() => {
  const table: (Operation | undefined)[] = new Array(64).fill(undefined);
  for (const op of OPERATIONS) table[op.code] = op;
  return table;
})();
