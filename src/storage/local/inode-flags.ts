/** The ioctls that read and set inode flags (include/uapi/linux/fs.h), and what of them a guest may not set. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';

const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_IOC_FSSETXATTR = 0x401c5820;

/** Command → bytes of its argument, and whether it sets. The kernel's "long" of the flags is an int; struct fsxattr has 28 bytes. */
export const IOCTLS: ReadonlyMap<number, { readonly bytes: number; readonly set: boolean }> = new Map([
  [FS_IOC_GETFLAGS, { bytes: 4, set: false }],
  [FS_IOC_SETFLAGS, { bytes: 4, set: true }],
  [FS_IOC_FSGETXATTR, { bytes: 28, set: false }],
  [FS_IOC_FSSETXATTR, { bytes: 28, set: true }],
]);

const FS_PROJINHERIT_FL = 0x20000000;
const FS_XFLAG_PROJINHERIT = 0x200;
/** struct fsxattr { u32 fsx_xflags, fsx_extsize, fsx_nextents, fsx_projid, ... }, in words. */
const XFLAGS = 0;
const PROJECT = 3;

const memory = NativeMemory.allocate(4096);
/** Where what the inode has now is read to, in words; the argument is copied to the start. */
const NOW = 16;

/**
 * Rule: a guest stays in the project quota that the host has given its files, so it changes neither an inode's project id nor whether new files inherit
 * it. Asks the host what there is now.
 * @param argument address of the argument of a command of IOCTLS
 * @returns 0, −EPERM for an argument that would change one of them, or −errno
 */
export function projectRefusal(fd: number, command: number, argument: number): number {
  const known = IOCTLS.get(command);
  if (known?.set !== true) return 0;
  c.memcpy(memory.address, argument, known.bytes);
  memory.u32.fill(0, NOW, NOW + 8);
  const get = command === FS_IOC_SETFLAGS ? FS_IOC_GETFLAGS : FS_IOC_FSGETXATTR;
  const error = c.neg(c.ioctl(fd, get, memory.address + NOW * 4));
  if (error < 0) return error;
  const wanted = memory.u32;
  const changed = wanted[XFLAGS] ^ wanted[NOW + XFLAGS];
  if (command === FS_IOC_SETFLAGS) return (changed & FS_PROJINHERIT_FL) === 0 ? 0 : -E.PERM;
  return (changed & FS_XFLAG_PROJINHERIT) === 0 && wanted[PROJECT] === wanted[NOW + PROJECT] ? 0 : -E.PERM;
}
