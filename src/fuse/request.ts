/**
 * One FUSE request: its arguments decoded, its results on their way out. Objects are reused; one that a file
 * system defers is replaced in the server until it completes.
 */
import { E } from '../base/errno.js';
import { NativeMemory, copyMemory } from '../ffi/memory.js';
import { FAR_OFFSET, type DetachedRequest, type DirectorySink, type FileSystemRequest, type Name } from '../storage/filesystem.js';
import { EXT_GROUPS, InHeader, OutHeader } from './abi.js';
import { EntrySink } from './entry-sink.js';
import type { Operation } from './ops.js';
import { Session } from './session.js';

/** A message in guest memory, as the transport presents it (see vhost/chain.ts). */
export interface Message {
  readonly readBytes: number;
  readonly writeBytes: number;
  view: DataView;
  offset: number;
  locateRead(from: number, bytes: number): boolean;
  locateWrite(from: number, bytes: number): boolean;
  copyIn(from: number, target: Uint8Array, at: number, bytes: number): number;
  copyOut(from: number, source: Uint8Array, at: number, bytes: number): number;
  iovecs(writable: boolean, from: number, bytes: number, target: Uint32Array, capacity: number): number;
  /** Descriptors that it is laid out in, and that there is room for. */
  readonly segments: number;
  readonly capacity: number;
  /** What answers it instead, and has no more than the first `bytes` of its writable part. */
  detach(bytes: number): Message;
  finish(written: number): void;
}

/** What finishes a deferred request; the server. */
export interface Responder {
  detached(request: FuseRequest): DetachedRequest;
  deferred(request: FuseRequest): void;
  completed(request: FuseRequest, result: number): void;
}

/** UIO_MAXIOV: a system call takes no more. */
export const IOVECS_MAX = 1024;
/** Arguments that do not lie together are gathered, up to this size (names, a 64 KiB attribute, many FORGETs). */
export const GATHER_MAX_BYTES = (1 << 20) + 4096;
/** Names, and what follows them in creations: a name and a link target as long as Linux may send them, a security context with its name, a group. */
export const EXTENDED_BYTES = 16384;
/** A buffer that is kept for the next arguments; a larger one is the request's own, and goes when it is deferred or answered. */
const GATHER_KEPT_BYTES = 8192;
const NAME_MAX = 255;
/** PATH_MAX without its NUL: the longest link target. */
const TARGET_MAX = 4095;
const REPLY_BYTES = 65536 + 4096;

// Offsets in the request's native block
const TIMES_AT = 0;
const NAME_AT = 512;
const NAME2_AT = 1024;
const LABEL_NAME_AT = 1536;
const IOVECS_AT = 4096;
const PAYLOAD_AT = IOVECS_AT + IOVECS_MAX * 16;
const BLOCK_BYTES = PAYLOAD_AT + 65536 + 4096;

class MutableName implements Name {
  length = 0;
  constructor(
    readonly address: number,
    readonly at: number,
  ) {}
}

export class FuseRequest implements FileSystemRequest {
  message!: Message;
  op!: Operation;
  session: Session = new Session();
  opcode = 0;
  uniqueLow = 0;
  uniqueHigh = 0;
  nodeLow = 0;
  nodeHigh = 0;
  uid = 0;
  gid = 0;
  pid = 0;
  suppGid = -1;
  /** Arguments: a view, where they start in it, and how many bytes there are. */
  args: DataView;
  argsAt = 0;
  argBytes = 0;
  extBytes = 0;

  hasFh = false;
  fhLow = 0;
  fhHigh = 0;
  fh2Low = 0;
  fh2High = 0;
  node2Low = 0;
  node2High = 0;
  offset = 0;
  offset2 = 0;
  length = 0;
  size = 0;
  flags = 0;
  fuseFlags = 0;
  mode = 0;
  umask = 0;
  rdev = 0;
  ownerLow = 0;
  ownerHigh = 0;
  valid = 0;
  setUid = 0;
  setGid = 0;
  lockType = 0;
  lockStart = 0n;
  lockEnd = 0n;
  lockPid = 0;
  position = 0;
  securityContext = false;
  readonly labelName: MutableName;
  labelValue = 0;
  labelLength = 0;
  readonly timesAddress: number;
  readonly iovecs: number;
  iovecCount = 0;
  readonly payload: number;
  payloadLength = 0;
  entryLow = 0;
  entryHigh = 0;
  openFlags = 0;
  attrFlags = 0;

