/**
 * What the daemon tells itself when it becomes a new process image by execve(2) (docs/adr/0007): how far it is, what its
 * options are, and which descriptors it already holds. It is a file in memory; an environment variable names its descriptor and the process that it is for.
 */
import { closeSync, fstatSync, readdirSync, readSync, statfsSync, writeSync } from 'node:fs';
import * as c from '../ffi/libc.js';
import { F_SETFD, FD_CLOEXEC, MFD_CLOEXEC, TMPFS_MAGIC } from '../ffi/constants.js';
import { StartError } from '../lifecycle/errors.js';
import type { HostPaths } from './host-paths.js';
import { hasSandbox, isOptional, type ConfineOptions } from './policy.js';

const VARIABLE = 'BUCKETFSD_HANDOVER';
const STANDARD_FDS = [0, 1, 2] as const;
/** A command line is shorter (ARG_MAX), and the options are what it says. */
const MAX_BYTES = 16 << 20;

/** `Options`: those of src/cli, which has parsed and checked them once. */
export interface Handover<Options extends ConfineOptions = ConfineOptions> {
  readonly options: Options;
  /** `opened`: all is to do. `entered`: in a user namespace that needs ids, `mapped`: that has them. `confined`: nothing is to do. */
  readonly stage: 'opened' | 'entered' | 'mapped' | 'confined';
  /** Absolute path of the share as the user knows it, and where it is now. */
  readonly source: string;
  readonly share: string;
  readonly listener: { readonly fd: number; readonly pidFd: number | null; readonly name: string; readonly path: string | null };
  /** What a bucket's daemon has of the host, and its cache directory, if it is to have a root of its own; null: it is of a directory, or is to have none. */
  readonly host: HostPaths | null;
  readonly cacheDirectory: string | null;
  /** Does it connect to others? A bucket's daemon does. */
  readonly network: boolean;
  /** `confined` in a root of its own. */
  readonly hasRoot: boolean;
  /** What the sandbox does not keep inside: sentences for the log. */
  readonly gaps: readonly string[];
  /** Connected to the service manager, and to syslog; −1: not. */
  readonly notifyFd: number;
  readonly syslogFd: number;
  /** The process that writes the ids of the user namespace, and the descriptor to speak to it. */
  readonly mapper: { readonly pid: number; readonly fd: number } | null;
}

/** Takes the variable out of `env`; null if there is none for this process. */
export function takeHandover<Options extends ConfineOptions>(env: NodeJS.ProcessEnv, pid: number): Handover<Options> | null {
  const [, forPid, fd] = /^(\d{1,10}):(\d{1,10})$/.exec(env[VARIABLE] ?? '') ?? [];
  delete env[VARIABLE];
  if (Number(forPid) !== pid) return null;
  try {
    const handover = JSON.parse(contentOf(Number(fd))) as Handover<Options> | null;
    return typeof handover?.stage === 'string' ? handover : null;
  } catch {
    return null;
  }
}

/** The descriptor is closed after it. */
function contentOf(fd: number): string {
  const bytes = Buffer.alloc(Math.min(fstatSync(fd).size, MAX_BYTES));
  const length = readSync(fd, bytes, 0, bytes.length, 0);
  closeSync(fd);
  return bytes.toString('utf8', 0, length);
}

/** @throws StartError if somebody else than confine() said that all is done */
export function checkHandover({ options, hasRoot }: Handover): void {
  const isDone = hasRoot ? statfsSync('/').type === TMPFS_MAGIC : !hasSandbox(options) || isOptional(options);
  if (!isDone) throw new StartError(`${VARIABLE} is set, which is for the daemon itself only: unset it`);
}

/** The environment for the next image. Descriptors that the handover names stay open in it, and no others but the standard ones. */
export function environmentWith(env: NodeJS.ProcessEnv, handover: Handover): NodeJS.ProcessEnv {
  const { listener, notifyFd, syslogFd, mapper, network } = handover;
  const fd = c.check(c.memfdCreate('bucketfsd-handover', MFD_CLOEXEC), 'memfd_create');
  writeSync(fd, JSON.stringify(handover));
  const kept = new Set([...STANDARD_FDS, fd, listener.fd, listener.pidFd, notifyFd, syslogFd, mapper?.fd]);
  // A descriptor of a directory outside, left open by whoever started us, would be a way out. Node makes all
  // descriptors close-on-exec that it finds at its start, the standard ones among them.
  for (const name of readdirSync('/proc/self/fd')) c.fcntl(Number(name), F_SETFD, kept.has(Number(name)) ? 0 : FD_CLOEXEC);
  return {
    ...env,
    // Node would warn of a file that is not in the new root, for connections that a directory's daemon never makes
    ...(network ? {} : { NODE_EXTRA_CA_CERTS: undefined }),
    // Nor is its default; where Landlock only denies it, Node would not start
    OPENSSL_CONF: network ? (env.OPENSSL_CONF ?? '/dev/null') : '/dev/null',
    [VARIABLE]: `${process.pid}:${fd}`,
  };
}
