/**
 * What the daemon costs beside its requests, against the limits that the project sets itself: starting, mounting,
 * idle memory, memory after a guest has known a million files, descriptors over many connections.
 */
import { existsSync, mkdirSync, mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { dirname, join, resolve } from 'node:path';
import { parseArgs } from 'node:util';
import { C_VIRTIOFSD, chooseDaemons, ourCommand, OURS, type Daemon } from './daemons.js';
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
  'c-virtiofsd': { type: 'string', default: C_VIRTIOFSD, help: `PATH   the C virtiofsd, started beside (${C_VIRTIOFSD})` },
  command: { type: 'string', default: '', help: "CMD    another daemon, as 'exec … {SOCK} … {DIR} …'" },
  json: { type: 'string', default: JSON_FILE, help: 'FILE   all figures (.cache/resources.json)' },
  help: { type: 'boolean', help: '' },
} as const;

const LIMITS = {
  /** From exec, with sandbox and filter, on a machine that does nothing else. */
  start_ms: 150,
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

interface Start {
  readonly answered_ms: number;
  readonly cpu_ms: number;
  readonly idle: Memory;
}

/** The daemon and its rivals in turn: what else the machine does is the same for all. */
async function measureStartup(context: Context, starts: number, rivals: readonly Daemon[]): Promise<Line[]> {
  const contenders = [context.daemon, ...rivals].map((daemon) => {
    const place = daemon === context.daemon ? context.place : makePlace(dirname(context.place.shared), daemon);
    return { of: { ...context, daemon, place }, runs: [] as Start[] };
  });
  for (let i = 0; i < starts; i++) for (const { of, runs } of contenders) runs.push(await vufs<Start>(of, 'startup', []));
  context.raw['startup'] = Object.fromEntries(contenders.map(({ of, runs }) => [of.daemon.name, runs]));
  const value = (runs: readonly Start[], pick: (run: Start) => number, unit: string): string =>
    `${median(runs.map(pick)).toFixed(1)} ${unit} (worst ${Math.max(...runs.map(pick)).toFixed(1)})`;
  return contenders.flatMap(({ of: { daemon }, runs }): Line[] => {
    const judged = (what: string, pick: (run: Start) => number, limit: number, unit: string): Line => ({
      ...(daemon === context.daemon ? atMost('', median(runs.map(pick)), limit, unit) : {}), what: `${daemon.name}: ${what}`, value: value(runs, pick, unit),
    });
    return [
      judged('exec to INIT answered', (run) => run.answered_ms, LIMITS.start_ms, 'ms'),
      judged('CPU time until then', (run) => run.cpu_ms, LIMITS.start_ms, 'ms'),
      judged('RSS, mounted and idle', (run) => run.idle.rss_mb, LIMITS.idle_rss_mb, 'MB'),
    ];
  });
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
  const bare = `bare=${ourCommand(`${values['daemon-args']} --sandbox none --seccomp none`)}`;
  const choice = { names: ['c'], cVirtiofsd: values['c-virtiofsd'], rustVirtiofsd: undefined, ourArgs: '', extra: [bare] };
  const rivals = values.command ? [] : chooseDaemons(choice).daemons;
  const context: Context = { daemon, place, settle: values.settle, signal: abort.signal, raw: {} };
  const parts: Record<string, () => Promise<Line[]>> = {
    startup: () => measureStartup(context, Number(values.starts), rivals),
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