  readonly attr = NativeMemory.allocate(4096);
  readonly reply = NativeMemory.allocate(REPLY_BYTES);
  readonly block = NativeMemory.allocate(BLOCK_BYTES);
  readonly name: MutableName;
  readonly name2: MutableName;
  readonly sink = new EntrySink();
  isDeferred = false;
  /** What Admission counts for it while it is deferred. */
  heldBytes = 0;
  /** Where the server keeps it among the deferred ones. */
  deferredAt = -1;
  readonly #iovecWords: Uint32Array;
  /** Where locateData() found the data. */
  #dataIsWritable = false;
  #dataFrom = 0;
  #gather: Uint8Array | null = null;

  constructor(readonly responder: Responder) {
    const base = this.block.address;
    this.name = new MutableName(base + NAME_AT, NAME_AT);
    this.name2 = new MutableName(base + NAME2_AT, NAME2_AT);
    this.timesAddress = base + TIMES_AT;
    this.iovecs = base + IOVECS_AT;
    this.payload = base + PAYLOAD_AT;
    this.labelName = new MutableName(base + LABEL_NAME_AT, LABEL_NAME_AT);
    this.args = this.block.dv;
    this.#iovecWords = this.block.u32.subarray(IOVECS_AT >> 2, (IOVECS_AT >> 2) + IOVECS_MAX * 4);
  }

  get hasSecurityContexts(): boolean {
    return this.session.securityContexts;
  }

  get hasSetxattrExt(): boolean {
    return this.session.setxattrExt;
  }

  get entries(): DirectorySink {
    return this.sink;
  }

  /** Read the header; false if there is not even that much. */
  readHeader(message: Message): boolean {
    this.message = message;
    if (!message.locateRead(0, InHeader.bytes)) {
      if (message.readBytes < InHeader.bytes) return false;
      message.copyIn(0, this.block.u8, PAYLOAD_AT, InHeader.bytes);
      message.view = this.block.dv;
      message.offset = PAYLOAD_AT;
    }
    const { view, offset } = message;
    this.argBytes = view.getUint32(offset, true) - InHeader.bytes;
    this.opcode = view.getUint32(offset + InHeader.opcode, true);
    this.uniqueLow = view.getUint32(offset + InHeader.unique, true);
    this.uniqueHigh = view.getUint32(offset + InHeader.unique + 4, true);
    this.nodeLow = view.getUint32(offset + InHeader.nodeid, true);
    this.nodeHigh = view.getUint32(offset + InHeader.nodeid + 4, true);
    this.uid = view.getUint32(offset + InHeader.uid, true);
    this.gid = view.getUint32(offset + InHeader.gid, true);
    this.pid = view.getUint32(offset + InHeader.pid, true);
    this.extBytes = view.getUint16(offset + InHeader.totalExtlen, true) * 8;
    return true;
  }

