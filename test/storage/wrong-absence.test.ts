/**
 * A provider that says once of an object that it is not there, though it is: attributes and data that were acknowledged are not given up for that.
 *
 * The fault: attributes that wait for the bucket belong to the version that they were set of. One wrong 404 to a HEAD, and they went with it. The same answer to
 * a commit that has lost a race made a conflict copy. With --on-conflict=overwrite it was taken for a version of somebody else: the file that was open lost its
 * name to another one, and what was not staged of it became zeros. And where the name was about to be given to something, that went on beside the file that was open.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP, type Reply } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { objectOf, PARTS, SMALL } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

const LATER = { durability: 'writeback', writebackDelay_ms: 600_000 } as const;
const CALLS_MAX = 30;
const BYTES = 400_000;
/** O_RDWR, O_CREAT and O_EXCL. */
const O_CREAT_EXCL = 0o302;
/** O_RDWR, O_CREAT and O_APPEND. */
const O_CREAT_APPEND = 0o2102;
const RENAME_NOREPLACE = 1;

/** The n-th of these calls from begin() on says that there is nothing; `before` it, calls that change something lose a race that nobody has won. */
function wrong(memory: MemoryStore, operation: Call['operation'], n: number, races: boolean): { store: ObjectStore; begin(): void; end(): void; lied(): boolean } {
  let left = Infinity;
  let raced = !races;
  let lied = false;
  const store = intercept(memory, async (call, attempt) => {
    if (left < Infinity && !raced && ['put', 'setMetadata', 'completeUpload'].includes(call.operation)) {
      raced = true;
      throw new StorageError('changed', call.subject, { status: 409 });
    }
    if (call.operation !== operation || !raced || --left !== 0) return attempt(call.signal);
    lied = true;
    throw new StorageError('not-found', call.subject, { status: 404 });
  });
  return { store, begin: () => { left = n; }, end: () => { left = Infinity; }, lied: () => lied };
}

/** How a guest makes something of the name of an object that nobody here has open, and what it is told. */
const WAYS: readonly (readonly [what: string, error: number, make: (guest: ObjectGuest) => Promise<number>])[] = [
  ['CREATE with O_EXCL', -E.EXIST, async (guest) => (await guest.call(OP.CREATE, ROOT, concat(u32(O_CREAT_EXCL, 0o100644, 0o22, 0), name('f')), 144)).error],
  ['CREATE, and what is appended', 0, async (guest) => {
    const create = (): Promise<Reply> => guest.call(OP.CREATE, ROOT, concat(u32(O_CREAT_APPEND, 0o100644, 0o22, 0), name('f')), 144);
    let made = await create();
    // Linux tries again where there is something that it did not know
    if (made.error === -E.STALE) made = await create();
    if (made.error !== 0) return made.error;
    const file = { node: made.data.getBigUint64(0, true), fh: made.data.getBigUint64(128, true) };
    const size = Number(made.data.getBigUint64(40 + 8, true));
    const files = new Files(guest);
    return (await files.write(file, size, Buffer.from('+'))) || files.close(file);
  }],
  ['MKNOD', -E.EXIST, async (guest) => (await guest.call(OP.MKNOD, ROOT, concat(u32(0o100644, 0, 0o22, 0), name('f')), 128)).error],
  ['SYMLINK', -E.EXIST, async (guest) => (await guest.call(OP.SYMLINK, ROOT, concat(name('f'), name('target')), 128)).error],
  ['MKDIR', -E.EXIST, async (guest) => (await guest.call(OP.MKDIR, ROOT, concat(u32(0o755, 0o22), name('f')), 128)).error],
  ['RENAME2 with NOREPLACE', -E.EXIST, async (guest) => (await guest.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(RENAME_NOREPLACE, 0), name('other'), name('f')))).error],
];

for (const operation of ['head', 'setMetadata'] as const) describe(`one wrong 404 to a ${operation}`, () => {
  for (const races of [false, true]) {
    test(`loses no attributes that wait for the bucket${races ? ', nor in a race' : ''}`, async () => {
      for (let n = 1; n < CALLS_MAX; n++) {
        const memory = new MemoryStore({ capabilities: { listingHasMetadata: false, metadataInPlace: false, fetch: false } });
        await memory.put('f', Buffer.from('content'));
        const way = wrong(memory, operation, n, races);
        const guest = await ObjectGuest.start(way.store, { write: LATER });
        const actor = new Actor(guest, memory);
        assert.equal(await actor.chmod('f', 0o600), 0);
        const node = await actor.walk('f');
        way.begin();
        // What a guest asks while they wait: a name, attributes, an open
        await actor.walk('f');
        await guest.call(OP.GETATTR, node, new Uint8Array(16), 104);
        // The first one may be served by what a lookup has just told
        for (let opens = 0; opens < 2; opens++) await guest.call(OP.OPEN, node, u32(0, 0), 16);
        await guest.opened.idle();
        assert.equal(await guest.close(), 0);
        assert.equal(readPosix((await memory.head('f')).metadata!).posix.mode! & 0o777, 0o600, `${operation} ${n}: ${guest.log.join()}`);
        if (!way.lied()) return;
      }
      assert.fail('that takes too many calls');
    });
  }
});

