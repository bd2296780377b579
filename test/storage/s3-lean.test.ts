/** Requests of our own (src/storage/object/stores/s3-lean.ts) against those of the SDK: the same is asked for, said and understood. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store, type S3Options } from '../../src/storage/object/stores/s3.js';
import type { S3Calls } from '../../src/storage/object/stores/s3-calls.js';
import { agentsOf, endpointOf, sdkClient } from '../../src/storage/object/stores/s3-endpoint.js';
import { LeanCalls } from '../../src/storage/object/stores/s3-lean.js';
import { SdkCalls } from '../../src/storage/object/stores/s3-sdk.js';
import { Recorder, type Seen } from '../support/s3/recorder.js';
import { S3Server, type Harm } from '../support/s3/server.js';
import { pattern } from './contract.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const CREDENTIALS = { accessKeyId: 'AKID', secretAccessKey: 'secret' };
const CONTENT = Buffer.from(pattern(1 << 20));

let directory: string;
let fd: number;
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'bucketfsd-lean-'));
  writeFileSync(join(directory, 'content'), CONTENT);
  fd = openSync(join(directory, 'content'), 'r');
});
after(() => {
  closeSync(fd);
  rmSync(directory, { recursive: true });
});

/** Until it is called, Amazon is at this endpoint; see hasChecksums(). */
function amazonAt(endpoint: string): () => void {
  process.env['AWS_ENDPOINT_URL_S3'] = endpoint;
  return () => delete process.env['AWS_ENDPOINT_URL_S3'];
}

/** What there is besides the content's form: chunks and checksum are taken apart, and what the SDK says of itself is left out. */
function essence({ request, headers, body }: Seen, ofFile: boolean): object {
  const rest = Object.fromEntries(Object.entries(headers).filter(([name]) =>
    !/^(amz-sdk-|(x-amz-)?user-agent$|authorization$|x-amz-date$|connection$|expect$|transfer-encoding$|content-length$|content-encoding$|x-amz-decoded-content-length$|x-amz-trailer$|x-amz-checksum-crc32$)/.test(name)));
  let [content, sum] = [body, headers['x-amz-checksum-crc32']];
  const encodings = String(headers['content-encoding'] ?? '').split(',').filter((one: string) => one !== '');
  if (encodings.at(-1) === 'aws-chunked') {
    encodings.pop();
    assert.equal(headers['x-amz-content-sha256'], 'STREAMING-UNSIGNED-PAYLOAD-TRAILER');
    ({ content, sum } = unchunked(body));
    assert.equal(headers['x-amz-decoded-content-length'], String(content.length));
  }
  assert.ok(headers['content-length'] === undefined || headers['content-length'] === String(body.length));
  if (ofFile) delete rest['x-amz-content-sha256']; // the SDK never signs it, we do where it is small
  if (request.includes('partNumber')) delete rest['content-type']; // of a part it means nothing
  const names = /SignedHeaders=([^,]*)/.exec(String(headers['authorization']))?.[1].split(';') ?? [];
  const unsigned = Object.keys(rest).filter((name) => !names.includes(name));
  return { request, rest, encodings, content: content.toString('base64'), sum, unsigned: headers['authorization'] === undefined ? 'all' : unsigned };
}

function unchunked(body: Buffer): { content: Buffer; sum: string } {
  const pieces: Buffer[] = [];
  for (let at = 0; ; ) {
    const end = body.indexOf('\r\n', at);
    const bytes = Number.parseInt(body.toString('latin1', at, end), 16);
    if (bytes === 0) return { content: Buffer.concat(pieces), sum: /^0\r\nx-amz-checksum-crc32:(\S{8})\r\n\r\n$/.exec(body.toString('latin1', at))![1] };
    pieces.push(body.subarray(end + 2, end + 2 + bytes));
    assert.equal(body.toString('latin1', end + 2 + bytes, end + 4 + bytes), '\r\n');
    at = end + 4 + bytes;
  }
}

