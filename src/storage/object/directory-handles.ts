/**
 * Open directories: a listing is read page by page as the guest goes through it, and can be taken up again anywhere. For
 * each page the handle keeps its last key, for a while its token, and the state of the listing before it, not its entries; those only of the last one.
 *
 * A position is that of an entry, not a number of entries (telldir(3)): what is removed or made meanwhile does not move it. Each page that is loaded
 * has positions of its own, one behind each entry, which are never those of another page, and digests of its entries. Where a page has to be loaded again, the
 * entry that a position is behind, or the last one before it that is still there, is found by its digest.
 */
import { E } from '../../base/errno.js';
import { assert } from '../../base/assert.js';
import type { DirectoryMemory } from './directory-memory.js';
import { HeadsAhead, type Moment } from './heads-ahead.js';
import { HIDDEN } from './hidden.js';
import { after } from './listing-walks.js';
import { FileError, type Tree } from './tree.js';
import { compareUtf8, entriesOf, lastKey, LISTING_START, type Entry, type ListingState } from './listing.js';
import type { ObjectNode } from './nodes.js';
import type { ListPage } from './store.js';
import type { Turns } from './turns.js';

/** "." and "..". */
export const DOTS = 2;

/** Where a page begins. */
interface Start {
  /** The directory's then: it may be renamed while it is read. */
  readonly prefix: string;
  token: string | undefined;
  /** Behind which it begins; a key without the prefix. */
  readonly last: string;
  readonly state: ListingState;
}

interface Page extends Start {
  /** The position of its beginning; behind its n-th entry it is n more. */
  readonly first: number;
  readonly count: number;
  /** Digests of its entries; null: they are too many to be kept. */
  digests: Float64Array | null;
  /** What follows it; null: nothing. */
  readonly next: Start | null;
}

const BEGINNING: Start = { prefix: '', token: undefined, last: '', state: LISTING_START };
/** Pages of one handle whose positions are known, and entries of which there are digests. */
const PAGES_MAX = 1 << 14;
const DIGESTS_MAX = 1 << 20;
/** Pages whose tokens are kept, as long as providers like to have them: the others are taken up again behind their last key. */
const TOKENS_MAX = 64;

/** A listing describes its entries at least for so long: the guest takes some time to go through it. */
const LISTING_GOOD_MS = 1_000;

interface Loaded extends Moment {
  readonly page: Page;
  readonly entries: readonly Entry[];
}

/** Entries in their order. */
export interface Entries {
  /** The position of the first one; of each that follows it is one more. */
  readonly from: number;
  readonly entries: readonly Entry[];
}

export class DirectoryHandle {
  /** That were loaded, in the order of their positions. */
  readonly #pages: Page[] = [];
  /** No position from here on was ever told. */
  #free = 0;
  #digests = 0;
  readonly heads: HeadsAhead;
  #loaded: Loaded | null = null;
  /** When the last page was asked for. */
  #moment: Moment = { stamp: 0, asked_ms: -Infinity };
  #isClosed = false;
  #loading: Promise<void> = Promise.resolve();
  /** Of the call that goes to the store. */
  #signal: AbortSignal | null = null;

  constructor(
    readonly node: ObjectNode,
    readonly tree: Tree,
    readonly memory: DirectoryMemory,
    heads: Turns,
  ) {
    this.heads = new HeadsAhead(tree, heads);
  }

  /** Entries from a position on, some or none at the end; 0 is the beginning, which is read anew (rewinddir(3)). One call at a time goes to the store. */
  async entries(position: number, signal: AbortSignal): Promise<Entries> {
    const former = this.#loading;
    const turn = (async () => {
      await after(former, signal);
      this.#signal = signal;
      return this.#entries(position);
    })();
    this.#loading = turn.then(() => undefined, () => undefined);
    return turn;
  }

  dropEntries(): void {
    this.#loaded = null;
    this.heads.clear();
  }

  dropDigests(): number {
    const dropped = this.#digests;
    for (const page of this.#pages) page.digests = null;
    this.#digests = 0;
    return dropped;
  }

  /** What still reads it is EBADF. */
  close(): void {
    this.#isClosed = true;
    this.memory.closed(this, this.#pages.length, this.#digests);
    this.#pages.length = 0;
    this.dropEntries();
  }

  async #entries(position: number): Promise<Entries> {
    if (position === 0) return this.#behind(await this.#load(BEGINNING), 0);
    const page = this.#pages.findLast(({ first }) => first < position);
    if (page === undefined || position > page.first + page.count) return { from: position, entries: [] };
    const index = position - page.first;
    if (this.#loaded?.page === page) {
      this.memory.used(this);
      return this.#behind(this.#loaded, index);
    }
    if (index === page.count && page.next !== null) return this.#behind(await this.#load(page.next), 0);
    return this.#again(page, index);
  }

  /** A page is loaded again, and those that follow it as far as it went: where there is more now, what was in it is in several. */
  async #again(page: Page, index: number): Promise<Entries> {
    const { digests, next: end } = page;
    let loaded = await this.#load(page);
    if (digests === null) return this.#behind(loaded, Math.min(index, loaded.page.count));
    const order = new Map<number, number>();
    for (const [at, digest] of digests.entries()) order.set(digest, at);
    let [best, place] = [loaded, 0];
    for (;;) {
      const places = Array.from(loaded.page.digests ?? [], (digest) => order.get(digest) ?? -1);
      const last = places.findLastIndex((at) => at >= 0 && at < index);
      if (last >= 0) [best, place] = [loaded, last + 1];
      const { next } = loaded.page;
      if (next === null || (end !== null && compareUtf8(next.last, end.last) >= 0) || places.some((at) => at >= index)) break;
      loaded = await this.#load(next);
    }
    return this.#behind(this.#keep(best), place);
  }

