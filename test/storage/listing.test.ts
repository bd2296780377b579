/** Directories from pages of keys: see src/storage/object/listing.ts. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { compareUtf8, entriesOf, LISTING_START, type Entry, type ListingState } from '../../src/storage/object/listing.js';
import { nameOf } from '../../src/storage/object/names.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 1_000_000);

async function storeOf(keys: readonly string[]): Promise<MemoryStore> {
  const store = new MemoryStore();
  for (const key of keys) await store.put(key, new TextEncoder().encode(key.endsWith('!/') ? 'content' : ''));
  return store;
}

/** All entries of a directory by pages of `limit`, and the most objects that were held back. */
async function list(store: MemoryStore, prefix: string, limit: number): Promise<{ entries: Entry[]; mostHeld: number }> {
  const entries: Entry[] = [];
  let state: ListingState = LISTING_START;
  let token: string | undefined;
  let mostHeld = 0;
  for (;;) {
    const page = await store.list({ prefix, delimiter: '/', limit, ...(token === undefined ? {} : { token }) });
    const step = entriesOf(prefix, page, state, page.next === null);
    entries.push(...step.entries);
    state = step.state;
    mostHeld = Math.max(mostHeld, state.held.length);
    if (page.next === null) return { entries, mostHeld };
    token = page.next;
  }
}

/** What the directory holds, said without cleverness: name → whether it is a directory. */
function expected(keys: readonly string[], prefix: string): Map<string, boolean> {
  const below = keys.filter((key) => key.startsWith(prefix) && (key !== prefix || key.endsWith('!/')));
  const directories = new Set(below.filter((key) => key.slice(prefix.length).includes('/')).map((key) => key.slice(prefix.length).split('/')[0]));
  const out = new Map<string, boolean>();
  for (const directory of directories) out.set(Buffer.from(nameOf(directory)).toString('latin1'), true);
  for (const key of below) {
    const component = key.slice(prefix.length);
    if (!component.includes('/')) out.set(Buffer.from(nameOf(component, directories.has(component))).toString('latin1'), false);
  }
  return out;
}

const seen = (entries: readonly Entry[]): Map<string, boolean> => new Map(entries.map((entry) => [Buffer.from(entry.name).toString('latin1'), entry.object === null]));

test('an object and a directory of one name are both there, whatever lies between them, on pages of any size', async () => {
  const keys = ['foo', 'foo bar', 'foo!', 'foo-1', 'foo-1/x', 'foo.txt', 'foo/a', 'foo/b/c', 'foo0', 'fo', 'a//b', '/root', './x', '../y', 'z/', 'm!/', 'm!/n'];
  const store = await storeOf(keys);
  for (const limit of [1, 2, 3, 5, 1000]) {
    const { entries } = await list(store, '', limit);
    assert.deepEqual(seen(entries), expected(keys, ''));
    assert.equal(entries.length, new Set(entries.map((entry) => Buffer.from(entry.name).toString('latin1'))).size, 'no name comes twice');
  }
  const names = seen((await list(store, '', 2)).entries);
  assert.deepEqual([names.get('foo'), names.get('foo%~f'), names.get('%~e'), names.get('%~d'), names.get('%~dd')], [true, false, true, true, true]);
});

test('a marker is no entry of its directory, but one with content is', async () => {
  const store = await storeOf(['d/', 'd/x', 'm!/', 'm!/x']);
  assert.deepEqual([...seen((await list(store, 'd/', 10)).entries)], [['x', false]]);
  assert.deepEqual([...seen((await list(store, 'm!/', 10)).entries)].sort(), [['%~e', false], ['x', false]]);
});

test('ten thousand names between an object and its directory hold back one object', async () => {
  const keys = ['foo', ...Array.from({ length: 10_000 }, (_, i) => `foo-${String(i).padStart(5, '0')}`), 'foo/x'];
  const { entries, mostHeld } = await list(await storeOf(keys), '', 100);
  assert.equal(entries.length, 10_002);
  assert.ok(mostHeld <= 2);
  assert.equal(seen(entries).get('foo%~f'), false);
});

test(`any keys make the directory that they make without cleverness (SEED=${SEED})`, async () => {
  let state = SEED >>> 0 || 1;
  const random = (n: number): number => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return (state >>> 0) % n;
  };
  const pieces = ['a', 'b', '-', '.', '/', '/', '!', ' ', '0', 'é', '🎈', '\u{fffd}', '%~f'];
  for (let round = 0; round < 150; round++) {
    const keys = new Set<string>();
    for (let n = random(40); n > 0; n--) keys.add(Array.from({ length: 1 + random(6) }, () => pieces[random(pieces.length)]).join(''));
    const all = [...keys];
    const store = await storeOf(all);
    const prefixes = new Set(['', ...all.flatMap((key) => [...key.matchAll(/\//g)].map((match) => key.slice(0, match.index + 1)))]);
    for (const prefix of prefixes) {
      assert.deepEqual(seen((await list(store, prefix, 1 + random(5))).entries), expected(all, prefix), JSON.stringify({ all, prefix }));
    }
  }
});

test('names are ordered as their UTF-8 bytes are', () => {
  const all = ['', 'a', 'ab', 'b', 'é', '\u{7ff}', '\u{800}', '\u{d7ff}', '\u{e000}', '\u{fffd}', '\u{10000}', '🎈', '🎈a', '\u{10ffff}', 'a\u{10000}', 'a\u{ffff}'];
  for (const a of all) for (const b of all) assert.equal(Math.sign(compareUtf8(a, b)), Buffer.compare(Buffer.from(a), Buffer.from(b)), JSON.stringify([a, b]));
});
