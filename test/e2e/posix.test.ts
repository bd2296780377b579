// The POSIX facts of test/e2e/posix, in a real guest. Few boots that together cover every value of the matrix:
// cache auto, never, always; one and four request queues; with the pool and all inline. Two more run the facts that
// cache metadata and --writeback may change.
// E2E_ONLY limits the facts to those whose name contains it; E2E_QUEUES is the number of request queues that a daemon
// named by E2E_DAEMON can serve.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { test } from 'node:test'
import { type Cache, type Daemon, FEATURES, otherDaemon } from './daemon.js'
import { type Fact, parseFacts } from './facts.js'
import type { Guest } from './guest.js'
import type { KernelSeries } from './image.js'
import { withGuest } from './session.js'

interface Row {
  readonly cache: Cache
  readonly requestQueues: number
  readonly kernel: KernelSeries
  /** Absent: the daemon's default. */
  readonly threadPoolSize?: number
  /** Locks kept by the daemon instead of the guest's kernel. */
  readonly locks?: boolean
  /** --allow-mmap, which Linux 6.6 and later know: shared mappings of files that are opened with direct I/O. */
  readonly allowMmap?: boolean
  /** Everything in the pool, as on a network file system. */
  readonly offload?: boolean
  /** --sandbox=namespace and --seccomp=kill; trusted.* attributes need one capability more. */
  readonly sandbox?: boolean
  readonly writeback?: boolean
  /** --allow-direct-io: O_DIRECT of the guest's programs is the host's too. */
  readonly allowDirectIo?: boolean
  /** Only the facts of these files; absent: all. */
  readonly files?: readonly string[]
}

const SANDBOX = ['--sandbox=namespace', '--seccomp=kill', '--modcaps=+sys_admin']

// A kernel before 6.11 uses one request queue, whatever the device has.
const MATRIX: readonly Row[] = [
  { cache: 'auto', requestQueues: 1, kernel: '6.1', locks: true, sandbox: !otherDaemon },
  { cache: 'never', requestQueues: 4, kernel: '6.12', locks: true, allowMmap: !otherDaemon },
  { cache: 'always', requestQueues: 1, kernel: '6.1', threadPoolSize: 0 },
  { cache: 'auto', requestQueues: 4, kernel: '6.12', threadPoolSize: 0 },
  { cache: 'auto', requestQueues: 4, kernel: '6.12', threadPoolSize: 3, locks: true, offload: !otherDaemon, sandbox: !otherDaemon, allowDirectIo: !otherDaemon },
]

/** Of our own daemon. */
const OPTIONS: readonly Row[] = [
  { cache: 'metadata', requestQueues: 1, kernel: '6.12', allowMmap: true, files: ['data.c', 'append.c', 'directories.c'] },
  { cache: 'auto', requestQueues: 1, kernel: '6.1', writeback: true, files: ['data.c', 'append.c', 'meta.c'] },
]

const SUITE_TIMEOUT_MS = 150_000

function featuresOf(row: Row): string {
  // cache never and metadata open files with direct I/O, which a guest by itself maps only privately.
  const mmap = (row.cache === 'never' || row.cache === 'metadata') && row.allowMmap !== true ? [] : ['mmap']
  // virtiofs has no FUSE_INTERRUPT: waiting for a lock of the daemon's can only end by getting it.
  const interrupt = row.locks === true ? [] : ['interrupt']
  return [...FEATURES, ...mmap, ...interrupt, ...(row.writeback === true ? [] : ['writethrough'])].join()
}

