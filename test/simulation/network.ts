/**
 * A store behind a network that loses, delays and doubles requests and answers. All clients share one bucket. A request that was sent
 * may take effect when its client is long dead.
 */
import { bodyContent, targetBytes, targetView } from '../../src/storage/object/body.js';
import { StorageError, type StorageErrorDetail } from '../../src/storage/object/errors.js';
import type {
  Body, CallOptions, Condition, CopyOptions, Fetched, ObjectInfo, ObjectStore, PutOptions, Target, Upload, Version,
} from '../../src/storage/object/store.js';
import type { Bucket, Call, Revision } from './bucket.js';
import type { Scheduler, SimulatedProcess } from './scheduler.js';
import { CALM, fateOf, type Fate, type Weather } from './weather.js';

interface Request<R, A> {
  readonly operation: string;
  readonly key: string;
  readonly options: CallOptions | undefined;
  readonly mutates: boolean;
  readonly condition?: Condition | { readonly version?: Version | undefined } | undefined;
  readonly body?: Body;
  /** Changes the bucket. `then` is the second step of a copy. */
  readonly effect: (call: Call, body: Buffer) => R;
  readonly then?: (call: Call, result: R) => R;
  /** Delivers the answer. */
  readonly answer: (result: R) => A;
  /** Delivers a part of the answer before it breaks off. */
  readonly torn?: (result: R) => void;
}

export interface NetworkOptions {
  readonly seed: number;
  readonly weather: Weather;
  /** A HEAD may be answered by a wrong 404. */
  readonly lies: boolean;
  /** Numbers of requests that have no fault. */
  readonly spared: ReadonlySet<number>;
  /** @returns an id of the open file behind a descriptor; 0: closed */
  readonly fileOf: (fd: number) => number;
  /** A body cannot be read any more. */
  readonly onBadBody: (what: string) => void;
  /** Somebody is told that there is no such object, though there is. */
  readonly onLie: (key: string) => void;
}

/** Called when a client is told of a version. */
export type Reveal = (client: string, key: string, version: Version) => void;

export class Network {
  /** Faults are over. */
  healed = false;
  /** Requests that may still take effect. */
  underway = 0;
  /** Requests with a fault. */
  readonly faults: { readonly number: number; readonly line: string }[] = [];
  #calls = 0;

  constructor(
    readonly scheduler: Scheduler,
    readonly bucket: Bucket,
    readonly options: NetworkOptions,
    readonly onReveal: Reveal,
  ) {}

  /** A request of a client without a daemon; it takes effect at once. */
  call(client: string, operation: string, key: string): Call {
    return this.#newCall(client, operation, key);
  }

