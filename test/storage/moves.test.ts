/**
 * Renames of files and trees while another client writes at the old or the new names, live and when a killed daemon's rename is finished.
 *
 * The fault: a daemon was killed in a rename of a directory, somebody else wrote below the new name, and the next start copied the old objects over that. What
 * else fails for the same reason, and is tried here:
 *   - the same while the rename is under way; a single object, to a free name, over another one, with NOREPLACE
 *   - the other client makes something, or replaces what was there or was moved there; at each moment
 *   - a removal of the old name when somebody has just written to it
 *   - objects that have no metadata of ours; a copy that was made before the kill is ours all the same, and not made a second time
 *   - a rename that was answered with an error: neither this daemon nor the next one goes on with it
 *   - an object of such a tree whose old name somebody has taken: the only one that is left of it is not removed
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import type { Condition, ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { CephLikeStore } from '../support/ceph-like-store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { MortalStore } from '../support/mortal-store.js';
import { ObjectGuest } from '../support/object-guest.js';
import { objectOf } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

const ROOT = 1n;
const NOREPLACE = 1;
const THEIRS = 'theirs';
const CALLS_MAX = 100;

interface Provider {
  readonly memory: MemoryStore;
  readonly store: ObjectStore;
  /** Between comparing and doing, where the store does one after the other. */
  between(act: () => Promise<void>): void;
}

const PROVIDERS: Readonly<Record<string, () => Provider>> = {
  'a store that renames': () => plain(new MemoryStore()),
  'a store that copies': () => plain(new MemoryStore({ capabilities: { rename: false, metadataInPlace: false } })),
  'a store like Ceph': () => {
    const ceph = new CephLikeStore();
    return { memory: ceph.memory, store: ceph.store, between: (act) => (ceph.between = act) };
  },
};

const plain = (memory: MemoryStore): Provider => ({ memory, store: memory, between: () => undefined });
const text = async (store: ObjectStore, key: string): Promise<string | null> => objectOf(store, key).then(String, () => null);
const tried = async (write: Promise<unknown>): Promise<boolean> => write.then(() => true, (error: unknown) => (assert.ok(error instanceof StorageError), false));

/** What is somebody else's: made if there is nothing, or in place of exactly what is there. @returns whether it is there now */
async function theirs(memory: MemoryStore, key: string, replaces: boolean): Promise<boolean> {
  const there = await memory.head(key).catch(() => null);
  if (replaces !== (there !== null)) return false;
  const condition: Condition = there === null ? { absent: true } : { version: there.version };
  return tried(memory.put(key, Buffer.from(THEIRS), { condition }));
}

async function keysOf(memory: MemoryStore): Promise<string[]> {
  return (await memory.list({ prefix: '' })).objects.map(({ key }) => key);
}

/** `act` is done once: before the n-th call, or where the store has compared and not done it yet. @returns what says whether it was done, and when it counts */
function disturbed(provider: Provider, n: number, act: () => Promise<void>): { store: ObjectStore; begin(): void; acted(): boolean } {
  let calls = -Infinity;
  let acted = false;
  const once = async (): Promise<void> => {
    if (acted) return;
    acted = true;
    await act();
  };
  const store = intercept(provider.store, async (call, attempt) => {
    if (++calls === n) await once();
    return attempt(call.signal);
  });
  return { store, begin: () => { calls = 0; if (n === 0) provider.between(once); }, acted: () => acted };
}

