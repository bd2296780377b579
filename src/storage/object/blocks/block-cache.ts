/**
 * Blocks of objects on disk, for reads: what was fetched once is not fetched again, after a restart neither. A block is named by key,
 * version and size of its object and by its number, so what is in here is never out of date; it may be damaged, and therefore has a
 * checksum, which is compared before the block is used for the first time in this process. After that reads of any part of it go
 * straight from the page cache of the host into the guest's memory.
 *
 * All blocks lie in one sparse file, `data`, in slots of one size, the n-th at n times that size; `index` says which block is in which
 * slot. One descriptor, no name to look up for each block, room for a new block where an old one was; a block that is shorter than its
 * slot (the last one of an object, or a small object) takes only as much of the disk, the rest is a hole. See docs/adr/0010-block-cache.md.
 *
 * Of a block of which only parts were asked for these are kept, for this process: which of its granules are there is in memory, and the
 * index says nothing of it before it is whole.
 *
 * Nobody waits for this but those whom it serves. What was fetched is written afterwards, and left out when the disk does not keep up.
 * When the directory fails, the cache switches itself off, with a warning, and everything is read from the store as without it.
 */
import { createHash } from 'node:crypto';
import { close, closeSync, constants, openSync } from 'node:fs';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { makeDirectory } from '../../../base/make-directory.js';
import type { NativeMemory } from '../../../ffi/memory.js';
import type { MemoryBudget } from '../memory-budget.js';
import type { Version } from '../store.js';
import { BlockTable, ID_WORDS, STATE, type ObjectId } from './block-table.js';
import { BlockWriter, type WriteStatistics } from './block-writer.js';
import { CachedObject } from './cached-object.js';
import { checksumOf } from './checksum.js';
import { Fills } from './fill.js';
import { IndexFile } from './index-file.js';
import { SlotFile, type Iovecs } from './slot-file.js';
import { Slots } from './slots.js';
import { WorthFetching } from './worth-fetching.js';

const closeFd = promisify(close);

export const BLOCK_BYTES = 1 << 20;
/** As many slots as if blocks had this size on average: it bounds the memory that small objects cost. */
const AVERAGE_BYTES = 32 << 10;
const SLOTS_MIN = 64;
const SLOTS_MAX = 1 << 20;
/** The order of use is written so often: what a killed daemon may lose of it. */
const FLUSH_MS = 60_000;
/** Given up at a time for what else the disk has to keep. */
const GIVE_WAY_BYTES = 64 << 20;

export interface BlockCacheOptions {
  /** Made if absent; nobody else uses it meanwhile. */
  readonly directory: string;
  /** Of disk space, at most. */
  readonly bytes: number;
  /** Versions are unique in it: provider, endpoint and bucket. */
  readonly scope: string;
  readonly blockBytes?: number;
  /** Whether objects that are read here and there may be fetched as a whole: see fill.ts. */
  readonly fill?: boolean;
}

export interface BlockCacheLog {
  warn(fields: object, message: string): unknown;
  debug(fields: object, message: string): unknown;
}

export interface BlockStatistics extends WriteStatistics {
  /** Reads, or parts of reads, that were answered from here, and that were not. */
  hits: number;
  misses: number;
  hitBytes: number;
  /** Blocks that were not what the index says. */
  bad: number;
}

export class BlockCache {
  readonly worth: WorthFetching;
  readonly fills = new Fills();
  readonly statistics: BlockStatistics = { hits: 0, misses: 0, hitBytes: 0, stored: 0, parts: 0, direct: 0, bad: 0, skipped: 0 };
  readonly #checking = new Map<number, Promise<boolean>>();
  readonly #under = new Set<Promise<unknown>>();
  readonly #writer: BlockWriter;
  #timer: NodeJS.Timeout | undefined;
  #readable = true;
  #writable = true;

