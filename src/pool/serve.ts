import { E } from '../base/errno.js';
import { neg } from '../ffi/libc.js';
import type { PoolMessage, SystemCall } from './calls.js';

/**
 * The whole of a worker: a function that makes one system call of `table` on the worker's thread and returns its result,
 * or −errno. A name that is not in the table is −ENOSYS.
 */
export function serve(table: Readonly<Record<string, SystemCall>>): (message: PoolMessage) => number {
  const calls = new Map(Object.entries(table));
  return ([name, a, b, c, d, e, f]) => {
    const call = calls.get(name);
    return call === undefined ? -E.NOSYS : neg(call(a, b, c, d, e, f));
  };
}
