/**
 * What is written is read back, at the limits of every field: at once, by the next daemon, and after a kill, in the convention of S3 and in that of Google
 * Cloud Storage. What cannot be kept is refused, with Linux's errno. The seed is printed.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { timeOf } from '../../src/storage/object/facts.js';
import { readPosix, writePosix, type PosixMetadata } from '../../src/storage/object/posix-metadata.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Random } from '../model/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 40);
const ROOT = 1n;
const S_IFCHR = 0o020000;
const S_IFBLK = 0o060000;
const FATTR = { MODE: 1, UID: 2, GID: 4, ATIME: 16, MTIME: 32 };
/** The years 1 to 9999, as ext4 has a range of its own (Linux: timestamp_truncate()). */
const SECONDS_MIN = -62_135_596_800n;
const SECONDS_MAX = 253_402_300_799n;

type Kind = 's3' | 'gcs';

function storeOf(kind: Kind, memory: MemoryStore): ObjectStore {
  const store = intercept(memory, (call, attempt) => attempt(call.signal));
  return Object.assign(store, { kind: kind === 'gcs' ? 'gcs' as const : memory.kind });
}

interface Attributes {
  mode: number;
  uid: number;
  gid: number;
  rdev: number;
  mtime: readonly [seconds: bigint, nanoseconds: number];
  atime: readonly [seconds: bigint, nanoseconds: number];
  readonly xattrs: Map<string, Buffer>;
  target: string | null;
}

class Client {
  constructor(readonly g: ObjectGuest) {}

  async make(file: string, mode: number, rdev: number, target: string | null): Promise<number> {
    const type = mode & 0o170000;
    if (target !== null) return (await this.g.call(OP.SYMLINK, ROOT, concat(name(file), name(target)), 128)).error;
    if (type === 0o040000) return (await this.g.call(OP.MKDIR, ROOT, concat(u32(mode & 0o7777, 0), name(file)), 128)).error;
    return (await this.g.call(OP.MKNOD, ROOT, concat(u32(mode, rdev, 0, 0), name(file)), 128)).error;
  }

  async node(file: string): Promise<bigint> {
    return (await this.g.lookup(ROOT, file)).node;
  }

  async setattr(file: string, valid: number, values: Partial<Pick<Attributes, 'mode' | 'uid' | 'gid' | 'mtime' | 'atime'>>): Promise<number> {
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, valid, true);
    const { atime = [0n, 0] as const, mtime = [0n, 0] as const } = values;
    args.setBigInt64(32, atime[0], true);
    args.setBigInt64(40, mtime[0], true);
    args.setUint32(56, atime[1], true);
    args.setUint32(60, mtime[1], true);
    args.setUint32(68, values.mode ?? 0, true);
    args.setUint32(76, values.uid ?? 0, true);
    args.setUint32(80, values.gid ?? 0, true);
    return (await this.g.call(OP.SETATTR, await this.node(file), new Uint8Array(args.buffer), 104)).error;
  }

  async setxattr(file: string, key: Uint8Array, value: Uint8Array, flags = 0): Promise<number> {
    return (await this.g.call(OP.SETXATTR, await this.node(file), concat(u32(value.length, flags, 0, 0), key, new Uint8Array(1), value), 0)).error;
  }

  /** The value, its size (`room` 0), or −errno. */
  async getxattr(file: string, key: Uint8Array, room: number): Promise<Buffer | number> {
    const { error, data } = await this.g.call(OP.GETXATTR, await this.node(file), concat(u32(room, 0), key, new Uint8Array(1)), Math.max(8, room));
    return error !== 0 ? error : room === 0 ? data.getUint32(0, true) : Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength));
  }

  async listxattr(file: string, room: number): Promise<string[] | number> {
    const { error, data } = await this.g.call(OP.LISTXATTR, await this.node(file), u32(room, 0), Math.max(8, room));
    if (error !== 0) return error;
    return room === 0 ? data.getUint32(0, true) : Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString().split('\0').slice(0, -1);
  }

  async attributes(file: string): Promise<Attributes> {
    const { error, data } = await this.g.call(OP.LOOKUP, ROOT, name(file), 128);
    assert.equal(error, 0);
    const node = data.getBigUint64(0, true);
    const time = (at: number, nanosecondsAt: number): readonly [bigint, number] => [data.getBigInt64(40 + at, true), data.getUint32(40 + nanosecondsAt, true)];
    const mode = data.getUint32(100, true);
    const xattrs = new Map<string, Buffer>();
    for (const key of (await this.listxattr(file, 65_536)) as string[]) xattrs.set(key, (await this.getxattr(file, Buffer.from(key), 65_536)) as Buffer);
    let target: string | null = null;
    if ((mode & 0o170000) === 0o120000) {
      const link = await this.g.call(OP.READLINK, node, new Uint8Array(0), 4096);
      assert.equal(link.error, 0);
      target = Buffer.from(link.data.buffer, link.data.byteOffset, link.data.byteLength).toString();
    }
    return { mode, uid: data.getUint32(108, true), gid: data.getUint32(112, true), rdev: data.getUint32(116, true), mtime: time(32, 52), atime: time(24, 48), xattrs, target };
  }
}

