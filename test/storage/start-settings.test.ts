/**
 * What a start finds without being told, and what it is told and makes no sense: style, region, profile, certificates, the version of Node.js, a
 * cache directory of somebody else. One sentence each where it cannot go on.
 */
import assert from 'node:assert/strict';
import {
  appendFileSync, chmodSync, chownSync, closeSync, constants, existsSync, linkSync, lstatSync, mkdirSync, readdirSync, rmSync, symlinkSync, writeFileSync,
} from 'node:fs';
import { join } from 'node:path';
import { describe, test } from 'node:test';
import { checkNodeVersion } from '../../src/lifecycle/node-version.js';
import { openOwned } from '../../src/storage/object/owned-file.js';
import { BUCKET, BucketStarts, endOf, KEYS } from '../support/bucket-starts.js';
import { DaemonProcess } from '../support/daemon.js';
import { FuseClient } from '../support/guest.js';
import { Files } from '../support/object-files.js';

const start = new BucketStarts();
const { scratch, socket, clean, at, fresh, refused, starts } = start;

describe('what is found without being told', () => {
  test('path style where the endpoint has no name for a bucket, by the daemon, check and recover', async () => {
    const cache = fresh();
    for (const endpoint of [start.server.endpoint, start.server.endpoint.replace('127.0.0.1', 'localhost')]) {
      await starts([...BUCKET, '--endpoint', endpoint, '--cache-dir', cache]);
      rmSync(cache, { recursive: true });
    }
    await starts([...BUCKET, '--endpoint', start.server.endpoint, '--cache-dir', cache]);
    for (const command of [['check', ...BUCKET, '--endpoint', start.server.endpoint], ['recover', '--cache-dir', cache, '--endpoint', start.server.endpoint]]) {
      const daemon = new DaemonProcess(command, { env: clean(KEYS) });
      assert.deepEqual(await daemon.ended, { code: 0, signal: null }, daemon.stderr);
    }
  });

  test('a region: us-east-1 where nobody names one, and that of the environment or of the profile', async () => {
    writeFileSync(join(scratch, 'config'), `[profile north]\nregion = eu-north-9\naws_access_key_id = ${KEYS.AWS_ACCESS_KEY_ID}\naws_secret_access_key = ${KEYS.AWS_SECRET_ACCESS_KEY}\n`);
    const config = { AWS_CONFIG_FILE: join(scratch, 'config') };
    for (const [env, region] of [[KEYS, 'us-east-1'], [{ ...KEYS, AWS_REGION: '' }, 'us-east-1'], [{ ...KEYS, AWS_REGION: 'eu-west-9' }, 'eu-west-9'], [{ ...config, AWS_PROFILE: 'north' }, 'eu-north-9']] as const) {
      const regions = new Set<string>();
      start.server.judge = (request) => (regions.add(request.region), null);
      const daemon = await DaemonProcess.start(['--socket-path', socket, '--readonly', ...BUCKET, ...at()], { env: clean(env) });
      await daemon.stop();
      assert.deepEqual([...regions], [region]);
    }
    // Amazon's own endpoint, out of reach here: what is missing is the way there, not a region
    const sentence = await refused(['--readonly', ...BUCKET], { ...KEYS, HTTPS_PROXY: undefined, AWS_ENDPOINT_URL_S3: 'http://127.0.0.1:1' });
    assert.match(sentence, /the provider's endpoint cannot be reached/);
  });

  test('a profile that is not there is named', async () => {
    const env = { AWS_CONFIG_FILE: '/nonexistent', AWS_SHARED_CREDENTIALS_FILE: '/nonexistent' };
    assert.match(
      await refused(['--readonly', ...BUCKET, ...at(), '--profile', 'nosuch'], env),
      /^cannot share s3:\/\/bucket: the profile nosuch gives no credentials \(.*\): check --profile against ~\/\.aws\/config and ~\/\.aws\/credentials$/,
    );
  });
});

describe('what is told, and makes no sense', () => {
  test('a profile and a region of the environment', async () => {
    const nowhere = { AWS_CONFIG_FILE: '/nonexistent', AWS_SHARED_CREDENTIALS_FILE: '/nonexistent' };
    assert.match(await refused(['--readonly', ...BUCKET, ...at()], { ...nowhere, AWS_PROFILE: 'nosuch' }), /: the profile nosuch gives no credentials \(.*\): check AWS_PROFILE against ~\/\.aws/);
    assert.match(
      await refused(['--readonly', ...BUCKET, ...at()], { ...KEYS, AWS_REGION: 'so bad' }),
      /^cannot share s3:\/\/bucket: a region is letters, digits and hyphens, not what it was given \(.*so bad.*\): check --region, AWS_REGION and the profile$/,
    );
  });

  test('an endpoint of the environment that is no URL', async () => {
    for (const endpoint of [{ AWS_ENDPOINT_URL: 'nonsense' }, { AWS_ENDPOINT_URL_S3: 'ftp://host' }]) {
      assert.match(await refused(['--readonly', ...BUCKET], { ...KEYS, ...endpoint }), /: the environment or the profile names an endpoint that is no URL of HTTP \(.*\): check AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 and/);
    }
    assert.match(await refused(['--readonly', '--source', 'gs://bucket', '--unsigned'], { STORAGE_EMULATOR_HOST: 'http://' }), /: STORAGE_EMULATOR_HOST is no URL: correct it/);
  });

  test("keys with a line's end, as a file of another system has it", async () => {
    for (const keys of [{ ...KEYS, AWS_ACCESS_KEY_ID: `${KEYS.AWS_ACCESS_KEY_ID}\r` }, { ...KEYS, AWS_SESSION_TOKEN: 'token\n' }]) {
      assert.match(await refused(['--readonly', ...BUCKET, ...at()], keys), /: the credentials have a character that no request can have, such as a line's end \(.*\): check AWS_ACCESS_KEY_ID/);
    }
  });

  test('a bundle of certificates without one, or with a damaged one', async () => {
    const file = fresh();
    for (const [text, expected] of [
      ['root:x:0:0', /^--ca-bundle .* has no certificate: it takes PEM/],
      ['-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n', /^--ca-bundle .* has a certificate that cannot be read/],
    ] as const) {
      writeFileSync(file, text);
      assert.match(await refused(['--readonly', ...BUCKET, ...at(), '--ca-bundle', file]), expected);
    }
  });

  test('recover on what is no cache directory: nothing is said of the files in it', async () => {
    const path = fresh();
    mkdirSync(path);
    symlinkSync('/nonexistent', join(path, 'somebodys'));
    for (const [directory, expected] of [[path, `${path} is no cache directory of bucketfsd: it has no share.json`], [`${path}/none`, `there is no cache directory ${path}/none`]] as const) {
      const daemon = new DaemonProcess(['recover', '--cache-dir', directory], { env: clean(KEYS) });
      assert.deepEqual(await daemon.ended, { code: 1, signal: null });
      assert.equal(daemon.stderr, `bucketfsd: cannot recover: ${expected}\n`);
    }
  });
});

describe('Node.js that is too old', () => {
  test('is one sentence, before anything of it is missing', async () => {
    for (const version of ['v18.20.8', 'v20.18.0', 'v21.7.0', 'v22.1.0']) {
      const pretend = `data:text/javascript,Object.defineProperty(process,'version',{value:'${version}'})`;
      const sentence = await refused([...BUCKET, ...at()], { ...KEYS, NODE_OPTIONS: `--import="${pretend}"` });
      assert.equal(sentence, `this is Node.js ${version}, and 20.19 or later is needed, of 22 at least 22.2: install one, or name it in BUCKETFSD_NODE`);
    }
    for (const version of ['v20.19.0', 'v22.2.0', 'v24.0.0', 'v25.1.0']) checkNodeVersion(version);
  });
});

describe('recover as root', { skip: process.getuid!() !== 0 && 'needs root' }, () => {
  // The same for what else root makes there: the journal's tail, what the provider can do, a staging file
  test('leaves every file to the owner of the directory, whose daemon starts again', async () => {
    const path = fresh();
    const daemonArgs = ['--socket-path', socket, ...BUCKET, ...at(), '--cache-dir', path, '--durability', 'writeback', '--writeback-delay', '3600'];
    const daemon = await DaemonProcess.start(daemonArgs, { env: clean(KEYS) });
    const client = await FuseClient.connect(socket);
    const files = new Files(client);
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, new TextEncoder().encode('acknowledged')), 0);
    assert.equal(await files.fsync(file), 0);
    await daemon.stop('SIGKILL');
    endOf(client);
    rmSync(join(path, 'capabilities.json'));
    appendFileSync(join(path, 'journal'), 'BFJ1 cut');
    const OWNER = 4321;
    const all = (): string[] => [path, ...readdirSync(path, { recursive: true, encoding: 'utf8' }).map((name) => join(path, name))];
    for (const name of all()) chownSync(name, OWNER, OWNER);
    chmodSync(scratch, 0o711);
    const recover = new DaemonProcess(['recover', '--cache-dir', path, '--endpoint', start.server.endpoint], { env: clean(KEYS) });
    assert.deepEqual(await recover.ended, { code: 0, signal: null }, recover.stderr);
    assert.equal((await start.server.store.head('f')).size, 12);
    assert.ok(existsSync(join(path, 'capabilities.json')) && existsSync(join(path, 'journal.tail')));
    assert.deepEqual(all().filter((name) => lstatSync(name).uid !== OWNER || lstatSync(name).gid !== OWNER), []);
    const theirs = fresh();
    mkdirSync(theirs);
    chownSync(theirs, OWNER, OWNER);
    const next = await DaemonProcess.start(['--socket-path', join(theirs, 's'), ...BUCKET, ...at(), '--cache-dir', path], { env: clean(KEYS), uid: OWNER });
    assert.deepEqual(await next.stop(), { code: 0, signal: null }, next.stderr);
  });

  test('gives nobody a file that is linked into the directory', async () => {
    const path = fresh();
    mkdirSync(join(path, 'staging'), { recursive: true });
    const secret = join(scratch, 'secret');
    writeFileSync(secret, '', { mode: 0o600 });
    for (const link of [linkSync, symlinkSync]) {
      link(secret, join(path, 'journal'));
      chownSync(path, 4321, 4321);
      if (link === symlinkSync) assert.throws(() => openOwned(join(path, 'journal'), constants.O_RDWR | constants.O_CREAT), { code: 'ELOOP' });
      else closeSync(openOwned(join(path, 'journal'), constants.O_RDWR | constants.O_CREAT));
      assert.equal(lstatSync(secret).uid, 0);
      rmSync(join(path, 'journal'));
    }
  });
});
