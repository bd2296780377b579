/**
 * A file that is being changed: what was written is in a staging file, the rest still in the object it was opened from. Every
 * change is in the journal before it is acknowledged.
 *
 * A directory that is not in the bucket yet, or whose attributes are not, is such a file too: its key is that of its marker, and it has no content.
 */
import { assert } from '../../../base/assert.js';
import { S_IFDIR, S_IFMT, S_IFREG } from '../../../ffi/constants.js';
import { viewOf } from '../../../ffi/memory.js';
import type { FileSystemRequest } from '../../filesystem.js';
import { StorageError } from '../errors.js';
import type { Extents } from '../extents.js';
import { timeOf, type Facts } from '../facts.js';
import { Reader } from '../reader.js';
import { COMMIT } from '../settle.js';
import type { ObjectInfo } from '../store.js';
import { attributesOf, describedBy, factsOf, withoutPrivileges } from './attributes.js';
import { contentLimits } from './layout.js';
import { newToken, OwnCommits } from './own-commits.js';
import { StagedContent, type ContentLeft } from './staged-content.js';
import type { PartedUpload } from './upload.js';
import { isAttributesOnly, type Attributes, type Base, type FileState, type JournalRecord, type LeftFile } from './records.js';
import type { Workshop } from './workshop.js';

/** So much of the object is fetched at once into the staging file. */
const FILL_BYTES = 8 << 20;

export class StagedFile {
  /** Its bytes. */
  readonly content: StagedContent;
  #key: string | null;
  #base: Base | null;
  replaces: boolean;
  #attributes: Attributes;
  /** When data was changed last, if that is later than the times of the attributes; milliseconds since 1970, 0: it is not. */
  #wrote_ms = 0;
  #reader: Reader | null = null;
  /** Counts changes; a commit of the n-th change contains all before. */
  #changes: number;
  #committed = 0;
  /** The last change that was more than one of attributes, and the last one of attributes. */
  #changedData = 0;
  #changedAttributes = 0;
  disposed = false;
  #isPutAside = false;
  /** Content was lost with the machine: of a commit that has more, the object has what this file does not. */
  #fellBack = false;
  /** Sends it in parts: told of changes, so that what was sent already is sent again. */
  upload: PartedUpload | null = null;

  private constructor(
    readonly shop: Workshop,
    readonly id: number,
    state: Omit<FileState, 'id' | 'doubts'>,
    readonly commits: OwnCommits,
    { changes, ...content }: Omit<ContentLeft, 'content'> & { readonly changes: number },
    left: { readonly hasStaging: boolean } | null = null,
  ) {
    this.#key = state.key;
    this.#base = state.base;
    this.replaces = state.replaces;
    this.#attributes = state.attributes;
    this.#changes = changes;
    const owner = {
      id,
      record: (record: JournalRecord) => this.#recordData(record),
      changed: (from: number, to: number) => this.#dataChanged(from, to),
      isKnown: () => shop.ledger.files.has(id),
    };
    this.content = new StagedContent(shop.directory, shop.ledger, contentLimits(shop.store), owner, { content: state, ...content }, left);
  }

  /** A file that is not in the bucket yet: with its first change, which is to exist. @throws an error of the file system */
  static create(shop: Workshop, key: string, facts: Facts): StagedFile {
    // A link has the size of its target, which the attributes have
    const file = StagedFile.#make(shop, { key, base: null, size: facts.size, objectBytes: 0, attributes: attributesOf(facts) });
    file.#recordData(null);
    return file;
  }

  /** A file that is going to differ from its object, but does not yet. @throws an error of the file system */
  static of(shop: Workshop, base: Base, facts: Facts): StagedFile {
    return StagedFile.#make(shop, { key: base.key, base, size: base.size, objectBytes: base.size, attributes: attributesOf(facts) });
  }

