/**
 * Who is asked for credentials may answer without end, never, or as slowly as he likes: the providers' libraries read that, and they bound none of it. A call fails then,
 * in time and with little memory, and the next one that gets an answer works.
 *
 * Tried: each service that a library asks by itself (the metadata of a machine, of a container, STS, SSO; Google's metadata, token exchange, the source of a subject's token), each
 * with a body without end, a refusal without end, a head without end, no answer, one that drips. Certificates and files are the host's own.
 */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { once } from 'node:events';
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { createServer, type AddressInfo, type Server, type Socket } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { StorageError } from '../../src/storage/object/errors.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { killDaemons } from '../support/daemon.js';
import { BucketStarts } from '../support/bucket-starts.js';
import { S3Server } from '../support/s3/server.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const WITHIN_MS = 300;
/** Attempts of a library, each with a MiB, and what lies in buffers between both ends. */
const SENT_MAX_BYTES = 32 << 20;
const CHUNK = Buffer.alloc(64 << 10, 'x');

type Kind = 'a body without end' | 'a refusal without end' | 'a head without end' | 'no answer' | 'an answer that drips' | 'keys';
const KINDS = ['a body without end', 'a refusal without end', 'a head without end', 'no answer', 'an answer that drips'] as const satisfies readonly Kind[];

/** Asked for credentials, it does this. */
class CredentialServer {
  kind: Kind = 'no answer';
  sentBytes = 0;
  readonly #server: Server;
  readonly #sockets = new Set<Socket>();

