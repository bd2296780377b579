/**
 * A user namespace for the daemon, in which it is root with rights to its own ids only. Only a process with a single
 * thread may enter one, which Node is not: unshare(1) of util-linux enters it and becomes the daemon again.
 *
 * The ids of --uid-map and --gid-map must be written from outside, when the namespace exists: a shell is left there that
 * waits for word from the daemon inside. The daemon's own ids alone need no shell.
 */
import { accessSync, closeSync, constants, readSync, writeSync } from 'node:fs';
import { createRequire } from 'node:module';
import { delimiter, join } from 'node:path';
import * as c from '../ffi/libc.js';
import { socketPair } from '../ffi/socket.js';
import { F_SETFL } from '../ffi/constants.js';
import { StartError, UsageError } from '../lifecycle/errors.js';

/** Ids are 32 bits, and all ones means "none". */
const ID_MAX = 2 ** 32 - 2;
/** UID_GID_MAP_MAX_EXTENTS of Linux. */
const RANGES_MAX = 340;
const REPLY_MAX_BYTES = 512;
const TRY_LIMIT_MS = 10_000;

/** Loaded where there is a user namespace to be made: most starts have none. */
const processes = (): typeof import('node:child_process') => createRequire(import.meta.url)('node:child_process') as typeof import('node:child_process');

export interface IdRange {
  /** First id in the namespace, first id on the host, and how many. */
  readonly inside: number;
  readonly host: number;
  readonly count: number;
}

export interface IdMaps {
  readonly uid: readonly IdRange[];
  readonly gid: readonly IdRange[];
}

/** virtiofsd's `:namespace_id:host_id:count:`, with any separator that is no digit. UsageError for what is no such map. */
export function parseIdRanges(option: '--uid-map' | '--gid-map', maps: readonly string[]): IdRange[] {
  const ranges = maps.map((text) => {
    const fields = text.split(text[0]);
    const numbers = fields.slice(1, 4).map((field) => (/^\d{1,10}$/.test(field) ? Number(field) : NaN));
    const [inside, host, count] = numbers;
    const wellFormed = /^\D/.test(text) && fields.length === 5 && fields[4] === '' && numbers.every((n) => n >= 0);
    if (!wellFormed || count < 1 || inside + count - 1 > ID_MAX || host + count - 1 > ID_MAX) {
      throw new UsageError(`${option} takes :namespace_id:host_id:count: with ids up to ${ID_MAX}, as in :0:100000:65536:, not ${JSON.stringify(text.slice(0, 80))}`);
    }
    return { inside, host, count };
  });
  if (ranges.length > RANGES_MAX) throw new UsageError(`${option} may be given ${RANGES_MAX} times, not ${ranges.length}`);
  for (const key of ['inside', 'host'] as const) {
    const sorted = [...ranges].sort((a, b) => a[key] - b[key]);
    if (sorted.some((range, i) => i > 0 && range[key] < sorted[i - 1][key] + sorted[i - 1].count)) throw new UsageError(`${option} names an id twice`);
  }
  if (!ranges.some(({ inside }) => inside === 0)) throw new UsageError(`${option} must give the id 0 of the namespace a host id: the daemon is root there`);
  return ranges;
}

/** The two options together; null if neither is given. */
export function parseIdMaps(uidMap: readonly string[], gidMap: readonly string[]): IdMaps | null {
  if (uidMap.length === 0 && gidMap.length === 0) return null;
  if (uidMap.length === 0 || gidMap.length === 0) throw new UsageError('--uid-map and --gid-map are given together or not at all');
  return { uid: parseIdRanges('--uid-map', uidMap), gid: parseIdRanges('--gid-map', gidMap) };
}

/** Are these just the ids that the daemon already has? Then nobody needs to be asked for them. */
export function isOwnIds({ uid, gid }: IdMaps): boolean {
  const own = (ranges: readonly IdRange[], id: number): boolean => ranges.length === 1 && ranges[0].count === 1 && ranges[0].host === id;
  return own(uid, process.geteuid!()) && own(gid, process.getegid!());
}

