/** Random operations on names and attributes. */
import assert from 'node:assert/strict';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, name } from '../support/guest.js';
import { RENAME_EXCHANGE, RENAME_NOREPLACE, TYPE, XATTR_CREATE, XATTR_REPLACE, type Inode, type Kind } from './model.js';
import { ATTR_BYTES, ENTRY_BYTES, type Known, type World } from './world.js';

const FATTR = { MODE: 1, UID: 2, GID: 4, ATIME: 16, MTIME: 32 } as const;

export async function lookup(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir.inode);
  w.note(`LOOKUP ${w.label(dir.inode)} ${entry}`);
  const reply = await w.call(OP.LOOKUP, dir, name(entry), ENTRY_BYTES);
  w.entry(reply, () => w.model.lookup(dir.inode, entry), dir.inode);
}

/** MKDIR, MKNOD, SYMLINK. */
export async function make(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir.inode);
  const kind: Kind = w.random.pick(['directory', 'directory', 'directory', 'file', 'symlink', 'fifo', 'socket']);
  const mode = w.pickMode();
  const caller = w.pickCaller();
  const target = kind === 'symlink' ? 't'.repeat(1 + w.random.below(80)) : '';
  w.note(`make a ${kind} ${w.label(dir.inode)} ${entry} ${mode.toString(8)} as ${caller.uid}`);
  const [opcode, args] =
    kind === 'directory' ? [OP.MKDIR, concat(u32(mode, 0), name(entry))]
    : kind === 'symlink' ? [OP.SYMLINK, concat(name(entry), name(target))]
    : [OP.MKNOD, concat(u32(TYPE[kind] | mode, 0, 0, 0), name(entry))];
  const reply = await w.call(opcode, dir, args, ENTRY_BYTES, caller);
  w.entry(reply, () => w.model.make(dir.inode, entry, kind, mode, caller, target), dir.inode);
}

export async function link(w: World): Promise<void> {
  const node = w.pickNode();
  const dir = w.pickDirectory();
  const entry = w.pickName(dir.inode);
  w.note(`LINK ${w.label(node.inode)} as ${w.label(dir.inode)} ${entry}`);
  const reply = await w.call(OP.LINK, dir, concat(u64(node.id), name(entry)), ENTRY_BYTES);
  w.entry(reply, () => w.model.link(node.inode, dir.inode, entry), node.inode, dir.inode);
}

/** UNLINK, RMDIR; mostly the one that fits. */
export async function remove(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir.inode);
  const isDirectory = dir.inode.entries.get(entry)?.isDirectory ?? w.random.chance(50);
  const rmdir = w.random.chance(10) ? !isDirectory : isDirectory;
  w.note(`${rmdir ? 'RMDIR' : 'UNLINK'} ${w.label(dir.inode)} ${entry}`);
  const reply = await w.call(rmdir ? OP.RMDIR : OP.UNLINK, dir, name(entry), 0);
  w.compare(reply, () => (rmdir ? w.model.rmdir(dir.inode, entry) : w.model.unlink(dir.inode, entry)), dir.inode);
}

export async function rename(w: World): Promise<void> {
  const from = w.pickDirectory();
  const to = w.random.chance(40) ? from : w.pickDirectory();
  const oldName = w.pickName(from.inode);
  const newName = w.pickName(to.inode);
  const flags = w.random.pick([0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_NOREPLACE | RENAME_EXCHANGE]);
  w.note(`RENAME2 ${w.label(from.inode)} ${oldName} -> ${w.label(to.inode)} ${newName} flags ${flags}`);
  const old = flags === 0 && w.random.chance(30);
  const args = old ? concat(u64(to.id), name(oldName), name(newName)) : concat(u64(to.id), u32(flags, 0), name(oldName), name(newName));
  const reply = await w.call(old ? OP.RENAME : OP.RENAME2, from, args, 0);
  w.compare(reply, () => w.model.rename(from.inode, oldName, to.inode, newName, flags), from.inode, to.inode);
}

export async function readlink(w: World): Promise<void> {
  const links = [...w.known.values()].filter((node) => node.inode.kind === 'symlink');
  const node = links.length > 0 ? w.random.pick(links) : w.pickNode();
  w.note(`READLINK ${w.label(node.inode)}`);
  const reply = await w.call(OP.READLINK, node, new Uint8Array(0), 4096);
  if (w.compare(reply, () => (node.inode.kind === 'symlink' ? 0 : -E.INVAL), node.inode) === null) return;
  assert.equal(new TextDecoder().decode(reply.data), node.inode.target);
}

export async function getattr(w: World): Promise<void> {
  const node = w.pickNode();
  w.note(`GETATTR ${w.label(node.inode)}`);
  const reply = await w.call(OP.GETATTR, node, new Uint8Array(16), ATTR_BYTES);
  if (w.compare(reply, () => 0, node.inode) !== null) w.attrOut(node.inode, reply.data);
}

