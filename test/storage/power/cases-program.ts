/**
 * What the random programs of power-program.ts have found, in a few steps each: power fails at the end, and the disk has what was flushed, or also all that it was told of.
 * Run by ../power-cases.test.ts in namespaces of its own.
 */
import { closeSync, fdatasyncSync, mkdirSync, openSync, readdirSync } from 'node:fs';
import { join } from 'node:path';
import { StorageError } from '../../../src/storage/object/errors.js';
import { intercept } from '../../../src/storage/object/layers/intercept.js';
import { MemoryStore, type MemoryContents } from '../../../src/storage/object/stores/memory.js';
import type { Capabilities } from '../../../src/storage/object/store.js';
import type { Durability } from '../../../src/storage/object/write/committer.js';
import { Random } from '../../model/random.js';
import { assertDone } from '../../support/deferred.js';
import { readBucket } from '../../support/manifest.js';
import { ObjectGuest } from '../../support/object-guest.js';
import { PARTS } from '../../support/writing-guest.js';
import { Script, text } from '../failing/script.js';
import { Disk, makeFileSystem, type DiskFormat } from './disk.js';
import type { Loss } from './disk-log.js';
import { History, type Given, type Told } from './history.js';
import { isolatedProgram, tell } from './isolated.js';
import { Aftermath, copySparse } from './recording.js';

const KIB = 1024;

export interface CasesParameters {
  readonly format: DiskFormat;
}

export interface CaseResult {
  readonly name: string;
  readonly problems: readonly string[];
}

const { directory, parameters } = isolatedProgram<CasesParameters>();

const GIVEN: readonly Given[] = [
  { node: 0, path: 'small', content: text(90, 3 * KIB) },
  { node: 1, path: 'other', content: text(91, 20 * KIB) },
  { node: 2, path: 'large', content: text(92, 8 << 20) },
];

/** A guest's program before power fails, and the kernel beside it. */
interface Stage {
  readonly script: Script;
  /** All that waits is in the bucket. */
  commit(): Promise<void>;
  /** The kernel writes the journal to the disk by itself, or the staging files, or everything. */
  writeBack(what: 'journal' | 'staging'): void;
  /** The bucket answers no request any more that changes it. */
  hold(): void;
  /** The daemon is killed, and another one comes, in the same boot of the machine. */
  kill(): Promise<void>;
}

interface Case {
  readonly name: string;
  readonly durability: Durability;
  readonly delay_ms?: number;
  readonly capabilities?: Partial<Capabilities>;
  before(stage: Stage): Promise<void>;
  /** What the guest does first when power is back. */
  after?(script: Script): Promise<void>;
}

const READS: ReadonlySet<string> = new Set(['head', 'list', 'read', 'fetch']);
/** With writeback, so long that nothing is committed by itself. */
const LATER_MS = 600_000;

