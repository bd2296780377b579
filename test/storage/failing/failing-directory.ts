/**
 * A directory whose file system fails when it is told to: FUSE over another directory, in a process of its own. Every call is counted by what it does to which
 * file, and one of them, or all from one on, can be made to fail. The file `.control` takes what is to fail, and says what was called.
 */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import {
  closeSync, constants, fstatSync, ftruncateSync, lstatSync, mkdirSync, openSync, readdirSync, readFileSync, readSync, renameSync, rmdirSync, unlinkSync, writeFileSync, writeSync, type Stats,
} from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as c from '../../../src/ffi/libc.js';

/** What can fail. Calls that only look at something are not counted. */
export const CALLS = ['create', 'open', 'read', 'write', 'fsync', 'fallocate', 'punch', 'truncate', 'rename', 'unlink', 'mkdir', 'fsyncdir', 'readdir'] as const;
export type CallName = (typeof CALLS)[number];
/** Those that take space. */
const TAKES_SPACE: ReadonlySet<CallName> = new Set<CallName>(['create', 'write', 'fallocate', 'mkdir']);

/** Of calls of one name to files of one kind, the n-th from 0 on. */
export interface Fault {
  readonly call: string;
  readonly nth: number;
  /** Positive; 0: only a part is written. */
  readonly errno: number;
  /** Everything fails from then on, or with `space` everything that takes space, until there is another plan. */
  readonly then: 'nothing' | 'all' | 'space';
}

export interface Plan {
  readonly fault: Fault | null;
}

/** What was called since the plan was made, and whether the fault was reached. */
export interface Called {
  readonly calls: readonly string[];
  readonly failed: number;
}

const CONTROL = '.control';

export class FailingDirectory {
  private constructor(
    readonly path: string,
    readonly child: ChildProcess,
  ) {}

  /** `backing` is seen at `path`. */
  static async mount(backing: string, path: string): Promise<FailingDirectory> {
    const child = spawn(process.execPath, [fileURLToPath(import.meta.url), backing, path], { stdio: ['ignore', 'pipe', 'inherit'] });
    const [first] = (await Promise.race([once(child.stdout, 'data'), once(child, 'close')])) as [unknown];
    if (String(first) !== 'mounted\n') throw new Error('the failing directory did not start');
    return new FailingDirectory(path, child);
  }

  /** What fails from now on; null: nothing. */
  plan(fault: Fault | null): void {
    writeFileSync(join(this.path, CONTROL), JSON.stringify({ fault } satisfies Plan), { flag: 'r+' });
  }

  called(): Called {
    return JSON.parse(readFileSync(join(this.path, CONTROL), 'utf8')) as Called;
  }

  async unmount(): Promise<void> {
    const ended = once(this.child, 'close');
    spawnSync('umount', ['-l', this.path]);
    this.child.kill('SIGKILL');
    await ended;
  }
}

const E = { NOENT: 2, IO: 5, BADF: 9, NOSYS: 38 } as const;
const OP = {
  LOOKUP: 1, FORGET: 2, GETATTR: 3, SETATTR: 4, MKDIR: 9, UNLINK: 10, RMDIR: 11, RENAME: 12, OPEN: 14, READ: 15, WRITE: 16, STATFS: 17, RELEASE: 18, FSYNC: 20, FLUSH: 25,
  INIT: 26, OPENDIR: 27, READDIR: 28, RELEASEDIR: 29, FSYNCDIR: 30, ACCESS: 34, CREATE: 35, BATCH_FORGET: 42, FALLOCATE: 43, RENAME2: 45,
} as const;
const FATTR_SIZE = 8;
const FATTR_FH = 64;
const FOPEN_DIRECT_IO = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const HEADER_BYTES = 40;
const OUT_BYTES = 16;
const MAX_WRITE = 128 << 10;
const ROOT = 1;
const CONTROL_NODE = 2;

class Failure extends Error {
  constructor(readonly errno: number) {
    super();
  }
}

interface ServedNode {
  path: string | null;
  readonly fds: Set<number>;
}

/** The file system's side. */
class Server {
  readonly #nodes = new Map<number, ServedNode>([[ROOT, { path: '', fds: new Set() }]]);
  readonly #byPath = new Map<string, number>([['', ROOT]]);
  readonly #listings = new Map<number, Buffer>();
  #nextNode = 10;
  #nextListing = 1_000_000;
  #fault: Fault | null = null;
  #isDown: 'no' | 'all' | 'space' = 'no';
  #counts = new Map<string, number>();
  #calls: string[] = [];
  #failed = 0;
  #said = Buffer.alloc(0);

