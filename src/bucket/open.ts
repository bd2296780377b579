/** A bucket as a source: from the options to a file system, and the sentence when the provider does not let us. */
import { X509Certificate } from 'node:crypto';
import { readFileSync } from 'node:fs';
import type { Logger } from '../base/log.js';
import type { BucketSettings } from '../cli.js';
import { StartError } from '../lifecycle/errors.js';
import { within } from '../lifecycle/shutdown.js';
import { openStoreClient } from '../pool/store-client.js';
import type { FileSystem } from '../storage/filesystem.js';
import { StorageError } from '../storage/object/errors.js';
import { openAddressed } from './addressing.js';
import { capabilitiesOf, withCapabilities } from './capabilities.js';
import { cacheDirectoryOf, defaultDirectory, diskOf, ensureHome, type StateDirectory } from './state-directory.js';
import { openObjectFileSystem, type BlockOptions, type OpenedObjects } from '../storage/object/filesystem.js';
import { JournalError } from '../storage/object/journal-frames.js';
import { withDeadline } from '../storage/object/layers/deadline.js';
import { AdaptiveLimit, BULK_LIMIT, withLimit } from '../storage/object/layers/limit.js';
import { withLog } from '../storage/object/layers/log.js';
import { withRestart } from '../storage/object/layers/restart.js';
import { withRetry } from '../storage/object/layers/retry.js';
import { MemoryBudget } from '../storage/object/memory-budget.js';
import { openStore, type StoreConfig } from '../storage/object/open-store.js';
import type { ObjectStore } from '../storage/object/store.js';
import { CacheDirectoryError } from '../storage/object/write/cache-directory.js';

const MIB = 1 << 20;
/** Each takes some 25 MB for its SDK, and serves hundreds of calls at the same time. */
const THREADS_MAX = 2;
/** When the daemon is told to end, so long what is left is committed. */
const COMMIT_LIMIT_MS = 60_000;
const PROGRESS_MS = 5_000;
/** All that close() takes; service managers wait 90 s. */
export const CLOSE_LIMIT_MS = COMMIT_LIMIT_MS + 10_000;

export interface Bucket {
  readonly fs: FileSystem;
  /** What was done, or is to be done, about what a former daemon has left. */
  readonly recovered: readonly string[];
  /** Commit what is left, as far as the provider lets us. @returns whether everything is in the bucket */
  close(): Promise<boolean>;
}

/**
 * One cheap call is made to find out whether it can be shared. `fileLimit`: descriptors that the process may have; `made`: the cache directory, of whoever has
 * made it already
 * @throws StartError when bucket, credentials or cache directory are not good
 */
export async function openBucket(options: BucketSettings, log: Logger, fileLimit: number, made: StateDirectory | null = null): Promise<Bucket> {
  const { source } = options;
  let client: ObjectStore | null = null;
  let directory: StateDirectory | null = null;
  try {
    const asking = (store: ObjectStore): ObjectStore => withRetry(withDeadline(store), { attempts: 3 });
    const addressed = await openAddressed(options, openClient, (store) => asking(store).check(), log);
    client = addressed.store;
    const plain = layered(client, log);
    // Whoever starts the daemon waits for these
    const asked = asking(client);
    directory = options.readonly ? null : (made ?? (await cacheDirectoryOf(options)));
    const store = directory === null ? plain : withCapabilities(plain, await capabilitiesOf(asked, directory.path, options, log));
    const opened = await openObjectFileSystem(store, MemoryBudget.within(options.memoryBudget * MIB), {
      prefix: source.prefix,
      metadataTtl_ms: options.metadataTtl * 1000,
      posix: options.posixMetadata,
      privileged: options.privilegedMetadata,
      uid: options.uid,
      gid: options.gid,
      fileMode: options.fileMode,
      directoryMode: options.dirMode,
      readdirplus: options.readdirplus,
      blocks: blockOptions(options, directory),
      write: directory === null ? null : {
        cacheDirectory: directory.path,
        fileLimit,
        durability: options.durability,
        onConflict: options.onConflict,
        writebackDelay_ms: options.writebackDelay * 1000,
        reopen: remembered(addressed.settings),
      },
    }, log);
    if (directory !== null) log.info({ cacheDirectory: directory.path }, `what is not in the bucket yet is kept in ${directory.path}`);
    const { fs, recovered } = opened;
    const state = directory;
    return { fs, recovered, close: () => close(opened, store, state, log) };
  } catch (error) {
    await client?.close();
    if (error instanceof StorageError) throw new StartError(sentence(error, options));
    if (error instanceof CacheDirectoryError || error instanceof JournalError) throw new StartError(`cannot share ${source.path}: ${error.message}`);
    const { syscall, message } = error as NodeJS.ErrnoException;
    if (syscall !== undefined && directory !== null) throw new StartError(`cannot share ${source.path}: the cache directory ${directory.path} cannot be used (${message})`);
    throw error;
  }
}

