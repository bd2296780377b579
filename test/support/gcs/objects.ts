/**
 * The objects of one bucket, with generations, metagenerations and preconditions as
 * https://cloud.google.com/storage/docs/request-preconditions and
 * https://cloud.google.com/storage/docs/json_api/v1/objects say.
 */
import { CRC32C } from '@google-cloud/storage';
import { createHash } from 'node:crypto';
import { ApiError, conditionNotMet, invalid, noSuchObject, notModified } from './errors.js';

/** Query parameters of a request; those given several times have their first value. */
export type Query = ReadonlyMap<string, string>;

/** The part of an object resource that callers write; all kept as they came. */
export interface Writable {
  contentType?: string;
  contentEncoding?: string;
  contentDisposition?: string;
  contentLanguage?: string;
  cacheControl?: string;
  storageClass?: string;
  customTime?: string;
  metadata?: Record<string, string>;
  /** With the version of the key. */
  kmsKeyName?: string;
  temporaryHold?: boolean;
  eventBasedHold?: boolean;
  contexts?: { readonly custom: Readonly<Record<string, { readonly value: string }>> };
}

export interface Stored {
  readonly name: string;
  readonly content: Buffer;
  readonly generation: number;
  readonly metageneration: number;
  readonly fields: Writable;
  /** Big-endian base64, as in the resource. */
  readonly crc32c: string;
  /** null for what was composed. */
  readonly md5Hash: string | null;
  readonly componentCount: number | null;
  readonly created_ms: number;
  readonly updated_ms: number;
}

const WRITABLE = ['contentType', 'contentEncoding', 'contentDisposition', 'contentLanguage', 'cacheControl', 'storageClass', 'customTime'] as const;
const HOLDS = ['temporaryHold', 'eventBasedHold'] as const;
/** https://cloud.google.com/storage/quotas#objects */
const NAME_BYTES_MAX = 1024;
const METADATA_BYTES_MAX = 8 * 1024;
const COMPOSE_SOURCES_MAX = 32;

export type Resource = Record<string, unknown>;

/** Takes what a caller may write out of a resource that it sent. */
export function writableOf(resource: Resource): Writable {
  const fields: Writable = {};
  for (const name of WRITABLE) {
    const value = resource[name];
    if (value === undefined || value === null) continue;
    if (typeof value !== 'string') throw invalid(`Invalid value for: ${name}`);
    fields[name] = value;
  }
  if (resource.metadata !== undefined && resource.metadata !== null) fields.metadata = metadataOf(resource.metadata);
  for (const hold of HOLDS) if (typeof resource[hold] === 'boolean') fields[hold] = resource[hold];
  if (resource.contexts !== undefined && resource.contexts !== null) fields.contexts = resource.contexts as NonNullable<Writable['contexts']>;
  return fields;
}

function metadataOf(value: unknown): Record<string, string> {
  if (typeof value !== 'object' || value === null || Array.isArray(value)) throw invalid('Invalid value for: metadata');
  const out: Record<string, string> = {};
  for (const [name, one] of Object.entries(value)) {
    if (one === null) continue;
    if (typeof one !== 'string') throw invalid(`Invalid value for: metadata.${name}`);
    out[name] = one;
  }
  return out;
}

/** https://cloud.google.com/storage/docs/objects#naming */
export function checkName(name: string): void {
  const bytes = Buffer.byteLength(name);
  if (bytes === 0) throw new ApiError(400, 'required', 'Required', { locationType: 'parameter', location: 'name' });
  if (bytes > NAME_BYTES_MAX) throw invalid(`The specified object name is not valid. Object names must be at most ${NAME_BYTES_MAX} bytes.`);
  if (/[\r\n]/.test(name)) throw invalid('Disallowed unicode characters present in object name.');
  if (name === '.' || name === '..' || name.startsWith('.well-known/acme-challenge/')) throw invalid('The specified object name is not valid.');
}

function checkMetadata(metadata: Record<string, string> = {}): void {
  const bytes = Object.entries(metadata).reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value), 0);
  if (bytes > METADATA_BYTES_MAX) throw invalid('The metadata for this object exceeds the maximum of 8 KiB and is too large.');
}

/** An int64 parameter. */
function int64(query: Query, name: string): number | undefined {
  const text = query.get(name);
  if (text === undefined) return undefined;
  if (!/^-?\d{1,19}$/.test(text)) throw invalid(`Invalid value for ${name}: ${text}`, name);
  return Number(text);
}

/** Which parameters hold the preconditions: of the target, or of the source of a copy. */
const TARGET = {
  generation: 'ifGenerationMatch', notGeneration: 'ifGenerationNotMatch', metageneration: 'ifMetagenerationMatch', notMetageneration: 'ifMetagenerationNotMatch',
};
const SOURCE = {
  generation: 'ifSourceGenerationMatch', notGeneration: 'ifSourceGenerationNotMatch', metageneration: 'ifSourceMetagenerationMatch',
  notMetageneration: 'ifSourceMetagenerationNotMatch',
};

