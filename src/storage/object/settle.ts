/**
 * Conditional writes whose outcome is asked for when no good answer came.
 *
 * A request that timed out may have taken effect, may take effect later, or never. Trying again is safe, since both
 * attempts have the same condition and one of them loses; but who lost against himself must not take it for
 * somebody else's change. So each write carries an id of its own in the object's metadata, and after any doubt the
 * object is asked whose it is.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { ifThere } from './asking.js';
import { StorageError, isTransient } from './errors.js';
import type { Body, CallOptions, Condition, CopyOptions, ObjectStore, Part, PutOptions, RenameOptions, Upload, Version } from './store.js';

/** Name in the metadata of the id of the write that made the object. */
export const COMMIT = 'bucketfsd-commit';

export interface SettleOptions {
  /** Attempts in all; each has the retries of the layers below for what is not in doubt. */
  readonly attempts: number;
  readonly pause_ms: number;
}

const SETTLE: SettleOptions = { attempts: 5, pause_ms: 500 };

type Committed<O> = O & { readonly commit: string };

export function settledPut(store: ObjectStore, key: string, body: Body, options: Committed<PutOptions>, settle = SETTLE): Promise<Version> {
  const { commit, ...rest } = options;
  const metadata = { ...rest.metadata, [COMMIT]: commit };
  return settled(store, key, commit, rest, settle, () => store.put(key, body, { ...rest, metadata }));
}

/** The commit id is that of the metadata given to beginUpload(). */
export function settledComplete(
  store: ObjectStore, upload: Upload, parts: readonly Part[], options: Committed<CallOptions & { readonly condition?: Condition }>, settle = SETTLE,
): Promise<Version> {
  const { commit, ...rest } = options;
  return settled(store, upload.key, commit, rest, settle, () => store.completeUpload(upload, parts, rest));
}

/** Needs the metadata that the copy shall have, since the id goes there. */
export function settledCopy(
  store: ObjectStore, from: string, to: string, options: Committed<CopyOptions & Required<Pick<CopyOptions, 'metadata'>>>, settle = SETTLE,
): Promise<Version> {
  const { commit, ...rest } = options;
  const metadata = { ...rest.metadata, [COMMIT]: commit };
  return settled(store, to, commit, rest, settle, () => store.copy(from, to, { ...rest, metadata }));
}

/** From this version to a free key, or over what is there. Nobody else has written the object that is where it went to. */
export async function settledRename(
  store: ObjectStore, from: string, to: string, options: RenameOptions & { readonly commit: string | undefined }, settle = SETTLE,
): Promise<Version> {
  const { commit, ...rest } = options;
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return await store.rename(from, to, rest);
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const lost = doubt && (error.code === 'changed' || error.code === 'not-found');
      if (error.detail.ambiguous !== true && !lost) throw error;
      doubt = true;
      const [old, there] = await Promise.all([ifThere(store.head(from, signalOf(rest))), ifThere(store.head(to, signalOf(rest)))]);
      if (old === null && there !== null && there.metadata?.[COMMIT] === commit) return there.version;
      if (!mayTryAgain(error, attempt, settle)) throw error;
      await sleep(settle.pause_ms, undefined, signalOf(rest));
    }
  }
}

/** Remove exactly this version, or whatever is there. That it is gone after a doubtful attempt is success. */
export async function settledRemove(store: ObjectStore, key: string, version: Version | null, options: CallOptions = {}, settle = SETTLE): Promise<void> {
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return await store.remove(key, version === null ? options : { ...options, version });
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      if (doubt && error.code === 'not-found') return;
      if (!mayTryAgain(error, attempt, settle)) throw error;
      doubt = true;
      await sleep(settle.pause_ms, undefined, signalOf(options));
    }
  }
}

async function settled(
  store: ObjectStore, key: string, commit: string, options: CallOptions, settle: SettleOptions, write: () => Promise<Version>,
): Promise<Version> {
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return await write();
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      const again = mayTryAgain(error, attempt, settle);
      const lost = doubt && (error.code === 'changed' || error.code === 'not-found');
      if (error.detail.ambiguous !== true && !lost) throw error;
      doubt = true;
      const ours = await versionOf(store, key, commit, options);
      if (ours !== null) return ours;
      if (!again) throw error;
      await sleep(settle.pause_ms, undefined, signalOf(options));
    }
  }
}

const signalOf = ({ signal }: CallOptions): CallOptions => (signal === undefined ? {} : { signal });

const mayTryAgain = (error: StorageError, attempt: number, settle: SettleOptions): boolean =>
  error.detail.ambiguous === true && isTransient(error.code) && attempt < settle.attempts;

/** The version of the object if it is the one that this commit made. */
async function versionOf(store: ObjectStore, key: string, commit: string, options: CallOptions): Promise<Version | null> {
  const info = await ifThere(store.head(key, signalOf(options)));
  return info?.metadata?.[COMMIT] === commit ? info.version : null;
}
