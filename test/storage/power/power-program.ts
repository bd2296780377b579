/**
 * A guest's programs work on a bucket, with the cache directory on a disk of the tests; then power fails at many moments of that, and the daemon is started on
 * what is left, with the bucket as it was then. Run by ../power.test.ts in namespaces of its own.
 */
import { fdatasync, mkdirSync, openSync, closeSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { promisify } from 'node:util';
import { deserialize, serialize } from 'node:v8';
import { intercept } from '../../../src/storage/object/layers/intercept.js';
import { MemoryStore, type MemoryContents } from '../../../src/storage/object/stores/memory.js';
import type { Capabilities, ObjectStore } from '../../../src/storage/object/store.js';
import type { Durability } from '../../../src/storage/object/write/committer.js';
import type { CommitSizes } from '../../../src/storage/object/write/layout.js';
import { Random } from '../../model/random.js';
import { assertDone } from '../../support/deferred.js';
import { readBucket } from '../../support/manifest.js';
import { MortalStore } from '../../support/mortal-store.js';
import { ObjectGuest, type GuestOptions } from '../../support/object-guest.js';
import { noise } from '../../support/workload.js';
import { PARTS, SMALL } from '../../support/writing-guest.js';
import { Actor, type Role } from './actors.js';
import { Disk, makeFileSystem, type DiskFormat } from './disk.js';
import { readLog, type Loss } from './disk-log.js';
import { History, type Given, type Told } from './history.js';
import { isolatedProgram, tell } from './isolated.js';
import { Aftermath, copySparse, lossOf, momentOf, Recorder, survivalOf, type Survival, type Timed } from './recording.js';
import { Requests } from './requests.js';

const fdatasyncLater = promisify(fdatasync);
const MIB = 1 << 20;
/** One state, from its mount to its end. */
const STATE_MS_MAX = 60_000;
const MUTATIONS: ReadonlySet<string> = new Set(['put', 'remove', 'copy', 'rename', 'setMetadata', 'beginUpload', 'putPart', 'copyPart', 'completeUpload', 'abortUpload']);
const CASTS: readonly (readonly Role[])[] = [
  ['editor', 'names', 'large'], ['editor', 'database', 'large'], ['names', 'backup', 'editor'], ['pieces', 'editor', 'large'], ['database', 'names', 'backup'],
];

export interface PowerParameters {
  readonly format: DiskFormat;
  readonly durability: Durability;
  readonly seed: number;
  readonly states: number;
  /** Where states that fail are kept, and how many. */
  readonly keep: string;
  readonly keepMax: number;
  /** One that was kept is tried again; nothing else. */
  readonly again?: string;
}

/** Of one state, or (`recorded`) of what power failures are made of. */
export type PowerResult =
  | { readonly t: 'recorded'; readonly events: number; readonly answered: number; readonly mutations: number; readonly logBytes: number; readonly roles: string; readonly ms: number }
  | { readonly t: 'state'; readonly state: string; readonly problems: readonly string[]; readonly kept: string | null; readonly ms: number };

type Event = Told | { readonly t: 'bucket'; readonly contents: MemoryContents };

/** What a state needs beside its disk. */
interface Scene {
  readonly durability: Durability;
  readonly capabilities: Partial<Capabilities>;
  readonly sizes: Partial<CommitSizes>;
  readonly given: readonly Given[];
}

const { directory, parameters } = isolatedProgram<PowerParameters>();

function optionsOf(scene: Scene, cacheDirectory: string, bootId: string): GuestOptions {
  const write = { cacheDirectory, durability: scene.durability, writebackDelay_ms: 5, sizes: scene.sizes, bootId };
  return { write };
}

const storeOf = (scene: Scene, contents: MemoryContents): MemoryStore => new MemoryStore({ name: 'power', limits: PARTS, capabilities: scene.capabilities, contents });

/** Notes the bucket after each change. */
function recorded(store: MemoryStore, recorder: Recorder<Event>): ObjectStore {
  return intercept(store, async (call, attempt) => {
    const result = await attempt(call.signal);
    if (MUTATIONS.has(call.operation)) recorder.note({ t: 'bucket', contents: store.contents() });
    return result;
  });
}

/** The kernel writes back what it likes, when it likes. */
async function writeBack(mountPoint: string, random: Random, isOver: () => boolean): Promise<void> {
  while (!isOver()) {
    await sleep(random.below(12));
    if (random.chance(20)) {
      await once(spawn('sync', ['-f', mountPoint]), 'close');
    } else if (random.chance(60)) {
      const cache = join(mountPoint, 'cache');
      const staging = readdirSync(join(cache, 'staging'));
      const path = staging.length === 0 || random.chance(50) ? join(cache, 'journal') : join(cache, 'staging', random.pick(staging));
      try {
        const fd = openSync(path, 'r');
        await fdatasyncLater(fd).finally(() => closeSync(fd));
      } catch (error) {
        if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      }
    }
  }
}

async function record(scene: Scene, disk: Disk, recorder: Recorder<Event>, contents: MemoryContents, random: Random, roles: readonly Role[]): Promise<void> {
  const cacheDirectory = join(disk.mountPoint, 'cache');
  const memory = storeOf(scene, contents);
  const store = recorded(memory, recorder);
  recorder.note({ t: 'bucket', contents });
  let nodes = scene.given.length;
  const world = { tell: (told: Told): void => recorder.note(told), nextNode: (): number => nodes++ };
  const actors = roles.map((role, i) => {
    const given = scene.given.filter(({ path }) => path.startsWith(role === 'large' ? 'large' : `given${i}`));
    return new Actor('abcdef'[i], role, new Random(random.below(2 ** 31)), world, given.map(({ node, path, content }) => ({ id: node, path, size: content.length })));
  });
  const lives = 1 + random.below(2);
  for (let life = 0; life < lives; life++) {
    const mortal = new MortalStore(store, () => random.pick([0, 0, 1, 3, 10, 60]));
    const guest = await ObjectGuest.start(mortal.store, optionsOf(scene, cacheDirectory, 'boot 0'));
    const requests = new Requests(guest);
    let isOver = false;
    const kernel = writeBack(disk.mountPoint, random, () => isOver);
    try {
      await Promise.all(actors.map((actor) => actor.run(requests, 25 + random.below(20))));
    } finally {
      isOver = true;
      await kernel;
    }
    if (random.chance(50)) {
      mortal.die();
      const killed = guest.kill();
      mortal.end();
      await killed;
    } else {
      await guest.close();
    }
  }
}

/** The daemon is started on what is left, and ends when all is in the bucket. @returns what is wrong */
async function restarted(scene: Scene, disk: Disk, store: MemoryStore, told: readonly Told[], bootId: string, recorder: Recorder<Event>, reads: boolean): Promise<string[]> {
  const problems: string[] = [];
  const cacheDirectory = join(disk.mountPoint, 'cache');
  let guest: ObjectGuest;
  try {
    guest = await ObjectGuest.start(recorded(store, recorder), optionsOf(scene, cacheDirectory, bootId));
  } catch (error) {
    const open = await disk.open();
    return [`the start is refused: ${(error as Error).message}`, ...(open.length === 0 ? [] : [`descriptors are left open: ${open.join(', ')}`])];
  }
  try {
    if (reads) await readAll(guest);
    await guest.opened.idle();
    const left = await guest.close();
    if (left > 0) problems.push(`${left} files are not in the bucket at the end`);
    problems.push(...guest.log.filter((line) => !/^(session|attributes): /.test(line)).map((line) => `log: ${line}`));
    assertDone(cacheDirectory);
  } catch (error) {
    problems.push(`failed: ${(error as Error).message}`);
    await guest.kill().catch(() => undefined);
  }
  const open = await disk.open();
  if (open.length > 0) problems.push(`descriptors are left open: ${open.join(', ')}`);
  problems.push(...new History(scene.durability, scene.given, told).problems(await readBucket(store, '')));
  return problems;
}

/** Every file can be read before it is in the bucket. */
async function readAll(guest: ObjectGuest): Promise<void> {
  for (const name of await guest.list(1n)) {
    const entry = await guest.lookup(1n, name);
    if ((entry.mode & 0o170000) !== 0o100000) continue;
    const fh = await guest.open(entry.node, 0);
    for (let at = 0; at < entry.size; at += MIB) {
      const { error } = await guest.read(entry.node, fh, at, MIB);
      if (error !== 0) throw new Error(`reading ${name} at ${at}: ${error}`);
    }
  }
}

interface KeptState {
  readonly scene: Scene;
  readonly format: DiskFormat;
  readonly contents: MemoryContents;
  readonly told: readonly Told[];
  readonly bootId: string;
  readonly reads: boolean;
}

let kept = 0;

function keep(state: KeptState, image: string, replay: string, label: string): string | null {
  if (kept >= parameters.keepMax) return null;
  const to = join(parameters.keep, `${parameters.format.name}-${parameters.durability}-${parameters.seed}-${kept++}`);
  mkdirSync(to, { recursive: true });
  copySparse(image, join(to, 'image'));
  copySparse(replay, join(to, 'replay'));
  writeFileSync(join(to, 'state'), serialize(state));
  writeFileSync(join(to, 'label'), label);
  return to;
}

const within = async <T>(limit_ms: number, what: Promise<T>): Promise<T> =>
  Promise.race([what, sleep(limit_ms, null, { ref: false }).then(() => Promise.reject(new Error(`not done after ${limit_ms} ms`)))]);

const contentsAt = (events: readonly Timed<Event>[]): MemoryContents => {
  const last = events.findLast(({ event }) => event.t === 'bucket')!.event;
  return (last as Extract<Event, { t: 'bucket' }>).contents;
};

const toldOf = (events: readonly Timed<Event>[]): Told[] => events.flatMap(({ event }) => (event.t === 'bucket' ? [] : [event]));

/** What a guest was promised, and what has happened in the bucket. */
const matters = (event: Event): boolean => event.t === 'bucket' || event.t === 'answered';

class States {
  constructor(
    readonly scene: Scene,
    readonly aftermath: Aftermath,
    readonly told: readonly Told[],
    readonly random: Random,
  ) {}

  /** Power is back; it may fail again while the daemon starts, `again` times. */
  async try(label: string, contents: MemoryContents, survivals: readonly Survival[], again: number): Promise<void> {
    const { scene, aftermath, told, random } = this;
    const reads = random.chance(25);
    const bootId = `boot ${survivals.length}`;
    await aftermath.withDisk(survivals, async (disk) => {
      const begun_ms = performance.now();
      const recorder = new Recorder<Event>(disk);
      recorder.note({ t: 'bucket', contents });
      const problems = await within(STATE_MS_MAX, restarted(scene, disk, storeOf(scene, contents), told, bootId, recorder, reads)).catch((error: Error) => [error.message]);
      const at = problems.length === 0 ? null : keep({ scene, format: aftermath.format, contents, told, bootId, reads }, aftermath.image, disk.replay!, label);
      tell({ t: 'state', state: label, problems, kept: at, ms: Math.round(performance.now() - begun_ms) } satisfies PowerResult);
      await disk.unmount();
      const records = readLog(disk.log);
      if (again === 0 || problems.length > 0) return;
      const moment = momentOf(recorder.events, records, random, matters);
      const loss = lossOf(random);
      const survival = survivalOf(disk.log, records, moment, loss, aftermath.format.tornBytes, random);
      const then = contentsAt(recorder.events.slice(0, moment.events));
      await this.try(`${label}, again (${describe(moment, loss, records.length)})`, then, [...survivals, survival], again - 1);
    });
  }
}

const describe = (moment: { events: number; end: number }, loss: Loss, records: number): string => `event ${moment.events}, log to ${moment.end}, ${records} records, lost: ${loss}`;

async function main(): Promise<void> {
  if (parameters.again !== undefined) return again(parameters.again);
  const { format, durability, seed } = parameters;
  const random = new Random(seed);
  const roles = random.pick(CASTS);
  const given: Given[] = [];
  const memory = new MemoryStore({ name: 'power', limits: PARTS });
  const put = async (path: string, bytes: number): Promise<void> => {
    const content = noise(random, bytes);
    await memory.put(path, content);
    given.push({ node: given.length, path, content });
  };
  for (let i = 0; i < roles.length; i++) for (const bytes of [random.below(300), 1 + random.below(20_000), 100_000 + random.below(200_000)]) await put(`given${i}-${bytes}`, bytes);
  if (roles.includes('large')) await put('large', 8 * MIB);
  const scene: Scene = {
    durability, given,
    capabilities: random.chance(50) ? {} : { metadataInPlace: false, rename: false, listingHasMetadata: false },
    sizes: random.chance(50) ? {} : SMALL,
  };
  const [image, base] = [join(directory, 'image'), join(directory, 'base')];
  makeFileSystem(format, image);
  copySparse(image, base);
  const disk = await Disk.start({ directory: join(directory, 'recorded'), image, keeps: true });
  await disk.mount(format);
  const recorder = new Recorder<Event>(disk);
  await record(scene, disk, recorder, memory.contents(), random, roles);
  await disk.stop();
  rmSync(image);
  const { events } = recorder;
  const aftermath = new Aftermath(format, disk.log, base, directory);
  tell({
    t: 'recorded', events: events.length, answered: events.filter(({ event }) => event.t === 'answered').length, mutations: events.filter(({ event }) => event.t === 'bucket').length,
    logBytes: aftermath.records.at(-1)?.end ?? 0, roles: roles.join(', '), ms: Math.round(performance.now()),
  } satisfies PowerResult);
  const moments = Array.from({ length: parameters.states }, () => momentOf(events, aftermath.records, random, matters)).sort((a, b) => a.end - b.end);
  for (const [i, moment] of moments.entries()) {
    const before = events.slice(0, moment.events);
    const loss = lossOf(random);
    const survival = aftermath.survival(moment, loss, random);
    const states = new States(scene, aftermath, toldOf(before), random);
    await states.try(`state ${i} (${describe(moment, loss, aftermath.records.length)})`, contentsAt(before), [survival], random.chance(25) ? 1 : 0);
  }
}

/** A state that was kept. */
async function again(from: string): Promise<void> {
  const { scene, format, contents, told, bootId, reads } = deserialize(readFileSync(join(from, 'state'))) as KeptState;
  const disk = await Disk.start({ directory: join(directory, 'again'), image: join(from, 'image'), keeps: false, replay: join(from, 'replay') });
  await disk.mount(format);
  const recorder = new Recorder<Event>(disk);
  const problems = await restarted(scene, disk, storeOf(scene, contents), told, bootId, recorder, reads);
  tell({ t: 'state', state: readFileSync(join(from, 'label'), 'utf8'), problems, kept: from, ms: 0 } satisfies PowerResult);
  await disk.stop();
}

await main();
