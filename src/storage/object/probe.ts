/**
 * What a service really does, above all one that speaks S3's protocol without being S3, by trying it on a scratch key: some
 * accept a condition and ignore it, which is worse than refusing it.
 */
import { randomUUID } from 'node:crypto';
import { StorageError } from './errors.js';
import type { Capabilities, Condition, ObjectStore, Version } from './store.js';

/** Keys are made below `prefix` and removed again, however it ends. @throws StorageError when not even a plain put works */
export async function probe(store: ObjectStore, prefix: string): Promise<Capabilities> {
  const key = `${prefix}${randomUUID()}`;
  const other = `${key}-copy`;
  const part = `${key}-parts`;
  try {
    // A version that was, and is no more
    const gone = await store.put(key, new TextEncoder().encode('before'));
    const there = await store.put(key, new TextEncoder().encode('probe'));
    // Conditions that do not hold must be refused, and those that hold must not
    const honoured = async (holds: Condition, breaks: Condition, write: (condition: Condition) => Promise<unknown>): Promise<boolean> =>
      (await refuses(() => write(breaks))) && (await accepts(() => write(holds)));
    const put = (condition: Condition): Promise<Version> => store.put(key, new TextEncoder().encode('probe'), { condition });
    const putIfVersion = await honoured({ version: there }, { version: gone }, put);
    const putIfAbsent = (await refuses(() => put({ absent: true }))) && (await accepts(() => store.put(other, new Uint8Array(1), { condition: { absent: true } })));
    const copyIfAbsent = await refuses(() => store.copy(key, other, { condition: { absent: true } }));
    const copyIfVersion = await refuses(() => store.copy(key, other, { condition: { version: gone } }));
    const complete = async (condition: Condition): Promise<void> => {
      const upload = await store.beginUpload(key);
      try {
        await store.completeUpload(upload, [await store.putPart(upload, 1, new TextEncoder().encode('probe'))], { condition });
      } finally {
        await store.abortUpload(upload).catch(() => undefined);
      }
    };
    const completeIfAbsent = await refuses(() => complete({ absent: true }));
    const completeIfVersion = await refuses(() => complete({ version: gone }));
    const parts = store.capabilities.copyPart === 'range' ? await copiesParts(store, key, gone, part) : null;
    const deleteIfVersion = (await refuses(() => store.remove(key, { version: gone }))) && (await store.head(key).then(() => true, () => false));
    return {
      ...store.capabilities, putIfAbsent, putIfVersion, completeIfAbsent, completeIfVersion, copyIfAbsent, copyIfVersion, deleteIfVersion,
      ...(parts === null ? {} : { copyPart: parts === 'no' ? ('none' as const) : ('range' as const), copyPartIfVersion: parts === 'pinned' }),
    };
  } finally {
    await Promise.all([key, other, part].map((scratch) => store.remove(scratch).catch(() => undefined)));
  }
}

async function copiesParts(store: ObjectStore, key: string, gone: Version, to: string): Promise<'pinned' | 'any' | 'no'> {
  const upload = await store.beginUpload(to);
  try {
    const { version } = await store.head(key);
    const pinned = await refuses(() => store.copyPart(upload, 1, { key, version: gone, offset: 1, bytes: 3 }));
    const part = await store.copyPart(upload, 1, { key, version, offset: 1, bytes: 3 });
    await store.completeUpload(upload, [part]);
    const into = new Uint8Array(8);
    const right = (await store.read(to, { offset: 0, into })) === 3 && Buffer.from(into.subarray(0, 3)).toString() === 'rob';
    return !right ? 'no' : pinned ? 'pinned' : 'any';
  } catch (error) {
    if (passing(error)) throw error;
    return 'no';
  } finally {
    await store.abortUpload(upload).catch(() => undefined);
  }
}

/** A network that fails says nothing about the service. */
const passing = (error: unknown): boolean =>
  !(error instanceof StorageError) || ['throttled', 'unreachable', 'timeout', 'interrupted', 'expired', 'bad-credentials'].includes(error.code);

async function refuses(call: () => Promise<unknown>): Promise<boolean> {
  try {
    await call();
    return false;
  } catch (error) {
    if (passing(error)) throw error;
    return (error as StorageError).code === 'changed';
  }
}

async function accepts(call: () => Promise<unknown>): Promise<boolean> {
  try {
    await call();
    return true;
  } catch (error) {
    if (passing(error)) throw error;
    return false;
  }
}
