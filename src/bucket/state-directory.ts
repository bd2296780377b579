/** Where a share keeps what is not in its bucket yet, when --cache-dir does not say. */
import { createHash } from 'node:crypto';
import { existsSync, mkdtempSync, readdirSync, rmSync, statfsSync } from 'node:fs';
import { homedir, tmpdir } from 'node:os';
import { dirname, isAbsolute, join } from 'node:path';
import type { BucketSettings } from '../cli.js';
import { makeDirectory } from '../base/make-directory.js';
import { StartError } from '../lifecycle/errors.js';
import { directoryRisk } from '../storage/object/write/directory-owner.js';

export interface StateDirectory {
  readonly path: string;
  /** Of a bucket that is gone with the daemon: the directory goes too. */
  discard(): void;
}

const DIGITS = 8;
const LEGIBLE_LENGTH = 80;

/** Libraries of the providers look for their files below the home directory; a user that is in no table of accounts has none, and the look-up would fail. */
export function ensureHome(env: NodeJS.ProcessEnv): void {
  try {
    // In a sandbox there is no table of accounts
    env['HOME'] ??= homedir();
  } catch {
    env['HOME'] = '/';
  }
}

/** Is all that the cache directory has gone with the daemon? */
export function isScratch({ source, cacheDir }: BucketSettings): boolean {
  return source.kind === 'memory' && cacheDir === null;
}

/**
 * Makes the cache directory before the rest of the host is hidden. `path` is null if nothing is kept; `obstacle`: why it cannot be made, which a share that
 * is only read can do without. @throws StartError if it cannot
 */
export async function prepareDirectory(settings: BucketSettings): Promise<{ readonly path: string | null; readonly obstacle: string | null }> {
  const { source, readonly, cacheSize } = settings;
  if (!readonly) return { path: (await cacheDirectoryOf(settings)).path, obstacle: null };
  if (cacheSize === 0 || source.kind === 'memory') return { path: null, obstacle: null };
  try {
    return { path: (await cacheDirectoryOf(settings)).path, obstacle: null };
  } catch (error) {
    return { path: null, obstacle: (error as Error).message };
  }
}

/** Of the image before this one, which made it; `scratch`: for this daemon alone. In a sandbox the directory itself cannot be removed, being a mount. */
export function adoptedDirectory(path: string, scratch: boolean): StateDirectory {
  const empty = (): void => {
    for (const entry of readdirSync(path)) rmSync(join(path, entry), { recursive: true, force: true });
  };
  return { path, discard: scratch ? empty : () => undefined };
}

/** Made if need be. @throws StartError */
export async function cacheDirectoryOf(settings: BucketSettings, env: NodeJS.ProcessEnv = process.env): Promise<StateDirectory> {
  if (isScratch(settings)) {
    const path = mkdtempSync(join(tmpdir(), 'bucketfsd-memory-'));
    return { path, discard: () => rmSync(path, { recursive: true, force: true }) };
  }
  const path = settings.cacheDir ?? defaultDirectory(settings, env);
  let risk: string | null;
  try {
    makeDirectory(path);
    risk = directoryRisk(path, process.geteuid!());
  } catch (error) {
    throw new StartError(`cannot share ${settings.source.path}: its cache directory ${path} cannot be made (${(error as Error).message}): name another one with --cache-dir`);
  }
  if (risk !== null) throw new StartError(`cannot share ${settings.source.path}: the cache directory cannot be used: ${risk}`);
  return { path, discard: () => undefined };
}

/** The path, or the nearest directory above it that is there. */
function existing(path: string): string {
  let found = path;
  while (found !== '/' && !existsSync(found)) found = dirname(found);
  return found;
}

/** The file system that a path is on, or will be. */
export function diskOf(path: string): { readonly bytes: number } {
  const { blocks, bsize } = statfsSync(existing(path));
  return { bytes: blocks * bsize };
}

/** State, not cache, in the words of file-hierarchy(7): it has data that is nowhere else, and nobody may clean it away. */
export function defaultDirectory({ source, endpoint }: BucketSettings, env: NodeJS.ProcessEnv, root = process.geteuid!() === 0): string {
  const name = `${source.kind}-${source.bucket}`.slice(0, LEGIBLE_LENGTH);
  const hash = createHash('sha256').update(JSON.stringify([source.kind, source.bucket, source.prefix, endpoint])).digest('hex').slice(0, DIGITS);
  return join(stateHome(env, root), `${name}-${hash}`);
}

function stateHome(env: NodeJS.ProcessEnv, root: boolean): string {
  // systemd's StateDirectory= (systemd.exec(5)); the first, if there are several
  const given = env['STATE_DIRECTORY']?.split(':')[0];
  if (given !== undefined && isAbsolute(given)) return given;
  if (root) return '/var/lib/bucketfsd';
  const user = env['XDG_STATE_HOME'];
  return join(user !== undefined && isAbsolute(user) ? user : join(homedir(), '.local/state'), 'bucketfsd');
}
