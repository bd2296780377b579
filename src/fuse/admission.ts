/**
 * How much of what a guest asks for waits at the same time.
 *
 * Rule: a request counts from when it is deferred until it is answered, with what is held for it. Above the bound no further request is taken from the request
 * queues: they stay in the guest's rings, where they take nothing of ours. The high-priority queue is always served.
 *
 * This cannot stand still: whatever counts ends by itself, by what storage and daemon do, or by a time limit, never by another request of the same guest. A request
 * that may wait for one (a lock, for its unlock, a FLUSH or a RELEASE) is detached instead and does not count; how many of those there are is bounded by who
 * keeps them waiting. INIT and DESTROY wait for those that count, and end the others.
 */

/** FORGET and INTERRUPT (VIRTIO 1.3 §5.11.2): they give memory back, and take none. */
const HIGH_PRIORITY_QUEUE = 0;
/** Of all waiting requests together, where files are a directory's: some 200 requests. */
const HELD_MAX_BYTES = 4 << 20;
/** Where each takes a round trip, or a commit, and reads have a memory budget of their own beside: some 800. */
export const REMOTE_HELD_MAX_BYTES = 16 << 20;
/** Requests are taken again when this share of it is held: several at a time, not one for each answer. */
const AGAIN_SHARE = 3 / 4;
/** A request object with the pages of it that are in use, and what a file system keeps of it. */
const REQUEST_BYTES = 12 << 10;
/** A descriptor that a chain has room for, and as an iovec. */
const SEGMENT_BYTES = 24;
const IOVEC_BYTES = 16;

export class Admission {
  #held = 0;
  #isFull = false;
  /** There is room again. */
  onRoom: (() => void) | null = null;

  constructor(readonly max_bytes = HELD_MAX_BYTES) {}

  admits(queueIndex: number): boolean {
    return !this.#isFull || queueIndex === HIGH_PRIORITY_QUEUE;
  }

  /** A request waits, with a copy of so many bytes of arguments. @returns what remove() is told when it does no longer */
  add(argumentBytes: number, { segments, capacity }: { readonly segments: number; readonly capacity: number }): number {
    const bytes = REQUEST_BYTES + argumentBytes + segments * IOVEC_BYTES + capacity * SEGMENT_BYTES;
    this.#held += bytes;
    if (this.#held >= this.max_bytes) this.#isFull = true;
    return bytes;
  }

  remove(bytes: number): void {
    this.#held -= bytes;
    if (!this.#isFull || this.#held > this.max_bytes * AGAIN_SHARE) return;
    this.#isFull = false;
    this.onRoom?.();
  }
}
