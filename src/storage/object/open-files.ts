/**
 * Open files: what a handle reads is the version that it was opened as, until somebody writes through a handle of the same node; then
 * all of them see the staged file, as POSIX wants it.
 */
import { E } from '../../base/errno.js';
import { Underway } from '../../base/underway.js';
import { O_ACCMODE, O_DSYNC, O_RDONLY, O_SYNC, O_TRUNC, S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { FATTR, FOPEN, OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID } from '../fuse-flags.js';
import type { Facts } from './facts.js';
import type { FileHandle } from './file-handle.js';
import { baseOf, HiddenObjects } from './hidden.js';
import type { MemoryBudget } from './memory-budget.js';
import type { ObjectNode } from './nodes.js';
import { readAgain, sourceOf } from './overtaken.js';
import type { Reader } from './reader.js';
import type { Metadata, ObjectStore, Version } from './store.js';
import { errnoOf, FileError, type Tree } from './tree.js';
import type { Committer } from './write/committer.js';
import type { Base } from './write/records.js';
import { canAllocate, StagedFile, type Workshop } from './write/staged-file.js';

/** What a file system that may be written to has besides. */
export interface WriteSide {
  readonly shop: Workshop;
  readonly committer: Committer;
}

/** Who uses a staged file. */
interface Use {
  readonly node: ObjectNode;
  handles: number;
}

const SEEK_DATA = 3;
const SEEK_HOLE = 4;
/** What is not larger is kept in a staging file when it is removed while it is open; of more the server makes a copy. */
const PRESERVE_LOCALLY_BYTES = 8 << 20;

export class OpenFiles {
  readonly #handles = new Map<number, FileHandle>();
  readonly #uses = new Map<StagedFile, Use>();
  readonly #hidden: HiddenObjects | null;
  readonly #cleaning = new Underway();

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    readonly tree: Tree,
    readonly write: WriteSide | null,
    readonly nextHandle: () => number,
    readonly blocks: Reader['blocks'] = null,
  ) {
    this.#hidden = write === null ? null : new HiddenObjects(store, write.shop.ledger);
    tree.replaced = (node) => this.#replaced(node);
  }

  get count(): number {
    return this.#handles.size;
  }

  /** The handle of a request. @throws FileError */
  get(r: FileSystemRequest): FileHandle {
    const handle = r.fhHigh === 0 ? this.#handles.get(r.fhLow) : undefined;
    if (handle === undefined) throw new FileError(E.BADF);
    return handle;
  }

  async open(r: FileSystemRequest, given: ObjectNode): Promise<number> {
    const writable = (r.flags & O_ACCMODE) !== O_RDONLY;
    const truncate = (r.flags & O_TRUNC) !== 0;
    if ((writable || truncate) && this.write === null) return -E.ROFS;
    let node = given;
    if (node.directory) return -E.ISDIR;
    await this.tree.gate.pass(() => given.key);
    node = await this.tree.atOpen(node, writable, !writable && !truncate);
    const type = node.facts.mode & S_IFMT;
    if (type !== S_IFREG) return type === S_IFLNK ? -E.LOOP : -E.NXIO;
    const dirty = node.staged?.dirty === true;
    if (!dirty && !truncate && !node.unlinked) {
      if (node.facts.version === null) return -E.IO;
      if (node.facts.version !== node.told) {
        // The guest believes in the size of another version, and OPEN cannot tell it: ESTALE makes Linux look the name up again
        // and come back, once (open(2) with LOOKUP_REVAL, as for NFS)
        node.told = node.facts.version;
        return -E.STALE;
      }
    }
    const file = this.#install(r, node, writable);
    if (typeof file === 'number') return file;
    if (truncate) {
      const result = this.#truncateAtOpen(r, file);
      if (result < 0) {
        this.#drop(r.fhLow, file);
        return result;
      }
    }
    return 0;
  }

  /** A new file is there from now on, for this guest; for others when it is closed. */
  create(r: FileSystemRequest, node: ObjectNode): number {
    const file = this.#install(r, node, (r.flags & O_ACCMODE) !== O_RDONLY);
    if (typeof file === 'number') return file;
    r.openFlags &= ~FOPEN.NOFLUSH; // Also of one that is only read: closing it makes the object
    return 0;
  }

  /** Make a file, or a directory, that is not in the bucket: its node must have none. @throws an error of the cache directory */
  stageNew(node: ObjectNode): StagedFile {
    return this.#link(node, StagedFile.create(this.write!.shop, node.key, node.facts));
  }

  /** It is going to have these attributes; with them a directory gets a marker if it has none. @throws an error of the cache directory */
  describe(node: ObjectNode, facts: Facts): StagedFile {
    if (node.staged === null && node.directory && node.facts.version === null) return this.#link(node, StagedFile.create(this.write!.shop, node.key, facts));
    const file = this.stageNode(node);
    try {
      file.setAttributes(facts);
    } catch (error) {
      if (!file.dirty && this.#uses.get(file)?.handles === 0) this.#dispose(file);
      throw error;
    }
    return file;
  }

  /** A file of a former daemon, whose changes are not in the bucket. */
  adopt(node: ObjectNode, file: StagedFile): void {
    this.#link(node, file);
  }

  /** The staged file of a node without a handle. @throws FileError, an error of the cache directory */
  stageNode(node: ObjectNode): StagedFile {
    if (node.staged !== null) return node.staged;
    const base = baseOf(node, this.#hidden);
    if (base === null) throw new FileError(E.IO);
    return this.#stage(node, base);
  }

  release(r: FileSystemRequest): void {
    this.#drop(r.fhLow, this.get(r));
  }

  read(r: FileSystemRequest): number | Promise<number> {
    const file = this.get(r);
    const from = sourceOf(file);
    const result = this.#read(r, file);
    if (typeof result === 'number' || this.write === null) return result;
    return result.catch((error: unknown) => readAgain(file, from, error, this.tree.gate, this.write!.committer, () => this.#read(r, file)));
  }

  #read(r: FileSystemRequest, file: FileHandle): number | Promise<number> {
    if (file.stale) return -E.STALE;
    if (file.staged !== null) {
      if (r.offset >= file.staged.size) return 0;
      return file.staged.isStaged(r.offset, r.offset + r.size) ? file.staged.readStaged(r) : file.staged.read(r);
    }
    file.reader ??= this.tree.small.reader(file.base!, this.blocks);
    return file.reader.serve(r, r.size);
  }

  /** @returns bytes, −errno, or a promise where the handle is synchronous */
  writeData(r: FileSystemRequest): number | Promise<number> {
    const file = this.get(r);
    if (!file.writable) return -E.BADF;
    if (file.stale) return -E.STALE;
    let staged: StagedFile;
    try {
      staged = this.#stagedOf(file);
      if ((r.fuseFlags & WRITE_KILL_SUIDGID) !== 0) staged.killPrivileges();
    } catch (error) {
      return errnoOf(error);
    }
    const n = staged.write(r, r.offset);
    if (n <= 0) return n;
    this.write!.committer.wrote(staged);
    return file.synchronous ? this.write!.committer.durable(staged).then(() => n) : n;
  }

  /** FLUSH and FSYNC: what this handle's file has become is where --durability wants it. */
  async flush(r: FileSystemRequest): Promise<number> {
    const file = this.get(r);
    if (file.stale) return -E.STALE;
    if (file.staged !== null) await this.write!.committer.durable(file.staged);
    return 0;
  }

  fallocate(r: FileSystemRequest): number {
    const file = this.get(r);
    if (!file.writable) return -E.BADF;
    if (file.stale) return -E.STALE;
    if (!canAllocate(r.flags)) return -E.OPNOTSUPP;
    try {
      const staged = this.#stagedOf(file);
      // As with HANDLE_KILLPRIV_V2 of a directory: no flag says so
      if (r.session.killprivV2) staged.killPrivileges();
      return staged.fallocate(r.flags, r.offset, r.offset + r.length);
    } catch (error) {
      return errnoOf(error);
    }
  }

  /** Data is everywhere, and the one hole is at the end (lseek(2)). */
  lseek(r: FileSystemRequest): number {
    const file = this.get(r);
    const size = file.staged?.size ?? file.base!.size;
    if (r.flags !== SEEK_DATA && r.flags !== SEEK_HOLE) return -E.INVAL;
    if (r.offset >= size) return -E.NXIO;
    r.position = r.flags === SEEK_DATA ? r.offset : size;
    return 0;
  }

  /** SETATTR of the size, with a handle or without. */
  async truncate(r: FileSystemRequest, given: ObjectNode): Promise<number> {
    if (this.write === null) return -E.ROFS;
    let staged: StagedFile;
    let node = given;
    if (r.hasFh) {
      const file = this.get(r);
      if (!file.writable) return -E.BADF;
      if (file.stale) return -E.STALE;
      staged = this.#stagedOf(file);
    } else {
      if (node.directory) return -E.ISDIR;
      node = await this.tree.refresh(node);
      if ((node.facts.mode & S_IFMT) !== S_IFREG) return -E.INVAL;
      staged = this.stageNode(node);
    }
    if ((r.valid & FATTR.KILL_SUIDGID) !== 0) staged.killPrivileges();
    const result = staged.truncate(r.size);
    if (result < 0) return result;
    // Nobody will close it
    if ((this.#uses.get(staged)?.handles ?? 0) === 0) await this.write.committer.durable(staged);
    return 0;
  }

  /** Another version has come, and this one has not been changed: who has it open goes on with the one that was opened. */
  #replaced(node: ObjectNode): void {
    const file = node.staged;
    if (file === null) return;
    this.#unlink(file, node);
    if ((this.#uses.get(file)?.handles ?? 0) === 0) this.#dispose(file);
  }

  /** What a commit of the file has to wait for. */
  waiting(file: StagedFile): Promise<unknown> | null {
    return this.#uses.get(file)?.node.replacing ?? null;
  }

  /** A commit made an object of the file. */
  committed(file: StagedFile, base: Base, metadata: Metadata): void {
    const use = this.#uses.get(file);
    if (use === undefined) return;
    const { node } = use;
    if (node.staged === file && !node.unlinked) {
      this.tree.committed(node, { ...base, key: node.key, modified_ms: Date.now(), metadata, headers: file.attributes().headers });
    }
    for (const handle of this.#handles.values()) if (handle.staged === file) handle.base = base;
    if (use.handles > 0) return;
    if (file.dirty) this.write!.committer.later(file);
    else this.#dispose(file);
  }

  /** The file's data was put aside. */
  conflicted(file: StagedFile): void {
    const use = this.#uses.get(file);
    if (use === undefined) return;
    for (const handle of this.#handles.values()) if (handle.staged === file) handle.stale = true;
    if (!use.node.unlinked) this.tree.changed(use.node.key);
    this.#dispose(file);
  }

  /** The version `source` is at another key now, as another version. Who has another one open has one that is gone. */
  moved(node: ObjectNode, key: string, version: Version, source: Version | null = node.facts.version): void {
    const before = node.facts.version;
    if (before !== source) return;
    for (const handle of this.#handles.values()) {
      if (handle.node !== node || handle.base === null || handle.base.version !== before) continue;
      handle.base = { ...handle.base, key, version };
      handle.reader?.moveTo(key, version);
    }
    const file = node.staged;
    if (file?.base != null && file.base.version === before) {
      file.rename(node.unlinked ? null : key, { key, version, size: file.base.size });
    }
    if (node.told === before) node.told = version;
    if (node.cached === before) node.cached = version;
    node.facts = { ...node.facts, version };
  }

  /** Who has a file open that is about to lose its name keeps what it is. @throws StorageError */
  async preserve(node: ObjectNode, hiddenKey: () => string): Promise<void> {
    if (node.opens === 0 || node.facts.version === null) return;
    const file = node.staged;
    if (file !== null && file.isStaged(0, file.size)) return;
    const base = file?.base ?? { key: node.key, version: node.facts.version, size: node.facts.size };
    if (base.size === 0) return;
    if (base.size <= PRESERVE_LOCALLY_BYTES) {
      const staged = file ?? this.#stage(node, base);
      // Whoever has it open may close it meanwhile
      this.#uses.get(staged)!.handles++;
      return staged.fill(0, staged.size).finally(() => this.#leave(staged));
    }
    const copy = await this.#hidden!.copy(node, base, hiddenKey());
    for (const handle of this.#handles.values()) {
      if (handle.node !== node || handle.base?.version !== base.version) continue;
      handle.base = copy;
      handle.reader?.moveTo(copy.key, copy.version);
    }
    file?.rebase(copy);
  }

  /** The node has lost its name: what was changed is not committed any more. */
  async unlinked(node: ObjectNode): Promise<void> {
    const file = node.staged;
    if (file !== null) {
      file.rename(null, file.base);
      await this.write!.committer.forget(file);
      if ((this.#uses.get(file)?.handles ?? 0) === 0) this.#dispose(file);
    }
    this.#hidden?.release(node);
  }

  /** The guest has gone. */
  reset(): void {
    for (const [number, file] of this.#handles) this.#drop(number, file);
    this.tree.small.clear();
  }

  /** Copies of what was open are removed. */
  async settled(): Promise<void> {
    await this.#cleaning.settled();
    await this.#hidden?.settled();
  }

  abandon(): void {
    this.tree.small.clear();
    for (const { reader } of this.#handles.values()) reader?.close();
    this.#handles.clear();
    for (const file of this.#uses.keys()) file.abandon();
    this.#uses.clear();
  }

  #install(r: FileSystemRequest, node: ObjectNode, writable: boolean): FileHandle | number {
    const number = this.nextHandle();
    if (number < 0) return number;
    const { version } = node.facts;
    const base = baseOf(node, this.#hidden);
    const file: FileHandle = { node, base, reader: null, staged: null, writable, synchronous: (r.flags & (O_SYNC | O_DSYNC)) !== 0, stale: false };
    node.opens++;
    this.#handles.set(number, file);
    if (node.staged !== null) this.#use(file, node.staged);
    r.fhLow = number;
    r.fhHigh = 0;
    r.openFlags = writable ? 0 : FOPEN.NOFLUSH;
    if (node.staged?.dirty !== true && version !== null) {
      if (node.cached === version) r.openFlags |= FOPEN.KEEP_CACHE;
      node.cached = version;
    }
    return file;
  }

  #truncateAtOpen(r: FileSystemRequest, file: FileHandle): number {
    try {
      const staged = this.#stagedOf(file);
      if ((r.fuseFlags & OPEN_KILL_SUIDGID) !== 0) staged.killPrivileges();
      const result = staged.truncate(0);
      // The guest knows that it is empty
      if (result === 0) file.node.told = file.node.facts.version;
      r.openFlags &= ~(FOPEN.KEEP_CACHE | FOPEN.NOFLUSH);
      return result;
    } catch (error) {
      return errnoOf(error);
    }
  }

  #stagedOf(file: FileHandle): StagedFile {
    if (this.write === null) throw new FileError(E.ROFS);
    if (file.staged !== null) return file.staged;
    // Others have gone on to another version, which this handle does not know
    if (file.node.staged !== null || file.base === null) throw new FileError(E.STALE);
    return this.#stage(file.node, file.base);
  }

  /** For all handles that were opened as this version. */
  #stage(node: ObjectNode, base: Base): StagedFile {
    const staged = this.#link(node, StagedFile.of(this.write!.shop, base, node.facts));
    if (node.unlinked) staged.rename(null, base);
    for (const handle of this.#handles.values()) {
      if (handle.node !== node || handle.staged !== null || handle.base?.version !== base.version) continue;
      this.#use(handle, staged);
      handle.reader?.close();
      handle.reader = null;
    }
    return staged;
  }

  #link(node: ObjectNode, file: StagedFile): StagedFile {
    node.staged = file;
    this.tree.nodes.staged.add(node);
    this.#uses.set(file, { node, handles: 0 });
    return file;
  }

  #use(handle: FileHandle, file: StagedFile): void {
    handle.staged = file;
    const use = this.#uses.get(file);
    if (use !== undefined) use.handles++;
  }

  #drop(number: number, handle: FileHandle): void {
    this.#handles.delete(number);
    handle.reader?.close();
    const { node, staged } = handle;
    if (handle.reader === null && handle.base !== null) this.tree.small.drop(handle.base.key);
    node.opens--;
    if (staged !== null) this.#leave(staged);
    this.#hidden?.release(node);
    this.tree.nodes.release(node);
  }

  #leave(file: StagedFile): void {
    const use = this.#uses.get(file);
    if (use === undefined || --use.handles > 0) return;
    if (file.dirty) this.write!.committer.later(file);
    else this.#dispose(file);
  }

  #unlink(file: StagedFile, node: ObjectNode): void {
    if (node.staged !== file) return;
    node.staged = null;
    this.tree.nodes.staged.delete(node);
    this.tree.nodes.release(node);
  }

  #dispose(file: StagedFile): void {
    const use = this.#uses.get(file);
    if (use === undefined) return;
    this.#uses.delete(file);
    this.#unlink(file, use.node);
    this.#cleaning.add(this.write!.committer.forget(file).then(() => file.dispose()).catch((error: unknown) => {
      this.tree.log.error({ err: error, id: file.id }, `staging file ${file.id} cannot be given up: the next start looks at it again`);
    }));
  }

  /** Files of which something is not in the bucket, for reports. */
  get dirtyFiles(): number {
    return [...this.#uses.keys()].filter((file) => file.dirty).length;
  }
}
