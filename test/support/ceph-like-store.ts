/**
 * A store that does with conditions what Ceph RGW does. A copy looks at the one on its source, and then writes whatever is at the destination by then. A
 * remove compares first, and then removes what is there by then. Puts and completed uploads compare and write as one. Versions are ETags.
 */
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import type { Limits, ObjectStore } from '../../src/storage/object/store.js';
import { MemoryStore, type MemoryContents } from '../../src/storage/object/stores/memory.js';

const CAPABILITIES = {
  copyIfAbsent: false, copyIfVersion: false, copyPartIfVersion: false, rename: false, listingHasMetadata: false, metadataInPlace: false, atomicDelete: false,
} as const;

export class CephLikeStore {
  readonly memory: MemoryStore;
  readonly store: ObjectStore;
  /** Awaited between comparing and doing: somebody else may be faster then. Calls that it makes by itself do not come here again. */
  between: (operation: 'copy' | 'remove', key: string) => Promise<void> = async () => undefined;

  constructor(limits: Partial<Limits> = {}, contents?: MemoryContents) {
    const memory = (this.memory = new MemoryStore({ limits, capabilities: CAPABILITIES, etags: true, ...(contents === undefined ? {} : { contents }) }));
    const plain = intercept(memory, (call, attempt) => attempt(call.signal));
    const copy: ObjectStore['copy'] = async (from, to, { sourceVersion, metadata, headers } = {}) => {
      const source = await memory.head(from);
      if (sourceVersion !== undefined && source.version !== sourceVersion) throw new StorageError('changed', `copy ${from} to ${to}`);
      const content = new Uint8Array(source.size);
      await memory.read(from, { offset: 0, into: content });
      await this.between('copy', to);
      return memory.put(to, content, { metadata: metadata ?? source.metadata!, headers: headers ?? (metadata === undefined ? source.headers! : {}) });
    };
    this.store = {
      ...plain, copy,
      setMetadata: async (key, version, metadata) => copy(key, key, { metadata, headers: (await memory.head(key)).headers!, sourceVersion: version }),
      remove: async (key, options = {}) => {
        if (options.version !== undefined && (await memory.head(key)).version !== options.version) throw new StorageError('changed', `remove ${key}`);
        await this.between('remove', key);
        await memory.remove(key);
      },
    };
  }
}
