/**
 * The port between the FUSE server and whatever serves files: a host directory today, a bucket next.
 *
 * One request object carries the decoded arguments in and the results out, so that a request that is answered
 * at once allocates nothing. A method returns a count of bytes (or 0), −errno, or PENDING when the answer comes
 * later through `request.complete(result)`; before it returns PENDING it must have called `request.defer()`.
 *
 * Inodes are named by the nodeid the file system gave out: two u32, so that no 64-bit integer is boxed.
 * Attributes cross the port as `struct statx` bytes (include/uapi/linux/stat.h): for a host directory the
 * kernel itself writes them.
 */
import type { NativeMemory } from '../ffi/memory.js';

/** No errno is that large. */
export const PENDING = -0x40000000;

/**
 * READ and LSEEK: an offset of this or more, which numbers do not hold exactly. No file here is made that long (EFBIG); the host may have one that is.
 */
export const FAR_OFFSET = Number.MAX_SAFE_INTEGER;

/** FUSE_ROOT_ID (include/uapi/linux/fuse.h). */
export const ROOT_NODE = 1;

/** A validated path component or attribute name: NUL-terminated native bytes, without the NUL in `length`. */
export interface Name {
  readonly address: number;
  readonly length: number;
}

export interface FileSystemRequest {
  // Who and what
  readonly nodeLow: number;
  readonly nodeHigh: number;
  readonly uid: number;
  readonly gid: number;
  readonly pid: number;
  /** A supplementary group of the caller that matters for a creation, or −1 (FUSE_CREATE_SUPP_GROUP). */
  readonly suppGid: number;
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
  /** The INIT flags that were agreed on, see Session. */
  readonly session: SessionInfo;

  // Arguments; each operation documents what it uses
  readonly hasFh: boolean;
  fhLow: number;
  fhHigh: number;
  readonly fh2Low: number;
  readonly fh2High: number;
  readonly node2Low: number;
  readonly node2High: number;
  readonly offset: number;
  readonly offset2: number;
  readonly length: number;
  readonly size: number;
  /** Open flags, rename flags, xattr flags, fallocate mode, access mask, ioctl command: by operation. */
  readonly flags: number;
  /** Flags of the FUSE protocol that go with the operation (open_flags, write_flags, release_flags ...). */
  readonly fuseFlags: number;
  readonly mode: number;
  readonly umask: number;
  readonly rdev: number;
  readonly ownerLow: number;
  readonly ownerHigh: number;
  readonly name: Name;
  readonly name2: Name;
  /** Copies of the names' bytes, and of the payload's. */
  nameBytes(): Uint8Array;
  name2Bytes(): Uint8Array;
  payloadBytes(): Uint8Array;
  /** A security context to set at creation: addresses of the attribute's name (with NUL) and value. */
  readonly securityContext: boolean;
  readonly labelName: Name;
  readonly labelValue: number;
  readonly labelLength: number;
  /** SETATTR: FATTR_* bits and values. */
  readonly valid: number;
  readonly setUid: number;
  readonly setGid: number;
  /** atime and mtime as two struct timespec, ready for utimensat(2): an address. */
  readonly timesAddress: number;
  /** One of them: 0 is atime, 1 is mtime; nanoseconds may be UTIME_NOW or UTIME_OMIT. */
  time(index: number): { seconds: number; nanoseconds: number };
  /** Locks: type (F_RDLCK ...), start and end inclusive, 0 to 2^63−1, which also stands for "to the end"; the guest's process. */
  lockType: number;
  lockStart: bigint;
  lockEnd: bigint;
  lockPid: number;

  // Bulk data: iovecs over the guest's own pages
  readonly iovecs: number;
  readonly iovecCount: number;
  /** Point the iovecs at `bytes` bytes of the data only, `at` bytes behind its start. */
  locatePart(at: number, bytes: number): void;
  /** Copy native bytes into the data area of a READ, `at` bytes behind its start. @returns bytes that had room. */
  copyToData(at: number, source: number, bytes: number): number;
  /** Contiguous native bytes of a small payload (xattr value, ioctl argument, symlink target). */
  readonly payload: number;
  readonly payloadLength: number;

  // Results
  /** LSEEK: where the data or the hole is. */
  position: number;
  /** struct statx, 256 bytes; the rest of the page is for the file system to use until the request completes. */
  readonly attr: NativeMemory;
  entryLow: number;
  entryHigh: number;
  openFlags: number;
  /** FUSE_ATTR_* flags of the entry. */
  attrFlags: number;
  /** Room for a reply that is not file data (xattr values, link targets, ioctl results, statvfs): native. */
  readonly reply: NativeMemory;

  /** Fix the cursor of a directory listing; false when the entry does not fit. See DirectorySink. */
  readonly entries: DirectorySink;

