/**
 * An object store in other threads. Signing, XML, TLS and HTTP of a request cost the better part of a millisecond of CPU
 * time: on the main thread they would hold up every queue. Each worker has a store of its own and serves many calls at the
 * same time.
 *
 * File data does not travel: bodies are ranges of open files, whose descriptors every thread can use, and reads go into
 * native memory or a SharedArrayBuffer. Anything else is copied.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { BroadcastChannel } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { StorageError } from '../storage/object/errors.js';
import type { StoreConfig } from '../storage/object/open-store.js';
import type { CallOptions, ObjectStore } from '../storage/object/store.js';
import type { StoreAnswer, StoreDescription, StoreMethod, StoreTask, StoreWorkerData } from './store-messages.js';

/** Calls that one thread works on at the same time: more than the limit above ever lets through. */
const CALLS_PER_THREAD = 512;
const CLOSE_TIMEOUT_MS = 5_000;

export interface StoreClientOptions {
  readonly config: StoreConfig;
  /** 1..64. They are all started at once: opening a store takes longer than most calls. */
  readonly threads: number;
}

let clients = 0;

/** @throws StorageError when the store cannot be opened. */
export async function openStoreClient(options: StoreClientOptions): Promise<ObjectStore> {
  const abortChannel = `bucketfsd-abort-${process.pid}-${++clients}`;
  const workerData: StoreWorkerData = { config: options.config, abortChannel };
  const piscina = new Piscina<StoreTask, StoreAnswer>({
    filename: fileURLToPath(new URL('./store-worker.js', import.meta.url)),
    minThreads: options.threads,
    maxThreads: options.threads,
    concurrentTasksPerWorker: CALLS_PER_THREAD,
    maxQueue: Infinity,
    // The worker's event loop has to run while calls are under way
    atomics: 'disabled',
    recordTiming: false,
    trackUnmanagedFds: false,
    workerData,
    // What the SDK would say on standard error about Node.js versions of next year is for us to read, not for users
    env: { ...process.env, AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
  });
  const aborts = new BroadcastChannel(abortChannel);
  aborts.unref();
  const running = new Map<number, Promise<StoreAnswer>>();
  const forward = forwarder(piscina, aborts, running);
  let closed: Promise<void> | null = null;
  const close = (): Promise<void> => (closed ??= end(piscina, aborts, running));
  try {
    const description = (await forward('describe', [], -1, undefined)) as StoreDescription;
    return storeOf(description, forward, close);
  } catch (error) {
    await close();
    throw error;
  }
}

/** Give up what is under way, wait for it (piscina has no use for answers of threads that it has ended), end the threads. */
async function end(piscina: Piscina<StoreTask, StoreAnswer>, aborts: BroadcastChannel, running: Map<number, Promise<StoreAnswer>>): Promise<void> {
  for (const id of running.keys()) aborts.postMessage(id);
  await Promise.race([Promise.allSettled(running.values()), sleep(CLOSE_TIMEOUT_MS, undefined, { ref: false })]);
  aborts.close();
  await piscina.destroy();
}

type Forward = (method: StoreMethod | 'describe', args: readonly unknown[], optionsAt: number, signal: AbortSignal | undefined) => Promise<unknown>;

function forwarder(piscina: Piscina<StoreTask, StoreAnswer>, aborts: BroadcastChannel, running: Map<number, Promise<StoreAnswer>>): Forward {
  let ids = 0;
  return async (method, args, optionsAt, signal) => {
    if (signal?.aborted === true) throw new StorageError('aborted', method);
    const id = ++ids;
    const abort = (): void => aborts.postMessage(id);
    signal?.addEventListener('abort', abort, { once: true });
    let answer: StoreAnswer;
    try {
      const task = piscina.run({ method, args, optionsAt, id });
      running.set(id, task);
      answer = await task;
    } catch (error) {
      // The thread has died, and whatever it was doing may have been done
      throw new StorageError('interrupted', method, { ambiguous: true, providerMessage: 'a worker died', cause: error });
    } finally {
      running.delete(id);
      signal?.removeEventListener('abort', abort);
    }
    if (answer.ok) {
      if (answer.read !== undefined) (args[1] as { into: Uint8Array }).into.set(answer.read);
      return answer.value;
    }
    if (answer.code !== null) throw new StorageError(answer.code, answer.operation, answer.detail);
    const defect = new Error(answer.message);
    defect.stack = answer.stack;
    throw new StorageError('unexpected', method, { cause: defect, providerMessage: answer.message });
  };
}

/** Options without what cannot be sent: the signal stays here. */
function portable<O extends CallOptions>(options: O | undefined): Omit<O, 'signal'> {
  const { signal: _signal, ...rest } = options ?? ({} as O);
  return rest;
}

function storeOf(description: StoreDescription, forward: Forward, close: () => Promise<void>): ObjectStore {
  const call = (method: StoreMethod, args: readonly unknown[], options: CallOptions | undefined): Promise<never> =>
    forward(method, [...args, portable(options)], args.length, options?.signal) as Promise<never>;
  return {
    ...description,
    check: (options) => call('check', [], options),
    head: (key, options) => call('head', [key], options),
    read: (key, options) => call('read', [key], options),
    fetch: (key, options) => call('fetch', [key], options),
    put: (key, body, options) => call('put', [key, body], options),
    remove: (key, options) => call('remove', [key], options),
    copy: (from, to, options) => call('copy', [from, to], options),
    rename: (from, to, options) => call('rename', [from, to], options),
    setMetadata: (key, version, metadata, options) => call('setMetadata', [key, version, metadata], options),
    list: (options) => call('list', [], options),
    beginUpload: (key, options) => call('beginUpload', [key], options),
    putPart: (upload, number, body, options) => call('putPart', [upload, number, body], options),
    copyPart: (upload, number, source, options) => call('copyPart', [upload, number, source], options),
    completeUpload: (upload, parts, options) => call('completeUpload', [upload, parts], options),
    abortUpload: (upload, options) => call('abortUpload', [upload], options),
    listUploads: (options) => call('listUploads', [], options),
    close,
  };
}
