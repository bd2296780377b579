/** One bound for all native memory that reads of a daemon hold: what was fetched ahead, and what is on its way. */
import { NativeMemory } from '../../ffi/memory.js';

interface Waiter {
  readonly bytes: number;
  readonly resolve: () => void;
}

export class MemoryBudget {
  #used = 0;
  readonly #waiting: Waiter[] = [];

  /** `bytes` is at least as much as the largest single read. */
  constructor(readonly bytes: number) {}

  get used(): number {
    return this.#used;
  }

  /** Memory if there is room for it now and nobody waits; else null. */
  tryTake(bytes: number): NativeMemory | null {
    if (this.#waiting.length > 0 || this.#used + rounded(bytes) > this.bytes) return null;
    return this.#allocate(bytes);
  }

  /** Memory when there is room, in the order of asking. */
  async take(bytes: number): Promise<NativeMemory> {
    if (this.#waiting.length > 0 || (this.#used > 0 && this.#used + rounded(bytes) > this.bytes)) {
      await new Promise<void>((resolve) => this.#waiting.push({ bytes, resolve }));
      this.#used -= rounded(bytes); // counted already when it was let in
    }
    return this.#allocate(bytes);
  }

  give(memory: NativeMemory): void {
    this.#used -= memory.length;
    memory.free();
    while (this.#waiting.length > 0) {
      const { bytes, resolve } = this.#waiting[0];
      if (this.#used > 0 && this.#used + rounded(bytes) > this.bytes) return;
      this.#waiting.shift();
      this.#used += rounded(bytes);
      resolve();
    }
  }

  #allocate(bytes: number): NativeMemory {
    const memory = NativeMemory.allocate(bytes);
    this.#used += memory.length;
    return memory;
  }
}

const rounded = (bytes: number): number => Math.ceil(bytes / 4096) * 4096;
