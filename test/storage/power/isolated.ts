/**
 * A program of the tests in namespaces of its own: whatever it mounts, starts and attaches is gone with it, also when it or the test is killed.
 */
import { spawn } from 'node:child_process';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const UNSHARE = ['--mount', '--propagation', 'private', '--pid', '--fork', '--kill-child=SIGKILL', '--mount-proc'];
const PREFIX = 'bucketfsd-isolated-';

/**
 * Run build/test/storage/power/`program` with a temporary directory and these parameters as JSON; it prints a line of JSON for each of its results.
 * @throws with what it printed on standard error, unless it ends with 0
 */
export async function isolated<T>(program: string, parameters: unknown, result: (one: T) => void): Promise<void> {
  removeLeftovers();
  const directory = mkdtempSync(join(tmpdir(), `${PREFIX}${process.pid}-`));
  const script = fileURLToPath(new URL(program, import.meta.url));
  const child = spawn('unshare', [...UNSHARE, process.execPath, '--enable-source-maps', script, directory, JSON.stringify(parameters)], { stdio: ['pipe', 'pipe', 'pipe'] });
  let errors = '';
  child.stderr.on('data', (chunk: Buffer) => (errors += chunk.toString()));
  createInterface({ input: child.stdout }).on('line', (line) => result(JSON.parse(line) as T));
  try {
    const [code, signal] = (await once(child, 'close')) as [number | null, string | null];
    if (code !== 0) throw new Error(`${program} ended with ${code ?? signal}: ${errors}`);
  } finally {
    rmSync(directory, { recursive: true, force: true });
  }
}

/** Directories of tests that were killed. */
function removeLeftovers(): void {
  for (const name of readdirSync(tmpdir())) {
    const pid = name.startsWith(PREFIX) ? name.slice(PREFIX.length).split('-')[0] : null;
    if (pid !== null && !existsSync(`/proc/${pid}`)) rmSync(join(tmpdir(), name), { recursive: true, force: true });
  }
}

/** The program's side: its directory and parameters. It ends when the test does. */
export function isolatedProgram<P>(): { directory: string; parameters: P } {
  process.stdin.on('end', () => process.exit(1)).resume();
  process.stdin.unref();
  return { directory: process.argv[2], parameters: JSON.parse(process.argv[3]) as P };
}

export const tell = (result: unknown): void => void process.stdout.write(`${JSON.stringify(result)}\n`);
