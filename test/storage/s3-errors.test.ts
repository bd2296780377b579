/** What the SDK rejects with, in our words: see src/storage/object/stores/s3-errors.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { retryAfterIn } from '../../src/storage/object/stores/answer-reader.js';
import { toStorageError } from '../../src/storage/object/stores/s3-errors.js';

interface Shape {
  readonly name?: string;
  readonly code?: string;
  readonly Code?: string;
  readonly status?: number;
  readonly headers?: Record<string, string>;
  readonly Region?: string;
}

/** An error as the SDK (or Node below it) makes them. */
function sdkError({ name = 'Error', code, Code, status, headers = {}, Region }: Shape): Error {
  const error = Object.assign(new Error('told by the provider'), code === undefined ? {} : { code }, Code === undefined ? {} : { Code }, Region === undefined ? {} : { Region });
  error.name = name;
  return status === undefined ? error : Object.assign(error, { $metadata: { httpStatusCode: status, requestId: 'id-1' }, $response: { statusCode: status, headers } });
}

describe('codes', () => {
  const table: [Shape, StorageErrorCode][] = [
    [{ name: 'NoSuchKey', status: 404 }, 'not-found'],
    [{ name: 'NotFound', status: 404 }, 'not-found'],
    [{ name: 'NoSuchUpload', status: 404 }, 'not-found'],
    [{ name: 'NoSuchBucket', status: 404 }, 'no-bucket'],
    [{ name: 'PreconditionFailed', status: 412 }, 'changed'],
    [{ name: 'ConditionalRequestConflict', status: 409 }, 'changed'],
    [{ name: 'PermanentRedirect', status: 301, Region: 'eu-1' }, 'wrong-region'],
    [{ name: 'AuthorizationHeaderMalformed', status: 400, Region: 'eu-1' }, 'wrong-region'],
    [{ name: 'InvalidAccessKeyId', status: 403 }, 'bad-credentials'],
    [{ name: 'SignatureDoesNotMatch', status: 403 }, 'bad-credentials'],
    [{ name: 'CredentialsProviderError' }, 'bad-credentials'],
    [{ name: 'ExpiredToken', status: 400 }, 'expired'],
    [{ name: 'AccessDenied', status: 403 }, 'denied'],
    [{ name: 'RequestTimeTooSkewed', status: 403 }, 'clock-skew'],
    [{ name: 'SlowDown', status: 503 }, 'throttled'],
    [{ name: 'InternalError', status: 500 }, 'unavailable'],
    [{ name: 'TimeoutError' }, 'timeout'],
    [{ name: 'RequestTimeout', status: 400 }, 'timeout'],
    [{ name: 'BadDigest', status: 400 }, 'checksum'],
    [{ name: 'EntityTooLarge', status: 400 }, 'too-large'],
    [{ name: 'InvalidObjectState', status: 403 }, 'archived'],
    [{ name: 'KeyTooLongError', status: 400 }, 'invalid'],
    [{ name: 'NotImplemented', status: 501 }, 'unsupported'],
    [{ name: 'AbortError' }, 'aborted'],
    [{ code: 'ENOTFOUND' }, 'unreachable'],
    [{ code: 'ECONNREFUSED' }, 'unreachable'],
    [{ code: 'ERR_TLS_CERT_ALTNAME_INVALID' }, 'unreachable'],
    [{ code: 'DEPTH_ZERO_SELF_SIGNED_CERT' }, 'unreachable'],
    [{ code: 'EPROTO' }, 'unreachable'],
    [{ code: 'HPE_INVALID_CONSTANT' }, 'unreachable'],
    [{ code: 'ECONNRESET' }, 'interrupted'],
    [{ name: 'TimeoutError', code: 'ECONNRESET' }, 'interrupted'],
    // Answers without a body, as HEAD has them, and codes that nobody has heard of
    [{ name: 'Unknown', status: 403 }, 'denied'],
    [{ name: 'Unknown', status: 404 }, 'not-found'],
    [{ name: '412', status: 412 }, 'changed'],
    [{ name: 'UnknownError', status: 429 }, 'throttled'],
    [{ name: 'SomethingNew', status: 502 }, 'unavailable'],
    [{ name: 'SomethingNew', status: 418 }, 'unexpected'],
    [{ name: 'TypeError' }, 'unexpected'],
  ];
  for (const [shape, code] of table) {
    test(`${JSON.stringify(shape)} is ${code}`, () => assert.equal(toStorageError(sdkError(shape), 'op', false).code, code));
  }

  test('a body that is not what its header says is checksum, though the SDK has no name for it', () => {
    const error = new Error('Checksum mismatch: expected "AAAAAA==" but received "DUoRhQ==" in response header "x-amz-checksum-crc32".');
    assert.equal(toStorageError(error, 'op', false).code, 'checksum');
  });

  test('ours stays as it is, and what is no error becomes one', () => {
    const ours = new StorageError('short-body', 'op');
    assert.equal(toStorageError(ours, 'other', true), ours);
    assert.equal(toStorageError('a text', 'op', false).code, 'unexpected');
  });
});

