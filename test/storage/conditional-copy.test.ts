/**
 * Attributes and copies are written on condition of what is there, also where the provider's copy looks at its source only.
 *
 * The fault: new metadata was a copy of the object onto itself. A commit of somebody else that came between the provider's look at the source and its
 * write was overwritten, and both were told that all is well. What else fails for the same reason, and is tried here:
 *   - any other write in between: a put, an upload that is completed, a removal; on small objects and on those that are copied in parts
 *   - a copy to a key that was free, or had a certain version, when it was looked at
 *   - a source that is replaced while its parts are copied, by a provider that does not pin them
 *   - an answer that was lost: who wrote it is told from the metadata, and parts alone leave no doubt
 *   - a daemon that is killed in the middle of it: no upload stays
 *   - what a copy keeps: type, caching, storage class, metadata
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3';
import { after, before, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { TAG_COUNT, TAGS } from '../../src/storage/object/attachments.js';
import { conditionalCopyOptions } from '../../src/storage/object/conditional-copy.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { withConditionalCopies } from '../../src/storage/object/layers/conditional-copies.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { probe } from '../../src/storage/object/probe.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { CephLikeStore } from '../support/ceph-like-store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { MortalStore } from '../support/mortal-store.js';
import { Files } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';
import { PARTS, objectOf } from '../support/writing-guest.js';
import { Rgw } from '../support/rgw.js';
import { pattern } from './contract.js';

const SIZES = { putMaxBytes: 1000, partBytes: 40_000, partsAtOnce: 3 };
const KINDS = { small: 500, 'in parts': 100_000, empty: 0 } as const;
const ROOT = 1n;

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** What is told is a condition that did not hold. */
const lost = (error: unknown): boolean => error instanceof StorageError && (error.code === 'changed' || error.code === 'not-found') && error.detail.ambiguous !== true;

/** A provider, and the layer above it; `act` is done once, before the n-th call or when the provider has compared. */
function overtaken(ceph: CephLikeStore, n: number, act: () => Promise<unknown>): ObjectStore {
  let calls = 0;
  ceph.between = async () => {
    ceph.between = async () => undefined;
    await act();
  };
  const counted = intercept(ceph.store, async (call, attempt) => {
    if (++calls === n) await act();
    return attempt(call.signal);
  });
  return withConditionalCopies(counted, conditionalCopyOptions(SIZES));
}

const OTHERS: Readonly<Record<string, (store: ObjectStore, version: string) => Promise<unknown>>> = {
  'a put': (store, version) => store.put('k', bytes('theirs'), { condition: { version } }),
  'a completed upload': async (store, version) => {
    const upload = await store.beginUpload('k');
    return store.completeUpload(upload, [await store.putPart(upload, 1, bytes('theirs'))], { condition: { version } });
  },
  'a removal': (store, version) => store.remove('k', { version }),
};

describe('new metadata', () => {
  for (const [kind, size] of Object.entries(KINDS)) {
    for (const [who, act] of Object.entries(OTHERS)) {
      test(`that ${who} overtakes at any moment is not written over it (${kind})`, async () => {
        for (let n = 1; n < 20; n++) {
          const ceph = new CephLikeStore(PARTS);
          const version = await ceph.memory.put('k', pattern(size));
          let acted = 0;
          const store = overtaken(ceph, n, () => (acted++, act(ceph.memory, version)));
          const told = await store.setMetadata('k', version, { mode: '33152' }).then(() => 'done' as const, (error: unknown) => (assert.ok(lost(error), String(error)), 'lost' as const));
          if (acted === 0) return assert.ok(n > 2 && told === 'done', `${n - 1} calls`);
          if (who === 'a removal') await assert.rejects(ceph.memory.head('k'), { code: 'not-found' }, `before call ${n}`);
          else assert.equal(String(await objectOf(ceph.memory, 'k')), 'theirs', `before call ${n}`);
          assert.equal(told, 'lost');
          assert.deepEqual((await ceph.memory.listUploads({ prefix: '' })).uploads, []);
        }
        assert.fail('that takes too many calls');
      });
    }

    test(`is all that changes (${kind})`, async () => {
      const ceph = new CephLikeStore(PARTS);
      const headers = { 'content-type': 'text/x-a', 'cache-control': 'max-age=7', 'content-encoding': 'x', 'x-amz-storage-class': 'STANDARD_IA' };
      const version = await ceph.memory.put('k', pattern(size), { headers: { ...headers, [TAGS]: 'a=1' }, metadata: { one: '1' } });
      const store = withConditionalCopies(ceph.store, conditionalCopyOptions(SIZES));
      const next = await store.setMetadata('k', version, { two: '2' });
      const { metadata, headers: kept, version: there } = await ceph.memory.head('k', { attachments: true });
      assert.deepEqual([{ ...metadata }, { ...kept }, there], [{ two: '2' }, { ...headers, [TAGS]: 'a=1', [TAG_COUNT]: '1' }, next]);
      assert.ok((await objectOf(ceph.memory, 'k')).equals(pattern(size)));
      await assert.rejects(store.setMetadata('k', `${next}0`, {}), lost);
      assert.deepEqual((await ceph.memory.listUploads({ prefix: '' })).uploads, []);
    });
  }
});

