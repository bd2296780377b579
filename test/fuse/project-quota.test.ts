/**
 * A guest stays in the project quota that the host has given its files.
 *
 * Ways out: FS_IOC_FSSETXATTR of another project id or without FS_XFLAG_PROJINHERIT; FS_IOC_SETFLAGS without FS_PROJINHERIT_FL; a directory that the guest makes,
 * then changes; a hard link or a rename out of the project (the host's kernel refuses both, EXDEV). By name, by handle, inline, in the pool.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { mkdirSync, mkdtempSync, rmSync, truncateSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const IOCTL = 39;
const FS_IOC_GETFLAGS = 0x80086601;
const FS_IOC_SETFLAGS = 0x40086602;
const FS_IOC_FSGETXATTR = 0x801c581f;
const FS_IOC_FSSETXATTR = 0x401c5820;
const FS_PROJINHERIT_FL = 0x20000000;
const FS_NOATIME_FL = 0x80;
const FS_XFLAG_PROJINHERIT = 0x200;
const FS_XFLAG_NOATIME = 0x40;
const DIRECTORY = 1 << 4; // FUSE_IOCTL_DIR
const PROJECT = 4711;

interface Inode {
  readonly node: bigint;
  readonly fh: bigint;
  readonly directory: boolean;
}

async function ioctl(g: TestGuest, { node, fh, directory }: Inode, command: number, argument: Uint8Array, room: number): Promise<{ error: number; words: number[] }> {
  const reply = await g.call(IOCTL, node, concat(u64(fh), u32(directory ? DIRECTORY : 0, command), u64(0), u32(argument.length, room), argument), 16 + room);
  const words: number[] = [];
  for (let at = 16; at + 4 <= reply.data.byteLength; at += 4) words.push(reply.data.getUint32(at, true));
  return { error: reply.error, words };
}

describe('project quota', { skip: process.getuid!() !== 0 && 'needs root, to mount' }, () => {
  const base = mkdtempSync(join(tmpdir(), 'bucketfsd-project-'));
  const point = join(base, 'mounted');

  before(() => {
    const image = join(base, 'image');
    writeFileSync(image, '');
    truncateSync(image, 320 << 20);
    // XFS has project ids also where the kernel has no quotas
    execFileSync('mkfs.xfs', ['-q', '-f', '-K', image]);
    mkdirSync(point);
    execFileSync('mount', ['-o', 'loop', image, point]);
  });
  after(() => {
    spawnSync('umount', ['-l', point]);
    rmSync(base, { recursive: true, force: true });
  });

  /** A directory in the project, which the host has set, and a file in it. */
  async function withProject(threads: number, offload: 'auto' | 'always', allowProjectIds: boolean, body: (g: TestGuest, inodes: Inode[]) => Promise<void>): Promise<void> {
    const directory = mkdtempSync(join(point, 'share-'));
    mkdirSync(join(directory, 'd'));
    execFileSync('chattr', ['-p', String(PROJECT), '+P', join(directory, 'd')]);
    writeFileSync(join(directory, 'd', 'f'), 'content');
    const g = await TestGuest.start({ directory, offload, allowProjectIds }, threads);
    try {
      const d = await g.lookup(ROOT, 'd');
      const f = await g.lookup(d.node, 'f');
      const opened = await g.call(OP.OPENDIR, d.node, u32(0, 0), 16);
      await body(g, [
        { node: d.node, fh: opened.data.getBigUint64(0, true), directory: true },
        { node: f.node, fh: await g.open(f.node), directory: false },
      ]);
    } finally {
      await g.close();
    }
  }

  for (const [way, threads, offload] of [['inline', 0, 'auto'], ['as steps', 1, 'always']] as const) {
    test(`${way}: project id and inheritance stay what the host has set, and other flags can be changed`, () =>
      withProject(threads, offload, false, async (g, inodes) => {
        for (const inode of inodes) {
          const { words } = await ioctl(g, inode, FS_IOC_FSGETXATTR, new Uint8Array(0), 28);
          assert.equal(words[3], PROJECT);
          for (const other of [0, 1, PROJECT + 1, 0xffffffff]) {
            assert.equal((await ioctl(g, inode, FS_IOC_FSSETXATTR, u32(words[0], 0, 0, other, 0, 0, 0), 0)).error, -E.PERM, `project ${other}`);
          }
          assert.equal((await ioctl(g, inode, FS_IOC_FSSETXATTR, u32(words[0] ^ FS_XFLAG_PROJINHERIT, 0, 0, PROJECT, 0, 0, 0), 0)).error, -E.PERM);
          assert.equal((await ioctl(g, inode, FS_IOC_FSSETXATTR, u32(words[0] | FS_XFLAG_NOATIME, 0, 0, PROJECT, 0, 0, 0), 0)).error, 0);
          const [flags] = (await ioctl(g, inode, FS_IOC_GETFLAGS, new Uint8Array(0), 4)).words;
          assert.equal((await ioctl(g, inode, FS_IOC_SETFLAGS, u32((flags ^ FS_PROJINHERIT_FL) >>> 0, 0), 0)).error, -E.PERM);
          assert.equal((await ioctl(g, inode, FS_IOC_SETFLAGS, u32((flags & ~FS_NOATIME_FL) >>> 0, 0), 0)).error, 0);
          const now = (await ioctl(g, inode, FS_IOC_FSGETXATTR, new Uint8Array(0), 28)).words;
          assert.deepEqual([now[0], now[3]], [words[0], PROJECT]);
        }
        const [d, f] = inodes;
        assert.equal((await g.call(OP.LINK, ROOT, concat(u64(f.node), name('out')), 128)).error, 0, 'the host allows it: the file stays in its project');
        const made = g.entry(await g.call(OP.MKDIR, d.node, concat(u32(0o755, 0), name('made')), 128));
        const opened = await g.call(OP.OPENDIR, made.node, u32(0, 0), 16);
        const inode = { node: made.node, fh: opened.data.getBigUint64(0, true), directory: true };
        const { words } = await ioctl(g, inode, FS_IOC_FSGETXATTR, new Uint8Array(0), 28);
        assert.deepEqual([words[3], words[0] & FS_XFLAG_PROJINHERIT], [PROJECT, FS_XFLAG_PROJINHERIT], 'what a guest makes inherits it');
        assert.equal((await ioctl(g, inode, FS_IOC_FSSETXATTR, u32(words[0] & ~FS_XFLAG_PROJINHERIT, 0, 0, 0, 0, 0, 0), 0)).error, -E.PERM);
      }));

    test(`${way}: with the option a guest may change both`, () =>
      withProject(threads, offload, true, async (g, inodes) => {
        for (const inode of inodes) {
          assert.equal((await ioctl(g, inode, FS_IOC_FSSETXATTR, u32(0, 0, 0, 7, 0, 0, 0), 0)).error, 0);
          assert.equal((await ioctl(g, inode, FS_IOC_FSGETXATTR, new Uint8Array(0), 28)).words[3], 7);
        }
      }));
  }
});
