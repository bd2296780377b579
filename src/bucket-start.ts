/** The start of a bucket's daemon: it finds out what it needs of the host, confines itself if it is to, and serves (daemon.ts). */
import type { Options } from './cli.js';
import type { BucketSource } from './cli/source.js';
import { hostNeeds } from './bucket/host-needs.js';
import { adoptedDirectory, ensureHome, isScratch, prepareDirectory } from './bucket/state-directory.js';
import type { Handover } from './confine/handover.js';
import { seccompAction } from './confine/policy.js';
import { resumeConfinement } from './confine/resume.js';
import { EXIT, StartError } from './lifecycle/errors.js';
import { applyFileLimit } from './lifecycle/limits.js';
import { adoptLines, closingOnFailure, linesToPass, openLines, type Lines } from './lifecycle/lines.js';
import { becomeBucketServer } from './lifecycle/rights.js';
import { SyslogDestination } from './lifecycle/syslog.js';

type BucketOptions = Options & { readonly source: BucketSource };

/** @throws StartError, UsageError */
export async function startBucket(options: BucketOptions): Promise<void> {
  const fileLimit = applyFileLimit(options.rlimitNofile);
  becomeBucketServer();
  const { obstacle } = await confineBucket(options);
  const gaps = obstacle === null ? [] : [`there is no sandbox and no filter of system calls: ${obstacle}`];
  const { serveBucket } = await import('./daemon.js');
  await serveBucket(obstacle === null ? options : { ...options, sandbox: 'none', seccomp: 'none' }, { fileLimit, lines: null, directory: null, gaps });
}

/** Where the process image before this one has ended. */
export async function goOnWithBucket(passed: Handover<Options>, options: BucketOptions): Promise<void> {
  const fileLimit = applyFileLimit(options.rlimitNofile);
  const lines = adoptLines(passed);
  const ended = closeOnSignal(lines);
  await closingOnFailure(lines, async () => {
    await resumeConfinement(passed, true);
    const { cacheDirectory, gaps } = passed;
    const directory = cacheDirectory === null ? null : adoptedDirectory(cacheDirectory, isScratch(options));
    const { serveBucket } = await import('./daemon.js');
    await serveBucket(options, { fileLimit, lines, directory, gaps });
  });
  ended();
}

/**
 * Becomes the daemon anew in its sandbox, or returns why there is none. The rule: a sandbox that nobody has asked for keeps no daemon from starting. `obstacle` is null
 * where the options ask for none, or for a filter alone that needs no new image.
 * @throws StartError if one that was asked for cannot be had
 */
async function confineBucket(options: BucketOptions): Promise<{ readonly obstacle: string | null }> {
  const { confine, confinementOf } = await import('./confine/confine.js');
  const confinement = confinementOf(options, true);
  if (confinement === null && seccompAction(options) === 'none') return { obstacle: null };
  ensureHome(process.env);
  const prepared = confinement?.namespace === true ? await prepareDirectory(options) : { path: null, obstacle: null };
  const { paths, notes, ...needs } = hostNeeds(options, prepared.path);
  const obstacle = needs.obstacle ?? prepared.obstacle;
  if (obstacle !== null) refuseIfAsked(options, obstacle);
  if (confinement === null || obstacle !== null) return { obstacle };
  const lines = openLines(options.listen, options.syslog ? SyslogDestination.connect() : null);
  const { namespace } = confinement;
  const host = namespace ? { paths, scratch: isScratch(options) ? prepared.path : null, workingDirectory: workingDirectory() } : null;
  const { path: source } = options.source;
  await closingOnFailure(lines, async () =>
    confine(confinement, {
      options, stage: 'opened', hasRoot: false, gaps: namespace ? notes : [], source, share: source, ...linesToPass(lines), host, cacheDirectory: prepared.path, network: true, mapper: null,
    }));
  return { obstacle: null };
}

/** @throws StartError */
function refuseIfAsked({ sandbox, seccomp }: Options, obstacle: string): void {
  const asked = [...(sandbox === 'namespace' ? ['--sandbox=namespace'] : []), ...(seccomp === 'auto' || seccomp === 'none' ? [] : [`--seccomp=${seccomp}`])];
  if (asked.length > 0) throw new StartError(`${asked.join(' and ')} cannot be had: ${obstacle}; use --sandbox=none --seccomp=none`);
}

/** One that is gone is none. */
function workingDirectory(): string {
  try {
    return process.cwd();
  } catch {
    return '/';
  }
}

/** Until the daemon has other words for them, these signals end it as ever, and what was made is gone. @returns how that ends */
function closeOnSignal(lines: Lines): () => void {
  const signals = ['SIGTERM', 'SIGINT'] as const;
  const end = (signal: NodeJS.Signals): void => {
    lines.close();
    ended();
    process.kill(process.pid, signal);
    process.exit(EXIT.RUNTIME); // the first process of a container has no default action
  };
  const ended = (): void => signals.forEach((signal) => process.off(signal, end));
  for (const signal of signals) process.on(signal, end);
  return ended;
}
