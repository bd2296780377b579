/**
 * A bucket's daemon in its sandbox: what it does without one it does in one, and where it cannot have one it says so and goes on. Tried: names by /etc/hosts and relative paths; credentials
 * in files that are replaced, also by a link beside them as the kubelet does it, and from a program; a cache directory that is reached by a link, that is full, and that a daemon which was
 * killed has left; a bucket in memory; a socket that is inherited; starts that fail or are ended; hosts where the rights, or Landlock, are missing. What it cannot reach: taken-over-bucket.test.ts.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { chmodSync, existsSync, mkdirSync, readdirSync, readFileSync, readlinkSync, realpathSync, renameSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { describe, test, type TestContext } from 'node:test';
import { E } from '../../src/base/errno.js';
import { landlockVersion } from '../../src/ffi/landlock.js';
import * as c from '../../src/ffi/libc.js';
import { bindUnix, unixSocket } from '../../src/ffi/socket.js';
import { BUCKET, BucketStarts, endOf, KEYS } from '../support/bucket-starts.js';
import { DaemonProcess, type StartOptions } from '../support/daemon.js';
import { GcsServer } from '../support/gcs/server.js';
import { FuseClient } from '../support/guest.js';
import { Files } from '../support/object-files.js';

const ROOT = process.getuid?.() === 0;
const NO_CAPABILITIES = '0'.repeat(16);
const DAC_OVERRIDE = '0000000000000002';
const place = new BucketStarts();
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

interface Place {
  readonly top: string;
  readonly socket: string;
  readonly cache: string;
}

/** A directory with one of its own for the socket. */
function fresh(): Place {
  const top = realpathSync(mkFresh());
  mkdirSync(join(top, 'run'));
  return { top, socket: join(top, 'run', 'socket'), cache: join(top, 'cache') };
}

function mkFresh(): string {
  const path = place.fresh();
  mkdirSync(path);
  return path;
}

const argsOf = ({ socket, cache }: Place, more: readonly string[] = []): string[] =>
  ['--socket-path', socket, ...BUCKET, '--endpoint', place.server.endpoint.replace('127.0.0.1', 'localhost'), '--path-style', '--cache-dir', cache, ...more];

const start = (at: Place, more: readonly string[] = [], options: StartOptions = {}): Promise<DaemonProcess> =>
  DaemonProcess.start(argsOf(at, more), { ...options, env: place.clean({ ...KEYS, ...options.env }) });

async function guestOf(t: TestContext, { socket }: Place): Promise<Files> {
  const client = await FuseClient.connect(socket);
  t.after(() => endOf(client));
  return new Files(client);
}

/** A file that is written and read, and one that somebody else has put. */
async function serves(files: Files, name = 'written'): Promise<void> {
  const file = await files.create(name);
  assert.equal(await files.write(file, 0, bytes('content')), 0);
  assert.equal(await files.fsync(file), 0);
  assert.equal(await files.close(file), 0);
  assert.equal((await place.server.store.head(name)).size, 7);
  await place.server.store.put(`put-${name}`, bytes('of somebody else'));
  assert.equal(String(await files.content(`put-${name}`)), 'of somebody else');
}

const isConfined = (daemon: DaemonProcess): boolean => daemon.namespaces('mnt')[0] !== readlinkSync('/proc/self/ns/mnt');

