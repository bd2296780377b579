/** Requests that are answered later: waiting locks, and calls in the pool. */
import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;

const lock = (fh: bigint, owner: number, type: number, start = 0, end: bigint | number = 2n ** 63n - 1n, flags = 0): Uint8Array =>
  concat(u64(fh, owner, start, end), u32(type, 77, flags, 0));

async function withGuest(body: (g: TestGuest) => Promise<void>, threads = 0): Promise<void> {
  const guest = await TestGuest.start({}, threads);
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

test('POSIX locks of two owners conflict, of one they do not; GETLK tells', () =>
  withGuest(async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f');
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 1, F_WRLCK, 10, 19), 0)).error, 0);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 2, F_RDLCK, 0, 9), 0)).error, 0);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 2, F_RDLCK, 15, 30), 0)).error, -E.AGAIN);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 1, F_WRLCK, 12, 13), 0)).error, 0);
    const { data } = await g.call(OP.GETLK, entry.node, lock(fh, 2, F_WRLCK, 12), 24);
    assert.deepEqual([Number(data.getBigUint64(0, true)), Number(data.getBigUint64(8, true)), data.getUint32(16, true)], [10, 19, F_WRLCK]);
    // FLUSH by the owner, as close(2) in the guest does, drops its locks
    assert.equal((await g.call(OP.FLUSH, entry.node, u64(fh, 0, 1), 0)).error, 0);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 2, F_WRLCK, 0), 0)).error, 0);
  }));

test('a waiting lock holds nothing up, is granted on unlock, and is ended by INTERRUPT', () =>
  withGuest(async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f');
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 1, F_WRLCK), 0)).error, 0);
    const wait = (owner: number): { unique: bigint; head: number; at: number } => {
      const { bytes, unique } = g.request(OP.SETLKW, entry.node, lock(fh, owner, F_WRLCK));
      const { head, writable } = g.queue.chain([bytes], [16], true);
      return { unique, head, at: writable[0] };
    };
    const error = (at: number): number => g.memory.dv.getInt32(at + 4, true);
    const second = wait(2);
    const third = wait(3);
    g.queue.kick();
    // Others are served meanwhile; the blocks of the waiting requests must stay, so no call() that rewinds
    const probe = g.request(OP.GETATTR, ROOT, new Uint8Array(16));
    const other = g.queue.chain([probe.bytes], [120], true);
    g.queue.kick();
    assert.equal((await g.queue.wait())[0].head, other.head);
    const interrupt = g.queue.chain([g.request(OP.INTERRUPT, 0n, u64(third.unique)).bytes], [], true);
    g.queue.kick();
    const both = await g.queue.wait(2);
    assert.deepEqual(new Set(both.map((u) => u.head)), new Set([third.head, interrupt.head]));
    assert.equal(error(third.at), -E.INTR);
    const unlock = g.queue.chain([g.request(OP.SETLK, entry.node, lock(fh, 1, F_UNLCK)).bytes], [16], true);
    g.queue.kick();
    assert.deepEqual(new Set((await g.queue.wait(2)).map((u) => u.head)), new Set([unlock.head, second.head]));
    assert.equal(error(second.at), 0);
  }));

test('a frontend that goes ends waiting locks', async () => {
  const g = await TestGuest.start();
  const { entry, fh } = await g.create(ROOT, 'f');
  await g.call(OP.SETLK, entry.node, lock(fh, 1, F_WRLCK), 0);
  g.queue.chain([g.request(OP.SETLKW, entry.node, lock(fh, 2, F_WRLCK)).bytes], [16], true);
  g.queue.kick();
  await sleep(10);
  await g.close(); // would never end if the lock were waited for
});

test('flock conflicts between two open files, not within one', () =>
  withGuest(async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f');
    const other = await g.open(entry.node);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(fh, 1, F_WRLCK, 0, 0, 1), 0)).error, 0);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(other, 2, F_WRLCK, 0, 0, 1), 0)).error, -E.AGAIN);
    assert.equal((await g.call(OP.RELEASE, entry.node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    assert.equal((await g.call(OP.SETLK, entry.node, lock(other, 2, F_WRLCK, 0, 0, 1), 0)).error, 0);
  }));

test('reads, writes and fsync through the pool give what they give inline', () =>
  withGuest(async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f', 0o4010002); // O_SYNC: writes wait
    const bytes = Uint8Array.from({ length: 8192 }, (_, i) => i * 7);
    assert.equal((await g.write(entry.node, fh, 100, bytes)).data.getUint32(0, true), 8192);
    assert.equal((await g.call(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0)), 0)).error, 0);
    const { data } = await g.read(entry.node, fh, 100, 8192);
    assert.deepEqual(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), bytes);
    assert.equal((await g.read(entry.node, fh, 8000, 4096)).data.byteLength, 292);
    assert.equal((await g.read(entry.node, fh, 1 << 20, 4096)).data.byteLength, 0);
  }, 2));

