/**
 * A POSIX file system in memory, as Linux has it: what the daemon, the host's file system and this model do must be the
 * same. Calls return −errno, with Linux's order where several apply, or what they made. Nothing here knows of FUSE.
 */
import { E } from '../../src/base/errno.js';
import { SparseBytes } from './sparse.js';

export type Kind = 'file' | 'directory' | 'symlink' | 'fifo' | 'socket';

/** Type bits of st_mode. */
export const TYPE: Readonly<Record<Kind, number>> = { file: 0o100000, directory: 0o040000, symlink: 0o120000, fifo: 0o010000, socket: 0o140000 };

const S_ISUID = 0o4000;
const S_ISGID = 0o2000;
const S_IXGRP = 0o010;
export const RENAME_NOREPLACE = 1;
export const RENAME_EXCHANGE = 2;
export const XATTR_CREATE = 1;
export const XATTR_REPLACE = 2;
export const FALLOC_KEEP_SIZE = 1;
export const FALLOC_PUNCH_HOLE = 2;
export const O_ACCMODE = 3;
export const O_WRONLY = 1;
export const O_RDWR = 2;
export const O_EXCL = 0o200;
export const O_TRUNC = 0o1000;
export const O_APPEND = 0o2000;

/** Whose rights a creation has. */
export interface Caller {
  uid: number;
  gid: number;
}

export class Inode {
  /** Inode number, once it was seen. */
  ino: bigint | null = null;
  nlink: number;
  uid = 0;
  gid = 0;
  /** When it was set and nothing has changed it since, nanoseconds. */
  mtime: bigint | null = null;
  readonly data = new SparseBytes();
  readonly entries = new Map<string, Inode>();
  readonly xattrs = new Map<string, Uint8Array>();
  /** Made by O_TMPFILE without O_EXCL: it may get a name although it has none. */
  linkable = false;
  /** Open file descriptions. */
  opens = 0;

  constructor(
    readonly kind: Kind,
    /** Permission and set-id bits. */
    public mode: number,
    /** Where a directory is; null for the root, and for one that is removed. */
    public parent: Inode | null = null,
    readonly target = '',
  ) {
    this.nlink = kind === 'directory' ? 2 : 1;
  }

  get isDirectory(): boolean {
    return this.kind === 'directory';
  }

  /** A directory that was removed, or a file without names. */
  get isDead(): boolean {
    return this.nlink === 0;
  }

  /** st_mode. */
  get stMode(): number {
    return TYPE[this.kind] | this.mode;
  }

  /** st_size, or −1 where the file system decides. */
  get size(): number {
    return this.kind === 'file' ? this.data.size : this.kind === 'symlink' ? Buffer.byteLength(this.target) : -1;
  }

  changed(): void {
    this.mtime = null;
  }
}

export class Model {
  readonly root = new Inode('directory', 0o755);

  lookup(dir: Inode, name: string): Inode | number {
    if (!dir.isDirectory) return -E.NOTDIR;
    return dir.entries.get(name) ?? -E.NOENT;
  }

  /** A new file, directory, symlink ... `mode` without set-id bits. */
  make(dir: Inode, name: string, kind: Kind, mode: number, caller: Caller, target = ''): Inode | number {
    const error = this.#mayAdd(dir, name, caller);
    if (error < 0) return error;
    const inode = this.#owned(new Inode(kind, kind === 'symlink' ? 0o777 : mode, dir, target), dir, caller);
    if (kind === 'directory') {
      inode.mode |= dir.mode & S_ISGID;
      dir.nlink++;
    }
    dir.entries.set(name, inode);
    dir.changed();
    return inode;
  }

  /** O_TMPFILE: a file without a name. */
  makeUnnamed(dir: Inode, mode: number, linkable: boolean, caller: Caller): Inode | number {
    if (!dir.isDirectory) return -E.NOTDIR;
    if (!permits(dir, caller, 3)) return -E.ACCES;
    const inode = this.#owned(new Inode('file', mode), dir, caller);
    inode.nlink = 0;
    inode.linkable = linkable;
    return inode;
  }

