/** The operations of the port on a bucket: what the store has to be asked for is answered later; what is known is answered at once. */
import { E } from '../../base/errno.js';
import { O_EXCL } from '../../ffi/constants.js';
import { PENDING, type Capabilities, type FileSystem, type FileSystemRequest, type Method } from '../filesystem.js';
import { FATTR, FATTR_CHANGES } from '../fuse-flags.js';
import { AttributeChanges, xattrNameOf } from './attribute-changes.js';
import type { BlockCache } from './blocks/block-cache.js';
import { Changes } from './changes.js';
import { putStatfs, putStatx } from './facts.js';
import type { MemoryBudget } from './memory-budget.js';
import { presentFacts, type ObjectNode } from './nodes.js';
import { OpenFiles } from './open-files.js';
import { DirectoryReader } from './readdir.js';
import type { StagingRegistry, WriteSide } from './staging-registry.js';
import type { ObjectStore } from './store.js';
import { errnoOf, FileError, isSettled, type Tree, type TreeLog, type TreeOptions } from './tree.js';
import { CONFLICTS } from './write/committer.js';
import type { StagedFile } from './write/staged-file.js';

export interface OperationOptions extends TreeOptions {
  readonly readdirplus: boolean;
}

const HANDLES_MAX = 65_536;
const TARGET_MAX_BYTES = 4095;

