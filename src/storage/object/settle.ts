/**
 * A condition on every write to a store: whoever makes, replaces, moves or removes an object says which version is to be there before, or that there is to be
 * none. Who loses hears `changed` or `not-found`. Writes that have no condition are in unconditional-writes.ts, with their reasons.
 *
 * A request that timed out may have taken effect, may take effect later, or never; a proxy may have sent it twice, and deliver the second answer. Trying again
 * is safe, since both attempts have the same condition and one of them loses; but who lost against himself must not take it for somebody else's change. So
 * each write carries an id of its own in the object's metadata, and whoever is in doubt, or has lost, asks the object whose it is.
 *
 * What comes late is as harmless as the condition is sharp. Generations are never used again. ETags come back with the content: a request that is
 * delivered late does what it says if the same content is there again by then.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import { setTimeout as sleep } from 'node:timers/promises';
import { ifThere, isRemoved, REMOVED } from './asking.js';
import { afterDoubt, isLost, isTransient, StorageError } from './errors.js';
import type { Body, CallOptions, Condition, CopyOptions, Metadata, ObjectInfo, ObjectStore, Part, PutOptions, RenameOptions, Upload, Version } from './store.js';
import { compared } from './unconditional-writes.js';

/** Name in the metadata of the id of the write that made the object. */
export const COMMIT = 'bucketfsd-commit';
/** Of the last change of its attributes alone, which leaves the id of the commit as it is: its maker may still be in doubt. */
export const CHANGE = 'bucketfsd-change';

export const changeId = (): string => randomBytes(9).toString('base64url');

export interface SettleOptions {
  /** Attempts in all; each has the retries of the layers below for what is not in doubt. */
  readonly attempts: number;
  readonly pause_ms: number;
}

const SETTLE: SettleOptions = { attempts: 5, pause_ms: 500 };

interface Conditional {
  readonly condition: Condition;
}

/** What a write has made. */
export interface Made {
  readonly version: Version;
  /**
   * Asked after a doubt: the object as it is, where somebody else has set attributes of it since. They are not those of the write, and the version is not the
   * one that the write made. null: as far as is known it is as it was written.
   */
  readonly described: ObjectInfo | null;
}

/** `commit`: the id of this write. */
type Committed<O> = Omit<O, 'condition'> & Conditional & { readonly commit: string };

export function settledPut(store: ObjectStore, key: string, body: Body, options: Committed<PutOptions>, settle = SETTLE): Promise<Made> {
  const { commit, condition, ...rest } = options;
  const metadata = { ...rest.metadata, [COMMIT]: commit };
  const { putIfAbsent, putIfVersion } = store.capabilities;
  const write = conditional(store, key, { absent: putIfAbsent, version: putIfVersion }, rest, (given) => store.put(key, body, { ...rest, ...given, metadata }));
  return settled(store, key, condition, byCommit(metadata), rest, settle, write);
}

/** The commit id is that of the metadata given to beginUpload(), which has no id of a change. */
export function settledComplete(
  store: ObjectStore, upload: Upload, parts: readonly Part[], options: Committed<CallOptions>, settle = SETTLE,
): Promise<Made> {
  const { commit, condition, ...rest } = options;
  const { completeIfAbsent, completeIfVersion } = store.capabilities;
  const honoured = { absent: completeIfAbsent, version: completeIfVersion };
  const write = conditional(store, upload.key, honoured, rest, (given) => store.completeUpload(upload, parts, { ...rest, ...given }));
  return settled(store, upload.key, condition, byCommit({ [COMMIT]: commit }), rest, settle, write);
}

/** Needs the metadata that the copy shall have, since the id goes there. */
export function settledCopy(
  store: ObjectStore, from: string, to: string, options: Committed<CopyOptions & Required<Pick<CopyOptions, 'metadata'>>>, settle = SETTLE,
): Promise<Made> {
  const { commit, condition, ...rest } = options;
  const metadata = { ...rest.metadata, [COMMIT]: commit };
  const { copyIfAbsent, copyIfVersion } = store.capabilities;
  const write = conditional(store, to, { absent: copyIfAbsent, version: copyIfVersion }, rest, (given) => store.copy(from, to, { ...rest, ...given, metadata }));
  return settled(store, to, condition, byCommit(metadata), rest, settle, write);
}

