/**
 * The directory in which a bucket's share keeps what is not in the bucket yet: staging files and the journal; and the block cache. One daemon has it at a
 * time, and it belongs to one bucket and prefix for good.
 */
import { closeSync, constants, fsync, ftruncateSync, openSync, readdirSync, readFileSync, renameSync, statSync, writeFileSync, writeSync } from 'node:fs';
import { unlink } from 'node:fs/promises';
import { join } from 'node:path';
import { promisify } from 'node:util';
import { E } from '../../../base/errno.js';
import { makeDirectory } from '../../../base/make-directory.js';
import { Underway } from '../../../base/underway.js';
import { LOCK_EX, LOCK_NB } from '../../../ffi/constants.js';
import * as c from '../../../ffi/libc.js';
import { openOwned, ownerOf, type Owner } from '../owned-file.js';
import { directoryRisk, foreignDirectoryRisk } from './directory-owner.js';
import { StagingDescriptors } from './staging-descriptors.js';

const fsyncLater = promisify(fsync);

const FORMAT = 1;
/** What Linux lets a process have open where nobody says more (INR_OPEN_CUR in include/uapi/linux/fs.h). */
const FILE_LIMIT = 1024;
const PID_PATTERN = /^\d{1,10}/;

/** Why a cache directory cannot be used; the message is for people. */
export class CacheDirectoryError extends Error {
  override readonly name = 'CacheDirectoryError';
  constructor(
    message: string,
    /** What the file system says; null: it is somebody else's, or damaged. */
    readonly reason: string | null = null,
  ) {
    super(message);
  }
}

/** Whose data is in it. `reopen` is whatever its owner wants to read there later. */
export interface ShareIdentity {
  /** "s3://bucket" */
  readonly location: string;
  readonly prefix: string;
  readonly reopen?: unknown;
}

export class CacheDirectory {
  readonly #lockFd: number;
  readonly #removing = new Underway();
  /** Of staging/, once something in it was synced. */
  #stagingFd: number | null = null;

  readonly #owner: Owner | null;

  private constructor(
    readonly path: string,
    lockFd: number,
    readonly descriptors: StagingDescriptors,
    owner: Owner | null,
  ) {
    this.#lockFd = lockFd;
    this.#owner = owner;
  }

  /**
   * Made if need be, readable by its owner only. @param fileLimit of descriptors that the process may have
   * @throws CacheDirectoryError
   */
  static open(path: string, identity: ShareIdentity, fileLimit = FILE_LIMIT): CacheDirectory {
    const directory = CacheDirectory.#locked(path, true, fileLimit);
    try {
      directory.#identify(identity);
      makeDirectory(join(path, 'staging'));
      return directory;
    } catch (error) {
      directory.close();
      throw explained(path, error);
    }
  }

  /** One that exists, whomever it belongs to. @throws CacheDirectoryError */
  static reopen(path: string): { directory: CacheDirectory; identity: ShareIdentity } {
    // Before anything is said of what is in it, which may be somebody's
    if (isAbsent(path)) throw new CacheDirectoryError(`there is no cache directory ${path}`);
    if (isAbsent(join(path, 'share.json'))) throw new CacheDirectoryError(`${path} is no cache directory of bucketfsd: it has no share.json`);
    const directory = CacheDirectory.#locked(path, false, FILE_LIMIT);
    try {
      const identity = readIdentity(path);
      if (identity === null) throw new CacheDirectoryError(`${path} is no cache directory of bucketfsd: it has no share.json`);
      return { directory, identity };
    } catch (error) {
      directory.close();
      throw explained(path, error);
    }
  }

