/**
 * Threads for system calls that may block, so that the queue loop never waits for a disk.
 *
 * piscina keeps the threads: it starts one when work needs it, ends it when it has been idle, and reports its death. The
 * queue is our own: piscina is never given more requests than it may have threads, so that a request is at any time
 * either certainly not begun (ours) or possibly running (piscina's). Only the former may be failed at will; memory that a
 * running call may write to stays the kernel's until the thread has come back. See docs/adr/0004-thread-pool.md.
 */
import { fileURLToPath } from 'node:url';
import { Piscina } from 'piscina';
import { assert } from '../base/assert.js';
import { E } from '../base/errno.js';
import type { PoolCall, PoolMessage } from './calls.js';

const THREADS_MAX = 1024;
/** More than all rings of a device can hold; beyond it something is wrong, and requests fail instead of piling up. */
const QUEUE_MAX = 65536;
/** Long, because every worker that ends leaves some 45 KB behind (koffi 3.3.4 does not free what it keeps per thread). */
const IDLE_TIMEOUT_MS = 300_000;
const CLOSE_TIMEOUT_MS = 5_000;
/** How long close() waits for threads that do not come back after they were told to end. */
const ABANDON_GRACE_MS = 200;

/** A worker runs a few hundred lines: enough heap for those, little for V8 to spread into. */
const RESOURCE_LIMITS = { maxOldGenerationSizeMb: 16, maxYoungGenerationSizeMb: 1, stackSizeMb: 1 } as const;

export interface WorkerLoss {
  /** The call it was making; null if it died before its first one (it could not start). */
  readonly call: string | null;
  readonly reason: string;
}

export interface SyscallPoolOptions {
  /** At most so many worker threads, 1..1024. */
  readonly threads: number;
  /** For the log; the lost worker's request has failed with EIO and the next request gets a new worker. */
  readonly onWorkerLost?: (loss: WorkerLoss) => void;
  /** A worker without work for so long ends, in milliseconds. */
  readonly idleTimeout_ms?: number;
  /** Requests that may wait for a worker; further ones fail with ENOMEM. */
  readonly queueMax?: number;
  /** The module that runs in the workers; tests bring their own. */
  readonly worker?: URL;
}

export interface PoolStats {
  /** Threads alive now. */
  readonly threads: number;
  readonly running: number;
  readonly queued: number;
  /** Requests that got an answer from a worker, since the start. */
  readonly completed: number;
  /** Workers that died, since the start. */
  readonly lost: number;
  /** Requests refused because the queue was full or the pool closed, since the start. */
  readonly refused: number;
}

interface Request {
  readonly message: PoolMessage;
  readonly settle: (result: number) => void;
  next: Request | null;
}

/** `Call` is the names that the worker module serves. */
export class SyscallPool<Call extends string = PoolCall> {
  readonly #piscina: Piscina<PoolMessage, number>;
  readonly #threads: number;
  readonly #queueMax: number;
  readonly #onWorkerLost: (loss: WorkerLoss) => void;
  /** Requests not yet given to piscina, oldest first. */
  #head: Request | null = null;
  #tail: Request | null = null;
  #queued = 0;
  #running = 0;
  #completed = 0;
  #lost = 0;
  #refused = 0;
  #closed: Promise<void> | null = null;
  /** Set when close() gave up waiting: running requests are never answered, as their memory is still in use. */
  #abandoned = false;
  /** Set while piscina's queue is being emptied because no worker can start. */
  #clearing = false;
  #onDrained: (() => void) | null = null;

