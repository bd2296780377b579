/** What a queue writes for others to read: the inflight record and the dirty log. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { DirtyLog } from '../../src/vhost/dirty-log.js';
import { ProtocolError } from '../../src/vhost/errors.js';
import { GuestMemory } from '../../src/vhost/guest-memory.js';
import { InflightQueue, InflightRegion, inflightQueueBytes } from '../../src/vhost/inflight.js';
import { POP_CHAIN, VirtQueue } from '../../src/vhost/virtqueue.js';
import * as c from '../../src/ffi/libc.js';
import { SharedMemory } from '../support/frontend.js';

const SIZE = 8;
const GPA = 0x100000;

function record(): InflightQueue {
  return new InflightQueue(new DataView(new ArrayBuffer(inflightQueueBytes(SIZE))), SIZE);
}

/** The same bytes as the next backend maps them. */
const next = (q: InflightQueue): InflightQueue => new InflightQueue(q.view, SIZE);

test('regions of queues are multiples of 64 bytes: 16 and 16 for each descriptor', () => {
  assert.deepEqual([1, 8, 128, 32768].map(inflightQueueBytes), [64, 192, 2112, 524352]);
});

test('the record lies in memory as the specification draws it', () => {
  const q = record();
  assert.equal(q.recover(0x1234), null);
  q.submit(5);
  q.submit(2);
  q.beforeUsed(5);
  q.afterUsed(5, 0x1235);
  const hex = Buffer.from(q.view.buffer).toString('hex');
  // features, version, desc_num, last_batch_head, used_idx
  assert.equal(hex.slice(0, 32), '0000000000000000' + '0100' + '0800' + '0500' + '3512');
  // inflight, padding, next, counter
  assert.equal(hex.slice(32 + 2 * 32, 32 + 3 * 32), '01' + '0000000000' + '0000' + '0100000000000000');
  assert.equal(hex.slice(32 + 5 * 32, 32 + 6 * 32), '00' + '0000000000' + '0000' + '0000000000000000');
});

test('what was taken and not returned is found oldest first, and new requests count on', () => {
  const q = record();
  q.recover(0);
  for (const head of [6, 1, 4, 0]) q.submit(head);
  q.beforeUsed(1);
  q.afterUsed(1, 1);
  const after = next(q);
  assert.deepEqual(after.recover(1), [6, 4, 0]);
  after.submit(1);
  assert.deepEqual(next(after).recover(1), [6, 4, 0, 1]);
});

test('a head that was published but not noted is not served again', () => {
  const q = record();
  q.recover(0);
  for (const head of [3, 7]) q.submit(head);
  q.beforeUsed(7); // the used index is then published, and the process dies
  assert.deepEqual(next(q).recover(1), [3]);
});

test('a head that was about to be published is served again', () => {
  const q = record();
  q.recover(0);
  for (const head of [3, 7]) q.submit(head);
  q.beforeUsed(7); // the process dies before the used index is published
  assert.deepEqual(next(q).recover(0), [3, 7]);
});

test('a record for another ring size is refused', () => {
  const q = record();
  q.recover(0);
  assert.throws(() => new InflightQueue(q.view, SIZE / 2).recover(0), ProtocolError);
});

test('a last_batch_head outside the ring, written by a frontend, does no harm', () => {
  const q = record();
  q.recover(0);
  q.submit(3);
  q.view.setUint16(12, 0xffff, true);
  assert.deepEqual(next(q).recover(1), [3]);
});

