/** Small files of a bucket that are read one after the other, by what the store is asked for: see src/storage/object/small-files.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import type { Capabilities } from '../../src/storage/object/store.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP, type Reply } from '../support/guest.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const S3: Partial<Capabilities> = { listingHasMetadata: false };
const GCS: Partial<Capabilities> = { fetch: false };
/** Longer than any test takes. */
const TTL: GuestOptions = { metadataTtl_ms: 600_000 };
const FILES = 60;

const fileName = (i: number): string => `n${String(i).padStart(3, '0')}`;
const contentOf = (i: number): Buffer => Buffer.from(pattern(i === 7 ? 65_536 : 100 + i, i + 1));
const textOf = ({ data, error }: Reply): string => (error === 0 ? Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('latin1') : String(error));

class Bench {
  constructor(
    readonly inner: MemoryStore,
    readonly faults: FaultyStore,
    readonly g: ObjectGuest,
    readonly directory: bigint,
  ) {}

  count(operation: FaultyStore['calls'][number]): number {
    return this.faults.calls.filter((call) => call === operation).length;
  }

  async open(node: bigint): Promise<bigint> {
    return this.g.open(node, 0);
  }

  async close(node: bigint, fh: bigint): Promise<void> {
    assert.equal((await this.g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }

  /** As cat(1) does. */
  async cat(i: number, content = contentOf(i)): Promise<void> {
    const { node, size } = await this.g.lookup(this.directory, fileName(i));
    assert.equal(size, content.length);
    const fh = await this.open(node);
    assert.equal(textOf(await this.g.read(node, fh, 0, 65_536)), content.toString('latin1'));
    await this.close(node, fh);
  }
}

async function bench(capabilities: Partial<Capabilities>, body: (b: Bench) => Promise<void>, options: GuestOptions = TTL, budget?: number): Promise<void> {
  const inner = new MemoryStore({ capabilities });
  for (let i = 0; i < FILES; i++) await inner.put(`d/${fileName(i)}`, contentOf(i));
  const faults = new FaultyStore(inner);
  const g = await ObjectGuest.start(faults.store, options, budget);
  try {
    await body(new Bench(inner, faults, g, (await g.lookup(ROOT, 'd')).node));
  } finally {
    await g.close();
  }
  await turn();
  assert.equal(g.budget.used, 0, 'all memory comes back');
}

describe('small files', () => {
  test('one request each, when files of a directory are read one after the other', () => bench(S3, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    b.faults.calls.length = 0;
    for (let i = 6; i < FILES; i++) await b.cat(i);
    assert.deepEqual([b.count('fetch'), b.count('read')], [FILES - 6, 0]);
    assert.ok(b.count('list') <= 1);
  }));

  test('a reading in pieces, in any order, is one request too; what is read once more is asked for', () => bench(S3, async (b) => {
    for (let i = 0; i < 7; i++) await b.cat(i);
    b.faults.calls.length = 0;
    const { node } = await b.g.lookup(b.directory, fileName(7));
    const fh = await b.open(node);
    for (const at of [32_768, 0, 49_152, 16_384]) {
      assert.equal(textOf(await b.g.read(node, fh, at, 16_384)), contentOf(7).subarray(at, at + 16_384).toString('latin1'));
    }
    assert.deepEqual([b.count('fetch'), b.count('read')], [1, 0]);
    assert.equal(b.g.budget.used, 0, 'the handle is open, and keeps nothing');
    assert.equal(textOf(await b.g.read(node, fh, 5, 10)), contentOf(7).subarray(5, 15).toString('latin1'));
    assert.equal(b.count('read'), 1);
  }));

  test('names that are only looked up are not fetched', () => bench(S3, async (b) => {
    for (let i = 0; i < FILES; i++) await b.g.lookup(b.directory, fileName(i));
    assert.equal(b.count('fetch'), 0);
    for (let i = 0; i < 20; i++) await b.cat(i);
    b.faults.calls.length = 0;
    for (let i = 20; i < FILES; i++) await b.g.lookup(b.directory, fileName(i));
    assert.ok(b.count('fetch') <= 16, `${b.count('fetch')} of 40`);
    assert.equal(b.count('fetch') + b.count('head'), 40);
  }));

  test('files that are opened and not read are not fetched for long', () => bench(S3, async (b) => {
    for (let i = 0; i < 40; i++) {
      const { node } = await b.g.lookup(b.directory, fileName(i));
      await b.close(node, await b.open(node));
    }
    assert.ok(b.count('fetch') <= 8, `${b.count('fetch')} of 40`);
    // But again, when they are
    for (let i = 40; i < 50; i++) await b.cat(i);
    b.faults.calls.length = 0;
    for (let i = 50; i < FILES; i++) await b.cat(i);
    assert.deepEqual([b.count('fetch'), b.count('read')], [10, 0]);
  }));

  for (const [provider, capabilities, calls] of [['fetch', S3, { fetch: 1, read: 0 }], ['head and read at once', GCS, { fetch: 0, read: 1 }]] as const) {
    test(`an OPEN that has to ask brings the content along (${provider})`, () => bench(capabilities, async (b) => {
      const { node } = await b.g.lookup(b.directory, fileName(1));
      await b.close(node, await b.open(node));
      // What the guest has it does not ask for
      b.faults.calls.length = 0;
      await b.close(node, await b.open(node));
      await b.close(node, await b.open(node));
      assert.deepEqual([b.count('fetch'), b.count('read')], [0, 0]);
      // Another version it has not
      await b.inner.put(`d/${fileName(1)}`, contentOf(11));
      assert.equal((await b.g.call(OP.OPEN, node, u32(0, 0), 16)).error, -E.STALE);
      assert.equal((await b.g.lookup(b.directory, fileName(1))).size, contentOf(11).length);
      b.faults.calls.length = 0;
      const fh = await b.open(node);
      assert.equal(textOf(await b.g.read(node, fh, 0, 4096)), contentOf(11).toString('latin1'));
      assert.ok(b.count('fetch') <= calls.fetch && b.count('read') === Math.max(calls.read, 1 - b.count('fetch')));
    }));
  }

  test('a listing with metadata: LOOKUP asks nothing, OPEN once, READ nothing', () => bench(GCS, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    b.faults.calls.length = 0;
    for (let i = 6; i < 20; i++) await b.cat(i);
    assert.deepEqual([b.count('head'), b.count('read'), b.faults.calls.length], [14, 14, 28]);
  }));

  test('an open file is the version that was opened, also when its content came before', () => bench(S3, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    for (let i = 6; i < 26; i++) {
      const { node } = await b.g.lookup(b.directory, fileName(i));
      const fh = await b.open(node);
      await b.inner.put(`d/${fileName(i)}`, contentOf(i + 20));
      assert.equal(textOf(await b.g.read(node, fh, 0, 65_536)), contentOf(i).toString('latin1'));
      await b.close(node, fh);
      await b.cat(i, contentOf(i + 20));
    }
  }));