const ODD_KEY = "a b/+/ü//./../%~!*'()/日本";
const described = { metadata: { mode: '33188', empty: '' }, headers: { 'content-type': 'text/plain', 'cache-control': 'no-store', 'content-encoding': 'gzip' } };
/** Beside what an option decides of. */
const attached = {
  ...described.headers, 'x-amz-tagging': 'a%20b=1%2F2&c=', 'x-amz-object-lock-mode': 'GOVERNANCE', 'x-amz-object-lock-retain-until-date': '2031-01-01T00:00:05Z',
  'x-amz-object-lock-legal-hold': 'ON', 'x-amz-website-redirect-location': '/there', 'x-amz-server-side-encryption-bucket-key-enabled': 'true', expires: 'Thu, 01 Jan 2026 00:00:05 GMT',
};
const operation = 'op';
const signal = undefined;

const CALLS: readonly (readonly [what: string, ofFile: boolean, call: (calls: S3Calls) => Promise<unknown>])[] = [
  ['HEAD', false, (calls) => calls.head(ODD_KEY, operation, signal)],
  ['GET', false, async (calls) => {
    const into = new Uint8Array(20);
    return [await calls.get(ODD_KEY, { operation, offset: 5, into, version: 'tag-1', signal }), into];
  }],
  ['PUT of bytes', false, (calls) => calls.put(ODD_KEY, CONTENT.subarray(0, 5000), { operation, described, condition: { absent: true }, signal })],
  ['PUT of nothing', false, (calls) => calls.put('k', new Uint8Array(0), { operation, described: { metadata: {}, headers: {} }, condition: { version: 'v' }, signal })],
  ['PUT of a small file', true, (calls) => calls.put('k', { fd, offset: 7, bytes: 100 }, { operation, described, signal })],
  ['PUT of a file', true, (calls) => calls.put('k', { fd, offset: 7, bytes: 700_001 }, { operation, described, signal })],
  ['PUT of a file of whole pieces', true, (calls) => calls.put('k', { fd, offset: 0, bytes: 1 << 20 }, { operation, described, signal })],
  ['PUT of a part', true, (calls) => calls.putPart({ key: ODD_KEY, id: 'id+/=~' }, 7, { fd, offset: 1, bytes: 300_000 }, { operation, signal })],
  ['PUT of a part of bytes', false, (calls) => calls.putPart({ key: 'k', id: 'i' }, 1, CONTENT, { operation, signal })],
  ['DELETE', false, (calls) => calls.remove(ODD_KEY, undefined, operation, signal)],
  ['DELETE of a version', false, (calls) => calls.remove('k', 'v', operation, signal)],
  ['PUT with what is attached', false, (calls) => calls.put('k', CONTENT.subarray(0, 5), { operation, described: { metadata: {}, headers: attached }, signal })],
  ['COPY', false, (calls) => calls.copy(ODD_KEY, 'to', { operation, headers: {}, signal })],
  ['COPY with what is not copied', false, (calls) => calls.copy(ODD_KEY, 'to', { operation, headers: { 'x-amz-website-redirect-location': '/there' }, signal })],
  ['COPY with all there is', false, (calls) =>
    calls.copy('a', ODD_KEY, { operation, metadata: described.metadata, headers: attached, sourceVersion: 's', condition: { version: 'v' }, signal })],
  ['LIST', false, (calls) => calls.list({ prefix: 'p +ü/', delimiter: '/', after: 'p/a', token: 't+/=', limit: 7 }, operation)],
  ['LIST of everything', false, (calls) => calls.list({ prefix: '' }, operation)],
];

