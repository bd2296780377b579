/** What Google Cloud Storage answers, and what becomes of it: made by hand, after its reference. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { toStorageError, type Failure, type FailureContext } from '../../src/storage/object/stores/gcs-errors.js';

const CONTEXT: FailureContext = { operation: 'put gs://b/k', mutates: true, bucketOnly: false, accepted: false };

function answer(status: number, reason = '', message = '', headers: Record<string, string> = {}): Failure {
  return { kind: 'answer', status, headers, body: JSON.stringify({ error: { code: status, message, errors: [{ domain: 'global', reason, message }] } }) };
}

const codeOf = (failure: Failure, context: Partial<FailureContext> = {}): StorageErrorCode => toStorageError(failure, { ...CONTEXT, ...context }).code;

/** As Node makes them. */
const systemError = (code: string): Error => Object.assign(new Error(`connect ${code} 192.0.2.1:443`), { code });

describe('answers', () => {
  const table: readonly (readonly [number, string, string, StorageErrorCode])[] = [
    [304, '', '', 'changed'],
    [400, 'invalid', 'Invalid argument.', 'invalid'],
    [400, 'required', 'Bucket is a requester pays bucket but no user project provided.', 'invalid'],
    [400, 'invalid', 'Provided CRC32C "AAAAAA==" doesn\'t match calculated CRC32C "4waSgw==".', 'checksum'],
    [400, 'invalid', 'Provided MD5 hash "A" doesn\'t match calculated MD5 hash "B".', 'checksum'],
    [400, 'invalid', 'The metadata for this object exceeds the limit and is too large.', 'too-large'],
    [401, 'required', 'Anonymous caller does not have storage.objects.get access', 'bad-credentials'],
    [401, 'authError', 'Invalid Credentials', 'bad-credentials'],
    [403, 'forbidden', 'caller does not have storage.objects.get access', 'denied'],
    [403, 'rateLimitExceeded', '', 'throttled'],
    [403, 'userRateLimitExceeded', '', 'throttled'],
    [403, 'retentionPolicyNotMet', '', 'denied'],
    [404, 'notFound', 'No such object: b/k', 'not-found'],
    [404, 'notFound', 'The specified bucket does not exist.', 'no-bucket'],
    [405, 'methodNotAllowed', '', 'unsupported'],
    [408, 'requestTimeout', '', 'timeout'],
    [409, 'conflict', '', 'changed'],
    [410, 'gone', '', 'unavailable'],
    [411, 'required', '', 'invalid'],
    [412, 'conditionNotMet', '', 'changed'],
    [413, 'uploadTooLarge', '', 'too-large'],
    [416, 'requestedRangeNotSatisfiable', '', 'invalid'],
    [429, 'rateLimitExceeded', '', 'throttled'],
    [500, 'internalError', '', 'unavailable'],
    [501, 'notImplemented', '', 'unsupported'],
    [502, 'badGateway', '', 'unavailable'],
    [503, 'backendError', '', 'unavailable'],
    [504, 'gatewayTimeout', '', 'unavailable'],
    [302, '', '', 'unexpected'],
  ];
  for (const [status, reason, message, code] of table) {
    test(`${status} ${reason} ${message.slice(0, 40)} is ${code}`, () => assert.equal(codeOf(answer(status, reason, message)), code));
  }

  test('404 of a call that names no object means the bucket', () => assert.equal(codeOf(answer(404, 'notFound', 'Not Found'), { bucketOnly: true }), 'no-bucket'));

  test('401 is expired when the same credentials were good before', () => {
    assert.equal(codeOf(answer(401, 'authError', 'Invalid Credentials'), { accepted: true }), 'expired');
    assert.equal(codeOf(answer(401, 'required', 'Anonymous caller'), { accepted: true }), 'bad-credentials');
  });

  test('only a failed change is ambiguous, and only by an answer of those who need not know', () => {
    const ambiguous = (status: number, mutates: boolean): boolean => toStorageError(answer(status), { ...CONTEXT, mutates }).detail.ambiguous === true;
    for (const status of [408, 500, 502, 503, 504]) assert.deepEqual([ambiguous(status, true), ambiguous(status, false)], [true, false], String(status));
    for (const status of [400, 401, 403, 404, 412, 429]) assert.equal(ambiguous(status, true), false, String(status));
  });

  test('what the provider said is in the error: status, reason, text, id, how long to wait', () => {
    const error = toStorageError(answer(429, 'rateLimitExceeded', 'slow down', { 'retry-after': '3', 'x-guploader-uploadid': 'id-1' }), CONTEXT);
    assert.deepEqual(error.detail, { status: 429, providerCode: 'rateLimitExceeded', providerMessage: 'slow down', requestId: 'id-1', retryAfter_ms: 3000 });
    assert.equal(error.message, 'put gs://b/k: throttled (429 rateLimitExceeded slow down)');
  });

  test('Retry-After may be a date; what is neither is ignored', () => {
    const wait = (value: string): number | undefined => toStorageError(answer(503, '', '', { 'retry-after': value }), CONTEXT).detail.retryAfter_ms;
    const ms = wait(new Date(Date.now() + 60_000).toUTCString());
    assert.ok(ms !== undefined && ms > 50_000 && ms <= 60_000, String(ms));
    assert.equal(wait(new Date(Date.now() - 60_000).toUTCString()), 0);
    assert.equal(wait('soon'), undefined);
  });

  test('a refusal in plain words keeps them', () => {
    const error = toStorageError({ kind: 'answer', status: 404, headers: {}, body: 'No such object: b/k' }, CONTEXT);
    assert.deepEqual([error.code, error.detail.providerMessage], ['not-found', 'No such object: b/k']);
  });
});

