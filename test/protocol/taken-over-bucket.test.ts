/**
 * A bucket's daemon that a guest has taken over, in its sandbox: what it tries of the host. Tried: names of the host, `..`, /proc, the cache directory of another daemon; signals, a debugger's calls;
 * sockets of others by name, by abstract name and by a pair that is connected again; servers of its own; handles; mounts and namespaces; programs. It keeps the network, where its bucket is.
 */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type Server } from 'node:net';
import { once } from 'node:events';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { landlockVersion } from '../../src/ffi/landlock.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { intruded, intruderOptions, type Deed } from '../support/intruder.js';
import { FuseClient } from '../support/guest.js';
import { S3Server } from '../support/s3/server.js';

const SKIP = (process.getuid?.() !== 0 && 'needs root') || (process.arch !== 'x64' && 'the numbers of system calls are those of x86-64');
const ALONE = ['--seccomp=none'];
const EPERM = 1;
const ENOENT = 2;
const EACCES = 13;
const EROFS = 30;
const KEYS = { AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey };

let dir = '';
let server: S3Server;
before(async () => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-taken-')));
  server = await S3Server.start();
});
after(async () => {
  killDaemons();
  await server.stop();
  rmSync(dir, { recursive: true, force: true });
});

let count = 0;
/** A daemon in which `deed` is to be done, and its cache directory. */
async function takenDaemon(args: readonly string[], deed: Deed, given: Record<string, string | number>, wrapper: readonly string[] = []): Promise<{ daemon: DaemonProcess; cache: string; socket: string }> {
  const top = join(dir, `p${count++}`);
  const cache = join(top, 'cache');
  mkdirSync(join(top, 'run'), { recursive: true });
  mkdirSync(cache, { mode: 0o700 });
  const socket = join(top, 'run', 'socket');
  const source = ['--source', 's3://bucket', '--endpoint', server.endpoint, '--path-style', '--cache-dir', cache];
  const env = { ...KEYS, HOME: top, NODE_OPTIONS: intruderOptions(deed, { share: cache, ...given }) };
  return { daemon: await DaemonProcess.start(['--socket-path', socket, ...source, ...args], { env, wrapper }), cache, socket };
}

async function taken(args: readonly string[], deed: Deed, given: Record<string, string | number> = {}, wrapper: readonly string[] = []): Promise<Record<string, unknown>> {
  const { daemon, cache, socket } = await takenDaemon(args, deed, given, wrapper);
  const found = await intruded(cache);
  // It serves nevertheless
  const guest = await FuseClient.connect(socket);
  await guest.list(1n);
  guest.leave();
  assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
  return found;
}

const namesDeed: Deed = ({ share, call }, given) => {
  const open = (path: string): number => call(2, path, 0);
  const up = `${share}/${'../'.repeat(20)}`;
  return {
    shadow: open('/etc/shadow'), other: open(String(given.secret)), up: open(`${up}etc/shadow`), init: open('/proc/1/root/etc/shadow'), mem: open('/proc/self/mem'), sys: open('/sys/kernel'), home: open('/root'),
    beside: open('/etc/passwd'), write: call(2, '/tmp/x', 0o101, 0o644), here: open(`${share}/go`) >= 0, names: open('/etc/hosts') >= 0,
  };
};

function secretOfAnother(): string {
  const other = join(dir, 'other-cache');
  mkdirSync(other, { recursive: true });
  writeFileSync(join(other, 'secret'), 'of another guest');
  return join(other, 'secret');
}

