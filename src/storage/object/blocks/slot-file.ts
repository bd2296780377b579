/** The file that blocks lie in, in slots of one size: a sparse file, in which a free slot is a hole. */
import { closeSync, constants, fstatSync, ftruncateSync, openSync, read } from 'node:fs';
import { promisify } from 'node:util';
import { E } from '../../../base/errno.js';
import { RWF_NOWAIT } from '../../../ffi/constants.js';
import * as c from '../../../ffi/libc.js';
import { NativeMemory } from '../../../ffi/memory.js';
import { writeAll } from '../page-cache.js';

const readFd = promisify(read);

const PUNCH = 2 | 1; // FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE (include/uapi/linux/falloc.h)
const PAGE = 4096;
const IOVEC_BYTES = 16;

/** Memory of a request, as preadv2(2) takes it. */
export interface Iovecs {
  readonly iovecs: number;
  readonly iovecCount: number;
}

export class SlotFile {
  readonly #fd: number;
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

  /** Nothing may be under way. */
  close(): void {
    closeSync(this.#fd);
    this.#iovec.free();
  }
}
