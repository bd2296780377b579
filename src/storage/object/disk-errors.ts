/** Errors of the disk that the kernel met while it wrote back a file's pages (errseq_t in Linux, Documentation/core-api/errseq.rst). */
import { closeSync, constants, openSync } from 'node:fs';
import { errnoName } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { StorageError } from './errors.js';

const SYNC_FILE_RANGE_WAIT_BEFORE = 1;
/** A page that no file of ours has: there is nothing to wait for. */
const BEYOND = 2 ** 43;

/**
 * The error since this descriptor was opened, or since the last call on it; it is told once. Neither waits nor writes: bytes that were read
 * before this call and with no error until now were good, since a page that could not be written is not dropped before that is recorded.
 * @returns 0, or an errno
 */
export function writebackError(fd: number): number {
  return c.syncFileRange(fd, BEYOND, 1, SYNC_FILE_RANGE_WAIT_BEFORE) === 0 ? 0 : c.errno();
}

/**
 * Rule: a commit sends only bytes that are known to be good. Whoever sends a range of a staging file reads it through one of these, and
 * asks before the last byte leaves.
 */
export class CheckedFile {
  /** An open file of its own: what it is told of is told to the staging file too. */
  readonly #fd: number;

  /** @throws an error of the file system */
  constructor(
    fd: number,
    readonly operation: string,
  ) {
    this.#fd = openSync(`/proc/self/fd/${fd}`, constants.O_RDONLY);
  }

  get fd(): number {
    return this.#fd;
  }

  /** Everything that was read is good. @throws StorageError `bad-body` */
  check(): void {
    const errno = writebackError(this.#fd);
    if (errno !== 0) throw new StorageError('bad-body', this.operation, { providerMessage: `the disk has lost data of the staging file (${errnoName(errno)})` });
  }

  close(): void {
    closeSync(this.#fd);
  }
}
