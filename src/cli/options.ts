/**
 * The one table of options: parsing, checking, --help, docs/OPERATIONS.md and the legacy -o keys come from it.
 *
 * Types: `flag` is on when named; `toggle` also has --no-NAME; `int`, `string` and `choice` take a value; `list`
 * may be repeated; `mode` takes permissions in octal; `refused` is known from virtiofsd but answered with a sentence that says what to do instead;
 * `print` prints something and exits; `ignored` has no effect.
 */
import { availableParallelism } from 'node:os';
import { LOG_LEVELS } from '../base/log.js';
import { SOCKET_PATH_MAX_BYTES } from '../ffi/socket.js';

export const GROUPS = {
  socket: 'Where to listen (exactly one of --socket-path, --fd, or a socket from systemd)',
  share: 'What to share',
  bucket: 'Buckets (--source s3://BUCKET[/PREFIX] or gs://BUCKET[/PREFIX])',
  cache: 'What the guest may cache',
  attributes: 'Owners, attributes and locks',
  speed: 'Speed and resources',
  process: 'Process and log',
  legacy: 'For callers that know virtiofsd',
} as const;

export interface OptionSpec {
  /** Long name without the dashes. */
  flag: string;
  short?: string;
  alias?: string;
  type: 'flag' | 'toggle' | 'int' | 'string' | 'choice' | 'list' | 'mode' | 'refused' | 'print' | 'ignored';
  group: keyof typeof GROUPS;
  /** What stands for the value in the help. */
  value?: string;
  default?: boolean | number | string | null;
  /** Said instead of a default that depends on the machine. */
  defaultText?: string;
  choices?: readonly string[];
  /** Other spellings of a choice that virtiofsd knows. */
  synonyms?: Readonly<Record<string, string>>;
  /** Choices that are known but not there yet: the sentence of the usage error. */
  refusedChoices?: Readonly<Record<string, string>>;
  /** Bounds of a number, both inclusive; for a string, of its length in bytes (default 1..4096). */
  min?: number;
  max?: number;
  help: string;
  /** For a toggle that is on by default: what --no-NAME does. */
  helpOff?: string;
  /** For `refused`: the sentence of the usage error. */
  refusal?: string;
  /** The key of the legacy -o list; a flag or toggle also has no_KEY. */
  legacy?: string;
  /** Means something for one kind of source only; absent: for all. */
  only?: 'directory' | 'bucket';
  /** The option of virtiofsd 1.13 that this one equals; null: it has none. */
  virtiofsd: string | null;
}

const NO_CHROOT =
  'is not available: threads and modules of the daemon are loaded from its own program files later, which a bare chroot would hide; use --sandbox=namespace or none';

const NO_MIGRATION = 'is not available: the state of the share is not handed over to another host, so a virtual machine that has mounted it cannot migrate';

