/**
 * The file that holds the bytes of a changed file which are only here, at the file's own offsets. It is made when there is something to
 * be kept in it, so that as many files as there are may have attributes that are not in the bucket. Its descriptor may be closed and opened
 * again: see StagingDescriptors.
 */
import { closeSync, fdatasync, fdatasyncSync, fstatSync, ftruncateSync, readSync, writeSync } from 'node:fs';
import { promisify } from 'node:util';
import { E, systemError, thrownErrno } from '../../../base/errno.js';
import * as c from '../../../ffi/libc.js';
import { writebackError } from '../disk-errors.js';
import type { CacheDirectory } from './cache-directory.js';
import type { DescriptorOwner } from './staging-descriptors.js';

const fdatasyncLater = promisify(fdatasync);

const FALLOC_FL_KEEP_SIZE = 1;
const FALLOC_FL_PUNCH_HOLE = 2;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const ZEROS = new Uint8Array(1 << 16);

export interface StagingEvents {
  /** Its data is to be on the disk, and the journal is to say so. */
  sync(): Promise<void>;
  /** The disk has lost data of it. */
  lost(errno: number): void;
  /** Before it is used for the first time by this daemon, if a former one made it. @throws an error of the file system */
  takeOver(file: StagingFile): void;
}

export class StagingFile implements DescriptorOwner {
  /** Negative: it is not open. */
  #fd = -1;
  #made: boolean;
  #takenOver: boolean;
  #ended = false;
  /** It would be found again after a power failure. */
  #isNamed = false;
  /** Calls under way that use the descriptor. */
  #users = 0;
  readonly #syncs = new Set<Promise<void>>();
  used = false;

  /** `left`: a former daemon has made it. */
  constructor(
    readonly directory: CacheDirectory,
    readonly id: number,
    readonly events: StagingEvents,
    left = false,
  ) {
    this.#made = left;
    this.#takenOver = !left;
  }

  /** There is one, open or not. */
  get made(): boolean {
    return this.#made;
  }

  /** Opened, or made if need be. @returns −1 when it was given up. @throws an error of the file system */
  fd(): number {
    this.used = true;
    return this.#fd >= 0 || this.#ended ? this.#fd : this.#open();
  }

  #open(): number {
    this.directory.descriptors.makeRoom();
    this.#fd = this.directory.openStaging(this.id, !this.#made);
    this.#made = true;
    this.directory.descriptors.opened(this);
    if (!this.#takenOver) {
      try {
        this.events.takeOver(this);
      } catch (error) {
        this.#close();
        throw error;
      }
      this.#takenOver = true;
    }
    return this.#fd;
  }

  /** The descriptor stays open until `body` is over. */
  async using<T>(body: (fd: number) => Promise<T>): Promise<T> {
    const fd = this.fd();
    this.#users++;
    try {
      return await body(fd);
    } finally {
      this.#users--;
    }
  }

  /** @throws an error of the file system */
  setSize(bytes: number): void {
    ftruncateSync(this.fd(), bytes);
  }

  /** At least so many bytes. @throws an error of the file system */
  grow(bytes: number): void {
    const fd = this.fd();
    if (bytes > fstatSync(fd).size) ftruncateSync(fd, bytes);
  }

  /** From here on it is a hole. It gets no shorter, since somebody may be sending it. @throws an error of the file system */
  clear(from: number): void {
    const { size } = fstatSync(this.fd());
    if (size > from) this.punch(from, size);
  }

  /** [from, to) is a hole. @throws an error of the file system: then what there was may be there still */
  punch(from: number, to: number): void {
    const fd = this.fd();
    if (c.fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, to - from) === 0) return;
    // A file system without holes in files, or without room for one more: zeros over what is there need none
    const end = Math.min(to, fstatSync(fd).size);
    for (let at = from; at < end; ) {
      const data = c.lseek(fd, at, SEEK_DATA);
      if (data < 0) {
        if (c.errno() === E.NXIO) return;
        throw systemError(c.errno(), 'lseek', this.directory.stagingPath(this.id));
      }
      const hole = Math.min(end, c.lseek(fd, data, SEEK_HOLE));
      for (at = data; at < hole; ) at += writeSync(fd, ZEROS, 0, Math.min(ZEROS.length, hole - at), at);
    }
  }

  /** From its beginning; what is behind its end stays as it is in `into`. @throws an error of the file system */
  read(into: Uint8Array): void {
    const fd = this.fd();
    for (let at = 0, n = -1; at < into.length && n !== 0; at += n) n = readSync(fd, into, at, into.length - at, at);
  }

  write(content: Uint8Array, at: number): void {
    for (let done = 0; done < content.length; ) done += writeSync(this.fd(), content, done, content.length - done, at + done);
  }

  /** Its data outlives the machine. @throws an error of the file system: then nobody knows what of its data there still is */
  async sync(): Promise<void> {
    if (!this.#made || this.#ended) return;
    const sync = this.using(fdatasyncLater);
    const done = sync.then(() => undefined, () => undefined);
    this.#syncs.add(done);
    try {
      await Promise.all([sync, ...(this.#isNamed ? [] : [this.directory.syncStaging()])]);
      this.#isNamed = true;
    } finally {
      this.#syncs.delete(done);
    }
  }

  /** All that was read of it so far is good. @throws an error of the disk */
  verify(): void {
    if (this.#fd < 0) return;
    const errno = writebackError(this.#fd);
    if (errno === 0) return;
    this.events.lost(errno);
    throw systemError(errno, 'sync_file_range', this.directory.stagingPath(this.id));
  }

  /** No sync is under way; how it ended is for others to hear. */
  async synced(): Promise<void> {
    await Promise.all(this.#syncs);
  }

  get idle(): boolean {
    return this.#fd >= 0 && this.#users === 0 && !this.#ended;
  }

  async retire(): Promise<void> {
    this.used = false;
    // An error of that is kept by whoever owns the file
    await this.events.sync().catch(() => undefined);
    if (this.idle && !this.used) this.#close();
  }

  retireNow(): void {
    try {
      fdatasyncSync(this.#fd);
    } catch (error) {
      this.events.lost(-(thrownErrno(error) ?? -E.IO));
    }
    this.#close();
  }

  /** Nothing of it is needed any more. It is removed after `safe`: when no power failure can make it needed again. */
  remove(safe: (() => Promise<unknown>) | null): void {
    this.#ended = true;
    this.#close();
    if (this.#made) this.directory.removeStaging(this.id, safe);
  }

  /** It stays, for the next daemon. */
  abandon(): void {
    this.#ended = true;
    this.#close();
  }

  #close(): void {
    if (this.#fd < 0) return;
    closeSync(this.#fd);
    // Another file may have that number soon
    this.#fd = -1;
    this.directory.descriptors.closed(this);
  }
}
