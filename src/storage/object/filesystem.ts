/**
 * A bucket as a file system: the operations of the port, put together. What the store has to be asked for is answered later; what
 * is known is answered at once.
 *
 * Read-only so far: every change is EROFS.
 */
import { E } from '../../base/errno.js';
import { O_ACCMODE, O_RDONLY, O_TRUNC, S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import { PENDING, ROOT_NODE, type Capabilities, type FileSystem, type FileSystemRequest, type Method } from '../filesystem.js';
import { DirectoryHandle, DOTS } from './directory-handles.js';
import { putStatx } from './facts.js';
import type { Entry } from './listing.js';
import type { MemoryBudget } from './memory-budget.js';
import type { ObjectNode } from './nodes.js';
import { Reader } from './reader.js';
import type { ObjectStore } from './store.js';
import { errnoOf, FileError, Tree, type TreeLog, type TreeOptions } from './tree.js';

export interface ObjectOptions extends TreeOptions {
  readonly readdirplus: boolean;
}

interface FileHandle {
  readonly node: ObjectNode;
  readonly reader: Reader;
}

const FOPEN_NOFLUSH = 32;
const HANDLES_MAX = 65_536;
const DT_DIR = 4;
const DT_REG = 8;
const TARGET_MAX_BYTES = 4095;
/** Entries of one READDIRPLUS whose metadata is asked for at the same time. */
const PLUS_AT_ONCE = 128;
/** A LOOKUP that was just answered serves for the one OPEN that comes with it. */
const LOOKUP_SERVES_OPEN_MS = 10;

export function openObjectFileSystem(store: ObjectStore, budget: MemoryBudget, options: ObjectOptions, log: TreeLog): FileSystem {
  const fs = new ObjectFileSystem(store, budget, options, log);
  return fs.port();
}

class ObjectFileSystem {
  readonly #tree: Tree;
  readonly #files = new Map<number, FileHandle>();
  readonly #directories = new Map<number, DirectoryHandle>();
  #handles = 0;

  constructor(
    readonly store: ObjectStore,
    readonly budget: MemoryBudget,
    readonly options: ObjectOptions,
    readonly log: TreeLog,
  ) {
    this.#tree = new Tree(store, options, log);
  }

  port(): FileSystem {
    const readOnly: Method = () => -E.ROFS;
    const unsupported: Method = () => -E.OPNOTSUPP;
    const seconds = this.options.metadataTtl_ms / 1000;
    return {
      capabilities: CAPABILITIES(this.options),
      entryTimeout: seconds,
      attrTimeout: seconds,
      reset: () => this.#reset(),
      cancelWaiting: () => undefined,
      interrupt: () => false,
      lookup: (r) => this.#later(r, () => this.#lookup(r)),
      forget: (low, high, count) => this.#forget(low, high, count),
      getattr: (r) => this.#getattr(r),
      readlink: (r) => this.#later(r, () => this.#readlink(r)),
      open: (r) => this.#later(r, () => this.#open(r)),
      opendir: (r) => this.#opendir(r),
      read: (r) => this.#later(r, () => this.#read(r)),
      readdir: (r) => this.#later(r, () => this.#readdir(r, false)),
      readdirplus: (r) => this.#later(r, () => this.#readdir(r, true)),
      release: (r) => this.#release(r),
      releasedir: (r) => this.#releasedir(r),
      statfs: (r) => this.#statfs(r),
      access: (r) => ((r.flags & 2) !== 0 ? -E.ROFS : 0),
      getxattr: (r) => this.#later(r, () => this.#getxattr(r)),
      listxattr: (r) => this.#later(r, () => this.#listxattr(r)),
      lseek: (r) => this.#lseek(r),
      flush: () => 0,
      fsync: () => 0,
      fsyncdir: () => 0,
      syncfs: () => 0,
      setattr: readOnly, symlink: readOnly, mknod: readOnly, mkdir: readOnly, unlink: readOnly, rmdir: readOnly, rename: readOnly, link: readOnly,
      create: readOnly, tmpfile: readOnly, write: readOnly, setxattr: readOnly, removexattr: readOnly, fallocate: readOnly, copyFileRange: readOnly,
      getlk: unsupported, setlk: unsupported, ioctl: () => -E.NOTTY,
    };
  }

  #later(r: FileSystemRequest, operation: () => Promise<number>): number {
    r.defer();
    operation().catch((error: unknown) => this.#failed(r, error)).then(
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
    const node = this.#tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) throw new FileError(E.STALE);
    return node;
  }

  #putAttr(r: FileSystemRequest, node: ObjectNode): void {
    putStatx(r.attr.i32, node.facts, node.inoLow, node.inoHigh);
    node.told = node.facts.version;
    r.attrFlags = 0;
  }

  #putEntry(r: FileSystemRequest, node: ObjectNode): void {
    this.#tree.nodes.ref(node);
    r.entryLow = node.slot;
    r.entryHigh = node.sequence;
    this.#putAttr(r, node);
  }

  async #lookup(r: FileSystemRequest): Promise<number> {
    const parent = this.#node(r);
    const node = await this.#tree.lookup(parent, r.nameBytes());
    node.lookedUp_ms = performance.now();
    this.#putEntry(r, node);
    return 0;
  }

  #forget(low: number, high: number, count: number): void {
    const node = this.#tree.nodes.get(low, high);
    if (node !== null && node.slot !== ROOT_NODE) this.#tree.nodes.unref(node, count);
  }

  #getattr(r: FileSystemRequest): number {
    const node = this.#tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) return -E.STALE;
    if (performance.now() < node.expires_ms) {
      this.#putAttr(r, node);
      return 0;
    }
    return this.#later(r, async () => {
      try {
        await this.#tree.refresh(node);
      } catch (error) {
        // A file that is open and was removed by somebody is still what it was
        if (!(error instanceof FileError) || node.opens === 0) throw error;
      }
      this.#putAttr(r, node);
      return 0;
    });
  }

  async #readlink(r: FileSystemRequest): Promise<number> {
    const node = await this.#tree.fresh(this.#node(r));
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

  async #open(r: FileSystemRequest): Promise<number> {
    if ((r.flags & O_ACCMODE) !== O_RDONLY || (r.flags & O_TRUNC) !== 0) return -E.ROFS;
    let node = this.#node(r);
    if (node.directory) return -E.ISDIR;
    // Close-to-open: what others have closed by now is what is read
    const lookedUp = performance.now() - node.lookedUp_ms <= LOOKUP_SERVES_OPEN_MS;
    node.lookedUp_ms = -Infinity;
    if (!lookedUp) node = await this.#tree.refresh(node);
    const type = node.facts.mode & S_IFMT;
    if (type !== S_IFREG) return type === S_IFLNK ? -E.LOOP : -E.NXIO;
    if (node.facts.version === null) return -E.IO;
    if (node.facts.version !== node.told) {
      // The guest believes in the size of another version, and OPEN cannot tell it: ESTALE makes Linux look the name up again
      // and come back, once (open(2) with LOOKUP_REVAL, as for NFS)
      node.told = node.facts.version;
      return -E.STALE;
    }
    const handle = this.#handle();
    if (handle < 0) return handle;
    node.opens++;
    this.#files.set(handle, { node, reader: new Reader(this.store, this.budget, node.key, node.facts.version, node.facts.size) });
    r.fhLow = handle;
    r.fhHigh = 0;
    r.openFlags = FOPEN_NOFLUSH;
    return 0;
  }

  /** A number for a handle, never used before in this session; −ENFILE when there are too many. */
  #handle(): number {
    return this.#files.size + this.#directories.size >= HANDLES_MAX ? -E.NFILE : ++this.#handles;
  }

  #opendir(r: FileSystemRequest): number {
    const node = this.#tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) return -E.STALE;
    if (!node.directory) return -E.NOTDIR;
    const handle = this.#handle();
    if (handle < 0) return handle;
    node.opens++;
    this.#directories.set(handle, new DirectoryHandle(node, this.#tree));
    r.fhLow = handle;
    r.fhHigh = 0;
    r.openFlags = 0;
    return 0;
  }

  #release(r: FileSystemRequest): number {
    const file = r.fhHigh === 0 ? this.#files.get(r.fhLow) : undefined;
    if (file === undefined) return -E.BADF;
    this.#files.delete(r.fhLow);
    file.reader.close();
    file.node.opens--;
    this.#tree.nodes.release(file.node);
    return 0;
  }

  #releasedir(r: FileSystemRequest): number {
    const directory = r.fhHigh === 0 ? this.#directories.get(r.fhLow) : undefined;
    if (directory === undefined) return -E.BADF;
    this.#directories.delete(r.fhLow);
    directory.node.opens--;
    this.#tree.nodes.release(directory.node);
    return 0;
  }

  async #read(r: FileSystemRequest): Promise<number> {
    const file = r.fhHigh === 0 ? this.#files.get(r.fhLow) : undefined;
    if (file === undefined) return -E.BADF;
    return file.reader.read(r.offset, r.size, (at, address, bytes) => r.copyToData(at, address, bytes));
  }

  async #readdir(r: FileSystemRequest, plus: boolean): Promise<number> {
    const directory = r.fhHigh === 0 ? this.#directories.get(r.fhLow) : undefined;
    if (directory === undefined) return -E.BADF;
    if (r.node2High !== 0) return -E.INVAL;
    let number = r.node2Low;
    if (number === 0) directory.rewind();
    for (; number < DOTS; number++) {
      if (!this.#put(r, directory.node, DOT_NAMES[number], DT_DIR, number + 1, false)) return r.entries.used > 0 ? r.entries.used : -E.INVAL;
    }
    // Until the reply is full or the directory ends: an empty reply would say that it ends
    for (;;) {
      const entries = await directory.entries(number - DOTS);
      if (entries.length === 0) return r.entries.used;
      const nodes = plus ? await this.#nodesOf(directory.node, entries.slice(0, PLUS_AT_ONCE)) : [];
      const count = plus ? nodes.length : entries.length;
      try {
        for (let i = 0; i < count; i++, number++) {
          const node = nodes[i] ?? null;
          if (!r.entries.fits(entries[i].name.length)) return r.entries.used > 0 ? r.entries.used : -E.INVAL;
          if (node !== null) this.#putEntry(r, node);
          this.#put(r, node ?? directory.node, entries[i].name, this.#type(entries[i], node), number + 1, node !== null);
        }
      } finally {
        // Those that had no room are not known to the guest
        for (const node of nodes) if (node !== null) this.#tree.nodes.release(node);
      }
    }
  }

  /** For the entry of a listing; 0 where only its metadata would tell. */
  #type({ object }: Entry, node: ObjectNode | null): number {
    if (object === null) return DT_DIR;
    if (node !== null) return (node.facts.mode & S_IFMT) >>> 12;
    return this.options.posix === 'off' ? DT_REG : 0;
  }

  #put(r: FileSystemRequest, node: ObjectNode, name: Uint8Array, type: number, next: number, known: boolean): boolean {
    if (!r.entries.fits(name.length)) return false;
    // An inode number of 0 would hide the entry
    r.entries.put(known ? node.inoLow : next, known ? node.inoHigh : 0, next, 0, type, name, 0, name.length, known);
    return true;
  }

  /** Nodes for entries of a listing, as far as their attributes are known or to be asked for; null for the others. */
  #nodesOf(directory: ObjectNode, entries: readonly Entry[]): Promise<(ObjectNode | null)[]> {
    return Promise.all(entries.map(async (entry) => {
      if (entry.object === null) return this.#tree.listedDirectory(`${directory.key}${entry.component}/`);
      if (this.#tree.knowsFromListing(entry.object)) return this.#tree.putObject(entry.object);
      if (this.options.posix !== 'full') return null;
      const known = this.#tree.nodes.find(false, entry.object.key);
      if (known !== null && known.facts.version === entry.object.version && performance.now() < known.expires_ms) return known;
      return this.store.head(entry.object.key).then((info) => this.#tree.putObject(info), () => null);
    }));
  }

  /** A bucket has no size: what df(1) shows is large, and nothing of it is used. struct statvfs, see fuse/reply.ts. */
  #statfs(r: FileSystemRequest): number {
    const words = r.reply.u32;
    words.fill(0, 0, 32);
    words[0] = words[2] = 4096;
    const blocks = 2 ** 38; // 1 PiB of 4 KiB
    for (const field of [2, 3, 4, 5, 6]) {
      words[field * 2] = blocks >>> 0;
      words[field * 2 + 1] = Math.floor(blocks / 2 ** 32);
    }
    words[20] = 255;
    return 0;
  }

  async #getxattr(r: FileSystemRequest): Promise<number> {
    const node = await this.#tree.fresh(this.#node(r));
    const value = node.facts.xattrs.get(Buffer.from(r.nameBytes()).toString());
    if (value === undefined) return -E.NODATA;
    if (r.size !== 0 && value.length > r.size) return -E.RANGE;
    r.reply.u8.set(value);
    return value.length;
  }

  async #listxattr(r: FileSystemRequest): Promise<number> {
    const node = await this.#tree.fresh(this.#node(r));
    const names = Buffer.from([...node.facts.xattrs.keys()].map((name) => `${name}\0`).join(''));
    if (r.size !== 0 && names.length > r.size) return -E.RANGE;
    r.reply.u8.set(names);
    return names.length;
  }

  /** Objects have no holes: data is everywhere, and the one hole is at the end (lseek(2)). */
  #lseek(r: FileSystemRequest): number {
    const file = r.fhHigh === 0 ? this.#files.get(r.fhLow) : undefined;
    if (file === undefined) return -E.BADF;
    const { size } = file.reader;
    if (r.flags !== 3 && r.flags !== 4) return -E.INVAL;
    if (r.offset >= size) return -E.NXIO;
    r.position = r.flags === 3 ? r.offset : size;
    return 0;
  }

  #reset(): void {
    for (const { node, reader } of this.#files.values()) {
      reader.close();
      node.opens = 0;
    }
    for (const { node } of this.#directories.values()) node.opens = 0;
    this.#files.clear();
    this.#directories.clear();
    this.#tree.nodes.clear();
  }
}

const DOT_NAMES = [Buffer.from('.'), Buffer.from('..')];

const CAPABILITIES = (options: ObjectOptions): Capabilities => ({
  writeback: false, killprivV2: false, posixAcl: false, securityContext: false, submounts: false, posixLocks: false, flockLocks: false,
  readdirplus: options.readdirplus, allowMmap: true, suppGroups: false, idmap: false,
});
