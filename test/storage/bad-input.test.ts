/**
 * What buckets, their providers and the way to them get wrong, as a guest meets it: the errno, the line in the log, and that nothing
 * acknowledged is lost. Starts that fail are in bad-start.test.ts. docs/TESTING.md has a table of all of them.
 */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { crc32 } from 'node:zlib';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { AdaptiveLimit, withLimit } from '../../src/storage/object/layers/limit.js';
import { withDeadline } from '../../src/storage/object/layers/deadline.js';
import { withRestart } from '../../src/storage/object/layers/restart.js';
import { withRetry } from '../../src/storage/object/layers/retry.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store, type S3Options } from '../../src/storage/object/stores/s3.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { S3Server, type Harm, type S3Operation, type S3Request } from '../support/s3/server.js';
import { pattern } from './contract.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const KIB = 1 << 10;
/** So that half a megabyte is an upload in parts. */
const SMALL = { putMaxBytes: 64 * KIB, partBytes: 32 * KIB, copyMaxBytes: 256 * KIB, growAfterParts: 100, partsAtOnce: 3 };
const BIG = pattern(500 * KIB);
const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (content: Buffer | number): string | number => (typeof content === 'number' ? content : content.toString());

let server: S3Server;
let guest: ObjectGuest;
let files: Files;

const optionsOf = (more: Partial<S3Options> = {}): S3Options =>
  ({ bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS, ...more });

/** As the daemon has them, but that nothing is waited for. */
const layered = (store: ObjectStore): ObjectStore =>
  withRetry(withLimit(withRestart(withDeadline(store), { samples: 1, least_ms: 50 }), new AdaptiveLimit(), new AdaptiveLimit()), { attempts: 3, base_ms: 1, max_ms: 2 });

async function restart(options: GuestOptions = {}): Promise<void> {
  await stop();
  await launch(new S3Store(optionsOf()), options);
}

async function launch(store: ObjectStore, options: GuestOptions = {}, around = layered): Promise<void> {
  guest = await ObjectGuest.start(around(store), { ...options, write: { sizes: SMALL, ...options.write } });
  files = new Files(guest);
  running = true;
}

let running = false;
async function stop(): Promise<void> {
  if (!running) return;
  running = false;
  await guest.close();
}

const refuse = (status: number, code: string, more = ''): Harm => ({ status, code, message: `told by the provider: ${code}`, more });
const stored = async (key: string): Promise<Buffer> => {
  const { size } = await server.store.head(key);
  const into = new Uint8Array(size);
  await server.store.read(key, { offset: 0, into });
  return Buffer.from(into);
};
function same(found: Buffer | number, expected: Uint8Array): void {
  assert.ok(typeof found !== 'number', `errno ${String(found)}`);
  assert.ok(found.equals(expected), `${found.length} bytes, not the ${expected.length} that were expected`);
}
const WRITES: ReadonlySet<S3Operation> = new Set<S3Operation>(['put', 'delete', 'copy', 'begin', 'part', 'copy-part', 'complete', 'abort']);
/** Every request of an operation meets this. */
const always = (operation: S3Operation, harm: Harm) => (request: S3Request): Harm | null => (request.operation === operation ? harm : null);
/** The first one only. */
const once = (operation: S3Operation, harm: Harm) => {
  let left = 1;
  return (request: S3Request): Harm | null => (request.operation === operation && left-- > 0 ? harm : null);
};
const logged = (pattern: RegExp): boolean => guest.log.some((line) => pattern.test(line));
const staged = (): string[] => readdirSync(join(guest.cacheDirectory!, 'staging'));

before(async () => (server = await S3Server.start()));
after(() => server.stop());
beforeEach(async () => {
  server.store = new MemoryStore({ capabilities: { listingHasMetadata: false }, limits: { partMinBytes: 16 * KIB } });
  server.judge = () => null;
  server.requests.length = 0;
  await restart();
});
afterEach(stop);

