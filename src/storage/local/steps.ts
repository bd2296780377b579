/**
 * What a pool thread does for one request on storage that may take long: a few system calls that belong together, on
 * plain numbers (descriptors, addresses, flags), without nodes, handles or options. Each returns its result or −errno.
 *
 * They run on a thread that stays the daemon's own between steps: fsuid, groups, capabilities and, after
 * unshare(CLONE_FS), also the umask are the thread's alone. Descriptors that a step returns belong to the caller.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import {
  AT_EACCESS, AT_EMPTY_PATH, AT_FDCWD, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, CLONE_FS, F_DUPFD_CLOEXEC, O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK, O_PATH, O_RDONLY, SEEK_SET,
} from '../../ffi/constants.js';
import { STATX_BASIC_STATS, STATX_BTIME, STATX_MNT_ID } from '../statx.js';
import { Credentials } from './credentials.js';
import { FATTR } from '../fuse-flags.js';
import { projectRefusal } from './inode-flags.js';
import { LEASED, guardTruncation } from './leases.js';

/** What is asked of statx(2) about an inode. */
export const ATTR_MASK = STATX_BASIC_STATS | STATX_BTIME | STATX_MNT_ID;

/** make(): which call. */
export const MAKE_NODE = 0;
export const MAKE_DIRECTORY = 1;
export const MAKE_SYMLINK = 2;

/** A creation with a umask cannot be done on this thread (it may not have a umask of its own). No errno is that large. */
export const NOT_HERE = -0x3fffffff;

const EMPTY_PATH = NativeMemory.allocate(4096).address;

let identity: Credentials | null = null;
const credentials = (): Credentials => (identity ??= new Credentials());

let ownUmask: boolean | null = null;

/** Detach the thread's umask from that of the others, which create files at the same time; once. */
function hasOwnUmask(): boolean {
  if (ownUmask === null) {
    ownUmask = c.unshare(CLONE_FS) === 0;
    if (ownUmask) c.umask(0);
  }
  return ownUmask;
}

/** Run a creating call as (uid, gid, supp) with `umask` (0: none). */
function become(uid: number, gid: number, supp: number, umask: number, call: () => number): number {
  if (umask !== 0 && !hasOwnUmask()) return NOT_HERE;
  const error = credentials().enter(uid, gid, supp);
  if (error < 0) return error;
  if (umask !== 0) c.umask(umask);
  const result = c.neg(call());
  if (umask !== 0) c.umask(0);
  credentials().leave(uid, gid, supp);
  return result;
}

const withoutFsetid = (drop: number, call: () => number): number => credentials().withoutFsetid(drop > 0, call);

/** An O_PATH descriptor of a name, with its attributes at `attr`. */
function find(dir: number, name: number, attr: number): number {
  return described(c.neg(c.openat(dir, name, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0)), attr);
}

function described(fd: number, attr: number): number {
  if (fd < 0) return fd;
  const error = stat(fd, attr);
  if (error === 0) return fd;
  c.close(fd);
  return error;
}

function stat(fd: number, attr: number): number {
  return c.neg(c.statx(fd, EMPTY_PATH, AT_EMPTY_PATH, ATTR_MASK, attr));
}

function label(path: number, name: number, value: number, length: number): number {
  return name === 0 ? 0 : c.neg(c.setxattr(path, name, value, length, 0));
}

/**
 * mknodat(2), mkdirat(2) or symlinkat(2) (`extra`: rdev or target) as the caller, then find(); with a security
 * context if `labelName` is not 0.
 */
function make(
  kind: number, dir: number, name: number, mode: number, extra: number, uid: number, gid: number, supp: number, umask: number,
  attr: number, labelName: number, labelValue: number, labelLength: number,
): number {
  const made = become(uid, gid, supp, umask, () =>
    kind === MAKE_NODE ? c.mknodat(dir, name, mode, extra) : kind === MAKE_DIRECTORY ? c.mkdirat(dir, name, mode) : c.symlinkat(extra, dir, name));
  if (made < 0) return made;
  const fd = find(dir, name, attr);
  if (fd < 0) return fd;
  const error = label(procPath(fd), labelName, labelValue, labelLength);
  if (error === 0) return fd;
  c.close(fd);
  c.unlinkat(dir, name, kind === MAKE_DIRECTORY ? AT_REMOVEDIR : 0);
  return error;
}

const paths = NativeMemory.allocate(4096);
const procPath = (fd: number): number => paths.putString(0, `/proc/self/fd/${fd}`);

