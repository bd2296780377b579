/**
 * Requests that wait for a lock. They occupy neither the queue nor a pool thread: they are tried again when a lock is given up here, and on a timer
 * for locks that others on the host hold; so any number can wait, each can be interrupted, and none can keep the daemon from stopping.
 */
import { E } from '../../base/errno.js';
import type { DetachedRequest } from '../filesystem.js';

const RETRY_MIN_MS = 1;
const RETRY_MAX_MS = 100;
const WAITERS_MAX = 4096;
/** Waiting requests are tried for so long before other events have their turn. */
const TURN_MS = 2;

export interface Waiter {
  readonly request: DetachedRequest;
  /** Node slot, and the open file that it was asked through. */
  readonly slot: number;
  readonly handle: number;
  /** flock, or the bytes of a POSIX lock. */
  readonly isFlock: boolean;
  readonly start: bigint;
  readonly end: bigint;
  /** 0, −EAGAIN as long as somebody else has the lock, or another −errno. */
  readonly attempt: () => number;
  /** It waits no longer, however it ended. */
  readonly ended?: () => void;
}

/** What was given up of a node's locks since its waiters were last tried. */
interface Freed {
  flock: boolean;
  /** First and last byte of all that was unlocked, or null: no waiter is woken by what it does not touch, but between two ranges it may be. */
  bytes: { start: bigint; end: bigint } | null;
}

export class LockWaiters {
  /** By node slot, in the order that they came. */
  readonly #waiters = new Map<number, Set<Waiter>>();
  #count = 0;
  #timer: NodeJS.Timeout | null = null;
  #delay_ms = RETRY_MIN_MS;
  readonly #freed = new Map<number, Freed>();
  /** To be tried now, in this order; a waiter is there once. */
  #due = new Set<Waiter>();
  #trying: NodeJS.Immediate | null = null;

  get count(): number {
    return this.#count;
  }

  get isFull(): boolean {
    return this.#count >= WAITERS_MAX;
  }

  add(waiter: Waiter): void {
    const those = this.#waiters.get(waiter.slot);
    if (those === undefined) this.#waiters.set(waiter.slot, new Set([waiter]));
    else those.add(waiter);
    this.#count++;
    this.#arm(RETRY_MIN_MS);
  }

  /** These bytes of a node are locked by one owner less. */
  unlocked(slot: number, start: bigint, end: bigint): void {
    const freed = this.#free(slot);
    if (freed === null) return;
    const { bytes } = freed;
    if (bytes === null) freed.bytes = { start, end };
    else freed.bytes = { start: start < bytes.start ? start : bytes.start, end: end > bytes.end ? end : bytes.end };
  }

  /** An flock of a node was given up. */
  unflocked(slot: number): void {
    const freed = this.#free(slot);
    if (freed !== null) freed.flock = true;
  }

  /** Null: nobody waits. */
  #free(slot: number): Freed | null {
    if (!this.#waiters.has(slot)) return null;
    let freed = this.#freed.get(slot);
    if (freed === undefined) this.#freed.set(slot, (freed = { flock: false, bytes: null }));
    this.#trySoon();
    return freed;
  }

  /** The open file is closed: who waits through it gets nothing any more. */
  released(slot: number, handle: number): void {
    for (const waiter of this.#waiters.get(slot) ?? []) if (waiter.handle === handle) this.#end(waiter, -E.BADF);
  }

  /** End a waiting request with EINTR; false if none of the waiting ones has this unique. */
  interrupt(uniqueLow: number, uniqueHigh: number): boolean {
    for (const those of this.#waiters.values()) {
      for (const waiter of those) {
        if (waiter.request.uniqueLow !== uniqueLow || waiter.request.uniqueHigh !== uniqueHigh) continue;
        this.#end(waiter, -E.INTR);
        return true;
      }
    }
    return false;
  }

  cancel(): void {
    for (const those of [...this.#waiters.values()]) for (const waiter of those) this.#end(waiter, -E.INTR);
    this.#freed.clear();
    this.#disarm();
  }

  #end(waiter: Waiter, result: number): void {
    const those = this.#waiters.get(waiter.slot);
    if (those?.delete(waiter) !== true) return;
    if (those.size === 0) this.#waiters.delete(waiter.slot);
    this.#due.delete(waiter);
    if (--this.#count === 0) this.#disarm();
    waiter.ended?.();
    waiter.request.complete(result);
  }

  #trySoon(): void {
    this.#trying ??= setImmediate(() => {
      this.#trying = null;
      this.#gather();
      this.#try();
    });
  }

  /**
   * Rule: what is unlocked in one turn of the event loop is looked at once, for all waiters together, and an attempt is made for those only whose bytes it
   * touches. A guest's unlocks cost what they are, not what they are times its waiters.
   */
  #gather(): void {
    for (const [slot, { flock, bytes }] of this.#freed) {
      for (const waiter of this.#waiters.get(slot) ?? []) {
        if (waiter.isFlock ? flock : bytes !== null && touches(waiter, bytes.start, bytes.end)) this.#due.add(waiter);
      }
    }
    this.#freed.clear();
  }

  #try(): void {
    const until = performance.now() + TURN_MS;
    for (const waiter of this.#due) {
      this.#due.delete(waiter);
      const result = waiter.attempt();
      if (result !== -E.AGAIN) this.#end(waiter, result);
      if (performance.now() >= until) break;
    }
    if (this.#due.size > 0) this.#trySoon();
  }

  #arm(delay_ms: number): void {
    this.#delay_ms = delay_ms;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      for (const those of this.#waiters.values()) for (const waiter of those) this.#due.add(waiter);
      if (this.#count === 0) return;
      this.#trySoon();
      this.#arm(Math.min(RETRY_MAX_MS, this.#delay_ms * 2));
    }, delay_ms);
    this.#timer.unref();
  }

  #disarm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}

const touches = (waiter: Waiter, start: bigint, end: bigint): boolean => waiter.start <= end && waiter.end >= start;
