/**
 * Endpoints that lie. Whatever is in an answer, a call of a store gives the right result or a StorageError: no other error, no wrong size, no request without end.
 *
 * What was tried besides, for the same reason, and is in the mutations or in a test below: names of JavaScript's own properties as codes and entities ("constructor"),
 * numbers beyond 2^53, halves of surrogate pairs, keys with NUL, a JSON `null` for an object, weak ETags, ETags that do not come, a range that is shorter
 * than what was asked for, a rewrite that never gets on, a session that has more than was sent, regions that change with each answer. What is without end is in
 * endless-answers.test.ts.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { isGone, pagesOf } from '../../src/storage/object/asking.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { compareUtf8 } from '../../src/storage/object/listing.js';
import type { ListOptions, ObjectInfo, ObjectStore, Version } from '../../src/storage/object/store.js';
import { AnswerReader } from '../../src/storage/object/stores/answer-reader.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { GcsServer } from '../support/gcs/server.js';
import { name, OP } from '../support/guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';
import { S3Server, type Harm } from '../support/s3/server.js';
import type { Answer } from '../support/s3/operations.js';
import { contentOf, pattern } from './contract.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);
/** Answers that are mutated of each call. */
const ROUNDS = Number(process.env['ROUNDS'] ?? 40);
/** A call makes a handful of requests; retries are a layer above. */
const REQUESTS_MAX = 40;
const CALL_MS = 10_000;

type Random = () => number;

/** mulberry32 */
function randomOf(seed: number): Random {
  let state = seed >>> 0;
  return () => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), state | 1);
    t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
  };
}
const oneOf = <T>(random: Random, from: readonly T[]): T => from[Math.floor(random() * from.length)];

/** No size, no date, no version, and no key below "p/". */
const TEXTS = [
  '', 'abc', '-1', '1e999', '99999999999999999999', '9007199254740993', '0x10', 'NaN', 'Infinity', '1.5', '\u0000', '..', '/', 'p/\ud800', 'q/a', 'constructor', '__proto__',
  'toString', 'W/"x"', '"', 'bytes 0-1', 'bytes 5-3/2', 'bytes 0-0/99999999999999999999', 'http://127.0.0.2:1/', '//x', 'x'.repeat(100_000), '\r\n\r\n', '&constructor;', '<Error>',
];
const VALUES: readonly unknown[] = [...TEXTS, null, {}, [], true, -1, 1.5, 1e300, [null], { name: null }];
const STATUSES = [200, 204, 206, 301, 307, 308, 400, 401, 403, 404, 409, 412, 416, 418, 500, 503];

function mutated(random: Random, answer: Answer): Answer {
  const headers = { ...answer.headers };
  // An answer to HEAD has no body, and that of a GET with content no form
  const kind = Math.floor(random() * (answer.body.length === 0 ? 3 : 7));
  if (kind <= 1) {
    const name = oneOf(random, Object.keys(headers));
    if (random() < 0.3) delete headers[name];
    else headers[name] = oneOf(random, TEXTS).replace(/[^\t\x20-\x7e]/g, '');
    return { ...answer, headers };
  }
  if (kind === 2) return { ...answer, status: oneOf(random, STATUSES) };
  const text = answer.body.toString();
  const body = Buffer.from(kind === 3 ? junk(random, text) : text.startsWith('{') ? mutatedJson(random, text) : mutatedXml(random, text));
  return { ...answer, headers: { ...headers, 'content-length': String(body.length) }, body };
}

const junk = (random: Random, text: string): string => oneOf(random, [text.slice(0, Math.floor(random() * text.length)), '', 'null', '[]', '5', '"x"', '<a/>', '<Error/>', '<Error><Code>toString</Code></Error>', text + text]);

function mutatedJson(random: Random, text: string): string {
  const root = JSON.parse(text) as object;
  const places: [Record<string, unknown>, string][] = [];
  const walk = (value: unknown): void => {
    if (typeof value !== 'object' || value === null) return;
    for (const name of Object.keys(value)) {
      places.push([value as Record<string, unknown>, name]);
      walk((value as Record<string, unknown>)[name]);
    }
  };
  walk(root);
  if (places.length === 0) return junk(random, text);
  const [holder, name] = oneOf(random, places);
  if (Array.isArray(holder) && random() < 0.3) holder.push(holder[Number(name)]);
  else if (random() < 0.2) delete holder[name];
  else holder[name] = oneOf(random, VALUES);
  return JSON.stringify(root);
}

