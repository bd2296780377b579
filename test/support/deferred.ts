/** What tests of changes ask for that nobody waits for with --durability=writeback. */
import assert from 'node:assert/strict';
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { E } from '../../src/base/errno.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { CacheDirectory } from '../../src/storage/object/write/cache-directory.js';
import { inspect } from '../../src/storage/object/write/recovery.js';
import { concat, u32, u64 } from './frontend.js';
import { name, OP, type Entry, type Reply } from './guest.js';
import type { ObjectGuest } from './object-guest.js';

export const ROOT = 1n;
const FATTR = { MODE: 1, UID: 2, GID: 4, MTIME: 32 } as const;
export const MTIME_S = 1_234_567;
/** So long that nothing is committed but when it is asked for. */
export const LATER = { durability: 'writeback', writebackDelay_ms: 600_000 } as const;

export const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

/** What a store is asked for. */
export class Calls {
  readonly all: string[] = [];
  readonly store: ObjectStore;

  constructor(behind: ObjectStore) {
    this.store = intercept(behind, async (call, attempt) => {
      this.all.push(call.subject.replace(behind.location, ''));
      return attempt(call.signal);
    });
  }

  take(): string[] {
    return this.all.splice(0);
  }
}

interface Attributes {
  readonly mode?: number;
  readonly uid?: number;
  readonly mtime_s?: number;
}

export async function setattr(g: ObjectGuest, node: bigint, { mode, uid, mtime_s }: Attributes): Promise<number> {
  const valid = (mode === undefined ? 0 : FATTR.MODE) | (uid === undefined ? 0 : FATTR.UID) | (mtime_s === undefined ? 0 : FATTR.MTIME);
  return (await g.call(OP.SETATTR, node, concat(u32(valid, 0), u64(0, 0, 0, 0, mtime_s ?? 0, 0), u32(0, 0, 0, mode ?? 0, 0, uid ?? 0, 0, 0)), 104)).error;
}

export const setxattr = async (g: ObjectGuest, node: bigint, key: string, value: Uint8Array): Promise<number> =>
  (await g.call(OP.SETXATTR, node, concat(u32(value.length, 0, 0, 0), name(key), value), 0)).error;
export const mkdirReply = (g: ObjectGuest, parent: bigint, one: string, mode = 0o755): Promise<Reply> => g.call(OP.MKDIR, parent, concat(u32(mode, 0o22), name(one)), 128);
export const mkdir = async (g: ObjectGuest, parent: bigint, one: string, mode = 0o755): Promise<Entry> => g.entry(await mkdirReply(g, parent, one, mode));
export const rmdir = async (g: ObjectGuest, parent: bigint, one: string): Promise<number> => (await g.call(OP.RMDIR, parent, name(one), 0)).error;
export const unlink = async (g: ObjectGuest, parent: bigint, one: string): Promise<number> => (await g.call(OP.UNLINK, parent, name(one), 0)).error;
export const rename = async (g: ObjectGuest, from: bigint, a: string, to: bigint, b: string): Promise<number> =>
  (await g.call(OP.RENAME2, from, concat(u64(to), u32(0, 0), name(a), name(b)), 0)).error;
export const missing = async (g: ObjectGuest, parent: bigint, one: string): Promise<void> => assert.equal((await g.call(OP.LOOKUP, parent, name(one), 128)).error, -E.NOENT, one);

export async function fsyncdir(g: ObjectGuest, node: bigint): Promise<number> {
  const opened = await g.call(OP.OPENDIR, node, u32(0, 0), 16);
  const fh = opened.data.getBigUint64(0, true);
  const { error } = await g.call(OP.FSYNCDIR, node, concat(u64(fh), u32(0, 0)), 0);
  assert.equal((await g.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)))).error, 0);
  return error;
}

export const keysOf = async (store: ObjectStore): Promise<string[]> => (await store.list({ prefix: '' })).objects.map(({ key }) => key);
export const modeOf = async (store: ObjectStore, key: string): Promise<number | null> => readPosix((await store.head(key)).metadata ?? {}).posix.mode;

export const xattrsOf = async (store: ObjectStore, key: string): Promise<string[]> => [...(readPosix((await store.head(key)).metadata ?? {}).posix.xattrs?.keys() ?? [])].sort();

/** Nothing is left of it in the cache directory. */
export function assertDone(cacheDirectory: string): void {
  assert.deepEqual(readdirSync(join(cacheDirectory, 'staging')), []);
  const { directory } = CacheDirectory.reopen(cacheDirectory);
  const { pending } = inspect(directory);
  directory.close();
  assert.deepEqual([pending.files.size, pending.operations.size], [0, 0]);
}

export async function withCache(body: (cacheDirectory: string) => Promise<void>): Promise<void> {
  const cacheDirectory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  try {
    await body(cacheDirectory);
  } finally {
    rmSync(cacheDirectory, { recursive: true });
  }
}

export const KINDS: readonly (readonly [what: string, () => MemoryStore])[] = [
  ['in place', () => new MemoryStore()],
  ['by copies', () => new MemoryStore({ capabilities: { metadataInPlace: false, rename: false, listingHasMetadata: false } })],
];
