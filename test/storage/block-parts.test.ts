/** Parts of blocks in the block cache: see src/storage/object/blocks/granules.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { CachedObject } from '../../src/storage/object/blocks/cached-object.js';
import { assertSpace, BLOCK, blocksOf, CONTENT, keep, open, read, scratchDirectory, theObject } from '../support/blocks.js';

/** [from, to) was asked for and fetched; whole blocks are not. */
async function part(object: CachedObject, from: number, to: number): Promise<void> {
  await object.missed(from, to, CONTENT.subarray(from, to), () => false);
}

/** Which granules of a block are there, and right. */
async function granulesOf(object: CachedObject, block: number): Promise<number[]> {
  const there: number[] = [];
  for (let at = block * BLOCK; at < object.endOf(block); at += 4096) {
    const to = Math.min(object.endOf(block), at + 4096);
    const got = await read(object, at, to - at);
    if (got === null) continue;
    assert.ok(got.equals(CONTENT.subarray(at, to)), `what is at ${at} is what was kept`);
    there.push((at - block * BLOCK) / 4096);
  }
  return there;
}

describe('a part of a block', () => {
  test('is there as far as it makes whole granules, and takes only as much space; what is around it is not there', async (t) => {
    const { cache, budget } = await open(scratchDirectory(t));
    const object = theObject(cache);
    await part(object, BLOCK + 100, BLOCK + 3 * 4096 + 50);
    assert.ok((await read(object, BLOCK + 4096, 2 * 4096))!.equals(CONTENT.subarray(BLOCK + 4096, BLOCK + 3 * 4096)));
    assert.ok((await read(object, BLOCK + 5000, 1))!.equals(CONTENT.subarray(BLOCK + 5000, BLOCK + 5001)));
    for (const [at, bytes] of [[BLOCK + 4095, 1], [BLOCK + 4095, 2], [BLOCK + 3 * 4096, 1], [BLOCK + 3 * 4096 - 1, 2], [BLOCK, BLOCK], [4096, 4096], [2 * BLOCK + 4096, 1]]) {
      assert.equal(await read(object, at, bytes), null, `${bytes} at ${at}`);
    }
    assert.deepEqual([cache.slots.used, cache.has(object.id, 1), object.missingFrom(BLOCK, 2 * BLOCK)], [2 * 4096, false, BLOCK]);
    await part(object, BLOCK + 2 * 4096, BLOCK + 4 * 4096);
    await part(object, BLOCK + 15 * 4096, 2 * BLOCK + 4096);
    assert.deepEqual([await granulesOf(object, 1), await granulesOf(object, 2), cache.slots.used], [[1, 2, 3, 15], [0], 5 * 4096]);
    await part(object, 3 * BLOCK + 1, 3 * BLOCK + 8191);
    assert.deepEqual([await granulesOf(object, 3), cache.slots.used, cache.slots.table.count, budget.used], [[], 5 * 4096, 2, 0]);
    await cache.close();
  });

  test('reaches to the end of the object, or not', async (t) => {
    const { cache } = await open(scratchDirectory(t));
    const size = 3 * BLOCK - 1000;
    const object = cache.object('cut', '1', size);
    await part(object, size - 5000, size - 1);
    assert.deepEqual(await granulesOf(object, 2), []);
    await part(object, 3 * BLOCK - 8192, size);
    assert.deepEqual([await granulesOf(object, 2), cache.slots.used], [[14, 15], 8192]);
    assert.equal((await read(object, size - 1, 1))![0], CONTENT[size - 1]);
    await cache.close();
  });

  test('is replaced by the whole block, and all parts together are one: after a restart, too, when parts are gone', async (t) => {
    const directory = scratchDirectory(t);
    for (const end of ['close', 'abandon'] as const) {
      const first = await open(directory);
      const object = first.cache.object('k', end, CONTENT.length);
      for (const block of [1, 2, 3, 4]) await part(object, block * BLOCK + 4096, block * BLOCK + 5 * 4096);
      await keep(object, 2 * BLOCK, 3 * BLOCK);
      await part(object, 3 * BLOCK + 5 * 4096, 4 * BLOCK);
      assert.equal(first.cache.has(object.id, 3), false);
      await part(object, 3 * BLOCK, 3 * BLOCK + 2 * 4096);
      assert.deepEqual(await blocksOf(object), [2, 3]);
      assert.equal(first.cache.has(object.id, 3), true);
      assert.deepEqual(await granulesOf(object, 4), [1, 2, 3, 4]);
      await first.cache[end]();
      const { cache, warnings } = await open(directory);
      const again = cache.object('k', end, CONTENT.length);
      assert.deepEqual([await blocksOf(again), await granulesOf(again, 1), await granulesOf(again, 4)], [[2, 3], [], []]);
      assert.deepEqual([warnings, cache.statistics.bad], [[], 0]);
      await cache.close();
    }
    assertSpace(directory, 4 * BLOCK);
  });

  test('is not taken for a whole one after a daemon that was killed at any moment', async (t) => {
    const directory = scratchDirectory(t);
    for (let round = 0; round < 60; round++) {
      const { cache, warnings } = await open(directory, 3 * BLOCK);
      for (const version of [round - 1, round]) await blocksOf(theObject(cache, 'k', String(version)));
      const object = theObject(cache, 'k', String(round));
      const writing = [0, 1, 2, 3].flatMap((block) => {
        const at = block * BLOCK;
        return [part(object, at, at + 4096), part(object, at + 4096, at + BLOCK / 2), keep(object, at, at + BLOCK), part(object, at + BLOCK / 2, at + BLOCK)];
      });
      for (let i = 0; i < round; i++) await new Promise(setImmediate);
      await cache.abandon();
      await Promise.all(writing);
      assert.deepEqual([warnings, cache.statistics.bad], [[], 0]);
    }
  });

  test('while it is written: nobody sees it, and its slot is nobody else\'s', async (t) => {
    const { cache } = await open(scratchDirectory(t), 4 * BLOCK);
    const object = theObject(cache);
    await part(object, 0, 4096);
    const { file } = cache.slots;
    const write = file.write.bind(file);
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    let begin: () => void = () => undefined;
    const begun = new Promise<void>((resolve) => (begin = resolve));
    file.write = async (slot, content, at) => {
      if (at === 8192) {
        begin();
        await gate;
      }
      await write(slot, content, at);
    };
    const other = theObject(cache, 'other');
    for (let block = 0; block < 2; block++) await keep(other, block * BLOCK, (block + 1) * BLOCK);
    const writing = part(object, 8192, 3 * 4096);
    await begun;
    assert.equal(cache.giveWay(), true);
    assert.equal(cache.slots.evicted, 2);
    assert.deepEqual(await granulesOf(object, 0), [0]);
    go();
    await writing;
    assert.deepEqual([await granulesOf(object, 0), cache.slots.used], [[0, 2], 2 * 4096]);
    assert.equal(cache.giveWay(), true);
    assert.deepEqual([await granulesOf(object, 0), cache.slots.used], [[], 0]);
    await cache.close();
  });

  test('in the place of another one, a part or a block, has nothing of it, nor its space', async (t) => {
    const directory = scratchDirectory(t);
    const { cache } = await open(directory, 4 * BLOCK);
    const [object, other, third] = [theObject(cache), theObject(cache, 'other'), theObject(cache, 'third')];
    await keep(other, 0, 3 * BLOCK);
    await part(object, 0, BLOCK - 4096);
    await blocksOf(other);
    for (let time = 0; time < 2; time++) await part(third, 4096, 3 * 4096);
    assert.deepEqual([await granulesOf(object, 0), await granulesOf(third, 0), cache.slots.table.high], [[], [1, 2], 4], 'it has the same slot');
    await keep(other, 3 * BLOCK, 4 * BLOCK);
    assert.deepEqual(await blocksOf(other), [1, 2, 3]);
    await part(object, 2 * BLOCK + 4096, 2 * BLOCK + 8192);
    await part(object, 2 * BLOCK + 4096, 2 * BLOCK + 8192);
    assert.deepEqual([await granulesOf(object, 2), await granulesOf(third, 0), await blocksOf(other)], [[1], [1, 2], [1, 2, 3]]);
    assertSpace(directory, cache.slots.used);
    await cache.close();
  });

  test('is what a second miss leaves of the block when it is a large piece, and the bucket near; else all of it is fetched', async (t) => {
    const { cache } = await open(scratchDirectory(t));
    const object = theObject(cache);
    const fetched: number[] = [];
    const miss = async (from: number, bytes: number): Promise<void> => {
      await object.missed(from, from + bytes, CONTENT.subarray(from, from + bytes), (block) => fetched.push(block) > 0);
    };
    for (let piece = 0; piece < 4; piece++) await miss(BLOCK + (piece * BLOCK) / 4, BLOCK / 4);
    assert.deepEqual([fetched, cache.has(object.id, 1)], [[], true]);
    for (const at of [0, 8192]) await miss(2 * BLOCK + at, 4096);
    assert.deepEqual(fetched, [2]);
    for (let read = 0; read < 4; read++) cache.worth.fetched(100);
    await miss(3 * BLOCK, BLOCK / 4);
    assert.deepEqual(fetched, [2, 3]);
    await cache.close();
  });

  test('that could not be written is not there, and those before it are', async (t) => {
    const { cache, warnings } = await open(scratchDirectory(t));
    const object = theObject(cache);
    await part(object, 0, 4096);
    const { file } = cache.slots;
    file.write = () => Promise.reject(Object.assign(new Error('EIO: i/o error, write'), { code: 'EIO', errno: -5 }));
    await Promise.all([part(object, 4096, 8192), part(object, BLOCK, BLOCK + 4096)]);
    assert.deepEqual([await granulesOf(object, 0), await granulesOf(object, 1), warnings.length, cache.slots.used], [[0], [], 1, 4096]);
    await cache.close();
  });

  test('is kept in a full cache when it is missed for the second time', async (t) => {
    const { cache } = await open(scratchDirectory(t), 4 * BLOCK);
    const [object, other] = [theObject(cache), theObject(cache, 'other')];
    await keep(other, 0, 4 * BLOCK);
    for (let block = 0; block < 4; block++) await part(object, block * BLOCK, block * BLOCK + 4096);
    assert.deepEqual([cache.slots.evicted, await blocksOf(other)], [0, [0, 1, 2, 3]]);
    await part(object, 2 * BLOCK, 2 * BLOCK + 4096);
    await part(object, BLOCK + 4096, BLOCK + 8192);
    assert.deepEqual([cache.slots.evicted, await blocksOf(other)], [1, [1, 2, 3]]);
    assert.deepEqual([await granulesOf(object, 2), await granulesOf(object, 1), await granulesOf(object, 0)], [[0], [1], []]);
    await cache.close();
  });
});
