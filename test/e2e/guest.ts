// A real guest: QEMU, software-emulated, with the image of scripts/guest-image.sh. Its second serial port is a small
// shell protocol, described in scripts/guest-init.sh: commands go in, marked results come out.
import { type ChildProcess, spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { connect } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { Readable, Writable } from 'node:stream'
import { guestImage, type KernelSeries } from './image.js'
import { type Exit, exitOf, terminate, TimeIsUp, within } from './process.js'

export interface GuestOptions {
  readonly socketPath: string
  readonly kernel?: KernelSeries
  readonly tag?: string
  /** More than one needs a 6.11 or later kernel to be used; the guest gets as many processors. */
  readonly requestQueues?: number
  /** Ring size; a 1 MiB request needs 1024. */
  readonly queueSize?: number
  /** An image that is its disk, /dev/vda. */
  readonly disk?: string
  /** When this rejects (the daemon died, say), so does whatever waits for the guest. */
  readonly abort?: Promise<never>
}

export interface Result {
  readonly code: number
  readonly output: string
}

/** From the start of the machine to that of its init. */
const KERNEL_TIMEOUT_MS = 60_000
/**
 * QEMU's threads of emulated processors now and then lose an interrupt between them while the kernel starts: it reports
 * a soft lockup, for good. Nothing has touched the device by then, so another start of the machine hides no error of ours.
 */
const KERNEL_STARTS_MAX = 3
/** From there on: its drivers, the device's among them. */
const BOOT_TIMEOUT_MS = 120_000
const COMMAND_TIMEOUT_MS = 60_000
const QEMU = 'qemu-system-x86_64'

export class Guest {
  readonly exited: Promise<Exit>
  readonly #child: ChildProcess
  readonly #tag: string
  readonly #directory: string
  readonly #abort: Promise<never> | undefined
  #stderr = ''
  #partial = ''
  /** Lines not yet consumed, and whoever waits for the next one. */
  readonly #lines: string[] = []
  #waiting: ((line: string) => void) | undefined
  #commands = 0
  /** What the last command has printed so far. */
  #output: string[] = []

  private constructor(child: ChildProcess, directory: string, options: GuestOptions) {
    this.#child = child
    this.#directory = directory
    this.#tag = options.tag ?? 'share'
    this.#abort = options.abort
    // Heard when somebody waits; nobody may.
    this.#abort?.catch(() => {})
    this.exited = exitOf(child)
    ;(child.stdout as Readable).setEncoding('utf8').on('data', (text: string) => this.#receive(text))
    ;(child.stderr as Readable).setEncoding('utf8').on('data', (text: string) => { this.#stderr += text })
    // Writing to a guest that has just ended is no error of its own: the missing answer is.
    ;(child.stdin as Writable).on('error', () => {})
  }

  /** Resolves when the guest takes commands. Nothing is mounted yet. */
  static async boot(options: GuestOptions): Promise<Guest> {
    const image = await guestImage(options.kernel ?? '6.1')
    const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-guest-'))
    const child = spawn(QEMU, qemuArguments(options, image.vmlinuz, image.initrd, directory), { stdio: ['pipe', 'pipe', 'pipe'] })
    const guest = new Guest(child, directory, options)
    try {
      await guest.#ready()
      return guest
    } catch (error) {
      await guest.stop()
      throw error
    }
  }

  /** Runs shell text in the guest. Standard error is part of the output. */
  async run(command: string, timeout_ms: number = COMMAND_TIMEOUT_MS): Promise<Result> {
    const number = ++this.#commands
    ;(this.#child.stdin as Writable).write(`${number} ${Buffer.from(command).toString('base64')}\n`)
    return this.#orEnd(this.#result(number), timeout_ms, `the guest gave no result of: ${command}`)
  }

  /** Like run, but an exit code other than 0 is an error. Gives the output without the last newline. */
  async sh(command: string, timeout_ms?: number): Promise<string> {
    const { code, output } = await this.run(command, timeout_ms)
    if (code !== 0) throw new Error(`in the guest, exit code ${code} of: ${command}\n${output}`)
    return output.replace(/\n$/, '')
  }

  mount(): Promise<string> {
    return this.sh(`mount -t virtiofs ${this.#tag} /mnt`)
  }

  /** A reboot of the machine inside the same QEMU process. Nothing is mounted afterwards. */
  async reboot(): Promise<void> {
    ;(this.#child.stdin as Writable).write(`${++this.#commands} ${Buffer.from('reboot -f').toString('base64')}\n`)
    await this.#ready()
  }

  async powerOff(): Promise<Exit> {
    ;(this.#child.stdin as Writable).write(`${++this.#commands} ${Buffer.from('poweroff -f').toString('base64')}\n`)
    try {
      return await within(this.exited, COMMAND_TIMEOUT_MS, () => `the guest did not power off\n${this.console}`)
    } finally {
      await this.stop()
    }
  }

  /** Ends QEMU as a power cut would. */
  async stop(): Promise<void> {
    await terminate(this.#child, this.exited, 2000)
    rmSync(this.#directory, { recursive: true, force: true })
  }

  /** What the command that runs, or ran last, has printed so far: of use when it gave no result. */
  get outputSoFar(): string {
    return this.#output.join('\n')
  }

  /** The kernel's console so far. */
  get console(): string {
    try {
      return readFileSync(join(this.#directory, 'console'), 'utf8')
    } catch {
      return ''
    }
  }

  async #ready(): Promise<void> {
    for (let start = 1; ; start++) {
      try {
        await this.#orEnd(this.#until(/^@@e2e init$/), KERNEL_TIMEOUT_MS, 'the guest kernel did not start its init')
        break
      } catch (error) {
        if (!(error instanceof TimeIsUp) || start === KERNEL_STARTS_MAX) throw error
        console.error(`start ${start} of a guest kernel hung, the machine is reset: ${error.message}`)
        await this.#reset()
      }
    }
    await this.#orEnd(this.#until(/^@@e2e ready /), BOOT_TIMEOUT_MS, 'the guest did not boot')
  }

  /** As the reset button of the machine does. */
  #reset(): Promise<void> {
    return new Promise((resolve, reject) => {
      const monitor = connect(join(this.#directory, 'monitor'), () => monitor.end('system_reset\n'))
      monitor.once('error', reject).once('close', () => resolve()).resume()
    })
  }

  async #until(mark: RegExp): Promise<void> {
    while (!mark.test(await this.#nextLine())) continue
  }

  async #result(number: number): Promise<Result> {
    await this.#until(new RegExp(`^@@e2e ${number} begin$`))
    this.#output = []
    for (;;) {
      const line = await this.#nextLine()
      const end = /^@@e2e (\d+) exit (\d+)$/.exec(line)
      // The guest sends one newline of its own before the mark, so that a last line without one is not joined to it.
      if (end !== null && Number(end[1]) === number) return { code: Number(end[2]), output: this.#output.join('\n') }
      this.#output.push(line)
    }
  }

  /** The promise, unless the guest ends or the time is over first: then an error that shows the console. */
  async #orEnd<T>(promise: Promise<T>, timeout_ms: number, what: string): Promise<T> {
    const ended = this.exited.then((exit) => {
      throw new Error(`${what}: QEMU ended (${exit.signal ?? exit.code})\n${this.#stderr}${this.console.slice(-4000)}`)
    })
    // The loser of the race must not count as unhandled.
    ended.catch(() => {})
    try {
      return await within(Promise.race([promise, ended, ...(this.#abort === undefined ? [] : [this.#abort])]), timeout_ms, () => `${what}: no answer in ${timeout_ms} ms\n${this.console.slice(-4000)}`)
    } finally {
      this.#waiting = undefined
    }
  }

  #nextLine(): Promise<string> {
    const line = this.#lines.shift()
    if (line !== undefined) return Promise.resolve(line)
    return new Promise((resolve) => { this.#waiting = resolve })
  }

  #receive(text: string): void {
    const parts = (this.#partial + text).split('\n')
    this.#partial = parts.pop()!
    for (const part of parts) {
      const line = part.replace(/\r$/, '')
      const waiting = this.#waiting
      this.#waiting = undefined
      if (waiting === undefined) this.#lines.push(line)
      else waiting(line)
    }
  }
}

function qemuArguments(options: GuestOptions, vmlinuz: string, initrd: string, directory: string): string[] {
  const queues = options.requestQueues ?? 1
  const device = ['vhost-user-fs-pci', 'chardev=fs', `tag=${options.tag ?? 'share'}`, `queue-size=${options.queueSize ?? 1024}`]
  if (queues > 1) device.push(`num-request-queues=${queues}`)
  return [
    '-nodefaults', '-no-user-config', '-display', 'none',
    '-accel', 'tcg,thread=multi',
    '-smp', String(Math.max(2, queues)),
    '-m', '512M',
    // The daemon maps the guest's memory: it has to be a shared file.
    '-object', 'memory-backend-memfd,id=memory,size=512M,share=on',
    '-numa', 'node,memdev=memory',
    '-kernel', vmlinuz,
    '-initrd', initrd,
    '-append', 'console=ttyS0 quiet loglevel=4 panic=-1 mitigations=off cryptomgr.notests',
    // ttyS0: the console, for diagnosis; ttyS1: commands and results.
    '-serial', `file:${join(directory, 'console')}`,
    '-serial', 'stdio',
    '-chardev', `socket,id=monitor,path=${join(directory, 'monitor')},server=on,wait=off`,
    '-mon', 'chardev=monitor',
    '-chardev', `socket,id=fs,path=${options.socketPath}`,
    '-device', device.join(','),
    ...(options.disk === undefined ? [] : ['-drive', `file=${options.disk},format=raw,if=none,id=disk,cache=unsafe`, '-device', 'virtio-blk-pci,drive=disk']),
  ]
}
