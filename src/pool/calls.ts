/**
 * The system calls a pool worker makes, by name. All arguments are numbers: descriptors, flags, byte counts, and
 * addresses of native memory, which are valid in every thread of the process.
 *
 * To add a call, add its row. What does not belong here: calls that may wait for another request of the same guest
 * (F_OFD_SETLKW, flock without LOCK_NB), since enough of them would hold every worker and nobody could release them;
 * and calls that depend on the caller's fsuid, fsgid, groups, capabilities or umask, which belong to a thread.
 */
import * as c from '../ffi/libc.js';

/** A libc function by its raw convention: −1 and errno on failure. Surplus arguments are ignored. */
export type SystemCall = (a: number, b: number, c: number, d: number, e: number, f: number) => number;

export const CALLS = {
  preadv2: c.preadv2,
  pwritev2: c.pwritev2,
  fsync: c.fsync,
  fdatasync: c.fdatasync,
  syncfs: c.syncfs,
  fallocate: c.fallocate,
  copy_file_range: c.copyFileRange,
  close: c.close,
} as const satisfies Record<string, SystemCall>;

export type PoolCall = keyof typeof CALLS;

/** What travels to a worker: the name of the call and its six arguments. An empty name asks for nothing. */
export type PoolMessage = [call: string, a: number, b: number, c: number, d: number, e: number, f: number];
