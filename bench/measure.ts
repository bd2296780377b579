/** Runs of the matrix: which daemon when, what a run yields, and whether all daemons did the same work. */
import type { Daemon } from './daemons.js';
import { runVufs, type Place } from './vufs.js';
import type { Row } from './workloads.js';

/** One run, as `vufs bench` reports it. */
export interface Run {
  readonly ops: number;
  readonly reqs: number;
  readonly bs: number;
  readonly ops_per_s: number;
  readonly mb_per_s: number;
  readonly entries_per_s: number;
  readonly p50_us: number;
  readonly p99_us: number;
  readonly kicks: number;
  readonly calls: number;
  readonly errors: number;
  readonly anomalies: number;
  readonly bad_data: number;
  readonly noise_pct: number;
  readonly daemon_cpu_s: number;
  readonly daemon_hwm_mb: number;
  readonly fatal: string | null;
}

export interface Settings {
  readonly rounds: number;
  /** Seconds measured, and seconds before that. */
  readonly timeS: number;
  readonly warmupS: number;
  /** A run with more noise than this is made again, up to `retries` times; the quietest counts. */
  readonly maxNoisePct: number;
  readonly retries: number;
  /** Further arguments to vufs, pinning among them. */
  readonly vufsArgs: readonly string[];
}

export interface Target {
  readonly daemon: Daemon;
  readonly place: Place;
}

/** The results of one row: runs by daemon name, and what went wrong in words. */
export interface RowResult {
  readonly row: Row;
  readonly runs: Map<string, Run[]>;
  readonly problems: string[];
}

/** The figure by which a row is compared. */
export function figure(row: Row, run: Run): number {
  if (row.unit === 'entries/s') return run.entries_per_s;
  return row.unit === 'MB/s' ? run.mb_per_s : run.ops_per_s;
}

/** What one unit of a row's work is, for CPU time per unit: an entry of a listing, or an operation. */
export function unitsDone(row: Row, run: Run): number {
  return row.unit === 'entries/s' ? (run.ops * run.entries_per_s) / run.ops_per_s : run.ops;
}

async function runOnce(
  target: Target,
  row: Row,
  args: readonly string[],
  signal: AbortSignal,
): Promise<Run | string> {
  const result = await runVufs(target.daemon, target.place, 'bench', [...row.args, ...args], signal);
  const run = result.json as unknown as Run | undefined;
  if (run !== undefined && result.status === 0 && run.fatal === null) return run;
  const why = run?.fatal ?? (result.stderr || `vufs ended with status ${result.status}`);
  return why.split('\n')[0]!;
}

/**
 * A short verified run of each row against each daemon: it makes the data sets, so that no timed run has to, and shows
 * that all daemons are asked for the same work and do it.
 */
export async function checkEqual(
  targets: readonly Target[],
  result: RowResult,
  settings: Settings,
  signal: AbortSignal,
): Promise<void> {
  const args = ['--verify', '--time', '0.1', '--warmup', '0', ...settings.vufsArgs];
  const perOp = new Map<string, string>();
  for (const target of targets) {
    const { name } = target.daemon;
    const run = await runOnce(target, result.row, args, signal);
    if (typeof run === 'string') {
      result.problems.push(`${name}: ${run}`);
      continue;
    }
    if (run.anomalies + run.errors + run.bad_data > 0)
      result.problems.push(
        `${name}: ${run.errors} errors, ${run.bad_data} blocks of wrong data, ${run.anomalies} protocol anomalies`,
      );
    // How many entries a daemon packs in one READDIRPLUS reply is its own business; vufs counts the entries.
    const requests = result.row.unit === 'entries/s' ? 'as many as it takes' : (run.reqs / run.ops).toFixed(1);
    perOp.set(name, `${requests} requests of ${run.bs} bytes per operation`);
  }
  if (new Set(perOp.values()).size > 1)
    result.problems.push(`not the same work: ${[...perOp].map(([name, what]) => `${name} ${what}`).join(', ')}`);
}

async function quietRun(target: Target, row: Row, settings: Settings, signal: AbortSignal): Promise<Run | string> {
  const args = ['--time', String(settings.timeS), '--warmup', String(settings.warmupS), ...settings.vufsArgs];
  let best: Run | string = 'not run';
  for (let attempt = 0; attempt <= settings.retries; attempt++) {
    const run = await runOnce(target, row, args, signal);
    if (typeof run === 'string') return typeof best === 'string' ? run : best;
    if (typeof best === 'string' || run.noise_pct < best.noise_pct) best = run;
    if (best.noise_pct <= settings.maxNoisePct) break;
  }
  return best;
}

/** One round of one row: every daemon once, starting with another one each round. */
export async function measureRow(
  targets: readonly Target[],
  result: RowResult,
  round: number,
  settings: Settings,
  signal: AbortSignal,
): Promise<void> {
  for (let i = 0; i < targets.length; i++) {
    const target = targets[(i + round) % targets.length]!;
    const { name } = target.daemon;
    const run = await quietRun(target, result.row, settings, signal);
    if (typeof run === 'string') {
      result.problems.push(`${name}: ${run}`);
      continue;
    }
    if (run.errors + run.anomalies > 0)
      result.problems.push(`${name}: ${run.errors} errors, ${run.anomalies} protocol anomalies`);
    const runs = result.runs.get(name);
    if (runs) runs.push(run);
    else result.runs.set(name, [run]);
  }
}
