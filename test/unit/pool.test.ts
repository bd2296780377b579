import assert from 'node:assert/strict';
import { closeSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test, type TestContext } from 'node:test';
import { E } from '../../src/base/errno.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { SyscallPool, type SyscallPoolOptions, type WorkerLoss } from '../../src/pool/pool.js';
import { PoolOnDemand } from '../../src/pool/pool-on-demand.js';
import type { TestCall } from './pool-worker.js';

const TEST_WORKER = new URL('./pool-worker.js', import.meta.url);

let directory: string;
before(() => (directory = mkdtempSync(join(tmpdir(), 'bucketfsd-pool-'))));
after(() => rmSync(directory, { recursive: true }));

/** A pool of test workers that records lost workers and is closed with the test. */
function testPool(t: TestContext, options: Partial<SyscallPoolOptions> = {}): { pool: SyscallPool<TestCall>; losses: WorkerLoss[] } {
  const losses: WorkerLoss[] = [];
  const pool = new SyscallPool<TestCall>({ threads: 2, worker: TEST_WORKER, onWorkerLost: (loss) => losses.push(loss), ...options });
  t.after(() => pool.close());
  return { pool, losses };
}

function openScratch(t: TestContext, name: string, content: string): number {
  writeFileSync(join(directory, name), content);
  const fd = openSync(join(directory, name), 'r+');
  t.after(() => closeSync(fd));
  return fd;
}

/** Native memory with one iovec at its start that covers `bytes` from offset 64 on. */
function iovec(t: TestContext, bytes: number): NativeMemory {
  const memory = NativeMemory.allocate(4096);
  t.after(() => memory.free());
  memory.dv.setBigUint64(0, BigInt(memory.address + 64), true);
  memory.dv.setBigUint64(8, BigInt(bytes), true);
  return memory;
}

test('the production workers read and write native memory of the process', async (t) => {
  const pool = new SyscallPool({ threads: 1 });
  t.after(() => pool.close());
  const fd = openScratch(t, 'data', 'hello pool');
  const memory = iovec(t, 5);
  assert.equal(await pool.run('read', fd, memory.address, 1, 0, 0), 5);
  assert.equal(Buffer.from(memory.u8.subarray(64, 69)).toString(), 'hello');
  memory.u8.set(Buffer.from('HELLO'), 64);
  assert.equal(await pool.run('write', fd, memory.address, 1, 6, 0, 0, 0, 0), 5);
  assert.equal(readFileSync(join(directory, 'data'), 'utf8'), 'hello HELLO');
});

test('the calls with other shapes of arguments work', async (t) => {
  const pool = new SyscallPool({ threads: 2 });
  t.after(() => pool.close());
  const from = openScratch(t, 'from', '0123456789');
  const to = openScratch(t, 'to', '');
  const memory = NativeMemory.allocate(4096);
  t.after(() => memory.free());
  memory.dv.setBigInt64(0, 2n, true);
  memory.dv.setBigInt64(8, 0n, true);
  assert.equal(await pool.run('copyFileRange', from, memory.address, to, memory.address + 8, 5, 0, 0, 0), 5);
  assert.equal(memory.dv.getBigInt64(0, true), 7n);
  assert.equal(readFileSync(join(directory, 'to'), 'utf8'), '23456');
  assert.equal(await pool.run('fallocate', to, 0, 0, 8, 0, 0, 0), 0);
  assert.equal(readFileSync(join(directory, 'to')).length, 8);
  assert.deepEqual(await Promise.all([pool.run('fsync', to), pool.run('fdatasync', to), pool.run('syncfs', to)]), [0, 0, 0]);
});

test('a failed call resolves with the negated errno of its own thread', async (t) => {
  const { pool, losses } = testPool(t);
  const fd = openScratch(t, 'errors', 'x');
  const memory = iovec(t, 1);
  const requests = Array.from({ length: 50 }, (_, i) => (i % 2 === 0 ? pool.run('fsync', -1) : pool.run('read', fd, memory.address, -1, 0, 0)));
  const results = await Promise.all(requests);
  assert.deepEqual(results, results.map((_, i) => (i % 2 === 0 ? -E.BADF : -E.INVAL)));
  assert.deepEqual(losses, []);
});

test('a call that the workers do not have is ENOSYS', async (t) => {
  const { pool } = testPool(t);
  assert.equal(await pool.run('reboot' as TestCall), -E.NOSYS);
});

test('no thread exists before the first request and after the idle time', async (t) => {
  const { pool, losses } = testPool(t, { idleTimeout_ms: 20 });
  assert.equal(pool.stats.threads, 0);
  assert.equal(await pool.run('nothing'), 7);
  assert.equal(pool.stats.threads, 1);
  while (pool.stats.threads > 0) await new Promise((resolve) => setTimeout(resolve, 5));
  assert.deepEqual(losses, [], 'an idle worker that ends is not a lost one');
  assert.equal(await pool.run('nothing'), 7, 'a new worker starts when it is needed');
});

test('requests overlap as far as there are threads, and never more', async (t) => {
  const { pool } = testPool(t, { threads: 2 });
  const requests = Array.from({ length: 6 }, () => pool.run('sleep', 20));
  assert.equal(pool.pending, 6);
  assert.deepEqual([pool.stats.running, pool.stats.queued], [2, 4]);
  await Promise.all(requests);
  assert.equal(pool.pending, 0);
  assert.equal(pool.stats.completed, 6);
  assert.ok(pool.stats.threads <= 2);
});