for (const [where, open] of Object.entries(PROVIDERS)) {
  describe(`in ${where}, a tree`, () => {
    const content = new Map(['a', 'b', 'e/c'].map((key, i) => [key, String(Buffer.from(pattern(50, i + 1)).toString('hex'))]));
    const fill = async (memory: MemoryStore): Promise<void> => {
      for (const [key, hex] of content) await memory.put(`d/${key}`, Buffer.from(hex));
    };

    for (const replaces of [false, true]) {
      test(`of which somebody else has ${replaces ? 'replaced' : 'made'} something at the new names is moved after a kill without that, and nothing is lost`, async () => {
        for (let n = 1; n < CALLS_MAX; n++) {
          for (const takesEffect of [false, true]) {
            const provider = open();
            const { memory } = provider;
            await fill(memory);
            const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
            const mortal = new MortalStore(provider.store);
            const first = await ObjectGuest.start(mortal.store, { write: { cacheDirectory } });
            await first.lookup(ROOT, 'd');
            mortal.dieAt(n, takesEffect);
            const over = await killedOrDone(first, mortal, 'd', 'n');
            const at = `call ${n}${takesEffect ? ', which took effect' : ''}`;
            const made: string[] = [];
            for (const key of content.keys()) if (await theirs(memory, `n/${key}`, replaces)) made.push(key);
            const second = await ObjectGuest.start(provider.store, { write: { cacheDirectory } });
            await second.opened.idle();
            const report = `${at}\n${second.recovered.join('\n')}`;
            assert.equal(await second.close(), 0);
            rmSync(cacheDirectory, { recursive: true });
            for (const [key, ours] of content) {
              const [old, now] = [await text(memory, `d/${key}`), await text(memory, `n/${key}`)];
              if (made.includes(key)) assert.equal(now, THEIRS, `${key}, ${report}`);
              // What was replaced at its new name is gone as any file is that somebody replaces
              else assert.equal(old ?? now, ours, `${key}, ${report}`);
              if (made.includes(key) && !replaces) assert.equal(old, ours, `${key}, ${report}`);
              assert.ok(made.includes(key) || old === null || now === null, `${key} is there twice, ${report}`);
            }
            if (over) return;
          }
        }
        assert.fail('that takes too many calls');
      });
    }

    test('of which somebody else makes something at the new names meanwhile stays where it is: ENOTEMPTY', async () => {
      let refused = 0;
      for (let n = 0; n < CALLS_MAX; n++) {
        const provider = open();
        const { memory } = provider;
        await fill(memory);
        let made = false;
        const way = disturbed(provider, n, async () => void (made = await theirs(memory, 'n/b', false)));
        const guest = await ObjectGuest.start(way.store);
        await guest.lookup(ROOT, 'd');
        way.begin();
        const told = await new Actor(guest, memory).rename('d', 'n');
        assert.equal(await guest.close(), 0);
        const at = `before call ${n}, ${(await keysOf(memory)).join()}`;
        // Looked at before, it is a directory that is not empty
        if (told !== 0) assert.equal(told, -E.NOTEMPTY, at);
        if (made) assert.equal(await text(memory, 'n/b'), THEIRS, at);
        for (const [key, ours] of content) assert.equal(await text(memory, `${told === 0 && !(made && key === 'b') ? 'n' : 'd'}/${key}`), ours, at);
        if (told !== 0) assert.deepEqual(await keysOf(memory), ['d/a', 'd/b', 'd/e/c', 'n/b'], at);
        if (made && told !== 0) refused++;
        if (n > 0 && !way.acted()) return assert.ok(refused > 0);
      }
      assert.fail('that takes too many calls');
    });

    test('which goes back, but for what somebody has made at its old name by then: that stays at the new one, and the log says so', async () => {
      let left = 0;
      for (let n = 0; n < CALLS_MAX; n++) {
        const provider = open();
        const { memory } = provider;
        await fill(memory);
        let taken = false;
        const way = disturbed(provider, n, async () => void (await theirs(memory, 'n/b', false)));
        const guest = await ObjectGuest.start(intercept(way.store, async (call, attempt) => {
          if (way.acted()) taken = (await theirs(memory, 'd/a', false)) || taken;
          return attempt(call.signal);
        }));
        await guest.lookup(ROOT, 'd');
        way.begin();
        const told = await new Actor(guest, memory).rename('d', 'n');
        assert.equal(await guest.close(), 0);
        const at = `before call ${n}: ${told}, ${(await keysOf(memory)).join()}`;
        if (taken) assert.equal(await text(memory, 'd/a'), THEIRS, at);
        if (taken && told !== 0) {
          left++;
          assert.equal(told, -E.NOTEMPTY, at);
          assert.deepEqual(await keysOf(memory), ['d/a', 'd/b', 'd/e/c', 'n/a', 'n/b'], at);
          assert.equal(await text(memory, 'n/a'), content.get('a'), at);
          assert.ok(guest.log.some((line) => line.includes('1 objects could not be put back')), at);
        }
        if (n > 0 && !way.acted()) return assert.ok(left > 0);
      }
      assert.fail('that takes too many calls');
    });
  });

  describe(`in ${where}, a file`, () => {
    for (const [how, flags, over] of [['to a free name', 0, false], ['over another one', 0, true], ['with NOREPLACE', NOREPLACE, false]] as const) {
      test(`that is renamed ${how}, where somebody else writes meanwhile`, async () => {
        for (let n = 0; n < CALLS_MAX; n++) {
          const provider = open();
          const { memory } = provider;
          await memory.put('f', Buffer.from('ours'));
          if (over) await memory.put('g', Buffer.from('former'));
          let made = false;
          const way = disturbed(provider, n, async () => void (made = await theirs(memory, 'g', over)));
          const guest = await ObjectGuest.start(way.store);
          for (const one of over ? ['f', 'g'] : ['f']) await guest.lookup(ROOT, one);
          way.begin();
          const told = (await guest.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(flags, 0), name('f'), name('g')))).error;
          assert.equal(await guest.close(), 0);
          const at = `before call ${n}: ${told}`;
          const there = [await text(memory, 'f'), await text(memory, 'g')];
          if (flags === NOREPLACE && told !== 0) assert.deepEqual([told, ...there], [-E.EXIST, 'ours', THEIRS], at);
          // Either before it, and replaced, or after it
          else assert.ok(told === 0 && there[0] === null && (there[1] === 'ours' || (made && there[1] === THEIRS)), `${at}, ${there.join()}`);
          if (flags === NOREPLACE && told === 0) assert.equal(made, false, at);
          if (n > 0 && !way.acted()) return;
        }
        assert.fail('that takes too many calls');
      });
    }

    test('that somebody else writes to while it is renamed has what was written, at one name', async () => {
      for (let n = 0; n < CALLS_MAX; n++) {
        const provider = open();
        const { memory } = provider;
        const version = await memory.put('f', Buffer.from('ours'));
        let made = false;
        // They have had it open since before
        const way = disturbed(provider, n, async () => void (made = await tried(memory.put('f', Buffer.from(THEIRS), { condition: { version } }))));
        const guest = await ObjectGuest.start(way.store);
        await guest.lookup(ROOT, 'f');
        way.begin();
        const told = await new Actor(guest, memory).rename('f', 'g');
        assert.equal(await guest.close(), 0);
        const there = [await text(memory, 'f'), await text(memory, 'g')];
        const at = `before call ${n}: ${told}, ${there.join()}`;
        if (told === 0) assert.deepEqual(there, [null, made ? THEIRS : 'ours'], at);
        else assert.deepEqual([told, ...there], [-E.STALE, THEIRS, null], at);
        if (n > 0 && !way.acted()) return;
      }
      assert.fail('that takes too many calls');
    });
  });
}

