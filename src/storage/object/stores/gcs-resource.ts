/** Object resources of the JSON API, and what they are in the port. https://cloud.google.com/storage/docs/json_api/v1/objects */
import { HELD } from '../attachments.js';
import { StorageError } from '../errors.js';
import type { AnswerReader } from './answer-reader.js';
import type { Condition, Metadata, ObjectHeaders, ObjectInfo, Version } from '../store.js';

/** What FIELDS asks for, as it was read: see objectIn(). Generations are decimal digits; metadata is absent when there is none. */
export interface GcsObject extends GcsKept {
  readonly name: string;
  /** Bytes. */
  readonly size: number;
  readonly generation: string;
  readonly metageneration: string;
  /** Milliseconds since 1970. */
  readonly created_ms: number;
  readonly contentType?: string;
  readonly storageClass?: string;
  readonly metadata?: Metadata;
  /** With the version of the key that was used. */
  readonly kmsKeyName?: string;
  readonly temporaryHold?: boolean;
  readonly eventBasedHold?: boolean;
  readonly contexts?: Contexts;
}

/** https://cloud.google.com/storage/docs/object-contexts */
type Contexts = Readonly<Record<string, string>>;

/** What a copy with metadata of its own would lose, since it replaces all that can be said of an object. */
export interface GcsKept {
  readonly contentEncoding?: string;
  readonly contentDisposition?: string;
  readonly contentLanguage?: string;
  readonly cacheControl?: string;
  readonly customTime?: string;
}

export const KEPT_FIELDS = 'contentEncoding,contentDisposition,contentLanguage,cacheControl,customTime';
export const FIELDS = `name,size,generation,metageneration,timeCreated,contentType,metadata,storageClass,kmsKeyName,temporaryHold,eventBasedHold,contexts,${KEPT_FIELDS}`;

export const OCTETS = 'application/octet-stream';

/**
 * Generation and metageneration: the first changes with the content, the second with the metadata. Both, so that a
 * conditional write does not undo a change of metadata that it knows nothing of. Content is that of the generation:
 * reads ask for this alone, and go on when somebody changes metadata.
 */
export const versionOf = ({ generation, metageneration }: GcsObject): Version => `${generation}.${metageneration}`;

/** @throws StorageError `changed`: what is no version of this provider was never that of an object here */
export function parseVersion(version: Version, operation: string): { readonly generation: string; readonly metageneration: string } {
  const match = /^(\d{1,19})\.(\d{1,19})$/.exec(version);
  if (match === null) throw new StorageError('changed', operation, { providerMessage: `${JSON.stringify(version)} is no generation` });
  return { generation: match[1], metageneration: match[2] };
}

export interface Preconditions {
  readonly ifGenerationMatch?: string;
  readonly ifMetagenerationMatch?: string;
}

export function preconditions(condition: Condition | undefined, operation: string): Preconditions {
  if (condition === undefined) return {};
  if ('absent' in condition) return { ifGenerationMatch: '0' };
  const { generation, metageneration } = parseVersion(condition.version, operation);
  return { ifGenerationMatch: generation, ifMetagenerationMatch: metageneration };
}

/** What the resource calls what the port calls by the names of headers. */
const FIELD_OF = [
  ['content-type', 'contentType'], ['cache-control', 'cacheControl'], ['content-disposition', 'contentDisposition'], ['content-encoding', 'contentEncoding'],
  ['content-language', 'contentLanguage'], ['x-goog-storage-class', 'storageClass'], ['x-goog-custom-time', 'customTime'],
] as const;

const KMS_KEY = 'x-goog-encryption-kms-key-name';
const CONTEXTS = 'x-goog-contexts';
/** Twice of what there can be: https://cloud.google.com/storage/quotas#objects */
const CONTEXTS_MAX_BYTES = 64 << 10;

function headersOf(object: GcsObject): ObjectHeaders {
  const told = FIELD_OF.flatMap(([name, field]): [string, string][] => (object[field] === undefined ? [] : [[name, object[field]]]));
  const { kmsKeyName, contexts, temporaryHold, eventBasedHold } = object;
  if (kmsKeyName !== undefined) told.push([KMS_KEY, kmsKeyName.replace(/\/cryptoKeyVersions\/[^/]*$/, '')]);
  if (contexts !== undefined) told.push([CONTEXTS, JSON.stringify(contexts)]);
  if (temporaryHold === true || eventBasedHold === true) told.push([HELD, 'true']);
  return Object.fromEntries(told);
}

