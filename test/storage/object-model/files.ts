/** Random operations on open files. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../../src/base/errno.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { OP, name } from '../../support/guest.js';
import { O_APPEND, O_EXCL, O_RDWR, O_TRUNC, O_WRONLY, type Inode } from '../../model/model.js';
import { assertSame, ATTR_BYTES, bytesOf, ENTRY_BYTES, errnoText, type Handle, type World } from './world.js';

const O_CREAT = 0o100;
const S_IFREG = 0o100000;
const S_ISUID = 0o4000;
const S_ISGID = 0o2000;
const S_IXGRP = 0o010;
const FATTR_SIZE = 8;
const FATTR_FH = 64;
const FATTR_MODE = 1;
const FATTR_KILL_SUIDGID = 2048;
const KILL_SUIDGID = 4;
const GETATTR_FH = 1;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 2;
const ZERO_RANGE = 16;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;
const HANDLES_MAX = 8;
const ACCESS = [O_RDWR, O_RDWR, O_RDWR, 0, O_WRONLY, O_RDWR | O_APPEND] as const;

export const isWritable = (handle: Handle): boolean => (handle.flags & 3) !== 0;
const isReadable = (handle: Handle): boolean => (handle.flags & 3) !== O_WRONLY;

async function pickHandle(w: World, accept: (handle: Handle) => boolean = () => true): Promise<Handle | null> {
  if (w.handles.length === 0 || w.random.chance(5)) await (w.random.chance(50) ? create(w) : open(w));
  const handles = w.handles.filter((handle) => !handle.lost && accept(handle));
  return handles.length === 0 ? null : w.random.pick(handles);
}

async function roomForHandle(w: World): Promise<void> {
  if (w.handles.length >= HANDLES_MAX) await close(w);
}

export function killPrivileges(inode: Inode): void {
  inode.mode &= ~(S_ISUID | ((inode.mode & S_IXGRP) !== 0 ? S_ISGID : 0));
}

/** A file of somebody in a directory, as Linux makes it. */
export function makeFile(w: World, dir: Inode, entry: string, mode: number, uid: number, gid: number): Inode | number {
  const made = w.model.make(dir, entry, 'file', mode, { uid: 0, gid });
  if (typeof made !== 'number') made.uid = uid;
  return made;
}

/** CREATE, also of a name that is there: as if somebody had been faster. */
export async function create(w: World): Promise<void> {
  await roomForHandle(w);
  const dir = w.pickDirectory();
  const entry = w.pickName(dir);
  const flags = w.random.pick(ACCESS) | (w.random.chance(25) ? O_EXCL : 0) | (w.random.chance(20) ? O_TRUNC : 0);
  const mode = w.random.pick([0o644, 0o600, 0o755, 0o640]);
  const [uid, gid] = w.random.chance(80) ? [0, 0] : [1000, 1001];
  w.note(`CREATE ${w.label(dir)} ${entry} flags ${flags.toString(8)} mode ${mode.toString(8)} uid ${uid}`);
  const parent = await w.reach(dir);
  const args = concat(u32(flags | O_CREAT, S_IFREG | mode, 0, 0), name(entry));
  const ask = async (): Promise<Awaited<ReturnType<World['call']>>> => {
    w.guest.uid = uid;
    w.guest.gid = gid;
    const answer = await w.call(OP.CREATE, parent, args, ENTRY_BYTES + 16);
    w.guest.uid = w.guest.gid = 0;
    return answer;
  };
  const there = dir.entries.get(entry);
  let reply = await ask();
  if (reply.error === -E.STALE && there !== undefined) {
    await w.lookup(dir, entry);
    reply = await ask();
  }
  let inode: Inode | number;
  if (there === undefined) {
    inode = makeFile(w, dir, entry, mode, uid, gid);
  } else if ((flags & O_EXCL) !== 0) {
    inode = -E.EXIST;
  } else {
    const opened = w.model.open(there, flags);
    inode = opened < 0 ? opened : there;
  }
  if (!w.same(reply, inode) || typeof inode === 'number') return;
  if (there === undefined || (flags & O_TRUNC) !== 0) w.changed(inode);
  const node = w.learn(inode, reply.data);
  w.opened(node, reply.data.getBigUint64(ENTRY_BYTES, true), inode, flags);
}

