/** The used ring shared by threads: every completion arrives once, whoever pushes it. */
import assert from 'node:assert/strict';
import { Worker, isMainThread, parentPort, workerData } from 'node:worker_threads';
import { test } from 'node:test';
import { NativeMemory, viewOf } from '../../src/ffi/memory.js';
import { UsedRing, availRingBytes, usedRingBytes, type UsedRingAddress } from '../../src/vhost/used-ring.js';

const THREADS = 4;
const SIZE = 32768;
const COMPLETIONS = Number(process.env.USED_RING_COMPLETIONS ?? 10_000_000);

const idle = new Int32Array(new SharedArrayBuffer(4));

interface Job {
  ring: UsedRingAddress;
  /** A counter of completions that the reader has seen, so that writers do not lap it. */
  seen: number;
  thread: number;
  count: number;
}

if (!isMainThread) {
  const { ring: address, seen, thread, count } = workerData as Job;
  const ring = new UsedRing(address);
  const progress = new BigInt64Array(viewOf(seen, 4096));
  // Each thread has its own range of heads and a sequence in the length, so that a lost or doubled one shows
  for (let i = 0; i < count; i++) {
    while (i % 1024 === 0 && BigInt(i) * BigInt(THREADS) - Atomics.load(progress, 0) > BigInt(SIZE / 4)) Atomics.wait(idle, 0, 0, 1);
    ring.push(thread, i);
    ring.wantsCall();
  }
  parentPort!.postMessage('done');
}

if (isMainThread) {
  test(`${COMPLETIONS} completions from ${THREADS} threads: none lost, none doubled, each thread's in order`, async () => {
    const memory = NativeMemory.allocate(availRingBytes(SIZE) + usedRingBytes(SIZE) + 8192);
    const state = UsedRing.createState(0, true);
    const seen = NativeMemory.allocate(4096);
    const used = Math.ceil(availRingBytes(SIZE) / 64) * 64;
    const ring: UsedRingAddress = { state: state.address, avail: memory.address, used: memory.address + used, size: SIZE };
    const share = Math.floor(COMPLETIONS / THREADS);
    const workers = Array.from({ length: THREADS }, (_, thread) =>
      new Worker(new URL(import.meta.url), { workerData: { ring, seen: seen.address, thread, count: share } satisfies Job }));
    const idx = new Uint16Array(memory.buffer, used + 2, 1);
    const elements = new Uint32Array(memory.buffer, used + 4, SIZE * 2);
    const progress = new BigInt64Array(seen.buffer);
    const next = new Array<number>(THREADS).fill(0);
    let last = 0;
    for (let total = 0; total < share * THREADS; ) {
      const published = Atomics.load(idx, 0);
      for (; last !== published; last = (last + 1) & 0xffff, total++) {
        const at = (last % SIZE) * 2;
        const thread = elements[at];
        assert.equal(elements[at + 1], next[thread], `thread ${thread}`);
        next[thread]++;
      }
      Atomics.store(progress, 0, BigInt(total));
      await new Promise((resolve) => setImmediate(resolve));
    }
    assert.deepEqual(next, new Array<number>(THREADS).fill(share));
    await Promise.all(workers.map((w) => w.terminate()));
  });

  test('EVENT_IDX: a call is wanted when used_event is among the indexes published since the last one, across the wrap', () => {
    for (const [start, event, pushes, wanted] of [
      [0, 0, 1, true], [0, 1, 1, false], [0, 1, 2, true], [0, 5, 3, false], [0xfffe, 0xffff, 2, true], [0xfffe, 0, 3, true], [0xfffe, 1, 3, false],
      [0x7fff, 0x7ffe, 1, false],
    ] as const) {
      const memory = NativeMemory.allocate(8192);
      const state = UsedRing.createState(start, true);
      const ring = new UsedRing({ state: state.address, avail: memory.address, used: memory.address + 4096, size: 16 });
      new DataView(memory.buffer).setUint16(2 * (2 + 16), 0xabcd, true);
      ring.wantsCall(); // the first answer is always yes: nothing is known of the driver
      new DataView(memory.buffer).setUint16(2 * (2 + 16), event, true);
      for (let i = 0; i < pushes; i++) ring.push(0, 0);
      assert.equal(ring.wantsCall(), wanted, `from ${start}, event ${event}, ${pushes} pushes`);
      assert.equal(ring.wantsCall(), false, 'nothing new, nothing to call for');
      memory.free();
      state.free();
    }
  });
}
