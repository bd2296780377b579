/**
 * A file that is written while its conflict's copy is on its way, or that loses its name while it is committed: what was acknowledged is in the copy, and
 * nobody commits the file any more.
 *
 * What else could fail for the same reasons: a copy that fails once and is made anew; a writer that does not stop; another fsync that waits for the commit
 * that conflicts; the commit that follows a conflict by itself; a daemon killed right after, and a power failure; a name that goes while the store is asked what is there.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { CacheDirectory } from '../../src/storage/object/write/cache-directory.js';
import { CommitMaker } from '../../src/storage/object/write/commit.js';
import { Committer } from '../../src/storage/object/write/committer.js';
import { Gate } from '../../src/storage/object/write/gate.js';
import { COMMIT_SIZES } from '../../src/storage/object/write/layout.js';
import { recover } from '../../src/storage/object/write/recovery.js';
import { StagedFile } from '../../src/storage/object/write/staged-file.js';
import { name, OP } from '../support/guest.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Guest, objectOf, PARTS, SMALL } from '../support/writing-guest.js';

const ROOT = 1n;
const O_RDWR = 2;
const CONFLICTS = '.bucketfsd-conflicts/';
const bytes = (text: string): Buffer => Buffer.from(text);

/** A store of which some calls wait before anything happens. */
class HeldStore {
  readonly store: ObjectStore;
  readonly #waiting: (() => void)[] = [];
  holds: (call: Call) => boolean = () => false;
  fails: (call: Call) => boolean = () => false;

  constructor(readonly memory: MemoryStore) {
    this.store = intercept(memory, async (call, attempt) => {
      if (this.holds(call)) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      if (this.fails(call)) throw new StorageError('unavailable', call.subject);
      return attempt(call.signal);
    });
  }

  /** Until a call waits. */
  async held(): Promise<void> {
    while (this.#waiting.length === 0) await turn();
  }

  release(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

const isCopy = ({ operation, subject }: Call): boolean => operation === 'put' && subject.includes(CONFLICTS);
const isCommit = ({ operation, subject }: Call): boolean => operation === 'put' && subject.endsWith('/f');

/** The conflict copies of a file, the only one as text. */
async function copyOf(memory: MemoryStore, key: string): Promise<string> {
  const { objects } = await memory.list({ prefix: `${CONFLICTS}${key}.` });
  assert.equal(objects.length, 1, objects.map((one) => one.key).join(' '));
  return String(await objectOf(memory, objects[0].key));
}

/** `body` says when it has closed the guest itself. */
async function withHeld(body: (guest: Guest, held: HeldStore, cacheDirectory: string) => Promise<void | 'closed'>): Promise<void> {
  const held = new HeldStore(new MemoryStore({ limits: PARTS }));
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const g = await ObjectGuest.start(held.store, { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 0, sizes: SMALL } });
  let closed = false;
  try {
    closed = (await body(new Guest(g), held, cacheDirectory)) === 'closed';
  } finally {
    held.holds = () => false;
    held.release();
    if (!closed) await g.close();
    rmSync(cacheDirectory, { recursive: true });
  }
}

/** A file that the guest has open, has changed, and of which a conflict is being kept. */
async function inConflict(guest: Guest, held: HeldStore): Promise<{ node: bigint; fh: bigint }> {
  await held.memory.put('f', bytes('one'));
  const { node } = await guest.g.lookup(ROOT, 'f');
  const fh = await guest.g.open(node, O_RDWR);
  await guest.write(node, fh, 0, bytes('mine'));
  await held.memory.put('f', bytes('theirs'));
  held.holds = isCopy;
  assert.equal(await guest.fsync(node, fh), 0);
  await held.held();
  return { node, fh };
}

describe('a conflict with writeback', () => {
  test('what is written and synced while the copy is on its way is in the copy', () => withHeld(async (guest, held) => {
    const { node, fh } = await inConflict(guest, held);
    await guest.write(node, fh, 4, bytes(' and more'));
    assert.equal(await guest.fsync(node, fh), 0);
    held.holds = () => false;
    held.release();
    await guest.g.opened.idle();
    assert.equal(await copyOf(held.memory, 'f'), 'mine and more');
    assert.equal(String(await objectOf(held.memory, 'f')), 'theirs');
    assert.equal(await guest.fsync(node, fh), -E.STALE);
  }));

  test('a copy that could not be made the first time has it too', () => withHeld(async (guest, held) => {
    const { node, fh } = await inConflict(guest, held);
    held.fails = isCopy;
    held.holds = () => false;
    held.release();
    await guest.g.opened.idle();
    await guest.write(node, fh, 4, bytes(' and more'));
    held.fails = () => false;
    assert.equal(await guest.fsync(node, fh), 0);
    await guest.g.close();
    assert.equal(await copyOf(held.memory, 'f'), 'mine and more');
    return 'closed';
  }));

  test('a program that does not stop writing is told in the end, and all that it was told before is in the copy', () => withHeld(async (guest, held) => {
    const { node, fh } = await inConflict(guest, held);
    let acknowledged = 4;
    let copies = 0;
    for (;;) {
      const { error } = await guest.g.write(node, fh, acknowledged, bytes('x'));
      if (error !== 0) {
        assert.equal(error, -E.STALE);
        break;
      }
      acknowledged++;
      assert.ok(copies++ < 20);
      held.release();
      for (let turns = 0; turns < 20; turns++) await turn();
    }
    held.holds = () => false;
    held.release();
    await guest.g.opened.idle();
    assert.equal(await copyOf(held.memory, 'f'), `mine${'x'.repeat(acknowledged - 4)}`);
  }));

  test('whoever waits for a commit meanwhile hears ESTALE, and no commit follows', () => withHeld(async (guest, held, cacheDirectory) => {
    const { node, fh } = await inConflict(guest, held);
    await guest.write(node, fh, 4, bytes('!'));
    let puts = 0;
    // A rename has to wait for what is under way, and then for a commit
    const { g } = guest;
    g.queue.chain([g.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('f'), name('g'))).bytes], [16], true);
    g.queue.kick();
    for (let turns = 0; turns < 20; turns++) await turn();
    held.holds = () => false;
    held.fails = (call) => (isCommit(call) && puts++ > 0, false);
    held.release();
    await g.queue.wait();
    await g.opened.idle();
    assert.equal(puts, 0);
    assert.equal(await copyOf(held.memory, 'f'), 'mine!');
    await guest.release(node, fh);
    await g.opened.idle();
    assert.deepEqual(readdirSync(join(cacheDirectory, 'staging')), []);
    await g.kill();
    const next = await ObjectGuest.start(held.memory, { write: { cacheDirectory } });
    assert.deepEqual(next.recovered, []);
    await next.close();
    return 'closed';
  }));
});

