/**
 * The C library, as plain functions on numbers: addresses are numbers (user addresses are below 2^47),
 * a result of −1 means that errno() holds the reason *until the next call*. The hot path uses these raw;
 * everything else goes through check(). This folder is the only importer of koffi.
 */
import koffi from 'koffi';
import { SysError } from './errors.js';

const lib = koffi.load('libc.so.6');

type Fn<A extends unknown[]> = (...args: A) => number;
type N = number;

// Memory
export const mmap = lib.func('int64 mmap(int64 addr, int64 len, int prot, int flags, int fd, int64 off)') as Fn<[N, N, N, N, N, N]>;
export const munmap = lib.func('int munmap(int64 addr, int64 len)') as Fn<[N, N]>;
export const madvise = lib.func('int madvise(int64 addr, int64 len, int advice)') as Fn<[N, N, N]>;
export const mallocTrim = lib.func('int malloc_trim(uint64 pad)') as Fn<[N]>;
export const memfdCreate = lib.func('int memfd_create(const char *name, uint32 flags)') as Fn<[string, N]>;
export const ftruncate = lib.func('int ftruncate(int fd, int64 len)') as Fn<[N, N]>;
/** memcpy; returns the destination address. */
export const memcpy = lib.func('int64 memcpy(int64 dst, int64 src, int64 n)') as Fn<[N, N, N]>;

// Descriptors
const closeFunction = lib.func('int close(int fd)');
export const close = closeFunction as Fn<[N]>;
/** The same on a thread of libuv; −1: the reason is lost. The descriptor is gone either way. */
export const closeElsewhere = (fd: N): Promise<N> =>
  new Promise((resolve, reject) => closeFunction.async(fd, (error: Error | null, result: N) => (error === null ? resolve(result) : reject(error))));
export const fcntl = lib.func('int fcntl(int fd, int cmd, int64 arg)') as Fn<[N, N, N]>;
export const ioctl = lib.func('int ioctl(int fd, int64 req, int64 arg)') as Fn<[N, N, N]>;
export const eventfd = lib.func('int eventfd(uint32 initial, int flags)') as Fn<[N, N]>;
export const read = lib.func('int64 read(int fd, int64 buf, int64 n)') as Fn<[N, N, N]>;
export const write = lib.func('int64 write(int fd, int64 buf, int64 n)') as Fn<[N, N, N]>;
export const poll = lib.func('int poll(int64 fds, int64 n, int timeout_ms)') as Fn<[N, N, N]>;
export const flock = lib.func('int flock(int fd, int op)') as Fn<[N, N]>;

/** _exit(2): the process ends now, whatever its threads do. Does not return. */
export const quit = lib.func('void _exit(int status)') as unknown as (status: N) => never;