function runFacts(row: Row): Promise<Fact[]> {
  const extra = [
    ...(row.allowMmap === true ? ['--allow-mmap'] : []),
    ...(row.writeback === true ? ['--writeback'] : []),
    ...(row.offload === true ? ['--offload=always'] : []),
    ...(row.sandbox === true ? SANDBOX : []),
    ...(row.allowDirectIo === true ? ['--allow-direct-io'] : []),
  ]
  const daemonOptions = {
    cache: row.cache,
    locks: row.locks ?? false,
    extra,
    ...(row.requestQueues > 1 ? { requestQueues: row.requestQueues } : {}),
    ...(row.threadPoolSize === undefined ? {} : { threadPoolSize: row.threadPoolSize }),
  }
  return withGuest(daemonOptions, { kernel: row.kernel, requestQueues: row.requestQueues }, async (daemon, guest) => {
    await guest.mount()
    const only = process.env['E2E_ONLY']
    const facts: Fact[] = []
    for (const part of only === undefined ? (row.files ?? ['']) : [only]) facts.push(...await runPart(row, guest, part))
    if (row.writeback === true) await showWriteback(daemon, guest)
    return facts
  })
}

/** The facts whose name or file contains `part`. */
async function runPart(row: Row, guest: Guest, part: string): Promise<Fact[]> {
  const directory = `/mnt/facts-${part.replace(/\W/g, '-')}`
  await guest.sh(`mkdir '${directory}' && chmod 755 '${directory}'`)
  try {
    // Exit code 1 says that a fact failed; the lines say which.
    return parseFacts((await guest.run(`posix '${directory}' ${featuresOf(row)} '${part}'`, SUITE_TIMEOUT_MS)).output)
  } catch (error) {
    const last = guest.outputSoFar.split('\n').at(-1)
    throw new Error(`${(error as Error).message}\nthe fact after this one did not end: ${last}`)
  }
}

/** The guest does collect writes, and what it has written back is on the host. */
async function showWriteback(daemon: Daemon, guest: Guest): Promise<void> {
  assert.match(daemon.log, /WRITEBACK_CACHE/, 'granted')
  await guest.sh('for i in 1 2 3; do echo line $i >> /mnt/collected; done; sync')
  assert.equal(readFileSync(join(daemon.shareDir, 'collected'), 'utf8'), 'line 1\nline 2\nline 3\n')
}

/** Facts that ran in some row, and those that were skipped in some row with the first reason. */
const proven = new Set<string>()
const unproven = new Map<string, string>()
const LEAST_FACTS = 150

const mostQueues = Number(process.env['E2E_QUEUES'] ?? (otherDaemon ? 1 : 64))

for (const wanted of [...MATRIX, ...(otherDaemon ? [] : OPTIONS)]) {
  const row = { ...wanted, requestQueues: Math.min(wanted.requestQueues, mostQueues) }
  const several = row.requestQueues > 1
  const pool = row.threadPoolSize === undefined ? 'the default pool' : row.threadPoolSize === 0 ? 'no pool' : `${row.threadPoolSize} pool threads`
  const locks = row.locks === true ? "the daemon's locks" : "the kernel's locks"
  const all = row.offload === true ? ' for everything' : ''
  const sandbox = row.sandbox === true ? ' in a sandbox,' : ''
  const which = row.files === undefined ? '' : ` (${row.files.join(', ')}${row.writeback === true ? ', --writeback' : ''})`
  test(`POSIX facts${which} with cache ${row.cache}, ${row.requestQueues} request queue${several ? 's' : ''}, ${pool}${all}, ${locks},${sandbox} Linux ${row.kernel}`, async (context) => {
    for (const fact of await runFacts(row)) {
      // What this kernel or cache mode cannot do has to run in another row: see the last test.
      if (fact.outcome === 'skipped') {
        unproven.set(fact.name, unproven.get(fact.name) ?? fact.detail)
        context.diagnostic(`does not apply: ${fact.name} (${fact.detail})`)
        continue
      }
      proven.add(fact.name)
      await context.test(fact.name, () => {
        if (fact.outcome === 'failed') throw new Error(fact.detail)
      })
    }
  })
}

test('every fact runs in at least one row', { skip: otherDaemon ? 'the daemon named need not have everything' : false }, () => {
  assert.ok(proven.size >= (process.env['E2E_ONLY'] === undefined ? LEAST_FACTS : 0), `${proven.size} facts`)
  const never = [...unproven].filter(([name]) => !proven.has(name))
  assert.deepEqual(never.filter(([, reason]) => !/^FS_IOC|^ioctl/.test(reason)), [])
})
