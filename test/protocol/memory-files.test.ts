/**
 * Guest memory lies in the kernel's own shared memory, and is mapped once for as long as it stays.
 *
 * Files that a frontend could pass: a memfd, one of huge pages, a file on tmpfs; on a disk, on FUSE that it serves itself (a page never comes, and the thread
 * that touches it hears no signal), a device. Each as memory of a table, as a slot, as dirty log, as inflight record. A file that takes the place of another with the
 * same numbers is another one.
 */
import assert from 'node:assert/strict';
import { closeSync, ftruncateSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, statfsSync, unlinkSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import * as c from '../../src/ffi/libc.js';
import { MFD_CLOEXEC } from '../../src/ffi/constants.js';
import { EchoDevice, TestBackend } from '../support/backend.js';
import { DriverQueue } from '../support/driver.js';
import { F_LOG_ALL, Frontend, GPA, MESSAGE, SharedMemory, USER, concat, u32, u64 } from '../support/frontend.js';
import { HeldFileSystem } from '../support/held-fs.js';

const MEMORY_BYTES = 1 << 20;
const GIB = 2 ** 30;
const TMPFS = 0x01021994;
const MFD_HUGETLB = 4;
const HUGE_BYTES = 2 << 20;

async function withFrontend(files: 'shared-memory' | 'any', body: (f: Frontend, backend: TestBackend) => Promise<void>): Promise<void> {
  const backend = new TestBackend(new EchoDevice(), 0, files);
  const frontend = Frontend.connect(backend.path);
  try {
    await frontend.negotiate({ features: F_LOG_ALL });
    await body(frontend, backend);
  } finally {
    frontend.close();
    await backend.close();
  }
}

const region = (gpa: number, bytes: number, offset = 0): Uint8Array => u64(gpa, bytes, USER + (gpa - GPA), offset);
const table = (...regions: Uint8Array[]): Uint8Array => concat(u32(regions.length, 0), ...regions);

/** What is answered to a descriptor in each of the messages that map one. */
async function answers(f: Frontend, fd: number, bytes = MEMORY_BYTES): Promise<boolean[]> {
  return [
    await f.ack(MESSAGE.SET_MEM_TABLE, table(region(GPA, bytes)), [fd]),
    await f.ack(MESSAGE.ADD_MEM_REG, concat(u64(0), region(GPA + 4 * GIB, bytes)), [fd]),
    await f.ack(MESSAGE.SET_INFLIGHT_FD, concat(u64(bytes, 0), u32((64 << 16) | 1, 0)), [fd]),
  ];
}

test('a memfd, one of huge pages and a file on tmpfs are guest memory', () =>
  withFrontend('shared-memory', async (f) => {
    const memory = new SharedMemory(MEMORY_BYTES);
    assert.deepEqual(await answers(f, memory.fd), [true, true, true]);
    memory.close();
    const huge = c.memfdCreate('test-huge', MFD_CLOEXEC | MFD_HUGETLB);
    if (huge >= 0) {
      c.check(c.ftruncate(huge, HUGE_BYTES), 'ftruncate');
      assert.ok(await f.ack(MESSAGE.SET_MEM_TABLE, table(region(GPA, HUGE_BYTES)), [huge]));
      c.close(huge);
    }
    assert.equal(statfsSync('/dev/shm').type, TMPFS);
    const path = `/dev/shm/bucketfsd-test-${process.pid}`;
    const fd = openSync(path, 'wx+');
    unlinkSync(path);
    ftruncateSync(fd, MEMORY_BYTES);
    assert.ok(await f.ack(MESSAGE.SET_MEM_TABLE, table(region(GPA, MEMORY_BYTES)), [fd]));
    closeSync(fd);
  }));

/** A file on a disk, or whatever holds the tests' own build. */
function onDisk(): number {
  const directory = mkdtempSync(join(import.meta.dirname, 'memory-'));
  const fd = openSync(join(directory, 'file'), 'wx+');
  rmSync(directory, { recursive: true });
  ftruncateSync(fd, MEMORY_BYTES);
  return fd;
}

test('a file on a disk is refused wherever one is mapped, nothing changes, and the option allows it for guest memory', async () => {
  const fd = onDisk();
  await withFrontend('shared-memory', async (f, backend) => {
    const memory = new SharedMemory(MEMORY_BYTES);
    const queue = new DriverQueue(memory, 0, 16);
    assert.ok(await f.setMemory(memory));
    await queue.start(f);
    assert.deepEqual(await answers(f, fd), [false, false, false]);
    assert.match(backend.log.join('\n'), /neither a memfd nor on tmpfs or hugetlbfs/);
    const { head } = queue.chain([u32(1, 2)], [8]);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
    f.send(MESSAGE.SET_LOG_BASE, u64(4096, 0), [fd]);
    assert.ok(await f.closed(), 'a message with a reply of its own ends the connection');
    queue.close();
    memory.close();
  });
  await withFrontend('any', async (f) => assert.deepEqual(await answers(f, fd), [true, true, false]));
  closeSync(fd);
});

test('a file of a file system that the frontend serves itself is refused without asking it', { skip: process.getuid!() !== 0 && 'needs root, to mount' }, async () => {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-memory-'));
  const point = join(directory, 'held');
  mkdirSync(point);
  const held = await HeldFileSystem.mount(point);
  try {
    const fd = openSync(join(point, 'large'), 'r+');
    await withFrontend('shared-memory', async (f) => assert.deepEqual(await answers(f, fd), [false, false, false]));
    closeSync(fd);
  } finally {
    await held.unmount();
    rmSync(directory, { recursive: true, force: true });
  }
});

/** Addresses that files of the tests' guests are mapped at in this process, which is frontend and backend. */
const mappings = (): string[] =>
  readFileSync('/proc/self/maps', 'utf8').split('\n').filter((line) => line.includes('/memfd:test-guest')).map((line) => line.split(' ')[0]);

test('memory that stays is not mapped anew when other memory comes and goes', () =>
  withFrontend('shared-memory', async (f) => {
    const [one, two, three] = [1, 2, 3].map(() => new SharedMemory(MEMORY_BYTES));
    const queue = new DriverQueue(one, 0, 16);
    const own = mappings();
    const set = async (...parts: readonly (readonly [number, SharedMemory])[]): Promise<string[]> => {
      const regions = parts.map(([gpa]) => region(gpa, MEMORY_BYTES));
      assert.ok(await f.ack(MESSAGE.SET_MEM_TABLE, table(...regions), parts.map(([, { fd }]) => fd)));
      return mappings().filter((address) => !own.includes(address));
    };
    const echoes = async (): Promise<void> => {
      const { head } = queue.chain([u32(1, 2)], [8]);
      queue.kick();
      assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
    };
    const [first] = await set([GPA, one]);
    await queue.start(f);
    const plugged = await set([GPA, one], [GPA + GIB, two]);
    assert.equal(plugged.length, 2);
    assert.ok(plugged.includes(first), 'it is where it was');
    await echoes();
    // Another file with the same numbers
    const exchanged = await set([GPA, one], [GPA + GIB, three]);
    assert.ok(exchanged.includes(first));
    three.u8.set([1, 2, 3, 4], 64);
    queue.put(8, { address: GPA + GIB + 64, length: 4, flags: 1, next: 9 });
    queue.put(9, { address: GPA + 512 * 1024, length: 4, flags: 2, next: 0 });
    queue.offer(8);
    queue.kick();
    await queue.wait();
    assert.deepEqual([...one.u8.subarray(512 * 1024, 512 * 1024 + 4)], [1, 2, 3, 4]);
    // A table that is refused leaves all as it is
    assert.equal(await f.ack(MESSAGE.SET_MEM_TABLE, table(region(GPA, MEMORY_BYTES), region(GPA + GIB, 2 * MEMORY_BYTES)), [one.fd, three.fd]), false);
    await echoes();
    assert.deepEqual(await set([GPA, one]), [first]);
    await echoes();
    queue.close();
    for (const memory of [one, two, three]) memory.close();
  }));

test('memory is looked into where requests are, and nowhere else: 256 GiB of it are no work', () =>
  withFrontend('shared-memory', async (f) => {
    const memory = new SharedMemory(MEMORY_BYTES);
    const queue = new DriverQueue(memory, 0, 16);
    const large = c.check(c.memfdCreate('test-large', MFD_CLOEXEC), 'memfd_create');
    c.check(c.ftruncate(large, 256 * GIB), 'ftruncate');
    const viewed = (): number => process.memoryUsage().external;
    const before = viewed();
    const regions = table(region(GPA, MEMORY_BYTES), region(GPA + GIB, 256 * GIB));
    assert.ok(await f.ack(MESSAGE.SET_MEM_TABLE, regions, [memory.fd, large]));
    await queue.start(f);
    const { head } = queue.chain([u32(1, 2)], [8]);
    queue.kick();
    assert.deepEqual(await queue.wait(), [{ head, length: 8 }]);
    assert.ok(viewed() - before < GIB, `views of ${viewed() - before} bytes`);
    c.close(large);
    queue.close();
    memory.close();
  }));
