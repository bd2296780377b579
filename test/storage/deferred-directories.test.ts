/** Directories and their attributes with --durability=writeback: nobody waits for them, and the bucket gets them by and by. */
import assert from 'node:assert/strict';
import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import {
  assertDone, bytes, Calls, fsyncdir, keysOf, KINDS, LATER, missing, mkdir, mkdirReply, modeOf, MTIME_S, rename, rmdir, ROOT, setattr, setxattr, unlink, withCache, xattrsOf,
} from '../support/deferred.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { answersHeld } from '../support/held-answers.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { Guest, objectOf, withGuest } from '../support/writing-guest.js';

for (const [what, make] of KINDS) describe(`directories, where metadata is set ${what}`, () => {
  test('one that was made is there at once, and in the bucket as one object with the attributes that it has then', async () => {
    const memory = make();
    const calls = new Calls(memory);
    await withGuest(calls.store, async ({ g }) => {
      await missing(g, ROOT, 'd');
      calls.take();
      const d = await mkdir(g, ROOT, 'd');
      assert.deepEqual([d.mode, d.size, d.nlink], [0o040755, 0, 1]);
      assert.equal(await setattr(g, d.node, { mode: 0o2700, uid: 12, mtime_s: MTIME_S }), 0);
      const looked = await g.lookup(ROOT, 'd');
      assert.deepEqual([looked.node, looked.mode], [d.node, 0o042700]);
      const sub = await mkdir(g, d.node, 'sub');
      assert.equal(sub.mode, 0o042755, 'what is made in it inherits from what it has become');
      assert.deepEqual(calls.take().filter((call) => !/^(list|head) /.test(call)), []);
      assert.deepEqual(await g.list(ROOT), ['d']);
      assert.deepEqual(await g.list(d.node), ['sub']);
      assert.equal((await mkdirReply(g, ROOT, 'd')).error, -E.EXIST);
      assert.equal((await g.call(OP.CREATE, ROOT, concat(u32(0o302, 0o100644, 0o22, 0), name('d')), 144)).error, -E.EXIST);
      assert.deepEqual(await keysOf(memory), []);
      calls.take();
      await g.opened.idle();
      assert.deepEqual(calls.take().filter((call) => !call.startsWith('list')), ['put /d/', 'put /d/sub/']);
      const { posix } = readPosix((await memory.head('d/')).metadata!);
      assert.deepEqual([posix.mode, posix.uid, posix.mtime?.seconds], [0o042700, 12, MTIME_S]);
      assert.equal((await g.lookup(ROOT, 'd')).node, d.node);
      assert.equal(await setattr(g, d.node, { mode: 0o711 }), 0);
      assert.equal(await modeOf(memory, 'd/'), 0o042700);
      assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040711);
      await g.opened.idle();
      assert.equal(await modeOf(memory, 'd/'), 0o040711);
      assert.deepEqual(readdirSync(join(g.cacheDirectory!, 'staging')), []);
    }, { write: LATER });
  });

  test('one that is removed before leaves nothing; what is below it, here or in the bucket, is in the way', async () => {
    const memory = make();
    const calls = new Calls(memory);
    await withCache(async (cacheDirectory) => {
      await withGuest(calls.store, async ({ g }) => {
        const d = await mkdir(g, ROOT, 'd');
        await mkdir(g, d.node, 'sub');
        assert.equal(await rmdir(g, ROOT, 'd'), -E.NOTEMPTY, 'another one that is only here');
        assert.equal(await rmdir(g, d.node, 'sub'), 0);
        await missing(g, d.node, 'sub');
        const { entry, fh } = await g.create(d.node, 'f');
        assert.equal(await rmdir(g, ROOT, 'd'), -E.NOTEMPTY, 'a file that is only here');
        await new Guest(g).close(entry.node, fh);
        assert.equal(await unlink(g, d.node, 'f'), 0);
        await memory.put('d/theirs', bytes('x'));
        assert.equal(await rmdir(g, ROOT, 'd'), -E.NOTEMPTY, 'an object of somebody else');
        await memory.remove('d/theirs');
        assert.equal(await rmdir(g, ROOT, 'd'), 0);
        await missing(g, ROOT, 'd');
        assert.equal(await setattr(g, d.node, { mode: 0o700 }), -E.NOENT);
        await g.opened.idle();
        assert.deepEqual(calls.take().filter((call) => /^(put|remove|copy|setMetadata) /.test(call)), []);
      }, { write: { ...LATER, cacheDirectory } });
      assertDone(cacheDirectory);
    });
    assert.deepEqual(await keysOf(memory), []);
  });

  test('one that is refused removal is committed as if nobody had tried', async () => {
    const memory = make();
    await withGuest(memory, async ({ g }) => {
      const d = await mkdir(g, ROOT, 'd');
      await mkdir(g, d.node, 'sub');
      assert.equal(await rmdir(g, ROOT, 'd'), -E.NOTEMPTY);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), ['d/', 'd/sub/']);
      // In the bucket, and with attributes that are not
      assert.equal(await setattr(g, d.node, { mode: 0o700 }), 0);
      assert.equal(await rmdir(g, d.node, 'sub'), 0);
      assert.equal(await rmdir(g, ROOT, 'd'), 0);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), []);
    }, { write: LATER });
  });

  test('it is renamed, renamed over, and files are moved out of it', async () => {
    const memory = make();
    await withGuest(memory, async (guest) => {
      const { g } = guest;
      const d = await mkdir(g, ROOT, 'd', 0o700);
      await guest.put('f', bytes('content'), d.node);
      await mkdir(g, d.node, 'sub', 0o711);
      const there = await mkdir(g, ROOT, 'there', 0o777);
      assert.equal(await rename(g, ROOT, 'd', ROOT, 'there'), 0);
      const after = await g.lookup(ROOT, 'there');
      assert.deepEqual([after.node, after.mode], [d.node, 0o040700]);
      assert.notEqual(after.node, there.node);
      await missing(g, ROOT, 'd');
      assert.deepEqual(await g.list(after.node), ['f', 'sub']);
      assert.equal(await rename(g, after.node, 'f', ROOT, 'g'), 0);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), ['g', 'there/', 'there/sub/']);
      assert.deepEqual([await modeOf(memory, 'there/'), await modeOf(memory, 'there/sub/')], [0o040700, 0o040711]);
      // What has attributes that are not in the bucket
      assert.equal(await setattr(g, after.node, { mode: 0o750 }), 0);
      assert.equal(await rename(g, ROOT, 'there', ROOT, 'elsewhere'), 0);
      assert.equal((await g.lookup(ROOT, 'elsewhere')).mode, 0o040750);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), ['elsewhere/', 'elsewhere/sub/', 'g']);
      assert.equal(await modeOf(memory, 'elsewhere/'), 0o040750);
    }, { write: LATER });
  });

  test('it is renamed over one with attributes of its own, of which nothing stays', async () => {
    const memory = make();
    await withGuest(memory, async ({ g }) => {
      const there = await mkdir(g, ROOT, 'there', 0o777);
      assert.equal(await setxattr(g, there.node, 'user.old', bytes('1')), 0);
      await g.opened.idle();
      assert.deepEqual(await xattrsOf(memory, 'there/'), ['user.old']);
      await mkdir(g, ROOT, 'd', 0o700);
      assert.equal(await rename(g, ROOT, 'd', ROOT, 'there'), 0);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), ['there/']);
      assert.deepEqual([await modeOf(memory, 'there/'), await xattrsOf(memory, 'there/')], [0o040700, []]);
    }, { write: LATER });
  });

  test('one that somebody else has made as well is the same one: attributes are those of the last, and what only they knew stays', async () => {
    const memory = make();
    await withGuest(memory, async ({ g }) => {
      const d = await mkdir(g, ROOT, 'd', 0o750);
      assert.equal((await g.call(OP.SETXATTR, d.node, concat(u32(1, 0, 0, 0), name('user.mine'), bytes('1')))).error, 0);
      const theirs = encodeURIComponent(JSON.stringify({ 'user.theirs': Buffer.from('2').toString('base64') }));
      await memory.put('d/', new Uint8Array(0), { metadata: { mode: String(0o040777), project: 'x', xattr: theirs }, headers: { 'content-type': 'application/x-directory' } });
      await g.opened.idle();
      const { metadata, headers } = await memory.head('d/');
      const { posix } = readPosix(metadata!);
      assert.deepEqual([posix.mode, metadata!['project'], headers!['content-type']], [0o040750, 'x', 'application/x-directory']);
      assert.deepEqual([...posix.xattrs!.keys()].sort(), ['user.mine', 'user.theirs']);
      assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040750);
      assert.deepEqual(g.log.filter((line) => !line.startsWith('session:')), []);
      assert.deepEqual(await keysOf(memory), ['d/']);
    }, { write: LATER });
  });

  test('attributes of one that somebody else has removed do not bring it back, unless something is in it or they are to overwrite', async () => {
    for (const [onConflict, filled, back] of [['keep', false, false], ['keep', true, true], ['overwrite', false, true]] as const) {
      const memory = make();
      await memory.put('d/', new Uint8Array(0), { metadata: { mode: String(0o040755) } });
      if (filled) await memory.put('d/f', bytes('x'));
      await withGuest(memory, async ({ g }) => {
        assert.equal(await setattr(g, (await g.lookup(ROOT, 'd')).node, { mode: 0o700 }), 0);
        await memory.remove('d/');
        await g.opened.idle();
        assert.deepEqual(await keysOf(memory), [...(back ? ['d/'] : []), ...(filled ? ['d/f'] : [])]);
        if (back) assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040700);
        else await missing(g, ROOT, 'd');
        assert.equal(g.log.filter((line) => line.startsWith('attributes:')).length, back ? 0 : 1, g.log.join());
      }, { write: { ...LATER, onConflict } });
    }
  });

  test('a marker that has content keeps it when its directory is given attributes', async () => {
    const memory = make();
    await memory.put('d/', bytes('content'));
    await withGuest(memory, async (guest) => {
      const { g } = guest;
      const d = await g.lookup(ROOT, 'd');
      assert.equal(await setattr(g, d.node, { mode: 0o700 }), 0);
      assert.deepEqual(await g.list(d.node), ['%~e']);
      await g.opened.idle();
      assert.equal((await objectOf(memory, 'd/')).toString(), 'content');
      assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040700);
    }, { write: LATER });
  });

  test('so does one that somebody else has made meanwhile', async () => {
    const memory = make();
    await withGuest(memory, async ({ g }) => {
      await mkdir(g, ROOT, 'd', 0o700);
      await memory.put('d/', bytes('content'));
      await g.opened.idle();
      assert.equal((await objectOf(memory, 'd/')).toString(), 'content');
      assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040700);
    }, { write: LATER });
  });

  test('one without a marker gets one with its attributes', async () => {
    const memory = make();
    await memory.put('d/f', bytes('x'));
    await withGuest(memory, async ({ g }) => {
      const d = await g.lookup(ROOT, 'd');
      assert.equal(await setattr(g, d.node, { mode: 0o700 }), 0);
      assert.deepEqual(await keysOf(memory), ['d/f']);
      assert.equal((await g.lookup(ROOT, 'd')).mode, 0o040700);
      assert.equal(await unlink(g, d.node, 'f'), 0);
      assert.deepEqual(await g.list(ROOT), ['d']);
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), ['d/']);
      assert.equal(await setattr(g, ROOT, { mode: 0o700 }), -E.PERM);
    }, { write: LATER });
  });

  test('killed before it was committed, the next daemon commits it', async () => {
    const memory = make();
    await memory.put('old/', new Uint8Array(0), { metadata: { mode: String(0o040755) } });
    await withCache(async (cacheDirectory) => {
      const options: GuestOptions = { write: { ...LATER, cacheDirectory } };
      const first = await ObjectGuest.start(memory, options);
      const d = await mkdir(first, ROOT, 'd');
      await mkdir(first, d.node, 'gone');
      assert.equal(await rmdir(first, d.node, 'gone'), 0);
      assert.equal(await setattr(first, d.node, { mode: 0o700, mtime_s: MTIME_S }), 0);
      assert.equal(await setattr(first, (await first.lookup(ROOT, 'old')).node, { mode: 0o711 }), 0);
      assert.equal(await fsyncdir(first, d.node), 0);
      assert.equal(await fsyncdir(first, ROOT), 0);
      assert.equal((await first.call(50, ROOT, u64(0), 0)).error, 0, 'SYNCFS');
      await first.kill();
      assert.deepEqual(await keysOf(memory), ['old/']);
      const second = await ObjectGuest.start(memory, options);
      assert.deepEqual(second.recovered.map((line) => line.replace(/: a directory.*/, '')).sort(), ['goes on: memory:/d/', 'goes on: memory:/old/']);
      assert.equal((await second.lookup(ROOT, 'd')).mode, 0o040700);
      assert.equal((await second.lookup(ROOT, 'old')).mode, 0o040711);
      await second.close();
      assertDone(cacheDirectory);
      assert.deepEqual(await keysOf(memory), ['d/', 'old/']);
      const { posix } = readPosix((await memory.head('d/')).metadata!);
      assert.deepEqual([posix.mode, posix.mtime?.seconds], [0o040700, MTIME_S]);
      assert.equal(await modeOf(memory, 'old/'), 0o040711);
    });
  });

  test('killed when it was in the bucket, and nobody had heard of it, it is not taken for that of somebody else', async () => {
    const memory = make();
    const held = answersHeld(memory, ['put', 'setMetadata', 'copy']);
    await withCache(async (cacheDirectory) => {
      const options = { write: { ...LATER, writebackDelay_ms: 0, cacheDirectory } };
      const first = await ObjectGuest.start(held.store, options);
      const d = await mkdir(first, ROOT, 'd');
      while (held.done() === 0) await turn();
      // While the commit is on its way
      assert.equal(await setattr(first, d.node, { mode: 0o700 }), 0);
      const killed = first.kill();
      held.open();
      await killed;
      const calls = new Calls(memory);
      const second = await ObjectGuest.start(calls.store, options);
      assert.equal((await second.lookup(ROOT, 'd')).mode, 0o040700);
      await second.close();
      assertDone(cacheDirectory);
      assert.equal(await modeOf(memory, 'd/'), 0o040700);
      assert.deepEqual(second.log.filter((line) => !line.startsWith('session:')), []);
    });
  });

  test('removed while its commit is on its way, it is gone', async () => {
    const memory = make();
    const held = answersHeld(memory, ['put']);
    await withGuest(held.store, async ({ g }) => {
      await mkdir(g, ROOT, 'd');
      while (held.done() === 0) await turn();
      g.queue.chain([g.request(OP.RMDIR, ROOT, name('d')).bytes], [16], true);
      g.queue.kick();
      await turn();
      held.open();
      await g.queue.wait();
      await missing(g, ROOT, 'd');
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), []);
    }, { write: { ...LATER, writebackDelay_ms: 0 } });
  });

  test('a commit of one that fails is tried again, and removing it meanwhile ends that', async () => {
    const memory = make();
    const faulty = new FaultyStore(memory);
    await withGuest(faulty.store, async ({ g }) => {
      await mkdir(g, ROOT, 'd');
      await mkdir(g, ROOT, 'e');
      faulty.inject({ operation: 'put', nth: 1, fault: { kind: 'before', code: 'denied' } }, { operation: 'put', nth: 2, fault: { kind: 'before', code: 'denied' } });
      await g.opened.idle();
      assert.deepEqual(await keysOf(memory), []);
      assert.deepEqual(await g.list(ROOT), ['d', 'e']);
      assert.equal(await rmdir(g, ROOT, 'd'), 0);
      assert.deepEqual(await g.list(ROOT), ['e']);
    }, { write: LATER });
    assert.deepEqual(await keysOf(memory), ['e/'], 'the end tries each once more');
  });
});