  #newCall(client: string, operation: string, key: string): Call {
    return {
      number: ++this.#calls, client, operation, key, issued_ms: this.scheduler.now_ms, issuedAt: this.bucket.changes.length, answered: false, source: null, begun_ms: 0, comparedAt: null,
    };
  }

  store(process: SimulatedProcess, client: string, location: string): ObjectStore {
    const { bucket } = this;
    const { provider } = bucket;
    const send = <R, A>(request: Request<R, A>): Promise<A> => this.#send(process, client, request);
    const told = (info: ObjectInfo): ObjectInfo => {
      this.onReveal(client, info.key, info.version);
      return info;
    };
    const made = (revision: Revision): Version => {
      this.onReveal(client, revision.key, revision.version);
      return revision.version;
    };
    const known = (upload: Upload): Upload => {
      const begun = bucket.uploads.get(upload.id);
      if (begun !== undefined) begun.isKnown = true;
      return upload;
    };
    const head = (key: string, options?: CallOptions): Promise<ObjectInfo> =>
      send({ operation: 'head', key, options, mutates: false, effect: () => bucket.infoOf(bucket.existing(`head ${key}`, key)), answer: told });
    const copy = (from: string, to: string, options: CopyOptions = {}): Promise<Version> =>
      send({
        operation: 'copy', key: from, options, mutates: true, condition: options.condition,
        effect: (call) => {
          const source = bucket.existing(call.operation, from);
          if (options.sourceVersion !== undefined && source.version !== options.sourceVersion) throw new StorageError('changed', call.operation, { status: 412 });
          return (call.source = source);
        },
        then: (call, source) => {
          const metadata = options.metadata ?? source.metadata;
          const headers = options.headers ?? (options.metadata === undefined ? source.headers : {});
          return bucket.finishCopy(call, source, to, { metadata, headers, ...(options.condition === undefined ? {} : { condition: options.condition }) });
        },
        answer: made,
      });
    return {
      kind: provider.kind, location, limits: provider.limits, capabilities: provider.capabilities,
      check: (options) => send({ operation: 'check', key: '', options, mutates: false, effect: () => undefined, answer: () => undefined }),
      head,
      read: (key, options) => send({
        operation: 'read', key, options, mutates: false,
        effect: () => {
          const there = bucket.existing(`read ${key}`, key);
          if (options.version !== undefined && !sameContent(provider.versions, there, options.version)) throw new StorageError('changed', `read ${key}`, { status: 412 });
          return there.content.subarray(options.offset, options.offset + targetBytes(options.into));
        },
        answer: (part) => fill(options.into, part), torn: (part) => void fill(options.into, part.subarray(0, part.length >> 1)),
      }),
      fetch: (key, options): Promise<Fetched> => {
        if (!provider.capabilities.fetch) return Promise.reject(new StorageError('unsupported', `fetch ${key}`));
        return send({
          operation: 'fetch', key, options, mutates: false, effect: () => bucket.existing(`fetch ${key}`, key),
          answer: (there) => ({ info: told(bucket.infoOf(there)), bytes: fill(options.into, there.content.subarray(0, targetBytes(options.into))) }),
          torn: (there) => void fill(options.into, there.content.subarray(0, targetBytes(options.into) >> 1)),
        });
      },
      put: (key, body, options: PutOptions = {}) => send({
        operation: 'put', key, options, mutates: true, condition: options.condition, body, effect: (call, content) => bucket.put(call, content, options), answer: made,
      }),
      remove: (key, options) => send({
        operation: 'remove', key, options, mutates: true, condition: options?.version === undefined ? undefined : { version: options.version },
        effect: (call) => (provider.capabilities.atomicDelete ? bucket.remove(call, options?.version) : bucket.compare(call, options?.version)),
        ...(provider.capabilities.atomicDelete ? {} : { then: (call: Call) => bucket.remove(call, options?.version) }), answer: () => undefined,
      }),
      copy,
      rename: (from, to, options) => {
        if (!provider.capabilities.rename) return Promise.reject(new StorageError('unsupported', `rename ${from}`));
        return send({
          operation: 'rename', key: from, options, mutates: true, condition: { version: options.version }, effect: (call) => bucket.rename(call, to, options.version, options.condition), answer: made,
        });
      },
      setMetadata: async (key, version, metadata, options) => {
        const there = await head(key, options);
        if (provider.capabilities.metadataInPlace) {
          return send({ operation: 'patch', key, options, mutates: true, condition: { version }, effect: (call) => bucket.patch(call, version, metadata), answer: made });
        }
        const condition = provider.capabilities.copyIfVersion ? { condition: { version } } : {};
        return copy(key, key, { ...options, metadata, sourceVersion: version, headers: there.headers!, ...condition });
      },
      list: (options) => send({
        operation: 'list', key: options.prefix, options, mutates: false, effect: () => bucket.list(options),
        answer: (page) => {
          for (const info of page.objects) told(info);
          return page;
        },
      }),
      beginUpload: (key, options: PutOptions = {}) => send({ operation: 'beginUpload', key, options, mutates: true, effect: (call) => bucket.beginUpload(call, options), answer: (upload) => known(upload) }),
      putPart: (upload, number, body, options) => send({
        operation: 'putPart', key: upload.key, options, mutates: true, body, effect: (call, content) => bucket.putPart(call, upload, number, content), answer: (part) => part,
      }),
      copyPart: (upload, number, source, options) => send({
        operation: 'copyPart', key: upload.key, options, mutates: true,
        effect: (call) => {
          const { copyPart, copyPartIfVersion } = provider.capabilities;
          const there = bucket.existing(call.operation, source.key);
          if (copyPartIfVersion && there.version !== source.version) throw new StorageError('changed', call.operation, { status: 412 });
          const whole = source.offset === 0 && source.bytes === there.content.length;
          if (copyPart === 'none' || (copyPart === 'whole' && !whole)) throw new StorageError('unsupported', call.operation);
          if (source.bytes === 0 || source.offset + source.bytes > there.content.length) throw new StorageError('changed', call.operation, { status: 416 });
          return bucket.putPart(call, upload, number, there.content.subarray(source.offset, source.offset + source.bytes));
        },
        answer: (part) => part,
      }),
      completeUpload: (upload, parts, options) => send({
        operation: 'completeUpload', key: upload.key, options, mutates: true, condition: options?.condition,
        effect: (call) => bucket.completeUpload(call, upload, parts, options?.condition), answer: made,
      }),
      abortUpload: (upload: Upload, options) => send({ operation: 'abortUpload', key: upload.key, options, mutates: true, effect: () => bucket.abortUpload(upload), answer: () => undefined }),
      listUploads: (options) => send({ operation: 'listUploads', key: options.prefix, options, mutates: false, effect: () => ({ uploads: bucket.listUploads(options.prefix), next: null }), answer: (page) => page }),
      close: async () => undefined,
    };
  }

  #send<R, A>(process: SimulatedProcess, client: string, request: Request<R, A>): Promise<A> {
    return new Promise((resolve, reject) => new Sending(this, process, this.#newCall(client, request.operation, request.key), request, resolve, reject).begin());
  }

  fateOf<R, A>(call: Call, { operation, mutates, condition, torn }: Request<R, A>): Fate {
    const { seed, weather, lies, spared } = this.options;
    const now = this.healed || spared.has(call.number) ? CALM : weather;
    const { guarded } = this.bucket.provider;
    const fate = fateOf(seed, call.number, now, { operation, mutates, conditional: condition !== undefined, reads: torn !== undefined, guarded, lies });
    if (fate.kind !== 'good') this.faults.push({ number: call.number, line: `${operation} ${call.key}: ${fate.kind}` });
    return fate;
  }

  outage(call: Call): { readonly code: StorageError['code'] | null } | null {
    if (this.healed || this.options.spared.has(call.number)) return null;
    const now = this.scheduler.now_ms;
    return this.options.weather.outages.find(({ from_ms, to_ms }) => now >= from_ms && now < to_ms) ?? null;
  }
}

