/**
 * Open files and directories: file handle ↔ descriptor. A file handle is (slot, sequence), so that a dead or
 * made-up one names nothing. Records are words in one typed array; it grows by doubling up to the limit.
 */
const WORDS = 8;
const SEQ = 0;
const FD = 1;
const NODE = 2;
const FLAGS = 3;
const KIND = 4;
const NEXT = 5;
const BUSY = 6;
const CLOSING = 7;

export const HANDLE_FILE = 1;
export const HANDLE_DIRECTORY = 2;

export class HandleTable {
  count = 0;
  #words: Int32Array = new Int32Array(256 * WORDS);
  #free = 0;
  #bump = 1;
  #sequence = 0;

  constructor(readonly maxHandles: number) {}

  /** @returns the slot, or −1 when there are too many. `flags` are free for the file system. */
  open(fd: number, node: number, kind: number, flags: number): number {
    if (this.count >= this.maxHandles) return -1;
    let slot = this.#free;
    if (slot !== 0) {
      this.#free = this.#words[slot * WORDS + NEXT];
    } else {
      slot = this.#bump++;
      if (this.#bump * WORDS > this.#words.length) {
        const grown = new Int32Array(this.#words.length * 2);
        grown.set(this.#words);
        this.#words = grown;
      }
    }
    this.#sequence = (this.#sequence + 1) | 0;
    if (this.#sequence === 0) this.#sequence = 1;
    const at = slot * WORDS;
    const words = this.#words;
    words[at + SEQ] = this.#sequence;
    words[at + FD] = fd;
    words[at + NODE] = node;
    words[at + FLAGS] = flags;
    words[at + KIND] = kind;
    words[at + BUSY] = 0;
    words[at + CLOSING] = 0;
    this.count++;
    return slot;
  }

  /** Slot of a live handle of the kind, or −1. */
  slotOf(low: number, high: number, kind: number): number {
    if (low >= this.#bump || low <= 0) return -1;
    const at = low * WORDS;
    return this.#words[at + SEQ] === (high | 0) && this.#words[at + KIND] === kind ? low : -1;
  }

  sequence(slot: number): number {
    return this.#words[slot * WORDS + SEQ] >>> 0;
  }

  fd(slot: number): number {
    return this.#words[slot * WORDS + FD];
  }

  node(slot: number): number {
    return this.#words[slot * WORDS + NODE];
  }

  flags(slot: number): number {
    return this.#words[slot * WORDS + FLAGS];
  }

  setFlags(slot: number, flags: number): void {
    this.#words[slot * WORDS + FLAGS] = flags;
  }

  /** A call in another thread uses the descriptor: it may not be closed, lest its number come to mean another file. */
  hold(slot: number): void {
    this.#words[slot * WORDS + BUSY]++;
  }

  isHeld(slot: number): boolean {
    return this.#words[slot * WORDS + BUSY] !== 0;
  }

  /** The call is over. @returns whether the handle was to be closed meanwhile: the caller does it now. */
  unhold(slot: number): boolean {
    const at = slot * WORDS;
    return --this.#words[at + BUSY] === 0 && this.#words[at + CLOSING] !== 0;
  }

  /** Whether the handle must outlive its release because of hold(); its id is dead from now on. */
  deferClose(slot: number): boolean {
    const at = slot * WORDS;
    if (this.#words[at + BUSY] === 0) return false;
    this.#words[at + CLOSING] = 1;
    this.#words[at + SEQ] = 0;
    return true;
  }

  /** Forget the handle; its descriptor is the caller's to close. */
  close(slot: number): void {
    const at = slot * WORDS;
    this.#words[at + SEQ] = 0;
    this.#words[at + KIND] = 0;
    this.#words[at + NEXT] = this.#free;
    this.#free = slot;
    this.count--;
  }

  /** Every live slot. */
  *slots(): Generator<number> {
    for (let slot = 1; slot < this.#bump; slot++) if (this.#words[slot * WORDS + KIND] !== 0) yield slot;
  }

  clear(): void {
    this.#words = new Int32Array(256 * WORDS);
    this.#free = 0;
    this.#bump = 1;
    this.count = 0;
  }
}
