/** One sequence of random operations: each has a seed of its own, so that it stays what it was when others are left out. */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { CacheDirectory } from '../../../src/storage/object/write/cache-directory.js';
import { inspect } from '../../../src/storage/object/write/recovery.js';
import { Random } from '../../model/random.js';
import * as files from './files.js';
import * as names from './names.js';
import * as outside from './outside.js';
import { World, type Settings } from './world.js';

/** Where syncing costs nothing. */
const MEMORY = '/dev/shm';
const OPERATIONS_MIN = 40;
const OPERATIONS_MAX = 100;

const WEIGHTS: readonly (readonly [weight: number, run: (w: World) => Promise<void>])[] = [
  [5, names.lookup], [10, names.make], [6, names.remove], [3, names.removeOpen], [12, names.rename], [1, names.readlink], [8, names.setattr], [4, names.setxattr],
  [2, names.getxattr], [1, names.listxattr], [1, names.removexattr], [4, names.list], [1, names.statfs], [4, names.forget],
  [12, files.create], [8, files.open], [2, files.reopen], [7, files.close], [6, files.sync], [8, files.read], [3, files.readLost], [18, files.write], [8, files.truncate],
  [2, files.fgetattr], [6, files.fallocate], [1, files.seek], [4, files.burst], [4, files.readMeanwhile],
  [2, outside.makeToo], [6, outside.put], [4, outside.remove], [3, outside.conflict], [3, outside.idle], [3, outside.kill], [3, outside.killInside], [1, outside.wipe],
];

const TABLE = WEIGHTS.flatMap(([weight, run]) => new Array<(w: World) => Promise<void>>(weight).fill(run));

export interface Step {
  readonly operation: number;
  readonly seed: number;
}

export interface Failure {
  readonly error: Error;
  readonly history: readonly string[];
}

export function planOf(seed: number, fixed: Pick<Settings, 'durability' | 'posix'>): { settings: Settings; steps: Step[] } {
  const random = new Random(seed);
  const conditions = random.chance(85);
  const settings: Settings = {
    ...fixed,
    seed,
    prefix: random.pick(['', 'share/', 'a/b/']),
    readdirplus: random.chance(70),
    writebackDelay_ms: random.pick([0, 5, 60_000, 60_000]),
    pageEntries: random.pick([2, 3, 1000]),
    capabilities: {
      rename: random.chance(50), listingHasMetadata: random.chance(50), copyPart: random.pick(['range', 'range', 'whole', 'none']), copyPartIfVersion: random.chance(70),
      metadataInPlace: random.chance(50), putIfAbsent: conditions, putIfVersion: conditions, completeIfAbsent: conditions, completeIfVersion: conditions, copyIfAbsent: conditions,
    },
  };
  const count = OPERATIONS_MIN + random.below(OPERATIONS_MAX - OPERATIONS_MIN + 1);
  const steps = Array.from({ length: count }, () => ({ operation: random.below(TABLE.length), seed: random.below(2 ** 31) }));
  return { settings, steps };
}

/** @returns what went wrong, or null */
export async function runSequence(settings: Settings, steps: readonly Step[]): Promise<Failure | null> {
  const cacheDirectory = mkdtempSync(join(existsSync(MEMORY) ? MEMORY : tmpdir(), 'bucketfsd-test-'));
  const w = new World(settings, cacheDirectory);
  try {
    const foreign = settings.prefix === '' ? null : 'elsewhere';
    if (foreign !== null) await w.store.put(foreign, new Uint8Array(3));
    await w.start();
    for (const { operation, seed } of steps) {
      w.random = new Random(seed);
      await TABLE[operation](w);
    }
    await finish(w);
    if (foreign !== null) await w.store.head(foreign);
    return null;
  } catch (error) {
    const log = w.guest?.log.slice(-5) ?? [];
    await w.guest?.kill().catch(() => undefined);
    w.mortal?.end();
    return { error: error as Error, history: [...w.history, ...log.map((line) => `log: ${line}`)] };
  } finally {
    rmSync(cacheDirectory, { recursive: true, force: true });
  }
}

async function finish(w: World): Promise<void> {
  w.random = new Random(w.settings.seed);
  w.note('at the end: the tree as the guest finds it');
  await outside.compareTree(w);
  w.note('everything is closed');
  for (const handle of [...w.handles]) await w.release(handle);
  assert.equal(await w.stop(), 0, 'files left behind');
  await outside.compareStore(w);
  assert.deepEqual(readdirSync(join(w.cacheDirectory, 'staging')), [], 'staging files left behind');
  const { directory } = CacheDirectory.reopen(w.cacheDirectory);
  const { pending } = inspect(directory);
  directory.close();
  assert.deepEqual([pending.files.size, pending.operations.size, pending.uploads.size, pending.hidden.size], [0, 0, 0, 0], 'something is left in the journal');
  w.note('the tree as another guest finds it');
  await w.start();
  assert.deepEqual(w.guest.recovered, []);
  await outside.compareTree(w);
  await w.stop();
}

/** Fewer operations that fail as well, as far as the time allows. */
export async function minimised(settings: Settings, steps: readonly Step[], failure: Failure, until_ms: number): Promise<{ steps: readonly Step[]; failure: Failure }> {
  let best = { steps, failure };
  for (let size = Math.ceil(steps.length / 2); size >= 1; ) {
    let shorter = false;
    for (let from = 0; from < best.steps.length && performance.now() < until_ms; ) {
      const tried = [...best.steps.slice(0, from), ...best.steps.slice(from + size)];
      const failed = await runSequence(settings, tried);
      if (failed !== null && kindOf(failed.error) === kindOf(best.failure.error)) {
        best = { steps: tried, failure: failed };
        shorter = true;
      } else {
        from += size;
      }
    }
    if (performance.now() >= until_ms) break;
    if (size > 1 || !shorter) size = size === 1 ? 0 : Math.ceil(size / 2);
  }
  return best;
}

/** What was wrong, without names and numbers. */
export const kindOf = ({ message }: Error): string => message.replace(/\d+|\/\S*/g, '').slice(0, 100);
