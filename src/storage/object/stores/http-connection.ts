/**
 * One connection to a provider: request and answer, in turns.
 *
 * What comes is read into memory that all connections of a thread share, or at once into where the content belongs. node:http takes new
 * memory for each 64 KiB that come, copies it, and leaves both to the garbage collector: seven eighths of the CPU time of receiving
 * large objects, and memory that no budget counts (ADR 11). https://nodejs.org/api/net.html#socketconnectoptions-connectlistener (`onread`)
 */
import { read } from 'node:fs';
import type { IncomingHttpHeaders } from 'node:http';
import { connect as connectTcp, isIP, type OnReadOpts, type Socket } from 'node:net';
import { connect as connectTls } from 'node:tls';
import { promisify } from 'node:util';
import { crc32 } from 'node:zlib';
import { StorageError } from '../errors.js';
import { Answer, type Head, type Sink } from './http-answer.js';
import { CHUNK_END, chunkedEnd, chunkHead, STEP, type Prepared } from './s3-checksums.js';
import type { Header } from './s3-sign.js';

const readFd = promisify(read);

/** Far beyond a listing of 1000 keys of 1024 bytes, each of them escaped. */
const ANSWER_BYTES_MAX = 32 << 20;
/** What is read is used up before the next read. */
const SHARED = Buffer.allocUnsafeSlow(64 << 10);

export interface Sending {
  readonly url: URL;
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

export interface Security {
  /** Certificates in PEM instead of the system's. */
  readonly ca?: string | undefined;
  /** Of an earlier connection, which saves a part of the handshake. */
  readonly session?: Buffer | undefined;
}

const NOTHING = Buffer.alloc(0);

export const isGood = (status: number): boolean => status >= 200 && status < 300;

/** A request, and what has come of its answer. */
class Exchange implements Sink {
  readonly answer: Answer;
  readonly #chunks: Buffer[] = [];
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
    if (!isGood(status)) return;
    this.sending.inspect?.(headers, status);
    this.place = this.sending.into ?? null;
  }

  expect(bytes: number): void {
    if (this.bytes + bytes <= (this.place?.length ?? ANSWER_BYTES_MAX)) return;
    const { status } = this.answer.head!;
    throw new StorageError('short-body', this.sending.operation, { status, providerMessage: 'more bytes came than were asked for' });
  }

  take(chunk: Buffer): void {
    if (this.answer.left === Infinity) this.expect(chunk.length);
    if (this.place === null) this.#chunks.push(Buffer.from(chunk));
    else this.place.set(chunk, this.bytes);
    this.bytes += chunk.length;
  }

  received({ status, headers }: Head): Received {
    const chunks = this.#chunks;
    const body = chunks.length === 1 ? chunks[0] : chunks.length === 0 ? NOTHING : Buffer.concat(chunks, this.bytes);
    return { status, headers, body, bytes: this.place === null ? 0 : this.bytes };
  }
}

export class Connection {
  readonly #socket: Socket;
  #exchange: Exchange | null = null;
  #usable = true;
  readonly #abort = (): void => this.#fail(aborted());

  /** @param gone is called when it has been closed, and `session` when there is one for the connections that follow */
  constructor({ url, connect_ms }: Sending, { ca, session }: Security, gone: () => void, onSession: (session: Buffer) => void) {
    // An address in brackets is one of IPv6
    const host = url.hostname.replace(/^\[|\]$/g, '');
    const port = Number(url.port) || (url.protocol === 'https:' ? 443 : 80);
    const onread: OnReadOpts = { buffer: () => this.#room() ?? SHARED, callback: (bytes, memory) => this.#read(memory as Buffer, bytes) };
    const tls = { host, port, onread, ALPNProtocols: ['http/1.1'], ...(isIP(host) === 0 ? { servername: host } : {}), ca, session };
    this.#socket = url.protocol === 'https:' ? connectTls(tls).on('session', onSession) : connectTcp({ host, port, onread });
    const timer = setTimeout(() => this.#fail(timedOut(connect_ms)), connect_ms);
    this.#socket.setNoDelay(true).setKeepAlive(true, 1_000);
    this.#socket.once('connect', () => clearTimeout(timer));
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

  /** Whatever the answer is, it is the result. Rejects as Connections.send(). @param onUntouched the connection is gone, and nothing has come */
  exchange(sending: Sending, onUntouched?: () => void): Promise<Received> {
    this.#socket.ref();
    sending.signal?.addEventListener('abort', this.#abort, { once: true });
    return new Promise((resolve, reject) => {
      const exchange = new Exchange(sending, resolve, (error) => {
        if (!exchange.touched) onUntouched?.();
        reject(error);
      });
      this.#exchange = exchange;
      this.#send(exchange);
    });
  }

  /** Nothing is asked for the time being, which is no reason for the process to go on. */
  rest(): void {
    this.#socket.unref();
  }

  destroy(): void {
    this.#usable = false;
    this.#socket.destroy();
  }

  #send(exchange: Exchange): void {
    const { method, target, headers, content } = exchange.sending;
    let head = `${method} ${target} HTTP/1.1\r\n`;
    for (const [name, value] of headers) head += `${name}: ${value}\r\n`;
    this.#socket.cork();
    this.#socket.write(`${head}\r\n`, 'latin1');
    if (content instanceof Uint8Array) this.#socket.write(content);
    this.#socket.uncork();
    if (content === null || content instanceof Uint8Array) return;
    exchange.uploading = true;
    void this.#upload(exchange, content).catch((error: unknown) => {
      if (this.#exchange === exchange) this.#fail(error);
    });
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
    exchange.reject(error);
  }

  #over(exchange: Exchange): void {
    this.#exchange = null;
    exchange.sending.signal?.removeEventListener('abort', this.#abort);
  }

  /** Reads the next piece while the last one is sent, in two pieces of memory in turns. */
  async #upload(exchange: Exchange, { range, chunked }: Exclude<Prepared['content'], Uint8Array | null>): Promise<void> {
    const { operation } = exchange.sending;
    const memory = [Buffer.allocUnsafe(STEP), Buffer.allocUnsafe(STEP)];
    const pieceAt = async (at: number): Promise<Buffer> => {
      const piece = memory[(at / STEP) & 1].subarray(0, Math.min(STEP, range.bytes - at));
      for (let have = 0; have < piece.length; ) {
        const { bytesRead } = await readFd(range.fd, piece, have, piece.length - have, range.offset + at + have);
        if (bytesRead === 0) throw new StorageError('short-body', operation, { providerMessage: `the file ends ${range.bytes - at - have} bytes early` });
        have += bytesRead;
      }
      return piece;
    };
    let sum = 0;
    let piece = await pieceAt(0);
    for (let at = 0; this.#exchange === exchange; ) {
      at += piece.length;
      if (chunked) sum = crc32(piece, sum);
      const sent = this.#write(piece, chunked);
      if (at === range.bytes) {
        if (chunked) this.#socket.write(chunkedEnd(sum), 'latin1');
        exchange.uploading = false;
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
      this.#socket.cork();
      if (chunked) this.#socket.write(chunkHead(piece.length), 'latin1');
      this.#socket.write(piece, chunked ? undefined : done);
      if (chunked) this.#socket.write(CHUNK_END, 'latin1', done);
      this.#socket.uncork();
    });
  }
}

export const aborted = (): Error => named('AbortError', 'the caller gave up');

const timedOut = (connect_ms: number): Error => named('TimeoutError', `no connection within ${connect_ms} ms`);

function named(name: string, message: string): Error {
  const error = new Error(message);
  error.name = name;
  return error;
}
