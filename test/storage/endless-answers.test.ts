/** Answers of endpoints that have no end, or are as long as can be: what is taken of them, and held, is bounded. Those that only make no sense are in answers.test.ts. */
import assert from 'node:assert/strict';
import { randomBytes } from 'node:crypto';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import type { AddressInfo } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import type { ListOptions, ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { ROOT } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';
import { S3Server } from '../support/s3/server.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const CALL_MS = 10_000;
const TOKEN_BYTES = 4096;
setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

const s3Options = (endpoint: string): ConstructorParameters<typeof S3Store>[0] => ({ bucket: S3Server.BUCKET, endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS });

async function within<T>(call: Promise<T>, what: string): Promise<T> {
  const late = new AbortController();
  try {
    return await Promise.race([call, sleep(CALL_MS, undefined, { signal: late.signal }).then(() => assert.fail(`${what} does not end`))]);
  } finally {
    late.abort();
  }
}

test('a listing that gets on without end ends with the frontend: one that is looked through for a name, and one of a tree that is to be renamed', async () => {
  let asked = 0;
  class Endless extends MemoryStore {
    override async list(options: ListOptions): ReturnType<ObjectStore['list']> {
      const { prefix, token = '0', signal } = options;
      if (prefix === 'e/') return super.list(options);
      asked++;
      await new Promise((resolve) => setImmediate(resolve));
      if (signal?.aborted === true) throw new StorageError('aborted', 'list');
      const at = Number(token) + 1;
      return { objects: [{ key: `${prefix}${String(at).padStart(12, '0')}`, size: 1, version: 'v', modified_ms: 0, metadata: {}, headers: {} }], prefixes: [], next: String(at) };
    }
  }
  for (const [operation, args] of [
    [OP.LOOKUP, name(`${'x'.repeat(217)}%~l${'0'.repeat(32)}`)],
    [OP.RENAME2, concat(u64(ROOT), u32(0, 0), name('d'), name('e'))],
  ] as const) {
    const guest = await ObjectGuest.start(new Endless());
    const { bytes } = guest.request(operation, ROOT, args);
    guest.queue.chain([bytes], [16, 128], true);
    guest.queue.kick();
    const before = asked;
    while (asked < before + 10) await new Promise((resolve) => setImmediate(resolve));
    await within(guest.close(), 'the session');
    const then = asked;
    for (let turn = 0; turn < 100; turn++) await new Promise((resolve) => setImmediate(resolve));
    assert.equal(asked, then, 'nobody asks any more');
  }
});

/** The listing of one prefix ends the first `honest` times, and never after that. */
class Turning extends MemoryStore {
  pages = 0;

  constructor(
    readonly prefix: string,
    public honest: number,
  ) {
    super({ capabilities: { rename: false } });
  }

  override async list(options: ListOptions): ReturnType<ObjectStore['list']> {
    const { prefix, delimiter, token, limit } = options;
    if (prefix !== this.prefix || delimiter !== undefined || limit !== undefined || (token === undefined && this.honest-- > 0)) return super.list(options);
    this.pages++;
    await new Promise((resolve) => setImmediate(resolve));
    const at = Number(token ?? 0);
    const objects = Array.from({ length: 1000 }, (_, i) => ({ key: `${prefix}x${String(at * 1000 + i).padStart(12, '0')}`, size: 1, version: 'v', modified_ms: 0, metadata: {}, headers: {} }));
    // Those that are there come first
    const real = token === undefined ? (await super.list({ prefix })).objects : [];
    return { objects: [...real, ...objects], prefixes: [], next: String(at + 1) };
  }
}
const TREE = ['d/', 'd/a', 'd/b'];
const PAGES_MAX = 100;

test('a tree whose listing has ended, and does not end while it is moved, stays where it was', async () => {
  const store = new Turning('d/', 1);
  for (const key of TREE) await store.put(key, Buffer.from(key.endsWith('/') ? '' : key));
  const guest = await ObjectGuest.start(store);
  try {
    const { error } = await within(guest.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('d'), name('e'))), 'the rename');
    assert.equal(error, -E.IO);
    assert.ok(store.pages > 0 && store.pages <= PAGES_MAX, `${store.pages} pages`);
    assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), TREE);
    // And it can be moved when the endpoint has come to itself
    store.honest = Infinity;
    assert.equal((await guest.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('d'), name('e')))).error, 0);
    assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), TREE.map((key) => key.replace('d/', 'e/')));
  } finally {
    await guest.close();
  }
});