function mutatedXml(random: Random, text: string): string {
  const elements = [...text.matchAll(/<(\w+)>([^<]*)<\/\1>/g)];
  if (elements.length === 0) return junk(random, text);
  const { 0: all, 1: name, index } = oneOf(random, elements);
  const value = oneOf(random, TEXTS);
  const other = random() < 0.2 ? '' : random() < 0.2 ? all + all : `<${name}>${value.includes('&') || value.startsWith('<') ? value : value.replaceAll('<', '&lt;')}</${name}>`;
  return text.slice(0, index) + other + text.slice(index + all.length);
}

/** One of the two stores, with an endpoint that lies at the n-th request from now on. */
interface Subject {
  readonly store: ObjectStore;
  /** What there is, past the lies. */
  readonly truth: ObjectStore;
  lie(nth: number, mutate: (answer: Answer) => Answer): void;
  honest(): void;
  requests(): number;
}

const CONTENT = pattern(3000);
const KEYS = ['p/a', 'p/b', 'p/d/x', 'p/ü'];

function isInfo(info: ObjectInfo, key: string): void {
  assert.equal(info.key, key);
  assert.equal(info.size, CONTENT.length);
  isVersion(info.version);
  assert.ok(Number.isFinite(info.modified_ms) && Math.abs(info.modified_ms) < 8.64e15);
}
function isVersion(version: Version): void {
  assert.ok(typeof version === 'string' && /^[!-~]{1,1024}$/.test(version), String(version));
}

async function isListing(store: ObjectStore, options: ListOptions): Promise<void> {
  let last = '';
  for await (const { objects, prefixes } of pagesOf(store, options)) {
    for (const { key, size } of objects) {
      // Bytes that are no text, which nobody can tell from such a key
      assert.ok(KEYS.includes(key) || key.includes('\ufffd'), `${key} is not there`);
      assert.equal(size, CONTENT.length);
      // Nor can anybody tell where its bytes come
      if (key.includes('\ufffd')) continue;
      assert.ok(compareUtf8(key, last) > 0, 'in order');
      last = key;
    }
    for (const prefix of prefixes) assert.equal(prefix, 'p/d/');
  }
}

/** Each checks its own result. */
const CALLS: Readonly<Record<string, (store: ObjectStore) => Promise<unknown>>> = {
  check: (store) => store.check(),
  head: async (store) => isInfo(await store.head('p/a'), 'p/a'),
  'head with attachments': async (store) => isInfo(await store.head('p/a', { attachments: true }), 'p/a'),
  read: async (store) => {
    for (const [offset, length] of [[0, 4096], [100, 50], [2990, 50], [5000, 10]]) {
      const into = new Uint8Array(length);
      const n = await store.read('p/a', { offset, into });
      assert.deepEqual(Buffer.from(into.subarray(0, n)), Buffer.from(CONTENT.subarray(offset, offset + length)), `${offset}, ${length}`);
    }
  },
  fetch: async (store) => {
    if (!store.capabilities.fetch) return;
    const into = new Uint8Array(100);
    const { info, bytes } = await store.fetch('p/a', { into });
    isInfo(info, 'p/a');
    assert.equal(bytes, 100);
    assert.deepEqual(into, CONTENT.subarray(0, 100));
  },
  put: async (store) => isVersion(await store.put('w/put', CONTENT, { metadata: { a: 'b' } })),
  'put of a large one': async (store) => isVersion(await store.put('w/large', pattern(300_000))),
  remove: (store) => store.remove('w/removed'),
  copy: async (store) => isVersion(await store.copy('p/a', 'w/copy')),
  setMetadata: async (store) => isVersion(await store.setMetadata('w/meta', (await store.head('w/meta')).version, { now: String(Math.random()) })),
  rename: async (store) => {
    if (!store.capabilities.rename) return;
    isVersion(await store.rename('w/old', 'w/new', { version: (await store.head('w/old')).version }));
  },
  list: (store) => isListing(store, { prefix: 'p/', limit: 2 }),
  'list of a directory': (store) => isListing(store, { prefix: 'p/', delimiter: '/', after: 'p/A' }),
  upload: async (store) => {
    const upload = await store.beginUpload('w/upload', { metadata: { a: 'b' } });
    const { version } = await store.head('p/a');
    const parts = [await store.putPart(upload, 1, CONTENT), await store.copyPart(upload, 2, { key: 'p/a', version, offset: 0, bytes: CONTENT.length })];
    isVersion(await store.completeUpload(upload, parts));
    await store.abortUpload(await store.beginUpload('w/aborted'));
  },
  'list of uploads': async (store) => {
    const { uploads } = await store.listUploads({ prefix: 'p/' });
    for (const { key, id, begun_ms } of uploads) assert.ok(key.startsWith('p/') && id !== '' && Number.isFinite(begun_ms), JSON.stringify({ key, id, begun_ms }));
  },
};

