/** The block cache on disk by itself: see src/storage/object/blocks/block-cache.ts. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, constants, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { NativeMemory, viewOf } from '../../src/ffi/memory.js';
import { BLOCK_BYTES, BlockCache } from '../../src/storage/object/blocks/block-cache.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { assertSpace, BLOCK, blocksOf, CONTENT, has, keep, keepInOrder, open, read, scratchDirectory, theObject, tryOpen } from '../support/blocks.js';
import { pattern } from './contract.js';

const ROOT_ONLY = { skip: process.geteuid!() === 0 ? false : 'needs root' };
const ALL = Array.from({ length: 11 }, (_, block) => block);

/** Overwrite bytes of the file that is behind the cache. */
function scribble(path: string, at: number, bytes: Uint8Array): void {
  const fd = openSync(path, 'r+');
  writeSync(fd, bytes, 0, bytes.length, at);
  closeSync(fd);
}

/** Whether the file system knows of O_DIRECT. */
function isDirect({ options }: BlockCache): boolean {
  try {
    closeSync(openSync(join(options.directory, 'data'), constants.O_WRONLY | constants.O_DIRECT));
    return true;
  } catch {
    return false;
  }
}

describe('what is kept', () => {
  test('is there, as a whole and in part; parts of blocks are not kept, other versions and keys are not there', async (t) => {
    const { cache, budget } = await open(scratchDirectory(t));
    const object = theObject(cache);
    await keep(object, BLOCK / 2, 3 * BLOCK + 10);
    assert.deepEqual(await blocksOf(object), [1, 2]);
    assert.ok((await read(object, BLOCK + 77, 4096))!.equals(CONTENT.subarray(BLOCK + 77, BLOCK + 77 + 4096)));
    for (const other of [theObject(cache, 'k', '2'), theObject(cache, 'l'), cache.object('k', '1', CONTENT.length + 1)]) assert.equal(await has(other, 1), false);
    await keep(object);
    assert.deepEqual(await blocksOf(object), ALL);
    assert.equal(budget.used, 0);
    await cache.close();
  });

  test('is read from memory as long as it waits to be written, whole blocks only', async (t) => {
    const { cache, budget } = await open(scratchDirectory(t));
    const object = theObject(cache);
    const { file } = cache.slots;
    let go: () => void = () => undefined;
    const gate = new Promise<void>((resolve) => (go = resolve));
    const gated = <A extends unknown[], R>(write: (...args: A) => Promise<R>): ((...args: A) => Promise<R>) => async (...args) => {
      await gate;
      return write(...args);
    };
    file.write = gated(file.write.bind(file));
    file.writeDirect = gated(file.writeDirect.bind(file));
    const keeping = keep(object, BLOCK, 2 * BLOCK);
    const part = object.missed(3 * BLOCK, 3 * BLOCK + 4096, CONTENT.subarray(3 * BLOCK), () => false);
    assert.deepEqual(await blocksOf(object), [1]);
    assert.ok((await read(object, BLOCK + 77, 4096))!.equals(CONTENT.subarray(BLOCK + 77, BLOCK + 77 + 4096)));
    assert.equal(await read(object, 3 * BLOCK, 4096), null);
    assert.equal(await has(theObject(cache, 'k', '2'), 1), false);
    assert.equal(object.cache.has(object.id, 1), false, 'not on disk');
    go();
    await Promise.all([keeping, part]);
    assert.deepEqual([await blocksOf(object), object.cache.has(object.id, 1), budget.used], [[1], true, 0]);
    await cache.close();
    assert.deepEqual(await blocksOf(object), []);
  });

  test('is written past the page cache where that is possible, and is the same if not', async (t) => {
    const bytes = 2 * BLOCK_BYTES + 700_001;
    const content = pattern(bytes);
    const memory = NativeMemory.allocate(bytes + 1);
    t.after(() => memory.free());
    const aligned = memory.u8.subarray(0, bytes);
    // To the cache it looks as if it began where a page does
    const unaligned = new Uint8Array(viewOf(memory.address + 1, bytes));
    const directory = scratchDirectory(t);
    for (const [at, from] of [aligned, memory.u8.subarray(1, bytes + 1), unaligned, aligned].entries()) {
      const { cache } = await open(directory, 64 << 20, 32 << 20, BLOCK_BYTES);
      const object = cache.object('direct', String(at), bytes);
      from.set(content);
      await object.keep(0, bytes, from);
      from.fill(0);
      if (from === aligned) assert.equal(cache.statistics.direct, isDirect(cache) ? 3 : 0);
      for (const place of [0, BLOCK_BYTES, 2 * BLOCK_BYTES]) {
        const length = Math.min(BLOCK_BYTES, bytes - place);
        assert.ok((await read(object, place, length))!.equals(content.subarray(place, place + length)), `${at}: what is at ${place}`);
      }
      await cache.close();
      const again = await open(directory, 64 << 20, 32 << 20, BLOCK_BYTES);
      assert.ok((await read(again.cache.object('direct', String(at), bytes), bytes - 9999, 9999))!.equals(content.subarray(bytes - 9999)));
      assert.deepEqual([again.cache.statistics.bad, again.warnings], [0, []]);
      await again.cache.close();
    }
  });

  test('is there after a restart, and takes no more space than it needs', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keep(theObject(first.cache));
    const small = first.cache.object('small', '1', 100);
    await small.keep(0, 100, CONTENT.subarray(0, 100));
    const used = first.cache.slots.used;
    assert.equal(used, 10 * BLOCK + 2 * 4096);
    await first.cache.close();
    assertSpace(directory, used);
    const { cache, warnings } = await open(directory);
    assert.deepEqual(await blocksOf(theObject(cache)), ALL);
    assert.ok((await read(cache.object('small', '1', 100), 0, 100))!.equals(CONTENT.subarray(0, 100)));
    assert.deepEqual([cache.slots.used, warnings], [used, []]);
    await cache.close();
  });

  test('is there after a daemon that was killed', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keep(theObject(first.cache));
    await first.cache.abandon();
    const { cache, warnings } = await open(directory);
    assert.deepEqual([await blocksOf(theObject(cache)), warnings], [ALL, []]);
    await cache.close();
  });

  test('is right after a daemon that was killed at any moment, and nothing is taken for damaged', async (t) => {
    const directory = scratchDirectory(t);
    let there = 0;
    for (let round = 0; round < 40; round++) {
      const { cache, warnings } = await open(directory, 8 * BLOCK);
      assert.deepEqual(warnings, []);
      for (const version of [round - 1, round]) there += (await blocksOf(theObject(cache, 'k', String(version)))).length;
      assert.deepEqual([warnings, cache.statistics.bad], [[], 0]);
      // When so many writes to the disk have begun, of which there are two for a block at least
      const { file, index } = cache.slots;
      let left = round;
      let reach: () => void = () => undefined;
      const reached = new Promise<void>((resolve) => (reach = resolve));
      const counted = <A extends unknown[], R>(write: (...args: A) => R): ((...args: A) => R) => (...args) => {
        if (--left < 0) reach();
        return write(...args);
      };
      file.writeDirect = counted(file.writeDirect.bind(file));
      index.write = counted(index.write.bind(index));
      const writing = keep(theObject(cache, 'k', String(round)));
      await Promise.race([writing, reached]);
      await cache.abandon();
      await writing;
    }
    assert.ok(there > 40, `${there} blocks were found again`);
  });

  test('is bounded: what was not used for the longest time goes first, also after a restart', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory, 4 * BLOCK);
    const object = theObject(first.cache);
    for (const block of [0, 1, 2, 3]) await keep(object, block * BLOCK, (block + 1) * BLOCK);
    assert.ok(await has(object, 0));
    await keep(object, 4 * BLOCK, 5 * BLOCK);
    assert.deepEqual(await blocksOf(object), [0, 2, 3, 4]); // and these are used in this order
    assert.ok(await has(object, 0));
    assert.equal(first.cache.slots.evicted, 1);
    await first.cache.close();
    const second = await open(directory, 4 * BLOCK);
    const same = theObject(second.cache);
    await keep(same, 5 * BLOCK, 7 * BLOCK);
    assert.ok(second.cache.slots.used <= 4 * BLOCK);
    await second.cache.idle();
    assertSpace(directory, 4 * BLOCK);
    assert.deepEqual(await blocksOf(same), [0, 4, 5, 6]);
    await second.cache.close();
  });

  test('of small objects: many of them fit, and make room for large blocks', async (t) => {
    const directory = scratchDirectory(t);
    const { cache } = await open(directory, 4 * BLOCK);
    const small = Array.from({ length: 64 }, (_, i) => cache.object(`small ${i}`, '1', 4000));
    for (const one of small) await one.keep(0, 4000, CONTENT.subarray(0, 4000));
    assert.equal(cache.slots.table.count, 64);
    const object = theObject(cache);
    await keep(object, 0, 3 * BLOCK);
    assert.deepEqual(await blocksOf(object), [0, 1, 2]);
    assert.equal(cache.slots.table.count, 3 + 16);
    assertSpace(directory, 4 * BLOCK);
    await cache.close();
  });

  test('of hundreds of small objects: they go together when a large block comes', async (t) => {
    const warnings: string[] = [];
    const log = { warn: (_fields: object, message: string) => void warnings.push(message), debug: () => undefined };
    const MIB = 1 << 20;
    const large = pattern(14 * MIB);
    const cache = (await BlockCache.open({ directory: scratchDirectory(t), bytes: 16 * MIB, scope: '' }, new MemoryBudget(1 << 30), log))!;
    const object = cache.object('large', '1', large.length);
    const small = Array.from({ length: 490 }, (_, i) => cache.object(`small ${i}`, '1', 4096));
    for (const one of small) await one.keep(0, 4096, large.subarray(0, 4096));
    await object.keep(0, large.length, large);
    assert.equal(cache.slots.table.count, 14 + 490);
    const other = cache.object('other', '1', MIB);
    await other.keep(0, MIB, large.subarray(MIB, 2 * MIB));
    assert.ok((await read(other, 5, 100))!.equals(large.subarray(MIB + 5, MIB + 105)));
    assert.deepEqual([cache.slots.table.count, warnings], [14 + 1 + 490 - (490 - 256), []]);
    assert.ok(cache.slots.used <= 16 * MIB);
    await cache.close();
  });

  test('fits after the cache was made smaller, and larger', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keepInOrder(theObject(first.cache));
    await first.cache.close();
    const second = await open(directory, 3 * BLOCK);
    assert.deepEqual(await blocksOf(theObject(second.cache)), [8, 9, 10]);
    assertSpace(directory, 3 * BLOCK);
    await second.cache.close();
    const third = await open(directory);
    assert.deepEqual(await blocksOf(theObject(third.cache)), [8, 9, 10]);
    await keep(theObject(third.cache));
    assert.deepEqual([await blocksOf(theObject(third.cache)), third.warnings, second.warnings], [ALL, [], []]);
    await third.cache.close();
  });

  test('is not more than memory allows to wait', async (t) => {
    const { cache } = await open(scratchDirectory(t), 64 * BLOCK, 4 * 2 * BLOCK);
    const object = theObject(cache);
    await keep(object);
    assert.equal((await blocksOf(object)).length, 2);
    assert.equal(cache.statistics.skipped, 9);
    await keep(object);
    assert.equal((await blocksOf(object)).length, 4);
    await cache.close();
  });
});

