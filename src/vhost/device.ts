import type { Chain } from './chain.js';

/** handle() answered nothing yet: chain.finish() follows, once, from the main thread. */
export const PENDING = -1;

/** How a device bounds the requests that wait in it. */
export interface Admission {
  /** Whether a request of this queue is taken now. One that is not stays in its ring. Asked again after a PENDING one, and at onRoom. */
  admits(queueIndex: number): boolean;
  /** Set by who asks; called when further requests are taken again. */
  onRoom: (() => void) | null;
}

/**
 * What a device type (a file system, say) gives to the vhost-user machinery. Nothing here knows FUSE; another
 * device type reuses this folder as it is.
 */
export interface Device {
  /** Virtqueues of the device at most, all kinds together. */
  readonly maxQueues: number;
  /** Configuration space as the driver reads it, or null: the frontend keeps its own. */
  readonly config: Uint8Array | null;
  /**
   * Serve one request. @returns bytes written to the chain's writable part, or PENDING.
   * The chain may be used until then only. Must not throw.
   */
  handle(chain: Chain, queueIndex: number): number;
  /** Absent: requests are taken as they come. */
  readonly admission?: Admission;
  /** A frontend has connected; state of an earlier one is gone unless `resumed`. */
  connected(): void;
  /** The frontend has gone, or reset the device, and nothing is in flight. Release what the guest held. */
  reset(): void;
  /** Queues must be drained now: fail what may wait without bound (locks), so that the rest can finish. */
  cancelWaiting(): void;
}
