/** INTERRUPT, and what the frontend says, while requests wait for a lock or are in the pool. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { StepPool } from '../../src/storage/local/share.js';
import { GPA, MESSAGE, NEED_REPLY, USER, concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest } from '../support/guest.js';

const ROOT = 1n;
const F_WRLCK = 1;
const LAST_BYTE = 2n ** 63n - 1n;

/** A pool whose calls take until release(). */
class HeldCalls implements StepPool {
  readonly #held: (() => void)[] = [];

  run(): Promise<number> {
    return new Promise((resolve) => this.#held.push(() => resolve(0)));
  }

  get count(): number {
    return this.#held.length;
  }

  release(): void {
    for (const end of this.#held.splice(0)) end();
  }
}

interface Pending {
  head: number;
  unique: bigint;
  /** The error in its reply. */
  error: () => number;
}

class Setup {
  #node = 0n;
  #fh = 0n;

  private constructor(
    readonly g: TestGuest,
    readonly calls: HeldCalls,
  ) {}

  /** A file whose lock owner 1 has locked it. */
  static async with(body: (s: Setup) => Promise<void>): Promise<void> {
    const calls = new HeldCalls();
    const s = new Setup(await TestGuest.start({}, calls), calls);
    try {
      const { entry, fh } = await s.g.create(ROOT, 'f');
      s.#node = entry.node;
      s.#fh = fh;
      assert.equal((await s.g.call(OP.SETLK, entry.node, s.#lock(1), 0)).error, 0);
      await body(s);
    } finally {
      calls.release();
      await s.g.close();
    }
  }

  #lock(owner: number): Uint8Array {
    return concat(u64(this.#fh, owner, 0, LAST_BYTE), u32(F_WRLCK, 77, 0, 0));
  }

  /** Offer a request; its blocks stay, so there must be no g.call() until it is answered. */
  offer(opcode: number, node: bigint, args: Uint8Array, room: number): Pending {
    const { bytes, unique } = this.g.request(opcode, node, args);
    const { head, writable } = this.g.queue.chain([bytes], room > 0 ? [room] : [], true);
    this.g.queue.kick();
    return { head, unique, error: () => this.g.memory.dv.getInt32(writable[0] + 4, true) };
  }

  waitForLock(): Pending {
    return this.offer(OP.SETLKW, this.#node, this.#lock(2), 16);
  }

  /** An fsync that is in the pool until release(). */
  async fsync(): Promise<Pending> {
    const pending = this.offer(OP.FSYNC, this.#node, concat(u64(this.#fh), u32(0, 0)), 16);
    while (this.calls.count === 0) await sleep(1);
    return pending;
  }

  /** How an INTERRUPT with room for a reply is answered: 0 for no reply. */
  async interrupt(unique: bigint): Promise<number> {
    const sent = this.offer(OP.INTERRUPT, 0n, u64(unique), 16);
    const used = await this.g.queue.wait();
    assert.equal(used[0].head, sent.head);
    return used[0].length === 0 ? 0 : sent.error();
  }
}

test('an INTERRUPT whose request is not known is answered EAGAIN, and without room for that not at all', () =>
  Setup.with(async ({ g }) => {
    assert.deepEqual(await g.call(OP.INTERRUPT, 0n, u64(99), 0).then(({ error, used }) => [error, used]), [-E.AGAIN, 16]);
    for (const room of [[], [15]]) assert.equal((await g.raw([g.request(OP.INTERRUPT, 0n, u64(99)).bytes], room)).used, 0);
    const short = g.request(OP.INTERRUPT, 0n, u32(99));
    assert.equal((await g.raw([short.bytes], [16])).used, 0, 'one that names no request');
  }));

test('an INTERRUPT that overtakes its request is EAGAIN; sent again it ends the wait, and has no reply', () =>
  Setup.with(async (s) => {
    const next = s.g.request(OP.INTERRUPT, 0n, u64(0)).unique + 2n;
    assert.equal(await s.interrupt(next), -E.AGAIN);
    const waiting = s.waitForLock();
    assert.equal(waiting.unique, next);
    const again = s.offer(OP.INTERRUPT, 0n, u64(next), 16);
    const used = await s.g.queue.wait(2);
    assert.deepEqual(new Map(used.map(({ head, length }) => [head, length])), new Map([[waiting.head, 16], [again.head, 0]]));
    assert.equal(waiting.error(), -E.INTR);
    assert.equal(await s.interrupt(next), -E.AGAIN, 'it has been answered: the kernel ignores this');
  }));

test('an INTERRUPT of a request in the pool has no reply, and the request goes on', () =>
  Setup.with(async (s) => {
    const fsync = await s.fsync();
    for (let i = 0; i < 3; i++) assert.equal(await s.interrupt(fsync.unique), 0);
    assert.equal(await s.interrupt(fsync.unique + (1n << 32n)), -E.AGAIN, 'all 64 bits count');
    s.calls.release();
    assert.deepEqual(await s.g.queue.wait(), [{ head: fsync.head, length: 16 }]);
    assert.equal(fsync.error(), 0);
    assert.equal(await s.interrupt(fsync.unique), -E.AGAIN);
  }));

test('requests deferred together are each known until they are answered, in whatever order', () =>
  Setup.with(async (s) => {
    const fsync = await s.fsync();
    const waiting = s.waitForLock();
    const second = s.waitForLock();
    assert.equal(await s.interrupt(fsync.unique), 0);
    const interrupt = s.offer(OP.INTERRUPT, 0n, u64(waiting.unique), 16);
    assert.deepEqual(new Set((await s.g.queue.wait(2)).map((u) => u.head)), new Set([waiting.head, interrupt.head]));
    assert.equal(await s.interrupt(waiting.unique), -E.AGAIN);
    assert.equal(await s.interrupt(fsync.unique), 0);
    s.calls.release();
    assert.deepEqual(await s.g.queue.wait(), [{ head: fsync.head, length: 16 }]);
    assert.equal(await s.interrupt(fsync.unique), -E.AGAIN);
    const last = s.offer(OP.INTERRUPT, 0n, u64(second.unique), 0);
    assert.deepEqual(new Set((await s.g.queue.wait(2)).map((u) => u.head)), new Set([second.head, last.head]));
  }));

const RESETS = [['RESET_DEVICE', MESSAGE.RESET_DEVICE, new Uint8Array(0)], ['SET_STATUS 0', MESSAGE.SET_STATUS, u64(0)]] as const;
const DRAINS = [
  ...RESETS,
  ['GET_VRING_BASE', MESSAGE.GET_VRING_BASE, u32(0, 0)],
  ['SET_VRING_ENABLE 0', MESSAGE.SET_VRING_ENABLE, u32(0, 0)],
  ['SET_MEM_TABLE', MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(GPA, 16 << 20, USER, 0))],
] as const;

/** Send a message that drains rings; the promise is for the reply. */
function drain({ g }: Setup, code: number, payload: Uint8Array): Promise<{ code: number } | null> {
  const own = code === MESSAGE.GET_VRING_BASE;
  g.frontend.send(code, payload, code === MESSAGE.SET_MEM_TABLE ? [g.memory.fd] : [], own ? 0 : NEED_REPLY);
  return g.frontend.reply().then((reply) => {
    if (!own) assert.equal(reply?.payload.getBigUint64(0, true), 0n);
    return reply;
  });
}

for (const [name, code, payload] of DRAINS) {
  test(`${name} waits for a request in the pool, which is answered first`, () =>
    Setup.with(async (s) => {
      const fsync = await s.fsync();
      let replied = false;
      const reply = drain(s, code, payload).finally(() => (replied = true));
      await sleep(20);
      assert.equal(replied, false);
      assert.deepEqual(s.g.queue.take(), []);
      s.calls.release();
      assert.equal((await reply)?.code, code);
      assert.deepEqual(s.g.queue.take(), [{ head: fsync.head, length: 16 }]);
      assert.equal(fsync.error(), 0, 'it ran to its end in its own session');
    }));

  test(`${name} ends waiting locks with EINTR`, () =>
    Setup.with(async (s) => {
      const waiting = [s.waitForLock(), s.waitForLock()];
      const probe = s.offer(OP.GETATTR, ROOT, new Uint8Array(16), 120);
      assert.deepEqual(await s.g.queue.wait(), [{ head: probe.head, length: 120 }], 'both wait');
      assert.equal((await drain(s, code, payload))?.code, code);
      assert.deepEqual(new Set(s.g.queue.take().map((u) => u.head)), new Set(waiting.map((w) => w.head)));
      assert.deepEqual(waiting.map((w) => w.error()), [-E.INTR, -E.INTR]);
    }));
}

for (const [name, code, payload] of RESETS) {
  test(`${name} with a request in the pool ends the session after it, not under it`, () =>
    Setup.with(async (s) => {
      await s.fsync();
      const reply = drain(s, code, payload);
      s.calls.release();
      await reply;
      s.g.queue.take();
      assert.ok(await s.g.frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
      assert.equal((await s.g.call(OP.GETATTR, ROOT, new Uint8Array(16), 104)).error, -E.IO);
      assert.equal((await s.g.init()).error, 0);
      const { entry, fh } = await s.g.create(ROOT, 'g');
      assert.equal((await s.g.call(OP.SETLK, entry.node, concat(u64(fh, 1, 0, LAST_BYTE), u32(F_WRLCK, 77, 0, 0)), 0)).error, 0);
    }));
}

test('INIT and DESTROY wait for a request in the pool, and end waiting locks', () =>
  Setup.with(async (s) => {
    const fsync = await s.fsync();
    const waiting = s.waitForLock();
    const destroy = s.offer(OP.DESTROY, 0n, new Uint8Array(0), 16);
    assert.deepEqual((await s.g.queue.wait()).map((u) => u.head), [waiting.head]);
    assert.equal(waiting.error(), -E.INTR);
    s.calls.release();
    assert.deepEqual((await s.g.queue.wait(2)).map((u) => u.head), [fsync.head, destroy.head]);
    assert.deepEqual([fsync.error(), destroy.error()], [0, 0]);
    assert.equal((await s.g.call(OP.GETATTR, ROOT, new Uint8Array(16), 104)).error, -E.IO);
  }));
