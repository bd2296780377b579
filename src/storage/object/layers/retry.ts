/**
 * What fails for a passing reason is tried again, after a random time (full jitter) that grows with each attempt, or
 * the time that the provider asks for. The loop is p-retry's; which failures pass, and how long to wait, is ours.
 *
 * A call that failed ambiguously (it may have taken effect) is tried again only where doing it twice is doing it once.
 * A conditional write is not: its second attempt may lose against its first. Those are settled by whoever knows what
 * was to be written (see ../settle.ts).
 */
import { setTimeout as sleep } from 'node:timers/promises';
import pRetry from 'p-retry';
import { afterDoubt, StorageError, isTransient } from '../errors.js';
import type { ObjectStore } from '../store.js';
import { intercept, type Call } from './intercept.js';

export interface RetryOptions {
  /** In all, the first one included. */
  readonly attempts: number;
  readonly base_ms: number;
  readonly max_ms: number;
  /** A provider that asks to wait longer is not waited for. */
  readonly maxRetryAfter_ms: number;
  /** Told before each wait, for the log and the limit. */
  readonly onRetry?: (call: Call, error: StorageError, attempt: number, delay_ms: number) => void;
  /** 0 ≤ x < 1; tests bring their own. */
  readonly random?: () => number;
}

export const RETRY: RetryOptions = { attempts: 8, base_ms: 100, max_ms: 10_000, maxRetryAfter_ms: 60_000 };

export function withRetry(store: ObjectStore, given: Partial<RetryOptions> = {}): ObjectStore {
  const options: RetryOptions = { ...RETRY, ...given };
  return intercept(store, async (call, attempt) => {
    const { signal } = call;
    const first = attempt(signal);
    try {
      // Where most calls end: p-retry is for those that may be tried again
      return await first;
    } catch (error) {
      if (!mayTryAgain(call, error, options)) throw error;
    }
    let inDoubt = false;
    try {
      return await pRetry((number) => (number === 1 ? first : attempt(signal)), {
        retries: options.attempts - 1,
        minTimeout: 0, // the waiting is done in onFailedAttempt, which knows the error
        ...(signal === undefined ? {} : { signal }),
        onFailedAttempt: async ({ error, attemptNumber, retriesLeft }) => {
          inDoubt ||= error instanceof StorageError && error.detail.ambiguous === true;
          if (retriesLeft === 0 || !mayTryAgain(call, error, options)) throw error;
          const delay_ms = delayOf(error, attemptNumber, options);
          options.onRetry?.(call, error, attemptNumber, delay_ms);
          await sleep(delay_ms, undefined, signal === undefined ? {} : { signal });
        },
      });
    } catch (error) {
      if (signal?.aborted === true && !(error instanceof StorageError)) throw new StorageError('aborted', call.subject, { cause: error, ...(inDoubt ? { ambiguous: true } : {}) });
      // A former attempt may have taken effect, however sure it is that the last one has not
      throw afterDoubt(error, inDoubt);
    }
  });
}

function mayTryAgain(call: Call, error: unknown, options: RetryOptions): error is StorageError {
  if (!(error instanceof StorageError) || !isTransient(error.code)) return false;
  if ((error.detail.retryAfter_ms ?? 0) > options.maxRetryAfter_ms) return false;
  return error.detail.ambiguous !== true || !call.conditional;
}

function delayOf(error: StorageError, attempt: number, { base_ms, max_ms, random = Math.random }: RetryOptions): number {
  const jittered = random() * Math.min(max_ms, base_ms * 2 ** Math.min(20, attempt - 1));
  return Math.ceil(Math.max(error.detail.retryAfter_ms ?? 0, jittered));
}
