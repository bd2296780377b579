/** --seccomp: a filter in the kernel for every system call of every thread (seccomp(2)), written in classic BPF. */
import { readdirSync, readlinkSync } from 'node:fs';
import { E, errnoName } from '../base/errno.js';
import type { Logger } from '../base/log.js';
import { AF_UNIX, CLONE_FS, SOCK_STREAM } from '../ffi/constants.js';
import { installFilter, setNoNewPrivileges } from '../ffi/privileges.js';
import { StartError } from '../lifecycle/errors.js';
import { seccompAction, usesFileHandles, type ConfineOptions, type SeccompAction } from './policy.js';
import { ABSENT, EXAMINED, FILE_HANDLES, FORBIDDEN, SOCKETS } from './system-calls.js';

export type Architecture = 'x64' | 'arm64';

/** What the kernel does with a call (include/uapi/linux/seccomp.h); the low 16 bits are data, here an errno. */
export const RETURN = { KILL_PROCESS: 0x8000_0000, TRAP: 0x0003_0000, ERRNO: 0x0005_0000, LOG: 0x7ffc_0000, ALLOW: 0x7fff_0000 } as const;
const RETURN_OF = { kill: RETURN.KILL_PROCESS, trap: RETURN.TRAP, log: RETURN.LOG } as const;
const AF_INET = 2;
const AF_INET6 = 10;
/** How the C library asks for the addresses of this machine, before it looks up a name. */
const AF_NETLINK = 16;
const NETLINK_ROUTE = 0;
/** SOCK_TYPE_MASK: flags are above. */
const SOCKET_TYPES = 0xf;

/** AUDIT_ARCH_X86_64, AUDIT_ARCH_AARCH64 (include/uapi/linux/audit.h). */
const AUDIT_ARCH = { x64: 0xc000_003e, arm64: 0xc000_00b7 } as const;
/** __X32_SYSCALL_BIT: numbers of an ABI for 32-bit pointers that passes the same architecture. */
const X32_BIT = 0x4000_0000;
const CLONE_THREAD = 0x0001_0000;
/** ioctls by which a program types into the terminal that it was started from (TIOCSTI, TIOCLINUX), or names who gets a descriptor's signals (FIOSETOWN, SIOCSPGRP). */
const FORBIDDEN_IOCTLS = [0x5412, 0x541c, 0x8901, 0x8902];
/** F_SETOWN, F_SETSIG, F_SETOWN_EX: every signal to every process of the same user, by way of a descriptor. */
const FORBIDDEN_FCNTLS = [8, 10, 15];

/** What the options need beyond what every daemon does. */
export interface FilterNeeds {
  /** open_by_handle_at(2), for --inode-file-handles. */
  readonly fileHandles: boolean;
  /** New connections to Unix sockets, for a syslog daemon that was started again. */
  readonly unixSockets: boolean;
  /** Connections to others, and the look-up of their names. */
  readonly network: boolean;
}

/** struct seccomp_data: nr, arch, instruction_pointer, args[6]. Both machines are little-endian: the low word comes first. */
const NR = 0;
const ARCH = 4;
const argument = (index: number): number => 16 + 8 * index;

const LOAD = 0x20; // BPF_LD | BPF_W | BPF_ABS
const JUMP_EQUAL = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
const JUMP_AT_LEAST = 0x35; // BPF_JMP | BPF_JGE | BPF_K
const JUMP_ANY_BIT = 0x45; // BPF_JMP | BPF_JSET | BPF_K
const RETURN_VALUE = 0x06; // BPF_RET | BPF_K

const ARCHITECTURE: Architecture = process.arch === 'arm64' ? 'arm64' : 'x64';

/** Where a jump goes: to one of the returns at the end, or `n` instructions ahead. */
type Target = 'allow' | 'refuse' | 'absent' | 'deny' | number;
type Instruction = readonly [code: number, k: number, yes?: Target, no?: Target];

