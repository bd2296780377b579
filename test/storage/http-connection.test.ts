/**
 * Connections to providers (src/storage/object/stores/http-*.ts), some of it by the S3 store on them: given up, refused, broken off, slow,
 * idle, over TLS, and answers of every form.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, ftruncateSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import type { ServerResponse } from 'node:http';
import { createServer, type AddressInfo, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import type { Received, Sending } from '../../src/storage/object/stores/http-connection.js';
import { Connections } from '../../src/storage/object/stores/http-connections.js';
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

/** A server that answers with these bytes, whatever it is asked. */
class Raw {
  connections = 0;
  requests = 0;
  readonly #sockets = new Set<Socket>();
  readonly #server = createServer((socket) => {
    this.connections++;
    this.#sockets.add(socket);
    socket.setNoDelay(true).on('error', () => undefined).on('data', (data) => {
      if (!data.includes('\r\n\r\n')) return;
      this.requests++;
      void this.answer(socket, this.requests);
    });
  });

  constructor(public answer: (socket: Socket, request: number) => unknown) {}

  async start(): Promise<URL> {
    this.#server.listen(0, '127.0.0.1');
    await once(this.#server, 'listening');
    return new URL(`http://127.0.0.1:${this.port}`);
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  closeConnections(): Promise<unknown> {
    const closed = [...this.#sockets].map((socket) => (socket.closed ? null : once(socket, 'close')));
    for (const socket of this.#sockets) socket.destroy();
    return Promise.all(closed);
  }

  async stop(): Promise<void> {
    await this.closeConnections();
    this.#server.close();
  }
}

/** Written so that each piece comes by itself. */
async function inPieces(socket: Socket, text: string, pieceBytes: number): Promise<void> {
  for (let at = 0; at < text.length; at += pieceBytes) {
    socket.write(text.slice(at, at + pieceBytes), 'latin1');
    await new Promise((resolve) => setImmediate(resolve));
  }
}

async function asked(answer: Raw['answer'], more: { method?: string; into?: Uint8Array } = {}, times = 1): Promise<{ received: Received[]; raw: Raw }> {
  const raw = new Raw(answer);
  const url = await raw.start();
  const connections = new Connections(undefined);
  try {
    const received: Received[] = [];
    for (let i = 0; i < times; i++) {
      received.push(await connections.send({
        url, method: 'GET', target: '/', headers: [['host', url.host]], content: null, operation: 'test', connect_ms: 5000, signal: AbortSignal.timeout(20_000), ...more,
      }));
    }
    return { received, raw };
  } finally {
    connections.close();
    await raw.stop();
  }
}

const TEXT = 'what the provider has';
const FORMS: Readonly<Record<string, string>> = {
  'with its length': `HTTP/1.1 200 OK\r\nContent-Length: ${TEXT.length}\r\nX-A: 1\r\nx-a:2\r\n\r\n${TEXT}`,
  'in chunks': `HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\nx-a: 1, 2\r\n\r\n4;name=value\r\n${TEXT.slice(0, 4)}\r\n${(TEXT.length - 4).toString(16).toUpperCase()}\r\n${TEXT.slice(4)}\r\n0\r\nx-trailer: 1\r\n\r\n`,
  'until the connection is closed': `HTTP/1.0 200 OK\r\nx-a: 1, 2\r\n\r\n${TEXT}`,
  'after others that say to go on': `HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\nHTTP/1.1 200\r\nx-a: 1, 2\r\ncontent-length: ${TEXT.length}\r\n\r\n${TEXT}`,
};
for (const [form, text] of Object.entries(FORMS)) {
  for (const pieceBytes of [1, 7, 10_000]) {
    for (const placed of [false, true]) {
      test(`an answer ${form}, in pieces of ${pieceBytes} bytes, ${placed ? 'into memory' : 'as a body'}`, async () => {
        const closes = form.startsWith('until');
        const into = new Uint8Array(TEXT.length + 5).fill(46);
        const answer = async (socket: Socket): Promise<void> => {
          await inPieces(socket, text, pieceBytes);
          if (closes) socket.end();
        };
        const { received, raw } = await asked(answer, placed ? { into } : {}, 2);
        for (const { status, headers, body, bytes } of received) {
          assert.deepEqual([status, headers['x-a'], bytes], [200, '1, 2', placed ? TEXT.length : 0]);
          assert.equal(placed ? Buffer.from(into).toString() : body.toString(), placed ? `${TEXT}.....` : TEXT);
        }
        assert.deepEqual([raw.requests, raw.connections], [2, closes ? 2 : 1]);
      });
    }
  }
}

test('large contents go to where they belong, on one connection, and no further', async () => {
  const into = new Uint8Array(CONTENT.length + 1);
  const { received, raw } = await asked((socket, request) => {
    socket.write(`HTTP/1.1 206 Partial Content\r\nContent-Length: ${CONTENT.length}\r\n\r\n`);
    socket.write(request === 1 ? CONTENT : Buffer.from(CONTENT).reverse());
  }, { into }, 2);
  assert.deepEqual(received.map(({ bytes }) => bytes), [CONTENT.length, CONTENT.length]);
  assert.ok(Buffer.from(CONTENT).reverse().equals(into.subarray(0, CONTENT.length)));
  assert.deepEqual([into.at(-1), raw.connections], [0, 1]);
});

test('HEAD and 204 have no content, whatever length they name', async () => {
  const length = 'HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n';
  assert.deepEqual((await asked((socket) => socket.write(length), { method: 'HEAD' }, 2)).received.map(({ body }) => body.length), [0, 0]);
  assert.deepEqual((await asked((socket) => socket.write('HTTP/1.1 204 No Content\r\n\r\n'), {}, 2)).received.map(({ status }) => status), [204, 204]);
});

const WRONG: Readonly<Record<string, readonly [answer: string, expected: object]>> = {
  'something else than HTTP': ['SSH-2.0-x\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'a head without end': [`HTTP/1.1 200 OK\r\n${'x-a: 1\r\n'.repeat(20_000)}`, { code: 'ERR_HTTP_ANSWER' }],
  'a header without a name': ['HTTP/1.1 200 OK\r\n: x\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'a folded header': ['HTTP/1.1 200 OK\r\nx: 1\r\n 2\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'two lengths': ['HTTP/1.1 200 OK\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\nx', { code: 'ERR_HTTP_ANSWER' }],
  'a length that is none': ['HTTP/1.1 200 OK\r\ncontent-length: -1\r\n\r\nx', { code: 'ERR_HTTP_ANSWER' }],
  'a length and chunks': ['HTTP/1.1 200 OK\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'a chunk of no size': ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\nx\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'a chunk that is longer': ['HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nxyz\r\n0\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'another encoding': ['HTTP/1.1 200 OK\r\ntransfer-encoding: gzip\r\n\r\nx', { code: 'ERR_HTTP_ANSWER' }],
  'another protocol': ['HTTP/1.1 101 Switching Protocols\r\n\r\n', { code: 'ERR_HTTP_ANSWER' }],
  'more than it said': ['HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nxy', { code: 'ERR_HTTP_ANSWER' }],
  'a longer content than was asked for': ['HTTP/1.1 206 x\r\ncontent-length: 9\r\n\r\nx', { code: 'short-body' }],
  'a larger chunk than was asked for': ['HTTP/1.1 206 x\r\ntransfer-encoding: chunked\r\n\r\n9\r\nx', { code: 'short-body' }],
  'an end within the content': ['HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nxyz', { code: 'ECONNRESET' }],
  'an end within the head': ['HTTP/1.1 200 OK\r\ncont', { code: 'ECONNRESET' }],
};
for (const [what, [answer, expected]] of Object.entries(WRONG)) {
  test(`an answer that is refused: ${what}`, async () => {
    const into = new Uint8Array(16).fill(46);
    await assert.rejects(asked((socket) => void (what.startsWith('an end') ? socket.end(answer) : socket.write(answer)), { into: into.subarray(0, 8) }), expected);
    assert.equal(Buffer.from(into.subarray(8)).toString(), '........');
  });
}

test('an answer that is no content is not taken beyond what was allowed, and of a refusal not more than some words', async () => {
  await assert.rejects(asked((socket) => socket.write('HTTP/1.1 200 OK\r\ncontent-length: 100000000\r\n\r\nx')), { message: /more than 1048576 bytes/ });
  const { received: [refused] } = await asked((socket) => socket.write('HTTP/1.1 500 No\r\ncontent-length: 100000000\r\n\r\nx'));
  assert.deepEqual([refused.status, refused.body.length], [500, 0]);
});

test('what was closed while it was idle is not used, and what is closed under a request is asked for again, if it changes nothing', async () => {
  const good = 'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx';
  const raw = new Raw((socket) => socket.write(good));
  const url = await raw.start();
  const connections = new Connections(undefined);
  const ask = (method: string): Promise<Received> => connections.send({
    url, method, target: '/', headers: [['host', url.host]], content: null, operation: 'test', connect_ms: 5000, signal: AbortSignal.timeout(20_000),
  });
  try {
    await ask('GET');
    await raw.closeConnections();
    await new Promise((resolve) => setTimeout(resolve, 50)); // until the client has seen it
    await ask('PUT');
    assert.deepEqual([raw.requests, raw.connections], [2, 2]);
    // The third and the fourth request close a connection that was good before
    raw.answer = (socket, request) => (request === 3 || request === 5 ? socket.destroy() : socket.write(good));
    await ask('GET');
    assert.deepEqual([raw.requests, raw.connections], [4, 3]);
    await assert.rejects(ask('DELETE'), { code: 'ECONNRESET' });
    assert.deepEqual([raw.requests, raw.connections], [5, 3]);
  } finally {
    connections.close();
    await raw.stop();
  }
});

test('bytes that nobody has asked for end the connection', async () => {
  const answer = 'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n';
  let socket: Socket;
  const raw = new Raw((one) => (socket = one).write(`${answer}x`));
  const url = await raw.start();
  const connections = new Connections(undefined);
  const ask = (): Promise<Received> => connections.send({ url, method: 'GET', target: '/', headers: [], content: null, operation: 'test', connect_ms: 5000, signal: undefined });
  try {
    await ask();
    const closed = once(socket!, 'close');
    socket!.write(`${answer}z`);
    await closed;
    assert.deepEqual([(await ask()).body.toString(), raw.connections], ['x', 2]);
  } finally {
    connections.close();
    await raw.stop();
  }
});

/** What is asked of this server, and the connections that it is asked over. */
async function withRaw(
  answer: Raw['answer'], idle_ms: number | undefined,
  use: (ask: (more?: Partial<Sending>) => Promise<Received>, raw: Raw, connections: Connections) => Promise<void>,
): Promise<void> {
  const raw = new Raw(answer);
  const url = await raw.start();
  const connections = new Connections(undefined, idle_ms);
  const asking = { url, method: 'GET', target: '/', headers: [['host', url.host]], content: null, operation: 'test', connect_ms: 5000 } as const;
  try {
    await use((more = {}) => connections.send({ ...asking, signal: AbortSignal.timeout(20_000), ...more }), raw, connections);
  } finally {
    connections.close();
    await raw.stop();
  }
}

const closed = (socket: Socket): unknown => (socket.closed ? null : once(socket, 'close', { signal: AbortSignal.timeout(20_000) }));

const GOOD = 'HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nx';

test('what was idle for its time is closed; what is asked something then, or was asked something later, is not', async () => {
  const sockets = new Map<number, Socket>();
  await withRaw((socket, request) => void sockets.set(request, socket), 100, async (ask, raw) => {
    const [first, second] = [ask(), ask()];
    while (raw.requests < 2) await new Promise((resolve) => setImmediate(resolve));
    sockets.get(1)!.write(GOOD);
    await first;
    sockets.get(2)!.write(GOOD);
    await second;
    const third = ask(); // over the connection that was used last
    while (raw.requests < 3) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(sockets.get(3), sockets.get(2));
    await closed(sockets.get(1)!);
    sockets.get(3)!.write(GOOD);
    assert.equal((await third).body.toString(), 'x');
    assert.equal(raw.connections, 2);
    await closed(sockets.get(2)!); // by another timer, after the first
    const fourth = ask({ method: 'PUT' });
    while (raw.requests < 4) await new Promise((resolve) => setImmediate(resolve));
    sockets.get(4)!.write(GOOD);
    await fourth;
    assert.equal(raw.connections, 3);
  });
});

test('closing gives up what is under way, and what follows has connections of its own', async () => {
  await withRaw((socket, request) => request !== 2 && socket.write(GOOD), undefined, async (ask, raw, connections) => {
    await ask();
    const lost = assert.rejects(ask(), { name: 'AbortError' });
    while (raw.requests < 2) await new Promise((resolve) => setImmediate(resolve));
    connections.close();
    const found = ask({ method: 'PUT' });
    await lost;
    assert.deepEqual([(await found).status, raw.requests, raw.connections], [200, 3, 2]);
  });
});

test('a refusal whose words are lost is a refusal still, and its connection is not used again', async () => {
  const refusal = 'HTTP/1.1 412 Precondition Failed\r\ncontent-length: 100\r\nx-a: 1\r\n\r\nwords';
  await withRaw((socket, request) => (request === 1 ? socket.end(refusal) : socket.write(GOOD)), undefined, async (ask, raw) => {
    const { status, headers, body, bytes } = await ask({ into: new Uint8Array(2) });
    assert.deepEqual([status, headers['x-a'], body.toString(), bytes], [412, '1', 'words', 0]);
    await ask();
    assert.equal(raw.connections, 2);
  });
});

test('whoever asks is told when the request may arrive: not before a connection stands', async () => {
  await withRaw((socket, request) => (request === 2 ? socket.destroy() : socket.write(GOOD)), undefined, async (ask, raw) => {
    let sent = 0;
    const telling = { method: 'PUT', onSent: () => void sent++ };
    await ask(telling);
    assert.equal(sent, 1);
    await assert.rejects(ask(telling), { code: 'ECONNRESET' }); // over the first one
    assert.deepEqual([sent, raw.connections], [2, 1]);
    await raw.stop();
    await assert.rejects(ask(telling), { code: 'ECONNREFUSED' });
    assert.equal(sent, 2);
  });
});

test('a server that is silent when TLS is asked of it is given up, and nothing was sent', async () => {
  await withRaw(() => undefined, undefined, async (ask, raw) => {
    const url = new URL(`https://127.0.0.1:${raw.port}`);
    await assert.rejects(ask({ url, connect_ms: 50, onSent: () => assert.fail() }), { name: 'TimeoutError', code: 'ETIMEDOUT' });
  });
});

test('no value becomes another header, nor a part of the path another request', async () => {
  await withRaw((socket) => socket.write(GOOD), undefined, async (ask, raw) => {
    for (const value of ['a\r\nx-b: 1', 'a\nb', '\u010a', '\0']) await assert.rejects(ask({ headers: [['x-a', value]] }), { code: 'invalid' });
    for (const target of ['/a b', '/a\r\n', '/\u010d', '/\u00fc']) await assert.rejects(ask({ target }), { code: 'invalid' });
    await ask({ headers: [['x-a', 'a\tb \u00fc~']], target: '/%0a?b=!' });
    assert.equal(raw.requests, 1);
  });
});

// 80 MiB less a byte of each, of which 64 MiB fit
test('of many long answers at the same time only so much is taken, and the others are asked to come later', async () => {
  const [BYTES, given] = [1 << 20, new AbortController()];
  const long = `HTTP/1.1 200 OK\r\ncontent-length: ${BYTES}\r\n\r\n${'x'.repeat(BYTES - 1)}`;
  const raw = new Raw((socket) => socket.write(long));
  const url = await raw.start();
  const [connections, codes]: [Connections, string[]] = [new Connections(undefined), []];
  const ask = (signal: AbortSignal): Promise<Received> => connections.send({ url, method: 'GET', target: '/', headers: [['host', url.host]], content: null, operation: 'test', connect_ms: 20_000, signal });
  try {
    const asking = Array.from({ length: 80 }, () => ask(given.signal).catch((error: { readonly code?: string; readonly name: string }) => void codes.push(error.code ?? error.name)));
    while (codes.length < 16) await new Promise((resolve) => setImmediate(resolve));
    assert.deepEqual(codes, Array.from({ length: 16 }, () => 'throttled'));
    given.abort();
    raw.answer = (socket) => socket.write(`${long}y`);
    await Promise.all(asking);
    assert.equal((await ask(AbortSignal.timeout(20_000))).body.length, BYTES, 'there is room again');
  } finally {
    connections.close();
    await raw.stop();
  }
});
