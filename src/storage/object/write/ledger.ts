/** The journal of one share: written before anything is acknowledged, and made anew when most of what it says is over. */
import { isDiskFull, thrownErrno } from '../../../base/errno.js';
import { Journal } from '../journal.js';
import type { JournalRecord, Operation } from './records.js';
import { uploadId } from './records.js';
import type { Upload } from '../store.js';

/** A journal that is smaller is left alone. */
const REWRITE_MIN_BYTES = 4 << 20;
/** It is made anew when it is so many times as large as it was then. */
const GROWTH = 4;
/** What guests change leaves so much for the commits that follow: a disk that is full of staged data becomes free by those only. */
const SPARE_BYTES = 256 << 10;
const CHANGES: ReadonlySet<JournalRecord['t']> = new Set<JournalRecord['t']>(['file', 'wrote', 'cut', 'attributes']);
/** Staging files that are to go wait so long for others, and then for one sync of the journal. */
const SYNC_DELAY_MS = 500;

export interface Described {
  /** In order. */
  describe(): Iterable<JournalRecord>;
}

export interface LedgerOptions {
  /** Of this boot of the machine. */
  readonly boot: string;
  /** The disk is full: whether there is more room now. */
  readonly makeRoom?: () => boolean;
}

/**
 * Rule: the state that a rewrite would write contains every record that was appended. So a record is appended first and the state changed right
 * after, with nothing in between that could append; what takes several records is appended as one.
 */
export class Ledger {
  /** Files that the journal has to speak of. */
  readonly files = new Map<number, Described>();
  readonly operations = new Map<number, Operation>();
  readonly uploads = new Map<string, Upload>();
  readonly hidden = new Set<string>();
  #lastId: number;
  #bytes = 0;
  #rewrites = 0;
  #renewing: Promise<void> | null = null;
  /** The journal still says what is over. */
  #isStale = false;
  /** Keys of files that a power failure would leave and that are over, which the journal on the disk does not say yet; and when they were noted. */
  readonly #ended = new Map<string, number>();
  #notes = 0;
  #soon: { readonly done: Promise<void>; readonly now: () => void } | null = null;

  constructor(
    readonly journal: Journal<JournalRecord>,
    lastId: number,
    readonly options: LedgerOptions,
  ) {
    this.#lastId = lastId;
    this.#bytes = journal.bytes;
  }

  /** What follows is of this boot of the machine. */
  begins(): void {
    try {
      this.journal.append([{ t: 'boot', boot: this.options.boot }]);
    } catch (error) {
      // What follows counts as of a former boot then, which is the safe side
      if (!isFull(error)) throw error;
    }
  }

  nextId(): number {
    return ++this.#lastId;
  }

  /** How often the journal was made anew: records of before are replaced by others. */
  get rewrites(): number {
    return this.#rewrites;
  }

  makeRoom(): boolean {
    return this.options.makeRoom?.() === true;
  }

  /** @throws an error of the file system: then the record is not there. */
  append(record: JournalRecord): void {
    this.appendAll([record]);
  }

  /**
   * Rule: what has happened does not fail since the journal cannot say so. Where there is no room for the record, or the disk fails, the journal is
   * made anew before it says anything else; a daemon that ends before that looks at it once more.
   * @returns whether the journal says it
   */
  over(record: JournalRecord): boolean {
    try {
      this.append(record);
      return true;
    } catch (error) {
      if (thrownErrno(error) === null) throw error;
      this.#isStale = true;
      return false;
    }
  }

  /** All of them or none. @throws an error of the file system */
  appendAll(records: readonly JournalRecord[]): void {
    // Before: whoever appends changes what is described only afterwards
    if (this.journal.failed) this.rewrite();
    else if (this.#isStale) this.#refresh();
    else if (this.journal.bytes > REWRITE_MIN_BYTES && this.journal.bytes > GROWTH * this.#bytes) void this.renew();
    const changes = records.some((record) => CHANGES.has(record.t) && !('fetched' in record));
    this.#roomFor(() => this.journal.append(records, changes ? SPARE_BYTES : 0));
  }

  /** A record of a change will fit. @throws an error of the file system: then there is no room for it */
  reserve(): void {
    this.#roomFor(() => this.journal.reserve(2 * SPARE_BYTES));
  }

  #roomFor(body: () => void): void {
    for (;;) {
      try {
        return body();
      } catch (error) {
        if (!isFull(error) || !this.makeRoom()) throw error;
      }
    }
  }

  /** Only what still counts, while everybody waits; where there is no room for that, all stays as it is for a while. @throws another error of the disk */
  rewrite(): void {
    try {
      this.#rewrite();
    } catch (error) {
      if (!isFull(error)) throw error;
      this.#bytes = this.journal.bytes / 2;
    }
  }

  /** As rewrite(); what fails is tried again with the next record. */
  #refresh(): void {
    try {
      this.#rewrite();
    } catch (error) {
      if (thrownErrno(error) === null) throw error;
    }
  }

