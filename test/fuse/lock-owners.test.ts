/**
 * Whatever way the holder of a lock goes, its locks, descriptor and count go with it.
 *
 * Holders are: a process (fcntl; FLUSH names it), an open file (OFD; only its RELEASE says so), an open file with an flock. What else could be left behind:
 * an owner that only asked (GETLK), one that was refused, one that waits when its file is released, the place of those that have unlocked, locks of an owner
 * that locked through several open files; and the other way, a lock that ends too early: a waiting thread's when another thread closes a descriptor,
 * an open file's when a duplicate of its descriptor is closed.
 */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readdirSync, readlinkSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { LockRanges } from '../../src/storage/local/lock-owner.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest } from '../support/guest.js';

const ROOT = 1n;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
const F_OFD_SETLK = 37;
const FLOCK = 1;
const LAST_BYTE = 2n ** 63n - 1n;

interface Wanted {
  readonly type?: number;
  readonly start?: bigint;
  readonly end?: bigint;
  readonly pid?: number;
  readonly flags?: number;
}

/** One file, and what is asked of its locks. */
class LockGuest {
  constructor(
    readonly g: TestGuest,
    readonly node: bigint,
    readonly fh: bigint,
  ) {}

  static async with(threads: number, options: Parameters<typeof TestGuest.start>[0], body: (l: LockGuest) => Promise<void>): Promise<void> {
    const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-share-'));
    const g = await TestGuest.start({ ...options, directory }, threads);
    try {
      writeFileSync(join(directory, 'f'), 'content');
      const { node } = await g.lookup(ROOT, 'f');
      await body(new LockGuest(g, node, await g.open(node)));
      await g.close();
    } finally {
      rmSync(directory, { recursive: true, force: true });
    }
  }

  args(fh: bigint, owner: bigint, { type = F_WRLCK, start = 0n, end = LAST_BYTE, pid = 77, flags = 0 }: Wanted = {}): Uint8Array {
    return concat(u64(fh, owner, start, end), u32(type, pid, flags, 0));
  }

  async set(fh: bigint, owner: bigint, wanted: Wanted = {}): Promise<number> {
    return (await this.g.call(OP.SETLK, this.node, this.args(fh, owner, wanted), 0)).error;
  }

  async get(fh: bigint, owner: bigint, wanted: Wanted = {}): Promise<{ type: number; start: bigint; end: bigint; pid: number }> {
    const { error, data } = await this.g.call(OP.GETLK, this.node, this.args(fh, owner, wanted), 24);
    assert.equal(error, 0);
    return { start: data.getBigUint64(0, true), end: data.getBigUint64(8, true), type: data.getUint32(16, true), pid: data.getInt32(20, true) };
  }

  /** Offer a request that is not answered at once; no call() before it is. */
  offer(opcode: number, args: Uint8Array): { head: number; error: () => number } {
    const { head, writable } = this.g.queue.chain([this.g.request(opcode, this.node, args).bytes], [16], true);
    this.g.queue.kick();
    return { head, error: () => this.g.memory.dv.getInt32(writable[0] + 4, true) };
  }

  async flush(fh: bigint, owner: bigint): Promise<void> {
    assert.equal((await this.g.call(OP.FLUSH, this.node, u64(fh, 0, owner), 0)).error, 0);
  }

  async release(fh: bigint): Promise<void> {
    assert.equal((await this.g.call(OP.RELEASE, this.node, this.releaseArgs(fh), 0)).error, 0);
  }

  releaseArgs(fh: bigint): Uint8Array {
    return concat(u64(fh), u32(2, 0), u64(0));
  }

  /** Descriptors of this process that have the file open. */
  get descriptors(): number {
    const path = join(this.g.directory, 'f');
    return readdirSync('/proc/self/fd').filter((fd) => {
      try {
        return readlinkSync(`/proc/self/fd/${fd}`) === path;
      } catch {
        return false; // that of readdir itself
      }
    }).length;
  }
}

for (const [way, threads, options] of [['inline', 0, {}], ['in the pool', 2, { offload: 'always' }]] as const) {
  test(`${way}: an open file's lock ends with its RELEASE, also the hundredth, and leaves no descriptor`, () =>
    LockGuest.with(threads, options, async (l) => {
      const before = l.descriptors;
      for (let owner = 100n; owner < 200n; owner++) {
        const fh = await l.g.open(l.node);
        assert.equal(await l.set(fh, owner), 0);
        // A process that closes a duplicate is another owner
        await l.flush(fh, 1n);
        assert.equal(await l.set(l.fh, 1n, { type: F_RDLCK }), -E.AGAIN);
        await l.release(fh);
      }
      assert.equal(await l.set(l.fh, 1n), 0);
      await l.flush(l.fh, 1n);
      assert.equal(l.descriptors, before);
    }));

  test(`${way}: an flock ends with its RELEASE even while a call in the pool uses the file`, () =>
    LockGuest.with(threads, options, async (l) => {
      const other = await l.g.open(l.node);
      assert.equal(await l.set(other, 2n, { flags: FLOCK }), 0);
      assert.equal(await l.set(l.fh, 1n, { flags: FLOCK }), -E.AGAIN);
      l.offer(OP.FSYNC, concat(u64(other), u32(0, 0)));
      l.offer(OP.RELEASE, l.releaseArgs(other));
      const mine = l.offer(OP.SETLK, l.args(l.fh, 1n, { flags: FLOCK }));
      await l.g.queue.wait(3);
      assert.equal(mine.error(), 0);
    }));
}

