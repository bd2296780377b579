/** Pages of names. https://cloud.google.com/storage/docs/json_api/v1/objects/list */
import { invalid } from './errors.js';
import { byUtf8, resourceOf, type Bucket, type Query, type Resource } from './objects.js';

const PAGE_MAX = 1000;

export function list(bucket: Bucket, query: Query): Resource {
  const prefix = query.get('prefix') ?? '';
  const delimiter = query.get('delimiter') ?? '';
  const maxResults = query.get('maxResults');
  if (maxResults !== undefined && !/^\d+$/.test(maxResults)) throw invalid(`Invalid value for maxResults: ${maxResults}`, 'maxResults');
  const limit = Math.min(PAGE_MAX, Number(maxResults ?? PAGE_MAX) || PAGE_MAX);
  const from = query.get('startOffset') ?? '';
  const until = query.get('endOffset');
  const after = tokenName(query.get('pageToken'));
  const items: Resource[] = [];
  const prefixes: string[] = [];
  let last: string | null = null;
  let collapsed: string | null = null;
  const names = bucket.names();
  for (let at = first(names, [prefix, from, after ?? ''].sort(byUtf8)[2]); at < names.length; at++) {
    const name = names[at];
    if (!name.startsWith(prefix) || (until !== undefined && byUtf8(name, until) >= 0)) break;
    const cut = delimiter === '' ? -1 : name.indexOf(delimiter, prefix.length);
    const folder = cut < 0 ? null : name.slice(0, cut + delimiter.length);
    // A token stands for the last entry of its page: a name, or a prefix with everything below it.
    if (after !== null && (byUtf8(name, after) <= 0 || folder === after)) continue;
    const isNew = folder !== null && folder !== collapsed;
    const inItems = folder === null || (query.get('includeTrailingDelimiter') === 'true' && name === folder);
    if (!isNew && !inItems) continue;
    if (items.length + prefixes.length >= limit) return page(items, prefixes, last);
    if (isNew) prefixes.push(folder);
    if (inItems) items.push(resourceOf(bucket.name, bucket.objects.get(name)!));
    collapsed = folder ?? collapsed;
    last = folder ?? name;
  }
  return page(items, prefixes, null);
}

/** Index of the first name that is not before this one. */
function first(names: readonly string[], name: string): number {
  let [low, high] = [0, names.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (byUtf8(names[middle], name) < 0) low = middle + 1;
    else high = middle;
  }
  return low;
}

function page(items: Resource[], prefixes: string[], last: string | null): Resource {
  return {
    kind: 'storage#objects',
    ...(prefixes.length === 0 ? {} : { prefixes }),
    ...(items.length === 0 ? {} : { items }),
    ...(last === null ? {} : { nextPageToken: Buffer.from(last).toString('base64') }),
  };
}

function tokenName(token: string | undefined): string | null {
  if (token === undefined) return null;
  const name = Buffer.from(token, 'base64').toString();
  if (Buffer.from(name).toString('base64') !== token) throw invalid('Invalid value for pageToken', 'pageToken');
  return name;
}

/** Which fields a partial response has: names to what is wanted of each, null for all of it. */
type Selection = Map<string, Selection | null>;

/**
 * The `fields` parameter: "a,b(c,d/e)". https://cloud.google.com/storage/docs/json_api#partial-response
 */
export function partial(value: unknown, fields: string | undefined): unknown {
  if (fields === undefined) return value;
  const parser = { text: fields, at: 0 };
  const selection = parseSelection(parser);
  if (parser.at !== fields.length) throw invalid(`Invalid field selection ${fields}`, 'fields');
  return pick(value, selection);
}

function parseSelection(parser: { text: string; at: number }): Selection {
  const selection: Selection = new Map();
  for (;;) {
    const name = /^[A-Za-z0-9_*]+/.exec(parser.text.slice(parser.at))?.[0];
    if (name === undefined) throw invalid(`Invalid field selection ${parser.text}`, 'fields');
    parser.at += name.length;
    let below: Selection | null = null;
    if (parser.text[parser.at] === '/') {
      parser.at++;
      const rest = /^[A-Za-z0-9_*]+/.exec(parser.text.slice(parser.at))?.[0] ?? '*';
      parser.at += rest.length;
      below = new Map([[rest, null]]);
    } else if (parser.text[parser.at] === '(') {
      parser.at++;
      below = parseSelection(parser);
      if (parser.text[parser.at++] !== ')') throw invalid(`Invalid field selection ${parser.text}`, 'fields');
    }
    selection.set(name, below);
    if (parser.text[parser.at] !== ',') return selection;
    parser.at++;
  }
}

function pick(value: unknown, selection: Selection | null): unknown {
  if (selection === null || selection.has('*')) return value;
  if (Array.isArray(value)) return value.map((one) => pick(one, selection));
  if (typeof value !== 'object' || value === null) return value;
  return Object.fromEntries(Object.entries(value).flatMap(([name, one]) => (selection.has(name) ? [[name, pick(one, selection.get(name)!)]] : [])));
}
