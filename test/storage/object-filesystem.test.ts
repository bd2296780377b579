/** A bucket as a file system, over a real ring: see src/storage/object/filesystem.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, name } from '../support/guest.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

async function withGuest(store: ObjectStore, body: (g: ObjectGuest) => Promise<void>, options: GuestOptions = {}, budget?: number): Promise<void> {
  const guest = await ObjectGuest.start(store, options, budget);
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

async function storeOf(keys: Record<string, string>): Promise<MemoryStore> {
  const store = new MemoryStore();
  for (const [key, content] of Object.entries(keys)) await store.put(key, bytes(content));
  return store;
}

interface Listed {
  readonly name: string;
  readonly type: number;
  /** READDIRPLUS: the node, 0 where nothing is said of it. */
  readonly node: bigint;
  readonly mode: number;
}

/** A whole listing by replies of at most `size` bytes; starts again from any offset given. */
async function list(g: ObjectGuest, node: bigint, plus = false, size = 4096): Promise<Listed[]> {
  const opened = await g.call(OP.OPENDIR, node, u32(0, 0), 16);
  assert.equal(opened.error, 0);
  const fh = opened.data.getBigUint64(0, true);
  const all: Listed[] = [];
  for (let offset = 0n; ; ) {
    const { data, error } = await g.call(plus ? OP.READDIRPLUS : OP.READDIR, node, concat(u64(fh, offset), u32(size, 0), u64(0), u32(0, 0)), size);
    assert.equal(error, 0);
    if (data.byteLength === 0) break;
    for (let at = 0; at + 24 <= data.byteLength; ) {
      const entry = plus ? 128 : 0;
      const length = data.getUint32(at + entry + 16, true);
      const text = Buffer.from(data.buffer, data.byteOffset + at + entry + 24, length).toString();
      all.push({
        name: text, type: data.getUint32(at + entry + 20, true), node: plus ? data.getBigUint64(at, true) : 0n, mode: plus ? data.getUint32(at + 100, true) : 0,
      });
      offset = data.getBigUint64(at + entry + 8, true);
      at += (entry + 24 + length + 7) & ~7;
    }
  }
  assert.equal((await g.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  return all;
}

async function content(g: ObjectGuest, node: bigint, size: number): Promise<Buffer> {
  const fh = await g.open(node, 0);
  const out: Buffer[] = [];
  for (let at = 0; at < size; at += 65536) {
    const { data, error } = await g.read(node, fh, at, 65536);
    assert.equal(error, 0);
    out.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
  }
  assert.equal((await g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  return Buffer.concat(out);
}

describe('names', () => {
  test('keys are a tree: objects are files, what lies below a slash is a directory, with or without a marker', async () => {
    const store = await storeOf({ 'a.txt': 'hello', 'implied/x/y': '1', 'marked/': '', 'marked/z': '22' });
    await withGuest(store, async (g) => {
      const file = await g.lookup(ROOT, 'a.txt');
      assert.deepEqual([file.mode, file.size], [0o100644, 5]);
      const implied = await g.lookup(ROOT, 'implied');
      assert.equal(implied.mode, 0o40755);
      assert.equal((await g.lookup((await g.lookup(implied.node, 'x')).node, 'y')).size, 1);
      assert.equal((await g.lookup((await g.lookup(ROOT, 'marked')).node, 'z')).size, 2);
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('nothing'), 128)).error, -E.NOENT);
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('impl'), 128)).error, -E.NOENT);
      assert.equal((await g.call(OP.LOOKUP, file.node, name('x'), 128)).error, -E.NOTDIR);
      assert.equal((await g.lookup(ROOT, 'a.txt')).node, file.node, 'a key has one node');
    });
  });

  test('every key is reachable by the name that the listing gives it', async () => {
    const keys = ['foo', 'foo/bar', 'a//b', '/root', './x', '../y', 'with content/', `${'long'.repeat(80)}/x`, `${'long'.repeat(80)}y`, 'a%~b', 'é'];
    const store = await storeOf(Object.fromEntries(keys.map((key) => [key, `content of ${key}`])));
    await withGuest(store, async (g) => {
      const found = new Set<string>();
      const walk = async (node: bigint, plus: boolean): Promise<void> => {
        for (const entry of await list(g, node, plus)) {
          if (entry.name === '.' || entry.name === '..') continue;
          const { node: child, mode, size } = await g.lookup(node, entry.name);
          if (entry.node !== 0n) assert.equal(entry.node, child);
          if ((mode & 0o170000) === 0o40000) await walk(child, plus);
          else found.add((await content(g, child, size)).toString());
        }
      };
      for (const plus of [false, true]) {
        found.clear();
        await walk(ROOT, plus);
        assert.deepEqual([...found].sort(), keys.map((key) => `content of ${key}`).sort());
      }
    });
  });

  test('a prefix is the whole world', async () => {
    const store = await storeOf({ 'in/side': '1', 'out': '2', 'in/deep/er': '3', 'inside': '4' });
    await withGuest(store, async (g) => {
      assert.deepEqual((await list(g, ROOT)).map((entry) => entry.name), ['.', '..', 'deep', 'side']);
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('out'), 128)).error, -E.NOENT);
    }, { prefix: 'in/' });
  });
});

