/** Metadata of a directory's entries, asked for before the guest gets to them: a reply has room for a few dozen, a round trip for hundreds. */
import { StorageError } from './errors.js';
import type { ObjectInfo } from './store.js';
import type { Tree } from './tree.js';

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

  constructor(readonly tree: Tree) {}

  /** The answers for keys, each given once; undefined for those that could not be had, and at which we have changed something while others were waited for. */
  async take(keys: readonly (string | null)[]): Promise<(Head | undefined)[]> {
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

  /** Keys that will be asked for next; what was asked for before and is not among them is forgotten. */
  prepare(keys: readonly string[]): void {
    const next = new Map<string, Asked>();
    for (const key of keys) {
      const asked = this.#asked.get(key);
      next.set(key, asked !== undefined && this.tree.isBelieved(key, asked) ? asked : this.#ask(key));
    }
    this.#asked.clear();
    for (const [key, asked] of next) this.#asked.set(key, asked);
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
