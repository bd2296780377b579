/** A daemon that ends when its commit has been done and before it has heard of that: what is changed after the restart is not taken for what the object has. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { MortalStore } from '../support/mortal-store.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Guest, killedInRename, objectOf, PARTS, SMALL, withGuest } from '../support/writing-guest.js';

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

const SIZE = 100_000;
const REMOTE = { durability: 'remote', sizes: SMALL } as const;

/** A daemon is killed when this call has come, done or on its way: then `late` does it. What it was to commit is `size` bytes of `f`. */
async function killedInCommit(memory: MemoryStore, cacheDirectory: string, operation: Call['operation'], size: number, isDone: boolean): Promise<() => Promise<unknown>> {
  let late = async (): Promise<unknown> => undefined;
  const mortal: MortalStore = new MortalStore(intercept(memory, async (call, attempt) => {
    if (call.operation !== operation) return attempt(call.signal);
    if (isDone) await attempt(call.signal);
    else late = () => attempt(undefined);
    mortal.die();
    return undefined as never;
  }));
  const g = await ObjectGuest.start(mortal.store, { write: { ...REMOTE, cacheDirectory } });
  const guest = new Guest(g);
  const { entry, fh } = await g.create(ROOT, 'f');
  await guest.write(entry.node, fh, 0, Buffer.alloc(size, 'a'));
  g.queue.chain([g.request(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0))).bytes], [16], true);
  g.queue.kick();
  while (!mortal.dead) await turn();
  const killed = g.kill();
  mortal.end();
  await killed;
  return late;
}

const conflictsIn = async (memory: MemoryStore): Promise<string[]> => (await memory.list({ prefix: '.bucketfsd-conflicts/' })).objects.map(({ key }) => key);

test('what is written while a commit in doubt is made again is in the bucket when close is answered', async () => {
  const memory = new MemoryStore({ limits: PARTS });
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  await killedInCommit(memory, cacheDirectory, 'completeUpload', SIZE, true);
  let reach = (): void => undefined;
  let release = (): void => undefined;
  const [reached, released] = [new Promise<void>((resolve) => (reach = resolve)), new Promise<void>((resolve) => (release = resolve))];
  const store = intercept(memory, async (call, attempt) => {
    const done = await attempt(call.signal);
    if (call.operation !== 'beginUpload') return done;
    reach();
    await released;
    return done;
  });
  const g = await ObjectGuest.start(store, { write: { ...REMOTE, cacheDirectory } });
  const guest = new Guest(g);
  const { node } = await g.lookup(ROOT, 'f');
  const fh = await g.open(node, O_RDWR);
  // What is left of a former daemon is committed without anybody asking
  await reached;
  await guest.write(node, fh, 10, Buffer.from('new'));
  release();
  assert.equal(await guest.close(node, fh), 0);
  assert.equal(String((await objectOf(memory, 'f')).subarray(8, 15)), 'aanewaa');
  assert.deepEqual(await conflictsIn(memory), []);
  await g.close();
  rmSync(cacheDirectory, { recursive: true });
});

test('what is written after an upload was completed without an answer is in the bucket when it is synced', async () => {
  const memory = new MemoryStore({ limits: PARTS });
  const faulty = new FaultyStore(memory);
  await withGuest(faulty.store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'f');
    await guest.write(node, fh, 0, Buffer.alloc(SIZE, 'a'));
    const silent = { kind: 'lost-reply' } as const;
    faulty.inject({ operation: 'completeUpload', nth: 1, fault: silent }, ...[1, 2, 3, 4, 5, 6].map((nth) => ({ operation: 'head' as const, nth, fault: { kind: 'before', code: 'denied' } as const })));
    assert.notEqual(await guest.fsync(node, fh), 0);
    faulty.heal();
    await guest.write(node, fh, 10, Buffer.from('new'));
    assert.equal(await guest.fsync(node, fh), 0);
    assert.equal(String((await objectOf(memory, 'f')).subarray(8, 15)), 'aanewaa');
    assert.equal(await guest.close(node, fh), 0);
    assert.deepEqual(await conflictsIn(memory), []);
  }, { write: REMOTE });
});

