/** Connections to providers, kept to be used again. */
import { aborted, Connection, isAbort, SAFE, type Received, type Sending } from './http-connection.js';
import { requestHead } from './http-content.js';

/** Until a connection stands. */
export const CONNECT_MS = 10_000;
/** Idle connections are closed before the other side does it while a request is on its way; some providers do it after 20 s. */
const IDLE_MS = 15_000;

export class Connections {
  /** By protocol, host and port; the one that was used last at the end. */
  readonly #idle = new Map<string, Connection[]>();
  readonly #sessions = new Map<string, Buffer>();

  readonly #open = new Set<Connection>();
  #timer: NodeJS.Timeout | null = null;

  /** @param ca certificates in PEM instead of the system's */
  constructor(
    readonly ca: string | undefined,
    readonly idle_ms = IDLE_MS,
  ) {}

  /**
   * Whatever the answer is, it is the result. Rejects with errors of Node.js, a TimeoutError if no connection came about in time, an
   * AbortError, or a StorageError; from then on neither memory nor file is touched.
   */
  async send(sending: Sending): Promise<Received> {
    const { url: { origin }, method, target, headers, operation, signal } = sending;
    const head = requestHead(method, target, headers, operation);
    for (;;) {
      // It may have happened while credentials were waited for
      if (isAborted(signal)) throw aborted();
      const used = this.#take(origin);
      const connection: Connection = used ?? this.#connect(sending, () => this.#forget(origin, connection));
      let untouched = false;
      try {
        const received = await connection.exchange(sending, head, () => (untouched = true));
        if (connection.usable) this.#keep(origin, connection);
        return received;
      } catch (error) {
        // The other side may close what is idle at any time, also while the next request is on its way
        if (used === undefined || !untouched || !SAFE.has(method) || isAbort(error)) throw error;
      }
    }
  }

  /** What is under way is given up. */
  close(): void {
    for (const connection of [...this.#open]) connection.abandon();
  }

  /** Those that are being closed are still there. */
  #take(origin: string): Connection | undefined {
    const idle = this.#idle.get(origin);
    let connection = idle?.pop();
    while (connection !== undefined && !connection.usable) connection = idle?.pop();
    return connection;
  }

  #connect(sending: Sending, gone: () => void): Connection {
    const { origin } = sending.url;
    const security = { ca: this.ca, session: this.#sessions.get(origin) };
    const connection = new Connection(sending, security, gone, (session) => void this.#sessions.set(origin, session));
    this.#open.add(connection);
    return connection;
  }

  #keep(origin: string, connection: Connection): void {
    const idle = this.#idle.get(origin);
    if (idle === undefined) this.#idle.set(origin, [connection]);
    else idle.push(connection);
    connection.rest(performance.now());
    if (this.#timer === null) this.#expireIn(this.idle_ms);
  }

  #forget(origin: string, connection: Connection): void {
    this.#open.delete(connection);
    const idle = this.#idle.get(origin) ?? [];
    const at = idle.indexOf(connection);
    if (at >= 0) idle.splice(at, 1);
  }

  /** One timer for all of them, for when the one that rests longest has its time. */
  #expireIn(ms: number): void {
    this.#timer = setTimeout(() => {
      this.#timer = null;
      const now_ms = performance.now();
      let longest_ms = -1;
      for (const connection of [...this.#idle.values()].flat()) {
        if (!connection.usable) continue;
        const rested_ms = now_ms - connection.restsSince_ms;
        if (rested_ms >= this.idle_ms) connection.destroy();
        else longest_ms = Math.max(longest_ms, rested_ms);
      }
      if (longest_ms >= 0) this.#expireIn(this.idle_ms - longest_ms);
    }, Math.ceil(ms)).unref();
  }
}

// The compiler believes that a signal stays as it was
const isAborted = (signal: AbortSignal | undefined): boolean => signal?.aborted === true;
