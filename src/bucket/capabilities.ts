/**
 * What a provider really does is tried once, when a share that may be written to is first started, and remembered in its cache directory.
 * Amazon and Google are known; whoever else speaks S3's protocol is asked.
 */
import { readFileSync, renameSync } from 'node:fs';
import { join } from 'node:path';
import type { Logger } from '../base/log.js';
import { version } from '../base/version.js';
import type { BucketSettings } from '../cli.js';
import { StartError } from '../lifecycle/errors.js';
import { StorageError } from '../storage/object/errors.js';
import { writeOwned } from '../storage/object/owned-file.js';
import { probe } from '../storage/object/probe.js';
import type { Capabilities, ObjectStore } from '../storage/object/store.js';

const FILE = 'capabilities.json';
/** Services are updated: after a week they are asked again. */
const BELIEVED_MS = 7 * 24 * 3600 * 1000;
/** Below the prefix of the source, for as long as it takes. */
const SCRATCH = '.bucketfsd-check/';
const CONDITIONS = ['putIfAbsent', 'putIfVersion', 'completeIfAbsent', 'completeIfVersion'] as const;

const missingIn = (capabilities: Capabilities): string[] => CONDITIONS.filter((condition) => !capabilities[condition]);

interface Known {
  readonly bucketfsd: string;
  readonly endpoint: string;
  readonly location: string;
  readonly probed_ms: number;
  readonly capabilities: Capabilities;
}

export function withCapabilities(store: ObjectStore, capabilities: Capabilities): ObjectStore {
  return { ...store, capabilities };
}

/** @throws StartError where writers could overwrite each other unknowingly, StorageError when the provider cannot be asked */
export async function capabilitiesOf(store: ObjectStore, directory: string, settings: BucketSettings, log: Logger): Promise<Capabilities> {
  const { source, endpoint } = settings;
  if (source.kind !== 's3' || endpoint === null) return store.capabilities;
  let capabilities: Capabilities;
  const enough = (found: Capabilities): boolean => settings.onConflict === 'overwrite' || missingIn(found).length === 0;
  try {
    const remembered = known(store, directory, endpoint);
    // A start is not refused by what was so some days ago
    capabilities = remembered !== null && enough(remembered) ? remembered : await ask(store, directory, source.prefix, endpoint);
  } catch (error) {
    if (!(error instanceof StorageError) || error.code !== 'denied') throw error;
    log.warn({ err: error }, `these credentials may not write to ${source.path} (${error.said}): it can be read, and changes fail until they may; --readonly says so to the guest`);
    return unknown(store.capabilities);
  }
  if (!enough(capabilities)) {
    throw new StartError(
      `cannot share ${source.path}: ${endpoint} does not honour conditions of writes (${missingIn(capabilities).join(', ')}), so what others write meanwhile could be lost unnoticed: ` +
        'say --on-conflict=overwrite to accept that, or --readonly',
    );
  }
  return capabilities;
}

/** Nobody was allowed to try: should writing be allowed one day, nothing is relied on. The next start asks again. */
function unknown(most: Capabilities): Capabilities {
  return { ...most, ...Object.fromEntries(CONDITIONS.map((condition) => [condition, false])), copyIfAbsent: false, copyIfVersion: false, deleteIfVersion: false, atomicDelete: false, copyPart: 'none' };
}

async function ask(store: ObjectStore, directory: string, prefix: string, endpoint: string): Promise<Capabilities> {
  const capabilities = await probe(store, prefix + SCRATCH);
  const found: Known = { bucketfsd: version(), endpoint, location: store.location, probed_ms: Date.now(), capabilities };
  const path = join(directory, FILE);
  try {
    writeOwned(`${path}.new`, `${JSON.stringify(found)}\n`);
    renameSync(`${path}.new`, path);
  } catch {
    // Read-only or full: whether the directory is good for what matters is found out by who opens it
  }
  return capabilities;
}

/** null: nothing that could be relied on, whatever the reason; then the provider is asked. */
function known(store: ObjectStore, directory: string, endpoint: string): Capabilities | null {
  try {
    const found = JSON.parse(readFileSync(join(directory, FILE), 'utf8')) as Known;
    const same = found.bucketfsd === version() && found.endpoint === endpoint && found.location === store.location;
    const young = Math.abs(Date.now() - found.probed_ms) < BELIEVED_MS;
    const whole = Object.keys(store.capabilities).every((name) => typeof found.capabilities[name as keyof Capabilities] === typeof store.capabilities[name as keyof Capabilities]);
    return same && young && whole ? found.capabilities : null;
  } catch {
    return null;
  }
}