describe('credentials', () => {
  for (const [what, status, code, word] of [
    ['that expire', 400, 'ExpiredToken', 'expired'],
    ['that are taken back', 403, 'InvalidAccessKeyId', 'bad-credentials'],
  ] as const) {
    test(`${what} in the middle of an upload: fsync is EACCES, nothing is lost, and it goes through when there are good ones again`, async () => {
      await server.store.put('other', bytes('readable'));
      const file = await files.create('f');
      server.judge = ({ operation, query }) => (operation === 'complete' || Number(query.get('partNumber')) >= 5 ? refuse(status, code) : null);
      assert.equal(await files.write(file, 0, BIG), 0, 'it is acknowledged from the cache directory');
      assert.equal(await files.fsync(file), -E.ACCES);
      assert.ok(logged(new RegExp(`^commit: s3://bucket/f could not be written .*${word}.*its data is kept in the cache directory`)), guest.log.join('\n'));
      await assert.rejects(server.store.head('f'), { code: 'not-found' });
      same(await files.read(file), BIG);
      assert.equal(await files.fsync(file), -E.ACCES, 'it stays dirty');
      server.judge = () => null;
      assert.equal(await files.fsync(file), 0);
      same(await stored('f'), BIG);
      assert.equal(await files.close(file), 0);
      assert.deepEqual((await server.store.listUploads({ prefix: '' })).uploads, [], 'what was given up is aborted');
    });
  }

  // The first request of a commit can be a HEAD, whose answer has no words
  for (const [status, code] of [[400, 'ExpiredToken'], [403, 'InvalidAccessKeyId']] as const) test(`that are renewed in their file count from then on, also for what is under way (${code})`, async () => {
    const path = join(mkdtempSync(join(tmpdir(), 'bucketfsd-keys-')), 'credentials');
    const write = (key: string): void => writeFileSync(path, `[test]\naws_access_key_id = ${key}\naws_secret_access_key = secret\n`);
    process.env['AWS_SHARED_CREDENTIALS_FILE'] = path;
    try {
      write('FIRST');
      let good = 'FIRST';
      server.judge = ({ accessKey }) => (accessKey === good ? null : refuse(status, code));
      const { credentials: _credentials, ...options } = optionsOf({ profile: 'test' });
      await stop();
      await launch(new S3Store(options));
      const file = await files.create('f');
      assert.equal(await files.write(file, 0, bytes('first')), 0);
      assert.equal(await files.fsync(file), 0);
      good = 'SECOND';
      write('SECOND');
      assert.equal(await files.write(file, 0, BIG), 0);
      assert.equal(await files.fsync(file), 0, 'nobody has noticed');
      good = 'THIRD';
      assert.equal(await files.write(file, 0, bytes('third')), 0);
      assert.equal(await files.fsync(file), -E.ACCES);
      write('THIRD');
      assert.equal(await files.close(file), 0);
      same(await stored('f'), Buffer.concat([bytes('third'), BIG.subarray(5)]));
    } finally {
      delete process.env['AWS_SHARED_CREDENTIALS_FILE'];
      rmSync(join(path, '..'), { recursive: true });
    }
  });

  test('that may only read: every change is EACCES, what was acknowledged is kept, the guest goes on reading', async () => {
    await server.store.put('there', bytes('content'));
    await server.store.put('d/x', bytes('x'));
    server.judge = ({ operation }) => (WRITES.has(operation) ? refuse(403, 'AccessDenied') : null);
    const file = await files.create('new');
    assert.equal(await files.write(file, 0, bytes('kept')), 0);
    assert.equal(await files.fsync(file), -E.ACCES);
    assert.equal(await files.close(file), -E.ACCES);
    assert.equal((await guest.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('dir')), 128)).error, -E.ACCES);
    assert.equal((await guest.call(OP.UNLINK, ROOT, name('there'), 0)).error, -E.ACCES);
    assert.equal((await guest.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('there'), name('moved')), 0)).error, -E.ACCES);
    assert.equal(text(await files.content('there')), 'content');
    assert.equal(text(await files.content('new')), 'kept');
    assert.ok(logged(/^commit: s3:\/\/bucket\/new could not be written .*AccessDenied/));
    assert.equal(staged().length, 1);
    server.judge = () => null;
    await stop();
    assert.equal((await stored('new')).toString(), 'kept', 'it is there as soon as it may be');
  });

  test('with a clock that is set wrong while the share runs: EIO, and nothing is lost', async () => {
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    server.judge = ({ operation }) => (WRITES.has(operation) ? refuse(403, 'RequestTimeTooSkewed') : null);
    assert.equal(await files.fsync(file), -E.IO);
    assert.ok(logged(/clock-skew/));
    server.judge = () => null;
    assert.equal(await files.close(file), 0);
    assert.equal((await stored('f')).toString(), 'content');
  });
});

