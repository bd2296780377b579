/** `bucketfsd recover` on a cache directory that somebody else may have changed. What it does with an honest one is in kill.test.ts. */
import assert from 'node:assert/strict';
import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { S3Server } from '../support/s3/server.js';

let server: S3Server;
let scratch: string;
let directories = 0;

before(async () => {
  server = await S3Server.start();
  scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-recover-'));
});
after(async () => {
  killDaemons();
  await server.stop();
  rmSync(scratch, { recursive: true });
});

const fresh = (): string => join(scratch, `d${++directories}`);
/** Nothing of who runs the tests. */
const env = (): NodeJS.ProcessEnv => ({
  ...Object.fromEntries(Object.keys(process.env).filter((name) => name.startsWith('AWS_')).map((name) => [name, undefined])), HOME: scratch,
  AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey, AWS_EC2_METADATA_DISABLED: 'true',
});

/** A daemon has used the directory. */
async function share(path: string): Promise<void> {
  const daemon = await DaemonProcess.start(['--socket-path', join(scratch, 'socket'), '--source', 's3://bucket', '--endpoint', server.endpoint, '--path-style', '--cache-dir', path], { env: env() });
  assert.deepEqual(await daemon.stop(), { code: 0, signal: null }, daemon.stderr);
}

const recover = async (...args: string[]): Promise<[code: number | null, stderr: string]> => {
  const daemon = new DaemonProcess(['recover', ...args], { env: env() });
  const { code } = await daemon.ended;
  return [code, daemon.stderr];
};

test('sends nothing to an endpoint, and trusts no certificates, that only the directory names', async () => {
  const path = fresh();
  await share(path);
  const file = join(path, 'share.json');
  const identity = JSON.parse(readFileSync(file, 'utf8')) as { reopen: { options: Record<string, unknown> } };
  const ca = join(scratch, 'other.pem');
  identity.reopen.options['caBundle'] = ca;
  writeFileSync(file, JSON.stringify(identity));
  server.requests.length = 0;
  const [code, stderr] = await recover('--cache-dir', path);
  assert.equal(code, 1);
  const options = `--endpoint ${server.endpoint} --ca-bundle ${ca}`;
  assert.equal(stderr, `bucketfsd: ${path} says that it belongs to s3://bucket with ${options}: if that is right, run this again with ${options}; nothing was sent\n`);
  assert.match((await recover('--cache-dir', path, '--endpoint', server.endpoint))[1], /with --ca-bundle/);
  assert.deepEqual(server.requests, []);
  assert.equal((await recover('--cache-dir', path, '--dry-run'))[0], 0, 'which asks nobody');
  delete identity.reopen.options['caBundle'];
  writeFileSync(file, JSON.stringify(identity));
  assert.deepEqual((await recover('--cache-dir', path, '--endpoint', server.endpoint))[0], 0);
});

test('takes of the directory only what a daemon has remembered there: no other option, and no other type', async () => {
  const path = fresh();
  await share(path);
  const file = join(path, 'share.json');
  const text = readFileSync(file, 'utf8');
  const say = (options: object): void => {
    const identity = JSON.parse(text) as { reopen: { options: object } };
    writeFileSync(file, JSON.stringify({ ...identity, reopen: { ...identity.reopen, options: { ...identity.reopen.options, ...options } } }));
  };
  say({ memoryBudget: 'much', cacheDir: '/elsewhere' });
  assert.equal((await recover('--cache-dir', path, '--endpoint', server.endpoint))[0], 0);
  say({ pathStyle: { a: 1 } });
  const [code, stderr] = await recover('--cache-dir', path, '--endpoint', server.endpoint);
  assert.deepEqual([code, stderr], [1, `bucketfsd: ${path}/share.json makes no sense: pathStyle is {"a":1}\n`]);
});
