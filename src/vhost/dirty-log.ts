/**
 * The dirty page log of live migration (VHOST_USER_SET_LOG_BASE): one bit for each 4 KiB page of guest-physical
 * memory, in memory shared with the frontend, which clears bits while we set them.
 */
import * as c from '../ffi/libc.js';
import { VIEW_MAX_BYTES, viewOf } from '../ffi/memory.js';
import { MAP_SHARED, PROT_READ, PROT_WRITE } from '../ffi/constants.js';
import { ProtocolError } from './errors.js';
import { guardFile } from './guest-memory.js';

const PAGE_SHIFT_DIVISOR = 4096;

export class DirtyLog {
  readonly #words: Int32Array;
  readonly #mapping: number;
  readonly #mappingBytes: number;
  #marked = false;

  /** Map the log; the descriptor stays the caller's. */
  constructor(fd: number, offset: number, bytes: number) {
    // The words that are or-ed atomically must be aligned
    if (bytes < 4 || bytes > VIEW_MAX_BYTES || !Number.isSafeInteger(offset) || offset < 0 || offset % 4 !== 0) {
      throw new ProtocolError('log', `a dirty log of ${bytes} bytes at ${offset}`);
    }
    guardFile(fd, offset + bytes, 'log');
    const lead = offset % 4096;
    this.#mappingBytes = lead + bytes;
    // SAFETY: unmapped by close() only, after the queues that use it are drained
    this.#mapping = c.mmap(0, this.#mappingBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset - lead);
    if (this.#mapping === -1) throw new ProtocolError('log', `cannot map the dirty log: errno ${c.errno()}`);
    this.#words = new Int32Array(viewOf(this.#mapping + lead, bytes & ~3));
  }

  /** Note that [gpa, gpa + bytes) was written. Pages beyond the log are the frontend's omission and ignored. */
  mark(gpa: number, bytes: number): void {
    if (bytes <= 0) return;
    this.#marked = true;
    const last = Math.floor((gpa + bytes - 1) / PAGE_SHIFT_DIVISOR);
    for (let page = Math.floor(gpa / PAGE_SHIFT_DIVISOR); page <= last; page++) {
      const word = Math.floor(page / 32);
      if (word >= this.#words.length) return;
      Atomics.or(this.#words, word, 1 << (page & 31));
    }
  }

  /** Whether anything was marked since the last time this was asked. */
  takeMarked(): boolean {
    const marked = this.#marked;
    this.#marked = false;
    return marked;
  }

  close(): void {
    c.munmap(this.#mapping, this.#mappingBytes);
  }
}
