/**
 * The node table: inode identity ↔ nodeid, with lookup counts.
 *
 * A record is 16 words in an Arena, so that a million nodes are no JavaScript objects and the memory goes back
 * when they are forgotten. A nodeid is (slot, sequence): the sequence differs for every use of a slot, so an id
 * that the guest has kept too long, or made up, is never taken for another inode. Identity is three words that the
 * file system chooses (inode number and mount for a host directory).
 */
import { assert } from '../base/assert.js';
import { Arena } from './arena.js';
import { ROOT_NODE } from './filesystem.js';

const WORDS = 16;
const SEQ = 0;
const REFS = 1;
const KEY0 = 2;
const KEY1 = 3;
const KEY2 = 4;
const NEXT = 5;
/** Words 6..15 belong to the file system. */
export const USER_WORD = 6;
export const USER_WORDS = WORDS - USER_WORD;

const MAX_NODES = 1 << 24;
const BLOCK_SLOTS = 1 << 14;
const BLOCK_BYTES = BLOCK_SLOTS * WORDS * 4;
const REFS_MAX = 0xffffffff;
const MIN_BUCKETS = 1 << 12;

export class NodeTable {
  /** All records, of slots that were in use at least; index = slot × 16 + word. Another array after insert(). */
  words: Int32Array;
  /** Nodes in use, the root among them. */
  count = 0;
  readonly #arena: Arena;
  #buckets = new Int32Array(MIN_BUCKETS);
  #sequence = 0;
  /** Per block of slots: free-list head (through NEXT), first never-used slot, slots in use. */
  readonly #freeHead = new Int32Array(MAX_NODES / BLOCK_SLOTS);
  readonly #bump = new Int32Array(MAX_NODES / BLOCK_SLOTS);
  readonly #live = new Int32Array(MAX_NODES / BLOCK_SLOTS);
  #firstWithRoom = 0;

  constructor(readonly maxNodes = MAX_NODES - 1) {
    // slot 0 is no node
    assert(maxNodes < MAX_NODES, 'node table size');
    this.#arena = new Arena('bucketfsd-nodes', MAX_NODES * WORDS * 4);
    this.words = this.#arena.i32;
    this.#clearBlocks();
  }

