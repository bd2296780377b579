/**
 * What a former daemon has left: its journal is read before anything else happens. Files that were changed and are in no object go on
 * being what was acknowledged; renames and removals that were begun are finished; uploads and copies nobody needs any more are removed.
 */
import { S_IFDIR, S_IFMT } from '../../../ffi/constants.js';
import type { BlockCache } from '../blocks/block-cache.js';
import { ifThere } from '../asking.js';
import { borrowedOf, conditionalCopyOptions } from '../conditional-copy.js';
import type { Extent } from '../extents.js';
import { Journal, type OpenedJournal } from '../journal.js';
import { withConditionalCopies } from '../layers/conditional-copies.js';
import type { MemoryBudget } from '../memory-budget.js';
import { StorageError } from '../errors.js';
import { COMMIT } from '../settle.js';
import type { ObjectStore } from '../store.js';
import type { TreeLog } from '../tree.js';
import { removeFromOwnKey } from '../unconditional-writes.js';
import { BackgroundSync } from './background-sync.js';
import { bootId } from './boot-id.js';
import { CacheDirectory, CacheDirectoryError } from './cache-directory.js';
import { Ledger } from './ledger.js';
import { MoveRecovery } from './move-recovery.js';
import { isAttributesOnly, type JournalRecord, type LeftFile } from './records.js';
import { Replay, UnknownRecord, type Pending } from './replay.js';
import { StagedFile } from './staged-file.js';
import type { Workshop } from './workshop.js';

/** Calls of the store at the same time. */
const AT_ONCE = 16;
/** Files that the report names one by one. */
const REPORTED_MAX = 20;

export interface Recovered {
  readonly shop: Workshop;
  /** Files with a name, of which something is in no object. */
  readonly files: readonly StagedFile[];
  /** For people, a line for each. */
  readonly report: readonly string[];
}

/**
 * The shop has the store whose copies look at their conditions.
 * @param boot of the machine: see bootId()
 * @throws CacheDirectoryError, JournalError, an error of the file system: then nothing was changed
 */
export async function recover(
  directory: CacheDirectory, given: ObjectStore, budget: MemoryBudget, privileged: boolean, log: TreeLog, blocks: BlockCache | null = null, boot = bootId(),
): Promise<Recovered> {
  const { journal, tail, pending, isOutdated } = opened(directory, boot);
  const report: string[] = [];
  if (tail !== null) report.push(`the journal ended with ${tail.bytes} bytes that were never finished: ${tail.path === null ? 'the disk is full, so they are gone' : `they are in ${tail.path}`}`);
  try {
    const staged = new Set(directory.stagingIds());
    const lastId = [...staged].reduce((a, b) => Math.max(a, b), pending.lastId);
    const ledger = new Ledger(journal, lastId, { boot, makeRoom: () => blocks?.giveWay() === true });
    for (const [id, upload] of pending.uploads) ledger.uploads.set(id, upload);
    for (const [id, operation] of pending.operations) ledger.operations.set(id, operation);
    for (const key of pending.hidden) ledger.hidden.add(key);
    ledger.begins();
    const store = withConditionalCopies(given, conditionalCopyOptions({ uploads: ledger, borrow: borrowedOf(budget) }));
    const shop = { store, budget, directory, ledger, blocks, privileged, backgroundSync: new BackgroundSync(ledger.files, log) };
    const files = await restored(shop, pending, staged, report);
    if (isOutdated) ledger.rewrite();
    const gone = await new MoveRecovery(store, ledger, files, log).finish(pending.operations.values(), report);
    await clean(shop, pending, report);
    for (const file of gone) file.dispose();
    const left = files.filter((file) => !gone.has(file));
    // The rest is not needed for anything that a guest asks for
    const renewed = ledger.renew();
    for (const id of staged) if (!ledger.files.has(id)) directory.removeStaging(id, () => renewed);
    shop.backgroundSync.note();
    return { shop, files: left, report };
  } catch (error) {
    journal.close();
    throw error;
  }
}

/** What there is to recover, without touching anything. @throws as recover() */
export function inspect(directory: CacheDirectory, boot = bootId()): { pending: Pending; report: string[] } {
  const replay = new Replay(boot);
  const tailBytes = known(directory, () => Journal.read<JournalRecord>(directory.journalPath, (record) => replay.add(record)));
  const report = tailBytes === 0 ? [] : [`the journal ends with ${tailBytes} bytes that were never finished`];
  return { pending: replay.end(), report };
}

