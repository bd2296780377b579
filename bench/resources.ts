/**
 * What the daemon costs beside its requests, against the limits that the project sets itself: starting, mounting,
 * idle memory, memory after a guest has known a million files, descriptors over many connections.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { ourCommand, OURS, type Daemon } from './daemons.js';
import { median } from './report.js';
import { buildVufs, makePlace, projectRoot, runVufs, type Place } from './vufs.js';

const JSON_FILE = join(projectRoot, '.cache/resources.json');

const OPTIONS = {
  only: { type: 'string', multiple: true, help: 'NAME   only startup, cycle or forget; may be repeated' },
  files: { type: 'string', default: '1000000', help: 'N      files looked up and forgotten (1000000)' },
  passes: { type: 'string', default: '2', help: 'N      how often: growth that goes on is a leak (2)' },
  cycles: { type: 'string', default: '1000', help: 'N      connections made and closed (1000)' },
  starts: { type: 'string', default: '5', help: 'N      starts of which the median counts (5)' },
  settle: { type: 'string', default: '5', help: 'S      seconds of rest before memory is read (5)' },
  dir: { type: 'string', default: '/dev/shm', help: 'DIR    where the shared directory is made (/dev/shm)' },
  'daemon-args': { type: 'string', default: '', help: `ARGS   appended to the command line of ${OURS}` },
  command: { type: 'string', default: '', help: "CMD    another daemon, as 'exec … {SOCK} … {DIR} …'" },
  json: { type: 'string', default: JSON_FILE, help: 'FILE   all figures (.cache/resources.json)' },
  help: { type: 'boolean', help: '' },
} as const;

const LIMITS = {
  listening_ms: 500,
  mount_ms: 300,
  idle_rss_mb: 90,
  forget_growth_mb: 20,
  cycle_fd_growth: 0,
} as const;

interface Memory {
  readonly rss_mb: number;
  readonly guest_mb: number;
  readonly hwm_mb: number;
  readonly fds: number;
}

interface Line {
  readonly what: string;
  readonly value: string;
  /** The limit in words, and whether it is kept; absent where the figure is for information. */
  readonly limit?: string;
  readonly kept?: boolean;
}

interface Context {
  readonly daemon: Daemon;
  readonly place: Place;
  readonly settle: string;
  readonly signal: AbortSignal;
  readonly raw: Record<string, unknown>;
}

function atMost(what: string, value: number, limit: number, unit: string): Line {
  return { what, value: `${value.toFixed(1)} ${unit}`, limit: `<= ${limit} ${unit}`, kept: value <= limit };
}

async function vufs<T>(context: Context, command: string, args: readonly string[]): Promise<T> {
  const { daemon, place, signal, settle } = context;
  const result = await runVufs(daemon, place, command, [...args, '--settle', settle], signal);
  if (result.json === undefined) throw new Error(result.stderr || `vufs ended with status ${result.status}`);
  return result.json as T;
}

async function measureStartup(context: Context, starts: number): Promise<Line[]> {
  type Start = { listening_ms: number; mount_ms: number; idle: Memory };
  const runs: Start[] = [];
  for (let i = 0; i < starts; i++) runs.push(await vufs<Start>(context, 'startup', []));
  context.raw['startup'] = runs;
  const line = (what: string, pick: (run: Start) => number, limit: number, unit: string): Line => {
    const values = runs.map(pick);
    const judged = atMost(what, median(values), limit, unit);
    return { ...judged, value: `${judged.value} (worst ${Math.max(...values).toFixed(1)})` };
  };
  return [
    line('exec to listening', (run) => run.listening_ms, LIMITS.listening_ms, 'ms'),
    line('connect to INIT answered', (run) => run.mount_ms, LIMITS.mount_ms, 'ms'),
    line('RSS, mounted and idle', (run) => run.idle.rss_mb, LIMITS.idle_rss_mb, 'MB'),
  ];
}

async function measureCycles(context: Context, cycles: number): Promise<Line[]> {
  type Cycles = { before: Memory; after: Memory; ms_per_cycle: number; errors: number };
  const run = await vufs<Cycles>(context, 'cycle', ['--cycles', String(cycles)]);
  context.raw['cycle'] = run;
  const { before, after } = run;
  return [
    {
      what: `descriptor growth, ${cycles} connections`,
      value: `${after.fds - before.fds} (${before.fds} -> ${after.fds})`,
      limit: `<= ${LIMITS.cycle_fd_growth}`,
      kept: after.fds - before.fds <= LIMITS.cycle_fd_growth,
    },
    {
      what: 'RSS growth over them',
      value: `${(after.rss_mb - before.rss_mb).toFixed(1)} MB (${before.rss_mb} -> ${after.rss_mb})`,
    },
    { what: 'one connection', value: `${run.ms_per_cycle} ms` },
    { what: 'failed connections', value: String(run.errors), limit: '0', kept: run.errors === 0 },
  ];
}

