/** A daemon on a bucket: started, killed and started again, with the requests of its guest. */
import { FuseServer, PENDING } from '../../src/fuse/server.js';
import { SILENT_LOG, type Logger } from '../../src/base/log.js';
import { layered } from '../../src/bucket/open.js';
import { openObjectFileSystem, type ObjectOptions, type OpenedObjects } from '../../src/storage/object/filesystem.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { concat, u32 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import type { Chance } from './chance.js';
import type { Machine } from './machine.js';
import type { Network } from './network.js';
import { RingMessage, type Reply } from './ring.js';
import { SimulatedProcess } from './scheduler.js';

/** The daemon is gone, and its guest with it: nobody gets an answer. */
export class Gone extends Error {}

/** Time for an orderly end, as in src/bucket/open.ts. */
const CLOSE_TIMEOUT_MS = 60_000;
const BUDGET_BYTES = 16 << 20;

export interface Hooks {
  /** The daemon answers now: the effect has happened. */
  readonly answered?: (reply: Reply) => void;
  /** The daemon gets the request now; then, it will answer later. */
  readonly given?: () => void;
  readonly deferred?: () => void;
  /** The daemon was killed before it answered. */
  readonly lost?: () => void;
}

interface Asked {
  readonly message: RingMessage | null;
  readonly hooks: Hooks;
  readonly reject: (error: Error) => void;
}

/** Tells of a failure that no request hears of. */
export type Report = (what: string) => void;

export class Daemon {
  process: SimulatedProcess | null = null;
  starts = 0;
  readonly #underway = new Set<Asked>();
  #opened: OpenedObjects | null = null;
  #server: FuseServer | null = null;
  #unique = 0;
  #onEnd: (() => void)[] = [];

  constructor(
    readonly name: string,
    readonly machine: Machine,
    readonly network: Network,
    readonly options: ObjectOptions,
    readonly chance: Chance,
    readonly report: Report,
  ) {}

  get isServing(): boolean {
    return this.#server !== null;
  }

  get pending(): number {
    return this.#underway.size;
  }

  /** `diesAt`: events until it is killed. @returns the error that the start failed with; null: it serves. @throws Gone */
  start(diesAt: number): Promise<Error | null> {
    const { scheduler } = this.machine;
    const process = new SimulatedProcess(`${this.name}.${++this.starts}`);
    process.diesAt = diesAt;
    process.onDeath = () => this.kill('killed');
    this.process = process;
    return new Promise((resolve, reject) => {
      this.#onEnd.push(() => reject(new Gone()));
      scheduler.after(process, 0, 'start', () => {
        const log = this.#log(process);
        const store = layered(this.network.store(process, this.name, 'sim://bucket'), log);
        openObjectFileSystem(store, new MemoryBudget(BUDGET_BYTES), this.options, log).then((opened) => {
          for (const line of opened.recovered) scheduler.trace(`  ${process.name} recovered: ${line}`);
          this.#opened = opened;
          this.#server = new FuseServer(opened.fs, log);
          void this.call(OP.INIT, 0n, concat(u32(7, 45, 131072, 0xffffffff, 0xffffffff), new Uint8Array(44)), 64).then(() => resolve(null), reject);
        }, (error: unknown) => {
          resolve(error as Error);
          this.kill(`did not start: ${(error as Error).message}`);
        });
      });
    });
  }

  /** Kill it now, between two events. */
  kill(why: string): void {
    const { process, machine } = this;
    if (process === null) return;
    machine.scheduler.trace(`  ${process.name} ${why}`);
    machine.end(process);
    this.process = null;
    this.#opened = null;
    this.#server = null;
    const underway = [...this.#underway];
    this.#underway.clear();
    for (const { message, hooks } of underway) {
      message?.forget();
      hooks.lost?.();
    }
    for (const { reject } of underway) reject(new Gone());
    for (const end of this.#onEnd.splice(0)) end();
  }

  /** End it as SIGTERM does. @returns files that are not in the bucket; −1: it took too long. @throws Gone */
  stop(): Promise<number> {
    return this.#inside('stop', (opened) => {
      const late = new Promise<number>((resolve) => void setTimeout(() => resolve(-1), CLOSE_TIMEOUT_MS));
      return Promise.race([opened.close(), late]);
    }).then((left) => {
      this.kill('ended');
      return left;
    });
  }

  /** Wait until nothing is under way, apart from retries. @throws Gone */
  idle(): Promise<void> {
    return this.#inside('idle', (opened) => opened.idle());
  }

  /** A request of the guest. @throws Gone */
  call(opcode: number, node: bigint, args: Uint8Array = new Uint8Array(0), room = 0, hooks: Hooks = {}): Promise<Reply> {
    const { process, machine } = this;
    if (process === null) return Promise.reject(new Gone());
    const { scheduler } = machine;
    return new Promise((resolve, reject) => {
      const waits: Asked = { message: null, hooks: {}, reject };
      this.#underway.add(waits);
      scheduler.after(process, this.chance.skewed(0.01, 1), `request ${opcode}`, () => {
        this.#underway.delete(waits);
        const message = new RingMessage(opcode, node, ++this.#unique, args, room, (reply) => {
          this.#underway.delete(asked);
          hooks.answered?.(reply);
          const told = { message: null, hooks: {}, reject };
          this.#underway.add(told);
          scheduler.after(process, this.chance.skewed(0.01, 1), `reply ${opcode} ${reply.error}`, () => {
            this.#underway.delete(told);
            resolve(reply);
          });
        });
        const asked: Asked = { message, hooks, reject };
        this.#underway.add(asked);
        hooks.given?.();
        const written = this.#server!.handle(message);
        if (written === PENDING) hooks.deferred?.();
        else message.finish(written);
      });
    });
  }

  #inside<T>(what: string, body: (opened: OpenedObjects) => Promise<T>): Promise<T> {
    const { process } = this;
    const opened = this.#opened;
    if (process === null || opened === null) return Promise.reject(new Gone());
    return new Promise((resolve, reject) => {
      this.#onEnd.push(() => reject(new Gone()));
      this.machine.scheduler.after(process, 0, what, () => void body(opened).then(resolve, (error: unknown) => {
        this.report(`${what} of ${process.name} failed: ${String(error)}`);
        reject(error as Error);
      }));
    });
  }

  #log({ name }: SimulatedProcess): Logger {
    const { trace } = this.machine.scheduler;
    const line = (level: string) => (fields: object, message: string): void => {
      trace(`  ${name} ${level}: ${message}`);
      const { err } = fields as { err?: unknown };
      if (/inside the daemon|cannot be given up/.test(message)) this.report(`${name}: ${message}: ${err instanceof Error ? err.stack : String(err)}`);
    };
    return {
      ...SILENT_LOG, error: line('error'), warn: line('warn'), info: line('info'),
      guest: (_key, fields, message, level = 'warn') => (line(level)(fields, message), true),
    };
  }
}
