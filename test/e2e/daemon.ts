// Starts a virtiofs daemon on a new directory: ours, or any other that E2E_DAEMON names.
//
// E2E_DAEMON is a command line with {SOCK}, {DIR}, {CACHE} (auto, always, never, metadata) or
// {CACHE_C} (auto, always, none, as the C daemon calls it) substituted, for example
//   E2E_DAEMON='/usr/lib/qemu/virtiofsd --socket-path={SOCK} -o source={DIR} -o cache={CACHE_C} -o xattr -f'
// E2E_FEATURES is then what that daemon has (see FEATURES below).
import { type ChildProcess, spawn } from 'node:child_process'
import { chmodSync, existsSync, mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { projectRoot } from './image.js'
import { type Exit, exitOf, temporary, terminate } from './process.js'

export type Cache = 'auto' | 'always' | 'never' | 'metadata'

export interface DaemonOptions {
  readonly cache?: Cache
  /** Pool threads; absent: the daemon's default. */
  readonly threadPoolSize?: number
  /** Request queues that the daemon offers; absent: the daemon's default. */
  readonly requestQueues?: number
  /** Whether the daemon serves flock and POSIX locks; otherwise the guest's kernel keeps them. */
  readonly locks?: boolean
  /** Further options of ours. */
  readonly extra?: readonly string[]
  /** Replaces the whole command line; {SOCK} and {DIR} are substituted. */
  readonly argv?: readonly string[]
  /** Besides that of this process. */
  readonly env?: Readonly<Record<string, string>>
  /** A listening socket that the daemon inherits as descriptor 3; then it makes no socket of its own. */
  readonly listenFd?: number
}

/** What facts may ask of a daemon; "mmap", "interrupt" and "writethrough", which depend on the row, are added by the tests. "slow": thousands of files take minutes. */
export const FEATURES = process.env['E2E_FEATURES']?.split(',') ?? ['xattr', 'acl', 'tmpfile', 'ioctl', 'killpriv', 'sparse']

/** Whether another daemon than ours is tested: what only ours does is then skipped. */
export const otherDaemon: boolean = process.env['E2E_DAEMON'] !== undefined

export const MAIN = join(projectRoot, 'build', 'src', 'main.js')

const START_TIMEOUT_MS = 20_000
const STOP_GRACE_MS = 10_000

export class Daemon {
  readonly directory = mkdtempSync(join(tmpdir(), 'bucketfsd-e2e-'))
  readonly shareDir = join(this.directory, 'share')
  readonly socketPath = join(this.directory, 'socket')
  readonly exited: Promise<Exit>
  readonly #child: ChildProcess
  #log = ''
  #stopping = false

  private constructor(options: DaemonOptions) {
    mkdirSync(this.shareDir)
    chmodSync(this.shareDir, 0o755)
    const cache = options.cache ?? 'auto'
    const values: Record<string, string> = {
      SOCK: this.socketPath,
      DIR: this.shareDir,
      CACHE: cache,
      CACHE_C: cache === 'never' ? 'none' : cache,
    }
    const argv = commandLine(options).map((word) =>
      word.replace(/\{([A-Z_]+)\}/g, (whole, name: string) => values[name] ?? whole))
    this.#child = spawn(argv[0]!, argv.slice(1), {
      env: { ...process.env, ...options.env },
      stdio: ['ignore', 'pipe', 'pipe', ...(options.listenFd === undefined ? [] : [options.listenFd])],
    })
    temporary.add(this.directory)
    this.exited = exitOf(this.#child)
    for (const stream of [this.#child.stdout, this.#child.stderr]) {
      stream?.setEncoding('utf8').on('data', (text: string) => { this.#log = (this.#log + text).slice(-LOG_KEPT) })
    }
  }

  /** Resolves once the socket is there. Rejects, with the log, when the daemon ends before. */
  static async start(options: DaemonOptions = {}): Promise<Daemon> {
    const daemon = new Daemon(options)
    try {
      if (options.listenFd === undefined) await daemon.#listening()
      return daemon
    } catch (error) {
      await daemon.stop()
      throw error
    }
  }

  get pid(): number {
    return this.#child.pid!
  }

  /** The last of standard output and error. */
  get log(): string {
    return this.#log
  }

  get alive(): boolean {
    return this.#child.exitCode === null && this.#child.signalCode === null
  }

  /** Rejects when the daemon ends without having been asked to. */
  async untilDeath(): Promise<never> {
    const exit = await this.exited
    if (this.#stopping) return new Promise(() => {})
    throw new Error(`the daemon ended by itself: ${exit.signal ?? `exit code ${exit.code}`}`)
  }

  /** SIGTERM and wait; removes the share. */
  async stop(): Promise<Exit> {
    this.#stopping = true
    const exit = await terminate(this.#child, this.exited, STOP_GRACE_MS)
    rmSync(this.directory, { recursive: true, force: true })
    temporary.delete(this.directory)
    return exit
  }

  async #listening(): Promise<void> {
    const deadline = Date.now() + START_TIMEOUT_MS
    // Connecting to find out would use up the one connection that some daemons take: the socket's name must do.
    while (!existsSync(this.socketPath)) {
      if (!this.alive) throw new Error(`the daemon ended at once:\n${this.#log}`)
      if (Date.now() > deadline) throw new Error(`the daemon made no socket in ${START_TIMEOUT_MS} ms:\n${this.#log}`)
      await sleep(10)
    }
  }
}

const LOG_KEPT = 64 * 1024

/** Ours with every option on that the facts ask for, unless something else is wanted. */
function commandLine(options: DaemonOptions): readonly string[] {
  if (options.argv !== undefined) return options.argv
  const other = process.env['E2E_DAEMON']
  if (other !== undefined) return other.split(/\s+/).filter((word) => word !== '')
  return [
    process.execPath, MAIN,
    '--socket-path', '{SOCK}',
    '--shared-dir', '{DIR}',
    '--cache', '{CACHE}',
    '--xattr',
    '--posix-acl',
    '--killpriv-v2',
    // In the sandbox of the default, which keeps neither: trusted.* attributes, and the inode flags immutable and append-only
    '--modcaps=+sys_admin:+linux_immutable',
    ...(options.locks === true ? ['-o', 'flock,posix_lock'] : []),
    ...(options.threadPoolSize === undefined ? [] : ['--thread-pool-size', String(options.threadPoolSize)]),
    ...(options.requestQueues === undefined ? [] : ['--num-request-queues', String(options.requestQueues)]),
    ...(options.extra ?? []),
  ]
}
