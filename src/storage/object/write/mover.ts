/**
 * Objects and trees of objects get other keys: as one step each where the store has that; elsewhere a copy on the server, then the
 * old one is removed. What takes several steps is in the journal before the first, so that the next start finishes it.
 */
import { randomUUID } from 'node:crypto';
import { isDeepStrictEqual } from 'node:util';
import { E } from '../../../base/errno.js';
import { ifThere, pagesOf } from '../asking.js';
import { isTransient, StorageError } from '../errors.js';
import { COMMIT, settledCopy, settledRemove, settledRename } from '../settle.js';
import type { Metadata, ObjectHeaders, ObjectInfo, ObjectStore, Version } from '../store.js';
import { FileError, type TreeLog } from '../tree.js';
import { requireNone } from '../write-access.js';
import type { Ledger } from './ledger.js';
import type { Operation } from './records.js';

/** A tree that could not be moved as a whole, for a reason that may pass, is tried so often. */
const PASSES = 3;
/** So many objects of a tree are remembered, to be put back if others cannot be moved. */
const UNDONE_MAX = 100_000;
/** Objects of a tree that are moved at the same time. */
const AT_ONCE = 16;

export interface Moved {
  readonly key: string;
  readonly version: Version;
  /** null: not known. */
  readonly metadata: Metadata | null;
  /** The same. */
  readonly headers: ObjectHeaders | null;
}

/** An object has another key, where it is another version: `source` is the one it was. */
type TellMoved = (from: string, now: string, version: Version, source: Version) => void;

