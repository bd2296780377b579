/**
 * Attributes that another client sets on what this guest has written, before this guest has heard that it is written.
 *
 * The fault: an answer got lost, and another client set attributes before the object was asked whose it is. The version found was taken for that of the write,
 * so the next commit had the attributes of before, and a condition that held. What else takes an object that it finds for what it has made, and is tried here: a
 * put, an upload in parts, metadata that are set later, a rename by the store and by a copy, a marker, and a start after a kill.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { describe, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { CHANGE } from '../../src/storage/object/settle.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { Guest, objectOf, PARTS, SMALL } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const OTHERS = 0o604;
const OURS = 0o640;
/** A commit comes when it is asked for, while the guest goes on. */
const LATER = { durability: 'writeback', writebackDelay_ms: 3_600_000 } as const;

type WriteOptions = NonNullable<GuestOptions['write']>;

/** The next call of an operation is done, others act, and its answer is lost. */
class MeddledStore {
  readonly store: ObjectStore;
  #next: Call['operation'] | null = null;
  #meddle: () => Promise<unknown> = async () => undefined;
  #failure: unknown = null;

  constructor(readonly memory: MemoryStore) {
    this.store = intercept(memory, async (call, attempt) => {
      const answer = await attempt(call.signal);
      if (call.operation !== this.#next) return answer;
      this.#next = null;
      await this.#meddle().catch((error: unknown) => (this.#failure = error));
      throw new StorageError('timeout', call.subject, { ambiguous: true });
    });
  }

  at(operation: Call['operation'], meddle: () => Promise<unknown>): void {
    this.#next = operation;
    this.#meddle = meddle;
  }

  /** @throws what others have failed with */
  verify(): void {
    assert.equal(this.#next, null, 'an answer was lost');
    assert.equal(this.#failure, null);
  }
}

/** As a daemon of another guest does it. */
async function describeObject(memory: MemoryStore, key: string): Promise<void> {
  const { version, metadata } = await memory.head(key);
  await memory.setMetadata(key, version, { ...metadata, mode: String(0o100000 | OTHERS), [CHANGE]: 'of-another' });
}

const modeOf = async (memory: MemoryStore, key: string): Promise<number> => readPosix((await memory.head(key)).metadata!).posix.mode! & 0o777;

async function chmod(g: ObjectGuest, node: bigint, mode: number): Promise<number> {
  return (await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode, 0, 0, 0, 0)), 104)).error;
}

interface Setting {
  readonly memory: MemoryStore;
  readonly meddled: MeddledStore;
  readonly guest: Guest;
}

async function withMeddled(rename: boolean, write: WriteOptions, body: (setting: Setting) => Promise<void>): Promise<void> {
  const memory = new MemoryStore({ limits: PARTS, capabilities: { rename } });
  const meddled = new MeddledStore(memory);
  const g = await ObjectGuest.start(meddled.store, { write: { sizes: SMALL, ...write } });
  try {
    await body({ memory, meddled, guest: new Guest(g) });
    meddled.verify();
    assert.deepEqual(g.log.filter((line) => line.startsWith('error')), []);
    assert.deepEqual((await memory.list({ prefix: '' })).objects.filter(({ key }) => key.startsWith('.')), []);
  } finally {
    await g.close();
  }
}