async function prepare(truth: ObjectStore): Promise<void> {
  await truth.put('w/meta', CONTENT);
  await truth.put('w/old', CONTENT);
  await truth.put('w/removed', CONTENT);
  await truth.remove('w/new');
}

async function within<T>(call: Promise<T>, what: string): Promise<T> {
  const late = new AbortController();
  try {
    return await Promise.race([call, sleep(CALL_MS, undefined, { signal: late.signal }).then(() => assert.fail(`${what} does not end`))]);
  } finally {
    late.abort();
  }
}

function lies(of: string, start: () => Promise<Subject>, stop: (subject: Subject) => Promise<void>): void {
  describe(`answers of ${of} that make no sense (SEED=${SEED})`, () => {
    let subject: Subject;
    before(async () => {
      subject = await start();
      for (const key of KEYS) await subject.truth.put(key, CONTENT);
      for (const key of ['p/u1', 'p/u2']) await subject.truth.beginUpload(key);
    });
    after(() => stop(subject));

    for (const [index, [what, call]] of Object.entries(CALLS).entries()) {
      test(`${what}: the right result, or a StorageError`, async () => {
        const random = randomOf(SEED * 31 + index);
        await prepare(subject.truth);
        subject.honest();
        const before = subject.requests();
        await call(subject.store);
        const usual = subject.requests() - before;
        for (let round = 0; round < ROUNDS && usual > 0; round++) {
          await prepare(subject.truth);
          let told: Answer | null = null;
          subject.lie(1 + Math.floor(random() * usual), (answer) => (told = mutated(random, answer)));
          const asked = subject.requests();
          const shown = (): string => `round ${round}: ${JSON.stringify({ ...(told ?? {}), body: told === null ? '' : (told as Answer).body.toString().slice(0, 2000) }).slice(0, 3000)}`;
          await within(call(subject.store), shown()).catch((error: unknown) => {
            if (!(error instanceof StorageError)) throw new Error(`${String(error)}\n${shown()}`, { cause: error });
            assert.equal(typeof error.code, 'string', shown());
            assert.doesNotThrow(() => structuredClone({ ...error.detail, cause: undefined }), shown());
          });
          assert.ok(subject.requests() - asked <= REQUESTS_MAX, shown());
        }
        subject.honest();
        for (const key of KEYS) assert.deepEqual(Buffer.from(await contentOf(subject.truth, key)), Buffer.from(CONTENT), 'nothing else was changed');
      });
    }
  });
}

const s3Options = (endpoint: string): ConstructorParameters<typeof S3Store>[0] => ({ bucket: S3Server.BUCKET, endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS });

let s3: S3Server;
lies('S3', async () => {
  s3 = await S3Server.start();
  s3.store = new MemoryStore({ capabilities: { listingHasMetadata: false }, limits: { partMinBytes: 1 } });
  return {
    store: new S3Store(s3Options(s3.endpoint)),
    truth: s3.store,
    lie: (nth, mutate) => {
      let left = nth;
      s3.judge = (): Harm | null => (--left === 0 ? { mutate } : null);
    },
    honest: () => void (s3.judge = () => null),
    requests: () => s3.requests.length,
  };
}, async ({ store }) => {
  await store.close();
  await s3.stop();
});

let gcs: GcsServer;
lies('Google Cloud Storage', async () => {
  gcs = await GcsServer.start({ rewriteBytesPerCall: 1 << 20 });
  gcs.createBucket('b');
  const open = (): GcsStore => new GcsStore({ bucket: 'b', endpoint: gcs.url, credentials: 'anonymous', resumableFromBytes: 100_000 });
  return {
    store: open(),
    truth: open(),
    lie: (nth, mutate) => {
      let left = nth;
      gcs.faults.draw = () => (--left === 0 ? { kind: 'mutate', mutate } : null);
    },
    honest: () => gcs.faults.heal(),
    requests: () => gcs.seen.length,
  };
}, async ({ store, truth }) => {
  await store.close();
  await truth.close();
  await gcs.close();
});

