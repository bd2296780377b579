/**
 * What others attach to an object (tags, class, encryption, what HTTP says of it) belongs to the file: whatever a guest does with it, it stays.
 *
 * Tried besides: what is attached while a file is open, or while no daemon runs; attributes that wait for the bucket (`writeback`); a change before a rename; directories; a file that takes another one's name, whose
 * attachments go; tags that may not be read, which refuse a change before it is acknowledged.
 */
import assert from 'node:assert/strict';
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3';
import { after, before, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { GcsServer } from '../support/gcs/server.js';
import { othersAt } from '../support/gcs/others.js';
import { name, OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Rgw } from '../support/rgw.js';
import { othersOf } from '../support/s3/others.js';
import { S3Server } from '../support/s3/server.js';
import { Guest, PARTS, SMALL, withGuest } from '../support/writing-guest.js';
import { byPort, type Others } from './attachments-contract.js';

const ROOT = 1n;
const O_WRONLY = 1;
const O_RDWR = 2;
const O_TRUNC = 0o1000;
const MIB = 1 << 20;

const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

const chmod = async ({ g }: Guest, node: bigint, mode: number): Promise<number> =>
  (await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode, 0, 0, 0, 0)))).error;
const rename = async ({ g }: Guest, from: string, to: string): Promise<number> => (await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to)), 0)).error;

async function write(guest: Guest, file: string, flags: number, offset: number, content: Uint8Array): Promise<void> {
  const { node } = await guest.g.lookup(ROOT, file);
  const fh = await guest.g.open(node, flags);
  await guest.write(node, fh, offset, content);
  assert.equal(await guest.close(node, fh), 0);
}

/** What a guest does with a file `f` of 9 MiB (of 200,000 bytes in memory), and its key then. */
const CHANGES: readonly (readonly [what: string, change: (guest: Guest, size: number) => Promise<string | void>])[] = [
  ['bytes in its middle', (guest) => write(guest, 'f', O_RDWR, 100, bytes('in the middle'))],
  ['bytes at its end', (guest, size) => write(guest, 'f', O_WRONLY, size, bytes('appended'))],
  ['overwritten', (guest) => write(guest, 'f', O_WRONLY | O_TRUNC, 0, bytes('overwritten'))],
  ['overwritten by something large', (guest, size) => write(guest, 'f', O_WRONLY | O_TRUNC, 0, new Uint8Array(2 * size).fill(7))],
  ['cut', async (guest) => assert.equal(await guest.truncate((await guest.g.lookup(ROOT, 'f')).node, 70), 0)],
  ['cut to nothing', async (guest) => assert.equal(await guest.truncate((await guest.g.lookup(ROOT, 'f')).node, 0), 0)],
  ['chmod', async (guest) => assert.equal(await chmod(guest, (await guest.g.lookup(ROOT, 'f')).node, 0o600), 0)],
  ['an attribute', async (guest) => {
    const { node } = await guest.g.lookup(ROOT, 'f');
    assert.equal((await guest.g.call(OP.SETXATTR, node, concat(u32(5, 0, 0, 0), name('user.a'), bytes('value')), 0)).error, 0);
  }],
  ['renamed', async (guest) => (assert.equal(await rename(guest, 'f', 'g'), 0), 'g')],
  ['renamed over another one', async (guest) => (assert.equal(await rename(guest, 'f', 'other'), 0), 'other')],
  ['changed and renamed', async (guest) => {
    const { node } = await guest.g.lookup(ROOT, 'f');
    const fh = await guest.g.open(node, O_RDWR);
    await guest.write(node, fh, 0, bytes('changed'));
    assert.equal(await rename(guest, 'f', 'g'), 0);
    await guest.write(node, fh, 7, bytes(' again'));
    assert.equal(await guest.close(node, fh), 0);
    return 'g';
  }],
  ['its directory renamed', async (guest) => (assert.equal(await rename(guest, 'd', 'e'), 0), 'e/f')],
];

interface Subject {
  readonly store: ObjectStore;
  readonly others: Others;
  readonly size: number;
  readonly sizes?: typeof SMALL;
  close(): Promise<void>;
}

const memory = (gcs: boolean): Subject => {
  const store = new MemoryStore({ limits: PARTS, capabilities: gcs ? { copyPart: 'whole' } : { rename: false, metadataInPlace: false, listingHasMetadata: false } });
  return { store, others: byPort(store), size: 200_000, sizes: SMALL, close: async () => undefined };
};

