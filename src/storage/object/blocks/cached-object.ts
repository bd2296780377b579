/** What the block cache has of one version of an object; and which ranges of it are worth fetching. */
import type { NativeMemory } from '../../../ffi/memory.js';
import type { BlockCache } from './block-cache.js';
import type { ObjectId } from './block-table.js';
import type { Iovecs } from './slot-file.js';

/** Blocks that are compared with their checksums before they are read in order. */
const PREPARED_BLOCKS = 4;

/** A read as it comes from the guest: the iovecs have room for `size` bytes. */
export interface DirectRead extends Iovecs {
  readonly offset: number;
  readonly size: number;
}

export class CachedObject {
  constructor(
    readonly cache: BlockCache,
    readonly id: ObjectId,
    readonly size: number,
  ) {}

  get blockBytes(): number {
    return this.cache.blockBytes;
  }

  /** All of its blocks are there. */
  get isWhole(): boolean {
    return this.missingFrom(0, this.size) >= this.size;
  }

  blockAt(offset: number): number {
    return Math.floor(offset / this.blockBytes);
  }

  endOf(block: number): number {
    return Math.min(this.size, (block + 1) * this.blockBytes);
  }

  /** What lies in one block that is known to be good goes to the guest at once. @returns bytes, −1: ask read() or the store */
  readNow(r: DirectRead): number {
    const block = this.blockAt(r.offset);
    const at = r.offset - block * this.blockBytes;
    const bytes = Math.min(r.size, this.size - r.offset);
    // The iovecs may be longer than the object, but not reach into the next slot
    if (bytes <= 0 || at + r.size > this.blockBytes) return -1;
    return this.cache.readNow(this.id, block, at, bytes, r) ? bytes : -1;
  }

  /** The block of this offset is there and good. */
  ready(offset: number): Promise<boolean> | boolean {
    return this.cache.ready(this.id, this.blockAt(offset));
  }

  /** What follows the block of this offset is going to be read: blocks that are there are compared with their checksums meanwhile. */
  prepare(offset: number): void {
    const next = this.blockAt(offset) + 1;
    for (let block = next; block < next + PREPARED_BLOCKS; block++) void this.cache.ready(this.id, block);
  }

  /** A range of one block that was ready a moment ago. @returns false: it is not there any more */
  read(offset: number, bytes: number, into: NativeMemory): Promise<boolean> {
    const block = this.blockAt(offset);
    return this.cache.read(this.id, block, offset - block * this.blockBytes, bytes, into);
  }

  /** Where the first block begins that is not there, from the block of `from` on: before `from` if it is that one. */
  missingFrom(from: number, until: number): number {
    let block = this.blockAt(from);
    while (block * this.blockBytes < until && this.cache.has(this.id, block)) block++;
    return block * this.blockBytes;
  }

  /** How far what begins in a missing block is fetched, at most `to`: up to the next block that is there, and whole blocks only. */
  missingTo(from: number, to: number): number {
    const whole = to === this.size ? to : this.blockAt(to) * this.blockBytes;
    return this.nextThere(from, whole > from ? whole : to);
  }

  /** Where the next block begins that is there, behind the one of `from`; at most `to`. */
  nextThere(from: number, to: number): number {
    for (let block = this.blockAt(from) + 1; block * this.blockBytes < to; block++) {
      if (this.cache.has(this.id, block)) return block * this.blockBytes;
    }
    return to;
  }

  /** [from, to) was fetched: keep the blocks that lie in it. @returns when the bytes are not needed any more; null: they are not now */
  keep(from: number, to: number, content: Uint8Array): Promise<void> | null {
    const writing: Promise<void>[] = [];
    for (let block = Math.ceil(from / this.blockBytes); block * this.blockBytes < to && this.endOf(block) <= to; block++) {
      const at = block * this.blockBytes - from;
      const kept = this.cache.keep(this.id, block, content.subarray(at, this.endOf(block) - from));
      if (kept !== null) writing.push(kept);
    }
    return writing.length === 0 ? null : Promise.all(writing).then(() => undefined);
  }

  /** [from, to) had to be fetched. @returns blocks of which another part was fetched before: they are worth fetching as a whole */
  missed(from: number, to: number): number[] {
    const worth: number[] = [];
    const last = this.blockAt(to - 1);
    for (const block of new Set([this.blockAt(from), last])) {
      const whole = from <= block * this.blockBytes && this.endOf(block) <= to;
      if (!whole && !this.cache.has(this.id, block) && this.cache.missed(this.id, block, to - from)) worth.push(block);
    }
    return worth;
  }
}
