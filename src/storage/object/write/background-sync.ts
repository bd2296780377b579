/**
 * What is written and waits to be committed is on the disk a few seconds later, although nobody has asked for it: as with the host's own files. So a power
 * failure takes no more than that of a file whose commit fails for hours, or that is open for days.
 */
import type { Described } from './ledger.js';
import type { StagedFile } from './staged-file.js';

const INTERVAL_MS = 5_000;

export interface SyncLog {
  guest(key: string, fields: object, message: string, level?: 'warn' | 'info'): unknown;
}

export class BackgroundSync {
  #timer: NodeJS.Timeout | null = null;
  #running: Promise<void> | null = null;
  /** Not on the disk when it was looked for the last time. */
  #seen = new Set<StagedFile>();
  #closed = false;

  constructor(
    /** Those that the journal speaks of. */
    readonly files: ReadonlyMap<number, Described>,
    readonly log: SyncLog,
  ) {}

  /** Something was written. */
  note(): void {
    if (this.#timer !== null || this.#running !== null || this.#closed) return;
    this.#timer = setTimeout(() => this.#tick(), INTERVAL_MS);
    this.#timer.unref();
  }

  /** Everything is on the disk that is here only. What fails is in the log. */
  async all(): Promise<void> {
    await this.#running;
    await this.#sync(this.#unsynced());
  }

  close(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  /** Those that were written since the last time may be committed soon: they are looked at once more. */
  #tick(): void {
    this.#timer = null;
    const unsynced = this.#unsynced();
    const old = unsynced.filter((file) => this.#seen.has(file));
    this.#seen = new Set(unsynced);
    this.#running = this.#sync(old).finally(() => {
      this.#running = null;
      if (unsynced.length > 0) this.note();
    });
  }

  #unsynced(): StagedFile[] {
    return ([...this.files.values()] as StagedFile[]).filter((file) => file.isUnsynced && file.upload === null);
  }

  /** One after the other: others want the disk as well. */
  async #sync(files: readonly StagedFile[]): Promise<void> {
    for (const file of files) {
      if (file.disposed || !file.isUnsynced) continue;
      try {
        await file.content.sync();
      } catch (error) {
        const { store } = file.shop;
        this.log.guest('sync', { err: error, key: file.key }, `${store.location}/${file.key}: the disk of the cache directory has lost data that was written (${(error as Error).message}): it is not written to the bucket`);
      }
    }
  }
}
