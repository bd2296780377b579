/**
 * One changed file, its journal and its staging file, against a model of bytes: after any history what a killed daemon leaves is what the file was; and
 * what a power failure leaves is what was certain, wherever the journal was made anew.
 *
 * What else could fail for the same reasons, and is among the random histories: a rewrite between any two records, of files in more pieces than one record
 * has; a commit that is begun, done, or neither, before, during and after a sync; a new file, one opened from an object, one that replaces an object; cut and
 * grown again; holes; attributes between; records that the disk has no room for.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setTimeout as turn } from 'node:timers/promises';
import { describe, test } from 'node:test';
import { NativeMemory } from '../../src/ffi/memory.js';
import type { FileSystemRequest } from '../../src/storage/filesystem.js';
import type { Extent } from '../../src/storage/object/extents.js';
import type { Facts } from '../../src/storage/object/facts.js';
import { Journal } from '../../src/storage/object/journal.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { BackgroundSync } from '../../src/storage/object/write/background-sync.js';
import { CacheDirectory } from '../../src/storage/object/write/cache-directory.js';
import { Ledger } from '../../src/storage/object/write/ledger.js';
import type { JournalRecord, LeftFile } from '../../src/storage/object/write/records.js';
import { Replay } from '../../src/storage/object/write/replay.js';
import { StagedFile } from '../../src/storage/object/write/staged-file.js';
import type { Workshop } from '../../src/storage/object/write/workshop.js';

const SEED = Number(process.env['SEED'] ?? Math.floor(Math.random() * 1e9));
const HISTORIES = Number(process.env['BUCKETFSD_HISTORIES'] ?? 60);
const SIZE_MAX = 40_000;
/** Nothing here is to outlive the machine, and every step syncs. */
const MEMORY = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
const BOOT = 'a boot';
const KEY = 'key';

/** mulberry32 */
function randomOf(seed: number): (below: number) => number {
  let state = seed >>> 0;
  return (below) => {
    state = (state + 0x6d2b79f5) >>> 0;
    let t = Math.imul(state ^ (state >>> 15), 1 | state);
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t;
    return ((t ^ (t >>> 14)) >>> 0) % below;
  };
}

const TIME = { seconds: 1, nanoseconds: 0 };
const facts = (size: number, version: string | null): Facts => ({
  mode: 0o100644, uid: 0, gid: 0, rdev: 0, size, mtime: TIME, atime: TIME, ctime: TIME, version, symlink: null, xattrs: new Map(), kept: {}, headers: {},
});

/** As far as there is anything. */
const fill = (bytes: Buffer, value: number, from: number, to: number): void => void Uint8Array.prototype.fill.call(bytes, value, from, to);

const memory = NativeMemory.allocate(1 << 16);

/** As much of a WRITE as a staged file looks at: struct iovec, then the data. */
function writeRequest(content: Uint8Array): FileSystemRequest {
  memory.dv.setBigUint64(0, BigInt(memory.address + 4096), true);
  memory.dv.setBigUint64(8, BigInt(content.length), true);
  memory.u8.set(content, 4096);
  return { size: content.length, iovecs: memory.address, iovecCount: 1 } as unknown as FileSystemRequest;
}

class World {
  readonly directory: CacheDirectory;
  readonly shop: Workshop;
  readonly file: StagedFile;
  /** Objects by version. */
  readonly objects = new Map<string, Buffer>();
  now: Buffer;
  /** The content that is certain, the object that has it or is below it, and what of it was in the staging file. */
  certain: { content: Buffer; version: string | null; staged: readonly Extent[]; moment: number };
  /** What was written, and when, in changes of content. */
  touched: (Extent & { readonly moment: number })[] = [];
  moment = 0;
  /** The staging file at the last sync. */
  syncedFile: Buffer | null = null;
  many = false;
  #versions = 0;

