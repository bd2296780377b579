/** How a file is cut into the parts of an upload: what is sent, and what the server copies from the object that there was, or from one of zeros. */
import type { Extent, Extents } from '../extents.js';
import type { Capabilities, Limits, ObjectStore } from '../store.js';

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
  /** Of the object of zeros that is sent; larger ones are copies of it. A multiple of `partBytes`. */
  readonly zeroBytes: number;
  /** Holes of a file that are not more in all are sent like data. */
  readonly holeBytes: number;
}

export const COMMIT_SIZES: CommitSizes = {
  putMaxBytes: 16 * MIB, partBytes: 8 * MIB, copyMaxBytes: 1 << 30, growAfterParts: 500, partsAtOnce: 8, zeroBytes: 32 * MIB, holeBytes: 64 * MIB,
};

const HOLE_SENT_MAX_BYTES = 16 * 2 ** 30;

/** An object of zeros is made of so many of the next smaller one: as many as Google Cloud Storage composes at once. */
export const ZERO_FACTOR = 32;

/** What of a file need not be sent, by what the provider copies into parts. */
export interface Copies {
  /** Of the object that the file was opened from, which has `baseBytes`; 'none' if there is none. */
  readonly base: Capabilities['copyPart'];
  readonly baseBytes: number;
  /** Of objects of zeros. */
  readonly zeros: Capabilities['copyPart'];
}

/** Where the n-th part begins, counted from 0. */
export interface Layout {
  start(index: number): number;
  /** Bytes that fit into the provider's number of parts. */
  readonly capacity: number;
}

export interface Cell {
  /** Of the part, from 1. */
  readonly number: number;
  readonly from: number;
  readonly to: number;
  /** Sent from the staging file, or copied on the server. */
  readonly source: 'staged' | 'object' | 'zeros';
}

const leastPart = (sizes: CommitSizes, limits: Limits): number => Math.max(sizes.partBytes, limits.partMinBytes);

/** No file is larger: more the provider does not take, however it is cut. */
export const fileMaxBytes = ({ objectBytes, parts, partMaxBytes }: Limits): number => Math.min(objectBytes, parts * partMaxBytes);

/** What the content of a file is not larger than. */
export interface ContentLimits {
  readonly fileMaxBytes: number;
  /** Of all its holes. */
  readonly holeMaxBytes: number;
}

/** Where the provider copies nothing holes have to be sent. */
export const contentLimits = ({ limits, capabilities: { copyPart } }: Pick<ObjectStore, 'limits' | 'capabilities'>): ContentLimits =>
  ({ fileMaxBytes: fileMaxBytes(limits), holeMaxBytes: copyPart === 'none' ? HOLE_SENT_MAX_BYTES : Infinity });

/** Sizes of objects of zeros, each made of the one before; none is larger than a part may be. */
export function zeroSizes(sizes: CommitSizes, limits: Limits): number[] {
  const all: number[] = [];
  for (let bytes = sizes.zeroBytes; bytes <= limits.partMaxBytes; bytes *= ZERO_FACTOR) all.push(bytes);
  return all;
}

/**
 * Parts of one size where the file fits into the provider's number of them. Of a larger file those are small that have to be sent, and those large that are
 * copied: a few bytes at the end of a hole of terabytes are a small part and large copies.
 * @returns null if the provider takes no file of that size
 */
export function layoutFor(extents: Extents, copies: Copies, sizes: CommitSizes, limits: Limits): Layout | null {
  const least = leastPart(sizes, limits);
  const { size } = extents;
  for (let part = least; part * limits.parts < size && part <= limits.partMaxBytes; part *= 2) {
    const layout = plannedLayout(extents, copies, part, sizes, limits);
    if (layout !== null) return layout;
  }
  return uniformLayout(size, least, limits);
}

