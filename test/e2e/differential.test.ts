// The recordings of test/e2e/posix in real guests: on a disk of the guest with ext4, and on a share of a directory on ext4. What differs is in
// test/differential/allowed.ts or below, or a fault. (On every other file system and with every other option they run by this machine's own kernel:
// test/differential.) BUCKETFSD_LONG runs the guests that need long.
import assert from 'node:assert/strict'
import { spawnSync } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { test } from 'node:test'
import { ALLOWED, isAllowed } from '../differential/allowed.js'
import { differencesOf, linesOf, parseRecordings, type Difference } from '../differential/recordings.js'
import { DIRECTORY_OPTIONS, featuresOf, type ShareKind } from '../differential/shares.js'
import { MAIN, otherDaemon } from './daemon.js'
import { type KernelSeries } from './image.js'
import { withGuest } from './session.js'

interface Row {
  readonly kernel: KernelSeries
  readonly options: readonly string[]
  readonly queues: number
  readonly long: boolean
}

const LOCKS = ['--flock', '--posix-lock']
const ROWS: readonly Row[] = [
  { kernel: '6.12', options: LOCKS, queues: 1, long: false },
  { kernel: '6.1', options: ['--offload=always', '--allow-direct-io'], queues: 1, long: false },
  { kernel: '6.12', options: ['--offload=always', '--allow-direct-io', '--num-request-queues=4'], queues: 4, long: true },
  { kernel: '6.12', options: ['--cache=never', '--allow-mmap', ...LOCKS], queues: 1, long: true },
  { kernel: '6.12', options: ['--cache=always'], queues: 1, long: true },
  { kernel: '6.12', options: ['--cache=metadata'], queues: 1, long: true },
  { kernel: '6.12', options: ['--writeback'], queues: 1, long: true },
  { kernel: '6.1', options: ['--writeback', ...LOCKS], queues: 1, long: true },
  { kernel: '6.1', options: ['--cache=never'], queues: 1, long: true },
]

const DISK_BYTES = 256 << 20
const RECORD_TIMEOUT_MS = 400_000
const LEAST_LINES = 3_000
const long = process.env['BUCKETFSD_LONG'] !== undefined
const part = process.env['DIFFERENTIAL_ONLY'] ?? ''

function run(command: string, ...args: string[]): void {
  const { status, stderr, error } = spawnSync(command, args, { encoding: 'utf8' })
  if (status !== 0) throw new Error(`${command} ${args.join(' ')}: ${error?.message ?? stderr}`)
}

function ext4Image(path: string): string {
  writeFileSync(path, '')
  truncateSync(path, DISK_BYTES)
  run('mkfs.ext4', '-q', '-F', path)
  return path
}

/** What the kernel of a guest has not, or has otherwise than this machine's. */
function isOfGuest({ kernel, options }: Row, { recording, got }: Difference): boolean {
  // "A file handle that a guest's program has made is ESTALE as soon as the guest has forgotten the file": virtiofs forgets names at once that are not to be kept
  if (options.includes('--cache=never') && /handles of files/.test(recording)) return /^open_by_handle_at\(.* = ESTALE$|\(fd.* = EBADF$/.test(got)
  // "statx gives the birth time where the host's file system has it and the guest asks by STATX (Linux 6.6)"
  return kernel === '6.1' && /statx, statfs/.test(recording) && got.endsWith('no birth time')
}

async function record(row: Row, share: ShareKind): Promise<Difference[]> {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-differential-'))
  const base = join(directory, 'base')
  mkdirSync(base)
  run('mount', '-o', 'loop', ext4Image(join(directory, 'image')), base)
  try {
    const argv = [process.execPath, MAIN, '--socket-path', '{SOCK}', '--source', base, ...DIRECTORY_OPTIONS, ...row.options]
    // FUSE has TMPFILE since Linux 6.2
    const features = featuresOf(share).split(',').filter((feature) => row.kernel !== '6.1' || feature !== 'tmpfile').join()
    return await withGuest({ argv }, { kernel: row.kernel, requestQueues: row.queues, disk: ext4Image(join(directory, 'disk')) }, async (_daemon, guest) => {
      await guest.mount()
      await guest.sh('mkdir /disk /mnt/there && mount -t ext4 /dev/vda /disk && mkdir /disk/here')
      await guest.run(`FACT_SECONDS=120 posix record /disk/here ${features} '${part}' > /tmp/here; FACT_SECONDS=120 posix record /mnt/there ${features} '${part}' > /tmp/there; cp /tmp/here /mnt/h; cp /tmp/there /mnt/t`, RECORD_TIMEOUT_MS)
      const here = parseRecordings(readFileSync(join(base, 'h'), 'utf8'))
      if (part === '') assert.ok(linesOf(here) >= LEAST_LINES, `${linesOf(here)} lines`)
      return differencesOf(here, parseRecordings(readFileSync(join(base, 't'), 'utf8')))
    })
  } finally {
    run('umount', '--lazy', base)
    rmSync(directory, { recursive: true, force: true })
  }
}

for (const row of ROWS.filter((one) => long || !one.long)) {
  test(`what calls do in a guest with Linux ${row.kernel}: on its own disk and on a share ${row.options.join(' ')}`, { skip: otherDaemon ? 'the table is of ours' : process.geteuid!() !== 0 ? 'mounting needs root' : false }, async () => {
    const share: ShareKind = { store: 'directory', base: 'ext4', options: row.options, queues: row.queues, long: row.long }
    const faults = (await record(row, share)).filter((one) => !isOfGuest(row, one) && !ALLOWED.some((allowed) => isAllowed(allowed, share, one)))
    assert.ok(faults.length === 0, `${faults.length} lines differ:\n${faults.map(({ recording, expected, got }) => `${recording}\n  host:  ${expected}\n  share: ${got}`).join('\n')}`)
  })
}
