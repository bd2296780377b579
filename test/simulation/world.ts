/** One seed: a bucket, guests with their daemons, other clients and the network. It is played to its end and checked. */
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { StorageError } from '../../src/storage/object/errors.js';
import type { ObjectOptions } from '../../src/storage/object/filesystem.js';
import { CacheDirectory } from '../../src/storage/object/write/cache-directory.js';
import { Ledger } from '../../src/storage/object/write/ledger.js';
import { inspect } from '../../src/storage/object/write/recovery.js';
import { Bucket } from './bucket.js';
import { chanceOf, mixed } from './chance.js';
import { Daemon, Gone } from './daemon.js';
import { OtherClients } from './foreign.js';
import { AttributeRequests } from './attributes.js';
import { Files } from './files.js';
import { Guest } from './guest.js';
import { Machine } from './machine.js';
import { Book } from './model/book.js';
import { Oracle, Violation } from './model/oracle.js';
import { Names } from './names.js';
import { Network } from './network.js';
import { Program } from './programs.js';
import { Scheduler } from './scheduler.js';
import type { Settings } from './settings.js';
import { CALM } from './weather.js';

/** A file system on which syncing costs nothing. */
const MEMORY = '/dev/shm';
const SIZES = { putMaxBytes: 8 << 10, partBytes: 4 << 10, copyMaxBytes: 32 << 10, growAfterParts: 4, partsAtOnce: 3 };
/** Retries of commits come at least once in this time. */
const RETRY_MS = 70_000;
const STARTS_MAX = 300;
const BEFORE_MS = 10_000;

export interface Omitted {
  /** Numbers of requests that have no fault. */
  readonly faults: ReadonlySet<number>;
  /** Names of steps of programs, kills and changes of other clients: "g1.1a/3". */
  readonly steps: ReadonlySet<string>;
}

export const NOTHING: Omitted = { faults: new Set(), steps: new Set() };

export interface Outcome {
  readonly violation: Violation | null;
  /** Hash of the trace. */
  readonly hash: number;
  readonly trace: readonly string[];
  readonly events: number;
  readonly changes: number;
  readonly faults: readonly { readonly number: number; readonly line: string }[];
  readonly steps: readonly string[];
  /** Counts of kills, stops and failed starts. */
  readonly counts: Readonly<Record<string, number>>;
}

interface Living {
  readonly guest: Guest;
  readonly daemon: Daemon;
  readonly directory: string;
}

export class World {
  readonly scheduler = new Scheduler((line) => this.#trace(line));
  readonly machine: Machine;
  readonly network: Network;
  readonly bucket: Bucket;
  readonly oracle: Oracle;
  readonly living: Living[] = [];
  readonly steps: string[] = [];
  readonly counts: Record<string, number> = {};
  #violation: Violation | null = null;
  #hash = 1;
  #failedStarts = 0;
  readonly #lines: string[] = [];

  constructor(
    readonly settings: Settings,
    readonly omitted: Omitted,
    /** Keep the trace. */
    readonly verbose: boolean,
  ) {
    const { seed, provider, weather, lies, prefix, guests } = settings;
    this.machine = new Machine(this.scheduler, chanceOf(seed, 'machine'));
    this.oracle = new Oracle(() => this.bucket, {
      prefix, overwrites: provider.name === 'plain', putMaxBytes: SIZES.putMaxBytes, fail: (violation) => this.fail(violation), note: (line) => this.#trace(line),
    });
    this.bucket = new Bucket(provider, () => this.scheduler.now_ms, (change) => this.oracle.changed(change));
    this.network = new Network(this.scheduler, this.bucket, {
      seed, weather, lies, spared: omitted.faults, fileOf: (fd) => this.machine.fileOf(fd), onBadBody: (what) => this.fail(new Violation('body', what)),
      onLie: (key) => void this.oracle.excused.set(key, 'a wrong 404'),
    }, (client, key, version) => this.oracle.books.get(client)?.reveal(key, version));
    for (let number = 1; number <= guests; number++) this.#addGuest(`g${number}`);
  }

  fail(violation: Violation): void {
    this.#trace(`  ! ${violation.message}`);
    this.#violation ??= violation;
  }

  #trace(line: string): void {
    let hash = this.#hash;
    for (let i = 0; i < line.length; i++) hash = Math.imul(hash ^ line.charCodeAt(i), 0x01000193);
    this.#hash = hash >>> 0;
    if (this.verbose) this.#lines.push(line);
  }

