/** Random operations on names and attributes. */
import assert from 'node:assert/strict';
import { E } from '../../../src/base/errno.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { OP, name } from '../../support/guest.js';
import { RENAME_EXCHANGE, RENAME_NOREPLACE, TYPE, XATTR_CREATE, XATTR_REPLACE, type Inode, type Kind } from '../../model/model.js';
import { ATTR_BYTES, bytesOf, ENTRY_BYTES, errnoText, type World } from './world.js';

const FATTR = { MODE: 1, UID: 2, GID: 4, ATIME: 16, MTIME: 32 } as const;
const DEPTH_MAX = 4;
/** A directory that others may have filled can have more attributes than its metadata has room for only beyond this. */
const XATTR_BYTES_FIT = 400;

export async function lookup(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir);
  w.note(`LOOKUP ${w.label(dir)} ${entry}`);
  await w.reach(dir);
  await w.lookup(dir, entry);
}

/** MKDIR, MKNOD, SYMLINK. */
export async function make(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir);
  let kind: Kind = w.random.pick(['directory', 'directory', 'directory', 'directory', 'file', 'symlink', 'fifo']);
  if (kind === 'directory' && w.depth(dir) >= DEPTH_MAX) kind = 'symlink';
  const mode = w.random.pick([0o755, 0o777, 0o700, 0o644, 0o1777]);
  const [uid, gid] = w.random.chance(80) ? [0, 0] : [1000, 1001];
  const target = kind === 'symlink' ? 't'.repeat(1 + w.random.below(80)) : '';
  w.note(`make a ${kind} ${w.label(dir)} ${entry} ${mode.toString(8)} as ${uid}`);
  const parent = await w.reach(dir);
  const [opcode, args] =
    kind === 'directory' ? [OP.MKDIR, concat(u32(mode, 0), name(entry))]
    : kind === 'symlink' ? [OP.SYMLINK, concat(name(entry), name(target))]
    : [OP.MKNOD, concat(u32(TYPE[kind] | mode, 0, 0, 0), name(entry))];
  w.guest.uid = uid;
  w.guest.gid = gid;
  const reply = await w.call(opcode, parent, args, ENTRY_BYTES);
  w.guest.uid = w.guest.gid = 0;
  const made = w.model.make(dir, entry, kind, mode, { uid: 0, gid }, target);
  if (!w.same(reply, made) || typeof made === 'number') return;
  made.uid = uid;
  w.described(made);
  w.learn(made, reply.data);
}

/** UNLINK, RMDIR; mostly the one that fits. */
export async function remove(w: World): Promise<void> {
  const dir = w.pickDirectory();
  const entry = w.pickName(dir);
  const isDirectory = dir.entries.get(entry)?.isDirectory ?? w.random.chance(50);
  const rmdir = w.random.chance(10) ? !isDirectory : isDirectory;
  w.note(`${rmdir ? 'RMDIR' : 'UNLINK'} ${w.label(dir)} ${entry}`);
  const parent = await w.reach(dir);
  const reply = await w.call(rmdir ? OP.RMDIR : OP.UNLINK, parent, name(entry));
  w.same(reply, rmdir ? w.model.rmdir(dir, entry) : w.model.unlink(dir, entry));
}

/** UNLINK of something that is open. */
export async function removeOpen(w: World): Promise<void> {
  const places = w.places((inode) => inode.opens > 0);
  if (places.length === 0) return remove(w);
  const { dir, name: entry, inode } = w.random.pick(places);
  w.note(`UNLINK ${w.label(inode)}, which is open`);
  const parent = await w.reach(dir);
  w.same(await w.call(OP.UNLINK, parent, name(entry)), w.model.unlink(dir, entry));
}

export async function rename(w: World): Promise<void> {
  const from = w.pickDirectory();
  const to = w.random.chance(40) ? from : w.pickDirectory();
  const oldName = w.pickName(from);
  const newName = w.pickName(to);
  const flags = w.random.pick([0, 0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE]);
  // Linux itself refuses to rename over a directory that it walks through
  for (let at: Inode | null = from; at !== null; at = at.parent) if (at === to.entries.get(newName)) return;
  w.note(`RENAME2 ${w.label(from)} ${oldName} -> ${w.label(to)} ${newName} flags ${flags}`);
  const [a, b] = [await w.reach(from), await w.reach(to)];
  const reply = await w.call(OP.RENAME2, a, concat(u64(b), u32(flags, 0), name(oldName), name(newName)));
  if (flags === RENAME_EXCHANGE) return void w.same(reply, -E.INVAL);
  w.same(reply, w.model.rename(from, oldName, to, newName, flags));
}