test('what was synced of a new file is kept beside another\'s, though more was written to it and the machine was started anew', async () => {
  const memory = new MemoryStore({ limits: PARTS });
  const held = new HeldStore(memory);
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const start = (bootId: string): Promise<ObjectGuest> => ObjectGuest.start(held.store, { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 0, bootId } });
  const before = await start('one');
  const guest = new Guest(before);
  held.fails = isCommit;
  const { entry: { node }, fh } = await before.create(ROOT, 'f');
  await guest.write(node, fh, 0, bytes('synced'));
  assert.equal(await guest.fsync(node, fh), 0);
  await guest.write(node, fh, 6, bytes(' and not'));
  await before.kill();
  held.fails = () => false;
  await memory.put('f', bytes('theirs'));
  const after = await start('another');
  await after.opened.idle();
  await after.close();
  rmSync(cacheDirectory, { recursive: true });
  assert.equal(String(await objectOf(memory, 'f')), 'theirs');
  assert.equal(await copyOf(memory, 'f'), 'synced');
});

test('when a copy could not be made, and is made again, what only the lost version had is missing and not zeros', () => withHeld(async (guest, held) => {
  for (const size of [1000, 300_000]) {
    const key = `f${size}`;
    await held.memory.put(key, Buffer.alloc(size, 1));
    const { node } = await guest.g.lookup(ROOT, key);
    const fh = await guest.g.open(node, O_RDWR);
    await guest.write(node, fh, 500, bytes('mine'));
    await held.memory.put(key, bytes('theirs'));
    const isOurs = (call: Call): boolean => call.subject.includes(CONFLICTS) && ['put', 'completeUpload'].includes(call.operation);
    held.holds = isOurs;
    held.fails = isOurs;
    assert.equal(await guest.fsync(node, fh), 0);
    await held.held();
    held.holds = () => false;
    held.release();
    await guest.g.opened.idle();
    assert.equal((await guest.g.read(node, fh, 0, 400)).error, -E.STALE);
    held.fails = () => false;
    assert.equal(await guest.fsync(node, fh), 0);
    await guest.g.opened.idle();
    while ((await held.memory.list({ prefix: `${CONFLICTS}${key}.` })).objects.length === 0) await turn();
    const { objects: [copy] } = await held.memory.list({ prefix: `${CONFLICTS}${key}.` });
    assert.equal((await held.memory.head(copy.key)).metadata!['bucketfsd-missing'], `0-500,504-${size}`);
    assert.equal(String((await objectOf(held.memory, copy.key)).subarray(500, 504)), 'mine');
  }
}));

