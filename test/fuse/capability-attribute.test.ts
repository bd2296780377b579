/**
 * A file's capabilities go with its old content and owner, also where --xattrmap has renamed the attribute, so that the host's kernel does not know it.
 *
 * Every way to new content is one: WRITE, FALLOCATE (all modes), COPY_FILE_RANGE into the file, OPEN and CREATE with O_TRUNC, SETATTR of the size by name and by
 * handle; a new owner is another. Each is done inline, in the pool, and as steps. What changes neither leaves the attribute: mode, times, reading, a copy out of it.
 */
import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { parseXattrMap } from '../../src/storage/local/xattrmap.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const CAPABILITY = Uint8Array.of(1, 0, 0, 2, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0);
const FATTR = { MODE: 1, UID: 2, GID: 4, SIZE: 8, MTIME: 32, FH: 64 } as const;
const O_TRUNC = 0o1000;
const O_DSYNC = 0o10000;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const COLLAPSE = 8;

interface File {
  readonly g: TestGuest;
  readonly node: bigint;
  readonly fh: bigint;
  readonly other: { readonly node: bigint; readonly fh: bigint };
}

const setattr = ({ node, fh, g }: File, valid: number, size = 1): Promise<{ error: number }> =>
  g.call(OP.SETATTR, node, concat(u32(valid, 0), u64(fh, size, 0, 0, 0, 0), u32(0, 0, 0, 0o755, 0, 4, 4, 0)), 104);
const copy = (g: TestGuest, from: File['other'], to: File['other'], code: number): Promise<{ error: number }> =>
  g.call(code, from.node, u64(from.fh, 0, to.node, to.fh, 0, 4, 0), 8);
const fallocate = ({ g, node, fh }: File, mode: number, offset: number, length: number): Promise<{ error: number }> =>
  g.call(OP.FALLOCATE, node, concat(u64(fh, offset, length), u32(mode, 0)), 0);

const CHANGES: readonly (readonly [string, (f: File) => Promise<{ error: number }>])[] = [
  ['WRITE', ({ g, node, fh }) => g.write(node, fh, 0, Uint8Array.of(1))],
  ['WRITE with O_DSYNC', ({ g, node, fh }) => g.write(node, fh, 0, Uint8Array.of(1), 1, 0, O_DSYNC)],
  ['FALLOCATE', (f) => fallocate(f, 0, 0, 1 << 20)],
  ['FALLOCATE that punches a hole', (f) => fallocate(f, PUNCH_HOLE | KEEP_SIZE, 0, 4096)],
  ['FALLOCATE that fails', async (f) => ({ error: (await fallocate(f, COLLAPSE, 1, 1)).error < 0 ? 0 : -E.IO })],
  ['COPY_FILE_RANGE', (f) => copy(f.g, f.other, f, OP.COPY_FILE_RANGE)],
  ['COPY_FILE_RANGE_64', (f) => copy(f.g, f.other, f, 53)],
  ['OPEN with O_TRUNC', ({ g, node }) => g.call(OP.OPEN, node, u32(2 | O_TRUNC, 0), 16)],
  ['CREATE with O_TRUNC of what is there', ({ g }) => g.call(OP.CREATE, ROOT, concat(u32(2 | O_TRUNC | 0o100, 0o100644, 0o22, 0), name('f')), 144)],
  ['a new size by name', (f) => setattr(f, FATTR.SIZE)],
  ['a new size by handle', (f) => setattr(f, FATTR.SIZE | FATTR.FH)],
  ['a new owner', (f) => setattr(f, FATTR.UID)],
  ['a new group', (f) => setattr(f, FATTR.GID)],
];

const OTHERS: typeof CHANGES = [
  ['a new mode', (f) => setattr(f, FATTR.MODE)],
  ['new times', (f) => setattr(f, FATTR.MTIME)],
  ['READ', ({ g, node, fh }) => g.read(node, fh, 0, 4)],
  ['OPEN', ({ g, node }) => g.call(OP.OPEN, node, u32(2, 0), 16)],
  ['a copy out of it', (f) => copy(f.g, f, f.other, OP.COPY_FILE_RANGE)],
];

async function withFile(threads: number, offload: 'auto' | 'always', body: (f: File, has: () => Promise<boolean>) => Promise<void>): Promise<void> {
  const g = await TestGuest.start({ xattrMap: parseXattrMap(':map::user.virtiofs.:'), offload }, threads);
  try {
    const at = async (text: string): Promise<File['other']> => {
      writeFileSync(join(g.directory, text), 'content');
      const { node } = await g.lookup(ROOT, text);
      return { node, fh: await g.open(node) };
    };
    const [mine, other] = [await at('f'), await at('other')];
    const set = await g.call(OP.SETXATTR, mine.node, concat(u32(CAPABILITY.length, 0, 0, 0), name('security.capability'), CAPABILITY), 0);
    assert.equal(set.error, 0);
    await body({ g, ...mine, other }, async () => {
      const { error } = await g.call(OP.GETXATTR, mine.node, concat(u32(64, 0), name('security.capability')), 64);
      assert.ok(error === 0 || error === -E.NODATA, `${error}`);
      return error === 0;
    });
  } finally {
    await g.close();
  }
}

for (const [way, threads, offload] of [['inline', 0, 'auto'], ['in the pool', 1, 'auto'], ['as steps', 1, 'always']] as const) {
  test(`${way}: whatever changes content or owner takes a renamed security.capability along, and nothing else does`, async () => {
    for (const [what, change] of CHANGES) {
      await withFile(threads, offload, async (f, has) => {
        assert.ok(await has());
        assert.equal((await change(f)).error, 0, what);
        assert.equal(await has(), false, what);
      });
    }
    for (const [what, other] of OTHERS) {
      await withFile(threads, offload, async (f, has) => {
        assert.equal((await other(f)).error, 0, what);
        assert.ok(await has(), what);
      });
    }
  });
}