  constructor(options: SyscallPoolOptions) {
    const { threads, queueMax = QUEUE_MAX, idleTimeout_ms = IDLE_TIMEOUT_MS, onWorkerLost = () => {} } = options;
    assert(Number.isInteger(threads) && threads >= 1 && threads <= THREADS_MAX, `${threads} pool threads`);
    this.#threads = threads;
    this.#queueMax = queueMax;
    this.#onWorkerLost = onWorkerLost;
    this.#piscina = new Piscina({
      filename: fileURLToPath(options.worker ?? new URL('./worker.js', import.meta.url)),
      minThreads: 0,
      maxThreads: threads,
      idleTimeout: idleTimeout_ms,
      concurrentTasksPerWorker: 1,
      // The worker sleeps on a futex between calls, not in an event loop: it has no other work, and wakes faster.
      atomics: 'sync',
      recordTiming: false,
      trackUnmanagedFds: false,
      resourceLimits: RESOURCE_LIMITS,
      env: {},
      execArgv: [],
    });
    this.#piscina.on('error', (error: unknown) => {
      this.#workerLost(null, error);
      this.#failUnstartable();
    });
    this.#piscina.on('workerDestroy', () => this.#failUnstartable());
  }

  /**
   * Make one call on a worker's thread. Resolves with its result or −errno, never rejects. −EIO: the worker died
   * or could not start, and the call may or may not have taken effect; or the pool is closed. −ENOMEM: the queue is full.
   *
   * SAFETY: addresses among the arguments stay valid, and descriptors open, until the promise settles. Workers are
   * threads of this process and take over the credentials of the thread that starts them: call this as the daemon
   * itself, not while fsuid or fsgid are a guest user's.
   */
  run(call: Call, ...args: number[]): Promise<number> {
    if (this.#closed !== null || this.#queued >= this.#queueMax) {
      this.#refused++;
      return Promise.resolve(this.#closed !== null ? -E.IO : -E.NOMEM);
    }
    return new Promise((settle) => {
      const request: Request = { message: [call, ...args], settle, next: null };
      if (this.#running < this.#threads) this.#start(request);
      else this.#enqueue(request);
    });
  }

  /** Requests that have no answer yet. */
  get pending(): number {
    return this.#running + this.#queued;
  }

  get stats(): PoolStats {
    return {
      threads: this.#piscina.threads.length,
      running: this.#running,
      queued: this.#queued,
      completed: this.#completed,
      lost: this.#lost,
      refused: this.#refused,
    };
  }

  /**
   * Take no further requests, let those that are there finish, end the threads. After `timeout_ms` what still waits fails
   * with EIO, and what still runs is left alone: its promise never settles, since its memory is still in use, and its
   * thread ends when the system call returns.
   */
  close(timeout_ms = CLOSE_TIMEOUT_MS): Promise<void> {
    this.#closed ??= this.#close(timeout_ms);
    return this.#closed;
  }

  async #close(timeout_ms: number): Promise<void> {
    if (this.pending > 0) await within(timeout_ms, new Promise<void>((resolve) => (this.#onDrained = resolve)));
    for (let request = this.#dequeue(); request !== null; request = this.#dequeue()) request.settle(-E.IO);
    this.#abandoned = this.#running > 0;
    const ended = this.#piscina.destroy();
    await (this.#abandoned ? within(ABANDON_GRACE_MS, ended) : ended);
  }

  #start(request: Request): void {
    this.#running++;
    try {
      this.#piscina.run(request.message).then(
        (result) => this.#finish(request, result),
        (error: unknown) => this.#fail(request, error),
      );
    } catch (error) {
      // No thread could be created, but piscina has queued the request and would run it some day: make it ask for nothing.
      const call = request.message[0];
      request.message[0] = '';
      this.#workerLost(call, error);
      this.#answer(request, -E.IO);
    }
  }

  #finish(request: Request, result: number): void {
    this.#completed++;
    this.#answer(request, result);
  }

  /** piscina rejects a request only when its thread has ended, except in destroy(), which does not wait for the thread. */
  #fail(request: Request, error: unknown): void {
    if (this.#abandoned) return;
    if (!this.#clearing) this.#workerLost(request.message[0], error);
    this.#answer(request, -E.IO);
  }

  #answer(request: Request, result: number): void {
    this.#running--;
    request.settle(result);
    const next = this.#dequeue();
    if (next !== null) this.#start(next);
    else if (this.#running === 0) this.#onDrained?.();
  }

  #workerLost(call: string | null, error: unknown): void {
    this.#lost++;
    this.#onWorkerLost({ call, reason: error instanceof Error ? error.message : String(error) });
  }

  /**
   * A worker that dies while it starts leaves what waits for it in piscina's queue, where nobody would come for it.
   * With no thread left, nothing there has begun: fail it.
   */
  #failUnstartable(): void {
    setImmediate(() => {
      if (this.#clearing || this.#piscina.threads.length > 0 || this.#piscina.queueSize === 0) return;
      this.#clearing = true;
      void this.#piscina.destroy().finally(() => (this.#clearing = false));
    });
  }

  #enqueue(request: Request): void {
    if (this.#tail === null) this.#head = request;
    else this.#tail.next = request;
    this.#tail = request;
    this.#queued++;
  }

  #dequeue(): Request | null {
    const request = this.#head;
    if (request === null) return null;
    this.#head = request.next;
    if (this.#head === null) this.#tail = null;
    this.#queued--;
    return request;
  }
}

/** Wait for `event`, but no longer than `ms` milliseconds. */
async function within(ms: number, event: Promise<void>): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const timeout = new Promise<void>((resolve) => (timer = setTimeout(resolve, ms)));
  await Promise.race([event, timeout]);
  clearTimeout(timer);
}
