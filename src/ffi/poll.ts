import koffi from 'koffi';

interface Handle {
  start(options: object, callback: (status: number, events: unknown) => void): void;
  stop(): void;
  close(): void;
  ref(): void;
  unref(): void;
}

/**
 * Readiness of a descriptor through libuv, in the thread that made it. The native handle lives as long as
 * this object is referenced; close() before the descriptor itself is closed.
 */
export class FdPoller {
  #handle: Handle | null;

  constructor(fd: number, onReadable: () => void) {
    const poll = koffi.node.poll as unknown as (fd: number, options: object, cb: (status: number) => void) => Handle;
    this.#handle = poll(fd, { readable: true }, () => {
      if (this.#handle) onReadable();
    });
  }

  /** Do not keep the process alive for this descriptor alone. */
  unref(): void {
    this.#handle?.unref();
  }

  close(): void {
    const handle = this.#handle;
    this.#handle = null;
    handle?.stop();
    handle?.close();
  }
}
