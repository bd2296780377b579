/** What is asked of a store in many places. */
import { StorageError } from './errors.js';
import { isLong, type Named } from './names.js';
import type { CallOptions, ListOptions, ListPage, ObjectInfo, ObjectStore } from './store.js';

type LongName = Named & { readonly kind: 'long' };

/** Name in the metadata of what stands for an object while it is being removed: see settledRemove() in settle.ts. It is nobody's file. */
export const REMOVED = 'bucketfsd-removed';

export const isRemoved = ({ metadata }: ObjectInfo): boolean => metadata?.[REMOVED] !== undefined;

/** null: there is none, or what is there is being removed. @throws StorageError */
export async function objectAt(store: ObjectStore, key: string, options: CallOptions = {}): Promise<ObjectInfo | null> {
  const there = await ifThere(store.head(key, options));
  return there === null || isRemoved(there) ? null : there;
}

/**
 * Whether there really is nothing at a key, where a head has said so: a listing has to say the same. For who is about to give up what hangs on the object. What is
 * being removed is gone. @throws StorageError
 */
export async function isGone(store: ObjectStore, key: string): Promise<boolean> {
  if ((await firstBelow(store, key))?.key !== key) return true;
  const there = await ifThere(store.head(key));
  return there !== null && isRemoved(there);
}

/** For who has asked often enough: a listing has an object that is not found. It may pass. */
export const contradicted = (operation: string): StorageError => new StorageError('unavailable', operation, { providerMessage: 'it is listed, and not found' });

/** null where the store says that there is none. @throws StorageError for any other reason */
export async function ifThere<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'not-found') return null;
    throw error;
  }
}

/** The first object whose key begins so; null: there is none. A page that has nothing may have a successor. @throws StorageError */
export async function firstBelow(store: Pick<ObjectStore, 'list'>, prefix: string): Promise<ObjectInfo | null> {
  for await (const { objects } of pagesOf(store, { prefix, limit: 1 })) if (objects.length > 0) return objects[0];
  return null;
}

/** All pages of a listing, each when it is wanted. @throws StorageError */
export async function* pagesOf(store: Pick<ObjectStore, 'list'>, options: Omit<ListOptions, 'token'>): AsyncGenerator<ListPage> {
  for (let token: string | null | undefined; token !== null; ) {
    const page: ListPage = await store.list({ ...options, ...(token === undefined ? {} : { token }) });
    yield page;
    token = page.next;
  }
}

/** The component that a long name stands for, by listing those that begin like it; null: none. @throws StorageError */
export async function longComponent(store: Pick<ObjectStore, 'list'>, prefix: string, named: LongName, signal: AbortSignal): Promise<string | null> {
  for await (const page of pagesOf(store, { prefix: prefix + named.head.split('__')[0], delimiter: '/', signal })) {
    const keys = [...page.objects.map((object) => object.key), ...page.prefixes.map((one) => one.slice(0, -1))];
    const found = keys.map((key) => key.slice(prefix.length)).find((component) => isLong(component, named));
    if (found !== undefined) return found;
  }
  return null;
}
