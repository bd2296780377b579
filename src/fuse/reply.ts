/** Successful replies by their kind: header and results into the guest's buffers. */
import { E } from '../base/errno.js';
import { STATX_BYTES } from '../storage/statx.js';
import * as abi from './abi.js';
import { putAttrOut, putEntryOut, type Timeouts } from './encode.js';
import { OUT_HEADER_BYTES, type FuseRequest } from './request.js';
import { putHeader } from './header.js';

/** Where a reply is built when the guest's buffer for it is in pieces: the end of the reply block. */
const SCRATCH_AT = 65536;

let view: DataView;
let at = 0;
let scattered = false;

/** Find `bytes` together after the header, or a place of ours to build them. */
function room(r: FuseRequest, bytes: number): void {
  scattered = !r.message.locateWrite(OUT_HEADER_BYTES, bytes);
  if (scattered) {
    view = r.reply.dv;
    at = SCRATCH_AT;
  } else {
    view = r.message.view;
    at = r.message.offset;
  }
}

function done(r: FuseRequest, bytes: number): number {
  if (scattered) r.message.copyOut(OUT_HEADER_BYTES, r.reply.u8, SCRATCH_AT, bytes);
  return putHeader(r, OUT_HEADER_BYTES + bytes, 0);
}

function u64(offset: number, value: number): void {
  view.setUint32(at + offset, value >>> 0, true);
  view.setUint32(at + offset + 4, Math.floor(value / 2 ** 32), true);
}

/** Write the reply for `result`. @returns its length, or −errno when it does not fit. */
export function putReply(r: FuseRequest, result: number, timeouts: Timeouts): number {
  const { out, reply } = r.op;
  switch (reply) {
    case 'attr':
      room(r, out);
      putAttrOut(view, at, r.attr, r.attrFlags, timeouts);
      return done(r, out);
    case 'entry':
      room(r, out);
      putEntryOut(view, at, r.entryLow, r.entryHigh, r.attr, r.attrFlags, timeouts);
      return done(r, out);
    case 'data': // already in the guest's pages
      return putHeader(r, OUT_HEADER_BYTES + result, 0);
    case 'empty':
      return putHeader(r, OUT_HEADER_BYTES, 0);
    case 'open':
      room(r, out);
      putOpen(r, 0);
      return done(r, out);
    case 'create':
      room(r, out);
      putEntryOut(view, at, r.entryLow, r.entryHigh, r.attr, r.attrFlags, timeouts);
      putOpen(r, abi.ENTRY_OUT_BYTES);
      return done(r, out);
    case 'written':
      room(r, out);
      view.setUint32(at, result, true);
      view.setUint32(at + 4, 0, true);
      return done(r, out);
    case 'entries':
      return putEntries(r, result);
    default:
      return putRare(r, result, timeouts);
  }
}

function putRare(r: FuseRequest, result: number, timeouts: Timeouts): number {
  const { out, reply } = r.op;
  switch (reply) {
    case 'buffer':
      return putBuffer(r, result);
    case 'sized-buffer':
      return r.size === 0 ? putSize(r, result) : result > r.size ? -E.RANGE : putBuffer(r, result);
    case 'statfs':
      room(r, out);
      putStatfs(r);
      return done(r, out);
    case 'lock':
      room(r, out);
      view.setBigUint64(at + abi.LkOut.start, r.lockStart, true);
      view.setBigUint64(at + abi.LkOut.end, r.lockEnd, true);
      view.setUint32(at + abi.LkOut.type, r.lockType, true);
      view.setUint32(at + abi.LkOut.pid, r.lockPid, true);
      return done(r, out);
    case 'position':
    case 'copied64':
      room(r, out);
      u64(0, reply === 'position' ? r.position : result);
      return done(r, out);
    case 'ioctl':
      return putIoctl(r, result);
    case 'statx':
      return putStatx(r, timeouts);
    default:
      return -E.IO;
  }
}