test('so does a start that finishes such a move: it says what it gave up', async () => {
  const store = new Turning('d/', Infinity);
  for (const key of TREE) await store.put(key, Buffer.from(key.endsWith('/') ? '' : key));
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-endless-'));
  try {
    let reached: () => void = () => undefined;
    const copying = new Promise<void>((resolve) => (reached = resolve));
    let give: (error: StorageError) => void = () => undefined;
    const dead = new Promise<never>((_resolve, reject) => (give = reject));
    const stuck = intercept(store, (call, attempt) => (call.operation === 'copy' ? (reached(), dead) : attempt(call.signal)));
    const dying = await ObjectGuest.start(stuck, { write: { cacheDirectory } });
    const { bytes } = dying.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('d'), name('e')));
    dying.queue.chain([bytes], [16, 128], true);
    dying.queue.kick();
    await copying;
    const killed = dying.kill();
    give(new StorageError('aborted', 'copy'));
    await killed;
    store.honest = 0;
    const guest = await within(ObjectGuest.start(store, { write: { cacheDirectory } }), 'the start');
    assert.match(guest.recovered.join('\n'), /gave up the rename of .*d\/, which had been begun/);
    assert.ok(store.pages > 0 && store.pages <= PAGES_MAX, `${store.pages} pages`);
    await guest.close();
    store.honest = Infinity;
    const left = (await store.list({ prefix: '' })).objects.map(({ key }) => key);
    for (const key of ['a', 'b']) assert.ok(left.includes(`d/${key}`) !== left.includes(`e/${key}`), left.join());
  } finally {
    rmSync(cacheDirectory, { recursive: true, force: true });
  }
});

test('of tokens that are as long as may be an open directory keeps a few, and goes on anywhere all the same', async () => {
  const PAGES = 3000;
  const keyAt = (at: number): string => `n${String(at).padStart(6, '0')}`;
  let byKey = 0;
  class Wordy extends MemoryStore {
    override async list({ token, after = '' }: ListOptions): ReturnType<ObjectStore['list']> {
      if (token === undefined && after !== '') byKey++;
      const at = token === undefined ? Number(after.slice(1)) + 1 : Number(token.slice(0, 6));
      const next = at === PAGES ? null : Buffer.from(String(at + 1).padStart(6, '0') + randomBytes(TOKEN_BYTES / 2).toString('hex')).toString();
      return { objects: [{ key: keyAt(at), size: 1, version: 'v', modified_ms: 0, metadata: {}, headers: {} }], prefixes: [], next };
    }
  }
  const guest = await ObjectGuest.start(new Wordy());
  try {
    const fh = (await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
    const read = async (offset: bigint): Promise<DataView> => (await guest.call(OP.READDIR, ROOT, concat(u64(fh, offset), u32(4096, 0), u64(0), u32(0, 0)), 4096)).data;
    collect();
    const { heapUsed } = process.memoryUsage();
    const offsets: bigint[] = [];
    for (let offset = 0n; ; ) {
      const data = await read(offset);
      if (data.byteLength === 0) break;
      for (let at = 0; at < data.byteLength; at += (24 + data.getUint32(at + 16, true) + 7) & ~7) offsets.push((offset = data.getBigUint64(at + 8, true)));
    }
    collect();
    const kept = process.memoryUsage().heapUsed - heapUsed;
    assert.equal(offsets.length, PAGES + 2);
    assert.ok(kept < PAGES * 2000, `${kept >> 10} KiB of ${(PAGES * TOKEN_BYTES) >> 10} KiB of tokens`);
    const data = await read(offsets[100]);
    assert.equal(Buffer.from(data.buffer, data.byteOffset + 24, data.getUint32(16, true)).toString(), keyAt(100), 'behind the entry at which it was');
    assert.ok(byKey > 0);
  } finally {
    await guest.close();
  }
});

test('of a page, a document or a refusal that is as long as the endpoint likes only so much is taken', async () => {
  const CHUNK = Buffer.alloc(1 << 20, 'x');
  let taken = 0;
  let status = 200;
  const server = createServer((request, response) => {
    request.resume();
    response.writeHead(status, { 'content-type': 'application/xml' });
    const more = (): void => {
      if (response.destroyed || taken > 200 << 20) return void response.destroy();
      taken += CHUNK.length;
      response.write(CHUNK, more);
    };
    more();
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const endpoint = `http://127.0.0.1:${(server.address() as AddressInfo).port}`;
  const stores = [new S3Store(s3Options(endpoint)), new GcsStore({ bucket: 'b', endpoint, credentials: 'anonymous' })];
  const calls: ((store: ObjectStore) => Promise<unknown>)[] = [
    (store) => store.list({ prefix: '', limit: 1 }), (store) => store.copy('a', 'b', { metadata: {} }), (store) => store.beginUpload('k'),
    (store) => store.completeUpload({ key: 'k', id: '00000000-0000-0000-0000-000000000000' }, [{ number: 1, tag: '1 x', bytes: 1 }]), (store) => store.check(),
  ];
  try {
    for (const store of stores) {
      for (status of [200, 500]) {
        for (const [i, call] of calls.entries()) {
          taken = 0;
          await assert.rejects(within(call(store), 'the call'), StorageError);
          // What lies in buffers between both ends was sent as well
          assert.ok(taken <= 24 << 20, `${store.kind}, call ${i}, ${status}: ${taken >> 20} MiB`);
        }
      }
    }
  } finally {
    for (const store of stores) await store.close();
    server.close();
    server.closeAllConnections();
    await once(server, 'close');
  }
});
