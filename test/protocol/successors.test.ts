/**
 * Who comes after a frontend, or beside it.
 *
 * A frontend that comes while another is served hears so at once; one that comes when the other is gone is served, however its end was noticed: its socket closed
 * before or after the newcomer, with messages left unread, by an error of the protocol, with requests in flight.
 */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, MESSAGE, SharedMemory, u32 } from '../support/frontend.js';

const MEMORY_BYTES = 1 << 20;
const RING = 16;

/** A frontend of which a request waits in the device. */
async function waiting(): Promise<{ device: EchoDevice; backend: TestBackend; memory: SharedMemory; queue: DriverQueue; first: Frontend }> {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, RING);
  const first = Frontend.connect(backend.path);
  await first.negotiate({ features: F_LOG_ALL });
  assert.ok(await first.setMemory(memory));
  await queue.start(first);
  device.hold = true;
  queue.chain([u32(1)], [16]);
  queue.kick();
  while (device.held.length === 0) await turn();
  return { device, backend, memory, queue, first };
}

test('a frontend that comes while another is served is closed at once, and the log says by whom the share is in use', async () => {
  const backend = new TestBackend(new EchoDevice());
  const first = Frontend.connect(backend.path);
  await first.negotiate();
  const before = openDescriptors();
  for (let i = 0; i < 20; i++) {
    const second = Frontend.connect(backend.path);
    second.send(MESSAGE.GET_FEATURES);
    assert.ok(await second.closed());
    second.close();
    await first.getU64(MESSAGE.GET_FEATURES);
  }
  const line = `a frontend was turned away: the share is in use by process ${process.pid} of user ${process.getuid!()}`;
  assert.ok(backend.log.includes(line), backend.log.join('\n'));
  assert.equal(openDescriptors(), before);
  first.close();
  await backend.close();
});

for (const [how, leave] of [
  ['has closed its socket', (f) => f.close()],
  ['has closed its socket behind messages that nobody has read', (f) => {
    for (let i = 0; i < 100; i++) f.send(MESSAGE.SET_OWNER);
    f.close();
  }],
  ['has broken the protocol', (f) => f.send(200)],
] as const satisfies readonly (readonly [string, (f: Frontend) => void])[]) {
  test(`a frontend that comes when the former one ${how} waits for its requests, and is served`, async () => {
    const { device, backend, memory, queue, first } = await waiting();
    leave(first);
    if (how === 'has broken the protocol') while (!backend.log.some((line) => line.startsWith('frontend disconnected'))) await turn();
    const successors = [1, 2].map(() => Frontend.connect(backend.path));
    const features = successors[0].getU64(MESSAGE.GET_FEATURES);
    for (let i = 0; i < 10; i++) await turn();
    assert.equal(device.resets, 0);
    device.hold = false;
    device.release();
    assert.ok((await features) > 0n);
    assert.equal(device.resets, 1);
    assert.ok(await successors[1].closed(), 'the third finds the second');
    for (const one of successors) one.close();
    await backend.close();
    queue.close();
    memory.close();
  });
}

test('a daemon that ends closes who waits for a former frontend', async () => {
  const { device, backend, memory, queue, first } = await waiting();
  first.close();
  const second = Frontend.connect(backend.path);
  for (let i = 0; i < 10; i++) await turn();
  const closed = backend.close();
  device.release();
  await closed;
  assert.ok(await second.closed());
  second.close();
  queue.close();
  memory.close();
});
