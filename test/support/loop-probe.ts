/**
 * Loaded into a daemon of the tests before its own modules (NODE_OPTIONS=--import): how long turns of its event loop are, and what its heap holds when the
 * garbage is gone. At SIGUSR2 it collects, and appends a line of JSON to the file that LOOP_PROBE names.
 */
import { appendFileSync, openSync, readSync } from 'node:fs';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { isMainThread } from 'node:worker_threads';

/** A turn is seen when it is longer than this. */
const TICK_MS = 2;

export interface Probed {
  /** The most CPU time that the main thread used between two looks at the event loop's timers, in milliseconds: other load on the machine does not count. */
  readonly turn_ms: number;
  /** The longest time between two of them, waiting in the kernel and for a CPU included. */
  readonly gap_ms: number;
  readonly heapUsed: number;
  readonly arrayBuffers: number;
}

function watch(file: string): void {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc') as () => void;
  // Time on a CPU in nanoseconds comes first
  const statistics = openSync('/proc/thread-self/schedstat', 'r');
  const buffer = Buffer.alloc(64);
  const onCpu_ms = (): number => Number.parseInt(buffer.toString('latin1', 0, readSync(statistics, buffer, 0, 64, 0)), 10) / 1e6;
  let cpu = 0;
  let at = 0;
  let turn_ms = 0;
  let gap_ms = 0;
  const look = (): void => {
    const [cpuNow, now] = [onCpu_ms(), performance.now()];
    if (at !== 0) {
      turn_ms = Math.max(turn_ms, cpuNow - cpu);
      gap_ms = Math.max(gap_ms, now - at);
    }
    [cpu, at] = [cpuNow, now];
  };
  setInterval(look, TICK_MS).unref();
  process.on('SIGUSR2', () => {
    look();
    collect();
    // What was given up only then is given back behind a finalizer
    setImmediate(() => {
      collect();
      const { heapUsed, arrayBuffers } = process.memoryUsage();
      appendFileSync(file, `${JSON.stringify({ turn_ms, gap_ms, heapUsed, arrayBuffers } satisfies Probed)}\n`);
      [at, turn_ms, gap_ms] = [0, 0, 0];
    });
  });
}

if (isMainThread && process.env['LOOP_PROBE'] !== undefined) watch(process.env['LOOP_PROBE']);