  constructor(readonly path: string, readonly random: (below: number) => number, kind: 'new' | 'opened') {
    this.directory = CacheDirectory.open(path, { location: 'memory://', prefix: '' });
    const { journal } = Journal.open<JournalRecord>(this.directory.journalPath, () => undefined);
    const ledger = new Ledger(journal, 0, { boot: BOOT });
    ledger.begins();
    // At any append; what renew() makes takes the journal's place some steps later
    const append = ledger.appendAll.bind(ledger);
    ledger.appendAll = (records) => {
      const how = random(this.many ? 200 : 6);
      if (how === 0) ledger.rewrite();
      if (how === 1) void ledger.renew();
      append(records);
    };
    const log = { guest: () => true };
    this.shop = { store: new MemoryStore(), budget: new MemoryBudget(1 << 20), directory: this.directory, ledger, blocks: null, privileged: true, backgroundSync: new BackgroundSync(ledger.files, log) };
    this.shop.backgroundSync.close();
    this.now = kind === 'new' ? Buffer.alloc(0) : this.bytes(random(SIZE_MAX));
    const version = kind === 'new' ? null : this.object(this.now);
    this.file = version === null ? StagedFile.create(this.shop, KEY, facts(0, null)) : StagedFile.of(this.shop, { key: KEY, version, size: this.now.length }, facts(this.now.length, version));
    this.certain = { content: Buffer.from(this.now), version, staged: [], moment: 0 };
  }

  bytes(length: number): Buffer {
    return Buffer.alloc(length, 1 + this.random(255));
  }

  object(content: Buffer): string {
    const version = `v${++this.#versions}`;
    this.objects.set(version, Buffer.from(content));
    return version;
  }

  get stagingPath(): string {
    return this.directory.stagingPath(this.file.id);
  }

  touch(from: number, to: number): void {
    this.touched.push({ from, to, moment: ++this.moment });
  }

  synced(): void {
    this.certain = { content: Buffer.from(this.now), version: this.certain.version, staged: [...this.file.extents.staged], moment: this.moment };
    this.syncedFile = existsSync(this.stagingPath) ? readFileSync(this.stagingPath) : null;
  }

  write(from: number, length: number): void {
    const content = this.bytes(length);
    assert.equal(this.file.content.write(writeRequest(content), from), length);
    const grown = Buffer.alloc(Math.max(this.now.length, from + length));
    this.now.copy(grown);
    content.copy(grown, from);
    this.touch(Math.min(from, this.now.length), from + length);
    this.now = grown;
  }

  truncate(size: number): void {
    assert.equal(this.file.truncate(size), 0);
    const cut = Buffer.alloc(size);
    this.now.copy(cut);
    this.touch(Math.min(size, this.now.length), Math.max(size, this.now.length));
    this.now = cut;
  }

  zero(from: number, to: number): void {
    assert.equal(this.file.content.zero(from, to, false), 0);
    fill(this.now, 0, from, to);
    if (from < Math.min(to, this.now.length)) this.touch(from, Math.min(to, this.now.length));
  }

  /** What the journal says, with the machine started anew or not. */
  left(boot: string): LeftFile | null {
    const replay = new Replay(boot);
    Journal.read<JournalRecord>(this.directory.journalPath, (record) => replay.add(record));
    return replay.end().files.get(this.file.id) ?? null;
  }

  /** The bytes that a file is which was left so, with this staging file. */
  contentOf({ size, objectBytes, staged, base }: LeftFile, staging: Buffer | null): Buffer {
    const content = Buffer.alloc(size);
    if (base !== null && objectBytes > 0) this.objects.get(base.version)!.copy(content, 0, 0, Math.min(objectBytes, size));
    for (const { from, to } of staged) {
      fill(content, 0, from, to);
      staging?.copy(content, from, from, to);
    }
    return content;
  }
}

async function history(seed: number, kind: 'new' | 'opened', check: (world: World, step: string) => void): Promise<void> {
  const path = mkdtempSync(join(MEMORY, 'bucketfsd-staged-'));
  const random = randomOf(seed);
  const world = new World(path, random, kind);
  const { file } = world;
  let begun: { commit: string; content: Buffer; changes: number; moment: number } | null = null;
  try {
    for (let steps = 5 + random(40); steps > 0; steps--) {
      const step = random(12);
      if (step < 5) world.write(random(SIZE_MAX), 1 + random(2000));
      else if (step === 5) {
        world.truncate(random(SIZE_MAX));
        if (file.content.isCutUnsafe) {
          await file.cutOff();
          world.synced();
        }
      } else if (step === 6 && world.now.length > 0) world.zero(random(world.now.length), random(SIZE_MAX));
      else if (step === 7) file.setAttributes(file.facts());
      else if (step === 8) {
        await file.content.sync();
        world.synced();
      } else if (step === 9) {
        const commit = file.nextCommit();
        await file.beginCommit(commit);
        begun = { commit, content: Buffer.from(world.now), changes: file.changes, moment: world.moment };
      } else if (step === 10 && begun !== null && file.changes > begun.changes) {
        const version = world.object(begun.content);
        file.commitDone({ key: KEY, version, size: begun.content.length }, begun.changes, begun.commit);
        // What was synced after the commit was begun counts more
        world.certain = begun.moment >= world.certain.moment ? { content: begun.content, version, staged: [], moment: begun.moment } : { ...world.certain, version };
        begun = null;
      } else if (step === 11) {
        world.many = true;
        for (let many = 1100; many > 0; many--) world.write(random(SIZE_MAX), 1);
        world.many = false;
      }
      if (random(3) === 0) await turn();
      if (world.shop.ledger.files.has(file.id)) check(world, `seed ${seed}, step ${step}, ${steps} left`);
    }
  } finally {
    file.abandon();
    world.shop.ledger.close();
    world.directory.close();
    rmSync(path, { recursive: true });
  }
}

