/**
 * Numbers of 64 bits at their limits: kept, or refused with Linux's errno. Numbers here are exact up to 2^53 − 1; no file is made longer than that.
 * The siblings are every offset and size of the protocol: READ, WRITE, FALLOCATE, LSEEK, SETATTR, COPY_FILE_RANGE, and a file of the host that is longer.
 * (READDIR's offsets are tried in bad-input.test.ts, locks in lock-owners.test.ts.)
 */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, statSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, type FuseClient, type Reply } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';

const ROOT = 1n;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const FATTR_SIZE = 8;
const FATTR_ATIME = 16;
const FATTR_MTIME = 32;
const FAR = [2n ** 53n, 2n ** 53n + 1n, 2n ** 60n, 2n ** 62n, 2n ** 63n - 1n] as const;

interface Target {
  readonly g: FuseClient;
  readonly node: bigint;
  readonly fh: bigint;
}

const read = ({ g, node, fh }: Target, offset: bigint): Promise<Reply> => g.call(OP.READ, node, concat(u64(fh, offset), u32(16, 0), u64(0), u32(0, 0)), 16);
const write = ({ g, node, fh }: Target, offset: bigint): Promise<Reply> =>
  g.call(OP.WRITE, node, concat(u64(fh, offset), u32(1, 0), u64(0), u32(0, 0), new Uint8Array(1)), 8);
const allocate = ({ g, node, fh }: Target, offset: bigint, length: bigint): Promise<Reply> => g.call(OP.FALLOCATE, node, concat(u64(fh, offset, length), u32(0, 0)), 0);
const seek = ({ g, node, fh }: Target, offset: bigint, whence: number): Promise<Reply> => g.call(OP.LSEEK, node, concat(u64(fh, offset), u32(whence, 0)), 8);
const truncate = ({ g, node }: Target, size: bigint): Promise<Reply> => g.call(OP.SETATTR, node, concat(u32(FATTR_SIZE, 0), u64(0, size), new Uint8Array(64)), 104);

async function refused(t: Target): Promise<void> {
  for (const offset of FAR) {
    const far = await read(t, offset);
    assert.deepEqual([far.error, far.data.byteLength], [0, 0], `the file ends before ${offset}`);
    assert.equal((await write(t, offset)).error, -E.FBIG);
    assert.equal((await truncate(t, offset)).error, -E.FBIG);
    assert.equal((await allocate(t, offset, 1n)).error, -E.FBIG);
    assert.equal((await allocate(t, 1n, offset)).error, -E.FBIG);
    for (const whence of [SEEK_DATA, SEEK_HOLE]) assert.equal((await seek(t, offset, whence)).error, -E.NXIO);
  }
  assert.equal((await write(t, 2n ** 53n - 1n)).error, -E.FBIG);
  assert.equal((await allocate(t, 2n ** 52n, 2n ** 52n)).error, -E.FBIG);
  assert.equal((await t.g.read(t.node, t.fh, 0, 16)).data.byteLength, 7, 'and nothing has become of the file');
}