/** New metadata of exactly this version. Something in it is to be of this write alone: an id under COMMIT or CHANGE. */
export function settledSetMetadata(store: ObjectStore, key: string, version: Version, metadata: Metadata, options: CallOptions = {}, settle = SETTLE): Promise<Made> {
  const honoured = { absent: false, version: store.capabilities.metadataInPlace || store.capabilities.copyIfVersion };
  const write = conditional(store, key, honoured, options, () => store.setMetadata(key, version, metadata, options));
  const ours: Ours = {
    metadata, isMadeBy: (there) => Object.entries(metadata).every(([name, value]) => there.metadata?.[name] === value),
  };
  return settled(store, key, { version }, ours, options, settle, write);
}

/** From this version, which has this metadata, to a key that is free, or has the version that is to be replaced. Nobody else has written the object that is where it went to. */
export async function settledRename(
  store: ObjectStore, from: string, to: string, options: Omit<RenameOptions, 'condition'> & Conditional & { readonly metadata: Metadata }, settle = SETTLE,
): Promise<Made> {
  const { metadata, ...rest } = options;
  const ours = byCommit(metadata);
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return { version: await store.rename(from, to, rest), described: null };
    } catch (failure) {
      const error = afterDoubt(failure, doubt);
      doubt ||= error.detail.ambiguous === true;
      if (error.detail.ambiguous !== true && !isLost(error)) throw error;
      const [old, there] = await Promise.all([from, to].map((key) => inDoubt(store, key, rest, error)));
      if (old === null && there !== null && ours.isMadeBy(there)) return madeOf(there, ours);
      if (!mayTryAgain(error, attempt, settle)) throw error;
      await sleep(settle.pause_ms, undefined, signalOf(rest));
    }
  }
}

/**
 * Remove exactly this version; whoever writes to it at the same moment loses. Where the provider's removal compares first, and then removes whatever is there
 * by then (Ceph RGW), the object is replaced first, on condition of its version, by a small one that stands for its removal. That one is like no other, and is
 * removed then; if this daemon does not get that far, it is replaced by whoever makes something at the key.
 * That the object is gone after a doubtful attempt is success, whatever somebody has put there since.
 * @returns the version of what is left in its place, when that could not be removed; else null
 */
export async function settledRemove(store: ObjectStore, key: string, version: Version, options: CallOptions = {}, settle = SETTLE): Promise<Version | null> {
  if (!removesByStand(store)) {
    await removeVersion(store, key, version, options, settle);
    return null;
  }
  const commit = randomUUID();
  const { version: stand } = await settledPut(store, key, Buffer.from(commit), { ...options, commit, metadata: { [REMOVED]: commit }, condition: { version } }, settle);
  return (await removeStand(store, key, stand, options, settle)) ? null : stand;
}

/** See settledRemove(): then it is known who has removed the object, also when a request came twice. */
export const removesByStand = ({ capabilities: { atomicDelete, putIfVersion } }: ObjectStore): boolean => !atomicDelete && putIfVersion;

/** What stands for a removed object; somebody else may remove it as well. @returns whether it is gone */
export async function removeStand(store: ObjectStore, key: string, version: Version, options: CallOptions = {}, settle = SETTLE): Promise<boolean> {
  try {
    await removeVersion(store, key, version, options, settle);
    return true;
  } catch (error) {
    if (!(error instanceof StorageError)) throw error;
    return isLost(error);
  }
}

/** As one call. */
async function removeVersion(store: ObjectStore, key: string, version: Version, options: CallOptions, settle: SettleOptions): Promise<void> {
  const remove = store.capabilities.deleteIfVersion
    ? (): Promise<void> => store.remove(key, { ...options, version })
    : (): Promise<void> => compared(store, key, { version }, () => store.remove(key, options), options);
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return await remove();
    } catch (failure) {
      const error = afterDoubt(failure, doubt);
      if (doubt && isLost(error)) return;
      if (!mayTryAgain(error, attempt, settle)) throw error;
      doubt = true;
      await sleep(settle.pause_ms, undefined, signalOf(options));
    }
  }
}

/** Somebody else is faster each time. */
const OVERTAKEN_MAX = 10;

