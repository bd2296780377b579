/**
 * A small Google Cloud Storage for tests: the JSON API over HTTP, objects in memory. Written from Google's reference
 * (each file names its pages), with what the store and the file system need of it, and exact about generations.
 */
import { createServer, type IncomingHttpHeaders, type IncomingMessage, type Server, type ServerResponse } from 'node:http';
import { createServer as createTlsServer } from 'node:https';
import type { AddressInfo } from 'node:net';
import { sendMutated } from '../s3/server.js';
import { ApiError, anonymousDenied, forbidden, invalidCredentials, noSuchBucket } from './errors.js';
import { Faults, delayed, refusal, type Harm, type Operation } from './faults.js';
import { Bucket, type BucketOptions, type Query } from './objects.js';
import { handle, routeOf, type Route } from './routes.js';
import type { Answer } from './media.js';
import { Sessions, type Received } from './uploads.js';

export interface GcsServerOptions {
  /** Speak TLS with this certificate. */
  readonly tls?: { readonly key: string; readonly cert: string };
  /** Requests need a bearer token that issueToken() made. */
  readonly authenticate?: boolean;
  /** Of the loopback; absent: any that is free. */
  readonly port?: number;
  /** Bytes that one rewrite call copies; absent: all. */
  readonly rewriteBytesPerCall?: number;
  /** Another name of the loopback, at which resumable sessions are said to be. */
  readonly sessionsAt?: string;
}

/** A request that came, for tests that look at what was asked. */
export interface Seen {
  readonly operation: Operation;
  readonly name: string | null;
  readonly query: Query;
  readonly headers: IncomingHttpHeaders;
}

export class GcsServer {
  readonly faults = new Faults();
  readonly sessions = new Sessions();
  readonly buckets = new Map<string, Bucket>();
  readonly seen: Seen[] = [];
  /** Operations that callers have no permission for. */
  readonly denied = new Set<Operation>();
  /** Rewrites that are not done: by token. */
  readonly rewrites = new Map<string, { readonly generation: number; readonly bytes: number }>();
  /** What POST /token gives: seconds until it ends, or a refusal by its OAuth 2.0 error code. */
  tokens: { readonly lifetime_s: number } | { readonly error: string; readonly description: string } = { lifetime_s: 3600 };
  readonly #valid = new Set<string>();
  readonly #server: Server;
  #requests = 0;

  private constructor(readonly options: GcsServerOptions) {
    const listener = (request: IncomingMessage, response: ServerResponse): void => void this.#serve(request, response);
    this.#server = options.tls === undefined ? createServer(listener) : createTlsServer(options.tls, listener);
  }

  static async start(options: GcsServerOptions = {}): Promise<GcsServer> {
    const server = new GcsServer(options);
    await new Promise<void>((resolve, reject) => {
      server.#server.once('error', reject).listen(options.port ?? 0, '127.0.0.1', resolve);
    });
    return server;
  }

