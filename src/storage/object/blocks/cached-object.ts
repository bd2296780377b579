/** What the block cache has of one version of an object; and which ranges of it are worth fetching. */
import type { NativeMemory } from '../../../ffi/memory.js';
import type { BlockCache } from './block-cache.js';
import type { ObjectId } from './block-table.js';
import { GRANULE_BYTES } from './granules.js';
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

  /** What lies in one block and is known to be good goes to the guest at once. @returns bytes, −1: ask read() or the store */
  readNow(r: DirectRead): number {
    const block = this.blockAt(r.offset);
    const at = r.offset - block * this.blockBytes;
    const bytes = Math.min(r.size, this.size - r.offset);
    // The iovecs may be longer than the object, but not reach into the next slot
    if (bytes <= 0 || at + r.size > this.blockBytes) return -1;
    return this.cache.readNow(this.id, block, at, bytes, r) ? bytes : -1;
  }

  /** A range of one block is there and good. */
  ready(offset: number, bytes: number): Promise<boolean> | boolean {
    const block = this.blockAt(offset);
    return this.cache.ready(this.id, block, offset - block * this.blockBytes, bytes);
  }

  /** What follows the block of this offset is going to be read: blocks that are there are compared with their checksums meanwhile. */
  prepare(offset: number): void {
    const next = this.blockAt(offset) + 1;
    for (let block = next; block < next + PREPARED_BLOCKS; block++) if (this.cache.has(this.id, block)) void this.cache.ready(this.id, block, 0, 1);
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

  /** Of blocks that are not there. */
  missingBytes(): number {
    let bytes = 0;
    for (let block = 0; block * this.blockBytes < this.size; block++) if (!this.cache.has(this.id, block)) bytes += this.endOf(block) - block * this.blockBytes;
    return bytes;
  }

  /**
   * [from, to) was fetched: keep the blocks that lie in it; `spare`: nothing else is given up for it, and it waits as long as it takes.
   * @returns when the bytes are not needed any more; null: they are not now
   */
  keep(from: number, to: number, content: Uint8Array, spare = false): Promise<void> | null {
    const writing: Promise<void>[] = [];
    for (let block = Math.ceil(from / this.blockBytes); block * this.blockBytes < to && this.endOf(block) <= to; block++) {
      const at = block * this.blockBytes - from;
      const kept = this.cache.keep(this.id, block, content.subarray(at, this.endOf(block) - from), spare);
      if (kept !== null) writing.push(kept);
    }
    return writing.length === 0 ? null : Promise.all(writing).then(() => undefined);
  }

  /**
   * [from, to) had to be fetched because it was asked for: keep the blocks in it, and what there is of those at its ends, unless `fetch` has
   * all of such a block fetched, which is worth it when that happens again. @returns as keep()
   */
  missed(from: number, to: number, content: Uint8Array, fetch: (block: number) => boolean): Promise<void> | null {
    const first = this.blockAt(from);
    const last = this.blockAt(to - 1);
    const ends = [this.#missedEnd(first, from, to, content, fetch), first === last ? null : this.#missedEnd(last, from, to, content, fetch)];
    const writing = [this.keep(from, to, content), ...ends].filter((one) => one !== null);
    return writing.length === 0 ? null : Promise.all(writing).then(() => undefined);
  }

  #missedEnd(block: number, from: number, to: number, content: Uint8Array, fetch: (block: number) => boolean): Promise<void> | null {
    const start = block * this.blockBytes;
    const end = this.endOf(block);
    if ((from <= start && end <= to) || this.cache.has(this.id, block)) return null;
    const worth = this.cache.worth.missed(this.id, block, to - from);
    if (worth === 'nothing' || (worth === 'block' && fetch(block))) return null;
    const begin = start + Math.ceil(Math.max(0, from - start) / GRANULE_BYTES) * GRANULE_BYTES;
    const until = to >= end ? end : start + Math.floor((to - start) / GRANULE_BYTES) * GRANULE_BYTES;
    return begin < until ? this.cache.keepPart(this.id, block, end - start, begin - start, content.subarray(begin - from, until - from)) : null;
  }
}