/** Mode, owner or times. */
export async function setattr(w: World): Promise<void> {
  const node = w.pickNode();
  const { inode } = node;
  const args = new DataView(new ArrayBuffer(88));
  let apply: () => void;
  const what = w.random.below(3);
  if (what === 0 && inode.kind !== 'symlink') {
    const mode = w.random.chance(50) ? w.pickMode() : w.random.below(0o10000);
    args.setUint32(0, FATTR.MODE, true);
    args.setUint32(68, TYPE[inode.kind] | mode, true);
    apply = () => w.model.chmod(inode, mode);
    w.note(`SETATTR ${w.label(inode)} mode ${mode.toString(8)}`);
  } else if (what === 1) {
    const uid = w.random.pick([-1, 0, 1000, 4321]);
    const gid = uid < 0 ? 1000 : w.random.pick([-1, 0, 1000, 70000]);
    args.setUint32(0, (uid < 0 ? 0 : FATTR.UID) | (gid < 0 ? 0 : FATTR.GID), true);
    args.setUint32(76, uid, true);
    args.setUint32(80, gid, true);
    apply = () => w.model.chown(inode, uid, gid);
    w.note(`SETATTR ${w.label(inode)} owner ${uid}:${gid}`);
  } else {
    const mtime = BigInt(w.random.below(2 ** 32)) * 1_000_000_000n + BigInt(w.random.below(1_000_000_000));
    args.setUint32(0, FATTR.ATIME | FATTR.MTIME, true);
    for (const [seconds, nanoseconds] of [[32, 56], [40, 60]]) {
      args.setBigUint64(seconds, mtime / 1_000_000_000n, true);
      args.setUint32(nanoseconds, Number(mtime % 1_000_000_000n), true);
    }
    apply = () => void (inode.mtime = mtime);
    w.note(`SETATTR ${w.label(inode)} times ${mtime}`);
  }
  const reply = await w.call(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES);
  const set = (): number => {
    apply();
    return 0;
  };
  if (w.compare(reply, set, inode) !== null) w.attrOut(inode, reply.data);
}

const ATTRIBUTES = ['user.one', 'user.two', `user.${'x'.repeat(250)}`];
const VALUE_BYTES_MAX = 200;

export async function setxattr(w: World): Promise<void> {
  const node = w.pickNode();
  const attribute = w.random.pick(ATTRIBUTES);
  const value = w.random.bytes(w.random.below(VALUE_BYTES_MAX));
  const flags = w.random.pick([0, 0, XATTR_CREATE, XATTR_REPLACE]);
  w.note(`SETXATTR ${w.label(node.inode)} ${attribute.slice(0, 10)} ${value.length} bytes, flags ${flags}`);
  const reply = await w.call(OP.SETXATTR, node, concat(u32(value.length, flags, 0, 0), name(attribute), value), 0);
  w.compare(reply, () => w.model.setxattr(node.inode, attribute, value, flags), node.inode);
}

export async function getxattr(w: World): Promise<void> {
  const node = w.pickNode();
  const attribute = w.random.pick(ATTRIBUTES);
  const room = w.random.pick([0, 1, VALUE_BYTES_MAX]);
  w.note(`GETXATTR ${w.label(node.inode)} ${attribute.slice(0, 10)} into ${room}`);
  const reply = await w.call(OP.GETXATTR, node, concat(u32(room, 0), name(attribute)), Math.max(8, room));
  const value = w.compare(reply, () => w.model.getxattr(node.inode, attribute, room), node.inode);
  if (value === null || typeof value === 'number') return;
  if (room === 0) assert.equal(reply.data.getUint32(0, true), value.length);
  else assert.deepEqual(bytesOf(reply.data), value);
}

export async function listxattr(w: World): Promise<void> {
  const node = w.pickNode();
  w.note(`LISTXATTR ${w.label(node.inode)}`);
  const reply = await w.call(OP.LISTXATTR, node, u32(4096, 0), 4096);
  if (w.compare(reply, () => 0, node.inode) === null) return;
  const names = new TextDecoder().decode(reply.data).split('\0').slice(0, -1);
  assert.deepEqual(names.sort(), [...node.inode.xattrs.keys()].sort());
}

export async function removexattr(w: World): Promise<void> {
  const node = w.pickNode();
  const attribute = w.random.pick(ATTRIBUTES);
  w.note(`REMOVEXATTR ${w.label(node.inode)} ${attribute.slice(0, 10)}`);
  const reply = await w.call(OP.REMOVEXATTR, node, name(attribute), 0);
  w.compare(reply, () => w.model.removexattr(node.inode, attribute), node.inode);
}

/** FORGET of some or all lookups; of an open file never the last one, as in Linux. */
export async function forget(w: World): Promise<void> {
  const node = w.pickNode();
  const most = node.inode.opens > 0 || node.inode === w.model.root ? node.refs - 1 : node.refs;
  if (most < 1) return;
  const refs = w.random.chance(50) ? most : 1 + w.random.below(most);
  w.note(`FORGET ${w.label(node.inode)} ${refs} of ${node.refs}`);
  await w.forget(node, refs);
}

