/**
 * A disk that fails under the cache directory. Of all calls that a guest's work makes to the cache directory's file system one fails (EIO, ENOSPC, a write that is
 * short), or all from that one on until the disk is repaired (test/storage/failing/). The guest hears that errno and no other, goes on, and then the disk is good:
 *
 *  - all works again; what was acknowledged is in the bucket at the end, also when the daemon is killed meanwhile;
 *  - of a file whose fsync has failed there is a state that it had since it was last safe, never anything else;
 *  - nothing is thrown that nobody catches, no descriptor is left open, a start that is refused says why.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { Durability } from '../../src/storage/object/write/committer.js';
import type { FailingParameters, FailingResult, Scenario } from './failing/failing-program.js';
import { disksUnavailable } from './power/disk.js';
import { isolated } from './power/isolated.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const RUNS = process.env['BUCKETFSD_FAILING_RUNS'];
const ONLY = process.env['BUCKETFSD_FAILING_ONLY'];
const ROW = process.env['BUCKETFSD_FAILING_ROW'];
const RUNS_EACH = 80;

describe('a disk that fails under the cache directory', { skip: disksUnavailable(), concurrency: 2 }, () => {
  for (const durability of ['remote', 'writeback'] as const satisfies readonly Durability[]) {
    for (const scenario of ['fresh', 'recovery', 'torn'] as const satisfies readonly Scenario[]) {
      const row = `${durability}/${scenario}`;
      if (ROW !== undefined && ROW !== row) continue;
      test(row, { timeout: 3_600_000 }, async (context) => {
        const bad: string[] = [];
        let runs = 0;
        const missed: string[] = [];
        let points = 0;
        const parameters: FailingParameters = {
          durability, scenario, seed: SEED, runs: RUNS === 'all' ? null : Number(RUNS ?? RUNS_EACH), ...(ONLY === undefined ? {} : { only: ONLY }),
        };
        await isolated<FailingResult>('../failing/failing-program.js', parameters, (one) => {
          if (process.env['BUCKETFSD_POWER_TRACE'] !== undefined) console.log(JSON.stringify({ row, ...one }));
          if (one.t === 'calls') {
            points = one.points;
            context.diagnostic(`calls: ${Object.entries(one.counts).map(([call, count]) => `${call} ${count}`).join(', ')}`);
            return;
          }
          runs++;
          if (!one.reached) missed.push(one.run);
          if (one.problems.length > 0) bad.push(`${one.run}:\n  ${one.problems.slice(0, 8).join('\n  ')}\n  told: ${one.errors.slice(0, 5).join(', ')}`);
        });
        context.diagnostic(`faults: ${runs} of ${points}, not reached ${missed.length}, bad ${bad.length} (seed ${SEED})${missed.length === 0 ? '' : `; not reached: ${missed.slice(0, 20).join('; ')}`}`);
        assert.equal(bad.length, 0, `\n${bad.join('\n')}\nagain: SEED=${SEED} BUCKETFSD_FAILING_ROW=${row} BUCKETFSD_FAILING_ONLY='...'`);
      });
    }
  }
});
