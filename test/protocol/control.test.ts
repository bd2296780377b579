/** The vhost-user control plane and the rings over a real socket, with a device that echoes. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { F_GET_SEALS, F_SEAL_SHRINK } from '../../src/ffi/constants.js';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_EVENT_IDX, F_INDIRECT, F_LOG_ALL, F_PROTOCOL_FEATURES, Frontend, GPA, MESSAGE, SharedMemory, USER, concat, eventfd, u32, u64 } from '../support/frontend.js';

const MEMORY_BYTES = 4 << 20;
const text = (s: string): Uint8Array => new TextEncoder().encode(s);

interface Setup {
  backend: TestBackend;
  device: EchoDevice;
  frontend: Frontend;
  memory: SharedMemory;
  queue: DriverQueue;
}

/** A connected frontend with one running ring. */
async function withRing(body: (s: Setup) => Promise<void>, options: { size?: number; base?: number; without?: bigint; pollUs?: number } = {}): Promise<void> {
  const device = new EchoDevice();
  const backend = new TestBackend(device, options.pollUs ?? 0);
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, options.size ?? 64, options.base ?? 0);
  try {
    await frontend.negotiate({ features: F_LOG_ALL | (options.without ?? 0n) });
    assert.ok(await frontend.setMemory(memory));
    await queue.start(frontend);
    await body({ backend, device, frontend, memory, queue });
  } finally {
    device.release();
    frontend.close();
    await backend.close();
    queue.close();
    memory.close();
  }
}

async function echoes(queue: DriverQueue, message: string, indirect = false): Promise<void> {
  const bytes = text(message);
  const { head, writable } = queue.chain([bytes.subarray(0, 3), bytes.subarray(3)], [2, bytes.length + 8], indirect);
  queue.kick();
  assert.deepEqual(await queue.wait(), [{ head, length: bytes.length }]);
  const got = concat(queue.memory.u8.slice(writable[0], writable[0] + 2), queue.memory.u8.slice(writable[1], writable[1] + bytes.length - 2));
  assert.deepEqual(got, bytes);
  assert.equal(queue.memory.u8[writable[1] + bytes.length - 2], 0xee, 'nothing is written beyond the reply');
}

test('features and limits are offered as documented', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  assert.equal(await frontend.getU64(MESSAGE.GET_FEATURES), (1n << 32n) | (1n << 30n) | (1n << 29n) | (1n << 28n) | (1n << 26n));
  const { protocol } = await frontend.negotiate();
  assert.equal(protocol, [0, 1, 3, 5, 10, 12, 13, 15, 16].reduce((bits, bit) => bits | (1n << BigInt(bit)), 0n));
  assert.equal(await frontend.getU64(MESSAGE.GET_QUEUE_NUM), 65n);
  assert.equal(await frontend.getU64(MESSAGE.GET_MAX_MEM_SLOTS), 509n);
  frontend.close();
  await backend.close();
});

for (const [name, without] of [
  ['EVENT_IDX and INDIRECT', 0n], ['no EVENT_IDX', F_EVENT_IDX], ['no INDIRECT', F_INDIRECT],
] as const) {
  test(`a request is served with ${name}`, () =>
    withRing(async ({ queue }) => {
      await echoes(queue, 'direct chain');
      if (name !== 'no INDIRECT') await echoes(queue, 'indirect chain', true);
    }, { without }));
}

test('rings of 1, 2 and 32768 descriptors work, and indexes wrap around', async () => {
  for (const size of [1, 2, 32768]) {
    await withRing(async ({ queue }) => {
      for (let i = 0; i < 5; i++) await echoes(queue, `request ${i} of many`, true);
    }, { size, base: 0xfffe });
  }
});

test('without PROTOCOL_FEATURES a ring runs without being enabled', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 16);
  const features = await frontend.getU64(MESSAGE.GET_FEATURES);
  frontend.send(MESSAGE.SET_FEATURES, u64(features & ~F_PROTOCOL_FEATURES & ~F_LOG_ALL));
  frontend.send(MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(GPA, memory.bytes, USER, 0)), [memory.fd]);
  await queue.start(frontend, { enable: false });
  await echoes(queue, 'no protocol features');
  frontend.close();
  await backend.close();
  queue.close();
  memory.close();
});

