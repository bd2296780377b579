/**
 * Inodes of the shared directory: which nodeid stands for which host inode, and how to reach it again.
 *
 * A node holds an O_PATH descriptor, which pins the inode: while it is held, (inode, device, mount) cannot come to
 * mean another file. When more than `fdBudget` descriptors are held, the least recently used ones are traded for
 * file handles (name_to_handle_at(2)), which pin nothing; such a node is reopened by open_by_handle_at(2), and when
 * a lookup finds its identity again the handle is compared, since the number may have been reused meanwhile.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { AT_EMPTY_PATH, O_CLOEXEC, O_DIRECTORY, O_NOFOLLOW, O_PATH, O_RDONLY, S_IFDIR, S_IFMT } from '../../ffi/constants.js';
import { NodeTable, USER_WORD } from '../nodes.js';
import { STATX } from '../statx.js';
import { Mounts } from './mounts.js';

const WORDS = 16;
/** Words of a node: descriptor + 1 (0: none), type bits, opens, stored handle + 1. */
const FD1 = USER_WORD;
const TYPE = USER_WORD + 1;
const OPENS = USER_WORD + 2;
const HANDLE1 = USER_WORD + 3;
const RECENT = USER_WORD + 4;
/** MAX_HANDLE_SZ and the header of struct file_handle. */
const MAX_HANDLE_SZ = 128;
const HANDLE_HEADER = 8;

export type HandleMode = 'never' | 'prefer' | 'mandatory';

const scratch = NativeMemory.allocate(4096);
const EMPTY = scratch.address; // a NUL
const HANDLE_AT = 64;
const MOUNT_ID_AT = 512;
const PATH_AT = 1024;

export class Inodes {
  readonly table: NodeTable;
  readonly mounts = new Mounts();
  /** O_PATH descriptors held by nodes. */
  fds = 0;
  #hand = 1;
  /** Handles of evicted nodes: one Buffer each, by index; freed indexes are reused. */
  #handles: (Uint8Array | null)[] = [];
  #freeHandles: number[] = [];

  constructor(
    /** O_PATH | O_DIRECTORY descriptor of the share; this object owns it. */
    readonly rootFd: number,
    /** Descriptor of /proc/self/fd, to reopen an O_PATH descriptor with access. */
    readonly procFd: number,
    readonly mode: HandleMode,
    /** Descriptors that nodes may hold before some are traded for handles. */
    readonly fdBudget: number,
    maxNodes?: number,
  ) {
    this.table = new NodeTable(maxNodes);
  }

  /** The node of the share's root, as slot; called after construction and after clear(). */
  insertRoot(statx: Int32Array): void {
    const mount = this.mounts.index(statx, this.rootFd, true);
    const slot = this.table.insert(statx[STATX.INO], statx[STATX.INO + 1], mount);
    const at = slot * WORDS;
    this.table.words[at + FD1] = this.rootFd + 1;
    this.table.words[at + TYPE] = S_IFDIR;
    this.mounts.ref(mount);
  }

  type(slot: number): number {
    return this.table.words[slot * WORDS + TYPE];
  }

  /** The O_PATH descriptor of a node, reopened if need be; or −errno. Valid until the next call that may evict. */
  fd(slot: number): number {
    const at = slot * WORDS;
    const words = this.table.words;
    const fd = words[at + FD1] - 1;
    if (fd >= 0) {
      words[at + RECENT] = 1;
      return fd;
    }
    return this.#reopen(slot);
  }