test('a commit that a killed daemon has sent is not taken for another client\'s when the next attempt was refused', async () => {
  const memory = new MemoryStore();
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const late = await killedInCommit(memory, cacheDirectory, 'put', 100, false);
  const faulty = new FaultyStore(memory);
  faulty.inject(...[1, 2, 3].map((nth) => ({ operation: 'put', nth, fault: { kind: 'before', code: 'denied' } }) as const));
  await withGuest(faulty.store, async (guest) => {
    const { node } = await guest.g.lookup(ROOT, 'f');
    const fh = await guest.g.open(node, O_RDWR);
    assert.notEqual(await guest.fsync(node, fh), 0);
    faulty.heal();
    await late();
    await guest.write(node, fh, 10, Buffer.from('new'));
    assert.equal(await guest.close(node, fh), 0);
    assert.equal(String((await objectOf(memory, 'f')).subarray(8, 15)), 'aanewaa');
    assert.deepEqual(await conflictsIn(memory), []);
  }, { write: { ...REMOTE, cacheDirectory } });
  rmSync(cacheDirectory, { recursive: true });
});

test('a commit of which no answer came stays in doubt when the next request is refused', async () => {
  const memory = new MemoryStore();
  let late = async (): Promise<unknown> => undefined;
  let puts = 0;
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation !== 'put' || ++puts > 2) return attempt(call.signal);
    if (puts === 2) throw new StorageError('denied', call.subject);
    late = () => attempt(undefined);
    throw new StorageError('timeout', call.subject, { ambiguous: true });
  });
  await withGuest(store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'f');
    await guest.write(node, fh, 0, Buffer.alloc(100, 'a'));
    assert.notEqual(await guest.fsync(node, fh), 0);
    await late();
    await guest.write(node, fh, 10, Buffer.from('new'));
    assert.equal(await guest.close(node, fh), 0);
    assert.equal(String((await objectOf(memory, 'f')).subarray(8, 15)), 'aanewaa');
    assert.deepEqual(await conflictsIn(memory), []);
  }, { write: REMOTE });
});

test('a file that others remove between its last part and attributes that came meanwhile does not come back', async () => {
  const memory = new MemoryStore({ limits: PARTS });
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation === 'setMetadata') await memory.remove('f');
    return attempt(call.signal);
  });
  await withGuest(store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'f');
    await guest.write(node, fh, 0, Buffer.alloc(SIZE, 'a'));
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, 1, true);
    args.setUint32(68, 0o600, true);
    assert.equal((await guest.g.call(OP.SETATTR, node, new Uint8Array(args.buffer), 104)).error, 0);
    await guest.close(node, fh);
  }, { write: REMOTE });
  assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), []);
});

test('a file that could not be removed while its commit was in doubt is in the bucket in the end', async () => {
  const memory = new MemoryStore();
  const faulty = new FaultyStore(memory);
  const refused = { kind: 'before', code: 'denied' } as const;
  const g = await ObjectGuest.start(faulty.store, { write: REMOTE });
  const guest = new Guest(g);
  const { entry: { node }, fh } = await g.create(ROOT, 'f');
  await guest.write(node, fh, 0, Buffer.from('written'));
  faulty.inject({ operation: 'put', nth: 1, fault: { kind: 'lost-request' } }, ...[1, 2, 3, 4].map((nth) => ({ operation: 'head' as const, nth, fault: refused })));
  assert.notEqual(await guest.close(node, fh), 0);
  assert.notEqual((await g.call(OP.UNLINK, ROOT, name('f'), 0)).error, 0);
  faulty.heal();
  assert.equal(await g.close(), 0);
  assert.equal(String(await objectOf(memory, 'f')), 'written');
});
