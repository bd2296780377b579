/**
 * A write goes where the guest says.
 *
 * WRITE carries its offset, FUSE_WRITE_CACHE for pages that the guest's cache writes back, and the flags that the guest's open file description has now:
 * fcntl(F_SETFL) changes O_APPEND and O_DIRECT after the open, and RWF_DSYNC asks for the disk once. So no host descriptor is opened with O_APPEND, where
 * pwrite(2) would not look at the offset, and each write has RWF_* flags of its own. RWF_APPEND keeps appends of several guests and of the host apart:
 * the guest's offset is the end of the file as that guest knows it.
 */
import { O_APPEND, O_DSYNC, O_SYNC, RWF_APPEND, RWF_DSYNC, RWF_SYNC } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { WRITE_CACHE } from '../fuse-flags.js';

/** __O_SYNC: what O_SYNC has beyond O_DSYNC. */
const O_SYNC_ONLY = O_SYNC & ~O_DSYNC;

/** Flags of pwritev2(2) for a WRITE. */
export function writeFlags(r: FileSystemRequest): number {
  const { flags } = r;
  let rwf = 0;
  if ((flags & O_DSYNC) !== 0) rwf |= RWF_DSYNC;
  if ((flags & O_SYNC_ONLY) !== 0) rwf |= RWF_SYNC;
  // With --writeback the end of the file is the guest's: what is before the offset may not have been written back yet
  if ((flags & O_APPEND) !== 0 && (r.fuseFlags & WRITE_CACHE) === 0 && !r.session.writeback) rwf |= RWF_APPEND;
  return rwf;
}

/** Bytes that other requests of the same append are going to fill. */
interface Gap {
  from: number;
  to: number;
  missing: number;
}

/**
 * Appends with O_DIRECT. Linux sends one of more than a request's size as several requests at the same time (FUSE_ASYNC_DIO), which come in any order:
 * RWF_APPEND would put a later one first. So those of a handle are done one after the other, and one that lies behind the end of the
 * file goes to its offset. So do those that come for the gap before it.
 */
export class DirectAppends {
  /** By handle. */
  readonly #gaps = new Map<number, Gap>();
  readonly #last = new Map<number, Promise<number>>();

  /** Whether one is under way in another thread. */
  isBusy(handle: number): boolean {
    return this.#last.has(handle);
  }

  /** RWF_APPEND or 0, for what the guest has at `offset` of a file that has `size` bytes now. */
  place(handle: number, offset: number, bytes: number, size: number): number {
    const gap = this.#gaps.get(handle);
    if (gap !== undefined && offset >= gap.from && offset < gap.to) {
      gap.missing -= bytes;
      if (gap.missing <= 0) this.#gaps.delete(handle);
      return 0;
    }
    if (offset <= size) return RWF_APPEND;
    this.#gaps.set(handle, { from: Math.min(gap?.from ?? size, size), to: offset, missing: (gap?.missing ?? 0) + offset - size });
    return 0;
  }

  /** Run one in another thread, after those of the handle before it. */
  inTurn(handle: number, run: () => Promise<number>): Promise<number> {
    const before = this.#last.get(handle);
    const result = before === undefined ? run() : before.then(run, run);
    this.#last.set(handle, result);
    const ended = (): void => {
      if (this.#last.get(handle) === result) this.#last.delete(handle);
    };
    result.then(ended, ended);
    return result;
  }

  /** The handle is closed: its number may come to mean another. */
  forget(handle: number): void {
    this.#gaps.delete(handle);
  }

  clear(): void {
    this.#gaps.clear();
  }
}
