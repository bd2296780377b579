/** What a hostile or broken frontend or driver can do: that request or connection fails, and nothing else. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { F_GET_SEALS, F_SEAL_SHRINK, MFD_ALLOW_SEALING, MFD_CLOEXEC } from '../../src/ffi/constants.js';
import { EchoDevice, TestBackend, openDescriptors } from '../support/backend.js';
import { DriverQueue, INDIRECT, NEXT, WRITE, type Descriptor } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, MESSAGE, SharedMemory, USER, concat, eventfd, u32, u64 } from '../support/frontend.js';

const MEMORY_BYTES = 1 << 20;
const FALLOC_FL_PUNCH_HOLE_KEEP_SIZE = 3;

interface Bad {
  name: string;
  /** Does the bad thing; the memory is not yet set. */
  act: (f: Frontend, memory: SharedMemory) => void;
  log: RegExp;
}

const header = (code: number, flags: number, size: number): Uint8Array => u32(code, flags, size);
const table = (...regions: Uint8Array[]): Uint8Array => concat(u32(regions.length, 0), ...regions);
const region = (gpa: number | bigint, size: number | bigint, user: number | bigint, offset: number | bigint): Uint8Array => u64(gpa, size, user, offset);

/** Messages without NEED_REPLY: the connection is dropped with a clear log line. */
const DROPPED: Bad[] = [
  { name: 'a wrong version', act: (f) => f.raw(header(1, 2, 0)), log: /version 2/ },
  { name: 'a payload larger than any message', act: (f) => f.raw(header(5, 1, 1 << 20)), log: /1048576 bytes/ },
  { name: 'an unknown message', act: (f) => f.send(200), log: /unknown message 200/ },
  { name: 'too short a payload', act: (f) => f.send(MESSAGE.SET_VRING_NUM, u32(0)), log: /SET_VRING_NUM of 4 bytes/ },
  { name: 'too long a payload', act: (f) => f.send(MESSAGE.SET_FEATURES, u64(0, 0)), log: /SET_FEATURES of 16 bytes/ },
  { name: 'features that were not offered', act: (f) => f.send(MESSAGE.SET_FEATURES, u64(1n << 50n)), log: /not offered/ },
  { name: 'protocol features that were not offered', act: (f) => f.send(MESSAGE.SET_PROTOCOL_FEATURES, u64(1n << 20n)), log: /not offered/ },
  { name: 'a message whose feature was not negotiated', act: (f) => {
    f.send(MESSAGE.SET_PROTOCOL_FEATURES, u64(0));
    f.send(MESSAGE.GET_MAX_MEM_SLOTS);
  }, log: /GET_MAX_MEM_SLOTS without/ },
  { name: 'fewer descriptors than regions', act: (f, m) => f.send(MESSAGE.SET_MEM_TABLE, table(region(GPA, 4096, USER, 0), region(GPA + 8192, 4096, USER + 8192, 0)), [m.fd]), log: /2 regions with 1 descriptors/ },
  { name: 'more descriptors than regions', act: (f, m) => f.send(MESSAGE.SET_MEM_TABLE, table(region(GPA, 4096, USER, 0)), [m.fd, m.fd, m.fd]), log: /1 regions with 3 descriptors/ },
  { name: 'more descriptors than any message has', act: (f, m) => f.send(MESSAGE.SET_MEM_TABLE, table(), Array<number>(60).fill(m.fd)), log: /descriptors/ },
  { name: 'a memory slot without its descriptor', act: (f) => f.send(MESSAGE.ADD_MEM_REG, concat(u64(0), region(GPA, 4096, USER, 0))), log: /ADD_MEM_REG with 0 descriptors/ },
  { name: 'a kick without the descriptor that it promises', act: (f) => f.send(MESSAGE.SET_VRING_KICK, u64(0)), log: /disagree/ },
  { name: 'descriptors with a message that has none', act: (f, m) => f.send(MESSAGE.GET_FEATURES, new Uint8Array(0), [m.fd]), log: /GET_FEATURES with 1 descriptors/ },
  { name: 'a table that counts 4 billion regions', act: (f) => f.send(MESSAGE.SET_MEM_TABLE, u32(0xffffffff, 0)), log: /4294967295 regions/ },
  { name: 'a queue that does not exist', act: (f) => f.send(MESSAGE.SET_VRING_NUM, u32(65, 16)), log: /queue 65/ },
  { name: 'a kick for queue 255', act: (f) => f.send(MESSAGE.SET_VRING_KICK, u64(0x1ff)), log: /queue 255/ },
  { name: 'a kick that is no eventfd', act: (f, m) => f.send(MESSAGE.SET_VRING_KICK, u64(0), [m.fd]), log: /no eventfd/ },
  { name: 'a call that says no descriptor and brings one', act: (f, m) => f.send(MESSAGE.SET_VRING_CALL, u64(0x100), [m.fd]), log: /disagree/ },
  { name: 'a ring size of 0', act: (f) => f.send(MESSAGE.SET_VRING_NUM, u32(0, 0)), log: /ring of 0/ },
  { name: 'a ring size of 3', act: (f) => f.send(MESSAGE.SET_VRING_NUM, u32(0, 3)), log: /ring of 3/ },
  { name: 'a ring size of 65536', act: (f) => f.send(MESSAGE.SET_VRING_NUM, u32(0, 65536)), log: /ring of 65536/ },
  { name: 'SET_VRING_ENABLE 2', act: (f) => f.send(MESSAGE.SET_VRING_ENABLE, u32(0, 2)), log: /ENABLE 2/ },
  { name: 'a ring address beyond all machines', act: (f) => f.send(MESSAGE.SET_VRING_ADDR, concat(u32(0, 0), u64(1n << 63n, 0, 0, 0))), log: /ring address/ },
];

