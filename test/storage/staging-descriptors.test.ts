/**
 * More files wait to be committed than the daemon may have descriptors: each is there whenever it is needed, and frontends and connections have theirs.
 *
 * What else could fail for the same reason: reads and writes of a file whose descriptor was closed; one that is being sent meanwhile; an error of the disk that the
 * kernel tells a descriptor only; what is only punched or cut; the start after a kill; files that are unlinked while they are closed.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { FuseClient, name, OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Files, ROOT, type OpenFile } from '../support/object-files.js';
import { S3Server } from '../support/s3/server.js';
import { objectOf } from '../support/writing-guest.js';

after(killDaemons);

/** Of all descriptors of a process, those of staging files. */
function stagingDescriptors(pid: number | 'self', directory: string): number {
  const links = readdirSync(`/proc/${pid}/fd`).map((fd) => {
    try {
      return readlinkSync(`/proc/${pid}/fd/${fd}`);
    } catch {
      return '';
    }
  });
  return links.filter((link) => link.startsWith(join(directory, 'staging/'))).length;
}

const content = (n: number, more = ''): Buffer => Buffer.from(`file ${n}${more}`);

/** 384 are left for others, of the rest half is for staging files. */
const fileLimit = 384 + 2 * 16;

for (const durability of ['remote', 'writeback'] as const) {
  test(`200 changed files with 16 descriptors: all are what they were written as, and get into the bucket (${durability})`, async () => {
    const memory = new MemoryStore();
    const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
    const options = { write: { cacheDirectory, durability, writebackDelay_ms: 60_000, fileLimit } };
    const g = await ObjectGuest.start(memory, options);
    const files = new Files(g);
    const open: OpenFile[] = [];
    for (let n = 0; n < 200; n++) {
      const file = await files.create(`f${n}`);
      assert.equal(await files.write(file, 0, content(n)), 0);
      open.push(file);
      assert.ok(stagingDescriptors('self', cacheDirectory) <= 16 + 1);
    }
    // In another order, and each for the second time
    for (let n = 199; n >= 0; n -= 2) assert.equal(await files.write(open[n], content(n).length, content(n, '!').subarray(content(n).length)), 0);
    for (const [n, file] of open.entries()) assert.equal(String(await files.read(file)), String(content(n, n % 2 === 1 ? '!' : '')));
    for (let n = 0; n < 200; n += 10) {
      assert.equal((await g.call(OP.UNLINK, ROOT, name(`f${n}`), 0)).error, 0);
      assert.equal(String(await files.read(open[n])), String(content(n)));
    }
    await g.kill();
    const faulty = new FaultyStore(memory);
    const next = await ObjectGuest.start(faulty.store, options);
    assert.ok(stagingDescriptors('self', cacheDirectory) <= 16 + 1);
    assert.equal(await next.close(), 0);
    for (let n = 0; n < 200; n++) {
      if (n % 10 !== 0) assert.equal(String(await objectOf(memory, `f${n}`)), String(content(n, n % 2 === 1 ? '!' : '')));
    }
    assert.equal((await memory.list({ prefix: '' })).objects.length, 180);
    rmSync(cacheDirectory, { recursive: true });
  });
}

test('a daemon with 600 descriptors and 567 files that the bucket does not take serves frontends, and commits all when it does', async () => {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  const server = await S3Server.start();
  const cache = join(directory, 'cache');
  const options = ['--endpoint', server.endpoint, '--region', 'us-east-1', '--path-style', '--cache-dir', cache, '--rlimit-nofile', '600'];
  const args = ['--socket-path', join(directory, 'socket'), '--source', `s3://${S3Server.BUCKET}`, ...options];
  const env = { AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey };
  try {
    const first = await DaemonProcess.start(args, { env });
    server.judge = ({ operation }) => (operation === 'put' ? { status: 403, code: 'AccessDenied' } : null);
    const client = await FuseClient.connect(join(directory, 'socket'));
    const files = new Files(client);
    for (let n = 0; n < 567; n++) {
      const file = await files.create(`f${n}`);
      assert.equal(await files.write(file, 0, content(n)), 0);
      assert.equal(await files.close(file), -E.ACCES);
    }
    const most = (600 - 384) / 2;
    assert.ok(stagingDescriptors(first.pid, cache) <= most);
    await first.stop('SIGKILL');
    client.leave();
    const second = await DaemonProcess.start(args, { env });
    const other = await FuseClient.connect(join(directory, 'socket'));
    assert.equal(String(await new Files(other).content('f566')), String(content(566)));
    server.judge = () => null;
    other.leave();
    assert.deepEqual(await second.stop(), { code: 0, signal: null }, second.stderr);
    for (let n = 0; n < 567; n++) assert.equal(String(await objectOf(server.store, `f${n}`)), String(content(n)));
  } finally {
    await server.stop();
    rmSync(directory, { recursive: true });
  }
});
