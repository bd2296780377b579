/**
 * Each call of the store that a change takes fails once, in every way: refused, lost on its way, done with the answer lost, or done twice. Then
 * the daemon goes on and the guest tries again, or the daemon is killed and started again. Afterwards everything that was
 * acknowledged is in the bucket, what failed has happened or not, and nothing is left behind.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { E, errnoName } from '../../src/base/errno.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { FaultyStore, type Fault } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { CacheDirectory } from '../../src/storage/object/write/cache-directory.js';
import { inspect } from '../../src/storage/object/write/recovery.js';
import { MortalStore } from '../support/mortal-store.js';
import { Files } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Actor, digest } from './write-faults/actor.js';
import { flushes, large, piece, SCENARIOS, small, type Scenario } from './write-faults/scenarios.js';

const KIB = 1 << 10;
const SIZES = { putMaxBytes: 16 * KIB, partBytes: 8 * KIB, copyMaxBytes: 64 * KIB, growAfterParts: 4, partsAtOnce: 3 };
const LIMITS = { partMinBytes: 4 * KIB, partMaxBytes: 256 * KIB, parts: 100 };
const CASES_AT_ONCE = 12;
const MEMORY = '/dev/shm';

const FAULTS: Readonly<Record<string, Fault>> = {
  'is refused': { kind: 'before', code: 'unavailable' },
  'is lost': { kind: 'lost-request' },
  'is done and its answer lost': { kind: 'lost-reply' },
  'is done twice': { kind: 'repeated' },
};

/** What changes nothing fails in one way. */
const READS: ReadonlySet<Call['operation']> = new Set(['head', 'list', 'read']);

/** Every object, with what others see of it; ids of conflicts are all the same. */
async function contentsOf(store: ObjectStore): Promise<Record<string, string>> {
  const found: Record<string, string> = {};
  for (const { key } of (await store.list({ prefix: '' })).objects) {
    const { size, metadata } = await store.head(key);
    const into = new Uint8Array(size);
    await store.read(key, { offset: 0, into });
    const { posix } = readPosix(metadata!);
    const plain = key.replace(/^(\.bucketfsd-conflicts\/.*)\.[0-9a-f]{8}$/, '$1.ID');
    assert.equal(found[plain], undefined, `${plain} is kept twice`);
    found[plain] = `${digest(into)} mode ${posix.mode?.toString(8) ?? '-'} xattrs ${[...(posix.xattrs?.keys() ?? [])].join()}`;
  }
  return found;
}

interface Outcome {
  readonly error: number;
  readonly contents: Record<string, string>;
  /** Calls of the store from `act` until nothing was left to do. */
  readonly calls: readonly Call['operation'][];
}

interface Wanted {
  readonly acts: boolean;
  readonly fault?: { readonly operation: Call['operation']; readonly nth: number; readonly fault: Fault };
  readonly ending: 'goes on' | 'is killed';
}

async function run(scenario: Scenario, wanted: Wanted): Promise<Outcome> {
  const cacheDirectory = mkdtempSync(join(existsSync(MEMORY) ? MEMORY : tmpdir(), 'bucketfsd-test-'));
  const guests: ObjectGuest[] = [];
  try {
    return await runIn(cacheDirectory, guests, scenario, wanted);
  } catch (error) {
    await guests.at(-1)?.kill().catch(() => undefined);
    throw error;
  } finally {
    rmSync(cacheDirectory, { recursive: true, force: true });
  }
}

async function runIn(cacheDirectory: string, guests: ObjectGuest[], scenario: Scenario, wanted: Wanted): Promise<Outcome> {
  const store = new MemoryStore({ limits: LIMITS, capabilities: { ...scenario.capabilities } });
  for (const [key, content] of Object.entries(scenario.there ?? {})) await store.put(key, content);
  const options = { ...scenario.options, write: { cacheDirectory, durability: scenario.durability ?? 'remote', writebackDelay_ms: 60_000, sizes: SIZES } };
  const faulty = new FaultyStore(store);
  const mortal = new MortalStore(faulty.store);
  const first = await ObjectGuest.start(mortal.store, options);
  guests.push(first);
  const actor = new Actor(first, store);
  await scenario.prepare?.(actor);
  const before = faulty.calls.length;
  if (wanted.fault !== undefined) faulty.inject(wanted.fault);
  let error = wanted.acts ? await scenario.act(actor) : 0;
  if (wanted.ending === 'is killed') {
    mortal.die();
    const killed = first.kill();
    mortal.end();
    await killed;
  } else {
    await first.opened.idle();
  }
  const calls = faulty.calls.slice(before);
  faulty.heal();
  if (wanted.ending === 'goes on') await goOn(scenario, wanted, actor, store, error);
  if (wanted.ending === 'goes on' && error !== 0 && scenario.acknowledged !== true) error = 0;
  for (let start = 0; start === 0 || !isSettled(cacheDirectory); start++) {
    assert.ok(start < 2, 'what one start could not clean up the next one does');
    const next = await ObjectGuest.start(store, options);
    guests.push(next);
    await next.opened.idle();
    assert.deepEqual(await seenBy(new Actor(next, store)), await expectedView(store));
    assert.equal(await next.close(), 0);
  }
  await nothingLeft(store, cacheDirectory, wanted.fault);
  return { error, contents: await contentsOf(store), calls };
}