describe('a copy', () => {
  for (const [kind, size] of Object.entries(KINDS)) {
    for (const over of [false, true]) {
      test(`to ${over ? 'a version that is replaced' : 'a free key that is taken'} at any moment does not overwrite (${kind})`, async () => {
        for (let n = 1; n < 20; n++) {
          const ceph = new CephLikeStore(PARTS);
          const sourceVersion = await ceph.memory.put('from', pattern(size));
          const former = over ? await ceph.memory.put('to', bytes('former')) : null;
          const condition = former === null ? { absent: true } as const : { version: former };
          let acted = 0;
          const store = overtaken(ceph, n, () => (acted++, ceph.memory.put('to', bytes('theirs'), { condition })));
          const told = await store.copy('from', 'to', { sourceVersion, condition }).then(() => 'done', (error: unknown) => (assert.ok(lost(error), String(error)), 'lost'));
          if (acted === 0) return assert.equal(told, 'done');
          assert.equal(String(await objectOf(ceph.memory, 'to')), 'theirs', `before call ${n}`);
          assert.equal(told, 'lost');
        }
        assert.fail('that takes too many calls');
      });
    }

    test(`is of one version of its source, whenever that is replaced (${kind})`, async () => {
      for (let n = 1; n < 20; n++) {
        const ceph = new CephLikeStore(PARTS);
        const sourceVersion = await ceph.memory.put('from', pattern(size), { metadata: { of: 'mine' }, headers: { 'content-type': 'text/x-a', [TAGS]: 'a=1' } });
        let acted = 0;
        const store = overtaken(ceph, n, () => (acted++, ceph.memory.put('from', pattern(size + 3, 9))));
        const told = await store.copy('from', 'to', { sourceVersion, condition: { absent: true } }).then(() => 'done', (error: unknown) => (assert.ok(lost(error), String(error)), 'lost'));
        if (told === 'done') {
          assert.ok((await objectOf(ceph.memory, 'to')).equals(pattern(size)), `before call ${n}`);
          const { metadata, headers } = await ceph.memory.head('to', { attachments: true });
          assert.deepEqual([{ ...metadata }, headers!['content-type'], headers![TAGS]], [{ of: 'mine' }, 'text/x-a', 'a=1']);
        } else {
          await assert.rejects(ceph.memory.head('to'), { code: 'not-found' });
        }
        if (acted === 0) return;
      }
      assert.fail('that takes too many calls');
    });
  }

  test('is ambiguous when the answer to its last write is lost, and at no other call', async () => {
    for (const [kind, size] of Object.entries(KINDS)) {
      for (let n = 1; n < 20; n++) {
        const ceph = new CephLikeStore(PARTS);
        await ceph.memory.put('from', pattern(size));
        const made: Call['operation'][] = [];
        const counted = intercept(ceph.store, async (call, attempt) => {
          const number = made.push(call.operation);
          const result = await attempt(call.signal);
          if (number === n) throw new StorageError('timeout', call.subject, { ambiguous: true });
          return result;
        });
        const store = withConditionalCopies(counted, conditionalCopyOptions(SIZES));
        const error = await store.copy('from', 'to', { condition: { absent: true } }).then(() => null, (error: unknown) => error as StorageError);
        if (error === null) {
          assert.ok(made.length < n);
          break;
        }
        assert.equal(error.detail.ambiguous === true, ['put', 'completeUpload'].includes(made[n - 1]), `${kind}: ${made[n - 1]}`);
      }
    }
  });

  test('of what is large is refused where the provider copies no parts, and of what is small is made', async () => {
    const ceph = new CephLikeStore(PARTS);
    const none = { ...ceph.store, capabilities: { ...ceph.store.capabilities, copyPart: 'none' as const } };
    const store = withConditionalCopies(none, conditionalCopyOptions(SIZES));
    await ceph.memory.put('large', pattern(2000));
    await ceph.memory.put('small', pattern(1000));
    await assert.rejects(store.copy('large', 'to', { condition: { absent: true } }), { code: 'unsupported' });
    await store.copy('small', 'to', { condition: { absent: true } });
    assert.ok((await objectOf(ceph.memory, 'to')).equals(pattern(1000)));
    assert.deepEqual((await ceph.memory.listUploads({ prefix: '' })).uploads, []);
  });
});

const chmod = (mode: number): Uint8Array => concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode, 0, 0, 0, 0));

