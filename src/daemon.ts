/**
 * The daemon that serves: a vhost-user backend on the listening socket, a FUSE server behind its queues, a host directory or a bucket behind that. It is
 * loaded when the process is what it is to be: an image that only confines the next one has no use for it.
 *
 *   frontend ─ socket ─▶ VhostUserBackend ─ chains ─▶ FuseServer ─ requests ─▶ FileSystem ─▶ system calls
 *                                                                                    └─▶ SyscallPool
 */
import { setFlagsFromString } from 'node:v8';
import { createLogger, type Logger } from './base/log.js';
import type { StateDirectory } from './bucket/state-directory.js';
import type { Options } from './cli.js';
import type { BucketSource } from './cli/source.js';
import { filterCalls } from './confine/seccomp.js';
import { trimHeap } from './ffi/memory.js';
import { Admission, REMOTE_HELD_MAX_BYTES } from './fuse/admission.js';
import { RequestLog } from './fuse/request-log.js';
import { FuseServer } from './fuse/server.js';
import { EXIT, type ExitCode } from './lifecycle/errors.js';
import { openLines, type Lines } from './lifecycle/lines.js';
import { DRAIN_LIMIT_MS, Shutdown, within } from './lifecycle/shutdown.js';
import { isReadOnlyMount } from './lifecycle/source.js';
import { StandardError } from './lifecycle/standard-error.js';
import { SYSLOG_SOCKET, SyslogDestination } from './lifecycle/syslog.js';
import { PoolOnDemand } from './pool/pool-on-demand.js';
import type { FileSystem } from './storage/filesystem.js';
import { openLocalFileSystem } from './storage/local/filesystem.js';
import type { LocalOptions } from './storage/local/share.js';
import { VhostUserBackend } from './vhost/backend.js';
import type { Device } from './vhost/device.js';

/** hiprio and the request queues. */
const HIPRIO_QUEUES = 1;
/** struct virtio_fs_config (include/uapi/linux/virtio_fs.h): tag[36], num_request_queues. */
const TAG_BYTES = 36;
/** Default and upper bound of --num-request-queues. */
const REQUEST_QUEUES_MAX = 64;

/** How long nobody has been served before memory is given back: a guest that only reboots needs it again. */
const REST_MS = 1000;

/** `gaps`: what the sandbox does not keep inside. @throws StartError, UsageError or SysError before anything is served */
export function serveDirectory(options: Options, fsOptions: LocalOptions, gaps: readonly string[], lines: Lines): void {
  const log = logTo(options, lines.syslog);
  const newPool = (): PoolOnDemand | null =>
    options.threadPoolSize === 0
      ? null
      : new PoolOnDemand({
          threads: options.threadPoolSize,
          onWorkerLost: (lost) => log.error({ ...lost }, 'a pool worker died; its requests failed with EIO, and it is replaced'),
        });
  const pools = [newPool(), newPool()] as const;
  boundYoungGeneration();
  // What has been given up is not waited for once more
  const finish = async (drained: boolean): Promise<ExitCode> => (await Promise.all(pools.map((pool) => (drained ? pool?.close() : pool?.close(0)))), EXIT.OK);
  serve(options, openLocalFileSystem(fsOptions, pools[0], log, pools[1]), log, lines, finish);
  for (const gap of gaps) log.warn({}, gap);
  if (!options.readonly && isReadOnlyMount(fsOptions.openAs ?? fsOptions.directory)) {
    log.warn({}, `${fsOptions.directory} is on a read-only mount, so every change is EROFS: say so with --readonly, or name it with ReadWritePaths= in a drop-in of the unit`);
  }
  filterCalls(options, log);
  announce(fsOptions.directory, options, log, lines);
}

/**
 * V8 lets the space for young objects grow to 48 MB when garbage is made faster than it is collected, whatever is live, and a guest can bring that about. What a
 * directory's daemon makes for a request is little and dies young: it stays as it is at the start.
 */
function boundYoungGeneration(): void {
  setFlagsFromString('--semi-space-growth-factor=1');
}

