/** The table of the comparison on a bucket, and its JSON. */
import { median } from '../report.js';
import { DIRECTORY } from './contenders.js';
import { jobKey, type Row } from './rows.js';
import type { Run } from './run.js';

/** Plain calls, beside the contenders. */
export const PLAIN = 'store';

/** What one contender did of one job at one latency: runs of its passes, and what kept it from it. */
export interface Result {
  readonly latency_ms: number;
  readonly job: string;
  readonly contender: string;
  readonly runs: Run[];
  readonly problems: string[];
}

/** Errors, wrong data, or data that is missing in the bucket: not that it took long. */
export function hasFailed({ problems, runs }: Result): boolean {
  return problems.length > 0 || runs.some((run) => run.problems.length > 0 || run.storeProblems.length > 0);
}

interface Cell {
  readonly figure: number;
  /** Some runs did not do all in the time that they had. */
  readonly partial: boolean;
  readonly cpu_s: number;
  readonly peak_mb: number;
  readonly noise_pct: number;
}

export interface Line {
  readonly latency_ms: number;
  readonly row: string;
  readonly unit: string;
  readonly cells: Readonly<Record<string, Cell>>;
  /** The subject's figure over that of the best peer, over that of plain calls, and over that of a directory of the host. */
  readonly ratio: number | null;
  readonly ofLimit: number | null;
  readonly ofDirectory: number | null;
  readonly problems: readonly string[];
}

function figure(row: Row, run: Run): number | null {
  const seconds = row.untilStored ? run.stored_s : run.seconds;
  if (seconds === undefined || seconds === null || seconds <= 0 || run.done === 0) return null;
  return row.unit === 'MB/s' ? run.bytes / seconds / 1e6 : run.done / seconds;
}

function cellOf(row: Row, result: Result | undefined): Cell | null {
  const runs = (result?.runs ?? []).filter((run) => run.pass === row.pass && figure(row, run) !== null);
  if (runs.length === 0) return null;
  const of = (pick: (run: Run) => number): number => median(runs.map(pick));
  return {
    figure: of((run) => figure(row, run)!),
    partial: runs.some(({ complete }) => !complete),
    cpu_s: of(({ cpu_s }) => cpu_s),
    peak_mb: Math.max(...runs.map(({ peak_mb }) => peak_mb)),
    noise_pct: of(({ noise_pct }) => noise_pct),
  };
}

/** A job has two rows when it is written back: one is about the guest, one about the bucket. */
function problemsOf(row: Row, { problems, runs }: Result): string[] {
  const mine = runs.filter(({ pass }) => pass === row.pass);
  const stored = mine.flatMap(({ storeProblems }) => storeProblems);
  if (row.untilStored) return stored;
  const partial = mine.flatMap(({ complete, done, total }) => (complete ? [] : [`${done} of ${total} in the time allowed`]));
  return [...problems, ...mine.flatMap((run) => run.problems), ...partial, ...(row.job.durability === 'cached' ? [] : stored)];
}

/** `names`: of those with a column, the subject first, PLAIN last if it is there. */
export function makeLines(rows: readonly Row[], latencies: readonly number[], names: readonly string[], results: readonly Result[]): Line[] {
  const [subject, ...others] = names;
  return latencies.flatMap((latency_ms) => rows.map((row): Line => {
    const mine = results.filter((result) => result.latency_ms === latency_ms && result.job === jobKey(row.job));
    const cells: Record<string, Cell> = {};
    for (const name of names) {
      const cell = cellOf(row, mine.find(({ contender }) => contender === name));
      if (cell !== null) cells[name] = cell;
    }
    const own = cells[subject]?.figure;
    const over = (those: readonly string[]): number | null => {
      const figures = those.flatMap((name) => cells[name]?.figure ?? []);
      return own === undefined || figures.length === 0 ? null : own / Math.max(...figures);
    };
    const peers = others.filter((name) => name !== PLAIN && name !== DIRECTORY);
    const problems = mine.flatMap((result) => problemsOf(row, result).map((text) => `${result.contender}: ${text}`));
    const ratios = { ratio: over(peers), ofLimit: over([PLAIN]), ofDirectory: over([DIRECTORY]) };
    return { latency_ms, row: row.name, unit: row.unit, cells, ...ratios, problems: [...new Set(problems)] };
  }));
}

const short = (value: number | null): string => value === null ? '-' : value.toFixed(value < 10 ? 2 : value < 1000 ? 1 : 0);

function layOut(table: readonly (readonly string[])[]): string {
  const widths = table[0].map((_, column) => Math.max(...table.map((line) => line[column].length)));
  return table.map((line) => line.map((cell, i) => (i < 2 ? cell.padEnd(widths[i]) : cell.padStart(widths[i]))).join('  ').trimEnd()).join('\n');
}

/** `modes`: how each contender runs, by kind of row. */
export function formatLines(lines: readonly Line[], names: readonly string[], modes: readonly string[]): string {
  const [subject] = names;
  const head = ['row', 'unit', ...names, '/best peer', '/store', '/directory', ...names.map((name) => `cpu s ${name}`), ...names.map((name) => `MB ${name}`), 'noise%'];
  const sections = [...new Set(lines.map(({ latency_ms }) => latency_ms))].map((latency_ms) => {
    const own = lines.filter((line) => line.latency_ms === latency_ms);
    const table = own.map(({ row, unit, cells, ratio, ofLimit, ofDirectory }) => {
      const of = (text: (cell: Cell) => string): string[] => names.map((name) => (cells[name] === undefined ? '-' : text(cells[name])));
      const noise = Math.max(0, ...Object.values(cells).map(({ noise_pct }) => noise_pct));
      return [
        row, unit, ...of(({ figure, partial }) => `${short(figure)}${partial ? '*' : ''}`), short(ratio), short(ofLimit), short(ofDirectory),
        ...of(({ cpu_s }) => short(cpu_s)), ...of(({ peak_mb }) => peak_mb.toFixed(0)), noise.toFixed(0),
      ];
    });
    const notes = own.flatMap(({ row, problems }) => problems.map((problem) => `  ${row}: ${problem}`));
    return [`${latency_ms} ms of latency added in each direction`, layOut([head, ...table]), ...(notes.length > 0 ? ['notes:', ...new Set(notes)] : [])].join('\n');
  });
  const ratios = lines.flatMap(({ ratio }) => (ratio === null ? [] : [ratio]));
  const behind = ratios.filter((ratio) => ratio < 1).length;
  const verdict = ratios.length === 0 ? 'no peer to compare with' : `${subject} / best peer: below 1.0 in ${behind} of ${ratios.length} rows, lowest ${short(Math.min(...ratios))}`;
  return [...sections, `* not all was done in the time allowed (--limit)\n${modes.join('\n')}`, verdict].join('\n\n');
}
