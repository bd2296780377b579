/**
 * A result of the file system is an errno below zero or no more than the guest has asked for: anything else never reaches a guest. A READ that were
 * answered so would show the guest what its pages held before, an OPEN another one's handle.
 *
 * What else fails for the same reason: an error of memory has the other sign than one of node:fs (READ, WRITE, FALLOCATE, an open that truncates); an error
 * without a number (0) is a success; codes of libuv (−3008) and PENDING are no errno; NaN and fractions are no bytes; a copy is as long as its length, not its size.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { SysError } from '../../src/ffi/errors.js';
import { OPERATIONS } from '../../src/fuse/ops.js';
import type { FileSystem, FileSystemRequest } from '../../src/storage/filesystem.js';
import { MemoryBudget } from '../../src/storage/object/memory-budget.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';

const ROOT = 1n;
type Method = (r: FileSystemRequest) => number;

/** Arguments that every operation decodes. */
const argsOf = (code: number, bytes: number): Uint8Array => {
  const args = new Uint8Array(bytes);
  if (code === OP.READ || code === OP.READDIR || code === OP.READDIRPLUS) new DataView(args.buffer).setUint32(16, 64, true);
  return concat(args, name('one'), name('two'));
};

for (const late of [false, true]) {
  test(`a result that nobody has asked for is EIO and a line about a defect, for every operation${late ? ' that is answered later' : ''}`, async () => {
    const guest = await TestGuest.start();
    try {
      let result = 0;
      const method: Method = (r) => {
        if (!late) return result;
        r.defer();
        queueMicrotask(() => r.complete(result));
        return -0x40000000;
      };
      const methods = guest.fs as unknown as Record<string, unknown>;
      for (const key of Object.keys(methods)) {
        if (typeof methods[key] === 'function' && !['reset', 'cancelWaiting', 'interrupt', 'forget'].includes(key)) methods[key] = method;
      }
      const wrong = [E.NOMEM + 65536, NaN, 0.5 - 1024, -512, -3008, -0x7fffffff, Infinity];
      for (const op of OPERATIONS) {
        for (result of wrong) {
          const { error } = await guest.call(op.code, ROOT, argsOf(op.code, op.in), 512);
          assert.ok(error === -E.IO || error === -E.INVAL, `${op.name} ${result}: ${error}`);
        }
      }
      assert.ok(guest.log.filter((line) => line.startsWith('defect:')).length > OPERATIONS.length, 'each was told');
      for (const [code, args] of [[OP.OPEN, u32(2, 0)], [OP.FSYNC, new Uint8Array(16)], [OP.LOOKUP, name('x')], [OP.GETATTR, new Uint8Array(16)]] as const) {
        result = 1;
        assert.equal((await guest.call(code, ROOT, args, 512)).error, -E.IO, `operation ${code} has no bytes to count`);
      }
      result = 65;
      assert.equal((await guest.read(ROOT, 0n, 0, 64)).error, -E.IO, 'more than was asked for');
      result = 64;
      assert.equal((await guest.read(ROOT, 0n, 0, 64)).error, 0);
    } finally {
      await guest.close();
    }
  });
}

test('COPY_FILE_RANGE is bounded by its length, and tells of no more', async () => {
  const guest = await TestGuest.start();
  try {
    writeFileSync(join(guest.directory, 'from'), 'content');
    writeFileSync(join(guest.directory, 'to'), '');
    const from = (await guest.lookup(ROOT, 'from')).node;
    const to = (await guest.lookup(ROOT, 'to')).node;
    const fhs = [await guest.open(from), await guest.open(to)];
    const args = concat(u64(fhs[0], 0, to, fhs[1], 0, 7, 0));
    assert.equal((await guest.call(OP.COPY_FILE_RANGE, from, args, 8)).data.getUint32(0, true), 7);
    (guest.fs as { copyFileRange: FileSystem['copyFileRange'] }).copyFileRange = () => 8;
    assert.equal((await guest.call(OP.COPY_FILE_RANGE, from, args, 8)).error, -E.IO);
    assert.equal((await guest.call(53, from, args, 8)).error, -E.IO);
  } finally {
    await guest.close();
  }
});

/** What a failing mmap(2), a call without an errno and a name that does not resolve throw. */
const THROWN = [
  [new SysError(E.NOMEM, 'mmap', '4096 bytes'), -E.NOMEM],
  [Object.assign(new Error('ENOMEM'), { errno: -E.NOMEM, syscall: 'read' }), -E.NOMEM],
  [new SysError(0, 'mmap'), -E.IO],
  [Object.assign(new Error('ENOTFOUND'), { errno: -3008, syscall: 'getaddrinfo' }), -E.IO],
] as const;

for (const [thrown, error] of THROWN) {
  test(`${thrown.message} while an object is read is an errno, and no bytes`, async (t) => {
    const store = new MemoryStore();
    await store.put('file', Buffer.alloc(4096, 'x'));
    const guest = await ObjectGuest.start(store, { write: null });
    try {
      const { node } = await guest.lookup(ROOT, 'file');
      const fh = await guest.open(node, 0);
      for (const key of ['take', 'tryTake'] as const) t.mock.method(MemoryBudget.prototype, key, () => { throw thrown; });
      assert.equal((await guest.read(node, fh, 0, 4096)).error, error);
    } finally {
      t.mock.restoreAll();
      await guest.close();
    }
  });
}