for (const { name, act, log } of DROPPED) {
  test(`${name}: the connection is dropped, the next one works`, async () => {
    const backend = new TestBackend(new EchoDevice());
    const memory = new SharedMemory(MEMORY_BYTES);
    const before = openDescriptors();
    const bad = Frontend.connect(backend.path);
    try {
      bad.send(MESSAGE.SET_PROTOCOL_FEATURES, u64((1n << 0n) | (1n << 15n)));
      act(bad, memory);
      assert.ok(await bad.closed());
      assert.match(backend.log.join('\n'), log);
      bad.close();
      const good = Frontend.connect(backend.path);
      await good.negotiate();
      assert.ok(await good.setMemory(memory));
      good.close();
      while (openDescriptors() > before) await new Promise((resolve) => setImmediate(resolve));
    } finally {
      await backend.close();
      memory.close();
    }
  });
}

/** With NEED_REPLY: refused, and the connection goes on. */
const REFUSED: { name: string; code: number; payload: Uint8Array; fds?: (m: SharedMemory) => number[] }[] = [
  { name: 'a region larger than its file', code: MESSAGE.SET_MEM_TABLE, payload: table(region(GPA, MEMORY_BYTES + 4096, USER, 0)), fds: (m) => [m.fd] },
  { name: 'a region that ends behind its file', code: MESSAGE.SET_MEM_TABLE, payload: table(region(GPA, MEMORY_BYTES, USER, 4096)), fds: (m) => [m.fd] },
  { name: 'a region of no bytes', code: MESSAGE.SET_MEM_TABLE, payload: table(region(GPA, 0, USER, 0)), fds: (m) => [m.fd] },
  { name: 'a region whose address overflows', code: MESSAGE.SET_MEM_TABLE, payload: table(region((1n << 64n) - 4096n, 8192, USER, 0)), fds: (m) => [m.fd] },
  { name: 'regions that overlap', code: MESSAGE.SET_MEM_TABLE, payload: table(region(GPA, 8192, USER, 0), region(GPA + 4096, 8192, USER + 65536, 0)), fds: (m) => [m.fd, m.fd] },
  { name: 'regions that overlap in the frontend', code: MESSAGE.SET_MEM_TABLE, payload: table(region(GPA, 8192, USER, 0), region(GPA + 65536, 8192, USER + 4096, 0)), fds: (m) => [m.fd, m.fd] },
  { name: 'an unknown message', code: 99, payload: new Uint8Array(0) },
  { name: 'a dirty log that is told of by no eventfd', code: MESSAGE.SET_LOG_FD, payload: new Uint8Array(0), fds: (m) => [m.fd] },
  { name: 'a log larger than its file', code: MESSAGE.SET_INFLIGHT_FD, payload: concat(u64(1 << 30, 0), u32((64 << 16) | 4, 0)), fds: (m) => [m.fd] },
];

