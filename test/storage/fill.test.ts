/** The rest of an object that is read here and there, fetched ahead of the reads: see src/storage/object/blocks/fill.ts. */
import assert from 'node:assert/strict';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { copyMemory } from '../../src/ffi/memory.js';
import { BlockCache } from '../../src/storage/object/blocks/block-cache.js';
import { Fill, FILL_LIMITS, type Fetch } from '../../src/storage/object/blocks/fill.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { Reader } from '../../src/storage/object/reader.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { scratchDirectory } from '../support/blocks.js';
import { pattern } from './contract.js';

const KIB = 1 << 10;
const MIB = 1 << 20;
const BLOCK = 64 * KIB;
const CONTENT = pattern(24 * MIB + 12345);
/** A round trip that is far away. */
const FAR_MS = 15;

interface Setting {
  readonly cacheBytes?: number;
  readonly budgetBytes?: number;
  readonly fill?: boolean;
  readonly delay_ms?: number;
}

/** A bucket with one object, far away unless told otherwise, and what was asked of it. */
class Bed {
  readonly inner = new MemoryStore();
  readonly ranges: [number, number][] = [];
  readonly warnings: string[] = [];
  readonly readers: Reader[] = [];
  readonly budget: MemoryBudget;
  cache!: BlockCache;
  version = '';
  delay_ms: number;
  /** Of those that were for more than a block. */
  aborted = 0;
  under = 0;
  mostUnder = 0;
  fail: ((offset: number) => boolean) | null = null;
  readonly store = intercept(this.inner, async (call, attempt) => {
    if (call.operation !== 'read') return attempt(call.signal);
    if (call.bytes > BLOCK) call.signal?.addEventListener('abort', () => this.aborted++);
    this.mostUnder = Math.max(this.mostUnder, (this.under += call.bytes));
    try {
      await sleep(this.delay_ms, undefined, call.signal === undefined ? {} : { signal: call.signal });
      return await attempt(call.signal);
    } finally {
      this.under -= call.bytes;
    }
  });

  private constructor({ budgetBytes = 64 * MIB, delay_ms = FAR_MS }: Setting) {
    this.budget = new MemoryBudget(budgetBytes);
    this.delay_ms = delay_ms;
  }

  static async make(t: TestContext, setting: Setting = {}): Promise<Bed> {
    const bed = new Bed(setting);
    const log = { warn: (_fields: object, message: string) => void bed.warnings.push(message), debug: () => undefined };
    const { cacheBytes = 256 * MIB, fill = true } = setting;
    bed.cache = (await BlockCache.open({ directory: scratchDirectory(t), bytes: cacheBytes, scope: '', blockBytes: BLOCK, fill }, bed.budget, log))!;
    bed.version = await bed.inner.put('k', CONTENT);
    return bed;
  }

  reader(): Reader {
    const read = this.store.read.bind(this.store);
    const store = {
      ...this.store,
      read: (key: string, options: Parameters<typeof read>[1]) => {
        this.ranges.push([options.offset, options.into instanceof Uint8Array ? options.into.length : options.into.bytes]);
        if (this.fail?.(options.offset)) return Promise.reject(new StorageError('unavailable', 'read'));
        return read(key, options);
      },
    };
    const reader = new Reader(store, this.budget, 'k', this.version, CONTENT.length, this.cache);
    this.readers.push(reader);
    return reader;
  }

  far(): void {
    for (let i = 0; i < 4; i++) this.cache.worth.fetched(FAR_MS);
  }

  get bytes(): number {
    return this.ranges.reduce((sum, [, bytes]) => sum + bytes, 0);
  }

  async end(): Promise<void> {
    for (const reader of this.readers) reader.close();
    await this.cache.close();
    assert.deepEqual([this.warnings, this.budget.used, this.cache.fills.underway, this.cache.fills.reserved], [[], 0, 0, 0], 'all was given back');
  }
}

async function read(reader: Reader, offset: number, bytes = 4096): Promise<void> {
  const got = Buffer.alloc(bytes);
  const memory = await new MemoryBudget(MIB).take(bytes);
  const n = await reader.read(offset, bytes, (at, address, length) => {
    copyMemory(memory.address, address, length);
    got.set(memory.u8.subarray(0, length), at);
  });
  memory.free();
  assert.ok(got.subarray(0, n).equals(CONTENT.subarray(offset, offset + n)), `what is at ${offset}`);
}

/** More than a stream's slack apart. */
const PLACES = [5, 15, 1, 20, 10, 23].map((at) => at * MIB + 4096);

async function readPlaces(reader: Reader, count: number): Promise<void> {
  for (const at of PLACES.slice(0, count)) await read(reader, at);
}

