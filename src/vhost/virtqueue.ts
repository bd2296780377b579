/**
 * The device's side of a split virtqueue, VIRTIO 1.3 §2.7.
 *
 * The driver owns the descriptor table and the available ring, we own the used ring. Whatever we read here was
 * written by a guest: each descriptor is copied once and checked, walks are bounded by the ring size, and a
 * fault is a ProtocolError (the ring itself is broken) or a refused chain (that request fails, the ring goes on).
 */
import { assert } from '../base/assert.js';
import * as c from '../ffi/libc.js';
import { NativeMemory, viewOf } from '../ffi/memory.js';
import { CHAIN_CAPACITY, Chain } from './chain.js';
import type { DirtyLog } from './dirty-log.js';
import { ProtocolError } from './errors.js';
import type { GuestMemory } from './guest-memory.js';
import type { InflightQueue } from './inflight.js';
import { UsedRing, availRingBytes, usedRingBytes } from './used-ring.js';

/** §2.7: the largest queue size. */
export const QUEUE_SIZE_MAX = 32768;
const DESCRIPTOR_BYTES = 16;
const VRING_DESC_F_NEXT = 1;
const VRING_DESC_F_WRITE = 2;
const VRING_DESC_F_INDIRECT = 4;
/**
 * A chain may not be longer than the queue (§2.7.5.3.1). Drivers that lay one page per descriptor into an indirect
 * table of a small queue do it anyway, up to a request of 1 MiB; so chains are taken to this length. Longer ones are refused also where the
 * queue is larger: each descriptor takes memory here, as long as its request waits, and preadv2(2) takes 1,024.
 */
const CHAIN_LENGTH_MAX = 1024 + 16;

/** A batch of answers is announced after so many requests, or so many bytes of buffers. */
const BATCH_REQUESTS = 8;
const BATCH_BYTES = 4 << 20;
/** Chain objects that are kept for further requests, some 8 KiB each. */
const FREE_CHAINS_MAX = 256;
/** Those of all queues together. */
let freeChains = 0;

/** Host addresses of the three parts, already translated. */
export interface RingAddresses {
  descriptors: number;
  avail: number;
  used: number;
}

/** Bytes of a descriptor table of `size` entries (§2.7.5). */
export function descriptorTableBytes(size: number): number {
  return DESCRIPTOR_BYTES * size;
}

export const POP_EMPTY = 0;
export const POP_CHAIN = 1;
export const POP_REFUSED = 2;

const one = NativeMemory.allocate(4096);
one.u32[0] = 1;

/** Add one to an eventfd. */
export function signalEvent(fd: number): void {
  c.write(fd, one.address, 8);
}

export class VirtQueue {
  /** Requests taken and not yet answered. */
  inFlight = 0;
  /** Why the last pop() refused its chain. */
  refusal = '';
  callFd = -1;
  inflight: InflightQueue | null = null;
  dirtyLog: DirtyLog | null = null;
  /** Guest-physical address of the used ring for the dirty log, or −1. */
  usedLogAddress = -1;
  /** To be signalled when the dirty log has new marks (VHOST_USER_SET_LOG_FD), or −1. */
  logCallFd = -1;
  onDrained: (() => void) | null = null;
  /** The last request that was answered later than it was taken has its answer: the next one may come at any moment. */
  onCaughtUp: (() => void) | null = null;

  readonly used: UsedRing;
  readonly #state: NativeMemory;
  readonly #descriptors: DataView;
  readonly #avail: Uint16Array;
  readonly #mask: number;
  readonly #free: Chain[] = [];
  #table: DataView;
  #tableBase = 0;
  #availIdx: number;
  #lastAvail: number;
  #batch = 0;
  #batchBytes = 0;

