/** When changed files become objects: at fsync and close, or a while after; again after a failure; and what if somebody else was faster. */
import { createHash, randomUUID } from 'node:crypto';
import { E } from '../../../base/errno.js';
import { StorageError } from '../errors.js';
import type { ObjectInfo, Version } from '../store.js';
import { errnoOf, FileError, type TreeLog } from '../tree.js';
import { ConflictError, type CommitMaker, type Committed } from './commit.js';
import type { Gate } from './gate.js';
import type { StagedFile } from './staged-file.js';

export type Durability = 'remote' | 'writeback';

export interface CommitterOptions {
  readonly durability: Durability;
  readonly writebackDelay_ms: number;
  readonly prefix: string;
  /** So many changes that nobody has waited for may wait; in tests. */
  readonly deferredMax?: number;
}

/** Told of what has become of a file. */
export interface CommitEvents {
  /** Until when the attributes of the file's object are believed, by performance.now(). */
  believedUntil(file: StagedFile): number;
  /** What to wait for before the file's object may be replaced; null: nothing. */
  waiting(file: StagedFile): Promise<unknown> | null;
  /** All changes so far, or some of them, are in this object. */
  committed(file: StagedFile, committed: Committed): void;
  /** Nothing more can be written to the file. */
  conflicting(file: StagedFile): void;
  /** The file's data was put aside; the name belongs to somebody else's object, or to nothing. */
  conflicted(file: StagedFile, there: ObjectInfo | null): void;
}

export const CONFLICTS = '.bucketfsd-conflicts/';

/** Files that are committed in the background at the same time. */
const BACKGROUND_MAX = 16;
/** Of them so many that are large, and may take hours: the others do not wait for them. */
const LARGE_MAX = 4;
const LARGE_BYTES = 1 << 30;
/** Changes that nobody has waited for; each takes some memory. */
const DEFERRED_MAX = 10_000;
/** A file that is written while it is put aside is put aside again so often, until writing it fails. */
const COPIES_MAX = 3;
/** While somebody goes on setting attributes of what is sent in parts. */
const ROUNDS_MAX = 4;
const RETRY_MIN_MS = 2_000;
const RETRY_MAX_MS = 60_000;

export class Committer {
  readonly #running = new Map<StagedFile, Promise<void>>();
  /** When a file is to be committed, by performance.now(), in that order: each waits equally long. */
  readonly #due = new Map<StagedFile, number>();
  /** The same for those that have failed. */
  readonly #retries = new Map<StagedFile, number>();
  readonly #failures = new Map<StagedFile, number>();
  /** Uploads that are being begun. */
  readonly #beginnings = new Map<StagedFile, Promise<void>>();
  /** Files whose objects are asked. */
  readonly #settling = new Map<StagedFile, Promise<void>>();
  readonly #background = new Set<Promise<void>>();
  /** How many of those are large. */
  #large = 0;
  /** Files of which nobody wants the commit that is under way. */
  readonly #stopping = new Set<StagedFile>();
  #timer: NodeJS.Timeout | null = null;
  /** When the timer fires, by performance.now(). */
  #wakes_ms = Infinity;
  #closed = false;

  constructor(
    readonly maker: CommitMaker,
    readonly options: CommitterOptions,
    readonly events: CommitEvents,
    readonly gate: Gate,
    readonly log: TreeLog,
  ) {}

  /** What nobody has to wait for is done by and by. */
  get defers(): boolean {
    return this.options.durability === 'writeback';
  }

