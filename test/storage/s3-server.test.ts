/** The S3 server of the tests behaves as the contract says, so that its misbehaviour is what a test asked for. */
import { S3Client } from '@aws-sdk/client-s3';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { othersOf } from '../support/s3/others.js';
import { S3Server } from '../support/s3/server.js';
import { contract } from './contract.js';
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';

describe('the S3 server of the tests', () => {
  let server: S3Server;
  let client: S3Client;
  const storeOf = (): S3Store => new S3Store({ bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS });
  before(async () => {
    server = await S3Server.start();
    client = new S3Client({ endpoint: server.endpoint, region: 'us-east-1', forcePathStyle: true, credentials: S3Server.CREDENTIALS });
  });
  after(async () => {
    client.destroy();
    await server.stop();
  });

  contract('S3 on the server of the tests', {
    others: () => othersOf(client, S3Server.BUCKET, { StorageClass: 'STANDARD_IA', ServerSideEncryption: 'aws:kms', SSEKMSKeyId: 'key-1', BucketKeyEnabled: true }),
    open: async () => {
      server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
      return storeOf();
    },
  });

  test('tags that may not be read, or that no request has room for, refuse a change: the object stays as it is', async () => {
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const store = storeOf();
    const version = await store.put('k', Buffer.from('before'), { headers: { 'x-amz-tagging': 'a=1' } });
    const { headers } = await store.head('k');
    const huge = Array.from({ length: 10 }, (_, i) => `${i}=${encodeURIComponent('日'.repeat(250))}`).join('&');
    const refused: [() => void, string][] = [
      [() => (server.judge = ({ operation }) => (operation === 'tags' ? { status: 403, code: 'AccessDenied' } : null)), 'denied'],
      [() => server.store.attach('k', { 'x-amz-tagging': huge }), 'too-large'],
    ];
    for (const [prepare, code] of refused) {
      prepare();
      await assert.rejects(store.head('k', { attachments: true }), { code });
      await assert.rejects(store.put('k', Buffer.from('after'), { headers: headers!, condition: { version } }), { code });
      await assert.rejects(store.setMetadata('k', version, { n: '1' }), { code });
      await assert.rejects(store.beginUpload('k', { headers: headers! }), { code });
      assert.deepEqual([(await store.head('k')).version, (await store.head('k')).metadata], [version, {}]);
      server.judge = () => null;
    }
    await store.close();
  });

  test('what a bucket says of locks has to make sense, or what it would be for is refused', async () => {
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const locked = { 'x-amz-object-lock-mode': 'GOVERNANCE', 'x-amz-object-lock-retain-until-date': '2035-01-01T00:00:00Z' };
    const of = async (lock: string): Promise<string | undefined> => {
      server.lock = lock;
      const store = storeOf();
      try {
        await store.put('k', Buffer.from('x'), { headers: locked });
        return (await store.head('k')).headers!['x-amz-object-lock-mode'];
      } finally {
        await store.close();
        server.lock = null;
      }
    };
    assert.equal(await of('<Mode>GOVERNANCE</Mode><Days>1</Days>'), 'GOVERNANCE');
    assert.equal(await of('<Mode>COMPLIANCE</Mode><Years>1</Years>'), 'COMPLIANCE');
    assert.equal(await of('<Mode>COMPLIANCE</Mode><Years>20</Years>'), undefined, "the bucket's own is more");
    for (const odd of ['<Mode>GOVERNANCE</Mode>', '<Mode>NOSUCH</Mode><Days>1</Days>', '<Mode>GOVERNANCE</Mode><Days>1e12</Days>', '<Mode>GOVERNANCE</Mode><Days>-1</Days>']) {
      await assert.rejects(of(odd), { code: 'unexpected' }, odd);
    }
  });

  test('only an object with tags costs a request more when it is changed', async () => {
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    const store = storeOf();
    for (const [tagging, expected] of [['', ['put']], ['a=1', ['tags', 'put']]] as const) {
      const version = await store.put('k', Buffer.from('before'), { headers: { 'x-amz-tagging': tagging } });
      const { headers } = await store.head('k');
      server.requests.length = 0;
      await store.put('k', Buffer.from('after'), { headers: headers!, condition: { version } });
      assert.deepEqual(server.requests, expected);
    }
    await store.close();
  });
});