describe('what is damaged', () => {
  test('is dropped with one warning, and can be kept anew', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keepInOrder(theObject(first.cache));
    await first.cache.close();
    for (const slot of [0, 5]) scribble(join(directory, 'data'), slot * BLOCK + 1234, Uint8Array.of(CONTENT[slot * BLOCK + 1234] ^ 1));
    const { cache, warnings } = await open(directory);
    const object = theObject(cache);
    const found = await Promise.all([read(object, 0, 10), read(object, 100, 10), read(object, 5 * BLOCK, 10), read(object, BLOCK, 10)]);
    assert.deepEqual(found.map((one) => one !== null), [false, false, false, true], 'whichever part is read');
    assert.deepEqual(await blocksOf(object), ALL.filter((block) => block !== 0 && block !== 5));
    assert.equal(cache.statistics.bad, 2);
    assert.equal(warnings.length, 1);
    assert.match(warnings[0], /a block in .* is damaged; it is fetched anew/);
    await keep(object);
    assert.deepEqual(await blocksOf(object), ALL);
    await cache.close();
    const third = await open(directory);
    assert.deepEqual([await blocksOf(theObject(third.cache)), third.warnings], [ALL, []]);
    await third.cache.close();
  });

  test('a file that was cut: what is still there is used', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keepInOrder(theObject(first.cache));
    await first.cache.close();
    truncateSync(join(directory, 'data'), 4 * BLOCK + 100);
    const { cache, warnings } = await open(directory);
    assert.deepEqual(await blocksOf(theObject(cache)), [0, 1, 2, 3]);
    assert.match(warnings.join(), /^block cache: 7 blocks are not in .* as its index says/);
    await keep(theObject(cache));
    assert.deepEqual(await blocksOf(theObject(cache)), ALL);
    await cache.close();
  });

  test('a file that is cut, or damaged before it is first used, while it is in use', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keepInOrder(theObject(first.cache));
    truncateSync(join(directory, 'data'), 4 * BLOCK);
    assert.deepEqual(await blocksOf(theObject(first.cache)), [0, 1, 2, 3]);
    assert.match(first.warnings.join(), /^block cache: a block in .* is damaged[^,]*, as all others that prove to be$/);
    await first.cache.close();
    const { cache, warnings } = await open(directory);
    scribble(join(directory, 'data'), 2 * BLOCK, Buffer.alloc(BLOCK));
    assert.deepEqual(await blocksOf(theObject(cache)), [0, 1, 3]);
    assert.equal(warnings.length, 1);
    await cache.close();
  });

  test('an index that is damaged, cut, of another kind, or gone: what it does not say is not there', async (t) => {
    const directory = scratchDirectory(t);
    const index = join(directory, 'index');
    const damages: [string, (() => void), number[]][] = [
      ['one record', () => scribble(index, 4096 + 3 * 64 + 12, Uint8Array.of(99)), [0, 1, 2, 4, 5, 6, 7, 8, 9, 10]],
      ['records of others', () => scribble(index, 4096 + 3 * 64, readFileSync(index).subarray(4096 + 4 * 64, 4096 + 5 * 64)), [0, 1, 2, 5, 6, 7, 8, 9, 10]],
      ['cut', () => truncateSync(index, 4096 + 2 * 64 + 10), [0, 1]],
      ['header', () => scribble(index, 40, Uint8Array.of(1, 2, 3)), []],
      ['another kind', () => scribble(index, 0, Buffer.from('bucketfsd blocks 9\n')), []],
      ['empty', () => truncateSync(index, 0), []],
      ['gone', () => rmSync(index), []],
    ];
    for (const [what, damage, left] of damages) {
      rmSync(directory, { recursive: true, force: true });
      const first = await open(directory);
      await keepInOrder(theObject(first.cache));
      await first.cache.close();
      damage();
      const { cache } = await open(directory);
      assert.deepEqual(await blocksOf(theObject(cache)), left, what);
      await keep(theObject(cache));
      assert.deepEqual(await blocksOf(theObject(cache)), ALL, what);
      await cache.close();
    }
  });

  test('slots of blocks that others still read are not used for new ones', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory, 4 * BLOCK);
    await keep(theObject(first.cache), 0, 4 * BLOCK);
    await first.cache.close();
    const { cache } = await open(directory, 4 * BLOCK);
    const object = theObject(cache);
    // All are being compared with their checksums while others want their place
    const reading = [0, 1, 2, 3].map((block) => has(object, block));
    const other = theObject(cache, 'other');
    await Promise.all([keep(other, 0, 8 * BLOCK), ...reading]);
    assert.deepEqual(await Promise.all(reading), [true, true, true, true]);
    for (const one of [object, other]) await blocksOf(one); // whatever is there is right
    await keep(other, 0, 4 * BLOCK);
    assert.deepEqual((await blocksOf(other)).length, 4);
    await cache.close();
  });
});

