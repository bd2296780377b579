/** The command line: from arguments and environment to one frozen Options object, or to a text to print. */
import { resolve } from 'node:path';
import { checkCombinations, checkKind } from './cli/combinations.js';
import { collectLegacy } from './cli/legacy.js';
import { buildCommand, complaintOf, helpText } from './cli/help.js';
import type { OptionSpec } from './cli/option-spec.js';
import { NO_MIGRATION, OPTION_ENTRIES, OPTIONS, displayName, type OptionValues } from './cli/options.js';
import { readPlain, type OnOption } from './cli/plain.js';
import { parseSource, type BucketSource, type Source } from './cli/source.js';
import { RLIMIT_NOFILE_MIN, collect, withDefaults, type Collected } from './cli/values.js';
import { version } from './base/version.js';
import { UsageError } from './lifecycle/errors.js';
import { systemdSockets } from './lifecycle/systemd.js';
import type { ListenSpec } from './lifecycle/listen.js';

/** Everything that the user decided, checked; what one option implies for another is already done. */
export type Options = Omit<OptionValues, 'source' | 'socketPath' | 'socketGroup' | 'fd' | 'debug' | 'legacyList'> & {
  readonly source: Source;
  readonly listen: ListenSpec;
  /** What the log says of them once the daemon serves. */
  readonly remarks: readonly string[];
};


/** What a bucket is opened with. */
export type BucketSettings = Omit<Options, 'listen' | 'source'> & { readonly source: BucketSource };

export type CommandLine =
  | { readonly action: 'run'; readonly options: Options }
  /** `bucketfsd check`: try what a bucket's provider does, and say it. */
  | { readonly action: 'check'; readonly settings: BucketSettings }
  /** `bucketfsd recover`: finish what a daemon has left in its cache directory, or show it. */
  | { readonly action: 'recover'; readonly settings: RecoverSettings }
  | { readonly action: 'print'; readonly text: string };

/** The source is remembered in the directory; what is said here besides takes the place of what is remembered. */
export type RecoverSettings = Omit<Options, 'listen' | 'source' | 'cacheDir'> & {
  readonly source: BucketSource | null;
  readonly cacheDir: string;
  /** Only what is on the command line. */
  readonly said: Partial<BucketSettings>;
};

const MIGRATION_KEYS = ['migrationMode', 'migrationOnError', 'migrationVerifyHandles', 'migrationConfirmPaths'] as const;

/** For QEMU's "backend program conventions": type and features as docs/interop/vhost-user.json of QEMU has them. */
export const CAPABILITIES = { type: 'fs', features: ['separate-options', 'posix-acl-negotiation-mode', 'security-label-negotiation-mode'] } as const;

/**
 * Reads the command line (`args` is without node and script). Throws UsageError with one sentence.
 * `pid` is compared with LISTEN_PID.
 */
export function parseCommandLine(args: readonly string[], env: NodeJS.ProcessEnv = process.env, pid = process.pid): CommandLine {
  // The conventions want it to work whatever else is there, so it comes before any parsing.
  if (args.includes(displayName(OPTIONS.printCapabilities))) return print(`${JSON.stringify(CAPABILITIES, null, 2)}\n`);
  const collected: Collected = new Map();
  const prints = new Set<OptionSpec>();
  const onOption: OnOption = (spec, index, name, text) => {
    const key = OPTION_ENTRIES[index][0];
    if (spec.type === 'print') prints.add(spec);
    else if (key === 'legacyList') collectLegacy(collected, text ?? '');
    else if (text !== null || spec.type === 'refused') collect(collected, key, spec, name, text ?? '');
    else if (spec.type === 'negotiated') collected.set(key, 'never'); // --no-NAME
    else if (spec.type !== 'ignored') collected.set(key, !name.startsWith('--no-'));
  };
  const verb = args[0] === 'check' || args[0] === 'recover' ? args[0] : null;
  const words = args.slice(verb === null ? 0 : 1);
  const others = readPlain(words, onOption) ? [] : readOthers(words, onOption);
  if (prints.has(OPTIONS.help)) return print(helpText());
  if (prints.has(OPTIONS.version)) return print(`bucketfsd ${version()}\n`);
  if (others.length > 0) {
    const [word] = others;
    if (/^[a-z]+$/.test(word) && word === args[0]) throw new UsageError(`there is no command ${word}: there are check and recover, and without one what --source names is shared`);
    throw new UsageError(`unexpected argument ${JSON.stringify(word)}: name what to share with --source`);
  }
  if (verb === 'recover') return { action: 'recover', settings: settingsOfRecover(collected) };
  if (collected.get('dryRun') === true) throw new UsageError('--dry-run is for bucketfsd recover');
  if (verb === 'check') return { action: 'check', settings: settingsOfCheck(collected) };
  return { action: 'run', options: finish(collected, env, pid) };
}

