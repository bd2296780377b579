/**
 * What programs in a guest see through its kernel: names, sizes and pages are cached by inode, as Linux's FUSE client does it (fs/fuse/dir.c, file.c,
 * inode.c), and a nodeid is an inode. So a test can ask what a program reads, instead of what one reply says.
 */
import assert from 'node:assert/strict';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from './frontend.js';
import { name, OP, type FuseClient, type Reply } from './guest.js';

const ROOT = 1n;
const PAGE_BYTES = 4096;
const FOPEN_KEEP_CACHE = 2;
const GETATTR_FH = 1;
const FATTR_SIZE = 8;
const FATTR_FH = 64;
const O_TRUNC = 0o1000;

interface Inode {
  readonly node: bigint;
  size: number;
  nlink: number;
  mtime: string;
  readonly pages: Map<number, Uint8Array>;
}

export interface KernelOptions {
  /** Names are believed until they prove to be wrong, as within their timeout. */
  readonly namesAreCached?: boolean;
  /** Attributes are believed until a LOOKUP or SETATTR gives others. */
  readonly attributesAreCached?: boolean;
  /** Attributes of an open file are asked for with its handle. */
  readonly withHandle?: boolean;
  /** Bytes that one READ asks for. */
  readonly readBytes?: number;
}

/** A file as a program has it open. */
export interface Description {
  readonly inode: Inode;
  readonly fh: bigint;
}

/** Results are −errno where a system call fails. */
export class GuestKernel {
  readonly #inodes = new Map<bigint, Inode>();
  readonly #names = new Map<string, Inode>();
  readonly #options: Required<KernelOptions>;

  constructor(readonly g: FuseClient, options: KernelOptions = {}) {
    this.#options = { namesAreCached: false, attributesAreCached: false, withHandle: false, readBytes: 16 * PAGE_BYTES, ...options };
  }

  /** open(2), which looks up again when it is told ESTALE, once. */
  async open(file: string, flags = 0): Promise<Description | number> {
    const cached = this.#options.namesAreCached ? this.#names.get(file) : undefined;
    for (let again = cached === undefined ? 1 : 0; ; again++) {
      const inode = again === 0 ? cached! : await this.lookup(file);
      if (typeof inode === 'number') return inode;
      const opened = await this.reopen(inode, flags);
      if (opened !== -E.STALE || again === 2) return opened;
    }
  }

  /** OPEN of an inode, whatever its name has become: as /proc/self/fd does it. */
  async reopen(inode: Inode, flags = 0): Promise<Description | number> {
    const { error, data } = await this.g.call(OP.OPEN, inode.node, u32(flags, 0), 16);
    if (error !== 0) return error;
    if ((data.getUint32(8, true) & FOPEN_KEEP_CACHE) === 0) inode.pages.clear();
    if ((flags & O_TRUNC) !== 0) this.#resize(inode, 0);
    return { inode, fh: data.getBigUint64(0, true) };
  }

  async lookup(file: string): Promise<Inode | number> {
    const reply = await this.g.call(OP.LOOKUP, ROOT, name(file), 128);
    if (reply.error !== 0) {
      this.#names.delete(file);
      return reply.error;
    }
    return this.#told(file, reply.data, 0);
  }