test('a kick before SET_VRING_ENABLE is not lost', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 16);
  await frontend.negotiate({ features: F_LOG_ALL });
  assert.ok(await frontend.setMemory(memory));
  await queue.start(frontend, { enable: false });
  queue.chain([text('early')], [16]);
  queue.kick();
  await sleep(20);
  assert.deepEqual(queue.take(), [], 'a disabled ring is not served');
  frontend.send(MESSAGE.SET_VRING_ENABLE, u32(0, 1));
  assert.equal((await queue.wait()).length, 1);
  frontend.close();
  await backend.close();
  queue.close();
  memory.close();
});

test('a ring without a kick descriptor is looked at all the same', () =>
  withRing(async ({ frontend, queue }) => {
    await frontend.ack(MESSAGE.SET_VRING_KICK, u64(0x100));
    queue.chain([text('unkicked')], [16]);
    assert.equal((await queue.wait()).length, 1);
  }));

test('the call descriptor can be changed while the ring runs', () =>
  withRing(async ({ frontend, queue }) => {
    await echoes(queue, 'first');
    const other = eventfd();
    queue.setUsedEvent(queue.lastUsed);
    assert.ok(await frontend.ack(MESSAGE.SET_VRING_CALL, u64(0), [other]));
    queue.calls();
    await echoes(queue, 'second');
    assert.equal(queue.calls(), 0);
    c.close(other);
  }));

test('EVENT_IDX: the driver is called when its used_event is passed, and not before', () =>
  withRing(async ({ device, queue }) => {
    await echoes(queue, 'one');
    queue.calls();
    queue.setUsedEvent(queue.lastUsed + 1); // the second from now
    await echoes(queue, 'two');
    assert.equal(queue.calls(), 0);
    await echoes(queue, 'three');
    assert.equal(queue.calls(), 1);
    device.hold = true;
    queue.setUsedEvent(queue.lastUsed);
    for (let i = 0; i < 5; i++) queue.chain([text('x')], [8]);
    queue.kick();
    while (device.held.length < 5) await sleep(1);
    device.release();
    await queue.wait(5);
    assert.equal(queue.calls(), 1, 'one call for all five');
  }));

test('EVENT_IDX: avail_event asks for a kick at the next entry', () =>
  withRing(async ({ queue }) => {
    await echoes(queue, 'one');
    await sleep(5);
    assert.equal(queue.availEvent, queue.availIdx);
  }));

test('GET_VRING_BASE waits for what is in flight, and the ring goes on from there', () =>
  withRing(async ({ device, frontend, queue }) => {
    await echoes(queue, 'before');
    device.hold = true;
    queue.chain([text('slow')], [16]);
    queue.kick();
    while (device.held.length === 0) await sleep(1);
    frontend.send(MESSAGE.GET_VRING_BASE, u32(0, 0));
    await sleep(20);
    assert.equal(queue.take().length, 0);
    device.release();
    const reply = await frontend.reply();
    assert.equal(reply!.payload.getUint32(4, true), 2);
    assert.equal(queue.take().length, 1, 'the answer came before the reply');
    device.hold = false;
    queue.chain([text('stopped')], [16]);
    queue.kick();
    await sleep(20);
    assert.equal(queue.take().length, 0, 'a stopped ring takes nothing');
    frontend.send(MESSAGE.SET_VRING_BASE, u32(0, 2));
    frontend.send(MESSAGE.SET_VRING_KICK, u64(0), [queue.kickFd]);
    assert.equal((await queue.wait()).length, 1);
  }));

test('memory is not replaced while a request uses it', () =>
  withRing(async ({ device, frontend, memory, queue }) => {
    device.hold = true;
    queue.chain([text('keep the memory')], [32]);
    queue.kick();
    while (device.held.length === 0) await sleep(1);
    frontend.send(MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(GPA, memory.bytes, USER, 0)), [memory.fd], 8);
    await sleep(20);
    device.hold = false;
    device.release();
    assert.equal((await frontend.reply())!.payload.getBigUint64(0, true), 0n);
    assert.equal(queue.take().length, 1);
    await echoes(queue, 'the ring goes on in the new mapping');
  }));

