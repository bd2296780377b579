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
 * Nobody waits for this but those whom it serves. What was fetched is written afterwards, and left out when the disk does not keep up.
 * When the directory fails, the cache switches itself off, with a warning, and everything is read from the store as without it.
 */
import { createHash } from 'node:crypto';
import { close, closeSync, constants, mkdirSync, openSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as pause } from 'node:timers/promises';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import type { NativeMemory } from '../../../ffi/memory.js';
import type { MemoryBudget } from '../memory-budget.js';
import type { Version } from '../store.js';
import { BlockTable, ID_WORDS, type ObjectId } from './block-table.js';
import { CachedObject } from './cached-object.js';
import { IndexFile } from './index-file.js';
import { SlotFile, type Iovecs } from './slot-file.js';
import { Slots, type Room } from './slots.js';

const closeFd = promisify(close);

export const BLOCK_BYTES = 1 << 20;
/** As many slots as if blocks had this size on average: it bounds the memory that small objects cost. */
const AVERAGE_BYTES = 32 << 10;
const SLOTS_MIN = 64;
const SLOTS_MAX = 1 << 20;
/** Of the memory budget, what may wait to be written. */
const PENDING_SHARE = 1 / 8;
const PENDING_MAX_BYTES = 64 << 20;
/** libuv has four threads for everything; commits need some of them too. */
const WRITES_AT_ONCE = 2;
/** From there on a round trip costs more than the rest of a block. */
const FAR_MS = 10;
/** Whole blocks that are fetched because parts of them were asked for. */
const FETCHES_AT_ONCE = 4;
/** Once the cache is full, they are at most so many times what was asked for: where it is too small, it would only fetch and throw away. */
const FETCHED_PER_MISSED = 8;
const CREDIT_BLOCKS = 16;
/** A checksum of so much is made without a pause. */
const CHECKSUM_STEP = 256 << 10;
/** The order of use is written so often: what a killed daemon may lose of it. */
const FLUSH_MS = 60_000;
/** Misses that are remembered. */
const MISSES = 1 << 14;

export interface BlockCacheOptions {
  /** Made if absent; nobody else uses it meanwhile. */
  readonly directory: string;
  /** Of disk space, at most. */
  readonly bytes: number;
  /** Versions are unique in it: provider, endpoint and bucket. */
  readonly scope: string;
  readonly blockBytes?: number;
}

export interface BlockCacheLog {
  warn(fields: object, message: string): unknown;
  debug(fields: object, message: string): unknown;
}

export interface BlockStatistics {
  /** Reads, or parts of reads, that were answered from here, and that were not. */
  hits: number;
  misses: number;
  hitBytes: number;
  stored: number;
  /** Blocks that were not what the index says. */
  bad: number;
  /** Blocks that were not kept because too much was waiting to be written. */
  skipped: number;
}

export class BlockCache {
  readonly statistics: BlockStatistics = { hits: 0, misses: 0, hitBytes: 0, stored: 0, bad: 0, skipped: 0 };
  readonly #checking = new Map<number, Promise<boolean>>();
  /** Names of blocks that are on their way to the disk. */
  readonly #writing = new Set<string>();
  readonly #turns: (() => void)[] = [];
  readonly #under = new Set<Promise<unknown>>();
  readonly #pendingMax: number;
  readonly #missed = new Uint32Array(MISSES);
  #timer: NodeJS.Timeout | undefined;
  #pending = 0;
  #writes = 0;
  #fetches = 0;
  /** Bytes that whole blocks may have, by what was asked for until now. */
  #credit = 0;
  /** What fetching a range takes, on average. */
  #usual_ms = 0;
  #readable = true;
  #writable = true;

  private constructor(
    readonly options: BlockCacheOptions,
    readonly budget: MemoryBudget,
    readonly log: BlockCacheLog,
    readonly slots: Slots,
  ) {
    this.#pendingMax = Math.max(this.blockBytes, Math.min(PENDING_MAX_BYTES, budget.bytes * PENDING_SHARE));
  }

