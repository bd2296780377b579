/**
 * A guest that changes files at random, one request after the other, and keeps a manifest of what was acknowledged. It ends when the daemon
 * does; `pending` is then the change that was on its way.
 */
import assert from 'node:assert/strict';
import type { Random } from '../model/random.js';
import { QueueAbandoned } from './driver.js';
import { concat, u32, u64 } from './frontend.js';
import { OP, name, type FuseClient, type Reply } from './guest.js';
import { Bytes, type Change, type DirectoryNode, type FileNode, type Manifest, type Node } from './manifest.js';

const ROOT = 1n;
const O_RDWR = 2;
const O_TRUNC = 0o1000;
const FATTR = { MODE: 1, SIZE: 8, MTIME: 32, FH: 64 } as const;
const PUNCH_HOLE_KEEP_SIZE = 3;
const UMASK = 0o22;

const KIB = 1024;
const MIB = 1024 * KIB;
const SMALL_MAX_BYTES = 4 * MIB;
const OPEN_MAX = 6;
const FILES_MAX = 40;

/** How a guest may behave: the larger its number, the more of a step there is. */
export type Profile = Readonly<Partial<Record<Step, number>>>;
type Step = 'create' | 'write' | 'append' | 'stream' | 'truncate' | 'punch' | 'fsync' | 'close' | 'open' | 'unlink' | 'rename' | 'renameDirectory' | 'mkdir'
  | 'rmdir' | 'symlink' | 'chmod' | 'chmodDirectory' | 'utimens';

export const PROFILES = {
  mixed: { create: 10, write: 30, append: 15, truncate: 6, punch: 4, fsync: 8, close: 10, open: 7, unlink: 4, rename: 5, renameDirectory: 1, mkdir: 3, rmdir: 1, symlink: 2, chmod: 3, chmodDirectory: 2, utimens: 3 },
  names: { create: 18, write: 12, fsync: 3, close: 12, open: 3, unlink: 10, rename: 18, renameDirectory: 5, mkdir: 8, rmdir: 3, symlink: 5, chmod: 4, chmodDirectory: 4, utimens: 2 },
  /** Files that are so large that they are sent in parts while they are written. */
  stream: { create: 3, stream: 60, write: 3, fsync: 2, close: 3, truncate: 1 },
  /** A large object that is there already is changed here and there. */
  edit: { open: 10, write: 40, punch: 5, truncate: 3, fsync: 6, close: 6, append: 6 },
} as const satisfies Record<string, Profile>;

interface Open {
  readonly file: FileNode;
  readonly node: bigint;
  readonly fh: bigint;
}

export class Workload {
  pending: Change | null = null;
  /** Requests that were answered, and of those what changed something. */
  replies = 0;
  changes = 0;
  /** The last requests, for people. */
  readonly trace: string[] = [];
  readonly #open: Open[] = [];
  readonly #nodes = new Map<Node, bigint>();
  readonly #steps: readonly Step[];
  #names = 0;

  constructor(
    readonly client: FuseClient,
    readonly manifest: Manifest,
    readonly random: Random,
    profile: Profile,
  ) {
    this.#steps = Object.entries(profile).flatMap(([step, weight]) => Array.from({ length: weight }, () => step as Step));
  }

  /** Until the daemon has gone, or so many requests were answered. Before each, `before` is told how many were. */
  async run(requests: number, before: (replies: number) => void = () => undefined): Promise<void> {
    try {
      await this.#findAll();
      for (this.replies = 0; this.replies < requests; ) {
        before(this.replies);
        await this.#step(this.random.pick(this.#steps));
      }
    } catch (error) {
      if (!(error instanceof QueueAbandoned)) throw error;
    }
  }

  /** Close what is open. */
  async finish(): Promise<void> {
    while (this.#open.length > 0) await this.#close();
  }

  /** The nodes of what is there already. */
  async #findAll(): Promise<void> {
    for (const [path, node] of this.manifest.nodes) await this.#find(path, node);
  }

