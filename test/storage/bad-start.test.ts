/**
 * Starts that fail, and some that do not: the real daemon on a bucket, a provider or a cache directory that is not as it should be. One
 * sentence each, exit code 1, and no socket. What goes wrong later is in bad-input.test.ts.
 */
import assert from 'node:assert/strict';
import { execFileSync } from 'node:child_process';
import { appendFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { before, describe, test } from 'node:test';
import { crc32 } from 'node:zlib';
import { E } from '../../src/base/errno.js';
import { BUCKET, BucketStarts, endOf, KEYS } from '../support/bucket-starts.js';
import { DaemonProcess } from '../support/daemon.js';
import { GcsServer } from '../support/gcs/server.js';
import { FuseClient } from '../support/guest.js';
import { Files } from '../support/object-files.js';
import { S3Server, type Harm } from '../support/s3/server.js';

const start = new BucketStarts();
const { scratch, socket, clean, at, fresh, refused, starts } = start;

type Refusal = Extract<Harm, { readonly status: number }>;
const CHECK_KEYS = 'check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with --profile; for a public bucket use --unsigned';

describe('what the provider says', () => {
  const table: [string, Refusal, string][] = [
    ['an unknown key', { status: 403, code: 'InvalidAccessKeyId', message: 'No such key.' }, `the credentials are missing or wrong (No such key.): ${CHECK_KEYS}`],
    ['a wrong secret', { status: 403, code: 'SignatureDoesNotMatch', message: 'It does not match.' }, `the credentials are missing or wrong (It does not match.): ${CHECK_KEYS}`],
    ['a token that has expired', { status: 400, code: 'ExpiredToken', message: 'Expired.' }, 'the credentials have expired: get new ones, or let the environment renew them'],
    ['no right to list', { status: 403, code: 'AccessDenied', message: 'Access Denied' },
      'these credentials may not list it (Access Denied): they need s3:ListBucket and s3:GetObject'],
    ['another region, and which', { status: 301, code: 'PermanentRedirect', message: 'Use it.', headers: { 'x-amz-bucket-region': 'eu-north-2' } },
      'the bucket is in another region (Use it.): use --region eu-north-2'],
    ['another region, in the words of signatures', { status: 400, code: 'AuthorizationHeaderMalformed', message: 'Wrong region.', more: '<Region>eu-north-2</Region>' },
      'the bucket is in another region (Wrong region.): use --region eu-north-2'],
    ['another region, and not which', { status: 301, code: 'PermanentRedirect', message: 'Use\nit.' }, 'the bucket is in another region (Use it.): check --region and --endpoint'],
    ['a clock that is wrong', { status: 403, code: 'RequestTimeTooSkewed', message: 'The difference is too large.' },
      'the clock of this host is too far off: set it (The difference is too large.)'],
    ['that it is busy', { status: 503, code: 'SlowDown', message: 'Slow down.' }, 'ENDPOINT does not serve at the moment (Slow down.): try again later'],
    ['that it is ill', { status: 500, code: 'InternalError', message: 'Internal.' }, 'ENDPOINT does not serve at the moment (Internal.): try again later'],
  ];
  for (const [what, harm, expected] of table) {
    test(what, async () => {
      start.server.judge = () => harm;
      assert.equal(await refused([...BUCKET, ...at()]), `cannot share s3://bucket: ${expected.replace('ENDPOINT', start.server.endpoint)}`);
    });
  }

  test('no such bucket', async () => {
    assert.equal(await refused(['--source', 's3://nobody-has-it/x', ...at()]), `cannot share s3://nobody-has-it/x: there is no bucket nobody-has-it at ${start.server.endpoint}`);
    const gcs = await GcsServer.start();
    try {
      assert.equal(await refused(['--source', 'gs://nobody-has-it', '--unsigned', '--endpoint', gcs.url], {}), `cannot share gs://nobody-has-it: there is no bucket nobody-has-it at ${gcs.url}`);
    } finally {
      await gcs.close();
    }
  });

  test('no credentials anywhere', async () => {
    const sentence = await refused([...BUCKET, ...at()], {});
    assert.equal(sentence, `cannot share s3://bucket: the credentials are missing or wrong (Could not load credentials from any providers): ${CHECK_KEYS}`);
    assert.equal(start.server.requests.length, 0);
  });

  test('something that is no S3', async () => {
    start.server.judge = () => ({ edit: () => '<html><body>It works!</body></html>' });
    assert.equal(
      await refused([...BUCKET, ...at(), '--readonly']),
      `cannot share s3://bucket: ${start.server.endpoint} does not accept the request (the answer is no listing of S3): check --endpoint, --region and --path-style`,
    );
  });

  test('that it may be read only: the guest reads it, and changes are EACCES', async () => {
    await start.server.store.put('there', new TextEncoder().encode('content'));
    start.server.judge = ({ operation }) => (['list', 'head', 'get'].includes(operation) ? null : { status: 403, code: 'AccessDenied', message: 'Access Denied' });
    const cache = fresh();
    await starts([...BUCKET, ...at(), '--cache-dir', cache], async (daemon) => {
      assert.match(daemon.stderr, /these credentials may not write to s3:\/\/bucket \(Access Denied\): it can be read, and changes fail until they may/);
      const client = await FuseClient.connect(socket);
      const files = new Files(client);
      assert.equal(String(await files.content('there')), 'content');
      const file = await files.create('new');
      assert.equal(await files.write(file, 0, new TextEncoder().encode('kept')), 0);
      assert.equal(await files.close(file), -E.ACCES);
      endOf(client);
    }, 3);
    assert.ok(!existsSync(join(cache, 'capabilities.json')), 'what nobody was allowed to try is not remembered');
    start.server.judge = () => null;
    await starts([...BUCKET, ...at(), '--cache-dir', cache], async (daemon) => {
      assert.match(daemon.stderr, /recovery: goes on: s3:\/\/bucket\/new: 4 bytes, 4 of them only here/);
    });
    assert.equal((await start.server.store.head('new')).size, 4, 'what was acknowledged goes there when it may');
  });
});

describe('the way there', () => {
  test('nobody listens, and a name that nobody knows', async () => {
    assert.equal(
      await refused([...BUCKET, ...at('http://127.0.0.1:1')]),
      'cannot share s3://bucket: http://127.0.0.1:1 cannot be reached (connect ECONNREFUSED 127.0.0.1:1): check --endpoint',
    );
    assert.match(await refused([...BUCKET, ...at('http://no-such-host.invalid')]), /^cannot share s3:\/\/bucket: http:\/\/no-such-host.invalid cannot be reached \(getaddrinfo .*\): check --endpoint$/);
  });

  test('a connection that is closed without an answer', async () => {
    start.server.judge = () => 'drop';
    assert.equal(await refused([...BUCKET, ...at()]), `cannot share s3://bucket: ${start.server.endpoint} cannot be reached (socket hang up): check --endpoint`);
  });

  describe('certificates', () => {
    let path: string;
    let tls: { key: string; cert: string };
    before(() => {
      path = join(scratch, 'tls');
      execFileSync('openssl', [
        'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-keyout', `${path}.key`, '-out', `${path}.crt`, '-days', '2', '-subj', '/CN=test',
        '-addext', 'subjectAltName=DNS:localhost',
      ], { stdio: 'ignore', timeout: 30_000 });
      tls = { key: readFileSync(`${path}.key`, 'utf8'), cert: readFileSync(`${path}.crt`, 'utf8') };
    });

    const secured = async (body: (secure: S3Server) => Promise<void>): Promise<void> => {
      const secure = await S3Server.start({ tls });
      try {
        await body(secure);
      } finally {
        await secure.stop();
      }
    };

    test('of another name', () => secured(async ({ endpoint }) => {
      const sentence = await refused([...BUCKET, ...at(endpoint), '--ca-bundle', `${path}.crt`]);
      assert.equal(
        sentence,
        `cannot share s3://bucket: the connection to ${endpoint} cannot be secured (Hostname/IP does not match certificate's altnames: ` +
          "IP: 127.0.0.1 is not in the cert's list: ): --endpoint must have a name that is in the certificate",
      );
    }));

    test('that nobody here has signed', () => secured(async ({ port }) => {
      const endpoint = `https://localhost:${port}`;
      assert.equal(
        await refused([...BUCKET, ...at(endpoint)]),
        `cannot share s3://bucket: the connection to ${endpoint} cannot be secured (self-signed certificate): name the certificates to trust with --ca-bundle`,
      );
      await starts([...BUCKET, ...at(endpoint), '--ca-bundle', `${path}.crt`]);
    }));

    test('that are none: the endpoint speaks plain HTTP', async () => {
      const endpoint = start.server.endpoint.replace('http', 'https');
      assert.match(await refused([...BUCKET, ...at(endpoint)]), /^cannot share s3:\/\/bucket: the connection to https:.* cannot be secured \(.*wrong version number.*\): if it speaks plain HTTP, --endpoint begins with http:\/\/$/);
    });
  });
});

describe('the cache directory', () => {
  const root = process.geteuid!() === 0 ? false : 'mounting needs root';
  
  test('a file, or below one', async () => {
    const file = fresh();
    writeFileSync(file, '');
    assert.equal(
      await refused([...BUCKET, ...at(), '--cache-dir', file]),
      `cannot share s3://bucket: its cache directory ${file} cannot be made (EEXIST: file already exists, mkdir '${file}'): name another one with --cache-dir`,
    );
  });

  test('where no directory can be made', async () => {
    for (const path of ['/proc/none', '/proc/none/of/these', '/proc/self/fd/none']) {
      assert.match(await refused([...BUCKET, ...at(), '--cache-dir', path]), new RegExp(`^cannot share s3://bucket: its cache directory ${path} cannot be made \\(ENOENT: .*, mkdir '/proc/.*none'\\): name another one with --cache-dir$`));
    }
  });

  test('read-only', { skip: root }, async () => {
    const path = fresh();
    mkdirSync(path);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro,mode=0700', 'test', path]);
    try {
      assert.equal(
        await refused([...BUCKET, ...at(), '--cache-dir', path]),
        `cannot share s3://bucket: the cache directory ${path} cannot be used (EROFS: read-only file system, open '${path}/lock'): it must be writable, it keeps what is not in the bucket yet`,
      );
    } finally {
      execFileSync('umount', ['-l', path]);
    }
  });

  test('on a read-only file system, where it does not exist yet', { skip: root }, async () => {
    const path = fresh();
    mkdirSync(path);
    execFileSync('mount', ['-t', 'tmpfs', '-o', 'ro', 'test', path]);
    try {
      assert.equal(
        await refused([...BUCKET, ...at(), '--cache-dir', join(path, 'new/er')]),
        `cannot share s3://bucket: its cache directory ${path}/new/er cannot be made (EROFS: read-only file system, mkdir '${path}/new'): name another one with --cache-dir`,
      );
    } finally {
      execFileSync('umount', ['-l', path]);
    }
  });

  test('on a disk that is smaller than --cache-size', async () => {
    const path = fresh();
    for (const more of [[], ['--readonly']]) {
      assert.match(
        await refused([...BUCKET, ...at(), '--cache-dir', path, '--cache-size', String(1 << 20), ...more]),
        /^cannot share s3:\/\/bucket: --cache-size is 1048576 MiB, and the disk of \/.* has \d+: choose a smaller one, or another --cache-dir$/,
      );
    }
  });

  test('of a daemon that runs', async () => {
    const path = fresh();
    await starts([...BUCKET, ...at(), '--cache-dir', path], async (daemon) => {
      const second = new DaemonProcess(['--socket-path', `${socket}-2`, ...BUCKET, ...at(), '--cache-dir', path], { env: clean(KEYS) });
      await second.fails(1, /./);
      assert.equal(
        second.stderr,
        `bucketfsd: cannot share s3://bucket: the cache directory ${path} is in use by another bucketfsd (pid ${daemon.pid}): give each daemon a --cache-dir of its own\n`,
      );
      assert.equal(existsSync(`${socket}-2`), false);
    });
    await starts([...BUCKET, ...at(), '--cache-dir', path]);
  });

  test('of another bucket, or another prefix', async () => {
    const path = fresh();
    await starts([...BUCKET, ...at(), '--cache-dir', path]);
    assert.equal(
      await refused(['--source', 's3://bucket/prefix', ...at(), '--cache-dir', path]),
      `cannot share s3://bucket/prefix: the cache directory ${path} belongs to s3://bucket/, not to s3://bucket/prefix/: give each share a --cache-dir of its own`,
    );
  });

  test('with a share.json or a journal of another version, or damaged: nothing is changed', async () => {
    const path = fresh();
    await starts([...BUCKET, ...at(), '--cache-dir', path]);
    const journal = join(path, 'journal');
    const identity = join(path, 'share.json');
    const before = { [journal]: readFileSync(journal), [identity]: readFileSync(identity) };
    const frame = (mark: string, payload: Buffer): Buffer => {
      const head = Buffer.alloc(12);
      head.write(mark);
      head.writeUInt32LE(payload.length, 4);
      head.writeUInt32LE(crc32(payload), 8);
      return Buffer.concat([head, payload]);
    };
    const record = (text: string): Buffer => frame('BFJ1', Buffer.from(text));
    const synced = (offset: number): Buffer => {
      const payload = Buffer.alloc(8);
      payload.writeBigUInt64LE(BigInt(offset));
      return frame('BFS1', payload);
    };
    const header = 'bucketfsd journal 2\n';
    const damaged = Buffer.concat([Buffer.from(header), record('{"t":"drop","id":1}'), Buffer.from('garbage'), record('{"t":"drop","id":2}'), synced(58)]);
    const cases: [string, string | Buffer, string][] = [
      [journal, 'bucketfsd journal 3\n', `${journal} has version 3, this bucketfsd knows version 2: start the one that wrote it; nothing was changed`],
      [journal, 'something else\n', `${journal} is no journal of bucketfsd; it was left as it is`],
      [journal, damaged, `${journal} is damaged at byte 51, which had been on the disk: restore it, or move it away to give up what it says; nothing was changed`],
      [journal, Buffer.concat([Buffer.from(header), record('{"t":"later"}')]),
        `${journal}: the journal has a record that this bucketfsd does not know (later): start the version that wrote it; nothing was changed`],
      [identity, '{"format":7,"location":"s3://bucket","prefix":""}', `${path} has format 7, this bucketfsd knows format 1: start the one that made it; nothing was changed`],
      [identity, '{"form', `${identity} is damaged; nothing was changed: restore it, or remove it if you know whose the directory is`],
    ];
    for (const [file, content, expected] of cases) {
      writeFileSync(file, content);
      assert.equal(await refused([...BUCKET, ...at(), '--cache-dir', path]), `cannot share s3://bucket: ${expected}`);
      assert.deepEqual(readFileSync(file), Buffer.from(content), 'as it was');
      writeFileSync(file, before[file]);
    }
    await starts([...BUCKET, ...at(), '--cache-dir', path]);
  });

  test('with a journal whose end is damaged: what is before it is taken up, what is cut off is kept and reported', async () => {
    const path = fresh();
    const daemon = await DaemonProcess.start(['--socket-path', socket, ...BUCKET, ...at(), '--cache-dir', path, '--durability', 'writeback', '--writeback-delay', '3600'], { env: clean(KEYS) });
    const client = await FuseClient.connect(socket);
    const files = new Files(client);
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, new TextEncoder().encode('acknowledged')), 0);
    assert.equal(await files.fsync(file), 0);
    await daemon.stop('SIGKILL');
    endOf(client);
    appendFileSync(join(path, 'journal'), 'BFJ1 and then the machine went down');
    await starts([...BUCKET, ...at(), '--cache-dir', path], async ({ stderr }) => {
      assert.ok(stderr.includes(`recovery: the journal ended with 35 bytes that were never finished: they are in ${path}/journal.tail`), stderr);
      assert.match(stderr, /recovery: goes on: s3:\/\/bucket\/f: 12 bytes, 12 of them only here/);
    });
    assert.equal(readFileSync(join(path, 'journal.tail'), 'utf8'), 'BFJ1 and then the machine went down');
    assert.equal((await start.server.store.head('f')).size, 12);
  });
});