/** Names and values alone, without when each was made. */
function contextsIn(read: AnswerReader, value: unknown): Contexts {
  const custom = Object.entries(read.fields('the contexts', read.fields('the contexts', value)['custom'] ?? {}));
  const contexts = Object.fromEntries(custom.map(([name, one]) => [name, one === null ? '' : read.text('a context', read.fields('a context', one)['value'] ?? '', CONTEXTS_MAX_BYTES)]));
  const { length } = JSON.stringify(contexts);
  if (length > CONTEXTS_MAX_BYTES) throw read.wrong(`it has contexts of ${length} bytes`);
  return contexts;
}

const TEXTS = ['contentType', 'storageClass', 'kmsKeyName', 'contentEncoding', 'contentDisposition', 'contentLanguage', 'cacheControl', 'customTime'] as const;
const FLAGS = ['temporaryHold', 'eventBasedHold'] as const;
const TEXT_MAX_LENGTH = 8 << 10;
/** https://cloud.google.com/storage/docs/objects#naming */
export const KEY_BYTES = 1024;

/** A resource with all that FIELDS asks for. @throws StorageError */
export function objectIn(read: AnswerReader, value: unknown, prefix: string): GcsObject {
  const object = read.fields('an object', value);
  const texts = TEXTS.flatMap((name) => (object[name] === undefined ? [] : [[name, read.text(name, object[name], TEXT_MAX_LENGTH)]]));
  const flags = FLAGS.flatMap((name) => (object[name] === undefined ? [] : [[name, read.flag(name, object[name])]]));
  return {
    name: read.key(object['name'], prefix, KEY_BYTES),
    size: read.count('a size', object['size']),
    generation: read.generation('a generation', object['generation']),
    metageneration: read.generation('a metageneration', object['metageneration']),
    created_ms: read.time_ms('a date', object['timeCreated']),
    ...(object['metadata'] === undefined ? {} : { metadata: read.metadata(object['metadata']) }),
    ...(object['contexts'] === undefined ? {} : { contexts: contextsIn(read, object['contexts']) }),
    ...Object.fromEntries([...texts, ...flags]),
  };
}

/** The resource of exactly this key. @throws StorageError */
export function objectOfKey(read: AnswerReader, value: unknown, key: string): GcsObject {
  const object = objectIn(read, value, '');
  if (object.name !== key) throw read.wrong(`it is of ${JSON.stringify(object.name)}`);
  return object;
}

/** Fields of a resource. */
export function fieldsOf(headers: ObjectHeaders): Record<string, unknown> {
  const fields: [string, unknown][] = FIELD_OF.flatMap(([name, field]) => (headers[name] === undefined ? [] : [[field, headers[name]]]));
  const contexts = Object.entries(JSON.parse(headers[CONTEXTS] ?? '{}') as Record<string, string>);
  if (contexts.length > 0) fields.push(['contexts', { custom: Object.fromEntries(contexts.map(([name, value]) => [name, { value }])) }]);
  return Object.fromEntries(fields);
}

/** The key that an object is encrypted with; undefined: the bucket's, or Google's own. */
export const keyNameOf = (headers: ObjectHeaders = {}): string | undefined => headers[KMS_KEY];

export function infoOf(object: GcsObject): ObjectInfo {
  return {
    key: object.name,
    size: object.size,
    version: versionOf(object),
    modified_ms: object.created_ms, // `updated` would move with each change of metadata
    metadata: object.metadata ?? {},
    headers: headersOf(object),
  };
}

/** UTF-8 bytes of names and values, which is what the provider counts. */
export function metadataBytes(metadata: Metadata): number {
  return Object.entries(metadata).reduce((sum, [name, value]) => sum + Buffer.byteLength(name) + Buffer.byteLength(value), 0);
}

export const bucketPath = (bucket: string): string => `/storage/v1/b/${encodeURIComponent(bucket)}`;

/** @throws StorageError `invalid` for names that cannot be put into a URL: empty, dots alone, halves of surrogate pairs */
export function objectPath(bucket: string, key: string, operation: string): string {
  if (key === '' || key === '.' || key === '..' || /\p{Surrogate}/u.test(key)) {
    throw new StorageError('invalid', operation, { providerMessage: 'objects cannot have this name' });
  }
  return `${bucketPath(bucket)}/o/${encodeURIComponent(key)}`;
}
