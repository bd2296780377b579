/** A disk of the tests (disk.c), the file systems that are made on it, and their mounts. Root only, in a mount namespace of its own. */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { randomUUID } from 'node:crypto';
import { once } from 'node:events';
import { closeSync, existsSync, fstatSync, mkdirSync, openSync, readdirSync, readFileSync, readlinkSync, renameSync, statSync, truncateSync, writeFileSync, writeSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

const MIB = 1 << 20;
const SOURCE = fileURLToPath(new URL('../../../../test/storage/power/disk.c', import.meta.url));
const BINARY = fileURLToPath(new URL('disk', import.meta.url));
const UNMOUNT_TRIES = 10;
const OPEN_TRIES = 50;
/** Fields of struct control in disk.c, by their place. */
const CONTROL = { writes: 0, thin: 4, flushes: 8, failed: 12 } as const;

/** What is made on the disk. */
export interface DiskFormat {
  readonly name: 'ext4' | 'xfs' | 'btrfs';
  readonly bytes: number;
  readonly make: readonly string[];
  /** Options of mount(8). The kernel writes back soon: that gives more states. */
  readonly options: string;
  /** A write that was under way when power failed may be there in pieces of this size: what the format relies on as one step, it gets. */
  readonly tornBytes: number;
}

const FORMATS: readonly DiskFormat[] = [
  // The superblock has a checksum over two sectors of 512 bytes
  { name: 'ext4', bytes: 128 * MIB, make: ['mkfs.ext4', '-q', '-F', '-E', 'lazy_itable_init=0,lazy_journal_init=0,nodiscard'], options: 'loop,commit=1', tornBytes: 4096 },
  { name: 'xfs', bytes: 320 * MIB, make: ['mkfs.xfs', '-q', '-f', '-K', '-s', 'size=512'], options: 'loop', tornBytes: 512 },
  { name: 'btrfs', bytes: 160 * MIB, make: ['mkfs.btrfs', '-q', '-f', '-K'], options: 'loop,commit=1', tornBytes: 4096 },
];

/** @returns null, or why this machine cannot have such a file system */
function missing(format: DiskFormat): string | null {
  const [program] = format.make;
  if (spawnSync(program, ['-V'], { stdio: 'ignore' }).error !== undefined) return `${program} is not installed`;
  const known = (): boolean => readFileSync('/proc/filesystems', 'utf8').split('\n').some((line) => line.split('\t').at(-1) === format.name);
  if (known()) return null;
  spawnSync('modprobe', [format.name], { stdio: 'ignore' });
  return known() ? null : `the kernel has no ${format.name}`;
}

/** Those that this machine can have; for the others ext4 in their place, and a line that says so. */
export function diskFormats(say: (line: string) => void): DiskFormat[] {
  return FORMATS.map((format) => {
    const why = missing(format);
    if (why === null) return format;
    say(`${why}: its states are made on ext4`);
    return FORMATS[0];
  });
}

/** @returns why there can be no such disk here, or false */
export function disksUnavailable(): string | false {
  if (process.geteuid!() !== 0) return 'mounting needs root';
  if (!existsSync('/dev/fuse')) return 'there is no /dev/fuse';
  if (!existsSync('/dev/loop-control')) return 'there are no loop devices';
  return false;
}

/** Compile disk.c, unless that was done. */
export function buildDisk(): void {
  if (existsSync(BINARY) && statSync(BINARY).mtimeMs > statSync(SOURCE).mtimeMs) return;
  const made = `${BINARY}.${randomUUID()}`;
  run('gcc', ['-std=gnu11', '-O2', '-Wall', '-Wextra', '-Werror', '-o', made, SOURCE]);
  renameSync(made, BINARY);
}

export function makeFileSystem(format: DiskFormat, image: string): void {
  writeFileSync(image, '');
  truncateSync(image, format.bytes);
  const [program, ...options] = format.make;
  run(program, [...options, image]);
}

function run(program: string, parameters: readonly string[]): void {
  const { status, error, stdout, stderr } = spawnSync(program, parameters, { encoding: 'utf8' });
  if (error !== undefined || status !== 0) throw new Error(`${program} ${parameters.join(' ')}: ${error?.message ?? `${stdout}${stderr}`}`);
}

/** The kernel writes a file's data back, and forgets its pages. */
export const dropPages = (path: string): void => run(BINARY, ['drop', path]);

/** Without blocking this process, which others wait for. */
async function runLater(program: string, parameters: readonly string[]): Promise<void> {
  const child = spawn(program, parameters, { stdio: ['ignore', 'ignore', 'pipe'] });
  let text = '';
  child.stderr.on('data', (chunk: Buffer) => (text += chunk.toString()));
  const [code] = (await once(child, 'close')) as [number | null];
  if (code !== 0) throw new Error(`${program} ${parameters.join(' ')}: ${text || `exit code ${code}`}`);
}

export interface DiskOptions {
  /** For everything that belongs to this disk. */
  readonly directory: string;
  readonly image: string;
  /** The image is changed; else all changes are forgotten at the end. */
  readonly keeps: boolean;
  /** A log whose writes are done first. */
  readonly replay?: string;
}

export class Disk {
  #mounted = false;
  #abandoned = false;

  private constructor(
    readonly child: ChildProcess,
    /** To be mounted by a loop device. */
    readonly file: string,
    readonly log: string,
    readonly mountPoint: string,
    readonly logFd: number,
    readonly controlFd: number,
    readonly replay: string | undefined,
  ) {}

  static async start({ directory, image, keeps, replay }: DiskOptions): Promise<Disk> {
    buildDisk();
    mkdirSync(directory, { recursive: true });
    const [file, log, control, mountPoint] = ['disk', 'log', 'control', 'mount'].map((name) => join(directory, name));
    writeFileSync(file, '');
    mkdirSync(mountPoint, { recursive: true });
    const child = spawn(BINARY, [file, image, log, control, keeps ? 'shared' : 'private', ...(replay === undefined ? [] : [replay])], { stdio: ['ignore', 'pipe', 'inherit'] });
    const [first] = (await Promise.race([once(child.stdout, 'data'), once(child, 'close')])) as [unknown];
    if (String(first) !== 'ready\n') throw new Error(`the disk in ${dirname(file)} did not start`);
    return new Disk(child, file, log, mountPoint, openSync(log, 'r'), openSync(control, 'r+'), replay);
  }

  async mount(format: DiskFormat): Promise<void> {
    await runLater('mount', ['-t', format.name, '-o', format.options, this.file, this.mountPoint]);
    this.#mounted = true;
  }

  /** Bytes of the log: what has reached the disk so far. */
  get position(): number {
    return fstatSync(this.logFd).size;
  }

  /** From now on writes, writes to places that were never written, or flushes fail with this errno; 0: no more. */
  fail(what: 'writes' | 'thin' | 'flushes', errno: number): void {
    writeSync(this.controlFd, Uint8Array.of(errno, 0, 0, 0), 0, 4, CONTROL[what]);
  }

  /** Paths that this process still has open on it when syncs that were under way are over. */
  async open(): Promise<string[]> {
    for (let tries = 1; ; tries++) {
      const open = this.#open();
      if (open.length === 0 || tries === OPEN_TRIES) return open;
      await sleep(20);
    }
  }

  #open(): string[] {
    return readdirSync('/proc/self/fd').flatMap((fd) => {
      try {
        const path = readlinkSync(`/proc/self/fd/${fd}`);
        return path.startsWith(`${this.mountPoint}/`) ? [path.slice(this.mountPoint.length)] : [];
      } catch {
        return [];
      }
    });
  }

  /** What somebody has open goes on until then. */
  async unmount(): Promise<void> {
    if (!this.#mounted) return;
    this.#mounted = false;
    for (let tries = 1; tries <= UNMOUNT_TRIES; tries++) {
      try {
        return await runLater('umount', [this.mountPoint]);
      } catch {
        await sleep(20);
      }
    }
    this.#abandoned = true;
    await runLater('umount', ['-l', this.mountPoint]);
  }

  async stop(): Promise<void> {
    const ended = this.child.exitCode === null ? once(this.child, 'close') : Promise.resolve();
    await this.unmount();
    closeSync(this.logFd);
    closeSync(this.controlFd);
    // The loop device may hold it a moment longer
    await runLater('umount', ['-l', this.file]);
    if (this.#abandoned) this.child.kill('SIGKILL');
    await ended;
  }
}
