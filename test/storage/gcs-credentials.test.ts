/** Who asks, and whom: tokens as the client library gets them, and certificates. Nothing leaves the loopback. */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, beforeEach, describe, test } from 'node:test';
import { GcsStore, type GcsOptions } from '../../src/storage/object/stores/gcs.js';
import { GcsServer } from '../support/gcs/server.js';
import { failure } from '../support/gcs/subject.js';
import { contentOf, pattern } from './contract.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
let scratch: string;
before(() => {
  scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-gcs-'));
});
after(() => rmSync(scratch, { recursive: true, force: true }));

/** Sets variables of the environment until the returned function is called. */
function environment(values: Readonly<Record<string, string | undefined>>): () => void {
  const old = Object.keys(values).map((name) => [name, process.env[name]] as const);
  const set = (name: string, value: string | undefined): void => {
    if (value === undefined) delete process.env[name];
    else process.env[name] = value;
  };
  for (const [name, value] of Object.entries(values)) set(name, value);
  return () => {
    for (const [name, value] of old) set(name, value);
  };
}

describe('credentials', () => {
  let server: GcsServer;
  let restore: () => void;
  let keyFile: string;
  let key: Record<string, unknown>;
  let lookups = 0;
  const metadataServer = createServer((socket) => {
    lookups++;
    socket.destroy();
  });
  const open = (options: Partial<GcsOptions> = {}): GcsStore => new GcsStore({ bucket: 'b', endpoint: server.url, ...options });
  const asked = (operation: string): number => server.seen.filter((one) => one.operation === operation).length;

  before(async () => {
    server = await GcsServer.start({ authenticate: true });
    server.createBucket('b');
    await new Promise<void>((resolve) => metadataServer.listen(0, '127.0.0.1', resolve));
    const { port } = metadataServer.address() as { port: number };
    writeFileSync(join(scratch, 'subject'), 'a token of somebody else');
    // Workload identity federation: the one kind of credentials whose token endpoint may be anywhere.
    key = {
      type: 'external_account', audience: '//iam.googleapis.com/projects/1/locations/global/workloadIdentityPools/pool/providers/p',
      subject_token_type: 'urn:ietf:params:oauth:token-type:jwt', token_url: `${server.url}/token`, credential_source: { file: join(scratch, 'subject') },
    };
    keyFile = join(scratch, 'key.json');
    writeFileSync(keyFile, JSON.stringify(key));
    restore = environment({
      GOOGLE_APPLICATION_CREDENTIALS: undefined, GCLOUD_PROJECT: undefined, GOOGLE_CLOUD_PROJECT: undefined, STORAGE_EMULATOR_HOST: undefined,
      CLOUDSDK_CONFIG: scratch, HOME: scratch, GCE_METADATA_HOST: `127.0.0.1:${port}`,
    });
  });
  beforeEach(() => {
    server.faults.heal();
    server.seen.length = 0;
    server.tokens = { lifetime_s: 3600 };
    lookups = 0;
  });
  after(async () => {
    restore();
    metadataServer.close();
    await server.close();
  });

  test('the default ones are found by the environment: one token for many calls, and nobody else is asked', async () => {
    const undo = environment({ GOOGLE_APPLICATION_CREDENTIALS: keyFile });
    try {
      const store = open();
      assert.equal(server.seen.length, 0);
      await store.check();
      for (let i = 0; i < 5; i++) await store.put(`k${i}`, bytes('x'));
      assert.deepEqual([asked('token'), lookups], [1, 0]);
    } finally {
      undo();
    }
  });

  test('a key file, or its content, may be given instead', async () => {
    await open({ credentials: { keyFile } }).check();
    await open({ credentials: { key } }).check();
    assert.deepEqual([asked('token'), lookups], [2, 0]);
  });

  test('anonymous asks for no token and sends none', async () => {
    const undo = environment({ GOOGLE_APPLICATION_CREDENTIALS: keyFile });
    try {
      const error = await failure(open({ credentials: 'anonymous' }).check());
      assert.deepEqual([error.code, error.detail.providerCode, asked('token'), lookups], ['bad-credentials', 'required', 0, 0]);
      assert.equal(server.seen[0].headers.authorization, undefined);
    } finally {
      undo();
    }
  });

  test('none at all is bad-credentials, and says what to do', async () => {
    const undo = environment({ METADATA_SERVER_DETECTION: 'none' });
    try {
      const error = await failure(open().check());
      assert.equal(error.code, 'bad-credentials');
      assert.match(error.message, /default credentials/);
    } finally {
      undo();
    }
  });

  test('a token that is about to end is replaced in time', async () => {
    server.tokens = { lifetime_s: 1 };
    const store = open({ credentials: { key } });
    for (let i = 0; i < 3; i++) await store.check();
    assert.equal(asked('token'), 3);
  });

  test('a token that is withdrawn in the middle of things is replaced, and the request with its body sent again', async () => {
    const path = join(scratch, 'body');
    writeFileSync(path, pattern(500_000));
    const fd = openSync(path, 'r');
    try {
      for (const resumableFromBytes of [1, 1 << 30]) {
        const store = open({ credentials: { key }, resumableFromBytes });
        await store.check();
        server.revokeTokens();
        await store.put('withdrawn', { fd, offset: 0, bytes: 500_000 });
        server.revokeTokens();
        assert.ok(Buffer.from(await contentOf(store, 'withdrawn')).equals(pattern(500_000)));
      }
      assert.equal(asked('token'), 6);
    } finally {
      closeSync(fd);
    }
  });

  test('a session at another host is refused, and nothing is sent there', async () => {
    const other = await GcsServer.start({ sessionsAt: 'localhost' });
    other.createBucket('b');
    const store = open({ endpoint: other.url, credentials: { key }, resumableFromBytes: 1, userProject: 'p' });
    try {
      const error = await failure(store.put('k', pattern(300_000)));
      assert.equal(error.code, 'unexpected');
      assert.match(error.message, /localhost.* is not at http:..127\.0\.0\.1:/);
      assert.deepEqual(other.seen.map(({ operation }) => operation), ['upload.start']);
    } finally {
      await store.close();
      await other.close();
    }
  });

  test('a withdrawn token without another is `expired`; one that never was good is bad-credentials', async () => {
    const store = open({ credentials: { key } });
    const refuse = (): void => server.faults.inject({ operation: 'objects.list', times: 2, harm: { kind: 'status', status: 401 } });
    refuse();
    assert.equal((await failure(store.check())).code, 'bad-credentials');
    await store.check();
    refuse();
    const error = await failure(store.check());
    assert.deepEqual([error.code, error.detail.status, server.faults.pending], ['expired', 401, 0]);
    server.revokeTokens();
    server.tokens = { error: 'invalid_grant', description: 'The subject token has expired.' };
    const refused = await failure(store.put('k', bytes('x')));
    assert.deepEqual([refused.code, refused.detail.ambiguous], ['expired', undefined]);
  });

  test('a token endpoint that knows nobody, a key file that is none: bad-credentials', async () => {
    server.tokens = { error: 'invalid_target', description: 'No such provider.' };
    assert.equal((await failure(open({ credentials: { key } }).check())).code, 'bad-credentials');
    assert.equal((await failure(open({ credentials: { keyFile: join(scratch, 'none.json') } }).check())).code, 'bad-credentials');
    writeFileSync(join(scratch, 'odd.json'), 'no JSON');
    assert.equal((await failure(open({ credentials: { keyFile: join(scratch, 'odd.json') } }).check())).code, 'bad-credentials');
  });

  test('a token endpoint that is not there is unreachable, and nothing is in doubt', async () => {
    const gone = await GcsServer.start();
    const token_url = `${gone.url}/token`;
    await gone.close();
    const error = await failure(open({ credentials: { key: { ...key, token_url } } }).put('k', bytes('x')));
    assert.deepEqual([error.code, error.detail.ambiguous], ['unreachable', undefined]);
  });

  test('a caller who gives up does not wait for a token', async () => {
    server.faults.inject({ operation: 'token', harm: { kind: 'delay', ms: 60_000 } });
    const giveUp = new AbortController();
    const check = failure(open({ credentials: { key } }).check({ signal: giveUp.signal }));
    while (asked('token') === 0) await new Promise((resolve) => setTimeout(resolve, 5));
    giveUp.abort();
    assert.equal((await check).code, 'aborted');
  });
});

