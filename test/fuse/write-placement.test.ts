/**
 * A write goes where the guest says: WRITE's offset, write_flags and present flags of the open file description, and not what the file was
 * opened with.
 *
 * The same mistake could be made with: page write-back through a handle that appends, O_APPEND set or cleared since the open, appends of a guest that
 * does not know how long the file is, two handles of which one appends, --writeback, O_DIRECT set or cleared since the open, O_DIRECT appends in
 * several requests, O_DSYNC of a single write (RWF_DSYNC), copy_file_range and fallocate on a handle that appends, files that are append-only on the host.
 */
import assert from 'node:assert/strict';
import { appendFileSync, closeSync, mkdtempSync, openSync, readFileSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { O_APPEND, O_DIRECT, O_DSYNC, O_RDWR, O_SYNC, O_WRONLY } from '../../src/ffi/constants.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import type { LocalOptions, StepPool } from '../../src/storage/local/share.js';
import { STEPS, type Step } from '../../src/storage/local/steps.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest } from '../support/guest.js';

const ROOT = 1n;
const WRITE_CACHE = 1;
const RWF_DSYNC = 2;
const RWF_SYNC = 4;
const PAGE = 4096;
const MIB = 1 << 20;
const text = (s: string): Uint8Array => new TextEncoder().encode(s);

interface File {
  readonly g: TestGuest;
  readonly path: string;
  readonly node: bigint;
  readonly fh: bigint;
}

/** Runs each step at once in this thread, and notes it. */
class NotedSteps implements StepPool {
  readonly noted: { step: Step; args: number[] }[] = [];

  run(step: Step, ...args: number[]): Promise<number> {
    this.noted.push({ step, args });
    return Promise.resolve((STEPS[step] as (...args: number[]) => number)(...args));
  }
}

/** A guest that has opened "f" with these flags. The directory is on a disk: a tmpfs takes any O_DIRECT. */
async function withFile(flags: number, options: Partial<LocalOptions>, threads: number | StepPool, body: (f: File) => Promise<void>): Promise<void> {
  const directory = mkdtempSync('/var/tmp/bucketfsd-placement-');
  const g = await TestGuest.start({ ...options, directory }, threads);
  try {
    const { entry, fh } = await g.create(ROOT, 'f', flags);
    await body({ g, path: join(directory, 'f'), node: entry.node, fh });
  } finally {
    await g.close();
    rmSync(directory, { recursive: true, force: true });
  }
}

/** A WRITE that is done in full, whatever flags the file was opened with. */
async function write(f: File, offset: number, data: Uint8Array, flags: number, writeFlags = 0, fh = f.fh): Promise<void> {
  const { error, data: reply } = await f.g.write(f.node, fh, offset, data, data.length, writeFlags, flags);
  assert.equal(error, 0);
  assert.equal(reply.getUint32(0, true), data.length);
}

const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_APPEND_FL = 0x20;

function setAppendOnly(path: string, on: boolean): boolean {
  const memory = NativeMemory.allocate(16);
  const fd = openSync(path, 'r');
  try {
    if (c.ioctl(fd, FS_IOC_GETFLAGS, memory.address) !== 0) return false;
    memory.u32[0] = on ? memory.u32[0] | FS_APPEND_FL : memory.u32[0] & ~FS_APPEND_FL;
    return c.ioctl(fd, FS_IOC_SETFLAGS, memory.address) === 0;
  } finally {
    closeSync(fd);
    memory.free();
  }
}

function appendOnlyMissing(): string | false {
  const directory = mkdtempSync('/var/tmp/bucketfsd-placement-');
  const file = join(directory, 'f');
  writeFileSync(file, '');
  const there = setAppendOnly(file, true);
  setAppendOnly(file, false);
  rmSync(directory, { recursive: true });
  return there ? false : 'this file system or user has no append-only files';
}

const APPEND_ONLY_MISSING = appendOnlyMissing();

const WAYS: readonly (readonly [way: string, options: Partial<LocalOptions>, threads: number])[] = [
  ['without a pool', {}, 0], ['with a pool', {}, 2], ['in the pool', { offload: 'always' }, 2],
];

for (const [way, options, threads] of WAYS) {
  test(`${way}: a page that is written back through a handle that appends goes to its offset`, () =>
    withFile(O_RDWR | O_APPEND, options, threads, async (f) => {
      // ftruncate to 1,024, a shared mapping filled, msync
      truncateSync(f.path, 1024);
      await write(f, 0, new Uint8Array(1024).fill(7), 0, WRITE_CACHE);
      assert.deepEqual(readFileSync(f.path), Buffer.alloc(1024, 7));
      // a write beside the mapping
      await write(f, 1024, text('appended'), O_RDWR | O_APPEND);
      await write(f, 0, text('mapped'), 0, WRITE_CACHE);
      assert.deepEqual(readFileSync(f.path), Buffer.concat([text('mapped'), Buffer.alloc(1018, 7), text('appended')]));
    }));

  test(`${way}: O_APPEND that is cleared after the open does not append, and one that is set does`, () =>
    withFile(O_RDWR | O_APPEND, options, threads, async (f) => {
      await write(f, 0, text('0123456789'), O_RDWR | O_APPEND);
      await write(f, 2, text('XX'), O_RDWR);
      assert.equal(readFileSync(f.path, 'utf8'), '01XX456789');
      const plain = await f.g.open(f.node, O_WRONLY);
      appendFileSync(f.path, 'host');
      await write(f, 10, text('end'), O_WRONLY | O_APPEND, 0, plain);
      await write(f, 0, text('YY'), O_WRONLY, 0, plain);
      assert.equal(readFileSync(f.path, 'utf8'), 'YYXX456789hostend');
    }));

  test(`${way}: who appends without knowing how long the file has become writes at its end, and overwrites nothing`, () =>
    withFile(O_WRONLY | O_APPEND, options, threads, async (f) => {
      for (let i = 0; i < 5; i++) {
        await write(f, i, text('g'), O_WRONLY | O_APPEND);
        appendFileSync(f.path, 'h');
      }
      assert.equal(readFileSync(f.path, 'utf8'), 'ghghghghgh');
      truncateSync(f.path, 2);
      await write(f, 10, text('G'), O_WRONLY | O_APPEND);
      assert.equal(readFileSync(f.path, 'utf8'), 'ghG', 'a log that was cut has no hole');
    }));

  test(`${way}: with --writeback the guest's offset counts, also for what it writes past its cache`, () =>
    withFile(O_RDWR | O_APPEND, { ...options, writeback: true }, threads, async (f) => {
      // What is before this is dirty in the guest
      await write(f, PAGE, text('direct'), O_RDWR | O_APPEND | O_DIRECT);
      await write(f, 0, new Uint8Array(PAGE).fill(1), 0, WRITE_CACHE);
      assert.deepEqual(readFileSync(f.path), Buffer.concat([Buffer.alloc(PAGE, 1), text('direct')]));
    }));

  test(`${way}: O_DIRECT counts as it is now, not as it was at the open`, () =>
    withFile(O_RDWR | O_DIRECT, { ...options, allowDirectIo: true }, threads, async (f) => {
      const odd = async (flags: number, writeFlags = 0): Promise<number> => (await f.g.write(f.node, f.fh, 1, text('odd'), 3, writeFlags, flags)).error;
      assert.equal(await odd(O_RDWR | O_DIRECT), -E.INVAL, 'the host wants aligned blocks');
      assert.equal(await odd(O_RDWR), 0);
      assert.equal(await odd(O_RDWR | O_DIRECT), -E.INVAL);
      // The last page of a mapped file ends where the file ends
      assert.equal(await odd(0, WRITE_CACHE), 0);
      assert.equal((await f.g.read(f.node, f.fh, 1, 3, 3, O_RDWR | O_DIRECT)).error, -E.INVAL);
      assert.deepEqual(Buffer.from((await f.g.read(f.node, f.fh, 1, 3, 3, O_RDWR)).data.buffer).subarray(16, 19), Buffer.from('odd'));
      const plain = await f.g.open(f.node, O_RDWR);
      assert.equal((await f.g.write(f.node, plain, 1, text('odd'), 3, 0, O_RDWR | O_DIRECT)).error, -E.INVAL);
      assert.equal((await f.g.write(f.node, plain, 1, text('odd'), 3, 0, O_RDWR)).error, 0);
    }));

  test(`${way}: an O_DIRECT append in several requests keeps their order, whichever comes first`, () =>
    withFile(O_WRONLY | O_APPEND, options, threads, async (f) => {
      const flags = O_WRONLY | O_APPEND | O_DIRECT;
      const pieces = [0, 1, 2, 3].map((i) => Buffer.alloc(MIB / 16, i + 1));
      const { queue } = f.g;
      writeFileSync(f.path, 'head');
      for (const order of [[0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]]) {
        const start = readFileSync(f.path).length;
        for (const i of order) {
          const args = concat(u64(f.fh, start + i * pieces[i].length), u32(pieces[i].length, 0), u64(0), u32(flags, 0), pieces[i]);
          queue.chain([f.g.request(OP.WRITE, f.node, args).bytes], [16, 8], true);
        }
        queue.kick();
        await queue.wait(order.length);
        assert.ok(readFileSync(f.path).subarray(start).equals(Buffer.concat(pieces)), `sent in the order ${order}`);
      }
      // And it still is an append: the host has made the file longer
      const known = readFileSync(f.path).length;
      appendFileSync(f.path, 'host');
      await write(f, known, text('guest'), flags);
      assert.equal(readFileSync(f.path).subarray(known).toString(), 'hostguest');
    }));

  test(`${way}: copy_file_range and fallocate work on a handle whose O_APPEND has been cleared`, () =>
    withFile(O_RDWR | O_APPEND, options, threads, async (f) => {
      await write(f, 0, text('abcdef'), O_RDWR | O_APPEND);
      const copied = await f.g.call(OP.COPY_FILE_RANGE, f.node, concat(u64(f.fh, 0, f.node, f.fh, 4, 2, 0)), 8);
      assert.equal(copied.error, 0);
      assert.equal(readFileSync(f.path, 'utf8'), 'abcdab');
      assert.equal((await f.g.call(OP.FALLOCATE, f.node, concat(u64(f.fh, 0, 10), u32(0, 0)), 0)).error, 0);
      assert.equal(readFileSync(f.path).length, 10);
    }));

  test(`${way}: a file that is append-only on the host can be appended to, and nothing else`, { skip: APPEND_ONLY_MISSING }, () =>
    withFile(O_RDWR, options, threads, async (f) => {
      await write(f, 0, text('log\n'), O_RDWR);
      setAppendOnly(f.path, true);
      try {
        assert.equal((await f.g.call(OP.OPEN, f.node, u32(O_WRONLY, 0), 16)).error, -E.PERM);
        const fh = await f.g.open(f.node, O_WRONLY | O_APPEND);
        await write(f, 4, text('line\n'), O_WRONLY | O_APPEND, 0, fh);
        assert.equal((await f.g.write(f.node, fh, 0, text('X'), 1, 0, O_WRONLY)).error, -E.PERM, 'O_APPEND cleared');
        assert.equal((await f.g.write(f.node, fh, 0, text('X'), 1, WRITE_CACHE, 0)).error, -E.PERM, 'mapped');
        assert.equal(readFileSync(f.path, 'utf8'), 'log\nline\n');
      } finally {
        setAppendOnly(f.path, false);
      }
    }));
}

test('a write that the guest wants on the disk is written so, whatever the file was opened with', async () => {
  const steps = new NotedSteps();
  await withFile(O_RDWR, {}, steps, async (f) => {
    const flagsOf = async (flags: number, writeFlags = 0): Promise<number | undefined> => {
      steps.noted.length = 0;
      await write(f, 0, text('x'), flags, writeFlags);
      return steps.noted.find(({ step }) => step === 'write')?.args[4];
    };
    assert.equal(await flagsOf(O_RDWR), undefined, 'inline');
    assert.equal(await flagsOf(O_RDWR | O_DSYNC), RWF_DSYNC);
    assert.equal(await flagsOf(O_RDWR | O_SYNC), RWF_DSYNC | RWF_SYNC);
  });
});
