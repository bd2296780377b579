/**
 * Frames of a journal: how records are written, and which of them count when they are read again.
 *
 *   "BFJ1" | u32 length | u32 crc | JSON in UTF-8           a record (little-endian)
 *   "BFS1" | u32 8      | u32 crc | u64 offset              all bytes before this offset were synced
 *
 * A power failure loses any pages that were not synced, also some in front of others. So the journal ends at the first frame
 * that does not check. A frame that is broken before an offset that was synced is damage: then nothing is touched.
 */
import { fstatSync, readSync } from 'node:fs';
import { crc32 } from 'node:zlib';

const VERSION = 2;
export const HEADER = `bucketfsd journal ${VERSION}\n`;
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

export class JournalError extends Error {
  override readonly name = 'JournalError';
  constructor(
    readonly code: 'version' | 'damaged',
    message: string,
  ) {
    super(message);
  }
}

/** Bytes of the first line; 0 if it is incomplete: the machine went down while the journal was made. @throws JournalError */
export function readHeader(path: string, fd: number): { bytes: number; isOutdated: boolean } {
  const start = Buffer.alloc(64);
  const text = start.toString('latin1', 0, readFully(fd, start, 0));
  if (text.length < HEADER.length && HEADER.startsWith(text)) return { bytes: 0, isOutdated: false };
  const version = HEADER_PATTERN.exec(text);
  if (version === null) throw new JournalError('damaged', `${path} is no journal of bucketfsd; it was left as it is`);
  if (!READABLE.has(version[1])) {
    throw new JournalError('version', `${path} has version ${version[1]}, this bucketfsd knows version ${VERSION}: start the one that wrote it; nothing was changed`);
  }
  return { bytes: version[0].length, isOutdated: version[0] !== HEADER };
}

/** @returns bytes read: fewer than there is room for only at the end of the file */
function readFully(fd: number, into: Buffer, at: number): number {
  let have = 0;
  for (let n = -1; have < into.length && n !== 0; have += n) n = readSync(fd, into, have, into.length - have, at + have);
  return have;
}

export function frame(record: unknown): Buffer {
  const payload = Buffer.from(JSON.stringify(record));
  if (payload.length > RECORD_MAX_BYTES) throw new RangeError(`a journal record of ${payload.length} bytes`);
  return framed(RECORD_MARK, payload);
}

export function syncedFrame(offset: number): Buffer {
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
export function readRecords<R>(path: string, fd: number, from: number, accept: (record: R) => void): { end: number; bytes: number } {
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
