/** A store in other threads is the same store. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { openStoreClient } from '../../src/pool/store-client.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { contract } from './contract.js';

// A store in memory is one thread's own
const open = () => openStoreClient({ config: { kind: 'memory' }, threads: 1 });

contract('memory in a worker', { open });

test('a read goes straight into memory that is shared, and is copied into memory that is not', async () => {
  const store = await open();
  try {
    await store.put('k', new TextEncoder().encode('0123456789'));
    for (const buffer of [new SharedArrayBuffer(64), new ArrayBuffer(64)]) {
      const into = new Uint8Array(buffer, 8, 6);
      assert.equal(await store.read('k', { offset: 2, into }), 6);
      assert.equal(Buffer.from(into).toString(), '234567');
      assert.equal(new Uint8Array(buffer)[7], 0);
      assert.equal(new Uint8Array(buffer)[14], 0);
    }
    const info = await store.head('k');
    for (const buffer of [new SharedArrayBuffer(64), new ArrayBuffer(64)]) {
      const into = new Uint8Array(buffer, 8, 6);
      assert.deepEqual(await store.fetch('k', { into }), { info, bytes: 6 });
      assert.equal(Buffer.from(buffer).subarray(7, 15).toString(), '\x00012345\0');
    }
    const native = NativeMemory.allocate(4096);
    assert.deepEqual(await store.fetch('k', { into: { address: native.address, bytes: 64 } }), { info, bytes: 10 });
    assert.equal(Buffer.from(native.u8.subarray(0, 11)).toString(), '0123456789\0');
    assert.equal(await store.read('k', { offset: 4, into: { address: native.address + 100, bytes: 64 } }), 6);
    assert.equal(Buffer.from(native.u8.subarray(100, 107)).toString(), '456789\0');
    native.free();
  } finally {
    await store.close();
  }
});

test('a store that was closed answers with an error, and so do calls under way', async () => {
  const store = await open();
  const calls = Promise.allSettled(Array.from({ length: 20 }, (_, i) => store.put(`k${i}`, new Uint8Array(1000))));
  await store.close();
  for (const result of await calls) if (result.status === 'rejected') assert.ok(result.reason instanceof StorageError);
  await assert.rejects(store.head('k'), StorageError);
});

test('many calls at the same time come back to their callers', async () => {
  const store = await open();
  try {
    await Promise.all(Array.from({ length: 500 }, (_, i) => store.put(`k${i}`, new TextEncoder().encode(String(i)))));
    await Promise.all(Array.from({ length: 500 }, async (_, i) => {
      const into = new Uint8Array(8);
      const n = await store.read(`k${i}`, { offset: 0, into });
      assert.equal(Buffer.from(into.subarray(0, n)).toString(), String(i));
    }));
  } finally {
    await store.close();
  }
});
