/**
 * Walks through listings of many pages, and requests that wait for their turn. How long a listing is the endpoint decides; so when rings are drained, for a frontend that
 * has gone for instance, walks that have not ended a moment later are given up. What has changed something is no such walk.
 */
import { StorageError } from './errors.js';

const DRAIN_MS = 2_000;

export class ListingWalks {
  readonly #walking = new Set<AbortController>();

  /** @throws StorageError `aborted` when it is given up, and whatever `walk` throws */
  async run<T>(walk: (signal: AbortSignal) => Promise<T>): Promise<T> {
    const ending = new AbortController();
    this.#walking.add(ending);
    try {
      return await walk(ending.signal);
    } finally {
      this.#walking.delete(ending);
    }
  }

  /** Wait for others first, before anything is changed. @throws StorageError `aborted` when it is given up */
  turn(others: Promise<unknown>): Promise<void> {
    return this.run((signal) => after(others, signal));
  }

  drain(): void {
    const walking = [...this.#walking];
    if (walking.length === 0) return;
    setTimeout(() => {
      for (const ending of walking) ending.abort();
    }, DRAIN_MS).unref();
  }
}

/** Wait for others. @throws StorageError `aborted` when that was given up meanwhile */
export async function after(others: Promise<unknown>, signal: AbortSignal): Promise<void> {
  await others;
  if (signal.aborted) throw new StorageError('aborted', 'wait');
}
