/**
 * The command lines that other programs start virtiofsd with, as their sources and documents have them, are accepted, mean what virtiofsd 1.14
 * makes of them, and get a daemon that says that it listens.
 *
 * What else fails for the same reason (a caller says something that the table of options does not have): aliases that virtiofsd deprecated
 * (--socket, fallback, -o loglevel), a value after = only (a path behind --posix-acl is no value), variables of the environment that a service
 * manager sets, a place for logs that is not there. Each has a row or a test here.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { parseCommandLine, type Options } from '../../src/cli.js';
import * as c from '../../src/ffi/libc.js';
import { bindUnix, unixSocket } from '../../src/ffi/socket.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { FuseClient, OP } from '../support/guest.js';

const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-callers-'));
const shared = join(directory, 'shared');
mkdirSync(shared);
after(() => {
  killDaemons();
  rmSync(directory, { recursive: true, force: true });
});

const SOCKET = join(directory, 'daemon', 'vfs.sock');
mkdirSync(join(directory, 'daemon'));

interface Caller {
  readonly caller: string;
  /** DIR and SOCKET stand for paths, FD for the number of an inherited socket. */
  readonly line: string;
  readonly meaning: Partial<Omit<Options, 'listen'>>;
  /** LISTEN_FDS is set for the daemon. */
  readonly systemd?: true;
  /** The group is not on this machine, or ids that it takes a helper for. */
  readonly parsedOnly?: true;
}

const never = { posixAcl: 'never', securityLabel: 'never' } as const;
const FIND_PATHS = { migrationMode: 'find-paths', migrationOnError: 'guest-error' } as const;

