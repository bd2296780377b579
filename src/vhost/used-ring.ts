/**
 * The used ring of a split virtqueue, VIRTIO 1.3 §2.7.8, safe to publish to from any thread.
 *
 * Who finishes a request calls push(), and then wantsCall() once for any number of them. The ring's private state (next index, the index last signalled, the lock)
 * lies in a small block of native memory, so that every thread that attaches by address works on the same
 * state. The critical section is a few stores long; a thread that finds it taken spins, then yields.
 */
import * as c from '../ffi/libc.js';
import { NativeMemory, viewOf } from '../ffi/memory.js';

const LOCK = 0;
const IDX = 1;
const SIGNALLED = 2;
const SIGNALLED_VALID = 3;
const EVENT_IDX = 4;
const STATE_BYTES = 4096;
const SPINS_BEFORE_YIELD = 200;

const VRING_AVAIL_F_NO_INTERRUPT = 1;

/** Everything another thread needs to attach; plain numbers, so it can be posted to a worker. */
export interface UsedRingAddress {
  state: number;
  avail: number;
  used: number;
  size: number;
}

export class UsedRing {
  readonly #state: Int32Array;
  readonly #avail: Uint16Array;
  readonly #used16: Uint16Array;
  readonly #used32: Uint32Array;
  readonly #mask: number;
  /** Index in #avail of used_event: after flags, idx and the ring (§2.7.6). */
  readonly #usedEvent: number;
  /** Index in #used16 of avail_event: after flags, idx and the elements (§2.7.8). */
  readonly #availEvent: number;

  /**
   * SAFETY: `state`, `avail` and `used` are mapped for `size` descriptors for as long as the object is used; the
   * owning VirtQueue stops every thread's use (drains) before guest memory is unmapped.
   */
  constructor(readonly address: UsedRingAddress) {
    const { state, avail, used, size } = address;
    this.#state = new Int32Array(viewOf(state, STATE_BYTES));
    this.#avail = new Uint16Array(viewOf(avail, availRingBytes(size)));
    const usedBuffer = viewOf(used, usedRingBytes(size));
    this.#used16 = new Uint16Array(usedBuffer, 0, 3 + size * 4);
    this.#used32 = new Uint32Array(usedBuffer, 0, 1 + size * 2);
    this.#mask = size - 1;
    this.#usedEvent = 2 + size;
    this.#availEvent = 2 + size * 4;
  }

  /** Private state for a ring that goes on at used index `idx`. The caller frees it when no thread uses it. */
  static createState(idx: number, eventIdx: boolean): NativeMemory {
    const memory = NativeMemory.allocate(STATE_BYTES);
    memory.i32[IDX] = idx;
    memory.i32[EVENT_IDX] = eventIdx ? 1 : 0;
    return memory;
  }

  /** The index that the next completion takes. */
  get index(): number {
    return Atomics.load(this.#state, IDX);
  }

  /** Return a descriptor chain (§2.7.8.2): `written` bytes were put into its device-writable part. See wantsCall(). */
  push(head: number, written: number): void {
    const state = this.#state;
    this.#lock();
    const old = state[IDX];
    const at = 1 + 2 * (old & this.#mask);
    this.#used32[at] = head;
    this.#used32[at + 1] = written;
    const next = (old + 1) & 0xffff;
    state[IDX] = next;
    // The element must be visible before the index: Atomics.store is a release (and more) on both architectures
    Atomics.store(this.#used16, 1, next);
    Atomics.store(state, LOCK, 0);
  }

  /**
   * Whether the driver wants to be called for what was pushed since the last time this was asked (§2.7.7.2); the
   * asker then signals the call eventfd. Any thread that pushed must ask, or know that another will.
   */
  wantsCall(): boolean {
    const state = this.#state;
    this.#lock();
    const next = state[IDX];
    let call = false;
    if (state[EVENT_IDX] === 0) {
      call = (Atomics.load(this.#avail, 0) & VRING_AVAIL_F_NO_INTERRUPT) === 0;
    } else if (state[SIGNALLED_VALID] === 0 || state[SIGNALLED] !== next) {
      // Sequentially consistent with the store of the index in push(), as §2.7.7.2 needs: the driver stores
      // used_event and then looks at the index, we store the index and then look at used_event; one sees the other.
      const event = Atomics.load(this.#avail, this.#usedEvent);
      // vring_need_event(): is `event` among the indices published since the last call?
      call = state[SIGNALLED_VALID] === 0 || ((next - event - 1) & 0xffff) < ((next - state[SIGNALLED]) & 0xffff);
      state[SIGNALLED] = next;
      state[SIGNALLED_VALID] = 1;
    }
    Atomics.store(state, LOCK, 0);
    return call;
  }

  #lock(): void {
    for (let spins = 0; Atomics.compareExchange(this.#state, LOCK, 0, 1) !== 0; ) {
      if (++spins % SPINS_BEFORE_YIELD === 0) c.schedYield();
    }
  }

  /** Ask for a kick when the driver's index passes `availIdx` (§2.7.10.1). */
  setAvailEvent(availIdx: number): void {
    Atomics.store(this.#used16, this.#availEvent, availIdx);
  }

  /** Without EVENT_IDX: VRING_USED_F_NO_NOTIFY on or off. */
  setNoNotify(on: boolean): void {
    Atomics.store(this.#used16, 0, on ? 1 : 0);
  }
}

/** Bytes of an available ring of `size` entries with its used_event (§2.7.6). */
export function availRingBytes(size: number): number {
  return 6 + 2 * size;
}

/** Bytes of a used ring of `size` entries with its avail_event (§2.7.8). */
export function usedRingBytes(size: number): number {
  return 6 + 8 * size;
}