  /** Make the first `bytes` of the arguments readable at args/argsAt; 0 or −errno. */
  locateArgs(bytes: number): number {
    const { message } = this;
    if (message.locateRead(InHeader.bytes, bytes)) {
      this.args = message.view;
      this.argsAt = message.offset;
      return 0;
    }
    if (bytes === 0) return 0;
    if (bytes > GATHER_MAX_BYTES) return -E.BIG;
    const target = bytes > GATHER_KEPT_BYTES ? new Uint8Array(bytes) : (this.#gather ??= new Uint8Array(GATHER_KEPT_BYTES));
    if (message.copyIn(InHeader.bytes, target, 0, bytes) !== bytes) return -E.INVAL;
    this.args = new DataView(target.buffer);
    this.argsAt = 0;
    return 0;
  }

  /** Locate as much of the arguments as the operation can have; 0 or −errno. */
  bound(op: Operation): number {
    const most = op.in + op.rest;
    if (op.rest === 0) return this.locateArgs(op.in);
    if (this.argBytes > most) {
      if (op.rest === EXTENDED_BYTES) return -E.BIG;
      this.argBytes = most;
    }
    return this.locateArgs(this.argBytes);
  }

  u32(at: number): number {
    return this.args.getUint32(this.argsAt + at, true);
  }

  /** A u64 that is a size or an offset: exact up to 2^53, else −1. */
  size64(at: number): number {
    const high = this.args.getUint32(this.argsAt + at + 4, true);
    return high > 0x1fffff ? -1 : high * 0x100000000 + this.args.getUint32(this.argsAt + at, true);
  }

  /** A u64 where something is looked for: exact, or FAR_OFFSET. */
  offset64(at: number): number {
    const exact = this.size64(at);
    return exact < 0 ? FAR_OFFSET : exact;
  }

  /** A u64 as it is; for what is rare. */
  u64(at: number): bigint {
    return this.args.getBigUint64(this.argsAt + at, true);
  }

  readFh(at: number): void {
    const { args, argsAt } = this;
    this.fhLow = args.getUint32(argsAt + at, true);
    this.fhHigh = args.getUint32(argsAt + at + 4, true);
  }

  readNode2(at: number): void {
    this.node2Low = this.u32(at);
    this.node2High = this.u32(at + 4);
  }

  readOwner(at: number): void {
    this.ownerLow = this.u32(at);
    this.ownerHigh = this.u32(at + 4);
  }

  /**
   * Copy a path component out of the arguments from `at`, then check it: not empty, no slash, not "." or "..".
   * @returns where the next argument starts, or −errno.
   */
  readComponent(at: number, target: MutableName): number {
    const next = this.#copyString(at, target, NAME_MAX);
    if (next < 0) return next;
    const u8 = this.block.u8;
    const { length, at: start } = target;
    if (length === 0) return -E.INVAL;
    if (u8[start] === 46 && (length === 1 || (length === 2 && u8[start + 1] === 46))) return -E.INVAL;
    for (let i = start; i < start + length; i++) if (u8[i] === 47) return -E.INVAL;
    return next;
  }

  /** Copy an attribute name: not empty. @returns where the next argument starts, or −errno. */
  readXattrName(at: number, target: MutableName): number {
    const next = this.#copyString(at, target, NAME_MAX);
    if (next === -E.NAMETOOLONG) return -E.RANGE; // what the kernel says of attribute names
    return next < 0 ? next : target.length === 0 ? -E.INVAL : next;
  }

  /** Copy a link target into the payload. */
  readTarget(at: number): number {
    const { args, argBytes } = this;
    const u8 = this.block.u8;
    const from = this.argsAt;
    let i = 0;
    for (; i <= TARGET_MAX && at + i < argBytes; i++) {
      const byte = args.getUint8(from + at + i);
      u8[PAYLOAD_AT + i] = byte;
      if (byte === 0) {
        this.payloadLength = i;
        return i === 0 ? -E.NOENT : at + i + 1;
      }
    }
    return i > TARGET_MAX ? -E.NAMETOOLONG : -E.INVAL;
  }

  #copyString(at: number, target: MutableName, max: number): number {
    const args = this.args;
    const u8 = this.block.u8;
    const limit = this.argBytes - at;
    const from = this.argsAt + at;
    const start = target.at;
    const end = limit < max + 1 ? limit : max + 1;
    for (let i = 0; i < end; i++) {
      const byte = args.getUint8(from + i);
      u8[start + i] = byte;
      if (byte === 0) {
        target.length = i;
        return at + i + 1;
      }
    }
    return limit > max ? -E.NAMETOOLONG : -E.INVAL;
  }

  /** Copy `bytes` from the arguments into the payload; 0 or −errno. */
  readPayload(at: number, bytes: number): number {
    if (bytes > 65536) return -E.BIG;
    if (at + bytes > this.argBytes) return -E.INVAL;
    this.block.u8.set(new Uint8Array(this.args.buffer, this.args.byteOffset + this.argsAt + at, bytes), PAYLOAD_AT);
    this.block.u8[PAYLOAD_AT + bytes] = 0;
    this.payloadLength = bytes;
    return 0;
  }