  /** Keep this request beyond the call. */
  defer(): void;
  /**
   * Keep what an answer without results (0 or −errno) takes, instead: where it may have to wait for another request of the same guest, so that any number can
   * wait. The request itself is not used afterwards.
   */
  detach(): DetachedRequest;
  /** Finish a deferred request: like a handler's return value. Main thread. */
  complete(result: number): void;
}

/** A request that waits for its answer and nothing else. */
export interface DetachedRequest {
  readonly uniqueLow: number;
  readonly uniqueHigh: number;
  /** 0 or −errno, once. Main thread. */
  complete(result: number): void;
}

/** Where READDIR and READDIRPLUS put entries. */
export interface DirectorySink {
  /** Whether an entry with a name of so many bytes has room. */
  fits(nameLength: number): boolean;
  /** How many of these entries fit, in their order. */
  fitting(names: readonly { readonly name: Uint8Array }[]): number;
  /** Put an entry; for READDIRPLUS with attributes from the request's attr and entry fields, or none. */
  put(inoLow: number, inoHigh: number, offLow: number, offHigh: number, type: number, source: Uint8Array, nameAt: number, nameLength: number, plus: boolean): void;
  readonly used: number;
}

/** What INIT agreed on, as far as a file system must know. */
export interface SessionInfo {
  writeback: boolean;
  killprivV2: boolean;
  dontMask: boolean;
  submounts: boolean;
  posixLocks: boolean;
  flockLocks: boolean;
  posixAcl: boolean;
  allowDirectIo: boolean;
}

/** A feature that both sides must have: not used, used where the guest has it, or a condition of the session (INIT is EPROTO without). */
export type Negotiation = 'never' | 'auto' | 'always';

/** Which INIT flags the file system can honour. */
export interface Capabilities {
  writeback: boolean;
  killprivV2: boolean;
  posixAcl: Negotiation;
  securityContext: Negotiation;
  submounts: boolean;
  posixLocks: boolean;
  flockLocks: boolean;
  readdirplus: boolean;
  allowMmap: boolean;
  suppGroups: boolean;
  /** Ids in requests other than creations are not used: the guest may leave them out (FUSE_ALLOW_IDMAP). */
  idmap: boolean;
}

export type Method = (request: FileSystemRequest) => number;

/** Results: 0 or bytes, −errno, PENDING. What is not listed as writing results returns 0. */
export interface FileSystem {
  readonly capabilities: Capabilities;
  /** Seconds that the guest may keep names and attributes. */
  readonly entryTimeout: number;
  readonly attrTimeout: number;
  /** Forget every node and handle: the guest has gone, or starts again with INIT. */
  reset(): void;
  /** Fail what waits without bound (locks) with EINTR. */
  cancelWaiting(): void;
  /** The guest no longer wants the request with this unique. @returns whether it was waiting, and has ended. */
  interrupt(uniqueLow: number, uniqueHigh: number): boolean;

  /** name → entry*, attr. Takes one reference. */
  lookup: Method;
  /** Drop `count` references; never fails. */
  forget(nodeLow: number, nodeHigh: number, count: number): void;
  /** → attr */
  getattr: Method;
  /** valid, … → attr */
  setattr: Method;
  /** → bytes in reply */
  readlink: Method;
  /** name, payload = target → entry */
  symlink: Method;
  /** name, mode, rdev, umask → entry */
  mknod: Method;
  mkdir: Method;
  unlink: Method;
  rmdir: Method;
  /** name in node, name2 in node2, flags */
  rename: Method;
  /** node2 = existing inode, name in node → entry */
  link: Method;
  /** flags → fh, openFlags */
  open: Method;
  opendir: Method;
  /** name, mode, flags → entry, fh */
  create: Method;
  /** mode, flags → entry, fh */
  tmpfile: Method;
  /** fh, offset, size, iovecs; flags: those that the open file has now → bytes */
  read: Method;
  /** fh, offset, size, iovecs; flags: those that the open file has now; fuseFlags → bytes */
  write: Method;
  flush: Method;
  release: Method;
  releasedir: Method;
  /** flags: 1 = data only */
  fsync: Method;
  fsyncdir: Method;
  /** → struct statvfs in reply */
  statfs: Method;
  /** fh, offset, size → entries */
  readdir: Method;
  readdirplus: Method;
  access: Method;
  /** name, payload = value, flags */
  setxattr: Method;
  /** name, size → bytes in reply; with size 0 the length */
  getxattr: Method;
  listxattr: Method;
  removexattr: Method;
  /** flags = mode, offset, length */
  fallocate: Method;
  /** flags = whence, offset → position */
  lseek: Method;
  /** fh, offset → fh2, offset2, length → bytes */
  copyFileRange: Method;
  syncfs: Method;
  getlk: Method;
  /** lock*, fuseFlags; flags: 1 = wait */
  setlk: Method;
  /** flags = command, payload, size = room → bytes in reply */
  ioctl: Method;
}
