/** The daemon in a sandbox: it serves as without one, and nothing else of the host is there. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, chownSync, cpSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join, relative } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { landlockVersion } from '../../src/ffi/landlock.js';
import * as c from '../../src/ffi/libc.js';
import { bindUnix, unixSocket } from '../../src/ffi/socket.js';
import { DaemonProcess, killDaemons, MAIN, type StartOptions } from '../support/daemon.js';
import { concat, u32 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { client, datagramSocket, heard, KEPT, NAMESPACE, serves } from '../support/sandbox.js';

const LAYERS = fileURLToPath(new URL('../support/landlock-layers.js', import.meta.url));
const ROOT = process.getuid?.() === 0;
const F_DUPFD = 0;
const SYS_ADMIN = 1n << 21n;
const MKNOD = 1n << 27n;
const DAC_READ_SEARCH = 1n << 2n;

let dir = '';
let share = '';
before(() => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-confine-')));
});
after(() => {
  killDaemons();
  rmSync(dir, { recursive: true, force: true });
});

let count = 0;
/** A fresh directory with a share in it; where a socket may be. */
function place(): string {
  const top = join(dir, `p${count++}`);
  share = join(top, 'share');
  mkdirSync(share, { recursive: true });
  mkdirSync(join(top, 'run'));
  return join(top, 'run', 'socket');
}

const start = (socket: string, args: readonly string[] = NAMESPACE, options: StartOptions = {}): Promise<DaemonProcess> =>
  DaemonProcess.start(['--socket-path', socket, '--source', share, '--xattr', ...args], options);

/** Every path of the daemon's root but what is below a mount. */
function pathsOf(daemon: DaemonProcess, mounted: readonly string[]): string[] {
  const top = `/proc/${daemon.pid}/root`;
  const found: string[] = [];
  const walk = (path: string): void => {
    for (const entry of readdirSync(join(top, path), { withFileTypes: true })) {
      const below = join(path, entry.name);
      found.push(below);
      if (entry.isDirectory() && !mounted.includes(below)) walk(below);
    }
  };
  walk('/');
  return found.sort();
}

/** /proc/PID/mountinfo: mount point to its options. */
function mountsOf(daemon: DaemonProcess): Map<string, string[]> {
  const lines = readFileSync(`/proc/${daemon.pid}/mountinfo`, 'utf8').trimEnd().split('\n');
  return new Map(lines.map((line) => [line.split(' ')[4], line.split(' ')[5].split(',')]));
}

