/**
 * Uploads in parts, which this provider's JSON API has not: each part is an object of its own below a reserved prefix,
 * and completing composes them, at most 32 at a time, into the object. The last compose is the only step that anybody
 * sees. https://cloud.google.com/storage/docs/composite-objects
 *
 *   PREFIX/begun/ID     an upload that is under way: its key in the metadata, its options as JSON in the content
 *   PREFIX/parts/ID/…   its parts, each attempt under a name of its own, and what was composed of them on the way
 *
 * An id is a UUID, and behind it the storage class and the key of an object that has others than the bucket's: all that is composed has to
 * be of one class, and what is encrypted with somebody's key is never stored with another one.
 *
 * So the state is in the bucket only, for any thread, and for the process after a crash. What is left over by processes
 * that never come back goes with a lifecycle rule on the prefix.
 */
import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { setTimeout as sleep } from 'node:timers/promises';
import { bodyBytes } from '../body.js';
import { StorageError } from '../errors.js';
import type { Body, CallOptions, Condition, ListPage, Metadata, ObjectHeaders, ObjectInfo, Part, PartSource, PutOptions, Upload, UploadInfo } from '../store.js';
import { checkCrc32c } from './gcs-crc32c.js';
import type { GcsHttp } from './gcs-http.js';
import { pageOf } from './gcs-listing.js';
import { FIELDS, fieldsOf, keyNameOf, objectPath, parseVersion, preconditions, type GcsObject, type Preconditions } from './gcs-resource.js';
import { insert, type Insert } from './gcs-uploads.js';

export interface PartsContext {
  readonly http: GcsHttp;
  readonly bucket: string;
  /** Ends with a slash. */
  readonly prefix: string;
  readonly resumableFromBytes: number;
  readonly kmsKeyName: string | undefined;
  /** storageClass, where one is set: that of everything that is composed has to be the same. */
  readonly defaults: Readonly<Record<string, string>>;
}

/** Of one compose. */
const SOURCES_MAX = 32;
const COMPOSES_AT_ONCE = 4;
const DELETES_AT_ONCE = 8;
const CLEANUP_ROUNDS = 3;
const CLEANUP_PAUSE_MS = 1000;
/** Of one round, and of all that is left when the store is closed. */
const CLEANUP_MS = 60_000;
const CLOSE_MS = 5_000;

interface Begun {
  readonly key: string;
  readonly metadata?: Metadata;
  readonly headers?: ObjectHeaders;
  readonly condition?: Condition;
}

/** What is composed: names and generations of objects. */
interface Source {
  readonly name: string;
  readonly generation: string;
}

export class GcsParts {
  /** Temporary objects that are being deleted while nobody waits for it. */
  readonly #cleanups = new Set<Promise<void>>();
  readonly #stop = new AbortController();

  constructor(readonly context: PartsContext) {
    setMaxListeners(0, this.#stop.signal); // as many as there are cleanups
  }

  #markerName(id: string): string {
    return `${this.context.prefix}begun/${id}`;
  }

