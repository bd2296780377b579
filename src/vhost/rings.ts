/** The rings of a connection: what the frontend has told about each, and starting, draining and stopping them. */
import * as c from '../ffi/libc.js';
import type { Device } from './device.js';
import type { DirtyLog } from './dirty-log.js';
import { ProtocolError } from './errors.js';
import type { GuestMemory } from './guest-memory.js';
import type { InflightRegion } from './inflight.js';
import type { QueueRunner } from './queue-runner.js';
import { VirtQueue, descriptorTableBytes, signalEvent, type RingAddresses } from './virtqueue.js';
import { availRingBytes, usedRingBytes } from './used-ring.js';

const F_RING_INDIRECT_DESC = 28n;
const F_RING_EVENT_IDX = 29n;
const VRING_F_LOG = 1;

/** Addresses as SET_VRING_ADDR gives them: in the frontend's address space. */
export interface RingUserAddresses {
  flags: number;
  descriptors: number;
  used: number;
  avail: number;
  /** Guest-physical address of the used ring, for the dirty log. */
  log: number;
}

class Ring {
  size = 0;
  base = 0;
  addresses: RingUserAddresses | null = null;
  kickFd = -1;
  /** A kick descriptor, or the word that none will come, has been given. */
  kicked = false;
  callFd = -1;
  errFd = -1;
  enabled = false;
  queue: VirtQueue | null = null;
}

export class Rings {
  readonly #rings: Ring[];
  #retired = false;
  features = 0n;
  inflight: InflightRegion | null = null;
  log: DirtyLog | null = null;
  #logCallFd = -1;

  constructor(
    readonly device: Device,
    readonly memory: GuestMemory,
    readonly runner: QueueRunner,
    /** A ring that was waiting for memory cannot run. */
    readonly onBroken: (index: number, error: ProtocolError) => void,
  ) {
    this.#rings = Array.from({ length: device.maxQueues }, () => new Ring());
  }

  get(index: number): Ring {
    const ring = this.#rings[index];
    if (ring === undefined) throw new ProtocolError('ring', `queue ${index} of ${this.#rings.length}`);
    return ring;
  }

  /** Without VHOST_USER_F_PROTOCOL_FEATURES rings need no SET_VRING_ENABLE. */
  enableAll(): void {
    for (const ring of this.#rings) ring.enabled = true;
  }

  /** A reset device serves no ring until it is enabled again. */
  disableAll(): void {
    for (const ring of this.#rings) ring.enabled = false;
  }

  /** The connection ends: nothing starts any more. */
  retire(): void {
    this.#retired = true;
  }

  /** Start the ring if all that it needs is known; otherwise wait for the rest. */
  start(index: number): void {
    const ring = this.get(index);
    if (this.#retired) return;
    if (ring.queue !== null || !ring.enabled || !ring.kicked || ring.size === 0 || ring.addresses === null) return;
    if (this.memory.regions.length === 0) return;
    const { size } = ring;
    const addresses = locate(ring, this.memory);
    if (addresses === null) throw new ProtocolError('ring', `queue ${index}: a ring of ${size} lies outside guest memory`);
    const queue = new VirtQueue(
      index, size, this.memory, addresses, ring.base, this.#has(F_RING_EVENT_IDX), this.#has(F_RING_INDIRECT_DESC),
    );
    let resubmit: number[];
    try {
      resubmit = this.#recover(queue, index, size);
    } catch (error) {
      queue.close();
      throw error;
    }
    queue.callFd = ring.callFd;
    ring.queue = queue;
    this.applyLog(index);
    this.runner.start(queue, ring.kickFd, resubmit);
  }

  /** Start all that can be; throws what kept the first of the others from it. */
  startAll(): void {
    let failure: unknown = null;
    for (let i = 0; i < this.#rings.length; i++) {
      try {
        this.start(i);
      } catch (error) {
        failure ??= error;
      }
    }
    if (failure !== null) throw failure;
  }

  /**
   * Memory has come or gone: start the rings that lie in it; the others wait for theirs. One that cannot run for another
   * reason is reported as broken, since the change of memory has succeeded all the same.
   */
  startReady(): void {
    this.#rings.forEach((ring, index) => {
      if (locate(ring, this.memory) === null) return;
      try {
        this.start(index);
      } catch (error) {
        if (!(error instanceof ProtocolError)) throw error;
        this.onBroken(index, error);
      }
    });
  }

  /**
   * Heads to take again after a backend died, and go on behind them. Rule: a record that a backend has used tells where it was, whatever
   * SET_VRING_BASE says; Cloud Hypervisor sends the guest's present index, and what was published since the death would be lost.
   */
  #recover(queue: VirtQueue, index: number, size: number): number[] {
    const record = this.inflight?.queue(index, size) ?? null;
    if (record === null) return [];
    const heads = record.recover(queue.used.index);
    queue.inflight = record;
    if (heads !== null) queue.setLastAvail(queue.used.index + heads.length);
    return heads ?? [];
  }

