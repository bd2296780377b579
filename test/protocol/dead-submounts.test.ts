/**
 * A file system mounted inside the share that stops to answer: whoever asks it waits, everybody else is served.
 *
 * Tried: every operation on a node, an open file and a name there; one that is dead before the daemon starts, dies while the guest has files open on it, is
 * mounted after the guest has connected, lies deep in the tree, is a bind mount of a dead one, or was unmounted lazily; with fewer threads than requests that wait; an automounter (autofs); the same name elsewhere; listings with
 * attributes of the directory that it is mounted on; the guest forgets, leaves and comes again; SIGTERM; a mount table that cannot be read.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, read, rmSync, statSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { DaemonProcess, killDaemons, type StartOptions } from '../support/daemon.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, name, OP } from '../support/guest.js';
import { HeldFileSystem } from '../support/held-fs.js';

const ROOT = 1n;
const CONTENT = 'an ordinary file of the share';
/** Each request that waits keeps one. */
const THREADS = 32;
const SEEK_DATA = 3;
const IOCTL = 39;
const SYNCFS = 50;
const FATTR_MODE = 1;
const FS_IOC_GETFLAGS = 0x80086601;

after(killDaemons);

interface Asked {
  readonly head: number;
  readonly at: number;
  readonly room: number;
}

/** A client that does not wait for its answers. */
class PatientClient extends FuseClient {
  readonly #answered = new Set<number>();
  #file = { node: 0n, fh: 0n };

  /** The ordinary file known and open. */
  async prepare(): Promise<void> {
    const { node } = await this.lookup(ROOT, 'ordinary');
    this.#file = { node, fh: await this.open(node, 0) };
  }

  offer(opcode: number, node: bigint, args: Uint8Array = new Uint8Array(0), room = 256): Asked {
    const { bytes } = this.request(opcode, node, args);
    const { head, writable } = this.queue.chain([bytes], room > 0 ? [16 + room] : [], true);
    this.queue.kick();
    return { head, at: writable[0] ?? 0, room };
  }

  isAnswered({ head }: Asked): boolean {
    for (const used of this.queue.take()) this.#answered.add(used.head);
    return this.#answered.has(head);
  }

  async answer(asked: Asked): Promise<{ error: number; data: Uint8Array }> {
    while (!this.isAnswered(asked)) for (const { head } of await this.queue.wait()) this.#answered.add(head);
    return { error: this.memory.dv.getInt32(asked.at + 4, true), data: this.memory.u8.slice(asked.at + 16, asked.at + 16 + asked.room) };
  }

  ask(opcode: number, node: bigint, args?: Uint8Array, room?: number): Promise<{ error: number; data: Uint8Array }> {
    return this.answer(this.offer(opcode, node, args, room));
  }

  /** What has nothing to do with the mount: a name, attributes and bytes of an ordinary file. */
  async isServed(during: string): Promise<void> {
    const { node, fh } = this.#file;
    const read = concat(u64(fh, 0), u32(CONTENT.length, 0), u64(0), u32(0, 0));
    try {
      assert.equal((await this.ask(OP.LOOKUP, ROOT, name('ordinary'))).error, 0);
      assert.equal((await this.ask(OP.GETATTR, node, new Uint8Array(16))).error, 0);
      assert.equal(new TextDecoder().decode((await this.ask(OP.READ, node, read, CONTENT.length)).data), CONTENT);
    } catch (error) {
      throw new Error(`others are not served: ${during}`, { cause: error });
    }
  }
}

interface Situation {
  readonly directory: string;
  readonly storage: HeldFileSystem;
  readonly connect: () => Promise<PatientClient>;
  readonly daemon: () => Promise<DaemonProcess>;
}

interface Setting {
  /** Path of the mount point in the share. */
  readonly at?: string;
  readonly args?: readonly string[];
  readonly threads?: number;
  readonly options?: StartOptions;
  /** The file system is there, and dead, before the daemon starts. */
  readonly deadBefore?: boolean;
}

