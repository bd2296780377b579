/** `bucketfsd recover`: what a daemon has left in its cache directory is put into the bucket, without a VM. */
import { layered, openClient, REOPEN, sentence } from './open.js';
import { openAddressed } from './addressing.js';
import { capabilitiesOf, withCapabilities } from './capabilities.js';
import type { BucketSettings, RecoverSettings } from '../cli.js';
import { parseSource } from '../cli/source.js';
import type { Logger } from '../base/log.js';
import { StartError } from '../lifecycle/errors.js';
import { StorageError } from '../storage/object/errors.js';
import { JournalError } from '../storage/object/journal-frames.js';
import { hiddenKey } from '../storage/object/hidden.js';
import { MemoryBudget } from '../storage/object/memory-budget.js';
import type { ObjectStore } from '../storage/object/store.js';
import { CacheDirectory, CacheDirectoryError } from '../storage/object/write/cache-directory.js';
import { CommitMaker } from '../storage/object/write/commit.js';
import { Committer } from '../storage/object/write/committer.js';
import { Gate } from '../storage/object/write/gate.js';
import { COMMIT_SIZES } from '../storage/object/write/layout.js';
import { describeLeft, inspect, recover } from '../storage/object/write/recovery.js';
import type { StagedFile } from '../storage/object/write/staged-file.js';

const MIB = 1 << 20;

export interface Output {
  /** A line of the report. */
  line(text: string): void;
  /** What is going on, for a terminal; takes the place of what it said before. */
  progress(text: string): void;
}

/** @returns whether everything is in the bucket now. @throws StartError */
export async function recoverDirectory(settings: RecoverSettings, log: Logger, output: Output): Promise<boolean> {
  try {
    return settings.dryRun ? show(settings, output) : await complete(settings, log, output);
  } catch (error) {
    if (error instanceof CacheDirectoryError || error instanceof JournalError) throw new StartError(`cannot recover: ${error.message}`);
    throw error;
  }
}

function show({ cacheDir }: RecoverSettings, output: Output): boolean {
  const { directory, identity } = CacheDirectory.reopen(cacheDir);
  try {
    const { pending, report } = inspect(directory);
    for (const line of report) output.line(line);
    for (const { kind, from, to, tree } of pending.operations.values()) {
      output.line(`to finish: ${kind} of ${identity.location}/${from}${tree ? ' and all below' : ''}${to === '' ? '' : ` to ${to}`}`);
    }
    for (const file of pending.files.values()) if (file.key !== null) output.line(`to write: ${describeLeft(file, identity.location)}`);
    for (const { key } of pending.uploads.values()) output.line(`to give up: an unfinished upload of ${identity.location}/${key}`);
    for (const key of pending.hidden) output.line(`to remove: ${identity.location}/${key}, which was kept for an open file`);
    const items = pending.operations.size + pending.uploads.size + pending.hidden.size + [...pending.files.values()].filter((file) => file.key !== null).length;
    output.line(items === 0 ? 'nothing is left: everything is in the bucket' : `${items} ${items === 1 ? 'item' : 'items'}; nothing was changed (--dry-run)`);
    return items === 0;
  } finally {
    directory.close();
  }
}

