/** How files are cut into the parts of an upload, within whatever a provider's limits are: see src/storage/object/write/layout.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Extents } from '../../src/storage/object/extents.js';
import type { Limits } from '../../src/storage/object/store.js';
import { cellsOf, growingLayout, uniformLayout, type CommitSizes } from '../../src/storage/object/write/layout.js';
import { Random } from '../model/random.js';

const ROUNDS = 3000;
const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const KIB = 1 << 10;

test('parts cover the file once, in order, within the limits, and copy only what is as it was', (t) => {
  t.diagnostic(`SEED=${SEED}`);
  const random = new Random(SEED);
  let copies = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const partMinBytes = random.pick([0, 1, 4 * KIB, 5000]);
    const partBytes = random.pick([4 * KIB, 8 * KIB, 64 * KIB]);
    const partMaxBytes = random.pick([64 * KIB, 70_000, 1 << 30]);
    const limits: Limits = { keyBytes: 1024, metadataBytes: 2048, putBytes: partMaxBytes, objectBytes: 1 << 40, partMinBytes, partMaxBytes, parts: random.pick([3, 20, 100]) };
    const sizes: CommitSizes = { putMaxBytes: 0, partBytes, copyMaxBytes: random.pick([partBytes, 1 << 30]), growAfterParts: random.pick([1, 4]), partsAtOnce: 1 };
    const baseBytes = random.below(300 * KIB);
    const extents = new Extents(baseBytes);
    for (let write = random.below(4); write > 0; write--) {
      const from = random.chance(50) ? extents.size : random.below(extents.size + 1);
      extents.write(from, from + 1 + random.below(40 * KIB));
    }
    if (random.chance(20)) extents.truncate(1 + random.below(400 * KIB));
    const { size } = extents;
    const layout = random.chance(50) ? growingLayout(sizes, limits) : uniformLayout(size, sizes, limits);
    if (layout === null || layout.capacity < size || size === 0) continue;
    const copyPart = random.pick(['range', 'whole', 'none'] as const);
    const cells = cellsOf(extents, layout, baseBytes, sizes, limits, copyPart);
    const told = `round ${round}: ${JSON.stringify({ limits, sizes, baseBytes, staged: extents.staged, size, copyPart, cells })}`;
    for (const [i, { number, from, to, copied }] of cells.entries()) {
      const before = cells[i - 1];
      assert.equal(from, before?.to ?? 0, told);
      assert.ok(number > (before?.number ?? 0) && number <= limits.parts, told);
      assert.ok(to > from && to - from <= partMaxBytes && (to === size || to - from >= partMinBytes), told);
      if (!copied) continue;
      copies++;
      assert.ok(to <= extents.objectBytes && extents.staged.every((extent) => extent.to <= from || extent.from >= to), told);
      assert.ok(copyPart === 'range' || (copyPart === 'whole' && from === 0 && to === baseBytes), told);
    }
    assert.equal(cells.at(-1)!.to, size, told);
  }
  assert.ok(copies > ROUNDS / 20, `${copies} copies`);
});
