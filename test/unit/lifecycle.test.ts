import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { chmodSync, existsSync, lstatSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { createConnection, createServer, type Server } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, before, describe, test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { unixSocket, bindUnix } from '../../src/ffi/socket.js';
import * as c from '../../src/ffi/libc.js';

const DAEMON = fileURLToPath(new URL('./lifecycle-daemon.js', import.meta.url));
const ROOT = process.getuid?.() === 0;
const NOBODY = 65534;

let dir = '';
let socket = '';
const children = new Set<ChildProcess>();

before(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-life-'));
  chmodSync(dir, 0o755);
});
after(() => rmSync(dir, { recursive: true, force: true }));

let count = 0;
function freshSocket(): string {
  socket = join(dir, `s${count++}`);
  return socket;
}

afterEach(() => {
  for (const child of children) child.kill('SIGKILL');
  children.clear();
});

interface Daemon {
  child: ChildProcess;
  ended: Promise<{ code: number | null; signal: string | null }>;
  /** Log lines and failure sentences so far. */
  stderr: () => string;
}

function launch(args: string[], options: { env?: NodeJS.ProcessEnv; fd?: number; uid?: number; command?: string[] } = {}): Daemon {
  const [command, ...rest] = options.command ?? [process.execPath, DAEMON, ...args];
  const child = spawn(command, rest, {
    env: { ...process.env, NOTIFY_SOCKET: undefined, ...options.env },
    stdio: ['ignore', 'ignore', 'pipe', ...(options.fd === undefined ? [] : [options.fd])],
    ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
  });
  children.add(child);
  let stderr = '';
  child.stderr!.on('data', (data) => (stderr += data));
  const ended = once(child, 'close').then(([code, signal]) => ({ code: code as number | null, signal: signal as string | null }));
  return { child, ended, stderr: () => stderr };
}

async function ready(daemon: Daemon): Promise<Daemon> {
  while (!daemon.stderr().includes('"ready"')) {
    const end = await Promise.race([once(daemon.child.stderr!, 'data'), daemon.ended]);
    if (!Array.isArray(end)) assert.fail(`ended early: ${daemon.stderr()}`);
  }
  return daemon;
}

function start(path = freshSocket(), env: NodeJS.ProcessEnv = {}, more: string[] = []): Promise<Daemon> {
  return ready(launch(['--socket-path', path, '--source', dir, ...more], { env }));
}

/** It must not start: exit code and one line. */
async function fails(daemon: Daemon, code: number, sentence: RegExp): Promise<void> {
  const end = await daemon.ended;
  assert.deepEqual(end, { code, signal: null }, daemon.stderr());
  assert.match(daemon.stderr(), sentence);
  assert.match(daemon.stderr(), /^bucketfsd: [^\n]+\n$/, 'one line');
}

async function stop(daemon: Daemon, signal: NodeJS.Signals = 'SIGTERM'): Promise<number | null> {
  daemon.child.kill(signal);
  return (await daemon.ended).code;
}

function canConnect(path: string): Promise<boolean> {
  return new Promise((resolve) => {
    const client = createConnection(path, () => {
      client.destroy();
      resolve(true);
    });
    client.on('error', () => resolve(false));
  });
}