  /** A change that nobody waits for is waited for where too many are to be committed before it. What goes wrong with it is tried again, as always. */
  async madeRoom(file: StagedFile | null): Promise<void> {
    if (file?.dirty === true && this.#due.size > (this.options.deferredMax ?? DEFERRED_MAX)) await this.#quietly(file);
  }

  /** What fsync(2) and close(2) wait for. @throws FileError, StorageError, an error of the file system */
  async durable(file: StagedFile): Promise<void> {
    if (this.options.durability === 'remote') return this.committed(file);
    // Also of one that is in the bucket by now: directories and attributes of before are promised with it
    if (!file.dirty) return this.maker.shop.ledger.sync();
    await file.content.sync();
    if (file.isPutAside) throw new FileError(E.STALE);
    this.later(file);
  }

  /**
   * Nobody is told of a file that a power failure left behind before its object was asked: it may have more. null: that is not needed.
   * @throws StorageError
   */
  settled(file: StagedFile): Promise<void> | null {
    if (!file.commits.isUnheard || file.key === null) return null;
    const under = this.#settling.get(file);
    if (under !== undefined) return under;
    const settling = this.#settle(file).finally(() => this.#settling.delete(file));
    this.#settling.set(file, settling);
    return settling;
  }

  async #settle(file: StagedFile): Promise<void> {
    const found = await this.maker.settle(file);
    if (!file.commits.isUnheard) return;
    if (found === null) return file.commits.heard();
    this.#done(file, found);
  }

