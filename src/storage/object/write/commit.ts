/**
 * Making the object of a file that was changed: one put, or an upload in parts, on condition that the object still is what the
 * file was opened from. Nothing here decides when; see committer.ts.
 */
import { randomUUID } from 'node:crypto';
import { Underway } from '../../../base/underway.js';
import { inherited } from '../attachments.js';
import { contradicted, firstBelow, ifThere, isGone, objectAt } from '../asking.js';
import { isLost, StorageError } from '../errors.js';
import { readBelieved } from '../privileges.js';
import { COMMIT, isDescribedSince, settledComplete, settledPut, settledSetMetadata } from '../settle.js';
import { EMPTY_MD5, type Condition, type Metadata, type ObjectInfo, type Version } from '../store.js';
import type { PosixMode } from '../tree.js';
import { metadataFits, metadataOf } from './attributes.js';
import { growingLayout, layoutFor, type CommitSizes, type Layout } from './layout.js';
import type { Base } from './records.js';
import type { StagedFile } from './staged-file.js';
import { copiesOf, PartedUpload, type UploadContext } from './upload.js';
import type { Workshop } from './workshop.js';
import { ZeroObjects } from './zero-objects.js';

/** So much is sent from a copy in memory: then it is one moment of the file, and costs no reading in the worker. */
const SNAPSHOT_BYTES = 256 << 10;
/** A commit that finds another one of ours is made anew on top of it; more than once only if replies go on being lost. */
const ATTEMPTS = 4;

export interface CommitOptions {
  readonly posix: PosixMode;
  readonly sizes: CommitSizes;
  /** A key for an object that only this daemon needs, and not for long. */
  readonly hiddenKey: () => string;
  /** Whatever is there is replaced. */
  readonly overwrite: boolean;
}

export interface Committed {
  readonly base: Base;
  readonly metadata: Metadata;
  /** How many of the file's changes are in it. */
  readonly changes: number;
  /** Its id. */
  readonly commit: string;
  /** Set while it was sent in parts, and not in it. */
  readonly left: 'nothing' | 'times' | 'attributes';
  /** It came on top of another client's version, of which it has what was not staged here. */
  readonly merged: boolean;
  /** See Made: the metadata is this object's. */
  readonly described: ObjectInfo | null;
}

type Attempted = Omit<Committed, 'merged'>;

/** What an object is made of, and where. */
interface Making {
  readonly key: string;
  readonly condition: Condition;
  /** As it is when it is called. */
  readonly metadata: () => Metadata;
  /** An id for what the file is when it is called; for an upload in parts one that no other has. */
  readonly commit: (inParts: boolean) => string;
  /** Called when it is certain what is at least in the object; `saved` is over before it is made. */
  readonly begin: (commit: string) => { readonly changes: number; readonly saved: Promise<void> };
  /** What is not staged is gone with its object. */
  readonly onlyStaged?: boolean;
}

/** Somebody else has changed, made or removed the object; `there` is what there is now. */
export class ConflictError extends Error {
  constructor(
    readonly key: string,
    readonly base: Base | null,
    readonly there: ObjectInfo | null,
  ) {
    super(`${key} was changed by somebody else`);
  }
}

export class CommitMaker {
  readonly #cleaning = new Underway();
  /** Files whose next commit is on top of another client's version. */
  readonly #merged = new WeakSet<StagedFile>();
  readonly #context: UploadContext;

  constructor(
    readonly shop: Workshop,
    readonly options: CommitOptions,
  ) {
    this.#context = { ...shop, zeros: new ZeroObjects(shop.store, shop.ledger, options.sizes, options.hiddenKey) };
  }

