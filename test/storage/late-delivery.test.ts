/**
 * Requests that are delivered late: given up, tried again, and carried out when the guest has gone on.
 *
 * The fault: a DELETE without a condition, which a proxy delivered 24 s after it had been given up, removed the file that was made and fsynced since. What else
 * may come late, and is tried here: each other write to a store (a put, a copy, the completion of an upload, metadata, a part, an abort), and each change of a guest
 * that removes something (unlink, rmdir, rename, rename over).
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { CephLikeStore } from '../support/ceph-like-store.js';
import { ObjectGuest } from '../support/object-guest.js';
import { objectOf, PARTS, SMALL } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

/** The next call of an operation is given up at once, and carried out when it is delivered. */
class LateStore {
  readonly store: ObjectStore;
  #next: Call['operation'] | null = null;
  #late: (() => Promise<unknown>) | null = null;

  constructor(inner: ObjectStore) {
    this.store = intercept(inner, async (call, attempt) => {
      if (call.operation !== this.#next) return attempt(call.signal);
      this.#next = null;
      this.#late = () => attempt(undefined);
      throw new StorageError('timeout', call.subject, { ambiguous: true });
    });
  }

  delay(operation: Call['operation']): void {
    this.#next = operation;
  }

  /** @returns whether it has done anything */
  async deliver(): Promise<boolean> {
    assert.ok(this.#late !== null, 'something was to be late');
    return this.#late().then(() => true, (error: unknown) => {
      assert.ok(error instanceof StorageError, String(error));
      return false;
    });
  }
}

interface Setting {
  readonly others: MemoryStore;
  readonly late: LateStore;
  readonly actor: Actor;
}

const STORES = {
  'versions that never come back': (): [MemoryStore, ObjectStore] => {
    const memory = new MemoryStore({ limits: PARTS, capabilities: { rename: false, metadataInPlace: false } });
    return [memory, memory];
  },
  'a store that renames': (): [MemoryStore, ObjectStore] => {
    const memory = new MemoryStore({ limits: PARTS });
    return [memory, memory];
  },
  'ETags, as Ceph has them': (): [MemoryStore, ObjectStore] => {
    const ceph = new CephLikeStore(PARTS);
    return [ceph.memory, ceph.store];
  },
} as const;

async function withLate(name: keyof typeof STORES, body: (setting: Setting) => Promise<void>): Promise<void> {
  const [others, store] = STORES[name]();
  const late = new LateStore(store);
  const guest = await ObjectGuest.start(late.store, { write: { sizes: SMALL } });
  try {
    await body({ others, late, actor: new Actor(guest, others) });
    assert.deepEqual(guest.log.filter((line) => line.startsWith('error')), []);
    assert.deepEqual((await others.listUploads({ prefix: '' })).uploads, []);
  } finally {
    await guest.close();
  }
}

async function make(actor: Actor, path: string, content: Uint8Array): Promise<void> {
  await actor.create(path, content);
  assert.equal(await actor.fsync(), 0);
  assert.equal(await actor.files.close(actor.file), 0);
}

async function overwrite(actor: Actor, path: string, content: Uint8Array): Promise<void> {
  await actor.change(path, 0, content);
  assert.equal(await actor.fsync(), 0);
  assert.equal(await actor.files.close(actor.file), 0);
}

const one = pattern(500, 1);
const two = pattern(500, 2);
const three = pattern(500, 3);
const has = async (store: ObjectStore, key: string, content: Uint8Array): Promise<void> => assert.ok((await objectOf(store, key)).equals(content), key);

