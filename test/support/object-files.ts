/** Files of an ObjectGuest, as a program in it uses them. */
import assert from 'node:assert/strict';
import { concat, u32, u64 } from './frontend.js';
import { OP, type FuseClient } from './guest.js';

export const ROOT = 1n;
export const O_RDWR = 2;
const STEP = 65536;

export interface OpenFile {
  readonly node: bigint;
  readonly fh: bigint;
}

export class Files {
  constructor(readonly g: FuseClient) {}

  async create(name: string): Promise<OpenFile> {
    const { entry, fh } = await this.g.create(ROOT, name);
    return { node: entry.node, fh };
  }

  async open(name: string, flags = O_RDWR): Promise<OpenFile> {
    const { node } = await this.g.lookup(ROOT, name);
    return { node, fh: await this.g.open(node, flags) };
  }

  /** @returns 0 or −errno, of the first write that fails */
  async write({ node, fh }: OpenFile, offset: number, content: Uint8Array): Promise<number> {
    for (let at = 0; at < content.length; at += STEP) {
      const piece = content.subarray(at, at + STEP);
      const { error, data } = await this.g.write(node, fh, offset + at, piece);
      if (error !== 0) return error;
      assert.equal(data.getUint32(0, true), piece.length);
    }
    return 0;
  }

  async fsync({ node, fh }: OpenFile): Promise<number> {
    return (await this.g.call(OP.FSYNC, node, concat(u64(fh), u32(0, 0)), 0)).error;
  }

  /** FLUSH and RELEASE. @returns what FLUSH says, which is what close(2) does */
  async close({ node, fh }: OpenFile): Promise<number> {
    const { error } = await this.g.call(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    assert.equal((await this.g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    return error;
  }

  /** Everything from an offset on. @returns −errno if a read fails */
  async read({ node, fh }: OpenFile, from = 0): Promise<Buffer | number> {
    const out: Buffer[] = [];
    for (let at = from; ; ) {
      const { data, error } = await this.g.read(node, fh, at, STEP);
      if (error !== 0) return error;
      if (data.byteLength === 0) return Buffer.concat(out);
      out.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
      at += data.byteLength;
    }
  }

  /** The bytes of all names in a directory but "." and "..", from replies of at most `size` bytes; `between` is awaited before each. */
  async names(node = ROOT, size = 4096, between: (reply: number) => Promise<unknown> = async () => undefined): Promise<Buffer[]> {
    const opened = await this.g.call(OP.OPENDIR, node, u32(0, 0), 16);
    assert.equal(opened.error, 0);
    const fh = opened.data.getBigUint64(0, true);
    const names: Buffer[] = [];
    for (let offset = 0n, reply = 0; ; reply++) {
      await between(reply);
      const { data, error } = await this.g.call(OP.READDIR, node, concat(u64(fh, offset), u32(size, 0), u64(0), u32(0, 0)), size);
      assert.equal(error, 0);
      if (data.byteLength === 0) break;
      // struct fuse_dirent: ino, off, namelen, type, name, padded to 8 bytes
      for (let at = 0; at + 24 <= data.byteLength; ) {
        const length = data.getUint32(at + 16, true);
        names.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset + at + 24, length)));
        offset = data.getBigUint64(at + 8, true);
        at += (24 + length + 7) & ~7;
      }
    }
    assert.equal((await this.g.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    return names.filter((name) => name.toString() !== '.' && name.toString() !== '..');
  }

  /** Of a whole file, or −errno. */
  async content(name: string): Promise<Buffer | number> {
    const file = await this.open(name, 0);
    const content = await this.read(file);
    await this.close(file);
    return content;
  }
}