  /**
   * Make the object. `isOld`: what is known of the one that there is may be out of date.
   * @throws ConflictError, StorageError, an error of the file system: then nothing is decided, and it may be tried again.
   */
  async commit(file: StagedFile, isOld: boolean): Promise<Committed> {
    if (isOld) await this.#inherit(file);
    for (let attempt = 1; ; attempt++) {
      const key = file.key!;
      try {
        const committed = await this.#attempt(file);
        return { ...committed, merged: this.#merged.delete(file) };
      } catch (error) {
        if (!isLost(error)) throw error;
        const there = await objectAt(this.shop.store, key);
        // It has lost its name meanwhile: what is there is no business of its
        if (file.key !== key) throw error;
        // A commit of ours of which we did not hear
        const heard = this.#heard(file, there);
        if (heard !== null && heard.changes >= 0) return { ...heard, merged: this.#merged.delete(file) };
        if (heard !== null) {
          if (heard.described !== null) file.describedBy(heard.described);
          file.rebase(heard.base);
        } else if (file.directory) {
          await this.#ontoMarker(file, there);
        } else if (there?.version === file.base?.version && (attempt < ATTEMPTS || this.options.overwrite)) {
          // Lost a race against something that has failed itself (409)
        } else if (there === null && file.base !== null && !(await isGone(this.shop.store, key))) {
          // Somebody may have made it in between
          if (attempt === ATTEMPTS) throw contradicted(`commit ${this.shop.store.location}/${key}`);
        } else if (this.options.overwrite && !file.onlyDescribed) {
          await this.#ontoWhatIsThere(file, there);
        } else {
          throw this.#conflict(file, key, there);
        }
        if (attempt >= ATTEMPTS) throw error;
      }
    }
  }

  /**
   * After a power failure: the object may be that of a commit of which the journal on the disk does not know, and has more then than what was recorded before.
   * @returns that commit, null: there is none
   */
  async settle(file: StagedFile): Promise<Committed | null> {
    const there = await ifThere(this.shop.store.head(file.key!));
    const heard = there?.version === file.base?.version ? null : this.#heard(file, there);
    return heard === null || heard.changes < 0 ? null : { ...heard, merged: false };
  }

  /** Begin to send a file that is written from its beginning, before its size is known. */
  async stream(file: StagedFile, isOld: boolean): Promise<void> {
    if (isOld) await this.#inherit(file);
    const { sizes } = this.options;
    const commit = file.uploadCommit();
    const metadata = { ...this.metadata(file), [COMMIT]: commit };
    const upload = await PartedUpload.begin(this.#context, file, file.key!, () => growingLayout(sizes, this.shop.store.limits), sizes, metadata, commit);
    file.upload = upload;
    upload.follow();
  }

  /**
   * Keep the file's data under another key: where nothing is, or in place of what was kept there before. Ranges that only the lost object had are
   * zeros, and @returned with the version, and with how many of the file's changes are in it.
   */
  async keep(file: StagedFile, key: string, before: Version | null): Promise<{ version: Version; missing: readonly string[]; changes: number }> {
    // What was sent already was for the other key
    await this.giveUp(file);
    await file.fill(0, file.size).catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
    });
    const missing = file.extents.pieces().filter((piece) => piece.where === 'object').map((piece) => `${piece.from}-${piece.to}`);
    const metadata = this.#withMissing(this.metadata(file), missing);
    file.content.clearUnstaged();
    const condition: Condition = before === null ? { absent: true } : { version: before };
    const making = { key, condition, metadata: () => metadata, commit: () => randomUUID(), begin: () => ({ changes: file.changes, saved: Promise.resolve() }), onlyStaged: true };
    const { base, changes } = await this.#make(file, making, null);
    return { version: base.version, missing, changes };
  }

  /** As much of the list as there is room for beside the file's own attributes; all of it is in the log. */
  #withMissing(metadata: Metadata, missing: readonly string[]): Metadata {
    if (missing.length === 0) return metadata;
    const lists = MISSING_BYTES.map((bytes) => ({ ...metadata, [MISSING]: cut(missing.join(','), bytes) }));
    return lists.find((one) => metadataFits(one, this.shop.store)) ?? metadata;
  }