describe('a commit whose answer was lost', () => {
  const commits: readonly (readonly [what: string, operation: Call['operation'], content: Uint8Array])[] = [
    ['a put', 'put', pattern(1000)], ['an upload in parts', 'completeUpload', pattern(200_000)],
  ];
  for (const [what, operation, content] of commits) {
    test(`${what}: attributes that another client has set of it meanwhile stay with the next content`, async () => {
      await withMeddled(true, {}, async ({ memory, meddled, guest }) => {
        const { entry, fh } = await guest.g.create(ROOT, 'f');
        await guest.write(entry.node, fh, 0, content);
        meddled.at(operation, () => describeObject(memory, 'f'));
        assert.equal(await guest.fsync(entry.node, fh), 0);
        await guest.write(entry.node, fh, 0, pattern(10, 7));
        assert.equal(await guest.close(entry.node, fh), 0);
        assert.deepEqual(await objectOf(memory, 'f'), Buffer.concat([pattern(10, 7), content.subarray(10)]));
        assert.equal(await modeOf(memory, 'f'), OTHERS);
      });
    });

    test(`${what}: the same where the file was written to before the answer was missed`, async () => {
      await withMeddled(true, LATER, async ({ memory, meddled, guest }) => {
        const { entry, fh } = await guest.g.create(ROOT, 'f');
        await guest.write(entry.node, fh, 0, content);
        meddled.at(operation, async () => {
          await describeObject(memory, 'f');
          await guest.write(entry.node, fh, 0, pattern(10, 7));
        });
        assert.equal(await guest.fsync(entry.node, fh), 0);
        await guest.g.opened.idle();
        assert.equal(await guest.close(entry.node, fh), 0);
        await guest.g.opened.idle();
        assert.deepEqual(await objectOf(memory, 'f'), Buffer.concat([pattern(10, 7), content.subarray(10)]));
        assert.equal(await modeOf(memory, 'f'), OTHERS);
      });
    });
  }

  test('attributes that were set here before the answer was missed do not undo those of another client: that is a conflict', async () => {
    const memory = new MemoryStore({ limits: PARTS });
    const meddled = new MeddledStore(memory);
    const guest = new Guest(await ObjectGuest.start(meddled.store, { write: { sizes: SMALL, ...LATER } }));
    try {
      const { entry, fh } = await guest.g.create(ROOT, 'f');
      await guest.write(entry.node, fh, 0, pattern(1000));
      meddled.at('put', async () => {
        await describeObject(memory, 'f');
        assert.equal(await chmod(guest.g, entry.node, OURS), 0);
      });
      assert.equal(await guest.fsync(entry.node, fh), 0);
      await guest.g.opened.idle();
      meddled.verify();
      assert.equal(await guest.close(entry.node, fh), -116);
      assert.equal(await modeOf(memory, 'f'), OTHERS);
      const kept = (await memory.list({ prefix: '.bucketfsd-conflicts/' })).objects;
      assert.equal(kept.length, 1);
      assert.deepEqual(await objectOf(memory, kept[0].key), Buffer.from(pattern(1000)));
      assert.equal(await modeOf(memory, kept[0].key), OURS);
    } finally {
      await guest.g.close();
    }
  });

  test('the next start knows it, and keeps the attributes of another client', async () => {
    const memory = new MemoryStore({ limits: PARTS });
    const meddled = new MeddledStore(memory);
    const cacheDirectory = mkdtempSync('/tmp/bucketfsd-described-');
    const first = new Guest(await ObjectGuest.start(meddled.store, { write: { sizes: SMALL, ...LATER, cacheDirectory } }));
    const { entry, fh } = await first.g.create(ROOT, 'f');
    await first.write(entry.node, fh, 0, pattern(1000));
    assert.equal(await first.fsync(entry.node, fh), 0);
    // Killed before the answer would have come
    const killed = new Promise<void>((resolve) => {
      meddled.at('put', async () => {
        await describeObject(memory, 'f');
        await first.write(entry.node, fh, 0, pattern(10, 7));
        resolve(first.g.kill());
      });
    });
    void first.g.opened.idle().catch(() => undefined);
    await killed;
    meddled.verify();
    await (await ObjectGuest.start(memory, { write: { sizes: SMALL, cacheDirectory } })).close();
    assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
    assert.deepEqual(await objectOf(memory, 'f'), Buffer.concat([pattern(10, 7), pattern(1000).subarray(10)]));
    assert.equal(await modeOf(memory, 'f'), OTHERS);
    rmSync(cacheDirectory, { recursive: true });
  });
});

for (const rename of [true, false]) {
  test(`a rename ${rename ? 'by the store' : 'by a copy'} whose answer was lost: attributes that another client has set at the new name stay`, async () => {
    await withMeddled(rename, {}, async ({ memory, meddled, guest }) => {
      const { entry, fh } = await guest.g.create(ROOT, 'f');
      await guest.write(entry.node, fh, 0, pattern(1000));
      assert.equal(await guest.fsync(entry.node, fh), 0);
      meddled.at(rename ? 'rename' : 'copy', () => describeObject(memory, 'g'));
      assert.equal((await guest.g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('f'), name('g')), 0)).error, 0);
      await guest.write(entry.node, fh, 0, pattern(10, 7));
      assert.equal(await guest.close(entry.node, fh), 0);
      assert.deepEqual(await objectOf(memory, 'g'), Buffer.concat([pattern(10, 7), pattern(1000).subarray(10)]));
      assert.equal(await modeOf(memory, 'g'), OTHERS);
    });
  });
}

test('a directory whose marker was made with an answer that was lost: attributes that are set next do not undo those of another client', async () => {
  await withMeddled(true, {}, async ({ memory, meddled, guest }) => {
    meddled.at('put', async () => {
      const { version, metadata } = await memory.head('d/');
      await memory.setMetadata('d/', version, { ...metadata, uid: '4711', [CHANGE]: 'of-another' });
    });
    const { data } = await guest.g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')), 128);
    assert.equal(await chmod(guest.g, data.getBigUint64(0, true), OURS), 0);
    const { posix } = readPosix((await memory.head('d/')).metadata!);
    assert.deepEqual([posix.mode! & 0o777, posix.uid], [OURS, 4711]);
  });
});
