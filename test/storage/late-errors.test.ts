/**
 * The host's disk fails while the kernel writes back: a write was answered, its pages are gone, and the staging file has zeros, or what was there before. Only one fsync of that file
 * hears of it. What was written may be lost then; it must be said, and nothing else may become of the object.
 *
 *  - fsync and close fail, or the object is what was written; the first time and each time after, until all is written again;
 *  - no zeros in the bucket: not by fsync, not by close, not in the background, and not by the daemon that comes after.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { LateParameters, LateResult } from './failing/late-program.js';
import { diskFormats, disksUnavailable } from './power/disk.js';
import { isolated } from './power/isolated.js';

describe('what the kernel could not write back', { skip: disksUnavailable(), concurrency: 2 }, () => {
  if (disksUnavailable() !== false) return;
  for (const format of diskFormats((line) => console.log(line))) {
    test(`is not taken for what was written: ${format.name}`, { timeout: 300_000 }, async (context) => {
      const results: LateResult[] = [];
      await isolated<LateResult>('../failing/late-program.js', { format } satisfies LateParameters, (one) => void results.push(one));
      const bad = results.filter(({ problems }) => problems.length > 0);
      context.diagnostic(`${results.length} cases, bad ${bad.length}; told an error in ${results.filter(({ told }) => /[1-9]/.test(told)).length}`);
      assert.deepEqual(bad.map(({ name, told, problems }) => `${name} (${told}): ${problems.join('; ')}`), []);
      assert.equal(results.length, 80);
    });
  }
});