  /**
   * What others have attached to the object since the file was opened counts. On Google Cloud Storage it makes another version of the object, and the
   * condition of the commit finds that out.
   */
  async #inherit(file: StagedFile): Promise<void> {
    const { base } = file;
    if (base === null || base.key !== file.key || file.replaces || file.onlyDescribed || this.shop.store.kind === 'gcs') return;
    const there = await ifThere(this.shop.store.head(base.key, { attachments: true }));
    if (there !== null && there.version === base.version && file.base === base) file.inherit(inherited(there.headers ?? {}));
  }

  /** An upload that was begun is not wanted any more. */
  async giveUp(file: StagedFile): Promise<void> {
    if (file.upload !== null) await this.#dropStream(file, file.upload);
  }

  metadata(file: StagedFile): Metadata {
    return metadataOf(file.facts(), this.shop.store, this.options.posix);
  }

  async #attempt(file: StagedFile): Promise<Attempted> {
    const stream = file.upload;
    const usable = stream !== null && stream.upload.key === file.key && file.size > this.options.sizes.putMaxBytes && file.size <= stream.layout.capacity && this.#suits(stream);
    if (stream !== null && !usable) await this.#dropStream(file, stream);
    try {
      if (this.#describes(file)) return await this.#setMetadata(file, file.base!);
      const { key, base } = file;
      return await this.#make(file, {
        key: key!, condition: base === null ? { absent: true } : { version: base.version }, metadata: () => this.metadata(file),
        commit: (inParts) => (inParts ? file.uploadCommit() : file.nextCommit()),
        begin: (commit) => {
          const saved = file.beginCommit(commit);
          saved.catch(() => undefined); // until it is waited for
          return { saved, changes: file.changesIn(commit) };
        },
      }, usable ? stream : null);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'bad-body') file.content.verify();
      throw error;
    }
  }

  /** The call that makes an object. */
  async #writes<T>(file: StagedFile, commit: string, call: () => Promise<T>): Promise<T> {
    try {
      return await call();
    } catch (error) {
      // A provider may also say of what it has done that it was too late for that
      const certain = error instanceof StorageError && error.detail.ambiguous !== true && !isLost(error);
      if (certain) file.commitFailed(commit);
      throw error;
    }
  }

  /** What was made, and perhaps described by somebody else since. @throws StorageError `changed`: see isContradicted() */
  #made(file: StagedFile, made: Omit<Attempted, 'described'>, described: ObjectInfo | null): Attempted {
    const attempted = { ...made, ...(described?.metadata == null ? {} : { metadata: described.metadata }), described };
    if (isContradicted(file, attempted)) throw new StorageError('changed', `commit ${this.shop.store.location}/${made.base.key}`);
    return uncontradicted(attempted);
  }

  #conflict(file: StagedFile, key: string, there: ObjectInfo | null): ConflictError {
    const conflict = new ConflictError(key, file.base, there);
    // What we have made and others have described has what is not staged
    if (there !== null && file.isOwnCommit(there.metadata?.[COMMIT])) file.rebase({ key, version: there.version, size: there.size });
    return conflict;
  }

  /** Of an object that is there: the commit of ours that made it; changes −1: what it has nobody knows. null: none, or it has become another's. */
  #heard(file: StagedFile, there: ObjectInfo | null): Attempted | null {
    const commit = there?.metadata?.[COMMIT];
    if (there === null || !file.isOwnCommit(commit)) return null;
    const changes = file.changesIn(commit);
    const begun = there.metadata ?? {};
    // After a power failure it may have attributes that are newer than those that are left here
    const wanted = file.commits.doubts.has(commit) ? { ...this.metadata(file), [COMMIT]: commit } : begun;
    const described = isDescribedSince(there, undefined) ? there : null;
    const sent = described !== null && file.upload?.commit === commit ? file.upload.metadata : null;
    const left = described === null ? this.#left(file, begun, wanted) : this.#left(file, sent ?? wanted, wanted);
    const heard = { base: { key: there.key, version: there.version, size: there.size }, metadata: begun, changes, commit, left, described };
    return isContradicted(file, heard) ? null : uncontradicted(heard);
  }

  /** An upload that began before its file had holes may be cut so that it sends them: to begin anew costs what was sent already. */
  #suits(stream: PartedUpload): boolean {
    return stream.excessBytes <= Math.max(this.options.sizes.holeBytes, stream.sentBytes);
  }

  /** Whether the object need not be made anew: one that is known to be empty costs less than a copy of itself. */
  #describes(file: StagedFile): boolean {
    if (!file.onlyDescribed || file.upload !== null) return false;
    const empty = file.directory ? file.base!.version === EMPTY_MD5 : file.size === 0;
    return !empty || this.shop.store.capabilities.metadataInPlace;
  }

  async #setMetadata(file: StagedFile, base: Base): Promise<Attempted> {
    const commit = file.nextCommit();
    const metadata = { ...this.metadata(file), [COMMIT]: commit };
    const saved = file.beginCommit(commit);
    const changes = file.changesIn(commit);
    await saved;
    const { version, described } = await this.#writes(file, commit, () => settledSetMetadata(this.shop.store, base.key, base.version, metadata));
    return this.#made(file, { base: { ...base, version }, metadata, changes, commit, left: 'nothing' }, described);
  }

  /** @param uploads that were begun for it and could not be completed, since the file got shorter */
  async #make(file: StagedFile, making: Making, stream: PartedUpload | null, uploads = 0): Promise<Attempted> {
    const { store } = this.shop;
    const { key, condition } = making;
    if (stream === null && file.size <= this.options.sizes.putMaxBytes) {
      if (making.onlyStaged !== true) await file.fill(0, file.size);
      // One moment of the file: what is changed from here on is for the next commit
      const { size } = file;
      const commit = making.commit(false);
      const metadata = making.metadata();
      const content = size <= SNAPSHOT_BYTES ? contentOf(file, size) : null;
      const { changes, saved } = making.begin(commit);
      await saved;
      const options = { commit, metadata, headers: file.attributes().headers, condition };
      const { version, described } = await this.#writes(file, commit, () =>
        content !== null ? settledPut(store, key, content, options) : file.content.sending(size, (fd) => settledPut(store, key, { fd, offset: 0, bytes: size }, options)));
      return this.#made(file, { base: { key, version, size }, metadata: { ...metadata, [COMMIT]: commit }, changes, commit, left: 'nothing' }, described);
    }
    if (uploads === ATTEMPTS) throw new StorageError('short-body', `put ${store.location}/${key}`, { providerMessage: 'the file gets shorter whenever it is sent' });
    const upload = stream ?? (await this.#beginParts(file, making));
    const { commit } = upload;
    file.upload = upload;
    let made: Attempted;
    try {
      const { changes, saved } = making.begin(commit);
      const parts = await upload.parts();
      if (parts === null) {
        await this.#dropStream(file, upload);
        return await this.#make(file, making, null, uploads + 1);
      }
      file.content.verify();
      await saved;
      const { version, described } = await this.#writes(file, commit, () => settledComplete(store, upload.upload, parts, { commit, condition }));
      const left = this.#left(file, upload.metadata, { ...making.metadata(), [COMMIT]: commit });
      made = this.#made(file, { base: { key, version, size: parts.reduce((sum, { bytes }) => sum + bytes, 0) }, metadata: upload.metadata, changes, commit, left }, described);
    } catch (error) {
      // The parts that are good stay, for the next attempt: unless the provider no longer has the upload, or refuses it
      const conclusive = error instanceof StorageError && ['not-found', 'changed', 'invalid', 'too-large', 'aborted'].includes(error.code);
      if (stream === null || conclusive) await this.#dropStream(file, upload);
      throw error;
    }
    await upload.settled();
    this.#clean(upload);
    if (file.upload === upload) file.upload = null;
    return made;
  }

  async #beginParts(file: StagedFile, { key, metadata, commit: next, onlyStaged = false }: Making): Promise<PartedUpload> {
    const { store } = this.shop;
    const { sizes } = this.options;
    const plan = (): Layout | null => layoutFor(file.extents, copiesOf(file, store, onlyStaged), sizes, store.limits);
    if (plan() === null) throw new StorageError('too-large', `upload ${store.location}/${key}`);
    const commit = next(true);
    return PartedUpload.begin({ ...this.#context, onlyStaged }, file, key, plan, sizes, { ...metadata(), [COMMIT]: commit }, commit);
  }

  /** What of the attributes is not in the object, since it was set after its upload was begun. */
  #left(file: StagedFile, begun: Metadata, wanted: Metadata): Committed['left'] {
    const differing = Object.keys({ ...begun, ...wanted }).filter((name) => begun[name] !== wanted[name as keyof typeof wanted]);
    if (differing.some((name) => !TIMES.has(name))) return 'attributes';
    return differing.length > 0 && (file.timesAreSet || this.shop.store.capabilities.metadataInPlace) ? 'times' : 'nothing';
  }

  /** What was sent before an upload was completed, where that leaves something behind. */
  #clean({ upload }: PartedUpload): void {
    this.#cleaning.add(this.shop.store.abortUpload(upload).then(
      () => this.shop.ledger.uploadEnded(upload),
      () => undefined, // the next start does it
    ));
  }

  /** Nothing is left behind by what was completed. */
  async settled(): Promise<void> {
    await this.#cleaning.settled();
    await this.#context.zeros.settled();
  }

  abandon(): void {
    this.#context.zeros.abandon();
  }

  async #dropStream(file: StagedFile, upload: PartedUpload): Promise<void> {
    if (file.upload === upload) file.upload = null;
    await upload.abort().catch((error: unknown) => {
      if (!(error instanceof StorageError)) throw error;
    });
  }

  /** Whoever makes a directory makes the same one, and of its attributes the last commit counts; unless it is gone with all that was in it. */
  async #ontoMarker(file: StagedFile, there: ObjectInfo | null): Promise<void> {
    const { store } = this.shop;
    if (there === null && file.base !== null && !this.options.overwrite) {
      if ((await firstBelow(store, file.key!)) === null) throw new ConflictError(file.key!, file.base, null);
    }
    if (there !== null) {
      const facts = file.facts();
      const { xattrs } = readBelieved(this.options.posix === 'off' ? {} : there.metadata ?? {}, this.shop.privileged, true).posix;
      const both = { ...facts, kept: there.metadata, headers: there.headers, xattrs: file.base === null && xattrs !== null ? new Map([...xattrs, ...facts.xattrs]) : facts.xattrs };
      file.setAttributes(metadataFits(metadataOf(both, store, this.options.posix), store) ? both : facts);
    }
    file.rebase(there === null ? null : { key: there.key, version: there.version, size: 0 });
  }

  /** --on-conflict=overwrite: what was written goes on top of what is there. */
  async #ontoWhatIsThere(file: StagedFile, there: ObjectInfo | null): Promise<void> {
    const end = there?.size ?? 0;
    for (const piece of file.extents.pieces()) if (piece.where === 'object') file.content.zero(Math.max(end, piece.from), piece.to, false);
    file.rebase(there === null ? null : { key: there.key, version: there.version, size: there.size }, false);
    this.#merged.add(file);
  }
}

