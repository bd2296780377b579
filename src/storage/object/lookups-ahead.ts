/**
 * Names of a directory that are looked up in an order that can be foreseen: metadata of those that follow are asked for before the guest gets to them, more of
 * them each time that it does. So a walk takes a round trip for many objects, not one for each.
 *
 * There are two such orders: that of the listing, in which most programs look names up behind a READDIR; and that of inode numbers (inode-order.ts).
 */
import { HeadsAhead, type Head } from './heads-ahead.js';
import { InodeOrder, rankOf } from './inode-order.js';
import { proves } from './listing-proof.js';
import type { ObjectInfo } from './store.js';
import type { Tree } from './tree.js';

/** Objects that are asked for ahead in one directory, at most. */
const AHEAD_MAX = 128;
const AHEAD_MIN = 4;
/** So many names are looked at for those that have to be asked for. */
const LOOKED_AT_MAX = 512;
/** Directories that are walked through at the same time. */
const WALKS_MAX = 16;
/** So many names that come with rising inode numbers, and not in the order of the listing, show that they are sorted so: by chance one of 40,000 would. */
const RISING_MIN = 8;
/** Nobody looks up names any more, after so long. */
const IDLE_MS = 60_000;

const ORDERS = ['listing', 'inodes'] as const;
type Order = (typeof ORDERS)[number];

interface Walk {
  readonly heads: HeadsAhead;
  /** Keys that were asked for ahead and are not looked up yet; and how many are to be. */
  readonly asked: Set<string>;
  ahead: number;
  /** The key that is expected to be looked up next, by each order. */
  readonly expected: Record<Order, string | null>;
  /** The one that has come true last. */
  order: Order;
  /** Null: the numbers are not known. */
  inodes: InodeOrder | null;
  sorting: boolean;
  /** Names with rising inode numbers, one after the other, and the last one's rank. */
  rising: number;
  rank: number;
  last_ms: number;
}

export class LookupsAhead {
  readonly #walks = new Map<string, Walk>();
  #timer: NodeJS.Timeout | null = null;

  constructor(readonly tree: Tree) {
    tree.small.budget.holders.add(this);
  }

  /**
   * The answer for an object of a listing, by its directory, if it was asked for ahead; undefined: it was not, or could not be had, or is out of date, or `elsewhere`:
   * it is asked for with its content, and the answer that there may be is no longer wanted.
   */
  async head(prefix: string, { key }: ObjectInfo, elsewhere: boolean): Promise<Head | undefined> {
    const walk = this.#of(prefix);
    const wasAsked = walk.asked.delete(key);
    if (elsewhere) return walk.heads.drop(key);
    const taken = wasAsked ? walk.heads.take([key]) : null;
    this.#pass(prefix, walk, key, wasAsked);
    return taken === null ? undefined : (await taken)[0];
  }

  /** A key is looked up that no listing answers any more. @returns whether it was foreseen, so that a page of the directory will answer others too */
  foresees(prefix: string, key: string): boolean {
    const walk = this.#walks.get(prefix);
    if (walk !== undefined && (walk.asked.has(key) || key === walk.expected.listing || key === walk.expected.inodes)) {
      this.tree.listed.prepare(prefix, [key, ...walk.asked]);
      return true;
    }
    if (this.tree.listed.object(prefix, key) !== null) this.#pass(prefix, this.#of(prefix), key, false);
    return false;
  }

  /** An object as a listing has shown it, however old, if it will have to be asked for and was not; else null. */
  unasked(prefix: string, key: string): ObjectInfo | null {
    const object = this.#walks.get(prefix)?.asked.has(key) === true ? null : this.tree.listed.object(prefix, key);
    return object !== null && this.#isWanted(object) ? object : null;
  }

