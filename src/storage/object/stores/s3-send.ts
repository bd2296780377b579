/** One HTTP request on node:http, with no more around it than it takes: content is written as it is, and what comes goes to where it was asked for. */
import { read } from 'node:fs';
import { request as httpRequest, type Agent as HttpAgent, type ClientRequest, type IncomingHttpHeaders, type IncomingMessage } from 'node:http';
import { request as httpsRequest, type Agent as HttpsAgent } from 'node:https';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import { StorageError } from '../errors.js';
import { CHUNK_END, chunkedEnd, chunkHead, STEP, type Prepared } from './s3-checksums.js';
import type { Header } from './s3-sign.js';

const readFd = promisify(read);

/** Far beyond a listing of 1000 keys of 1024 bytes, each of them escaped. */
const ANSWER_BYTES_MAX = 32 << 20;

export interface Sending {
  readonly url: URL;
  readonly agent: HttpAgent | HttpsAgent;
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  /** All of them, Host and Content-Length as well. */
  readonly headers: readonly Header[];
  readonly content: Prepared['content'];
  readonly operation: string;
  readonly connect_ms: number;
  /** Where the content of a good answer goes; without it, that is Received.body. */
  readonly into?: Uint8Array;
  /** Looks at a good answer before its content is taken; throws to refuse it. */
  readonly inspect?: (headers: IncomingHttpHeaders, status: number) => void;
  readonly signal: AbortSignal | undefined;
}

export interface Received {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** Empty if the content went to Sending.into. */
  readonly body: Buffer;
  /** How many went there. */
  readonly bytes: number;
}

const NOTHING = Buffer.alloc(0);

export const isGood = (status: number): boolean => status >= 200 && status < 300;

/**
 * Whatever the answer is, it is the result. Rejects with errors of Node.js, a TimeoutError if no connection came about in time, an
 * AbortError, or a StorageError; from then on neither memory nor file is touched.
 */
export function send(sending: Sending): Promise<Received> {
  // It may have happened while credentials were waited for
  if (sending.signal?.aborted === true) return Promise.reject(aborted());
  return new Promise((resolve, reject) => new Exchange(sending, resolve, reject));
}

class Exchange {
  readonly #sending: Sending;
  readonly #resolve: (received: Received) => void;
  readonly #reject: (error: unknown) => void;
  readonly #request: ClientRequest;
  #over = false;
  /** There is an answer, which says more than the error of sending what it did not wait for. */
  #answered = false;
  readonly #abort = (): void => this.#fail(aborted());

  constructor(sending: Sending, resolve: (received: Received) => void, reject: (error: unknown) => void) {
    this.#sending = sending;
    this.#resolve = resolve;
    this.#reject = reject;
    const { url, agent, method, target, content, signal } = sending;
    // A list of headers is written as it is, with nothing looked up or added
    this.#request = (url.protocol === 'https:' ? httpsRequest : httpRequest)({
      agent, host: url.hostname.replace(/^\[|\]$/g, ''), port: url.port, method, path: target, headers: sending.headers.flat(),
    });
    this.#request.on('response', (response) => this.#receive(response));
    this.#request.on('error', (error) => {
      if (!this.#answered) this.#fail(error);
    });
    this.#request.on('socket', (socket) => {
      if (!socket.connecting) return;
      const timer = setTimeout(() => this.#fail(named('TimeoutError', `no connection within ${sending.connect_ms} ms`)), sending.connect_ms);
      const stop = (): void => clearTimeout(timer);
      socket.once('connect', stop).once('close', stop);
    });
    signal?.addEventListener('abort', this.#abort, { once: true });
    if (content === null || content instanceof Uint8Array) this.#request.end(content ?? undefined);
    else void this.#upload(content).catch((error: unknown) => this.#fail(error));
  }

  #fail(error: unknown): void {
    if (this.#over) return;
    this.#finish();
    this.#request.destroy();
    this.#reject(error);
  }

  #finish(): void {
    this.#over = true;
    this.#sending.signal?.removeEventListener('abort', this.#abort);
  }

  #receive(response: IncomingMessage): void {
    this.#answered = true;
    if (this.#over) return void response.destroy();
    const { into, inspect, operation } = this.#sending;
    const status = response.statusCode ?? 0;
    const good = isGood(status);
    const place = good ? into : undefined;
    const chunks: Buffer[] = [];
    let bytes = 0;
    response.on('data', (chunk: Buffer) => {
      if (this.#over) return;
      if (bytes + chunk.length > (place?.length ?? ANSWER_BYTES_MAX)) {
        return this.#fail(new StorageError('short-body', operation, { status, providerMessage: 'more bytes came than were asked for' }));
      }
      if (place === undefined) chunks.push(chunk);
      else place.set(chunk, bytes);
      bytes += chunk.length;
    });
    response.on('end', () => {
      if (this.#over) return;
      this.#finish();
      // Refused before all of it was sent: nobody will read the rest
      if (!this.#request.writableFinished) this.#request.destroy();
      const body = chunks.length === 1 ? chunks[0] : chunks.length === 0 ? NOTHING : Buffer.concat(chunks, bytes);
      this.#resolve({ status, headers: response.headers, body, bytes: place === undefined ? 0 : bytes });
    });
    response.on('error', (error) => this.#fail(error));
    response.on('close', () => this.#fail(Object.assign(new Error('the connection was closed within the answer'), { code: 'ECONNRESET' })));
    try {
      if (good) inspect?.(response.headers, status);
    } catch (error) {
      this.#fail(error);
    }
  }

  /** Reads the next piece while the last one is sent, in two pieces of memory in turns. */
  async #upload({ range, chunked }: Exclude<Prepared['content'], Uint8Array | null>): Promise<void> {
    const memory = [Buffer.allocUnsafe(STEP), Buffer.allocUnsafe(STEP)];
    const pieceAt = async (at: number): Promise<Buffer> => {
      const piece = memory[(at / STEP) & 1].subarray(0, Math.min(STEP, range.bytes - at));
      for (let have = 0; have < piece.length; ) {
        const { bytesRead } = await readFd(range.fd, piece, have, piece.length - have, range.offset + at + have);
        if (bytesRead === 0) throw new StorageError('short-body', this.#sending.operation, { providerMessage: `the file ends ${range.bytes - at - have} bytes early` });
        have += bytesRead;
      }
      return piece;
    };
    let sum = 0;
    let piece = await pieceAt(0);
    for (let at = 0; !this.#over; ) {
      at += piece.length;
      if (chunked) sum = crc32(piece, sum);
      const sent = this.#write(piece, chunked);
      if (at === range.bytes) {
        this.#request.end(chunked ? chunkedEnd(sum) : undefined);
        return;
      }
      const next = pieceAt(at);
      next.catch(() => undefined); // until it is waited for
      await sent;
      piece = await next;
    }
  }

  /** @returns when the piece is sent, and its memory may be used again */
  #write(piece: Buffer, chunked: boolean): Promise<void> {
    return new Promise((resolve) => {
      // An error ends the exchange by the event
      const done = (): void => resolve();
      this.#request.cork();
      if (chunked) this.#request.write(chunkHead(piece.length), 'latin1');
      this.#request.write(piece, chunked ? undefined : done);
      if (chunked) this.#request.write(CHUNK_END, 'latin1', done);
      this.#request.uncork();
    });
  }
}

const aborted = (): Error => named('AbortError', 'the caller gave up');

function named(name: string, message: string): Error {
  const error = new Error(message);
  error.name = name;
  return error;
}
