/** What every object store does: one suite for all of them. Each test uses keys below a prefix of its own. */
import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import type { Condition, ListOptions, ListPage, ObjectStore, Part } from '../../src/storage/object/store.js';
import { attachmentsStay, type Others } from './attachments-contract.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** Bytes that compress badly and differ at every offset. */
export function pattern(length: number, seed = 1): Uint8Array {
  const out = new Uint8Array(length);
  let x = seed >>> 0 || 1;
  for (let i = 0; i < length; i++) {
    x = (Math.imul(x, 1664525) + 1013904223) >>> 0;
    out[i] = x >>> 24;
  }
  return out;
}

export async function contentOf(store: ObjectStore, key: string, version?: string): Promise<Uint8Array> {
  const { size } = await store.head(key);
  const into = new Uint8Array(size + 16);
  const n = await store.read(key, { offset: 0, into, ...(version === undefined ? {} : { version }) });
  return into.slice(0, n);
}

async function fails(code: StorageErrorCode | readonly StorageErrorCode[], call: Promise<unknown>): Promise<void> {
  const codes: readonly string[] = typeof code === 'string' ? [code] : code;
  await assert.rejects(call, (error: unknown) => {
    assert.ok(error instanceof StorageError, `not a StorageError: ${String(error)}`);
    assert.ok(codes.includes(error.code), `${error.message}, expected ${codes.join(' or ')}`);
    return true;
  });
}

async function everything(store: ObjectStore, options: ListOptions): Promise<{ keys: string[]; prefixes: string[]; pages: ListPage[] }> {
  const pages: ListPage[] = [];
  let token: string | undefined;
  do {
    const page: ListPage = await store.list({ ...options, ...(token === undefined ? {} : { token }) });
    pages.push(page);
    token = page.next ?? undefined;
    assert.ok(pages.length < 1000, 'a listing ends');
  } while (token !== undefined);
  return { keys: pages.flatMap((page) => page.objects.map((o) => o.key)), prefixes: pages.flatMap((page) => page.prefixes), pages };
}

export interface ContractSubject {
  /** A store with an empty bucket of its own. */
  open(): Promise<ObjectStore>;
  /** After the tests. */
  close?(store: ObjectStore): Promise<void>;
  /** What others attach to objects and read of them, by another client; absent: by the store. */
  readonly others?: () => Others;
}

