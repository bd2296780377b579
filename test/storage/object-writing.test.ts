/** Writing to a bucket through the file system: what is acknowledged, what the bucket has when, and what a restart finds. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { answersHeld } from '../support/held-answers.js';
import { MortalStore } from '../support/mortal-store.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Guest, killedInRename, objectOf, PARTS, SMALL, withGuest } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const O_RDWR = 2;
const O_TRUNC = 0o1000;
const MIB = 1 << 20;

const text = (bytes: Uint8Array): string => Buffer.from(bytes).toString();
const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

describe('files', () => {
  test('what is closed is in the bucket, with the metadata that others read', async () => {
    const store = new MemoryStore();
    await withGuest(store, async (guest) => {
      const { entry, fh } = await guest.g.create(ROOT, 'new');
      assert.deepEqual([entry.mode, entry.size], [0o100644, 0]);
      await guest.write(entry.node, fh, 0, bytes('hello'));
      await assert.rejects(store.head('new'), { code: 'not-found' });
      assert.deepEqual(await guest.g.list(ROOT), ['new'], 'its guest sees it before');
      assert.equal((await guest.g.lookup(ROOT, 'new')).size, 5);
      assert.equal(await guest.flush(entry.node, fh), 0);
      assert.equal(text(await objectOf(store, 'new')), 'hello');
      const { metadata } = await store.head('new');
      assert.equal(metadata?.['mode'], String(0o100644));
      await guest.write(entry.node, fh, 5, bytes(' world'));
      assert.equal(text(await guest.readAll(entry.node, fh)), 'hello world');
      assert.equal(await guest.close(entry.node, fh), 0);
      assert.equal(text(await objectOf(store, 'new')), 'hello world');
      assert.equal(text(await guest.content(entry.node)), 'hello world');
      await guest.g.opened.idle();
      assert.deepEqual(readdirSync(join(guest.g.cacheDirectory!, 'staging')), [], 'nothing stays staged');
    });
  });

  test('a file that is cut while it is sent in parts is what it is then', async () => {
    const store = new MemoryStore({ limits: PARTS });
    await withGuest(store, async (guest) => {
      const { entry, fh } = await guest.g.create(ROOT, 'cut');
      for (const size of [500_000, 10, 0]) {
        await guest.write(entry.node, fh, 0, pattern(900_000));
        for (let turns = 0; turns < 20; turns++) await turn(); // some parts are sent
        assert.equal(await guest.truncate(entry.node, size), 0);
        assert.equal(await guest.flush(entry.node, fh), 0);
        assert.ok((await objectOf(store, 'cut')).equals(pattern(900_000).subarray(0, size)), `${size} bytes`);
      }
      assert.equal(await guest.close(entry.node, fh), 0);
    }, { write: { sizes: SMALL } });
    assert.deepEqual((await store.listUploads({ prefix: '' })).uploads, []);
  });

  test('any pattern of writes and cuts, small and in parts, on new and on existing objects', async () => {
    const store = new MemoryStore({ limits: PARTS });
    await store.put('old', pattern(700_000));
    await withGuest(store, async (guest) => {
      const g = guest.g;
      const { node } = await g.lookup(ROOT, 'old');
      const model = Buffer.from(pattern(700_000));
      const fh = await g.open(node, O_RDWR);
      await guest.write(node, fh, 300_000, bytes('in the middle'));
      model.write('in the middle', 300_000);
      assert.ok((await guest.readAll(node, fh)).equals(model));
      assert.equal(await guest.fsync(node, fh), 0);
      assert.ok((await objectOf(store, 'old')).equals(model));
      assert.equal(await guest.truncate(node, 650_000), 0);
      assert.equal(await guest.truncate(node, 660_000), 0);
      const cut = Buffer.concat([model.subarray(0, 650_000), Buffer.alloc(10_000)]);
      assert.ok((await guest.readAll(node, fh)).equals(cut));
      await guest.write(node, fh, 660_000, pattern(200_000));
      const grown = Buffer.concat([cut, pattern(200_000)]);
      assert.equal(await guest.close(node, fh), 0);
      assert.ok((await objectOf(store, 'old')).equals(grown));
      await guest.put('streamed', pattern(900_000));
      assert.ok((await objectOf(store, 'streamed')).equals(pattern(900_000)));
      assert.deepEqual((await store.listUploads({ prefix: '' })).uploads, []);
    }, { write: { sizes: SMALL } });
  });

  test('what HTTP says of an object stays when its content or its attributes change', async () => {
    const store = new MemoryStore({ capabilities: { listingHasMetadata: false, rename: false }, limits: PARTS });
    const headers = { 'content-type': 'text/css', 'cache-control': 'max-age=60', 'content-encoding': 'gzip' };
    for (const key of ['small', 'large', 'moved']) await store.put(key, pattern(key === 'large' ? 200_000 : 100), { headers });
    await withGuest(store, async (guest) => {
      const { g } = guest;
      for (const key of ['small', 'large']) {
        const { node } = await g.lookup(ROOT, key);
        const fh = await g.open(node, O_RDWR);
        await guest.write(node, fh, 10, bytes('changed'));
        assert.equal(await guest.close(node, fh), 0);
      }
      const { node } = await g.lookup(ROOT, 'moved');
      assert.equal((await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)))).error, 0);
      assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('moved'), name('there')), 0)).error, 0);
    }, { write: { sizes: SMALL } });
    for (const key of ['small', 'large', 'there']) assert.deepEqual((await store.head(key)).headers, headers, key);
  });

  test('truncated at open it is empty, and the object stays until it is closed', async () => {
    const store = new MemoryStore();
    await store.put('f', bytes('before'));
    await withGuest(store, async (guest) => {
      const { node } = await guest.g.lookup(ROOT, 'f');
      const fh = await guest.g.open(node, O_RDWR | O_TRUNC);
      assert.equal((await guest.g.lookup(ROOT, 'f')).size, 0);
      assert.equal(text(await objectOf(store, 'f')), 'before');
      assert.equal(await guest.close(node, fh), 0);
      assert.equal((await objectOf(store, 'f')).length, 0);
    });
  });
});

for (const rename of [true, false]) describe(`names, where the store ${rename ? 'renames' : 'copies'}`, () => {
  test('mkdir, rename, unlink, rmdir are in the bucket when they are answered', async () => {
    const store = new MemoryStore({ capabilities: { rename } });
    await withGuest(store, async (guest) => {
      const g = guest.g;
      const mkdir = async (parent: bigint, one: string): Promise<bigint> => g.entry(await g.call(OP.MKDIR, parent, concat(u32(0o755, 0o22), name(one)), 128)).node;
      const rename = async (from: bigint, a: string, to: bigint, b: string, flags = 0): Promise<number> =>
        (await g.call(OP.RENAME2, from, concat(u64(to), u32(flags, 0), name(a), name(b)), 0)).error;
      const d = await mkdir(ROOT, 'd');
      assert.equal((await store.head('d/')).size, 0);
      const f = await guest.put('f', bytes('content'), d);
      await mkdir(d, 'sub');
      assert.equal((await g.call(OP.RMDIR, ROOT, name('d'), 0)).error, -E.NOTEMPTY);
      assert.equal(await rename(d, 'f', ROOT, 'g'), 0);
      assert.equal((await g.lookup(ROOT, 'g')).node, f, 'a file keeps its node');
      assert.equal(text(await objectOf(store, 'g')), 'content');
      await assert.rejects(store.head('d/f'), { code: 'not-found' });
      assert.equal(await rename(ROOT, 'g', d, 'h', 1), 0);
      assert.equal(await rename(d, 'h', d, 'sub', 1), -E.EXIST);
      assert.equal(await rename(ROOT, 'd', ROOT, 'e'), 0);
      assert.deepEqual((await store.list({ prefix: '' })).objects.map((object) => object.key), ['e/', 'e/h', 'e/sub/']);
      assert.equal(text(await guest.content((await g.lookup((await g.lookup(ROOT, 'e')).node, 'h')).node)), 'content');
      const e = (await g.lookup(ROOT, 'e')).node;
      assert.equal((await g.call(OP.RMDIR, e, name('sub'), 0)).error, 0);
      assert.equal((await g.call(OP.UNLINK, e, name('h'), 0)).error, 0);
      assert.equal((await g.call(OP.RMDIR, ROOT, name('e'), 0)).error, 0);
      assert.deepEqual((await store.list({ prefix: '' })).objects, []);
    });
  });

  test('a directory that nobody has made has nothing of the empty one whose name it takes, unless that is somebody else\'s by then', async () => {
    const inner = new MemoryStore({ capabilities: { rename } });
    let theirs: (() => Promise<unknown>) | null = null;
    const store = intercept(inner, async (call, attempt) => {
      if (call.operation === 'remove' && call.subject.endsWith('made/')) await theirs?.();
      return attempt(call.signal);
    });
    await inner.put('found/f', bytes('theirs'));
    await withGuest(store, async ({ g }) => {
      for (const replaced of [false, true]) {
        assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o1711, 0), name('made')), 128)).error, 0);
        theirs = replaced ? () => inner.put('made/', bytes(''), { metadata: { mode: String(0o40700) } }) : null;
        assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('found'), name('made')), 0)).error, 0);
        assert.equal((await g.lookup(ROOT, 'made')).mode, replaced ? 0o40700 : 0o40755);
        assert.deepEqual((await inner.list({ prefix: '' })).objects.map(({ key }) => key), replaced ? ['made/', 'made/f'] : ['made/f']);
        if (!replaced) assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('made'), name('found')), 0)).error, 0);
      }
    });
  });

  test('what is done below a directory that is being renamed is done when that is over', async () => {
    const memory = new MemoryStore({ capabilities: { rename } });
    const gate = { copies: 0, open: (): void => undefined };
    const opened = new Promise<void>((resolve) => (gate.open = resolve));
    const store = intercept(memory, async (call, attempt) => {
      if ((call.operation === 'copy' || call.operation === 'rename') && ++gate.copies > 0) await opened;
      return attempt(call.signal);
    });
    await withGuest(store, async (guest) => {
      const g = guest.g;
      const d = g.entry(await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0o22), name('d')), 128)).node;
      const a = await guest.put('a', bytes('before'), d);
      await guest.put('b', bytes('b'), d);
      const fh = await g.open(a, O_RDWR);
      const answers: { head: number; at: number }[] = [];
      const ask = (opcode: number, node: bigint, args: Uint8Array): void => {
        const { head, writable } = g.queue.chain([g.request(opcode, node, args).bytes], [400], true);
        answers.push({ head, at: writable[0] });
        g.queue.kick();
      };
      ask(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('d'), name('e')));
      while (gate.copies === 0) await turn();
      const sent = bytes('behind');
      ask(OP.WRITE, a, concat(u64(fh, 0), u32(sent.length, 0), u64(0), u32(0, 0), sent));
      ask(OP.FLUSH, a, concat(u64(fh), u32(0, 0), u64(0)));
      ask(OP.CREATE, d, concat(u32(2 | 0o100, 0o100644, 0o22, 0), name('c')));
      ask(OP.SETATTR, a, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)));
      ask(OP.LOOKUP, d, name('b'));
      gate.open();
      await g.queue.wait(answers.length);
      for (const { at } of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
      await guest.release(a, fh);
    });
    const keys = (await memory.list({ prefix: '' })).objects.map((object) => object.key);
    assert.deepEqual(keys, ['e/', 'e/a', 'e/b', 'e/c']);
    assert.equal(text(await objectOf(memory, 'e/a')), 'behind');
    assert.equal(readPosix((await memory.head('e/a')).metadata!).posix.mode! & 0o777, 0o600);
  });

  test('mode, owner, times and attributes are in the metadata, follow a rename, and stay when the content changes', async () => {
    const store = new MemoryStore({ capabilities: { rename } });
    await store.put('others', bytes('x'), { metadata: { project: 'apollo', mode: '33188' } });
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const setattr = async (node: bigint, valid: number, put: (view: DataView) => void): Promise<number> => {
        const args = new DataView(new ArrayBuffer(88));
        args.setUint32(0, valid, true);
        put(args);
        return (await g.call(OP.SETATTR, node, new Uint8Array(args.buffer), 104)).error;
      };
      const created = await guest.put('new', bytes('content'));
      const { node } = await g.lookup(ROOT, 'others');
      for (const one of [created, node]) {
        assert.equal(await setattr(one, 1 | 2 | 32, (view) => {
          view.setBigUint64(40, 1_294_250_607n, true);
          view.setUint32(60, 5, true);
          view.setUint32(68, 0o640, true);
          view.setUint32(76, 1000, true);
        }), 0);
        assert.equal((await g.call(OP.SETXATTR, one, concat(u32(5, 0, 0, 0), name('user.colour'), bytes('green')), 0)).error, 0);
      }
      assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('new'), name('moved')), 0)).error, 0);
      const fh = await g.open(node, O_RDWR);
      await guest.write(node, fh, 1, bytes('y'));
      assert.equal(await guest.close(node, fh), 0);
      for (const key of ['moved', 'others']) {
        const { posix } = readPosix((await store.head(key)).metadata!);
        assert.deepEqual([posix.mode, posix.uid, text(posix.xattrs!.get('user.colour')!)], [0o100640, 1000, 'green'], key);
      }
      assert.deepEqual(readPosix((await store.head('moved')).metadata!).posix.mtime, { seconds: 1_294_250_607, nanoseconds: 5 });
      assert.equal((await store.head('others')).metadata!['project'], 'apollo');
      assert.equal((await g.call(OP.SETXATTR, node, concat(u32(4000, 0, 0, 0), name('user.big'), new Uint8Array(4000)), 0)).error, -E.NOSPC);
      assert.equal((await g.call(OP.SETXATTR, node, concat(u32(1, 0, 0, 0), name('security.x'), bytes('1')), 0)).error, -E.OPNOTSUPP);
    });
  });

  test('what is open outlives its name', async () => {
    const store = new MemoryStore({ capabilities: { rename } });
    await withGuest(store, async (guest) => {
      for (const [file, content] of [['small', bytes('small')], ['large', pattern(9 * MIB)]] as const) {
        await store.put(file, content);
        const { node } = await guest.g.lookup(ROOT, file);
        const fh = await guest.g.open(node, O_RDWR);
        assert.equal((await guest.g.call(OP.UNLINK, ROOT, name(file), 0)).error, 0);
        await assert.rejects(store.head(file), { code: 'not-found' });
        assert.ok((await guest.readAll(node, fh)).equals(content));
        const again = await guest.g.open(node, 0); // as by /proc/self/fd
        assert.ok((await guest.readAll(node, again)).equals(content));
        const mode = new DataView(new ArrayBuffer(88));
        mode.setUint32(0, 1, true);
        mode.setUint32(68, 0o600, true);
        assert.equal((await guest.g.call(OP.SETATTR, node, new Uint8Array(mode.buffer), 104)).error, 0);
        await guest.write(node, fh, 0, bytes('S'));
        assert.equal((await guest.g.read(node, again, 0, 1)).data.getUint8(0), 'S'.charCodeAt(0));
        await guest.release(node, again);
        assert.deepEqual(await guest.g.list(ROOT), []);
        assert.equal(await guest.close(node, fh), 0);
        await guest.g.opened.idle();
        assert.deepEqual((await store.list({ prefix: '' })).objects, []);
      }
    });
  });

  test('the last who has it open may close it while its name is being removed', async () => {
    const memory = new MemoryStore({ capabilities: { rename } });
    for (const key of ['f', 'other']) await memory.put(key, bytes('content'));
    const { store, done, open } = answersHeld(memory, ['read']);
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      const { writable } = g.queue.chain([g.request(OP.UNLINK, ROOT, name('f')).bytes], [16], true);
      g.queue.kick();
      while (done() === 0) await turn();
      await guest.release(node, fh);
      // What nobody needs any more has been given up by now
      for (let i = 0; i < 100; i++) await guest.release(node, await g.open((await g.lookup(ROOT, 'other')).node, 0));
      open();
      await g.queue.wait();
      assert.equal(g.memory.dv.getInt32(writable[0] + 4, true), 0);
    });
  });
});

describe('conflicts', () => {
  test('what somebody else has made of a file goes along with its directory; what is written here is no part of it', async () => {
    const store = new MemoryStore({ capabilities: { rename: false } });
    await store.put('d/f', bytes('first'));
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const d = await g.lookup(ROOT, 'd');
      const { node } = await g.lookup(d.node, 'f');
      const fh = await g.open(node, O_RDWR);
      await store.put('d/f', bytes('theirs, and longer'));
      assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('d'), name('e')), 0)).error, 0);
      await guest.write(node, fh, 0, bytes('OURS'));
      assert.equal(await guest.close(node, fh), -E.STALE);
    });
    assert.equal(text(await objectOf(store, 'e/f')), 'theirs, and longer');
    const kept = (await store.list({ prefix: '.bucketfsd-conflicts/' })).objects;
    assert.equal(kept.length, 1);
    assert.match(text(await objectOf(store, kept[0].key)), /^OURS/);
  });

  test('who was slower hears ESTALE, and finds what was written beside', async () => {
    const store = new MemoryStore();
    await store.put('d/f', bytes('one'));
    await withGuest(store, async (guest) => {
      const d = await guest.g.lookup(ROOT, 'd');
      const { node } = await guest.g.lookup(d.node, 'f');
      const fh = await guest.g.open(node, O_RDWR);
      await guest.write(node, fh, 0, bytes('mine'));
      await store.put('d/f', bytes('theirs'));
      assert.equal(await guest.flush(node, fh), -E.STALE);
      await guest.release(node, fh);
      assert.equal(text(await objectOf(store, 'd/f')), 'theirs');
      const { objects } = await store.list({ prefix: '.bucketfsd-conflicts/d/f.' });
      assert.equal(text(await objectOf(store, objects[0].key)), 'mine');
      assert.ok(guest.g.log.some((line) => line.startsWith('error:') && line.includes(objects[0].key)));
      assert.equal((await guest.g.lookup(d.node, 'f')).size, 6);
    });
  });

  test('so does who makes a file while it is still believed that there is none', async () => {
    const store = new MemoryStore();
    await withGuest(store, async (guest) => {
      assert.deepEqual(await guest.g.list(ROOT), []);
      await store.put('f', bytes('theirs'));
      const { entry, fh } = await guest.g.create(ROOT, 'f');
      await guest.write(entry.node, fh, 0, bytes('mine'));
      assert.equal(await guest.flush(entry.node, fh), -E.STALE);
      await guest.release(entry.node, fh);
      assert.equal(text(await objectOf(store, 'f')), 'theirs');
      const { objects } = await store.list({ prefix: '.bucketfsd-conflicts/f.' });
      assert.equal(text(await objectOf(store, objects[0].key)), 'mine');
      assert.equal((await guest.g.lookup(ROOT, 'f')).size, 6);
    }, { metadataTtl_ms: 60_000 });
  });
});

describe('restarts', () => {
  test('a rename of a directory that cannot be finished now ends the start, and the next one finishes it', async () => {
    const memory = new MemoryStore({ capabilities: { rename: false } });
    for (const key of ['d/a', 'd/b', 'd/c']) await memory.put(key, bytes(key));
    const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
    const options = { write: { cacheDirectory } };
    const mortal = new MortalStore(memory);
    const first = await ObjectGuest.start(mortal.store, options);
    await first.lookup(ROOT, 'd');
    mortal.dieAt(8, true);
    await killedInRename(first, mortal, 'd', 'e');
    const faulty = new FaultyStore(memory);
    const refuse = { nth: 1, fault: { kind: 'before', code: 'unavailable' } } as const;
    faulty.inject({ operation: 'copy', ...refuse }, { operation: 'remove', ...refuse });
    await assert.rejects(ObjectGuest.start(faulty.store, options), { code: 'unavailable' });
    const last = await ObjectGuest.start(memory, options);
    assert.match(last.recovered.join(), /moved what was left below memory:\/d\//);
    await last.close();
    assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), ['e/a', 'e/b', 'e/c']);
    rmSync(cacheDirectory, { recursive: true });
  });

  for (const durability of ['remote', 'writeback'] as const) {
    test(`acknowledged writes survive the daemon (${durability})`, async () => {
      const store = new MemoryStore({ limits: PARTS });
      await store.put('old', pattern(300_000));
      const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
      const options = { write: { cacheDirectory, durability, writebackDelay_ms: 60_000, sizes: SMALL } };
      const first = new Guest(await ObjectGuest.start(store, options));
      const { entry, fh } = await first.g.create(ROOT, 'new');
      await first.write(entry.node, fh, 0, pattern(200_000));
      const { node } = await first.g.lookup(ROOT, 'old');
      const old = await first.g.open(node, O_RDWR);
      await first.write(node, old, 100_000, bytes('changed'));
      await first.g.kill();
      const second = new Guest(await ObjectGuest.start(store, options));
      assert.equal(second.g.recovered.filter((line) => line.startsWith('goes on')).length, 2);
      assert.ok((await second.content((await second.g.lookup(ROOT, 'new')).node)).equals(pattern(200_000)));
      const model = Buffer.from(pattern(300_000));
      model.write('changed', 100_000);
      assert.ok((await second.content((await second.g.lookup(ROOT, 'old')).node)).equals(model));
      await second.g.close();
      assert.ok((await objectOf(store, 'new')).equals(pattern(200_000)));
      assert.ok((await objectOf(store, 'old')).equals(model));
      rmSync(cacheDirectory, { recursive: true });
    });
  }

  for (const [rename, held] of [[true, 'rename'], [false, 'remove'], [false, 'copy']] as const) {
    for (const onConflict of ['keep', 'overwrite'] as const) {
      test(`a rename onto what was changed and not closed, ended after the server's ${held}: nothing is in the way of what was renamed (${onConflict})`, async () => {
        const memory = new MemoryStore({ capabilities: { rename } });
        const { store, done, open } = answersHeld(memory, [held]);
        const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
        const write = { cacheDirectory, onConflict };
        const first = new Guest(await ObjectGuest.start(store, { write }));
        await first.put('new', bytes('renamed'));
        const { entry, fh } = await first.g.create(ROOT, 'old');
        await first.write(entry.node, fh, 0, bytes('replaced'));
        first.g.queue.chain([first.g.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('new'), name('old'))).bytes], [16], true);
        first.g.queue.kick();
        while (done() === 0) await turn();
        const killed = first.g.kill();
        open();
        await killed;
        await (await ObjectGuest.start(memory, { write })).close();
        const keys = (await memory.list({ prefix: '' })).objects.map(({ key }) => key);
        assert.deepEqual(keys.filter((key) => key !== 'new'), ['old']);
        assert.equal(text(await objectOf(memory, 'old')), 'renamed');
        rmSync(cacheDirectory, { recursive: true });
      });
    }
  }

  test('a commit whose answer was lost is not taken for a conflict', async () => {
    const store = new MemoryStore();
    const faults = new FaultyStore(store);
    await withGuest(faults.store, async (guest) => {
      const { entry, fh } = await guest.g.create(ROOT, 'f');
      await guest.write(entry.node, fh, 0, bytes('content'));
      faults.inject({ operation: 'put', nth: 1, fault: { kind: 'lost-reply' } });
      assert.equal(await guest.close(entry.node, fh), 0);
      assert.equal(text(await objectOf(store, 'f')), 'content');
    });
  });
});
