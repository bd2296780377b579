/** A backend in this process for tests: on a socket of its own, with a device of the test's choice. */
import { mkdtempSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import * as c from '../../src/ffi/libc.js';
import { bindUnix, unixSocket } from '../../src/ffi/socket.js';
import { VhostUserBackend } from '../../src/vhost/backend.js';
import type { Chain } from '../../src/vhost/chain.js';
import { PENDING, type Device } from '../../src/vhost/device.js';
import type { MemoryFiles } from '../../src/vhost/guest-memory.js';

/** Answers with the bytes it was sent; or, with `hold`, when release() is called. */
export class EchoDevice implements Device {
  readonly maxQueues = 65;
  config: Uint8Array | null = null;
  resets = 0;
  served = 0;
  hold = false;
  readonly held: Chain[] = [];

  handle(chain: Chain): number {
    this.served++;
    if (!this.hold) return echo(chain);
    this.held.push(chain);
    return PENDING;
  }

  release(): void {
    for (const chain of this.held.splice(0)) chain.finish(echo(chain));
  }

  connected(): void {}

  reset(): void {
    this.resets++;
  }

  cancelWaiting(): void {}
}

function echo(chain: Chain): number {
  const bytes = new Uint8Array(Math.min(chain.readBytes, 65536));
  const count = chain.copyIn(0, bytes, 0, bytes.length);
  return chain.copyOut(0, bytes, 0, Math.min(count, chain.writeBytes));
}

export class TestBackend<D extends Device = EchoDevice> {
  readonly directory = mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
  readonly path = join(this.directory, 'socket');
  readonly log: string[] = [];
  readonly #fd = unixSocket();
  readonly #backend: VhostUserBackend;

  constructor(readonly device: D, pollUs = 0, memoryFiles: MemoryFiles = 'shared-memory') {
    const note = (_fields: object, message: string): void => void this.log.push(message);
    this.#backend = new VhostUserBackend({
      device, pollUs, memoryFiles, log: { debug: () => undefined, warn: note, guest: (_key, fields, message) => note(fields, message) },
    });
    c.check(bindUnix(this.#fd, this.path), 'bind');
    c.check(c.listen(this.#fd, 8), 'listen');
    this.#backend.listen(this.#fd);
  }

  async close(): Promise<void> {
    await this.#backend.close();
    c.close(this.#fd);
    rmSync(this.directory, { recursive: true, force: true });
  }
}

/** Descriptors of this process. */
export function openDescriptors(): number {
  return readdirSync('/proc/self/fd').length;
}
