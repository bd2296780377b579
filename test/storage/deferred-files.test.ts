/** Attributes of files, links and device nodes with --durability=writeback, and all that unpacking an archive asks for: nobody waits for them. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { assertDone, bytes, Calls, keysOf, KINDS, LATER, missing, mkdir, modeOf, MTIME_S, rename, ROOT, setattr, unlink, withCache } from '../support/deferred.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { answersHeld } from '../support/held-answers.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { Guest, objectOf, withGuest } from '../support/writing-guest.js';

const TTL_MS = 600_000;

for (const [what, make] of KINDS) describe(`files, where metadata is set ${what}`, () => {
  test('attributes of one that is in the bucket are there at once, and in the bucket without its content being sent', async () => {
    const memory = make();
    await memory.put('f', bytes('content'), { headers: { 'content-type': 'text/plain' } });
    const calls = new Calls(memory);
    await withGuest(calls.store, async (guest) => {
      const { g } = guest;
      const f = await g.lookup(ROOT, 'f');
      const before = await g.open(f.node, 0);
      calls.take();
      assert.equal(await setattr(g, f.node, { mode: 0o600 }), 0);
      assert.equal(await setattr(g, f.node, { mtime_s: MTIME_S, uid: 7 }), 0);
      assert.deepEqual(calls.take().filter((call) => !/^(head|list) /.test(call)), []);
      assert.deepEqual([(await g.lookup(ROOT, 'f')).mode, await modeOf(memory, 'f')], [0o100600, null]);
      assert.equal((await guest.readAll(f.node, before)).toString(), 'content');
      assert.equal((await guest.content(f.node)).toString(), 'content');
      calls.take();
      await g.opened.idle();
      assert.deepEqual(calls.take(), ['setMetadata /f']);
      const { metadata, headers } = await memory.head('f');
      const { posix } = readPosix(metadata!);
      assert.deepEqual([posix.mode, posix.uid, posix.mtime?.seconds, headers!['content-type']], [0o100600, 7, MTIME_S, 'text/plain']);
      assert.equal((await guest.readAll(f.node, before)).toString(), 'content');
      await guest.release(f.node, before);
      assert.deepEqual(readdirSync(join(g.cacheDirectory!, 'staging')), []);
    }, { write: LATER });
    assert.equal((await objectOf(memory, 'f')).toString(), 'content');
  });

  test('a change of the owner to itself, which Linux asks for without anything to change, clears set-id bits; of a directory it does not', async () => {
    const memory = make();
    await withGuest(memory, async ({ g }) => {
      const { entry: { node }, fh } = await g.create(ROOT, 'f', 2, 0o755);
      const dir = (await mkdir(g, ROOT, 'd', 0o755)).node;
      for (const { durable } of [{ durable: false }, { durable: true }]) {
        for (const one of [node, dir]) assert.equal(await setattr(g, one, { mode: 0o6755 }), 0);
        if (durable) assert.equal((await g.call(OP.FSYNC, node, concat(u64(fh), u32(0, 0)), 0)).error, 0);
        for (const one of [node, dir]) assert.equal(await setattr(g, one, {}), 0);
        assert.deepEqual([(await g.lookup(ROOT, 'f')).mode, (await g.lookup(ROOT, 'd')).mode], [0o100755, 0o046755]);
      }
    }, { write: LATER });
  });

  test('those of one that was written and committed while it is open do not send it again, and with more data they go along', async () => {
    const memory = make();
    const calls = new Calls(memory);
    await withGuest(calls.store, async (guest) => {
      const { g } = guest;
      const { entry: { node }, fh } = await g.create(ROOT, 'f');
      await guest.write(node, fh, 0, bytes('content'));
      assert.equal(await guest.flush(node, fh), 0);
      await g.opened.idle();
      calls.take();
      assert.equal(await setattr(g, node, { mode: 0o600 }), 0);
      await g.opened.idle();
      assert.deepEqual(calls.take().filter((call) => !/^(head|list) /.test(call)), ['setMetadata /f']);
      assert.equal(await setattr(g, node, { mode: 0o640 }), 0);
      await guest.write(node, fh, 0, bytes('C'));
      assert.equal(await guest.close(node, fh), 0);
      await g.opened.idle();
      assert.deepEqual(calls.take().filter((call) => !/^(head|list) /.test(call)), ['put /f']);
      assert.equal(await modeOf(memory, 'f'), 0o100640);
      assert.equal((await objectOf(memory, 'f')).toString(), 'Content');
    }, { write: LATER });
  });

  test('what somebody else has put in its place is what is opened, and keeps its own attributes', async () => {
    for (const onConflict of ['keep', 'overwrite'] as const) {
      const memory = make();
      for (const key of ['opened', 'left', 'removed', 'gone']) await memory.put(key, bytes('one'));
      await withGuest(memory, async (guest) => {
        const { g } = guest;
        for (const key of ['opened', 'left', 'removed', 'gone']) {
          const { node } = await g.lookup(ROOT, key);
          // What a lookup has shown serves one OPEN
          await guest.release(node, await g.open(node, 0));
          assert.equal(await setattr(g, node, { mode: 0o600 }), 0);
        }
        for (const key of ['opened', 'left']) await memory.put(key, bytes('other'), { metadata: { mode: String(0o100666) } });
        for (const key of ['removed', 'gone']) await memory.remove(key);
        const { node } = await g.lookup(ROOT, 'opened');
        assert.equal((await g.call(OP.OPEN, node, u32(0, 0), 16)).error, -E.STALE, 'Linux looks it up again');
        const again = await g.lookup(ROOT, 'opened');
        assert.deepEqual([again.mode, (await guest.content(again.node)).toString()], [0o100666, 'other']);
        assert.equal((await g.call(OP.OPEN, (await g.lookup(ROOT, 'removed')).node, u32(0, 0), 16)).error, -E.NOENT);
        await missing(g, ROOT, 'removed');
        await g.opened.idle();
        for (const key of ['opened', 'left']) assert.deepEqual([await modeOf(memory, key), (await objectOf(memory, key)).toString()], [0o100666, 'other']);
        assert.deepEqual(await keysOf(memory), ['left', 'opened'], 'nothing is put beside');
        await missing(g, ROOT, 'gone');
        assert.equal((await g.lookup(ROOT, 'left')).mode, 0o100666);
        assert.equal(g.log.filter((line) => line.startsWith('attributes:')).length, 2, g.log.join());
      }, { write: { ...LATER, onConflict } });
    }
  });

  test('a lookup that attributes which wait have answered serves no OPEN, as one before them would', async () => {
    const memory = make();
    await memory.put('f', bytes('one'));
    await withGuest(memory, async (guest) => {
      const { g } = guest;
      const { node } = await g.lookup(ROOT, 'f');
      assert.equal(await setattr(g, node, { mode: 0o600 }), 0);
      await memory.put('f', bytes('other'));
      assert.equal((await g.lookup(ROOT, 'f')).node, node);
      assert.equal((await g.call(OP.OPEN, node, u32(0, 0), 16)).error, -E.STALE, 'Linux looks it up again');
      assert.equal((await guest.content((await g.lookup(ROOT, 'f')).node)).toString(), 'other');
    }, { write: LATER });
  });

  test('renamed, removed and cut they follow, and killed they are set by the next daemon', async () => {
    const memory = make();
    for (const key of ['moved', 'removed', 'cut', 'stays']) await memory.put(key, bytes(`content of ${key}`));
    await withCache(async (cacheDirectory) => {
      const options: GuestOptions = { write: { ...LATER, cacheDirectory } };
      const first = new Guest(await ObjectGuest.start(memory, options));
      const { g } = first;
      for (const key of ['moved', 'removed', 'cut', 'stays']) assert.equal(await setattr(g, (await g.lookup(ROOT, key)).node, { mode: 0o600 }), 0);
      assert.equal(await rename(g, ROOT, 'moved', ROOT, 'there'), 0);
      assert.equal((await g.lookup(ROOT, 'there')).mode, 0o100600);
      assert.equal(await unlink(g, ROOT, 'removed'), 0);
      assert.equal(await first.truncate((await g.lookup(ROOT, 'cut')).node, 7), 0);
      await g.kill();
      const second = await ObjectGuest.start(memory, options);
      assert.deepEqual([...second.recovered].sort(), ['goes on: memory:/cut: 7 bytes, 0 of them only here', 'goes on: memory:/stays: attributes']);
      assert.equal((await second.lookup(ROOT, 'stays')).mode, 0o100600);
      await second.close();
      assertDone(cacheDirectory);
    });
    assert.deepEqual(await keysOf(memory), ['cut', 'stays', 'there']);
    for (const key of ['cut', 'stays', 'there']) assert.equal(await modeOf(memory, key), 0o100600, key);
    assert.equal((await objectOf(memory, 'cut')).toString(), 'content');
    assert.equal((await objectOf(memory, 'stays')).toString(), 'content of stays');
  });

  for (const [what, after] of [['by this daemon', false], ['by the next one, after a kill', true]] as const) {
    test(`an empty file that takes the place of an empty object is another one, ${what}`, async () => {
      const memory = make();
      for (const key of ['f', 'of-others']) await memory.put(key, bytes(''), { headers: { 'cache-control': 'no-store' }, metadata: { mode: String(0o100600) } });
      await withCache(async (cacheDirectory) => {
        const options: GuestOptions = { write: { ...LATER, cacheDirectory } };
        let guest = new Guest(await ObjectGuest.start(memory, options));
        for (const key of ['f', 'of-others']) {
          const { entry, fh } = await guest.g.create(ROOT, 'made');
          assert.equal(await guest.fsync(entry.node, fh), 0);
          await guest.release(entry.node, fh);
          assert.equal(await rename(guest.g, ROOT, 'made', ROOT, key), 0);
        }
        if (after) {
          await guest.g.kill();
          guest = new Guest(await ObjectGuest.start(memory, options));
        }
        await memory.put('of-others', bytes('of others'));
        await guest.g.close();
        assertDone(cacheDirectory);
      });
      const { headers, metadata } = await memory.head('f');
      assert.deepEqual([headers!['cache-control'], readPosix(metadata!).posix.mode! & 0o777], [undefined, 0o644]);
      assert.equal((await objectOf(memory, 'of-others')).toString(), 'of others');
      const [copy, ...more] = (await keysOf(memory)).filter((key) => key.startsWith('.bucketfsd-conflicts/'));
      assert.deepEqual([(await objectOf(memory, copy)).length, more], [0, []]);
    });
  }

  test('killed when they were set, and nobody had heard of it, they are set again', async () => {
    const memory = make();
    await memory.put('f', bytes('content'));
    const held = answersHeld(memory, ['setMetadata']);
    await withCache(async (cacheDirectory) => {
      const options = { write: { ...LATER, writebackDelay_ms: 0, cacheDirectory } };
      const first = new Guest(await ObjectGuest.start(held.store, options));
      const { node } = await first.g.lookup(ROOT, 'f');
      assert.equal(await setattr(first.g, node, { mode: 0o600 }), 0);
      while (held.done() === 0) await turn();
      await first.release(node, await first.g.open(node, 0));
      await first.release(node, await first.g.open(node, 0));
      assert.equal((await first.g.lookup(ROOT, 'f')).mode, 0o100600, 'its own change is not that of somebody else');
      assert.equal(await setattr(first.g, node, { mode: 0o640 }), 0);
      const killed = first.g.kill();
      held.open();
      await killed;
      const second = await ObjectGuest.start(memory, options);
      assert.equal((await second.lookup(ROOT, 'f')).mode, 0o100640);
      await second.close();
      assertDone(cacheDirectory);
      assert.equal(await modeOf(memory, 'f'), 0o100640);
      assert.deepEqual(second.log.filter((line) => !line.startsWith('session:')), []);
    });
  });

  test('symlinks and device nodes are there at once, outlive the daemon, and are put with the attributes that they have then', async () => {
    const memory = make();
    await withCache(async (cacheDirectory) => {
      const options: GuestOptions = { write: { ...LATER, cacheDirectory } };
      const first = await ObjectGuest.start(memory, options);
      const link = first.entry(await first.call(OP.SYMLINK, ROOT, concat(name('link'), name('to/there')), 128));
      assert.deepEqual([link.mode, link.size], [0o120777, 8]);
      assert.equal(await setattr(first, link.node, { mtime_s: MTIME_S, uid: 7 }), 0);
      first.entry(await first.call(OP.MKNOD, ROOT, concat(u32(0o010644, 0, 0, 0), name('fifo')), 128));
      first.entry(await first.call(OP.SYMLINK, ROOT, concat(name('gone'), name('x')), 128));
      assert.equal(await unlink(first, ROOT, 'gone'), 0);
      assert.equal((await first.call(OP.SYMLINK, ROOT, concat(name('fifo'), name('x')), 128)).error, -E.EXIST);
      assert.deepEqual(await keysOf(memory), []);
      await first.kill();
      const second = await ObjectGuest.start(memory, options);
      assert.deepEqual(await second.list(ROOT), ['fifo', 'link']);
      const { node } = await second.lookup(ROOT, 'link');
      const { data } = await second.call(OP.READLINK, node);
      assert.equal(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString(), 'to/there');
      assert.equal(await rename(second, ROOT, 'link', ROOT, 'renamed'), 0);
      await second.close();
      assertDone(cacheDirectory);
    });
    assert.deepEqual(await keysOf(memory), ['fifo', 'renamed']);
    assert.equal((await objectOf(memory, 'renamed')).toString(), 'to/there');
    const { posix } = readPosix((await memory.head('renamed')).metadata!);
    assert.deepEqual([posix.mode, posix.uid, posix.mtime?.seconds], [0o120777, 7, MTIME_S]);
    assert.equal(await modeOf(memory, 'fifo'), 0o010644);
  });
});

test('unpacking an archive of 3 directories, 10 files and a link waits for the bucket at the first lookups only', async () => {
  const memory = new MemoryStore({ capabilities: { metadataInPlace: false, listingHasMetadata: false, rename: false } });
  await memory.put('before', bytes('x'));
  const calls = new Calls(memory);
  await withGuest(calls.store, async (guest) => {
    const { g } = guest;
    await g.list(ROOT);
    const lookups = calls.take();
    assert.deepEqual(lookups, ['list /']);
    const directories: bigint[] = [];
    const files: bigint[] = [];
    for (const directory of ['a', 'b', 'c']) {
      await missing(g, ROOT, directory);
      directories.push((await mkdir(g, ROOT, directory, 0o700)).node);
    }
    for (let i = 0; i < 10; i++) {
      const parent = directories[i % 3];
      await missing(g, parent, `f${i}`);
      const { entry, fh } = await g.create(parent, `f${i}`);
      await guest.write(entry.node, fh, 0, bytes(`content ${i}`));
      assert.equal((await g.call(OP.GETXATTR, entry.node, concat(u32(0, 0), name('security.capability')))).error, -E.NODATA);
      assert.equal(await setattr(g, entry.node, { mtime_s: MTIME_S, uid: 7, mode: 0o640 }), 0);
      assert.equal(await guest.close(entry.node, fh), 0);
      assert.equal(await setattr(g, entry.node, { mtime_s: MTIME_S + i }), 0);
      files.push(entry.node);
    }
    const link = g.entry(await g.call(OP.SYMLINK, directories[0], concat(name('link'), name('f0')), 128));
    assert.equal(await setattr(g, link.node, { mtime_s: MTIME_S }), 0);
    for (const node of directories) assert.equal(await setattr(g, node, { mode: 0o755, uid: 7, mtime_s: MTIME_S }), 0);
    assert.deepEqual(calls.take(), [], 'nothing was waited for');
    await g.opened.idle();
    const done = calls.take();
    assert.deepEqual(done.filter((call) => !call.startsWith('put ')), []);
    assert.equal(done.length, 14, 'each object is put once');
    // After that too
    for (const node of [...files, ...directories]) assert.equal(await setattr(g, node, { mode: 0o755 }), 0);
    assert.deepEqual(calls.take(), []);
    await g.opened.idle();
    assert.equal(calls.take().length, 13);
    const { posix } = readPosix((await memory.head('a/f9')).metadata!);
    assert.deepEqual([posix.mode, posix.uid, posix.mtime?.seconds], [0o100755, 7, MTIME_S + 9]);
    assert.equal(await modeOf(memory, 'c/'), 0o040755);
  }, { metadataTtl_ms: TTL_MS, write: LATER });
});
