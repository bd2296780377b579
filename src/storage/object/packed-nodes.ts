/**
 * Nodes that nobody uses at the moment: numbers in a record, key and version as bytes. A node that is used has a slot, too, but no record.
 *
 * What the store would have to be asked for is not kept: attributes of other tools, HTTP headers, and with them the belief in what there are
 * of extended attributes and of a link's target.
 */
import type { Facts } from './facts.js';
import { ByteSlabs } from './byte-slabs.js';
import { DOUBLE, NodeRecords, WORD } from './node-records.js';
import type { InodeNumber, ObjectNode } from './nodes.js';
import type { Time } from './posix-metadata.js';

/** In the lower half of WORD.FLAGS; the upper one is the mode. `WIDE`: the key is UTF-16, not Latin-1. */
const FLAG = { DIRECTORY: 1, SUFFIXED: 2, NO_VERSION: 4, HEX_VERSION: 8, TOLD: 16, CACHED: 32, TIMES: 64, WIDE: 128 } as const;

/** Lengths of key and version, in bytes; then the key, atime and ctime if they are not mtime, and the version. */
const HEAD = { KEY: 0, VERSION: 2, BYTES: 4 };
const TIMES = { ATIME: 0, ATIME_NS: 8, CTIME: 12, CTIME_NS: 20, BYTES: 24 };
/** A digest in hexadecimal digits, as ETags of S3 mostly are. */
const HEX_BYTES = 16;
const REFS_MAX = 2 ** 32 - 1;
const TEXT_MAX_BYTES = 6000;
const NO_XATTRS: ReadonlyMap<string, Uint8Array> = new Map();
const NO_TURN: Promise<unknown> = Promise.resolve();

export class PackedNodes {
  readonly records = new NodeRecords();
  readonly #texts = new ByteSlabs();

  /** Whether all that has to be kept of a node can be. */
  fits({ key, facts: { version }, refs }: ObjectNode): boolean {
    return refs <= REFS_MAX && key.length * 2 + (version?.length ?? 0) * 3 <= TEXT_MAX_BYTES;
  }

  /** Its slot has a record now. */
  pack(node: ObjectNode): void {
    const { key, facts } = node;
    const { version, mtime, atime, ctime } = facts;
    const wide = !isLatin1(key);
    const hex = version !== null && isHex(version);
    const times = !isSame(atime, mtime) || !isSame(ctime, mtime);
    const { words, doubles } = this.records.block(node.slot);
    const at = this.records.at(node.slot);
    words[at + WORD.SEQUENCE] = node.sequence;
    words[at + WORD.REFS] = node.refs;
    words[at + WORD.FLAGS] = (facts.mode << 16) | (node.directory ? FLAG.DIRECTORY : 0) | (node.suffixed ? FLAG.SUFFIXED : 0) | (version === null ? FLAG.NO_VERSION : 0) |
      (hex ? FLAG.HEX_VERSION : 0) | (version !== null && node.told === version ? FLAG.TOLD : 0) | (version !== null && node.cached === version ? FLAG.CACHED : 0) |
      (times ? FLAG.TIMES : 0) | (wide ? FLAG.WIDE : 0);
    words[at + WORD.INO_LOW] = node.inoLow;
    words[at + WORD.INO_HIGH] = node.inoHigh;
    words[at + WORD.MTIME_NS] = mtime.nanoseconds;
    words[at + WORD.UID] = facts.uid;
    words[at + WORD.GID] = facts.gid;
    words[at + WORD.RDEV] = facts.rdev;
    const isWhole = facts.xattrs.size === 0 && facts.symlink === null;
    words[at + WORD.PROOF] = isWhole ? node.proof_s : 0;
    const double = at / 2;
    doubles[double + DOUBLE.SIZE] = facts.size;
    doubles[double + DOUBLE.MTIME] = mtime.seconds;
    doubles[double + DOUBLE.EXPIRES] = isWhole ? node.expires_ms : -Infinity;
    const versionBytes = version === null ? 0 : hex ? HEX_BYTES : Buffer.byteLength(version);
    const text = this.#allocate(key, wide, (times ? TIMES.BYTES : 0) + versionBytes, versionBytes);
    words[at + WORD.TEXT] = text;
    const { bytes } = this.#texts;
    let end = this.#behindKey();
    if (times) {
      putTime(bytes, end + TIMES.ATIME, end + TIMES.ATIME_NS, atime);
      putTime(bytes, end + TIMES.CTIME, end + TIMES.CTIME_NS, ctime);
      end += TIMES.BYTES;
    }
    if (version !== null) bytes.write(version, end, hex ? 'hex' : 'utf8');
  }

