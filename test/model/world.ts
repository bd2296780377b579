/** One random sequence: the daemon's side, the model's side, what the guest knows of it, and the comparison of both. */
import assert from 'node:assert/strict';
import { join } from 'node:path';
import { E, errnoName } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, name, type Reply, type TestGuest } from '../support/guest.js';
import { Model, type Caller, type Inode } from './model.js';
import type { Random } from './random.js';

/** fuse_entry_out and fuse_attr_out: where the attributes are. */
const ENTRY_ATTR = 40;
const ATTR_OUT_ATTR = 16;
export const ENTRY_BYTES = 128;
export const ATTR_BYTES = 104;

const ROOT: Caller = { uid: 0, gid: 0 };
const USER: Caller = { uid: 1000, gid: 1000 };
const NAMES = ['a', 'b', 'c', 'd', 'e', 'f', 'Ünï', '.hidden'];
const LONGEST_NAME = 'n'.repeat(255);

/** A node that the guest has looked up and not forgotten. */
export interface Known {
  readonly id: bigint;
  readonly inode: Inode;
  /** Lookups not forgotten yet. */
  refs: number;
}

export interface Handle {
  readonly fh: bigint;
  readonly node: Known;
  readonly flags: number;
}

export class World {
  readonly model = new Model();
  /** In the order in which they were learnt, so that a seed picks the same ones again. */
  readonly known = new Map<Inode, Known>();
  readonly #ids = new Set<bigint>();
  readonly handles: Handle[] = [];
  readonly deadNodes: bigint[] = [];
  readonly deadHandles: Handle[] = [];
  /** What was asked, newest last. */
  readonly history: string[] = [];
  /** Times that a node without a name was out of reach. */
  stale = 0;

  constructor(
    readonly guest: TestGuest,
    readonly random: Random,
    /** Where the model's root is, in the share. */
    readonly directory: string,
    /** Whether nodes lose their descriptors: then a file without names that is not open is gone. */
    readonly evicts: boolean,
    readonly readdirplus: boolean,
  ) {}

  // What to try

  /** Nearly always a directory. */
  pickDirectory(): Known {
    const all = [...this.known.values()];
    const directories = all.filter((node) => node.inode.isDirectory);
    return this.random.chance(4) ? this.random.pick(all) : this.random.pick(directories);
  }

  pickNode(): Known {
    return this.random.pick([...this.known.values()]);
  }

  /** A node that is preferably a regular file. */
  pickFile(): Known {
    const files = [...this.known.values()].filter((node) => node.inode.kind === 'file');
    return files.length === 0 || this.random.chance(10) ? this.pickNode() : this.random.pick(files);
  }

  pickName(dir: Inode): string {
    const there = [...dir.entries.keys()];
    if (there.length > 0 && this.random.chance(55)) return this.random.pick(there);
    return this.random.chance(2) ? LONGEST_NAME : this.random.pick(NAMES);
  }

  pickCaller(): Caller {
    return this.random.chance(80) ? ROOT : USER;
  }

  pickMode(): number {
    return this.random.pick([0o755, 0o777, 0o700, 0o644, 0o600, 0o750, 0o1777, 0o711, 0]);
  }

  pickOffset(size: number): number {
    const dice = this.random.below(20);
    if (dice < 9) return this.random.below(size + 1);
    if (dice < 17) return this.random.below(40_000);
    return dice < 19 ? 2 ** 32 - 3000 + this.random.below(6000) : 2 ** 40 + this.random.below(5000);
  }

  // What was asked

  note(text: string): void {
    this.history.push(text);
  }

  /** Names of an inode, for the history. */
  label(inode: Inode): string {
    const id = this.known.get(inode)?.id;
    const path = this.hostPath(inode);
    return `${path === null ? `(${inode.kind})` : path.slice(this.directory.length) || '/'}${id === undefined ? '' : `#${id & 0xffffffffn}`}`;
  }

  /** A path of the inode on the host, or null for one without names. */
  hostPath(inode: Inode): string | null {
    if (inode === this.model.root) return this.directory;
    for (const dir of this.liveDirectories()) {
      for (const [entry, found] of dir.entries) if (found === inode) return this.pathIn(dir, entry);
    }
    return null;
  }

  /** Path of a name in a directory that has one itself. */
  pathIn(dir: Inode, entry: string): string {
    const steps = [entry];
    for (let at = dir; at.parent !== null; at = at.parent) {
      steps.unshift([...at.parent.entries].find(([, inode]) => inode === at)![0]);
    }
    return join(this.directory, ...steps);
  }

  /** Directories that have a path, the root first. */
  liveDirectories(): Inode[] {
    const all = [this.model.root];
    for (const dir of all) for (const inode of dir.entries.values()) if (inode.isDirectory) all.push(inode);
    return all;
  }