describe('the way there', () => {
  test('an endpoint that goes away: reads and fsync are EIO, writes are kept, and all goes on when it is back', async () => {
    await server.store.put('there', BIG);
    const reader = await files.open('there', 0);
    const writer = await files.create('new');
    const { port } = server;
    const { store } = server;
    await server.stop();
    assert.equal(await files.read(reader), -E.IO);
    assert.equal(await files.write(writer, 0, bytes('content')), 0);
    assert.equal(await files.fsync(writer), -E.IO);
    assert.ok(logged(/^commit: s3:\/\/bucket\/new could not be written .*unreachable/), guest.log.join('\n'));
    server = await S3Server.start({ port });
    server.store = store;
    same(await files.read(reader), BIG);
    assert.equal(await files.close(writer), 0);
    assert.equal((await stored('new')).toString(), 'content');
  });

  test('a bucket in another region is found there', async () => {
    await server.store.put('f', bytes('content'));
    server.judge = ({ region }) => (region === 'eu-north-2' ? null : { status: 301, code: 'PermanentRedirect', headers: { 'x-amz-bucket-region': 'eu-north-2' } });
    assert.equal(text(await files.content('f')), 'content');
    const file = await files.create('new');
    assert.equal(await files.write(file, 0, bytes('there')), 0);
    assert.equal(await files.close(file), 0);
    assert.equal((await stored('new')).toString(), 'there');
  });

  test('a body that never ends is answered by the second attempt, into the same memory', async () => {
    await server.store.put('f', BIG);
    await stop();
    // Nothing else would end it
    await launch(new S3Store(optionsOf()), {}, (store) => withRestart(store, { samples: 1, least_ms: 50 }));
    const file = await files.open('f', 0);
    await guest.read(file.node, file.fh, 300 * KIB, 65536);
    server.judge = once('get', { stuckAfter: 1000 });
    const { data, error } = await guest.read(file.node, file.fh, 100 * KIB, 65536);
    assert.equal(error, 0);
    same(Buffer.from(data.buffer, data.byteOffset, data.byteLength), BIG.subarray(100 * KIB, 100 * KIB + 65536));
    assert.equal(server.count('get'), 3);
  });
});

