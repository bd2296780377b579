/** Cache directories that are full, or have more in them than usual. Those that keep the daemon from starting are in bad-start.test.ts. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, statfsSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { pattern } from './contract.js';

const KIB = 1 << 10;
const BIG = pattern(500 * KIB);
/** So that half a megabyte is an upload in parts. */
const SMALL = { putMaxBytes: 64 * KIB, partBytes: 32 * KIB, copyMaxBytes: 256 * KIB, growAfterParts: 100, partsAtOnce: 3 };

let store: MemoryStore;
let guest: ObjectGuest | null = null;
let files: Files;

beforeEach(() => (store = new MemoryStore({ limits: { partMinBytes: 16 * KIB } })));
afterEach(stop);

async function stop(): Promise<void> {
  const running = guest;
  guest = null;
  await running?.close();
}

/** As by SIGKILL; the cache directory stays. */
async function crash(): Promise<void> {
  const running = guest;
  guest = null;
  await running?.kill();
}

async function restart(cacheDirectory: string, options: GuestOptions = {}): Promise<ObjectGuest> {
  await stop();
  guest = await ObjectGuest.start(store, { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 60_000, sizes: SMALL }, ...options });
  files = new Files(guest);
  return guest;
}

async function stored(key: string): Promise<Buffer> {
  const { size } = await store.head(key);
  const into = Buffer.alloc(size);
  await store.read(key, { offset: 0, into });
  return into;
}

function same(found: Buffer | number, expected: Uint8Array): void {
  assert.ok(typeof found !== 'number', `errno ${String(found)}`);
  assert.ok(found.equals(expected), `${found.length} bytes, not the ${expected.length} that were expected`);
}

/** A small disk. */
function mounted(options: string): string {
  const point = mkdtempSync(join(tmpdir(), 'bucketfsd-full-'));
  execFileSync('mount', ['-t', 'tmpfs', '-o', `mode=0700,${options}`, 'test', point]);
  return point;
}

async function unmounted(point: string): Promise<void> {
  await stop();
  execFileSync('umount', ['-l', point]);
  rmSync(point, { recursive: true });
}