test('a change is in doubt when no answer came, or one from in between; not when the provider has refused it, or was never reached', () => {
  const doubt = (shape: Shape, changes = true): boolean => toStorageError(sdkError(shape), 'op', changes).detail.ambiguous === true;
  for (const shape of [{ name: 'TimeoutError' }, { code: 'ECONNRESET' }, { name: 'AbortError' }, { name: 'InternalError', status: 500 }, { name: 'Unknown', status: 502 }, { name: 'TypeError' }, { code: 'ERR_HTTP_ANSWER' }]) {
    assert.equal(doubt(shape), true, JSON.stringify(shape));
    assert.equal(doubt(shape, false), false);
  }
  for (const shape of [{ name: 'PreconditionFailed', status: 412 }, { name: 'AccessDenied', status: 403 }, { code: 'ECONNREFUSED' }, { code: 'ENOTFOUND' }, { name: 'CredentialsProviderError' }]) {
    assert.equal(doubt(shape), false, JSON.stringify(shape));
  }
});

test('a refusal without words is told by its code, and one without a code by ours', () => {
  const wordless = (name: string): StorageError => toStorageError(Object.assign(sdkError({ name, status: 403 }), { message: 'UnknownError' }), 'op', false);
  assert.deepEqual([wordless('InvalidAccessKeyId').said, wordless('InvalidAccessKeyId').message], ['InvalidAccessKeyId', 'op: bad-credentials (403 InvalidAccessKeyId)']);
  assert.equal(toStorageError(sdkError({ name: 'AccessDenied', status: 403 }), 'op', false).said, 'told by the provider');
  assert.equal(new StorageError('timeout', 'op').said, 'timeout');
});

test('what the provider tells besides is kept: region, request, and how long to wait', () => {
  const { detail } = toStorageError(sdkError({ name: 'SlowDown', status: 503, headers: { 'retry-after': '7' } }), 'op', false);
  assert.deepEqual([detail.retryAfter_ms, detail.requestId, detail.status, detail.providerCode], [7000, 'id-1', 503, 'SlowDown']);
  assert.equal(toStorageError(sdkError({ name: 'PermanentRedirect', status: 301, headers: { 'x-amz-bucket-region': 'eu-2' } }), 'op', false).detail.region, 'eu-2');
  const now = Date.parse('2026-01-01T00:00:00Z');
  assert.equal(retryAfterIn('Thu, 01 Jan 2026 00:00:05 GMT', now), 5000);
  assert.equal(retryAfterIn('Wed, 31 Dec 2025 23:59:00 GMT', now), 0);
  assert.equal(retryAfterIn('soon', now), null);
  assert.equal(retryAfterIn(undefined, now), null);
});
