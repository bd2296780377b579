/**
 * Objects whose content is in an archive (GLACIER, DEEP_ARCHIVE, an archive tier of Intelligent-Tiering) and was not restored: what needs the
 * content is refused at once, what does not works, and never is something acknowledged that can never be in the bucket.
 *
 * Tried besides: truncation to nothing and to less; mappings, which are opens; attributes that wait for the bucket; a directory with an archived object
 * somewhere in it; one that is restored, or being restored; one that is archived while it is open; small files, whose LOOKUP fetches content; holds of Google
 * Cloud Storage, which refuse the opposite: replacing is impossible, reading is not.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { ObjectHeaders, ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { GcsServer } from '../support/gcs/server.js';
import { name, OP } from '../support/guest.js';
import { S3Server } from '../support/s3/server.js';
import { objectOf, withGuest, type Guest } from '../support/writing-guest.js';

const ROOT = 1n;
const [O_RDONLY, O_WRONLY, O_RDWR, O_TRUNC] = [0, 1, 2, 0o1000];
/** No OPEN fetches so much along. */
const LARGE = new Uint8Array(100_000);
const GLACIER = { 'x-amz-storage-class': 'GLACIER' };

const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);
const setattr = ({ g }: Guest, node: bigint, valid: number, mode: number): Promise<{ error: number }> =>
  g.call(OP.SETATTR, node, concat(u32(valid, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode, 0, 0, 0, 0)));
const rename = async ({ g }: Guest, from: string, to: string): Promise<number> => (await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to)), 0)).error;
const open = async ({ g }: Guest, node: bigint, flags: number): Promise<number> => (await g.call(OP.OPEN, node, u32(flags, 0), 16)).error;

async function replaced(guest: Guest, node: bigint, content: string): Promise<void> {
  const fh = await guest.g.open(node, O_WRONLY | O_TRUNC);
  await guest.write(node, fh, 0, bytes(content));
  assert.equal(await guest.close(node, fh), 0);
}

/** S3 in memory, and as it is spoken over HTTP. */
const SUBJECTS: readonly (readonly [string, (body: (store: ObjectStore, memory: MemoryStore) => Promise<void>) => Promise<void>])[] = [
  ['in memory', async (body) => {
    const memory = new MemoryStore({ capabilities: { rename: false, metadataInPlace: false, listingHasMetadata: false } });
    await body(memory, memory);
  }],
  ['on the S3 server of the tests', async (body) => {
    const server = await S3Server.start();
    server.store = new MemoryStore({ capabilities: { metadataInPlace: false, listingHasMetadata: false } });
    const store = new S3Store({ endpoint: server.endpoint, region: 'us-east-1', credentials: S3Server.CREDENTIALS, bucket: S3Server.BUCKET, pathStyle: true });
    try {
      await body(store, server.store);
    } finally {
      await store.close();
      await server.stop();
    }
  }],
];

