/** Without a session (before INIT, after DESTROY or a reset) there is nothing to be had but a new one. */
import assert from 'node:assert/strict';
import { readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { OPERATIONS } from '../../src/fuse/ops.js';
import * as c from '../../src/ffi/libc.js';
import { viewOf } from '../../src/ffi/memory.js';
import { MAP_SHARED, PROT_READ, PROT_WRITE } from '../../src/ffi/constants.js';
import { MESSAGE, concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;

/** A guest whose driver has not sent INIT. */
async function withoutSession(body: (g: TestGuest) => Promise<void>): Promise<void> {
  const guest = await TestGuest.start({}, 0, false);
  try {
    await body(guest);
  } finally {
    await guest.close();
  }
}

const getattr = async (g: TestGuest, node = ROOT): Promise<number> => (await g.call(OP.GETATTR, node, new Uint8Array(16), 104)).error;

test('before INIT every operation is EIO, also an unknown one, and changes nothing', () =>
  withoutSession(async (g) => {
    for (const op of OPERATIONS) {
      for (const args of [new Uint8Array(0), concat(new Uint8Array(op.in), name('made'), name('made'))]) {
        assert.equal((await g.call(op.code, ROOT, args, 512)).error, -E.IO, op.name);
      }
    }
    for (const opcode of [0, 63, 4096]) assert.equal((await g.call(opcode, ROOT)).error, -E.IO, `opcode ${opcode}`);
    assert.deepEqual(readdirSync(g.directory), []);
    const { bytes } = g.request(OP.GETATTR, ROOT, new Uint8Array(16));
    assert.equal((await g.raw([bytes], [15])).used, 0, 'no room even for the error');
    assert.match(g.log.join('\n'), /before INIT/);
    assert.equal((await g.init()).error, 0);
    assert.equal(await getattr(g), 0);
  }));

test('before INIT what has no reply gets none, and DESTROY finds nothing to end', () =>
  withoutSession(async (g) => {
    for (const [opcode, args] of [[OP.FORGET, u64(1)], [OP.BATCH_FORGET, concat(u32(1, 0), u64(2, 1))], [OP.INTERRUPT, u64(7)]] as const) {
      assert.equal((await g.call(opcode, ROOT, args, 0)).used, 0, `opcode ${opcode}`);
    }
    assert.equal((await g.call(OP.DESTROY, ROOT, new Uint8Array(0), 0)).error, 0);
    assert.equal((await g.init(7, 26)).error, -E.PROTO);
    assert.equal(await getattr(g), -E.IO, 'an INIT that was refused makes no session');
    assert.equal((await g.init(8, 0)).error, 0);
    assert.equal(await getattr(g), -E.IO, 'nor does one that is to be asked again');
    assert.equal((await g.init()).error, 0);
    assert.equal(await getattr(g), 0);
  }));

for (const [what, end] of [
  ['DESTROY', async (g: TestGuest) => assert.equal((await g.call(OP.DESTROY, ROOT, new Uint8Array(0), 0)).error, 0)],
  ['RESET_DEVICE', async (g: TestGuest) => {
    assert.ok(await g.frontend.ack(MESSAGE.RESET_DEVICE));
    assert.ok(await g.frontend.ack(MESSAGE.SET_VRING_ENABLE, u32(0, 1)));
  }],
] as const) {
  test(`${what} ends the session: EIO until the next INIT, which knows no node of the old one`, () =>
    withoutSession(async (g) => {
      await g.init();
      writeFileSync(join(g.directory, 'f'), 'content');
      const { node } = await g.lookup(ROOT, 'f');
      await end(g);
      assert.equal(await getattr(g), -E.IO);
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('f'), 128)).error, -E.IO);
      assert.equal((await g.call(OP.FORGET, node, u64(1), 0)).used, 0);
      assert.equal((await g.init()).error, 0);
      assert.equal(await getattr(g, node), -E.STALE);
      assert.equal((await g.lookup(ROOT, 'f')).size, 7);
    }));
}

test('requests that a former backend left are taken again before INIT, and get EIO', () =>
  withoutSession(async (g) => {
    const { frontend, queue } = g;
    await frontend.call(MESSAGE.GET_VRING_BASE, u32(0, 0));
    const made = await frontend.call(MESSAGE.GET_INFLIGHT_FD, concat(u64(0, 0), u32((queue.size << 16) | 1, 0)));
    const { bytes, unique } = g.request(OP.GETATTR, ROOT, new Uint8Array(16));
    const { head, writable } = queue.chain([bytes], [120], true);
    // The record as the former backend leaves it: version, desc_num, and the head marked as in flight
    const mapping = c.check(c.mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, made.fds[0], 0), 'mmap');
    const record = new DataView(viewOf(mapping, 4096));
    record.setUint16(8, 1, true);
    record.setUint16(10, queue.size, true);
    record.setUint8(16 + 16 * head, 1);
    assert.ok(await frontend.ack(MESSAGE.SET_INFLIGHT_FD, new Uint8Array(made.payload.buffer), made.fds));
    assert.ok(await frontend.ack(MESSAGE.SET_VRING_KICK, u64(0), [queue.kickFd]));
    assert.deepEqual(await queue.wait(), [{ head, length: 16 }]);
    assert.equal(g.memory.dv.getInt32(writable[0] + 4, true), -E.IO);
    assert.equal(g.memory.dv.getBigUint64(writable[0] + 8, true), unique);
    assert.equal((await g.init()).error, 0);
    assert.equal(await getattr(g), 0);
    c.munmap(mapping, 4096);
    made.fds.forEach((fd) => c.close(fd));
  }));