  constructor(readonly backing: string) {}

  /** @returns the reply's body, −errno, or null: there is no reply */
  answer(opcode: number, id: number, args: Buffer): Buffer | number | null {
    switch (opcode) {
      case OP.INIT: {
        const out = Buffer.alloc(64);
        out.writeUInt32LE(7, 0);
        out.writeUInt32LE(31, 4);
        out.writeUInt32LE(MAX_WRITE, 8);
        out.writeUInt32LE(MAX_WRITE, 20);
        return out;
      }
      case OP.FORGET:
      case OP.BATCH_FORGET:
        return null;
      case OP.LOOKUP:
        return this.#entry(this.#below(id, args, 0));
      case OP.GETATTR:
        return this.#attributes(id);
      case OP.SETATTR:
        return this.#setattr(id, args);
      case OP.MKDIR: {
        const path = this.#below(id, args, 8);
        this.#count('mkdir', path);
        mkdirSync(this.#real(path));
        return this.#entry(path);
      }
      case OP.UNLINK:
      case OP.RMDIR: {
        const path = this.#below(id, args, 0);
        this.#count('unlink', path);
        if (opcode === OP.UNLINK) unlinkSync(this.#real(path));
        else rmdirSync(this.#real(path));
        this.#gone(path);
        return Buffer.alloc(0);
      }
      case OP.RENAME:
        return this.#rename(id, args, 8);
      case OP.RENAME2:
        return this.#rename(id, args, 16);
      case OP.OPEN:
        return this.#open(id, args);
      case OP.CREATE: {
        const path = this.#below(id, args, 16);
        this.#count('create', path);
        const fd = openSync(this.#real(path), (args.readUInt32LE(0) & ~constants.O_DIRECT) | constants.O_CREAT, 0o600);
        this.#gone(path);
        const entry = this.#entry(path);
        this.#node(this.#byPath.get(path)!).fds.add(fd);
        return Buffer.concat([entry, opened(fd)]);
      }
      case OP.READ:
        return this.#read(id, args);
      case OP.WRITE:
        return this.#write(id, args);
      case OP.FSYNC:
        this.#count('fsync', this.#node(id).path);
        return Buffer.alloc(0);
      case OP.FALLOCATE: {
        const mode = args.readUInt32LE(24);
        this.#count((mode & FALLOC_FL_PUNCH_HOLE) !== 0 ? 'punch' : 'fallocate', this.#node(id).path);
        const [fd, from, bytes] = [0, 8, 16].map((at) => Number(args.readBigUInt64LE(at)));
        return c.fallocate(fd, mode, from, bytes) === 0 ? Buffer.alloc(0) : -c.errno();
      }
      case OP.RELEASE: {
        const fd = Number(args.readBigUInt64LE(0));
        if (id !== CONTROL_NODE) {
          this.#node(id).fds.delete(fd);
          closeSync(fd);
        }
        return Buffer.alloc(0);
      }
      case OP.OPENDIR:
        return this.#opendir(id);
      case OP.READDIR: {
        const listing = this.#listings.get(Number(args.readBigUInt64LE(0)))!;
        return listing.subarray(Number(args.readBigUInt64LE(8)));
      }
      case OP.RELEASEDIR:
        this.#listings.delete(Number(args.readBigUInt64LE(0)));
        return Buffer.alloc(0);
      case OP.FSYNCDIR:
        this.#count('fsyncdir', this.#node(id).path);
        return Buffer.alloc(0);
      case OP.FLUSH:
      case OP.ACCESS:
        return Buffer.alloc(0);
      case OP.STATFS: {
        const out = Buffer.alloc(80);
        out.writeUInt32LE(4096, 40);
        out.writeUInt32LE(255, 44);
        out.writeUInt32LE(4096, 48);
        return out;
      }
      default:
        return -E.NOSYS;
    }
  }

  /** @throws Failure. A call that is to be cut short gets true. */
  #count(call: CallName, path: string | null): boolean {
    const what = `${call} ${kindOf(path)}`;
    const nth = this.#counts.get(what) ?? 0;
    this.#counts.set(what, nth + 1);
    this.#calls.push(what);
    const fault = this.#fault;
    if (fault === null) return false;
    if (fault.call === what && fault.nth === nth) {
      this.#failed++;
      if (fault.then !== 'nothing') this.#isDown = fault.then;
      if (fault.errno === 0) return true;
      throw new Failure(fault.errno);
    }
    if (this.#isDown === 'all' || (this.#isDown === 'space' && TAKES_SPACE.has(call))) {
      this.#failed++;
      throw new Failure(fault.errno);
    }
    return false;
  }

  #node(id: number): ServedNode {
    const node = this.#nodes.get(id);
    if (node === undefined) throw new Failure(E.NOENT);
    return node;
  }

  #real(path: string): string {
    return join(this.backing, path);
  }

  #below(id: number, args: Buffer, from: number): string {
    const name = args.toString('latin1', from).replace(/\0.*/s, '');
    const { path } = this.#node(id);
    if (path === null) throw new Failure(E.NOENT);
    return path === '' ? name : `${path}/${name}`;
  }