const CASES: readonly Case[] = [
  {
    name: 'a byte of a large object is changed and closed while the journal is written to the disk by somebody else', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.write('large', 5 << 20, text(1, 1));
      await script.create('synced');
      await script.write('synced', 0, text(2, 100));
      writeBack('journal');
      await script.fsync('synced');
    },
  },
  {
    name: 'an object is written over, and not synced', durability: 'remote',
    async before({ script, writeBack }) {
      await script.write('other', 5 * KIB, text(1, 10 * KIB));
      writeBack('journal');
    },
  },
  {
    name: 'the same, and the daemon was killed in between', durability: 'remote',
    async before({ script, writeBack, kill }) {
      await script.write('other', 5 * KIB, text(1, 10 * KIB));
      await kill();
      writeBack('journal');
    },
  },
  {
    name: 'a file is made, written and synced, and the journal on the disk has it as empty', durability: 'remote',
    async before({ script, writeBack }) {
      await script.create('f');
      writeBack('journal');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.fsync('f');
    },
  },
  {
    name: 'the same, and the guest goes on with it at once', durability: 'remote',
    async before({ script, writeBack }) {
      await script.create('f');
      writeBack('journal');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.fsync('f');
    },
    async after(script) {
      await script.write('f', 9 * KIB, text(2, 3 * KIB));
      await script.fsync('f');
      await script.close('f');
    },
  },
  {
    name: 'a file is synced with another mode, and the journal on the disk has the one before', durability: 'remote',
    async before({ script, writeBack }) {
      await script.create('f');
      await script.write('f', 0, text(1, 9 * KIB));
      writeBack('journal');
      await script.chmod('f', 0o600);
      await script.fsync('f');
    },
  },
  {
    name: 'records that were synced while the file was committed in the background', durability: 'writeback', delay_ms: 0,
    async before({ script, commit, writeBack }) {
      await script.write('other', 100, text(1, 1000));
      await script.fsync('other');
      await commit();
      await script.write('other', 900, text(2, 5000));
      writeBack('journal');
      await commit();
      await script.fsync('other');
    },
  },
  {
    name: 'a file is made, closed and removed', durability: 'remote',
    async before({ script, writeBack }) {
      await script.create('f');
      writeBack('journal');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.close('f');
      await script.unlink('f');
      await script.syncNames();
    },
  },
  {
    name: 'a file is made, closed and renamed', durability: 'remote',
    async before({ script, writeBack }) {
      await script.create('f');
      writeBack('journal');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.close('f');
      await script.rename('f', 'g');
    },
  },
  {
    name: 'a file takes the place of a new link', durability: 'writeback', delay_ms: 0,
    async before({ script, commit, writeBack }) {
      await script.symlink('f', 'other');
      writeBack('journal');
      await commit();
      await script.create('g');
      await script.write('g', 0, text(1, 9 * KIB));
      await script.rename('g', 'f');
      await commit();
    },
  },
  {
    name: 'an empty file takes the place of an empty one that the bucket has', durability: 'writeback', delay_ms: 0,
    async before({ script, commit, hold }) {
      await script.create('f');
      await script.chmod('f', 0o600);
      await script.fsync('f');
      await commit();
      hold();
      await script.create('g');
      await script.rename('g', 'f');
      await script.fsync('f');
    },
  },
  {
    name: 'a link takes the place of a file that the bucket has', durability: 'writeback', delay_ms: 0,
    async before({ script, hold }) {
      hold();
      await script.symlink('l', 'small');
      await script.rename('l', 'other');
      await script.syncNames();
    },
  },
  {
    name: 'a file is made, renamed, committed and synced', durability: 'writeback', delay_ms: 0,
    async before({ script, commit, writeBack }) {
      await script.create('f');
      await script.write('f', 0, text(1, 9 * KIB));
      writeBack('journal');
      await script.rename('f', 'g');
      await commit();
      await script.fsync('g');
    },
  },
  {
    name: 'attributes are changed before a file is synced that is in the bucket by then', durability: 'writeback', delay_ms: 0,
    async before({ script, commit, hold }) {
      for (const path of ['f', 'g']) {
        await script.create(path);
        await script.write(path, 0, text(1, 9 * KIB));
        await script.fsync(path);
      }
      await script.chmod('f', 0o640);
      await commit();
      await script.write('g', 100, text(2, 10));
      hold();
      await script.chmod('g', 0o600);
      await script.fsync('f');
    },
  },
  {
    name: 'a file is made, and its directory synced, but not the file', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script }) {
      await script.create('f');
      await script.syncNames();
      await script.write('f', 0, text(1, 9 * KIB));
    },
  },
  {
    name: 'a file is made, takes the place of one that the bucket has, and their directory is synced, but not the file', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script }) {
      await script.create('f');
      await script.rename('f', 'small');
      await script.syncNames();
      await script.write('small', 0, text(1, 9 * KIB));
    },
  },
  {
    name: 'the same with a file that was written first, and of one that is opened', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.write('small', 0, text(2, 10));
      await script.create('f');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.rename('f', 'small');
      writeBack('journal');
      await script.syncNames();
    },
  },
  {
    name: 'a name is changed before a file is synced that is in the bucket by then', durability: 'writeback', delay_ms: 0,
    async before({ script, commit }) {
      await script.create('f');
      await script.write('f', 0, text(1, 9 * KIB));
      await script.fsync('f');
      await script.write('small', 0, text(2, 100));
      await script.rename('f', 'g');
      await commit();
      await script.fsync('small');
    },
  },
  {
    name: 'a synced file is cut', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.create('f');
      await script.write('f', 0, text(1, 90 * KIB));
      await script.fsync('f');
      await script.truncate('f', 10 * KIB);
      writeBack('staging');
    },
  },
  {
    name: 'a synced file gets a hole', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.write('other', 0, text(1, 15 * KIB));
      await script.fsync('other');
      await script.punch('other', 2 * KIB, 6 * KIB);
      writeBack('staging');
    },
  },
  {
    name: 'a synced file that the bucket has is removed', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.write('other', 100, text(1, 1000));
      await script.fsync('other');
      await script.unlink('other');
      writeBack('staging');
    },
  },
  {
    name: 'a synced file that the bucket has is renamed', durability: 'writeback', delay_ms: LATER_MS,
    async before({ script, writeBack }) {
      await script.write('other', 100, text(1, 1000));
      await script.fsync('other');
      await script.rename('other', 'renamed');
      await script.write('renamed', 50, text(2, 100));
      writeBack('staging');
    },
  },
  {
    name: 'attributes of a synced file are changed, after it was committed and before it is written again', durability: 'remote',
    async before({ script, writeBack }) {
      await script.write('other', 100, text(1, 1000));
      await script.fsync('other');
      await script.chmod('other', 0o600);
      await script.write('other', 200, text(2, 1000));
      writeBack('staging');
    },
  },
  {
    name: 'a file is written and closed, and its staging file removed', durability: 'remote',
    async before({ script, commit, writeBack }) {
      await script.create('f');
      await script.write('f', 0, text(1, 9 * KIB));
      writeBack('journal');
      writeBack('staging');
      await script.close('f');
      await commit();
      await script.create('g');
      writeBack('staging');
    },
  },
];

