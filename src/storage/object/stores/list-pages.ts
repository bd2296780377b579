/**
 * Pages of a listing, as an endpoint sends them. Callers get tokens that hold more than the provider's: the last key so far, and how many pages did not get beyond
 * it. So each page can be compared with the one before, whoever asks for it.
 *
 * The rule *a listing gets on*: keys are below the prefix and in the order of UTF-8 bytes, each behind the last one; no page has more than was asked for; and pages
 * that do not get on are few. Then every listing ends, and what is held of it is bounded.
 */
import { compareUtf8, lastKey } from '../listing.js';
import type { ListOptions, ListPage } from '../store.js';
import { AnswerReader } from './answer-reader.js';

/** Entries of a page, when nobody says how many. */
export const PAGE_MAX = 1000;
/** Pages in a row that do not get on: empty ones, or the same prefix again where a provider goes through it piece by piece. */
const STILL_MAX = 1000;

/** Bytes that are no text have become U+FFFD: such a key is not where its bytes were, and cannot be asked for. */
const isLossy = (key: string): boolean => key.includes('\ufffd');

/** How far a listing has come. */
export interface Place {
  /** The provider's; undefined: it begins. */
  readonly token: string | undefined;
  /** The last key, or prefix of keys; '': none so far. */
  readonly last: string;
  readonly still: number;
}

/** Where a call of list() goes on. */
export function placeOf({ token, after = '' }: Pick<ListOptions, 'token' | 'after'>): Place {
  if (token === undefined) return { token, last: after, still: 0 };
  const [provider, last, still] = JSON.parse(token) as [string, string, number];
  return { token: provider, last, still };
}

/** The page, with a token that says how far it goes. @throws StorageError */
export function checkedPage(read: AnswerReader, page: ListPage, { prefix, delimiter, limit = PAGE_MAX }: ListOptions, place: Place): ListPage {
  const { objects, prefixes } = page;
  if (objects.length + prefixes.length > limit) throw read.wrong(`${objects.length + prefixes.length} entries, where ${limit} were asked for`);
  const isBelow = (key: string): boolean => delimiter === undefined || !key.slice(prefix.length).includes(delimiter);
  let last = place.last;
  for (const { key } of objects) {
    if (isLossy(key)) continue;
    if (compareUtf8(key, last) <= 0) throw read.wrong(`the key ${JSON.stringify(key)} comes behind ${JSON.stringify(last)}`);
    if (!isBelow(key)) throw read.wrong(`the key ${JSON.stringify(key)} is below another prefix`);
    last = key;
  }
  last = '';
  for (const one of prefixes) {
    if (isLossy(one)) continue;
    if (delimiter === undefined || one.length <= prefix.length || !one.endsWith(delimiter) || !isBelow(one.slice(0, -1))) throw read.wrong(`${JSON.stringify(one)} is no prefix that was asked for`);
    // The one in which the page before has ended comes again
    const goesOn = last === '' && place.last.startsWith(one);
    if (!goesOn && compareUtf8(one, last === '' ? place.last : last) <= 0) throw read.wrong(`the prefix ${JSON.stringify(one)} comes behind ${JSON.stringify(last === '' ? place.last : last)}`);
    last = one;
  }
  if (page.next === null) return page;
  const end = lastKey(page) ?? place.last;
  const got = compareUtf8(end, place.last) > 0;
  const still = got ? 0 : place.still + 1;
  if (still > STILL_MAX) throw read.wrong(`${still} pages in a row did not get beyond ${JSON.stringify(place.last)}`);
  return { objects, prefixes, next: JSON.stringify([page.next, got ? end : place.last, still]) };
}
