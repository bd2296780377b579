/** Attributes: getattr, setattr, statfs, and the ioctls that read and set inode flags. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { AT_EMPTY_PATH, O_CLOEXEC, O_NONBLOCK, O_RDONLY, S_IFDIR, S_IFREG } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY, HANDLE_FILE } from '../handles.js';
import { FATTR, FATTR_CHANGES } from '../fuse-flags.js';
import { IOCTLS, projectRefusal } from './inode-flags.js';
import { LEASED, guardTruncation } from './leases.js';
import { EMPTY_PATH, type Share } from './share.js';

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
    const valid = this.changes(r);
    const guard = this.#guard(r, slot);
    if (guard === LEASED) return LEASED;
    if ((valid & (FATTR.UID | FATTR.GID | FATTR.SIZE)) !== 0) share.dropCapability(fd);
    if ((valid & FATTR.MODE) !== 0) error = this.#chmod(r, fd);
    if (error === 0 && (valid & (FATTR.UID | FATTR.GID)) !== 0) error = this.#chown(r, fd);
    if (error === 0 && (valid & FATTR.SIZE) !== 0) error = this.#truncate(r, slot);
    if (error === 0 && (valid & (FATTR.ATIME | FATTR.MTIME)) !== 0) {
      error = c.neg(c.utimensat(fd, EMPTY_PATH, r.timesAddress, AT_EMPTY_PATH));
    }
    if (guard >= 0) c.close(guard);
    if (error === 0) error = share.statFd(r, fd);
    if (error === 0) share.putAttr(r, slot);
    return error;
  };

  /** Of a truncation by name; −1 or −errno for none. */
  #guard(r: FileSystemRequest, slot: number): number {
    const { inodes } = this.share;
    if ((r.valid & FATTR.SIZE) === 0 || r.hasFh || inodes.type(slot) !== S_IFREG) return -1;
    const fd = inodes.fd(slot);
    return fd < 0 ? fd : guardTruncation(inodes.procFd, inodes.procName(fd));
  }

  /** What a SETATTR changes. */
  changes(r: FileSystemRequest): number {
    return (r.valid & FATTR_CHANGES) === 0 && r.session.killprivV2 ? r.valid | FATTR.UID : r.valid;
  }

  #chmod(r: FileSystemRequest, fd: number): number {
    const { inodes } = this.share;
    return c.neg(c.fchmodat(inodes.procFd, inodes.procName(fd), r.mode & 0o7777, 0));
  }

  #chown(r: FileSystemRequest, fd: number): number {
    const uid = this.newUid(r);
    const gid = this.newGid(r);
    if (uid < 0 || gid < 0) return -E.PERM;
    return c.neg(c.fchownat(fd, EMPTY_PATH, uid, gid, AT_EMPTY_PATH));
  }

  /** For chown(2), whose −1 stands for no change: the host's id for the one asked for, or a negative number if there is none. */
  newUid(r: FileSystemRequest): number {
    const { uidMap } = this.share.options;
    return (r.valid & FATTR.UID) === 0 ? 0xffffffff : uidMap === null ? r.setUid : uidMap.toHost(r.setUid);
  }

  newGid(r: FileSystemRequest): number {
    const { gidMap } = this.share.options;
    return (r.valid & FATTR.GID) === 0 ? 0xffffffff : gidMap === null ? r.setGid : gidMap.toHost(r.setGid);
  }

  #truncate(r: FileSystemRequest, slot: number): number {
    const { share } = this;
    if (share.inodes.type(slot) !== S_IFREG) return share.inodes.type(slot) === S_IFDIR ? -E.ISDIR : -E.INVAL;
    const kill = (r.valid & FATTR.KILL_SUIDGID) !== 0;
    if (r.hasFh) {
      const handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
      if (handle < 0) return -E.BADF;
      return share.credentials.withoutFsetid(kill, () => c.neg(c.ftruncate(share.handles.fd(handle), r.size)));
    }
    // Not ftruncate(2), which moves the times also where the size stays
    const fd = share.inodes.fd(slot);
    return fd < 0 ? fd : share.credentials.withoutFsetid(kill, () => c.neg(c.truncate(share.inodes.procPath(fd), r.size)));
  }

  readonly statfs = (r: FileSystemRequest): number => {
    const fd = this.share.nodeFd(r);
    if (fd < 0) return fd;
    return c.neg(c.statvfs(fd, r.reply.address));
  };

  readonly ioctl = (r: FileSystemRequest): number => {
    const answer = this.prepareIoctl(r);
    if (answer < 0) return answer;
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    const fd = this.#ioctlFd(r, slot);
    if (fd < 0) return fd;
    const refused = this.share.options.allowProjectIds ? 0 : projectRefusal(fd, r.flags >>> 0, r.reply.address);
    const result = refused < 0 ? refused : c.neg(c.ioctl(fd, r.flags >>> 0, r.reply.address));
    if (!r.hasFh) c.close(fd);
    return result < 0 ? result : answer;
  };

  /** The argument of a known ioctl to the start of the reply block. @returns bytes of the answer, or −errno. */
  prepareIoctl(r: FileSystemRequest): number {
    const known = IOCTLS.get(r.flags >>> 0);
    if (known === undefined) return -E.NOTTY;
    if (known.set && this.share.options.readonly) return -E.ROFS;
    const bytes = known.set ? r.payloadLength : r.size;
    if (bytes < known.bytes) return -E.INVAL;
    r.reply.u8.fill(0, 0, 64);
    if (known.set) c.memcpy(r.reply.address, r.payload, known.bytes);
    return known.set ? 0 : known.bytes;
  }

  #ioctlFd(r: FileSystemRequest, slot: number): number {
    const { share } = this;
    if (!r.hasFh) return share.openNode(slot, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    let handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) handle = share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_DIRECTORY);
    return handle < 0 ? -E.BADF : share.handles.fd(handle);
  }
}
