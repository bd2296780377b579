/**
 * What all open directories of a share keep of listings, together: the entries of the page that each has read last, where pages begin, and digests of their entries.
 * Entries of a few pages are free, more are held only if the memory budget has room; else the directory that was read longest ago gives its page up, and asks
 * for it again.
 */
import { E } from '../../base/errno.js';
import { HeldPieces, type MemoryBudget } from './memory-budget.js';
import { FileError } from './tree.js';

/** An open directory. */
export interface Holder {
  /** Its entries are forgotten, and asked for again when somebody reads on. */
  dropEntries(): void;
  /** A page is found by the number of its entries then. @returns digests that were forgotten */
  dropDigests(): number;
}

/** An entry with its name and key, and what the listing says of the object. */
const ENTRY_BYTES = 512;
/** Of all directories: as many pages of a thousand are held without asking. */
const ENTRIES_FREE = 16_000;
/** 16 MB. */
const DIGESTS_MAX = 1 << 21;
/** Beginnings of pages, some 400 bytes each: of 32 million entries that are being read at the same time. */
const PAGES_MAX = 1 << 15;

export class DirectoryMemory {
  /** Entries that are held, in the order of use. */
  readonly #entries = new Map<Holder, number>();
  /** Those with digests, in the order in which the directories were read first. */
  readonly #digesting = new Set<Holder>();
  #entryCount = 0;
  #digestCount = 0;
  #pageCount = 0;
  readonly #holding: HeldPieces;

  constructor(budget: MemoryBudget) {
    this.#holding = new HeldPieces(budget, ENTRIES_FREE, ENTRY_BYTES);
    budget.holders.add(this);
  }

  /** It has read a page of so many entries, instead of the one before. */
  entries(holder: Holder, count: number): void {
    this.#forget(holder);
    this.#entries.set(holder, count);
    this.#entryCount += count;
    while (this.#entries.size > 1 && !this.#holding.tryHold(this.#entryCount)) this.#dropOldest();
    this.#holding.shrink(this.#entryCount);
  }

  /** Its page is of use once more. */
  used(holder: Holder): void {
    const count = this.#entries.get(holder);
    if (count === undefined) return;
    this.#entries.delete(holder);
    this.#entries.set(holder, count);
  }

  /** It keeps the beginnings of so many pages more (or less), and so many digests. @throws FileError ENOMEM */
  pages(holder: Holder, pages: number, digests: number): void {
    if (pages > 0 && this.#pageCount + pages > PAGES_MAX) throw new FileError(E.NOMEM);
    this.#pageCount += pages;
    this.#digestCount += digests;
    this.#digesting.add(holder);
    for (const one of this.#digesting) {
      if (this.#digestCount <= DIGESTS_MAX) break;
      this.#digestCount -= one.dropDigests();
      if (one !== holder) this.#digesting.delete(one);
    }
  }

  /** It is closed, and had the beginnings of so many pages, and so many digests. */
  closed(holder: Holder, pages: number, digests: number): void {
    this.#forget(holder);
    this.#pageCount -= pages;
    this.#digestCount -= digests;
    this.#digesting.delete(holder);
    this.#holding.shrink(this.#entryCount);
  }

  /** Somebody waits for memory. */
  reclaim(): void {
    while (this.#entryCount > ENTRIES_FREE && this.#entries.size > 0) this.#dropOldest();
    this.#holding.shrink(this.#entryCount);
  }

  #dropOldest(): void {
    const [holder] = this.#entries.keys();
    this.#forget(holder);
    holder.dropEntries();
  }

  #forget(holder: Holder): void {
    this.#entryCount -= this.#entries.get(holder) ?? 0;
    this.#entries.delete(holder);
  }
}
