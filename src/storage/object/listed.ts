/**
 * What listings have shown of directories: while that is young it answers lookups, so that many names of one directory are not
 * asked for one by one. A listing knows an object, a directory, or that there is neither.
 *
 * A page that is too old to answer is kept for a while: it says which page to ask for when one of its names is looked up, and what may be looked up next.
 */
import { StorageError } from './errors.js';
import { compareUtf8, lastKey } from './listing.js';
import { HeldPieces, type MemoryBudget } from './memory-budget.js';
import { directoryOf } from './names.js';
import type { ListPage, ObjectInfo, ObjectStore } from './store.js';

/** What there is of a name. */
export interface Listed {
  /** As the listing has it. */
  readonly object: ObjectInfo | null;
  readonly directory: boolean;
}

interface Segment {
  /** Keys behind this one, */
  readonly after: string;
  /** up to this one; null: all that follow. */
  readonly until: string | null;
  readonly objects: ReadonlyMap<string, ObjectInfo>;
  readonly prefixes: ReadonlySet<string>;
  /** Changes of ours that happened before it was asked for. */
  readonly stamp: number;
  readonly expires_ms: number;
  /** Keys of which it is known by now that they have changed. */
  readonly outdated: Set<string>;
  /** Of the objects, in their order; made when somebody asks. */
  keys: readonly string[] | null;
  /** Lookups that it has answered, besides the one that it was asked for; those of them that were of a key before the last one, and that one. */
  hits: number;
  falls: number;
  last: string;
  /** It is being asked for anew. */
  renewed: boolean;
  /** Another one takes its place: it says nothing any more when it is too old to answer. */
  superseded: boolean;
}

interface Directory {
  segments: Segment[];
  /** Names that had to be asked for lately, in the order of keys, and the last of them. */
  climbing: number;
  asked: number;
  last: string;
  since_ms: number;
  /** One page shows all of it. */
  small: boolean;
  /** Listings that nobody had a use for. */
  useless: number;
}

/** Whether a key was changed here after a moment, and what the present moment is called. */
export interface Clock {
  readonly changes: number;
  isChangedSince(key: string, stamp: number): boolean;
  /** The same of what is in it, at any depth. */
  isChangedBelowSince(key: string, stamp: number): boolean;
}

const DIRECTORIES_MAX = 64;
/** Of one directory: as many names as find(1) sorts at once, and a few more. */
const SEGMENTS_MAX = 128;
/** Of all directories together; more than so many are held only if the memory budget has room for them. */
const ENTRIES_FREE = 16_384;
/** What an entry takes, with a key of 40 bytes. */
const ENTRY_BYTES = 256;
/** So long a page that is too old to answer is kept. */
const FORMER_MS = 60_000;
const PAGE = 1000;
/** So many names of a directory are asked for one by one before it is listed instead. */
const ASKED_BEFORE_LISTING = 3;
const USELESS_MAX = 6;
/** A listing that has answered so many lookups is asked for anew before it is too old. */
const HITS_BEFORE_RENEWAL = 4;
/** So many that came in the order of keys are no chance. */
const HITS_IN_ORDER = 8;

export class ListedDirectories {
  readonly #directories = new Map<string, Directory>();
  /** In all segments. */
  #entries = 0;
  readonly #holding: HeldPieces;
  /** Pages that are on their way. */
  readonly #listing = new Map<string, Promise<void>>();
  #timer: NodeJS.Timeout | null = null;

  constructor(
    readonly store: ObjectStore,
    readonly clock: Clock,
    readonly ttl_ms: number,
    readonly budget: MemoryBudget,
  ) {
    this.#holding = new HeldPieces(budget, ENTRIES_FREE, ENTRY_BYTES);
    budget.holders.add(this);
  }

  /** What is known of a key in the directory `prefix`; undefined: nothing. */
  find(prefix: string, key: string): Listed | undefined {
    const known = this.#directories.get(prefix);
    if (known === undefined) return undefined;
    const time = performance.now();
    const segment = this.#answering(known, key, key, time);
    // Behind the last key of a page the next one has the directory of its name
    const below = segment === undefined || covers(segment, `${key}/`) ? segment : this.#answering(known, key, `${key}/`, time);
    if (segment === undefined || below === undefined) return undefined;
    const directory = below.prefixes.has(`${key}/`);
    // One without a marker is there because of what we have made in it
    if (!directory && this.clock.isChangedBelowSince(key, below.stamp)) return undefined;
    segment.hits++;
    if (compareUtf8(key, segment.last) < 0) segment.falls++;
    segment.last = key;
    if (segment.hits >= HITS_BEFORE_RENEWAL && !segment.renewed && segment.expires_ms - time < this.ttl_ms / 2) {
      // Where it is gone through in order, what follows is asked for; else the same page
      segment.superseded = !known.small && segment.falls === 0 && segment.hits >= HITS_IN_ORDER;
      this.#renew(prefix, segment, segment.superseded ? before(prefix, key) : segment.after);
    }
    return { object: segment.objects.get(key) ?? null, directory };
  }

