/** The block cache's table against a naive one: see src/storage/object/blocks/block-table.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { BlockTable } from '../../src/storage/object/blocks/block-table.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);

/** Mulberry32. */
function random(seed: number): () => number {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}

/** Few words, so that hashes and ids often agree in part. */
const idOf = (n: number): Uint32Array => Uint32Array.of(n & 3, n >> 2, 7, n & 1);

test(`blocks are found, used and removed as in a plain list (SEED=${SEED})`, () => {
  const next = random(SEED);
  const pick = (count: number): number => Math.floor(next() * count);
  for (let round = 0; round < 20; round++) {
    const table = new BlockTable(1 + pick(100));
    let order: { name: string; slot: number }[] = []; // oldest first
    for (let step = 0; step < 2000; step++) {
      const [n, block] = [pick(40), pick(8)];
      const name = `${n}:${block}`;
      const known = order.find((one) => one.name === name);
      assert.equal(table.find(idOf(n), block), known?.slot ?? -1);
      if (known !== undefined && next() < 0.5) {
        order = [...order.filter((one) => one !== known), known];
        table.touch(known.slot);
      } else if (known !== undefined) {
        order = order.filter((one) => one !== known);
        table.remove(known.slot);
        table.release(known.slot);
      } else {
        let slot = table.take();
        if (slot < 0) {
          assert.equal(order.length, table.slots);
          slot = table.oldest;
          assert.equal(slot, order.shift()!.slot, 'the one that was used least recently');
          table.remove(slot);
        }
        table.add(slot, idOf(n), block, 1 + pick(100), pick(2 ** 32));
        order.push({ name, slot });
      }
      assert.equal(table.count, order.length);
    }
    const walked: number[] = [];
    for (let slot = table.oldest; slot >= 0; slot = table.after(slot)) walked.push(slot);
    assert.deepEqual(walked, order.map((one) => one.slot));
  }
});

test('what is restored is in the order of its use, and slots between are free', () => {
  const table = new BlockTable(10);
  table.restore(1, idOf(1), 0, 10, 0, 30);
  table.restore(4, idOf(2), 0, 10, 0, 10);
  table.restore(5, idOf(3), 9, 10, 0, 20);
  table.restored();
  assert.deepEqual([table.oldest, table.after(4), table.after(5), table.after(1)], [4, 5, 1, -1]);
  const taken = new Set([table.take(), table.take(), table.take(), table.take(), table.take(), table.take(), table.take()]);
  assert.deepEqual([...taken].sort(), [0, 2, 3, 6, 7, 8, 9]);
  assert.equal(table.take(), -1);
  table.touch(4);
  assert.ok(table.used[4] > 30);
});
