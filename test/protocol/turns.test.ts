/**
 * A turn of the event loop is bounded in time whatever a guest asks for, so that timers, signals and other connections have theirs.
 *
 * What else makes a turn long: few requests of many bytes; many queues, each with its kick; one queue that is always full, behind which others wait; a kick
 * for each queue within one round of the loop.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import type { Chain } from '../../src/vhost/chain.js';
import type { Device } from '../../src/vhost/device.js';
import { TestBackend } from '../support/backend.js';
import { DriverQueue, NEXT, WRITE } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, SharedMemory } from '../support/frontend.js';

const RING = 256;
const MIB = 1 << 20;

/** Takes its time for each request, and notes whose it was. */
class SlowDevice implements Device {
  readonly maxQueues = 65;
  readonly config = null;
  readonly served: number[] = [];

  constructor(readonly cost_ms: number) {}

  handle(_chain: Chain, queueIndex: number): number {
    this.served.push(queueIndex);
    for (const until = performance.now() + this.cost_ms; performance.now() < until; );
    return 0;
  }

  connected(): void {}
  reset(): void {}
  cancelWaiting(): void {}
}

async function withQueues(queues: number, cost_ms: number, body: (device: SlowDevice, fill: (bytes: number, requests?: number) => void) => Promise<void>): Promise<void> {
  const device = new SlowDevice(cost_ms);
  const backend = new TestBackend<Device>(device);
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(40 * MIB);
  const rings = Array.from({ length: queues }, (_, i) => new DriverQueue(memory, i, RING));
  try {
    await frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await frontend.setMemory(memory));
    for (const ring of rings) await ring.start(frontend);
    const buffer = memory.take(16 * MIB);
    await body(device, (bytes, requests = RING / 2) => {
      for (const ring of rings) {
        for (let i = 0; i < requests; i++) {
          ring.put(2 * i, { address: GPA + buffer, length: 64, flags: NEXT, next: 2 * i + 1 });
          ring.put(2 * i + 1, { address: GPA + buffer, length: bytes, flags: WRITE, next: 0 });
          ring.offer(2 * i);
        }
      }
      for (const ring of rings) ring.kick();
    });
    for (const ring of rings) assert.equal(ring.take().length, RING / 2);
  } finally {
    frontend.close();
    await backend.close();
    for (const ring of rings) ring.close();
    memory.close();
  }
}

/** The most requests that were served between two turns of this test, until `all` are. */
async function mostAtOnce(device: SlowDevice, all: number): Promise<number> {
  let most = 0;
  for (let done = 0; done < all; ) {
    await turn();
    const now = device.served.length;
    most = Math.max(most, now - done);
    done = now;
  }
  return most;
}

// Of a millisecond each: a turn is 5 of them, and what lies between two looks at the clock; there may be two in one round of the loop
for (const queues of [1, 4, 16]) {
  test(`small requests that take a millisecond each, on ${queues} queues, leave others their turn`, () =>
    withQueues(queues, 1, async (device, fill) => {
      fill(64);
      const most = await mostAtOnce(device, queues * RING / 2);
      assert.ok(most <= 2 * (5 + 8), `${most} requests at once`);
    }));

  test(`requests of 16 MiB that take four milliseconds each, on ${queues} queues, leave others their turn`, () =>
    withQueues(queues, 4, async (device, fill) => {
      fill(16 * MIB - 64);
      const most = await mostAtOnce(device, queues * RING / 2);
      assert.ok(most <= 2 * 3, `${most} requests at once`);
    }));
}

for (const [what, bytes, slice, cost_ms] of [['64 requests', 64, 64, 0], ['4 MiB', MIB, 4, 0], ['what fits into a turn', 64, 2 * (5 + 8), 1]] as const) {
  test(`queues are served in slices of ${what}, each in its turn`, () =>
    withQueues(3, cost_ms, async (device, fill) => {
      // All is there before the first kick is heard: this thread is the backend's
      fill(bytes);
      await mostAtOnce(device, 3 * RING / 2);
      const left = [0, 1, 2].map(() => RING / 2);
      let run = 0;
      device.served.forEach((queue, i) => {
        run = i > 0 && device.served[i - 1] === queue ? run + 1 : 1;
        left[queue]--;
        const others = left.some((count, other) => other !== queue && count > 0);
        assert.ok(run <= slice || !others, `queue ${queue} has ${run} requests served in a row while others wait`);
      });
    }));
}