/** The filter as an array of struct sock_filter; `pid` is the process that it is for. */
export function filterProgram(action: SeccompAction, architecture: Architecture, pid: number, needs: FilterNeeds): Uint8Array {
  const at = architecture === 'arm64' ? 1 : 0;
  const numbersOf = (table: Readonly<Record<string, readonly [number, number | null]>>): number[] =>
    Object.values(table).flatMap((numbers) => numbers[at] ?? []);
  // Libraries that connect try both by themselves, and go on when it fails: name services of the host, programs that may know a project
  const tried = needs.network ? 'deny' : 'refuse';
  const { connect, bind, listen } = SOCKETS;
  const sockets = needs.network ? { listen } : needs.unixSockets ? {} : { connect, bind, listen };
  const body: Instruction[] = [
    [LOAD, ARCH],
    [JUMP_EQUAL, AUDIT_ARCH[architecture], 0, 'refuse'],
    [LOAD, NR],
    ...(architecture === 'x64' ? [[JUMP_AT_LEAST, X32_BIT, 'refuse', 0] as const] : []),
    ...[...numbersOf(FORBIDDEN), ...(needs.fileHandles ? [] : numbersOf(FILE_HANDLES)), ...numbersOf(sockets)].map((nr) => [JUMP_EQUAL, nr, 'refuse', 0] as const),
    ...numbersOf(ABSENT).map((nr) => [JUMP_EQUAL, nr, 'absent', 0] as const),
    [JUMP_EQUAL, EXAMINED.clone[at], 0, 2],
    [LOAD, argument(0)],
    [JUMP_ANY_BIT, CLONE_THREAD, 'allow', tried],
    [JUMP_EQUAL, EXAMINED.unshare[at], 0, 2],
    [LOAD, argument(0)],
    [JUMP_EQUAL, CLONE_FS, 'allow', 'refuse'],
    ...(needs.network ? networkSockets(at, needs.unixSockets) : unixSockets(at, needs.unixSockets)),
    [JUMP_EQUAL, EXAMINED.kill[at], 1, 0],
    [JUMP_EQUAL, EXAMINED.tgkill[at], 0, 2],
    [LOAD, argument(0)],
    [JUMP_EQUAL, pid, 'allow', 'refuse'],
    [JUMP_EQUAL, EXAMINED.prlimit64[at], 0, 3],
    [LOAD, argument(0)],
    [JUMP_EQUAL, 0, 'allow', 0],
    [JUMP_EQUAL, pid, 'allow', 'refuse'],
    [JUMP_EQUAL, EXAMINED.fcntl[at], 0, 1 + FORBIDDEN_FCNTLS.length],
    [LOAD, argument(1)],
    ...FORBIDDEN_FCNTLS.map((command, i) => [JUMP_EQUAL, command, 'refuse', i === FORBIDDEN_FCNTLS.length - 1 ? 'allow' : 0] as const),
    [JUMP_EQUAL, EXAMINED.ioctl[at], 0, 'allow'],
    [LOAD, argument(1)],
    ...FORBIDDEN_IOCTLS.map((request) => [JUMP_EQUAL, request, 'refuse', 0] as const),
  ];
  return assemble(body, RETURN_OF[action]);
}

function unixSockets(at: 0 | 1, made: boolean): Instruction[] {
  return [
    [JUMP_EQUAL, EXAMINED.socket[at], made ? 1 : 'refuse', 0],
    [JUMP_EQUAL, EXAMINED.socketpair[at], 0, 2],
    [LOAD, argument(0)],
    [JUMP_EQUAL, AF_UNIX, 'allow', 'refuse'],
  ];
}

/** Of pairs only streams, which stay connected; one for datagrams could be connected to any other socket. Node takes a stream for what a program writes, before it has none. */
function networkSockets(at: 0 | 1, unix: boolean): Instruction[] {
  return [
    [JUMP_EQUAL, EXAMINED.socketpair[at], 0, 4],
    [LOAD, argument(0)],
    [JUMP_EQUAL, AF_UNIX, 0, 'refuse'],
    [LOAD, argument(1)],
    [JUMP_ANY_BIT, SOCKET_TYPES & ~SOCK_STREAM, 'deny', 'allow'],
    [JUMP_EQUAL, EXAMINED.socket[at], 0, 7],
    [LOAD, argument(0)],
    [JUMP_EQUAL, AF_INET, 'allow', 0],
    [JUMP_EQUAL, AF_INET6, 'allow', 0],
    [JUMP_EQUAL, AF_UNIX, unix ? 'allow' : 'deny', 0],
    [JUMP_EQUAL, AF_NETLINK, 0, 'refuse'],
    [LOAD, argument(2)],
    [JUMP_EQUAL, NETLINK_ROUTE, 'allow', 'refuse'],
  ];
}