  test('content that came for another open of the file is not what this one reads', () => bench(S3, async (b) => {
    const { node } = await b.g.lookup(b.directory, fileName(20));
    const before = await b.open(node);
    await b.inner.put(`d/${fileName(20)}`, Buffer.alloc(120, 'b'));
    const next = await b.g.lookup(b.directory, fileName(20));
    assert.equal(next.size, 120);
    await sleep(30); // so that OPEN asks
    b.faults.calls.length = 0;
    const after = await b.open(next.node);
    assert.deepEqual(b.faults.calls, ['fetch']);
    assert.equal(textOf(await b.g.read(node, before, 0, 4096)), String(-E.STALE));
    assert.equal(textOf(await b.g.read(next.node, after, 0, 4096)), 'b'.repeat(120));
  }));

  test('a file that was replaced since the listing is what it is now: larger, smaller, empty, gone', () => bench(S3, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    for (const [i, length] of [[6, 100_000], [8, 20], [9, 0], [10, 108], [11, 65_536]] as const) {
      const content = Buffer.from(pattern(length, 99 + i));
      await b.inner.put(`d/${fileName(i)}`, content);
      const { node, size } = await b.g.lookup(b.directory, fileName(i));
      assert.equal(size, length);
      const fh = await b.open(node);
      assert.equal(textOf(await b.g.read(node, fh, 0, 65_536)), content.subarray(0, 65_536).toString('latin1'));
      assert.equal(textOf(await b.g.read(node, fh, 65_536, 65_536)), content.subarray(65_536).toString('latin1'));
      await b.close(node, fh);
    }
    await b.inner.remove(`d/${fileName(12)}`);
    assert.equal((await b.g.call(OP.LOOKUP, b.directory, name(fileName(12)), 128)).error, -E.NOENT);
  }));

  test('what this guest writes it reads, whatever was fetched before', () => bench(S3, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    const { node } = await b.g.lookup(b.directory, fileName(6));
    const reading = await b.open(node);
    const writing = await b.g.open(node, 1);
    await b.g.write(node, writing, 0, Buffer.from('written'));
    const now = Buffer.concat([Buffer.from('written'), contentOf(6).subarray(7)]);
    assert.equal(textOf(await b.g.read(node, reading, 0, 65_536)), now.toString('latin1'));
    assert.equal((await b.g.call(OP.FLUSH, node, concat(u64(writing), u32(0, 0), u64(0)), 0)).error, 0);
    await b.close(node, writing);
    await b.close(node, reading);
    await b.cat(6, now);
  }));

  test('without memory to fetch into, files are read as if there were no such thing', () => bench(S3, async (b) => {
    for (let i = 0; i < 20; i++) await b.cat(i);
    assert.ok(b.count('read') >= 14);
  }, TTL, 4096));

  test('a fetch that fails is the errno of the LOOKUP, and the next one works', () => bench(S3, async (b) => {
    for (let i = 0; i < 6; i++) await b.cat(i);
    b.faults.inject({ operation: 'fetch', nth: 1, fault: { kind: 'before', code: 'denied' } });
    const { error } = await b.g.call(OP.LOOKUP, b.directory, name(fileName(6)), 128);
    assert.equal(error, -E.ACCES);
    b.faults.inject({ operation: 'fetch', nth: 1, fault: { kind: 'torn' } });
    assert.equal((await b.g.call(OP.LOOKUP, b.directory, name(fileName(6)), 128)).error, -E.IO);
    for (let i = 6; i < 12; i++) await b.cat(i);
  }));

  test('what the block cache has is not fetched, and what was fetched it keeps', () => bench(S3, async (b) => {
    for (let i = 0; i < 20; i++) await b.cat(i);
    await b.g.opened.idle();
    for (let i = 0; i < 20; i++) {
      const { node } = await b.g.lookup(b.directory, fileName(i));
      await b.g.call(OP.FORGET, node, u64(1n << 20n), 0);
    }
    b.faults.calls.length = 0;
    for (let i = 0; i < 20; i++) await b.cat(i);
    assert.deepEqual([b.count('fetch'), b.count('read')], [0, 0]);
  }, { ...TTL, blocks: { bytes: 16 << 20 } }));
});
