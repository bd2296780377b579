/**
 * The rest of an object that is read here and there, fetched behind the back of who reads: where the bucket is far away each miss costs a round
 * trip, and after some of them most reads find what they want on disk.
 *
 * That costs requests and traffic that nobody asked for, so it is bounded: it begins after some misses in one open file, for an object that is small
 * beside the cache and fits into room that is free, fetches so much for each miss and no more, gives way when memory is wanted, and
 * ends with the file. What was fetched stays.
 */
import type { NativeMemory } from '../../../ffi/memory.js';
import type { MemoryBudget } from '../memory-budget.js';
import type { CachedObject } from './cached-object.js';

const MIB = 1 << 20;

export interface FillLimits {
  /** Misses of one open file before anything is fetched. */
  readonly misses: number;
  /** What may be fetched for each of them, and for all of them after the last one. */
  readonly bytesPerMiss: number;
  readonly creditBytes: number;
}

export const FILL_LIMITS: FillLimits = { misses: 4, bytesPerMiss: 64 * MIB, creditBytes: 128 * MIB };

/** Of the cache, what the object may have at most. */
const OBJECT_SHARE = 1 / 4;
/** Under way at a time, of all files: in flight and waiting to be written. */
const UNDERWAY_MAX_BYTES = 96 * MIB;
const UNDERWAY_SHARE = 1 / 2;
const PART_MAX_BYTES = 8 * MIB;
/** Of what may be under way. */
const PART_SHARE = 1 / 8;
const PARTS_MAX = 12;
/** At the beginning so many parts are under way, and one more with each that has come: who closes the file soon has not fetched much in vain. */
const PARTS_MIN = 2;
/** Parts that take longer are too many for the line: a read that asks for itself would wait behind them. */
const SLOW_MS = 500;
/** Versions that are remembered because fetching failed. */
const FAILED_MAX = 1000;

/** All fills of a cache together. */
export class Fills {
  underway = 0;
  /** Free room of the cache that is going to be used. */
  reserved = 0;
  /** Versions that are being filled, by id. */
  readonly active = new Set<string>();
  readonly #failed = new Set<string>();

  /** It is not tried again. */
  fail(name: string): void {
    if (this.#failed.size >= FAILED_MAX) this.#failed.clear();
    this.#failed.add(name);
  }

  hasFailed(name: string): boolean {
    return this.#failed.has(name);
  }
}

/** Reads a range into memory. @throws StorageError */
export type Fetch = (offset: number, into: { address: number; bytes: number }, signal: AbortSignal) => Promise<number>;

export class Fill {
  readonly #name: string;
  readonly #partBytes: number;
  readonly #underwayMax: number;
  /** By part: 1 if it is to be fetched; null as long as nothing is. */
  #left: Uint8Array | null = null;
  #reserved = 0;
  #misses = 0;
  #missesFirst: number;
  #credit = 0;
  /** The part that was missed last. */
  #at = 0;
  #width = PARTS_MIN;
  readonly #underway = new Set<AbortController>();
  #closed = false;

  constructor(
    readonly cached: CachedObject,
    readonly budget: MemoryBudget,
    readonly fetch: Fetch,
    readonly limits: FillLimits = FILL_LIMITS,
  ) {
    this.#missesFirst = limits.misses;
    this.#name = cached.id.join();
    const { blockBytes } = cached;
    this.#underwayMax = Math.min(UNDERWAY_MAX_BYTES, budget.bytes * UNDERWAY_SHARE);
    this.#partBytes = Math.max(blockBytes, Math.floor(Math.min(PART_MAX_BYTES, this.#underwayMax * PART_SHARE) / blockBytes) * blockBytes);
  }