/** Nothing is slower than memory, and its versions begin anew with each daemon. */
function blockOptions(options: BucketSettings, directory: StateDirectory | null): BlockOptions | null {
  if (options.cacheSize === 0 || options.source.kind === 'memory') return null;
  const cacheDirectory = directory?.path ?? options.cacheDir ?? defaultDirectory(options, process.env);
  const { bytes: disk } = diskOf(cacheDirectory);
  if (options.cacheSize * MIB > disk) {
    throw new StartError(`cannot share ${options.source.path}: --cache-size is ${options.cacheSize} MiB, and the disk of ${cacheDirectory} has ${Math.floor(disk / MIB)}: choose a smaller one, or another --cache-dir`);
  }
  return { cacheDirectory, bytes: options.cacheSize * MIB, fill: options.cacheFill === 'on', scope: options.endpoint ?? '' };
}

async function close(opened: OpenedObjects, store: ObjectStore, directory: StateDirectory | null, log: Logger): Promise<boolean> {
  const progress = setInterval(() => {
    const { files, bytes } = opened.left();
    if (files > 0) log.info({ files, bytes }, `stopping: ${counted(files)} of ${sized(bytes)} are still on their way to the bucket`);
  }, PROGRESS_MS);
  // Nothing is given up that still reads staging files: their descriptors stay theirs until the process ends
  const ended = await within(opened.close().then(() => true), COMMIT_LIMIT_MS);
  clearInterval(progress);
  const { files, bytes } = opened.left();
  const isWhole = ended === true && files === 0;
  if (!isWhole) {
    log.warn(
      { files, bytes, cacheDirectory: directory?.path },
      `${counted(files)} of ${sized(bytes)} could not be written to the bucket: the data is on the disk, in ${directory?.path}, and the next start, or bucketfsd recover, goes on with it`,
    );
  }
  await store.close();
  directory?.discard();
  return isWhole;
}

const counted = (files: number): string => (files === 1 ? 'one file' : `${files} files`);
const sized = (bytes: number): string => (bytes < MIB ? `${bytes} bytes` : `${Math.round(bytes / MIB)} MiB`);

/** A store in threads of its own; one in memory is here, since every thread would have another. */
export function openClient(options: BucketSettings): Promise<ObjectStore> {
  ensureHome(process.env);
  const config = storeConfig(options);
  if (config.kind === 'memory') return openStore(config);
  return openStoreClient({ config, threads: Math.max(1, Math.min(THREADS_MAX, options.threadPoolSize >> 1)) });
}