describe('two guests', () => {
  for (const size of [500, 3 << 20]) {
    test(`one that fsyncs content and one that changes attributes at the same time lose neither (${size} bytes)`, async () => {
      for (let n = 1; n < 20; n++) {
        const ceph = new CephLikeStore();
        await ceph.memory.put('f', pattern(size));
        const first = await ObjectGuest.start(ceph.memory);
        const files = new Files(first);
        let calls = -Infinity;
        let synced: Promise<number> | null = null;
        const opened = await files.open('f');
        assert.equal(await files.write(opened, 0, bytes('first')), 0);
        const act = async (): Promise<void> => void (await (synced ??= files.fsync(opened)));
        const second = await ObjectGuest.start(intercept(ceph.store, async (call, attempt) => {
          if (++calls === n) await act();
          return attempt(call.signal);
        }));
        const { node } = await second.lookup(ROOT, 'f');
        calls = 0;
        ceph.between = act;
        const told = (await second.call(OP.SETATTR, node, chmod(0o600), 104)).error;
        assert.ok(told === 0 || told === -E.STALE);
        const before = synced !== null;
        const said = await (synced ?? files.fsync(opened));
        const expected = Buffer.from(pattern(size)).fill('first', 0, 5);
        const keys = (await ceph.memory.list({ prefix: '' })).objects.map(({ key }) => key);
        if (said === 0) {
          assert.ok((await objectOf(ceph.memory, 'f')).equals(expected), `before call ${n}, which was ${before ? 'made' : 'not made'}`);
          assert.deepEqual(keys, ['f']);
          if (before) assert.equal(readPosix((await ceph.memory.head('f')).metadata!).posix.mode! & 0o777, told === 0 ? 0o600 : 0o644);
        } else {
          // The other one was first, and has made another version
          assert.deepEqual([said, told, before, keys.length], [-E.STALE, 0, false, 2]);
          assert.ok((await objectOf(ceph.memory, keys[0])).subarray(0, 5).equals(expected.subarray(0, 5)));
        }
        await files.close(opened);
        for (const guest of [first, second]) await guest.close();
        if (!before) return;
      }
      assert.fail('that takes too many calls');
    });
  }
});

test('a daemon that is killed while it copies in parts leaves no upload to the next one', async () => {
  const ceph = new CephLikeStore();
  await ceph.memory.put('f', pattern(3 << 20));
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const mortal: MortalStore = new MortalStore(intercept(ceph.store, async (call, attempt) => {
    if (call.operation === 'copyPart') mortal.die();
    return attempt(call.signal);
  }));
  const first = await ObjectGuest.start(mortal.store, { write: { cacheDirectory } });
  const { node } = await first.lookup(ROOT, 'f');
  first.queue.chain([first.request(OP.SETATTR, node, chmod(0o600)).bytes], [120], true);
  first.queue.kick();
  while (!mortal.dead) await new Promise((resolve) => setImmediate(resolve));
  const killed = first.kill();
  mortal.end();
  await killed;
  assert.equal((await ceph.memory.listUploads({ prefix: '' })).uploads.length, 1);
  const second = await ObjectGuest.start(ceph.store, { write: { cacheDirectory } });
  assert.deepEqual((await ceph.memory.listUploads({ prefix: '' })).uploads, []);
  await second.close();
  rmSync(cacheDirectory, { recursive: true });
});

describe('Ceph RGW', { skip: Rgw.unavailable() }, () => {
  const RACES = Number(process.env['BUCKETFSD_RACES'] ?? 60);
  let rgw: Rgw;
  let store: S3Store;

  before(async () => {
    rgw = await Rgw.start();
    const client = new S3Client({ endpoint: rgw.endpoint, region: 'us-east-1', forcePathStyle: true, credentials: rgw.credentials });
    await client.send(new CreateBucketCommand({ Bucket: 'races' }));
    client.destroy();
    const plain = new S3Store({ bucket: 'races', endpoint: rgw.endpoint, region: 'us-east-1', pathStyle: true, credentials: rgw.credentials });
    store = new S3Store({ ...plain.options, capabilities: await probe(plain, '.probe/') });
    await plain.close();
  }, { timeout: 300_000 });
  after(async () => {
    await store.close();
    rgw.stop();
  });

  for (const size of [100, (1 << 20) + 1]) {
    test(`of new metadata and new content of one version one is written, never both (${size} bytes)`, async () => {
      const won = { metadata: 0, content: 0, neither: 0 };
      for (let i = 0; i < RACES; i++) {
        const version = await store.put('k', pattern(size, i + 1));
        const content = bytes(`content ${i}`);
        const [metadata, put] = await Promise.allSettled([store.setMetadata('k', version, { race: String(i) }), store.put('k', content, { condition: { version } })]);
        for (const one of [metadata, put]) if (one.status === 'rejected') assert.ok(lost(one.reason), String(one.reason));
        const there = await objectOf(store, 'k');
        if (put.status === 'fulfilled') {
          // Metadata that came first has made another version only where the ETag says so
          assert.ok(there.equals(Buffer.from(content)), `race ${i}: what was put is gone`);
          won.content++;
        } else if (metadata.status === 'fulfilled') {
          assert.ok(there.equals(pattern(size, i + 1)));
          assert.equal((await store.head('k')).metadata!['race'], String(i));
          won.metadata++;
        } else {
          won.neither++;
        }
      }
      assert.equal(won.neither, 0, JSON.stringify(won));
    });
  }
});
