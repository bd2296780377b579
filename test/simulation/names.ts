/** Requests of a guest that change names, each with its effect on the model. */
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name as nameBytes, OP } from '../support/guest.js';
import { baseOf, ENTRY_BYTES, errnoText, isOneOf, type Guest } from './guest.js';
import { mapsBack, type Book, type Operation } from './model/book.js';
import type { GuestFile } from './model/guest-file.js';
import { named } from './model/wording.js';

export class Names {
  constructor(readonly guest: Guest) {}

  async unlink(path: string): Promise<void> {
    await this.guest.asking(path, () => this.#unlink(path));
  }

  async #unlink(path: string): Promise<void> {
    const key = this.guest.key(path);
    const since = this.guest.now(key);
    const parent = await this.guest.parentOf(path);
    if (typeof parent === 'number') return;
    const base = baseOf(path);
    if (typeof (await this.guest.lookup(parent, base)) === 'number') return;
    let operation: ReturnType<Book['begin']> | null = null;
    await this.guest.daemon.call(OP.UNLINK, parent, nameBytes(base), 0, {
      given: () => (operation = this.guest.book.begin('remove', key, '', false)),
      answered: ({ error }) => {
        this.guest.note(`unlink ${path}: ${errnoText(error)}`);
        this.guest.book.end(operation!, error === 0 ? 'done' : 'failed');
        if (error === 0) return this.#unlinked(key);
        if (error === -E.NOENT) this.guest.checkAbsent(key, since, `removing ${path}`);
        else if (error === -E.STALE && this.guest.oracle.others(this.guest.book.guest, key, 0)) return;
        else if (error !== -E.ISDIR) {
          this.guest.unexpected(`removing ${path}`, error);
          this.#inDoubt(key);
        }
      },
      lost: () => {
        if (operation === null) return;
        this.guest.book.end(operation, 'lost');
        this.#inDoubt(key);
      },
    });
  }

