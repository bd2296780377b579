/** The host's side: changes behind the daemon's back, and the whole tree compared at the end. */
import assert from 'node:assert/strict';
import {
  chmodSync, closeSync, lchownSync, linkSync, lstatSync, mkdirSync, openSync, readSync, readdirSync, readlinkSync, renameSync, rmdirSync, symlinkSync,
  truncateSync, unlinkSync, writeSync,
} from 'node:fs';
import { join } from 'node:path';
import { errnoName } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import type { Inode } from './model.js';
import type { World } from './world.js';

const ROOT = { uid: 0, gid: 0 };
const PATH_BYTES_MAX = 4000;

/** The errno of a call of node:fs, 0 or negative. */
function errnoOf(call: () => void): number {
  try {
    call();
    return 0;
  } catch (error) {
    const { errno } = error as NodeJS.ErrnoException;
    if (errno === undefined) throw error;
    return errno;
  }
}

/** The same on the host and in the model: where they differ the model is wrong. */
function both(w: World, what: string, call: () => void, run: () => number | Inode): void {
  w.note(`host: ${what}`);
  const real = errnoOf(call);
  const expected = run();
  const errno = typeof expected === 'number' ? expected : 0;
  assert.equal(errnoName(real), errnoName(errno), `the host's errno of ${what}`);
}

export function changeOnHost(w: World): void {
  changeIn(w, w.random.pick(w.liveDirectories()));
}

/** Make, remove or rename something in a directory. */
export function changeIn(w: World, dir: Inode): void {
  const { model, random } = w;
  if (dir.isDead || !dir.isDirectory) return;
  const entry = w.pickName(dir);
  const path = w.pathIn(dir, entry);
  if (Buffer.byteLength(path) > PATH_BYTES_MAX) return;
  const there = dir.entries.get(entry);
  const dice = random.below(7);
  if (dice === 0) both(w, `mkdir ${path}`, () => mkdirSync(path, 0o750), () => model.make(dir, entry, 'directory', 0o750, ROOT));
  else if (dice === 1) both(w, `create ${path}`, () => closeSync(openSync(path, 'wx', 0o604)), () => model.make(dir, entry, 'file', 0o604, ROOT));
  else if (dice === 2) both(w, `symlink ${path}`, () => symlinkSync('host', path), () => model.make(dir, entry, 'symlink', 0, ROOT, 'host'));
  else if (dice === 3 && there?.isDirectory) both(w, `rmdir ${path}`, () => rmdirSync(path), () => model.rmdir(dir, entry));
  else if (dice === 3) both(w, `unlink ${path}`, () => unlinkSync(path), () => model.unlink(dir, entry));
  else if (dice === 4) renameOnHost(w, dir, entry, path);
  else if (there !== undefined) changeInode(w, there, path);
}

function renameOnHost(w: World, dir: Inode, entry: string, path: string): void {
  const to = w.random.pick(w.liveDirectories());
  const newName = w.pickName(to);
  const newPath = w.pathIn(to, newName);
  if (Buffer.byteLength(newPath) > PATH_BYTES_MAX) return;
  if (w.random.chance(30)) {
    const inode = dir.entries.get(entry);
    if (inode === undefined) return;
    both(w, `link ${path} ${newPath}`, () => linkSync(path, newPath), () => w.model.link(inode, to, newName));
  } else {
    both(w, `rename ${path} ${newPath}`, () => renameSync(path, newPath), () => w.model.rename(dir, entry, to, newName, 0));
  }
}

function changeInode(w: World, inode: Inode, path: string): void {
  const { model, random } = w;
  const done = (change: () => void) => (): number => {
    change();
    return 0;
  };
  const dice = random.below(4);
  if (dice === 0 && inode.kind !== 'symlink') {
    const mode = random.below(0o10000);
    both(w, `chmod ${mode.toString(8)} ${path}`, () => chmodSync(path, mode), done(() => model.chmod(inode, mode)));
  } else if (dice === 1) {
    both(w, `chown 77:78 ${path}`, () => lchownSync(path, 77, 78), done(() => model.chown(inode, 77, 78)));
  } else if (inode.kind === 'file' && dice === 2) {
    const size = random.below(20_000);
    both(w, `truncate ${path} to ${size}`, () => truncateSync(path, size), () => model.truncate(inode, size));
  } else if (inode.kind === 'file') {
    const offset = random.below(30_000);
    const data = random.bytes(random.below(500));
    const write = (): void => {
      const fd = openSync(path, 'r+');
      writeSync(fd, data, 0, data.length, offset);
      closeSync(fd);
    };
    both(w, `write ${path} @${offset} +${data.length}`, write, done(() => model.write(inode, 2, offset, data)));
  }
}

/** The directory as the host has it is the directory as the model has it. */
export function compareTree(w: World, dir: Inode = w.model.root, path: string = w.directory): void {
  assert.deepEqual(readdirSync(path).sort(), [...dir.entries.keys()].sort(), `names in ${path}`);
  compareInode(dir, path);
  for (const [entry, inode] of dir.entries) {
    const below = join(path, entry);
    if (inode.isDirectory) compareTree(w, inode, below);
    else compareInode(inode, below);
  }
}

function compareInode(inode: Inode, path: string): void {
  const status = lstatSync(path, { bigint: true });
  const real = { mode: status.mode.toString(8), nlink: Number(status.nlink), uid: Number(status.uid), gid: Number(status.gid) };
  assert.deepEqual(real, { mode: inode.stMode.toString(8), nlink: inode.nlink, uid: inode.uid, gid: inode.gid }, path);
  if (inode.ino !== null) assert.equal(status.ino, inode.ino, `inode number of ${path}`);
  if (inode.size >= 0) assert.equal(Number(status.size), inode.size, `size of ${path}`);
  if (inode.mtime !== null) assert.equal(status.mtimeNs, inode.mtime, `mtime of ${path}`);
  if (inode.kind === 'symlink') assert.equal(readlinkSync(path), inode.target);
  if (inode.kind === 'file') compareContents(inode, path);
  if (inode.kind === 'file' || inode.isDirectory) assert.deepEqual(attributesOf(path), new Map([...inode.xattrs].sort()), `attributes of ${path}`);
}

/** Every page that was ever written, and those beside it. */
function compareContents(inode: Inode, path: string): void {
  const fd = openSync(path, 'r');
  try {
    for (const { offset, bytes } of inode.data.pieces()) {
      const from = Math.max(0, offset - 4096);
      const real = new Uint8Array(Math.min(inode.data.size - from, bytes + 8192));
      assert.equal(readSync(fd, real, 0, real.length, from), real.length);
      assert.ok(Buffer.from(real).equals(inode.data.read(from, real.length)), `contents of ${path} from ${from}`);
    }
  } finally {
    closeSync(fd);
  }
}

const memory = NativeMemory.allocate(16384);
const NAME_AT = 5000;
const LIST_AT = 8192;

/** Extended attributes of a file, sorted by name. */
function attributesOf(path: string): Map<string, Uint8Array> {
  const file = memory.putString(0, path);
  const n = c.check(c.listxattr(file, memory.address + LIST_AT, 4096), 'listxattr');
  const names = Buffer.from(memory.u8.slice(LIST_AT, LIST_AT + n)).toString().split('\0').slice(0, -1).sort();
  return new Map(names.map((attribute) => {
    const bytes = c.check(c.getxattr(file, memory.putString(NAME_AT, attribute), memory.address + LIST_AT, 4096), 'getxattr');
    return [attribute, memory.u8.slice(LIST_AT, LIST_AT + bytes)];
  }));
}