describe('--sandbox=namespace', { skip: !ROOT && 'needs root' }, () => {
  for (const pool of [0, 3]) {
    test(`files are served, with ${pool} pool threads`, async (t) => {
      const socket = place();
      const daemon = await start(socket, [...NAMESPACE, `--thread-pool-size=${pool}`]);
      await serves(await client(t, socket), share);
      assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
      assert.deepEqual(readdirSync(dirname(socket)), [], 'socket and pid file are gone');
    });
  }

  test('all threads are inside, with the capabilities that files need, without new privileges, under the filter', async (t) => {
    const socket = place();
    const daemon = await start(socket, [...NAMESPACE, '--thread-pool-size=2']);
    await serves(await client(t, socket), share);
    assert.ok(daemon.threads.length > 2, 'threads of Node and of the pool');
    for (const kind of ['mnt', 'net', 'ipc']) {
      const seen = daemon.namespaces(kind);
      assert.equal(seen.length, 1, kind);
      assert.notEqual(seen[0], readlinkSync(`/proc/self/ns/${kind}`));
    }
    const set = KEPT.toString(16).padStart(16, '0');
    assert.deepEqual([daemon.status('CapBnd'), daemon.status('CapEff'), daemon.status('CapPrm')], [[set], [set], [set]]);
    assert.deepEqual([daemon.status('CapInh'), daemon.status('CapAmb')], [['0'.repeat(16)], ['0'.repeat(16)]]);
    assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs')], [['2'], ['1']]);
    await daemon.stop();
  });

  test('its root has the share, the directory of the socket and the program, and nothing else', async () => {
    const socket = place();
    writeFileSync(join(share, 'file'), '');
    const daemon = await start(socket);
    const mounts = mountsOf(daemon);
    const build = dirname(MAIN);
    const repository = dirname(dirname(build));
    const program = ['/usr', build, join(repository, 'package.json'), join(repository, 'node_modules')];
    const expected = new Set(['/', '/.share', '/.socket', '/dev/null', '/proc/self/fd', '/proc/self/mountinfo', '/etc/ld.so.cache', ...program]);
    for (const path of mounts.keys()) if (/^\/lib/.test(path) || path === process.execPath || path === '/etc/localtime') expected.add(path);
    assert.deepEqual([...mounts.keys()].sort(), [...expected].sort());
    const parents = new Set([...expected].flatMap((path) => path.split('/').map((_part, index, parts) => parts.slice(0, index + 1).join('/'))));
    const others = pathsOf(daemon, [...expected]).filter((path) => !parents.has(path) && !/^\/lib|^\/etc\/localtime$/.test(path));
    assert.deepEqual(others, []);
    assert.deepEqual(readdirSync(`/proc/${daemon.pid}/root/.share`), ['file']);
    for (const path of program) for (const flag of ['ro', 'nosuid', 'nodev']) assert.ok(mounts.get(path)?.includes(flag), `${path} is ${flag}`);
    for (const path of ['/', '/proc/self/fd', '/proc/self/mountinfo']) assert.ok(mounts.get(path)?.includes('ro'), `${path} is ro`);
    for (const path of ['/.share', '/.socket']) for (const flag of ['rw', 'nosuid', 'nodev']) assert.ok(mounts.get(path)?.includes(flag), `${path} is ${flag}`);
    await daemon.stop();
  });

  test('it holds its socket against a second daemon; after SIGKILL the next one takes over', async () => {
    const socket = place();
    const first = await start(socket);
    assert.ok(!/within reach/.test(first.stderr), 'the socket has a directory of its own');
    await new DaemonProcess(['--socket-path', socket, '--source', share, ...NAMESPACE]).fails(1, new RegExp(`in use: another daemon \\(pid ${first.pid}\\) is running`));
    await first.stop('SIGKILL');
    assert.deepEqual(readdirSync(dirname(socket)), ['socket', 'socket.pid']);
    writeFileSync(join(dirname(socket), 'other'), '');
    const second = await start(socket);
    assert.match(second.stderr, new RegExp(`all of ${dirname(socket)} is within reach of the daemon`));
    assert.deepEqual(await second.stop(), { code: 0, signal: null });
    assert.deepEqual(readdirSync(dirname(socket)), ['other']);
  });

  test('with --readonly the mount of the share is read-only, too', async () => {
    const daemon = await start(place(), [...NAMESPACE, '--readonly']);
    assert.ok(mountsOf(daemon).get('/.share')?.includes('ro'));
    await daemon.stop();
  });

  test('relative paths count from where it was started, and messages name the share as the host does', async (t) => {
    const socket = place();
    const cwd = dirname(share);
    const daemon = await DaemonProcess.start(['--socket-path', 'run/socket', '--source', 'share', '--xattr', ...NAMESPACE], { cwd });
    assert.match(daemon.stderr, new RegExp(`sharing ${share} on ${socket}`));
    assert.ok(!daemon.stderr.includes('/.share'), daemon.stderr);
    await serves(await client(t, socket), share);
    await daemon.stop();
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });

  test('a share that contains the socket and one that is reached by a link are served', async (t) => {
    place();
    const inside = join(share, 'socket');
    const first = await start(inside);
    await serves(await client(t, inside), share);
    await first.stop();
    assert.ok(!existsSync(inside));
    const socket = place();
    const real = share;
    share = join(dirname(share), 'by-link');
    symlinkSync('share', share);
    const second = await start(socket);
    await serves(await client(t, socket), real);
    await second.stop();
  });

  test('shares above and below the files of the program are served, and a guest sees what is mounted over them', async (t) => {
    const socket = place();
    for (share of [dirname(dirname(MAIN)), '/']) {
      const daemon = await start(socket, [...NAMESPACE, '--readonly']);
      const guest = await client(t, socket);
      let node = 1n;
      for (const part of relative(share, MAIN).split('/')) node = (await guest.lookup(node, part)).node;
      const fh = await guest.open(node, 0);
      const read = await guest.read(node, fh, 0, 10);
      assert.equal(new TextDecoder().decode(new Uint8Array(read.data.buffer, 16, 10)), '#!/usr/bin');
      await daemon.stop();
    }
  });

  const modules = join(dirname(MAIN), '../../node_modules');
  const layouts: Readonly<Record<string, (top: string) => string>> = {
    'node_modules is a link': (top) => {
      symlinkSync(modules, join(top, 'node_modules'));
      return top;
    },
    'each package is a link to elsewhere': (top) => {
      linkPackages(join(top, 'node_modules'));
      return top;
    },
    'it is a package of a project, beside those that it needs': (top) => {
      linkPackages(join(top, 'node_modules'));
      return join(top, 'node_modules/bucketfsd');
    },
    'its packages are in a store beside it': (top) => {
      linkPackages(join(top, 'node_modules/.store/bucketfsd@1/node_modules'));
      return join(top, 'node_modules/.store/bucketfsd@1/node_modules/bucketfsd');
    },
  };
  function linkPackages(folder: string): void {
    mkdirSync(folder, { recursive: true });
    for (const entry of readdirSync(modules)) symlinkSync(join(modules, entry), join(folder, entry));
  }
  for (const [what, install] of Object.entries(layouts)) {
    test(`it finds its packages inside where ${what}`, async (t) => {
      const socket = place();
      const top = mkdtempSync(join(dir, 'installed-'));
      const folder = install(top);
      mkdirSync(folder, { recursive: true });
      cpSync(dirname(MAIN), join(folder, 'build/src'), { recursive: true });
      cpSync(join(dirname(MAIN), '../../package.json'), join(folder, 'package.json'));
      const daemon = await start(socket, NAMESPACE, { main: join(folder, 'build/src/main.js') });
      await serves(await client(t, socket), share);
      assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
    });
  }

  test('with --fd it serves, and no other inherited descriptor comes along', async (t) => {
    const socket = place();
    const fd = unixSocket();
    assert.equal(bindUnix(fd, socket), 0);
    assert.equal(c.listen(fd, 4), 0);
    // A number so high that Node does not look there; inherited, since it is not close-on-exec
    const low = c.open('/', 0, 0);
    const directory = c.check(c.fcntl(low, F_DUPFD, 200), 'fcntl');
    const daemon = await DaemonProcess.start(['--fd=3', '--source', share, '--xattr', ...NAMESPACE], { fd });
    assert.match(daemon.stderr, /on --fd 3/);
    await serves(await client(t, socket), share);
    const targets = readdirSync(`/proc/${daemon.pid}/fd`).map((entry) => readlinkSync(`/proc/${daemon.pid}/fd/${entry}`));
    assert.ok(!targets.includes('/'), targets.join(' '));
    assert.ok(!existsSync(`/proc/${daemon.pid}/root/.socket`), 'there is no socket to remove');
    assert.equal((await daemon.stop()).code, 0);
    assert.ok(existsSync(socket));
    for (const one of [fd, low, directory]) c.close(one);
  });

  test('with a socket from systemd it serves, and READY comes over an abstract address', async (t) => {
    const socket = place();
    const manager = datagramSocket(`\0bucketfsd-confine-${process.pid}`);
    const fd = unixSocket();
    assert.equal(bindUnix(fd, socket), 0);
    assert.equal(c.listen(fd, 4), 0);
    const wrapper = ['/bin/sh', '-c', 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$0" "$@"'];
    const env = { NOTIFY_SOCKET: `@bucketfsd-confine-${process.pid}` };
    const daemon = await DaemonProcess.start(['--source', share, '--xattr', ...NAMESPACE], { fd, wrapper, env });
    assert.match(daemon.stderr, /descriptor 3 from systemd/);
    await serves(await client(t, socket), share);
    await daemon.stop();
    assert.match(heard(manager).join('|'), new RegExp(`^READY=1\nSTATUS=Sharing ${share} on descriptor 3 from systemd\\|STOPPING=1`));
    for (const one of [fd, manager]) c.close(one);
  });

  test('what the host mounts into the share later appears there', async (t) => {
    const socket = place();
    const top = dirname(share);
    const mount = (...args: string[]): void => void execFileSync('mount', args);
    mount('--bind', top, top);
    mount('--make-private', top);
    mount('--make-shared', top);
    t.after(() => execFileSync('umount', ['-R', '-l', top]));
    mkdirSync(join(share, 'later'));
    const daemon = await start(socket);
    mount('-t', 'tmpfs', 'test', join(share, 'later'));
    writeFileSync(join(share, 'later', 'file'), '');
    const guest = await client(t, socket);
    assert.deepEqual(await guest.list((await guest.lookup(1n, 'later')).node), ['file']);
    await daemon.stop();
  });

  test('after a start that failed inside neither socket nor pid file is left', async () => {
    const socket = place();
    // devpts has no file handles, which is found out only by the daemon inside
    const daemon = new DaemonProcess(['--socket-path', socket, '--source', '/dev/pts', '--inode-file-handles=mandatory', ...NAMESPACE]);
    assert.equal((await daemon.ended).code, 1);
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });

  test('the variable of the handover from outside does not count for another process, and for this one it is refused', async () => {
    const socket = place();
    const file = `${socket}.handover`;
    const [listener, options] = [{ fd: 3, pidFd: null, name: 'x', path: null }, { sandbox: 'namespace', uidMap: [], rlimitNofile: null }];
    writeFileSync(file, JSON.stringify({ options, stage: 'confined', source: '/', share: '/', hasRoot: true, gaps: [], listener, notifyFd: -1, syslogFd: -1 }));
    const daemon = await start(socket, NAMESPACE, { env: { BUCKETFSD_HANDOVER: '1:0' } });
    assert.notEqual(daemon.namespaces('mnt')[0], readlinkSync('/proc/self/ns/mnt'));
    assert.ok(!readFileSync(`/proc/${daemon.pid}/environ`, 'utf8').includes('BUCKETFSD_HANDOVER=1:'));
    await daemon.stop();
    const wrapper = ['/bin/sh', '-c', `BUCKETFSD_HANDOVER=$$:9 exec "$0" "$@" 9<${file}`];
    await new DaemonProcess(['--socket-path', socket, '--source', share, ...NAMESPACE], { wrapper, fd: 0 }).fails(1, /BUCKETFSD_HANDOVER is set/);
  });

  test('without CAP_SYS_ADMIN it is one sentence that says what to do, and nothing is left behind', async () => {
    const socket = place();
    const wrapper = ['setpriv', '--bounding-set', '-sys_admin'];
    await new DaemonProcess(['--socket-path', socket, '--source', share, ...NAMESPACE], { wrapper })
      .fails(1, /--sandbox=namespace needs CAP_SYS_ADMIN, .*: use --sandbox=none and confine the daemon from outside/);
    await new DaemonProcess(['--socket-path', socket, '--source', share, ...NAMESPACE], { wrapper: ['setpriv', '--bounding-set', '-setpcap'] })
      .fails(1, /cannot give up capabilities without CAP_SETPCAP/);
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });
});

describe('by default', { skip: !ROOT && 'needs root' }, () => {
  test('root has the sandbox and the filter, and nothing is to be said of it', async (t) => {
    const socket = place();
    const daemon = await start(socket, []);
    await serves(await client(t, socket), share);
    assert.notEqual(daemon.namespaces('mnt')[0], readlinkSync('/proc/self/ns/mnt'));
    const set = KEPT.toString(16).padStart(16, '0');
    assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs'), daemon.status('CapEff')], [['2'], ['1'], [set]]);
    assert.doesNotMatch(daemon.stderr, /sandbox|seccomp|Landlock|within reach/);
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });

  test('where root may not have all of it, it serves with the rest, and one line says what is missing', async (t) => {
    for (const [missing, sentence] of [['sys_admin', /needs CAP_SYS_ADMIN/], ['setpcap', /without CAP_SETPCAP/], ['sys_admin,-setpcap', /without CAP_SETPCAP.*; .*needs CAP_SYS_ADMIN/]] as const) {
      const socket = place();
      const daemon = await start(socket, [], { wrapper: ['setpriv', '--bounding-set', `-${missing}`] });
      await serves(await client(t, socket), share);
      assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs')], [['2'], ['1']], missing);
      const lines = daemon.stderr.split('\n').filter((line) => line.includes('the sandbox is incomplete'));
      assert.equal(lines.length, 1, daemon.stderr);
      assert.match(lines[0], sentence);
      assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
      assert.deepEqual(readdirSync(dirname(socket)), []);
    }
  });

  test('where Landlock cannot be had, though the kernel has it, it serves without', { skip: landlockVersion() < 6 && 'needs Linux 6.12' }, async (t) => {
    // As many domains as there may be; of file systems: whoever is in one that has rules for them may mount nothing
    for (const [files, sentence] of [['0', /the sandbox is incomplete: Landlock cannot be set up \(.*E2BIG/], ['1', /cannot be set up here \(mount .*; Landlock cannot be set up/]] as const) {
      for (const args of files === '0' ? [[], NAMESPACE] : [[]]) {
        const socket = place();
        const daemon = await start(socket, args, { wrapper: [process.execPath, LAYERS, files] });
        await serves(await client(t, socket), share);
        assert.match(daemon.stderr, sentence);
        assert.equal(daemon.namespaces('mnt')[0] === readlinkSync('/proc/self/ns/mnt'), false);
        assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
        assert.deepEqual(readdirSync(dirname(socket)), []);
      }
    }
  });

  test('a share on a read-only mount, as the unit has it without its drop-in, is served, and a line says what is to be done', async (t) => {
    const socket = place();
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'test', share]);
    t.after(() => execFileSync('umount', ['-l', share]));
    for (const args of [[], ['--sandbox=none']]) {
      const daemon = await start(socket, args);
      assert.match(daemon.stderr, new RegExp(`${share} is on a read-only mount, .* ReadWritePaths=`));
      assert.equal((await daemon.stop()).code, 0);
    }
    const quiet = await start(socket, ['--readonly']);
    assert.doesNotMatch(quiet.stderr, /is on a read-only mount/);
    assert.equal((await quiet.stop()).code, 0);
  });

  test('another user has neither', async () => {
    const socket = place();
    for (const path of [dirname(share), share, dirname(socket)]) chownSync(path, 65534, 65534);
    chmodSync(dir, 0o755);
    const daemon = await start(socket, [], { uid: 65534 });
    assert.deepEqual([daemon.status('Seccomp'), daemon.namespaces('mnt')], [['0'], [readlinkSync('/proc/self/ns/mnt')]]);
    assert.equal((await daemon.stop()).code, 0);
  });
});

describe('--seccomp alone', () => {
  test('every thread is under the filter, in the namespaces of the host, and no ring of libuv is left', async (t) => {
    const socket = place();
    const daemon = await start(socket, ['--sandbox=none', '--seccomp=kill', '--thread-pool-size=2']);
    await serves(await client(t, socket), share);
    assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs')], [['2'], ['1']]);
    assert.deepEqual(daemon.namespaces('mnt'), [readlinkSync('/proc/self/ns/mnt')]);
    const targets = readdirSync(`/proc/${daemon.pid}/fd`).map((entry) => readlinkSync(`/proc/${daemon.pid}/fd/${entry}`));
    assert.ok(!targets.some((target) => target.includes('io_uring')), targets.join(' '));
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });
});

describe('--syslog', { skip: !ROOT && 'needs root' }, () => {
  /** A /dev for the daemon alone, made of a directory of the test's. */
  const devices = (folder: string): string[] => {
    for (const file of ['null', 'log-is-not-here']) writeFileSync(join(folder, file), '');
    return ['unshare', '--mount', '/bin/sh', '-c', `mount --bind /dev/null ${folder}/null && mount --rbind ${folder} /dev && exec "$0" "$@"`];
  };

  for (const args of [['--sandbox=none'], NAMESPACE]) {
    test(`lines go to /dev/log and not to standard error ${args.join(' ')}`, async (t) => {
      const socket = place();
      const folder = dirname(share);
      const log = datagramSocket(join(folder, 'log'));
      const daemon = new DaemonProcess(['--socket-path', socket, '--source', share, '--syslog', ...args], { wrapper: devices(folder) });
      const lines: string[] = [];
      for (const deadline = Date.now() + 20_000; lines.length === 0 && Date.now() < deadline; await sleep(20)) lines.push(...heard(log));
      assert.match(lines.join('|'), new RegExp(`^<30>[A-Z][a-z]{2} [ \\d]\\d \\d\\d:\\d\\d:\\d\\d bucketfsd\\[${daemon.pid}\\]: sharing ${share} on ${socket} \\{"source":`));
      await client(t, socket);
      assert.equal((await daemon.stop()).code, 0);
      assert.match(heard(log).join('|'), /: stopping \{"reason":"SIGTERM"\}/);
      assert.equal(daemon.stderr, '');
      c.close(log);
    });
  }

  test('without /dev/log there is a warning, and the share is served with its log on standard error', async (t) => {
    const socket = place();
    const daemon = await DaemonProcess.start(['--socket-path', socket, '--source', share, '--xattr', '--syslog'], { wrapper: devices(dirname(share)) });
    assert.match(daemon.stderr, /"level":40[^\n]*--syslog: nobody listens at \/dev\/log/);
    await serves(await client(t, socket), share);
    assert.equal((await daemon.stop()).code, 0);
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });
});

describe('--modcaps', { skip: !ROOT && 'needs root' }, () => {
  const capabilities = (daemon: DaemonProcess): bigint[] => [...daemon.status('CapBnd'), ...daemon.status('CapEff')].map((set) => BigInt(`0x${set}`));

  test('adds to and takes from what a confined daemon keeps', async () => {
    const daemon = await start(place(), [...NAMESPACE, '--modcaps=+sys_admin:-CAP_mknod']);
    assert.deepEqual(capabilities(daemon), [(KEPT | SYS_ADMIN) & ~MKNOD, (KEPT | SYS_ADMIN) & ~MKNOD]);
    await daemon.stop();
  });

  test('works without a sandbox, in the namespaces of the host', async (t) => {
    const socket = place();
    const daemon = await start(socket, ['--sandbox=none', '--modcaps=-mknod']);
    assert.deepEqual(capabilities(daemon), [(KEPT | DAC_READ_SEARCH) & ~MKNOD, (KEPT | DAC_READ_SEARCH) & ~MKNOD], 'without a sandbox files may be opened by handle');
    assert.deepEqual(daemon.namespaces('mnt'), [readlinkSync('/proc/self/ns/mnt')]);
    const guest = await client(t, socket);
    await serves(guest, share);
    const device = await guest.call(OP.MKNOD, 1n, concat(u32(0o020644, 0x103, 0, 0), name('null')), 128);
    assert.equal(device.error, -1, 'EPERM');
    await daemon.stop();
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });

  test('an unknown name, a missing sign, and a capability that is not there are refused', async () => {
    const base = ['--socket-path', place(), '--source', share];
    for (const list of ['+bogus', 'mknod', '', '+mknod:', '+mknod,-chown']) {
      await new DaemonProcess([...base, '-o', `modcaps=${list.replaceAll(',', ',,')}`]).fails(2, /modcaps (takes names of capabilities|needs a value)/);
    }
    await new DaemonProcess([...base, '--modcaps=+sys_boot'], { wrapper: ['setpriv', '--bounding-set', '-sys_boot'] }).fails(1, /wants to keep CAP_SYS_BOOT, which the daemon does not have/);
    await new DaemonProcess([...base, '--modcaps=-mknod'], { uid: 65534 }).fails(1, /--modcaps needs root|no permission/);
    assert.ok(statSync(share).isDirectory());
  });
});
