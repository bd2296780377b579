/** Kick, call and error descriptors that are closed on the other side, or are none: nothing spins, nothing else fails. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, before, test } from 'node:test';
import { AF_UNIX, EFD_CLOEXEC, O_DIRECTORY, O_NONBLOCK, O_PATH, O_RDONLY, O_RDWR, O_WRONLY, SOCK_STREAM } from '../../src/ffi/constants.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, MESSAGE, SharedMemory, eventfd, u32, u64 } from '../support/frontend.js';

const RING = 16;
const PAUSE_MS = 200;
const memory = NativeMemory.allocate(8192);
const open = (path: string, flags: number): number => c.check(c.open(path, flags, 0), 'open', path);

let directory = '';
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'bucketfsd-closed-'));
  execFileSync('mkfifo', [join(directory, 'fifo')]);
  writeFileSync(join(directory, 'file'), 'file');
});
after(() => rmSync(directory, { recursive: true, force: true }));

/** Two running rings. */
class Setup {
  readonly device = new EchoDevice();
  readonly backend = new TestBackend(this.device);
  readonly memory = new SharedMemory(1 << 20);
  readonly queues = [0, 1].map((i) => new DriverQueue(this.memory, i, RING));
  frontend = Frontend.connect(this.backend.path);
  readonly #closed = new Set<DriverQueue>();

  async start(): Promise<void> {
    await this.frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await this.frontend.setMemory(this.memory));
    for (const queue of this.queues) await queue.start(this.frontend);
    for (const index of [0, 1]) await this.echoes(index);
  }

  /** Close the driver's copies of its descriptors, once. */
  closeQueue(queue: DriverQueue): void {
    if (!this.#closed.has(queue)) queue.close();
    this.#closed.add(queue);
  }

  async echoes(index: number): Promise<void> {
    const queue = this.queues[index];
    queue.setUsedEvent(queue.lastUsed); // call me for this one
    const { head } = queue.chain([u32(1, 2)], [8]);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
  }
}

function running(fact: string, body: (s: Setup) => Promise<void>): void {
  test(fact, async () => {
    const setup = new Setup();
    try {
      await setup.start();
      await body(setup);
    } finally {
      setup.frontend.close();
      await setup.backend.close();
      for (const queue of setup.queues) setup.closeQueue(queue);
      setup.memory.close();
    }
  });
}

/** A loop that a descriptor wakes all the time takes a processor; one that sleeps takes next to nothing. */
async function sleeps(): Promise<void> {
  await sleep(10);
  const before = process.cpuUsage();
  await sleep(PAUSE_MS);
  const { user, system } = process.cpuUsage(before);
  assert.ok(user + system < PAUSE_MS * 500, `${user + system} µs of CPU time while nothing happens for ${PAUSE_MS} ms`);
}

function peerless(): number {
  c.check(c.socketpair(AF_UNIX, SOCK_STREAM | O_NONBLOCK, 0, memory.address), 'socketpair');
  const [fd, peer] = memory.i32;
  c.close(peer);
  return fd;
}

/** The end of a pipe whose other end is closed. */
function brokenPipe(flags: number): number {
  const both = open(join(directory, 'fifo'), O_RDWR | O_NONBLOCK);
  const end = open(join(directory, 'fifo'), flags | O_NONBLOCK);
  c.close(both);
  return end;
}

const NO_EVENTFDS: readonly (readonly [name: string, make: () => number])[] = [
  ['a pipe nobody writes to', () => brokenPipe(O_RDONLY)],
  ['a pipe nobody reads from', () => brokenPipe(O_WRONLY)],
  ['a socket whose peer is closed', peerless],
  ['a regular file', () => open(join(directory, 'file'), O_RDWR)],
  ['a directory', () => open(directory, O_RDONLY | O_DIRECTORY)],
  ['a descriptor without access', () => open(join(directory, 'file'), O_PATH)],
  ['/dev/null', () => open('/dev/null', O_RDWR)],
  ['/dev/zero', () => open('/dev/zero', O_RDWR)],
];

for (const [name, make] of NO_EVENTFDS) {
  running(`${name} as kick, call or error descriptor is refused, and the rings go on`, async (s) => {
    const fd = make();
    const before = openDescriptors();
    for (const code of [MESSAGE.SET_VRING_KICK, MESSAGE.SET_VRING_CALL, MESSAGE.SET_VRING_ERR]) {
      assert.equal(await s.frontend.ack(code, u64(0), [fd]), false);
      for (const index of [0, 1]) await s.echoes(index);
    }
    await sleeps();
    assert.equal(openDescriptors(), before, 'what came with the messages is closed');
    // Without NEED_REPLY the connection ends, and a fresh one works
    s.frontend.send(MESSAGE.SET_VRING_KICK, u64(0), [fd]);
    assert.ok(await s.frontend.closed());
    assert.match(s.backend.log.join('\n'), /no eventfd/);
    c.close(fd);
    s.frontend.close();
    s.frontend = Frontend.connect(s.backend.path);
    await s.start();
  });
}

running('a frontend that closes its copies of the eventfds is not heard, others are, and new ones bring the ring back', async (s) => {
  const [quiet] = s.queues;
  s.closeQueue(quiet);
  await s.echoes(1);
  await sleeps();
  // Nobody can kick this ring any more: its request is found when a new descriptor comes
  const { head } = quiet.chain([u32(1, 2)], [8]);
  await sleeps();
  assert.deepEqual(quiet.take(), []);
  const kick = eventfd();
  const call = eventfd();
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_CALL, u64(0), [call]));
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_KICK, u64(0), [kick]));
  assert.deepEqual(await quiet.wait(), [{ head, length: 8 }]);
  assert.equal(c.read(call, memory.address, 8), 8, 'called by the new descriptor');
  for (const fd of [kick, call]) c.close(fd);
});

running('a frontend that ends with its eventfds closed leaves a backend that sleeps, and takes the next one', async (s) => {
  for (const queue of s.queues) s.closeQueue(queue);
  s.frontend.close();
  await sleeps();
  const queue = new DriverQueue(s.memory, 0, RING);
  s.frontend = Frontend.connect(s.backend.path);
  await s.frontend.negotiate({ features: F_LOG_ALL });
  assert.ok(await s.frontend.setMemory(s.memory));
  await queue.start(s.frontend);
  const { head } = queue.chain([u32(1, 2)], [8]);
  queue.kick();
  assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
  queue.close();
});

running('a call eventfd that is full, and was made to block, holds nothing up', async (s) => {
  const call = c.check(c.eventfd(0, EFD_CLOEXEC), 'eventfd');
  const full = new BigUint64Array(memory.buffer, 0, 1);
  full[0] = 2n ** 64n - 3n; // the ring's first call fills it
  assert.equal(c.write(call, memory.address, 8), 8);
  assert.ok(await s.frontend.ack(MESSAGE.SET_VRING_CALL, u64(0), [call]));
  for (let i = 0; i < 2 * RING; i++) for (const index of [0, 1]) await s.echoes(index);
  await sleeps();
  c.close(call);
});

running('a kick eventfd that is full is one kick', async (s) => {
  const full = new BigUint64Array(memory.buffer, 0, 1);
  full[0] = 2n ** 64n - 2n;
  assert.equal(c.write(s.queues[0].kickFd, memory.address, 8), 8);
  await sleeps();
  for (const index of [0, 1]) await s.echoes(index);
});
