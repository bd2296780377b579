/**
 * Replaces timers, clocks, random numbers and the asynchronous calls of node:fs by those of a simulation, while one is active. Import it
 * before anything of src/: modules there keep the functions that they find when they are loaded.
 */
import crypto from 'node:crypto';
import fs from 'node:fs';
import fsPromises from 'node:fs/promises';
import { syncBuiltinESMExports } from 'node:module';
import timersPromises from 'node:timers/promises';
import { promisify } from 'node:util';

export interface SimulatedWorld {
  /** Milliseconds; from any beginning. */
  now_ms(): number;
  /** 0 ≤ x < 1 */
  random(): number;
  /** @returns a function that takes it back */
  after(delay_ms: number, label: string, run: () => void): () => void;
  /** Make a call of node:fs when its time comes. */
  file(label: string, run: () => void): void;
  opened(fd: number): void;
  closed(fd: number): void;
}

/** Beginning of virtual time, in milliseconds since 1970. */
export const EPOCH_MS = Date.UTC(2026, 0, 1);

let active: SimulatedWorld | null = null;

/** Use this world from now on; null: the real one. */
export function activate(world: SimulatedWorld | null): void {
  active = world;
}

const put = (module: object, name: string, value: unknown): void => void ((module as Record<string, unknown>)[name] = value);

class SimulatedTimer {
  cancel: () => void = () => undefined;

  constructor(
    readonly world: SimulatedWorld,
    readonly delay_ms: number,
    readonly ring: () => void,
    readonly repeats: boolean,
  ) {
    this.refresh();
  }

  refresh(): this {
    this.cancel();
    this.cancel = this.world.after(this.delay_ms, 'timer', () => {
      if (this.repeats) this.refresh();
      this.ring();
    });
    return this;
  }

  ref(): this {
    return this;
  }

  unref(): this {
    return this;
  }

  hasRef(): boolean {
    return true;
  }
}

type Ring = (...args: unknown[]) => void;

const delayOf = (ms: number | undefined): number => (ms !== undefined && ms >= 1 && ms <= 2 ** 31 - 1 ? Math.trunc(ms) : 1);

function installTimers(): void {
  for (const name of ['setTimeout', 'setInterval'] as const) {
    const real = globalThis[name] as (ring: Ring, ms?: number, ...args: unknown[]) => unknown;
    const patched = (ring: Ring, ms?: number, ...args: unknown[]): unknown =>
      active === null ? real(ring, ms, ...args) : new SimulatedTimer(active, delayOf(ms), () => ring(...args), name === 'setInterval');
    put(globalThis, name, patched);
  }
  for (const name of ['clearTimeout', 'clearInterval'] as const) {
    const real = globalThis[name] as (timer: unknown) => void;
    put(globalThis, name, (timer: unknown) => (timer instanceof SimulatedTimer ? timer.cancel() : real(timer)));
  }
  const { setTimeout: realSleep, setImmediate: realTurn } = timersPromises;
  put(timersPromises, 'setTimeout', (ms?: number, value?: unknown, options: { signal?: AbortSignal } = {}) => (active === null ? realSleep(ms, value, options) : sleep(active, delayOf(ms), value, options.signal)));
  put(timersPromises, 'setImmediate', (value?: unknown, options: { signal?: AbortSignal } = {}) => (active === null ? realTurn(value, options) : sleep(active, 0, value, options.signal)));
}

function sleep(world: SimulatedWorld, ms: number, value: unknown, signal: AbortSignal | undefined): Promise<unknown> {
  const aborted = (): Error => Object.assign(new Error('The operation was aborted', { cause: signal?.reason }), { name: 'AbortError', code: 'ABORT_ERR' });
  return new Promise((resolve, reject) => {
    if (signal?.aborted === true) return reject(aborted());
    const onAbort = (): void => {
      cancel();
      reject(aborted());
    };
    const cancel = world.after(ms, 'sleep', () => {
      signal?.removeEventListener('abort', onAbort);
      resolve(value);
    });
    signal?.addEventListener('abort', onAbort, { once: true });
  });
}

function installClocks(): void {
  const { now } = Date;
  put(Date, 'now', () => (active === null ? now() : EPOCH_MS + Math.floor(active.now_ms())));
  const { performance } = globalThis;
  const elapsed = performance.now.bind(performance);
  put(performance, 'now', () => (active === null ? elapsed() : active.now_ms()));
}