test('memory slots: 509 regions can be added, used and removed', async () => {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(MEMORY_BYTES);
  const small = new SharedMemory(4096);
  const queue = new DriverQueue(memory, 0, 16);
  await frontend.negotiate({ features: F_LOG_ALL });
  const region = (i: number): Uint8Array => concat(u64(0), u64(0x10_0000_0000 + i * 8192, 4096, 0x1000_0000 + i * 8192, 0));
  assert.ok(await frontend.ack(MESSAGE.ADD_MEM_REG, concat(u64(0), u64(GPA, memory.bytes, USER, 0)), [memory.fd]));
  for (let i = 0; i < 508; i++) assert.ok(await frontend.ack(MESSAGE.ADD_MEM_REG, region(i), [small.fd]));
  assert.equal(await frontend.ack(MESSAGE.ADD_MEM_REG, region(508), [small.fd]), false, 'one more is refused');
  await queue.start(frontend);
  small.u8.set(text('in a slot'), 0);
  queue.put(0, { address: 0x10_0000_0000 + 507 * 8192, length: 9, flags: 1, next: 1 });
  queue.put(1, { address: GPA + memory.take(16), length: 16, flags: 2, next: 0 });
  queue.offer(0);
  queue.kick();
  assert.deepEqual(await queue.wait(), [{ head: 0, length: 9 }]);
  for (let i = 0; i < 508; i++) assert.ok(await frontend.ack(MESSAGE.REM_MEM_REG, region(i)));
  assert.equal(await frontend.ack(MESSAGE.REM_MEM_REG, region(3)), false, 'it is gone already');
  queue.offer(0);
  queue.kick();
  assert.deepEqual(await queue.wait(), [{ head: 0, length: 0 }], 'its memory is no longer there');
  assert.match(backend.log.join('\n'), /buffer outside memory/);
  frontend.close();
  await backend.close();
  for (const m of [memory, small]) m.close();
  queue.close();
});

test('the configuration space is read in parts, and is read-only', async () => {
  const device = new EchoDevice();
  device.config = concat(text('tag'), new Uint8Array(33), u32(4));
  const backend = new TestBackend(device);
  const frontend = Frontend.connect(backend.path);
  const { protocol } = await frontend.negotiate();
  assert.ok(protocol & (1n << 9n));
  const reply = await frontend.call(MESSAGE.GET_CONFIG, concat(u32(36, 4, 0), u32(0)));
  assert.equal(reply.payload.getUint32(12, true), 4);
  const beyond = await frontend.call(MESSAGE.GET_CONFIG, concat(u32(40, 4, 0), u32(0)));
  assert.equal(beyond.payload.byteLength, 0);
  assert.equal(await frontend.ack(MESSAGE.SET_CONFIG, concat(u32(0, 4, 0), u32(0))), false);
  frontend.close();
  await backend.close();
});

test('requests in flight when a backend dies are served again by the next, oldest first', async () => {
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 16);
  const dying = new EchoDevice();
  dying.hold = true;
  const first = new TestBackend(dying);
  const one = Frontend.connect(first.path);
  await one.negotiate({ features: F_LOG_ALL });
  const made = await one.call(MESSAGE.GET_INFLIGHT_FD, concat(u64(0, 0), u32((16 << 16) | 1, 0)));
  const record = made.fds[0];
  const inflight = concat(new Uint8Array(made.payload.buffer));
  assert.ok((c.fcntl(record, F_GET_SEALS, 0) & F_SEAL_SHRINK) !== 0);
  assert.ok(await one.ack(MESSAGE.SET_INFLIGHT_FD, inflight, [record]));
  assert.ok(await one.setMemory(memory));
  await queue.start(one);
  const heads = ['a', 'bb', 'ccc', 'dddd'].map((s) => queue.chain([text(s)], [16]).head);
  queue.kick();
  while (dying.held.length < 4) await sleep(1);
  // One is answered; the others die with it: their answers never reach the ring that the next backend sees
  const [answered] = dying.held.splice(1, 1);
  answered.finish(0);
  assert.deepEqual(queue.take(), [{ head: heads[1], length: 0 }]);

  const order: number[] = [];
  const device = new EchoDevice();
  const second = new TestBackend(device);
  device.handle = (chain): number => {
    order.push(chain.readBytes);
    return 0;
  };
  const two = Frontend.connect(second.path);
  await two.negotiate({ features: F_LOG_ALL });
  assert.ok(await two.ack(MESSAGE.SET_INFLIGHT_FD, inflight, [record]));
  assert.ok(await two.setMemory(memory));
  await queue.start(two, { base: queue.availIdx });
  assert.equal((await queue.wait(3)).length, 3);
  assert.deepEqual(order, [1, 3, 4]);
  dying.held.splice(0).forEach((chain) => chain.finish(0));
  one.close();
  two.close();
  await first.close();
  await second.close();
  c.close(record);
  queue.close();
  memory.close();
});

