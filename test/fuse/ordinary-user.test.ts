/** The real daemon, started as an ordinary user: what works, what it says does not, and with which errno. */
import assert from 'node:assert/strict';
import { execFileSync, spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, chownSync, cpSync, lstatSync, mkdirSync, mkdtempSync, readFileSync, readdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { after, before, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, OP, name } from '../support/guest.js';

const REPOSITORY = fileURLToPath(new URL('../../../', import.meta.url));
const ROOT = 1n;
const USER = 65534;
const OTHER = 1000;
const S_IFIFO = 0o010000;
const S_IFCHR = 0o020000;
const FATTR_UID = 2;
const FATTR_GID = 4;
const TIMEOUT_MS = 20_000;
const skip = process.getuid!() === 0 ? false : 'needs root, to become somebody else';

let directory = '';
const children = new Set<ChildProcess>();

/** The daemon and its packages where every user may read them: the checkout may lie in a private directory. */
before(() => {
  directory = mkdtempSync(join(tmpdir(), 'bucketfsd-user-'));
  const program = join(directory, 'program');
  cpSync(join(REPOSITORY, 'build', 'src'), join(program, 'build', 'src'), { recursive: true });
  cpSync(join(REPOSITORY, 'package.json'), join(program, 'package.json'));
  const compiler = /\/node_modules\/(typescript|@typescript|@types)(\/|$)/;
  cpSync(join(REPOSITORY, 'node_modules'), join(program, 'node_modules'), { recursive: true, filter: (path) => !compiler.test(path) });
  execFileSync('chmod', ['-R', 'a+rX', directory]);
});

after(() => {
  for (const child of children) child.kill('SIGKILL');
  rmSync(directory, { recursive: true, force: true });
});

interface Daemon {
  socket: string;
  share: string;
  child: ChildProcess;
  log: () => string;
}

let count = 0;

/** Started as USER, on a share of USER's own. */
function launch(...options: string[]): Daemon {
  const home = join(directory, `daemon${count++}`);
  const [share, socket] = [join(home, 'share'), join(home, 'socket')];
  mkdirSync(share, { recursive: true });
  for (const path of [home, share]) chownSync(path, USER, USER);
  const argv = [join(directory, 'program/build/src/main.js'), '--socket-path', socket, '--shared-dir', share, ...options];
  const child = spawn(process.execPath, argv, { uid: USER, gid: USER, cwd: '/', env: {}, stdio: ['ignore', 'ignore', 'pipe'] });
  children.add(child);
  let log = '';
  child.stderr!.setEncoding('utf8').on('data', (text: string) => (log += text));
  return { socket, share, child, log: () => log };
}

/** Its exit code, when its log is complete. */
async function ended(child: ChildProcess): Promise<number | null> {
  const [code] = (await once(child, 'close', { signal: AbortSignal.timeout(TIMEOUT_MS) })) as [number | null];
  return code;
}

async function stop({ child }: Daemon): Promise<void> {
  if (child.exitCode === null && child.signalCode === null) {
    child.kill('SIGTERM');
    await ended(child);
  }
  children.delete(child);
}

async function withDaemon(body: (daemon: Daemon, guest: FuseClient) => Promise<void>): Promise<void> {
  const daemon = launch('--xattr');
  try {
    for (const deadline = Date.now() + TIMEOUT_MS; !daemon.log().includes(`sharing ${daemon.share} on`); await sleep(5)) {
      assert.ok(daemon.child.exitCode === null && Date.now() < deadline, `not ready: ${daemon.log()}`);
    }
    const guest = await FuseClient.connect(daemon.socket);
    try {
      await body(daemon, guest);
    } finally {
      guest.disconnect();
      await stop(daemon);
      guest.free();
    }
  } finally {
    await stop(daemon);
  }
}

const chown = (g: FuseClient, node: bigint, valid: number, uid: number, gid: number): Promise<{ error: number }> => {
  const args = new Uint8Array(88);
  args.set(u32(valid), 0);
  args.set(u32(uid, gid), 76);
  return g.call(OP.SETATTR, node, args, 104);
};

const owner = (path: string): number[] => {
  const { uid, gid } = lstatSync(path);
  return [uid, gid];
};

for (const [who, uid] of [["the guest's root", 0], ["the guest's user of the same id", USER]] as const) {
  test(`as an ordinary user, ${who} makes, writes, reads, renames and removes files that are the daemon's user's`, { skip }, () =>
    withDaemon(async ({ share }, g) => {
      g.uid = g.gid = uid;
      const { entry, fh } = await g.create(ROOT, 'f');
      assert.equal((await g.write(entry.node, fh, 0, new TextEncoder().encode('written'))).error, 0);
      assert.equal(new TextDecoder().decode((await g.read(entry.node, fh, 0, 100)).data), 'written');
      assert.equal(readFileSync(join(share, 'f'), 'utf8'), 'written');
      assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')), 128)).error, 0);
      assert.equal((await g.call(OP.SYMLINK, ROOT, concat(name('l'), name('f')), 128)).error, 0);
      assert.equal((await g.call(OP.MKNOD, ROOT, concat(u32(S_IFIFO | 0o600, 0, 0, 0), name('p')), 128)).error, 0);
      assert.equal((await g.call(OP.LINK, ROOT, concat(u64(entry.node), name('h')), 128)).error, 0);
      for (const made of ['f', 'd', 'l', 'p', 'h']) assert.deepEqual(owner(join(share, made)), [USER, USER], made);
      const { node } = await g.lookup(ROOT, 'd');
      assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(node), u32(0, 0), name('f'), name('moved')), 0)).error, 0);
      assert.deepEqual(readdirSync(join(share, 'd')), ['moved']);
      assert.equal((await g.call(OP.SETXATTR, entry.node, concat(u32(1, 0, 0, 0), name('user.a'), new Uint8Array(1)), 0)).error, 0);
      assert.equal((await g.call(OP.UNLINK, node, name('moved'), 0)).error, 0);
      assert.equal((await g.call(OP.RMDIR, ROOT, name('d'), 0)).error, 0);
      assert.deepEqual(readdirSync(share).sort(), ['h', 'l', 'p']);
    }));
}