/**
 * Attributes that others have set of a commit before it was heard of count, and what was set here before goes with them. Where more was set here since, it would
 * undo them: then it is another client's change of the object like any other.
 */
const isContradicted = (file: StagedFile, { described, changes, left }: Attempted): boolean =>
  described !== null && (left === 'attributes' || file.isDescribedSince(Math.max(0, changes)));

/** Times of content are those that others have set since. */
const uncontradicted = (made: Attempted): Attempted => (made.described === null ? made : { ...made, left: 'nothing' });

/** Ranges of a conflict copy that are zeros since nobody has them any more. */
const MISSING = 'bucketfsd-missing';
const MISSING_BYTES = [400, 100, 20];
/** Names that say when a file was changed: an upload has those of its beginning. */
const TIMES: ReadonlySet<string> = new Set([
  'mtime', 'ctime', 'atime', 'gcsfuse_mtime', 'goog-reserved-file-mtime', 'goog-reserved-file-atime',
]);

const cut = (text: string, bytes: number): string => (text.length <= bytes ? text : `${text.slice(0, bytes)}...`);

/** Of a file of which everything is staged. @throws an error of the disk */
function contentOf(file: StagedFile, size: number): Uint8Array {
  const { symlink } = file.attributes();
  if (size === 0) return new Uint8Array(0);
  return symlink !== null && symlink !== '' ? new TextEncoder().encode(symlink) : file.content.read(size);
}
