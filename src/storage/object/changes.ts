/**
 * Changes of names and attributes: each is done in the bucket when it is answered, except for files that are not in the bucket yet.
 * What takes several calls is in the journal before the first.
 */
import { randomUUID } from 'node:crypto';
import { E } from '../../base/errno.js';
import { S_IFDIR, S_IFLNK, S_IFMT, S_IFREG, S_ISGID } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { FATTR } from '../fuse-flags.js';
import { HIDDEN } from './directory-handles.js';
import { StorageError } from './errors.js';
import type { Facts } from './facts.js';
import type { ObjectNode } from './nodes.js';
import type { OpenFiles, WriteSide } from './open-files.js';
import type { Time } from './posix-metadata.js';
import { COMMIT, settledPut } from './settle.js';
import type { Metadata, ObjectStore, Version } from './store.js';
import { FileError, type Tree } from './tree.js';
import { metadataFits, metadataOf, now } from './write/attributes.js';
import { Mover } from './write/mover.js';
import type { StagedFile } from './write/staged-file.js';

const RENAME_NOREPLACE = 1;
const XATTR_CREATE = 1;
const XATTR_REPLACE = 2;
const XATTR_VALUE_MAX = 65_536;
const USER_XATTR = 'user.';
/** Special values of tv_nsec (utimensat(2)). */
const UTIME_NOW = 0x3fffffff;
const UTIME_OMIT = 0x3ffffffe;
/** The years 1 to 9999, which all conventions can write. */
const SECONDS_MIN = -62_135_596_800;
const SECONDS_MAX = 253_402_300_799;
const ATTEMPTS = 3;
const PERMISSIONS = 0o7777;

export class Changes {
  readonly #mover: Mover;
  #renames: Promise<unknown> = Promise.resolve();

  constructor(
    readonly store: ObjectStore,
    readonly tree: Tree,
    readonly files: OpenFiles,
    readonly write: WriteSide,
  ) {
    this.#mover = new Mover(store, write.shop.ledger, tree.log);
  }

  /** A file that is not in the bucket yet. The guest has not found the name. @throws FileError */
  async create(r: FileSystemRequest, parent: ObjectNode, type = S_IFREG): Promise<{ node: ObjectNode; made: boolean }> {
    const name = r.nameBytes();
    const there = await this.#find(parent, name);
    if (there !== null) return { node: there, made: false };
    const key = this.tree.keyOf(parent, name);
    // Made while we asked
    const made = this.tree.nodes.find(false, key);
    if (made?.staged?.dirty === true) return { node: made, made: false };
    const node = this.#newNode(parent, key, this.#newFacts(r, parent, type));
    this.files.stageNew(node);
    this.tree.changed(node.key);
    return { node, made: true };
  }

