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
 *
 * The native callback is not one of Node's own: what it throws would be kept until some later native call, and
 * promises that it settles are not run until another event comes. The first is mended here for everyone (an
 * exception is rethrown from an event of Node's); for the second there is `settles`.
 */
export class FdPoller {
  #handle: Handle | null;

  /**
   * @param settles call back from an event of Node's own, so that promises go on afterwards: a little slower.
   */
  constructor(fd: number, onReadable: () => void, settles = false) {
    const poll = koffi.node.poll as unknown as (fd: number, options: object, cb: (status: number) => void) => Handle;
    let waiting = false;
    const call = (): void => {
      waiting = false;
      if (this.#handle) onReadable();
    };
    this.#handle = poll(fd, { readable: true }, () => {
      if (!this.#handle) return;
      if (settles) {
        // level-triggered: the callback repeats until the descriptor has been read
        if (!waiting) setImmediate(call);
        waiting = true;
        return;
      }
      try {
        onReadable();
      } catch (error) {
        setImmediate(() => {
          throw error;
        });
      }
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
