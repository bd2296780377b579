/** On which shares the calls are recorded. */

export type Base = 'ext4' | 'xfs' | 'tmpfs';
export type Store = 'directory' | 's3' | 'gcs';

export interface ShareKind {
  readonly store: Store;
  /** File system below the directory, or the one that a bucket is compared with. */
  readonly base: Base;
  /** Of the daemon, beyond those that every share has. */
  readonly options: readonly string[];
  readonly queues: number;
  /** Run by BUCKETFSD_LONG only. */
  readonly long: boolean;
}

/** Of every directory: what a guest can have of attributes and set-id bits. */
export const DIRECTORY_OPTIONS = ['--xattr', '--posix-acl', '--killpriv-v2', '--modcaps=+sys_admin:+linux_immutable'] as const;

const directory = (base: Base, long: boolean, ...options: string[]): ShareKind => ({ store: 'directory', base, options, queues: 1, long });
const bucket = (store: 's3' | 'gcs', long: boolean, ...options: string[]): ShareKind => ({ store, base: 'ext4', options, queues: 1, long });

const LOCKS = ['--flock', '--posix-lock'] as const;

export const SHARES: readonly ShareKind[] = [
  directory('ext4', false),
  directory('ext4', false, '--cache=never', '--allow-mmap', '--allow-direct-io', ...LOCKS),
  directory('ext4', false, '--writeback', '--offload=always'),
  directory('ext4', false, '--cache=metadata', '--offload=always', '--allow-direct-io', ...LOCKS),
  { ...directory('xfs', false, '--offload=always', '--allow-direct-io', '--num-request-queues=4'), queues: 4 },
  directory('xfs', false, '--cache=always', '--thread-pool-size=0'),
  directory('tmpfs', false, '--allow-direct-io', ...LOCKS),
  bucket('gcs', false),
  bucket('gcs', false, '--durability=writeback'),
  ...(['ext4', 'xfs', 'tmpfs'] as const).flatMap((base) => [
    ...['auto', 'always', 'never', 'metadata'].flatMap((cache) => [
      directory(base, true, `--cache=${cache}`),
      directory(base, true, `--cache=${cache}`, '--allow-mmap', '--allow-direct-io', '--offload=always', ...LOCKS),
    ]),
    directory(base, true, '--writeback'),
    directory(base, true, '--writeback', '--cache=always', '--allow-direct-io', ...LOCKS),
    directory(base, true, '--inode-file-handles=never', '--no-readdirplus', '--no-announce-submounts'),
    directory(base, true, '--inode-file-handles=mandatory', '--preserve-noatime'),
    directory(base, true, '--sandbox=namespace', '--seccomp=kill', '--modcaps=+sys_admin:+linux_immutable'),
  ]),
  bucket('gcs', true, '--metadata-ttl=0'),
  bucket('s3', true),
  bucket('s3', true, '--durability=writeback'),
  bucket('s3', true, '--posix-metadata=lazy', '--cache-size=256'),
];

export const nameOf = ({ store, base, options, queues }: ShareKind): string =>
  `${store === 'directory' ? `a directory on ${base}` : `a bucket (${store})`} ${[...options, ...(queues > 1 ? [`${queues} queues`] : [])].join(' ')}`.trim();

const has = (share: ShareKind, option: string): boolean => share.options.includes(option);

/** What a bucket has not: whole recordings are left out there, and "what not every file system has" shows what programs get instead. */
const OF_DIRECTORIES = ['sparse', 'holes', 'links', 'dirlinks', 'tmpfile', 'exchange', 'flags', 'xattrs'] as const;

/** Features of the recordings that need some. */
export function featuresOf(share: ShareKind): string {
  const direct = has(share, '--cache=never') || has(share, '--cache=metadata');
  return [...(direct && !has(share, '--allow-mmap') ? [] : ['mmap']), ...(share.store === 'directory' ? OF_DIRECTORIES : [])].join();
}

export const isBucket = (share: ShareKind): boolean => share.store !== 'directory';
export const isWriteback = (share: ShareKind): boolean => has(share, '--writeback');
export const isDirect = (share: ShareKind): boolean => has(share, '--allow-direct-io');
export const mapsNothing = (share: ShareKind): boolean => !featuresOf(share).includes('mmap');
export const isOn = (base: Base) => (share: ShareKind): boolean => share.store === 'directory' && share.base === base;
