/** `bucketfsd check`: what a bucket, its provider and these credentials are good for, found out by trying. */
import { openAddressed } from './addressing.js';
import { sentence, storeConfig } from './open.js';
import type { BucketSettings } from '../cli.js';
import { StartError } from '../lifecycle/errors.js';
import { StorageError } from '../storage/object/errors.js';
import { withDeadline } from '../storage/object/layers/deadline.js';
import { withRetry } from '../storage/object/layers/retry.js';
import { openStore } from '../storage/object/open-store.js';
import type { Capabilities, ObjectStore } from '../storage/object/store.js';
import { probe } from '../storage/object/probe.js';

const ROUNDS = 10;
/** Below the prefix of the source, for as long as the check takes. */
const SCRATCH = '.bucketfsd-check/';

const MEANINGS: readonly (readonly [keyof Capabilities, string])[] = [
  ['putIfAbsent', 'make an object only if there is none'],
  ['putIfVersion', 'replace an object only if it is this version'],
  ['completeIfAbsent', 'the same for uploads in parts: only if there is none'],
  ['completeIfVersion', '... only if it is this version'],
  ['copyIfAbsent', 'copy to a key only if it is free (no: written anew)'],
  ['copyIfVersion', '... only if it is this version (no: the same)'],
  ['deleteIfVersion', 'remove only this version'],
  ['copyPart', 'server-side copies into uploads in parts'],
  ['copyPartIfVersion', '... only of this version'],
  ['rename', 'rename as one step'],
  ['listingHasMetadata', 'listings with metadata'],
  ['metadataInPlace', 'metadata changed without a copy'],
  ['fetch', 'content along with metadata, in one request'],
];

/** A report for people. @throws StartError when the bucket cannot even be listed */
export async function checkBucket(settings: BucketSettings): Promise<string> {
  // As in a worker of the daemon: the SDK talks about Node.js versions of next year otherwise
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';
  let store: ObjectStore | null = null;
  try {
    const open = async (styled: BucketSettings): Promise<ObjectStore> => withRetry(withDeadline(await openStore(storeConfig(styled))), { attempts: 3 });
    const addressed = await openAddressed(settings, open, (one) => one.check(), null);
    store = addressed.store;
    const lines = [`${settings.source.path}${settings.endpoint === null ? '' : ` at ${settings.endpoint}${addressed.settings.pathStyle ? ' (path style)' : ''}`}`];
    lines.push(line('bucket and credentials', 'good'), line('a small request takes', `${(await roundTrip_ms(store)).toFixed(1)} ms`));
    lines.push(...(await abilities(store, settings)));
    return `${lines.join('\n')}\n`;
  } catch (error) {
    throw error instanceof StorageError ? new StartError(sentence(error, settings)) : error;
  } finally {
    await store?.close();
  }
}

async function abilities(store: ObjectStore, settings: BucketSettings): Promise<string[]> {
  if (settings.readonly) return [line('writing', 'not tried, because of --readonly')];
  try {
    const found = await probe(store, settings.source.prefix + SCRATCH);
    return [line('writing', 'allowed'), ...MEANINGS.map(([capability, meaning]) => line(meaning, said(found[capability])))];
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'denied') throw error;
    return [line('writing', `not allowed to these credentials (${error.said})`)];
  }
}

/** Median. */
async function roundTrip_ms(store: ObjectStore): Promise<number> {
  const times: number[] = [];
  for (let i = 0; i < ROUNDS; i++) {
    const before = performance.now();
    await store.list({ prefix: SCRATCH, limit: 1 });
    times.push(performance.now() - before);
  }
  return times.sort((a, b) => a - b)[ROUNDS >> 1];
}

const line = (what: string, answer: string): string => `  ${what.padEnd(54)}${answer}`;

function said(value: boolean | string): string {
  if (typeof value === 'boolean') return value ? 'yes' : 'no';
  return value === 'none' ? 'no' : value === 'range' ? 'any range' : 'whole objects';
}
