/** Other file systems mounted inside the share. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { lstatSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import type { LocalOptions } from '../../src/storage/local/share.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, TestGuest, name } from '../support/guest.js';

const ROOT = 1n;
const skip = process.getuid!() === 0 ? false : 'needs root, to mount';
const INIT_SUBMOUNTS = 1 << 27;
const FUSE_ATTR_SUBMOUNT = 1;
/** Of fuse_attr: flags; of fuse_entry_out and fuse_attr_out: the attributes. */
const ATTR_FLAGS = 84;
const ENTRY_ATTR = 40;
const ATTR_OUT_ATTR = 16;
/** Of fuse_statx_out: struct statx; of that: stx_dev_major. */
const STATX_AT = 32;
const STATX_DEV = 136;
const TMPFS_BYTES = 4 << 20;

class Mounted {
  readonly #points: string[] = [];

  constructor(readonly guest: TestGuest) {}

  /** A new tmpfs at a new directory of the share. */
  tmpfs(at: string): string {
    return this.#mount(at, '-t', 'tmpfs', '-o', `size=${TMPFS_BYTES}`, 'test');
  }

  /** A directory of the share, a second time. */
  bind(directory: string, at: string): string {
    return this.#mount(at, '--bind', join(this.guest.directory, directory));
  }

  #mount(at: string, ...options: string[]): string {
    const point = join(this.guest.directory, at);
    mkdirSync(point);
    execFileSync('mount', [...options, point]);
    this.#points.unshift(point);
    return point;
  }

  /** Whether the host could unmount it. */
  unmount(point: string): boolean {
    if (spawnSync('umount', [point]).status !== 0) return false;
    this.#points.splice(this.#points.indexOf(point), 1);
    return true;
  }

  /** At the end, whoever uses them. */
  detachAll(): void {
    for (const point of this.#points) spawnSync('umount', ['-l', point]);
  }
}

function withMounts(fact: string, options: Partial<LocalOptions>, body: (g: TestGuest, mounted: Mounted) => Promise<void>): void {
  test(fact, { skip }, async () => {
    const guest = await TestGuest.start(options);
    const mounted = new Mounted(guest);
    try {
      await body(guest, mounted);
    } finally {
      mounted.detachAll();
      await guest.close();
    }
  });
}

/** Attribute flags by LOOKUP, and by GETATTR of the node. */
async function flagsOf(g: TestGuest, parent: bigint, entry: string): Promise<number[]> {
  const reply = await g.call(OP.LOOKUP, parent, name(entry), 128);
  const { node } = g.entry(reply);
  const attributes = await g.call(OP.GETATTR, node, new Uint8Array(16), 104);
  return [reply.data.getUint32(ENTRY_ATTR + ATTR_FLAGS, true), attributes.data.getUint32(ATTR_OUT_ATTR + ATTR_FLAGS, true)];
}

async function deviceOf(g: TestGuest, node: bigint): Promise<string> {
  const { data } = await g.call(OP.STATX, node, concat(u32(0, 0), u64(0), u32(0, 0xfff)), 288);
  return `${data.getUint32(STATX_AT + STATX_DEV, true)}:${data.getUint32(STATX_AT + STATX_DEV + 4, true)}`;
}

async function forget(g: TestGuest, nodes: readonly bigint[]): Promise<void> {
  await g.call(OP.BATCH_FORGET, 0n, concat(u32(nodes.length, 0), ...nodes.map((node) => u64(node, 100))), 0);
}

for (const [announced, offered] of [[true, true], [true, false], [false, true]] as const) {
  const fact = announced && offered ? 'a mount inside the share is marked as one'
    : announced ? 'a guest that does not know SUBMOUNTS sees no mark' : 'with --no-announce-submounts there is no mark';
  withMounts(fact, { announceSubmounts: announced }, async (g, mounted) => {
    if (!offered) assert.equal((await g.init(7, 45, ~INIT_SUBMOUNTS >>> 0)).error, 0);
    mkdirSync(join(g.directory, 'plain'));
    mkdirSync(join(mounted.tmpfs('tmpfs'), 'below'));
    mounted.bind('plain', 'bind');
    const mark = announced && offered ? FUSE_ATTR_SUBMOUNT : 0;
    assert.deepEqual(await flagsOf(g, ROOT, 'tmpfs'), [mark, mark]);
    assert.deepEqual(await flagsOf(g, ROOT, 'bind'), [mark, mark]);
    assert.deepEqual(await flagsOf(g, ROOT, 'plain'), [0, 0]);
    assert.deepEqual(await flagsOf(g, (await g.lookup(ROOT, 'tmpfs')).node, 'below'), [0, 0], 'what lies in a mount is none');
  });
}

