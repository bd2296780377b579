/** Descriptors, native memory and disk time of simulated processes; frees them when a process ends. */
import { closeSync } from 'node:fs';
import { NativeMemory } from '../../src/ffi/memory.js';
import { activate, type SimulatedWorld } from './builtins.js';
import type { Chance } from './chance.js';
import type { Scheduler, SimulatedProcess } from './scheduler.js';

const allocate = NativeMemory.allocate.bind(NativeMemory);
const { free } = NativeMemory.prototype;

export class Machine implements SimulatedWorld {
  readonly #memory = new Map<SimulatedProcess, Set<NativeMemory>>();
  readonly #descriptors = new Map<number, SimulatedProcess>();
  /** Counts how often each descriptor number was given out. */
  readonly #uses = new Map<number, number>();

  constructor(
    readonly scheduler: Scheduler,
    readonly chance: Chance,
  ) {}

  /** Run our code in this machine from now on. */
  install(): void {
    activate(this);
    NativeMemory.allocate = (bytes) => this.#allocated(allocate(bytes));
    const machine = this;
    NativeMemory.prototype.free = function (this: NativeMemory): void {
      for (const memory of machine.#memory.values()) memory.delete(this);
      free.call(this);
    };
  }

  uninstall(): void {
    activate(null);
    NativeMemory.allocate = allocate;
    NativeMemory.prototype.free = free;
  }

  now_ms(): number {
    return this.scheduler.now_ms;
  }

  random(): number {
    return this.chance.unit();
  }

  after(delay_ms: number, label: string, run: () => void): () => void {
    const { scheduler } = this;
    const planned = scheduler.after(scheduler.current, delay_ms, label, run);
    return () => scheduler.cancel(planned);
  }

  file(label: string, run: () => void): void {
    const { scheduler, chance } = this;
    scheduler.after(scheduler.current, chance.chance(95) ? chance.skewed(0.01, 5) : chance.skewed(5, 3_000), label, run);
  }

  opened(fd: number): void {
    const { current } = this.scheduler;
    if (current === null) return;
    this.#descriptors.set(fd, current);
    this.#uses.set(fd, (this.#uses.get(fd) ?? 0) + 1);
  }

  /** @returns an id of the open file behind a descriptor; 0: closed */
  fileOf(fd: number): number {
    return this.#descriptors.has(fd) ? this.#uses.get(fd)! : 0;
  }

  closed(fd: number): void {
    this.#descriptors.delete(fd);
  }

  /** End a process: close its descriptors and free its memory. */
  end(process: SimulatedProcess): void {
    process.alive = false;
    for (const [fd, owner] of [...this.#descriptors]) {
      if (owner !== process) continue;
      this.#descriptors.delete(fd);
      closeSync(fd);
    }
    for (const memory of this.#memory.get(process) ?? []) free.call(memory);
    this.#memory.delete(process);
  }

  #allocated(memory: NativeMemory): NativeMemory {
    const { current } = this.scheduler;
    if (current === null) return memory;
    const all = this.#memory.get(current) ?? new Set<NativeMemory>();
    this.#memory.set(current, all.add(memory));
    return memory;
  }
}

/** Allocates memory that belongs to no process. */
export const ownMemory = allocate;
