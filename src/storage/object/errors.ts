/** What can go wrong with a store, in words that all providers share, and which errno a guest gets for it. */
import { E } from '../../base/errno.js';

/**
 * not-found        no such object (or upload)
 * changed          a condition failed: another version is there, or one at all; also what loses a race (409, 412)
 * no-bucket        the bucket does not exist
 * wrong-region     the bucket is somewhere else; `detail.region` says where, if the provider does
 * bad-credentials  none found, unknown key, wrong signature
 * expired          the credentials were good once
 * denied           known, but not allowed to do this
 * clock-skew       the request's time is too far from the provider's
 * throttled        asked to slow down
 * unavailable      the provider is there and does not serve (5xx)
 * unreachable      no connection: name, route, refused, TLS
 * timeout          no answer in time
 * interrupted      the connection broke in the middle
 * checksum         the bytes that came are not the bytes that were sent
 * short-body       fewer or more bytes than announced
 * bad-body         the disk has lost bytes that were to be sent
 * too-large        beyond a limit of the provider
 * archived         in a storage class that must be restored first
 * invalid          the provider does not accept the request: a defect, or a wrong setting
 * unsupported      this provider has no such operation
 * aborted          the caller gave up
 * unexpected       anything else
 */
export const STORAGE_ERRORS = [
  'not-found', 'changed', 'no-bucket', 'wrong-region', 'bad-credentials', 'expired', 'denied', 'clock-skew', 'throttled', 'unavailable',
  'unreachable', 'timeout', 'interrupted', 'checksum', 'short-body', 'bad-body', 'too-large', 'archived', 'invalid', 'unsupported', 'aborted', 'unexpected',
] as const;

export type StorageErrorCode = (typeof STORAGE_ERRORS)[number];

export interface StorageErrorDetail {
  /** HTTP status, where there was an answer. */
  readonly status?: number;
  /** The provider's own code and text, and its id of the request, for people who ask it. */
  readonly providerCode?: string;
  readonly providerMessage?: string;
  readonly requestId?: string;
  /** Milliseconds that the provider asks to wait. */
  readonly retryAfter_ms?: number;
  readonly region?: string;
  /** The request may have taken effect although no good answer came. */
  readonly ambiguous?: boolean;
  readonly cause?: unknown;
}

export class StorageError extends Error {
  override readonly name = 'StorageError';

  constructor(
    readonly code: StorageErrorCode,
    /** What was tried, on what: "put s3://bucket/key". */
    readonly operation: string,
    readonly detail: StorageErrorDetail = {},
  ) {
    super(describe(code, operation, detail), { cause: detail.cause });
  }

  /** What the provider says, in as many words as it has. */
  get said(): string {
    return this.detail.providerMessage ?? this.detail.providerCode ?? this.code;
  }
}

function describe(code: StorageErrorCode, operation: string, detail: StorageErrorDetail): string {
  const provider = [detail.status, detail.providerCode, detail.providerMessage].filter((part) => part !== undefined && part !== '').join(' ');
  return `${operation}: ${code}${provider === '' ? '' : ` (${provider})`}`;
}

/** Whether the same call may succeed a little later. */
export function isTransient(code: StorageErrorCode): boolean {
  switch (code) {
    case 'throttled':
    case 'unavailable':
    case 'unreachable':
    case 'timeout':
    case 'interrupted':
    case 'checksum':
    case 'short-body':
      return true;
    default:
      return false;
  }
}

/** Why, in this order: the guest's program can act on the first group, its administrator on the second, nobody on EIO. */
export function toErrno(code: StorageErrorCode): number {
  switch (code) {
    case 'not-found':
      return E.NOENT;
    case 'changed': // what the caller had open or expected is no longer what is there
      return E.STALE;
    case 'too-large':
      return E.FBIG;
    case 'unsupported':
      return E.OPNOTSUPP;
    case 'aborted':
      return E.INTR;
    case 'denied':
    case 'bad-credentials':
    case 'expired':
    case 'archived':
      return E.ACCES;
    case 'no-bucket':
    case 'wrong-region':
    case 'clock-skew':
    case 'throttled':
    case 'unavailable':
    case 'unreachable':
    case 'timeout':
    case 'interrupted':
    case 'checksum':
    case 'short-body':
    case 'bad-body':
    case 'invalid':
    case 'unexpected':
      return E.IO;
  }
}

/** Another version is there than the request was about, or none any more. */
export const isLost = (error: unknown): error is StorageError & { readonly code: 'changed' | 'not-found' } =>
  error instanceof StorageError && (error.code === 'changed' || error.code === 'not-found');

/** An attempt that was in doubt stays so, however the ones after it have failed: unless they have lost. @throws what is no StorageError */
export function afterDoubt(error: unknown, doubt: boolean): StorageError {
  if (!(error instanceof StorageError)) throw error;
  return !doubt || isLost(error) || error.detail.ambiguous === true ? error : new StorageError(error.code, error.operation, { ...error.detail, ambiguous: true });
}
