/**
 * Trees of keys that need escaped names are removed and moved as programs do it, by the names that listings told: rm -r, find -delete and mv end in one run, with
 * nothing left. A name that a listing told stays good whatever is removed around it, in the listing's order or any other; the seed is printed.
 *
 * Names that hang on a neighbour: an object beside a directory of its name; a marker that has content; both at once; either of them in the last place of its
 * directory, or not in the bucket yet; and the same with names that are long, empty, or dots.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { objectOf } from '../support/writing-guest.js';
import { Random } from '../model/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 150);
const ROOT = 1n;
const DIRECTORY = 0o40000;
const LONG = 'L'.repeat(260);
const COMPONENTS = ['a', 'a', 'a', 'b', 'a-1', 'a.b', 'a0', '', '.', '..', '%~f', 'a%~f', 'é', `${LONG}1`, `${LONG}2`];

interface Entry {
  readonly name: Buffer;
  readonly isDirectory: boolean;
}

/** Removes and moves, by names; an error ends it. */
class Remover {
  readonly steps: string[] = [];

  constructor(readonly g: ObjectGuest, readonly random: Random, readonly looksUp: boolean) {}

  async ask(what: string, opcode: number, node: bigint, args: Uint8Array, ...names: Buffer[]): Promise<DataView> {
    this.steps.push(`${what} ${names.map(String).join(' ')}`);
    const { error, data } = await this.g.call(opcode, node, concat(args, ...names.map((name) => concat(name, new Uint8Array(1)))), opcode === OP.LOOKUP ? 128 : 0);
    assert.equal(error, 0, `${what} ${names.map(String).join(' ')}: ${error}`);
    return data;
  }

  async lookup(parent: bigint, name: Buffer): Promise<{ node: bigint; isDirectory: boolean }> {
    const data = await this.ask('lookup', OP.LOOKUP, parent, new Uint8Array(0), name);
    return { node: data.getBigUint64(0, true), isDirectory: (data.getUint32(100, true) & 0o170000) === DIRECTORY };
  }