function dead(fact: string, { at = 'mount', args = [], threads = THREADS, options = {}, deadBefore = false }: Setting, body: (s: Situation) => Promise<void>): void {
  test(fact, { skip: process.getuid!() !== 0 && 'needs root, to mount', timeout: 60_000 }, async () => {
    const top = mkdtempSync(join(tmpdir(), 'bucketfsd-submount-'));
    const directory = join(top, 'share');
    const socket = join(top, 'run', 'socket');
    for (const made of [join(directory, at), dirname(socket)]) mkdirSync(made, { recursive: true });
    writeFileSync(join(directory, 'ordinary'), CONTENT);
    // A mount of its own that passes on to the daemon's namespace what is mounted below
    execFileSync('mount', ['--bind', directory, directory]);
    execFileSync('mount', ['--make-shared', directory]);
    const storage = await HeldFileSystem.mount(join(directory, at));
    let daemon: DaemonProcess | null = null;
    const clients: PatientClient[] = [];
    try {
      if (deadBefore) await storage.die();
      await body({
        directory,
        storage,
        daemon: async () => (daemon ??= await DaemonProcess.start(['--socket-path', socket, '--shared-dir', directory, '--xattr', `--thread-pool-size=${threads}`, ...args], options)),
        connect: async () => {
          const client = new PatientClient(socket);
          clients.push(client);
          await client.begin();
          await client.prepare();
          return client;
        },
      });
    } finally {
      // Whoever waits for it comes back with an error
      await storage.unmount();
      await (daemon as DaemonProcess | null)?.stop('SIGKILL');
      for (const client of clients) client.leave();
      for (const mounted of [join(directory, at), directory]) while (spawnSync('umount', ['-l', mounted]).status === 0);
      rmSync(top, { recursive: true, force: true });
    }
  });
}

/** SIGTERM ends it, though requests wait for what never answers. */
async function ends(daemon: DaemonProcess, storage: HeldFileSystem): Promise<void> {
  const ended = daemon.stop();
  await daemon.isOver();
  await storage.unmount();
  assert.deepEqual(await ended, { code: 0, signal: null }, daemon.stderr);
}

const OFFLOADS = { 'by default': [], 'with --offload=always': ['--offload=always'], 'without a sandbox': ['--sandbox=none'] } as const;

for (const [how, args] of Object.entries(OFFLOADS)) {
  dead(`a file system that dies while the guest has its files open keeps those who ask it, and nobody else (${how})`, { args }, async ({ storage, connect, daemon }) => {
    const process = await daemon();
    const g = await connect();
    const mount = (await g.lookup(ROOT, 'mount')).node;
    const nodes = new Map<string, bigint>();
    for (const file of ['file', 'large', 'other', 'unclosable', 'directory']) nodes.set(file, (await g.lookup(mount, file)).node);
    const node = (file: string): bigint => nodes.get(file)!;
    const [read, written] = [await g.open(node('large'), 0), await g.open(node('file'))];
    const [flushed, released] = [await g.open(node('unclosable'), 0), await g.open(node('unclosable'), 0)];
    const listed = (await g.call(OP.OPENDIR, mount, u32(0, 0), 16)).data.getBigUint64(0, true);
    const top = (await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
    await storage.die();
    const ordinary = await g.lookup(ROOT, 'ordinary');
    const setattr = concat(u32(FATTR_MODE, 0), new Uint8Array(60), u32(0o600), new Uint8Array(16));
    const io = (fh: bigint, offset: number | bigint, bytes: number): Uint8Array => concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0));
    const waiting: Asked[] = [];
    /** `asks`: it comes to the dead file system, and so waits; else it may as well be answered by the kernel. */
    const attempt = async (what: string, asks: boolean, ...request: Parameters<PatientClient['offer']>): Promise<void> => {
      const asked = g.offer(...request);
      if (asks) {
        waiting.push(asked);
        await storage.held(waiting.length);
      }
      await g.isServed(what);
    };
    await attempt('LOOKUP of the mount point', true, OP.LOOKUP, ROOT, name('mount'));
    await attempt('LOOKUP there', true, OP.LOOKUP, mount, name('something'));
    await attempt('GETATTR', true, OP.GETATTR, node('file'), new Uint8Array(16));
    await attempt('GETATTR by a handle', true, OP.GETATTR, node('large'), concat(u32(1, 0), u64(read)));
    await attempt('STATFS', true, OP.STATFS, mount);
    await attempt('SETATTR', true, OP.SETATTR, node('other'), setattr);
    await attempt('READ', true, OP.READ, node('large'), io(read, 0, 16), 16);
    await attempt('READ that names another node', true, OP.READ, ordinary.node, io(read, 4096, 16), 16);
    await attempt('READ beyond all files', true, OP.READ, node('large'), io(read, (1n << 63n) - 1n, 16), 16);
    await attempt('LSEEK', true, OP.LSEEK, node('large'), concat(u64(read, 0), u32(SEEK_DATA, 0)));
    await attempt('LSEEK beyond all files', true, OP.LSEEK, node('large'), concat(u64(read, (1n << 63n) - 1n), u32(SEEK_DATA, 0)));
    await attempt('WRITE', false, OP.WRITE, node('file'), concat(io(written, 0, 4), u32(7)));
    await attempt('FLUSH', true, OP.FLUSH, node('unclosable'), concat(u64(flushed), u32(0, 0), u64(0)));
    await attempt('RELEASE', true, OP.RELEASE, node('unclosable'), concat(u64(released), u32(0, 0), u64(0)));
    await attempt('OPEN', false, OP.OPEN, node('file'), u32(2, 0));
    await attempt('OPENDIR', false, OP.OPENDIR, node('directory'), u32(0, 0));
    await attempt('READDIR', false, OP.READDIR, mount, concat(u64(listed, 0), u32(4096, 0), u64(0), u32(0, 0)), 4096);
    await attempt('GETXATTR', false, OP.GETXATTR, node('file'), concat(u32(64, 0), name('user.a')));
    await attempt('LISTXATTR', false, OP.LISTXATTR, node('large'), u32(64, 0));
    await attempt('IOCTL', false, IOCTL, node('large'), concat(u64(read), u32(0, FS_IOC_GETFLAGS), u64(0), u32(0, 4)));
    await attempt('FSYNC', false, OP.FSYNC, node('large'), concat(u64(read), u32(0, 0)));
    await attempt('CREATE', false, OP.CREATE, mount, concat(u32(0o102, 0o100644, 0o22, 0), name('made')));
    await attempt('CREATE of the mount point', false, OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0o22, 0), name('mount')));
    await attempt('MKDIR of the mount point', false, OP.MKDIR, ROOT, concat(u32(0o755, 0), name('mount')));
    await attempt('RMDIR of the mount point', false, OP.RMDIR, ROOT, name('mount'));
    await attempt('RENAME of the mount point', false, OP.RENAME, ROOT, concat(u64(ROOT), name('mount'), name('moved')));
    await attempt('RENAME into it', false, OP.RENAME, ROOT, concat(u64(node('directory')), name('ordinary'), name('moved')));
    await attempt('LINK into it', false, OP.LINK, node('directory'), concat(u64(ordinary.node), name('linked')));
    await attempt('FORGET', false, OP.FORGET, node('other'), u64(1), 0);
    assert.deepEqual(waiting.filter((asked) => g.isAnswered(asked)), [], 'who has asked it waits');

    const plus = await g.ask(OP.READDIRPLUS, ROOT, concat(u64(top, 0), u32(4096, 0), u64(0), u32(0, 0)), 4096);
    assert.equal(plus.error, 0);
    const known = how === 'with --offload=always' ? 0n : ordinary.node;
    assert.deepEqual(nodesListed(plus.data), new Map([['.', 0n], ['..', 0n], ['ordinary', known], ['mount', 0n]]), 'a mount point is listed without attributes');
    if (how === 'by default') await ends(process, storage);
  });
}

