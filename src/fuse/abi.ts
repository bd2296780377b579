/**
 * The FUSE wire format, protocol 7.27 to 7.45 (include/uapi/linux/fuse.h). Little-endian: vhost-user frontends
 * and guests of the supported machines are.
 */

/** Lay out fields one after the other; the result maps each name to its offset, and `bytes` to the size. */
function layout<const F extends Record<string, 2 | 4 | 8>>(fields: F): { readonly [K in keyof F]: number } & { readonly bytes: number } {
  const result: Record<string, number> = {};
  let at = 0;
  for (const [name, size] of Object.entries(fields)) {
    result[name] = at;
    at += size;
  }
  result.bytes = at;
  return Object.freeze(result) as never;
}

export const InHeader = layout({ len: 4, opcode: 4, unique: 8, nodeid: 8, uid: 4, gid: 4, pid: 4, totalExtlen: 2, padding: 2 });
export const OutHeader = layout({ len: 4, error: 4, unique: 8 });
export const Attr = layout({
  ino: 8, size: 8, blocks: 8, atime: 8, mtime: 8, ctime: 8, atimensec: 4, mtimensec: 4, ctimensec: 4, mode: 4,
  nlink: 4, uid: 4, gid: 4, rdev: 4, blksize: 4, flags: 4,
});
/** fuse_entry_out without its attributes, which follow. */
export const EntryOut = layout({ nodeid: 8, generation: 8, entryValid: 8, attrValid: 8, entryValidNsec: 4, attrValidNsec: 4 });
export const ENTRY_OUT_BYTES = EntryOut.bytes + Attr.bytes;
export const AttrOut = layout({ attrValid: 8, attrValidNsec: 4, dummy: 4 });
export const ATTR_OUT_BYTES = AttrOut.bytes + Attr.bytes;
export const ForgetIn = layout({ nlookup: 8 });
export const BatchForgetIn = layout({ count: 4, dummy: 4 });
export const ForgetOne = layout({ nodeid: 8, nlookup: 8 });
export const GetattrIn = layout({ flags: 4, dummy: 4, fh: 8 });
export const SetattrIn = layout({
  valid: 4, padding: 4, fh: 8, size: 8, lockOwner: 8, atime: 8, mtime: 8, ctime: 8, atimensec: 4, mtimensec: 4, ctimensec: 4,
  mode: 4, unused4: 4, uid: 4, gid: 4, unused5: 4,
});
export const MknodIn = layout({ mode: 4, rdev: 4, umask: 4, padding: 4 });
export const MkdirIn = layout({ mode: 4, umask: 4 });
export const RenameIn = layout({ newdir: 8 });
export const Rename2In = layout({ newdir: 8, flags: 4, padding: 4 });
export const LinkIn = layout({ oldnodeid: 8 });
export const OpenIn = layout({ flags: 4, openFlags: 4 });
export const CreateIn = layout({ flags: 4, mode: 4, umask: 4, openFlags: 4 });
export const OpenOut = layout({ fh: 8, openFlags: 4, backingId: 4 });
export const ReleaseIn = layout({ fh: 8, flags: 4, releaseFlags: 4, lockOwner: 8 });
export const FlushIn = layout({ fh: 8, unused: 4, padding: 4, lockOwner: 8 });
export const ReadIn = layout({ fh: 8, offset: 8, size: 4, readFlags: 4, lockOwner: 8, flags: 4, padding: 4 });
export const WriteIn = layout({ fh: 8, offset: 8, size: 4, writeFlags: 4, lockOwner: 8, flags: 4, padding: 4 });
export const WriteOut = layout({ size: 4, padding: 4 });
export const StatfsOut = layout({ blocks: 8, bfree: 8, bavail: 8, files: 8, ffree: 8, bsize: 4, namelen: 4, frsize: 4, padding: 4, s0: 8, s1: 8, s2: 8 });
export const FsyncIn = layout({ fh: 8, flags: 4, padding: 4 });
/** Without FUSE_SETXATTR_EXT only the first two fields are sent. */
export const SetxattrIn = layout({ size: 4, flags: 4, setxattrFlags: 4, padding: 4 });
export const SETXATTR_COMPAT_BYTES = 8;
export const GetxattrIn = layout({ size: 4, padding: 4 });
export const GetxattrOut = layout({ size: 4, padding: 4 });
export const LkIn = layout({ fh: 8, owner: 8, start: 8, end: 8, type: 4, pid: 4, lkFlags: 4, padding: 4 });
export const LkOut = layout({ start: 8, end: 8, type: 4, pid: 4 });
export const AccessIn = layout({ mask: 4, padding: 4 });
/** flags2 and the rest come from minor 36 on. */
export const InitIn = layout({ major: 4, minor: 4, maxReadahead: 4, flags: 4, flags2: 4 });
export const INIT_IN_COMPAT_BYTES = 16;
export const InitOut = layout({
  major: 4, minor: 4, maxReadahead: 4, flags: 4, maxBackground: 2, congestionThreshold: 2, maxWrite: 4, timeGran: 4, maxPages: 2,
  mapAlignment: 2, flags2: 4, maxStackDepth: 4, u0: 8, u1: 8, u2: 8,
});
export const InterruptIn = layout({ unique: 8 });
export const IoctlIn = layout({ fh: 8, flags: 4, cmd: 4, arg: 8, inSize: 4, outSize: 4 });
export const IoctlOut = layout({ result: 4, flags: 4, inIovs: 4, outIovs: 4 });
export const FallocateIn = layout({ fh: 8, offset: 8, length: 8, mode: 4, padding: 4 });
export const LseekIn = layout({ fh: 8, offset: 8, whence: 4, padding: 4 });
export const LseekOut = layout({ offset: 8 });
export const CopyFileRangeIn = layout({ fhIn: 8, offIn: 8, nodeidOut: 8, fhOut: 8, offOut: 8, len: 8, flags: 8 });
export const CopyFileRangeOut = layout({ bytesCopied: 8 });
export const StatxIn = layout({ getattrFlags: 4, reserved: 4, fh: 8, sxFlags: 4, sxMask: 4 });
/** struct fuse_statx, laid out like struct statx, follows. */
export const StatxOut = layout({ attrValid: 8, attrValidNsec: 4, flags: 4, s0: 8, s1: 8 });
export const Dirent = layout({ ino: 8, off: 8, namelen: 4, type: 4 });
/** Extensions: struct fuse_ext_header { u32 size, type }. */
export const ExtHeader = layout({ size: 4, type: 4 });