  /** Entries one reply after the other, as getdents64(2) gives them. */
  async *replies(node: bigint, size: number): AsyncGenerator<Entry[]> {
    const opened = await this.g.call(OP.OPENDIR, node, u32(0, 0), 16);
    assert.equal(opened.error, 0);
    const fh = opened.data.getBigUint64(0, true);
    for (let offset = 0n; ; ) {
      const { data, error } = await this.g.call(OP.READDIR, node, concat(u64(fh, offset), u32(size, 0), u64(0), u32(0, 0)), size);
      assert.equal(error, 0);
      if (data.byteLength === 0) break;
      const entries: Entry[] = [];
      for (let at = 0; at + 24 <= data.byteLength; ) {
        const length = data.getUint32(at + 16, true);
        const name = Buffer.from(new Uint8Array(data.buffer, data.byteOffset + at + 24, length));
        if (!['.', '..'].includes(name.toString())) entries.push({ name, isDirectory: data.getUint32(at + 20, true) === 4 });
        offset = data.getBigUint64(at + 8, true);
        at += (24 + length + 7) & ~7;
      }
      yield entries;
    }
    assert.equal((await this.g.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }

  async entries(node: bigint): Promise<Entry[]> {
    const all: Entry[] = [];
    for await (const some of this.replies(node, 4096)) all.push(...some);
    return all;
  }

  /** `one` for each entry: as the listing comes, or when it has been read, in any order. */
  async each(node: bigint, one: (entry: Entry) => Promise<void>): Promise<void> {
    const { random } = this;
    if (random.chance(40)) {
      for await (const some of this.replies(node, 512)) for (const entry of some) await one(entry);
      return;
    }
    const all = await this.entries(node);
    // As find(1) and ls(1), which look at everything first
    if (this.looksUp) for (const { name, isDirectory } of all) assert.equal((await this.lookup(node, name)).isDirectory, isDirectory);
    const order = random.pick(['listing', 'reverse', 'random', 'directories first', 'files first'] as const);
    this.steps.push(`${order}: ${all.map(({ name, isDirectory }) => `${name}${isDirectory ? '/' : ''}`).join(' ')}`);
    if (order === 'reverse') all.reverse();
    if (order === 'random') all.sort(() => random.below(3) - 1);
    if (order === 'directories first') all.sort((a, b) => Number(b.isDirectory) - Number(a.isDirectory));
    if (order === 'files first') all.sort((a, b) => Number(a.isDirectory) - Number(b.isDirectory));
    for (const entry of all) await one(entry);
  }

  /** rm -r */
  async remove(parent: bigint, { name, isDirectory }: Entry): Promise<void> {
    if (!isDirectory) {
      await this.ask('unlink', OP.UNLINK, parent, new Uint8Array(0), name);
      return;
    }
    const { node } = await this.lookup(parent, name);
    await this.each(node, (entry) => this.remove(node, entry));
    await this.ask('rmdir', OP.RMDIR, parent, new Uint8Array(0), name);
  }

  /** mv of what is in a directory into another one, under names of its own. */
  async moveAll(node: bigint, to: bigint): Promise<number> {
    let moved = 0;
    await this.each(node, async ({ name }) => {
      await this.ask('mv', OP.RENAME2, node, concat(u64(to), u32(0, 0)), name, Buffer.from(`moved${moved++}`));
    });
    return moved;
  }
}

function keysOf(random: Random): Map<string, string> {
  const keys = new Map([['t/', '']]);
  for (let count = 1 + random.below(10); count > 0; count--) {
    let key = 't/';
    for (let depth = 1 + random.below(3); depth > 0; depth--) key += random.pick(COMPONENTS) + (depth > 1 ? '/' : '');
    if (random.chance(30)) key += '/';
    // Beside what is there already, often
    const [other] = [...keys.keys()];
    if (other !== undefined && random.chance(50)) key = other.replace(/\/+$/, '') + random.pick(['', '/', '/a', '//', '/a/']);
    if (key.startsWith('t/')) keys.set(key, key.endsWith('/') && random.chance(50) ? '' : `content of ${key}`);
  }
  return keys;
}

test(`a tree of any keys is removed or moved in one run, with nothing left (SEED=${SEED}, ${SEQUENCES} trees)`, { timeout: 600_000 }, async () => {
  for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
    const random = new Random(seed);
    const keys = keysOf(random);
    const store = new MemoryStore({ etags: random.chance(50), capabilities: { listingHasMetadata: random.chance(50), rename: random.chance(50), metadataInPlace: random.chance(50) } });
    for (const [key, content] of keys) await store.put(key, Buffer.from(content));
    const options: GuestOptions = {
      idleNodes: random.pick([0, 1000]), metadataTtl_ms: random.pick([0, 3_600_000]), posix: random.pick(['full', 'lazy', 'off'] as const), write: { durability: random.pick(['remote', 'writeback'] as const), writebackDelay_ms: 0 },
    };
    const g = await ObjectGuest.start(store, options);
    const remover = new Remover(g, random, random.chance(50));
    try {
      const tree = await remover.lookup(ROOT, Buffer.from('t'));
      if (random.chance(30)) {
        assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), Buffer.from('m\0')), 128)).error, 0);
        const to = await remover.lookup(ROOT, Buffer.from('m'));
        const moved = await remover.moveAll(tree.node, to.node);
        assert.equal((await remover.entries(tree.node)).length, 0, 'nothing is left behind');
        assert.equal((await remover.entries(to.node)).length, moved);
        assert.equal((await store.list({ prefix: 'm/' })).objects.length >= moved, true);
        await remover.remove(ROOT, { name: Buffer.from('m'), isDirectory: true });
      }
      await remover.remove(ROOT, { name: Buffer.from('t'), isDirectory: true });
      assert.equal((await g.call(OP.LOOKUP, ROOT, Buffer.from('t\0'), 128)).error, -E.NOENT);
      await g.opened.idle();
      assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), []);
    } catch (error) {
      throw new Error(`SEED=${seed} ${JSON.stringify(options)}\n${JSON.stringify([...keys])}\n${remover.steps.join('\n')}\n${(error as Error).message}`, { cause: error });
    } finally {
      await g.close();
    }
  }
});

