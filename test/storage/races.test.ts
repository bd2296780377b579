/**
 * Two guests with a daemon's file system each on one bucket of Ceph RGW, which do something to the same names at the same moment. What was acknowledged by fsync
 * is there, or a change that came after it has taken it away, and was acknowledged too; who has lost hears ESTALE and finds what was written beside. There is
 * no conflict where nobody else has changed anything, and nothing is left over.
 *
 *   SEED=1 BUCKETFSD_RACES=1000 node --test build/test/storage/races.test.js
 */
import assert from 'node:assert/strict';
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3';
import { after, before, describe, test } from 'node:test';
import { setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { withDeadline } from '../../src/storage/object/layers/deadline.js';
import { withRetry } from '../../src/storage/object/layers/retry.js';
import { probe } from '../../src/storage/object/probe.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { Random } from '../model/random.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Rgw } from '../support/rgw.js';
import { objectOf } from '../support/writing-guest.js';
import { pattern } from './contract.js';
import { Actor } from './write-faults/actor.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const RACES = Number(process.env['BUCKETFSD_RACES'] ?? 70);
const SMALL = 200;
const LARGE = (1 << 20) + 100;
const DELAY_MAX_MS = 30;

type Change = 'content' | 'attributes' | 'rename' | 'remove' | 'replace' | 'create';

/** Pairs of changes of which both have a meaning at the same time; "replace" renames the file g over f, "create" makes g, where "rename" puts f. */
const PAIRS: readonly (readonly [Change, Change])[] = [
  ['content', 'content'], ['content', 'attributes'], ['content', 'rename'], ['content', 'remove'], ['content', 'replace'], ['attributes', 'attributes'], ['attributes', 'rename'],
  ['attributes', 'remove'], ['attributes', 'replace'], ['rename', 'rename'], ['rename', 'remove'], ['rename', 'create'], ['remove', 'remove'], ['remove', 'replace'],
];

interface Side {
  readonly actor: Actor;
  readonly change: Change;
  /** What it writes, or makes. */
  readonly content: Buffer;
  readonly to: string;
}

/** errno of the change, 0: it was acknowledged. */
async function run({ actor, change, content, to }: Side, f: string, g: string): Promise<number> {
  switch (change) {
    case 'content':
    case 'create':
      return actor.fsync();
    case 'attributes':
      return actor.chmod(f, 0o600);
    case 'rename':
      return actor.rename(f, to);
    case 'replace':
      return actor.rename(g, f);
    case 'remove':
      return actor.unlink(f);
  }
  assert.fail(`${change} ${content.length}`);
}

