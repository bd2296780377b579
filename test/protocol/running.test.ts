/** Messages that come while rings run, wait or end: what is in flight is neither lost nor left without its memory. */
import assert from 'node:assert/strict';
import { setTimeout as sleep } from 'node:timers/promises';
import { test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, MESSAGE, NEED_REPLY, SharedMemory, USER, concat, eventfd, u32, u64 } from '../support/frontend.js';

const MEMORY_BYTES = 4 << 20;
const RING = 16;

class Setup {
  readonly device = new EchoDevice();
  readonly backend = new TestBackend(this.device);
  readonly memory = new SharedMemory(MEMORY_BYTES);
  readonly queues = [0, 1].map((i) => new DriverQueue(this.memory, i, RING));
  readonly frontend = Frontend.connect(this.backend.path);

  /** Memory set, both rings running. */
  async start(): Promise<void> {
    await this.frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await this.frontend.setMemory(this.memory));
    for (const queue of this.queues) await queue.start(this.frontend);
  }

  async echoes(index: number): Promise<void> {
    const queue = this.queues[index];
    const { head } = queue.chain([u32(1, 2)], [8]);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
  }

  /** A request that the device keeps until release(). */
  async hold(index: number): Promise<void> {
    const { held } = this.device;
    const before = held.length;
    this.device.hold = true;
    this.queues[index].chain([u32(1)], [8]);
    this.queues[index].kick();
    while (held.length === before) await sleep(1);
    this.device.hold = false;
  }

  async end(): Promise<void> {
    this.device.release();
    this.frontend.close();
    await this.backend.close();
    for (const queue of this.queues) queue.close();
    this.memory.close();
  }
}

/** A test with both rings running. */
function running(fact: string, body: (s: Setup) => Promise<void>): void {
  test(fact, async () => {
    const setup = new Setup();
    try {
      await setup.start();
      await body(setup);
    } finally {
      await setup.end();
    }
  });
}

async function newRecord(frontend: Frontend): Promise<{ fd: number; payload: Uint8Array }> {
  const made = await frontend.call(MESSAGE.GET_INFLIGHT_FD, concat(u64(0, 0), u32((RING << 16) | 2, 0)));
  return { fd: made.fds[0], payload: new Uint8Array(made.payload.buffer) };
}

running('the inflight record can be replaced while rings run and requests are in flight', async (s) => {
  for (let round = 0; round < 3; round++) {
    const { fd, payload } = await newRecord(s.frontend);
    await s.hold(0);
    s.frontend.send(MESSAGE.SET_INFLIGHT_FD, payload, [fd], NEED_REPLY);
    await sleep(10);
    assert.equal(s.queues[0].take().length, 0, 'not answered yet');
    s.device.release();
    assert.equal((await s.frontend.reply())!.payload.getBigUint64(0, true), 0n);
    assert.equal(s.queues[0].take().length, 1);
    // Started anew, so that it uses this record whatever it used before
    assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_KICK, u64(0), [s.queues[0].kickFd]));
    for (const index of [0, 1]) await s.echoes(index);
    c.close(fd);
  }
});

running('an inflight record for rings of another size keeps them stopped, and a right one starts them', async (s) => {
  const { fd, payload } = await newRecord(s.frontend);
  const view = new SharedMemory(4096);
  view.dv.setUint16(8, 1, true); // version
  view.dv.setUint16(10, RING / 2, true); // desc_num
  assert.equal(await s.frontend.ack(MESSAGE.SET_INFLIGHT_FD, concat(u64(4096, 0), u32((RING << 16) | 1, 0)), [view.fd]), false);
  await s.echoes(1);
  assert.ok(await s.frontend.ack(MESSAGE.SET_INFLIGHT_FD, payload, [fd]));
  await s.echoes(0);
  c.close(fd);
  view.close();
});

