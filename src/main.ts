#!/usr/bin/env node
/**
 * The whole daemon: a listening socket, a vhost-user backend on it, a FUSE server behind its queues, a host
 * directory or a bucket behind that.
 *
 *   frontend ─ socket ─▶ VhostUserBackend ─ chains ─▶ FuseServer ─ requests ─▶ FileSystem ─▶ system calls
 *                                                                                    └─▶ SyscallPool
 */
import { parseCommandLine, type BucketSettings, type Options, type RecoverSettings } from './cli.js';
import { NO_MIGRATION, OPTIONS } from './cli/options.js';
import type { BucketSource } from './cli/source.js';
import { createLogger, writeFailure, type Logger } from './base/log.js';
import * as c from './ffi/libc.js';
import { checkConfined, confine, confinementOf, filterCalls, sandboxGaps, usesFileHandles } from './confine/confine.js';
import { takeHandover, type Handover } from './confine/handover.js';
import { EXIT, UsageError, failureOf, type ExitCode } from './lifecycle/errors.js';
import { applyFileLimit } from './lifecycle/limits.js';
import { adoptListener, openListener, type Listener } from './lifecycle/listen.js';
import { DRAIN_LIMIT_MS, Shutdown, within } from './lifecycle/shutdown.js';
import { checkNodeVersion } from './lifecycle/node-version.js';
import { checkSource, isReadOnlyMount } from './lifecycle/source.js';
import { StandardError } from './lifecycle/standard-error.js';
import { SYSLOG_SOCKET, SyslogDestination } from './lifecycle/syslog.js';
import { ServiceNotifier } from './lifecycle/systemd.js';
import { localOptions } from './storage/local/options.js';
import type { LocalOptions } from './storage/local/share.js';
import type { FileSystem } from './storage/filesystem.js';
import type { Device } from './vhost/device.js';

/** hiprio and the request queues. */
const HIPRIO_QUEUES = 1;
/** struct virtio_fs_config (include/uapi/linux/virtio_fs.h): tag[36], num_request_queues. */
const TAG_BYTES = 36;
/** Default and upper bound of --num-request-queues. */
const REQUEST_QUEUES_MAX = 64;
const MIGRATION_KEYS = ['migrationMode', 'migrationOnError', 'migrationVerifyHandles', 'migrationConfirmPaths'] as const;

async function start(options: Options): Promise<void> {
  // Its default action would end the start; later Shutdown has a word for it
  process.on('SIGHUP', () => undefined);
  const { source } = options;
  if (source.kind !== 'local') return startBucket(options, source);
  const passed = takeHandover(process.env, process.pid);
  const nofile = applyFileLimit(options.rlimitNofile);
  const confinement = confinementOf(options);
  const fsOptions = checkedLocalOptions(options, nofile, usesFileHandles(options));
  if (passed === null) {
    checkSource(source.path);
    becomeServer();
  }
  const lines = passed === null ? openLines(options) : adoptLines(passed);
  try {
    if (confinement !== null && passed?.stage !== 'confined') {
      confine(confinement, passed ?? handoverOf(lines, source.path));
    }
    const gap = passed?.gap ?? null;
    if (confinement !== null) checkConfined(confinement, gap);
    // In a user namespace it may be another user who opens it
    if (passed !== null) checkSource(passed.share, passed.source);
    const seen = passed === null ? fsOptions : { ...fsOptions, directory: passed.source, openAs: passed.share };
    serveDirectory(await loadServing(), options, seen, confinement === null ? [] : sandboxGaps(confinement, gap, lines.listener), lines);
  } catch (error) {
    lines.close();
    throw error;
  }
}

/** What the daemon hears and says, but for its files. */
interface Lines {
  readonly listener: Listener;
  readonly notifier: ServiceNotifier;
  readonly syslog: SyslogDestination | null;
  close(): void;
}

function openLines(options: Options): Lines {
  const syslog = options.syslog ? SyslogDestination.connect() : null;
  return linesOf(openListener(options.listen), ServiceNotifier.fromEnvironment(), syslog);
}

/** Those of the process image before this one. */
function adoptLines({ listener, notifyFd, syslogFd }: Handover): Lines {
  const syslog = syslogFd < 0 ? null : SyslogDestination.adopt(syslogFd);
  return linesOf(adoptListener(listener), ServiceNotifier.adopt(notifyFd), syslog);
}

