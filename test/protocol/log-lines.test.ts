/** What the real daemon writes at which level, how a line says how important it is, and that SIGHUP is no end. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { DaemonProcess, killDaemons, MAIN, type StartOptions } from '../support/daemon.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, OP, name } from '../support/guest.js';

const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-lines-'));
const shared = join(directory, 'shared');
mkdirSync(shared);
const socket = join(directory, 'socket');
after(() => {
  killDaemons();
  rmSync(directory, { recursive: true, force: true });
});

interface Line {
  readonly level: number;
  readonly msg: string;
  readonly [field: string]: unknown;
}

/** A daemon on `source`, a guest that uses it, and the lines after the daemon has ended. */
async function lines(args: readonly string[], use: (guest: FuseClient) => Promise<void>, options: StartOptions = {}): Promise<Line[]> {
  const daemon = await DaemonProcess.start(['--socket-path', socket, ...args], options);
  const guest = await FuseClient.connect(socket);
  await use(guest);
  guest.disconnect();
  assert.equal((await daemon.stop()).code, 0, daemon.stderr);
  guest.free();
  return daemon.stderr.trimEnd().split('\n').map((line) => JSON.parse(line) as Line);
}

const ROOT = 1n;
const content = new TextEncoder().encode('content');

/** A name that is not there, a new file, content, fsync in the pool, another name. */
async function useFiles(guest: FuseClient): Promise<void> {
  assert.equal((await guest.call(OP.LOOKUP, ROOT, name('no\n"such'), 128)).error, -E.NOENT);
  const { entry, fh } = await guest.create(ROOT, 'made');
  assert.equal((await guest.call(OP.WRITE, entry.node, concat(u64(fh, 0), u32(content.length, 0), u64(0), u32(0, 0), content), 8)).error, 0);
  assert.equal((await guest.call(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0)), 0)).error, 0);
  assert.equal((await guest.call(OP.FLUSH, entry.node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  assert.equal((await guest.call(OP.RENAME, ROOT, concat(u64(1), name('made'), name('moved')), 0)).error, 0);
}

describe('--log-level', () => {
  test('trace has a line for each request: opcode, node, names, result or errno, microseconds', async () => {
    const all = await lines(['--source', shared, '--log-level=trace'], useFiles);
    const requests = all.filter(({ level, opcode }) => level === 10 && typeof opcode === 'string');
    const of = (opcode: string): Line => requests.find((line) => line.opcode === opcode)!;
    assert.deepEqual(requests.map(({ opcode }) => opcode), ['INIT', 'LOOKUP', 'CREATE', 'WRITE', 'FSYNC', 'FLUSH', 'RENAME']);
    assert.deepEqual([of('LOOKUP').name, of('LOOKUP').error, of('LOOKUP').node], ['no\n"such', 'ENOENT', 1]);
    assert.deepEqual([of('WRITE').result, of('WRITE').name], [content.length, undefined], 'no name of a former request');
    assert.deepEqual([of('FSYNC').result, of('FSYNC').name], [0, undefined], 'answered later');
    assert.deepEqual([of('RENAME').name, of('RENAME').name2], ['made', 'moved']);
    for (const { us } of requests.slice(1)) assert.ok(Number.isSafeInteger(us) && (us as number) >= 0);
  });

  test('trace has the requests of the session as well: INIT, FORGET alone and in batches, INTERRUPT, DESTROY, and what nobody knows', async () => {
    mkdirSync(join(shared, 'one'), { recursive: true });
    let node = 0;
    const all = await lines(['--source', shared, '--log-level=trace'], async (guest) => {
      const { node: found } = await guest.lookup(ROOT, 'one');
      await guest.lookup(ROOT, 'one');
      node = Number(found);
      for (const [opcode, of, args] of [[OP.FORGET, found, u64(1)], [OP.BATCH_FORGET, 0n, concat(u32(1, 0), u64(found, 1))]] as const) {
        guest.queue.chain([guest.request(opcode, of, args).bytes], []);
        guest.queue.kick();
        await guest.queue.wait();
      }
      assert.equal((await guest.call(OP.INTERRUPT, 0n, u64(4711), 0)).error, -E.AGAIN);
      assert.equal((await guest.call(77, ROOT)).error, -E.NOSYS);
      assert.equal((await guest.call(OP.DESTROY, 0n, new Uint8Array(0), 0)).error, 0);
    });
    const told = all.filter(({ level, opcode }) => level === 10 && typeof opcode === 'string' && opcode !== 'LOOKUP')
      .map(({ opcode, node, lookups, unique, minor, error, result }) => [opcode, ...[node, lookups, unique, minor, error, result].filter((field) => field !== undefined)]);
    assert.deepEqual(told, [['INIT', 45, 0], ['FORGET', node, 1], ['FORGET', node, 1], ['INTERRUPT', 4711, 'EAGAIN'], ['opcode 77', 'ENOSYS'], ['DESTROY', 0]]);
  });

  test('debug has none of these, and what changes a bucket; trace also what only asks it', async () => {
    for (const level of ['info', 'debug', 'trace'] as const) {
      const all = await lines(['--source', 'memory:', `--log-level=${level}`], useFiles);
      const calls = all.filter(({ operation, msg }) => operation !== undefined && /: (done|failed)$/.test(msg));
      const put = calls.find(({ operation, msg }) => operation === 'put' && msg.includes('/made:'));
      assert.equal(put !== undefined, level !== 'info', level);
      if (put !== undefined) assert.deepEqual([put.level, put.bytes, typeof put.ms], [20, content.length, 'number']);
      assert.equal(calls.some((call) => call.level === 10 && ['head', 'list', 'fetch'].includes(String(call.operation))), level === 'trace', level);
      assert.equal(all.some(({ opcode }) => opcode === 'LOOKUP'), level === 'trace', level);
    }
  });
});

describe('lines to the journal', () => {
  /** As systemd starts a service whose standard error is the journal's. */
  const journal = ['sh', '-c', 'JOURNAL_STREAM=$(stat -L -c %d:%i /proc/self/fd/2) exec "$0" "$@"'];

  test('begin with their severity, and elsewhere with none', async () => {
    const args = ['--socket-path', socket, '--source', shared, '--migration-mode=file-handles'];
    const daemon = await DaemonProcess.start(args, { wrapper: journal });
    await daemon.stop();
    for (const line of daemon.stderr.trimEnd().split('\n')) {
      const [, severity, level] = /^<(\d)>\{"level":(\d+),/.exec(line) ?? assert.fail(line);
      assert.equal(severity, { 30: '6', 40: '4' }[level], line);
    }
    assert.match(daemon.stderr, /^<4>/m, 'a warning');
    const other = await DaemonProcess.start(args, { env: { JOURNAL_STREAM: '1:1' } });
    await other.stop();
    assert.doesNotMatch(other.stderr, /^</m);
  });

  test('of a start that fails are errors', async () => {
    const daemon = new DaemonProcess(['--socket-path', socket, '--source', join(directory, 'none')], { wrapper: journal });
    assert.equal((await daemon.ended).code, 1);
    assert.match(daemon.stderr, /^<3>bucketfsd: cannot share [^\n]+\n$/);
  });
});

test('SIGHUP never ends it, and a line says so', async () => {
  const daemon = await DaemonProcess.start(['--socket-path', socket, '--source', shared]);
  process.kill(daemon.pid, 'SIGHUP');
  await daemon.until(/SIGHUP changes nothing/);
  const guest = await FuseClient.connect(socket);
  process.kill(daemon.pid, 'SIGHUP');
  assert.equal((await guest.call(OP.GETATTR, ROOT, new Uint8Array(16))).error, 0);
  guest.disconnect();
  assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
  guest.free();
});

test('what is printed ends without a stack trace where its reader has gone, or has no room', async () => {
  const env = { ...process.env, NODE_TEST_CONTEXT: undefined };
  const { status, stderr } = spawnSync('sh', ['-c', '"$0" "$1" --help >/dev/full', process.execPath, MAIN], { encoding: 'utf8', env });
  assert.equal(status, 1);
  assert.match(stderr, /^bucketfsd: cannot write to standard output: [^\n]+\n$/);
  const child = spawn(process.execPath, [MAIN, '--help'], { stdio: ['ignore', 'pipe', 'pipe'], env });
  child.stdout.destroy();
  let said = '';
  child.stderr.on('data', (chunk) => (said += String(chunk)));
  assert.deepEqual([await once(child, 'close'), said], [[0, null], '']);
});
