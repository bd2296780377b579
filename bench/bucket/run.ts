/** One job by one contender: started afresh, each pass measured, what was written looked for in the bucket. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { createInterface } from 'node:readline';
import { setTimeout as sleep } from 'node:timers/promises';
import { projectRoot, vufsBinary } from '../vufs.js';
import { flatName, SMALL_FILE_BYTES, SOURCE_BYTES, sourceName } from './content.js';
import { freshFolder, type Bucket, type Contender, type Stack } from './contenders.js';
import type { PlainTask } from './plain.js';
import { resetPeak, usage } from './processes.js';
import { PREPARED, type Job, type Sizes } from './rows.js';
import type { Server } from './server.js';

/** A pass, as `vufs guest` and plain.ts report it. */
interface Reported {
  readonly pass: string;
  readonly seconds: number;
  readonly done: number;
  readonly total: number;
  readonly bytes: number;
  readonly complete: boolean;
  readonly errors: number;
  readonly first_error: string;
  readonly bad_data: number;
  readonly anomalies: number;
  readonly requests?: number;
  readonly p50_ms?: number;
  readonly p99_ms?: number;
  readonly flush_s?: number;
}

export interface Run extends Reported {
  /** Of the contender's processes, until everything is stored. */
  readonly cpu_s: number;
  readonly peak_mb: number;
  /** The share of the machine that others took. */
  readonly noise_pct: number;
  /** Until everything that was written was in the bucket; null: it was not in time. Missing: nothing was written. */
  readonly stored_s?: number | null;
  /** What is wrong with what is in the bucket, or is not. */
  readonly storeProblems: readonly string[];
  readonly problems: readonly string[];
}

export interface Settings {
  readonly sizes: Sizes;
  /** Seconds after which a pass begins nothing more. */
  readonly limit_s: number;
}

/** To be ready, beyond what the job may take. */
const READY_TIMEOUT_MS = 60_000;
const POLL_MS = 100;
/** What is written back later gets at least so long: rclone waits 5 s before it begins. */
const STORED_PATIENCE_MS = 30_000;
/** Pages of a large object, or small files, that are compared after they were written. */
const SAMPLES = 16;

/** The other end of the protocol of `vufs guest`. */
class Client {
  readonly #lines: string[] = [];
  #stderr = '';
  readonly #child: ChildProcess;
  readonly #ended: Promise<unknown>;
  #wake: () => void = () => undefined;
  #over = false;

  constructor(argv: readonly string[]) {
    const child = spawn(argv[0], argv.slice(1), { stdio: ['pipe', 'pipe', 'pipe'] });
    this.#child = child;
    child.stdin.on('error', () => undefined); // it has ended: told where its line is missing
    child.stderr.setEncoding('utf8').on('data', (text: string) => (this.#stderr = (this.#stderr + text).slice(-2000)));
    createInterface({ input: child.stdout }).on('line', (line) => {
      this.#lines.push(line);
      this.#wake();
    });
    this.#ended = once(child, 'close').then(() => {
      this.#over = true;
      this.#wake();
    });
  }

  get pid(): number {
    return this.#child.pid!;
  }

  go(): void {
    this.#child.stdin!.write('\n');
  }