export async function open(w: World): Promise<void> {
  await roomForHandle(w);
  const place = w.random.chance(10) ? w.random.pick([...w.places(), null]) : w.pickFile();
  if (place === null) return;
  const flags = w.random.pick(ACCESS) | (w.random.chance(20) ? O_TRUNC : 0);
  w.note(`OPEN ${w.label(place.inode)} flags ${flags.toString(8)}`);
  const { reply, node } = await w.openReply(place, flags);
  if (!w.same(reply, w.model.open(place.inode, flags))) return;
  if ((flags & O_TRUNC) !== 0) w.changed(place.inode);
  w.opened(node, reply.data.getBigUint64(0, true), place.inode, flags);
}

/** OPEN of what is open and has perhaps no name any more, as by /proc/self/fd. */
export async function reopen(w: World): Promise<void> {
  await roomForHandle(w);
  const handle = await pickHandle(w);
  if (handle === null) return;
  const flags = w.random.pick(ACCESS) | (w.random.chance(20) ? O_TRUNC : 0);
  w.note(`OPEN again ${w.label(handle.inode)} flags ${flags.toString(8)}`);
  let reply = await w.call(OP.OPEN, handle.node, u32(flags, 0), 16);
  if (reply.error === -E.STALE) reply = await w.call(OP.OPEN, handle.node, u32(flags, 0), 16);
  if (!w.same(reply, w.model.open(handle.inode, flags))) return;
  if ((flags & O_TRUNC) !== 0) w.changed(handle.inode);
  w.opened(handle.node, reply.data.getBigUint64(0, true), handle.inode, flags);
}

/** close(2): mostly with the FLUSH that Linux sends. */
export async function close(w: World): Promise<void> {
  if (w.handles.length === 0) return;
  const handle = w.random.pick(w.handles);
  const flushes = w.random.chance(75);
  w.note(`close ${w.label(handle.inode)}${handle.lost ? ', which was lost' : ''}${flushes ? '' : ' without FLUSH'}`);
  if (flushes) {
    const error = await w.flush(handle);
    if (!handle.lost) w.same({ error }, 0);
    else assert.ok([0, -E.STALE].includes(error), errnoText(error));
    if (!handle.lost) w.flushed(handle.inode);
  }
  await w.release(handle);
}

/** FLUSH or FSYNC; with --durability=remote others see it then. */
export async function sync(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const flush = w.random.chance(50);
  w.note(`${flush ? 'FLUSH' : 'FSYNC'} ${w.label(handle.inode)}`);
  w.same({ error: await w.flush(handle, flush ? OP.FLUSH : OP.FSYNC) }, 0);
  w.flushed(handle.inode);
  const place = w.placeOf(handle.inode);
  if (w.settings.durability !== 'remote' || place === null) return;
  const { data } = handle.inode;
  assertSame(await w.objectBytes(w.prefixOf(place.dir) + place.name), data.read(0, data.size), `the object of ${w.label(handle.inode)}`);
}

export async function read(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { inode } = handle;
  const offset = w.pickOffset(inode.data.size);
  const bytes = w.pickBytes();
  w.note(`READ ${w.label(inode)} @${offset} +${bytes}`);
  const reply = await w.guest.read(handle.node, handle.fh, offset, bytes);
  if (!w.same(reply, isReadable(handle) ? 0 : -E.BADF)) return;
  assertSame(bytesOf(reply.data), inode.data.read(offset, bytes), 'what was read');
}

