/** Who has which slot: table, index and file kept in step, and within the space that they may take. */
import { STATE, type BlockTable, type ObjectId } from './block-table.js';
import { checksumOf } from './checksum.js';
import { GRANULE_BYTES, Granules } from './granules.js';
import type { IndexFile } from './index-file.js';
import type { SlotFile } from './slot-file.js';

/** A slot that was taken for a block. */
export interface Room {
  readonly slot: number;
  /** Bytes of the block that was in it; 0: it was free. */
  readonly had: number;
}

export class Slots {
  /** Of slots in STATE.part: what is there. */
  readonly granules: Granules;
  /** By slot: who waits for a read of it, or writes to it. It is not given to another block meanwhile. */
  readonly #pins: Uint16Array;
  /** Slots that were given up while somebody read them: free when the last one is done. */
  readonly #condemned = new Set<number>();
  #used = 0;
  #evicted = 0;

  constructor(
    readonly table: BlockTable,
    readonly index: IndexFile,
    readonly file: SlotFile,
    public bytesMax: number,
  ) {
    this.#pins = new Uint16Array(table.slots);
    this.granules = new Granules(table.slots, file.slotBytes);
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

  /** @returns a slot for so many bytes, to be filled or given back; null if there is none now, or none without giving up a block. @throws an error of the file system */
  async take(bytes: number, evict = true): Promise<Room | null> {
    const cost = this.file.cost(bytes);
    const vacated: Room[] = [];
    const room = this.#makeRoom(cost, vacated, evict);
    let chosen = room ? vacated.pop() : undefined;
    if (room && chosen === undefined) {
      const slot = this.table.take();
      if (slot >= 0) chosen = { slot, had: 0 };
      else if (evict && this.#evictOldest(vacated)) chosen = vacated.pop();
    }
    if (chosen !== undefined) this.#used += cost;
    for (const one of vacated) await this.#vacate(one.slot);
    // A daemon that is killed before the new block is there leaves a free slot, not one that says what is not true any more
    if (chosen !== undefined && chosen.had > 0) await this.index.write(chosen.slot);
    return chosen ?? null;
  }

  /** The block is in the slot. @returns whether it was written past the page cache. @throws an error of the file system */
  async fill({ slot, had }: Room, id: ObjectId, block: number, content: Uint8Array): Promise<boolean> {
    const writing = this.file.writeDirect(slot, content);
    const checksum = checksumOf(content); // meanwhile
    const past = await writing;
    await this.file.punch(slot, content.length, had);
    this.table.add(slot, id, block, content.length, checksum);
    this.table.state[slot] = STATE.good;
    await this.index.write(slot);
    return past;
  }

  /** A part of a block of `bytes` bytes is in the slot, from `at` on, in whole granules. @throws an error of the file system */
  async fillPart({ slot, had }: Room, id: ObjectId, block: number, bytes: number, at: number, content: Uint8Array): Promise<void> {
    // Where nothing was written there is nothing of the block that was here either
    await this.file.punch(slot, 0, had);
    await this.file.write(slot, content, at);
    this.granules.clear(slot);
    this.granules.set(slot, at, content.length);
    this.table.add(slot, id, block, bytes, 0);
    this.table.state[slot] = STATE.part;
  }

  /** Another part of the block that is in a pinned slot in part. @throws an error of the file system */
  async addPart(slot: number, at: number, content: Uint8Array): Promise<void> {
    const added = Math.ceil(content.length / GRANULE_BYTES) - this.granules.count(slot, at, content.length);
    const write = (): Promise<void> => this.file.write(slot, content, at);
    if (await this.#grown(slot, this.file.punches ? added * GRANULE_BYTES : 0, write)) this.granules.set(slot, at, content.length);
  }

  /** All of the block that is in a pinned slot in part: of what was there every byte stays as it is. @throws an error of the file system */
  async complete(slot: number, content: Uint8Array, evict = true): Promise<void> {
    const checksum = checksumOf(content);
    const added = this.file.cost(content.length) - this.#costOf(slot);
    if (!(await this.#grown(slot, added, () => this.file.write(slot, content), evict))) return;
    this.table.checksum[slot] = checksum;
    this.table.state[slot] = STATE.good;
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

  /**
   * The disk is wanted for something else: so much space is given back at once, as far as nobody waits for what is in it, and never taken again.
   * @returns how many bytes; and when the slots are known to be free on the disk, too
   */
  shrink(bytes: number): { freed: number; known: Promise<unknown> } {
    const vacated: Room[] = [];
    const before = this.#used;
    while (this.file.punches && before - this.#used < bytes && this.#evictOldest(vacated));
    this.bytesMax = this.#used;
    const known = vacated.map(async ({ slot }) => {
      this.file.punchNow(slot);
      await this.index.write(slot);
      this.table.release(slot);
    });
    return { freed: before - this.#used, known: Promise.all(known) };
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
    this.#used -= this.#costOf(slot);
    this.table.remove(slot);
    this.#condemned.add(slot);
    return true;
  }

  /** More is written to a pinned slot, which then takes so much more space. @returns whether the block is still in it and there was room */
  async #grown(slot: number, added: number, write: () => Promise<void>, evict = true): Promise<boolean> {
    const vacated: Room[] = [];
    const room = this.#makeRoom(added, vacated, evict);
    if (room) this.#used += added;
    for (const one of vacated) await this.#vacate(one.slot);
    if (!room) return false;
    let done = false;
    try {
      await write();
      done = this.table.bytes[slot] > 0;
    } finally {
      if (!done) this.#used -= added;
    }
    return done;
  }

  /** Nothing that is used more recently than need be is given up for so much space. @returns false: there is not so much */
  #makeRoom(cost: number, into: Room[], evict: boolean): boolean {
    if (cost > this.bytesMax || (!evict && this.#used + cost > this.bytesMax)) return false;
    while (this.#used + cost > this.bytesMax) if (!this.#evictOldest(into)) return false;
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
    this.#used -= this.#costOf(slot);
    this.table.remove(slot);
    this.#evicted++;
    return { slot, had };
  }

  /** Disk space of the block in a slot. */
  #costOf(slot: number): number {
    const bytes = this.table.bytes[slot];
    return this.file.cost(this.table.state[slot] === STATE.part ? this.granules.count(slot, 0, bytes) * GRANULE_BYTES : bytes);
  }

  /** A slot whose block was removed from the table is free, and says so on the disk. @throws an error of the file system */
  async #vacate(slot: number): Promise<void> {
    await this.index.write(slot);
    await this.file.punch(slot, 0, this.file.slotBytes);
    this.table.release(slot);
  }
}
