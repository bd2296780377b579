/**
 * Many short runs of bytes without an object for each: chunks of entries of one size. A chunk in which none is used any more goes back to the
 * system, which memory of JavaScript mostly does not.
 */
import { assert } from '../../base/assert.js';
import { NativeMemory } from '../../ffi/memory.js';

const CHUNK_BYTES = 1 << 18;
const SIZE_STEP = 8;
/** Longer ones there are not. */
export const ENTRY_MAX_BYTES = 8192;
const ENTRY_BITS = 15;
const ENTRY_MASK = (1 << ENTRY_BITS) - 1;
const NONE = -1;

interface Chunk {
  readonly memory: NativeMemory;
  readonly bytes: Buffer;
  /** Of an entry, in steps. */
  readonly steps: number;
  used: number;
  /** The first entry that is free; it has the number of the next one. */
  free: number;
  /** No entry from here on was ever used. */
  high: number;
  /** Its place among those of its size that have room. */
  place: number;
}

export class ByteSlabs {
  readonly #chunks: (Chunk | null)[] = [];
  /** Numbers of chunks that went back. */
  readonly #spare: number[] = [];
  /** By size: numbers of chunks that have room. */
  readonly #open: number[][] = [];
  /** Where the entry is that was asked for last. */
  bytes: Buffer = NOWHERE;
  offset = 0;

  /** Room for so many bytes, which are what they were. @returns its number, greater than 0; `bytes` and `offset` are there */
  allocate(count: number): number {
    assert(count > 0 && count <= ENTRY_MAX_BYTES, `an entry of ${count} bytes`);
    const steps = Math.ceil(count / SIZE_STEP);
    const open = (this.#open[steps] ??= []);
    if (open.length === 0) this.#addChunk(steps);
    const number = open.at(-1)!;
    const chunk = this.#chunks[number]!;
    let entry = chunk.free;
    if (entry === NONE) entry = chunk.high++;
    else chunk.free = chunk.bytes.readInt32LE(entry * steps * SIZE_STEP);
    chunk.used++;
    if (chunk.free === NONE && chunk.high === entriesOf(chunk)) this.#close(chunk);
    const id = (number << ENTRY_BITS) + entry + 1;
    this.locate(id);
    return id;
  }

  locate(id: number): void {
    const chunk = this.#chunks[(id - 1) >>> ENTRY_BITS]!;
    this.bytes = chunk.bytes;
    this.offset = ((id - 1) & ENTRY_MASK) * chunk.steps * SIZE_STEP;
  }

  free(id: number): void {
    const number = (id - 1) >>> ENTRY_BITS;
    const chunk = this.#chunks[number]!;
    const full = chunk.free === NONE && chunk.high === entriesOf(chunk);
    if (--chunk.used === 0) {
      if (!full) this.#close(chunk);
      this.#chunks[number] = null;
      this.#spare.push(number);
      this.bytes = NOWHERE;
      chunk.memory.free();
      return;
    }
    const entry = (id - 1) & ENTRY_MASK;
    chunk.bytes.writeInt32LE(chunk.free, entry * chunk.steps * SIZE_STEP);
    chunk.free = entry;
    if (full) this.#reopen(chunk, number);
  }

  #addChunk(steps: number): void {
    const number = this.#spare.pop() ?? this.#chunks.length;
    const memory = NativeMemory.allocate(CHUNK_BYTES);
    const chunk: Chunk = { memory, bytes: Buffer.from(memory.buffer), steps, used: 0, free: NONE, high: 0, place: NONE };
    this.#chunks[number] = chunk;
    this.#reopen(chunk, number);
  }

  #reopen(chunk: Chunk, number: number): void {
    const open = this.#open[chunk.steps];
    chunk.place = open.length;
    open.push(number);
  }

  #close(chunk: Chunk): void {
    const open = this.#open[chunk.steps];
    const last = open.pop()!;
    if (chunk.place === open.length) return;
    open[chunk.place] = last;
    this.#chunks[last]!.place = chunk.place;
  }
}

const NOWHERE = Buffer.alloc(0);

const entriesOf = ({ steps }: Chunk): number => Math.floor(CHUNK_BYTES / (steps * SIZE_STEP));
