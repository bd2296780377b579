/** Failing on purpose: what the server does to requests that a test has chosen. */
import { setTimeout as sleep } from 'node:timers/promises';
import type { Answer } from '../s3/operations.js';
import { ApiError } from './errors.js';

/** What a request asks for, in the reference's words; `upload.*` are the steps of a resumable upload. */
export type Operation =
  | 'buckets.get' | 'objects.list' | 'objects.get' | 'objects.media' | 'objects.insert' | 'objects.patch' | 'objects.delete' | 'objects.compose'
  | 'objects.rewrite' | 'objects.move' | 'objects.copy' | 'upload.start' | 'upload.put' | 'upload.status' | 'upload.cancel' | 'token';

export type Harm =
  /** Answer so, and do nothing. */
  | { readonly kind: 'status'; readonly status: number; readonly reason?: string; readonly message?: string; readonly headers?: Readonly<Record<string, string>> }
  /** Do it, and then answer so. */
  | { readonly kind: 'status-after'; readonly status: number; readonly reason?: string; readonly message?: string }
  /** Close the connection without an answer, before or after doing it. */
  | { readonly kind: 'drop' }
  | { readonly kind: 'drop-after' }
  /** Close the connection when so many bytes of the request's body have come. */
  | { readonly kind: 'drop-body'; readonly bytes: number }
  /** Send so many bytes of the answer's body, and close the connection. */
  | { readonly kind: 'truncate'; readonly bytes: number }
  /** Announce fewer bytes of content than the range has, and send only those. */
  | { readonly kind: 'shorten'; readonly bytes: number }
  /** One bit in the middle of the answer's body is another, or of the request's. */
  | { readonly kind: 'corrupt' }
  | { readonly kind: 'corrupt-body' }
  | { readonly kind: 'delay'; readonly ms: number }
  /** Another answer instead of the right one, with the length that it says. */
  | { readonly kind: 'mutate'; readonly mutate: (answer: Answer) => Answer };

export interface Fault {
  readonly operation: Operation;
  /** Object name; absent: any. */
  readonly name?: string;
  /** The how-manieth of these requests from now on, from 1; absent: the next. */
  readonly nth?: number;
  /** How many in a row; absent: one. */
  readonly times?: number;
  readonly harm: Harm;
}

export class Faults {
  #faults: { fault: Fault; skip: number; left: number }[] = [];
  /** Asked for each request that no fault was said for. */
  draw: ((operation: Operation) => Harm | null) | null = null;

  inject(...faults: readonly Fault[]): void {
    for (const fault of faults) this.#faults.push({ fault, skip: (fault.nth ?? 1) - 1, left: fault.times ?? 1 });
  }

  heal(): void {
    this.#faults = [];
    this.draw = null;
  }

  /** Faults that have not happened. */
  get pending(): number {
    return this.#faults.length;
  }

  /** What is to happen to this request. */
  next(operation: Operation, name: string | null): Harm | null {
    const mine = this.#faults.filter(({ fault }) => fault.operation === operation && (fault.name === undefined || fault.name === name));
    const due = mine.find((one) => one.skip <= 0);
    for (const one of mine) one.skip--;
    if (due === undefined) return this.draw?.(operation) ?? null;
    if (--due.left <= 0) this.#faults.splice(this.#faults.indexOf(due), 1);
    return due.fault.harm;
  }
}

const REASONS: Readonly<Record<number, string>> = {
  401: 'authError', 403: 'forbidden', 404: 'notFound', 408: 'requestTimeout', 412: 'conditionNotMet', 429: 'rateLimitExceeded', 500: 'internalError', 502: 'badGateway',
  503: 'backendError', 504: 'gatewayTimeout',
};

/** The refusal that a fault of kind status stands for. */
export function refusal(harm: Extract<Harm, { kind: 'status' | 'status-after' }>): ApiError {
  const reason = harm.reason ?? REASONS[harm.status] ?? 'unknown';
  return new ApiError(harm.status, reason, harm.message ?? reason, {
    ...(harm.status === 429 ? { domain: 'usageLimits' as const } : {}),
    ...('headers' in harm && harm.headers !== undefined ? { headers: harm.headers } : {}),
  });
}

export const delayed = (harm: Harm | null): Promise<void> => (harm?.kind === 'delay' ? sleep(harm.ms, undefined, { ref: false }) : Promise.resolve());
