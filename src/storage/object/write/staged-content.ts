/**
 * The bytes of a file that is being changed: those in its staging file, those still in the object that it was opened from, and holes; and
 * which of them the disk is known to have.
 *
 * The staging file has the file's own offsets; what is neither staged nor the object's is a hole in it.
 */
import { E, isDiskFull, systemError, thrownErrno } from '../../../base/errno.js';
import { O_DIRECT } from '../../../ffi/constants.js';
import * as c from '../../../ffi/libc.js';
import type { FileSystemRequest } from '../../filesystem.js';
import { WRITE_CACHE } from '../../fuse-flags.js';
import { StorageError } from '../errors.js';
import { Extents, without, type Extent } from '../extents.js';
import { WRITE_BYTES } from '../page-cache.js';
import type { Ledger } from './ledger.js';
import type { CacheDirectory } from './cache-directory.js';
import { describeContent, describeLost, type PlacedRecords } from './content-records.js';
import type { ContentLimits } from './layout.js';
import { contentOf, isSameContent, type Content, type JournalRecord } from './records.js';
import { StagingFile } from './staging-file.js';

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;

/** Of fallocate(2): nothing is moved, and space beyond the end is not reserved. */
export function canAllocate(mode: number): boolean {
  return [0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE].includes(mode);
}

/** Whose content it is. */
export interface ContentOwner {
  readonly id: number;
  /** Puts a change into the journal. @throws an error of the file system: then it is not there */
  record(record: ContentRecord): void;
  /** A range, or the size, is another one now. */
  changed(from: number, to: number): void;
  /** The journal knows of the file. */
  isKnown(): boolean;
}

export type ContentRecord = Extract<JournalRecord, { t: 'wrote' | 'cut' }>;

/** A content at one moment, by the number of its records. */
interface Moment {
  readonly content: Content;
  readonly contents: number;
}

export interface ContentLeft {
  readonly content: Content;
  readonly synced: Content | null;
  readonly lost: readonly Extent[];
}

export class StagedContent {
  readonly extents: Extents;
  readonly #staging: StagingFile;
  /** Records of content so far; one for all that a former daemon left. */
  #contents: number;
  /** What the last sync made sure of. */
  #synced: Moment | null = null;
  #everSynced = false;
  /** The object has the content of so many records. */
  #committed = -1;
  /** Ranges that the disk has lost: they are read and committed no more until they are written anew. */
  #lost: readonly Extent[] = [];
  #lostErrno = 0;
  /** The staging file may have bytes of what was cut off from here on: before the file grows beyond that they go. */
  #uncutFrom = Infinity;

