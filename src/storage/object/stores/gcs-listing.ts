/** A page of names and resources. https://cloud.google.com/storage/docs/json_api/v1/objects/list */
import { compareUtf8 } from '../listing.js';
import type { ListOptions, ListPage } from '../store.js';
import type { GcsHttp } from './gcs-http.js';
import { bucketPath, FIELDS, infoOf, KEY_BYTES, objectIn } from './gcs-resource.js';
import { checkedPage, PAGE_MAX, placeOf } from './list-pages.js';

const LIST_FIELDS = `nextPageToken,prefixes,items(${FIELDS})`;
/** What an entry takes at most: 8 KiB of metadata in JSON, and what else is told of it; and what a page has besides. */
const PAGE_ENTRY_BYTES = 32 << 10;
const PAGE_HEAD_BYTES = 64 << 10;

/** @throws StorageError */
export async function pageOf(http: GcsHttp, bucket: string, operation: string, options: ListOptions): Promise<ListPage> {
  const { prefix, delimiter, after, limit = PAGE_MAX, signal } = options;
  const place = placeOf(options);
  const { read, fields } = await http.json({
    operation, method: 'GET', path: `${bucketPath(bucket)}/o`, bucketOnly: true, signal, answerMax_bytes: PAGE_HEAD_BYTES + limit * PAGE_ENTRY_BYTES,
    query: { prefix, delimiter, startOffset: after, pageToken: place.token, maxResults: limit, fields: LIST_FIELDS },
  });
  const { items, prefixes: folders, nextPageToken } = fields;
  // startOffset is the first name that may come; ours is the last one that may not
  const isBehind = (key: string): boolean => after === undefined || compareUtf8(key, after) > 0;
  const objects = read.list('the list of objects', items, limit).map((one) => infoOf(objectIn(read, one, prefix))).filter(({ key }) => isBehind(key));
  const prefixes = read.list('the list of prefixes', folders, limit).map((one) => read.key(one, prefix, KEY_BYTES)).filter(isBehind);
  const next = nextPageToken === undefined ? null : read.token('the token of the next page', nextPageToken);
  return checkedPage(read, { objects, prefixes, next }, options, place);
}
