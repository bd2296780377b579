/**
 * Requests that wait until a process of the host gives up its lease on a file (fcntl F_SETLEASE): the host's kernel lets an open or a truncation wait for it,
 * 45 s by default. Files are opened with O_NONBLOCK, which says instead that there is one and asks its holder to give it up; the request is then
 * tried again on a timer. So neither the main thread nor one of the pool waits in the kernel for what a user of the host does.
 */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { O_CLOEXEC, O_NONBLOCK, O_WRONLY } from '../../ffi/constants.js';
import { PENDING, type FileSystemRequest } from '../filesystem.js';

/** Instead of −errno: somebody has a lease on the file, nothing has been done. No errno is that large. */
export const LEASED = -0x3ffffffe;

const RETRY_MIN_MS = 1;
const RETRY_MAX_MS = 100;
/** Beyond that a request is EAGAIN. */
const WAITS_MAX = 1024;

interface Wait {
  readonly low: number;
  readonly high: number;
  readonly end: (goOn: boolean) => void;
}

export class Leases {
  readonly #waits = new Set<Wait>();

  /** Answer a request later that was LEASED just now. @returns PENDING */
  later(r: FileSystemRequest, attempt: () => number): number {
    r.defer();
    void this.retry(r, async () => attempt()).then((result) => r.complete(result), () => r.complete(-E.IO));
    return PENDING;
  }

  /** Try again until the lease is given up, or the request is wanted no more (EINTR). */
  async retry(r: FileSystemRequest, attempt: () => Promise<number>): Promise<number> {
    for (let delay_ms = RETRY_MIN_MS; ; delay_ms = Math.min(RETRY_MAX_MS, delay_ms * 2)) {
      if (this.#waits.size >= WAITS_MAX) return -E.AGAIN;
      if (!(await this.#pause(r, delay_ms))) return -E.INTR;
      const result = await attempt();
      if (result !== LEASED) return result;
    }
  }

  #pause(r: FileSystemRequest, delay_ms: number): Promise<boolean> {
    return new Promise((resolve) => {
      const end = (goOn: boolean): void => {
        clearTimeout(timer);
        this.#waits.delete(wait);
        resolve(goOn);
      };
      const timer = setTimeout(() => end(true), delay_ms);
      const wait: Wait = { low: r.uniqueLow, high: r.uniqueHigh, end };
      this.#waits.add(wait);
    });
  }

  /** @returns whether the request waited, and has ended */
  interrupt(low: number, high: number): boolean {
    for (const wait of this.#waits) {
      if (wait.low !== low || wait.high !== high) continue;
      wait.end(false);
      return true;
    }
    return false;
  }

  cancel(): void {
    for (const { end } of [...this.#waits]) end(false);
  }
}

/**
 * A descriptor that keeps others from a lease until truncate(2) by name, which has no way of not waiting, is done; LEASED, or another −errno: then that call
 * says what it says.
 */
export function guardTruncation(procFd: number, name: number): number {
  const fd = c.neg(c.openat(procFd, name, O_WRONLY | O_NONBLOCK | O_CLOEXEC, 0));
  return fd === -E.AGAIN ? LEASED : fd;
}
