/** An attempt that takes too long is given up: `timeout`, to be tried again by the layer above. */
import { StorageError } from '../errors.js';
import type { ObjectStore } from '../store.js';
import { GivenUp, unless } from './give-up.js';
import { intercept, type Call } from './intercept.js';

export interface Deadlines {
  /** For the answer to a call without file data. */
  readonly call_ms: number;
  /** For one that the provider may work on for long: copies, completing an upload. */
  readonly work_ms: number;
  /** File data has this much time more for each MiB: the slowest line that is still worth waiting for. */
  readonly perMiB_ms: number;
}

export const DEADLINES: Deadlines = { call_ms: 15_000, work_ms: 300_000, perMiB_ms: 4_000 };

const LONG_WORK: ReadonlySet<Call['operation']> = new Set<Call['operation']>(['copy', 'rename', 'copyPart', 'setMetadata', 'completeUpload']);

/** What may have happened when such a call is given up: only these change nothing. */
const HARMLESS: ReadonlySet<Call['operation']> = new Set<Call['operation']>(['check', 'head', 'read', 'fetch', 'list', 'listUploads']);

export function withDeadline(store: ObjectStore, deadlines: Deadlines = DEADLINES): ObjectStore {
  return intercept(store, async (call, attempt) => {
    const base = LONG_WORK.has(call.operation) ? deadlines.work_ms : deadlines.call_ms;
    const ms = Math.ceil(base + (call.bytes / (1 << 20)) * deadlines.perMiB_ms);
    // AbortSignal.timeout() costs more, and stays until its time has come, however soon the answer does
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(), ms);
    try {
      const result = await unless(late.signal, call, attempt);
      if (!(result instanceof GivenUp)) return result;
      throw new StorageError('timeout', call.subject, {
        providerMessage: `no answer within ${ms} ms`, ambiguous: !HARMLESS.has(call.operation), cause: result.cause,
      });
    } finally {
      clearTimeout(timer);
    }
  });
}