describe('connections', () => {
  const table: readonly (readonly [string, boolean, StorageErrorCode])[] = [
    ['ENOTFOUND', false, 'unreachable'], ['EAI_AGAIN', false, 'unreachable'], ['ECONNREFUSED', false, 'unreachable'], ['EHOSTUNREACH', false, 'unreachable'],
    ['ENETUNREACH', false, 'unreachable'], ['ETIMEDOUT', false, 'unreachable'], ['ETIMEDOUT', true, 'timeout'], ['ECONNRESET', false, 'unreachable'],
    ['ECONNRESET', true, 'interrupted'], ['EPIPE', true, 'interrupted'], ['ERR_STREAM_PREMATURE_CLOSE', true, 'interrupted'], ['ERR_HTTP_ANSWER', true, 'interrupted'],
    ['DEPTH_ZERO_SELF_SIGNED_CERT', false, 'unreachable'], ['ERR_TLS_CERT_ALTNAME_INVALID', false, 'unreachable'], ['CERT_HAS_EXPIRED', false, 'unreachable'],
    ['UNABLE_TO_VERIFY_LEAF_SIGNATURE', false, 'unreachable'], ['EIO', true, 'unexpected'],
  ];
  for (const [error, sent, code] of table) {
    test(`${error} ${sent ? 'after' : 'before'} a connection stood is ${code}`, () => {
      const made = toStorageError({ kind: 'connection', error: systemError(error), sent }, CONTEXT);
      assert.deepEqual([made.code, made.detail.ambiguous === true, made.detail.providerCode], [code, sent, error]);
      assert.equal(toStorageError({ kind: 'connection', error: systemError(error), sent }, { ...CONTEXT, mutates: false }).detail.ambiguous, undefined);
    });
  }

  test('an error of ours passes as it is', () => {
    const error = new StorageError('short-body', 'put gs://b/k');
    assert.equal(toStorageError({ kind: 'connection', error, sent: true }, CONTEXT), error);
  });

  test('a raised signal is aborted', () => assert.equal(codeOf({ kind: 'aborted' }), 'aborted'));
});

describe('credentials', () => {
  const table: readonly (readonly [string, object, StorageErrorCode])[] = [
    ['none found', new Error('Could not load the default credentials. Browse to … for more information.'), 'bad-credentials'],
    ['key file that is not there', systemError('ENOENT'), 'bad-credentials'],
    ['key that Google does not know', Object.assign(new Error('invalid_grant: Invalid JWT Signature.'), { response: { status: 400 } }), 'bad-credentials'],
    ['login that is over', Object.assign(new Error('invalid_grant: Token has been expired or revoked.'), { response: { status: 400 } }), 'expired'],
    ['clock', Object.assign(new Error('invalid_grant: Invalid JWT: Token must be short-lived and in a reasonable timeframe.'), { status: 400 }), 'clock-skew'],
    ['not allowed', Object.assign(new Error('Permission iam.serviceAccounts.getAccessToken denied'), { status: 403 }), 'denied'],
    ['token endpoint refuses to hurry', Object.assign(new Error('x'), { status: 429 }), 'throttled'],
    ['token endpoint is ill', Object.assign(new Error('x'), { status: 503 }), 'unavailable'],
    ['token endpoint is not there', systemError('ECONNREFUSED'), 'unreachable'],
    ['name of the token endpoint, as a cause', Object.assign(new Error('request failed'), { cause: systemError('ENOTFOUND') }), 'unreachable'],
  ];
  for (const [name, error, code] of table) {
    test(`${name}: ${code}, and nothing was sent`, () => {
      const made = toStorageError({ kind: 'credentials', error }, CONTEXT);
      assert.deepEqual([made.code, made.detail.ambiguous], [code, undefined]);
    });
  }
});
