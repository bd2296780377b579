/** A write goes where the guest says: the facts of test/fuse/write-placement.test.ts that a bucket shares, on files that are there and on new ones. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { O_APPEND, O_DIRECT, O_DSYNC, O_RDWR, O_WRONLY } from '../../src/ffi/constants.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { LATER } from '../support/deferred.js';
import { objectOf, withGuest, type Guest } from '../support/writing-guest.js';

const ROOT = 1n;
const WRITE_CACHE = 1;
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A WRITE that is done in full. */
async function write({ g }: Guest, node: bigint, fh: bigint, offset: number, text: string, flags: number, writeFlags = 0): Promise<void> {
  const { error, data } = await g.write(node, fh, offset, bytes(text), text.length, writeFlags, flags);
  assert.equal(error, 0);
  assert.equal(data.getUint32(0, true), text.length);
}

for (const durability of ['remote', 'writeback'] as const) {
  test(`${durability}: O_APPEND of the handle moves no write: not page write-back, nor what is written after it was cleared`, async () => {
    const store = new MemoryStore();
    await withGuest(store, async (guest) => {
      const { entry: { node }, fh } = await guest.g.create(ROOT, 'f', O_RDWR | O_APPEND);
      await write(guest, node, fh, 0, '0123456789', O_RDWR | O_APPEND);
      await write(guest, node, fh, 2, 'XX', O_RDWR);
      await write(guest, node, fh, 0, 'm', 0, WRITE_CACHE);
      await write(guest, node, fh, 10, 'end', O_RDWR | O_APPEND | O_DIRECT);
      assert.equal(await guest.close(node, fh), 0);
      const again = await guest.g.open(node, O_WRONLY | O_APPEND);
      await write(guest, node, again, 13, '!', O_WRONLY | O_APPEND);
      await write(guest, node, again, 4, 'w', 0, WRITE_CACHE);
      assert.equal(await guest.fsync(node, again), 0);
      assert.equal(await guest.close(node, again), 0);
      assert.equal((await guest.content(node)).toString(), 'm1XXw56789end!');
    }, { write: { durability, writebackDelay_ms: 0 } });
    assert.equal((await objectOf(store, 'f')).toString(), 'm1XXw56789end!');
  });
}

test('a write that the guest wants to be durable is, whatever the file was opened with', async () => {
  const store = new MemoryStore();
  await withGuest(store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'f', O_RDWR);
    await write(guest, node, fh, 0, 'once', O_RDWR | O_DSYNC);
    assert.equal((await objectOf(store, 'f')).toString(), 'once');
  }, { write: { ...LATER, durability: 'remote' } });
});
