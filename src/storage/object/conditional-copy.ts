/**
 * Copies that one request of the provider's cannot make: of what is too large for it (5 GiB on S3), and on condition of what is at the destination where the
 * provider's own copy does not look there (Ceph RGW ignores If-Match and If-None-Match of CopyObject). The copy is made by a write that honours the condition: what is small is read and put; of what is
 * larger the server copies parts into an upload, which is completed on that condition.
 *
 * Content, metadata and what is attached to the object are those that the provider's copy would give.
 */
import { hasUnknownTags, TAG_COUNT, TAGS } from './attachments.js';
import { StorageError } from './errors.js';
import type { MemoryBudget } from './memory-budget.js';
import type { Capabilities, Condition, CopyOptions, Metadata, ObjectHeaders, ObjectInfo, ObjectStore, Part, Target, Upload, Version } from './store.js';

const MIB = 1 << 20;

export interface ConditionalCopyOptions {
  /** What is not larger is read and put; of more the server copies parts. Bytes. */
  readonly putMaxBytes: number;
  /** Of a part, as long as the object then fits into the provider's number of parts. */
  readonly partBytes: number;
  /** Parts that are copied at the same time, of one object. */
  readonly partsAtOnce: number;
  /** Told of uploads while they are under way, so that the next start gives up what a killed daemon has left. */
  readonly uploads: { uploadBegun(upload: Upload): void; uploadEnded(upload: Upload): void };
  /** Memory for what is read, until `body` is done; `view` is of what `target` is. */
  borrow<T>(bytes: number, body: (target: Target, view: Uint8Array) => Promise<T>): Promise<T>;
}

const SIZES = { putMaxBytes: MIB, partBytes: 256 * MIB, partsAtOnce: 4 };

/** By default with memory of JavaScript's, and with nobody who is told of uploads. */
export function conditionalCopyOptions(given: Partial<ConditionalCopyOptions> = {}): ConditionalCopyOptions {
  const borrow: ConditionalCopyOptions['borrow'] = (bytes, body) => {
    const memory = new Uint8Array(bytes);
    return body(memory, memory);
  };
  return { ...SIZES, uploads: { uploadBegun: () => undefined, uploadEnded: () => undefined }, borrow, ...given };
}

/** Native memory, within the budget of all that is read. */
export function borrowedOf(budget: MemoryBudget): ConditionalCopyOptions['borrow'] {
  return async (bytes, body) => {
    const memory = await budget.take(Math.max(1, bytes));
    try {
      return await body({ address: memory.address, bytes }, memory.u8.subarray(0, bytes));
    } finally {
      budget.give(memory);
    }
  };
}

/** Whether the store's own copy(), and setMetadata() made of it, look at this condition. */
export function copyHonours({ copyIfAbsent, copyIfVersion }: Capabilities, condition: Condition): boolean {
  return 'absent' in condition ? copyIfAbsent : copyIfVersion;
}

/** What a store can do whose copies are made by conditionalCopy() where they have to be. */
export function withConditionalCopy(capabilities: Capabilities): Capabilities {
  const { copyIfAbsent, copyIfVersion, putIfAbsent, putIfVersion, completeIfAbsent, completeIfVersion } = capabilities;
  return {
    ...capabilities, copyIfAbsent: copyIfAbsent || (putIfAbsent && completeIfAbsent), copyIfVersion: copyIfVersion || (putIfVersion && completeIfVersion),
  };
}

/**
 * @throws StorageError `changed` when the source is not `sourceVersion`, or changes meanwhile, and when the condition does not hold; ambiguous only
 * where the last write is
 */
export async function conditionalCopy(
  store: ObjectStore, from: string, to: string, options: CopyOptions, how: ConditionalCopyOptions,
): Promise<Version> {
  const { sourceVersion, signal } = options;
  const operation = `copy ${store.location}/${from} to ${to}`;
  const call = signal === undefined ? {} : { signal };
  const source = await before(store.head(from, { ...call, attachments: true }));
  if (sourceVersion !== undefined && source.version !== sourceVersion) throw new StorageError('changed', operation);
  const copy: Copy = {
    store, source, to, operation, how, condition: options.condition === undefined ? {} : { condition: options.condition }, call, metadata: options.metadata ?? source.metadata ?? {},
    headers: withTagsOf(source, options.headers ?? (options.metadata === undefined ? source.headers ?? {} : {})),
  };
  return source.size <= how.putMaxBytes ? putAgain(copy) : completedOfParts(copy);
}

