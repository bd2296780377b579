/**
 * Changes of names: each is done in the bucket when it is answered, except for files that are not in the bucket yet.
 * What takes several calls is in the journal before the first.
 */
import { E } from '../../base/errno.js';
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { nodeOrNone } from './absence.js';
import { objectAt, pagesOf } from './asking.js';
import { NO_ID } from './attribute-changes.js';
import type { Facts } from './facts.js';
import { baseOf } from './hidden.js';
import { inTurn, presentFacts, replacing, type ObjectNode } from './nodes.js';
import type { StagingRegistry, WriteSide } from './staging-registry.js';
import { PERMISSIONS } from './posix-metadata.js';
import { Removal } from './removal.js';
import { requirePosix, requirePrivilege, SmallObjects } from './small-objects.js';
import type { ObjectStore, Version } from './store.js';
import { FileError, type Tree } from './tree.js';
import { requireNone } from './write-access.js';
import { now } from './write/attributes.js';
import { Mover } from './write/mover.js';
import { OccupiedError } from './write/object-move.js';
import type { StagedFile } from './write/staged-file.js';

const RENAME_NOREPLACE = 1;
/** Files that are committed at the same time before their directory is renamed. */
const AT_ONCE = 16;
/** Somebody else puts something where a file is to go, each time. */
const OVERTAKEN_MAX = 5;

export class Changes {
  readonly #mover: Mover;
  readonly #small: SmallObjects;
  readonly #removal: Removal;
  #renames: Promise<unknown> = Promise.resolve();

  constructor(
    readonly store: ObjectStore,
    readonly tree: Tree,
    readonly staging: StagingRegistry,
    readonly write: WriteSide,
  ) {
    this.#mover = new Mover(store, write.shop.ledger, tree.log);
    this.#small = new SmallObjects(store, tree);
    this.#removal = new Removal(store, tree, staging, write);
  }

  /** A file that is not in the bucket yet. The guest has not found the name. @throws FileError */
  create(r: FileSystemRequest, parent: ObjectNode): Promise<{ node: ObjectNode; made: boolean }> {
    return this.#below(parent, () => this.#create(r, parent));
  }

