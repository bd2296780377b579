/**
 * A small S3 server that misbehaves on demand, for what a real one cannot be brought to do. What it does right is what the S3 store
 * of the daemon asks for, on a MemoryStore; how S3 really behaves is tested on Ceph RGW (../rgw.ts).
 * https://docs.aws.amazon.com/AmazonS3/latest/API/
 */
import { once } from 'node:events';
import { createServer as createHttp, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttps } from 'node:https';
import type { AddressInfo, Server } from 'node:net';
import { MemoryStore, type MemoryStore as Store } from '../../../src/storage/object/stores/memory.js';
import { perform, refusalOf, Refusal, type Answer } from './operations.js';

export type S3Operation =
  | 'list' | 'head' | 'get' | 'tags' | 'lock' | 'put' | 'delete' | 'copy' | 'begin' | 'part' | 'copy-part' | 'complete' | 'abort' | 'uploads';

export interface S3Request {
  readonly operation: S3Operation;
  readonly bucket: string;
  readonly key: string;
  readonly query: URLSearchParams;
  readonly headers: IncomingMessage['headers'];
  /** The key of who asks, and the region that the request was signed for; '' without a signature. */
  readonly accessKey: string;
  readonly region: string;
}

export type Harm =
  /** Refuse, and do nothing. */
  | { readonly status: number; readonly code: string; readonly message?: string; readonly more?: string; readonly headers?: Readonly<Record<string, string>> }
  /** Close the connection instead of answering. */
  | 'drop'
  /** Announce the whole body, and send only so many bytes of it: then nothing more, or the connection is closed. */
  | { readonly stuckAfter: number }
  | { readonly brokenAfter: number }
  /** Send so many bytes, and say that this is all; the range is said to be the one that was asked for. */
  | { readonly short: number }
  /** So many bytes more than the range that was asked for. */
  | { readonly longer: number }
  /** A byte of the body is another than it was, and the headers say what it should be. */
  | { readonly flip: true; readonly headers: HeaderChange }
  /** Another body. */
  | { readonly edit: (body: string) => string }
  /** Another answer instead of the right one, with the length that it says. */
  | { readonly mutate: (answer: Answer) => Answer }
  /** The answer's headers, as somebody in between would change them. */
  | { readonly headers: HeaderChange };

type HeaderChange = (headers: Record<string, string>) => Record<string, string>;

export interface S3ServerOptions {
  readonly port?: number;
  readonly tls?: { readonly key: string; readonly cert: string };
}

export class S3Server {
  static readonly BUCKET = 'bucket';
  static readonly CREDENTIALS = { accessKeyId: 'AKIDTEST', secretAccessKey: 'secret' };
  /** Content of the one bucket. */
  store: Store = new MemoryStore();
  /** Elements of the bucket's default retention; null: it has no object locks. */
  lock: string | null = null;
  /** What came, in order. */
  readonly requests: S3Operation[] = [];
  /** Asked for each request before it is served. */
  judge: (request: S3Request) => Harm | null = () => null;

  private constructor(
    readonly server: Server,
    readonly endpoint: string,
  ) {}

  static async start(options: S3ServerOptions = {}): Promise<S3Server> {
    let self: S3Server | null = null;
    const listener = (request: IncomingMessage, response: ServerResponse): void => void self?.serve(request, response);
    const server = options.tls === undefined ? createHttp(listener) : createHttps(options.tls, listener);
    server.listen(options.port ?? 0, '127.0.0.1');
    await once(server, 'listening');
    const { port } = server.address() as AddressInfo;
    self = new S3Server(server, `http${options.tls === undefined ? '' : 's'}://127.0.0.1:${port}`);
    return self;
  }

  get port(): number {
    return (this.server.address() as AddressInfo).port;
  }

  count(operation: S3Operation): number {
    return this.requests.filter((one) => one === operation).length;
  }

  async stop(): Promise<void> {
    this.server.close();
    (this.server as ReturnType<typeof createHttp>).closeAllConnections();
    await once(this.server, 'close');
  }

  async serve(incoming: IncomingMessage, response: ServerResponse): Promise<void> {
    const body = await bodyOf(incoming).catch(() => null);
    if (body === null) return; // whoever asked has gone
    const request = requestOf(incoming);
    this.requests.push(request.operation);
    const harm = this.judge(request);
    if (harm === 'drop') return void incoming.socket.destroy();
    const answer = harm !== null && typeof harm === 'object' && 'status' in harm ? refusalOf(harm) : await this.#answer(request, body);
    send(incoming, response, answer, harm);
  }

  async #answer(request: S3Request, body: Buffer): Promise<Answer> {
    try {
      if (request.bucket !== S3Server.BUCKET) throw new Refusal(404, 'NoSuchBucket', 'The specified bucket does not exist');
      return await perform(this.store, request, body, this.lock);
    } catch (error) {
      return refusalOf(error);
    }
  }
}