test('dirty pages are logged while LOG_ALL is on', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  const memory = new SharedMemory(MEMORY_BYTES);
  const log = new SharedMemory(1 << 20);
  const queue = new DriverQueue(memory, 0, 16);
  const { features } = await frontend.negotiate();
  assert.ok(await frontend.setMemory(memory, 0x100000));
  assert.equal((await frontend.call(MESSAGE.SET_LOG_BASE, u64(log.bytes, 0), [log.fd])).payload.getBigUint64(0, true), 0n);
  frontend.send(MESSAGE.SET_VRING_NUM, u32(0, 16));
  frontend.send(MESSAGE.SET_VRING_ADDR, concat(u32(0, 1), u64(USER + queue.descriptors, USER + queue.used, USER + queue.avail, 0x100000 + queue.used)));
  frontend.send(MESSAGE.SET_VRING_KICK, u64(0), [queue.kickFd]);
  assert.ok(await frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
  const from = memory.take(8);
  const to = memory.take(64 << 10, 4096);
  const bit = (gpa: number): number => (log.u8[gpa >> 15] >> ((gpa >> 12) & 7)) & 1;
  queue.put(0, { address: 0x100000 + from, length: 8, flags: 1, next: 1 });
  queue.put(1, { address: 0x100000 + to + 4092, length: 9000, flags: 2, next: 0 });
  queue.offer(0);
  queue.kick();
  await queue.wait();
  assert.deepEqual([0, 4096, 8192].map((o) => bit(0x100000 + to + o)), [1, 1, 0], 'the pages of the 8 bytes written');
  assert.equal(bit(0x100000 + queue.used), 1, 'the used ring');
  assert.equal(bit(0x100000 + from), bit(0x100000 + queue.used) & Number((from >> 12) === (queue.used >> 12)));
  log.u8.fill(0);
  assert.ok(await frontend.ack(MESSAGE.SET_FEATURES, u64(features & ~F_LOG_ALL)));
  queue.offer(0);
  queue.kick();
  await queue.wait();
  assert.ok(log.u8.every((b) => b === 0), 'nothing is logged afterwards');
  frontend.close();
  await backend.close();
  for (const m of [memory, log]) m.close();
  queue.close();
});

test('RESET_DEVICE and status 0 reset the device and stop its rings', () =>
  withRing(async ({ device, frontend, queue }) => {
    await echoes(queue, 'before');
    const { resets } = device;
    assert.ok(await frontend.ack(MESSAGE.SET_STATUS, u64(0xf)));
    assert.equal(await frontend.getU64(MESSAGE.GET_STATUS), 0xfn);
    assert.equal(device.resets, resets);
    assert.ok(await frontend.ack(MESSAGE.SET_STATUS, u64(0)));
    assert.ok(await frontend.ack(MESSAGE.RESET_DEVICE));
    assert.equal(device.resets, resets + 2);
    queue.chain([text('x')], [8]);
    queue.kick();
    await sleep(20);
    assert.equal(queue.take().length, 0);
    assert.ok(await frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
    assert.equal((await queue.wait()).length, 1);
  }));

test('a frontend that goes leaves a backend that takes the next one, and requests in flight finish first', async () => {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 16);
  const first = Frontend.connect(backend.path);
  await first.negotiate({ features: F_LOG_ALL });
  assert.ok(await first.setMemory(memory));
  await queue.start(first);
  device.hold = true;
  queue.chain([text('in flight')], [16]);
  queue.kick();
  while (device.held.length === 0) await sleep(1);
  first.close();
  const second = Frontend.connect(backend.path);
  await sleep(20);
  assert.equal(device.resets, 0, 'the device is not reset under a request');
  device.hold = false;
  device.release();
  assert.equal((await queue.wait()).length, 1);
  await second.negotiate({ features: F_LOG_ALL });
  assert.equal(device.resets, 1);
  assert.ok(await second.setMemory(memory));
  await queue.start(second);
  await echoes(queue, 'the second frontend');
  second.close();
  await backend.close();
  queue.close();
  memory.close();
});

test('1,000 frontends come and go without a descriptor lost', async () => {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 16);
  const cycle = async (): Promise<void> => {
    const frontend = Frontend.connect(backend.path);
    await frontend.negotiate({ features: F_LOG_ALL });
    await frontend.setMemory(memory);
    await queue.start(frontend);
    queue.chain([text('x')], [8]);
    queue.kick();
    await queue.wait();
    memory.rewind(mark);
    frontend.close();
  };
  const { mark } = memory;
  for (let i = 0; i < 10; i++) await cycle();
  await sleep(50);
  const before = openDescriptors();
  for (let i = 0; i < 1000; i++) await cycle();
  await sleep(50);
  assert.equal(openDescriptors(), before);
  await backend.close();
  queue.close();
  memory.close();
});
