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
import { AT_EMPTY_PATH, O_CLOEXEC, O_NOFOLLOW, O_PATH, S_IFDIR, S_IFMT } from '../../ffi/constants.js';
import { ROOT_NODE } from '../filesystem.js';
import { NodeTable, USER_WORD } from '../nodes.js';
import { STATX } from '../statx.js';
import { MOUNT_KIND, type MountKind } from './mount-table.js';
import { Mounts } from './mounts.js';
import { openByHandle } from './steps.js';

const WORDS = 16;
/** The identity (see NodeTable): inode number in two words, the mount's number. */
const KEY0 = 2;
const MOUNT = 4;
/** Words of a node: descriptor + 1 (0: none), type bits, opens, used lately, then its handle once it was needed. */
const FD1 = USER_WORD;
const TYPE = USER_WORD + 1;
const OPENS = USER_WORD + 2;
const RECENT = USER_WORD + 3;
/** struct file_handle: bytes, type, and the bytes; up to 16 of them in the record, longer ones in a map. */
const HANDLE_BYTES = USER_WORD + 4;
const HANDLE_TYPE = USER_WORD + 5;
const HANDLE_DATA = USER_WORD + 6;
const HANDLE_INLINE_WORDS = 4;
const MAX_HANDLE_SZ = 128;
/** Nodes looked at by one sweep: a bound on what one request can cost. */
const SWEEP_MAX = 1024;

export type HandleMode = 'never' | 'prefer' | 'mandatory';

const scratch = NativeMemory.allocate(4096);
const EMPTY = scratch.address; // a NUL
const HANDLE_AT = 64;
const MOUNT_ID_AT = 512;
const PATH_AT = 1024;

export class Inodes {
  readonly table: NodeTable;
  /** O_PATH descriptors held by nodes. */
  fds = 0;
  #hand = 1;
  /** The node that the request being served is about; see fdOfRequest(). */
  #current = 0;
  /** Open files and directories: their descriptors count against the budget too. */
  opens = 0;
  /** Handles that do not fit into a record, by slot: words. */
  readonly #longHandles = new Map<number, Int32Array>();

  constructor(
    /** O_PATH | O_DIRECTORY descriptor of the share; this object owns it. */
    readonly rootFd: number,
    /** Descriptor of /proc/self/fd, to reopen an O_PATH descriptor with access. */
    readonly procFd: number,
    public mode: HandleMode,
    /** Descriptors that nodes and open files may hold together before some nodes' are traded for handles. */
    readonly fdBudget: number,
    readonly mounts = new Mounts(),
    maxNodes?: number,
  ) {
    this.table = new NodeTable(maxNodes);
  }

  /** Make the node of the share's root; once, after construction. */
  insertRoot(statx: Int32Array, kind: MountKind = MOUNT_KIND.DISK): void {
    this.#insertRoot(statx[STATX.INO], statx[STATX.INO + 1], this.mounts.indexRoot(statx, this.rootFd, kind));
  }

  #insertRoot(inoLow: number, inoHigh: number, mount: number): void {
    const at = this.table.insert(inoLow, inoHigh, mount) * WORDS;
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

  /** fd() of the node that a request is about: stays valid whatever else that request reaches. */
  fdOfRequest(slot: number): number {
    this.#current = slot;
    return this.fd(slot);
  }