describe('objects', () => {
  test('that are replaced or removed under an open file are ESTALE, and what is opened then is what is there', async () => {
    for (const key of ['changed', 'removed', 'dirty']) await server.store.put(key, BIG);
    const [changed, removed, dirty] = [await files.open('changed', 0), await files.open('removed', 0), await files.open('dirty')];
    assert.equal(await files.write(dirty, 10, bytes('mine')), 0);
    await server.store.put('changed', bytes('other'));
    await server.store.remove('removed');
    await server.store.put('dirty', bytes('theirs'));
    assert.equal(await files.read(changed), -E.STALE);
    assert.equal(await files.read(removed), -E.STALE);
    assert.equal(await files.fsync(dirty), -E.STALE);
    assert.equal(text(await files.content('changed')), 'other');
    assert.equal((await guest.call(OP.LOOKUP, ROOT, name('removed'), 128)).error, -E.NOENT);
    assert.equal((await stored('dirty')).toString(), 'theirs');
    const [kept] = (await server.store.list({ prefix: '.bucketfsd-conflicts/dirty.' })).objects;
    assert.equal((await stored(kept.key)).subarray(10, 14).toString(), 'mine');
  });

  for (const [what, harm] of [
    ['a body that is shorter than its range', { short: 1000 }],
    ['a body that is longer than its range', { longer: 10 }],
    ['a body that breaks off', { brokenAfter: 1000 }],
    ['a connection that is closed instead of an answer', 'drop'],
  ] as const) {
    test(`${what} is asked for again; if that does not help it is EIO, and never other bytes`, async () => {
      await server.store.put('f', BIG);
      const file = await files.open('f', 0);
      server.judge = once('get', harm);
      same(await files.read(file), BIG);
      const again = await files.open('f', 0);
      server.judge = always('get', harm);
      assert.equal(await files.read(again), -E.IO);
      assert.ok(logged(/(short-body|interrupted)/), guest.log.join('\n'));
      server.judge = () => null;
      same(await files.read(again), BIG);
    });
  }

  test('that are larger or smaller than they said: what was said is read, or ESTALE, and nothing is made up', async () => {
    await server.store.put('f', BIG);
    const say = (size: number): void => {
      server.judge = always('head', { headers: (headers) => ({ ...headers, 'content-length': String(size) }) });
    };
    say(1000);
    const smaller = await files.open('f', 0);
    same(await files.read(smaller), BIG.subarray(0, 1000));
    await files.close(smaller);
    await restart();
    say(BIG.length + 5000);
    const larger = await files.open('f', 0);
    assert.equal((await guest.read(larger.node, larger.fh, BIG.length + 10, 4096)).error, -E.STALE);
    const { data, error } = await guest.read(larger.node, larger.fh, 0, 4096);
    assert.equal(error, 0);
    same(Buffer.from(data.buffer, data.byteOffset, data.byteLength), BIG.subarray(0, 4096));
  });

  test('whose bytes were damaged on their way there are sent again, or stay here', async () => {
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    server.judge = once('put', refuse(400, 'BadDigest'));
    assert.equal(await files.fsync(file), 0);
    assert.equal(await files.write(file, 7, bytes(' and more')), 0);
    server.judge = always('put', refuse(400, 'BadDigest'));
    assert.equal(await files.fsync(file), -E.IO);
    assert.ok(logged(/^commit: .*checksum/));
    assert.equal((await stored('f')).toString(), 'content');
    server.judge = () => null;
    assert.equal(await files.close(file), 0);
    assert.equal((await stored('f')).toString(), 'content and more');
  });

  test('whose bytes were damaged on their way here are asked for again, where the provider says what they are', async () => {
    await server.store.put('f', BIG);
    const sum = Buffer.alloc(4);
    sum.writeUInt32BE(crc32(BIG));
    // The SDK looks at checksums of Amazon's own answers only
    process.env['AWS_ENDPOINT_URL_S3'] = server.endpoint;
    const { endpoint: _endpoint, ...amazon } = optionsOf();
    const store = layered(new S3Store(amazon));
    try {
      const read = async (): Promise<Buffer> => {
        const into = Buffer.alloc(BIG.length);
        return into.subarray(0, await store.read('f', { offset: 0, into }));
      };
      const told = (headers: Record<string, string>): Record<string, string> =>
        ({ ...headers, 'x-amz-checksum-crc32': sum.toString('base64'), 'x-amz-checksum-type': 'FULL_OBJECT' });
      let damaged = 1;
      server.judge = ({ operation }) => (operation !== 'get' ? null : damaged-- > 0 ? { flip: true, headers: told } : { headers: told });
      same(await read(), BIG);
      assert.equal(server.count('get'), 2);
      damaged = Infinity;
      await assert.rejects(read(), { code: 'checksum' });
    } finally {
      delete process.env['AWS_ENDPOINT_URL_S3'];
      await store.close();
    }
  });

  test('whose metadata lies are files all the same', async () => {
    await server.store.put('f', bytes('content'), { metadata: { mode: 'rwx', mtime: 'soon', uid: '-1', xattr: '%7Bno' } });
    assert.equal((await guest.lookup(ROOT, 'f')).mode, 0o100644);
    assert.equal(text(await files.content('f')), 'content');
    assert.ok(logged(/^metadata: metadata of s3:\/\/bucket\/f makes no sense or does not count, and is ignored: (?=.*mode)(?=.*uid)(?=.*mtime)(?=.*xattr)/), guest.log.join('\n'));
  });
});

describe('names', () => {
  const raw = (...parts: (string | number[])[]): Uint8Array => concat(...parts.map((part) => (typeof part === 'string' ? bytes(part) : new Uint8Array(part))), new Uint8Array(1));
  const create = (of: Uint8Array): ReturnType<ObjectGuest['call']> => guest.call(OP.CREATE, ROOT, concat(u32(2 | 0o100, 0o100644, 0o22, 0), of), 144);

  test('that are not UTF-8 are objects whose keys say so, and are listed and found by the same bytes', async () => {
    const odd = raw('a', [0xff, 0xc3], '(');
    const reply = await create(odd);
    const file = { node: guest.entry(reply).node, fh: reply.data.getBigUint64(128, true) };
    assert.equal(await files.write(file, 0, bytes('content')), 0);
    assert.equal(await files.close(file), 0);
    assert.deepEqual((await server.store.list({ prefix: '' })).objects.map((object) => object.key), ['a%~xff%~xc3(']);
    await restart();
    assert.deepEqual(await files.names(), [Buffer.from(odd.subarray(0, -1))]);
    const { node } = guest.entry(await guest.call(OP.LOOKUP, ROOT, odd, 128));
    assert.equal(text(await files.read({ node, fh: await guest.open(node, 0) })), 'content');
  });

  test('of 300 bytes cannot be made; a key that has one is reachable by the name of the listing', async () => {
    const long = 'n'.repeat(300);
    assert.equal((await create(raw(long))).error, -E.NAMETOOLONG);
    assert.equal((await guest.call(OP.LOOKUP, ROOT, name(long), 128)).error, -E.NAMETOOLONG);
    assert.equal((await guest.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name(long)), 128)).error, -E.NAMETOOLONG);
    await server.store.put(long, bytes('content'));
    const [listed] = await files.names();
    assert.ok(listed.length <= 255);
    assert.equal(text(await files.content(listed.toString())), 'content');
  });

  test('that a provider sends as bytes of no text hide no others', async () => {
    for (const key of ['good', 'zzz']) await server.store.put(key, bytes('content'));
    server.judge = always('list', { edit: (body) => body.replace('<Key>good', '<Key>b%FF%C3d</Key><Size>1</Size><ETag>"x"</ETag><LastModified>2026-01-01T00:00:05Z</LastModified></Contents><Contents><Key>good') });
    assert.deepEqual((await files.names()).map(String), ['b\ufffd\ufffdd', 'good', 'zzz']);
    assert.equal(text(await files.content('good')), 'content');
  });
});