describe('attributes', () => {
  test('metadata of every convention counts, lies do not, and options give the rest', async () => {
    const store = new MemoryStore();
    await store.put('s3fs', bytes('12'), { metadata: { mode: '33216', uid: '5', gid: '6', mtime: '1700000000.5' } });
    await store.put('link', bytes('to/there'), { metadata: { mode: '41471' } });
    await store.put('lies', bytes('x'), { metadata: { mode: 'rwx', mtime: 'soon', uid: '1' } });
    await store.put('dir/', bytes(''), { metadata: { mode: '16832', uid: '7' } });
    await withGuest(store, async (g) => {
      const attr = async (path: string): Promise<DataView> => (await g.call(OP.LOOKUP, ROOT, name(path), 128)).data;
      const s3fs = await attr('s3fs');
      // fuse_entry_out: attr at 40: mtime 40+32, mtimensec 40+52, mode 40+60, uid 40+68, gid 40+72
      assert.deepEqual([s3fs.getUint32(100, true), s3fs.getUint32(108, true), s3fs.getUint32(112, true)], [0o100700, 5, 6]);
      assert.deepEqual([s3fs.getBigUint64(72, true), s3fs.getUint32(92, true)], [1700000000n, 500_000_000]);
      const lies = await attr('lies');
      assert.deepEqual([lies.getUint32(100, true), lies.getUint32(108, true), lies.getUint32(112, true)], [0o100640, 1, 99]);
      assert.ok(g.log.some((line) => line.includes('lies') && line.includes('mode, mtime')));
      const dir = await attr('dir');
      assert.deepEqual([dir.getUint32(100, true), dir.getUint32(108, true)], [0o40700, 7]);
      const link = await g.lookup(ROOT, 'link');
      assert.equal(link.mode, 0o120777);
      assert.equal(Buffer.from((await g.call(OP.READLINK, link.node)).data.buffer).toString('latin1').includes('to/there'), true);
      assert.equal((await g.call(OP.OPEN, link.node, u32(0, 0), 16)).error, -E.LOOP);
    }, { gid: 99, fileMode: 0o640 });
  });

  test('extended attributes of the metadata are there', async () => {
    const store = new MemoryStore();
    const xattr = encodeURIComponent(JSON.stringify({ 'user.a': Buffer.from([1, 2, 3]).toString('base64') }));
    await store.put('x', bytes(''), { metadata: { xattr } });
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'x');
      const get = (attribute: string, size: number) => g.call(OP.GETXATTR, node, concat(u32(size, 0), name(attribute)));
      const { data, error } = await get('user.a', 100);
      assert.equal(error, 0);
      assert.deepEqual([...new Uint8Array(data.buffer, data.byteOffset, data.byteLength)], [1, 2, 3]);
      assert.equal((await get('user.a', 2)).error, -E.RANGE);
      assert.equal((await get('user.b', 100)).error, -E.NODATA);
      const listed = await g.call(OP.LISTXATTR, node, u32(100, 0));
      assert.equal(Buffer.from(listed.data.buffer, listed.data.byteOffset, listed.data.byteLength).toString(), 'user.a\0');
    });
  });
});

