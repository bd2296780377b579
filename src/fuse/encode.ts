/** Replies: results of a file system as FUSE structures. */
import type { NativeMemory } from '../ffi/memory.js';
import { STATX } from '../storage/statx.js';
import { Attr, AttrOut, EntryOut } from './abi.js';

/** The attribute cache of a session: how long the guest may keep names and attributes, as (seconds, nanoseconds). */
export interface Timeouts {
  entrySeconds: number;
  entryNanoseconds: number;
  attrSeconds: number;
  attrNanoseconds: number;
}

/** struct statx → struct fuse_attr at `at`. Straight-line: this is in every metadata reply. */
export function putAttr(dv: DataView, at: number, statx: NativeMemory, flags: number): void {
  const w = statx.u32;
  dv.setUint32(at + Attr.ino, w[STATX.INO], true);
  dv.setUint32(at + Attr.ino + 4, w[STATX.INO + 1], true);
  dv.setUint32(at + Attr.size, w[STATX.SIZE], true);
  dv.setUint32(at + Attr.size + 4, w[STATX.SIZE + 1], true);
  dv.setUint32(at + Attr.blocks, w[STATX.BLOCKS], true);
  dv.setUint32(at + Attr.blocks + 4, w[STATX.BLOCKS + 1], true);
  dv.setUint32(at + Attr.atime, w[STATX.ATIME], true);
  dv.setUint32(at + Attr.atime + 4, w[STATX.ATIME + 1], true);
  dv.setUint32(at + Attr.mtime, w[STATX.MTIME], true);
  dv.setUint32(at + Attr.mtime + 4, w[STATX.MTIME + 1], true);
  dv.setUint32(at + Attr.ctime, w[STATX.CTIME], true);
  dv.setUint32(at + Attr.ctime + 4, w[STATX.CTIME + 1], true);
  dv.setUint32(at + Attr.atimensec, w[STATX.ATIME_NSEC], true);
  dv.setUint32(at + Attr.mtimensec, w[STATX.MTIME_NSEC], true);
  dv.setUint32(at + Attr.ctimensec, w[STATX.CTIME_NSEC], true);
  dv.setUint32(at + Attr.mode, w[STATX.MODE] & 0xffff, true);
  dv.setUint32(at + Attr.nlink, w[STATX.NLINK], true);
  dv.setUint32(at + Attr.uid, w[STATX.UID], true);
  dv.setUint32(at + Attr.gid, w[STATX.GID], true);
  const minor = w[STATX.RDEV_MINOR];
  // new_encode_dev() of the kernel
  dv.setUint32(at + Attr.rdev, ((minor & 0xff) | (w[STATX.RDEV_MAJOR] << 8) | ((minor & ~0xff) << 12)) >>> 0, true);
  dv.setUint32(at + Attr.blksize, w[STATX.BLKSIZE], true);
  dv.setUint32(at + Attr.flags, flags, true);
}

export function putAttrOut(dv: DataView, at: number, statx: NativeMemory, flags: number, timeouts: Timeouts): void {
  dv.setUint32(at + AttrOut.attrValid, timeouts.attrSeconds, true);
  dv.setUint32(at + AttrOut.attrValid + 4, 0, true);
  dv.setUint32(at + AttrOut.attrValidNsec, timeouts.attrNanoseconds, true);
  dv.setUint32(at + AttrOut.dummy, 0, true);
  putAttr(dv, at + AttrOut.bytes, statx, flags);
}

export function putEntryOut(
  dv: DataView, at: number, nodeLow: number, nodeHigh: number, statx: NativeMemory, flags: number, timeouts: Timeouts,
): void {
  dv.setUint32(at + EntryOut.nodeid, nodeLow, true);
  dv.setUint32(at + EntryOut.nodeid + 4, nodeHigh, true);
  // A nodeid is never used twice, so it needs no generation
  dv.setUint32(at + EntryOut.generation, 0, true);
  dv.setUint32(at + EntryOut.generation + 4, 0, true);
  dv.setUint32(at + EntryOut.entryValid, timeouts.entrySeconds, true);
  dv.setUint32(at + EntryOut.entryValid + 4, 0, true);
  dv.setUint32(at + EntryOut.attrValid, timeouts.attrSeconds, true);
  dv.setUint32(at + EntryOut.attrValid + 4, 0, true);
  dv.setUint32(at + EntryOut.entryValidNsec, timeouts.entryNanoseconds, true);
  dv.setUint32(at + EntryOut.attrValidNsec, timeouts.attrNanoseconds, true);
  putAttr(dv, at + EntryOut.bytes, statx, flags);
}
