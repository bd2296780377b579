/**
 * One object gets another key: as one step where the store has that; elsewhere a copy on the server, then the old one is removed. What is at the new key
 * is replaced only if it is what it was looked at as.
 *
 * A copy carries an id of the operation that made it, so that one that is made twice is known as the same, whoever has made the object that was copied.
 */
import { createHash } from 'node:crypto';
import { objectAt } from '../asking.js';
import { isLost, StorageError } from '../errors.js';
import { removesByStand, settledCopy, settledRemove, settledRename, type Made } from '../settle.js';
import type { Condition, Metadata, ObjectHeaders, ObjectStore, Version } from '../store.js';
import type { Ledger } from './ledger.js';
import type { Operation } from './records.js';

export interface Moved {
  readonly key: string;
  readonly version: Version;
  /** null: not known. */
  readonly metadata: Metadata | null;
  /** The same. */
  readonly headers: ObjectHeaders | null;
}

/** At the new key is something else than what was to be replaced. */
export class OccupiedError extends Error {
  constructor(
    readonly key: string,
    override readonly cause: StorageError,
  ) {
    super(`${key} was made or changed by somebody else`);
  }
}

/** What is replaced at the new key; null: nothing is there. */
export const conditionOf = (over: Version | null): Condition => (over === null ? { absent: true } : { version: over });

/** The id of the copy of one version that an operation on a tree makes. */
export const copyId = ({ commit }: Operation, version: Version): string => createHash('sha256').update(`${commit}\0${version}`).digest('base64url').slice(0, 22);

export class ObjectMove {
  /** Something that speaks the provider's protocol may not know that request: then it is not asked again. */
  #renames: boolean;

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
  ) {
    this.#renames = store.capabilities.rename;
  }

  get renames(): boolean {
    return this.#renames;
  }

  /**
   * As one step. @returns what is at the new key; null where there is no such request
   * @throws OccupiedError, StorageError `changed` or `not-found` of the object itself
   */
  async rename(object: Moved, to: string, over: Version | null): Promise<Made | null> {
    if (!this.#renames) return null;
    try {
      return await settledRename(this.store, object.key, to, { version: object.version, metadata: object.metadata ?? {}, condition: conditionOf(over) });
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      if (error.code !== 'unsupported' && error.code !== 'not-found' && error.code !== 'changed') throw error;
      const isThere = error.code === 'unsupported' || (await objectAt(this.store, object.key))?.version === object.version;
      if (!isThere) throw error;
      // Of a version that is gone at the new key some say that it is not found
      if (error.code === 'changed' || (over !== null && (await objectAt(this.store, to))?.version !== over)) throw new OccupiedError(to, error);
      this.#renames = false;
      return null;
    }
  }

  /**
   * A copy with this id, then the old one goes. What fails for good leaves the object where it was, and no copy of it where nothing was before.
   * @throws OccupiedError, StorageError `changed` or `not-found` of the object itself
   */
  async copyAndRemove(object: Moved, to: string, over: Version | null, id: string): Promise<Made> {
    const { store } = this;
    const { metadata, headers } = object.metadata === null || object.headers === null ? await store.head(object.key, { attachments: true }) : object;
    let made: Made;
    try {
      made = await settledCopy(store, object.key, to, {
        commit: id, metadata: metadata ?? {}, headers: headers ?? {}, sourceVersion: object.version, condition: conditionOf(over),
      });
    } catch (error) {
      throw isLost(error) && (await objectAt(store, object.key))?.version === object.version ? new OccupiedError(to, error) : error;
    }
    try {
      await this.remove(object.key, object.version);
    } catch (error) {
      // In doubt the copy may be all that there is
      if (!(error instanceof StorageError) || error.detail.ambiguous === true) throw error;
      // Of a removal that came twice the second answer is that nothing is there: that may have been this one, or another client's
      if (!removesByStand(store) && (await objectAt(store, object.key)) === null) return made;
      if (over === null) await this.removeIfThere(to, made.version);
      throw error;
    }
    return made;
  }

  /** Exactly this version. What stands for it and could not be removed is left to the next start. */
  async remove(key: string, version: Version): Promise<void> {
    const left = await settledRemove(this.store, key, version);
    if (left !== null) this.ledger.begin({ op: this.ledger.nextId(), kind: 'clear', from: key, to: '', tree: false, version: left, commit: '' });
  }

  /** The same, unless somebody else has put something else there: that stays. */
  async removeIfThere(key: string, version: Version): Promise<void> {
    try {
      await this.remove(key, version);
    } catch (error) {
      if (!isLost(error)) throw error;
    }
  }
}
