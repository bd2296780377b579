/**
 * One thread that speaks to an object store, and what it has been asked. A message between threads costs more than most calls have
 * to say: what is asked in one turn of the event loop travels as one, and so do the answers.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { Worker } from 'node:worker_threads';
import type { StoreConfig } from '../storage/object/open-store.js';
import type { StoreAnswer, StoreMessage, StoreReply, StoreTask } from './store-messages.js';

const CLOSE_TIMEOUT_MS = 5_000;

interface Asked {
  readonly settle: (answer: StoreAnswer) => void;
  readonly fail: (error: Error) => void;
}

export class StoreThread {
  /** Calls under way, by their ids. */
  readonly #asked = new Map<number, Asked>();
  #ids = 0;
  /** null: it has died, and nothing was asked since. */
  #worker: Worker | null;
  /** What goes with the next message. */
  #outgoing: StoreMessage[] = [];
  #closed = false;
  #onIdle: (() => void) | null = null;

  /** @param module what runs in the thread; tests bring their own */
  constructor(
    readonly config: StoreConfig,
    readonly module = new URL('./store-worker.js', import.meta.url),
  ) {
    this.#worker = this.#start();
  }

  /** Calls under way. */
  get load(): number {
    return this.#asked.size;
  }

  /** Rejects when the thread dies over it; whatever it was doing may have been done. The next call gets another thread. */
  async ask(task: StoreTask, signal: AbortSignal | undefined): Promise<StoreAnswer> {
    if (this.#closed) throw new Error('the store is closed');
    const id = ++this.#ids;
    const giveUp = (): void => this.#send(id);
    signal?.addEventListener('abort', giveUp, { once: true });
    try {
      return await new Promise((settle, fail) => {
        this.#asked.set(id, { settle, fail });
        this.#send([id, task]);
      });
    } finally {
      signal?.removeEventListener('abort', giveUp);
    }
  }

  /** Give up what is under way, wait for it, end the thread. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#asked.size > 0) {
      for (const id of this.#asked.keys()) this.#send(id);
      await Promise.race([new Promise<void>((resolve) => (this.#onIdle = resolve)), sleep(CLOSE_TIMEOUT_MS, undefined, { ref: false })]);
    }
    await this.#worker?.terminate();
  }

  #send(message: StoreMessage): void {
    // Not nextTick(), which nobody runs after a native callback (see FdPoller)
    if (this.#outgoing.push(message) === 1) setImmediate(() => this.#post());
  }

  #post(): void {
    const messages = this.#outgoing;
    this.#outgoing = [];
    // The thread may have died meanwhile, and with it all that it was asked
    if (messages.length === 0 || this.#asked.size === 0) return;
    this.#worker ??= this.#start();
    this.#worker.ref();
    this.#worker.postMessage(messages);
  }

  #start(): Worker {
    const worker = new Worker(this.module, {
      trackUnmanagedFds: false,
      workerData: this.config,
      // What the SDK would say on standard error about Node.js versions of next year is for us to read, not for users
      env: { ...process.env, AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
    });
    worker.unref();
    let reason = new Error('its thread has ended');
    worker.on('message', (replies: readonly StoreReply[]) => {
      for (const [id, answer] of replies) this.#take(id)?.settle(answer);
    });
    worker.on('error', (error) => (reason = error));
    worker.on('exit', () => {
      this.#worker = null;
      // What has failed is not to be done later
      this.#outgoing = [];
      for (const id of this.#asked.keys()) this.#take(id)!.fail(reason);
    });
    return worker;
  }

  #take(id: number): Asked | undefined {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    if (this.#asked.size === 0) {
      // It keeps no process alive that has nothing to ask
      this.#worker?.unref();
      this.#onIdle?.();
    }
    return asked;
  }
}