describe('two guests on Ceph RGW', { skip: Rgw.unavailable() }, () => {
  let rgw: Rgw;
  let plain: S3Store;
  const guests: ObjectGuest[] = [];

  before(async () => {
    rgw = await Rgw.start();
    const options = { bucket: 'races', endpoint: rgw.endpoint, region: 'us-east-1', pathStyle: true, credentials: rgw.credentials };
    const client = new S3Client({ endpoint: rgw.endpoint, region: 'us-east-1', forcePathStyle: true, credentials: rgw.credentials });
    await client.send(new CreateBucketCommand({ Bucket: 'races' }));
    client.destroy();
    plain = new S3Store(options);
    const capabilities = await probe(plain, '.probe/');
    for (let i = 0; i < 2; i++) {
      // As in the daemon: what the provider does is known above only
      const store: ObjectStore = { ...withRetry(withDeadline(new S3Store(options))), capabilities };
      guests.push(await ObjectGuest.start(store));
    }
  }, { timeout: 300_000 });
  after(async () => {
    for (const guest of guests) await guest.close();
    await plain.close();
    rgw.stop();
  });

  test(`lose nothing that was acknowledged, and have no false conflicts (${RACES} races, seed ${SEED})`, async (context) => {
    const random = new Random(SEED);
    const told = new Map<string, number>();
    for (let i = 0; i < RACES; i++) {
      const pair = PAIRS[i % PAIRS.length];
      const size = random.chance(30) ? LARGE : SMALL;
      const outcome = await race(i, pair, size, random.below(DELAY_MAX_MS + 1) * (random.chance(50) ? 1 : -1), random.chance(50)).catch((error: Error) => {
        throw new Error(`race ${i} of seed ${SEED}, ${pair.join(' × ')}, ${size} bytes: ${error.message}\n${guests.map(({ log }) => log.slice(-6).join('\n')).join('\n--\n')}`, { cause: error });
      });
      const label = `${pair.join(' × ')}: ${outcome}`;
      told.set(label, (told.get(label) ?? 0) + 1);
    }
    for (const [label, count] of [...told].sort()) context.diagnostic(`${label}  ${count}`);
    assert.deepEqual((await plain.listUploads({ prefix: '' })).uploads, []);
  });

  async function race(i: number, pair: readonly [Change, Change], size: number, delay_ms: number, swapped: boolean): Promise<string> {
    const [f, g] = [`f${i}`, `g${i}`];
    const base = Buffer.from(pattern(size, i + 1));
    const other = Buffer.from(`g of ${i}`);
    await plain.put(f, base);
    if (pair.includes('replace')) await plain.put(g, other);
    const actors = guests.map((guest) => new Actor(guest, plain));
    if (swapped) actors.reverse();
    const sides = pair.map((change, k): Side => {
      const content = Buffer.concat([Buffer.from(`${change} ${i}.${k}`), base.subarray(0, change === 'create' ? 0 : undefined)]).subarray(0, change === 'create' ? undefined : size);
      return { actor: actors[k], change, content, to: k === 0 ? g : change === 'rename' && pair[0] === 'rename' ? `h${i}` : g };
    });
    for (const { actor, change, content } of sides) {
      if (change === 'content') await actor.change(f, 0, content);
      else if (change === 'create') await actor.create(g, content);
      else for (const name of [f, g]) await actor.walk(name);
    }
    const told = await Promise.all(sides.map(async (side, k) => {
      if ((k === 0) === delay_ms > 0) await sleep(Math.abs(delay_ms));
      return run(side, f, g);
    }));
    for (const { actor, change } of sides) if (change === 'content' || change === 'create') await actor.files.close(actor.file);
    for (const guest of guests) await guest.opened.idle();
    await judge(sides, told, { f, g, h: `h${i}` }, base, other);
    return told.map((errno) => (errno === 0 ? 'done' : errno === -E.STALE ? 'ESTALE' : errno === -E.NOENT ? 'ENOENT' : errno === -E.EXIST ? 'EEXIST' : String(errno))).join(', ');
  }

  async function judge(sides: readonly Side[], told: readonly number[], { f, g, h }: { f: string; g: string; h: string }, base: Buffer, other: Buffer): Promise<void> {
    const at = async (key: string): Promise<Buffer | null> => objectOf(plain, key).catch(() => null);
    const there = { f: await at(f), g: await at(g), h: await at(h) };
    const conflicts = (await plain.list({ prefix: '.bucketfsd-conflicts/' })).objects.map(({ key }) => key);
    const kept = await Promise.all(conflicts.map((key) => objectOf(plain, key)));
    for (const key of conflicts) await plain.remove(key);
    const is = (content: Buffer | null, expected: Buffer): boolean => content !== null && content.equals(expected);
    const state = `told ${told.join()}; ${Object.entries(there).map(([key, content]) => `${key}: ${content === null ? 'nothing' : `${content.length} bytes, ${content.subarray(0, 14).toString('latin1')}`}`).join('; ')}; kept ${kept.length}`;
    const done = (change: Change): boolean => sides.some((side, k) => side.change === change && told[k] === 0);
    for (const [k, { change, content }] of sides.entries()) {
      const others = sides[1 - k].change;
      assert.ok([0, -E.STALE, -E.NOENT, ...(change === 'attributes' ? [] : [])].includes(told[k]), `${change}: ${state}`);
      if (change !== 'content' && change !== 'create') continue;
      const name = change === 'content' ? f : g;
      if (told[k] === 0) {
        const moved = others === 'rename' && change === 'content' && done('rename');
        // A removal, or a rename over it, that came after
        const gone = (others === 'remove' && done('remove')) || (others === 'replace' && done('replace')) || (change === 'create' && done('rename'));
        const now = moved ? there.g : await at(name);
        assert.ok(gone || is(now, content), `fsynced ${change} is lost: ${state}`);
      } else {
        assert.equal(told[k], -E.STALE, state);
        assert.equal(told[1 - k], 0, `a conflict, and nobody else has changed anything: ${state}`);
        assert.ok(!(others === 'attributes' && base.length === SMALL), `a conflict with attributes, of the same ETag: ${state}`);
        assert.ok(kept.some((one) => one.subarray(0, 9).equals(content.subarray(0, 9))), `what has lost is not beside it: ${state}`);
      }
    }
    assert.equal(kept.length, sides.filter(({ change }, k) => (change === 'content' || change === 'create') && told[k] !== 0).length, `as many conflicts as were told of: ${state}`);
    const contents = sides.filter(({ change }, k) => change === 'content' && told[k] === 0).map(({ content }) => content);
    const ofFile = (content: Buffer | null): boolean => [base, ...contents].some((one) => is(content, one));
    if (sides.every(({ change }) => change === 'content' || change === 'attributes')) assert.ok(ofFile(there.f), state);
    if (done('remove')) assert.ok(there.f === null || (done('replace') && is(there.f, other)), `it was removed: ${state}`);
    if (done('replace')) assert.ok(is(there.f, other) || (there.f === null && done('remove')), `it was replaced: ${state}`);
    if (done('rename')) {
      const places = [there.g, there.h].filter((content) => ofFile(content)).length;
      assert.ok(places === 1 || (places === 0 && done('remove')), `it was renamed: ${state}`);
      assert.equal(there.f, null, `its old name is there: ${state}`);
    }
    if (sides.every(({ change }) => change === 'rename')) assert.equal(told.filter((errno) => errno === 0).length, 1, state);
    for (const name of [f, g, h]) await plain.remove(name);
  }
});