  async #find(path: string, node: Node): Promise<bigint> {
    const known = this.#nodes.get(node);
    if (known !== undefined) return known;
    const { parent, last } = await this.#place(path);
    const found = (await this.client.lookup(parent, last)).node;
    this.#nodes.set(node, found);
    return found;
  }

  async #place(path: string): Promise<{ parent: bigint; last: string }> {
    const cut = path.lastIndexOf('/');
    if (cut < 0) return { parent: ROOT, last: path };
    const above = path.slice(0, cut);
    return { parent: await this.#find(above, this.manifest.nodes.get(above)!), last: path.slice(cut + 1) };
  }

  /** Ask, and note what the answer acknowledges. */
  async #ask(label: string, change: Change | null, opcode: number, node: bigint, args: Uint8Array, room?: number): Promise<Reply> {
    this.pending = change;
    this.trace.push(label);
    if (this.trace.length > 30) this.trace.shift();
    const reply = await this.client.call(opcode, node, args, room);
    assert.equal(reply.error, 0, `${label}\n${this.trace.join('\n')}`);
    if (change !== null) {
      this.manifest.apply(change);
      this.changes++;
    }
    this.pending = null;
    this.replies++;
    return reply;
  }

  async #step(step: Step): Promise<void> {
    switch (step) {
      case 'create':
        return this.#create();
      case 'write':
        return this.#write(false);
      case 'append':
        return this.#write(true);
      case 'stream':
        return this.#stream();
      case 'truncate':
        return this.#truncate();
      case 'punch':
        return this.#punch();
      case 'fsync':
        return this.#fsync();
      case 'close':
        return this.#close();
      case 'open':
        return this.#reopen();
      case 'unlink':
        return this.#unlink();
      case 'rename':
        return this.#rename();
      case 'renameDirectory':
        return this.#renameDirectory();
      case 'mkdir':
        return this.#mkdir();
      case 'rmdir':
        return this.#rmdir();
      case 'symlink':
        return this.#symlink();
      case 'chmod':
        return this.#chmod();
      case 'chmodDirectory':
        return this.#chmodDirectory();
      case 'utimens':
        return this.#utimens();
    }
  }

  #paths(kind: Node['kind']): string[] {
    return [...this.manifest.nodes].filter(([, node]) => node.kind === kind).map(([path]) => path);
  }

  /** A name that is not there, in any directory. */
  #freshPath(): string {
    const directory = this.random.pick(['', '', ...this.#paths('directory')]);
    return `${directory === '' ? '' : `${directory}/`}n${this.#names++}`;
  }

  async #create(): Promise<void> {
    if (this.#open.length >= OPEN_MAX) return this.#close();
    if (this.#paths('file').length >= FILES_MAX) return this.#unlink();
    const path = this.#freshPath();
    const { parent, last } = await this.#place(path);
    const mode = this.random.pick([0o644, 0o600, 0o755]);
    const file: FileNode = { kind: 'file', bytes: new Bytes(), mode, mtime_s: null };
    const args = concat(u32(O_RDWR | 0o100, mode | 0o100000, UMASK, 0), name(last));
    const reply = await this.#ask(`create ${path} ${mode.toString(8)}`, { does: 'make', path, node: file }, OP.CREATE, parent, args, 144);
    const { node } = this.client.entry(reply);
    this.#nodes.set(file, node);
    this.#open.push({ file, node, fh: reply.data.getBigUint64(128, true) });
  }

  async #put(open: Open, offset: number, data: Uint8Array): Promise<void> {
    const { file, node, fh } = open;
    const label = `write ${this.#say(file)} ${offset}+${data.length}`;
    const args = concat(u64(fh, offset), u32(data.length, 0), u64(0), u32(0, 0), data);
    const { data: answer } = await this.#ask(label, { does: 'write', file, offset, data }, OP.WRITE, node, args, 8);
    assert.equal(answer.getUint32(0, true), data.length, label);
  }

  async #write(append: boolean): Promise<void> {
    const open = await this.#anyOpen();
    if (open === null) return;
    const { size } = open.file.bytes;
    const large = size > SMALL_MAX_BYTES;
    const most = this.random.chance(75) ? 4 * KIB : this.random.chance(80) ? 128 * KIB : MIB;
    const bytes = 1 + this.random.below(most);
    const offset = append ? size : this.random.below(large ? size : Math.min(size + 64 * KIB, SMALL_MAX_BYTES));
    await this.#put(open, offset, noise(this.random, bytes));
  }

  /** A megabyte more, behind what is there. */
  async #stream(): Promise<void> {
    const open = await this.#anyOpen();
    if (open !== null) await this.#put(open, open.file.bytes.size, noise(this.random, MIB));
  }

  async #truncate(): Promise<void> {
    const open = await this.#anyOpen();
    if (open === null) return;
    const { file, node, fh } = open;
    const now = file.bytes.size;
    const size = this.random.chance(25) ? 0 : this.random.chance(50) ? this.random.below(now + 1) : now + this.random.below(64 * KIB);
    await this.#setattr(`truncate ${this.#say(file)} ${size}`, { does: 'size', file, size }, node, FATTR.SIZE | FATTR.FH, { fh, size });
  }

  #setattr(label: string, change: Change, node: bigint, valid: number, values: { fh?: bigint; size?: number; mode?: number; mtime_s?: number }): Promise<Reply> {
    const { fh = 0n, size = 0, mode = 0, mtime_s = 0 } = values;
    const args = concat(u32(valid, 0), u64(fh, size, 0, 0, mtime_s, 0), u32(0, 0, 0, mode, 0, 0, 0, 0));
    return this.#ask(label, change, OP.SETATTR, node, args, 104);
  }

  async #punch(): Promise<void> {
    const open = await this.#anyOpen();
    if (open === null || open.file.bytes.size === 0) return;
    const { file, node, fh } = open;
    const from = this.random.below(file.bytes.size);
    const bytes = 1 + this.random.below(96 * KIB);
    const args = concat(u64(fh, from, bytes), u32(PUNCH_HOLE_KEEP_SIZE, 0));
    await this.#ask(`punch ${this.#say(file)} ${from}+${bytes}`, { does: 'zero', file, from, to: from + bytes }, OP.FALLOCATE, node, args, 0);
  }

  async #fsync(): Promise<void> {
    if (this.#open.length === 0) return;
    const { file, node, fh } = this.random.pick(this.#open);
    await this.#ask(`fsync ${this.#say(file)}`, null, OP.FSYNC, node, concat(u64(fh), u32(this.random.below(2), 0)), 0);
  }

  async #close(): Promise<void> {
    if (this.#open.length === 0) return;
    const [{ file, node, fh }] = this.#open.splice(this.random.below(this.#open.length), 1);
    await this.#ask(`flush ${this.#say(file)}`, null, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    await this.#ask(`release ${this.#say(file)}`, null, OP.RELEASE, node, concat(u64(fh), u32(O_RDWR, 0), u64(0)), 0);
  }

  async #reopen(): Promise<void> {
    const paths = this.#paths('file');
    if (paths.length === 0) return this.#create();
    if (this.#open.length >= OPEN_MAX) return this.#close();
    const path = this.random.pick(paths);
    const file = this.manifest.nodes.get(path) as FileNode;
    const node = await this.#find(path, file);
    const cut = this.random.chance(10);
    const change: Change | null = cut ? { does: 'size', file, size: 0 } : null;
    const reply = await this.#ask(`open ${path}${cut ? ' O_TRUNC' : ''}`, change, OP.OPEN, node, u32(O_RDWR | (cut ? O_TRUNC : 0), 0), 16);
    this.#open.push({ file, node, fh: reply.data.getBigUint64(0, true) });
  }

  async #unlink(): Promise<void> {
    const paths = [...this.#paths('file'), ...this.#paths('link')];
    if (paths.length === 0) return;
    const path = this.random.pick(paths);
    const { parent, last } = await this.#place(path);
    await this.#ask(`unlink ${path}`, { does: 'remove', path }, OP.UNLINK, parent, name(last), 0);
  }

  /** Onto a new name or onto a file that is there. */
  async #rename(): Promise<void> {
    const files = [...this.#paths('file'), ...this.#paths('link')];
    if (files.length === 0) return;
    const from = this.random.pick(files);
    const others = files.filter((path) => path !== from);
    await this.#move(from, others.length > 0 && this.random.chance(40) ? this.random.pick(others) : this.#freshPath());
  }

  async #renameDirectory(): Promise<void> {
    const directories = this.#paths('directory');
    if (directories.length === 0) return this.#mkdir();
    const from = this.random.pick(directories);
    const outside = ['', ...directories.filter((path) => path !== from && !path.startsWith(`${from}/`))];
    const parent = this.random.pick(outside);
    await this.#move(from, `${parent === '' ? '' : `${parent}/`}d${this.#names++}`);
  }

  async #move(from: string, to: string): Promise<void> {
    const source = await this.#place(from);
    const target = await this.#place(to);
    const args = concat(u64(target.parent), u32(0, 0), name(source.last), name(target.last));
    await this.#ask(`rename ${from} ${to}`, { does: 'rename', from, to }, OP.RENAME2, source.parent, args, 0);
  }

  async #mkdir(): Promise<void> {
    if (this.#paths('directory').length > 8) return this.#rmdir();
    const path = this.#freshPath();
    const { parent, last } = await this.#place(path);
    const mode = this.random.pick([0o755, 0o700]);
    const node: Node = { kind: 'directory', mode };
    const reply = await this.#ask(`mkdir ${path}`, { does: 'make', path, node }, OP.MKDIR, parent, concat(u32(mode, UMASK), name(last)), 128);
    this.#nodes.set(node, this.client.entry(reply).node);
  }

  async #rmdir(): Promise<void> {
    const empty = this.#paths('directory').filter((path) => this.manifest.below(path).length === 1);
    if (empty.length === 0) return;
    const path = this.random.pick(empty);
    const { parent, last } = await this.#place(path);
    await this.#ask(`rmdir ${path}`, { does: 'remove', path }, OP.RMDIR, parent, name(last), 0);
  }

  async #symlink(): Promise<void> {
    const path = this.#freshPath();
    const { parent, last } = await this.#place(path);
    const target = `../to/${this.random.below(1000)}`;
    const node: Node = { kind: 'link', target };
    const reply = await this.#ask(`symlink ${path}`, { does: 'make', path, node }, OP.SYMLINK, parent, concat(name(last), name(target)), 128);
    this.#nodes.set(node, this.client.entry(reply).node);
  }

  async #chmod(): Promise<void> {
    const found = await this.#anyFile();
    if (found === null) return;
    const { path, file, node } = found;
    const mode = this.random.pick([0o640, 0o444, 0o711]);
    await this.#setattr(`chmod ${path} ${mode.toString(8)}`, { does: 'mode', file, mode }, node, FATTR.MODE, { mode: mode | 0o100000 });
  }

  async #chmodDirectory(): Promise<void> {
    const paths = this.#paths('directory');
    if (paths.length === 0) return this.#mkdir();
    const path = this.random.pick(paths);
    const file = this.manifest.nodes.get(path) as DirectoryNode;
    const mode = this.random.pick([0o750, 0o711, 0o1777]);
    await this.#setattr(`chmod ${path} ${mode.toString(8)}`, { does: 'mode', file, mode }, await this.#find(path, file), FATTR.MODE, { mode: mode | 0o040000 });
  }

  async #utimens(): Promise<void> {
    const found = await this.#anyFile();
    if (found === null) return;
    const { path, file, node } = found;
    const mtime_s = 1_000_000_000 + this.random.below(500_000_000);
    await this.#setattr(`utimens ${path} ${mtime_s}`, { does: 'mtime', file, mtime_s }, node, FATTR.MTIME, { mtime_s });
  }

  async #anyFile(): Promise<{ path: string; file: FileNode; node: bigint } | null> {
    const paths = this.#paths('file');
    if (paths.length === 0) return null;
    const path = this.random.pick(paths);
    const file = this.manifest.nodes.get(path) as FileNode;
    return { path, file, node: await this.#find(path, file) };
  }

  /** One that is open; or nothing this time, and one is opened. */
  async #anyOpen(): Promise<Open | null> {
    if (this.#open.length > 0) return this.random.pick(this.#open);
    await this.#reopen();
    return null;
  }

  #say(file: FileNode): string {
    return this.manifest.pathOf(file) ?? 'a file without a name';
  }
}

/** Bytes that differ from place to place, and from one write to the next. */
export function noise(random: Random, bytes: number): Uint8Array {
  const words = new Uint32Array(Math.ceil(bytes / 4));
  let state = random.below(2 ** 31) | 1;
  for (let i = 0; i < words.length; i++) {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    words[i] = state;
  }
  return new Uint8Array(words.buffer, 0, bytes);
}
