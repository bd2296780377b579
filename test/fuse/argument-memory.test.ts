/**
 * What a request says of its length does not decide what the daemon keeps for it: a name has 255 bytes, whatever follows it.
 *
 * What else holds memory for the same reason: SETXATTR's value while it waits; an opcode that nobody knows; FORGETs in a large list, whose buffer stays with a
 * request that is deferred later; request objects of a burst; chains that have grown for thousands of descriptors.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { StepPool } from '../../src/storage/local/share.js';
import { GPA, concat, u32, u64 } from '../support/frontend.js';
import { INDIRECT, NEXT, WRITE } from '../support/driver.js';
import { OP, TestGuest, name } from '../support/guest.js';

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

const ROOT = 1n;
const MIB = 1 << 20;
const REQUESTS = 200;

const PATIENCE_MS = 30_000;

/** Steps that end when they are told to. */
class HeldSteps implements StepPool {
  readonly #held: ((result: number) => void)[] = [];

  run(): Promise<number> {
    return new Promise((resolve) => this.#held.push(resolve));
  }

  get count(): number {
    return this.#held.length;
  }

  release(): number {
    for (const resolve of this.#held.splice(0)) resolve(-E.NOENT);
    return this.#held.length;
  }
}

class JunkGuest {
  /** A MiB that all requests end in. */
  readonly junk: number;

  constructor(
    readonly g: TestGuest,
    readonly steps: HeldSteps,
  ) {
    this.junk = g.memory.take(MIB);
  }

  static async with(body: (j: JunkGuest) => Promise<void>): Promise<void> {
    const steps = new HeldSteps();
    const g = await TestGuest.start({ offload: 'always' }, steps);
    try {
      await body(new JunkGuest(g, steps));
    } finally {
      steps.release();
      await turn();
      await g.close();
    }
  }

  /** A request whose arguments begin so, and go on with a MiB of junk in `pieces` descriptors. */
  offer(opcode: number, args: Uint8Array, pieces = 1): void {
    const { memory, queue } = this.g;
    const { bytes } = this.g.request(opcode, ROOT, args, 40 + args.length + MIB);
    const at = memory.take(bytes.length);
    memory.u8.set(bytes, at);
    const table = memory.take(16 * (pieces + 2), 16);
    const reply = memory.take(256);
    queue.put(0, { address: GPA + at, length: bytes.length, flags: NEXT, next: 1 }, table);
    // In turn from both ends, so that no two of them are one
    for (let i = 1; i <= pieces; i++) {
      const length = MIB / pieces;
      const part = i % 2 === 0 ? i - 1 : pieces - i;
      queue.put(i, { address: GPA + this.junk + length * part, length, flags: NEXT, next: i + 1 }, table);
    }
    queue.put(pieces + 1, { address: GPA + reply, length: 256, flags: WRITE, next: 0 }, table);
    const head = queue.availIdx % queue.size;
    queue.put(head, { address: GPA + table, length: 16 * (pieces + 2), flags: INDIRECT, next: 0 });
    queue.offer(head);
  }

  /** Bytes of buffers of this process when so many requests are held after `body`, beyond what there were before. */
  async held(count: number, body: () => void): Promise<number> {
    collect();
    const before = buffers();
    body();
    this.g.queue.kick();
    for (const deadline = Date.now() + PATIENCE_MS; this.steps.count !== count; await turn()) assert.ok(Date.now() < deadline, `${this.steps.count} of ${count} are held`);
    for (let i = 0; i < 20; i++) await turn();
    // What a first collection finds dead is given back behind it
    collect();
    await turn();
    collect();
    return buffers() - before;
  }
}

const buffers = (): number => process.memoryUsage().arrayBuffers;

for (const [what, opcode, args] of [
  ['LOOKUP', OP.LOOKUP, name('a')],
  ['UNLINK', OP.UNLINK, name('a')],
  ['RENAME2', OP.RENAME2, concat(u64(1), u32(0, 0), name('a'), name('b'))],
  ['REMOVEXATTR', OP.REMOVEXATTR, name('user.a')],
  ['SETXATTR', OP.SETXATTR, concat(u32(65536, 0, 0, 0), name('user.a'))],
] as const) {
  test(`${REQUESTS} of ${what} that wait, each with a MiB behind its arguments, hold less than 64 KiB each, and nothing when they are over`, () =>
    JunkGuest.with(async (j) => {
      const waiting = await j.held(REQUESTS, () => {
        for (let i = 0; i < REQUESTS; i++) j.offer(opcode, args);
      });
      assert.ok(waiting < REQUESTS * 65536, `${waiting} bytes are held`);
      const after = await j.held(0, () => void j.steps.release());
      await j.g.queue.wait(REQUESTS);
      assert.ok(waiting + after < 8 * MIB, `${waiting + after} bytes stay`);
    }));
}

test('a creation with more behind its name than extensions can be is E2BIG', () =>
  JunkGuest.with(async (j) => {
    for (const [opcode, args] of [[OP.MKDIR, u32(0o755, 0)], [OP.CREATE, u32(0o102, 0o644, 0, 0)], [OP.SYMLINK, new Uint8Array(0)]] as const) {
      assert.equal((await j.g.call(opcode, ROOT, concat(args, name('a'), new Uint8Array(20_000)), 144)).error, -E.BIG);
    }
  }));

test('chains that have grown for many descriptors go when they are over', () =>
  JunkGuest.with(async (j) => {
    const waiting = await j.held(REQUESTS, () => {
      for (let i = 0; i < REQUESTS; i++) j.offer(OP.LOOKUP, name('a'), 1024);
    });
    const after = await j.held(0, () => void j.steps.release());
    await j.g.queue.wait(REQUESTS);
    assert.ok(waiting > 4 * MIB, `${waiting} bytes are held while they wait`);
    assert.ok(waiting + after < 3 * MIB, `${waiting + after} bytes stay`);
  }));

test('chains of many descriptors, and the buffers of long lists, do not stay with what is asked next', () =>
  JunkGuest.with(async (j) => {
    const { g } = j;
    const waiting = await j.held(80, () => {
      // Each list of FORGETs is gathered by the request object that the LOOKUP behind it waits with
      for (let i = 0; i < 80; i++) {
        j.offer(OP.BATCH_FORGET, u32(0, 0), 1024);
        j.offer(63, new Uint8Array(0), 1024);
        j.offer(OP.LOOKUP, name('a'), 1024);
      }
    });
    j.steps.release();
    await g.queue.wait(240);
    assert.ok(waiting < 16 * MIB, `${waiting} bytes are held`);
    const after = await j.held(0, () => undefined);
    assert.ok(waiting + after < 4 * MIB, `${waiting + after} bytes stay`);
  }));
