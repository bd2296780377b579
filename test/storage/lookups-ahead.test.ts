/**
 * Names that are looked up in the order of a listing, or of inode numbers: what follows is asked for before the guest gets to it, and what it is told is as if it had not been.
 *
 * The same reason, tried below: a listing that gets too old meanwhile, the last name of each of its pages, names that are left out, no order at all, what this guest and
 * others change, an OPEN, a store whose listings tell all, a memory budget with and without room, a guest that goes.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { ListedDirectories } from '../../src/storage/object/listed.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import type { ListOptions, ListPage } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name as nameArgument, OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';

const ROOT = 1n;
const FILES = 300;
const HOUR_MS = 3_600_000;
const [S_IFMT, S_IFDIR, S_IFREG] = [0o170000, 0o40000, 0o100000];
const ENOENT = -2;
const ESTALE = -116;

const now = performance.now.bind(performance);
let later_ms = 0;
performance.now = () => now() + later_ms;
/** What was asked before is believed no longer. */
const later = (hours = 1): void => void (later_ms += hours * HOUR_MS);

const nameOf = (i: number): string => `f${String(i).padStart(4, '0')}`;

/** What a READDIR tells of a file. */
interface Told {
  readonly ino: bigint;
  readonly name: string;
}

class Walked {
  readonly memory: MemoryStore;
  heads: string[] = [];
  /** Pages, and questions whether there is a directory. */
  pages = 0;
  others = 0;
  mostPages = 0;
  #pagesUnderWay = 0;
  /** Pages that were asked for while a HEAD was on its way. */
  pagesBeside = 0;
  told: Told[] = [];
  /** Pages wait for it. */
  held: Promise<void> | null = null;
  /** At the same time, at most. */
  most = 0;
  #underWay = 0;

  readonly store;

