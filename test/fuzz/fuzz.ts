/**
 * Random and mutated input for everything that a guest or a frontend can reach: rings, FUSE requests, vhost-user
 * messages. `node build/test/fuzz/fuzz.js --seconds 60 --seed 1 --target ring|fuse|vhost|all` prints the seed first; a
 * throw, a wrong reply, a lost descriptor or a change outside the share ends it with exit code 1.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { parseArgs } from 'node:util';
import { OPERATIONS } from '../../src/fuse/ops.js';
import { TestBackend, EchoDevice, openDescriptors } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, MESSAGE, NEED_REPLY, SharedMemory, USER, concat, eventfd, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';
import * as c from '../../src/ffi/libc.js';

/** xorshift32: the same input for the same seed. */
class Random {
  #state: number;

  constructor(seed: number) {
    this.#state = seed | 0 || 1;
  }

  next(): number {
    let x = this.#state;
    x ^= x << 13;
    x ^= x >>> 17;
    x ^= x << 5;
    return (this.#state = x) >>> 0;
  }

  below(n: number): number {
    return this.next() % n;
  }

  pick<T>(values: readonly T[]): T {
    return values[this.below(values.length)];
  }

  bytes(n: number): Uint8Array {
    return Uint8Array.from({ length: n }, () => this.next());
  }
}

const INTERESTING = [0, 1, 2, 3, 7, 8, 15, 16, 40, 63, 64, 255, 256, 4095, 4096, 65535, 65536, 0x7fffffff, 0x80000000, 0xffffffff];
const turn = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

/** Random descriptor tables and available rings. */
async function fuzzRing(random: Random, until: number): Promise<number> {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const memory = new SharedMemory(1 << 20);
  let rounds = 0;
  while (Date.now() < until) {
    memory.rewind(4096);
    const frontend = Frontend.connect(backend.path);
    const size = random.pick([1, 2, 8, 64, 256]);
    const queue = new DriverQueue(memory, random.below(3), size);
    await frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await frontend.setMemory(memory));
    await queue.start(frontend);
    for (let i = 0; i < 50; i++, rounds++) {
      const tables = [queue.descriptors, 0x8000];
      for (let d = 0; d < size; d++) {
        queue.put(d, {
          address: random.below(4) === 0 ? random.pick(INTERESTING) * random.pick([1, 0x1000, 0x10001]) : GPA + random.below(1 << 20),
          length: random.below(3) === 0 ? random.pick(INTERESTING) : random.below(2000),
          flags: random.below(8),
          next: random.below(10) === 0 ? random.below(65536) : random.below(size),
        }, d < 16 ? random.pick(tables) : queue.descriptors);
      }
      for (let n = 1 + random.below(4); n > 0; n--) queue.offer(random.below(20) === 0 ? random.below(65536) : random.below(size));
      if (random.below(100) === 0) memory.dv.setUint16(queue.avail + 2, random.below(65536), true);
      queue.kick();
      await turn();
      await turn();
    }
    queue.take();
    frontend.close();
    queue.close();
  }
  await backend.close();
  memory.close();
  return rounds;
}

/** Half of the time before rings run, half of it while they do. */
async function fuzzVhost(random: Random, until: number): Promise<number> {
  const parsed = await fuzzParser(random, (Date.now() + until) / 2);
  return parsed + (await fuzzLive(random, until));
}

/** Random messages, most with plausible headers, with random descriptors. */
async function fuzzParser(random: Random, until: number): Promise<number> {
  const backend = new TestBackend(new EchoDevice());
  const memory = new SharedMemory(1 << 16);
  const event = eventfd();
  const codes = [...Object.values(MESSAGE), 0, 4, 7, 99];
  let messages = 0;
  const before = openDescriptors();
  while (Date.now() < until) {
    const frontend = Frontend.connect(backend.path);
    if (random.below(3) > 0) await frontend.negotiate();
    for (let i = random.below(30); i > 0; i--, messages++) {
      const code = random.pick(codes);
      const size = random.pick([0, 8, 8, 8, 12, 16, 24, 40, 40, 72, random.below(300)]);
      const payload = random.bytes(size);
      for (let at = 0; at + 4 <= size; at += 4) if (random.below(2) === 0) payload.set(u32(random.pick(INTERESTING)), at);
      const fds = Array.from({ length: random.pick([0, 0, 0, 1, 1, 2, 9]) }, () => random.pick([memory.fd, event]));
      frontend.raw(concat(u32(code, random.pick([1, 9, 9, random.below(16)]), random.below(30) === 0 ? random.next() : size), payload), fds);
      if (random.below(4) === 0) await turn();
    }
    await turn();
    frontend.close();
    await turn();
  }
  const good = Frontend.connect(backend.path);
  await good.negotiate();
  assert.ok(await good.setMemory(memory), 'a fresh connection works');
  good.close();
  for (const end = Date.now() + 5000; openDescriptors() > before && Date.now() < end; ) await turn();
  assert.ok(openDescriptors() <= before, `descriptors grew from ${before} to ${openDescriptors()}`);
  await backend.close();
  memory.close();
  c.close(event);
  return messages;
}

