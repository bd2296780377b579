/**
 * Small files that are looked up, opened, read and closed one after the other: where that is how a directory is used, what LOOKUP or OPEN
 * ask the store about an object brings its content along, and the first read of that version finds it here.
 *
 * When the store is asked, and what the guest is told, stays as it is without. What is here belongs to one version, and is given to who
 * has opened exactly that one; it is dropped after a moment, when the file is closed, and when somebody else needs the memory.
 */
import type { NativeMemory } from '../../ffi/memory.js';
import type { BlockCache } from './blocks/block-cache.js';
import { StorageError } from './errors.js';
import type { MemoryBudget } from './memory-budget.js';
import { directoryOf } from './names.js';
import { Reader } from './reader.js';
import type { ObjectInfo, ObjectStore, Version } from './store.js';
import type { Base } from './write/records.js';

/** An object as it was known before it is asked for. */
export interface Expected {
  readonly version: Version | null;
  /** Bytes. */
  readonly size: number;
}

export const SMALL_MAX_BYTES = 64 << 10;
const KEPT_MAX_BYTES = 4 << 20;
const KEPT_MS = 2_000;
const DIRECTORIES_MAX = 64;
/** What was done longer ago says nothing of what comes next. */
const HABIT_MS = 5_000;
/** So many files are opened after their LOOKUP before the next LOOKUP brings content along. */
const OPENS_BEFORE = 3;
/** Of so many lookups, and of so many fetched files, the older ones count half. */
const WINDOW = 16;
/** So many files more than were read may have been fetched for nothing. */
const WASTED_MORE = 4;

interface Kept {
  readonly version: Version;
  readonly size: number;
  readonly memory: NativeMemory;
  readonly until_ms: number;
}

/** What is done with the files of one directory. */
interface Habit {
  lookups: number;
  /** For reading, right after a lookup. */
  opens: number;
  /** Small files that were read, and that were fetched and not read. */
  used: number;
  wasted: number;
  last_ms: number;
}

