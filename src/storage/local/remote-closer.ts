/**
 * Descriptors of files on remote mounts, closed in the pool: closing may ask the file system (what was written is flushed, a file without a name goes), and
 * with the last one a lazily unmounted file system goes. One after the other, so that one that does not answer keeps a single thread.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import type { StepPool } from './share.js';

/** Until it is tried again when the pool's queue is full. */
const RETRY_MS = 100;

export class RemoteCloser {
  readonly #waiting: number[] = [];
  #busy = false;

  /** `pool` null: inline. */
  constructor(readonly pool: StepPool | null) {}

  /** The descriptor is taken over; who waits for its end is not told. */
  close(fd: number): void {
    if (this.pool === null) {
      c.close(fd);
      return;
    }
    this.#waiting.push(fd);
    if (!this.#busy) this.#next(this.pool);
  }

  #next(pool: StepPool): void {
    const fd = this.#waiting.pop();
    this.#busy = fd !== undefined;
    if (fd === undefined) return;
    void pool.run('drop', fd).then((result) => {
      if (result !== -E.NOMEM) return this.#next(pool);
      // It has not begun
      this.#waiting.push(fd);
      setTimeout(() => this.#next(pool), RETRY_MS).unref();
    });
  }
}