/** Messages that make sense, in an order that does not, while rings run and requests wait. */
async function fuzzLive(random: Random, until: number): Promise<number> {
  const device = new EchoDevice();
  const backend = new TestBackend(device);
  const memory = new SharedMemory(1 << 20);
  const log = new SharedMemory(1 << 16);
  const region = (i: number): Uint8Array => u64(GPA + (i + 1) * (1 << 21), 1 << 16, USER + (i + 1) * (1 << 21), 0);
  let messages = 0;
  const before = openDescriptors();
  while (Date.now() < until) {
    memory.rewind(4096);
    const frontend = Frontend.connect(backend.path);
    const queues = [0, 1].map((i) => new DriverQueue(memory, i, 16));
    const { features } = await frontend.negotiate();
    const table = (valid: boolean): [Uint8Array, number[]] => [concat(u32(1, 0), u64(GPA, valid ? memory.bytes : 2 ** 30, USER, 0)), [memory.fd]];
    frontend.send(MESSAGE.SET_MEM_TABLE, ...table(true));
    for (const queue of queues) await queue.start(frontend, { log: true });
    const record = await frontend.call(MESSAGE.GET_INFLIGHT_FD, concat(u64(0, 0), u32((16 << 16) | 2, 0)));
    const inflight = new Uint8Array(record.payload.buffer);
    const mark = memory.mark;
    for (let i = 20 + random.below(60); i > 0; i--, messages++) {
      const at = random.below(2);
      const queue = queues[at];
      const event = random.pick([queue.kickFd, queue.callFd, queue.errFd]);
      const [code, payload, fds] = random.pick<() => [number, Uint8Array, number[]]>([
        () => [MESSAGE.SET_INFLIGHT_FD, inflight, record.fds],
        () => [MESSAGE.SET_MEM_TABLE, ...table(random.below(3) > 0)],
        () => [MESSAGE.ADD_MEM_REG, concat(u64(0), region(random.below(4))), [log.fd]],
        () => [MESSAGE.REM_MEM_REG, concat(u64(0), random.below(8) === 0 ? u64(GPA, memory.bytes, USER, 0) : region(random.below(4))), []],
        () => [MESSAGE.SET_LOG_BASE, u64(log.bytes, 0), [log.fd]],
        () => [MESSAGE.SET_LOG_FD, new Uint8Array(0), random.pick([[], [event], [memory.fd]])],
        () => [MESSAGE.SET_FEATURES, u64(random.below(2) === 0 ? features : features & ~F_LOG_ALL), []],
        () => [random.pick([MESSAGE.SET_VRING_KICK, MESSAGE.SET_VRING_CALL, MESSAGE.SET_VRING_ERR]), u64(at), [event]],
        () => [random.pick([MESSAGE.SET_VRING_KICK, MESSAGE.SET_VRING_CALL]), u64(0x100 | at), []],
        () => [MESSAGE.SET_VRING_ENABLE, u32(at, random.below(2)), []],
        () => [MESSAGE.SET_VRING_NUM, u32(at, random.pick([8, 16, 32])), []],
        () => [MESSAGE.SET_VRING_BASE, u32(at, random.pick([queue.lastUsed, queue.availIdx, random.below(65536)])), []],
        () => [MESSAGE.GET_VRING_BASE, u32(at, 0), []],
        () => [random.pick([MESSAGE.RESET_DEVICE, MESSAGE.SET_STATUS]), random.below(9) === 0 ? new Uint8Array(0) : u64(random.below(2)), []],
      ])();
      frontend.send(code, payload, fds, NEED_REPLY);
      device.hold = random.below(3) === 0;
      if (random.below(2) === 0) {
        memory.rewind(mark);
        queue.chain([u32(i)], [8], random.below(2) === 0);
        queue.kick();
      }
      await turn();
      if (random.below(3) === 0) device.release();
    }
    device.release();
    device.hold = false;
    frontend.close();
    for (const fd of record.fds) c.close(fd);
    for (const queue of queues) queue.close();
    for (const end = Date.now() + 5000; openDescriptors() > before && Date.now() < end; device.release()) await turn();
    assert.ok(openDescriptors() <= before, `descriptors grew from ${before} to ${openDescriptors()}`);
  }
  await backend.close();
  memory.close();
  log.close();
  return messages;
}