/** Ids that are forgotten or released mean nothing. */
export async function useDead(w: World): Promise<void> {
  const node = w.deadNodes.at(-1);
  if (node !== undefined) {
    w.note(`GETATTR of the forgotten #${node & 0xffffffffn}`);
    assert.equal((await w.guest.call(OP.GETATTR, node, new Uint8Array(16), ATTR_BYTES)).error, -E.STALE);
  }
  const handle = w.deadHandles.at(-1);
  if (handle !== undefined) {
    w.note(`READ of the released ${handle.fh}`);
    assert.equal((await w.guest.read(w.known.get(w.model.root)!.id, handle.fh, 0, 10)).error, -E.BADF);
  }
}

interface Dirent {
  entry: string;
  ino: bigint;
  type: number;
  /** Where its fuse_entry_out is, with READDIRPLUS. */
  at: number;
  offset: bigint;
}

function direntsOf(data: DataView, plus: boolean): Dirent[] {
  const entries: Dirent[] = [];
  for (let at = 0; at < data.byteLength; ) {
    const dirent = at + (plus ? ENTRY_BYTES : 0);
    const length = data.getUint32(dirent + 16, true);
    const bytes = bytesOf(data).subarray(dirent + 24, dirent + 24 + length);
    entries.push({
      entry: new TextDecoder().decode(bytes), ino: data.getBigUint64(dirent, true), type: data.getUint32(dirent + 20, true), at,
      offset: data.getBigUint64(dirent + 8, true),
    });
    at = (dirent + 24 + length + 7) & ~7;
  }
  return entries;
}

/** A whole listing, in pieces; while it goes on, names may come and go on the host. */
export async function list(w: World, meanwhile: (w: World, dir: Inode) => void): Promise<void> {
  const dir = w.pickDirectory();
  const plus = w.readdirplus && w.random.chance(70);
  w.note(`${plus ? 'READDIRPLUS' : 'READDIR'} ${w.label(dir.inode)}`);
  const opened = await w.call(OP.OPENDIR, dir, u32(0, 0), 16);
  if (w.compare(opened, () => (dir.inode.isDirectory ? 0 : -E.NOTDIR), dir.inode) === null) return;
  const fh = opened.data.getBigUint64(0, true);
  const before = new Map(dir.inode.entries);
  const all = await readAll(w, dir, fh, plus, meanwhile);
  assert.equal((await w.call(OP.RELEASEDIR, dir, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  if (all === null) return;
  const listed = all.map(({ entry }) => entry).filter((entry) => entry !== '.' && entry !== '..');
  assert.equal(new Set(all.map(({ entry }) => entry)).size, listed.length + 2, `each name once, and . and ..: ${all.map(({ entry }) => entry)}`);
  for (const [entry, inode] of before) if (dir.inode.entries.get(entry) === inode) assert.ok(listed.includes(entry), `${entry} was there all the time`);
  for (const entry of listed) assert.ok(before.has(entry) || dir.inode.entries.has(entry), `${entry} was never there`);
}

async function readAll(w: World, dir: Known, fh: bigint, plus: boolean, meanwhile: (w: World, dir: Inode) => void): Promise<Dirent[] | null> {
  const all: Dirent[] = [];
  for (let offset = 0n; ; offset = all.at(-1)!.offset) {
    const size = 600 + w.random.below(1500);
    const reply = await w.call(plus ? OP.READDIRPLUS : OP.READDIR, dir, concat(u64(fh, offset), u32(size, 0), u64(0), u32(0, 0)), size);
    if (w.compare(reply, () => (dir.inode.isDead ? -E.NOENT : 0), dir.inode) === null) return null;
    const some = direntsOf(reply.data, plus);
    if (some.length === 0) return all;
    for (const dirent of some) checkEntry(w, dir.inode, dirent, plus, reply.data);
    all.push(...some);
    if (w.random.chance(20)) meanwhile(w, dir.inode);
  }
}

/** Type, inode number and, with READDIRPLUS, node and attributes, of what is there still. */
function checkEntry(w: World, dir: Inode, { entry, ino, type, at }: Dirent, plus: boolean, data: DataView): void {
  const inode = dir.entries.get(entry);
  if (inode === undefined) {
    // Without attributes it may be a name that the host's kernel had listed before it was removed
    if (!plus) return;
    assert.match(entry, /^\.\.?$/, 'a name that is gone is left out');
    assert.equal(data.getBigUint64(at, true), 0n, `${entry} has no node`);
    return;
  }
  if (plus) {
    assert.notEqual(data.getBigUint64(at, true), 0n, `${entry} has a node`);
    w.learn(inode, data, at);
  }
  // What the host listed earlier may be another inode by now
  if (ino === inode.ino) assert.equal(type, TYPE[inode.kind] >> 12, `type of ${entry}`);
}

function bytesOf(view: DataView): Uint8Array {
  return new Uint8Array(view.buffer.slice(view.byteOffset, view.byteOffset + view.byteLength));
}
