/** Names: lookup, creation, removal, rename, links. One component at a time, never followed on the host. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import {
  AT_EACCESS, AT_REMOVEDIR, AT_SYMLINK_FOLLOW, AT_SYMLINK_NOFOLLOW, O_ACCMODE, O_CLOEXEC, O_CREAT, O_EXCL,
  O_NOFOLLOW, O_PATH, O_RDWR, O_TMPFILE, O_TRUNC, O_WRONLY, RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT, S_IFLNK, S_IFMT,
} from '../../ffi/constants.js';
import type { FileSystemRequest, Name } from '../filesystem.js';
import { DOT, EMPTY_PATH, type Share } from './share.js';
import { ATTR_MASK } from './steps.js';
import type { OpenFiles } from './open-files.js';
import { setSecurityContext } from './xattrs.js';

export class Namespace {
  constructor(
    readonly share: Share,
    readonly files: OpenFiles,
  ) {}

  readonly lookup = (r: FileSystemRequest): number => {
    const dir = this.share.nodeFd(r);
    return dir < 0 ? dir : this.entry(r, dir, r.name);
  };

  /**
   * The node of a name, one reference more. First by attributes alone: while a node holds its descriptor, the
   * identity that statx gives cannot mean another inode. Only an inode not known yet is opened.
   */
  entry(r: FileSystemRequest, dir: number, name: Name): number {
    const { inodes } = this.share;
    if (c.statx(dir, name.address, AT_SYMLINK_NOFOLLOW, ATTR_MASK, r.attr.address) < 0) return -c.errno();
    const slot = inodes.known(r.attr.i32, dir, name.address);
    if (slot >= 0) return this.share.putEntry(r, slot);
    const fd = c.openat(dir, name.address, O_PATH | O_NOFOLLOW | O_CLOEXEC, 0);
    if (fd < 0) return -c.errno();
    return this.adopt(r, fd);
  }

  /** The node of an O_PATH descriptor just opened, which is taken over. */
  adopt(r: FileSystemRequest, fd: number): number {
    const { share } = this;
    // What is open now counts, whatever the name meant before
    const error = share.statFd(r, fd);
    if (error < 0) {
      c.close(fd);
      return error;
    }
    const slot = share.inodes.adopt(fd, r.attr.i32);
    return slot < 0 ? slot : share.putEntry(r, slot);
  }

  forget(nodeLow: number, nodeHigh: number, count: number): void {
    const slot = this.share.inodes.table.slotOf(nodeLow, nodeHigh);
    if (slot > 1) this.share.inodes.forget(slot, count);
  }

  readonly mknod = (r: FileSystemRequest): number =>
    this.#make(r, (dir) => c.mknodat(dir, r.name.address, r.mode, r.rdev));

  readonly mkdir = (r: FileSystemRequest): number => this.#make(r, (dir) => c.mkdirat(dir, r.name.address, r.mode));

  readonly symlink = (r: FileSystemRequest): number =>
    this.#make(r, (dir) => c.symlinkat(r.payload, dir, r.name.address));

  #make(r: FileSystemRequest, call: (dir: number) => number): number {
    const { share } = this;
    if (share.options.readonly) return -E.ROFS;
    const dir = share.nodeFd(r);
    if (dir < 0) return dir;
    const error = this.asCaller(r, () => call(dir));
    if (error < 0) return error;
    const result = this.entry(r, dir, r.name);
    if (result === 0 && r.securityContext) {
      const labelled = setSecurityContext(share, r, r.entryLow);
      if (labelled < 0) {
        this.forget(r.entryLow, r.entryHigh, 1);
        c.unlinkat(dir, r.name.address, (r.attr.i32[7] & S_IFMT) === 0o040000 ? AT_REMOVEDIR : 0);
        return labelled;
      }
    }
    return result;
  }

  /** Run a creating call as the guest's user, with its umask where the guest left that to us. −errno or the result. */
  asCaller(r: FileSystemRequest, call: () => number): number {
    const { share } = this;
    const entered = share.enter(r);
    if (entered < 0) return entered;
    const mask = r.session.dontMask && r.umask !== 0;
    if (mask) c.umask(r.umask);
    const result = c.neg(call());
    if (mask) c.umask(0);
    share.leave(r);
    return result;
  }

  readonly unlink = (r: FileSystemRequest): number => this.#remove(r, 0);
  readonly rmdir = (r: FileSystemRequest): number => this.#remove(r, AT_REMOVEDIR);

  #remove(r: FileSystemRequest, flags: number): number {
    if (this.share.options.readonly) return -E.ROFS;
    const dir = this.share.nodeFd(r);
    if (dir < 0) return dir;
    return c.neg(c.unlinkat(dir, r.name.address, flags));
  }

  readonly rename = (r: FileSystemRequest): number => {
    const { share } = this;
    const refused = renameRefusal(r, share);
    if (refused < 0) return refused;
    const from = share.nodeFd(r);
    if (from < 0) return from;
    const slot = share.inodes.table.slotOf(r.node2Low, r.node2High);
    const to = slot < 0 ? -E.STALE : share.inodes.fd(slot);
    if (to < 0) return to;
    return c.neg(c.renameat2(from, r.name.address, to, r.name2.address, r.flags));
  };

  readonly link = (r: FileSystemRequest): number => {
    const { share } = this;
    if (share.options.readonly) return -E.ROFS;
    const dir = share.nodeFd(r);
    if (dir < 0) return dir;
    const slot = share.inodes.table.slotOf(r.node2Low, r.node2High);
    const fd = slot < 0 ? -E.STALE : share.inodes.fd(slot);
    if (fd < 0) return fd;
    // By way of /proc: linkat with an empty path would want CAP_DAC_READ_SEARCH
    const error = c.neg(c.linkat(share.inodes.procFd, share.inodes.procName(fd), dir, r.name.address, AT_SYMLINK_FOLLOW));
    return error < 0 ? error : this.entry(r, dir, r.name);
  };

  readonly readlink = (r: FileSystemRequest): number => {
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    if (this.share.inodes.type(slot) !== S_IFLNK) return -E.INVAL;
    const fd = this.share.inodes.fd(slot);
    if (fd < 0) return fd;
    return c.neg(c.readlinkat(fd, EMPTY_PATH, r.reply.address, 4096));
  };

  readonly create = (r: FileSystemRequest): number => {
    const { share, files } = this;
    if (share.options.readonly) return -E.ROFS;
    const dir = share.nodeFd(r);
    if (dir < 0) return dir;
    const flags = this.files.hostFlags(r, r.flags) | O_CREAT | O_NOFOLLOW;
    const mode = r.mode & ~S_IFMT;
    const fd = this.asCaller(r, () => c.openat(dir, r.name.address, flags | O_EXCL, mode));
    if (fd === -E.EXIST && (r.flags & O_EXCL) === 0) {
      // Somebody else has made it: then this is an ordinary open of what is there
      const found = this.entry(r, dir, r.name);
      if (found < 0) return found;
      const opened = files.openSlot(r, r.entryLow, r.flags & ~(O_CREAT | O_EXCL));
      if (opened < 0) this.forget(r.entryLow, r.entryHigh, 1);
      return opened < 0 || (r.flags & O_TRUNC) === 0 ? opened : this.#restat(r);
    }
    return fd < 0 ? fd : this.#created(r, fd, dir);
  };

  /** The entry's attributes once more: those from before an open that truncated it are out of date. */
  #restat(r: FileSystemRequest): number {
    if (this.share.statFd(r, this.share.handles.fd(r.fhLow)) === 0) this.share.putAttr(r, r.entryLow);
    return 0;
  }

  /** A file that we have just made and hold open: give it a node and a handle. */
  #created(r: FileSystemRequest, fd: number, dir: number): number {
    const { share, files } = this;
    const pathFd = c.openat(share.inodes.procFd, share.inodes.procName(fd), O_PATH | O_CLOEXEC, 0);
    if (pathFd < 0) {
      const error = -c.errno();
      c.close(fd);
      return error;
    }
    let result = this.adopt(r, pathFd);
    if (result === 0) {
      if (r.securityContext) result = setSecurityContext(share, r, r.entryLow);
      if (result === 0) result = files.install(r, r.entryLow, fd, r.flags);
      if (result < 0) this.forget(r.entryLow, r.entryHigh, 1);
    }
    if (result < 0) {
      c.close(fd);
      if (dir >= 0) c.unlinkat(dir, r.name.address, 0);
    }
    return result;
  }

  readonly tmpfile = (r: FileSystemRequest): number => {
    const { share } = this;
    if (share.options.readonly) return -E.ROFS;
    const dir = share.nodeFd(r);
    if (dir < 0) return dir;
    const fd = this.asCaller(r, () => c.openat(dir, DOT, tmpfileFlags(r), r.mode & ~S_IFMT));
    return fd < 0 ? fd : this.#created(r, fd, -1);
  };

  readonly access = (r: FileSystemRequest): number => {
    // Linux asks only without default_permissions, which virtiofs always has; an honest answer all the same
    const fd = this.share.nodeFd(r);
    if (fd < 0) return fd;
    return this.asCaller(r, () => c.faccessat(this.share.inodes.procFd, this.share.inodes.procName(fd), r.flags, AT_EACCESS));
  };
}

/** −errno for a rename that is refused whatever the names are, else 0. */
export function renameRefusal(r: FileSystemRequest, share: Share): number {
  if (share.options.readonly) return -E.ROFS;
  return (r.flags & ~(RENAME_NOREPLACE | RENAME_EXCHANGE | RENAME_WHITEOUT)) === 0 ? 0 : -E.INVAL;
}

/** Open flags for the host of a TMPFILE. O_EXCL is what keeps the file from being linked in later. */
export function tmpfileFlags(r: FileSystemRequest): number {
  const access = (r.flags & O_ACCMODE) === O_WRONLY ? O_WRONLY : O_RDWR;
  return O_TMPFILE | access | O_CLOEXEC | (r.flags & O_EXCL);
}
