/** A bound on what is done at the same time, in the order of asking. */
import { StorageError } from './errors.js';

interface Waiting {
  readonly count: number;
  readonly resolve: () => void;
}

export class Turns {
  #taken = 0;
  readonly #waiting = new Set<Waiting>();

  constructor(readonly max: number) {}

  /** With so many of them; more than there are count as all. @throws StorageError `aborted`, before `body` has begun, and what that throws */
  async run<T>(count: number, body: () => Promise<T>, signal?: AbortSignal): Promise<T> {
    if (signal?.aborted === true) throw new StorageError('aborted', 'wait');
    if (this.#waiting.size === 0 && this.#fits(count)) this.#taken += count;
    else await this.#turn(count, signal);
    try {
      return await body();
    } finally {
      this.give(count);
    }
  }

  /** Of the half of them, for what nobody waits for; give() ends it. */
  tryTake(count: number): boolean {
    if (this.#waiting.size > 0 || this.#taken + count > this.max / 2) return false;
    this.#taken += count;
    return true;
  }

  give(count: number): void {
    this.#taken -= count;
    for (const one of this.#waiting) {
      if (!this.#fits(one.count)) return;
      this.#waiting.delete(one);
      this.#taken += one.count;
      one.resolve();
    }
  }

  #fits(count: number): boolean {
    return this.#taken === 0 || this.#taken + count <= this.max;
  }

  #turn(count: number, signal?: AbortSignal): Promise<void> {
    return new Promise((resolve, reject) => {
      const waiting = { count, resolve };
      this.#waiting.add(waiting);
      signal?.addEventListener('abort', () => {
        if (this.#waiting.delete(waiting)) reject(new StorageError('aborted', 'wait'));
      });
    });
  }
}
