/** A bucket as a file system: its parts put together, and what a former daemon has left taken up. */
import type { FileSystem } from '../filesystem.js';
import { BlockCache, type BlockCacheLog } from './blocks/block-cache.js';
import { hiddenKey } from './hidden.js';
import type { MemoryBudget } from './memory-budget.js';
import { ObjectFileSystem, type OperationOptions } from './operations.js';
import { SmallFiles } from './small-files.js';
import type { ObjectStore } from './store.js';
import { Tree, type TreeLog } from './tree.js';
import { CacheDirectory, CacheDirectoryError } from './write/cache-directory.js';
import { CommitMaker } from './write/commit.js';
import { Committer, type CommitEvents, type Durability } from './write/committer.js';
import { COMMIT_SIZES, type CommitSizes } from './write/layout.js';
import { RecoveryProgress } from './write/recovery-progress.js';
import { recover } from './write/recovery.js';

export interface WriteOptions {
  /** For staging files and the journal; see CacheDirectory. */
  readonly cacheDirectory: string;
  readonly durability: Durability;
  readonly onConflict: 'keep' | 'overwrite';
  /** So long changes are collected before they are uploaded (writeback). */
  readonly writebackDelay_ms: number;
  /** So many changes that nobody has waited for may wait; in tests. */
  readonly deferredMax?: number;
  /** What `bucketfsd recover` needs to open the store again; nothing secret. */
  readonly reopen?: unknown;
  readonly sizes?: Partial<CommitSizes>;
  /** Descriptors that the process may have; default: as many as Linux lets one have. */
  readonly fileLimit?: number;
  /** Of the machine; in tests. */
  readonly bootId?: string;
}

/** What is read is kept on disk: see blocks/block-cache.ts. */
export interface BlockOptions {
  /** The same as for writing, if there is writing. */
  readonly cacheDirectory: string;
  /** Of disk space, at most. */
  readonly bytes: number;
  /** Whose versions they are, beyond what the store says of its location: the endpoint. */
  readonly scope?: string;
  /** Size of a block; in tests. */
  readonly blockBytes?: number;
  /** Objects that are read here and there are fetched as a whole: see blocks/fill.ts. */
  readonly fill?: boolean;
}

export type ObjectLog = TreeLog & BlockCacheLog;

export interface ObjectOptions extends OperationOptions {
  /** Absent or null: nothing that is read is kept. */
  readonly blocks?: BlockOptions | null;
  /** null: every change is EROFS. */
  readonly write: WriteOptions | null;
}

export interface OpenedObjects {
  readonly fs: FileSystem;
  /** What was done, or is to be done, about what a former daemon left: lines for people. */
  readonly recovered: readonly string[];
  /** Nothing is left to commit, or it has failed and is tried again later; and what was read is kept. */
  idle(): Promise<void>;
  /** Files of which something is in the cache directory only, and bytes of those. */
  left(): { readonly files: number; readonly bytes: number };
  /** Commit what can be, and end. @returns files of which something is in the cache directory only */
  close(): Promise<number>;
  /** End as a killed daemon does, at once: for tests of recovery. @returns when its descriptors are closed */
  abandon(): Promise<void>;
}

/**
 * Open a bucket, and finish what a former daemon has begun.
 * @throws CacheDirectoryError, JournalError, an error of the file system
 */