function uniformLayout(size: number, least: number, limits: Limits): Layout | null {
  const unit = Math.min(MIB, least);
  const bytes = Math.max(least, Math.ceil(Math.ceil(size / limits.parts) / unit) * unit);
  const part = Math.min(bytes, limits.partMaxBytes);
  return part * limits.parts < size ? null : { start: (index) => index * part, capacity: part * limits.parts };
}

/** What is sent in parts of `part` bytes, what is copied in larger ones. @returns null where those are too many */
function plannedLayout(extents: Extents, copies: Copies, part: number, sizes: CommitSizes, limits: Limits): Layout | null {
  const first = wholeBase(extents, copies, limits);
  const runs = copiedRuns(extents, copies).flatMap(({ from, to, zeros }) => {
    // Whole parts only, counted from the first one
    const aligned = { from: first + Math.ceil(Math.max(0, from - first) / part) * part, to: first + Math.floor((to - first) / part) * part, zeros };
    return aligned.from < aligned.to ? [aligned] : [];
  });
  const copied = runs.reduce((sum, { from, to }) => sum + to - from, 0);
  const sent = Math.ceil((extents.size - first - copied) / part);
  const left = limits.parts - 1 - sent - runs.length;
  if (left <= 0) return null;
  const large = part * Math.max(1, Math.ceil(copied / (left * part)));
  if (large > limits.partMaxBytes) return null;
  const starts = first > 0 ? [0, first] : [0];
  const cut = (to: number, by: number): void => {
    for (let at = starts[starts.length - 1]; at + by <= to && starts.length <= limits.parts; ) starts.push((at += by));
  };
  for (const { from, to, zeros } of runs) {
    cut(from, part);
    if (zeros && copies.zeros === 'whole') {
      // What can only be copied as a whole there is of certain sizes
      for (const bytes of zeroSizes(sizes, limits).filter((bytes, i, all) => bytes % part === 0 && (i === 0 || all[i - 1] < large)).reverse()) cut(to, bytes);
      cut(to, part);
    } else {
      cut(to, large);
      if (starts[starts.length - 1] < to) starts.push(to);
    }
  }
  while (starts[starts.length - 1] < extents.size && starts.length <= limits.parts) cut(starts[starts.length - 1] + part, part);
  const count = starts.length - 1;
  const end = starts[count];
  if (end < extents.size) return null;
  const start = (index: number): number => starts[index] ?? end + (index - count) * part;
  return { start, capacity: start(limits.parts) };
}

/** Bytes of the object, if it can be copied as a whole and is still all of the beginning of the file; else 0. */
function wholeBase(extents: Extents, { base, baseBytes }: Copies, limits: Limits): number {
  const fits = base === 'whole' && baseBytes >= Math.max(1, limits.partMinBytes) && baseBytes <= limits.partMaxBytes && baseBytes <= extents.size;
  return fits && isUnchanged(extents, 0, baseBytes) ? baseBytes : 0;
}

function isUnchanged(extents: Extents, from: number, to: number): boolean {
  const [piece] = extents.pieces(from, to);
  return piece !== undefined && piece.where === 'object' && piece.to === to;
}

/** What can be copied, in order. */
function copiedRuns(extents: Extents, copies: Copies): (Extent & { readonly zeros: boolean })[] {
  const zeros = copies.zeros === 'none' ? [] : extents.zeros().map((one) => ({ ...one, zeros: true }));
  const object = copies.base !== 'range' ? [] : extents.pieces().flatMap((one) => (one.where === 'object' ? [{ from: one.from, to: one.to, zeros: false }] : []));
  return [...zeros, ...object].sort((a, b) => a.from - b.from);
}