/** One request on its way. */
class Sending<R, A> {
  #over = false;
  #content: Buffer = Buffer.alloc(0);
  readonly #fate: Fate;
  readonly #subject: string;
  readonly #file: number;

  constructor(
    readonly network: Network,
    readonly process: SimulatedProcess,
    readonly call: Call,
    readonly request: Request<R, A>,
    readonly resolve: (answer: A) => void,
    readonly reject: (error: Error) => void,
  ) {
    this.#fate = network.fateOf(call, request);
    this.#subject = `${request.operation} ${request.key}`;
    this.#file = this.#fileNow();
  }

  /** @returns an id of the open file that the body is a range of */
  #fileNow(): number {
    const { body } = this.request;
    return body === undefined || body instanceof Uint8Array ? 0 : this.network.options.fileOf(body.fd);
  }

  begin(): void {
    const { signal } = this.request.options ?? {};
    if (signal?.aborted === true) return this.#fail('aborted');
    signal?.addEventListener('abort', this.#onAbort, { once: true });
    const outage = this.network.outage(this.call);
    if (outage !== null) {
      // No connection, or refused: nothing was done
      if (outage.code !== null) this.#later(this.process, this.#fate.answer_ms, outage.code, () => this.#fail(outage.code!));
      return;
    }
    this.#later(this.process, this.#fate.sent_ms, 'sent', () => this.#sent());
  }

  readonly #onAbort = (): void => this.#fail('aborted');

  #later(owner: SimulatedProcess | null, ms: number, what: string, run: () => void): void {
    this.network.scheduler.after(owner, ms, `#${this.call.number} ${this.#subject} ${what}`, run);
  }

  #sent(): void {
    if (this.#over) return;
    const { kind, effect_ms, answer_ms, breaks, obeyed, retryAfter_ms } = this.#fate;
    const { body, mutates } = this.request;
    if (body !== undefined) {
      const fromFile = !(body instanceof Uint8Array);
      if (fromFile && (this.#file === 0 || this.#fileNow() !== this.#file)) this.network.options.onBadBody(`${this.#subject} by request #${this.call.number}: its descriptor was closed`);
      try {
        this.#content = Buffer.from(bodyContent(body, this.#subject));
      } catch (error) {
        this.network.options.onBadBody(`${this.#subject} by request #${this.call.number}: ${(error as Error).message}`);
        return this.#later(this.process, answer_ms, 'no body', () => this.#fail(error instanceof StorageError ? error.code : 'unexpected'));
      }
    }
    const ambiguous = mutates ? { ambiguous: true } : {};
    const broken = (): void => {
      if (breaks) this.#later(this.process, answer_ms * 20, 'interrupted', () => this.#fail('interrupted', ambiguous));
    };
    switch (kind) {
      case 'request lost':
        return broken();
      case 'late':
        broken();
        return this.#effect(effect_ms, () => undefined);
      case 'answer lost':
        return this.#effect(effect_ms, broken);
      case 'throttled':
        return this.#later(this.process, answer_ms, '503', () => this.#fail('throttled', { status: 503, ...ambiguous, ...(retryAfter_ms === null ? {} : { retryAfter_ms }) }));
      case 'failed': {
        const failed = (): void => this.#later(this.process, answer_ms, '500', () => this.#fail('unavailable', { status: 500, ...ambiguous }));
        return obeyed ? this.#effect(effect_ms, failed) : failed();
      }
      case 'race':
        return this.#later(this.process, answer_ms, '409', () => this.#fail('changed', { status: 409 }));
      case 'missing':
        this.network.options.onLie(this.call.key);
        return this.#later(this.process, answer_ms, '404', () => this.#fail('not-found', { status: 404 }));
      case 'twice':
        this.#effect(effect_ms, (answer) => void (this.#fate.second || answer()));
        return this.#effect(effect_ms + this.#fate.again_ms, (answer) => void (this.#fate.second && answer()));
      case 'torn':
        return this.#effect(effect_ms, (answer, result) => this.#later(this.process, answer_ms, 'torn', () => this.#tear(answer, result)));
      case 'slow':
      case 'good':
        return this.#effect(effect_ms, (answer) => answer());
    }
  }

  /** Change the bucket after a while, then call `answered` with a function that delivers the answer or the error. */
  #effect(ms: number, answered: (answer: () => void, result: R | StorageError) => void): void {
    const { effect, then } = this.request;
    const { network } = this;
    network.underway++;
    const deliver = (result: R | StorageError): void => {
      network.underway--;
      answered(() => this.#later(this.process, this.#fate.answer_ms, result instanceof StorageError ? result.code : 'answer', () => this.#answer(result)), result);
    };
    this.#later(null, ms, 'effect', () => {
      const first = attempted(() => effect(this.call, this.#content));
      if (then === undefined || first instanceof StorageError) return deliver(first);
      // A server that compares first and removes then does not let minutes pass in between
      this.#later(null, Math.min(ms, this.request.operation === 'remove' ? 50 : 30_000), 'effect 2', () => deliver(attempted(() => then(this.call, first))));
    });
  }

  #answer(result: R | StorageError): void {
    if (this.#over) return;
    if (result instanceof StorageError) return this.#fail(result.code, result.detail);
    this.call.answered = true;
    const answer = this.request.answer(result);
    this.#end();
    this.resolve(answer);
  }

  #tear(answer: () => void, result: R | StorageError): void {
    if (this.#over) return;
    if (result instanceof StorageError) return answer();
    this.request.torn!(result);
    this.#fail(this.#fate.breaks ? 'interrupted' : 'short-body');
  }

  #fail(code: StorageError['code'], detail: StorageErrorDetail = {}): void {
    if (this.#over) return;
    this.#end();
    this.reject(new StorageError(code, this.#subject, detail));
  }

  #end(): void {
    this.#over = true;
    this.request.options?.signal?.removeEventListener('abort', this.#onAbort);
  }
}

function attempted<R>(body: () => R): R | StorageError {
  try {
    return body();
  } catch (error) {
    if (error instanceof StorageError) return error;
    throw error;
  }
}

/** Google's reads compare generations, which a change of metadata leaves as they are. */
function sameContent(versions: 'etag' | 'generation', { version, tag }: Revision, wanted: Version): boolean {
  return versions === 'etag' ? version === wanted : tag === wanted.split('.')[0];
}

function fill(into: Target, part: Uint8Array): number {
  targetView(into).set(part);
  return part.length;
}
