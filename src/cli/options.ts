/** The one table of options: parsing, checking, --help, docs/OPERATIONS.md and the legacy -o keys come from it. */
import { availableParallelism } from 'node:os';
import { LOG_LEVELS } from '../base/log-level.js';
import { SOCKET_PATH_MAX_BYTES } from '../ffi/socket.js';
import { BUCKET_OPTIONS } from './bucket-options.js';
import type { OptionSpec } from './option-spec.js';

/** The daemon offers no DEVICE_STATE, so a frontend refuses to migrate: nothing goes another way than these options say. */
export const NO_MIGRATION = 'without effect: the share is not handed over, so a virtual machine that has it cannot migrate';

const NEGOTIATED = ['never', 'auto', 'always'] as const;

export const OPTIONS = {
  socketPath: {
    flag: 'socket-path', alias: 'socket', type: 'string', group: 'socket', value: 'PATH', default: null, max: SOCKET_PATH_MAX_BYTES,
    help: 'listen on a Unix socket that the daemon makes (mode 0600) and removes when it ends; PATH.pid is locked meanwhile',
    virtiofsd: '--socket-path',
  },
  socketGroup: {
    flag: 'socket-group', type: 'string', group: 'socket', value: 'GROUP', default: null, max: 255,
    help: 'give the socket to this group with mode 0660',
    virtiofsd: '--socket-group',
  },
  fd: {
    flag: 'fd', type: 'int', group: 'socket', value: 'N', default: null, min: 0, max: 1 << 20,
    help: 'listen on an inherited descriptor: a Unix stream socket on which listen(2) was called',
    virtiofsd: '--fd',
  },
  source: {
    flag: 'source', alias: 'shared-dir', type: 'string', group: 'share', value: 'SOURCE', default: null,
    help: 'what to share: a directory, as a path or as file:///path, or a bucket, as s3://BUCKET[/PREFIX] or gs://BUCKET[/PREFIX], or memory: for an empty one that is gone when the daemon ends',
    legacy: 'source', virtiofsd: '--shared-dir',
  },
  tag: {
    flag: 'tag', type: 'string', group: 'share', value: 'TAG', default: null, max: 36,
    help: 'the name for the guest to mount, for a frontend that asks the daemon for it; QEMU takes its own tag= instead',
    virtiofsd: '--tag',
  },
  readonly: {
    flag: 'readonly', type: 'flag', group: 'share', default: false,
    help: 'refuse every change with EROFS',
    legacy: 'readonly', virtiofsd: '--readonly',
  },
  announceSubmounts: {
    flag: 'announce-submounts', type: 'toggle', group: 'share', default: true, only: 'directory',
    help: 'show the guest where another host file system is mounted in the share, so that inode numbers stay unique',
    helpOff: 'show file systems that are mounted in the share as ordinary directories; inode numbers may then clash',
    legacy: 'announce_submounts', virtiofsd: '--announce-submounts',
  },
  inodeFileHandles: {
    flag: 'inode-file-handles', type: 'choice', group: 'share', value: 'MODE', choices: ['auto', 'never', 'prefer', 'mandatory'], default: 'auto', synonyms: { fallback: 'prefer' }, only: 'directory',
    help: 'refer to files by handle instead of an open descriptor, so that no number of files exhausts descriptors; needs CAP_DAC_READ_SEARCH, by which a daemon that was taken over reaches all of the file system that the share is on; auto is prefer, and never in a sandbox',
    legacy: 'inode_file_handles', virtiofsd: '--inode-file-handles',
  },
  ...BUCKET_OPTIONS,
  cache: {
    flag: 'cache', type: 'choice', group: 'cache', value: 'POLICY', choices: ['auto', 'always', 'never', 'metadata'], default: 'auto', synonyms: { none: 'never' }, only: 'directory',
    help: 'how long the guest trusts names, attributes and data: auto 1 s, always a day, never not at all, metadata a day but no data',
    legacy: 'cache', virtiofsd: '--cache',
  },
  readdirplus: {
    flag: 'readdirplus', type: 'toggle', group: 'cache', default: true,
    help: 'send attributes along with directory entries; never with --cache=never',
    helpOff: 'do not send attributes along with directory entries; --cache=never does not in any case',
    legacy: 'readdirplus', virtiofsd: '--no-readdirplus',
  },
  writeback: {
    flag: 'writeback', type: 'toggle', group: 'cache', default: false, only: 'directory',
    help: 'let the guest collect writes in its cache; only for files that nobody else writes',
    legacy: 'writeback', virtiofsd: '--writeback',
  },
  allowDirectIo: {
    flag: 'allow-direct-io', type: 'toggle', group: 'cache', default: false, only: 'directory',
    help: 'pass O_DIRECT of the guest on to the host',
    legacy: 'allow_direct_io', virtiofsd: '--allow-direct-io',
  },
  allowMmap: {
    flag: 'allow-mmap', type: 'flag', group: 'cache', default: false, only: 'directory',
    help: 'allow shared mappings of files although --cache=never bypasses the page cache of the guest',
    legacy: 'allow_mmap', virtiofsd: '--allow-mmap',
  },
  xattr: {
    flag: 'xattr', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'extended attributes',
    legacy: 'xattr', virtiofsd: '--xattr',
  },
  xattrmap: {
    flag: 'xattrmap', type: 'string', group: 'attributes', value: 'RULES', default: null, max: 65_536, only: 'directory',
    help: "rename or hide extended attributes by virtiofsd's rules, for example ':map::user.virtiofs.:'; implies --xattr",
    legacy: 'xattrmap', virtiofsd: '--xattrmap',
  },
  posixAcl: {
    flag: 'posix-acl', type: 'negotiated', group: 'attributes', value: 'WHEN', choices: NEGOTIATED, default: 'never', only: 'directory',
    help: 'POSIX access control lists: auto where the guest has them, always refuses a guest without (that is what --posix-acl alone means); implies --xattr',
    legacy: 'posix_acl', virtiofsd: '--posix-acl',
  },
  securityLabel: {
    flag: 'security-label', type: 'negotiated', group: 'attributes', value: 'WHEN', choices: NEGOTIATED, default: 'never', only: 'directory',
    help: "store the guest's security label with each new file: auto where the guest sends one, always refuses a guest that cannot (that is what --security-label alone means); implies --xattr",
    legacy: 'security_label', virtiofsd: '--security-label',
  },
  killprivV2: {
    flag: 'killpriv-v2', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'drop set-uid, set-gid and capabilities on the host when a file is written, truncated or given away',
    legacy: 'killpriv_v2', virtiofsd: '--killpriv-v2',
  },
  allowProjectIds: {
    flag: 'allow-project-ids', type: 'flag', group: 'attributes', default: false, only: 'directory',
    help: 'let the guest change project ids of files, and so leave the project quota of the share',
    virtiofsd: null,
  },
  flock: {
    flag: 'flock', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'take flock(2) locks on the host, where other guests see them, instead of in the guest only',
    legacy: 'flock', virtiofsd: null,
  },
  posixLock: {
    flag: 'posix-lock', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'take fcntl(2) locks on the host, where other guests see them, instead of in the guest only',
    legacy: 'posix_lock', virtiofsd: null,
  },
  preserveNoatime: {
    flag: 'preserve-noatime', type: 'flag', group: 'attributes', default: false, only: 'directory',
    help: 'pass O_NOATIME of the guest on to the host',
    legacy: 'preserve_noatime', virtiofsd: '--preserve-noatime',
  },
  translateUid: {
    flag: 'translate-uid', type: 'list', group: 'attributes', value: 'RULE', max: 256, only: 'directory',
    help: "translate user ids between guest and host by virtiofsd's rules, for example 'map:1000:2000:1'",
    virtiofsd: '--translate-uid',
  },
  translateGid: {
    flag: 'translate-gid', type: 'list', group: 'attributes', value: 'RULE', max: 256, only: 'directory',
    help: 'the same for group ids',
    virtiofsd: '--translate-gid',
  },
  uidMap: {
    flag: 'uid-map', type: 'list', group: 'attributes', value: 'MAP', max: 80, only: 'directory',
    help: 'with --sandbox=namespace: user ids that exist in a user namespace of the daemon, as :namespace_id:host_id:count:, for example :0:100000:65536:; an ordinary user gets its own id as 0 without this',
    virtiofsd: '--uid-map',
  },
  gidMap: {
    flag: 'gid-map', type: 'list', group: 'attributes', value: 'MAP', max: 80, only: 'directory',
    help: 'the same for group ids; given together with --uid-map',
    virtiofsd: '--gid-map',
  },
  threadPoolSize: {
    flag: 'thread-pool-size', type: 'int', group: 'speed', value: 'N', default: availableParallelism(), defaultText: 'one for each core', min: 0, max: 1024,
    help: 'threads for what may wait for a disk, and as many again, when they are needed, for network file systems mounted inside a shared directory; 0 does everything in the main thread',
    virtiofsd: '--thread-pool-size',
  },
  offload: {
    flag: 'offload', type: 'choice', group: 'speed', value: 'WHEN', choices: ['auto', 'always', 'never'], default: 'auto', only: 'directory',
    help: 'when lookups, opens, attributes, changes of names and cached writes are done in the thread pool: auto on network file systems, also those mounted inside the share, and on others while they prove slow',
    virtiofsd: null,
  },
  numRequestQueues: {
    flag: 'num-request-queues', type: 'int', group: 'speed', value: 'N', default: 64, min: 1, max: 64,
    help: 'the most request queues that a frontend may use; it decides itself how many it does use',
    virtiofsd: null,
  },
  allowMemoryFiles: {
    flag: 'allow-memory-files', type: 'flag', group: 'process', default: false,
    help: 'take guest memory that lies in files of any file system: one that does not answer then stops the daemon. Without: memfd, tmpfs and hugetlbfs only',
    virtiofsd: null,
  },
  pollUs: {
    flag: 'poll-us', type: 'int', group: 'speed', value: 'US', default: 50, min: 0, max: 1000,
    help: 'after a request, look for the next one for so many microseconds before sleeping; 0 sleeps at once',
    virtiofsd: null,
  },
  rlimitNofile: {
    flag: 'rlimit-nofile', type: 'int', group: 'speed', value: 'N', default: null, defaultText: 'the hard limit', min: 0, max: 1 << 30,
    help: 'limit of open descriptors, at least 256; 0 leaves it as it is',
    virtiofsd: '--rlimit-nofile',
  },
  logLevel: {
    flag: 'log-level', type: 'choice', group: 'process', value: 'LEVEL', choices: LOG_LEVELS, default: 'info', synonyms: { err: 'error', warning: 'warn' },
    help: 'the least important line that is written to standard error',
    legacy: 'log_level', legacyAlias: 'loglevel', virtiofsd: '--log-level',
  },
  sandbox: {
    flag: 'sandbox', type: 'choice', group: 'process', value: 'MODE', choices: ['auto', 'namespace', 'none'], default: 'auto', synonyms: { chroot: 'auto' },
    help: 'namespace gives the daemon a root directory with nothing but the share and its program, a network of its own, and few capabilities; a bucket\'s has its cache directory, the files of its credentials and the host\'s network; auto, and chroot, which callers of virtiofsd say in containers, is that for root where it can be had, with a line in the log where it cannot, and none for other users',
    legacy: 'sandbox', virtiofsd: '--sandbox',
  },
  seccomp: {
    flag: 'seccomp', type: 'choice', group: 'process', value: 'ACTION', choices: ['auto', 'none', 'kill', 'log', 'trap'], default: 'auto',
    help: 'what happens at a system call that the daemon never needs: kill ends it, trap sends it SIGSYS, log lets it pass with a line in the log of the kernel; auto is kill for root, unless --sandbox=none is given, and none for other users',
    legacy: 'seccomp', virtiofsd: '--seccomp',
  },
  modcaps: {
    flag: 'modcaps', type: 'string', group: 'process', value: 'LIST', default: null, only: 'directory',
    help: 'capabilities that the daemon keeps beside (+) or without (-) those that files need, for example +sys_admin:-mknod; without --sandbox=namespace it gives up the others only if this is given',
    legacy: 'modcaps', virtiofsd: '--modcaps',
  },
  syslog: {
    flag: 'syslog', type: 'flag', group: 'process', default: false,
    help: 'write log lines to syslog (/dev/log) instead of standard error; where nobody listens there a warning and all lines go to standard error',
    virtiofsd: '--syslog',
  },
  once: {
    flag: 'once', type: 'flag', group: 'process', default: false,
    help: 'end when the frontend has gone, as virtiofsd does, for callers that wait for that; without it the next frontend is served',
    virtiofsd: null,
  },
  daemonize: {
    flag: 'daemonize', type: 'refused', group: 'process',
    help: 'not available', refusal: '--daemonize is not available: the daemon stays in the foreground, so start it by systemd or with & in a shell',
    virtiofsd: null,
  },
  migrationMode: {
    flag: 'migration-mode', type: 'choice', group: 'process', value: 'MODE', choices: ['find-paths', 'file-handles'], default: 'find-paths',
    help: `taken from callers of virtiofsd, ${NO_MIGRATION}`,
    virtiofsd: '--migration-mode',
  },
  migrationOnError: {
    flag: 'migration-on-error', type: 'choice', group: 'process', value: 'ACTION', choices: ['abort', 'guest-error'], default: 'abort',
    help: 'the same',
    virtiofsd: '--migration-on-error',
  },
  migrationVerifyHandles: {
    flag: 'migration-verify-handles', type: 'flag', group: 'process', default: false,
    help: 'the same',
    virtiofsd: '--migration-verify-handles',
  },
  migrationConfirmPaths: {
    flag: 'migration-confirm-paths', type: 'flag', group: 'process', default: false,
    help: 'the same',
    virtiofsd: '--migration-confirm-paths',
  },
  printCapabilities: {
    flag: 'print-capabilities', type: 'print', group: 'process',
    help: "print the JSON that management software asks for, and exit; other options are ignored",
    virtiofsd: '--print-capabilities',
  },
  version: {
    flag: 'version', short: 'V', type: 'print', group: 'process',
    help: 'print the version and exit',
    virtiofsd: '--version',
  },
  help: {
    flag: 'help', short: 'h', type: 'print', group: 'process',
    help: 'print this and exit',
    virtiofsd: '--help',
  },
  legacyList: {
    flag: '', short: 'o', type: 'list', group: 'legacy', value: 'LIST', max: 65_536,
    help: 'options in the form of the C virtiofsd: key,key=value; write a comma inside of a value as ,, or \\,',
    virtiofsd: '-o',
  },
  debug: {
    flag: '', short: 'd', type: 'flag', group: 'legacy', default: false,
    help: 'the same as --log-level=debug',
    legacy: 'debug', virtiofsd: '-d',
  },
  foreground: {
    flag: '', short: 'f', type: 'ignored', group: 'legacy',
    help: 'no effect: the daemon is always in the foreground',
    virtiofsd: '-f',
  },
} as const satisfies Record<string, OptionSpec>;

export type OptionKey = keyof typeof OPTIONS;

type ValueOf<S> = S extends { type: 'flag' | 'toggle' } ? boolean
  : S extends { type: 'choice' | 'negotiated'; choices: readonly (infer C)[] } ? C
  : S extends { type: 'int'; default: null } ? number | null
  : S extends { type: 'int' | 'mode' } ? number
  : S extends { type: 'list' } ? readonly string[]
  : S extends { type: 'string' } ? string | null
  : never;

type ValuedKey = { [K in OptionKey]: ValueOf<(typeof OPTIONS)[K]> extends never ? never : K }[OptionKey];

/** Every option that has a value, after checking. */
export type OptionValues = { readonly [K in ValuedKey]: ValueOf<(typeof OPTIONS)[K]> };

/** The table for code that treats all rows alike. */
export const OPTION_ENTRIES = Object.entries(OPTIONS) as readonly (readonly [OptionKey, OptionSpec])[];

/** How a message names an option: --cache, or -o for one without a long name. */
export function displayName(spec: OptionSpec): string {
  return spec.flag === '' ? `-${spec.short}` : `--${spec.flag}`;
}
