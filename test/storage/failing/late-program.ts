/**
 * The kernel could not write back what was written to staging files, and has forgotten it: the next who reads finds zeros, or what was there before, and one fsync hears of it.
 * Run by ../late-errors.test.ts in namespaces of its own.
 */
import { closeSync, existsSync, fsyncSync, mkdirSync, openSync, readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../../src/base/errno.js';
import { MemoryStore } from '../../../src/storage/object/stores/memory.js';
import type { Durability } from '../../../src/storage/object/write/committer.js';
import { readBucket } from '../../support/manifest.js';
import { ObjectGuest } from '../../support/object-guest.js';
import { objectOf, PARTS, SMALL } from '../../support/writing-guest.js';
import { Disk, dropPages, makeFileSystem, type DiskFormat } from '../power/disk.js';
import { History, type Given, type Told } from '../power/history.js';
import { isolatedProgram, tell } from '../power/isolated.js';
import { Script, text } from './script.js';

const KIB = 1024;

export const CHANGES = ['a new file', 'a part of an object', 'more of an object', 'a large new file'] as const;
/** What happens after the pages are gone. */
export const ENDS = ['fsync', 'close', 'fsync, killed', 'killed', 'a part is written again'] as const;

export interface LateParameters {
  readonly format: DiskFormat;
}

export interface LateResult {
  readonly name: string;
  readonly told: string;
  readonly problems: readonly string[];
}

const { directory, parameters } = isolatedProgram<LateParameters>();
const GIVEN: readonly Given[] = [{ node: 0, path: 'object', content: text(90, 100 * KIB) }];

interface Case {
  readonly change: (typeof CHANGES)[number];
  readonly end: (typeof ENDS)[number];
  readonly errno: number;
  readonly durability: Durability;
}

async function change(script: Script, what: Case['change']): Promise<{ path: string; offset: number; data: Uint8Array }> {
  const [path, offset, bytes] = {
    'a new file': ['new', 0, 40 * KIB], 'a part of an object': ['object', 30 * KIB, 20 * KIB], 'more of an object': ['object', 100 * KIB, 30 * KIB], 'a large new file': ['new', 0, 300 * KIB],
  }[what] as [string, number, number];
  if (path === 'new') await script.create(path);
  const data = text(1, bytes);
  await script.write(path, offset, data);
  return { path, offset, data };
}

/** The daemon has made its journal anew, and the file system has nothing of its own to write: only what the guest has written is. */
async function quiet(cacheDirectory: string): Promise<void> {
  while (existsSync(join(cacheDirectory, 'journal.new'))) await turn();
  for (const path of [cacheDirectory, join(cacheDirectory, 'journal')]) {
    const fd = openSync(path, 'r');
    fsyncSync(fd);
    closeSync(fd);
  }
}

async function run(disk: Disk, { change: what, end, errno, durability }: Case): Promise<LateResult> {
  const cacheDirectory = join(disk.mountPoint, 'cache');
  const options = { write: { cacheDirectory, durability, writebackDelay_ms: 600_000, sizes: { ...SMALL, putMaxBytes: 128 * KIB } } };
  const store = new MemoryStore({ name: 'late', limits: PARTS });
  await store.put('object', GIVEN[0].content);
  const told: Told[] = [];
  const script = new Script(told, GIVEN);
  const problems: string[] = [];
  let guest = await ObjectGuest.start(store, options);
  script.begin(guest);
  const { path, offset, data } = await change(script, what);
  await quiet(cacheDirectory);
  disk.fail('writes', errno);
  for (const id of readdirSync(join(cacheDirectory, 'staging'))) dropPages(join(cacheDirectory, 'staging', id));
  disk.fail('writes', 0);
  const before = path === 'object' ? GIVEN[0].content : new Uint8Array(0);
  const written = Buffer.alloc(Math.max(before.length, offset + data.length));
  written.set(before);
  written.set(data, offset);
  // Seen at the end
  const isGood = async (): Promise<boolean> => durability === 'writeback' || (await objectOf(store, path).catch(() => null))?.equals(written) === true;
  const safe = async (label: string, result: number): Promise<void> => {
    if (result !== 0 && result !== errno && result !== E.IO) problems.push(`${label} is ${result}`);
    if (result === 0 && !(await isGood())) problems.push(`${label} is 0, and the object is not what was written`);
  };
  const results: number[] = [];
  const sync = async (): Promise<void> => {
    const result = await script.fsync(path);
    results.push(result);
    await safe('fsync', result);
  };
  if (end === 'a part is written again') await script.write(path, offset, data.subarray(0, 4096));
  if (end.startsWith('fsync') || end === 'a part is written again') {
    await sync();
    // An error that was told once has not mended anything
    await sync();
  }
  if (end === 'close') {
    const count = script.errors.length;
    await script.close(path);
    results.push(script.errors.slice(count)[0]?.errno ?? 0);
    await safe('close', results[0]);
  }
  if (end === 'fsync') {
    // All of it: what was fetched for a commit is lost as well
    await script.write(path, 0, written);
    const result = await script.fsync(path);
    results.push(result);
    if (result !== 0) problems.push(`written again, fsync is ${result}`);
    await safe('fsync, written again,', result);
  }
  if (end.endsWith('killed')) {
    await guest.kill();
    guest = await ObjectGuest.start(store, options);
  }
  await guest.opened.idle();
  await guest.close();
  // What cannot be committed may stay: it is the next daemon that says so
  problems.push(...new History(durability, GIVEN, told).problems(await readBucket(store, '')));
  return { name: `${durability}, errno ${errno}, ${what}, ${end}`, told: results.join(', '), problems };
}

/** On a file system of its own: old metadata of one that is used for long the kernel writes back while the disk fails. */
async function onDisk(body: (disk: Disk) => Promise<LateResult>, number: number): Promise<LateResult> {
  const { format } = parameters;
  const place = join(directory, String(number));
  mkdirSync(place);
  const image = join(place, 'image');
  makeFileSystem(format, image);
  const disk = await Disk.start({ directory: join(place, 'disk'), image, keeps: true });
  // Nor is it to write by itself what is new
  await disk.mount({ ...format, options: format.options.replace('commit=1', 'commit=100') });
  try {
    return await body(disk);
  } finally {
    await disk.stop();
    rmSync(place, { recursive: true });
  }
}

let number = 0;
for (const durability of ['remote', 'writeback'] as const) {
  for (const errno of [E.IO, E.NOSPC]) {
    for (const one of CHANGES) for (const end of ENDS) tell(await onDisk((disk) => run(disk, { change: one, end, errno, durability }), number++));
  }
}
