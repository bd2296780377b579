/**
 * Which bytes of a file that is being changed are in its staging file, and which still only in the object that it was
 * opened from. Ranges are half-open, sorted, apart from each other.
 */
export interface Extent {
  readonly from: number;
  readonly to: number;
}

/** Where a stretch of the file is: staged here, in the object at the same offset, or nowhere (zeros). */
export interface Piece extends Extent {
  readonly where: 'staged' | 'object' | 'zeros';
}

export class Extents {
  #extents: Extent[] = [];
  #size: number;
  /** Bytes of the object that are still the file's: what was cut off does not come back when the file grows again. */
  #objectBytes: number;
  /** Of what is staged: ranges that somebody has made zeros. */
  readonly #zeroed: Extent[] = [];

  /** `objectBytes`: size of the object, 0 for a file that is new or was truncated at open. */
  constructor(objectBytes: number) {
    this.#size = objectBytes;
    this.#objectBytes = objectBytes;
  }

  static of(size: number, objectBytes: number, staged: readonly Extent[]): Extents {
    const extents = new Extents(objectBytes);
    extents.#size = size;
    extents.#extents = [...staged];
    return extents;
  }

  copy(): Extents {
    return Extents.of(this.#size, this.#objectBytes, this.#extents);
  }

  get size(): number {
    return this.#size;
  }

  get objectBytes(): number {
    return this.#objectBytes;
  }

  get stagedBytes(): number {
    return this.#extents.reduce((sum, { from, to }) => sum + to - from, 0);
  }

  get staged(): readonly Extent[] {
    return this.#extents;
  }

  /** Whether the file is still what the object is. */
  get untouched(): boolean {
    return this.#extents.length === 0 && this.#size === this.#objectBytes;
  }

  /** [from, to) is in the staging file now. */
  write(from: number, to: number): void {
    if (to <= from) return;
    insert(this.#extents, from, to);
    remove(this.#zeroed, from, to);
    this.#size = Math.max(this.#size, to);
  }

  /** The same, and there are zeros in it. */
  zero(from: number, to: number): void {
    if (to <= from) return;
    this.write(from, to);
    insert(this.#zeroed, from, to);
  }

  /** Bytes that were never written. */
  get holeBytes(): number {
    return this.pieces().reduce((sum, { from, to, where }) => (where === 'zeros' ? sum + to - from : sum), 0);
  }

  /** Bytes that are staged and zeros. */
  get zeroedBytes(): number {
    return this.#zeroed.reduce((sum, { from, to }) => sum + to - from, 0);
  }

  /** All that is known to be zeros, in order and apart from each other: written as such, or never written at all. */
  zeros(): Extent[] {
    const zeros = [...this.#zeroed];
    for (const piece of this.pieces()) if (piece.where === 'zeros') insert(zeros, piece.from, piece.to);
    return zeros;
  }

  /** The file has so many bytes now; what is beyond is gone, and zeros if the file grows again. */
  truncate(size: number): void {
    this.#objectBytes = Math.min(this.#objectBytes, size);
    this.#size = size;
    remove(this.#zeroed, size, Infinity);
    const first = firstEndingAtOrAfter(this.#extents, size);
    const cut = this.#extents[first];
    this.#extents.length = first;
    if (cut !== undefined && cut.from < size) this.#extents.push({ from: cut.from, to: size });
  }

  /** The file is what the object is, of so many bytes. */
  reset(objectBytes: number): void {
    this.#extents = [];
    this.#zeroed.length = 0;
    this.#size = objectBytes;
    this.#objectBytes = objectBytes;
  }

  /** Of [from, to), what comes first that is still in the object only. */
  firstInObject(from: number, to: number): Piece | undefined {
    return this.pieces(from, to).find(({ where }) => where === 'object');
  }

  /** The pieces of [from, to), as far as the file goes, in order and without gaps. */
  pieces(from = 0, to = this.#size): Piece[] {
    const pieces: Piece[] = [];
    const end = Math.min(to, this.#size);
    let at = from;
    const gap = (until: number): void => {
      const object = Math.min(until, this.#objectBytes);
      if (at < object) pieces.push({ from: at, to: object, where: 'object' });
      if (Math.max(at, object) < until) pieces.push({ from: Math.max(at, object), to: until, where: 'zeros' });
      at = until;
    };
    for (let i = firstEndingAtOrAfter(this.#extents, from); i < this.#extents.length && this.#extents[i].from < end; i++) {
      const extent = this.#extents[i];
      if (extent.from > at) gap(extent.from);
      const until = Math.min(extent.to, end);
      if (until > at) pieces.push({ from: at, to: until, where: 'staged' });
      at = Math.max(at, until);
    }
    if (at < end) gap(end);
    return pieces;
  }
}

/** Index of the first range whose end is not before `at`. */
function firstEndingAtOrAfter(ranges: readonly Extent[], at: number): number {
  let low = 0;
  let high = ranges.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (ranges[middle].to < at) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** [from, to) becomes a part of sorted ranges, as one with those that it touches. */
function insert(ranges: Extent[], from: number, to: number): void {
  const first = firstEndingAtOrAfter(ranges, from);
  let last = first;
  let [low, high] = [from, to];
  while (last < ranges.length && ranges[last].from <= to) {
    low = Math.min(low, ranges[last].from);
    high = Math.max(high, ranges[last].to);
    last++;
  }
  ranges.splice(first, last - first, { from: low, to: high });
}

/** [from, to) is no longer a part of sorted ranges. */
function remove(ranges: Extent[], from: number, to: number): void {
  let first = firstEndingAtOrAfter(ranges, from);
  if (first < ranges.length && ranges[first].to === from) first++;
  let last = first;
  while (last < ranges.length && ranges[last].from < to) last++;
  if (last === first) return;
  const left: Extent[] = [];
  if (ranges[first].from < from) left.push({ from: ranges[first].from, to: from });
  if (ranges[last - 1].to > to) left.push({ from: to, to: ranges[last - 1].to });
  ranges.splice(first, last - first, ...left);
}

/** Ranges without [from, to). */
export function without(ranges: readonly Extent[], from: number, to: number): readonly Extent[] {
  if (!ranges.some((one) => one.from < to && from < one.to)) return ranges;
  return ranges.flatMap((one) => [{ from: one.from, to: Math.min(one.to, from) }, { from: Math.max(one.from, to), to: one.to }].filter((part) => part.from < part.to));
}
