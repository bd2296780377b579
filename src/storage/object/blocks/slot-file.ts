/**
 * The file that blocks lie in, in slots of one size: a sparse file, in which a free slot is a hole.
 *
 * It is read by way of the host's page cache. What is long is best written past it (O_DIRECT): that saves the copy and the memory, of which a host
 * of virtual machines has better use, since the guest that has asked for it has it in a page cache of its own.
 */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, read, write } from 'node:fs';
import { promisify } from 'node:util';
import { E } from '../../../base/errno.js';
import { RWF_NOWAIT } from '../../../ffi/constants.js';
import * as c from '../../../ffi/libc.js';
import { NativeMemory } from '../../../ffi/memory.js';
import { writeAll } from '../page-cache.js';

const readFd = promisify(read);
const writeFd = promisify(write);

const PUNCH = 2 | 1; // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE (include/uapi/linux/falloc.h)
const PAGE = 4096;
const IOVEC_BYTES = 16;
/** Shorter ones are not worth waiting for the disk each. */
const DIRECT_MIN_BYTES = 256 << 10;

/** Memory of a request, as preadv2(2) takes it. */
export interface Iovecs {
  readonly iovecs: number;
  readonly iovecCount: number;
}

export class SlotFile {
  readonly #fd: number;
  /** The same file, past the page cache; −1: not on this file system. */
  readonly #direct: number;
  #refused = false;
  readonly #iovec = NativeMemory.allocate(IOVEC_BYTES);
  /** The file system can tell whether a read would wait. */
  #tells = true;
  #punches = true;
  #punching: Promise<unknown> = Promise.resolve();

  /** @throws an error of the file system */
  constructor(
    path: string,
    readonly slotBytes: number,
  ) {
    this.#fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    this.#direct = openDirect(path);
  }

  get bytes(): number {
    return fstatSync(this.#fd).size;
  }

  /** Space in the middle of the file is given back; where it is not, a slot takes all of its bytes for good. */
  get punches(): boolean {
    return this.#punches;
  }

  /** Disk space of so many bytes in a slot. */
  cost(bytes: number): number {
    return this.#punches ? Math.ceil(bytes / PAGE) * PAGE : this.slotBytes;
  }

  /** At the start: only these many slots are of use. @throws an error of the file system */
  cut(slots: number): void {
    ftruncateSync(this.#fd, slots * this.slotBytes);
    this.#punches = c.fallocate(this.#fd, PUNCH, slots * this.slotBytes, PAGE) === 0;
  }

  /** At the start: nothing is in slots from `first` up to `end`. */
  clear(first: number, end: number): void {
    if (this.#punches) c.fallocate(this.#fd, PUNCH, first * this.slotBytes, (end - first) * this.slotBytes);
  }

  /** [from, to) of a slot is a hole. Space that stays taken is no error: the slot will be used again. One at a time: a crowd would hold every thread. */
  punch(slot: number, from: number, to: number): Promise<unknown> {
    if (!this.#punches || from >= to) return Promise.resolve();
    this.#punching = this.#punching.then(() => c.fallocateLater(this.#fd, PUNCH, slot * this.slotBytes + from, to - from));
    return this.#punching;
  }

  /** All of a slot is a hole at once. @returns whether its space was given back */
  punchNow(slot: number): boolean {
    return this.#punches && c.fallocate(this.#fd, PUNCH, slot * this.slotBytes, this.slotBytes) === 0;
  }

  /** As many bytes as the iovecs have room for, `at` bytes behind the start of a slot, if that takes no waiting. @returns bytes read, −1: not now */
  readNow(slot: number, at: number, { iovecs, iovecCount }: Iovecs): number {
    if (!this.#tells) return -1;
    const n = c.preadv2(this.#fd, iovecs, iovecCount, slot * this.slotBytes + at, RWF_NOWAIT);
    if (n < 0 && c.errno() === E.OPNOTSUPP) this.#tells = false;
    return n;
  }

  /** The same into memory of ours. @returns whether all of it is there */
  fillNow(slot: number, at: number, bytes: number, into: NativeMemory): boolean {
    // SAFETY: one struct iovec over memory that the caller keeps; the call is synchronous
    const words = this.#iovec.dv;
    words.setBigUint64(0, BigInt(into.address), true);
    words.setBigUint64(8, BigInt(bytes), true);
    return this.readNow(slot, at, { iovecs: this.#iovec.address, iovecCount: 1 }) === bytes;
  }

  /** Waiting if need be. @returns false: the file ends before. @throws an error of the file system */
  async fill(slot: number, at: number, bytes: number, into: NativeMemory): Promise<boolean> {
    for (let done = 0; done < bytes; ) {
      const { bytesRead } = await readFd(this.#fd, into.u8, done, bytes - done, slot * this.slotBytes + at + done);
      if (bytesRead === 0) return false;
      done += bytesRead;
    }
    return true;
  }

  /** `at` bytes behind the start of a slot. @throws an error of the file system */
  write(slot: number, content: Uint8Array, at = 0): Promise<void> {
    return writeAll(this.#fd, content, slot * this.slotBytes + at);
  }

  /**
   * A whole block into a slot that nobody reads, past the page cache where that is possible. @returns whether it was
   * @throws an error of the file system
   */
  async writeDirect(slot: number, content: Uint8Array): Promise<boolean> {
    const offset = slot * this.slotBytes;
    // Memory, place and length in whole pages do for every device
    const bytes = this.#direct >= 0 && !this.#refused && content.byteOffset % PAGE === 0 ? content.length - (content.length % PAGE) : 0;
    const done = bytes >= DIRECT_MIN_BYTES ? await this.#writePages(content, bytes, offset) : 0;
    if (done < content.length) await writeAll(this.#fd, content.subarray(done), offset + done);
    return done > 0;
  }

  /** @returns bytes written: fewer where the file system refuses to do it this way, which is then not tried again */
  async #writePages(content: Uint8Array, bytes: number, offset: number): Promise<number> {
    let done = 0;
    try {
      while (done < bytes) done += (await writeFd(this.#direct, content, done, bytes - done, offset + done)).bytesWritten;
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'EINVAL') throw error;
      this.#refused = true;
    }
    return done;
  }

  /** Nothing may be under way. */
  close(): void {
    closeSync(this.#fd);
    if (this.#direct >= 0) closeSync(this.#direct);
    this.#iovec.free();
  }
}

function openDirect(path: string): number {
  try {
    return openSync(path, constants.O_WRONLY | constants.O_DIRECT);
  } catch {
    return -1;
  }
}