function requestOf(incoming: IncomingMessage): S3Request {
  const url = incoming.url ?? '/';
  const at = url.indexOf('?');
  const path = at < 0 ? url : url.slice(0, at);
  const query = new URLSearchParams(at < 0 ? '' : url.slice(at + 1));
  const [, bucket, key = ''] = /^\/([^/]*)(?:\/(.*))?$/s.exec(path) ?? ['', '', ''];
  const [, accessKey = '', region = ''] = /Credential=([^/]*)\/\d+\/([^/]*)\//.exec(incoming.headers.authorization ?? '') ?? [];
  const method = incoming.method ?? 'GET';
  return {
    operation: operationOf(method, key, query, incoming.headers), bucket, key: decodeURIComponent(key), query, headers: incoming.headers, accessKey, region,
  };
}

function operationOf(method: string, key: string, query: URLSearchParams, headers: IncomingMessage['headers']): S3Operation {
  const copied = headers['x-amz-copy-source'] !== undefined;
  if (key === '') return query.has('uploads') ? 'uploads' : query.has('object-lock') ? 'lock' : 'list';
  switch (method) {
    case 'HEAD':
      return 'head';
    case 'GET':
      return query.has('tagging') ? 'tags' : 'get';
    case 'DELETE':
      return query.has('uploadId') ? 'abort' : 'delete';
    case 'POST':
      return query.has('uploads') ? 'begin' : 'complete';
    default:
      if (query.has('partNumber')) return copied ? 'copy-part' : 'part';
      return copied ? 'copy' : 'put';
  }
}

async function bodyOf(incoming: IncomingMessage): Promise<Buffer> {
  const chunks: Buffer[] = [];
  for await (const chunk of incoming) chunks.push(chunk as Buffer);
  const body = Buffer.concat(chunks);
  return String(incoming.headers['x-amz-content-sha256']).startsWith('STREAMING-') ? unchunked(body) : body;
}

/** aws-chunked: length in hex and perhaps a signature, the bytes; then trailers, which nobody looks at here. */
function unchunked(body: Buffer): Buffer {
  const pieces: Buffer[] = [];
  for (let at = 0; ; ) {
    const end = body.indexOf('\r\n', at);
    const bytes = Number.parseInt(body.toString('latin1', at, end), 16);
    if (!(bytes > 0)) return Buffer.concat(pieces);
    pieces.push(body.subarray(end + 2, end + 2 + bytes));
    at = end + 2 + bytes + 2;
  }
}

/** What Node.js does not let a server send becomes a connection that breaks. */
export function sendMutated(incoming: IncomingMessage, response: ServerResponse, { status, headers, body }: Answer): void {
  try {
    // Or Node.js says that it is 0
    if (headers['content-length'] === undefined) response.removeHeader('content-length');
    response.writeHead(status, headers);
    response.end(incoming.method === 'HEAD' ? undefined : body);
  } catch {
    incoming.socket.destroy();
  }
}

function send(incoming: IncomingMessage, response: ServerResponse, answer: Answer, harm: Harm | null): void {
  const harmed = harm !== null && typeof harm === 'object' ? harm : null;
  const { length } = answer.body;
  let body = answer.body;
  let announced = length;
  if (harmed !== null && 'short' in harmed) body = body.subarray(0, (announced = harmed.short));
  if (harmed !== null && 'longer' in harmed) announced = (body = Buffer.concat([body, Buffer.alloc(harmed.longer, 0x78)])).length;
  if (harmed !== null && 'edit' in harmed) announced = (body = Buffer.from(harmed.edit(body.toString()))).length;
  if (harmed !== null && 'flip' in harmed) {
    body = Buffer.from(body);
    body[length >> 1] ^= 1;
  }
  const own = { 'content-length': incoming.method === 'HEAD' ? answer.headers['content-length'] ?? '0' : String(announced) };
  const headers: Record<string, string> = { 'x-amz-request-id': 'request-1', ...answer.headers, ...own };
  if (harmed !== null && 'mutate' in harmed) return sendMutated(incoming, response, harmed.mutate({ status: answer.status, headers, body }));
  response.writeHead(answer.status, harmed !== null && 'headers' in harmed && typeof harmed.headers === 'function' ? harmed.headers(headers) : headers);
  if (incoming.method === 'HEAD') return void response.end();
  const until = harmed === null ? -1 : 'stuckAfter' in harmed ? harmed.stuckAfter : 'brokenAfter' in harmed ? harmed.brokenAfter : -1;
  if (until < 0) return void response.end(body);
  response.flushHeaders();
  response.write(body.subarray(0, until), () => {
    if (harmed !== null && 'brokenAfter' in harmed) incoming.socket.destroy();
  });
}
