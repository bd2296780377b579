/**
 * What was acknowledged survives power failures. The cache directory is on a disk of the tests (test/storage/power/disk.ts); while a guest's programs work, all
 * that reaches the disk is recorded, and what happens in the bucket. Then power fails at moments of that: of the disk there is what was flushed, and any part of the
 * rest. A daemon starts on it, after another boot, with the bucket as it was at that moment. When it has ended, the bucket has to be what the guest was told:
 *
 *  - what fsync or close has confirmed is there, under a name that it had since then;
 *  - each file is as it was at some moment since it was last confirmed, never anything else, and no zeros;
 *  - no conflict, nothing left in the journal, in the cache directory or of uploads; the start is never refused.
 *
 * Some of them fail again while the daemon starts and commits.
 */
import assert from 'node:assert/strict';
import { rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import type { Durability } from '../../src/storage/object/write/committer.js';
import { diskFormats, disksUnavailable, type DiskFormat } from './power/disk.js';
import { isolated } from './power/isolated.js';
import type { PowerParameters, PowerResult } from './power/power-program.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const STATES = Number(process.env['BUCKETFSD_POWER_STATES'] ?? 320);
const AGAIN = process.env['BUCKETFSD_POWER_AGAIN'];
const ROW = process.env['BUCKETFSD_POWER_ROW'];
const TRACES = process.env['BUCKETFSD_POWER_TRACE'] !== undefined;
const KEEP = join(tmpdir(), 'bucketfsd-power-states');
const KEEP_MAX = Number(process.env['BUCKETFSD_POWER_KEEP'] ?? 3);
const SHOWN_MAX = 10;
const STATES_EACH = 27;
const TIMEOUT_MS = 3_600_000;

interface Row {
  readonly format: DiskFormat;
  readonly durability: Durability;
}

class Outcome {
  states = 0;
  recordings = 0;
  answered = 0;
  mutations = 0;
  readonly bad: string[] = [];

  add(other: Outcome): void {
    for (const field of ['states', 'recordings', 'answered', 'mutations'] as const) this[field] += other[field];
    this.bad.push(...other.bad);
  }

  toString(): string {
    return `power failures: states ${this.states}, bad ${this.bad.length} (seed ${SEED}; ${this.recordings} recordings, ${this.answered} requests answered, ${this.mutations} changes of the bucket)`;
  }
}

/** Of every row that ran. */
const all = new Outcome();
let kept = 0;

async function run(row: Row, seed: number, states: number, outcome: Outcome, again?: string): Promise<void> {
  const parameters: PowerParameters = { ...row, seed, states, keep: KEEP, keepMax: Math.max(0, KEEP_MAX - kept), ...(again === undefined ? {} : { again }) };
  await isolated<PowerResult>('power-program.js', parameters, (one) => {
    if (TRACES) console.log(JSON.stringify(one));
    if (one.t === 'recorded') {
      outcome.recordings++;
      outcome.answered += one.answered;
      outcome.mutations += one.mutations;
      return;
    }
    outcome.states++;
    if (one.problems.length === 0) return;
    if (one.kept !== null) kept++;
    const way = one.kept === null ? '' : `\n  again: BUCKETFSD_POWER_AGAIN=${one.kept}`;
    outcome.bad.push(`${row.format.name}, ${row.durability}, seed ${seed}, ${one.state}:\n  ${one.problems.slice(0, 8).join('\n  ')}${way}`);
  });
}

describe('what was acknowledged survives power failures', { skip: disksUnavailable(), concurrency: 2 }, () => {
  if (disksUnavailable() !== false) return;
  if (AGAIN !== undefined) {
    test('in the state that was kept', async () => {
      const outcome = new Outcome();
      await run({ format: diskFormats(() => undefined)[0], durability: 'remote' }, 0, 1, outcome, AGAIN);
      assert.deepEqual(outcome.bad, []);
    });
    return;
  }
  rmSync(KEEP, { recursive: true, force: true });
  const rows = diskFormats((line) => console.log(line)).flatMap((format) => (['remote', 'writeback'] as const).map((durability): Row => ({ format, durability })));
  const recordings = Math.ceil(STATES / rows.length / STATES_EACH);
  for (const [i, row] of rows.entries()) {
    const name = `${row.format.name}/${row.durability}`;
    if (ROW !== undefined && ROW !== name) continue;
    test(name, { timeout: TIMEOUT_MS }, async (context) => {
      const outcome = new Outcome();
      for (let n = 0; n < recordings; n++) await run(row, (SEED + 1000 * i + n) % 2 ** 31, STATES_EACH, outcome);
      all.add(outcome);
      context.diagnostic(String(outcome));
      assert.equal(outcome.bad.length, 0, `\n${outcome.bad.slice(0, SHOWN_MAX).join('\n')}`);
      assert.ok(outcome.states >= recordings * STATES_EACH);
    });
  }
});

test('of all power failures nothing is lost', { skip: disksUnavailable() }, (context) => {
  context.diagnostic(String(all));
  assert.equal(all.bad.length, 0);
  if (AGAIN === undefined && ROW === undefined) assert.ok(all.states >= STATES, `${all.states} states`);
});
