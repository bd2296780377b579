/** What others do to the bucket, and what happens to the daemon: changes of objects, conflicts, kills, a lost cache directory. */
import assert from 'node:assert/strict';
import { readdirSync, rmSync } from 'node:fs';
import { join } from 'node:path';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../../src/base/errno.js';
import { readPosix } from '../../../src/storage/object/posix-metadata.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { OP, name } from '../../support/guest.js';
import { Inode, TYPE } from '../../model/model.js';
import { isWritable } from './files.js';
import { listDirectory } from './names.js';
import { assertSame, errnoText, NAMES, ENTRY_BYTES, type Place, type World } from './world.js';

const CONFLICTS = '.bucketfsd-conflicts/';
const OBJECT_BYTES_MAX = 40_000;
const FATTR_MODE = 1;

/** Whoever has it open has another object than the one of that name. */
function lose(w: World, inode: Inode): void {
  for (const handle of w.handles) if (handle.inode === inode) handle.lost = true;
  w.dirty.delete(inode);
}

/** A directory that was only there because of what was in it. */
async function vanish(w: World, dir: Inode): Promise<void> {
  for (let at = dir; at.parent !== null && at.entries.size === 0; ) {
    const prefix = w.prefixOf(at);
    // Its marker is only here
    if (w.dirty.has(at)) return;
    if ((await w.keys(prefix)).length > 0) return;
    assert.ok(w.implicit.has(at), `${w.label(at)} has a marker`);
    const { parent } = at;
    parent.entries.delete(w.steps(at).at(-1)!);
    parent.changed();
    at.parent = null;
    w.nodes.delete(at);
    at = parent;
  }
}

/** An object of somebody else takes the name. */
function replaceBy(w: World, dir: Inode, entry: string, inode: Inode): void {
  const before = dir.entries.get(entry);
  dir.entries.set(entry, inode);
  dir.changed();
  if (before === undefined) return;
  lose(w, before);
  // A node is a key's, and of what is open a version's
  const id = w.nodes.get(before);
  w.nodes.delete(before);
  if (id !== undefined && before.opens === 0) w.nodes.set(inode, id);
}

async function putObject(w: World, dir: Inode, entry: string): Promise<void> {
  const content = w.random.bytes(w.random.below(OBJECT_BYTES_MAX));
  const described = w.random.chance(50);
  const inode = new Inode('file', described ? 0o604 : 0o644, dir);
  if (described) {
    inode.uid = 1234;
    inode.mtime = 1_294_250_607_000_000_000n;
  }
  inode.data.write(0, content);
  w.foreign.set(inode, `made by somebody as number ${w.history.length}`);
  await w.store.put(w.prefixOf(dir) + entry, content, {
    metadata: { project: w.foreign.get(inode)!, ...(described ? { mode: String(TYPE.file | 0o604), uid: '1234', mtime: '1294250607' } : {}) }, headers: { 'content-type': 'text/x-test' },
  });
  replaceBy(w, dir, entry, inode);
}

/** Somebody puts an object, in the place of one or where nothing was, perhaps in a directory that nobody has made. */
export async function put(w: World): Promise<void> {
  if (w.random.chance(50)) await w.idle();
  let dir = w.pickDirectory();
  const entry = w.pickName(dir);
  const there = dir.entries.get(entry);
  if (there !== undefined && (there.isDirectory || w.dirty.has(there) || there.opens > 0 && w.random.chance(30))) return;
  let leaf = entry;
  if (there === undefined && w.random.chance(40)) {
    leaf = w.random.pick(NAMES);
    const made = new Inode('directory', 0o755, dir);
    dir.entries.set(entry, made);
    w.implicit.add(made);
    dir = made;
  }
  w.note(`somebody puts ${w.label(dir)} ${leaf}`);
  await putObject(w, dir, leaf);
}

/** Somebody removes an object, or the marker of a directory. */
export async function remove(w: World): Promise<void> {
  if (w.random.chance(50)) await w.idle();
  const places = w.places((inode) => !w.dirty.has(inode));
  if (places.length === 0) return;
  const place = w.random.pick(places);
  if (place.inode.isDirectory) return removeMarker(w, place);
  w.note(`somebody removes ${w.label(place.inode)}`);
  await w.store.remove(w.prefixOf(place.dir) + place.name);
  place.dir.entries.delete(place.name);
  place.dir.changed();
  lose(w, place.inode);
  await vanish(w, place.dir);
}

