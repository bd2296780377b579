/**
 * One descriptor chain, copied out of the ring once and validated: a list of host-memory segments, the
 * device-readable ones first, then the device-writable ones (VIRTIO 1.3 §2.7.4.2). Layout carries no meaning
 * (§2.7.4.1): everything here works on byte positions within the readable or the writable part.
 *
 * Chains are reused, never allocated per request.
 */
import { assert } from '../base/assert.js';
import type { GuestMemory, Slice } from './guest-memory.js';

const HIGH = 2 ** 32;
const NO_VIEW = new DataView(new ArrayBuffer(8));
/** Segments of a chain object that is kept for further requests: a request of 1 MiB in pages, and what belongs to it. */
export const CHAIN_CAPACITY = 320;

/** What a chain needs of its queue once its request is answered. */
export interface ChainOwner {
  putChain(chain: Chain): void;
  finish(chain: Chain, written: number): void;
}

export class Chain {
  head = 0;
  /** Segments in all; [0, readSegments) are device-readable. */
  segments = 0;
  readSegments = 0;
  readBytes = 0;
  writeBytes = 0;
  /** Set by locate*(): where the bytes can be accessed directly. */
  view: DataView;
  offset = 0;
  slices: Slice[] = [];
  host: Float64Array;
  gpa: Float64Array;
  length: Uint32Array;
  slice: Int32Array;
  /** Those of the start, while there are larger ones. */
  #first: Segments | null = null;

  constructor(
    readonly owner: ChainOwner,
    capacity = CHAIN_CAPACITY,
  ) {
    this.host = new Float64Array(capacity);
    this.gpa = new Float64Array(capacity);
    this.length = new Uint32Array(capacity);
    this.slice = new Int32Array(capacity);
    this.view = NO_VIEW;
  }

  reset(head: number, memory: GuestMemory): void {
    this.head = head;
    this.segments = 0;
    this.readSegments = 0;
    this.readBytes = 0;
    this.writeBytes = 0;
    this.slices = memory.slices;
  }

  /** Append guest memory [gpa, gpa + bytes); false if any of it is not the guest's. */
  append(memory: GuestMemory, gpa: number, bytes: number, writable: boolean): boolean {
    while (bytes > 0) {
      const index = memory.find(gpa);
      if (index < 0) return false;
      const slice = this.slices[index];
      const room = slice.end - gpa;
      const take = bytes < room ? bytes : room;
      const host = slice.hostAddress + (gpa - slice.gpa);
      const last = this.segments - 1;
      const first = writable ? this.readSegments : 0;
      if (last >= first && this.slice[last] === index && this.host[last] + this.length[last] === host && this.length[last] + take < HIGH) {
        this.length[last] += take;
      } else {
        if (this.segments === this.host.length) this.#grow();
        this.host[last + 1] = host;
        this.gpa[last + 1] = gpa;
        this.length[last + 1] = take;
        this.slice[last + 1] = index;
        this.segments = last + 2;
        if (!writable) this.readSegments = last + 2;
      }
      if (writable) this.writeBytes += take;
      else this.readBytes += take;
      gpa += take;
      bytes -= take;
    }
    return true;
  }

  /** If bytes [from, from + bytes) of the readable part lie together, point view/offset at them. */
  locateRead(from: number, bytes: number): boolean {
    return this.#locate(0, this.readSegments, from, bytes);
  }

  /** The same for the writable part. */
  locateWrite(from: number, bytes: number): boolean {
    return this.#locate(this.readSegments, this.segments, from, bytes);
  }