export class Mover {
  /** Something that speaks the provider's protocol may not know that request: then it is not asked again. */
  #renames: boolean;

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
    readonly log: TreeLog,
  ) {
    this.#renames = store.capabilities.rename;
  }

  /** @returns the version at the new key. @throws FileError EEXIST, StorageError */
  async move(object: Moved, to: string, noReplace: boolean): Promise<Version> {
    try {
      const renamed = await this.#rename(object, to, noReplace);
      return renamed ?? (await this.#copyAndRemove(object, to, noReplace));
    } catch (error) {
      throw error instanceof StorageError && error.code === 'changed' && noReplace ? await this.#whatChanged(object, error) : error;
    }
  }

  /** As one step. @returns null where there is no such request */
  async #rename(object: Pick<Moved, 'key' | 'version' | 'metadata'>, to: string, noReplace: boolean): Promise<Version | null> {
    if (!this.#renames) return null;
    const condition = noReplace ? { condition: { absent: true } as const } : {};
    try {
      return await settledRename(this.store, object.key, to, { version: object.version, commit: object.metadata?.[COMMIT], ...condition });
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const unknown = error.code === 'unsupported' || (error.code === 'not-found' && (await ifThere(this.store.head(object.key)))?.version === object.version);
      if (!unknown) throw error;
      this.#renames = false;
      return null;
    }
  }

  async #copyAndRemove(object: Moved, to: string, noReplace: boolean): Promise<Version> {
    const operation: Operation = {
      op: this.ledger.nextId(), kind: 'rename', from: object.key, to, tree: false, version: object.version, commit: randomUUID(),
    };
    this.ledger.begin(operation);
    let version: Version;
    try {
      const known = object.metadata === null || object.headers === null ? await this.store.head(object.key) : object;
      version = await this.#copy(operation, object.version, known, noReplace);
    } catch (error) {
      // Perhaps it is there all the same: then the next start finishes what was begun
      if (!(error instanceof StorageError && error.detail.ambiguous === true)) this.ledger.finish(operation);
      throw error;
    }
    await settledRemove(this.store, object.key, object.version);
    this.ledger.finish(operation);
    return version;
  }

  /**
   * Every object below `from`, the marker too. `moved` is told where each is by now, `last` is part of it, `finished` is called before the journal says so.
   * @throws what an object could not be moved for; then all are where they were, as far as the store allows. `emptied`: there was
   * a directory `to`, which stays.
   */
  async moveTree(from: string, to: string, emptied: boolean, moved: TellMoved, last: () => Promise<void>, finished: () => void): Promise<void> {
    const operation: Operation = { op: this.ledger.nextId(), kind: 'rename', from, to, tree: true, version: null, commit: '' };
    this.ledger.begin(operation);
    const begun = new Map<string, Version | null>();
    try {
      for (let pass = 1; ; pass++) {
        try {
          await this.#tree(operation, ({ key }) => void (begun.size < UNDONE_MAX && begun.set(key, null)), (old, key, version, source) => {
            if (begun.has(old)) begun.set(old, version);
            moved(old, key, version, source);
          });
          break;
        } catch (error) {
          if (pass === PASSES || !(error instanceof StorageError) || !isTransient(error.code)) throw error;
        }
      }
      await last();
    } catch (error) {
      await this.#undo(operation, emptied, begun, moved);
      throw error;
    }
    finished();
    this.ledger.finish(operation);
  }

  /**
   * Whoever asked hears that nothing has happened. What cannot be put back is for people to look at, not for the
   * next start to go on with: the guest may have made something else of the names by then.
   */
  async #undo(operation: Operation, emptied: boolean, begun: ReadonlyMap<string, Version | null>, moved: TellMoved): Promise<void> {
    const { from, to } = operation;
    const { location } = this.store;
    let left = 0;
    for (const [old, version] of begun) {
      const key = to + old.slice(from.length);
      try {
        const [there, still] = await Promise.all([ifThere(this.store.head(key)), ifThere(this.store.head(old))]);
        if (there === null) continue;
        if (still === null) {
          // If somebody else has replaced it, it is theirs
          if (version === null || there.version === version) moved(old, old, await this.#moveOne(there, old), there.version);
        } else if (isCopy(there, still) && !(emptied && key === to)) {
          await this.removeIfThere(key, there.version);
        }
      } catch (error) {
        if (!(error instanceof StorageError)) throw error;
        left++;
      }
    }
    if (left > 0) this.log.error({ from, to, left }, `${location}/${from} was renamed to ${to} in part, and ${left} objects could not be put back: they are below ${location}/${to}`);
    this.ledger.finish(operation);
  }

  /** Whether everything below can be moved, before anything is: there is room for each new name, and nothing is archived or held. @throws FileError */
  async checkTree(from: string, to: string): Promise<void> {
    const more = Buffer.byteLength(to) - Buffer.byteLength(from);
    for await (const { key, headers, archiveClass } of this.#below(from)) {
      if (Buffer.byteLength(key) + more > this.store.limits.keyBytes) throw new FileError(E.NAMETOOLONG);
      const told = archiveClass === true ? await ifThere(this.store.head(key)) : null;
      requireNone(this.store, this.log, key, told?.headers ?? headers, !this.store.capabilities.rename);
    }
  }

  /** Finish what a former daemon has begun. @returns what was done, for people */
  async resume(operation: Operation): Promise<string> {
    const { from, to } = operation;
    const { location } = this.store;
    if (operation.kind === 'remove') {
      await this.removeIfThere(from, operation.version);
      this.ledger.finish(operation);
      return `removed ${location}/${from}, which had been begun`;
    }
    if (operation.tree) {
      let count = 0;
      await this.#tree(operation, () => undefined, () => count++);
      this.ledger.finish(operation);
      return `moved what was left below ${location}/${from} to ${to}: ${count} objects`;
    }
    const report = await this.#resumeObject(operation);
    this.ledger.finish(operation);
    return report;
  }

  async #resumeObject({ from, to, version, commit }: Operation): Promise<string> {
    const { location } = this.store;
    const [there, old] = await Promise.all([ifThere(this.store.head(to)), ifThere(this.store.head(from))]);
    const copied = there?.metadata?.[COMMIT] === commit;
    // Nobody was told that the name has changed: what was not copied stays
    if (!copied) return `${location}/${from} was not moved to ${to}: that had only been begun`;
    if (old === null) return `${location}/${from} had been moved to ${to}`;
    if (old.version !== version) return `${location}/${from} was copied to ${to}, and then changed by somebody else: both stay`;
    await this.removeIfThere(from, version);
    return `moved ${location}/${from} to ${to}: removed the old name`;
  }

  async #copy({ from, to, commit }: Operation, sourceVersion: Version, object: Pick<Moved, 'metadata' | 'headers'>, noReplace: boolean): Promise<Version> {
    const { capabilities } = this.store;
    const condition = noReplace && capabilities.copyIfAbsent ? { condition: { absent: true } as const } : {};
    if (noReplace && !capabilities.copyIfAbsent && (await ifThere(this.store.head(to))) !== null) throw new FileError(E.EXIST);
    return settledCopy(this.store, from, to, { commit, metadata: object.metadata ?? {}, headers: object.headers ?? {}, sourceVersion, ...condition });
  }

  async #whatChanged(object: Moved, error: StorageError): Promise<Error> {
    const source = await ifThere(this.store.head(object.key));
    return source?.version === object.version ? new FileError(E.EXIST) : error;
  }

  async #tree({ from, to }: Operation, begins: (object: ObjectInfo) => void, moved: TellMoved): Promise<void> {
    let failed: unknown = null;
    const running = new Set<Promise<void>>();
    for await (const object of this.#below(from)) {
      if (failed !== null) break;
      const key = to + object.key.slice(from.length);
      begins(object);
      const one = this.#moveOne(object, key).then((version) => moved(object.key, key, version, object.version)).catch((error: unknown) => void (failed ??= error)).finally(() => running.delete(one));
      running.add(one);
      if (running.size >= AT_ONCE) await Promise.race(running);
    }
    await Promise.all(running);
    if (failed !== null) throw failed;
  }

  /** A copy that is made twice is the same one: no condition, no doubt. */
  async #moveOne(object: ObjectInfo, to: string): Promise<Version> {
    const renamed = await this.#rename(object, to, false);
    if (renamed !== null) return renamed;
    const version = await this.store.copy(object.key, to, { sourceVersion: object.version });
    await settledRemove(this.store, object.key, object.version);
    return version;
  }

  async *#below(prefix: string): AsyncGenerator<ObjectInfo> {
    for await (const page of pagesOf(this.store, { prefix })) yield* page.objects;
  }

  /** This version, or whatever is there; what somebody else has put instead stays. */
  async removeIfThere(key: string, version: Version | null): Promise<void> {
    try {
      if (version === null) await this.store.remove(key);
      else await settledRemove(this.store, key, version);
    } catch (error) {
      // Somebody else's by now
      if (!(error instanceof StorageError) || (error.code !== 'changed' && error.code !== 'not-found')) throw error;
    }
  }
}

const isCopy = (copy: ObjectInfo, of: ObjectInfo): boolean => copy.size === of.size && isDeepStrictEqual(copy.metadata, of.metadata);
