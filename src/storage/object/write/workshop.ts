/** What all files that are being changed have in common. */
import type { BlockCache } from '../blocks/block-cache.js';
import type { MemoryBudget } from '../memory-budget.js';
import type { ObjectStore } from '../store.js';
import type { BackgroundSync } from './background-sync.js';
import type { CacheDirectory } from './cache-directory.js';
import type { Ledger } from './ledger.js';

export interface Workshop {
  readonly store: ObjectStore;
  readonly budget: MemoryBudget;
  readonly directory: CacheDirectory;
  readonly ledger: Ledger;
  readonly backgroundSync: BackgroundSync;
  /** For what is read of the objects that files were opened from. */
  readonly blocks: BlockCache | null;
  /** Whether metadata may lend rights in the guest: see privileges.ts. */
  readonly privileged: boolean;
}