  #gone(path: string): void {
    const id = this.#byPath.get(path);
    this.#byPath.delete(path);
    if (id !== undefined) this.#node(id).path = null;
  }

  #entry(path: string): Buffer {
    let id = this.#byPath.get(path) ?? (path === CONTROL ? CONTROL_NODE : null);
    const stats = path === CONTROL ? null : lstatSync(this.#real(path));
    if (id === null) {
      id = this.#nextNode++;
      this.#nodes.set(id, { path, fds: new Set() });
      this.#byPath.set(path, id);
    }
    const entry = Buffer.alloc(40);
    entry.writeBigUInt64LE(BigInt(id), 0);
    return Buffer.concat([entry, stats === null ? controlAttributes() : attributesOf(id, stats)]);
  }

  #attributes(id: number): Buffer {
    if (id === CONTROL_NODE) return Buffer.concat([Buffer.alloc(16), controlAttributes()]);
    const { path, fds } = this.#node(id);
    const [fd] = fds;
    if (path === null && fd === undefined) throw new Failure(E.NOENT);
    return Buffer.concat([Buffer.alloc(16), attributesOf(id, path === null ? fstatSync(fd) : lstatSync(this.#real(path)))]);
  }

  #setattr(id: number, args: Buffer): Buffer {
    const valid = args.readUInt32LE(0);
    if ((valid & FATTR_SIZE) !== 0 && id !== CONTROL_NODE) {
      const node = this.#node(id);
      this.#count('truncate', node.path);
      const fd = (valid & FATTR_FH) !== 0 ? Number(args.readBigUInt64LE(8)) : [...node.fds][0];
      const own = fd === undefined ? openSync(this.#real(node.path!), 'r+') : -1;
      ftruncateSync(fd ?? own, Number(args.readBigUInt64LE(16)));
      if (own >= 0) closeSync(own);
    }
    return this.#attributes(id);
  }

  #rename(id: number, args: Buffer, fixed: number): Buffer {
    const names = args.toString('latin1', fixed).split('\0');
    const [parent, newParent] = [this.#node(id).path!, this.#node(Number(args.readBigUInt64LE(0))).path!];
    const [from, to] = [join(parent, names[0]), join(newParent, names[1])];
    this.#count('rename', from);
    renameSync(this.#real(from), this.#real(to));
    this.#gone(to);
    const moved = this.#byPath.get(from);
    this.#byPath.delete(from);
    if (moved !== undefined) {
      this.#byPath.set(to, moved);
      this.#node(moved).path = to;
    }
    return Buffer.alloc(0);
  }

  #open(id: number, args: Buffer): Buffer {
    if (id === CONTROL_NODE) {
      this.#said = Buffer.from(JSON.stringify({ calls: this.#calls, failed: this.#failed } satisfies Called));
      return opened(CONTROL_NODE);
    }
    const node = this.#node(id);
    this.#count('open', node.path);
    const fd = openSync(this.#real(node.path!), args.readUInt32LE(0) & ~(constants.O_DIRECT | constants.O_NOFOLLOW));
    node.fds.add(fd);
    return opened(fd);
  }

  #read(id: number, args: Buffer): Buffer {
    const [fd, offset] = [0, 8].map((at) => Number(args.readBigUInt64LE(at)));
    const bytes = args.readUInt32LE(16);
    if (id === CONTROL_NODE) return this.#said.subarray(offset, offset + bytes);
    this.#count('read', this.#node(id).path);
    const out = Buffer.alloc(bytes);
    return out.subarray(0, readSync(fd, out, 0, bytes, offset));
  }

  #write(id: number, args: Buffer): Buffer {
    const [fd, offset] = [0, 8].map((at) => Number(args.readBigUInt64LE(at)));
    const data = args.subarray(40, 40 + args.readUInt32LE(16));
    let bytes = data.length;
    if (id === CONTROL_NODE) {
      this.#fault = (JSON.parse(data.toString()) as Plan).fault;
      this.#isDown = 'no';
      this.#counts = new Map();
      this.#calls = [];
      this.#failed = 0;
    } else {
      if (this.#count('write', this.#node(id).path)) bytes = bytes >> 1;
      if (bytes > 0) writeSync(fd, data, 0, bytes, offset);
    }
    const out = Buffer.alloc(8);
    out.writeUInt32LE(bytes, 0);
    return out;
  }

  #opendir(id: number): Buffer {
    const { path } = this.#node(id);
    this.#count('readdir', path);
    const entries: Buffer[] = [];
    let at = 0;
    for (const name of ['.', '..', ...readdirSync(this.#real(path!))]) {
      const bytes = Buffer.from(name);
      const entry = Buffer.alloc((24 + bytes.length + 7) & ~7);
      at += entry.length;
      entry.writeBigUInt64LE(1n, 0);
      entry.writeBigUInt64LE(BigInt(at), 8);
      entry.writeUInt32LE(bytes.length, 16);
      bytes.copy(entry, 24);
      entries.push(entry);
    }
    const number = this.#nextListing++;
    this.#listings.set(number, Buffer.concat(entries));
    return opened(number);
  }
}

/** Files of one kind: staging files are alike, and so are the directories of several runs. */
function kindOf(path: string | null): string {
  if (path === null) return 'removed';
  return path.replace(/^\d+\/?/, '').replace(/^staging\/\d+$/, 'staging/N') || 'directory';
}

function opened(fh: number): Buffer {
  const out = Buffer.alloc(16);
  out.writeBigUInt64LE(BigInt(fh), 0);
  out.writeUInt32LE(FOPEN_DIRECT_IO, 8);
  return out;
}

function controlAttributes(): Buffer {
  const attr = Buffer.alloc(88);
  attr.writeBigUInt64LE(BigInt(CONTROL_NODE), 0);
  attr.writeUInt32LE(0o100600, 60);
  attr.writeUInt32LE(1, 64);
  return attr;
}

/** struct fuse_attr (include/uapi/linux/fuse.h) */
function attributesOf(id: number, stats: Stats): Buffer {
  const attr = Buffer.alloc(88);
  const values = [id, stats.size, stats.blocks, ...[stats.atimeMs, stats.mtimeMs, stats.ctimeMs].map((ms) => Math.floor(ms / 1000))];
  values.forEach((value, i) => attr.writeBigUInt64LE(BigInt(value), 8 * i));
  attr.writeUInt32LE(Math.floor(stats.mtimeMs % 1000) * 1_000_000, 52);
  attr.writeUInt32LE(stats.mode, 60);
  attr.writeUInt32LE(stats.nlink, 64);
  attr.writeUInt32LE(4096, 80);
  return attr;
}

/** Until it is unmounted; nothing else happens in this process. */
function serve(backing: string, path: string): void {
  const device = openSync('/dev/fuse', 'r+');
  const mounted = spawnSync('mount', ['-i', '-t', 'fuse', '-o', 'fd=3,rootmode=40000,user_id=0,group_id=0', 'failing', path], { stdio: ['ignore', 'inherit', 'inherit', device] });
  if (mounted.status !== 0) process.exit(1);
  writeSync(1, 'mounted\n');
  const server = new Server(backing);
  const buffer = Buffer.alloc(MAX_WRITE + 4096);
  for (;;) {
    let bytes: number;
    try {
      bytes = readSync(device, buffer);
    } catch (error) {
      const { code } = error as NodeJS.ErrnoException;
      if (code === 'ENODEV') process.exit(0);
      if (code === 'ENOENT' || code === 'EINTR' || code === 'EAGAIN') continue;
      throw error;
    }
    let result: Buffer | number | null;
    try {
      result = server.answer(buffer.readUInt32LE(4), Number(buffer.readBigUInt64LE(16)), buffer.subarray(HEADER_BYTES, bytes));
    } catch (error) {
      if (error instanceof Failure) result = -error.errno;
      else if (typeof (error as NodeJS.ErrnoException).errno === 'number') result = (error as NodeJS.ErrnoException).errno!;
      else throw error;
    }
    if (result === null) continue;
    const body = typeof result === 'number' ? Buffer.alloc(0) : result;
    const header = Buffer.alloc(OUT_BYTES);
    header.writeUInt32LE(OUT_BYTES + body.length, 0);
    header.writeInt32LE(typeof result === 'number' ? result : 0, 4);
    header.writeBigUInt64LE(buffer.readBigUInt64LE(8), 8);
    try {
      writeSync(device, Buffer.concat([header, body]));
    } catch (error) {
      // Interrupted meanwhile
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
    }
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) serve(process.argv[2], process.argv[3]);
