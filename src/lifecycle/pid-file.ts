/** `<socket>.pid`: holds the daemon's pid and, by a lock that dies with the process, proves that it lives. */
import { closeSync, fchmodSync, fstatSync, ftruncateSync, lstatSync, openSync, readSync, unlinkSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { E } from '../base/errno.js';
import * as c from '../ffi/libc.js';
import { LOCK_EX, LOCK_NB, O_CLOEXEC, O_CREAT, O_NOFOLLOW, O_NONBLOCK, O_RDWR } from '../ffi/constants.js';
import { StartError } from './errors.js';

/** A daemon that ends just now may remove the file under us; after so many times something else is wrong. */
const ATTEMPTS_MAX = 16;
/** Who could open it could hold its lock, and no daemon would start here again. */
const MODE = 0o600;
const PID_FILE_MAX_BYTES = 64;

export class PidFile {
  #fd: number;

  private constructor(
    readonly path: string,
    fd: number,
  ) {
    this.#fd = fd;
  }

  /** Creates or takes over the file. StartError: another daemon holds it, or the directory does not let us. */
  static lock(path: string, socketPath: string): PidFile {
    for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
      const fd = openFile(path, socketPath);
      requireOwn(path, fd);
      const locked = c.neg(c.flock(fd, LOCK_EX | LOCK_NB));
      if (locked < 0) {
        const owner = readOwner(fd);
        closeSync(fd);
        if (locked !== -E.AGAIN) throw new StartError(`cannot lock ${path}: does its file system have flock(2)?`);
        throw new StartError(`${socketPath} is in use: another daemon${owner} is running and holds ${path}`);
      }
      if (isStill(path, fd)) {
        fchmodSync(fd, MODE);
        ftruncateSync(fd);
        writeSync(fd, `${process.pid}\n`, 0);
        return new PidFile(path, fd);
      }
      closeSync(fd);
    }
    throw new StartError(`cannot lock ${path}: something keeps replacing it`);
  }

  /** The lock belongs to the open file, so it lives on in a process image that has inherited the descriptor. */
  static adopt(path: string, fd: number): PidFile {
    return new PidFile(path, fd);
  }

  /** The descriptor that holds the lock; −1 after release(). */
  get fd(): number {
    return this.#fd;
  }

  /** Removes the file, then lets the lock go, so that nobody locks a file that is about to vanish. */
  release(): void {
    if (this.#fd < 0) return;
    const fd = this.#fd;
    this.#fd = -1;
    if (isStill(this.path, fd)) unlinkSync(this.path);
    closeSync(fd);
  }
}

function openFile(path: string, socketPath: string): number {
  try {
    return openSync(path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW | O_NONBLOCK, MODE);
  } catch (error) {
    throw directoryError(error, socketPath, path);
  }
}

/** Does the path still name the file that we have open? */
function isStill(path: string, fd: number): boolean {
  const open = fstatSync(fd, { bigint: true });
  const named = lstatSync(path, { bigint: true, throwIfNoEntry: false });
  return named !== undefined && named.ino === open.ino && named.dev === open.dev;
}

/** What is truncated and written must be a pid file of this user: a link to another file, or somebody else's, is none. @throws StartError */
function requireOwn(path: string, fd: number): void {
  const found = fstatSync(fd);
  if (found.isFile() && found.uid === process.geteuid!() && found.nlink <= 1) return;
  closeSync(fd);
  throw new StartError(`cannot use ${path} as pid file: it belongs to somebody else, or is a link to another file; remove it, and let nobody else write to its directory`);
}

function readOwner(fd: number): string {
  try {
    const text = Buffer.alloc(PID_FILE_MAX_BYTES);
    const pid = /^(\d{1,10})\n?$/.exec(text.toString('latin1', 0, readSync(fd, text, 0, text.length, 0)))?.[1];
    return pid === undefined ? '' : ` (pid ${pid})`;
  } catch {
    return '';
  }
}

/** The sentence for what an attempt to create something beside the socket, or the socket itself, ran into. */
export function directoryError(error: unknown, socketPath: string, subject: string): StartError {
  const directory = dirname(socketPath);
  switch ((error as NodeJS.ErrnoException).code) {
    case 'ENOENT':
      return new StartError(`cannot create ${subject}: the directory ${directory} does not exist`);
    case 'ENOTDIR':
      return new StartError(`cannot create ${subject}: ${directory} is not a directory`);
    case 'EACCES':
    case 'EPERM':
      return new StartError(`cannot create ${subject}: no permission; this user must be able to write to ${directory}`);
    case 'EROFS':
      return new StartError(`cannot create ${subject}: ${directory} is on a read-only file system`);
    case 'ELOOP':
      return new StartError(`cannot create ${subject}: it is a symbolic link, which is not followed`);
    case 'EISDIR':
      return new StartError(`cannot create ${subject}: it is a directory`);
    case 'ENAMETOOLONG':
      return new StartError(`cannot create ${subject}: the name is too long`);
    case 'ENOSPC':
      return new StartError(`cannot create ${subject}: no space is left in ${directory}`);
    default:
      return new StartError(`cannot create ${subject}: ${(error as Error).message}`);
  }
}