describe("a bucket's daemon that was taken over, without --seccomp", { skip: SKIP }, () => {
  test('has no name of the host but those that its bucket needs, and not the cache directory of another', async () => {
    assert.deepEqual(await taken(ALONE, namesDeed, { secret: secretOfAnother() }), {
      shadow: -ENOENT, other: -ENOENT, up: -ENOENT, init: -ENOENT, mem: -ENOENT, sys: -ENOENT, home: -ENOENT, beside: -ENOENT, write: -EROFS, here: true, names: true,
    });
  });

  test('has no such path either where it could not have a root of its own', { skip: landlockVersion() < 2 && 'needs Landlock' }, async () => {
    const found = await taken(ALONE, namesDeed, { secret: secretOfAnother() }, ['setpriv', '--bounding-set', '-sys_admin']);
    assert.deepEqual(found, {
      shadow: -EACCES, other: -EACCES, up: -EACCES, init: -EACCES, mem: -EACCES, sys: -EACCES, home: -EACCES, beside: -EACCES, write: -EACCES, here: true, names: true,
    });
  });

  test('changes nothing that its bucket only reads, makes no device, mount or namespace, and opens nothing by a handle', async () => {
    const found = await taken(ALONE, ({ share, call }) => ({
      hosts: call(2, '/etc/hosts', 1), program: call(2, '/usr/x', 0o101, 0o644), device: call(259, -100, `${share}/disk`, 0o060600, 0x800), socket: call(259, -100, `${share}/socket`, 0o140600, 0),
      mount: call(165, 'none', share, 'tmpfs', 0, 0), mounts: call(272, 0x2_0000), chroot: call(161, share), handle: call(304, call(2, share, 0), Buffer.alloc(32), 0), ptrace: call(101, 16, 1, 0, 0),
      program_here: (call(2, `${share}/x`, 0o101, 0o755), call(59, `${share}/x`, 0, 0)),
    }));
    for (const [what, result] of Object.entries(found)) assert.ok((result as number) < 0, `${what}: ${String(result)}`);
    assert.deepEqual([found.mount, found.chroot], [-EPERM, -EPERM]);
  });

  test('sends no signal to others, has no abstract socket of theirs, and serves no port', { skip: landlockVersion() < 6 && 'before Linux 6.12 only --seccomp keeps signals in' }, async (t) => {
    const abstract = createServer().listen(`\0bucketfsd-taken-${process.pid}`);
    const named = createServer().listen(join(dir, 'service'));
    await Promise.all([abstract, named].map((one: Server) => once(one, 'listening')));
    t.after(() => [abstract, named].forEach((one) => one.close()));
    const found = await taken(ALONE, ({ call, connect }, given) => {
      const tcp = Buffer.alloc(16);
      tcp.writeUInt16LE(2, 0);
      tcp.writeUInt16BE(40_999, 2);
      return {
        kill: call(62, Number(given.pid), 0), init: call(62, 1, 0), queue: call(129, Number(given.pid), 10, Buffer.alloc(128)),
        abstract: connect(`\0bucketfsd-taken-${given.pid}`), named: connect(`${String(given.named)}\0`), bind: call(49, call(41, 2, 1, 0), tcp, 16),
      };
    }, { pid: process.pid, named: join(dir, 'service') });
    for (const [what, result] of Object.entries(found)) assert.ok((result as number) < 0, `${what}: ${String(result)}`);
  });
});

describe("a bucket's daemon that was taken over, by default", { skip: SKIP }, () => {
  test('has the network, and gets neither a Unix socket, nor a pair of them, nor a process: libraries try those, and go on', async () => {
    const found = await taken([], ({ call }) => ({
      inet: call(41, 2, 1, 0) >= 0, inet6: call(41, 10, 1, 0) !== -13, route: call(41, 16, 3, 0) >= 0, unix: call(41, 1, 1, 0), pair: call(53, 1, 2, 0, Buffer.alloc(8)), fork: call(56, 17, 0, 0, 0, 0),
    }));
    assert.deepEqual(found, { inet: true, inet6: true, route: true, unix: -EACCES, pair: -EACCES, fork: -EACCES });
  });

  /** One system call each. */
  const deeds: readonly (readonly [string, Deed])[] = [
    ['a program', ({ call }) => ({ result: call(59, '/usr/bin/true', 0, 0) })],
    ['a signal to its parent', ({ call }, given) => ({ result: call(62, Number(given.pid), 0) })],
    ['a server', ({ call }) => ({ result: call(50, call(41, 2, 1, 0), 1) })],
    ['a socket that hears the whole network', ({ call }) => ({ result: call(41, 17, 3, 0) })],
    ['word with the firewall', ({ call }) => ({ result: call(41, 16, 3, 12) })],
    ['a file by its handle', ({ share, call }) => ({ result: call(304, call(2, share, 0), Buffer.alloc(32), 0) })],
  ];
  for (const [what, deed] of deeds) {
    test(`${what} ends it`, async () => {
      const { daemon, cache } = await takenDaemon([], deed, { pid: process.pid });
      writeFileSync(join(cache, 'go'), '');
      assert.deepEqual(await daemon.ended, { code: null, signal: 'SIGSYS' });
    });
  }
});
