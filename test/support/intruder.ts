/**
 * A guest that has taken the daemon over: code that runs in the daemon's own process, in its sandbox, with all that it may do. It comes in by NODE_OPTIONS, which the daemon
 * hands on to the image that serves, waits for a file `go` in the share, and leaves what it has found in `found` there.
 */
import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { join } from 'node:path';
import { setTimeout as sleep } from 'node:timers/promises';
import { MAIN } from './daemon.js';

export const REQUIRE_FROM = MAIN;
const LIMIT_MS = 20_000;

/** What the intruder's functions get: libc, by way of the daemon's own koffi. */
export interface Tools {
  readonly share: string;
  /** The result of a system call, or −errno. Arguments are numbers, strings (a path), or bytes. */
  call(nr: number, ...args: (number | string | Uint8Array)[]): number;
  /** A new stream socket connected to a Unix socket; an abstract name begins with NUL, a path ends with one. 0, or −errno. */
  connect(name: string): number;
}

export type Deed = (tools: Tools, given: Record<string, string | number>) => Record<string, unknown>;

/** NODE_OPTIONS for a daemon that `deed` is to be done in; it is turned into text, so it knows nothing of what is around it. */
export function intruderOptions(deed: Deed, given: Record<string, string | number>): string {
  const code = `
    import { createRequire } from 'node:module';
    import fs from 'node:fs';
    import { isMainThread } from 'node:worker_threads';
    if (isMainThread) (${intrude.toString()})(createRequire(${JSON.stringify(REQUIRE_FROM)}), fs, ${deed.toString()}, ${JSON.stringify(given)});
  `;
  return `--import=data:text/javascript;base64,${Buffer.from(code).toString('base64')}`;
}

function intrude(require: ReturnType<typeof createRequire>, fs: typeof import('node:fs'), deed: Deed, given: Record<string, string | number>): void {
  const share = fs.existsSync('/.share') ? '/.share' : String(given.share);
  const koffi = require('koffi') as { load(name: string): { func(text: string): (...args: unknown[]) => number }; errno(): number; address(value: unknown): bigint };
  const syscall = koffi.load('libc.so.6').func('int64 syscall(int64 nr, void *a, void *b, void *c, void *d, void *e, void *f)');
  const call = (nr: number, ...args: (number | string | Uint8Array)[]): number => {
    const passed = [0, 1, 2, 3, 4, 5].map((i) => {
      const arg = args[i] ?? 0;
      return typeof arg === 'number' ? BigInt(arg) : typeof arg === 'string' ? Buffer.from(`${arg}\0`) : arg;
    });
    const result = Number(syscall(nr, ...passed));
    return result < 0 ? -koffi.errno() : result;
  };
  const connect = (name: string): number => {
    const address = Buffer.alloc(2 + name.length);
    address.writeUInt16LE(1, 0);
    address.write(name, 2, 'latin1');
    return call(42, call(41, 1, 1, 0), address, address.length);
  };
  const timer = setInterval(() => {
    if (!fs.existsSync(`${share}/go`)) return;
    clearInterval(timer);
    let found: Record<string, unknown>;
    try {
      found = deed({ share, call, connect }, given);
    } catch (error) {
      found = { error: String(error) };
    }
    fs.writeFileSync(`${share}/found.new`, JSON.stringify(found));
    fs.renameSync(`${share}/found.new`, `${share}/found`);
  }, 10);
}

/** Lets the intruder of a daemon of that share do it. */
export async function intruded(share: string): Promise<Record<string, unknown>> {
  writeFileSync(join(share, 'go'), '');
  const found = join(share, 'found');
  for (const end = Date.now() + LIMIT_MS; !existsSync(found); await sleep(10)) if (Date.now() > end) throw new Error('the intruder has found nothing');
  return JSON.parse(readFileSync(found, 'utf8')) as Record<string, unknown>;
}
