/** What the Google Cloud Storage store does beyond the contract: versions, copies, names, parts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { settledComplete } from '../../src/storage/object/settle.js';
import { crc32c, crc32cText } from '../../src/storage/object/stores/gcs-crc32c.js';
import { codeOf, gcsSubject } from '../support/gcs/subject.js';
import { contentOf } from './contract.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const gcs = gcsSubject();

test('CRC-32C has the values of RFC 3720 B.4, in pieces of any size as well', () => {
  const ascending = Uint8Array.from({ length: 32 }, (_, i) => i);
  assert.equal(crc32c(new Uint8Array(32)), 0x8a9136aa);
  assert.equal(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43);
  assert.equal(crc32c(ascending), 0x46dd794e);
  assert.equal(crc32c(ascending.slice().reverse()), 0x113fdb5c);
  assert.equal(crc32cText(crc32c(bytes('123456789'))), '4waSgw==');
  for (let cut = 0; cut <= 32; cut++) assert.equal(crc32c(ascending.subarray(cut), crc32c(ascending.subarray(0, cut))), 0x46dd794e);
});

describe('versions', () => {
  test("a conditional write does not undo somebody's change of metadata", async () => {
    const key = `${gcs.fresh()}v`;
    const version = await gcs.store.put(key, bytes('content'), { metadata: { mode: '1' } });
    await gcs.patch(key, { metadata: { mode: '2' } });
    assert.equal(await codeOf(gcs.store.put(key, bytes('other'), { condition: { version } })), 'changed');
    assert.equal(await codeOf(gcs.store.remove(key, { version })), 'changed');
    assert.equal(await codeOf(gcs.store.setMetadata(key, version, { mode: '3' })), 'changed');
    assert.equal(await codeOf(gcs.store.copy(key, `${key}2`, { sourceVersion: version })), 'changed');
    const upload = await gcs.store.beginUpload(key);
    const part = await gcs.store.putPart(upload, 1, bytes('x'));
    assert.equal(await codeOf(gcs.store.completeUpload(upload, [part], { condition: { version } })), 'changed');
    await gcs.store.abortUpload(upload);
    const info = await gcs.store.head(key);
    assert.deepEqual([{ ...info.metadata }, info.size], [{ mode: '2' }, 7]);
    await gcs.store.put(key, bytes('other'), { condition: { version: info.version } });
  });

  test('a pinned read goes on when only the metadata is another', async () => {
    const key = `${gcs.fresh()}v`;
    const version = await gcs.store.put(key, bytes('content'));
    await gcs.patch(key, { metadata: { mode: '2' } });
    assert.notEqual((await gcs.store.head(key)).version, version);
    assert.equal(Buffer.from(await contentOf(gcs.store, key, version)).toString(), 'content');
  });

  test('a change of metadata does not move the time of the content', async () => {
    const key = `${gcs.fresh()}v`;
    const version = await gcs.store.put(key, bytes('content'));
    const { modified_ms } = await gcs.store.head(key);
    await new Promise((resolve) => setTimeout(resolve, 5));
    await gcs.store.setMetadata(key, version, { a: '1' });
    assert.equal((await gcs.store.head(key)).modified_ms, modified_ms);
  });

  test('what is no version of this provider is `changed`', async () => {
    const key = `${gcs.fresh()}v`;
    await gcs.store.put(key, bytes('content'));
    for (const version of ['', '1', '"etag"', '1.1.1', '1.-1']) assert.equal(await codeOf(gcs.store.remove(key, { version })), 'changed');
  });
});

test('what is attached to an object in a way that nothing can be is refused, so that no change loses it', async () => {
  const key = `${gcs.fresh()}odd`;
  await gcs.store.put(key, bytes('content'));
  const stored = gcs.server.bucket('b').objects.get(key)!;
  const attach = (odd: object): void => void gcs.server.bucket('b').objects.set(key, { ...stored, fields: { ...stored.fields, ...odd } as unknown as typeof stored.fields });
  for (const odd of [{ kmsKeyName: 5 }, { contexts: 'x' }, { contexts: { custom: { b: { value: 7 } } } }, { temporaryHold: 'yes' }]) {
    attach(odd);
    assert.equal(await codeOf(gcs.store.head(key)), 'unexpected', JSON.stringify(odd));
    assert.equal(await codeOf(gcs.store.list({ prefix: key })), 'unexpected', JSON.stringify(odd));
  }
  for (const empty of [{ contexts: { custom: null } }, { contexts: { custom: { a: null } } }]) {
    attach(empty);
    assert.equal((await gcs.store.head(key)).size, 7, JSON.stringify(empty));
  }
  gcs.server.bucket('b').objects.set(key, stored);
});

describe('copies', () => {
  test('a copy with metadata of its own keeps what else is said of the source', async () => {
    const key = gcs.fresh();
    await gcs.store.put(`${key}a`, bytes('abc'), { headers: { 'content-type': 'text/x-a' } });
    await gcs.patch(`${key}a`, { cacheControl: 'no-store', contentDisposition: 'inline', contentLanguage: 'de' });
    await gcs.store.copy(`${key}a`, `${key}b`, { metadata: { two: '2' } });
    const { fields } = gcs.server.bucket('b').objects.get(`${key}b`)!;
    assert.deepEqual([fields.cacheControl, fields.contentDisposition, fields.contentLanguage, fields.metadata], ['no-store', 'inline', 'de', { two: '2' }]);
  });

  test('a source whose metadata changes while it is copied is not copied', async () => {
    const key = gcs.fresh();
    await gcs.store.put(`${key}a`, bytes('abc'));
    gcs.server.faults.inject({ operation: 'objects.rewrite', harm: { kind: 'delay', ms: 100 } });
    const copied = codeOf(gcs.store.copy(`${key}a`, `${key}b`, { metadata: { two: '2' } }));
    while (!gcs.operations().includes('objects.rewrite')) await new Promise((resolve) => setTimeout(resolve, 5));
    await gcs.patch(`${key}a`, { metadata: { mine: '1' } });
    assert.equal(await copied, 'changed');
  });
});

describe('names', () => {
  test('the reserved prefix is in no listing, and nobody writes below it', async () => {
    const own = gcs.open({ temporaryPrefix: 'hidden/' });
    const key = gcs.fresh();
    const upload = await own.beginUpload(`${key}u`);
    await own.putPart(upload, 1, bytes('x'));
    await own.put(`${key}seen`, bytes('x'));
    const flat = await own.list({ prefix: '' });
    assert.ok(flat.objects.some((o) => o.key === `${key}seen`) && !flat.objects.some((o) => o.key.startsWith('hidden/')));
    assert.ok(!(await own.list({ prefix: '', delimiter: '/' })).prefixes.includes('hidden/'));
    assert.deepEqual((await own.list({ prefix: 'hidden/parts/' })).objects, []);
    for (const call of [own.put('hidden/x', bytes('x')), own.copy(`${key}seen`, 'hidden/x'), own.beginUpload('hidden/x')].map(codeOf)) assert.equal(await call, 'denied');
    await own.abortUpload(upload);
    await own.close();
  });

  test('names that no object has are invalid, and nothing is asked', async () => {
    for (const key of ['', '.', '..', 'half \ud83c']) {
      for (const call of [gcs.store.head(key), gcs.store.put(key, bytes('x')), gcs.store.remove(key), gcs.store.beginUpload(key)].map(codeOf)) assert.equal(await call, 'invalid');
    }
    assert.equal(gcs.server.seen.length, 0);
  });
});

describe('uploads in parts', () => {
  test('more than 32 parts, and more than 32 times 32, are composed in steps; nothing is left over', async () => {
    for (const [count, composes] of [[33, 2], [1025, 34]]) {
      gcs.server.seen.length = 0;
      const own = gcs.open();
      const key = `${gcs.fresh()}many`;
      const upload = await own.beginUpload(key, { metadata: { made: 'of many' } });
      const parts = await Promise.all(Array.from({ length: count }, (_, i) => own.putPart(upload, i + 1, bytes(`<${i}>`))));
      const version = await own.completeUpload(upload, parts, { condition: { absent: true } });
      const info = await own.head(key);
      assert.deepEqual([info.version, { ...info.metadata }], [version, { made: 'of many' }]);
      assert.equal(Buffer.from(await contentOf(own, key)).toString(), Array.from({ length: count }, (_, i) => `<${i}>`).join(''));
      assert.equal(gcs.operations().filter((one) => one === 'objects.compose').length, composes);
      await own.close();
      assert.deepEqual(gcs.temporaries(), []);
    }
  });

  test('whole objects become parts without being copied, pinned to their version', async () => {
    const key = `${gcs.fresh()}log`;
    const version = await gcs.store.put(key, bytes('first '));
    const upload = await gcs.store.beginUpload(key);
    const parts = [await gcs.store.copyPart(upload, 1, { key, version, offset: 0, bytes: 6 }), await gcs.store.putPart(upload, 2, bytes('second'))];
    assert.ok(!gcs.operations().includes('objects.rewrite'));
    await gcs.store.completeUpload(upload, parts, { condition: { version } });
    assert.equal(Buffer.from(await contentOf(gcs.store, key)).toString(), 'first second');
    const again = await gcs.store.beginUpload(`${key}2`);
    const { version: now } = await gcs.store.head(key);
    const part = await gcs.store.copyPart(again, 1, { key, version: now, offset: 0, bytes: 12 });
    await gcs.store.put(key, bytes('replaced'));
    assert.equal(await codeOf(gcs.store.completeUpload(again, [part])), 'changed');
    assert.equal(await codeOf(gcs.store.copyPart(again, 1, { key, version: now, offset: 0, bytes: 12 })), 'changed');
    await gcs.store.abortUpload(again);
  });

  test('an upload is completed, listed and aborted by a process that did not begin it', async () => {
    const prefix = gcs.fresh();
    const upload = await gcs.store.beginUpload(`${prefix}ü/key`, { metadata: { k: 'v' }, headers: { 'content-type': 'text/x-u' }, condition: { absent: true } });
    const part = await gcs.store.putPart(upload, 1, bytes('content'));
    const other = gcs.open();
    assert.deepEqual((await other.listUploads({ prefix })).uploads.map(({ key, id }) => ({ key, id })), [upload]);
    await other.completeUpload(upload, [part]);
    const info = await other.head(`${prefix}ü/key`);
    assert.deepEqual([{ ...info.metadata }, info.headers!['content-type']], [{ k: 'v' }, 'text/x-u']);
    await other.close();
    assert.deepEqual((await gcs.store.listUploads({ prefix })).uploads, []);
    const second = await gcs.store.beginUpload(`${prefix}ü/key`, { condition: { absent: true } });
    const lost = await gcs.store.putPart(second, 1, bytes('x'));
    assert.equal(await codeOf(gcs.open().completeUpload(second, [lost])), 'changed');
    await gcs.open().abortUpload(second);
    assert.deepEqual(gcs.temporaries(), []);
  });

  test('a lost answer to the last compose is settled by the commit id, and abort cleans up after it', async () => {
    const key = `${gcs.fresh()}k`;
    const upload = await gcs.store.beginUpload(key, { metadata: { 'bucketfsd-commit': 'c1' } });
    const part = await gcs.store.putPart(upload, 1, bytes('x'));
    gcs.server.faults.inject({ operation: 'objects.compose', harm: { kind: 'drop-after' } });
    const { version } = await settledComplete(gcs.store, upload, [part], { commit: 'c1', condition: { absent: true } }, { attempts: 3, pause_ms: 1 });
    assert.equal((await gcs.store.head(key)).version, version);
    await gcs.store.abortUpload(upload);
    assert.deepEqual(gcs.temporaries(), []);
  });

  test('parts that could not be deleted at once are deleted by another round; the commit does not wait', async () => {
    const own = gcs.open();
    const upload = await own.beginUpload(`${gcs.fresh()}k`);
    const part = await own.putPart(upload, 1, bytes('x'));
    gcs.server.faults.inject({ operation: 'objects.delete', harm: { kind: 'status', status: 503 } });
    await own.completeUpload(upload, [part]);
    assert.equal(gcs.temporaries().length, 2);
    await own.close();
    assert.deepEqual([gcs.temporaries(), gcs.server.faults.pending], [[], 0]);
  });

  test('what was said at the beginning is checked before it is believed', async () => {
    const upload = await gcs.store.beginUpload(`${gcs.fresh()}k`, { metadata: { mode: '33188' } });
    const part = await gcs.store.putPart(upload, 1, bytes('x'));
    gcs.server.faults.inject({ operation: 'objects.media', harm: { kind: 'corrupt' } });
    assert.equal(await codeOf(gcs.store.completeUpload(upload, [part])), 'checksum');
    await gcs.store.abortUpload(upload);
  });

  test('parts in the wrong order, none, or of somebody else are refused', async () => {
    const upload = await gcs.store.beginUpload(`${gcs.fresh()}o`);
    const [one, two] = [await gcs.store.putPart(upload, 1, bytes('1')), await gcs.store.putPart(upload, 2, bytes('2'))];
    for (const parts of [[two, one], [one, one], [], [{ ...one, tag: 'etag' }]]) assert.equal(await codeOf(gcs.store.completeUpload(upload, parts)), 'invalid');
    assert.equal(await codeOf(gcs.store.completeUpload({ ...upload, key: 'other' }, [one])), 'not-found');
    for (const number of [0, 1.5, 10_001]) assert.equal(await codeOf(gcs.store.putPart(upload, number, bytes('x'))), 'invalid');
    assert.equal(await codeOf(gcs.store.abortUpload({ key: 'k', id: '../../other' })), 'not-found');
    await gcs.store.abortUpload(upload);
    assert.deepEqual(gcs.temporaries(), []);
  });
});