test('a process that goes gives up its locks, all of them and nobody else\'s, by its FLUSH', () =>
  LockGuest.with(0, {}, async (l) => {
    const before = l.descriptors;
    const other = await l.g.open(l.node);
    assert.equal(await l.set(l.fh, 1n, { start: 0n, end: 9n }), 0);
    assert.equal(await l.set(other, 1n, { start: 20n, end: 29n }), 0, 'the same process by another open file');
    assert.equal(await l.set(other, 2n, { start: 40n, end: 49n }), 0);
    await l.flush(other, 1n);
    assert.equal(await l.set(other, 2n, { start: 0n, end: 30n }), 0);
    await l.flush(other, 2n);
    await l.release(other);
    assert.equal(l.descriptors, before);
  }));

test('an owner that has locked through two open files keeps its locks until both are released', () =>
  LockGuest.with(0, {}, async (l) => {
    const [a, b] = [await l.g.open(l.node), await l.g.open(l.node)];
    assert.equal(await l.set(a, 1n, { start: 0n, end: 9n }), 0);
    assert.equal(await l.set(b, 1n, { start: 10n, end: 19n }), 0);
    await l.release(a);
    assert.equal(await l.set(l.fh, 2n, { start: 5n, end: 5n }), -E.AGAIN);
    await l.release(b);
    assert.equal(await l.set(l.fh, 2n), 0);
  }));

test('asking for a lock, and being refused one, leaves nothing behind', () =>
  LockGuest.with(0, {}, async (l) => {
    assert.equal(await l.set(l.fh, 1n), 0);
    const before = l.descriptors;
    for (let owner = 2n; owner < 50n; owner++) {
      const fh = await l.g.open(l.node);
      assert.equal((await l.get(fh, owner)).type, F_WRLCK);
      if (owner % 2n === 0n) assert.equal(await l.set(fh, owner), -E.AGAIN);
      await l.release(fh);
    }
    assert.equal(l.descriptors, before);
  }));

test('4,096 owners that have unlocked are in nobody\'s way, and as many that lock are the most there can be', () =>
  LockGuest.with(0, { nofile: 20_000 }, async (l) => {
    for (let owner = 1n; owner <= 4096n; owner++) {
      assert.equal(await l.set(l.fh, owner, { type: F_RDLCK }), 0);
    }
    assert.equal(await l.set(l.fh, 5000n, { type: F_RDLCK }), -E.NOLCK);
    assert.equal(await l.set(l.fh, 17n, { type: F_UNLCK }), 0);
    assert.equal(await l.set(l.fh, 5000n, { type: F_RDLCK }), 0);
    assert.equal(await l.set(l.fh, 5001n, { type: F_RDLCK }), -E.NOLCK);
    await l.release(l.fh);
    const fh = await l.g.open(l.node);
    assert.equal(await l.set(fh, 1n), 0);
  }));

test('who waits through an open file that is released is EBADF, and gets no lock later', () =>
  LockGuest.with(0, {}, async (l) => {
    const [holder, late] = [await l.g.open(l.node), await l.g.open(l.node)];
    assert.equal(await l.set(holder, 1n), 0);
    assert.equal(await l.set(holder, 1n, { flags: FLOCK }), 0);
    const waiting = [l.offer(OP.SETLKW, l.args(late, 2n)), l.offer(OP.SETLKW, l.args(late, 2n, { flags: FLOCK }))];
    const released = l.offer(OP.RELEASE, l.releaseArgs(late));
    const used = await l.g.queue.wait(3);
    assert.deepEqual(new Set(used.map(({ head }) => head)), new Set([...waiting, released].map(({ head }) => head)));
    assert.deepEqual(waiting.map(({ error }) => error()), [-E.BADF, -E.BADF]);
    await l.release(holder);
    assert.equal(await l.set(l.fh, 3n), 0);
    assert.equal(await l.set(l.fh, 3n, { flags: FLOCK }), 0);
  }));