  #partsPrefix(id: string): string {
    return `${this.context.prefix}parts/${id.slice(0, UUID_LENGTH)}/`;
  }

  async begin(operation: string, key: string, { metadata, headers, condition, signal }: PutOptions): Promise<Upload> {
    const begun: Begun = {
      key, ...(metadata === undefined ? {} : { metadata }), ...(headers === undefined ? {} : { headers }), ...(condition === undefined ? {} : { condition }),
    };
    const id = uploadId(headers);
    const content = Buffer.from(JSON.stringify(begun));
    await this.#temporary(operation, id, this.#markerName(id), content, signal, { key: encodeURIComponent(key) });
    return { key, id };
  }

  /** Each attempt has a name of its own: one that comes late replaces nothing, and no name is written twice a second. */
  async put(operation: string, upload: Upload, number: number, body: Body, signal: AbortSignal | undefined): Promise<Part> {
    const id = checkedId(upload, operation);
    const name = `${this.#partsPrefix(id)}${String(number).padStart(5, '0')}-${randomUUID()}`;
    const { generation } = await this.#temporary(operation, id, name, body, signal);
    return { number, tag: tagOf({ name, generation }), bytes: bodyBytes(body) };
  }

  /** The source itself is composed, pinned to its generation: nothing is copied. */
  async copy(operation: string, upload: Upload, number: number, source: PartSource, signal: AbortSignal | undefined): Promise<Part> {
    checkedId(upload, operation);
    const { http, bucket } = this.context;
    const { generation } = parseVersion(source.version, operation);
    const { read, fields } = await http.json({
      operation, method: 'GET', path: objectPath(bucket, source.key, operation), query: { ifGenerationMatch: generation, fields: 'size' }, signal,
    });
    const size = read.count('a size', fields['size']);
    if (source.bytes === 0 || source.offset + source.bytes > size) throw new StorageError('invalid', operation, { providerMessage: 'the source has no such range' });
    if (source.offset !== 0 || source.bytes !== size) throw new StorageError('unsupported', operation, { providerMessage: 'only whole objects are composed' });
    return { number, tag: tagOf({ name: source.key, generation }), bytes: source.bytes };
  }

  async complete(operation: string, upload: Upload, parts: readonly Part[], options: CallOptions & { readonly condition?: Condition }): Promise<GcsObject> {
    const { signal } = options;
    const id = checkedId(upload, operation);
    const begun = await this.#begun(operation, upload, signal);
    if (parts.length === 0 || parts.some((part, i) => i > 0 && part.number <= parts[i - 1].number)) {
      throw new StorageError('invalid', operation, { providerMessage: 'parts have to come in the order of their numbers' });
    }
    let sources = parts.map((part) => sourceOf(part.tag, operation));
    while (sources.length > SOURCES_MAX) sources = await this.#join(operation, id, sources, signal);
    const condition = options.condition ?? begun.condition;
    const destination = {
      contentType: 'application/octet-stream', ...fieldsOf(begun.headers ?? {}), ...this.context.defaults, ...(begun.metadata === undefined ? {} : { metadata: begun.metadata }),
    };
    const object = await this.#compose(operation, id, upload.key, sources, destination, preconditions(condition, operation), signal);
    this.#later((signal) => this.#discard(operation, id, signal));
    return object;
  }

  /** The parts first: an upload whose marker is there is one that can be found. */
  async abort(operation: string, upload: Upload, signal: AbortSignal | undefined): Promise<void> {
    await this.#discard(operation, checkedId(upload, operation), signal);
  }

  async list(operation: string, prefix: string, token: string | undefined, signal: AbortSignal | undefined): Promise<{ uploads: UploadInfo[]; next: string | null }> {
    const { objects, next } = await this.#page(operation, this.#markerName(''), token, signal);
    const uploads = objects.flatMap((object) => {
      const key = keyOf(object);
      if (key === null || !key.startsWith(prefix)) return [];
      return [{ key, id: object.key.slice(this.#markerName('').length), begun_ms: object.modified_ms }];
    });
    return { uploads, next };
  }

  /** Lets what is being cleaned up come to its end, for a while. */
  async close(): Promise<void> {
    const timer = setTimeout(() => this.#stop.abort(), CLOSE_MS);
    await Promise.allSettled(this.#cleanups);
    clearTimeout(timer);
  }

  #temporary(operation: string, id: string, key: string, body: Body, signal: AbortSignal | undefined, metadata?: Metadata): Promise<GcsObject> {
    const { http, bucket, resumableFromBytes } = this.context;
    const { kmsKeyName, storage } = this.#placeOf(id);
    const resource = { ...storage, ...(metadata === undefined ? {} : { metadata }) };
    const made: Insert = { operation, bucket, key, resource, conditions: { ifGenerationMatch: '0' }, kmsKeyName, signal };
    return insert(http, made, body, resumableFromBytes);
  }

  /** How what belongs to an upload is stored. */
  #placeOf(id: string): { readonly kmsKeyName: string | undefined; readonly storage: Readonly<Record<string, string>> } {
    const { kmsKeyName, defaults } = this.context;
    const [storageClass = '', key = ''] = Buffer.from(id.slice(UUID_LENGTH + 1), 'base64url').toString().split('\n');
    return { kmsKeyName: kmsKeyName ?? (key === '' ? undefined : key), storage: { ...(storageClass === '' ? {} : { storageClass }), ...defaults } };
  }

  async #begun(operation: string, upload: Upload, signal: AbortSignal | undefined): Promise<Begun> {
    const { http, bucket } = this.context;
    const { headers, body } = await http.call({
      operation, method: 'GET', path: objectPath(bucket, this.#markerName(upload.id), operation), query: { alt: 'media' }, signal,
    });
    checkCrc32c(body, headers['x-goog-hash'], operation);
    const begun = JSON.parse(body.toString()) as Begun; // what begin() wrote, by its checksum
    if (begun.key !== upload.key) throw new StorageError('not-found', operation, { providerMessage: 'this upload is of another key' });
    return begun;
  }

  /** Fewer objects with the same content: one for each 32. */
  async #join(operation: string, id: string, sources: readonly Source[], signal: AbortSignal | undefined): Promise<Source[]> {
    const groups: Source[][] = [];
    for (let at = 0; at < sources.length; at += SOURCES_MAX) groups.push(sources.slice(at, at + SOURCES_MAX));
    return inParallel(groups, COMPOSES_AT_ONCE, async (group) => {
      if (group.length === 1) return group[0];
      const name = `${this.#partsPrefix(id)}joined-${randomUUID()}`;
      const { generation } = await this.#compose(operation, id, name, group, this.#placeOf(id).storage, { ifGenerationMatch: '0' }, signal);
      return { name, generation };
    });
  }

  #compose(
    operation: string, id: string, key: string, sources: readonly Source[], destination: Readonly<Record<string, unknown>>, conditions: Preconditions,
    signal: AbortSignal | undefined,
  ): Promise<GcsObject> {
    const { http, bucket } = this.context;
    const { kmsKeyName } = this.#placeOf(id);
    const sourceObjects = sources.map(({ name, generation }) => ({ name, objectPreconditions: { ifGenerationMatch: generation } }));
    return http.object({
      operation, method: 'POST', path: `${objectPath(bucket, key, operation)}/compose`, query: { fields: FIELDS, kmsKeyName, ...conditions },
      headers: { 'content-type': 'application/json; charset=UTF-8' }, body: Buffer.from(JSON.stringify({ sourceObjects, destination })), signal, mutates: true,
    }, key);
  }

  async #discard(operation: string, id: string, signal: AbortSignal | undefined): Promise<void> {
    let token: string | undefined;
    do {
      const { objects, next } = await this.#page(operation, this.#partsPrefix(id), token, signal);
      await inParallel(objects, DELETES_AT_ONCE, ({ key }) => this.#delete(operation, key, signal));
      token = next ?? undefined;
    } while (token !== undefined);
    await this.#delete(operation, this.#markerName(id), signal);
  }

  async #delete(operation: string, key: string, signal: AbortSignal | undefined): Promise<void> {
    const { http, bucket } = this.context;
    await http.call({ operation, method: 'DELETE', path: objectPath(bucket, key, operation), signal, mutates: true, also: [404] });
  }

  #page(operation: string, prefix: string, token: string | undefined, signal: AbortSignal | undefined): Promise<ListPage> {
    const { http, bucket } = this.context;
    return pageOf(http, bucket, operation, { prefix, ...(token === undefined ? {} : { token }), ...(signal === undefined ? {} : { signal }) });
  }

  /** What is still there after all rounds is found by listUploads(), since the marker goes last. */
  #later(cleanup: (signal: AbortSignal) => Promise<void>): void {
    const { signal } = this.#stop;
    const rounds = async (): Promise<void> => {
      for (let round = 1; round <= CLEANUP_ROUNDS && !signal.aborted; round++) {
        try {
          return await cleanup(AbortSignal.any([signal, AbortSignal.timeout(CLEANUP_MS)]));
        } catch {
          if (round < CLEANUP_ROUNDS) await sleep(CLEANUP_PAUSE_MS, undefined, { signal }).catch(() => {});
        }
      }
    };
    const running = rounds();
    this.#cleanups.add(running);
    void running.finally(() => this.#cleanups.delete(running));
  }
}

