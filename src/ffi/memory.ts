/** Native memory of our own: mappings with a JavaScript view, owned and unmapped in one place. */
import koffi from 'koffi';
import { assert } from '../base/assert.js';
import * as c from './libc.js';
import { SysError } from './errors.js';
import { MADV_DONTNEED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_PRIVATE, PROT_READ, PROT_WRITE } from './constants.js';

/** One view covers at most this many bytes: V8 refuses (koffi aborts on) larger ones, and offsets stay small integers. */
export const VIEW_MAX_BYTES = 1 << 30;

/**
 * An ArrayBuffer over [address, address + bytes).
 * SAFETY: the caller keeps the range mapped for as long as anything derived from the view is used; any thread.
 */
export function viewOf(address: number, bytes: number): ArrayBuffer {
  assert(address > 0 && bytes > 0 && bytes <= VIEW_MAX_BYTES, `view of ${bytes} bytes at ${address}`);
  return koffi.view(address as never, bytes) as ArrayBuffer;
}

/** memcpy(3). SAFETY: both ranges are mapped, and do not overlap; any thread. */
export function copyMemory(target: number, source: number, bytes: number): void {
  c.memcpy(target, source, bytes);
}

/** Give pages of the C library's heap that nothing uses any more back to the system (malloc_trim(3)), which free(3) does only at the heap's end. */
export function trimHeap(): void {
  c.mallocTrim(0);
}

/** Ranges without an owner, whose views are gone. */
const abandoned = new FinalizationRegistry(({ address, length }: { address: number; length: number }) => void c.munmap(address, length));

/** A block of zeroed native memory with its views, for arguments and results of system calls. */
export class NativeMemory {
  readonly buffer: ArrayBuffer;
  readonly u8: Uint8Array;
  readonly i32: Int32Array;
  readonly u32: Uint32Array;
  readonly dv: DataView;
  #mapped = true;

  private constructor(
    readonly address: number,
    readonly length: number,
  ) {
    this.buffer = viewOf(address, length);
    this.u8 = new Uint8Array(this.buffer);
    this.i32 = new Int32Array(this.buffer);
    this.u32 = new Uint32Array(this.buffer);
    this.dv = new DataView(this.buffer);
  }

  /** Anonymous private memory; pages are taken only when touched. Length in bytes, rounded up to 4 KiB. */
  static allocate(bytes: number): NativeMemory {
    const length = Math.ceil(bytes / 4096) * 4096;
    const address = c.mmap(0, length, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (address === -1) throw new SysError(c.errno(), 'mmap', `${length} bytes`);
    return new NativeMemory(address, length);
  }

  /** Give the memory back. Nothing may use the views or the address afterwards. */
  free(): void {
    assert(this.#mapped, 'native memory freed twice');
    this.#mapped = false;
    c.check(c.munmap(this.address, this.length), 'munmap');
  }

  /** Give the pages back now, and the addresses when nothing has a view of them any more. */
  abandon(): void {
    assert(this.#mapped, 'native memory given up twice');
    this.#mapped = false;
    c.madvise(this.address, this.length, MADV_DONTNEED);
    abandoned.register(this.buffer, { address: this.address, length: this.length });
  }

  /** Write a NUL-terminated string at `offset`; returns its address. */
  putString(offset: number, text: string): number {
    const bytes = Buffer.from(text);
    assert(offset + bytes.length < this.length, 'string does not fit');
    this.u8.set(bytes, offset);
    this.u8[offset + bytes.length] = 0;
    return this.address + offset;
  }
}
