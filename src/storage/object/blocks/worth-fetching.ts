/** Whether a block is worth being fetched as a whole, or a part of it worth being kept, when a read has missed it. */
import type { ObjectId } from './block-table.js';

/** Of a block that was not there. */
export type Worth = 'nothing' | 'part' | 'block';

/** From there on a round trip costs more than the rest of a block. */
const FAR_MS = 10;
/** All of the last reads took as long, and there were some: on a machine that has much to do many do, but not all. */
const FAR_READS = 16;
const FAR_READS_MIN = 4;
/** Whole blocks that are fetched because parts of them were asked for. */
const FETCHES_AT_ONCE = 4;
/** Once the cache is full, they are at most so many times what was asked for: where it is too small, it would only fetch and throw away. */
const FETCHED_PER_MISSED = 8;
const CREDIT_BLOCKS = 16;
/** So many pieces of a block are large ones. */
const LARGE_PER_BLOCK = 4;
/** Misses that are remembered. */
const MISSES = 1 << 14;

export class WorthFetching {
  readonly #missed = new Uint32Array(MISSES);
  #fetches = 0;
  /** Bytes that whole blocks may have, by what was asked for until now. */
  #credit = 0;
  /** What the last ranges took that were fetched. */
  readonly #took_ms = new Float64Array(FAR_READS).fill(Infinity);
  #reads = 0;

  constructor(
    readonly blockBytes: number,
    /** Room is made only by giving up something. */
    readonly isFull: () => boolean,
  ) {}

  /** A range had to be fetched, which took so long. */
  fetched(took_ms: number): void {
    this.#took_ms[this.#reads++ % FAR_READS] = took_ms;
  }

  get isFar(): boolean {
    return this.#reads >= FAR_READS_MIN && this.#took_ms.every((took_ms) => took_ms >= FAR_MS);
  }

  /**
   * `bytes` bytes of a block had to be fetched. The whole block is worth it if that happened before, not long ago, or, as long as there is
   * room, if the bucket is far away; then what was fetched is worth keeping as well. Of pieces that are large few make the block, and where
   * the bucket is near they may come one by one.
   */
  missed(id: ObjectId, block: number, bytes: number): Worth {
    this.#credit = Math.min(CREDIT_BLOCKS * this.blockBytes, this.#credit + FETCHED_PER_MISSED * bytes);
    const tag = (id[1] ^ Math.imul(block + 1, 0x85ebca6b)) >>> 0 || 1;
    const at = tag % MISSES;
    const again = this.#missed[at] === tag;
    this.#missed[at] = again ? 0 : tag;
    const full = this.isFull();
    const { isFar } = this;
    if (again ? isFar || bytes * LARGE_PER_BLOCK < this.blockBytes : isFar && !full) return 'block';
    return full && !again ? 'nothing' : 'part';
  }

  /** Nobody waits for a whole block that is fetched, so few are at a time. */
  get mayFetch(): boolean {
    return this.#fetches < FETCHES_AT_ONCE && (!this.isFull() || this.#credit >= this.blockBytes);
  }

  /** One is fetched and kept. */
  fetching(work: Promise<void>): Promise<void> {
    this.#fetches++;
    if (this.isFull()) this.#credit -= this.blockBytes;
    return work.finally(() => this.#fetches--);
  }
}
