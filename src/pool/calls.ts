/**
 * What a pool worker does, by name: the steps of the local file system. All arguments are numbers: descriptors, flags,
 * byte counts, and addresses of native memory, which are valid in every thread of the process.
 *
 * What does not belong here: calls that may wait for another request of the same guest (F_OFD_SETLKW, flock without
 * LOCK_NB), since enough of them would hold every worker and nobody could release them.
 */
import { STEPS } from '../storage/local/steps.js';

/** @returns a result or −errno. */
export type PoolFunction = (...args: number[]) => number;

export const CALLS = { ...STEPS } as const satisfies Record<string, PoolFunction>;

export type PoolCall = keyof typeof CALLS;

/** What travels to a worker: the name of the call and its arguments. An empty name asks for nothing. */
export type PoolMessage = [call: string, ...args: number[]];
