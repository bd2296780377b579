/** A user that is in no table of accounts, as systemd makes them (DynamicUser=) where the C library is not told of them: nothing needs to know where its home is. */
import assert from 'node:assert/strict';
import { chmodSync, chownSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { S3Server } from '../support/s3/server.js';

const USER = 61_234;
const dir = mkdtempSync(join(tmpdir(), 'bucketfsd-account-'));
after(() => {
  killDaemons();
  rmSync(dir, { recursive: true, force: true });
});

test('a bucket is served without HOME, and without a name for the user', { skip: process.getuid?.() !== 0 && 'needs root' }, async (t) => {
  const server = await S3Server.start();
  t.after(() => server.stop());
  const own = join(dir, 'own');
  mkdirSync(own);
  for (const path of [dir, own]) chmodSync(path, 0o755);
  chownSync(own, USER, USER);
  const { accessKeyId, secretAccessKey } = S3Server.CREDENTIALS;
  for (const keys of [{ AWS_ACCESS_KEY_ID: accessKeyId, AWS_SECRET_ACCESS_KEY: secretAccessKey }, null]) {
    const env = { HOME: undefined, XDG_STATE_HOME: undefined, STATE_DIRECTORY: join(own, 'state'), AWS_EC2_METADATA_DISABLED: 'true', AWS_REGION: undefined, ...keys };
    const daemon = new DaemonProcess(['--socket-path', join(own, 's'), '--source', 's3://bucket', '--endpoint', server.endpoint, '--path-style'], { uid: USER, env });
    if (keys === null) {
      // Credentials are looked for below the home directory: that there are none is said
      assert.equal((await daemon.ended).code, 1);
      assert.match(daemon.stderr, /^bucketfsd: cannot share s3:\/\/bucket: the credentials are missing or wrong [^\n]*\n$/);
      continue;
    }
    await daemon.until(/"sharing /);
    assert.deepEqual(await daemon.stop(), { code: 0, signal: null });
  }
});
