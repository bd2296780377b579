/**
 * What the daemon tells itself when it becomes a new process image by execve(2) (docs/adr/0007): how far it is, and
 * which descriptors it already holds. It travels in an environment variable that counts only for the process of that pid.
 */
import { readdirSync } from 'node:fs';
import * as c from '../ffi/libc.js';
import { F_SETFD, FD_CLOEXEC } from '../ffi/constants.js';

const VARIABLE = 'BUCKETFSD_HANDOVER';
const STANDARD_FDS = [0, 1, 2] as const;

export interface Handover {
  readonly pid: number;
  /** `opened`: all is to do. `entered`: in a user namespace that needs ids, `mapped`: that has them. `confined`: nothing is to do. */
  readonly stage: 'opened' | 'entered' | 'mapped' | 'confined';
  /** Absolute path of the share as the user knows it, and where it is now. */
  readonly source: string;
  readonly share: string;
  readonly listener: { readonly fd: number; readonly pidFd: number | null; readonly name: string; readonly path: string | null };
  /** Why `confined` is without a root of its own, though that was wanted where possible; null: it has it, or was not to. */
  readonly gap: string | null;
  /** Connected to the service manager, and to syslog; −1: not. */
  readonly notifyFd: number;
  readonly syslogFd: number;
  /** The process that writes the ids of the user namespace, and the descriptor to speak to it. */
  readonly mapper: { readonly pid: number; readonly fd: number } | null;
}

/** Takes the variable out of `env`; null if there is none for this process. */
export function takeHandover(env: NodeJS.ProcessEnv, pid: number): Handover | null {
  const text = env[VARIABLE];
  delete env[VARIABLE];
  if (text === undefined) return null;
  try {
    const handover = JSON.parse(text) as Handover;
    return handover.pid === pid ? handover : null;
  } catch {
    return null;
  }
}

/** The environment for the next image. Descriptors that it names stay open in it, and no others but the standard ones. */
export function environmentWith(env: NodeJS.ProcessEnv, handover: Handover): NodeJS.ProcessEnv {
  const { listener, notifyFd, syslogFd, mapper } = handover;
  const kept = new Set([...STANDARD_FDS, listener.fd, listener.pidFd, notifyFd, syslogFd, mapper?.fd]);
  // A descriptor of a directory outside, left open by whoever started us, would be a way out. Node makes all
  // descriptors close-on-exec that it finds at its start, the standard ones among them.
  for (const name of readdirSync('/proc/self/fd')) c.fcntl(Number(name), F_SETFD, kept.has(Number(name)) ? 0 : FD_CLOEXEC);
  return {
    ...env,
    // Node would warn of a file that is not in the new root, for connections that the daemon never makes
    NODE_EXTRA_CA_CERTS: undefined,
    // Nor is this one; where Landlock only denies it, Node would not start
    OPENSSL_CONF: '/dev/null',
    [VARIABLE]: JSON.stringify(handover),
  };
}
