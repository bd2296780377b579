/**
 * The object file system in a simulated world: time, network, bucket, other clients and the machine are the seed's. See docs/TESTING.md.
 *
 * A seed does the same each time. Without BUCKETFSD_SIMULATION_SEEDS the same 400 are played in each run; with it so many, half of them by chance; with SEED,
 * those from that one on. What fails is printed with the command that plays it again.
 */
import './builtins.js';
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Ledger } from '../../src/storage/object/write/ledger.js';
import { Bucket } from './bucket.js';
import type { ViolationKind } from './model/oracle.js';
import { emptySummary, play, playAll, summaryText } from './seeds.js';
import { settingsOf } from './settings.js';

const { SEED } = process.env;
const FIRST_SEED = Number(SEED ?? 1);
const RANDOM_SEED = 1_000_000 + Math.floor(Math.random() * 1e9);
const { BUCKETFSD_SIMULATION_SEEDS = '' } = process.env;
const SEEDS = Number(BUCKETFSD_SIMULATION_SEEDS || 400);
const FIRST_SEEDS = SEED === undefined && BUCKETFSD_SIMULATION_SEEDS !== '' ? [FIRST_SEED, RANDOM_SEED] : [FIRST_SEED];
/** So long fewer steps and faults are tried that fail as well. */
const MINIMISE_MS = 20_000;
const REPLAYED = 8;
/** In so many seeds at most what is broken on purpose has to be seen. */
const BROKEN_SEEDS = 60;

describe('the object file system in a simulated world', () => {
  test('a seed is played in the same way each time', async () => {
    for (let seed = FIRST_SEED; seed < FIRST_SEED + REPLAYED; seed++) {
      const settings = settingsOf(seed, false);
      const [one, other] = [await play(settings), await play(settings)];
      assert.deepEqual([one.hash, one.events], [other.hash, other.events], `SEED=${seed}`);
    }
  });

  for (const alone of [true, false]) {
    for (const first of FIRST_SEEDS) {
      const what = `whatever the network does${alone ? '' : ', and other clients do'}, nothing that was acknowledged is lost, damaged or made a conflict without need`;
      test(`${what} (SEED=${first})`, async (context) => {
        const summary = emptySummary();
        const failure = await playAll(first, Math.ceil(SEEDS / 2 / FIRST_SEEDS.length), alone, summary, MINIMISE_MS);
        context.diagnostic(summaryText(summary));
        if (failure !== null) assert.fail(failure);
      });
    }
  }

  test('a journal that forgets a write is seen', async () => {
    const { append } = Ledger.prototype;
    await seen(['content', 'lost', 'read'], (isBroken) => {
      Ledger.prototype.append = !isBroken ? append : function (this: Ledger, record): void {
        if (record.t !== 'wrote') append.call(this, record);
      };
    });
  });

  test('a provider that accepts conditions and ignores them is seen', async () => {
    const { put } = Bucket.prototype;
    await seen(['overwritten'], (isBroken) => {
      Bucket.prototype.put = !isBroken ? put : function (this: Bucket, call, content, { condition: _condition, ...options }) {
        return put.call(this, call, content, options);
      };
    });
  });
});

/** While something is broken a seed tells in which nothing is wrong without that. */
async function seen(kinds: readonly ViolationKind[], setBroken: (isBroken: boolean) => void): Promise<void> {
  for (let seed = FIRST_SEED; seed < FIRST_SEED + BROKEN_SEEDS; seed++) {
    setBroken(true);
    const { violation } = await play(settingsOf(seed, false)).finally(() => setBroken(false));
    if (violation !== null && kinds.includes(violation.kind) && (await play(settingsOf(seed, false))).violation === null) return;
  }
  assert.fail('nobody has noticed');
}
