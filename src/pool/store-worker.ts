/** Entry of a worker that speaks to an object store: one store for the thread, many calls at the same time. */
import { workerData, type MessagePort } from 'node:worker_threads';
import { StorageError } from '../storage/object/errors.js';
import { openStore, type StoreConfig } from '../storage/object/open-store.js';
import type { Fetched, FetchOptions, ObjectStore, ReadOptions } from '../storage/object/store.js';
import type { StoreAnswer, StoreDescription, StoreMessage, StoreReply, StoreTask } from './store-messages.js';

const opened = openStore(workerData as StoreConfig);

/** One that asks. */
class Asker {
  readonly #running = new Map<number, AbortController>();
  #outgoing: StoreReply[] = [];

  constructor(readonly port: MessagePort) {
    port.on('message', (messages: readonly StoreMessage[]) => {
      for (const message of messages) {
        if (typeof message === 'number') this.#running.get(message)?.abort();
        else void this.#serve(...message);
      }
    });
  }

  async #serve(id: number, task: StoreTask): Promise<void> {
    const caller = new AbortController();
    this.#running.set(id, caller);
    const answer = await answerTo(task, caller.signal);
    this.#running.delete(id);
    // After all that came in at the same time
    if (this.#outgoing.push([id, answer]) === 1) setImmediate(() => this.#post());
  }

  #post(): void {
    this.port.postMessage(this.#outgoing);
    this.#outgoing = [];
  }
}

/** piscina's task: over as soon as somebody listens. */
export default function listen({ port }: { port: MessagePort }): void {
  new Asker(port);
}

async function answerTo(task: StoreTask, signal: AbortSignal): Promise<StoreAnswer> {
  try {
    const store = await opened;
    if (task.method === 'describe') return { ok: true, value: describe(store) };
    const args = [...task.args];
    if (task.optionsAt >= 0) args[task.optionsAt] = { ...(args[task.optionsAt] as object | undefined), signal };
    const value = await (store[task.method] as (...args: unknown[]) => Promise<unknown>)(...args);
    if (task.method === 'read') return answerRead(args[1] as ReadOptions, value, value as number);
    return task.method === 'fetch' ? answerRead(args[1] as FetchOptions, value, (value as Fetched).bytes) : { ok: true, value };
  } catch (error) {
    if (error instanceof StorageError) return { ok: false, code: error.code, operation: error.operation, detail: portable(error) };
    const { message, stack = '' } = error instanceof Error ? error : new Error(String(error));
    return { ok: false, code: null, message, stack };
  }
}

/** A buffer that the caller shares has the bytes already; of another one the worker has a copy. */
function answerRead({ into }: FetchOptions, value: unknown, bytes: number): StoreAnswer {
  const shared = !(into instanceof Uint8Array) || into.buffer instanceof SharedArrayBuffer;
  return shared ? { ok: true, value } : { ok: true, value, read: into.subarray(0, bytes) };
}

function describe({ kind, location, limits, capabilities }: ObjectStore): StoreDescription {
  return { kind, location, limits, capabilities };
}

/** The cause may hold anything, sockets too: its text goes along. */
function portable({ detail }: StorageError): StorageError['detail'] {
  const { cause, ...rest } = detail;
  return cause === undefined ? rest : { ...rest, cause: cause instanceof Error ? cause.message : String(cause) };
}
