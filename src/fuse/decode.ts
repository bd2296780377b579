/** Decoders of the operations with more than a few arguments. Each returns 0 or −errno. */
import { E } from '../base/errno.js';
import * as abi from './abi.js';
import { OUT_HEADER_BYTES, type FuseRequest } from './request.js';

const FATTR_SIZE = 8;
const FATTR_ATIME = 16;
const FATTR_MTIME = 32;
const FATTR_ATIME_NOW = 128;
const FATTR_MTIME_NOW = 256;
/** Special tv_nsec values of utimensat(2). */
const UTIME_NOW = 0x3fffffff;
const UTIME_OMIT = 0x3ffffffe;
const NSEC_PER_SEC = 1_000_000_000;
const IOCTL_MAX_BYTES = 4096;
/** copy_file_range's reply of the old opcode is 32 bits wide; also a bound on how long one call may take. */
const COPY_MAX_BYTES = 1 << 30;
/** The largest loff_t of the kernel. */
const OFFSET_MAX = 2n ** 63n - 1n;

export function decodeSetattr(r: FuseRequest): number {
  const In = abi.SetattrIn;
  r.valid = r.u32(In.valid);
  r.hasFh = (r.valid & abi.FATTR_FH) !== 0;
  r.readFh(In.fh);
  r.size = r.size64(In.size);
  if ((r.valid & FATTR_SIZE) !== 0 && r.size < 0) return -E.FBIG;
  r.mode = r.u32(In.mode);
  r.setUid = r.u32(In.uid);
  r.setGid = r.u32(In.gid);
  const atime = putTime(r, 0, FATTR_ATIME, FATTR_ATIME_NOW, In.atime, In.atimensec);
  return atime < 0 ? atime : putTime(r, 1, FATTR_MTIME, FATTR_MTIME_NOW, In.mtime, In.mtimensec);
}

function putTime(r: FuseRequest, index: number, set: number, now: number, at: number, nsecAt: number): number {
  if ((r.valid & set) === 0) {
    r.putTime(index, 0, 0, UTIME_OMIT);
  } else if ((r.valid & now) !== 0) {
    r.putTime(index, 0, 0, UTIME_NOW);
  } else {
    const nsec = r.u32(nsecAt);
    if (nsec >= NSEC_PER_SEC) return -E.INVAL;
    r.putTime(index, r.u32(at), r.u32(at + 4), nsec);
  }
  return 0;
}

export function decodeCreate(r: FuseRequest): number {
  putCreateIn(r);
  const next = r.readComponent(abi.CreateIn.bytes, r.name);
  return next < 0 ? next : r.readExtensions(next, r.hasSecurityContexts);
}

/** TMPFILE carries a name that means nothing (Linux sends "/"): it is skipped, never used. */
export function decodeTmpfile(r: FuseRequest): number {
  putCreateIn(r);
  const next = r.readXattrName(abi.CreateIn.bytes, r.name);
  return next < 0 ? next : r.readExtensions(next, r.hasSecurityContexts);
}

function putCreateIn(r: FuseRequest): void {
  const In = abi.CreateIn;
  r.flags = r.u32(In.flags);
  r.mode = r.u32(In.mode);
  r.umask = r.u32(In.umask) & 0o777;
  r.fuseFlags = r.u32(In.openFlags);
}

export function decodeSetxattr(r: FuseRequest): number {
  const In = abi.SetxattrIn;
  const fixed = r.hasSetxattrExt ? In.bytes : abi.SETXATTR_COMPAT_BYTES;
  if (r.argBytes < fixed) return -E.INVAL;
  const bytes = r.u32(In.size);
  r.flags = r.u32(In.flags);
  r.fuseFlags = r.hasSetxattrExt ? r.u32(In.setxattrFlags) : 0;
  const next = r.readXattrName(fixed, r.name);
  return next < 0 ? next : r.readPayload(next, bytes);
}

export function decodeLk(r: FuseRequest, wait: number): number {
  const In = abi.LkIn;
  r.readFh(In.fh);
  r.readOwner(In.owner);
  r.lockStart = r.u64(In.start);
  r.lockEnd = r.u64(In.end);
  r.lockType = r.u32(In.type);
  r.lockPid = r.u32(In.pid);
  r.fuseFlags = r.u32(In.lkFlags);
  r.flags = wait;
  return r.lockEnd >= r.lockStart && r.lockEnd <= OFFSET_MAX ? 0 : -E.INVAL;
}

export function decodeIoctl(r: FuseRequest): number {
  const In = abi.IoctlIn;
  r.readFh(In.fh);
  r.hasFh = true;
  r.flags = r.u32(In.cmd);
  r.fuseFlags = r.u32(In.flags);
  const inSize = r.u32(In.inSize);
  const outSize = r.u32(In.outSize);
  if (inSize > IOCTL_MAX_BYTES || outSize > IOCTL_MAX_BYTES) return -E.INVAL;
  if (outSize > r.message.writeBytes - OUT_HEADER_BYTES - abi.IoctlOut.bytes) return -E.INVAL;
  r.size = outSize;
  return r.readPayload(In.bytes, inSize);
}

export function decodeCopyFileRange(r: FuseRequest): number {
  const In = abi.CopyFileRangeIn;
  r.readFh(In.fhIn);
  r.offset = r.size64(In.offIn);
  r.readNode2(In.nodeidOut);
  r.fh2Low = r.u32(In.fhOut);
  r.fh2High = r.u32(In.fhOut + 4);
  r.offset2 = r.size64(In.offOut);
  const bytes = r.size64(In.len);
  if (r.offset < 0) return -E.OVERFLOW;
  if (r.offset2 < 0) return -E.FBIG;
  if (r.u32(In.flags) !== 0 || r.u32(In.flags + 4) !== 0) return -E.INVAL;
  r.length = bytes < 0 || bytes > COPY_MAX_BYTES ? COPY_MAX_BYTES : bytes;
  return 0;
}
