/** A guest without a VM on an object store: FUSE requests through a real socket and a real ring. */
import { FuseServer } from '../../src/fuse/server.js';
import { openObjectFileSystem, type ObjectOptions } from '../../src/storage/object/filesystem.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import type { Device } from '../../src/vhost/device.js';
import { TestBackend } from './backend.js';
import { FuseClient } from './guest.js';

const DEFAULTS: ObjectOptions = {
  prefix: '', metadataTtl_ms: 0, posix: 'full', uid: 0, gid: 0, fileMode: 0o644, directoryMode: 0o755, readdirplus: true,
};

export class ObjectGuest extends FuseClient {
  private constructor(
    readonly backend: TestBackend<Device>,
    readonly budget: MemoryBudget,
    readonly log: readonly string[],
  ) {
    super(backend.path);
  }

  static async start(store: ObjectStore, options: Partial<ObjectOptions> = {}, budgetBytes = 64 << 20): Promise<ObjectGuest> {
    const log: string[] = [];
    const sink = { guest: (key: string, _fields: object, message: string) => void log.push(`${key}: ${message}`) };
    const budget = new MemoryBudget(budgetBytes);
    const fs = openObjectFileSystem(store, budget, { ...DEFAULTS, ...options }, sink);
    const server = new FuseServer(fs, sink);
    const backend = new TestBackend<Device>({
      maxQueues: 2, config: null, handle: (chain) => server.handle(chain), connected: () => undefined, reset: () => server.reset(),
      cancelWaiting: () => fs.cancelWaiting(),
    });
    const guest = new ObjectGuest(backend, budget, log);
    await guest.begin();
    return guest;
  }

  async close(): Promise<void> {
    this.frontend.close();
    await this.backend.close();
    this.queue.close();
    this.memory.close();
  }
}
