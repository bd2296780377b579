/** Landlock (landlock(7)): what the calling thread, and the programs that it becomes, may still do by path, to processes and on the network. Needs no_new_privs. */
import * as c from './libc.js';
import { NativeMemory } from './memory.js';
import { O_CLOEXEC, O_PATH } from './constants.js';

/** LANDLOCK_ACCESS_FS_*, by the version of Landlock that knows them. */
export const ACCESS = {
  EXECUTE: 1, WRITE_FILE: 2, READ_FILE: 4, READ_DIR: 8, REMOVE_DIR: 16, REMOVE_FILE: 32, MAKE_CHAR: 64, MAKE_DIR: 128, MAKE_REG: 256, MAKE_SOCK: 512, MAKE_FIFO: 1024,
  MAKE_BLOCK: 2048, MAKE_SYM: 4096, REFER: 8192, TRUNCATE: 16384, IOCTL_DEV: 32768,
} as const;

const CREATE_RULESET_VERSION = 1;
const RULE_PATH_BENEATH = 1;
/** LANDLOCK_ACCESS_NET_BIND_TCP is 1, CONNECT_TCP 2. */
const DENIED_TCP = { all: 0n, connect: 1n, none: 3n } as const;
const SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL = 3;

/** 0: this kernel has none, or it is switched off. */
export function landlockVersion(): number {
  return Math.max(0, c.syscall6(c.syscallNumber('landlock_create_ruleset'), 0, 0, CREATE_RULESET_VERSION, 0, 0, 0));
}

/** Everything that version knows of file systems; ACCESS.REFER, without which nothing is renamed to another directory, since version 2. */
export function handledAccess(version: number): number {
  const since: readonly (readonly [number, number])[] = [[2, ACCESS.REFER], [3, ACCESS.TRUNCATE], [5, ACCESS.IOCTL_DEV]];
  return since.reduce((all, [first, access]) => (version >= first ? all | access : all), ACCESS.REFER - 1);
}

export interface Domain {
  readonly version: number;
  /** Of file systems, `handled` bits of ACCESS, but for what is below these paths; 0: all paths as before. */
  readonly handled: number;
  readonly paths: readonly { readonly path: string; readonly access: number }[];
  /** What is left of TCP, since version 4. */
  readonly tcp: 'all' | 'connect' | 'none';
}

/** The calling thread enters the domain for good; since version 6 it sends no signals, and has no connections to abstract sockets, outside of it. @throws SysError */
export function enterDomain({ version, handled, paths, tcp }: Domain): void {
  // 0 struct landlock_ruleset_attr: file systems, network, scopes; 32 struct landlock_path_beneath_attr: access, descriptor
  const mem = NativeMemory.allocate(64);
  mem.dv.setBigUint64(0, BigInt(handled), true);
  mem.dv.setBigUint64(8, version >= 4 ? DENIED_TCP[tcp] : 0n, true);
  mem.dv.setBigUint64(16, version >= 6 ? BigInt(SCOPE_ABSTRACT_UNIX_SOCKET_AND_SIGNAL) : 0n, true);
  const bytes = version >= 6 ? 24 : version >= 4 ? 16 : 8;
  const ruleset = c.check(c.syscall6(c.syscallNumber('landlock_create_ruleset'), mem.address, bytes, 0, 0, 0, 0), 'landlock_create_ruleset');
  try {
    for (const { path, access } of paths) {
      const fd = c.check(c.open(path, O_PATH | O_CLOEXEC, 0), 'open', path);
      mem.dv.setBigUint64(32, BigInt(access & handled), true);
      mem.dv.setInt32(40, fd, true);
      try {
        c.check(c.syscall6(c.syscallNumber('landlock_add_rule'), ruleset, RULE_PATH_BENEATH, mem.address + 32, 0, 0, 0), 'landlock_add_rule', path);
      } finally {
        c.close(fd);
      }
    }
    c.check(c.syscall6(c.syscallNumber('landlock_restrict_self'), ruleset, 0, 0, 0, 0, 0), 'landlock_restrict_self');
  } finally {
    c.close(ruleset);
    mem.free();
  }
}
