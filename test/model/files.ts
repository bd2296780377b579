/** Random operations on open files. */
import assert from 'node:assert/strict';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP, name, type Reply } from '../support/guest.js';
import {
  FALLOC_KEEP_SIZE, FALLOC_PUNCH_HOLE, O_ACCMODE, O_APPEND, O_EXCL, O_RDWR, O_TRUNC, O_WRONLY, type Inode,
} from './model.js';
import { ATTR_BYTES, ENTRY_BYTES, type Handle, type World } from './world.js';

const O_CREAT = 0o100;
const S_IFREG = 0o100000;
const FATTR_SIZE = 8;
const FATTR_FH = 64;
const GETATTR_FH = 1;
const WRITE_CACHE = 1;
const SEEK_DATA = 3;
const HANDLES_MAX = 12;
const IO_BYTES_MAX = 9000;

const ACCESS = [O_RDWR, O_RDWR, O_RDWR, 0, O_WRONLY, O_RDWR | O_APPEND] as const;

/** An open file; if there is none, one is opened. */
async function pickHandle(w: World): Promise<Handle | null> {
  if (w.handles.length === 0) await create(w);
  return w.handles.length === 0 ? null : w.random.pick(w.handles);
}

async function roomForHandle(w: World): Promise<void> {
  if (w.handles.length >= HANDLES_MAX) await release(w);
}

export async function create(w: World): Promise<void> {
  await roomForHandle(w);
  const dir = w.pickDirectory();
  const entry = w.pickName(dir.inode);
  const flags = w.random.pick(ACCESS) | (w.random.chance(30) ? O_EXCL : 0) | (w.random.chance(20) ? O_TRUNC : 0);
  const mode = w.pickMode();
  const caller = w.pickCaller();
  w.note(`CREATE ${w.label(dir.inode)} ${entry} flags ${flags.toString(8)} mode ${mode.toString(8)} as ${caller.uid}`);
  const args = concat(u32(flags | O_CREAT, S_IFREG | mode, 0, 0), name(entry));
  const reply = await w.call(OP.CREATE, dir, args, ENTRY_BYTES + 16, caller);
  const run = (): Inode | number => {
    const made = w.model.make(dir.inode, entry, 'file', mode, caller);
    if (made !== -E.EXIST || (flags & O_EXCL) !== 0) return made;
    const there = dir.inode.entries.get(entry)!;
    const opened = w.model.open(there, flags);
    return opened < 0 ? opened : there;
  };
  const node = w.entry(reply, run, dir.inode);
  if (node !== null) w.opened(node, reply.data.getBigUint64(ENTRY_BYTES, true), flags);
}

export async function tmpfile(w: World): Promise<void> {
  await roomForHandle(w);
  const dir = w.pickDirectory();
  if (dir.inode.isDead) return;
  const flags = O_RDWR | (w.random.chance(30) ? O_EXCL : 0);
  const caller = w.pickCaller();
  w.note(`TMPFILE ${w.label(dir.inode)} flags ${flags.toString(8)} as ${caller.uid}`);
  const reply = await w.call(OP.TMPFILE, dir, concat(u32(flags, S_IFREG | 0o640, 0, 0), name('/')), ENTRY_BYTES + 16, caller);
  const node = w.entry(reply, () => w.model.makeUnnamed(dir.inode, 0o640, (flags & O_EXCL) === 0, caller), dir.inode);
  if (node !== null) w.opened(node, reply.data.getBigUint64(ENTRY_BYTES, true), flags);
}

export async function open(w: World): Promise<void> {
  await roomForHandle(w);
  const node = w.pickFile();
  const flags = w.random.pick(ACCESS) | (w.random.chance(15) ? O_TRUNC : 0);
  w.note(`OPEN ${w.label(node.inode)} flags ${flags.toString(8)}`);
  const reply = await w.call(OP.OPEN, node, u32(flags, 0), 16);
  if (w.compare(reply, () => w.model.open(node.inode, flags), node.inode) === null) return;
  w.opened(node, reply.data.getBigUint64(0, true), flags);
}

export async function release(w: World): Promise<void> {
  if (w.handles.length === 0) return;
  const handle = w.random.pick(w.handles);
  w.note(`RELEASE ${handle.fh & 0xffffffffn} of ${w.label(handle.node.inode)}`);
  await w.release(handle);
}

