/**
 * `npm run bench:bucket`: one bucket on Ceph RGW, shared by this daemon, and by s3fs and rclone behind the C virtiofsd, with the same
 * client as guest; plain calls of the object store as the limit; without and with latency to the server.
 */
import { spawnSync } from 'node:child_process';
import { appendFileSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { machine } from '../report.js';
import { buildVufs, projectRoot } from '../vufs.js';
import { contenders, DIRECTORY, installPeers, OURS, type Contender } from './contenders.js';
import { content } from './content.js';
import { killAll } from './processes.js';
import { formatLines, hasFailed, makeLines, PLAIN, type Result } from './report.js';
import { FULL, jobKey, jobsOf, PREPARED, QUICK, ROWS, type Durability, type Job, type Row, type Sizes } from './rows.js';
import { runJob, type Settings } from './run.js';
import { Server } from './server.js';

const JSON_FILE = join(projectRoot, '.cache/bench-bucket.json');
const QUICK_LIMIT_S = 4;
const FULL_LIMIT_S = 120;
const QUICK_ROUNDS = 1;
const FULL_ROUNDS = 3;

const OPTIONS = {
  quick: { type: 'boolean', help: '       small sizes and a limit of 4 s: a look, some minutes' },
  size: { type: 'string', default: '', help: 'MIB    size of the large object (1024; quick: 128)' },
  files: { type: 'string', default: '', help: 'N      small files written, and read (2000; quick: 60)' },
  tree: { type: 'string', default: '', help: 'N      objects in the tree that is searched (10000; quick: 400)' },
  list: { type: 'string', default: '', help: 'N      objects in the directory that is listed (100000; quick: 2000)' },
  untar: { type: 'string', default: '', help: 'N      files of the source tree (400; quick: 40)' },
  reads: { type: 'string', default: '', help: 'N      random reads of each size (200; quick: 40)' },
  latency: { type: 'string', default: '0,20', help: 'A,B    milliseconds added in each direction (0,20)' },
  limit: { type: 'string', default: '', help: 'S      seconds after which a pass begins nothing more (120; quick: 4)' },
  rounds: { type: 'string', default: '', help: 'N      rounds; medians are taken over them (3; quick: 1)' },
  only: { type: 'string', multiple: true, help: 'TEXT   rows whose name contains TEXT; may be repeated' },
  contenders: { type: 'string', default: '', help: `A,B    only these of: ${OURS}, s3fs, rclone, ${DIRECTORY}, ${PLAIN}` },
  dir: { type: 'string', default: '/var/tmp', help: 'DIR    where caches and mount points are made (/var/tmp)' },
  'daemon-args': { type: 'string', default: '', help: `ARGS   appended to the command line of ${OURS}` },
  'c-virtiofsd': { type: 'string', default: '/usr/lib/qemu/virtiofsd', help: 'PATH   the C virtiofsd' },
  json: { type: 'string', default: JSON_FILE, help: 'FILE   results with every run (.cache/bench-bucket.json)' },
  'list-rows': { type: 'boolean', help: '       list the rows' },
  keep: { type: 'boolean', help: '       leave logs in place' },
  help: { type: 'boolean', help: '' },
} as const;

const USAGE = `make bench-bucket BENCH_ARGS='[options]'     or: node build/bench/bucket/bench.js [options]

${Object.entries(OPTIONS).map(([name, { help }]) => `  --${name.padEnd(12)} ${help}`).join('\n')}
`;

type Values = ReturnType<typeof readOptions>;

function readOptions() {
  return parseArgs({ options: OPTIONS, allowPositionals: false }).values;
}

function positive(text: string, name: string, otherwise: number): number {
  if (text === '') return otherwise;
  const value = Number(text);
  if (!(value > 0)) throw new Error(`--${name} takes a positive number, not ${text}`);
  return value;
}

const words = (text: string): string[] => text.split(/[\s,]+/).filter((word) => word !== '');

function settingsOf(values: Values): Settings {
  const base = values.quick ? QUICK : FULL;
  const count = (name: 'files' | 'tree' | 'list' | 'untar' | 'reads'): number => Math.ceil(positive(values[name], name, base[name]));
  const sizes: Sizes = {
    size: Math.ceil(positive(values.size, 'size', base.size / 2 ** 20)) * 2 ** 20,
    files: count('files'), tree: count('tree'), list: count('list'), untar: count('untar'), reads: count('reads'),
  };
  return { sizes, limit_s: positive(values.limit, 'limit', values.quick ? QUICK_LIMIT_S : FULL_LIMIT_S) };
}

function latenciesOf(text: string): number[] {
  const latencies = words(text).map(Number);
  if (latencies.length === 0 || latencies.some((value) => !(value >= 0))) throw new Error(`--latency takes milliseconds, not ${text}`);
  return latencies;
}

const selectRows = (only: readonly string[]): Row[] => ROWS.filter(({ name }) => only.length === 0 || only.some((part) => name.includes(part)));

/** Who takes part: null stands for plain calls. */
function takePart(values: Values, contentFolder: string): (Contender | null)[] {
  const wanted = words(values.contenders);
  const all = [...contenders({ cVirtiofsd: values['c-virtiofsd'], ourArgs: words(values['daemon-args']), content: contentFolder }), null];
  const names = all.map((one) => one?.name ?? PLAIN);
  for (const name of wanted) if (!names.includes(name)) throw new Error(`--contenders takes ${names.join(', ')}, not ${name}`);
  return all.filter((_, index) => wanted.length === 0 || wanted.includes(names[index]));
}

const DURABILITIES: readonly { durability: Durability; what: string }[] = [
  { durability: 'none', what: 'reading' },
  { durability: 'synchronous', what: 'writing, synchronous: in the bucket when close() returns' },
  { durability: 'cached', what: 'writing, cached: uploaded after close()' },
];

function modesOf(all: readonly (Contender | null)[]): string[] {
  return DURABILITIES.map(({ durability, what }) => {
    const modes = all.flatMap((one) => (one === null ? [] : [`${one.name}: ${one.mode(durability) ?? 'has no such mode'}`]));
    return `${what}: ${modes.join('; ')}`;
  });
}

const nameOf = (contender: Contender | null): string => contender?.name ?? PLAIN;

/** Plain calls have no cache to be told apart by. */
function takes(contender: Contender | null, job: Job): boolean {
  if (contender === null) return job.durability !== 'cached';
  return contender.mode(job.durability) !== null && (contender.jobs?.includes(job.job) ?? true);
}

/** The large object as a file of a directory. */
function prepareDirectory(folder: string, bytes: number): void {
  const piece = 4 << 20;
  mkdirSync(folder);
  const file = join(folder, PREPARED['random-read']);
  for (let offset = 0; offset < bytes; offset += piece) appendFileSync(file, content(offset, Math.min(piece, bytes - offset), 0));
}

interface Matrix {
  readonly all: readonly (Contender | null)[];
  readonly jobs: readonly Job[];
  readonly latencies: readonly number[];
  readonly rounds: number;
  readonly settings: Settings;
  readonly folder: string;
}

function progress(text: string): void {
  if (process.stderr.isTTY) process.stderr.write(`\r\x1b[K${text}`);
}

async function runMatrix(matrix: Matrix, server: Server, signal: AbortSignal): Promise<Result[]> {
  const { all, jobs, latencies, rounds, settings, folder } = matrix;
  const results = new Map<string, Result>();
  let written = 0;
  for (let round = 0; round < rounds; round++) {
    for (const latency_ms of latencies) {
      const bucket = await server.bucket(latency_ms);
      for (const [index, job] of jobs.entries()) {
        for (let i = 0; i < all.length; i++) {
          // Another one begins each time
          const contender = all[(i + index + round) % all.length];
          if (!takes(contender, job)) continue;
          const name = nameOf(contender);
          progress(`round ${round + 1} of ${rounds}, ${latency_ms} ms: ${job.job}, ${job.durability}: ${name}`);
          const key = [latency_ms, jobKey(job), name].join(' ');
          const result = results.get(key) ?? { latency_ms, job: jobKey(job), contender: name, runs: [], problems: [] };
          results.set(key, result);
          const missing = contender?.missing(job.durability) ?? null;
          if (missing !== null) {
            result.problems.push(missing);
            continue;
          }
          const path = PREPARED[job.job] ?? `w${++written}`;
          try {
            result.runs.push(...(await runJob(contender, { job, bucket, path }, server, settings, join(folder, name), signal)));
          } catch (error) {
            signal.throwIfAborted();
            result.problems.push((error as Error).message);
          }
        }
      }
    }
  }
  progress('');
  return [...results.values()];
}

interface Plan extends Omit<Matrix, 'jobs'> {
  readonly rows: readonly Row[];
  readonly json: string;
}

/** Prepares, runs, reports; the exit code. */
async function runPlan(plan: Plan, server: Server, signal: AbortSignal): Promise<number> {
  const { all, rows, latencies, rounds, settings, json } = plan;
  const begun = performance.now();
  const jobs = jobsOf(rows);
  await server.prepare(jobs, settings.sizes, progress);
  if (all.some((one) => one?.name === DIRECTORY)) prepareDirectory(contentOf(plan.folder), settings.sizes.size);
  const results = await runMatrix({ ...plan, jobs }, server, signal);
  const names = all.map(nameOf);
  const lines = makeLines(rows, latencies, names, results);
  const modes = modesOf(all);
  const took_s = Math.round((performance.now() - begun) / 1000);
  console.log(formatLines(lines, names, modes));
  mkdirSync(dirname(json), { recursive: true });
  const document = { when: new Date().toISOString(), took_s, machine: machine(), versions: versions(), settings, latencies, rounds, modes, lines, results };
  writeFileSync(json, `${JSON.stringify(document, null, 1)}\n`);
  console.log(`took ${took_s} s; every run: ${json}`);
  return results.some((result) => result.contender === OURS && hasFailed(result)) ? 1 : 0;
}

const contentOf = (folder: string): string => join(folder, 'content');

async function bench(values: Values): Promise<number> {
  const settings = settingsOf(values);
  const latencies = latenciesOf(values.latency);
  const rounds = Math.ceil(positive(values.rounds, 'rounds', values.quick ? QUICK_ROUNDS : FULL_ROUNDS));
  const rows = selectRows(values.only ?? []);
  if (rows.length === 0) throw new Error('no row has such a name: see --list-rows');
  if (process.geteuid!() !== 0) throw new Error('it needs root: for Ceph RGW in a chroot, and to mount s3fs and rclone');

  const abort = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const) process.once(name, () => abort.abort(new Error(`ended by ${name}`)));
  process.on('exit', killAll);
  const folder = mkdtempSync(join(resolve(values.dir), 'bucketfsd-bench-'));
  let server: Server | null = null;
  try {
    const all = takePart(values, contentOf(folder)).filter((one) => rows.some(({ job }) => takes(one, job)));
    installPeers(all.filter((one) => one !== null));
    buildVufs();
    server = await Server.start();
    return await runPlan({ all, rows, latencies, rounds, settings, folder, json: resolve(values.json) }, server, abort.signal);
  } finally {
    await server?.stop();
    if (values.keep) console.error(`bench: logs are in ${folder}`);
    else rmSync(folder, { recursive: true, force: true });
  }
}

/** First lines of what the peers say of themselves. */
function versions(): Record<string, string> {
  const of = (program: string, option: string): string => spawnSync(program, [option], { encoding: 'utf8' }).stdout?.split('\n')[0] || 'not there';
  return { s3fs: of('s3fs', '--version'), rclone: of('rclone', 'version') };
}

async function main(): Promise<number> {
  // What the SDK would say about Node.js versions of next year
  process.env['AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED'] = 'true';
  try {
    const values = readOptions();
    if (values.help) console.log(USAGE);
    else if (values['list-rows']) console.log(selectRows(values.only ?? []).map(({ name }) => name).join('\n'));
    else return await bench(values);
    return 0;
  } catch (error) {
    console.error(`bench: ${error instanceof Error ? error.message : String(error)}`);
    return 2;
  }
}

process.exitCode = await main();
