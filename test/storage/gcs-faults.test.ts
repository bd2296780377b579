/** The Google Cloud Storage store when things break: sessions that go on, answers that are lost, bytes that are others. */
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { closeSync, fstatSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { gzipSync } from 'node:zlib';
import { bodyStream } from '../../src/storage/object/body.js';
import type { StorageError } from '../../src/storage/object/errors.js';
import { settledPut, settledRemove } from '../../src/storage/object/settle.js';
import type { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { GcsServer } from '../support/gcs/server.js';
import { codeOf, failure, gcsSubject } from '../support/gcs/subject.js';
import { contentOf, pattern } from './contract.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const QUANTUM = 256 * 1024;
const gcs = gcsSubject();

describe('resumable sessions', () => {
  let scratch: string;
  let fd: number;
  let own: GcsStore;
  const content = pattern(4 * QUANTUM + 1000, 3);
  const body = { get fd(): number { return fd; }, offset: 100, bytes: content.length - 100 };
  before(() => {
    scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-gcs-'));
    writeFileSync(join(scratch, 'body'), content);
    fd = openSync(join(scratch, 'body'), 'r');
    own = gcs.open({ resumableFromBytes: QUANTUM });
  });
  after(async () => {
    closeSync(fd);
    rmSync(scratch, { recursive: true, force: true });
    await own.close();
  });
  const ranges = (): unknown[] => gcs.server.seen.filter(({ operation }) => operation === 'upload.put').map(({ headers }) => headers['content-range']);

  test('a connection that breaks in the middle is followed by the rest', async () => {
    const key = `${gcs.fresh()}r`;
    gcs.server.faults.inject(
      { operation: 'upload.put', harm: { kind: 'drop-body', bytes: 2 * QUANTUM + 7 } }, { operation: 'upload.put', nth: 2, harm: { kind: 'drop-body', bytes: QUANTUM } },
    );
    await own.put(key, body, { condition: { absent: true } });
    assert.ok(Buffer.from(await contentOf(own, key)).equals(content.subarray(100)));
    const last = body.bytes - 1;
    assert.deepEqual(ranges(), [`bytes 0-${last}/${body.bytes}`, `bytes ${2 * QUANTUM}-${last}/${body.bytes}`, `bytes ${3 * QUANTUM}-${last}/${body.bytes}`]);
  });

  test('a lost answer to the last byte is asked for: the version is known', async () => {
    const key = `${gcs.fresh()}r`;
    gcs.server.faults.inject({ operation: 'upload.put', harm: { kind: 'drop-after' } });
    const version = await own.put(key, body, { condition: { absent: true } });
    assert.equal((await own.head(key)).version, version);
    assert.deepEqual(gcs.operations().slice(0, 3), ['upload.start', 'upload.put', 'upload.status']);
  });

  test('a session that gets nowhere is cancelled, and what became of it is in doubt', async () => {
    const key = `${gcs.fresh()}r`;
    gcs.server.faults.inject({ operation: 'upload.put', harm: { kind: 'drop-body', bytes: 10 } });
    const error = await failure(own.put(key, body));
    assert.deepEqual([error.code, error.detail.ambiguous], ['interrupted', true]);
    while (!gcs.operations().includes('upload.cancel')) await new Promise((resolve) => setTimeout(resolve, 5));
    assert.deepEqual(gcs.operations(), ['upload.start', 'upload.put', 'upload.status', 'upload.cancel']);
    assert.equal(gcs.server.sessions.open, 0);
    assert.equal(await codeOf(own.head(key)), 'not-found');
  });

  test('when nobody can say what became of it, it is ambiguous, and settled by the commit id', async () => {
    const lost = [{ operation: 'upload.put', harm: { kind: 'drop-after' } }, { operation: 'upload.status', harm: { kind: 'drop' } }] as const;
    const key = `${gcs.fresh()}r`;
    gcs.server.faults.inject(...lost);
    const error = await failure(own.put(`${key}1`, body, { condition: { absent: true } }));
    assert.deepEqual([error.code, error.detail.ambiguous, (await own.head(`${key}1`)).size], ['interrupted', true, body.bytes]);
    gcs.server.faults.inject(...lost);
    const { version } = await settledPut(own, `${key}2`, body, { commit: 'c', condition: { absent: true } }, { attempts: 3, pause_ms: 1 });
    assert.equal((await own.head(`${key}2`)).version, version);
  });

  test('a lost condition is `changed`, whenever the provider says so', async () => {
    const key = `${gcs.fresh()}r`;
    await own.put(key, bytes('there'));
    assert.equal(await codeOf(own.put(key, body, { condition: { absent: true } })), 'changed');
    assert.equal((await own.head(key)).size, 5);
  });

  test('a caller who gives up cancels the session', async () => {
    const giveUp = new AbortController();
    const opened = gcs.server.sessions.open;
    gcs.server.faults.inject({ operation: 'upload.put', harm: { kind: 'delay', ms: 60_000 } });
    const put = codeOf(own.put(`${gcs.fresh()}r`, body, { signal: giveUp.signal }));
    while (!gcs.operations().includes('upload.put')) await new Promise((resolve) => setTimeout(resolve, 5));
    giveUp.abort();
    assert.equal(await put, 'aborted');
    while (gcs.server.sessions.open > opened) await new Promise((resolve) => setTimeout(resolve, 5));
  });

  test('a stream of the body that is given up leaves the descriptor open', async () => {
    const stream = bodyStream(body, 'test');
    for await (const chunk of stream as AsyncIterable<Buffer>) {
      assert.ok(chunk.length > 0);
      break;
    }
    assert.ok(stream.destroyed);
    assert.equal(fstatSync(fd).size, content.length);
  });

  test('a range of a file is sent as it is, whatever its length, in one request or by a session', async () => {
    const key = `${gcs.fresh()}ü/日本`;
    for (const resumableFromBytes of [1, 1 << 30]) {
      const store = gcs.open({ resumableFromBytes });
      for (const length of [0, 1, QUANTUM, QUANTUM + 1, 2 * QUANTUM, 3 * QUANTUM - 1]) {
        await store.put(key, { fd, offset: 100, bytes: length }, { metadata: { name: 'ü日本' } });
        assert.ok(Buffer.from(await contentOf(store, key)).equals(content.subarray(100, 100 + length)));
        assert.deepEqual({ ...(await store.head(key)).metadata }, { name: 'ü日本' });
      }
      await store.close();
    }
  });

  test('a file that is cut off is `short-body`, and nothing is stored', async () => {
    const key = `${gcs.fresh()}r`;
    assert.equal(await codeOf(own.put(key, { fd, offset: 0, bytes: content.length + 1 })), 'short-body');
    assert.equal(await codeOf(own.head(key)), 'not-found');
  });
});

describe('what breaks', () => {
  test('a put whose answer is lost is ambiguous, done or not; the commit id settles it', async () => {
    const key = `${gcs.fresh()}p`;
    for (const kind of ['drop', 'drop-after'] as const) {
      gcs.server.faults.inject({ operation: 'objects.insert', harm: { kind } });
      const error = await failure(gcs.store.put(`${key}-${kind}`, bytes('x'), { condition: { absent: true } }));
      assert.deepEqual([error.code, error.detail.ambiguous], ['interrupted', true]);
      gcs.server.faults.inject({ operation: 'objects.insert', harm: { kind } });
      const { version } = await settledPut(gcs.store, key + kind, bytes('x'), { commit: 'c', condition: { absent: true } }, { attempts: 3, pause_ms: 1 });
      assert.equal((await gcs.store.head(key + kind)).version, version);
      gcs.server.faults.inject({ operation: 'objects.delete', harm: { kind } });
      await settledRemove(gcs.store, key + kind, version, {}, { attempts: 3, pause_ms: 1 });
      assert.equal(await codeOf(gcs.store.head(key + kind)), 'not-found');
    }
  });

  test('bytes that were changed on their way there are not stored', async () => {
    for (const own of [gcs.store, gcs.open({ resumableFromBytes: 1 })]) {
      const key = `${gcs.fresh()}c`;
      gcs.server.faults.inject({ operation: 'objects.insert', harm: { kind: 'corrupt-body' } }, { operation: 'upload.put', harm: { kind: 'corrupt-body' } });
      assert.equal(await codeOf(own.put(key, pattern(100_000))), 'checksum');
      assert.equal(await codeOf(own.head(key)), 'not-found');
      gcs.server.faults.heal();
    }
  });

  test('bytes that were changed on their way here are noticed, when the whole object came', async () => {
    const key = `${gcs.fresh()}c`;
    await gcs.store.put(key, pattern(100_000));
    gcs.server.faults.inject({ operation: 'objects.media', harm: { kind: 'corrupt' } });
    assert.equal(await codeOf(gcs.store.read(key, { offset: 0, into: new Uint8Array(100_000) })), 'checksum');
    assert.equal(await gcs.store.read(key, { offset: 0, into: new Uint8Array(100_000) }), 100_000);
  });

  test('an answer that ends early is `interrupted`, one that is shorter than announced `short-body`', async () => {
    const key = `${gcs.fresh()}s`;
    await gcs.store.put(key, pattern(100_000));
    const read = (): Promise<number> => gcs.store.read(key, { offset: 10, into: new Uint8Array(50_000) });
    gcs.server.faults.inject({ operation: 'objects.media', harm: { kind: 'truncate', bytes: 1000 } });
    const cut = await failure(read());
    assert.deepEqual([cut.code, cut.detail.ambiguous], ['interrupted', undefined]);
    gcs.server.faults.inject({ operation: 'objects.media', harm: { kind: 'shorten', bytes: 1000 } });
    assert.equal(await codeOf(read()), 'short-body');
    assert.equal(await read(), 50_000);
  });

  test('content that is not what was asked for is refused before it is taken', async () => {
    let answer: readonly [status: number, headers: Record<string, string>];
    const odd = createServer((_request, response) => response.writeHead(...answer).end('x'.repeat(Number(answer[1]['content-length'] ?? 0))));
    await once(odd.listen(0, '127.0.0.1'), 'listening');
    const own = gcs.open({ endpoint: `http://127.0.0.1:${(odd.address() as AddressInfo).port}` });
    const into = new Uint8Array(10);
    const read = (): Promise<number> => own.read('k', { offset: 5, into, version: '7.1' });
    const length = { 'content-length': '10' };
    try {
      for (const [status, headers, expected] of [
        [206, { ...length, 'content-range': 'bytes 4-13/100' }, 'unexpected'],
        [206, { ...length, 'content-range': 'bytes 5-13/100' }, 'unexpected'],
        [206, { ...length, 'content-range': 'bytes 5-14/14' }, 'unexpected'],
        [206, length, 'unexpected'],
        [200, length, 'unexpected'],
        [206, { ...length, 'content-range': 'bytes 5-14/100', 'x-goog-generation': '8' }, 'changed'],
        [206, { 'content-range': 'bytes 5-14/100', 'content-length': '9' }, 'short-body'],
        [416, { 'content-range': 'bytes */100' }, 'unexpected'],
      ] as const) {
        answer = [status, headers];
        assert.equal(await codeOf(read()), expected, JSON.stringify(headers));
        assert.ok(expected === 'short-body' || into.every((byte) => byte === 0));
        into.fill(0);
      }
      answer = [416, { 'content-range': 'bytes */5' }];
      assert.equal(await read(), 0);
      answer = [206, { ...length, 'content-range': 'bytes 5-14/100', 'x-goog-generation': '7' }];
      assert.equal(await read(), 10);
      assert.equal(Buffer.from(into).toString(), 'x'.repeat(10));
    } finally {
      await own.close();
      odd.close();
      odd.closeAllConnections();
    }
  });

  test('what is stored packed is read packed: sizes are those of the listing', async () => {
    const key = `${gcs.fresh()}z`;
    const packed = gzipSync(pattern(10_000));
    await gcs.store.put(key, packed);
    await gcs.patch(key, { contentEncoding: 'gzip' });
    assert.ok(Buffer.from(await contentOf(gcs.store, key)).equals(packed));
  });

  test('busy, ill and forbidding providers are told apart', async () => {
    const status = async (code: number, headers: Record<string, string> = {}): Promise<StorageError> => {
      gcs.server.faults.inject({ operation: 'objects.insert', harm: { kind: 'status', status: code, headers } });
      return failure(gcs.store.put(`${gcs.fresh()}f`, bytes('x')));
    };
    const busy = await status(429, { 'retry-after': '2' });
    assert.deepEqual([busy.code, busy.detail.retryAfter_ms, busy.detail.ambiguous, busy.detail.providerCode], ['throttled', 2000, undefined, 'rateLimitExceeded']);
    const ill = await status(503);
    assert.deepEqual([ill.code, ill.detail.ambiguous], ['unavailable', true]);
    assert.match(String(ill.detail.requestId), /^upload-server-\d+$/);
    gcs.server.denied.add('objects.insert');
    assert.equal(await codeOf(gcs.store.put(`${gcs.fresh()}f`, bytes('x'))), 'denied');
    gcs.server.denied.clear();
    assert.equal(await codeOf(gcs.open({ bucket: 'other' }).check()), 'no-bucket');
    assert.equal(await codeOf(gcs.open({ bucket: 'other' }).put('k', bytes('x'))), 'no-bucket');
    assert.equal(await codeOf(gcs.open({ bucket: 'other' }).head('k')), 'no-bucket');
  });

  test('a port where nobody listens is unreachable, and nothing is in doubt', async () => {
    const gone = await GcsServer.start();
    const own = gcs.open({ endpoint: gone.url });
    await gone.close();
    for (const call of [() => own.check(), () => own.put('k', bytes('x')), () => own.remove('k')]) {
      const error = await failure(call());
      assert.deepEqual([error.code, error.detail.ambiguous, error.detail.providerCode], ['unreachable', undefined, 'ECONNREFUSED']);
    }
  });

  test('a caller who gives up is not kept waiting', async () => {
    const key = `${gcs.fresh()}a`;
    await gcs.store.put(key, pattern(1000));
    gcs.server.faults.inject({ operation: 'objects.media', harm: { kind: 'delay', ms: 60_000 } });
    const giveUp = new AbortController();
    const read = codeOf(gcs.store.read(key, { offset: 0, into: new Uint8Array(10), signal: giveUp.signal }));
    while (!gcs.operations().includes('objects.media')) await new Promise((resolve) => setTimeout(resolve, 5));
    giveUp.abort();
    assert.equal(await read, 'aborted');
  });

  test('a project that pays is named in every request', async () => {
    gcs.server.createBucket('paid', { requesterPays: true });
    assert.equal(await codeOf(gcs.open({ bucket: 'paid' }).check()), 'invalid');
    const own = gcs.open({ bucket: 'paid', userProject: 'p', resumableFromBytes: 10 });
    const key = gcs.fresh();
    for (const content of ['small', 'big enough for a session']) await own.put(key, bytes(content));
    await own.copy(key, `${key}2`);
    const upload = await own.beginUpload(key);
    await own.completeUpload(upload, [await own.putPart(upload, 1, bytes('part'))]);
    await own.close();
    assert.equal((await own.list({ prefix: key })).objects.length, 2);
  });

  test('storage class and key are said wherever something is made', async () => {
    const own = gcs.open({ storageClass: 'NEARLINE', kmsKeyName: 'projects/p/key' });
    const key = gcs.fresh();
    const classOf = (name: string): unknown => gcs.server.bucket('b').objects.get(name)?.fields.storageClass;
    await own.put(`${key}a`, bytes('x'), { metadata: { k: 'v' } });
    await own.copy(`${key}a`, `${key}b`);
    const upload = await own.beginUpload(`${key}c`);
    await own.completeUpload(upload, [await own.putPart(upload, 1, bytes('part'))]);
    assert.deepEqual(['a', 'b', 'c'].map((name) => classOf(key + name)), ['NEARLINE', 'NEARLINE', 'NEARLINE']);
    assert.deepEqual({ ...(await own.head(`${key}b`)).metadata }, { k: 'v' });
    const keys = gcs.server.seen.filter(({ operation }) => ['objects.insert', 'objects.rewrite', 'objects.compose'].includes(operation))
      .map(({ query }) => query.get('kmsKeyName') ?? query.get('destinationKmsKeyName'));
    assert.ok(keys.length >= 5 && keys.every((one) => one === 'projects/p/key'));
    await own.close();
  });
});