/** A deadline for each attempt, slow reads made again, the limit around what is really under way, retries around all. */
export function layered(client: ObjectStore, log: Logger): ObjectStore {
  const prompt = withRestart(withDeadline(withLog(client, log)), {
    onRestart: (call, waited_ms) => log.guest('slow read', { operation: call.operation, waited_ms }, `${call.subject}: slower than usual, asked again`, 'info'),
  });
  return withRetry(withLimit(prompt, new AdaptiveLimit(), new AdaptiveLimit(BULK_LIMIT)), {
    onRetry: (call, error, attempt, delay_ms) =>
      log.guest(`retry ${error.code}`, { operation: call.operation, attempt, delay_ms, err: error }, `${error.message}: trying again in ${delay_ms} ms`),
  });
}

export function storeConfig(options: BucketSettings): StoreConfig {
  const { source } = options;
  const ca = options.caBundle === null ? {} : { ca: certificates(options.caBundle) };
  const endpoint = options.endpoint === null ? {} : { endpoint: options.endpoint };
  const storageClass = options.storageClass === null ? {} : { storageClass: options.storageClass };
  if (source.kind === 'memory') return { kind: 'memory' };
  if (source.kind === 'gcs') {
    return {
      kind: 'gcs',
      options: {
        bucket: source.bucket, ...endpoint, ...ca, ...storageClass, ...(options.kmsKey === null ? {} : { kmsKeyName: options.kmsKey }),
        ...(options.gcsProject === null ? {} : { userProject: options.gcsProject }),
        ...(options.unsigned ? { credentials: 'anonymous' as const } : {}),
      },
    };
  }
  return {
    kind: 's3',
    options: {
      bucket: source.bucket, ...endpoint, ...ca, ...storageClass, pathStyle: options.pathStyle, unsigned: options.unsigned, requesterPays: options.requesterPays,
      ...(options.region === null ? {} : { region: options.region }),
      ...(options.profile === null ? {} : { profile: options.profile }),
      ...(options.sse === null ? {} : { serverSideEncryption: options.sse }),
      ...(options.kmsKey === null ? {} : { kmsKeyId: options.kmsKey }),
      ...(options.expectedBucketOwner === null ? {} : { expectedBucketOwner: options.expectedBucketOwner }),
    },
  };
}

function certificates(path: string): string {
  let text: string;
  try {
    text = readFileSync(path, 'utf8');
  } catch (error) {
    throw new StartError(`cannot read the certificates of --ca-bundle: ${(error as Error).message}`);
  }
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]*-----END CERTIFICATE-----/g) ?? [];
  try {
    for (const block of blocks) new X509Certificate(block);
  } catch (error) {
    throw new StartError(`--ca-bundle ${path} has a certificate that cannot be read (${(error as Error).message})`);
  }
  // Node.js takes such a file without a word, and trusts nobody
  if (blocks.length === 0) throw new StartError(`--ca-bundle ${path} has no certificate: it takes PEM, with -----BEGIN CERTIFICATE-----`);
  return text;
}

/** Settings without which the bucket cannot be found again; nothing secret. See recover.ts. */
export const REOPEN = [
  'endpoint', 'region', 'profile', 'pathStyle', 'unsigned', 'requesterPays', 'expectedBucketOwner', 'caBundle', 'gcsProject', 'storageClass', 'sse', 'kmsKey', 'onConflict',
  'posixMetadata', 'privilegedMetadata',
] as const satisfies readonly (keyof BucketSettings)[];

export interface Remembered {
  readonly source: string;
  readonly options: Partial<BucketSettings>;
}

function remembered(settings: BucketSettings): Remembered {
  return { source: settings.source.path, options: Object.fromEntries(REOPEN.map((key) => [key, settings[key]])) };
}

/** What is wrong, and what to do about it: one line. */
export function sentence(error: StorageError, options: BucketSettings): string {
  return explained(error, options).replace(/\s+/g, ' ').trim();
}

