/** Programs in a guest that change files of their own at the same time, each one request after the other; what they ask and hear is told. */
import assert from 'node:assert/strict';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import type { Random } from '../../model/random.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { name, OP, type Reply } from '../../support/guest.js';
import { noise } from '../../support/workload.js';
import type { Change, NodeId, Request, Told } from './history.js';
import type { Requests } from './requests.js';

const ROOT = 1n;
const O_RDWR = 2;
const FATTR = { MODE: 1, SIZE: 8, MTIME: 32, FH: 64 } as const;
const PUNCH_HOLE_KEEP_SIZE = 3;
const KIB = 1024;
const FILES_MAX = 12;
const LEFT_MAX = 6;
const WRITE_MAX_BYTES = 1 << 20;
/** A file record of the journal has 1,000 pieces, the others have records of their own. */
const PIECES = 1100;
const PIECE_BYTES = 24;
const PIECE_EVERY_BYTES = 96;

/** How an actor may behave: the larger its number, the more of a step there is. */
export type Steps = Readonly<Partial<Record<Step, number>>>;
export type Step = 'create' | 'write' | 'append' | 'truncate' | 'punch' | 'fsync' | 'close' | 'unlink' | 'rename' | 'replace' | 'mkdir' | 'rmdir' | 'renameTree' | 'symlink' | 'chmod'
  | 'utimens' | 'syncNames' | 'many' | 'touchLarge' | 'record' | 'pieces' | 'pause';

export const ROLES = {
  editor: { create: 8, write: 14, append: 8, truncate: 3, punch: 3, fsync: 6, close: 10, unlink: 3, rename: 4, replace: 8, chmod: 3, utimens: 2, pause: 4 },
  names: { create: 10, write: 6, fsync: 3, close: 10, unlink: 6, rename: 10, mkdir: 8, rmdir: 3, renameTree: 5, symlink: 4, chmod: 5, utimens: 3, syncNames: 5, many: 2, pause: 4 },
  /** A large object that is there already. */
  large: { touchLarge: 10, create: 2, write: 4, fsync: 6, close: 2, pause: 2 },
  /** A file of records, each synced. */
  database: { record: 30, close: 1, pause: 1 },
  pieces: { pieces: 1, record: 40 },
  backup: { many: 10, create: 1, close: 2, pause: 3 },
} as const satisfies Record<string, Steps>;
export type Role = keyof typeof ROLES;

interface File {
  readonly id: NodeId;
  path: string;
  size: number;
  readonly kind: 'file' | 'directory' | 'link';
  fh: bigint | null;
}

/** What all actors of a guest share. */
export interface World {
  tell(told: Told): void;
  nextNode(): NodeId;
}

let requestIds = 0;

export class Actor {
  readonly #files: File[] = [];
  /** Of this session. */
  readonly #nodes = new Map<NodeId, bigint>();
  #requests!: Requests;
  #names = 0;
  /** Names that are not used any more, the last ones. */
  readonly #left: string[] = [];
  readonly #steps: readonly Step[];
  #isOver = false;
  /** The last requests, for people. */
  readonly trace: string[] = [];

  constructor(
    readonly own: string,
    readonly role: Role,
    readonly random: Random,
    readonly world: World,
    given: readonly { readonly id: NodeId; readonly path: string; readonly size: number }[],
  ) {
    this.#steps = Object.entries(ROLES[role]).flatMap(([step, weight]) => Array.from({ length: weight }, () => step as Step));
    this.#files.push(...given.map((one): File => ({ ...one, kind: 'file', fh: null })));
  }

