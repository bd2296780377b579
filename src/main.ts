#!/usr/bin/env node
/**
 * The whole daemon: a listening socket, a vhost-user backend on it, a FUSE server behind its queues, a host
 * directory behind that.
 *
 *   frontend ─ socket ─▶ VhostUserBackend ─ chains ─▶ FuseServer ─ requests ─▶ FileSystem ─▶ system calls
 *                                                                                    └─▶ SyscallPool
 */
import { parseCommandLine, type Options } from './cli.js';
import { createLogger, type Logger } from './base/log.js';
import * as c from './ffi/libc.js';
import { FuseServer } from './fuse/server.js';
import { UsageError, failureOf } from './lifecycle/errors.js';
import { applyFileLimit } from './lifecycle/limits.js';
import { openListener } from './lifecycle/listen.js';
import { Shutdown } from './lifecycle/shutdown.js';
import { checkSource } from './lifecycle/source.js';
import { ServiceNotifier } from './lifecycle/systemd.js';
import { SyscallPool } from './pool/pool.js';
import { openLocalFileSystem } from './storage/local/filesystem.js';
import { localOptions } from './storage/local/options.js';
import type { LocalOptions } from './storage/local/share.js';
import type { FileSystem } from './storage/filesystem.js';
import { VhostUserBackend } from './vhost/backend.js';
import type { Device } from './vhost/device.js';

/** hiprio and the request queues. */
const HIPRIO_QUEUES = 1;
/** struct virtio_fs_config (include/uapi/linux/virtio_fs.h): tag[36], num_request_queues. */
const TAG_BYTES = 36;
/** Default and upper bound of --num-request-queues. */
const REQUEST_QUEUES_MAX = 64;

function start(options: Options): void {
  const log = createLogger({ level: options.logLevel });
  const nofile = applyFileLimit(options.rlimitNofile);
  checkSource(options.source.path);
  becomeServer();
  const pool =
    options.threadPoolSize === 0
      ? null
      : new SyscallPool({
          threads: options.threadPoolSize,
          onWorkerLost: (lost) => log.error({ ...lost }, 'a pool worker died; its requests failed with EIO, and it is replaced'),
        });
  const fs = openLocalFileSystem(checkedLocalOptions(options, nofile), pool, log);
  const notifier = ServiceNotifier.fromEnvironment();
  const listener = openListener(options.listen);
  const backend = new VhostUserBackend({ device: fileSystemDevice(fs, options, log), pollUs: options.pollUs, log });
  backend.listen(listener.fd);
  new Shutdown({
    log,
    drain: async () => {
      await backend.close();
      await pool?.close();
    },
    cleanup: () => {
      listener.close();
      notifier.close();
    },
    stopping: () => notifier.stopping(),
  }).install();
  notifier.ready(`Sharing ${options.source.path} on ${listener.name}`);
  log.info({ source: options.source.path, socket: listener.name }, `sharing ${options.source.path} on ${listener.name}`);
}

/** The rules of --xattrmap and --translate-* are parsed here: what is wrong with them is a usage error. */
function checkedLocalOptions(options: Options, nofile: number): LocalOptions {
  if (options.posixAcl && (options.translateUid.length > 0 || options.translateGid.length > 0)) {
    throw new UsageError('--posix-acl and --translate-uid/--translate-gid cannot be used together: ids inside ACLs are not translated');
  }
  try {
    return localOptions(options, nofile);
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
function fileSystemDevice(fs: FileSystem, options: Options, log: Logger): Device {
  const server = new FuseServer(fs, log);
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
  const command = parseCommandLine(process.argv.slice(2));
  if (command.action === 'print') process.stdout.write(command.text);
  else start(command.options);
} catch (error) {
  const failure = failureOf(error);
  process.stderr.write(failure.text);
  process.exit(failure.exitCode);
}
