/** Reads that are slower than usual are made again: see src/storage/object/layers/restart.ts. Time is the test's own. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { AdaptiveLimit, withLimit } from '../../src/storage/object/layers/limit.js';
import { withRestart, type Clock } from '../../src/storage/object/layers/restart.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { contract, pattern } from './contract.js';

const KIB = 1 << 10;
const MIB = 1 << 20;
const CONTENT = pattern(MIB);

class TestClock implements Clock {
  #now = 0;
  #alarms: { at: number; ring: () => void }[] = [];

  now_ms(): number {
    return this.#now;
  }

  after(ms: number, ring: () => void): () => void {
    const alarm = { at: this.#now + ms, ring };
    this.#alarms.push(alarm);
    return () => void (this.#alarms = this.#alarms.filter((one) => one !== alarm));
  }

  get alarms(): number {
    return this.#alarms.length;
  }

  pass(ms: number): void {
    this.#now += ms;
    const due = this.#alarms.filter((alarm) => alarm.at <= this.#now);
    this.#alarms = this.#alarms.filter((alarm) => alarm.at > this.#now);
    for (const alarm of due) alarm.ring();
  }
}

/** What an attempt does; an answer is given when `ms` have passed on the test's clock, or never. */
type Behaviour = { readonly ms: number } | 'stuck' | { readonly deaf: true };

interface Setup {
  readonly clock: TestClock;
  readonly store: ObjectStore;
  readonly limit: AdaptiveLimit;
  /** What the next attempts do; one of 10 ms when there is nothing left. */
  readonly next: Behaviour[];
  /** Attempts that were begun, and those under way. */
  begun: number;
  running: number;
  mostRunning: number;
  /** Ends attempts that do not hear that they were given up. */
  letGo: () => void;
  readonly restarts: number[];
}

async function setUp(): Promise<Setup> {
  const clock = new TestClock();
  const inner = new MemoryStore();
  await inner.put('k', CONTENT);
  const next: Behaviour[] = [];
  const restarts: number[] = [];
  const limit = new AdaptiveLimit({ start: 100, max: 100 });
  const played = intercept(inner, async (call, attempt) => {
    const behaviour = next.shift() ?? { ms: 10 };
    s.begun++;
    s.mostRunning = Math.max(s.mostRunning, ++s.running);
    try {
      if (behaviour !== 'stuck' && 'ms' in behaviour) clock.pass(behaviour.ms);
      if (behaviour === 'stuck' || 'deaf' in behaviour) {
        await new Promise<void>((resolve) => {
          s.letGo = resolve;
          if (behaviour === 'stuck') call.signal?.addEventListener('abort', () => resolve());
        });
        throw new StorageError('aborted', call.subject);
      }
      if (call.signal?.aborted === true) throw new StorageError('aborted', call.subject);
      return await attempt(undefined);
    } finally {
      s.running--;
    }
  });
  const store = withLimit(withRestart(played, { clock, onRestart: (_call, waited_ms) => restarts.push(waited_ms) }), limit, limit);
  const s: Setup = { clock, store, limit, next, begun: 0, running: 0, mostRunning: 0, letGo: () => undefined, restarts };
  return s;
}

const read = (s: Setup, bytes = 4 * KIB, signal?: AbortSignal): Promise<Uint8Array> => {
  const into = new Uint8Array(bytes);
  return s.store.read('k', { offset: 0, into, ...(signal === undefined ? {} : { signal }) }).then((n) => into.subarray(0, n));
};

async function usual(s: Setup, ms: number, bytes = 4 * KIB, times = 8): Promise<void> {
  for (let i = 0; i < times; i++) {
    s.next.push({ ms });
    await read(s, bytes);
  }
}

const code = (expected: StorageErrorCode) => (error: unknown): boolean => error instanceof StorageError && error.code === expected;

contract('memory behind restarts', { open: async () => withRestart(new MemoryStore(), { samples: 0, factor: 0, least_ms: 60_000 }) });