describe('socket path', () => {
  test('the socket has mode 0600, the pid file holds the pid, and both vanish on SIGTERM with exit code 0', async () => {
    const daemon = await start();
    assert.equal(statSync(socket).mode & 0o7777, 0o600);
    assert.ok(statSync(socket).isSocket());
    assert.equal(readFileSync(`${socket}.pid`, 'utf8'), `${daemon.child.pid}\n`);
    assert.equal(await canConnect(socket), true);
    assert.equal(await stop(daemon), 0);
    assert.deepEqual([existsSync(socket), existsSync(`${socket}.pid`)], [false, false]);
  });

  test('SIGINT ends it in the same way', async () => {
    const daemon = await start();
    assert.equal(await stop(daemon, 'SIGINT'), 0);
    assert.equal(existsSync(socket), false);
  });

  test('with --socket-group the socket has mode 0660 and that group', { skip: !ROOT && 'needs root' }, async () => {
    const daemon = await start(freshSocket(), {}, ['--socket-group', 'daemon']);
    const gid = Number(/^daemon:[^:]*:(\d+):/m.exec(readFileSync('/etc/group', 'utf8'))?.[1]);
    assert.deepEqual([statSync(socket).mode & 0o7777, statSync(socket).gid], [0o660, gid]);
    assert.equal(await stop(daemon), 0);
  });

  test('an unknown group is one sentence, and nothing is left behind', async () => {
    await fails(launch(['--socket-path', freshSocket(), '--source', dir, '--socket-group', 'no-such-group']), 1, /there is no group "no-such-group"/);
    assert.deepEqual(readdirSync(dir).filter((name) => socket.endsWith(name)), []);
  });

  test('a second daemon on the same socket is refused with the pid of the first, which goes on', async () => {
    const first = await start();
    await fails(launch(['--socket-path', socket, '--source', dir]), 1, new RegExp(`in use: another daemon \\(pid ${first.child.pid}\\) is running`));
    assert.equal(await canConnect(socket), true);
    assert.equal(await stop(first), 0);
  });

  test('after SIGKILL the stale socket and pid file are replaced', async () => {
    const first = await start();
    await stop(first, 'SIGKILL');
    assert.deepEqual([existsSync(socket), existsSync(`${socket}.pid`)], [true, true]);
    const second = await start(socket);
    assert.equal(await canConnect(socket), true);
    assert.equal(readFileSync(`${socket}.pid`, 'utf8'), `${second.child.pid}\n`);
    assert.equal(await stop(second), 0);
  });

  test('a socket that another program listens on is refused without connecting to it', async () => {
    let connections = 0;
    const server: Server = createServer(() => connections++).listen(freshSocket());
    await once(server, 'listening');
    await fails(launch(['--socket-path', socket, '--source', dir]), 1, /in use: another program is listening/);
    assert.equal(connections, 0);
    assert.equal(existsSync(`${socket}.pid`), false);
    server.close();
  });

  test('the same socket by another spelling of its path is found to be in use', async () => {
    const server = createServer(() => undefined).listen(freshSocket());
    await once(server, 'listening');
    const other = `${dir}/../${dir.slice(dir.lastIndexOf('/') + 1)}/${socket.slice(dir.length + 1)}`;
    symlinkSync(dir, join(dir, 'link'));
    for (const path of [other, join(dir, 'link', socket.slice(dir.length + 1))]) {
      await fails(launch(['--socket-path', path, '--source', dir]), 1, /in use: another program is listening/);
    }
    server.close();
  });

  test('a file that is not a socket is not replaced', async () => {
    writeFileSync(freshSocket(), 'precious');
    await fails(launch(['--socket-path', socket, '--source', dir]), 1, /exists and is not a socket/);
    assert.equal(readFileSync(socket, 'utf8'), 'precious');
  });

  test('a pid file that is a symbolic link is not followed', async () => {
    const victim = join(dir, 'victim');
    writeFileSync(victim, 'precious');
    symlinkSync(victim, `${freshSocket()}.pid`);
    await fails(launch(['--socket-path', socket, '--source', dir]), 1, /symbolic link/);
    assert.equal(readFileSync(victim, 'utf8'), 'precious');
  });

  test('a missing directory, a file in its place, and a path that is too long are one sentence each', async () => {
    await fails(launch(['--socket-path', join(dir, 'none', 's'), '--source', dir]), 1, /the directory .*none does not exist/);
    writeFileSync(join(dir, 'file'), '');
    await fails(launch(['--socket-path', join(dir, 'file', 's'), '--source', dir]), 1, /file is not a directory/);
    await fails(launch(['--socket-path', `${dir}/${'s'.repeat(108)}`, '--source', dir]), 2, /--socket-path takes at most 107 bytes/);
  });

  test('no permission to create the socket is one sentence', { skip: !ROOT && 'needs root' }, async () => {
    await fails(launch(['--socket-path', freshSocket(), '--source', dir], { uid: NOBODY }), 1, /no permission; this user must be able to write to/);
  });

  test('a socket that somebody else put in its place is not removed', async () => {
    const daemon = await start();
    rmSync(socket);
    const fd = unixSocket();
    assert.equal(bindUnix(fd, socket), 0);
    assert.equal(await stop(daemon), 0);
    assert.ok(lstatSync(socket).isSocket());
    c.close(fd);
  });
});

describe('inherited socket', () => {
  function listening(path: string): number {
    const fd = unixSocket();
    assert.equal(bindUnix(fd, path), 0);
    assert.equal(c.listen(fd, 1), 0);
    return fd;
  }

  test('--fd takes a listening socket and leaves its path alone', async () => {
    const fd = listening(freshSocket());
    const daemon = await ready(launch(['--fd', '3', '--source', dir], { fd }));
    assert.equal(await canConnect(socket), true);
    assert.equal(await stop(daemon), 0);
    assert.equal(existsSync(socket), true);
    c.close(fd);
  });

  test('LISTEN_FDS for this process is taken', async () => {
    const fd = listening(freshSocket());
    const command = ['/bin/sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"', process.execPath, DAEMON, '--source', dir];
    const daemon = await ready(launch([], { fd, command }));
    assert.match(daemon.stderr(), /descriptor 3 from systemd/);
    assert.equal(await stop(daemon), 0);
    c.close(fd);
  });

  test('a descriptor that is closed, a file, not listening, or of another family is refused in one sentence', async () => {
    await fails(launch(['--fd', '3', '--source', dir]), 1, /--fd 3 is not a socket/);
    const file = c.open(DAEMON, 0, 0);
    await fails(launch(['--fd', '3', '--source', dir], { fd: file }), 1, /--fd 3 is not a socket/);
    const idle = unixSocket();
    await fails(launch(['--fd', '3', '--source', dir], { fd: idle }), 1, /not a listening socket/);
    const inet = c.socket(2, 1, 0);
    await fails(launch(['--fd', '3', '--source', dir], { fd: inet }), 1, /not a Unix stream socket/);
    const datagram = c.socket(1, 2, 0);
    await fails(launch(['--fd', '3', '--source', dir], { fd: datagram }), 1, /not a Unix stream socket/);
    for (const fd of [file, idle, inet, datagram]) c.close(fd);
  });
});

