/** Signatures of src/storage/object/stores/s3-sign.ts are those of the SDK's own signer, for the same request at the same time. */
import assert from 'node:assert/strict';
import { createHash, createHmac, type Hash, type Hmac } from 'node:crypto';
import { SignatureV4 } from '@smithy/signature-v4';
import { describe, test } from 'node:test';
import type { Header } from '../../src/storage/object/stores/http-content.js';
import { escapedKey, queryOf, sha256Hex, Signer, type Credentials } from '../../src/storage/object/stores/s3-sign.js';

const KEYS = [
  'plain', 'a b', 'a+b', ' ', 'ü/日本/🎈', 'a//b', '/', '//', './a/../b', '..', '.', '%', '%20', 'a%2Fb', '~tilde', "!'()*", 'q?x=1&y#z', 'a:b;c,d=e@f$g', '\\', '"<>`{|}^[]', 'a\nb\tc',
  'n'.repeat(1024), 'ü'.repeat(512),
];
const WHO: Credentials = { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY' };
const TIME_MS = Date.UTC(2026, 1, 28, 23, 59, 58, 987);

/** As the SDK's signer wants it. */
class Sha256 {
  readonly #hash: Hash | Hmac;
  constructor(secret?: string | ArrayBuffer | ArrayBufferView) {
    this.#hash = secret === undefined ? createHash('sha256') : createHmac('sha256', typeof secret === 'string' ? secret : new Uint8Array(ArrayBuffer.isView(secret) ? secret.buffer.slice(secret.byteOffset, secret.byteOffset + secret.byteLength) : secret));
  }

  update(data: string | ArrayBuffer | ArrayBufferView): void {
    this.#hash.update(data as string | Uint8Array);
  }

  async digest(): Promise<Uint8Array> {
    return this.#hash.digest();
  }

  reset(): void {}
}

interface Asked {
  readonly method?: string;
  readonly key?: string;
  readonly query?: Readonly<Record<string, string>>;
  readonly headers?: readonly Header[];
  readonly contentHash?: string;
  readonly region?: string;
  readonly time_ms?: number;
}

async function theirs(asked: Asked, credentials: Credentials): Promise<Record<string, string>> {
  const { method = 'GET', key = 'key', query = {}, headers = [], contentHash = sha256Hex(''), region = 'eu-west-1', time_ms = TIME_MS } = asked;
  const signer = new SignatureV4({ service: 's3', region, credentials, sha256: Sha256, uriEscapePath: false, applyChecksum: true });
  const request = {
    method, protocol: 'https:', hostname: 'bucket.example.com', path: `/base/${escapedKey(key)}`, query: { ...query },
    headers: { host: 'bucket.example.com', 'x-amz-content-sha256': contentHash, ...Object.fromEntries(headers) },
  };
  return (await signer.sign(request, { signingDate: new Date(time_ms) })).headers;
}

function ours(asked: Asked, credentials: Credentials, signer = new Signer(asked.region ?? 'eu-west-1')): Record<string, string> {
  const { method = 'GET', key = 'key', query = {}, headers = [], contentHash = sha256Hex(''), time_ms = TIME_MS } = asked;
  const all: Header[] = [['host', 'bucket.example.com'], ...headers];
  return Object.fromEntries(signer.sign({ method, path: `/base/${escapedKey(key)}`, query: queryOf(query), headers: all, contentHash }, credentials, time_ms));
}

async function same(asked: Asked, credentials: Credentials = WHO): Promise<void> {
  const [expected, found] = [await theirs(asked, credentials), ours(asked, credentials)];
  assert.match(found['authorization'], /^AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE\/20\d{6}\/.*, Signature=[0-9a-f]{64}$/);
  assert.deepEqual(found, expected);
}

describe('keys', () => {
  for (const key of KEYS) {
    const shown = key.length > 40 ? `${key.slice(0, 10)}... of ${Buffer.byteLength(key)} bytes` : key;
    test(JSON.stringify(shown), async () => {
      await same({ key });
      await same({ method: 'PUT', key: `dir/${key}/end`, headers: [['x-amz-meta-key', 'value']] });
      assert.equal(decodeURIComponent(escapedKey(key)), key);
      assert.match(escapedKey(key), /^[A-Za-z0-9\-._~%/]*$/);
    });
  }
});

test('queries are in order, and escaped once', async () => {
  await same({ query: { 'list-type': '2', prefix: 'p +ü/~', delimiter: '/', 'start-after': "a!'()*", 'continuation-token': 't+/=&?', 'encoding-type': 'url', 'max-keys': '7' } });
  await same({ query: { uploadId: 'a.b-c_d~e/f+g=', partNumber: '10000' } });
  await same({ query: { prefix: '' } });
  assert.equal(queryOf({ b: undefined, c: 1, a: '' }), 'a=&c=1');
});

test('what goes along is signed: session token, requester pays, conditions, metadata with odd spaces, words instead of a hash', async () => {
  const token = { ...WHO, sessionToken: `IQoJ+/${'x'.repeat(500)}==` };
  await same({ headers: [['x-amz-request-payer', 'requester'], ['x-amz-expected-bucket-owner', '111122223333']] }, token);
  await same({ headers: [['range', 'bytes=0-4095'], ['if-match', '"abc-1"'], ['x-amz-checksum-mode', 'ENABLED']] }, token);
  await same({
    method: 'PUT', contentHash: 'STREAMING-UNSIGNED-PAYLOAD-TRAILER',
    headers: [['x-amz-meta-b', 'two  spaces'], ['x-amz-meta-a', ''], ['x-amz-meta-a-b', 'tab\there'], ['content-length', '10'], ['x-amz-trailer', 'x-amz-checksum-crc32']],
  });
  await same({ method: 'DELETE', contentHash: 'UNSIGNED-PAYLOAD', region: 'us-east-1' });
});

test('the key of a day is not that of the next, nor that of other credentials', async () => {
  const signer = new Signer('eu-west-1');
  const other = { accessKeyId: 'AKIDEXAMPLE', secretAccessKey: 'another' };
  for (const [asked, who] of [[{}, WHO], [{ time_ms: TIME_MS + 2_000 }, WHO], [{ time_ms: TIME_MS + 2_000 }, other], [{}, other], [{}, WHO]] as [Asked, Credentials][]) {
    assert.deepEqual(ours(asked, who, signer), await theirs(asked, who));
  }
});
