/**
 * Open directories: a listing is read page by page as the guest goes through it, and can be taken up again anywhere. For
 * each page the handle keeps its token and the state of the listing before it, not its entries; those only of the last one.
 *
 * An entry's offset is its number, counted from 1 with "." and ".."; the guest gets the number of the one to go on with.
 */
import { HeadsAhead } from './heads-ahead.js';
import { HIDDEN } from './hidden.js';
import type { Tree } from './tree.js';
import { entriesOf, lastKey, LISTING_START, type Entry, type ListingState } from './listing.js';
import { nameOf } from './names.js';
import type { ObjectNode } from './nodes.js';

/** "." and "..". */
export const DOTS = 2;

interface Page {
  readonly token: string | undefined;
  /** Key behind which it begins. */
  readonly last: string;
  readonly state: ListingState;
  /** Number of its first entry, 0 for the first behind the dots. */
  readonly first: number;
}

/** A listing describes its entries at least for so long: the guest takes some time to go through it. */
const LISTING_GOOD_MS = 1_000;

interface Loaded extends Page {
  readonly entries: readonly Entry[];
  readonly next: string | null;
  /** How many changes of ours there were before it was asked for, and when that was. */
  readonly stamp: number;
  readonly asked_ms: number;
}

export class DirectoryHandle {
  readonly #pages: Page[] = [{ token: undefined, last: '', state: LISTING_START, first: 0 }];
  readonly heads: HeadsAhead;
  #loaded: Loaded | null = null;
  #loading: Promise<void> = Promise.resolve();
  /** Components of files that are in no listing yet, and with a slash of directories; those that came up in one are taken out. */
  #staged: Set<string> | null = null;
  /** Components of those files that are directories' names, too. */
  readonly #clashing = new Set<string>();

  constructor(
    readonly node: ObjectNode,
    readonly tree: Tree,
  ) {
    this.heads = new HeadsAhead(tree);
  }

  /** Begin anew: what the guest sees after rewinddir(3) is the directory as it is then. */
  rewind(): void {
    this.#pages.length = 1;
    this.#loaded = null;
    this.#staged = null;
    this.#clashing.clear();
  }

  /** Entries from number `from` on, some or none at the end. One call at a time goes to the store. */
  async entries(from: number): Promise<readonly Entry[]> {
    let found: readonly Entry[] = [];
    const turn = this.#loading.then(async () => {
      found = await this.#entries(from);
    });
    this.#loading = turn.catch(() => undefined);
    await turn;
    return found;
  }

  async #entries(from: number): Promise<readonly Entry[]> {
    let index = this.#pages.findLastIndex((page) => page.first <= from);
    for (;;) {
      const page = this.#pages[index];
      const loaded = this.#loaded?.first === page.first && this.#loaded.token === page.token ? this.#loaded : await this.#load(page, index);
      if (from < loaded.first + loaded.entries.length) return loaded.entries.slice(from - loaded.first);
      if (loaded.next === null) return [];
      index++;
    }
  }

  /** Whether what the listing says of a key may still be told. */
  isCurrent(key: string): boolean {
    const loaded = this.#loaded;
    if (loaded === null || this.tree.isChangedSince(key, loaded.stamp)) return false;
    return performance.now() - loaded.asked_ms <= Math.max(this.tree.options.metadataTtl_ms, LISTING_GOOD_MS);
  }

  #stagedEntry(prefix: string, staged: string): Entry {
    const component = staged.replace(/\/$/, '');
    if (component !== staged) return { name: nameOf(component), component, object: null, clash: false };
    const key = prefix + component;
    const object = { key, size: 0, version: '', modified_ms: 0, metadata: null, headers: null };
    const clash = this.#clashing.has(component) || this.#staged!.has(`${component}/`);
    return { name: nameOf(component, clash), component, object, clash };
  }

  async #load(page: Page, index: number): Promise<Loaded> {
    const { store } = this.tree;
    const prefix = this.node.key;
    // Before the bucket is asked: what is committed meanwhile may be in no page
    this.#staged ??= new Set(this.tree.stagedBelow(prefix).map((node) => node.key.slice(prefix.length).replace(/\/.*/s, '/')));
    const stamp = this.tree.changes;
    const asked_ms = performance.now();
    const listed = await store.list({ prefix, delimiter: '/', ...(page.token === undefined ? {} : { token: page.token }) });
    this.tree.listed.add(prefix, page.last, listed, stamp);
    const { entries: found, state } = entriesOf(prefix, listed, page.state, listed.next === null);
    const entries = prefix === this.tree.options.prefix ? found.filter((entry) => entry.component !== HIDDEN) : found;
    for (const [i, { object, component, clash }] of entries.entries()) {
      if (object === null && this.#staged.has(component)) this.#clashing.add(component);
      // The directory of its name is not in the bucket yet
      if (object !== null && !clash && this.tree.hasStagedBelow(`${object.key}/`)) entries[i] = { name: nameOf(component, true), component, object, clash: true };
      this.#staged.delete(object === null ? `${component}/` : component);
    }
    if (listed.next === null) entries.push(...[...this.#staged].map((staged) => this.#stagedEntry(prefix, staged)));
    this.#loaded = { ...page, entries, next: listed.next, stamp, asked_ms };
    if (listed.next !== null && index + 1 === this.#pages.length) this.#pages.push({ token: listed.next, last: lastKey(listed) ?? page.last, state, first: page.first + entries.length });
    return this.#loaded;
  }
}
