/**
 * One thread that speaks to an object store, and what it has been asked. A message between threads costs more than most calls have
 * to say: what is asked in one turn of the event loop travels as one, and so do the answers. The threads are piscina's, whose tasks would be
 * messages of their own each: it is given one task for a thread, which is to listen to a port.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type { Piscina } from 'piscina';
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
  #port: MessagePort | null = null;
  /** What goes with the next message. */
  #outgoing: StoreMessage[] = [];
  #closed = false;
  #onIdle: (() => void) | null = null;

  constructor(readonly pool: Piscina<{ port: MessagePort }, void>) {
    this.#port = this.#connect();
  }

  /** Calls under way. */
  get load(): number {
    return this.#asked.size;
  }

  /** Rejects when the thread dies over it, or has just died; whatever it was doing may have been done. Those that follow get another one. */
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

  /** Give up what is under way, and wait for it. The thread ends with the pool. */
  async close(): Promise<void> {
    this.#closed = true;
    if (this.#asked.size > 0) {
      for (const id of this.#asked.keys()) this.#send(id);
      await Promise.race([new Promise<void>((resolve) => (this.#onIdle = resolve)), sleep(CLOSE_TIMEOUT_MS, undefined, { ref: false })]);
    }
    this.#port?.close();
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
    this.#port ??= this.#connect();
    this.#port.ref();
    this.#port.postMessage(messages);
  }

  #connect(): MessagePort {
    const { port1: port, port2: other } = new MessageChannel();
    let reason = new Error('its thread has ended');
    port.on('message', (replies: readonly StoreReply[]) => {
      for (const [id, answer] of replies) this.#take(id)?.settle(answer);
    });
    port.on('close', () => {
      this.#port = null;
      // What has failed is not to be done later
      this.#outgoing = [];
      for (const id of this.#asked.keys()) this.#take(id)!.fail(reason);
    });
    port.unref();
    this.pool.run({ port: other }, { transferList: [other] }).catch((error: Error) => {
      reason = error;
      port.close();
    });
    return port;
  }

  #take(id: number): Asked | undefined {
    const asked = this.#asked.get(id);
    this.#asked.delete(id);
    if (this.#asked.size === 0) {
      // It keeps no process alive that has nothing to ask
      this.#port?.unref();
      this.#onIdle?.();
    }
    return asked;
  }
}
