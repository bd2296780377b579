/** A store around a store: every call goes through one function. The layers (deadline, retry, limit) are such functions. */
import { bodyBytes, targetBytes } from '../body.js';
import type { CallOptions, ObjectStore, PutOptions } from '../store.js';

/** What a layer may want to know of a call. */
export interface Call {
  readonly operation: keyof Pick<
    ObjectStore,
    'check' | 'head' | 'read' | 'fetch' | 'put' | 'remove' | 'copy' | 'rename' | 'setMetadata' | 'list' | 'beginUpload' | 'putPart' | 'copyPart' | 'completeUpload' | 'abortUpload' | 'listUploads'
  >;
  /** "put s3://bucket/key", for messages. */
  readonly subject: string;
  /** File data that is sent or asked for. */
  readonly bytes: number;
  /** Doing it twice is not doing it once: the second may lose against the first. */
  readonly conditional: boolean;
  readonly signal: AbortSignal | undefined;
}

/** Makes the call, once or more often: `attempt` takes the signal that this attempt is to obey. */
export type Around = <T>(call: Call, attempt: (signal: AbortSignal | undefined) => Promise<T>) => Promise<T>;

export function intercept(store: ObjectStore, around: Around): ObjectStore {
  const through = <O extends CallOptions, T>(
    operation: Call['operation'], subject: string, bytes: number, options: O | undefined, attempt: (options: O) => Promise<T>, conditional = false,
  ): Promise<T> =>
    around({ operation, subject: `${operation} ${store.location}/${subject}`, bytes, conditional, signal: options?.signal }, (signal) => {
      const { signal: _outer, ...rest } = (options ?? {}) as O;
      return attempt((signal === undefined ? rest : { ...rest, signal }) as O);
    });

  return {
    kind: store.kind,
    location: store.location,
    limits: store.limits,
    capabilities: store.capabilities,
    check: (options) => through('check', '', 0, options, (o) => store.check(o)),
    head: (key, options) => through('head', key, 0, options, (o) => store.head(key, o)),
    read: (key, options) => through('read', key, targetBytes(options.into), options, (o) => store.read(key, o)),
    fetch: (key, options) => through('fetch', key, targetBytes(options.into), options, (o) => store.fetch(key, o)),
    put: (key, body, options) => through('put', key, bodyBytes(body), options, (o: PutOptions) => store.put(key, body, o), options?.condition !== undefined),
    remove: (key, options) => through('remove', key, 0, options, (o) => store.remove(key, o), options?.version !== undefined),
    copy: (from, to, options) => through('copy', `${from} to ${to}`, 0, options, (o) => store.copy(from, to, o), options?.condition !== undefined),
    rename: (from, to, options) => through('rename', `${from} to ${to}`, 0, options, (o) => store.rename(from, to, o), true),
    setMetadata: (key, version, metadata, options) => through('setMetadata', key, 0, options, (o) => store.setMetadata(key, version, metadata, o), true),
    list: (options) => through('list', options.prefix, 0, options, (o) => store.list(o)),
    beginUpload: (key, options) => through('beginUpload', key, 0, options, (o) => store.beginUpload(key, o)),
    putPart: (upload, number, body, options) => through('putPart', upload.key, bodyBytes(body), options, (o) => store.putPart(upload, number, body, o)),
    copyPart: (upload, number, source, options) => through('copyPart', upload.key, 0, options, (o) => store.copyPart(upload, number, source, o)),
    completeUpload: (upload, parts, options) => through('completeUpload', upload.key, 0, options, (o) => store.completeUpload(upload, parts, o), true),
    abortUpload: (upload, options) => through('abortUpload', upload.key, 0, options, (o) => store.abortUpload(upload, o)),
    listUploads: (options) => through('listUploads', options.prefix, 0, options, (o) => store.listUploads(o)),
    close: () => store.close(),
  };
}
