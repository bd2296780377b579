/**
 * Slots of nodes and, in 80 bytes each, numbers of those that nobody uses at the moment (packed-nodes.ts); and which slots have a hash.
 *
 * Slots come in blocks: a block in which none is used any more goes back to the system, and so does the index when it has become too large.
 */
import { assert } from '../../base/assert.js';
import { NativeMemory } from '../../ffi/memory.js';

/** Of 32 bits each, by slot. */
const WORDS = 20;
export const WORD = { SEQUENCE: 0, REFS: 1, FLAGS: 2, NEXT: 3, HASH: 4, INO_LOW: 5, INO_HIGH: 6, MTIME_NS: 7, UID: 14, GID: 15, RDEV: 16, TEXT: 17, PROOF: 18 } as const;
/** Of 64 bits each, in the words 8 to 13. */
export const DOUBLE = { SIZE: 4, MTIME: 5, EXPIRES: 6 } as const;
const BLOCK_SHIFT = 12;
const BLOCK_SLOTS = 1 << BLOCK_SHIFT;
const BUCKETS_MIN = 1 << 10;
/** Nodes, the root among them. */
export const NODES_MAX = (1 << 24) - 1;

export interface Block {
  readonly memory: NativeMemory;
  readonly words: Int32Array;
  readonly doubles: Float64Array;
  used: number;
  /** The first slot that is free, 0: none; the others follow by NEXT. */
  free: number;
  /** No slot of the block from here on was ever used. */
  high: number;
}

export class NodeRecords {
  readonly #blocks: (Block | null)[] = [];
  /** No block before this one has a free slot. */
  #firstFree = 0;
  #buckets = new Int32Array(BUCKETS_MIN);
  #hashed = 0;
  #used = 0;

  /** Slots that are used. */
  get used(): number {
    return this.#used;
  }

  /** Slots with a hash. */
  get hashed(): number {
    return this.#hashed;
  }

  block(slot: number): Block {
    return this.#blocks[slot >>> BLOCK_SHIFT]!;
  }

  /** The sequence of a slot that has a record; 0: it has none. */
  sequence(slot: number): number {
    const block = this.#blocks[slot >>> BLOCK_SHIFT];
    return block == null ? 0 : block.words[this.at(slot) + WORD.SEQUENCE] >>> 0;
  }

  /** Every slot that has a record. */
  *recorded(): Generator<number> {
    for (const [index, block] of this.#blocks.entries()) {
      for (let i = 0; block !== null && this.#blocks[index] === block && i < block.high; i++) {
        if (block.words[i * WORDS + WORD.SEQUENCE] !== 0) yield (index << BLOCK_SHIFT) + i;
      }
    }
  }

  /** The first word of a slot in its block. */
  at(slot: number): number {
    return (slot & (BLOCK_SLOTS - 1)) * WORDS;
  }

  /** A slot of zeros; the first one is 1. */
  allocate(): number {
    assert(this.#used < NODES_MAX, 'there is room for a node');
    let index = this.#firstFree;
    while (!this.#hasRoom(this.#blocks[index])) index++;
    this.#firstFree = index;
    const block = (this.#blocks[index] ??= newBlock(index));
    let slot = block.free;
    if (slot === 0) slot = (index << BLOCK_SHIFT) + block.high++;
    else block.free = block.words[this.at(slot) + WORD.NEXT];
    const at = this.at(slot);
    block.words.fill(0, at, at + WORDS);
    block.used++;
    this.#used++;
    return slot;
  }

  /** Its hash was taken away before. */
  free(slot: number): void {
    const index = slot >>> BLOCK_SHIFT;
    const block = this.#blocks[index]!;
    this.#used--;
    if (--block.used === 0) {
      this.#blocks[index] = null;
      block.memory.free();
      while (this.#blocks.length > 0 && this.#blocks.at(-1) === null) this.#blocks.pop();
    } else {
      const at = this.at(slot);
      block.words[at + WORD.SEQUENCE] = 0;
      block.words[at + WORD.NEXT] = block.free;
      block.free = slot;
    }
    this.#firstFree = Math.min(this.#firstFree, index);
  }

  /** The first slot that may have a hash, 0: none. */
  first(hash: number): number {
    return this.#buckets[hash & (this.#buckets.length - 1)];
  }

  /** The next one after a slot, in the same bucket. */
  next(slot: number): number {
    return this.block(slot).words[this.at(slot) + WORD.NEXT];
  }

  hash(slot: number): number {
    return this.block(slot).words[this.at(slot) + WORD.HASH];
  }

  addHash(slot: number, hash: number): void {
    const { words } = this.block(slot);
    words[this.at(slot) + WORD.HASH] = hash;
    this.#push(slot, hash);
    if (++this.#hashed > this.#buckets.length) this.#resize(this.#buckets.length * 2);
  }

  removeHash(slot: number): void {
    const bucket = this.hash(slot) & (this.#buckets.length - 1);
    const next = this.next(slot);
    let before = this.#buckets[bucket];
    if (before === slot) {
      this.#buckets[bucket] = next;
    } else {
      while (this.next(before) !== slot) before = this.next(before);
      this.block(before).words[this.at(before) + WORD.NEXT] = next;
    }
    this.#hashed--;
    if (this.#hashed < this.#buckets.length / 8 && this.#buckets.length > BUCKETS_MIN) this.#resize(this.#buckets.length / 4);
  }

  #hasRoom(block: Block | null | undefined): boolean {
    return block == null || block.free !== 0 || block.high < BLOCK_SLOTS;
  }

  #push(slot: number, hash: number): void {
    const bucket = hash & (this.#buckets.length - 1);
    this.block(slot).words[this.at(slot) + WORD.NEXT] = this.#buckets[bucket];
    this.#buckets[bucket] = slot;
  }

  #resize(buckets: number): void {
    const before = this.#buckets;
    this.#buckets = new Int32Array(Math.max(BUCKETS_MIN, buckets));
    for (let slot of before) {
      while (slot !== 0) {
        const next = this.next(slot);
        this.#push(slot, this.hash(slot));
        slot = next;
      }
    }
  }
}

/** Slot 0 is nobody's. */
function newBlock(index: number): Block {
  const memory = NativeMemory.allocate(BLOCK_SLOTS * WORDS * 4);
  return { memory, words: memory.i32, doubles: new Float64Array(memory.buffer), used: 0, free: 0, high: index === 0 ? 1 : 0 };
}
