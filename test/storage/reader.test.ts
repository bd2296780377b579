/** Reading objects: see src/storage/object/reader.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { NativeMemory, copyMemory } from '../../src/ffi/memory.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { Reader } from '../../src/storage/object/reader.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { pattern } from './contract.js';

const MIB = 1 << 20;
const CONTENT = pattern(24 * MIB + 12345);
const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
const scratch = NativeMemory.allocate(MIB);

async function setUp(budget = 64 * MIB, delay = false): Promise<{ reader: Reader; ranges: [number, number][]; memory: MemoryBudget; inner: MemoryStore; aborted: () => number }> {
  const inner = new MemoryStore();
  const version = await inner.put('k', CONTENT);
  const ranges: [number, number][] = [];
  let aborted = 0;
  const counted: ObjectStore = {
    ...intercept(inner, (_call, attempt) => attempt(undefined)),
    read: async (key, options) => {
      const bytes = options.into instanceof Uint8Array ? options.into.length : options.into.bytes;
      ranges.push([options.offset, bytes]);
      options.signal?.addEventListener('abort', () => aborted++);
      if (delay) await new Promise(setImmediate);
      return inner.read(key, options);
    },
  };
  const memory = new MemoryBudget(budget);
  return { reader: new Reader(counted, memory, 'k', version, CONTENT.length), ranges, memory, inner, aborted: () => aborted };
}

async function read(reader: Reader, offset: number, bytes: number): Promise<Buffer> {
  const out = Buffer.alloc(bytes);
  const n = await reader.read(offset, bytes, (at, address, length) => {
    // as the guest's pages get it: out of native memory
    for (let done = 0; done < length; done += scratch.length) {
      const part = Math.min(scratch.length, length - done);
      copy(address + done, part);
      out.set(scratch.u8.subarray(0, part), at + done);
    }
  });
  return out.subarray(0, n);
}

const copy = (address: number, bytes: number): void => copyMemory(scratch.address, address, bytes);

const same = (got: Buffer, offset: number, bytes: number): void =>
  assert.ok(got.equals(CONTENT.subarray(offset, Math.min(CONTENT.length, offset + bytes))), `${bytes} at ${offset}`);

test('a random read fetches exactly its range, and nothing is fetched ahead', async () => {
  const { reader, ranges, memory } = await setUp();
  for (const [offset, bytes] of [[20 * MIB, 4096], [3, 10_000], [11 * MIB, 256 * 1024], [0, 1]]) same(await read(reader, offset, bytes), offset, bytes);
  assert.deepEqual(ranges, [[20 * MIB, 4096], [3, 10_000], [11 * MIB, 256 * 1024], [0, 1]]);
  reader.close();
  await new Promise(setImmediate);
  assert.equal(memory.used, 0);
});

test('reading on gets everything, with few large requests', async () => {
  const { reader, ranges, memory } = await setUp();
  for (let at = 0; at < CONTENT.length; at += 128 * 1024) same(await read(reader, at, 128 * 1024), at, 128 * 1024);
  same(await read(reader, CONTENT.length, 100), CONTENT.length, 100);
  assert.ok(ranges.length < 20, `${ranges.length} requests`);
  assert.ok(ranges.reduce((sum, [, bytes]) => sum + bytes, 0) < CONTENT.length * 1.1, 'little is fetched twice');
  reader.close();
  await new Promise(setImmediate);
  assert.equal(memory.used, 0);
});

test('who reads from the beginning on has 4 MiB fetched ahead after 256 KiB, then 4 times what was read; elsewhere it is twice as much', async () => {
  // Of those elsewhere the first one is a jump, and does not count
  for (const [start, first, least, most, later] of [[0, 256, 4 * MIB, 5 * MIB, 12 * MIB], [5 * MIB, 384, MIB, 2 * MIB, 6 * MIB]]) {
    const { reader, ranges, memory } = await setUp(256 * MIB);
    const fetchedTo = (): number => Math.max(...ranges.map(([from, bytes]) => from + bytes)) - start;
    const readOn = async (from: number, to: number): Promise<void> => {
      for (let at = start + from; at < start + to; at += 128 * 1024) same(await read(reader, at, 128 * 1024), at, 128 * 1024);
    };
    await readOn(0, 128 * 1024);
    assert.equal(fetchedTo(), 128 * 1024, 'one read is not a stream');
    await readOn(128 * 1024, first * 1024);
    assert.ok(fetchedTo() >= least && fetchedTo() <= most, `${fetchedTo()} at ${start}`);
    await readOn(first * 1024, 3 * MIB);
    // All but a part that would be cut short
    assert.ok(fetchedTo() >= later && fetchedTo() <= 3 * MIB + later, `${fetchedTo()} at ${start}`);
    reader.close();
    await new Promise(setImmediate);
    assert.equal(memory.used, 0);
  }
});

test('reads here and there near the beginning are not a reading from the beginning on', async () => {
  const { reader, ranges } = await setUp();
  for (const at of [0, 1, 2, 3.5]) same(await read(reader, at * MIB, 100_000), at * MIB, 100_000);
  assert.ok(ranges.every(([, bytes]) => bytes <= MIB));
  assert.ok(Math.max(...ranges.map(([from, bytes]) => from + bytes)) <= 5 * MIB);
  reader.close();
});

test('reads near one another, with more left out than read, are no stream', async () => {
  const { reader, ranges, memory } = await setUp();
  // Every 2 MiB a quarter: as a table of columns is read, or as chance has it
  for (let at = 10 * MIB; at < 20 * MIB; at += 2 * MIB) same(await read(reader, at, MIB / 2), at, MIB / 2);
  assert.deepEqual(ranges, [10, 12, 14, 16, 18].map((at) => [at * MIB, MIB / 2]));
  // From where it goes on without gaps
  for (let at = 18.5 * MIB; at < 24 * MIB; at += MIB / 2) same(await read(reader, at, MIB / 2), at, MIB / 2);
  assert.ok(ranges.some(([, bytes]) => bytes >= MIB), 'fetched ahead');
  reader.close();
  await new Promise(setImmediate);
  assert.equal(memory.used, 0);
});

test('several ranges at once and out of order, as readahead asks for them, are one stream', async () => {
  const { reader, ranges } = await setUp(64 * MIB, true);
  for (let at = 0; at < CONTENT.length; at += MIB) {
    const order = [3, 1, 0, 2, 7, 5, 4, 6].map((i) => at + i * 128 * 1024);
    await Promise.all(order.map(async (offset) => same(await read(reader, offset, 128 * 1024), offset, 128 * 1024)));
  }
  assert.ok(ranges.length < 40, `${ranges.length} requests`);
  reader.close();
});

test('a jump cancels what was fetched ahead and gives its memory back', async () => {
  const { reader, memory, aborted } = await setUp(64 * MIB, true);
  for (let at = 0; at < 4 * MIB; at += 128 * 1024) await read(reader, at, 128 * 1024);
  assert.ok(memory.used > 2 * MIB);
  same(await read(reader, 20 * MIB, 100), 20 * MIB, 100);
  await new Promise(setImmediate);
  await new Promise(setImmediate);
  assert.equal(memory.used, 0);
  assert.ok(aborted() > 0);
});

test('with little memory everything is read all the same, and no more is used', async () => {
  const { reader, memory } = await setUp(2 * MIB, true);
  let most = 0;
  for (let at = 0; at < 8 * MIB; at += 256 * 1024) {
    await Promise.all([0, 1].map(async (i) => same(await read(reader, at + i * 128 * 1024, 128 * 1024), at + i * 128 * 1024, 128 * 1024)));
    most = Math.max(most, memory.used);
  }
  assert.ok(most <= 2 * MIB);
  reader.close();
});

test('a large read is not starved by what others have fetched ahead', async () => {
  const { reader, memory, inner } = await setUp(16 * MIB, true);
  for (let at = 0; at < 4 * MIB; at += 128 * 1024) await read(reader, at, 128 * 1024);
  assert.ok(memory.used > 4 * MIB);
  const other = new Reader(inner, memory, 'k', reader.version, CONTENT.length);
  same(await read(other, 5 * MIB, 15 * MIB), 5 * MIB, 15 * MIB);
  same(await read(reader, 4 * MIB, 128 * 1024), 4 * MIB, 128 * 1024);
  other.close();
  reader.close();
});

test('a store that gives less than the version has is an error, and asked no more', async () => {
  const { inner, memory } = await setUp();
  const { version } = await inner.head('k');
  const reader = new Reader(inner, memory, 'k', version, CONTENT.length + 1000);
  await assert.rejects(read(reader, CONTENT.length - 10, 500), (error: StorageError) => error.code === 'changed');
  await assert.rejects(read(reader, CONTENT.length + 10, 500), (error: StorageError) => error.code === 'changed');
  reader.close();
});

test('an object that was replaced is `changed`, also for what was to be fetched ahead', async () => {
  const { reader, inner } = await setUp();
  for (let at = 0; at < MIB; at += 128 * 1024) await read(reader, at, 128 * 1024);
  await inner.put('k', pattern(CONTENT.length, 2));
  await assert.rejects(async () => {
    for (let at = MIB; at < CONTENT.length; at += 128 * 1024) same(await read(reader, at, 128 * 1024), at, 128 * 1024);
  }, (error: StorageError) => error.code === 'changed');
  reader.close();
});

test(`any reads give what is there, and all memory comes back (SEED=${SEED})`, async () => {
  let state = SEED >>> 0 || 1;
  const random = (n: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
  const { reader, memory } = await setUp(16 * MIB, true);
  let at = 0;
  for (let i = 0; i < 150; i++) {
    if (random(6) === 0) at = random(CONTENT.length + 1000);
    await Promise.all(Array.from({ length: 1 + random(4) }, async () => {
      const bytes = 1 + random(512 * 1024);
      const offset = at;
      at += bytes;
      same(await read(reader, offset, bytes), offset, bytes);
    }));
    if (random(40) === 0) reader.close();
  }
  reader.close();
  for (let i = 0; i < 5; i++) await new Promise(setImmediate);
  assert.equal(memory.used, 0);
});
