/** The test server as Google's own client library sees it: what that accepts cannot be too far from the real one. */
import assert from 'node:assert/strict';
import { Storage, type Bucket } from '@google-cloud/storage';
import { after, before, test } from 'node:test';
import { GcsServer } from '../support/gcs/server.js';
import { pattern } from './contract.js';

let server: GcsServer;
let bucket: Bucket;
before(async () => {
  server = await GcsServer.start({ rewriteBytesPerCall: 1 << 20 });
  server.createBucket('b');
  bucket = new Storage({ apiEndpoint: server.url, projectId: 'p', retryOptions: { autoRetry: false } }).bucket('b');
});
after(() => server.close());

const refused = (code: number) => (error: unknown): boolean => (error as { code?: unknown }).code === code;

test('it saves in one request and by a session, downloads with its checks, and reads ranges', async () => {
  const content = Buffer.from(pattern(3_000_000));
  for (const resumable of [false, true]) {
    const file = bucket.file(`saved ${String(resumable)}`);
    await file.save(content, { resumable, validation: 'crc32c', metadata: { contentType: 'text/x-a', metadata: { k: 'v' } } });
    const [metadata] = await file.getMetadata();
    assert.deepEqual([metadata.size, metadata.contentType, metadata.metadata], [String(content.length), 'text/x-a', { k: 'v' }]);
    assert.ok((await file.download({ validation: 'crc32c' }))[0].equals(content));
    assert.ok((await file.download({ start: 10, end: 99 }))[0].equals(content.subarray(10, 100)));
  }
  assert.deepEqual([...new Set(server.seen.map(({ operation }) => operation))].sort(), ['objects.get', 'objects.insert', 'objects.media', 'upload.put', 'upload.start']);
});

test('its preconditions hold: 412 for another generation, and for the second that wants to be the first', async () => {
  const file = bucket.file('conditional');
  await file.save('1', { resumable: false, preconditionOpts: { ifGenerationMatch: 0 } });
  await assert.rejects(file.save('2', { resumable: false, preconditionOpts: { ifGenerationMatch: 0 } }), refused(412));
  await assert.rejects(file.save('2', { resumable: true, preconditionOpts: { ifGenerationMatch: 0 } }), refused(412));
  const [{ generation }] = await file.getMetadata();
  await assert.rejects(file.delete({ ifGenerationMatch: 1 }), refused(412));
  await file.delete({ ifGenerationMatch: generation! });
  await assert.rejects(file.getMetadata(), refused(404));
});

test('it lists with a delimiter and in pages', async () => {
  for (const name of ['l/a', 'l/b/1', 'l/b/2', 'l/c']) await bucket.file(name).save('x', { resumable: false });
  const [files, , answer] = await bucket.getFiles({ prefix: 'l/', delimiter: '/', autoPaginate: false });
  assert.deepEqual([files.map(({ name }) => name), (answer as { prefixes?: string[] }).prefixes], [['l/a', 'l/c'], ['l/b/']]);
  const [all] = await bucket.getFiles({ prefix: 'l/', maxResults: 1 });
  assert.deepEqual(all.map(({ name }) => name), ['l/a']);
  const pages: string[] = [];
  for await (const file of bucket.getFilesStream({ prefix: 'l/', maxResults: 4 })) pages.push((file as { name: string }).name);
  assert.equal(pages.length, 4);
});

test('it composes, copies in several calls, and changes metadata', async () => {
  const parts = [bucket.file('part 1'), bucket.file('part 2')];
  await Promise.all(parts.map((file, i) => file.save(Buffer.from(pattern(1_500_000, i + 1)), { resumable: false })));
  await bucket.combine(parts, bucket.file('whole'), { ifGenerationMatch: 0 });
  const [composed] = await bucket.file('whole').getMetadata();
  assert.deepEqual([composed.size, composed.componentCount, composed.md5Hash], ['3000000', 2, undefined]);
  await bucket.file('whole').setMetadata({ metadata: { k: 'v', gone: 'x' } });
  await bucket.file('whole').setMetadata({ metadata: { gone: null } });
  const [copy] = await bucket.file('whole').copy(bucket.file('copy'));
  assert.deepEqual((await copy.getMetadata())[0].metadata, { k: 'v' });
  assert.equal(server.seen.filter(({ operation }) => operation === 'objects.rewrite').length, 3);
});