  #locate(segment: number, end: number, from: number, bytes: number): boolean {
    while (segment < end && from >= this.length[segment]) from -= this.length[segment++];
    if (segment >= end || from + bytes > this.length[segment]) return false;
    const slice = this.slices[this.slice[segment]];
    this.view = slice.view;
    this.offset = this.host[segment] - slice.hostAddress + from;
    return true;
  }

  /** Bytes that lie together from position `from` of the readable part on; 0 past its end. Sets view/offset. */
  runRead(from: number): number {
    return this.#run(0, this.readSegments, from);
  }

  /** The same for the writable part. */
  runWrite(from: number): number {
    return this.#run(this.readSegments, this.segments, from);
  }

  #run(segment: number, end: number, from: number): number {
    while (segment < end && from >= this.length[segment]) from -= this.length[segment++];
    if (segment >= end) return 0;
    const slice = this.slices[this.slice[segment]];
    this.view = slice.view;
    this.offset = this.host[segment] - slice.hostAddress + from;
    return this.length[segment] - from;
  }

  /** Copy from the readable part, at `from`, into `target`; returns the bytes copied. */
  copyIn(from: number, target: Uint8Array, at: number, bytes: number): number {
    let done = 0;
    while (done < bytes) {
      const run = this.runRead(from + done);
      if (run === 0) break;
      const take = Math.min(run, bytes - done);
      target.set(new Uint8Array(this.view.buffer, this.offset, take), at + done);
      done += take;
    }
    return done;
  }

  /** Copy into the writable part, at `from`; returns the bytes copied. */
  copyOut(from: number, source: Uint8Array, at: number, bytes: number): number {
    let done = 0;
    while (done < bytes) {
      const run = this.runWrite(from + done);
      if (run === 0) break;
      const take = Math.min(run, bytes - done);
      new Uint8Array(this.view.buffer, this.offset, take).set(source.subarray(at + done, at + done + take));
      done += take;
    }
    return done;
  }

  /**
   * Describe bytes [from, from + bytes) of one part as struct iovec's at `target` (two u64 each).
   * @returns the number of iovecs; fewer than needed only when `capacity` is reached.
   */
  iovecs(writable: boolean, from: number, bytes: number, target: Uint32Array, capacity: number): number {
    let segment = writable ? this.readSegments : 0;
    const end = writable ? this.segments : this.readSegments;
    const length = this.length;
    while (segment < end && from >= length[segment]) from -= length[segment++];
    let count = 0;
    for (let at = 0; bytes > 0 && segment < end && count < capacity; segment++, count++, at += 4) {
      const host = this.host[segment] + from;
      const room = length[segment] - from;
      const take = bytes < room ? bytes : room;
      target[at] = host >>> 0;
      target[at + 1] = (host / HIGH) >>> 0;
      target[at + 2] = take;
      target[at + 3] = 0;
      bytes -= take;
      from = 0;
    }
    return count;
  }

  /** A chain with the first `bytes` of the writable part and nothing else, to be answered instead of this one, which is free for the next request. */
  detach(bytes: number): Chain {
    const from = this.readSegments;
    let end = from;
    let kept = 0;
    for (; end < this.segments && kept < bytes; end++) kept += this.length[end];
    const reply = new Chain(this.owner, end - from);
    reply.head = this.head;
    reply.segments = end - from;
    reply.writeBytes = kept;
    reply.slices = this.slices;
    reply.host.set(this.host.subarray(from, end));
    reply.gpa.set(this.gpa.subarray(from, end));
    reply.length.set(this.length.subarray(from, end));
    reply.slice.set(this.slice.subarray(from, end));
    this.owner.putChain(this);
    return reply;
  }

  /** Segments that there is room for. */
  get capacity(): number {
    return this.host.length;
  }

  /** Answer: `written` bytes were put into the writable part. The chain may not be used afterwards. */
  finish(written: number): void {
    assert(written >= 0 && written <= this.writeBytes, 'more was written than the chain holds');
    this.owner.finish(this, written);
  }

  /** Have room for as many segments as at the start again: arrays that have grown are for the next chain that needs such. */
  shrink(): void {
    const first = this.#first;
    if (first === null) return;
    if (this.capacity === GROWN_CAPACITY && grown.length < GROWN_KEPT_MAX) grown.push({ host: this.host, gpa: this.gpa, length: this.length, slice: this.slice });
    this.#use(first);
    this.#first = null;
  }

  #grow(): void {
    const { host, gpa, length, slice, capacity } = this;
    const larger = capacity < GROWN_CAPACITY ? grown.pop() ?? arraysOf(GROWN_CAPACITY) : arraysOf(capacity * 2);
    larger.host.set(host);
    larger.gpa.set(gpa);
    larger.length.set(length);
    larger.slice.set(slice);
    this.#first ??= { host, gpa, length, slice };
    this.#use(larger);
  }

  #use({ host, gpa, length, slice }: Segments): void {
    this.host = host;
    this.gpa = gpa;
    this.length = length;
    this.slice = slice;
  }
}

/** Arrays that chains have grown to. They are kept, since V8 does not hurry to free what lies outside its heap: long chains one after the other make no garbage. */
const grown: Segments[] = [];
/** Nearly all long chains have room then. */
const GROWN_CAPACITY = 1280;
const GROWN_KEPT_MAX = 16;

interface Segments {
  readonly host: Float64Array;
  readonly gpa: Float64Array;
  readonly length: Uint32Array;
  readonly slice: Int32Array;
}

function arraysOf(capacity: number): Segments {
  return { host: new Float64Array(capacity), gpa: new Float64Array(capacity), length: new Uint32Array(capacity), slice: new Int32Array(capacity) };
}