describe('listings', () => {
  test('that change while they are gone through: whatever stays is there once, nothing comes twice', async () => {
    const name = (i: number): string => `n${String(i).padStart(4, '0')}`;
    for (let i = 0; i < 3000; i++) if (i % 10 !== 5) await server.store.put(name(i), bytes(''));
    let at = 0;
    // Behind and before where the guest is, and the very object that a page of the store ends with
    const found = (await files.names(ROOT, 8192, async () => {
      for (let i = 0; i < 3; i++, at++) {
        await server.store.remove(name((at * 70) % 3000 + (at * 70) % 10 + 3));
        await server.store.put(name((at * 130 + 5) % 3000), bytes(''));
      }
      for (const last of [1110, 1111, 1112]) if (at > 20) await server.store.remove(name(last));
    })).map(String);
    assert.equal(new Set(found).size, found.length, 'no name twice');
    assert.deepEqual([...found].sort(), found);
    const there = new Set((await server.store.list({ prefix: '', limit: 10_000 })).objects.map((object) => object.key));
    const missing = [...there].filter((key) => Number(key.slice(1)) % 10 !== 5 && !found.includes(key));
    assert.deepEqual(missing, []);
    assert.ok(there.size < 2900, `${there.size}`);
    assert.ok(server.count('list') >= 3);
  });

  test('whose next page is refused are EIO behind what is known, not shorter', async () => {
    for (let i = 0; i < 1500; i++) await server.store.put(`n${i}`, bytes(''));
    server.judge = ({ operation, query }) => (operation === 'list' && query.has('continuation-token') ? refuse(400, 'InvalidArgument') : null);
    const { data } = await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
    const readdir = (opcode: number, offset: number): ReturnType<ObjectGuest['call']> =>
      guest.call(opcode, ROOT, concat(u64(data.getBigUint64(0, true), offset), u32(65536, 0), u64(0), u32(0, 0)), 65536);
    for (const [opcode, before] of [[OP.READDIR, 0], [OP.READDIRPLUS, 128]] as const) {
      let names = 0;
      for (let offset = 0; ;) {
        const { error, data: part } = await readdir(opcode, offset);
        if (error !== 0) {
          assert.equal(error, -E.IO);
          break;
        }
        assert.ok(part.byteLength > 0, 'the end of the listing is not known');
        for (let at = before; at < part.byteLength; at += before + Math.ceil((24 + part.getUint32(at + 16, true)) / 8) * 8) {
          offset = Number(part.getBigUint64(at + 8, true));
          names++;
        }
      }
      // n1, n13 and n134 are held back: there may be directories of their names
      assert.equal(names, 2 + 1000 - 3, 'the first page');
    }
    assert.ok(logged(/InvalidArgument/));
  });
});

test('ten thousand uploads of others are nobody\'s business: neither listed nor aborted, at the start or later', async () => {
  for (let i = 0; i < 10_000; i++) await server.store.beginUpload(`theirs/${i}`);
  server.requests.length = 0;
  await restart();
  const file = await files.create('f');
  assert.equal(await files.write(file, 0, BIG), 0);
  assert.equal(await files.close(file), 0);
  await stop();
  assert.equal(server.count('uploads'), 0);
  assert.ok(server.requests.length < 60, server.requests.join(' '));
  assert.equal((await server.store.listUploads({ prefix: '' })).uploads.length, 10_000);
});