  /** Switch dirty logging of a running ring on or off, as features and the ring's flags say. */
  applyLog(index: number): void {
    const { queue, addresses } = this.get(index);
    if (queue === null || addresses === null) return;
    const on = this.log !== null && this.#has(26n);
    queue.dirtyLog = on ? this.log : null;
    queue.logCallFd = this.#logCallFd;
    queue.usedLogAddress = on && (addresses.flags & VRING_F_LOG) !== 0 ? addresses.log : -1;
  }

  applyLogAll(): void {
    for (let i = 0; i < this.#rings.length; i++) this.applyLog(i);
  }

  /** Take nothing more, wait for what is in flight, keep the place. @returns the available index to go on from. */
  async stop(index: number): Promise<number> {
    const ring = this.get(index);
    const { queue } = ring;
    if (queue === null) return ring.base;
    this.runner.stop(queue);
    await this.#drain([queue]);
    return this.#close(ring, queue);
  }

  /** stop() for all; start flags and descriptors stay, so that startAll() goes on where they were. */
  async stopAll(): Promise<void> {
    const running = this.#rings.filter((r) => r.queue !== null);
    for (const ring of running) this.runner.stop(ring.queue!);
    await this.#drain(running.map((r) => r.queue!));
    for (const ring of running) this.#close(ring, ring.queue!);
  }

  /** The first running ring that would not lie in another memory as a whole, or −1. */
  runningOutside(memory: GuestMemory): number {
    return this.#rings.findIndex((ring) => ring.queue !== null && locate(ring, memory) === null);
  }

  /** The first running ring with a part in [from, from + bytes) of the frontend's address space, or −1. */
  runningIn(from: number, bytes: number): number {
    const overlaps = (at: number, length: number): boolean => at < from + bytes && from < at + length;
    return this.#rings.findIndex(({ queue, addresses, size }) =>
      queue !== null && addresses !== null &&
      (overlaps(addresses.descriptors, descriptorTableBytes(size)) || overlaps(addresses.avail, availRingBytes(size)) ||
        overlaps(addresses.used, usedRingBytes(size))));
  }

  async #drain(queues: VirtQueue[]): Promise<void> {
    if (queues.every((q) => q.inFlight === 0)) return;
    this.device.cancelWaiting();
    await Promise.all(
      queues.map((q) => (q.inFlight === 0 ? undefined : new Promise<void>((resolve) => (q.onDrained = resolve)))),
    );
  }

  #close(ring: Ring, queue: VirtQueue): number {
    ring.base = queue.lastAvail;
    ring.queue = null;
    queue.close();
    return ring.base;
  }

  /** Forget everything told about the rings; they are stopped. Closes their descriptors. */
  reset(): void {
    for (let i = 0; i < this.#rings.length; i++) {
      this.setKick(i, -1, false);
      this.setCall(i, -1);
      this.setErr(i, -1);
      this.#rings[i] = new Ring();
    }
    this.inflight?.close();
    this.inflight = null;
    this.log?.close();
    this.log = null;
    this.setLogCall(-1);
  }

  /** Take over a kick descriptor (−1: none). The ring is stopped by the caller. */
  setKick(index: number, fd: number, given: boolean): void {
    const ring = this.get(index);
    if (ring.kickFd >= 0) c.close(ring.kickFd);
    ring.kickFd = fd;
    ring.kicked = given;
  }

  setCall(index: number, fd: number): void {
    const ring = this.get(index);
    if (ring.callFd >= 0) c.close(ring.callFd);
    ring.callFd = fd;
    if (ring.queue !== null) {
      ring.queue.callFd = fd;
      // What was finished between the old descriptor and this one may not have been heard
      ring.queue.call();
    }
  }

  setErr(index: number, fd: number): void {
    const ring = this.get(index);
    if (ring.errFd >= 0) c.close(ring.errFd);
    ring.errFd = fd;
  }

  /** Take over the descriptor to signal when the dirty log has changed (−1: none). */
  setLogCall(fd: number): void {
    if (this.#logCallFd >= 0) c.close(this.#logCallFd);
    this.#logCallFd = fd;
    this.applyLogAll();
  }

  /** Tell the frontend of a broken ring. */
  signal(fd: number): void {
    signalEvent(fd);
  }

  #has(bit: bigint): boolean {
    return ((this.features >> bit) & 1n) !== 0n;
  }
}

/** Host addresses of a ring's parts, or null unless each lies in one region of the memory. */
function locate({ addresses, size }: Ring, memory: GuestMemory): RingAddresses | null {
  if (addresses === null) return null;
  const descriptors = memory.hostAddressOfUser(addresses.descriptors, descriptorTableBytes(size));
  const avail = memory.hostAddressOfUser(addresses.avail, availRingBytes(size));
  const used = memory.hostAddressOfUser(addresses.used, usedRingBytes(size));
  return descriptors < 0 || avail < 0 || used < 0 ? null : { descriptors, avail, used };
}
