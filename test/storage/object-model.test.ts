/**
 * Random operations of a guest on a bucket, with others changing it and the daemon being killed in between, against a model of POSIX
 * in memory (test/model/model.ts): each answer, at the end the whole tree as guests find it, and every object of the bucket.
 *
 * SEED repeats a run from its first sequence on; BUCKETFSD_OBJECT_SEQUENCES says how many each configuration runs.
 */
import { test } from 'node:test';
import { minimised, planOf, runSequence } from './object-model/sequence.js';

const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 55);
const FIRST_SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
/** So long shorter sequences are tried that fail as well. */
const MINIMISE_MS = 15_000;

for (const durability of ['remote', 'writeback'] as const) {
  for (const posix of ['lazy', 'full'] as const) {
    test(`a bucket does what the model does: --durability=${durability} --posix-metadata=${posix}`, async (context) => {
      context.diagnostic(`SEED=${FIRST_SEED}`);
      let operations = 0;
      for (let seed = FIRST_SEED; seed < FIRST_SEED + SEQUENCES; seed++) {
        const { settings, steps } = planOf(seed, { durability, posix });
        operations += steps.length;
        const failure = await runSequence(settings, steps);
        if (failure === null) continue;
        const shortest = await minimised(settings, steps, failure, performance.now() + MINIMISE_MS);
        const { error, history } = shortest.failure;
        throw new Error([
          `SEED=${seed} BUCKETFSD_OBJECT_SEQUENCES=1, ${steps.length} operations, ${shortest.steps.length} of them enough: ${error.message}`,
          `  ${JSON.stringify(settings)}`, ...history.map((line) => `  ${line}`),
        ].join('\n'), { cause: error });
      }
      context.diagnostic(`${SEQUENCES} sequences, ${operations} operations`);
    });
  }
}
