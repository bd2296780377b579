/**
 * Which block lies in which slot, and in what order blocks were used. Columns of numbers instead of objects: a cache of small objects has
 * hundreds of thousands of blocks, and each costs some 60 bytes here.
 *
 * A slot is free, taken (somebody writes to it, or is about to), or has a block.
 */
import { assert } from '../../../base/assert.js';

/** Which object, in which version: a digest of four words. */
export type ObjectId = Uint32Array;

export const ID_WORDS = 4;
/** What is known of what is in a slot: nothing yet; it is good: it was compared with its checksum by this process, or written by it; good, but not all of the block. */
export const STATE = { unchecked: 0, good: 1, part: 2 } as const;
const NONE = -1;
/** Spreads the numbers of one object's blocks (2^32 divided by the golden ratio). */
const SPREAD = 0x9e3779b1;

export class BlockTable {
  /** By slot. 0 bytes: there is no block in it. */
  readonly bytes: Uint32Array;
  readonly block: Uint32Array;
  readonly checksum: Uint32Array;
  /** When it was used last, counted. */
  readonly used: Float64Array;
  /** One of STATE. */
  readonly state: Uint8Array;
  readonly #ids: Uint32Array;
  /** The order of use, towards the newest and the oldest; the former also chains free slots. */
  readonly #newer: Int32Array;
  readonly #older: Int32Array;
  /** Open addressing with linear probing: slot + 1, or 0. */
  readonly #buckets: Int32Array;
  readonly #mask: number;
  #oldest = NONE;
  #newest = NONE;
  #free = NONE;
  /** No slot from here on was ever taken. */
  #high = 0;
  #clock = 0;
  #count = 0;

  constructor(readonly slots: number) {
    assert(slots > 0 && slots <= 1 << 24, `${slots} slots`);
    this.bytes = new Uint32Array(slots);
    this.block = new Uint32Array(slots);
    this.checksum = new Uint32Array(slots);
    this.used = new Float64Array(slots);
    this.state = new Uint8Array(slots);
    this.#ids = new Uint32Array(slots * ID_WORDS);
    this.#newer = new Int32Array(slots);
    this.#older = new Int32Array(slots);
    const buckets = 2 ** Math.ceil(Math.log2(slots * 2));
    this.#buckets = new Int32Array(buckets);
    this.#mask = buckets - 1;
  }

  /** Blocks that are there. */
  get count(): number {
    return this.#count;
  }

  /** Slots from here on were never used. */
  get high(): number {
    return this.#high;
  }

  /** The slot of a block, or −1. */
  find(id: ObjectId, block: number): number {
    for (let at = this.#hash(id[0], block); ; at = (at + 1) & this.#mask) {
      const slot = this.#buckets[at] - 1;
      if (slot < 0 || (this.block[slot] === block && this.#is(slot, id))) return slot;
    }
  }

  idOf(slot: number): ObjectId {
    return this.#ids.subarray(slot * ID_WORDS, (slot + 1) * ID_WORDS);
  }

  /** A slot that is free, which nobody else gets now; −1: there is none. */
  take(): number {
    const slot = this.#free;
    if (slot === NONE) return this.#high < this.slots ? this.#high++ : NONE;
    this.#free = this.#newer[slot];
    return slot;
  }

  /** A slot that was taken is free again. */
  release(slot: number): void {
    this.#newer[slot] = this.#free;
    this.#free = slot;
  }

  /** At the start: one slot after the other is free, or has what was there. */
  restore(slot: number, id: ObjectId, block: number, bytes: number, checksum: number, used: number): void {
    assert(slot >= this.#high, 'slots are restored in their order');
    while (this.#high < slot) this.release(this.#high++);
    this.#high = slot + 1;
    this.#put(slot, id, block, bytes, checksum);
    this.used[slot] = used;
    this.#clock = Math.max(this.#clock, used);
  }

  /** All were restored: put them in the order of their use. */
  restored(): void {
    const slots = Array.from(this.bytes.subarray(0, this.#high).keys()).filter((slot) => this.bytes[slot] > 0);
    for (const slot of slots.sort((a, b) => this.used[a] - this.used[b])) this.#append(slot);
  }

  /** A block is in a slot that was taken: the newest. */
  add(slot: number, id: ObjectId, block: number, bytes: number, checksum: number): void {
    this.#put(slot, id, block, bytes, checksum);
    this.used[slot] = ++this.#clock;
    this.#append(slot);
  }

  /** The block is gone; its slot is taken, for whoever asked. */
  remove(slot: number): void {
    this.#unlink(slot);
    this.#unhash(slot);
    this.bytes[slot] = 0;
    this.state[slot] = STATE.unchecked;
    this.#count--;
  }

  touch(slot: number): void {
    if (slot === this.#newest) return;
    this.used[slot] = ++this.#clock;
    this.#unlink(slot);
    this.#append(slot);
  }

  /** The slot of the block that was used least recently, or −1; and the one that was used after it. */
  get oldest(): number {
    return this.#oldest;
  }

  after(slot: number): number {
    return this.#newer[slot];
  }

  #put(slot: number, id: ObjectId, block: number, bytes: number, checksum: number): void {
    assert(bytes > 0, 'a block has bytes');
    this.#ids.set(id, slot * ID_WORDS);
    this.block[slot] = block;
    this.bytes[slot] = bytes;
    this.checksum[slot] = checksum;
    let at = this.#hash(id[0], block);
    while (this.#buckets[at] !== 0) at = (at + 1) & this.#mask;
    this.#buckets[at] = slot + 1;
    this.#count++;
  }

  #append(slot: number): void {
    this.#older[slot] = this.#newest;
    this.#newer[slot] = NONE;
    if (this.#newest === NONE) this.#oldest = slot;
    else this.#newer[this.#newest] = slot;
    this.#newest = slot;
  }

  #unlink(slot: number): void {
    const [older, newer] = [this.#older[slot], this.#newer[slot]];
    if (older === NONE) this.#oldest = newer;
    else this.#newer[older] = newer;
    if (newer === NONE) this.#newest = older;
    else this.#older[newer] = older;
  }

  /** Those behind it that are not where they would like to be move up (Knuth, TAOCP 6.4, algorithm R). */
  #unhash(slot: number): void {
    let hole = this.#hash(this.#ids[slot * ID_WORDS], this.block[slot]);
    while (this.#buckets[hole] !== slot + 1) hole = (hole + 1) & this.#mask;
    for (let at = (hole + 1) & this.#mask; this.#buckets[at] !== 0; at = (at + 1) & this.#mask) {
      const other = this.#buckets[at] - 1;
      const home = this.#hash(this.#ids[other * ID_WORDS], this.block[other]);
      if (((at - home) & this.#mask) < ((at - hole) & this.#mask)) continue;
      this.#buckets[hole] = other + 1;
      hole = at;
    }
    this.#buckets[hole] = 0;
  }

  #hash(word: number, block: number): number {
    return (word ^ Math.imul(block, SPREAD)) & this.#mask;
  }

  #is(slot: number, id: ObjectId): boolean {
    const at = slot * ID_WORDS;
    const ids = this.#ids;
    return ids[at] === id[0] && ids[at + 1] === id[1] && ids[at + 2] === id[2] && ids[at + 3] === id[3];
  }
}
