/**
 * A read that is slow against what reads of its size usually take is given up and made again, on another connection: one
 * server, disk or path of a provider may be stuck while all others are well.
 *
 * "Usually" is a moving average for each size class, of the time that successful attempts took. The second attempt begins when the
 * first is over, since both write to the same memory, and has all the time of the layers below. This layer belongs inside
 * the limit: waiting in line is no slowness, and what is given up here is no failure of the provider there.
 *
 * When everything becomes slow at once, making all reads again would only add to it: restarts are rationed.
 */
import type { ObjectStore } from '../store.js';
import { GivenUp, unless } from './give-up.js';
import { intercept, type Call } from './intercept.js';

export interface RestartOptions {
  /** A read is slow when it takes so many times as long as usual, and no less than `least_ms`. */
  readonly factor: number;
  readonly least_ms: number;
  /** Before so many of a size class are known, none is slow. */
  readonly samples: number;
  /** Told when a read was given up, for the log. */
  readonly onRestart?: (call: Call, waited_ms: number) => void;
  /** Tests bring their own. */
  readonly clock?: Clock;
}

export interface Clock {
  now_ms(): number;
  /** @returns what stops it */
  after(ms: number, ring: () => void): () => void;
}

export const RESTART: RestartOptions = { factor: 6, least_ms: 1_000, samples: 8 };

/** The weight of the newest in the average. */
const NEWEST = 1 / 8;
/** Restarts that may come in a row, and how many reads have to end well for one more. */
const RATION = 8;
const READS_FOR_ONE = 8;
/** Up to so many bytes everything is one class; each above has twice the size. */
const SMALLEST_CLASS_BYTES = 64 << 10;

const CLOCK: Clock = {
  now_ms: () => performance.now(),
  after: (ms, ring) => {
    const timer = setTimeout(ring, ms);
    return () => clearTimeout(timer);
  },
};

/** What reads of one size class take. */
class Usual {
  #average_ms = 0;
  #count = 0;

  add(ms: number): void {
    this.#count++;
    // The plain mean at first
    this.#average_ms += (ms - this.#average_ms) * Math.max(NEWEST, 1 / this.#count);
  }

  /** When a read is slow; null: nobody knows yet. */
  slow_ms({ factor, least_ms, samples }: RestartOptions): number | null {
    return this.#count < samples ? null : Math.max(least_ms, factor * this.#average_ms);
  }
}

export function withRestart(store: ObjectStore, given: Partial<RestartOptions> = {}): ObjectStore {
  const options: RestartOptions = { ...RESTART, ...given };
  const clock = options.clock ?? CLOCK;
  const classes = new Map<number, Usual>();
  let ration = RATION;

  const timed = async <T>(usual: Usual, read: () => Promise<T>): Promise<T> => {
    const began = clock.now_ms();
    const result = await read();
    usual.add(clock.now_ms() - began);
    ration = Math.min(RATION, ration + 1 / READS_FOR_ONE);
    return result;
  };

  return intercept(store, async (call, attempt) => {
    if (call.operation !== 'read' && call.operation !== 'fetch') return attempt(call.signal);
    const usual = usualOf(classes, call.bytes);
    const slow_ms = usual.slow_ms(options);
    if (slow_ms === null) return timed(usual, () => attempt(call.signal));
    const slow = new AbortController();
    const stop = clock.after(slow_ms, () => {
      if (ration < 1) return;
      ration--;
      slow.abort();
    });
    try {
      const result = await unless(slow.signal, call, (signal) => timed(usual, () => attempt(signal)));
      if (!(result instanceof GivenUp)) return result;
    } finally {
      stop();
    }
    options.onRestart?.(call, slow_ms);
    return timed(usual, () => attempt(call.signal));
  });
}

function usualOf(classes: Map<number, Usual>, bytes: number): Usual {
  const size = Math.max(0, Math.ceil(Math.log2(bytes / SMALLEST_CLASS_BYTES)));
  let usual = classes.get(size);
  if (usual === undefined) classes.set(size, (usual = new Usual()));
  return usual;
}
