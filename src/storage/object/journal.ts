/**
 * An append-only file of records that outlives the process: what was acknowledged and is not yet in the bucket.
 *
 * A record is in the kernel's page cache when append() returns, so a killed process loses none; sync() makes them outlive
 * the machine. The file begins with a line that names its version. A frame is a mark, its length, the CRC-32 of its
 * payload, and the payload:
 *
 *   "BFJ1" | u32 length | u32 crc | JSON in UTF-8           a record (little-endian)
 *   "BFS1" | u32 8      | u32 crc | u64 offset              all bytes before this offset were synced
 *
 * A power failure loses any pages that were not synced, also some in front of others. So the journal ends at the first frame
 * that does not check: the rest is cut off and kept beside. A frame that is broken before an offset that was synced is
 * damage: then nothing is touched, and open() refuses.
 */
import { closeSync, constants, fdatasync, fstatSync, fsyncSync, ftruncateSync, openSync, readSync, renameSync, unlinkSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import { E, isDiskFull, systemError } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';

const fdatasyncAsync = promisify(fdatasync);

const VERSION = 2;
const HEADER = `bucketfsd journal ${VERSION}\n`;
const HEADER_PATTERN = /^bucketfsd journal (\d{1,9})\n/;
/** Version 1 has the same records, without offsets that were synced. */
const READABLE: ReadonlySet<string> = new Set(['1', String(VERSION)]);
const RECORD_MARK = Buffer.from('BFJ1');
const SYNCED_MARK = Buffer.from('BFS1');
const MARK_BYTES = 4;
const FRAME_BYTES = 12;
/** A record says what to do with one object: its key, some metadata, a list of parts. */
const RECORD_MAX_BYTES = 4 << 20;
/** Bytes of the file in memory while it is read: at least one frame. */
const WINDOW_BYTES = 2 * RECORD_MAX_BYTES;
/** Written or copied at once. */
const PIECE_BYTES = 1 << 20;
/** So much of the disk is asked for at once. */
const RESERVE_STEP_BYTES = 256 << 10;
const FALLOC_FL_KEEP_SIZE = 1;

export class JournalError extends Error {
  override readonly name = 'JournalError';
  constructor(
    readonly code: 'version' | 'damaged',
    message: string,
  ) {
    super(message);
  }
}

/** The bytes cut off at the end, and the file that has them now; null: there was no room for it. */
export interface JournalTail {
  readonly bytes: number;
  readonly path: string | null;
}

export interface OpenedJournal<R> {
  readonly journal: Journal<R>;
  readonly tail: JournalTail | null;
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
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      const from = headerBytes(path, fd);
      if (from === 0) {
        begin(path, fd);
        return { journal: new Journal<R>(path, fd, HEADER.length), tail: null };
      }
      const { end, bytes } = readRecords(path, fd, from, accept);
      const tail = end === bytes ? null : cutTail(path, fd, end, bytes);
      return { journal: new Journal<R>(path, fd, end), tail };
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
      const from = headerBytes(path, fd);
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
    if (this.#unsaid > 0) frames.unshift(syncedFrame(this.#unsaid));
    const bytes = frames.length === 1 ? frames[0] : Buffer.concat(frames);
    if (spare > 0) this.reserve(bytes.length + spare);
    let written = 0;
    try {
      while (written < bytes.length) written += writeSync(this.#fd, bytes, written, bytes.length - written, this.#bytes + written);
    } catch (error) {
      try {
        if (written > 0) ftruncateSync(this.#fd, this.#bytes);
        this.#reserved = Math.min(this.#reserved, this.#bytes);
      } catch {
        this.#failed = error as Error;
      }
      throw error;
    }
    this.#unsaid = 0;
    this.#bytes += bytes.length;
    this.#dirty = true;
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
    const next = `${this.path}.new`;
    const fd = openSync(next, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
    let bytes = 0;
    let reserved = 0;
    try {
      bytes = writeFrames(fd, records);
      if (spare > 0) reserved = reserve(fd, bytes, bytes + spare);
      fsyncSync(fd);
      renameSync(next, this.path);
    } catch (error) {
      closeSync(fd);
      unlinkSync(next);
      throw error;
    }
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

  /** Nothing is accepted any more. */
  close(): void {
    if (this.#using === 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#failed ??= systemError(E.BADF, 'write', `${this.path} is closed`);
  }
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

/** Bytes of the first line; 0 if it is incomplete: the machine went down while the journal was made. @throws JournalError */
function headerBytes(path: string, fd: number): number {
  const start = Buffer.alloc(64);
  const text = start.toString('latin1', 0, readFully(fd, start, 0));
  if (text.length < HEADER.length && HEADER.startsWith(text)) return 0;
  const version = HEADER_PATTERN.exec(text);
  if (version === null) throw new JournalError('damaged', `${path} is no journal of bucketfsd; it was left as it is`);
  if (!READABLE.has(version[1])) {
    throw new JournalError('version', `${path} has version ${version[1]}, this bucketfsd knows version ${VERSION}: start the one that wrote it; nothing was changed`);
  }
  return version[0].length;
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

/** @returns bytes read: fewer than there is room for only at the end of the file */
function readFully(fd: number, into: Buffer, at: number): number {
  let have = 0;
  for (let n = -1; have < into.length && n !== 0; have += n) n = readSync(fd, into, have, into.length - have, at + have);
  return have;
}

function frame(record: unknown): Buffer {
  const payload = Buffer.from(JSON.stringify(record));
  if (payload.length > RECORD_MAX_BYTES) throw new RangeError(`a journal record of ${payload.length} bytes`);
  return framed(RECORD_MARK, payload);
}

function syncedFrame(offset: number): Buffer {
  const payload = Buffer.alloc(8);
  payload.writeBigUInt64LE(BigInt(offset));
  return framed(SYNCED_MARK, payload);
}

function framed(mark: Buffer, payload: Buffer): Buffer {
  const head = Buffer.alloc(FRAME_BYTES);
  mark.copy(head);
  head.writeUInt32LE(payload.length, MARK_BYTES);
  head.writeUInt32LE(crc32(payload), 8);
  return Buffer.concat([head, payload]);
}

/** The header and all records, in pieces. @returns their bytes */
function writeFrames(fd: number, records: Iterable<unknown>): number {
  let at = 0;
  let held: Buffer[] = [Buffer.from(HEADER)];
  let heldBytes = HEADER.length;
  const flush = (): void => {
    const piece = Buffer.concat(held);
    for (let done = 0; done < piece.length; ) done += writeSync(fd, piece, done, piece.length - done, at + done);
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

const hasMark = (content: Buffer, at: number, mark: Buffer): boolean => content.compare(mark, 0, MARK_BYTES, at, at + MARK_BYTES) === 0;

/** Bytes of the whole, undamaged frame at `at`, or 0. */
function frameAt(content: Buffer, at: number): number {
  if (at + FRAME_BYTES > content.length) return 0;
  const synced = hasMark(content, at, SYNCED_MARK);
  if (!synced && !hasMark(content, at, RECORD_MARK)) return 0;
  const length = content.readUInt32LE(at + MARK_BYTES);
  const end = at + FRAME_BYTES + length;
  if (length > RECORD_MAX_BYTES || end > content.length || (synced && length !== 8)) return 0;
  return crc32(content.subarray(at + FRAME_BYTES, end)) === content.readUInt32LE(at + 8) ? FRAME_BYTES + length : 0;
}

/** The records up to the first frame that does not check. @returns where that is, and bytes of the file. @throws JournalError */
function readRecords<R>(path: string, fd: number, from: number, accept: (record: R) => void): { end: number; bytes: number } {
  const { size: bytes } = fstatSync(fd);
  const window = Buffer.allocUnsafe(Math.min(WINDOW_BYTES, bytes));
  let at = from;
  for (;;) {
    const content = window.subarray(0, readFully(fd, window, at));
    let used = 0;
    for (let n = frameAt(content, 0); n > 0; n = frameAt(content, used)) {
      if (hasMark(content, used, RECORD_MARK)) accept(JSON.parse(content.toString('utf8', used + FRAME_BYTES, used + n)) as R);
      used += n;
    }
    at += used;
    if (used === 0 || at >= bytes) break;
  }
  if (at < bytes && syncedBehind(fd, at, window) > at) {
    throw new JournalError('damaged', `${path} is damaged at byte ${at}, which had been on the disk: restore it, or move it away to give up what it says; nothing was changed`);
  }
  return { end: at, bytes };
}

/** The largest offset that any good frame behind `from` says was synced; 0: none does. */
function syncedBehind(fd: number, from: number, window: Buffer): number {
  let synced = 0;
  for (let at = from, n = -1; n !== 0; ) {
    n = readFully(fd, window, at);
    const content = window.subarray(0, n);
    for (let mark = content.indexOf(SYNCED_MARK); mark >= 0; mark = content.indexOf(SYNCED_MARK, mark + 1)) {
      if (frameAt(content, mark) > 0) synced = Math.max(synced, Number(content.readBigUInt64LE(mark + FRAME_BYTES)));
    }
    // One that begins at the end of this window is whole in the next
    if (n < window.length) break;
    at += n - FRAME_BYTES - 8;
  }
  return synced;
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
    out = openSync(aside, constants.O_WRONLY | constants.O_CREAT | constants.O_TRUNC, 0o600);
    const piece = Buffer.allocUnsafe(Math.min(bytes - end, PIECE_BYTES));
    for (let at = end, n = -1; at < bytes && n !== 0; at += n) {
      n = readSync(fd, piece, 0, piece.length, at);
      for (let done = 0; done < n; ) done += writeSync(out, piece, done, n - done);
    }
    return true;
  } catch (error) {
    if (!isDiskFull(-((error as NodeJS.ErrnoException).errno ?? 0))) throw error;
    if (out >= 0) unlinkSync(aside);
    return false;
  } finally {
    if (out >= 0) closeSync(out);
  }
}
