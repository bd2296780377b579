/**
 * Whether operations may take long on this storage, and so belong into the pool.
 *
 * A network file system may at any time. Others are watched: a sample of the operations done inline is timed, and when
 * two of those timed close together were slow, operations go to the pool for a while; then they are tried inline again.
 * One alone proves nothing: on a busy host any thread may be kept from its CPU for some milliseconds. How long they take
 * in the pool proves nothing either, since they wait for a thread there.
 */

import { MOUNT_KIND, kindOfType } from './mount-table.js';

export type Offload = 'auto' | 'always' | 'never';

const SLOW_MS = 5;
/** How long operations stay in the pool before one is tried inline again; doubled while that one is slow. */
const HOLD_MIN_MS = 2_000;
const HOLD_MAX_MS = 60_000;
/** One operation in so many is timed; after a slow one the next CLOSE_LOOKS are. */
const SAMPLE = 8;
const CLOSE_LOOKS = 16;

export class Pace {
  /** Every operation may take long, measured or not. */
  readonly #always: boolean;
  readonly #never: boolean;
  #slowUntil = 0;
  #hold_ms = HOLD_MIN_MS;
  #countdown = SAMPLE;
  #looks = 0;

  /** `fsType`: f_type of statfs(2). */
  constructor(offload: Offload, fsType: number) {
    this.#always = offload === 'always' || (offload === 'auto' && kindOfType(fsType) === MOUNT_KIND.REMOTE);
    this.#never = offload === 'never';
  }

  /** Whether an operation belongs into the pool now. */
  get slow(): boolean {
    if (this.#always) return true;
    if (this.#slowUntil === 0) return false;
    if (performance.now() < this.#slowUntil) return true;
    this.#slowUntil = 0;
    return false;
  }

  /** Whether the operation about to be done inline is to be timed, and took() told. */
  get sampled(): boolean {
    if (this.#looks > 0) return true;
    if (--this.#countdown > 0) return false;
    this.#countdown = SAMPLE;
    return true;
  }

  /** An operation that was timed took so many milliseconds. */
  took(ms: number): void {
    if (ms <= SLOW_MS) {
      if (this.#looks > 0 && --this.#looks === 0) this.#hold_ms = HOLD_MIN_MS;
      return;
    }
    if (this.#looks > 0 && !this.#never) {
      this.#slowUntil = performance.now() + this.#hold_ms;
      this.#hold_ms = Math.min(HOLD_MAX_MS, this.#hold_ms * 2);
    }
    this.#looks = CLOSE_LOOKS;
  }
}