running('a SET_MEM_TABLE that is refused changes nothing', async (s) => {
  const good = u64(GPA, MEMORY_BYTES, USER, 0);
  for (const bad of [u64(GPA + MEMORY_BYTES, MEMORY_BYTES + 4096, USER + MEMORY_BYTES, 0), good]) {
    assert.equal(await s.frontend.ack(MESSAGE.SET_MEM_TABLE, concat(u32(2, 0), good, bad), [s.memory.fd, s.memory.fd]), false);
    for (const index of [0, 1]) await s.echoes(index);
  }
});

running('the descriptor that comes with REM_MEM_REG is closed', async (s) => {
  const other = new SharedMemory(1 << 16);
  const region = concat(u64(0), u64(GPA + 2 * MEMORY_BYTES, other.bytes, 0x1000_0000, 0));
  const before = openDescriptors();
  assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, region, [other.fd]));
  assert.ok(await s.frontend.ack(MESSAGE.REM_MEM_REG, region, [other.fd]));
  assert.equal(openDescriptors(), before);
  other.close();
});

running('messages behind one that waits for a drain are handled in order after it', async (s) => {
  await s.hold(0);
  s.frontend.send(MESSAGE.GET_VRING_BASE, u32(0, 0));
  s.frontend.send(MESSAGE.GET_QUEUE_NUM);
  s.frontend.send(MESSAGE.SET_STATUS, u64(3), [], NEED_REPLY);
  s.frontend.send(MESSAGE.GET_STATUS);
  await sleep(10);
  await s.echoes(1);
  s.device.release();
  const codes = [];
  for (let i = 0; i < 4; i++) codes.push((await s.frontend.reply())!.code);
  assert.deepEqual(codes, [MESSAGE.GET_VRING_BASE, MESSAGE.GET_QUEUE_NUM, MESSAGE.SET_STATUS, MESSAGE.GET_STATUS]);
});

for (const [name, code, payload] of [
  ['SET_VRING_KICK', MESSAGE.SET_VRING_KICK, u64(0)],
  ['GET_VRING_BASE', MESSAGE.GET_VRING_BASE, u32(0, 0)],
  ['SET_MEM_TABLE', MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(GPA, MEMORY_BYTES, USER, 0))],
  ['REM_MEM_REG', MESSAGE.REM_MEM_REG, concat(u64(0), u64(GPA + MEMORY_BYTES, MEMORY_BYTES, USER + MEMORY_BYTES, 0))],
] as const) {
  test(`the backend can stop while ${name} waits for a drain, and every descriptor is closed`, async () => {
    const before = openDescriptors();
    const s = new Setup();
    await s.start();
    await s.hold(0);
    await s.hold(1);
    if (code === MESSAGE.REM_MEM_REG) assert.ok(await s.frontend.ack(MESSAGE.ADD_MEM_REG, payload, [s.memory.fd]));
    const fds: number[] = code === MESSAGE.SET_VRING_KICK ? [s.queues[0].kickFd] : code === MESSAGE.SET_MEM_TABLE ? [s.memory.fd] : [];
    s.frontend.send(code, payload, fds);
    await sleep(10);
    let stopped = 0;
    const stops = [s.backend.close(), s.backend.close()].map((stop) => stop.then(() => stopped++));
    await sleep(10);
    assert.equal(stopped, 0, 'nobody is told that it has stopped while requests are in flight');
    assert.equal(s.device.resets, 0);
    s.device.release();
    await Promise.all(stops);
    assert.equal(s.device.resets, 1);
    assert.deepEqual(s.queues.map((q) => q.take().length), [1, 1], 'both were answered into mapped memory');
    s.queues[0].chain([u32(1)], [8]);
    s.queues[0].kick();
    await sleep(10);
    assert.equal(s.queues[0].take().length, 0, 'no ring runs any more');
    await s.end();
    assert.ok(openDescriptors() <= before, `${openDescriptors()} descriptors, ${before} before`);
  });
}

