/** What the options of a share change, as a guest sees it. */
import assert from 'node:assert/strict';
import { lstatSync, mkdirSync, readdirSync, writeFileSync, chmodSync, chownSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { parseIdMap } from '../../src/storage/local/idmap.js';
import type { LocalOptions } from '../../src/storage/local/share.js';
import { parseXattrMap } from '../../src/storage/local/xattrmap.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const FOPEN_DIRECT_IO = 1;
const FOPEN_KEEP_CACHE = 2;
const FOPEN_CACHE_DIR = 8;
const FOPEN_NOFLUSH = 32;
const NEEDS_ROOT = process.getuid!() === 0 ? false : 'needs root';

async function withGuest(options: Partial<LocalOptions>, body: (g: TestGuest) => Promise<void>): Promise<void> {
  const guest = await TestGuest.start(options);
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

for (const [cache, seconds, file, directory] of [
  ['auto', 1, 0, 0], ['always', 86400, FOPEN_KEEP_CACHE, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE], ['never', 0, FOPEN_DIRECT_IO, 0],
  ['metadata', 86400, FOPEN_DIRECT_IO, FOPEN_CACHE_DIR | FOPEN_KEEP_CACHE],
] as const) {
  test(`cache ${cache}: names and attributes for ${seconds} s, and the open flags that go with it`, () =>
    withGuest({ cache, posixLock: false }, async (g) => {
      writeFileSync(join(g.directory, 'f'), 'x');
      const entry = await g.call(OP.LOOKUP, ROOT, name('f'), 128);
      assert.deepEqual([Number(entry.data.getBigUint64(16, true)), Number(entry.data.getBigUint64(24, true))], [seconds, seconds]);
      const attributes = await g.call(OP.GETATTR, ROOT, new Uint8Array(16), 104);
      assert.equal(Number(attributes.data.getBigUint64(0, true)), seconds);
      const { node } = g.entry(entry);
      assert.equal((await g.call(OP.OPEN, node, u32(2, 0), 16)).data.getUint32(8, true), file);
      assert.equal((await g.call(OP.OPEN, node, u32(0, 0), 16)).data.getUint32(8, true), file | FOPEN_NOFLUSH, 'what is only read has nothing to flush');
      assert.equal((await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getUint32(8, true), directory);
    }));
}

test('what a user makes is the user\'s on the host, and what it may not make there it does not', { skip: NEEDS_ROOT }, () =>
  withGuest({}, async (g) => {
    mkdirSync(join(g.directory, 'open'));
    chmodSync(join(g.directory, 'open'), 0o777);
    mkdirSync(join(g.directory, 'closed'), 0o755);
    const open = (await g.lookup(ROOT, 'open')).node;
    const closed = (await g.lookup(ROOT, 'closed')).node;
    g.uid = 1234;
    g.gid = 5678;
    await g.create(open, 'f');
    assert.equal((await g.call(OP.MKDIR, open, concat(u32(0o700, 0), name('d')), 128)).error, 0);
    assert.equal((await g.call(OP.SYMLINK, open, concat(name('l'), name('target')), 128)).error, 0);
    for (const made of ['f', 'd', 'l']) {
      const { uid, gid } = lstatSync(join(g.directory, 'open', made));
      assert.deepEqual([uid, gid], [1234, 5678], made);
    }
    assert.equal((await g.call(OP.MKDIR, closed, concat(u32(0o700, 0), name('d')), 128)).error, -E.ACCES);
    g.uid = g.gid = 0;
    await g.create(closed, 'root is itself again');
    assert.equal(lstatSync(join(g.directory, 'closed', 'root is itself again')).uid, 0);
  }));

/** A creation with an extension (FUSE_EXT_GROUPS, say) behind its arguments. */
function extended(g: TestGuest, opcode: number, node: bigint, args: Uint8Array, extension: Uint8Array): Promise<{ error: number }> {
  const { bytes, unique } = g.request(opcode, node, concat(args, extension));
  new DataView(bytes.buffer).setUint16(36, extension.length / 8, true); // total_extlen
  return g.raw([bytes], [160], unique);
}

const group = (gid: number): Uint8Array => u32(16, 32, 1, gid);

/** A directory that only a group may write to. */
async function groupDirectory(g: TestGuest, gid: number): Promise<bigint> {
  mkdirSync(join(g.directory, 'group'));
  chownSync(join(g.directory, 'group'), 0, gid);
  chmodSync(join(g.directory, 'group'), 0o770);
  return (await g.lookup(ROOT, 'group')).node;
}

for (const gid of [777, 0x80000001, 0xfffffffe]) {
  test(`supplementary group ${gid} that comes along counts for a creation`, { skip: NEEDS_ROOT }, () =>
    withGuest({}, async (g) => {
      const node = await groupDirectory(g, gid);
      g.uid = g.gid = 1234;
      const mkdir = (text: string, extension: Uint8Array): Promise<{ error: number }> =>
        extended(g, OP.MKDIR, node, concat(u32(0o700, 0), name(text)), extension);
      assert.equal((await mkdir('without', new Uint8Array(0))).error, -E.ACCES);
      assert.equal((await mkdir('with', group(gid))).error, 0);
      assert.equal((await mkdir('after', new Uint8Array(0))).error, -E.ACCES, 'the group is gone again');
      assert.equal((await mkdir('lying', u32(160, 32, 1, gid))).error, -E.INVAL);
      assert.equal((await mkdir('many', u32(16, 32, 0xffffffff, gid))).error, -E.INVAL);
      assert.equal((await mkdir('no id', group(0xffffffff))).error, -E.INVAL);
      assert.equal((await mkdir('after that', new Uint8Array(0))).error, -E.ACCES);
    }));
}

test('a supplementary group that is forbidden is EPERM for every creation, one that is translated counts as its host group', { skip: NEEDS_ROOT }, () =>
  withGuest({ gidMap: parseIdMap(['forbid-guest:66:1', 'map:77:100077:1'], 'gid') }, async (g) => {
    const node = await groupDirectory(g, 100077);
    const creations = (at: string): [number, Uint8Array][] => [
      [OP.MKDIR, concat(u32(0o700, 0), name(`d${at}`))], [OP.MKNOD, concat(u32(0o100644, 0, 0, 0), name(`n${at}`))],
      [OP.SYMLINK, concat(name(`l${at}`), name('target'))], [OP.CREATE, concat(u32(0o102, 0o100644, 0, 0), name(`c${at}`))],
      [OP.TMPFILE, concat(u32(0o102, 0o100644, 0, 0), name('/'))],
    ];
    for (const uid of [0, 1234]) {
      g.uid = g.gid = uid;
      // Root needs no group to be let in, and is refused all the same
      for (const [opcode, args] of creations(`${uid}`)) {
        assert.equal((await extended(g, opcode, node, args, group(66))).error, -E.PERM, `opcode ${opcode} of ${uid}`);
      }
      assert.deepEqual(readdirSync(join(g.directory, 'group')), []);
    }
    for (const [opcode, args] of creations('77')) assert.equal((await extended(g, opcode, node, args, group(77))).error, 0, `opcode ${opcode}`);
    assert.deepEqual(readdirSync(join(g.directory, 'group')).sort(), ['c77', 'd77', 'l77', 'n77']);
    assert.equal((await extended(g, OP.MKDIR, node, concat(u32(0o700, 0), name('x')), group(78))).error, -E.ACCES);
  }));

test('a forbidden id is EPERM in creations and as a new owner, and nowhere else', { skip: NEEDS_ROOT }, () =>
  withGuest({ uidMap: parseIdMap(['forbid-guest:66:1'], 'uid'), gidMap: parseIdMap(['forbid-guest:67:1'], 'gid') }, async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f', 2, 0o600);
    const setattr = (valid: number, uid: number, gid: number): Promise<{ error: number }> => {
      const args = new Uint8Array(88);
      args.set(u32(valid), 0);
      args.set(u32(uid, gid), 76);
      return g.call(OP.SETATTR, entry.node, args, 104);
    };
    for (const [uid, gid] of [[66, 0], [0, 67]]) {
      [g.uid, g.gid] = [uid, gid];
      assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')), 128)).error, -E.PERM);
      assert.equal((await g.write(entry.node, fh, 0, new Uint8Array(4))).error, 0);
      assert.equal((await g.read(entry.node, await g.open(entry.node, 0), 0, 4)).data.byteLength, 4);
      assert.equal((await setattr(1 << 5, uid, gid)).error, 0, 'mtime');
      assert.equal((await g.call(OP.LINK, ROOT, concat(u64(entry.node), name('link')), 128)).error, 0);
      assert.equal((await g.call(OP.UNLINK, ROOT, name('link'), 0)).error, 0);
    }
    g.uid = g.gid = 0;
    assert.equal((await setattr(2, 66, 0)).error, -E.PERM);
    assert.equal((await setattr(4, 0, 67)).error, -E.PERM);
    assert.equal((await setattr(2 | 4, 67, 66)).error, 0, 'uids and gids have maps of their own');
  }));

test('translated ids: attributes to the guest, creations and owners to the host', { skip: NEEDS_ROOT }, () =>
  withGuest({ uidMap: parseIdMap(['map:1000:101000:1000', 'forbid-guest:66:1'], 'uid'), gidMap: parseIdMap(['map:1000:101000:1000'], 'gid') }, async (g) => {
    chmodSync(g.directory, 0o777);
    g.uid = g.gid = 1001;
    const made = await g.call(OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0, 0), name('f')), 144);
    assert.equal(made.error, 0);
    assert.deepEqual([made.data.getUint32(108, true), made.data.getUint32(112, true)], [1001, 1001], 'the guest sees its own ids');
    const host = lstatSync(join(g.directory, 'f'));
    assert.deepEqual([host.uid, host.gid], [101001, 101001]);
    g.uid = g.gid = 0;
    const chown = new Uint8Array(88);
    chown.set(u32(2 | 4), 0);
    chown.set(u32(1002, 1003), 76);
    const { node } = await g.lookup(ROOT, 'f');
    assert.equal((await g.call(OP.SETATTR, node, chown, 104)).error, 0);
    const after = lstatSync(join(g.directory, 'f'));
    assert.deepEqual([after.uid, after.gid], [101002, 101003]);
    g.uid = 66;
    assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('forbidden')), 128)).error, -E.PERM);
  }));