describe('the cache directory', () => {
  const root = process.geteuid!() === 0 ? false : 'mounting needs root';

  test('that is full: writes are ENOSPC, what was acknowledged is there and reaches the bucket, and then there is room again', { skip: root }, async () => {
    const point = mounted('size=2M');
    try {
      let g = await restart(point);
      const content = pattern(3 << 20);
      const big = await files.create('big');
      let written = 0;
      let error = 0;
      for (const step of [65536, 4096, 1]) {
        for (error = 0; error === 0 && written < content.length; ) {
          const reply = await g.write(big.node, big.fh, written, content.subarray(written, written + step));
          error = reply.error;
          if (error === 0) written += reply.data.getUint32(0, true);
        }
        assert.equal(error, -E.NOSPC, `${written} bytes were written`);
      }
      // Where there is data already only the journal grows, until that is full too
      for (error = 0; error === 0; ) error = await files.write(big, 7, content.subarray(7, 8));
      assert.equal(error, -E.NOSPC);
      same(await files.read(big), content.subarray(0, written));
      const refused = await g.call(OP.CREATE, ROOT, concat(u32(2 | 0o100, 0o100644, 0o22, 0), name('another')), 144);
      assert.ok(refused.error === 0 || refused.error === -E.NOSPC, String(refused.error));
      await crash();
      g = await restart(point);
      same(await files.content('big'), content.subarray(0, written));
      await g.opened.idle();
      same(await stored('big'), content.subarray(0, written));
      const after = await files.create('after');
      assert.equal(await files.write(after, 0, BIG), 0);
      assert.equal(await files.close(after), 0);
      await stop();
      same(await stored('after'), BIG);
    } finally {
      await unmounted(point);
    }
  });

  const WRITE_CACHE = 1;
  const O_DIRECT = process.arch === 'arm64' ? 0o200000 : 0o40000;
  for (const [how, writeFlags, flags, mayBeShort] of [['plain', 0, 0, true], ['O_DIRECT', 0, O_DIRECT, false], ['written back by the guest', WRITE_CACHE, 0, false]] as const) {
    test(`that has room for a part of a write: ${how}, ${mayBeShort ? 'that part is written' : 'ENOSPC, since Linux makes EIO of a short answer'}; once there is room it goes on`, { skip: root }, async () => {
      const point = mounted('size=1M');
      try {
        const g = await restart(point);
        const file = await files.create('f');
        assert.equal(await files.write(file, 0, pattern(10_000)), 0);
        // So much is left that a part of the next one fits
        const ballast = join(point, 'ballast');
        const { bavail, bsize } = statfsSync(point);
        writeFileSync(ballast, Buffer.alloc(bavail * bsize - 40_000));
        const more = pattern(100_000, 3);
        const { error, data } = await g.write(file.node, file.fh, 20_000, more, more.length, writeFlags, flags);
        const written = error === 0 ? data.getUint32(0, true) : 0;
        if (mayBeShort) assert.ok(written > 0 && written < more.length, `${error} ${written}`);
        else assert.equal(error, -E.NOSPC);
        const expected = Buffer.concat([pattern(10_000), Buffer.alloc(written > 0 ? 10_000 : 0), more.subarray(0, written)]);
        same(await files.read(file), expected);
        rmSync(ballast);
        // Of what was not acknowledged nothing shows when the file grows over it
        assert.equal(await files.write(file, 200_000, pattern(1)), 0);
        const whole = Buffer.concat([expected, Buffer.alloc(200_000 - expected.length), pattern(1)]);
        same(await files.read(file), whole);
        assert.equal(await files.close(file), 0);
        await stop();
        same(await stored('f'), whole);
      } finally {
        await unmounted(point);
      }
    });
  }

  test('that is full: what is removed makes room for the very next write, also where the journal has to be on the disk first', { skip: root }, async () => {
    const point = mounted('size=1M');
    try {
      const g = await restart(point);
      for (let round = 0; round < 5; round++) {
        const file = await files.create('f');
        let at = 0;
        while ((await g.write(file.node, file.fh, at, BIG.subarray(0, 65536))).error === 0) at += 65536;
        assert.ok(at > 300_000, `round ${round}: room for ${at} bytes`);
        assert.equal(await files.fsync(file), 0);
        assert.equal(await files.close(file), 0);
        assert.equal((await g.call(OP.UNLINK, ROOT, name('f'), 0)).error, 0);
      }
    } finally {
      await unmounted(point);
    }
  });

  test('that is full of what was read: that gives way to what is written, and to the journal', { skip: root }, async () => {
    const point = mounted('size=4M');
    const blocks = { bytes: 8 << 20, blockBytes: 64 * KIB };
    const read = pattern(3 << 20, 5);
    try {
      await store.put('read', read);
      const g = await restart(point, { blocks });
      same(await files.content('read'), read);
      await g.opened.idle();
      const kept = statSync(join(point, 'blocks', 'data')).blocks * 512;
      assert.ok(kept > 2 << 20, `${kept} bytes are kept`);
      const content = pattern(3 << 20);
      const big = await files.create('big');
      for (let at = 0; at < content.length; at += 65536) assert.equal(await files.write(big, at, content.subarray(at, at + 65536)), 0, `at ${at}`);
      assert.ok(statSync(join(point, 'blocks', 'data')).blocks * 512 < kept);
      same(await files.read(big), content);
      same(await files.content('read'), read);
      await crash();
      await restart(point, { blocks });
      same(await files.content('big'), content);
      same(await files.content('read'), read);
      await stop();
      same(await stored('big'), content);
    } finally {
      await unmounted(point);
    }
  });

  test('that has a file in thousands of pieces: all of them are there after restarts', async () => {
    const expected = Buffer.alloc(2500 * 100, 0);
    const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-pieces-'));
    await restart(cacheDirectory);
    const file = await files.create('f');
    for (let i = 0; i < 2500; i++) {
      expected[i * 100 + 99] = 1 + (i % 255);
      assert.equal(await files.write(file, i * 100 + 99, expected.subarray(i * 100 + 99, i * 100 + 100)), 0);
    }
    for (let i = 0; i < 2; i++) {
      await crash();
      await restart(cacheDirectory);
    }
    same(await files.content('f'), expected);
    await stop();
    same(await stored('f'), expected);
    rmSync(cacheDirectory, { recursive: true });
  });
});
