/** The records of a journal that describe the content of one file: as it was synced, and what came since. */
import { Extents, type Extent } from '../extents.js';
import { isSameContent, type Content, type JournalRecord } from './records.js';

/** A record has a bound, and a file may be staged in very many pieces: most of them have records of their own then. */
const DESCRIBED_PIECES = 1000;

export interface DescribedContent {
  readonly now: Content;
  /** What the last sync made sure of, if the object does not have it. */
  readonly synced: Content | null;
  /** Something was written, or cut, since then. */
  readonly isChanged: boolean;
  /** Ranges that the disk has lost. */
  readonly lost: readonly Extent[];
}

/** Records that belong to a moment of the content. */
export interface PlacedRecords {
  /** The one that it begins with. */
  file(content: Content): JournalRecord;
  /** Where the content is what was synced, or is now if nothing was; and where it is what it is now. */
  readonly synced: readonly JournalRecord[];
  readonly now: readonly JournalRecord[];
}

export function* describeContent(id: number, { now, synced, isChanged, lost }: DescribedContent, records: PlacedRecords): Generator<JournalRecord> {
  const first = synced ?? now;
  yield records.file({ ...first, staged: first.staged.slice(0, DESCRIBED_PIECES) });
  for (const { from, to } of first.staged.slice(DESCRIBED_PIECES)) yield { t: 'wrote', id, from, to, fetched: true };
  if (synced !== null) yield { t: 'synced', id, after: 0 };
  yield* records.synced;
  if (synced !== null) yield* changesSince(id, synced, now);
  // What was written over other staged bytes needs no record but this: what comes behind it is newer than what was synced
  if (synced !== null && isChanged) yield { t: 'cut', id, size: now.size, fetched: true };
  yield* records.now;
  yield* describeLost(id, lost);
}

export function* describeLost(id: number, lost: readonly Extent[]): Generator<JournalRecord> {
  for (let at = 0; at < lost.length; at += DESCRIBED_PIECES) yield { t: 'lost', id, ranges: lost.slice(at, at + DESCRIBED_PIECES) };
}

/** Records that make the present content of one before. */
function* changesSince(id: number, before: Content, now: Content): Generator<JournalRecord> {
  if (isSameContent(before, now)) return;
  const had = Extents.of(before.size, before.objectBytes, before.staged);
  const kept = Extents.of(now.size, 0, now.staged);
  // What was staged and is so no more was cut off
  const gone = before.staged.flatMap(({ from, to }) => (from < now.size ? kept.pieces(from, to).filter(({ where }) => where !== 'staged') : [{ from }]));
  const cut = Math.min(now.objectBytes < before.objectBytes ? now.objectBytes : Infinity, gone[0]?.from ?? Infinity);
  if (cut < Infinity) {
    had.truncate(cut);
    yield { t: 'cut', id, size: cut, fetched: true };
  }
  for (const { from, to } of now.staged) {
    if (to <= had.size && had.pieces(from, to).every(({ where }) => where === 'staged')) continue;
    had.write(from, to);
    yield { t: 'wrote', id, from, to, fetched: true };
  }
  if (had.size !== now.size) yield { t: 'cut', id, size: now.size, fetched: true };
}
