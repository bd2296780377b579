/**
 * A vhost-user backend on a listening socket: one frontend at a time. While one is connected a further one waits in
 * the socket's backlog; when it goes, the next is taken at once, so a VM that reboots just connects again.
 */
import { E, errnoName } from '../base/errno.js';
import { FdPoller } from '../ffi/poll.js';
import { accept } from '../ffi/socket.js';
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
}

/** When accept(2) fails for want of descriptors or memory. */
const RETRY_MS = 100;

export class VhostUserBackend {
  #fd = -1;
  #poller: FdPoller | null = null;
  #connection: Connection | null = null;
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
    this.#poller?.close();
    this.#poller = null;
    await this.#connection?.close('the daemon stops');
  }

  #await(): void {
    if (this.#closed) return;
    this.#poller = new FdPoller(this.#fd, () => this.#accept(), true);
  }

  #accept(): void {
    const fd = accept(this.#fd);
    if (fd === -E.AGAIN || fd === -E.INTR) return;
    this.#poller?.close();
    this.#poller = null;
    const { device, pollUs, log, memoryFiles = 'shared-memory' } = this.options;
    if (fd < 0) {
      log.warn({}, `cannot accept a frontend: ${errnoName(fd)}`);
      setTimeout(() => this.#await(), RETRY_MS);
      return;
    }
    log.guest('connected', {}, 'frontend connected', 'info');
    this.#connection = new Connection(fd, device, pollUs, log, memoryFiles, () => {
      this.#connection = null;
      this.#await();
    });
  }
}
