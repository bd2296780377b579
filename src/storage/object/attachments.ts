/**
 * What is attached to an object beside its content and its metadata: what HTTP says of the content, storage class, encryption, tags,
 * locks. A file's change makes a new object, and what others have attached to the old one stays: whoever makes a new object from an
 * old one passes on the headers that head() gave of it.
 */
import type { ObjectHeaders } from './store.js';

/** The tags of an object, as a query: "name=value&name=value", percent-encoded; '': none, whatever the source of a copy has. */
export const TAGS = 'x-amz-tagging';
/** What head() tells of tags: how many there are. */
export const TAG_COUNT = 'x-amz-tagging-count';
export const STORAGE_CLASS = 'x-amz-storage-class';
export const LOCK_MODE = 'x-amz-object-lock-mode';
const RESTORE = 'x-amz-restore';
const ARCHIVE_STATUS = 'x-amz-archive-status';

/** Nobody may replace or remove the object: a hold of Google Cloud Storage. */
export const HELD = 'x-goog-held';

/** How the server encrypts an object. */
const ENCRYPTION = [
  'x-amz-server-side-encryption', 'x-amz-server-side-encryption-aws-kms-key-id', 'x-amz-server-side-encryption-bucket-key-enabled', 'x-goog-encryption-kms-key-name',
];

/** What may be sent with a new object. */
export const HEADERS: readonly string[] = [
  'content-type', 'cache-control', 'content-disposition', 'content-encoding', 'content-language', 'expires',
  STORAGE_CLASS, 'x-amz-website-redirect-location', TAGS, LOCK_MODE, 'x-amz-object-lock-retain-until-date', 'x-amz-object-lock-legal-hold',
  'x-goog-storage-class', 'x-goog-custom-time', 'x-goog-contexts', ...ENCRYPTION,
];

/** What head() tells besides, which is sent with nothing. */
export const TOLD: readonly string[] = [TAG_COUNT, RESTORE, ARCHIVE_STATUS, HELD];

/** All that is kept of an answer. */
export const KEPT: readonly string[] = [...HEADERS, ...TOLD];

/** Classes of S3 that have to be restored before they can be read. https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-class-intro.html */
const ARCHIVES: ReadonlySet<string> = new Set(['GLACIER', 'DEEP_ARCHIVE']);

/** It has tags of which only the number is known. */
export const hasUnknownTags = (headers: ObjectHeaders): boolean =>
  headers[TAGS] === undefined && headers[TAG_COUNT] !== undefined && headers[TAG_COUNT] !== '0';

/**
 * The content cannot be read, nor copied, until somebody has it restored: of an archive's class and not restored, or in an archive tier
 * of Intelligent-Tiering. https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html
 */
export function isArchived(headers: ObjectHeaders): boolean {
  if (headers[ARCHIVE_STATUS] !== undefined) return true;
  return ARCHIVES.has(headers[STORAGE_CLASS] ?? '') && !(headers[RESTORE] ?? '').includes('ongoing-request="false"');
}

/** For what a listing tells of an object. */
export const archiveClass = (storageClass = ''): { readonly archiveClass?: true } => (ARCHIVES.has(storageClass) ? { archiveClass: true } : {});

/** What a new object in place of this one is made with: what is made anew is not put where it cannot be read. */
export function inherited(headers: ObjectHeaders): ObjectHeaders {
  const { [RESTORE]: _restore, [ARCHIVE_STATUS]: _status, [HELD]: _held, ...rest } = headers;
  if (!ARCHIVES.has(rest[STORAGE_CLASS] ?? '')) return rest;
  const { [STORAGE_CLASS]: _class, ...others } = rest;
  return others;
}

/** The object is kept for a time: what that is in its bucket has to be known before it is replaced. */
export const isLocked = (headers: ObjectHeaders): boolean => headers[LOCK_MODE] !== undefined;

/** https://cloud.google.com/storage/docs/object-holds */
export const isHeld = (headers: ObjectHeaders): boolean => headers[HELD] !== undefined;

/** How parts of an object have to be stored: of its class, where all that is composed has to be of one, and encrypted as it is. */
export const placeOf = (headers: ObjectHeaders): ObjectHeaders => pick(headers, ['x-goog-storage-class', ...ENCRYPTION]);

const pick = (headers: ObjectHeaders, names: readonly string[]): ObjectHeaders => Object.fromEntries(names.flatMap((name) => (headers[name] === undefined ? [] : [[name, headers[name]]])));

/** Of a copy that is of use for its content only: encrypted in the same way, and nothing else. */
export const contentOnly = (headers: ObjectHeaders): ObjectHeaders => ({ [TAGS]: '', ...pick(headers, ENCRYPTION) });