function linesOf(listener: Listener, notifier: ServiceNotifier, syslog: SyslogDestination | null): Lines {
  const close = (): void => {
    listener.close();
    notifier.close();
  };
  return { listener, notifier, syslog, close };
}

/** What confinement must hand over to the process image that follows. */
function handoverOf({ listener: { fd, pidFd, name, path }, notifier, syslog }: Lines, source: string): Handover {
  const fds = { notifyFd: notifier.fd, syslogFd: syslog?.fd ?? -1 };
  return { pid: process.pid, stage: 'opened', gap: null, source, share: source, listener: { fd, pidFd, name, path }, ...fds, mapper: null };
}

/** bucketfsd check */
async function check(settings: BucketSettings): Promise<void> {
  const { checkBucket } = await import('./bucket/check.js');
  process.stdout.write(await checkBucket(settings));
}

/** bucketfsd recover */
async function recover(settings: RecoverSettings): Promise<void> {
  const { recoverDirectory } = await import('./bucket/recover.js');
  const terminal = process.stdout.isTTY;
  const clear = terminal ? '\r\x1b[K' : '';
  const log = createLogger({ level: settings.logLevel });
  const whole = await recoverDirectory(settings, log, {
    line: (text) => void process.stdout.write(`${clear}${text}\n`),
    progress: (text) => void (terminal && process.stdout.write(`${clear}${text}`)),
  });
  if (!whole && !settings.dryRun) process.exitCode = 1;
}

/** The bucket is asked first: who has made a socket already would keep a frontend waiting for nothing. */
async function startBucket(options: Options, source: BucketSource): Promise<void> {
  const fileLimit = applyFileLimit(options.rlimitNofile);
  becomeServer();
  const syslog = options.syslog ? SyslogDestination.connect() : null;
  const log = logTo(options, syslog);
  // A directory's daemon has no use for it
  const { CLOSE_LIMIT_MS, openBucket } = await import('./bucket/open.js');
  const bucket = await openBucket({ ...options, source }, log, fileLimit);
  const lines = linesOf(openListener(options.listen), ServiceNotifier.fromEnvironment(), syslog);
  for (const line of bucket.recovered) log.warn({}, `recovery: ${line}`);
  serve(await loadServing(), options, bucket.fs, log, lines, async () => ((await bucket.close()) ? EXIT.OK : EXIT.UNSENT), CLOSE_LIMIT_MS);
  announce(source.path, options, log, lines);
}

/** What serves. It is loaded when the process is what it is to be: an image that only confines the next one has no use for it, and starts in half the time. */
async function loadServing() {
  const [{ FuseServer }, { RequestLog }, { SyscallPool }, { openLocalFileSystem }, { VhostUserBackend }] = await Promise.all([
    import('./fuse/server.js'), import('./fuse/request-log.js'), import('./pool/pool.js'), import('./storage/local/filesystem.js'), import('./vhost/backend.js'),
  ]);
  return { FuseServer, RequestLog, SyscallPool, openLocalFileSystem, VhostUserBackend } as const;
}

type Serving = Awaited<ReturnType<typeof loadServing>>;

function serveDirectory(serving: Serving, options: Options, fsOptions: LocalOptions, gaps: readonly string[], lines: Lines): void {
  const log = logTo(options, lines.syslog);
  const pool =
    options.threadPoolSize === 0
      ? null
      : new serving.SyscallPool({
          threads: options.threadPoolSize,
          onWorkerLost: (lost) => log.error({ ...lost }, 'a pool worker died; its requests failed with EIO, and it is replaced'),
        });
  serve(serving, options, serving.openLocalFileSystem(fsOptions, pool, log), log, lines, async () => (await pool?.close(), EXIT.OK));
  for (const gap of gaps) log.warn({}, gap);
  if (!options.readonly && isReadOnlyMount(fsOptions.openAs ?? fsOptions.directory)) {
    log.warn({}, `${fsOptions.directory} is on a read-only mount, so every change is EROFS: say so with --readonly, or name it with ReadWritePaths= in a drop-in of the unit`);
  }
  filterCalls(options, log);
  announce(fsOptions.directory, options, log, lines);
}

function logTo(options: Options, syslog: SyslogDestination | null): Logger {
  return createLogger({ level: options.logLevel, ...(syslog === null ? { standardError: new StandardError() } : { pretty: false, destination: syslog }) });
}

