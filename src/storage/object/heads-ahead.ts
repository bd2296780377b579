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
    // At once: before others are waited for, prepare() may forget them
    const known = keys.map((key) => (key === null ? null : this.#taken(key)));
    const answers = (): Promise<(Head | undefined)[]> => this.#answers(keys, known);
    const missing = known.filter((one) => one === undefined).length;
    return missing === 0 || this.turns === null ? answers() : this.turns.run(missing, answers, signal);
  }

  async #answers(keys: readonly (string | null)[], known: readonly (Asked | null | undefined)[]): Promise<(Head | undefined)[]> {
    const taken = known.map((asked, i) => (asked === undefined ? this.#ask(keys[i]!) : asked));
    const heads = await Promise.all(taken.map((asked) => asked?.answer));
    return heads.map((head, i) => (taken[i] !== null && this.tree.isChangedSince(keys[i]!, taken[i].stamp) ? undefined : head));
  }

  /** Nobody wants the answer any more. */
  drop(key: string): undefined {
    this.#asked.delete(key);
    return undefined;
  }

  /** What was asked for ahead, if it is still believed. */
  #taken(key: string): Asked | undefined {
    const asked = this.#asked.get(key);
    this.#asked.delete(key);
    return asked !== undefined && this.tree.isBelieved(key, asked) ? asked : undefined;
  }

  /** Keys that will be asked for next, if there is room for them; what was asked for before and is not among them is forgotten. */
  prepare(keys: readonly string[]): void {
    const known = keys.map((key) => this.#taken(key));
    const missing = known.filter((one) => one === undefined).length;
    this.clear();
    if (missing > 0 && this.turns?.tryTake(missing) === false) return;
    const asked = keys.map((key, i) => known[i] ?? this.#ask(key));
    for (const [i, one] of asked.entries()) this.#asked.set(keys[i], one);
    if (missing > 0 && this.turns !== null) void Promise.all(asked.map(({ answer }) => answer)).finally(() => this.turns!.give(missing));
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
