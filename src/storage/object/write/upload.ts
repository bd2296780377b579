/** An upload in parts of a file that may change meanwhile: a part that was changed after it was sent is sent again. */
import type { Ledger } from './ledger.js';
import { cellsOf, excessOf, type Cell, type CommitSizes, type Copies, type Layout } from './layout.js';
import type { StagedFile } from './staged-file.js';
import type { Metadata, ObjectStore, Part, Upload, Version } from '../store.js';
import type { ZeroLease, ZeroObjects } from './zero-objects.js';
import { StorageError } from '../errors.js';

export interface UploadContext {
  readonly store: ObjectStore;
  readonly ledger: Ledger;
  readonly zeros: ZeroObjects;
  /** What is not staged is gone with its object: it is sent as the staging file has it. */
  readonly onlyStaged?: boolean;
}

interface Sent {
  readonly cell: Cell;
  /** Never rejects: an error is looked at when the part is needed. */
  readonly done: Promise<Part | Error>;
  /** Of the object that it was copied from; null: it was sent. */
  readonly copiedOf: Version | null;
  stale: boolean;
  failed: boolean;
}

/** What was copied and is larger is not sent in this upload, whatever is written to it meanwhile: that is for the next commit. */
const RESENT_MAX_BYTES = 1 << 30;
/** While somebody goes on writing, what was changed is sent again so often before the object is made. */
const ROUNDS_MAX = 3;

