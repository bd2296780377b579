/**
 * Namespaces, mounts and becoming another program: what confines the daemon (docs/adr/0007). Every call is about the
 * calling thread, where Linux keeps its root, its namespaces and its capabilities; all throw SysError.
 */
import koffi from 'koffi';
import * as c from './libc.js';
import { SysError } from './errors.js';
import { NativeMemory } from './memory.js';
import { AT_EMPTY_PATH, AT_FDCWD, O_CLOEXEC } from './constants.js';

const lib = koffi.load('libc.so.6');
const unshareCall = lib.func('int unshare(int flags)') as (flags: number) => number;
const mountCall = lib.func('int mount(const char *source, const char *target, const char *type, uint64 flags, const char *data)') as (
  source: string, target: string, type: string | null, flags: number, data: string | null,
) => number;
const umountCall = lib.func('int umount2(const char *target, int flags)') as (target: string, flags: number) => number;
const execveCall = lib.func('int execve(const char *path, int64 argv, int64 envp)') as (path: string, argv: number, envp: number) => number;

export const CLONE_NEWNS = 0x00020000;
export const CLONE_NEWIPC = 0x08000000;
export const CLONE_NEWNET = 0x40000000;

const MS_NOSUID = 2;
const MS_NODEV = 4;
const MS_NOEXEC = 8;
const MS_REC = 0x4000;
const MS_SLAVE = 0x80000;
const MNT_DETACH = 2;
const AT_RECURSIVE = 0x8000;
const OPEN_TREE_CLONE = 1;
const MOVE_MOUNT_F_EMPTY_PATH = 4;

/** struct mount_attr.attr_set (mount_setattr(2)). */
export const MOUNT_ATTR = { RDONLY: 1, NOSUID: 2, NODEV: 4, NOEXEC: 8 } as const;
/** struct mount_attr: attr_set, attr_clr, propagation, userns_fd; eight bytes each. */
const MOUNT_ATTR_SIZE = 32;

// 0 struct mount_attr | 64 two paths. SAFETY: for synchronous calls of one thread only.
const PATH = 64;
const PATH_2 = PATH + 4200;
const mem = NativeMemory.allocate(PATH_2 + 4200);

/** New namespaces for this thread, which also gets a root and working directory of its own. */
export function unshare(flags: number): void {
  c.check(unshareCall(flags), 'unshare');
}

/** From now on mounts made on the host appear here, but none made here on the host. */
export function receiveMountsOnly(): void {
  c.check(mountCall('none', '/', null, MS_REC | MS_SLAVE, null), 'mount', '/ as a slave');
}

/** An empty file system in memory over a directory, of at most so many bytes; null: half of the memory. `mode` in octal. */
export function mountTmpfs(directory: string, mode: string, bytes: number | null): void {
  const options = `mode=${mode}${bytes === null ? '' : `,size=${bytes}`}`;
  c.check(mountCall('bucketfsd', directory, 'tmpfs', MS_NOSUID | MS_NODEV | MS_NOEXEC, options), 'mount', `tmpfs on ${directory}`);
}

/** What is mounted on top of a directory is gone from there. */
export function detachMount(directory: string): void {
  c.check(umountCall(directory, MNT_DETACH), 'umount2', directory);
}

/** A descriptor of a copy of the mounts at and below `path`, not attached anywhere (open_tree(2)); attributes are added to all of them. */
export function copyMounts(path: string, attributes: number): number {
  const flags = OPEN_TREE_CLONE | O_CLOEXEC | AT_RECURSIVE;
  const fd = c.check(c.syscall6(c.syscallNumber('open_tree'), AT_FDCWD, mem.putString(PATH, path), flags, 0, 0, 0), 'open_tree', path);
  setAttributes(fd, '', AT_EMPTY_PATH | AT_RECURSIVE, attributes, path);
  return fd;
}

/** Attaches what copyMounts() gave at `target`. */
export function attachMounts(fd: number, target: string): void {
  const [from, to] = [mem.putString(PATH, ''), mem.putString(PATH_2, target)];
  c.check(c.syscall6(c.syscallNumber('move_mount'), fd, from, AT_FDCWD, to, MOVE_MOUNT_F_EMPTY_PATH, 0), 'move_mount', target);
}

/** The mount at `path`, not those below it. */
export function makeReadOnly(path: string): void {
  setAttributes(AT_FDCWD, path, 0, MOUNT_ATTR.RDONLY, path);
}

function setAttributes(dir: number, path: string, flags: number, attributes: number, subject: string): void {
  mem.u8.fill(0, 0, MOUNT_ATTR_SIZE);
  mem.u32[0] = attributes;
  const at = mem.putString(PATH, path);
  c.check(c.syscall6(c.syscallNumber('mount_setattr'), dir, at, flags, mem.address, MOUNT_ATTR_SIZE, 0), 'mount_setattr', subject);
}

/** The working directory, a mount point, becomes the root, and everything else goes out of reach; leaves the thread in `/`. */
export function pivotHere(): void {
  // The old root lands on top of the new one (pivot_root(2), "pivot_root(".", ".")"), so detaching "." uncovers the new one.
  const dot = mem.putString(PATH, '.');
  c.check(c.syscall6(c.syscallNumber('pivot_root'), dot, dot, 0, 0, 0, 0), 'pivot_root');
  c.check(umountCall('.', MNT_DETACH), 'umount2', 'the old root');
  process.chdir('/');
}

/**
 * This process becomes another program: same pid, namespaces, root and open descriptors that are not close-on-exec; its other
 * threads end. Called on the main thread. Returns only by throwing.
 */
export function execve(path: string, args: readonly string[], env: NodeJS.ProcessEnv): never {
  const variables = Object.entries(env).flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${value}`]));
  const strings = [...args, ...variables];
  const pointers = 8 * (strings.length + 2);
  const block = NativeMemory.allocate(pointers + strings.reduce((sum, text) => sum + Buffer.byteLength(text) + 1, 1));
  let at = pointers;
  strings.forEach((text, index) => {
    // The zero behind the arguments is what allocate() left.
    const slot = index < args.length ? index : index + 1;
    block.dv.setBigUint64(8 * slot, BigInt(block.putString(at, text)), true);
    at += Buffer.byteLength(text) + 1;
  });
  const result = execveCall(path, block.address, block.address + 8 * (args.length + 1));
  throw new SysError(result < 0 ? c.errno() : 0, 'execve', path);
}