const CALLERS: readonly Caller[] = [
  { caller: 'libvirt 9.0 (qemu_virtiofs.c), one -o list', line: '--fd=FD -o source=DIR,cache=always,sandbox=chroot,xattr,no_flock,no_posix_lock --thread-pool-size=8 -d',
    meaning: { cache: 'always', xattr: true, flock: false, posixLock: false, threadPoolSize: 8, logLevel: 'debug' } },
  { caller: 'libvirt 9.0 with locks', line: '--fd=FD -o source=DIR,cache=none,no_xattr,flock,posix_lock', meaning: { cache: 'never', xattr: false, flock: true, posixLock: true } },
  { caller: 'libvirt 10 to 12, separate options', line: '--fd=FD --shared-dir DIR --cache never --sandbox namespace --xattr --readonly --thread-pool-size=2 --rlimit-nofile=4096 --log-level debug',
    meaning: { cache: 'never', sandbox: 'namespace', xattr: true, readonly: true, threadPoolSize: 2, rlimitNofile: 4096, logLevel: 'debug' } },
  { caller: 'libvirt 10 to 12, a session daemon with ids', line: '--fd=FD --shared-dir DIR --uid-map=:0:1000:1: --uid-map=:1:100000:65536: --gid-map=:0:1000:1: --gid-map=:1:100000:65536:',
    meaning: { sandbox: 'auto', uidMap: [':0:1000:1:', ':1:100000:65536:'], gidMap: [':0:1000:1:', ':1:100000:65536:'] }, parsedOnly: true },
  { caller: 'Kata Containers 2, Go', line: '--fd=FD -o source=DIR -o cache=auto --syslog -o no_posix_lock -f --thread-pool-size=1 -o announce_submounts',
    meaning: { cache: 'auto', syslog: true, posixLock: false, threadPoolSize: 1, announceSubmounts: true } },
  { caller: 'Kata Containers 3, Go (virtiofsd.go, configuration.toml)', line: '--syslog --cache=auto --shared-dir=DIR --fd=FD --inode-file-handles=prefer --thread-pool-size=1 --announce-submounts',
    meaning: { syslog: true, cache: 'auto', inodeFileHandles: 'prefer', threadPoolSize: 1, announceSubmounts: true } },
  { caller: 'Kata Containers, Go, with live migration', line: '--syslog --cache=never --shared-dir=DIR --fd=FD --migration-mode=find-paths --migration-on-error=guest-error',
    meaning: { cache: 'never', ...FIND_PATHS } },
  { caller: 'Kata Containers, runtime-rs (share_virtio_fs_standalone.rs)',
    line: '--socket-path SOCKET --shared-dir DIR --cache auto --sandbox none --seccomp none --inode-file-handles prefer --thread-pool-size=1 --announce-submounts --xattr',
    meaning: { cache: 'auto', sandbox: 'none', seccomp: 'none', inodeFileHandles: 'prefer', threadPoolSize: 1, xattr: true } },
  { caller: 'KubeVirt 1.6 on', line: '--socket-path=SOCKET --shared-dir=DIR --sandbox=none --cache=auto --migration-on-error=guest-error --migration-mode=find-paths --migration-verify-handles',
    meaning: { sandbox: 'none', cache: 'auto', ...FIND_PATHS, migrationVerifyHandles: true } },
  { caller: 'KubeVirt before', line: '--socket-path=SOCKET --shared-dir=DIR --cache=auto --sandbox=chroot --xattr', meaning: { cache: 'auto', xattr: true } },
  { caller: 'KubeVirt at first', line: '--socket-path=SOCKET -o source=DIR -o sandbox=chroot -o xattr -o xattrmap=:map::user.virtiofsd.:', meaning: { xattr: true, xattrmap: ':map::user.virtiofsd.:' } },
  { caller: 'lima (qemu.go)', line: '--socket-path SOCKET --shared-dir DIR', meaning: { cache: 'auto', readonly: false, ...never } },
  { caller: 'Incus 6.0 LTS', line: '--fd=3 --cache=never -o source=DIR', meaning: { cache: 'never' } },
  { caller: 'Incus 7 (device_utils_disk.go)', line: '--fd=FD --cache=metadata --shared-dir=DIR --posix-acl=auto', meaning: { cache: 'metadata', posixAcl: 'auto', xattr: true } },
  { caller: 'Incus 7, a virtiofsd without negotiation', line: '--fd=FD --cache=never --shared-dir=DIR --posix-acl', meaning: { posixAcl: 'always', xattr: true } },
  { caller: 'Incus 7 with ids', line: '--fd=FD --cache=never --shared-dir=DIR --translate-uid=map:0:1000000:1000 --translate-uid=forbid-guest:1000:4294966295 --translate-gid=map:0:1000000:1000 --translate-gid=forbid-guest:1000:4294966295',
    meaning: { translateUid: ['map:0:1000000:1000', 'forbid-guest:1000:4294966295'], translateGid: ['map:0:1000000:1000', 'forbid-guest:1000:4294966295'] } },
  { caller: 'mkosi (qemu.py), which counts descriptors as systemd does', line: '--shared-dir DIR --xattr --no-announce-submounts --sandbox=chroot --inode-file-handles=prefer --security-label --fd FD', systemd: true,
    meaning: { xattr: true, announceSubmounts: false, inodeFileHandles: 'prefer', securityLabel: 'always' } },
  { caller: 'mkosi before, by an ordinary user', line: '--shared-dir DIR --xattr --no-announce-submounts --uid-map :0:1000:1: --gid-map :0:1000:1: --fd FD', meaning: { sandbox: 'auto', uidMap: [':0:1000:1:'], gidMap: [':0:1000:1:'] }, parsedOnly: true },
  { caller: 'systemd-vmspawn (vmspawn.c)', line: '--shared-dir DIR --xattr --fd FD --no-announce-submounts --log-level=error --modcaps=-mknod --translate-uid map:0:1000:65536 --translate-gid map:0:1000:65536',
    meaning: { xattr: true, announceSubmounts: false, logLevel: 'error', modcaps: '-mknod', translateUid: ['map:0:1000:65536'] } },
  { caller: 'a service with a socket unit, virtiofsd --fd=3', line: '--fd=3 --shared-dir DIR', systemd: true, meaning: {} },
  { caller: 'nixpkgs, vmTools', line: '--xattr --socket-path SOCKET --sandbox none --seccomp none --shared-dir DIR', meaning: { xattr: true, sandbox: 'none', seccomp: 'none' } },
  { caller: 'microvm.nix', line: '--socket-path=SOCKET --socket-group=kvm --shared-dir=DIR --rlimit-nofile 1048576 --thread-pool-size 8 --posix-acl --xattr --cache=auto --inode-file-handles=mandatory --tag=store --readonly',
    meaning: { rlimitNofile: 1048576, threadPoolSize: 8, posixAcl: 'always', xattr: true, inodeFileHandles: 'mandatory', tag: 'store', readonly: true }, parsedOnly: true },
  { caller: "Cloud Hypervisor's docs/fs.md", line: '--log-level debug --socket-path=SOCKET --shared-dir=DIR --cache=never --thread-pool-size=4', meaning: { logLevel: 'debug', cache: 'never', threadPoolSize: 4 } },
  { caller: 'Proxmox VE (Virtiofs.pm)', line: '--fd=FD --shared-dir=DIR --xattr --posix-acl --announce-submounts --allow-direct-io --cache=metadata --syslog', meaning: { cache: 'metadata', posixAcl: 'always', allowDirectIo: true, syslog: true } },
  { caller: 'virtme-ng', line: '--syslog --no-announce-submounts --socket-path SOCKET --shared-dir DIR --sandbox none -o cache=always', meaning: { syslog: true, announceSubmounts: false, sandbox: 'none', cache: 'always' } },
  { caller: 'a script on a large host', line: '--socket-path SOCKET --shared-dir DIR --thread-pool-size=1024 --log-level=DEBUG --modcaps=+sys_admin:-CHOWN', meaning: { threadPoolSize: 1024, logLevel: 'debug' } },
  { caller: "the C daemon's manual, with what is deprecated now", line: '--socket=SOCKET -o source=DIR -o norace,loglevel=debug,security_label,killpriv_v2,no_posix_acl --inode-file-handles=fallback',
    meaning: { logLevel: 'debug', securityLabel: 'always', killprivV2: true, posixAcl: 'never', inodeFileHandles: 'prefer' } },
];