  /** Behind the first `index` entries of a page, or of the pages that follow it. */
  async #behind(loaded: Loaded, index: number): Promise<Entries> {
    let [at, from] = [loaded, index];
    while (from === at.entries.length && at.page.next !== null) [at, from] = [await this.#load(at.page.next), 0];
    return { from: at.page.first + from, entries: at.entries.slice(from) };
  }

  /** Whether what the listing says of a key may still be told. */
  isCurrent(key: string): boolean {
    const { stamp, asked_ms } = this.#moment;
    if (this.tree.isChangedSince(key, stamp)) return false;
    return performance.now() - asked_ms <= Math.max(this.tree.options.metadataTtl_ms, LISTING_GOOD_MS);
  }

  async #load(start: Start): Promise<Loaded> {
    const { store } = this.tree;
    const prefix = this.node.key;
    const { token, last, state: before } = startIn(prefix, start);
    const behind = last === '' ? '' : prefix + last;
    // Before the bucket is asked: what is committed meanwhile may be in the answer or not
    const staged = this.#stagedKeys(prefix);
    const stamp = this.tree.changes;
    const asked_ms = performance.now();
    const signal = this.#signal!;
    const listed = await store.list({ prefix, delimiter: '/', signal, ...(token !== undefined ? { token } : behind === '' ? {} : { after: behind }) });
    this.tree.listed.add(prefix, behind, listed, stamp);
    if (this.#isClosed) throw new FileError(E.BADF);
    const until = listed.next === null ? null : lastKey(listed) ?? behind;
    const { entries: found, state } = entriesOf(prefix, withStaged(listed, staged, behind, until), before, listed.next === null);
    const entries = prefix === this.tree.options.prefix ? found.filter((entry) => entry.component !== HIDDEN) : found;
    const next = listed.next === null ? null : { prefix, token: listed.next, last: until!.slice(prefix.length), state };
    const page: Page = { prefix, token, last, state: before, first: this.#free, count: entries.length, digests: Float64Array.from(entries, digestOf), next };
    this.#remember(page);
    return this.#keep({ page, entries, stamp, asked_ms });
  }

  #keep(loaded: Loaded): Loaded {
    this.#moment = { stamp: loaded.stamp, asked_ms: loaded.asked_ms };
    this.#loaded = loaded;
    this.memory.entries(this, loaded.entries.length);
    return loaded;
  }

  /** Keys of files, and prefixes of directories, that are not in the bucket, or not as they are. */
  #stagedKeys(prefix: string): string[] {
    const keys = this.tree.stagedBelow(prefix).map(({ key }) => prefix + key.slice(prefix.length).replace(/\/.*/s, '/'));
    return [...new Set(keys)].sort(compareUtf8);
  }

  #remember(page: Page): void {
    this.memory.pages(this, 1, page.count);
    this.#pages.push(page);
    const old = this.#pages.at(-1 - TOKENS_MAX);
    if (old !== undefined) for (const start of [old, old.next]) if (start !== null && start.last !== '') start.token = undefined;
    this.#free = page.first + page.count + 1;
    this.#digests += page.count;
    let [forgotten, digests] = [0, 0];
    // The oldest are found by their number
    for (let i = 0; this.#digests - digests > DIGESTS_MAX; i++) {
      assert(i < this.#pages.length, 'there are pages with digests');
      digests += this.#pages[i].digests?.length ?? 0;
      this.#pages[i].digests = null;
    }
    if (this.#pages.length > PAGES_MAX) {
      forgotten = 1;
      digests += this.#pages.shift()!.digests?.length ?? 0;
    }
    this.#digests -= digests;
    if (forgotten + digests > 0) this.memory.pages(this, -forgotten, -digests);
  }
}

/** The same place in a directory that has another prefix by now. The provider's token is one of the former. */
function startIn(prefix: string, start: Start): Start {
  if (start.prefix === prefix || start.last === '') return start;
  const moved = (key: string): string => prefix + key.slice(start.prefix.length);
  const { held, lastPrefix } = start.state;
  const state = { held: held.map((object) => ({ ...object, key: moved(object.key) })), lastPrefix: lastPrefix === '' ? '' : moved(lastPrefix) };
  return { prefix, token: undefined, last: start.last, state };
}

/** A page with what is staged in its range of keys. */
function withStaged(page: ListPage, staged: readonly string[], last: string, until: string | null): Pick<ListPage, 'objects' | 'prefixes'> {
  const there = new Set([...page.objects.map(({ key }) => key), ...page.prefixes]);
  const missing = staged.filter((key) => !there.has(key) && compareUtf8(key, last) > 0 && (until === null || compareUtf8(key, until) <= 0));
  if (missing.length === 0) return page;
  const objects = missing.filter((key) => !key.endsWith('/')).map((key) => ({ key, size: 0, version: '', modified_ms: 0, metadata: null, headers: null }));
  return {
    objects: [...page.objects, ...objects].sort((a, b) => compareUtf8(a.key, b.key)),
    prefixes: [...page.prefixes, ...missing.filter((key) => key.endsWith('/'))].sort(compareUtf8),
  };
}

/** Of 53 bits: that two entries of one page have the same is not to be expected. */
function digestOf({ component, object }: Entry): number {
  let [high, low] = object === null ? [1, 2] : [3, 4];
  for (let i = 0; i < component.length; i++) {
    const unit = component.charCodeAt(i);
    high = Math.imul(high ^ unit, 0x85ebca6b) ^ (high >>> 15);
    low = Math.imul(low ^ unit, 0x9e3779b1) ^ (low >>> 13);
  }
  return (high >>> 11) * 2 ** 32 + (low >>> 0);
}
