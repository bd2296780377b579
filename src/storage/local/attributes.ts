/** Attributes: getattr, setattr, statfs, and the ioctls that read and set inode flags. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { AT_EMPTY_PATH, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, S_IFDIR, S_IFREG } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY, HANDLE_FILE } from '../handles.js';
import { EMPTY_PATH, type Share } from './share.js';

const FATTR_MODE = 1;
const FATTR_UID = 2;
const FATTR_GID = 4;
const FATTR_SIZE = 8;
const FATTR_ATIME = 16;
const FATTR_MTIME = 32;
const FATTR_KILL_SUIDGID = 2048;

/** include/uapi/linux/fs.h: command → bytes of its argument, and whether it sets. */
const IOCTLS = new Map<number, { bytes: number; set: boolean }>([
  [0x80086601, { bytes: 4, set: false }], // FS_IOC_GETFLAGS: the kernel's "long" is an int
  [0x40086602, { bytes: 4, set: true }], // FS_IOC_SETFLAGS
  [0x801c581f, { bytes: 28, set: false }], // FS_IOC_FSGETXATTR, struct fsxattr
  [0x401c5820, { bytes: 28, set: true }], // FS_IOC_FSSETXATTR
]);

export class Attributes {
  constructor(readonly share: Share) {}

  readonly getattr = (r: FileSystemRequest): number => {
    const { share } = this;
    const slot = share.inodes.table.slotOf(r.nodeLow, r.nodeHigh);
    if (slot < 0) return -E.STALE;
    const fd = this.#anyFd(r, slot);
    if (fd < 0) return fd;
    const error = share.statFd(r, fd);
    if (error === 0) share.putAttr(r, slot);
    return error;
  };

  /** A descriptor of the inode: an evicted node that is open is asked by its handle, since it may be unlinked. */
  #anyFd(r: FileSystemRequest, slot: number): number {
    const { share } = this;
    if (r.hasFh && share.inodes.isEvicted(slot)) {
      const handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
      if (handle >= 0 && share.handles.node(handle) === slot) return share.handles.fd(handle);
    }
    return share.inodes.fd(slot);
  }

  readonly setattr = (r: FileSystemRequest): number => {
    const { share } = this;
    if (share.options.readonly) return -E.ROFS;
    const slot = share.node(r);
    if (slot < 0) return slot;
    const fd = this.#anyFd(r, slot);
    if (fd < 0) return fd;
    let error = 0;
    if ((r.valid & FATTR_MODE) !== 0) error = this.#chmod(r, fd);
    if (error === 0 && (r.valid & (FATTR_UID | FATTR_GID)) !== 0) error = this.#chown(r, fd);
    if (error === 0 && (r.valid & FATTR_SIZE) !== 0) error = this.#truncate(r, slot);
    if (error === 0 && (r.valid & (FATTR_ATIME | FATTR_MTIME)) !== 0) {
      error = c.neg(c.utimensat(fd, EMPTY_PATH, r.timesAddress, AT_EMPTY_PATH));
    }
    if (error === 0 && (r.valid & (FATTR_UID | FATTR_GID | FATTR_SIZE)) !== 0) share.dropCapability(fd);
    if (error === 0) error = share.statFd(r, fd);
    if (error === 0) share.putAttr(r, slot);
    return error;
  };

  #chmod(r: FileSystemRequest, fd: number): number {
    const { inodes } = this.share;
    return c.neg(c.fchmodat(inodes.procFd, inodes.procName(fd), r.mode & 0o7777, 0));
  }

  #chown(r: FileSystemRequest, fd: number): number {
    const { uidMap, gidMap } = this.share.options;
    let uid = 0xffffffff;
    let gid = 0xffffffff;
    if ((r.valid & FATTR_UID) !== 0) uid = uidMap === null ? r.setUid : uidMap.toHost(r.setUid);
    if ((r.valid & FATTR_GID) !== 0) gid = gidMap === null ? r.setGid : gidMap.toHost(r.setGid);
    if (uid < 0 || gid < 0) return -E.PERM;
    return c.neg(c.fchownat(fd, EMPTY_PATH, uid, gid, AT_EMPTY_PATH));
  }

  #truncate(r: FileSystemRequest, slot: number): number {
    const { share } = this;
    if (share.inodes.type(slot) !== S_IFREG) return share.inodes.type(slot) === S_IFDIR ? -E.ISDIR : -E.INVAL;
    let fd = -1;
    if (r.hasFh) {
      const handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
      if (handle < 0) return -E.BADF;
      fd = share.handles.fd(handle);
    }
    const own = fd < 0;
    if (own) {
      fd = share.openNode(slot, O_RDWR | O_NONBLOCK | O_CLOEXEC);
      if (fd < 0) return fd;
    }
    const kill = (r.valid & FATTR_KILL_SUIDGID) !== 0;
    const error = share.credentials.withoutFsetid(kill, () => c.neg(c.ftruncate(fd, r.size)));
    if (own) c.close(fd);
    return error;
  }

  readonly statfs = (r: FileSystemRequest): number => {
    const fd = this.share.nodeFd(r);
    if (fd < 0) return fd;
    return c.neg(c.statvfs(fd, r.reply.address));
  };

  readonly ioctl = (r: FileSystemRequest): number => {
    const { share } = this;
    const known = IOCTLS.get(r.flags >>> 0);
    if (known === undefined) return -E.NOTTY;
    if (known.set && share.options.readonly) return -E.ROFS;
    const bytes = known.set ? r.payloadLength : r.size;
    if (bytes < known.bytes) return -E.INVAL;
    const slot = share.node(r);
    if (slot < 0) return slot;
    const fd = this.#ioctlFd(r, slot);
    if (fd < 0) return fd;
    const memory = r.reply;
    const argument = memory.address;
    memory.u8.fill(0, 0, 64);
    if (known.set) c.memcpy(argument, r.payload, known.bytes);
    const result = c.neg(c.ioctl(fd, r.flags >>> 0, argument));
    if (!r.hasFh) c.close(fd);
    if (result < 0) return result;
    return known.set ? 0 : known.bytes;
  };

  #ioctlFd(r: FileSystemRequest, slot: number): number {
    const { share } = this;
    if (!r.hasFh) return share.openNode(slot, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    let handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_DIRECTORY);
    return handle < 0 ? -E.BADF : share.handles.fd(handle);
  }
}
