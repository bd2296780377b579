/** How a file is cut into the parts of an upload. */
import type { Extents } from '../extents.js';
import type { Capabilities, Limits } from '../store.js';

const MIB = 1 << 20;

export interface CommitSizes {
  /** What is not larger goes as one put. */
  readonly putMaxBytes: number;
  /** Of a part, as long as the file then fits into the provider's number of parts. */
  readonly partBytes: number;
  /** Of what the server copies as one part. */
  readonly copyMaxBytes: number;
  /** An upload that begins before the file's size is known has parts twice as large after so many. */
  readonly growAfterParts: number;
  /** On their way at the same time, of one file. */
  readonly partsAtOnce: number;
}

export const COMMIT_SIZES: CommitSizes = { putMaxBytes: 16 * MIB, partBytes: 8 * MIB, copyMaxBytes: 1 << 30, growAfterParts: 500, partsAtOnce: 8 };

/** Where the n-th part begins, counted from 0. */
export interface Layout {
  start(index: number): number;
  /** Bytes that fit into the provider's number of parts. */
  readonly capacity: number;
}

/** Parts of one size, for a file of known size. @returns null if the provider takes no file of that size */
export function uniformLayout(size: number, sizes: CommitSizes, limits: Limits): Layout | null {
  const least = Math.max(sizes.partBytes, limits.partMinBytes);
  const unit = Math.min(MIB, least);
  const bytes = Math.max(least, Math.ceil(Math.ceil(size / limits.parts) / unit) * unit);
  const part = Math.min(bytes, limits.partMaxBytes);
  return part * limits.parts < size ? null : { start: (index) => index * part, capacity: part * limits.parts };
}

/** Parts that grow, for a file that is still being written. */
export function growingLayout(sizes: CommitSizes, limits: Limits): Layout {
  const first = Math.max(sizes.partBytes, limits.partMinBytes);
  const start = (index: number): number => {
    let at = 0;
    let bytes = first;
    for (let left = index; left > 0; left -= sizes.growAfterParts) {
      at += Math.min(left, sizes.growAfterParts) * bytes;
      bytes = Math.min(limits.partMaxBytes, bytes * 2);
    }
    return at;
  };
  return { start, capacity: start(limits.parts) };
}

export interface Cell {
  /** Of the part, from 1. */
  readonly number: number;
  readonly from: number;
  readonly to: number;
  /** Copied on the server from the object that the file was opened from. */
  readonly copied: boolean;
}

/**
 * The parts of the file as it is now. What is as it was in the object (`baseBytes` long) is copied on the server, several
 * parts as one, if the provider does that.
 */
export function cellsOf(extents: Extents, layout: Layout, baseBytes: number, sizes: CommitSizes, limits: Limits, copyPart: Capabilities['copyPart']): Cell[] {
  const { size } = extents;
  const unchanged = (from: number, to: number): boolean => {
    const [piece] = extents.pieces(from, to);
    return piece !== undefined && piece.where === 'object' && piece.to === to;
  };
  // All of the object, and something behind it: the one thing that can be copied where only whole objects can
  const after = copyPart === 'whole' && baseBytes <= size && unchanged(0, baseBytes) ? indexAfterFirst(baseBytes, layout, limits) : 0;
  const whole = after > 0 ? baseBytes : 0;
  const cells: Cell[] = whole > 0 ? [{ number: 1, from: 0, to: whole, copied: true }] : [];
  const copyMax = Math.min(sizes.copyMaxBytes, limits.partMaxBytes);
  for (let index = after, at = whole; at < size; index++) {
    const to = Math.min(size, layout.start(index + 1));
    const copied = copyPart === 'range' && unchanged(at, to);
    const before = cells.at(-1);
    if (copied && before?.copied === true && to - before.from <= copyMax) cells[cells.length - 1] = { ...before, to };
    else cells.push({ number: index + 1, from: at, to, copied });
    at = to;
  }
  return cells;
}

/** The part that follows a first one of so many bytes, if both are then of a size that may be; else 0. */
function indexAfterFirst(bytes: number, layout: Layout, limits: Limits): number {
  const least = Math.max(1, limits.partMinBytes);
  if (bytes < least || bytes > limits.partMaxBytes) return 0;
  let index = 1;
  while (layout.start(index + 1) < bytes + least) index++;
  return index < limits.parts && layout.start(index + 1) - bytes <= limits.partMaxBytes ? index : 0;
}