  #pass(prefix: string, walk: Walk, key: string, wasAsked: boolean): void {
    walk.last_ms = performance.now();
    const { expected } = walk;
    if (!wasAsked && key === expected.inodes) walk.order = 'inodes';
    if (!wasAsked && key === expected.listing) walk.order = 'listing';
    const isInOrder = wasAsked || key === expected[walk.order];
    walk.ahead = isInOrder ? Math.min(AHEAD_MAX, Math.max(AHEAD_MIN, walk.ahead * 2)) : 0;
    if (!isInOrder) this.#observe(prefix, walk, key);
    if (walk.asked.size > walk.ahead / 2) return;
    walk.asked.clear();
    if (isInOrder) {
      const wanted = this.#wanted(prefix, walk, key, walk.order, walk.ahead);
      for (const one of wanted) walk.asked.add(one);
      this.tree.listed.prepare(prefix, wanted);
    } else {
      for (const order of ORDERS) expected[order] = this.#wanted(prefix, walk, key, order, 1)[0] ?? null;
    }
    walk.heads.prepare([...walk.asked]);
  }

  /** Keys behind another one, by an order, that have to be asked for. */
  #wanted(prefix: string, { inodes }: Walk, key: string, order: Order, count: number): string[] {
    const { listed } = this.tree;
    const wanted: string[] = [];
    let lookedAt = 0;
    for (const one of order === 'listing' ? listed.following(prefix, key) : inodes?.following(key) ?? []) {
      const object = typeof one === 'string' ? listed.object(prefix, one) : one;
      if (object !== null && this.#isWanted(object)) wanted.push(object.key);
      if (wanted.length >= count || ++lookedAt >= LOOKED_AT_MAX) break;
    }
    return wanted;
  }

  /** What listings show and what is known do not suffice. */
  #isWanted(object: ObjectInfo): boolean {
    const { tree } = this;
    if (tree.knowsFromListing(object)) return false;
    const known = tree.nodes.find(false, object.key);
    if (known === null) return true;
    const isKnown = performance.now() < known.expires_ms && known.facts.version === object.version;
    return known.staged?.dirty !== true && !isKnown && !(tree.options.metadataTtl_ms > 0 && proves(object, known));
  }

  /** Names that come in the order of their inode numbers show that the others will, too. */
  #observe(prefix: string, walk: Walk, key: string): void {
    const rank = rankOf(this.tree.nodes.numberOf(false, key));
    if (rank === walk.rank) return;
    walk.rising = rank > walk.rank ? walk.rising + 1 : 0;
    walk.rank = rank;
    if (walk.rising < RISING_MIN || walk.sorting) return;
    walk.rising = 0;
    if (walk.inodes === null || !walk.inodes.has(key)) void this.#sort(prefix, walk);
  }

  async #sort(prefix: string, walk: Walk): Promise<void> {
    const { nodes, listed, small: { budget } } = this.tree;
    this.#unsort(walk);
    const count = listed.keyCount(prefix);
    const bytes = InodeOrder.bytesOf(count);
    if (!budget.tryHold(bytes)) return;
    walk.sorting = true;
    const isWanted = (): boolean => walk.sorting && this.#walks.get(prefix) === walk;
    const inodes = await InodeOrder.of(listed.keys(prefix), count, (key) => nodes.numberOf(false, key), isWanted);
    if (isWanted()) walk.inodes = inodes;
    else budget.letGo(bytes);
    walk.sorting = false;
  }

  #unsort(walk: Walk): void {
    if (walk.inodes !== null) this.tree.small.budget.letGo(walk.inodes.bytes);
    walk.inodes = null;
  }

  #of(prefix: string): Walk {
    const known = this.#walks.get(prefix);
    const walk: Walk = known ?? {
      heads: new HeadsAhead(this.tree), asked: new Set<string>(), ahead: 0, expected: { listing: null, inodes: null }, order: 'listing', inodes: null, sorting: false,
      rising: 0, rank: Infinity, last_ms: performance.now(),
    };
    this.#walks.delete(prefix);
    this.#walks.set(prefix, walk);
    if (this.#walks.size > WALKS_MAX) this.#drop(this.#walks.keys().next().value!);
    this.#timer ??= setTimeout(() => this.#tidy(), IDLE_MS).unref();
    return walk;
  }

  #drop(prefix: string): void {
    const walk = this.#walks.get(prefix);
    this.#walks.delete(prefix);
    if (walk !== undefined) this.#unsort(walk);
  }

  #tidy(): void {
    const time = performance.now();
    for (const [prefix, { last_ms }] of [...this.#walks]) if (time - last_ms >= IDLE_MS) this.#drop(prefix);
    this.#timer = this.#walks.size === 0 ? null : setTimeout(() => this.#tidy(), IDLE_MS).unref();
  }

  /** Somebody waits for memory. */
  reclaim(): void {
    for (const walk of this.#walks.values()) {
      walk.sorting = false;
      this.#unsort(walk);
    }
  }

  /** The guest has gone. */
  clear(): void {
    for (const prefix of [...this.#walks.keys()]) this.#drop(prefix);
  }
}