describe('listings', () => {
  test('ten thousand entries in replies of any size, each once; in pages of the store', async () => {
    const store = new MemoryStore();
    const names = Array.from({ length: 10_000 }, (_, i) => `n${String(i).padStart(5, '0')}`);
    for (const one of names) await store.put(`d/${one}`, bytes(''));
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'd');
      for (const [plus, size] of [[false, 65536], [false, 1000], [true, 65536]] as const) {
        const all = (await list(g, node, plus, size)).map((entry) => entry.name);
        assert.deepEqual(all, ['.', '..', ...names]);
      }
    });
  });

  test('READDIRPLUS gives nodes that LOOKUP gives, with the modes of their metadata', async () => {
    const store = new MemoryStore();
    await store.put('a', bytes('1'), { metadata: { mode: '33024' } });
    await store.put('b', bytes('2'));
    for (const listingHasMetadata of [true, false]) {
      const seen = new MemoryStore({ capabilities: { listingHasMetadata } });
      await seen.put('a', bytes('1'), { metadata: { mode: '33024' } });
      await withGuest(seen, async (g) => {
        const [a] = (await list(g, ROOT, true)).filter((entry) => entry.name === 'a');
        assert.equal(a.mode, 0o100400);
        assert.equal(a.node, (await g.lookup(ROOT, 'a')).node);
      });
    }
  });

  test('the first READDIRPLUS of a directory asks for what follows only if the directory before was gone through with attributes', async () => {
    const memory = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    for (const folder of ['a', 'b', 'c', 'd']) for (let i = 100; i < 200; i++) await memory.put(`${folder}/n${i}`, bytes('x'));
    const { store, calls } = new FaultyStore(memory);
    await withGuest(store, async (g) => {
      const askedAtFirst = async (folder: string, thenPlus: boolean): Promise<number> => {
        const { node } = await g.lookup(ROOT, folder);
        const fh = (await g.call(OP.OPENDIR, node, u32(0, 0), 16)).data.getBigUint64(0, true);
        const page = async (opcode: number, offset: bigint): Promise<bigint> => {
          const { data, error } = await g.call(opcode, node, concat(u64(fh, offset), u32(1024, 0), u64(0), u32(0, 0)), 1024);
          assert.equal(error, 0);
          // The names of this test are four bytes: entries, but for the dots, have one size
          return data.byteLength === 0 ? 0n : data.getBigUint64(data.byteLength - 24, true);
        };
        calls.length = 0;
        const next = await page(OP.READDIRPLUS, 0n);
        const heads = calls.filter((call) => call === 'head').length;
        await page(thenPlus ? OP.READDIRPLUS : OP.READDIR, next);
        await g.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
        return heads;
      };
      assert.ok((await askedAtFirst('a', true)) < 10);
      assert.equal(await askedAtFirst('b', true), 100);
      assert.equal(await askedAtFirst('c', false), 100);
      assert.ok((await askedAtFirst('d', false)) < 10);
    }, { metadataTtl_ms: 60_000 });
  });

  test('a listing with attributes asks for each object once, and lookups that follow are answered by it', async () => {
    const memory = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const count = 700;
    for (let i = 0; i < count; i++) await memory.put(`d/n${String(i).padStart(4, '0')}`, bytes('x'), { metadata: { mode: '33024' } });
    await memory.put('d/sub/x', bytes(''));
    const { store, calls } = new FaultyStore(memory);
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'd');
      calls.length = 0;
      const listed = await list(g, node, true);
      assert.equal(listed.length, 2 + count + 1);
      assert.ok(listed.every((entry) => entry.name.startsWith('.') || entry.name === 'sub' || entry.mode === 0o100400));
      assert.deepEqual([calls.filter((call) => call === 'head').length, calls.filter((call) => call === 'list').length], [count + 1, 1]);
      calls.length = 0;
      for (const one of ['n0000', 'n0500', 'sub']) assert.equal((await g.lookup(node, one)).node, listed.find((entry) => entry.name === one)!.node);
      for (const one of ['n', 'n0000x', 'zzz']) assert.equal((await g.call(OP.LOOKUP, node, name(one), 128)).error, -E.NOENT);
      assert.ok(!calls.includes('list'));
    }, { metadataTtl_ms: 60_000 });
  });

  test('names that are looked up one after the other are answered by a listing, as long as nothing has changed', async () => {
    const memory = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    for (let i = 0; i < 2500; i++) await memory.put(`d/n${String(i).padStart(4, '0')}`, bytes('x'));
    const { store, calls } = new FaultyStore(memory);
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'd');
      calls.length = 0;
      for (let i = 0; i < 2500; i++) await g.lookup(node, `n${String(i).padStart(4, '0')}`);
      assert.equal(calls.filter((call) => call === 'head').length, 2500);
      assert.ok(calls.filter((call) => call === 'list').length <= 16);
      // What is done here is known at once
      assert.equal((await g.call(OP.UNLINK, node, name('n0007'), 0)).error, 0);
      assert.equal((await g.call(OP.LOOKUP, node, name('n0007'), 128)).error, -E.NOENT);
      assert.equal((await g.call(OP.LOOKUP, node, name('n0007a'), 128)).error, -E.NOENT);
      assert.equal((await g.call(OP.MKDIR, node, concat(u32(0o755, 0), name('n0007a')), 128)).error, 0);
      const made = await g.lookup(node, 'n0007a');
      calls.length = 0;
      for (const one of ['a', 'b', 'c']) assert.equal((await g.call(OP.LOOKUP, made.node, name(one), 128)).error, -E.NOENT);
      assert.deepEqual(calls, [], 'a new directory is empty');
      await g.create(made.node, 'b');
      await g.lookup(made.node, 'b');
    }, { metadataTtl_ms: 60_000, write: {} });
  });

  test('telldir and seekdir: any offset that was given goes on where it was, also long after', async () => {
    const store = new MemoryStore();
    for (let i = 0; i < 2500; i++) await store.put(`n${String(i).padStart(4, '0')}`, bytes(''));
    await withGuest(store, async (g) => {
      const fh = (await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
      const at = async (offset: bigint): Promise<{ name: string; next: bigint }> => {
        const { data } = await g.call(OP.READDIR, ROOT, concat(u64(fh, offset), u32(32, 0), u64(0), u32(0, 0)), 32);
        if (data.byteLength === 0) return { name: 'end', next: offset };
        return { name: Buffer.from(data.buffer, data.byteOffset + 24, data.getUint32(16, true)).toString(), next: data.getBigUint64(8, true) };
      };
      const names = ['.', '..', ...Array.from({ length: 2500 }, (_, i) => `n${String(i).padStart(4, '0')}`), 'end'];
      const told = [0n];
      for (const expected of names) {
        const { name: found, next } = await at(told.at(-1)!);
        assert.equal(found, expected);
        told.push(next);
      }
      for (const number of [2, 1000, 2400, 3, 999, 1002, 2501, 0, 2502, 1500]) assert.equal((await at(told[number])).name, names[number], String(number));
      assert.equal((await at(1_000_000n)).name, 'end');
    });
  });
});