const UUID_LENGTH = 36;

function uploadId(headers: ObjectHeaders = {}): string {
  const place = `${headers['x-goog-storage-class'] ?? ''}\n${keyNameOf(headers) ?? ''}`;
  return place === '\n' ? randomUUID() : `${randomUUID()}.${Buffer.from(place).toString('base64url')}`;
}

/** Ids go into names of objects that are deleted: they are ours, or none. */
function checkedId(upload: Upload, operation: string): string {
  if (!/^[0-9a-f-]{36}(\.[\w-]{1,800})?$/.test(upload.id)) throw new StorageError('not-found', operation, { providerMessage: 'this is no upload of ours' });
  return upload.id;
}

const tagOf = ({ name, generation }: Source): string => `${generation} ${name}`;

function sourceOf(tag: string, operation: string): Source {
  const match = /^(\d{1,19}) (.+)$/s.exec(tag);
  if (match === null) throw new StorageError('invalid', operation, { providerMessage: 'this is no part of ours' });
  return { generation: match[1], name: match[2] };
}

function keyOf(object: ObjectInfo): string | null {
  try {
    return decodeURIComponent(object.metadata?.key ?? '') || null;
  } catch {
    return null;
  }
}

/** Results in the order of the items; the first failure stops what has not begun. */
async function inParallel<I, R>(items: readonly I[], most: number, run: (item: I) => Promise<R>): Promise<R[]> {
  const results = new Array<R>(items.length);
  let next = 0;
  const worker = async (): Promise<void> => {
    while (next < items.length) {
      const at = next++;
      try {
        results[at] = await run(items[at]);
      } catch (error) {
        next = items.length;
        throw error;
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(most, items.length) }, worker));
  return results;
}
