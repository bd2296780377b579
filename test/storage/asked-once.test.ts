/**
 * Metadata on S3 is asked for once for each version, and not again while listings show the same object.
 *
 * The same reason, tried below: objects that were stored a moment before, objects of the same ETag with other metadata, what was changed here, what was packed with
 * less than it had, `--metadata-ttl 0`, an answer out of a cache in between.
 */
import assert from 'node:assert/strict';
import { after, afterEach, before, beforeEach, test } from 'node:test';
import type { ListOptions, ListPage, ObjectInfo } from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { S3Server } from '../support/s3/server.js';

process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';

const AGE_MS = 60_000;
const TTL_MS = 60_000;
const CONTENT = Buffer.from('content');
const FILES = 1200;
const keyOf = (i: number): string => `f${String(i).padStart(5, '0')}`;

/** Its objects were stored a minute before they were, but for those in `young`. */
class AgedStore extends MemoryStore {
  readonly young = new Set<string>();
  #aged(info: ObjectInfo): ObjectInfo {
    return this.young.has(info.key) ? info : { ...info, modified_ms: info.modified_ms - AGE_MS };
  }
  override async head(...args: Parameters<MemoryStore['head']>): Promise<ObjectInfo> {
    return this.#aged(await super.head(...args));
  }
  override async list(options: ListOptions): Promise<ListPage> {
    const page = await super.list(options);
    return { ...page, objects: page.objects.map((one) => this.#aged(one)) };
  }
}

let server: S3Server;
let store: AgedStore;
let guest: ObjectGuest;
before(async () => (server = await S3Server.start()));
after(() => server.stop());
beforeEach(async () => {
  server.store = store = new AgedStore({ etags: true, capabilities: { listingHasMetadata: false } });
  server.judge = () => null;
});
afterEach(() => guest.close());

/** What was asked is believed no longer, and no listing answers for another: only a new one can show that it holds. */
const now = performance.now.bind(performance);
let later_ms = 0;
performance.now = () => now() + later_ms;
const later = (): void => void (later_ms += 2 * TTL_MS);


const start = async (options: GuestOptions = {}): Promise<void> => {
  guest = await ObjectGuest.start(new S3Store({ bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS }), { metadataTtl_ms: TTL_MS, ...options });
  server.requests.length = 0;
};

interface Listed {
  readonly name: string;
  readonly type: number;
  /** READDIRPLUS: with attributes. */
  readonly mode: number;
}

async function list(plus: boolean): Promise<Listed[]> {
  const fh = (await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
  const all: Listed[] = [];
  for (let offset = 0n; ; ) {
    const { data, error } = await guest.call(plus ? OP.READDIRPLUS : OP.READDIR, ROOT, concat(u64(fh, offset), u32(8192, 0), u64(0), u32(0, 0)), 8192);
    assert.equal(error, 0);
    if (data.byteLength === 0) break;
    for (let at = 0; at + 24 <= data.byteLength; ) {
      const entry = plus ? 128 : 0;
      const length = data.getUint32(at + entry + 16, true);
      const text = Buffer.from(data.buffer, data.byteOffset + at + entry + 24, length).toString();
      all.push({ name: text, type: data.getUint32(at + entry + 20, true), mode: plus && data.getBigUint64(at, true) !== 0n ? data.getUint32(at + 100, true) : 0 });
      offset = data.getBigUint64(at + entry + 8, true);
      at += (entry + 24 + length + 7) & ~7;
    }
  }
  await guest.call(OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0);
  return all.filter((one) => one.name !== '.' && one.name !== '..');
}

/** @returns HEADs that it took */
async function heads(body: () => Promise<unknown>): Promise<number> {
  const before = server.count('head');
  await body();
  return server.count('head') - before;
}

const put = (key: string, mode = 0o100600): Promise<string> => store.put(key, CONTENT, { metadata: { mode: String(mode) } });

for (const idleNodes of [0, 100_000]) {
  test(`the second listing with attributes asks for none, and tells the same; nodes that are not packed: ${idleNodes}`, async () => {
    for (let i = 0; i < FILES; i++) await put(keyOf(i));
    await start({ idleNodes });
    let first: Listed[] = [];
    let second: Listed[] = [];
    assert.equal(await heads(async () => (first = await list(true))), FILES);
    later();
    assert.equal(await heads(async () => (second = await list(true))), 0);
    assert.deepEqual(second, first);
    assert.ok(first.every(({ mode, type }) => mode === 0o100600 && type === 8));
    let names: Listed[] = [];
    later();
    assert.equal(await heads(async () => (names = await list(false))), 0);
    assert.ok(names.every(({ type }) => type === 8), 'a listing of names has their types, so find need not ask for each');
  });
}

test('names that are looked up, and attributes that are asked for, one after the other, are answered by a listing', async () => {
  for (let i = 0; i < 100; i++) await put(keyOf(i));
  await start();
  await list(true);
  later();
  await list(false);
  const nodes: bigint[] = [];
  assert.equal(await heads(async () => {
    for (let i = 0; i < 100; i++) {
      const { data, error } = await guest.call(OP.LOOKUP, ROOT, name(keyOf(i)), 128);
      assert.deepEqual([error, data.getUint32(100, true)], [0, 0o100600]);
      nodes.push(data.getBigUint64(0, true));
    }
  }), 0);
  later();
  await list(false);
  assert.equal(await heads(async () => {
    for (const node of nodes) {
      later_ms += TTL_MS / 200; // so that the attributes of most are older than a listing that has been asked anew meanwhile
      const { data, error } = await guest.call(OP.GETATTR, node, new Uint8Array(16), 104);
      assert.deepEqual([error, data.getUint32(76, true)], [0, 0o100600]);
    }
  }), 0);
});

test('another object is asked for: of another version, or of the same with other metadata; and one that is put anew while it is young', async () => {
  for (const key of ['content', 'metadata', 'same', 'young']) await put(key);
  store.young.add('young');
  await start();
  const modes = async (): Promise<Record<string, number>> => Object.fromEntries((await list(true)).map((one) => [one.name, one.mode]));
  assert.equal(await heads(modes), 4);
  later();
  assert.equal(await heads(modes), 1, 'the young one: another one could have the same version and time');
  await store.put('content', Buffer.from('other'), { metadata: { mode: String(0o100640) } });
  // The ETag is that of the content; the time is a later one
  store.young.add('metadata');
  await put('metadata', 0o100644);
  await put('young', 0o100604);
  later();
  assert.deepEqual(await modes(), { content: 0o100640, metadata: 0o100644, same: 0o100600, young: 0o100604 });
});

test('a directory that is looked up costs no request for its marker, as long as that is the same', async () => {
  await store.put('d/', Buffer.alloc(0), { metadata: { mode: String(0o40700) } });
  await put('d/x');
  await start();
  const lookUp = async (mode: number): Promise<void> => {
    const { data, error } = await guest.call(OP.LOOKUP, ROOT, name('d'), 128);
    assert.deepEqual([error, data.getUint32(100, true)], [0, mode]);
    later();
  };
  await lookUp(0o40700);
  // One is for a file of that name
  assert.equal(await heads(() => lookUp(0o40700)), 1);
  store.young.add('d/');
  await store.put('d/', Buffer.alloc(0), { metadata: { mode: String(0o40750) } });
  assert.equal(await heads(() => lookUp(0o40750)), 2);
});

test('what was changed here is told as it was changed, by a listing that was asked for before, too', async () => {
  await put('f');
  await start();
  const files = new Files(guest);
  await list(true);
  later();
  const file = await files.open('f');
  // SETATTR: FATTR_MODE
  const { error } = await guest.call(OP.SETATTR, file.node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o100755, 0, 0, 0, 0)), 104);
  assert.equal(error, 0);
  assert.equal((await list(true))[0].mode, 0o100755);
  await files.close(file);
  later();
  assert.equal((await list(true))[0].mode, 0o100755);
});

test('attributes and links are told in full also when their nodes were packed', async () => {
  await store.put('link', Buffer.alloc(0), { metadata: { mode: String(0o120777), 'symlink-target': 'there', '--symlink-target': 'there' } });
  await put('f');
  await start({ idleNodes: 0 });
  await list(true);
  later();
  await list(true);
  const { node } = await guest.lookup(ROOT, 'link');
  const { data, error } = await guest.call(OP.READLINK, node, new Uint8Array(0), 4096);
  assert.equal(error, 0);
  assert.equal(Buffer.from(data.buffer, data.byteOffset, data.byteLength).toString(), 'there');
});

test('with --metadata-ttl 0 each listing asks, and an answer out of a cache in between proves nothing', async () => {
  await put('f');
  await start({ metadataTtl_ms: 0 });
  await list(true);
  assert.equal(await heads(() => list(true)), 1);
  await guest.close();
  server.judge = ({ operation }) => (operation === 'head' ? { headers: (headers) => ({ ...headers, age: '3' }) } : null);
  await start();
  await list(true);
  later();
  assert.equal(await heads(() => list(true)), 1);
});
