/** The journal of one share: written before anything is acknowledged, and made anew when most of what it says is over. */
import { isDiskFull } from '../../../base/errno.js';
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

export interface Described {
  /** In order. */
  describe(): readonly JournalRecord[];
}

export class Ledger {
  /** Files that the journal has to speak of. */
  readonly files = new Map<number, Described>();
  readonly operations = new Map<number, Operation>();
  readonly uploads = new Map<string, Upload>();
  readonly hidden = new Set<string>();
  #lastId: number;
  #bytes = 0;

  constructor(
    readonly journal: Journal<JournalRecord>,
    lastId: number,
    /** The disk is full: whether there is more room now. */
    readonly makeRoom: () => boolean = () => false,
  ) {
    this.#lastId = lastId;
    this.#bytes = journal.bytes;
  }

  nextId(): number {
    return ++this.#lastId;
  }

  /** @throws an error of the file system: then the record is not there. */
  append(record: JournalRecord): void {
    // Before: whoever appends changes what is described only afterwards
    if (this.journal.bytes > REWRITE_MIN_BYTES && this.journal.bytes > GROWTH * this.#bytes) this.rewrite();
    const changes = CHANGES.has(record.t) && !('fetched' in record);
    for (;;) {
      try {
        return this.journal.append(record, changes ? SPARE_BYTES : 0);
      } catch (error) {
        if (!isFull(error) || !this.makeRoom()) throw error;
      }
    }
  }

  /** Only what still counts; where there is no room for that, all stays as it is for a while. */
  rewrite(): void {
    try {
      this.#rewrite();
    } catch (error) {
      if (!isFull(error)) throw error;
      this.#bytes = this.journal.bytes / 2;
    }
  }

  #rewrite(): void {
    this.journal.rewrite([
      ...[...this.files.values()].flatMap((file) => file.describe()),
      ...[...this.operations.values()].map((operation) => ({ t: 'operation', ...operation }) as const),
      ...[...this.uploads.values()].map((upload) => ({ t: 'upload', upload }) as const),
      ...[...this.hidden].map((key) => ({ t: 'hidden', key }) as const),
    ], SPARE_BYTES);
    this.#bytes = Math.max(this.journal.bytes, REWRITE_MIN_BYTES / GROWTH);
  }

  /** What was appended outlives the machine. */
  sync(): Promise<void> {
    return this.journal.sync();
  }

  begin(operation: Operation): void {
    this.append({ t: 'operation', ...operation });
    this.operations.set(operation.op, operation);
  }

  finish(operation: Operation): void {
    this.append({ t: 'finished', op: operation.op });
    this.operations.delete(operation.op);
  }

  uploadBegun(upload: Upload): void {
    this.append({ t: 'upload', upload });
    this.uploads.set(uploadId(upload), upload);
  }

  /** Completed or aborted. */
  uploadEnded(upload: Upload): void {
    this.append({ t: 'uploaded', upload });
    this.uploads.delete(uploadId(upload));
  }

  hide(key: string): void {
    this.append({ t: 'hidden', key });
    this.hidden.add(key);
  }

  removed(key: string): void {
    this.append({ t: 'removed', key });
    this.hidden.delete(key);
  }

  close(): void {
    this.journal.close();
  }
}

/** Errors of Node.js have the number negated. */
const isFull = (error: unknown): boolean => isDiskFull(-((error as NodeJS.ErrnoException).errno ?? 0));