/** Parts that grow, for a file that is still being written. */
export function growingLayout(sizes: CommitSizes, limits: Limits): Layout {
  const first = leastPart(sizes, limits);
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

/**
 * The parts of the file as it is now. What is as it was in the object, and what is zeros, is copied on the server, several parts as one,
 * as far as the provider does that.
 */
export function cellsOf(extents: Extents, layout: Layout, copies: Copies, sizes: CommitSizes, limits: Limits): Cell[] {
  const units = unitsOf(extents, layout, copies, limits);
  const zeros = units.reduce((sum, { from, to, source }) => (source === 'zeros' ? sum + to - from : sum), 0);
  if (zeros <= sizes.holeBytes) for (const unit of units) if (unit.source === 'zeros') unit.source = 'staged';
  const copyMax = Math.min(sizes.copyMaxBytes, limits.partMaxBytes);
  // Few zeros are not worth a large object of them
  const zeroMax = zeros <= ZERO_FACTOR * sizes.zeroBytes ? Math.min(sizes.zeroBytes, copyMax) : copyMax;
  const cells: Cell[] = [];
  for (const unit of copies.zeros === 'whole' ? wholeZeros(units, zeroSizes(sizes, limits)) : units) {
    const before = cells.at(-1);
    const max = unit.source === 'object' ? copyMax : unit.source === 'zeros' && copies.zeros === 'range' ? zeroMax : 0;
    if (before?.source === unit.source && unit.to - before.from <= max) cells[cells.length - 1] = { ...before, to: unit.to };
    else cells.push(unit);
  }
  return cells;
}

interface Unit extends Extent {
  readonly number: number;
  source: Cell['source'];
}

function unitsOf(extents: Extents, layout: Layout, copies: Copies, limits: Limits): Unit[] {
  const { size } = extents;
  const zeros = copies.zeros === 'none' ? [] : extents.zeros();
  // All of the object, and something behind it: the one thing that can be copied where only whole objects can
  const whole = wholeBase(extents, copies, limits);
  const after = whole > 0 ? indexAfterFirst(whole, layout, limits) : 0;
  const units: Unit[] = after > 0 ? [{ number: 1, from: 0, to: whole, source: 'object' }] : [];
  for (let index = after, at = after > 0 ? whole : 0, zero = 0; at < size; index++) {
    const to = Math.min(size, layout.start(index + 1));
    while (zero < zeros.length && zeros[zero].to <= at) zero++;
    const isZero = zero < zeros.length && zeros[zero].from <= at && to <= zeros[zero].to;
    units.push({ number: index + 1, from: at, to, source: isZero ? 'zeros' : copies.base === 'range' && isUnchanged(extents, at, to) ? 'object' : 'staged' });
    at = to;
  }
  return units;
}

/** Units of zeros that make one of these sizes are one; what is left over is sent. */
function wholeZeros(units: readonly Unit[], sizes: readonly number[]): Unit[] {
  const joined: Unit[] = [];
  for (let i = 0; i < units.length; ) {
    let most = 0;
    let bytes = 0;
    for (let j = i; j < units.length && units[j].source === 'zeros'; j++) {
      bytes += units[j].to - units[j].from;
      if (sizes.includes(bytes)) most = j + 1 - i;
      if (bytes >= sizes[sizes.length - 1]) break;
    }
    joined.push(most === 0 && units[i].source === 'zeros' ? { ...units[i], source: 'staged' } : { ...units[i], to: units[i + Math.max(0, most - 1)].to });
    i += Math.max(1, most);
  }
  return joined;
}

/** The part that follows a first one of so many bytes, if both are then of a size that may be; else 0. */
function indexAfterFirst(bytes: number, layout: Layout, limits: Limits): number {
  const least = Math.max(1, limits.partMinBytes);
  let index = 1;
  while (layout.start(index + 1) < bytes + least) index++;
  return index < limits.parts && layout.start(index + 1) - bytes <= limits.partMaxBytes ? index : 0;
}

/** Bytes of cells that are sent although they are no data: a layout that was made before the holes were may be bad for them. */
export function excessOf(cells: readonly Cell[], extents: Extents): number {
  const sent = cells.reduce((sum, { from, to, source }) => (source === 'staged' ? sum + to - from : sum), 0);
  const total = (ranges: readonly Extent[]): number => ranges.reduce((sum, { from, to }) => sum + to - from, 0);
  return Math.max(0, sent - Math.max(0, total(extents.staged) - extents.zeroedBytes));
}
