/**
 * Translation of user and group IDs between guest and host (`--translate-uid`, `--translate-gid`).
 *
 * The rules are virtiofsd 1.13's. A rule is a kind and decimal numbers with one separator, which is the first character
 * that cannot belong to a kind: `map:0:100000:65536` and `map/0/100000/65536` say the same.
 *
 *   map:GUEST:HOST:COUNT           both ways, one to one
 *   guest:GUEST:HOST:COUNT         guest to host only, one to one
 *   host:HOST:GUEST:COUNT          host to guest only, one to one
 *   squash-guest:GUEST:HOST:COUNT  a range of guest IDs becomes one host ID
 *   squash-host:HOST:GUEST:COUNT   a range of host IDs becomes one guest ID
 *   forbid-guest:GUEST:COUNT       requests that carry such a guest ID fail
 *
 * The two directions are independent of each other, and what no rule names stays as it is. Ranges of one direction may
 * not overlap. ID 4294967295 means "no ID" in the kernel's interfaces: it can be neither source nor target.
 */
import { assert } from '../../base/assert.js';

/** The ID that means none: (uid_t)−1. */
const NO_ID = 0xffffffff;

/** What toHost answers for a forbidden ID; the request then fails with EPERM. Not −1, which stands for no group at all. */
export const FORBIDDEN = -2;

const ENTRY = { SHIFT: 0, SQUASH: 1, FORBID: 2 } as const;
type EntryKind = (typeof ENTRY)[keyof typeof ENTRY];

interface Entry {
  readonly kind: EntryKind;
  readonly from: number;
  readonly count: number;
  readonly to: number;
  /** The rule as the user wrote it, for messages. */
  readonly rule: string;
}

interface RuleKind {
  /** Numbers after the kind. */
  readonly fields: 2 | 3;
  readonly toHost?: EntryKind;
  readonly toGuest?: EntryKind;
  /** The form shown in messages. */
  readonly form: string;
}

const RULES: Readonly<Record<string, RuleKind>> = {
  map: { fields: 3, toHost: ENTRY.SHIFT, toGuest: ENTRY.SHIFT, form: 'map:GUEST:HOST:COUNT' },
  guest: { fields: 3, toHost: ENTRY.SHIFT, form: 'guest:GUEST:HOST:COUNT' },
  host: { fields: 3, toGuest: ENTRY.SHIFT, form: 'host:HOST:GUEST:COUNT' },
  'squash-guest': { fields: 3, toHost: ENTRY.SQUASH, form: 'squash-guest:GUEST:HOST:COUNT' },
  'squash-host': { fields: 3, toGuest: ENTRY.SQUASH, form: 'squash-host:HOST:GUEST:COUNT' },
  'forbid-guest': { fields: 2, toHost: ENTRY.FORBID, form: 'forbid-guest:GUEST:COUNT' },
};

/** One direction: disjoint source ranges in ascending order. A lookup allocates nothing. */
class Direction {
  readonly #starts: Uint32Array;
  /** Last ID of each range, so that every value fits 32 bits. */
  readonly #lasts: Uint32Array;
  readonly #targets: Uint32Array;
  readonly #kinds: Uint8Array;
  readonly identity: boolean;

  /** @throws Error when two entries overlap; it names the later rule. */
  constructor(entries: readonly Entry[], words: string) {
    for (let later = 1; later < entries.length; later++) {
      for (let earlier = 0; earlier < later; earlier++) {
        const a = entries[earlier]!;
        const b = entries[later]!;
        if (a.from < b.from + b.count && b.from < a.from + a.count) {
          throw new Error(`${b.rule}: overlaps with ${a.rule} (${words})`);
        }
      }
    }
    const sorted = [...entries].sort((a, b) => a.from - b.from);
    this.#starts = Uint32Array.from(sorted, (e) => e.from);
    this.#lasts = Uint32Array.from(sorted, (e) => e.from + e.count - 1);
    this.#targets = Uint32Array.from(sorted, (e) => e.to);
    this.#kinds = Uint8Array.from(sorted, (e) => e.kind);
    this.identity = sorted.every((e) => e.kind !== ENTRY.FORBID && e.to === e.from && (e.kind === ENTRY.SHIFT || e.count === 1));
  }

