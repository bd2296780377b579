/** Guest memory that comes and goes while rings run: a ring never loses its own, and none is unmapped under a request. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_EVENT_IDX, F_LOG_ALL, Frontend, GPA, MESSAGE, NEED_REPLY, SharedMemory, USER, concat, eventfd, u32, u64 } from '../support/frontend.js';

const MEMORY_BYTES = 1 << 20;
const RING = 16;
/** The region with the rings, as ADD_MEM_REG and REM_MEM_REG have it. */
const MAIN = concat(u64(0), u64(GPA, MEMORY_BYTES, USER, 0));
const OTHER_GPA = GPA + 2 * MEMORY_BYTES;
const OTHER = concat(u64(0), u64(OTHER_GPA, 1 << 16, 0x1000_0000, 0));

class Setup {
  readonly device = new EchoDevice();
  readonly backend = new TestBackend(this.device);
  readonly memory = new SharedMemory(MEMORY_BYTES);
  readonly other = new SharedMemory(1 << 16);
  readonly queues = [0, 1].map((i) => new DriverQueue(this.memory, i, RING));
  readonly frontend = Frontend.connect(this.backend.path);

  async echoes(index: number): Promise<void> {
    const queue = this.queues[index];
    const { head } = queue.chain([u32(1, 2)], [8]);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
  }

  async stopRing(index: number): Promise<void> {
    await this.frontend.call(MESSAGE.GET_VRING_BASE, u32(index, 0));
  }

  async end(): Promise<void> {
    this.device.release();
    this.frontend.close();
    await this.backend.close();
    for (const queue of this.queues) queue.close();
    for (const memory of [this.memory, this.other]) memory.close();
  }
}

/** With features negotiated, and with `run` both rings running in memory added as a slot. */
function fact(name: string, run: boolean, body: (s: Setup) => Promise<void>): void {
  test(name, async () => {
    const s = new Setup();
    try {
      await s.frontend.negotiate({ features: F_LOG_ALL | F_EVENT_IDX });
      if (run) {
        assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, MAIN, [s.memory.fd]));
        for (const queue of s.queues) await queue.start(s.frontend);
      }
      await body(s);
    } finally {
      await s.end();
    }
  });
}

fact('memory in which a ring runs is not removed: refused, the rings go on, and later it can be', true, async (s) => {
  const before = openDescriptors();
  for (let round = 0; round < 2; round++) {
    assert.equal(await s.frontend.ack(MESSAGE.REM_MEM_REG, MAIN, [s.memory.fd]), false);
    assert.match(s.backend.log.join('\n'), /refused: the memory region at 0x100000000 holds queue 0, which runs/);
    for (const index of [0, 1]) await s.echoes(index);
  }
  await s.stopRing(0);
  assert.equal(await s.frontend.ack(MESSAGE.REM_MEM_REG, MAIN), false, 'the other ring still runs');
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(1, 0)));
  assert.ok(await s.frontend.ack(MESSAGE.REM_MEM_REG, MAIN));
  assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, MAIN, [s.memory.fd]));
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(1, 1)));
  await s.echoes(1);
  assert.equal(openDescriptors(), before - 1, 'the kick of the ring that was stopped');
});

for (const [part, at] of [['descriptor table', 0], ['available ring', 1], ['used ring', 2]] as const) {
  fact(`a ring's ${part} alone keeps its memory`, true, async (s) => {
    const { frontend, memory, other, queues: [queue] } = s;
    assert.ok(await frontend.ack(MESSAGE.ADD_MEM_REG, OTHER, [other.fd]));
    await s.stopRing(0);
    const addresses = [queue.descriptors, queue.avail, queue.used].map((offset) => USER + offset);
    // At its end: the last byte is in the region
    addresses[at] = 0x1000_0000 + (1 << 16) - [16 * RING, 6 + 2 * RING, 6 + 8 * RING + 2][at];
    frontend.send(MESSAGE.SET_VRING_ADDR, concat(u32(0, 0), u64(addresses[0], addresses[2], addresses[1], 0)));
    assert.ok(await frontend.ack(MESSAGE.SET_VRING_KICK, u64(0), [queue.kickFd]));
    assert.equal(await frontend.ack(MESSAGE.REM_MEM_REG, OTHER), false);
    await s.stopRing(0);
    assert.ok(await frontend.ack(MESSAGE.REM_MEM_REG, OTHER));
    await s.echoes(1);
    assert.equal(memory.bytes, MEMORY_BYTES);
  });
}

