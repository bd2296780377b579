/**
 * What the block cache has under a version is that version, whatever overtakes the reads that bring it: a part that is fetched ahead, a read of exactly its
 * range, a whole block behind the second read of one, the fill of an object, what came along with a LOOKUP. While one is on its way, the reader moves to another
 * version (a commit of ours, a change of attributes, a rename), or the object changes and comes back. The seed is printed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { BlockCache } from '../../src/storage/object/blocks/block-cache.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { Reader } from '../../src/storage/object/reader.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { BLOCK, read, scratchDirectory } from '../support/blocks.js';
import { GuestKernel, type Description } from '../support/guest-kernel.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Random } from '../model/random.js';
import { PARTS, SMALL } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 25);
const KIB = 1 << 10;
const MIB = 1 << 20;
const SIZE = 2 * MIB + 1000;
const O_RDWR = 2;

/** A store whose reads wait until they are let through, one by one. */
class HeldReads {
  readonly #waiting: (() => void)[] = [];
  readonly store;
  holds = true;

  constructor(inner: MemoryStore) {
    this.store = intercept(inner, async (call, attempt) => {
      if (call.operation === 'read' && this.holds) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      return attempt(call.signal);
    });
  }

  get count(): number {
    return this.#waiting.length;
  }

  pass(index: number): void {
    for (const resolve of this.#waiting.splice(index, 1)) resolve();
  }

  passAll(): void {
    while (this.count > 0) this.pass(0);
  }
}

test(`a block is of the version that it is kept under (SEED=${SEED}, ${SEQUENCES} sequences)`, { timeout: 300_000 }, async (t) => {
  let kept = 0;
  for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
    const random = new Random(seed);
    const contents = [1, 2, 3].map((number) => pattern(SIZE, number));
    const inner = new MemoryStore({ etags: true });
    const held = new HeldReads(inner);
    const budget = new MemoryBudget(64 * MIB);
    const cache = (await BlockCache.open({ directory: scratchDirectory(t), bytes: 32 * MIB, scope: '', blockBytes: BLOCK, fill: true }, budget, { warn: () => undefined, debug: () => undefined }))!;
    const versions = new Map<string, Uint8Array>();
    const put = async (): Promise<string> => {
      const content = random.pick(contents);
      const version = await inner.put('k', content);
      versions.set(version, content);
      return version;
    };
    const reader = new Reader(held.store, budget, 'k', await put(), SIZE, cache);
    // Far away, so that whole blocks and the rest of the object are fetched besides
    if (random.chance(50)) Object.defineProperty(cache.worth, 'isFar', { value: true });
    const reads: Promise<unknown>[] = [];
    let at = 0;
    for (let step = 0; step < 80; step++) {
      const what = random.below(100);
      if (what < 45) {
        const [offset, bytes] = random.chance(70) ? [at, 128 * KIB] : [random.below(SIZE), 4 * KIB];
        at = (offset + bytes) % SIZE;
        reads.push(reader.read(offset, bytes, () => undefined).catch(() => undefined));
      } else if (what < 85) {
        held.pass(random.below(Math.max(1, held.count)));
      } else {
        // As a commit of ours does it: the store has the other version before the reader knows
        const version = await put();
        for (let turns = random.below(3); turns > 0; turns--) await turn();
        reader.moveTo('k', version);
      }
      for (let turns = random.below(4); turns > 0; turns--) await turn();
    }
    held.holds = false;
    held.passAll();
    await Promise.all(reads);
    await cache.idle();
    reader.close();
    for (const [version, content] of versions) {
      const object = cache.object('k', version, SIZE);
      for (let from = 0; from < SIZE; from += 4 * KIB) {
        const end = Math.min(SIZE, from + 4 * KIB);
        const bytes = await read(object, from, end - from);
        if (bytes === null) continue;
        kept++;
        assert.equal(Buffer.compare(bytes, content.subarray(from, end)), 0, `SEED=${seed}: at ${from} there is another version`);
      }
    }
    await cache.close();
  }
  assert.ok(kept > 0);
});

test('a file that is written while parts of it are fetched ahead is read as it was when the old content has been put back', async () => {
  const size = 5 * MIB;
  const old = pattern(size, 1);
  const inner = new MemoryStore({ etags: true, limits: PARTS });
  await inner.put('f', old);
  const held = new HeldReads(inner);
  held.holds = false;
  const g = await ObjectGuest.start(held.store, { blocks: { bytes: 64 * MIB, blockBytes: BLOCK }, write: { sizes: SMALL } });
  const kernel = new GuestKernel(g);
  const opened = async (flags: number): Promise<Description> => {
    const file = await kernel.open('f', flags);
    assert.ok(typeof file !== 'number');
    return file;
  };
  const whole = async (): Promise<Buffer> => {
    const file = await opened(0);
    const content = await kernel.read(file, 0, size);
    assert.ok(typeof content !== 'number');
    await kernel.close(file);
    return Buffer.from(content);
  };
  const file = await opened(O_RDWR);
  const next = Buffer.from(old);
  const write = async (at: number, seed: number): Promise<void> => {
    const written = pattern(64 * KIB, seed);
    assert.equal(await kernel.write(file, at, written), written.length);
    next.set(written, at);
  };
  // From here on the handle reads what is not staged through the staged file
  await write(4 * MIB, 7);
  let at = 0;
  for (; at < 192 * KIB; at += 64 * KIB) assert.ok(typeof (await kernel.read(file, at, 64 * KIB)) !== 'number');
  held.holds = true;
  const reading = kernel.read(file, at, 64 * KIB);
  while (held.count < 2) await turn();
  // What was asked for comes; what is fetched ahead of it stays on its way
  held.pass(0);
  assert.ok(typeof (await reading) !== 'number');
  await write(MIB, 8);
  assert.equal(await kernel.fsync(file), 0);
  held.holds = false;
  held.passAll();
  await g.opened.idle();
  assert.equal(Buffer.compare(await whole(), next), 0);
  assert.equal(await kernel.close(file), 0);
  for (const content of [old, next, old]) {
    await inner.put('f', content);
    assert.equal(Buffer.compare(await whole(), content), 0);
  }
  await g.close();
});