/** 0 stands for "no live object". @throws 412 for Match, 304 for NotMatch. */
function require(live: Stored | undefined, query: Query, names: typeof TARGET): void {
  const generation = int64(query, names.generation);
  if (generation !== undefined && generation !== (live?.generation ?? 0)) throw conditionNotMet();
  const metageneration = int64(query, names.metageneration);
  if (metageneration !== undefined && metageneration !== live?.metageneration) throw conditionNotMet();
  const notGeneration = int64(query, names.notGeneration);
  if (notGeneration !== undefined && notGeneration === (live?.generation ?? 0)) throw notModified();
  const notMetageneration = int64(query, names.notMetageneration);
  if (notMetageneration !== undefined && notMetageneration === live?.metageneration) throw notModified();
}

export interface BucketOptions {
  /** Callers have to name the project that pays. */
  readonly requesterPays?: boolean;
  readonly location?: string;
}

interface NewObject {
  readonly content: Buffer;
  readonly fields: Writable;
  readonly componentCount?: number;
}

export class Bucket {
  readonly objects = new Map<string, Stored>();
  readonly created_ms = Date.now();
  #generation = 0;
  /** Names in order; `#added` are not yet among them, and some may be gone. */
  #sorted: string[] = [];
  #added: string[] = [];
  #isCurrent = true;

  constructor(readonly name: string, readonly options: BucketOptions = {}) {}

  /** All names in the order of their UTF-8 bytes, which is that of listings. */
  names(): readonly string[] {
    if (!this.#isCurrent) {
      const all = [...this.#sorted, ...this.#added].filter((name) => this.objects.has(name)).sort(byUtf8);
      this.#sorted = all.filter((name, at) => name !== all[at - 1]);
      this.#added = [];
      this.#isCurrent = true;
    }
    return this.#sorted;
  }

  /** The live object, if the conditions hold. @throws 404, 412, 304 */
  get(name: string, query: Query): Stored {
    return this.#select(name, int64(query, 'generation'), query, TARGET);
  }

  source(name: string, query: Query): Stored {
    return this.#select(name, int64(query, 'sourceGeneration'), query, SOURCE);
  }

  #select(name: string, generation: number | undefined, query: Query, names: typeof TARGET): Stored {
    const live = this.objects.get(name);
    if (live === undefined || (generation !== undefined && generation !== live.generation)) throw noSuchObject(this.name, name);
    require(live, query, names);
    return live;
  }

  /** Conditions of a write that makes a new generation: without a live object they fail by 412, not by 404. */
  requireTarget(name: string, query: Query): void {
    require(this.objects.get(name), query, TARGET);
  }

  /** A new generation of the name. @throws 400, 412 */
  insert(name: string, made: NewObject, query: Query, sums: { crc32c?: unknown; md5Hash?: unknown } = {}): Stored {
    checkName(name);
    checkMetadata(made.fields.metadata);
    const crc32c = checksum(made.content);
    const md5 = createHash('md5').update(made.content).digest('base64');
    if (typeof sums.crc32c === 'string' && sums.crc32c !== crc32c) throw invalid(`Provided CRC32C "${sums.crc32c}" doesn't match calculated CRC32C "${crc32c}".`);
    if (typeof sums.md5Hash === 'string' && sums.md5Hash !== md5) throw invalid(`Provided MD5 hash "${sums.md5Hash}" doesn't match calculated MD5 hash "${md5}".`);
    this.requireTarget(name, query);
    this.#requireFree(name);
    const key = query.get('kmsKeyName') ?? query.get('destinationKmsKeyName');
    const now = Date.now();
    const stored: Stored = {
      name, content: made.content, generation: this.#next(now), metageneration: 1, crc32c,
      fields: { storageClass: 'STANDARD', ...made.fields, ...(key === undefined ? {} : { kmsKeyName: `${key}/cryptoKeyVersions/1` }) },
      md5Hash: made.componentCount === undefined ? md5 : null, componentCount: made.componentCount ?? null, created_ms: now, updated_ms: now,
    };
    if (!this.objects.has(name)) {
      this.#added.push(name);
      this.#isCurrent = false;
    }
    this.objects.set(name, stored);
    return stored;
  }

