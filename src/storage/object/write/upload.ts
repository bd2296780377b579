/** An upload in parts of a file that may change meanwhile: a part that was changed after it was sent is sent again. */
import type { Ledger } from './ledger.js';
import { cellsOf, type Cell, type CommitSizes, type Layout } from './layout.js';
import type { StagedFile } from './staged-file.js';
import type { Metadata, ObjectStore, Part, Upload } from '../store.js';
import { StorageError } from '../errors.js';

interface Sent {
  readonly cell: Cell;
  /** Never rejects: an error is looked at when the part is needed. */
  readonly done: Promise<Part | Error>;
  stale: boolean;
}

/** While somebody goes on writing, what was changed is sent again so often before the object is made. */
const ROUNDS_MAX = 3;

export class PartedUpload {
  readonly #sent = new Map<number, Sent>();
  #running = 0;
  readonly #waiting: (() => void)[] = [];
  readonly #caller = new AbortController();
  #following = false;

  private constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
    readonly file: StagedFile,
    readonly upload: Upload,
    readonly layout: Layout,
    readonly sizes: CommitSizes,
    /** That of the object to be, and the commit's id in it. */
    readonly metadata: Metadata,
    readonly commit: string,
  ) {}

  static async begin(
    store: ObjectStore, ledger: Ledger, file: StagedFile, key: string, layout: Layout, sizes: CommitSizes, metadata: Metadata, commit: string,
  ): Promise<PartedUpload> {
    const upload = await store.beginUpload(key, { metadata, headers: file.attributes().headers });
    ledger.uploadBegun(upload);
    return new PartedUpload(store, ledger, file, upload, layout, sizes, metadata, commit);
  }

  /** What was sent of this range is sent again. */
  changed(from: number, to: number): void {
    for (const sent of this.#sent.values()) if (sent.cell.from < to && from < sent.cell.to) sent.stale = true;
  }

  /** From now on, send the parts that lie within what was written from the beginning without a gap. */
  follow(): void {
    this.#following = true;
    this.sendWritten();
  }

  sendWritten(): void {
    if (!this.#following || this.#caller.signal.aborted) return;
    const [first] = this.file.extents.staged;
    if (first === undefined || first.from > 0) return;
    for (let index = this.#sent.size; this.layout.start(index + 1) <= first.to && this.#running < this.sizes.partsAtOnce; index++) {
      this.#send({ number: index + 1, from: this.layout.start(index), to: this.layout.start(index + 1), copied: false });
    }
  }

  /**
   * All parts of the file as it is now, in order; null: of this upload it cannot be made.
   * @throws StorageError, or what reading the staging file failed with
   */
  async parts(): Promise<Part[] | null> {
    this.#following = false;
    for (let round = 1; ; round++) {
      const cells = this.#cells();
      const numbers = new Set(cells.map(({ number }) => number));
      // The file was cut. S3 leaves out what is not listed; Ceph refuses to complete with fewer parts than there are
      if (numbers.size === 0 || [...this.#sent.keys()].some((number) => !numbers.has(number))) return null;
      const parts: Part[] = [];
      let failed: Error | null = null;
      const taken = cells.map((cell) => this.#fresh(cell) ?? this.#queued(cell));
      for (const part of taken) {
        const result = await part;
        if (result instanceof Error) failed ??= result;
        else parts.push(result);
      }
      if (failed !== null) throw failed;
      if (round === ROUNDS_MAX || cells.every((cell) => this.#fresh(cell) !== null)) return parts;
    }
  }

  /** Give it up; what fails about that is left to the next start. */
  async abort(): Promise<void> {
    this.#caller.abort();
    await Promise.allSettled([...this.#sent.values()].map((sent) => sent.done));
    await this.store.abortUpload(this.upload);
    this.ledger.uploadEnded(this.upload);
  }

  /** Every part has come to an end: the staging file is read no more. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#sent.values()].map((sent) => sent.done));
  }

  #cells(): Cell[] {
    const { file, store, layout, sizes } = this;
    const copyPart = file.base === null ? 'none' : store.capabilities.copyPart;
    return cellsOf(file.extents, layout, file.base?.size ?? 0, sizes, store.limits, copyPart);
  }

  #fresh(cell: Cell): Promise<Part | Error> | null {
    const sent = this.#sent.get(cell.number);
    if (sent === undefined || sent.stale || sent.cell.from !== cell.from || sent.cell.to !== cell.to) return null;
    return sent.done;
  }

  async #queued(cell: Cell): Promise<Part | Error> {
    while (this.#running >= this.sizes.partsAtOnce) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return this.#fresh(cell) ?? this.#send(cell);
  }

  #send(cell: Cell): Promise<Part | Error> {
    this.#running++;
    const before = this.#sent.get(cell.number)?.done;
    const done = this.#sendPart(cell, before)
      .catch((error: Error) => error)
      .then((result) => {
        this.#running--;
        this.#waiting.shift()?.();
        this.sendWritten();
        // A part that failed is not there
        if (result instanceof Error && this.#sent.get(cell.number) === sent) sent.stale = true;
        return result;
      });
    const sent: Sent = { cell, done, stale: false };
    this.#sent.set(cell.number, sent);
    return done;
  }

  async #sendPart(cell: Cell, before: Promise<unknown> | undefined): Promise<Part> {
    // Two of the same number at once: nobody knows which comes last
    await before;
    const { file, store, upload } = this;
    const { signal } = this.#caller;
    const bytes = cell.to - cell.from;
    if (cell.copied && file.base !== null) {
      try {
        return await this.#copy(cell, signal);
      } catch (error) {
        if (!(error instanceof StorageError) || error.code !== 'unsupported') throw error;
      }
    }
    await file.fill(cell.from, cell.to);
    return file.sending((fd) => store.putPart(upload, cell.number, { fd, offset: cell.from, bytes }, { signal }));
  }

  async #copy(cell: Cell, signal: AbortSignal): Promise<Part> {
    const { store, upload, file } = this;
    const { key, version } = file.base!;
    const part = await store.copyPart(upload, cell.number, { key, version, offset: cell.from, bytes: cell.to - cell.from }, { signal });
    if (store.capabilities.copyPartIfVersion) return part;
    // It may be that another version was copied
    const there = await store.head(key, { signal });
    if (there.version !== version) throw new StorageError('changed', `copy a part of ${store.location}/${key}`);
    return part;
  }
}
