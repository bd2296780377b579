/**
 * A program without bucketfsd on a disk of the tests: it writes files, syncs some of them, and is looked for after power failures. It shows that
 * the disk loses what may be lost, keeps what must be kept, and that file systems start on what is left.
 */
import { closeSync, fsyncSync, openSync, readFileSync, renameSync, writeSync } from 'node:fs';
import { join } from 'node:path';
import { Random } from '../../model/random.js';
import { Disk, makeFileSystem, type DiskFormat } from './disk.js';
import { isolatedProgram, tell } from './isolated.js';
import { Aftermath, copySparse, lossOf, momentOf, Recorder, survivalOf } from './recording.js';
import { readLog } from './disk-log.js';

export interface PlainParameters {
  readonly format: DiskFormat;
  readonly seed: number;
  readonly files: number;
  readonly states: number;
  /** The disk says that it has flushed, and has not. */
  readonly lies: boolean;
}

/** Of one state. */
export interface PlainResult {
  readonly state: string;
  /** Files that were synced and are not what they were then. */
  readonly lost: readonly string[];
  /** Files that were only written: how many there were, and how many are not there or not whole. */
  readonly unsynced: number;
  readonly unsyncedLost: number;
}

interface Written {
  readonly name: string;
  readonly content: Buffer;
  readonly synced: boolean;
}

const { directory, parameters } = isolatedProgram<PlainParameters>();
const { format, seed, files, states, lies } = parameters;
const random = new Random(seed);

/** A file under a temporary name, renamed when it is whole; the directory is synced with it. */
function writeFile(mountPoint: string, { name, content, synced }: Written): void {
  const path = join(mountPoint, name);
  const fd = openSync(`${path}.new`, 'w');
  writeSync(fd, content);
  if (synced) fsyncSync(fd);
  closeSync(fd);
  renameSync(`${path}.new`, path);
  if (!synced) return;
  const top = openSync(mountPoint, 'r');
  fsyncSync(top);
  closeSync(top);
}

function isWhole(mountPoint: string, { name, content }: Written): boolean {
  try {
    return readFileSync(join(mountPoint, name)).equals(content);
  } catch {
    return false;
  }
}

const lostOf = (mountPoint: string, before: readonly Written[]): string[] =>
  before.filter((one) => one.synced && !isWhole(mountPoint, one)).map(({ name }) => name);

async function main(): Promise<void> {
  const image = join(directory, 'image');
  makeFileSystem(format, image);
  const base = join(directory, 'base');
  copySparse(image, base);
  const disk = await Disk.start({ directory: join(directory, 'recorded'), image, keeps: true });
  await disk.mount(format);
  const recorder = new Recorder<Written>(disk);
  for (let i = 0; i < files; i++) {
    const one = { name: `f${i}`, content: Buffer.from(random.bytes(1 + random.below(60_000))), synced: random.chance(50) };
    writeFile(disk.mountPoint, one);
    recorder.note(one);
  }
  await disk.stop();
  const aftermath = new Aftermath(format, disk.log, base, directory);
  const { events } = recorder;
  const moments = Array.from({ length: states }, () => momentOf(events, aftermath.records, random, ({ synced }) => synced));
  for (const [i, moment] of moments.sort((a, b) => a.end - b.end).entries()) {
    const loss = lossOf(random);
    if (lies) {
      const first = survivalOf(disk.log, aftermath.records.filter(({ kind }) => kind === 'write'), moment, loss, format.tornBytes, random);
      const before = events.slice(0, moment.events).map(({ event }) => event);
      // It may be that nothing can be mounted any more
      const lost = await aftermath.withDisk([first], async ({ mountPoint }) => lostOf(mountPoint, before)).catch(() => ['everything']);
      tell({ state: String(i), lost, unsynced: 0, unsyncedLost: 0 } satisfies PlainResult);
      continue;
    }
    const first = aftermath.survival(moment, loss, random);
    const check = (mountPoint: string, again: string): void => {
      const before = events.slice(0, moment.events).map(({ event }) => event);
      const unsynced = before.filter(({ synced }) => !synced);
      tell({
        state: `${i}${again} (${loss} lost, ${moment.events} events, log up to ${moment.end})`, lost: lostOf(mountPoint, before),
        unsynced: unsynced.length, unsyncedLost: unsynced.filter((one) => !isWhole(mountPoint, one)).length,
      } satisfies PlainResult);
    };
    await aftermath.withDisk([first], async (found) => {
      check(found.mountPoint, '');
      await found.unmount();
      // Power fails again while the file system starts
      const records = readLog(found.log);
      const end = records.length === 0 ? 0 : random.pick(records).end;
      const second = survivalOf(found.log, records, { events: 0, end }, lossOf(random), format.tornBytes, random);
      await aftermath.withDisk([first, second], async (later) => check(later.mountPoint, ', twice'));
    });
  }
}

await main();
