/** The daemon as a process of its own, for tests of what surrounds it. Ended by the test, or killed by its pid. */
import assert from 'node:assert/strict';
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readdirSync, readFileSync, readlinkSync } from 'node:fs';
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';

export const MAIN = fileURLToPath(new URL('../../src/main.js', import.meta.url));

export interface StartOptions {
  cwd?: string;
  env?: NodeJS.ProcessEnv;
  uid?: number;
  /** Becomes descriptor 3. */
  fd?: number;
  /** What to start instead of Node; the daemon's own command line follows. */
  wrapper?: readonly string[];
  /** The program, where it is not ours. */
  main?: string;
  /** When it is killed. */
  life_ms?: number;
}

export interface Ended {
  code: number | null;
  signal: string | null;
}

/** A daemon that should have ended, or been ended, and was not. */
const LIFE_MS = 60_000;
const PATIENCE_MS = 15_000;

const running = new Set<ChildProcess>();

/** For an `after`: nothing stays. */
export function killDaemons(): void {
  for (const child of running) child.kill('SIGKILL');
}

export class DaemonProcess {
  readonly ended: Promise<Ended>;
  readonly #child: ChildProcess;
  #stderr = '';

  constructor(args: readonly string[], options: StartOptions = {}) {
    const [command, ...rest] = [...(options.wrapper ?? []), process.execPath, options.main ?? MAIN, ...args];
    const child = spawn(command, rest, {
      timeout: options.life_ms ?? LIFE_MS, killSignal: 'SIGKILL',
      stdio: ['ignore', 'ignore', 'pipe', ...(options.fd === undefined ? [] : [options.fd])],
      env: { ...process.env, NOTIFY_SOCKET: undefined, NODE_TEST_CONTEXT: undefined, ...options.env },
      ...(options.cwd === undefined ? {} : { cwd: options.cwd }),
      ...(options.uid === undefined ? {} : { uid: options.uid, gid: options.uid }),
    });
    running.add(child);
    this.#child = child;
    child.stderr!.on('data', (data) => (this.#stderr += data));
    this.ended = once(child, 'close').then(([code, signal]) => {
      running.delete(child);
      return { code: code as number | null, signal: signal as string | null };
    });
  }

  static async start(args: readonly string[], options: StartOptions = {}): Promise<DaemonProcess> {
    const daemon = new DaemonProcess(args, options);
    await daemon.until(/"sharing /);
    return daemon;
  }

  get pid(): number {
    return this.#child.pid!;
  }

  get stderr(): string {
    return this.#stderr;
  }

  /** Until standard error has it; the test's own time limit bounds it. */
  async until(pattern: RegExp): Promise<void> {
    while (!pattern.test(this.#stderr)) {
      const end = await Promise.race([once(this.#child.stderr!, 'data'), this.ended]);
      if (!Array.isArray(end)) assert.fail(`the daemon ended: ${JSON.stringify(end)} ${this.#stderr}`);
    }
  }

  /** Until it has ended, but for threads that wait in the kernel for a file system, which nobody can end before that answers. */
  async isOver(): Promise<void> {
    let over = false;
    void this.ended.then(() => (over = true));
    const state = (): string | undefined => /\) (\w)/.exec(readFileSync(`/proc/${this.pid}/stat`, 'latin1'))?.[1];
    for (const deadline = Date.now() + PATIENCE_MS; !over && state() !== 'Z'; await sleep(10)) assert.ok(Date.now() < deadline, 'the daemon does not end');
  }

  async stop(signal: NodeJS.Signals = 'SIGTERM'): Promise<Ended> {
    this.#child.kill(signal);
    return this.ended;
  }

  /** It must not start: one line on standard error. */
  async fails(code: number, sentence: RegExp): Promise<void> {
    assert.deepEqual(await this.ended, { code, signal: null }, this.#stderr);
    assert.match(this.#stderr, sentence);
    assert.match(this.#stderr, /^bucketfsd: [^\n]+\n$/, 'one line');
  }

  /** Every thread. */
  get threads(): string[] {
    return readdirSync(`/proc/${this.pid}/task`);
  }

  /** A namespace of each thread; one element if they agree. */
  namespaces(kind: string): string[] {
    return [...new Set(this.threads.map((tid) => readlinkSync(`/proc/${this.pid}/task/${tid}/ns/${kind}`)))];
  }

  /** A field of /proc/PID/status of each thread; one element if they agree. */
  status(field: string): string[] {
    const pattern = new RegExp(`^${field}:\\s*(.*)$`, 'm');
    return [...new Set(this.threads.map((tid) => pattern.exec(readFileSync(`/proc/${this.pid}/task/${tid}/status`, 'utf8'))?.[1] ?? 'none'))];
  }
}
