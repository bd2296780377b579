/** A block cache of small blocks in a directory of a test, and an object that goes into it. */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync, statSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import type { TestContext } from 'node:test';
import { NativeMemory } from '../../src/ffi/memory.js';
import { BlockCache } from '../../src/storage/object/blocks/block-cache.js';
import type { CachedObject } from '../../src/storage/object/blocks/cached-object.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { pattern } from '../storage/contract.js';

const KIB = 1 << 10;
export const BLOCK = 64 * KIB;
export const CONTENT = pattern(10 * BLOCK + 1000);

export interface Opened {
  readonly cache: BlockCache;
  readonly warnings: string[];
  readonly budget: MemoryBudget;
}

export async function tryOpen(directory: string, bytes = 64 * BLOCK, budgetBytes = 32 << 20, blockBytes = BLOCK): Promise<Omit<Opened, 'cache'> & { cache: BlockCache | null }> {
  const warnings: string[] = [];
  const log = { warn: (_fields: object, message: string) => void warnings.push(message), debug: () => undefined };
  const budget = new MemoryBudget(budgetBytes);
  return { cache: await BlockCache.open({ directory, bytes, scope: 'test', blockBytes }, budget, log), warnings, budget };
}

export async function open(directory: string, bytes?: number, budgetBytes?: number, blockBytes?: number): Promise<Opened> {
  const { cache, ...rest } = await tryOpen(directory, bytes, budgetBytes, blockBytes);
  assert.ok(cache !== null, rest.warnings.join());
  return { cache, ...rest };
}

/** Some file systems count the map of the pieces of a file with it, once it has been written. */
const MAP_BYTES = 4 * KIB;

/** The blocks take no more of the disk. */
export function assertSpace(directory: string, bytes: number): void {
  const taken = statSync(join(directory, 'data')).blocks * 512;
  assert.ok(taken <= bytes + MAP_BYTES, `${taken} bytes of the disk are taken, instead of ${bytes}`);
}

export function scratchDirectory(t: TestContext): string {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-blocks-'));
  t.after(() => rmSync(directory, { recursive: true, force: true }));
  return join(directory, 'blocks');
}

export const theObject = (cache: BlockCache, key = 'k', version = '1'): CachedObject => cache.object(key, version, CONTENT.length);

/** All whole blocks of [from, to). */
export async function keep(object: CachedObject, from = 0, to = CONTENT.length): Promise<void> {
  await object.keep(from, to, CONTENT.subarray(from, to));
}

/** All blocks, one after the other: each is in the slot of its number if the cache was empty, and has been used later than those before. */
export async function keepInOrder(object: CachedObject): Promise<void> {
  for (let from = 0; from < CONTENT.length; from += BLOCK) await keep(object, from, object.endOf(from / BLOCK));
}

/** @returns null: not there */
export async function read(object: CachedObject, offset: number, bytes: number): Promise<Buffer | null> {
  if (!(await object.ready(offset, bytes))) return null;
  const memory = NativeMemory.allocate(bytes);
  try {
    return (await object.read(offset, bytes, memory)) ? Buffer.from(memory.u8.slice(0, bytes)) : null;
  } finally {
    memory.free();
  }
}

export async function has(object: CachedObject, block: number): Promise<boolean> {
  const from = block * BLOCK;
  const got = await read(object, from, object.endOf(block) - from);
  if (got !== null) assert.ok(got.equals(CONTENT.subarray(from, object.endOf(block))), `block ${block} is what was kept`);
  return got !== null;
}

/** Which of the blocks are there, and right. */
export async function blocksOf(object: CachedObject): Promise<number[]> {
  const there: number[] = [];
  for (let block = 0; block * BLOCK < object.size; block++) if (await has(object, block)) there.push(block);
  return there;
}