  /** A page that may be told of a name, and would have `entry` if there were such a one. */
  #answering({ segments }: Directory, key: string, entry: string, time_ms: number): Segment | undefined {
    return segments.find((one) => one.expires_ms > time_ms && covers(one, entry) && !this.clock.isChangedSince(key, one.stamp) && !one.outdated.has(key));
  }

  /** Objects that follow a key, in their order, in what listings have shown; also in pages that are too old to answer. */
  *following(prefix: string, key: string): Generator<ObjectInfo> {
    const segments = this.#directories.get(prefix)?.segments ?? [];
    let segment = segments.find(({ objects }) => objects.has(key));
    for (let last = key; segment !== undefined; ) {
      const keys = (segment.keys ??= [...segment.objects.keys()]);
      for (let at = behind(keys, last); at < keys.length; at++) yield segment.objects.get(keys[at])!;
      const { until } = segment;
      if (until === null) return;
      last = until;
      segment = segments.find((one) => compareUtf8(one.after, until) <= 0 && (one.until === null || compareUtf8(one.until, until) > 0));
    }
  }

  /** An object as a listing has shown it, however old; null: none has. */
  object(prefix: string, key: string): ObjectInfo | null {
    for (const one of this.#directories.get(prefix)?.segments ?? []) {
      const object = covers(one, key) ? one.objects.get(key) : undefined;
      if (object !== undefined) return object;
    }
    return null;
  }

  /** Keys of all objects of a directory that listings have shown, however old; some of them more than once. */
  *keys(prefix: string): Generator<string> {
    for (const { objects } of this.#directories.get(prefix)?.segments ?? []) yield* objects.keys();
  }

  /** How many keys() are. */
  keyCount(prefix: string): number {
    return (this.#directories.get(prefix)?.segments ?? []).reduce((count, { objects }) => count + objects.size, 0);
  }

  /** The store has told what there is at a key: a listing that says otherwise is not believed any more. null: nothing */
  compare(key: string, now: ObjectInfo | null): void {
    const directory = this.#directories.get(directoryOf(key));
    for (const { objects, outdated } of directory?.segments ?? []) if (objects.get(key)?.version !== now?.version) outdated.add(key);
  }

  /**
   * Before a key is asked for: whether a page of its directory is worth more than the one answer, which goes on from the key it
   * is given; null: it is not. `walked`: others of the directory are going to be looked up.
   */
  pageFor(prefix: string, key: string, walked: boolean): { readonly after: string } | null {
    if (this.ttl_ms === 0) return null;
    const directory = this.#of(prefix);
    const time = performance.now();
    if (time - directory.since_ms > this.ttl_ms) Object.assign(directory, { asked: 0, climbing: 0, since_ms: time });
    directory.asked++;
    directory.climbing = directory.last !== '' && compareUtf8(key, directory.last) >= 0 ? directory.climbing + 1 : 0;
    directory.last = key;
    if (!walked && (directory.asked <= ASKED_BEFORE_LISTING || directory.asked <= 2 ** directory.useless)) return null;
    if (directory.small) return { after: '' };
    const former = directory.segments.find((one) => one.expires_ms <= time && (covers(one, key) || covers(one, `${key}/`)));
    if (former !== undefined) return { after: former.after };
    // Somebody goes through it in order
    return directory.climbing >= ASKED_BEFORE_LISTING ? { after: before(prefix, key) } : null;
  }

  /** Keys that are going to be looked up: pages that are too old to answer, or will be soon, are asked for again, all at the same time. */
  prepare(prefix: string, keys: readonly string[]): void {
    const directory = this.#directories.get(prefix);
    if (directory === undefined || this.ttl_ms === 0) return;
    const soon_ms = performance.now() + this.ttl_ms / 4;
    for (const key of keys) {
      // The one that was asked for last comes first
      const page = directory.segments.find((one) => covers(one, key));
      if (page !== undefined && page.expires_ms <= soon_ms && !page.renewed) this.#renew(prefix, page, page.after);
    }
  }

  /** Ask for a page, and remember it; `lookups` are going to be answered by it for which it was asked. Who asks for one that is on its way waits for that. */
  list(prefix: string, after: string, lookups: number): Promise<void> {
    const name = `${prefix}\0${after}`;
    const known = this.#listing.get(name);
    if (known !== undefined) return known;
    const stamp = this.clock.changes;
    const page = this.store.list({ prefix, delimiter: '/', limit: PAGE, ...(after === '' ? {} : { after }) });
    const listing = page.then((answer) => this.add(prefix, after, answer, stamp, lookups)).finally(() => this.#listing.delete(name));
    this.#listing.set(name, listing);
    return listing;
  }

  /** A page that was listed with a delimiter behind the key `after`, when `stamp` was the present. */
  add(prefix: string, after: string, page: ListPage, stamp: number, lookups = 0): void {
    if (this.ttl_ms === 0) return;
    const until = page.next === null ? null : lastKey(page) ?? after;
    this.#put(prefix, {
      after, until, objects: new Map(page.objects.map((object) => [object.key, object])), prefixes: new Set(page.prefixes), stamp,
      expires_ms: performance.now() + this.ttl_ms, outdated: new Set(), keys: null, hits: -lookups, falls: 0, last: '',
      renewed: false, superseded: false,
    });
    this.#of(prefix).small = after === '' && page.next === null;
  }

  /** We have made it: there is nothing in it. */
  addEmpty(prefix: string): void {
    this.add(prefix, '', { objects: [], prefixes: [], next: null }, this.clock.changes);
  }

  /** Nobody waits for it; who comes after it has failed asks. */
  #renew(prefix: string, segment: Segment, after: string): void {
    segment.renewed = true;
    this.list(prefix, after, 0).catch((error: unknown) => {
      // Whoever needs it asks
      segment.renewed = false;
      if (!(error instanceof StorageError)) throw error;
    });
  }

  #of(prefix: string): Directory {
    const known = this.#directories.get(prefix);
    const directory = known ?? { segments: [], climbing: 0, asked: 0, last: '', since_ms: performance.now(), small: false, useless: 0 };
    // The one that was used last is the last one
    this.#directories.delete(prefix);
    this.#directories.set(prefix, directory);
    if (this.#directories.size > DIRECTORIES_MAX) this.#dropOldest();
    return directory;
  }

  #dropOldest(): void {
    const [[prefix, { segments }]] = this.#directories;
    this.#directories.delete(prefix);
    for (const segment of segments) this.#entries -= entriesIn(segment);
  }

  #put(prefix: string, segment: Segment): void {
    const directory = this.#of(prefix);
    const time = performance.now();
    const gone = directory.segments.filter((one) => one.after === segment.after || isOver(one, time));
    for (const { hits, expires_ms } of gone) if (expires_ms <= time) directory.useless = hits > 0 ? 0 : Math.min(USELESS_MAX, directory.useless + 1);
    this.#keep(directory, [segment, ...directory.segments.filter((one) => !gone.includes(one))].slice(0, SEGMENTS_MAX));
    while (!this.#holding.tryHold(this.#entries)) {
      if (this.#directories.size > 1) this.#dropOldest();
      else if (directory.segments.length > 1) this.#keep(directory, directory.segments.slice(0, -1));
      else break;
    }
    this.#holding.shrink(this.#entries);
    this.#timer ??= setTimeout(() => this.#tidy(), FORMER_MS).unref();
  }

  #keep(directory: Directory, segments: Segment[]): void {
    for (const one of segments) if (!directory.segments.includes(one)) this.#entries += entriesIn(one);
    for (const one of directory.segments) if (!segments.includes(one)) this.#entries -= entriesIn(one);
    directory.segments = segments;
  }

  /** Somebody waits for memory. */
  reclaim(): void {
    while (this.#entries > ENTRIES_FREE) this.#dropOldest();
    this.#holding.shrink(this.#entries);
  }

  /** The guest has gone. */
  clear(): void {
    while (this.#directories.size > 0) this.#dropOldest();
    this.#holding.shrink(this.#entries);
  }

  /** Pages that nobody has come for go. */
  #tidy(): void {
    this.#timer = null;
    const time = performance.now();
    let left = false;
    for (const directory of this.#directories.values()) {
      this.#keep(directory, directory.segments.filter((one) => !isOver(one, time)));
      left ||= directory.segments.length > 0;
    }
    this.#holding.shrink(this.#entries);
    if (left) this.#timer = setTimeout(() => this.#tidy(), FORMER_MS).unref();
  }
}

/** An object, or prefix of keys, of this name would be in the page. */
const covers = ({ after, until }: Segment, entry: string): boolean => compareUtf8(entry, after) > 0 && (until === null || compareUtf8(entry, until) <= 0);

/** It says nothing any more. */
const isOver = ({ expires_ms, superseded }: Segment, time_ms: number): boolean => expires_ms <= (superseded ? time_ms : time_ms - FORMER_MS);

/** Where the first key behind another one is. */
function behind(keys: readonly string[], key: string): number {
  let [low, high] = [0, keys.length];
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (compareUtf8(keys[middle], key) <= 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** A little before the key: names that begin like it are asked for with it. */
function before(prefix: string, key: string): string {
  const shorter = [...key].slice(0, -1).join('');
  return shorter.length < prefix.length ? prefix : shorter;
}

const entriesIn = ({ objects, prefixes }: Segment): number => objects.size + prefixes.size;