test('a file released while a call in the pool uses it keeps its descriptor until then', () =>
  withGuest(async (g) => {
    const { entry, fh } = await g.create(ROOT, 'f', 0o4010002);
    await g.write(entry.node, fh, 0, new Uint8Array(8)); // the pool's threads, with descriptors of their own, are there now
    const count = readdirSync('/proc/self/fd').length;
    const payload = new Uint8Array(4096).fill(0x5a);
    const write = g.request(OP.WRITE, entry.node, concat(u64(fh, 0), u32(4096, 0), u64(0), u32(0, 0), payload));
    const release = g.request(OP.RELEASE, entry.node, concat(u64(fh), u32(0, 0), u64(0)));
    g.queue.chain([write.bytes], [24], true);
    g.queue.chain([release.bytes], [16], true);
    // a new file right away would get the descriptor's number if it were closed too early
    g.queue.chain([g.request(OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0, 0), name('other'))).bytes], [160], true);
    g.queue.kick();
    await g.queue.wait(3);
    assert.deepEqual([...new Uint8Array(await import('node:fs').then((fs) => fs.readFileSync(join(g.directory, 'f'))))], [...payload]);
    assert.equal((await import('node:fs')).statSync(join(g.directory, 'other')).size, 0);
    assert.ok(readdirSync('/proc/self/fd').length <= count + 2);
  }, 2));

test('20,000 files looked up and forgotten with room for 128 descriptors: none fails, none leaks', async () => {
  const g = await TestGuest.start({ nofile: 1152 });
  try {
    for (let i = 0; i < 20_000; i++) writeFileSync(join(g.directory, `f${i}`), '');
    const before = readdirSync('/proc/self/fd').length;
    const nodes: bigint[] = [];
    for (let i = 0; i < 20_000; i++) nodes.push((await g.lookup(ROOT, `f${i}`)).node);
    assert.ok(readdirSync('/proc/self/fd').length < before + 200, 'descriptors are bounded');
    assert.equal((await g.lookup(ROOT, 'f0')).node, nodes[0], 'the same inode is the same node, also reached by its handle');
    const fh = await g.open(nodes[1]);
    assert.equal((await g.write(nodes[1], fh, 0, new Uint8Array(3))).error, 0);
    assert.equal((await g.lookup(ROOT, 'f1')).size, 3);
    for (let i = 0; i < 20_000; i++) await g.call(OP.FORGET, nodes[i], u64(i < 2 ? 2 : 1), 0);
    assert.ok(readdirSync('/proc/self/fd').length <= before + 2);
    assert.equal((await g.call(OP.GETATTR, nodes[5], new Uint8Array(16), 104)).error, -E.STALE);
  } finally {
    await g.close();
  }
});

test('a file replaced on the host gets a new node, and the old one stays what it was', () =>
  withGuest(async (g) => {
    const path = join(g.directory, 'f');
    writeFileSync(path, 'old');
    const old = await g.lookup(ROOT, 'f');
    (await import('node:fs')).rmSync(path);
    writeFileSync(path, 'newer');
    const fresh = await g.lookup(ROOT, 'f');
    assert.notEqual(fresh.node, old.node);
    const reply = await g.call(OP.GETATTR, old.node, new Uint8Array(16), 104);
    assert.equal(reply.data.getUint32(16 + 64, true), 0, 'nlink of the removed file');
  }));

test('readonly: nothing is changed', async () => {
  const g = await TestGuest.start({ readonly: true });
  try {
    writeFileSync(join(g.directory, 'f'), 'x');
    const { node } = await g.lookup(ROOT, 'f');
    const calls: [number, bigint, Uint8Array][] = [
      [OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d'))], [OP.UNLINK, ROOT, name('f')], [OP.RENAME2, ROOT, concat(u64(1), u32(0, 0), name('f'), name('g'))],
      [OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0, 0), name('n'))], [OP.OPEN, node, u32(1, 0)], [OP.SETATTR, node, new Uint8Array(88)],
      [OP.SYMLINK, ROOT, concat(name('l'), name('t'))], [OP.LINK, ROOT, concat(u64(node), name('h'))], [OP.MKNOD, ROOT, concat(u32(0o100644, 0, 0, 0), name('m'))],
      [OP.SETXATTR, node, concat(u32(1, 0, 0, 0), name('user.a'), new Uint8Array(1))], [OP.RMDIR, ROOT, name('d')],
    ];
    for (const [opcode, at, args] of calls) assert.equal((await g.call(opcode, at, args)).error, -E.ROFS, `opcode ${opcode}`);
    assert.equal((await g.read(node, await g.open(node, 0), 0, 10)).data.byteLength, 1);
    assert.deepEqual(readdirSync(g.directory), ['f']);
  } finally {
    await g.close();
  }
});