  /** So many steps with another guest session. */
  async run(requests: Requests, steps: number): Promise<void> {
    this.#requests = requests;
    this.#nodes.clear();
    this.#isOver = false;
    for (const file of this.#files) file.fh = null;
    for (let i = 0; i < steps && !this.#isOver; i++) await this.#step(this.random.pick(this.#steps));
  }

  /** No further step is begun. */
  end(): void {
    this.#isOver = true;
  }

  async #ask(label: string, request: Request | null, opcode: number, node: bigint, args: Uint8Array, room?: number): Promise<Reply> {
    const id = requestIds++;
    if (request !== null) this.world.tell({ t: 'asked', id, request });
    this.trace.push(label);
    if (this.trace.length > 20) this.trace.shift();
    const reply = await this.#requests.ask(opcode, node, args, room);
    assert.equal(reply.error, 0, `${this.own}: ${label}\n${this.trace.join('\n')}`);
    if (request !== null) this.world.tell({ t: 'answered', id });
    return reply;
  }

  async #step(step: Step): Promise<void> {
    switch (step) {
      case 'create':
        return void (await this.#create());
      case 'write':
        return this.#write(await this.#anyOpen(), false);
      case 'append':
        return this.#write(await this.#anyOpen(), true);
      case 'truncate':
        return this.#truncate(await this.#anyOpen());
      case 'punch':
        return this.#punch(await this.#anyOpen());
      case 'fsync':
        return this.#fsync(this.#pick((file) => file.fh !== null));
      case 'close':
        return this.#close(this.#pick((file) => file.fh !== null));
      case 'unlink':
        return this.#unlink();
      case 'rename':
        return this.#rename();
      case 'replace':
        return this.#replace();
      case 'mkdir':
        return this.#mkdir();
      case 'rmdir':
        return this.#rmdir();
      case 'renameTree':
        return this.#renameTree();
      case 'symlink':
        return this.#symlink();
      case 'chmod':
        return this.#chmod();
      case 'utimens':
        return this.#utimens();
      case 'syncNames':
        return this.#syncNames();
      case 'many':
        return this.#many();
      case 'touchLarge':
        return this.#touchLarge();
      case 'record':
        return this.#record();
      case 'pieces':
        return this.#pieces();
      case 'pause':
        return this.random.chance(50) ? turn() : sleep(this.random.below(15));
    }
  }

  #pick(which: (file: File) => boolean): File | null {
    const files = this.#files.filter(which);
    return files.length === 0 ? null : this.random.pick(files);
  }

