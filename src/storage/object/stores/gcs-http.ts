/**
 * Requests to the JSON API, one attempt each. Credentials, endpoint and universe are the client library's; the requests
 * themselves go over our own connections, since the library's retry, buffer whole answers, and hide what a connection did.
 */
import { Storage } from '@google-cloud/storage';
import { AnswerReader, type Fields } from './answer-reader.js';
import { boundedRequests } from './credential-requests.js';
import { objectOfKey, type GcsObject } from './gcs-resource.js';
import { toStorageError, type Failure, type FailureContext } from './gcs-errors.js';
import { isAbort, isGood, type Received, type Sending } from './http-connection.js';
import { CONNECT_MS, Connections } from './http-connections.js';
import type { Content, Header } from './http-content.js';

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
  /** See boundedRequests(); in tests. */
  readonly credentialsWithin_ms?: number;
}

/** What is sent, and how long all of it is. */
export interface Payload {
  readonly bytes: number;
  readonly content: Content;
}

export interface GcsCall {
  readonly operation: string;
  readonly method: 'GET' | 'POST' | 'PUT' | 'PATCH' | 'DELETE';
  /** Below the endpoint, percent-encoded; or the URL of a resumable session, which is there too. */
  readonly path: string | URL;
  readonly query?: Readonly<Record<string, string | number | undefined>>;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array | Payload;
  readonly into?: Sending['into'];
  readonly inspect?: Sending['inspect'];
  readonly answerMax_bytes?: number;
  readonly signal?: AbortSignal | undefined;
  readonly mutates?: boolean;
  readonly bucketOnly?: boolean;
  /** Answers that are none of an error, besides 2xx. */
  readonly also?: readonly number[];
}

/** Idle connections are closed before the other side does it while a request is on its way. */
const IDLE_MS = 50_000;
/** The library looks for a project with gcloud and at the metadata server unless it has one. No call here needs any. */
const NO_PROJECT = 'unspecified';

const NOTHING: Payload = { bytes: 0, content: null };

type AuthHeaders = Record<string, string>;
type Outcome = { readonly received: Received } | { readonly failure: Failure };

interface Target {
  /** Says protocol, host and port. */
  readonly url: URL;
  readonly path: string;
}

export class GcsHttp {
  readonly #storage: Storage;
  readonly #base: URL;
  readonly #connections: Connections;
  readonly #anonymous: boolean;
  readonly #credentialsWithin_ms: number | undefined;
  readonly #userProject: string | undefined;
  #accepted = false;

  constructor(connection: GcsConnection) {
    const { credentials = 'default' } = connection;
    this.#anonymous = credentials === 'anonymous';
    this.#credentialsWithin_ms = connection.credentialsWithin_ms;
    this.#userProject = connection.userProject;
    this.#storage = new Storage({
      projectId: connection.project ?? NO_PROJECT,
      retryOptions: { autoRetry: false, maxRetries: 0 },
      ...(connection.endpoint === undefined ? {} : { apiEndpoint: connection.endpoint }),
      ...(typeof credentials === 'string' ? {} : 'keyFile' in credentials ? { keyFilename: credentials.keyFile } : { credentials: { ...credentials.key } }),
    });
    this.#base = new URL(this.#storage.apiEndpoint);
    this.#connections = new Connections(connection.ca, IDLE_MS);
  }

  /** Where requests go. */
  get endpoint(): URL {
    return this.#base;
  }

  /** The fields of the answer, and what they are to be read with. */
  async json(call: GcsCall): Promise<{ readonly read: AnswerReader; readonly fields: Fields }> {
    const { body } = await this.call(call);
    const read = new AnswerReader(call.operation, call.mutates === true);
    return { read, fields: read.json(body) };
  }

  /** The resource of this key that the answer is. */
  async object(call: GcsCall, key: string): Promise<GcsObject> {
    const { read, fields } = await this.json(call);
    return objectOfKey(read, fields, key);
  }

  /** The answer, if it is none of an error. @throws StorageError */
  async call(call: GcsCall): Promise<Received> {
    const target = this.#targetOf(call);
    const authenticates = !this.#anonymous;
    let headers = authenticates ? await this.#authorise(call) : {};
    for (let renewed = false; ; renewed = true) {
      const outcome = await this.#send(call, target, headers);
      if ('received' in outcome) {
        if (authenticates) this.#accepted = true;
        return outcome.received;
      }
      const { failure } = outcome;
      const refused = failure.kind === 'answer' && failure.status === 401;
      const next = refused && authenticates && !renewed ? await this.#renew(call, headers) : null;
      if (next === null) throw toStorageError(failure, this.#context(call));
      headers = next;
    }
  }

  close(): void {
    this.#connections.close();
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
      return await whileWanted(boundedRequests(() => this.#storage.authClient.getRequestHeaders(this.#base.href), this.#credentialsWithin_ms), call.signal);
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

  async #send(call: GcsCall, { url, path }: Target, auth: AuthHeaders): Promise<Outcome> {
    const { method, operation, body, signal, into, inspect, answerMax_bytes } = call;
    const { bytes, content } = body === undefined ? NOTHING : body instanceof Uint8Array ? { bytes: body.length, content: [body] } : body;
    const headers: Header[] = [['host', url.host], ['user-agent', 'bucketfsd'], ...Object.entries(auth), ...Object.entries(call.headers ?? {})];
    if (method !== 'GET') headers.push(['content-length', String(bytes)]);
    let sent = false;
    try {
      const received = await this.#connections.send({
        url, method, target: path, headers, content, operation, connect_ms: CONNECT_MS, signal, onSent: () => (sent = true),
        ...(into === undefined ? {} : { into }), ...(inspect === undefined ? {} : { inspect }),
        ...(answerMax_bytes === undefined ? {} : { answerMax_bytes }),
      });
      if (isGood(received.status) || call.also?.includes(received.status) === true) return { received };
      return { failure: { kind: 'answer', status: received.status, headers: received.headers, body: received.body.toString() } };
    } catch (error) {
      return { failure: isAbort(error) ? { kind: 'aborted' } : { kind: 'connection', error, sent } };
    }
  }
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