describe("a bucket's daemon that root starts", { skip: !ROOT && 'needs root' }, () => {
  test('is in a root of its own, without capabilities and under the filter, in the network of the host; it serves, and nothing is to be said of it', async (t) => {
    const at = fresh();
    const daemon = await start(at);
    await serves(await guestOf(t, at));
    assert.ok(isConfined(daemon));
    assert.deepEqual(daemon.namespaces('net'), [readlinkSync('/proc/self/ns/net')]);
    assert.deepEqual([daemon.status('CapBnd'), daemon.status('CapEff'), daemon.status('CapInh')], [[NO_CAPABILITIES], [NO_CAPABILITIES], [NO_CAPABILITIES]]);
    assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs')], [['2'], ['1']]);
    assert.doesNotMatch(daemon.stderr, /sandbox|seccomp|Landlock|within reach|read by the daemon/);
    assert.ok(readFileSync(join(at.cache, 'journal'), 'utf8').includes(readFileSync('/proc/sys/kernel/random/boot_id', 'utf8').trim()), 'it knows which boot this is');
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
    assert.deepEqual(readdirSync(dirname(at.socket)), []);
  });

  test('has its cache directory, its program and what connections need in its root, and nothing else', async () => {
    const at = fresh();
    const daemon = await start(at);
    const mounts = readFileSync(`/proc/${daemon.pid}/mountinfo`, 'utf8').trimEnd().split('\n').map((line) => line.split(' '));
    const writable = mounts.filter((fields) => fields[5].split(',').includes('rw')).map((fields) => fields[4]).sort();
    assert.deepEqual(writable, ['/.socket', at.cache, '/dev/null'].sort());
    for (const fields of mounts) if (fields[4] !== '/dev/null') for (const flag of ['nosuid', 'nodev']) assert.ok(fields[5].split(',').includes(flag), `${fields[4]} is ${flag}`);
    const seen = (path: string): string[] => readdirSync(join(`/proc/${daemon.pid}/root`, path));
    assert.deepEqual(seen(dirname(at.cache)), ['cache']);
    for (const path of ['/etc/shadow', '/etc/passwd', '/etc/ssl/private', '/root', '/proc/1', '/bin/sh', '/sys/kernel']) assert.ok(!existsSync(join(`/proc/${daemon.pid}/root`, path)), path);
    assert.ok(seen('/etc').includes('hosts'));
    assert.equal((await daemon.stop()).code, 0);
  });

  test('has no root of its own with --sandbox=none, nor a filter with --seccomp=none as well', async (t) => {
    for (const [args, filter] of [[['--sandbox=none'], '0'], [['--sandbox=none', '--seccomp=kill'], '2'], [['--seccomp=none'], '0']] as const) {
      const at = fresh();
      const daemon = await start(at, args);
      await serves(await guestOf(t, at), args.join());
      assert.deepEqual([isConfined(daemon), daemon.status('Seccomp')], [args[0] !== '--sandbox=none', [filter]]);
      assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
      assert.deepEqual(readdirSync(dirname(at.socket)), []);
    }
  });

  test('finds a cache directory behind a link, and files by relative paths', async (t) => {
    const at = fresh();
    mkdirSync(join(at.top, 'real'), { mode: 0o700 });
    symlinkSync('real', at.cache);
    const daemon = await start({ ...at, cache: 'cache', socket: 'run/socket' }, [], { cwd: at.top, env: { AWS_CONFIG_FILE: 'config', NODE_EXTRA_CA_CERTS: undefined } });
    await serves(await guestOf(t, at));
    assert.ok(isConfined(daemon));
    assert.match(daemon.stderr, new RegExp(`what is not in the bucket yet is kept in ${at.cache}"`));
    assert.ok(existsSync(join(at.top, 'real', 'journal')));
    assert.equal((await daemon.stop()).code, 0);
  });

  test('gets credentials that are renewed in a file beside which a link is replaced, and in one that is replaced itself', async (t) => {
    for (const kubelet of [true, false]) {
      const at = fresh();
      const folder = join(at.top, 'keys');
      mkdirSync(folder);
      const file = join(folder, 'credentials');
      const write = (key: string): void => {
        const content = `[default]\naws_access_key_id = ${key}\naws_secret_access_key = secret\n`;
        if (kubelet) {
          mkdirSync(join(folder, `..${key}`));
          writeFileSync(join(folder, `..${key}`, 'credentials'), content);
          symlinkSync(`..${key}`, join(folder, '..new'));
          renameSync(join(folder, '..new'), join(folder, '..data'));
          if (!existsSync(file)) symlinkSync('..data/credentials', file);
        } else {
          writeFileSync(`${file}.new`, content, { mode: 0o600 });
          renameSync(`${file}.new`, file);
        }
      };
      write('FIRST');
      let good = 'FIRST';
      place.server.judge = ({ accessKey }) => (accessKey === good ? null : { status: 400, code: 'ExpiredToken', message: 'Expired.' });
      const daemon = await start(at, [], { env: { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, AWS_SHARED_CREDENTIALS_FILE: file } });
      const files = await guestOf(t, at);
      await serves(files, `first-${String(kubelet)}`);
      good = 'SECOND';
      write('SECOND');
      await serves(files, `second-${String(kubelet)}`);
      assert.ok(isConfined(daemon));
      assert.equal((await daemon.stop()).code, 0, daemon.stderr);
    }
  });

  test('gets tokens of Google Cloud by a file that a key names, also when they count no more', async (t) => {
    const gcs = await GcsServer.start({ authenticate: true });
    t.after(() => gcs.close());
    gcs.createBucket('bucket');
    const at = fresh();
    for (const folder of ['key', 'token']) mkdirSync(join(at.top, folder));
    const subject = join(at.top, 'token', 'subject');
    writeFileSync(subject, 'first');
    writeFileSync(join(at.top, 'key', 'key.json'), JSON.stringify({
      type: 'external_account', audience: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/p', subject_token_type: 'urn:ietf:params:oauth:token-type:jwt',
      token_url: `${gcs.url}/token`, credential_source: { file: subject },
    }));
    const args = ['--socket-path', at.socket, '--source', 'gs://bucket', '--endpoint', gcs.url, '--cache-dir', at.cache];
    const daemon = await DaemonProcess.start(args, { env: place.clean({ GOOGLE_APPLICATION_CREDENTIALS: join(at.top, 'key', 'key.json') }) });
    const files = await guestOf(t, at);
    for (const name of ['first', 'second']) {
      const file = await files.create(name);
      assert.equal(await files.write(file, 0, bytes('content')), 0);
      assert.equal(await files.close(file), 0);
      writeFileSync(`${subject}.new`, 'second');
      renameSync(`${subject}.new`, subject);
      gcs.revokeTokens();
    }
    assert.ok(isConfined(daemon));
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
  });

  test('of which the credentials come from a program has neither sandbox nor filter, and says so; one that was asked for is refused', async (t) => {
    const at = fresh();
    const program = join(at.top, 'program');
    writeFileSync(program, `#!/bin/sh\necho '${JSON.stringify({ Version: 1, AccessKeyId: KEYS.AWS_ACCESS_KEY_ID, SecretAccessKey: KEYS.AWS_SECRET_ACCESS_KEY })}'\n`);
    chmodSync(program, 0o755);
    writeFileSync(join(at.top, 'config'), `[profile role]\nsource_profile = base\nregion = us-east-1\n[profile base]\ncredential_process = ${program}\n`);
    const env = { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, AWS_CONFIG_FILE: join(at.top, 'config'), AWS_PROFILE: 'base' };
    const daemon = await start(at, [], { env });
    await serves(await guestOf(t, at));
    assert.match(daemon.stderr, /there is no sandbox and no filter of system calls: the credentials come from a program \(credential_process\)/);
    assert.deepEqual([isConfined(daemon), daemon.status('Seccomp')], [false, ['0']]);
    assert.equal((await daemon.stop()).code, 0);
    for (const asked of ['--sandbox=namespace', '--seccomp=kill']) {
      await new DaemonProcess(argsOf(at, [asked]), { env: place.clean({ ...KEYS, ...env, AWS_PROFILE: 'role' }) }).fails(1, new RegExp(`${asked} cannot be had: the credentials come from a program`));
    }
    const used = await start(at, [], { env: { AWS_CONFIG_FILE: join(at.top, 'config') } });
    assert.ok(isConfined(used), 'keys of the environment need no program');
    assert.equal((await used.stop()).code, 0);
  });

  test('says which directory is within reach by a file that may be replaced there, and which file it cannot follow', async (t) => {
    const at = fresh();
    // A home directory: what is in it is everybody's business but the daemon's
    const daemon = await start(at, [], { env: { HOME: at.top, AWS_SHARED_CREDENTIALS_FILE: join(at.top, 'credentials') } });
    assert.doesNotMatch(daemon.stderr, /can be read by the daemon/, 'what is not there is not replaced');
    assert.equal((await daemon.stop()).code, 0);
    writeFileSync(join(at.top, 'credentials'), '');
    const other = await start(at, [], { env: { HOME: at.top, AWS_SHARED_CREDENTIALS_FILE: join(at.top, 'credentials') } });
    await serves(await guestOf(t, at));
    assert.match(other.stderr, new RegExp(`all of ${at.top} can be read by the daemon, since ${at.top}/credentials may be replaced there`));
    assert.equal((await other.stop()).code, 0);
  });

  test('keeps the right to files of others only where there are some', async (t) => {
    const at = fresh();
    mkdirSync(at.cache, { mode: 0o700 });
    mkdirSync(join(at.top, 'keys'));
    writeFileSync(join(at.top, 'keys', 'credentials'), `[default]\naws_access_key_id = ${KEYS.AWS_ACCESS_KEY_ID}\naws_secret_access_key = ${KEYS.AWS_SECRET_ACCESS_KEY}\n`, { mode: 0o600 });
    execFileSync('chown', ['-R', '65534', join(at.top, 'keys')]);
    const daemon = await start(at, [], { env: { AWS_ACCESS_KEY_ID: undefined, AWS_SECRET_ACCESS_KEY: undefined, AWS_SHARED_CREDENTIALS_FILE: join(at.top, 'keys', 'credentials') } });
    await serves(await guestOf(t, at));
    assert.deepEqual([isConfined(daemon), daemon.status('CapEff')], [true, [DAC_OVERRIDE]]);
    assert.equal((await daemon.stop()).code, 0);
  });

  test('that was killed is followed by one that goes on with what it has left', async (t) => {
    const at = fresh();
    const writeback = ['--durability=writeback', '--writeback-delay=3600'];
    const first = await start(at, writeback);
    const files = await guestOf(t, at);
    const file = await files.create('kept');
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    assert.equal(await files.close(file), 0);
    await first.stop('SIGKILL');
    const second = await start(at, writeback);
    assert.ok(isConfined(second));
    assert.match(second.stderr, /recovery: goes on: s3:\/\/bucket\/kept: 7 bytes/);
    assert.deepEqual(await second.stop(), { code: 0, signal: null }, second.stderr);
    assert.equal((await place.server.store.head('kept')).size, 7);
    assert.deepEqual(readdirSync(dirname(at.socket)), []);
  });

  test('of which the cache directory is full says ENOSPC, and goes on when there is room', async (t) => {
    const at = fresh();
    mkdirSync(at.cache);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'size=1m,mode=0700', 'test', at.cache]);
    t.after(() => execFileSync('umount', ['-l', at.cache]));
    const daemon = await start(at, ['--durability=writeback']);
    const files = await guestOf(t, at);
    const file = await files.create('large');
    let error = 0;
    for (let offset = 0; error === 0 && offset < 4 << 20; offset += 65536) ({ error } = await files.g.write(file.node, file.fh, offset, new Uint8Array(65536).fill(1)));
    assert.equal(error, -E.NOSPC);
    assert.ok(isConfined(daemon));
    execFileSync('mount', ['-o', 'remount,size=16m', at.cache]);
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    assert.equal(await files.close(file), 0);
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
  });

  test('that only reads keeps blocks in its cache directory', async (t) => {
    const at = fresh();
    await place.server.store.put('there', bytes('content'));
    const daemon = await start(at, ['--readonly', '--cache-size=1']);
    assert.equal(String(await (await guestOf(t, at)).content('there')), 'content');
    assert.ok(isConfined(daemon));
    assert.ok(existsSync(join(at.cache, 'blocks', 'data')));
    assert.equal((await daemon.stop()).code, 0);
    writeFileSync(join(at.top, 'file'), '');
    const none = await start({ ...at, cache: join(at.top, 'file', 'none') }, ['--readonly', '--cache-size=1']);
    assert.match(none.stderr, /there is no sandbox and no filter of system calls: [^"]*\/file\/none cannot be made/);
    assert.equal((await none.stop()).code, 0);
  });

  test('of a bucket in memory leaves nothing behind', async (t) => {
    const at = fresh();
    const temporary = join(at.top, 'tmp');
    mkdirSync(temporary);
    const daemon = await DaemonProcess.start(['--socket-path', at.socket, '--source', 'memory:'], { env: place.clean({ TMPDIR: temporary }) });
    assert.ok(isConfined(daemon));
    const files = await guestOf(t, at);
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    assert.equal(await files.close(file), 0);
    assert.equal(String(await files.content('f')), 'content');
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
    assert.deepEqual(readdirSync(temporary), []);
  });

  test('with a socket that it inherits serves', async (t) => {
    const at = fresh();
    const fd = unixSocket();
    assert.equal(bindUnix(fd, at.socket), 0);
    assert.equal(c.listen(fd, 4), 0);
    const daemon = await DaemonProcess.start(['--fd=3', ...argsOf(at).slice(2)], { fd, env: place.clean(KEYS) });
    await serves(await guestOf(t, at));
    assert.ok(isConfined(daemon));
    assert.equal((await daemon.stop()).code, 0);
    c.close(fd);
  });

  test('that fails, or is ended before the bucket has answered, leaves neither socket nor pid file', async () => {
    const at = fresh();
    place.server.judge = () => ({ status: 403, code: 'AccessDenied', message: 'Access Denied' });
    await new DaemonProcess(argsOf(at), { env: place.clean(KEYS) }).fails(1, /these credentials may not list it/);
    assert.deepEqual(readdirSync(dirname(at.socket)), []);
    const asked = new Promise<void>((resolve) => {
      place.server.judge = () => (resolve(), { stuckAfter: 0 });
    });
    const daemon = new DaemonProcess(argsOf(at), { env: place.clean(KEYS) });
    await asked;
    assert.deepEqual(await daemon.stop(), { code: null, signal: 'SIGTERM' });
    assert.deepEqual(readdirSync(dirname(at.socket)), []);
  });

  test('goes on with what it can have where rights are missing, and one line says what; one that was asked for is refused', async (t) => {
    for (const [missing, sentence] of [['sys_admin', /needs CAP_SYS_ADMIN/], ['setpcap', /without CAP_SETPCAP/], ['all', /needs CAP_SYS_ADMIN/]] as const) {
      const at = fresh();
      const wrapper = ['setpriv', '--bounding-set', `-${missing}`];
      const daemon = await start(at, [], { wrapper });
      await serves(await guestOf(t, at), missing);
      assert.deepEqual([daemon.status('Seccomp'), daemon.status('NoNewPrivs')], [['2'], ['1']], missing);
      const lines = daemon.stderr.split('\n').filter((line) => line.includes('the sandbox is incomplete'));
      assert.equal(lines.length, 1, daemon.stderr);
      assert.match(lines[0], sentence);
      assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
      assert.deepEqual(readdirSync(dirname(at.socket)), []);
      await new DaemonProcess(argsOf(at, ['--sandbox=namespace']), { wrapper, env: place.clean(KEYS) }).fails(1, sentence);
      assert.deepEqual(readdirSync(dirname(at.socket)), []);
    }
  });

  test('of an ordinary user has neither, and with --sandbox=namespace is in a user namespace', async (t) => {
    const at = fresh();
    chmodSync(place.scratch, 0o755);
    execFileSync('chown', ['-R', '65534:65534', at.top]);
    const daemon = await start(at, [], { uid: 65534 });
    await serves(await guestOf(t, at), 'plain');
    assert.deepEqual([isConfined(daemon), daemon.status('Seccomp')], [false, ['0']]);
    assert.equal((await daemon.stop()).code, 0);
    const confined = await start(at, ['--sandbox=namespace', '--seccomp=kill'], { uid: 65534 });
    await serves(await guestOf(t, at), 'confined');
    assert.deepEqual([isConfined(confined), confined.status('Seccomp')], [true, ['2']]);
    assert.equal((await confined.stop()).code, 0);
    assert.equal(basename(at.socket), 'socket');
  });

  test('where Landlock cannot be had serves without', { skip: landlockVersion() < 6 && 'needs Linux 6.12' }, async (t) => {
    const at = fresh();
    const daemon = await start(at, [], { wrapper: [process.execPath, new URL('../support/landlock-layers.js', import.meta.url).pathname, '0'] });
    await serves(await guestOf(t, at));
    assert.match(daemon.stderr, /the sandbox is incomplete: Landlock cannot be set up/);
    assert.equal((await daemon.stop()).code, 0);
  });
});