for (const [where, withStore] of SUBJECTS) {
  for (const durability of ['remote', 'writeback'] as const) {
    describe(`an archived object, ${where}, ${durability}`, () => {
      const withIce = (headers: ObjectHeaders, body: (guest: Guest, node: bigint, store: ObjectStore, memory: MemoryStore) => Promise<void>): Promise<void> =>
        withStore(async (store, memory) => {
          await store.put('ice', bytes('frozen'));
          memory.attach('ice', headers);
          await withGuest(store, async (guest) => body(guest, (await guest.g.lookup(ROOT, 'ice')).node, store, memory), { write: { durability } });
          assert.deepEqual((await store.listUploads({ prefix: '' })).uploads, []);
        });

      const FROZEN: readonly (readonly [string, ObjectHeaders])[] = [
        ['not restored', GLACIER], ['being restored', { 'x-amz-storage-class': 'DEEP_ARCHIVE', 'x-amz-restore': 'ongoing-request="true"' }],
        ['in an archive tier', { 'x-amz-storage-class': 'INTELLIGENT_TIERING', 'x-amz-archive-status': 'ARCHIVE_ACCESS' }],
      ];
      for (const [how, headers] of FROZEN) {
        test(`${how}: what needs its content is EACCES at once, and says why`, () => withIce(headers, async (guest, node, store) => {
          for (const flags of [O_RDONLY, O_WRONLY, O_RDWR]) assert.equal(await open(guest, node, flags), -E.ACCES);
          assert.equal(await guest.truncate(node, 3), -E.ACCES);
          assert.equal((await setattr(guest, node, 1, 0o600)).error, -E.ACCES);
          assert.equal((await guest.g.call(OP.SETXATTR, node, concat(u32(1, 0, 0, 0), name('user.a'), bytes('v')), 0)).error, -E.ACCES);
          assert.equal(await rename(guest, 'ice', 'water'), -E.ACCES);
          assert.match(guest.g.log.join('\n'), /ice.* archived/);
          assert.equal((await guest.g.lookup(ROOT, 'ice')).size, 6, 'and it looks as it did');
          await guest.g.opened.idle();
          assert.equal((await store.head('ice')).size, 6);
        }));
      }

      test('it can be replaced, by writing and by name, and is standard then; cut to nothing; and removed', () => withIce(GLACIER, async (guest, node, store, memory) => {
        await replaced(guest, node, 'water');
        await guest.g.opened.idle();
        assert.deepEqual([(await objectOf(store, 'ice')).toString(), (await store.head('ice')).headers!['x-amz-storage-class']], ['water', undefined]);
        const fh = await guest.g.open(node, O_RDWR);
        await guest.write(node, fh, 5, bytes(' flows'));
        assert.equal(await guest.close(node, fh), 0);
        await guest.g.opened.idle();
        assert.equal((await objectOf(store, 'ice')).toString(), 'water flows');

        memory.attach('ice', GLACIER);
        assert.equal(await guest.truncate(node, 0), 0);
        await guest.g.opened.idle();
        assert.equal((await objectOf(store, 'ice')).toString(), '');

        memory.attach('ice', GLACIER);
        await guest.put('new', bytes('new'));
        assert.equal(await rename(guest, 'new', 'ice'), 0);
        await guest.g.opened.idle();
        assert.equal((await objectOf(store, 'ice')).toString(), 'new');

        memory.attach('ice', GLACIER);
        assert.equal((await guest.g.call(OP.UNLINK, ROOT, name('ice'), 0)).error, 0);
        await assert.rejects(store.head('ice'), { code: 'not-found' });
      }));

      test('restored, it is a file like any other', () => withIce({ ...GLACIER, 'x-amz-restore': 'ongoing-request="false", expiry-date="Fri, 21 Dec 2035 00:00:00 GMT"' }, async (guest, node, store) => {
        assert.equal((await guest.content(node)).toString(), 'frozen');
        const fh = await guest.g.open(node, O_RDWR);
        await guest.write(node, fh, 6, bytes(' no more'));
        assert.equal(await guest.close(node, fh), 0);
        assert.equal((await setattr(guest, node, 1, 0o600)).error, 0);
        assert.equal(await rename(guest, 'ice', 'water'), 0);
        await guest.g.opened.idle();
        assert.equal((await objectOf(store, 'water')).toString(), 'frozen no more');
      }));

      test('a directory with one in it is not renamed, and nothing of it has moved', () => withStore(async (store, memory) => {
        const keys = ['d/', 'd/a', 'd/b/ice', 'd/z'];
        for (const key of keys) await store.put(key, bytes(key));
        memory.attach('d/b/ice', GLACIER);
        const before = (await store.list({ prefix: '' })).objects;
        assert.deepEqual(before.map(({ key }) => key), keys);
        await withGuest(store, async (guest) => {
          assert.equal(await rename(guest, 'd', 'e'), -E.ACCES);
          assert.deepEqual((await store.list({ prefix: '' })).objects, before, 'not even there and back');
          assert.match(guest.g.log.join('\n'), /d\/b\/ice.* archived/);
          memory.attach('d/b/ice', { ...GLACIER, 'x-amz-restore': 'ongoing-request="false"' });
          assert.equal(await rename(guest, 'd', 'e'), 0);
          assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), keys.map((key) => `e${key.slice(1)}`));
        }, { write: { durability } });
      }));

      test('archived while it is open, it can still be removed and replaced', () => withStore(async (store, memory) => {
        await withGuest(store, async (guest) => {
          for (const remove of [true, false]) {
            await store.put('ice', LARGE);
            const { node } = await guest.g.lookup(ROOT, 'ice');
            const fh = await guest.g.open(node, O_RDONLY);
            memory.attach('ice', GLACIER);
            assert.equal((await guest.g.read(node, fh, 0, 10)).error, -E.ACCES);
            if (remove) assert.equal((await guest.g.call(OP.UNLINK, ROOT, name('ice'), 0)).error, 0);
            else await replaced(guest, node, 'water');
            await guest.release(node, fh);
          }
        }, { write: { durability } });
        assert.equal((await objectOf(store, 'ice')).toString(), 'water');
      }));

      test('in a directory whose small files are read one after the other, it is found and refused like anywhere', () => withStore(async (store, memory) => {
        for (let i = 0; i < 12; i++) await store.put(`d/${i}`, bytes(`content ${i}`));
        memory.attach('d/9', GLACIER);
        await withGuest(store, async (guest) => {
          const d = (await guest.g.lookup(ROOT, 'd')).node;
          for (let i = 0; i < 12; i++) {
            const { node, size } = await guest.g.lookup(d, String(i));
            assert.equal(size, `content ${i}`.length);
            if (i === 9) assert.equal(await open(guest, node, O_RDONLY), -E.ACCES);
            else assert.equal((await guest.content(node)).toString(), `content ${i}`);
          }
        }, { metadataTtl_ms: 1000, write: { durability } });
      }));
    });
  }
}

