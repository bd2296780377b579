/** The rows of the comparison on a bucket: what is done, by which requests, and in which unit rows are compared. */

export interface Sizes {
  /** Bytes of the large object. */
  readonly size: number;
  /** Small files written, and read. */
  readonly files: number;
  /** Objects in the tree that is searched, in the directory that is listed, files of the source tree. */
  readonly tree: number;
  readonly list: number;
  readonly untar: number;
  /** Random reads of one size. */
  readonly reads: number;
}

export const FULL: Sizes = { size: 1 << 30, files: 2000, tree: 10_000, list: 100_000, untar: 400, reads: 200 };
export const QUICK: Sizes = { size: 128 << 20, files: 60, tree: 400, list: 2000, untar: 40, reads: 40 };

/** What has to be true when a write is done: it is in the bucket, or a cache has it, which uploads it later. */
export type Durability = 'none' | 'synchronous' | 'cached';

export interface Job {
  /** Of `vufs guest`, and of plain.ts. */
  readonly job: 'write-file' | 'read-file' | 'random-read' | 'write-files' | 'read-files' | 'find' | 'list' | 'untar';
  readonly durability: Durability;
  /** Bytes of one request, and how many are under way. */
  readonly bs?: number;
  readonly qd?: number;
  readonly count?: (sizes: Sizes) => number;
}

export type Unit = 'MB/s' | 'files/s' | 'entries/s' | 'reads/s';

/** One line of the table: one pass of a job. */
export interface Row {
  readonly name: string;
  readonly job: Job;
  readonly pass: string;
  readonly unit: Unit;
  /** Time runs until everything is in the bucket, not until the guest's last call returned. */
  readonly untilStored?: true;
}

const KIB = 1 << 10;
const MIB = 1 << 20;

function randomRows(label: string, bs: number): Row[] {
  const job: Job = { job: 'random-read', durability: 'none', bs, count: (sizes) => sizes.reads };
  return ['cold', 'warm'].map((pass) => ({ name: `random read ${label}, ${pass}`, job, pass, unit: 'reads/s' as const }));
}

function writeRows(name: string, unit: Unit, job: Omit<Job, 'durability'>, pass = 'write'): Row[] {
  const synchronous: Job = { ...job, durability: 'synchronous' };
  const cached: Job = { ...job, durability: 'cached' };
  return [
    { name: `${name}, synchronous`, job: synchronous, pass, unit },
    { name: `${name}, cached`, job: cached, pass, unit },
    { name: `${name}, cached, until stored`, job: cached, pass, unit, untilStored: true },
  ];
}

export const ROWS: readonly Row[] = [
  // Linux reads ahead 128 KiB, half of it while the other half is consumed; and with /sys/class/bdi/*/read_ahead_kb raised to 4 MiB
  { name: 'read, readahead 128 KiB', job: { job: 'read-file', durability: 'none', bs: 128 * KIB, qd: 2 }, pass: 'read', unit: 'MB/s' },
  { name: 'read, readahead 4 MiB', job: { job: 'read-file', durability: 'none', bs: MIB, qd: 4 }, pass: 'read', unit: 'MB/s' },
  ...randomRows('4 KiB', 4 * KIB),
  ...randomRows('256 KiB', 256 * KIB),
  { name: 'read small files', job: { job: 'read-files', durability: 'none', bs: 128 * KIB, count: (sizes) => sizes.files }, pass: 'read', unit: 'files/s' },
  { name: 'find and stat a tree', job: { job: 'find', durability: 'none', count: (sizes) => sizes.tree }, pass: 'find', unit: 'entries/s' },
  { name: 'list one directory', job: { job: 'list', durability: 'none', count: (sizes) => sizes.list }, pass: 'list', unit: 'entries/s' },
  ...writeRows('write', 'MB/s', { job: 'write-file', bs: MIB }),
  ...writeRows('write small files', 'files/s', { job: 'write-files', count: (sizes) => sizes.files }),
  ...writeRows('untar', 'files/s', { job: 'untar', count: (sizes) => sizes.untar }, 'untar'),
];

/** The jobs of these rows, each once. */
export function jobsOf(rows: readonly Row[]): Job[] {
  const seen = new Map<string, Job>();
  for (const { job } of rows) seen.set(jobKey(job), job);
  return [...seen.values()];
}

export const jobKey = (job: Job): string => [job.job, job.durability, job.bs ?? 0, job.qd ?? 1].join(' ');

/** Where the prepared data is. What is written gets a name of its own each time. */
export const PREPARED: Readonly<Record<string, string>> = {
  'read-file': 'large', 'random-read': 'large', 'read-files': 'small', find: 'tree', list: 'flat',
};
