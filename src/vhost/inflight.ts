/**
 * Requests in flight, recorded in memory that the frontend keeps across our death (vhost-user.rst, "Inflight I/O
 * tracking", split virtqueue layout).
 *
 * Per queue: u64 features, u16 version, u16 desc_num, u16 last_batch_head, u16 used_idx, then for each descriptor
 * u8 inflight, 5 bytes of padding, u16 next, u64 counter. Regions are aligned to 64 bytes.
 */
import * as c from '../ffi/libc.js';
import { viewOf } from '../ffi/memory.js';
import { MAP_SHARED, MFD_ALLOW_SEALING, MFD_CLOEXEC, PROT_READ, PROT_WRITE, F_ADD_SEALS, F_SEAL_SHRINK } from '../ffi/constants.js';
import { ProtocolError } from './errors.js';
import { guardFile } from './guest-memory.js';

const VERSION_AT = 8;
const DESC_NUM_AT = 10;
const LAST_BATCH_HEAD_AT = 12;
const USED_IDX_AT = 14;
const HEADER_BYTES = 16;
const DESC_BYTES = 16;
const NEXT_AT = 6;
const COUNTER_AT = 8;
const ALIGN = 64;
const LAYOUT_VERSION = 1;
const BYTES_MAX = 1 << 30;

/** Bytes of one queue's region. */
export function inflightQueueBytes(size: number): number {
  return Math.ceil((HEADER_BYTES + DESC_BYTES * size) / ALIGN) * ALIGN;
}

/** One queue's record. */
export class InflightQueue {
  #counter = 0;

  constructor(
    readonly view: DataView,
    readonly size: number,
  ) {}

  /** A head was taken from the available ring. */
  submit(head: number): void {
    const at = HEADER_BYTES + head * DESC_BYTES;
    const counter = this.#counter++;
    this.view.setUint32(at + COUNTER_AT, counter >>> 0, true);
    this.view.setUint32(at + COUNTER_AT + 4, Math.floor(counter / 2 ** 32), true);
    this.view.setUint8(at, 1);
  }

  /** A head is about to be put into the used ring. */
  beforeUsed(head: number): void {
    this.view.setUint16(HEADER_BYTES + head * DESC_BYTES + NEXT_AT, this.view.getUint16(LAST_BATCH_HEAD_AT, true), true);
    this.view.setUint16(LAST_BATCH_HEAD_AT, head, true);
  }

  /** It is there; `usedIdx` is the index published. */
  afterUsed(head: number, usedIdx: number): void {
    this.view.setUint8(HEADER_BYTES + head * DESC_BYTES, 0);
    this.view.setUint16(USED_IDX_AT, usedIdx, true);
  }

  /**
   * What a previous backend took and did not return, oldest first; null for a record that no backend has used. `usedIdx` is the index in the used
   * ring: when it differs from the record, the backend died between publishing its last head and noting that.
   */
  recover(usedIdx: number): number[] | null {
    const { view, size } = this;
    if (view.getUint16(VERSION_AT, true) === 0) {
      view.setUint16(VERSION_AT, LAYOUT_VERSION, true);
      view.setUint16(DESC_NUM_AT, size, true);
      view.setUint16(USED_IDX_AT, usedIdx, true);
      return null;
    }
    if (view.getUint16(DESC_NUM_AT, true) !== size) {
      throw new ProtocolError('inflight', `the inflight record is for ${view.getUint16(DESC_NUM_AT, true)} descriptors, the ring has ${size}`);
    }
    if (view.getUint16(USED_IDX_AT, true) !== usedIdx) {
      const head = view.getUint16(LAST_BATCH_HEAD_AT, true);
      if (head < size) view.setUint8(HEADER_BYTES + head * DESC_BYTES, 0);
      view.setUint16(USED_IDX_AT, usedIdx, true);
    }
    const heads: { head: number; counter: bigint }[] = [];
    let next = 0n;
    for (let head = 0; head < size; head++) {
      const at = HEADER_BYTES + head * DESC_BYTES;
      const counter = view.getBigUint64(at + COUNTER_AT, true);
      if (counter >= next) next = counter + 1n;
      if (view.getUint8(at) === 1) heads.push({ head, counter });
    }
    this.#counter = Number(next & 0xfffffffffffffn);
    return heads.sort((a, b) => (a.counter < b.counter ? -1 : 1)).map((h) => h.head);
  }
}

/** The shared memory with the records of all queues. */
export class InflightRegion {
  readonly queueBytes: number;
  readonly #mapping: number;
  readonly #mappingBytes: number;
  readonly #view: DataView;

  /** Map a region; the descriptor stays the caller's. */
  constructor(fd: number, offset: number, bytes: number, readonly queues: number, readonly queueSize: number) {
    this.queueBytes = inflightQueueBytes(queueSize);
    if (queues < 1 || queueSize < 1 || bytes < this.queueBytes * queues || bytes > BYTES_MAX || offset % 4096 !== 0) {
      throw new ProtocolError('inflight', `an inflight region of ${bytes} bytes at ${offset} for ${queues} queues of ${queueSize}`);
    }
    guardFile(fd, offset + bytes, 'inflight');
    this.#mappingBytes = bytes;
    // SAFETY: unmapped by close() only, after the queues that use it are drained
    this.#mapping = c.mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (this.#mapping === -1) throw new ProtocolError('inflight', `cannot map the inflight region: errno ${c.errno()}`);
    this.#view = new DataView(viewOf(this.#mapping, bytes));
  }

  /** A fresh, sealed memfd for `queues` queues; the caller closes it. */
  static create(queues: number, queueSize: number): { fd: number; bytes: number } {
    const bytes = Math.ceil((inflightQueueBytes(queueSize) * queues) / 4096) * 4096;
    const fd = c.check(c.memfdCreate('bucketfsd-inflight', MFD_CLOEXEC | MFD_ALLOW_SEALING), 'memfd_create');
    try {
      c.check(c.ftruncate(fd, bytes), 'ftruncate');
      c.check(c.fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK), 'fcntl(F_ADD_SEALS)');
    } catch (error) {
      c.close(fd);
      throw error;
    }
    return { fd, bytes };
  }

  /** The record of a queue with `size` descriptors, or null when the region has none for it. */
  queue(index: number, size: number): InflightQueue | null {
    if (index >= this.queues || size > this.queueSize) return null;
    return new InflightQueue(new DataView(this.#view.buffer, index * this.queueBytes, this.queueBytes), size);
  }

  close(): void {
    c.munmap(this.#mapping, this.#mappingBytes);
  }
}