/** Names of a READDIRPLUS reply and the nodes that came with them: struct fuse_direntplus. */
function nodesListed(data: Uint8Array): Map<string, bigint> {
  const view = new DataView(data.buffer, data.byteOffset, data.byteLength);
  const listed = new Map<string, bigint>();
  for (let at = 0; at + 152 <= data.length && view.getUint32(at + 144, true) > 0 && view.getUint32(at + 144, true) < 256; ) {
    const length = view.getUint32(at + 144, true);
    listed.set(new TextDecoder().decode(data.subarray(at + 152, at + 152 + length)), view.getBigUint64(at, true));
    at += (152 + length + 7) & ~7;
  }
  return listed;
}

for (const at of ['mount', 'a/deep tree/mo\\nt']) {
  dead(`a file system that is dead before the daemon starts keeps those who ask for it, and nobody else (${at})`, { at, deadBefore: true }, async ({ storage, connect, daemon }) => {
    const process = await daemon();
    const g = await connect();
    const path = at.split('/');
    const point = path.pop()!;
    let parent = ROOT;
    for (const component of path) parent = (await g.lookup(parent, component)).node;
    g.offer(OP.LOOKUP, parent, name(point));
    await storage.held(1);
    await g.isServed('LOOKUP of the mount point');
    // The same name elsewhere is slower, and right
    assert.equal((await g.ask(OP.LOOKUP, at === point ? (await g.lookup(ROOT, 'ordinary')).node : ROOT, name(point))).error, at === point ? -E.NOTDIR : -E.NOENT);
    if (at === point) await ends(process, storage);
  });
}