async function removeMarker(w: World, { dir, name: entry, inode }: Place): Promise<void> {
  const key = `${w.prefixOf(dir)}${entry}/`;
  // What is only here keeps the directory there, with attributes of who knows when
  if (w.places((one) => w.dirty.has(one)).some((one) => w.prefixOf(one.dir).startsWith(key))) return;
  if (!(await w.keys(key)).includes(key)) return;
  w.note(`somebody removes the marker of ${w.label(inode)}`);
  await w.store.remove(key);
  inode.mode = 0o755;
  inode.uid = inode.gid = 0;
  inode.mtime = null;
  inode.xattrs.clear();
  w.foreign.delete(inode);
  w.implicit.add(inode);
  await vanish(w, inode);
}

/** Somebody changes or removes an object while it is being changed here. */
export async function conflict(w: World): Promise<void> {
  if (w.settings.durability === 'writeback' && w.settings.writebackDelay_ms < 1000) return;
  const mine = w.handles.filter((handle) => !handle.lost && isWritable(handle) && !handle.inode.isDead);
  if (mine.length === 0) return;
  const handle = w.random.pick(mine);
  const { inode } = handle;
  const place = w.placeOf(inode)!;
  const key = w.prefixOf(place.dir) + place.name;
  const removes = w.random.chance(40);
  if (removes && !(await w.keys(key)).includes(key)) return;
  // Where conditions are not honoured a commit that is under way overwrites what comes meanwhile
  if (w.settings.capabilities.putIfVersion === false) await w.idle();
  const offset = w.pickOffset(inode.data.size);
  const data = w.random.bytes(1 + w.pickBytes());
  w.note(`WRITE ${w.label(inode)} @${offset} +${data.length} while somebody ${removes ? 'removes' : 'replaces'} it`);
  w.same(await w.guest.write(handle.node, handle.fh, offset, data), 0);
  inode.data.write(offset, data);
  if (removes) {
    await w.store.remove(key);
    place.dir.entries.delete(place.name);
  } else {
    await putObject(w, place.dir, place.name);
  }
  const { durability } = w.settings;
  const error = await w.flush(handle);
  assert.equal(errnoText(error), durability === 'remote' ? 'ESTALE' : 'success');
  for (const one of w.handles.filter((other) => other.inode === inode)) {
    one.lost = true;
    await w.release(one);
  }
  await w.idle();
  w.dirty.delete(inode);
  const kept = await w.keys(w.settings.prefix + CONFLICTS);
  assert.equal(kept.length, 1, `what was written is kept: ${kept.join(', ')}`);
  await compareKept(w, kept[0], inode, offset, data);
  await w.store.remove(kept[0]);
  if (removes) await vanish(w, place.dir);
}

/** What was changed here is kept; what was only in the object that is gone is zeros, and the metadata says where. */
async function compareKept(w: World, key: string, inode: Inode, offset: number, data: Uint8Array): Promise<void> {
  const { metadata } = await w.store.head(key);
  const real = await w.objectBytes(key);
  const expected = inode.data.read(0, inode.data.size);
  for (const range of (metadata!['bucketfsd-missing'] ?? '').split(',').filter((text) => text !== '')) {
    const [from, to] = range.split('-').map(Number);
    assert.ok(to <= offset || from >= offset + data.length, `${range} was written`);
    expected.fill(0, from, to);
  }
  assertSame(real, expected, 'what is kept of a conflict');
}

/** Somebody makes a directory that is only here so far. */
export async function makeToo(w: World): Promise<void> {
  const places = w.places((inode) => inode.isDirectory && w.dirty.has(inode));
  if (places.length === 0) return idle(w);
  const { dir, name: entry, inode } = w.random.pick(places);
  const key = `${w.prefixOf(dir)}${entry}/`;
  // Whether ours comes before or after it nobody knows, unless it is long until then
  if (w.settings.writebackDelay_ms < 1000 || (await w.keys(key)).includes(key)) return;
  w.note(`somebody makes the directory ${w.label(inode)}`);
  const project = `made as number ${w.history.length}`;
  await w.store.put(key, new Uint8Array(0), { metadata: { project, mode: String(TYPE.directory | 0o501) } });
  w.foreign.set(inode, project);
  w.implicit.delete(inode);
}

export async function idle(w: World): Promise<void> {
  w.note('everything that is due is committed');
  await w.idle();
}

/** The daemon is killed and started again: nothing that was acknowledged is lost. */
export async function kill(w: World): Promise<void> {
  w.note('the daemon is killed and started again');
  await w.kill();
  await w.start();
}

/** Killed while it does something, after some calls of the store: that has happened, or not. */
export async function killInside(w: World): Promise<void> {
  const parts = w.random.pick([killInRename, killInRename, killInRename, killInRemove, killInSync, killInSync, killInChmod]);
  await parts(w);
}