test('inflight regions that cannot be are refused', () => {
  const { fd, bytes } = InflightRegion.create(2, SIZE);
  for (const [offset, length, queues, size] of [
    [0, bytes + 4096, 2, SIZE], [100, 4096, 2, SIZE], [4096, bytes, 2, SIZE], [0, bytes, 0, SIZE], [0, bytes, 2, 0], [0, bytes, 65535, 32768], [0, 2 ** 40, 2, SIZE],
  ]) {
    assert.throws(() => new InflightRegion(fd, offset, length, queues, size), ProtocolError, `${length} bytes at ${offset} for ${queues} of ${size}`);
  }
  const region = new InflightRegion(fd, 0, bytes, 2, SIZE);
  assert.equal(region.queue(2, SIZE), null);
  assert.equal(region.queue(0, SIZE * 2), null, 'no room for so many descriptors');
  assert.ok(region.queue(1, SIZE));
  region.close();
  c.close(fd);
});

test('the dirty log has one bit for each page that a range touches, from the lowest bit on', () => {
  const file = new SharedMemory(4096);
  const log = new DirtyLog(file.fd, 0, 16);
  for (const [gpa, bytes, pages] of [
    [0, 1, [0]], [4095, 2, [0, 1]], [4096, 4096, [1]], [31 * 4096, 2 * 4096, [31, 32]], [127 * 4096, 1 << 20, [127]], [128 * 4096, 4096, []],
    [2 ** 52, 8, []], [8192, 0, []],
  ] as const) {
    log.mark(gpa, bytes);
    const marked = Array.from({ length: 256 }, (_, page) => page).filter((page) => (file.u8[page >> 3] >> (page & 7)) & 1);
    assert.deepEqual(marked, [...pages], `${bytes} bytes at ${gpa}`);
    file.u8.fill(0, 0, 64);
  }
  log.close();
  file.close();
});

test('dirty logs that cannot be are refused', () => {
  const file = new SharedMemory(8192);
  for (const [offset, bytes] of [[0, 0], [0, 8193], [8192, 8], [2, 64], [-4, 64], [0, 2 ** 40], [2 ** 60, 64]]) {
    assert.throws(() => new DirtyLog(file.fd, offset, bytes), ProtocolError, `${bytes} bytes at ${offset}`);
  }
  new DirtyLog(file.fd, 4100, 64).close();
  file.close();
});

/** A page may be copied and its mark cleared as soon as the mark is there, so the write must come first. */
test('each mark in the dirty log comes after the write that it stands for', () => {
  const file = new SharedMemory(1 << 16);
  const memory = new GuestMemory();
  memory.add({ gpa: GPA, size: file.bytes, userAddress: 0, fileOffset: 0 }, file.fd);
  const [descriptors, avail, used, buffer] = [0x1000, 0x2000, 0x3000, 0x4000];
  const at = (offset: number): number => memory.hostAddress(GPA + offset, 8);
  const queue = new VirtQueue(0, SIZE, memory, { descriptors: at(descriptors), avail: at(avail), used: at(used) }, 0, false, false);
  const marks: { gpa: number; bytes: number; usedIdx: number }[] = [];
  const spy = { mark: (gpa: number, bytes: number) => void marks.push({ gpa, bytes, usedIdx: file.dv.getUint16(used + 2, true) }), takeMarked: () => false };
  queue.dirtyLog = spy as unknown as DirtyLog;
  queue.usedLogAddress = GPA + used;
  file.dv.setBigUint64(descriptors + 16, BigInt(GPA + buffer), true);
  file.dv.setUint32(descriptors + 24, 64, true);
  file.dv.setUint16(descriptors + 28, 2, true);
  file.dv.setUint16(avail + 4, 1, true);
  file.dv.setUint16(avail + 2, 1, true);
  const chain = queue.takeChain();
  assert.equal(queue.pop(chain), POP_CHAIN);
  queue.finish(chain, 10);
  assert.deepEqual(marks, [
    { gpa: GPA + buffer, bytes: 10, usedIdx: 0 }, // the data, before the driver may know of it
    { gpa: GPA + used + 4, bytes: 8, usedIdx: 1 },
    { gpa: GPA + used + 2, bytes: 2, usedIdx: 1 },
  ]);
  queue.close();
  memory.clear();
  file.close();
});