  /** https://cloud.google.com/storage/docs/object-holds @throws 403 */
  #requireFree(name: string): void {
    const { temporaryHold, eventBasedHold } = this.objects.get(name)?.fields ?? {};
    if (temporaryHold === true || eventBasedHold === true) {
      throw new ApiError(403, 'objectUnderActiveHold', `Object '${this.name}/${name}' is under active Temporary hold and cannot be deleted, overwritten or archived until hold is removed.`);
    }
  }

  /** Microseconds, and never the same or an earlier one again. */
  #next(now_ms: number): number {
    this.#generation = Math.max(this.#generation + 1, now_ms * 1000);
    return this.#generation;
  }

  /** JSON merge patch of the writable fields: null removes. https://cloud.google.com/storage/docs/json_api/v1/objects/patch */
  patch(name: string, change: Resource, query: Query): Stored {
    const live = this.get(name, query);
    const fields: Writable = { ...live.fields };
    for (const field of [...WRITABLE, ...HOLDS, 'contexts'] as const) if (change[field] === null) delete fields[field];
    const { metadata: _set, ...others } = writableOf({ ...change, metadata: null });
    Object.assign(fields, others);
    if (change.metadata === null) delete fields.metadata;
    else if (change.metadata !== undefined) {
      const merged = { ...fields.metadata };
      for (const [key, value] of Object.entries(change.metadata as Record<string, unknown>)) if (value === null) delete merged[key];
      fields.metadata = { ...merged, ...metadataOf(change.metadata) };
    }
    checkMetadata(fields.metadata);
    const patched = { ...live, fields, metageneration: live.metageneration + 1, updated_ms: Date.now() };
    this.objects.set(name, patched);
    return patched;
  }

  delete(name: string, query: Query): void {
    this.get(name, query);
    this.#requireFree(name);
    this.objects.delete(name);
    this.#isCurrent = false;
  }

  /** https://cloud.google.com/storage/docs/json_api/v1/objects/move */
  move(name: string, target: string, query: Query): Stored {
    const source = this.source(name, query);
    if (name === target) throw invalid('The source and destination objects must have different names.');
    this.#requireFree(name);
    const { content, fields, componentCount } = source;
    const made = this.insert(target, { content, fields, ...(componentCount === null ? {} : { componentCount }) }, query);
    this.objects.delete(name);
    this.#isCurrent = false;
    return made;
  }

  /** https://cloud.google.com/storage/docs/json_api/v1/objects/compose */
  compose(name: string, request: Resource, query: Query): Stored {
    const sources = request.sourceObjects;
    if (!Array.isArray(sources) || sources.length === 0) throw invalid('You must provide at least one source component.');
    if (sources.length > COMPOSE_SOURCES_MAX) {
      throw invalid(`The number of source components provided (${sources.length}) exceeds the maximum (${COMPOSE_SOURCES_MAX})`);
    }
    const found = (sources as { name?: string; generation?: string; objectPreconditions?: { ifGenerationMatch?: string } }[]).map((source) => {
      const live = this.objects.get(source.name ?? '');
      if (live === undefined || (source.generation !== undefined && Number(source.generation) !== live.generation)) {
        throw noSuchObject(this.name, source.name ?? '');
      }
      const wanted = source.objectPreconditions?.ifGenerationMatch;
      if (wanted !== undefined && Number(wanted) !== live.generation) throw conditionNotMet();
      return live;
    });
    const storageClass = found[0].fields.storageClass;
    if (found.some((one) => one.fields.storageClass !== storageClass)) throw invalid('All of the source components must have the same storage class.');
    // Contexts of all sources come along: https://cloud.google.com/storage/docs/object-contexts
    const custom = Object.assign({}, ...found.map((one) => one.fields.contexts?.custom ?? {})) as NonNullable<Writable['contexts']>['custom'];
    const contexts = Object.keys(custom).length === 0 ? {} : { contexts: { custom } };
    const fields = { ...(storageClass === undefined ? {} : { storageClass }), ...contexts, ...writableOf((request.destination ?? {}) as Resource) };
    const componentCount = found.reduce((sum, one) => sum + (one.componentCount ?? 1), 0);
    return this.insert(name, { content: Buffer.concat(found.map((one) => one.content)), fields, componentCount }, query);
  }
}

/** UTF-16 has the same order but for surrogates, which stand for what comes after everything else. */
export function byUtf8(a: string, b: string): number {
  for (let at = 0; at < a.length && at < b.length; at++) {
    const [x, y] = [a.charCodeAt(at), b.charCodeAt(at)];
    if (x !== y) return rank(x) - rank(y);
  }
  return a.length - b.length;
}

const rank = (unit: number): number => (unit >= 0xd800 && unit <= 0xdfff ? unit + 0x10000 : unit);

function checksum(content: Buffer): string {
  const crc = new CRC32C();
  crc.update(content);
  return crc.toString();
}

/** https://cloud.google.com/storage/docs/json_api/v1/objects#resource */
export function resourceOf(bucket: string, stored: Stored): Resource {
  const { name, generation, metageneration, fields, content } = stored;
  return {
    kind: 'storage#object',
    id: `${bucket}/${name}/${generation}`,
    name,
    bucket,
    generation: String(generation),
    metageneration: String(metageneration),
    ...fields,
    size: String(content.length),
    crc32c: stored.crc32c,
    ...(stored.md5Hash === null ? {} : { md5Hash: stored.md5Hash }),
    ...(stored.componentCount === null ? {} : { componentCount: stored.componentCount }),
    etag: etagOf(stored),
    timeCreated: new Date(stored.created_ms).toISOString(),
    updated: new Date(stored.updated_ms).toISOString(),
    timeStorageClassUpdated: new Date(stored.created_ms).toISOString(),
  };
}

/** Changes with each generation and metageneration. */
export function etagOf(stored: Stored): string {
  return Buffer.from(`${stored.generation}/${stored.metageneration}`).toString('base64');
}
