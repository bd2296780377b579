/** How far the files of a former daemon have got, in the log, while they are committed behind the guest's back. */
import type { TreeLog } from '../tree.js';
import type { StagedFile } from './staged-file.js';

const INTERVAL_MS = 5_000;

export class RecoveryProgress {
  #left: readonly StagedFile[];
  #timer: NodeJS.Timeout | null = null;
  readonly #count: number;

  constructor(
    files: readonly StagedFile[],
    readonly log: TreeLog,
  ) {
    this.#left = files;
    this.#count = files.length;
    this.#wait();
  }

  end(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  #wait(): void {
    if (this.#left.length === 0) return;
    this.#timer = setTimeout(() => this.#tell(), INTERVAL_MS);
    this.#timer.unref();
  }

  #tell(): void {
    const before = this.#left.length;
    this.#left = this.#left.filter((file) => file.dirty);
    const left = this.#left.length;
    // Nothing is said again and again of a bucket that cannot be reached: failed commits have lines of their own
    if (left < before) {
      const done = this.#count - left;
      const text = left === 0 ? `all ${this.#count} files of the last run are in the bucket` : `${done} of ${this.#count} files of the last run are in the bucket`;
      this.log.guest('recovery', { done, left }, `recovery: ${text}`, 'info');
    }
    this.#wait();
  }
}