// Files
export const open = lib.func('int open(const char *path, int flags, uint32 mode)') as Fn<[string, N, N]>;
export const openat = lib.func('int openat(int dir, int64 path, int flags, uint32 mode)') as Fn<[N, N, N, N]>;
export const statx = lib.func('int statx(int dir, int64 path, int flags, uint32 mask, int64 buf)') as Fn<[N, N, N, N, N]>;
export const fstat = lib.func('int fstat(int fd, int64 buf)') as Fn<[N, N]>;
export const statfs = lib.func('int fstatfs(int fd, int64 buf)') as Fn<[N, N]>;
export const statvfs = lib.func('int fstatvfs(int fd, int64 buf)') as Fn<[N, N]>;
export const preadv2 = lib.func('int64 preadv2(int fd, int64 iov, int n, int64 off, int flags)') as Fn<[N, N, N, N, N]>;
export const pwritev2 = lib.func('int64 pwritev2(int fd, int64 iov, int n, int64 off, int flags)') as Fn<[N, N, N, N, N]>;
export const getdents64 = lib.func('int64 getdents64(int fd, int64 buf, int64 n)') as Fn<[N, N, N]>;
export const lseek = lib.func('int64 lseek(int fd, int64 off, int whence)') as Fn<[N, N, N]>;
export const readlinkat = lib.func('int64 readlinkat(int dir, int64 path, int64 buf, int64 n)') as Fn<[N, N, N, N]>;
export const symlinkat = lib.func('int symlinkat(int64 target, int dir, int64 path)') as Fn<[N, N, N]>;
export const linkat = lib.func('int linkat(int odir, int64 opath, int ndir, int64 npath, int flags)') as Fn<[N, N, N, N, N]>;
export const unlinkat = lib.func('int unlinkat(int dir, int64 path, int flags)') as Fn<[N, N, N]>;
export const renameat2 = lib.func('int renameat2(int od, int64 op, int nd, int64 np, uint32 flags)') as Fn<[N, N, N, N, N]>;
export const mkdirat = lib.func('int mkdirat(int dir, int64 path, uint32 mode)') as Fn<[N, N, N]>;
export const mknodat = lib.func('int mknodat(int dir, int64 path, uint32 mode, uint64 dev)') as Fn<[N, N, N, N]>;
export const fchmod = lib.func('int fchmod(int fd, uint32 mode)') as Fn<[N, N]>;
export const fchmodat = lib.func('int fchmodat(int dir, int64 path, uint32 mode, int flags)') as Fn<[N, N, N, N]>;
export const fchownat = lib.func('int fchownat(int dir, int64 path, uint32 uid, uint32 gid, int flags)') as Fn<[N, N, N, N, N]>;
export const utimensat = lib.func('int utimensat(int dir, int64 path, int64 times, int flags)') as Fn<[N, N, N, N]>;
export const futimens = lib.func('int futimens(int fd, int64 times)') as Fn<[N, N]>;
export const truncate = lib.func('int truncate(int64 path, int64 len)') as Fn<[N, N]>;
export const faccessat = lib.func('int faccessat(int dir, int64 path, int mode, int flags)') as Fn<[N, N, N, N]>;
export const fsync = lib.func('int fsync(int fd)') as Fn<[N]>;
export const fdatasync = lib.func('int fdatasync(int fd)') as Fn<[N]>;
export const syncfs = lib.func('int syncfs(int fd)') as Fn<[N]>;
const fallocateFunction = lib.func('int fallocate(int fd, int mode, int64 off, int64 len)');
export const fallocate = fallocateFunction as Fn<[N, N, N, N]>;
/** The same on a thread of libuv; −1: the reason is lost. SAFETY: the descriptor stays open until then. */
export const fallocateLater = (...args: [fd: N, mode: N, offset: N, bytes: N]): Promise<N> =>
  new Promise((resolve, reject) => fallocateFunction.async(...args, (error: Error | null, result: N) => (error === null ? resolve(result) : reject(error))));
/** sync_file_range(2) */
export const syncFileRange = lib.func('int sync_file_range(int fd, int64 off, int64 len, uint32 flags)') as Fn<[N, N, N, N]>;
export const copyFileRange = lib.func('int64 copy_file_range(int in, int64 inoff, int out, int64 outoff, int64 n, uint32 fl)') as Fn<[N, N, N, N, N, N]>;
export const nameToHandleAt = lib.func('int name_to_handle_at(int dir, int64 path, int64 h, int64 mnt, int flags)') as Fn<[N, N, N, N, N]>;
export const openByHandleAt = lib.func('int open_by_handle_at(int mnt, int64 h, int flags)') as Fn<[N, N, N]>;
export const umask = lib.func('uint32 umask(uint32 mask)') as Fn<[N]>;

// Extended attributes, by path address; follow or not is the caller's (l*) choice
export const setxattr = lib.func('int setxattr(int64 path, int64 name, int64 val, int64 n, int flags)') as Fn<[N, N, N, N, N]>;
export const getxattr = lib.func('int64 getxattr(int64 path, int64 name, int64 val, int64 n)') as Fn<[N, N, N, N]>;
export const listxattr = lib.func('int64 listxattr(int64 path, int64 buf, int64 n)') as Fn<[N, N, N]>;
export const removexattr = lib.func('int removexattr(int64 path, int64 name)') as Fn<[N, N]>;
export const fsetxattr = lib.func('int fsetxattr(int fd, int64 name, int64 val, int64 n, int flags)') as Fn<[N, N, N, N, N]>;
export const fgetxattr = lib.func('int64 fgetxattr(int fd, int64 name, int64 val, int64 n)') as Fn<[N, N, N, N]>;