describe('the SDK asks for the same', () => {
  const recorder = new Recorder();
  let endpoint: string;
  let restore: (() => void) | null = null;
  before(async () => (endpoint = await recorder.start()));
  after(() => recorder.stop());
  afterEach(() => {
    restore?.();
    restore = null;
  });

  const amazon: S3Options = { bucket: 'b', region: 'eu-west-1', credentials: CREDENTIALS, pathStyle: true };
  const everything = { requesterPays: true, expectedBucketOwner: '111122223333', storageClass: 'STANDARD_IA', serverSideEncryption: 'aws:kms', kmsKeyId: 'key-1' } as const;
  const variants: readonly (readonly [string, () => S3Options])[] = [
    ['of an endpoint', () => ({ ...amazon, endpoint: `${endpoint}/base/` })],
    ['of an endpoint, with all options and a session', () => ({ ...amazon, ...everything, endpoint, credentials: { ...CREDENTIALS, sessionToken: 'token+/=' } })],
    ['of Amazon', () => amazon],
    ['of Amazon, with all options and a session', () => ({ ...amazon, ...everything, credentials: { ...CREDENTIALS, sessionToken: 'token+/=' } })],
    ['of an endpoint, unsigned', () => ({ ...amazon, endpoint, unsigned: true })],
    ['of Amazon, unsigned', () => ({ ...amazon, unsigned: true })],
  ];
  for (const [of, optionsOf] of variants) {
    for (const [what, ofFile, call] of CALLS) {
      test(`${what} ${of}`, async () => {
        const options = optionsOf();
        if (options.endpoint === undefined) restore = amazonAt(endpoint);
        const agents = agentsOf(options);
        const client = sdkClient(options, agents);
        const sdk = new SdkCalls(client, options);
        const lean = new LeanCalls((await endpointOf(client, options.bucket))!, options, agents, client, sdk);
        recorder.seen.length = 0;
        const expected = await call(sdk);
        const found = await call(lean);
        client.destroy();
        assert.deepEqual(found, expected);
        assert.equal(recorder.seen.length, 2);
        assert.deepEqual(essence(recorder.seen[1], ofFile), essence(recorder.seen[0], ofFile));
      });
    }
  }
});

describe('the way to a bucket is the one that the SDK finds', () => {
  const find = async (options: S3Options, env: Record<string, string> = {}): Promise<unknown> => {
    Object.assign(process.env, env);
    const client = sdkClient({ credentials: CREDENTIALS, region: 'eu-west-1', ...options }, agentsOf(options));
    try {
      const found = await endpointOf(client, options.bucket);
      return found === null ? null : [found.url.origin + found.base, found.region];
    } finally {
      client.destroy();
      for (const name of Object.keys(env)) delete process.env[name];
    }
  };
  for (const [options, expected, env] of [
    [{ bucket: 'some-bucket' }, ['https://some-bucket.s3.eu-west-1.amazonaws.com', 'eu-west-1']],
    [{ bucket: 'some-bucket', pathStyle: true }, ['https://s3.eu-west-1.amazonaws.com/some-bucket', 'eu-west-1']],
    [{ bucket: 'dots.in.it' }, ['https://s3.eu-west-1.amazonaws.com/dots.in.it', 'eu-west-1']],
    [{ bucket: 'some-bucket', region: 'cn-north-1' }, ['https://some-bucket.s3.cn-north-1.amazonaws.com.cn', 'cn-north-1']],
    [{ bucket: 'some-bucket', endpoint: 'https://example.com:9000/base/' }, ['https://some-bucket.example.com:9000/base', 'eu-west-1']],
    [{ bucket: 'some-bucket', endpoint: 'http://[::1]:9000', pathStyle: true }, ['http://[::1]:9000/some-bucket', 'eu-west-1']],
    [{ bucket: 'some-bucket' }, ['https://some-bucket.s3.dualstack.eu-west-1.amazonaws.com', 'eu-west-1'], { AWS_USE_DUALSTACK_ENDPOINT: 'true' }],
    [{ bucket: 'some-bucket', region: 'us-east-2' }, ['https://some-bucket.s3-fips.us-east-2.amazonaws.com', 'us-east-2'], { AWS_USE_FIPS_ENDPOINT: 'true' }],
    [{ bucket: 'arn:aws:s3:eu-west-1:123456789012:accesspoint/point' }, ['https://point-123456789012.s3-accesspoint.eu-west-1.amazonaws.com', 'eu-west-1']],
    [{ bucket: 'name--euw1-az1--x-s3' }, null],
    [{ bucket: 'arn:aws:s3::123456789012:accesspoint/mfzwi23gnjvgw.mrap' }, null],
    [{ bucket: 'arn:aws:s3-object-lambda:eu-west-1:123456789012:accesspoint/lambda' }, null],
    [{ bucket: 'arn:aws:s3-outposts:eu-west-1:123456789012:outpost/op-01234567890123456/accesspoint/point' }, null],
  ] as [S3Options, unknown, Record<string, string>?][]) {
    test(`${JSON.stringify(options)} ${JSON.stringify(env ?? {})}`, async () => assert.deepEqual(await find(options, env), expected));
  }
});