  #rewrite(): void {
    this.journal.rewrite(this.#records(), SPARE_BYTES);
    this.#rewrites++;
    this.#isStale = false;
    this.#rewritten();
  }

  /** Only what still counts, and nobody waits for it. @returns when it is on the disk, or will not be for now */
  renew(): Promise<void> {
    if (this.#renewing !== null) return this.#renewing;
    const isStale = this.#isStale;
    const renewed = this.journal.renew(this.#records(), SPARE_BYTES);
    // What is under way counts records that are replaced now
    this.#rewrites++;
    this.#isStale = false;
    this.#renewing = renewed.then(() => this.#rewritten(), () => {
      this.#isStale ||= isStale;
      this.#bytes = this.journal.bytes / 2;
    }).finally(() => (this.#renewing = null));
    return this.#renewing;
  }

  #rewritten(): void {
    this.#bytes = Math.max(this.journal.bytes, REWRITE_MIN_BYTES / GROWTH);
  }

  *#records(): Generator<JournalRecord> {
    yield { t: 'boot', boot: this.options.boot };
    for (const file of this.files.values()) yield* file.describe();
    for (const operation of this.operations.values()) yield { t: 'operation', ...operation };
    for (const upload of this.uploads.values()) yield { t: 'upload', upload };
    for (const key of this.hidden) yield { t: 'hidden', key };
  }

  /** What was appended outlives the machine. */
  async sync(): Promise<void> {
    const ended = this.#ended.size === 0 ? [] : [...this.#ended];
    await this.journal.sync();
    for (const [key, note] of ended) if (this.#ended.get(key) === note) this.#ended.delete(key);
  }

  /** A file that a power failure would leave is not to be committed at this key any more. */
  ended(key: string): void {
    this.#ended.set(key, ++this.#notes);
  }

  /**
   * Rule: before the bucket is told of a name, the journal on the disk says what was promised under that name and is over. A power failure would bring it back
   * otherwise, and it would be in conflict with what the bucket has by then. See also beginSafely().
   * @throws an error of the disk
   */
  async settle(key: string): Promise<void> {
    if (this.#ended.has(key)) await this.sync();
  }

  /** sync(), a while later and together with others; also of what is over. @throws an error of the disk */
  async syncSoon(): Promise<void> {
    if (this.#isStale) this.#rewrite();
    await this.#synced();
  }

  #synced(): Promise<void> {
    if (this.#soon === null) {
      let now = (): void => undefined;
      const due = new Promise<void>((resolve) => (now = resolve));
      const timer = setTimeout(now, SYNC_DELAY_MS);
      const done = due.then(() => {
        clearTimeout(timer);
        this.#soon = null;
        return this.sync();
      });
      this.#soon = { done, now };
    }
    return this.#soon.done;
  }

  /** What waits for syncSoon() waits no longer than that takes. */
  hurry(): void {
    this.#soon?.now();
  }

  begin(operation: Operation): void {
    this.append({ t: 'operation', ...operation });
    this.operations.set(operation.op, operation);
  }

  /** The same, for one that a power failure must not make anybody forget: what it changes in the bucket would be taken for somebody else's. */
  async beginSafely(operation: Operation): Promise<void> {
    this.begin(operation);
    await this.sync();
  }

  finish(operation: Operation): void {
    this.over({ t: 'finished', op: operation.op });
    this.operations.delete(operation.op);
  }

  uploadBegun(upload: Upload): void {
    this.append({ t: 'upload', upload });
    this.uploads.set(uploadId(upload), upload);
  }

  /** Completed or aborted. */
  uploadEnded(upload: Upload): void {
    this.over({ t: 'uploaded', upload });
    this.uploads.delete(uploadId(upload));
  }

  hide(key: string): void {
    this.append({ t: 'hidden', key });
    this.hidden.add(key);
  }

  removed(key: string): void {
    this.over({ t: 'removed', key });
    this.hidden.delete(key);
  }

  /** Nothing is accepted any more. @returns when what was being synced is over, and its descriptors are closed */
  async close(): Promise<void> {
    this.hurry();
    const renewing = this.#renewing;
    await Promise.all([this.journal.close(), renewing]);
  }
}

const isFull = (error: unknown): boolean => isDiskFull(-(thrownErrno(error) ?? 0));