  constructor(readonly files = FILES, listingHasMetadata = false) {
    this.memory = new MemoryStore({ etags: true, capabilities: { listingHasMetadata, rename: false, metadataInPlace: false } });
    this.store = intercept(this.memory, async (call, attempt) => {
      if (call.operation === 'list' && call.subject.endsWith('memory:/')) return this.#page(() => attempt(call.signal));
      if (call.operation === 'list') this.others++;
      if (call.operation !== 'head') return attempt(call.signal);
      this.heads.push(call.subject);
      this.most = Math.max(this.most, ++this.#underWay);
      await turn();
      return attempt(call.signal).finally(() => this.#underWay--);
    });
  }

  async #page<T>(attempt: () => Promise<T>): Promise<T> {
    this.pages++;
    if (this.#underWay > 0) this.pagesBeside++;
    this.mostPages = Math.max(this.mostPages, ++this.#pagesUnderWay);
    await turn();
    await this.held;
    return attempt().finally(() => this.#pagesUnderWay--);
  }

  async run(body: (g: ObjectGuest) => Promise<void>): Promise<void> {
    for (let i = 0; i < this.files; i++) await this.memory.put(nameOf(i), Buffer.from('content'));
    const g = await ObjectGuest.start(this.store, { metadataTtl_ms: HOUR_MS, posix: 'full', write: {} });
    try {
      // As find(1) does it: the listing is known, and nothing else
      this.told = await readdir(g);
      assert.ok(this.told.length >= this.files);
      this.heads = [];
      this.pages = this.others = this.mostPages = this.pagesBeside = 0;
      await body(g);
    } finally {
      await g.close();
    }
  }
}

async function readdir(g: ObjectGuest): Promise<Told[]> {
  const told: Told[] = [];
  const opened = await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
  const fh = opened.data.getBigUint64(0, true);
  for (let offset = 0n; ; ) {
    const { data } = await g.call(OP.READDIR, ROOT, concat(u64(fh, offset), u32(65536, 0), u64(0), u32(0, 0)), 65536);
    if (data.byteLength === 0) break;
    for (let at = 0; at + 24 <= data.byteLength; at += (24 + data.getUint32(at + 16, true) + 7) & ~7) {
      const name = Buffer.from(data.buffer, data.byteOffset + at + 24, data.getUint32(at + 16, true)).toString();
      if (!name.startsWith('.')) told.push({ ino: data.getBigUint64(at, true), name });
      offset = data.getBigUint64(at + 8, true);
    }
  }
  await g.call(OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0);
  return told;
}

const byInode = (told: readonly Told[]): Told[] => [...told].sort((a, b) => (a.ino < b.ino ? -1 : 1));

test('names that are looked up in order cost one HEAD each, and most of them wait for none', async () => {
  const walked = new Walked();
  await walked.run(async (g) => {
    for (let i = 0; i < FILES; i++) assert.equal((await g.lookup(ROOT, nameOf(i))).size, 7);
  });
  assert.equal(walked.heads.length, FILES);
  assert.equal(new Set(walked.heads).size, FILES);
  assert.ok(walked.most >= 32, `${walked.most} at the same time`);
});

test('names that are looked up here and there cost nothing else', async () => {
  const walked = new Walked();
  await walked.run(async (g) => {
    for (let i = 0; i < 40; i++) await g.lookup(ROOT, nameOf((i * 97) % FILES));
  });
  assert.equal(walked.heads.length, 40);
});

test('what this guest has changed since it was asked for is what it is told', async () => {
  const walked = new Walked();
  await walked.run(async (g) => {
    for (let i = 0; i < 20; i++) await g.lookup(ROOT, nameOf(i));
    // It was asked for by now
    assert.ok(walked.heads.some((subject) => subject.endsWith(nameOf(22))));
    const { node } = await g.lookup(ROOT, nameOf(22));
    assert.equal((await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o604, 0, 0, 0, 0)), 104)).error, 0);
    assert.equal((await g.lookup(ROOT, nameOf(22))).mode & 0o777, 0o604);
    assert.equal((await g.lookup(ROOT, nameOf(23))).size, 7);
  });
});

for (const files of [300, 6000]) {
  test(`${files} names that are looked up by their inode numbers, as find(1) does it, cost one HEAD each, and most of them wait for none`, async () => {
    const walked = new Walked(files);
    await walked.run(async (g) => {
      for (const { name } of byInode(walked.told)) assert.equal((await g.lookup(ROOT, name)).size, 7);
    });
    assert.equal(walked.heads.length, files);
    assert.equal(new Set(walked.heads).size, files);
    assert.ok(walked.most >= 32, `${walked.most} at the same time`);
    assert.deepEqual([walked.pages, walked.others], [0, 0], 'the listing still answers');
  });
}

test('a listing that gets too old while its names are looked up is asked for again page by page, once each', async () => {
  const walked = new Walked(6000);
  await walked.run(async (g) => {
    for (const [i, { name }] of byInode(walked.told).entries()) {
      if (i === 3000) later();
      assert.equal((await g.lookup(ROOT, name)).size, 7);
    }
  });
  assert.deepEqual([walked.pages, walked.others], [6, 0]);
  assert.ok(walked.mostPages >= 5, `${walked.mostPages} pages at the same time`);
  assert.ok(walked.heads.length <= 6000 + 128, `${walked.heads.length} HEADs: those that were on their way are asked anew`);
});

test('a second walk by inode numbers is answered by the new listing, also where that gets too old meanwhile', async () => {
  const walked = new Walked(3000);
  await walked.run(async (g) => {
    const info = walked.memory.head.bind(walked.memory);
    walked.memory.head = async (...args) => ({ ...await info(...args), isSettled: true });
    for (const { name } of byInode(walked.told)) await g.lookup(ROOT, name);
    later();
    const second = byInode(await readdir(g));
    walked.heads = [];
    walked.pages = walked.others = 0;
    for (const [i, { name }] of second.entries()) {
      if (i === 1500) later();
      assert.equal((await g.lookup(ROOT, name)).size, 7);
    }
    // Three of them before it is seen that a page is worth it
    assert.ok(walked.heads.length <= 3 && walked.others <= 3 && walked.pages === 3, `${walked.heads.length} HEADs, ${walked.pages} pages`);
  });
});

test('names in no order, and every twentieth by inode numbers, cost hardly more than themselves', async () => {
  const shuffled = new Walked(6000);
  await shuffled.run(async (g) => {
    for (let i = 0; i < 300; i++) await g.lookup(ROOT, nameOf((i * 2531) % 6000));
  });
  assert.equal(shuffled.heads.length, 300);
  const some = new Walked(6000);
  await some.run(async (g) => {
    for (const { name } of byInode(some.told).filter((_, i) => i % 20 === 0)) await g.lookup(ROOT, name);
  });
  assert.equal(some.heads.length, 300);
});

test('a name on a page that is too old is asked for together with the page', async () => {
  const walked = new Walked(3000);
  await walked.run(async (g) => {
    later();
    for (let i = 0; i < 100; i++) await g.lookup(ROOT, nameOf((i * 1031) % 3000));
  });
  assert.equal(walked.heads.length, 100);
  assert.ok(walked.pages === 3 && walked.others === 3, `${walked.pages} pages, and ${walked.others} questions before it was seen that they are worth it`);
  assert.equal(walked.pagesBeside, 3);
});

test('what this guest has changed, or what is no longer believed, when the page comes long after the object, is asked for again', async () => {
  for (const way of ['changed here', 'changed by others, and no longer believed'] as const) {
    const walked = new Walked(3000);
    await walked.run(async (g) => {
      const name = nameOf(2500);
      const { node } = await g.lookup(ROOT, name);
      const fh = await g.open(node);
      later();
      for (let i = 0; i < 5; i++) await g.lookup(ROOT, nameOf((i * 1031) % 900));
      let come = (): void => undefined;
      walked.held = new Promise((resolve) => (come = resolve));
      const ask = (opcode: number, at: bigint, args: Uint8Array): number => {
        const [answer] = g.queue.chain([g.request(opcode, at, args).bytes], [200], true).writable;
        g.queue.kick();
        return answer;
      };
      const before = walked.heads.length;
      const answer = ask(OP.LOOKUP, ROOT, nameArgument(name));
      while (walked.heads.length === before) await turn();
      for (let i = 0; i < 20; i++) await turn();
      if (way === 'changed here') {
        ask(OP.WRITE, node, concat(u64(fh, 7), u32(2, 0), u64(0), u32(0, 0), new TextEncoder().encode('xx')));
        ask(OP.FSYNC, node, concat(u64(fh), u32(0, 0)));
        await g.queue.wait(2);
      } else {
        await walked.memory.put(name, Buffer.from('of others'));
        later(2);
      }
      come();
      await g.queue.wait(1);
      assert.deepEqual([g.memory.dv.getInt32(answer + 4, true), g.memory.dv.getBigUint64(answer + 64, true)], [0, 9n], way);
    });
  }
});

test('the name of a directory that is on the next page is not that of the file that is on this one', async () => {
  const walked = new Walked(1500);
  await walked.memory.put(`${nameOf(999)}/x`, Buffer.from(''));
  await walked.run(async (g) => {
    const file = await g.lookup(ROOT, `${nameOf(999)}%~f`);
    const directory = await g.lookup(ROOT, nameOf(999));
    assert.deepEqual([file.mode & S_IFMT, directory.mode & S_IFMT], [S_IFREG, S_IFDIR]);
    assert.deepEqual([walked.pages, walked.others], [0, 0]);
  });
});

test('a store whose listings tell all is asked for nothing', async () => {
  const walked = new Walked(1000, true);
  await walked.run(async (g) => {
    for (const { name } of byInode(walked.told)) assert.equal((await g.lookup(ROOT, name)).size, 7);
  });
  assert.deepEqual([walked.heads, walked.pages, walked.others], [[], 0, 0]);
});

test('by inode numbers, too, what was changed since it was asked for is told as it is: by this guest at once, by others after the time that it is believed, and to who opens it at once', async () => {
  const walked = new Walked(1000);
  await walked.run(async (g) => {
    const order = byInode(walked.told);
    for (const { name } of order.slice(0, 100)) await g.lookup(ROOT, name);
    const ahead = order.slice(100, 140).map(({ name }) => name);
    for (const name of ahead) assert.ok(walked.heads.some((subject) => subject.endsWith(name)), 'it was asked for ahead');
    const [removed, opened, replaced] = ahead.slice(30);
    assert.equal((await g.call(OP.UNLINK, ROOT, nameArgument(removed), 0)).error, 0);
    assert.equal((await g.call(OP.LOOKUP, ROOT, nameArgument(removed), 128)).error, ENOENT);
    await walked.memory.put(opened, Buffer.from('longer content'));
    await walked.memory.put(replaced, Buffer.from('other'));
    const { node, size } = await g.lookup(ROOT, opened);
    assert.equal(size, 7, 'it was asked for before');
    assert.equal((await g.call(OP.OPEN, node, u32(0, 0), 16)).error, ESTALE, 'who opens it asks; Linux looks the name up again');
    assert.equal((await g.lookup(ROOT, opened)).size, 14);
    later();
    assert.equal((await g.lookup(ROOT, replaced)).size, 5);
  });
});

test('what was asked for ahead is believed from when it was asked, and not where a listing shows another version', async () => {
  const walked = new Walked(1000);
  await walked.run(async (g) => {
    const order = byInode(walked.told);
    for (const { name } of order.slice(0, 100)) await g.lookup(ROOT, name);
    const [first, second] = order.slice(130).map(({ name }) => name);
    for (const name of [first, second]) assert.ok(walked.heads.some((subject) => subject.endsWith(name)), 'it was asked for ahead');
    for (const name of [first, second]) await walked.memory.put(name, Buffer.from('other'));
    later(0.6);
    const { node, size } = await g.lookup(ROOT, first);
    assert.equal(size, 7);
    await readdir(g);
    assert.equal((await g.lookup(ROOT, second)).size, 5, 'the listing is younger');
    later(0.6);
    assert.equal((await g.call(OP.GETATTR, node, u32(0, 0, 0, 0), 104)).data.getBigUint64(24, true), 5n);
  });
});

/** A directory of that many names, in pages. */
const bigStore = (count: number): MemoryStore => {
  const store = new MemoryStore();
  store.list = async ({ after = '', limit = 1000 }: ListOptions): Promise<ListPage> => {
    const first = after === '' ? 0 : Number(after.slice(1)) + 1;
    const objects = Array.from({ length: Math.min(limit, count - first) }, (_, i) => ({ key: `f${first + i}`, size: 1, version: 'v', modified_ms: 0, metadata: null, headers: null }));
    return { objects, prefixes: [], next: first + objects.length < count ? 'more' : null };
  };
  return store;
};

test('listings that are kept take no more of the memory budget than it has room for, and give it back to reads, and when the guest goes', async () => {
  const budget = new MemoryBudget(16 << 20);
  const clock = { changes: 0, isChangedSince: () => false, isChangedBelowSince: () => false };
  const listed = new ListedDirectories(bigStore(200_000), clock, HOUR_MS, budget);
  const listAll = async (): Promise<void> => {
    for (let after = ''; after !== 'f199999'; after = after === '' ? 'f999' : `f${Number(after.slice(1)) + 1000}`) await listed.list('', after, 0);
  };
  await listAll();
  assert.ok(budget.used > 7 << 20 && budget.used <= 8 << 20, `${budget.used} bytes`);
  assert.ok(listed.keyCount('') >= 16_384 + (7 << 20) / 256);
  const memory = await budget.take(budget.bytes);
  assert.equal(budget.used, budget.bytes);
  budget.give(memory);
  assert.ok(listed.keyCount('') <= 16_384);
  await listAll();
  listed.clear();
  assert.equal(budget.used, 0);
  budget.trim();
});

test('who walks by inode numbers holds memory of the budget while he does, and none when the guest has gone', async () => {
  const walked = new Walked(1000);
  await walked.run(async (g) => {
    for (const { name } of byInode(walked.told)) await g.lookup(ROOT, name);
    assert.ok(g.budget.used >= 1000 * 80);
    await g.depart();
    assert.equal(g.budget.used, 0);
  });
});

test('a read that waits for memory gets what inode numbers take that are just being sorted', async () => {
  const walked = new Walked(3000);
  await walked.run(async (g) => {
    const order = byInode(walked.told);
    let sorting = 0;
    for (let i = 0; g.budget.used === 0; sorting = ++i) await g.lookup(ROOT, order[i].name);
    const memory = await g.budget.take(g.budget.bytes);
    g.budget.give(memory);
    for (const { name } of order.slice(sorting)) assert.equal((await g.lookup(ROOT, name)).size, 7);
    await g.depart();
    assert.equal(g.budget.used, 0);
  });
});