describe('the directory to share', () => {
  test('missing, a file, and not readable are one sentence each, and no socket is left', async () => {
    const path = freshSocket();
    await fails(launch(['--socket-path', path, '--source', join(dir, 'nowhere')]), 1, /cannot share .*nowhere: there is no such directory/);
    await fails(launch(['--socket-path', path, '--source', DAEMON]), 1, /cannot share .*: it is not a directory/);
    assert.equal(existsSync(path), false);
  });

  test('a directory that the user may not read is one sentence', { skip: !ROOT && 'needs root' }, async () => {
    const secret = join(dir, 'secret');
    mkdirSync(secret, { mode: 0o700 });
    await fails(launch(['--socket-path', freshSocket(), '--source', secret], { uid: NOBODY }), 1, /cannot share .*secret: no permission/);
  });
});

describe('the end', () => {
  test('requests that do not end are given up after the limit, with exit code 0 and nothing left', async () => {
    const daemon = await start(freshSocket(), { TEST_DRAIN: 'hang', TEST_LIMIT_MS: '20' });
    assert.equal(await stop(daemon), 0);
    assert.match(daemon.stderr(), /requests in flight were given up/);
    assert.equal(existsSync(socket), false);
  });

  test('a second signal ends it at once with exit code 1, and nothing is left', async () => {
    const daemon = await start(freshSocket(), { TEST_DRAIN: 'hang', TEST_LIMIT_MS: '60000' });
    daemon.child.kill('SIGTERM');
    while (!daemon.stderr().includes('"stopping"')) await once(daemon.child.stderr!, 'data');
    assert.equal(await stop(daemon, 'SIGINT'), 1);
    assert.deepEqual([existsSync(socket), existsSync(`${socket}.pid`)], [false, false]);
  });

  test('an error while draining is exit code 1, and nothing is left', async () => {
    const daemon = await start(freshSocket(), { TEST_DRAIN: 'fail' });
    assert.equal(await stop(daemon), 1);
    assert.match(daemon.stderr(), /drain failed/);
    assert.equal(existsSync(socket), false);
  });

  test('an error that nothing caught is logged with its stack, exit code 1, and nothing is left', async () => {
    const daemon = launch(['--socket-path', freshSocket(), '--source', dir], { env: { TEST_DRAIN: 'crash' } });
    assert.equal((await daemon.ended).code, 1);
    assert.match(daemon.stderr(), /"type":"Error","message":"a bug","stack":/);
    assert.equal(existsSync(socket), false);
  });
});

describe('descriptor limit', () => {
  const limitOf = (daemon: Daemon): number => Number(/"limit":(\d+)/.exec(daemon.stderr())?.[1]);
  const inForce = (daemon: Daemon): string[] =>
    /^Max open files +(\S+) +(\S+)/m.exec(readFileSync(`/proc/${daemon.child.pid}/limits`, 'utf8'))!.slice(1, 3);

  test('by default the soft limit is raised to the hard limit', async () => {
    const daemon = await start();
    const [soft, hard] = inForce(daemon);
    assert.equal(soft, hard);
    assert.equal(String(limitOf(daemon)), soft);
    await stop(daemon);
  });

  test('--rlimit-nofile sets the soft limit', async () => {
    const daemon = await start(freshSocket(), {}, ['--rlimit-nofile=300']);
    assert.equal(inForce(daemon)[0], '300');
    await stop(daemon);
  });

  test('more than the user may have is one sentence', { skip: !ROOT && 'needs root' }, async () => {
    await fails(launch(['--socket-path', freshSocket(), '--source', dir, '--rlimit-nofile=1073741824'], { uid: NOBODY }), 1, /more than this user may have: the hard limit is \d+/);
  });
});

describe('usage', () => {
  test('a wrong command line is one sentence and exit code 2', async () => {
    await fails(launch(['--source', dir]), 2, /one of --socket-path and --fd is needed/);
  });

  test('--help exits with 0', async () => assert.equal((await launch(['--help']).ended).code, 0));
});