for (const [way, threads, offload] of [['inline', 0, 'auto'], ['in the pool', 2, 'always']] as const) {
  test(`a directory, ${way}: offsets that no file reaches`, async () => {
    const g = await TestGuest.start({ offload }, threads);
    try {
      writeFileSync(join(g.directory, 'f'), 'content');
      const { node } = await g.lookup(ROOT, 'f');
      const t = { g, node, fh: await g.open(node) };
      await refused(t);
      const copy = async (from: bigint, to: bigint): Promise<number> => (await g.call(OP.COPY_FILE_RANGE, node, concat(u64(t.fh, from, node, t.fh, to, 1, 0)), 8)).error;
      assert.deepEqual([await copy(2n ** 53n, 0n), await copy(0n, 2n ** 53n)], [-E.OVERFLOW, -E.FBIG]);
      const readOnly = { ...t, fh: await g.open(node, 1) };
      assert.equal((await read(readOnly, 2n ** 60n)).error, -E.BADF);
    } finally {
      await g.close();
    }
  });

  test(`a directory, ${way}: a file of the host that is longer is seen as long as it is, read as far as numbers go, and EOVERFLOW beyond`, async () => {
    const directory = mkdtempSync('/dev/shm/bucketfsd-far-'); // a tmpfs takes any size
    const path = join(directory, 'f');
    writeFileSync(path, 'content');
    const fd = openSync(path, 'r+');
    const iovec = NativeMemory.allocate(32);
    iovec.dv.setBigUint64(0, BigInt(iovec.putString(16, 'far')), true);
    iovec.dv.setBigUint64(8, 3n, true);
    for (const at of [2 ** 54, 2 ** 62]) assert.equal(c.pwritev2(fd, iovec.address, 1, at, 0), 3);
    closeSync(fd);
    iovec.free();
    const g = await TestGuest.start({ directory, offload }, threads);
    try {
      const { size } = statSync(path, { bigint: true });
      assert.equal(size, 2n ** 62n + 3n);
      const reply = await g.call(OP.LOOKUP, ROOT, new TextEncoder().encode('f\0'), 128);
      assert.equal(reply.data.getBigUint64(48, true), size);
      const { node } = g.entry(reply);
      const t = { g, node, fh: await g.open(node) };
      assert.equal(Buffer.from(new Uint8Array((await read(t, 0n)).data.buffer)).subarray(16, 23).toString(), 'content');
      for (const offset of FAR) {
        assert.equal((await read(t, offset)).error, -E.OVERFLOW);
        assert.equal((await seek(t, offset, SEEK_DATA)).error, -E.OVERFLOW);
      }
      assert.equal((await seek(t, 2n ** 40n, SEEK_DATA)).error, -E.OVERFLOW, 'the answer lies beyond');
    } finally {
      await g.close();
      rmSync(directory, { recursive: true });
    }
  });
}

test('a bucket: offsets that no file reaches', async () => {
  const g = await ObjectGuest.start(new MemoryStore());
  try {
    const { entry: { node }, fh } = await g.create(ROOT, 'f');
    assert.equal((await g.write(node, fh, 0, new TextEncoder().encode('content'))).error, 0);
    await refused({ g, node, fh });
  } finally {
    await g.close();
  }
});

test('a directory: times before 1970 and far from now are those of the host\'s file system, to the nanosecond', async () => {
  const g = await TestGuest.start();
  try {
    const path = join(g.directory, 'f');
    writeFileSync(path, '');
    const { node } = await g.lookup(ROOT, 'f');
    // What ext4 holds is 1901 to 2446: beyond it is cut to that, as utimensat(2) on the host would
    for (const [seconds, nanoseconds] of [[0n, 0], [-1n, 999_999_999], [1n - 2n ** 31n, 1], [2n ** 31n, 1], [2n ** 33n, 5], [2n ** 53n + 1n, 0], [2n ** 62n, 0], [-(2n ** 62n), 0]] as const) {
      const times = new DataView(new ArrayBuffer(88));
      times.setUint32(0, FATTR_ATIME | FATTR_MTIME, true);
      for (const at of [32, 40]) times.setBigInt64(at, seconds, true);
      for (const at of [56, 60]) times.setUint32(at, nanoseconds, true);
      const reply = await g.call(OP.SETATTR, node, new Uint8Array(times.buffer), 104);
      assert.equal(reply.error, 0);
      const host = statSync(path, { bigint: true });
      const told = reply.data.getBigInt64(16 + 32, true) * 1_000_000_000n + BigInt(reply.data.getUint32(16 + 52, true));
      assert.equal(told, host.mtimeNs);
      if (seconds >= -(2n ** 31n) && seconds <= 2n ** 33n) assert.equal(told, seconds * 1_000_000_000n + BigInt(nanoseconds), `${seconds}`);
    }
  } finally {
    await g.close();
  }
});