export async function read(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { inode } = handle.node;
  const offset = w.pickOffset(inode.data.size);
  const bytes = w.random.below(IO_BYTES_MAX);
  w.note(`READ ${w.label(inode)} @${offset} +${bytes}`);
  const reply = await w.guest.read(handle.node.id, handle.fh, offset, bytes);
  const data = w.compare(reply, () => w.model.read(inode, handle.flags, offset, bytes));
  if (data !== null && typeof data !== 'number') assert.deepEqual(bytesOf(reply), data);
}

/** Several READs in flight at once with an FSYNC, and perhaps the RELEASE of their file behind them. */
export async function readMany(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { guest, random } = w;
  const { inode, id } = handle.node;
  const releases = random.chance(50);
  const reads = Array.from({ length: 1 + random.below(6) }, () => ({ offset: w.pickOffset(inode.data.size), bytes: 1 + random.below(IO_BYTES_MAX) }));
  w.note(`READs ${w.label(inode)} ${reads.map(({ offset, bytes }) => `@${offset} +${bytes}`).join(', ')}, FSYNC${releases ? ', RELEASE' : ''}`);
  const offer = (opcode: number, args: Uint8Array, room: readonly number[]): { head: number; writable: number[] } =>
    guest.queue.chain([guest.request(opcode, id, args).bytes], [16, ...room], true);
  const pending = reads.map(({ offset, bytes }) => offer(OP.READ, concat(u64(handle.fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), [bytes]));
  pending.push(offer(OP.FSYNC, concat(u64(handle.fh), u32(0, 0)), []));
  if (releases) pending.push(offer(OP.RELEASE, concat(u64(handle.fh), u32(handle.flags, 0), u64(0)), []));
  guest.queue.kick();
  const used = new Map((await guest.queue.wait(pending.length)).map(({ head, length }) => [head, length]));
  assert.equal(used.size, pending.length, 'each is answered once');
  if (releases) w.released(handle);
  for (const [i, { head, writable }] of pending.entries()) {
    const expected: Uint8Array | number = i < reads.length ? w.model.read(inode, handle.flags, reads[i].offset, reads[i].bytes) : new Uint8Array(0);
    assert.equal(guest.memory.dv.getInt32(writable[0] + 4, true), typeof expected === 'number' ? expected : 0, 'the errno');
    if (typeof expected === 'number') continue;
    assert.equal(used.get(head), 16 + expected.length);
    if (i < reads.length) assert.deepEqual(guest.memory.u8.slice(writable[1], writable[1] + expected.length), expected);
  }
}

export async function write(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { inode } = handle.node;
  const offset = w.pickOffset(inode.data.size);
  const data = w.random.bytes(w.random.below(IO_BYTES_MAX));
  // O_APPEND may have been set or cleared since the open; a page that is written back has no flags, whatever handle it comes by
  const back = w.random.chance(15);
  const flags = back ? 0 : w.random.chance(25) ? handle.flags ^ O_APPEND : handle.flags;
  w.note(`WRITE ${w.label(inode)} flags ${flags.toString(8)} of ${handle.flags.toString(8)} @${offset} +${data.length}${back ? ', written back' : ''}`);
  const reply = await w.guest.write(handle.node.id, handle.fh, offset, data, data.length, back ? WRITE_CACHE : 0, flags);
  const written = w.compare(reply, () => w.model.write(inode, (handle.flags & O_ACCMODE) | (flags & O_APPEND), offset, data));
  if (written !== null) assert.equal(reply.data.getUint32(0, true), written);
}

/** SETATTR of the size, by node or by file handle. */
export async function truncate(w: World): Promise<void> {
  const handle = w.handles.length > 0 && w.random.chance(50) ? w.random.pick(w.handles) : null;
  const node = handle === null ? w.pickFile() : handle.node;
  const size = w.pickOffset(node.inode.data.size);
  const args = new DataView(new ArrayBuffer(88));
  args.setUint32(0, FATTR_SIZE | (handle === null ? 0 : FATTR_FH), true);
  args.setBigUint64(8, handle?.fh ?? 0n, true);
  args.setBigUint64(16, BigInt(size), true);
  w.note(`SETATTR ${w.label(node.inode)} size ${size}${handle === null ? '' : ` by handle, flags ${handle.flags.toString(8)}`}`);
  const reply = await w.call(OP.SETATTR, node, new Uint8Array(args.buffer), ATTR_BYTES);
  // ftruncate(2) wants a descriptor that is open for writing
  const run = (): number => (handle !== null && (handle.flags & 3) === 0 ? -E.INVAL : w.model.truncate(node.inode, size));
  if (w.compare(reply, run, node.inode) !== null) w.attrOut(node.inode, reply.data);
}

/** GETATTR by file handle: works for what has no name any more. */
export async function fgetattr(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  w.note(`GETATTR ${w.label(handle.node.inode)} by handle`);
  const reply = await w.call(OP.GETATTR, handle.node, concat(u32(GETATTR_FH, 0), u64(handle.fh)), ATTR_BYTES);
  if (w.compare(reply, () => 0) !== null) w.attrOut(handle.node.inode, reply.data);
}

export async function fallocate(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { inode } = handle.node;
  const mode = w.random.pick([0, FALLOC_KEEP_SIZE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, FALLOC_KEEP_SIZE | FALLOC_PUNCH_HOLE, FALLOC_PUNCH_HOLE]);
  const offset = w.pickOffset(inode.data.size);
  const bytes = w.random.chance(5) ? 0 : 1 + w.random.below(20_000);
  w.note(`FALLOCATE ${w.label(inode)} mode ${mode} @${offset} +${bytes}`);
  const reply = await w.call(OP.FALLOCATE, handle.node, concat(u64(handle.fh, offset, bytes), u32(mode, 0)), 0);
  w.compare(reply, () => w.model.fallocate(inode, handle.flags, mode, offset, bytes));
}

/** SEEK_DATA: what it passes over has to be zeros. */
export async function seek(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const { data } = handle.node.inode;
  const offset = w.pickOffset(data.size);
  w.note(`LSEEK ${w.label(handle.node.inode)} SEEK_DATA @${offset}`);
  const reply = await w.call(OP.LSEEK, handle.node, concat(u64(handle.fh, offset), u32(SEEK_DATA, 0)), 8);
  if (offset >= data.size) {
    assert.equal(reply.error, -E.NXIO);
  } else if (reply.error === -E.NXIO) {
    assert.ok(data.isZero(offset, data.size), 'no data, says the daemon');
  } else {
    assert.equal(reply.error, 0);
    const found = Number(reply.data.getBigUint64(0, true));
    assert.ok(found >= offset && found < data.size && data.isZero(offset, found), `data at ${found}`);
  }
}

export async function copy(w: World): Promise<void> {
  const from = await pickHandle(w);
  if (from === null) return;
  const to = w.random.pick(w.handles);
  const [source, target] = [from.node.inode, to.node.inode];
  const offset = w.pickOffset(source.data.size);
  const at = w.pickOffset(target.data.size);
  const bytes = w.random.below(30_000);
  w.note(`COPY_FILE_RANGE ${w.label(source)} flags ${from.flags.toString(8)} @${offset} -> ${w.label(target)} flags ${to.flags.toString(8)} @${at} +${bytes}`);
  const reply = await w.call(OP.COPY_FILE_RANGE, from.node, concat(u64(from.fh, offset, to.node.id, to.fh, at, bytes, 0)), 8);
  const most = w.compare(reply, () => w.model.copyRange(source, from.flags, offset, target, to.flags, at, bytes));
  if (most === null) return;
  // The call may do less than it was asked, but not nothing
  const copied = reply.data.getUint32(0, true);
  assert.ok(copied <= most && (copied > 0 || most === 0), `${copied} of ${most} bytes`);
  w.model.copied(source, offset, target, at, copied);
}

export async function sync(w: World): Promise<void> {
  const handle = await pickHandle(w);
  if (handle === null) return;
  const flush = w.random.chance(80);
  w.note(`${flush ? 'FLUSH' : 'FSYNC'} ${w.label(handle.node.inode)}`);
  const args = flush ? u64(handle.fh, 0, 7) : concat(u64(handle.fh), u32(w.random.below(2), 0));
  assert.equal((await w.call(flush ? OP.FLUSH : OP.FSYNC, handle.node, args, 0)).error, 0);
}

function bytesOf(reply: Reply): Uint8Array {
  return new Uint8Array(reply.data.buffer, reply.data.byteOffset, reply.data.byteLength);
}
