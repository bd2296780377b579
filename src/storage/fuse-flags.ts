/** Flags of the FUSE protocol that file systems read or set (include/uapi/linux/fuse.h). */

/** FATTR_*: what a SETATTR changes. */
export const FATTR = { MODE: 1, UID: 2, GID: 4, SIZE: 8, ATIME: 16, MTIME: 32, KILL_SUIDGID: 2048 } as const;
/**
 * Of them those that change something. With HANDLE_KILLPRIV_V2 Linux sends a SETATTR without any where chown(2) is to keep both ids: that is a change of
 * the owner to itself, which clears set-id bits.
 */
export const FATTR_CHANGES = FATTR.MODE | FATTR.UID | FATTR.GID | FATTR.SIZE | FATTR.ATIME | FATTR.MTIME;

/** FOPEN_*: how the guest treats an open file. */
export const FOPEN = { DIRECT_IO: 1, KEEP_CACHE: 2, CACHE_DIR: 8, NOFLUSH: 32, PARALLEL_DIRECT_WRITES: 64 } as const;

/** FUSE_ATTR_SUBMOUNT: the directory is the root of another file system. */
export const ATTR_SUBMOUNT = 1;
/** FUSE_WRITE_CACHE: pages that the guest's cache writes back, through any handle of the file. */
export const WRITE_CACHE = 1;
/** FUSE_OPEN_KILL_SUIDGID, FUSE_WRITE_KILL_SUIDGID, FUSE_SETXATTR_ACL_KILL_SGID: clear set-id bits as for a user without rights. */
export const OPEN_KILL_SUIDGID = 1;
export const WRITE_KILL_SUIDGID = 4;
export const SETXATTR_ACL_KILL_SGID = 1;
