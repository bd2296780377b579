/** Power failures that were found by chance (power.test.ts), each in a few steps: what was confirmed is there, and nothing that never was. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { CaseResult, CasesParameters } from './power/cases-program.js';
import { diskFormats, disksUnavailable } from './power/disk.js';
import { isolated } from './power/isolated.js';

describe('power fails after', { skip: disksUnavailable() }, () => {
  if (disksUnavailable() !== false) return;
  // They are about the journal, whatever file system it is on
  for (const format of diskFormats((line) => console.log(line)).slice(0, 1)) {
    describe(format.name, async () => {
      const results: CaseResult[] = [];
      await isolated<CaseResult>('cases-program.js', { format } satisfies CasesParameters, (one) => void results.push(one));
      for (const { name, problems } of results) test(name, () => assert.deepEqual(problems, []));
    });
  }
});
