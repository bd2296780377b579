/**
 * Random sequences of requests over a real ring, and of changes by the host, against a directory and a model of POSIX
 * (model.ts): each answer and, at the end, the whole tree have to be the same.
 *
 * SEED repeats a run from its first sequence on; BUCKETFSD_MODEL_SEQUENCES says how many each configuration runs.
 */
import assert from 'node:assert/strict';
import { chmodSync, mkdirSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, test } from 'node:test';
import type { LocalOptions } from '../../src/storage/local/share.js';
import { openDescriptors } from '../support/backend.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest } from '../support/guest.js';
import { compareTree } from './host.js';
import { runOperation } from './operations.js';
import { Random } from './random.js';
import { World } from './world.js';

const SEQUENCES = Number(process.env.BUCKETFSD_MODEL_SEQUENCES ?? 100);
const OPERATIONS_MIN = 100;
const OPERATIONS_MAX = 200;
const HISTORY_SHOWN = 20;
const FIRST_SEED = Number(process.env.SEED ?? Math.floor(Math.random() * 2 ** 31));
const NEEDS_ROOT = process.getuid!() === 0 ? false : 'needs root';

/** The smallest room for descriptors of nodes and files that the daemon makes do with, and the limit that leaves it. */
const ROOM = 128;
const TIGHT_NOFILE = 1024 + ROOM;
/** Nodes that are known besides, so that there is not room for all. */
const BALLAST = 200;
const TOUCHED_PERCENT = 8;
const IN_FLIGHT = 100;
const ATTR_REPLY_BYTES = 120;

interface Configuration {
  name: string;
  options: Partial<LocalOptions>;
  threads: number;
  evicts: boolean;
}

const CONFIGURATIONS: readonly Configuration[] = [
  { name: 'a descriptor for each node, no pool, READDIRPLUS', options: { handles: 'never', readdirplus: true }, threads: 0, evicts: false },
  { name: 'a descriptor for each node, two pool threads, READDIR', options: { handles: 'never', readdirplus: false }, threads: 2, evicts: false },
  { name: 'file handles, no pool, READDIR', options: { handles: 'prefer', readdirplus: false, nofile: TIGHT_NOFILE }, threads: 0, evicts: true },
  // READDIRPLUS has no attributes in the pool: it never goes there, also when the disk is slow, or always
  { name: 'file handles, two pool threads, READDIRPLUS', options: { handles: 'prefer', readdirplus: true, nofile: TIGHT_NOFILE, offload: 'never' }, threads: 2, evicts: true },
  { name: 'file handles, everything in two pool threads', options: { handles: 'prefer', readdirplus: false, nofile: TIGHT_NOFILE, offload: 'always' }, threads: 2, evicts: true },
];

// As main.ts: modes are as asked for, and no group lends rights
const umask = process.umask(0);
if (NEEDS_ROOT === false) process.setgroups!([]);
after(() => void process.umask(umask));

/** Known nodes outside of the model that take the descriptors. */
class Ballast {
  readonly #nodes: bigint[] = [];

  static async load(guest: TestGuest, count: number): Promise<Ballast> {
    const ballast = new Ballast();
    for (let i = 0; i < count; i++) ballast.#nodes.push((await guest.lookup(1n, `ballast${i}`)).node);
    return ballast;
  }

  /** Reach every one of them, many in flight: what else is known then loses its descriptor. */
  async touch(guest: TestGuest): Promise<void> {
    for (let from = 0; from < this.#nodes.length; from += IN_FLIGHT) {
      const replies = this.#nodes.slice(from, from + IN_FLIGHT).map((node) => {
        const { bytes } = guest.request(OP.GETATTR, node, new Uint8Array(16));
        return guest.queue.chain([bytes], [ATTR_REPLY_BYTES], true).writable[0];
      });
      guest.queue.kick();
      await guest.queue.wait(replies.length);
      for (const at of replies) assert.equal(guest.memory.dv.getInt32(at + 4, true), 0);
    }
  }

  async drop(guest: TestGuest): Promise<void> {
    await guest.call(OP.BATCH_FORGET, 0n, concat(u32(this.#nodes.length, 0), ...this.#nodes.map((node) => u64(node, 1))), 0);
  }
}

/** Descriptors of this process, with all threads of the pool at hand: they come and go, and have some. */
async function descriptors(guest: TestGuest, threads: number): Promise<number> {
  await Promise.all(Array.from({ length: threads }, () => guest.pool!.run('fsync', -1)));
  return openDescriptors();
}

async function runSequence(guest: TestGuest, configuration: Configuration, seed: number): Promise<World> {
  const random = new Random(seed);
  const directory = join(guest.directory, `sequence${seed}`);
  mkdirSync(directory);
  chmodSync(directory, 0o755);
  const before = await descriptors(guest, configuration.threads);
  const world = new World(guest, random, directory, configuration.evicts, configuration.options.readdirplus === true);
  const operations = OPERATIONS_MIN + random.below(OPERATIONS_MAX - OPERATIONS_MIN);
  let at = 0;
  try {
    const ballast = await Ballast.load(guest, configuration.evicts ? BALLAST : 0);
    await world.enter();
    for (; at < operations; at++) {
      await runOperation(world);
      if (random.chance(TOUCHED_PERCENT)) await ballast.touch(guest);
    }
    if (configuration.evicts) assert.ok(openDescriptors() <= before + ROOM + 1, 'no more descriptors than there is room for');
    compareTree(world);
    guest.uid = guest.gid = 0;
    await world.leave();
    await ballast.drop(guest);
    assert.equal(await descriptors(guest, configuration.threads), before, 'descriptors when everything is forgotten and released');
    assert.equal(guest.log.length, 1, `nothing to say but that there is a session: ${guest.log.join('\n')}`);
  } catch (error) {
    const last = world.history.slice(-HISTORY_SHOWN).join('\n  ');
    (error as Error).message = `SEED=${seed} BUCKETFSD_MODEL_SEQUENCES=1, operation ${at} of ${operations}: ${(error as Error).message}\n  ${last}`;
    throw error;
  }
  rmSync(directory, { recursive: true });
  return world;
}

for (const configuration of CONFIGURATIONS) {
  test(`the daemon does what the model does: ${configuration.name}`, { skip: NEEDS_ROOT }, async (context) => {
    context.diagnostic(`SEED=${FIRST_SEED}`);
    const guest = await TestGuest.start({ cache: 'never', ...configuration.options }, configuration.threads);
    try {
      for (let i = 0; i < BALLAST; i++) writeFileSync(join(guest.directory, `ballast${i}`), '');
      let stale = 0;
      for (let i = 0; i < SEQUENCES; i++) stale += (await runSequence(guest, configuration, FIRST_SEED + i)).stale;
      context.diagnostic(`${SEQUENCES} sequences, ${stale} times a file without a name was out of reach`);
    } finally {
      await guest.close();
    }
  });
}
