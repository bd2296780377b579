/** Processes of the bench: started in groups of their own, measured through /proc, ended by their ids. */
import { spawn, type ChildProcess } from 'node:child_process';
import { closeSync, openSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';

/** USER_HZ: what /proc counts CPU time in. */
const TICKS_PER_S = 100;
const END_TIMEOUT_MS = 10_000;

export interface Started {
  readonly pid: number;
  readonly child: ChildProcess;
}

const groups = new Set<number>();

/** Whatever is left: for the end of the bench, also when that comes early. */
export function killAll(): void {
  for (const pid of groups) signalGroup(pid, 'SIGKILL');
}

export function start(argv: readonly string[], env: NodeJS.ProcessEnv, logFile: string): Started {
  const log = openSync(logFile, 'a');
  const child = spawn(argv[0], argv.slice(1), { env, detached: true, stdio: ['ignore', log, log] });
  closeSync(log);
  const { pid } = child;
  child.on('error', () => undefined); // told by the one who waits for it to be ready
  if (pid === undefined) throw new Error(`cannot start ${argv[0]}`);
  groups.add(pid);
  return { pid, child };
}

function signalGroup(pid: number, signal: NodeJS.Signals): void {
  try {
    process.kill(-pid, signal);
  } catch {
    // it has ended
  }
}

const hasEnded = ({ child }: Started): boolean => child.exitCode !== null || child.signalCode !== null;

export function assertRuns(started: Started, what: string): void {
  if (hasEnded(started)) throw new Error(`${what} ended with ${started.child.exitCode ?? started.child.signalCode}`);
}

/** Waits for the end; asks for it first, if `signal` is given; insists after a while. */
export async function end(started: Started, signal: NodeJS.Signals | null): Promise<void> {
  const { pid } = started;
  if (signal !== null) signalGroup(pid, signal);
  for (const until = Date.now() + END_TIMEOUT_MS; !hasEnded(started) && Date.now() < until; ) await sleep(5);
  signalGroup(pid, 'SIGKILL');
  while (!hasEnded(started)) await sleep(5);
  groups.delete(pid);
}

interface Process {
  readonly pid: number;
  readonly parent: number;
  readonly group: number;
  readonly cpu_s: number;
}

function read(path: string): string {
  try {
    return readFileSync(path, 'utf8');
  } catch {
    return ''; // it has just ended
  }
}

function processes(): Process[] {
  return readdirSync('/proc').flatMap((name) => {
    const stat = /^\d+$/.test(name) ? read(`/proc/${name}/stat`) : '';
    if (stat === '') return [];
    // The name in parentheses may contain anything
    const fields = stat.slice(stat.lastIndexOf(')') + 2).split(' ').map(Number);
    return [{ pid: Number(name), parent: fields[1], group: fields[2], cpu_s: (fields[11] + fields[12]) / TICKS_PER_S }];
  });
}

const sum = (values: readonly number[]): number => values.reduce((a, b) => a + b, 0);

/** Members of the groups, and their children: virtiofsd makes one in a namespace of its own. */
function members(all: readonly Process[], pids: readonly number[]): Process[] {
  const wanted = new Set(pids);
  return all.filter(({ pid, parent, group }) => wanted.has(pid) || wanted.has(parent) || wanted.has(group));
}

function descendants(all: readonly Process[], roots: readonly number[]): Process[] {
  const known = new Set(roots);
  for (let before = -1; before !== known.size; ) {
    before = known.size;
    for (const { pid, parent } of all) if (known.has(parent)) known.add(pid);
  }
  return all.filter(({ pid }) => known.has(pid));
}

export interface Usage {
  readonly at_ms: number;
  /** Of the measured processes. */
  readonly cpu_s: number;
  readonly peak_mb: number;
  /** Of all that belongs to the bench, and of the machine; CPU seconds that there were. */
  readonly own_s: number;
  readonly busy_s: number;
  readonly all_s: number;
}

/** `measured`: groups; `others`: roots of trees that belong to the bench too. */
export function usage(measured: readonly number[], others: readonly number[]): Usage {
  const all = processes();
  const mine = members(all, measured);
  const own = descendants(all, [process.pid, ...others]);
  const [user, nice, system, idle, iowait, irq, softirq, steal] = read('/proc/stat').split('\n')[0].split(/\s+/).slice(1).map((ticks) => Number(ticks) / TICKS_PER_S);
  const busy_s = user + nice + system + irq + softirq + steal;
  return {
    at_ms: performance.now(),
    cpu_s: sum(mine.map(({ cpu_s }) => cpu_s)),
    peak_mb: sum(mine.map(({ pid }) => Number(/^VmHWM:\s*(\d+)/m.exec(read(`/proc/${pid}/status`))?.[1] ?? 0))) / 1024,
    own_s: sum(own.map(({ cpu_s }) => cpu_s)),
    busy_s,
    all_s: busy_s + idle + iowait,
  };
}

/** The peak of resident memory counts from here. */
export function resetPeak(measured: readonly number[]): void {
  for (const { pid } of members(processes(), measured)) {
    try {
      writeFileSync(`/proc/${pid}/clear_refs`, '5');
    } catch {
      // it has just ended, or forbids it: its peak counts from its start
    }
  }
}