export class SmallFiles {
  /** By key, the oldest first. */
  readonly #kept = new Map<string, Kept>();
  /** Of memory, of all of them. */
  #bytes = 0;
  /** By prefix, the one that was used last last. */
  readonly #habits = new Map<string, Habit>();
  #timer: NodeJS.Timeout | null = null;
  /** How often all was dropped. */
  #cleared = 0;

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    /** Whether it need not be fetched, because it is on disk. */
    readonly isCached: (key: string, version: Version, size: number) => boolean,
  ) {
    budget.holders.add(this);
  }

  /** What a LOOKUP asks, of a file that is known from a listing. @throws StorageError as head() */
  lookup(key: string, expected: Expected): Promise<ObjectInfo> {
    return this.bringsContent(key, expected) ? this.#fetch(key, expected) : this.store.head(key);
  }

  /** Whether lookup() asks for content as well. */
  bringsContent(key: string, expected: Expected): boolean {
    const habit = this.#habits.get(directoryOf(key));
    const opens = habit !== undefined && performance.now() - habit.last_ms < HABIT_MS && habit.opens >= OPENS_BEFORE && habit.opens * 2 >= habit.lookups;
    return opens && this.store.capabilities.fetch && this.#isWorth(key, expected);
  }

  /** What an OPEN for reading asks. @throws StorageError as head() */
  open(key: string, expected: Expected): Promise<ObjectInfo> {
    return this.#isWorth(key, expected) ? this.#fetch(key, expected) : this.store.head(key);
  }

  /** A file was looked up, or was opened for reading right after that. */
  note(key: string, what: 'lookups' | 'opens'): void {
    const habit = this.#habitOf(key);
    habit[what]++;
    habit.opens = Math.min(habit.opens, habit.lookups);
    if (habit.lookups < WINDOW) return;
    habit.lookups /= 2;
    habit.opens /= 2;
  }

  /** For the first read of a file that was opened as this version: what is here of it is the reader's from now on. */
  reader({ key, version, size }: Base, blocks: BlockCache | null): Reader {
    const reader = new Reader(this.store, this.budget, key, version, size, blocks);
    if (size > SMALL_MAX_BYTES) return reader;
    this.#count(key, 'used');
    const kept = this.#kept.get(key);
    if (kept === undefined || kept.version !== version || kept.size !== size) return reader;
    this.#remove(key, kept);
    reader.adopt(kept.memory);
    return reader;
  }

  /** It was closed and not read, or is in the way. */
  drop(key: string): void {
    const kept = this.#kept.get(key);
    if (kept === undefined) return;
    this.#remove(key, kept);
    this.budget.give(kept.memory);
    this.#count(key, 'wasted');
  }

  /** Somebody waits for memory. */
  reclaim(): void {
    for (const key of [...this.#kept.keys()]) this.drop(key);
  }

  /** The guest has gone, and the daemon may end. */
  clear(): void {
    this.#cleared++;
    this.reclaim();
    this.#habits.clear();
  }

  #isWorth(key: string, { version, size }: Expected): boolean {
    if (version === null || size === 0 || size > SMALL_MAX_BYTES) return false;
    // Should it still be this version, it is here
    if (this.#kept.get(key)?.version === version || this.isCached(key, version, size)) return false;
    const habit = this.#habits.get(directoryOf(key));
    return habit === undefined || habit.wasted <= habit.used + WASTED_MORE || performance.now() - habit.last_ms >= HABIT_MS;
  }

  async #fetch(key: string, expected: Expected): Promise<ObjectInfo> {
    const memory = this.budget.tryTake(expected.size);
    if (memory === null) return this.store.head(key);
    const { capabilities } = this.store;
    const cleared = this.#cleared;
    let isKept = false;
    try {
      const into = { address: memory.address, bytes: expected.size };
      const { info, bytes } = capabilities.fetch ? await this.#fetchOrHead(key, into) : await this.#headAndRead(key, expected, into);
      isKept = bytes === info.size && bytes > 0 && cleared === this.#cleared;
      if (isKept) this.#keep(key, { version: info.version, size: bytes, memory, until_ms: performance.now() + KEPT_MS });
      return info;
    } finally {
      if (!isKept) this.budget.give(memory);
    }
  }

  /** What is archived has no content that could be fetched. */
  async #fetchOrHead(key: string, into: { address: number; bytes: number }): Promise<{ info: ObjectInfo; bytes: number }> {
    try {
      return await this.store.fetch(key, { into });
    } catch (error) {
      if (!(error instanceof StorageError) || error.code !== 'archived') throw error;
      return { info: await this.store.head(key), bytes: -1 };
    }
  }

  /** Both at once. The content is good if there is still the version that was expected. */
  async #headAndRead(key: string, { version }: Expected, into: { address: number; bytes: number }): Promise<{ info: ObjectInfo; bytes: number }> {
    const reading = this.store.read(key, { version: version!, offset: 0, into }).catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
      return -1;
    });
    let info: ObjectInfo;
    try {
      info = await this.store.head(key);
    } finally {
      // It writes to memory until then
      await reading;
    }
    return { info, bytes: info.version === version ? await reading : -1 };
  }

  #keep(key: string, kept: Kept): void {
    this.drop(key);
    this.#kept.set(key, kept);
    this.#bytes += kept.memory.length;
    for (const [oldest] of this.#kept) {
      if (this.#bytes <= KEPT_MAX_BYTES) break;
      this.drop(oldest);
    }
    this.#timer ??= setTimeout(() => this.#sweep(), KEPT_MS).unref();
  }

  #sweep(): void {
    this.#timer = null;
    const time = performance.now();
    for (const [key, { until_ms }] of [...this.#kept]) if (until_ms <= time) this.drop(key);
    const [first] = this.#kept.values();
    if (first !== undefined) this.#timer = setTimeout(() => this.#sweep(), first.until_ms - time).unref();
  }

  #remove(key: string, { memory }: Kept): void {
    this.#kept.delete(key);
    this.#bytes -= memory.length;
  }

  #count(key: string, what: 'used' | 'wasted'): void {
    const habit = this.#habitOf(key);
    habit[what]++;
    if (habit.used + habit.wasted < WINDOW) return;
    habit.used /= 2;
    habit.wasted /= 2;
  }

  #habitOf(key: string): Habit {
    const prefix = directoryOf(key);
    const time = performance.now();
    const known = this.#habits.get(prefix);
    const habit = known !== undefined && time - known.last_ms < HABIT_MS ? known : { lookups: 0, opens: 0, used: 0, wasted: 0, last_ms: time };
    habit.last_ms = time;
    this.#habits.delete(prefix);
    this.#habits.set(prefix, habit);
    if (this.#habits.size > DIRECTORIES_MAX) this.#habits.delete(this.#habits.keys().next().value!);
    return habit;
  }
}
