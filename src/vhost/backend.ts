/**
 * A vhost-user backend on a listening socket: one frontend at a time. While one is served another is closed at once, with a line in the log that says by
 * whom the share is in use: a second virtual machine that is started on it by mistake fails instead of waiting for ever. While the former one is gone and its
 * requests are only being finished, the next one waits, so a VM that reboots just connects again.
 */
import { E, errnoName } from '../base/errno.js';
import * as c from '../ffi/libc.js';
import { FdPoller } from '../ffi/poll.js';
import { accept, peerOf } from '../ffi/socket.js';
import { Connection, type VhostLog } from './connection.js';
import type { Device } from './device.js';
import type { MemoryFiles } from './guest-memory.js';

export interface BackendOptions {
  device: Device;
  /** Microseconds to go on looking at the rings after the last request; 0 for none. */
  pollUs: number;
  log: VhostLog;
  /** Where guest memory may lie. Default: 'shared-memory'. */
  memoryFiles?: MemoryFiles;
  /** A frontend has gone, what it had asked for is finished, and no other waits. */
  onGone?: () => void;
}

/** When accept(2) fails for want of descriptors or memory. */
const RETRY_MS = 100;

export class VhostUserBackend {
  #fd = -1;
  #poller: FdPoller | null = null;
  #connection: Connection | null = null;
  /** The frontend that comes after the present one, which is gone; −1: none. */
  #next = -1;
  #closed = false;

  constructor(readonly options: BackendOptions) {}

  /** Serve frontends from a listening, non-blocking socket, which stays the caller's. */
  listen(fd: number): void {
    this.#fd = fd;
    this.#await();
  }

  /** Stop, after what is in flight has finished or failed. */
  async close(): Promise<void> {
    this.#closed = true;
    this.#pause();
    await this.#connection?.close('the daemon stops');
  }

  #await(): void {
    if (this.#closed || this.#poller !== null || this.#next >= 0) return;
    this.#poller = new FdPoller(this.#fd, () => this.#accept(), true);
  }

  /** Further frontends wait in the socket's backlog. */
  #pause(): void {
    this.#poller?.close();
    this.#poller = null;
  }

  #accept(): void {
    const fd = accept(this.#fd);
    if (fd === -E.AGAIN || fd === -E.INTR) return;
    if (fd < 0) {
      this.#pause();
      this.options.log.warn({}, `cannot accept a frontend: ${errnoName(fd)}`);
      setTimeout(() => this.#await(), RETRY_MS);
    } else if (this.#connection === null) {
      this.#serve(fd);
    } else if (this.#connection.isGone) {
      this.#next = fd;
      this.#pause();
    } else {
      this.#refuse(fd, this.#connection);
    }
  }

  #serve(fd: number): void {
    const { device, pollUs, log, memoryFiles = 'shared-memory' } = this.options;
    log.guest('connected', {}, 'frontend connected', 'info');
    this.#connection = new Connection(fd, device, pollUs, log, memoryFiles, () => {
      this.#connection = null;
      const next = this.#next;
      this.#next = -1;
      if (next < 0) {
        if (!this.#closed) this.options.onGone?.();
        return;
      }
      if (this.#closed) c.close(next);
      else this.#serve(next);
      this.#await();
    });
  }

  #refuse(fd: number, served: Connection): void {
    const [other, peer] = [peerOf(fd), peerOf(served.fd)];
    c.close(fd);
    const by = peer === null ? 'another frontend' : `process ${peer.pid} of user ${peer.uid}`;
    this.options.log.guest('in use', { frontendPid: other?.pid, frontendUid: other?.uid }, `a frontend was turned away: the share is in use by ${by}`);
  }
}
