/** The POSIX locks that one lock owner of the guest has on one inode. */
import { F_RDLCK, F_UNLCK, F_WRLCK } from '../../ffi/constants.js';

/** OFFSET_MAX of the kernel: the last byte that a lock can cover, and the end of one "to the end". */
export const LAST_BYTE = 2n ** 63n - 1n;
/** Beyond that they are taken for one: then F_GETLK may name a process whose lock is beside. */
const RANGES_MAX = 1024;

interface Range {
  readonly start: bigint;
  readonly end: bigint;
  /** F_RDLCK or F_WRLCK. */
  readonly type: number;
}

/** What the host has granted, in the order of the offsets, so that it is known whose a lock is and whether an unlock frees anything. */
export class LockRanges {
  #ranges: Range[] = [];

  get count(): number {
    return this.#ranges.length;
  }

  /** From the first byte that is locked to the last one, or null. */
  get span(): { start: bigint; end: bigint } | null {
    return this.#ranges.length === 0 ? null : { start: this.#ranges[0].start, end: this.#ranges[this.#ranges.length - 1].end };
  }

  get isEmpty(): boolean {
    return this.#ranges.length === 0;
  }

  /** Whether there is a lock at one of these bytes; `type`: of that type only. */
  overlaps(start: bigint, end: bigint, type?: number): boolean {
    return this.#ranges.some((range) => range.start <= end && range.end >= start && (type === undefined || range.type === type));
  }

  /** As fcntl(2) does: the bytes get this type, or none with F_UNLCK. */
  set(start: bigint, end: bigint, type: number): void {
    const before: Range[] = [];
    const after: Range[] = [];
    let [from, to] = [start, end];
    for (const range of this.#ranges) {
      const joins = range.type === type && range.end >= start - 1n && range.start <= end + 1n;
      if (joins) {
        if (range.start < from) from = range.start;
        if (range.end > to) to = range.end;
      } else {
        if (range.start < start) before.push(range.end < start ? range : { ...range, end: start - 1n });
        if (range.end > end) after.push(range.start > end ? range : { ...range, start: end + 1n });
      }
    }
    this.#ranges = type === F_UNLCK ? [...before, ...after] : [...before, { start: from, end: to, type }, ...after];
    if (this.#ranges.length > RANGES_MAX) this.#join();
  }

  clear(): void {
    this.#ranges = [];
  }

  #join(): void {
    const type = this.#ranges.every((range) => range.type === F_RDLCK) ? F_RDLCK : F_WRLCK;
    this.#ranges = [{ start: this.#ranges[0].start, end: this.#ranges[this.#ranges.length - 1].end, type }];
  }
}

/**
 * An owner is what Linux sends as one: a table of descriptors (fcntl locks of a process) or an open file (OFD locks). Its locks are
 * open-file-description locks on a descriptor that is its own, so that owners of one guest exclude each other.
 */
export class LockOwner {
  readonly ranges = new LockRanges();
  /** The guest's open files that it has locked through. */
  readonly handles = new Set<number>();
  /** Requests that wait for a lock of its. */
  waiting = 0;
  /** The guest's process that took the last lock, 0 for none. */
  pid = 0;

  constructor(
    readonly slot: number,
    readonly key: string,
    readonly fd: number,
  ) {}
}