export class ObjectFileSystem {
  readonly files: OpenFiles;
  readonly #changes: Changes | null;
  readonly #attributes: AttributeChanges | null;
  readonly #directories: DirectoryReader;
  #handles = 0;

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    readonly options: OperationOptions,
    readonly log: TreeLog,
    readonly tree: Tree,
    readonly write: WriteSide | null,
    blocks: BlockCache | null = null,
  ) {
    this.files = new OpenFiles(store, budget, tree, write, () => this.#handle(), blocks);
    this.#directories = new DirectoryReader(tree, options, () => this.#handle(), (r, node) => this.#putEntry(r, node));
    const { staging } = this.files;
    this.#changes = staging === null ? null : new Changes(store, tree, staging, staging.write);
    this.#attributes = staging === null ? null : new AttributeChanges(store, tree, staging);
  }

  get staging(): StagingRegistry | null {
    return this.files.staging;
  }

  /** A file, or a directory, that a former daemon has not committed. */
  goOn(file: StagedFile): void {
    const { nodes } = this.tree;
    const { directory } = file;
    const key = file.key!;
    const there = nodes.find(directory, key);
    if (there?.staged != null) {
      if (directory) return file.dispose();
      if (there.staged.base?.version !== file.base?.version) {
        // Two versions were written to, each through handles of its own: the commit of one of them is a conflict
        nodes.replace(there);
        return this.#adopt(file);
      }
      // Two of one name: a rename was under way, and nobody was told which of them it is
      file.rename(`${this.options.prefix}${CONFLICTS}${key.slice(this.options.prefix.length)}.${file.id}`, null);
    }
    this.#adopt(file);
  }

  #adopt(file: StagedFile): void {
    const node = this.tree.nodes.put(file.directory, file.key!, file.facts(), 0);
    this.staging!.adopt(node, file);
    this.write!.committer.later(file);
  }

  port(): FileSystem {
    const unsupported: Method = () => -E.OPNOTSUPP;
    const seconds = this.options.metadataTtl_ms / 1000;
    const { files } = this;
    const directories = this.#directories;
    return {
      capabilities: CAPABILITIES(this.options),
      entryTimeout: seconds,
      attrTimeout: seconds,
      reset: () => this.#reset(),
      cancelWaiting: () => {
        files.waits.drain();
        this.tree.walks.drain();
      },
      interrupt: (low, high) => files.waits.interrupt(low, high),
      lookup: (r) => this.#later(r, () => this.#lookup(r)),
      forget: (low, high, count) => this.tree.nodes.forget(low, high, count),
      getattr: (r) => this.#getattr(r),
      setattr: (r) => this.#change(r, () => this.#setattr(r)),
      readlink: (r) => this.#later(r, () => this.#readlink(r)),
      symlink: (r) => this.#change(r, (changes) => this.#made(r, changes.symlink(r, this.#node(r)))),
      mknod: (r) => this.#change(r, (changes) => this.#made(r, changes.mknod(r, this.#node(r)))),
      mkdir: (r) => this.#change(r, (changes) => this.#made(r, changes.mkdir(r, this.#node(r)))),
      unlink: (r) => this.#change(r, (changes) => changes.unlink(r, this.#node(r))),
      rmdir: (r) => this.#change(r, (changes) => changes.rmdir(r, this.#node(r))),
      rename: (r) => this.#change(r, (changes) => changes.rename(r, this.#node(r), this.#node2(r))),
      // Objects have one name each (link(2): EPERM for a file system without hard links)
      link: () => (this.write === null ? -E.ROFS : -E.PERM),
      open: (r) => this.#later(r, () => files.open(r, this.#node(r))),
      opendir: (r) => directories.open(r),
      create: (r) => this.#change(r, (changes) => this.#create(r, changes)),
      tmpfile: () => (this.write === null ? -E.ROFS : -E.OPNOTSUPP),
      read: (r) => this.#inline(r, () => files.read(r)),
      write: (r) => this.#inline(r, () => files.writeData(r)),
      readdir: (r) => this.#later(r, () => directories.read(r, false)),
      readdirplus: (r) => this.#later(r, () => directories.read(r, true)),
      flush: (r) => this.#later(r, () => files.flush(r), false),
      fsync: (r) => this.#later(r, () => files.flush(r), false),
      fsyncdir: (r) => this.#fsyncdir(r),
      syncfs: (r) => this.#later(r, () => files.waits.wait(r, this.#syncfs()), false),
      release: (r) => this.#inline(r, () => (files.release(r), 0)),
      releasedir: (r) => directories.release(r),
      statfs: (r) => (putStatfs(r.reply.u32), 0),
      access: (r) => (this.write === null && (r.flags & 2) !== 0 ? -E.ROFS : 0),
      setxattr: (r) => this.#change(r, () => this.#attributes!.setxattr(r, this.#node(r))),
      getxattr: (r) => this.#getxattr(r),
      listxattr: (r) => this.#later(r, () => this.#listxattr(r)),
      removexattr: (r) => this.#change(r, () => this.#attributes!.removexattr(r, this.#node(r))),
      fallocate: (r) => this.#inline(r, () => files.fallocate(r)),
      lseek: (r) => this.#inline(r, () => files.lseek(r)),
      // The guest copies by itself then
      copyFileRange: unsupported,
      getlk: unsupported, setlk: unsupported, ioctl: () => -E.NOTTY,
    };
  }

  /** At once if that is possible; a method that has to wait gives a promise. */
  #inline(r: FileSystemRequest, operation: () => number | Promise<number>): number {
    try {
      const result = operation();
      return typeof result === 'number' ? result : this.#later(r, () => result, false);
    } catch (error) {
      return this.#failed(r, error);
    }
  }

  #change(r: FileSystemRequest, operation: (changes: Changes) => Promise<void | number>): number {
    const changes = this.#changes;
    if (changes === null) return -E.ROFS;
    return this.#later(r, async () => (await operation(changes)) ?? 0);
  }

  /** `finds`: it finds nodes by nodeid or key, and not only by a handle, which holds its node. */
  #later(r: FileSystemRequest, operation: () => Promise<number>, finds = true): number {
    r.defer();
    const { nodes } = this.tree;
    const request = finds ? nodes.begin() : null;
    // What it throws before it has to wait counts as well
    const done = (async () => operation())();
    done.catch((error: unknown) => this.#failed(r, error)).finally(() => request !== null && nodes.end(request)).then(
      (result) => r.complete(result),
      (error: unknown) => {
        this.log.guest('defect', { err: error }, 'a request failed inside the daemon: please report this');
        r.complete(-E.IO);
      },
    );
    return PENDING;
  }

  /** −errno; what the provider is to blame for goes to the log. */
  #failed(_r: FileSystemRequest, error: unknown): number {
    const errno = errnoOf(error);
    if (!(error instanceof FileError) && errno !== -E.NOENT && errno !== -E.STALE) {
      this.log.guest(`store ${errno}`, { err: error }, (error as Error).message);
    }
    return errno;
  }

  #node(r: FileSystemRequest): ObjectNode {
    const node = this.tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) throw new FileError(E.STALE);
    return node;
  }

  #node2(r: FileSystemRequest): ObjectNode {
    const node = this.tree.nodes.get(r.node2Low, r.node2High);
    if (node === null) throw new FileError(E.STALE);
    return node;
  }

  #putAttr(r: FileSystemRequest, node: ObjectNode): void {
    putStatx(r.attr.i32, presentFacts(node), node.inoLow, node.inoHigh, node.unlinked || node.replaced ? 0 : 1);
    node.told = node.facts.version;
    r.attrFlags = 0;
  }

  #putEntry(r: FileSystemRequest, node: ObjectNode): void {
    this.tree.nodes.ref(node);
    r.entryLow = node.slot;
    r.entryHigh = node.sequence;
    this.#putAttr(r, node);
  }

  async #made(r: FileSystemRequest, making: Promise<ObjectNode>): Promise<void> {
    const node = await making;
    // First: a node that nobody knows is forgotten when it is committed
    this.#putEntry(r, node);
    await this.write!.committer.madeRoom(node.staged);
  }

  async #lookup(r: FileSystemRequest): Promise<number> {
    const parent = this.#node(r);
    await this.tree.gate.pass(() => parent.key);
    const node = await this.tree.lookup(parent, r.nameBytes());
    if (!node.directory) this.tree.small.note(node.key, 'lookups');
    this.#putEntry(r, node);
    return 0;
  }

  #getattr(r: FileSystemRequest): number {
    const node = this.tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) return -E.STALE;
    if (performance.now() < node.expires_ms || isSettled(node)) {
      this.#putAttr(r, node);
      return 0;
    }
    return this.#later(r, async () => {
      try {
        await this.tree.gate.pass(() => node.key);
        await this.tree.refresh(node);
      } catch (error) {
        // A file that is open and was removed by somebody is still what it was
        if (!(error instanceof FileError) || node.opens === 0) throw error;
      }
      this.#putAttr(r, node);
      return 0;
    });
  }

  async #readlink(r: FileSystemRequest): Promise<number> {
    const node = await this.tree.fresh(this.#node(r));
    const { symlink, version } = node.facts;
    if (symlink === null) return -E.INVAL;
    if (symlink !== '') {
      const target = Buffer.from(symlink);
      if (target.length > TARGET_MAX_BYTES || target.includes(0)) return -E.IO;
      r.reply.u8.set(target);
      return target.length;
    }
    if (version === null || node.facts.size > TARGET_MAX_BYTES) return -E.IO;
    const bytes = await this.store.read(node.key, { version, offset: 0, into: { address: r.reply.address, bytes: TARGET_MAX_BYTES } });
    const nul = r.reply.u8.subarray(0, bytes).indexOf(0);
    return nul >= 0 ? nul : bytes;
  }

  async #setattr(r: FileSystemRequest): Promise<number> {
    const node = this.#node(r);
    if ((r.valid & FATTR.SIZE) !== 0) {
      const result = await this.files.truncate(r, node);
      if (result < 0) return result;
    }
    if ((r.valid & (FATTR_CHANGES & ~FATTR.SIZE)) !== 0 || this.#attributes!.givesToItself(r, node)) await this.#attributes!.setattr(r, node);
    this.#putAttr(r, node);
    return 0;
  }

  async #create(r: FileSystemRequest, changes: Changes): Promise<number> {
    const { node, made } = await changes.create(r, this.#node(r));
    if (!made && (r.flags & O_EXCL) !== 0) return -E.EXIST;
    const result = made ? this.files.create(r, node) : await this.files.open(r, node, true);
    if (result < 0) return result;
    this.#putEntry(r, node);
    return 0;
  }

  /** What names and attributes there are in it is where --durability wants it; with writeback also the names of new files, which have to be synced for that. */
  #fsyncdir(r: FileSystemRequest): number {
    const { write } = this;
    if (!this.#directories.isOpen(r)) return -E.BADF;
    const node = this.tree.nodes.get(r.nodeLow, r.nodeHigh);
    const staged = node?.staged ?? null;
    const isRemote = write?.committer.options.durability === 'remote';
    if (write === null || (staged === null && isRemote)) return 0;
    const synced = async (): Promise<number> => {
      if (staged !== null) await write.committer.durable(staged);
      const made = node === null || isRemote ? [] : this.#madeIn(node);
      await Promise.all([...made.map((file) => file.content.sync()), write.shop.ledger.sync(), write.shop.directory.syncStaging()]);
      return 0;
    };
    return this.#later(r, () => this.files.waits.wait(r, synced()));
  }

  /** New files of a directory that a power failure would take. */
  #madeIn({ key }: ObjectNode): StagedFile[] {
    return [...this.tree.nodes.staged.below(key)].flatMap(({ key: one, staged }) => (staged?.isOnlyInMemory === true && !one.includes('/', key.length) ? [staged] : []));
  }

  async #syncfs(): Promise<number> {
    const { committer } = this.write ?? {};
    if (committer === undefined) return 0;
    let failed = 0;
    await Promise.all([...this.tree.nodes.staged].map(async ({ staged }) => {
      if (staged !== null) await committer.durable(staged).catch((error: unknown) => (failed = errnoOf(error)));
    }));
    return failed;
  }

  /** A number for a handle, never used before in this session; −ENFILE when there are too many. */
  #handle(): number {
    return this.files.count + this.#directories.count >= HANDLES_MAX ? -E.NFILE : ++this.#handles;
  }

  /** Asked before many a write (security.capability), so at once where it can be. */
  #getxattr(r: FileSystemRequest): number {
    const node = this.tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) return -E.STALE;
    const fresh = performance.now() < node.expires_ms || isSettled(node);
    return fresh ? this.#xattr(r, node) : this.#later(r, async () => this.#xattr(r, await this.tree.refresh(node)));
  }

  #xattr(r: FileSystemRequest, node: ObjectNode): number {
    const name = xattrNameOf(r.nameBytes());
    if (name === null) return -E.INVAL;
    const value = presentFacts(node).xattrs.get(name);
    if (value === undefined) return -E.NODATA;
    if (r.size !== 0 && value.length > r.size) return -E.RANGE;
    r.reply.u8.set(value);
    return value.length;
  }

  async #listxattr(r: FileSystemRequest): Promise<number> {
    const node = await this.tree.fresh(this.#node(r));
    const names = Buffer.from([...presentFacts(node).xattrs.keys()].map((name) => `${name}\0`).join(''));
    if (r.size !== 0 && names.length > r.size) return -E.RANGE;
    r.reply.u8.set(names);
    return names.length;
  }

  #reset(): void {
    this.files.reset();
    this.#directories.reset();
    this.tree.reset();
  }
}

const CAPABILITIES = (options: OperationOptions): Capabilities => ({
  writeback: false, killprivV2: true, posixAcl: 'never', securityContext: 'never', submounts: false, posixLocks: false, flockLocks: false,
  readdirplus: options.readdirplus, allowMmap: true, suppGroups: false, idmap: false,
});
