/**
 * A file that is being changed: what was written is in a staging file, the rest still in the object it was opened from. Every
 * change is in the journal before it is acknowledged.
 *
 * The staging file has the file's own offsets and at least its size; what is neither staged nor the object's is a hole in it. It is made
 * when there is something to be kept in it: of which only attributes are changed has none.
 *
 * A directory that is not in the bucket yet, or whose attributes are not, is such a file too: its key is that of its marker, and it has no content.
 */
import { writeSync } from 'node:fs';
import { E, isDiskFull } from '../../../base/errno.js';
import { S_IFDIR, S_IFMT } from '../../../ffi/constants.js';
import * as c from '../../../ffi/libc.js';
import { viewOf } from '../../../ffi/memory.js';
import type { FileSystemRequest } from '../../filesystem.js';
import type { BlockCache } from '../blocks/block-cache.js';
import { Extents } from '../extents.js';
import { timeOf, type Facts } from '../facts.js';
import type { MemoryBudget } from '../memory-budget.js';
import { WRITE_BYTES } from '../page-cache.js';
import { Reader } from '../reader.js';
import { COMMIT } from '../settle.js';
import type { ObjectInfo, ObjectStore } from '../store.js';
import { attributesOf, factsOf, withoutPrivileges } from './attributes.js';
import type { CacheDirectory } from './cache-directory.js';
import type { Ledger } from './ledger.js';
import { StagingFile } from './staging-file.js';
import type { PartedUpload } from './upload.js';
import type { Attributes, Base, FileState, JournalRecord, LeftFile } from './records.js';

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const FALLOC_FL_ZERO_RANGE = 16;
/** So much of the object is fetched at once into the staging file. */
const FILL_BYTES = 8 << 20;
const DESCRIBED_PIECES = 1000;

export interface Workshop {
  readonly store: ObjectStore;
  readonly budget: MemoryBudget;
  readonly directory: CacheDirectory;
  readonly ledger: Ledger;
  /** For what is read of the objects that files were opened from. */
  readonly blocks: BlockCache | null;
}

/** Of fallocate(2): nothing is moved, and space beyond the end is not reserved. */
export function canAllocate(mode: number): boolean {
  return [0, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE, FALLOC_FL_ZERO_RANGE].includes(mode);
}

export class StagedFile {
  readonly extents: Extents;
  readonly #staging: StagingFile;
  #key: string | null;
  #base: Base | null;
  #attributes: Attributes;
  /** When data was changed last, if that is later than the times of the attributes; milliseconds since 1970, 0: it is not. */
  #wrote_ms = 0;
  #reader: Reader | null = null;
  /** Counts changes; a commit of the n-th change contains all before. */
  #changes: number;
  #committed = 0;
  /** The last change that was more than one of attributes. */
  #changedData = 0;
  #disposed = false;
  /** Commits that may have happened. */
  readonly doubts: Set<string>;
  /** Sends it in parts: told of changes, so that what was sent already is sent again. */
  upload: PartedUpload | null = null;

  private constructor(
    readonly shop: Workshop,
    readonly id: number,
    state: Omit<FileState, 'id'>,
    changes: number,
  ) {
    this.#staging = new StagingFile(shop.directory, id);
    this.#key = state.key;
    this.#base = state.base;
    this.#attributes = state.attributes;
    this.extents = Extents.of(state.size, state.objectBytes, state.staged);
    this.doubts = new Set(state.doubts);
    this.#changes = changes;
  }

  /** A file that is not in the bucket yet: with its first change, which is to exist. @throws an error of the file system */
  static create(shop: Workshop, key: string, facts: Facts): StagedFile {
    // A link has the size of its target, which the attributes have
    return StagedFile.#make(shop, { key, base: null, size: facts.size, objectBytes: 0, staged: [], attributes: attributesOf(facts), doubts: [] }, true);
  }

  /** A file that is going to differ from its object, but does not yet. @throws an error of the file system */
  static of(shop: Workshop, base: Base, facts: Facts): StagedFile {
    return StagedFile.#make(shop, { key: base.key, base, size: base.size, objectBytes: base.size, staged: [], attributes: attributesOf(facts), doubts: [] }, false);
  }

