#!/usr/bin/env node
/**
 * From the command line to the daemon: it parses the options, opens what needs names of the host, confines itself if it is to, and serves
 * (daemon.ts). The image that finds itself confined goes on where the one before has ended. Each loads only what it needs.
 */
import type { BucketSettings, Options, RecoverSettings } from './cli.js';
import { writeFailure } from './base/severity.js';
import { takeHandover, type Handover } from './confine/handover.js';
import { usesFileHandles } from './confine/policy.js';
import { resumeConfinement } from './confine/resume.js';
import { UsageError, failureOf } from './lifecycle/errors.js';
import { applyFileLimit } from './lifecycle/limits.js';
import { adoptLines, closingOnFailure, linesToPass, openLines, type Lines } from './lifecycle/lines.js';
import { checkNodeVersion } from './lifecycle/node-version.js';
import { becomeServer } from './lifecycle/rights.js';
import { checkSource } from './lifecycle/source.js';
import { print } from './lifecycle/standard-output.js';
import { SyslogDestination } from './lifecycle/syslog.js';
import { localOptions } from './storage/local/options.js';
import type { LocalOptions } from './storage/local/share.js';

async function start(options: Options): Promise<void> {
  ignoreHangup();
  const { source } = options;
  if (source.kind !== 'local') return (await import('./bucket-start.js')).startBucket({ ...options, source });
  const nofile = applyFileLimit(options.rlimitNofile);
  const { confine, confinementOf } = await import('./confine/confine.js');
  const confinement = confinementOf(options);
  const fsOptions = await checkedLocalOptions(options, nofile);
  checkSource(source.path);
  becomeServer();
  const lines = openLines(options.listen, options.syslog ? SyslogDestination.connect() : null);
  await closingOnFailure(lines, async () => {
    if (confinement !== null) confine(confinement, handoverOf(options, lines));
    const { serveDirectory } = await import('./daemon.js');
    serveDirectory(options, fsOptions, [], lines);
  });
}

/** Where the process image before this one has ended. */
async function goOn(passed: Handover<Options>): Promise<void> {
  ignoreHangup();
  const { options, source, share, gaps, network } = passed;
  if (network && options.source.kind !== 'local') return (await import('./bucket-start.js')).goOnWithBucket(passed, { ...options, source: options.source });
  const nofile = applyFileLimit(options.rlimitNofile);
  const lines = adoptLines(passed);
  await closingOnFailure(lines, async () => {
    await resumeConfinement(passed);
    // In a user namespace it may be another user who opens it
    checkSource(share, source);
    const { serveDirectory } = await import('./daemon.js');
    serveDirectory(options, { ...(await checkedLocalOptions(options, nofile)), directory: source, openAs: share }, gaps, lines);
  });
}

/** Its default action would end the start; later Shutdown has a word for it. */
function ignoreHangup(): void {
  process.on('SIGHUP', () => undefined);
}

/** What confinement must hand over to the process image that follows. */
function handoverOf(options: Options, lines: Lines): Handover {
  const { path: share } = options.source;
  return { options, stage: 'opened', hasRoot: false, gaps: [], source: share, share, ...linesToPass(lines), host: null, cacheDirectory: null, network: false, mapper: null };
}

/** The rules of --xattrmap and --translate-* are parsed here: what is wrong with them is a usage error. */
async function checkedLocalOptions(options: Options, nofile: number): Promise<LocalOptions> {
  if (options.posixAcl !== 'never' && (options.translateUid.length > 0 || options.translateGid.length > 0)) {
    throw new UsageError('--posix-acl and --translate-uid/--translate-gid cannot be used together: ids inside ACLs are not translated');
  }
  try {
    const inodeFileHandles = options.inodeFileHandles !== 'auto' ? options.inodeFileHandles : usesFileHandles(options) ? 'prefer' : 'never';
    return await localOptions({ ...options, inodeFileHandles }, nofile);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** bucketfsd check */
async function check(settings: BucketSettings): Promise<void> {
  const { checkBucket } = await import('./bucket/check.js');
  print(await checkBucket(settings));
}

/** bucketfsd recover */
async function recover(settings: RecoverSettings): Promise<void> {
  const [{ recoverDirectory }, { createLogger }] = await Promise.all([import('./bucket/recover.js'), import('./base/log.js')]);
  const terminal = process.stdout.isTTY;
  const clear = terminal ? '\r\x1b[K' : '';
  const log = createLogger({ level: settings.logLevel });
  const whole = await recoverDirectory(settings, log, {
    line: (text) => print(`${clear}${text}\n`),
    progress: (text) => void (terminal && print(`${clear}${text}`)),
  });
  if (!whole && !settings.dryRun) process.exitCode = 1;
}

try {
  checkNodeVersion(process.version);
  const passed = takeHandover<Options>(process.env, process.pid);
  if (passed !== null) await goOn(passed);
  else {
    const { parseCommandLine } = await import('./cli.js');
    const command = parseCommandLine(process.argv.slice(2));
    if (command.action === 'print') print(command.text);
    else if (command.action === 'check') await check(command.settings);
    else if (command.action === 'recover') await recover(command.settings);
    else await start(command.options);
  }
} catch (error) {
  const failure = failureOf(error);
  writeFailure(failure.text);
  process.exit(failure.exitCode);
}