dead('a dead file system that is mounted, or bound to another place, while the guest is connected is known at once', {}, async ({ directory, storage, connect, daemon }) => {
  const point = join(directory, 'later');
  const bound = join(directory, 'bound');
  mkdirSync(point);
  mkdirSync(bound);
  await daemon();
  const g = await connect();
  execFileSync('mount', ['--bind', join(directory, 'mount', 'directory'), bound]);
  const late = await HeldFileSystem.mount(point);
  try {
    await Promise.all([storage.die(), late.die()]);
    g.offer(OP.LOOKUP, ROOT, name('later'));
    await late.held(1);
    await g.isServed('LOOKUP of what was mounted later');
    g.offer(OP.LOOKUP, ROOT, name('bound'));
    await storage.held(1);
    await g.isServed('LOOKUP of what was bound later');
  } finally {
    spawnSync('umount', ['-l', bound]);
    await late.unmount();
  }
});

dead('one that was unmounted lazily stays remote, and a guest that forgets its files, leaves or comes again is served', {}, async ({ directory, storage, connect, daemon }) => {
  const process = await daemon();
  const g = await connect();
  const mount = (await g.lookup(ROOT, 'mount')).node;
  const file = await g.lookup(mount, 'file');
  const closed = await g.lookup(mount, 'unclosable');
  const fh = await g.open(file.node);
  await g.open(closed.node);
  await storage.die();
  execFileSync('umount', ['-l', join(directory, 'mount')]);
  g.offer(OP.GETATTR, file.node, new Uint8Array(16));
  await storage.held(1);
  await g.isServed('GETATTR');
  g.offer(OP.READ, file.node, concat(u64(fh, 0), u32(16, 0), u64(0), u32(0, 0)));
  await g.isServed('READ');
  assert.equal((await g.ask(OP.RMDIR, ROOT, name('mount'))).error, 0, 'its name is free');
  for (const node of [mount, file.node]) g.offer(OP.FORGET, node, u64(1), 0);
  await g.isServed('FORGET');
  await ends(process, storage);
});

dead('a guest that leaves its files of a dead file system open is followed by another', {}, async ({ storage, connect, daemon }) => {
  const process = await daemon();
  const first = await connect();
  const { node } = await first.lookup((await first.lookup(ROOT, 'mount')).node, 'unclosable');
  await first.open(node);
  await storage.die();
  first.disconnect();
  // Closed in the pool, since closing asks
  await storage.held(1);
  const second = await connect();
  await second.isServed('the files of the first guest are closed');
  await ends(process, storage);
});

dead('an automounter that does not answer keeps those who ask it, and nobody else', {}, async ({ directory, connect, daemon }) => {
  const point = join(directory, 'auto');
  const fifo = join(directory, '..', 'fifo');
  mkdirSync(point);
  execFileSync('mkfifo', [fifo]);
  const pipe = openSync(fifo, 'r+');
  // An indirect map: whoever looks up a name there waits for the process behind the pipe
  execFileSync('mount', ['-i', '-t', 'autofs', '-o', 'fd=3,pgrp=1,minproto=5,maxproto=5,indirect', 'test', point], { stdio: ['ignore', 'ignore', 'inherit', pipe] });
  try {
    await daemon();
    const g = await connect();
    const { node } = await g.lookup(ROOT, 'auto');
    const asked = g.offer(OP.LOOKUP, node, name('something'));
    const request = Buffer.alloc(4096);
    const bytes = await new Promise<number>((resolve, reject) => read(pipe, request, 0, request.length, null, (error, n) => (error === null ? resolve(n) : reject(error))));
    assert.ok(request.subarray(0, bytes).includes('something'), 'the automounter is asked');
    await g.isServed('LOOKUP in an automounted directory');
    assert.ok(!g.isAnswered(asked));
  } finally {
    spawnSync('umount', ['-l', point]);
    closeSync(pipe);
  }
});

dead('requests that keep all threads of the pool keep no thread from what has nothing to do with the file system', { threads: 1 }, async ({ directory, storage, connect, daemon }) => {
  const process = await daemon();
  const g = await connect();
  const mount = (await g.lookup(ROOT, 'mount')).node;
  const { node, fh } = await g.create(ROOT, 'written').then(({ entry, fh }) => ({ node: entry.node, fh }));
  await storage.die();
  for (let i = 0; i < 8; i++) g.offer(OP.LOOKUP, mount, name(`something ${i}`));
  await storage.held(1);
  // Neither is ever done in the main thread
  assert.equal((await g.ask(OP.FALLOCATE, node, concat(u64(fh, 0, 1 << 20), u32(0, 0)))).error, 0);
  assert.equal((await g.ask(OP.FSYNC, node, concat(u64(fh), u32(0, 0)))).error, 0);
  assert.equal((await g.ask(SYNCFS, ROOT, new Uint8Array(8))).error, 0);
  assert.equal(statSync(join(directory, 'written')).size, 1 << 20);
  await ends(process, storage);
});
