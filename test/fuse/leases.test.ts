/**
 * A lease that a process of the host has on a file (fcntl F_SETLEASE) keeps waiting who asks for that file, and nobody else; the daemon ends all the same.
 *
 * What else the host's kernel would wait for a lease in: every open (with O_TRUNC, by CREATE, of a node without a descriptor, of a lock's owner), truncate(2) by name. Inline, as
 * steps in the pool. The wait ends when the lease does, by INTERRUPT, when rings are drained.
 */
import assert from 'node:assert/strict';
import { closeSync, openSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import type { FileSystemRequest } from '../../src/storage/filesystem.js';
import { LEASED, Leases } from '../../src/storage/local/leases.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const F_SETSIG = 10;
const F_SETLEASE = 1024;
const F_RDLCK = 0;
const F_WRLCK = 1;
const F_UNLCK = 2;
/** Nobody minds it; the signal of a lease that is to be given up would be SIGIO, which ends a process. */
const SIGURG = 23;
const O_TRUNC = 0o1000;
const FATTR_SIZE = 8;

/** The host's: this process, which has the daemon in it too. */
class Lease {
  readonly #fd: number;

  constructor(path: string, type: number) {
    this.#fd = openSync(path, type === F_RDLCK ? 'r' : 'r+');
    c.check(c.fcntl(this.#fd, F_SETSIG, SIGURG), 'fcntl(F_SETSIG)');
    c.check(c.fcntl(this.#fd, F_SETLEASE, type), 'fcntl(F_SETLEASE)');
  }

  end(): void {
    c.fcntl(this.#fd, F_SETLEASE, F_UNLCK);
    closeSync(this.#fd);
  }
}

class LeasedFile {
  readonly path: string;

  constructor(
    readonly g: TestGuest,
    readonly node: bigint,
  ) {
    this.path = join(g.directory, 'f');
  }

  static async with(threads: number, offload: 'auto' | 'always', body: (l: LeasedFile) => Promise<void>): Promise<void> {
    const g = await TestGuest.start({ offload }, threads);
    try {
      writeFileSync(join(g.directory, 'f'), 'content');
      await body(new LeasedFile(g, (await g.lookup(ROOT, 'f')).node));
    } finally {
      await g.close();
    }
  }

  offer(opcode: number, node: bigint, args: Uint8Array): { head: number; unique: bigint; error: () => number } {
    const { bytes, unique } = this.g.request(opcode, node, args);
    const { head, writable } = this.g.queue.chain([bytes], [176], true);
    return { head, unique, error: () => this.g.memory.dv.getInt32(writable[0] + 4, true) };
  }

  /** Others are served, `request` is not. */
  async waits(request: { head: number }): Promise<void> {
    for (let i = 0; i < 20; i++) {
      const other = this.offer(OP.GETATTR, ROOT, new Uint8Array(16));
      this.g.queue.kick();
      assert.equal((await this.g.queue.wait())[0].head, other.head);
      assert.notEqual(other.head, request.head);
    }
  }
}

const REQUESTS: readonly (readonly [string, lease: number, opcode: number, root: boolean, args: (fh: bigint) => Uint8Array, content: string])[] = [
  ['OPEN', F_WRLCK, OP.OPEN, false, () => u32(0, 0), 'content'],
  ['OPEN for writing', F_RDLCK, OP.OPEN, false, () => u32(2, 0), 'content'],
  ['OPEN with O_TRUNC', F_RDLCK, OP.OPEN, false, () => u32(2 | O_TRUNC, 0), ''],
  ['CREATE of what is there', F_WRLCK, OP.CREATE, true, () => concat(u32(0o102, 0o100644, 0o22, 0), name('f')), 'content'],
  ['SETATTR of the size by name', F_RDLCK, OP.SETATTR, false, () => concat(u32(FATTR_SIZE, 0), u64(0, 3, 0, 0, 0, 0), u32(0, 0, 0, 0, 0, 0, 0, 0)), 'con'],
];

for (const [way, threads, offload] of [['inline, without a pool', 0, 'auto'], ['inline', 1, 'auto'], ['as steps', 1, 'always']] as const) {
  test(`${way}: who asks for a leased file waits until the lease is given up, and nobody else does`, async () => {
    for (const [what, type, opcode, root, args, content] of REQUESTS) {
      await LeasedFile.with(threads, offload, async (l) => {
        const lease = new Lease(l.path, type);
        const request = l.offer(opcode, root ? ROOT : l.node, args(0n));
        l.g.queue.kick();
        await l.waits(request);
        lease.end();
        assert.equal((await l.g.queue.wait())[0].head, request.head, what);
        assert.equal(request.error(), 0, what);
        assert.equal(readFileSync(l.path, 'utf8'), content, what);
      });
    }
  });

  test(`${way}: a frontend that goes ends the wait, though the lease stays`, async () => {
    let lease: Lease | null = null;
    await LeasedFile.with(threads, offload, async (l) => {
      lease = new Lease(l.path, F_WRLCK);
      const request = l.offer(OP.OPEN, l.node, u32(0, 0));
      l.g.queue.kick();
      await l.waits(request);
    });
    lease!.end();
  });

  test(`${way}: INTERRUPT ends the wait with EINTR`, () =>
    LeasedFile.with(threads, offload, async (l) => {
      const lease = new Lease(l.path, F_WRLCK);
      const request = l.offer(OP.OPEN, l.node, u32(2 | O_TRUNC, 0));
      l.offer(OP.OPEN, l.node, u32(0, 0));
      l.g.queue.kick();
      await l.waits(request);
      let ended = false;
      // Sent again as Linux does where it met the request between two attempts
      while (!ended) {
        const interrupt = l.offer(OP.INTERRUPT, 0n, u64(request.unique));
        l.g.queue.kick();
        const used = await l.g.queue.wait(1);
        if (used[0].head === interrupt.head) await turn();
        ended = [...used, ...l.g.queue.take()].some(({ head }) => head === request.head);
      }
      assert.equal(request.error(), -E.INTR);
      lease.end();
      assert.equal(readFileSync(l.path, 'utf8'), 'content');
    }));
}

test('beyond 1,024 requests that wait for leases a request is EAGAIN', async () => {
  const leases = new Leases();
  const waiting: Promise<number>[] = [];
  const wait = (unique: number): Promise<number> => leases.retry({ uniqueLow: unique, uniqueHigh: 0 } as FileSystemRequest, async () => LEASED);
  for (let unique = 0; unique < 1024; unique++) waiting.push(wait(unique));
  assert.equal(await wait(1024), -E.AGAIN);
  assert.ok(leases.interrupt(7, 0));
  assert.equal(await waiting[7], -E.INTR);
  leases.cancel();
  for (const result of await Promise.all(waiting)) assert.ok(result === -E.INTR || result === -E.AGAIN);
});

test('a lock whose owner cannot open the file is not to be had, and is granted when the lease is given up', () =>
  LeasedFile.with(0, 'auto', async (l) => {
    const fh = await l.g.open(l.node, 0);
    const lock = concat(u64(fh, 1, 0, 9), u32(F_RDLCK, 77, 0, 0));
    const lease = new Lease(l.path, F_RDLCK);
    assert.equal((await l.g.call(OP.SETLK, l.node, lock, 0)).error, -E.AGAIN);
    const waiting = l.offer(OP.SETLKW, l.node, lock);
    l.g.queue.kick();
    await l.waits(waiting);
    lease.end();
    assert.equal((await l.g.queue.wait())[0].head, waiting.head);
    assert.equal(waiting.error(), 0);
  }));
