/** Starts of the real daemon on a bucket of the tests' server: one that is refused, with its sentence, and one that is not. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, afterEach, beforeEach } from 'node:test';
import { DaemonProcess, killDaemons } from './daemon.js';
import type { FuseClient } from './guest.js';
import { S3Server } from './s3/server.js';

export const KEYS = { AWS_ACCESS_KEY_ID: S3Server.CREDENTIALS.accessKeyId, AWS_SECRET_ACCESS_KEY: S3Server.CREDENTIALS.secretAccessKey };
export const BUCKET = ['--source', 's3://bucket'];

/** Has a server for each test of the file that makes it, and a directory for all. */
export class BucketStarts {
  readonly scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-start-'));
  readonly socket = join(this.scratch, 'socket');
  #server: S3Server | null = null;
  #directories = 0;

  constructor() {
    after(() => {
      killDaemons();
      rmSync(this.scratch, { recursive: true });
    });
    beforeEach(async () => {
      this.#server = await S3Server.start();
    });
    afterEach(() => this.server.stop());
  }

  get server(): S3Server {
    return this.#server!;
  }

  /** Nothing of who runs the tests. */
  readonly clean = (more: NodeJS.ProcessEnv): NodeJS.ProcessEnv => ({
    ...Object.fromEntries(Object.keys(process.env).filter((name) => name.startsWith('AWS_') || name.startsWith('GOOGLE_')).map((name) => [name, undefined])),
    HOME: this.scratch, XDG_STATE_HOME: join(this.scratch, 'state'), STATE_DIRECTORY: join(this.scratch, 'state'), AWS_EC2_METADATA_DISABLED: 'true', ...more,
  });

  readonly at = (endpoint = this.server.endpoint): string[] => ['--endpoint', endpoint, '--path-style'];

  /** A path that nothing is at. */
  readonly fresh = (): string => join(this.scratch, `d${++this.#directories}`);

  /** It must not start. @returns its sentence */
  readonly refused = async (args: readonly string[], env: NodeJS.ProcessEnv = KEYS): Promise<string> => {
    const daemon = new DaemonProcess(['--socket-path', this.socket, ...args], { env: this.clean(env) });
    assert.deepEqual(await daemon.ended, { code: 1, signal: null }, daemon.stderr);
    assert.equal(existsSync(this.socket), false);
    const [, sentence] = /^bucketfsd: ([^\n]+)\n$/.exec(daemon.stderr) ?? [];
    assert.ok(sentence !== undefined, `one sentence: ${daemon.stderr.slice(0, 2000)}`);
    return sentence;
  };

  /** It must start, and end when told to; `code` 3: some data is only here then. */
  readonly starts = async (args: readonly string[], body: (daemon: DaemonProcess) => Promise<void> = async () => undefined, code = 0): Promise<void> => {
    const daemon = await DaemonProcess.start(['--socket-path', this.socket, ...args], { env: this.clean(KEYS) });
    try {
      await body(daemon);
    } finally {
      assert.deepEqual(await daemon.stop(), { code, signal: null }, daemon.stderr);
    }
  };
}

export function endOf(client: FuseClient): void {
  client.frontend.close();
  client.queue.close();
  client.memory.close();
}
