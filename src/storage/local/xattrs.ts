/** Extended attributes, with virtiofsd's name mapping, and security labels at creation. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import type { FileSystemRequest, Name } from '../filesystem.js';
import { SETXATTR_ACL_KILL_SGID } from '../fuse-flags.js';
import type { Share } from './share.js';

const ACL_ACCESS = 'system.posix_acl_access';
const ACL_DEFAULT = 'system.posix_acl_default';
/** XATTR_LIST_MAX and XATTR_SIZE_MAX (include/uapi/linux/limits.h). */
export const XATTR_MAX = 65536;

const mapped = NativeMemory.allocate(4096);
const list = NativeMemory.allocate(XATTR_MAX);

export class Xattrs {
  constructor(readonly share: Share) {}

  readonly setxattr = (r: FileSystemRequest): number => {
    const { share } = this;
    if (share.options.readonly) return -E.ROFS;
    const path = this.#path(r);
    if (path < 0) return path;
    const name = hostName(share, r, r.name);
    if (name < 0) return name;
    const kill = (r.fuseFlags & SETXATTR_ACL_KILL_SGID) !== 0;
    return share.credentials.withoutFsetid(kill, () => c.neg(c.setxattr(path, name, r.payload, r.payloadLength, r.flags)));
  };

  readonly getxattr = (r: FileSystemRequest): number => {
    const path = this.#path(r);
    if (path < 0) return path;
    const name = hostName(this.share, r, r.name);
    if (name < 0) return name;
    return c.neg(c.getxattr(path, name, r.reply.address, Math.min(r.size, XATTR_MAX)));
  };

  readonly removexattr = (r: FileSystemRequest): number => {
    if (this.share.options.readonly) return -E.ROFS;
    const path = this.#path(r);
    if (path < 0) return path;
    const name = hostName(this.share, r, r.name);
    return name < 0 ? name : c.neg(c.removexattr(path, name));
  };

  readonly listxattr = (r: FileSystemRequest): number => {
    const path = this.#path(r);
    if (path < 0) return path;
    const n = c.neg(c.listxattr(path, list.address, XATTR_MAX));
    return n < 0 ? n : this.putList(r, list, n);
  };

  /** The names that the guest shall see, of those at the start of `names`, into the reply. */
  putList(r: FileSystemRequest, names: NativeMemory, bytes: number): number {
    let used = 0;
    for (let at = 0; at < bytes; ) {
      const end = names.u8.indexOf(0, at);
      const name = this.#guestName(r, Buffer.from(names.u8.subarray(at, end)).toString('latin1'));
      at = end + 1;
      if (name === null) continue;
      if (used + name.length + 1 > XATTR_MAX) return -E.BIG;
      used += Buffer.from(r.reply.buffer).write(name, used, 'latin1');
      r.reply.u8[used++] = 0;
    }
    if (r.size !== 0 && used > r.size) return -E.RANGE;
    return used;
  }

  /** Address of a path to the request's inode, or −errno. */
  #path(r: FileSystemRequest): number {
    if (!this.share.options.xattr) return -E.NOSYS;
    const fd = this.share.nodeFd(r);
    return fd < 0 ? fd : this.share.inodes.procPath(fd);
  }

  #guestName(r: FileSystemRequest, name: string): string | null {
    const { xattrMap } = this.share.options;
    if (!r.session.posixAcl && (name === ACL_ACCESS || name === ACL_DEFAULT)) return null;
    return xattrMap === null ? name : xattrMap.toClient(name);
  }
}

/** Address of the name on the host, or −errno; it is in `memory` at `at` if it is not the guest's own. */
export function hostName(share: Share, r: FileSystemRequest, name: Name, memory = mapped, at = 0): number {
  const { xattrMap } = share.options;
  const { posixAcl } = r.session;
  if (posixAcl && xattrMap === null) return name.address;
  c.memcpy(memory.address + at, name.address, name.length + 1);
  const text = Buffer.from(memory.u8.subarray(at, at + name.length)).toString('latin1');
  // A session without POSIX ACLs would not enforce what it can set
  if (!posixAcl && (text === ACL_ACCESS || text === ACL_DEFAULT)) return -E.OPNOTSUPP;
  if (xattrMap === null) return name.address;
  const result = xattrMap.toServer(text);
  if ('errno' in result) return -result.errno;
  if (result.name.length > 255) return -E.RANGE;
  memory.u8[at + Buffer.from(memory.buffer).write(result.name, at, 'latin1')] = 0;
  return memory.address + at;
}

/** Set the label that came with a creation (FUSE_SECURITY_CTX), under the name that --xattrmap gives it; 0 or −errno. */
export function setSecurityContext(share: Share, r: FileSystemRequest, slot: number): number {
  if (share.options.securityLabel === 'never') return 0;
  const name = hostName(share, r, r.labelName);
  if (name < 0) return name;
  const fd = share.inodes.fd(slot);
  if (fd < 0) return fd;
  return c.neg(c.setxattr(share.inodes.procPath(fd), name, r.labelValue, r.labelLength, 0));
}
