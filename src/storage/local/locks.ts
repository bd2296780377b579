/**
 * Remote locks: POSIX record locks per lock owner, and flock.
 *
 * A POSIX lock of a guest process is an open-file-description lock (fcntl(2)) on a descriptor kept for that
 * (inode, lock_owner). A request that must wait occupies neither the queue nor a pool thread: it is tried again when
 * a lock is dropped here, and on a timer for locks that others on the host hold; so any number can wait, each
 * can be interrupted, and none can keep the daemon from stopping.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { F_OFD_GETLK, F_OFD_SETLK, F_UNLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, O_CLOEXEC, O_RDONLY, O_RDWR } from '../../ffi/constants.js';
import { PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY, HANDLE_FILE } from '../handles.js';
import type { Share } from './share.js';

const FUSE_LK_FLOCK = 1;
const RETRY_MIN_MS = 1;
const RETRY_MAX_MS = 100;
const WAITERS_MAX = 4096;
const OWNERS_MAX = 4096;
/** Offsets are at most 2^63 − 1; the largest double below it stands for "to the end". */
const OFFSET_MAX = 2 ** 63;

interface Waiter {
  request: FileSystemRequest;
  attempt: () => number;
}

const memory = NativeMemory.allocate(4096);

export class Locks {
  /** node slot → owner → descriptor. */
  readonly #owners = new Map<number, Map<string, number>>();
  #ownerCount = 0;
  #waiters: Waiter[] = [];
  #timer: NodeJS.Timeout | null = null;
  #delay_ms = RETRY_MIN_MS;

  constructor(readonly share: Share) {}

  readonly getlk = (r: FileSystemRequest): number => {
    if (!this.share.options.posixLock) return -E.NOSYS;
    const fd = this.#ownerFd(r, true);
    if (fd < 0) return fd;
    this.#putFlock(r);
    const error = c.neg(c.fcntl(fd, F_OFD_GETLK, memory.address));
    if (error < 0) return error;
    r.lockType = memory.dv.getInt16(0, true);
    if (r.lockType === F_UNLCK) return 0;
    const start = Number(memory.dv.getBigInt64(8, true));
    const length = Number(memory.dv.getBigInt64(16, true));
    r.lockStart = start;
    r.lockEnd = length === 0 ? OFFSET_MAX : start + length - 1;
    // an open-file-description lock belongs to no process (−1): the guest has no use for a host pid either
    r.lockPid = 0;
    return 0;
  };

