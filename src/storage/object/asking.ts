/** What is asked of a store in many places. */
import { StorageError } from './errors.js';
import type { ListOptions, ListPage, ObjectStore } from './store.js';

/** null where the store says that there is none. @throws StorageError for any other reason */
export async function ifThere<T>(asked: Promise<T>): Promise<T | null> {
  try {
    return await asked;
  } catch (error) {
    if (error instanceof StorageError && error.code === 'not-found') return null;
    throw error;
  }
}

/** All pages of a listing, each when it is wanted. @throws StorageError */
export async function* pagesOf(store: Pick<ObjectStore, 'list'>, options: Omit<ListOptions, 'token'>): AsyncGenerator<ListPage> {
  for (let token: string | null | undefined; token !== null; ) {
    const page: ListPage = await store.list({ ...options, ...(token === undefined ? {} : { token }) });
    yield page;
    token = page.next;
  }
}
