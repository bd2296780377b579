/** A guest without a VM: FUSE requests through a real socket and a real ring to a FuseServer on a directory. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { SILENT_LOG } from '../../src/base/log.js';
import { FuseServer } from '../../src/fuse/server.js';
import { SyscallPool } from '../../src/pool/pool.js';
import type { FileSystem } from '../../src/storage/filesystem.js';
import { openLocalFileSystem } from '../../src/storage/local/filesystem.js';
import type { LocalOptions, StepPool } from '../../src/storage/local/share.js';
import type { Device } from '../../src/vhost/device.js';
import { TestBackend } from './backend.js';
import { DriverQueue } from './driver.js';
import { F_LOG_ALL, Frontend, SharedMemory, concat, u32, u64 } from './frontend.js';

export const OP = {
  LOOKUP: 1, FORGET: 2, GETATTR: 3, SETATTR: 4, READLINK: 5, SYMLINK: 6, MKNOD: 8, MKDIR: 9, UNLINK: 10, RMDIR: 11, RENAME: 12, LINK: 13, OPEN: 14,
  READ: 15, WRITE: 16, STATFS: 17, RELEASE: 18, FSYNC: 20, SETXATTR: 21, GETXATTR: 22, LISTXATTR: 23, REMOVEXATTR: 24, FLUSH: 25, INIT: 26, OPENDIR: 27,
  READDIR: 28, RELEASEDIR: 29, FSYNCDIR: 30, GETLK: 31, SETLK: 32, SETLKW: 33, CREATE: 35, INTERRUPT: 36, DESTROY: 38, BATCH_FORGET: 42, FALLOCATE: 43,
  READDIRPLUS: 44, RENAME2: 45, LSEEK: 46, COPY_FILE_RANGE: 47, TMPFILE: 51, STATX: 52,
} as const;

const DEFAULTS: Omit<LocalOptions, 'directory'> = {
  cache: 'auto', readonly: false, xattr: true, xattrMap: null, posixAcl: 'never', securityLabel: 'never', writeback: false, allowDirectIo: false,
  allowMmap: false, allowProjectIds: false, announceSubmounts: true, handles: 'prefer', preserveNoatime: false, killprivV2: false, readdirplus: true, flock: true,
  posixLock: true, uidMap: null, gidMap: null, offload: 'auto', nofile: 4096,
};

export interface Reply {
  /** 0 or −errno. */
  error: number;
  data: DataView;
  /** Bytes that the used ring says were written. */
  used: number;
}

export interface Entry {
  node: bigint;
  ino: bigint;
  mode: number;
  size: number;
  nlink: number;
}

export const name = (text: string): Uint8Array => new TextEncoder().encode(`${text}\0`);

/** INIT flags that are offered: all that Linux may. */
const INIT_FLAGS = 0xffffffff;

/** A FUSE client on a driver of its own, for a daemon that listens at `socketPath`. */
export class FuseClient {
  readonly memory = new SharedMemory(16 << 20);
  readonly frontend: Frontend;
  readonly queue: DriverQueue;
  #unique = 1n;
  readonly #mark: number;
  uid = 0;
  gid = 0;

  constructor(socketPath: string) {
    this.frontend = Frontend.connect(socketPath);
    this.queue = new DriverQueue(this.memory, 0, 256);
    this.#mark = this.memory.mark;
  }

  /** Features, memory, one running queue. */
  async setUp(): Promise<void> {
    await this.frontend.negotiate({ features: F_LOG_ALL });
    assert.ok(await this.frontend.setMemory(this.memory));
    await this.queue.start(this.frontend);
  }

  /** The ring running and, unless told otherwise, a session. */
  async begin(init = true): Promise<void> {
    await this.setUp();
    if (init) assert.equal((await this.init()).error, 0);
  }

  /** Connect, and begin a FUSE session. */
  static async connect(socketPath: string): Promise<FuseClient> {
    const client = new FuseClient(socketPath);
    await client.begin();
    return client;
  }

  init(major = 7, minor = 45, flags = INIT_FLAGS): Promise<Reply> {
    return this.call(OP.INIT, 0n, concat(u32(major, minor, 131072, flags, INIT_FLAGS), new Uint8Array(44)), 64);
  }

  /** Bytes of a request. */
  request(opcode: number, node: bigint, args: Uint8Array, length = 40 + args.length): { bytes: Uint8Array; unique: bigint } {
    const unique = this.#unique++;
    return { unique, bytes: concat(u32(length, opcode), u64(unique, node), u32(this.uid, this.gid, 1234, 0), args) };
  }

  /** Ask, with room for `room` bytes of results behind the header. */
  async call(opcode: number, node: bigint, args: Uint8Array = new Uint8Array(0), room = 4096): Promise<Reply> {
    const { bytes, unique } = this.request(opcode, node, args);
    return this.raw([bytes.subarray(0, 40), bytes.subarray(40)].filter((b) => b.length > 0), [16, room].filter((n) => n > 0), unique);
  }

