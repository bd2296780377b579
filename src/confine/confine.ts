/**
 * Confinement of the daemon (docs/adr/0007). Node has several threads from its first moment, and namespaces, root and
 * capabilities belong to threads: so the main thread confines itself, then becomes the daemon anew by execve(2), and
 * the new image is wholly inside.
 */
import { readdirSync, realpathSync, rmSync, statfsSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import type { Logger } from '../base/log.js';
import { execve } from '../ffi/namespaces.js';
import { StartError, UsageError } from '../lifecycle/errors.js';
import { dropCapabilities, parseCapabilities, RightsUnavailable, type KeptCapabilities } from './capabilities.js';
import { applySeccomp, hideIoUring, usesIoUring, type SeccompAction } from './seccomp.js';
import { environmentWith, type Handover } from './handover.js';
import { LIMITS, limitPaths, pathLimitsVersion } from './path-limits.js';
import { enterRoot, planRoot, RootUnavailable, SHARE_AT, SOCKET_AT } from './new-root.js';
import { becomeMapped, isOwnIds, leaveMapper, parseIdMaps, unshareCommand, type IdMaps } from './user-namespace.js';

const TMPFS_MAGIC = 0x01021994;

/** The options that matter here; structurally the Options of src/cli. */
export interface ConfineOptions {
  readonly sandbox: 'auto' | 'namespace' | 'none';
  readonly inodeFileHandles: 'auto' | 'never' | 'prefer' | 'mandatory';
  readonly xattr: boolean;
  readonly seccomp: SeccompAction | 'auto' | 'none';
  readonly modcaps: string | null;
  readonly uidMap: readonly string[];
  readonly gidMap: readonly string[];
  readonly readonly: boolean;
}

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

/** The rule: a handle (open_by_handle_at(2)) reaches every file of the share's file system, and so of the host; within a sandbox there are none unless they are asked for. */
export function usesFileHandles(options: ConfineOptions): boolean {
  const { inodeFileHandles } = options;
  return inodeFileHandles === 'auto' ? !hasSandbox(options) : inodeFileHandles !== 'never';
}

/** `auto`: for root, who has most to lose, and for ids of a user namespace. An ordinary user's files would look different in one. */
function hasSandbox({ sandbox, uidMap }: Pick<ConfineOptions, 'sandbox' | 'uidMap'>): boolean {
  return sandbox === 'auto' ? isRoot() || uidMap.length > 0 : sandbox === 'namespace';
}

const isRoot = (): boolean => process.geteuid!() === 0;

/** What --seccomp comes to: `auto` is kill for root, who does not say --sandbox=none. */
export function seccompAction({ seccomp, sandbox }: Pick<ConfineOptions, 'seccomp' | 'sandbox'>): SeccompAction | 'none' {
  return seccomp !== 'auto' ? seccomp : isRoot() && sandbox !== 'none' ? 'kill' : 'none';
}

/** What is to be done before the daemon starts; null: nothing. UsageError if the options make no sense. */
export function confinementOf(options: ConfineOptions): Confinement | null {
  const namespace = hasSandbox(options);
  const fileHandles = usesFileHandles(options);
  const idMaps = parseIdMaps(options.uidMap, options.gidMap);
  if (idMaps !== null && !namespace) throw new UsageError('--uid-map and --gid-map need --sandbox=namespace');
  const capabilities = namespace || options.modcaps !== null ? parseCapabilities(options.modcaps, { ...options, fileHandles }) : null;
  const withoutRing = seccompAction(options) !== 'none' && usesIoUring();
  if (capabilities === null && !withoutRing) return null;
  return { namespace, optional: options.sandbox === 'auto' && idMaps === null, idMaps, capabilities, withoutRing, readonly: options.readonly, fileHandles };
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
  // They are gone only after execve(2), so the root can still be made
  const kept = wanted.capabilities === null ? null : gapOf(wanted, () => dropCapabilities(wanted.capabilities!));
  // Without seccomp(2) this fails, too, and applySeccomp() will say so
  if (wanted.withoutRing) hideIoUring();
  if (!wanted.namespace) return becomeAnew(command, { ...handover, stage: 'confined' });
  const { listener } = handover;
  const contents = { share: handover.share, readonly: wanted.readonly, socketDirectory: listener.path === null ? null : dirname(listener.path) };
  const plan = planRoot(contents);
  const gap = gapOf(wanted, () => enterRoot(plan));
  const limits = limitPaths(plan, wanted, gap === null);
  const missing = [kept, gap, limits].filter((reason) => reason !== null).join('; ') || null;
  if (gap !== null) becomeAnew(command, { ...handover, stage: 'confined', gap: missing });
  const path = listener.path === null ? null : join(SOCKET_AT, basename(listener.path));
  becomeAnew(command, { ...handover, stage: 'confined', gap: missing, mapper: null, share: SHARE_AT, listener: { ...listener, path } });
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

/** What the sandbox does not keep inside, by the options, by the kernel or by what this process may not do (`gap`): sentences for the log. */
export function sandboxGaps({ namespace, fileHandles }: Confinement, gap: string | null, { path, name }: Pick<Handover['listener'], 'path' | 'name'>): string[] {
  if (!namespace) return [];
  const hasLimits = pathLimitsVersion({ fileHandles }) > 0 && gap?.includes(`${LIMITS} cannot`) !== true;
  const gaps: string[] = [];
  if (gap !== null) gaps.push(`the sandbox is incomplete: ${gap}; what protects is ${hasLimits ? 'Landlock, ' : ''}--seccomp, and the capabilities that are given up`);
  else if (fileHandles) gaps.push('--inode-file-handles: a daemon that a guest has taken over reaches all of the file system that the share is on; without it the sandbox has no file handles');
  else if (!hasLimits) gaps.push('this kernel has no Landlock (or one before Linux 5.19): the sandbox is the new root, capabilities and --seccomp without it');
  if (path !== null && sharesSocketDirectory(path)) gaps.push(`all of ${dirname(name)} is within reach of the daemon: give the socket a directory of its own, or pass it with --fd`);
  return gaps;
}

/** The last step of the start: from now on the filter is in force. @throws StartError if this kernel cannot, and --seccomp does not leave that open */
export function filterCalls(options: ConfineOptions & { readonly syslog: boolean }, log: Pick<Logger, 'warn'>): void {
  const action = seccompAction(options);
  if (action === 'none') return;
  try {
    applySeccomp(action, { fileHandles: usesFileHandles(options), unixSockets: options.syslog });
  } catch (error) {
    if (options.seccomp !== 'auto' || !(error instanceof StartError)) throw error;
    log.warn({}, `--seccomp=auto: there is no filter of system calls (${error.message})`);
  }
}

/** StartError if somebody else than confine() said that all is done. */
export function checkConfined(wanted: Confinement, gap: string | null): void {
  if (wanted.namespace && !(wanted.optional && gap !== null) && statfsSync('/').type !== TMPFS_MAGIC) {
    throw new StartError('BUCKETFSD_HANDOVER is set, which is for the daemon itself only: unset it');
  }
}
