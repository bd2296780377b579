/**
 * Every moment at which a daemon may be killed while it does something: before and after each call of the store and each record of the journal. What there is
 * then, in the bucket and in the cache directory, is kept, and another daemon can start from it.
 */
import { copyFileSync, existsSync, mkdirSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { Journal } from '../../src/storage/object/journal.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import type { MemoryContents, MemoryStore } from '../../src/storage/object/stores/memory.js';

const MEMORY = '/dev/shm';

export interface Moment<S> {
  readonly label: string;
  readonly contents: MemoryContents;
  readonly cacheDirectory: string;
  /** What is known of the guest by then. */
  readonly state: S;
}

export class Moments<S> {
  readonly taken: Moment<S>[] = [];
  readonly cacheDirectory: string;
  readonly store: ObjectStore;
  readonly #directory = mkdtempSync(join(existsSync(MEMORY) ? MEMORY : tmpdir(), 'bucketfsd-moments-'));
  #recording = false;

  /** `store` is a way to `memory`. `between` is awaited at each moment of a call of the store. */
  constructor(
    readonly memory: MemoryStore,
    store: ObjectStore,
    readonly state: () => S,
    between: () => Promise<void>,
  ) {
    this.cacheDirectory = join(this.#directory, 'cache');
    this.store = intercept(store, async (call, attempt) => {
      const at = async (when: string): Promise<void> => {
        if (!this.#recording) return;
        await between();
        this.#take(`${when} ${call.subject}`);
      };
      await at('before');
      try {
        return await attempt(call.signal);
      } finally {
        await at('after');
      }
    });
  }

  /** Keep all moments of what is done meanwhile. */
  async during<T>(body: () => Promise<T>): Promise<T> {
    const { append } = Journal.prototype;
    const take = (label: string): void => this.#take(label);
    Journal.prototype.append = function (this: Journal<unknown>, ...args) {
      append.apply(this, args);
      // What was written comes at the next moment
      if ((args[0] as { t?: string }[]).some(({ t }) => t !== 'wrote')) take(`recorded ${JSON.stringify(args[0]).slice(0, 200)}`);
    };
    this.#recording = true;
    try {
      return await body();
    } finally {
      this.#recording = false;
      Object.assign(Journal.prototype, { append });
    }
  }

  #take(label: string): void {
    const cacheDirectory = join(this.#directory, `moment-${this.taken.length}`);
    copyDirectory(this.cacheDirectory, cacheDirectory);
    this.taken.push({ label, contents: this.memory.contents(), cacheDirectory, state: this.state() });
  }

  discard(): void {
    rmSync(this.#directory, { recursive: true, force: true });
  }
}

/** Staging files that nobody needs any more are removed by other threads, and may be gone when it is their turn. */
function copyDirectory(from: string, to: string): void {
  mkdirSync(to, { recursive: true });
  for (const entry of readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [join(from, entry.name), join(to, entry.name)];
    try {
      if (entry.isDirectory()) copyDirectory(source, target);
      else copyFileSync(source, target);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}
