/**
 * Acting as the guest's user for one system call.
 *
 * fsuid, fsgid and the groups are properties of a thread in Linux, and so are the capabilities that change with
 * fsuid; only the calling thread is affected. Requests of root, the common case, switch nothing.
 */
import { E } from '../../base/errno.js';
import { _LINUX_CAPABILITY_VERSION_3 } from '../../ffi/constants.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { FORBIDDEN } from './idmap.js';

const CAP_FSETID = 4;
const SETGROUPS = c.syscallNumber('setgroups');
const CAPGET = c.syscallNumber('capget');
const CAPSET = c.syscallNumber('capset');

const memory = NativeMemory.allocate(4096);
const HEADER = memory.address;
const DATA = memory.address + 64;
const DATA_WORD = 16;
const GROUPS_WORD = 64;

export class Credentials {
  readonly #uid: number;
  readonly #gid: number;
  /** Without root only the daemon's own identity can act; other callers get EPERM where it would matter. */
  readonly canSwitch: boolean;
  readonly #baseGroups: Int32Array;
  readonly #hasFsetid: boolean;

  constructor() {
    this.#uid = process.geteuid!();
    this.#gid = process.getegid!();
    this.canSwitch = this.#uid === 0;
    const groups = process.getgroups!();
    this.#baseGroups = Int32Array.from(groups);
    memory.u32[0] = _LINUX_CAPABILITY_VERSION_3;
    memory.u32[1] = 0;
    const got = c.syscall6(CAPGET, HEADER, DATA, 0, 0, 0, 0) === 0;
    this.#hasFsetid = got && (memory.u32[DATA_WORD] & (1 << CAP_FSETID)) !== 0;
  }

  /**
   * Take the identity for creations; 0 or −errno. leave() must follow when it was 0.
   * @param suppGid −1: none, or FORBIDDEN
   */
  enter(uid: number, gid: number, suppGid: number): number {
    // As virtiofsd has it: a caller with such a group makes nothing, even where the group does not matter
    if (suppGid === FORBIDDEN) return -E.PERM;
    if (uid === this.#uid && gid === this.#gid && suppGid < 0) return 0;
    // Without root everything is done as the daemon's user; the guest's root is content with that, other users are not
    if (!this.canSwitch) return uid === this.#uid || uid === 0 ? 0 : -E.PERM;
    if (suppGid >= 0) {
      memory.i32[GROUPS_WORD] = suppGid;
      if (c.syscall6(SETGROUPS, 1, memory.address + GROUPS_WORD * 4, 0, 0, 0, 0) !== 0) return -c.errno();
    }
    c.setfsgid(gid);
    c.setfsuid(uid);
    // These two report no failure; asking again with an invalid id returns the one in force
    if ((uid !== this.#uid && c.setfsuid(-1 >>> 0) !== (uid | 0)) || (gid !== this.#gid && c.setfsgid(-1 >>> 0) !== (gid | 0))) {
      this.leave(uid, gid, suppGid);
      return -E.PERM;
    }
    return 0;
  }

  leave(uid: number, gid: number, suppGid: number): void {
    if (!this.canSwitch) return;
    if (uid !== this.#uid) c.setfsuid(this.#uid);
    if (gid !== this.#gid) c.setfsgid(this.#gid);
    if (suppGid >= 0) {
      memory.i32.set(this.#baseGroups, GROUPS_WORD);
      c.syscall6(SETGROUPS, this.#baseGroups.length, memory.address + GROUPS_WORD * 4, 0, 0, 0, 0);
    }
  }

  /**
   * Without CAP_FSETID the kernel clears set-user-ID and set-group-ID on write, truncate and chmod as it does for
   * an ordinary user; that is what FUSE's KILL_SUIDGID flags ask for. Runs a call so, if `drop`, in this thread,
   * since capabilities are a thread's. @returns what the call returns.
   */
  withoutFsetid(drop: boolean, call: () => number): number {
    const dropped = drop && this.#hasFsetid && this.#setFsetid(false);
    const result = call();
    if (dropped) this.#setFsetid(true);
    return result;
  }

  #setFsetid(on: boolean): boolean {
    memory.u32[0] = _LINUX_CAPABILITY_VERSION_3;
    memory.u32[1] = 0;
    if (c.syscall6(CAPGET, HEADER, DATA, 0, 0, 0, 0) !== 0) return false;
    const bit = 1 << CAP_FSETID;
    memory.u32[DATA_WORD] = on ? memory.u32[DATA_WORD] | bit : memory.u32[DATA_WORD] & ~bit;
    return c.syscall6(CAPSET, HEADER, DATA, 0, 0, 0, 0) === 0;
  }
}
