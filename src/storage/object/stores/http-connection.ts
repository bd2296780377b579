/**
 * One connection to a provider: request and answer, in turns. It knows neither S3 nor Google Cloud Storage.
 *
 * What comes is read into memory that all connections of a thread share, or at once into where the content belongs. node:http takes new
 * memory for each 64 KiB that come, copies it, and leaves both to the garbage collector: seven eighths of the CPU time of receiving
 * large objects, and memory that no budget counts (ADR 11). https://nodejs.org/api/net.html#socketconnectoptions-connectlistener (`onread`)
 */
import type { IncomingHttpHeaders } from 'node:http';
import { connect as connectTcp, isIP, type OnReadOpts, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { StorageError } from '../errors.js';
import { Answer, type Head, type Sink } from './http-answer.js';
import { isFile, sendFile, type Content, type FileContent, type Header } from './http-content.js';

/** Of an answer that is kept in memory, where the request does not say: one object with all that is known of it, and room. */
const ANSWER_MAX_BYTES = 1 << 20;
/** Of all answers together that are on their way into the memory of one thread. */
const ANSWERS_MAX_BYTES = 64 << 20;
let answersBytes = 0;
/** Words of a refusal. */
const REFUSAL_MAX_BYTES = 64 << 10;
/** What is read is used up before the next read. */
const SHARED = Buffer.allocUnsafeSlow(64 << 10);

export interface Sending {
  readonly url: URL;
  readonly method: string;
  /** Path and query. */
  readonly target: string;
  /** All of them, Host and Content-Length as well. */
  readonly headers: readonly Header[];
  readonly content: Content;
  readonly operation: string;
  readonly connect_ms: number;
  /** A connection stands: from now on the request may reach the other side. */
  readonly onSent?: () => void;
  /** Where the content of a good answer goes; without it, that is Received.body. */
  readonly into?: Uint8Array;
  /** The most that an answer has which is kept in memory. */
  readonly answerMax_bytes?: number;
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

export interface Security {
  /** Certificates in PEM instead of the system's. */
  readonly ca?: string | undefined;
  /** Of an earlier connection, which saves a part of the handshake. */
  readonly session?: Buffer | undefined;
}

const NOTHING = Buffer.alloc(0);
/** What asks for something and changes nothing (RFC 9110 §9.2.1). */
export const SAFE: ReadonlySet<string> = new Set(['GET', 'HEAD']);

export const isGood = (status: number): boolean => status >= 200 && status < 300;

/** A request, and what has come of its answer. */
class Exchange implements Sink {
  readonly answer: Answer;
  readonly #chunks: Buffer[] = [];
  #kept_bytes = 0;
  #isRefused = false;
  /** Where the content goes, once it is known that the answer is good. */
  place: Uint8Array | null = null;
  bytes = 0;
  /** Something has come. */
  touched = false;
  /** A file is being sent. */
  uploading = false;

  constructor(
    readonly sending: Sending,
    readonly resolve: (received: Received) => void,
    readonly reject: (error: unknown) => void,
  ) {
    this.answer = new Answer(sending.method, this);
  }

  begin({ headers, status }: Head): void {
    this.#isRefused = !isGood(status);
    if (this.#isRefused) return;
    this.sending.inspect?.(headers, status);
    this.place = this.sending.into ?? null;
  }

  expect(bytes: number): void {
    if (this.bytes + bytes <= this.#room) return;
    const { operation } = this.sending;
    if (this.place === null) throw new StorageError('unexpected', operation, { providerMessage: `the answer has more than ${this.#room} bytes`, ambiguous: !SAFE.has(this.sending.method) });
    const { status } = this.answer.head!;
    throw new StorageError('short-body', operation, { status, providerMessage: 'more bytes came than were asked for' });
  }

  get #room(): number {
    if (this.place !== null) return this.place.length;
    return this.#isRefused ? REFUSAL_MAX_BYTES : this.sending.answerMax_bytes ?? ANSWER_MAX_BYTES;
  }

  take(chunk: Buffer): void {
    if (this.answer.left === Infinity) this.expect(chunk.length);
    if (this.place === null) this.#keep(chunk);
    else this.place.set(chunk, this.bytes);
    this.bytes += chunk.length;
  }

  /** Whoever asks has the limit of calls lowered by such an error, and asks again. */
  #keep(chunk: Buffer): void {
    const { operation, method } = this.sending;
    if (answersBytes + chunk.length > ANSWERS_MAX_BYTES) throw new StorageError('throttled', operation, { providerMessage: `all answers have more than ${ANSWERS_MAX_BYTES} bytes`, ambiguous: !SAFE.has(method) });
    answersBytes += chunk.length;
    this.#kept_bytes += chunk.length;
    this.#chunks.push(Buffer.from(chunk));
  }

  /** It is over. */
  release(): void {
    answersBytes -= this.#kept_bytes;
    this.#kept_bytes = 0;
  }

  received({ status, headers }: Head): Received {
    const chunks = this.#chunks;
    const body = chunks.length === 1 ? chunks[0] : chunks.length === 0 ? NOTHING : Buffer.concat(chunks, this.bytes);
    return { status, headers, body, bytes: this.place === null ? 0 : this.bytes };
  }
}

export class Connection {
  restsSince_ms = 0;
  readonly #socket: Socket;
  #exchange: Exchange | null = null;
  #usable = true;
  /** It stands: after the handshake, where there is TLS. */
  #stands = false;
  readonly #abort = (): void => this.#fail(aborted());

  /** @param gone is called when it has been closed, and `session` when there is one for the connections that follow */
  constructor({ url, connect_ms }: Sending, { ca, session }: Security, gone: () => void, onSession: (session: Buffer) => void) {
    // An address in brackets is one of IPv6
    const host = url.hostname.replace(/^\[|\]$/g, '');
    const port = Number(url.port) || (url.protocol === 'https:' ? 443 : 80);
    const onread: OnReadOpts = { buffer: () => this.#room() ?? SHARED, callback: (bytes, memory) => this.#read(memory as Buffer, bytes) };
    const tls = { host, port, onread, ALPNProtocols: ['http/1.1'], ...(isIP(host) === 0 ? { servername: host } : {}), ca, session };
    const isTls = url.protocol === 'https:';
    this.#socket = isTls ? connectTls(tls).on('session', onSession) : connectTcp({ host, port, onread });
    const timer = setTimeout(() => this.#fail(timedOut(connect_ms)), connect_ms);
    this.#socket.setNoDelay(true).setKeepAlive(true, 1_000);
    this.#socket.once(isTls ? 'secureConnect' : 'connect', () => {
      clearTimeout(timer);
      this.#stands = true;
      this.#exchange?.sending.onSent?.();
    });
    this.#socket.on('error', (error) => this.#fail(error));
    this.#socket.on('end', () => this.#ended());
    this.#socket.on('close', () => {
      clearTimeout(timer);
      gone();
      this.#ended();
    });
  }

  /** Another exchange may follow. */
  get usable(): boolean {
    return this.#usable;
  }

  /**
   * Whatever the answer is, it is the result. Rejects as Connections.send().
   *
   * @param head of requestHead()
   * @param onUntouched the connection is gone, and nothing has come
   */
  exchange(sending: Sending, head: string, onUntouched: () => void): Promise<Received> {
    this.#socket.ref();
    sending.signal?.addEventListener('abort', this.#abort, { once: true });
    return new Promise((resolve, reject) => {
      const exchange = new Exchange(sending, resolve, (error) => {
        if (!exchange.touched) onUntouched();
        reject(error);
      });
      this.#exchange = exchange;
      this.#send(exchange, head);
    });
  }

  /** Nothing is asked for the time being, which is no reason for the process to go on. */
  rest(now_ms: number): void {
    this.restsSince_ms = now_ms;
    this.#socket.unref();
  }

  /** Nobody waits for what it does any more. */
  abandon(): void {
    this.#fail(aborted());
  }

  destroy(): void {
    this.#usable = false;
    this.#socket.destroy();
  }

  #send(exchange: Exchange, head: string): void {
    const { content, onSent } = exchange.sending;
    if (this.#stands) onSent?.();
    this.#socket.cork();
    this.#socket.write(head, 'latin1');
    if (content !== null && !isFile(content)) for (const piece of content) this.#socket.write(piece);
    this.#socket.uncork();
    if (!isFile(content)) return;
    exchange.uploading = true;
    void this.#upload(exchange, content).catch((error: unknown) => {
      if (this.#exchange === exchange) this.#fail(error);
    });
  }

  async #upload(exchange: Exchange, content: FileContent): Promise<void> {
    exchange.uploading = !(await sendFile(this.#socket, content, exchange.sending.operation, () => this.#exchange === exchange));
  }

  /** Where what comes next belongs, as far as it does; null: that has to be looked at first. */
  #room(): Uint8Array | null {
    const exchange = this.#exchange;
    if (exchange === null || exchange.place === null || exchange.answer.left === 0 || exchange.answer.left === Infinity) return null;
    return exchange.place.subarray(exchange.bytes, exchange.bytes + exchange.answer.left);
  }

  /** @returns whether to go on reading */
  #read(memory: Buffer, bytes: number): boolean {
    const exchange = this.#exchange;
    if (exchange === null) {
      this.destroy(); // Nobody has asked for anything
      return false;
    }
    exchange.touched = true;
    try {
      if (memory === SHARED) exchange.answer.read(SHARED.subarray(0, bytes));
      else {
        exchange.bytes += bytes;
        exchange.answer.taken(bytes);
      }
      if (exchange.answer.complete) this.#finish(exchange);
    } catch (error) {
      this.#fail(error);
    }
    return this.#usable;
  }

  #ended(): void {
    const exchange = this.#exchange;
    this.#usable = false;
    try {
      exchange?.answer.end();
      if (exchange !== null) this.#finish(exchange);
    } catch (error) {
      this.#fail(error);
    }
  }

  #finish(exchange: Exchange): void {
    const head = exchange.answer.head!;
    this.#over(exchange);
    // Refused before all of it was sent: nobody will read the rest
    if (!head.keepAlive || exchange.uploading || this.#socket.writableLength > 0) this.#usable = false;
    if (!this.#usable) this.#socket.destroy();
    exchange.resolve(exchange.received(head));
  }

  #fail(error: unknown): void {
    const exchange = this.#exchange;
    this.destroy();
    if (exchange === null) return;
    this.#over(exchange);
    const { head } = exchange.answer;
    // A refusal whose words are lost is a refusal still
    if (head !== null && !isGood(head.status) && !isAbort(error)) exchange.resolve(exchange.received(head));
    else exchange.reject(error);
  }

  #over(exchange: Exchange): void {
    this.#exchange = null;
    exchange.release();
    exchange.sending.signal?.removeEventListener('abort', this.#abort);
  }
}

export const aborted = (): Error => named('AbortError', 'the caller gave up');

export const isAbort = (error: unknown): boolean => error instanceof Error && error.name === 'AbortError';

const timedOut = (connect_ms: number): Error => Object.assign(named('TimeoutError', `no connection within ${connect_ms} ms`), { code: 'ETIMEDOUT' });

function named(name: string, message: string): Error {
  const error = new Error(message);
  error.name = name;
  return error;
}
