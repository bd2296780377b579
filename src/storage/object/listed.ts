/**
 * What listings have shown of directories: while that is young it answers lookups, so that many names of one directory are not
 * asked for one by one. A listing knows an object, a directory, or that there is neither.
 */
import { StorageError } from './errors.js';
import { compareUtf8, lastKey } from './listing.js';
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
  hits: number;
  /** It is being asked for anew. */
  renewed: boolean;
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
const SEGMENTS_MAX = 4;
/** Of all directories together: each takes some hundred bytes. */
const ENTRIES_MAX = 16_384;
const PAGE = 1000;
/** So many names of a directory are asked for one by one before it is listed instead. */
const ASKED_BEFORE_LISTING = 3;
const USELESS_MAX = 6;
/** A listing that has answered so many lookups is asked for anew before it is too old. */
const HITS_BEFORE_RENEWAL = 4;

export class ListedDirectories {
  readonly #directories = new Map<string, Directory>();
  /** In all segments. */
  #entries = 0;

  constructor(
    readonly store: ObjectStore,
    readonly clock: Clock,
    readonly ttl_ms: number,
  ) {}

  /** What is known of a key in the directory `prefix`; undefined: nothing. */
  find(prefix: string, key: string): Listed | undefined {
    const known = this.#directories.get(prefix);
    if (known === undefined) return undefined;
    const time = performance.now();
    for (const segment of known.segments) {
      if (segment.expires_ms <= time || this.clock.isChangedSince(key, segment.stamp) || compareUtf8(key, segment.after) <= 0 || segment.outdated.has(key)) continue;
      if (segment.until !== null && compareUtf8(`${key}/`, segment.until) > 0) continue;
      const directory = segment.prefixes.has(`${key}/`);
      // One without a marker is there because of what we have made in it
      if (!directory && this.clock.isChangedBelowSince(key, segment.stamp)) continue;
      segment.hits++;
      if (segment.hits >= HITS_BEFORE_RENEWAL && !segment.renewed && segment.expires_ms - time < this.ttl_ms / 2) this.#renew(prefix, key, known, segment);
      return { object: segment.objects.get(key) ?? null, directory };
    }
    return undefined;
  }

  /** Objects that follow a key in a listing that answers lookups, so many at most. */
  following(prefix: string, key: string, count: number): ObjectInfo[] {
    const time = performance.now();
    const segment = this.#directories.get(prefix)?.segments.find(({ objects, expires_ms }) => expires_ms > time && objects.has(key));
    if (segment === undefined) return [];
    const keys = (segment.keys ??= [...segment.objects.keys()]);
    let [low, high] = [0, keys.length];
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (compareUtf8(keys[middle], key) <= 0) low = middle + 1;
      else high = middle;
    }
    return keys.slice(low, low + count).map((one) => segment.objects.get(one)!);
  }

  /** The store has told what there is at a key: a listing that says otherwise is not believed any more. null: nothing */
  compare(key: string, now: ObjectInfo | null): void {
    const directory = this.#directories.get(directoryOf(key));
    for (const { objects, outdated } of directory?.segments ?? []) if (objects.get(key)?.version !== now?.version) outdated.add(key);
  }

  /**
   * Before a key is asked for: whether a page of its directory is worth more than the one answer, which goes on from the key it
   * is given; null: it is not.
   */
  pageFor(prefix: string, key: string): { readonly after: string } | null {
    if (this.ttl_ms === 0) return null;
    const directory = this.#of(prefix);
    const time = performance.now();
    if (time - directory.since_ms > this.ttl_ms) Object.assign(directory, { asked: 0, climbing: 0, since_ms: time });
    directory.asked++;
    directory.climbing = directory.last !== '' && compareUtf8(key, directory.last) >= 0 ? directory.climbing + 1 : 0;
    directory.last = key;
    if (directory.asked <= ASKED_BEFORE_LISTING || directory.asked <= 2 ** directory.useless) return null;
    if (directory.small) return { after: '' };
    // Somebody goes through it in order
    return directory.climbing >= ASKED_BEFORE_LISTING ? { after: before(prefix, key) } : null;
  }

  /** Ask for a page, and remember it. */
  async list(prefix: string, after: string): Promise<void> {
    const stamp = this.clock.changes;
    this.add(prefix, after, await this.store.list({ prefix, delimiter: '/', limit: PAGE, ...(after === '' ? {} : { after }) }), stamp);
  }

  /** A page that was listed with a delimiter behind the key `after`, when `stamp` was the present. */
  add(prefix: string, after: string, page: ListPage, stamp: number): void {
    if (this.ttl_ms === 0) return;
    const until = page.next === null ? null : lastKey(page) ?? after;
    this.#put(prefix, {
      after, until, objects: new Map(page.objects.map((object) => [object.key, object])), prefixes: new Set(page.prefixes), stamp,
      expires_ms: performance.now() + this.ttl_ms, outdated: new Set(), keys: null, hits: 0, renewed: false,
    });
    this.#of(prefix).small = after === '' && page.next === null;
  }

  /** We have made it: there is nothing in it. */
  addEmpty(prefix: string): void {
    this.add(prefix, '', { objects: [], prefixes: [], next: null }, this.clock.changes);
  }

  /** Nobody waits for it; who comes too early, or after it has failed, asks. */
  #renew(prefix: string, key: string, directory: Directory, segment: Segment): void {
    segment.renewed = true;
    this.list(prefix, directory.small ? '' : before(prefix, key)).catch((error: unknown) => {
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
    const gone = directory.segments.filter(({ expires_ms }) => expires_ms <= time);
    for (const { hits } of gone) directory.useless = hits > 0 ? 0 : Math.min(USELESS_MAX, directory.useless + 1);
    const segments = [segment, ...directory.segments.filter((one) => !gone.includes(one))].slice(0, SEGMENTS_MAX);
    this.#entries += entriesIn(segment);
    for (const one of directory.segments) if (!segments.includes(one)) this.#entries -= entriesIn(one);
    directory.segments = segments;
    while (this.#entries > ENTRIES_MAX && this.#directories.size > 1) this.#dropOldest();
  }
}

/** A little before the key: names that begin like it are asked for with it. */
function before(prefix: string, key: string): string {
  const shorter = [...key].slice(0, -1).join('');
  return shorter.length < prefix.length ? prefix : shorter;
}

const entriesIn = ({ objects, prefixes }: Segment): number => objects.size + prefixes.size;
