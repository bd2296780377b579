/** A pool that is loaded with its first call: a start, and a share that never waits for its disk, do without it. */
import { E } from '../base/errno.js';
import type { PoolCall } from './calls.js';
import type { SyscallPool, SyscallPoolOptions } from './pool.js';

export class PoolOnDemand {
  readonly #options: SyscallPoolOptions;
  #pool: SyscallPool | null = null;
  #loading: Promise<SyscallPool> | null = null;
  #closed = false;

  constructor(options: SyscallPoolOptions) {
    this.#options = options;
  }

  /** As SyscallPool.run(), of which the safety rule holds for the whole time. −EIO also if the pool could not be loaded; the next call tries again. */
  run(call: PoolCall, ...args: number[]): Promise<number> {
    return this.#pool === null ? this.#runLater(call, args) : this.#pool.run(call, ...args);
  }

  /** As SyscallPool.close(). */
  async close(timeout_ms?: number): Promise<void> {
    this.#closed = true;
    await this.#loading?.then((pool) => pool.close(timeout_ms), () => undefined);
  }

  async #runLater(call: PoolCall, args: readonly number[]): Promise<number> {
    if (this.#closed) return -E.IO;
    this.#loading ??= this.#load();
    try {
      return await (await this.#loading).run(call, ...args);
    } catch (error) {
      if (this.#loading !== null) this.#options.onWorkerLost?.({ call: null, reason: (error as Error).message });
      this.#loading = null;
      return -E.IO;
    }
  }

  async #load(): Promise<SyscallPool> {
    const { SyscallPool } = await import('./pool.js');
    this.#pool = new SyscallPool(this.#options);
    return this.#pool;
  }
}
