/**
 * Requests that wait are bounded together, and whatever the bound keeps in the ring is served when it can be: nothing stands still.
 *
 * What else could stand still: an unlock behind waiters for that lock; FORGET and INTERRUPT while all wait; a ring that is not kicked any more when there is room; another
 * ring whose requests end when the first is being drained; INIT while locks are waited for.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { Admission } from '../../src/fuse/admission.js';
import type { StepPool } from '../../src/storage/local/share.js';
import { DriverQueue } from '../support/driver.js';
import { MESSAGE, concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';
import { settled } from '../support/settled.js';

const ROOT = 1n;
const RING = 512;
const F_WRLCK = 1;
const F_UNLCK = 2;
const LAST_BYTE = (1n << 63n) - 1n;

/** Steps that end when they are told to. */
class HeldSteps implements StepPool {
  readonly held: ((result: number) => void)[] = [];

  run(): Promise<number> {
    return new Promise((resolve) => this.held.push(resolve));
  }

  release(): void {
    for (const resolve of this.held.splice(0)) resolve(-E.NOENT);
  }
}

type Created = Awaited<ReturnType<TestGuest['create']>>;

/** The guest's own queue is the high-priority one. */
async function withRequestQueue(options: { offload: 'auto' | 'always' }, steps: StepPool | 0, body: (g: TestGuest, queue: DriverQueue, file: Created | null) => Promise<void>): Promise<void> {
  const g = await TestGuest.start(options, steps);
  // Before the ring gets its memory: calls of the guest use theirs again
  const file = steps === 0 ? await g.create(ROOT, 'f') : null;
  const queue = new DriverQueue(g.memory, 1, RING);
  try {
    await queue.start(g.frontend);
    await body(g, queue, file);
  } finally {
    await g.close();
    queue.close();
  }
}

test('of requests that wait a few hundred are taken, the rest when some are answered, and FORGET goes on meanwhile', async () => {
  const steps = new HeldSteps();
  await withRequestQueue({ offload: 'always' }, steps, async (g, queue) => {
    for (let i = 0; i < RING; i++) queue.chain([g.request(OP.LOOKUP, ROOT, name(`n${i}`)).bytes], [160], true);
    queue.kick();
    const taken = await settled(() => steps.held.length);
    assert.ok(taken >= 64 && taken < RING, `${taken} of ${RING} are taken`);
    queue.kick();
    assert.equal(await settled(() => steps.held.length), taken, 'kicks change nothing');
    g.queue.chain([g.request(OP.FORGET, 99n, u64(1)).bytes], [], true);
    g.queue.kick();
    await g.queue.wait();
    steps.held.pop()!(-E.NOENT);
    await queue.wait(1);
    for (let answered = 1; answered < RING; ) {
      steps.release();
      await turn();
      answered += queue.take().length;
    }
    assert.equal(steps.held.length, 0);
  });
});

test('one request more is taken for each that is large: what counts is bytes', () => {
  const most = (argumentBytes: number, capacity: number): number => {
    const admission = new Admission();
    let count = 0;
    for (; admission.admits(1); count++) admission.add(argumentBytes, { segments: 3, capacity });
    assert.ok(admission.admits(0));
    return count;
  };
  assert.ok(most(65_536, 320) * 4 < most(0, 320));
  assert.ok(most(0, 32_768) < 8);
});

test('room is told of once, when a quarter of the bound is free again', () => {
  const admission = new Admission();
  const held: number[] = [];
  let told = 0;
  admission.onRoom = () => told++;
  while (admission.admits(1)) held.push(admission.add(0, { segments: 3, capacity: 320 }));
  const count = held.length;
  while (!admission.admits(1)) admission.remove(held.pop()!);
  assert.equal(told, 1);
  assert.ok(count - held.length >= count / 5 && count - held.length <= count / 3, `${count - held.length} of ${count} had to end`);
  for (const bytes of held) admission.remove(bytes);
  assert.equal(told, 1);
});

test('waiters for a lock, more than requests may wait, keep neither its unlock nor each other in the ring', async () => {
  await withRequestQueue({ offload: 'auto' }, 0, async (g, queue, file) => {
    const { entry, fh } = file!;
    const lock = (opcode: number, type: number, owner: number): void => {
      queue.chain([g.request(opcode, entry.node, concat(u64(fh, owner, 0n, LAST_BYTE), u32(type, 1, 0, 0))).bytes], [16], true);
    };
    lock(OP.SETLKW, F_WRLCK, 1);
    queue.kick();
    await queue.wait();
    const WAITERS = RING - 2;
    for (let i = 0; i < WAITERS; i++) lock(OP.SETLKW, F_WRLCK, 2);
    lock(OP.SETLK, F_UNLCK, 1);
    queue.kick();
    const errors = (await queue.wait(WAITERS + 1)).map(({ length }) => length);
    assert.deepEqual([...new Set(errors)], [16], 'each has its header');
  });
});

test('a ring that the bound keeps waiting is served when requests of another, which is being stopped, have ended', async () => {
  const steps = new HeldSteps();
  await withRequestQueue({ offload: 'always' }, steps, async (g, queue) => {
    // The high-priority queue takes more than the bound, so that the other one gets nothing
    for (let i = 0; i < g.queue.size; i++) g.queue.chain([g.request(OP.LOOKUP, ROOT, name(`a${i}`)).bytes], [160], true);
    g.queue.kick();
    assert.equal(await settled(() => steps.held.length), g.queue.size);
    queue.chain([g.request(OP.LOOKUP, ROOT, name('b')).bytes], [160], true);
    queue.kick();
    assert.equal(await settled(() => steps.held.length), g.queue.size);
    g.frontend.send(MESSAGE.GET_VRING_BASE, u32(0, 0));
    steps.release();
    await g.frontend.reply();
    while (steps.held.length === 0) await turn();
    steps.release();
    await queue.wait();
  });
});