  async call(opcode: number, node: Known, args: Uint8Array, room: number, caller = ROOT): Promise<Reply> {
    const { guest } = this;
    guest.uid = caller.uid;
    guest.gid = caller.gid;
    return guest.call(opcode, node.id, args, room);
  }

  // Comparison

  /**
   * Compare the daemon's answer with the model's. @returns what the model made, or null when both refused. `involved`: the
   * inodes that the daemon had to reach; one that is gone may be ESTALE, and then nothing has happened.
   */
  compare<T extends object | number>(reply: Reply, run: () => T | number, ...involved: Inode[]): T | number | null {
    if (reply.error === -E.STALE && involved.some((inode) => this.mayBeStale(inode))) {
      this.stale++;
      this.note('  ... ESTALE');
      return null;
    }
    const expected = run();
    const errno = typeof expected === 'number' && expected < 0 ? expected : 0;
    assert.equal(errnoText(reply.error), errnoText(errno), 'the errno');
    return errno < 0 ? null : expected;
  }

  mayBeStale(inode: Inode): boolean {
    return this.evicts && inode.isDead && inode.opens === 0;
  }

  /** compare() for what replies with an entry. @returns the node, or null. */
  entry(reply: Reply, run: () => Inode | number, ...involved: Inode[]): Known | null {
    const made = this.compare(reply, run, ...involved);
    return made === null || typeof made === 'number' ? null : this.learn(made, reply.data, 0);
  }

  /** The guest was given a node, once more. */
  learn(inode: Inode, data: DataView, at: number): Known {
    const id = data.getBigUint64(at, true);
    let node = this.known.get(inode);
    if (node === undefined) {
      assert.ok(!this.#ids.has(id), `nodeid ${id} was another inode's before`);
      this.#ids.add(id);
      node = { id, inode, refs: 0 };
      this.known.set(inode, node);
    }
    assert.equal(id, node.id, 'an inode keeps its nodeid while the guest knows it');
    node.refs++;
    this.attributes(inode, data, at + ENTRY_ATTR);
    return node;
  }

  attrOut(inode: Inode, data: DataView): void {
    this.attributes(inode, data, ATTR_OUT_ATTR);
  }

  /** struct fuse_attr as it has to be. */
  attributes(inode: Inode, data: DataView, at: number): void {
    const u32At = (field: number): number => data.getUint32(at + field, true);
    const u64At = (field: number): bigint => data.getBigUint64(at + field, true);
    inode.ino ??= u64At(0);
    const mtime = u64At(32) * 1_000_000_000n + BigInt(u32At(52));
    const size = Number(u64At(8));
    const real = { ino: u64At(0), mode: u32At(60).toString(8), nlink: u32At(64), uid: u32At(68), gid: u32At(72), size, mtime };
    const expected = {
      ino: inode.ino, mode: inode.stMode.toString(8), nlink: inode.nlink, uid: inode.uid, gid: inode.gid, size: inode.size < 0 ? size : inode.size,
      mtime: inode.mtime ?? mtime,
    };
    assert.deepEqual(real, expected, `attributes of ${this.label(inode)}`);
  }

  // What the guest holds

  opened(node: Known, fh: bigint, flags: number): Handle {
    const handle = { fh, node, flags };
    assert.ok(!this.handles.some((other) => other.fh === fh), 'a file handle of its own');
    this.handles.push(handle);
    node.inode.opens++;
    return handle;
  }

  async release(handle: Handle): Promise<void> {
    const reply = await this.call(OP.RELEASE, handle.node, concat(u64(handle.fh), u32(handle.flags, 0), u64(0)), 0);
    assert.equal(reply.error, 0);
    this.released(handle);
  }

  released(handle: Handle): void {
    this.handles.splice(this.handles.indexOf(handle), 1);
    handle.node.inode.opens--;
    this.deadHandles.push(handle);
  }

  /** Take references back; of an open file some stay, as Linux does it. */
  async forget(node: Known, refs: number): Promise<void> {
    await this.call(OP.FORGET, node, u64(refs), 0);
    node.refs -= refs;
    if (node.refs > 0) return;
    this.known.delete(node.inode);
    this.deadNodes.push(node.id);
  }

  /** The root of the model. */
  async enter(): Promise<void> {
    const top = this.directory.slice(this.guest.directory.length + 1);
    this.entry(await this.guest.call(OP.LOOKUP, 1n, name(top), ENTRY_BYTES), () => this.model.root);
  }

  /** Give up everything. */
  async leave(): Promise<void> {
    for (const handle of [...this.handles]) await this.release(handle);
    for (const node of [...this.known.values()]) await this.forget(node, node.refs);
  }
}

function errnoText(error: number): string {
  return error === 0 ? 'success' : errnoName(error);
}