/** @returns whether there was an answer */
async function askAndKill(w: World, opcode: number, node: bigint, args: Uint8Array, room = 0): Promise<boolean> {
  const calls = 1 + w.random.below(8);
  const effect = w.random.chance(50);
  w.note(`  ... and the daemon is killed at its call ${calls} of the store${effect ? ', which takes effect' : ''}`);
  w.mortal.dieAt(calls, effect);
  w.guest.queue.chain([w.guest.request(opcode, node, args).bytes], room === 0 ? [16] : [16, room], true);
  w.guest.queue.kick();
  let answered = false;
  while (!answered && !w.mortal.dead) {
    await turn();
    answered = w.guest.queue.take().length > 0;
  }
  await w.kill();
  await w.start();
  return answered;
}

async function killInRename(w: World): Promise<void> {
  const places = w.places();
  if (places.length === 0) return;
  const place = w.random.pick(places);
  const to = w.pickDirectory();
  const newName = w.pickName(to);
  const target = to.entries.get(newName);
  // Only what will be done, so that its names tell whether it was
  const within = (dir: Inode): boolean => dir === place.inode || (dir.parent !== null && within(dir.parent));
  if (target !== undefined && (target === place.inode || target.isDirectory || place.inode.isDirectory)) return;
  if (within(to)) return;
  w.note(`RENAME2 ${w.label(place.inode)} -> ${w.label(to)} ${newName}`);
  const [a, b] = [await w.reach(place.dir), await w.reach(to)];
  const answered = await askAndKill(w, OP.RENAME2, a, concat(u64(b), u32(0, 0), name(place.name), name(newName)));
  const parent = await w.reach(place.dir);
  const { error } = await w.call(OP.LOOKUP, parent, name(place.name), ENTRY_BYTES);
  assert.ok(error === -E.NOENT || (!answered && error === 0), `${place.name} ${errnoText(error)} after ${answered ? 'an' : 'no'} answer`);
  if (error === 0) {
    // Looked up behind the model's back: the guest knows it once more
    await w.reachPlace(place);
    return void w.note('  ... and was not done');
  }
  w.same({ error: 0 }, w.model.rename(place.dir, place.name, to, newName, 0));
  w.nodes.delete(place.inode);
  if (target !== undefined) w.dirty.delete(target);
}

async function killInRemove(w: World): Promise<void> {
  const places = w.places((inode) => inode.entries.size === 0);
  if (places.length === 0) return;
  const { dir, name: entry, inode } = w.random.pick(places);
  w.note(`${inode.isDirectory ? 'RMDIR' : 'UNLINK'} ${w.label(inode)}`);
  const parent = await w.reach(dir);
  const answered = await askAndKill(w, inode.isDirectory ? OP.RMDIR : OP.UNLINK, parent, name(entry));
  // The marker that keeps the directory may not have been put yet
  const gone = !answered && w.implicit.has(dir) && !w.dirty.has(dir) && (await w.keys(w.prefixOf(dir))).length === 0 && ![...dir.entries.values()].some((one) => w.dirty.has(one));
  const { error } = gone ? { error: -E.NOENT } : await w.call(OP.LOOKUP, await w.reach(dir), name(entry), ENTRY_BYTES);
  assert.ok(error === -E.NOENT || (!answered && error === 0), `${entry} ${errnoText(error)} after ${answered ? 'an' : 'no'} answer`);
  if (error === 0) return void w.note('  ... and was not done');
  w.same({ error: 0 }, inode.isDirectory ? w.model.rmdir(dir, entry) : w.model.unlink(dir, entry));
  if (gone) await vanish(w, dir);
}

async function killInSync(w: World): Promise<void> {
  const handles = w.handles.filter((handle) => !handle.lost && isWritable(handle));
  if (handles.length === 0) return kill(w);
  const handle = w.random.pick(handles);
  const { inode } = handle;
  const offset = w.pickOffset(inode.data.size);
  const data = w.random.bytes(1 + w.pickBytes());
  w.note(`WRITE ${w.label(inode)} @${offset} +${data.length}, FSYNC`);
  w.same(await w.guest.write(handle.node, handle.fh, offset, data), 0);
  inode.data.write(offset, data);
  inode.changed();
  w.changed(inode);
  await askAndKill(w, OP.FSYNC, handle.node, concat(u64(handle.fh), u32(0, 0)));
}

