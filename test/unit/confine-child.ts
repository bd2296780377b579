/** Installs the filter of --seccomp=ACTION in a process of its own, then does one thing, and says so if it is still there. */
import { exec, spawnSync } from 'node:child_process';
import { lookup } from 'node:dns/promises';
import { once } from 'node:events';
import { Worker } from 'node:worker_threads';
import type { SeccompAction } from '../../src/confine/policy.js';
import { applySeccomp, hideIoUring, usesIoUring } from '../../src/confine/seccomp.js';
import { ABSENT, EXAMINED, FILE_HANDLES, FORBIDDEN, SOCKETS } from '../../src/confine/system-calls.js';
import * as c from '../../src/ffi/libc.js';
import { F_SETFD } from '../../src/ffi/constants.js';
import { execve } from '../../src/ffi/namespaces.js';
import { SyscallPool } from '../../src/pool/pool.js';
import type { TestCall } from './pool-worker.js';

const [action, deed] = process.argv.slice(2);
const arch = process.arch === 'arm64' ? 1 : 0;

const call = (nr: number | null): number => c.syscall6(nr!, 0, 0, 0, 0, 0, 0);

async function pool(): Promise<string> {
  const threads = new SyscallPool<TestCall>({ threads: 3, worker: new URL('./pool-worker.js', import.meta.url), onWorkerLost: () => undefined });
  const results = await Promise.all([threads.run('sleep', 20), threads.run('exit', 3), threads.run('exhaust'), threads.run('nothing'), threads.run('nothing')]);
  await threads.close();
  return results.join(' ');
}

const NEEDS = { fileHandles: false, unixSockets: deed === 'reconnect', network: deed === 'network' } as const;

const DEEDS: Record<string, () => unknown> = {
  unshare: () => call(EXAMINED.unshare[arch]),
  setns: () => call(FORBIDDEN.setns[arch]),
  bpf: () => call(FORBIDDEN.bpf[arch]),
  /** x86-64 only: write(2) by the number of the x32 ABI. */
  x32: () => call(0x4000_0001),
  clone3: () => (call(ABSENT.clone3[arch]) < 0 ? c.errno() : 'made'),
  spawn: () => spawnSync('/bin/true').status,
  inet: () => (c.socket(2, 1, 0) >= 0 ? 'opened' : 'failed'),
  /** What Google's library tries when it wants to know a project, which needs a pair of sockets and a process; and a name. */
  network: async () => {
    const code = await new Promise((resolve) => exec('true', (error) => resolve((error as NodeJS.ErrnoException | null)?.code ?? 'run')));
    return `${String(code)} ${(await lookup('localhost', 4)).address}`;
  },
  unix: () => (c.socket(1, 1, 0) >= 0 ? 'opened' : 'failed'),
  reconnect: () => (c.socket(1, 1, 0) >= 0 ? 'opened' : 'failed'),
  connect: () => call(SOCKETS.connect[arch]),
  bind: () => call(SOCKETS.bind[arch]),
  listen: () => call(SOCKETS.listen[arch]),
  handle: () => call(FILE_HANDLES.open_by_handle_at[arch]),
  /** F_SETOWN, F_SETSIG, F_SETOWN_EX; FIOSETOWN */
  setown: () => c.fcntl(0, 8, process.ppid),
  setsig: () => c.fcntl(0, 10, 9),
  setownex: () => c.fcntl(0, 15, 0),
  fiosetown: () => c.ioctl(0, 0x8901, 0),
  /** RLIMIT_NOFILE of its parent, and its own. */
  limits: () => c.syscall6(EXAMINED.prlimit64[arch], process.ppid, 7, 0, 0, 0, 0),
  ownLimits: () => c.syscall6(EXAMINED.prlimit64[arch], process.pid, 7, 0, 0, 0, 0) + c.syscall6(EXAMINED.prlimit64[arch], 0, 7, 0, 0, 0, 0),
  priority: () => (c.syscall6(ABSENT.setpriority[arch], 0, process.ppid, 19, 0, 0, 0) < 0 ? c.errno() : 'changed'),
  tiocsti: () => (c.ioctl(0, 0x5412, 0) < 0 ? 'refused by the kernel' : 'typed'),
  signal: () => process.kill(process.ppid, 0),
  abort: () => process.abort(),
  worker: async () => (await once(new Worker('0', { eval: true }), 'exit'))[0],
  /** In a thread that was there before the filter. */
  thread: async () => {
    const worker = new Worker(new URL('./confine-worker.js', import.meta.url));
    await once(worker, 'message');
    applySeccomp(action as SeccompAction, NEEDS);
    worker.postMessage(EXAMINED.unshare[arch]);
    return (await once(worker, 'message'))[0];
  },
  pool,
};

// As the daemon does it: a Node that made a ring at its start is started again without one
if (usesIoUring()) {
  hideIoUring();
  // Node made these close-on-exec
  for (const fd of [0, 1, 2]) c.fcntl(fd, F_SETFD, 0);
  execve(process.execPath, [process.execPath, ...process.argv.slice(1)], process.env);
}
if (deed !== 'thread') applySeccomp(action as SeccompAction, NEEDS);
process.stdout.write(`done: ${String(await DEEDS[deed]())}\n`);
process.exit(0);
