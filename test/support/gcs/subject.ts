/** A server with an empty bucket and a store on it, for the tests of one file. */
import assert from 'node:assert/strict';
import { after, before, beforeEach } from 'node:test';
import { StorageError, type StorageErrorCode } from '../../../src/storage/object/errors.js';
import { GCS_TEMPORARY_PREFIX, GcsStore, type GcsOptions } from '../../../src/storage/object/stores/gcs.js';
import { GcsServer } from './server.js';

export const BUCKET = 'b';

export interface GcsSubject {
  /** Both are there when a test runs. */
  readonly server: GcsServer;
  readonly store: GcsStore;
  /** Another store on the same bucket. */
  open(options?: Partial<GcsOptions>): GcsStore;
  /** A prefix that nobody has used. */
  fresh(): string;
  /** Somebody else's change, by the API. */
  patch(key: string, change: unknown): Promise<void>;
  /** What was asked of the server in this test. */
  operations(): string[];
  /** Objects below the reserved prefix. */
  temporaries(): string[];
}

export function gcsSubject(): GcsSubject {
  let server: GcsServer;
  let store: GcsStore;
  let sequence = 0;
  const open = (options: Partial<GcsOptions> = {}): GcsStore => new GcsStore({ bucket: BUCKET, endpoint: server.url, credentials: 'anonymous', ...options });
  before(async () => {
    server = await GcsServer.start();
    server.createBucket(BUCKET);
    store = open();
  });
  beforeEach(() => {
    server.faults.heal();
    server.denied.clear();
    server.seen.length = 0;
  });
  after(async () => {
    await store.close();
    await server.close();
  });
  return {
    get server() {
      return server;
    },
    get store() {
      return store;
    },
    open,
    fresh: () => `t${++sequence}/`,
    async patch(key, change) {
      const response = await fetch(`${server.url}/storage/v1/b/${BUCKET}/o/${encodeURIComponent(key)}`, { method: 'PATCH', body: JSON.stringify(change) });
      assert.equal(response.status, 200);
    },
    operations: () => server.seen.map(({ operation }) => operation),
    temporaries: () => [...server.bucket(BUCKET).objects.keys()].filter((name) => name.startsWith(GCS_TEMPORARY_PREFIX)),
  };
}

export async function failure(call: Promise<unknown>): Promise<StorageError> {
  const error = await call.then(() => null, (reason: unknown) => reason);
  assert.ok(error instanceof StorageError, `not a StorageError: ${String(error)}`);
  return error;
}

export const codeOf = async (call: Promise<unknown>): Promise<StorageErrorCode> => (await failure(call)).code;
