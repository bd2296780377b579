/** A bucket as a source: from the options to a file system, and the sentence when the provider does not let us. */
import { readFileSync } from 'node:fs';
import type { Logger } from './base/log.js';
import type { BucketSettings } from './cli.js';
import { StartError } from './lifecycle/errors.js';
import { openStoreClient } from './pool/store-client.js';
import type { FileSystem } from './storage/filesystem.js';
import { StorageError } from './storage/object/errors.js';
import { openObjectFileSystem } from './storage/object/filesystem.js';
import { withDeadline } from './storage/object/layers/deadline.js';
import { AdaptiveLimit, withLimit } from './storage/object/layers/limit.js';
import { withRetry } from './storage/object/layers/retry.js';
import { MemoryBudget } from './storage/object/memory-budget.js';
import type { StoreConfig } from './storage/object/open-store.js';
import type { ObjectStore } from './storage/object/store.js';

const MIB = 1 << 20;
/** Each takes some 25 MB for its SDK, and serves hundreds of calls at the same time. */
const THREADS_MAX = 2;

export interface Bucket {
  readonly fs: FileSystem;
  close(): Promise<void>;
}

/** @throws StartError when bucket or credentials are not good: one cheap call is made to find out. */
export async function openBucket(options: BucketSettings, log: Logger): Promise<Bucket> {
  const { source } = options;
  let client: ObjectStore | null = null;
  try {
    client = await openStoreClient({ config: storeConfig(options), threads: Math.max(1, Math.min(THREADS_MAX, options.threadPoolSize >> 1)) });
    const store = layered(client, log);
    await withRetry(withDeadline(client), { attempts: 3 }).check();
    const opened = await openObjectFileSystem(store, new MemoryBudget(options.memoryBudget * MIB), {
      prefix: source.prefix,
      metadataTtl_ms: options.metadataTtl * 1000,
      posix: options.posixMetadata,
      uid: options.uid,
      gid: options.gid,
      fileMode: options.fileMode,
      directoryMode: options.dirMode,
      readdirplus: options.readdirplus,
      write: null,
    }, log);
    return { fs: opened.fs, close: () => store.close() };
  } catch (error) {
    await client?.close();
    throw error instanceof StorageError ? new StartError(sentence(error, options)) : error;
  }
}

/** A deadline for each attempt, the limit around what is really under way, retries around both. */
function layered(client: ObjectStore, log: Logger): ObjectStore {
  return withRetry(withLimit(withDeadline(client), new AdaptiveLimit()), {
    onRetry: (call, error, attempt, delay_ms) =>
      log.guest(`retry ${error.code}`, { operation: call.operation, attempt, delay_ms, err: error }, `${error.message}: trying again in ${delay_ms} ms`),
  });
}

export function storeConfig(options: BucketSettings): StoreConfig {
  const { source } = options;
  const ca = options.caBundle === null ? {} : { ca: certificates(options.caBundle) };
  const endpoint = options.endpoint === null ? {} : { endpoint: options.endpoint };
  if (source.kind === 'gcs') {
    return {
      kind: 'gcs',
      options: {
        bucket: source.bucket, ...endpoint, ...ca, ...(options.gcsProject === null ? {} : { userProject: options.gcsProject }),
        ...(options.unsigned ? { credentials: 'anonymous' as const } : {}),
      },
    };
  }
  return {
    kind: 's3',
    options: {
      bucket: source.bucket, ...endpoint, ...ca, pathStyle: options.pathStyle, unsigned: options.unsigned, requesterPays: options.requesterPays,
      ...(options.region === null ? {} : { region: options.region }),
      ...(options.profile === null ? {} : { profile: options.profile }),
      ...(options.expectedBucketOwner === null ? {} : { expectedBucketOwner: options.expectedBucketOwner }),
    },
  };
}

function certificates(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch (error) {
    throw new StartError(`cannot read the certificates of --ca-bundle: ${(error as Error).message}`);
  }
}

/** What is wrong, and what to do about it. */
export function sentence(error: StorageError, options: BucketSettings): string {
  const { source } = options;
  const what = `cannot share ${source.path}: `;
  const s3 = source.kind === 's3';
  const provider = error.detail.providerMessage ?? error.code;
  switch (error.code) {
    case 'no-bucket':
    case 'not-found':
      return `${what}there is no bucket ${source.bucket}${options.endpoint === null ? '' : ` at ${options.endpoint}`}`;
    case 'bad-credentials':
      return `${what}the credentials are missing or wrong (${provider}): ${s3 ? 'check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or name a profile with --profile' : 'check GOOGLE_APPLICATION_CREDENTIALS'}; for a public bucket use --unsigned`;
    case 'expired':
      return `${what}the credentials have expired: get new ones, or let the environment renew them`;
    case 'denied':
      return `${what}these credentials may not list it (${provider}): they need ${s3 ? 's3:ListBucket and s3:GetObject' : 'storage.objects.list and storage.objects.get'}${options.unsigned ? '; --unsigned uses none' : ''}`;
    case 'wrong-region':
      return `${what}the bucket is in another region${error.detail.region === undefined ? '' : `: use --region ${error.detail.region}`} (${provider})`;
    case 'clock-skew':
      return `${what}the clock of this host is too far off: set it (${provider})`;
    case 'unreachable':
    case 'timeout':
    case 'interrupted':
      return `${what}${options.endpoint ?? "the provider's endpoint"} cannot be reached (${provider})${options.endpoint === null ? '' : ': check --endpoint'}`;
    default:
      return `${what}${error.message}`;
  }
}