  static #make(shop: Workshop, state: Omit<FileState, 'id'>, changed: boolean): StagedFile {
    const file = new StagedFile(shop, shop.ledger.nextId(), state, 0);
    if (changed) file.#recordData(null);
    return file;
  }

  /** As the journal of a former daemon has it; it is in this daemon's ledger then. @throws an error of the file system */
  static restore(shop: Workshop, { id, ...state }: LeftFile): StagedFile {
    const file = new StagedFile(shop, id, state, 1);
    if (!isAttributesOnly(state)) file.#changedData = 1;
    const hasHoles = state.size > state.objectBytes && state.attributes.symlink === null;
    const staging = file.#staging.reopen(state.staged.length > 0 || hasHoles);
    if (staging !== null) {
      const { size, mtimeMs } = staging;
      file.#staging.grow(state.size);
      // Of a write that was never acknowledged
      if (size > state.size) file.#staging.punch(state.size, size);
      for (const piece of file.extents.pieces()) if (piece.where === 'zeros') file.#staging.punch(piece.from, piece.to);
      if (state.touched) file.#wrote_ms = mtimeMs;
    }
    shop.ledger.files.set(id, file);
    return file;
  }

  /** The object it is to become; null: none, its name is gone. */
  get key(): string | null {
    return this.#key;
  }

  get base(): Base | null {
    return this.#base;
  }

  /** The staging file, made if need be. @throws an error of the file system */
  get fd(): number {
    return this.#staging.fd(this.extents.size);
  }

  get directory(): boolean {
    return (this.#attributes.mode & S_IFMT) === S_IFDIR;
  }

  /** The object has all but the attributes. */
  get onlyDescribed(): boolean {
    return this.#base !== null && this.#base.key === this.#key && (this.directory || this.#changedData <= this.#committed);
  }

  get size(): number {
    return this.extents.size;
  }

  get changes(): number {
    return this.#changes;
  }

  /** Something was acknowledged that is in no object. */
  get dirty(): boolean {
    return this.#changes > this.#committed && this.#key !== null;
  }

  /** Somebody else has made another object: attributes that are to be set are those of one that has gone. */
  isOvertakenBy({ version, metadata }: ObjectInfo): boolean {
    const own = metadata?.[COMMIT];
    return this.onlyDescribed && !this.directory && version !== this.#base!.version && !(own !== undefined && this.doubts.has(own));
  }

  /** Whether changes up to the n-th are in the object. */
  committedUpTo(changes: number): boolean {
    return this.#committed >= changes || this.#key === null;
  }

  get disposed(): boolean {
    return this.#disposed;
  }

  /** The times are as they were set, not those of the last change of data. */
  get timesAreSet(): boolean {
    return this.#wrote_ms === 0;
  }

  facts(): Facts {
    return factsOf(this.attributes(), this.extents.size, this.#base);
  }

  attributes(): Attributes {
    if (this.#wrote_ms === 0) return this.#attributes;
    const time = timeOf(this.#wrote_ms);
    return { ...this.#attributes, mtime: time, ctime: time };
  }

  /** A record has a bound, and a file may be staged in very many pieces: most of them have records of their own then. */
  describe(): JournalRecord[] {
    const { size, objectBytes, staged } = this.extents;
    const { id } = this;
    return [
      {
        t: 'file', id, key: this.#key, base: this.#base, size, objectBytes, staged: staged.slice(0, DESCRIBED_PIECES), attributes: this.attributes(),
        doubts: [...this.doubts],
      },
      ...staged.slice(DESCRIBED_PIECES).map(({ from, to }) => ({ t: 'wrote', id, from, to, fetched: true }) as const),
    ];
  }

  /** The request's data goes to the staging file. @returns bytes written or −errno. */
  write(r: FileSystemRequest, offset: number): number {
    if (offset + r.size > this.shop.store.limits.objectBytes) return -E.FBIG;
    let n: number;
    do n = writePieces(this.fd, r, offset);
    while ((n < 0 ? isDiskFull(c.errno()) : n < r.size) && this.shop.ledger.makeRoom());
    if (n <= 0) return n < 0 ? -c.errno() : 0;
    return this.#staged(offset, offset + n) ? n : -E.NOSPC;
  }

  /** [from, to) reads as zeros; `grow`: also beyond the end. @returns 0 or −errno */
  zero(from: number, to: number, grow: boolean): number {
    const end = grow ? to : Math.min(to, this.extents.size);
    if (end > this.shop.store.limits.objectBytes) return -E.FBIG;
    if (end <= from) return 0;
    this.#staging.grow(Math.max(end, this.extents.size));
    this.#staging.punch(from, end);
    return this.#staged(from, end) ? 0 : -E.NOSPC;
  }

  /** fallocate(2) of [from, to), with a mode for which canAllocate(). @returns 0 or −errno */
  fallocate(mode: number, from: number, to: number): number {
    // Space cannot be reserved in a bucket
    if (mode === 0) return to > this.extents.size ? this.truncate(to) : 0;
    return this.zero(from, to, mode === FALLOC_FL_ZERO_RANGE);
  }

  /** Somebody without rights writes. */
  killPrivileges(): void {
    const facts = this.facts();
    const mode = withoutPrivileges(facts.mode);
    if (mode !== facts.mode) this.setAttributes({ ...facts, mode });
  }

  /** @returns 0 or −errno */
  truncate(size: number): number {
    if (size > this.shop.store.limits.objectBytes) return -E.FBIG;
    const before = this.extents.size;
    try {
      // Also where it is cut: from when the staging file was changed the next daemon knows the time
      this.#staging.grow(Math.max(size, before));
      this.#recordData({ t: 'cut', id: this.id, size });
    } catch (error) {
      return errnoOfSystem(error);
    }
    this.extents.truncate(size);
    this.#wrote_ms = Date.now();
    if (size < before) this.#staging.punch(size, before);
    this.upload?.changed(Math.min(size, before), Math.max(size, before));
    return 0;
  }

  /** @throws an error of the file system */
  setAttributes(facts: Facts): void {
    const attributes = attributesOf(facts);
    this.#record({ t: 'attributes', id: this.id, attributes });
    this.#attributes = attributes;
    this.#wrote_ms = 0;
  }

  /** It is to become another object in place of `base`, or none. @throws an error of the file system */
  rename(key: string | null, base: Base | null): void {
    if (this.shop.ledger.files.has(this.id)) this.shop.ledger.append({ t: 'key', id: this.id, key, base });
    this.#key = key;
    this.#setBase(base);
  }

  /** Of a file that is not dirty: attributes and version that its object has by now. */
  adopt(facts: Facts, base: Base): void {
    this.#attributes = attributesOf(facts);
    this.#wrote_ms = 0;
    this.#setBase(base);
  }

  /** What is not staged is there now; the content is the same. */
  rebase(base: Base | null): void {
    if (this.shop.ledger.files.has(this.id)) this.shop.ledger.append({ t: 'base', id: this.id, base });
    // What was cut off again is in it: it needs more than attributes, though all that is left is as in the one before
    if (base !== null && this.#base !== null && base.size !== this.#base.size) this.#changedData = this.#changes;
    this.#setBase(base);
  }

  #setBase(base: Base | null): void {
    const sameSize = base !== null && base.size === this.#base?.size;
    this.#base = base;
    if (sameSize) this.#reader?.moveTo(base.key, base.version);
    else this.#closeReader();
  }

  /** A commit is on its way. @throws an error of the file system */
  beginCommit(commit: string): void {
    this.#open();
    this.shop.ledger.append({ t: 'begin', id: this.id, commit });
    this.doubts.add(commit);
  }

  /** The object is what the file was at its n-th change. */
  commitDone(base: Base, changes: number): void {
    const clean = this.#changes === changes;
    this.shop.ledger.append({ t: 'done', id: this.id, base, clean });
    if (clean) this.shop.ledger.files.delete(this.id);
    this.#committed = Math.max(this.#committed, changes);
    this.#setBase(base);
    this.doubts.clear();
  }

  /** Everything up to the end is answered without asking the store. */
  isStaged(from: number, to: number): boolean {
    return this.extents.pieces(from, to).every((piece) => piece.where !== 'object');
  }

  /** From the staging file; whoever asks has made sure that all of it is there. @returns bytes or −errno */
  readStaged(r: FileSystemRequest): number {
    const bytes = Math.min(r.size, this.extents.size - r.offset);
    if (bytes <= 0) return 0;
    const n = c.preadv2(this.fd, r.iovecs, r.iovecCount, r.offset, 0);
    return n < 0 ? -c.errno() : Math.min(n, bytes);
  }

  /** @throws StorageError when the object is another one by now */
  async read(r: FileSystemRequest): Promise<number> {
    const end = Math.min(this.extents.size, r.offset + r.size);
    if (end <= r.offset) return 0;
    const pieces = this.extents.pieces(r.offset, end);
    if (pieces.length === 1 && pieces[0].where === 'object') return this.#baseReader().serve(r, end - r.offset);
    await this.fill(r.offset, end);
    return this.readStaged(r);
  }

  /** Fetch what [from, to) still has in the object. */
  async fill(from: number, to: number): Promise<void> {
    for (;;) {
      const piece = this.extents.pieces(from, to).find((one) => one.where === 'object');
      if (piece === undefined) return;
      const end = Math.min(piece.to, piece.from + FILL_BYTES);
      await this.#baseReader().read(piece.from, end - piece.from, (at, address, n) => this.#filled(piece.from + at, address, n));
    }
  }

  /** Staging file and journal outlive the machine. */
  async sync(): Promise<void> {
    await Promise.all([this.#staging.sync(), this.shop.ledger.sync()]);
  }

  /** No sync is under way; how it ended is for others to hear. */
  synced(): Promise<void> {
    return this.#staging.synced();
  }

  /** Nothing of it is needed any more, or all of it is in the object. */
  dispose(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#closeReader();
    if (this.shop.ledger.files.has(this.id)) this.shop.ledger.append({ t: 'drop', id: this.id });
    this.shop.ledger.files.delete(this.id);
    this.#staging.remove();
  }

  /** As a killed daemon leaves it. */
  abandon(): void {
    if (this.#disposed) return;
    this.#disposed = true;
    this.#closeReader();
    this.#staging.abandon();
  }

  #baseReader(): Reader {
    const { key, version, size } = this.#base!;
    return (this.#reader ??= new Reader(this.shop.store, this.shop.budget, key, version, size, this.shop.blocks));
  }

  #closeReader(): void {
    this.#reader?.close();
    this.#reader = null;
  }

  /** The journal speaks of this file from now on. */
  #open(): void {
    const { ledger } = this.shop;
    if (ledger.files.has(this.id)) return;
    for (const record of this.describe()) ledger.append(record);
    ledger.files.set(this.id, this);
  }

  /** A change, in the journal before anybody hears of it. */
  #record(record: JournalRecord | null): void {
    this.#open();
    if (record !== null) this.shop.ledger.append(record);
    this.#changes++;
  }

  #recordData(record: JournalRecord | null): void {
    this.#record(record);
    this.#changedData = this.#changes;
  }

  #staged(from: number, to: number): boolean {
    try {
      this.#recordData({ t: 'wrote', id: this.id, from, to });
    } catch {
      // What was zeros must be zeros again, since nobody knows of this write
      for (const piece of this.extents.pieces(from, to)) if (piece.where === 'zeros') this.#staging.punch(piece.from, piece.to);
      if (to > this.extents.size) this.#staging.punch(Math.max(from, this.extents.size), to);
      return false;
    }
    this.extents.write(from, to);
    this.#wrote_ms = Date.now();
    this.upload?.changed(from, to);
    return true;
  }

  /** Bytes of the object; what was written meanwhile counts more. */
  #filled(offset: number, address: number, bytes: number): void {
    const source = new Uint8Array(viewOf(address, bytes));
    for (const piece of this.extents.pieces(offset, offset + bytes)) {
      if (piece.where !== 'object') continue;
      for (let at = piece.from; at < piece.to; ) at += writeSync(this.fd, source, at - offset, piece.to - at, at);
      if (this.shop.ledger.files.has(this.id)) this.shop.ledger.append({ t: 'wrote', id: this.id, from: piece.from, to: piece.to, fetched: true });
      this.extents.write(piece.from, piece.to);
    }
  }
}

/** Nothing but attributes is to be committed. */
export const isAttributesOnly = ({ base, size, objectBytes, staged }: Pick<FileState, 'base' | 'size' | 'objectBytes' | 'staged'>): boolean =>
  base !== null && staged.length === 0 && size === base.size && size <= objectBytes;

/** −errno of an error of node:fs. */
export function errnoOfSystem(error: unknown): number {
  const { errno } = error as NodeJS.ErrnoException;
  if (typeof errno !== 'number') throw error;
  return errno;
}

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