function explained(error: StorageError, options: BucketSettings): string {
  const { source } = options;
  const what = `cannot share ${source.path}: `;
  const s3 = source.kind === 's3';
  const provider = error.said;
  const profile = options.profile ?? process.env['AWS_PROFILE'] ?? null;
  switch (error.code) {
    case 'no-bucket':
    case 'not-found':
      return `${what}there is no bucket ${source.bucket}${options.endpoint === null ? '' : ` at ${options.endpoint}`}`;
    case 'bad-credentials':
      if (s3 && profile !== null && error.detail.providerCode === 'CredentialsProviderError') {
        const from = options.profile === null ? 'AWS_PROFILE' : '--profile';
        return `${what}the profile ${profile} gives no credentials (${provider}): check ${from} against ~/.aws/config and ~/.aws/credentials`;
      }
      return `${what}the credentials are missing or wrong (${provider}): ${s3 ? 'check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with --profile' : 'check GOOGLE_APPLICATION_CREDENTIALS'}; for a public bucket use --unsigned`;
    case 'expired':
      return `${what}the credentials have expired: get new ones, or let the environment renew them`;
    case 'denied':
      return `${what}these credentials may not list it (${provider}): they need ${s3 ? 's3:ListBucket and s3:GetObject' : 'storage.objects.list and storage.objects.get'}${options.unsigned ? '; --unsigned uses none' : ''}`;
    case 'wrong-region':
      return `${what}the bucket is in another region (${provider}): ${error.detail.region === undefined ? 'check --region and --endpoint' : `use --region ${error.detail.region}`}`;
    case 'clock-skew':
      return `${what}the clock of this host is too far off: set it (${provider})`;
    case 'invalid':
      return `${what}${options.endpoint ?? 'the provider'} does not accept the request (${provider}): check --endpoint, --region and --path-style`;
    case 'throttled':
    case 'unavailable':
      return `${what}${options.endpoint ?? 'the provider'} does not serve at the moment (${provider}): try again later`;
    case 'unreachable':
    case 'timeout':
    case 'interrupted': {
      const tls = aboutTls(error.detail.providerCode ?? '');
      if (tls !== null) return `${what}the connection to ${options.endpoint ?? 'the provider'} cannot be secured (${provider}): ${tls}`;
      return `${what}${options.endpoint ?? "the provider's endpoint"} cannot be reached (${provider})${options.endpoint === null ? '' : ': check --endpoint'}`;
    }
    default:
      // Of the SDK and of Google's library, before they ask anybody
      if (s3 && (error.detail.providerCode === 'ERR_INVALID_URL' || error.detail.providerCode === 'EndpointError')) {
        return `${what}the environment or the profile names an endpoint that is no URL of HTTP (${provider}): check AWS_ENDPOINT_URL, AWS_ENDPOINT_URL_S3 and endpoint_url of the profile`;
      }
      if (s3 && error.detail.providerCode === 'ERR_INVALID_CHAR') {
        return `${what}the credentials have a character that no request can have, such as a line's end (${provider}): check AWS_ACCESS_KEY_ID, AWS_SESSION_TOKEN and the file that they come from`;
      }
      if (!s3 && provider === 'Invalid URL') return `${what}STORAGE_EMULATOR_HOST is no URL: correct it, or leave it away and use --endpoint`;
      if (s3 && /^Region not accepted/.test(provider)) return `${what}a region is letters, digits and hyphens, not what it was given (${provider}): check --region, AWS_REGION and the profile`;
      return `${what}${error.message}`;
  }
}

/** What to do about Node's codes of TLS errors; null: it is none. */
function aboutTls(code: string): string | null {
  if (code === 'ERR_TLS_CERT_ALTNAME_INVALID') return '--endpoint must have a name that is in the certificate';
  if (code === 'EPROTO' || code.startsWith('ERR_SSL')) return 'if it speaks plain HTTP, --endpoint begins with http://';
  if (code === 'CERT_HAS_EXPIRED' || code === 'CERT_NOT_YET_VALID') return 'renew its certificate, or set the clock of this host';
  return /CERT|SELF_SIGNED|UNABLE_TO_/.test(code) ? 'name the certificates to trust with --ca-bundle' : null;
}