describe('a guest of an endpoint that lies', () => {
  let server: S3Server;
  let guest: ObjectGuest;
  let files: Files;
  before(async () => (server = await S3Server.start()));
  after(() => server.stop());
  beforeEach(async () => {
    server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
    server.requests.length = 0;
    guest = await ObjectGuest.start(new S3Store(s3Options(server.endpoint)));
    files = new Files(guest);
  });
  afterEach(async () => {
    server.judge = () => null;
    await guest.close();
  });

  for (const length of ['abc', undefined, '-5', '9007199254740993', '1e3']) {
    test(`a length of ${length ?? 'nothing'} in the answer to HEAD is EIO for that file, and the daemon goes on`, async () => {
      for (const key of ['bad', 'good']) await server.store.put(key, CONTENT);
      server.judge = ({ operation, key }) => (operation !== 'head' || key !== 'bad' ? null : {
        headers: ({ 'content-length': _length, ...rest }) => ({ ...rest, ...(length === undefined ? {} : { 'content-length': length }) }),
      });
      assert.equal((await guest.call(OP.LOOKUP, ROOT, name('bad'), 128)).error, -E.IO);
      assert.ok((await files.content('good') as Buffer).equals(CONTENT));
    });
  }

  const entry = (key: string): string => `<Contents><Key>${key}</Key><Size>1</Size><ETag>"x"</ETag><LastModified>2026-01-01T00:00:05Z</LastModified></Contents>`;
  /** Every page of the directory has this, and says that there is more. */
  const endless = (entries: (page: number) => string): { pages: () => number } => {
    let pages = 0;
    server.judge = ({ operation, query }) => (operation !== 'list' || query.get('delimiter') === null ? null : {
      edit: () => `<ListBucketResult><IsTruncated>true</IsTruncated>${entries(++pages)}<NextContinuationToken>t${pages}</NextContinuationToken></ListBucketResult>`,
    });
    return { pages: () => pages };
  };

  test('a key with a NUL, which no name can have, is listed and read under a name of its own, beside the others', async () => {
    for (const key of ['a\0b', '\0', 'good']) await server.store.put(key, CONTENT);
    const names = (await files.names()).map(String);
    assert.equal(names.length, 3);
    assert.ok(names.every((one) => !one.includes('\0')), names.join());
    for (const one of names) assert.ok((await files.content(one) as Buffer).equals(CONTENT), one);
  });

  test('a write that is answered without a version is found by its id: it is there once, and no conflict', async () => {
    server.judge = ({ operation }) => (operation !== 'put' ? null : { headers: ({ etag: _etag, ...rest }) => rest });
    const file = await files.create('f');
    assert.equal(await files.write(file, 0, CONTENT), 0);
    assert.equal(await files.fsync(file), 0);
    assert.equal(await files.write(file, 10, CONTENT.subarray(0, 100)), 0);
    assert.equal(await files.close(file), 0);
    const expected = Buffer.from(CONTENT);
    expected.set(CONTENT.subarray(0, 100), 10);
    assert.deepEqual(Buffer.from(await contentOf(server.store, 'f')), expected);
    assert.deepEqual((await server.store.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
  });

  test('a listing that never gets on ends with EIO: the same key again, empty pages, keys that go back, more than was asked for', async () => {
    for (const [entries, most] of [
      // Each is asked for twice: for what comes with "." and "..", and then again
      [() => entry('same'), 4], [() => '', 2004], [(page: number) => entry(`k${String(9999 - page)}`), 4], [() => entry('b') + entry('a'), 2], [() => entry('a') + entry('a'), 2],
      [() => Array.from({ length: 1001 }, (_, i) => entry(`n${String(i).padStart(4, '0')}`)).join(''), 2], [() => entry('x/y'), 2],
    ] as const) {
      const { pages } = endless(entries);
      await assert.rejects(files.names(), /-5|EIO|errno 5/);
      assert.ok(pages() <= most, `${pages()} pages, ${entries(1).slice(0, 60)}`);
    }
    server.judge = () => null;
    await server.store.put('good', CONTENT);
    assert.deepEqual((await files.names()).map(String), ['good']);
  });
});

test('metadata of more names and values than a head of HTTP has is none', () => {
  const read = new AnswerReader('head');
  const many = (count: number): Record<string, string> => Object.fromEntries(Array.from({ length: count }, (_, i) => [`name${i}`, 'v'.repeat(1000)]));
  assert.equal(Object.keys(read.metadata(many(60))).length, 60);
  assert.throws(() => read.metadata(many(70)), StorageError);
  assert.throws(() => read.metadata({ name: 'v'.repeat(65_537) }), StorageError);
});

test('an empty page says nothing of what follows: an object is not gone because of one', async () => {
  const store = new MemoryStore();
  await store.put('k', CONTENT);
  const list = (options: ListOptions): ReturnType<ObjectStore['list']> => (options.token === undefined ? Promise.resolve({ objects: [], prefixes: [], next: '' }) : store.list({ ...options, token: '' }));
  assert.equal(await isGone({ ...store, head: (key: string) => store.head(key), list } as unknown as ObjectStore, 'k'), false);
});
