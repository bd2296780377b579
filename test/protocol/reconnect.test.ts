/**
 * A backend that comes after a dead one goes on where that was: with requests in flight or none, whatever base the frontend tells, in a ring that has wrapped
 * around.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { EchoDevice, TestBackend } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, MESSAGE, SharedMemory, USER, concat, u32, u64 } from '../support/frontend.js';

const MEMORY_BYTES = 1 << 20;
const RING = 16;

/** Cloud Hypervisor's order of messages when it connects again; `base`: the guest's present index. */
async function reconnect(f: Frontend, memory: SharedMemory, queue: DriverQueue, protocol: bigint, inflight: Uint8Array, record: number): Promise<void> {
  f.send(MESSAGE.SET_OWNER);
  const features = await f.getU64(MESSAGE.GET_FEATURES);
  assert.ok(await f.ack(MESSAGE.SET_PROTOCOL_FEATURES, u64(protocol)), 'without asking for them first');
  assert.ok(await f.ack(MESSAGE.SET_FEATURES, u64(features & ~F_LOG_ALL)));
  assert.ok(await f.ack(MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(GPA, memory.bytes, USER, 0)), [memory.fd]));
  assert.ok(await f.ack(MESSAGE.SET_VRING_NUM, u32(0, queue.size)));
  assert.ok(await f.ack(MESSAGE.SET_INFLIGHT_FD, inflight, [record]));
  assert.ok(await f.ack(MESSAGE.SET_VRING_ADDR, concat(u32(0, 0), u64(USER + queue.descriptors, USER + queue.used, USER + queue.avail, GPA + queue.used))));
  assert.ok(await f.ack(MESSAGE.SET_VRING_BASE, u32(0, queue.availIdx)));
  assert.ok(await f.ack(MESSAGE.SET_VRING_CALL, u64(0), [queue.callFd]));
  assert.ok(await f.ack(MESSAGE.SET_VRING_KICK, u64(0), [queue.kickFd]));
  assert.ok(await f.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
}

for (const [served, inFlight, published] of [[0, 0, 3], [5, 0, 3], [40, 0, 3], [5, 2, 3], [40, 3, 0], [7, 0, 0]] as const) {
  test(`after a backend that had served ${served} and had ${inFlight} in flight, the next one answers these and ${published} that were published meanwhile`, async () => {
    const memory = new SharedMemory(MEMORY_BYTES);
    const queue = new DriverQueue(memory, 0, RING);
    const dying = new EchoDevice();
    const first = new TestBackend(dying);
    const one = Frontend.connect(first.path);
    const { protocol } = await one.negotiate({ features: F_LOG_ALL });
    const made = await one.call(MESSAGE.GET_INFLIGHT_FD, concat(u64(0, 0), u32((RING << 16) | 1, 0)));
    const record = made.fds[0];
    const inflight = concat(new Uint8Array(made.payload.buffer));
    assert.ok(await one.ack(MESSAGE.SET_INFLIGHT_FD, inflight, [record]));
    assert.ok(await one.setMemory(memory));
    await queue.start(one);
    for (let i = 0; i < served; i++) {
      queue.chain([u32(i)], [8]);
      queue.kick();
      await queue.wait();
    }
    dying.hold = true;
    const heads = Array.from({ length: inFlight }, (_, i) => queue.chain([u32(i)], [8]).head);
    queue.kick();
    while (dying.held.length < inFlight) await turn();
    // It is dead from here on: it hears no kick, and what it holds never reaches the ring
    for (let i = 0; i < published; i++) heads.push(queue.chain([u32(i)], [8]).head);

    const second = new TestBackend(new EchoDevice());
    const two = Frontend.connect(second.path);
    await reconnect(two, memory, queue, protocol, inflight, record);
    const used = await queue.wait(heads.length);
    assert.deepEqual(used.map(({ head }) => head), heads);
    two.close();
    await second.close();
    dying.held.splice(0).forEach((chain) => chain.finish(0));
    one.close();
    await first.close();
    c.close(record);
    queue.close();
    memory.close();
  });
}
