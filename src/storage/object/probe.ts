/**
 * What a service really does, above all one that speaks S3's protocol without being S3, by trying it on a scratch key: some
 * accept a condition and ignore it, which is worse than refusing it.
 */
import { randomUUID } from 'node:crypto';
import { StorageError, isTransient } from './errors.js';
import type { Capabilities, Condition, ObjectStore, Version } from './store.js';

/** A conditional write to a key, of whatever kind. */
type Write = (key: string, condition: Condition) => Promise<unknown>;

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

/** Keys are made below `prefix` and removed again, however it ends. @throws StorageError when not even a plain put works */
export async function probe(store: ObjectStore, prefix: string): Promise<Capabilities> {
  const key = `${prefix}${randomUUID()}`;
  const scratch = [key];
  const free = (what: string): string => scratch[scratch.push(`${key}-${what}`) - 1];
  try {
    // A version that was, and is no more
    const gone = { version: await store.put(key, bytes('before')) };
    await store.put(key, bytes('probe'));
    const there = async (): Promise<Condition> => ({ version: (await store.head(key)).version });
    // Conditions that do not hold must be refused, and those that hold must not
    const ifVersion = async (write: Write): Promise<boolean> => (await refuses(() => write(key, gone))) && accepts(async () => write(key, await there()));
    const ifAbsent = async (write: Write, what: string): Promise<boolean> =>
      (await refuses(() => write(key, { absent: true }))) && accepts(() => write(free(what), { absent: true }));
    const put: Write = (to, condition) => store.put(to, bytes('probe'), { condition });
    const copy: Write = (to, condition) => store.copy(key, to, { condition, metadata: { probe: 'copy' } });
    const complete: Write = async (to, condition) => {
      const upload = await store.beginUpload(to);
      try {
        await store.completeUpload(upload, [await store.putPart(upload, 1, bytes('probe'))], { condition });
      } finally {
        await store.abortUpload(upload).catch(() => undefined);
      }
    };
    const found = {
      putIfVersion: await ifVersion(put), putIfAbsent: await ifAbsent(put, 'put'),
      copyIfVersion: await ifVersion(copy), copyIfAbsent: await ifAbsent(copy, 'copy'),
      completeIfVersion: await ifVersion(complete), completeIfAbsent: await ifAbsent(complete, 'complete'),
    };
    const parts = store.capabilities.copyPart === 'range' ? await copiesParts(store, key, gone.version, free('parts')) : null;
    return {
      ...store.capabilities, ...found, deleteIfVersion: await deletesIfVersion(store, key, gone.version),
      // What happens at the same moment cannot be tried for certain (Ceph RGW compares, and then removes whatever is there)
      atomicDelete: false,
      ...(parts === null ? {} : { copyPart: parts === 'no' ? ('none' as const) : ('range' as const), copyPartIfVersion: parts === 'pinned' }),
    };
  } finally {
    await Promise.all(scratch.map((one) => store.remove(one).catch(() => undefined)));
  }
}

async function deletesIfVersion(store: ObjectStore, key: string, gone: Version): Promise<boolean> {
  const exists = (): Promise<boolean> => accepts(() => store.head(key));
  if (!(await refuses(() => store.remove(key, { version: gone }))) || !(await exists())) return false;
  const { version } = await store.head(key);
  return (await accepts(() => store.remove(key, { version }))) && !(await exists());
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

/** What may be over soon says nothing about the service. */
const passing = (error: unknown): boolean =>
  !(error instanceof StorageError) || isTransient(error.code) || ['expired', 'bad-credentials', 'clock-skew', 'aborted'].includes(error.code);

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
