/** The layers between the file system and a store: deadlines, retries, the limit, settling what is in doubt. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { StorageError, isTransient, STORAGE_ERRORS, toErrno, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { withDeadline } from '../../src/storage/object/layers/deadline.js';
import { AdaptiveLimit, withLimit } from '../../src/storage/object/layers/limit.js';
import { withRetry } from '../../src/storage/object/layers/retry.js';
import { COMMIT, settledComplete, settledCopy, settledPut, settledRemove } from '../../src/storage/object/settle.js';
import { FaultyStore, type Fault } from '../../src/storage/object/stores/faulty.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { contract } from './contract.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const code = (expected: StorageErrorCode) => (error: unknown): boolean => error instanceof StorageError && error.code === expected;
const QUICK = { base_ms: 1, max_ms: 2 };
const SETTLE = { attempts: 4, pause_ms: 1 };

function faulty(): { faults: FaultyStore; store: ObjectStore; inner: MemoryStore } {
  const inner = new MemoryStore();
  const faults = new FaultyStore(inner);
  return { faults, inner, store: faults.store };
}

contract('memory behind all layers', {
  open: async () => withRetry(withLimit(withDeadline(new FaultyStore(new MemoryStore()).store), new AdaptiveLimit(), new AdaptiveLimit()), QUICK),
});

test('every error has an errno, and only what may pass is tried again', () => {
  for (const one of STORAGE_ERRORS) assert.ok(toErrno(one) > 0);
  assert.deepEqual(STORAGE_ERRORS.filter(isTransient), ['throttled', 'unavailable', 'unreachable', 'timeout', 'interrupted', 'checksum', 'short-body']);
});

describe('retry', () => {
  test('what passes is tried again until it succeeds', async () => {
    const { faults, store } = faulty();
    faults.inject(
      { operation: 'put', nth: 1, fault: { kind: 'before', code: 'throttled' } },
      { operation: 'put', nth: 2, fault: { kind: 'before', code: 'unavailable' } },
    );
    const seen: [string, number][] = [];
    const retried = withRetry(store, { ...QUICK, onRetry: (_call, error, attempt) => seen.push([error.code, attempt]) });
    await retried.put('k', bytes('x'), { condition: { absent: true } });
    assert.deepEqual(seen, [['throttled', 1], ['unavailable', 2]]);
    assert.equal(faults.calls.length, 3);
  });

  test('what does not pass, and an ambiguous conditional write, are not', async () => {
    const { faults, store } = faulty();
    const retried = withRetry(store, QUICK);
    faults.inject({ operation: 'put', nth: 1, fault: { kind: 'before', code: 'denied' } });
    await assert.rejects(retried.put('k', bytes('x')), code('denied'));
    faults.inject({ operation: 'put', nth: 1, fault: { kind: 'lost-reply' } });
    await assert.rejects(retried.put('k', bytes('x'), { condition: { absent: true } }), code('timeout'));
    assert.equal(faults.calls.length, 2);
  });

  test('what may have taken effect stays in doubt, however sure it is that a later attempt has not', async () => {
    const { faults, store } = faulty();
    for (const later of ['denied', 'unavailable'] as const) {
      faults.inject({ operation: 'put', nth: 1, fault: { kind: 'lost-reply', code: 'interrupted' } }, { operation: 'put', nth: 2, fault: { kind: 'before', code: later } });
      await assert.rejects(withRetry(store, { ...QUICK, attempts: 2 }).put('k', bytes('x')), (error: StorageError) => error.code === later && error.detail.ambiguous === true);
    }
    faults.inject({ operation: 'put', nth: 1, fault: { kind: 'before', code: 'throttled' } }, { operation: 'put', nth: 2, fault: { kind: 'before', code: 'denied' } });
    await assert.rejects(withRetry(store, QUICK).put('k', bytes('x')), (error: StorageError) => error.code === 'denied' && error.detail.ambiguous !== true);
  });

  test('it gives up after its attempts with the last error', async () => {
    const { faults, store } = faulty();
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'before', code: 'unavailable' }] });
    await assert.rejects(withRetry(store, { ...QUICK, attempts: 3 }).head('k'), code('unavailable'));
    assert.equal(faults.calls.length, 3);
  });

  test('the time the provider asks for is waited at least, and not at all if it is too long', async () => {
    const { faults, store } = faulty();
    const delays: number[] = [];
    const retried = withRetry(store, { ...QUICK, maxRetryAfter_ms: 1000, onRetry: (_call, _error, _attempt, delay_ms) => delays.push(delay_ms) });
    faults.inject({ operation: 'list', nth: 1, fault: { kind: 'before', code: 'throttled', detail: { retryAfter_ms: 30 } } });
    await retried.list({ prefix: '' });
    assert.deepEqual(delays, [30]);
    faults.inject({ operation: 'list', nth: 1, fault: { kind: 'before', code: 'throttled', detail: { retryAfter_ms: 60_000 } } });
    await assert.rejects(retried.list({ prefix: '' }), code('throttled'));
  });

  test('delays are random below a bound that doubles', async () => {
    const { faults, store } = faulty();
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'before', code: 'unavailable' }] });
    const delays: number[] = [];
    const options = { attempts: 6, base_ms: 2, max_ms: 10, random: () => 0.5, onRetry: (_c: unknown, _e: unknown, _a: number, ms: number) => void delays.push(ms) };
    await assert.rejects(withRetry(store, options).head('k'));
    assert.deepEqual(delays, [1, 2, 4, 5, 5]);
  });

  test('a caller who gives up while it waits gets `aborted` at once', async () => {
    const { faults, store } = faulty();
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'before', code: 'unavailable', detail: { retryAfter_ms: 50_000 } }] });
    const caller = new AbortController();
    const call = withRetry(store, QUICK).head('k', { signal: caller.signal });
    setImmediate(() => caller.abort());
    await assert.rejects(call, code('aborted'));
  });
});

describe('deadline', () => {
  const deadlines = { call_ms: 5, work_ms: 5, perMiB_ms: 1 };

  test('an attempt that takes too long is a timeout, ambiguous if it changes something', async () => {
    const { faults, store } = faulty();
    const bounded = withDeadline(store, deadlines);
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'delay', ms: 10_000 }] });
    await assert.rejects(bounded.head('k'), (error: StorageError) => error.code === 'timeout' && error.detail.ambiguous === false);
    await assert.rejects(bounded.put('k', bytes('x')), (error: StorageError) => error.code === 'timeout' && error.detail.ambiguous === true);
  });

  test('a caller who gives up is no timeout', async () => {
    const { faults, store } = faulty();
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'delay', ms: 10_000 }] });
    const caller = new AbortController();
    setImmediate(() => caller.abort());
    await assert.rejects(withDeadline(store).head('k', { signal: caller.signal }), code('aborted'));
  });
});

describe('limit', () => {
  const later = (): { promise: Promise<void>; done: () => void; fail: (error: Error) => void } => {
    let done!: () => void;
    let fail!: (error: Error) => void;
    const promise = new Promise<void>((resolve, reject) => ([done, fail] = [resolve, reject]));
    return { promise, done, fail };
  };

  test('uploads and copies that take for ever keep nobody else from being asked, and neither does what the provider says of them', async () => {
    const [limit, bulk] = [new AdaptiveLimit({ start: 2, max: 2 }), new AdaptiveLimit({ start: 2, max: 2 })];
    const { faults, store, inner } = faulty();
    const limited = withLimit(store, limit, bulk);
    const version = await inner.put('k', bytes('content'));
    const upload = await inner.beginUpload('u');
    const caller = new AbortController();
    faults.inject({ operation: 'copyPart', nth: 1, fault: { kind: 'before', code: 'throttled' } });
    await assert.rejects(limited.copyPart(upload, 1, { key: 'k', version, offset: 0, bytes: 5 }), code('throttled'));
    assert.deepEqual([limit.limit, bulk.limit], [2, 1]);
    faults.random({ seed: 1, probability: 1, faults: [{ kind: 'delay', ms: 3_600_000 }] });
    const held = Array.from({ length: 20 }, (_, i) => limited.copyPart(upload, i + 1, { key: 'k', version, offset: 0, bytes: 5 }, { signal: caller.signal }).catch(() => 'given up'));
    await new Promise(setImmediate);
    faults.random(null);
    for (let i = 0; i < 5; i++) assert.equal((await limited.head('k')).version, version);
    caller.abort();
    assert.deepEqual(new Set(await Promise.all(held)), new Set(['given up']));
  });

  test('no more than the limit are under way; the others follow in order', async () => {
    const limit = new AdaptiveLimit({ start: 2, max: 2 });
    const began: number[] = [];
    const steps = Array.from({ length: 6 }, later);
    const all = steps.map((step, i) => limit.run(() => (began.push(i), step.promise)));
    for (let i = 0; i < 6; i++) {
      await new Promise(setImmediate);
      assert.deepEqual(began, [0, 1, 2, 3, 4, 5].slice(0, Math.min(6, i + 2)));
      assert.ok(limit.running <= 2);
      steps[i].done();
    }
    await Promise.all(all);
    assert.equal(limit.running, 0);
  });

  test('until the provider says otherwise each success for which others wait allows one more, and none that nobody waits for', async () => {
    const limit = new AdaptiveLimit({ start: 2, max: 40 });
    let throttled = false;
    const waves = async (calls: number): Promise<void> => {
      const call = async (): Promise<void> => {
        await new Promise(setImmediate);
        if (throttled) throw new StorageError('throttled', 'test');
      };
      await Promise.allSettled(Array.from({ length: calls }, () => limit.run(call)));
    };
    await waves(30);
    assert.equal(limit.limit, 16, '2, 4 and 8 for which others have waited');
    for (let i = 0; i < 10; i++) await limit.run(async () => undefined);
    assert.equal(limit.limit, 17, 'a sixteenth each for those that nobody waits for');
    await waves(200);
    assert.equal(limit.limit, 40);
    throttled = true;
    await waves(1);
    throttled = false;
    assert.equal(limit.limit, 26);
    await waves(30);
    assert.equal(limit.limit, 27, 'slowly from then on');
  });

  test('"slow down" takes a third, once for all that were under way; success gives back', async () => {
    const limit = new AdaptiveLimit({ start: 30, max: 100 });
    const throttled = Array.from({ length: 30 }, later);
    const all = throttled.map((step) => limit.run(() => step.promise));
    for (const step of throttled) step.fail(new StorageError('throttled', 'test'));
    await Promise.allSettled(all);
    assert.equal(limit.limit, 20);
    for (let i = 0; i < 1000; i++) await limit.run(async () => undefined);
    assert.ok(limit.limit > 40);
    for (let i = 0; i < 100; i++) await assert.rejects(limit.run(async () => Promise.reject(new StorageError('unavailable', 'test'))));
    assert.equal(limit.limit, 1, 'one is always let through');
  });

  test('who gives up in the line leaves it', async () => {
    const limit = new AdaptiveLimit({ start: 1, max: 1 });
    const first = later();
    const running = limit.run(() => first.promise);
    const caller = new AbortController();
    const waiting = limit.run(async () => assert.fail('never begun'), caller.signal);
    const last = limit.run(async () => 'served');
    caller.abort();
    await assert.rejects(waiting, code('aborted'));
    first.done();
    await running;
    assert.equal(await last, 'served');
  });
});

describe('settling', () => {
  const DOUBTS: [string, Fault][] = [
    ['its answer is lost', { kind: 'lost-reply' }],
    ['it is lost', { kind: 'lost-request' }],
    ['it takes effect late', { kind: 'late', ms: 5 }],
  ];
  for (const [what, fault] of DOUBTS) {
    test(`a put is done exactly once when ${what}`, async () => {
      const { faults, store, inner } = faulty();
      faults.inject({ operation: 'put', nth: 1, fault });
      const { version } = await settledPut(store, 'k', bytes('mine'), { condition: { absent: true }, commit: 'c1' }, SETTLE);
      await faults.settle();
      const info = await inner.head('k');
      assert.deepEqual([info.version, info.metadata?.[COMMIT]], [version, 'c1']);
    });

    test(`an upload is completed exactly once when the completion's fate is that ${what}`, async () => {
      const { faults, store, inner } = faulty();
      const upload = await store.beginUpload('k', { metadata: { [COMMIT]: 'c2' } });
      const part = await store.putPart(upload, 1, bytes('mine'));
      faults.inject({ operation: 'completeUpload', nth: 1, fault });
      const { version } = await settledComplete(store, upload, [part], { condition: { absent: true }, commit: 'c2' }, SETTLE);
      await faults.settle();
      assert.equal((await inner.head('k')).version, version);
    });

    test(`a copy is made exactly once, and its source removed once, when ${what}`, async () => {
      const { faults, store, inner } = faulty();
      const source = await store.put('from', bytes('content'));
      faults.inject({ operation: 'copy', nth: 1, fault }, { operation: 'remove', nth: 1, fault });
      const { version } = await settledCopy(store, 'from', 'to', { condition: { absent: true }, metadata: { a: 'b' }, commit: 'c3' }, SETTLE);
      await settledRemove(store, 'from', source, {}, SETTLE);
      await faults.settle();
      const info = await inner.head('to');
      assert.deepEqual([info.version, { ...info.metadata }], [version, { a: 'b', [COMMIT]: 'c3' }]);
      await assert.rejects(inner.head('from'), code('not-found'));
    });
  }

  test('somebody else who was faster is `changed`, also in doubt', async () => {
    const { faults, store, inner } = faulty();
    await inner.put('k', bytes('theirs'));
    await assert.rejects(settledPut(store, 'k', bytes('mine'), { condition: { absent: true }, commit: 'c' }, SETTLE), code('changed'));
    faults.inject({ operation: 'put', nth: 1, fault: { kind: 'lost-request' } });
    await assert.rejects(settledPut(store, 'k', bytes('mine'), { condition: { absent: true }, commit: 'c' }, SETTLE), code('changed'));
    assert.equal((await inner.head('k')).size, 6);
  });

  test('a doubt that stays is the error, after its attempts', async () => {
    const { faults, store } = faulty();
    for (let i = 1; i <= 4; i++) faults.inject({ operation: 'put', nth: i, fault: { kind: 'lost-request' } });
    await assert.rejects(settledPut(store, 'k', bytes('mine'), { condition: { absent: true }, commit: 'c' }, SETTLE), code('timeout'));
    assert.equal(faults.calls.filter((call) => call === 'put').length, 4);
  });
});
