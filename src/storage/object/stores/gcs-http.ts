/**
 * Requests to the JSON API, one attempt each. Credentials, endpoint and universe are the client library's; the requests
 * themselves are Node's, since the library's own retry, buffer whole answers, and hide what a connection did.
 */
import { Storage } from '@google-cloud/storage';
import { Agent as HttpAgent, request as httpRequest, type IncomingMessage, type OutgoingHttpHeaders } from 'node:http';
import { Agent as HttpsAgent, request as httpsRequest } from 'node:https';
import { pipeline, type Readable } from 'node:stream';
import { StorageError } from '../errors.js';
import { toStorageError, type Failure, type FailureContext } from './gcs-errors.js';

export interface GcsConnection {
  /** Absent: the one of Google (or of the universe). */
  readonly endpoint?: string;
  readonly project?: string;
  /** Who pays for a requester-pays bucket: a project. */
  readonly userProject?: string;
  /**
   * default: as the library finds them (environment, gcloud's file, the machine's own). anonymous: none are looked for.
   * A key file or its content: only these.
   */
  readonly credentials?: 'default' | 'anonymous' | { readonly keyFile: string } | { readonly key: Readonly<Record<string, unknown>> };
  /** Certificates to trust, PEM, instead of the usual ones. NODE_EXTRA_CA_CERTS works without. */
  readonly ca?: string;
}

/** A body that can be sent again. */
export interface Content {
  readonly bytes: number;
  stream(): Readable;
}

export interface GcsCall {
  readonly operation: string;
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** Below the endpoint, percent-encoded; or the URL of a resumable session. */
  readonly path: string | URL;
  readonly query?: Readonly<Record<string, string | number | undefined>>;
  readonly headers?: OutgoingHttpHeaders;
  readonly body?: Uint8Array | Content;
  readonly signal?: AbortSignal | undefined;
  readonly mutates?: boolean;
  readonly bucketOnly?: boolean;
  /** Answers that are none of an error, besides 2xx. */
  readonly also?: readonly number[];
}

export interface GcsAnswer {
  readonly status: number;
  readonly headers: IncomingMessage['headers'];
  readonly body: Buffer;
}

/** A page of 1,000 objects with 8 KiB of metadata each, in JSON, and room. */
const ANSWER_BYTES_MAX = 64 << 20;
/** Idle connections are closed before the other side does it while a request is on its way. */
const IDLE_MS = 50_000;
/** The library looks for a project with gcloud and at the metadata server unless it has one. No call here needs any. */
const NO_PROJECT = 'unspecified';

type AuthHeaders = Record<string, string>;
type Consume<T> = (response: IncomingMessage) => Promise<T>;
type Outcome<T> = { readonly value: T } | { readonly failure: Failure };

interface Target {
  /** Says protocol, host and port. */
  readonly url: URL;
  readonly path: string;
}

export class GcsHttp {
  readonly #storage: Storage;
  readonly #base: URL;
  readonly #agent: HttpAgent;
  readonly #anonymous: boolean;
  readonly #userProject: string | undefined;
  #accepted = false;