  static #make(shop: Workshop, state: Pick<FileState, 'key' | 'base' | 'size' | 'objectBytes' | 'attributes'>): StagedFile {
    const token = newToken();
    const whole = { ...state, token, staged: [], replaces: false, described: false, unheard: false };
    return new StagedFile(shop, shop.ledger.nextId(), whole, new OwnCommits(token), { changes: 0, synced: null, lost: [] });
  }

  /** As the journal of a former daemon has it, perhaps of a former boot of the machine; it is in this daemon's ledger then. */
  static restore(shop: Workshop, state: LeftFile, left: { readonly hasStaging: boolean }): StagedFile {
    const { id } = state;
    const file = new StagedFile(shop, id, state, OwnCommits.of(state), { changes: 2, synced: state.synced, lost: state.lost }, left);
    if (!isAttributesOnly(state)) file.#changedData = 1;
    if (state.described) file.#changedAttributes = 2;
    file.#fellBack = state.fellBack;
    if (state.touched) file.#wrote_ms = shop.directory.stagingTime(id);
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

  get extents(): Extents {
    return this.content.extents;
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
    return this.#changes > this.#committed && this.#key !== null && !this.#isPutAside;
  }

  /** All of it is kept in a copy: it is never committed, and whoever has changed it is to be told. */
  get isPutAside(): boolean {
    return this.#isPutAside;
  }

  /** Bytes are only here, and a power failure would lose them. */
  get isUnsynced(): boolean {
    return this.dirty && this.content.isUnsynced;
  }

  /** A power failure would leave nothing of it, not even its name: see Replay. */
  get isOnlyInMemory(): boolean {
    return this.dirty && (this.#base === null || this.replaces) && !this.#isPromised;
  }

  /** As soon as the journal on the disk has it, a power failure leaves it there until it says that it is over. */
  get #isPromised(): boolean {
    return this.content.everSynced || (this.#attributes.mode & S_IFMT) !== S_IFREG;
  }

  /** The disk has lost data of it: it cannot be committed before that is written anew. */
  get isLost(): boolean {
    return this.content.isLost;
  }

  /** There may be an object of this file, of which it does not know. */
  get mayBeCommitted(): boolean {
    return this.commits.possible;
  }

  /** A commit of this id may be one of ours that nobody has heard of. */
  isOwnCommit(commit: string | undefined): commit is string {
    return commit !== undefined && this.commits.has(commit);
  }

  /** Of a commit that is ours: how many of the file's changes it has; −1: nobody knows. */
  changesIn(commit: string): number {
    return this.commits.begun(commit)?.changes ?? -1;
  }

  /** Somebody else has made another object: attributes that are to be set are those of one that has gone. */
  isOvertakenBy({ version, metadata }: ObjectInfo): boolean {
    return this.onlyDescribed && !this.directory && version !== this.#base!.version && !this.isOwnCommit(metadata?.[COMMIT]);
  }

  /** Whether changes up to the n-th are in the object. */
  committedUpTo(changes: number): boolean {
    return this.#committed >= changes || this.#key === null;
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

  /** What a journal has to say of the file: see Replay. */
  *describe(): Generator<JournalRecord> {
    const { id } = this;
    const { describedContents, contents: now } = this.content;
    // In the order of the journal: a commit that has all of the content at some moment was begun behind that
    const begins = (from: number, to: number): JournalRecord[] => this.commits.between(from, to).map((commit) => ({ t: 'begin', id, commit }));
    const state = {
      id, token: this.commits.token, key: this.#key, base: this.#base, replaces: this.replaces, attributes: this.attributes(), described: this.#changedAttributes > this.#committed,
      unheard: this.commits.isUnheard, doubts: this.commits.between(-Infinity, describedContents),
    };
    yield* this.content.describe({
      file: (content) => ({ t: 'file', ...state, ...content }), synced: begins(describedContents, now), now: begins(now, Infinity),
    });
  }

  /** Somebody without rights writes. */
  killPrivileges(): void {
    const facts = this.facts();
    const mode = withoutPrivileges(facts.mode);
    if (mode !== facts.mode) this.setAttributes({ ...facts, mode });
  }

  /** @returns 0 or −errno; then see cutOff() */
  truncate(size: number): number {
    return this.content.truncate(size);
  }

  /** A power failure leaves what there was before truncate(), or after it; before that nobody is answered. @throws an error of the disk */
  async cutOff(): Promise<void> {
    if (this.content.isCutUnsafe) await this.content.sync();
  }

  /** @throws an error of the file system */
  setAttributes(facts: Facts): void {
    const attributes = attributesOf(facts);
    this.#record({ t: 'attributes', id: this.id, attributes });
    this.#changedAttributes = this.#changes;
    this.#attributes = attributes;
    this.#wrote_ms = 0;
  }

  /**
   * It is to become another object in place of `base`, or none. In the same moment the file that it replaces has no name any more: a journal with only one
   * of both would give a name to two files, or to none.
   * @throws an error of the file system
   */
  rename(key: string | null, base: Base | null, replaced: StagedFile | null = null): void {
    const { ledger } = this.shop;
    const records: JournalRecord[] = [];
    if (ledger.files.has(this.id)) records.push({ t: 'key', id: this.id, key, base });
    if (replaced !== null && ledger.files.has(replaced.id)) records.push({ t: 'key', id: replaced.id, key: null, base: replaced.#base });
    if (key === null) for (const record of records) ledger.over(record);
    else if (records.length > 0) ledger.appendAll(records);
    if (replaced !== null) {
      replaced.#ended();
      replaced.#key = null;
    }
    this.replaces = base !== null && (this.#base === null || this.replaces);
    if (key !== this.#key) this.#ended();
    this.#key = key;
    this.#setBase(base);
  }

  /** Under its present key. */
  #ended(): void {
    if (this.#key !== null && this.#isPromised) this.shop.ledger.ended(this.#key);
  }

  /** Of a file that is not dirty: attributes and version that its object has by now. */
  adopt(facts: Facts, base: Base): void {
    this.#attributes = attributesOf(facts);
    this.#wrote_ms = 0;
    this.#setBase(base);
  }

  /** What is attached to the object by now, and is to stay. */
  inherit(headers: Attributes['headers']): void {
    this.#attributes = { ...this.#attributes, headers };
  }

  /** Whether attributes were set here after the n-th change. */
  isDescribedSince(changes: number): boolean {
    return this.#changedAttributes > changes;
  }

  /**
   * Somebody else has set attributes of the object, which are to stay; that is no change of this file. Where it has changes, its content is later than they are.
   * @throws an error of the file system
   */
  describedBy(info: ObjectInfo): void {
    this.#attributes = attributesOf(describedBy(this.facts(), info, this.shop.privileged));
    if (this.dirty) this.shop.ledger.append({ t: 'attributes', id: this.id, attributes: this.attributes() });
    else this.#wrote_ms = 0;
  }

  /** What is not staged is there now; `same`: it is the same content. */
  rebase(base: Base | null, same = true): void {
    if (this.shop.ledger.files.has(this.id)) this.shop.ledger.append({ t: 'base', id: this.id, base });
    // What was cut off again is in it: it needs more than attributes, though all that is left is as in the one before
    if (base !== null && this.#base !== null && base.size !== this.#base.size) this.#changedData = this.#changes;
    this.#setBase(base, same);
  }

  #setBase(base: Base | null, same = true): void {
    const sameSize = same && base !== null && base.size === this.#base?.size;
    this.#base = base;
    if (sameSize) this.#reader?.moveTo(base.key, base.version);
    else this.#closeReader();
  }

  /** The id for a commit of what the file is at this moment. */
  nextCommit(): string {
    return this.commits.next(this.#changes);
  }

  /** The id for a commit of what the file will be when an upload is complete. */
  uploadCommit(): string {
    return this.commits.another();
  }

  /**
   * A commit of what the file is at this moment is on its way; see changesIn() for what it has for certain. Where a sync has made sure of something, the journal
   * is on the disk first: after a power failure what was synced must not be taken for newer than what was committed.
   * @throws an error of the file system
   */
  beginCommit(commit: string): Promise<void> {
    this.#open();
    if (!this.commits.doubts.has(commit)) this.shop.ledger.append({ t: 'begin', id: this.id, commit });
    this.commits.begin(commit, { changes: this.#changes, contents: this.content.contents });
    return this.content.hasSynced ? this.shop.ledger.sync() : this.shop.ledger.settle(this.#key!);
  }

  /** This attempt of a commit has certainly not happened. */
  commitFailed(commit: string): void {
    this.commits.failed(commit);
  }

  /** The object is what the file was at its n-th change. */
  commitDone(base: Base, changes: number, commit: string): void {
    const clean = this.#changes === changes;
    const hasMore = this.#fellBack || (this.commits.isUnheard && !this.commits.doubts.has(commit));
    const contents = this.commits.begun(commit)?.contents ?? -1;
    this.shop.ledger.over({ t: 'done', id: this.id, base, clean, commit });
    if (clean) {
      this.shop.ledger.files.delete(this.id);
      this.#ended();
    }
    this.#committed = Math.max(this.#committed, changes);
    this.content.committed(contents);
    this.replaces = false;
    this.#setBase(base);
    if (hasMore && contents >= this.content.contents) this.content.reset(base.size);
    this.#fellBack = false;
    this.commits.done(commit);
  }

  /** See isPutAside. */
  putAside(): void {
    if (this.shop.ledger.files.has(this.id)) this.shop.ledger.over({ t: 'drop', id: this.id });
    this.shop.ledger.files.delete(this.id);
    this.#isPutAside = true;
  }

  /** @throws StorageError when the object is another one by now */
  async read(r: FileSystemRequest): Promise<number> {
    const end = Math.min(this.extents.size, r.offset + r.size);
    if (end <= r.offset) return 0;
    const pieces = this.extents.pieces(r.offset, end);
    if (pieces.length === 1 && pieces[0].where === 'object') return this.#baseReader().serve(r, end - r.offset);
    await this.fill(r.offset, end);
    return this.content.readStaged(r);
  }

  /** Fetch what [from, to) still has in the object. It may have gone meanwhile, and be staged all the same: whoever has removed it has fetched it before. */
  async fill(from: number, to: number): Promise<void> {
    for (;;) {
      const piece = this.extents.firstInObject(from, to);
      if (piece === undefined) return;
      const base = this.#base;
      const end = Math.min(piece.to, piece.from + FILL_BYTES);
      try {
        await this.#baseReader().read(piece.from, end - piece.from, (at, address, n) =>
          this.content.filled(piece.from + at, new Uint8Array(viewOf(address, n)), this.shop.ledger.files.has(this.id)));
      } catch (error) {
        if (!(error instanceof StorageError) || this.disposed) throw error;
        if (this.#base === base && this.extents.firstInObject(from, to)?.from === piece.from) throw error;
      }
    }
  }

  /** Nothing of it is needed any more, or all of it is in the object. */
  dispose(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.#closeReader();
    const { ledger } = this.shop;
    const isSaid = !ledger.files.has(this.id) || ledger.over({ t: 'drop', id: this.id });
    ledger.files.delete(this.id);
    // What was synced would be missed, if a power failure took the record that says it is over
    this.content.remove(this.content.everSynced || !isSaid ? () => ledger.syncSoon() : null);
  }

  /** As a killed daemon leaves it. */
  abandon(): void {
    if (this.disposed) return;
    this.disposed = true;
    this.#closeReader();
    this.content.abandon();
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
    assert(!this.disposed && !this.#isPutAside, 'a file that was given up is changed');
    ledger.appendAll([...this.describe()]);
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

  #dataChanged(from: number, to: number): void {
    this.#wrote_ms = Date.now();
    this.upload?.changed(from, to);
    this.shop.backgroundSync.note();
  }
}
