/** What the options ask of a sandbox and a filter. It touches nothing, and is all of this that a confined daemon needs to know. */

/** The options that matter here; structurally the Options of src/cli. */
export interface ConfineOptions {
  readonly sandbox: 'auto' | 'namespace' | 'none';
  readonly inodeFileHandles: 'auto' | 'never' | 'prefer' | 'mandatory';
  readonly xattr: boolean;
  readonly seccomp: 'kill' | 'log' | 'trap' | 'auto' | 'none';
  readonly modcaps: string | null;
  readonly uidMap: readonly string[];
  readonly gidMap: readonly string[];
  readonly readonly: boolean;
}

export type SeccompAction = Exclude<ConfineOptions['seccomp'], 'auto' | 'none'>;

/** The rule: a handle (open_by_handle_at(2)) reaches every file of the share's file system, and so of the host; within a sandbox there are none unless they are asked for. */
export function usesFileHandles(options: ConfineOptions): boolean {
  const { inodeFileHandles } = options;
  return inodeFileHandles === 'auto' ? !hasSandbox(options) : inodeFileHandles !== 'never';
}

/** `auto`: for root, who has most to lose, and for ids of a user namespace. An ordinary user's files would look different in one. */
export function hasSandbox({ sandbox, uidMap }: Pick<ConfineOptions, 'sandbox' | 'uidMap'>): boolean {
  return sandbox === 'auto' ? isRoot(uidMap) : sandbox === 'namespace';
}

/** A sandbox that nobody asked for is done without where it cannot be had. */
export function isOptional({ sandbox, uidMap }: Pick<ConfineOptions, 'sandbox' | 'uidMap'>): boolean {
  return sandbox === 'auto' && uidMap.length === 0;
}

/** What --seccomp comes to: `auto` is kill for root, who does not say --sandbox=none. */
export function seccompAction({ seccomp, sandbox, uidMap }: Pick<ConfineOptions, 'seccomp' | 'sandbox' | 'uidMap'>): SeccompAction | 'none' {
  return seccomp !== 'auto' ? seccomp : isRoot(uidMap) && sandbox !== 'none' ? 'kill' : 'none';
}

/** With ids of a user namespace the daemon becomes its root: each of its images decides alike, also the one that has no ids yet. */
const isRoot = (uidMap: readonly string[]): boolean => process.geteuid!() === 0 || uidMap.length > 0;
