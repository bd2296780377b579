/**
 * Keys of one directory in the order of their inode numbers. find(1), du(1), chmod -R and cp -r sort names by those before they look them up: the former where a
 * directory has more than 10,000 entries, cp always. The numbers are hashes of keys, so it is no order of the bucket's.
 */
import { setImmediate as turn } from 'node:timers/promises';
import { assert } from '../../base/assert.js';
import type { InodeNumber } from './nodes.js';

/** So many numbers are found out in one turn of the event loop: some 2 ms. */
const SLICE = 500;
/** Of an inode number so much counts as 53 bits leave beside the index: two that are the same in that are in any order. */
const INDEX = 2 ** 17;
export const KEYS_MAX = INDEX;
/** What a key takes: itself, with 40 bytes, its place and its number. */
export const KEY_BYTES = 80;

export class InodeOrder {
  private constructor(
    /** Each with the index of its key. */
    readonly numbers: Float64Array,
    readonly keys: readonly string[],
    readonly numberOf: (key: string) => InodeNumber,
  ) {}

  /** `isWanted`: whether it goes on. @returns null: it does not */
  static async of(keys: readonly string[], numberOf: (key: string) => InodeNumber, isWanted: () => boolean): Promise<InodeOrder | null> {
    assert(keys.length <= KEYS_MAX, 'each key has an index');
    const numbers = new Float64Array(keys.length);
    for (let i = 0; i < keys.length; i++) {
      if (i % SLICE === SLICE - 1) {
        await turn();
        if (!isWanted()) return null;
      }
      numbers[i] = rankOf(numberOf(keys[i])) * INDEX + i;
    }
    return new InodeOrder(numbers.sort(), keys, numberOf);
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