const SUBJECTS: readonly (readonly [string, string | false, () => Promise<Subject>])[] = [
  ['in memory, as S3', false, async () => memory(false)],
  ['in memory, as Google Cloud Storage', false, async () => memory(true)],
  ['on the S3 server of the tests', false, async () => {
    const server = await S3Server.start();
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const config = { endpoint: server.endpoint, region: 'us-east-1', credentials: S3Server.CREDENTIALS };
    const client = new S3Client({ ...config, forcePathStyle: true });
    const store = new S3Store({ ...config, bucket: S3Server.BUCKET, pathStyle: true });
    const others = othersOf(client, S3Server.BUCKET, { StorageClass: 'STANDARD_IA', ServerSideEncryption: 'aws:kms', SSEKMSKeyId: 'key-1', BucketKeyEnabled: true });
    return { store, others, size: 9 * MIB, close: async () => (client.destroy(), await store.close(), server.stop()) };
  }],
  ['on the server of Google Cloud Storage', false, async () => {
    const server = await GcsServer.start();
    server.createBucket('bucket');
    const store = new GcsStore({ bucket: 'bucket', endpoint: server.url, credentials: 'anonymous' });
    return { store, others: othersAt(server), size: 9 * MIB, close: async () => (await store.close(), server.close()) };
  }],
  ['on Ceph RGW', Rgw.unavailable(), async () => {
    const rgw = await Rgw.start();
    const config = { endpoint: rgw.endpoint, region: 'us-east-1', credentials: rgw.credentials };
    const client = new S3Client({ ...config, forcePathStyle: true });
    await client.send(new CreateBucketCommand({ Bucket: 'attached' }));
    const store = new S3Store({ ...config, bucket: 'attached', pathStyle: true });
    const others = othersOf(client, 'attached', { ServerSideEncryption: 'aws:kms', SSEKMSKeyId: 'first' });
    return { store, others, size: 9 * MIB, close: async () => (client.destroy(), await store.close(), rgw.stop()) };
  }],
];

for (const [where, skip, open] of SUBJECTS) {
  describe(`what is attached to a file's object stays, ${where}`, { skip }, () => {
    let subject: Subject;
    let content: Uint8Array;
    before(async () => {
      subject = await open();
      content = new Uint8Array(subject.size).fill(1);
    }, { timeout: 300_000 });
    after(() => subject.close());

    for (const durability of ['remote', 'writeback'] as const) {
      for (const [what, change] of CHANGES) {
        test(`${what}, ${durability}`, async () => {
          const { store, others, size } = subject;
          const sizes = subject.sizes === undefined ? { putMaxBytes: MIB, partBytes: 5 * MIB } : subject.sizes;
          for (const key of ['f', 'd/f']) await others.put(key, content);
          for (const key of ['g', 'e/f']) await store.remove(key);
          await store.put('other', bytes('other'), { headers: { 'content-type': 'text/x-other', 'content-language': 'de', 'x-amz-tagging': 'other=1' } });
          const expected = await others.attached('f');
          let key: string | void;
          await withGuest(store, async (guest) => void (key = await change(guest, size)), { metadataTtl_ms: 1000, write: { durability, sizes } });
          assert.deepEqual(await others.attached(key! ?? 'f'), expected);
        });
      }
    }

    for (const durability of ['remote', 'writeback'] as const) {
      test(`a directory and a link, described and renamed, ${durability}`, async () => {
        const { store, others } = subject;
        for (const key of ['m/', 'n/']) await store.remove(key);
        await others.put('m/', new Uint8Array(0));
        const expected = await others.attached('m/');
        await others.put('link', bytes('target'));
        const { version } = await store.head('link');
        await store.setMetadata('link', version, { mode: String(0o120777) });
        const link = await others.attached('link');
        await withGuest(store, async (guest) => {
          for (const one of ['m', 'link']) assert.equal(await chmod(guest, (await guest.g.lookup(ROOT, one)).node, 0o700), 0);
          await guest.g.opened.idle();
          assert.deepEqual([await others.attached('m/'), await others.attached('link')], [expected, link]);
          assert.equal(await rename(guest, 'm', 'n'), 0);
          assert.equal(await rename(guest, 'link', 'there'), 0);
        }, { metadataTtl_ms: 1000, write: { durability } });
        assert.deepEqual([await others.attached('n/'), await others.attached('there')], [expected, link]);
      });
    }

    test('a new file has nothing of the one whose name it takes', async () => {
      const { store, others } = subject;
      await others.put('f', content);
      await store.put('plain', bytes('plain'));
      const plain = await others.attached('plain');
      await withGuest(store, async (guest) => {
        await guest.put('temporary', bytes('new content'));
        assert.equal(await rename(guest, 'temporary', 'f'), 0);
      }, { write: { durability: 'writeback', writebackDelay_ms: 60_000 } });
      assert.deepEqual(await others.attached('f'), plain);
    });
  });
}