  constructor(
    directory: CacheDirectory,
    readonly ledger: Ledger,
    readonly limits: ContentLimits,
    readonly owner: ContentOwner,
    { content, synced, lost }: ContentLeft,
    /** What a former daemon has left; null: nothing. */
    left: { readonly hasStaging: boolean } | null,
  ) {
    const events = { sync: () => this.sync(), lost: (errno: number) => this.#loses(errno), takeOver: (file: StagingFile) => this.#takeOver(file) };
    this.#staging = new StagingFile(directory, owner.id, events, left?.hasStaging === true);
    this.extents = Extents.of(content.size, content.objectBytes, content.staged);
    this.#contents = left === null ? 0 : 1;
    if (synced !== null) this.#synced = { content: synced, contents: isSameContent(synced, content) ? 1 : 0 };
    this.#everSynced = synced !== null;
    this.#lost = lost;
    if (lost.length > 0) this.#lostErrno = E.IO;
  }

  get contents(): number {
    return this.#contents;
  }

  /** A sync has made sure of something that the object does not have: a power failure must not confuse the two. */
  get hasSynced(): boolean {
    return this.#synced !== null && this.#synced.contents > this.#committed;
  }

  /** Records of content that the one has which describe() begins with. */
  get describedContents(): number {
    return this.hasSynced ? this.#synced!.contents : this.#contents;
  }

  /** A journal may say that the staging file is needed after a power failure. */
  get everSynced(): boolean {
    return this.#everSynced;
  }

  /** Bytes are only here, and a power failure would lose them. */
  get isUnsynced(): boolean {
    return this.#contents > Math.max(this.#synced?.contents ?? 0, this.#committed);
  }

  get isLost(): boolean {
    return this.#lost.length > 0;
  }

  /** The object has the content that there was at a moment. */
  committed(contents: number): void {
    this.#committed = Math.max(this.#committed, contents);
  }

  /** The object has all, and more than is here. */
  reset(size: number): void {
    this.extents.reset(size);
    this.#synced = null;
    this.#committed = this.#contents;
    this.#lost = [];
  }

  /** The request's data goes to the staging file. @returns bytes written or −errno. */
  write(r: FileSystemRequest, offset: number): number {
    if (this.#isTooLarge(offset, offset + r.size)) return -E.FBIG;
    const fd = this.#openedFor(offset + r.size);
    let n: number;
    do n = writePieces(fd, r, offset);
    while ((n < 0 ? isDiskFull(c.errno()) : n < r.size) && this.ledger.makeRoom());
    // A disk that takes nothing, and says no reason: programs would ask for ever
    if (n <= 0) return n < 0 ? -c.errno() : r.size === 0 ? 0 : -E.IO;
    if (n < r.size && !mayBeShort(r)) {
      this.#unwrite(offset, offset + n);
      return -E.NOSPC;
    }
    const errno = this.#staged(offset, offset + n);
    return errno < 0 ? errno : n;
  }

  /** [from, to) reads as zeros; `grow`: also beyond the end. @returns 0 or −errno */
  zero(from: number, to: number, grow: boolean): number {
    const end = grow ? to : Math.min(to, this.extents.size);
    if (this.#isTooLarge(end, end)) return -E.FBIG;
    if (end <= from) return 0;
    // Before anything is changed that could not be undone
    this.ledger.reserve();
    this.#openedFor(end);
    this.#staging.grow(Math.max(end, this.extents.size));
    this.#staging.punch(from, end);
    const errno = this.#staged(from, end);
    // For this daemon: a commit need not send them. The next one takes them for data
    if (errno === 0) this.extents.zero(from, end);
    return errno;
  }

  /** With data from here to there: no object is so large, or too many zeros would have to be sent. */
  #isTooLarge(from: number, end: number): boolean {
    const { fileMaxBytes, holeMaxBytes } = this.limits;
    const hole = from - this.extents.size;
    return end > fileMaxBytes || (hole > 0 && holeMaxBytes < Infinity && hole + this.extents.holeBytes > holeMaxBytes);
  }

  /** fallocate(2) of [from, to), with a mode for which canAllocate(). @returns 0 or −errno */
  fallocate(mode: number, from: number, to: number): number {
    // Space cannot be reserved in a bucket
    if (mode === 0) return to > this.extents.size ? this.truncate(to) : 0;
    return this.zero(from, to, mode === FALLOC_FL_ZERO_RANGE);
  }

  /** @returns 0 or −errno */
  truncate(size: number): number {
    if (this.#isTooLarge(size, size)) return -E.FBIG;
    const before = this.extents.size;
    try {
      // Also where it is cut: from when the staging file was changed the next daemon knows the time
      this.#openedFor(size);
      if (size > before) this.#staging.grow(size);
      this.#record({ t: 'cut', id: this.owner.id, size });
    } catch (error) {
      return errnoOfSystem(error);
    }
    this.extents.truncate(size);
    this.#lost = without(this.#lost, size, Infinity);
    if (size < before) this.#uncutFrom = Math.min(this.#uncutFrom, size);
    this.owner.changed(Math.min(size, before), Math.max(size, before));
    this.#cutIfSafe();
    return 0;
  }

  /** Bytes that a sync has made sure of were cut off: they go when another sync has made sure of that, and whoever has cut waits for it. */
  get isCutUnsafe(): boolean {
    return this.#isSyncedBeyond(this.#uncutFrom);
  }

  /** A power failure would leave bytes of the staging file that are behind this one. */
  #isSyncedBeyond(size: number): boolean {
    if (this.#synced === null || this.#synced.contents <= this.#committed) return false;
    return (this.#synced.content.staged.at(-1)?.to ?? 0) > size;
  }

  #cutIfSafe(): void {
    if (this.#uncutFrom === Infinity || this.isCutUnsafe) return;
    try {
      this.#cut();
    } catch {
      // Before the file grows it is tried again
    }
  }

  /** Everything up to the end is answered without asking the store. */
  isStaged(from: number, to: number): boolean {
    return this.extents.pieces(from, to).every((piece) => piece.where !== 'object');
  }

  /** From the staging file; whoever asks has made sure that all of it is there. @returns bytes or −errno */
  readStaged(r: FileSystemRequest): number {
    const bytes = Math.min(r.size, this.extents.size - r.offset);
    if (bytes <= 0) return 0;
    if (this.#lost.length > 0 && overlaps(this.#lost, r.offset, r.offset + bytes)) return -this.#lostErrno;
    const fd = this.#staging.fd();
    // It was put aside meanwhile
    if (fd < 0) return -E.STALE;
    const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, 0);
    if (n < 0) return -c.errno();
    return n >= bytes ? bytes : this.#readHole(r, bytes);
  }

  /** The staging file is shorter than the file: what is behind its end are zeros. */
  #readHole(r: FileSystemRequest, bytes: number): number {
    this.#staging.grow(this.extents.size);
    const n = c.preadv2(this.#staging.fd(), r.iovecs, r.iovecCount, r.offset, 0);
    return n < 0 ? -c.errno() : Math.min(n, bytes);
  }

  /** Bytes of the object; what was written meanwhile counts more. `record`: the journal knows of the file. @throws StorageError, an error of the file system */
  filled(offset: number, source: Uint8Array, record: boolean): void {
    // It was put aside meanwhile
    if (this.#staging.fd() < 0) throw new StorageError('changed', `fetch for staging file ${this.owner.id}`);
    for (const piece of this.extents.pieces(offset, offset + source.length)) {
      if (piece.where !== 'object') continue;
      this.#staging.write(source.subarray(piece.from - offset, piece.to - offset), piece.from);
      if (record) this.#append({ t: 'wrote', id: this.owner.id, from: piece.from, to: piece.to, fetched: true });
      this.extents.write(piece.from, piece.to);
    }
  }

  /** Where the staging file has nothing of the file it has zeros. @throws an error of the file system */
  clearUnstaged(): void {
    if (!this.#staging.made) return;
    for (const piece of this.extents.pieces()) if (piece.where === 'object') this.#staging.punch(piece.from, piece.to);
  }

  /** The first `size` bytes, of which all are staged. @throws an error of the disk */
  read(size: number): Uint8Array {
    const content = new Uint8Array(size);
    if (this.#staging.made) this.#staging.read(content);
    this.verify();
    return content;
  }

  /**
   * Something reads the staging file: its descriptor stays open meanwhile, and the file is as long as it is to be, and at least `bytes`: what is to be sent may
   * have been cut off since that was planned. @throws an error of the file system
   */
  async sending<T>(bytes: number, body: (fd: number) => Promise<T>): Promise<T> {
    this.verify();
    this.#staging.grow(Math.max(bytes, this.extents.size));
    return this.#staging.using(body);
  }

  /** Everything that was read so far is good. @throws an error of the disk */
  verify(): void {
    if (this.#lost.length > 0) throw systemError(this.#lostErrno, 'fsync', `the disk has lost ${bytesOf(this.#lost)} bytes that were written here`);
    this.#staging.verify();
  }

  /**
   * The content is on the disk, and the journal says so.
   * @throws an error of the disk; then, and until they are written anew, the bytes that were not synced before are read and committed no more
   */
  async sync(): Promise<void> {
    for (;;) {
      this.verify();
      if (this.#synced?.contents === this.#contents) return await this.ledger.sync();
      const { rewrites } = this.ledger;
      const moment = { content: contentOf(this.extents), contents: this.#contents };
      try {
        await this.#staging.sync();
      } catch (error) {
        this.#loses(-(errnoOfSystem(error)));
        throw error;
      }
      // It was committed meanwhile, or put aside
      if (!this.owner.isKnown()) return;
      // Of records that were replaced by others nobody could say how many there were since
      if (this.ledger.rewrites !== rewrites) continue;
      this.ledger.append({ t: 'synced', id: this.owner.id, after: this.#contents - moment.contents });
      this.#everSynced = true;
      if (this.#synced === null || this.#synced.contents < moment.contents) this.#synced = moment;
      await this.ledger.sync();
      return this.#cutIfSafe();
    }
  }

  /** See content-records.ts. */
  describe(records: PlacedRecords): Generator<JournalRecord> {
    const synced = this.hasSynced ? this.#synced!.content : null;
    return describeContent(this.owner.id, { now: contentOf(this.extents), synced, isChanged: this.#contents > this.describedContents, lost: this.#lost }, records);
  }

  /** Nothing of it is needed any more. @param safe see StagingFile.remove() */
  remove(safe: (() => Promise<unknown>) | null): void {
    this.#staging.remove(safe);
  }

  /** No sync is under way; how it ended is for others to hear. */
  quiet(): Promise<void> {
    return this.#staging.synced();
  }

  abandon(): void {
    this.#staging.abandon();
  }

  #append(record: ContentRecord): void {
    this.ledger.append(record);
    this.#contents++;
  }

  #record(record: ContentRecord): void {
    this.owner.record(record);
    this.#contents++;
  }

  /** @returns 0 or −errno */
  #staged(from: number, to: number): number {
    try {
      this.#record({ t: 'wrote', id: this.owner.id, from, to });
    } catch (error) {
      this.#unwrite(from, to);
      return errnoOfSystem(error);
    }
    this.extents.write(from, to);
    if (this.#lost.length > 0) this.#lost = without(this.#lost, from, to);
    this.owner.changed(from, to);
    return 0;
  }

  /** What was zeros is zeros again, since nobody knows of what was written. */
  #unwrite(from: number, to: number): void {
    try {
      for (const piece of this.extents.pieces(from, to)) if (piece.where === 'zeros') this.#staging.punch(piece.from, piece.to);
    } catch {
      this.#lost = [...this.#lost, { from, to }];
      this.#lostErrno ||= E.IO;
    }
    if (to <= this.extents.size) return;
    this.#uncutFrom = Math.min(this.#uncutFrom, this.extents.size);
    try {
      this.#cut();
    } catch {
      // Before the file grows it is tried again
    }
  }

  /** What was cut off is no longer in the staging file, so that it does not come back when the file grows. @throws an error of the file system */
  /**
   * Rule: nothing is written behind what was cut off before that is gone. What a former daemon has left is only looked at when the staging file is opened, so that
   * comes first. @returns the descriptor @throws an error of the file system
   */
  #openedFor(end: number): number {
    const fd = this.#staging.fd();
    if (end > this.#uncutFrom) this.#cut();
    return fd;
  }

  #cut(): void {
    this.#staging.clear(this.#uncutFrom);
    this.#uncutFrom = Infinity;
  }

  /** Nobody knows what the disk has of the bytes that it was given since the last sync. */
  #loses(errno: number): void {
    this.#lostErrno = errno;
    this.#lost = [...this.extents.staged];
    if (!this.owner.isKnown()) return;
    try {
      for (const record of describeLost(this.owner.id, this.#lost)) this.ledger.append(record);
    } catch {
      // The journal is on that disk, too: this daemon knows of it as long as it runs
    }
  }

  /** A former daemon has ended: of a write that was never acknowledged nothing is left. */
  #takeOver(file: StagingFile): void {
    const { size } = this.extents;
    if (this.#isSyncedBeyond(size)) this.#uncutFrom = size;
    else file.setSize(size);
    for (const piece of this.extents.pieces()) if (piece.where === 'zeros') file.punch(piece.from, piece.to);
  }
}

const overlaps = (ranges: readonly Extent[], from: number, to: number): boolean => ranges.some((one) => one.from < to && from < one.to);
const bytesOf = (ranges: readonly Extent[]): number => ranges.reduce((sum, { from, to }) => sum + to - from, 0);

/** −errno of an error of a system call; any other is thrown again. */
export function errnoOfSystem(error: unknown): number {
  const errno = thrownErrno(error);
  if (errno === null) throw error;
  return errno;
}

/** Linux makes EIO of a short answer where its cache writes pages back, and of one to a request of several for an O_DIRECT write (fs/fuse/file.c). */
const mayBeShort = (r: FileSystemRequest): boolean => (r.fuseFlags & WRITE_CACHE) === 0 && (r.flags & O_DIRECT) === 0;

/** @returns bytes written, or −1 */
function writePieces(fd: number, r: FileSystemRequest, offset: number): number {
  for (let done = 0; ; ) {
    const bytes = Math.min(WRITE_BYTES, r.size - done);
    if (r.size > WRITE_BYTES) r.locatePart(done, bytes);
    const n = c.pwritev2(fd, r.iovecs, r.iovecCount, offset + done, 0);
    if (n < 0) return done > 0 ? done : n;
    done += n;
    if (n < bytes || done === r.size) return done;
  }
}