const clamp = (seconds: bigint): bigint => (seconds < SECONDS_MIN ? SECONDS_MIN : seconds > SECONDS_MAX ? SECONDS_MAX : seconds);

/** What a program does to a file, and what it has then. */
async function describeRandomly(client: Client, random: Random, file: string): Promise<Attributes | null> {
  const type = random.pick([0o100000, 0o040000, 0o010000, 0o140000, S_IFCHR, S_IFBLK, 0o120000]);
  const isLink = type === 0o120000;
  const permissions = random.pick([0, 0o7777, 0o644, 0o1000, 0o6755]);
  const rdev = type === S_IFCHR || type === S_IFBLK ? random.pick([0, 1, 0xff, 0xfff00, 0xffff_ffff, 0xffff_fffe, 0xfff0_0000, 0x103]) : 0;
  const target = isLink ? random.pick(['t', 'é'.repeat(300), 'a/../b', 'x'.repeat(4095), ' spaces ', 'line\nbreak', '"%~=']) : null;
  const made = await client.make(file, type | permissions, rdev, target);
  if (made !== 0) {
    assert.ok(made === -E.NAMETOOLONG && target !== null && target.length > 500, `${file}: ${made}`);
    return null;
  }
  const expected: Attributes = { ...(await client.attributes(file)), rdev, target };
  const id = (): number => random.pick([0, 1, 65_534, 65_535, 65_536, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe]);
  const time = (): readonly [bigint, number] => [
    random.pick([0n, -1n, 1n, -(2n ** 31n), 2n ** 31n, 2n ** 32n, 2n ** 34n, SECONDS_MIN, SECONDS_MIN - 1n, SECONDS_MAX, SECONDS_MAX + 1n, -(2n ** 63n), 2n ** 63n - 1n, -2n]),
    random.pick([0, 1, 999_999_999, 500_000_000, 10, 123_456_789]),
  ];
  for (let count = random.below(4); count > 0; count--) {
    const values = { uid: id(), gid: id(), mode: random.pick([0, 0o7777, 0o600]), mtime: time(), atime: time() };
    const valid = random.pick([FATTR.UID | FATTR.GID, FATTR.MTIME | FATTR.ATIME, FATTR.ATIME, FATTR.MTIME, ...(isLink ? [] : [FATTR.MODE])]);
    assert.equal(await client.setattr(file, valid, values), 0);
    if ((valid & FATTR.UID) !== 0) [expected.uid, expected.gid] = [values.uid, values.gid];
    if ((valid & FATTR.MODE) !== 0) expected.mode = type | values.mode;
    if ((valid & FATTR.MTIME) !== 0) expected.mtime = [clamp(values.mtime[0]), values.mtime[1]];
    if ((valid & FATTR.ATIME) !== 0) expected.atime = [clamp(values.atime[0]), values.atime[1]];
    // A new owner takes set-id bits from files
    if ((valid & FATTR.UID) !== 0 && type !== 0o040000 && !isLink) expected.mode &= ~(0o4000 | ((expected.mode & 0o010) !== 0 ? 0o2000 : 0));
  }
  for (let count = isLink ? 0 : random.below(4); count > 0; count--) {
    const key = `user.${random.pick(['a', 'x'.repeat(250), 'é', 'with space', '__proto__', '"\\', '1', '%'])}`;
    const value = Buffer.from(random.bytes(random.pick([0, 1, 3, 300, 1500])));
    const error = await client.setxattr(file, Buffer.from(key), value);
    if (error === 0) expected.xattrs.set(key, value);
    else assert.equal(error, -E.NOSPC);
  }
  return expected;
}

