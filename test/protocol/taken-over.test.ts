/**
 * A daemon that a guest has taken over, in its sandbox: what it tries of the host. Tried: names of the host, `..`, /proc and other processes' roots; handles of files of the host and of another share, by
 * each of the file systems that it sees; device nodes; mounts and namespaces; signals by kill, by tgkill and by a descriptor's owner; a debugger's calls; sockets of the network, abstract
 * ones, and the socket of another service; limits and priorities of others; programs.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test, type TestContext } from 'node:test';
import { once } from 'node:events';
import { AT_FDCWD } from '../../src/ffi/constants.js';
import { landlockVersion } from '../../src/ffi/landlock.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { intruded, intruderOptions, type Deed } from '../support/intruder.js';
import { client, NAMESPACE, serves } from '../support/sandbox.js';

const ROOT = process.getuid?.() === 0;
const ALONE = ['--sandbox=namespace', '--seccomp=none'];
const EPERM = 1;
const ENOENT = 2;
const EACCES = 13;

let dir = '';
before(() => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-taken-')));
});
after(() => {
  killDaemons();
  rmSync(dir, { recursive: true, force: true });
});

let count = 0;
async function taken(t: TestContext, args: readonly string[], deed: Deed, given: Record<string, string | number> = {}, says: RegExp | null = null, wrapper: readonly string[] = []): Promise<Record<string, unknown>> {
  const top = join(dir, `p${count++}`);
  const share = join(top, 'share');
  mkdirSync(share, { recursive: true });
  mkdirSync(join(top, 'run'));
  const socket = join(top, 'run', 'socket');
  const daemon = await DaemonProcess.start(['--socket-path', socket, '--source', share, '--xattr', ...args], { env: { NODE_OPTIONS: intruderOptions(deed, { share, ...given }) }, wrapper });
  await serves(await client(t, socket), share);
  const found = await intruded(share);
  if (says !== null) assert.match(daemon.stderr, says);
  assert.equal((await daemon.stop()).code, 0, daemon.stderr);
  return found;
}

/** struct file_handle of a path, as hexadecimal digits; the host may make one, and a guest may guess it. */
function handleOf(path: string): string {
  const mem = NativeMemory.allocate(8192);
  mem.dv.setUint32(0, 128, true);
  assert.equal(c.nameToHandleAt(AT_FDCWD, mem.putString(256, path), mem.address, mem.address + 4800, 0), 0, path);
  const hex = Buffer.from(mem.u8.subarray(0, 8 + mem.dv.getUint32(0, true))).toString('hex');
  mem.free();
  return hex;
}

