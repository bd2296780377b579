/** Resource limits of the process (getrlimit(2)): two unsigned 64-bit numbers, all ones for "no limit". */
import * as c from './libc.js';
import { NativeMemory } from './memory.js';
import { RLIMIT_NOFILE } from './constants.js';

export interface Limit {
  /** Infinity: no limit. */
  soft: number;
  hard: number;
}

const RLIM_INFINITY = 2n ** 64n - 1n;
// SAFETY: one struct rlimit (16 bytes) for the calling thread; both calls are synchronous.
const mem = NativeMemory.allocate(16);

function decode(value: bigint): number {
  return value === RLIM_INFINITY ? Infinity : Number(value);
}

function encode(value: number): bigint {
  return value === Infinity ? RLIM_INFINITY : BigInt(value);
}

/** The limit of open descriptors. */
export function fileLimit(): Limit {
  c.check(c.getrlimit(RLIMIT_NOFILE, mem.address), 'getrlimit');
  return { soft: decode(mem.dv.getBigUint64(0, true)), hard: decode(mem.dv.getBigUint64(8, true)) };
}

/** 0, or −errno: EPERM for a hard limit that may not be raised. */
export function setFileLimit(limit: Limit): number {
  mem.dv.setBigUint64(0, encode(limit.soft), true);
  mem.dv.setBigUint64(8, encode(limit.hard), true);
  return c.neg(c.setrlimit(RLIMIT_NOFILE, mem.address));
}
