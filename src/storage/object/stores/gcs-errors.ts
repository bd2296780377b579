/**
 * What Google Cloud Storage, the way to it and the credentials may answer, in the words of the port.
 * https://cloud.google.com/storage/docs/json_api/v1/status-codes
 */
import { StorageError, type StorageErrorCode, type StorageErrorDetail } from '../errors.js';
import { retryAfterIn, saidIn } from './answer-reader.js';

/** What the failed call was. */
export interface FailureContext {
  readonly operation: string;
  /** It changes something: without a good answer one cannot know whether it did. */
  readonly mutates: boolean;
  /** 404 cannot mean an object: the call names none that has to be there. */
  readonly bucketOnly: boolean;
  /** Credentials of this process were accepted before. */
  readonly accepted: boolean;
}

export type Failure =
  | { readonly kind: 'answer'; readonly status: number; readonly headers: Readonly<Record<string, string | string[] | undefined>>; readonly body: string }
  /** `sent`: a connection stood, so the request may have arrived. */
  | { readonly kind: 'connection'; readonly error: unknown; readonly sent: boolean }
  /** No token could be had; the request was not sent. */
  | { readonly kind: 'credentials'; readonly error: unknown }
  /** The signal was raised. */
  | { readonly kind: 'aborted' };

export function toStorageError(failure: Failure, context: FailureContext): StorageError {
  switch (failure.kind) {
    case 'answer':
      return fromAnswer(failure, context);
    case 'connection':
      return fromConnection(failure.error, failure.sent, context);
    case 'credentials':
      return fromCredentials(failure.error, context);
    case 'aborted':
      return new StorageError('aborted', context.operation);
  }
}

interface Refusal {
  readonly reason: string;
  readonly message: string;
}

/** JSON, or plain words where the request was for content. */
function refusalOf(body: string): Refusal {
  try {
    const { error } = JSON.parse(body) as { error?: { message?: unknown; errors?: { reason?: unknown }[] } };
    return { reason: saidIn(error?.errors?.[0]?.reason) ?? '', message: saidIn(error?.message) ?? '' };
  } catch {
    return { reason: '', message: saidIn(body) ?? '' };
  }
}

function fromAnswer({ status, headers, body }: Extract<Failure, { kind: 'answer' }>, context: FailureContext): StorageError {
  const { reason, message } = refusalOf(body);
  const code = codeOfAnswer(status, reason, message, context);
  const requestId = saidIn(headers['x-guploader-uploadid']);
  const retryAfter_ms = retryAfterIn(headers['retry-after']);
  const detail: StorageErrorDetail = {
    status,
    ...(reason === '' ? {} : { providerCode: reason }),
    ...(message === '' ? {} : { providerMessage: message }),
    ...(requestId === undefined ? {} : { requestId }),
    ...(retryAfter_ms === null ? {} : { retryAfter_ms }),
    // Whoever answers 5xx or 408 need not be who did the work.
    ...(context.mutates && (status >= 500 || status === 408) ? { ambiguous: true } : {}),
  };
  return new StorageError(code, context.operation, detail);
}

const RATE_REASONS = new Set(['rateLimitExceeded', 'userRateLimitExceeded', 'concurrentLimitExceeded']);

