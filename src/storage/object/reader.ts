/**
 * Reading one version of an object through an open file.
 *
 * A read that does not follow the one before fetches exactly its range. Reads that do are met by parts fetched ahead, in
 * parallel; how far ahead grows with how much was read in order, and is bounded by the memory that all readers share. A
 * guest's readahead asks for several ranges at once and out of order, so what is near the last read counts as in order, as long as not more is
 * left out than read.
 *
 * With a block cache on disk, what it has is taken from there, and what is fetched is given to it, best in whole blocks: so parts that are
 * fetched ahead begin and end where blocks do, and a block that is read in pieces is fetched as a whole at the second one. Where the bucket
 * is far away, an object that is read here and there is fetched as a whole (blocks/fill.ts).
 */
import type { NativeMemory } from '../../ffi/memory.js';
import type { BlockCache } from './blocks/block-cache.js';
import type { CachedObject, DirectRead } from './blocks/cached-object.js';
import { Fill } from './blocks/fill.js';
import { StorageError } from './errors.js';
import type { MemoryBudget } from './memory-budget.js';
import type { ObjectStore, Version } from './store.js';

const KIB = 1 << 10;
const MIB = 1 << 20;

/** So much is read in order before anything is fetched ahead. */
const AHEAD_AFTER_BYTES = 256 * KIB;
/** So many times what was read in order is fetched ahead. Who reads from the beginning on mostly reads all of it. */
const AHEAD_TIMES = 2;
const AHEAD_TIMES_FROM_START = 4;
const AHEAD_FROM_START_MIN_BYTES = 4 * MIB;
/** On its way at 600 MB/s where an answer takes 100 ms. */
const AHEAD_MAX_BYTES = 64 * MIB;
const PART_MIN_BYTES = 1 * MIB;
const PART_MAX_BYTES = 8 * MIB;
/** Reads so far apart are still one stream. */
const SLACK_BYTES = 4 * MIB;

/**
 * The rule *one version per part*: what is fetched is read of one version only, and the block cache keeps it under that one. Where our own change has
 * replaced the version meanwhile, whoever waits asks anew.
 */
interface Source {
  readonly key: string;
  readonly version: Version;
  /** What the block cache has of this version. */
  readonly cached: CachedObject | null;
}

interface Part {
  readonly from: number;
  readonly to: number;
  readonly memory: NativeMemory;
  readonly caller: AbortController;
  /** Bytes read, or the error; never rejects, since nobody may ever ask. */
  readonly done: Promise<number | Error>;
  /** The block cache has what it wants of it; null without one. */
  kept: Promise<void> | null;
  /** How many bytes have come; −1: it is on its way, or has failed. */
  bytes: number;
  /** So many are to be delivered before it is given up; Infinity: the reads that follow decide. */
  left: number;
  /** Reads that copy from it now, and the block cache while it writes. */
  users: number;
  dropped: boolean;
  released: boolean;
}

/** Takes bytes of the answer: `at` bytes behind its start. */
export type Deliver = (at: number, address: number, bytes: number) => void;

/** A READ of the guest. */
export interface ReadRequest extends DirectRead {
  copyToData(at: number, source: number, bytes: number): number;
}

