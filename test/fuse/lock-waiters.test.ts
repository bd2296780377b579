/**
 * What waiting requests cost is bounded by their number, not by their number times what a guest unlocks; and while they are tried others have their turn.
 *
 * What else multiplies: lock and unlock in turn beside what is waited for; an unlock that held nothing; a downgrade; a FLUSH and a RELEASE of many owners; the
 * timer's round over all files; ranges without bound, over which each request of their file walks.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { DetachedRequest } from '../../src/storage/filesystem.js';
import { LockWaiters, type Waiter } from '../../src/storage/local/lock-waiters.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest } from '../support/guest.js';

const ROOT = 1n;
const F_WRLCK = 1;
const F_UNLCK = 2;
const WAITERS = 1000;

/** Waits for bytes at `at`, and counts how often it is tried. */
class CountedWaiter implements Waiter {
  readonly slot = 7;
  readonly handle = 3;
  readonly request: DetachedRequest;
  tries = 0;
  result: number | null = null;

  constructor(
    readonly start: bigint,
    readonly isFlock = false,
    readonly outcome: () => number = () => -E.AGAIN,
  ) {
    this.request = { uniqueLow: Number(start), uniqueHigh: 0, complete: (result) => void (this.result = result) };
  }

  get end(): bigint {
    return this.start;
  }

  readonly attempt = (): number => {
    this.tries++;
    return this.outcome();
  };
}

async function withWaiters(all: readonly CountedWaiter[], body: (waiters: LockWaiters) => Promise<void>): Promise<void> {
  const waiters = new LockWaiters();
  for (const one of all) waiters.add(one);
  try {
    await body(waiters);
  } finally {
    waiters.cancel();
  }
}

test('10,000 unlocks in one turn try each waiter that they concern a few times, and nobody else', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const concerned = Array.from({ length: WAITERS }, () => new CountedWaiter(5n));
  const others = [new CountedWaiter(100n), new CountedWaiter(5n, true)];
  await withWaiters([...concerned, ...others], async (waiters) => {
    for (let i = 0; i < 10_000; i++) waiters.unlocked(7, 5n, 5n);
    while (concerned.some(({ tries }) => tries === 0)) await turn();
    assert.deepEqual([...new Set(concerned.map(({ tries }) => tries))], [1]);
    assert.deepEqual(others.map(({ tries }) => tries), [0, 0]);
    waiters.unflocked(7);
    for (let i = 0; i < 3; i++) await turn();
    assert.deepEqual(others.map(({ tries }) => tries), [0, 1]);
    waiters.unlocked(8, 5n, 5n);
    for (let i = 0; i < 3; i++) await turn();
    assert.equal(concerned[0].tries, 1, 'another file');
  });
});

test('beyond 4,096 waiters nobody else waits, until one has ended', () => {
  const waiters = new LockWaiters();
  for (let i = 0; i < 4096; i++) {
    assert.equal(waiters.isFull, false);
    waiters.add(new CountedWaiter(BigInt(i)));
  }
  const late = new CountedWaiter(9999n);
  assert.equal(waiters.isFull, true);
  assert.ok(waiters.interrupt(17, 0));
  assert.equal(waiters.isFull, false);
  waiters.add(late);
  waiters.cancel();
  assert.equal(waiters.count, 0);
  assert.equal(late.result, -E.INTR);
});

test('while a thousand waiters are tried others have their turn, and no waiter is forgotten', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const slow = (): number => {
    for (const until = performance.now() + 1; performance.now() < until; );
    return -E.AGAIN;
  };
  const all = Array.from({ length: 200 }, () => new CountedWaiter(5n, false, slow));
  await withWaiters(all, async (waiters) => {
    waiters.unlocked(7, 0n, 9n);
    let most = 0;
    for (let done = 0; done < all.length; ) {
      await turn();
      const now = all.filter(({ tries }) => tries > 0).length;
      most = Math.max(most, now - done);
      done = now;
    }
    assert.ok(most <= 8, `${most} attempts of a millisecond in one turn`);
  });
});

