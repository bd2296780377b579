/** The S3 store against a real server. */
import assert from 'node:assert/strict';
import { CreateBucketCommand, HeadObjectCommand, PutObjectCommand, PutObjectLockConfigurationCommand, S3Client } from '@aws-sdk/client-s3';
import { after, before, describe, test } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { probe } from '../../src/storage/object/probe.js';
import type { ObjectInfo } from '../../src/storage/object/store.js';
import { S3Store, type S3Options } from '../../src/storage/object/stores/s3.js';
import { othersOf } from '../support/s3/others.js';
import { Rgw } from '../support/rgw.js';
import { contract } from './contract.js';

describe('S3: Ceph RGW', { skip: Rgw.unavailable() }, () => {
  let rgw: Rgw;
  let buckets = 0;
  const optionsOf = (bucket: string): S3Options => ({ bucket, endpoint: rgw.endpoint, region: 'us-east-1', pathStyle: true, credentials: rgw.credentials });

  const clientOf = (): S3Client => new S3Client({ endpoint: rgw.endpoint, region: 'us-east-1', forcePathStyle: true, credentials: rgw.credentials });

  async function bucket(locks = false): Promise<string> {
    const name = `bucket-${process.pid}-${++buckets}`;
    const client = clientOf();
    await client.send(new CreateBucketCommand({ Bucket: name, ObjectLockEnabledForBucket: locks }));
    client.destroy();
    return name;
  }

  before(async () => (rgw = await Rgw.start()), { timeout: 300_000 });
  after(() => rgw.stop());

  let client: S3Client;
  let shared: string;
  contract('S3', {
    others: () => othersOf(client, shared, { ServerSideEncryption: 'aws:kms', SSEKMSKeyId: 'first' }),
    open: async () => {
      client = clientOf();
      const plain = new S3Store(optionsOf((shared = await bucket())));
      const capabilities = await probe(plain, '.probe/');
      await plain.close();
      return new S3Store({ ...plain.options, capabilities });
    },
    close: async () => client.destroy(),
  });

  describe('in a bucket with object locks', () => {
    const HOUR_MS = 3_600_000;
    const ways: [string, (store: S3Store, info: ObjectInfo) => Promise<unknown>][] = [
      ['put', (store, { key, headers, version }) => store.put(key, Buffer.from('changed'), { headers: headers!, condition: { version } })],
      ['metadata', (store, { key, version }) => store.setMetadata(key, version, { mode: '33188' })],
      ['copy', (store, { key }) => store.copy(`${key}-from`, key)],
      ['parts', async (store, { key, headers }) => {
        const upload = await store.beginUpload(key, { headers: headers! });
        await store.completeUpload(upload, [await store.putPart(upload, 1, Buffer.from('changed'))]);
      }],
    ];

    test('a lock goes on with what replaces the object, never shorter than what the bucket gives; one that is over does not', async () => {
      const name = await bucket(true);
      const client = clientOf();
      const store = new S3Store(optionsOf(name));
      const lockOf = async (Key: string): Promise<object> => {
        const { ObjectLockMode: mode, ObjectLockRetainUntilDate: until, ObjectLockLegalHoldStatus: hold } = await client.send(new HeadObjectCommand({ Bucket: name, Key }));
        return { mode, until: until?.getTime(), hold };
      };
      const until = new Date(Math.ceil(Date.now() / 1000) * 1000 + 48 * HOUR_MS);
      const locked = { Bucket: name, Body: 'locked', ObjectLockMode: 'GOVERNANCE', ObjectLockRetainUntilDate: until, ObjectLockLegalHoldStatus: 'ON' } as const;
      for (const days of [0, 1, 5]) {
        const rule = { ObjectLockEnabled: 'Enabled', Rule: { DefaultRetention: { Mode: 'GOVERNANCE', Days: days } } } as const;
        if (days > 0) await client.send(new PutObjectLockConfigurationCommand({ Bucket: name, ObjectLockConfiguration: rule }));
        const fresh = new S3Store(optionsOf(name)); // which has not yet asked what the bucket gives
        for (const [what, change] of ways) {
          for (const Key of [what, `${what}-from`]) await client.send(new PutObjectCommand({ ...locked, Key }));
          const before = Date.now();
          await change(fresh, await fresh.head(what));
          const { until: now, ...rest } = (await lockOf(what)) as { until: number };
          assert.deepEqual(rest, { mode: 'GOVERNANCE', hold: 'ON' }, `${what}, ${days} days`);
          if (days < 2) assert.equal(now, until.getTime(), `${what}, ${days} days`);
          else assert.ok(now >= before + days * 24 * HOUR_MS - 60_000, `${what}: the bucket's ${days} days`);
        }
        await fresh.close();
      }
      await client.send(new PutObjectLockConfigurationCommand({ Bucket: name, ObjectLockConfiguration: { ObjectLockEnabled: 'Enabled' } }));
      await store.put('over', Buffer.from('x'), { headers: { 'x-amz-object-lock-mode': 'GOVERNANCE', 'x-amz-object-lock-retain-until-date': '2020-01-01T00:00:00Z' } });
      assert.deepEqual(await lockOf('over'), { mode: undefined, until: undefined, hold: undefined });
      client.destroy();
      await store.close();
    });
  });

  test('the probe finds what this server is known to have, and leaves nothing behind', async () => {
    const store = new S3Store(optionsOf(await bucket()));
    const found = await probe(store, 'some/where/');
    assert.deepEqual([found.putIfAbsent, found.putIfVersion, found.completeIfAbsent, found.copyPart, found.rename], [true, true, true, 'range', false]);
    assert.deepEqual((await store.list({ prefix: '' })).objects, []);
    assert.deepEqual((await store.listUploads({ prefix: '' })).uploads, []);
    await store.close();
  });

  describe('what is wrong is said', () => {
    const cases: [string, (o: S3Options) => S3Options, StorageErrorCode][] = [
      ['no such bucket', (o) => ({ ...o, bucket: 'no-such-bucket-here' }), 'no-bucket'],
      ['an unknown key', (o) => ({ ...o, credentials: { accessKeyId: 'NOBODY', secretAccessKey: 'x' } }), 'bad-credentials'],
      ['a wrong secret', (o) => ({ ...o, credentials: { ...rgw.credentials, secretAccessKey: 'wrong' } }), 'bad-credentials'],
      ['nobody listens', (o) => ({ ...o, endpoint: 'http://127.0.0.1:1' }), 'unreachable'],
      ['a name that does not resolve', (o) => ({ ...o, endpoint: 'http://no-such-host.invalid' }), 'unreachable'],
      ['no credentials for a private bucket', (o) => ({ ...o, unsigned: true }), 'denied'],
    ];
    for (const [what, change, code] of cases) {
      test(what, async () => {
        const store = new S3Store(change(optionsOf(await bucket())));
        await assert.rejects(store.check(), (error: unknown) => {
          assert.ok(error instanceof StorageError);
          assert.equal(error.code, code, error.message);
          return true;
        });
        await store.close();
      });
    }
  });

  test('metadata of any text comes back, and what others read stays plain', async () => {
    const store = new S3Store(optionsOf(await bucket()));
    const metadata = { mode: '33188', text: 'ümläut 日本 🎈', spaces: ' at both ends ', looks: '=?UTF-8?B?eA==?=', newline: 'a\nb' };
    await store.put('k', new Uint8Array(0), { metadata });
    assert.deepEqual({ ...(await store.head('k')).metadata }, metadata);
    await store.close();
  });
});
