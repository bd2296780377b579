/**
 * Which pieces of a block are in a slot that holds only a part of it: a bit for each granule, which is there as a whole (up to the object's end) or not.
 * Reads of a part of the block are answered from here while it is not worth fetching the rest.
 */

/** A page of guests and hosts: nothing smaller is read. */
export const GRANULE_BYTES = 4096;

/** One column of words for each slot; the system gives memory for those only that are ever set. */
export class Granules {
  readonly #words: Uint32Array;
  readonly #wordsEach: number;

  constructor(slots: number, slotBytes: number) {
    this.#wordsEach = Math.ceil(slotBytes / GRANULE_BYTES / 32);
    this.#words = new Uint32Array(slots * this.#wordsEach);
  }

  /** All that [at, at + bytes) of the slot touches is there; `bytes` is not 0. */
  has(slot: number, at: number, bytes: number): boolean {
    const words = this.#words;
    const first = slot * this.#wordsEach;
    const end = (at + bytes - 1) >>> 12;
    for (let i = at >>> 12; i <= end; i++) if ((words[first + (i >>> 5)] & (1 << (i & 31))) === 0) return false;
    return true;
  }

  /** [at, at + bytes) of the slot is there, from the beginning of a granule on, to the end of one, or of the block. */
  set(slot: number, at: number, bytes: number): void {
    const first = slot * this.#wordsEach;
    const end = at + bytes;
    for (let i = at >>> 12; i * GRANULE_BYTES < end; i++) this.#words[first + (i >>> 5)] |= 1 << (i & 31);
  }

  /** Granules that are there, of [at, at + bytes). */
  count(slot: number, at: number, bytes: number): number {
    let count = 0;
    for (let from = at; from < at + bytes; from += GRANULE_BYTES) if (this.has(slot, from, 1)) count++;
    return count;
  }

  clear(slot: number): void {
    this.#words.fill(0, slot * this.#wordsEach, (slot + 1) * this.#wordsEach);
  }
}
