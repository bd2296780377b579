/**
 * An append-only file of records that outlives the process: what was acknowledged and is not yet in the bucket.
 *
 * A record is in the kernel's page cache when append() returns, so a killed process loses none; sync() makes them outlive
 * the machine. The file begins with a line that names its version; a record is a mark, its length, the CRC-32 of its
 * payload, and the payload, JSON in UTF-8:
 *
 *   "BFJ1" | u32 length | u32 crc | length bytes            (little-endian)
 *
 * What is broken at the end was being written when the machine went down, and was never acknowledged as synced: it is cut
 * off, and kept aside. What is broken in the middle was damaged afterwards: then nothing is touched, and open() refuses.
 */
import { closeSync, constants, fdatasync, fstatSync, fsyncSync, ftruncateSync, openSync, readFileSync, readSync, renameSync, unlinkSync, writeFileSync, writeSync } from 'node:fs';
import { dirname } from 'node:path';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import { E, isDiskFull } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';

const fdatasyncAsync = promisify(fdatasync);

const HEADER = 'bucketfsd journal 1\n';
const HEADER_PATTERN = /^bucketfsd journal (\d{1,9})\n/;
const MARK = Buffer.from('BFJ1');
const FRAME_BYTES = 12;
/** A record says what to do with one object: its key, some metadata, a list of parts. */
const RECORD_MAX_BYTES = 4 << 20;
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

export interface OpenedJournal<R> {
  readonly journal: Journal<R>;
  readonly records: R[];
  /** Bytes cut off at the end, and where they are now. */
  readonly tail: { readonly bytes: number; readonly path: string } | null;
}

export class Journal<R> {
  #fd: number;
  #bytes: number;
  /** Up to here the file has its blocks of the disk, as far as we have asked for them. */
  #reserved: number;
  #dirty = false;
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

  /** @throws JournalError, or an error of the file system. */
  static open<R>(path: string): OpenedJournal<R> {
    const fd = openSync(path, constants.O_RDWR | constants.O_CREAT, 0o600);
    try {
      const content = readAll(fd);
      const from = headerBytes(path, content);
      if (from === 0) {
        begin(path, fd);
        return { journal: new Journal<R>(path, fd, HEADER.length), records: [], tail: null };
      }
      const { records, end } = parse<R>(path, content, from);
      const tail = end === content.length ? null : cutTail(path, fd, content, end);
      return { journal: new Journal<R>(path, fd, end), records, tail };
    } catch (error) {
      closeSync(fd);
      throw error;
    }
  }