  #owned(inode: Inode, dir: Inode, caller: Caller): Inode {
    inode.uid = caller.uid;
    inode.gid = (dir.mode & S_ISGID) !== 0 ? dir.gid : caller.gid;
    return inode;
  }

  /** Walking into the directory needs x, then what is there counts, then writing to it needs w. */
  #mayAdd(dir: Inode, name: string, caller: Caller): number {
    if (!dir.isDirectory) return -E.NOTDIR;
    if (!permits(dir, caller, 1)) return -E.ACCES;
    if (dir.entries.has(name)) return -E.EXIST;
    if (dir.isDead) return -E.NOENT;
    return permits(dir, caller, 2) ? 0 : -E.ACCES;
  }

  /** open(2) of what exists; 0 or −errno. */
  open(inode: Inode, flags: number): number {
    if (inode.isDirectory) return -E.ISDIR;
    if (inode.kind === 'symlink') return -E.LOOP;
    if (inode.kind !== 'file') return -E.NXIO; // never opened on the host
    if ((flags & O_TRUNC) !== 0) {
      inode.data.truncate(0);
      inode.changed();
    }
    return 0;
  }

  /** By root. */
  link(inode: Inode, dir: Inode, name: string): Inode | number {
    const error = this.#mayAdd(dir, name, { uid: 0, gid: 0 });
    if (error < 0) return error;
    if (inode.isDirectory) return -E.PERM;
    if (inode.nlink === 0 && !inode.linkable) return -E.NOENT;
    inode.nlink++;
    inode.linkable = false;
    dir.entries.set(name, inode);
    dir.changed();
    return inode;
  }

  unlink(dir: Inode, name: string): number {
    const inode = this.lookup(dir, name);
    if (typeof inode === 'number') return inode;
    if (inode.isDirectory) return -E.ISDIR;
    this.#drop(dir, name, inode);
    return 0;
  }

  rmdir(dir: Inode, name: string): number {
    const inode = this.lookup(dir, name);
    if (typeof inode === 'number') return inode;
    if (!inode.isDirectory) return -E.NOTDIR;
    if (inode.entries.size > 0) return -E.NOTEMPTY;
    this.#drop(dir, name, inode);
    return 0;
  }

  /** Take a name away, and with it a link; a directory is empty. */
  #drop(dir: Inode, name: string, inode: Inode): void {
    dir.entries.delete(name);
    dir.changed();
    if (inode.isDirectory) {
      inode.nlink = 0;
      inode.parent = null;
      inode.changed();
      dir.nlink--;
    } else {
      inode.nlink--;
    }
  }

  rename(from: Inode, oldName: string, to: Inode, newName: string, flags: number): number {
    const exchange = (flags & RENAME_EXCHANGE) !== 0;
    const noReplace = (flags & RENAME_NOREPLACE) !== 0;
    if (exchange && noReplace) return -E.INVAL;
    if (!from.isDirectory || !to.isDirectory) return -E.NOTDIR;
    const source = from.entries.get(oldName);
    if (source === undefined || to.isDead) return -E.NOENT;
    const target = to.entries.get(newName);
    if (noReplace && target !== undefined) return -E.EXIST;
    if (exchange && target === undefined) return -E.NOENT;
    if (isWithin(to, source)) return -E.INVAL;
    if (target !== undefined && isWithin(from, target)) return exchange ? -E.INVAL : -E.NOTEMPTY;
    if (source === target) return 0;
    if (exchange) {
      this.#move(source, from, to);
      this.#move(target!, to, from);
      from.entries.set(oldName, target!);
    } else {
      if (target !== undefined) {
        if (source.isDirectory && !target.isDirectory) return -E.NOTDIR;
        if (!source.isDirectory && target.isDirectory) return -E.ISDIR;
        if (target.entries.size > 0) return -E.NOTEMPTY;
        this.#drop(to, newName, target);
      }
      this.#move(source, from, to);
      from.entries.delete(oldName);
    }
    to.entries.set(newName, source);
    from.changed();
    to.changed();
    return 0;
  }

  /** A directory's ".." is a link of its parent. */
  #move(inode: Inode, from: Inode, to: Inode): void {
    if (!inode.isDirectory) return;
    from.nlink--;
    to.nlink++;
    inode.parent = to;
  }

  chmod(inode: Inode, mode: number): void {
    inode.mode = mode & 0o7777;
  }

  /** By root; −1 leaves an id as it is. Set-id bits of files go, set-group-ID only where it means execution. */
  chown(inode: Inode, uid: number, gid: number): void {
    if (uid >= 0) inode.uid = uid;
    if (gid >= 0) inode.gid = gid;
    if (inode.isDirectory) return;
    inode.mode &= ~S_ISUID;
    if ((inode.mode & S_IXGRP) !== 0) inode.mode &= ~S_ISGID;
  }

  truncate(inode: Inode, size: number): number {
    if (inode.isDirectory) return -E.ISDIR;
    if (inode.kind !== 'file') return -E.INVAL;
    inode.data.truncate(size);
    inode.changed();
    return 0;
  }

  /** Bytes, or −errno. */
  read(inode: Inode, flags: number, offset: number, bytes: number): Uint8Array | number {
    return (flags & O_ACCMODE) === O_WRONLY ? -E.BADF : inode.data.read(offset, bytes);
  }

  /** Bytes written, or −errno. With O_APPEND the offset does not count. */
  write(inode: Inode, flags: number, offset: number, data: Uint8Array): number {
    if ((flags & O_ACCMODE) === 0) return -E.BADF;
    inode.data.write((flags & O_APPEND) !== 0 ? inode.data.size : offset, data);
    inode.changed();
    return data.length;
  }

  fallocate(inode: Inode, flags: number, mode: number, offset: number, bytes: number): number {
    if (bytes === 0) return -E.INVAL;
    if ((mode & FALLOC_PUNCH_HOLE) !== 0 && (mode & FALLOC_KEEP_SIZE) === 0) return -E.OPNOTSUPP;
    if ((flags & O_ACCMODE) === 0) return -E.BADF;
    if ((mode & FALLOC_PUNCH_HOLE) !== 0) inode.data.punch(offset, bytes);
    else if ((mode & FALLOC_KEEP_SIZE) === 0) inode.data.truncate(Math.max(inode.data.size, offset + bytes));
    inode.changed();
    return 0;
  }

  /** How many bytes copy_file_range(2) may copy at most, or −errno; copied() is what it did. */
  copyRange(from: Inode, fromFlags: number, offset: number, to: Inode, toFlags: number, target: number, bytes: number): number {
    // O_APPEND of the target is refused by the guest's kernel, which knows whether it is still set
    if ((fromFlags & O_ACCMODE) === O_WRONLY || (toFlags & O_ACCMODE) === 0) return -E.BADF;
    const count = Math.max(0, Math.min(bytes, from.data.size - offset));
    if (from === to && target + count > offset && target < offset + count) return -E.INVAL;
    return count;
  }

  copied(from: Inode, offset: number, to: Inode, target: number, bytes: number): void {
    if (bytes === 0) return;
    to.data.write(target, from.data.read(offset, bytes));
    to.changed();
  }

  setxattr(inode: Inode, name: string, value: Uint8Array, flags: number): number {
    if (!hasUserXattrs(inode)) return -E.PERM;
    if (flags === XATTR_CREATE && inode.xattrs.has(name)) return -E.EXIST;
    if (flags === XATTR_REPLACE && !inode.xattrs.has(name)) return -E.NODATA;
    inode.xattrs.set(name, value);
    return 0;
  }

  /** `room` 0 asks for the size only. */
  getxattr(inode: Inode, name: string, room: number): Uint8Array | number {
    const value = inode.xattrs.get(name);
    if (value === undefined) return -E.NODATA;
    return room !== 0 && room < value.length ? -E.RANGE : value;
  }

  removexattr(inode: Inode, name: string): number {
    if (!hasUserXattrs(inode)) return -E.PERM;
    return inode.xattrs.delete(name) ? 0 : -E.NODATA;
  }
}

/** user.* is for files and directories (xattr(7)). */
function hasUserXattrs(inode: Inode): boolean {
  return inode.kind === 'file' || inode.isDirectory;
}

/** Whether `dir` is `ancestor` or lies below it. */
function isWithin(dir: Inode, ancestor: Inode): boolean {
  for (let at: Inode | null = dir; at !== null; at = at.parent) if (at === ancestor) return true;
  return false;
}

/** rwx of a directory, as 4, 2, 1, for a caller without supplementary groups. */
function permits(inode: Inode, caller: Caller, mask: number): boolean {
  if (caller.uid === 0) return true;
  const bits = caller.uid === inode.uid ? inode.mode >> 6 : caller.gid === inode.gid ? inode.mode >> 3 : inode.mode;
  return (bits & mask) === mask;
}