  /** A read that was not one of several in order had to be fetched. */
  missed(offset: number): void {
    if (this.#closed) return;
    this.#misses++;
    this.#credit = Math.min(this.limits.creditBytes, this.#credit + this.limits.bytesPerMiss);
    if (this.#left === null && this.#misses >= this.#missesFirst && this.cached.cache.worth.isFar) this.#begin();
    this.#at = Math.floor(offset / this.#partBytes);
    this.#next();
  }

  /** Parts are on their way. */
  get isActive(): boolean {
    return this.#left !== null && this.#underway.size > 0;
  }

  /** Somebody waits for memory: it begins anew, but later each time. */
  reclaim(): void {
    if (this.#left === null) return;
    this.#end();
    this.#missesFirst *= 2;
    this.#misses = this.#credit = 0;
    this.#width = PARTS_MIN;
  }

  /** Nothing is fetched any more. */
  close(): void {
    this.#closed = true;
    this.#end();
  }

  #begin(): void {
    const { cached } = this;
    const { cache, size } = cached;
    const { fills } = cache;
    if (!cache.options.fill || size > cache.options.bytes * OBJECT_SHARE || fills.active.has(this.#name) || fills.hasFailed(this.#name)) return;
    const missing = cached.missingBytes();
    if (missing === 0 || missing > cache.free - fills.reserved) {
      this.#missesFirst = 2 * this.#misses; // that was work
      return;
    }
    this.#left = new Uint8Array(Math.ceil(size / this.#partBytes)).fill(1);
    fills.active.add(this.#name);
    this.#reserve(missing);
  }

  #end(): void {
    if (this.#left === null) return;
    this.#left = null;
    this.cached.cache.fills.active.delete(this.#name);
    this.#reserve(-this.#reserved);
    for (const caller of this.#underway) caller.abort();
  }

  #reserve(bytes: number): void {
    const more = Math.max(-this.#reserved, bytes);
    this.#reserved += more;
    this.cached.cache.fills.reserved += more;
  }

  /** As many parts as may be, from where the last miss was. */
  #next(): void {
    const { cached } = this;
    const { cache } = cached;
    while (this.#left !== null && this.#underway.size < this.#width && cache.worth.isFar) {
      const ahead = this.#left.indexOf(1, this.#at);
      const part = ahead >= 0 ? ahead : this.#left.indexOf(1);
      if (part < 0) {
        if (this.#underway.size === 0) this.#end();
        return;
      }
      const to = Math.min(cached.size, (part + 1) * this.#partBytes);
      const from = cached.missingFrom(part * this.#partBytes, to);
      if (from >= to) {
        this.#left[part] = 0;
        continue;
      }
      const bytes = to - from;
      if (this.#credit < bytes || cache.fills.underway + bytes > this.#underwayMax) return;
      if (!cache.isWritable || cache.free < cache.fills.underway + bytes) return this.close();
      const memory = this.budget.tryTake(bytes);
      if (memory === null) return;
      this.#left[part] = 0;
      this.#credit -= bytes;
      cache.background(this.#part(from, to, memory));
    }
  }

  async #part(from: number, to: number, memory: NativeMemory): Promise<void> {
    const { cached } = this;
    const { fills } = cached.cache;
    const caller = new AbortController();
    this.#underway.add(caller);
    fills.underway += to - from;
    try {
      for (let at = from; at < to; at = cached.missingFrom(at, to)) {
        const end = cached.missingTo(at, to);
        const began = performance.now();
        const bytes = await this.fetch(at, { address: memory.address, bytes: end - at }, caller.signal);
        if (caller.signal.aborted) return;
        if (bytes < end - at) return this.#fail(); // it is another object by now
        this.#width = performance.now() - began < SLOW_MS ? Math.min(PARTS_MAX, this.#width + 1) : Math.max(PARTS_MIN, this.#width - 1);
        await cached.keep(at, at + bytes, memory.u8, true);
        at = end;
      }
    } catch {
      // Whoever asks for it is told why
      if (!caller.signal.aborted) this.#fail();
    } finally {
      this.#underway.delete(caller);
      fills.underway -= to - from;
      this.#reserve(from - to);
      this.budget.give(memory);
      this.#next();
    }
  }

  #fail(): void {
    this.cached.cache.fills.fail(this.#name);
    this.close();
  }
}
