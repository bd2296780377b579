import koffi from 'koffi';
import { EPOLLPRI, EPOLL_CLOEXEC, EPOLL_CTL_ADD } from './constants.js';
import * as c from './libc.js';
import { NativeMemory } from './memory.js';

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

/** Those that are not closed yet. Node turns its loop once more when it has ended, and a callback into it then would abort the process. */
const watching = new Set<ChangePoller>();
const closeAll = (): void => {
  for (const poller of watching) poller.close();
};

/**
 * Tells of a file in /proc that its content has changed: poll(2) says POLLPRI then, once for each descriptor. The poller asks for that by an epoll(7) descriptor of
 * its own, since such a file is always readable. It does not keep the process alive; close() before the descriptor itself is closed.
 *
 * Of a change before it is watched it does not tell: libuv adds the epoll descriptor to its own when it polls next, and that takes the news away.
 */
export class ChangePoller {
  readonly #epoll: number;
  readonly #poller: FdPoller;
  #closed = false;

  /** `onWatched` is called once, when all changes that follow are told. @throws SysError */
  constructor(fd: number, onChange: () => void, onWatched: () => void) {
    this.#epoll = c.check(c.syscall6(c.syscallNumber('epoll_create1'), EPOLL_CLOEXEC, 0, 0, 0, 0, 0), 'epoll_create1');
    // struct epoll_event: events, then data that nobody reads
    const event = NativeMemory.allocate(16);
    event.u32[0] = EPOLLPRI;
    try {
      c.check(c.syscall6(c.syscallNumber('epoll_ctl'), this.#epoll, EPOLL_CTL_ADD, fd, event.address, 0, 0), 'epoll_ctl');
    } catch (error) {
      c.close(this.#epoll);
      throw error;
    } finally {
      event.free();
    }
    this.#poller = new FdPoller(this.#epoll, onChange);
    this.#poller.unref();
    if (watching.size === 0) process.once('exit', closeAll);
    watching.add(this);
    // The first one may come before the loop polls, the second one comes behind it
    setImmediate(() => setImmediate(() => {
      if (!this.#closed) onWatched();
    }));
  }

  close(): void {
    this.#closed = true;
    watching.delete(this);
    if (watching.size === 0) process.off('exit', closeAll);
    this.#poller.close();
    c.close(this.#epoll);
  }
}
