/**
 * What the block table says, on disk: a header, then a record for each slot in the order of the slots (all numbers little-endian).
 *
 *   header, 4096 bytes:  "bucketfsd blocks 2\n" | … at 32: u32 bytes of a block | 16 bytes salt | u32 CRC-32 of the 52 bytes before
 *   record, 64 bytes:    u32 CRC-32 of the 60 bytes behind it | u32 checksum of the block | u32 bytes | u32 block number |
 *                        16 bytes id | f64 when it was used | 24 bytes of zeros;  a free slot: all zeros
 *
 * What is damaged is as if it were not there: the store has everything that was cached.
 */
import { fstat, ftruncate, read } from 'node:fs';
import { randomFillSync } from 'node:crypto';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import { writeAll } from '../page-cache.js';
import { ID_WORDS, STATE, type BlockTable } from './block-table.js';

const readFd = promisify(read);
const truncateFd = promisify(ftruncate);
const statFd = promisify(fstat);

const MAGIC = Buffer.from('bucketfsd blocks 2\n');
const HEADER_BYTES = 4096;
const BLOCK_BYTES_AT = 32;
const SALT_AT = 36;
const SALT_BYTES = 16;
const HEADER_CRC_AT = SALT_AT + SALT_BYTES;
const RECORD_BYTES = 64;
const ID_AT = 16;
const USED_AT = 32;
/** Records that are read, and written when only the order has changed, at once. */
const CHUNK = 1024;

export class IndexFile {
  #salt: Buffer = randomFillSync(Buffer.alloc(SALT_BYTES));
  /** By chunk: the order of use has changed there. */
  readonly #stale: Uint8Array;
  #last: Promise<void> = Promise.resolve();

  constructor(
    readonly fd: number,
    readonly table: BlockTable,
    readonly blockBytes: number,
  ) {
    this.#stale = new Uint8Array(Math.ceil(table.slots / CHUNK));
  }

  /** Makes ids of this index others than those of any other one. */
  get salt(): Uint8Array {
    return this.#salt;
  }

  /**
   * Fill the table with what is there; `dataBytes`: so long is the file with the blocks.
   * @returns how many records were not good, or null if there was no index: there is an empty one now. @throws an error of the file system
   */
  async load(dataBytes: number): Promise<number | null> {
    const header = Buffer.alloc(HEADER_BYTES);
    await readFd(this.fd, header, 0, HEADER_BYTES, 0);
    if (!this.#known(header)) {
      await this.#begin();
      return null;
    }
    this.#salt = Buffer.from(header.subarray(SALT_AT, SALT_AT + SALT_BYTES));
    const chunk = Buffer.alloc(CHUNK * RECORD_BYTES);
    let bad = 0;
    for (let first = 0; first < this.table.slots; first += CHUNK) {
      const { bytesRead } = await readFd(this.fd, chunk, 0, chunk.length, HEADER_BYTES + first * RECORD_BYTES);
      for (let at = 0; at + RECORD_BYTES <= bytesRead; at += RECORD_BYTES) {
        const slot = first + at / RECORD_BYTES;
        if (slot < this.table.slots && !this.#take(slot, chunk.subarray(at, at + RECORD_BYTES), dataBytes)) bad++;
      }
      if (bytesRead < chunk.length) break;
    }
    this.table.restored();
    // What lies behind is not good, or of a larger cache that was here before
    const end = HEADER_BYTES + this.table.high * RECORD_BYTES;
    if ((await statFd(this.fd)).size > end) await truncateFd(this.fd, end);
    return bad;
  }

  /** Write what the table says of a slot when its turn comes. @throws an error of the file system */
  write(slot: number): Promise<void> {
    return this.#inTurn(() => this.#writeRange(slot, 1));
  }

  /** The slot was used; flush() writes that. */
  touched(slot: number): void {
    this.#stale[Math.floor(slot / CHUNK)] = 1;
  }

  /** @throws an error of the file system */
  async flush(): Promise<void> {
    for (let chunk = this.#stale.indexOf(1); chunk >= 0; chunk = this.#stale.indexOf(1, chunk + 1)) {
      this.#stale[chunk] = 0;
      const first = chunk * CHUNK;
      await this.#inTurn(() => this.#writeRange(first, Math.min(CHUNK, this.table.high - first)));
    }
  }

  /** One write after the other, each of what the table says by then: an older state never replaces a newer one. */
  #inTurn(body: () => Promise<void>): Promise<void> {
    const done = this.#last.then(body);
    this.#last = done.catch(() => undefined);
    return done;
  }

  async #writeRange(first: number, count: number): Promise<void> {
    if (count <= 0) return;
    const records = Buffer.alloc(count * RECORD_BYTES);
    for (let i = 0; i < count; i++) this.#encode(first + i, records.subarray(i * RECORD_BYTES, (i + 1) * RECORD_BYTES));
    await writeAll(this.fd, records, HEADER_BYTES + first * RECORD_BYTES);
  }

  #encode(slot: number, record: Buffer): void {
    const { table } = this;
    // A part of a block has no checksum, and is gone when the daemon ends
    if (table.bytes[slot] === 0 || table.state[slot] === STATE.part) return;
    record.writeUInt32LE(table.checksum[slot], 4);
    record.writeUInt32LE(table.bytes[slot], 8);
    record.writeUInt32LE(table.block[slot], 12);
    table.idOf(slot).forEach((word, i) => record.writeUInt32LE(word, ID_AT + i * 4));
    record.writeDoubleLE(table.used[slot], USED_AT);
    record.writeUInt32LE(crc32(record.subarray(4)), 0);
  }

  /** @returns false: there is something, but no record. */
  #take(slot: number, record: Buffer, dataBytes: number): boolean {
    const bytes = record.readUInt32LE(8);
    if (bytes === 0 && record.every((byte) => byte === 0)) return true;
    const used = record.readDoubleLE(USED_AT);
    if (record.readUInt32LE(0) !== crc32(record.subarray(4)) || bytes === 0 || bytes > this.blockBytes || !(used >= 0 && used < 2 ** 53)) return false;
    if (slot * this.blockBytes + bytes > dataBytes) return false;
    const id = Uint32Array.from({ length: ID_WORDS }, (_, i) => record.readUInt32LE(ID_AT + i * 4));
    const block = record.readUInt32LE(12);
    if (this.table.find(id, block) >= 0) return false;
    this.table.restore(slot, id, block, bytes, record.readUInt32LE(4), used);
    return true;
  }

  #known(header: Buffer): boolean {
    if (!header.subarray(0, MAGIC.length).equals(MAGIC) || header.readUInt32LE(BLOCK_BYTES_AT) !== this.blockBytes) return false;
    return header.readUInt32LE(HEADER_CRC_AT) === crc32(header.subarray(0, HEADER_CRC_AT));
  }

  async #begin(): Promise<void> {
    await truncateFd(this.fd, 0);
    const header = Buffer.alloc(HEADER_BYTES);
    MAGIC.copy(header);
    header.writeUInt32LE(this.blockBytes, BLOCK_BYTES_AT);
    this.#salt.copy(header, SALT_AT);
    header.writeUInt32LE(crc32(header.subarray(0, HEADER_CRC_AT)), HEADER_CRC_AT);
    await writeAll(this.fd, header, 0);
  }
}