test('a copy that has no room for the list of what is missing beside the attributes is made all the same', () => withHeld(async (guest, held) => {
  await held.memory.put('f', Buffer.alloc(10_000, 1));
  const { node } = await guest.g.lookup(ROOT, 'f');
  const value = Buffer.alloc(1300, 2);
  const set = concat(u32(value.length, 0, 0, 0), name('user.large'), value);
  assert.equal((await guest.g.call(OP.SETXATTR, node, set, 0)).error, 0);
  await guest.g.opened.idle();
  const fh = await guest.g.open(node, O_RDWR);
  await guest.write(node, fh, 0, bytes('mine'));
  await held.memory.put('f', bytes('theirs'));
  assert.equal(await guest.fsync(node, fh), 0);
  await guest.g.opened.idle();
  const { objects: [copy] } = await held.memory.list({ prefix: CONFLICTS });
  assert.equal(copy.size, 10_000);
  assert.equal(String(await objectOf(held.memory, copy.key)).slice(0, 4), 'mine');
  assert.ok((await held.memory.head(copy.key)).metadata!['xattr'] !== undefined);
}));

for (const [what, goes] of [
  ['is removed', (g: ObjectGuest) => g.call(OP.UNLINK, ROOT, name('f'), 0)],
  ['is given to another file', (g: ObjectGuest) => g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('other'), name('f')), 0)],
] as const) {
  test(`a name that ${what} while the commit of its file becomes a conflict is ESTALE, and both are kept`, async () => {
    const memory = new MemoryStore({ limits: PARTS });
    for (const [key, content] of [['f', 'one that is long'], ['other', 'other']]) await memory.put(key, bytes(content));
    const held = new HeldStore(memory);
    // Of a bucket whose answer is not compared with the version that was asked for
    const { store } = held;
    const unaware: ObjectStore = { ...store, read: (key, { version: _version, ...options }) => store.read(key, options) };
    const g = await ObjectGuest.start(unaware, { metadataTtl_ms: 600_000, write: { durability: 'writeback', writebackDelay_ms: 0, sizes: SMALL } });
    try {
      const guest = new Guest(g);
      for (const one of ['f', 'other']) await g.lookup(ROOT, one);
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, O_RDWR);
      held.holds = isCommit;
      await guest.write(node, fh, 0, bytes('mine'));
      assert.equal(await guest.fsync(node, fh), 0);
      await held.held();
      await memory.put('f', bytes('two'));
      const gone = goes(g);
      for (let turns = 0; turns < 20; turns++) await turn();
      held.holds = () => false;
      held.release();
      assert.equal((await gone).error, -E.STALE);
      await g.opened.idle();
      assert.equal(String(await objectOf(memory, 'f')), 'two');
      assert.equal(String(await objectOf(memory, 'other')), 'other');
      assert.match(await copyOf(memory, 'f'), /^mine/);
      assert.equal((await goes(g)).error, 0, 'Linux looks again, and comes back');
      assert.ok(!g.log.some((line) => line.startsWith('defect')), g.log.join('\n'));
    } finally {
      await g.close();
    }
  });
}

test('a commit that conflicts after its file has lost its name is nobody\'s conflict', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const memory = new MemoryStore();
  await memory.put('f', bytes('theirs'));
  const log: string[] = [];
  const sink = { guest: (_key: string, _fields: object, message: string) => void log.push(message), error: (_fields: object, message: string) => void log.push(message) };
  const cache = CacheDirectory.open(directory, { location: memory.location, prefix: '' });
  const { shop } = await recover(cache, memory, new MemoryBudget(1 << 20), true, sink);
  const time = { seconds: 0, nanoseconds: 0 };
  const file = StagedFile.create(shop, 'f', {
    mode: 0o100644, uid: 0, gid: 0, rdev: 0, size: 0, mtime: time, atime: time, ctime: time, version: null, symlink: null, xattrs: new Map(), kept: {}, headers: {},
  });
  // While the store is asked what is there
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation === 'head') file.rename(null, null);
    return attempt(call.signal);
  });
  const nobody = (): never => assert.fail('this is no conflict');
  const maker = new CommitMaker({ ...shop, store }, { posix: 'full', sizes: COMMIT_SIZES, hiddenKey: () => '.bucketfsd-unlinked/1', overwrite: false });
  const committer = new Committer(maker, { durability: 'remote', writebackDelay_ms: 0, prefix: '' }, {
    believedUntil: () => Infinity, waiting: () => null, committed: nobody, conflicting: nobody, conflicted: nobody,
  }, new Gate(), sink);
  await committer.durable(file);
  assert.deepEqual(log, []);
  assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
  committer.abandon();
  file.abandon();
  shop.ledger.close();
  cache.close();
  rmSync(directory, { recursive: true });
});
