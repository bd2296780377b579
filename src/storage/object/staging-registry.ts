/** Staged files of the nodes: which node has which one, how many handles use it, and when nobody needs it any more. */
import { E } from '../../base/errno.js';
import { Underway } from '../../base/underway.js';
import { isArchived } from './attachments.js';
import { isLost } from './errors.js';
import type { Facts } from './facts.js';
import type { FileHandle } from './file-handle.js';
import { baseOf, HiddenObjects } from './hidden.js';
import type { ObjectNode } from './nodes.js';
import type { Made } from './settle.js';
import type { Version } from './store.js';
import { describedBy } from './write/attributes.js';
import type { Committed } from './write/commit.js';
import { FileError, type Tree } from './tree.js';
import type { Committer } from './write/committer.js';
import type { Base } from './write/records.js';
import { StagedFile } from './write/staged-file.js';
import type { Workshop } from './write/workshop.js';

/** What a file system that may be written to has besides. */
export interface WriteSide {
  readonly shop: Workshop;
  readonly committer: Committer;
  /** --on-conflict=overwrite */
  readonly overwrites: boolean;
}

/** Who uses a staged file. */
interface Use {
  readonly node: ObjectNode;
  handles: number;
  /** Its object has bytes that those who have it open never had: it never has the name again. */
  merged: boolean;
}

/** What is not larger is kept in a staging file when it is removed while it is open; of more the server makes a copy. */
const PRESERVE_LOCALLY_BYTES = 8 << 20;

export class StagingRegistry {
  readonly hidden: HiddenObjects;
  readonly #uses = new Map<StagedFile, Use>();
  readonly #cleaning = new Underway();
  /** See gaveUp(). */
  readonly #nameless = new WeakSet<ObjectNode>();

  /** `handles`: of all open files. */
  constructor(
    readonly tree: Tree,
    readonly write: WriteSide,
    readonly handles: ReadonlyMap<number, FileHandle>,
  ) {
    this.hidden = new HiddenObjects(tree.store, write.shop.ledger);
    tree.replaced = (node) => this.#replaced(node);
    tree.settled = ({ staged }) => (staged === null ? null : write.committer.settled(staged));
  }

  /** How many handles use a staged file. */
  handlesOf(file: StagedFile): number {
    return this.#uses.get(file)?.handles ?? 0;
  }

  /** Make a file, or a directory, that is not in the bucket: its node must have none. @throws an error of the cache directory */
  stageNew(node: ObjectNode): StagedFile {
    return this.#link(node, StagedFile.create(this.write.shop, node.key, node.facts));
  }

  /** It is going to have these attributes; with them a directory gets a marker if it has none. @throws an error of the cache directory */
  describe(node: ObjectNode, facts: Facts): StagedFile {
    if (node.staged === null && node.directory && node.facts.version === null) return this.#link(node, StagedFile.create(this.write.shop, node.key, facts));
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
    const base = baseOf(node, this.hidden);
    if (base === null) throw new FileError(E.IO);
    return this.stage(node, base);
  }

