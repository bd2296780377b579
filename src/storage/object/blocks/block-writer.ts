/** Writes what was fetched into slots: a few at a time, left out when the disk does not keep up. */
import { setImmediate as pause } from 'node:timers/promises';
import type { MemoryBudget } from '../memory-budget.js';
import { STATE, type ObjectId } from './block-table.js';
import type { Room, Slots } from './slots.js';

/** Of the memory budget, what may wait to be written. */
const PENDING_SHARE = 1 / 4;
const PENDING_MAX_BYTES = 64 << 20;
/** Under way at a time: main thread and disk wait for each other less, and of libuv's threads one is left for others. */
const LANES = 3;

export interface WriteStatistics {
  /** Blocks, and parts of blocks. */
  stored: number;
  parts: number;
  /** Blocks that went past the page cache. */
  direct: number;
  /** What was not kept because too much was waiting to be written. */
  skipped: number;
}

export class BlockWriter {
  /** Blocks of which all is on its way, by name. */
  readonly #whole = new Map<string, Uint8Array>();
  readonly #pendingMax: number;
  #pending = 0;
  /** The last write that was asked for, by lane: all for one block are in the same one. */
  readonly #last: Promise<void>[] = Array.from({ length: LANES }, () => Promise.resolve());
  #ended = false;

  constructor(
    readonly slots: Slots,
    readonly budget: MemoryBudget,
    readonly statistics: WriteStatistics,
    /** An error of the disk. */
    readonly failed: (error: unknown) => void,
  ) {
    this.#pendingMax = Math.max(slots.file.slotBytes, Math.min(PENDING_MAX_BYTES, budget.bytes * PENDING_SHARE));
  }

  /** So much is waiting that nothing should be fetched to be written only. */
  get isBusy(): boolean {
    return this.#pending * 2 > this.#pendingMax;
  }

  /** A whole block that waits to be written: to be read at once, not later. */
  waiting(id: ObjectId, block: number): Uint8Array | undefined {
    return this.#whole.size === 0 ? undefined : this.#whole.get(nameOf(id, block));
  }

  /** What has not begun is not written any more. */
  end(): void {
    this.#ended = true;
  }

  /**
   * A whole block; `spare`: only if there is free room for it, but however much is waiting, which is bounded by who asks.
   * @returns a promise that its bytes are not needed any more, which never rejects; null: they are not wanted
   */
  keep(id: ObjectId, block: number, content: Uint8Array, spare: boolean): Promise<void> | null {
    return this.#write(id, block, spare ? 0 : content.length, content, () => this.#store(id, block, content, spare));
  }

  /** Whole granules, `at` behind the beginning of a block of `bytes` bytes. @returns as keep() */
  keepPart(id: ObjectId, block: number, bytes: number, at: number, content: Uint8Array): Promise<void> | null {
    return this.#write(id, block, content.length, null, () => this.#storePart(id, block, bytes, at, content));
  }

  #write(id: ObjectId, block: number, pending: number, whole: Uint8Array | null, store: () => Promise<void>): Promise<void> | null {
    const name = nameOf(id, block);
    if (this.#ended || this.#whole.has(name)) return null;
    if (pending > 0 && this.#pending + pending > this.#pendingMax) {
      this.statistics.skipped++;
      return null;
    }
    this.#pending += pending;
    if (whole !== null) this.#whole.set(name, whole);
    const lane = (id[0] + block) % LANES;
    return (this.#last[lane] = this.#after(this.#last[lane], store).catch(this.failed).finally(() => {
      this.#pending -= pending;
      if (whole !== null) this.#whole.delete(name);
    }));
  }

  /** One at a time of those for one block, which would take two slots otherwise. */
  async #after(last: Promise<void>, store: () => Promise<void>): Promise<void> {
    await last.catch(() => undefined); // a defect, which whoever waits for that one is told
    await pause(); // the guest has its answer first
    if (!this.#ended) await store();
  }

  async #store(id: ObjectId, block: number, content: Uint8Array, spare: boolean): Promise<void> {
    const { slots } = this;
    const slot = slots.table.find(id, block);
    if (slot >= 0) await slots.pinned(slot, () => slots.complete(slot, content, !spare));
    else if (!(await this.#filled(content.length, !spare, (room) => this.#fill(room, id, block, content)))) return;
    this.statistics.stored++;
  }

  async #fill(room: Room, id: ObjectId, block: number, content: Uint8Array): Promise<void> {
    if (await this.slots.fill(room, id, block, content)) this.statistics.direct++;
  }

  async #storePart(id: ObjectId, block: number, bytes: number, at: number, content: Uint8Array): Promise<void> {
    const { slots } = this;
    const slot = slots.table.find(id, block);
    if (slot >= 0 && slots.table.state[slot] !== STATE.part) return;
    if (slot >= 0) await slots.pinned(slot, () => this.#addPart(slot, bytes, at, content));
    else if (!(await this.#filled(content.length, true, (room) => slots.fillPart(room, id, block, bytes, at, content)))) return;
    this.statistics.parts++;
  }

  /** The last one makes it a block like any other. */
  async #addPart(slot: number, bytes: number, at: number, content: Uint8Array): Promise<void> {
    const { slots } = this;
    await slots.addPart(slot, at, content);
    if (slots.table.bytes[slot] === 0 || !slots.granules.has(slot, 0, bytes)) return;
    // Writing must not wait for memory: what is to be written holds some
    const memory = this.budget.tryTake(bytes);
    if (memory === null) return;
    try {
      if (!(await slots.file.fill(slot, 0, bytes, memory))) return;
      const whole = memory.u8.subarray(0, bytes);
      await slots.complete(slot, whole);
      this.statistics.stored++;
    } finally {
      this.budget.give(memory);
    }
  }

  /** @returns false: there is no room */
  async #filled(bytes: number, evict: boolean, fill: (room: Room) => Promise<void>): Promise<boolean> {
    const room = await this.slots.take(bytes, evict);
    if (room === null || this.#ended) return false;
    try {
      await fill(room);
      return true;
    } catch (error) {
      this.failed(error);
      await this.slots.forsake(room, bytes);
      return false;
    }
  }
}

const nameOf = (id: ObjectId, block: number): string => `${id.join()}:${block}`;
