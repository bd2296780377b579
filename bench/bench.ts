/**
 * `npm run bench`: the C virtiofsd, a Rust one if VIRTIOFSD names it, and this project's daemon under the same
 * client, interleaved, each on a directory of its own on the same file system.
 */
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { C_VIRTIOFSD, chooseDaemons, OURS, type Daemon } from './daemons.js';
import { checkEqual, measureRow, type RowResult, type Settings, type Target } from './measure.js';
import { formatTable, machine, makeReport } from './report.js';
import { buildVufs, makePlace, pinning, projectRoot } from './vufs.js';
import { selectRows } from './workloads.js';

/** Where Debian's qemu-system-common has it. */
const JSON_FILE = join(projectRoot, '.cache/bench.json');

const OPTIONS = {
  rounds: { type: 'string', default: '5', help: 'N      rounds; medians are taken over them (5)' },
  time: { type: 'string', default: '1', help: 'S      seconds measured per run (1)' },
  warmup: { type: 'string', default: '0.5', help: 'S      seconds of the same load before that (0.5)' },
  only: { type: 'string', multiple: true, help: 'TEXT   rows whose name contains TEXT; may be repeated' },
  dir: { type: 'string', default: '/dev/shm', help: 'DIR    where the shared directories are made (/dev/shm)' },
  daemons: { type: 'string', default: '', help: `A,B    only these of: c, rust, ${OURS}` },
  daemon: { type: 'string', multiple: true, help: "N=CMD  one more daemon, as 'exec … {SOCK} … {DIR} …'" },
  subject: { type: 'string', default: '', help: `NAME   whose ratio to the best other is shown (${OURS})` },
  'daemon-args': { type: 'string', default: '', help: `ARGS   appended to the command line of ${OURS}` },
  'c-virtiofsd': { type: 'string', default: C_VIRTIOFSD, help: `PATH   the C virtiofsd (${C_VIRTIOFSD})` },
  'vufs-args': { type: 'string', default: '', help: 'ARGS   appended to those of the client (bench/vufs/README.md)' },
  'max-noise': { type: 'string', default: '10', help: 'PCT    a run with more noise than this is made again (10)' },
  retries: { type: 'string', default: '2', help: 'N      how often; the quietest run counts (2)' },
  json: { type: 'string', default: JSON_FILE, help: 'FILE   results with every run (.cache/bench.json)' },
  'no-check': { type: 'boolean', help: '       skip the verified run of each row at the beginning' },
  'no-pin': { type: 'boolean', help: '       do not pin the client to CPU 0 and the daemon to the others' },
  list: { type: 'boolean', help: '       list the rows' },
  keep: { type: 'boolean', help: '       leave directories and logs in place' },
  help: { type: 'boolean', help: '' },
} as const;

const USAGE = `make bench BENCH_ARGS='[options]'     or: node build/bench/bench.js [options]

Environment: VIRTIOFSD is the command (or command prefix) of a Rust virtiofsd; without it that column is missing.

${Object.entries(OPTIONS)
  .map(([name, { help }]) => `  --${name.padEnd(12)} ${help}`)
  .join('\n')}

Columns: the figure of each daemon (median), the ratio, the daemon's CPU time per operation (per entry of
readdirplus), its peak resident size with the guest memory that it touched, and noise%: the share of CPU time that
others took, or that client or daemon had to wait for (median of the runs, the worst daemon's). Above some 10 percent
a row is not to be trusted.
`;

function positive(text: string, name: string): number {
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} takes a positive number, not ${text}`);
  return value;
}

function words(text: string): string[] {
  return text.split(/[\s,]+/).filter((word) => word !== '');
}

type Values = ReturnType<typeof readOptions>;

function readOptions() {
  return parseArgs({ options: OPTIONS, allowPositionals: false }).values;
}

function settingsOf(values: Values): Settings {
  return {
    rounds: Math.ceil(positive(values.rounds, 'rounds')),
    timeS: positive(values.time, 'time'),
    warmupS: Math.max(0, Number(values.warmup) || 0),
    maxNoisePct: positive(values['max-noise'], 'max-noise'),
    retries: Math.max(0, Number(values.retries) || 0),
    vufsArgs: [...pinning(!values['no-pin']), ...values['vufs-args'].split(/\s+/).filter((word) => word !== '')],
  };
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

async function runMatrix(
  targets: readonly Target[],
  results: readonly RowResult[],
  settings: Settings,
  check: boolean,
  signal: AbortSignal,
): Promise<void> {
  for (const result of check ? results : []) {
    progress(`checking ${result.row.name}`);
    await checkEqual(targets, result, settings, signal);
  }
  for (let round = 0; round < settings.rounds; round++) {
    for (const result of results) {
      progress(`round ${round + 1} of ${settings.rounds}: ${result.row.name}`);
      await measureRow(targets, result, round, settings, signal);
    }
  }
  progress('');
}

function pickSubject(wanted: string, daemons: readonly Daemon[]): string {
  const names = daemons.map((daemon) => daemon.name);
  const subject = wanted || (names.includes(OURS) ? OURS : names.at(-1)!);
  if (!names.includes(subject)) throw new Error(`--subject ${subject} is not among ${names.join(', ')}`);
  return subject;
}

async function bench(values: Values): Promise<number> {
  const settings = settingsOf(values);
  const rows = selectRows(values.only ?? []);
  if (rows.length === 0) throw new Error('no row has such a name: see --list');
  const { daemons, leftOut } = chooseDaemons({
    names: words(values.daemons),
    cVirtiofsd: values['c-virtiofsd'],
    rustVirtiofsd: process.env['VIRTIOFSD'] || undefined,
    ourArgs: values['daemon-args'],
    extra: values.daemon ?? [],
  });
  for (const sentence of leftOut) console.error(`bench: ${sentence}`);
  if (daemons.length === 0) throw new Error('no daemon to measure');
  const subject = pickSubject(values.subject, daemons);
  buildVufs();

  const abort = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => abort.abort(new Error(`ended by ${name}`)));
  const workDir = mkdtempSync(join(resolve(values.dir), 'bucketfsd-bench-'));
  try {
    const targets = daemons.map((daemon) => ({ daemon, place: makePlace(workDir, daemon) }));
    const results = rows.map((row): RowResult => ({ row, runs: new Map(), problems: [] }));
    await runMatrix(targets, results, settings, !values['no-check'], abort.signal);
    const report = makeReport(results, daemons, subject);
    console.log(formatTable(report));
    mkdirSync(dirname(resolve(values.json)), { recursive: true });
    const document = { when: new Date().toISOString(), machine: machine(), settings, daemons, ...report };
    writeFileSync(values.json, `${JSON.stringify(document, null, 1)}\n`);
    console.log(`every run: ${values.json}`);
    return report.rows.some((row) => row.problems.length > 0) ? 1 : 0;
  } finally {
    if (values.keep) console.error(`bench: directories and logs are in ${workDir}`);
    else rmSync(workDir, { recursive: true, force: true });
  }
}

async function main(): Promise<number> {
  try {
    const values = readOptions();
    if (values.help) {
      console.log(USAGE);
      return 0;
    }
    if (values.list) {
      console.log(selectRows(values.only ?? []).map((row) => row.name).join('\n'));
      return 0;
    }
    return await bench(values);
  } catch (error) {
    console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
    return 2;
  }
}

process.exitCode = await main();
