/** Settings of a seed's world. */
import type { Durability } from '../../src/storage/object/write/committer.js';
import { chanceOf, type Chance } from './chance.js';
import { MOODS, type Mood } from './programs.js';
import { PROVIDERS, type Provider } from './provider.js';
import { CALM, type Outage, type Weather } from './weather.js';

export interface Settings {
  readonly seed: number;
  readonly provider: Provider;
  readonly weather: Weather;
  readonly lies: boolean;
  readonly guests: number;
  /** Programs of each guest that run at the same time. */
  readonly programs: number;
  readonly steps: number;
  readonly mood: Mood;
  /** Kills and orderly ends of each daemon. */
  readonly ends: number;
  /** Changes that other clients make. */
  readonly foreign: number;
  readonly durability: Durability;
  readonly writebackDelay_ms: number;
  readonly ttl_ms: number;
  readonly posix: 'lazy' | 'full';
  readonly prefix: string;
  readonly paths: readonly string[];
  readonly directories: readonly string[];
  /** Percentage of appends before which the journal is rewritten. */
  readonly rewrites: number;
}

const DIRECTORIES = ['d', 'e', 'd/in'];
const PATHS = ['x', 'y', 'd/x', 'd/y', 'e/x', 'd/in/z'];

/** `alone`: nobody but one guest changes anything. */
export function settingsOf(seed: number, alone: boolean): Settings {
  const chance = chanceOf(seed, 'settings');
  const guests = chance.chance(45) && !alone ? 2 : 1;
  const foreign = chance.chance(guests === 2 ? 30 : 50) && !alone ? 1 + chance.below(15) : 0;
  const shared = guests > 1 || foreign > 0;
  // A provider without conditions is for one client
  const provider = chance.pick(shared ? [PROVIDERS.aws, PROVIDERS.ceph, PROVIDERS.gcs] : [PROVIDERS.aws, PROVIDERS.ceph, PROVIDERS.gcs, PROVIDERS.plain]);
  const paths = PATHS.slice(0, 2 + chance.below(PATHS.length - 1));
  return {
    seed, provider, guests, foreign, weather: weatherOf(chance), lies: chanceOf(seed, 'lies').chance(30),
    programs: 1 + chance.below(3), steps: 4 + chance.below(14), mood: chance.pick(MOODS), ends: chance.pick([0, 0, 1, 1, 2, 3]),
    durability: chance.pick(['remote', 'writeback']), writebackDelay_ms: chance.pick([0, 5, 300, 5_000]), ttl_ms: chance.pick([0, 0, 1_000]),
    posix: chance.pick(['lazy', 'full']), prefix: chance.pick(['', 'p/']), paths, directories: DIRECTORIES, rewrites: chance.pick([0, 0, 2, 30]),
  };
}

function weatherOf(chance: Chance): Weather {
  const dice = chance.below(10);
  if (dice < 3) return CALM;
  const outages = chance.chance(30) ? [outageOf(chance)] : [];
  if (dice < 7) return { name: 'fair', faults: 25, outages };
  return { name: 'stormy', faults: 140, outages };
}

function outageOf(chance: Chance): Outage {
  const from_ms = 10_000 + chance.skewed(10, 60_000);
  return { from_ms, to_ms: from_ms + chance.skewed(1_000, 400_000), code: chance.pick([null, 'unreachable', 'unreachable', 'denied', 'expired']) };
}

export function describedSettings({ provider, weather, guests, programs, steps, mood, ends, foreign, durability, writebackDelay_ms, ttl_ms, posix, prefix, paths, rewrites }: Settings): string {
  const outages = weather.outages.map(({ from_ms, to_ms, code }) => ` ${code ?? 'silent'} ${Math.round(from_ms)}-${Math.round(to_ms)} ms`).join(',');
  return `${provider.name}, ${weather.name}${outages}, ${guests} guests with ${programs} programs of ${steps} steps (${mood}) on ${paths.join()}, ${foreign} changes of others, ${ends} ends, ${durability} ${writebackDelay_ms} ms, ttl ${ttl_ms}, ${posix}, prefix '${prefix}', rewrites ${rewrites}`;
}
