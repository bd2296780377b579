/**
 * Requests that wait for a lock. They occupy neither the queue nor a pool thread: they are tried again when a lock is given up here, and on a timer
 * for locks that others on the host hold; so any number can wait, each can be interrupted, and none can keep the daemon from stopping.
 */
import { E } from '../../base/errno.js';
import type { FileSystemRequest } from '../filesystem.js';

const RETRY_MIN_MS = 1;
const RETRY_MAX_MS = 100;
const WAITERS_MAX = 4096;

export interface Waiter {
  readonly request: FileSystemRequest;
  /** Node slot, and the open file that it was asked through. */
  readonly slot: number;
  readonly handle: number;
  /** flock, or the bytes of a POSIX lock. */
  readonly isFlock: boolean;
  /** 0, −EAGAIN as long as somebody else has the lock, or another −errno. */
  readonly attempt: () => number;
  /** It waits no longer, however it ended. */
  readonly ended?: () => void;
}

export class LockWaiters {
  /** By node slot, in the order that they came. */
  readonly #waiters = new Map<number, Waiter[]>();
  #count = 0;
  #timer: NodeJS.Timeout | null = null;
  #delay_ms = RETRY_MIN_MS;

  /** @returns false when there are too many */
  add(waiter: Waiter): boolean {
    if (this.#count >= WAITERS_MAX) return false;
    const list = this.#waiters.get(waiter.slot);
    if (list === undefined) this.#waiters.set(waiter.slot, [waiter]);
    else list.push(waiter);
    this.#count++;
    this.#arm(RETRY_MIN_MS);
    return true;
  }

  /** Something was given up that those may wait for which `concerns` names. */
  retry(slot: number, concerns: (waiter: Waiter) => boolean): void {
    this.#each(slot, (waiter) => (concerns(waiter) ? waiter.attempt() : -E.AGAIN));
    if (this.#count === 0) this.#disarm();
  }

  /** The open file is closed: who waits through it gets nothing any more. */
  released(slot: number, handle: number): void {
    this.#each(slot, (waiter) => (waiter.handle === handle ? -E.BADF : -E.AGAIN));
  }

  /** End a waiting request with EINTR; false if none of the waiting ones has this unique. */
  interrupt(uniqueLow: number, uniqueHigh: number): boolean {
    const before = this.#count;
    const isMeant = ({ request }: Waiter): boolean => request.uniqueLow === uniqueLow && request.uniqueHigh === uniqueHigh;
    for (const [slot, list] of this.#waiters) if (list.some(isMeant)) this.#each(slot, (waiter) => (isMeant(waiter) ? -E.INTR : -E.AGAIN));
    return this.#count < before;
  }

  cancel(): void {
    for (const slot of [...this.#waiters.keys()]) this.#each(slot, () => -E.INTR);
    this.#disarm();
  }

  /** Ask each waiter of a node; whoever is told anything but EAGAIN waits no longer. */
  #each(slot: number, outcome: (waiter: Waiter) => number): void {
    const list = this.#waiters.get(slot);
    if (list === undefined) return;
    const ended: (readonly [Waiter, number])[] = [];
    const left = list.filter((waiter) => {
      const result = outcome(waiter);
      if (result !== -E.AGAIN) ended.push([waiter, result]);
      return result === -E.AGAIN;
    });
    if (left.length === 0) this.#waiters.delete(slot);
    else this.#waiters.set(slot, left);
    this.#count -= ended.length;
    for (const [waiter, result] of ended) {
      waiter.ended?.();
      waiter.request.complete(result);
    }
  }

  #arm(delay_ms: number): void {
    this.#delay_ms = delay_ms;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      for (const slot of [...this.#waiters.keys()]) this.#each(slot, (waiter) => waiter.attempt());
      if (this.#count > 0) this.#arm(Math.min(RETRY_MAX_MS, this.#delay_ms * 2));
    }, delay_ms);
    this.#timer.unref();
  }

  #disarm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}
