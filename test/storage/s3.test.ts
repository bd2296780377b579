/** The S3 store against a real server. */
import assert from 'node:assert/strict';
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3';
import { after, before, describe, test } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { probe } from '../../src/storage/object/probe.js';
import { S3Store, type S3Options } from '../../src/storage/object/stores/s3.js';
import { Rgw } from '../support/rgw.js';
import { contract } from './contract.js';

describe('S3: Ceph RGW', { skip: Rgw.unavailable() }, () => {
  let rgw: Rgw;
  let buckets = 0;
  const optionsOf = (bucket: string): S3Options => ({ bucket, endpoint: rgw.endpoint, region: 'us-east-1', pathStyle: true, credentials: rgw.credentials });

  async function bucket(): Promise<string> {
    const name = `bucket-${process.pid}-${++buckets}`;
    const client = new S3Client({ endpoint: rgw.endpoint, region: 'us-east-1', forcePathStyle: true, credentials: rgw.credentials });
    await client.send(new CreateBucketCommand({ Bucket: name }));
    client.destroy();
    return name;
  }

  before(async () => (rgw = await Rgw.start()), { timeout: 300_000 });
  after(() => rgw.stop());

  contract('S3', {
    open: async () => {
      const plain = new S3Store(optionsOf(await bucket()));
      const capabilities = await probe(plain, '.probe/');
      await plain.close();
      return new S3Store({ ...plain.options, capabilities });
    },
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
