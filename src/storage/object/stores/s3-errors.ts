/** What the SDK rejects with, as StorageError: by the provider's code where there is one, by status, by what broke below HTTP. */
import { StorageError, type StorageErrorCode, type StorageErrorDetail } from '../errors.js';
import { regionIn, retryAfterIn, saidIn } from './answer-reader.js';

/** As the SDK's exceptions have it (@smithy/types, ServiceException), all of it optional: errors of Node come as they are. */
interface SdkError extends Error {
  readonly Code?: string;
  readonly code?: string;
  readonly $metadata?: { readonly httpStatusCode?: number; readonly requestId?: string };
  readonly $response?: { readonly statusCode?: number; readonly headers?: Readonly<Record<string, string>> };
  readonly Region?: string;
  readonly BucketRegion?: string;
}

/** An answer that is a refusal, as an error like those of the SDK. HEAD has no body that would have a code. */
export class S3Refusal extends Error implements SdkError {
  readonly Code?: string;
  readonly Region?: string;
  readonly $metadata: { readonly httpStatusCode: number; readonly requestId?: string };
  readonly $response: { readonly statusCode: number; readonly headers: Readonly<Record<string, string>> };

  constructor(answer: Answer) {
    super(answer.message ?? '');
    const { status, code, region } = answer;
    // As the SDK calls what has none
    this.name = code ?? (status === 404 ? 'NotFound' : 'UnknownError');
    if (code !== undefined) this.Code = code;
    if (region !== undefined) this.Region = region;
    const headers = Object.fromEntries(Object.entries(answer.headers).flatMap(([name, value]) => (value === undefined ? [] : [[name, String(value)]])));
    const requestId = headers['x-amz-request-id'];
    this.$metadata = { httpStatusCode: status, ...(requestId === undefined ? {} : { requestId }) };
    this.$response = { statusCode: status, headers };
  }
}

interface Answer {
  readonly status: number;
  readonly headers: Readonly<Record<string, string | readonly string[] | undefined>>;
  readonly code?: string | undefined;
  readonly message?: string | undefined;
  readonly region?: string | undefined;
}

/** https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html */
const BY_CODE: Readonly<Record<string, StorageErrorCode>> = {
  NoSuchKey: 'not-found', NotFound: 'not-found', NoSuchVersion: 'not-found', NoSuchUpload: 'not-found',
  NoSuchBucket: 'no-bucket', InvalidBucketName: 'no-bucket', NoSuchBucketException: 'no-bucket',
  PreconditionFailed: 'changed', ConditionalRequestConflict: 'changed', OperationAborted: 'changed', ConcurrentModification: 'changed',
  PermanentRedirect: 'wrong-region', TemporaryRedirect: 'wrong-region', AuthorizationHeaderMalformed: 'wrong-region', IllegalLocationConstraintException: 'wrong-region',
  InvalidAccessKeyId: 'bad-credentials', SignatureDoesNotMatch: 'bad-credentials', InvalidToken: 'bad-credentials', InvalidClientTokenId: 'bad-credentials',
  CredentialsProviderError: 'bad-credentials', TokenProviderError: 'bad-credentials', UnrecognizedClientException: 'bad-credentials',
  ExpiredToken: 'expired', ExpiredTokenException: 'expired', TokenRefreshRequired: 'expired',
  AccessDenied: 'denied', AccountProblem: 'denied', AllAccessDisabled: 'denied', NotSignedUp: 'denied', Forbidden: 'denied', InvalidPayer: 'denied',
  RequestTimeTooSkewed: 'clock-skew', RequestExpired: 'clock-skew',
  SlowDown: 'throttled', Throttling: 'throttled', ThrottlingException: 'throttled', TooManyRequests: 'throttled', RequestLimitExceeded: 'throttled', BandwidthLimitExceeded: 'throttled',
  InternalError: 'unavailable', ServiceUnavailable: 'unavailable', Busy: 'unavailable',
  RequestTimeout: 'timeout', TimeoutError: 'timeout', ETIMEDOUT: 'timeout', ESOCKETTIMEDOUT: 'timeout',
  BadDigest: 'checksum', XAmzContentChecksumMismatch: 'checksum', XAmzContentSHA256Mismatch: 'checksum', InvalidDigest: 'checksum',
  IncompleteBody: 'short-body',
  EntityTooLarge: 'too-large', MetadataTooLarge: 'too-large', QuotaExceeded: 'too-large',
  InvalidObjectState: 'archived',
  NotImplemented: 'unsupported', MethodNotAllowed: 'unsupported',
  InvalidArgument: 'invalid', InvalidRequest: 'invalid', MalformedXML: 'invalid', KeyTooLongError: 'invalid', InvalidPart: 'invalid', InvalidPartOrder: 'invalid',
  EntityTooSmall: 'invalid', InvalidURI: 'invalid', InvalidObjectName: 'invalid',
  ENOTFOUND: 'unreachable', EAI_AGAIN: 'unreachable', ECONNREFUSED: 'unreachable', EHOSTUNREACH: 'unreachable', ENETUNREACH: 'unreachable',
  EADDRNOTAVAIL: 'unreachable', ECONNRESET: 'interrupted', EPIPE: 'interrupted', ECONNABORTED: 'interrupted', ERR_STREAM_PREMATURE_CLOSE: 'interrupted',
  AbortError: 'aborted', ABORT_ERR: 'aborted',
};

