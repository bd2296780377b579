/** Random numbers of one seed, apart for each purpose: what is left out for one changes nothing for the others. */
import { Random } from '../model/random.js';

/** 0 … 2^32 − 1 */
export function mixed(seed: number, ...parts: readonly (string | number)[]): number {
  let hash = seed >>> 0;
  for (const part of parts) {
    const text = typeof part === 'number' ? part.toString(36) : part;
    for (let i = 0; i < text.length; i++) hash = Math.imul(hash ^ text.charCodeAt(i), 0x01000193) >>> 0;
    hash = Math.imul(hash ^ (hash >>> 15) ^ 0x9e3779b9, 0x85ebca6b) >>> 0;
    hash ^= hash >>> 13;
  }
  return hash >>> 0;
}

export class Chance extends Random {
  /** 0 ≤ x < 1 */
  unit(): number {
    return this.below(2 ** 31) / 2 ** 31;
  }

  between(least: number, most: number): number {
    return least + this.unit() * (most - least);
  }

  /** Mostly near the least, as answers of a network are. */
  skewed(least: number, most: number): number {
    return least * (most / least) ** (this.unit() ** 2);
  }

  perMille(part: number): boolean {
    return this.below(1000) < part;
  }
}

export const chanceOf = (seed: number, ...parts: readonly (string | number)[]): Chance => new Chance(mixed(seed, ...parts));
