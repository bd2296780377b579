/** A guest that does one thing after the other, by paths. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import type { ObjectStore } from '../../../src/storage/object/store.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { name, OP } from '../../support/guest.js';
import { Files, O_RDWR, type OpenFile } from '../../support/object-files.js';
import type { ObjectGuest } from '../../support/object-guest.js';

const ROOT = 1n;

export const digest = (content: Uint8Array): string => `${content.length} bytes ${createHash('sha1').update(content).digest('hex').slice(0, 12)}`;

/** A guest, and what it has open. */
export class Actor {
  readonly files: Files;
  file: OpenFile = { node: 0n, fh: 0n };

  constructor(
    readonly g: ObjectGuest,
    /** Somebody else's way to the bucket. */
    readonly others: ObjectStore,
  ) {
    this.files = new Files(g);
  }

  /** The node of a path, or −errno. */
  async walk(path: string): Promise<bigint> {
    let node = ROOT;
    for (const step of path.split('/').filter((one) => one !== '')) {
      const reply = await this.g.call(OP.LOOKUP, node, name(step), 128);
      if (reply.error !== 0) return BigInt(reply.error);
      node = reply.data.getBigUint64(0, true);
    }
    return node;
  }

  /** −errno, or what `body` says of the directory and the last name of a path. */
  async in(path: string, body: (dir: bigint, last: string) => Promise<number>): Promise<number> {
    const at = path.lastIndexOf('/');
    const dir = await this.walk(path.slice(0, at + 1));
    return dir < 0n ? Number(dir) : body(dir, path.slice(at + 1));
  }

  /** As Linux does: what is changed is looked up first. */
  call(opcode: number, path: string, args: (last: string) => Uint8Array, room = 0, lookedUp = true): Promise<number> {
    return this.in(path, async (dir, last) => {
      if (lookedUp) await this.g.call(OP.LOOKUP, dir, name(last), 128);
      return (await this.g.call(opcode, dir, args(last), room)).error;
    });
  }

  rename(from: string, to: string): Promise<number> {
    return this.in(from, (a, old) => this.in(to, async (b, last) => {
      for (const [dir, one] of [[a, old], [b, last]] as const) await this.g.call(OP.LOOKUP, dir, name(one), 128);
      return (await this.g.call(OP.RENAME2, a, concat(u64(b), u32(0, 0), name(old), name(last)))).error;
    }));
  }

  unlink = (path: string): Promise<number> => this.call(OP.UNLINK, path, name);
  rmdir = (path: string): Promise<number> => this.call(OP.RMDIR, path, name);
  mkdir = (path: string): Promise<number> => this.call(OP.MKDIR, path, (last) => concat(u32(0o750, 0), name(last)), 128);
  symlink = (path: string, target: string): Promise<number> => this.call(OP.SYMLINK, path, (last) => concat(name(last), name(target)), 128);

  async setattr(path: string, valid: number, put: (args: DataView) => void): Promise<number> {
    const node = await this.walk(path);
    return node < 0n ? Number(node) : this.setattrOf(node, valid, put);
  }

  async setattrOf(node: bigint, valid: number, put: (args: DataView) => void): Promise<number> {
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, valid, true);
    put(args);
    return (await this.g.call(OP.SETATTR, node, new Uint8Array(args.buffer), 104)).error;
  }

  chmod = (path: string, mode: number): Promise<number> => this.setattr(path, 1, (args) => args.setUint32(68, mode, true));
  chmodOpen = (mode: number): Promise<number> => this.setattrOf(this.file.node, 1, (args) => args.setUint32(68, mode, true));
  truncate = (path: string, size: number): Promise<number> => this.setattr(path, 8, (args) => args.setBigUint64(16, BigInt(size), true));

  async setxattr(path: string, key: string, value: string): Promise<number> {
    const node = await this.walk(path);
    return node < 0n ? Number(node) : (await this.g.call(OP.SETXATTR, node, concat(u32(value.length, 0, 0, 0), name(key), Buffer.from(value)))).error;
  }

  async create(path: string, content: Uint8Array): Promise<void> {
    assert.equal(await this.in(path, async (dir, last) => {
      const { entry, fh } = await this.g.create(dir, last);
      this.file = { node: entry.node, fh };
      return 0;
    }), 0);
    assert.equal(await this.files.write(this.file, 0, content), 0);
  }

  async change(path: string, offset: number, content: Uint8Array): Promise<void> {
    const node = await this.walk(path);
    this.file = { node, fh: await this.g.open(node, O_RDWR) };
    assert.equal(await this.files.write(this.file, offset, content), 0);
  }

  fsync = (): Promise<number> => this.files.fsync(this.file);

  /** Everything that there is, with its content. */
  async tree(path = '', found: Record<string, string> = {}): Promise<Record<string, string>> {
    for (const bytes of await this.files.names(await this.walk(path))) {
      const below = `${path}${bytes.toString()}`;
      const node = await this.walk(below);
      assert.ok(node > 0n, `${below} is listed`);
      const attr = await this.g.call(OP.GETATTR, node, new Uint8Array(16), 104);
      const type = attr.data.getUint32(16 + 60, true) & 0o170000;
      if (type === 0o040000) {
        found[`${below}/`] = '';
        await this.tree(`${below}/`, found);
      } else if (type === 0o100000) {
        const opened = await this.g.call(OP.OPEN, node, u32(0, 0), 16);
        assert.equal(opened.error, 0);
        const file = { node, fh: opened.data.getBigUint64(0, true) };
        const content = await this.files.read(file);
        assert.ok(typeof content !== 'number', below);
        found[below] = digest(content);
        await this.files.close(file);
      } else {
        found[below] = 'special';
      }
    }
    return found;
  }
}