test('one worker serves its requests in the order they came', async (t) => {
  const { pool } = testPool(t, { threads: 1 });
  const order: number[] = [];
  await Promise.all(Array.from({ length: 20 }, async (_, i) => {
    await pool.run(i % 5 === 0 ? 'sleep' : 'nothing', 1);
    order.push(i);
  }));
  assert.deepEqual(order, Array.from({ length: 20 }, (_, i) => i));
});

test('a full queue refuses with ENOMEM, and what is in it is still served', async (t) => {
  const { pool } = testPool(t, { threads: 1, queueMax: 2 });
  const requests = [pool.run('sleep', 5), pool.run('nothing'), pool.run('nothing'), pool.run('nothing')];
  assert.deepEqual(await Promise.all(requests), [0, 7, 7, -E.NOMEM]);
  assert.equal(pool.stats.refused, 1);
});

test('a worker that exits fails its request with EIO, is reported, and is replaced', async (t) => {
  const { pool, losses } = testPool(t, { threads: 1 });
  const [dead, next] = await Promise.all([pool.run('exit', 3), pool.run('nothing')]);
  assert.deepEqual([dead, next], [-E.IO, 7], 'the request behind it is served by a new worker');
  assert.equal(losses.length, 1);
  assert.equal(losses[0]!.call, 'exit');
  assert.match(losses[0]!.reason, /code: 3/);
  assert.equal(pool.stats.lost, 1);
});

test('a worker that runs out of memory costs only its own request', async (t) => {
  const { pool, losses } = testPool(t, { threads: 2 });
  const results = await Promise.all([pool.run('sleep', 30), pool.run('exhaust'), pool.run('nothing'), pool.run('nothing')]);
  assert.deepEqual(results, [0, -E.IO, 7, 7]);
  assert.deepEqual(losses.map((loss) => loss.call), ['exhaust']);
});

test('every worker dying over and over loses no request', async (t) => {
  const { pool, losses } = testPool(t, { threads: 2 });
  const results = await Promise.all(Array.from({ length: 24 }, (_, i) => (i % 3 === 0 ? pool.run('exit', 1) : pool.run('nothing'))));
  assert.deepEqual(results, results.map((_, i) => (i % 3 === 0 ? -E.IO : 7)));
  assert.equal(losses.length, 8);
  assert.equal(pool.pending, 0);
});

test('workers that cannot start fail the requests with EIO instead of keeping them', async (t) => {
  const { pool, losses } = testPool(t, { worker: new URL('./no-such-worker.js', import.meta.url) });
  const results = await Promise.all(Array.from({ length: 5 }, () => pool.run('nothing')));
  assert.deepEqual(results, results.map(() => -E.IO));
  assert.ok(losses.length > 0);
  assert.match(losses[0]!.reason, /no-such-worker/);
  assert.equal(await pool.run('nothing'), -E.IO, 'and so does the next one');
});

test('close lets running and waiting requests finish and ends the threads', async (t) => {
  const { pool, losses } = testPool(t, { threads: 1 });
  const requests = [pool.run('sleep', 20), pool.run('nothing')];
  const closed = pool.close();
  assert.equal(await pool.run('nothing'), -E.IO, 'a closed pool takes nothing');
  assert.deepEqual(await Promise.all(requests), [0, 7]);
  await closed;
  assert.equal(pool.stats.threads, 0);
  assert.deepEqual(losses, []);
  await pool.close();
});

test('close gives up on a call that does not return: it stays unanswered, waiting ones fail', async (t) => {
  const { pool, losses } = testPool(t, { threads: 1 });
  await pool.run('nothing');
  let answered = false;
  void pool.run('sleep', 600).then(() => (answered = true));
  const waiting = pool.run('nothing');
  await pool.close(10);
  assert.equal(await waiting, -E.IO);
  assert.equal(answered, false, 'its memory is still in use');
  assert.deepEqual(losses, []);
});

test('a pool that was never used closes at once', async (t) => {
  const { pool } = testPool(t);
  await pool.close();
  assert.equal(pool.stats.threads, 0);
});

test('a pool that is loaded with its first call answers those that come meanwhile, and is closed after them', async (t) => {
  const pool = new PoolOnDemand({ threads: 1 });
  const fd = openScratch(t, 'early', '0123456789');
  const memory = iovec(t, 2);
  const results = [0, 2, 4].map((at) => pool.run('read', fd, memory.address, 1, at, 0));
  const closed = pool.close();
  assert.deepEqual(await Promise.all(results), [2, 2, 2]);
  await closed;
  assert.equal(await pool.run('read', fd, memory.address, 1, 0, 0), -E.IO);
  const unused = new PoolOnDemand({ threads: 1 });
  await unused.close();
  assert.equal(await unused.run('fsync', fd), -E.IO, 'nothing is loaded any more');
});

test('a pool that cannot be loaded is EIO for each call, and one line each time', async () => {
  const losses: WorkerLoss[] = [];
  const pool = new PoolOnDemand({ threads: 0, onWorkerLost: (loss) => losses.push(loss) });
  assert.deepEqual(await Promise.all([pool.run('fsync', -1), pool.run('fsync', -1)]), [-E.IO, -E.IO]);
  assert.equal(losses.length, 1);
  assert.equal(await pool.run('fsync', -1), -E.IO);
  assert.equal(losses.length, 2);
  await pool.close();
});
