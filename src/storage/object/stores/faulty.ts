/**
 * A store that fails as providers and networks do, by a recipe: for tests, and for trying what happens.
 *
 * A fault is said for the n-th call of an operation (1 = the next one), or drawn for each call from a seeded generator.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { StorageError, type StorageErrorCode, type StorageErrorDetail } from '../errors.js';
import { intercept, type Call } from '../layers/intercept.js';
import type { ObjectStore } from '../store.js';

export type Fault =
  /** Refused; nothing happened. */
  | { readonly kind: 'before'; readonly code: StorageErrorCode; readonly detail?: StorageErrorDetail }
  /** Done, but the answer never came: ambiguous. */
  | { readonly kind: 'lost-reply'; readonly code?: StorageErrorCode }
  /** Not done, and no answer came: ambiguous as well. */
  | { readonly kind: 'lost-request'; readonly code?: StorageErrorCode }
  /** Done when nobody waits any more: fails ambiguously at once, and takes effect after so many milliseconds. */
  | { readonly kind: 'late'; readonly ms: number }
  /** Done twice, as by a proxy that sends a request again: the second answer comes. */
  | { readonly kind: 'repeated' }
  | { readonly kind: 'delay'; readonly ms: number }
  /** A read that breaks off: some bytes have come. */
  | { readonly kind: 'torn' };

export interface Recipe {
  readonly operation: Call['operation'];
  /** The how-manieth of these calls from now on, from 1. */
  readonly nth: number;
  readonly fault: Fault;
}

export interface RandomFaults {
  readonly seed: number;
  /** Of each call, 0..1. */
  readonly probability: number;
  readonly faults: readonly Fault[];
}

export class FaultyStore {
  readonly store: ObjectStore;
  /** Calls that came, in order. */
  readonly calls: Call['operation'][] = [];
  #recipes: { operation: Call['operation']; left: number; fault: Fault }[] = [];
  #random: RandomFaults | null = null;
  #state = 1;
  readonly #late = new Set<Promise<unknown>>();

  constructor(inner: ObjectStore) {
    this.store = intercept(inner, async (call, attempt) => {
      this.calls.push(call.operation);
      const fault = this.#faultFor(call);
      return fault === null ? attempt(call.signal) : this.#fail(call, fault, attempt);
    });
  }

  /** Let this happen, besides what was asked for before. */
  inject(...recipes: readonly Recipe[]): void {
    for (const { operation, nth, fault } of recipes) this.#recipes.push({ operation, left: nth, fault });
  }

  random(faults: RandomFaults | null): void {
    this.#random = faults;
    this.#state = (faults?.seed ?? 1) >>> 0 || 1;
  }

  /** No faults any more. */
  heal(): void {
    this.#recipes = [];
    this.#random = null;
  }

  /** Wait until nothing late is to come. */
  async settle(): Promise<void> {
    await Promise.allSettled(this.#late);
  }

  #faultFor(call: Call): Fault | null {
    const mine = this.#recipes.filter((recipe) => recipe.operation === call.operation);
    for (const recipe of mine) recipe.left--;
    const due = mine.find((recipe) => recipe.left <= 0);
    if (due !== undefined) {
      this.#recipes.splice(this.#recipes.indexOf(due), 1);
      return due.fault;
    }
    const random = this.#random;
    if (random === null || this.#draw() >= random.probability) return null;
    return random.faults[Math.floor(this.#draw() * random.faults.length)];
  }

  /** mulberry32: 0 ≤ x < 1, the same for the same seed. */
  #draw(): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let t = this.#state;
    t = Math.imul(t ^ (t >>> 15), t | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  }

  async #fail<T>(call: Call, fault: Fault, attempt: (signal: AbortSignal | undefined) => Promise<T>): Promise<T> {
    switch (fault.kind) {
      case 'before':
        throw new StorageError(fault.code, call.subject, fault.detail);
      case 'lost-reply':
        await attempt(call.signal);
        throw new StorageError(fault.code ?? 'timeout', call.subject, { ambiguous: true });
      case 'lost-request':
        throw new StorageError(fault.code ?? 'timeout', call.subject, { ambiguous: true });
      case 'late': {
        const late = sleep(fault.ms).then(() => attempt(undefined));
        this.#late.add(late);
        late.then(() => this.#late.delete(late), () => this.#late.delete(late));
        throw new StorageError('timeout', call.subject, { ambiguous: true });
      }
      case 'repeated':
        await attempt(call.signal);
        return attempt(call.signal);
      case 'delay':
        await sleep(fault.ms, undefined, call.signal === undefined ? {} : { signal: call.signal }).catch(() => {
          throw new StorageError('aborted', call.subject);
        });
        return attempt(call.signal);
      case 'torn':
        await attempt(call.signal);
        throw new StorageError('interrupted', call.subject);
    }
  }
}