export class Reader {
  /** In order, apart from each other; not always without gaps. */
  #parts: Part[] = [];
  /** Where the last reads ended, and how much was read in order until there. */
  #high = 0;
  #run = 0;
  /** Where the first of those reads began. */
  #start = Infinity;
  /** Where the content is now. */
  #source: Source;
  /** Whole blocks for the cache, on their way, by number. */
  readonly #blocks = new Map<number, Part>();
  #fill: Fill | null = null;
  /** The block that was read last without waiting. */
  #block = -1;

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    key: string,
    version: Version,
    readonly size: number,
    readonly blocks: BlockCache | null = null,
  ) {
    this.#source = this.#at(key, version);
    budget.holders.add(this);
  }

  get key(): string {
    return this.#source.key;
  }

  get version(): Version {
    return this.#source.version;
  }

  /** The same content is somewhere else now. */
  moveTo(key: string, version: Version): void {
    this.#fill?.close();
    this.#fill = null;
    this.#source = this.#at(key, version);
  }

  #at(key: string, version: Version): Source {
    return { key, version, cached: this.blocks?.object(key, version, this.size) ?? null };
  }

  /** All of it has come already, into memory of the budget, which is the reader's from now on: for one reading of the file. */
  adopt(memory: NativeMemory): void {
    const part: Part = {
      from: 0, to: this.size, memory, caller: new AbortController(), done: Promise.resolve(this.size), kept: null, bytes: this.size, left: this.size, users: 0,
      dropped: false, released: false,
    };
    this.#parts = [part];
    const { cached } = this.#source;
    if (cached !== null) part.kept = this.#keep(part, cached, this.size);
  }

  /** The request's range, of which `bytes` bytes are wanted: without waiting where it is here already. @throws as read() */
  serve(r: ReadRequest, bytes: number): number | Promise<number> {
    const now = this.#readNow(r, bytes);
    return now >= 0 ? now : this.read(r.offset, bytes, (at, address, n) => r.copyToData(at, address, n));
  }

  /** @returns bytes, or −1: ask read() */
  #readNow(r: ReadRequest, wanted: number): number {
    const fetched = this.#fetchedNow(r, wanted);
    if (fetched >= 0) return fetched;
    const { cached } = this.#source;
    if (cached === null || wanted < r.size) return -1;
    const bytes = cached.readNow(r);
    if (bytes < 0) return -1;
    this.#follow(r.offset, r.offset + bytes);
    const block = cached.blockAt(r.offset);
    if (block !== this.#block) this.#fetchAhead(r.offset);
    this.#block = block;
    return bytes;
  }

  /** From one part that has come. @returns bytes, or −1: there is none that has all of it */
  #fetchedNow(r: ReadRequest, wanted: number): number {
    const end = Math.min(this.size, r.offset + wanted);
    for (const part of this.#parts) {
      if (part.from > r.offset || part.from + part.bytes < end || end <= r.offset) continue;
      const bytes = r.copyToData(0, part.memory.address + (r.offset - part.from), end - r.offset);
      const { cached } = this.#source;
      if (cached !== null) cached.cache.statistics.misses++;
      this.#follow(r.offset, end);
      this.#fetchAhead(r.offset);
      part.left -= bytes;
      if (part.left <= 0) this.#giveUp(part);
      return bytes;
    }
    return -1;
  }

  /**
   * Deliver up to `bytes` bytes from `offset` on. @returns how many: fewer only at the end.
   * @throws StorageError, `changed` when the object is another one by now.
   */
  async read(offset: number, bytes: number, deliver: Deliver): Promise<number> {
    const end = Math.min(this.size, offset + bytes);
    if (offset >= end) return 0;
    const jumped = this.#follow(offset, end);
    this.#fetchAhead(offset);
    for (let at = offset; at < end; ) {
      const bytes = await this.#piece(at, end, at - offset, deliver, jumped);
      // This version has them: who says otherwise has looked at another one
      if (bytes <= 0) throw new StorageError('changed', `read ${this.store.location}/${this.key}`, { providerMessage: `it ends at ${at} instead of ${this.size}` });
      at += bytes;
    }
    return end - offset;
  }

  /** Nothing is read any more. */
  close(): void {
    this.budget.holders.delete(this);
    this.#fill?.close();
    this.#dropAll();
    for (const part of this.#blocks.values()) this.#drop(part);
    this.#blocks.clear();
  }

  /** Somebody waits for memory: give up what nobody reads from at the moment. */
  reclaim(): void {
    const unused = this.#parts.filter((part) => part.users === 0);
    this.#parts = this.#parts.filter((part) => part.users > 0);
    for (const part of unused) this.#drop(part);
    this.#fill?.reclaim();
  }

  #dropAll(): void {
    for (const part of this.#parts.splice(0)) this.#drop(part);
  }

  /** @returns whether it is somewhere else than what was read before */
  #follow(offset: number, end: number): boolean {
    if (Math.abs(offset - this.#high) > SLACK_BYTES) {
      this.#run = 0;
      this.#start = offset;
      this.#high = end;
      this.#dropAll();
      return true;
    }
    this.#run += end - offset;
    this.#start = Math.min(this.#start, offset);
    this.#high = Math.max(this.#high, end);
    while (this.#parts.length > 0 && this.#parts[0].to <= this.#high - SLACK_BYTES) this.#drop(this.#parts.shift()!);
    return false;
  }

  #fetchAhead(offset: number): void {
    // Without leaving out much: what is read here and there is near the last place now and then
    if (this.#run < AHEAD_AFTER_BYTES || this.#run < (this.#high - this.#start) / 2) return;
    const ahead = Math.min(AHEAD_MAX_BYTES, this.budget.bytes / 2, this.#aheadOfRun());
    const until = Math.min(this.size, this.#high + ahead);
    const part = Math.min(PART_MAX_BYTES, Math.max(PART_MIN_BYTES, Math.floor(ahead / 4 / MIB) * MIB));
    const source = this.#source;
    const { cached } = source;
    cached?.prepare(offset);
    for (let from = offset; ; ) {
      const fetched = this.#parts.at(-1)?.to ?? 0;
      from = Math.max(fetched, from);
      // From the beginning of a block, though some of it was read already: it is worth keeping only as a whole
      if (cached !== null) from = Math.max(fetched, cached.missingFrom(from, until));
      if (from >= until) return;
      let to = Math.min(this.size, from + part);
      if (cached !== null) to = cached.missingTo(from, to);
      // A short rest is not worth a request of its own before the file ends
      if (until < to && until < this.size && this.#parts.length > 0) return;
      const begun = this.#begin(source, from, to);
      if (begun === null) return;
      this.#parts.push(begun);
      from = to;
    }
  }

  #aheadOfRun(): number {
    return this.#start === 0 ? Math.max(AHEAD_FROM_START_MIN_BYTES, AHEAD_TIMES_FROM_START * this.#run) : AHEAD_TIMES * this.#run;
  }

  #begin(source: Source, from: number, to: number): Part | null {
    const memory = this.budget.tryTake(to - from);
    if (memory === null) return null;
    const caller = new AbortController();
    const { cached } = source;
    const done = this.#readStore(source, from, { address: memory.address, bytes: to - from }, caller.signal).catch((error: Error) => error);
    const part: Part = { from, to, memory, caller, done, kept: null, bytes: -1, left: Infinity, users: 0, dropped: false, released: false };
    void done.then((result) => (part.bytes = typeof result === 'number' ? result : -1));
    if (cached !== null) part.kept = done.then((result) => this.#keep(part, cached, result));
    return part;
  }

  /** For the block cache; the part's memory stays until it is written. */
  async #keep(part: Part, cached: CachedObject, result: number | Error): Promise<void> {
    if (typeof result !== 'number' || part.dropped) return;
    part.users++;
    await cached.keep(part.from, part.from + result, part.memory.u8);
    part.users--;
    this.#release(part);
  }

  /** Fetch a whole block because parts of it are asked for again and again; nobody waits for it. @returns whether it is on its way */
  #fetchBlock(source: Source, cached: CachedObject, block: number): boolean {
    if (this.#blocks.has(block)) return true;
    if (!cached.cache.mayFetch || this.#fill?.isActive === true) return false;
    const part = this.#begin(source, block * cached.blockBytes, cached.endOf(block));
    if (part === null) return false;
    this.#blocks.set(block, part);
    cached.cache.fetching(part.kept!.then(() => {
      if (this.#blocks.get(block) === part) this.#blocks.delete(block);
      this.#drop(part);
    }));
    return true;
  }

  /** Deliver what one part has of [at, end), or fetch exactly what no part has. @returns bytes delivered. */
  async #piece(at: number, end: number, into: number, deliver: Deliver, jumped: boolean): Promise<number> {
    const { cached } = this.#source;
    const part = this.#parts.find((one) => one.from <= at && at < one.to) ?? (cached === null ? undefined : this.#blocks.get(cached.blockAt(at)));
    if (part === undefined) {
      const bytes = cached === null ? 0 : await this.#fromCache(cached, at, end, into, deliver);
      if (bytes > 0) return bytes;
      const next = this.#parts.find((one) => one.from > at);
      const to = Math.min(end, next?.from ?? end);
      return this.#exact(at, cached?.nextThere(at, to) ?? to, into, deliver, jumped);
    }
    part.users++;
    const result = await part.done;
    if (cached !== null) cached.cache.statistics.misses++;
    if (typeof result === 'number') {
      const bytes = Math.min(end, part.from + result) - at;
      deliver(into, part.memory.address + (at - part.from), bytes);
      part.users--;
      this.#release(part);
      return bytes;
    }
    // Whatever came in between, this read asks for itself and gets an answer of its own; the part's memory goes back before
    // it needs some
    part.users--;
    this.#giveUp(part);
    return this.#exact(at, Math.min(end, part.to), into, deliver, false);
  }

  /** What the block cache has of one block of [at, end). @returns bytes delivered, 0: it has nothing */
  async #fromCache(cached: CachedObject, at: number, end: number, into: number, deliver: Deliver): Promise<number> {
    const bytes = Math.min(end, cached.endOf(cached.blockAt(at))) - at;
    if (!(await cached.ready(at, bytes))) return 0;
    const memory = await this.budget.take(bytes);
    try {
      if (!(await cached.read(at, bytes, memory))) return 0;
      deliver(into, memory.address, bytes);
      return bytes;
    } finally {
      this.budget.give(memory);
    }
  }

  async #exact(from: number, to: number, into: number, deliver: Deliver, jumped: boolean): Promise<number> {
    const memory = await this.budget.take(to - from);
    let writing: Promise<void> | null = null;
    try {
      const began = performance.now();
      const { source, bytes } = await this.#readWhereItIs(from, { address: memory.address, bytes: to - from });
      const { cached } = source;
      deliver(into, memory.address, bytes);
      if (cached !== null && bytes > 0) {
        cached.cache.worth.fetched(performance.now() - began);
        cached.cache.statistics.misses++;
        writing = cached.missed(from, from + bytes, memory.u8, (block) => this.#fetchBlock(source, cached, block));
        if (jumped && source === this.#source) {
          this.#fill ??= new Fill(cached, this.budget, (offset, memory, signal) => this.#readStore(source, offset, memory, signal));
          this.#fill.missed(from);
        }
      }
      return bytes;
    } finally {
      if (writing === null) this.budget.give(memory);
      else void writing.then(() => this.budget.give(memory));
    }
  }

  /** What was not found because it was moved meanwhile is read where it is now. */
  async #readWhereItIs(offset: number, into: { address: number; bytes: number }): Promise<{ source: Source; bytes: number }> {
    for (;;) {
      const source = this.#source;
      try {
        return { source, bytes: await this.#readStore(source, offset, into) };
      } catch (error) {
        if (source === this.#source || !(error instanceof StorageError) || error.code !== 'changed') throw error;
      }
    }
  }

  /** @throws StorageError; an object that was removed is not the one that was opened: `changed` */
  async #readStore({ key, version }: Source, offset: number, into: { address: number; bytes: number }, signal?: AbortSignal): Promise<number> {
    try {
      return await this.store.read(key, { version, offset, into, ...(signal === undefined ? {} : { signal }) });
    } catch (error) {
      if (error instanceof StorageError && error.code === 'not-found') throw new StorageError('changed', error.operation, error.detail);
      throw error;
    }
  }

  #giveUp(part: Part): void {
    this.#parts = this.#parts.filter((one) => one !== part);
    this.#drop(part);
  }

  #drop(part: Part): void {
    part.dropped = true;
    part.caller.abort();
    this.#release(part);
  }

  /** The memory of a dropped part goes back when no read copies from it and the store no longer writes to it. */
  #release(part: Part): void {
    if (!part.dropped || part.users > 0 || part.released) return;
    part.released = true;
    void part.done.then(() => this.budget.give(part.memory));
  }
}
