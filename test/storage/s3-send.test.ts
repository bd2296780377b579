/** Connections of the S3 store's own requests (src/storage/object/stores/s3-send.ts): given up, refused, broken off, slow, over TLS. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { Recorder } from '../support/s3/recorder.js';
import { S3Server } from '../support/s3/server.js';
import { pattern } from './contract.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const CREDENTIALS = { accessKeyId: 'AKID', secretAccessKey: 'secret' };
const CONTENT = Buffer.from(pattern(1 << 20));
const recorder = new Recorder();
let endpoint: string;
let store: S3Store;
let directory: string;
let fd: number;
before(async () => {
  endpoint = await recorder.start();
  store = new S3Store({ bucket: 'b', endpoint, region: 'us-east-1', pathStyle: true, credentials: CREDENTIALS });
  directory = mkdtempSync(join(tmpdir(), 'bucketfsd-send-'));
  writeFileSync(join(directory, 'content'), CONTENT);
  fd = openSync(join(directory, 'content'), 'r');
});
after(async () => {
  closeSync(fd);
  rmSync(directory, { recursive: true });
  await store.close();
  await recorder.stop();
});
afterEach(() => (recorder.answer = null));

test('nothing is written into the memory of a read that was given up', async () => {
  const given = new AbortController();
  const began = new Promise<ServerResponse>((resolve) => {
    recorder.answer = (_request, response) => {
      response.writeHead(206, { 'content-range': 'bytes 0-99/100', 'content-length': '100' });
      response.write('x'.repeat(50), () => resolve(response));
    };
  });
  const into = new Uint8Array(100);
  const reading = store.read('k', { offset: 0, into, signal: given.signal });
  const response = await began;
  while (into[49] === 0) await new Promise((resolve) => setImmediate(resolve));
  const closed = once(response, 'close');
  response.write('y'.repeat(50));
  given.abort();
  await assert.rejects(reading, { code: 'aborted' });
  into.fill(1);
  await closed;
  assert.ok(into.every((byte) => byte === 1));
});

test('a call that is given up while credentials are looked for is not made', async () => {
  const given = new AbortController();
  const slow = new S3Store({ bucket: 'b', endpoint, region: 'us-east-1', pathStyle: true, credentials: CREDENTIALS });
  recorder.seen.length = 0;
  const removing = slow.remove('k', { signal: given.signal });
  given.abort();
  await assert.rejects(removing, { code: 'aborted' });
  await slow.head('k');
  assert.deepEqual(recorder.seen.map(({ request }) => request), ['HEAD /b/k']);
  await slow.close();
});

test('over TLS, by the certificates that were named, and by no others', async (t) => {
  const [key, cert] = [join(directory, 'tls.key'), join(directory, 'tls.crt')];
  try {
    execFileSync('openssl', [
      'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:prime256v1', '-nodes', '-days', '2', '-subj', '/CN=localhost', '-addext', 'subjectAltName=IP:127.0.0.1',
      '-keyout', key, '-out', cert,
    ], { stdio: 'ignore' });
  } catch (error) {
    return t.skip(`openssl makes no certificate here: ${String(error)}`);
  }
  const ca = readFileSync(cert, 'utf8');
  const server = await S3Server.start({ tls: { key: readFileSync(key, 'utf8'), cert: ca } });
  const options = { bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: CREDENTIALS };
  const [trusting, doubting] = [new S3Store({ ...options, ca }), new S3Store(options)];
  try {
    await trusting.put('k', { fd, offset: 0, bytes: CONTENT.length });
    const into = new Uint8Array(CONTENT.length);
    assert.equal(await trusting.read('k', { offset: 0, into }), CONTENT.length);
    assert.ok(CONTENT.equals(into));
    await assert.rejects(doubting.head('k'), { code: 'unreachable' });
  } finally {
    await Promise.all([trusting.close(), doubting.close()]);
    await server.stop();
  }
});

test('an upload that is refused before all of it was sent is what the refusal says, and the next one has another connection', async () => {
  let closed: Promise<number> | null = null;
  recorder.answer = (request, response) => {
    closed = new Promise((resolve) => request.socket.once('close', () => resolve(request.socket.bytesRead)));
    response.writeHead(412).end('<Error><Code>PreconditionFailed</Code></Error>');
  };
  const big = { fd: openSync(join(directory, 'big'), 'w+'), offset: 0, bytes: 64 << 20 };
  ftruncateSync(big.fd, big.bytes);
  await assert.rejects(store.put('k', big, { condition: { absent: true } }), { code: 'changed' });
  assert.ok((await closed!) < big.bytes, 'the rest is not sent');
  closeSync(big.fd);
  recorder.answer = null;
  assert.equal(await store.put('k', { fd, offset: 0, bytes: 1 << 20 }), 'tag-1');
  assert.ok(recorder.seen.at(-1)!.body.equals(CONTENT));
});

test('a file is sent as it is to whoever takes it slowly', async () => {
  const content = Buffer.concat(Array.from({ length: 24 }, (_, i) => pattern(1 << 20, i + 1)));
  const [path, digest] = [join(directory, 'slow'), createHash('sha256')];
  writeFileSync(path, content);
  const slow = openSync(path, 'r');
  recorder.answer = (request, response) => {
    // All that fits into the buffers of sockets is there before the first byte is read
    setTimeout(() => request.on('data', (chunk: Buffer) => digest.update(chunk)).on('end', () => response.writeHead(200, { etag: '"slow"' }).end()), 200);
  };
  assert.equal(await store.put('k', { fd: slow, offset: 0, bytes: content.length }), 'slow');
  closeSync(slow);
  assert.equal(digest.digest('hex'), createHash('sha256').update(content).digest('hex'));
});

test('an answer that begins and breaks off is interrupted, and a change in doubt', async () => {
  recorder.answer = (request, response) => {
    response.writeHead(200, { 'content-length': '100' });
    response.write('x', () => request.socket.destroy());
  };
  const error = await store.put('k', CONTENT.subarray(0, 10)).then(() => assert.fail(), (reason: unknown) => reason as StorageError);
  assert.deepEqual([error.code, error.detail.ambiguous], ['interrupted', true]);
});
