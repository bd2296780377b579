/**
 * Requests that wait for a commit: FLUSH, FSYNC, truncation by name, writes that are synchronous. A large file can take hours, so such a request ends
 * with EINTR when its guest does not want it any more (INTERRUPT, which Linux's virtiofs driver does not send), and when everything else waits for
 * it because rings are drained. The commit goes on: nothing that was written is given up with the request.
 */
import { E } from '../../base/errno.js';
import type { FileSystemRequest } from '../filesystem.js';

/** While rings are drained a commit is waited for so long, counted from its request. */
const DRAIN_MS = 2_000;

interface Wait {
  readonly low: number;
  readonly high: number;
  readonly began_ms: number;
  readonly end: () => void;
}

export class CommitWaits {
  readonly #waits = new Set<Wait>();

  /** @returns what `done` gives, or −EINTR; who asked must not use the request afterwards */
  async wait(r: FileSystemRequest, done: Promise<number>): Promise<number> {
    done.catch(() => undefined); // it is heard here, or nobody waits for it
    let wait: Wait | undefined;
    const ended = new Promise<number>((resolve) => {
      wait = { low: r.uniqueLow, high: r.uniqueHigh, began_ms: performance.now(), end: () => resolve(-E.INTR) };
    });
    this.#waits.add(wait!);
    return Promise.race([done, ended]).finally(() => this.#waits.delete(wait!));
  }

  /** @returns whether the request was waiting, and has ended */
  interrupt(low: number, high: number): boolean {
    for (const wait of this.#waits) {
      if (wait.low !== low || wait.high !== high) continue;
      wait.end();
      return true;
    }
    return false;
  }

  /** Rings are drained: nobody waits longer than a moment. */
  drain(): void {
    const now = performance.now();
    for (const { began_ms, end } of this.#waits) setTimeout(end, Math.max(0, began_ms + DRAIN_MS - now)).unref();
  }
}
