/**
 * Objects and trees of objects get other keys. What takes several steps, or could not be found again by who starts after a daemon that was killed, is in the
 * journal before the first: see move-recovery.ts.
 */
import { randomUUID } from 'node:crypto';
import { E } from '../../../base/errno.js';
import { contradicted, ifThere, isGone, isRemoved, objectAt, pagesOf } from '../asking.js';
import { isTransient, StorageError } from '../errors.js';
import { CHANGE, COMMIT, isDescribedSince, type Made } from '../settle.js';
import type { ObjectInfo, ObjectStore, Version } from '../store.js';
import { FileError, type TreeLog } from '../tree.js';
import { requireNone } from '../write-access.js';
import type { Ledger } from './ledger.js';
import { copyId, ObjectMove, OccupiedError, type Moved } from './object-move.js';
import type { Operation } from './records.js';

/** A tree that could not be moved as a whole, for a reason that may pass, is tried so often. */
const PASSES = 3;
/** So many objects of a tree are remembered, to be put back if others cannot be moved. */
const UNDONE_MAX = 100_000;
/** Objects of a tree that are moved at the same time. */
const AT_ONCE = 16;
/** So many may have come to a tree since it was looked through, and as many as there were. */
const NEW_OBJECTS_MAX = 10_000;

/** An object has another key, where it is another version: `source` is the one it was. */
export type TellMoved = (from: string, now: string, made: Made, source: Version) => void;

export interface TreeMove {
  /** Prefixes. */
  readonly from: string;
  readonly to: string;
  /** Of the marker of an empty directory that is there already; null: it has none. */
  readonly over: Version | null;
  /** There is such a directory: when nothing is moved in the end, it stays. */
  readonly emptied: boolean;
  /** What checkTree() has counted. */
  readonly objects: number;
  /** Whether a guest has something open that changes with an object's key. */
  isOpen(key: string): boolean;
  /** Told where each object is by now. */
  readonly moved: TellMoved;
  /** Part of it, when all is moved. */
  last(): Promise<void>;
  /** Before the journal says so. */
  finished(): void;
}

export interface Relocated extends Made {
  /** The one it was at its old key. */
  readonly source: Version;
}

/** An object of a tree that is being moved; null: it is not at its new key yet. */
type Begun = Pick<Relocated, 'source'> & { readonly version: Version | null };