  #addGuest(name: string): void {
    const { settings } = this;
    const directory = mkdtempSync(join(existsSync(MEMORY) ? MEMORY : tmpdir(), 'bucketfsd-simulation-'));
    const options: ObjectOptions = {
      prefix: settings.prefix, metadataTtl_ms: settings.ttl_ms, posix: settings.posix, privileged: true, uid: 0, gid: 0, fileMode: 0o644, directoryMode: 0o755, readdirplus: true,
      write: {
        cacheDirectory: directory, durability: settings.durability, onConflict: settings.provider.guarded ? 'keep' : 'overwrite', writebackDelay_ms: settings.writebackDelay_ms, sizes: SIZES,
      },
    };
    const daemon = new Daemon(name, this.machine, this.network, options, chanceOf(settings.seed, 'ring', name), (what) => this.fail(new Violation('defect', what)));
    const book = new Book(name, () => this.bucket.changes.length, () => this.scheduler.now_ms);
    this.oracle.books.set(name, book);
    const guest = new Guest(daemon, book, this.oracle, this.bucket, {
      prefix: settings.prefix, waits: settings.durability === 'remote', ttl_ms: settings.ttl_ms, mayFail: settings.weather !== CALM,
    }, (line) => this.#trace(`  ${name} ${line}`));
    this.living.push({ guest, daemon, directory });
  }

  async play(): Promise<Outcome> {
    const onRejection = (error: unknown): void => this.fail(new Violation('defect', `nobody handles ${error instanceof Error ? error.stack : String(error)}`));
    process.on('unhandledRejection', onRejection);
    this.machine.install();
    const rewrites = this.#installRewrites();
    this.scheduler.onError = (error, label) => this.fail(new Violation('defect', `${label}: ${error instanceof Error ? error.stack : String(error)}`));
    try {
      await this.#play();
    } catch (error) {
      if (!(error instanceof Violation)) this.fail(new Violation('stuck', error instanceof Error ? error.stack ?? error.message : String(error)));
    } finally {
      rewrites();
      for (const { daemon } of this.living) daemon.kill('is over');
      this.machine.uninstall();
      process.off('unhandledRejection', onRejection);
      for (const { directory } of this.living) rmSync(directory, { recursive: true, force: true });
    }
    return {
      violation: this.#violation, hash: this.#hash, trace: this.#lines, events: this.scheduler.events, changes: this.bucket.changes.length, faults: this.network.faults, steps: this.steps,
      counts: this.counts,
    };
  }

