/** What we changed, counted: an answer of the store that was asked for before may be older than that. */

/** Changes that are remembered one by one. */
const CHANGED_MAX = 10_000;

export class ChangeClock {
  /** By name: the number of the last change of it. */
  readonly #changed = new Map<string, number>();
  /** The same of directories in which we changed something, at any depth. */
  readonly #changedBelow = new Map<string, number>();
  /** How many changes there were. */
  changes = 0;
  /** Of what is no longer in the maps, and of changes to all keys. */
  #changedOthers = 0;

  /** Something was made, changed or removed at a key. @returns names of which it is known no more whether there is something: its own, and those of the directories above */
  note(key: string): string[] {
    const name = nameOf(key);
    const names = [name];
    this.changes++;
    this.#note(this.#changed, name);
    for (let end = name.lastIndexOf('/'); end > 0; end = name.lastIndexOf('/', end - 1)) {
      const above = name.slice(0, end);
      names.push(above);
      this.#note(this.#changedBelow, above);
    }
    return names;
  }

  /** All keys may have changed. */
  noteAll(): void {
    this.#changedOthers = ++this.changes;
  }

  /** Whether something was changed at a key, with or without the slash of a directory, since there were so many changes. */
  isChangedSince(key: string, changes: number): boolean {
    return this.#changedOthers > changes || (this.#changed.get(nameOf(key)) ?? 0) > changes;
  }

  /** The same of what is in the directory of that name, at any depth. */
  isChangedBelowSince(key: string, changes: number): boolean {
    return this.#changedOthers > changes || (this.#changedBelow.get(key) ?? 0) > changes;
  }

  #note(changed: Map<string, number>, name: string): void {
    changed.delete(name);
    changed.set(name, this.changes);
    if (changed.size <= CHANGED_MAX) return;
    const [oldest, at] = changed.entries().next().value!;
    this.#changedOthers = Math.max(this.#changedOthers, at);
    changed.delete(oldest);
  }
}

const nameOf = (key: string): string => (key.endsWith('/') ? key.slice(0, -1) : key);