/** Random arguments for every operation, with nodes and handles that exist and that do not. */
async function fuzzFuse(random: Random, until: number): Promise<number> {
  const outside = mkdtempSync(join(tmpdir(), 'bucketfsd-outside-'));
  writeFileSync(join(outside, 'secret'), 'untouched');
  const guest = await TestGuest.start({ posixAcl: 'auto', killprivV2: true });
  mkdirSync(join(guest.directory, 'd'));
  symlinkSync(outside, join(guest.directory, 'd', 'out'));
  const nodes = [1n, 0n, 2n, (1n << 32n) | 2n];
  const handles = [0n, 1n];
  const names = ['a', 'b', 'd', 'out', '..', '.', '', 'secret', 'a/b', 'x'.repeat(255), 'y'.repeat(256)];
  let requests = 0;
  while (Date.now() < until) {
    if (random.below(500) === 0) {
      await guest.call(OP.DESTROY, 0n);
      for (const opcode of [random.pick(OPERATIONS).code, random.below(64)]) await guest.call(opcode, random.pick(nodes), random.bytes(random.below(100)), 512);
      assert.equal((await guest.init()).error, 0);
    }
    if (random.below(50) === 0) await guest.call(OP.INTERRUPT, 0n, u64(random.next()), random.pick([0, 8]));
    const op = random.pick(OPERATIONS);
    if (op.name === 'SETLKW') continue; // it may rightly wait for ever
    const args = random.bytes(op.in);
    for (let at = 0; at + 4 <= op.in; at += 4) if (random.below(3) > 0) args.set(u32(random.pick(INTERESTING)), at);
    if (op.in >= 8 && random.below(3) > 0) args.set(u64(random.pick(op.name.startsWith('RENAME') || op.name === 'LINK' ? nodes : handles)), 0);
    // What takes real space on the host stays small
    const lengthAt = { FALLOCATE: 16, COPY_FILE_RANGE: 40, COPY_FILE_RANGE_64: 40 }[op.name];
    if (lengthAt !== undefined) args.set(u64(random.below(1 << 20)), lengthAt);
    const tail = random.below(3) === 0 ? random.bytes(random.below(200)) : concat(name(random.pick(names)), name(random.pick(names)), random.bytes(random.below(40)));
    const reply = await guest.call(op.code, random.pick(nodes), concat(args, tail), random.pick([0, 16, 104, 128, 144, 512, 4096])).catch((error: unknown) => {
      throw new Error(`${op.name} ${Buffer.from(concat(args, tail)).toString('hex')}: ${String(error)}`);
    });
    assert.ok(reply.error <= 0 && reply.error > -4096, `${op.name}: error ${reply.error}`);
    if (reply.error === 0 && reply.data.byteLength >= 8) {
      const id = reply.data.getBigUint64(0, true);
      if (op.reply === 'entry' || op.reply === 'create') nodes[random.below(12)] ??= id;
      if (op.reply === 'entry' || op.reply === 'create') nodes[4 + random.below(8)] = id;
      if (op.reply === 'open') handles[2 + random.below(6)] = id;
      if (op.reply === 'create') handles[2 + random.below(6)] = reply.data.getBigUint64(128, true);
      for (const list of [nodes, handles]) for (let i = 0; i < list.length; i++) list[i] ??= 1n;
    }
    requests++;
  }
  assert.deepEqual(guest.log.filter((line) => line.startsWith('defect')), [], 'no request failed inside the daemon');
  assert.equal(readFileSync(join(outside, 'secret'), 'utf8'), 'untouched');
  await guest.close();
  rmSync(outside, { recursive: true });
  return requests;
}

const TARGETS = { ring: fuzzRing, vhost: fuzzVhost, fuse: fuzzFuse } as const;

/** Run one target; returns how much was tried. */
export async function fuzz(target: keyof typeof TARGETS, seed: number, seconds: number): Promise<number> {
  return TARGETS[target](new Random(seed), Date.now() + seconds * 1000);
}

async function main(): Promise<void> {
  const { values } = parseArgs({ options: { seconds: { type: 'string', default: '60' }, seed: { type: 'string' }, target: { type: 'string', default: 'all' } } });
  const seed = values.seed === undefined ? Date.now() >>> 0 : Number(values.seed);
  const targets = values.target === 'all' ? (Object.keys(TARGETS) as (keyof typeof TARGETS)[]) : [values.target as keyof typeof TARGETS];
  process.stdout.write(`fuzz: --seed ${seed} --target ${values.target}\n`);
  for (const target of targets) {
    const count = await fuzz(target, seed, Number(values.seconds) / targets.length);
    process.stdout.write(`fuzz: ${target}: ${count} inputs, nothing found\n`);
  }
}

if (process.argv[1]?.endsWith('fuzz.js')) {
  main().catch((error: unknown) => {
    process.stderr.write(`${(error as Error).stack}\n`);
    process.exit(1);
  });
}
