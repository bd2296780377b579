/** Storage that takes its time: nothing that waits for it holds up what does not. */
import assert from 'node:assert/strict';
import { chmodSync, mkdtempSync, readFileSync, readdirSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';
import { HeldFileSystem } from '../support/held-fs.js';

const ROOT = 1n;

test('requests that a dead file system never answers hold up neither others nor the connection', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-held-'));
  const storage = await HeldFileSystem.mount(directory);
  const g = await TestGuest.start({ directory, handles: 'never' }, 4);
  try {
    const offer = (opcode: number, args: Uint8Array): { head: number; at: number } => {
      const { head, writable } = g.queue.chain([g.request(opcode, ROOT, args).bytes], [16, 160], true);
      return { head, at: writable[0] };
    };
    const lookup = offer(OP.LOOKUP, name('held'));
    const second = offer(OP.LOOKUP, name('held too'));
    g.queue.kick();
    await storage.held(2);
    for (let i = 0; i < 20; i++) {
      const probe = offer(OP.LOOKUP, name('file'));
      g.queue.kick();
      const [used] = await g.queue.wait();
      assert.equal(used.head, probe.head);
      assert.equal(g.memory.dv.getInt32(probe.at + 4, true), 0);
    }
    storage.release();
    const both = await g.queue.wait(2);
    assert.deepEqual(new Set(both.map((used) => used.head)), new Set([lookup.head, second.head]));
    for (const { at } of [lookup, second]) assert.equal(g.memory.dv.getInt32(at + 4, true), -E.NOENT);
  } finally {
    await storage.unmount();
    await g.close();
    rmSync(directory, { recursive: true, force: true });
  }
});

test('done in the pool, a guest sees what it sees inline: names, attributes, files, listings', async () => {
  const g = await TestGuest.start({ offload: 'always' }, 3);
  try {
    chmodSync(g.directory, 0o777);
    g.uid = 1000;
    g.gid = 1001;
    const { entry, fh } = await g.create(ROOT, 'f');
    assert.equal((await g.write(entry.node, fh, 0, new Uint8Array([1, 2, 3]))).error, 0);
    const host = statSync(join(g.directory, 'f'));
    assert.deepEqual([host.uid, host.gid, host.mode & 0o7777, host.size], [1000, 1001, 0o644, 3]);
    assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')))).error, 0);
    assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(1, 0), name('f'), name('d')))).error, -E.EXIST);
    g.uid = g.gid = 0;
    const again = await g.lookup(ROOT, 'f');
    assert.deepEqual([again.node, again.size], [entry.node, 3]);
    const dir = (await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
    for (const opcode of [OP.READDIR, OP.READDIRPLUS]) {
      const { data } = await g.call(opcode, ROOT, concat(u64(dir, 0), u32(4096, 0), u64(0), u32(0, 0)), 4096);
      const text = Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString('latin1');
      assert.ok(text.includes('f\0') && text.includes('d\0'));
    }
    assert.equal((await g.call(OP.RELEASEDIR, ROOT, concat(u64(dir), u32(0, 0), u64(0)), 0)).error, 0);
    assert.equal((await g.call(OP.RELEASE, entry.node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    assert.equal((await g.call(OP.GETATTR, ROOT, new Uint8Array(16))).error, 0);
  } finally {
    await g.close();
  }
});

test('a node that is forgotten, and a handle that is released, while a step uses them keep their descriptors until it is done', async () => {
  const g = await TestGuest.start({ offload: 'always' }, 2);
  try {
    const { entry, fh } = await g.create(ROOT, 'f');
    const descriptors = (): number => readdirSync('/proc/self/fd').length;
    await Promise.all([g.pool!.run('close', -1), g.pool!.run('close', -1)]); // both threads are there now
    const before = descriptors();
    for (let i = 0; i < 50; i++) {
      const mode = 0o600 + (i & 7);
      const offer = (opcode: number, node: bigint, args: Uint8Array, room: number[]): number => {
        return g.queue.chain([g.request(opcode, node, args).bytes], room, true).writable[0];
      };
      const found = await g.lookup(ROOT, 'f');
      assert.equal(found.node, entry.node);
      // a change of mode, everything given back while it is under way, and a new file that would get a descriptor freed too early
      const setattr = new Uint8Array(88);
      new DataView(setattr.buffer).setUint32(0, 1, true);
      new DataView(setattr.buffer).setUint32(68, mode, true);
      offer(OP.SETATTR, entry.node, setattr, [16, 104]);
      offer(OP.FORGET, entry.node, u64(1), []);
      const made = offer(OP.CREATE, ROOT, concat(u32(0o102, 0o100640, 0, 0), name(`other${i}`)), [16, 144]);
      g.queue.kick();
      await g.queue.wait(3);
      assert.equal(g.memory.dv.getInt32(made + 4, true), 0);
      assert.equal(statSync(join(g.directory, 'f')).mode & 0o7777, mode);
      assert.equal(statSync(join(g.directory, `other${i}`)).mode & 0o7777, 0o640);
    }
    assert.equal((await g.call(OP.RELEASE, entry.node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    assert.ok(descriptors() <= before + 2 * 50 + 2, 'a descriptor for each file that is still open and known');
    assert.equal(readFileSync(join(g.directory, 'f')).length, 0);
  } finally {
    await g.close();
  }
});
