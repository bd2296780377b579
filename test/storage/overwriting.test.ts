/**
 * Parts of an upload that were copied from the object belong to its version.
 *
 * Suspected, and so it was: with --on-conflict=overwrite, where the provider honours no conditions, an upload that could not be completed was gone on with on top of
 * somebody else's version, with parts that had been copied from the one before. And where parts are copied of whatever is there, and that had got shorter, the
 * commit failed with EIO for good, instead of being the conflict that it is.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { ObjectGuest } from '../support/object-guest.js';
import { objectOf, PARTS, SMALL } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

const CONDITIONS = { putIfAbsent: false, putIfVersion: false, completeIfAbsent: false, completeIfVersion: false, copyIfAbsent: false, copyIfVersion: false, deleteIfVersion: false, atomicDelete: false };
const BYTES = 400_000;
/** Up to where a part begins: what is fetched to make a part whole counts as written. */
const WRITTEN = 192 << 10;

test('an upload that is gone on with on top of another version has nothing of the one before', async () => {
  const memory = new MemoryStore({ limits: PARTS, capabilities: { ...CONDITIONS, rename: false, metadataInPlace: false } });
  await memory.put('f', pattern(BYTES, 1));
  let failing = true;
  const guest = await ObjectGuest.start(intercept(memory, async (call, attempt) => {
    if (call.operation !== 'completeUpload' || !failing) return attempt(call.signal);
    failing = false;
    throw new StorageError('unavailable', call.subject);
  }), { write: { sizes: SMALL, onConflict: 'overwrite' } });
  const actor = new Actor(guest, memory);
  await actor.change('f', 0, pattern(WRITTEN, 2));
  assert.equal(await actor.fsync(), -E.IO);
  await memory.put('f', pattern(BYTES, 3));
  assert.equal(await actor.fsync(), 0);
  assert.equal(await actor.files.close(actor.file), 0);
  assert.equal(await guest.close(), 0);
  const expected = pattern(BYTES, 3);
  expected.set(pattern(WRITTEN, 2));
  assert.ok((await objectOf(memory, 'f')).equals(expected));
});

test('an object that has got shorter, where parts are copied of whatever is there, is a conflict', async () => {
  const memory = new MemoryStore({ limits: PARTS, capabilities: { copyPartIfVersion: false } });
  await memory.put('f', pattern(BYTES, 1));
  const guest = await ObjectGuest.start(memory, { write: { sizes: SMALL } });
  const actor = new Actor(guest, memory);
  await actor.change('f', 0, pattern(10, 2));
  await memory.put('f', pattern(1000, 3));
  assert.equal(await actor.fsync(), -E.STALE);
  await actor.files.close(actor.file);
  assert.equal(await guest.close(), 0);
  assert.ok((await objectOf(memory, 'f')).equals(pattern(1000, 3)));
});