/**
 * Remove what is at a key, whatever version that is: a write at the same moment may come before or after. Each attempt names the version that was seen, so that
 * one which comes late removes nothing that was made since. `known`: the version that was seen last, null: none was.
 */
export async function removeAny(store: ObjectStore, key: string, known: Version | null, options: CallOptions = {}, settle = SETTLE): Promise<void> {
  let version = known;
  for (let attempt = 1; ; attempt++) {
    version ??= (await ifThere(store.head(key, signalOf(options))))?.version ?? null;
    if (version === null) return;
    try {
      return await removeVersion(store, key, version, options, settle);
    } catch (error) {
      if (!isLost(error) || attempt === OVERTAKEN_MAX) throw error;
      version = null;
    }
  }
}

type Write = (condition: Condition) => Promise<Version>;

/** How a write is known by what it has made. */
interface Ours {
  /** That it was given. */
  readonly metadata: Metadata;
  isMadeBy(there: ObjectInfo): boolean;
}

const byCommit = (metadata: Metadata): Ours => ({ metadata, isMadeBy: (there) => there.metadata?.[COMMIT] === metadata[COMMIT] });

const madeOf = (there: ObjectInfo, { metadata }: Ours): Made => ({ version: there.version, described: isDescribedSince(there, metadata[CHANGE]) ? there : null });

/** Whether somebody has set attributes of an object since it was written with this id of a change, or with none: the id of the commit stays then. */
export const isDescribedSince = ({ metadata }: ObjectInfo, change: string | undefined): boolean => metadata?.[CHANGE] !== undefined && metadata[CHANGE] !== change;

/** A write with its condition, or after the comparison where the provider does not honour it. */
function conditional(
  store: ObjectStore, key: string, honoured: { readonly absent: boolean; readonly version: boolean }, options: CallOptions, write: (given: Partial<Conditional>) => Promise<Version>,
): Write {
  return (condition) => (honoured['absent' in condition ? 'absent' : 'version'] ? write({ condition }) : compared(store, key, condition, () => write({}), signalOf(options)));
}

async function settled(
  store: ObjectStore, key: string, wanted: Condition, ours: Ours, options: CallOptions, settle: SettleOptions, write: Write,
): Promise<Made> {
  let condition = wanted;
  let stand: Version | null = null;
  for (let attempt = 1, doubt = false; ; attempt++) {
    try {
      return { version: await write(condition), described: null };
    } catch (failure) {
      const error = afterDoubt(failure, doubt);
      doubt ||= error.detail.ambiguous === true;
      const lost = isLost(error);
      const occupied = error.code === 'changed' && 'absent' in wanted && attempt < settle.attempts;
      if (error.detail.ambiguous !== true && !lost) throw error;
      const there = await inDoubt(store, key, options, error);
      if (there !== null && ours.isMadeBy(there)) return madeOf(there, ours);
      condition = wanted;
      if (occupied && there === null) continue;
      // Nothing has changed: it has lost against something that has failed itself (409)
      const inVain = error.code === 'changed' && 'version' in wanted && there?.version === wanted.version && attempt < settle.attempts;
      if (occupied && there !== null && isRemoved(there)) {
        // Who removes it gets some time to come to an end; then it is replaced, whoever has left it
        if (there.version === stand) {
          condition = { version: stand };
          continue;
        }
        stand = there.version;
      } else if (!inVain && !mayTryAgain(error, attempt, settle)) {
        throw error;
      }
      await sleep(settle.pause_ms, undefined, signalOf(options));
    }
  }
}

/** What is there. @throws `doubt` if that cannot be told: it stays */
function inDoubt(store: ObjectStore, key: string, options: CallOptions, doubt: StorageError): Promise<ObjectInfo | null> {
  return ifThere(store.head(key, signalOf(options))).catch((error: unknown) => {
    throw error instanceof StorageError ? doubt : error;
  });
}

const signalOf = ({ signal }: CallOptions): CallOptions => (signal === undefined ? {} : { signal });

const mayTryAgain = (error: StorageError, attempt: number, settle: SettleOptions): boolean =>
  error.detail.ambiguous === true && isTransient(error.code) && attempt < settle.attempts;