  /** Another version has come, and this one's content has not been changed: who has it open goes on with the one that was opened. */
  #replaced(node: ObjectNode): void {
    const file = node.staged;
    if (file === null) return;
    this.#unlink(file, node);
    if ((this.#uses.get(file)?.handles ?? 0) > 0) return;
    // Attributes that wait go with the version that they were set of, also when they are being sent
    if (file.dirty) file.rename(null, file.base);
    this.#dispose(file);
  }

  /** Until when what was told of the file's object is believed. */
  believedUntil(file: StagedFile): number {
    return this.#uses.get(file)?.node.expires_ms ?? -Infinity;
  }

  /** What a commit of the file has to wait for. */
  waiting(file: StagedFile): Promise<unknown> | null {
    return this.#uses.get(file)?.node.replacing ?? null;
  }

  /** A commit made an object of the file. */
  committed(file: StagedFile, { base, metadata, merged, described }: Committed): void {
    const use = this.#uses.get(file);
    if (use === undefined) return;
    if (described !== null && !file.dirty) file.describedBy(described);
    const { node } = use;
    if (node.staged === file && !node.unlinked) {
      // Unless what was changed under that name counts more
      if (node.replaced && !use.merged && this.tree.stagedAt(node.key) === null) this.tree.nodes.restore(node);
      this.tree.committed(node, { ...base, key: node.key, modified_ms: Date.now(), metadata, headers: file.attributes().headers });
      if (merged) this.#merged(node, use);
    }
    for (const handle of this.handles.values()) if (handle.staged === file) handle.base = base;
    if (use.handles > 0) return;
    if (file.dirty) this.write.committer.later(file);
    else this.#dispose(file);
  }

  /** Nothing more can be written to the file. */
  conflicting(file: StagedFile): void {
    for (const handle of this.handles.values()) if (handle.staged === file) handle.stale = true;
  }

  /** There is another client's version in the object: for who opens it from now on it is another file, and the guest reads it anew. */
  #merged(node: ObjectNode, use: Use): void {
    node.cached = null;
    if (node.opens === 0) return;
    use.merged = true;
    for (const handle of this.handles.values()) if (handle.node === node) handle.merged = true;
    if (!node.replaced) this.tree.nodes.replace(node);
  }

  /** The file's data was put aside. */
  conflicted(file: StagedFile): void {
    const use = this.#uses.get(file);
    if (use === undefined) return;
    this.conflicting(file);
    const { node } = use;
    if (!node.unlinked) this.tree.changed(node.key);
    if (node.staged === file && node.opens > 0) {
      // It ends where it ended, for whoever still has it open: reading what is before that is ESTALE
      node.facts = { ...file.facts(), version: node.facts.version };
      if (!node.unlinked && !node.replaced) this.tree.nodes.replace(node);
    }
    this.#dispose(file);
  }

  /** The version `source` is at another key now, as another version. Who has another one open has one that is gone. */
  moved(node: ObjectNode, key: string, { version, described }: Made, source: Version | null = node.facts.version): void {
    const before = node.facts.version;
    if (before !== source) return;
    for (const handle of this.handles.values()) {
      if (handle.node !== node || handle.base === null || handle.base.version !== before) continue;
      handle.base = { ...handle.base, key, version };
      handle.reader?.moveTo(key, version);
    }
    const file = node.staged;
    if (file?.base != null && file.base.version === before) {
      file.rename(node.unlinked ? null : key, { key, version, size: file.base.size });
      if (described !== null) file.describedBy(described);
    }
    if (node.told === before) node.told = version;
    if (node.cached === before) node.cached = version;
    node.facts = { ...(described === null ? node.facts : describedBy(node.facts, described, this.write.shop.privileged)), version };
  }

  /** Who has a file open that is about to lose its name keeps what it is. @throws FileError ESTALE: it is another object's name by now; StorageError */
  async preserve(node: ObjectNode, hiddenKey: () => string): Promise<void> {
    // It has become that while its commit was waited for
    if (node.replaced) throw new FileError(E.STALE);
    try {
      await this.#preserve(node, hiddenKey);
    } catch (error) {
      if (!isLost(error)) throw error;
      // Linux looks the name up again then, and is told of the other one
      this.tree.changed(node.key);
      throw new FileError(E.STALE);
    }
  }

