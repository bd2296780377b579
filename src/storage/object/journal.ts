/**
 * An append-only file of records that outlives the process: what was acknowledged and is not yet in the bucket.
 *
 * A record is in the kernel's page cache when append() returns, so a killed process loses none; sync() makes them outlive
 * the machine. See journal-frames.ts for what is in the file, and for what counts of it after a power failure.
 */
import { closeSync, constants, fdatasync, fdatasyncSync, fsync, fsyncSync, ftruncateSync, openSync, readSync, renameSync, unlinkSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { E, isDiskFull, systemError, thrownErrno } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import { frame, HEADER, readHeader, readRecords, syncedFrame } from './journal-frames.js';
import { openOwned } from './owned-file.js';

const fdatasyncAsync = promisify(fdatasync);
const fsyncAsync = promisify(fsync);

/** Written or copied at once. */
const PIECE_BYTES = 1 << 20;
/** So much of a successor is synced while everybody waits. */
const REST_BYTES = 64 << 10;
/** So much of the disk is asked for at once. */
const RESERVE_STEP_BYTES = 256 << 10;
const FALLOC_FL_KEEP_SIZE = 1;

/** The bytes cut off at the end, and the file that has them now; null: there was no room for it. */
export interface JournalTail {
  readonly bytes: number;
  readonly path: string | null;
}

export interface OpenedJournal<R> {
  readonly journal: Journal<R>;
  readonly tail: JournalTail | null;
  /** A former version wrote it: it is to be rewritten before anything is appended. */
  readonly isOutdated: boolean;
}

export class Journal<R> {
  #fd: number;
  #bytes: number;
  /** Up to here the file has its blocks of the disk, as far as we have asked for them. */
  #reserved: number;
  #dirty = false;
  /** Bytes that were synced and of which no frame says so; 0: none. */
  #unsaid = 0;
  #failed: Error | null = null;
  /** The sync that is under way, or the last one; and one that begins when that has ended. */
  #syncing: Promise<void> = Promise.resolve();
  #next: Promise<void> | null = null;
  /** How many are under way with the present descriptor. */
  #using = 0;
  /** The file that is going to take the place of this one: what is appended goes to both. */
  #successor: Successor | null = null;

  private constructor(
    readonly path: string,
    fd: number,
    bytes: number,
  ) {
    this.#fd = fd;
    this.#bytes = bytes;
    this.#reserved = bytes;
  }

  /**
   * `accept` gets each record, in order; what it throws ends the opening, and the file stays as it is.
   * @throws JournalError, or an error of the file system
   */
  static open<R>(path: string, accept: (record: R) => void): OpenedJournal<R> {
    const fd = openOwned(path, constants.O_RDWR | constants.O_CREAT);
    try {
      const { bytes: from, isOutdated } = readHeader(path, fd);
      if (from === 0) {
        begin(path, fd);
        return { journal: new Journal<R>(path, fd, HEADER.length), tail: null, isOutdated: false };
      }
      const { end, bytes } = readRecords(path, fd, from, accept);
      const tail = end === bytes ? null : cutTail(path, fd, end, bytes);
      return { journal: new Journal<R>(path, fd, end), tail, isOutdated };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** The records of a journal, without touching it. @returns bytes of a tail that open() would cut off. @throws as open() */
  static read<R>(path: string, accept: (record: R) => void): number {
    let fd: number;
    try {
      fd = openSync(path, constants.O_RDONLY);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return 0;
      throw error;
    }
    try {
      const { bytes: from } = readHeader(path, fd);
      if (from === 0) return 0;
      const { end, bytes } = readRecords(path, fd, from, accept);
      return bytes - end;
    } finally {
      closeSync(fd);
    }
  }

  /** An error of the disk: nothing is accepted until rewrite() has succeeded. */
  get failed(): boolean {
    return this.#failed !== null;
  }

  /** Bytes of the file: when it has grown much larger than what it still says, rewrite() it. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Add records, all of them or none. @throws an error of the file system (full, read-only): then no part of them is there, or
   * no further record will be accepted. Records of at least `spare` bytes will fit behind them, however full the disk gets.
   */
  append(records: readonly R[], spare = 0): void {
    if (this.#failed !== null) throw this.#failed;
    const frames = records.map(frame);
    const bytes = this.#unsaid > 0 ? Buffer.concat([syncedFrame(this.#unsaid), ...frames]) : frames.length === 1 ? frames[0] : Buffer.concat(frames);
    if (spare > 0) this.reserve(bytes.length + spare);
    try {
      writeFully(this.#fd, bytes, this.#bytes);
    } catch (error) {
      try {
        ftruncateSync(this.#fd, this.#bytes);
        this.#reserved = Math.min(this.#reserved, this.#bytes);
      } catch {
        this.#failed = error as Error;
      }
      throw error;
    }
    this.#unsaid = 0;
    this.#bytes += bytes.length;
    this.#dirty = true;
    if (this.#successor !== null) this.#mirror(this.#successor, frames);
  }

  /** Records of so many bytes will fit, however full the disk gets. @throws an error of the file system */
  reserve(bytes: number): void {
    if (this.#failed !== null) throw this.#failed;
    this.#reserved = reserve(this.#fd, this.#reserved, this.#bytes + bytes);
  }

  /** What was appended outlives a crash of the machine. One sync serves all who wait when it begins. */
  sync(): Promise<void> {
    if (!this.#dirty) return this.#next ?? this.#syncing;
    const next = (): Promise<void> => {
      this.#next = null;
      return (this.#syncing = this.#sync());
    };
    this.#next ??= this.#syncing.then(next, next);
    return this.#next;
  }

  async #sync(): Promise<void> {
    const fd = this.#fd;
    const bytes = this.#bytes;
    if (fd < 0) throw this.#failed!;
    this.#dirty = false;
    this.#using++;
    try {
      await fdatasyncAsync(fd);
      if (fd === this.#fd) this.#unsaid = bytes;
    } catch (error) {
      // What is in its place by now was synced as a whole
      if (fd !== this.#fd) return;
      // The kernel may have dropped the pages: to try again would succeed without meaning anything
      this.#failed = error as Error;
      throw error;
    } finally {
      if (fd === this.#fd) this.#using--;
      else closeSync(fd);
    }
  }

  /**
   * Replace all records by these, as one step; also after an error of the disk, which is over then. `spare` as in append().
   * @throws an error of the file system: then it is as it was
   */
  rewrite(records: Iterable<R>, spare = 0): void {
    if (this.#fd < 0) throw this.#failed!;
    this.#giveUp();
    const successor = this.#prepare(records, spare);
    try {
      fsyncSync(successor.fd);
      renameSync(successor.path, this.path);
    } catch (error) {
      discard(successor);
      throw error;
    }
    this.#take(successor);
  }

  /**
   * The same, while records go on being appended: only a few of them are synced while everybody waits.
   * @throws an error of the file system: then it is as it was; EBADF when it was closed or rewritten meanwhile
   */
  async renew(records: Iterable<R>, spare = 0): Promise<void> {
    if (this.#failed !== null) throw this.#failed;
    this.#giveUp();
    const successor = this.#prepare(records, spare);
    this.#successor = successor;
    try {
      let synced: number;
      do {
        synced = successor.bytes;
        await fsyncAsync(successor.fd);
        // An error of mirroring ends it as well
        if (this.#successor !== successor) throw systemError(E.BADF, 'fsync', `${successor.path} was given up`);
      } while (successor.bytes - synced > REST_BYTES);
      fdatasyncSync(successor.fd);
      renameSync(successor.path, this.path);
    } catch (error) {
      if (this.#successor === successor) this.#giveUp();
      closeSync(successor.fd);
      throw error;
    }
    this.#successor = null;
    this.#take(successor);
  }

  #prepare(records: Iterable<R>, spare: number): Successor {
    const path = `${this.path}.new`;
    const fd = openOwned(path, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC);
    const successor: Successor = { path, fd, bytes: 0, reserved: 0 };
    try {
      successor.bytes = writeFrames(fd, records);
      if (spare > 0) successor.reserved = reserve(fd, successor.bytes, successor.bytes + spare);
      return successor;
    } catch (error) {
      discard(successor);
      throw error;
    }
  }

  #mirror(successor: Successor, frames: readonly Buffer[]): void {
    try {
      for (const one of frames) {
        writeFully(successor.fd, one, successor.bytes);
        successor.bytes += one.length;
      }
    } catch {
      // This journal has them: there is no successor then
      this.#giveUp();
    }
  }

  /** Whoever makes the successor finds that out, and closes it. */
  #giveUp(): void {
    if (this.#successor !== null) removeQuietly(this.#successor.path);
    this.#successor = null;
  }

  #take({ fd, bytes, reserved }: Successor): void {
    // Who syncs the old one closes it
    if (this.#using === 0) closeSync(this.#fd);
    this.#using = 0;
    this.#fd = fd;
    this.#bytes = bytes;
    this.#reserved = Math.max(reserved, bytes);
    this.#dirty = false;
    this.#unsaid = bytes;
    this.#failed = null;
    this.#syncing = this.#syncing.catch(() => undefined);
    syncDirectory(this.path);
  }

  /** Nothing is accepted any more. @returns when a sync that was under way is over; a renewal fails, and is waited for by who asked for it */
  async close(): Promise<void> {
    this.#giveUp();
    if (this.#using === 0 && this.#fd >= 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#failed ??= systemError(E.BADF, 'write', `${this.path} is closed`);
    await this.#syncing.catch(() => undefined);
  }
}

interface Successor {
  readonly path: string;
  readonly fd: number;
  bytes: number;
  reserved: number;
}

function discard({ fd, path }: Successor): void {
  closeSync(fd);
  removeQuietly(path);
}

/** Where the disk fails it stays, and the next one is made in its place. */
function removeQuietly(path: string): void {
  try {
    unlinkSync(path);
  } catch (error) {
    if (thrownErrno(error) === null) throw error;
  }
}

function writeFully(fd: number, bytes: Uint8Array, at: number): void {
  for (let done = 0; done < bytes.length; ) done += writeSync(fd, bytes, done, bytes.length - done, at + done);
}

/** Blocks of the disk for everything up to `end`; the file gets no longer. @returns up to where they are there. @throws when there are none */
function reserve(fd: number, reserved: number, end: number): number {
  if (end <= reserved) return reserved;
  for (const until of [end + RESERVE_STEP_BYTES, end]) {
    if (c.fallocate(fd, FALLOC_FL_KEEP_SIZE, reserved, until - reserved) === 0) return until;
    // A file system that cannot: then nothing is promised
    if (!isDiskFull(c.errno())) return Infinity;
  }
  throw systemError(E.NOSPC, 'fallocate', 'no space left on device');
}

/** An empty journal, also over one whose first line is incomplete. */
function begin(path: string, fd: number): void {
  ftruncateSync(fd, 0);
  writeSync(fd, HEADER, 0);
  fsyncSync(fd);
  syncDirectory(path);
}

function syncDirectory(path: string): void {
  const fd = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  try {
    fsyncSync(fd);
  } finally {
    closeSync(fd);
  }
}

/** The header and all records, in pieces. @returns their bytes */
function writeFrames(fd: number, records: Iterable<unknown>): number {
  let at = 0;
  let held: Buffer[] = [Buffer.from(HEADER)];
  let heldBytes = HEADER.length;
  const flush = (): void => {
    const piece = Buffer.concat(held);
    writeFully(fd, piece, at);
    at += piece.length;
    [held, heldBytes] = [[], 0];
  };
  for (const record of records) {
    const bytes = frame(record);
    held.push(bytes);
    heldBytes += bytes.length;
    if (heldBytes >= PIECE_BYTES) flush();
  }
  flush();
  return at;
}

/** The file that keeps the tail may be evidence. A full disk must not end the start: then the tail goes, which nobody was told is safe. */
function cutTail(path: string, fd: number, end: number, bytes: number): JournalTail {
  const aside = `${path}.tail`;
  const kept = keepTail(aside, fd, end, bytes);
  ftruncateSync(fd, end);
  fsyncSync(fd);
  return { bytes: bytes - end, path: kept ? aside : null };
}

function keepTail(aside: string, fd: number, end: number, bytes: number): boolean {
  let out = -1;
  try {
    out = openOwned(aside, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC);
    const piece = Buffer.allocUnsafe(Math.min(bytes - end, PIECE_BYTES));
    for (let at = end, n = -1; at < bytes && n !== 0; at += n) {
      n = readSync(fd, piece, 0, piece.length, at);
      for (let done = 0; done < n; ) done += writeSync(out, piece, done, n - done);
    }
    return true;
  } catch (error) {
    if (!isDiskFull(-(thrownErrno(error) ?? 0))) throw error;
    if (out >= 0) unlinkSync(aside);
    return false;
  } finally {
    if (out >= 0) closeSync(out);
  }
}
