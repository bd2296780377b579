/** Reading a bucket through the block cache, over a real ring: what the store is asked for, before and after a restart. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readdirSync, readFileSync, rmSync, statSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const KIB = 1 << 10;
const MIB = 1 << 20;
const CACHE = { bytes: 64 * MIB };
const ROOT_ONLY = { skip: process.geteuid!() === 0 ? false : 'needs root' };

/** A store that counts reads. */
class Bucket {
  readonly inner = new MemoryStore();
  reads = 0;
  bytes = 0;
  delay_ms = 0;
  readonly store: ObjectStore = intercept(this.inner, (call, attempt) => {
    if (call.operation === 'read' || call.operation === 'fetch') {
      this.reads++;
      this.bytes += call.bytes;
    }
    return this.delay_ms === 0 ? attempt(call.signal) : sleep(this.delay_ms).then(() => attempt(call.signal));
  });

  /** What `body` reads of the store. */
  async during(body: () => Promise<unknown>): Promise<number> {
    const before = this.reads;
    await body();
    return this.reads - before;
  }
}

function directoryOf(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-blocks-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

function mounted(t: TestContext, options: string): string {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-blocks-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', `mode=0700,${options}`, 'none', directory]);
  t.after(() => {
    execFileSync('umount', ['-l', directory]);
    rmSync(directory, { recursive: true });
  });
  return directory;
}

async function withGuest(bucket: Bucket, cacheDirectory: string, body: (g: ObjectGuest) => Promise<void>, options: GuestOptions = {}): Promise<ObjectGuest> {
  const guest = await ObjectGuest.start(bucket.store, { write: { cacheDirectory }, blocks: CACHE, ...options });
  try {
    await body(guest);
    await guest.opened.idle();
  } finally {
    await guest.close();
  }
  assert.equal(guest.budget.used, 0, 'all memory was given back');
  return guest;
}

/** [from, to) of a file, in requests of `step` bytes. */
async function read(g: ObjectGuest, file: string, from: number, to: number, step = 128 * KIB): Promise<Buffer> {
  const { node } = await g.lookup(ROOT, file);
  const fh = await g.open(node, 0);
  const out: Buffer[] = [];
  for (let at = from; at < to; at += step) {
    const { data, error } = await g.read(node, fh, at, Math.min(step, to - at));
    assert.equal(error, 0);
    out.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
  }
  await release(g, node, fh);
  return Buffer.concat(out);
}

async function release(g: ObjectGuest, node: bigint, fh: bigint): Promise<void> {
  assert.equal((await g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
}

async function flush(g: ObjectGuest, node: bigint, fh: bigint): Promise<void> {
  assert.equal((await g.call(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
}

const warnings = (g: ObjectGuest): string[] => g.log.filter((line) => !line.startsWith('session:'));

const same = (got: Buffer, content: Uint8Array, from = 0, to = content.length): void => assert.ok(got.equals(content.subarray(from, to)), `[${from}, ${to})`);

describe('what was read once', () => {
  const content = pattern(3 * MIB + 777);

  test('is not asked for again, after a restart and after a kill neither; a new version is', async (t) => {
    const bucket = new Bucket();
    const directory = directoryOf(t);
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => {
      same(await read(g, 'f', 0, content.length), content);
      await g.opened.idle();
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 0, content.length), content)), 0);
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 5, content.length, 99_999), content, 5)), 0);
    });
    const again = await ObjectGuest.start(bucket.store, { write: { cacheDirectory: directory }, blocks: CACHE });
    assert.equal(await bucket.during(async () => same(await read(again, 'f', MIB + 5, MIB + 5005), content, MIB + 5, MIB + 5005)), 0);
    await again.kill();
    const changed = pattern(3 * MIB + 777, 99);
    await withGuest(bucket, directory, async (g) => {
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 0, content.length), content)), 0);
      await bucket.inner.put('f', changed);
      assert.ok(await bucket.during(async () => same(await read(g, 'f', 0, changed.length), changed)) > 0);
      await g.opened.idle();
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 0, changed.length), changed)), 0);
    });
  });

  test('goes on being read by who has it open as what it was, and what was not read is ESTALE', async (t) => {
    const bucket = new Bucket();
    await bucket.inner.put('f', content);
    await withGuest(bucket, directoryOf(t), async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      for (const from of [MIB, MIB + 500 * KIB]) assert.equal((await g.read(node, fh, from, 4096)).error, 0); // the second one has the block fetched
      await g.opened.idle();
      await bucket.inner.put('f', pattern(content.length, 7));
      const { data, error } = await g.read(node, fh, MIB + 300 * KIB, 8192);
      assert.equal(error, 0);
      same(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)), content, MIB + 300 * KIB, MIB + 308 * KIB);
      assert.equal((await g.read(node, fh, 2 * MIB, 4096)).error, -E.STALE);
      assert.equal((await g.read(node, fh, MIB - 4096, 8192)).error, -E.STALE, 'no mixture');
      await release(g, node, fh);
    });
  });

  test('a small file takes one call, and then none', async (t) => {
    const bucket = new Bucket();
    const directory = directoryOf(t);
    for (let i = 0; i < 50; i++) await bucket.inner.put(`f${i}`, pattern(100 + i * 300, i));
    for (const calls of [50, 0]) {
      await withGuest(bucket, directory, async (g) => {
        assert.equal(await bucket.during(async () => {
          // Guests ask for whole pages
          for (let i = 0; i < 50; i++) same(await read(g, `f${i}`, 0, 16 * KIB), pattern(100 + i * 300, i));
        }), calls);
      });
    }
  });

  test('here and there is there when it is read again; only the second piece of a block has all of it fetched', async (t) => {
    const bucket = new Bucket();
    const large = pattern(40 * MIB + 777);
    await bucket.inner.put('f', large);
    await withGuest(bucket, directoryOf(t), async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      const places = [[20 * MIB + 40 * KIB, 4096], [MIB, 4096], [31 * MIB + 768 * KIB, 256 * KIB], [7 * MIB + 1000 * KIB, 48 * KIB], [40 * MIB, 4096], [13 * MIB - 4096, 4096]];
      const all = async (): Promise<void> => {
        for (const [at, bytes] of places) {
          const { data, error } = await g.read(node, fh, at, bytes);
          assert.equal(error, 0);
          same(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)), large, at, Math.min(large.length, at + bytes));
          await g.opened.idle();
        }
      };
      assert.equal(await bucket.during(all), places.length);
      assert.equal(bucket.bytes, places.reduce((sum, [at, bytes]) => sum + Math.min(bytes, large.length - at), 0), 'each fetches its range, nothing else');
      assert.equal(await bucket.during(all), 0);
      await release(g, node, fh);
    });
  });

  test('of a block that is read in pieces: the second piece has the whole block fetched', async (t) => {
    const bucket = new Bucket();
    await bucket.inner.put('f', content);
    await withGuest(bucket, directoryOf(t), async (g) => {
      const at = (offset: number): Promise<void> => read(g, 'f', offset, offset + 4096).then((got) => same(got, content, offset, offset + 4096));
      assert.equal(await bucket.during(() => at(MIB + 40 * KIB)), 1);
      assert.equal(bucket.bytes, 4096, 'a random read fetches its range, nothing else');
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0); // held: who closes a file does not want any more of it
      await g.read(node, fh, MIB + 800 * KIB, 4096);
      await g.opened.idle();
      assert.equal(bucket.bytes, 2 * 4096 + MIB);
      assert.equal(await bucket.during(async () => {
        for (let i = 0; i < 20; i++) await at(MIB + i * 50 * KIB);
      }), 0);
      await release(g, node, fh);
    });
  });

  test('of a bucket that is far away the block of a piece that is read is fetched at once, while there is room', async (t) => {
    const bucket = new Bucket();
    const large = pattern(32 * MIB);
    await bucket.inner.put('f', large);
    bucket.delay_ms = 30;
    await withGuest(bucket, directoryOf(t), async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      for (let block = 0; block < 32; block += 2) assert.equal((await g.read(node, fh, block * MIB + 500_000, 4096)).error, 0);
      await g.opened.idle();
      // The first ones only show how far it is
      assert.equal(await bucket.during(async () => {
        for (let block = 20; block < 32; block += 2) assert.equal((await g.read(node, fh, block * MIB + 40_000, 4096)).error, 0);
      }), 0);
      await release(g, node, fh);
    });
  });

  test('a cache that is too small for what is read here and there does not fetch many times what was asked for', async (t) => {
    const bucket = new Bucket();
    const large = pattern(8 * MIB);
    await bucket.inner.put('f', large);
    const blocks = { bytes: 4 * 64 * KIB, blockBytes: 64 * KIB };
    await withGuest(bucket, directoryOf(t), async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      let asked = 0;
      for (let pass = 0; pass < 4; pass++) {
        for (let at = 0; at < large.length; at += 64 * KIB, asked += 512) {
          // far apart, so that nothing is taken for reading in order
          const offset = (at * 77 + pass * 3000) % large.length;
          const { data, error } = await g.read(node, fh, offset, 512);
          assert.equal(error, 0);
          same(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)), large, offset, offset + 512);
          await g.opened.idle();
        }
      }
      await release(g, node, fh);
      assert.ok(bucket.bytes > asked + blocks.bytes, 'whole blocks were fetched');
      assert.ok(bucket.bytes <= asked * (1 + 8) + blocks.bytes, `${bucket.bytes} bytes were fetched where ${asked} were asked for`);
    }, { blocks });
  });

  test('in any order and size, with less room than it needs: always what the object has (random)', async (t) => {
    const seed = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
    t.diagnostic(`SEED=${seed}`);
    let state = seed;
    const pick = (n: number): number => (state = (Math.imul(state, 1103515245) + 12345) >>> 0) % n;
    const bucket = new Bucket();
    const directory = directoryOf(t);
    const objects = [2 * MIB + 5, 300 * KIB, 64 * KIB, 63 * KIB, 1].map((bytes, i) => pattern(bytes, i + 1));
    for (const [i, one] of objects.entries()) await bucket.inner.put(`f${i}`, one);
    const blocks = { bytes: MIB, blockBytes: 64 * KIB };
    let debug: readonly string[] = [];
    for (let round = 0; round < 3; round++) {
      const guest = await withGuest(bucket, directory, async (g) => {
        const open = await Promise.all(objects.map(async () => 0n));
        const nodes: bigint[] = [];
        for (const i of objects.keys()) {
          nodes.push((await g.lookup(ROOT, `f${i}`)).node);
          open[i] = await g.open(nodes[i], 0);
        }
        for (let step = 0; step < 400; step++) {
          const i = pick(objects.length);
          const from = pick(objects[i].length + 1);
          const bytes = 1 + pick(pick(3) === 0 ? 128 * KIB : 5000);
          const { data, error } = await g.read(nodes[i], open[i], from, bytes);
          assert.equal(error, 0);
          same(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)), objects[i], from, Math.min(objects[i].length, from + bytes));
        }
        for (const i of objects.keys()) await release(g, nodes[i], open[i]);
        await g.opened.idle();
        // Some file systems count the map of the pieces of a file with it
        assert.ok(statSync(join(directory, 'blocks', 'data')).blocks * 512 <= blocks.bytes * 1.02);
        assert.deepEqual(warnings(g), []);
      }, { blocks });
      ({ debug } = guest);
    }
    const line = debug.find((one) => one.startsWith('block cache: what it did')) ?? '';
    const { hits, misses, evicted, bad } = JSON.parse(line.slice(line.indexOf('{'))) as Record<string, number>;
    assert.ok(hits > 100 && misses > 10 && evicted > 0 && bad === 0, line);
  });
});

