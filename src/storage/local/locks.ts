/**
 * Remote locks: POSIX record locks per lock owner, and flock.
 *
 * A holder's locks, its descriptor and its count go when the holder does, whatever way it goes. A process that closes any descriptor of the file sends a
 * FLUSH that names it as the owner (also at exit and when it is killed). An open file as the owner (OFD locks) is named by no FLUSH: it goes with its
 * RELEASE, as do owners that no open file is left of. FORGET comes after all RELEASEs; when the guest is gone everything is.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import {
  F_OFD_GETLK, F_OFD_SETLK, F_RDLCK, F_UNLCK, F_WRLCK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, O_APPEND, O_CLOEXEC, O_NONBLOCK, O_RDONLY, O_RDWR, O_WRONLY,
} from '../../ffi/constants.js';
import { PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_DIRECTORY, HANDLE_FILE } from '../handles.js';
import { LEASED } from './leases.js';
import { LAST_BYTE, LockOwner } from './lock-owner.js';
import { LockWaiters, type Waiter } from './lock-waiters.js';
import type { Share } from './share.js';

const FUSE_LK_FLOCK = 1;
const OWNERS_MAX = 4096;
/** Ranges of all owners: each takes memory here and in the host's kernel, and time at each request of their file. */
const RANGES_MAX = 8192;
/** How an owner's descriptor is opened, the first that the host allows: an append-only inode wants O_APPEND, a read-only file system takes shared locks only. */
const OPEN_FLAGS = [O_RDWR, O_RDWR | O_APPEND, O_RDONLY, O_WRONLY] as const;

const memory = NativeMemory.allocate(4096);

export class Locks {
  /** node slot → owner's id → owner. */
  readonly #owners = new Map<number, Map<string, LockOwner>>();
  #ownerCount = 0;
  /** Ranges of all owners together. */
  #rangeCount = 0;
  /** Handles that have an flock. */
  readonly #flocked = new Set<number>();
  readonly #waiters = new LockWaiters();

  constructor(readonly share: Share) {}

  readonly getlk = (r: FileSystemRequest): number => {
    if (!this.share.options.posixLock) return -E.NOSYS;
    const handle = this.#handle(r);
    if (handle < 0) return handle;
    const slot = this.share.handles.node(handle);
    const owner = this.#owners.get(slot)?.get(ownerKey(r));
    // Asking makes no owner: the descriptor of the open file has no locks itself, and so sees those of all owners
    const error = ofd(F_OFD_GETLK, owner?.fd ?? this.share.handles.fd(handle), r.lockType, r.lockStart, r.lockEnd);
    if (error < 0) return error;
    const asked = r.lockType;
    r.lockType = memory.dv.getInt16(0, true);
    if (r.lockType === F_UNLCK) return 0;
    const length = memory.dv.getBigInt64(16, true);
    r.lockStart = memory.dv.getBigInt64(8, true);
    r.lockEnd = length === 0n ? LAST_BYTE : r.lockStart + length - 1n;
    // F_UNLCK asks for the caller's own locks (F_OFD_GETLK, Linux 6.5)
    r.lockPid = asked === F_UNLCK ? owner?.pid ?? 0 : this.#holder(slot, owner, r);
    return 0;
  };

