/** Which capabilities a confined daemon keeps, and how it loses the others. */
import { clearInheritable, dropFromBoundingSet, inBoundingSet, setNoNewPrivileges } from '../ffi/privileges.js';
import { StartError, UsageError } from '../lifecycle/errors.js';

/** By number (include/uapi/linux/capability.h). */
export const CAPABILITIES = [
  'CHOWN', 'DAC_OVERRIDE', 'DAC_READ_SEARCH', 'FOWNER', 'FSETID', 'KILL', 'SETGID', 'SETUID', 'SETPCAP', 'LINUX_IMMUTABLE', 'NET_BIND_SERVICE',
  'NET_BROADCAST', 'NET_ADMIN', 'NET_RAW', 'IPC_LOCK', 'IPC_OWNER', 'SYS_MODULE', 'SYS_RAWIO', 'SYS_CHROOT', 'SYS_PTRACE', 'SYS_PACCT', 'SYS_ADMIN',
  'SYS_BOOT', 'SYS_NICE', 'SYS_RESOURCE', 'SYS_TIME', 'SYS_TTY_CONFIG', 'MKNOD', 'LEASE', 'AUDIT_WRITE', 'AUDIT_CONTROL', 'SETFCAP', 'MAC_OVERRIDE',
  'MAC_ADMIN', 'SYSLOG', 'WAKE_ALARM', 'BLOCK_SUSPEND', 'AUDIT_READ', 'PERFMON', 'BPF', 'CHECKPOINT_RESTORE',
] as const;

/** What the options mean for the capabilities that are kept. */
export interface CapabilityNeeds {
  readonly readonly: boolean;
  /** Extended attributes: security.capability among them. */
  readonly xattr: boolean;
  readonly fileHandles: boolean;
}

/** What files need and the options do not do without: every right to them and the callers' ids; ownership, set-id bits, device nodes; file capabilities; file handles. */
function neededBy({ readonly, xattr, fileHandles }: CapabilityNeeds): string[] {
  return [
    'DAC_OVERRIDE', 'FOWNER', 'SETGID', 'SETUID', ...(readonly ? [] : ['CHOWN', 'FSETID', 'MKNOD']), ...(xattr && !readonly ? ['SETFCAP'] : []), ...(fileHandles ? ['DAC_READ_SEARCH'] : []),
  ];
}

/** A bucket's files are objects: only the cache directory, the socket's and those of credentials may be other users'. */
export function bucketCapabilities(others: boolean): KeptCapabilities {
  return { kept: new Set(others ? [numberOf('DAC_OVERRIDE')] : []), named: [] };
}

/** Room for capabilities that kernels to come may have: the set has 64 bits. */
const NUMBERS = 64;

export interface KeptCapabilities {
  readonly kept: ReadonlySet<number>;
  /** Those of them that the user named: it is an error if the daemon does not have them. */
  readonly named: readonly number[];
}

/** virtiofsd's --modcaps: `+cap:-cap…`, changing the set that is kept. UsageError for what is no such list. */
export function parseCapabilities(list: string | null, needs: CapabilityNeeds): KeptCapabilities {
  const kept = new Set(neededBy(needs).map(numberOf));
  const named = new Set<number>();
  for (const item of list === null ? [] : list.split(':')) {
    const [sign, name] = [item[0], item.slice(1).toUpperCase().replace(/^CAP_/, '')];
    const number = numberOf(name);
    if ((sign !== '+' && sign !== '-') || number < 0) {
      throw new UsageError(`--modcaps takes names of capabilities(7), each with + or -, separated by colons, as in +sys_admin:-mknod, but it has ${JSON.stringify(item.slice(0, 40))}`);
    }
    if (sign === '+') named.add(number);
    else named.delete(number);
    if (sign === '+') kept.add(number);
    else kept.delete(number);
  }
  return { kept, named: [...named] };
}

function numberOf(name: string): number {
  return (CAPABILITIES as readonly string[]).indexOf(name);
}

/** Capabilities cannot be given up; the others have not been touched. */
export class RightsUnavailable extends StartError {
  override name = 'RightsUnavailable';
}

/** Takes the rights from what this thread becomes by execve(2); it itself keeps them until then. */
export function dropCapabilities({ kept, named }: KeptCapabilities): void {
  const missing = named.find((number) => !inBoundingSet(number));
  if (missing !== undefined) {
    throw new StartError(`--modcaps wants to keep CAP_${CAPABILITIES[missing]}, which the daemon does not have: whoever starts it must leave it that capability`);
  }
  for (let number = 0; number < NUMBERS; number++) {
    if (kept.has(number) || !inBoundingSet(number)) continue;
    if (dropFromBoundingSet(number) < 0) {
      setNoNewPrivileges();
      throw new RightsUnavailable('cannot give up capabilities without CAP_SETPCAP: start the daemon with that capability, which it gives up, too, or give it only what it needs, without --sandbox=namespace and --modcaps');
    }
  }
  clearInheritable();
  setNoNewPrivileges();
}
