import assert from 'node:assert/strict';
import { test } from 'node:test';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { contract } from './contract.js';

contract('memory', { open: async () => new MemoryStore() });
contract('memory, as little as S3', {
  open: async () =>
    new MemoryStore({ capabilities: { copyIfAbsent: false, copyIfVersion: false, deleteIfVersion: false, copyPart: 'none', listingHasMetadata: false } }),
});

test('a store that begins with the contents of another has what that had then, and versions of its own', async () => {
  const store = new MemoryStore();
  const version = await store.put('kept', Uint8Array.of(1));
  const upload = await store.beginUpload('sent');
  const part = await store.putPart(upload, 1, Uint8Array.of(2));
  const contents = store.contents();
  await store.put('kept', Uint8Array.of(3));
  await store.put('later', Uint8Array.of(4));
  await store.abortUpload(upload);
  const other = new MemoryStore({ contents });
  assert.deepEqual((await other.list({ prefix: '' })).objects.map(({ key, version: v }) => [key, v]), [['kept', version]]);
  await other.completeUpload(upload, [part]);
  assert.notEqual(await other.put('kept', Uint8Array.of(5), { condition: { version } }), version);
  assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), ['kept', 'later']);
  assert.deepEqual((await new MemoryStore({ contents }).list({ prefix: '' })).objects.map(({ key }) => key), ['kept']);
});
