/** Names that are looked up in the order of a listing: what follows is asked for before the guest gets to it, and what it is told is as if it had not been. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';

const ROOT = 1n;
const FILES = 300;
const HOUR_MS = 3_600_000;
const nameOf = (i: number): string => `f${String(i).padStart(3, '0')}`;

class Walked {
  readonly memory = new MemoryStore({ etags: true, capabilities: { listingHasMetadata: false, rename: false, metadataInPlace: false } });
  heads: string[] = [];
  /** At the same time, at most. */
  most = 0;
  #underWay = 0;

  readonly store = intercept(this.memory, async (call, attempt) => {
    if (call.operation !== 'head') return attempt(call.signal);
    this.heads.push(call.subject);
    this.most = Math.max(this.most, ++this.#underWay);
    await turn();
    return attempt(call.signal).finally(() => this.#underWay--);
  });

  async run(body: (g: ObjectGuest) => Promise<void>): Promise<void> {
    for (let i = 0; i < FILES; i++) await this.memory.put(nameOf(i), Buffer.from('content'));
    const g = await ObjectGuest.start(this.store, { metadataTtl_ms: HOUR_MS, posix: 'full', write: {} });
    try {
      // A READDIR, as find(1) does it: the listing is known, and nothing else
      const opened = await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
      await g.call(OP.READDIR, ROOT, concat(u64(opened.data.getBigUint64(0, true), 0), u32(4096, 0), u64(0), u32(0, 0)), 4096);
      this.heads = [];
      await body(g);
    } finally {
      await g.close();
    }
  }
}

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
