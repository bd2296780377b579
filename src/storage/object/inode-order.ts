/**
 * Keys of one directory in the order of their inode numbers. find(1), du(1), chmod -R and cp -r sort names by those before they look them up: the former where a
 * directory has more than 10,000 entries, cp always. The numbers are hashes of keys, so it is no order of the bucket's.
 */
import { setImmediate as turn } from 'node:timers/promises';
import type { InodeNumber } from './nodes.js';

/** So many numbers are found out in one turn of the event loop: some 2 ms. */
const SLICE = 500;
/** Of an inode number so much counts as 53 bits leave beside the index: two that are the same in that are in any order. */
const INDEX = 2 ** 17;
const KEYS_MAX = INDEX;
/** What a key takes: itself, with 40 bytes, its place and its number. */
const KEY_BYTES = 80;

export class InodeOrder {
  private constructor(
    /** Each with the index of its key. */
    readonly numbers: Float64Array,
    readonly keys: readonly string[],
    readonly numberOf: (key: string) => InodeNumber,
    /** Bytes that it may take. */
    readonly bytes: number,
  ) {}

  /** `all`: keys, some of them more than once; `count`: so many, of which the first KEYS_MAX count; `isWanted`: whether it goes on. @returns null: it does not */
  static async of(all: Iterable<string>, count: number, numberOf: (key: string) => InodeNumber, isWanted: () => boolean): Promise<InodeOrder | null> {
    const numbers = new Float64Array(Math.min(count, KEYS_MAX));
    const keys: string[] = [];
    const seen = new Set<string>();
    for (const key of all) {
      if (keys.length === numbers.length) break;
      if (seen.has(key)) continue;
      seen.add(key);
      numbers[keys.length] = rankOf(numberOf(key)) * INDEX + keys.length;
      keys.push(key);
      if (keys.length % SLICE > 0) continue;
      await turn();
      if (!isWanted()) return null;
    }
    return new InodeOrder(numbers.subarray(0, keys.length).sort(), keys, numberOf, InodeOrder.bytesOf(count));
  }

  /** What an order of so many keys takes, at most. */
  static bytesOf(count: number): number {
    return Math.min(count, KEYS_MAX) * KEY_BYTES;
  }

  has(key: string): boolean {
    for (let at = this.#first(key); at < this.numbers.length; at++) {
      const one = this.#keyAt(at);
      if (one === key) return true;
      if (rankOf(this.numberOf(one)) !== rankOf(this.numberOf(key))) return false;
    }
    return false;
  }

  /** Keys that follow another one, which need not be among them. */
  *following(key: string): Generator<string> {
    for (let at = this.#first(key); at < this.numbers.length; at++) {
      const one = this.#keyAt(at);
      if (one !== key) yield one;
    }
  }

  /** Where the keys begin whose rank is not below that of a key. */
  #first(key: string): number {
    const number = rankOf(this.numberOf(key)) * INDEX;
    let [low, high] = [0, this.numbers.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.numbers[middle] < number) low = middle + 1;
      else high = middle;
    }
    return low;
  }

  #keyAt(at: number): string {
    return this.keys[this.numbers[at] % INDEX];
  }
}

/** The upper 36 bits of an inode number: the order of them is that of unsigned numbers. */
export const rankOf = ({ inoLow, inoHigh }: InodeNumber): number => (inoHigh & 0x3fffffff) * 64 + (inoLow >>> 26);
