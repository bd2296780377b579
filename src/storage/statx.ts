/** struct statx as 32-bit words (include/uapi/linux/stat.h); the same on every architecture. */
export const STATX = {
  MASK: 0,
  BLKSIZE: 1,
  ATTRIBUTES: 2,
  NLINK: 4,
  UID: 5,
  GID: 6,
  /** Low half of the word. */
  MODE: 7,
  INO: 8,
  SIZE: 10,
  BLOCKS: 12,
  ATIME: 16,
  ATIME_NSEC: 18,
  BTIME: 20,
  CTIME: 24,
  CTIME_NSEC: 26,
  MTIME: 28,
  MTIME_NSEC: 30,
  RDEV_MAJOR: 32,
  RDEV_MINOR: 33,
  DEV_MAJOR: 34,
  DEV_MINOR: 35,
  MNT_ID: 36,
  WORDS: 64,
} as const;

export const STATX_BYTES = 256;
export const STATX_BASIC_STATS = 0x7ff;
export const STATX_BTIME = 0x800;
/** Linux 5.8. */
export const STATX_MNT_ID = 0x1000;
/** stx_attributes: the inode is the root of a mount. */
export const STATX_ATTR_MOUNT_ROOT = 0x2000;