/** An option that takes its value with = only is always without one: the next word is not its value. */
function withNegotiated(arg: string): string {
  return OPTION_ENTRIES.some(([, spec]) => spec.type === 'negotiated' && arg === `--${spec.flag}`) ? `${arg}=always` : arg;
}

function print(text: string): CommandLine {
  return { action: 'print', text };
}

/** Any command line. @returns words that are neither options nor their values. @throws UsageError: commander's in our form, one sentence, lower case, no "error:" */
function readOthers(words: readonly string[], onOption: OnOption): readonly string[] {
  const command = buildCommand(onOption);
  try {
    return command.parse(words.map(withNegotiated), { from: 'user' }).args;
  } catch (error) {
    const complaint = complaintOf(error);
    if (complaint === null) throw error;
    const text = complaint.replace(/^error: /, '').replace(/\n\(Did you mean (.*)\?\)$/, '; did you mean $1?');
    throw new UsageError(text.replaceAll("'", '').replaceAll('\n', ' '));
  }
}

function settingsOfCheck(collected: Collected): BucketSettings {
  const { source, options } = checked(collected);
  if (source.kind === 'local') throw new UsageError(`check tries buckets, and ${source.path} is a directory`);
  return Object.freeze({ ...options, source });
}

function settingsOfRecover(collected: Collected): RecoverSettings {
  const { source: text, cacheDir } = withDefaults(collected);
  if (cacheDir === null) throw new UsageError('--cache-dir is missing: name the directory that the daemon was given, or has told in its log');
  const said = Object.fromEntries([...collected].filter(([key]) => key !== 'source'));
  if (text === null) collected.set('source', 'memory:'); // a bucket whose options may be given; the directory knows which one
  const { source, options } = checked(collected);
  if (source.kind === 'local') throw new UsageError(`recover is for buckets, and ${source.path} is a directory`);
  return Object.freeze({ ...options, source: text === null ? null : source, cacheDir: resolve(cacheDir), said });
}

function finish(collected: Collected, env: NodeJS.ProcessEnv, pid: number): Options {
  const { socketPath, socketGroup, fd } = withDefaults(collected);
  const listen = listenSpec(socketPath, socketGroup, fd, systemdSockets(env, pid));
  const { source, options } = checked(collected);
  return Object.freeze({ ...options, source, listen });
}

/** All but where to listen. */
function checked(collected: Collected): { source: Source; options: Omit<Options, 'listen' | 'source'> } {
  const { source: text, socketPath: _path, socketGroup: _group, fd: _fd, debug, legacyList: _list, ...rest } = withDefaults(collected);
  if (text === null) throw new UsageError('--source is missing: name the directory or the bucket to share');
  const source = parseSource(text);
  checkKind(collected, source);
  checkCombinations(withDefaults(collected), source);
  if (rest.rlimitNofile !== null && rest.rlimitNofile > 0 && rest.rlimitNofile < RLIMIT_NOFILE_MIN) {
    throw new UsageError(`--rlimit-nofile takes 0 or at least ${RLIMIT_NOFILE_MIN}: with ${rest.rlimitNofile} the daemon could not run`);
  }
  const options = {
    ...rest,
    logLevel: debug ? 'debug' : rest.logLevel,
    xattr: rest.xattr || rest.xattrmap !== null || rest.posixAcl !== 'never' || rest.securityLabel !== 'never',
    // A guest that may cache nothing would ask again for every attribute that came along.
    readdirplus: rest.readdirplus && rest.cache !== 'never',
    cacheDir: rest.cacheDir === null ? null : resolve(rest.cacheDir),
    remarks: MIGRATION_KEYS.some((key) => rest[key] !== OPTIONS[key].default) ? [`--migration-… ${NO_MIGRATION}`] : [],
  };
  return { source, options };
}

function listenSpec(path: string | null, group: string | null, fd: number | null, sockets: number[]): ListenSpec {
  const ways = [
    ...(path === null ? [] : ['--socket-path']),
    ...(fd === null ? [] : ['--fd']),
    // Callers who pass descriptors as systemd does, and name theirs, mean that one
    ...(sockets.length === 0 || fd !== null ? [] : ['a socket from systemd (LISTEN_FDS)']),
  ];
  if (ways.length === 0) throw new UsageError('one of --socket-path and --fd is needed to say where to listen');
  if (ways.length > 1) throw new UsageError(`${ways.join(' and ')} exclude each other: give exactly one`);
  if (group !== null && path === null) throw new UsageError('--socket-group needs --socket-path: an inherited socket keeps its group');
  if (fd === null && sockets.length > 1) throw new UsageError(`systemd passed ${sockets.length} sockets, but one daemon serves one: give the socket unit a single ListenStream=`);
  if (path !== null) return Object.freeze({ kind: 'path', path, group });
  if (fd !== null) return Object.freeze({ kind: 'fd', fd, origin: '--fd' });
  return Object.freeze({ kind: 'fd', fd: sockets[0], origin: 'LISTEN_FDS' });
}
