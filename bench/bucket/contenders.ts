/**
 * What is compared: this daemon on the bucket, and s3fs and rclone as file systems of the host that the C virtiofsd shares.
 * Each is started afresh, with an empty cache, for each job.
 */
import { spawnSync } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { projectRoot } from '../vufs.js';
import { assertRuns, end, start, type Started } from './processes.js';
import { PREPARED, type Durability, type Job } from './rows.js';

export interface Bucket {
  readonly name: string;
  readonly endpoint: string;
  readonly accessKeyId: string;
  readonly secretAccessKey: string;
}

/** What serves a guest, running. */
export interface Stack {
  readonly socket: string;
  /** Process groups whose CPU time and memory are its own. */
  readonly groups: readonly number[];
  readonly log: string;
  stop(): Promise<void>;
}

export interface Contender {
  readonly name: string;
  /** The only jobs that it is there for; missing: all. */
  readonly jobs?: readonly Job['job'][];
  /** The mode that it runs in, in words; null: it has none that keeps such a promise. */
  mode(durability: Durability): string | null;
  /** Why it cannot be measured here, or null. */
  missing(durability: Durability): string | null;
  start(bucket: Bucket, durability: Durability, folder: string): Promise<Stack>;
}

export interface Programs {
  readonly cVirtiofsd: string;
  /** The directory that DIRECTORY shares. */
  readonly content: string;
  readonly ourArgs: readonly string[];
}

export const OURS = 'bucketfsd';
/** This daemon on a directory of the host: what reading again is compared with. */
export const DIRECTORY = 'directory';
const MAIN = join(projectRoot, 'build/src/main.js');
/** The others keep what they read without a limit of theirs: as much as any size of the bench needs. */
const CACHE_MIB = 16_384;
const MOUNT_TIMEOUT_MS = 20_000;

const baseEnv = (folder: string): NodeJS.ProcessEnv => ({ PATH: process.env['PATH'], HOME: folder, LANG: 'C' });

function installed(program: string): boolean {
  return (process.env['PATH'] ?? '').split(':').some((folder) => existsSync(join(folder, program)));
}

function ourselves(extra: readonly string[]): Contender {
  const durabilityOf = (durability: Durability): string => (durability === 'cached' ? 'writeback' : 'remote');
  return {
    name: OURS,
    mode: (durability) => (durability === 'none' ? '' : `--durability ${durabilityOf(durability)} `) + `--cache-size ${CACHE_MIB}`,
    missing: () => null,
    start: async (bucket, durability, folder) => {
      const socket = join(folder, 'sock');
      const argv = [
        process.execPath, MAIN, '--socket-path', socket, '--source', `s3://${bucket.name}`, '--endpoint', bucket.endpoint, '--path-style',
        '--cache-dir', join(folder, 'cache'), '--cache-size', String(CACHE_MIB), '--durability', durabilityOf(durability), ...extra,
      ];
      const env = { ...baseEnv(folder), AWS_REGION: 'us-east-1', AWS_ACCESS_KEY_ID: bucket.accessKeyId, AWS_SECRET_ACCESS_KEY: bucket.secretAccessKey };
      const log = join(folder, 'log');
      const daemon = start(argv, env, log);
      return { socket, log, groups: [daemon.pid], stop: () => end(daemon, 'SIGTERM') };
    },
  };
}

/** `content` is a directory with the large object as a file. */
function directory(content: string): Contender {
  return {
    name: DIRECTORY,
    jobs: ['random-read'],
    mode: (durability) => (durability === 'none' ? 'the same daemon on a directory, random reads only' : null),
    missing: () => (existsSync(join(content, PREPARED['random-read'])) ? null : 'its file was not prepared'),
    start: async (_bucket, _durability, folder) => {
      const socket = join(folder, 'sock');
      const log = join(folder, 'log');
      const daemon = start([process.execPath, MAIN, '--socket-path', socket, '--shared-dir', content], baseEnv(folder), log);
      return { socket, log, groups: [daemon.pid], stop: () => end(daemon, 'SIGTERM') };
    },
  };
}

async function mounted(path: string, fileSystem: Started): Promise<void> {
  for (const until = Date.now() + MOUNT_TIMEOUT_MS; ; await sleep(10)) {
    if (readFileSync('/proc/self/mountinfo', 'utf8').includes(` ${path} `)) return;
    assertRuns(fileSystem, fileSystem.child.spawnfile);
    if (Date.now() > until) throw new Error(`${fileSystem.child.spawnfile} does not mount ${path}`);
  }
}

