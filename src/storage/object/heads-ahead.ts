/** Metadata of a directory's entries, asked for before the guest gets to them: a reply has room for a few dozen, a round trip for hundreds. */
import { StorageError } from './errors.js';
import type { ObjectInfo } from './store.js';
import type { Tree } from './tree.js';

/** The object, null: there is none, undefined: that could not be found out. */
export type Head = ObjectInfo | null | undefined;

interface Asked {
  readonly answer: Promise<Head>;
  readonly stamp: number;
  readonly asked_ms: number;
}

export class HeadsAhead {
  readonly #asked = new Map<string, Asked>();

  constructor(readonly tree: Tree) {}

  /** The answer for a key, which is given once. */
  take(key: string): Promise<Head> {
    const asked = this.#asked.get(key);
    this.#asked.delete(key);
    return asked !== undefined && this.#isGood(key, asked) ? asked.answer : this.#ask(key).answer;
  }

  /** Keys that will be asked for next; what was asked for before and is not among them is forgotten. */
  prepare(keys: readonly string[]): void {
    const next = new Map<string, Asked>();
    for (const key of keys) {
      const asked = this.#asked.get(key);
      next.set(key, asked !== undefined && this.#isGood(key, asked) ? asked : this.#ask(key));
    }
    this.#asked.clear();
    for (const [key, asked] of next) this.#asked.set(key, asked);
  }

  #isGood(key: string, { stamp, asked_ms }: Asked): boolean {
    return performance.now() - asked_ms <= this.tree.options.metadataTtl_ms && !this.tree.isChangedSince(key, stamp);
  }

  #ask(key: string): Asked {
    const answer = this.tree.head(key).catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
      return undefined;
    });
    return { answer, stamp: this.tree.changes, asked_ms: performance.now() };
  }
}