  readonly setlk = (r: FileSystemRequest): number => {
    const wait = r.flags !== 0;
    const flock = (r.fuseFlags & FUSE_LK_FLOCK) !== 0;
    if (flock ? !this.share.options.flock : !this.share.options.posixLock) return -E.NOSYS;
    const attempt = flock ? this.#flockAttempt(r) : this.#posixAttempt(r);
    if (typeof attempt === 'number') return attempt;
    const result = attempt();
    if (result === 0 && r.lockType === F_UNLCK) this.#retry();
    if (result !== -E.AGAIN || !wait) return result;
    if (this.#waiters.length >= WAITERS_MAX) return -E.NOLCK;
    r.defer();
    this.#waiters.push({ request: r, attempt });
    this.#arm(RETRY_MIN_MS);
    return PENDING;
  };

  #flockAttempt(r: FileSystemRequest): number | (() => number) {
    const { handles } = this.share;
    let handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_DIRECTORY);
    if (handle < 0) return -E.BADF;
    const op = [LOCK_SH, LOCK_EX, LOCK_UN][r.lockType];
    if (op === undefined) return -E.INVAL;
    const { fhLow, fhHigh } = r;
    return () => {
      // released while it waited: its descriptor may be another file by now
      const live = Math.max(handles.slotOf(fhLow, fhHigh, HANDLE_FILE), handles.slotOf(fhLow, fhHigh, HANDLE_DIRECTORY));
      return live < 0 ? -E.BADF : c.neg(c.flock(handles.fd(live), op | LOCK_NB));
    };
  }

  #posixAttempt(r: FileSystemRequest): number | (() => number) {
    if (r.lockType < 0 || r.lockType > F_UNLCK) return -E.INVAL;
    if (r.lockStart < 0 || r.lockEnd < r.lockStart) return -E.INVAL;
    if (r.lockType === F_UNLCK && this.#existing(r) < 0) return 0;
    const fd = this.#ownerFd(r, true);
    if (fd < 0) return fd;
    return () => {
      const live = this.#existing(r);
      if (live < 0) return -E.BADF;
      this.#putFlock(r);
      const error = c.neg(c.fcntl(live, F_OFD_SETLK, memory.address));
      return error === -E.ACCES ? -E.AGAIN : error;
    };
  }

  /** struct flock: l_type, l_whence, l_start, l_len, l_pid. */
  #putFlock(r: FileSystemRequest): void {
    memory.u8.fill(0, 0, 32);
    memory.dv.setInt16(0, r.lockType, true);
    memory.dv.setBigInt64(8, BigInt(r.lockStart), true);
    // 0 means to the end, which is also what a range to the largest offset is
    memory.dv.setBigInt64(16, r.lockEnd >= OFFSET_MAX - 1024 ? 0n : BigInt(r.lockEnd - r.lockStart + 1), true);
  }

  #existing(r: FileSystemRequest): number {
    return this.#owners.get(r.nodeLow)?.get(ownerKey(r)) ?? -1;
  }

  /** The descriptor on which this owner's locks of this inode are held; opened when it is the first. */
  #ownerFd(r: FileSystemRequest, create: boolean): number {
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    const existing = this.#existing(r);
    if (existing >= 0 || !create) return existing;
    if (this.#ownerCount >= OWNERS_MAX) return -E.NOLCK;
    let fd = this.share.openNode(slot, O_RDWR | O_CLOEXEC);
    if (fd < 0) fd = this.share.openNode(slot, O_RDONLY | O_CLOEXEC); // read-only media: shared locks still work
    if (fd < 0) return fd;
    let owners = this.#owners.get(slot);
    if (owners === undefined) this.#owners.set(slot, (owners = new Map()));
    owners.set(ownerKey(r), fd);
    this.#ownerCount++;
    this.share.inodes.addOpen(slot);
    return fd;
  }

  /** A process closed a descriptor of the file: its POSIX locks on it end (FLUSH with lock_owner). */
  dropOwner(r: FileSystemRequest): void {
    const owners = this.#owners.get(r.nodeLow);
    const fd = owners?.get(ownerKey(r));
    if (owners === undefined || fd === undefined) return;
    owners.delete(ownerKey(r));
    if (owners.size === 0) this.#owners.delete(r.nodeLow);
    this.#ownerCount--;
    c.close(fd);
    this.share.inodes.dropOpen(r.nodeLow);
    this.#retry();
  }

  /** A file was released: flock locks may have gone with it. */
  released(): void {
    if (this.#waiters.length > 0) this.#retry();
  }

  /** End a waiting request with EINTR; false if none of the waiting ones has this unique. */
  interrupt(uniqueLow: number, uniqueHigh: number): boolean {
    const at = this.#waiters.findIndex((w) => w.request.uniqueLow === uniqueLow && w.request.uniqueHigh === uniqueHigh);
    if (at < 0) return false;
    this.#waiters.splice(at, 1)[0].request.complete(-E.INTR);
    return true;
  }

  cancelWaiting(): void {
    for (const waiter of this.#waiters.splice(0)) waiter.request.complete(-E.INTR);
    this.#disarm();
  }

  clear(): void {
    this.cancelWaiting();
    for (const owners of this.#owners.values()) for (const fd of owners.values()) c.close(fd);
    this.#owners.clear();
    this.#ownerCount = 0;
  }

  #retry(): void {
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      const result = waiter.attempt();
      if (result === -E.AGAIN) this.#waiters.push(waiter);
      else waiter.request.complete(result);
    }
    if (this.#waiters.length === 0) this.#disarm();
  }

  #arm(delay_ms: number): void {
    this.#delay_ms = delay_ms;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = setTimeout(() => {
      this.#timer = null;
      this.#retry();
      if (this.#waiters.length > 0) this.#arm(Math.min(RETRY_MAX_MS, this.#delay_ms * 2));
    }, delay_ms);
    this.#timer.unref();
  }

  #disarm(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }
}

function ownerKey(r: FileSystemRequest): string {
  return `${r.ownerHigh}:${r.ownerLow}`;
}