async function unmount(path: string, fileSystem: Started): Promise<void> {
  const { status } = spawnSync('umount', [path], { stdio: 'ignore', timeout: MOUNT_TIMEOUT_MS });
  if (status !== 0) spawnSync('umount', ['-l', path], { stdio: 'ignore' });
  await end(fileSystem, status === 0 ? null : 'SIGTERM');
}

/**
 * A file system of the host behind the C virtiofsd. That gets its pool of threads, unlike for directories (daemons.ts): without
 * it, one request that waits for the network would hold up all others.
 */
async function shareMount(argv: readonly string[], mountPoint: string, folder: string, programs: Programs): Promise<Stack> {
  const log = join(folder, 'log');
  const socket = join(folder, 'sock');
  mkdirSync(mountPoint);
  const fileSystem = start(argv, baseEnv(folder), log);
  try {
    await mounted(mountPoint, fileSystem);
    const virtiofsd = start(
      [programs.cVirtiofsd, `--socket-path=${socket}`, '-o', `source=${mountPoint}`, '-o', 'cache=auto', '--thread-pool-size=64', '-f'],
      baseEnv(folder), log,
    );
    const stop = async (): Promise<void> => {
      await end(virtiofsd, 'SIGTERM');
      await unmount(mountPoint, fileSystem);
    };
    return { socket, log, groups: [fileSystem.pid, virtiofsd.pid], stop };
  } catch (error) {
    await unmount(mountPoint, fileSystem);
    throw error;
  }
}

function withVirtiofsd(program: string, programs: Programs): string | null {
  if (!installed(program)) return `${program} is not installed (apt-get install ${program})`;
  return existsSync(programs.cVirtiofsd) ? null : `${programs.cVirtiofsd} is not there`;
}

/** Uploads when a file is closed, and keeps what it read on disk. */
function s3fs(programs: Programs): Contender {
  return {
    name: 's3fs',
    mode: (durability) => (durability === 'cached' ? null : '-o use_cache (uploads at close)'),
    missing: () => withVirtiofsd('s3fs', programs),
    start: (bucket, _durability, folder) => {
      const [mountPoint, secrets, cache] = ['mount', 'passwd', 'cache'].map((name) => join(folder, name));
      writeFileSync(secrets, `${bucket.accessKeyId}:${bucket.secretAccessKey}\n`, { mode: 0o600 });
      const options = `url=${bucket.endpoint},use_path_request_style,passwd_file=${secrets},use_cache=${cache}`;
      return shareMount(['s3fs', bucket.name, mountPoint, '-f', '-o', options], mountPoint, folder, programs);
    },
  };
}

/** Uploads some seconds after a file was closed; without its cache, while it is written. */
function rclone(programs: Programs): Contender {
  const cacheMode = (durability: Durability): string => (durability === 'synchronous' ? 'off' : 'full');
  return {
    name: 'rclone',
    mode: (durability) => `--vfs-cache-mode ${cacheMode(durability)}`,
    missing: () => withVirtiofsd('rclone', programs),
    start: (bucket, durability, folder) => {
      const [mountPoint, config, cache] = ['mount', 'rclone.conf', 'cache'].map((name) => join(folder, name));
      const lines = [
        '[bench]', 'type = s3', 'provider = Ceph', `endpoint = ${bucket.endpoint}`, 'region = us-east-1',
        `access_key_id = ${bucket.accessKeyId}`, `secret_access_key = ${bucket.secretAccessKey}`, '',
      ];
      writeFileSync(config, lines.join('\n'), { mode: 0o600 });
      const mode = ['--vfs-cache-mode', cacheMode(durability), '--cache-dir', cache];
      return shareMount(['rclone', '--config', config, 'mount', `bench:${bucket.name}`, mountPoint, ...mode], mountPoint, folder, programs);
    },
  };
}

export function contenders(programs: Programs): Contender[] {
  return [ourselves(programs.ourArgs), s3fs(programs), rclone(programs), directory(programs.content)];
}

/** Debian's packages of these contenders, as far as they are absent, if that is allowed. What cannot be had is missing later. */
export function installPeers(taking: readonly Contender[]): void {
  const absent = taking.map(({ name }) => name).filter((name) => name !== OURS && name !== DIRECTORY && !installed(name));
  if (absent.length > 0) spawnSync(join(projectRoot, 'scripts/install-deps.sh'), absent, { stdio: ['ignore', 'inherit', 'inherit'] });
}

/** A folder for one stack; whatever was in it is gone. */
export function freshFolder(path: string): string {
  rmSync(path, { recursive: true, force: true });
  mkdirSync(path, { recursive: true });
  return path;
}