test('as an ordinary user, other users of the guest make nothing (EPERM), but read and write what there is', { skip }, () =>
  withDaemon(async ({ share }, g) => {
    writeFileSync(join(share, 'f'), 'there');
    chmodSync(join(share, 'f'), 0o666);
    g.uid = g.gid = OTHER;
    assert.equal((await g.call(OP.CREATE, ROOT, concat(u32(0o102, 0o100666, 0, 0), name('n')), 144)).error, -E.PERM);
    assert.equal((await g.call(OP.MKDIR, ROOT, concat(u32(0o777, 0), name('n')), 128)).error, -E.PERM);
    assert.equal((await g.call(OP.SYMLINK, ROOT, concat(name('n'), name('t')), 128)).error, -E.PERM);
    assert.equal((await g.call(OP.MKNOD, ROOT, concat(u32(S_IFIFO | 0o600, 0, 0, 0), name('n')), 128)).error, -E.PERM);
    assert.equal((await g.call(OP.TMPFILE, ROOT, concat(u32(2, 0o100600, 0, 0), name('/')), 144)).error, -E.PERM);
    const { node } = await g.lookup(ROOT, 'f');
    const fh = await g.open(node);
    assert.equal((await g.write(node, fh, 0, new TextEncoder().encode('T'))).error, 0);
    assert.equal(new TextDecoder().decode((await g.read(node, fh, 0, 100)).data), 'There');
    assert.deepEqual(readdirSync(share), ['f']);
  }));

test('as an ordinary user, owners and devices are EPERM, and the host denies what it denies that user', { skip }, () =>
  withDaemon(async ({ share }, g) => {
    const { entry } = await g.create(ROOT, 'f');
    assert.equal((await chown(g, entry.node, FATTR_UID, OTHER, 0)).error, -E.PERM);
    assert.equal((await chown(g, entry.node, FATTR_UID, 0, 0)).error, -E.PERM);
    assert.equal((await chown(g, entry.node, FATTR_GID, 0, OTHER)).error, -E.PERM);
    assert.equal((await chown(g, entry.node, FATTR_UID | FATTR_GID, USER, USER)).error, 0, 'its own owner');
    assert.deepEqual(owner(join(share, 'f')), [USER, USER]);
    assert.equal((await g.call(OP.MKNOD, ROOT, concat(u32(S_IFCHR | 0o666, 0x103, 0, 0), name('null')), 128)).error, -E.PERM);
    writeFileSync(join(share, 'private'), 'of root');
    chmodSync(join(share, 'private'), 0o600);
    mkdirSync(join(share, 'closed'), 0o755);
    symlinkSync('/etc/shadow', join(share, 'shadow'));
    assert.equal((await g.call(OP.OPEN, (await g.lookup(ROOT, 'private')).node, u32(0, 0), 16)).error, -E.ACCES);
    assert.equal((await g.call(OP.OPEN, (await g.lookup(ROOT, 'shadow')).node, u32(0, 0), 16)).error, -E.LOOP);
    const { node } = await g.lookup(ROOT, 'closed');
    assert.equal((await g.call(OP.MKDIR, node, concat(u32(0o755, 0), name('n')), 128)).error, -E.ACCES);
    assert.deepEqual(readdirSync(share).sort(), ['closed', 'f', 'private', 'shadow']);
  }));

test('as an ordinary user, every known file keeps a descriptor, and one line of the log says what does not work', { skip }, () =>
  withDaemon(async (daemon, first) => {
    const files = 200;
    for (let i = 0; i < files; i++) writeFileSync(join(daemon.share, `f${i}`), '');
    const descriptors = (): number => readdirSync(`/proc/${daemon.child.pid}/fd`).length;
    const before = descriptors();
    const nodes: bigint[] = [];
    for (let i = 0; i < files; i++) nodes.push((await first.lookup(ROOT, `f${i}`)).node);
    assert.equal(descriptors(), before + files);
    await first.call(OP.BATCH_FORGET, 0n, concat(u32(files, 0), ...nodes.map((node) => u64(node, 1))), 0);
    assert.equal(descriptors(), before);
    first.disconnect();
    const second = await FuseClient.connect(daemon.socket);
    assert.equal((await second.lookup(ROOT, 'f0')).size, 0);
    second.disconnect();
    await stop(daemon);
    second.free();
    const lines = daemon.log().split('\n').filter((line) => /not running as root|file handles/.test(line));
    assert.equal(lines.length, 1, daemon.log());
    assert.match(lines[0], new RegExp(`made as user ${USER}.*no change of owner, no device nodes, no file handles`));
  }));

test('as an ordinary user, --inode-file-handles=mandatory refuses to start', { skip }, async () => {
  const daemon = launch('--inode-file-handles', 'mandatory');
  assert.equal(await ended(daemon.child), 1);
  assert.match(daemon.log(), /file handles \(--inode-file-handles=mandatory\)/);
});
