/**
 * Paths of the host that a confined daemon has at the same names as outside: its messages name them, and the options, the environment and the libraries of
 * a provider do. Links on the way are there as well, so that whoever replaces one in a directory that is there is followed.
 */
import { lstatSync, readdirSync, readlinkSync } from 'node:fs';
import { dirname, join } from 'node:path';

/** MAXSYMLINKS of Linux. */
const LINKS_MAX = 40;
/** Entries of directories whose owners are looked at; where there are more, some are taken as another user's. */
const ENTRIES_MAX = 10_000;
/** A cache directory has its files in staging/ and blocks/. */
const LEVELS = 2;

export interface HostPath {
  /** Absolute, of a file or a directory. */
  readonly path: string;
  readonly writable: boolean;
}

export interface HostPaths {
  readonly paths: readonly HostPath[];
  /** A directory whose content is gone with the daemon: within the new root it is one in memory. null: there is none. */
  readonly scratch: string | null;
  /** Relative paths count from here. */
  readonly workingDirectory: string;
}

export interface Link {
  readonly path: string;
  readonly to: string;
}

/** Where an absolute path leads, and every link on the way there, at a path without links. null: nowhere, or to something without a name. */
export function follow(path: string): { readonly real: string; readonly links: readonly Link[] } | null {
  const links: Link[] = [];
  let real = '/';
  let parts = partsOf(path);
  while (parts.length > 0) {
    const [part, ...rest] = parts;
    const at = part === '..' ? dirname(real) : join(real, part);
    parts = rest;
    const target = linkAt(at);
    if (target === undefined) return null;
    if (target === null) {
      real = at;
      continue;
    }
    links.push({ path: at, to: target });
    if (links.length > LINKS_MAX) return null;
    if (target.startsWith('/')) real = '/';
    parts = [...partsOf(target), ...rest];
  }
  return { real, links };
}

const partsOf = (path: string): string[] => path.split('/').filter((part) => part !== '' && part !== '.');

/** null: something that is no link; undefined: nothing, or nothing that may be looked at. */
function linkAt(path: string): string | null | undefined {
  try {
    const found = lstatSync(path, { throwIfNoEntry: false });
    return found === undefined ? undefined : found.isSymbolicLink() ? readlinkSync(path) : null;
  } catch {
    return undefined;
  }
}

/** Does any of it, or of what is in those directories and the ones in them, belong to another user than `uid`, so that rights to files of others are needed? */
export function belongsToOthers(paths: readonly string[], uid: number): boolean {
  let entries = 0;
  const isOthers = (path: string, levels: number): boolean => {
    const stat = lstatSync(path, { throwIfNoEntry: false });
    if (stat === undefined) return false;
    if (stat.uid !== uid || ++entries > ENTRIES_MAX) return true;
    return stat.isDirectory() && levels > 0 && readdirSync(path).some((entry) => isOthers(join(path, entry), levels - 1));
  };
  try {
    return paths.some((path) => isOthers(path, LEVELS));
  } catch {
    return true; // whoever may not look needs the right all the more
  }
}