/** Numbers of x86-64: the deeds are text, and the rules are the same on arm64. */
describe('a daemon that was taken over, with --sandbox=namespace and without --seccomp', { skip: (!ROOT && 'needs root') || (process.arch !== 'x64' && 'the numbers of system calls are those of x86-64') }, () => {
  test('has no name of the host but those of its program and its share', async (t) => {
    const other = join(dir, 'other-share');
    mkdirSync(other, { recursive: true });
    writeFileSync(join(other, 'secret'), 'of another guest');
    const found = await taken(t, ALONE, ({ share, call }, given) => {
      const open = (path: string): number => call(2, path, 0);
      const up = `${share}/${'../'.repeat(20)}`;
      return {
        shadow: open('/etc/shadow'), other: open(String(given.secret)), up: open(`${up}etc/shadow`), init: open('/proc/1/root/etc/shadow'), self: open('/proc/self/root/etc/shadow'), mem: open('/proc/self/mem'),
        sys: open('/sys/kernel'), home: open('/root'), write: call(2, '/usr/x', 0o101, 0o644), here: open(`${share}/go`) >= 0,
      };
    }, { secret: join(other, 'secret') });
    assert.deepEqual(found, {
      shadow: -ENOENT, other: -ENOENT, up: -ENOENT, init: -ENOENT, self: -ENOENT, mem: -ENOENT, sys: -ENOENT, home: -ENOENT, write: found.write, here: true,
    });
    assert.ok(found.write === -EACCES || found.write === -30, `a file in /usr: ${String(found.write)}`);
  });

  test('opens no file by its handle, of the host or of another share, by any file system that it sees; with --inode-file-handles it would, and the log says so', async (t) => {
    const other = join(dir, 'another-share');
    mkdirSync(other, { recursive: true });
    writeFileSync(join(other, 'secret'), 'of another guest');
    const handles = { root: handleOf('/'), shadow: handleOf('/etc/shadow'), secret: handleOf(join(other, 'secret')) };
    const deed: Deed = ({ share, call }, given) => {
      const results: Record<string, unknown> = {};
      for (const [what, hex] of Object.entries(given).filter(([key]) => key !== 'share')) {
        for (const place of [share, '/usr', '/dev/null']) results[`${what} by ${place}`] = call(304, call(2, place, 0), Buffer.from(String(hex), 'hex'), 0);
      }
      return results;
    };
    const found = await taken(t, ALONE, deed, handles);
    for (const [what, result] of Object.entries(found)) assert.equal(result, -EPERM, what);
    assert.equal(Object.keys(found).length, 9);
    const asked = await taken(t, [...ALONE, '--inode-file-handles=prefer'], deed, handles, /a daemon that a guest has taken over reaches all of the file system/);
    assert.ok(Number(asked[`secret by /.share`]) >= 0, 'the attack is one');
  });

  test('has no path but those of its program and its share where it could not have a root of its own, and the log says what is missing', { skip: landlockVersion() < 2 && 'needs Landlock' }, async (t) => {
    const other = join(dir, 'beside');
    mkdirSync(other, { recursive: true });
    writeFileSync(join(other, 'secret'), 'of another guest');
    const found = await taken(t, ['--seccomp=none'], ({ share, call }, given) => {
      const open = (path: string): number => call(2, path, 0);
      return {
        shadow: open('/etc/shadow'), other: open(String(given.secret)), mem: open('/proc/1/mem'), home: open('/root'), write: call(2, '/tmp/x', 0o101, 0o644), here: open(`${share}/go`) >= 0,
        handle: call(304, call(2, share, 0), Buffer.from(String(given.handle), 'hex'), 0),
      };
    }, { secret: join(other, 'secret'), handle: handleOf('/etc/shadow') }, /the sandbox is incomplete: --sandbox=namespace needs CAP_SYS_ADMIN, .* what protects is Landlock/, ['setpriv', '--bounding-set', '-sys_admin']);
    assert.deepEqual(found, { shadow: -EACCES, other: -EACCES, mem: -EACCES, home: -EACCES, write: -EACCES, here: true, handle: -EPERM });
  });

  test('makes no device that it could open, and no mount or namespace that leads out', async (t) => {
    const found = await taken(t, ALONE, ({ share, call }) => ({
      made: call(259, -100, `${share}/disk`, 0o060600, 0x800), opened: call(2, `${share}/disk`, 2),
      null: [call(259, -100, `${share}/memory`, 0o020600, 0x101), call(2, `${share}/memory`, 0)][1],
      mount: call(165, 'none', share, 'tmpfs', 0, 0), user: call(272, 0x1000_0000), mounts: call(272, 0x2_0000), chroot: call(161, share), pivot: call(155, share, share),
      tree: call(428, -100, '/usr', 1), setns: call(308, 0, 0), module: call(175, share, 0, share), ptrace: call(101, 16, 1, 0, 0),
    }));
    const { made, user, tree, module, ptrace, ...rest } = found;
    assert.equal(made, 0, 'a guest may make them');
    assert.deepEqual(rest, { opened: -EACCES, null: -EACCES, mount: -EPERM, mounts: -EPERM, chroot: -EPERM, pivot: -EPERM, setns: rest.setns });
    for (const [what, result] of Object.entries({ tree, module, ptrace, setns: rest.setns })) assert.ok((result as number) < 0, what);
    // A user namespace of its own may be had; what is in it has no rights to what is outside, and mounts stay denied
    assert.ok(user === 0 || (user as number) < 0);
  });

  test('sends no signal to others, has no network, and no socket of others', { skip: landlockVersion() < 6 && 'before Linux 6.12 only --seccomp keeps signals in' }, async (t) => {
    const abstract = createServer().listen(`\0bucketfsd-taken-${process.pid}`);
    const inet = createServer().listen(0, '127.0.0.1');
    const named = createServer().listen(join(dir, 'service'));
    await Promise.all([abstract, inet, named].map((server: Server) => once(server, 'listening')));
    t.after(() => [abstract, inet, named].forEach((server) => server.close()));
    const found = await taken(t, ALONE, ({ call, connect }, given) => {
      const tcp = Buffer.alloc(16);
      tcp.writeUInt16LE(2, 0);
      tcp.writeUInt16BE(Number(given.port), 2);
      tcp.set([127, 0, 0, 1], 4);
      return {
        kill: call(62, Number(given.pid), 0), init: call(62, 1, 0), thread: call(234, Number(given.pid), Number(given.pid), 0), queue: call(129, Number(given.pid), 10, Buffer.alloc(128)),
        abstract: connect(`\0bucketfsd-taken-${given.pid}`), named: connect(`${String(given.named)}\0`), tcp: call(42, call(41, 2, 1, 0), tcp, 16),
      };
    }, { pid: process.pid, port: (inet.address() as { port: number }).port, named: join(dir, 'service') });
    for (const [what, result] of Object.entries(found)) assert.ok((result as number) < 0, `${what}: ${String(result)}`);
  });
});

describe('a daemon that was taken over, under --seccomp=kill as well', { skip: (!ROOT && 'needs root') || (process.arch !== 'x64' && 'x86-64') }, () => {
  /** One system call each, with its arguments. */
  const deeds: readonly (readonly [string, Deed])[] = [
    ['a signal to its parent', ({ call }, given) => ({ result: call(62, Number(given.pid), 0) })],
    ['a signal by the owner of a descriptor', ({ call }, given) => ({ result: call(72, 0, 8, Number(given.pid)) })],
    ['limits of its parent', ({ call }, given) => ({ result: call(302, Number(given.pid), 7, 0, 0) })],
    ['a socket', ({ call }) => ({ result: call(41, 1, 1, 0) })],
    ['a file by its handle', ({ share, call }) => ({ result: call(304, call(2, share, 0), Buffer.alloc(32), 0) })],
    ['a program', ({ call }) => ({ result: call(59, '/usr/bin/true', 0, 0) })],
  ];
  for (const [what, deed] of deeds) {
    test(`${what} ends it`, async (t) => {
      const share = join(dir, `k${count++}`);
      mkdirSync(join(share, 'run'), { recursive: true });
      const socket = join(share, 'run', 'socket');
      const daemon = await DaemonProcess.start(['--socket-path', socket, '--source', share, '--xattr', ...NAMESPACE], { env: { NODE_OPTIONS: intruderOptions(deed, { share, pid: process.pid }) } });
      await serves(await client(t, socket), share);
      writeFileSync(join(share, 'go'), '');
      assert.deepEqual(await daemon.ended, { code: null, signal: 'SIGSYS' });
    });
  }
});