/** The arguments of unshare(1) before those of the daemon. StartError if this user may have no user namespace. */
export function unshareCommand(maps: IdMaps | null): string[] {
  const unshare = executable('unshare');
  if (unshare === null) throw new StartError('--sandbox=namespace needs unshare(1) for a user namespace: install util-linux, or put it on the PATH');
  const options = ['--user', maps === null ? '--map-root-user' : '--keep-caps', '--'];
  const tried = processes().spawnSync(unshare, [...options, unshare, '--version'], { encoding: 'utf8', stdio: ['ignore', 'ignore', 'pipe'], timeout: TRY_LIMIT_MS });
  if (tried.status !== 0) {
    throw new StartError(`this host gives the daemon no user namespace (${oneLine(tried.stderr)}): allow them, or start the daemon as root, or with --sandbox=none`);
  }
  return [unshare, ...options];
}

function executable(name: string): string | null {
  const folders = (process.env.PATH ?? '').split(delimiter);
  return folders.filter((folder) => folder.startsWith('/')).map((folder) => join(folder, name)).find(isExecutable) ?? null;
}

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK);
    return true;
  } catch {
    return false;
  }
}

const oneLine = (text: string): string => text.trim().replaceAll(/\s+/g, ' ').slice(0, 200);

/** A process left outside, and the descriptor to speak to it. */
interface Mapper {
  readonly pid: number;
  readonly fd: number;
}

/** Leaves a process here that writes the maps for this one when it hears from it. StartError if that needs newuidmap(1), which is not there. */
export function leaveMapper(maps: IdMaps): Mapper {
  const [ours, theirs] = socketPair();
  for (const fd of [ours, theirs]) c.check(c.fcntl(fd, F_SETFL, 0), 'fcntl');
  const script = process.geteuid!() === 0 ? writeDirectly(maps) : writeByHelpers(maps);
  // Its output is the answer: "mapped", or what went wrong
  const mapper = processes().spawn('/bin/sh', ['-c', `read word && ${script} && echo mapped`], { stdio: [theirs, theirs, theirs], cwd: '/', detached: true });
  if (mapper.pid === undefined) throw new StartError('--uid-map needs /bin/sh');
  mapper.unref();
  closeSync(theirs);
  return { pid: mapper.pid, fd: ours };
}

function writeDirectly(maps: IdMaps): string {
  const write = (ranges: readonly IdRange[], file: string): string => {
    const lines = ranges.map(({ inside, host, count }) => `${inside} ${host} ${count}\\n`);
    return `printf '${lines.join('')}' > /proc/${process.pid}/${file}`;
  };
  return `${write(maps.uid, 'uid_map')} && ${write(maps.gid, 'gid_map')}`;
}

function writeByHelpers(maps: IdMaps): string {
  const run = (ranges: readonly IdRange[], helper: string): string => {
    if (executable(helper) === null) throw new StartError(`--uid-map and --gid-map of an ordinary user need ${helper}: install the package uidmap, and give the user ranges in /etc/subuid and /etc/subgid`);
    return [helper, process.pid, ...ranges.flatMap(({ inside, host, count }) => [inside, host, count])].join(' ');
  };
  return `${run(maps.uid, 'newuidmap')} && ${run(maps.gid, 'newgidmap')}`;
}

/** Has the ids written by the process outside, and becomes root of the namespace. */
export function becomeMapped({ pid, fd }: Mapper): void {
  writeSync(fd, 'go\n');
  const reply = Buffer.alloc(REPLY_MAX_BYTES);
  let length = 0;
  for (let n = -1; n !== 0 && length < reply.length; length += n) n = readSync(fd, reply, length, reply.length - length, null);
  closeSync(fd);
  // It has closed its end, so it ends; nobody else will ask how
  c.waitpid(pid, 0, 0);
  const text = oneLine(reply.toString('utf8', 0, length));
  if (text !== 'mapped') {
    throw new StartError(`the ids of --uid-map and --gid-map cannot be used (${text}): as an ordinary user, name ids that /etc/subuid and /etc/subgid give to you`);
  }
  process.setgid!(0);
  process.setuid!(0);
}