/** HEAD has no body, and some services have no codes. */
function byStatus(status: number | undefined): StorageErrorCode {
  if (status === undefined) return 'unexpected';
  if (status === 301 || status === 307) return 'wrong-region';
  if (status === 400) return 'invalid';
  if (status === 401) return 'bad-credentials';
  if (status === 403) return 'denied';
  if (status === 404) return 'not-found';
  if (status === 405 || status === 501) return 'unsupported';
  if (status === 408) return 'timeout';
  if (status === 409 || status === 412) return 'changed';
  if (status === 413) return 'too-large';
  if (status === 429 || status === 503) return 'throttled';
  return status >= 500 ? 'unavailable' : 'unexpected';
}

/** Node's codes where certificates are not accepted, or the other side speaks another protocol. */
const isTls = (code: string): boolean => /^(ERR_TLS|ERR_SSL|ERR_HTTP_ANSWER|CERT_|HPE_)|^EPROTO$|CERT|SELF_SIGNED|UNABLE_TO_/.test(code);

/** An answer that nobody understands is one all the same: the request has arrived where somebody answers. */
const isAnswered = (code: string): boolean => /^(ERR_HTTP_ANSWER|HPE_)/.test(code);

/** What the SDK says of a body that does not match its header; the error has no name of its own (@aws-sdk/middleware-flexible-checksums). */
const CHECKSUM = /^Checksum mismatch: expected /;

/** `changes`: whether the call may have changed something if its answer is lost. */
export function toStorageError(error: unknown, operation: string, changes: boolean): StorageError {
  if (error instanceof StorageError) return error;
  const known = (error instanceof Error ? error : new Error(String(error))) as SdkError;
  const status = known.$metadata?.httpStatusCode ?? known.$response?.statusCode;
  // The SDK calls a connection that was closed a TimeoutError as well: the code of Node.js says which it is
  const name = [known.Code, known.code, known.name].find((one) => one !== undefined && Object.hasOwn(BY_CODE, one));
  const fallback = known.code !== undefined && isTls(known.code) ? 'unreachable' : /^(Unknown|UnknownError)$/.test(known.name) || name === undefined ? byStatus(status) : 'unexpected';
  const code = name !== undefined ? BY_CODE[name] : CHECKSUM.test(known.message) ? 'checksum' : fallback;
  // Without an answer nobody knows; a 5xx may come from something in between
  const ambiguous = changes && (status === undefined ? isAnswered(known.code ?? '') || !['unreachable', 'bad-credentials', 'invalid', 'short-body'].includes(code) : status >= 500);
  return new StorageError(code, operation, {
    ...detailOf(known, status), ...(ambiguous ? { ambiguous } : {}), cause: error,
  });
}

function detailOf(error: SdkError, status: number | undefined): StorageErrorDetail {
  const headers = error.$response?.headers ?? {};
  const retryAfter_ms = retryAfterIn(headers['retry-after']);
  const region = regionIn(error.Region ?? error.BucketRegion ?? headers['x-amz-bucket-region']);
  const requestId = saidIn(error.$metadata?.requestId);
  const providerCode = saidIn(error.Code ?? error.code ?? error.name);
  const providerMessage = saidIn(error.message);
  return {
    ...(status === undefined ? {} : { status }),
    ...(providerCode === undefined ? {} : { providerCode }),
    // Some services (Ceph's) say no more than the code, which the SDK calls so
    ...(providerMessage === undefined || providerMessage === 'UnknownError' ? {} : { providerMessage }),
    ...(requestId === undefined ? {} : { requestId }),
    ...(retryAfter_ms === null ? {} : { retryAfter_ms }),
    ...(region === undefined ? {} : { region }),
  };
}
