/** Requests of hostile guests, as layouts of HostileGuest. */
import assert from 'node:assert/strict';
import { concat, u32, u64 } from './frontend.js';
import { name, OP } from './guest.js';
import type { HostileGuest, Layout } from './hostile-guest.js';

const ROOT = 1n;
const F_UNLCK = 2;
const F_WRLCK = 1;
const LAST_BYTE = (1n << 63n) - 1n;

export const lookup = (text: string, node = ROOT): Layout => ({ opcode: OP.LOOKUP, node, args: name(text), room: 128 });
export const open = (node: bigint, flags = 2): Layout => ({ opcode: OP.OPEN, node, args: u32(flags, 0), room: 16 });
export const opendir = (node = ROOT): Layout => ({ opcode: OP.OPENDIR, node, args: u32(0, 0), room: 16 });
export const create = (text: string): Layout => ({ opcode: OP.CREATE, args: concat(u32(0o102, 0o100644, 0o22, 0), name(text)), room: 144 });
export const read = (node: bigint, fh: bigint, offset: number, bytes: number): Layout => ({
  opcode: OP.READ, node, args: concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), room: bytes,
});
export const write = (node: bigint, fh: bigint, offset: number, bytes: number): Layout => ({
  opcode: OP.WRITE, node, args: concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), data: bytes, room: 8,
});
export const list = (node: bigint, fh: bigint, offset: bigint, plus: boolean, bytes = 65_536): Layout => ({
  opcode: plus ? OP.READDIRPLUS : OP.READDIR, node, args: concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0)), room: bytes,
});
export const setxattr = (node: bigint, attribute: string, bytes: number): Layout => ({
  opcode: OP.SETXATTR, node, args: concat(u32(bytes, 0, 0, 0), name(attribute), new Uint8Array(bytes).fill(97)),
});
export const getxattr = (node: bigint, attribute: string, bytes: number): Layout => ({ opcode: OP.GETXATTR, node, args: concat(u32(bytes, 0), name(attribute)), room: bytes });
export const listxattr = (node: bigint, bytes: number): Layout => ({ opcode: OP.LISTXATTR, node, args: u32(bytes, 0), room: bytes });
export const symlink = (text: string, bytes: number): Layout => ({ opcode: OP.SYMLINK, args: concat(name(text), new Uint8Array(bytes).fill(98), new Uint8Array(1)), room: 128 });
export const readlink = (node: bigint): Layout => ({ opcode: OP.READLINK, node, room: 4096 });
export const fsync = (node: bigint, fh: bigint): Layout => ({ opcode: OP.FSYNC, node, args: concat(u64(fh), u32(0, 0)) });

const lock = (opcode: number, type: number, node: bigint, fh: bigint, owner: bigint, start: bigint, end: bigint): Layout => ({
  opcode, node, args: concat(u64(fh, owner, start, end), u32(type, 1234, 0, 0)),
});
export const lockWaiting = (node: bigint, fh: bigint, owner: bigint, start = 0n, end = LAST_BYTE): Layout => lock(OP.SETLKW, F_WRLCK, node, fh, owner, start, end);
export const unlock = (node: bigint, fh: bigint, owner: bigint, start = 0n, end = LAST_BYTE): Layout => lock(OP.SETLK, F_UNLCK, node, fh, owner, start, end);

const OPCODES = [1, 3, 4, 5, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 20, 21, 22, 23, 24, 25, 27, 28, 29, 30, 31, 32, 33, 34, 35, 37, 39, 40, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 63];

/** Each opcode with so many bytes behind its arguments. */
export const everything = (data: number): Layout[] =>
  OPCODES.map((opcode) => ({
    opcode, args: opcode === OP.SETXATTR ? concat(new Uint8Array([0, 0, 1, 0]), new Uint8Array(12), name('user.a')) : name('a'), data, pieces: 1024, room: 256,
  }));

/** @returns the node */
export async function found(g: HostileGuest, text: string): Promise<bigint> {
  const { error, data } = await g.call(lookup(text));
  assert.equal(error, 0);
  return data.getBigUint64(0, true);
}

/** Of OPEN, OPENDIR or CREATE. @returns the handle */
export async function opened(g: HostileGuest, layout: Layout): Promise<bigint> {
  const { error, data } = await g.call(layout);
  assert.equal(error, 0);
  return data.getBigUint64(layout.opcode === OP.CREATE ? 128 : 0, true);
}

/** As many handles of OPEN or OPENDIR. */
export async function openedOften(g: HostileGuest, layout: Layout, count = 64): Promise<bigint[]> {
  const handles: bigint[] = [];
  for (let i = 0; i < count; i++) handles.push(await opened(g, layout));
  return handles;
}

/** f0, f1 and so on are looked up, and all forgotten by one message. */
export async function foundAndForgotten(g: HostileGuest, count: number): Promise<void> {
  const nodes: bigint[] = [];
  for (let i = 0; i < count; i++) nodes.push(await found(g, `f${i}`));
  assert.equal((await g.call({ opcode: OP.BATCH_FORGET, args: concat(u32(count, 0), ...nodes.map((node) => u64(node, 1))) })).error, 0);
}

/** Listings with attributes of directories that were opened, and further ones that are opened. */
export async function listings(g: HostileGuest): Promise<Layout[]> {
  return [...(await openedOften(g, opendir())).map((fh) => list(ROOT, fh, 0n, true)), opendir()];
}
