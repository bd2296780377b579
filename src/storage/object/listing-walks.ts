/**
 * Walks through listings of many pages, for requests that wait. How long a listing is the endpoint decides; so when rings are drained, for a frontend that
 * has gone for instance, walks that have not ended a moment later are given up. What has changed something is no such walk.
 */
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

  drain(): void {
    const walking = [...this.#walking];
    if (walking.length === 0) return;
    setTimeout(() => {
      for (const ending of walking) ending.abort();
    }, DRAIN_MS).unref();
  }
}
