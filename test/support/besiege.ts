/** What is asserted of a daemon under a hostile guest, whatever it shares. */
import assert from 'node:assert/strict';
import type { TestContext } from 'node:test';
import { HostileGuest } from './hostile-guest.js';
import type { ProbedDaemon } from './probed-daemon.js';

/** Rings and entries of those guests that hold as much as there may be. */
export const QUEUES = 62;
export const RING = 32_768;

const NODE_BYTES = 200;
const TURN_MAX_MS = 100;

/** One guest, and what is bounded under it. */
export interface Siege {
  readonly queues?: number;
  readonly size?: number;
  /** Nodes that it knows in the end. */
  readonly nodes?: number;
  /** Until the guest holds as much as it can get; what goes on goes on until it leaves. */
  readonly attack: (g: HostileGuest) => Promise<void>;
  /** What does not answer does from now on. */
  readonly release?: () => void;
}

export interface Bounds {
  readonly memory: number;
  /** What may stay when the guest has gone, beside what was there before. */
  readonly left: number;
  readonly stop_ms: number;
}

const mb = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`;

/** The guest comes, attacks and goes; it comes and attacks again, and the daemon is told to end meanwhile. */
export async function besiege(t: TestContext, daemon: ProbedDaemon, siege: Siege, bounds: Bounds): Promise<void> {
  const { queues = QUEUES, size = RING, nodes = 0, attack, release = () => undefined } = siege;
  const idle = daemon.peak();
  const first = await HostileGuest.connect(daemon.socket, queues, size);
  await daemon.probe();
  await attack(first);
  const { turn_ms } = await daemon.probe();
  const peak = daemon.peak();
  first.leave();
  const releasing = setInterval(release, 10);
  let second: HostileGuest;
  let left: number;
  try {
    left = await daemon.settled(idle + bounds.left);
    // Served when the requests of the first one have ended
    second = await HostileGuest.connect(daemon.socket, queues, size);
  } finally {
    clearInterval(releasing);
  }
  await attack(second);
  const before = performance.now();
  const ending = daemon.stop();
  await daemon.isOver();
  const stop_ms = performance.now() - before;
  release();
  const ended = await ending;
  second.leave();

  t.diagnostic(`${t.name} | ${mb(peak)} | ${mb(left)} | ${turn_ms.toFixed(0)} ms | ${stop_ms.toFixed(0)} ms`);
  assert.deepEqual(ended, { code: 0, signal: null }, daemon.daemon.stderr);
  assert.ok(stop_ms <= bounds.stop_ms, `it ended after ${stop_ms} ms`);
  assert.ok(peak <= bounds.memory + NODE_BYTES * nodes, `${mb(peak)} at most, ${mb(idle)} before; now ${mb(left)}`);
  assert.ok(left <= idle + bounds.left, `${mb(left)} are left of ${mb(peak)}, ${mb(idle)} before`);
  assert.ok(turn_ms <= TURN_MAX_MS, `a turn of ${turn_ms} ms`);
}
