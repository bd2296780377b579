/** The local file system's options from those of the command line. */
import type { IdMap } from './idmap.js';
import type { Negotiation } from '../filesystem.js';
import type { LocalOptions } from './share.js';

/** The command-line options that matter here; structurally the Options of src/cli. */
export interface LocalSettings {
  readonly source: { readonly path: string };
  readonly cache: LocalOptions['cache'];
  readonly readonly: boolean;
  readonly xattr: boolean;
  readonly xattrmap: string | null;
  readonly posixAcl: Negotiation;
  readonly securityLabel: Negotiation;
  readonly writeback: boolean;
  readonly allowDirectIo: boolean;
  readonly allowMmap: boolean;
  readonly allowProjectIds: boolean;
  readonly announceSubmounts: boolean;
  readonly inodeFileHandles: LocalOptions['handles'];
  readonly preserveNoatime: boolean;
  readonly killprivV2: boolean;
  readonly readdirplus: boolean;
  readonly flock: boolean;
  readonly posixLock: boolean;
  readonly offload: LocalOptions['offload'];
  readonly translateUid: readonly string[];
  readonly translateGid: readonly string[];
}

/** Rejects with one sentence for a rule that makes no sense. `nofile`: descriptors the process may have. */
export async function localOptions(settings: LocalSettings, nofile: number): Promise<LocalOptions> {
  return {
    directory: settings.source.path,
    cache: settings.cache,
    readonly: settings.readonly,
    xattr: settings.xattr,
    xattrMap: settings.xattrmap === null ? null : (await import('./xattrmap.js')).parseXattrMap(settings.xattrmap),
    posixAcl: settings.posixAcl,
    securityLabel: settings.securityLabel,
    writeback: settings.writeback,
    allowDirectIo: settings.allowDirectIo,
    allowMmap: settings.allowMmap,
    allowProjectIds: settings.allowProjectIds,
    announceSubmounts: settings.announceSubmounts,
    handles: settings.inodeFileHandles,
    preserveNoatime: settings.preserveNoatime,
    killprivV2: settings.killprivV2,
    readdirplus: settings.readdirplus,
    flock: settings.flock,
    posixLock: settings.posixLock,
    offload: settings.offload,
    uidMap: await idMap(settings.translateUid, 'uid'),
    gidMap: await idMap(settings.translateGid, 'gid'),
    nofile,
  };
}

async function idMap(rules: readonly string[], what: 'uid' | 'gid'): Promise<IdMap | null> {
  if (rules.length === 0) return null;
  const { parseIdMap } = await import('./idmap.js');
  const map = parseIdMap([...rules], what);
  return map.identity ? null : map;
}