/** The daemon lives on: what failed is tried again, and what the guest sees is what is in the bucket. */
async function goOn(scenario: Scenario, { acts }: Wanted, actor: Actor, store: ObjectStore, error: number): Promise<void> {
  if (acts && error !== 0) {
    // What is in the bucket now is what the guest sees, half done or not
    if (scenario.acknowledged !== true) assert.deepEqual(await seenBy(actor), await expectedView(store));
    const again = scenario.acknowledged === true ? await flushes(actor) : await scenario.act(actor);
    const expected = [0, scenario.again ?? 0, ...(scenario.keys[0].startsWith('.bucketfsd-conflicts') ? [-E.STALE] : [])];
    assert.ok(expected.includes(again), `tried again: ${again === 0 ? 'success' : errnoName(again)}`);
  }
  await actor.g.opened.idle();
  if (scenario.durability !== 'writeback' && acts) assert.deepEqual(await seenBy(actor), await expectedView(store));
  assert.equal(await actor.g.close(), 0, 'files that could not be committed');
}

const seenBy = async (actor: Actor): Promise<string> => text(await actor.tree());

/** What a guest is to see of the bucket. */
async function expectedView(store: ObjectStore): Promise<string> {
  const view: Record<string, string> = {};
  for (const { key } of (await store.list({ prefix: '' })).objects) {
    if (key.startsWith('.bucketfsd-unlinked/')) continue;
    for (let at = key.indexOf('/'); at >= 0; at = key.indexOf('/', at + 1)) view[key.slice(0, at + 1)] = '';
    if (key.endsWith('/')) continue;
    const { size, metadata } = await store.head(key);
    const into = new Uint8Array(size);
    await store.read(key, { offset: 0, into });
    view[key] = readPosix(metadata!).posix.symlink === null ? digest(into) : 'special';
  }
  return text(view);
}

const text = (view: Record<string, string>): string => Object.entries(view).map(([key, value]) => `${key} ${value}`).sort().join('\n');

async function nothingLeft(store: MemoryStore, cacheDirectory: string, fault: Wanted['fault']): Promise<void> {
  const { uploads } = await store.listUploads({ prefix: '' });
  // An upload that was begun without anybody having heard its id is nobody's: the provider's own rule ends it
  const orphans = fault?.operation === 'beginUpload' && ['lost-reply', 'repeated'].includes(fault.fault.kind) ? 1 : 0;
  assert.ok(uploads.length <= orphans, `uploads left behind: ${uploads.map(({ key }) => key).join()}`);
  assert.deepEqual(readdirSync(join(cacheDirectory, 'staging')), [], 'staging files left behind');
}

/** The journal speaks of nothing. */
function isSettled(cacheDirectory: string): boolean {
  const { directory } = CacheDirectory.reopen(cacheDirectory);
  const { pending } = inspect(directory);
  directory.close();
  return [pending.files, pending.operations, pending.uploads, pending.hidden].every(({ size }) => size === 0);
}

async function inParallel(tasks: readonly (() => Promise<void>)[]): Promise<void> {
  const left = [...tasks];
  await Promise.all(Array.from({ length: CASES_AT_ONCE }, async () => {
    for (let task = left.shift(); task !== undefined; task = left.shift()) await task();
  }));
}

describe('every call of the store fails once', () => {
  let cases = 0;
  for (const [title, scenario] of Object.entries(SCENARIOS)) {
    test(title, async (context) => {
      const before = await run(scenario, { acts: false, ending: 'goes on' });
      const after = await run(scenario, { acts: true, ending: 'goes on' });
      assert.equal(after.error, 0);
      assert.deepEqual(Object.keys(after.contents), scenario.keys);
      const calls = new Map<Call['operation'], number>();
      for (const operation of after.calls) calls.set(operation, (calls.get(operation) ?? 0) + 1);
      const failures: string[] = [];
      const tasks = [...calls].flatMap(([operation, count]) => Array.from({ length: count }, (_, i) => i + 1).flatMap((nth) =>
        Object.entries(READS.has(operation) ? { 'is refused': FAULTS['is refused'] } : FAULTS).flatMap(([how, fault]) => (['goes on', 'is killed'] as const).map((ending) => async () => {
          cases++;
          try {
            const outcome = await run(scenario, { acts: true, fault: { operation, nth, fault }, ending });
            judge(scenario, outcome, before, after);
          } catch (error) {
            failures.push(`${operation} ${nth} ${how}, the daemon ${ending}: ${(error as Error).message}`);
          }
        }))));
      await inParallel(tasks);
      context.diagnostic(`${tasks.length} cases: ${[...calls].map(([operation, count]) => `${count} ${operation}`).join(', ')}`);
      assert.equal(failures.length, 0, `${failures.length} of ${tasks.length}:\n${failures.slice(0, 6).join('\n')}`);
    });
  }
  test('there were many of them', () => assert.ok(cases > 500, `${cases}`));
});