describe('a rename that was answered with an error', () => {
  const FAILING: readonly (readonly [Call['operation'], string, boolean])[] = [['copy', 'g', true], ['copy', 'g', false], ['remove', 'f', false], ['rename', 'g', true]];
  for (const [operation, asked, takesEffect] of FAILING) {
    test(`is not gone on with by the next start (${operation} of which nobody knows whether it was done; it ${takesEffect ? 'was' : 'was not'})`, async () => {
      const memory = new MemoryStore({ capabilities: { rename: operation === 'rename' } });
      await memory.put('f', Buffer.from('ours'));
      let silent = false;
      const store = intercept(memory, async (call, attempt) => {
        if (silent && call.operation === 'head' && call.subject.endsWith(`/${asked}`)) throw new StorageError('unexpected', call.subject);
        if (call.operation !== operation) return attempt(call.signal);
        silent = true;
        if (takesEffect) await attempt(call.signal);
        throw new StorageError('unexpected', call.subject, { ambiguous: true });
      });
      const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
      const first = await ObjectGuest.start(store, { write: { cacheDirectory } });
      assert.equal(await new Actor(first, memory).rename('f', 'g'), -E.IO);
      await first.kill();
      const before = await keysOf(memory);
      const second = await ObjectGuest.start(memory, { write: { cacheDirectory } });
      assert.deepEqual(await keysOf(memory), before);
      assert.deepEqual(second.recovered, []);
      assert.equal(await second.close(), 0);
      for (const key of before) assert.equal(await text(memory, key), 'ours');
      assert.ok(before.includes(operation === 'rename' ? 'g' : 'f'));
      rmSync(cacheDirectory, { recursive: true });
    });
  }
});

