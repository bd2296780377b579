/** What a bucket's daemon needs of the host: the files of its credentials and no others, with the directories in which they are replaced, and programs that give credentials. */
import assert from 'node:assert/strict';
import { mkdirSync, mkdtempSync, realpathSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { awsFiles } from '../../src/bucket/aws-profile.js';
import { googleFiles } from '../../src/bucket/google-key.js';
import { hostNeeds, type HostNeeds } from '../../src/bucket/host-needs.js';
import { parseCommandLine } from '../../src/cli.js';

let home = '';
const saved = process.env['HOME'];
beforeEach(() => {
  home = realpathSync(mkdtempSync(join(tmpdir(), 'bucketfsd-needs-')));
  process.env['HOME'] = home;
});
afterEach(() => {
  process.env['HOME'] = saved;
  rmSync(home, { recursive: true });
});

function put(path: string, text: string): string {
  const file = join(home, path);
  mkdirSync(dirname(file), { recursive: true });
  writeFileSync(file, text);
  return file;
}

function needs(args: readonly string[], env: NodeJS.ProcessEnv = {}): HostNeeds {
  const command = parseCommandLine(['check', ...args], {}, 1);
  assert.equal(command.action, 'check');
  return hostNeeds((command as Extract<typeof command, { action: 'check' }>).settings, '/cache', env);
}
const S3 = ['--source=s3://bucket'];
const readBy = (found: HostNeeds): string[] => found.paths.filter(({ writable }) => !writable).map(({ path }) => path);

describe('credentials of S3', () => {
  const program = (config: string, env: NodeJS.ProcessEnv = {}, profile: string | null = null, unsigned = false): string | null => {
    put('.aws/config', config);
    return awsFiles({ profile, unsigned }, env, home).program;
  };

  test('come from a program where the profile that is used, or one that it takes them from, says so', () => {
    assert.equal(program('[default]\ncredential_process = /opt/get --x\n'), '/opt/get --x');
    assert.equal(program('[profile a]\r\nsource_profile=b\r\n[profile b]\r\n  Credential_Process = get\r\n', { AWS_PROFILE: 'a' }), 'get');
    assert.equal(program('[profile "a b"] # mine\ncredential_process=get', {}, 'a b'), 'get');
    assert.equal(program('[profile a]\nsource_profile = a\n', {}, 'a'), null, 'a circle');
  });

  test('come from none where another profile, keys of the environment or of the profile, or nobody is asked', () => {
    const config = '[default]\ncredential_process = get\n[profile other]\nregion = x\n';
    const keys = { AWS_ACCESS_KEY_ID: 'a', AWS_SECRET_ACCESS_KEY: 'b' };
    assert.equal(program(config, {}, 'other'), null);
    assert.equal(program(config, keys), null);
    assert.equal(program(config, keys, 'default'), 'get', 'a profile that is named comes first');
    assert.equal(program(config, {}, null, true), null);
    put('.aws/credentials', '[default]\naws_access_key_id = a\naws_secret_access_key = b\n');
    assert.equal(program(config), null);
  });

  test('may be renewed in the files that the environment or the profile names; where somebody signs in the SDK keeps what it renews', () => {
    put('.aws/config', '[default]\nweb_identity_token_file = /run/t/token\nsso_session = s\n[profile other]\nweb_identity_token_file = /elsewhere/token\n');
    const { renewed, written } = awsFiles({ profile: null, unsigned: false }, { AWS_SHARED_CREDENTIALS_FILE: '/keys', AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE: '/run/pod/token' }, home);
    assert.deepEqual(renewed, [join(home, '.aws/config'), '/keys', '/run/pod/token', '/run/t/token']);
    assert.deepEqual(written, [join(home, '.aws/sso/cache'), join(home, '.aws/login/cache')]);
  });
});

describe('credentials of Google Cloud', () => {
  test('are a key and the files that it names; a program counts where it may be run', () => {
    const key = put('key.json', JSON.stringify({ credential_source: { file: '/run/t/token', executable: { command: '/opt/get', output_file: '/run/o/out' } } }));
    const env = { GOOGLE_APPLICATION_CREDENTIALS: key };
    assert.deepEqual(googleFiles(env, home), { read: [key, join(home, '.config/gcloud/certificate_config.json')], renewed: ['/run/t/token', '/run/o/out'], program: null });
    assert.equal(googleFiles({ ...env, GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES: '1' }, home).program, '/opt/get');
    for (const text of ['', '{', '[[[[[[[[[["/x"]]]]]]]]]]', 'null', '7']) {
      put('key.json', text);
      assert.deepEqual(googleFiles(env, home).renewed, [], text);
    }
  });
});

describe('what is needed', () => {
  test('is the cache directory to write, names and certificates, and neither accounts nor private keys', () => {
    const found = needs(S3);
    assert.deepEqual(found.paths.filter(({ writable }) => writable), [{ path: '/cache', writable: true }]);
    for (const path of ['/etc/resolv.conf', '/etc/hosts', '/etc/nsswitch.conf', '/etc/ssl/certs', '/proc/sys/kernel/random/boot_id']) assert.ok(readBy(found).includes(path), path);
    for (const path of ['/', '/etc', '/etc/ssl', '/etc/pki', '/etc/passwd', home]) assert.ok(!readBy(found).includes(path), path);
    assert.deepEqual([found.notes, found.obstacle], [[], null]);
  });

  test('is every directory and file of certificates that the environment names', () => {
    const found = readBy(needs(S3, { SSL_CERT_DIR: '/a:/b', NODE_EXTRA_CA_CERTS: '/c', OPENSSL_CONF: '/d' }));
    for (const path of ['/a', '/b', '/c', '/d']) assert.ok(found.includes(path), path);
  });

  test('is the directory of a file that is renewed, and that of a link in its place', () => {
    const real = put('vault/keys/real', '');
    mkdirSync(join(home, 'own'));
    symlinkSync(real, join(home, 'own/credentials'));
    const found = needs(S3, { AWS_SHARED_CREDENTIALS_FILE: join(home, 'own/credentials') });
    for (const path of ['own', 'vault/keys']) assert.ok(readBy(found).includes(join(home, path)), path);
    assert.deepEqual(found.notes, []);
  });

  test('is said where it is more than the file: a home directory; and of the root directory it is the file alone', () => {
    const inHome = needs(S3, { AWS_SHARED_CREDENTIALS_FILE: put('credentials', '') });
    assert.match(inHome.notes.join(), /^all of .* can be read by the daemon, since .*\/credentials may be replaced there: give it a directory of its own$/);
    assert.ok(readBy(inHome).includes(home));
    const inRoot = needs(S3, { AWS_SHARED_CREDENTIALS_FILE: '/proc/self/status' });
    assert.match(inRoot.notes.join(), /^\/proc\/self\/status lies in \/proc\/self, which is not in the sandbox: when that file is replaced, start the daemon again/);
    assert.ok(!readBy(inRoot).some((path) => /^\/proc\/(?!sys\/kernel\/random\/boot_id|self\/status)/.test(path)));
  });

  test('cannot be had where a program gives the credentials, or where certificates come from a pipe', () => {
    put('.aws/config', '[default]\ncredential_process = get\n');
    assert.match(String(needs(S3).obstacle), /come from a program \(credential_process\)/);
    assert.match(String(needs(['--source=gs://bucket', '--ca-bundle=/dev/fd/0']).obstacle), /--ca-bundle \/dev\/fd\/0 is no file with a name of its own/);
    assert.equal(needs(['--source=gs://bucket', '--ca-bundle=/nonexistent']).obstacle, null, 'the start says it');
  });
});