  static #locked(path: string, make: boolean, fileLimit: number): CacheDirectory {
    let fd = -1;
    try {
      if (make) makeDirectory(path);
      const risk = make ? directoryRisk(path, process.geteuid!()) : foreignDirectoryRisk(path);
      if (risk !== null) throw new CacheDirectoryError(`the cache directory cannot be used: ${risk}`);
      fd = openSync(join(path, 'lock'), constants.O_RDWR | (make ? constants.O_CREAT : 0), 0o600);
    } catch (error) {
      throw explained(path, error);
    }
    if (c.flock(fd, LOCK_EX | LOCK_NB) < 0) {
      const errno = c.errno();
      closeSync(fd);
      if (errno !== E.AGAIN) throw new CacheDirectoryError(`cannot lock ${path}: it must be on a file system with flock(2)`);
      throw new CacheDirectoryError(`the cache directory ${path} is in use by another bucketfsd${lockedBy(path)}: give each daemon a --cache-dir of its own`);
    }
    try {
      ftruncateSync(fd, 0);
      writeSync(fd, `${process.pid}\n`, 0);
    } catch {
      // It is for a message to others only, and the disk may be full of what is to be recovered
    }
    return new CacheDirectory(path, fd, StagingDescriptors.within(fileLimit), ownerOf(path));
  }

  get journalPath(): string {
    return join(this.path, 'journal');
  }

  stagingPath(id: number): string {
    return join(this.path, 'staging', String(id));
  }

  /** Ids of the staging files that are there. */
  stagingIds(): number[] {
    return readdirSync(join(this.path, 'staging')).filter((name) => /^\d{1,15}$/.test(name)).map(Number);
  }

  /** When a staging file was changed last, milliseconds since 1970; 0: there is none. @throws an error of the file system */
  stagingTime(id: number): number {
    return statSync(this.stagingPath(id), { throwIfNoEntry: false })?.mtimeMs ?? 0;
  }

  openStaging(id: number, make: boolean): number {
    return openOwned(this.stagingPath(id), constants.O_RDWR | (make ? constants.O_CREAT | constants.O_EXCL : 0), this.#owner);
  }

  /**
   * Not at once: freeing a large file takes a while, and it has to wait for `safe`. What is left when the daemon dies the next start removes;
   * where `safe` fails too, since the journal may still need it then.
   */
  removeStaging(id: number, safe: (() => Promise<unknown>) | null = null): void {
    const removing = (async () => {
      await safe?.();
      await unlink(this.stagingPath(id));
    })();
    this.#removing.add(removing.catch(() => undefined));
  }

  /** That staging files are there outlives the machine. */
  async syncStaging(): Promise<void> {
    this.#stagingFd ??= openSync(join(this.path, 'staging'), constants.O_RDONLY | constants.O_DIRECTORY);
    await fsyncLater(this.#stagingFd);
  }

  /** Staging files are being removed: there will be more room. */
  get isRemoving(): boolean {
    return !this.#removing.isEmpty;
  }

  /** Staging files that are to be removed are gone. */
  async settled(): Promise<void> {
    await this.#removing.settled();
  }

  /** For the block cache. */
  get blocksPath(): string {
    return join(this.path, 'blocks');
  }

  /** Another daemon may have it. */
  close(): void {
    if (this.#stagingFd !== null) closeSync(this.#stagingFd);
    closeSync(this.#lockFd);
  }

  #identify(identity: ShareIdentity): void {
    const known = readIdentity(this.path);
    if (known !== null && (known.location !== identity.location || known.prefix !== identity.prefix)) {
      throw new CacheDirectoryError(
        `the cache directory ${this.path} belongs to ${known.location}/${known.prefix}, not to ${identity.location}/${identity.prefix}: give each share a --cache-dir of its own`,
      );
    }
    const path = join(this.path, 'share.json');
    // Who only reads does not know how to open it for writing
    const { reopen = known?.reopen, ...share } = identity;
    const text = `${JSON.stringify({ format: FORMAT, ...share, reopen })}\n`;
    // A disk may be full of what is to be recovered
    if (known !== null && readFileSync(path, 'utf8') === text) return;
    writeFileSync(`${path}.new`, text, { mode: 0o600, flush: true });
    renameSync(`${path}.new`, path);
  }
}

function readIdentity(path: string): ShareIdentity | null {
  let text: string;
  try {
    text = readFileSync(join(path, 'share.json'), 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return null;
    throw error;
  }
  const damaged = new CacheDirectoryError(`${join(path, 'share.json')} is damaged; nothing was changed: restore it, or remove it if you know whose the directory is`);
  let parsed: Partial<ShareIdentity> & { format?: unknown };
  try {
    parsed = JSON.parse(text) as typeof parsed;
  } catch {
    throw damaged;
  }
  if (typeof parsed !== 'object' || parsed === null || typeof parsed.location !== 'string' || typeof parsed.prefix !== 'string') throw damaged;
  if (parsed.format !== FORMAT) {
    throw new CacheDirectoryError(`${path} has format ${String(parsed.format)}, this bucketfsd knows format ${FORMAT}: start the one that made it; nothing was changed`);
  }
  return { location: parsed.location, prefix: parsed.prefix, reopen: parsed.reopen };
}

/** Not what may not be looked at. */
function isAbsent(path: string): boolean {
  try {
    return statSync(path, { throwIfNoEntry: false }) === undefined;
  } catch {
    return false;
  }
}

function lockedBy(path: string): string {
  try {
    const pid = PID_PATTERN.exec(readFileSync(join(path, 'lock'), 'utf8'));
    return pid === null ? '' : ` (pid ${pid[0]})`;
  } catch {
    return '';
  }
}

function explained(path: string, error: unknown): Error {
  if (error instanceof CacheDirectoryError) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  if (code === undefined) return error as Error;
  return new CacheDirectoryError(`the cache directory ${path} cannot be used (${message}): it must be writable, it keeps what is not in the bucket yet`, message);
}