test('one wrong 404 to a head makes no conflict of a commit that was told to try again', async () => {
  const memory = new MemoryStore();
  await memory.put('f', Buffer.from('content'));
  const way = wrong(memory, 'head', 1, true);
  const guest = await ObjectGuest.start(way.store, {});
  const actor = new Actor(guest, memory);
  await actor.change('f', 0, Buffer.from('changed'));
  way.begin();
  const told = await actor.fsync();
  assert.ok(way.lied());
  if (told !== 0) assert.equal(await actor.fsync(), 0);
  assert.equal((await guest.call(OP.RELEASE, actor.file.node, concat(u64(actor.file.fh), u32(0, 0), u64(0)), 0)).error, 0);
  assert.equal(await guest.close(), 0);
  assert.equal(String(await objectOf(memory, 'f')), 'changed');
  assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
});

for (const races of [false, true]) for (const honoured of [false, true]) {
  test(`one wrong 404 to a head of a commit makes no other file of one that is open${races ? ', nor in a race' : ''}, where the last one counts ${honoured ? 'with' : 'without'} conditions`, async () => {
    for (let n = 1; n < CALLS_MAX; n++) {
      const conditions = honoured ? {} : { putIfAbsent: false, putIfVersion: false, completeIfAbsent: false, completeIfVersion: false };
      const memory = new MemoryStore({ limits: PARTS, capabilities: { ...conditions, fetch: false } });
      const expected = pattern(BYTES, 1);
      await memory.put('f', expected);
      const way = wrong(memory, 'head', n, races);
      const guest = await ObjectGuest.start(way.store, { write: { sizes: SMALL, onConflict: 'overwrite' }, metadataTtl_ms: 60_000 });
      const actor = new Actor(guest, memory);
      await actor.change('f', 0, pattern(1000, 2));
      expected.set(pattern(1000, 2));
      way.begin();
      const told = await actor.fsync();
      way.end();
      if (told !== 0) assert.equal(await actor.fsync(), 0);
      assert.equal(await actor.walk('f'), actor.file.node, `head ${n}`);
      const read = await actor.files.read(actor.file, BYTES - 1000);
      assert.ok(typeof read !== 'number' && read.equals(expected.subarray(BYTES - 1000)), `head ${n}`);
      assert.equal(await actor.files.close(actor.file), 0);
      assert.equal(await guest.close(), 0);
      assert.ok((await objectOf(memory, 'f')).equals(expected), `head ${n}`);
      if (!way.lied()) return;
    }
    assert.fail('that takes too many calls');
  });
}

for (const onConflict of ['keep', 'overwrite'] as const) {
  test(`one wrong 404 to who makes a file, or renames one, takes no name from a file that is open, with ${onConflict}`, async () => {
    for (const what of ['create', 'rename'] as const) {
      for (let n = 1; n <= CALLS_MAX; n++) {
        const memory = new MemoryStore({ capabilities: { putIfAbsent: false, putIfVersion: false, rename: false, fetch: false } });
        for (const key of ['f', 'other']) await memory.put(key, Buffer.from(key));
        const way = wrong(memory, 'head', n, false);
        const guest = await ObjectGuest.start(way.store, { write: { onConflict } });
        const actor = new Actor(guest, memory);
        await actor.change('f', 0, Buffer.from('g'));
        assert.equal(await actor.fsync(), 0);
        way.begin();
        const told = what === 'rename' ? await actor.rename('other', 'f') : (await guest.call(OP.CREATE, 1n, concat(u32(O_CREAT_EXCL, 0o100644, 0o22, 0), name('f')), 144)).error;
        way.end();
        // It may be of the old name
        const isRenamed = what === 'rename' && told !== -E.NOENT;
        assert.equal(told, isRenamed ? 0 : what === 'rename' ? -E.NOENT : -E.EXIST, `${what} ${n}`);
        assert.equal(await actor.files.write(actor.file, 0, Buffer.from('h')), 0);
        assert.equal(await actor.fsync(), 0);
        assert.equal(await actor.files.close(actor.file), 0);
        assert.equal(await guest.close(), 0);
        assert.equal(String(await objectOf(memory, 'f')), isRenamed ? 'other' : 'h', `${what} ${n}`);
        if (!way.lied()) break;
        assert.ok(n < CALLS_MAX, 'that takes too many calls');
      }
    }
  });
}

for (const honoured of [false, true]) {
  test(`with overwrite one wrong 404 to who makes something replaces no object that is there, ${honoured ? 'with' : 'without'} conditions`, async () => {
    const conditions = honoured ? {} : { putIfAbsent: false, putIfVersion: false, completeIfAbsent: false, completeIfVersion: false, copyIfAbsent: false, copyIfVersion: false };
    for (const [what, error, make] of WAYS) {
      for (let n = 1; n <= CALLS_MAX; n++) {
        const memory = new MemoryStore({ capabilities: { ...conditions, rename: false, fetch: false } });
        for (const key of ['f', 'other']) await memory.put(key, Buffer.from(key));
        const way = wrong(memory, 'head', n, false);
        const guest = await ObjectGuest.start(way.store, { write: { onConflict: 'overwrite' } });
        way.begin();
        const told = await make(guest);
        way.end();
        // It may be of the old name of a rename
        if (told !== -E.NOENT || what !== 'RENAME2 with NOREPLACE') assert.equal(told, error, `${what} ${n}`);
        assert.equal(await guest.close(), 0);
        assert.equal(String(await objectOf(memory, 'f')), what === 'CREATE, and what is appended' ? 'f+' : 'f', `${what} ${n}`);
        assert.equal(String(await objectOf(memory, 'other')), 'other', `${what} ${n}`);
        if (!way.lied()) break;
        assert.ok(n < CALLS_MAX, 'that takes too many calls');
      }
    }
  });
}