running('a frontend that does not read its replies holds up only itself', async (s) => {
  const before = openDescriptors();
  const payload = concat(u64(0, 0), u32((RING << 16) | 2, 0));
  let sent = 0;
  for (; sent < 2000; sent++) {
    if (sent % 10 === 9) await s.echoes(1); // the rings go on, however full the socket is
    if (!s.frontend.trySend(sent % 50 === 0 ? MESSAGE.GET_INFLIGHT_FD : MESSAGE.GET_QUEUE_NUM, sent % 50 === 0 ? payload : new Uint8Array(0))) break;
  }
  await sleep(30);
  assert.ok(sent > 100);
  for (let i = 0; i < sent; i++) {
    const reply = await s.frontend.reply();
    assert.equal(reply?.code, i % 50 === 0 ? MESSAGE.GET_INFLIGHT_FD : MESSAGE.GET_QUEUE_NUM, `reply ${i} of ${sent}`);
    assert.equal(reply.fds.length, i % 50 === 0 ? 1 : 0);
    reply.fds.forEach((fd) => c.close(fd));
  }
  assert.equal(openDescriptors(), before);
});

running('a message may come a byte at a time, and many in one write', async (s) => {
  const kick = concat(u32(MESSAGE.SET_VRING_CALL, 1 | NEED_REPLY, 8), u64(0));
  const call = eventfd();
  for (let at = 0; at < kick.length; at++) {
    s.frontend.raw(kick.subarray(at, at + 1), at === 0 ? [call] : []);
    if (at % 5 === 0) await sleep(1);
  }
  assert.equal((await s.frontend.reply())!.payload.getBigUint64(0, true), 0n);
  s.frontend.raw(concat(...Array.from({ length: 150 }, (_, i) => u32(i % 2 === 0 ? MESSAGE.GET_FEATURES : MESSAGE.GET_QUEUE_NUM, 1, 0))));
  for (let i = 0; i < 150; i++) assert.equal((await s.frontend.reply())!.code, i % 2 === 0 ? MESSAGE.GET_FEATURES : MESSAGE.GET_QUEUE_NUM);
  c.close(call);
});

running('descriptors that come with every byte of a message are too many, and are closed', async (s) => {
  const before = openDescriptors();
  const message = concat(u32(MESSAGE.SET_VRING_CALL, 1, 8), u64(0));
  const many = Array<number>(100).fill(s.memory.fd);
  for (let at = 0; at < 4; at++) s.frontend.raw(message.subarray(at, at + 1), many);
  assert.ok(await s.frontend.closed());
  assert.match(s.backend.log.join('\n'), /more descriptors than fit/);
  while (openDescriptors() > before) await sleep(1);
});

running('a driver that has more requests waiting than its ring has descriptors loses that ring only', async (s) => {
  s.device.hold = true;
  const queue = s.queues[0];
  queue.put(0, { address: GPA, length: 8, flags: 0, next: 0 });
  for (let i = 0; i < RING; i++) queue.offer(0);
  queue.kick();
  while (s.device.held.length < RING) await sleep(1);
  queue.offer(0);
  queue.kick();
  while (!/requests at once/.test(s.backend.log.join('\n'))) await sleep(1);
  assert.equal(s.device.held.length, RING);
  s.device.hold = false;
  s.device.release();
  await s.echoes(1);
});

running('a ring stopped with GET_VRING_BASE goes on in another connection from that base', async (s) => {
  for (let i = 0; i < 5; i++) await s.echoes(0);
  s.frontend.send(MESSAGE.GET_VRING_BASE, u32(0, 0));
  const base = (await s.frontend.reply())!.payload.getUint32(4, true);
  assert.equal(base, 5);
  const other = new TestBackend(new EchoDevice());
  const target = Frontend.connect(other.path);
  await target.negotiate({ features: F_LOG_ALL });
  assert.ok(await target.setMemory(s.memory));
  await s.queues[0].start(target, { base });
  await s.echoes(0);
  target.close();
  await other.close();
});
