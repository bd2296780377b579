/**
 * Runs the started queues of one connection: kicks in, requests to the device, completions out.
 *
 * A kick wakes the loop; it serves every queue until all are empty, keeps looking for up to `pollUs` more if
 * that has paid off lately, and only then asks for kicks again. While it looks, the driver need not kick at all.
 */
import { performance } from 'node:perf_hooks';
import * as c from '../ffi/libc.js';
import { NativeMemory } from '../ffi/memory.js';
import { FdPoller } from '../ffi/poll.js';
import type { Chain } from './chain.js';
import { PENDING, type Device } from './device.js';
import { ProtocolError } from './errors.js';
import { POP_CHAIN, POP_EMPTY, type VirtQueue } from './virtqueue.js';

/** One turn of the loop serves at most so many requests before other events of the process get theirs. */
const TURN_REQUESTS = 512;
/** ... and polls at most so long. */
const TURN_POLL_NS = 2_000_000;
/**
 * Rule: a turn ends in time whatever the requests are; a READ may be of 16 MiB. The clock is looked at after so many requests, or so many bytes of
 * their buffers: a turn lasts no longer than this and what lies between two looks.
 */
const TURN_MAX_NS = 5_000_000;
const CLOCK_REQUESTS = 8;
const CLOCK_BYTES = 4 << 20;
/** A queue has so many requests, or bytes of buffers, served before the next one has its turn. */
const SLICE_REQUESTS = 64;
const SLICE_BYTES = 4 << 20;

/** Idle times up to this many windows are worth polling for. */
const IDLE_FACTOR = 4;
const FAILURES_MAX = 4;
const KICKS_PER_TRY = 64;

interface Running {
  queue: VirtQueue;
  poller: FdPoller | Ticker;
}

/** For rings without kicks (VHOST_USER_VRING_NOFD). */
const TICK_MS = 1;

class Ticker {
  readonly #timer: NodeJS.Timeout;

  constructor(tick: () => void) {
    this.#timer = setInterval(tick, TICK_MS);
  }

  close(): void {
    clearInterval(this.#timer);
  }
}

const nothing = (): void => undefined;

const scratch = NativeMemory.allocate(4096);

export class QueueRunner {
  readonly #running: Running[] = [];
  #queues: VirtQueue[] = [];
  #scheduled = false;
  #inTurn = false;
  /** Polling window now, nanoseconds: 0 or #pollMaxNs. */
  #windowNs: number;
  /** When the rings were last found empty; 0 while they are served. */
  #idleSince = 0;
  /** Polling windows in a row that passed without a request. */
  #failures = 0;
  #kicks = 0;
  /** When the turn has to end; whether it has, and what was served since the clock was looked at. */
  #turnEndsNs = 0;
  #isOver = false;
  #unclocked = 0;
  #unclockedBytes = 0;
  /** The device does not take requests of every queue: there is something to do when it has room. */
  #isHeld = false;
  /** The queue that comes first in the next pass. */
  #first = 0;
  readonly #pollMaxNs: number;

  constructor(
    readonly device: Device,
    pollUs: number,
    readonly onBroken: (queue: VirtQueue, error: ProtocolError) => void,
    readonly onRefused: (queue: VirtQueue, why: string) => void,
  ) {
    this.#pollMaxNs = pollUs * 1000;
    this.#windowNs = this.#pollMaxNs;
    if (device.admission !== undefined) device.admission.onRoom = () => this.#hasRoom();
  }