/** New metadata of exactly this version; what HTTP says of the content stays. */
export async function conditionalSetMetadata(
  store: ObjectStore, key: string, version: Version, metadata: Metadata, options: Pick<CopyOptions, 'signal'>, how: ConditionalCopyOptions,
): Promise<Version> {
  const { headers } = await before(store.head(key, options));
  return conditionalCopy(store, key, key, { ...options, metadata, headers: headers ?? {}, sourceVersion: version, condition: { version } }, how);
}

/** Tags that are only counted are those of the source, not of what is replaced. */
function withTagsOf({ headers }: ObjectInfo, given: ObjectHeaders): ObjectHeaders {
  if (!hasUnknownTags(given)) return given;
  const { [TAG_COUNT]: _count, ...rest } = given;
  const tags = headers?.[TAGS];
  return tags === undefined ? rest : { ...rest, [TAGS]: tags };
}

interface Copy {
  readonly store: ObjectStore;
  readonly source: ObjectInfo;
  readonly to: string;
  readonly operation: string;
  readonly how: ConditionalCopyOptions;
  readonly condition: Pick<CopyOptions, 'condition'>;
  readonly call: Pick<CopyOptions, 'signal'>;
  readonly metadata: Metadata;
  readonly headers: ObjectHeaders;
}

function putAgain({ store, source, to, operation, how, condition, call, metadata, headers }: Copy): Promise<Version> {
  const { key, version, size } = source;
  return how.borrow(size, async (into, content) => {
    const bytes = size === 0 ? 0 : await before(store.read(key, { ...call, version, offset: 0, into }));
    if (bytes !== size) throw new StorageError('short-body', operation, { providerMessage: `${bytes} of ${size} bytes came` });
    // A body is what it was for as long as anybody may still send it; what was borrowed is somebody else's by then
    return store.put(to, content.slice(), { ...call, metadata, headers, ...condition });
  });
}

async function completedOfParts(copy: Copy): Promise<Version> {
  const { store, to, how, condition, call, metadata, headers } = copy;
  const upload = await before(store.beginUpload(to, { ...call, metadata, headers }));
  how.uploads.uploadBegun(upload);
  try {
    // A part that is refused is beyond the end of an object that has come meanwhile, where parts are not of one version
    const parts = await before(copiedParts(copy, upload).finally(() => stillThere(copy)));
    const version = await store.completeUpload(upload, parts, { ...call, ...condition });
    how.uploads.uploadEnded(upload);
    return version;
  } catch (error) {
    await store.abortUpload(upload).then(() => how.uploads.uploadEnded(upload), () => undefined); // else the next start does it
    throw error;
  }
}

async function copiedParts({ store, source, operation, how, call }: Copy, upload: Upload): Promise<Part[]> {
  if (store.capabilities.copyPart !== 'range') throw new StorageError('unsupported', operation, { providerMessage: 'the provider copies no parts' });
  const { key, version, size } = source;
  const bytes = Math.max(how.partBytes, Math.ceil(size / store.limits.parts));
  const parts = new Array<Part>(Math.ceil(size / bytes));
  let next = 0;
  const lane = async (): Promise<void> => {
    for (let index = next++; index < parts.length; index = next++) {
      const offset = index * bytes;
      parts[index] = await store.copyPart(upload, index + 1, { key, version, offset, bytes: Math.min(bytes, size - offset) }, call);
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: Math.min(how.partsAtOnce, parts.length) }, () => lane().finally(() => (next = parts.length))));
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
  return parts;
}

/** Where parts of whatever is there are copied it has to be the same object before and after. */
async function stillThere({ store, source, operation, call }: Copy): Promise<void> {
  if (store.capabilities.copyPartIfVersion) return;
  const now = await store.head(source.key, call);
  if (now.version !== source.version || now.modified_ms !== source.modified_ms) throw new StorageError('changed', operation);
}

/** What is done before the last write changes nothing that anybody sees: its failure leaves no doubt. */
async function before<T>(call: Promise<T>): Promise<T> {
  try {
    return await call;
  } catch (error) {
    if (!(error instanceof StorageError) || error.detail.ambiguous !== true) throw error;
    const { ambiguous: _ambiguous, ...detail } = error.detail;
    throw new StorageError(error.code, error.operation, detail);
  }
}