// Credentials of the calling thread only (setfsuid(2) is per thread in the kernel and in glibc)
export const setfsuid = lib.func('int setfsuid(uint32 uid)') as Fn<[N]>;
export const setfsgid = lib.func('int setfsgid(uint32 gid)') as Fn<[N]>;
/** unshare(2): concerns the calling thread. */
export const unshare = lib.func('int unshare(int flags)') as Fn<[N]>;
/** Raw system call: for what glibc applies to every thread (setgroups) or does not wrap. */
export const syscall6 = lib.func('int64 syscall(int64 nr, int64 a, int64 b, int64 c, int64 d, int64 e, int64 f)') as Fn<[N, N, N, N, N, N, N]>;
export const getrlimit = lib.func('int getrlimit(int what, int64 buf)') as Fn<[N, N]>;
export const setrlimit = lib.func('int setrlimit(int what, int64 buf)') as Fn<[N, N]>;
export const waitpid = lib.func('int waitpid(int pid, int64 status, int options)') as Fn<[N, N, N]>;
export const schedYield = lib.func('int sched_yield()') as Fn<[]>;

// Sockets
export const socket = lib.func('int socket(int domain, int type, int proto)') as Fn<[N, N, N]>;
export const socketpair = lib.func('int socketpair(int domain, int type, int proto, int64 sv)') as Fn<[N, N, N, N]>;
export const bind = lib.func('int bind(int fd, int64 addr, uint32 len)') as Fn<[N, N, N]>;
export const listen = lib.func('int listen(int fd, int backlog)') as Fn<[N, N]>;
export const accept4 = lib.func('int accept4(int fd, int64 addr, int64 len, int flags)') as Fn<[N, N, N, N]>;
export const connect = lib.func('int connect(int fd, int64 addr, uint32 len)') as Fn<[N, N, N]>;
export const send = lib.func('int64 send(int fd, int64 buf, int64 n, int flags)') as Fn<[N, N, N, N]>;
export const sendmsg = lib.func('int64 sendmsg(int fd, int64 msg, int flags)') as Fn<[N, N, N]>;
export const recvmsg = lib.func('int64 recvmsg(int fd, int64 msg, int flags)') as Fn<[N, N, N]>;
export const shutdown = lib.func('int shutdown(int fd, int how)') as Fn<[N, N]>;
export const getsockopt = lib.func('int getsockopt(int fd, int level, int name, int64 val, int64 len)') as Fn<[N, N, N, N, N]>;

/** errno of the call just made. */
export const errno = koffi.errno as () => number;

/** The result, or a SysError for −1. `subject` says on what, for people. */
export function check(result: number, syscall: string, subject = ''): number {
  if (result < 0) throw new SysError(errno(), syscall, subject);
  return result;
}

/** The result if it is not −1, else −errno: the kernel's own convention. */
export function neg(result: number): number {
  return result < 0 ? -errno() : result;
}

const PER_ARCH = {
  setgroups: [116, 159], capget: [125, 90], capset: [126, 91], pivot_root: [155, 41], seccomp: [317, 277],
  landlock_create_ruleset: [444, 444], landlock_add_rule: [445, 445], landlock_restrict_self: [446, 446],
  open_tree: [428, 428], move_mount: [429, 429], mount_setattr: [442, 442], epoll_create1: [291, 20], epoll_ctl: [233, 21],
} as const;

/** System call number on this machine (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h). */
export function syscallNumber(name: keyof typeof PER_ARCH): number {
  return PER_ARCH[name][process.arch === 'arm64' ? 1 : 0];
}
