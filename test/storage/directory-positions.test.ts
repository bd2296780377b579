/**
 * Positions in a directory (telldir(3), seekdir(3)): from the position behind an entry on, all that is still there of what came after it follows, each once, and
 * nothing of what came before, whatever was removed and made meanwhile. On a directory of the host and on a bucket whose listings have pages of a few
 * entries; also after the directory was read again from its beginning, and with what is not in the bucket yet. The seed is printed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP, TestGuest, type FuseClient } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Random } from '../model/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 25);
const ROOT = 1n;

interface Told {
  readonly name: string;
  /** The position behind it. */
  readonly position: bigint;
}

class Directory {
  fh = 0n;
  reads = 0;

  constructor(readonly g: FuseClient, readonly random: Random) {}

  async open(): Promise<void> {
    const { error, data } = await this.g.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
    assert.equal(error, 0);
    this.fh = data.getBigUint64(0, true);
  }

  /** From a position to the end, or so many replies. */
  async read(from: bigint, replies = Infinity): Promise<Told[]> {
    const all: Told[] = [];
    const plus = this.random.chance(30);
    for (let offset = from, reply = 0; reply < replies; reply++) {
      const { error, data } = await this.g.call(plus ? OP.READDIRPLUS : OP.READDIR, ROOT, concat(u64(this.fh, offset), u32(plus ? 1024 : 200, 0), u64(0), u32(0, 0)), plus ? 1024 : 200);
      assert.equal(error, 0);
      if (data.byteLength === 0) break;
      for (let at = 0; at + 24 <= data.byteLength; ) {
        const entry = plus ? 128 : 0;
        const length = data.getUint32(at + entry + 16, true);
        const text = Buffer.from(data.buffer, data.byteOffset + at + entry + 24, length).toString();
        offset = data.getBigUint64(at + entry + 8, true);
        if (text !== '.' && text !== '..') all.push({ name: text, position: offset });
        at += (entry + 24 + length + 7) & ~7;
      }
    }
    return all;
  }

  async make(file: string): Promise<void> {
    const { fh, entry } = await this.g.create(ROOT, file);
    if (this.random.chance(70)) assert.equal((await this.g.call(OP.FLUSH, entry.node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }

  async remove(file: string): Promise<void> {
    assert.equal((await this.g.call(OP.UNLINK, ROOT, name(file), 0)).error, 0);
  }
}


async function run(g: FuseClient, random: Random): Promise<void> {
  const directory = new Directory(g, random);
  const there = new Set<string>();
  const fresh = (): string => `${random.pick(['a', 'b', 'c', 'm', 'z'])}${random.below(100_000)}`;
  const make = async (): Promise<void> => {
    const file = fresh();
    if (there.has(file)) return;
    await directory.make(file);
    there.add(file);
  };
  for (let count = 1 + random.below(40); count > 0; count--) await make();
  await directory.open();
  let told = await directory.read(0n);
  assert.deepEqual(told.map((one) => one.name).sort(), [...there].sort());
  for (let round = 0; round < 6; round++) {
    const before = new Set(there);
    for (let count = random.below(12); count > 0 && there.size > 0; count--) {
      const file = random.pick([...there]);
      await directory.remove(file);
      there.delete(file);
    }
    for (let count = random.below(4); count > 0; count--) await make();
    // Somebody reads through the same handle, from the beginning or elsewhere
    if (random.chance(40)) await directory.read(random.chance(50) || told.length === 0 ? 0n : random.pick(told).position, 1 + random.below(3));
    const at = random.below(told.length + 1);
    const rest = (await directory.read(at === 0 ? 0n : told[at - 1].position)).map((one) => one.name);
    const due = told.slice(at).map((one) => one.name).filter((file) => there.has(file));
    const done = new Set(told.slice(0, at).map((one) => one.name));
    assert.deepEqual(rest.filter((file) => due.includes(file)), due, 'what came after it follows, each once and in its order');
    assert.deepEqual(rest.filter((file) => done.has(file) && before.has(file)), [], 'nothing of what came before it');
    if (random.chance(50)) told = await directory.read(0n);
    if (told.length === 0) break;
  }
}

test(`positions in a directory stay those of entries (SEED=${SEED}, ${SEQUENCES} sequences)`, { timeout: 300_000 }, async (t) => {
  for (const kind of ['directory', 'bucket'] as const) {
    await t.test(kind, async () => {
      for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
        const random = new Random(seed);
        const pages = random.pick([3, 7, 1000]);
        const memory = new MemoryStore();
        const store = intercept(memory, (call, attempt) => attempt(call.signal));
        const list = store.list.bind(store);
        store.list = (options) => list({ ...options, limit: Math.min(pages, options.limit ?? pages) });
        const g = kind === 'directory' ? await TestGuest.start() : await ObjectGuest.start(store, { metadataTtl_ms: random.pick([0, 3_600_000]) });
        try {
          await run(g, random);
        } catch (error) {
          throw new Error(`SEED=${seed} ${(error as Error).message}`, { cause: error });
        } finally {
          await g.close();
        }
      }
    });
  }
});

test('a directory that is renamed while it is read has the rest of its entries, each once', async () => {
  for (const pages of [2, 3, 1000]) {
    for (const plus of [false, true]) {
      const memory = new MemoryStore();
      // Some are held back between pages: what they are called depends on keys that come later
      const names = ['a', 'a-1', 'a.b', 'b', 'c', 'c0', 'd', 'e', 'f', 'g', 'h', 'i'];
      for (const one of names) await memory.put(`from/${one}`, new Uint8Array(1));
      for (const one of ['a', 'c', 'z']) await memory.put(`from/${one}/below`, new Uint8Array(1));
      const store = intercept(memory, (call, attempt) => attempt(call.signal));
      const list = store.list.bind(store);
      store.list = (options) => list({ ...options, limit: Math.min(pages, options.limit ?? pages) });
      const g = await ObjectGuest.start(store);
      const { node } = await g.lookup(ROOT, 'from');
      const fh = (await g.call(OP.OPENDIR, node, u32(0, 0), 16)).data.getBigUint64(0, true);
      const found: string[] = [];
      let offset = 0n;
      for (let reply = 0; ; reply++) {
        if (reply === 2 || reply === 4) {
          const [from, to] = reply === 2 ? ['from', 'a-much-longer-name'] : ['a-much-longer-name', 'x'];
          assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to)), 0)).error, 0);
        }
        const room = plus ? 400 : 80;
        const { error, data } = await g.call(plus ? OP.READDIRPLUS : OP.READDIR, node, concat(u64(fh, offset), u32(room, 0), u64(0), u32(0, 0)), room);
        assert.equal(error, 0);
        if (data.byteLength === 0) break;
        for (let at = 0; at + 24 <= data.byteLength; ) {
          const entry = plus ? 128 : 0;
          const length = data.getUint32(at + entry + 16, true);
          found.push(Buffer.from(data.buffer, data.byteOffset + at + entry + 24, length).toString());
          offset = data.getBigUint64(at + entry + 8, true);
          at += (entry + 24 + length + 7) & ~7;
        }
      }
      assert.deepEqual(found.sort(), ['.', '..', 'a', 'a%~f', 'a-1', 'a.b', 'b', 'c', 'c%~f', 'c0', 'd', 'e', 'f', 'g', 'h', 'i', 'z']);
      for (const one of ['b', 'a%~f', 'z']) await g.lookup(node, one);
      await g.close();
    }
  }
});
