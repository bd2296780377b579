/**
 * What a former daemon has left: its journal is read before anything else happens. Files that were changed and are in no object go on
 * being what was acknowledged; renames and removals that were begun are finished; uploads and copies nobody needs any more are removed.
 */
import { S_IFDIR, S_IFMT } from '../../../ffi/constants.js';
import type { BlockCache } from '../blocks/block-cache.js';
import { borrowedOf, conditionalCopyOptions } from '../conditional-copy.js';
import { Journal } from '../journal.js';
import { withConditionalCopies } from '../layers/conditional-copies.js';
import type { MemoryBudget } from '../memory-budget.js';
import { isTransient, StorageError } from '../errors.js';
import type { ObjectStore } from '../store.js';
import type { TreeLog } from '../tree.js';
import { CacheDirectory, CacheDirectoryError } from './cache-directory.js';
import { Ledger } from './ledger.js';
import { Mover } from './mover.js';
import { replay, UnknownRecord, type JournalRecord, type LeftFile, type Pending } from './records.js';
import { isAttributesOnly, StagedFile, type Workshop } from './staged-file.js';

/** Calls of the store at the same time. */
const AT_ONCE = 16;

export interface Recovered {
  readonly shop: Workshop;
  /** Files with a name, of which something is in no object. */
  readonly files: readonly StagedFile[];
  /** For people, a line for each. */
  readonly report: readonly string[];
}

/** The shop has the store whose copies look at their conditions. @throws CacheDirectoryError, JournalError, an error of the file system: then nothing was changed. */
export async function recover(directory: CacheDirectory, given: ObjectStore, budget: MemoryBudget, log: TreeLog, blocks: BlockCache | null = null): Promise<Recovered> {
  const { journal, records, tail } = Journal.open<JournalRecord>(directory.journalPath);
  const report: string[] = [];
  if (tail !== null) report.push(`the journal ended with ${tail.bytes} bytes that were never finished: they are in ${tail.path}`);
  try {
    const pending = replayed(directory, records);
    const ledger = new Ledger(journal, Math.max(pending.lastId, ...directory.stagingIds()), () => blocks?.giveWay() === true);
    for (const [id, upload] of pending.uploads) ledger.uploads.set(id, upload);
    for (const [id, operation] of pending.operations) ledger.operations.set(id, operation);
    for (const key of pending.hidden) ledger.hidden.add(key);
    const store = withConditionalCopies(given, conditionalCopyOptions({ uploads: ledger, borrow: borrowedOf(budget) }));
    const shop = { store, budget, directory, ledger, blocks };
    const files = restored(shop, pending, report);
    // A directory whose rename is going to be finished takes what is not in the bucket along
    for (const { tree, from, to } of pending.operations.values()) {
      if (tree) for (const file of files) if (file.key!.startsWith(from)) file.rename(to + file.key!.slice(from.length), file.base);
    }
    await finish(shop, pending, report, log);
    const removed = new Set([...pending.operations.values()].filter((one) => one.kind === 'remove' && !ledger.operations.has(one.op)).map((one) => one.from));
    const left = files.filter((file) => {
      if (!removed.has(file.key!)) return true;
      file.dispose();
      return false;
    });
    ledger.rewrite();
    for (const id of directory.stagingIds()) if (!ledger.files.has(id)) directory.removeStaging(id);
    return { shop, files: left, report };
  } catch (error) {
    journal.close();
    throw error;
  }
}

/** What there is to recover, without touching anything. @throws as recover() */
export function inspect(directory: CacheDirectory): { pending: Pending; report: string[] } {
  const { records, tailBytes } = Journal.read<JournalRecord>(directory.journalPath);
  const report = tailBytes === 0 ? [] : [`the journal ends with ${tailBytes} bytes that were never finished`];
  return { pending: replayed(directory, records), report };
}

function replayed(directory: CacheDirectory, records: readonly JournalRecord[]): Pending {
  try {
    return replay(records);
  } catch (error) {
    if (!(error instanceof UnknownRecord)) throw error;
    throw new CacheDirectoryError(`${directory.journalPath}: ${error.message}: start the version that wrote it; nothing was changed`);
  }
}

export function describeLeft(file: LeftFile, location: string): string {
  const { key, size, staged, attributes } = file;
  if ((attributes.mode & S_IFMT) === S_IFDIR) return `${location}/${key}: a directory and its attributes`;
  if (isAttributesOnly(file)) return `${location}/${key}: attributes`;
  return `${location}/${key}: ${size} bytes, ${staged.reduce((sum, { from, to }) => sum + to - from, 0)} of them only here`;
}

function restored(shop: Workshop, pending: Pending, report: string[]): StagedFile[] {
  const files: StagedFile[] = [];
  for (const state of pending.files.values()) {
    if (state.key === null) continue;
    try {
      files.push(StagedFile.restore(shop, state));
    } catch (error) {
      if ((error as NodeJS.ErrnoException).code !== 'ENOENT') throw error;
      throw new CacheDirectoryError(
        `${shop.directory.stagingPath(state.id)} is missing, which has data of ${shop.store.location}/${state.key} that is nowhere else: restore it; nothing was changed`,
      );
    }
    report.push(`goes on: ${describeLeft(state, shop.store.location)}`);
  }
  return files;
}

/**
 * Operations are finished before anybody makes something else of their names: where that is not possible now the start fails; what never will be
 * is given up. Uploads and copies that cannot be removed stay in the journal, for the next start.
 * @throws StorageError
 */
async function finish(shop: Workshop, pending: Pending, report: string[], log: TreeLog): Promise<void> {
  const { store, ledger } = shop;
  const mover = new Mover(store, ledger, log);
  const tried = async (what: string, body: () => Promise<string>): Promise<void> => {
    try {
      report.push(await body());
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      report.push(`${what}: not finished (${error.message}); the next start tries again`);
    }
  };
  for (const operation of pending.operations.values()) {
    try {
      report.push(await mover.resume(operation));
    } catch (error) {
      if (!(error instanceof StorageError) || isTransient(error.code)) throw error;
      const { kind, from, to } = operation;
      const where = kind === 'rename' ? `: what was moved is at ${store.location}/${to}, the rest still at ${from}` : '';
      report.push(`gave up the ${kind} of ${store.location}/${from}, which had been begun (${error.message})${where}`);
      ledger.finish(operation);
    }
  }
  const cleaning = [
    ...[...pending.uploads.values()].map((upload) => () =>
      tried(`upload of ${store.location}/${upload.key}`, async () => {
        await store.abortUpload(upload);
        ledger.uploadEnded(upload);
        return `gave up an unfinished upload of ${store.location}/${upload.key}`;
      })),
    ...[...pending.hidden].map((key) => () =>
      tried(`${store.location}/${key}`, async () => {
        await store.remove(key);
        ledger.removed(key);
        return `removed ${store.location}/${key}, which was kept for an open file`;
      })),
  ];
  for (let at = 0; at < cleaning.length; at += AT_ONCE) await Promise.all(cleaning.slice(at, at + AT_ONCE).map((clean) => clean()));
}