export const FUSE_KERNEL_VERSION = 7;
export const MINOR_MIN = 27;
export const MINOR_MAX = 45;

export const GETATTR_FH = 1;
export const FATTR_FH = 1 << 6;
export const EXT_GROUPS = 32;

/** INIT flags; from 32 on they travel in flags2. */
export const INIT = {
  ASYNC_READ: 0,
  POSIX_LOCKS: 1,
  ATOMIC_O_TRUNC: 3,
  BIG_WRITES: 5,
  DONT_MASK: 6,
  FLOCK_LOCKS: 10,
  HAS_IOCTL_DIR: 11,
  AUTO_INVAL_DATA: 12,
  DO_READDIRPLUS: 13,
  READDIRPLUS_AUTO: 14,
  ASYNC_DIO: 15,
  WRITEBACK_CACHE: 16,
  PARALLEL_DIROPS: 18,
  POSIX_ACL: 20,
  MAX_PAGES: 22,
  SUBMOUNTS: 27,
  HANDLE_KILLPRIV_V2: 28,
  SETXATTR_EXT: 29,
  INIT_EXT: 30,
  SECURITY_CTX: 32,
  CREATE_SUPP_GROUP: 34,
  DIRECT_IO_ALLOW_MMAP: 36,
  ALLOW_IDMAP: 40,
} as const;
