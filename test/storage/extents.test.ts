/** Staged ranges against a model that knows each byte: see src/storage/object/extents.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Extents } from '../../src/storage/object/extents.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);

test('writes join what they touch; truncating cuts, and what was cut off stays gone', () => {
  const file = new Extents(100);
  assert.ok(file.untouched);
  file.write(10, 20);
  file.write(30, 40);
  assert.deepEqual(file.staged, [{ from: 10, to: 20 }, { from: 30, to: 40 }]);
  file.write(20, 30);
  assert.deepEqual(file.staged, [{ from: 10, to: 40 }]);
  file.truncate(35);
  file.truncate(120);
  assert.deepEqual(file.pieces(), [
    { from: 0, to: 10, where: 'object' }, { from: 10, to: 35, where: 'staged' }, { from: 35, to: 120, where: 'zeros' },
  ]);
  file.write(200, 201);
  assert.deepEqual([file.size, file.objectBytes], [201, 35]);
  assert.deepEqual(file.pieces(190, 500), [{ from: 190, to: 200, where: 'zeros' }, { from: 200, to: 201, where: 'staged' }]);
});

test(`any writes and truncations make the pieces that they make byte by byte (SEED=${SEED})`, () => {
  let state = SEED >>> 0 || 1;
  const random = (n: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
  for (let round = 0; round < 300; round++) {
    const object = random(60);
    const file = new Extents(object);
    let model: string[] = Array.from({ length: object }, () => 'object');
    for (let step = random(25); step > 0; step--) {
      if (random(4) === 0) {
        const size = random(90);
        file.truncate(size);
        model = Array.from({ length: size }, (_, i) => model[i] ?? 'zeros');
      } else {
        const from = random(80);
        const to = from + random(15);
        const zero = random(3) === 0;
        if (zero) file.zero(from, to);
        else file.write(from, to);
        if (to > from) {
          for (let i = model.length; i < from; i++) model[i] = 'zeros';
          for (let i = from; i < to; i++) model[i] = zero ? 'zeroed' : 'staged';
        }
      }
      assert.equal(file.size, model.length);
      for (let i = 1; i < file.staged.length; i++) assert.ok(file.staged[i].from > file.staged[i - 1].to, 'apart from each other');
      const [from, to] = [random(90), random(100)].sort((a, b) => a - b);
      const seen: string[] = [];
      let at = from;
      for (const piece of file.pieces(from, to)) {
        assert.equal(piece.from, at, 'without gaps');
        assert.ok(piece.to > piece.from);
        for (; at < piece.to; at++) seen.push(piece.where);
      }
      assert.deepEqual(seen, model.slice(from, to).map((where) => (where === 'zeroed' ? 'staged' : where)), `${from} to ${to}`);
      const zeros = file.zeros();
      for (let i = 1; i < zeros.length; i++) assert.ok(zeros[i].from > zeros[i - 1].to, 'apart from each other');
      assert.deepEqual(model.map((where) => where.startsWith('zero')), model.map((_, i) => zeros.some((one) => one.from <= i && i < one.to)));
    }
  }
});
