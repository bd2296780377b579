/**
 * Landlock within the new root, where the kernel has it: once more what the daemon needs there, for the day on which a way out of the root is found. Since its version 6 it also
 * keeps signals, and connections to abstract sockets, inside.
 */
import { statSync } from 'node:fs';
import { ACCESS, enterDomain, handledAccess, landlockVersion, type Domain } from '../ffi/landlock.js';
import type { RootPlan } from './new-root.js';

const READ = ACCESS.READ_FILE | ACCESS.READ_DIR;
/** All that a rule for a file may have. */
const OF_FILES = ACCESS.EXECUTE | ACCESS.WRITE_FILE | ACCESS.READ_FILE | ACCESS.TRUNCATE | ACCESS.IOCTL_DEV;
/** What is not made or done in a directory of data: programs, and all but files and directories. */
const NO_DATA = ACCESS.EXECUTE | ACCESS.MAKE_CHAR | ACCESS.MAKE_BLOCK | ACCESS.MAKE_SOCK | ACCESS.MAKE_FIFO | ACCESS.MAKE_SYM;
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
    const { code, syscall, message } = error as NodeJS.ErrnoException;
    if (code !== undefined && syscall !== undefined) return `${LIMITS} cannot be set up (${message})`;
    throw error;
  }
}

/** As a log line names it. */
export const LIMITS = 'Landlock';

function enterLimits(plan: RootPlan, needs: PathNeeds, inRoot: boolean): void {
  const version = landlockVersion();
  if (version === 0) return;
  if (pathLimitsVersion(needs) === 0) return version < 6 ? undefined : enterDomain({ version, handled: 0, paths: [], tcp: tcpOf(plan) });
  enterDomain(domainOf(plan, needs.readonly, version, inRoot));
}

const tcpOf = ({ network }: Pick<RootPlan, 'network'>): Domain['tcp'] => (network ? 'connect' : 'none');

/** Rights by the mounts of the new root, or by where those are on the host. */
export function domainOf({ trees, network }: RootPlan, readonly: boolean, version: number, inRoot: boolean): Domain {
  const handled = handledAccess(version);
  const access = {
    program: READ | ACCESS.EXECUTE,
    descriptors: ACCESS.READ_DIR,
    mounts: ACCESS.READ_FILE,
    null: ACCESS.READ_FILE | ACCESS.WRITE_FILE,
    share: readonly ? READ : handled & ~ACCESS.EXECUTE,
    socket: ACCESS.READ_DIR | ACCESS.REMOVE_FILE,
    read: READ,
    write: handled & ~NO_DATA,
    scratch: handled & ~NO_DATA,
  } as const;
  return {
    version, handled, tcp: tcpOf({ network }),
    paths: trees.map(({ source, target, purpose }) => {
      const path = inRoot ? target : source;
      return { path, access: access[purpose] & (statSync(path).isDirectory() ? handled : OF_FILES) };
    }),
  };
}
