/**
 * Landlock within the new root, where the kernel has it: once more what the daemon needs there, for the day on which a way out of the root is found. Since its version 6 it also
 * keeps signals, and connections to abstract sockets, inside.
 */
import { statSync } from 'node:fs';
import { SysError } from '../ffi/errors.js';
import { ACCESS, enterDomain, handledAccess, landlockVersion, type Domain } from '../ffi/landlock.js';
import { SHARE_AT, SOCKET_AT, type RootPlan } from './new-root.js';

const READ = ACCESS.READ_FILE | ACCESS.READ_DIR;
/** All that a rule for a file may have. */
const OF_FILES = ACCESS.EXECUTE | ACCESS.WRITE_FILE | ACCESS.READ_FILE | ACCESS.TRUNCATE | ACCESS.IOCTL_DEV;
/** Without ACCESS.REFER nothing could be renamed to another directory. */
const VERSION_MIN = 2;

export interface PathNeeds {
  readonly readonly: boolean;
  /** A file that was opened by handle has no path that Landlock could follow. */
  readonly fileHandles: boolean;
}

/** Version that paths are limited by; 0: they are not. */
export function pathLimitsVersion({ fileHandles }: Pick<PathNeeds, 'fileHandles'>): number {
  const version = landlockVersion();
  return fileHandles || version < VERSION_MIN ? 0 : version;
}

/**
 * For this thread, which is in the new root or has none, and what it becomes by execve(2). No-op without Landlock, whatever the options say: it is one more layer.
 * @returns why it cannot be had, though the kernel has it; then nothing has changed
 */
export function limitPaths(plan: RootPlan, needs: PathNeeds, inRoot: boolean): string | null {
  try {
    enterLimits(plan, needs, inRoot);
    return null;
  } catch (error) {
    if (error instanceof SysError) return `${LIMITS} cannot be set up (${error.message})`;
    throw error;
  }
}

/** As a log line names it. */
export const LIMITS = 'Landlock';

function enterLimits(plan: RootPlan, needs: PathNeeds, inRoot: boolean): void {
  const version = landlockVersion();
  if (version === 0) return;
  if (pathLimitsVersion(needs) === 0) return version < 6 ? undefined : enterDomain({ version, handled: 0, paths: [], network: false });
  enterDomain(domainOf(plan, needs.readonly, version, inRoot));
}

/** Rights by the mounts of the new root, or by where those are on the host. */
export function domainOf({ trees }: RootPlan, readonly: boolean, version: number, inRoot: boolean): Domain {
  const handled = handledAccess(version);
  const access = (target: string): number => {
    switch (target) {
      case SHARE_AT:
        return readonly ? READ : handled & ~ACCESS.EXECUTE;
      case SOCKET_AT:
        return ACCESS.READ_DIR | ACCESS.REMOVE_FILE;
      case '/dev/null':
        return ACCESS.READ_FILE | ACCESS.WRITE_FILE;
      case '/proc/self/fd':
        return ACCESS.READ_DIR;
      default:
        return READ | ACCESS.EXECUTE;
    }
  };
  const rule = (path: string, target: string): Domain['paths'][number] => ({ path, access: access(target) & (statSync(path).isDirectory() ? handled : OF_FILES) });
  return { version, handled, network: false, paths: trees.map(({ source, target }) => rule(inRoot ? target : source, target)) };
}
