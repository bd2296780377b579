/** What the calling thread may still do: capabilities (capabilities(7)), no_new_privs and system call filters (seccomp(2)). */
import koffi from 'koffi';
import { _LINUX_CAPABILITY_VERSION_3 } from './constants.js';
import * as c from './libc.js';
import { NativeMemory } from './memory.js';

const lib = koffi.load('libc.so.6');
const prctl = lib.func('int prctl(int op, uint64 a, uint64 b, uint64 c, uint64 d)') as (op: number, a: number, b: number, c: number, d: number) => number;

const PR_CAPBSET_READ = 23;
const PR_CAPBSET_DROP = 24;
const PR_SET_NO_NEW_PRIVS = 38;
const PR_CAP_AMBIENT = 47;
const PR_CAP_AMBIENT_CLEAR_ALL = 4;
const SECCOMP_SET_MODE_FILTER = 1;
const SECCOMP_FILTER_FLAG_TSYNC = 1;
/** struct sock_filter: code, jt, jf, k. */
const SOCK_FILTER_BYTES = 8;

/** Is the capability in the bounding set? False also for a number that this kernel does not know. */
export function inBoundingSet(capability: number): boolean {
  return prctl(PR_CAPBSET_READ, capability, 0, 0, 0) === 1;
}

/** The thread and the programs that it becomes never have the capability again. 0, or −errno: EPERM without CAP_SETPCAP. */
export function dropFromBoundingSet(capability: number): number {
  return c.neg(prctl(PR_CAPBSET_DROP, capability, 0, 0, 0));
}

/** Nothing is handed on to programs but by the bounding set. */
export function clearInheritable(): void {
  c.check(prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0), 'prctl', 'PR_CAP_AMBIENT');
  // header(8) | 64 three words (effective, permitted, inheritable) for each half of the set
  const mem = NativeMemory.allocate(128);
  mem.u32[0] = _LINUX_CAPABILITY_VERSION_3;
  c.check(c.syscall6(c.syscallNumber('capget'), mem.address, mem.address + 64, 0, 0, 0, 0), 'capget');
  mem.u32[16 + 2] = 0;
  mem.u32[16 + 5] = 0;
  c.check(c.syscall6(c.syscallNumber('capset'), mem.address, mem.address + 64, 0, 0, 0, 0), 'capset');
  mem.free();
}

/** No program that is executed from here on gains rights by set-user-ID bits or file capabilities. */
export function setNoNewPrivileges(): void {
  c.check(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 'prctl', 'PR_SET_NO_NEW_PRIVS');
}

/** Every thread of the process, now and later, is under the filter: an array of struct sock_filter. 0, or −errno. */
export function installFilter(program: Uint8Array): number {
  const mem = NativeMemory.allocate(16 + program.length);
  mem.u8.set(program, 16);
  // struct sock_fprog: unsigned short len, then the address
  mem.dv.setUint16(0, program.length / SOCK_FILTER_BYTES, true);
  mem.dv.setBigUint64(8, BigInt(mem.address + 16), true);
  const result = c.neg(c.syscall6(c.syscallNumber('seccomp'), SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, mem.address, 0, 0, 0));
  mem.free();
  return result;
}