/** Mode, owner or times, of a name or through a handle. */
export async function setattr(w: World): Promise<void> {
  const handle = w.random.chance(40) ? (w.handles.filter((one) => !one.lost)[0] ?? null) : null;
  const places = w.places((inode) => inode.kind !== 'symlink');
  const place = w.random.chance(5) || places.length === 0 ? null : w.random.pick(places);
  const inode = handle?.inode ?? place?.inode ?? w.model.root;
  const node = handle?.node ?? (place === null ? 1n : await w.reachPlace(place));
  const args = new DataView(new ArrayBuffer(88));
  let apply: () => void;
  const what = w.random.below(3);
  if (what === 0) {
    const mode = w.random.pick([0o755, 0o600, 0o640, 0o4755, 0o2755, 0o6711, 0o2644, 0o1777, 0]);
    args.setUint32(0, FATTR.MODE, true);
    args.setUint32(68, mode, true);
    w.note(`SETATTR ${w.label(inode)} mode ${mode.toString(8)}`);
    apply = () => w.model.chmod(inode, mode);
  } else if (what === 1) {
    const uid = w.random.pick([-1, 0, 1000]);
    const gid = w.random.pick([-1, 0, 1001]);
    args.setUint32(0, (uid >= 0 ? FATTR.UID : 0) | (gid >= 0 ? FATTR.GID : 0), true);
    args.setUint32(76, Math.max(0, uid), true);
    args.setUint32(80, Math.max(0, gid), true);
    w.note(`SETATTR ${w.label(inode)} owner ${uid}:${gid}`);
    if (uid < 0 && gid < 0) return;
    apply = () => w.model.chown(inode, uid, gid);
  } else {
    const seconds = w.random.below(2 ** 31);
    const nanoseconds = w.random.below(1_000_000_000);
    args.setUint32(0, FATTR.ATIME | FATTR.MTIME, true);
    args.setBigUint64(32, 12_345n, true);
    args.setBigUint64(40, BigInt(seconds), true);
    args.setUint32(60, nanoseconds, true);
    w.note(`SETATTR ${w.label(inode)} mtime ${seconds}.${nanoseconds}`);
    apply = () => void (inode.mtime = BigInt(seconds) * 1_000_000_000n + BigInt(nanoseconds));
  }
  const reply = await w.call(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES);
  if (!w.same(reply, hasAttributes(w, inode) ? 0 : -E.PERM)) return;
  apply();
  w.described(inode);
  w.attrOut(inode, reply.data);
}

/** The bucket's own root has no place for them. */
const hasAttributes = (w: World, inode: Inode): boolean => inode !== w.model.root || w.settings.prefix !== '';

async function pickWithXattrs(w: World): Promise<{ inode: Inode; node: bigint }> {
  const handle = w.random.chance(20) ? w.handles.find((one) => !one.lost) : undefined;
  if (handle !== undefined) return handle;
  const places = w.places((inode) => inode.kind === 'file' || inode.isDirectory);
  if (places.length === 0) return { inode: w.model.root, node: 1n };
  const place = w.random.pick(places);
  return { inode: place.inode, node: await w.reachPlace(place) };
}

export async function setxattr(w: World): Promise<void> {
  const { inode, node } = await pickWithXattrs(w);
  const key = w.random.pick(['user.one', 'user.two', 'user.Ünï']);
  const value = w.random.bytes(w.random.chance(15) ? w.random.below(1500) : w.random.below(100));
  const flags = w.random.pick([0, 0, XATTR_CREATE, XATTR_REPLACE]);
  w.note(`SETXATTR ${w.label(inode)} ${key} of ${value.length} flags ${flags}`);
  const reply = await w.call(OP.SETXATTR, node, concat(u32(value.length, flags, 0, 0), name(key), value));
  if (reply.error === -E.NOSPC) {
    const bytes = [...inode.xattrs].reduce((sum, [, one]) => sum + one.length, value.length);
    assert.ok(bytes > XATTR_BYTES_FIT, `no room for attributes of ${bytes} bytes`);
    return;
  }
  if (!hasAttributes(w, inode)) return void w.same(reply, flags === XATTR_REPLACE ? -E.NODATA : -E.PERM);
  if (w.same(reply, w.model.setxattr(inode, key, value, flags))) w.described(inode);
}

export async function getxattr(w: World): Promise<void> {
  const { inode, node } = await pickWithXattrs(w);
  const key = w.random.pick(['user.one', 'user.two', 'user.Ünï']);
  w.note(`GETXATTR ${w.label(inode)} ${key}`);
  const reply = await w.call(OP.GETXATTR, node, concat(u32(4096, 0), name(key)), 4096);
  const value = w.model.getxattr(inode, key, 4096);
  if (w.same(reply, value) && typeof value !== 'number') assert.deepEqual(bytesOf(reply.data), value);
}

