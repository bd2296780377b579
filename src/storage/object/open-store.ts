/** From a description that fits into a message to a store. The providers' SDKs are loaded only when one is asked for. */
import type { ObjectStore } from './store.js';
import type { GcsOptions } from './stores/gcs.js';
import { MemoryStore } from './stores/memory.js';
import type { S3Options } from './stores/s3.js';

/** What to open; plain data, so that it can travel to a worker. */
export type StoreConfig =
  | { readonly kind: 'memory'; readonly name?: string }
  | { readonly kind: 's3'; readonly options: S3Options }
  | { readonly kind: 'gcs'; readonly options: GcsOptions };

export async function openStore(config: StoreConfig): Promise<ObjectStore> {
  switch (config.kind) {
    case 'memory':
      return new MemoryStore(config.name === undefined ? {} : { name: config.name });
    case 's3': {
      const { S3Store } = await import('./stores/s3.js');
      return new S3Store(config.options);
    }
    case 'gcs': {
      const { GcsStore } = await import('./stores/gcs.js');
      return new GcsStore(config.options);
    }
  }
}