  #reopen(slot: number): number {
    const fd = this.openByHandle(slot, O_PATH | O_NOFOLLOW);
    if (fd >= 0) this.#hold(slot, fd);
    return fd;
  }

  /** Open an evicted node directly with `flags`; −errno, −EBADF when it has no handle. */
  openByHandle(slot: number, flags: number): number {
    if (!this.#loadHandle(slot)) return -E.BADF;
    const mountFd = this.mountFd(slot);
    if (mountFd < 0) return -E.STALE;
    return openByHandle(mountFd, scratch.address + HANDLE_AT, flags | O_CLOEXEC);
  }

  /**
   * What open_by_handle_at(2) wants for an evicted node, somewhere else: the handle's bytes to `words` from `at` (a word
   * index) on. @returns the descriptor of the mount, or −errno.
   */
  copyHandle(slot: number, words: Int32Array, at: number): number {
    if (!this.#loadHandle(slot)) return -E.BADF;
    const mountFd = this.mountFd(slot);
    if (mountFd < 0) return -E.STALE;
    words.set(scratch.i32.subarray(HANDLE_AT >> 2, (HANDLE_AT + 8 + MAX_HANDLE_SZ) >> 2), at);
    return mountFd;
  }

  /** Let an evicted node have an O_PATH descriptor again, which is taken over. */
  restore(slot: number, fd: number): void {
    if (this.isEvicted(slot)) this.#hold(slot, fd);
    else this.close(slot, fd);
  }

  /** A readable directory descriptor on the node's mount, or negative. */
  mountFd(slot: number): number {
    return this.mounts.fd(this.table.words[slot * WORDS + MOUNT]);
  }

  /** Whether the node's file is on a file system in memory. */
  isInMemory(slot: number): boolean {
    return this.mounts.inMemory(this.table.words[slot * WORDS + MOUNT]);
  }

  /** Whether the node's file is on a remote mount: the main thread asks nothing about it. */
  isRemote(slot: number): boolean {
    return this.mounts.isRemote(this.table.words[slot * WORDS + MOUNT]);
  }

  /** Whether it is, and that mount is not the share's own. */
  isRemoteSubmount(slot: number): boolean {
    return this.mounts.isRemoteSubmount(this.table.words[slot * WORDS + MOUNT]);
  }

  /** Close a descriptor of the node's file. */
  close(slot: number, fd: number): void {
    this.mounts.close(this.table.words[slot * WORDS + MOUNT], fd);
  }

  /** Whether the node is reached by handle only at the moment. */
  isEvicted(slot: number): boolean {
    return this.table.words[slot * WORDS + FD1] === 0;
  }

  /**
   * The node of the inode that `statx` says a name in `dir` has, with one more reference; or −1 when there is none
   * yet, or the name means something else by now (see adopt()).
   */
  known(statx: Int32Array, dir: number, nameAddress: number): number {
    const mount = this.mounts.find(statx);
    if (mount < 0) return -1;
    const slot = this.table.find(statx[STATX.INO], statx[STATX.INO + 1], mount);
    if (slot < 0) return -1;
    // The name, looked up again: if it has the node's handle, then it is the node's inode
    if (this.table.words[slot * WORDS + FD1] === 0 && !this.#hasHandle(slot, dir, nameAddress, 0)) return -1;
    this.table.ref(slot);
    return slot;
  }

  /**
   * The node for an O_PATH descriptor that the caller has just opened, with one more reference. The descriptor
   * is taken over (kept or closed), and so is `directoryFd` (≥ 0), a readable one of the same directory. @returns slot or −errno.
   */
  adopt(fd: number, statx: Int32Array, directoryFd = -1): number {
    const mount = this.mounts.index(statx, fd, (statx[STATX.MODE] & S_IFMT) === S_IFDIR, directoryFd);
    let slot = this.table.find(statx[STATX.INO], statx[STATX.INO + 1], mount);
    if (slot >= 0) {
      const at = slot * WORDS;
      if (this.table.words[at + FD1] !== 0) {
        c.close(fd);
        this.table.ref(slot);
        return slot;
      }
      if (this.#hasHandle(slot, fd, EMPTY, AT_EMPTY_PATH)) {
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
    this.opens++;
    if (this.fds + this.opens > this.fdBudget && this.mode !== 'never') this.#evict(slot);
  }

  dropOpen(slot: number): void {
    const at = slot * WORDS;
    this.opens--;
    if (--this.table.words[at + OPENS] === 0 && this.table.refs(slot) === 0) this.#free(slot);
  }

  /** Whether a directory with these attributes is to be opened for adopt(). */
  wantsDirectory(statx: Int32Array): boolean {
    return (statx[STATX.MODE] & S_IFMT) === S_IFDIR && this.mounts.wantsDirectory(statx);
  }

  /** Forget all nodes but the root. Asks nothing of the storage, which may be dead. */
  clear(): void {
    const words = this.table.words;
    const root = ROOT_NODE * WORDS;
    const [inoLow, inoHigh, mount] = [words[root + KEY0], words[root + KEY0 + 1], words[root + MOUNT]];
    const high = this.table.highSlot;
    for (let slot = 2; slot < high; slot++) {
      const fd = words[slot * WORDS + FD1] - 1;
      if (fd >= 0) this.close(slot, fd);
    }
    this.table.clear();
    this.mounts.clear();
    this.#longHandles.clear();
    this.fds = 0;
    this.opens = 0;
    this.#hand = 1;
    this.#current = 0;
    this.#insertRoot(inoLow, inoHigh, mount);
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
    this.fds++;
    if (this.fds + this.opens > this.fdBudget && this.mode !== 'never') this.#evict(slot);
  }

  /** Second-chance sweep: trade some descriptors for handles, never that of `keep` or of the request's node. */
  #evict(keep: number): void {
    const words = this.table.words;
    const high = this.table.highSlot;
    const target = this.fdBudget - this.opens - Math.min(64, this.fdBudget >> 3);
    for (let looked = 0; looked < SWEEP_MAX && this.fds > target; looked++) {
      if (++this.#hand >= high) this.#hand = 2;
      const slot = this.#hand;
      const at = slot * WORDS;
      if (words[at + FD1] === 0 || slot === keep || slot === this.#current || words[at + OPENS] !== 0) continue;
      // Asking for a handle may take long there
      if (this.mounts.isRemoteSubmount(words[at + MOUNT])) continue;
      if (words[at + RECENT] !== 0) {
        words[at + RECENT] = 0;
        continue;
      }
      const fd = words[at + FD1] - 1;
      if (words[at + HANDLE_BYTES] === 0) {
        if (this.mountFd(slot) < 0 || !this.#readHandle(fd, EMPTY, AT_EMPTY_PATH)) continue;
        this.#storeHandle(slot);
      }
      words[at + FD1] = 0;
      this.close(slot, fd);
      this.fds--;
    }
  }

  /** name_to_handle_at into scratch; false where the file system has no handles, or the name is gone. */
  #readHandle(dir: number, path: number, flags: number): boolean {
    scratch.i32[HANDLE_AT >> 2] = MAX_HANDLE_SZ;
    return c.nameToHandleAt(dir, path, scratch.address + HANDLE_AT, scratch.address + MOUNT_ID_AT, flags) === 0;
  }

  #storeHandle(slot: number): void {
    const at = slot * WORDS;
    const { words } = this.table;
    const from = HANDLE_AT >> 2;
    const bytes = scratch.i32[from];
    const count = (bytes + 3) >> 2;
    words[at + HANDLE_BYTES] = bytes;
    words[at + HANDLE_TYPE] = scratch.i32[from + 1];
    if (count > HANDLE_INLINE_WORDS) this.#longHandles.set(slot, scratch.i32.slice(from + 2, from + 2 + count));
    else for (let i = 0; i < count; i++) words[at + HANDLE_DATA + i] = scratch.i32[from + 2 + i];
  }

  /** The node's handle into scratch; false when it has none. */
  #loadHandle(slot: number): boolean {
    const at = slot * WORDS;
    const { words } = this.table;
    const from = HANDLE_AT >> 2;
    const bytes = words[at + HANDLE_BYTES];
    if (bytes === 0) return false;
    scratch.i32[from] = bytes;
    scratch.i32[from + 1] = words[at + HANDLE_TYPE];
    const long = this.#longHandles.get(slot);
    if (long !== undefined) scratch.i32.set(long, from + 2);
    else for (let i = 0; i < HANDLE_INLINE_WORDS; i++) scratch.i32[from + 2 + i] = words[at + HANDLE_DATA + i];
    return true;
  }

  /** Whether a name (or a descriptor) has exactly the node's handle. */
  #hasHandle(slot: number, dir: number, path: number, flags: number): boolean {
    const at = slot * WORDS;
    const { words } = this.table;
    const bytes = words[at + HANDLE_BYTES];
    if (bytes === 0) return false;
    const from = HANDLE_AT >> 2;
    const count = (bytes + 3) >> 2;
    scratch.i32[from + 1 + count] = 0; // the last word may be used in part
    if (!this.#readHandle(dir, path, flags)) return false;
    if (scratch.i32[from] !== bytes || scratch.i32[from + 1] !== words[at + HANDLE_TYPE]) return false;
    const long = this.#longHandles.get(slot);
    for (let i = 0; i < count; i++) {
      if (scratch.i32[from + 2 + i] !== (long !== undefined ? long[i] : words[at + HANDLE_DATA + i])) return false;
    }
    return true;
  }

  #free(slot: number): void {
    const at = slot * WORDS;
    const words = this.table.words;
    if (words[at + FD1] !== 0) {
      this.close(slot, words[at + FD1] - 1);
      this.fds--;
    }
    if (this.#longHandles.size > 0) this.#longHandles.delete(slot);
    words[at + FD1] = 0;
    const mount = words[at + MOUNT];
    this.table.remove(slot);
    this.mounts.unref(mount);
  }
}