  /** Highest slot ever touched since the last clear, for sweeps. */
  get highSlot(): number {
    for (let block = this.#live.length - 1; block >= 0; block--) {
      if (this.#live[block] > 0) return block * BLOCK_SLOTS + this.#bump[block];
    }
    return 0;
  }

  /** The slot of a live node, or −1 for an id that names none. */
  slotOf(low: number, high: number): number {
    const at = low * WORDS;
    if (at >= this.words.length || at <= 0) return -1;
    return this.words[at + SEQ] === (high | 0) && (this.words[at + REFS] !== 0 || low === ROOT_NODE) ? low : -1;
  }

  /** High half of the nodeid of a live slot. */
  sequence(slot: number): number {
    return this.words[slot * WORDS + SEQ] >>> 0;
  }

  /** The slot with this identity, or −1. */
  find(key0: number, key1: number, key2: number): number {
    const words = this.words;
    for (let slot = this.#buckets[this.#hash(key0, key1, key2)]; slot !== 0; slot = words[slot * WORDS + NEXT]) {
      const at = slot * WORDS;
      if (words[at + KEY0] === key0 && words[at + KEY1] === key1 && words[at + KEY2] === key2) return slot;
    }
    return -1;
  }

  /** A new node with one reference, or −1 when the table is full. The user words are zero. */
  insert(key0: number, key1: number, key2: number): number {
    if (this.count >= this.maxNodes) return -1;
    const slot = this.#allocate();
    const at = slot * WORDS;
    const words = this.words;
    words.fill(0, at, at + WORDS);
    // The root's id is fixed by the protocol; everyone else's sequence is never 0 by being counted up
    this.#sequence = (this.#sequence + 1) | 0;
    if (this.#sequence === 0) this.#sequence = 1;
    words[at + SEQ] = slot === ROOT_NODE ? 0 : this.#sequence;
    words[at + REFS] = 1;
    words[at + KEY0] = key0;
    words[at + KEY1] = key1;
    words[at + KEY2] = key2;
    if (++this.count > this.#buckets.length) this.#rehash(this.#buckets.length * 2);
    const bucket = this.#hash(key0, key1, key2);
    words[at + NEXT] = this.#buckets[bucket];
    this.#buckets[bucket] = slot;
    return slot;
  }

  /** One more reference. The count saturates: such a node stays for the session. */
  ref(slot: number): void {
    const at = slot * WORDS + REFS;
    if (this.words[at] !== (REFS_MAX | 0)) this.words[at] = (this.words[at] + 1) | 0;
  }

  /** References now. */
  refs(slot: number): number {
    return this.words[slot * WORDS + REFS] >>> 0;
  }

  /** Take `count` references away, to zero at most. @returns whether none is left; remove() is the caller's. */
  unref(slot: number, count: number): boolean {
    const at = slot * WORDS + REFS;
    const refs = this.words[at] >>> 0;
    if (refs === REFS_MAX) return false;
    const left = count >= refs ? 0 : refs - count;
    this.words[at] = left | 0;
    return left === 0;
  }

  /** Make the identity unfindable while the node stays: the inode it named is gone from the host. */
  unlinkIdentity(slot: number): void {
    this.#unhash(slot);
  }

  /** Free the slot. */
  remove(slot: number): void {
    this.#unhash(slot);
    const at = slot * WORDS;
    const block = Math.floor(slot / BLOCK_SLOTS);
    this.words[at + REFS] = 0;
    this.words[at + SEQ] = 0;
    this.words[at + NEXT] = this.#freeHead[block];
    this.#freeHead[block] = slot;
    this.count--;
    if (block < this.#firstWithRoom) this.#firstWithRoom = block;
    if (--this.#live[block] === 0 && block > 0) {
      this.#freeHead[block] = 0;
      this.#bump[block] = 0;
      this.#arena.punch(block * BLOCK_BYTES, BLOCK_BYTES);
      if (this.#buckets.length > MIN_BUCKETS && this.count < this.#buckets.length / 8) this.#rehash(this.#buckets.length / 4);
    }
  }

  /** Forget all. Sequences go on, so ids from before stay dead. */
  clear(): void {
    for (let block = 0; block < this.#live.length && (block === 0 || this.#bump[block] > 0); block++) {
      this.#arena.punch(block * BLOCK_BYTES, BLOCK_BYTES);
    }
    this.#clearBlocks();
    this.#buckets = new Int32Array(MIN_BUCKETS);
    this.count = 0;
  }

  close(): void {
    this.#arena.close();
  }

  #clearBlocks(): void {
    this.#freeHead.fill(0);
    this.#bump.fill(0);
    this.#live.fill(0);
    // slot 0 is no node; the first insert gets slot 1, the root
    this.#bump[0] = 1;
    this.#firstWithRoom = 0;
  }

  #allocate(): number {
    let block = this.#firstWithRoom;
    while (this.#freeHead[block] === 0 && this.#bump[block] === BLOCK_SLOTS) block++;
    this.#firstWithRoom = block;
    this.#live[block]++;
    const free = this.#freeHead[block];
    if (free !== 0) {
      this.#freeHead[block] = this.words[free * WORDS + NEXT];
      return free;
    }
    this.#arena.reach((block + 1) * BLOCK_BYTES);
    this.words = this.#arena.i32;
    return block * BLOCK_SLOTS + this.#bump[block]++;
  }

  #unhash(slot: number): void {
    const words = this.words;
    const at = slot * WORDS;
    const bucket = this.#hash(words[at + KEY0], words[at + KEY1], words[at + KEY2]);
    let previous = 0;
    for (let s = this.#buckets[bucket]; s !== 0; s = words[s * WORDS + NEXT]) {
      if (s === slot) {
        if (previous === 0) this.#buckets[bucket] = words[at + NEXT];
        else words[previous * WORDS + NEXT] = words[at + NEXT];
        words[at + NEXT] = 0;
        return;
      }
      previous = s;
    }
  }

  #hash(key0: number, key1: number, key2: number): number {
    let h = Math.imul(key0, 0x9e3779b1) ^ Math.imul(key1, 0x85ebca6b) ^ Math.imul(key2, 0xc2b2ae35);
    h ^= h >>> 15;
    h = Math.imul(h, 0x2c1b3c6d);
    h ^= h >>> 13;
    return h & (this.#buckets.length - 1);
  }

  #rehash(size: number): void {
    const old = this.#buckets;
    const words = this.words;
    this.#buckets = new Int32Array(size);
    for (const head of old) {
      for (let slot = head; slot !== 0; ) {
        const at = slot * WORDS;
        const next = words[at + NEXT];
        const bucket = this.#hash(words[at + KEY0], words[at + KEY1], words[at + KEY2]);
        words[at + NEXT] = this.#buckets[bucket];
        this.#buckets[bucket] = slot;
        slot = next;
      }
    }
  }
}