for (const name of Object.keys(STORES) as (keyof typeof STORES)[]) describe(`with ${name}`, () => {
  test('a removal that comes late does not remove what was made since', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      await make(actor, 'f', one);
      late.delay('remove');
      assert.equal(await actor.unlink('f'), 0);
      await make(actor, 'f', two);
      assert.equal(await late.deliver(), false);
      await has(others, 'f', two);
    });
  });

  test('the removal of what a guest has changed and not closed, the same', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      await make(actor, 'f', one);
      await actor.change('f', 0, two);
      const { file } = actor;
      late.delay('remove');
      assert.equal(await actor.unlink('f'), 0);
      await make(actor, 'f', three);
      assert.equal(await late.deliver(), false);
      await has(others, 'f', three);
      await actor.files.close(file);
    });
  });

  test('the removal of a directory, of which there is another one with an attribute by then', async (context) => {
    if (name.startsWith('ETags')) return context.diagnostic('markers are all alike: SEMANTICS says so');
    await withLate(name, async ({ others, late, actor }) => {
      assert.equal(await actor.mkdir('d'), 0);
      late.delay('remove');
      assert.equal(await actor.rmdir('d'), 0);
      assert.equal(await actor.mkdir('d'), 0);
      assert.equal(await late.deliver(), false);
      assert.equal((await others.head('d/')).size, 0);
    });
  });

  if (name !== 'a store that renames') {
    for (const over of [false, true]) {
      test(`the removal of the old name after a rename${over ? ' over something' : ''} does not remove what has that name since`, async () => {
        await withLate(name, async ({ others, late, actor }) => {
          await make(actor, 'f', one);
          if (over) await make(actor, 'g', three);
          late.delay('remove');
          assert.equal(await actor.rename('f', 'g'), 0);
          await make(actor, 'f', two);
          assert.equal(await late.deliver(), false);
          await has(others, 'f', two);
          await has(others, 'g', one);
        });
      });

      test(`the copy of a rename${over ? ' over something' : ''} that comes late does not replace what was written since`, async () => {
        await withLate(name, async ({ others, late, actor }) => {
          await make(actor, 'f', one);
          if (over) await make(actor, 'g', three);
          late.delay(name.startsWith('ETags') ? 'put' : 'copy');
          assert.equal(await actor.rename('f', 'g'), 0);
          await overwrite(actor, 'g', two);
          assert.equal(await late.deliver(), false);
          await has(others, 'g', two);
        });
      });
    }
  } else {
    test('a rename that comes late moves nothing over what was written since', async () => {
      await withLate(name, async ({ others, late, actor }) => {
        await make(actor, 'f', one);
        late.delay('rename');
        assert.equal(await actor.rename('f', 'g'), 0);
        await make(actor, 'f', two);
        await overwrite(actor, 'g', three);
        assert.equal(await late.deliver(), false);
        await has(others, 'f', two);
        await has(others, 'g', three);
      });
    });
  }

  test('a commit that comes late does not replace the next one', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      await make(actor, 'f', one);
      late.delay('put');
      await overwrite(actor, 'f', two);
      await overwrite(actor, 'f', three);
      assert.equal(await late.deliver(), false);
      await has(others, 'f', three);
    });
  });

  test('the completion of an upload, the same; and an abort is of no use by then', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      const large = pattern(200_000);
      late.delay('completeUpload');
      await make(actor, 'f', large);
      await overwrite(actor, 'f', two);
      assert.equal(await late.deliver(), false);
      const expected = Buffer.from(large);
      expected.set(two);
      await has(others, 'f', expected);
    });
  });

  test('a part that comes late is not in the object', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      await actor.create('f', pattern(200_000, 1));
      late.delay('putPart');
      assert.equal(await actor.files.write(actor.file, 0, pattern(200_000, 2)), 0);
      const synced = actor.fsync();
      assert.equal(await synced.then((error) => (error === 0 ? 0 : actor.fsync())), 0);
      await late.deliver();
      await has(others, 'f', pattern(200_000, 2));
      assert.equal(await actor.files.close(actor.file), 0);
    });
  });

  test('attributes that come late do not replace those that were set since', async (context) => {
    if (name.startsWith('ETags')) return context.diagnostic('the version is that of the content: SEMANTICS says so');
    await withLate(name, async ({ others, late, actor }) => {
      await make(actor, 'f', one);
      late.delay('setMetadata');
      assert.equal(await actor.chmod('f', 0o600), 0);
      assert.equal(await actor.chmod('f', 0o640), 0);
      assert.equal(await late.deliver(), false);
      assert.equal(readPosix((await others.head('f')).metadata!).posix.mode! & 0o777, 0o640);
    });
  });

  test('attributes of which the answer is lost are there once, and content that follows is no conflict', async () => {
    await withLate(name, async ({ others, late, actor }) => {
      await make(actor, 'f', one);
      late.delay(name.startsWith('ETags') ? 'put' : 'setMetadata');
      await actor.change('f', 0, new Uint8Array(0));
      assert.equal(await actor.chmod('f', 0o600), 0);
      assert.equal(await actor.files.write(actor.file, 0, two), 0);
      assert.equal(await actor.fsync(), 0);
      assert.equal(await late.deliver(), false);
      await has(others, 'f', two);
      assert.equal(readPosix((await others.head('f')).metadata!).posix.mode! & 0o777, 0o600);
      assert.equal(await actor.files.close(actor.file), 0);
    });
  });
});

test('an ETag comes back with the content: then a late removal removes it, as SEMANTICS says', async () => {
  await withLate('ETags, as Ceph has them', async ({ others, late, actor }) => {
    await make(actor, 'f', one);
    late.delay('remove');
    assert.equal(await actor.unlink('f'), 0);
    await make(actor, 'f', one);
    assert.equal(await late.deliver(), true);
    await assert.rejects(others.head('f'), { code: 'not-found' });
  });
});