export class PartedUpload {
  readonly #sent = new Map<number, Sent>();
  #running = 0;
  readonly #waiting: (() => void)[] = [];
  readonly #caller = new AbortController();
  #following = false;
  /** The least size of the file since the last round of parts() began. */
  #shortest = 0;

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
    readonly zeros: ZeroLease,
    readonly onlyStaged: boolean,
  ) {}

  /** `layoutNow`: for the file as it is when the upload has begun. */
  static async begin(
    { store, ledger, zeros, onlyStaged = false }: UploadContext, file: StagedFile, key: string, layoutNow: () => Layout | null, sizes: CommitSizes, metadata: Metadata, commit: string,
  ): Promise<PartedUpload> {
    const { headers } = file.attributes();
    const upload = await store.beginUpload(key, { metadata, headers });
    ledger.uploadBegun(upload);
    const layout = layoutNow() ?? { start: () => 0, capacity: -1 }; // too large by now: parts() gives none
    return new PartedUpload(store, ledger, file, upload, layout, sizes, metadata, commit, zeros.lease(headers), onlyStaged);
  }

  /** Bytes that were sent, and would be sent again by another upload. */
  get sentBytes(): number {
    return [...this.#sent.values()].reduce((sum, { cell }) => (cell.source === 'staged' ? sum + cell.to - cell.from : sum), 0);
  }

  /** Of the file as it is now: bytes that would be sent, and are no data. */
  get excessBytes(): number {
    return excessOf(this.#cells(), this.file.extents);
  }

  /** Nobody needs it any more: what is under way is given up, and parts() fails with `aborted`. */
  stop(): void {
    this.#caller.abort();
  }

  /** What was sent of this range is sent again. */
  changed(from: number, to: number): void {
    this.#shortest = Math.min(this.#shortest, this.file.size);
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
      this.#send({ number: index + 1, from: this.layout.start(index), to: this.layout.start(index + 1), source: 'staged' });
    }
  }

  /**
   * All parts of the file as it is now, in order; null: of this upload it cannot be made.
   * @throws StorageError, or what reading the staging file failed with
   */
  async parts(): Promise<Part[] | null> {
    this.#following = false;
    for (let round = 1; ; round++) {
      if (this.file.size > this.layout.capacity) return null;
      const cells = this.#cells();
      this.#shortest = this.file.size;
      const numbers = new Set(cells.map(({ number }) => number));
      // The file was cut. S3 leaves out what is not listed; Ceph refuses to complete with fewer parts than there are
      if (numbers.size === 0 || [...this.#sent.keys()].some((number) => !numbers.has(number))) return null;
      let failed: Error | null = null;
      let isCut = false;
      const taken = await Promise.all(cells.map(async (cell) => {
        const result = await (this.#fresh(cell) ?? this.#queued(cell, () => failed !== null || isCut || (isCut = cell.from >= this.file.size)));
        if (result instanceof Error) failed ??= result;
        return result;
      }));
      const parts = taken.flatMap((one) => (one === null || one instanceof Error ? [] : [one]));
      if (failed !== null) throw failed as Error;
      if (isCut) return null;
      // A part that was sent after the file was cut has zeros where there had been bytes
      const now = this.#cells();
      if (isSamePlan(cells, now) && now.every((cell) => this.#fresh(cell) !== null)) return parts;
      if (round === ROUNDS_MAX) return this.#shortest < cells[cells.length - 1].to ? null : parts;
    }
  }

  /** Give it up; what fails about that is left to the next start. */
  async abort(): Promise<void> {
    this.#caller.abort();
    await this.settled();
    await this.store.abortUpload(this.upload);
    this.ledger.uploadEnded(this.upload);
  }

  /** Every part has come to an end: the staging file is read no more. */
  async settled(): Promise<void> {
    await Promise.allSettled([...this.#sent.values()].map((sent) => sent.done));
    this.zeros.end();
  }

  #cells(): Cell[] {
    const { file, store, layout, sizes } = this;
    return cellsOf(file.extents, layout, copiesOf(file, store, this.onlyStaged), sizes, store.limits);
  }

  #fresh(cell: Cell): Promise<Part | Error> | null {
    const sent = this.#sent.get(cell.number);
    if (sent === undefined || sent.failed || sent.cell.from !== cell.from || sent.cell.to !== cell.to) return null;
    const tooLarge = sent.cell.source !== 'staged' && cell.source === 'staged' && cell.to - cell.from > RESENT_MAX_BYTES;
    // What is no longer the object's may have been copied after it was cut off
    const isStale = sent.stale || (sent.cell.source === 'object' && cell.source !== 'object') || (sent.copiedOf !== null && sent.copiedOf !== this.file.base?.version);
    return isStale && !tooLarge ? null : sent.done;
  }

  /** When others have made room. @returns null if by then nobody needs it: another part has failed, or the file was cut */
  async #queued(cell: Cell, isVain: () => boolean): Promise<Part | Error | null> {
    while (this.#running >= this.sizes.partsAtOnce && !isVain()) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    if (!isVain()) return this.#fresh(cell) ?? this.#send(cell);
    this.#waiting.shift()?.();
    return null;
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
        if (result instanceof Error) sent.failed = true;
        return result;
      });
    const copiedOf = cell.source === 'object' ? this.file.base?.version ?? null : null;
    const sent: Sent = { cell, done, copiedOf, stale: false, failed: false };
    this.#sent.set(cell.number, sent);
    return done;
  }

  async #sendPart(cell: Cell, before: Promise<unknown> | undefined): Promise<Part> {
    // Two of the same number at once: nobody knows which comes last
    await before;
    const { file, store, upload } = this;
    const { signal } = this.#caller;
    const bytes = cell.to - cell.from;
    if (cell.source === 'zeros') return this.zeros.copyTo(upload, cell.number, bytes, { signal });
    if (cell.source === 'object' && file.base !== null) {
      try {
        return await this.#copy(cell, signal);
      } catch (error) {
        if (!(error instanceof StorageError) || error.code !== 'unsupported') throw error;
      }
    }
    if (!this.onlyStaged) await file.fill(cell.from, cell.to);
    return file.content.sending(cell.to, (fd) => store.putPart(upload, cell.number, { fd, offset: cell.from, bytes }, { signal }));
  }

  async #copy(cell: Cell, signal: AbortSignal): Promise<Part> {
    const { store, upload, file } = this;
    const { key, version } = file.base!;
    const copied = store.copyPart(upload, cell.number, { key, version, offset: cell.from, bytes: cell.to - cell.from }, { signal });
    if (store.capabilities.copyPartIfVersion) return copied;
    // It may be that another version was copied, or has no such part
    return copied.finally(async () => {
      const there = await store.head(key, { signal });
      if (there.version !== version) throw new StorageError('changed', `copy a part of ${store.location}/${key}`);
    });
  }
}

const isSamePlan = (a: readonly Cell[], b: readonly Cell[]): boolean =>
  a.length === b.length && a.every(({ number, from, to }, i) => number === b[i].number && from === b[i].from && to === b[i].to);

/** What of the file the provider copies; `onlyStaged`: not what is still in its object. */
export function copiesOf({ base }: StagedFile, { capabilities: { copyPart } }: ObjectStore, onlyStaged: boolean): Copies {
  return { base: base === null || onlyStaged ? 'none' : copyPart, baseBytes: base?.size ?? 0, zeros: copyPart };
}