  /** Have a small journal rewritten now and then, as a large one is. */
  #installRewrites(): () => void {
    const { append } = Ledger.prototype;
    const chance = chanceOf(this.settings.seed, 'rewrites');
    const { rewrites } = this.settings;
    Ledger.prototype.append = function (this: Ledger, record): void {
      if (chance.chance(rewrites)) this.rewrite();
      append.call(this, record);
    };
    return () => (Ledger.prototype.append = append);
  }

  async #play(): Promise<void> {
    const { scheduler, settings, network } = this;
    const others = new OtherClients(network, this.bucket, settings, this.omitted.steps, this.steps);
    others.prepare();
    // Longer ago than any answer is believed
    scheduler.now_ms = BEFORE_MS;
    let left = this.living.length;
    for (const one of this.living) void this.#live(one).catch((error: unknown) => this.#died(error)).then(() => left--);
    others.begin(scheduler);
    await this.#until(() => left === 0 && others.isOver);
    network.healed = true;
    await this.#until(() => network.underway === 0);
    for (const one of this.living) {
      const ended = { is: false };
      void this.#settle(one).catch((error: unknown) => this.#died(error)).then(() => (ended.is = true));
      await this.#until(() => ended.is);
    }
    await this.#until(() => network.underway === 0);
    this.oracle.finish();
    for (const one of this.living) this.#nothingLeft(one);
    for (const [id, { key, call, isKnown }] of this.bucket.uploads) {
      // Nobody can know of an upload whose id was lost
      if (isKnown) this.fail(new Violation('left behind', `upload ${id} of ${key}, begun by request #${call.number}`));
    }
  }

  #died(error: unknown): void {
    if (error instanceof Gone) return;
    this.fail(error instanceof Violation ? error : new Violation('defect', error instanceof Error ? error.stack ?? error.message : String(error)));
  }

  async #until(over: () => boolean): Promise<void> {
    await this.scheduler.run(() => this.#violation !== null || over());
    if (this.#violation !== null) throw this.#violation;
  }

  #count(what: string): void {
    this.counts[what] = (this.counts[what] ?? 0) + 1;
  }

  /** Start the daemon, run programs, kill or end it, and start it again. */
  async #live(one: Living): Promise<void> {
    const { daemon } = one;
    const { settings } = this;
    for (let life = 0, ends = 0; ; life++) {
      const chance = chanceOf(settings.seed, 'life', daemon.name, life);
      const isLast = ends >= settings.ends;
      const isKilled = !isLast && !this.#omits(`${daemon.name} killed ${life}`);
      const diesAt = isKilled && chance.chance(80) ? Math.floor(chance.skewed(2, 1_500)) : Infinity;
      try {
        if (!(await this.#start(one, diesAt))) {
          await this.#pause(chance.skewed(100, 30_000));
          continue;
        }
        await this.#programs(one, life, isLast);
        if (isLast) return;
        if (diesAt === Infinity) await this.#stop(one);
        else daemon.kill('killed in peace');
      } catch (error) {
        if (!(error instanceof Gone)) throw error;
      }
      ends++;
      this.#count(diesAt === Infinity ? 'stops' : 'kills');
      await this.#pause(chance.skewed(10, 20_000));
    }
  }

  #omits(step: string): boolean {
    this.steps.push(step);
    return this.omitted.steps.has(step);
  }

  /** @returns whether it serves. @throws Gone */
  async #start({ guest, daemon }: Living, diesAt: number): Promise<boolean> {
    const failed = await daemon.start(diesAt);
    if (failed === null) {
      guest.restarted();
      guest.book.recovered();
      return true;
    }
    // While the provider does not serve, nor does the daemon
    if (this.settings.weather === CALM || !(failed instanceof StorageError)) this.fail(new Violation('start', `${daemon.name} does not start: ${failed.stack}`));
    this.#count('failed starts');
    if (++this.#failedStarts > STARTS_MAX) this.fail(new Violation('start', `${daemon.name} does not start, however often it is tried: ${failed.message}`));
    return false;
  }

  async #stop({ daemon }: Living): Promise<void> {
    const left = await daemon.stop();
    if (left > 0 && this.settings.weather === CALM) this.fail(new Violation('left behind', `${daemon.name} has ended, and ${left} files are not in the bucket`));
  }

  async #programs({ guest, daemon }: Living, life: number, isLast: boolean): Promise<void> {
    const { settings } = this;
    const files = new Files(guest);
    const names = new Names(guest);
    const attributes = new AttributeRequests(guest, files);
    const steps = isLast ? settings.steps : settings.steps + 10;
    const programs = Array.from({ length: settings.programs }, (_, i) => {
      const name = `${daemon.name}.${life}${'abc'[i]}`;
      for (let step = 0; step < steps; step++) this.steps.push(`${name}/${step}`);
      return new Program(guest, files, names, attributes, {
        seed: mixed(settings.seed, name), name, steps, mood: settings.mood, paths: settings.paths, directories: settings.directories, skipped: this.omitted.steps,
        pause: async (ms) => {
          const { process } = daemon;
          await this.#pause(ms);
          if (daemon.process !== process || process === null) throw new Gone();
        },
      });
    });
    await Promise.all(programs.map((program) => program.run()));
    if (daemon.process === null) throw new Gone();
  }

  #pause(ms: number): Promise<void> {
    return new Promise((resolve) => void this.scheduler.after(null, ms, '', resolve));
  }

  /** Faults are over: wait until everything is in the bucket, end and start again. */
  async #settle(one: Living): Promise<void> {
    const { daemon } = one;
    for (let attempt = 1; daemon.process !== null; attempt++) {
      await daemon.idle();
      await this.#pause(RETRY_MS);
      await daemon.idle();
      if (daemon.pending === 0) break;
      if (attempt === 5) throw new Violation('stuck', `${daemon.pending} requests of ${daemon.name} are not answered`);
    }
    // The next start removes leftovers that could not be removed
    for (let start = 0; start < 2; start++) {
      if (daemon.process === null && !(await this.#start(one, Infinity))) throw new Violation('start', `${daemon.name} does not start`);
      await daemon.idle();
      const left = await daemon.stop();
      if (left !== 0) this.fail(new Violation('left behind', `${daemon.name} has ended, and ${left === -1 ? 'has taken too long' : `${left} files are not in the bucket`}`));
    }
  }

  #nothingLeft({ daemon, directory }: Living): void {
    const staging = readdirSync(join(directory, 'staging'));
    const { directory: cache } = CacheDirectory.reopen(directory);
    const { pending } = inspect(cache);
    cache.close();
    const { files, operations, uploads, hidden } = pending;
    const left = [...[...files.values()].map((file) => `file ${file.key}`), ...[...operations.values()].map((operation) => `${operation.kind} of ${operation.from}`), ...uploads.keys(), ...hidden];
    if (staging.length > 0 || left.length > 0) this.fail(new Violation('left behind', `in the cache directory of ${daemon.name}: staging files ${staging.join()}; in the journal ${left.join()}`));
  }
}
