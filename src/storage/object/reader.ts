/**
 * Reading one version of an object through an open file.
 *
 * A read that does not follow the one before fetches exactly its range. Reads that do are met by parts fetched ahead, in
 * parallel; how far ahead grows with how much was read in order, and is bounded by the memory that all readers share. A
 * guest's readahead asks for several ranges at once and out of order, so what is near the last read counts as in order.
 */
import type { NativeMemory } from '../../ffi/memory.js';
import { StorageError } from './errors.js';
import type { MemoryBudget } from './memory-budget.js';
import type { ObjectStore, Version } from './store.js';

const KIB = 1 << 10;
const MIB = 1 << 20;

/** So much is read in order before anything is fetched ahead. */
const AHEAD_AFTER_BYTES = 256 * KIB;
/** On its way at 600 MB/s where an answer takes 100 ms. */
const AHEAD_MAX_BYTES = 64 * MIB;
const PART_MIN_BYTES = 1 * MIB;
const PART_MAX_BYTES = 8 * MIB;
/** Reads so far apart are still one stream. */
const SLACK_BYTES = 4 * MIB;

interface Part {
  readonly from: number;
  readonly to: number;
  readonly memory: NativeMemory;
  readonly caller: AbortController;
  /** Bytes read, or the error; never rejects, since nobody may ever ask. */
  readonly done: Promise<number | Error>;
  /** Reads that copy from it now. */
  users: number;
  dropped: boolean;
}

/** Takes bytes of the answer: `at` bytes behind its start. */
export type Deliver = (at: number, address: number, bytes: number) => void;

export class Reader {
  /** In order, apart from each other; not always without gaps. */
  #parts: Part[] = [];
  /** Where the last reads ended, and how much was read in order until there. */
  #high = 0;
  #run = 0;
  #key: string;
  #version: Version;
  /** How often the object was moved. */
  #moves = 0;

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    key: string,
    version: Version,
    readonly size: number,
  ) {
    this.#key = key;
    this.#version = version;
    budget.holders.add(this);
  }

  get key(): string {
    return this.#key;
  }

  get version(): Version {
    return this.#version;
  }

  /** The same content is somewhere else now. */
  moveTo(key: string, version: Version): void {
    this.#key = key;
    this.#version = version;
    this.#moves++;
  }

  /**
   * Deliver up to `bytes` bytes from `offset` on. @returns how many: fewer only at the end.
   * @throws StorageError, `changed` when the object is another one by now.
   */
  async read(offset: number, bytes: number, deliver: Deliver): Promise<number> {
    const end = Math.min(this.size, offset + bytes);
    if (offset >= end) return 0;
    this.#follow(offset, end);
    this.#fetchAhead(offset);
    for (let at = offset; at < end; ) {
      const bytes = await this.#piece(at, end, at - offset, deliver);
      // This version has them: who says otherwise has looked at another one
      if (bytes <= 0) throw new StorageError('changed', `read ${this.store.location}/${this.key}`, { providerMessage: `it ends at ${at} instead of ${this.size}` });
      at += bytes;
    }
    return end - offset;
  }

  /** Nothing is read any more. */
  close(): void {
    this.budget.holders.delete(this);
    this.#dropAll();
  }

  /** Somebody waits for memory: give up what nobody reads from at the moment. */
  reclaim(): void {
    const unused = this.#parts.filter((part) => part.users === 0);
    this.#parts = this.#parts.filter((part) => part.users > 0);
    for (const part of unused) this.#drop(part);
  }

  #dropAll(): void {
    for (const part of this.#parts.splice(0)) this.#drop(part);
  }

  #follow(offset: number, end: number): void {
    if (Math.abs(offset - this.#high) > SLACK_BYTES) {
      this.#run = 0;
      this.#high = end;
      this.#dropAll();
      return;
    }
    this.#run += end - offset;
    this.#high = Math.max(this.#high, end);
    while (this.#parts.length > 0 && this.#parts[0].to <= this.#high - SLACK_BYTES) this.#drop(this.#parts.shift()!);
  }

  #fetchAhead(offset: number): void {
    if (this.#run < AHEAD_AFTER_BYTES) return;
    const ahead = Math.min(AHEAD_MAX_BYTES, this.budget.bytes / 2, 2 * this.#run);
    const until = Math.min(this.size, this.#high + ahead);
    let from = Math.max(this.#parts.at(-1)?.to ?? 0, offset);
    const part = Math.min(PART_MAX_BYTES, Math.max(PART_MIN_BYTES, Math.floor(ahead / 4 / MIB) * MIB));
    while (from < until) {
      // A short rest is not worth a request of its own before the file ends
      const to = Math.min(this.size, from + part);
      if (until < to && until < this.size && this.#parts.length > 0) return;
      if (!this.#begin(from, to)) return;
      from = to;
    }
  }

  #begin(from: number, to: number): boolean {
    const memory = this.budget.tryTake(to - from);
    if (memory === null) return false;
    const caller = new AbortController();
    const done = this.#readStore(from, { address: memory.address, bytes: to - from }, caller.signal).catch((error: Error) => error);
    const part: Part = { from, to, memory, caller, done, users: 0, dropped: false };
    this.#parts.push(part);
    return true;
  }

  /** Deliver what one part has of [at, end), or fetch exactly what no part has. @returns bytes delivered. */
  async #piece(at: number, end: number, into: number, deliver: Deliver): Promise<number> {
    const part = this.#parts.find((one) => one.from <= at && at < one.to);
    if (part === undefined) {
      const next = this.#parts.find((one) => one.from > at);
      return this.#exact(at, Math.min(end, next?.from ?? end), into, deliver);
    }
    part.users++;
    const result = await part.done;
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
    this.#parts = this.#parts.filter((one) => one !== part);
    this.#drop(part);
    return this.#exact(at, Math.min(end, part.to), into, deliver);
  }

  async #exact(from: number, to: number, into: number, deliver: Deliver): Promise<number> {
    const memory = await this.budget.take(to - from);
    try {
      const bytes = await this.#readStore(from, { address: memory.address, bytes: to - from });
      deliver(into, memory.address, bytes);
      return bytes;
    } finally {
      this.budget.give(memory);
    }
  }

  /** What was not found because it was moved meanwhile is read where it is now. An object that somebody has removed is not the one that was opened. */
  async #readStore(offset: number, into: { address: number; bytes: number }, signal?: AbortSignal): Promise<number> {
    for (;;) {
      const moves = this.#moves;
      try {
        return await this.store.read(this.#key, { version: this.#version, offset, into, ...(signal === undefined ? {} : { signal }) });
      } catch (error) {
        const missing = error instanceof StorageError && (error.code === 'not-found' || error.code === 'changed');
        if (missing && moves !== this.#moves) continue;
        throw missing && error.code === 'not-found' ? new StorageError('changed', error.operation, error.detail) : error;
      }
    }
  }

  #drop(part: Part): void {
    part.dropped = true;
    part.caller.abort();
    this.#release(part);
  }

  /** The memory of a dropped part goes back when no read copies from it and the store no longer writes to it. */
  #release(part: Part): void {
    if (!part.dropped || part.users > 0) return;
    part.users = -1; // once
    void part.done.then(() => this.budget.give(part.memory));
  }
}