test('a waiter that ends while it is about to be tried is not tried, and all of them end once', async (t) => {
  t.mock.timers.enable({ apis: ['setTimeout'] });
  const all = Array.from({ length: 6 }, (_, i) => new CountedWaiter(BigInt(i), false, () => 0));
  await withWaiters(all, async (waiters) => {
    waiters.unlocked(7, 0n, 4n);
    assert.equal(waiters.interrupt(2, 0), true);
    assert.equal(waiters.interrupt(2, 0), false);
    for (let i = 0; i < 3; i++) await turn();
    assert.deepEqual(all.map(({ result }) => result), [0, 0, -E.INTR, 0, 0, null]);
    assert.equal(all[2].tries, 0);
    waiters.released(7, 3);
    assert.equal(all[5].result, -E.BADF);
    assert.equal(waiters.count, 0);
  });
});

test('locks and unlocks beside what is waited for are answered, and the waiters get their lock when it is free', async () => {
  const g = await TestGuest.start();
  try {
    const { entry, fh } = await g.create(ROOT, 'f');
    const lock = (owner: number, type: number, start: number, end: number): Uint8Array => concat(u64(fh, owner, start, end), u32(type, 77, 0, 0));
    const set = async (owner: number, type: number, start: number, end: number): Promise<number> =>
      (await g.call(OP.SETLK, entry.node, lock(owner, type, start, end), 0)).error;
    assert.equal(await set(1, F_WRLCK, 0, 9), 0);
    const waiting = new Set<number>();
    for (let owner = 10; owner < 60; owner++) {
      waiting.add(g.queue.chain([g.request(OP.SETLKW, entry.node, lock(owner, F_WRLCK, 5, 15)).bytes], [16], true).head);
    }
    for (let i = 0; i < 150; i++) g.queue.chain([g.request(OP.SETLK, entry.node, lock(2, i % 2 === 0 ? F_WRLCK : F_UNLCK, 12, 12)).bytes], [16], true);
    g.queue.kick();
    for (const { head } of await g.queue.wait(150)) assert.ok(!waiting.has(head));
    g.queue.chain([g.request(OP.SETLK, entry.node, lock(1, F_UNLCK, 0, 9)).bytes], [16], true);
    g.queue.kick();
    const used = await g.queue.wait(2);
    const [granted] = used.filter(({ head }) => waiting.has(head));
    assert.ok(granted !== undefined, 'one of them has it');
  } finally {
    await g.close();
  }
});

test('more ranges than there may be are ENOLCK, and unlocking makes room', async () => {
  const g = await TestGuest.start();
  try {
    const { entry, fh } = await g.create(ROOT, 'f');
    const set = (owner: number, type: number, start: bigint, end = start): Uint8Array =>
      g.request(OP.SETLK, entry.node, concat(u64(fh, owner, start, end), u32(type, 77, 0, 0))).bytes;
    const answer = async (bytes: Uint8Array): Promise<number> => (await g.raw([bytes], [16])).error;
    // An owner's are one from its 1,025th on: so 8 owners with 1,024 each
    for (let owner = 0; owner < 8; owner++) {
      for (let at = 0; at < 1024; at += 128) {
        const mark = g.memory.mark;
        for (let i = at; i < at + 128; i++) g.queue.chain([set(owner + 1, F_WRLCK, BigInt(owner * 4096 + 2 * i))], [16], true);
        g.queue.kick();
        await g.queue.wait(128);
        g.memory.rewind(mark);
      }
    }
    assert.equal(await answer(set(100, F_WRLCK, 2n ** 40n)), -E.NOLCK);
    assert.equal(await answer(set(1, F_UNLCK, 0n)), 0);
    assert.equal(await answer(set(100, F_WRLCK, 2n ** 40n)), 0);
    assert.equal(await answer(set(101, F_WRLCK, 2n ** 41n)), -E.NOLCK);
  } finally {
    await g.close();
  }
});