describe('restart', () => {
  test('a read that never ends is answered by the second attempt, which has no such deadline', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push('stuck', { ms: 50_000 });
    const answer = read(s);
    await turn();
    s.clock.pass(999);
    await turn();
    assert.equal(s.begun, 9, 'a second is waited at least');
    s.clock.pass(1);
    assert.deepEqual(await answer, CONTENT.subarray(0, 4 * KIB));
    assert.deepEqual([s.begun, s.restarts], [10, [1000]]);
    assert.equal(s.clock.alarms, 0, 'no alarm stays');
  });

  test('so is a fetch', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push('stuck');
    const into = new Uint8Array(4 * KIB);
    const answer = s.store.fetch('k', { into });
    await turn();
    s.clock.pass(1000);
    assert.equal((await answer).bytes, 4 * KIB);
    assert.deepEqual([into, s.begun], [CONTENT.slice(0, 4 * KIB), 10]);
  });

  test('what is slow depends on what reads of that size take: six times as long', async () => {
    const s = await setUp();
    await usual(s, 10, 4 * KIB);
    await usual(s, 500, MIB);
    s.next.push('stuck');
    const answer = read(s, MIB);
    await turn();
    s.clock.pass(2999);
    await turn();
    assert.equal(s.begun, 17);
    s.clock.pass(1);
    assert.deepEqual(await answer, CONTENT);
    assert.deepEqual(s.restarts, [3000]);
  });

  test('what is usual follows the reads', async () => {
    const s = await setUp();
    await usual(s, 10);
    await usual(s, 900, 4 * KIB, 100);
    s.next.push('stuck');
    const answer = read(s);
    await turn();
    s.clock.pass(5000);
    await turn();
    assert.deepEqual(s.restarts, []);
    s.clock.pass(401);
    await answer;
    assert.ok(s.restarts[0] > 5000 && s.restarts[0] <= 5400);
  });

  test('before eight reads of a size are known none is slow, and other calls never are', async () => {
    const s = await setUp();
    await usual(s, 10, 4 * KIB, 7);
    s.next.push({ ms: 100_000 });
    await read(s);
    s.next.push({ ms: 100_000 }, { ms: 100_000 });
    await s.store.head('k');
    await s.store.put('other', CONTENT);
    assert.deepEqual([s.begun, s.restarts], [10, []]);
  });

  test('two attempts are never under way at once: they write to the same memory', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push({ deaf: true });
    const answer = read(s);
    await turn();
    s.clock.pass(10_000);
    await turn();
    assert.deepEqual([s.begun, s.running], [9, 1], 'it was told, and is still there');
    s.letGo();
    assert.deepEqual(await answer, CONTENT.subarray(0, 4 * KIB));
    assert.deepEqual([s.begun, s.mostRunning], [10, 1]);
  });

  test('an attempt that ends well after it was given up is the answer', async () => {
    const s = await setUp();
    await usual(s, 10);
    const late = withRestart(intercept(new MemoryStore(), async (_call, _attempt) => (s.clock.pass(5000), 7 as never)), { clock: s.clock, samples: 0, least_ms: 1 });
    assert.equal(await late.read('k', { offset: 0, into: new Uint8Array(8) }), 7);
  });

  test('the limit hears of no failure', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push('stuck');
    const answer = read(s);
    await turn();
    s.clock.pass(1000);
    await answer;
    assert.equal(s.restarts.length, 1);
    assert.equal(s.limit.limit, 100);
  });

  test('a caller who gives up gets `aborted`, and no second attempt is made; errors are passed on', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push('stuck');
    const caller = new AbortController();
    const answer = read(s, 4 * KIB, caller.signal);
    await turn();
    caller.abort();
    await assert.rejects(answer, code('aborted'));
    assert.equal(s.begun, 9);
    await assert.rejects(s.store.read('none', { offset: 0, into: new Uint8Array(1) }), code('not-found'));
    assert.deepEqual([s.begun, s.restarts], [10, []]);
  });

  test('when everything is slow, few are asked for twice', async () => {
    const s = await setUp();
    await usual(s, 10);
    s.next.push(...Array.from({ length: 30 }, () => 'stuck' as const));
    const callers = Array.from({ length: 30 }, () => new AbortController());
    const answers = Promise.allSettled(callers.map((caller) => read(s, 4 * KIB, caller.signal)));
    await turn();
    s.clock.pass(1000);
    for (let i = 0; i < 5; i++) await turn();
    assert.equal(s.restarts.length, 8);
    for (const caller of callers) caller.abort();
    const ended = await answers;
    assert.equal(ended.filter((one) => one.status === 'fulfilled').length, 8);
    await usual(s, 10, 4 * KIB, 16);
    s.next.push('stuck');
    const again = read(s);
    await turn();
    s.clock.pass(100_000);
    await again;
    assert.equal(s.restarts.length, 9, 'reads that end well allow more');
  });
});