async function measureForget(context: Context, files: number, passes: number): Promise<Line[]> {
  const args = ['--files', String(files), '--passes', String(passes), '--qd', '16', '--dir', context.place.shared];
  const run = await vufs<Record<string, number | Memory>>(context, 'forget', args);
  context.raw['forget'] = run;
  const memory = (key: string): Memory => run[key] as Memory;
  const before = memory('before');
  const lines: Line[] = [{ what: `RSS before ${files} lookups`, value: `${before.rss_mb} MB` }];
  for (let pass = 1; pass <= passes; pass++) {
    const known = memory(`known${pass}`);
    const after = memory(`after${pass}`);
    lines.push(
      { what: `pass ${pass}: all known`, value: `${known.rss_mb} MB, ${known.fds} fds, ${run[`lookup_s${pass}`]} s` },
      { what: `pass ${pass}: peak`, value: `${after.hwm_mb} MB` },
      { what: `pass ${pass}: forgotten`, value: `${after.rss_mb} MB, ${after.fds} fds, ${run[`forget_s${pass}`]} s` },
      atMost(`pass ${pass}: growth over before`, after.rss_mb - before.rss_mb, LIMITS.forget_growth_mb, 'MB'),
    );
  }
  lines.push({ what: 'failed lookups', value: String(run['errors']), limit: '0', kept: run['errors'] === 0 });
  return lines;
}

function formatLines(lines: readonly Line[]): string {
  const width = Math.max(...lines.map((line) => line.what.length));
  const values = Math.max(...lines.map((line) => line.value.length));
  return lines
    .map(({ what, value, limit, kept }) => {
      const verdict = limit === undefined ? '' : `${limit.padEnd(10)} ${kept ? 'kept' : 'MISSED'}`;
      return `${what.padEnd(width)}  ${value.padEnd(values)}  ${verdict}`.trimEnd();
    })
    .join('\n');
}

const USAGE = `node build/bench/resources.js [options]

${Object.entries(OPTIONS)
  .map(([name, { help }]) => `  --${name.padEnd(12)} ${help}`)
  .join('\n')}
`;

function readOptions() {
  return parseArgs({ options: OPTIONS, allowPositionals: false }).values;
}

async function resources(values: ReturnType<typeof readOptions>): Promise<number> {
  if (!values.command && !existsSync(join(projectRoot, 'build/src/main.js')))
    throw new Error('build/src/main.js is not built');
  const daemon = { name: OURS, command: values.command || ourCommand(values['daemon-args']) };
  buildVufs();
  const abort = new AbortController();
  for (const name of ['SIGINT', 'SIGTERM'] as const)
    process.once(name, () => abort.abort(new Error(`ended by ${name}`)));
  const workDir = mkdtempSync(join(resolve(values.dir), 'bucketfsd-resources-'));
  const place = makePlace(workDir, daemon);
  const context: Context = { daemon, place, settle: values.settle, signal: abort.signal, raw: {} };
  const parts: Record<string, () => Promise<Line[]>> = {
    startup: () => measureStartup(context, Number(values.starts)),
    cycle: () => measureCycles(context, Number(values.cycles)),
    forget: () => measureForget(context, Number(values.files), Number(values.passes)),
  };
  let missed = 0;
  try {
    for (const [name, part] of Object.entries(parts)) {
      if (values.only && !values.only.includes(name)) continue;
      const lines = await part().catch((error: Error): Line[] => {
        abort.signal.throwIfAborted();
        return [{ what: name, value: `failed: ${error.message}`, limit: '', kept: false }];
      });
      missed += lines.filter((line) => line.kept === false).length;
      console.log(formatLines(lines));
    }
    mkdirSync(dirname(resolve(values.json)), { recursive: true });
    const document = { when: new Date().toISOString(), command: daemon.command, ...context.raw };
    writeFileSync(values.json, `${JSON.stringify(document, null, 1)}\n`);
    return missed > 0 ? 1 : 0;
  } finally {
    rmSync(workDir, { recursive: true, force: true });
  }
}

async function main(): Promise<number> {
  try {
    const values = readOptions();
    if (!values.help) return await resources(values);
    console.log(USAGE);
    return 0;
  } catch (error) {
    console.error(`resources: ${error instanceof Error ? error.message : String(error)}`);
    return 2;
  }
}

process.exitCode = await main();