function assemble(body: readonly Instruction[], refusal: number): Uint8Array {
  const ends = { allow: body.length, refuse: body.length + 1, absent: body.length + 2, deny: body.length + 3 } as const;
  const returns = [RETURN.ALLOW, refusal, RETURN.ERRNO | E.NOSYS, RETURN.ERRNO | E.ACCES];
  const all: Instruction[] = [...body, ...returns.map((value) => [RETURN_VALUE, value] as const)];
  const bytes = new Uint8Array(8 * all.length);
  const view = new DataView(bytes.buffer);
  all.forEach(([code, k, yes = 0, no = 0], index) => {
    const distance = (target: Target): number => (typeof target === 'number' ? target : ends[target] - index - 1);
    if (distance(yes) > 255 || distance(no) > 255) throw new Error('a jump of the filter is too far');
    view.setUint16(8 * index, code, true);
    view.setUint8(8 * index + 2, distance(yes));
    view.setUint8(8 * index + 3, distance(no));
    view.setUint32(8 * index + 4, k, true);
  });
  return bytes;
}

/** Does this process have a ring already (libuv of Node 22 and later makes one at its start)? A call by way of it is seen by no filter. */
export function usesIoUring(): boolean {
  return readdirSync('/proc/self/fd').some((fd) => {
    try {
      return readlinkSync(`/proc/self/fd/${fd}`) === 'anon_inode:[io_uring]';
    } catch {
      return false; // the descriptor of this very listing is closed by now
    }
  });
}

/** The program that this process becomes finds no io_uring in its kernel, and does without. 0, or −errno. */
export function hideIoUring(): number {
  setNoNewPrivileges();
  const at = ARCHITECTURE === 'arm64' ? 1 : 0;
  const body: Instruction[] = [
    [LOAD, ARCH],
    [JUMP_EQUAL, AUDIT_ARCH[ARCHITECTURE], 0, 'allow'],
    [LOAD, NR],
    [JUMP_EQUAL, ABSENT.io_uring_setup[at], 'absent', 0],
  ];
  return installFilter(assemble(body, RETURN.ALLOW));
}

/** The last step of the start: from now on the filter is in force. @throws StartError if this kernel cannot, and --seccomp does not leave that open */
export function filterCalls(options: ConfineOptions & { readonly syslog: boolean }, log: Pick<Logger, 'warn'>, bucket = false): void {
  const action = seccompAction(options);
  if (action === 'none') return;
  try {
    applySeccomp(action, { fileHandles: !bucket && usesFileHandles(options), unixSockets: options.syslog, network: bucket });
  } catch (error) {
    if (options.seccomp !== 'auto' || !(error instanceof StartError)) throw error;
    log.warn({}, `--seccomp=auto: there is no filter of system calls (${error.message})`);
  }
}

/** From now on, for every thread of this process, those to come among them. StartError if this kernel cannot. */
export function applySeccomp(action: SeccompAction, needs: FilterNeeds): void {
  if (usesIoUring()) throw new StartError(`--seccomp=${action} cannot be set up, since this Node does not start without io_uring: use another version of Node.js`);
  setNoNewPrivileges();
  const result = installFilter(filterProgram(action, ARCHITECTURE, process.pid, needs));
  if (result !== 0) {
    throw new StartError(`--seccomp=${action} cannot be set up (${errnoName(result)}): this kernel needs CONFIG_SECCOMP_FILTER; use --seccomp=none, and SystemCallFilter= as in deploy/bucketfsd@.service`);
  }
}
