/**
 * How many calls are under way at once: as many as the provider bears. A slow start, additive increase, multiplicative decrease, as in
 * TCP: each success allows a little more, and a provider that says "slow down" (429, 503) gets a third less, once for all
 * the calls that were under way when it said so.
 */
import { StorageError } from '../errors.js';
import type { ObjectStore } from '../store.js';
import { intercept, type Call } from './intercept.js';

export interface LimitOptions {
  readonly start: number;
  readonly max: number;
}

export const LIMIT: LimitOptions = { start: 32, max: 256 };
/** Of calls that move much, on the line or within the provider. */
export const BULK_LIMIT: LimitOptions = { start: 16, max: 64 };
const DECREASE = 2 / 3;

export class AdaptiveLimit {
  #limit: number;
  #running = 0;
  #begun = 0;
  /** Calls begun before this one knew nothing of the last decrease. */
  #decreasedAt = 0;
  readonly #waiting: (() => void)[] = [];

  constructor(readonly options: LimitOptions = LIMIT) {
    this.#limit = options.start;
  }

  /** Calls that may be under way now. */
  get limit(): number {
    return Math.floor(this.#limit);
  }

  get running(): number {
    return this.#running;
  }

  async run<T>(body: () => Promise<T>, signal?: AbortSignal, subject = ''): Promise<T> {
    if (this.#running < this.limit && this.#waiting.length === 0) this.#running++;
    else await this.#turn(signal, subject);
    const number = ++this.#begun;
    try {
      const result = await body();
      this.#increase();
      return result;
    } catch (error) {
      if (error instanceof StorageError && (error.code === 'throttled' || error.code === 'unavailable')) this.#decrease(number);
      throw error;
    } finally {
      this.#running--;
      this.#next();
    }
  }

  /** As long as the provider has borne all that came, each of those for which others wait allows one more: twice as many in the time of a call. */
  #increase(): void {
    const step = this.#decreasedAt === 0 && this.#waiting.length > 0 ? 1 : 1 / this.#limit;
    this.#limit = Math.min(this.options.max, this.#limit + step);
  }

  #decrease(number: number): void {
    if (number <= this.#decreasedAt) return;
    this.#decreasedAt = this.#begun;
    this.#limit = Math.max(1, this.#limit * DECREASE);
  }

  /** Wait in line; whoever is let in is counted as running already. */
  #turn(signal: AbortSignal | undefined, subject: string): Promise<void> {
    return new Promise((resolve, reject) => {
      if (signal?.aborted === true) return reject(new StorageError('aborted', subject));
      const leave = (): void => {
        this.#waiting.splice(this.#waiting.indexOf(turn), 1);
        reject(new StorageError('aborted', subject));
      };
      const turn = (): void => {
        signal?.removeEventListener('abort', leave);
        resolve();
      };
      signal?.addEventListener('abort', leave, { once: true });
      this.#waiting.push(turn);
    });
  }

  #next(): void {
    while (this.#running < this.limit && this.#waiting.length > 0) {
      this.#running++;
      this.#waiting.shift()!();
    }
  }
}

const BULK: ReadonlySet<Call['operation']> = new Set<Call['operation']>(['putPart', 'copyPart', 'copy', 'completeUpload']);

/** Large uploads and copies have a limit of their own: however many of them there are, and however slow, others are not kept from being asked. */
export function withLimit(store: ObjectStore, limit: AdaptiveLimit, bulk: AdaptiveLimit): ObjectStore {
  return intercept(store, (call, attempt) => (BULK.has(call.operation) ? bulk : limit).run(() => attempt(call.signal), call.signal, call.subject));
}