async function run(one: Case, loss: Loss, number: number): Promise<CaseResult> {
  const { format } = parameters;
  const place = join(directory, String(number));
  mkdirSync(place);
  const [image, base] = [join(place, 'image'), join(place, 'base')];
  makeFileSystem(format, image);
  copySparse(image, base);
  const disk = await Disk.start({ directory: join(place, 'disk'), image, keeps: true });
  await disk.mount({ ...format, options: format.options.replace('commit=1', 'commit=100') });
  const { durability, capabilities = {} } = one;
  const optionsOf = (mountPoint: string, bootId: string): { write: { cacheDirectory: string; durability: Durability; writebackDelay_ms: number } } => {
    const write = { cacheDirectory: join(mountPoint, 'cache'), durability, writebackDelay_ms: one.delay_ms ?? 0, bootId };
    return { write };
  };
  const storeOf = (contents?: MemoryContents): MemoryStore => new MemoryStore({ name: 'cases', limits: PARTS, capabilities, ...(contents === undefined ? {} : { contents }) });
  const memory = storeOf();
  for (const { path, content } of GIVEN) await memory.put(path, content);
  const held: (() => void)[] = [];
  let [holds, isOver] = [false, false];
  const store = intercept(memory, async (call, attempt) => {
    if (holds && !isOver && !READS.has(call.operation)) await new Promise<void>((resolve) => held.push(resolve));
    if (isOver) throw new StorageError('unavailable', call.subject);
    return attempt(call.signal);
  });
  const told: Told[] = [];
  const script = new Script(told, GIVEN);
  let guest = await ObjectGuest.start(store, optionsOf(disk.mountPoint, 'boot 1'));
  script.begin(guest);
  const syncFile = (path: string): void => {
    const fd = openSync(path, 'r');
    fdatasyncSync(fd);
    closeSync(fd);
  };
  await one.before({
    script,
    commit: () => guest.opened.idle(),
    writeBack(what) {
      const cache = join(disk.mountPoint, 'cache');
      if (what === 'journal') syncFile(join(cache, 'journal'));
      else for (const name of readdirSync(join(cache, 'staging'))) syncFile(join(cache, 'staging', name));
    },
    hold: () => void (holds = true),
    async kill() {
      await guest.kill();
      guest = await ObjectGuest.start(store, optionsOf(disk.mountPoint, 'boot 1'));
      script.begin(guest);
    },
  });
  const end = disk.position;
  const contents = memory.contents();
  isOver = true;
  const killed = guest.kill();
  for (const end of held) end();
  await killed;
  await disk.stop();
  const problems = script.errors.map(({ label, errno }) => `${label} is ${errno}`);
  const aftermath = new Aftermath(format, disk.log, base, place);
  const survival = aftermath.survival({ events: 0, end }, loss, new Random(1));
  await aftermath.withDisk([survival], async (found) => {
    const later = storeOf(contents);
    try {
      const next = await ObjectGuest.start(later, optionsOf(found.mountPoint, 'boot 2'));
      script.begin(next);
      await one.after?.(script);
      await next.opened.idle();
      await next.close();
      problems.push(...next.log.filter((line) => /^(error|commit)/.test(line)));
      assertDone(join(found.mountPoint, 'cache'));
    } catch (error) {
      problems.push(`failed: ${(error as Error).message}`);
    }
    problems.push(...new History(durability, GIVEN, told).problems(await readBucket(later, '')));
  });
  return { name: `${one.name} (${durability}; ${loss === 'all' ? 'what was flushed is there' : 'all is there'})`, problems };
}

let number = 0;
for (const one of CASES) for (const loss of ['all', 'none'] as const) tell(await run(one, loss, number++));