describe('what is damaged or cannot be kept', () => {
  const content = pattern(2 * MIB);

  test('a damaged block is fetched anew, with one warning', async (t) => {
    const bucket = new Bucket();
    const directory = directoryOf(t);
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => same(await read(g, 'f', 0, content.length), content));
    const fd = openSync(join(directory, 'blocks', 'data'), 'r+');
    for (const at of [1000, MIB + 1000]) writeSync(fd, Buffer.from('damage'), 0, 6, at);
    closeSync(fd);
    await withGuest(bucket, directory, async (g) => {
      assert.ok(await bucket.during(async () => same(await read(g, 'f', 0, content.length), content)) > 0);
      assert.equal(warnings(g).length, 1);
      assert.match(warnings(g)[0], /^warn: block cache: a block in .* is damaged/);
      await g.opened.idle();
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 0, content.length), content)), 0);
    });
  });

  test('a full disk is one warning, and reading goes on', ROOT_ONLY, async (t) => {
    const directory = mounted(t, 'size=1500k');
    const bucket = new Bucket();
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => {
      for (let i = 0; i < 2; i++) {
        same(await read(g, 'f', 0, content.length), content);
        await g.opened.idle();
      }
      assert.equal(warnings(g).length, 1);
      assert.match(warnings(g)[0], /^warn: block cache: .* cannot be written to \(ENOSPC/);
    });
  });
});