  #reopen(slot: number): number {
    const fd = this.openByHandle(slot, O_PATH | O_NOFOLLOW);
    if (fd >= 0) this.#hold(slot, fd);
    return fd;
  }

  /** Open an evicted node directly with `flags`; −errno, −EBADF when it has no handle. */
  openByHandle(slot: number, flags: number): number {
    const at = slot * WORDS;
    const index = this.table.words[at + HANDLE1] - 1;
    const handle = index >= 0 ? this.#handles[index] : null;
    if (!handle) return -E.BADF;
    scratch.u8.set(handle, HANDLE_AT);
    const mountFd = this.mounts.fd(this.table.words[at + 4]);
    if (mountFd < 0) return -E.STALE;
    return c.neg(c.openByHandleAt(mountFd, scratch.address + HANDLE_AT, flags | O_CLOEXEC));
  }

  /** A readable directory descriptor on the node's mount, or negative. */
  mountFd(slot: number): number {
    return this.mounts.fd(this.table.words[slot * WORDS + 4]);
  }

  /** Whether the node is reached by handle only at the moment. */
  isEvicted(slot: number): boolean {
    return this.table.words[slot * WORDS + FD1] === 0;
  }

  /**
   * The node of the inode that `statx` describes, with one more reference; or −1 when it has none yet, or only
   * its handle can tell (see adopt()).
   */
  known(statx: Int32Array): number {
    const mount = this.mounts.find(statx);
    if (mount < 0) return -1;
    const slot = this.table.find(statx[STATX.INO], statx[STATX.INO + 1], mount);
    if (slot < 0 || this.table.words[slot * WORDS + FD1] === 0) return -1;
    this.table.ref(slot);
    return slot;
  }

  /**
   * The node for an O_PATH descriptor that the caller has just opened, with one more reference. The descriptor
   * is taken over (kept or closed). @returns slot or −errno.
   */
  adopt(fd: number, statx: Int32Array): number {
    const mount = this.mounts.index(statx, fd, (statx[STATX.MODE] & S_IFMT) === S_IFDIR);
    let slot = this.table.find(statx[STATX.INO], statx[STATX.INO + 1], mount);
    if (slot >= 0) {
      const at = slot * WORDS;
      if (this.table.words[at + FD1] !== 0) {
        c.close(fd);
        this.table.ref(slot);
        return slot;
      }
      if (this.#sameHandle(slot, fd)) {
        this.#hold(slot, fd);
        this.table.ref(slot);
        return slot;
      }
      // The number was reused by another inode: the old node keeps its id and its (stale) handle, without identity
      this.table.unlinkIdentity(slot);
    }
    slot = this.table.insert(statx[STATX.INO], statx[STATX.INO + 1], mount);
    if (slot < 0) {
      c.close(fd);
      return -E.NFILE;
    }
    this.mounts.ref(mount);
    this.table.words[slot * WORDS + TYPE] = statx[STATX.MODE] & S_IFMT;
    this.#hold(slot, fd);
    return slot;
  }

  /** Drop references; frees the node when none is left and nothing is open. */
  forget(slot: number, count: number): void {
    if (this.table.unref(slot, count) && this.table.words[slot * WORDS + OPENS] === 0) this.#free(slot);
  }

  addOpen(slot: number): void {
    this.table.words[slot * WORDS + OPENS]++;
  }

  dropOpen(slot: number): void {
    const at = slot * WORDS;
    if (--this.table.words[at + OPENS] === 0 && this.table.refs(slot) === 0) this.#free(slot);
  }

  /** Forget all nodes but the root. */
  clear(): void {
    const words = this.table.words;
    const high = this.table.highSlot;
    for (let slot = 2; slot < high; slot++) {
      const fd = words[slot * WORDS + FD1] - 1;
      if (fd >= 0) c.close(fd);
    }
    this.table.clear();
    this.mounts.clear();
    this.#handles = [];
    this.#freeHandles = [];
    this.fds = 0;
    this.#hand = 1;
  }

  /** Address of "N" for a descriptor, relative to procFd. Valid until the next call. */
  procName(fd: number): number {
    const u8 = scratch.u8;
    let at = PATH_AT + 15;
    u8[at] = 0;
    do {
      u8[--at] = 48 + (fd % 10);
      fd = (fd / 10) | 0;
    } while (fd > 0);
    return scratch.address + at;
  }

  /** Address of "/proc/self/fd/N". Valid until the next call. */
  procPath(fd: number): number {
    return scratch.putString(PATH_AT + 64, `/proc/self/fd/${fd}`);
  }

  #hold(slot: number, fd: number): void {
    const at = slot * WORDS;
    this.table.words[at + FD1] = fd + 1;
    this.table.words[at + RECENT] = 1;
    if (++this.fds > this.fdBudget && this.mode !== 'never') this.#evict(slot);
  }

  /** Second-chance sweep: trade some descriptors for handles, never that of `keep`. */
  #evict(keep: number): void {
    const words = this.table.words;
    const high = this.table.highSlot;
    const target = this.fdBudget - Math.min(64, this.fdBudget >> 3);
    for (let looked = 0; looked < 2 * high && this.fds > target; looked++) {
      if (++this.#hand >= high) this.#hand = 2;
      const slot = this.#hand;
      const at = slot * WORDS;
      if (words[at + FD1] === 0 || slot === keep || words[at + OPENS] !== 0) continue;
      if (words[at + RECENT] !== 0) {
        words[at + RECENT] = 0;
        continue;
      }
      const fd = words[at + FD1] - 1;
      if (this.mounts.fd(words[at + 4]) < 0 || !this.#readHandle(fd)) continue;
      this.#storeHandle(at);
      words[at + FD1] = 0;
      c.close(fd);
      this.fds--;
    }
  }

  /** name_to_handle_at of a descriptor into scratch; false where the file system has none. */
  #readHandle(fd: number): boolean {
    scratch.u32[HANDLE_AT >> 2] = MAX_HANDLE_SZ;
    return c.nameToHandleAt(fd, EMPTY, scratch.address + HANDLE_AT, scratch.address + MOUNT_ID_AT, AT_EMPTY_PATH) === 0;
  }

  #storeHandle(at: number): void {
    if (this.table.words[at + HANDLE1] !== 0) return; // evicted before: the handle has not changed
    const bytes = HANDLE_HEADER + scratch.u32[HANDLE_AT >> 2];
    const index = this.#freeHandles.pop() ?? this.#handles.length;
    this.#handles[index] = scratch.u8.slice(HANDLE_AT, HANDLE_AT + bytes);
    this.table.words[at + HANDLE1] = index + 1;
  }

  #sameHandle(slot: number, fd: number): boolean {
    const stored = this.#handles[this.table.words[slot * WORDS + HANDLE1] - 1];
    if (!stored || !this.#readHandle(fd)) return false;
    const bytes = HANDLE_HEADER + scratch.u32[HANDLE_AT >> 2];
    if (stored.length !== bytes) return false;
    for (let i = 0; i < bytes; i++) if (stored[i] !== scratch.u8[HANDLE_AT + i]) return false;
    return true;
  }

  #free(slot: number): void {
    const at = slot * WORDS;
    const words = this.table.words;
    if (words[at + FD1] !== 0) {
      c.close(words[at + FD1] - 1);
      this.fds--;
    }
    const handle = words[at + HANDLE1] - 1;
    if (handle >= 0) {
      this.#handles[handle] = null;
      this.#freeHandles.push(handle);
    }
    words[at + FD1] = 0;
    const mount = words[at + 4];
    this.table.remove(slot);
    this.mounts.unref(mount);
  }
}

/** A readable descriptor of the directory behind an O_PATH one, as open_by_handle_at(2) wants for its mount; −errno. */
export function reopenDirectory(fd: number): number {
  scratch.putString(PATH_AT, '.');
  return c.neg(c.openat(fd, scratch.address + PATH_AT, O_RDONLY | O_DIRECTORY | O_CLOEXEC, 0));
}