  constructor(connection: GcsConnection) {
    const { credentials = 'default' } = connection;
    this.#anonymous = credentials === 'anonymous';
    this.#userProject = connection.userProject;
    this.#storage = new Storage({
      projectId: connection.project ?? NO_PROJECT,
      retryOptions: { autoRetry: false, maxRetries: 0 },
      ...(connection.endpoint === undefined ? {} : { apiEndpoint: connection.endpoint }),
      ...(typeof credentials === 'string' ? {} : 'keyFile' in credentials ? { keyFilename: credentials.keyFile } : { credentials: { ...credentials.key } }),
    });
    this.#base = new URL(this.#storage.apiEndpoint);
    const agentOptions = { keepAlive: true, timeout: IDLE_MS, ...(connection.ca === undefined ? {} : { ca: connection.ca }) };
    this.#agent = this.#base.protocol === 'http:' ? new HttpAgent(agentOptions) : new HttpsAgent(agentOptions);
  }

  /** The resource that the answer is. */
  async json<T>(call: GcsCall): Promise<T> {
    const { body, status } = await this.call(call);
    try {
      return JSON.parse(body.toString()) as T;
    } catch (cause) {
      throw new StorageError('unexpected', call.operation, { status, providerMessage: 'the answer is no JSON', ambiguous: call.mutates === true, cause });
    }
  }

  call(call: GcsCall): Promise<GcsAnswer> {
    return this.exchange(call, async (response) => ({ status: response.statusCode ?? 0, headers: response.headers, body: await collect(response) }));
  }

  /** @param consume reads the answer to its end; only for those that are none of an error. @throws StorageError */
  async exchange<T>(call: GcsCall, consume: Consume<T>): Promise<T> {
    const target = this.#targetOf(call);
    // Sessions may be at another host; its URL is all that it needs, and a token is not for whoever that is.
    const authenticates = !this.#anonymous && target.url.origin === this.#base.origin;
    let headers = authenticates ? await this.#authorise(call) : {};
    for (let renewed = false; ; renewed = true) {
      const outcome = await this.#send(call, target, headers, consume);
      if ('value' in outcome) {
        if (authenticates) this.#accepted = true;
        return outcome.value;
      }
      const { failure } = outcome;
      const refused = failure.kind === 'answer' && failure.status === 401;
      const next = refused && authenticates && !renewed ? await this.#renew(call, headers) : null;
      if (next === null) throw toStorageError(failure, this.#context(call));
      headers = next;
    }
  }

  close(): void {
    this.#agent.destroy();
  }

  #context(call: GcsCall): FailureContext {
    return { operation: call.operation, mutates: call.mutates === true, bucketOnly: call.bucketOnly === true, accepted: this.#accepted };
  }

  /** Paths stay as they are: a URL parser would take dots in object names for its own. */
  #targetOf({ path, query = {} }: GcsCall): Target {
    if (path instanceof URL) {
      if (this.#userProject !== undefined) path.searchParams.set('userProject', this.#userProject);
      return { url: path, path: path.pathname + path.search };
    }
    const search = Object.entries({ ...query, userProject: this.#userProject })
      .flatMap(([name, value]) => (value === undefined ? [] : [`${name}=${encodeURIComponent(value)}`])).join('&');
    return { url: this.#base, path: `${this.#base.pathname.replace(/\/+$/, '')}${path}${search === '' ? '' : `?${search}`}` };
  }

  async #authorise(call: GcsCall): Promise<AuthHeaders> {
    try {
      return await whileWanted(this.#storage.authClient.getRequestHeaders(this.#base.href), call.signal);
    } catch (error) {
      throw toStorageError(call.signal?.aborted === true ? { kind: 'aborted' } : { kind: 'credentials', error }, this.#context(call));
    }
  }

  /** Another token than the refused one, if there is any: tokens may be withdrawn before their time is over. */
  async #renew(call: GcsCall, refused: AuthHeaders): Promise<AuthHeaders | null> {
    const current = await this.#authorise(call);
    if (current.Authorization !== refused.Authorization) return current;
    const client = await this.#storage.authClient.getClient();
    client.setCredentials({ ...client.credentials, access_token: null, expiry_date: 1 });
    const fresh = await this.#authorise(call);
    return fresh.Authorization === refused.Authorization ? null : fresh;
  }

  #send<T>(call: GcsCall, { url, path }: Target, auth: AuthHeaders, consume: Consume<T>): Promise<Outcome<T>> {
    const { body, signal } = call;
    if (signal?.aborted === true) return Promise.resolve({ failure: { kind: 'aborted' } });
    const bytes = body === undefined ? 0 : body instanceof Uint8Array ? body.byteLength : body.bytes;
    const isTls = url.protocol === 'https:';
    return new Promise((resolve) => {
      let sent = false;
      let responded = false;
      const fail = (error: unknown): void => resolve({ failure: signal?.aborted === true ? { kind: 'aborted' } : { kind: 'connection', error, sent } });
      const request = (isTls ? httpsRequest : httpRequest)({
        protocol: url.protocol, hostname: url.hostname.replace(/^\[|\]$/g, ''), port: url.port, path, method: call.method,
        agent: url.protocol === this.#base.protocol ? this.#agent : undefined,
        headers: { 'user-agent': 'bucketfsd', ...auth, ...call.headers, ...(call.method === 'GET' ? {} : { 'content-length': bytes }) },
        ...(signal === undefined ? {} : { signal }),
      });
      request.on('socket', (socket) => {
        if (request.reusedSocket) sent = true;
        else socket.once(isTls ? 'secureConnect' : 'connect', () => (sent = true));
      });
      // Once there is an answer, the outcome is that of reading it to its end: nothing is written into a caller's memory
      // after the call is over.
      request.on('response', (response) => {
        responded = true;
        answer(call, response, consume).then(resolve, fail).finally(() => {
          if (!request.writableFinished) request.destroy(); // refused before all of it was sent
        });
      });
      // An answer that has begun says more than the error of sending what it did not wait for.
      const broke = (error: unknown): void => {
        if (!responded) fail(error);
      };
      request.on('error', broke);
      if (body === undefined || body instanceof Uint8Array) return void request.end(body);
      try {
        pipeline(body.stream(), request, (error) => {
          if (error) broke(error);
        });
      } catch (error) {
        request.destroy();
        fail(error);
      }
    });
  }
}

async function answer<T>(call: GcsCall, response: IncomingMessage, consume: Consume<T>): Promise<Outcome<T>> {
  const status = response.statusCode ?? 0;
  if ((status >= 200 && status < 300) || call.also?.includes(status) === true) return { value: await consume(response) };
  // A refusal whose words are lost is a refusal still.
  const body = await collect(response).then((text) => text.toString(), () => '');
  return { failure: { kind: 'answer', status, headers: response.headers, body } };
}

async function collect(response: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  let bytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    bytes += chunk.length;
    if (bytes > ANSWER_BYTES_MAX) throw new Error(`the answer is longer than ${ANSWER_BYTES_MAX} bytes`);
    chunks.push(chunk);
  }
  return Buffer.concat(chunks, bytes);
}

/** The library's promises know no signal. */
function whileWanted<T>(promise: Promise<T>, signal: AbortSignal | undefined): Promise<T> {
  if (signal === undefined) return promise;
  return new Promise((resolve, reject) => {
    const leave = (): void => reject(signal.reason);
    if (signal.aborted) return leave();
    signal.addEventListener('abort', leave, { once: true });
    promise.then(resolve, reject).finally(() => signal.removeEventListener('abort', leave));
  });
}
