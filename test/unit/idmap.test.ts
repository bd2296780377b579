import assert from 'node:assert/strict';
import { test } from 'node:test';
import { FORBIDDEN, parseIdMap } from '../../src/storage/local/idmap.js';

const LAST = 0xfffffffe;
const NO_ID = 0xffffffff;

interface ValidRow {
  readonly fact: string;
  readonly rules: readonly string[];
  /** Guest ID and the host ID it becomes. */
  readonly toHost?: readonly (readonly [number, number])[];
  /** Host ID and the guest ID it becomes. */
  readonly toGuest?: readonly (readonly [number, number])[];
}

const VALID: readonly ValidRow[] = [
  { fact: 'no rule: everything stays', rules: [], toHost: [[0, 0], [LAST, LAST], [NO_ID, NO_ID]], toGuest: [[0, 0], [NO_ID, NO_ID]] },
  {
    fact: 'map goes both ways',
    rules: ['map:0:100000:65536'],
    toHost: [[0, 100000], [65535, 165535], [65536, 65536]],
    toGuest: [[100000, 0], [165535, 65535], [165536, 165536], [0, 0]],
  },
  { fact: 'guest goes one way', rules: ['guest:10:20:5'], toHost: [[9, 9], [10, 20], [14, 24], [15, 15]], toGuest: [[20, 20], [10, 10]] },
  { fact: 'host goes the other way', rules: ['host:10:20:5'], toHost: [[10, 10], [20, 20]], toGuest: [[9, 9], [10, 20], [14, 24], [15, 15]] },
  { fact: 'squash-guest makes many into one', rules: ['squash-guest:0:1000:4294967295'], toHost: [[0, 1000], [LAST, 1000], [NO_ID, NO_ID]], toGuest: [[1000, 1000], [0, 0]] },
  { fact: 'squash-host makes many into one', rules: ['squash-host:0:65534:1000'], toHost: [[5, 5]], toGuest: [[0, 65534], [999, 65534], [1000, 1000]] },
  { fact: 'forbid-guest refuses', rules: ['forbid-guest:5:2'], toHost: [[4, 4], [5, FORBIDDEN], [6, FORBIDDEN], [7, 7]], toGuest: [[5, 5], [6, 6]] },
  {
    fact: 'only two IDs allowed, nothing else passes',
    rules: ['forbid-guest:0:1000', 'map:1000:1000:1', 'forbid-guest:1001:999', 'map:2000:2000:1', 'forbid-guest:2001:4294965294'],
    toHost: [[0, FORBIDDEN], [999, FORBIDDEN], [1000, 1000], [1001, FORBIDDEN], [1999, FORBIDDEN], [2000, 2000], [LAST, FORBIDDEN]],
  },
  { fact: 'the directions do not disturb each other', rules: ['guest:0:5:2', 'host:0:9:2'], toHost: [[0, 5], [1, 6]], toGuest: [[0, 9], [1, 10]] },
  { fact: 'the order of rules does not matter', rules: ['guest:20:200:1', 'guest:0:100:1', 'guest:10:300:1'], toHost: [[0, 100], [10, 300], [20, 200], [15, 15]] },
  { fact: 'several guest IDs may become one host ID', rules: ['map:0:1000:10', 'guest:20:1000:1'], toHost: [[0, 1000], [20, 1000]], toGuest: [[1000, 0]] },
  { fact: 'a range of no IDs says nothing, even inside another', rules: ['forbid-guest:0:10', 'map:5:5:0'], toHost: [[5, FORBIDDEN]], toGuest: [[5, 5]] },
  { fact: 'the separator is free', rules: ['map/1/2/1', 'map,3,4,1', 'guest 5 6 1'], toHost: [[1, 2], [3, 4], [5, 6]] },
  { fact: 'the kind may be written in capitals', rules: ['Squash-Guest:1:2:1'], toHost: [[1, 2]] },
  { fact: 'a plus sign is a part of a number', rules: ['map:+1:+2:+1'], toHost: [[1, 2]] },
];

for (const row of VALID) {
  test(`ID map: ${row.fact}`, () => {
    const map = parseIdMap(row.rules, 'uid');
    for (const [guest, host] of row.toHost ?? []) assert.equal(map.toHost(guest), host, `guest ${guest}`);
    for (const [host, guest] of row.toGuest ?? []) assert.equal(map.toGuest(host), guest, `host ${host}`);
  });
}