export function contract(name: string, subject: ContractSubject): void {
  describe(`object store: ${name}`, () => {
    let store: ObjectStore;
    let scratch: string;
    let sequence = 0;
    const fresh = (): string => `t${++sequence}/`;
    before(async () => {
      store = await subject.open();
      scratch = mkdtempSync(join(tmpdir(), 'bucketfsd-store-'));
    });
    after(async () => {
      rmSync(scratch, { recursive: true, force: true });
      await subject.close?.(store);
      await store.close();
    });

    test('check() succeeds on a bucket that is there', () => store.check());

    test('what was put is read, whole and in ranges; reading beyond the end gives nothing', async () => {
      const key = `${fresh()}a`;
      const content = pattern(100_000);
      const version = await store.put(key, content);
      assert.deepEqual(await contentOf(store, key, version), content);
      for (const [offset, length] of [[0, 1], [1, 10], [99_990, 100], [50_000, 4096], [99_999, 1]]) {
        const into = new Uint8Array(length);
        const n = await store.read(key, { version, offset, into });
        assert.equal(n, Math.min(length, content.length - offset));
        assert.deepEqual(into.subarray(0, n), content.subarray(offset, offset + n));
      }
      assert.equal(await store.read(key, { version, offset: 100_000, into: new Uint8Array(10) }), 0);
      assert.equal(await store.read(key, { offset: 1 << 30, into: new Uint8Array(10) }), 0);
    });

    test('an empty object is an object', async () => {
      const key = `${fresh()}empty`;
      const version = await store.put(key, new Uint8Array(0));
      const info = await store.head(key);
      assert.deepEqual([info.size, info.version], [0, version]);
      assert.equal(await store.read(key, { version, offset: 0, into: new Uint8Array(10) }), 0);
    });

    test('a body may be a range of an open file', async () => {
      const content = pattern(300_000, 7);
      const path = join(scratch, 'body');
      writeFileSync(path, content);
      const fd = openSync(path, 'r');
      try {
        const key = `${fresh()}f`;
        await store.put(key, { fd, offset: 1000, bytes: 200_000 });
        assert.deepEqual(await contentOf(store, key), content.slice(1000, 201_000));
        await store.put(key, { fd, offset: 0, bytes: 0 });
        assert.equal((await store.head(key)).size, 0);
        await fails('short-body', store.put(key, { fd, offset: 299_000, bytes: 2000 }));
        assert.equal((await store.head(key)).size, 0);
      } finally {
        closeSync(fd);
      }
    });

    test('head tells size, version, time, type and metadata', async () => {
      const key = `${fresh()}h`;
      const metadata = { mode: '33188', 'goog-reserved-file-mtime': '1700000000', odd: "a=b, c; d 'e' %20 +", empty: '' };
      const before = Date.now();
      const version = await store.put(key, bytes('hello'), { metadata, headers: { 'content-type': 'text/plain' } });
      const info = await store.head(key);
      assert.deepEqual([info.key, info.size, info.version, info.headers!['content-type']], [key, 5, version, 'text/plain']);
      assert.deepEqual({ ...info.metadata }, metadata);
      assert.ok(Math.abs(info.modified_ms - before) < 600_000, 'the clocks are ten minutes apart at most');
    });

    test('fetch is head and the beginning of the content, of one version', async () => {
      const key = `${fresh()}f`;
      const content = pattern(5000, 3);
      const into = new Uint8Array(8000);
      if (!store.capabilities.fetch) return fails('unsupported', store.fetch(key, { into }));
      await fails('not-found', store.fetch(key, { into }));
      await store.put(key, content, { metadata: { mode: '33188', odd: 'a=b, c; %20 +' }, headers: { 'content-type': 'text/plain', 'cache-control': 'no-cache' } });
      const info = await store.head(key);
      assert.deepEqual(await store.fetch(key, { into }), { info, bytes: 5000 });
      assert.deepEqual(into.subarray(0, 5001), Uint8Array.of(...content, 0));
      for (const length of [4999, 5000]) {
        const less = new Uint8Array(length);
        assert.deepEqual(await store.fetch(key, { into: less }), { info, bytes: length }, 'the rest is left out');
        assert.deepEqual(less, content.subarray(0, length));
      }
      await store.put(key, new Uint8Array(0));
      assert.deepEqual(await store.fetch(key, { into }), { info: await store.head(key), bytes: 0 });
    });

    test('metadata beyond the limit is refused, and nothing is stored', async () => {
      const key = `${fresh()}m`;
      await fails(['too-large', 'invalid'], store.put(key, bytes('x'), { metadata: { big: 'v'.repeat(store.limits.metadataBytes + 1) } }));
      await fails('not-found', store.head(key));
    });

    test('what is not there is not found', async () => {
      const key = `${fresh()}nothing`;
      await fails('not-found', store.head(key));
      await fails('not-found', store.read(key, { offset: 0, into: new Uint8Array(1) }));
      await fails('not-found', store.copy(key, `${key}2`));
      await fails(['not-found', 'changed'], store.setMetadata(key, '1', {}));
      await store.remove(key);
    });

    test('a read of a version that was replaced is `changed`, and one of the new version works', async () => {
      const key = `${fresh()}v`;
      const first = await store.put(key, bytes('first'));
      const second = await store.put(key, bytes('second'));
      assert.notEqual(first, second);
      await fails(['changed', 'not-found'], store.read(key, { version: first, offset: 0, into: new Uint8Array(5) }));
      assert.equal(await store.read(key, { version: second, offset: 0, into: new Uint8Array(6) }), 6);
    });

    test('a read of a version that was replaced by a shorter one is `changed` also beyond its end, and never nothing', async () => {
      const key = `${fresh()}s`;
      const long = await store.put(key, pattern(1000, 3));
      await store.put(key, bytes('short'));
      for (const offset of [0, 3, 500, 999]) await fails(['changed', 'not-found'], store.read(key, { version: long, offset, into: new Uint8Array(100) }));
    });

    test('keys may be any text: spaces, slashes, percent signs, unicode, dots', async () => {
      const prefix = fresh();
      const keys = ['a b', 'a+b', 'a%2Fb', 'x//y', './z', '../z', 'ümlaut', '日本', '🎈', "quote'\"&<>", 'q?a=b#c', 'tail/', '~', '*', '\\', 'tab\there'];
      for (const key of keys) await store.put(prefix + key, bytes(key));
      for (const key of keys) assert.equal(Buffer.from(await contentOf(store, prefix + key)).toString(), key);
      const { keys: listed } = await everything(store, { prefix });
      assert.deepEqual(listed, keys.map((key) => prefix + key).sort((a, b) => Buffer.compare(Buffer.from(a), Buffer.from(b))));
      const copies = fresh();
      for (const key of keys) await store.copy(prefix + key, copies + key);
      for (const key of keys) assert.equal(Buffer.from(await contentOf(store, copies + key)).toString(), key);
      for (const key of keys) await store.remove(prefix + key);
      assert.deepEqual((await everything(store, { prefix })).keys, []);
    });

    test('a key of the full length works, one byte more does not', async () => {
      const prefix = fresh();
      const longest = prefix + 'k'.repeat(store.limits.keyBytes - prefix.length);
      await store.put(longest, bytes('x'));
      assert.equal((await store.head(longest)).size, 1);
      await assert.rejects(store.put(`${longest}k`, bytes('x')), StorageError);
    });

    describe('conditions', () => {
      const conditional = (call: (key: string, condition: Condition) => Promise<string>) => async (): Promise<void> => {
        const key = `${fresh()}c`;
        const first = await call(key, { absent: true });
        await fails('changed', call(key, { absent: true }));
        const second = await call(key, { version: first });
        assert.notEqual(second, first);
        await fails('changed', call(key, { version: first }));
        assert.equal((await store.head(key)).version, second);
        await store.remove(key);
        await fails(['changed', 'not-found'], call(key, { version: second }));
        await fails('not-found', store.head(key));
      };

      test('put: absent, and this version only', conditional((key, condition) => store.put(key, pattern(100, ++sequence), { condition })));

      test('complete: absent, and this version only', conditional(async (key, condition) => {
        const upload = await store.beginUpload(key);
        const part = await store.putPart(upload, 1, pattern(100, ++sequence));
        try {
          return await store.completeUpload(upload, [part], { condition });
        } finally {
          await store.abortUpload(upload);
        }
      }));

      test('copy: absent, and this version only, where the store can', async (t) => {
        if (!store.capabilities.copyIfAbsent) return t.diagnostic('no conditional copy here');
        const key = fresh();
        await store.put(`${key}from`, bytes('from'));
        const first = await store.copy(`${key}from`, `${key}to`, { condition: { absent: true } });
        await fails('changed', store.copy(`${key}from`, `${key}to`, { condition: { absent: true } }));
        if (!store.capabilities.copyIfVersion) return;
        const second = await store.copy(`${key}from`, `${key}to`, { condition: { version: first }, metadata: { n: '2' } });
        // Of the same form; Ceph takes what only begins like a version for it
        const another = (first.startsWith('1') ? '2' : '1') + first.slice(1);
        await fails('changed', store.copy(`${key}from`, `${key}to`, { condition: { version: another } }));
        assert.equal((await store.head(`${key}to`)).version, second);
      });

      test('remove: this version only, where the store can', async (t) => {
        if (!store.capabilities.deleteIfVersion) return t.diagnostic('no conditional delete here');
        const key = `${fresh()}r`;
        const first = await store.put(key, bytes('1'));
        const second = await store.put(key, bytes('22'));
        await fails('changed', store.remove(key, { version: first }));
        assert.equal((await store.head(key)).size, 2);
        await store.remove(key, { version: second });
        await fails('not-found', store.head(key));
      });

      test('of ten that put if absent at the same time, one wins', async () => {
        const key = `${fresh()}race`;
        const results = await Promise.allSettled(Array.from({ length: 10 }, (_, i) => store.put(key, bytes(`writer ${i}`), { condition: { absent: true } })));
        const won = results.flatMap((result, i) => (result.status === 'fulfilled' ? [i] : []));
        assert.equal(won.length, 1);
        for (const result of results) if (result.status === 'rejected') assert.equal((result.reason as StorageError).code, 'changed');
        assert.equal(Buffer.from(await contentOf(store, key)).toString(), `writer ${won[0]}`);
      });
    });

    describe('copies and metadata', () => {
      test('a copy keeps metadata and type unless it is given others', async () => {
        const key = fresh();
        await store.put(`${key}a`, bytes('abc'), { metadata: { one: '1' }, headers: { 'content-type': 'text/x-a' } });
        await store.copy(`${key}a`, `${key}b`);
        const kept = await store.head(`${key}b`);
        assert.deepEqual([{ ...kept.metadata }, kept.headers!['content-type'], kept.size], [{ one: '1' }, 'text/x-a', 3]);
        await store.copy(`${key}a`, `${key}b`, { metadata: { two: '2' }, headers: { 'content-type': 'text/x-b' } });
        const replaced = await store.head(`${key}b`);
        assert.deepEqual([{ ...replaced.metadata }, replaced.headers!['content-type']], [{ two: '2' }, 'text/x-b']);
      });

      test('what HTTP says of the content is told, kept by copies and new metadata, and replaced where it is given', async () => {
        const key = fresh();
        const headers = { 'content-type': 'text/x-a', 'cache-control': 'max-age=7', 'content-disposition': 'inline; filename="u"', 'content-language': 'fr' };
        const ofContent = async (of: string): Promise<Record<string, string>> => {
          const { 'x-goog-storage-class': _class, 'x-amz-storage-class': _other, ...rest } = (await store.head(of)).headers!;
          return rest;
        };
        const version = await store.put(`${key}a`, bytes('abc'), { headers, metadata: { one: '1' } });
        assert.deepEqual(await ofContent(`${key}a`), headers);
        const next = await store.setMetadata(`${key}a`, version, { two: '2' });
        assert.deepEqual(await ofContent(`${key}a`), headers);
        await store.copy(`${key}a`, `${key}b`);
        assert.deepEqual(await ofContent(`${key}b`), headers);
        await store.copy(`${key}a`, `${key}c`, { sourceVersion: next, metadata: {}, headers: { 'content-type': 'text/x-c', 'cache-control': 'no-store' } });
        const copied = await ofContent(`${key}c`);
        assert.deepEqual([copied['content-type'], copied['cache-control']], ['text/x-c', 'no-store']);
        const upload = await store.beginUpload(`${key}d`, { headers });
        await store.completeUpload(upload, [await store.putPart(upload, 1, pattern(100, ++sequence))]);
        await store.abortUpload(upload);
        assert.deepEqual(await ofContent(`${key}d`), headers);
      });

      test('a rename is one step with all that the object has, of this version only, over what is there unless told not to', async () => {
        const key = fresh();
        const version = await store.put(`${key}a`, bytes('abc'), { metadata: { one: '1' }, headers: { 'content-type': 'text/x-a' } });
        if (!store.capabilities.rename) return fails('unsupported', store.rename(`${key}a`, `${key}b`, { version }));
        await store.put(`${key}b`, bytes('other'));
        await fails('changed', store.rename(`${key}a`, `${key}b`, { version, condition: { absent: true } }));
        await fails('changed', store.rename(`${key}b`, `${key}c`, { version }));
        const moved = await store.rename(`${key}a`, `${key}b`, { version });
        const there = await store.head(`${key}b`);
        assert.deepEqual([there.version, { ...there.metadata }, there.headers!['content-type'], there.size], [moved, { one: '1' }, 'text/x-a', 3]);
        await fails('not-found', store.head(`${key}a`));
        await fails(['not-found', 'changed'], store.rename(`${key}a`, `${key}c`, { version }));
      });

      test('a copy of a version that is gone is `changed`', async () => {
        const key = fresh();
        const old = await store.put(`${key}a`, bytes('old'));
        const now = await store.put(`${key}a`, bytes('new one'));
        await fails(['changed', 'not-found'], store.copy(`${key}a`, `${key}b`, { sourceVersion: old }));
        await fails('not-found', store.head(`${key}b`));
        await store.copy(`${key}a`, `${key}b`, { sourceVersion: now });
        assert.equal((await store.head(`${key}b`)).size, 7);
      });

      test('metadata is replaced for exactly one version; content and type stay', async () => {
        const key = `${fresh()}m`;
        const version = await store.put(key, bytes('content'), { metadata: { a: '1', b: '2' }, headers: { 'content-type': 'text/x-m' } });
        const next = await store.setMetadata(key, version, { a: '3' });
        const info = await store.head(key);
        assert.deepEqual([{ ...info.metadata }, info.headers!['content-type'], info.size, info.version], [{ a: '3' }, 'text/x-m', 7, next]);
        assert.equal(Buffer.from(await contentOf(store, key, next)).toString(), 'content');
        const replaced = await store.put(key, bytes('other content'));
        await fails(['changed', 'not-found'], store.setMetadata(key, next, { a: '4' }));
        assert.equal((await store.head(key)).version, replaced);
      });
    });

    attachmentsStay(() => store, fresh, subject.others);

    describe('listings', () => {
      test('a delimiter collapses; pages of any size give the same, in order', async () => {
        const prefix = fresh();
        for (const key of ['a', 'b/', 'b/1', 'b/2', 'b.txt', 'c/d/e', 'c/f', 'é', 'z']) await store.put(prefix + key, bytes(key));
        const flat = await everything(store, { prefix });
        assert.deepEqual(flat.keys, ['a', 'b.txt', 'b/', 'b/1', 'b/2', 'c/d/e', 'c/f', 'z', 'é'].map((key) => prefix + key));
        for (const limit of [1, 2, 3, 1000]) {
          const all = await everything(store, { prefix, delimiter: '/', limit });
          assert.deepEqual(all.keys, ['a', 'b.txt', 'z', 'é'].map((key) => prefix + key), `pages of ${limit}`);
          assert.deepEqual(all.prefixes, ['b/', 'c/'].map((key) => prefix + key), `pages of ${limit}`);
          for (const page of all.pages) assert.ok(page.objects.length + page.prefixes.length <= limit);
        }
        const below = await everything(store, { prefix: `${prefix}b/`, delimiter: '/' });
        assert.deepEqual(below.keys, ['b/', 'b/1', 'b/2'].map((key) => prefix + key));
        const later = await everything(store, { prefix, after: `${prefix}b/1` });
        assert.deepEqual(later.keys, ['b/2', 'c/d/e', 'c/f', 'z', 'é'].map((key) => prefix + key));
      });

      test('a listing tells size, version and time, and metadata where the store has it', async () => {
        const prefix = fresh();
        const version = await store.put(`${prefix}o`, bytes('12345'), { metadata: { k: 'v' } });
        const [object] = (await store.list({ prefix })).objects;
        assert.deepEqual([object.size, object.version], [5, version]);
        assert.deepEqual(object.metadata === null ? null : { ...object.metadata }, store.capabilities.listingHasMetadata ? { k: 'v' } : null);
      });

      test('nothing below a prefix is an empty page', async () => {
        const page = await store.list({ prefix: fresh() });
        assert.deepEqual([page.objects.length, page.prefixes.length, page.next], [0, 0, null]);
      });
    });

    describe('uploads in parts', () => {
      test('parts sent in any order, one of them twice, make the object; nobody sees it before', async () => {
        const key = `${fresh()}u`;
        const size = store.limits.partMinBytes;
        const content = [pattern(size, 1), pattern(size + 12_345, 2), pattern(777, 3)];
        const upload = await store.beginUpload(key, { metadata: { made: 'in parts' }, headers: { 'content-type': 'text/x-u' } });
        const third = await store.putPart(upload, 3, content[2]);
        await store.putPart(upload, 1, pattern(size, 99));
        const [first, second] = await Promise.all([store.putPart(upload, 1, content[0]), store.putPart(upload, 2, content[1])]);
        assert.equal(second.bytes, content[1].length);
        await fails('not-found', store.head(key));
        const version = await store.completeUpload(upload, [first, second, third]);
        const info = await store.head(key);
        assert.deepEqual([info.version, { ...info.metadata }, info.headers!['content-type']], [version, { made: 'in parts' }, 'text/x-u']);
        assert.ok(Buffer.from(await contentOf(store, key)).equals(Buffer.concat(content)));
      });

      test('parts may be copied from another object on the server, as far as the store can', async (t) => {
        const prefix = fresh();
        const size = store.limits.partMinBytes;
        const content = pattern(size * 2 + 100, 5);
        const version = await store.put(`${prefix}from`, content);
        const upload = await store.beginUpload(`${prefix}to`);
        const source = { key: `${prefix}from`, version };
        const parts: Part[] = [];
        if (store.capabilities.copyPart === 'range') {
          parts.push(await store.copyPart(upload, 1, { ...source, offset: 50, bytes: size }));
          await fails('changed', store.copyPart(upload, 2, { ...source, offset: 50, bytes: content.length }));
          if (store.capabilities.copyPartIfVersion) {
            await fails(['changed', 'not-found'], store.copyPart(upload, 2, { ...source, version: `${version}0`, offset: 0, bytes: size }));
          }
        } else if (store.capabilities.copyPart === 'whole') {
          parts.push(await store.copyPart(upload, 1, { ...source, offset: 0, bytes: content.length }));
          await fails('unsupported', store.copyPart(upload, 2, { ...source, offset: 50, bytes: size }));
        } else {
          t.diagnostic('no server-side copies here');
          parts.push(await store.putPart(upload, 1, content));
        }
        parts.push(await store.putPart(upload, 2, bytes('tail')));
        await store.completeUpload(upload, parts);
        const head = store.capabilities.copyPart === 'range' ? content.subarray(50, 50 + size) : content;
        assert.ok(Buffer.from(await contentOf(store, `${prefix}to`)).equals(Buffer.concat([head, bytes('tail')])));
      });

      test('an aborted upload leaves nothing, and aborting again is no error', async () => {
        const key = `${fresh()}x`;
        const upload = await store.beginUpload(key);
        const part = await store.putPart(upload, 1, pattern(1000));
        await store.abortUpload(upload);
        await store.abortUpload(upload);
        await fails(['not-found', 'invalid', 'unavailable'], store.completeUpload(upload, [part]));
        await fails('not-found', store.head(key));
        assert.deepEqual((await store.listUploads({ prefix: key })).uploads, []);
      });

      test('uploads that are under way are listed, and parts are no objects', async () => {
        const prefix = fresh();
        const upload = await store.beginUpload(`${prefix}one`);
        await store.putPart(upload, 1, pattern(1000));
        const { uploads } = await store.listUploads({ prefix });
        assert.deepEqual(uploads.map(({ key, id }) => ({ key, id })), [{ key: upload.key, id: upload.id }]);
        assert.ok(Math.abs(uploads[0].begun_ms - Date.now()) < 600_000);
        assert.deepEqual((await everything(store, { prefix })).keys, []);
        await store.abortUpload(upload);
      });
    });

    test('a call whose caller has given up is `aborted`', async () => {
      const signal = AbortSignal.abort();
      const key = `${fresh()}s`;
      await fails('aborted', store.put(key, bytes('x'), { signal }));
      await fails('aborted', store.head(key, { signal }));
      await fails('aborted', store.list({ prefix: key, signal }));
    });
  });
}