for (const durability of ['remote', 'writeback'] as const) {
  test(`an object under a hold of Google Cloud Storage is read and described, not replaced, renamed or removed, ${durability}`, async () => {
    const server = await GcsServer.start();
    const bucket = server.createBucket('b');
    const store = new GcsStore({ bucket: 'b', endpoint: server.url, credentials: 'anonymous' });
    try {
      for (const hold of ['temporaryHold', 'eventBasedHold']) {
        await store.put('held', bytes('evidence'));
        await store.put('d/held', bytes('evidence'));
        for (const key of ['held', 'd/held']) bucket.patch(key, { [hold]: true }, new Map());
        await withGuest(store, async (guest) => {
          const { node } = await guest.g.lookup(ROOT, 'held');
          assert.equal((await guest.content(node)).toString(), 'evidence');
          for (const flags of [O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC]) assert.equal(await open(guest, node, flags), -E.ACCES);
          for (const size of [0, 3]) assert.equal(await guest.truncate(node, size), -E.ACCES);
          assert.equal(await rename(guest, 'held', 'there'), -E.ACCES);
          assert.equal(await rename(guest, 'd', 'e'), -E.ACCES);
          await guest.put('new', bytes('new'));
          assert.equal(await rename(guest, 'new', 'held'), -E.ACCES);
          assert.equal((await guest.g.call(OP.UNLINK, ROOT, name('held'), 0)).error, -E.ACCES);
          assert.equal((await setattr(guest, node, 1, 0o600)).error, 0);
          assert.match(guest.g.log.join('\n'), /held.* under a hold/);
        }, { write: { durability } });
        assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), ['d/held', 'held', 'new']);
        assert.equal((await objectOf(store, 'held')).toString(), 'evidence');
        for (const key of ['held', 'd/held']) bucket.patch(key, { [hold]: false }, new Map());
        await store.remove('new');
      }
    } finally {
      await store.close();
      await server.close();
    }
  });
}

test('an object whose metadata leaves no room for that of a commit is refused at open, not when it is closed', async () => {
  const store = new MemoryStore();
  const { metadataBytes } = store.limits;
  for (const [key, left] of [['just', 200], ['full', 12]] as const) await store.put(key, bytes('old'), { metadata: { other: 'x'.repeat(metadataBytes - left) } });
  await withGuest(store, async (guest) => {
    const just = await guest.g.lookup(ROOT, 'just');
    await replaced(guest, just.node, 'new');
    assert.equal(String(await objectOf(store, 'just')), 'new');
    const full = await guest.g.lookup(ROOT, 'full');
    assert.equal(await open(guest, full.node, O_RDWR), -E.NOSPC);
    assert.equal(await open(guest, full.node, O_RDONLY), 0);
  });
});