fact('asked without NEED_REPLY, to remove the memory of a running ring ends the connection, not the daemon', true, async (s) => {
  s.frontend.send(MESSAGE.REM_MEM_REG, MAIN);
  assert.ok(await s.frontend.closed());
  assert.match(s.backend.log.join('\n'), /holds queue 0, which runs/);
  const next = Frontend.connect(s.backend.path);
  await next.negotiate();
  assert.ok(await next.setMemory(s.memory));
  next.close();
});

fact('what is refused is refused at once, also while requests are in flight', true, async (s) => {
  s.device.hold = true;
  const { head } = s.queues[0].chain([u32(1)], [8]);
  s.queues[0].kick();
  while (s.device.held.length === 0) await sleep(1);
  assert.equal(await s.frontend.ack(MESSAGE.REM_MEM_REG, MAIN), false);
  assert.equal(await s.frontend.ack(MESSAGE.REM_MEM_REG, OTHER), false, 'there is no such region');
  assert.deepEqual(s.queues[0].take(), []);
  s.device.hold = false;
  s.device.release();
  assert.deepEqual(await s.queues[0].wait(), [{ head, length: 4 }]);
});

fact('memory without a ring is removed after the requests in flight, which may use it', true, async (s) => {
  const { frontend, device, other, queues: [queue] } = s;
  assert.ok(await frontend.ack(MESSAGE.ADD_MEM_REG, OTHER, [other.fd]));
  device.hold = true;
  other.u8.set(u32(0x1234), 0);
  queue.put(0, { address: OTHER_GPA, length: 4, flags: 1, next: 1 });
  queue.put(1, { address: OTHER_GPA + 4096, length: 4, flags: 2, next: 0 });
  queue.offer(0);
  queue.kick();
  while (device.held.length === 0) await sleep(1);
  frontend.send(MESSAGE.REM_MEM_REG, OTHER, [], NEED_REPLY);
  await sleep(20);
  assert.deepEqual(queue.take(), []);
  device.hold = false;
  device.release();
  assert.equal((await frontend.reply())!.payload.getBigUint64(0, true), 0n);
  assert.deepEqual(queue.take(), [{ head: 0, length: 4 }]);
  assert.equal(other.dv.getUint32(4096, true), 0x1234);
  for (const index of [0, 1]) await s.echoes(index);
});

fact('a SET_MEM_TABLE without the memory of a running ring is refused and changes nothing', true, async (s) => {
  const table = concat(u32(1, 0), u64(OTHER_GPA, s.other.bytes, 0x1000_0000, 0));
  for (const payload of [table, u32(0, 0)]) {
    assert.equal(await s.frontend.ack(MESSAGE.SET_MEM_TABLE, payload, payload === table ? [s.other.fd] : []), false);
    assert.match(s.backend.log.join('\n'), /SET_MEM_TABLE without the memory of queue 0, which runs/);
    for (const index of [0, 1]) await s.echoes(index);
  }
  for (const index of [0, 1]) await s.stopRing(index);
  assert.ok(await s.frontend.ack(MESSAGE.SET_MEM_TABLE, table, [s.other.fd]));
});

fact('rings that are told of before their memory wait for it, slot by slot', false, async (s) => {
  for (const queue of s.queues) await queue.start(s.frontend);
  s.queues[0].chain([u32(1)], [8]);
  assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, OTHER, [s.other.fd]), 'memory without a ring is memory all the same');
  await sleep(5);
  assert.deepEqual(s.queues[0].take(), []);
  assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, MAIN, [s.memory.fd]));
  assert.equal((await s.queues[0].wait()).length, 1);
  await s.echoes(1);
});

