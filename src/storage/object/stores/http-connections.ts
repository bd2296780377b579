/** Connections to providers, kept to be used again. */
import { aborted, Connection, type Received, type Sending } from './http-connection.js';

/** What asks for something and changes nothing may be asked again (RFC 9110 §9.2.1). */
const SAFE = new Set(['GET', 'HEAD']);

export class Connections {
  /** By protocol, host and port; the one that was used last at the end. */
  readonly #idle = new Map<string, Connection[]>();
  readonly #sessions = new Map<string, Buffer>();

  /** @param ca certificates in PEM instead of the system's */
  constructor(readonly ca: string | undefined) {}

  /**
   * Whatever the answer is, it is the result. Rejects with errors of Node.js, a TimeoutError if no connection came about in time, an
   * AbortError, or a StorageError; from then on neither memory nor file is touched.
   */
  async send(sending: Sending): Promise<Received> {
    const { url: { origin }, signal } = sending;
    for (;;) {
      // It may have happened while credentials were waited for
      if (isAborted(signal)) throw aborted();
      const used = this.#idle.get(origin)?.pop();
      const connection: Connection = used ?? this.#connect(sending, () => this.#forget(origin, connection));
      let untouched = false;
      try {
        const received = await connection.exchange(sending, () => (untouched = true));
        if (connection.usable) this.#keep(origin, connection);
        return received;
      } catch (error) {
        // The other side may close what is idle at any time, also while the next request is on its way
        if (used === undefined || !untouched || !SAFE.has(sending.method) || isAborted(signal)) throw error;
      }
    }
  }

  close(): void {
    for (const idle of this.#idle.values()) for (const connection of [...idle]) connection.destroy();
  }

  #connect(sending: Sending, gone: () => void): Connection {
    const { origin } = sending.url;
    return new Connection(sending, { ca: this.ca, session: this.#sessions.get(origin) }, gone, (session) => void this.#sessions.set(origin, session));
  }

  #keep(origin: string, connection: Connection): void {
    const idle = this.#idle.get(origin);
    if (idle === undefined) this.#idle.set(origin, [connection]);
    else idle.push(connection);
    connection.rest();
  }

  #forget(origin: string, connection: Connection): void {
    const idle = this.#idle.get(origin) ?? [];
    const at = idle.indexOf(connection);
    if (at >= 0) idle.splice(at, 1);
  }
}

// The compiler believes that a signal stays as it was
const isAborted = (signal: AbortSignal | undefined): boolean => signal?.aborted === true;