  /** READDIRPLUS of the root, to its end. */
  async readdirplus(): Promise<void> {
    const opened = await this.g.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
    assert.equal(opened.error, 0);
    const fh = opened.data.getBigUint64(0, true);
    for (let offset = 0n; ; ) {
      const { data, error } = await this.g.call(OP.READDIRPLUS, ROOT, concat(u64(fh, offset), u32(4096, 0), u64(0), u32(0, 0)), 4096);
      assert.equal(error, 0);
      if (data.byteLength === 0) break;
      // struct fuse_direntplus: an entry_out of 128 bytes, then ino, off, namelen, type, name, padded to 8 bytes
      for (let at = 0; at < data.byteLength; ) {
        const length = data.getUint32(at + 144, true);
        const text = Buffer.from(data.buffer, data.byteOffset + at + 152, length).toString();
        offset = data.getBigUint64(at + 136, true);
        if (data.getBigUint64(at, true) !== 0n) this.#told(text, data, at);
        at += (152 + length + 7) & ~7;
      }
    }
    assert.equal((await this.g.call(OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }

  /** fstat(2). */
  async stat({ inode, fh }: Description): Promise<Inode | number> {
    if (this.#options.attributesAreCached) return inode;
    const { withHandle } = this.#options;
    const { error, data } = await this.g.call(OP.GETATTR, inode.node, concat(u32(withHandle ? GETATTR_FH : 0, 0), u64(withHandle ? fh : 0n)), 104);
    if (error !== 0) return error;
    this.#attributes(inode, data, 16);
    return inode;
  }

  /** pread(2). Empty: the program takes it for the end of the file. */
  async read(file: Description, offset: number, bytes: number): Promise<Uint8Array | number> {
    const stat = await this.stat(file);
    if (typeof stat === 'number') return stat;
    const { inode } = file;
    const out: Uint8Array[] = [];
    for (let at = offset; at < Math.min(offset + bytes, inode.size); ) {
      const page = Math.floor(at / PAGE_BYTES);
      if (!inode.pages.has(page)) {
        const error = await this.#readahead(file, page);
        if (error !== 0) return at > offset ? Buffer.concat(out) : error;
        continue;
      }
      const piece = inode.pages.get(page)!.subarray(at - page * PAGE_BYTES, Math.min(PAGE_BYTES, offset + bytes - page * PAGE_BYTES, inode.size - page * PAGE_BYTES));
      out.push(piece);
      at += piece.length;
    }
    return Buffer.concat(out);
  }

  /** pwrite(2), through the pages that are there. */
  async write({ inode, fh }: Description, offset: number, content: Uint8Array): Promise<number> {
    const { error, data } = await this.g.write(inode.node, fh, offset, content);
    if (error !== 0) return error;
    const written = data.getUint32(0, true);
    if (offset + written > inode.size) this.#resize(inode, offset + written);
    for (let at = offset; at < offset + written; ) {
      const page = Math.floor(at / PAGE_BYTES);
      const end = Math.min(offset + written, (page + 1) * PAGE_BYTES);
      const bytes = content.subarray(at - offset, end - offset);
      if (bytes.length === PAGE_BYTES) inode.pages.set(page, bytes.slice());
      else inode.pages.get(page)?.set(bytes, at - page * PAGE_BYTES);
      at = end;
    }
    return written;
  }

  /** ftruncate(2), or truncate(2) of what the name was last known to be. */
  async truncate(inode: Inode, size: number, fh: bigint | null = null): Promise<number> {
    const { error, data } = await this.g.call(OP.SETATTR, inode.node, concat(u32(FATTR_SIZE | (fh === null ? 0 : FATTR_FH), 0), u64(fh ?? 0n, size), new Uint8Array(64)), 104);
    if (error === 0) this.#attributes(inode, data, 16);
    return error;
  }

  /** chmod(2) of an inode. */
  async chmod(inode: Inode, mode: number): Promise<number> {
    const { error, data } = await this.g.call(OP.SETATTR, inode.node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, mode, 0, 0, 0, 0)), 104);
    if (error === 0) this.#attributes(inode, data, 16);
    return error;
  }

  async fsync({ inode, fh }: Description): Promise<number> {
    return (await this.g.call(OP.FSYNC, inode.node, concat(u64(fh), u32(0, 0)), 0)).error;
  }

  /** @returns what FLUSH says */
  async close({ inode, fh }: Description): Promise<number> {
    const { error } = await this.#end(OP.FLUSH, inode, fh);
    assert.equal((await this.#end(OP.RELEASE, inode, fh)).error, 0);
    return error;
  }

  #end(opcode: number, { node }: Inode, fh: bigint): Promise<Reply> {
    return this.g.call(opcode, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
  }

  async #readahead({ inode, fh }: Description, page: number): Promise<number> {
    const { readBytes } = this.#options;
    const { error, data } = await this.g.read(inode.node, fh, page * PAGE_BYTES, readBytes);
    if (error !== 0) return error;
    const content = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    // A short reply is the end of the file (fuse_short_read())
    if (content.length < readBytes) inode.size = Math.min(inode.size, page * PAGE_BYTES + content.length);
    for (let at = 0; at < content.length; at += PAGE_BYTES) {
      const bytes = new Uint8Array(PAGE_BYTES);
      bytes.set(content.subarray(at, at + PAGE_BYTES));
      if (!inode.pages.has(page + at / PAGE_BYTES)) inode.pages.set(page + at / PAGE_BYTES, bytes);
    }
    return 0;
  }

  #told(file: string, data: DataView, at: number): Inode {
    const node = data.getBigUint64(at, true);
    const known = this.#inodes.get(node);
    const inode: Inode = known ?? { node, size: 0, nlink: 1, mtime: '', pages: new Map() };
    this.#inodes.set(node, inode);
    this.#names.set(file, inode);
    this.#attributes(inode, data, at + 40);
    return inode;
  }

  /** fuse_change_attributes() with AUTO_INVAL_DATA. */
  #attributes(inode: Inode, data: DataView, at: number): void {
    const size = Number(data.getBigUint64(at + 8, true));
    const mtime = `${data.getBigUint64(at + 32, true)}.${data.getUint32(at + 52, true)}`;
    inode.nlink = data.getUint32(at + 64, true);
    if (size !== inode.size || mtime !== inode.mtime) inode.pages.clear();
    inode.size = size;
    inode.mtime = mtime;
  }

  /** The program's own change, which empties no page but those behind the end. */
  #resize(inode: Inode, size: number): void {
    inode.size = size;
    for (const page of inode.pages.keys()) if (page * PAGE_BYTES >= size) inode.pages.delete(page);
  }
}
