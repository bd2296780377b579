/** How files are cut into the parts of an upload, within whatever a provider's limits are: see src/storage/object/write/layout.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Extents } from '../../src/storage/object/extents.js';
import type { Limits } from '../../src/storage/object/store.js';
import { GCS_LIMITS } from '../../src/storage/object/stores/gcs.js';
import { S3_LIMITS } from '../../src/storage/object/stores/s3.js';
import { cellsOf, COMMIT_SIZES, excessOf, fileMaxBytes, growingLayout, layoutFor, zeroSizes, type CommitSizes, type Copies } from '../../src/storage/object/write/layout.js';
import { Random } from '../model/random.js';

const ROUNDS = 3000;
const SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const KIB = 1 << 10;

test('parts cover the file once, in order, within the limits, and copy only what is as it was', (t) => {
  t.diagnostic(`SEED=${SEED}`);
  const random = new Random(SEED);
  let copied = 0;
  let holes = 0;
  for (let round = 0; round < ROUNDS; round++) {
    const partMinBytes = random.pick([0, 1, 4 * KIB, 5000]);
    const partBytes = random.pick([4 * KIB, 8 * KIB, 64 * KIB]);
    const partMaxBytes = random.pick([64 * KIB, 70_000, 1 << 30]);
    const limits: Limits = { keyBytes: 1024, metadataBytes: 2048, putBytes: partMaxBytes, objectBytes: 1 << 40, partMinBytes, partMaxBytes, parts: random.pick([3, 20, 100]) };
    const sizes: CommitSizes = {
      putMaxBytes: 0, partBytes, copyMaxBytes: random.pick([partBytes, 1 << 30]), growAfterParts: random.pick([1, 4]), partsAtOnce: 1, zeroBytes: 2 * partBytes,
      holeBytes: random.pick([0, 50 * KIB]),
    };
    const baseBytes = random.below(300 * KIB);
    const extents = new Extents(baseBytes);
    const most = random.pick([40 * KIB, 400 * KIB]);
    for (let write = random.below(5); write > 0; write--) {
      const from = random.chance(50) ? extents.size + random.pick([0, random.below(most)]) : random.below(extents.size + 1);
      const to = from + 1 + random.below(40 * KIB);
      if (random.chance(30)) extents.zero(from, to + random.below(most));
      else extents.write(from, to);
    }
    if (random.chance(20)) extents.truncate(1 + random.below(most));
    const { size } = extents;
    const copyPart = random.pick(['range', 'whole', 'none'] as const);
    const copies: Copies = { base: random.pick([copyPart, 'none']), baseBytes, zeros: copyPart };
    const layout = random.chance(50) ? growingLayout(sizes, limits) : layoutFor(extents, copies, sizes, limits);
    if (layout === null || layout.capacity < size || size === 0) continue;
    const cells = cellsOf(extents, layout, copies, sizes, limits);
    const zeros = extents.zeros();
    const told = `round ${round}: ${JSON.stringify({ limits, sizes, copies, staged: extents.staged, zeros, size, cells })}`;
    for (const [i, { number, from, to, source }] of cells.entries()) {
      const before = cells[i - 1];
      assert.equal(from, before?.to ?? 0, told);
      assert.ok(number > (before?.number ?? 0) && number <= limits.parts, told);
      assert.ok(to > from && to - from <= partMaxBytes && (to === size || to - from >= partMinBytes), told);
      if (source === 'object') {
        copied++;
        assert.ok(to <= extents.objectBytes && extents.staged.every((extent) => extent.to <= from || extent.from >= to), told);
        assert.ok(copies.base === 'range' || (copies.base === 'whole' && from === 0 && to === baseBytes), told);
      } else if (source === 'zeros') {
        holes++;
        assert.ok(zeros.some((one) => one.from <= from && to <= one.to), told);
        assert.ok(copies.zeros === 'range' || (copies.zeros === 'whole' && zeroSizes(sizes, limits).includes(to - from)), told);
      }
    }
    assert.equal(cells.at(-1)!.to, size, told);
  }
  assert.ok(copied > ROUNDS / 20 && holes > ROUNDS / 20, `${copied} copies, ${holes} holes`);
});

describe('a file with a few bytes in large holes', () => {
  const [MIB, GIB, TIB] = [2 ** 20, 2 ** 30, 2 ** 40];
  const providers = [['S3', S3_LIMITS, 'range'], ['Google Cloud Storage', GCS_LIMITS, 'whole']] as const;
  for (const [provider, limits, copyPart] of providers) {
    for (const [size, parts] of [[200 * MIB, 30], [40 * GIB, 100], [TIB, 1100], [0.9 * limits.objectBytes, 10_000]] as const) {
      test(`is sent in a few parts, the rest copied in no more than ${parts}: ${size} bytes on ${provider}`, () => {
        const extents = new Extents(0);
        for (const at of [0, size / 3, size - 3]) extents.write(Math.floor(at), Math.floor(at) + 3);
        const copies: Copies = { base: 'none', baseBytes: 0, zeros: copyPart };
        const layout = layoutFor(extents, copies, COMMIT_SIZES, limits)!;
        const cells = cellsOf(extents, layout, copies, COMMIT_SIZES, limits);
        assert.ok(excessOf(cells, extents) <= 6 * 32 * MIB, `${excessOf(cells, extents)} bytes more than data`);
        assert.ok(cells.length <= parts, `${cells.length} parts`);
        assert.equal(fileMaxBytes(limits), limits.objectBytes);
      });
    }
  }

  test('and one of which bytes here and there are changed sends no more than a part for each', () => {
    const extents = new Extents(TIB);
    for (let i = 1; i < 100; i++) extents.write(i * 10 * GIB + 12_345, i * 10 * GIB + 12_348);
    const copies: Copies = { base: 'range', baseBytes: TIB, zeros: 'range' };
    const cells = cellsOf(extents, layoutFor(extents, copies, COMMIT_SIZES, S3_LIMITS)!, copies, COMMIT_SIZES, S3_LIMITS);
    assert.ok(excessOf(cells, extents) <= 99 * COMMIT_SIZES.partBytes, `${excessOf(cells, extents)} bytes`);
    assert.ok(cells.length <= S3_LIMITS.parts);
  });
});