  /** @returns null, with a warning, when the directory is of no use. */
  static async open(options: BlockCacheOptions, budget: MemoryBudget, log: BlockCacheLog): Promise<BlockCache | null> {
    const { directory, bytes, blockBytes = BLOCK_BYTES } = options;
    let file: SlotFile | null = null;
    let indexFd = -1;
    try {
      mkdirSync(directory, { recursive: true, mode: 0o700 });
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

  /** The block is there, as far as is known. */
  has(id: ObjectId, block: number): boolean {
    return this.#find(id, block) >= 0;
  }

  /**
   * `bytes` bytes that lie `at` behind a block's start, into the guest's memory, if that takes no waiting. Iovecs that are longer get
   * what lies behind them in the slot: zeros. @returns whether they are there
   */
  readNow(id: ObjectId, block: number, at: number, bytes: number, into: Iovecs): boolean {
    const slot = this.#find(id, block);
    if (slot < 0 || this.slots.table.verified[slot] === 0 || this.slots.file.readNow(slot, at, into) < bytes) return false;
    this.#hit(slot, bytes);
    return true;
  }

  /** The block is there and good: it is compared with its checksum when it is used for the first time. */
  ready(id: ObjectId, block: number): boolean | Promise<boolean> {
    const slot = this.#find(id, block);
    if (slot < 0 || this.slots.table.verified[slot] === 1) return slot >= 0;
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
    if (slot < 0 || this.slots.table.verified[slot] === 0) return false;
    if (!this.slots.file.fillNow(slot, at, bytes, into)) {
      const whole = await this.#track(this.#pinned(slot, () => this.#fill(slot, at, bytes, into)));
      if (!whole || this.#find(id, block) !== slot) return false;
    }
    this.#hit(slot, bytes);
    return true;
  }

  /**
   * A block that was fetched. @returns a promise that its bytes are not needed any more, or null: they are not wanted.
   * The memory is not to change meanwhile.
   */
  keep(id: ObjectId, block: number, content: Uint8Array): Promise<void> | null {
    if (!this.#writable || this.#find(id, block) >= 0) return null;
    const name = `${id.join()}:${block}`;
    if (this.#writing.has(name)) return null;
    if (this.#pending + content.length > this.#pendingMax) {
      this.statistics.skipped++;
      return null;
    }
    this.#pending += content.length;
    this.#writing.add(name);
    return this.#track(this.#inTurn(() => this.#store(id, block, content)).finally(() => {
      this.#pending -= content.length;
      this.#writing.delete(name);
    }));
  }

  /** A range had to be fetched, which took so long. */
  fetched(took_ms: number): void {
    this.#usual_ms += (took_ms - this.#usual_ms) / 8;
  }

  /**
   * `bytes` bytes of a block had to be fetched. @returns whether the whole block may be worth it: if that happened before, not long ago, or, as long
   * as there is room, if the bucket is far away
   */
  missed(id: ObjectId, block: number, bytes: number): boolean {
    this.#credit = Math.min(CREDIT_BLOCKS * this.blockBytes, this.#credit + FETCHED_PER_MISSED * bytes);
    const tag = (id[1] ^ Math.imul(block + 1, 0x85ebca6b)) >>> 0 || 1;
    const at = tag % MISSES;
    const again = this.#missed[at] === tag;
    this.#missed[at] = again ? 0 : tag;
    return again || (!this.#full && this.#usual_ms >= FAR_MS);
  }

  /** Nobody waits for a whole block that is fetched, so few are at a time. */
  get mayFetch(): boolean {
    return this.#writable && this.#fetches < FETCHES_AT_ONCE && this.#pending * 2 <= this.#pendingMax && (!this.#full || this.#credit >= this.blockBytes);
  }

  /** One is fetched and kept. */
  fetching(work: Promise<void>): void {
    this.#fetches++;
    if (this.#full) this.#credit -= this.blockBytes;
    void this.#track(work.finally(() => this.#fetches--));
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
    return this.slots.used + this.blockBytes > this.options.bytes;
  }

  #find(id: ObjectId, block: number): number {
    return this.#readable ? this.slots.table.find(id, block) : -1;
  }

  async #store(id: ObjectId, block: number, content: Uint8Array): Promise<void> {
    let room: Room | null = null;
    try {
      const sum = await checksum(content);
      if (this.#writable) room = await this.slots.take(content.length);
      if (room === null || !this.#writable) return;
      await this.slots.fill(room, id, block, content, sum);
      this.statistics.stored++;
    } catch (error) {
      this.#failed(error, false);
      if (room !== null) await this.slots.forsake(room, content.length);
    }
  }

  async #check(slot: number): Promise<boolean> {
    const { table, file } = this.slots;
    const bytes = table.bytes[slot];
    const memory = await this.budget.take(bytes);
    try {
      const whole = this.#readable && (await file.fill(slot, 0, bytes, memory));
      if (!this.#readable) return false;
      if (whole && (await checksum(memory.u8.subarray(0, bytes))) === table.checksum[slot]) {
        table.verified[slot] = 1;
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
    this.statistics.hits++;
    this.statistics.hitBytes += bytes;
    this.slots.touch(slot);
  }

  async #inTurn(body: () => Promise<void>): Promise<void> {
    if (this.#writes < WRITES_AT_ONCE) this.#writes++;
    else await new Promise<void>((resolve) => this.#turns.push(resolve));
    try {
      await body();
    } finally {
      const next = this.#turns.shift();
      if (next === undefined) this.#writes--;
      else next();
    }
  }

  async #flush(): Promise<void> {
    try {
      if (this.#writable) await this.slots.index.flush();
    } catch (error) {
      this.#failed(error, false);
    }
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
    if (reading) this.#readable = false;
    if (said) return;
    const { directory } = this.options;
    const left = reading ? 'it is not used any more, everything is read from the bucket' : 'what it has is used, nothing more is kept';
    this.log.warn({ err: error, directory }, `block cache: ${directory} ${reading ? 'cannot be read' : 'cannot be written to'} (${message}): ${left}, until the next start`);
  }
}

/** CRC-32, with pauses: other requests are answered meanwhile. */
async function checksum(bytes: Uint8Array): Promise<number> {
  let sum = 0;
  for (let at = 0; at < bytes.length; at += CHECKSUM_STEP) {
    if (at > 0) await pause();
    sum = crc32(bytes.subarray(at, at + CHECKSUM_STEP), sum);
  }
  return sum;
}