  translate(id: number): number {
    const starts = this.#starts;
    let low = 0;
    let high = starts.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (starts[middle]! <= id) low = middle + 1;
      else high = middle;
    }
    const i = low - 1;
    if (i < 0 || id > this.#lasts[i]!) return id;
    switch (this.#kinds[i]) {
      case ENTRY.SHIFT:
        return this.#targets[i]! + (id - starts[i]!);
      case ENTRY.SQUASH:
        return this.#targets[i]!;
      default:
        return FORBIDDEN;
    }
  }
}

/** Both directions for one family of IDs. */
export class IdMap {
  readonly #toHost: Direction;
  readonly #toGuest: Direction;
  /** True when no ID changes and none is forbidden: callers may skip the translation. */
  readonly identity: boolean;

  constructor(toHost: readonly Entry[], toGuest: readonly Entry[]) {
    this.#toHost = new Direction(toHost, 'guest to host');
    this.#toGuest = new Direction(toGuest, 'host to guest');
    this.identity = this.#toHost.identity && this.#toGuest.identity;
  }

  /** The host's ID for a guest's ID (unsigned 32 bits), or FORBIDDEN: answer EPERM. */
  toHost(id: number): number {
    return this.#toHost.translate(id);
  }

  /** The guest's ID for a host's ID (unsigned 32 bits). Never fails: virtiofsd has no rule that hides a host ID. */
  toGuest(id: number): number {
    return this.#toGuest.translate(id);
  }
}

/**
 * All rules given for one of the two options, in the order of the command line.
 * @throws Error whose message names the option, the rule and what is wrong with it.
 */
export function parseIdMap(rules: readonly string[], what: 'uid' | 'gid'): IdMap {
  const toHost: Entry[] = [];
  const toGuest: Entry[] = [];
  try {
    for (const rule of rules) addRule(rule, toHost, toGuest);
    return new IdMap(toHost, toGuest);
  } catch (error) {
    assert(error instanceof Error, 'parsing throws only errors');
    throw new Error(`--translate-${what} ${error.message}`);
  }
}

function addRule(rule: string, toHost: Entry[], toGuest: Entry[]): void {
  const name = /^[A-Za-z0-9_-]*/.exec(rule)![0];
  const kind = Object.hasOwn(RULES, name.toLowerCase()) ? RULES[name.toLowerCase()]! : null;
  if (kind === null) {
    throw new Error(`${rule || '(empty)'}: a rule starts with one of ${Object.keys(RULES).join(', ')}, not with "${name}"`);
  }
  const separator = rule.charAt(name.length);
  const texts = separator === '' ? [] : rule.slice(name.length + 1).split(separator);
  if (texts.length !== kind.fields) {
    throw new Error(`${rule}: ${texts.length} numbers instead of ${kind.fields}; the form is ${kind.form}`);
  }
  const numbers = texts.map((text) => parseId(text, rule));
  const from = numbers[0]!;
  const count = numbers[numbers.length - 1]!;
  const to = kind.fields === 3 ? numbers[1]! : from;
  checkEnd(rule, from, count);
  // A range of no IDs is allowed and says nothing.
  if (count === 0) return;
  const squash = kind.toHost === ENTRY.SQUASH || kind.toGuest === ENTRY.SQUASH;
  checkEnd(rule, to, squash ? 1 : count);
  if (kind.toHost !== undefined) toHost.push({ kind: kind.toHost, from, count, to, rule });
  if (kind.toGuest !== undefined) {
    const reverse = kind.toHost !== undefined;
    toGuest.push({ kind: kind.toGuest, from: reverse ? to : from, count, to: reverse ? from : to, rule });
  }
}

/** A decimal number of 32 bits, with a leading plus sign allowed as virtiofsd does. */
function parseId(text: string, rule: string): number {
  const id = /^\+?[0-9]+$/.test(text) ? Number(text) : NaN;
  if (!(id <= NO_ID)) throw new Error(`${rule}: "${text}" is not a number from 0 to ${NO_ID}`);
  return id;
}

function checkEnd(rule: string, base: number, count: number): void {
  if (base + count > NO_ID) {
    throw new Error(`${rule}: the range from ${base} with ${count} IDs ends beyond the last ID, ${NO_ID - 1}`);
  }
}