test('what is refused with NEED_REPLY leaves the connection as it was', async () => {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(MEMORY_BYTES);
  const frontend = Frontend.connect(backend.path);
  await frontend.negotiate();
  for (const { name, code, payload, fds } of REFUSED) {
    assert.equal(await frontend.ack(code, payload, fds?.(memory) ?? []), false, name);
  }
  assert.ok(await frontend.setMemory(memory));
  frontend.close();
  await backend.close();
  memory.close();
});

test('guest memory that can be sealed is sealed against shrinking', async () => {
  const backend = new TestBackend(new EchoDevice());
  for (const flags of [MFD_CLOEXEC | MFD_ALLOW_SEALING, MFD_CLOEXEC]) {
    const memory = new SharedMemory(MEMORY_BYTES, flags);
    const frontend = Frontend.connect(backend.path);
    await frontend.negotiate();
    assert.ok(await frontend.setMemory(memory));
    assert.equal((c.fcntl(memory.fd, F_GET_SEALS, 0) & F_SEAL_SHRINK) !== 0, (flags & MFD_ALLOW_SEALING) !== 0);
    frontend.close();
    memory.close();
  }
  await backend.close();
});

/** Between a look at the size and the seal it could shrink. */
test('guest memory is sealed before its size is looked at', async () => {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(MEMORY_BYTES);
  const frontend = Frontend.connect(backend.path);
  await frontend.negotiate();
  const beyond = table(region(GPA, MEMORY_BYTES + 4096, USER, 0));
  assert.equal(await frontend.ack(MESSAGE.SET_MEM_TABLE, beyond, [memory.fd]), false);
  assert.notEqual(c.fcntl(memory.fd, F_GET_SEALS, 0) & F_SEAL_SHRINK, 0);
  frontend.close();
  memory.close();
  await backend.close();
});

test('memory that is sealed against shrinking can still grow, and have holes punched into it as a balloon does', async () => {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(MEMORY_BYTES);
  const frontend = Frontend.connect(backend.path);
  await frontend.negotiate();
  assert.ok(await frontend.setMemory(memory));
  assert.equal(c.ftruncate(memory.fd, MEMORY_BYTES - 4096), -1);
  assert.equal(c.errno(), E.PERM);
  memory.u8.fill(1, 8192, 12288);
  assert.equal(c.fallocate(memory.fd, FALLOC_FL_PUNCH_HOLE_KEEP_SIZE, 8192, 4096), 0);
  assert.equal(memory.u8[8192], 0);
  assert.equal(c.ftruncate(memory.fd, MEMORY_BYTES + 4096), 0);
  frontend.close();
  memory.close();
  await backend.close();
});

test('truncated messages are waited for, and forgotten with the connection', async () => {
  const backend = new TestBackend(new EchoDevice());
  const frontend = Frontend.connect(backend.path);
  const fd = eventfd();
  const before = openDescriptors();
  frontend.raw(header(MESSAGE.SET_VRING_KICK, 1, 8), [fd]);
  frontend.raw(u32(0));
  await new Promise((resolve) => setTimeout(resolve, 20));
  frontend.close();
  while (openDescriptors() >= before) await new Promise((resolve) => setImmediate(resolve));
  c.close(fd);
  await backend.close();
});