  /** What is not in the object is in the journal before that says that the rest is. @throws an error of the file system */
  #done(file: StagedFile, committed: Committed): void {
    if (committed.left !== 'nothing') file.setAttributes(file.facts());
    if (committed.described !== null && file.changes > committed.changes) file.describedBy(committed.described);
    file.commitDone(committed.base, committed.changes, committed.commit);
    this.#failures.delete(file);
    this.events.committed(file, committed);
  }

  /** Everything that was changed so far is in the object. */
  async committed(file: StagedFile): Promise<void> {
    for (const target = file.changes; !file.committedUpTo(target); ) {
      if (file.isPutAside) throw new FileError(E.STALE);
      const wait = this.#running.get(file) ?? this.gate.waiting(file.key ?? '') ?? this.events.waiting(file);
      await (wait ?? this.#run(file));
    }
  }

  /** In the background, and again until it succeeds. */
  later(file: StagedFile): void {
    if (!file.dirty || this.#due.has(file) || this.#retries.has(file)) return;
    this.#schedule(this.#due, file, this.options.durability === 'remote' ? 0 : this.options.writebackDelay_ms);
  }

  /** Data was written: when there is enough of it from the beginning on, it is sent while more is written. */
  wrote(file: StagedFile): void {
    if (file.upload !== null) return file.upload.sendWritten();
    const [first] = file.extents.staged;
    const enough = first !== undefined && first.from === 0 && first.to > this.maker.options.sizes.putMaxBytes;
    if (!enough || this.#beginnings.has(file) || this.#running.has(file) || this.#failures.has(file) || file.key === null || this.#closed) return;
    // If that fails the commit will say what is wrong
    const begun = this.maker.stream(file, this.#isOld(file)).catch(() => void this.#failures.set(file, this.#failures.get(file) ?? 0));
    this.#beginnings.set(file, begun);
    void begun.then(() => this.#beginnings.delete(file));
  }

  /** A commit of the file is under way. */
  isUnderWay(file: StagedFile): boolean {
    return this.#running.has(file);
  }

  /** The commit that is under way has succeeded or failed. */
  async over(file: StagedFile): Promise<void> {
    await this.#running.get(file)?.catch(() => undefined);
  }

  /** No commit of the file is under way; whatever it would have failed with is for others to hear. */
  async quiet(file: StagedFile): Promise<void> {
    this.#forgetDue(file);
    await this.#beginnings.get(file);
    await this.over(file);
  }

  /** The object of the file is going to be removed: parts that are being sent are given up, and quiet() is soon over. Who waits for the commit waits for the removal. */
  async stop(file: StagedFile): Promise<void> {
    this.#stopping.add(file);
    file.upload?.stop();
    await this.quiet(file).finally(() => this.#stopping.delete(file));
  }

  /** The file is no longer to be committed, and nothing reads its staging file. */
  async forget(file: StagedFile): Promise<void> {
    await this.quiet(file);
    this.#failures.delete(file);
    await this.maker.giveUp(file);
    await file.content.quiet();
  }

  /** Everything is committed, or has failed and waits for its next turn. */
  async idle(): Promise<void> {
    for (;;) {
      for (const file of [...this.#due.keys()]) this.#begin(file);
      const under = [...this.#background, ...this.#beginnings.values(), ...[...this.#running.values()].map((run) => run.catch(() => undefined))];
      if (under.length === 0) break;
      await Promise.all(under);
    }
    await this.maker.settled();
  }

  /** Commit what is left, each file once; then nothing more. */
  async close(): Promise<void> {
    await this.idle();
    for (const file of [...this.#retries.keys()]) this.#begin(file);
    await Promise.all(this.#background);
    this.#end();
    await this.maker.settled();
  }

  abandon(): void {
    this.#end();
    this.maker.abandon();
  }

  #end(): void {
    this.#closed = true;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#due.clear();
    this.#retries.clear();
  }

  #forgetDue(file: StagedFile): void {
    this.#due.delete(file);
    this.#retries.delete(file);
  }

  #run(file: StagedFile): Promise<void> {
    const run = this.gate.enter(file.key!, () => this.#commit(file)).finally(() => this.#running.delete(file));
    this.#running.set(file, run);
    return run;
  }

  #isOld(file: StagedFile): boolean {
    return performance.now() >= this.events.believedUntil(file);
  }

  async #commit(file: StagedFile): Promise<void> {
    this.#forgetDue(file);
    await this.#beginnings.get(file);
    try {
      await this.settled(file);
      for (let round = 1; round <= ROUNDS_MAX && file.dirty; round++) {
        const committed = await this.maker.commit(file, this.#isOld(file));
        this.#done(file, committed);
        // Whoever waits for the commit waits for attributes that were set while it was sent; times of data come with the next one
        if (committed.left === 'nothing' || (committed.left === 'times' && !file.onlyDescribed)) return;
      }
    } catch (error) {
      if (this.#isStopped(file, error)) return;
      if (this.#closed) throw error;
      // It has lost its name meanwhile
      if (file.key === null) return;
      try {
        if (error instanceof ConflictError && file.onlyDescribed) return this.#drop(file, error);
        if (error instanceof ConflictError) await this.#keep(file, error);
      } catch (second) {
        if (this.#isStopped(file, second)) return;
        this.#failed(file, second);
        throw second;
      }
      if (error instanceof ConflictError) throw new FileError(E.STALE);
      this.#failed(file, error);
      throw error;
    }
  }

  #isStopped(file: StagedFile, error: unknown): boolean {
    return this.#stopping.has(file) && error instanceof StorageError && error.code === 'aborted';
  }

  #failed(file: StagedFile, error: unknown): void {
    const failures = (this.#failures.get(file) ?? 0) + 1;
    this.#failures.set(file, failures);
    const delay_ms = Math.min(RETRY_MAX_MS, RETRY_MIN_MS * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
    const { store } = this.maker.shop;
    this.log.guest('commit', { err: error, key: file.key, failures }, `${store.location}/${file.key} could not be written (${(error as Error).message}): its data is kept in the cache directory, and it is tried again`);
    if (file.dirty && !file.isLost) this.#schedule(this.#retries, file, delay_ms);
  }

  /** Attributes of what is no longer there: as if they had been set just before it went, which is nobody's loss. */
  #drop(file: StagedFile, { key, base, there }: ConflictError): void {
    const { location } = this.maker.shop.store;
    file.rename(null, file.base);
    this.#failures.delete(file);
    this.events.conflicted(file, there);
    this.log.guest(
      'attributes', { key, opened: base?.version ?? null, found: there?.version ?? null },
      `${location}/${key} was ${there === null ? 'removed' : 'changed'} by somebody else: attributes that were set here are gone with what they were set of`, 'info',
    );
  }

  async #keep(file: StagedFile, conflict: ConflictError): Promise<void> {
    const { shop } = this.maker;
    const key = this.#conflictKey(conflict.key);
    const missing = await this.#keepAll(file, key);
    const { location } = shop.store;
    this.log.error(
      { key: conflict.key, kept: key, opened: conflict.base?.version ?? null, found: conflict.there?.version ?? null, missing },
      `${location}/${conflict.key} was ${conflict.there === null ? 'removed' : conflict.base === null ? 'made' : 'changed'} by somebody else (opened as ${conflict.base?.version ?? 'new'}, found ${conflict.there?.version ?? 'nothing'}): what was written here is kept as ${location}/${key}`,
    );
    this.#failures.delete(file);
    // Whoever still waits for a commit of it must not begin one
    file.putAside();
    this.events.conflicted(file, conflict.there);
  }

  /** Also what is written while the copy is on its way. @returns ranges that nobody has any more */
  async #keepAll(file: StagedFile, key: string): Promise<readonly string[]> {
    let before: Version | null = null;
    for (let copies = 1; ; copies++) {
      const { version, missing, changes } = await this.maker.keep(file, key, before);
      if (changes === file.changes) return missing;
      before = version;
      // Whoever does not stop writing is told of the conflict now
      if (copies === COPIES_MAX) this.events.conflicting(file);
    }
  }

  #conflictKey(key: string): string {
    const { prefix } = this.options;
    const suffix = `.${randomUUID().slice(0, 8)}`;
    const whole = `${prefix}${CONFLICTS}${key.slice(prefix.length)}${suffix}`;
    if (Buffer.byteLength(whole) <= this.maker.shop.store.limits.keyBytes) return whole;
    return `${prefix}${CONFLICTS}${createHash('sha256').update(key).digest('hex')}${suffix}`;
  }

  #schedule(queue: Map<StagedFile, number>, file: StagedFile, delay_ms: number): void {
    if (this.#closed) return;
    const due_ms = performance.now() + delay_ms;
    queue.set(file, due_ms);
    this.#wakeAt(due_ms);
  }

  #wakeAt(due_ms: number): void {
    if (this.#closed || due_ms >= this.#wakes_ms) return;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#wakes_ms = due_ms;
    this.#timer = setTimeout(() => this.#tick(), Math.max(0, due_ms - performance.now()));
    this.#timer.unref();
  }

  /** Begin what is due, as far as there is room; what ends makes room and comes here too. */
  #tick(): void {
    this.#wakes_ms = Infinity;
    const time = performance.now();
    let next = Infinity;
    for (const [file, due] of this.#due) {
      if (due > time || this.#background.size >= BACKGROUND_MAX) {
        next = due;
        break;
      }
      if (this.#hasRoomFor(file)) this.#begin(file);
    }
    if (this.#background.size >= BACKGROUND_MAX) return;
    for (const [file, due] of this.#retries) {
      if (due > time || this.#background.size >= BACKGROUND_MAX) next = Math.min(next, due);
      else if (this.#hasRoomFor(file)) this.#begin(file);
    }
    if (next < Infinity) this.#wakeAt(next);
  }

  /** What has none is begun when another one ends. */
  #hasRoomFor(file: StagedFile): boolean {
    return file.size < LARGE_BYTES || this.#large < LARGE_MAX;
  }

  #begin(file: StagedFile): void {
    this.#forgetDue(file);
    const large = file.size < LARGE_BYTES ? 0 : 1;
    this.#large += large;
    const done = this.#quietly(file).finally(() => {
      this.#large -= large;
      this.#background.delete(done);
      if (this.#due.size + this.#retries.size > 0) this.#wakeAt(performance.now());
    });
    this.#background.add(done);
  }

  /** What can go wrong was logged, and is tried again. */
  async #quietly(file: StagedFile): Promise<void> {
    try {
      await this.committed(file);
    } catch (error) {
      try {
        errnoOf(error);
      } catch {
        this.log.error({ err: error, key: file.key }, `a commit of ${file.key} failed inside the daemon: please report this`);
      }
    }
  }
}