export async function openObjectFileSystem(store: ObjectStore, budget: MemoryBudget, options: ObjectOptions, log: ObjectLog): Promise<OpenedObjects> {
  const { write } = options;
  if (write === null) return openReadOnly(store, budget, options, log);
  const directory = CacheDirectory.open(write.cacheDirectory, { location: store.location, prefix: options.prefix, reopen: write.reopen }, write.fileLimit);
  let blocks: BlockCache | null = null;
  try {
    blocks = await openBlocks(directory, store, budget, options, log);
    const { shop, files, report } = await recover(directory, store, budget, options.privileged, log, blocks, write.bootId);
    const tree = treeOf(shop.store, budget, options, log, blocks);
    const sizes = { ...COMMIT_SIZES, ...write.sizes };
    const overwrites = write.onConflict === 'overwrite';
    const maker = new CommitMaker(shop, { posix: options.posix, sizes, hiddenKey: () => hiddenKey(options.prefix), overwrite: overwrites });
    const events: CommitEvents = {
      believedUntil: (file) => fs.staging!.believedUntil(file), waiting: (file) => fs.staging!.waiting(file), committed: (file, committed) => fs.staging!.committed(file, committed), conflicting: (file) => fs.staging!.conflicting(file), conflicted: (file) => fs.staging!.conflicted(file),
    };
    const committer = new Committer(maker, { ...write, prefix: options.prefix }, events, tree.gate, log);
    const fs: ObjectFileSystem = new ObjectFileSystem(shop.store, budget, options, log, tree, { shop, committer, overwrites }, blocks);
    for (const file of files) fs.goOn(file);
    const progress = new RecoveryProgress(files, log);
    const idle = async (): Promise<void> => {
      await committer.idle();
      await fs.files.settled();
      shop.ledger.hurry();
      await directory.settled();
      await blocks?.idle();
    };
    let left = { files: 0, bytes: 0 };
    let closed = false;
    return {
      fs: fs.port(), recovered: report, idle,
      left: () => (closed ? left : fs.staging!.left()),
      close: async () => {
        progress.end();
        fs.files.reset();
        shop.backgroundSync.close();
        await shop.backgroundSync.all();
        await committer.close();
        await fs.files.settled();
        left = fs.staging!.left();
        closed = true;
        fs.files.abandon();
        shop.ledger.hurry();
        await directory.settled();
        await shop.ledger.close();
        await blocks?.close();
        directory.close();
        return left.files;
      },
      abandon: async () => {
        progress.end();
        committer.abandon();
        shop.backgroundSync.close();
        fs.files.abandon();
        const ends = [shop.ledger.close(), blocks?.abandon()];
        directory.close();
        await Promise.all(ends);
      },
    };
  } catch (error) {
    await blocks?.abandon();
    directory.close();
    throw error;
  }
}

/** The cache directory is only for the block cache then: without it everything can be read all the same. */
async function openReadOnly(store: ObjectStore, budget: MemoryBudget, options: ObjectOptions, log: ObjectLog): Promise<OpenedObjects> {
  const directory = options.blocks == null ? null : openForReading(options.blocks.cacheDirectory, store, options, log);
  const blocks = directory === null ? null : await openBlocks(directory, store, budget, options, log);
  const fs = new ObjectFileSystem(store, budget, options, log, treeOf(store, budget, options, log, blocks), null, blocks);
  return {
    fs: fs.port(), recovered: [],
    left: () => ({ files: 0, bytes: 0 }),
    idle: async () => blocks?.idle(),
    close: async () => {
      fs.files.reset();
      await blocks?.close();
      directory?.close();
      return 0;
    },
    abandon: async () => {
      fs.files.abandon();
      const ends = blocks?.abandon();
      directory?.close();
      await ends;
    },
  };
}

function treeOf(store: ObjectStore, budget: MemoryBudget, options: ObjectOptions, log: ObjectLog, blocks: BlockCache | null): Tree {
  const small = new SmallFiles(store, budget, (key, version, size) => blocks !== null && blocks.object(key, version, size).isWhole);
  return new Tree(store, options, log, small);
}

function openForReading(path: string, store: ObjectStore, options: ObjectOptions, log: ObjectLog): CacheDirectory | null {
  try {
    return CacheDirectory.open(path, { location: store.location, prefix: options.prefix });
  } catch (error) {
    if (!(error instanceof CacheDirectoryError) || error.reason === null) throw error;
    log.warn({ err: error, directory: path }, `there is no block cache: ${path} cannot be used (${error.reason}); everything is read from the bucket`);
    return null;
  }
}

async function openBlocks(directory: CacheDirectory, store: ObjectStore, budget: MemoryBudget, { blocks }: ObjectOptions, log: ObjectLog): Promise<BlockCache | null> {
  if (blocks == null) return null;
  const { bytes, blockBytes, fill = false, scope = '' } = blocks;
  const options = { directory: directory.blocksPath, bytes, fill, scope: `${store.location} ${scope}`, ...(blockBytes === undefined ? {} : { blockBytes }) };
  return BlockCache.open(options, budget, log);
}

