/**
 * Renames, removals and changes of attributes that a killed daemon has begun: they are finished, and files with changes that are not in the bucket go
 * along. Nobody was told that any of it was done, and everybody that what was written is kept: so a file's base follows its object, whichever daemon has moved it.
 *
 * What somebody else has put where an object was to go stays. Ours stays at its old name then.
 */
import { ifThere, isRemoved, objectAt } from '../asking.js';
import { isLost, isTransient, StorageError } from '../errors.js';
import { CHANGE, COMMIT, isDescribedSince, removeStand } from '../settle.js';
import { EMPTY_MD5, type ObjectInfo, type ObjectStore } from '../store.js';
import type { TreeLog } from '../tree.js';
import type { Ledger } from './ledger.js';
import { forTree, Mover, type Relocated } from './mover.js';
import { copyId, OccupiedError } from './object-move.js';
import type { Base, Operation } from './records.js';
import type { StagedFile } from './staged-file.js';

/** Files that are looked for at the same time. */
const AT_ONCE = 16;

export class MoveRecovery {
  readonly #mover: Mover;
  /** Where objects went that were moved just now, by the keys that they had. */
  readonly #relocated = new Map<string, Relocated>();

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
    readonly files: readonly StagedFile[],
    log: TreeLog,
  ) {
    this.#mover = new Mover(store, ledger, log);
  }

  /**
   * Before anybody makes something else of the names: where that is not possible now it fails; what never will be is given up.
   * @returns files whose names are gone. @throws StorageError
   */
  async finish(operations: Iterable<Operation>, report: string[]): Promise<ReadonlySet<StagedFile>> {
    const gone = new Set<StagedFile>();
    // Objects first: one that is open is in the journal by itself while its tree is moved
    for (const operation of [...operations].sort((a, b) => Number(a.tree) - Number(b.tree))) {
      if (operation.kind === 'clear') {
        // It is in nobody's way: where that is not possible now, the next start may do it
        if (await removeStand(this.store, operation.from, operation.version!)) this.ledger.finish(operation);
        continue;
      }
      let given: StorageError | null = null;
      try {
        report.push(...(await this.#resume(operation)));
      } catch (error) {
        if (!(error instanceof StorageError) || isTransient(error.code)) throw error;
        given = error;
      }
      if (operation.kind === 'rename' || operation.kind === 'attributes') await this.#follow(operation);
      const without = given !== null ? [] : operation.kind === 'remove' ? this.#at(operation.from) : await this.#replaced(operation);
      for (const file of without) {
        file.rename(null, file.base);
        gone.add(file);
      }
      if (given !== null) {
        const { kind, from, to } = operation;
        const where = kind === 'rename' ? `: what was moved is at ${this.#say(to)}, the rest still at ${from}` : '';
        report.push(`gave up the ${kind} of ${this.#say(from)}, which had been begun (${given.message})${where}`);
      }
      this.ledger.finish(operation);
    }
    return gone;
  }

  #say(key: string): string {
    return `${this.store.location}/${key}`;
  }

  #at(key: string): StagedFile[] {
    return this.files.filter((file) => file.key === key);
  }

  async #resume(operation: Operation): Promise<string[]> {
    const { kind, from, version } = operation;
    switch (kind) {
      case 'remove':
        if (version === null) return [`left ${this.#say(from)} as it is: its removal had only been begun`];
        await this.#mover.removeIfThere(from, version);
        return [`removed ${this.#say(from)}, which had been begun`];
      case 'clear':
      case 'attributes':
        return [];
      case 'rename':
        return operation.tree ? this.#resumeTree(operation) : [await this.#resumeObject(operation)];
    }
  }

  async #resumeObject({ from, to, version, commit }: Operation): Promise<string> {
    const [there, old] = await Promise.all([objectAt(this.store, to), ifThere(this.store.head(from))]);
    if (old !== null && isRemoved(old)) {
      await removeStand(this.store, from, old.version);
      return `${this.#say(from)} had been moved to ${to}`;
    }
    // Nobody was told that the name has changed: what was not copied stays
    if (there?.metadata?.[COMMIT] !== commit) return `${this.#say(from)} was not moved to ${to}: that had only been begun`;
    if (old === null) return `${this.#say(from)} had been moved to ${to}`;
    if (old.version !== version) return `${this.#say(from)} was copied to ${to}, and then changed by somebody else: both stay`;
    await this.#mover.removeIfThere(from, version);
    return `moved ${this.#say(from)} to ${to}: removed the old name`;
  }

  async #resumeTree(operation: Operation): Promise<string[]> {
    const { from, to } = operation;
    const open = new Map(this.files.map((file) => [file.key, file]));
    const stayed: string[] = [];
    let count = 0;
    await forTree(this.store, operation, async (object, key, over) => {
      try {
        // A marker is of no use without what is in its directory, and the other way round
        if (object.key === from && stayed.length > 0) return;
        await this.#mover.moveOne(operation, object, key, over, open.has(object.key), (now) => {
          this.#relocated.set(object.key, now);
          const file = open.get(object.key);
          if (file?.base?.version === now.source && isUncontradicted(file, now.described)) file.rename(key, { ...file.base, key, version: now.version });
          count++;
        });
      } catch (error) {
        if (!(error instanceof OccupiedError) && !isLost(error)) throw error;
        stayed.push(object.key);
      }
    });
    return [
      `moved what was left below ${this.#say(from)} to ${to}: ${count} objects`,
      ...stayed.map((key) => `${this.#say(key)} was not moved to ${to}${key.slice(from.length)}: somebody else has made or changed one of them; both stay`),
    ];
  }

  /** Files go where their objects have gone. */
  async #follow(operation: Operation): Promise<void> {
    const { from, to, tree, kind } = operation;
    const moving = this.files.filter(({ key }) => key !== null && (key === from || (tree && key.startsWith(from))));
    for (let at = 0; at < moving.length; at += AT_ONCE) {
      await Promise.all(moving.slice(at, at + AT_ONCE).map(async (file) => {
        const key = kind === 'rename' ? to + file.key!.slice(from.length) : from;
        // What is not in the bucket yet goes with its directory
        const base = file.base === null ? null : await this.#whereabouts(operation, file, file.base, key);
        if (base !== null || (file.base === null && tree)) file.rename(key, base);
      }));
    }
  }

  /** Files that had the name before, or a directory. */
  async #replaced(operation: Operation): Promise<StagedFile[]> {
    if (operation.kind !== 'rename' || operation.over == null) return [];
    const before = this.#at(operation.to).filter(({ base }) => base?.version === operation.over);
    return before.length > 0 && (await this.#isReplaced(operation)) ? before : [];
  }

  /** What a file's base has become; null: it is what it was, or somebody else's. */
  async #whereabouts(operation: Operation, file: StagedFile, base: Base, key: string): Promise<Base | null> {
    const relocated = this.#relocated.get(base.key);
    if (operation.tree && relocated !== undefined) {
      return relocated.source === base.version && isUncontradicted(file, relocated.described) ? { ...base, key, version: relocated.version } : null;
    }
    if (!operation.tree && (base.key !== operation.from || base.version !== operation.version)) return null;
    const there = await objectAt(this.store, key);
    const id = operation.tree ? copyId(operation, base.version) : operation.commit;
    if (there?.metadata?.[operation.kind === 'attributes' ? CHANGE : COMMIT] !== id) return null;
    const described = operation.kind === 'rename' && isDescribedSince(there, file.attributes().kept[CHANGE]) ? there : null;
    return isUncontradicted(file, described) ? { ...base, key, version: there.version } : null;
  }

  /** Of a file, or of a directory's marker: something else is there. An ETag alone may be the same. */
  async #isReplaced(operation: Operation): Promise<boolean> {
    const there = await objectAt(this.store, operation.to);
    if (there === null || there.version !== operation.over) return true;
    return there.metadata?.[COMMIT] === (operation.tree ? copyId(operation, EMPTY_MD5) : operation.commit);
  }
}

/** Attributes that others have set of what was moved count; a file of which some were set here as well is another client's, and its commit a conflict. */
function isUncontradicted(file: StagedFile, described: ObjectInfo | null): boolean {
  if (described === null) return true;
  if (file.isDescribedSince(0)) return false;
  file.describedBy(described);
  return true;
}