/** Frontends are served from now on; `finish`, which takes `finish_ms` at most, is awaited when the daemon ends, after the last request. */
function serve(serving: Serving, options: Options, fs: FileSystem, log: Logger, { listener, notifier, close }: Lines, finish: () => Promise<ExitCode>, finish_ms = 0): void {
  const backend = new serving.VhostUserBackend({
    device: fileSystemDevice(serving, fs, options, log), pollUs: options.pollUs, log, memoryFiles: options.allowMemoryFiles ? 'any' : 'shared-memory',
    ...(options.once ? { onGone: () => void shutdown.begin('the frontend has gone (--once)') } : {}),
  });
  const shutdown = new Shutdown({
    log,
    drain: async () => {
      const closed = await within(backend.close().then(() => true), DRAIN_LIMIT_MS);
      if (closed === null) log.warn({ limit_ms: DRAIN_LIMIT_MS }, 'requests in flight were given up');
      return finish();
    },
    limit_ms: DRAIN_LIMIT_MS + Math.max(finish_ms, 1000),
    cleanup: close,
    stopping: () => notifier.stopping(),
  });
  shutdown.install();
  backend.listen(listener.fd);
}

function announce(source: string, options: Options, log: Logger, { listener, notifier, syslog }: Lines): void {
  if (options.syslog && syslog === null) log.warn({}, `--syslog: nobody listens at ${SYSLOG_SOCKET}, so log lines go to standard error`);
  if (MIGRATION_KEYS.some((key) => options[key] !== OPTIONS[key].default)) log.warn({}, `--migration-… ${NO_MIGRATION}`);
  notifier.ready(`Sharing ${source} on ${listener.name}`);
  log.info({ source, socket: listener.name }, `sharing ${source} on ${listener.name}`);
  // virtiofsd's line, for which callers wait on standard error (Kata Containers' runtime-rs)
  log.info({}, 'Waiting for vhost-user socket connection...');
}

/** The rules of --xattrmap and --translate-* are parsed here: what is wrong with them is a usage error. */
function checkedLocalOptions(options: Options, nofile: number, fileHandles: boolean): LocalOptions {
  if (options.posixAcl !== 'never' && (options.translateUid.length > 0 || options.translateGid.length > 0)) {
    throw new UsageError('--posix-acl and --translate-uid/--translate-gid cannot be used together: ids inside ACLs are not translated');
  }
  try {
    const inodeFileHandles = options.inodeFileHandles !== 'auto' ? options.inodeFileHandles : fileHandles ? 'prefer' : 'never';
    return localOptions({ ...options, inodeFileHandles }, nofile);
  } catch (error) {
    throw new UsageError((error as Error).message);
  }
}

/** Creations get the mode that the guest asked for, and no group of the daemon's user lends them rights. */
function becomeServer(): void {
  c.umask(0);
  if (process.geteuid!() === 0) process.setgroups!([]);
}

/** A FUSE server as a vhost-user device. */
function fileSystemDevice({ FuseServer, RequestLog }: Serving, fs: FileSystem, options: Options, log: Logger): Device {
  const server = new FuseServer(fs, log, log.enabled('trace') ? new RequestLog(log) : null);
  return {
    maxQueues: HIPRIO_QUEUES + options.numRequestQueues,
    config: options.tag === null ? null : configSpace(options.tag, configQueues(options)),
    handle: (chain) => server.handle(chain),
    connected: () => undefined,
    reset: () => server.reset(),
    cancelWaiting: () => fs.cancelWaiting(),
  };
}

/** The most that we serve says nothing about how many rings a frontend has: a driver must not look for that many. */
function configQueues(options: Options): number {
  return options.numRequestQueues === REQUEST_QUEUES_MAX ? 1 : options.numRequestQueues;
}

function configSpace(tag: string, requestQueues: number): Uint8Array {
  const config = new Uint8Array(TAG_BYTES + 4);
  config.set(new TextEncoder().encode(tag).subarray(0, TAG_BYTES));
  new DataView(config.buffer).setUint32(TAG_BYTES, requestQueues, true);
  return config;
}

try {
  checkNodeVersion(process.version);
  const command = parseCommandLine(process.argv.slice(2));
  if (command.action === 'print') process.stdout.write(command.text);
  else if (command.action === 'check') await check(command.settings);
  else if (command.action === 'recover') await recover(command.settings);
  else await start(command.options);
} catch (error) {
  const failure = failureOf(error);
  writeFailure(failure.text);
  process.exit(failure.exitCode);
}