  /** A late request may still remove it. */
  #inDoubt(key: string): void {
    for (const file of this.guest.book.at(key)) file.uncertain = true;
    this.guest.oracle.excused.set(key, 'a removal of which nobody has heard');
  }

  #unlinked(key: string): void {
    for (const file of this.guest.book.at(key)) {
      file.loses(key, this.guest.bucket.changes.length);
      file.names.clear();
    }
    const there = this.guest.bucket.at(key);
    if (there?.by === this.guest.book.guest && !this.guest.book.fog.has(key) && !this.guest.oracle.excused.has(key)) this.guest.oracle.fail('came back', `${this.guest.daemon.name}: ${key} was removed, and ${named(there)} is there`);
  }

  async rename(from: string, to: string, flags = 0): Promise<void> {
    await this.#rename(from, to, flags, false);
  }

  async renameDirectory(from: string, to: string): Promise<void> {
    await this.#rename(from, to, 0, true);
  }

  async #rename(from: string, to: string, flags: number, tree: boolean): Promise<void> {
    const [fromParent, toParent] = [await this.guest.parentOf(from), await this.guest.parentOf(to)];
    if (typeof fromParent === 'number' || typeof toParent === 'number') return;
    const [fromBase, toBase] = [from, to].map((path) => baseOf(path));
    const since = this.guest.now(this.guest.key(to));
    if (typeof (await this.guest.lookup(fromParent, fromBase)) === 'number') return;
    await this.guest.lookup(toParent, toBase);
    const slash = tree ? '/' : '';
    const [fromKey, toKey] = [this.guest.key(from) + slash, this.guest.key(to) + slash];
    // One is in the other: that cannot be
    const isMove = !tree || (!fromKey.startsWith(toKey) && !toKey.startsWith(fromKey));
    let operation: ReturnType<Book['begin']> | null = null;
    await this.guest.daemon.call(OP.RENAME2, fromParent, concat(u64(toParent), u32(flags, 0), nameBytes(fromBase), nameBytes(toBase)), 0, {
      given: () => (operation = this.guest.book.begin('move', fromKey, toKey, tree)),
      deferred: () => isMove && this.#moving(fromKey, toKey, tree, since),
      answered: ({ error }) => {
        this.guest.note(`rename ${from} to ${to}: ${errnoText(error)}`);
        this.guest.book.end(operation!, error === 0 ? 'done' : 'failed');
        if (error === 0) return this.#moved(fromKey, toKey, tree, since);
        if (isMove) this.#notMoved(operation!, error);
        if (!isOneOf(error, [E.NOENT, E.STALE, E.EXIST, E.ISDIR, E.NOTDIR, E.NOTEMPTY, E.INVAL])) this.guest.unexpected(`renaming ${from} to ${to}`, error);
      },
      lost: () => {
        if (operation === null) return;
        this.guest.book.end(operation, 'lost');
        for (const file of tree ? [] : this.guest.book.at(toKey)) if (!file.names.has(fromKey)) file.uncertain = true;
      },
    });
  }

  #below(key: string, tree: boolean): GuestFile[] {
    return this.guest.book.files.filter((file) => [...file.names].some((one) => (tree ? one.startsWith(key) : one === key)));
  }

  #moving(from: string, to: string, tree: boolean, since: number): void {
    for (const file of this.#below(from, tree)) {
      for (const key of [...file.names]) {
        if (!(tree ? key.startsWith(from) : key === from)) continue;
        const next = to + key.slice(from.length);
        file.takes(next, since);
        this.#replaces(file, next, since);
      }
    }
  }

  /** Note the versions under the new name that the rename may replace. */
  #replaces(file: GuestFile, key: string, since: number): void {
    for (const target of this.guest.book.at(key)) for (const version of target.versions) file.replaces.add(version);
    for (const revision of this.guest.bucket.statesSince(key, since)) if (revision !== null) file.replaces.add(revision.version);
  }

  #moved(from: string, to: string, tree: boolean, since: number): void {
    const changes = this.guest.bucket.changes.length;
    const moved = this.#below(from, tree);
    for (const file of moved) for (const key of file.names) this.#replaces(file, key, since);
    for (const target of tree ? [] : this.guest.book.at(to)) {
      if (moved.includes(target)) continue;
      target.loses(to, changes);
      target.names.clear();
    }
    for (const file of moved) {
      for (const key of [...file.names]) {
        if (!(tree ? key.startsWith(from) : key === from)) continue;
        file.takes(to + key.slice(from.length), since);
        file.loses(key, changes);
      }
    }
    for (const key of this.guest.bucket.keys()) {
      if (!(tree ? key.startsWith(from) : key === from)) continue;
      const there = this.guest.bucket.at(key)!;
      if (this.guest.bucket.cameLate(there)) this.guest.oracle.excused.set(key, 'a request that came late');
      if (there.by === this.guest.book.guest && !this.guest.book.fog.has(key) && !this.guest.oracle.excused.has(key) && !key.endsWith('/')) {
        this.guest.oracle.fail('old name', `${this.guest.daemon.name}: ${from} was renamed to ${to}, and ${named(there)} is still there`);
      }
    }
  }

  #notMoved(operation: Operation, error: number): void {
    const { from, to, tree } = operation;
    const changes = this.guest.bucket.changes.length;
    const nothing = isOneOf(error, [E.EXIST, E.ISDIR, E.NOTDIR, E.NOTEMPTY, E.INVAL]);
    for (const file of this.#below(from, tree)) {
      for (const key of [...file.names]) {
        if (!(tree ? key.startsWith(to) : key === to)) continue;
        const old = mapsBack(operation, key)!;
        file.loses(this.#isLeft(file, operation, old, key) ? old : key, changes);
        if (!nothing) file.uncertain = true;
      }
    }
    if (nothing) return;
    for (const key of this.guest.bucket.keys()) if (tree ? key.startsWith(to) : key === to) this.guest.oracle.excused.set(key, 'a rename to it has failed');
    for (const file of tree ? [] : this.guest.book.at(to)) file.uncertain = true;
  }

  /** Whether an object of a tree stays where it was moved to: others have made one where it was. */
  #isLeft(file: GuestFile, { tree, begunAt, begun_ms }: Operation, old: string, key: string): boolean {
    const there = this.guest.bucket.at(key);
    const { guest } = this.guest.book;
    if (!tree || there === null || there.by !== guest || there.call.issued_ms < begun_ms || !file.versions.has(there.version)) return false;
    return this.guest.bucket.statesSince(old, begunAt).slice(1).some((one) => one !== null && one.by !== guest);
  }

  async mkdir(path: string): Promise<void> {
    const parent = await this.guest.parentOf(path);
    if (typeof parent === 'number') return;
    const reply = await this.guest.daemon.call(OP.MKDIR, parent, concat(u32(0o755, 0o22), nameBytes(baseOf(path))), ENTRY_BYTES);
    this.guest.note(`mkdir ${path}: ${errnoText(reply.error)}`);
    if (reply.error === 0) this.guest.entry(reply);
    else if (reply.error !== -E.EXIST && reply.error !== -E.NOENT) this.guest.unexpected(`making ${path}`, reply.error);
  }

  async rmdir(path: string): Promise<void> {
    const parent = await this.guest.parentOf(path);
    if (typeof parent === 'number') return;
    const key = `${this.guest.key(path)}/`;
    const reply = await this.guest.daemon.call(OP.RMDIR, parent, nameBytes(baseOf(path)), 0, {
      answered: ({ error }) => {
        if (error !== 0) return;
        const inside = this.guest.book.files.find((file) => !file.uncertain && !file.stale && [...file.names].some((one) => one.startsWith(key)) && !this.guest.oracle.hasConflict(this.guest.book, file));
        if (inside !== undefined) this.guest.oracle.fail('name', `${this.guest.daemon.name}: ${path} was removed, and in it is ${String(inside)}`);
      },
    });
    this.guest.note(`rmdir ${path}: ${errnoText(reply.error)}`);
    if (reply.error !== 0 && !isOneOf(reply.error, [E.NOENT, E.NOTEMPTY, E.NOTDIR])) this.guest.unexpected(`removing ${path}`, reply.error);
  }
}
