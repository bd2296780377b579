/** An answer of HTTP/1.1, from the pieces in which it comes (RFC 9112). Strict: what cannot be understood is an error, not less content. */
import type { IncomingHttpHeaders } from 'node:http';

/** A head is shorter than the sum of what providers allow for metadata; so are sizes of chunks and trailers. */
const HEAD_BYTES_MAX = 64 << 10;
const LINE_BYTES_MAX = 4 << 10;

export interface Head {
  readonly status: number;
  readonly headers: IncomingHttpHeaders;
  /** The connection can be used again. */
  readonly keepAlive: boolean;
}

/** Where the content goes. */
export interface Sink {
  /** A head has come; throws to refuse what follows. */
  begin(head: Head): void;
  /** So many bytes follow, or more; throws when they are too many. */
  expect(bytes: number): void;
  take(chunk: Buffer): void;
}

const CONTENT = 0;
const CHUNK_SIZE = 1;
const CHUNK_END = 2;
const TRAILERS = 3;

export class Answer {
  head: Head | null = null;
  complete = false;
  /** Bytes of content that follow at once: the next ones of the connection, up to the end or to that of a chunk. Infinity: until it is closed. */
  left = 0;
  #text = '';
  #chunked = false;
  #state = CONTENT;

  constructor(
    /** The method of the request: HEAD has no content. */
    readonly method: string,
    readonly sink: Sink,
  ) {}

  /** @throws Error with the code ERR_HTTP_ANSWER, and whatever the sink throws */
  read(chunk: Buffer): void {
    for (let at = 0; at < chunk.length; ) {
      if (this.complete) throw invalid('more comes than the answer');
      if (this.head === null) at = this.#readHead(chunk, at);
      else if (this.#state === CONTENT) {
        const end = Math.min(chunk.length, at + this.left);
        this.sink.take(chunk.subarray(at, end));
        this.taken(end - at);
        at = end;
      } else at = this.#readLine(chunk, at);
    }
  }

  /** So many bytes of what is `left` went to where they belong without read(). */
  taken(bytes: number): void {
    this.left -= bytes;
    if (this.left > 0) return;
    if (this.#chunked) this.#state = CHUNK_END;
    else this.complete = true;
  }

  /** Nothing follows. @throws as read(), where something is missing */
  end(): void {
    if (this.left === Infinity) this.complete = true;
    if (!this.complete) throw Object.assign(new Error('the connection was closed before the answer was complete'), { code: 'ECONNRESET' });
  }

  #readHead(chunk: Buffer, from: number): number {
    const before = this.#text.length;
    this.#text += chunk.toString('latin1', from);
    const end = this.#text.indexOf('\r\n\r\n', Math.max(0, before - 3));
    if (end < 0) {
      if (this.#text.length > HEAD_BYTES_MAX) throw invalid('its head does not end');
      return chunk.length;
    }
    const head = headOf(this.#text.slice(0, end));
    this.#text = '';
    // 100 and 103 come before the answer; nobody has asked for another protocol
    if (head.status >= 200) this.#begin(head);
    else if (head.status === 101) throw invalid('it changes the protocol');
    return from + end + 4 - before;
  }

  #begin(head: Head): void {
    this.sink.begin(head);
    this.head = head;
    const { status, headers } = head;
    const [encoding, length] = [headers['transfer-encoding'], headers['content-length']];
    if (this.method === 'HEAD' || status === 204 || status === 304) this.complete = true;
    else if (encoding !== undefined) {
      if (encoding.toLowerCase() !== 'chunked' || length !== undefined) throw invalid(`its transfer encoding is ${encoding}`);
      this.#chunked = true;
      this.#state = CHUNK_SIZE;
    } else if (length === undefined) {
      this.left = Infinity;
    } else {
      this.#expect(number(length, /^\d{1,15}$/, 10));
      this.complete = this.left === 0;
    }
  }

  #expect(bytes: number): void {
    this.sink.expect(bytes);
    this.left = bytes;
  }

  /** Between chunks, and behind the last one (§7.1). */
  #readLine(chunk: Buffer, from: number): number {
    const at = chunk.indexOf(10, from);
    this.#text += chunk.toString('latin1', from, at < 0 ? chunk.length : at + 1);
    if (this.#text.length > LINE_BYTES_MAX) throw invalid('a line between its chunks does not end');
    if (at < 0) return chunk.length;
    const line = this.#text.replace(/\r?\n$/, '');
    this.#text = '';
    if (this.#state === CHUNK_SIZE) {
      this.#expect(number(line.split(';')[0].trim(), /^[0-9a-fA-F]{1,12}$/, 16));
      this.#state = this.left > 0 ? CONTENT : TRAILERS;
    } else if (this.#state === TRAILERS) this.complete = line === '';
    else if (line !== '') throw invalid('a chunk is longer than it said');
    else this.#state = CHUNK_SIZE;
    return at + 1;
  }
}

/** §4 and §5 */
function headOf(text: string): Head {
  const [first, ...lines] = text.split('\r\n');
  const status = /^HTTP\/1\.([01]) (\d{3})(?: |$)/.exec(first);
  if (status === null) throw invalid(`it begins with "${first.slice(0, 40)}"`);
  const headers: Record<string, string> = {};
  for (const line of lines) {
    const colon = line.indexOf(':');
    const name = line.slice(0, colon).toLowerCase();
    if (colon <= 0 || !/^[!-9;-~]+$/.test(name)) throw invalid(`it has no header "${line.slice(0, 40)}"`);
    const value = line.slice(colon + 1).trim();
    if (!Object.hasOwn(headers, name)) headers[name] = value;
    else if (name !== 'content-length') headers[name] += `, ${value}`;
    else if (headers[name] !== value) throw invalid('it has several lengths');
  }
  return { status: Number(status[2]), headers, keepAlive: status[1] === '1' && !/(^|,)\s*close\s*(,|$)/i.test(headers['connection'] ?? '') };
}

function number(text: string, form: RegExp, radix: number): number {
  if (!form.test(text)) throw invalid(`a length is "${text.slice(0, 40)}"`);
  return Number.parseInt(text, radix);
}

const invalid = (what: string): Error => Object.assign(new Error(`no answer of HTTP/1.1: ${what}`), { code: 'ERR_HTTP_ANSWER' });