  async #create(r: FileSystemRequest, parent: ObjectNode): Promise<{ node: ObjectNode; made: boolean }> {
    const name = r.nameBytes();
    const there = await this.#nodeOrNone(parent, name);
    if (there !== null) return { node: there, made: false };
    const key = this.tree.keyOf(parent, name);
    // Made while we asked
    const made = this.tree.stagedAt(key);
    if (made !== null) return { node: made, made: false };
    const node = this.#newNode(parent, key, this.#newFacts(r, parent, S_IFREG));
    node.suffixed = this.tree.nodes.has(true, `${key}/`);
    this.staging.stageNew(node);
    this.tree.changed(node.key);
    return { node, made: true };
  }

  async mknod(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    const type = r.mode & S_IFMT || S_IFREG;
    if (type === S_IFDIR || type === S_IFLNK) throw new FileError(E.INVAL);
    if (type !== S_IFREG) requirePosix(this.tree);
    return this.#below(parent, () => this.#make(r, parent, { ...this.#newFacts(r, parent, type), rdev: r.rdev }, new Uint8Array(0)));
  }

  async symlink(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    requirePosix(this.tree);
    const target = r.payloadBytes();
    const bytes = target.at(-1) === 0 ? target.subarray(0, -1) : target;
    const text = Buffer.from(bytes).toString();
    if (!Buffer.from(text).equals(bytes)) throw new FileError(E.INVAL);
    const content = Uint8Array.from(bytes);
    const facts = { ...this.#newFacts(r, parent, S_IFLNK), mode: S_IFLNK | 0o777, symlink: text, size: content.length };
    return this.#below(parent, () => this.#make(r, parent, facts, content));
  }

  async mkdir(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    return this.#below(parent, () => this.#mkdir(r, parent));
  }

  async #mkdir(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    if ((await this.#nodeOrNone(parent, r.nameBytes())) !== null) throw new FileError(E.EXIST);
    const key = this.tree.keyOf(parent, r.nameBytes());
    if (this.tree.stagedAt(key) !== null) throw new FileError(E.EXIST);
    const prefix = `${key}/`;
    const inherited = presentFacts(parent).mode & S_ISGID;
    const plain = this.#newFacts(r, parent, S_IFDIR);
    const facts = { ...plain, mode: plain.mode | inherited };
    const node = this.write.committer.defers ? this.#stageNew(parent, prefix, facts, E.NOSPC) : await this.#small.putMarker(prefix, facts);
    this.tree.listed.addEmpty(prefix);
    return node;
  }

  /** What is made in the bucket by and by. */
  #stageNew(parent: ObjectNode, key: string, facts: Facts, tooLarge: number): ObjectNode {
    this.#small.metadata(facts, tooLarge);
    const node = this.#newNode(parent, key, facts);
    this.write.committer.later(this.staging.stageNew(node));
    this.tree.changed(key);
    return node;
  }

  unlink(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    return this.#below(parent, () => this.#unlink(r, parent));
  }

  async #unlink(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    const node = await this.tree.lookup(parent, r.nameBytes());
    if (node.directory) throw new FileError(E.ISDIR);
    await inTurn(node, async () => {
      if (node.unlinked) throw new FileError(E.NOENT);
      await this.#keepDirectory(parent, node.key);
      await replacing(node, () => this.#removal.remove(node));
      await this.#keepEmptied(parent, node.key);
    });
  }

  rmdir(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    return this.#below(parent, () => this.#rmdir(r, parent));
  }

  async #rmdir(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    const node = await this.tree.lookup(parent, r.nameBytes());
    if (!node.directory) throw new FileError(E.NOTDIR);
    await inTurn(node, async () => {
      if (node.unlinked) throw new FileError(E.NOENT);
      await replacing(node, () => this.#removeDirectory(parent, node));
    });
  }

  async #removeDirectory(parent: ObjectNode, node: ObjectNode): Promise<void> {
    const { committer } = this.write;
    const file = node.staged;
    if (file !== null) await committer.quiet(file);
    try {
      const { marker, others } = await this.#inside(node.key);
      if (others || this.tree.hasStagedBelow(node.key)) throw new FileError(E.NOTEMPTY);
      if (marker === null && file?.dirty !== true) throw new FileError(E.NOENT);
      await this.#keepDirectory(parent, node.key);
      await this.#removal.remove(node, marker);
    } catch (error) {
      if (file !== null) committer.later(file);
      throw error;
    }
  }

  /** One after the other: two at once could make a tree a part of itself. */
  rename(r: FileSystemRequest, parent: ObjectNode, newParent: ObjectNode): Promise<void> {
    const [name, name2] = [r.nameBytes(), r.name2Bytes()];
    const { flags } = r;
    if ((flags & ~RENAME_NOREPLACE) !== 0) throw new FileError(E.INVAL);
    const turn = this.tree.walks.turn(this.#renames);
    const renamed = turn.then(() => this.#rename(parent, name, newParent, name2, flags === RENAME_NOREPLACE));
    this.#renames = renamed.catch(() => undefined);
    return renamed;
  }

  #newFacts(r: FileSystemRequest, parent: ObjectNode, type: number): Facts {
    const { options } = this.tree;
    const time = now();
    const described = options.posix === 'off';
    // Linux: a caller whose id the file system cannot keep
    if (!described && (r.uid === NO_ID || r.gid === NO_ID)) throw new FileError(E.OVERFLOW);
    const permissions = r.mode & PERMISSIONS & ~r.umask;
    requirePrivilege(this.tree, type | permissions, type === S_IFREG ? 0 : r.rdev);
    const above = presentFacts(parent);
    return {
      mode: type | (described ? (type === S_IFDIR ? options.directoryMode : options.fileMode) : permissions),
      uid: described ? options.uid : r.uid,
      // Of the directory, if that says so (inode_init_owner() in Linux)
      gid: described ? options.gid : (above.mode & S_ISGID) !== 0 ? above.gid : r.gid,
      rdev: 0, size: 0, mtime: time, atime: time, ctime: time, version: null, symlink: null, xattrs: new Map(), kept: {}, headers: {},
    };
  }

  #nodeOrNone(parent: ObjectNode, name: Uint8Array): Promise<ObjectNode | null> {
    return nodeOrNone(this.tree, parent, name, this.write.overwrites);
  }

  #newNode(parent: ObjectNode, key: string, facts: Facts): ObjectNode {
    if (parent.unlinked) throw new FileError(E.NOENT);
    this.#givesUp(key, null);
    return this.tree.nodes.put((facts.mode & S_IFMT) === S_IFDIR, key, facts, performance.now() + this.tree.options.metadataTtl_ms);
  }

  /** Somebody has removed what is open here under a name, and not `there`: what gets the name is another file. */
  #givesUp(key: string, there: ObjectNode | null): void {
    const known = this.tree.nodes.find(false, key);
    if (there === null && known !== null && known.opens > 0) this.tree.nodes.replace(known);
  }

  /** A small object, at once or by and by. */
  async #make(r: FileSystemRequest, parent: ObjectNode, facts: Facts, body: Uint8Array): Promise<ObjectNode> {
    if ((await this.#nodeOrNone(parent, r.nameBytes())) !== null) throw new FileError(E.EXIST);
    const key = this.tree.keyOf(parent, r.nameBytes());
    if (this.tree.stagedAt(key) !== null) throw new FileError(E.EXIST);
    if (this.write.committer.defers) return this.#stageNew(parent, key, facts, E.NAMETOOLONG);
    const made = await this.#small.put(key, body, facts);
    this.tree.changed(key);
    return this.#newNode(parent, key, { ...facts, ...made });
  }

  /**
   * A directory that is only there because of its last object, or of what is below one prefix, stays when that goes: it gets a marker. Before, so that
   * a daemon that ends halfway has not made it vanish.
   */
  async #keepDirectory(parent: ObjectNode, without: string): Promise<void> {
    if (parent.key === this.tree.options.prefix || parent.facts.version !== null || parent.staged?.dirty === true) return;
    const { marker, others } = await this.#inside(parent.key, without);
    if (marker !== null || others) return;
    await this.#small.putMarker(parent.key, parent.facts).catch((error: unknown) => {
      if (!(error instanceof FileError)) throw error;
    });
  }

  /** The same for a marker whose content was a file and has gone under that name: the directory gets an empty one. A daemon that ends before has not answered. */
  async #keepEmptied(parent: ObjectNode, key: string): Promise<void> {
    if (key !== parent.key || key === this.tree.options.prefix) return;
    parent.facts = { ...parent.facts, version: null };
    const { marker, others } = await this.#inside(key);
    if (marker !== null || others) return;
    await this.#small.putMarker(key, parent.facts).catch((error: unknown) => {
      if (!(error instanceof FileError)) throw error;
    });
  }

  /** What there is below a prefix, apart from the key `without`, or everything below it if it is a prefix. A marker that has content is a file in it, too. */
  async #inside(prefix: string, without: string | null = null): Promise<{ marker: Version | null; others: boolean }> {
    let marker: Version | null = null;
    for await (const { objects, prefixes } of pagesOf(this.store, { prefix, delimiter: '/', limit: 3 })) {
      marker ??= objects.find(({ key }) => key === prefix)?.version ?? null;
      if (objects.some(({ key, size }) => (key !== prefix || size > 0) && key !== without) || prefixes.some((one) => one !== without)) return { marker, others: true };
    }
    return { marker, others: false };
  }

  async #rename(parent: ObjectNode, name: Uint8Array, newParent: ObjectNode, name2: Uint8Array, noReplace: boolean): Promise<void> {
    const node = await this.tree.lookup(parent, name);
    const there = await this.#nodeOrNone(newParent, name2);
    if (there !== null && noReplace) throw new FileError(E.EXIST);
    if (there === node) return;
    // A name that is there is one that can be
    const key = there !== null && !there.directory ? there.key : this.tree.keyOf(newParent, name2);
    if (newParent.unlinked) throw new FileError(E.NOENT);
    if (node.directory) return this.#renameDirectory(parent, node, `${key}/`, there);
    if (there !== null && there.directory) throw new FileError(E.ISDIR);
    await inTurn(node, () => (there === null ? this.#renameFile(parent, node, key, null, noReplace) : inTurn(there, () => this.#renameFile(parent, node, key, there, false))));
  }

  async #renameFile(parent: ObjectNode, node: ObjectNode, key: string, there: ObjectNode | null, noReplace: boolean): Promise<void> {
    const leaves = !key.startsWith(parent.key) || key.slice(parent.key.length).includes('/');
    const from = node.key;
    if (leaves) await this.#keepDirectory(parent, from);
    try {
      if (there === null) {
        await this.#renameOnto(node, key, null, noReplace);
      } else {
        const over = there.staged === null ? there : await this.#committed(there, there.staged);
        const rename = (): Promise<void> => (over === null ? this.#renameOnto(node, key, null, noReplace) : replacing(over, () => this.#renameOnto(node, key, over, noReplace)));
        await (over === null || over === there ? rename() : inTurn(over, rename));
      }
      if (leaves) await this.#keepEmptied(parent, from);
    } finally {
      if (node.staged?.dirty === true) this.write.committer.later(node.staged);
    }
  }

  /**
   * What is to be replaced is in the bucket first: who starts after a daemon that ended halfway must not find changes of it. @returns what is there by then:
   * attributes may have gone with the version that they were set of, in whose place others had put another one
   */
  async #committed(there: ObjectNode, file: StagedFile): Promise<ObjectNode | null> {
    await this.write.committer.committed(file);
    if (file.key !== null || there.unlinked) return there;
    const info = await objectAt(this.store, there.key);
    return info === null ? null : this.tree.putObject(info);
  }

  async #renameOnto(node: ObjectNode, key: string, there: ObjectNode | null, noReplace: boolean): Promise<void> {
    const from = node.key;
    this.#givesUp(key, there);
    for (const name of [from, key]) await this.staging.keepReplaced(name);
    // One may have begun with what was written meanwhile: no other does from here on
    if (there?.staged != null) await this.write.committer.over(there.staged);
    if (there !== null) await this.#removal.preserve(there);
    let file: StagedFile | null;
    // A commit makes the object of the key that it began with: none may be under way, or have come in between, when the key changes
    do file = await this.#settledFile(node); while (node.staged !== null && (this.write.committer.isUnderWay(node.staged) || (file !== null && !isOnlyHere(file))));
    await replacing(node, async () => {
      if (file !== null) {
        this.#rekey(file, key, there);
      } else {
        await this.#moveObject(node, key, there, noReplace);
        this.tree.changed(from);
      }
      if (there !== null) await this.staging.unlinked(there);
      for (const name of [from, key]) this.staging.gaveUp(name);
      this.tree.nodes.rename(node, key);
      this.tree.changed(from);
      this.tree.changed(key);
    });
  }

  /** The staged file of a node that is only there, to go on under another name; otherwise everything is in the object now: null. */
  async #settledFile(node: ObjectNode): Promise<StagedFile | null> {
    const file = node.staged;
    if (file === null || !file.dirty) return null;
    await this.write.committer.quiet(file);
    if (isOnlyHere(file)) {
      await this.write.committer.forget(file);
      return file;
    }
    await this.write.committer.committed(file);
    return null;
  }

  /** Of a file that is not in the bucket: it will be made where it is wanted, in place of what is there. */
  #rekey(file: StagedFile, key: string, there: ObjectNode | null): void {
    if (there !== null) requireNone(this.store, this.tree.log, there.key, there.facts.headers, false);
    const base = there === null ? null : there.staged?.base ?? baseOf(there, null);
    file.rename(key, base === null ? null : { ...base, key }, there?.staged ?? null);
  }

  /** `there`: what is replaced; whoever else has put something there meanwhile had it before. */
  async #moveObject(node: ObjectNode, key: string, there: ObjectNode | null, noReplace: boolean): Promise<void> {
    const { version, kept, headers } = node.facts;
    // It was put aside meanwhile, since others have made it too; or a commit may have happened and could not be settled
    if (version === null) throw new FileError(node.staged === null ? E.STALE : E.IO);
    let over = there?.facts.version ?? null;
    for (let attempt = 1; ; attempt++) {
      try {
        const object = { key: node.key, version, metadata: kept, headers };
        return await this.#mover.move(object, key, over, isHeldOpen(node) || isHeldOpen(there), (now) => {
          this.staging.moved(node, key, now);
          there?.staged?.rename(null, there.staged.base);
        });
      } catch (error) {
        if (!(error instanceof OccupiedError)) throw error;
        if (noReplace) throw new FileError(E.EXIST);
        if (attempt === OVERTAKEN_MAX) throw error.cause;
        over = (await objectAt(this.store, key))?.version ?? null;
      }
    }
  }

  async #renameDirectory(parent: ObjectNode, node: ObjectNode, to: string, there: ObjectNode | null): Promise<void> {
    const from = node.key;
    if (to.startsWith(from)) throw new FileError(E.INVAL);
    let marker: Version | null = null;
    if (there !== null) {
      if (!there.directory) throw new FileError(E.NOTDIR);
      if (there.staged !== null) await this.write.committer.committed(there.staged);
      const inside = await this.#inside(there.key);
      marker = inside.marker;
      if (inside.others || this.tree.hasStagedBelow(there.key)) throw new FileError(E.NOTEMPTY);
    }
    try {
      await this.#moveDirectory(parent, node, to, there, marker);
    } finally {
      for (const one of [...this.#stagedAtOrBelow(from), ...this.#stagedAtOrBelow(to)]) this.write.committer.later(one.staged!);
    }
  }

  /** Also the directory itself. */
  #stagedAtOrBelow(prefix: string): ObjectNode[] {
    const own = this.tree.nodes.find(true, prefix);
    return [...(own?.staged?.dirty === true ? [own] : []), ...this.tree.stagedBelow(prefix)];
  }

  /** `marker`: of the empty directory that is there. */
  async #moveDirectory(parent: ObjectNode, node: ObjectNode, to: string, there: ObjectNode | null, marker: Version | null): Promise<void> {
    const from = node.key;
    let described = false;
    const objects = await this.tree.walks.run((signal) => this.#mover.checkTree(from, to, signal));
    const staged = this.#stagedAtOrBelow(from);
    for (let at = 0; at < staged.length; at += AT_ONCE) {
      await Promise.all(staged.slice(at, at + AT_ONCE).map(async (one) => {
        const file = await this.#settledFile(one);
        if (file !== null && Buffer.byteLength(to + one.key.slice(from.length)) > this.store.limits.keyBytes) throw new FileError(E.NAMETOOLONG);
      }));
    }
    for (const prefix of [from, to]) await this.staging.keepReplaced(prefix);
    if (!to.startsWith(parent.key)) await this.#keepDirectory(parent, from);
    await this.tree.gate.closed([from, to], async () => {
      const now = new Map<ObjectNode, string>();
      try {
        await this.#mover.moveTree({
          from, to, over: marker, emptied: there !== null, objects,
          isOpen: (key) => [false, true].some((directory) => isHeldOpen(this.tree.nodes.find(directory, key))),
          moved: (old, key, made, source) => {
            described ||= old === from;
            for (const open of [this.tree.nodes.find(false, old), this.tree.nodes.find(true, old)]) {
              if (open === null) continue;
              this.staging.moved(open, key, made, source);
              now.set(open, key);
            }
          },
          last: async () => {
            // Of the empty directory that was there nothing stays, also where no attributes come in the place of its own
            if (marker !== null && !described && node.staged?.dirty !== true) await this.#mover.removeIfThere(to, marker);
          },
          finished: () => {
            there?.staged?.rename(null, there.staged.base);
            for (const { staged, key } of this.#stagedAtOrBelow(from)) {
              // In its place
              const replaced = key === from && there !== null ? baseOf(there, null) : null;
              staged!.rename(to + key.slice(from.length), staged!.base ?? (replaced === null ? null : { ...replaced, key: to }));
            }
          },
        });
      } catch (error) {
        this.tree.allChanged();
        // What could not be put back
        for (const [open, key] of now) if (key !== open.key) this.tree.nodes.rename(open, key);
        for (const prefix of [from, to]) this.tree.nodes.expireBelow(prefix);
        throw error;
      }
      if (there !== null) {
        await this.staging.unlinked(there);
        this.tree.nodes.detach(there);
      }
      this.tree.allChanged();
      this.tree.nodes.renameBelow(from, to);
      for (const prefix of [from, to]) this.staging.gaveUp(prefix);
    });
  }

  /** When no tree is moved of which this is a part. */
  #below<T>(node: ObjectNode, body: () => Promise<T>): Promise<T> {
    return this.tree.gate.through(() => node.key, body);
  }
}

/** Nothing of it is in the bucket, nor may be. */
const isOnlyHere = (file: StagedFile): boolean => file.dirty && file.base === null && !file.mayBeCommitted;

/** What is written to it depends on where its object is. */
const isHeldOpen = (node: ObjectNode | null): boolean => node !== null && (node.staged !== null || node.opens > 0);