const without = (contents: Record<string, string>, keys: readonly string[] = []): Record<string, string> =>
  Object.fromEntries(Object.entries(contents).filter(([key]) => !keys.includes(key)));

describe('what cannot be done at all', () => {
  const tree = { 'd/': new Uint8Array(0), 'd/a': small, 'd/e/b': large, 'd/e/c': piece };
  const keysOf = async (store: ObjectStore): Promise<string[]> => (await store.list({ prefix: '' })).objects.map(({ key }) => key);

  for (const rename of [true, false]) {
    for (const operation of rename ? (['rename'] as const) : (['copy', 'remove'] as const)) {
      test(`a tree of which one object is not to be moved stays where it was, for good (${operation})`, async () => {
        const store = new MemoryStore({ capabilities: { rename } });
        for (const [key, content] of Object.entries(tree)) await store.put(key, content);
        const before = await contentsOf(store);
        const denied = intercept(store, async (call, attempt) => {
          if (call.operation === operation && call.subject.includes('/d/e/b')) throw new StorageError('denied', call.subject);
          return attempt(call.signal);
        });
        const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
        const first = new Actor(await ObjectGuest.start(denied, { write: { cacheDirectory } }), store);
        const open = await first.g.open(await first.walk('d/a'), 0);
        assert.equal(await first.rename('d', 'n'), -E.ACCES);
        assert.deepEqual(await contentsOf(store), before);
        assert.deepEqual(await seenBy(first), await expectedView(store));
        assert.equal(digest(await first.files.read({ node: await first.walk('d/a'), fh: open }) as Buffer), digest(small), 'who has it open reads on');
        // What has the name later is not what was to be renamed
        await first.create('d/later', small);
        assert.equal(await first.files.close(first.file), 0);
        await first.g.kill();
        const second = await ObjectGuest.start(store, { write: { cacheDirectory } });
        assert.deepEqual(second.recovered, []);
        assert.deepEqual(await keysOf(store), [...Object.keys(tree), 'd/later']);
        await second.close();
        rmSync(cacheDirectory, { recursive: true });
      });
    }
  }

  test('a changed file that is not to be removed goes on being what it is, after a restart too', async () => {
    const store = new MemoryStore();
    await store.put('f', small);
    const denied = intercept(store, async (call, attempt) => {
      if (call.operation === 'remove') throw new StorageError('denied', call.subject);
      return attempt(call.signal);
    });
    const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
    const first = new Actor(await ObjectGuest.start(denied, { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 60_000 } }), store);
    await first.change('f', 0, piece.subarray(0, 10));
    assert.equal(await first.unlink('f'), -E.ACCES);
    assert.equal(await first.files.write(first.file, 100, piece.subarray(0, 20)), 0);
    await first.g.kill();
    const second = await ObjectGuest.start(store, { write: { cacheDirectory } });
    await second.opened.idle();
    const expected = Buffer.from(small);
    expected.set(piece.subarray(0, 10), 0);
    expected.set(piece.subarray(0, 20), 100);
    const content = await new Files(second).content('f');
    assert.equal(digest(content as Buffer), digest(expected));
    assert.equal(await second.close(), 0);
    rmSync(cacheDirectory, { recursive: true });
  });
});

function judge(scenario: Scenario, { error, contents }: Outcome, before: Outcome, after: Outcome): void {
  assert.ok([0, -E.IO].includes(error), `errno ${errnoName(error)}`);
  const same = (one: Outcome): boolean => JSON.stringify(one.contents) === JSON.stringify(contents);
  if (error === 0 || scenario.acknowledged === true) assert.deepEqual(contents, after.contents, error === 0 ? 'done' : 'acknowledged before');
  else if (!same(after)) assert.deepEqual(asBefore(without(contents, scenario.mayStay), before.contents, scenario.replaced), before.contents, 'not done');
}

function asBefore(contents: Outcome['contents'], before: Outcome['contents'], replaced: Scenario['replaced']): Outcome['contents'] {
  if (replaced === undefined || contents[replaced.name] !== contents[replaced.by]) return contents;
  return { ...contents, [replaced.name]: before[replaced.name] };
}
