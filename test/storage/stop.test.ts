/** A daemon that is asked to stop while something is not in the bucket: it commits what it can in the time that SEMANTICS promises, says how far it is, and what is left. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { Body, PutOptions, Version } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { FuseClient } from '../support/guest.js';
import { S3Server } from '../support/s3/server.js';
import { Files } from '../support/object-files.js';
import { objectOf } from '../support/writing-guest.js';

after(killDaemons);

const BYTES = 2 << 20;

/** Objects are put when the test says so. */
class SlowStore extends MemoryStore {
  readonly #waiting: (() => void)[] = [];

  override async put(key: string, body: Body, options?: PutOptions): Promise<Version> {
    await new Promise<void>((resolve) => this.#waiting.push(resolve));
    return super.put(key, body, options);
  }

  release(): void {
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

/** `body` gets a daemon of which a guest has written and closed 2 MiB that are not in the bucket. */
async function withUnsent(
  durability: 'remote' | 'writeback', body: (daemon: DaemonProcess, server: S3Server, slow: SlowStore, args: string[], cache: string) => Promise<void>,
): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-stop-'));
  const server = await S3Server.start();
  const slow = new SlowStore();
  const cache = join(directory, 'cache');
  const options = ['--endpoint', server.endpoint, '--region', 'us-east-1', '--path-style', '--cache-dir', cache, '--durability', durability, '--writeback-delay', '3600'];
  const args = ['--socket-path', join(directory, 'socket'), '--source', `s3://${S3Server.BUCKET}`, ...options];
  const env = { AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey };
  try {
    const daemon = await DaemonProcess.start(args, { env });
    server.store = slow;
    const client = await FuseClient.connect(join(directory, 'socket'));
    const files = new Files(client);
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, new Uint8Array(BYTES).fill(7)), 0);
    if (durability === 'writeback') assert.equal(await files.close(file), 0);
    await body(daemon, server, slow, args, cache);
    client.leave();
  } finally {
    await server.stop();
    rmSync(directory, { recursive: true });
  }
}

for (const durability of ['remote', 'writeback'] as const) {
  test(`what takes longer than requests are waited for gets into the bucket all the same, with a line of progress (${durability})`, () =>
    withUnsent(durability, async (daemon, _server, slow) => {
      const ended = daemon.stop();
      await daemon.until(/"files":1,"bytes":2097152,"msg":"stopping: one file of 2 MiB [^"]*still on their way/);
      slow.release();
      assert.deepEqual(await ended, { code: 0, signal: null }, daemon.stderr);
      assert.equal((await objectOf(slow, 'f')).length, BYTES);
    }));

  test(`what the bucket does not take is counted, in the log and in the exit code, and the next start goes on with it (${durability})`, () =>
    withUnsent(durability, async (daemon, server, _slow, args, cache) => {
      server.judge = ({ operation }) => (operation === 'put' ? { status: 403, code: 'AccessDenied' } : null);
      assert.deepEqual(await daemon.stop(), { code: 3, signal: null }, daemon.stderr);
      const said = daemon.stderr.split('\n').find((line) => line.includes('could not be written to the bucket: the data is on the disk'));
      const { files, bytes, cacheDirectory } = JSON.parse(said!) as Record<string, unknown>;
      assert.deepEqual({ files, bytes, cacheDirectory }, { files: 1, bytes: BYTES, cacheDirectory: cache });
      server.judge = () => null;
      server.store = new MemoryStore();
      const env = { AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey };
      const next = await DaemonProcess.start(args, { env });
      assert.match(next.stderr, /goes on: s3:\/\/bucket\/f: 2097152 bytes, 2097152 of them only here/);
      assert.deepEqual(await next.stop(), { code: 0, signal: null }, next.stderr);
      assert.equal((await objectOf(server.store, 'f')).length, BYTES);
    }));
}