describe('certificates', () => {
  /** A certificate that signs itself, for these names. */
  function certificate(names: string): { key: string; cert: string } {
    const [key, cert] = [join(scratch, 'tls.key'), join(scratch, 'tls.crt')];
    execFileSync('openssl', [
      'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', key, '-out', cert, '-days', '2', '-subj', '/CN=test',
      '-addext', `subjectAltName=${names}`,
    ], { stdio: 'ignore', timeout: 30_000 });
    return { key: readFileSync(key, 'utf8'), cert: readFileSync(cert, 'utf8') };
  }

  for (const [name, names, trusted, expected] of [
    ['a certificate that was said to be trusted is', 'IP:127.0.0.1', true, null],
    ['one that nobody knows is not: unreachable', 'IP:127.0.0.1', false, 'DEPTH_ZERO_SELF_SIGNED_CERT'],
    ['one of another name is not: unreachable', 'DNS:other.example', true, 'ERR_TLS_CERT_ALTNAME_INVALID'],
  ] as const) {
    test(name, async (t) => {
      let tls: { key: string; cert: string };
      try {
        tls = certificate(names);
      } catch (error) {
        return t.skip(`openssl makes no certificate here: ${String(error)}`);
      }
      const server = await GcsServer.start({ tls });
      server.createBucket('b');
      const store = new GcsStore({ bucket: 'b', endpoint: server.url, credentials: 'anonymous', ...(trusted ? { ca: tls.cert } : {}) });
      try {
        if (expected === null) {
          await store.put('k', pattern(100_000));
          assert.equal((await store.head('k')).size, 100_000);
        } else {
          const error = await failure(store.put('k', bytes('x')));
          assert.deepEqual([error.code, error.detail.providerCode, error.detail.ambiguous], ['unreachable', expected, undefined]);
        }
      } finally {
        await store.close();
        await server.close();
      }
    });
  }
});