/** Rings that cannot be: starting them is refused. */
test('unaligned rings and rings outside memory are refused', async () => {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(MEMORY_BYTES);
  const kick = eventfd();
  const cases: [string, number, number, number][] = [
    ['descriptors at 8', 4096 + 8, 8192, 12288], ['avail at 1', 4096, 8192, 12289], ['used at 2', 4096, 8194, 12288],
    ['descriptors outside', MEMORY_BYTES, 8192, 12288], ['used half outside', 4096, MEMORY_BYTES - 16, 12288], ['avail at 2^45', 4096, 8192, 2 ** 45],
  ];
  for (const [name, descriptors, used, avail] of cases) {
    const frontend = Frontend.connect(backend.path);
    await frontend.negotiate();
    assert.ok(await frontend.setMemory(memory));
    frontend.send(MESSAGE.SET_VRING_NUM, u32(0, 64));
    frontend.send(MESSAGE.SET_VRING_ADDR, concat(u32(0, 0), u64(USER + descriptors, USER + used, USER + avail, 0)));
    frontend.send(MESSAGE.SET_VRING_KICK, u64(0), [kick]);
    assert.equal(await frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)), false, name);
    frontend.close();
  }
  c.close(kick);
  await backend.close();
  memory.close();
});

const good = (at: number): number => GPA + at;

/** Chains that make no sense: returned with nothing written, and the ring goes on. */
const CHAINS: { name: string; put: (q: DriverQueue) => void; log: RegExp }[] = [
  { name: 'a loop', put: (q) => one(q, { address: good(0x8000), length: 8, flags: NEXT, next: 0 }), log: /loop/ },
  { name: 'a next outside the table', put: (q) => one(q, { address: good(0x8000), length: 8, flags: NEXT, next: 60000 }), log: /index 60000/ },
  { name: 'an address outside memory', put: (q) => one(q, { address: 0x1000, length: 8, flags: 0, next: 0 }), log: /outside memory/ },
  { name: 'a buffer that runs out of memory', put: (q) => one(q, { address: good(MEMORY_BYTES - 4), length: 8, flags: 0, next: 0 }), log: /outside memory/ },
  { name: 'a length that overflows', put: (q) => one(q, { address: (1n << 64n) - 16n, length: 0xffffffff, flags: 0, next: 0 }), log: /outside memory/ },
  { name: 'readable after writable', put: (q) => {
    q.put(0, { address: good(0x8000), length: 8, flags: WRITE | NEXT, next: 1 });
    q.put(1, { address: good(0x9000), length: 8, flags: 0, next: 0 });
  }, log: /readable descriptor after/ },
  { name: 'an indirect table of 24 bytes', put: (q) => one(q, { address: good(0x8000), length: 24, flags: INDIRECT, next: 0 }), log: /table of 24/ },
  { name: 'an indirect table of no bytes', put: (q) => one(q, { address: good(0x8000), length: 0, flags: INDIRECT, next: 0 }), log: /table of 0/ },
  { name: 'an indirect table of 4 GiB', put: (q) => one(q, { address: good(0x8000), length: 0xfffffff0, flags: INDIRECT, next: 0 }), log: /table of 4294967280/ },
  { name: 'an indirect table outside memory', put: (q) => one(q, { address: 0x1000, length: 32, flags: INDIRECT, next: 0 }), log: /table outside/ },
  { name: 'an indirect descriptor with a next one', put: (q) => one(q, { address: good(0x8000), length: 32, flags: INDIRECT | NEXT, next: 1 }), log: /with a next one/ },
  { name: 'an indirect table that runs out of memory', put: (q) => one(q, { address: good(MEMORY_BYTES - 16), length: 32, flags: INDIRECT, next: 0 }), log: /table outside/ },
  { name: 'a loop in an indirect table', put: (q) => {
    q.put(0, { address: good(0x9000), length: 8, flags: NEXT, next: 0 }, 0x8000);
    one(q, { address: good(0x8000), length: 32, flags: INDIRECT, next: 0 });
  }, log: /loop/ },
  { name: 'a next outside its indirect table', put: (q) => {
    q.put(0, { address: good(0x9000), length: 8, flags: NEXT, next: 2 }, 0x8000);
    one(q, { address: good(0x8000), length: 32, flags: INDIRECT, next: 0 });
  }, log: /index 2 is outside the table of 2/ },
  { name: 'a writable one before a readable one in an indirect table', put: (q) => {
    q.put(0, { address: good(0x9000), length: 8, flags: WRITE | NEXT, next: 1 }, 0x8000);
    q.put(1, { address: good(0x9000), length: 8, flags: 0, next: 0 }, 0x8000);
    one(q, { address: good(0x8000), length: 32, flags: INDIRECT, next: 0 });
  }, log: /readable descriptor after/ },
  { name: 'a nested indirect table', put: (q) => {
    q.put(0, { address: good(0x9000), length: 16, flags: INDIRECT, next: 0 }, 0x8000);
    one(q, { address: good(0x8000), length: 16, flags: INDIRECT, next: 0 });
  }, log: /where none is allowed/ },
];