export async function listxattr(w: World): Promise<void> {
  const { inode, node } = await pickWithXattrs(w);
  w.note(`LISTXATTR ${w.label(inode)}`);
  const reply = await w.call(OP.LISTXATTR, node, u32(4096, 0), 4096);
  if (!w.same(reply, 0)) return;
  const names = new TextDecoder().decode(reply.data).split('\0').slice(0, -1);
  assert.deepEqual(names.sort(), [...inode.xattrs.keys()].sort());
}

export async function removexattr(w: World): Promise<void> {
  const { inode, node } = await pickWithXattrs(w);
  const key = w.random.pick(['user.one', 'user.two', 'user.Ünï']);
  w.note(`REMOVEXATTR ${w.label(inode)} ${key}`);
  const reply = await w.call(OP.REMOVEXATTR, node, name(key));
  if (w.same(reply, w.model.removexattr(inode, key))) w.described(inode);
}

export async function readlink(w: World): Promise<void> {
  const links = w.places((inode) => inode.kind === 'symlink');
  if (links.length === 0) return;
  const place = w.random.pick(links);
  w.note(`READLINK ${w.label(place.inode)}`);
  const reply = await w.call(OP.READLINK, await w.reachPlace(place), new Uint8Array(0), 4096);
  if (w.same(reply, 0)) assert.equal(new TextDecoder().decode(reply.data), place.inode.target);
}

export async function list(w: World): Promise<void> {
  const dir = w.pickDirectory();
  w.note(`list ${w.label(dir)}`);
  await listDirectory(w, dir);
}

/** OPENDIR, READDIR or READDIRPLUS in small pieces, RELEASEDIR: every name once, each as the model has it. */
export async function listDirectory(w: World, dir: Inode): Promise<void> {
  const node = await w.reach(dir);
  const opened = await w.call(OP.OPENDIR, node, u32(0, 0), 16);
  w.same(opened, 0);
  const fh = opened.data.getBigUint64(0, true);
  const plus = w.settings.readdirplus && w.random.chance(70);
  const room = w.random.pick([600, 1000, 8192]);
  const names: string[] = [];
  for (let offset = 0n; ; ) {
    const reply = await w.call(plus ? OP.READDIRPLUS : OP.READDIR, node, concat(u64(fh, offset), u32(room, 0), u64(0), u32(0, 0)), room);
    if (!w.same(reply, 0) || reply.data.byteLength === 0) break;
    offset = entriesOf(w, dir, reply.data, plus, names);
  }
  assert.equal(errnoText((await w.call(OP.RELEASEDIR, node, concat(u64(fh), u32(0, 0), u64(0)))).error), 'success');
  assert.deepEqual(names.sort(), [...dir.entries.keys()].sort(), `names in ${w.label(dir)}`);
}

/** @returns where to go on */
function entriesOf(w: World, dir: Inode, data: DataView, plus: boolean, names: string[]): bigint {
  const lead = plus ? ENTRY_BYTES : 0;
  let offset = 0n;
  for (let at = 0; at + lead + 24 <= data.byteLength; ) {
    const dirent = at + lead;
    const length = data.getUint32(dirent + 16, true);
    const type = data.getUint32(dirent + 20, true);
    const entry = new TextDecoder().decode(new Uint8Array(data.buffer, data.byteOffset + dirent + 24, length));
    offset = data.getBigUint64(dirent + 8, true);
    if (entry !== '.' && entry !== '..') {
      names.push(entry);
      const inode = dir.entries.get(entry);
      assert.ok(inode !== undefined, `${entry} is listed in ${w.label(dir)}`);
      assert.ok(type === 0 || type === TYPE[inode.kind] >>> 12, `type ${type} of ${entry}`);
      // Without a nodeid there are no attributes
      if (plus && data.getBigUint64(at, true) !== 0n) w.learn(inode, new DataView(data.buffer, data.byteOffset + at, ENTRY_BYTES));
    }
    at = (dirent + 24 + length - 0 + 7) & ~7;
  }
  return offset;
}

export async function statfs(w: World): Promise<void> {
  w.note('STATFS');
  const reply = await w.call(OP.STATFS, 1n, new Uint8Array(0), 80);
  w.same(reply, 0);
  assert.ok(reply.data.getUint32(40, true) > 0 && reply.data.getBigUint64(16, true) > 0n, 'a block size, and room');
}

/** FORGET of what is not open, and of no directory on the way to something that is known. */
export async function forget(w: World): Promise<void> {
  const open = new Set(w.handles.map((handle) => handle.node));
  const known = [...w.nodes].filter(([inode, id]) => id !== 1n && !open.has(id) && [...inode.entries.values()].every((child) => !w.nodes.has(child)));
  if (known.length === 0) return;
  const [inode, id] = w.random.pick(known);
  w.note(`FORGET ${w.label(inode)}`);
  await w.forget(id);
}