describe('a share that is only read', () => {
  const content = pattern(MIB);
  const readOnly = (cacheDirectory: string): GuestOptions => ({ write: null, blocks: { ...CACHE, cacheDirectory } });

  test('has a block cache too, which only one daemon uses at a time', async (t) => {
    const bucket = new Bucket();
    const directory = directoryOf(t);
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => {
      same(await read(g, 'f', 0, content.length), content);
      await assert.rejects(ObjectGuest.start(bucket.store, readOnly(directory)), /in use by another bucketfsd \(pid \d+\)/);
    }, readOnly(directory));
    const shared = JSON.parse(readFileSync(join(directory, 'share.json'), 'utf8')) as object;
    await withGuest(bucket, directory, async () => undefined, { write: { cacheDirectory: directory, reopen: { say: 'how' } } });
    await withGuest(bucket, directory, async (g) => {
      assert.equal(await bucket.during(async () => same(await read(g, 'f', 0, content.length), content)), 0);
    }, readOnly(directory));
    assert.deepEqual(JSON.parse(readFileSync(join(directory, 'share.json'), 'utf8')), { ...shared, reopen: { say: 'how' } }, 'recover still knows how to open the bucket');
  });

  test('is served from a directory that cannot be written to all the same', ROOT_ONLY, async (t) => {
    const directory = mounted(t, 'size=4m,ro');
    const bucket = new Bucket();
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => {
      same(await read(g, 'f', 0, content.length), content);
      assert.equal(warnings(g).length, 1);
      assert.match(warnings(g)[0], /^warn: there is no block cache: .* cannot be used \(EROFS.*\); everything is read from the bucket$/);
    }, readOnly(directory));
  });
});

describe('files that are changed', () => {
  test('what was written is read, before and after it is committed; the rest comes from the cache', async (t) => {
    const bucket = new Bucket();
    const directory = directoryOf(t);
    const content = Buffer.from(pattern(2 * MIB));
    await bucket.inner.put('f', content);
    await withGuest(bucket, directory, async (g) => {
      same(await read(g, 'f', 0, content.length), content);
      await g.opened.idle();
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 2);
      const written = Buffer.from('written by the guest');
      assert.equal((await g.write(node, fh, 100_000, written)).error, 0);
      written.copy(content, 100_000);
      assert.equal(await bucket.during(async () => {
        for (const from of [64 * KIB, MIB, MIB + 100]) {
          const { data } = await g.read(node, fh, from, 64 * KIB);
          same(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)), content, from, from + 64 * KIB);
        }
      }), 0);
      await flush(g, node, fh);
      await release(g, node, fh);
      same(await read(g, 'f', 0, content.length), content);
    });
    await withGuest(bucket, directory, async (g) => same(await read(g, 'f', 0, content.length), content));
    assert.deepEqual(readdirSync(join(directory, 'staging')), []);
  });
});
