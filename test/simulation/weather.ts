/** The fate of a request: drawn for each by its number. */
import type { StorageErrorCode } from '../../src/storage/object/errors.js';
import { chanceOf, type Chance } from './chance.js';

export const FATES = [
  'good', 'slow', 'answer lost', 'request lost', 'late', 'twice', 'throttled', 'failed', 'torn', 'race', 'missing',
] as const;
export type FateKind = (typeof FATES)[number];

export interface Fate {
  readonly kind: FateKind;
  /** Time until the request is sent. A client that is killed or gives up before has not sent it. */
  readonly sent_ms: number;
  /** Time from then until it takes effect. A copy takes the same again between reading and writing. */
  readonly effect_ms: number;
  /** Time from then until the answer. */
  readonly answer_ms: number;
  /** The client hears that the connection broke; otherwise nothing. */
  readonly breaks: boolean;
  /** Time until a doubled request takes effect again. `second`: the client gets the answer to that one. */
  readonly again_ms: number;
  readonly second: boolean;
  /** A request answered by an error took effect all the same. */
  readonly obeyed: boolean;
  readonly retryAfter_ms: number | null;
}

export interface Outage {
  readonly from_ms: number;
  readonly to_ms: number;
  /** null: no answer at all. */
  readonly code: StorageErrorCode | null;
}

export interface Weather {
  readonly name: string;
  /** Requests of a thousand that have a fault. */
  readonly faults: number;
  readonly outages: readonly Outage[];
}

/** Properties of a request that decide which faults are possible. */
export interface Kind {
  readonly operation: string;
  readonly mutates: boolean;
  readonly conditional: boolean;
  readonly reads: boolean;
  /** The provider honours conditions: late requests cannot replace newer objects. */
  readonly guarded: boolean;
  /** Wrong 404s are possible. */
  readonly lies: boolean;
}

const WEIGHTS: readonly (readonly [FateKind, number, (kind: Kind) => boolean])[] = [
  ['slow', 3, () => true],
  ['answer lost', 5, () => true],
  ['request lost', 3, () => true],
  ['late', 4, ({ mutates, guarded }) => mutates && guarded],
  ['twice', 3, ({ mutates, guarded }) => mutates && guarded],
  ['throttled', 3, () => true],
  ['failed', 3, () => true],
  ['torn', 4, ({ reads }) => reads],
  ['race', 2, ({ operation, conditional }) => conditional && (operation === 'put' || operation === 'completeUpload')],
  ['missing', 1, ({ operation, lies }) => operation === 'head' && lies],
];

export function fateOf(seed: number, number: number, weather: Weather, kind: Kind): Fate {
  const chance = chanceOf(seed, 'fate', number);
  const faulty = chance.perMille(weather.faults);
  return drawn(chance, faulty ? pick(chance, kind) : 'good', kind);
}

function pick(chance: Chance, kind: Kind): FateKind {
  const possible = WEIGHTS.filter(([, , may]) => may(kind));
  let dice = chance.below(possible.reduce((sum, [, weight]) => sum + weight, 0));
  return possible.find(([, weight]) => (dice -= weight) < 0)![0];
}

function drawn(chance: Chance, kind: FateKind, { mutates, guarded }: Kind): Fate {
  const slow = kind === 'slow';
  const effect = slow && chance.chance(50) && (guarded || !mutates) ? chance.skewed(500, 400_000) : chance.skewed(1, 60);
  return {
    kind,
    sent_ms: chance.skewed(0.1, 4),
    effect_ms: kind === 'late' ? chance.skewed(500, 200_000) : effect,
    answer_ms: slow ? chance.skewed(500, 60_000) : chance.skewed(0.5, 40),
    breaks: chance.chance(60),
    again_ms: chance.skewed(1, 30_000),
    second: chance.chance(70),
    obeyed: chance.chance(40),
    retryAfter_ms: chance.chance(30) ? chance.below(5) * 1000 : null,
  };
}

/** No faults, only latency. */
export const CALM: Weather = { name: 'calm', faults: 0, outages: [] };