  /** The node of a slot, which has no record any more; it was not given out yet. */
  unpack(slot: number): ObjectNode {
    const { words, doubles } = this.records.block(slot);
    const at = this.records.at(slot);
    const double = at / 2;
    const flags = words[at + WORD.FLAGS];
    const key = this.keyOf(slot);
    const { bytes, offset } = this.#texts;
    let end = this.#behindKey();
    const mtime = { seconds: doubles[double + DOUBLE.MTIME], nanoseconds: words[at + WORD.MTIME_NS] };
    const times = (flags & FLAG.TIMES) !== 0;
    const atime = times ? timeAt(bytes, end + TIMES.ATIME, end + TIMES.ATIME_NS) : mtime;
    const ctime = times ? timeAt(bytes, end + TIMES.CTIME, end + TIMES.CTIME_NS) : mtime;
    if (times) end += TIMES.BYTES;
    const version = (flags & FLAG.NO_VERSION) !== 0 ? null
      : bytes.toString((flags & FLAG.HEX_VERSION) !== 0 ? 'hex' : 'utf8', end, end + bytes.readUInt16LE(offset + HEAD.VERSION));
    const facts: Facts = {
      mode: flags >>> 16, uid: words[at + WORD.UID] >>> 0, gid: words[at + WORD.GID] >>> 0, rdev: words[at + WORD.RDEV] >>> 0, size: doubles[double + DOUBLE.SIZE], mtime,
      atime, ctime, version, symlink: null, xattrs: NO_XATTRS, kept: null, headers: null,
    };
    const node: ObjectNode = {
      slot, sequence: words[at + WORD.SEQUENCE] >>> 0, directory: (flags & FLAG.DIRECTORY) !== 0, key, unlinked: false, replaced: false, refused: false,
      suffixed: (flags & FLAG.SUFFIXED) !== 0, inoLow: words[at + WORD.INO_LOW], inoHigh: words[at + WORD.INO_HIGH], refs: words[at + WORD.REFS] >>> 0, opens: 0, facts,
      expires_ms: doubles[double + DOUBLE.EXPIRES], proof_s: words[at + WORD.PROOF] >>> 0, told: (flags & FLAG.TOLD) !== 0 ? version : null, lookedUp_ms: -Infinity,
      cached: (flags & FLAG.CACHED) !== 0 ? version : null, staged: null, turn: NO_TURN, replacing: null, given: 0, queued: 0, older: null, newer: null,
    };
    this.drop(slot);
    return node;
  }

  /** The record of a slot is not needed any more. */
  drop(slot: number): void {
    const { words } = this.records.block(slot);
    const at = this.records.at(slot);
    this.#texts.free(words[at + WORD.TEXT]);
    words[at + WORD.SEQUENCE] = 0;
  }

