/** The log of a disk (disk.c), and what the disk may hold of it after a power failure. */
import { closeSync, openSync, readFileSync, readSync, writeSync } from 'node:fs';
import type { Random } from '../../model/random.js';

const RECORD_BYTES = 16;
const WRITE = 1;
const FLUSH = 2;

/** A write, or a completed flush (no bytes). Places are offsets in the log's file. */
export interface LogRecord {
  readonly kind: 'write' | 'flush';
  readonly at: number;
  readonly end: number;
  /** On the disk. */
  readonly offset: number;
  readonly bytes: number;
}

/** A part of a write that has reached the disk. */
export interface Piece {
  readonly record: LogRecord;
  readonly from: number;
  readonly to: number;
}

/** What becomes of the writes that no flush has followed. */
export const LOSSES = ['all', 'none', 'some', 'most', 'all but one', 'none but one'] as const;
export type Loss = (typeof LOSSES)[number];

export function readLog(path: string): LogRecord[] {
  const content = readFileSync(path);
  const records: LogRecord[] = [];
  for (let at = 0; at + RECORD_BYTES <= content.length; ) {
    const kind = content.readUInt32LE(at);
    const bytes = content.readUInt32LE(at + 4);
    if (kind !== WRITE && kind !== FLUSH) throw new Error(`${path} is no log of a disk (at ${at})`);
    const end = at + RECORD_BYTES + bytes;
    records.push({ kind: kind === WRITE ? 'write' : 'flush', at, end, offset: Number(content.readBigUInt64LE(at + 8)), bytes });
    at = end;
  }
  return records;
}

/** Records up to a place of the log: `durable` by the last flush, and those behind it. */
export function splitAt(records: readonly LogRecord[], end: number): { durable: LogRecord[]; loose: LogRecord[] } {
  const before = records.filter((record) => record.end <= end);
  const flush = before.findLastIndex(({ kind }) => kind === 'flush');
  return { durable: before.slice(0, flush + 1).filter(({ kind }) => kind === 'write'), loose: before.slice(flush + 1) };
}

/** Which parts of the writes that no flush has followed are there; the disk may have written them in any order. */
export function survivors(loose: readonly LogRecord[], loss: Loss, tornBytes: number, random: Random): Piece[] {
  const one = loose.length === 0 ? -1 : random.below(loose.length);
  const stays = (i: number): boolean => {
    switch (loss) {
      case 'all':
        return false;
      case 'none':
        return true;
      case 'some':
        return random.chance(70);
      case 'most':
        return random.chance(20);
      case 'all but one':
        return i === one;
      case 'none but one':
        return i !== one;
    }
  };
  return loose.flatMap((record, i) => {
    if (!stays(i)) return [];
    const torn = loss !== 'none' && record.bytes > tornBytes && random.chance(25);
    return torn ? tornPieces(record, tornBytes, random) : [{ record, from: 0, to: record.bytes }];
  });
}

function tornPieces(record: LogRecord, tornBytes: number, random: Random): Piece[] {
  const pieces: Piece[] = [];
  const percent = random.pick([10, 50, 90]);
  for (let from = 0; from < record.bytes; from += tornBytes) {
    if (random.chance(percent)) pieces.push({ record, from, to: Math.min(record.bytes, from + tornBytes) });
  }
  return pieces;
}

export const whole = (records: readonly LogRecord[]): Piece[] => records.map((record) => ({ record, from: 0, to: record.bytes }));

/** Do the writes on an image, which is as it was before the log began. */
export function applyToImage(logPath: string, records: readonly LogRecord[], image: string): void {
  const [log, out] = [openSync(logPath, 'r'), openSync(image, 'r+')];
  for (const { at, bytes, offset } of records) {
    const data = Buffer.allocUnsafe(bytes);
    readSync(log, data, 0, bytes, at + RECORD_BYTES);
    writeSync(out, data, 0, bytes, offset);
  }
  closeSync(log);
  closeSync(out);
}

/** A log of pieces of others, to be replayed in this order. */
export function writeReplay(path: string, from: readonly { readonly logPath: string; readonly pieces: readonly Piece[] }[]): void {
  const out = openSync(path, 'w');
  for (const { logPath, pieces } of from) {
    const log = openSync(logPath, 'r');
    for (const { record, from: start, to } of pieces) {
      const bytes = to - start;
      const data = Buffer.alloc(RECORD_BYTES + bytes);
      data.writeUInt32LE(WRITE, 0);
      data.writeUInt32LE(bytes, 4);
      data.writeBigUInt64LE(BigInt(record.offset + start), 8);
      readSync(log, data, RECORD_BYTES, bytes, record.at + RECORD_BYTES + start);
      writeSync(out, data);
    }
    closeSync(log);
  }
  closeSync(out);
}