describe('what others attach meanwhile', () => {
  const tagged = async (store: MemoryStore, key: string): Promise<string | undefined> => (await store.head(key, { attachments: true })).headers!['x-amz-tagging'];
  const asS3 = (): MemoryStore => new MemoryStore({ capabilities: { rename: false, metadataInPlace: false, listingHasMetadata: false } });

  test('to a file that is open is there after the next commit, of one that was there and of a new one', async () => {
    const store = asS3();
    await store.put('old', bytes('old'));
    await withGuest(store, async (guest) => {
      const { node } = await guest.g.lookup(ROOT, 'old');
      const open = [{ key: 'old', node, fh: await guest.g.open(node, O_RDWR) }];
      const { entry, fh } = await guest.g.create(ROOT, 'new');
      await guest.write(entry.node, fh, 0, bytes('new'));
      assert.equal(await guest.fsync(entry.node, fh), 0);
      open.push({ key: 'new', node: entry.node, fh });
      for (const [round, tags] of ['a=1', 'a=1&b=2', 'c=3'].entries()) {
        for (const one of open) {
          store.attach(one.key, { 'x-amz-tagging': tags });
          await guest.write(one.node, one.fh, 10 * round, bytes('changed'));
          assert.equal(await guest.fsync(one.node, one.fh), 0);
          assert.equal(await tagged(store, one.key), tags, one.key);
        }
      }
      for (const one of open) assert.equal(await guest.close(one.node, one.fh), 0);
    });
  });

  test('is there also when the daemon was killed before the commit, and a name that was taken has nothing of the former one', async () => {
    const store = asS3();
    await store.put('f', bytes('before'));
    await store.put('taken', bytes('before'), { headers: { 'x-amz-tagging': 'a=1' } });
    const write = { durability: 'writeback', writebackDelay_ms: 60_000 } as const;
    const g = await ObjectGuest.start(store, { write });
    try {
      const guest = new Guest(g);
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node, O_RDWR);
      await guest.write(node, fh, 0, bytes('changed'));
      assert.equal(await guest.fsync(node, fh), 0);
      await guest.put('temporary', bytes('new'));
      assert.equal(await rename(guest, 'temporary', 'taken'), 0);
      await g.kill();
      store.attach('f', { 'x-amz-tagging': 'late=2' });
      const next = await ObjectGuest.start(store, { write: { ...write, cacheDirectory: g.cacheDirectory! } });
      assert.equal(await next.close(), 0);
      assert.deepEqual([await tagged(store, 'f'), await tagged(store, 'taken')], ['late=2', undefined]);
    } finally {
      g.discard();
    }
  });
});

describe('tags that may not be read', () => {
  test('refuse every change at once, with a line that says what is missing; reading, removing and renaming over it work', async () => {
    const server = await S3Server.start();
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const store = new S3Store({ endpoint: server.endpoint, region: 'us-east-1', credentials: S3Server.CREDENTIALS, bucket: S3Server.BUCKET, pathStyle: true });
    server.judge = ({ operation }) => (operation === 'tags' ? { status: 403, code: 'AccessDenied', message: 'no s3:GetObjectTagging' } : null);
    try {
      for (const durability of ['remote', 'writeback'] as const) {
        await server.store.put('f', bytes('tagged'), { headers: { 'x-amz-tagging': 'a=1' } });
        await withGuest(store, async (guest) => {
          const { node } = await guest.g.lookup(ROOT, 'f');
          for (const flags of [O_WRONLY, O_RDWR, O_WRONLY | O_TRUNC]) assert.equal((await guest.g.call(OP.OPEN, node, u32(flags, 0), 16)).error, -E.ACCES);
          assert.equal(await guest.truncate(node, 3), -E.ACCES);
          assert.equal(await chmod(guest, node, 0o600), -E.ACCES);
          assert.equal(await rename(guest, 'f', 'g'), -E.ACCES);
          assert.match(guest.g.log.join('\n'), /s3:\/\/bucket\/f.* has tags.*s3:GetObjectTagging/);
          assert.equal((await guest.content(node)).toString(), 'tagged');
          await guest.put('h', bytes('other'));
          assert.equal(await rename(guest, 'h', 'f'), 0);
          assert.equal((await guest.g.call(OP.UNLINK, ROOT, name('f'), 0)).error, 0);
        }, { write: { durability } });
        assert.deepEqual((await store.list({ prefix: '' })).objects, [], 'and nothing is left to be done');
      }
    } finally {
      await store.close();
      await server.stop();
    }
  });
});