  async #preserve(node: ObjectNode, hiddenKey: () => string): Promise<void> {
    if (node.opens === 0 || node.facts.version === null) return;
    const file = node.staged;
    // Of what was archived while it was open nobody can read anything
    if (node.facts.headers !== null && isArchived(node.facts.headers) && file?.dirty !== true) return;
    if (file !== null && file.content.isStaged(0, file.size)) return;
    const base = file?.base ?? { key: node.key, version: node.facts.version, size: node.facts.size };
    if (base.size === 0) return;
    if (base.size <= PRESERVE_LOCALLY_BYTES) {
      const staged = file ?? this.stage(node, base);
      // Whoever has it open may close it meanwhile
      this.#uses.get(staged)!.handles++;
      return staged.fill(0, staged.size).finally(() => this.leave(staged));
    }
    const copy = await this.hidden.copy(node, base, hiddenKey());
    for (const handle of this.handles.values()) {
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
      await this.write.committer.forget(file);
      if ((this.#uses.get(file)?.handles ?? 0) === 0) this.#dispose(file);
    }
    this.hidden.release(node);
  }

  /**
   * The guest is about to remove this name, or names with this prefix, or to give it to another file: what was written to others that had it before is kept as a conflict first, since after
   * a restart it would be what the name shows. How that ends is for those to hear who have them open.
   */
  async keepReplaced(name: string): Promise<void> {
    for (const { staged } of this.tree.nodes.replacedAt(name)) if (staged?.dirty === true) await this.write.committer.committed(staged).catch(() => undefined);
  }

  /**
   * The guest has removed this name, or given it to another file: so it has for what others had replaced there, and is still open. Whoever writes to that from now
   * on hears ESTALE at once: it could not be kept under any name, and after a restart it would have this one.
   */
  gaveUp(name: string): void {
    for (const node of this.tree.nodes.replacedAt(name)) {
      const file = node.staged;
      if (file?.dirty === true) continue;
      this.#nameless.add(node);
      if (file === null) continue;
      this.conflicting(file);
      file.rename(null, file.base);
    }
  }

  /** Room on the disk that staging files take which nobody needs any more. @returns when it is free; null: there is none */
  freeing(): Promise<void> | null {
    const { directory, ledger } = this.write.shop;
    if (this.#cleaning.isEmpty && !directory.isRemoving) return null;
    return this.#cleaning.settled().then(() => {
      ledger.hurry();
      return directory.settled();
    });
  }

  /** Copies of what was open are removed. */
  async settled(): Promise<void> {
    await this.#cleaning.settled();
    await this.hidden.settled();
  }

  abandon(): void {
    for (const file of this.#uses.keys()) file.abandon();
    this.#uses.clear();
  }

  /** For all handles that were opened as this version. @throws FileError ESTALE: see gaveUp() */
  stage(node: ObjectNode, base: Base): StagedFile {
    if (this.#nameless.has(node)) throw new FileError(E.STALE);
    const staged = this.#link(node, StagedFile.of(this.write.shop, base, node.facts));
    if (node.unlinked) staged.rename(null, base);
    for (const handle of this.handles.values()) {
      if (handle.node !== node || handle.staged !== null || handle.base?.version !== base.version) continue;
      this.use(handle, staged);
      handle.reader?.close();
      handle.reader = null;
    }
    return staged;
  }

  #link(node: ObjectNode, file: StagedFile): StagedFile {
    node.staged = file;
    this.tree.nodes.staged.add(node);
    this.#uses.set(file, { node, handles: 0, merged: false });
    return file;
  }

  /** The handle sees the staged file from now on. */
  use(handle: FileHandle, file: StagedFile): void {
    handle.staged = file;
    const use = this.#uses.get(file);
    if (use !== undefined) use.handles++;
  }

  /** A handle, or somebody else who was counted, needs it no longer. */
  leave(file: StagedFile): void {
    const use = this.#uses.get(file);
    if (use === undefined || --use.handles > 0) return;
    if (file.dirty) this.write.committer.later(file);
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
    this.#cleaning.add(this.write.committer.forget(file).then(() => file.dispose()).catch((error: unknown) => {
      this.tree.log.error({ err: error, id: file.id }, `staging file ${file.id} cannot be given up: the next start looks at it again`);
    }));
  }

  /** Files of which something is not in the bucket, and bytes that are only here. */
  left(): { files: number; bytes: number } {
    const dirty = [...this.#uses.keys()].filter((file) => file.dirty);
    return { files: dirty.length, bytes: dirty.reduce((sum, { extents }) => sum + extents.stagedBytes, 0) };
  }
}