/** What a killed daemon leaves is the file as it was. */
function checkKilled(world: World, step: string): void {
  const staging = existsSync(world.stagingPath) ? readFileSync(world.stagingPath) : null;
  assert.ok(world.contentOf(world.left(BOOT)!, staging).equals(world.now), step);
}

/** What a power failure leaves is what was synced, or the object. */
function checkPowerFailure(world: World, step: string): void {
  const left = world.left('another boot');
  const { content, version, staged, moment } = world.certain;
  if (left === null) {
    // Nothing is left to do: the object has it all, or nobody was promised that the file is there
    assert.ok(version === null ? world.syncedFile === null && moment === 0 : world.objects.get(version)!.equals(content), step);
    return;
  }
  // Of what was in the staging file and was written since the disk may have anything
  const torn = Buffer.alloc(content.length);
  for (const { from, to } of staged) fill(torn, 1, from, to);
  const disk = world.syncedFile === null ? null : Buffer.from(world.syncedFile);
  const written = Buffer.alloc(content.length);
  for (const { from, to } of world.touched.filter((one) => one.moment > moment)) {
    if (disk !== null) fill(disk, world.random(256), from, to);
    fill(written, 1, from, to);
  }
  const found = world.contentOf(left, disk);
  assert.equal(found.length, content.length, `${step}: size`);
  for (let at = 0; at < found.length; at++) {
    if (found[at] !== content[at] && !(torn[at] === 1 && written[at] === 1)) assert.fail(`${step}: byte ${at} is ${found[at]} instead of ${content[at]}`);
  }
}

describe(`a changed file and its journal (SEED=${SEED})`, () => {
  for (const kind of ['new', 'opened'] as const) {
    test(`a kill leaves it as it was, a power failure leaves what was certain and never what only memory had (${kind})`, async () => {
      let checks = 0;
      for (let n = 0; n < HISTORIES / 2; n++) {
        await history(SEED + n, kind, (world, step) => {
          checkKilled(world, step);
          checkPowerFailure(world, step);
          checks++;
        });
      }
      assert.ok(checks > HISTORIES, `${checks} checks`);
    });
  }
});

describe('what was cut off when a daemon was killed, after a sync that had it,', () => {
  const goesOn: Readonly<Record<string, (file: StagedFile) => number>> = {
    'is written over': (file) => file.content.write(writeRequest(Buffer.alloc(50, 255)), 100), 'is grown over': (file) => file.truncate(150), 'is zeroed over': (file) => file.content.zero(100, 150, true),
  };
  for (const [how, change] of Object.entries(goesOn)) {
    test(`is gone when it ${how}, and what was written there stays`, async () => {
      const path = mkdtempSync(join(MEMORY, 'bucketfsd-staged-'));
      const world = new World(path, () => 5, 'new');
      world.write(0, 1000);
      await world.file.content.sync();
      world.truncate(100);
      const left = world.left(BOOT)!;
      world.file.abandon();
      world.shop.ledger.close();
      const ledger = new Ledger(Journal.open<JournalRecord>(world.directory.journalPath, () => undefined).journal, left.id, { boot: BOOT });
      const file = StagedFile.restore({ ...world.shop, ledger }, left, { hasStaging: true });
      const result = change(file);
      assert.equal(result, how === 'is written over' ? 50 : 0);
      assert.equal(file.truncate(900), 0);
      const expected = Buffer.alloc(900, 255);
      world.now.copy(expected);
      fill(expected, 0, how === 'is written over' ? 150 : 100, 900);
      assert.deepEqual(Buffer.from(file.content.read(900)), expected);
      file.abandon();
      ledger.close();
      world.directory.close();
      rmSync(path, { recursive: true });
    });
  }
});