/** openat(2) with O_CREAT or O_TMPFILE as the caller, and the security context. `unlink`: the name goes if that fails. */
function create(
  dir: number, name: number, flags: number, mode: number, uid: number, gid: number, supp: number, umask: number,
  unlink: number, labelName: number, labelValue: number, labelLength: number,
): number {
  const fd = become(uid, gid, supp, umask, () => c.openat(dir, name, flags, mode));
  if (fd < 0) return fd;
  const error = label(procPath(fd), labelName, labelValue, labelLength);
  if (error === 0) return fd;
  c.close(fd);
  if (unlink !== 0) c.unlinkat(dir, name, 0);
  return error;
}

/** An O_PATH descriptor of what the descriptor number at `name` below /proc/self/fd has open, with attributes. */
function reopen(procFd: number, name: number, attr: number): number {
  return described(c.neg(c.openat(procFd, name, O_PATH | O_CLOEXEC, 0)), attr);
}

/**
 * SETATTR on an O_PATH descriptor whose number is at `name`: what `valid` has, in FUSE's order, then the attributes.
 * `handle`: an open descriptor to truncate by, or −1. `capability`: name of an attribute that a change of owner or size removes, or 0.
 */
function setattr(
  fd: number, procFd: number, name: number, valid: number, mode: number, uid: number, gid: number, handle: number,
  size: number, times: number, attr: number, capability: number,
): number {
  const guard = (valid & FATTR.SIZE) !== 0 && handle < 0 ? guardTruncation(procFd, name) : -1;
  if (guard === LEASED) return LEASED;
  let error = 0;
  if ((valid & (FATTR.UID | FATTR.GID | FATTR.SIZE)) !== 0) removeCapability(procPath(fd), capability);
  if ((valid & FATTR.MODE) !== 0) error = c.neg(c.fchmodat(procFd, name, mode, 0));
  if (error === 0 && (valid & (FATTR.UID | FATTR.GID)) !== 0) error = c.neg(c.fchownat(fd, EMPTY_PATH, uid, gid, AT_EMPTY_PATH));
  if (error === 0 && (valid & FATTR.SIZE) !== 0) {
    // Not ftruncate(2) without a handle: it moves the times also where the size stays
    error = withoutFsetid(valid & FATTR.KILL_SUIDGID, () => c.neg(handle >= 0 ? c.ftruncate(handle, size) : c.truncate(procPath(fd), size)));
  }
  if (error === 0 && (valid & (FATTR.ATIME | FATTR.MTIME)) !== 0) error = c.neg(c.utimensat(fd, EMPTY_PATH, times, AT_EMPTY_PATH));
  if (guard >= 0) c.close(guard);
  return error === 0 ? stat(fd, attr) : error;
}

/** What --xattrmap has made of security.capability; 0: nothing. See Share.dropCapability(). */
function removeCapability(path: number, capability: number): void {
  if (capability !== 0) c.removexattr(path, capability);
}

/** linkat(2) of the inode whose descriptor number is at `from`, then find(). */
function link(procFd: number, from: number, dir: number, name: number, attr: number): number {
  const error = c.neg(c.linkat(procFd, from, dir, name, AT_SYMLINK_FOLLOW));
  return error < 0 ? error : find(dir, name, attr);
}

function access(procFd: number, name: number, mask: number, uid: number, gid: number, supp: number): number {
  return become(uid, gid, supp, 0, () => c.faccessat(procFd, name, mask, AT_EACCESS));
}

/** Entries from `position` on. @returns bytes of struct linux_dirent64 at `buffer`. */
function list(fd: number, position: number, buffer: number, bytes: number): number {
  if (c.lseek(fd, position, SEEK_SET) === -1) return -c.errno();
  return c.neg(c.getdents64(fd, buffer, bytes));
}

/** What closing a descriptor of the file would report. */
function flush(fd: number): number {
  const copy = c.neg(c.fcntl(fd, F_DUPFD_CLOEXEC, 0));
  return copy < 0 ? copy : c.neg(c.close(copy));
}

/** ioctl(2) on `fd`, or, if that is negative, on a descriptor opened for it by the number at `name`. `projects`: whether it may change the project. */
function ioctl(fd: number, procFd: number, name: number, command: number, argument: number, projects: number): number {
  const target = fd >= 0 ? fd : c.neg(c.openat(procFd, name, O_RDONLY | O_NONBLOCK | O_CLOEXEC, 0));
  if (target < 0) return target;
  const refused = projects !== 0 ? 0 : projectRefusal(target, command, argument);
  const result = refused < 0 ? refused : c.neg(c.ioctl(target, command, argument));
  if (fd < 0) c.close(target);
  return result;
}