  /**
   * SAFETY: the addresses stay mapped until close(); the connection drains the queue before it unmaps memory.
   * @param base the available index to go on from (VHOST_USER_SET_VRING_BASE)
   */
  constructor(
    readonly index: number,
    readonly size: number,
    readonly memory: GuestMemory,
    addresses: RingAddresses,
    base: number,
    readonly eventIdx: boolean,
    readonly indirect: boolean,
  ) {
    assert(size > 0 && size <= QUEUE_SIZE_MAX && (size & (size - 1)) === 0, 'queue size');
    if (addresses.descriptors % 16 !== 0 || addresses.avail % 2 !== 0 || addresses.used % 4 !== 0) {
      throw new ProtocolError('ring', `queue ${index}: ring addresses are not aligned (VIRTIO 1.3 §2.7)`);
    }
    this.#mask = size - 1;
    this.#descriptors = new DataView(viewOf(addresses.descriptors, descriptorTableBytes(size)));
    this.#avail = new Uint16Array(viewOf(addresses.avail, availRingBytes(size)));
    this.#table = this.#descriptors;
    // The used index in guest memory is the truth: what a previous backend process returned is there.
    const usedIdx = new DataView(viewOf(addresses.used, usedRingBytes(size))).getUint16(2, true);
    this.#state = UsedRing.createState(usedIdx, eventIdx);
    this.used = new UsedRing({ state: this.#state.address, avail: addresses.avail, used: addresses.used, size });
    this.#lastAvail = base & 0xffff;
    this.#availIdx = this.#lastAvail;
  }

  /** Index of the next available entry that we have not taken (VHOST_USER_GET_VRING_BASE). */
  get lastAvail(): number {
    return this.#lastAvail;
  }

  /** A chain object to pop into. It comes back by itself when its request is finished. */
  takeChain(): Chain {
    const chain = this.#free.pop();
    if (chain === undefined) return new Chain(this);
    freeChains--;
    return chain;
  }

  /** Keep a chain object that is not used any more; one of very many goes, and so do small ones for replies. */
  putChain(chain: Chain): void {
    chain.shrink();
    if (chain.capacity !== CHAIN_CAPACITY || freeChains >= FREE_CHAINS_MAX) return;
    freeChains++;
    this.#free.push(chain);
  }

  /**
   * Take the next available chain (§2.7.13).
   * @returns POP_EMPTY, POP_CHAIN, or POP_REFUSED: the chain is malformed, `refusal` says how, chain.head is to be
   * returned with nothing written. Throws ProtocolError when the ring itself makes no sense.
   */
  pop(chain: Chain): number {
    const last = this.#lastAvail;
    if (last === this.#availIdx) {
      // Acquire: the entries and descriptors behind the index were written before it
      const idx = Atomics.load(this.#avail, 1);
      if (idx === last) return POP_EMPTY;
      if (((idx - last) & 0xffff) > this.size) {
        throw new ProtocolError('ring', `queue ${this.index}: the available index jumped from ${last} to ${idx} in a ring of ${this.size}`);
      }
      this.#availIdx = idx;
    }
    const head = this.#avail[2 + (last & this.#mask)];
    // Each request holds a descriptor; more of them than descriptors, and waiting ones would pile up without bound
    if (this.inFlight >= this.size) {
      throw new ProtocolError('ring', `queue ${this.index}: more than ${this.size} requests at once in a ring of ${this.size}`);
    }
    if (head >= this.size) {
      throw new ProtocolError('ring', `queue ${this.index}: descriptor index ${head} is outside the ring of ${this.size}`);
    }
    this.#lastAvail = (last + 1) & 0xffff;
    chain.reset(head, this.memory);
    this.inFlight++;
    if (this.inflight !== null) this.inflight.submit(head);
    return this.#walk(chain, head) ? POP_CHAIN : POP_REFUSED;
  }

  /** Take again a head that was in flight when a previous backend died (VHOST_USER_SET_INFLIGHT_FD). */
  resubmit(chain: Chain, head: number): number {
    chain.reset(head, this.memory);
    this.inFlight++;
    return this.#walk(chain, head) ? POP_CHAIN : POP_REFUSED;
  }

  /** Skip entries that a previous backend took (they are resubmitted from the inflight record). */
  setLastAvail(index: number): void {
    this.#lastAvail = index & 0xffff;
    this.#availIdx = this.#lastAvail;
  }

  /** Return a chain with `written` bytes in its writable part and call the driver if it wants; the object is free again. */
  finish(chain: Chain, written: number): void {
    this.#return(chain, written);
    this.notify();
    this.#settled();
    if (this.inFlight === 0 && this.onCaughtUp !== null) this.onCaughtUp();
  }

  /**
   * The same within a batch of requests that are answered one after the other: while more of them are waiting in
   * the ring, the driver is called for several at once. Whoever uses this calls notify() when the batch ends.
   */
  finishInBatch(chain: Chain, written: number): void {
    const bytes = chain.readBytes + chain.writeBytes;
    this.#return(chain, written);
    this.#batchBytes += bytes;
    if (++this.#batch >= BATCH_REQUESTS || this.#batchBytes >= BATCH_BYTES) this.notify();
    this.#settled();
  }

  /** Requests returned in this batch that the driver was not called for. */
  get unannounced(): number {
    return this.#batch;
  }

  /** Call the driver if it wants that for what was returned since the last time. */
  notify(): void {
    this.#batch = 0;
    this.#batchBytes = 0;
    if (this.used.wantsCall()) this.call();
    const log = this.dirtyLog;
    if (log !== null && this.logCallFd >= 0 && log.takeMarked()) signalEvent(this.logCallFd);
  }

  #return(chain: Chain, written: number): void {
    const head = chain.head;
    const log = this.dirtyLog;
    if (log !== null) this.#logWrites(log, chain, written);
    this.putChain(chain);
    const inflight = this.inflight;
    if (inflight !== null) inflight.beforeUsed(head);
    this.used.push(head, written);
    // Only now: a page that is marked may be copied, and its mark cleared, before it is written
    if (log !== null && this.usedLogAddress >= 0) this.#logUsed(log, this.usedLogAddress);
    if (inflight !== null) inflight.afterUsed(head, this.used.index);
  }

  #settled(): void {
    if (--this.inFlight === 0 && this.onDrained !== null) this.onDrained();
  }

  /** Interrupt the driver. */
  call(): void {
    // EAGAIN means that the counter is full: the driver has been told. Without a descriptor the driver polls.
    if (this.callFd >= 0) signalEvent(this.callFd);
  }

  /** Stop asking for kicks while we look at the ring anyway. With EVENT_IDX an old avail_event does that. */
  disableKicks(): void {
    if (!this.eventIdx) this.used.setNoNotify(true);
  }

  /**
   * Ask for a kick at the next available entry, then look once more (§2.7.10: an entry added in between brings no
   * kick). @returns whether there is something to do already.
   */
  enableKicks(): boolean {
    if (this.eventIdx) this.used.setAvailEvent(this.#lastAvail);
    else this.used.setNoNotify(false);
    // The store above is sequentially consistent, so this load cannot come before it
    return Atomics.load(this.#avail, 1) !== this.#lastAvail;
  }

  /** Free private state. Nothing may be in flight. */
  close(): void {
    assert(this.inFlight === 0, 'queue closed with requests in flight');
    this.#state.free();
    freeChains -= this.#free.splice(0).length;
  }

  #walk(chain: Chain, head: number): boolean {
    let table = this.#descriptors;
    let base = 0;
    let entries = this.size;
    let left = CHAIN_LENGTH_MAX;
    let inIndirect = false;
    let seenWritable = false;
    for (let i = head; ; ) {
      if (--left < 0) return this.#refuse('the chain has a loop or is too long');
      const at = base + i * DESCRIPTOR_BYTES;
      const addressLow = table.getUint32(at, true);
      const addressHigh = table.getUint32(at + 4, true);
      const bytes = table.getUint32(at + 8, true);
      const flagsAndNext = table.getUint32(at + 12, true);
      const address = addressHigh * 0x100000000 + addressLow;
      if ((flagsAndNext & VRING_DESC_F_INDIRECT) !== 0) {
        if (!this.indirect || inIndirect) return this.#refuse('an indirect descriptor where none is allowed');
        if ((flagsAndNext & VRING_DESC_F_NEXT) !== 0) return this.#refuse('an indirect descriptor with a next one');
        if (bytes === 0 || bytes % DESCRIPTOR_BYTES !== 0 || bytes / DESCRIPTOR_BYTES > CHAIN_LENGTH_MAX) {
          return this.#refuse(`an indirect table of ${bytes} bytes`);
        }
        if (!this.#locateIndirect(address, bytes)) return this.#refuse('an indirect table outside memory');
        table = this.#table;
        base = this.#tableBase;
        entries = bytes / DESCRIPTOR_BYTES;
        inIndirect = true;
        i = 0;
        continue;
      }
      const writable = (flagsAndNext & VRING_DESC_F_WRITE) !== 0;
      if (writable) seenWritable = true;
      else if (seenWritable) return this.#refuse('a readable descriptor after a writable one');
      if (!chain.append(this.memory, address, bytes, writable)) return this.#refuse('a buffer outside memory');
      if ((flagsAndNext & VRING_DESC_F_NEXT) === 0) return true;
      i = flagsAndNext >>> 16;
      if (i >= entries) return this.#refuse(`descriptor index ${i} is outside the table of ${entries}`);
    }
  }

  #refuse(why: string): false {
    this.refusal = why;
    return false;
  }

  /** Point #table/#tableBase at an indirect table; false if it is not in memory as a whole. */
  #locateIndirect(address: number, bytes: number): boolean {
    const memory = this.memory;
    const index = memory.find(address);
    if (index < 0) return false;
    const slice = memory.slices[index];
    if (address + bytes <= slice.end) {
      this.#table = slice.view;
      this.#tableBase = address - slice.gpa;
      return true;
    }
    const host = memory.hostAddress(address, bytes);
    if (host < 0) return false;
    this.#table = new DataView(viewOf(host, bytes));
    this.#tableBase = 0;
    return true;
  }

  #logWrites(log: DirtyLog, chain: Chain, written: number): void {
    for (let i = chain.readSegments; i < chain.segments && written > 0; i++) {
      const take = Math.min(written, chain.length[i]);
      log.mark(chain.gpa[i], take);
      written -= take;
    }
  }

  /** The element that was just published, and the index. */
  #logUsed(log: DirtyLog, used: number): void {
    log.mark(used + 4 + 8 * ((this.used.index - 1) & this.#mask), 8);
    log.mark(used + 2, 2);
  }
}