describe('reading', () => {
  test('a file is read as it is, in order and not, with little memory', async () => {
    const store = new MemoryStore();
    const big = pattern(5_000_000);
    await store.put('big', big);
    await withGuest(store, async (g) => {
      const { node, size } = await g.lookup(ROOT, 'big');
      assert.ok((await content(g, node, size)).equals(big));
      const fh = await g.open(node, 0);
      for (const [offset, length] of [[4_999_000, 5000], [0, 1], [1_234_567, 65_536], [5_000_000, 10], [1e12, 10]]) {
        const { data, error } = await g.read(node, fh, offset, length);
        assert.equal(error, 0);
        assert.ok(Buffer.from(data.buffer, data.byteOffset, data.byteLength).equals(big.subarray(offset, offset + length)), `${length} at ${offset}`);
      }
    }, {}, 2 << 20);
  });

  test('an open file goes on being what it was opened as: when it is replaced reading it is ESTALE, never a mixture', async () => {
    const store = await storeOf({ f: 'first version' });
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, 0);
      await store.put('f', bytes('second'));
      assert.equal((await g.read(node, fh, 0, 100)).error, -E.STALE);
      assert.equal((await g.call(OP.OPEN, node, u32(0, 0), 16)).error, -E.STALE, 'so that the guest asks for the new size');
      const next = await g.lookup(ROOT, 'f');
      assert.equal(next.size, 6);
      assert.notEqual(next.node, node);
      const again = await g.open(next.node, 0);
      const { data } = await g.read(next.node, again, 0, 100);
      assert.equal(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString(), 'second', 'what was closed before is read after open');
    });
  });

  test('who opens a file reads what is there then, whatever a listing has told of it before', async () => {
    const store = await storeOf(Object.fromEntries(Array.from({ length: 10 }, (_, i) => [`d/n${i}`, 'before'])));
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'd');
      assert.equal((await list(g, node)).length, 12);
      for (let i = 0; i < 8; i++) await g.lookup(node, `n${i}`);
      await store.put('d/n1', bytes('after it'));
      const file = await g.lookup(node, 'n1');
      assert.equal(file.size, 6, 'names and attributes are believed for a while');
      assert.equal((await g.call(OP.OPEN, file.node, u32(0, 0), 16)).error, -E.STALE, 'so that the guest asks for the new size');
      assert.equal((await g.lookup(node, 'n1')).size, 8);
      assert.equal((await content(g, file.node, 8)).toString(), 'after it');
      await store.remove('d/n2');
      assert.equal((await g.call(OP.OPEN, (await g.lookup(node, 'n2')).node, u32(0, 0), 16)).error, -E.NOENT);
      assert.equal((await g.call(OP.LOOKUP, node, name('n2'), 128)).error, -E.NOENT);
    }, { metadataTtl_ms: 60_000 });
  });

  test('a lookup that a listing has answered serves no OPEN, as one before it would', async () => {
    const store = await storeOf({ 'd/f': 'before' });
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'd');
      const { node: file } = await g.lookup(node, 'f');
      assert.equal((await list(g, node)).length, 3);
      await store.put('d/f', bytes('after it'));
      assert.equal((await g.lookup(node, 'f')).size, 6, 'names and attributes are believed for a while');
      assert.equal((await g.call(OP.OPEN, file, u32(0, 0), 16)).error, -E.STALE, 'so that the guest asks for the new size');
      assert.equal((await content(g, file, 8)).toString(), 'after it');
    }, { metadataTtl_ms: 60_000 });
  });

  test('changes of others are seen when the time to live is over, and not before', async () => {
    const store = await storeOf({ f: '1' });
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      await store.put('f', bytes('22'));
      const { data } = await g.call(OP.GETATTR, node, new Uint8Array(16));
      assert.equal(data.getBigUint64(24, true), 1n);
    }, { metadataTtl_ms: 60_000 });
    await withGuest(store, async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      await store.put('f', bytes('333'));
      const { data } = await g.call(OP.GETATTR, node, new Uint8Array(16));
      assert.equal(data.getBigUint64(24, true), 3n);
      await store.remove('f');
      assert.equal((await g.call(OP.GETATTR, node, new Uint8Array(16))).error, -E.NOENT);
    });
  });
});