  async line(timeout_ms: number, signal: AbortSignal): Promise<unknown> {
    const end = AbortSignal.any([signal, AbortSignal.timeout(timeout_ms)]);
    end.addEventListener('abort', () => this.#wake(), { once: true });
    for (;;) {
      const line = this.#lines.shift();
      if (line !== undefined) return JSON.parse(line);
      signal.throwIfAborted();
      if (end.aborted) throw new Error(`no answer in ${Math.round(timeout_ms / 1000)} s`);
      if (this.#over) throw new Error(this.#stderr.trim().split('\n').at(-1) || 'the client ended');
      await new Promise<void>((resolve) => (this.#wake = resolve));
    }
  }

  /** It ends by itself when told to go on for the last time. */
  async end(polite: boolean): Promise<void> {
    if (polite) {
      this.go();
      await Promise.race([this.#ended, sleep(10_000, undefined, { ref: false })]);
    }
    this.#child.kill('SIGKILL');
    await this.#ended;
  }
}

export interface Task {
  readonly job: Job;
  readonly bucket: Bucket;
  /** Of what is read or written. */
  readonly path: string;
}

function guestArgs({ job, path }: Task, socket: string, { sizes, limit_s }: Settings): string[] {
  const count = String(job.count?.(sizes) ?? 1);
  return [
    vufsBinary, 'guest', socket, job.job, '--path', path, '--size', String(sizes.size), '--files', count, '--count', count, '--qd', String(job.qd ?? 1),
    '--fsize', String(SMALL_FILE_BYTES), '--limit', String(limit_s), '--req-timeout', String(limit_s), '--connect-timeout', '30',
    ...(job.bs === undefined ? [] : ['--bs', String(job.bs)]),
  ];
}

function plainArgs({ job, bucket, path }: Task, { sizes, limit_s }: Settings): string[] {
  const task: PlainTask = { bucket, path, job: job.job, size: sizes.size, bs: job.bs ?? 1, count: job.count?.(sizes) ?? 1, limit_s };
  return [process.execPath, join(projectRoot, 'build/bench/bucket/plain.js'), JSON.stringify(task)];
}

/** Names of passes: what a job writes is looked for after its only one. */
const passesOf = ({ job }: Job): number => (job === 'random-read' ? 2 : 1);

async function waitStored(server: Server, task: Task, reported: Reported, patience_ms: number): Promise<boolean> {
  const objects = task.job.job === 'write-file' ? 1 : reported.done;
  for (const until = performance.now() + patience_ms; ; await sleep(POLL_MS)) {
    const there = await server.stored(task.path);
    if (there.objects >= objects && there.bytes >= reported.bytes) return true;
    if (performance.now() >= until) return false;
  }
}

async function wrongContent(server: Server, { job, path }: Task, { done }: Reported): Promise<string[]> {
  const sample = async (index: number): Promise<boolean> => {
    if (job.job === 'write-file') return server.holds(path, Math.floor((index * done) / SAMPLES / 4096) * 4096, 4096, 0);
    const file = Math.floor((index * done) / SAMPLES);
    if (job.job === 'untar') return server.holds(`${path}/${sourceName(file)}`, 0, SOURCE_BYTES[file % SOURCE_BYTES.length], file);
    return server.holds(`${path}/${flatName(file)}`, 0, SMALL_FILE_BYTES, file);
  };
  const right = await Promise.all(Array.from({ length: done === 0 ? 0 : SAMPLES }, (_, index) => sample(index)));
  const wrong = right.filter((good) => !good).length;
  return wrong > 0 ? [`${wrong} of ${SAMPLES} samples in the bucket are not what was written`] : [];
}

async function measurePass(client: Client, groups: readonly number[], server: Server, task: Task, { limit_s }: Settings, signal: AbortSignal): Promise<Run> {
  const { durability } = task.job;
  resetPeak(groups);
  const before = usage(groups, [server.pid]);
  client.go();
  const reported = (await client.line(2 * limit_s * 1000 + READY_TIMEOUT_MS, signal)) as Reported;
  const patience_ms = durability === 'cached' ? Math.max(limit_s * 1000, STORED_PATIENCE_MS) : 0;
  const stored = durability === 'none' || (await waitStored(server, task, reported, patience_ms));
  const after = usage(groups, [server.pid]);
  const problems = [
    ...(reported.errors > 0 ? [`${reported.errors} errors, the first ${reported.first_error}`] : []),
    ...(reported.bad_data + reported.anomalies > 0 ? [`${reported.bad_data} replies with wrong data, ${reported.anomalies} protocol anomalies`] : []),
  ];
  const storeProblems = stored
    ? durability === 'none' ? [] : await wrongContent(server, task, reported)
    : [durability === 'cached' ? `not all in the bucket ${patience_ms / 1000} s later` : 'not all was in the bucket when the last close returned'];
  return {
    ...reported,
    cpu_s: after.cpu_s - before.cpu_s,
    peak_mb: after.peak_mb,
    noise_pct: Math.max(0, (100 * (after.busy_s - before.busy_s - (after.own_s - before.own_s))) / Math.max(0.01, after.all_s - before.all_s)),
    ...(durability === 'none' ? {} : { stored_s: stored ? Math.max(reported.seconds, (after.at_ms - before.at_ms) / 1000) : null }),
    storeProblems,
    problems,
  };
}

/** The passes of a job. `contender` null: plain calls. Throws with a sentence when it could not be run. */
export async function runJob(
  contender: Contender | null, task: Task, server: Server, settings: Settings, folder: string, signal: AbortSignal,
): Promise<Run[]> {
  let stack: Stack | null = null;
  let client: Client | null = null;
  let polite = false;
  try {
    if (contender !== null) stack = await contender.start(task.bucket, task.job.durability, freshFolder(folder));
    client = new Client(stack === null ? plainArgs(task, settings) : guestArgs(task, stack.socket, settings));
    await client.line(READY_TIMEOUT_MS, signal);
    const groups = stack?.groups ?? [client.pid];
    const runs: Run[] = [];
    for (let i = 0; i < passesOf(task.job); i++) runs.push(await measurePass(client, groups, server, task, settings, signal));
    polite = true;
    return runs;
  } catch (error) {
    signal.throwIfAborted();
    const log = stack === null ? '' : readFileSync(stack.log, 'utf8').trim().split('\n').at(-1);
    throw new Error(`${(error as Error).message}${log ? `; last in its log: ${log.slice(0, 300)}` : ''}`);
  } finally {
    await client?.end(polite);
    await stack?.stop();
    if (PREPARED[task.job.job] === undefined) await server.remove(task.path);
  }
}
