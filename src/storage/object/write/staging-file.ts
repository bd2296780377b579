/**
 * What is only here of a file's content, at the file's own offsets. It is made when there is something to be kept in it; until then it has no
 * descriptor, so that as many files as there are may have attributes that are not in the bucket.
 */
import { closeSync, ftruncateSync, fstatSync, fdatasync, writeSync, type Stats } from 'node:fs';
import { promisify } from 'node:util';
import * as c from '../../../ffi/libc.js';
import type { CacheDirectory } from './cache-directory.js';

const fdatasyncAsync = promisify(fdatasync);

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;

export class StagingFile {
  /** Negative: there is none. */
  #fd = -1;
  #ended = false;
  /** It would be found again after a power failure. */
  #isNamed = false;
  /** Syncs under way: the descriptor stays open until then. */
  readonly #syncs = new Set<Promise<void>>();

  constructor(
    readonly directory: CacheDirectory,
    readonly id: number,
  ) {}

  /** Made if need be, of so many bytes. @returns −1 when it was given up. @throws an error of the file system */
  fd(bytes: number): number {
    if (this.#fd >= 0 || this.#ended) return this.#fd;
    const fd = this.directory.openStaging(this.id, true);
    try {
      ftruncateSync(fd, bytes);
    } catch (error) {
      this.directory.removeStaging(this.id, fd);
      throw error;
    }
    return (this.#fd = fd);
  }

  /** That of a former daemon. @returns null if there is none that would be needed. @throws an error of the file system, ENOENT if it is needed */
  reopen(needed: boolean): Stats | null {
    try {
      this.#fd = this.directory.openStaging(this.id, false);
    } catch (error) {
      if (needed || (error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      return null;
    }
    return fstatSync(this.#fd);
  }

  /** At least so many bytes. @throws an error of the file system */
  grow(bytes: number): void {
    const fd = this.fd(bytes);
    if (bytes > fstatSync(fd).size) ftruncateSync(fd, bytes);
  }

  /** [from, to) is a hole. */
  punch(from: number, to: number): void {
    if (c.fallocate(this.#fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from) === 0) return;
    // A file system without holes in files
    const zeros = new Uint8Array(Math.min(to - from, 1 << 20));
    const end = Math.min(to, fstatSync(this.#fd).size);
    for (let at = from; at < end; ) at += writeSync(this.#fd, zeros, 0, Math.min(zeros.length, end - at), at);
  }

  /** It outlives the machine, if it is there. */
  async sync(): Promise<void> {
    if (this.#fd < 0) return;
    const sync = fdatasyncAsync(this.#fd);
    this.#syncs.add(sync);
    await Promise.all([sync.finally(() => this.#syncs.delete(sync)), ...(this.#isNamed ? [] : [this.directory.syncStaging()])]);
    this.#isNamed = true;
  }

  /** No sync is under way; how it ended is for others to hear. */
  async synced(): Promise<void> {
    await Promise.allSettled(this.#syncs);
  }

  remove(): void {
    this.#ended = true;
    if (this.#fd >= 0) this.directory.removeStaging(this.id, this.#fd);
  }

  /** It stays, for the next daemon. */
  abandon(): void {
    this.#ended = true;
    if (this.#fd >= 0) closeSync(this.#fd);
    // Another file may have that number soon
    this.#fd = -1;
  }
}