for (const kind of ['s3', 'gcs'] as const) {
  test(`attributes at their limits are what was set, and stay it, in the convention of ${kind} (SEED=${SEED})`, { timeout: 300_000 }, async () => {
    for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
      const random = new Random(seed);
      const memory = new MemoryStore({ limits: { metadataBytes: kind === 'gcs' ? 8192 : 2048 }, capabilities: { metadataInPlace: kind === 'gcs', listingHasMetadata: kind === 'gcs' } });
      const durability = random.pick(['remote', 'writeback'] as const);
      const options = { idleNodes: random.pick([0, 1000]), posix: random.pick(['full', 'lazy'] as const), write: { durability, writebackDelay_ms: random.pick([0, 3_600_000]) } };
      let g = await ObjectGuest.start(storeOf(kind, memory), options);
      try {
        const expected = new Map<string, Attributes>();
        for (let i = 0; i < 4; i++) {
          const attributes = await describeRandomly(new Client(g), random, `f${i}`);
          if (attributes !== null) expected.set(`f${i}`, attributes);
        }
        const same = async (when: string): Promise<void> => {
          for (const [file, attributes] of expected) assert.deepEqual(await new Client(g).attributes(file), attributes, `SEED=${seed}: ${file} ${when}`);
          assert.deepEqual(g.log.filter((line) => line.includes('makes no sense')), []);
        };
        await same('at once');
        if (durability === 'writeback') {
          await g.kill();
          g = await ObjectGuest.start(storeOf(kind, memory), { ...options, write: { ...options.write, cacheDirectory: g.cacheDirectory! } });
          await same('after a kill');
        }
        assert.equal(await g.close(), 0);
        g.discard();
        g = await ObjectGuest.start(storeOf(kind, memory), options);
        await same('for the next daemon');
      } finally {
        await g.close();
        g.discard();
      }
    }
  });
}

