/** The fuzzers for a while; BUCKETFSD_FUZZ_SECONDS in all, BUCKETFSD_FUZZ_SEED to repeat. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { fuzz } from './fuzz.js';

const seconds = Number(process.env.BUCKETFSD_FUZZ_SECONDS ?? 60);
const seed = Number(process.env.BUCKETFSD_FUZZ_SEED ?? Date.now() >>> 0);

for (const target of ['ring', 'vhost', 'fuse'] as const) {
  test(`fuzzing ${target} with seed ${seed} finds nothing`, async () => {
    assert.ok((await fuzz(target, seed, seconds / 3)) > 0);
  });
}