const INVALID: readonly (readonly [fact: string, rules: readonly string[], message: RegExp])[] = [
  ['an empty rule', [''], /--translate-uid \(empty\): a rule starts with one of map, /],
  ['a kind that is none', ['forbid-host:0:1'], /forbid-host:0:1: a rule starts with one of .* not with "forbid-host"/],
  ['a name every object has', ['constructor:0:1:1'], /a rule starts with one of/],
  ['a separator before the kind', [':map:0:1:1'], /a rule starts with one of/],
  ['a kind alone', ['map'], /map: 0 numbers instead of 3; the form is map:GUEST:HOST:COUNT/],
  ['too few numbers', ['map:0:1000'], /2 numbers instead of 3/],
  ['too many numbers', ['forbid-guest:0:5:5'], /3 numbers instead of 2; the form is forbid-guest:GUEST:COUNT/],
  ['a separator at the end', ['map:0:1000:5:'], /4 numbers instead of 3/],
  ['an empty number', ['map::1:1'], /"" is not a number/],
  ['two separators', ['map:0:1/1'], /2 numbers instead of 3/],
  ['a hexadecimal number', ['map:0:0x5:1'], /"0x5" is not a number/],
  ['a space in a number', ['map:0: 1:1'], /" 1" is not a number/],
  ['a negative number', ['map:-1:0:1'], /"-1" is not a number/],
  ['a number beyond 32 bits', ['map:0:1:4294967296'], /"4294967296" is not a number from 0 to 4294967295/],
  ['a range that takes in the ID that means none', ['squash-guest:1:1000:4294967295'], /the range from 1 with 4294967295 IDs ends beyond the last ID, 4294967294/],
  ['a forbidden range that runs over the end', ['forbid-guest:1001:4294967295'], /ends beyond the last ID/],
  ['a target range that runs over the end', ['guest:0:4294967290:20'], /the range from 4294967290 with 20 IDs ends beyond/],
  ['the ID that means none as a target', ['squash-guest:0:4294967295:1'], /ends beyond the last ID/],
  ['two ranges of guest IDs that overlap', ['map:0:1000:10', 'map:9:2000:1'], /map:9:2000:1: overlaps with map:0:1000:10 \(guest to host\)/],
  ['two ranges of host IDs that overlap', ['map:0:1000:10', 'host:1005:50:1'], /host:1005:50:1: overlaps with map:0:1000:10 \(host to guest\)/],
  ['kinds that contradict each other', ['squash-guest:0:5:10', 'forbid-guest:5:1'], /forbid-guest:5:1: overlaps/],
  ['the same rule twice', ['guest:1:2:1', 'guest:1:2:1'], /overlaps/],
];

for (const [fact, rules, message] of INVALID) {
  test(`ID map refuses ${fact}`, () => assert.throws(() => parseIdMap(rules, 'uid'), message));
}

test('messages name the option they are about', () => {
  assert.throws(() => parseIdMap(['x:1'], 'gid'), /^Error: --translate-gid x:1: /);
});

test('a map that changes nothing says so', () => {
  assert.equal(parseIdMap([], 'uid').identity, true);
  assert.equal(parseIdMap(['map:0:0:65536', 'squash-host:70000:70000:1'], 'uid').identity, true);
  assert.equal(parseIdMap(['map:0:1:0'], 'uid').identity, true);
  for (const rule of ['map:0:1:1', 'guest:0:1:1', 'host:0:1:1', 'squash-guest:0:0:2', 'squash-host:0:0:2', 'forbid-guest:0:1']) {
    assert.equal(parseIdMap([rule], 'uid').identity, false, rule);
  }
});

/** Numbers from a seed that a failed run can be repeated with. */
function randomFrom(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    // mulberry32
    state = (state + 0x6d2b79f5) >>> 0;
    let x = Math.imul(state ^ (state >>> 15), state | 1);
    x ^= x + Math.imul(x ^ (x >>> 7), x | 61);
    return Math.floor((((x ^ (x >>> 14)) >>> 0) / 2 ** 32) * below);
  };
}

/** `pieces` disjoint ranges with gaps of at least one ID, in random order. */
function disjointRanges(random: (below: number) => number, counts: readonly number[]): number[] {
  let next = random(1000);
  const starts = counts.map((count) => {
    const start = next;
    next += count + 1 + random(1_000_000);
    return start;
  });
  return starts;
}

test('with map rules only, every mapped ID comes back from the host as it went', (t) => {
  const seed = Number(process.env['SEED'] ?? Date.now() % 2 ** 32);
  t.diagnostic(`SEED=${seed}`);
  const random = randomFrom(seed);
  for (let round = 0; round < 200; round++) {
    const counts = Array.from({ length: 1 + random(40) }, () => 1 + random(70_000));
    const guests = disjointRanges(random, counts);
    const order = counts.map((_, i) => i).sort(() => random(3) - 1);
    const inOrder = disjointRanges(random, order.map((i) => counts[i]!));
    const hosts = counts.map((_, i) => inOrder[order.indexOf(i)]!);
    const map = parseIdMap(counts.map((count, i) => `map:${guests[i]}:${hosts[i]}:${count}`), 'uid');
    for (let i = 0; i < counts.length; i++) {
      for (const offset of [0, counts[i]! - 1, random(counts[i]!)]) {
        const guest = guests[i]! + offset;
        assert.equal(map.toHost(guest), hosts[i]! + offset, `seed ${seed}, round ${round}, guest ${guest}`);
        assert.equal(map.toGuest(map.toHost(guest)), guest, `seed ${seed}, round ${round}, guest ${guest}`);
      }
      assert.equal(map.toHost(guests[i]! + counts[i]!), guests[i]! + counts[i]!, 'the gap behind a range is not mapped');
    }
  }
});
