/**
 * One bound for all native memory that reads of a daemon hold: what was fetched ahead, and what is on its way.
 *
 * Blocks that were given back are kept for a while to be used again: the kernel zeroes new ones, which costs nearly as
 * much as receiving into them.
 */
import { NativeMemory } from '../../ffi/memory.js';

interface Waiter {
  readonly bytes: number;
  readonly resolve: () => void;
}

/** Smaller blocks are not worth keeping. */
const KEEP_MIN_BYTES = 64 << 10;
const KEEP_MS = 5_000;
/** So much of it may be used to fetch ahead. */
const AHEAD_SHARE = 3 / 4;
/** No more than so much of it may be in use when something else is held. */
const HELD_SHARE = 1 / 2;
/** What connections, threads and garbage not yet collected take while data comes as fast as it can. */
const NETWORK_BYTES = 32 << 20;

export class MemoryBudget {
  #used = 0;
  /** Not in use, and not counted as used; together with what is, never more than the budget. */
  #kept: NativeMemory[] = [];
  #keptBytes = 0;
  #timer: NodeJS.Timeout | null = null;
  readonly #waiting: Waiter[] = [];
  /** Who can do without some of what they hold; they are asked when somebody has to wait. */
  readonly holders = new Set<{ reclaim(): void }>();

  /** For a process that is to have no more than so many bytes for reading, all in all. */
  static within(bytes: number): MemoryBudget {
    return new MemoryBudget(Math.max(bytes / 4, bytes - NETWORK_BYTES));
  }

  /** `bytes` is at least as much as the largest single read. */
  constructor(readonly bytes: number) {}

  get used(): number {
    return this.#used;
  }

  /** Memory to fetch ahead into, if there is room for it now, nobody waits, and some is left for reads; else null. */
  tryTake(bytes: number): NativeMemory | null {
    if (this.#waiting.length > 0 || this.#used + rounded(bytes) > this.bytes * AHEAD_SHARE) return null;
    return this.#allocate(bytes);
  }

  /** Memory when there is room, in the order of asking. What was in it is still there. */
  async take(bytes: number): Promise<NativeMemory> {
    if (this.#waiting.length > 0 || (this.#used > 0 && this.#used + rounded(bytes) > this.bytes)) {
      const turn = new Promise<void>((resolve) => this.#waiting.push({ bytes, resolve }));
      for (const holder of this.holders) holder.reclaim();
      await turn;
      this.#used -= rounded(bytes); // counted already when it was let in
    }
    return this.#allocate(bytes);
  }

  /** Count memory of JavaScript for something that can be done without. @returns false: there is no room for it */
  tryHold(bytes: number): boolean {
    if (this.#waiting.length > 0 || this.#used + bytes > this.bytes * HELD_SHARE) return false;
    this.#shrink(bytes);
    this.#used += bytes;
    return true;
  }

  /** What was counted is held no more. */
  letGo(bytes: number): void {
    this.#used -= bytes;
    this.#admit();
  }

  give(memory: NativeMemory): void {
    this.#used -= memory.length;
    if (memory.length >= KEEP_MIN_BYTES) this.#keep(memory);
    else memory.free();
    this.#admit();
  }

  #admit(): void {
    while (this.#waiting.length > 0) {
      const { bytes, resolve } = this.#waiting[0];
      if (this.#used > 0 && this.#used + rounded(bytes) > this.bytes) return;
      this.#waiting.shift();
      this.#used += rounded(bytes);
      resolve();
    }
  }

  /** Give back to the system what is not in use. */
  trim(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
    for (const memory of this.#kept.splice(0)) memory.free();
    this.#keptBytes = 0;
  }

  #keep(memory: NativeMemory): void {
    this.#kept.push(memory);
    this.#keptBytes += memory.length;
    this.#timer?.refresh();
    this.#timer ??= setTimeout(() => this.trim(), KEEP_MS).unref();
  }

  #allocate(bytes: number): NativeMemory {
    const length = rounded(bytes);
    const at = this.#kept.findLastIndex((memory) => memory.length === length);
    if (at >= 0) {
      const [memory] = this.#kept.splice(at, 1);
      this.#keptBytes -= length;
      this.#used += length;
      return memory;
    }
    this.#shrink(length);
    const memory = NativeMemory.allocate(bytes);
    this.#used += memory.length;
    return memory;
  }

  /** Blocks that are not in use make room. */
  #shrink(bytes: number): void {
    while (this.#keptBytes > 0 && this.#used + this.#keptBytes + bytes > this.bytes) {
      const memory = this.#kept.shift()!;
      this.#keptBytes -= memory.length;
      memory.free();
    }
  }
}

/** Memory of JavaScript in pieces of one size, of which `free` need no room in the budget. */
export class HeldPieces {
  /** Bytes of the budget. */
  #held = 0;

  constructor(
    readonly budget: MemoryBudget,
    readonly free: number,
    readonly pieceBytes: number,
  ) {}

  /** Hold so many in all, if the budget has room for those that are not free. @returns whether it has */
  tryHold(count: number): boolean {
    const more = this.#bytes(count) - this.#held;
    if (more > 0 && !this.budget.tryHold(more)) return false;
    this.#held += Math.max(0, more);
    return true;
  }

  /** There are only so many left. */
  shrink(count: number): void {
    const less = this.#held - this.#bytes(count);
    if (less <= 0) return;
    this.#held -= less;
    this.budget.letGo(less);
  }

  #bytes(count: number): number {
    return Math.max(0, count - this.free) * this.pieceBytes;
  }
}

const rounded = (bytes: number): number => Math.ceil(bytes / 4096) * 4096;