  /**
   * Serve a queue from now on. `kickFd` stays the caller's and open until stop(); −1: no kicks come, so the ring is
   * looked at on a timer. It is looked at right away: a kick may have come before. `resubmit`: heads that a previous
   * backend left in flight, to be served first.
   */
  start(queue: VirtQueue, kickFd: number, resubmit: readonly number[] = []): void {
    const poller = kickFd < 0 ? new Ticker(() => this.#turn()) : new FdPoller(kickFd, () => this.#kicked(kickFd));
    this.#running.push({ queue, poller });
    this.#queues = this.#running.map((r) => r.queue);
    for (const head of resubmit) {
      const chain = queue.takeChain();
      this.#process(queue, chain, queue.resubmit(chain, head));
    }
    queue.notify();
    queue.onCaughtUp = () => this.#lookAgain();
    this.#schedule();
  }

  /** Take no more from the queue. What is in flight goes on; see VirtQueue.onDrained. */
  stop(queue: VirtQueue): void {
    const at = this.#running.findIndex((r) => r.queue === queue);
    if (at < 0) return;
    const [{ poller }] = this.#running.splice(at, 1);
    poller.close();
    queue.onCaughtUp = null;
    this.#queues = this.#running.map((r) => r.queue);
  }

  #kicked(kickFd: number): void {
    c.read(kickFd, scratch.address, 8);
    // A turn has just ended before all was served: the kicks of other queues do not begin further ones before other events had theirs
    if (!this.#scheduled) this.#turn();
  }

  /** The driver had to wait for an answer, not this thread for a request: how long that took says nothing of when the next one comes. */
  #lookAgain(): void {
    if (this.#windowNs === 0 || this.#inTurn) return;
    this.#idleSince = 0;
    this.#schedule();
  }

  #hasRoom(): void {
    if (this.#isHeld) this.#schedule();
  }

  #schedule(): void {
    if (this.#scheduled) return;
    this.#scheduled = true;
    setImmediate(() => {
      this.#scheduled = false;
      this.#turn();
    });
  }

  #turn(): void {
    if (this.#inTurn || this.#queues.length === 0) return;
    this.#inTurn = true;
    try {
      if (this.#serve()) this.#schedule();
      // A deferred request may have made promises, which a native callback does not run (see FdPoller)
      else if (this.#queues.some((queue) => queue.inFlight > 0)) setImmediate(nothing);
    } finally {
      this.#inTurn = false;
    }
  }

  /** @returns whether there is more to do after other events had their turn. */
  #serve(): boolean {
    const queues = this.#queues;
    const polling = this.#pollMaxNs > 0;
    const started = clockNs();
    this.#turnEndsNs = started + TURN_MAX_NS;
    this.#isOver = false;
    this.#isHeld = false;
    if (polling && this.#idleSince !== 0) this.#adapt(started - this.#idleSince);
    this.#idleSince = 0;
    for (const queue of queues) queue.disableKicks();
    let requests = 0;
    let idleSince = 0;
    for (;;) {
      const served = this.#pass(queues);
      if (this.#queues !== queues || this.#isOver) return true; // a queue was stopped or started meanwhile
      if (served > 0) {
        if (idleSince !== 0) this.#failures = 0;
        requests += served;
        idleSince = 0;
        if (requests >= TURN_REQUESTS) return true;
        continue;
      }
      // What other threads work on completes through the event loop: do not keep it waiting
      if (this.#windowNs === 0 || this.#waiting(queues)) break;
      const now = clockNs();
      if (idleSince === 0) idleSince = now;
      if (now - idleSince > this.#windowNs) {
        this.#failures++;
        break;
      }
      if (now - started > TURN_POLL_NS) return true;
    }
    let more = false;
    // What is not taken now is looked at when there is room, whether the driver kicks or not
    for (const queue of queues) if (this.#admits(queue)) more = queue.enableKicks() || more;
    if (polling && !more) this.#idleSince = idleSince !== 0 ? idleSince : clockNs();
    return more;
  }

  /**
   * Choose the polling window from how long nothing came the last time, as seen when the kick arrived: that time
   * includes waking this thread up, which is what polling saves. After some windows spent in vain polling stops, but
   * for a try now and then.
   */
  #adapt(idleNs: number): void {
    const max = this.#pollMaxNs;
    if (++this.#kicks % KICKS_PER_TRY === 0) this.#failures = Math.min(this.#failures, FAILURES_MAX - 1);
    if (idleNs <= max) this.#failures = 0;
    this.#windowNs = idleNs <= max * IDLE_FACTOR && this.#failures < FAILURES_MAX ? max : 0;
  }

  #waiting(queues: VirtQueue[]): boolean {
    for (let i = 0; i < queues.length; i++) if (queues[i].inFlight > 0) return true;
    return false;
  }

  /** What is available now, a slice of each queue in turn. */
  #pass(queues: VirtQueue[]): number {
    let served = 0;
    let at = this.#first < queues.length ? this.#first : 0;
    for (let i = 0; i < queues.length && !this.#isOver; i++) {
      served += this.#drain(queues[at]);
      if (++at === queues.length) at = 0;
    }
    this.#first = at;
    return served;
  }

  /** A request with so many bytes of buffers was served: whether the turn is over. */
  #clocked(bytes: number): boolean {
    this.#unclockedBytes += bytes;
    if (++this.#unclocked < CLOCK_REQUESTS && this.#unclockedBytes < CLOCK_BYTES) return false;
    this.#unclocked = 0;
    this.#unclockedBytes = 0;
    return (this.#isOver = clockNs() >= this.#turnEndsNs);
  }

  /** @returns whether the device takes the next one, too */
  #process(queue: VirtQueue, chain: Chain, popped: number): boolean {
    if (popped === POP_CHAIN) {
      const written = this.device.handle(chain, queue.index);
      if (written === PENDING) return this.#admits(queue);
      queue.finishInBatch(chain, written);
    } else {
      this.onRefused(queue, queue.refusal);
      queue.finishInBatch(chain, 0);
    }
    return true;
  }

  /** Whether the device takes requests of this queue now. */
  #admits(queue: VirtQueue): boolean {
    if (this.device.admission?.admits(queue.index) !== false) return true;
    this.#isHeld = true;
    return false;
  }

  #drain(queue: VirtQueue): number {
    if (!this.#admits(queue)) return 0;
    let served = 0;
    let left = SLICE_BYTES;
    let chain = queue.takeChain();
    try {
      while (served < SLICE_REQUESTS && left > 0) {
        const popped = queue.pop(chain);
        if (popped === POP_EMPTY) break;
        const bytes = chain.readBytes + chain.writeBytes;
        left -= bytes;
        served++;
        const goesOn = this.#process(queue, chain, popped);
        chain = queue.takeChain();
        if (this.#clocked(bytes) || !goesOn) break;
      }
    } catch (error) {
      if (!(error instanceof ProtocolError)) throw error;
      this.stop(queue);
      queue.notify(); // of what was answered before the ring broke
      this.onBroken(queue, error);
      return served;
    }
    queue.putChain(chain);
    if (queue.unannounced > 0) queue.notify();
    return served;
  }
}

function clockNs(): number {
  return performance.now() * 1e6;
}
