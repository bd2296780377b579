/** Medians, ratios, the table and the JSON of a benchmark. */
import { cpus, release } from 'node:os';
import type { Daemon } from './daemons.js';
import { figure, unitsDone, type RowResult, type Run } from './measure.js';

interface Summary {
  readonly figure: number;
  readonly opsPerS: number;
  readonly p50Us: number;
  readonly p99Us: number;
  readonly cpuUsPerUnit: number;
  readonly peakRssMb: number;
  readonly noisePct: number;
  readonly runs: number;
}

export interface ReportRow {
  readonly name: string;
  readonly unit: string;
  readonly daemons: Record<string, Summary>;
  /** The subject's figure over that of the best of the others; `null` if one of the two is missing. */
  readonly ratio: number | null;
  readonly problems: readonly string[];
  readonly raw: Record<string, readonly Run[]>;
}

export interface Report {
  readonly subject: string;
  readonly peers: readonly string[];
  readonly rows: readonly ReportRow[];
  readonly geometricMean: number | null;
}

/** The middle value, or the mean of the two in the middle. `values` is not empty. */
export function median(values: readonly number[]): number {
  const sorted = values.toSorted((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[middle]! : (sorted[middle - 1]! + sorted[middle]!) / 2;
}

function geometricMean(values: readonly number[]): number | null {
  return values.length === 0 ? null : Math.exp(values.reduce((sum, value) => sum + Math.log(value), 0) / values.length);
}

function summarize(result: RowResult, runs: readonly Run[]): Summary {
  const { row } = result;
  const of = (pick: (run: Run) => number): number => median(runs.map(pick));
  return {
    figure: of((run) => figure(row, run)),
    opsPerS: of((run) => run.ops_per_s),
    p50Us: of((run) => run.p50_us),
    p99Us: of((run) => run.p99_us),
    cpuUsPerUnit: of((run) => (run.daemon_cpu_s * 1e6) / unitsDone(row, run)),
    peakRssMb: Math.max(...runs.map((run) => run.daemon_hwm_mb)),
    noisePct: of((run) => run.noise_pct),
    runs: runs.length,
  };
}

/** `subject` is the daemon whose ratio to the best of the others is wanted. */
export function makeReport(results: readonly RowResult[], daemons: readonly Daemon[], subject: string): Report {
  const peers = daemons.map((daemon) => daemon.name).filter((name) => name !== subject);
  const rows = results.map((result): ReportRow => {
    const summaries: Record<string, Summary> = {};
    for (const [name, runs] of result.runs) summaries[name] = summarize(result, runs);
    const best = Math.max(...peers.map((name) => summaries[name]?.figure ?? 0));
    const own = summaries[subject]?.figure;
    return {
      name: result.row.name,
      unit: result.row.unit,
      daemons: summaries,
      ratio: own !== undefined && best > 0 ? own / best : null,
      problems: [...new Set(result.problems)],
      raw: Object.fromEntries(result.runs),
    };
  });
  const ratios = rows.flatMap((row) => (row.ratio === null ? [] : [row.ratio]));
  return { subject, peers, rows, geometricMean: geometricMean(ratios) };
}

function layOut(lines: readonly (readonly string[])[]): string {
  const widths = lines[0]!.map((_, column) => Math.max(...lines.map((line) => line[column]!.length)));
  return lines
    .map((line) => line.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '))
    .join('\n');
}

/** The table: one line per row, for each daemon its figure, CPU time per operation and peak resident size. */
export function formatTable(report: Report): string {
  const names = [...report.peers, report.subject];
  const head = [
    'row',
    'unit',
    ...names,
    'ratio',
    ...names.map((name) => `cpu us ${name}`),
    ...names.map((name) => `MB ${name}`),
    'noise%',
  ];
  const lines = report.rows.map((row) => {
    const all = names.map((name) => row.daemons[name]);
    const cells = (text: (summary: Summary) => string): string[] => all.map((one) => (one ? text(one) : '-'));
    const noise = Math.max(0, ...all.map((one) => one?.noisePct ?? 0));
    return [
      row.name,
      row.unit,
      ...cells((one) => one.figure.toFixed(one.figure < 1000 ? 1 : 0)),
      row.ratio?.toFixed(2) ?? '-',
      ...cells((one) => one.cpuUsPerUnit.toFixed(2)),
      ...cells((one) => one.peakRssMb.toFixed(0)),
      noise.toFixed(0),
    ];
  });
  const notes = report.rows.flatMap((row) => row.problems.map((problem) => `${row.name}: ${problem}`));
  const below = report.rows.filter((row) => row.ratio !== null && row.ratio < 1);
  const ratios = report.rows.flatMap((row) => (row.ratio === null ? [] : [row.ratio]));
  const verdict =
    report.geometricMean === null
      ? 'no ratio: one daemon only'
      : `${report.subject} / best of ${report.peers.join(', ')}: geometric mean ${report.geometricMean.toFixed(2)}, ` +
        `lowest ${Math.min(...ratios).toFixed(2)}, below 1.0 in ${below.length} of ${ratios.length} rows`;
  return [layOut([head, ...lines]), '', verdict, ...notes].join('\n');
}

/** What the figures depend on beside the code. */
export function machine(): Record<string, unknown> {
  return { cpu: cpus()[0]?.model ?? 'unknown', cpus: cpus().length, kernel: release(), node: process.version };
}
