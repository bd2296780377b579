/**
 * A directory without a marker is there because of what is in it. What the guest itself makes, commits or moves into it is known at once, whatever older answers of
 * the bucket say of the directory:
 * - a listing of its parent, that was there before, or is on its way;
 * - that it was not found;
 * - the same of a directory further up.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { withGuest, type Guest } from '../support/writing-guest.js';

const ROOT = 1n;
const OLD = { metadataTtl_ms: 3_600_000 };
const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

const errorOf = async ({ g }: Guest, parent: bigint, file: string): Promise<number> => (await g.call(OP.LOOKUP, parent, name(file), 128)).error;
const rename = async ({ g }: Guest, from: [bigint, string], to: [bigint, string]): Promise<number> =>
  (await g.call(OP.RENAME2, from[0], concat(u64(to[0]), u32(0, 0), name(from[1]), name(to[1])), 0)).error;

/** The guest knows the directory, and holds a new file in it that is only here; others have removed all else. */
async function onlyHere(guest: Guest, store: MemoryStore): Promise<{ directory: bigint; node: bigint; fh: bigint }> {
  await store.put('d/theirs', bytes('theirs'));
  const { node: directory } = await guest.g.lookup(ROOT, 'd');
  const { entry, fh } = await guest.g.create(directory, 'mine');
  await guest.write(entry.node, fh, 0, bytes('mine'));
  await store.remove('d/theirs');
  return { directory, node: entry.node, fh };
}

test('a file that is committed after its parent was listed keeps its directory there', async () => {
  const store = new MemoryStore();
  await withGuest(store, async (guest) => {
    const { directory, node, fh } = await onlyHere(guest, store);
    assert.deepEqual(await guest.g.list(ROOT), ['d']);
    assert.equal(await guest.close(node, fh), 0);
    assert.equal(await errorOf(guest, ROOT, 'd'), 0);
    assert.equal(await errorOf(guest, directory, 'mine'), 0);
    assert.equal((await guest.g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')), 128)).error, -E.EXIST);
    // Other names that the listing does not have are still answered by it
    assert.equal(await errorOf(guest, ROOT, 'e'), -E.NOENT);
  }, OLD);
});

test('so does one that is renamed in it, and what is in it does not count as unseen', async () => {
  const store = new MemoryStore();
  await withGuest(store, async (guest) => {
    const { directory, node, fh } = await onlyHere(guest, store);
    await guest.g.list(ROOT);
    assert.equal(await guest.close(node, fh), 0);
    assert.equal(await rename(guest, [directory, 'mine'], [directory, 'renamed']), 0);
    assert.equal(await errorOf(guest, ROOT, 'd'), 0);
    const other = await guest.g.create(directory, 'other');
    assert.equal(await guest.close(other.entry.node, other.fh), 0);
    assert.equal(await rename(guest, [directory, 'other'], [directory, 'renamed']), 0);
    assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), ['d/renamed']);
  }, OLD);
});

test('so does a listing that is on its way when the file is committed', async () => {
  const memory = new MemoryStore();
  let listed = (): void => undefined;
  let made = (): void => undefined;
  const isListed = new Promise<void>((resolve) => (listed = resolve));
  const isMade = new Promise<void>((resolve) => (made = resolve));
  let holds = false;
  const store = intercept(memory, async ({ operation, signal }, attempt) => {
    if (operation === 'put') await isListed;
    const result = await attempt(signal);
    if (operation === 'put') made();
    if (operation !== 'list' || !holds) return result;
    listed();
    await isMade;
    return result;
  });
  await withGuest(store, async (guest) => {
    const { node, fh } = await onlyHere(guest, memory);
    assert.equal(await guest.close(node, fh), 0);
    holds = true;
    await guest.g.list(ROOT);
    await guest.g.opened.idle();
    assert.equal((await memory.list({ prefix: '' })).objects.length, 1);
    assert.equal(await errorOf(guest, ROOT, 'd'), 0);
  }, { ...OLD, write: { durability: 'writeback', writebackDelay_ms: 0 } });
});

test('a directory that was not found is there when something is made in it', async () => {
  const store = new MemoryStore();
  await withGuest(store, async (guest) => {
    await store.put('d/theirs', bytes('theirs'));
    const { node: directory } = await guest.g.lookup(ROOT, 'd');
    await store.remove('d/theirs');
    assert.equal(await errorOf(guest, ROOT, 'd'), -E.NOENT);
    const { entry, fh } = await guest.g.create(directory, 'mine');
    assert.equal(await errorOf(guest, ROOT, 'd'), 0);
    assert.equal(await guest.close(entry.node, fh), 0);
    assert.equal(await errorOf(guest, ROOT, 'd'), 0);
  }, OLD);
});

test('so are the directories above', async () => {
  const store = new MemoryStore();
  await withGuest(store, async (guest) => {
    await store.put('a/b/c/theirs', bytes('theirs'));
    const parents = [ROOT];
    for (const one of ['a', 'b', 'c']) parents.push((await guest.g.lookup(parents.at(-1)!, one)).node);
    const { entry, fh } = await guest.g.create(parents[3], 'mine');
    await store.remove('a/b/c/theirs');
    for (const parent of parents.slice(0, 3)) await guest.g.list(parent);
    assert.equal(await guest.close(entry.node, fh), 0);
    for (const [i, one] of ['a', 'b', 'c'].entries()) assert.equal(await errorOf(guest, parents[i], one), 0, one);
  }, OLD);
});