  /** What a journal says, without touching it. @throws as open() */
  static read<R>(path: string): { readonly records: R[]; readonly tailBytes: number } {
    let content: Buffer;
    try {
      content = readFileSync(path);
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code === 'ENOENT') return { records: [], tailBytes: 0 };
      throw error;
    }
    const from = headerBytes(path, content);
    if (from === 0) return { records: [], tailBytes: 0 };
    const { records, end } = parse<R>(path, content, from);
    return { records, tailBytes: content.length - end };
  }

  /** Bytes of the file: when it has grown much larger than what it still says, rewrite() it. */
  get bytes(): number {
    return this.#bytes;
  }

  /**
   * Add a record. @throws an error of the file system (full, read-only): then the record is not there, nor is any part of
   * it, or no further record will be accepted. Records of at least `spare` bytes will fit behind it, however full the disk gets.
   */
  append(record: R, spare = 0): void {
    if (this.#failed !== null) throw this.#failed;
    const bytes = frame(record);
    if (spare > 0) this.#reserved = reserve(this.#fd, this.#reserved, this.#bytes + bytes.length + spare);
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
    this.#bytes += bytes.length;
    this.#dirty = true;
  }

  /** What was appended outlives a crash of the machine. One sync serves all who wait when it begins. */
  sync(): Promise<void> {
    if (!this.#dirty) return this.#next ?? this.#syncing;
    this.#next ??= this.#syncing.then(() => {
      this.#next = null;
      return (this.#syncing = this.#sync());
    });
    return this.#next;
  }

  async #sync(): Promise<void> {
    const fd = this.#fd;
    this.#dirty = false;
    this.#using++;
    try {
      await fdatasyncAsync(fd);
    } catch (error) {
      // The kernel may have dropped the pages: to try again would succeed without meaning anything
      this.#failed = error as Error;
      throw error;
    } finally {
      if (fd === this.#fd) this.#using--;
      else closeSync(fd);
    }
  }

  /** Replace all records by these, as one step. @throws an error of the file system: then it is as it was. `spare` as in append() */
  rewrite(records: readonly R[], spare = 0): void {
    if (this.#failed !== null) throw this.#failed;
    const next = `${this.path}.new`;
    const content = Buffer.concat([Buffer.from(HEADER), ...records.map(frame)]);
    const fd = openSync(next, constants.O_RDWR | constants.O_CREAT | constants.O_TRUNC, 0o600);
    let reserved = 0;
    try {
      for (let at = 0; at < content.length; ) at += writeSync(fd, content, at, content.length - at, at);
      if (spare > 0) reserved = reserve(fd, content.length, content.length + spare);
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
    this.#bytes = content.length;
    this.#reserved = Math.max(reserved, content.length);
    this.#dirty = false;
    syncDirectory(this.path);
  }

  /** Nothing is accepted any more. */
  close(): void {
    if (this.#using === 0) closeSync(this.#fd);
    this.#fd = -1;
    this.#failed ??= Object.assign(new Error(`${this.path} is closed`), { errno: -E.BADF, code: 'EBADF', syscall: 'write' });
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
  throw Object.assign(new Error('ENOSPC: no space left on device, fallocate'), { errno: -E.NOSPC, code: 'ENOSPC', syscall: 'fallocate' });
}

/** Bytes of the first line; 0 for a journal that was never finished being begun. @throws JournalError */
function headerBytes(path: string, content: Buffer): number {
  if (content.length < HEADER.length && HEADER.startsWith(content.toString('latin1'))) return 0;
  const version = HEADER_PATTERN.exec(content.subarray(0, 64).toString('latin1'));
  if (version === null) throw new JournalError('damaged', `${path} is no journal of bucketfsd; it was left as it is`);
  if (version[1] !== '1') {
    throw new JournalError('version', `${path} has version ${version[1]}, this bucketfsd knows version 1: start the one that wrote it; nothing was changed`);
  }
  return version[0].length;
}

/** An empty journal, also over one whose first line was never finished. */
function begin(path: string, fd: number): void {
  ftruncateSync(fd, 0);
  writeSync(fd, HEADER, 0);
  fsyncSync(fd);
  syncDirectory(path);
}

function syncDirectory(path: string): void {
  const fd = openSync(dirname(path), constants.O_RDONLY | constants.O_DIRECTORY);
  fsyncSync(fd);
  closeSync(fd);
}

function readAll(fd: number): Buffer {
  const content = Buffer.alloc(fstatSync(fd).size);
  let at = 0;
  for (let n = -1; at < content.length && n !== 0; at += n) n = readSync(fd, content, at, content.length - at, at);
  return content.subarray(0, at);
}

function frame(record: unknown): Buffer {
  const payload = Buffer.from(JSON.stringify(record));
  if (payload.length > RECORD_MAX_BYTES) throw new RangeError(`a journal record of ${payload.length} bytes`);
  const head = Buffer.alloc(FRAME_BYTES);
  MARK.copy(head);
  head.writeUInt32LE(payload.length, 4);
  head.writeUInt32LE(crc32(payload), 8);
  return Buffer.concat([head, payload]);
}

/** Bytes of the whole, undamaged record at `at`, or 0. */
function recordAt(content: Buffer, at: number): number {
  if (at + FRAME_BYTES > content.length || content.compare(MARK, 0, MARK.length, at, at + MARK.length) !== 0) return 0;
  const length = content.readUInt32LE(at + 4);
  const end = at + FRAME_BYTES + length;
  if (length > RECORD_MAX_BYTES || end > content.length) return 0;
  return crc32(content.subarray(at + FRAME_BYTES, end)) === content.readUInt32LE(at + 8) ? FRAME_BYTES + length : 0;
}

function parse<R>(path: string, content: Buffer, from: number): { records: R[]; end: number } {
  const records: R[] = [];
  let at = from;
  for (let bytes = recordAt(content, at); bytes > 0; bytes = recordAt(content, at)) {
    records.push(JSON.parse(content.toString('utf8', at + FRAME_BYTES, at + bytes)) as R);
    at += bytes;
  }
  for (let mark = content.indexOf(MARK, at); mark >= 0; mark = content.indexOf(MARK, mark + 1)) {
    if (recordAt(content, mark) === 0) continue;
    throw new JournalError('damaged', `${path} is damaged at byte ${at}, with good records behind it (byte ${mark}): restore it, or move it away to give up what it says; nothing was changed`);
  }
  return { records, end: at };
}

/** The path is told to people: what was cut off may be evidence. */
function cutTail(path: string, fd: number, content: Buffer, end: number): { bytes: number; path: string } {
  const aside = `${path}.tail`;
  writeFileSync(aside, content.subarray(end), { mode: 0o600 });
  ftruncateSync(fd, end);
  fsyncSync(fd);
  return { bytes: content.length - end, path: aside };
}