test('with --durability=remote a directory and its attributes are in the bucket when they are answered', async () => {
  const store = new MemoryStore();
  await withGuest(store, async ({ g }) => {
    const d = await mkdir(g, ROOT, 'd');
    assert.equal(await modeOf(store, 'd/'), 0o040755);
    assert.equal(await setattr(g, d.node, { mode: 0o700 }), 0);
    assert.equal(await modeOf(store, 'd/'), 0o040700);
    assert.equal(await fsyncdir(g, d.node), 0);
  });
});

test('attributes that are too large are refused at once', async () => {
  await withGuest(new MemoryStore(), async ({ g }) => {
    const d = await mkdir(g, ROOT, 'd');
    assert.equal((await g.call(OP.SETXATTR, d.node, concat(u32(3000, 0, 0, 0), name('user.large'), new Uint8Array(3000)))).error, -E.NOSPC);
  }, { write: LATER });
});

test('who makes one more when many wait for the bucket waits for that one', async () => {
  const memory = new MemoryStore();
  await withGuest(memory, async ({ g }) => {
    for (const one of ['a', 'b', 'c']) await mkdir(g, ROOT, one);
    assert.deepEqual(await keysOf(memory), []);
    const d = await mkdir(g, ROOT, 'd');
    assert.deepEqual(await keysOf(memory), ['d/']);
    assert.equal(await setattr(g, d.node, { mode: 0o700 }), 0);
    assert.equal(await modeOf(memory, 'd/'), 0o040700);
    assert.equal(await rmdir(g, ROOT, 'a'), 0);
    await mkdir(g, ROOT, 'e');
    assert.deepEqual(await keysOf(memory), ['d/'], 'there is room again');
  }, { write: { ...LATER, deferredMax: 3 } });
});