function opened(directory: CacheDirectory, boot: string): OpenedJournal<JournalRecord> & { readonly pending: Pending } {
  const replay = new Replay(boot);
  const journal = known(directory, () => Journal.open<JournalRecord>(directory.journalPath, (record) => replay.add(record)));
  return { ...journal, pending: replay.end() };
}

function known<T>(directory: CacheDirectory, body: () => T): T {
  try {
    return body();
  } catch (error) {
    if (!(error instanceof UnknownRecord)) throw error;
    throw new CacheDirectoryError(`${directory.journalPath}: ${error.message}: start the version that wrote it; nothing was changed`);
  }
}

export function describeLeft(file: LeftFile, location: string): string {
  const { key, size, staged, attributes } = file;
  if ((attributes.mode & S_IFMT) === S_IFDIR) return `${location}/${key}: a directory and its attributes`;
  if (isAttributesOnly(file)) return `${location}/${key}: attributes`;
  return `${location}/${key}: ${size} bytes, ${bytesOf(staged)} of them only here`;
}

const bytesOf = (ranges: readonly Extent[]): number => ranges.reduce((sum, { from, to }) => sum + to - from, 0);

/** `staged`: ids of the staging files that are there. */
async function restored(shop: Workshop, pending: Pending, staged: ReadonlySet<number>, report: string[]): Promise<StagedFile[]> {
  const { store } = shop;
  const files: StagedFile[] = [];
  for (const state of pending.files.values()) {
    if (state.key === null) continue;
    if (state.staged.length > 0 && !staged.has(state.id)) {
      report.push(await committedAlready(shop, state, state.key));
      continue;
    }
    files.push(StagedFile.restore(shop, state, { hasStaging: staged.has(state.id) }));
    if (files.length <= REPORTED_MAX) report.push(`goes on: ${describeLeft(state, store.location)}`);
    if (state.fellBack) report.push(`${store.location}/${state.key}: what was written to it and never synced went with the machine's memory`);
    if (state.lost.length > 0) report.push(`${store.location}/${state.key}: the disk has lost ${bytesOf(state.lost)} bytes of it: it is not written to the bucket until they are written anew`);
  }
  if (files.length > REPORTED_MAX) report.push(`goes on: ${files.length - REPORTED_MAX} more files`);
  return files;
}

/** A staging file is gone that had been synced. If its data has got into the bucket, the journal has only not heard of that. @throws CacheDirectoryError */
async function committedAlready({ store, directory }: Workshop, { id, token, doubts }: LeftFile, key: string): Promise<string> {
  const commit = (await ifThere(store.head(key)))?.metadata?.[COMMIT];
  const doubt = doubts.find((one) => one.commit === commit);
  const bearsToken = commit !== undefined && token !== '' && commit.startsWith(`${token}.`);
  if (doubt === undefined ? bearsToken : doubt.covers !== 'nothing') return `${store.location}/${key} had been written`;
  throw new CacheDirectoryError(`${directory.stagingPath(id)} is missing, which has data of ${store.location}/${key} that is nowhere else: restore it; nothing was changed`);
}

/** Uploads and copies that cannot be removed stay in the journal, for the next start. */
async function clean(shop: Workshop, pending: Pending, report: string[]): Promise<void> {
  const { store, ledger } = shop;
  const tried = async (what: string, body: () => Promise<string>): Promise<void> => {
    try {
      report.push(await body());
    } catch (error) {
      if (!(error instanceof StorageError)) throw error;
      report.push(`${what}: not finished (${error.message}); the next start tries again`);
    }
  };
  const cleaning = [
    ...[...pending.uploads.values()].map((upload) => () =>
      tried(`upload of ${store.location}/${upload.key}`, async () => {
        await store.abortUpload(upload);
        ledger.uploadEnded(upload);
        return `gave up an unfinished upload of ${store.location}/${upload.key}`;
      })),
    ...[...pending.hidden].map((key) => () =>
      tried(`${store.location}/${key}`, async () => {
        await removeFromOwnKey(store, key);
        ledger.removed(key);
        return `removed ${store.location}/${key}, which was kept for an open file`;
      })),
  ];
  for (let at = 0; at < cleaning.length; at += AT_ONCE) await Promise.all(cleaning.slice(at, at + AT_ONCE).map((clean) => clean()));
}