describe('what stands for an object that was moved away, and could not be removed itself', () => {
  const refusing = async (body: (first: ObjectGuest, memory: MemoryStore, restart: () => Promise<ObjectGuest>) => Promise<void>): Promise<void> => {
    const ceph = new CephLikeStore();
    const { memory } = ceph;
    await memory.put('f', Buffer.from('ours'));
    const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
    const refuses = intercept(ceph.store, async (call, attempt) => {
      if (call.operation === 'remove') throw new StorageError('denied', call.subject);
      return attempt(call.signal);
    });
    const first = await ObjectGuest.start(refuses, { write: { cacheDirectory } });
    assert.equal(await new Actor(first, memory).rename('f', 'g'), 0);
    assert.deepEqual(await keysOf(memory), ['f', 'g']);
    assert.equal(await text(memory, 'g'), 'ours');
    let guest = first;
    await body(first, memory, async () => {
      await guest.kill();
      return (guest = await ObjectGuest.start(ceph.store, { write: { cacheDirectory } }));
    });
    assert.equal(await guest.close(), 0);
    rmSync(cacheDirectory, { recursive: true });
  };

  test('is nobody\'s file, and goes at the next start', async () => {
    await refusing(async (first, memory, restart) => {
      const second = await ObjectGuest.start(memory);
      for (const guest of [first, second]) assert.equal(await new Actor(guest, memory).walk('f'), BigInt(-E.NOENT));
      await second.close();
      await restart();
      assert.deepEqual(await keysOf(memory), ['g']);
    });
  });

  test('is replaced by what is made there, which stays at the next start', async () => {
    await refusing(async (first, memory, restart) => {
      const actor = new Actor(first, memory);
      await actor.create('f', Buffer.from('new'));
      assert.equal(await actor.fsync(), 0);
      assert.equal(await text(memory, 'f'), 'new');
      await actor.files.write(actor.file, 3, Buffer.from(' and more'));
      const next = await restart();
      await next.opened.idle();
      assert.equal(await text(memory, 'f'), 'new and more');
      assert.deepEqual(await keysOf(memory), ['f', 'g']);
    });
  });
});

/** @returns whether it was done before anybody died */
async function killedOrDone(guest: ObjectGuest, mortal: MortalStore, from: string, to: string): Promise<boolean> {
  const done = guest.queue.wait(1);
  guest.queue.chain([guest.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to))).bytes], [16], true);
  guest.queue.kick();
  const over = await Promise.race([done.then(() => true, () => false), (async () => {
    while (!mortal.dead) await new Promise((resolve) => setImmediate(resolve));
    return false;
  })()]);
  guest.queue.abandon();
  await done.catch(() => undefined);
  mortal.die();
  const killed = guest.kill();
  mortal.end();
  await killed;
  return over;
}