function one(q: DriverQueue, d: Descriptor): void {
  q.put(0, d);
}

test('chains that make no sense are returned empty, and the ring goes on', async () => {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const memory = new SharedMemory(MEMORY_BYTES);
  const queue = new DriverQueue(memory, 0, 64);
  const frontend = Frontend.connect(backend.path);
  await frontend.negotiate({ features: F_LOG_ALL });
  assert.ok(await frontend.setMemory(memory));
  await queue.start(frontend);
  for (const { name, put, log } of CHAINS) {
    backend.log.length = 0;
    put(queue);
    queue.offer(0);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head: 0, length: 0 }], name);
    assert.match(backend.log.join('\n'), log, name);
  }
  assert.equal(device.served, 0, 'the device has seen none of them');
  // An indirect table needs no alignment (VIRTIO 1.3 §2.7.5.3)
  queue.put(0, { address: good(0x9000), length: 8, flags: NEXT, next: 1 }, 0x8001);
  queue.put(1, { address: good(0xa000), length: 8, flags: WRITE, next: 0 }, 0x8001);
  queue.put(0, { address: good(0x8001), length: 32, flags: INDIRECT, next: 0 });
  queue.put(1, { address: good(0x8000), length: 8, flags: NEXT, next: 2 });
  queue.put(2, { address: good(0x9000), length: 8, flags: WRITE, next: 0 });
  for (const head of [0, 1]) {
    queue.offer(head);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
  }
  frontend.close();
  await backend.close();
  queue.close();
  memory.close();
});

for (const [name, breakRing] of [
  ['a head outside the ring', (q: DriverQueue) => q.offer(64)],
  ['an available index that jumps', (q: DriverQueue) => q.memory.dv.setUint16(q.avail + 2, q.availIdx + 65, true)],
] as const) {
  test(`${name} stops that ring only, and the frontend is told`, async () => {
    const backend = new TestBackend(new EchoDevice());
    const memory = new SharedMemory(MEMORY_BYTES);
    const queues = [0, 1].map((i) => new DriverQueue(memory, i, 64));
    const frontend = Frontend.connect(backend.path);
    await frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await frontend.setMemory(memory));
    for (const queue of queues) await queue.start(frontend);
    queues[0].calls();
    const good = queues[0].chain([u32(1)], [8]);
    breakRing(queues[0]);
    queues[0].kick();
    queues[1].chain([u32(1)], [8]);
    queues[1].kick();
    assert.equal((await queues[1].wait()).length, 1);
    while (!/the queue is stopped/.test(backend.log.join('\n'))) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(c.read(queues[0].errFd, memory.address + 0x10000, 8), 8, 'the error descriptor was signalled');
    if (name === 'a head outside the ring') {
      assert.deepEqual(queues[0].take(), [{ head: good.head, length: 4 }]);
      assert.equal(queues[0].calls(), 1, 'the driver was told of what came before');
    }
    frontend.send(MESSAGE.GET_VRING_BASE, u32(0, 0));
    assert.ok(await frontend.reply(), 'the connection still works');
    frontend.close();
    await backend.close();
    for (const queue of queues) queue.close();
    memory.close();
  });
}
