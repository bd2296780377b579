/** How a bucket is addressed at an endpoint other than Amazon's: its name in the host name, or in the path. */
import { isIP } from 'node:net';
import type { Logger } from '../base/log.js';
import type { BucketSettings } from '../cli.js';
import { StorageError, type StorageErrorCode } from '../storage/object/errors.js';
import type { ObjectStore } from '../storage/object/store.js';

export interface Addressed<S extends ObjectStore> {
  readonly store: S;
  /** With the style that works. */
  readonly settings: BucketSettings;
}

/**
 * Values of --path-style to try, in order. Virtual-hosted style needs a name below which the service has names of buckets: an address has none, and
 * a name without a dot seldom. https://docs.aws.amazon.com/AmazonS3/latest/userguide/VirtualHosting.html
 */
export function stylesOf({ source, endpoint, pathStyle }: Pick<BucketSettings, 'source' | 'endpoint' | 'pathStyle'>): readonly boolean[] {
  if (source.kind !== 's3' || endpoint === null || pathStyle) return [pathStyle];
  const host = new URL(endpoint).hostname.replace(/^\[|\]$/g, '');
  return isIP(host) !== 0 || !host.includes('.') || host.endsWith('.localhost') ? [true] : [false, true];
}

/** A store that has answered `ask`. @throws StorageError of the style whose answer fits better when neither does */
export async function openAddressed<S extends ObjectStore>(
  settings: BucketSettings, open: (settings: BucketSettings) => Promise<S>, ask: (store: S) => Promise<void>, log: Logger | null,
): Promise<Addressed<S>> {
  const asked = async (pathStyle: boolean): Promise<Addressed<S>> => {
    const styled = { ...settings, pathStyle };
    const store = await open(styled);
    try {
      await ask(store);
      return { store, settings: styled };
    } catch (error) {
      await store.close();
      throw error;
    }
  };
  const [style, other] = stylesOf(settings);
  try {
    return await asked(style);
  } catch (error) {
    if (other === undefined || !(error instanceof StorageError) || !MAY_BE_STYLE.has(error.code)) throw error;
    const found = await asked(other).catch((next: unknown) => {
      throw error.code === 'no-bucket' || error.code === 'not-found' ? error : next;
    });
    log?.info({ endpoint: settings.endpoint }, `${settings.endpoint} has the names of buckets in the path: --path-style saves a try at the next start`);
    return found;
  }
}

/** A host name that nobody knows or has a certificate for, or a service that takes the request for one about something else. */
const MAY_BE_STYLE: ReadonlySet<StorageErrorCode> = new Set([
  'unreachable', 'no-bucket', 'not-found', 'invalid', 'bad-credentials', 'denied', 'wrong-region', 'unsupported', 'unexpected',
]);
