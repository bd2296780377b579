/**
 * A guest's program works on a bucket while one call to the cache directory's file system fails, or all from one on until the disk is repaired. Run by
 * ../failing-disk.test.ts in namespaces of its own.
 */
import { appendFileSync, cpSync, mkdirSync, readdirSync, readlinkSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { E } from '../../../src/base/errno.js';
import { MemoryStore, type MemoryContents } from '../../../src/storage/object/stores/memory.js';
import type { Durability } from '../../../src/storage/object/write/committer.js';
import { Random } from '../../model/random.js';
import { assertDone } from '../../support/deferred.js';
import { OP } from '../../support/guest.js';
import { readBucket, type Seen } from '../../support/manifest.js';
import { Files } from '../../support/object-files.js';
import { ObjectGuest, type GuestOptions } from '../../support/object-guest.js';
import { PARTS, SMALL } from '../../support/writing-guest.js';
import { History, type Given, type Told } from '../power/history.js';
import { isolatedProgram, tell } from '../power/isolated.js';
import { FailingDirectory, type Fault } from './failing-directory.js';
import { Script, text } from './script.js';

const KIB = 1024;
const RUN_MS_MAX = 30_000;

/** `recovery`: on what a killed daemon has left; `torn`: its journal ends with half a record. */
export type Scenario = 'fresh' | 'recovery' | 'torn';

export interface FailingParameters {
  readonly durability: Durability;
  readonly scenario: Scenario;
  readonly seed: number;
  /** Runs, at random; the first ones are of calls that differ. null: all there are. */
  readonly runs: number | null;
  /** Only this one, as it was printed. */
  readonly only?: string;
}

export type FailingResult =
  | { readonly t: 'calls'; readonly counts: Readonly<Record<string, number>>; readonly points: number }
  | { readonly t: 'run'; readonly run: string; readonly reached: boolean; readonly errors: readonly string[]; readonly problems: readonly string[] };

const { directory, parameters } = isolatedProgram<FailingParameters>();
const { durability, scenario } = parameters;

const uncaught: string[] = [];
process.on('uncaughtException', (error) => void uncaught.push(`uncaught: ${error.stack}`));
process.on('unhandledRejection', (error) => void uncaught.push(`not handled: ${(error as Error).stack ?? String(error)}`));

const GIVEN: readonly Given[] = [
  ['small', 3000], ['middle', 150 * KIB], ['large', 500 * KIB], ['over', 40 * KIB], ['other', 20 * KIB], ['last', 70 * KIB],
].map(([path, bytes], node) => ({ node, path: path as string, content: text(100 + node, bytes as number) }));

function optionsOf(cacheDirectory: string): GuestOptions {
  return { write: { cacheDirectory, durability, writebackDelay_ms: 5, sizes: SMALL }, blocks: { bytes: 4 << 20, blockBytes: 64 * KIB } };
}

/** All that a program does with files. */
async function work(script: Script, guest: ObjectGuest): Promise<void> {
  await script.create('a');
  await script.write('a', 0, text(1, 30 * KIB));
  await script.fsync('a');
  await script.write('a', 10 * KIB, text(2, 5 * KIB));
  await script.close('a');
  await script.write('small', 1000, text(3, 100));
  await script.fsync('small');
  await script.write('middle', 100 * KIB, text(4, 70 * KIB));
  await script.write('middle', 3, text(5, 10));
  await script.close('middle');
  await script.write('large', 300 * KIB, text(6, 1));
  await script.punch('large', 100 * KIB, 50 * KIB);
  await script.close('large');
  await script.create('b');
  await script.write('b', 0, text(7, 20 * KIB));
  await script.truncate('b', 12 * KIB);
  await script.truncate('b', 40 * KIB);
  await script.rename('b', 'c');
  await script.fsync('c');
  await script.create('stream');
  await script.write('stream', 0, text(8, 300 * KIB));
  await script.close('stream');
  await script.create('d');
  await script.write('d', 0, text(9, 7 * KIB));
  await script.rename('d', 'over');
  await script.close('over');
  await script.chmod('a', 0o600);
  await script.mkdir('directory');
  await script.symlink('link', 'to');
  await script.syncNames();
  await guest.opened.idle();
  await script.unlink('other');
  await script.truncate('small', 500);
  await script.create('e');
  await script.write('e', 50 * KIB, text(10, 3000));
  await script.fsync('e');
  await script.unlink('a');
  await script.write('last', 60 * KIB, text(11, 30 * KIB));
  await script.create('f');
  await script.write('f', 0, text(12, 2 * KIB));
  await script.close('f');
}

/** When the disk is good again all works. */
async function afterwards(script: Script): Promise<void> {
  await script.create('z');
  await script.write('z', 0, text(20, 30 * KIB));
  await script.fsync('z');
  await script.write('last', 0, text(21, 5000));
  await script.fsync('last');
  await script.close('z');
}

const within = async <T>(what: Promise<T>, name: string): Promise<T> =>
  Promise.race([what, sleep(RUN_MS_MAX, null, { ref: false }).then(() => Promise.reject(new Error(`${name}: not done after ${RUN_MS_MAX} ms`)))]);

function openIn(path: string): string[] {
  return readdirSync('/proc/self/fd').flatMap((fd) => {
    try {
      const to = readlinkSync(`/proc/self/fd/${fd}`);
      return to.startsWith(path) ? [to.slice(path.length)] : [];
    } catch {
      return [];
    }
  });
}

/** A cache directory of a killed daemon, and the bucket then. */
interface Left {
  readonly cache: string;
  readonly contents: MemoryContents;
  readonly told: readonly Told[];
}

class Runs {
  #count = 0;

  constructor(
    readonly failing: FailingDirectory,
    readonly backing: string,
    readonly left: Left,
  ) {}

  /** @returns what went wrong, and all errors that the guest was told */
  async run(fault: Fault | null, random: Random): Promise<{ problems: string[]; errors: string[]; calls: readonly string[]; startCalls: number; reached: boolean }> {
    const { failing, backing, left } = this;
    let startCalls = 0;
    const place = String(this.#count++);
    const cache = join(failing.path, place);
    failing.plan(null);
    cpSync(left.cache, join(backing, place), { recursive: true });
    const store = new MemoryStore({ name: 'failing', limits: PARTS, contents: left.contents });
    const told = [...left.told];
    const problems: string[] = [];
    const script = new Script(told, GIVEN);
    let guest: ObjectGuest | null = null;
    failing.plan(fault);
    try {
      guest = await this.#start(store, cache, problems, isFull(fault) && scenario !== 'fresh');
      startCalls = failing.called().calls.length;
      if (guest !== null) {
        script.begin(guest);
        await within(work(script, guest), 'the work');
      }
    } catch (error) {
      problems.push(`the work: ${(error as Error).message}`);
    }
    const { calls, failed } = failing.called();
    failing.plan(null);
    const told_errno = new Set(script.errors.map(({ errno }) => errno));
    for (const errno of told_errno) if (errno !== (fault?.errno || E.IO)) problems.push(`E${errno} is told: ${script.errors.find((one) => one.errno === errno)!.label}; log: ${guest?.log.join(' | ')}`);
    const errors = script.errors.map(({ label, errno }) => `${label}: ${errno}`);
    try {
      guest ??= await this.#start(store, cache, problems, true);
      if (guest !== null) {
        if (script.errors.length === 0 && guest !== null) script.begin(guest);
        const before = script.errors.length;
        await within(afterwards(script), 'what comes afterwards');
        const later = script.errors.slice(before);
        if (later.length > 0) problems.push(`the disk is good again, and ${later.map(({ label, errno }) => `${label} is ${errno}`).join(', ')}; log: ${guest.log.join(' | ')}`);
        problems.push(...(await this.#readProblems(guest, told)).map((line) => `the guest reads: ${line}`));
        if (random.chance(50)) {
          await guest.kill();
          guest = await this.#start(store, cache, problems, true);
        } else {
          await within(script.closeAll(), 'closing files');
        }
      }
      if (guest !== null) {
        await within(guest.opened.idle(), 'all commits');
        const count = await within(guest.close(), 'the end');
        guest = null;
        // What could not be committed, and staging files that could not be removed, are left to the next daemon
        const again = await this.#start(store, cache, problems, true);
        await again?.opened.idle();
        const still = (await again?.close()) ?? 0;
        const { unsure } = new History(durability, GIVEN, told, 'orderly');
        // What the disk has lost stays as it is
        if (unsure.length === 0 && still > 0) problems.push(`${still} files are not in the bucket at the end, ${count} before`);
        if (unsure.length === 0) assertDone(cache);
      }
    } catch (error) {
      problems.push(`afterwards: ${(error as Error).stack}`);
      await guest?.kill().catch(() => undefined);
    }
    problems.push(...new History(durability, GIVEN, told, 'orderly').problems(await readBucket(store, '')));
    const open = openIn(cache);
    if (open.length > 0) problems.push(`descriptors are left open: ${open.join(', ')}`);
    problems.push(...uncaught.splice(0));
    rmSync(join(backing, place), { recursive: true, force: true });
    return { problems, errors, calls, startCalls, reached: failed > 0 };
  }

  async #readProblems(guest: ObjectGuest, told: readonly Told[]): Promise<string[]> {
    const history = new History(durability, GIVEN, told, 'orderly');
    const { unsure } = history;
    // What the disk has lost is an error
    return history.problems(await seenBy(guest)).filter((line) => !unsure.some((path) => line.startsWith(`${path}: `) || line.endsWith(` as ${path}`)));
  }

  /** A start may be refused while the disk fails, with a sentence. */
  async #start(store: MemoryStore, cacheDirectory: string, problems: string[], must = false): Promise<ObjectGuest | null> {
    try {
      return await within(ObjectGuest.start(store, optionsOf(cacheDirectory)), 'the start');
    } catch (error) {
      if (must) problems.push(`the start is refused: ${(error as Error).stack}`);
      const open = openIn(cacheDirectory);
      if (open.length > 0) problems.push(`descriptors are left open by a start that was refused: ${open.join(', ')}`);
      return null;
    }
  }
}

/** What is to be recovered may have filled the disk: then the start is not refused. */
const isFull = (fault: Fault | null): boolean => fault !== null && fault.errno === E.NOSPC && /^(create|write|fallocate) /.test(fault.call);

/** All files in the root, as a guest finds them. */
async function seenBy(guest: ObjectGuest): Promise<Map<string, Seen>> {
  const seen = new Map<string, Seen>();
  const files = new Files(guest);
  for (const name of await guest.list(1n)) {
    const { node, mode } = await guest.lookup(1n, name);
    const type = mode & 0o170000;
    if (type === 0o100000) {
      const file = await files.open(name, 0);
      const content = await files.read(file);
      await files.close(file);
      if (typeof content === 'number') seen.set(name, { content: Buffer.from(`reading is ${content}`), mode, mtime_s: null });
      else seen.set(name, { content, mode, mtime_s: null });
    } else {
      const target = type === 0o120000 ? (await guest.call(OP.READLINK, node)).data : new DataView(new ArrayBuffer(0));
      seen.set(type === 0o040000 ? `${name}/` : name, { content: Buffer.from(target.buffer, target.byteOffset, target.byteLength), mode, mtime_s: null });
    }
  }
  return seen;
}

/** What a fresh daemon finds, or one that comes after another. */
async function leave(backing: string, store: MemoryStore): Promise<Left> {
  const cache = join(directory, 'left');
  mkdirSync(cache);
  const told: Told[] = [];
  if (scenario === 'fresh') return { cache, contents: store.contents(), told };
  const at = join(backing, 'before');
  const options = optionsOf(at);
  const guest = await ObjectGuest.start(store, { ...options, write: { ...options.write, durability, writebackDelay_ms: 600_000 } });
  const script = new Script(told, GIVEN);
  script.begin(guest);
  await script.create('l1');
  await script.write('l1', 0, text(30, 90 * KIB));
  await script.write('large', 200 * KIB, text(31, 20 * KIB));
  await script.truncate('large', 450 * KIB);
  await script.write('middle', 1, text(32, 10));
  await script.punch('middle', 5 * KIB, 20 * KIB);
  await script.create('l2');
  await script.truncate('l2', 9000);
  await script.chmod('over', 0o640);
  await script.write('other', 15 * KIB, text(33, 10 * KIB));
  await script.rename('l1', 'l3');
  await guest.kill();
  cpSync(at, cache, { recursive: true });
  rmSync(at, { recursive: true });
  if (scenario === 'torn') appendFileSync(join(cache, 'journal'), Buffer.concat([Buffer.from('BFJ1'), Buffer.of(200, 0, 0, 0, 1, 2, 3, 4), Buffer.from('{"t":"wr')]));
  return { cache, contents: store.contents(), told };
}

function pointsOf(calls: readonly string[]): { call: string; nth: number }[] {
  const counts = new Map<string, number>();
  return calls.map((call) => {
    const nth = counts.get(call) ?? 0;
    counts.set(call, nth + 1);
    return { call, nth };
  });
}

/** Every way in which one call may fail. */
function faultsOf({ call, nth }: { call: string; nth: number }): Fault[] {
  const isWrite = call.startsWith('write');
  const space = /^(create|write|fsync|fallocate|mkdir|rename|punch|fsyncdir) /.test(call);
  return [
    { call, nth, errno: E.IO, then: 'nothing' }, { call, nth, errno: E.IO, then: 'all' },
    ...(space ? ([{ call, nth, errno: E.NOSPC, then: 'nothing' }, { call, nth, errno: E.NOSPC, then: 'space' }] as const) : []),
    ...(isWrite ? ([{ call, nth, errno: 0, then: 'nothing' }] as const) : []),
  ];
}

const nameOf = ({ call, nth, errno, then }: Fault): string => `${call} #${nth}: ${errno === 0 ? 'short' : errno === E.IO ? 'EIO' : 'ENOSPC'}${then === 'nothing' ? '' : `, then ${then}`}`;

async function main(): Promise<void> {
  const [backing, front] = [join(directory, 'backing'), join(directory, 'front')];
  mkdirSync(backing);
  mkdirSync(front);
  const store = new MemoryStore({ name: 'failing', limits: PARTS });
  for (const { path, content } of GIVEN) await store.put(path, content);
  const left = await leave(backing, store);
  const failing = await FailingDirectory.mount(backing, front);
  const runs = new Runs(failing, backing, left);
  const random = new Random(parameters.seed);
  const good = await runs.run(null, random);
  tell({ t: 'run', run: 'no fault', reached: true, errors: good.errors, problems: good.problems } satisfies FailingResult);
  // With a torn journal only the start is another one
  const points = pointsOf(scenario === 'torn' ? good.calls.slice(0, good.startCalls) : good.calls);
  const counts: Record<string, number> = {};
  for (const { call } of points) counts[call] = (counts[call] ?? 0) + 1;
  const all = points.flatMap(faultsOf);
  tell({ t: 'calls', counts, points: all.length } satisfies FailingResult);
  for (const fault of chosen(all, random)) {
    const { problems, errors, reached } = await runs.run(fault, random);
    tell({ t: 'run', run: nameOf(fault), reached, errors, problems } satisfies FailingResult);
  }
  await failing.unmount();
}

/** First one of each kind of call and fault, then any. */
function chosen(all: readonly Fault[], random: Random): Fault[] {
  if (parameters.only !== undefined) return all.filter((fault) => nameOf(fault) === parameters.only);
  if (parameters.runs === null) return [...all];
  const left = [...all];
  const taken: Fault[] = [];
  const seen = new Set<string>();
  const kinds = new Set(all.map(({ call, errno, then }) => `${call} ${errno} ${then}`));
  while (left.length > 0 && taken.length < parameters.runs) {
    const [one] = left.splice(random.below(left.length), 1);
    const kind = `${one.call} ${one.errno} ${one.then}`;
    if (seen.size < kinds.size && seen.has(kind)) continue;
    seen.add(kind);
    taken.push(one);
  }
  return taken;
}

await main();
