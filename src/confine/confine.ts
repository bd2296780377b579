/**
 * Confinement of the daemon (docs/adr/0007). Node has several threads from its first moment, and namespaces, root and
 * capabilities belong to threads: so the main thread confines itself, then becomes the daemon anew by execve(2), and
 * the new image is wholly inside.
 */
import { readdirSync, realpathSync, rmSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { execve } from '../ffi/namespaces.js';
import { StartError, UsageError } from '../lifecycle/errors.js';
import { bucketCapabilities, dropCapabilities, parseCapabilities, RightsUnavailable, type KeptCapabilities } from './capabilities.js';
import { hideIoUring, usesIoUring } from './seccomp.js';
import { environmentWith, type Handover } from './handover.js';
import { belongsToOthers, follow, type HostPaths } from './host-paths.js';
import { hasSandbox, isOptional, seccompAction, usesFileHandles, type ConfineOptions } from './policy.js';
import { LIMITS, limitPaths, pathLimitsVersion } from './path-limits.js';
import { enterRoot, planRoot, RootUnavailable, SHARE_AT, SOCKET_AT } from './new-root.js';
import { becomeMapped, isOwnIds, leaveMapper, parseIdMaps, unshareCommand, type IdMaps } from './user-namespace.js';

export interface Confinement {
  /** A root and namespaces of its own. */
  readonly namespace: boolean;
  /** Only if they can be had, and with what else there is. */
  readonly optional: boolean;
  /** Ids in a user namespace of its own; null: the daemon's user alone, or no such namespace. */
  readonly idMaps: IdMaps | null;
  /** null: they stay as they are. */
  readonly capabilities: KeptCapabilities | null;
  /** The next image must start without io_uring, of which a system call filter sees nothing. */
  readonly withoutRing: boolean;
  readonly readonly: boolean;
  /** Files are opened by handle, which reaches all of a file system. */
  readonly fileHandles: boolean;
}

/** What is to be done before the daemon of a directory, or of a bucket, starts; null: nothing. UsageError if the options make no sense. */
export function confinementOf(options: ConfineOptions, bucket = false): Confinement | null {
  const namespace = hasSandbox(options);
  const fileHandles = !bucket && usesFileHandles(options);
  const idMaps = parseIdMaps(options.uidMap, options.gidMap);
  if (idMaps !== null && !namespace) throw new UsageError('--uid-map and --gid-map need --sandbox=namespace');
  const capabilities = namespace || options.modcaps !== null ? parseCapabilities(options.modcaps, { ...options, fileHandles }) : null;
  const withoutRing = seccompAction(options) !== 'none' && usesIoUring();
  if (capabilities === null && !withoutRing) return null;
  return { namespace, optional: isOptional(options), idMaps, capabilities, withoutRing, readonly: options.readonly, fileHandles };
}

/**
 * Does the next step and becomes the daemon anew, with `handover` changed to what is true then. Never returns; StartError if
 * it cannot be done.
 */
export function confine(wanted: Confinement, handover: Handover): never {
  const command = ownCommand();
  const ordinary = process.geteuid!() !== 0;
  if (ordinary && !wanted.namespace && wanted.capabilities !== null) throw new StartError('--modcaps needs root: an ordinary user has no capabilities to choose from');
  if (handover.stage === 'opened' && wanted.namespace && (wanted.idMaps !== null || ordinary)) enterUserNamespace(wanted.idMaps, command, handover);
  if (handover.mapper !== null) becomeMapped(handover.mapper);
  const { listener, host } = handover;
  const socketDirectory = listener.path === null ? null : dirname(listener.path);
  const capabilities = host === null ? wanted.capabilities : capabilitiesFor(host, socketDirectory);
  // They are gone only after execve(2), so the root can still be made
  const kept = capabilities === null ? null : gapOf(wanted, () => dropCapabilities(capabilities));
  // Without seccomp(2) this fails, too, and applySeccomp() will say so
  if (wanted.withoutRing) hideIoUring();
  if (!wanted.namespace) return becomeAnew(command, { ...handover, stage: 'confined' });
  const plan = planRoot({ share: host ?? handover.share, readonly: wanted.readonly, socketDirectory });
  const gap = gapOf(wanted, () => enterRoot(plan));
  const limits = limitPaths(plan, wanted, gap === null);
  const missing = [kept, gap, limits].filter((reason) => reason !== null).join('; ') || null;
  if (gap !== null) becomeAnew(command, { ...handover, stage: 'confined', gaps: [...sandboxGaps(wanted, missing, listener), ...handover.gaps] });
  const path = listener.path === null ? null : join(SOCKET_AT, basename(listener.path));
  const moved = { ...listener, path };
  becomeAnew(command, { ...handover, stage: 'confined', hasRoot: true, gaps: [...sandboxGaps(wanted, missing, moved), ...handover.gaps], mapper: null, share: SHARE_AT, listener: moved });
}

/** A bucket's daemon has rights to files of others only if there are some. */
function capabilitiesFor({ paths, scratch }: HostPaths, socketDirectory: string | null): KeptCapabilities {
  const real = [...paths.map(({ path }) => path), ...(scratch === null ? [] : [scratch])].flatMap((path) => follow(path)?.real ?? []);
  return bucketCapabilities(belongsToOthers([...real, ...(socketDirectory === null ? [] : [socketDirectory])], process.geteuid!()));
}

/** What this process may not do for a sandbox that is optional: the sentence; null: it was done. @throws StartError if it is not optional */
function gapOf({ optional }: Confinement, step: () => void): string | null {
  try {
    step();
    return null;
  } catch (error) {
    if (optional && (error instanceof RootUnavailable || error instanceof RightsUnavailable)) return error.message;
    throw error;
  }
}

function enterUserNamespace(maps: IdMaps | null, command: readonly string[], handover: Handover): never {
  const foreign = maps === null || isOwnIds(maps) ? null : maps;
  const unshare = unshareCommand(foreign);
  if (foreign === null) return becomeAnew([...unshare, ...command], { ...handover, stage: 'mapped' });
  becomeAnew([...unshare, ...command], { ...handover, stage: 'entered', mapper: leaveMapper(foreign) });
}

/** Starts the daemon again in this very process, with the same arguments. */
function becomeAnew(command: readonly string[], handover: Handover): never {
  try {
    execve(command[0], command, environmentWith(process.env, handover));
  } catch (error) {
    // In the new root these are not where the caller will look for them
    const { path } = handover.listener;
    if (path !== null) for (const left of [path, `${path}.pid`]) rmSync(left, { force: true });
    throw new StartError(`the daemon cannot start itself again to be confined (${(error as Error).message}): use --sandbox=none and no --modcaps`);
  }
}

/** Are there other things beside the socket, which a daemon in a sandbox can reach as well? */
function sharesSocketDirectory(path: string): boolean {
  try {
    return readdirSync(dirname(path)).some((entry) => entry !== basename(path) && entry !== `${basename(path)}.pid`);
  } catch {
    return false; // not even its names are within reach
  }
}

/** The command line that runs this daemon, by paths that have no links in them. */
function ownCommand(): string[] {
  return [process.execPath, ...process.execArgv, realpathSync(process.argv[1]), ...process.argv.slice(2)];
}

/** What the sandbox does not keep inside, by the options, by the kernel or by what this process may not do (`missing`): sentences for the log. */
function sandboxGaps({ fileHandles }: Confinement, missing: string | null, { path, name }: Handover['listener']): string[] {
  const hasLimits = pathLimitsVersion({ fileHandles }) > 0 && missing?.includes(`${LIMITS} cannot`) !== true;
  const gaps: string[] = [];
  if (missing !== null) gaps.push(`the sandbox is incomplete: ${missing}; what protects is ${hasLimits ? 'Landlock, ' : ''}--seccomp, and the capabilities that are given up`);
  else if (fileHandles) gaps.push('--inode-file-handles: a daemon that a guest has taken over reaches all of the file system that the share is on; without it the sandbox has no file handles');
  else if (!hasLimits) gaps.push('this kernel has no Landlock (or one before Linux 5.19): the sandbox is the new root, capabilities and --seccomp without it');
  if (path !== null && sharesSocketDirectory(path)) gaps.push(`all of ${dirname(name)} is within reach of the daemon: give the socket a directory of its own, or pass it with --fd`);
  return gaps;
}
