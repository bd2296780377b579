/** A bucket as a file system: its parts put together, and what a former daemon has left taken up. */
import type { FileSystem } from '../filesystem.js';
import type { MemoryBudget } from './memory-budget.js';
import type { OpenFiles } from './open-files.js';
import { ObjectFileSystem, type OperationOptions } from './operations.js';
import type { ObjectStore } from './store.js';
import { Tree, type TreeLog } from './tree.js';
import { CacheDirectory } from './write/cache-directory.js';
import { CommitMaker } from './write/commit.js';
import { Committer, type Durability } from './write/committer.js';
import { COMMIT_SIZES, type CommitSizes } from './write/layout.js';
import { recover } from './write/recovery.js';
import type { StagedFile } from './write/staged-file.js';

export interface WriteOptions {
  /** For staging files and the journal; see CacheDirectory. */
  readonly cacheDirectory: string;
  readonly durability: Durability;
  readonly onConflict: 'keep' | 'overwrite';
  /** So long changes are collected before they are uploaded (writeback). */
  readonly writebackDelay_ms: number;
  /** What `bucketfsd recover` needs to open the store again; nothing secret. */
  readonly reopen?: unknown;
  readonly sizes?: Partial<CommitSizes>;
}

export interface ObjectOptions extends OperationOptions {
  /** null: every change is EROFS. */
  readonly write: WriteOptions | null;
}

export interface OpenedObjects {
  readonly fs: FileSystem;
  /** What was done, or is to be done, about what a former daemon left: lines for people. */
  readonly recovered: readonly string[];
  /** Nothing is left to commit, or it has failed and is tried again later. */
  idle(): Promise<void>;
  /** Commit what can be, and end. @returns files of which something is in the cache directory only */
  close(): Promise<number>;
  /** End as a killed daemon does: for tests of recovery. */
  abandon(): void;
}

/**
 * Open a bucket, and finish what a former daemon has begun.
 * @throws CacheDirectoryError, JournalError, an error of the file system
 */
export async function openObjectFileSystem(store: ObjectStore, budget: MemoryBudget, options: ObjectOptions, log: TreeLog): Promise<OpenedObjects> {
  const tree = new Tree(store, options, log);
  const { write } = options;
  if (write === null) {
    const fs = new ObjectFileSystem(store, budget, options, log, tree, null);
    return { fs: fs.port(), recovered: [], idle: async () => undefined, close: async () => 0, abandon: () => undefined };
  }
  const directory = CacheDirectory.open(write.cacheDirectory, { location: store.location, prefix: options.prefix, reopen: write.reopen });
  try {
    const { shop, files, report } = await recover(directory, store, budget, log);
    const sizes = { ...COMMIT_SIZES, ...write.sizes };
    const maker = new CommitMaker(shop, { posix: options.posix, sizes, overwrite: write.onConflict === 'overwrite' });
    const events = { committed: (...of: Parameters<OpenFiles['committed']>) => fs.files.committed(...of), conflicted: (file: StagedFile) => fs.files.conflicted(file) };
    const committer = new Committer(maker, { durability: write.durability, writebackDelay_ms: write.writebackDelay_ms, prefix: options.prefix }, events, tree.gate, log);
    const fs: ObjectFileSystem = new ObjectFileSystem(store, budget, options, log, tree, { shop, committer });
    for (const file of files) fs.goOn(file);
    const idle = async (): Promise<void> => {
      await committer.idle();
      await fs.files.settled();
    };
    return {
      fs: fs.port(), recovered: report, idle,
      close: async () => {
        fs.files.reset();
        await committer.close();
        await fs.files.settled();
        const left = fs.files.dirtyFiles;
        fs.files.abandon();
        shop.ledger.close();
        directory.close();
        return left;
      },
      abandon: () => {
        committer.abandon();
        fs.files.abandon();
        shop.ledger.close();
        directory.close();
      },
    };
  } catch (error) {
    directory.close();
    throw error;
  }
}