test('a store that fails is the errno that it means, a line in the log, and the next request works', async () => {
  const inner = await storeOf({ f: 'content' });
  const faults = new FaultyStore(inner);
  await withGuest(faults.store, async (g) => {
    for (const [code, errno] of [['denied', E.ACCES], ['expired', E.ACCES], ['no-bucket', E.IO], ['unreachable', E.IO], ['throttled', E.IO]] as const) {
      faults.inject({ operation: 'head', nth: 1, fault: { kind: 'before', code } });
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('f'), 128)).error, -errno);
      assert.ok(g.log.some((line) => line.includes(code)));
      assert.equal((await g.lookup(ROOT, 'f')).size, 7);
    }
  });
});

test('nothing can be changed when the share is read-only', async () => {
  const store = await storeOf({ f: 'x' });
  await withGuest(store, async (g) => {
    const { node } = await g.lookup(ROOT, 'f');
    assert.equal((await g.call(OP.OPEN, node, u32(1, 0), 16)).error, -E.ROFS);
    assert.equal((await g.call(OP.UNLINK, ROOT, name('f'))).error, -E.ROFS);
    assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')))).error, -E.ROFS);
    assert.equal((await g.call(OP.SETATTR, node, new Uint8Array(88), 104)).error, -E.ROFS);
  }, { write: null });
});

test('what is forgotten is forgotten: nodes of a hundred thousand lookups do not stay', async () => {
  const store = await storeOf(Object.fromEntries(Array.from({ length: 100 }, (_, i) => [`f${i}`, ''])));
  await withGuest(store, async (g) => {
    const before = process.memoryUsage().heapUsed;
    for (let round = 0; round < 100; round++) {
      for (let i = 0; i < 100; i++) {
        const { node } = await g.lookup(ROOT, `f${i}`);
        await g.call(OP.FORGET, node, u64(1), 0);
        if (i === 50) assert.equal((await g.call(OP.GETATTR, node, new Uint8Array(16), 104)).error, -E.STALE);
      }
    }
    assert.ok(process.memoryUsage().heapUsed - before < 100 << 20);
  });
});