export const OPTIONS = {
  socketPath: {
    flag: 'socket-path', type: 'string', group: 'socket', value: 'PATH', default: null, max: SOCKET_PATH_MAX_BYTES,
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
    flag: 'inode-file-handles', type: 'choice', group: 'share', value: 'MODE', choices: ['never', 'prefer', 'mandatory'], default: 'prefer', only: 'directory',
    help: 'refer to files by handle instead of an open descriptor, so that no number of files exhausts descriptors; needs CAP_DAC_READ_SEARCH',
    legacy: 'inode_file_handles', virtiofsd: '--inode-file-handles',
  },
  endpoint: {
    flag: 'endpoint', type: 'string', group: 'bucket', value: 'URL', default: null, max: 2048, only: 'bucket',
    help: "another service that speaks the provider's protocol, for example http://127.0.0.1:7480",
    virtiofsd: null,
  },
  region: {
    flag: 'region', type: 'string', group: 'bucket', value: 'REGION', default: null, max: 64, only: 'bucket',
    help: "region of an S3 bucket, instead of that of the environment or the profile",
    virtiofsd: null,
  },
  profile: {
    flag: 'profile', type: 'string', group: 'bucket', value: 'NAME', default: null, max: 255, only: 'bucket',
    help: 'section of ~/.aws/config and ~/.aws/credentials to take S3 credentials from',
    virtiofsd: null,
  },
  pathStyle: {
    flag: 'path-style', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: 'put the name of an S3 bucket into the path instead of the host name, as many other services than AWS need it',
    virtiofsd: null,
  },
  unsigned: {
    flag: 'unsigned', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: 'use no credentials: for public buckets',
    virtiofsd: null,
  },
  requesterPays: {
    flag: 'requester-pays', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: 'accept to be charged for requests to an S3 bucket that wants it; on Google Cloud Storage name the project with --gcs-project',
    virtiofsd: null,
  },
  expectedBucketOwner: {
    flag: 'expected-bucket-owner', type: 'string', group: 'bucket', value: 'ACCOUNT', default: null, max: 64, only: 'bucket',
    help: 'fail if the S3 bucket belongs to another AWS account',
    virtiofsd: null,
  },
  caBundle: {
    flag: 'ca-bundle', type: 'string', group: 'bucket', value: 'FILE', default: null, only: 'bucket',
    help: "certificates (PEM) that the endpoint's may be signed with, instead of the usual ones",
    virtiofsd: null,
  },
  gcsProject: {
    flag: 'gcs-project', type: 'string', group: 'bucket', value: 'PROJECT', default: null, max: 128, only: 'bucket',
    help: 'project to be charged for requests to a Google Cloud Storage bucket where the requester pays',
    virtiofsd: null,
  },
  storageClass: {
    flag: 'storage-class', type: 'string', group: 'bucket', value: 'CLASS', default: null, max: 64, only: 'bucket',
    help: "storage class of what is written, instead of the bucket's own",
    virtiofsd: null,
  },
  sse: {
    flag: 'sse', type: 'choice', group: 'bucket', value: 'HOW', choices: ['AES256', 'aws:kms'], default: null, only: 'bucket',
    help: 'encryption by the provider of what is written to an S3 bucket, instead of the bucket\'s own',
    virtiofsd: null,
  },
  kmsKey: {
    flag: 'kms-key', type: 'string', group: 'bucket', value: 'KEY', default: null, max: 2048, only: 'bucket',
    help: 'key of the provider\'s key service to encrypt with: for S3 its id or ARN, with --sse=aws:kms; for Google Cloud Storage its resource name',
    virtiofsd: null,
  },
  durability: {
    flag: 'durability', type: 'choice', group: 'bucket', value: 'LEVEL', choices: ['remote', 'writeback'], default: 'remote', only: 'bucket',
    help: 'when fsync and close return: remote when the object is in the bucket, writeback when its data is on the disk of the host, in the cache directory; the bucket gets it a little later',
    virtiofsd: null,
  },
  writebackDelay: {
    flag: 'writeback-delay', type: 'int', group: 'bucket', value: 'SECONDS', default: 5, min: 0, max: 3600, only: 'bucket',
    help: 'with --durability=writeback, how long changes are collected before they are uploaded',
    virtiofsd: null,
  },
  onConflict: {
    flag: 'on-conflict', type: 'choice', group: 'bucket', value: 'WHAT', choices: ['keep', 'overwrite'], default: 'keep', only: 'bucket',
    help: 'when somebody else has changed an object meanwhile: keep it, and what was written here below .bucketfsd-conflicts/, with ESTALE for the writer; or overwrite it',
    virtiofsd: null,
  },
  cacheDir: {
    flag: 'cache-dir', type: 'string', group: 'bucket', value: 'DIR', default: null, only: 'bucket', defaultText: 'one for each source, below $STATE_DIRECTORY, /var/lib/bucketfsd or ~/.local/state/bucketfsd',
    help: 'where what is not in the bucket yet is kept, for one daemon and one source; what is in it is data, not to be cleaned away',
    virtiofsd: null,
  },
  cacheSize: {
    flag: 'cache-size', type: 'int', group: 'bucket', value: 'MIB', default: 0, defaultText: 'none', min: 0, max: 1 << 20, only: 'bucket',
    help: 'disk space, in MiB, for keeping what was read: in blocks/ of the cache directory, checked by checksums, valid after a restart; 0 keeps nothing',
    virtiofsd: null,
  },
  cacheFill: {
    flag: 'cache-fill', type: 'choice', group: 'bucket', value: 'WHEN', choices: ['on', 'off'], default: 'on', only: 'bucket',
    help: 'with --cache-size: an object that is read here and there is fetched as a whole, where the bucket is far away, if it has at most a quarter of the cache and fits into free room',
    virtiofsd: null,
  },
  dryRun: {
    flag: 'dry-run', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: 'with bucketfsd recover: only show what it would do',
    virtiofsd: null,
  },
  metadataTtl: {
    flag: 'metadata-ttl', type: 'int', group: 'bucket', value: 'SECONDS', default: 1, min: 0, max: 86_400, only: 'bucket',
    help: 'how long names and attributes are believed before the bucket is asked again, by the daemon and by the guest each',
    virtiofsd: null,
  },
  posixMetadata: {
    flag: 'posix-metadata', type: 'choice', group: 'bucket', value: 'WHEN', choices: ['off', 'lazy', 'full'], default: 'full', only: 'bucket',
    help: "modes, owners, times, links and attributes in objects' metadata: off ignores them, lazy asks for them object by object, full also for each entry of a listing with attributes",
    virtiofsd: null,
  },
  memoryBudget: {
    flag: 'memory-budget', type: 'int', group: 'bucket', value: 'MIB', default: 256, min: 32, max: 1 << 20, only: 'bucket',
    help: 'memory for what is read, and fetched ahead, in MiB',
    virtiofsd: null,
  },
  uid: {
    flag: 'uid', type: 'int', group: 'bucket', value: 'UID', default: 0, min: 0, max: 0xfffffffe, only: 'bucket',
    help: 'owner of objects that name none',
    virtiofsd: null,
  },
  gid: {
    flag: 'gid', type: 'int', group: 'bucket', value: 'GID', default: 0, min: 0, max: 0xfffffffe, only: 'bucket',
    help: 'group of objects that name none',
    virtiofsd: null,
  },
  fileMode: {
    flag: 'file-mode', type: 'mode', group: 'bucket', value: 'MODE', default: 0o644, defaultText: '644', max: 0o7777, only: 'bucket',
    help: 'permissions of objects that name none, in octal',
    virtiofsd: null,
  },
  dirMode: {
    flag: 'dir-mode', type: 'mode', group: 'bucket', value: 'MODE', default: 0o755, defaultText: '755', max: 0o7777, only: 'bucket',
    help: 'permissions of directories that name none, in octal',
    virtiofsd: null,
  },
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
    flag: 'posix-acl', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'POSIX access control lists; implies --xattr',
    legacy: 'posix_acl', virtiofsd: '--posix-acl',
  },
  securityLabel: {
    flag: 'security-label', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: "store the guest's security label with each new file; implies --xattr",
    legacy: 'security_label', virtiofsd: '--security-label',
  },
  killprivV2: {
    flag: 'killpriv-v2', type: 'toggle', group: 'attributes', default: false, only: 'directory',
    help: 'drop set-uid, set-gid and capabilities on the host when a file is written, truncated or given away',
    legacy: 'killpriv_v2', virtiofsd: '--killpriv-v2',
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
    flag: 'thread-pool-size', type: 'int', group: 'speed', value: 'N', default: availableParallelism(), defaultText: 'one for each core', min: 0, max: 256,
    help: 'threads for what may wait for a disk; 0 does everything in the main thread',
    virtiofsd: '--thread-pool-size',
  },
  offload: {
    flag: 'offload', type: 'choice', group: 'speed', value: 'WHEN', choices: ['auto', 'always', 'never'], default: 'auto', only: 'directory',
    help: 'when lookups, opens, attributes, changes of names and cached writes are done in the thread pool: auto on a network file system, and on others while they prove slow',
    virtiofsd: null,
  },
  numRequestQueues: {
    flag: 'num-request-queues', type: 'int', group: 'speed', value: 'N', default: 64, min: 1, max: 64,
    help: 'the most request queues that a frontend may use; it decides itself how many it does use',
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
    legacy: 'log_level', virtiofsd: '--log-level',
  },
  sandbox: {
    flag: 'sandbox', type: 'choice', group: 'process', value: 'MODE', choices: ['namespace', 'chroot', 'none'], default: 'none', only: 'directory',
    refusedChoices: { chroot: NO_CHROOT },
    help: 'namespace gives the daemon a root directory with nothing but the share and its program, a network of its own, and few capabilities',
    legacy: 'sandbox', virtiofsd: '--sandbox',
  },
  seccomp: {
    flag: 'seccomp', type: 'choice', group: 'process', value: 'ACTION', choices: ['none', 'kill', 'log', 'trap'], default: 'none', only: 'directory',
    help: 'what happens at a system call that the daemon never needs: kill ends it, trap sends it SIGSYS, log lets it pass with a line in the log of the kernel',
    legacy: 'seccomp', virtiofsd: '--seccomp',
  },
  modcaps: {
    flag: 'modcaps', type: 'string', group: 'process', value: 'LIST', default: null, only: 'directory',
    help: 'capabilities that the daemon keeps beside (+) or without (-) those that files need, for example +sys_admin:-mknod; without --sandbox=namespace it gives up the others only if this is given',
    legacy: 'modcaps', virtiofsd: '--modcaps',
  },
  syslog: {
    flag: 'syslog', type: 'flag', group: 'process', default: false,
    help: 'write log lines to syslog (/dev/log) instead of standard error',
    virtiofsd: '--syslog',
  },
  daemonize: {
    flag: 'daemonize', type: 'refused', group: 'process',
    help: 'not available', refusal: '--daemonize is not available: the daemon stays in the foreground, so start it by systemd or with & in a shell',
    virtiofsd: null,
  },
  migrationMode: {
    flag: 'migration-mode', type: 'refused', group: 'process', value: 'MODE',
    help: 'not available', refusal: `--migration-mode ${NO_MIGRATION}`,
    virtiofsd: '--migration-mode',
  },
  migrationOnError: {
    flag: 'migration-on-error', type: 'refused', group: 'process', value: 'ACTION',
    help: 'not available', refusal: `--migration-on-error ${NO_MIGRATION}`,
    virtiofsd: '--migration-on-error',
  },
  migrationVerifyHandles: {
    flag: 'migration-verify-handles', type: 'refused', group: 'process', 
    help: 'not available', refusal: `--migration-verify-handles ${NO_MIGRATION}`,
    virtiofsd: '--migration-verify-handles',
  },
  migrationConfirmPaths: {
    flag: 'migration-confirm-paths', type: 'refused', group: 'process', 
    help: 'not available', refusal: `--migration-confirm-paths ${NO_MIGRATION}`,
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
  : S extends { type: 'choice'; choices: readonly (infer C)[] } ? C
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
