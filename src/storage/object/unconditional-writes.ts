/**
 * The writes to a store that have no condition: these are all, each with the reason why it needs none or can have none. Every other write goes
 * through settle.ts. test/tidy.test.ts finds who calls a store's writes elsewhere.
 *
 * Besides, parts of an upload have none, since the upload is known to who has begun it only; and the probe tries keys of its own (probe.ts).
 */
import { objectAt } from './asking.js';
import { StorageError } from './errors.js';
import type { Body, CallOptions, Condition, CopyOptions, ObjectStore, Part, PutOptions, Upload, Version } from './store.js';

/** To a random key of ours, which nobody else knows: no object can be there. */
export function copyToOwnKey(store: ObjectStore, from: string, key: string, options: Omit<CopyOptions, 'condition'> & Required<Pick<CopyOptions, 'sourceVersion'>>): Promise<Version> {
  return store.copy(from, key, options);
}

/** The same. */
export function putToOwnKey(store: ObjectStore, key: string, body: Body, options: Omit<PutOptions, 'condition'>): Promise<Version> {
  return store.put(key, body, options);
}

/** The same: the upload's key is one of ours. */
export function completeOwnKey(store: ObjectStore, upload: Upload, parts: readonly Part[]): Promise<Version> {
  return store.completeUpload(upload, parts);
}

/** From a random key of ours: whatever is there is ours. It may have been copied by a daemon that did not hear of it, so no version is known. */
export function removeFromOwnKey(store: ObjectStore, key: string): Promise<void> {
  return store.remove(key);
}

/**
 * A write for which the provider honours no condition. The version is compared as near to the write as can be. That is done only where somebody has accepted
 * it (--on-conflict=overwrite), and where nobody was allowed to try what the provider does.
 * @throws StorageError `changed`, as the write with the condition would
 */
export async function compared<T>(store: ObjectStore, key: string, condition: Condition, write: () => Promise<T>, options: CallOptions = {}): Promise<T> {
  const there = await objectAt(store, key, options);
  const wanted = 'absent' in condition ? null : condition.version;
  if ((there?.version ?? null) !== wanted) throw new StorageError(there === null ? 'not-found' : 'changed', `write ${store.location}/${key}`);
  return write();
}