async function killInChmod(w: World): Promise<void> {
  const places = w.places((inode) => inode.kind === 'file' || inode.isDirectory);
  if (places.length === 0) return;
  const place = w.random.pick(places);
  const { inode } = place;
  const node = await w.reachPlace(place);
  const args = new DataView(new ArrayBuffer(88));
  args.setUint32(0, FATTR_MODE, true);
  args.setUint32(68, 0o733, true);
  w.note(`SETATTR ${w.label(inode)} mode 733`);
  const answered = await askAndKill(w, OP.SETATTR, node, new Uint8Array(args.buffer), 104);
  const parent = await w.reach(place.dir);
  const reply = await w.call(OP.LOOKUP, parent, name(place.name), ENTRY_BYTES);
  w.same(reply, 0);
  const mode = reply.data.getUint32(100, true) & 0o7777;
  assert.ok(mode === 0o733 || (!answered && mode === inode.mode), `mode ${mode.toString(8)}`);
  inode.mode = mode;
  w.described(inode);
}

/** Everything committed, the daemon ended or killed, the cache directory gone: the bucket has it all. */
export async function wipe(w: World): Promise<void> {
  const stops = w.random.chance(50);
  const closes = !stops && (w.settings.durability === 'writeback' || w.random.chance(50));
  w.note(`${stops ? 'the daemon ends' : closes ? 'files are closed, the daemon is killed' : 'FSYNC of all, the daemon is killed'}, and its cache directory is lost`);
  for (const handle of [...w.handles]) {
    if (closes) await w.release(handle);
    else if (!stops && !handle.lost) w.same({ error: await w.flush(handle, OP.FSYNC) }, 0);
  }
  if (stops) {
    assert.equal(await w.stop(), 0, 'files left behind by a daemon that has ended');
    assert.deepEqual(readdirSync(join(w.cacheDirectory, 'staging')), []);
  } else {
    await w.idle();
    await w.kill();
  }
  w.dirty.clear();
  rmSync(w.cacheDirectory, { recursive: true });
  await w.start();
}

// At the end

/** What the guest finds is what the model has. */
export async function compareTree(w: World): Promise<void> {
  for (const dir of w.directories()) await listDirectory(w, dir);
  for (const place of w.places()) {
    await w.reachPlace(place);
    const { inode } = place;
    if (inode.kind === 'file') assertSame(await w.content(place), inode.data.read(0, inode.data.size), `the content of ${w.label(inode)}`);
  }
}

/** What any other client finds in the bucket: every object that should be there, and nothing else. */
export async function compareStore(w: World): Promise<void> {
  const left = new Set(await w.keys());
  for (const { dir, name: entry, inode } of w.places()) {
    const key = `${w.prefixOf(dir)}${entry}${inode.isDirectory ? '/' : ''}`;
    const there = left.delete(key);
    if (!there && inode.isDirectory && w.implicit.has(inode) && inode.entries.size > 0) continue;
    assert.ok(there, `${key} is in the bucket`);
    const { metadata, size } = await w.store.head(key);
    if (inode.kind === 'file') assertSame(await w.objectBytes(key), inode.data.read(0, inode.data.size), `the object ${key}`);
    if (inode.kind === 'symlink') assert.equal((await w.objectBytes(key)).toString(), inode.target);
    if (inode.isDirectory) assert.equal(size, 0);
    const { posix, ignored } = readPosix(metadata!);
    const mtime = posix.mtime === null ? null : BigInt(posix.mtime.seconds) * 1_000_000_000n + BigInt(posix.mtime.nanoseconds);
    const real = {
      ignored, mode: (posix.mode ?? 0o100644).toString(8), uid: posix.uid ?? 0, gid: posix.gid ?? 0, mtime, project: metadata!['project'],
      xattrs: [...(posix.xattrs ?? [])].map(([key, value]) => `${key}=${Buffer.from(value).toString('hex')}`).sort(),
    };
    const expected = {
      ignored: [], mode: inode.stMode.toString(8), uid: inode.uid, gid: inode.gid, mtime: inode.mtime ?? mtime, project: w.foreign.get(inode),
      xattrs: [...inode.xattrs].map(([key, value]) => `${key}=${Buffer.from(value).toString('hex')}`).sort(),
    };
    assert.deepEqual(real, expected, `metadata of ${key}`);
  }
  // The root may have been given attributes
  if (w.settings.prefix !== '') left.delete(w.settings.prefix);
  assert.deepEqual([...left], [], 'objects that nobody has made');
  // Those whose beginning a killed daemon has not heard of are nobody's
  const { uploads } = await w.store.listUploads({ prefix: '' });
  assert.deepEqual(uploads.filter(({ id }) => !w.mortals.some(({ orphans }) => orphans.includes(id))), [], 'uploads left behind');
}