/** What somebody else has replaced is what it was, or cannot be read any more. */
export async function readLost(w: World): Promise<void> {
  const lost = w.handles.filter((handle) => handle.lost && isReadable(handle));
  if (lost.length === 0) return read(w);
  const handle = w.random.pick(lost);
  const { inode } = handle;
  const offset = w.pickOffset(inode.data.size);
  const bytes = w.pickBytes();
  w.note(`READ of an object that is lost @${offset} +${bytes}`);
  const reply = await w.guest.read(handle.node, handle.fh, offset, bytes);
  if (reply.error === -E.STALE) return;
  w.same(reply, 0);
  assertSame(bytesOf(reply.data), inode.data.read(offset, bytes), 'what was read');
}

export async function write(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { inode } = handle;
  const offset = (handle.flags & O_APPEND) !== 0 || w.random.chance(30) ? inode.data.size : w.pickOffset(inode.data.size);
  const data = w.random.bytes(w.pickBytes());
  const kills = w.random.chance(10);
  w.note(`WRITE ${w.label(inode)} flags ${handle.flags.toString(8)} @${offset} +${data.length}${kills ? ' by somebody without rights' : ''}`);
  const reply = await w.guest.write(handle.node, handle.fh, offset, data, data.length, kills ? KILL_SUIDGID : 0);
  const written = w.model.write(inode, handle.flags, offset, data);
  if (!w.same(reply, written)) return;
  assert.equal(reply.data.getUint32(0, true), written);
  if (kills) killPrivileges(inode);
  if (data.length > 0) w.changed(inode);
}

/** SETATTR of the size, by path or by handle. */
export async function truncate(w: World): Promise<void> {
  const handle = w.random.chance(60) ? await pickHandle(w) : null;
  const place = handle === null ? w.pickFile() : null;
  const inode = handle?.inode ?? place?.inode;
  if (inode === undefined) return;
  const size = w.pickOffset(inode.data.size);
  const kills = w.random.chance(10);
  const args = new DataView(new ArrayBuffer(88));
  args.setUint32(0, FATTR_SIZE | (handle === null ? 0 : FATTR_FH) | (kills ? FATTR_KILL_SUIDGID : 0), true);
  args.setBigUint64(8, handle?.fh ?? 0n, true);
  args.setBigUint64(16, BigInt(size), true);
  w.note(`SETATTR ${w.label(inode)} size ${size}${handle === null ? '' : ' by handle'}${kills ? ' by somebody without rights' : ''}`);
  const node = handle?.node ?? (await w.reachPlace(place!));
  const reply = await w.call(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES);
  // Linux itself says EINVAL for a descriptor that is not open for writing
  if (handle !== null && !isWritable(handle)) return void w.same(reply, -E.BADF);
  if (!w.same(reply, w.model.truncate(inode, size))) return;
  if (kills) killPrivileges(inode);
  w.attrOut(inode, reply.data);
  w.changed(inode);
}

export async function fgetattr(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  w.note(`GETATTR ${w.label(handle.inode)} by handle`);
  const reply = await w.call(OP.GETATTR, handle.node, concat(u32(GETATTR_FH, 0), u64(handle.fh)), ATTR_BYTES);
  if (w.same(reply, 0)) w.attrOut(handle.inode, reply.data);
}

/** What an fallocate(2) makes of the model's file. */
function allocated(inode: Inode, handle: Handle, mode: number, offset: number, bytes: number): number {
  if (!isWritable(handle)) return -E.BADF;
  // Space cannot be reserved, and nothing moved
  if (![0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE | KEEP_SIZE, ZERO_RANGE].includes(mode)) return -E.OPNOTSUPP;
  // Whoever asks: the request does not say
  killPrivileges(inode);
  const { data } = inode;
  switch (mode) {
    case 0:
      if (offset + bytes > data.size) data.truncate(offset + bytes);
      break;
    case PUNCH_HOLE | KEEP_SIZE:
    case ZERO_RANGE | KEEP_SIZE:
      data.punch(offset, Math.max(0, Math.min(bytes, data.size - offset)));
      break;
    case ZERO_RANGE:
      data.punch(offset, bytes);
      if (offset + bytes > data.size) data.truncate(offset + bytes);
  }
  inode.changed();
  return 0;
}