/** Most new files are there by then. */
const NOMEM_TRIES = 20;
const ROOT_PATH = NativeMemory.allocate(16).putString(0, '/');

/**
 * open_by_handle_at(2). ENOMEM is also what Linux says while the inode number is just being given to a new file, so that the handle's file
 * is gone: iget_locked() finds an inode with I_CREATING, for as long as whoever makes it waits for the disk. Where there is memory for
 * another descriptor it is that: ESTALE.
 */
export function openByHandle(mountFd: number, handle: number, flags: number): number {
  let fd = c.neg(c.openByHandleAt(mountFd, handle, flags));
  for (let tries = 0; fd === -E.NOMEM && tries < NOMEM_TRIES; tries++) {
    c.schedYield();
    fd = c.neg(c.openByHandleAt(mountFd, handle, flags));
  }
  if (fd !== -E.NOMEM) return fd;
  const other = c.neg(c.openat(AT_FDCWD, ROOT_PATH, O_PATH | O_CLOEXEC, 0));
  if (other >= 0) c.close(other);
  return other === -E.NOMEM ? other : -E.STALE;
}

/** Every step by name. `drop` among the arguments: without CAP_FSETID, so that set-id bits are cleared. */
export const STEPS = {
  find,
  stat,
  make,
  create,
  reopen,
  setattr,
  link,
  access,
  list,
  flush,
  ioctl,
  unlink: (dir: number, name: number, flags: number) => c.neg(c.unlinkat(dir, name, flags)),
  rename: (from: number, name: number, to: number, name2: number, flags: number) => c.neg(c.renameat2(from, name, to, name2, flags)),
  readlink: (fd: number, buffer: number, bytes: number) => c.neg(c.readlinkat(fd, EMPTY_PATH, buffer, bytes)),
  open: (procFd: number, name: number, flags: number, drop: number) => withoutFsetid(drop, () => c.neg(c.openat(procFd, name, flags, 0))),
  openHandle: openByHandle,
  statfs: (fd: number, buffer: number) => c.neg(c.statvfs(fd, buffer)),
  setxattr: (path: number, name: number, value: number, length: number, flags: number, drop: number) =>
    withoutFsetid(drop, () => c.neg(c.setxattr(path, name, value, length, flags))),
  getxattr: (path: number, name: number, buffer: number, bytes: number) => c.neg(c.getxattr(path, name, buffer, bytes)),
  listxattr: (path: number, buffer: number, bytes: number) => c.neg(c.listxattr(path, buffer, bytes)),
  removexattr: (path: number, name: number) => c.neg(c.removexattr(path, name)),
  read: (fd: number, iovecs: number, count: number, offset: number) => c.neg(c.preadv2(fd, iovecs, count, offset, 0)),
  /** `rwf`: flags of pwritev2(2). `path` and `capability`: an attribute that a write removes, or 0. */
  write(fd: number, iovecs: number, count: number, offset: number, rwf: number, drop: number, path: number, capability: number): number {
    removeCapability(path, capability);
    return withoutFsetid(drop, () => c.neg(c.pwritev2(fd, iovecs, count, offset, rwf)));
  },
  fsync: (fd: number) => c.neg(c.fsync(fd)),
  fdatasync: (fd: number) => c.neg(c.fdatasync(fd)),
  syncfs: (fd: number) => c.neg(c.syncfs(fd)),
  fallocate(fd: number, mode: number, offset: number, length: number, drop: number, path: number, capability: number): number {
    removeCapability(path, capability);
    return withoutFsetid(drop, () => c.neg(c.fallocate(fd, mode, offset, length)));
  },
  copyFileRange(from: number, at: number, to: number, at2: number, length: number, drop: number, path: number, capability: number): number {
    removeCapability(path, capability);
    return withoutFsetid(drop, () => c.neg(c.copyFileRange(from, at, to, at2, length, 0)));
  },
  lseek: (fd: number, offset: number, whence: number) => c.neg(c.lseek(fd, offset, whence)),
  close: (fd: number) => c.neg(c.close(fd)),
  /** As close, always 0: −errno says that it was not done. */
  drop(fd: number): number {
    c.close(fd);
    return 0;
  },
} as const satisfies Record<string, (...args: number[]) => number>;

export type Step = keyof typeof STEPS;