test('a thread that waits goes on waiting when another one closes a descriptor, and gets the lock', () =>
  LockGuest.with(0, {}, async (l) => {
    const other = await l.g.open(l.node);
    assert.equal(await l.set(other, 1n, { start: 0n, end: 9n }), 0);
    assert.equal(await l.set(l.fh, 2n, { start: 100n, end: 109n }), 0);
    const waiting = l.offer(OP.SETLKW, l.args(l.fh, 2n, { start: 0n, end: 9n }));
    l.offer(OP.FLUSH, u64(l.fh, 0, 2n));
    const taken = l.offer(OP.SETLK, l.args(other, 1n, { start: 100n, end: 109n }));
    const [, second] = await l.g.queue.wait(2);
    assert.equal(second.head, taken.head);
    assert.equal(taken.error(), 0, 'what it had is free');
    l.offer(OP.FLUSH, u64(other, 0, 1n));
    const used = await l.g.queue.wait(2);
    assert.ok(used.some(({ head }) => head === waiting.head));
    assert.equal(waiting.error(), 0);
    assert.equal(await l.set(other, 1n, { start: 5n, end: 5n }), -E.AGAIN);
  }));

test('locks are exact from the first byte to the last one that there can be', () =>
  LockGuest.with(0, {}, async (l) => {
    const edges = [0n, 1n, 2n ** 31n, 2n ** 53n - 1n, 2n ** 53n, 2n ** 53n + 1n, 2n ** 62n, 2n ** 62n + 1n, LAST_BYTE - 1n, LAST_BYTE];
    for (const [i, at] of edges.entries()) {
      const [start, end] = [at, edges[i + 1] ?? LAST_BYTE];
      assert.equal(await l.set(l.fh, 1n, { start, end, pid: 4711 }), 0, `${start} to ${end}`);
      assert.deepEqual(await l.get(l.fh, 2n, { start: end, end }), { type: F_WRLCK, start, end, pid: 4711 });
      if (start > 0n) assert.equal((await l.get(l.fh, 2n, { start: 0n, end: start - 1n })).type, F_UNLCK);
      if (end < LAST_BYTE) assert.equal(await l.set(l.fh, 2n, { start: end + 1n, end: LAST_BYTE }), 0);
      assert.equal(await l.set(l.fh, 2n, { type: F_UNLCK }), 0);
      assert.equal(await l.set(l.fh, 1n, { type: F_UNLCK }), 0);
    }
    for (const [start, end] of [[10n, 9n], [0n, 2n ** 63n], [2n ** 63n, 2n ** 64n - 1n]]) assert.equal(await l.set(l.fh, 1n, { start, end }), -E.INVAL);
  }));

test('GETLK names the process of this guest that has the lock, and none for a lock of the host', () =>
  LockGuest.with(0, {}, async (l) => {
    assert.equal(await l.set(l.fh, 1n, { start: 0n, end: 9n, pid: 101 }), 0);
    assert.equal(await l.set(l.fh, 2n, { start: 10n, end: 19n, pid: 102, type: F_RDLCK }), 0);
    assert.equal(await l.set(l.fh, 2n, { start: 12n, end: 13n, type: F_UNLCK, pid: 0 }), 0);
    const holder = async (start: bigint, end = start): Promise<readonly [number, number]> => {
      const { type, pid } = await l.get(l.fh, 3n, { start, end });
      return [type, pid];
    };
    assert.deepEqual(await holder(5n, 30n), [F_WRLCK, 101]);
    assert.deepEqual(await holder(14n), [F_RDLCK, 102]);
    assert.equal((await holder(12n, 13n))[0], F_UNLCK);
    const fd = openSync(join(l.g.directory, 'f'), 'r+');
    const flock = NativeMemory.allocate(32);
    flock.dv.setInt16(0, F_WRLCK, true);
    flock.dv.setBigInt64(8, 50n, true);
    assert.equal(c.fcntl(fd, F_OFD_SETLK, flock.address), 0);
    assert.deepEqual(await holder(50n, 60n), [F_WRLCK, 0]);
    closeSync(fd);
    flock.free();
  }));

test('what is known of an owner\'s locks is what fcntl would make of them', () => {
  const seed = Number(process.env['SEED'] ?? 20_260_131);
  let state = seed;
  const below = (n: number): number => (state = (state * 1_103_515_245 + 12_345) % 2_147_483_648) % n;
  for (let round = 0; round < 200; round++) {
    const ranges = new LockRanges();
    const bytes = new Array<number>(40).fill(F_UNLCK);
    for (let i = 0; i < 30; i++) {
      const start = below(40);
      const end = start + below(40 - start);
      const type = below(3);
      ranges.set(BigInt(start), BigInt(end), type);
      bytes.fill(type, start, end + 1);
      for (let at = 0; at < 40; at++) {
        for (const one of [F_RDLCK, F_WRLCK]) assert.equal(ranges.overlaps(BigInt(at), BigInt(at), one), bytes[at] === one, `seed ${seed}, round ${round}`);
      }
      assert.equal(ranges.isEmpty, bytes.every((byte) => byte === F_UNLCK));
    }
  }
});