describe('an object that is read here and there', () => {
  test('is fetched after some misses, all of it once; then nothing is asked for', async (t) => {
    const bed = await Bed.make(t);
    const reader = bed.reader();
    await readPlaces(reader, FILL_LIMITS.misses - 1);
    await bed.cache.idle();
    const before = bed.bytes;
    assert.ok(before <= 3 * (BLOCK + 4096), 'blocks of what was read');
    await read(reader, PLACES[3]);
    await bed.cache.idle();
    assert.ok(bed.bytes >= CONTENT.length && bed.bytes <= CONTENT.length + before + 2 * BLOCK, `${bed.bytes} bytes`);
    assert.ok(bed.ranges.length < 24, `${bed.ranges.length} requests`);
    const { length } = bed.ranges;
    for (let at = 0; at < CONTENT.length; at += 5 * MIB + 12288) await read(reader, at, 100_000);
    assert.equal(bed.ranges.length, length);
    assert.ok(bed.mostUnder <= bed.budget.bytes / 2 + BLOCK, `${bed.mostUnder} bytes at a time`);
    await bed.end();
  });

  test('begins where the last miss was', async (t) => {
    const bed = await Bed.make(t);
    const reader = bed.reader();
    await readPlaces(reader, 4);
    const [from, bytes] = bed.ranges.filter(([, length]) => length > BLOCK)[0];
    assert.ok(from <= PLACES[3] && PLACES[3] < from + bytes, `${from}, ${bytes}`);
    await bed.end();
  });

  test('is not fetched where the bucket is near, when that is switched off, or when it is read in order', async (t) => {
    for (const setting of [{ delay_ms: 0 }, { fill: false }]) {
      const bed = await Bed.make(t, setting);
      await readPlaces(bed.reader(), 6);
      await bed.cache.idle();
      assert.ok(bed.bytes <= 6 * (BLOCK + 4096), JSON.stringify(setting));
      await bed.end();
    }
    const busy = await Bed.make(t);
    const some = busy.reader();
    busy.cache.worth.fetched(1);
    for (const at of PLACES) await read(some, at);
    await busy.cache.idle();
    assert.ok(busy.bytes <= 6 * (BLOCK + 4096), 'slow at times');
    await busy.end();
    const near = await Bed.make(t);
    const one = near.reader();
    for (let at = 0; at < 9 * MIB; at += MIB) await read(one, at);
    await near.cache.idle();
    assert.ok(near.bytes <= 9 * (BLOCK + 4096), 'one place after the other');
    await near.end();
    const bed = await Bed.make(t);
    const reader = bed.reader();
    for (let at = 0; at < 2 * MIB; at += 128 * KIB) await read(reader, at, 128 * KIB);
    await bed.cache.idle();
    assert.ok(bed.bytes < CONTENT.length / 2, 'what is ahead only');
    await bed.end();
  });

  test('is not fetched when it is large beside the cache, or does not fit into what is free; nothing is given up', async (t) => {
    const large = await Bed.make(t, { cacheBytes: 90 * MIB });
    await readPlaces(large.reader(), 6);
    await large.cache.idle();
    assert.ok(large.bytes <= 6 * (BLOCK + 4096));
    await large.end();
    const full = await Bed.make(t, { cacheBytes: 100 * MIB, budgetBytes: 1024 * MIB });
    for (let i = 0; i < 4; i++) await full.cache.object(`other ${i}`, '1', CONTENT.length).keep(0, 20 * MIB, CONTENT.subarray(0, 20 * MIB));
    assert.ok(full.cache.free < CONTENT.length);
    await readPlaces(full.reader(), 6);
    await full.cache.idle();
    assert.ok(full.bytes <= 6 * (BLOCK + 4096));
    assert.equal(full.cache.slots.evicted, 0);
    await full.end();
  });

  test('is fetched no further when it proves to be near', async (t) => {
    const bed = await Bed.make(t, { delay_ms: 40 });
    const reader = bed.reader();
    await readPlaces(reader, 4);
    assert.ok(bed.under > 0, 'it has begun');
    bed.cache.worth.fetched(1);
    await bed.cache.idle();
    assert.ok(bed.cache.free > bed.cache.options.bytes - CONTENT.length, 'not all is there');
    await bed.end();
  });

  test('takes only room that is free, for blocks and for the rest of those that are there in part', async (t) => {
    const bed = await Bed.make(t, { cacheBytes: 4 * BLOCK });
    const [object, other] = ['object', 'other'].map((key) => bed.cache.object(key, '1', CONTENT.length));
    await object.missed(0, 4096, CONTENT.subarray(0, 4096), () => false);
    await other.keep(0, 3 * BLOCK, CONTENT.subarray(0, 3 * BLOCK));
    for (let from = 0; from < 3 * BLOCK; from += BLOCK) await object.keep(from, from + BLOCK, CONTENT.subarray(from, from + BLOCK), true);
    assert.deepEqual([bed.cache.slots.evicted, bed.cache.slots.used, object.missingBytes()], [0, 4 * BLOCK, CONTENT.length - BLOCK]);
    await other.keep(3 * BLOCK, 4 * BLOCK, CONTENT.subarray(3 * BLOCK, 4 * BLOCK), true);
    const third = bed.cache.object('third', '1', CONTENT.length);
    for (let time = 0; time < 2; time++) await third.missed(0, 4096, CONTENT.subarray(0, 4096), () => false);
    assert.equal(bed.cache.slots.evicted, 1, 'others have a block of its');
    await other.keep(4 * BLOCK, 5 * BLOCK, CONTENT.subarray(0, BLOCK), true);
    await third.keep(0, BLOCK, CONTENT.subarray(0, BLOCK), true);
    assert.deepEqual([bed.cache.slots.evicted, bed.cache.has(third.id, 0)], [1, true]);
    await bed.end();
  });

  test('is not fetched any more when it is closed', async (t) => {
    const bed = await Bed.make(t, { delay_ms: 40 });
    const reader = bed.reader();
    await readPlaces(reader, 4);
    assert.ok(bed.under > 0);
    reader.close();
    await bed.cache.idle();
    assert.ok(bed.aborted > 0);
    assert.ok(bed.ranges.length < 12, `${bed.ranges.length} requests`);
    assert.equal(bed.budget.used, 0);
    assert.ok(bed.cache.slots.used < CONTENT.length / 2);
    await bed.end();
  });

  test('gives way when memory is wanted, and begins anew later', async (t) => {
    const bed = await Bed.make(t, { budgetBytes: 8 * MIB, delay_ms: 40 });
    const reader = bed.reader();
    await readPlaces(reader, 4);
    assert.ok(bed.budget.used > 0 && bed.mostUnder <= 4 * MIB + BLOCK, `${bed.mostUnder} bytes at a time`);
    const memory = await bed.budget.take(8 * MIB);
    assert.ok(bed.aborted > 0);
    bed.budget.give(memory);
    await bed.cache.idle();
    const before = bed.bytes;
    assert.ok(before < CONTENT.length / 2);
    const { aborted } = bed;
    const { length } = bed.ranges;
    for (let i = 0; i < 2 * FILL_LIMITS.misses; i++) {
      assert.ok(bed.ranges.slice(length).every(([, bytes]) => bytes <= BLOCK), 'not yet');
      await read(reader, (2 + 10 * (i % 2)) * MIB + i * 2 * BLOCK);
      await bed.cache.idle();
    }
    assert.equal(bed.aborted, aborted);
    assert.ok(bed.cache.slots.used >= CONTENT.length, 'all of it is there');
    await bed.end();
  });

  test('is not tried again when that has failed, by nobody who reads that version', async (t) => {
    const bed = await Bed.make(t);
    bed.fail = (offset) => offset >= 8 * MIB && bed.ranges.at(-1)![1] > BLOCK;
    const reader = bed.reader();
    await readPlaces(reader, 4);
    await bed.cache.idle();
    assert.ok(bed.ranges.some(([, bytes]) => bytes > BLOCK), 'it was tried');
    bed.fail = null;
    const { length } = bed.ranges;
    for (const [i, one] of [reader, bed.reader()].entries()) for (const at of PLACES) await read(one, at + (2 + i) * BLOCK);
    await bed.cache.idle();
    assert.ok(bed.ranges.slice(length).every(([, bytes]) => bytes <= BLOCK), 'only blocks');
    await bed.end();
  });

  test('is fetched once for all who read it', async (t) => {
    const bed = await Bed.make(t);
    const [one, other] = [bed.reader(), bed.reader()];
    await Promise.all([readPlaces(one, 6), readPlaces(other, 6)]);
    await bed.cache.idle();
    assert.ok(bed.bytes >= CONTENT.length && bed.bytes <= CONTENT.length + 12 * (BLOCK + 4096), `${bed.bytes} bytes`);
    await bed.end();
  });
});