  get port(): number {
    return (this.#server.address() as AddressInfo).port;
  }

  /** For apiEndpoint. */
  get url(): string {
    return `${this.options.tls === undefined ? 'http' : 'https'}://127.0.0.1:${this.port}`;
  }

  createBucket(name: string, options: BucketOptions = {}): Bucket {
    const bucket = new Bucket(name, options);
    this.buckets.set(name, bucket);
    return bucket;
  }

  async close(): Promise<void> {
    const closed = new Promise<void>((resolve) => this.#server.close(() => resolve()));
    this.#server.closeAllConnections();
    await closed;
  }

  issueToken(): string {
    const token = `token-${this.#valid.size + 1}-${++this.#requests}`;
    this.#valid.add(token);
    return token;
  }

  /** No token that was issued is good any more. */
  revokeTokens(): void {
    this.#valid.clear();
  }

  bucket(name: string): Bucket {
    const bucket = this.buckets.get(name);
    if (bucket === undefined) throw noSuchBucket();
    return bucket;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    const id = `upload-server-${++this.#requests}`;
    request.on('error', () => {});
    response.on('error', () => {});
    let route: Route | null = null;
    let harm: Harm | null = null;
    let answer: Answer;
    try {
      route = routeOf(request.method ?? 'GET', request.url ?? '/', request.headers);
      harm = this.faults.next(route.operation, route.object);
      this.seen.push({ operation: route.operation, name: route.object, query: route.query, headers: request.headers });
      if (harm?.kind === 'drop') return void request.socket.destroy();
      const received = await receive(request, harm);
      await delayed(harm);
      if (harm?.kind === 'status') throw refusal(harm);
      // Of a broken request only a resumable upload keeps anything.
      if (received.broken && route.operation !== 'upload.put') return;
      this.#authorise(route, request.headers.authorization);
      answer = handle(this, route, received, request.headers);
      if (received.broken || harm?.kind === 'drop-after') return void request.socket.destroy();
      if (harm?.kind === 'status-after') throw refusal(harm);
    } catch (error) {
      if (!(error instanceof ApiError)) {
        request.socket.destroy();
        throw error;
      }
      answer = refused(error, route);
    }
    send(request, response, answer, harm, id);
  }

  #authorise(route: Route, authorization: string | undefined): void {
    if (route.operation === 'token') return;
    const permission = `storage.${route.operation}`;
    if (this.options.authenticate === true) {
      if (authorization === undefined) throw anonymousDenied(permission);
      if (!this.#valid.has(authorization.replace(/^Bearer /, ''))) throw invalidCredentials();
    }
    if (this.denied.has(route.operation)) throw forbidden(permission);
    const payer = route.query.get('userProject');
    if (route.bucket !== null && this.buckets.get(route.bucket)?.options.requesterPays === true && payer === undefined) {
      throw new ApiError(400, 'required', 'Bucket is a requester pays bucket but no user project provided.');
    }
  }
}

function refused(error: ApiError, route: Route | null): Answer {
  // Downloads are refused in plain words, all else as JSON; 304 has no body.
  const isMedia = route?.operation === 'objects.media';
  const body = error.status === 304 ? '' : isMedia ? error.message : error.body();
  const type = isMedia ? 'text/html; charset=UTF-8' : 'application/json; charset=UTF-8';
  return { status: error.status, headers: { 'content-type': type, ...error.place.headers }, body: Buffer.from(body) };
}

function send(request: IncomingMessage, response: ServerResponse, answer: Answer, harm: Harm | null, id: string): void {
  let { body } = answer;
  if (harm?.kind === 'corrupt') body = corrupted(body);
  if (harm?.kind === 'shorten') body = body.subarray(0, harm.bytes);
  const length = answer.status === 304 ? {} : { 'content-length': body.length };
  if (harm?.kind === 'mutate') return sendMutated(request, response, harm.mutate({ status: answer.status, headers: { ...answer.headers, 'content-length': String(body.length) }, body }));
  response.writeHead(answer.status, { ...answer.headers, ...length, 'x-guploader-uploadid': id });
  if (harm?.kind === 'truncate') response.write(body.subarray(0, harm.bytes), () => request.socket.destroy());
  else response.end(body);
}

function corrupted(body: Buffer): Buffer {
  const other = Buffer.from(body);
  if (other.length > 0) other[other.length >> 1] ^= 1;
  return other;
}

/** The body, as far as it comes; a fault may cut it off. */
function receive(request: IncomingMessage, harm: Harm | null): Promise<Received> {
  return new Promise((resolve) => {
    const chunks: Buffer[] = [];
    let bytes = 0;
    const done = (broken: boolean): void => {
      const content = Buffer.concat(chunks);
      resolve({ content: harm?.kind === 'corrupt-body' ? corrupted(content) : content, broken });
    };
    request.on('data', (chunk: Buffer) => {
      const most = harm?.kind === 'drop-body' ? harm.bytes - bytes : chunk.length;
      chunks.push(chunk.subarray(0, Math.max(0, most)));
      bytes += chunk.length;
      if (harm?.kind === 'drop-body' && bytes >= harm.bytes) {
        request.socket.destroy();
        done(true);
      }
    });
    request.on('end', () => done(!request.complete));
    request.on('close', () => done(!request.complete));
  });
}