export async function fallocate(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const mode = w.random.pick([0, 0, PUNCH_HOLE | KEEP_SIZE, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE, ZERO_RANGE | KEEP_SIZE, KEEP_SIZE, 8]);
  const offset = w.pickOffset(handle.inode.data.size);
  const bytes = 1 + w.random.below(12_000);
  w.note(`FALLOCATE ${w.label(handle.inode)} mode ${mode} @${offset} +${bytes}`);
  const reply = await w.call(OP.FALLOCATE, handle.node, concat(u64(handle.fh, offset, bytes), u32(mode, 0)));
  if (w.same(reply, allocated(handle.inode, handle, mode, offset, bytes))) w.changed(handle.inode);
}

/** SEEK_DATA: what it passes over has to be zeros. */
export async function seek(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { data } = handle.inode;
  const offset = w.pickOffset(data.size);
  const whence = w.random.pick([SEEK_DATA, SEEK_HOLE]);
  w.note(`LSEEK ${w.label(handle.inode)} ${whence === SEEK_DATA ? 'SEEK_DATA' : 'SEEK_HOLE'} @${offset}`);
  const reply = await w.call(OP.LSEEK, handle.node, concat(u64(handle.fh, offset), u32(whence, 0)), 8);
  if (!w.same(reply, offset >= data.size ? -E.NXIO : 0)) return;
  const found = Number(reply.data.getBigUint64(0, true));
  if (whence === SEEK_DATA) assert.ok(found >= offset && found <= data.size && data.isZero(offset, found), `data at ${found}`);
  else assert.ok(found >= offset && found <= data.size && (found === data.size || data.isZero(found, found + 1)), `a hole at ${found}`);
}

/** Reads of a file that is renamed or given another mode at the same time. */
export async function readMeanwhile(w: World): Promise<void> {
  const handle = await pickHandle(w, (open) => isReadable(open) && open.inode.data.size > 0);
  if (handle === null) return;
  const { inode, node, fh } = handle;
  const place = w.placeOf(inode);
  const entry = w.random.pick(['b', 'renamed']);
  const renames = place !== null && w.random.chance(70) && place.name !== entry && place.dir.entries.get(entry)?.isDirectory !== true;
  const asked = renames ? 'rename' : 'chmod';
  w.note(`READs of ${w.label(inode)} and a ${asked}${renames ? ` to ${entry}` : ''} at the same time`);
  const parent = place === null ? 0n : await w.reach(place.dir);
  const reads = Array.from({ length: 2 + w.random.below(6) }, () => ({ offset: w.random.below(inode.data.size), bytes: 1 + w.pickBytes() }));
  const at = w.random.below(reads.length);
  const pending: { writable: number[]; expected: Uint8Array | null }[] = [];
  const offer = (opcode: number, id: bigint, args: Uint8Array, room: number, expected: Uint8Array | null): void => {
    pending.push({ ...w.guest.queue.chain([w.guest.request(opcode, id, args).bytes], room === 0 ? [16] : [16, room], true), expected });
  };
  const args = new DataView(new ArrayBuffer(88));
  args.setUint32(0, FATTR_MODE, true);
  args.setUint32(68, 0o715, true);
  for (const [i, { offset, bytes }] of reads.entries()) {
    if (i === at && renames) offer(OP.RENAME2, parent, concat(u64(parent), u32(0, 0), name(place.name), name(entry)), 0, null);
    if (i === at && !renames) offer(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES, null);
    offer(OP.READ, node, concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), bytes, inode.data.read(offset, bytes));
    w.guest.queue.kick();
    for (let turns = w.random.below(4); turns > 0; turns--) await turn();
  }
  if (renames) {
    w.same({ error: 0 }, w.model.rename(place.dir, place.name, place.dir, entry, 0));
  } else {
    w.model.chmod(inode, 0o715);
    w.described(inode);
  }
  await w.guest.queue.wait(pending.length);
  for (const [i, { writable, expected }] of pending.entries()) {
    assert.equal(errnoText(w.guest.memory.dv.getInt32(writable[0] + 4, true)), 'success', `number ${i} of ${pending.length}, the ${asked} being ${at}`);
    if (expected !== null) assertSame(w.guest.memory.u8.slice(writable[1], writable[1] + expected.length), expected, 'what was read');
  }
}

