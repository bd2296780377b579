/** The log's standard error, which serving never waits for: whoever should read it may have stopped, or never begun. */
import { fstatSync } from 'node:fs';
import { E } from '../base/errno.js';
import type { LogDestination } from '../base/log.js';
import { MSG_DONTWAIT, MSG_NOSIGNAL, O_CLOEXEC, O_NONBLOCK, O_WRONLY } from '../ffi/constants.js';
import * as c from '../ffi/libc.js';
import { NativeMemory } from '../ffi/memory.js';

/** Lines that wait for the reader; further ones are lost, and counted. */
const WAITING_MAX_BYTES = 1 << 20;
const RETRY_MS = 50;
/** When the daemon ends, a reader that is slow gets what is left for so long. */
const END_MS = 500;
/** PIPE_BUF: a pipe or terminal that is ready takes so much without waiting. */
const CHUNK_BYTES = 4096;
const POLLOUT = 4;
const O_NOCTTY = 0o400;

/**
 * Rule: a write of the log never waits. A pipe is opened anew, so that it does not wait and those that share it are none the wiser; a socket is told with each
 * message; what can be neither is asked before. A file on a disk is written to as it is.
 */
type Way = 'write' | 'send' | 'poll';

export class StandardError implements LogDestination {
  readonly #fd: number;
  readonly #way: Way;
  readonly #memory = NativeMemory.allocate(2 * CHUNK_BYTES);
  #waiting: Buffer[] = [];
  #waitingBytes = 0;
  #lost = 0;
  #timer: NodeJS.Timeout | null = null;

  constructor(fd = 2) {
    const stat = fstatSync(fd);
    const own = stat.isFIFO() || stat.isCharacterDevice() ? c.open(`/proc/self/fd/${fd}`, O_WRONLY | O_NONBLOCK | O_CLOEXEC | O_NOCTTY, 0) : -1;
    this.#fd = own >= 0 ? own : fd;
    this.#way = stat.isSocket() ? 'send' : own >= 0 || stat.isFile() ? 'write' : 'poll';
    process.once('exit', () => this.#end());
  }

  /** Bytes of lines that wait for the reader. */
  get waitingBytes(): number {
    return this.#waitingBytes;
  }

  write(line: string): void {
    const bytes = Buffer.from(line);
    if (this.#waitingBytes + bytes.length > WAITING_MAX_BYTES) {
      this.#lost++;
      return;
    }
    this.#add(bytes);
    if (this.#timer === null) this.#flush();
  }

  #add(bytes: Buffer): void {
    this.#waiting.push(bytes);
    this.#waitingBytes += bytes.length;
  }

  /** As much as the reader takes now. */
  #flush(): void {
    this.#timer = null;
    for (;;) {
      const [first] = this.#waiting;
      if (first === undefined) {
        if (this.#lost === 0) return;
        this.#add(Buffer.from(`${JSON.stringify({ level: 40, time: new Date().toISOString(), pid: process.pid, lost: this.#lost, msg: 'log lines were lost: nobody read standard error' })}\n`));
        this.#lost = 0;
        continue;
      }
      const taken = this.#put(first);
      if (taken === -E.AGAIN) {
        this.#timer = setTimeout(() => this.#flush(), RETRY_MS).unref();
        return;
      }
      // A reader that went away must not take the daemon with it: nobody gets the line
      const done = taken < 0 ? first.length : taken;
      this.#waitingBytes -= done;
      if (done === first.length) this.#waiting.shift();
      else this.#waiting[0] = first.subarray(done);
    }
  }

  /** @returns bytes that were taken, or −errno */
  #put(bytes: Buffer): number {
    const { address, u8 } = this.#memory;
    const length = Math.min(bytes.length, CHUNK_BYTES);
    u8.set(bytes.subarray(0, length), 0);
    for (;;) {
      if (this.#way === 'poll' && !this.#isReady(0)) return -E.AGAIN;
      const n = c.neg(this.#way === 'send' ? c.send(this.#fd, address, length, MSG_DONTWAIT | MSG_NOSIGNAL) : c.write(this.#fd, address, length));
      if (n !== -E.INTR) return n;
    }
  }

  #isReady(timeout_ms: number): boolean {
    const at = CHUNK_BYTES;
    this.#memory.i32[at >> 2] = this.#fd;
    this.#memory.i32[(at >> 2) + 1] = POLLOUT;
    return c.poll(this.#memory.address + at, 1, timeout_ms) > 0;
  }

  #end(): void {
    const until = performance.now() + END_MS;
    this.#flush();
    while (this.#waitingBytes > 0) {
      const left = until - performance.now();
      if (left <= 0 || !this.#isReady(Math.ceil(left))) return;
      this.#flush();
    }
  }
}