/**
 * V8 collects old objects when there are some four times as many as are live, and those of listings die old. Half as many again as are live is enough here: they are few.
 * (A small space for young ones as well would cost writers of small files 3 to 9 %.)
 */
function boundOldGeneration(): void {
  setFlagsFromString('--heap-growing-percent=50');
}

/** What a bucket's daemon has been given before it serves. */
export interface BucketGiven {
  /** Descriptors that the process may have. */
  readonly fileLimit: number;
  /** Of the image before this one; null: there was none. */
  readonly lines: Lines | null;
  readonly directory: StateDirectory | null;
  readonly gaps: readonly string[];
}

/**
 * The bucket is asked before there is a socket, since who has made one already would keep a frontend waiting for nothing. A daemon in a sandbox cannot make
 * one any more: it has it, and does not answer before the bucket has.
 */
export async function serveBucket(options: Options & { readonly source: BucketSource }, { fileLimit, lines: made, directory, gaps }: BucketGiven): Promise<void> {
  const { source, listen } = options;
  const syslog = made !== null ? made.syslog : options.syslog ? SyslogDestination.connect() : null;
  const log = logTo(options, syslog);
  // A directory's daemon has no use for it
  const { CLOSE_LIMIT_MS, openBucket } = await import('./bucket/open.js');
  const bucket = await openBucket({ ...options, cacheDir: directory?.path ?? options.cacheDir }, log, fileLimit, directory);
  const lines = made ?? openLines(listen, syslog);
  boundOldGeneration();
  for (const line of bucket.recovered) log.warn({}, `recovery: ${line}`);
  serve(options, bucket.fs, log, lines, async () => ((await bucket.close()) ? EXIT.OK : EXIT.UNSENT), CLOSE_LIMIT_MS);
  for (const gap of gaps) log.warn({}, gap);
  filterCalls(options, log, true);
  announce(source.path, options, log, lines);
}

function logTo(options: Options, syslog: SyslogDestination | null): Logger {
  return createLogger({ level: options.logLevel, ...(syslog === null ? { standardError: new StandardError() } : { pretty: false, destination: syslog }) });
}

/** Frontends are served from now on; `finish`, which takes `finish_ms` at most, is awaited when the daemon ends, after the last request. */
function serve(options: Options, fs: FileSystem, log: Logger, { listener, notifier, close }: Lines, finish: (drained: boolean) => Promise<ExitCode>, finish_ms = 0): void {
  const backend = new VhostUserBackend({
    device: fileSystemDevice(fs, options, log), pollUs: options.pollUs, log, memoryFiles: options.allowMemoryFiles ? 'any' : 'shared-memory',
    onGone: () => {
      if (options.once) void shutdown.begin('the frontend has gone (--once)');
      else setTimeout(trimHeap, REST_MS).unref();
    },
  });
  const shutdown = new Shutdown({
    log,
    drain: async () => {
      const closed = await within(backend.close().then(() => true), DRAIN_LIMIT_MS);
      if (closed === null) log.warn({ limit_ms: DRAIN_LIMIT_MS }, 'requests in flight were given up');
      return finish(closed !== null);
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
  for (const remark of options.remarks) log.warn({}, remark);
  notifier.ready(`Sharing ${source} on ${listener.name}`);
  log.info({ source, socket: listener.name }, `sharing ${source} on ${listener.name}`);
  // virtiofsd's line, for which callers wait on standard error (Kata Containers' runtime-rs)
  log.info({}, 'Waiting for vhost-user socket connection...');
}

/** A FUSE server as a vhost-user device. */
function fileSystemDevice(fs: FileSystem, options: Options, log: Logger): Device {
  const server = new FuseServer(fs, log, log.enabled('trace') ? new RequestLog(log) : null, new Admission(options.source.kind === 'local' ? undefined : REMOTE_HELD_MAX_BYTES));
  return {
    maxQueues: HIPRIO_QUEUES + options.numRequestQueues,
    config: options.tag === null ? null : configSpace(options.tag, configQueues(options)),
    handle: (chain) => server.handle(chain),
    admission: server.admission,
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
