/** Records on one base file system and on shares over it, in namespaces of its own (test/storage/power/isolated.ts starts it). */
import { spawn, spawnSync, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { mkdirSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { vufsBinary } from '../../bench/vufs.js';
import { DaemonProcess } from '../support/daemon.js';
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js';
import { isolatedProgram, tell } from '../storage/power/isolated.js';
import { DIRECTORY_OPTIONS, featuresOf, type Base, type ShareKind } from './shares.js';

export interface Parameters {
  readonly base: Base;
  readonly shares: readonly ShareKind[];
  /** The recording program. */
  readonly posix: string;
  /** Only recordings whose name or file contains it. */
  readonly part: string;
}

export interface Recorded {
  readonly share: ShareKind;
  readonly expected: string;
  readonly got: string;
  readonly log: string;
  /** The facts about locks, where the daemon keeps them; else nothing. */
  readonly facts: string;
}

const IMAGE_BYTES = 1 << 30;
/** The namespaces end with this process in any case. */
const LIFE_MS = 600_000;
const MAKE: Record<Exclude<Base, 'tmpfs'>, readonly string[]> = { ext4: ['mkfs.ext4', '-q', '-F'], xfs: ['mkfs.xfs', '-q', '-f'] };

const { directory, parameters } = isolatedProgram<Parameters>();
const { base, shares, posix, part } = parameters;

function run(command: string, ...args: string[]): string {
  const { status, stdout, stderr, error } = spawnSync(command, args, { encoding: 'utf8', maxBuffer: 1 << 26 });
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`);
  return stdout;
}

function mountBase(at: string): void {
  mkdirSync(at);
  if (base === 'tmpfs') return void run('mount', '-t', 'tmpfs', '-o', 'size=512m', 'none', at);
  const image = join(directory, 'image');
  writeFileSync(image, '');
  truncateSync(image, IMAGE_BYTES);
  const [make, ...options] = MAKE[base];
  run(make, ...options, image);
  run('mount', '-o', 'loop', image, at);
}

const record = (at: string, features: string): Promise<string> => runPosix(at, 'mkdir "$1" && exec "$0" record "$@"', features, part);
/** Linux sends INTERRUPT to a FUSE server, other than to a virtiofs device. */
const lockFacts = (at: string): Promise<string> => runPosix(at, 'mkdir "$1" && exec "$0" "$@"', 'interrupt', 'locks.c');

/** Without blocking this process, which may serve the bucket. */
async function runPosix(at: string, script: string, features: string, which: string): Promise<string> {
  const child = spawn('sh', ['-c', script, posix, at, features, which], { stdio: ['ignore', 'pipe', 'inherit'], env: { ...process.env, FACT_SECONDS: '120' } });
  let output = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (output += text));
  await once(child, 'close');
  return output;
}

async function mounted(socket: string, at: string, queues: number): Promise<ChildProcess> {
  mkdirSync(at);
  const child = spawn(vufsBinary, ['mount', socket, at, '--queues', String(queues)], { stdio: ['ignore', 'pipe', 'inherit'] });
  const [said] = (await Promise.race([once(child.stdout!, 'data'), once(child, 'close')])) as [unknown];
  if (String(said) !== 'mounted\n') throw new Error(`vufs cannot mount ${socket}`);
  return child;
}

const PROVIDERS = { s3: s3Provider, gcs: gcsProvider } as const;

async function recordShare(share: ShareKind, place: string, name: string): Promise<{ got: string; log: string; facts: string }> {
  const [home, socket, at] = [join(place, name), join(directory, `${name}.sock`), join(directory, name)];
  mkdirSync(home, { mode: 0o755 });
  const provider: Provider | null = share.store === 'directory' ? null : await PROVIDERS[share.store]('recordings');
  const own = provider === null ? ['--source', home, ...DIRECTORY_OPTIONS] : ['--source', provider.source, ...provider.options, '--privileged-metadata', '--cache-dir', home];
  const daemon = await DaemonProcess.start(['--socket-path', socket, '--log-level', 'info', ...own, ...share.options], { env: provider?.env ?? {}, life_ms: LIFE_MS });
  try {
    const client = await mounted(socket, at, share.queues);
    try {
      const got = await record(join(at, 'recordings'), featuresOf(share));
      const facts = share.options.includes('--posix-lock') ? await lockFacts(join(at, 'facts')) : '';
      return { got, facts, log: daemon.stderr };
    } finally {
      run('umount', '--lazy', at);
      if (client.exitCode === null) await once(client, 'close');
    }
  } finally {
    await daemon.stop('SIGKILL');
    await provider?.stop();
    rmSync(home, { recursive: true, force: true });
  }
}

const place = join(directory, 'base');
mountBase(place);
const references = new Map<string, string>();
for (const [i, share] of shares.entries()) {
  const features = featuresOf(share);
  let expected = references.get(features);
  if (expected === undefined) references.set(features, (expected = await record(join(place, `reference${references.size}`), features)));
  const recorded = await recordShare(share, place, `share${i}`);
  tell({ share, expected, ...recorded } satisfies Recorded);
}
run('umount', '--lazy', place);
process.stdout.write('', () => process.exit(0));
