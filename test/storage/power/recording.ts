/** What happened on a disk and beside it, in one order; and the disk as it was found after a power failure at some moment of it. */
import { spawnSync } from 'node:child_process';
import { mkdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import type { Random } from '../../model/random.js';
import { Disk, type DiskFormat } from './disk.js';
import { applyToImage, LOSSES, readLog, splitAt, survivors, whole, writeReplay, type LogRecord, type Loss, type Piece } from './disk-log.js';

/** An event beside the disk: so much of the disk's log was there. */
export interface Timed<E> {
  readonly at: number;
  readonly event: E;
}

/** Power failed when the first `events` had happened, and the disk had been told of its log up to `end`. */
export interface Moment {
  readonly events: number;
  readonly end: number;
}

export class Recorder<E> {
  readonly events: Timed<E>[] = [];

  constructor(readonly disk: Disk) {}

  note(event: E): void {
    this.events.push({ at: this.disk.position, event });
  }
}

/** A moment at random: most often right behind an event that `matters`, since what was promised there counts from then on. */
export function momentOf<E>(events: readonly Timed<E>[], records: readonly LogRecord[], random: Random, matters: (event: E) => boolean): Moment {
  const chosen = events.flatMap(({ event }, i) => (matters(event) ? [i] : []));
  const index = chosen.length > 0 && random.chance(75) ? random.pick(chosen) : random.below(events.length);
  const { at } = events[index];
  const next = events[index + 1]?.at ?? Infinity;
  const between = records.filter(({ end }) => end > at && end <= next);
  const end = between.length === 0 || random.chance(50) ? at : random.pick(between).end;
  return { events: index + 1, end };
}

/** A loss at random. What was submitted and what was flushed, nothing in between, are as likely as all that a disk may do. */
export const lossOf = (random: Random): Loss => (random.chance(25) ? 'none' : random.chance(30) ? 'all' : random.pick(LOSSES));

/** A log of which writes are still to be done on an image, as far as they survive. */
export interface Survival {
  readonly logPath: string;
  readonly pieces: readonly Piece[];
}

/** Disks after power failures during one recording; in the order of their moments, since what is durable is done on one image. */
export class Aftermath {
  readonly #records: readonly LogRecord[];
  #applied = 0;
  #disks = 0;

  /** `image`: as it was when the recording began; it is changed. */
  constructor(
    readonly format: DiskFormat,
    readonly logPath: string,
    readonly image: string,
    readonly directory: string,
  ) {
    this.#records = readLog(logPath);
  }

  get records(): readonly LogRecord[] {
    return this.#records;
  }

  /** What survives beside what the image has from now on. */
  survival(moment: Moment, loss: Loss, random: Random): Survival {
    const { durable, loose } = splitAt(this.#records, moment.end);
    if (durable.length < this.#applied) throw new Error('moments come in their order');
    applyToImage(this.logPath, durable.slice(this.#applied), this.image);
    this.#applied = durable.length;
    return { logPath: this.logPath, pieces: survivors(loose, loss, this.format.tornBytes, random) };
  }

  /** The disk when power is back, mounted, for as long as `body` takes. */
  async withDisk<T>(survivals: readonly Survival[], body: (disk: Disk) => Promise<T>): Promise<T> {
    const directory = join(this.directory, `disk-${this.#disks++}`);
    mkdirSync(directory);
    const replay = join(directory, 'replay');
    writeReplay(replay, survivals);
    const disk = await Disk.start({ directory, image: this.image, keeps: false, replay });
    try {
      await disk.mount(this.format);
      return await body(disk);
    } finally {
      await disk.stop();
      rmSync(directory, { recursive: true });
    }
  }
}

/** The same for the second failure: all that survived the first, and what was written since. */
export function survivalOf(logPath: string, records: readonly LogRecord[], moment: Moment, loss: Loss, tornBytes: number, random: Random): Survival {
  const { durable, loose } = splitAt(records, moment.end);
  return { logPath, pieces: [...whole(durable), ...survivors(loose, loss, tornBytes, random)] };
}

/** A copy that takes no more room than the original. */
export function copySparse(from: string, to: string): void {
  const { status, stderr } = spawnSync('cp', ['--sparse=always', from, to], { encoding: 'utf8' });
  if (status !== 0) throw new Error(stderr);
}