function installRandom(): void {
  const { random } = Math;
  put(Math, 'random', () => (active === null ? random() : active.random()));
  const { randomUUID, randomFillSync } = crypto;
  put(crypto, 'randomUUID', (options?: crypto.RandomUUIDOptions) => {
    if (active === null) return randomUUID(options);
    const digits = Array.from({ length: 32 }, () => Math.floor(active!.random() * 16).toString(16)).join('');
    return `${digits.slice(0, 8)}-${digits.slice(8, 12)}-4${digits.slice(13, 16)}-8${digits.slice(17, 20)}-${digits.slice(20)}`;
  });
  put(crypto, 'randomFillSync', (into: Uint8Array) => {
    if (active === null) return randomFillSync(into);
    for (let i = 0; i < into.length; i++) into[i] = Math.floor(active.random() * 256);
    return into;
  });
}

/** Each asynchronous call is made by its synchronous sister when its time comes. promisify() of read and write gives an object. */
function installFiles(): void {
  const later = <A extends unknown[], R>(name: string, real: object, sync: (...args: A) => R, promised: (result: R, args: A) => unknown = (result) => result): void => {
    const realPromised = promisify(real as (...args: unknown[]) => void) as (...args: unknown[]) => Promise<unknown>;
    const patched = (...all: unknown[]): void => {
      const callback = all.at(-1) as (error: Error | null, ...results: unknown[]) => void;
      if (active === null) return (real as (...args: unknown[]) => void)(...all);
      const args = all.slice(0, -1) as A;
      active.file(name, () => {
        let result: R;
        try {
          result = sync(...args);
        } catch (error) {
          return callback(error as Error);
        }
        callback(null, result);
      });
    };
    const patchedPromise = (...args: A): Promise<unknown> => {
      const world = active;
      if (world === null) return realPromised(...args);
      return new Promise((resolve, reject) => {
        world.file(name, () => {
          try {
            resolve(promised(sync(...args), args));
          } catch (error) {
            reject(error as Error);
          }
        });
      });
    };
    put(patched, promisify.custom as unknown as string, patchedPromise);
    put(fs, name, patched);
  };
  const { openSync, closeSync, fstatSync, readdirSync, readSync, writeSync, fsyncSync, fdatasyncSync, ftruncateSync, unlinkSync } = fs;
  const close = (fd: number): void => {
    active?.closed(fd);
    closeSync(fd);
  };
  const stat = (fd: number): fs.Stats => {
    const stats = fstatSync(fd);
    // The kernel's time has nothing to do with virtual time
    if (active !== null) stats.mtimeMs = EPOCH_MS + active.now_ms();
    return stats;
  };
  later('fdatasync', fs.fdatasync, fdatasyncSync);
  later('fsync', fs.fsync, fsyncSync);
  later('close', fs.close, close);
  later('fstat', fs.fstat, stat);
  later('ftruncate', fs.ftruncate, ftruncateSync);
  later('read', fs.read, readSync as (...args: [number, Uint8Array, number, number, number]) => number, (bytesRead, [, buffer]) => ({ bytesRead, buffer }));
  later('write', fs.write, writeSync as (...args: [number, Uint8Array, number, number, number]) => number, (bytesWritten, [, buffer]) => ({ bytesWritten, buffer }));
  put(fs, 'openSync', (...args: Parameters<typeof openSync>) => {
    const fd = openSync(...args);
    active?.opened(fd);
    return fd;
  });
  put(fs, 'closeSync', close);
  put(fs, 'fstatSync', stat);
  put(fs, 'readdirSync', (path: string, options?: object) => {
    const names = readdirSync(path, options as { encoding: 'utf8' });
    return active === null ? names : names.sort();
  });
  const { unlink } = fsPromises;
  put(fsPromises, 'unlink', (path: string) => {
    const world = active;
    if (world === null) return unlink(path);
    return new Promise<void>((resolve, reject) => {
      world.file(`unlink ${path.split('/').slice(-2).join('/')}`, () => {
        try {
          resolve(unlinkSync(path));
        } catch (error) {
          reject(error as Error);
        }
      });
    });
  });
}

installTimers();
installClocks();
installRandom();
installFiles();
syncBuiltinESMExports();