  async mknod(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    const type = r.mode & S_IFMT || S_IFREG;
    if (type === S_IFDIR || type === S_IFLNK) throw new FileError(E.INVAL);
    if (type !== S_IFREG) this.#requirePosix();
    if ((await this.#find(parent, r.nameBytes())) !== null) throw new FileError(E.EXIST);
    return this.#make(parent, this.tree.keyOf(parent, r.nameBytes()), { ...this.#newFacts(r, parent, type), rdev: r.rdev }, new Uint8Array(0));
  }

  async symlink(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    this.#requirePosix();
    const target = r.payloadBytes();
    const bytes = target.at(-1) === 0 ? target.subarray(0, -1) : target;
    if ((await this.#find(parent, r.nameBytes())) !== null) throw new FileError(E.EXIST);
    const text = Buffer.from(bytes).toString();
    if (!Buffer.from(text).equals(bytes)) throw new FileError(E.INVAL);
    const facts = { ...this.#newFacts(r, parent, S_IFLNK), mode: S_IFLNK | 0o777, symlink: text, size: bytes.length };
    return this.#make(parent, this.tree.keyOf(parent, r.nameBytes()), facts, Uint8Array.from(bytes));
  }

  async mkdir(r: FileSystemRequest, parent: ObjectNode): Promise<ObjectNode> {
    if ((await this.#find(parent, r.nameBytes())) !== null) throw new FileError(E.EXIST);
    const prefix = `${this.tree.keyOf(parent, r.nameBytes())}/`;
    const inherited = parent.facts.mode & S_ISGID;
    const facts = this.#newFacts(r, parent, S_IFDIR);
    return this.#putMarker(prefix, { ...facts, mode: facts.mode | inherited });
  }

  async unlink(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    const node = await this.tree.lookup(parent, r.nameBytes());
    if (node.directory) throw new FileError(E.ISDIR);
    await this.#inTurn(node, async () => {
      if (node.unlinked) throw new FileError(E.NOENT);
      await Promise.all([this.#remove(node), this.#keepDirectory(parent, node.key)]);
    });
  }

  async rmdir(r: FileSystemRequest, parent: ObjectNode): Promise<void> {
    const node = await this.tree.lookup(parent, r.nameBytes());
    if (!node.directory) throw new FileError(E.NOTDIR);
    const { marker, others } = await this.#inside(node.key);
    if (others || this.tree.hasStagedBelow(node.key)) throw new FileError(E.NOTEMPTY);
    if (!marker) throw new FileError(E.NOENT);
    await Promise.all([this.store.remove(node.key), this.#keepDirectory(parent, node.key)]);
    this.tree.changed(node.key);
    this.tree.nodes.detach(node);
  }

  /** One after the other: two at once could make a tree a part of itself. */
  rename(r: FileSystemRequest, parent: ObjectNode, newParent: ObjectNode): Promise<void> {
    const [name, name2] = [r.nameBytes(), r.name2Bytes()];
    const { flags } = r;
    if ((flags & ~RENAME_NOREPLACE) !== 0) throw new FileError(E.INVAL);
    const turn = this.#renames.then(() => this.#rename(parent, name, newParent, name2, flags === RENAME_NOREPLACE));
    this.#renames = turn.catch(() => undefined);
    return turn;
  }

  /** Mode, owner, times. */
  async setattr(r: FileSystemRequest, given: ObjectNode): Promise<void> {
    // touch(1) of what was just made: the object will have the time of its making
    if (this.tree.options.posix === 'off' && given.staged?.dirty === true && (r.valid & (FATTR.MODE | FATTR.UID | FATTR.GID)) === 0 && isNow(r)) return;
    await this.#describe(given, (facts) => {
      const mode = (r.valid & FATTR.MODE) === 0 ? facts.mode : (facts.mode & S_IFMT) | (r.mode & PERMISSIONS);
      const uid = (r.valid & FATTR.UID) === 0 ? facts.uid : r.setUid;
      const gid = (r.valid & FATTR.GID) === 0 ? facts.gid : r.setGid;
      const [atime, mtime] = timesOf(r, facts);
      return { ...facts, mode, uid, gid, atime, mtime, ctime: now() };
    });
  }

  async setxattr(r: FileSystemRequest, node: ObjectNode): Promise<void> {
    const name = xattrName(r);
    const value = r.payloadBytes();
    if (value.length > XATTR_VALUE_MAX) throw new FileError(E.BIG);
    const { flags } = r;
    await this.#describe(node, (facts) => {
      const there = facts.xattrs.has(name);
      if (there && (flags & XATTR_CREATE) !== 0) throw new FileError(E.EXIST);
      if (!there && (flags & XATTR_REPLACE) !== 0) throw new FileError(E.NODATA);
      return { ...facts, xattrs: new Map([...facts.xattrs, [name, value]]), ctime: now() };
    });
  }

  async removexattr(r: FileSystemRequest, node: ObjectNode): Promise<void> {
    const name = xattrName(r);
    await this.#describe(node, (facts) => {
      if (!facts.xattrs.has(name)) throw new FileError(E.NODATA);
      const xattrs = new Map(facts.xattrs);
      xattrs.delete(name);
      return { ...facts, xattrs, ctime: now() };
    });
  }

  async #find(parent: ObjectNode, name: Uint8Array): Promise<ObjectNode | null> {
    if (parent.unlinked) throw new FileError(E.NOENT);
    try {
      return await this.tree.lookup(parent, name);
    } catch (error) {
      if (error instanceof FileError && error.errno === E.NOENT) return null;
      throw error;
    }
  }

  #requirePosix(): void {
    if (this.tree.options.posix === 'off') throw new FileError(E.PERM);
  }

  #newFacts(r: FileSystemRequest, parent: ObjectNode, type: number): Facts {
    const { options } = this.tree;
    const time = now();
    const described = options.posix === 'off';
    const permissions = r.mode & PERMISSIONS & ~r.umask;
    return {
      mode: type | (described ? (type === S_IFDIR ? options.directoryMode : options.fileMode) : permissions),
      uid: described ? options.uid : r.uid,
      // Of the directory, if that says so (inode_init_owner() in Linux)
      gid: described ? options.gid : (parent.facts.mode & S_ISGID) !== 0 ? parent.facts.gid : r.gid,
      rdev: 0, size: 0, mtime: time, atime: time, ctime: time, version: null, symlink: null, xattrs: new Map(), kept: {}, contentType: null,
    };
  }