  isDirectory(slot: number): boolean {
    return (this.#word(slot, WORD.FLAGS) & FLAG.DIRECTORY) !== 0;
  }

  numberOf(slot: number): InodeNumber {
    return { inoLow: this.#word(slot, WORD.INO_LOW), inoHigh: this.#word(slot, WORD.INO_HIGH) };
  }

  keyOf(slot: number): string {
    const { bytes, offset } = this.#locate(slot);
    const from = offset + HEAD.BYTES;
    return bytes.toString((this.#word(slot, WORD.FLAGS) & FLAG.WIDE) !== 0 ? 'utf16le' : 'latin1', from, from + bytes.readUInt16LE(offset + HEAD.KEY));
  }

  hasKey(slot: number, key: string): boolean {
    if ((this.#word(slot, WORD.FLAGS) & FLAG.WIDE) !== 0) return this.keyOf(slot) === key;
    const { bytes, offset } = this.#locate(slot);
    return bytes.readUInt16LE(offset + HEAD.KEY) === key.length && startsWith(bytes, offset + HEAD.BYTES, key);
  }

  /** The key begins so. */
  isBelow(slot: number, prefix: string): boolean {
    if ((this.#word(slot, WORD.FLAGS) & FLAG.WIDE) !== 0) return this.keyOf(slot).startsWith(prefix);
    const { bytes, offset } = this.#locate(slot);
    return bytes.readUInt16LE(offset + HEAD.KEY) >= prefix.length && startsWith(bytes, offset + HEAD.BYTES, prefix);
  }

  rename(slot: number, key: string): void {
    const { words } = this.records.block(slot);
    const at = this.records.at(slot);
    const wide = !isLatin1(key);
    const { bytes, offset } = this.#locate(slot);
    const behind = this.#behindKey();
    const versionBytes = bytes.readUInt16LE(offset + HEAD.VERSION);
    const more = ((words[at + WORD.FLAGS] & FLAG.TIMES) !== 0 ? TIMES.BYTES : 0) + versionBytes;
    const before = words[at + WORD.TEXT];
    words[at + WORD.TEXT] = this.#allocate(key, wide, more, versionBytes);
    bytes.copy(this.#texts.bytes, this.#behindKey(), behind, behind + more);
    this.#texts.free(before);
    words[at + WORD.FLAGS] = (words[at + WORD.FLAGS] & ~FLAG.WIDE) | (wide ? FLAG.WIDE : 0);
  }

  expire(slot: number): void {
    this.records.block(slot).doubles[this.records.at(slot) / 2 + DOUBLE.EXPIRES] = -Infinity;
  }

  /** @returns whether it has any left */
  unref(slot: number, count: number): boolean {
    const { words } = this.records.block(slot);
    const at = this.records.at(slot) + WORD.REFS;
    const left = Math.max(0, (words[at] >>> 0) - count);
    words[at] = left;
    return left > 0;
  }

  /** In an entry for a key and so many bytes behind it, with the key in it. */
  #allocate(key: string, wide: boolean, more: number, versionBytes: number): number {
    const keyBytes = wide ? key.length * 2 : key.length;
    const text = this.#texts.allocate(HEAD.BYTES + keyBytes + more);
    const { bytes, offset } = this.#texts;
    bytes.writeUInt16LE(keyBytes, offset + HEAD.KEY);
    bytes.writeUInt16LE(versionBytes, offset + HEAD.VERSION);
    bytes.write(key, offset + HEAD.BYTES, wide ? 'utf16le' : 'latin1');
    return text;
  }

  #locate(slot: number): ByteSlabs {
    this.#texts.locate(this.#word(slot, WORD.TEXT));
    return this.#texts;
  }

  /** Of the entry that was located. */
  #behindKey(): number {
    const { bytes, offset } = this.#texts;
    return offset + HEAD.BYTES + bytes.readUInt16LE(offset + HEAD.KEY);
  }

  #word(slot: number, word: number): number {
    return this.records.block(slot).words[this.records.at(slot) + word];
  }
}

function isLatin1(text: string): boolean {
  for (let i = 0; i < text.length; i++) if (text.charCodeAt(i) > 0xff) return false;
  return true;
}

function isHex(text: string): boolean {
  for (let i = 0; i < text.length; i++) {
    const code = text.charCodeAt(i);
    if (code < 0x30 || (code > 0x39 && code < 0x61) || code > 0x66) return false;
  }
  return text.length === HEX_BYTES * 2;
}

function startsWith(bytes: Uint8Array, at: number, text: string): boolean {
  for (let i = 0; i < text.length; i++) if (bytes[at + i] !== text.charCodeAt(i)) return false;
  return true;
}

function putTime(bytes: Buffer, seconds: number, nanoseconds: number, time: Time): void {
  bytes.writeDoubleLE(time.seconds, seconds);
  bytes.writeUInt32LE(time.nanoseconds, nanoseconds);
}

const timeAt = (bytes: Buffer, seconds: number, nanoseconds: number): Time => ({ seconds: bytes.readDoubleLE(seconds), nanoseconds: bytes.readUInt32LE(nanoseconds) });

const isSame = (a: Time, b: Time): boolean => a.seconds === b.seconds && a.nanoseconds === b.nanoseconds;
