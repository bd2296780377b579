/** Open directories and listing them. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { O_CLOEXEC, O_DIRECTORY, O_RDONLY, S_IFDIR } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY } from '../handles.js';
import { FOPEN } from '../fuse-flags.js';
import type { Namespace } from './namespace.js';
import type { OpenFiles } from './open-files.js';
import type { Share } from './share.js';

/** How directories are opened on the host. */
export const DIRECTORY_FLAGS = O_RDONLY | O_DIRECTORY | O_CLOEXEC;
export const BUFFER_BYTES = 32768;
/** Listings in progress that keep what the host has returned; others read again. */
const BUFFERS = 64;
/** struct linux_dirent64: d_ino, d_off, d_reclen, d_type, d_name. */
const D_OFF = 8;
const D_RECLEN = 16;
const D_TYPE = 18;
const D_NAME = 19;
const DT_DIR = 4;

/** Entries of one directory as getdents64(2) returned them, and how far they have been passed on. */
interface Listing {
  memory: NativeMemory;
  handle: number;
  sequence: number;
  at: number;
  end: number;
  /** Where the host's descriptor stands, as the offset of the entry before `at`: what a sequential reader asks for. */
  nextLow: number;
  nextHigh: number;
}

export class Directories {
  readonly #listings: Listing[] = [];
  #victim = 0;
  readonly #name = { address: 0, length: 0 };

  constructor(
    readonly share: Share,
    readonly namespace: Namespace,
    readonly files: OpenFiles,
  ) {}

  readonly opendir = (r: FileSystemRequest): number => {
    const { share } = this;
    const slot = share.node(r);
    if (slot < 0) return slot;
    if (share.inodes.type(slot) !== S_IFDIR) return -E.NOTDIR;
    const fd = share.openNode(slot, DIRECTORY_FLAGS);
    return fd < 0 ? fd : this.install(r, slot, fd);
  };

  /** Make a handle of a directory's descriptor, which is taken over. */
  install(r: FileSystemRequest, slot: number, fd: number): number {
    const { share } = this;
    const handle = share.handles.open(fd, slot, HANDLE_DIRECTORY, 0);
    if (handle < 0) {
      share.inodes.close(slot, fd);
      return -E.NFILE;
    }
    share.inodes.addOpen(slot);
    r.fhLow = handle;
    r.fhHigh = share.handles.sequence(handle);
    const { cache } = share.options;
    r.openFlags = cache === 'always' || cache === 'metadata' ? FOPEN.CACHE_DIR | FOPEN.KEEP_CACHE : 0;
    return 0;
  }

