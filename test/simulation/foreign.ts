/** Clients without a daemon, which put, copy and remove objects directly. */
import type { Bucket } from './bucket.js';
import { chanceOf, type Chance } from './chance.js';
import type { Network } from './network.js';
import type { Scheduler } from './scheduler.js';
import type { Settings } from './settings.js';

const OTHERS = 'others';

export class OtherClients {
  #left: number;
  #numbers = 0;

  constructor(
    readonly network: Network,
    readonly bucket: Bucket,
    readonly settings: Settings,
    readonly omitted: ReadonlySet<string>,
    readonly steps: string[],
  ) {
    this.#left = settings.foreign;
  }

  get isOver(): boolean {
    return this.#left === 0;
  }

  /** Put the first objects. */
  prepare(): void {
    const { paths, seed, prefix } = this.settings;
    for (const path of paths) {
      const chance = chanceOf(seed, 'prepared', path);
      if (chance.chance(50)) this.#put(chance, prefix + path);
    }
  }

  begin(scheduler: Scheduler): void {
    for (let number = 0; number < this.settings.foreign; number++) {
      const chance = chanceOf(this.settings.seed, 'others', number);
      this.steps.push(`others ${number}`);
      scheduler.after(null, chance.skewed(1, 40_000), `others ${number}`, () => {
        this.#left--;
        if (!this.omitted.has(`others ${number}`)) this.#act(chance);
      });
    }
  }

  #act(chance: Chance): void {
    const { paths, prefix } = this.settings;
    const key = prefix + chance.pick(paths);
    const dice = chance.below(10);
    if (dice < 6) return this.#put(chance, key);
    if (dice < 8) return this.bucket.remove(this.network.call(OTHERS, 'remove', key), undefined);
    const source = this.bucket.at(prefix + chance.pick(paths));
    if (source !== null && source.key !== key) this.bucket.finishCopy(this.network.call(OTHERS, 'copy', source.key), source, key, { metadata: source.metadata });
  }

  #put(chance: Chance, key: string): void {
    const text = `<others.${++this.#numbers}>`;
    const bytes = 1 + (chance.chance(60) ? chance.below(3_000) : chance.below(40_000));
    const content = Buffer.from(text.repeat(Math.ceil(bytes / text.length)).slice(0, bytes));
    this.bucket.put(this.network.call(OTHERS, 'put', key), content, chance.chance(50) ? {} : { metadata: { mode: String(0o100640) } });
  }
}