const words = (line: string, fd = 3): string[] => line.split(' ').map((word) => word.replace('SOCKET', SOCKET).replace('DIR', shared).replace('FD', String(fd)));

describe('the command line', () => {
  for (const { caller, line, meaning, systemd } of CALLERS) {
    test(`of ${caller} is accepted with its meaning`, () => {
      const command = parseCommandLine(words(line), systemd ? { LISTEN_FDS: '1', LISTEN_PID: '7' } : {}, 7);
      assert.ok(command.action === 'run');
      const { options } = command;
      const found = Object.fromEntries(Object.keys(meaning).map((key) => [key, options[key as keyof typeof meaning]]));
      assert.deepEqual(found, meaning);
      assert.equal(options.source.path, shared);
      if (line.includes('chroot')) assert.equal(options.sandbox, 'auto', 'the nearest that there is and can be had');
      if (line.includes('--fd')) assert.deepEqual(options.listen, { kind: 'fd', fd: 3, origin: '--fd' });
      else assert.ok(options.listen.kind === 'path' && options.listen.path === SOCKET);
    });
  }
});

/** A listening socket to inherit. */
function listening(name: string): number {
  const fd = unixSocket();
  c.check(bindUnix(fd, join(directory, name)), 'bind');
  c.check(c.listen(fd, 1), 'listen');
  return fd;
}

test('with --once the daemon ends with its first frontend, as virtiofsd does; without it the next one is served', async () => {
  for (const source of [shared, 'memory:']) {
    const daemon = await DaemonProcess.start(['--socket-path', SOCKET, '--source', source, '--once']);
    const guest = await FuseClient.connect(SOCKET);
    guest.disconnect();
    assert.deepEqual(await daemon.ended, { code: 0, signal: null }, daemon.stderr);
    assert.match(daemon.stderr, /the frontend has gone \(--once\)/);
    assert.ok(!existsSync(SOCKET) && !existsSync(`${SOCKET}.pid`));
    guest.free();
  }
  const daemon = await DaemonProcess.start(['--socket-path', SOCKET, '--source', shared]);
  for (let turn = 0; turn < 2; turn++) {
    const guest = await FuseClient.connect(SOCKET);
    guest.disconnect();
    await daemon.until(new RegExp(`(frontend connected[^]*){${turn + 1}}`));
    guest.free();
  }
  assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
});

const asRoot = process.getuid!() === 0 ? false : 'needs root';
/** Is there no daemon to hear datagrams, or can it be hidden? */
const WITHOUT_SYSLOG = existsSync('/dev/log') ? ['unshare', '--mount', 'sh', '-c', `mount --bind ${join(directory, 'nothing')} /dev/log && exec "$0" "$@"`] : [];
writeFileSync(join(directory, 'nothing'), '');

describe('the daemon', { skip: asRoot }, () => {
  test('of a container without CAP_SYS_ADMIN serves with --sandbox=chroot, and says what is missing', async () => {
    const wrapper = ['setpriv', '--bounding-set', '-sys_admin', '--inh-caps', '-sys_admin'];
    const daemon = new DaemonProcess(words('--socket-path=SOCKET --shared-dir=DIR --cache=auto --sandbox=chroot --xattr'), { wrapper });
    await daemon.until(/Waiting for vhost-user socket connection\.\.\./);
    assert.match(daemon.stderr, /"level":40[^\n]*sandbox/);
    const guest = await FuseClient.connect(SOCKET);
    assert.equal((await guest.call(OP.GETATTR, 1n, new Uint8Array(16))).error, 0);
    guest.disconnect();
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
    guest.free();
  });

  for (const { caller, line, systemd, parsedOnly } of CALLERS) {
    if (parsedOnly) continue;
    test(`of ${caller} says that it listens, and serves`, async () => {
      const name = `${CALLERS.findIndex((row) => row.caller === caller)}.sock`;
      const fd = line.includes('--fd') ? listening(name) : undefined;
      const byManager = ['sh', '-c', 'LISTEN_FDS=1 LISTEN_PID=$$ exec "$0" "$@"'];
      const daemon = new DaemonProcess(words(line), { wrapper: [...WITHOUT_SYSLOG, ...(systemd ? byManager : [])], ...(fd === undefined ? {} : { fd }) });
      // At level error virtiofsd says nothing either
      if (!line.includes('=error')) await daemon.until(/Waiting for vhost-user socket connection\.\.\./);
      const guest = await FuseClient.connect(fd === undefined ? SOCKET : join(directory, name));
      assert.equal((await guest.call(OP.GETATTR, 1n, new Uint8Array(16))).error, 0);
      guest.disconnect();
      assert.equal(/without effect: .*cannot migrate/.test(daemon.stderr), line.includes('--migration'), daemon.stderr);
      assert.equal(/"level":40[^\n]*--syslog: nobody listens at \/dev\/log/.test(daemon.stderr), line.includes('--syslog'), daemon.stderr);
      await daemon.stop();
      guest.free();
      if (fd !== undefined) c.close(fd);
    });
  }
});