  /** The guest's process whose lock the request's answer is, or 0: another guest's, or the host's. */
  #holder(slot: number, asker: LockOwner | undefined, r: FileSystemRequest): number {
    for (const owner of this.#owners.get(slot)?.values() ?? []) {
      if (owner !== asker && owner.ranges.overlaps(r.lockStart, r.lockEnd, r.lockType)) return owner.pid;
    }
    return 0;
  }

  readonly setlk = (r: FileSystemRequest): number => {
    const isFlock = (r.fuseFlags & FUSE_LK_FLOCK) !== 0;
    if (isFlock ? !this.share.options.flock : !this.share.options.posixLock) return -E.NOSYS;
    const handle = this.#handle(r, isFlock);
    if (handle < 0) return handle;
    if (r.lockType !== F_RDLCK && r.lockType !== F_WRLCK && r.lockType !== F_UNLCK) return -E.INVAL;
    return isFlock ? this.#flock(r, handle) : this.#posix(r, handle);
  };

  #flock(r: FileSystemRequest, handle: number): number {
    const slot = this.share.handles.node(handle);
    const fd = this.share.handles.fd(handle);
    const op = [LOCK_SH, LOCK_EX, LOCK_UN][r.lockType];
    // The descriptor lives as long as it is waited for: whoever waits through a handle is told when that is released
    const attempt = (): number => {
      const result = c.neg(c.flock(fd, op | LOCK_NB));
      // Who changes the kind of its lock gives up the one it has first, even where it does not get the other
      const gaveUp = op !== LOCK_EX || result !== 0 ? this.#flocked.delete(handle) : false;
      if (result === 0 && op !== LOCK_UN) this.#flocked.add(handle);
      if (gaveUp) this.#waiters.unflocked(slot);
      return result;
    };
    return this.#attempt(r, { slot, handle, isFlock: true, start: 0n, end: 0n, attempt });
  }

  #posix(r: FileSystemRequest, handle: number): number {
    const slot = this.share.handles.node(handle);
    const key = ownerKey(r);
    let owner = this.#owners.get(slot)?.get(key);
    if (owner === undefined && r.lockType === F_UNLCK) return 0;
    const { lockType, lockStart, lockEnd, lockPid } = r;
    let waits = false;
    const attempt = (): number => {
      if (owner === undefined) {
        const opened = this.#owners.get(slot)?.get(key) ?? this.#open(slot, key);
        // Somebody's lease keeps the file from being opened: as long as that, the lock is not to be had
        if (typeof opened === 'number') return opened === LEASED ? -E.AGAIN : opened;
        owner = opened;
        if (waits) owner.waiting++;
      }
      owner.handles.add(handle);
      if (lockType !== F_UNLCK && this.#rangeCount >= RANGES_MAX) return -E.NOLCK;
      const error = ofd(F_OFD_SETLK, owner.fd, lockType, lockStart, lockEnd);
      if (error < 0) return error === -E.ACCES ? -E.AGAIN : error;
      const frees = lockType === F_WRLCK ? false : owner.ranges.overlaps(lockStart, lockEnd, lockType === F_RDLCK ? F_WRLCK : undefined);
      this.#rangeCount -= owner.ranges.count;
      owner.ranges.set(lockStart, lockEnd, lockType);
      this.#rangeCount += owner.ranges.count;
      if (lockType !== F_UNLCK) owner.pid = lockPid;
      if (frees) this.#waiters.unlocked(slot, lockStart, lockEnd);
      return 0;
    };
    const result = this.#attempt(r, { slot, handle, isFlock: false, start: lockStart, end: lockEnd, attempt, ended: () => void (owner !== undefined && owner.waiting--) });
    waits = result === PENDING;
    if (waits && owner !== undefined) owner.waiting++;
    return result;
  }

  #attempt(r: FileSystemRequest, waiter: Omit<Waiter, 'request'>): number {
    const result = waiter.attempt();
    if (result !== -E.AGAIN || r.flags === 0) return result;
    if (this.#waiters.isFull) return -E.NOLCK;
    this.#waiters.add({ ...waiter, request: r.detach() });
    return PENDING;
  }

  /** The handle that a lock is asked for through, or −errno. */
  #handle(r: FileSystemRequest, isFlock = false): number {
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    const { handles } = this.share;
    let handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0 && isFlock) handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_DIRECTORY);
    return handle >= 0 && handles.node(handle) === slot ? handle : -E.BADF;
  }

  /** A new owner with a descriptor of its own, −errno, or LEASED. */
  #open(slot: number, key: string): LockOwner | number {
    if (this.#ownerCount >= OWNERS_MAX && !this.#dropIdle()) return -E.NOLCK;
    const first = this.share.openNode(slot, OPEN_FLAGS[0] | O_CLOEXEC | O_NONBLOCK);
    let fd = first;
    for (let i = 1; fd < 0 && fd !== LEASED && i < OPEN_FLAGS.length; i++) fd = this.share.openNode(slot, OPEN_FLAGS[i] | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0) return fd === LEASED ? LEASED : first;
    const owner = new LockOwner(slot, key, fd);
    const owners = this.#owners.get(slot);
    if (owners === undefined) this.#owners.set(slot, new Map([[key, owner]]));
    else owners.set(key, owner);
    this.#ownerCount++;
    this.share.inodes.addOpen(slot);
    return owner;
  }

  /** Make room: an owner that has no lock, and waits for none, is made again when it wants one. */
  #dropIdle(): boolean {
    for (const owners of this.#owners.values()) {
      for (const owner of owners.values()) {
        if (!owner.ranges.isEmpty || owner.waiting > 0) continue;
        this.#drop(owner);
        return true;
      }
    }
    return false;
  }

  #drop(owner: LockOwner): void {
    const owners = this.#owners.get(owner.slot);
    owners?.delete(owner.key);
    if (owners?.size === 0) this.#owners.delete(owner.slot);
    this.#ownerCount--;
    this.#rangeCount -= owner.ranges.count;
    c.close(owner.fd);
    this.share.inodes.dropOpen(owner.slot);
  }

  /** FLUSH: a process has closed a descriptor of the file, so its POSIX locks on it end. */
  flushed(r: FileSystemRequest): void {
    const slot = this.share.node(r);
    const owner = this.#owners.get(slot)?.get(ownerKey(r));
    if (owner === undefined) return;
    const freed = owner.ranges.span;
    if (owner.waiting > 0) {
      // Another thread waits through another descriptor: it goes on waiting
      ofd(F_OFD_SETLK, owner.fd, F_UNLCK, 0n, LAST_BYTE);
      this.#rangeCount -= owner.ranges.count;
      owner.ranges.clear();
    } else {
      this.#drop(owner);
    }
    if (freed !== null) this.#waiters.unlocked(slot, freed.start, freed.end);
  }

  /** RELEASE: the open file is about to be closed, or is as soon as calls in other threads are done with it. */
  released(handle: number): void {
    const { handles } = this.share;
    const slot = handles.node(handle);
    this.#waiters.released(slot, handle);
    if (this.#flocked.delete(handle)) {
      c.flock(handles.fd(handle), LOCK_UN);
      this.#waiters.unflocked(slot);
    }
    for (const owner of [...this.#owners.get(slot)?.values() ?? []]) {
      if (!owner.handles.delete(handle) || owner.handles.size > 0) continue;
      const freed = owner.ranges.span;
      this.#drop(owner);
      if (freed !== null) this.#waiters.unlocked(slot, freed.start, freed.end);
    }
  }

  interrupt(uniqueLow: number, uniqueHigh: number): boolean {
    return this.#waiters.interrupt(uniqueLow, uniqueHigh);
  }

  cancelWaiting(): void {
    this.#waiters.cancel();
  }

  /** The guest has gone. */
  clear(): void {
    this.cancelWaiting();
    for (const owners of this.#owners.values()) for (const owner of owners.values()) this.share.inodes.close(owner.slot, owner.fd);
    this.#owners.clear();
    this.#ownerCount = 0;
    this.#rangeCount = 0;
    this.#flocked.clear();
  }
}

/** fcntl(2) of an open-file-description lock on the bytes from start to end; 0 or −errno. struct flock: l_type, l_whence, l_start, l_len, l_pid. */
function ofd(command: number, fd: number, type: number, start: bigint, end: bigint): number {
  memory.u8.fill(0, 0, 32);
  memory.dv.setInt16(0, type, true);
  memory.dv.setBigInt64(8, start, true);
  memory.dv.setBigInt64(16, end === LAST_BYTE ? 0n : end - start + 1n, true);
  return c.neg(c.fcntl(fd, command, memory.address));
}

const ownerKey = (r: FileSystemRequest): string => `${r.ownerHigh}:${r.ownerLow}`;
