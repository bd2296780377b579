import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, rmSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { AT_EMPTY_PATH, O_CLOEXEC, O_DIRECTORY, O_PATH } from '../../src/ffi/constants.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { NodeTable } from '../../src/storage/nodes.js';
import { Inodes } from '../../src/storage/local/inodes.js';
import { STATX } from '../../src/storage/statx.js';
import { EMPTY_PATH } from '../../src/storage/local/share.js';
import { ATTR_MASK } from '../../src/storage/local/steps.js';

const skip = process.getuid!() === 0 ? false : 'file handles need CAP_DAC_READ_SEARCH';
const memory = NativeMemory.allocate(8192);
const STATX_AT = 4096;

function statx(fd: number): Int32Array {
  c.check(c.statx(fd, EMPTY_PATH, AT_EMPTY_PATH, ATTR_MASK, memory.address + STATX_AT), 'statx');
  return memory.i32.subarray(STATX_AT / 4);
}

/** A share with `files` known, and room for `budget` descriptors. */
function withInodes(budget: number, files: number, body: (inodes: Inodes, slots: number[], directory: string) => void): void {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-inodes-'));
  const root = c.check(c.open(directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0), 'open');
  const proc = c.check(c.open('/proc/self/fd', O_PATH | O_DIRECTORY | O_CLOEXEC, 0), 'open');
  const inodes = new Inodes(root, proc, 'prefer', budget);
  try {
    inodes.insertRoot(statx(root));
    const slots = Array.from({ length: files }, (_, i) => {
      writeFileSync(join(directory, `f${i}`), '');
      const fd = c.check(c.openat(root, memory.putString(0, `f${i}`), O_PATH | O_CLOEXEC, 0), 'openat');
      return inodes.adopt(fd, statx(fd));
    });
    body(inodes, slots, directory);
  } finally {
    inodes.clear();
    inodes.table.close();
    c.close(root);
    c.close(proc);
    rmSync(directory, { recursive: true, force: true, maxRetries: 10 });
  }
}

test('nodes beyond the room for descriptors are traded for file handles, and reached again', { skip }, () =>
  withInodes(2, 10, (inodes, slots) => {
    assert.ok(inodes.fds <= 2);
    assert.ok(slots.filter((slot) => inodes.isEvicted(slot)).length >= 8);
    const numbers = new Set(slots.map((slot) => statx(inodes.fd(slot)).slice(STATX.INO, STATX.INO + 2).join()));
    assert.equal(numbers.size, slots.length, 'each its own inode');
    assert.ok(inodes.fds <= 2);
  }));

test('a table that has a few nodes shows V8 a few of its records, and goes on with all of them when there are more', () => {
  const table = new NodeTable();
  try {
    assert.ok(table.words.byteLength < 64 << 20, 'so many bytes more make V8 collect garbage');
    const last = table.words.length / 16 + 10;
    for (let slot = 1; slot <= last; slot++) assert.equal(table.insert(slot, 7, 0), slot);
    for (const slot of [1, 2, last - 11, last - 10, last]) {
      assert.equal(table.find(slot, 7, 0), slot);
      assert.equal(table.slotOf(slot, table.sequence(slot)), slot);
    }
    for (const low of [-1, 0, last + 1, 1 << 24, 2 ** 31, 2 ** 32 - 1]) assert.equal(table.slotOf(low, 0), -1, String(low));
  } finally {
    table.close();
  }
});

test("the descriptor of a request's node stays while the request reaches others", { skip }, () =>
  withInodes(1, 10, (inodes, slots) => {
    const fd = inodes.fdOfRequest(slots[0]);
    const before = statx(fd).slice(STATX.INO, STATX.INO + 2).join();
    for (const slot of slots.slice(1)) assert.ok(inodes.fd(slot) >= 0);
    assert.ok(!inodes.isEvicted(slots[0]));
    assert.equal(inodes.fd(slots[0]), fd);
    assert.equal(statx(fd).slice(STATX.INO, STATX.INO + 2).join(), before);
    inodes.fdOfRequest(slots[1]);
    inodes.fd(slots[2]);
    assert.ok(inodes.isEvicted(slots[0]), 'until the next request');
  }));

/** Makes and removes a file all the time, so that inode numbers just freed are given out again. */
const MAKER = `
  const { closeSync, openSync, unlinkSync } = require('node:fs');
  for (const end = Date.now() + 20000; Date.now() < end; unlinkSync(process.argv[1])) closeSync(openSync(process.argv[1], 'w'));
`;

test('a file that is gone is ESTALE by its handle, also while its inode number is given to another', { skip }, () =>
  withInodes(1, 2, (inodes, slots, directory) => {
    const [slot] = slots;
    assert.ok(inodes.isEvicted(slot));
    unlinkSync(join(directory, 'f0'));
    const child = spawn(process.execPath, ['-e', MAKER, join(directory, 'other')], { stdio: 'ignore' });
    try {
      for (const deadline = Date.now() + 10_000; !existsSync(join(directory, 'other')); ) assert.ok(Date.now() < deadline, 'nothing is made');
      const results = new Set<number>();
      for (let i = 0; i < 200_000; i++) results.add(inodes.openByHandle(slot, O_PATH));
      assert.deepEqual([...results], [-E.STALE]);
    } finally {
      child.kill('SIGKILL');
    }
  }));