describe('what goes wrong', () => {
  let server: S3Server;
  let store: S3Store;
  const optionsOf = (more: Partial<S3Options> = {}): S3Options =>
    ({ bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS, ...more });
  before(async () => (server = await S3Server.start()));
  after(() => server.stop());
  beforeEach(async () => {
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    server.judge = () => null;
    await server.store.put('k', CONTENT.subarray(0, 1000));
    server.requests.length = 0;
    store = new S3Store(optionsOf());
  });
  afterEach(() => store.close());

  test('a bucket in another region is asked for there, and from then on only there', async () => {
    for (const [status, code] of [[301, 'PermanentRedirect'], [307, 'TemporaryRedirect'], [400, 'AuthorizationHeaderMalformed']] as const) {
      await using(new S3Store(optionsOf()), async (elsewhere) => {
        server.requests.length = 0;
        server.judge = ({ region }) => (region === 'eu-north-2' ? null : { status, code, headers: { 'x-amz-bucket-region': 'eu-north-2' } });
        await Promise.all([elsewhere.put('new', CONTENT), elsewhere.head('k')]);
        assert.deepEqual((await server.store.head('new')).size, CONTENT.length);
        const before = server.requests.length;
        assert.ok(before >= 3 && before <= 4, server.requests.join(' '));
        await elsewhere.head('k');
        await elsewhere.beginUpload('upload');
        assert.equal(server.requests.length, before + 2);
      });
    }
  });

  test('a region that does not help is forgotten', async () => {
    const regions = new Set<string>();
    server.judge = ({ operation, region }) => {
      regions.add(`${operation} ${region}`);
      return operation === 'get' ? { status: 400, code: 'InvalidArgument', headers: { 'x-amz-bucket-region': 'nowhere' } } : null;
    };
    await assert.rejects(store.read('k', { offset: 0, into: new Uint8Array(10) }), { code: 'invalid' });
    await store.head('k');
    assert.deepEqual([...regions], ['get us-east-1', 'get nowhere', 'head us-east-1']);
  });

  test('a clock that is wrong is put right by the answer, for all requests that follow, and the one that failed is made again', async () => {
    const there_ms = (): number => Date.now() + 7_200_000;
    server.judge = ({ headers }): Harm | null => {
      const [, y, m, d, h, min, s] = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)(\d\d)Z$/.exec(String(headers['x-amz-date']))!.map(Number);
      const off = Math.abs(Date.UTC(y, m - 1, d, h, min, s) - there_ms()) > 900_000;
      return off ? { status: 403, code: 'RequestTimeTooSkewed', headers: { date: new Date(there_ms()).toUTCString() } } : { headers: (told) => ({ ...told, date: new Date(there_ms()).toUTCString() }) };
    };
    await store.put('late', CONTENT);
    assert.equal(server.count('put'), 2);
    await store.head('late');
    assert.equal(server.count('head'), 1);
    await store.check();
    assert.equal(server.count('list'), 1, 'the SDK has the same time');
    server.judge = () => ({ status: 403, code: 'RequestTimeTooSkewed', headers: { date: new Date(there_ms()).toUTCString() } });
    await assert.rejects(store.head('late'), { code: 'clock-skew' }, 'HEAD has no words, and GET does');
    assert.equal(server.count('get'), 1);
    await assert.rejects(store.read('late', { offset: 0, into: new Uint8Array(1) }), { code: 'clock-skew' });
    assert.equal(server.count('get'), 2);
  });

  test('a refusal has all that it says: code, words, request, region, how long to wait', async () => {
    server.judge = () => ({ status: 503, code: 'SlowDown', message: 'less &amp; later', more: '<Region>eu-1</Region>', headers: { 'retry-after': '7' } });
    const error = await store.list({ prefix: '' }).then(() => assert.fail(), (reason: unknown) => reason as StorageError);
    assert.ok(error instanceof StorageError);
    const { status, providerCode, providerMessage, requestId, region, retryAfter_ms } = error.detail;
    assert.deepEqual([error.code, status, providerCode, providerMessage, requestId, region, retryAfter_ms], ['throttled', 503, 'SlowDown', 'less &amp; later', 'request-1', 'eu-1', 7000]);
  });

  for (const [what, body, code] of [
    ['HTML', '<html><br></html>', 'unexpected'], ['another document', '<Other/>', 'unexpected'], ['nothing', '', 'unexpected'],
    ['half of one', '<ListBucketResult><Contents><Key>a</Key>', 'unexpected'], ['a size that is none', '<ListBucketResult><Contents><Key>a</Key><Size>x</Size></Contents></ListBucketResult>', 'unexpected'],
    ['more to come, without saying where', '<ListBucketResult><IsTruncated>true</IsTruncated></ListBucketResult>', 'unexpected'],
    ['an error, with status 200', '<Error><Code>InternalError</Code></Error>', 'unavailable'],
  ] as const) {
    test(`a listing that is ${what} is ${code}, not empty`, async () => {
      server.judge = () => ({ edit: () => body });
      await assert.rejects(store.list({ prefix: '' }), { code });
    });
  }

  test('a copy whose 200 is an error, or nothing, may have been made', async () => {
    for (const [body, code] of [['<Error><Code>InternalError</Code></Error>', 'unavailable'], ['', 'unavailable'], ['<Copy', 'unexpected']] as const) {
      server.judge = () => ({ edit: () => body });
      const error = await store.copy('k', 'to').then(() => assert.fail(), (reason: unknown) => reason as StorageError);
      assert.deepEqual([error.code, error.detail.ambiguous], [code, true]);
    }
  });

  test('a file that is shorter than its range is not sent as if it were all of it', async () => {
    for (const bytes of [100, 600_000]) await assert.rejects(store.put('short', { fd, offset: CONTENT.length - 50, bytes }), { code: 'short-body' });
    await assert.rejects(server.store.head('short'), { code: 'not-found' });
  });

  test('a checksum that nobody here knows is left to the SDK', async () => {
    const restore = amazonAt(server.endpoint);
    const { endpoint: _endpoint, ...options } = optionsOf();
    const agents = agentsOf(options);
    const client = sdkClient(options, agents);
    const other = { get: async () => ({ bytes: 42, info: null }) } as unknown as S3Calls;
    const calls = new LeanCalls((await endpointOf(client, S3Server.BUCKET))!, options, agents, client, other);
    const read = async (headers: Record<string, string>): Promise<number> => {
      server.judge = () => ({ headers: (told) => ({ ...told, ...headers }) });
      return (await calls.get('k', { operation, offset: 0, into: new Uint8Array(1000), signal })).bytes;
    };
    assert.equal(await read({ 'x-amz-checksum-xxhash64': 'AAAAAAAAAAA=', 'x-amz-checksum-type': 'FULL_OBJECT' }), 42);
    assert.equal(await read({ 'x-amz-checksum-xxhash64': 'AAAAAAAAAAA=-2' }), 1000);
    const sum = Buffer.alloc(4);
    sum.writeUInt32BE(crc32(CONTENT.subarray(0, 1000)));
    assert.equal(await read({ 'x-amz-checksum-crc32': sum.toString('base64'), 'x-amz-checksum-xxhash64': 'AAAAAAAAAAA=' }), 1000);
    await assert.rejects(read({ 'x-amz-checksum-crc32': 'AAAAAA==' }), { code: 'checksum' });
    client.destroy();
    restore();
  });
});

async function using<T extends { close(): Promise<void> }>(resource: T, work: (resource: T) => Promise<void>): Promise<void> {
  try {
    await work(resource);
  } finally {
    await resource.close();
  }
}
