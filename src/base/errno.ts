/**
 * Linux error numbers (include/uapi/asm-generic/errno*.h); the same on x86-64 and arm64.
 * Handlers return them negated, as the kernel does.
 */
export const E = {
  PERM: 1,
  NOENT: 2,
  INTR: 4,
  IO: 5,
  NXIO: 6,
  BIG: 7,
  BADF: 9,
  AGAIN: 11,
  NOMEM: 12,
  ACCES: 13,
  FAULT: 14,
  BUSY: 16,
  EXIST: 17,
  XDEV: 18,
  NODEV: 19,
  NOTDIR: 20,
  ISDIR: 21,
  INVAL: 22,
  NFILE: 23,
  MFILE: 24,
  NOTTY: 25,
  TXTBSY: 26,
  FBIG: 27,
  NOSPC: 28,
  SPIPE: 29,
  ROFS: 30,
  MLINK: 31,
  PIPE: 32,
  RANGE: 34,
  DEADLK: 35,
  NAMETOOLONG: 36,
  NOLCK: 37,
  NOSYS: 38,
  NOTEMPTY: 39,
  LOOP: 40,
  NODATA: 61,
  PROTO: 71,
  OVERFLOW: 75,
  OPNOTSUPP: 95,
  ADDRINUSE: 98,
  CONNRESET: 104,
  NOTCONN: 107,
  CONNREFUSED: 111,
  STALE: 116,
  DQUOT: 122,
} as const;

const NAMES = new Map<number, string>(Object.entries(E).map(([name, code]) => [code, `E${name === 'BIG' ? '2BIG' : name}`]));

/** The kernel takes no larger errno in a reply: ERESTARTSYS and what follows are its own (fuse_dev_do_write() in Linux). */
export const ERRNO_MAX = 511;

/**
 * Rule: the sign of a thrown system error is decided here only. node:fs throws a negated errno, SysError has it as errno(3) does, and both have codes that
 * are no errno of Linux (0, libuv's own): those are EIO.
 * @returns −errno; null for what is no error of a system call
 */
export function thrownErrno(error: unknown): number | null {
  const { errno, syscall } = error as { errno?: unknown; syscall?: unknown };
  if (typeof errno !== 'number' || typeof syscall !== 'string') return null;
  const size = Math.abs(errno);
  return Number.isInteger(size) && size >= 1 && size <= ERRNO_MAX ? -size : -E.IO;
}

/** There is no more room on a disk, or for this user. */
export const isDiskFull = (errno: number): boolean => errno === E.NOSPC || errno === E.DQUOT;

/** `ENOENT` for 2 and −2; `errno 200` for one that has no name here. */
export function errnoName(errno: number): string {
  return NAMES.get(Math.abs(errno)) ?? `errno ${Math.abs(errno)}`;
}

/** An error as node:fs throws it: `errno` is negative. */
export function systemError(errno: number, syscall: string, message: string): NodeJS.ErrnoException {
  return Object.assign(new Error(`${errnoName(errno)}: ${message}, ${syscall}`), { errno: -errno, code: errnoName(errno), syscall });
}