  async #node(file: File): Promise<bigint> {
    const known = this.#nodes.get(file.id);
    if (known !== undefined) return known;
    const { parent, last } = await this.#place(file.path);
    const reply = await this.#ask(`lookup ${file.path}`, null, OP.LOOKUP, parent, name(last), 128);
    const node = reply.data.getBigUint64(0, true);
    this.#nodes.set(file.id, node);
    return node;
  }

  async #place(path: string): Promise<{ parent: bigint; last: string }> {
    const cut = path.lastIndexOf('/');
    if (cut < 0) return { parent: ROOT, last: path };
    const above = this.#files.find((file) => file.path === path.slice(0, cut))!;
    return { parent: await this.#node(above), last: path.slice(cut + 1) };
  }

  /** A name that there is not: a new one, or one that something had before. */
  #freshPath(): string {
    const again = this.random.chance(40) ? this.#left.filter((path) => this.#isFree(path)) : [];
    if (again.length > 0) return this.random.pick(again);
    const directory = this.random.chance(40) ? this.#pick(({ kind }) => kind === 'directory') : null;
    return `${directory === null ? '' : `${directory.path}/`}${this.own}${this.#names++}`;
  }

  #isFree(path: string): boolean {
    const cut = path.lastIndexOf('/');
    const hasParent = cut < 0 || this.#files.some((file) => file.kind === 'directory' && file.path === path.slice(0, cut));
    return hasParent && !this.#files.some((file) => file.path === path);
  }

  #leave(path: string): void {
    this.#left.push(path);
    if (this.#left.length > LEFT_MAX) this.#left.shift();
  }

  async #create(path = this.#freshPath()): Promise<File> {
    if (this.#files.filter(({ kind }) => kind === 'file').length >= FILES_MAX) await this.#unlink();
    const { parent, last } = await this.#place(path);
    const mode = this.random.pick([0o644, 0o600, 0o755]);
    const file: File = { id: this.world.nextNode(), path, size: 0, kind: 'file', fh: null };
    const change: Change = { does: 'make', node: file.id, path, kind: 'file', mode };
    const reply = await this.#ask(`create ${path}`, { change }, OP.CREATE, parent, concat(u32(O_RDWR | 0o100, mode | 0o100000, 0o22, 0), name(last)), 144);
    this.#nodes.set(file.id, reply.data.getBigUint64(0, true));
    file.fh = reply.data.getBigUint64(128, true);
    this.#files.push(file);
    return file;
  }

  async #open(file: File): Promise<File> {
    if (file.fh !== null) return file;
    const reply = await this.#ask(`open ${file.path}`, null, OP.OPEN, await this.#node(file), u32(O_RDWR, 0), 16);
    file.fh = reply.data.getBigUint64(0, true);
    return file;
  }

  async #anyOpen(): Promise<File> {
    const file = this.#pick(({ fh }) => fh !== null) ?? this.#pick(({ kind }) => kind === 'file');
    return file === null ? this.#create() : this.#open(file);
  }

  async #put(file: File, offset: number, data: Uint8Array): Promise<void> {
    for (let at = 0; at < data.length; at += WRITE_MAX_BYTES) {
      const part = data.subarray(at, at + WRITE_MAX_BYTES);
      const change: Change = { does: 'write', node: file.id, offset: offset + at, data: part };
      const args = concat(u64(file.fh!, offset + at), u32(part.length, 0), u64(0), u32(0, 0), part);
      const { data: answer } = await this.#ask(`write ${file.path} ${offset + at}+${part.length}`, { change }, OP.WRITE, await this.#node(file), args, 8);
      assert.equal(answer.getUint32(0, true), part.length);
    }
    file.size = Math.max(file.size, offset + data.length);
  }

  #write(file: File, append: boolean): Promise<void> {
    const most = this.random.pick([100, 4 * KIB, 4 * KIB, 60 * KIB, 300 * KIB]);
    const offset = append ? file.size : this.random.below(Math.min(file.size + 16 * KIB, 512 * KIB));
    return this.#put(file, offset, noise(this.random, 1 + this.random.below(most)));
  }

  async #truncate(file: File): Promise<void> {
    const size = this.random.chance(25) ? 0 : this.random.chance(50) ? this.random.below(file.size + 1) : file.size + this.random.below(64 * KIB);
    await this.#setattr(`truncate ${file.path} ${size}`, { does: 'size', node: file.id, size }, file, FATTR.SIZE | FATTR.FH, { fh: file.fh!, size });
    file.size = size;
  }

  async #setattr(label: string, change: Change, file: File, valid: number, values: { fh?: bigint; size?: number; mode?: number; mtime_s?: number }): Promise<void> {
    const { fh = 0n, size = 0, mode = 0, mtime_s = 0 } = values;
    const args = concat(u32(valid, 0), u64(fh, size, 0, 0, mtime_s, 0), u32(0, 0, 0, mode, 0, 0, 0, 0));
    await this.#ask(label, { change }, OP.SETATTR, await this.#node(file), args, 104);
  }

  async #punch(file: File): Promise<void> {
    if (file.size === 0) return;
    const from = this.random.below(file.size);
    const bytes = 1 + this.random.below(64 * KIB);
    const change: Change = { does: 'zero', node: file.id, from, to: from + bytes };
    await this.#ask(`punch ${file.path} ${from}+${bytes}`, { change }, OP.FALLOCATE, await this.#node(file), concat(u64(file.fh!, from, bytes), u32(PUNCH_HOLE_KEEP_SIZE, 0)), 0);
  }

  async #fsync(file: File | null): Promise<void> {
    if (file === null) return;
    await this.#ask(`fsync ${file.path}`, { confirms: file.id }, OP.FSYNC, await this.#node(file), concat(u64(file.fh!), u32(this.random.below(2), 0)), 0);
  }

  async #close(file: File | null): Promise<void> {
    if (file === null) return;
    const fh = file.fh!;
    file.fh = null;
    const node = await this.#node(file);
    await this.#ask(`flush ${file.path}`, { confirms: file.id }, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0);
    await this.#ask(`release ${file.path}`, null, OP.RELEASE, node, concat(u64(fh), u32(O_RDWR, 0), u64(0)), 0);
  }

  async #unlink(file = this.#pick(({ kind, fh }) => kind !== 'directory' && fh === null)): Promise<void> {
    if (file === null) return;
    const { parent, last } = await this.#place(file.path);
    await this.#ask(`unlink ${file.path}`, { change: { does: 'remove', path: file.path } }, OP.UNLINK, parent, name(last), 0);
    this.#files.splice(this.#files.indexOf(file), 1);
    this.#leave(file.path);
  }

  /** To a new name or over a file. */
  async #rename(): Promise<void> {
    const file = this.#pick(({ kind }) => kind !== 'directory');
    const other = this.#pick((one) => one.kind === 'file' && one.fh === null && one !== file);
    if (file !== null) await this.#move(file, other !== null && this.random.chance(50) ? other : null);
  }

  /** A directory with what is in it, to a new name or over an empty one. */
  async #renameTree(): Promise<void> {
    const tree = this.#pick(({ kind }) => kind === 'directory');
    if (tree === null) return;
    const isIn = ({ path }: File, above: File): boolean => path.startsWith(`${above.path}/`);
    const empty = this.#pick((one) => one.kind === 'directory' && one !== tree && !isIn(one, tree) && !this.#files.some((file) => isIn(file, one)));
    const over = this.random.chance(30) ? empty : null;
    const to = over?.path ?? this.#freshPath();
    if (to.startsWith(`${tree.path}/`)) return;
    const inside = this.#files.filter((file) => isIn(file, tree));
    const from = tree.path;
    await this.#move(tree, over, to);
    for (const file of inside) file.path = to + file.path.slice(from.length);
  }

  async #move(file: File, over: File | null, to = over?.path ?? this.#freshPath()): Promise<void> {
    const [source, target] = [await this.#place(file.path), await this.#place(to)];
    const args = concat(u64(target.parent), u32(0, 0), name(source.last), name(target.last));
    await this.#ask(`rename ${file.path} ${to}`, { change: { does: 'rename', from: file.path, to } }, OP.RENAME2, source.parent, args, 0);
    if (over !== null) this.#files.splice(this.#files.indexOf(over), 1);
    this.#leave(file.path);
    file.path = to;
  }

  /** As editors save: a new file, synced or not, takes the place of another. */
  async #replace(): Promise<void> {
    const over = this.#pick(({ kind, fh }) => kind === 'file' && fh === null);
    const file = await this.#create();
    await this.#put(file, 0, noise(this.random, 1 + this.random.below(40 * KIB)));
    if (this.random.chance(50)) await this.#fsync(file);
    if (this.random.chance(50)) await this.#close(file);
    if (over !== null && this.#files.includes(over)) await this.#move(file, over);
    if (file.fh !== null) await this.#close(file);
  }

  async #mkdir(): Promise<void> {
    if (this.#files.filter(({ kind }) => kind === 'directory').length >= 4) return this.#rmdir();
    const path = this.#freshPath();
    const { parent, last } = await this.#place(path);
    const file: File = { id: this.world.nextNode(), path, size: 0, kind: 'directory', fh: null };
    const mode = this.random.pick([0o755, 0o700]);
    const reply = await this.#ask(`mkdir ${path}`, { change: { does: 'make', node: file.id, path, kind: 'directory', mode } }, OP.MKDIR, parent, concat(u32(mode, 0o22), name(last)), 128);
    this.#nodes.set(file.id, reply.data.getBigUint64(0, true));
    this.#files.push(file);
  }

  async #rmdir(): Promise<void> {
    const file = this.#pick((one) => one.kind === 'directory' && !this.#files.some(({ path }) => path.startsWith(`${one.path}/`)));
    if (file === null) return;
    const { parent, last } = await this.#place(file.path);
    await this.#ask(`rmdir ${file.path}`, { change: { does: 'remove', path: file.path } }, OP.RMDIR, parent, name(last), 0);
    this.#files.splice(this.#files.indexOf(file), 1);
    this.#leave(file.path);
  }

  async #symlink(): Promise<void> {
    const path = this.#freshPath();
    const { parent, last } = await this.#place(path);
    const file: File = { id: this.world.nextNode(), path, size: 0, kind: 'link', fh: null };
    const target = `../to/${this.random.below(1000)}`;
    const change: Change = { does: 'make', node: file.id, path, kind: 'link', mode: 0o777, target };
    const reply = await this.#ask(`symlink ${path}`, { change }, OP.SYMLINK, parent, concat(name(last), name(target)), 128);
    this.#nodes.set(file.id, reply.data.getBigUint64(0, true));
    this.#files.push(file);
  }

  async #chmod(): Promise<void> {
    const file = this.#pick(({ kind }) => kind !== 'link');
    if (file === null) return;
    const mode = this.random.pick(file.kind === 'file' ? [0o640, 0o444, 0o711] : [0o750, 0o711]);
    await this.#setattr(`chmod ${file.path} ${mode.toString(8)}`, { does: 'mode', node: file.id, mode }, file, FATTR.MODE, { mode: mode | (file.kind === 'file' ? 0o100000 : 0o040000) });
  }

  async #utimens(): Promise<void> {
    const file = this.#pick(({ kind }) => kind === 'file');
    if (file === null) return;
    const mtime_s = 1_000_000_000 + this.random.below(500_000_000);
    await this.#setattr(`utimens ${file.path} ${mtime_s}`, { does: 'mtime', node: file.id, mtime_s }, file, FATTR.MTIME, { mtime_s });
  }

  /** Fsync of a directory. */
  async #syncNames(): Promise<void> {
    const opened = await this.#ask('opendir', null, OP.OPENDIR, ROOT, u32(0, 0), 16);
    const fh = opened.data.getBigUint64(0, true);
    await this.#ask('fsyncdir', { confirms: 'names' }, OP.FSYNCDIR, ROOT, concat(u64(fh), u32(0, 0)), 0);
    await this.#ask('releasedir', null, OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0);
  }

  async #many(): Promise<void> {
    for (let i = 0; i < 6; i++) {
      const file = await this.#create();
      await this.#put(file, 0, noise(this.random, 1 + this.random.below(5000)));
      await this.#close(file);
    }
  }

  /** A byte of a large file. */
  async #touchLarge(): Promise<void> {
    const large = this.#pick(({ size }) => size > 1 << 20);
    if (large === null) return;
    await this.#open(large);
    await this.#put(large, this.random.below(large.size), noise(this.random, 1 + this.random.below(3)));
    if (this.random.chance(30)) await this.#fsync(large);
    if (this.random.chance(70)) await this.#close(large);
  }

  /** Of the actor's first file: some bytes here or there, synced. */
  async #record(): Promise<void> {
    const file = await this.#open(this.#files[0] ?? (await this.#create()));
    const offset = this.random.below(Math.min(file.size + 4 * KIB, 256 * KIB));
    await this.#put(file, offset, noise(this.random, 1 + this.random.below(this.random.pick([40, 4 * KIB]))));
    await this.#fsync(file);
  }

  async #pieces(): Promise<void> {
    const file = await this.#open(this.#files[0] ?? (await this.#create()));
    const from = Math.max(file.size, 64 * KIB);
    for (let i = 0; i < PIECES && !this.#isOver; i++) await this.#put(file, from + i * PIECE_EVERY_BYTES, noise(this.random, PIECE_BYTES));
    await this.#fsync(file);
  }
}