function putOpen(r: FuseRequest, offset: number): void {
  view.setUint32(at + offset, r.fhLow, true);
  view.setUint32(at + offset + 4, r.fhHigh, true);
  view.setUint32(at + offset + abi.OpenOut.openFlags, r.openFlags, true);
  view.setUint32(at + offset + abi.OpenOut.backingId, 0, true);
}

/** Entries are in place unless they were gathered in the reply block. */
function putEntries(r: FuseRequest, bytes: number): number {
  if (!r.message.locateWrite(OUT_HEADER_BYTES, r.size)) r.message.copyOut(OUT_HEADER_BYTES, r.reply.u8, 0, bytes);
  return putHeader(r, OUT_HEADER_BYTES + bytes, 0);
}

function putBuffer(r: FuseRequest, bytes: number): number {
  if (OUT_HEADER_BYTES + bytes > r.message.writeBytes) return -E.RANGE;
  r.message.copyOut(OUT_HEADER_BYTES, r.reply.u8, 0, bytes);
  return putHeader(r, OUT_HEADER_BYTES + bytes, 0);
}

function putSize(r: FuseRequest, bytes: number): number {
  if (OUT_HEADER_BYTES + abi.GetxattrOut.bytes > r.message.writeBytes) return -E.RANGE;
  room(r, abi.GetxattrOut.bytes);
  view.setUint32(at, bytes, true);
  view.setUint32(at + 4, 0, true);
  return done(r, abi.GetxattrOut.bytes);
}

/** struct statvfs of 64-bit glibc: bsize, frsize, blocks, bfree, bavail, files, ffree, favail, fsid, flag, namemax. */
function putStatfs(r: FuseRequest): void {
  const from = r.reply.u32;
  const word = (field: number, half: number): number => from[field * 2 + half];
  const put64 = (offset: number, field: number): void => {
    view.setUint32(at + offset, word(field, 0), true);
    view.setUint32(at + offset + 4, word(field, 1), true);
  };
  put64(abi.StatfsOut.blocks, 2);
  put64(abi.StatfsOut.bfree, 3);
  put64(abi.StatfsOut.bavail, 4);
  put64(abi.StatfsOut.files, 5);
  put64(abi.StatfsOut.ffree, 6);
  view.setUint32(at + abi.StatfsOut.bsize, word(0, 0), true);
  view.setUint32(at + abi.StatfsOut.namelen, word(10, 0), true);
  view.setUint32(at + abi.StatfsOut.frsize, word(1, 0), true);
  for (let i: number = abi.StatfsOut.padding; i < abi.StatfsOut.bytes; i += 4) view.setUint32(at + i, 0, true);
}

function putIoctl(r: FuseRequest, bytes: number): number {
  if (OUT_HEADER_BYTES + abi.IoctlOut.bytes + bytes > r.message.writeBytes) return -E.RANGE;
  r.message.copyOut(OUT_HEADER_BYTES + abi.IoctlOut.bytes, r.reply.u8, 0, bytes);
  room(r, abi.IoctlOut.bytes);
  for (let i = 0; i < abi.IoctlOut.bytes; i += 4) view.setUint32(at + i, 0, true);
  done(r, abi.IoctlOut.bytes);
  return putHeader(r, OUT_HEADER_BYTES + abi.IoctlOut.bytes + bytes, 0);
}

/** fuse_statx is laid out as struct statx up to dev_minor; the rest is spare. */
function putStatx(r: FuseRequest, timeouts: Timeouts): number {
  const FUSE_STATX_BYTES = 144;
  room(r, r.op.out);
  for (let i = 0; i < r.op.out; i += 4) view.setUint32(at + i, 0, true);
  view.setUint32(at, timeouts.attrSeconds, true);
  view.setUint32(at + abi.StatxOut.attrValidNsec, timeouts.attrNanoseconds, true);
  for (let i = 0; i < FUSE_STATX_BYTES; i += 4) view.setUint32(at + abi.StatxOut.bytes + i, r.attr.u32[i >> 2], true);
  return done(r, abi.StatxOut.bytes + STATX_BYTES);
}