  private constructor() {
    this.#server = createServer((socket) => {
      this.#sockets.add(socket);
      socket.on('error', () => undefined).on('close', () => this.#sockets.delete(socket)).once('data', () => this.#answer(socket));
    });
  }

  static async start(): Promise<CredentialServer> {
    const one = new CredentialServer();
    one.#server.listen(0, '127.0.0.1');
    await once(one.#server, 'listening');
    return one;
  }

  get host(): string {
    return `127.0.0.1:${(this.#server.address() as AddressInfo).port}`;
  }

  #answer(socket: Socket): void {
    const json = 'content-type: application/json\r\n';
    switch (this.kind) {
      case 'no answer':
        return;
      case 'an answer that drips': {
        socket.write(`HTTP/1.1 200 OK\r\n${json}transfer-encoding: chunked\r\n\r\n`);
        const timer = setInterval(() => socket.write('1\r\n \r\n'), 20);
        socket.on('close', () => clearInterval(timer));
        return;
      }
      case 'keys': {
        const body = JSON.stringify({ AccessKeyId: S3Server.CREDENTIALS.accessKeyId, SecretAccessKey: S3Server.CREDENTIALS.secretAccessKey, Token: 't', Expiration: new Date(Date.now() + 1).toISOString() });
        socket.end(`HTTP/1.1 200 OK\r\n${json}content-length: ${body.length}\r\nconnection: close\r\n\r\n${body}`);
        return;
      }
      default:
        socket.write(this.kind === 'a head without end' ? 'HTTP/1.1 200 OK\r\nx-long: ' : `HTTP/1.1 ${this.kind === 'a refusal without end' ? '500 No' : '200 OK'}\r\n${json}\r\n`);
        this.#pour(socket);
    }
  }

  #pour(socket: Socket): void {
    if (socket.destroyed) return;
    // Past any bound the memory of the tests themselves is spared
    if ((this.sentBytes += CHUNK.length) > 4 * SENT_MAX_BYTES) return void socket.destroy();
    if (socket.write(CHUNK)) setImmediate(() => this.#pour(socket));
    else socket.once('drain', () => this.#pour(socket));
  }

  async stop(): Promise<void> {
    this.#server.close();
    for (const socket of this.#sockets) socket.destroy();
    await once(this.#server, 'close');
  }
}

let scratch = '';
let server: CredentialServer;
let environment: NodeJS.ProcessEnv;
before(async () => {
  environment = { ...process.env };
  scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-credentials-'));
  writeFileSync(join(scratch, 'token'), 'a token');
  server = await CredentialServer.start();
});
after(async () => {
  restore();
  await server.stop();
  killDaemons();
  rmSync(scratch, { recursive: true, force: true });
});

function restore(): void {
  for (const name of Object.keys(process.env)) if (!(name in environment)) delete process.env[name];
  Object.assign(process.env, environment);
}

/** Nothing of who runs the tests. */
function only(values: Readonly<Record<string, string>>): void {
  for (const name of Object.keys(process.env)) if (/^(?:AWS_(?!SDK_JS)|GOOGLE_|GCE_|GCLOUD_|METADATA_)/.test(name)) delete process.env[name];
  Object.assign(process.env, { HOME: scratch, CLOUDSDK_CONFIG: scratch, ...values });
}

const s3 = (endpoint = 'http://127.0.0.1:1'): ObjectStore => new S3Store({ bucket: S3Server.BUCKET, endpoint, region: 'us-east-1', pathStyle: true, credentialsWithin_ms: WITHIN_MS });
const gcs = (): ObjectStore => new GcsStore({ bucket: 'b', endpoint: 'http://127.0.0.1:1', credentialsWithin_ms: WITHIN_MS });
const OTHERS = { AWS_EC2_METADATA_DISABLED: 'true' };

function federated(source: object, token_url: string): Readonly<Record<string, string>> {
  const path = join(scratch, 'key.json');
  writeFileSync(path, JSON.stringify({
    type: 'external_account', audience: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/p',
    subject_token_type: 'urn:ietf:params:oauth:token-type:jwt', token_url, credential_source: source,
  }));
  return { GOOGLE_APPLICATION_CREDENTIALS: path };
}

function signedOn(): Readonly<Record<string, string>> {
  const start = 'http://start/';
  const home = join(scratch, 'signed-on');
  mkdirSync(join(home, '.aws/sso/cache'), { recursive: true });
  const config = join(home, '.aws/config');
  writeFileSync(config, `[default]\nsso_start_url = ${start}\nsso_region = us-east-1\nsso_account_id = 1\nsso_role_name = r\n`);
  const token = { startUrl: start, region: 'us-east-1', accessToken: 't', expiresAt: '2099-01-01T00:00:00Z' };
  writeFileSync(join(home, `.aws/sso/cache/${createHash('sha1').update(start).digest('hex')}.json`), JSON.stringify(token));
  return { ...OTHERS, HOME: home, AWS_CONFIG_FILE: config, AWS_ENDPOINT_URL_SSO: `http://${server.host}` };
}

const SERVICES: readonly (readonly [what: string, open: () => ObjectStore, settings: () => Readonly<Record<string, string>>])[] = [
  ["a machine's metadata", s3, () => ({ AWS_EC2_METADATA_SERVICE_ENDPOINT: `http://${server.host}` })],
  ["a container's metadata", s3, () => ({ ...OTHERS, AWS_CONTAINER_CREDENTIALS_FULL_URI: `http://${server.host}/keys` })],
  ['STS', s3, () => ({ ...OTHERS, AWS_WEB_IDENTITY_TOKEN_FILE: join(scratch, 'token'), AWS_ROLE_ARN: 'arn:aws:iam::1:role/r', AWS_ENDPOINT_URL_STS: `http://${server.host}` })],
  ['SSO', s3, signedOn],
  ["Google's metadata", gcs, () => ({ GCE_METADATA_HOST: server.host, METADATA_SERVER_DETECTION: 'assume-present' })],
  ["Google's token exchange", gcs, () => federated({ file: join(scratch, 'token') }, `http://${server.host}/token`)],
  ["a subject's token", gcs, () => federated({ url: `http://${server.host}/subject` }, 'http://127.0.0.1:1/token')],
];

for (const [what, open, settings] of SERVICES) {
  describe(`credentials from ${what}`, () => {
    for (const kind of KINDS) {
      test(`${kind} is a StorageError, and little of it is taken`, { timeout: 60_000 }, async () => {
        only(settings());
        Object.assign(server, { kind, sentBytes: 0 });
        const store = open();
        await assert.rejects(store.check(), StorageError);
        await store.close();
        assert.ok(server.sentBytes <= SENT_MAX_BYTES, `${server.sentBytes >> 20} MiB`);
      });
    }
  });
}

describe('a daemon', () => {
  const starts = new BucketStarts();
  beforeEach(() => Object.assign(server, { sentBytes: 0 }));

  test('goes on after credentials that could not be renewed', { timeout: 60_000 }, async () => {
    only({ ...OTHERS, AWS_CONTAINER_CREDENTIALS_FULL_URI: `http://${server.host}/keys` });
    const store = s3(starts.server.endpoint);
    // They are at their end at once: each call asks for others
    for (const kind of ['keys', 'a body without end', 'keys', 'an answer that drips', 'keys'] as const) {
      server.kind = kind;
      if (kind === 'keys') await store.check();
      else await store.check().catch((error: unknown) => assert.ok(error instanceof StorageError));
    }
    await store.close();
  });

  test('does not start with credentials without end, and says so in one sentence', { timeout: 60_000 }, async () => {
    server.kind = 'a body without end';
    const sentence = await starts.refused([...starts.at(), '--source', 's3://bucket', '--region', 'us-east-1'], {
      AWS_EC2_METADATA_DISABLED: undefined, AWS_EC2_METADATA_SERVICE_ENDPOINT: `http://${server.host}`,
    });
    assert.match(sentence, /credentials are missing or wrong/);
    assert.ok(server.sentBytes <= SENT_MAX_BYTES, `${server.sentBytes >> 20} MiB`);
  });
});
