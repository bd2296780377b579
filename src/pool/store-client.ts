/**
 * An object store in other threads. Signing, XML, TLS and HTTP of a request cost the better part of a millisecond of CPU
 * time: on the main thread they would hold up every queue. Each worker has a store of its own and serves many calls at the
 * same time.
 *
 * File data does not travel: bodies are ranges of open files, whose descriptors every thread can use, and reads go into
 * native memory or a SharedArrayBuffer. Anything else is copied.
 */
import { fileURLToPath } from 'node:url';
import type { MessagePort } from 'node:worker_threads';
import { Piscina } from 'piscina';
import { StorageError } from '../storage/object/errors.js';
import type { StoreConfig } from '../storage/object/open-store.js';
import type { CallOptions, ObjectStore } from '../storage/object/store.js';
import type { StoreAnswer, StoreDescription, StoreMethod } from './store-messages.js';
import { StoreThread } from './store-thread.js';

export interface StoreClientOptions {
  readonly config: StoreConfig;
  /** 1..64. They are all started at once: opening a store takes longer than most calls. */
  readonly threads: number;
}

/** @throws StorageError when the store cannot be opened. */
export async function openStoreClient(options: StoreClientOptions): Promise<ObjectStore> {
  const pool = storePool(new URL('./store-worker.js', import.meta.url), options);
  const threads = Array.from({ length: options.threads }, () => new StoreThread(pool));
  const forward = forwarder(threads);
  let closed: Promise<void> | null = null;
  const close = (): Promise<void> => (closed ??= Promise.all(threads.map((thread) => thread.close())).then(() => pool.destroy()));
  try {
    const description = (await forward('describe', [], -1, undefined)) as StoreDescription;
    return storeOf(description, forward, close);
  } catch (error) {
    await close();
    throw error;
  }
}

/** Threads that each listen to a port: see StoreThread. Whoever dies is replaced. */
export function storePool(module: URL, { config, threads }: StoreClientOptions): Piscina<{ port: MessagePort }, void> {
  const pool = new Piscina<{ port: MessagePort }, void>({
    filename: fileURLToPath(module),
    minThreads: threads,
    maxThreads: threads,
    // The worker's event loop has to run while calls are under way
    atomics: 'disabled',
    recordTiming: false,
    trackUnmanagedFds: false,
    workerData: config,
    // What the SDK would say on standard error about Node.js versions of next year is for us to read, not for users
    env: { ...process.env, AWS_SDK_JS_NODE_VERSION_SUPPORT_WARNING_DISABLED: 'true' },
  });
  // Of a thread that dies without a task; who has asked it something is told by its port
  pool.on('error', () => undefined);
  return pool;
}

type Forward = (method: StoreMethod | 'describe', args: readonly unknown[], optionsAt: number, signal: AbortSignal | undefined) => Promise<unknown>;

function forwarder(threads: readonly StoreThread[]): Forward {
  return async (method, args, optionsAt, signal) => {
    if (signal?.aborted === true) throw new StorageError('aborted', method);
    const thread = threads.reduce((least, one) => (one.load < least.load ? one : least));
    let answer: StoreAnswer;
    try {
      answer = await thread.ask({ method, args, optionsAt }, signal);
    } catch (error) {
      // The thread has died, and whatever it was doing may have been done
      throw new StorageError('interrupted', method, { ambiguous: true, providerMessage: 'a worker died', cause: error });
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
