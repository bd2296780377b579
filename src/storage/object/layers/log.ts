/** A line for each call that a store answers: what changes the bucket at debug, what only asks at trace. */
import type { Logger } from '../../../base/log.js';
import type { ObjectStore } from '../store.js';
import { intercept, type Call } from './intercept.js';

const ASKING: ReadonlySet<Call['operation']> = new Set<Call['operation']>(['check', 'head', 'read', 'fetch', 'list', 'listUploads']);

/** The store itself where nobody reads such lines. */
export function withLog(store: ObjectStore, log: Pick<Logger, 'debug' | 'trace' | 'enabled'>): ObjectStore {
  if (!log.enabled('debug')) return store;
  return intercept(store, async (call, attempt) => {
    const level = ASKING.has(call.operation) ? 'trace' : 'debug';
    const began_ms = performance.now();
    const line = (fields: Record<string, unknown>, outcome: string): void => {
      const ms = Math.round((performance.now() - began_ms) * 10) / 10;
      log[level]({ operation: call.operation, ...(call.bytes > 0 ? { bytes: call.bytes } : {}), ms, ...fields }, `${call.subject}: ${outcome}`);
    };
    try {
      const result = await attempt(call.signal);
      line({}, 'done');
      return result;
    } catch (error) {
      line({ error: (error as Error).message }, 'failed');
      throw error;
    }
  });
}
