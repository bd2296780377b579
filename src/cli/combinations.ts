/**
 * The one place for options beside each other. The rule: what has no effect beside the others, or for this source, was meant for something; it is
 * refused with one sentence instead of being ignored. Saying a default is no mistake.
 */
import { UsageError } from '../lifecycle/errors.js';
import { OPTION_ENTRIES, OPTIONS, displayName, type OptionKey, type OptionValues } from './options.js';
import type { Source } from './source.js';
import type { Collected } from './values.js';

const SET_ID = 0o6000;

/** What only those need who write to a bucket. */
const FOR_WRITERS = ['durability', 'writebackDelay', 'onConflict', 'storageClass', 'sse', 'kmsKey'] as const satisfies readonly OptionKey[];

const PROVIDERS = { s3: 'S3', gcs: 'Google Cloud Storage' } as const;

/** @throws UsageError */
export function checkCombinations(options: OptionValues, source: Source): void {
  const given = (key: (typeof FOR_WRITERS)[number] | 'cacheFill'): boolean => options[key] !== OPTIONS[key].default;
  const refuse = (sentence: string): never => {
    throw new UsageError(sentence);
  };
  const { endpoint, sse, kmsKey } = options;
  if (endpoint !== null && !isEndpoint(endpoint)) refuse(`--endpoint takes a URL that begins with http:// or https://, such as http://127.0.0.1:7480, not ${JSON.stringify(endpoint)}`);
  if (options.region !== null && !/^[a-z0-9-]{1,63}$/i.test(options.region)) refuse(`--region is letters, digits and hyphens, such as eu-north-1, not ${JSON.stringify(options.region)}`);
  if ((options.fileMode & SET_ID) !== 0 && !options.privilegedMetadata) refuse('--file-mode with set-id bits makes whoever may put an object root in the guest: --privileged-metadata allows it');
  if (options.migrationMode === 'file-handles' && (options.migrationConfirmPaths || options.migrationVerifyHandles)) {
    refuse('--migration-confirm-paths and --migration-verify-handles are for --migration-mode=find-paths');
  }
  if (options.readonly) {
    for (const key of FOR_WRITERS) if (given(key)) refuse(`${displayName(OPTIONS[key])} is about writing, and --readonly refuses every change: leave one of them out`);
  }
  if (given('cacheFill') && options.cacheSize === 0) refuse('--cache-fill is for --cache-size: without it nothing is kept on disk');
  if (options.unsigned && options.profile !== null) refuse('--unsigned uses no credentials, and --profile names some: leave one of them out');
  if (kmsKey !== null && source.kind === 's3' && sse !== 'aws:kms') refuse('--kms-key needs --sse=aws:kms');
  if (sse !== null && source.kind === 'gcs') refuse('--sse is for S3: on Google Cloud Storage name a key with --kms-key');
}

function isEndpoint(text: string): boolean {
  if (!/^https?:\/\//i.test(text) || !URL.canParse(text)) return false;
  const { search, hash, username, password } = new URL(text);
  return search === '' && hash === '' && username === '' && password === '';
}

/** Each option of the table against the kind of the source. `memory:` stands for any bucket. @throws UsageError */
export function checkKind(collected: Collected, source: Source): void {
  const kind = source.kind === 'local' ? 'directory' : 'bucket';
  for (const [key, spec] of OPTION_ENTRIES) {
    const { only } = spec;
    const value = collected.get(key);
    if (value === undefined || value === false || value === spec.default || only === undefined || only === kind) continue;
    if (only === 'directory' || only === 'bucket') throw new UsageError(`${displayName(spec)} is for a ${only}, and ${source.path} is a ${kind}`);
    if (source.kind === 'local') throw new UsageError(`${displayName(spec)} is for a bucket, and ${source.path} is a directory`);
    if (source.kind === 'memory' || source.kind === only) continue;
    throw new UsageError(`${displayName(spec)} is for ${PROVIDERS[only]}, and ${source.path} is on ${PROVIDERS[source.kind]}`);
  }
}