withMounts('the same inode number on two file systems is two nodes, with devices of their own', {}, async (g, mounted) => {
  const nodes: bigint[] = [];
  const devices: string[] = [];
  const numbers: number[] = [];
  for (const at of ['one', 'two']) {
    const point = mounted.tmpfs(at);
    writeFileSync(join(point, 'f'), at);
    numbers.push(lstatSync(join(point, 'f')).ino);
    const mount = (await g.lookup(ROOT, at)).node;
    const { node } = await g.lookup(mount, 'f');
    nodes.push(node);
    devices.push(await deviceOf(g, node));
    assert.equal(devices.at(-1), await deviceOf(g, mount), 'a file is on the device of its mount');
    assert.equal(new TextDecoder().decode((await g.read(node, await g.open(node, 0), 0, 10)).data), at);
  }
  assert.equal(numbers[0], numbers[1], 'a tmpfs counts from the same number each time');
  assert.notEqual(nodes[0], nodes[1]);
  assert.equal(new Set([...devices, await deviceOf(g, ROOT)]).size, 3);
});

withMounts('a bind mount of a directory of the share has nodes of its own for the same files', {}, async (g, mounted) => {
  mkdirSync(join(g.directory, 'd'));
  writeFileSync(join(g.directory, 'd', 'f'), '');
  mounted.bind('d', 'again');
  const first = await g.lookup((await g.lookup(ROOT, 'd')).node, 'f');
  const second = await g.lookup((await g.lookup(ROOT, 'again')).node, 'f');
  assert.equal(first.ino, second.ino);
  assert.notEqual(first.node, second.node);
  assert.equal((await g.write(second.node, await g.open(second.node), 0, u32(7))).error, 0);
  assert.equal(readFileSync(join(g.directory, 'd', 'f')).length, 4);
});

withMounts('statfs answers for the file system that the node is on; links and renames do not cross', {}, async (g, mounted) => {
  const point = mounted.tmpfs('small');
  writeFileSync(join(point, 'f'), '');
  const mount = (await g.lookup(ROOT, 'small')).node;
  const { node } = await g.lookup(mount, 'f');
  const bytesOf = async (of: bigint): Promise<number> => {
    const { data } = await g.call(OP.STATFS, of, new Uint8Array(0), 80);
    return Number(data.getBigUint64(0, true)) * data.getUint32(48, true);
  };
  assert.equal(await bytesOf(mount), TMPFS_BYTES);
  assert.equal(await bytesOf(node), TMPFS_BYTES);
  assert.notEqual(await bytesOf(ROOT), TMPFS_BYTES);
  assert.equal((await g.call(OP.LINK, ROOT, concat(u64(node), name('h')), 128)).error, -E.XDEV);
  assert.equal((await g.call(OP.RENAME2, mount, concat(u64(ROOT), u32(0, 0), name('f'), name('g')), 0)).error, -E.XDEV);
});

withMounts('files of a mount are reached by handle when their descriptors are given up', { nofile: 1152 }, async (g, mounted) => {
  const point = mounted.tmpfs('tmpfs');
  const count = 300;
  for (let i = 0; i < count; i++) writeFileSync(join(point, `f${i}`), `${i}`);
  const before = readdirSync('/proc/self/fd').length;
  const mount = (await g.lookup(ROOT, 'tmpfs')).node;
  const nodes: bigint[] = [];
  for (let i = 0; i < count; i++) nodes.push((await g.lookup(mount, `f${i}`)).node);
  assert.ok(readdirSync('/proc/self/fd').length < before + 150, 'not each has a descriptor');
  for (const [i, node] of nodes.entries()) {
    const fh = await g.open(node);
    assert.equal(new TextDecoder().decode((await g.read(node, fh, 0, 10)).data), `${i}`);
    assert.equal((await g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }
  assert.equal((await g.lookup(mount, 'f0')).node, nodes[0]);
});

for (const handles of ['prefer', 'never'] as const) {
  withMounts(`the host can unmount what the guest has forgotten, not what it knows (--inode-file-handles=${handles})`, { handles }, async (g, mounted) => {
    const point = mounted.tmpfs('tmpfs');
    writeFileSync(join(point, 'f'), 'below');
    const mount = (await g.lookup(ROOT, 'tmpfs')).node;
    const { node } = await g.lookup(mount, 'f');
    const fh = await g.open(node);
    assert.ok(!mounted.unmount(point));
    assert.equal((await g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    assert.ok(!mounted.unmount(point), 'known');
    await forget(g, [node]);
    assert.ok(!mounted.unmount(point), 'its root is known');
    await forget(g, [mount]);
    assert.ok(mounted.unmount(point));
    const there = await g.lookup(ROOT, 'tmpfs');
    assert.notEqual(there.node, mount);
    assert.equal((await g.call(OP.LOOKUP, there.node, name('f'), 128)).error, -E.NOENT);
  });
}
