/**
 * What a daemon sees of a store until it dies: from then on none of its calls takes effect, and none is answered while it might still
 * do something. Before, answers take a few turns of the event loop, so that what is done in the background comes in between.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import type { ObjectStore } from '../../src/storage/object/store.js';

export class MortalStore {
  readonly store: ObjectStore;
  #callsLeft = Infinity;
  #lastTakesEffect = false;
  #dead = false;
  #ended = false;
  readonly #hanging: (() => void)[] = [];
  /** Ids of uploads that were begun, of which nobody has heard. */
  readonly orphans: string[] = [];

  /** `turns`: how many an answer takes, asked before each call and after it. */
  constructor(inner: ObjectStore, turns: () => number = () => 0) {
    this.store = intercept(inner, async (call, attempt) => {
      for (let left = turns(); left > 0; left--) await turn();
      if (this.#dead) return this.#hang(call.subject);
      if (--this.#callsLeft <= 0) {
        this.#dead = true;
        if (this.#lastTakesEffect) this.#lost(await attempt(undefined).catch(() => undefined));
        return this.#hang(call.subject);
      }
      let result: unknown;
      try {
        return (result = await attempt(call.signal));
      } finally {
        for (let left = turns(); left > 0; left--) await turn();
        if (this.#dead) {
          this.#lost(result);
          await this.#hang(call.subject);
        }
      }
    });
  }

  get dead(): boolean {
    return this.#dead;
  }

  /** The n-th call from now on is the last; it may take effect. */
  dieAt(n: number, takesEffect: boolean): void {
    this.#callsLeft = n;
    this.#lastTakesEffect = takesEffect;
  }

  /** No call takes effect any more. */
  die(): void {
    this.#dead = true;
  }

  /** The daemon has given up all its descriptors: whatever still waits for an answer may end. */
  end(): void {
    this.#dead = true;
    this.#ended = true;
    for (const release of this.#hanging.splice(0)) release();
  }

  #lost(result: unknown): void {
    if (typeof result === 'object' && result !== null && 'id' in result) this.orphans.push(String(result.id));
  }

  async #hang(subject: string): Promise<never> {
    if (!this.#ended) await new Promise<void>((resolve) => this.#hanging.push(resolve));
    throw new StorageError('aborted', subject);
  }
}
