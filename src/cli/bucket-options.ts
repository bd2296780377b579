/** The options of buckets: a part of the one table in options.ts. */
import type { OptionSpec } from './option-spec.js';

export const BUCKET_OPTIONS = {
  endpoint: {
    flag: 'endpoint', type: 'string', group: 'bucket', value: 'URL', default: null, max: 2048, only: 'bucket',
    help: "another service that speaks the provider's protocol, for example http://127.0.0.1:7480",
    virtiofsd: null,
  },
  region: {
    flag: 'region', type: 'string', group: 'bucket', value: 'REGION', default: null, max: 64, only: 's3',
    help: "region of an S3 bucket, instead of that of the environment or the profile; without any it is us-east-1, or the one that the provider names",
    virtiofsd: null,
  },
  profile: {
    flag: 'profile', type: 'string', group: 'bucket', value: 'NAME', default: null, max: 255, only: 's3',
    help: 'section of ~/.aws/config and ~/.aws/credentials to take S3 credentials from',
    virtiofsd: null,
  },
  pathStyle: {
    flag: 'path-style', type: 'flag', group: 'bucket', default: false, only: 's3',
    help: 'put the name of an S3 bucket into the path instead of the host name; with --endpoint this is also tried by itself',
    virtiofsd: null,
  },
  unsigned: {
    flag: 'unsigned', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: 'use no credentials: for public buckets',
    virtiofsd: null,
  },
  requesterPays: {
    flag: 'requester-pays', type: 'flag', group: 'bucket', default: false, only: 's3',
    help: 'accept to be charged for requests to an S3 bucket that wants it; on Google Cloud Storage name the project with --gcs-project',
    virtiofsd: null,
  },
  expectedBucketOwner: {
    flag: 'expected-bucket-owner', type: 'string', group: 'bucket', value: 'ACCOUNT', default: null, max: 64, only: 's3',
    help: 'fail if the S3 bucket belongs to another AWS account',
    virtiofsd: null,
  },
  caBundle: {
    flag: 'ca-bundle', type: 'string', group: 'bucket', value: 'FILE', default: null, only: 'bucket',
    help: "certificates (PEM) that the endpoint's may be signed with, instead of the usual ones",
    virtiofsd: null,
  },
  gcsProject: {
    flag: 'gcs-project', type: 'string', group: 'bucket', value: 'PROJECT', default: null, max: 128, only: 'gcs',
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
  privilegedMetadata: {
    flag: 'privileged-metadata', type: 'flag', group: 'bucket', default: false, only: 'bucket',
    help: "believe objects' metadata that gives rights: set-id bits, device nodes and attributes other than user.*; whoever may put an object is then root in the guest",
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
} as const satisfies Record<string, OptionSpec>;