/** Writes, syncs, a rename and a chmod of one file, all on their way at the same time. */
export async function burst(w: World): Promise<void> {
  const handle = await pickHandle(w, isWritable);
  if (handle === null) return;
  const { inode, node, fh } = handle;
  const place = w.placeOf(inode);
  const steps = ['write', 'sync', 'write', ...Array.from({ length: w.random.below(6) }, () => w.random.pick(['write', 'write', 'sync', 'allocate', isReadable(handle) ? 'read' : 'sync']))];
  if (place !== null && w.random.chance(40)) steps.splice(w.random.below(steps.length + 1), 0, 'rename');
  if (w.random.chance(30)) steps.splice(w.random.below(steps.length + 1), 0, 'chmod');
  w.note(`at once on ${w.label(inode)}: ${steps.join(', ')}`);
  const parent = place === null ? 0n : await w.reach(place.dir);
  if (place !== null) await w.lookup(place.dir, place.name);
  const pending: { head: number; writable: number[]; expected: Uint8Array | null }[] = [];
  const offer = (opcode: number, id: bigint, args: Uint8Array, room = 0, expected: Uint8Array | null = null): void => {
    pending.push({ ...w.guest.queue.chain([w.guest.request(opcode, id, args).bytes], room === 0 ? [16] : [16, room], true), expected });
  };
  for (const step of steps) {
    const offset = w.pickOffset(inode.data.size);
    const bytes = 1 + w.pickBytes();
    if (step === 'write') {
      const data = w.random.bytes(bytes);
      offer(OP.WRITE, node, concat(u64(fh, offset), u32(data.length, 0), u64(0), u32(0, 0), data), 8);
      w.model.write(inode, handle.flags & ~O_APPEND, offset, data);
    } else if (step === 'allocate') {
      const mode = w.random.pick([0, PUNCH_HOLE | KEEP_SIZE, ZERO_RANGE]);
      offer(OP.FALLOCATE, node, concat(u64(fh, offset, bytes), u32(mode, 0)));
      allocated(inode, handle, mode, offset, bytes);
    } else if (step === 'sync') {
      offer(OP.FSYNC, node, concat(u64(fh), u32(0, 0)));
    } else if (step === 'read') {
      // A later write may come first: then it is not known what is read
      const expected = steps.lastIndexOf('write') < pending.length && steps.lastIndexOf('allocate') < pending.length ? inode.data.read(offset, bytes) : null;
      offer(OP.READ, node, concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), bytes, expected);
    } else if (step === 'chmod') {
      const args = new DataView(new ArrayBuffer(88));
      args.setUint32(0, FATTR_MODE, true);
      args.setUint32(68, 0o751, true);
      offer(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES);
      w.model.chmod(inode, 0o751);
    } else {
      const entry = w.random.pick(['b', 'renamed']);
      if (place!.dir.entries.get(entry)?.isDirectory === true || place!.name === entry) continue;
      w.note(`  ... to ${entry}`);
      offer(OP.RENAME2, parent, concat(u64(parent), u32(0, 0), name(place!.name), name(entry)));
      w.same({ error: 0 }, w.model.rename(place!.dir, place!.name, place!.dir, entry, 0));
    }
  }
  w.changed(inode);
  w.guest.queue.kick();
  await w.guest.queue.wait(pending.length);
  for (const [i, { writable, expected }] of pending.entries()) {
    const error = w.guest.memory.dv.getInt32(writable[0] + 4, true);
    assert.equal(errnoText(error), 'success', `number ${i}: ${steps[i]}`);
    if (expected !== null) assertSame(w.guest.memory.u8.slice(writable[1], writable[1] + expected.length), expected, 'what was read');
  }
  w.flushed(inode);
  w.changed(inode);
}
