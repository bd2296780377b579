import { E } from '../base/errno.js';
import type { PoolFunction, PoolMessage } from './calls.js';

/**
 * The whole of a worker: a function that makes one call of `table` on the worker's thread and returns its result, or
 * −errno. A name that is not in the table is −ENOSYS.
 */
export function serve(table: Readonly<Record<string, PoolFunction>>): (message: PoolMessage) => number {
  const calls = new Map(Object.entries(table));
  return ([name, ...args]) => {
    const call = calls.get(name);
    return call === undefined ? -E.NOSYS : call(...args);
  };
}