test('so much is fetched for each miss, and no more', async (t) => {
  const bed = await Bed.make(t);
  const cached = bed.cache.object('k', bed.version, CONTENT.length);
  bed.far();
  let fetched = 0;
  const fetch: Fetch = async (_offset, { bytes }) => {
    fetched += bytes;
    return bytes;
  };
  const fill = new Fill(cached, bed.budget, fetch, { misses: 2, bytesPerMiss: 4 * MIB, creditBytes: 12 * MIB });
  const seen: number[] = [];
  for (let i = 0; i < 4; i++) {
    fill.missed(i * 6 * MIB);
    await bed.cache.idle();
    seen.push(fetched / MIB);
  }
  assert.deepEqual(seen, [0, 8, 12, 16]);
  fill.close();
  await bed.end();
});

test('all fills together have no more under way than one may have', async (t) => {
  const bed = await Bed.make(t, { budgetBytes: 16 * MIB });
  bed.far();
  let under = 0;
  let go: () => void = () => undefined;
  const gate = new Promise<void>((resolve) => (go = resolve));
  const fetch: Fetch = async (_offset, { bytes }) => {
    under += bytes;
    await gate;
    return bytes;
  };
  const fills = Array.from({ length: 6 }, (_, i) => new Fill(bed.cache.object(`${i}`, '1', CONTENT.length), bed.budget, fetch));
  for (const fill of fills) for (let i = 0; i < FILL_LIMITS.misses; i++) fill.missed(i * 2 * MIB);
  assert.deepEqual([under, bed.budget.used], [8 * MIB, 8 * MIB]);
  for (const fill of fills) fill.close();
  go();
  await bed.cache.idle();
  await bed.end();
});
