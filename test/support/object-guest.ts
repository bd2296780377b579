/** A guest without a VM on an object store: FUSE requests through a real socket and a real ring. */
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { FuseServer } from '../../src/fuse/server.js';
import { openObjectFileSystem, type BlockOptions, type ObjectOptions, type OpenedObjects, type WriteOptions } from '../../src/storage/object/filesystem.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import type { Device } from '../../src/vhost/device.js';
import { TestBackend } from './backend.js';
import { FuseClient } from './guest.js';

/** Everything that POSIX knows counts: what the daemon leaves out by default is a matter of privileged-metadata.test.ts. */
const DEFAULTS: Omit<ObjectOptions, 'write'> = {
  prefix: '', metadataTtl_ms: 0, posix: 'full', privileged: true, uid: 0, gid: 0, fileMode: 0o644, directoryMode: 0o755, readdirplus: true,
};

export type GuestOptions = Partial<Omit<ObjectOptions, 'write' | 'blocks'>> & {
  readonly write?: Partial<WriteOptions> | null;
  /** Without `cacheDirectory`: in that of `write`. */
  readonly blocks?: Omit<BlockOptions, 'cacheDirectory'> & { readonly cacheDirectory?: string };
};

export class ObjectGuest extends FuseClient {
  private constructor(
    readonly backend: TestBackend<Device>,
    readonly budget: MemoryBudget,
    readonly log: readonly string[],
    readonly opened: OpenedObjects,
    /** Of staging files and journal; null when it cannot write. */
    readonly cacheDirectory: string | null,
    readonly ownsDirectory: boolean,
    /** Lines of level debug, with their fields. */
    readonly debug: readonly string[],
  ) {
    super(backend.path);
  }

  /** Without `write.cacheDirectory` the guest has one of its own, which goes with close() or, after kill(), with discard(). */
  static async start(store: ObjectStore, options: GuestOptions = {}, budgetBytes = 64 << 20): Promise<ObjectGuest> {
    const log: string[] = [];
    const debug: string[] = [];
    const sink = {
      guest: (key: string, _fields: object, message: string) => void log.push(`${key}: ${message}`),
      error: (_fields: object, message: string) => void log.push(`error: ${message}`),
      warn: (_fields: object, message: string) => void log.push(`warn: ${message}`),
      debug: (fields: object, message: string) => void debug.push(`${message} ${JSON.stringify(fields)}`),
    };
    const budget = new MemoryBudget(budgetBytes);
    const { write: asked, blocks: wanted, ...rest } = options;
    const ownsDirectory = asked !== null && asked?.cacheDirectory === undefined;
    const cacheDirectory = asked === null ? null : asked?.cacheDirectory ?? mkdtempSync(join(tmpdir(), 'bucketfsd-test-'));
    const write: WriteOptions | null = cacheDirectory === null ? null : { durability: 'remote', onConflict: 'keep', writebackDelay_ms: 50, ...asked, cacheDirectory };
    const blocks = wanted === undefined ? null : { cacheDirectory: cacheDirectory ?? '', ...wanted };
    const opened = await openObjectFileSystem(store, budget, { ...DEFAULTS, ...rest, write, blocks }, sink);
    const server = new FuseServer(opened.fs, sink);
    const backend = new TestBackend<Device>({
      maxQueues: 2, config: null, handle: (chain) => server.handle(chain), admission: server.admission, connected: () => undefined, reset: () => server.reset(),
      cancelWaiting: () => opened.fs.cancelWaiting(),
    });
    const guest = new ObjectGuest(backend, budget, log, opened, cacheDirectory, ownsDirectory, debug);
    await guest.begin();
    return guest;
  }

  /** What a former daemon has left, as it was found at the start. */
  get recovered(): readonly string[] {
    return this.opened.recovered;
  }

  /** @returns files of which something is in the cache directory only */
  async close(): Promise<number> {
    await this.depart();
    const left = await this.opened.close();
    if (this.ownsDirectory) this.discard();
    return left;
  }

  /** The daemon is gone, as with SIGKILL; whatever was under way may or may not happen. */
  async kill(): Promise<void> {
    const abandoned = this.opened.abandon();
    await this.depart();
    await abandoned;
  }

  discard(): void {
    if (this.cacheDirectory !== null) rmSync(this.cacheDirectory, { recursive: true, force: true });
  }

  /** The frontend goes; the daemon does not. */
  async depart(): Promise<void> {
    this.frontend.close();
    await this.backend.close();
    this.queue.close();
    this.memory.close();
  }
}
