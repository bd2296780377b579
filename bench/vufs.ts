/** The C client (`bench/vufs`): building it, and running it against a daemon that it starts and stops itself. */
import { spawn, spawnSync } from 'node:child_process';
import { mkdirSync } from 'node:fs';
import { cpus } from 'node:os';
import { join } from 'node:path';
import { fileURLToPath } from 'node:url';
import type { Daemon } from './daemons.js';

/** The checkout: this file runs as build/bench/vufs.js. */
export const projectRoot = fileURLToPath(new URL('../..', import.meta.url));

const outputDir = join(projectRoot, '.cache/vufs');
export const vufsBinary = join(outputDir, 'vufs');

/** Makes `.cache/vufs/vufs` if it is absent or older than its sources. Throws with the compiler's output. */
export function buildVufs(): void {
  mkdirSync(outputDir, { recursive: true });
  const source = join(projectRoot, 'bench/vufs');
  const made = spawnSync('make', ['-s', '-C', source, `OUT=${outputDir}`], { encoding: 'utf8' });
  if (made.error) throw new Error(`cannot build bench/vufs: ${made.error.message} (make and gcc are needed)`);
  if (made.status !== 0) throw new Error(`cannot build bench/vufs:\n${made.stdout}${made.stderr}`);
}

/** Where the client and the daemon may run. One CPU is not enough to part them. */
export function pinning(wanted: boolean): string[] {
  const count = cpus().length;
  if (!wanted || count < 2) return [];
  return ['--cpu', '0', '--daemon-cpu', count === 2 ? '1' : `1-${count - 1}`];
}

export interface VufsResult {
  /** What it printed, one JSON object, or `undefined` if it could not run. */
  readonly json: Record<string, unknown> | undefined;
  readonly status: number | null;
  readonly stderr: string;
}

/** A place for one daemon: its shared directory, socket and log. */
export interface Place {
  readonly shared: string;
  readonly socket: string;
  readonly log: string;
}

/** Creates the shared directory of `daemon` below `workDir`. */
export function makePlace(workDir: string, daemon: Daemon): Place {
  const shared = join(workDir, `share-${daemon.name}`);
  mkdirSync(shared, { recursive: true });
  return { shared, socket: join(workDir, `${daemon.name}.sock`), log: join(workDir, `${daemon.name}.log`) };
}

/**
 * Runs `vufs COMMAND SOCKET ARGS` against a fresh process of `daemon`. An abort of `signal` ends the client, which
 * takes the daemon with it.
 */
export async function runVufs(
  daemon: Daemon,
  place: Place,
  command: string,
  args: readonly string[],
  signal: AbortSignal,
): Promise<VufsResult> {
  const line = daemon.command.replaceAll('{DIR}', place.shared);
  const argv = [command, place.socket, ...args, '--restart', line, '--log', place.log];
  const child = spawn(vufsBinary, argv, { stdio: ['ignore', 'pipe', 'pipe'] });
  const stop = (): void => void child.kill('SIGTERM');
  signal.addEventListener('abort', stop, { once: true });
  let stdout = '';
  let stderr = '';
  child.stdout.setEncoding('utf8').on('data', (text: string) => (stdout += text));
  child.stderr.setEncoding('utf8').on('data', (text: string) => (stderr += text));
  try {
    const status = await new Promise<number | null>((resolve, reject) => {
      child.on('error', reject);
      child.on('close', resolve);
    });
    signal.throwIfAborted();
    return { json: parse(stdout), status, stderr: stderr.trim() };
  } finally {
    signal.removeEventListener('abort', stop);
  }
}

function parse(text: string): Record<string, unknown> | undefined {
  try {
    return JSON.parse(text) as Record<string, unknown>;
  } catch {
    return undefined; // nothing, or cut short: the status and stderr tell why
  }
}
