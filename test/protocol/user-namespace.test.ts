/** The daemon in a user namespace of its own, by --sandbox=namespace of an ordinary user or by --uid-map. */
import assert from 'node:assert/strict';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { after, before, describe, test, type TestContext } from 'node:test';
import { DaemonProcess, killDaemons, type StartOptions } from '../support/daemon.js';
import { concat, u32 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { client, KEPT, NAMESPACE, serves } from '../support/sandbox.js';

const ROOT = process.getuid?.() === 0;

let dir = '';
let share = '';
before(() => {
  dir = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-userns-')));
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

describe('a user namespace', { skip: !ROOT && 'needs root' }, () => {
  const USER = 65534;
  const HOST_ID = 100_000;

  function placeFor(id: number): string {
    const socket = place();
    chmodSync(dir, 0o755);
    for (const directory of [share, dirname(socket)]) chownSync(directory, id, id);
    return socket;
  }

  async function mapped(t: TestContext, socket: string, daemon: DaemonProcess, id: number, count: number): Promise<void> {
    for (const file of ['uid_map', 'gid_map']) {
      assert.deepEqual(readFileSync(`/proc/${daemon.pid}/${file}`, 'utf8').trim().split(/\s+/).map(Number), [0, id, count], file);
    }
    for (const kind of ['user', 'mnt', 'net', 'ipc']) {
      assert.equal(daemon.namespaces(kind).length, 1);
      assert.notEqual(daemon.namespaces(kind)[0], readlinkSync(`/proc/self/ns/${kind}`), kind);
    }
    assert.deepEqual(daemon.status('CapEff').map((set) => BigInt(`0x${set}`)), [KEPT]);
    const guest = await client(t, socket);
    await serves(guest, share);
    assert.equal(statSync(join(share, 'renamed')).uid, id, "the guest's root is the host's user");
    guest.uid = guest.gid = count;
    assert.ok([-1, -13].includes((await guest.call(OP.CREATE, 1n, concat(u32(0o102, 0o100644, 0o22, 0), name('other')), 144)).error), 'an id that is not mapped');
    assert.equal(readFileSync(`/proc/${daemon.pid}/task/${daemon.pid}/children`, 'utf8'), '', 'no process is left');
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
    assert.deepEqual(readdirSync(dirname(socket)), []);
  }

  test('an ordinary user gets one with its own id as root', async (t) => {
    const socket = placeFor(USER);
    await mapped(t, socket, await start(socket, NAMESPACE, { uid: USER }), USER, 1);
  });

  test('naming its own id changes nothing', async (t) => {
    const socket = placeFor(USER);
    const maps = [`--uid-map=:0:${USER}:1:`, `--gid-map=:0:${USER}:1:`];
    await mapped(t, socket, await start(socket, [...NAMESPACE, ...maps], { uid: USER }), USER, 1);
  });

  test('root gives it the ids of --uid-map and --gid-map', async (t) => {
    const socket = placeFor(HOST_ID);
    const maps = [`--uid-map=:0:${HOST_ID}:1000:`, `--gid-map=:0:${HOST_ID}:1000:`];
    await mapped(t, socket, await start(socket, [...NAMESPACE, ...maps]), HOST_ID, 1000);
  });

  test('a creation with a group that is not mapped is refused, not made with another group', async (t) => {
    const socket = placeFor(HOST_ID);
    const daemon = await start(socket, [...NAMESPACE, `--uid-map=:0:${HOST_ID}:1000:`, `--gid-map=:0:${HOST_ID}:10:`]);
    const guest = await client(t, socket);
    guest.gid = 9;
    await guest.create(1n, 'known');
    assert.equal(statSync(join(share, 'known')).gid, HOST_ID + 9);
    guest.gid = 10;
    assert.equal((await guest.call(OP.CREATE, 1n, concat(u32(0o102, 0o100644, 0o22, 0), name('unknown')), 144)).error, -1);
    assert.ok(!existsSync(join(share, 'unknown')));
    await daemon.stop();
  });

  test('a share, or a directory of the socket, that the host id may not enter is one sentence', async () => {
    const socket = placeFor(HOST_ID);
    const args = ['--socket-path', socket, '--source', share, ...NAMESPACE, `--uid-map=:0:${HOST_ID}:10:`, `--gid-map=:0:${HOST_ID}:10:`];
    for (const [closed, sentence] of [[share, new RegExp(`cannot share ${share}: no permission`)], [dirname(socket), /cannot reach .* any more \(EACCES\)/]] as const) {
      chownSync(closed, 0, 0);
      chmodSync(closed, 0o700);
      await new DaemonProcess(args).fails(1, sentence);
      chownSync(closed, HOST_ID, HOST_ID);
    }
  });

  test('ids that the user may not have, no unshare(1), and a missing half are one sentence each, and nothing is left', async () => {
    const socket = placeFor(USER);
    const base = ['--socket-path', socket, '--source', share];
    const maps = [`--uid-map=:0:${USER}:1:`, '--uid-map=:1:3000000000:7:', `--gid-map=:0:${USER}:1:`];
    await new DaemonProcess([...base, ...NAMESPACE, ...maps], { uid: USER }).fails(1, /need newuidmap: install|cannot be used \(newuidmap: .*\/etc\/subuid/);
    await new DaemonProcess([...base, ...NAMESPACE], { uid: USER, env: { PATH: '/nonexistent' } }).fails(1, /needs unshare\(1\)/);
    await new DaemonProcess([...base, ...NAMESPACE, '--uid-map=:0:1:1:']).fails(2, /--uid-map and --gid-map are given together/);
    await new DaemonProcess([...base, '--sandbox=none', '--uid-map=:0:1:1:', '--gid-map=:0:1:1:']).fails(2, /need --sandbox=namespace/);
    assert.deepEqual(readdirSync(dirname(socket)), []);
  });
});