export class Mover {
  readonly #one: ObjectMove;

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
    readonly log: TreeLog,
  ) {
    this.#one = new ObjectMove(store, ledger);
  }

  /**
   * `over`: what is replaced at the new key; null: nothing is there. `isOpen`: a guest has it open, and may be writing to it. `moved` is told what is at the
   * new key, before the journal says that it is done.
   * @throws OccupiedError, StorageError; what was answered with an error is not gone on with by the next start
   */
  async move(object: Moved, to: string, over: Version | null, isOpen: boolean, moved: (made: Made) => void): Promise<void> {
    if (await this.#rename(object, to, over, isOpen, moved)) return;
    const commit = randomUUID();
    await this.#journaled({ kind: 'rename', from: object.key, to, tree: false, version: object.version, commit, over }, async () => {
      moved(await this.#one.copyAndRemove(object, to, over, commit));
    });
  }

  /** As one step, or not at all. One that is open is in the journal, by the id that it has; one without such an id could not be found again. */
  async #rename(object: Moved, to: string, over: Version | null, isOpen: boolean, moved: (made: Made) => void): Promise<boolean> {
    if (!this.#one.renames) return false;
    const { metadata } = isOpen && object.metadata === null ? await this.store.head(object.key) : object;
    const commit = metadata?.[COMMIT];
    if (isOpen && commit === undefined) return false;
    const rename = async (): Promise<boolean> => {
      const made = await this.#one.rename({ ...object, metadata }, to, over);
      if (made !== null) moved(made);
      return made !== null;
    };
    if (isOpen) return this.#journaled({ kind: 'rename', from: object.key, to, tree: false, version: object.version, commit: commit!, over }, rename);
    for (const key of [object.key, to]) await this.ledger.settle(key);
    return rename();
  }

  /** Whoever asked hears how it ended: only what nobody has heard of is for the next start. */
  async #journaled<T>(given: Omit<Operation, 'op'>, body: () => Promise<T>): Promise<T> {
    const operation = { op: this.ledger.nextId(), ...given };
    try {
      await this.ledger.beginSafely(operation);
      return await body();
    } finally {
      this.ledger.finish(operation);
    }
  }

  /**
   * Every object below `from`, the marker at the end.
   * @throws what an object could not be moved for, ENOTEMPTY where somebody else has made one in its place; then all are where they were, as far as the store
   * allows.
   */
  async moveTree(move: TreeMove): Promise<void> {
    const { from, to, over, objects } = move;
    const operation: Operation = { op: this.ledger.nextId(), kind: 'rename', from, to, tree: true, version: null, commit: randomUUID(), over, objects };
    const begun = new Map<string, Begun>();
    try {
      await this.ledger.beginSafely(operation);
      for (let pass = 1; ; pass++) {
        try {
          await this.#tree(operation, move, begun);
          break;
        } catch (error) {
          if (pass === PASSES || !(error instanceof StorageError) || !isTransient(error.code)) throw error;
        }
      }
      await move.last();
    } catch (error) {
      await this.#undo(operation, move, begun);
      throw error instanceof OccupiedError ? new FileError(E.NOTEMPTY) : error;
    }
    move.finished();
    this.ledger.finish(operation);
    // What is made below the old name from now on is another tree
    await this.ledger.sync();
  }

  async #tree(operation: Operation, move: TreeMove, begun: Map<string, Begun>): Promise<void> {
    await forTree(this.store, operation, async (object, to, over) => {
      const { key } = object;
      const noted = begun.size < UNDONE_MAX;
      if (noted) begun.set(key, { source: object.version, version: null });
      await this.moveOne(operation, object, to, over, move.isOpen(key), (now) => {
        if (noted) begun.set(key, now);
        move.moved(key, to, now, now.source);
      });
    });
  }

  /**
   * An object of a tree, moved now or by whoever has begun the same operation. Nothing is told of one that is gone, or is being removed.
   * @throws OccupiedError, StorageError
   */
  async moveOne(operation: Operation, object: ObjectInfo, to: string, over: Version | null, isOpen: boolean, moved: (now: Relocated) => void): Promise<void> {
    for (let replaced = over; ; ) {
      try {
        if (await this.#rename(object, to, replaced, isOpen, (made) => moved({ ...made, source: object.version }))) return;
        const copied = await this.#copyOne(operation, object.key, to, replaced);
        return copied === null ? undefined : moved(copied);
      } catch (error) {
        if (!(error instanceof OccupiedError)) throw error;
        // Whoever has made a directory as well has made the same one
        const there = to.endsWith('/') ? await objectAt(this.store, to) : null;
        if (there === null || there.size > 0 || there.version === replaced) throw error;
        replaced = there.version;
      }
    }
  }

  async #copyOne(operation: Operation, from: string, to: string, over: Version | null): Promise<Relocated | null> {
    const object = await ifThere(this.store.head(from, { attachments: true }));
    if (object === null) {
      if (await isGone(this.store, from)) return null;
      throw contradicted(`rename ${this.store.location}/${from}`);
    }
    const { version: source } = object;
    if (isRemoved(object)) {
      await this.#one.removeIfThere(from, source);
      return null;
    }
    const id = copyId(operation, source);
    try {
      return { ...(await this.#one.copyAndRemove(object, to, over, id)), source };
    } catch (error) {
      if (!(error instanceof OccupiedError)) throw error;
      const there = await objectAt(this.store, to);
      if (there?.metadata?.[COMMIT] !== id) throw error;
      await this.#one.remove(from, source);
      return { version: there.version, described: isDescribedSince(there, object.metadata?.[CHANGE]) ? there : null, source };
    }
  }

  /**
   * Whoever asked hears that nothing has happened. What cannot be put back is for people to look at, not for the
   * next start to go on with: the guest may have made something else of the names by then.
   */
  async #undo(operation: Operation, { emptied, moved }: TreeMove, begun: ReadonlyMap<string, Begun>): Promise<void> {
    const { from, to } = operation;
    const { location } = this.store;
    let left = 0;
    for (const [old, { source, version }] of begun) {
      const key = to + old.slice(from.length);
      try {
        const [there, still] = await Promise.all([objectAt(this.store, key), objectAt(this.store, old)]);
        if (there === null) continue;
        const isCopy = there.metadata?.[COMMIT] === copyId(operation, source);
        if (still === null) {
          // If somebody else has replaced it, it is theirs
          if (isCopy || there.version === version || (version === null && this.#one.renames)) await this.#putBack(there, old, moved);
        } else if (still.version === source || (old.endsWith('/') && there.size === 0)) {
          if (isCopy && !(emptied && key === to)) await this.#one.removeIfThere(key, there.version);
        } else if (isCopy || there.version === version) {
          // Somebody else has made another one where it was: it is nowhere else
          left++;
        }
      } catch (error) {
        if (!(error instanceof StorageError) && !(error instanceof OccupiedError)) throw error;
        left++;
      }
    }
    if (left > 0) this.log.error({ from, to, left }, `${location}/${from} was renamed to ${to} in part, and ${left} objects could not be put back: they are below ${location}/${to}`);
    this.ledger.finish(operation);
  }

  async #putBack(there: ObjectInfo, old: string, moved: TellMoved): Promise<void> {
    const made = (await this.#one.rename(there, old, null)) ?? (await this.#one.copyAndRemove(there, old, null, randomUUID()));
    moved(old, old, made, there.version);
  }

  /** Whether everything below can be moved, before anything is: there is room for each new name, and nothing is archived or held. @returns how many objects. @throws FileError */
  async checkTree(from: string, to: string, signal: AbortSignal): Promise<number> {
    let objects = 0;
    const more = Buffer.byteLength(to) - Buffer.byteLength(from);
    for await (const page of pagesOf(this.store, { prefix: from, signal })) {
      for (const { key, headers, archiveClass } of page.objects) {
        if (Buffer.byteLength(key) + more > this.store.limits.keyBytes) throw new FileError(E.NAMETOOLONG);
        const told = archiveClass === true ? await ifThere(this.store.head(key)) : null;
        requireNone(this.store, this.log, key, told?.headers ?? headers, !this.#one.renames);
      }
      objects += page.objects.length;
    }
    return objects;
  }

  /** This version; what somebody else has put instead stays. */
  removeIfThere(key: string, version: Version): Promise<void> {
    return this.#one.removeIfThere(key, version);
  }
}

/**
 * Something for each object below a prefix, several at the same time: its key to be, and what it replaces there. The marker comes last, when all others are done.
 *
 * Rule: a tree is moved as it was when it was looked through, which has ended: nobody can end a move that has begun, so a listing that goes on and on ends it here.
 * @throws StorageError `unexpected` for such a listing, and whatever `body` throws
 */
export async function forTree(
  store: ObjectStore, { from, to, over = null, objects: known = Infinity }: Operation, body: (object: ObjectInfo, to: string, over: Version | null) => Promise<void>,
): Promise<void> {
  const most = 2 * known + NEW_OBJECTS_MAX;
  let listed = 0;
  let failed: unknown = null;
  let marker: ObjectInfo | null = null;
  const running = new Set<Promise<void>>();
  try {
    for await (const { objects } of pagesOf(store, { prefix: from })) {
      listed += objects.length;
      if (listed > most) failed ??= new StorageError('unexpected', `list ${store.location}/${from}`, { providerMessage: `${listed} objects or more, where ${known} were before` });
      for (const object of objects) {
        if (failed !== null) break;
        if (object.key === from) {
          marker = object;
          continue;
        }
        const one = body(object, to + object.key.slice(from.length), null).catch((error: unknown) => void (failed ??= error)).finally(() => running.delete(one));
        running.add(one);
        if (running.size >= AT_ONCE) await Promise.race(running);
      }
      if (failed !== null) break;
    }
  } finally {
    await Promise.all(running);
  }
  if (failed !== null) throw failed;
  if (marker !== null) await body(marker, to, over);
}
