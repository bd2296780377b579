/** Metadata of a directory's entries, asked for before the guest gets to them: a reply has room for a few dozen, a round trip for hundreds. */
import { StorageError } from './errors.js';
import type { ObjectInfo } from './store.js';
import type { Tree } from './tree.js';
import type { Turns } from './turns.js';

export interface Head {
  /** null: there is none. */
  readonly object: ObjectInfo | null;
  /** It is believed for as long as if it had been told then. */
  readonly asked_ms: number;
}

/** When the store was asked: `stamp`, how many changes of ours there were. */
export interface Moment {
  readonly stamp: number;
  readonly asked_ms: number;
}

/** An object that was asked for beside something else. */
export interface AskedBeside extends Moment {
  readonly answer: Promise<{ readonly info: ObjectInfo | null; readonly at_ms: number }>;
}

interface Asked extends Moment {
  /** undefined: it could not be found out. */
  readonly answer: Promise<Head | undefined>;
}

export class HeadsAhead {
  readonly #asked = new Map<string, Asked>();

  /** `turns`: of those that are asked for at the same time; null where they are only few. */
  constructor(
    readonly tree: Tree,
    readonly turns: Turns | null = null,
  ) {}

  /** The answers for keys, each given once; undefined for those that could not be had, and at which we have changed something while others were waited for. */
  async take(keys: readonly (string | null)[], signal?: AbortSignal): Promise<(Head | undefined)[]> {
    const count = this.turns === null ? 0 : this.#unasked(keys);
    if (count > 0) await this.turns!.take(count, signal);
    try {
      return await this.#answers(keys);
    } finally {
      this.turns?.give(count);
    }
  }

  #unasked(keys: readonly (string | null)[]): number {
    return keys.reduce((sum, key) => sum + (key === null || this.#asked.has(key) ? 0 : 1), 0);
  }

  async #answers(keys: readonly (string | null)[]): Promise<(Head | undefined)[]> {
    const taken = keys.map((key) => (key === null ? null : this.#take(key)));
    const heads = await Promise.all(taken.map((asked) => asked?.answer));
    return heads.map((head, i) => (taken[i] !== null && this.tree.isChangedSince(keys[i]!, taken[i].stamp) ? undefined : head));
  }

  /** Nobody wants the answer any more. */
  drop(key: string): undefined {
    this.#asked.delete(key);
    return undefined;
  }

  #take(key: string): Asked {
    const asked = this.#asked.get(key);
    this.#asked.delete(key);
    return asked !== undefined && this.tree.isBelieved(key, asked) ? asked : this.#ask(key);
  }

  /** Keys that will be asked for next, if there is room for them; what was asked for before and is not among them is forgotten. */
  prepare(keys: readonly string[]): void {
    const count = this.turns === null ? 0 : this.#unasked(keys);
    if (count > 0 && !this.turns!.tryTake(count)) return this.clear();
    const next = new Map<string, Asked>();
    for (const key of keys) {
      const asked = this.#asked.get(key);
      next.set(key, asked !== undefined && this.tree.isBelieved(key, asked) ? asked : this.#ask(key));
    }
    this.#asked.clear();
    for (const [key, asked] of next) this.#asked.set(key, asked);
    if (count > 0) void Promise.all([...next.values()].map(({ answer }) => answer)).finally(() => this.turns!.give(count));
  }

  /** What was asked for ahead is forgotten. */
  clear(): void {
    this.#asked.clear();
  }

  #ask(key: string): Asked {
    const stamp = this.tree.changes;
    const asked_ms = performance.now();
    const answer = this.tree.head(key).then((object) => ({ object, asked_ms }), (error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
      return undefined;
    });
    return { answer, stamp, asked_ms };
  }
}
