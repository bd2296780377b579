/** The end of the daemon: by a signal, in order and in bounded time, or at once by a second signal or a bug. */
import type { Logger } from '../base/log.js';
import { quit } from '../ffi/libc.js';
import { EXIT, type ExitCode } from './errors.js';

export const DRAIN_LIMIT_MS = 5000;
const SIGNALS = ['SIGTERM', 'SIGINT'] as const;

/** What comes within so many milliseconds, or null. */
export async function within<T>(work: Promise<T>, limit_ms: number): Promise<T | null> {
  let timer: NodeJS.Timeout | undefined;
  const limit = new Promise<null>((resolve) => {
    timer = setTimeout(() => resolve(null), limit_ms);
  });
  try {
    return await Promise.race([work, limit]);
  } finally {
    clearTimeout(timer);
  }
}

/**
 * Rule: the process ends whatever its threads do. exit(3) and Node.js wait for them to end before, and one of the pool may wait in the kernel for a file system
 * that never answers; _exit(2) has the kernel end them. What is to be done at exit (the last lines of the log) is done before.
 */
function exitAtOnce(code: ExitCode): void {
  process.on('exit', () => quit(code));
  process.exit(code);
}

type Handler = (subject?: unknown) => void;

export interface ShutdownSteps {
  log: Logger;
  /** Stop taking requests; finish or fail what is in flight. Given up after `limit_ms`. @returns the exit code */
  drain(): Promise<ExitCode>;
  /** Remove socket and pid file. Synchronous, so that no way out skips it; may be called twice. */
  cleanup(): void;
  /** Called first: tell the service manager. */
  stopping?(): void;
  /** Default: DRAIN_LIMIT_MS. */
  limit_ms?: number;
  /** Default: the process ends. */
  exit?(code: ExitCode): void;
}

export class Shutdown {
  readonly #steps: ShutdownSteps;
  #started = false;
  #exited = false;
  #handlers: [string, Handler][] = [];

  constructor(steps: ShutdownSteps) {
    this.#steps = steps;
  }

  /** Begins to listen for signals, and for errors that nothing caught. */
  install(): void {
    // A terminal that goes, or somebody who means "read your settings again", does not take the share away from a guest
    this.#on('SIGHUP', () => this.#steps.log.info({ signal: 'SIGHUP' }, 'SIGHUP changes nothing: the daemon goes on'));
    for (const signal of SIGNALS) this.#on(signal, () => this.#onSignal(signal));
    this.#on('uncaughtException', (error) => this.crash(error));
    this.#on('unhandledRejection', (error) => this.crash(error));
  }

  /** Leaves the process as it was before install(). */
  uninstall(): void {
    for (const [event, handler] of this.#handlers) process.off(event, handler);
    this.#handlers = [];
  }

  /** Has the end begun? */
  get started(): boolean {
    return this.#started;
  }

  /** Drain, clean up, exit as draining says; with 1 if it failed itself. A second call does nothing. */
  async begin(reason: string): Promise<void> {
    if (this.#started) return;
    this.#started = true;
    const { log, limit_ms = DRAIN_LIMIT_MS } = this.#steps;
    log.info({ reason }, 'stopping');
    this.#steps.stopping?.();
    let code: ExitCode = EXIT.OK;
    try {
      const drained = await within(this.#steps.drain(), limit_ms);
      if (drained === null) log.warn({ limit_ms }, 'requests in flight were given up');
      else code = drained;
    } catch (err) {
      log.error({ err }, 'stopping failed');
      code = EXIT.RUNTIME;
    }
    this.#exit(code);
  }

  /** A bug: log it, clean up, exit 1. The service manager starts the daemon anew. */
  crash(error: unknown): void {
    this.#steps.log.error({ err: error }, 'unexpected error, exiting');
    this.#exit(EXIT.RUNTIME);
  }

  #on(event: string, handler: Handler): void {
    process.on(event, handler);
    this.#handlers.push([event, handler]);
  }

  #onSignal(signal: string): void {
    if (!this.#started) {
      void this.begin(signal);
      return;
    }
    this.#steps.log.warn({ signal }, 'second signal, exiting at once');
    this.#exit(EXIT.RUNTIME);
  }

  #exit(code: ExitCode): void {
    if (this.#exited) return;
    this.#exited = true;
    try {
      this.#steps.cleanup();
    } catch (err) {
      this.#steps.log.error({ err }, 'could not remove socket or pid file');
    }
    (this.#steps.exit ?? exitAtOnce)(code);
  }
}