  private constructor(
    readonly options: BlockCacheOptions,
    readonly budget: MemoryBudget,
    readonly log: BlockCacheLog,
    readonly slots: Slots,
  ) {
    this.worth = new WorthFetching(this.blockBytes, () => this.#full);
    this.#writer = new BlockWriter(slots, budget, this.statistics, (error) => this.#failed(error, false));
  }

  /** @returns null, with a warning, when the directory is of no use. */
  static async open(options: BlockCacheOptions, budget: MemoryBudget, log: BlockCacheLog): Promise<BlockCache | null> {
    const { directory, bytes, blockBytes = BLOCK_BYTES } = options;
    let file: SlotFile | null = null;
    let indexFd = -1;
    try {
      makeDirectory(directory);
      file = new SlotFile(join(directory, 'data'), blockBytes);
      indexFd = openSync(join(directory, 'index'), constants.O_RDWR | constants.O_CREAT, 0o600);
      const table = new BlockTable(Math.min(SLOTS_MAX, Math.max(SLOTS_MIN, Math.ceil(bytes / Math.min(AVERAGE_BYTES, blockBytes)))));
      const index = new IndexFile(indexFd, table, blockBytes);
      const bad = await index.load(file.bytes);
      file.cut(table.high); // what lies behind belongs to nobody
      const cache = new BlockCache(options, budget, log, new Slots(table, index, file, bytes));
      await cache.#begin(bad ?? 0);
      return cache;
    } catch (error) {
      file?.close();
      if (indexFd >= 0) closeSync(indexFd);
      const { code, message } = error as NodeJS.ErrnoException;
      if (code === undefined) throw error;
      log.warn({ err: error, directory }, `there is no block cache: ${directory} cannot be used (${message}); everything is read from the bucket`);
      return null;
    }
  }

  get blockBytes(): number {
    return this.slots.file.slotBytes;
  }

  /** What is known of one version of an object. */
  object(key: string, version: Version, size: number): CachedObject {
    const hash = createHash('sha256').update(this.slots.index.salt).update(JSON.stringify([this.options.scope, key, version, size])).digest();
    return new CachedObject(this, Uint32Array.from({ length: ID_WORDS }, (_, i) => hash.readUInt32LE(i * 4)), size);
  }

  /** The whole block is there, as far as is known. */
  has(id: ObjectId, block: number): boolean {
    const slot = this.#find(id, block);
    return slot >= 0 && this.slots.table.state[slot] !== STATE.part;
  }

  /**
   * `bytes` bytes that lie `at` behind a block's start, into the guest's memory, if that takes no waiting. Iovecs that are longer get
   * what lies behind them in the slot: zeros. @returns whether they are there
   */
  readNow(id: ObjectId, block: number, at: number, bytes: number, into: Iovecs): boolean {
    const slot = this.#find(id, block);
    if (slot < 0 || !this.#isGood(slot, at, bytes) || this.slots.file.readNow(slot, at, into) < bytes) return false;
    this.#hit(slot, bytes);
    return true;
  }

  /** The range is there and good: a block is compared with its checksum when it is used for the first time. */
  ready(id: ObjectId, block: number, at: number, bytes: number): boolean | Promise<boolean> {
    const slot = this.#find(id, block);
    if (slot < 0 || this.slots.table.state[slot] !== STATE.unchecked) return (slot >= 0 && this.#isGood(slot, at, bytes)) || this.#waiting(id, block) !== undefined;
    let checking = this.#checking.get(slot);
    if (checking === undefined) {
      checking = this.#track(this.#pinned(slot, () => this.#check(slot)).finally(() => this.#checking.delete(slot)));
      this.#checking.set(slot, checking);
    }
    return checking;
  }

  /** A range of a block that was ready a moment ago, waiting if need be. @returns false: it is not there any more */
  async read(id: ObjectId, block: number, at: number, bytes: number, into: NativeMemory): Promise<boolean> {
    const slot = this.#find(id, block);
    if (slot < 0 || !this.#isGood(slot, at, bytes)) {
      const content = this.#waiting(id, block);
      if (content === undefined) return false;
      into.u8.set(content.subarray(at, at + bytes));
      this.#count(bytes);
      return true;
    }
    if (!this.slots.file.fillNow(slot, at, bytes, into)) {
      const whole = await this.#track(this.#pinned(slot, () => this.#fill(slot, at, bytes, into)));
      if (!whole || this.#find(id, block) !== slot) return false;
    }
    this.#hit(slot, bytes);
    return true;
  }

  /**
   * A block that was fetched; `spare`: only if there is free room for it, but however much is waiting. The memory is not to change meanwhile.
   * @returns a promise that its bytes are not needed any more, or null: they are not wanted
   */
  keep(id: ObjectId, block: number, content: Uint8Array, spare = false): Promise<void> | null {
    if (!this.#writable || this.has(id, block)) return null;
    return this.#tracked(this.#writer.keep(id, block, content, spare));
  }

  /** A part that was fetched of a block of `bytes` bytes, in whole granules, from `at` on. @returns as keep() */
  keepPart(id: ObjectId, block: number, bytes: number, at: number, content: Uint8Array): Promise<void> | null {
    if (!this.#writable) return null;
    const slot = this.#find(id, block);
    if (slot >= 0 && (this.slots.table.state[slot] !== STATE.part || this.slots.granules.has(slot, at, content.length))) return null;
    return this.#tracked(this.#writer.keepPart(id, block, bytes, at, content));
  }

  /** Whether a whole block may be fetched now. */
  get mayFetch(): boolean {
    return this.#writable && !this.#writer.isBusy && this.worth.mayFetch;
  }

  /** One is fetched and kept. */
  fetching(work: Promise<void>): void {
    void this.#track(this.worth.fetching(work));
  }

  /** Disk space that nothing has. */
  get free(): number {
    return this.slots.bytesMax - this.slots.used;
  }

  /** Something more may be kept. */
  get isWritable(): boolean {
    return this.#writable;
  }

  /** It ends before the cache does. */
  background(work: Promise<void>): void {
    void this.#track(work);
  }

  /** The disk is full, and what is here can be fetched again: the oldest of it goes, and the cache stays so much smaller until the next start. @returns whether there is room now */
  giveWay(): boolean {
    if (!this.#readable) return false;
    const { freed, known } = this.slots.shrink(GIVE_WAY_BYTES);
    void this.#track(known.catch((error: unknown) => this.#failed(error, false)));
    const { directory } = this.options;
    if (freed > 0) this.log.warn({ directory, freed, left: this.slots.used }, `block cache: the disk of ${directory} is full; blocks are given up for what is not in the bucket yet`);
    return freed > 0;
  }

  /** What is to be kept is on the disk, or given up. */
  async idle(): Promise<void> {
    while (this.#under.size > 0) await Promise.all(this.#under);
  }

  /** Write what there is to be written, and end: nobody reads any more. */
  async close(): Promise<void> {
    await this.idle();
    if (this.#writable) await this.#flush();
    await this.abandon();
    const { statistics, slots } = this;
    this.log.debug({ ...statistics, evicted: slots.evicted, blocks: slots.table.count, bytes: slots.used }, 'block cache: what it did');
  }

  /** As a killed daemon leaves it; what is under way ends first, since its descriptors must not become those of other files. */
  async abandon(): Promise<void> {
    clearInterval(this.#timer);
    this.#readable = this.#writable = false;
    this.#writer.end();
    await this.idle();
    this.slots.file.close();
    await closeFd(this.slots.index.fd);
  }

  async #begin(bad: number): Promise<void> {
    const { slots } = this;
    await slots.begin();
    this.#timer = setInterval(() => void this.#track(this.#flush()), FLUSH_MS).unref();
    const { directory } = this.options;
    this.log.debug({ directory, blocks: slots.table.count, bytes: slots.used, evicted: slots.evicted }, 'block cache: what is there');
    if (bad > 0) this.log.warn({ directory, bad }, `block cache: ${bad} blocks are not in ${directory} as its index says; they are fetched anew when they are needed`);
  }

  get #full(): boolean {
    return this.free < this.blockBytes;
  }

  #find(id: ObjectId, block: number): number {
    return this.#readable ? this.slots.table.find(id, block) : -1;
  }

  #waiting(id: ObjectId, block: number): Uint8Array | undefined {
    return this.#readable ? this.#writer.waiting(id, block) : undefined;
  }

  /** What is in the slot may be used, as far as this range goes. */
  #isGood(slot: number, at: number, bytes: number): boolean {
    const state = this.slots.table.state[slot];
    return state === STATE.good || (state === STATE.part && this.slots.granules.has(slot, at, bytes));
  }

  async #check(slot: number): Promise<boolean> {
    const { table, file } = this.slots;
    const bytes = table.bytes[slot];
    const memory = await this.budget.take(bytes);
    try {
      const whole = this.#readable && (await file.fill(slot, 0, bytes, memory));
      if (!this.#readable) return false;
      if (whole && checksumOf(memory.u8.subarray(0, bytes)) === table.checksum[slot]) {
        table.state[slot] = STATE.good;
        return true;
      }
    } catch (error) {
      this.#failed(error, true);
      return false;
    } finally {
      this.budget.give(memory);
    }
    this.#drop(slot);
    return false;
  }

  async #fill(slot: number, at: number, bytes: number, into: NativeMemory): Promise<boolean> {
    try {
      if (await this.slots.file.fill(slot, at, bytes, into)) return this.#readable;
    } catch (error) {
      this.#failed(error, true);
      return false;
    }
    this.#drop(slot);
    return false;
  }

  #drop(slot: number): void {
    const { directory } = this.options;
    if (!this.slots.drop(slot) || this.statistics.bad++ > 0) return;
    this.log.warn({ directory, slot }, `block cache: a block in ${directory} is damaged; it is fetched anew, as all others that prove to be`);
  }

  /** @returns false also when the slot could not be given back afterwards */
  #pinned(slot: number, body: () => Promise<boolean>): Promise<boolean> {
    return this.slots.pinned(slot, body).catch((error: unknown) => {
      this.#failed(error, false);
      return false;
    });
  }

  #hit(slot: number, bytes: number): void {
    this.#count(bytes);
    this.slots.touch(slot);
  }

  #count(bytes: number): void {
    this.statistics.hits++;
    this.statistics.hitBytes += bytes;
  }

  async #flush(): Promise<void> {
    try {
      if (this.#writable) await this.slots.index.flush();
    } catch (error) {
      this.#failed(error, false);
    }
  }

  #tracked(work: Promise<void> | null): Promise<void> | null {
    return work === null ? null : this.#track(work);
  }

  #track<T>(work: Promise<T>): Promise<T> {
    const done = work.finally(() => this.#under.delete(done));
    this.#under.add(done);
    return done;
  }

  /** The directory is of no use any more: to write to, or at all. Said once. */
  #failed(error: unknown, reading: boolean): void {
    const { code, message } = error as NodeJS.ErrnoException;
    if (code === undefined) throw error;
    const said = reading ? !this.#readable : !this.#writable;
    this.#writable = false;
    this.#writer.end();
    if (reading) this.#readable = false;
    if (said) return;
    const { directory } = this.options;
    const left = reading ? 'it is not used any more, everything is read from the bucket' : 'what it has is used, nothing more is kept';
    this.log.warn({ err: error, directory }, `block cache: ${directory} ${reading ? 'cannot be read' : 'cannot be written to'} (${message}): ${left}, until the next start`);
  }
}
