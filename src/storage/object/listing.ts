/**
 * A directory's entries from the pages of a bucket's listing, in one pass and with little memory.
 *
 * Where there are both an object `foo` and keys below `foo/`, the directory has the plain name, so what the object is
 * called depends on a key that may come much later: "foo-1", "foo.txt" and all else whose next character is below '/' lie
 * between. But whatever lies between begins with "foo". So an object is held back until a key comes that does not
 * begin with its name, or the directory does; those held back at any time begin with one another, and are few.
 */
import { nameOf } from './names.js';
import type { ListPage, ObjectInfo } from './store.js';

export interface Entry {
  /** As the guest sees it. */
  readonly name: Uint8Array;
  /** Of the key: what is between the directory's prefix and the next slash. */
  readonly component: string;
  /** null: a directory. */
  readonly object: ObjectInfo | null;
  /** An object beside a directory of its name. */
  readonly clash: boolean;
}

/** What a listing of one directory must remember between pages: plain and small, so that it can be kept for each page. */
export interface ListingState {
  /** Objects held back, shortest first: each is the beginning of the next. */
  readonly held: readonly ObjectInfo[];
  /** The last directory, for providers that say one on two pages. */
  readonly lastPrefix: string;
}

export const LISTING_START: ListingState = { held: [], lastPrefix: '' };

/**
 * The entries that a page makes certain. `prefix` is the directory's ("a/b/", or "" for the bucket); the object whose key it
 * is itself is the directory's marker, and no entry unless it has content. `last`: nothing follows.
 */
export function entriesOf(prefix: string, page: Pick<ListPage, 'objects' | 'prefixes'>, state: ListingState, last: boolean): { entries: Entry[]; state: ListingState } {
  const entries: Entry[] = [];
  const held = [...state.held];
  let { lastPrefix } = state;
  const component = (key: string): string => key.slice(prefix.length);
  const release = (until: string | null): void => {
    while (held.length > 0 && (until === null || !component(until).startsWith(component(held.at(-1)!.key)))) {
      const object = held.pop()!;
      entries.push({ name: nameOf(component(object.key)), component: component(object.key), object, clash: false });
    }
  };
  for (const one of merge(page)) {
    const key = typeof one === 'string' ? one : one.key;
    release(key);
    if (typeof one !== 'string') {
      // Keys that are no text may come as one and the same
      if ((key !== prefix || one.size > 0) && held.at(-1)?.key !== key) held.push(one);
      continue;
    }
    if (key === lastPrefix) continue;
    lastPrefix = key;
    const directory = component(key).slice(0, -1);
    const at = held.findIndex((object) => component(object.key) === directory);
    entries.push({ name: nameOf(directory), component: directory, object: null, clash: false });
    if (at < 0) continue;
    const [object] = held.splice(at, 1);
    entries.push({ name: nameOf(directory, true), component: directory, object, clash: true });
  }
  if (last) release(null);
  return { entries, state: { held, lastPrefix } };
}

/** The last key, or prefix of keys, that a page shows; null: it has no entries. */
export function lastKey({ objects, prefixes }: Pick<ListPage, 'objects' | 'prefixes'>): string | null {
  const object = objects.at(-1)?.key ?? null;
  const prefix = prefixes.at(-1) ?? null;
  return object === null || (prefix !== null && compareUtf8(object, prefix) < 0) ? prefix : object;
}

/** Objects and prefixes of a page in the order of their names' UTF-8 bytes, as the provider has gone through them. */
function* merge({ objects, prefixes }: Pick<ListPage, 'objects' | 'prefixes'>): Generator<ObjectInfo | string> {
  let o = 0;
  let p = 0;
  while (o < objects.length || p < prefixes.length) {
    if (p === prefixes.length || (o < objects.length && compareUtf8(objects[o].key, prefixes[p]) < 0)) yield objects[o++];
    else yield prefixes[p++];
  }
}

/**
 * Order of UTF-8 bytes, which is that of code points: UTF-16 units differ from it only where one of two is a surrogate,
 * which then stands for more than any unit above it.
 */
export function compareUtf8(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const x = a.charCodeAt(i);
    const y = b.charCodeAt(i);
    if (x === y) continue;
    const surrogateX = x >= 0xd800 && x <= 0xdfff;
    const surrogateY = y >= 0xd800 && y <= 0xdfff;
    return surrogateX === surrogateY ? x - y : surrogateX ? 1 : -1;
  }
  return a.length - b.length;
}
