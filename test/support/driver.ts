/** A virtio driver for tests: split virtqueues in shared memory, chains as asked for, well-formed or not. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { Frontend, GPA, MESSAGE, USER, eventfd, u32, u64, concat, type SharedMemory } from './frontend.js';

export const NEXT = 1;
export const WRITE = 2;
export const INDIRECT = 4;

const scratch = NativeMemory.allocate(4096);

export interface Descriptor {
  address: number | bigint;
  length: number;
  flags: number;
  next: number;
}

export interface Used {
  head: number;
  length: number;
}

export class QueueAbandoned extends Error {}

export class DriverQueue {
  readonly descriptors: number;
  readonly avail: number;
  readonly used: number;
  readonly kickFd = eventfd();
  readonly callFd = eventfd();
  readonly errFd = eventfd();
  availIdx: number;
  lastUsed: number;
  /** How long wait() waits. */
  patience_ms = 10_000;
  #abandoned = false;
  #nextDescriptor = 0;

  constructor(
    readonly memory: SharedMemory,
    readonly index: number,
    readonly size: number,
    base = 0,
  ) {
    this.descriptors = memory.take(16 * size, 16);
    this.avail = memory.take(6 + 2 * size, 2);
    this.used = memory.take(6 + 8 * size, 4);
    this.availIdx = this.lastUsed = base;
    memory.dv.setUint16(this.avail + 2, base, true);
    memory.dv.setUint16(this.used + 2, base, true);
  }

  /** Tell the backend about the ring; enable it unless told not to. */
  async start(frontend: Frontend, options: { enable?: boolean; base?: number; log?: boolean } = {}): Promise<void> {
    const { index } = this;
    frontend.send(MESSAGE.SET_VRING_NUM, u32(index, this.size));
    frontend.send(MESSAGE.SET_VRING_BASE, u32(index, options.base ?? this.lastUsed));
    frontend.send(
      MESSAGE.SET_VRING_ADDR,
      concat(u32(index, options.log ? 1 : 0), u64(USER + this.descriptors, USER + this.used, USER + this.avail, GPA + this.used)),
    );
    frontend.send(MESSAGE.SET_VRING_CALL, u64(index), [this.callFd]);
    frontend.send(MESSAGE.SET_VRING_ERR, u64(index), [this.errFd]);
    frontend.send(MESSAGE.SET_VRING_KICK, u64(index), [this.kickFd]);
    if (options.enable !== false) assert.ok(await frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(index, 1)));
  }

  /** Write a descriptor; `table` is an offset in memory. */
  put(at: number, d: Descriptor, table = this.descriptors): void {
    const { dv } = this.memory;
    dv.setBigUint64(table + at * 16, BigInt(d.address), true);
    dv.setUint32(table + at * 16 + 8, d.length, true);
    dv.setUint16(table + at * 16 + 12, d.flags, true);
    dv.setUint16(table + at * 16 + 14, d.next, true);
  }

  /** Make a head available. */
  offer(head: number): void {
    const { dv } = this.memory;
    dv.setUint16(this.avail + 4 + 2 * (this.availIdx % this.size), head, true);
    this.availIdx = (this.availIdx + 1) & 0xffff;
    dv.setUint16(this.avail + 2, this.availIdx, true);
  }

  kick(): void {
    scratch.u32[0] = 1;
    scratch.u32[1] = 0;
    c.write(this.kickFd, scratch.address, 8);
  }

  /** Calls heard since the last time. */
  calls(): number {
    return c.read(this.callFd, scratch.address, 8) === 8 ? scratch.u32[0] : 0;
  }

  /**
   * Offer a chain: readable parts with these bytes, writable parts of these sizes (offsets in memory are returned).
   * `indirect` puts it into a table of its own.
   */
  chain(readable: Uint8Array[], writable: number[], indirect = false): { head: number; writable: number[] } {
    const parts: { at: number; length: number; flags: number }[] = [];
    for (const bytes of readable) {
      const at = this.memory.take(Math.max(1, bytes.length), 8);
      this.memory.u8.set(bytes, at);
      parts.push({ at, length: bytes.length, flags: 0 });
    }
    for (const length of writable) {
      const at = this.memory.take(Math.max(1, length), 8);
      this.memory.u8.fill(0xee, at, at + length);
      parts.push({ at, length, flags: WRITE });
    }
    const table = indirect ? this.memory.take(16 * parts.length, 16) : this.descriptors;
    const first = indirect ? 0 : this.#claim(parts.length);
    parts.forEach((p, i) => {
      const last = i === parts.length - 1;
      const next = indirect ? i + 1 : (first + i + 1) % this.size;
      this.put(indirect ? i : (first + i) % this.size, { address: GPA + p.at, length: p.length, flags: p.flags | (last ? 0 : NEXT), next: last ? 0 : next }, table);
    });
    let head = first;
    if (indirect) {
      head = this.#claim(1);
      this.put(head, { address: GPA + table, length: 16 * parts.length, flags: INDIRECT, next: 0 });
    }
    this.offer(head);
    return { head, writable: parts.filter((p) => p.flags === WRITE).map((p) => p.at) };
  }

  /** Descriptors in turn: tests never have more in flight than the ring holds. */
  #claim(count: number): number {
    const at = this.#nextDescriptor;
    this.#nextDescriptor = (at + count) % this.size;
    return at;
  }

  /** Used elements that have come so far. */
  take(): Used[] {
    const { dv } = this.memory;
    const idx = dv.getUint16(this.used + 2, true);
    const taken: Used[] = [];
    while (this.lastUsed !== idx) {
      const at = this.used + 4 + 8 * (this.lastUsed % this.size);
      taken.push({ head: dv.getUint32(at, true), length: dv.getUint32(at + 4, true) });
      this.lastUsed = (this.lastUsed + 1) & 0xffff;
    }
    return taken;
  }

  /** The device has gone: what it has not answered yet fails with QueueAbandoned. */
  abandon(): void {
    this.#abandoned = true;
  }

  /** Wait for `count` used elements. */
  async wait(count = 1): Promise<Used[]> {
    const all: Used[] = [];
    for (const deadline = Date.now() + this.patience_ms; all.length < count; ) {
      // In this order: what was answered before the end is an answer
      const gone = this.#abandoned;
      all.push(...this.take());
      if (all.length >= count) break;
      if (gone) throw new QueueAbandoned();
      if (Date.now() > deadline) throw new Error(`queue ${this.index}: ${all.length} of ${count} requests were answered`);
      await turn();
    }
    return all;
  }

  setUsedEvent(value: number): void {
    this.memory.dv.setUint16(this.avail + 4 + 2 * this.size, value & 0xffff, true);
  }

  get availEvent(): number {
    return this.memory.dv.getUint16(this.used + 4 + 8 * this.size, true);
  }

  close(): void {
    for (const fd of [this.kickFd, this.callFd, this.errFd]) c.close(fd);
  }
}