async function complete(settings: RecoverSettings, log: Logger, output: Output): Promise<boolean> {
  const { directory, identity } = CacheDirectory.reopen(settings.cacheDir);
  let client: ObjectStore | null = null;
  let bucket: BucketSettings | null = null;
  try {
    bucket = bucketOf(settings, identity.reopen);
    client = (await openAddressed(bucket, openClient, (store) => layered(store, log).check(), log)).store;
    const plain = layered(client, log);
    const store = withCapabilities(plain, await capabilitiesOf(plain, directory.path, bucket, log));
    const budget = MemoryBudget.within(bucket.memoryBudget * MIB);
    const { shop, files, report } = await recover(directory, store, budget, bucket.privilegedMetadata, log);
    for (const line of report) output.line(line);
    const maker = new CommitMaker(shop, { posix: bucket.posixMetadata, sizes: COMMIT_SIZES, hiddenKey: () => hiddenKey(identity.prefix), overwrite: bucket.onConflict === 'overwrite' });
    const left = new Set(files);
    const settled = (file: StagedFile): void => {
      left.delete(file);
      output.progress(`${files.length - left.size} of ${files.length} files are in the bucket`);
    };
    const committer = new Committer(maker, { durability: 'remote', writebackDelay_ms: 0, prefix: identity.prefix }, {
      believedUntil: () => -Infinity,
      waiting: () => null,
      committed: (file) => (settled(file), queueMicrotask(() => file.dispose())),
      conflicting: () => undefined,
      conflicted: (file) => (settled(file), queueMicrotask(() => file.dispose())),
    }, new Gate(), log);
    for (const file of files) committer.later(file);
    await committer.close();
    for (const file of left) output.line(`not written: ${identity.location}/${file.key}; its data stays in ${directory.path}`);
    output.line(left.size === 0 && shop.ledger.operations.size === 0 ? 'everything is in the bucket' : 'something is left: run it again when the cause is gone');
    for (const file of left) file.abandon();
    shop.ledger.hurry();
    await directory.settled();
    await shop.ledger.close();
    return left.size === 0 && shop.ledger.operations.size === 0;
  } catch (error) {
    throw error instanceof StorageError && bucket !== null ? new StartError(sentence(error, bucket)) : error;
  } finally {
    await client?.close();
    await directory.settled();
    directory.close();
  }
}

/** The options that say whom to trust, and what they are called on the command line. */
const TRUST = { endpoint: '--endpoint', caBundle: '--ca-bundle' } as const satisfies Partial<Record<keyof BucketSettings, string>>;

/**
 * As the daemon was started, but for what is said now. The rule *a directory names nobody to be trusted*: what it says of the endpoint, and of certificates, counts only
 * if the command line says so too; requests there have credentials in them, and whoever can write to the directory need not be whoever runs this.
 */
function bucketOf(settings: RecoverSettings, reopen: unknown): BucketSettings {
  const { source: text, options } = (reopen ?? {}) as { readonly source?: unknown; readonly options?: unknown };
  const source = settings.source ?? (typeof text === 'string' ? parseSource(text) : null);
  if (source === null || source.kind === 'local') throw new StartError('the cache directory does not say which bucket it belongs to: name it with --source');
  const remembered = rememberedIn(settings, options);
  const unsaid = Object.entries(TRUST).flatMap(([name, flag]) => {
    const value = remembered[name as keyof typeof TRUST] ?? null;
    return value === null || settings.said[name as keyof typeof TRUST] !== undefined ? [] : [`${flag} ${value}`];
  });
  if (unsaid.length > 0) throw new StartError(`${settings.cacheDir} says that it belongs to ${source.path} with ${unsaid.join(' ')}: if that is right, run this again with ${unsaid.join(' ')}; nothing was sent`);
  return { ...settings, ...remembered, ...settings.said, cacheDir: settings.cacheDir, source };
}

/** Of a directory, only options that one remembers, with values that they can have. */
function rememberedIn(settings: RecoverSettings, options: unknown): Partial<BucketSettings> {
  const found = (typeof options === 'object' ? options : null) ?? {};
  return Object.fromEntries(REOPEN.flatMap((name) => {
    const value: unknown = Object.hasOwn(found, name) ? (found as Record<string, unknown>)[name] : undefined;
    if (value === undefined) return [];
    const usual = settings[name];
    if (typeof value !== (typeof usual === 'boolean' ? 'boolean' : 'string') && !(value === null && typeof usual !== 'boolean')) throw new StartError(`${settings.cacheDir}/share.json makes no sense: ${name} is ${JSON.stringify(value)}`);
    return [[name, value]];
  }));
}