function codeOfAnswer(status: number, reason: string, message: string, { bucketOnly, accepted }: FailureContext): StorageErrorCode {
  switch (status) {
    case 304: // a NotMatch condition
    case 409:
    case 412:
      return 'changed';
    case 400:
      if (/doesn't match calculated/i.test(message)) return 'checksum';
      return /metadata\b.*\btoo large/is.test(message) ? 'too-large' : 'invalid';
    case 401: // "required": there were none, and anonymous callers may not
      return accepted && reason !== 'required' ? 'expired' : 'bad-credentials';
    case 403:
      return RATE_REASONS.has(reason) ? 'throttled' : 'denied';
    case 404:
      return bucketOnly || /bucket does not exist/i.test(message) ? 'no-bucket' : 'not-found';
    case 408:
      return 'timeout';
    case 410: // a resumable session that is over: the call may begin another
      return 'unavailable';
    case 413:
      return 'too-large';
    case 429:
      return 'throttled';
    case 405:
    case 501:
      return 'unsupported';
    default:
      if (status >= 500) return 'unavailable';
      return status >= 400 ? 'invalid' : 'unexpected';
  }
}

/** Of Node's error codes, those of a connection that broke after it stood. */
const BROKEN = new Set(['ECONNRESET', 'EPIPE', 'ECONNABORTED', 'ERR_STREAM_PREMATURE_CLOSE', 'ERR_SOCKET_CLOSED', 'ENETRESET']);
/** And of one that never did. */
const NO_WAY = new Set([
  'ENOTFOUND', 'EAI_AGAIN', 'EAI_FAIL', 'EAI_NODATA', 'ECONNREFUSED', 'EHOSTUNREACH', 'ENETUNREACH', 'EHOSTDOWN', 'ENETDOWN', 'EADDRNOTAVAIL', 'EPROTO',
]);

function fromConnection(error: unknown, sent: boolean, { operation, mutates }: FailureContext): StorageError {
  if (error instanceof StorageError) return error;
  const { code = '', message } = describe(error);
  const detail: StorageErrorDetail = {
    ...(code === '' ? {} : { providerCode: code }), providerMessage: message, ...(mutates && sent ? { ambiguous: true } : {}), cause: error,
  };
  return new StorageError(codeOfConnection(code, sent), operation, detail);
}

function codeOfConnection(code: string, sent: boolean): StorageErrorCode {
  if (NO_WAY.has(code) || /CERT|^ERR_TLS|^ERR_SSL|^UNABLE_TO_/.test(code)) return 'unreachable';
  if (code === 'ETIMEDOUT') return sent ? 'timeout' : 'unreachable';
  if (BROKEN.has(code)) return sent ? 'interrupted' : 'unreachable';
  if (code === 'ERR_HTTP_ANSWER') return 'interrupted'; // what came is no HTTP
  return 'unexpected';
}

function describe(error: unknown): { code?: string; status?: number; message: string } {
  if (typeof error !== 'object' || error === null) return { message: String(error) };
  const { code, status, message, response, cause } = error as {
    code?: unknown; status?: unknown; message?: unknown; response?: { status?: unknown }; cause?: { code?: unknown };
  };
  const said = typeof code === 'string' ? code : typeof cause?.code === 'string' ? cause.code : undefined;
  const answered = [status, response?.status].find((one) => typeof one === 'number');
  return {
    ...(said === undefined ? {} : { code: said }),
    ...(typeof answered === 'number' ? { status: answered } : {}),
    message: typeof message === 'string' ? message : String(error),
  };
}

/** The auth library has no codes of its own: what it says, and what the token endpoint answered, have to do. */
function fromCredentials(error: unknown, { operation }: FailureContext): StorageError {
  const { code = '', status, message } = describe(error);
  const detail = { ...(status === undefined ? {} : { status }), ...(code === '' ? {} : { providerCode: code }), providerMessage: saidIn(message) ?? '', cause: error };
  return new StorageError(codeOfCredentials(code, status, message), operation, detail);
}

function codeOfCredentials(code: string, status: number | undefined, message: string): StorageErrorCode {
  if (status === 429) return 'throttled';
  if (status !== undefined && status >= 500) return 'unavailable';
  if (/reasonable timeframe|\biat and exp\b/i.test(message)) return 'clock-skew';
  if (/expired|revoked|invalid_rapt/i.test(message)) return 'expired';
  const connection = codeOfConnection(code, true);
  if (connection !== 'unexpected') return connection;
  return status === 403 ? 'denied' : 'bad-credentials';
}