  readonly releasedir = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    this.dropListing(handle);
    this.files.closeHandle(handle);
    return 0;
  };

  /** The handle is about to be closed: its buffer is free. */
  dropListing(handle: number): void {
    for (const listing of this.#listings) if (listing.handle === handle) listing.handle = -1;
  }

  readonly fsyncdir = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    return handle < 0 ? handle : this.files.sync(r, handle);
  };

  readonly readdir = (r: FileSystemRequest): number => this.#list(r, false);
  readonly readdirplus = (r: FileSystemRequest): number => this.#list(r, true);

  /** Slot of the request's directory handle, or −EBADF. */
  handle(r: FileSystemRequest): number {
    const slot = this.share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_DIRECTORY);
    return slot < 0 ? -E.BADF : slot;
  }

  #list(r: FileSystemRequest, plus: boolean): number {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const { share } = this;
    const fd = share.handles.fd(handle);
    const listing = this.#listing(handle);
    const error = this.#seek(r, fd, listing);
    if (error < 0) return error;
    const { dv, u8 } = listing.memory;
    const dirFd = plus ? share.inodes.fd(share.handles.node(handle)) : -1;
    for (;;) {
      if (listing.at >= listing.end) {
        const n = c.neg(c.getdents64(fd, listing.memory.address, BUFFER_BYTES));
        if (n < 0) return r.entries.used > 0 ? r.entries.used : n;
        if (n === 0) break;
        listing.at = 0;
        listing.end = n;
      }
      const at = listing.at;
      const next = at + dv.getUint16(at + D_RECLEN, true);
      const nameLength = nameLengthAt(u8, at, next);
      if (!r.entries.fits(nameLength)) {
        if (r.entries.used === 0) return -E.INVAL;
        break;
      }
      const listed = this.#entry(r, dirFd, dv, u8, at, nameLength, plus, listing.memory.address);
      if (listed < 0) return r.entries.used > 0 ? r.entries.used : listed;
      listing.at = next;
      listing.nextLow = dv.getUint32(at + D_OFF, true);
      listing.nextHigh = dv.getUint32(at + D_OFF + 4, true);
    }
    return r.entries.used;
  }

  /**
   * Put entries that list() of steps.ts has read to the start of `memory`, as many as fit, without attributes: on storage where
   * each inode's may take long, the guest asks for those that it wants.
   */
  putRead(r: FileSystemRequest, memory: NativeMemory, bytes: number): number {
    const { dv, u8 } = memory;
    for (let at = 0; at < bytes; ) {
      const next = at + dv.getUint16(at + D_RECLEN, true);
      const nameLength = nameLengthAt(u8, at, next);
      if (!r.entries.fits(nameLength)) return r.entries.used === 0 ? -E.INVAL : r.entries.used;
      this.#entry(r, -1, dv, u8, at, nameLength, false, memory.address);
      at = next;
    }
    return r.entries.used;
  }

  #entry(r: FileSystemRequest, dirFd: number, dv: DataView, u8: Uint8Array, at: number, nameLength: number, plus: boolean, base: number): number {
    const type = u8[at + D_TYPE];
    let withAttributes = false;
    const dots = u8[at + D_NAME] === 46 && (nameLength === 1 || (nameLength === 2 && u8[at + D_NAME + 1] === 46));
    const name = this.#name;
    name.address = base + at + D_NAME;
    name.length = nameLength;
    if (plus && !dots && !this.share.inodes.mounts.leadsToRemote(name)) {
      const error = this.namespace.entry(r, dirFd, name);
      if (error === -E.NOENT) return 0; // removed since the host listed it
      withAttributes = error === 0;
    }
    r.entries.put(
      dv.getUint32(at, true), dv.getUint32(at + 4, true), dv.getUint32(at + D_OFF, true), dv.getUint32(at + D_OFF + 4, true),
      dots ? DT_DIR : type, u8, at + D_NAME, nameLength, withAttributes,
    );
    return 0;
  }

  /** The buffer of a handle; the oldest one is taken over when all are in use. */
  #listing(handle: number): Listing {
    const sequence = this.share.handles.sequence(handle);
    let free: Listing | null = null;
    for (const listing of this.#listings) {
      if (listing.handle === handle && listing.sequence === sequence) return listing;
      if (listing.handle < 0) free = listing;
    }
    if (free === null && this.#listings.length < BUFFERS) {
      free = { memory: NativeMemory.allocate(BUFFER_BYTES), handle: -1, sequence: 0, at: 0, end: 0, nextLow: 0, nextHigh: 0 };
      this.#listings.push(free);
    }
    free ??= this.#listings[this.#victim++ % BUFFERS];
    free.handle = handle;
    free.sequence = sequence;
    // Nothing read: only an explicit position makes sense, so #seek always seeks
    free.at = free.end = 0;
    free.nextLow = free.nextHigh = 0xffffffff;
    return free;
  }

  /** Bring the listing to the offset that the guest asks for: 0 or a d_off seen before. */
  #seek(r: FileSystemRequest, fd: number, listing: Listing): number {
    const low = r.node2Low;
    const high = r.node2High;
    if (low === listing.nextLow && high === listing.nextHigh && (low !== 0 || high !== 0)) return 0;
    listing.at = listing.end = 0;
    listing.nextLow = low;
    listing.nextHigh = high;
    const position = positionOf(low, high);
    if (position < 0) return -E.INVAL;
    // The position comes back, as a bigint when it is large; only −1 says something
    return c.lseek(fd, position, 0) === -1 ? -c.errno() : 0;
  }
}

/** A directory offset for lseek(2): d_off of the host, any 63 bits (above 2^53 a bigint in disguise); or −1. */
export function positionOf(low: number, high: number): number {
  if (high >= 0x80000000) return -1;
  return high < 0x200000 ? high * 2 ** 32 + low : ((BigInt(high) << 32n) | BigInt(low)) as unknown as number;
}

/** The NUL is within the last 8 bytes of the record; what follows it is not cleared by the kernel. */
function nameLengthAt(u8: Uint8Array, at: number, next: number): number {
  let length = next - at - D_NAME - 8;
  if (length < 1) length = 1;
  while (u8[at + D_NAME + length] !== 0) length++;
  return length;
}