describe('what cannot be kept is refused', () => {
  async function withFile(body: (client: Client, g: ObjectGuest) => Promise<void>, metadataBytes = 2048): Promise<void> {
    const store = new MemoryStore({ limits: { metadataBytes } });
    await store.put('f', new Uint8Array(0));
    const g = await ObjectGuest.start(store);
    try {
      await body(new Client(g), g);
      assert.deepEqual(g.log.filter((line) => line.startsWith('defect')), []);
    } finally {
      await g.close();
    }
  }

  test('the owner −1, and nanoseconds that are none, are EINVAL; a caller of no id makes nothing (EOVERFLOW)', () => withFile(async (client, g) => {
    assert.equal(await client.setattr('f', FATTR.UID, { uid: 0xffff_ffff }), -E.INVAL);
    assert.equal(await client.setattr('f', FATTR.GID, { gid: 0xffff_ffff }), -E.INVAL);
    assert.equal(await client.setattr('f', FATTR.MTIME, { mtime: [0n, 1_000_000_000] }), -E.INVAL);
    assert.equal(await client.setattr('f', FATTR.ATIME, { atime: [0n, 0x3fff_fffd] }), -E.INVAL);
    for (const ids of [{ uid: 0xffff_ffff, gid: 0 }, { uid: 0, gid: 0xffff_ffff }]) {
      Object.assign(g, ids);
      assert.equal(await client.make('made', 0o100644, 0, null), -E.OVERFLOW);
      assert.equal(await client.make('made', 0o040755, 0, null), -E.OVERFLOW);
      assert.equal(await client.make('made', 0, 0, 'target'), -E.OVERFLOW);
      assert.equal((await g.call(OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0, 0), name('made')), 144)).error, -E.OVERFLOW);
    }
    Object.assign(g, { uid: 0, gid: 0 });
    assert.equal((await g.call(OP.LOOKUP, ROOT, name('made'), 128)).error, -E.NOENT);
  }));

  test('attribute names that are none, or no text, are EINVAL, those of other kinds EOPNOTSUPP', () => withFile(async (client, g) => {
    for (const key of ['user.', Buffer.from([0x75, 0x73, 0x65, 0x72, 0x2e, 0xff])].map((one) => Buffer.from(one as string))) {
      assert.equal(await client.setxattr('f', key, Buffer.from('x')), -E.INVAL);
      assert.equal(await client.getxattr('f', key, 0), -E.INVAL);
      assert.equal((await g.call(OP.REMOVEXATTR, await client.node('f'), concat(key, new Uint8Array(1)), 0)).error, -E.INVAL);
    }
    for (const key of ['user', 'trusted.x', 'security.x', 'system.posix_acl_access', 'x']) assert.equal(await client.setxattr('f', Buffer.from(key), Buffer.from('x')), -E.OPNOTSUPP);
  }));

  test('attributes: flags, sizes and lists as Linux has them', () => withFile(async (client, g) => {
    const key = Buffer.from('user.k');
    const [CREATE, REPLACE] = [1, 2];
    assert.equal(await client.setxattr('f', key, Buffer.from('v'), 4), -E.INVAL);
    assert.equal(await client.setxattr('f', key, Buffer.from('v'), REPLACE), -E.NODATA);
    assert.equal(await client.setxattr('f', key, Buffer.from('v'), CREATE | REPLACE), -E.NODATA);
    assert.equal(await client.getxattr('f', key, 0), -E.NODATA);
    assert.equal(await client.setxattr('f', key, Buffer.alloc(0), CREATE), 0);
    assert.deepEqual([await client.getxattr('f', key, 0), await client.getxattr('f', key, 1)], [0, Buffer.alloc(0)]);
    assert.equal(await client.setxattr('f', key, Buffer.from('v'), CREATE), -E.EXIST);
    assert.equal(await client.setxattr('f', key, Buffer.from('v'), CREATE | REPLACE), -E.EXIST);
    const value = Buffer.alloc(40_000, 'v');
    assert.equal(await client.setxattr('f', key, value, REPLACE), 0);
    assert.deepEqual([await client.getxattr('f', key, 0), await client.getxattr('f', key, 39_999), await client.getxattr('f', key, 40_000)], [40_000, -E.RANGE, value]);
    assert.deepEqual([await client.listxattr('f', 0), await client.listxattr('f', 6), await client.listxattr('f', 7)], [7, -E.RANGE, ['user.k']]);
    assert.equal(await client.setxattr('f', Buffer.from(`user.${'x'.repeat(251)}`), Buffer.from('v')), -E.RANGE);
    assert.equal(await client.setxattr('f', Buffer.from(`user.${'x'.repeat(250)}`), Buffer.from('v')), 0);
    assert.equal(await client.setxattr('f', key, Buffer.alloc(65_537)), -E.BIG);
    assert.equal((await g.call(OP.REMOVEXATTR, await client.node('f'), name('user.k'), 0)).error, 0);
    assert.equal((await g.call(OP.REMOVEXATTR, await client.node('f'), name('user.k'), 0)).error, -E.NODATA);
  }, 200_000));

  test('links whose target is too long, empty or no text', () => withFile(async (client, g) => {
    assert.equal(await client.make('l', 0, 0, 'x'.repeat(4096)), -E.NAMETOOLONG);
    assert.equal((await g.call(OP.SYMLINK, ROOT, concat(name('l'), new Uint8Array([0xff, 0])), 128)).error, -E.INVAL);
    assert.equal(await client.make('l', 0, 0, ''), -E.NOENT);
  }));
});

test(`times of any size are written and read as they are (SEED=${SEED})`, () => {
  const random = new Random(SEED);
  const nothing: PosixMetadata = { mode: null, uid: null, gid: null, rdev: null, mtime: null, atime: null, ctime: null, symlink: null, xattrs: null };
  for (let i = 0; i < 5000; i++) {
    const time = (): { seconds: number; nanoseconds: number } => ({
      seconds: Math.round((random.below(2 ** 30) / 2 ** 30) * random.pick([1, 10, 2 ** 31, Number(SECONDS_MAX)])) * random.pick([1, -1]) + 0,
      nanoseconds: random.pick([0, 1, 999_999_999, random.below(1_000_000_000)]),
    });
    const posix = { ...nothing, mtime: time(), atime: time(), ctime: time() };
    for (const seconds of [posix.mtime, posix.atime, posix.ctime]) seconds.seconds = Math.max(Number(SECONDS_MIN), seconds.seconds);
    for (const kind of ['s3', 'gcs'] as const) assert.deepEqual(readPosix(writePosix(posix, kind, {})), { posix, ignored: [] });
  }
});

test('a moment between two nanoseconds is a time', () => {
  for (const ms of [999.9999999, 1.9999999999, 1_700_000_000_999.9998, 0.1, -0.1, -0.0000001]) {
    const { seconds, nanoseconds } = timeOf(ms);
    assert.ok(nanoseconds >= 0 && nanoseconds < 1_000_000_000, `${ms} is ${seconds} s and ${nanoseconds} ns`);
  }
});