test('xattrmap: names are renamed both ways, and without --xattr there are none', async () => {
  const set = (g: TestGuest, node: bigint, attribute: string): Promise<{ error: number }> =>
    g.call(OP.SETXATTR, node, concat(u32(5, 0, 0, 0), name(attribute), new TextEncoder().encode('value')), 0);
  await withGuest({ xattrMap: parseXattrMap(':map::user.virtiofs.:') }, async (g) => {
    const { entry } = await g.create(ROOT, 'f');
    assert.equal((await set(g, entry.node, 'user.a')).error, 0);
    const list = await g.call(OP.LISTXATTR, entry.node, u32(1000, 0), 1000);
    assert.equal(new TextDecoder().decode(list.data), 'user.a\0');
    const value = await g.call(OP.GETXATTR, entry.node, concat(u32(100, 0), name('user.a')), 100);
    assert.equal(new TextDecoder().decode(value.data), 'value');
    assert.equal((await g.call(OP.GETXATTR, entry.node, concat(u32(4, 0), name('user.a')), 4)).error, -E.RANGE);
    assert.equal((await g.call(OP.GETXATTR, entry.node, concat(u32(0, 0), name('user.a')), 8)).data.getUint32(0, true), 5);
  });
  await withGuest({ xattr: false }, async (g) => {
    const { entry } = await g.create(ROOT, 'f');
    assert.equal((await set(g, entry.node, 'user.a')).error, -E.NOSYS);
  });
  await withGuest({}, async (g) => {
    const { entry } = await g.create(ROOT, 'f');
    assert.equal((await set(g, entry.node, 'system.posix_acl_access')).error, -E.OPNOTSUPP, 'without --posix-acl');
  });
});

