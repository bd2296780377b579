/** A daemon that ends when its commit has been done and before it has heard of that: what is changed after the restart is not taken for what the object has. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { MortalStore } from '../support/mortal-store.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Guest, killedInRename, objectOf } from '../support/writing-guest.js';

const ROOT = 1n;
const O_RDWR = 2;
const O_TRUNC = 0o1000;

test('a file that was cut to what it had been before is what it was cut to, after another restart too', async () => {
  const memory = new MemoryStore();
  await memory.put('f', Buffer.from(''));
  await memory.put('other', Buffer.from('other'));
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const options = { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 60_000 } } as const;
  const mortal: MortalStore = new MortalStore(intercept(memory, async (call, attempt) => {
    const done = await attempt(call.signal);
    if (call.operation === 'put') mortal.die();
    return done;
  }));
  const first = new Guest(await ObjectGuest.start(mortal.store, options));
  const { g } = first;
  const { node } = await g.lookup(ROOT, 'f');
  await first.write(node, await g.open(node, O_RDWR), 0, Buffer.from('written'));
  // What it replaces is committed before
  await killedInRename(g, mortal, 'other', 'f');
  assert.equal(String(await objectOf(memory, 'f')), 'written');
  const second = await ObjectGuest.start(memory, options);
  await second.open((await second.lookup(ROOT, 'f')).node, O_RDWR | O_TRUNC);
  await second.kill();
  const third = await ObjectGuest.start(memory, options);
  assert.equal((await third.lookup(ROOT, 'f')).size, 0);
  assert.equal(await third.close(), 0);
  assert.equal((await objectOf(memory, 'f')).length, 0);
  rmSync(cacheDirectory, { recursive: true });
});
