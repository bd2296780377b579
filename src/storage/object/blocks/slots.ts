/** Who has which slot: table, index and file kept in step, and within the space that they may take. */
import type { BlockTable, ObjectId } from './block-table.js';
import type { IndexFile } from './index-file.js';
import type { SlotFile } from './slot-file.js';

/** A slot that was taken for a block. */
export interface Room {
  readonly slot: number;
  /** Bytes of the block that was in it; 0: it was free. */
  readonly had: number;
}

export class Slots {
  /** By slot: who waits for a read of it. It is not given to another block meanwhile. */
  readonly #pins: Uint16Array;
  /** Slots that were given up while somebody read them: free when the last one is done. */
  readonly #condemned = new Set<number>();
  #used = 0;
  #evicted = 0;

  constructor(
    readonly table: BlockTable,
    readonly index: IndexFile,
    readonly file: SlotFile,
    readonly bytesMax: number,
  ) {
    this.#pins = new Uint16Array(table.slots);
  }

  /** Bytes on disk, of blocks that are there and of those that are being written. */
  get used(): number {
    return this.#used;
  }

  get evicted(): number {
    return this.#evicted;
  }

  /** At the start: slots that have no block get no space, and no more blocks are there than may be. @throws an error of the file system */
  async begin(): Promise<void> {
    const { table, file, index } = this;
    for (let slot = 0; slot < table.high; slot++) this.#used += table.bytes[slot] === 0 ? 0 : file.cost(table.bytes[slot]);
    while (this.#used > this.bytesMax) table.release(this.#evict(table.oldest).slot);
    for (let slot = 0, first = 0; slot <= table.high; slot++) {
      if (slot < table.high && table.bytes[slot] === 0) {
        index.touched(slot);
        continue;
      }
      if (first < slot) file.clear(first, slot);
      first = slot + 1;
    }
    await index.flush();
  }

  /** @returns a slot for so many bytes, to be filled or given back; null if there is none now. @throws an error of the file system */
  async take(bytes: number): Promise<Room | null> {
    const cost = this.file.cost(bytes);
    if (cost > this.bytesMax) return null;
    const vacated: Room[] = [];
    let room = true;
    while (room && this.#used + cost > this.bytesMax) room = this.#evictOldest(vacated);
    let chosen = room ? vacated.pop() : undefined;
    if (room && chosen === undefined) {
      const slot = this.table.take();
      if (slot >= 0) chosen = { slot, had: 0 };
      else if (this.#evictOldest(vacated)) chosen = vacated.pop();
    }
    if (chosen !== undefined) this.#used += cost;
    for (const one of vacated) await this.#vacate(one.slot);
    // A daemon that is killed before the new block is there leaves a free slot, not one that says what is not true any more
    if (chosen !== undefined && chosen.had > 0) await this.index.write(chosen.slot);
    return chosen ?? null;
  }

  /** The block is in the slot. @throws an error of the file system */
  async fill({ slot, had }: Room, id: ObjectId, block: number, content: Uint8Array, checksum: number): Promise<void> {
    await this.file.write(slot, content);
    await this.file.punch(slot, content.length, had);
    this.table.add(slot, id, block, content.length, checksum);
    this.table.verified[slot] = 1;
    await this.index.write(slot);
  }

  /** It could not be filled: nobody gets it any more, but its space. */
  async forsake({ slot }: Room, bytes: number): Promise<void> {
    if (this.table.bytes[slot] > 0) return; // it was: only the index could not be written
    this.#used -= this.file.cost(bytes);
    await this.file.punch(slot, 0, this.file.slotBytes);
  }

  touch(slot: number): void {
    this.table.touch(slot);
    this.index.touched(slot);
  }

  /** The slot keeps what is in it until this is over. */
  async pinned<T>(slot: number, body: () => Promise<T>): Promise<T> {
    this.#pins[slot]++;
    try {
      return await body();
    } finally {
      if (--this.#pins[slot] === 0 && this.#condemned.delete(slot)) await this.#vacate(slot);
    }
  }

  /** What is in it is not what it should be: for somebody who has it pinned. @returns false: another one was faster */
  drop(slot: number): boolean {
    if (this.table.bytes[slot] === 0) return false;
    this.#used -= this.file.cost(this.table.bytes[slot]);
    this.table.remove(slot);
    this.#condemned.add(slot);
    return true;
  }

  /** The block that nobody has used for the longest time, and nobody waits for now. @returns false: there is none */
  #evictOldest(into: Room[]): boolean {
    let slot = this.table.oldest;
    while (slot >= 0 && this.#pins[slot] > 0) slot = this.table.after(slot);
    if (slot < 0) return false;
    into.push(this.#evict(slot));
    return true;
  }

  #evict(slot: number): Room {
    const had = this.table.bytes[slot];
    this.#used -= this.file.cost(had);
    this.table.remove(slot);
    this.#evicted++;
    return { slot, had };
  }

  /** A slot whose block was removed from the table is free, and says so on the disk. @throws an error of the file system */
  async #vacate(slot: number): Promise<void> {
    await this.index.write(slot);
    await this.file.punch(slot, 0, this.file.slotBytes);
    this.table.release(slot);
  }
}