  /** Offer any readable and writable parts, and read the reply from them. */
  async raw(readable: Uint8Array[], writable: number[], unique?: bigint): Promise<Reply> {
    const pending = this.queue.chain(readable, writable, true);
    this.queue.kick();
    const [used] = await this.queue.wait();
    assert.equal(used.head, pending.head);
    const all = concat(...pending.writable.map((at, i) => this.memory.u8.slice(at, at + writable[i])));
    this.memory.rewind(this.#mark);
    const view = new DataView(all.buffer);
    if (used.length < 16) return { error: 0, data: new DataView(new ArrayBuffer(0)), used: used.length };
    assert.equal(view.getUint32(0, true), used.length, 'the header says what the used ring says');
    if (unique !== undefined) assert.equal(view.getBigUint64(8, true), unique);
    for (let i = used.length; i < all.length; i++) if (all[i] !== 0xee && view.getInt32(4, true) !== 0) assert.fail('an error reply wrote beyond its header');
    return { error: view.getInt32(4, true), data: new DataView(all.buffer, 16, used.length - 16), used: used.length };
  }

  async lookup(parent: bigint, text: string): Promise<Entry> {
    return this.entry(await this.call(OP.LOOKUP, parent, name(text), 128));
  }

  entry(reply: Reply): Entry {
    assert.equal(reply.error, 0);
    const { data } = reply;
    return {
      node: data.getBigUint64(0, true), ino: data.getBigUint64(40, true), size: Number(data.getBigUint64(48, true)), mode: data.getUint32(100, true),
      nlink: data.getUint32(104, true),
    };
  }

  async create(parent: bigint, text: string, flags = 2, mode = 0o644): Promise<{ entry: Entry; fh: bigint }> {
    const reply = await this.call(OP.CREATE, parent, concat(u32(flags | 0o100, mode | 0o100000, 0o22, 0), name(text)), 144);
    return { entry: this.entry(reply), fh: reply.data.getBigUint64(128, true) };
  }

  async open(node: bigint, flags = 2): Promise<bigint> {
    const reply = await this.call(OP.OPEN, node, u32(flags, 0), 16);
    assert.equal(reply.error, 0);
    return reply.data.getBigUint64(0, true);
  }

  /** `flags`: those that the open file description has at that moment, as fcntl(F_GETFL) gives them. */
  read(node: bigint, fh: bigint, offset: number, size: number, room = size, flags = 0): Promise<Reply> {
    return this.call(OP.READ, node, concat(u64(fh, offset), u32(size, 0), u64(0), u32(flags, 0)), room);
  }

  write(node: bigint, fh: bigint, offset: number, bytes: Uint8Array, size = bytes.length, writeFlags = 0, flags = 0): Promise<Reply> {
    return this.call(OP.WRITE, node, concat(u64(fh, offset), u32(size, writeFlags), u64(0), u32(flags, 0), bytes), 8);
  }

  disconnect(): void {
    this.frontend.close();
  }

  /** After disconnect(), when nobody writes into the memory any more. */
  free(): void {
    this.queue.close();
    this.memory.close();
  }

  /** Names in a directory. */
  async list(node: bigint): Promise<string[]> {
    const opened = await this.call(OP.OPENDIR, node, u32(0, 0), 16);
    assert.equal(opened.error, 0);
    const fh = opened.data.getBigUint64(0, true);
    const { data, error } = await this.call(OP.READDIR, node, concat(u64(fh, 0), u32(4096, 0), u64(0), u32(0, 0)));
    assert.equal(error, 0);
    const names: string[] = [];
    // struct fuse_dirent: ino, off, namelen, type, name, padded to 8 bytes
    for (let at = 0; at + 24 <= data.byteLength; ) {
      const length = data.getUint32(at + 16, true);
      names.push(new TextDecoder().decode(new Uint8Array(data.buffer, data.byteOffset + at + 24, length)));
      at += (24 + length + 7) & ~7;
    }
    assert.equal((await this.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)))).error, 0);
    return names.filter((text) => text !== '.' && text !== '..').sort();
  }

  /** The frontend goes. */
  leave(): void {
    this.disconnect();
    this.free();
  }
}

/** The client, and the daemon's parts in this process behind it. */
export class TestGuest extends FuseClient {
  /** A temporary one, unless the options name one. */
  readonly directory: string;
  readonly #temporary: boolean;
  readonly pool: SyscallPool | null;
  readonly fs: FileSystem;
  readonly backend: TestBackend<Device>;
  readonly log: string[];

  private constructor(parts: Parts) {
    super(parts.backend.path);
    this.directory = parts.directory;
    this.#temporary = parts.temporary;
    this.pool = parts.pool;
    this.fs = parts.fs;
    this.backend = parts.backend;
    this.log = parts.log;
  }

  /** `threads`: of the pool, or what stands for it. Without `init` there is no session yet. */
  static async start(options: Partial<LocalOptions> = {}, threads: number | StepPool = 0, init = true): Promise<TestGuest> {
    const guest = new TestGuest(partsOf(options, threads));
    await guest.begin(init);
    return guest;
  }

  async close(): Promise<void> {
    this.disconnect();
    await this.backend.close();
    await this.pool?.close();
    this.free();
    if (this.#temporary) rmSync(this.directory, { recursive: true, force: true });
  }
}

interface Parts {
  directory: string;
  temporary: boolean;
  pool: SyscallPool | null;
  fs: FileSystem;
  backend: TestBackend<Device>;
  log: string[];
}

/** A share served in this process. */
function partsOf(options: Partial<LocalOptions>, threads: number | StepPool): Parts {
  const directory = options.directory ?? mkdtempSync(join(tmpdir(), 'bucketfsd-share-'));
  const log: string[] = [];
  const pool = typeof threads === 'number' && threads > 0 ? new SyscallPool({ threads, onWorkerLost: () => undefined }) : null;
  const fs = openLocalFileSystem({ ...DEFAULTS, ...options, directory }, typeof threads === 'number' ? pool : threads, SILENT_LOG);
  const server = new FuseServer(fs, {
    guest: (key, fields, message) => void log.push(`${key}: ${message} ${JSON.stringify(fields)}`),
  });
  const backend = new TestBackend<Device>({
    maxQueues: 2, config: null, handle: (chain) => server.handle(chain), admission: server.admission, connected: () => undefined, reset: () => server.reset(),
    cancelWaiting: () => fs.cancelWaiting(),
  });
  return { directory, temporary: options.directory === undefined, pool, fs, backend, log };
}