fact('a ring that cannot run when its memory comes is reported, and the memory stays', false, async (s) => {
  const [bad, good] = s.queues;
  await bad.start(s.frontend, { enable: false });
  s.frontend.send(MESSAGE.SET_VRING_ADDR, concat(u32(0, 0), u64(USER + bad.descriptors + 1, USER + bad.used, USER + bad.avail, 0)));
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
  await good.start(s.frontend);
  assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, MAIN, [s.memory.fd]));
  assert.match(s.backend.log.join('\n'), /queue 0: ring addresses are not aligned/);
  assert.equal(c.read(bad.errFd, s.memory.address + 0x80000, 8), 8, 'its error descriptor was signalled');
  await s.echoes(1);
});

/** Signals counted by an eventfd since the last time. */
function signals(s: Setup, fd: number): number {
  s.memory.dv.setBigUint64(0x80000, 0n, true);
  return c.read(fd, s.memory.address + 0x80000, 8) === 8 ? s.memory.dv.getUint32(0x80000, true) : 0;
}

test('SET_LOG_FD: signalled once for each batch of answers that marked the dirty log, and only then', async () => {
  const s = new Setup();
  const [logFd, nextFd] = [eventfd(), eventfd()];
  const log = new SharedMemory(1 << 18); // a bit for each page up to beyond GPA
  const before = openDescriptors();
  const { features } = await s.frontend.negotiate();
  assert.ok(await s.frontend.setMemory(s.memory));
  const [queue] = s.queues;
  await queue.start(s.frontend, { log: true });
  const ask = async (count: number): Promise<void> => {
    for (let i = 0; i < count; i++) {
      queue.put(2 * i, { address: GPA + 0x90000, length: 4, flags: 1, next: 2 * i + 1 });
      queue.put(2 * i + 1, { address: GPA + 0x91000, length: 4, flags: 2, next: 0 });
      queue.offer(2 * i);
    }
    queue.kick();
    await queue.wait(count);
    await sleep(5); // the last of a batch is announced after its answer
  };
  assert.ok(await s.frontend.ack(MESSAGE.SET_LOG_FD, new Uint8Array(0), [logFd]));
  await ask(1);
  assert.equal(signals(s, logFd), 0, 'there is no log');
  await s.frontend.call(MESSAGE.SET_LOG_BASE, u64(log.bytes, 0), [log.fd]);
  await ask(1);
  assert.equal(signals(s, logFd), 1);
  await ask(4);
  assert.equal(signals(s, logFd), 1, 'one for all four');
  s.device.hold = true;
  queue.chain([u32(1)], [8]);
  queue.kick();
  while (s.device.held.length === 0) await sleep(1);
  assert.equal(signals(s, logFd), 0, 'nothing is written yet');
  s.device.hold = false;
  s.device.release();
  await queue.wait();
  assert.equal(signals(s, logFd), 1, 'an answer that came later');
  assert.ok(await s.frontend.ack(MESSAGE.SET_LOG_FD, new Uint8Array(0), [nextFd]));
  await ask(1);
  assert.deepEqual([signals(s, logFd), signals(s, nextFd)], [0, 1], 'the newest counts');
  assert.ok(await s.frontend.ack(MESSAGE.SET_FEATURES, u64(features & ~F_LOG_ALL)));
  await ask(1);
  assert.equal(signals(s, nextFd), 0, 'logging is off');
  assert.ok(await s.frontend.ack(MESSAGE.SET_FEATURES, u64(features)));
  assert.ok(await s.frontend.ack(MESSAGE.SET_LOG_FD));
  await ask(1);
  assert.equal(signals(s, nextFd), 0, 'without a descriptor nobody is told');
  await s.end();
  for (const fd of [logFd, nextFd]) c.close(fd);
  log.close();
  assert.ok(openDescriptors() < before, 'none is left open');
});