  #newNode(parent: ObjectNode, key: string, facts: Facts): ObjectNode {
    if (parent.unlinked) throw new FileError(E.NOENT);
    return this.tree.nodes.put(false, key, facts, performance.now() + this.tree.options.metadataTtl_ms);
  }

  /** A small object at once. */
  async #make(parent: ObjectNode, key: string, facts: Facts, body: Uint8Array): Promise<ObjectNode> {
    const made = await this.#putNew(key, body, facts);
    this.tree.changed(key);
    return this.#newNode(parent, key, { ...facts, ...made });
  }

  async #putNew(key: string, body: Uint8Array, facts: Facts): Promise<Pick<Facts, 'version' | 'kept'>> {
    const metadata = this.#metadata(facts, key.endsWith('/') ? E.NOSPC : E.NAMETOOLONG);
    const condition = this.store.capabilities.putIfAbsent ? { condition: { absent: true } as const } : {};
    try {
      const commit = randomUUID();
      return { version: await settledPut(this.store, key, body, { commit, metadata, ...condition }), kept: { ...metadata, [COMMIT]: commit } };
    } catch (error) {
      if (error instanceof StorageError && error.code === 'changed') throw new FileError(E.EXIST);
      throw error;
    }
  }

  async #putMarker(prefix: string, facts: Facts): Promise<ObjectNode> {
    const made = await this.#putNew(prefix, new Uint8Array(0), facts);
    this.tree.changed(prefix);
    return this.tree.nodes.put(true, prefix, { ...facts, ...made }, performance.now() + this.tree.options.metadataTtl_ms);
  }

  #metadata(facts: Facts, tooLarge: number): Metadata {
    const metadata = metadataOf(facts, this.store, this.tree.options.posix);
    if (!metadataFits(metadata, this.store)) throw new FileError(tooLarge);
    return metadata;
  }

  /** The object goes; who has it open keeps it. */
  async #remove(node: ObjectNode): Promise<void> {
    const { ledger } = this.write.shop;
    const file = node.staged;
    if (file !== null) await this.write.committer.quiet(file);
    await this.files.preserve(node, () => this.#hiddenKey());
    const inBucket = file === null || !file.dirty || file.base !== null || file.doubts.size > 0;
    if (inBucket && file?.dirty === true) {
      // Its data is in the journal: what is begun here is finished there
      const operation = { op: ledger.nextId(), kind: 'remove', from: node.key, to: '', tree: false, version: file.base?.version ?? null, commit: '' } as const;
      ledger.begin(operation);
      await this.store.remove(node.key);
      file.rename(null, file.base);
      ledger.finish(operation);
    } else if (inBucket) {
      await this.store.remove(node.key);
    }
    await this.files.unlinked(node);
    this.tree.changed(node.key);
    this.tree.nodes.detach(node);
  }

  #hiddenKey(): string {
    return `${this.tree.options.prefix}${HIDDEN}/${randomUUID()}`;
  }

  /** A directory that is only there because of its last object stays when that goes: it gets a marker. */
  async #keepDirectory(parent: ObjectNode, without: string): Promise<void> {
    if (parent.key === this.tree.options.prefix || parent.facts.version !== null) return;
    const { marker, others } = await this.#inside(parent.key, without);
    if (marker || others) return;
    await this.#putMarker(parent.key, parent.facts).catch((error: unknown) => {
      if (!(error instanceof FileError)) throw error;
    });
  }

  /** What there is below a prefix, apart from the key `without`, and everything below that if it is a prefix. */
  async #inside(prefix: string, without: string | null = null): Promise<{ marker: boolean; others: boolean }> {
    let marker = false;
    let token: string | undefined;
    do {
      const page = await this.store.list({ prefix, limit: 3, ...(token === undefined ? {} : { token }) });
      for (const { key } of page.objects) {
        if (key === prefix) marker = true;
        else if (key !== without) return { marker, others: true };
      }
      token = page.next ?? undefined;
    } while (token !== undefined);
    return { marker, others: false };
  }

  async #rename(parent: ObjectNode, name: Uint8Array, newParent: ObjectNode, name2: Uint8Array, noReplace: boolean): Promise<void> {
    const node = await this.tree.lookup(parent, name);
    const there = await this.#find(newParent, name2);
    if (there === node) return;
    if (there !== null && noReplace) throw new FileError(E.EXIST);
    // A name that is there is one that can be
    const key = there !== null && !there.directory ? there.key : this.tree.keyOf(newParent, name2);
    if (newParent.unlinked) throw new FileError(E.NOENT);
    if (node.directory) return this.#renameDirectory(parent, node, `${key}/`, there);
    if (there !== null && there.directory) throw new FileError(E.ISDIR);
    await this.#inTurn(node, () => (there === null ? this.#renameFile(parent, node, key, null, noReplace) : this.#inTurn(there, () => this.#renameFile(parent, node, key, there, false))));
  }

  async #renameFile(parent: ObjectNode, node: ObjectNode, key: string, there: ObjectNode | null, noReplace: boolean): Promise<void> {
    const { committer } = this.write;
    if (there !== null) {
      if (there.staged !== null) await committer.quiet(there.staged);
      await this.files.preserve(there, () => this.#hiddenKey());
    }
    const file = await this.#settledFile(node);
    if (file !== null) {
      this.#rekey(file, key, there);
    } else {
      const version = await this.#moveObject(node, key, noReplace);
      this.tree.changed(node.key);
      this.files.moved(node, key, version);
    }
    if (there !== null) await this.files.unlinked(there);
    const from = node.key;
    this.tree.nodes.rename(node, key);
    this.tree.changed(from);
    this.tree.changed(key);
    if (node.staged?.dirty === true) this.write.committer.later(node.staged);
    if (parent.key !== key.slice(0, parent.key.length) || key.slice(parent.key.length).includes('/')) await this.#keepDirectory(parent, from);
  }

  /** The staged file of a node that is only there, to go on under another name; otherwise everything is in the object now: null. */
  async #settledFile(node: ObjectNode): Promise<StagedFile | null> {
    const file = node.staged;
    if (file === null || !file.dirty) return null;
    await this.write.committer.quiet(file);
    if (file.dirty && file.base === null && file.doubts.size === 0) {
      await this.write.committer.forget(file);
      return file;
    }
    await this.write.committer.committed(file);
    return null;
  }

  /** Of a file that is not in the bucket: it will be made where it is wanted, in place of what is there. */
  #rekey(file: StagedFile, key: string, there: ObjectNode | null): void {
    const base = there === null ? null : there.staged?.base ?? (there.facts.version === null ? null : { key, version: there.facts.version, size: there.facts.size });
    file.rename(key, base === null ? null : { ...base, key });
    if (there?.staged != null) there.staged.rename(null, there.staged.base);
  }

  #moveObject(node: ObjectNode, key: string, noReplace: boolean): Promise<Version> {
    return this.#mover.move({ key: node.key, version: node.facts.version!, metadata: node.facts.kept, contentType: node.facts.contentType }, key, noReplace);
  }

  async #renameDirectory(parent: ObjectNode, node: ObjectNode, to: string, there: ObjectNode | null): Promise<void> {
    const from = node.key;
    if (to.startsWith(from)) throw new FileError(E.INVAL);
    if (there !== null) {
      if (!there.directory) throw new FileError(E.NOTDIR);
      const { others } = await this.#inside(there.key);
      if (others || this.tree.hasStagedBelow(there.key)) throw new FileError(E.NOTEMPTY);
    }
    if (to.length > from.length) await this.#mover.checkLengths(from, to);
    for (const one of this.tree.stagedBelow(from)) {
      const file = await this.#settledFile(one);
      if (file !== null && Buffer.byteLength(to + one.key.slice(from.length)) > this.store.limits.keyBytes) throw new FileError(E.NAMETOOLONG);
    }
    await this.#mover.moveTree(from, to, (old, key, version) => {
      const open = this.tree.nodes.find(false, old);
      if (open !== null) this.files.moved(open, key, version);
    }, () => {
      for (const { staged, key } of this.tree.stagedBelow(from)) staged!.rename(to + key.slice(from.length), staged!.base);
    });
    if (there !== null) this.tree.nodes.detach(there);
    this.tree.allChanged();
    for (const one of this.tree.nodes.below(from)) {
      this.tree.nodes.rename(one, to + one.key.slice(from.length));
      one.expires_ms = -Infinity;
    }
    for (const one of this.tree.stagedBelow(to)) this.write.committer.later(one.staged!);
    await this.#keepDirectory(parent, from);
  }

  /** Attributes of a node: with the next commit of a file that is changed, else in the metadata of its object. */
  async #describe(given: ObjectNode, change: (facts: Facts) => Facts): Promise<void> {
    this.#requirePosix();
    await this.#inTurn(given, async () => {
      for (let attempt = 1; ; attempt++) {
        const file = given.staged;
        if (file !== null && (file.dirty || given.unlinked)) {
          const facts = change(file.facts());
          this.#metadata(facts, E.NOSPC);
          file.setAttributes(facts);
          return;
        }
        if (given.unlinked) throw new FileError(E.NOENT);
        const node = attempt === 1 && given.facts.kept !== null ? await this.tree.fresh(given) : await this.tree.refresh(given);
        const facts = change(node.facts);
        const metadata = this.#metadata(facts, E.NOSPC);
        try {
          await this.#setMetadata(node, facts, metadata);
          return;
        } catch (error) {
          if (!(error instanceof StorageError) || error.code !== 'changed' || attempt === ATTEMPTS) throw error;
        }
      }
    });
  }

  async #setMetadata(node: ObjectNode, facts: Facts, metadata: Metadata): Promise<void> {
    const { version } = node.facts;
    if (version === null) {
      // A directory without a marker; the bucket itself has no place for attributes
      if (!node.directory || node.key === '') throw new FileError(E.PERM);
      await this.#putMarker(node.key, facts);
      return;
    }
    const commit = node.facts.kept?.[COMMIT];
    const kept = { ...metadata, ...(commit === undefined ? {} : { [COMMIT]: commit }) };
    const now = await this.store.setMetadata(node.key, version, kept);
    this.tree.changed(node.key);
    if (!node.directory) this.files.moved(node, node.key, now);
    node.facts = { ...facts, version: now, kept };
    node.expires_ms = performance.now() + this.tree.options.metadataTtl_ms;
    if (node.staged?.base != null && !node.staged.dirty) node.staged.adopt(node.facts, { ...node.staged.base, version: now });
  }

  async #inTurn<T>(node: ObjectNode, body: () => Promise<T>): Promise<T> {
    const turn = node.turn.then(body);
    node.turn = turn.catch(() => undefined);
    return turn;
  }
}

function xattrName(r: FileSystemRequest): string {
  const name = Buffer.from(r.nameBytes()).toString();
  // The others mean something to a kernel; here nobody would keep their promises
  if (!name.startsWith(USER_XATTR)) throw new FileError(E.OPNOTSUPP);
  return name;
}

const isNow = (r: FileSystemRequest): boolean => [0, 1].every((index) => r.time(index).nanoseconds === UTIME_NOW);

function timesOf(r: FileSystemRequest, { atime, mtime }: Facts): [atime: Time, mtime: Time] {
  return [(r.valid & FATTR.ATIME) === 0 ? atime : timeAt(r, 0, atime), (r.valid & FATTR.MTIME) === 0 ? mtime : timeAt(r, 1, mtime)];
}

function timeAt(r: FileSystemRequest, index: number, before: Time): Time {
  const { seconds, nanoseconds } = r.time(index);
  if (nanoseconds === UTIME_OMIT) return before;
  if (nanoseconds === UTIME_NOW) return now();
  return { seconds: Math.max(SECONDS_MIN, Math.min(SECONDS_MAX, seconds)), nanoseconds };
}
