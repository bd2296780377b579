/**
 * Open files: what a handle reads is the version that it was opened as, until somebody writes through a handle of the same node; then
 * all of them see the staged file, as POSIX wants it.
 */
import { E } from '../../base/errno.js';
import { O_ACCMODE, O_DSYNC, O_RDONLY, O_SYNC, O_TRUNC, O_WRONLY, S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { FATTR, FOPEN, OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID } from '../fuse-flags.js';
import { CommitWaits } from './commit-waits.js';
import type { FileHandle } from './file-handle.js';
import { baseOf } from './hidden.js';
import type { MemoryBudget } from './memory-budget.js';
import type { ObjectNode } from './nodes.js';
import { readAgain, sourceOf } from './overtaken.js';
import type { Reader } from './reader.js';
import { StagingRegistry, type WriteSide } from './staging-registry.js';
import type { ObjectStore } from './store.js';
import { errnoOf, FileError, type Tree } from './tree.js';
import { requireReadable, requireWritable } from './write-access.js';
import { canAllocate } from './write/staged-content.js';
import type { StagedFile } from './write/staged-file.js';

const SEEK_DATA = 3;
const SEEK_HOLE = 4;

export class OpenFiles {
  readonly #handles = new Map<number, FileHandle>();
  /** null: nothing is ever written. */
  readonly staging: StagingRegistry | null;
  readonly waits = new CommitWaits();

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    readonly tree: Tree,
    readonly write: WriteSide | null,
    readonly nextHandle: () => number,
    readonly blocks: Reader['blocks'] = null,
  ) {
    this.staging = write === null ? null : new StagingRegistry(tree, write, this.#handles);
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

  /** `tells`: the reply has its attributes as well. */
  async open(r: FileSystemRequest, given: ObjectNode, tells = false): Promise<number> {
    const writable = (r.flags & O_ACCMODE) !== O_RDONLY;
    const truncate = (r.flags & O_TRUNC) !== 0;
    if ((writable || truncate) && this.write === null) return -E.ROFS;
    let node = given;
    if (node.directory) return -E.ISDIR;
    await this.tree.gate.pass(() => given.key);
    node = await this.tree.atOpen(node, writable, !writable && !truncate);
    if (node.replaced && (!node.refused || writable || truncate)) {
      // The name is another file's by now: ESTALE makes Linux look it up again. What comes back has come by no name (/proc/self/fd)
      node.refused = true;
      return -E.STALE;
    }
    const type = node.facts.mode & S_IFMT;
    if (type !== S_IFREG) return type === S_IFLNK ? -E.LOOP : -E.NXIO;
    await this.#mayOpen(node, writable || truncate, truncate);
    const dirty = node.staged?.dirty === true;
    if (!dirty && !truncate && !node.unlinked && !node.replaced) {
      if (node.facts.version === null) return -E.IO;
      if (node.facts.version !== node.told && !tells) {
        // The guest believes in the size of another version, and OPEN cannot tell it: ESTALE makes Linux look the name up again
        // and come back, once (open(2) with LOOKUP_REVAL, as for NFS)
        node.told = node.facts.version;
        return -E.STALE;
      }
    }
    const file = this.#install(r, node, writable);
    if (typeof file === 'number') return file;
    if (truncate) {
      const result = await this.#truncateAtOpen(r, file);
      if (result < 0) {
        this.#drop(r.fhLow, file);
        return result;
      }
    }
    return 0;
  }

  /** What will not be possible fails here: a read or a page of a mapping has no good way to say so. */
  #mayOpen(node: ObjectNode, changes: boolean, truncate: boolean): Promise<void> | null {
    if (changes) return requireWritable(this.tree, node, !truncate);
    if (node.staged?.dirty !== true && !node.unlinked) requireReadable(this.tree, node);
    return null;
  }

  /** A new file is there from now on, for this guest; for others when it is closed. */
  create(r: FileSystemRequest, node: ObjectNode): number {
    const file = this.#install(r, node, (r.flags & O_ACCMODE) !== O_RDONLY);
    if (typeof file === 'number') return file;
    r.openFlags &= ~FOPEN.NOFLUSH; // Also of one that is only read: closing it makes the object
    return 0;
  }

  release(r: FileSystemRequest): void {
    this.#drop(r.fhLow, this.get(r));
  }

  read(r: FileSystemRequest): number | Promise<number> {
    const file = this.get(r);
    if (!file.readable) return -E.BADF;
    const from = sourceOf(file);
    const result = this.#read(r, file);
    if (typeof result === 'number' || this.write === null) return result;
    const isHere = (): boolean => file.staged?.content.isStaged(r.offset, r.offset + r.size) === true;
    return result.catch((error: unknown) => readAgain(file, from, error, this.tree.gate, this.write!.committer, isHere, () => this.#read(r, file)));
  }

  #read(r: FileSystemRequest, file: FileHandle): number | Promise<number> {
    if (file.stale || file.merged) return -E.STALE;
    if (file.staged !== null) {
      if (r.offset >= file.staged.size) return 0;
      const { content } = file.staged;
      return content.isStaged(r.offset, r.offset + r.size) ? content.readStaged(r) : file.staged.read(r);
    }
    file.reader ??= this.tree.small.reader(file.base!, this.blocks);
    return file.reader.serve(r, r.size);
  }

  /** @returns bytes, −errno, or a promise where the handle is synchronous, or where room on the disk is being made */
  writeData(r: FileSystemRequest): number | Promise<number> {
    const result = this.#write(r);
    const freeing = result === -E.NOSPC ? this.staging?.freeing() ?? null : null;
    return freeing === null ? result : freeing.then(() => this.#write(r));
  }

  #write(r: FileSystemRequest): number | Promise<number> {
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
    const n = staged.content.write(r, r.offset);
    if (n <= 0) return n;
    this.write!.committer.wrote(staged);
    return file.synchronous || (r.flags & O_DSYNC) !== 0 ? this.waits.wait(r, this.write!.committer.durable(staged).then(() => n)) : n;
  }

  /** FLUSH and FSYNC: what this handle's file has become is where --durability wants it. */
  async flush(r: FileSystemRequest): Promise<number> {
    const file = this.get(r);
    if (file.stale) return -E.STALE;
    return file.staged === null ? 0 : this.waits.wait(r, this.write!.committer.durable(file.staged).then(() => 0));
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
      return staged.content.fallocate(r.flags, r.offset, r.offset + r.length);
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
    const { staging } = this;
    if (staging === null) return -E.ROFS;
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
      if (node.replaced && node.staged?.dirty !== true) return -E.STALE;
      if ((node.facts.mode & S_IFMT) !== S_IFREG) return -E.INVAL;
      await requireWritable(this.tree, node, r.size > 0);
      staged = staging.stageNode(node);
    }
    if ((r.valid & FATTR.KILL_SUIDGID) !== 0) staged.killPrivileges();
    const result = staged.truncate(r.size);
    if (result < 0) return result;
    await staged.cutOff();
    // Nobody will close it
    return staging.handlesOf(staged) > 0 ? 0 : this.waits.wait(r, staging.write.committer.durable(staged).then(() => 0));
  }

  /** The guest has gone. */
  reset(): void {
    for (const [number, file] of this.#handles) this.#drop(number, file);
    this.tree.small.clear();
  }

  /** Copies of what was open are removed. */
  async settled(): Promise<void> {
    await this.staging?.settled();
  }

  abandon(): void {
    this.tree.small.clear();
    for (const { reader } of this.#handles.values()) reader?.close();
    this.#handles.clear();
    this.staging?.abandon();
  }

  #install(r: FileSystemRequest, node: ObjectNode, writable: boolean): FileHandle | number {
    const number = this.nextHandle();
    if (number < 0) return number;
    const { version } = node.facts;
    const base = baseOf(node, this.staging?.hidden ?? null);
    const readable = (r.flags & O_ACCMODE) !== O_WRONLY;
    const file: FileHandle = { node, base, reader: null, staged: null, readable, writable, synchronous: (r.flags & (O_SYNC | O_DSYNC)) !== 0, stale: false, merged: false };
    node.opens++;
    this.#handles.set(number, file);
    if (node.staged !== null) this.staging!.use(file, node.staged);
    r.fhLow = number;
    r.fhHigh = 0;
    r.openFlags = writable ? 0 : FOPEN.NOFLUSH;
    if (node.staged?.dirty !== true && version !== null) {
      if (node.cached === version) r.openFlags |= FOPEN.KEEP_CACHE;
      node.cached = version;
    }
    return file;
  }

  async #truncateAtOpen(r: FileSystemRequest, file: FileHandle): Promise<number> {
    try {
      const staged = this.#stagedOf(file);
      if ((r.fuseFlags & OPEN_KILL_SUIDGID) !== 0) staged.killPrivileges();
      const result = staged.truncate(0);
      // The guest knows that it is empty
      if (result === 0) file.node.told = file.node.facts.version;
      r.openFlags &= ~(FOPEN.KEEP_CACHE | FOPEN.NOFLUSH);
      await staged.cutOff();
      return result;
    } catch (error) {
      return errnoOf(error);
    }
  }

  #stagedOf(file: FileHandle): StagedFile {
    if (this.staging === null) throw new FileError(E.ROFS);
    if (file.staged !== null) return file.staged;
    // Others have gone on to another version, which this handle does not know
    if (file.node.staged !== null || file.base === null) throw new FileError(E.STALE);
    return this.staging.stage(file.node, file.base);
  }

  #drop(number: number, handle: FileHandle): void {
    this.#handles.delete(number);
    handle.reader?.close();
    const { node, staged } = handle;
    if (handle.reader === null && handle.base !== null) this.tree.small.drop(handle.base.key);
    node.opens--;
    if (staged !== null) this.staging!.leave(staged);
    this.staging?.hidden.release(node);
    this.tree.nodes.release(node);
  }
}