  /** Point the iovecs at file data in the guest's pages; 0 or −errno. */
  locateData(writable: boolean, from: number, bytes: number): number {
    const room = (writable ? this.message.writeBytes : this.message.readBytes) - from;
    if (bytes > room) return -E.INVAL;
    this.iovecCount = this.message.iovecs(writable, from, bytes, this.#iovecWords, IOVECS_MAX);
    this.#dataIsWritable = writable;
    this.#dataFrom = from;
    return this.iovecCount === IOVECS_MAX ? -E.INVAL : 0;
  }

  locatePart(at: number, bytes: number): void {
    this.iovecCount = this.message.iovecs(this.#dataIsWritable, this.#dataFrom + at, bytes, this.#iovecWords, IOVECS_MAX);
  }

  nameBytes(): Uint8Array {
    return this.block.u8.slice(NAME_AT, NAME_AT + this.name.length);
  }

  time(index: number): { seconds: number; nanoseconds: number } {
    const at = TIMES_AT + index * 16;
    return { seconds: Number(this.block.dv.getBigInt64(at, true)), nanoseconds: this.block.dv.getUint32(at + 8, true) };
  }

  name2Bytes(): Uint8Array {
    return this.block.u8.slice(NAME2_AT, NAME2_AT + this.name2.length);
  }

  payloadBytes(): Uint8Array {
    return this.block.u8.slice(PAYLOAD_AT, PAYLOAD_AT + this.payloadLength);
  }

  copyToData(at: number, source: number, bytes: number): number {
    const words = this.#iovecWords;
    let copied = 0;
    for (let i = 0, from = 0; i < this.iovecCount && copied < bytes; i++) {
      const base = words[i * 4] + words[i * 4 + 1] * 2 ** 32;
      const length = words[i * 4 + 2];
      const skip = Math.max(0, at - from);
      from += length;
      if (skip >= length) continue;
      const n = Math.min(length - skip, bytes - copied);
      copyMemory(base + skip, source + copied, n);
      copied += n;
      at += n;
    }
    return copied;
  }

  /**
   * Extensions of a creation (7.36 security contexts, 7.38 groups), `at` being where the names end.
   * Before 7.38 a security context had no ext header total; it simply follows the names.
   */
  readExtensions(at: number, securityContexts: boolean): number {
    this.suppGid = -1;
    this.securityContext = false;
    const end = this.argBytes;
    let from = this.extBytes > 0 ? end - this.extBytes : securityContexts ? at : end;
    if (from < at) return -E.INVAL;
    while (from + 8 <= end) {
      const size = this.u32(from);
      const type = this.u32(from + 4);
      if (size < 8 || from + size > end) return -E.INVAL;
      if (type === EXT_GROUPS && size >= 12) {
        const groups = this.u32(from + 8);
        if (groups > 1 || (groups === 1 && size < 16)) return -E.INVAL; // Linux sends at most one
        if (groups === 1) this.suppGid = this.u32(from + 12);
      } else if (type < EXT_GROUPS && type > 0) {
        const error = this.#readContext(from + 8, from + size);
        if (error < 0) return error;
      }
      from += (size + 7) & ~7;
    }
    return 0;
  }

  /** struct fuse_secctx { u32 size, padding }, name with NUL, value; the first of them is used. */
  #readContext(at: number, end: number): number {
    if (at + 8 > end) return -E.INVAL;
    const bytes = this.u32(at);
    const value = this.#copyString(at + 8, this.labelName, NAME_MAX);
    if (value < 0) return value;
    if (bytes === 0 || bytes > 4096 || value + bytes > end) return -E.INVAL;
    // Above a link target in the payload, which may be in use
    const target = PAYLOAD_AT + 8192;
    this.block.u8.set(new Uint8Array(this.args.buffer, this.args.byteOffset + this.argsAt + value, bytes), target);
    this.labelValue = this.block.address + target;
    this.labelLength = bytes;
    this.securityContext = true;
    return 0;
  }

  /** atime and mtime for utimensat(2): struct timespec each. */
  putTime(index: number, secondsLow: number, secondsHigh: number, nanoseconds: number): void {
    const words = this.block.u32;
    const at = (TIMES_AT >> 2) + index * 4;
    words[at] = secondsLow;
    words[at + 1] = secondsHigh;
    words[at + 2] = nanoseconds;
    words[at + 3] = 0;
  }

  defer(): void {
    this.isDeferred = true;
    // All arguments are decoded: a large buffer of theirs does not wait with the request
    this.args = this.block.dv;
    this.responder.deferred(this);
  }

  detach(): DetachedRequest {
    return this.responder.detached(this);
  }

  /** The request is not used any more. */
  discard(): void {
    this.attr.abandon();
    this.reply.abandon();
    this.block.abandon();
  }

  complete(result: number): void {
    this.responder.completed(this, result);
  }
}

/** The reply header's size; data follows. */
export const OUT_HEADER_BYTES = OutHeader.bytes;