describe('a name that hangs on a neighbour', () => {
  const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

  async function withTree(keys: Readonly<Record<string, string>>, body: (r: Remover, tree: bigint, store: MemoryStore) => Promise<void>, options: GuestOptions = {}): Promise<void> {
    const store = new MemoryStore();
    for (const [key, content] of Object.entries(keys)) await store.put(key, bytes(content));
    const g = await ObjectGuest.start(store, options);
    try {
      const remover = new Remover(g, new Random(1), false);
      await body(remover, (await remover.lookup(ROOT, Buffer.from('t'))).node, store);
    } finally {
      await g.close();
    }
  }

  const namesOf = async (r: Remover, node: bigint): Promise<string[]> => (await r.entries(node)).map(({ name, isDirectory }) => `${name}${isDirectory ? '/' : ''}`).sort();

  for (const durability of ['remote', 'writeback'] as const) {
    const write = { durability, writebackDelay_ms: 3_600_000 };
    test(`a directory has its name while the object beside it is being written (${durability})`, () => withTree({ 't/a': 'object', 't/a/b': 'below' }, async (r, tree, store) => {
      const { node } = await r.lookup(tree, Buffer.from('a%~f'));
      let reply = await r.g.call(OP.OPEN, node, u32(2, 0), 16);
      if (reply.error === -E.STALE) reply = await r.g.call(OP.OPEN, node, u32(2, 0), 16);
      const fh = reply.data.getBigUint64(0, true);
      assert.equal((await r.g.write(node, fh, 0, bytes('OBJECT'))).error, 0);
      assert.equal((await r.lookup(tree, Buffer.from('a'))).isDirectory, true);
      assert.equal((await r.lookup(tree, Buffer.from('a%~f'))).node, node);
      assert.deepEqual(await namesOf(r, tree), ['a%~f', 'a/']);
      // Without the directory it has both names
      await r.remove(tree, { name: Buffer.from('a'), isDirectory: true });
      assert.equal((await r.lookup(tree, Buffer.from('a'))).node, node);
      assert.deepEqual(await namesOf(r, tree), ['a']);
      await r.remove(tree, { name: Buffer.from('a%~f'), isDirectory: false });
      assert.deepEqual((await store.list({ prefix: 't/a' })).objects, []);
    }, { write }));

    test(`an object that is made beside a directory is listed once, by the name that it was made with (${durability})`, () => withTree({ 't/a/b': 'below' }, async (r, tree) => {
      await r.lookup(tree, Buffer.from('a'));
      const { entry } = await r.g.create(tree, 'a%~f');
      assert.deepEqual(await namesOf(r, tree), ['a%~f', 'a/']);
      assert.equal((await r.lookup(tree, Buffer.from('a'))).isDirectory, true);
      assert.equal((await r.lookup(tree, Buffer.from('a%~f'))).node, entry.node);
    }, { write }));

    test(`an object is listed beside a directory that is only there because of what was made in it (${durability})`, () => withTree({ 't/a': 'object', 't/a/b': 'below' }, async (r, tree, store) => {
      const a = await r.lookup(tree, Buffer.from('a'));
      await r.g.create(a.node, 'new');
      await store.remove('t/a/b');
      assert.deepEqual(await namesOf(r, tree), ['a%~f', 'a/']);
    }, { write }));
  }

  test('a directory whose marker has content is not empty: rmdir and a rename over it are ENOTEMPTY, chmod and xattrs leave the content', () =>
    withTree({ 't/d/': 'content', 't/e/': '' }, async (r, tree, store) => {
      const d = await r.lookup(tree, Buffer.from('d'));
      assert.equal((await r.g.call(OP.RMDIR, tree, Buffer.from('d\0'), 0)).error, -E.NOTEMPTY);
      assert.equal((await r.g.call(OP.RENAME2, tree, concat(u64(tree), u32(0, 0), Buffer.from('e\0d\0')), 0)).error, -E.NOTEMPTY);
      assert.equal((await r.g.call(OP.SETATTR, d.node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o700, 0, 0, 0, 0)), 104)).error, 0);
      assert.equal((await r.g.call(OP.SETXATTR, d.node, concat(u32(1, 0, 0, 0), Buffer.from('user.x\0y')), 0)).error, 0);
      assert.deepEqual(await namesOf(r, d.node), ['%~e']);
      assert.equal((await objectOf(store, 't/d/')).toString(), 'content');
      // Its attributes stay when the content goes
      await r.remove(d.node, { name: Buffer.from('%~e'), isDirectory: false });
      assert.equal((await r.g.lookup(tree, 'd')).mode & 0o777, 0o700);
      assert.equal((await store.head('t/d/')).size, 0);
    }));
});
