/**
 * Memory for session state that outlives its allocations' patterns: a large reserved range backed by a memfd.
 * Pages cost nothing until touched and are given back by punch(). Because it is a memfd, a later process can map
 * the same state.
 */
import * as c from '../ffi/libc.js';
import { SysError } from '../ffi/errors.js';
import { viewOf } from '../ffi/memory.js';
import { MADV_REMOVE, MAP_NORESERVE, MAP_SHARED, MFD_CLOEXEC, PROT_READ, PROT_WRITE } from '../ffi/constants.js';

/**
 * So much is seen at first. V8 counts what views see as memory in use, and collects garbage at once when 64 MiB have come in addition: at a start that would
 * be a tenth of it.
 */
const FIRST_VIEW_BYTES = 32 << 20;

export class Arena {
  /** What has been reached. It is another array after reach(). */
  i32: Int32Array;
  readonly address: number;
  readonly #fd: number;

  constructor(
    name: string,
    readonly bytes: number,
  ) {
    this.#fd = c.check(c.memfdCreate(name, MFD_CLOEXEC), 'memfd_create', name);
    c.check(c.ftruncate(this.#fd, bytes), 'ftruncate', name);
    // SAFETY: mapped for the life of the object, which is the life of the process but in tests
    this.address = c.mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, this.#fd, 0);
    if (this.address === -1) throw new SysError(c.errno(), 'mmap', name);
    this.i32 = new Int32Array(viewOf(this.address, Math.min(bytes, FIRST_VIEW_BYTES)));
  }

  /** Makes the first `bytes` accessible; arrays from before stay valid. */
  reach(bytes: number): void {
    if (bytes > this.i32.byteLength) this.i32 = new Int32Array(viewOf(this.address, this.bytes));
  }

  /** Give pages back; they read as zeros afterwards. Both numbers are multiples of 4096. */
  punch(offset: number, bytes: number): void {
    c.check(c.madvise(this.address + offset, bytes, MADV_REMOVE), 'madvise(MADV_REMOVE)');
  }

  /** Nothing may use the views afterwards. */
  close(): void {
    c.munmap(this.address, this.bytes);
    c.close(this.#fd);
  }
}