describe('a directory that fails', () => {
  const mounted = (t: TestContext, options: string): string => {
    const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-blocks-'));
    execFileSync('mount', ['-t', 'tmpfs', '-o', `mode=0700,${options}`, 'none', directory]);
    t.after(() => {
      execFileSync('umount', ['-l', directory]);
      rmSync(directory, { recursive: true });
    });
    return join(directory, 'blocks');
  };

  test('a disk that is full: nothing more is kept, what is there is used, and said once', ROOT_ONLY, async (t) => {
    const directory = mounted(t, 'size=512k');
    const { cache, warnings } = await open(directory);
    const object = theObject(cache);
    for (const block of ALL) await keep(object, block * BLOCK, object.endOf(block));
    const there = await blocksOf(object);
    assert.ok(there.length >= 4 && there.length <= 7, there.join());
    assert.equal(warnings.length, 1);
    assert.match(warnings[0], /^block cache: .*blocks cannot be written to \(.*ENOSPC.*\): what it has is used, nothing more is kept, until the next start$/);
    assert.equal(object.keep(0, CONTENT.length, CONTENT), null);
    assert.equal(cache.mayFetch, false);
    await cache.close();
    const second = await open(directory);
    assert.deepEqual(await blocksOf(theObject(second.cache)), there);
    await second.cache.close();
    assert.equal(second.warnings.length, 0);
  });

  test('read-only from the start: there is no cache, and a warning', ROOT_ONLY, async (t) => {
    const directory = mounted(t, 'size=1m');
    const first = await open(directory);
    await keep(theObject(first.cache));
    await first.cache.close();
    execFileSync('mount', ['-o', 'remount,ro', join(directory, '..')]);
    const { cache, warnings } = await tryOpen(directory);
    assert.equal(cache, null);
    assert.match(warnings.join(), /^there is no block cache: .* cannot be used \(EROFS.*\); everything is read from the bucket$/);
  });

  test('a block that was half written in the place of another one is neither of them', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory, 2 * BLOCK);
    // One after the other: the first is the one that was used least lately
    await keep(theObject(first.cache), 0, BLOCK);
    await keep(theObject(first.cache), BLOCK, 2 * BLOCK);
    const { file } = first.cache.slots;
    file.writeDirect = async (slot, content) => {
      await file.write(slot, content.subarray(0, 5000));
      throw Object.assign(new Error('EIO: i/o error, write'), { code: 'EIO', errno: -5 });
    };
    await keep(theObject(first.cache), 2 * BLOCK, 3 * BLOCK);
    assert.match(first.warnings.join(), /cannot be written to \(EIO/);
    assert.deepEqual(await blocksOf(theObject(first.cache)), [1]);
    await first.cache.abandon();
    const { cache, warnings } = await open(directory, 2 * BLOCK);
    assert.deepEqual([await blocksOf(theObject(cache)), warnings, cache.statistics.bad], [[1], [], 0]);
    await cache.close();
  });

  test('a disk that cannot be read: nothing is taken from it any more, and said once', async (t) => {
    const directory = scratchDirectory(t);
    const first = await open(directory);
    await keep(theObject(first.cache));
    await first.cache.close();
    const { cache, warnings } = await open(directory);
    assert.ok(await has(theObject(cache), 0));
    cache.slots.file.fill = () => Promise.reject(Object.assign(new Error('EIO: i/o error, read'), { code: 'EIO', errno: -5 }));
    assert.deepEqual(await Promise.all([has(theObject(cache), 1), has(theObject(cache), 1), has(theObject(cache), 2)]), [false, false, false]);
    assert.deepEqual(await blocksOf(theObject(cache)), []);
    assert.deepEqual([warnings.length, cache.statistics.bad], [1, 0]);
    assert.match(warnings[0], /^block cache: .*blocks cannot be read \(EIO.*\): it is not used any more, everything is read from the bucket, until the next start$/);
    assert.equal(theObject(cache).keep(0, BLOCK, CONTENT), null);
    await cache.close();
  });

  test('one that is no directory, or not to be made', async (t) => {
    const directory = scratchDirectory(t);
    writeFileSync(directory, 'a file');
    const { cache, warnings } = await tryOpen(directory);
    assert.equal(cache, null);
    assert.match(warnings.join(), /^there is no block cache: .* cannot be used \((EEXIST|ENOTDIR).*\)/);
    rmSync(directory);
    mkdirSync(join(directory, 'data'), { recursive: true });
    const other = await tryOpen(directory);
    assert.deepEqual([other.cache, other.warnings.length], [null, 1]);
  });
});