test('writeback: files opened for writing can be read, and appends are placed by the guest', () =>
  withGuest({ writeback: true }, async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f', 0o2001); // O_WRONLY | O_APPEND
    assert.equal((await g.write(entry.node, fh, 0, new TextEncoder().encode('abc'))).error, 0);
    assert.equal((await g.write(entry.node, fh, 1, new TextEncoder().encode('X'))).error, 0);
    assert.equal(new TextDecoder().decode((await g.read(entry.node, fh, 0, 10)).data), 'aXc');
    // Where holes are only the guest knows
    assert.equal((await g.call(OP.LSEEK, entry.node, concat(u64(fh, 0), u32(3, 0)), 8)).error, -E.NOSYS);
  }));

test('set-id bits: a write with the flag clears them, one without does not', { skip: NEEDS_ROOT }, () =>
  withGuest({ killprivV2: true }, async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f', 2, 0o755);
    const mode = (): number => lstatSync(join(g.directory, 'f')).mode & 0o7777;
    chmodSync(join(g.directory, 'f'), 0o6755);
    await g.write(entry.node, fh, 0, new Uint8Array(1));
    assert.equal(mode(), 0o6755);
    await g.write(entry.node, fh, 0, new Uint8Array(1), 1, 4);
    assert.equal(mode(), 0o755);
    chmodSync(join(g.directory, 'f'), 0o6755);
    await g.write(entry.node, fh, 0, new Uint8Array(1));
    assert.equal(mode(), 0o6755, 'the right is back after the one call');
    const truncate = new Uint8Array(88);
    truncate.set(u32(8 | 2048), 0);
    truncate.set(u64(0), 16);
    assert.equal((await g.call(OP.SETATTR, entry.node, truncate, 104)).error, 0);
    assert.equal(mode(), 0o755);
    chmodSync(join(g.directory, 'f'), 0o6755);
    assert.equal((await g.call(OP.SETATTR, entry.node, new Uint8Array(88), 104)).error, 0, 'chown(-1, -1)');
    assert.equal(mode(), 0o755);
  }));

test('STATX has the birth time, and the rest as GETATTR has it', () =>
  withGuest({}, async (g) => {
    const { entry } = await g.create(ROOT, 'f');
    const { data } = await g.call(OP.STATX, entry.node, concat(u32(0, 0), u64(0), u32(0, 0xfff)), 288);
    const host = lstatSync(join(g.directory, 'f'), { bigint: true });
    const statx = 32;
    assert.equal(data.getBigUint64(statx + 32, true), host.ino);
    assert.equal(data.getUint16(statx + 28, true), Number(host.mode));
    assert.equal(data.getBigUint64(statx + 80, true), host.birthtimeNs / 1_000_000_000n);
  }));
