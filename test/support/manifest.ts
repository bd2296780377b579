/**
 * What a tree of files has to be by what was acknowledged, and how a bucket differs from it. Tests that kill daemons keep one beside the
 * daemon, and compare when the daemon and all that it kept for itself are gone.
 */
import { S_IFLNK, S_IFMT } from '../../src/ffi/constants.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import type { ObjectStore } from '../../src/storage/object/store.js';

/** The content of a file that grows and shrinks. */
export class Bytes {
  /** Zeros behind `size`. */
  #memory = Buffer.alloc(0);
  #size = 0;

  static of(content: Uint8Array): Bytes {
    const bytes = new Bytes();
    bytes.write(0, content);
    return bytes;
  }

  get size(): number {
    return this.#size;
  }

  get view(): Buffer {
    return this.#memory.subarray(0, this.#size);
  }

  write(offset: number, data: Uint8Array): void {
    if (data.length === 0) return;
    this.#reserve(offset + data.length);
    this.#memory.set(data, offset);
    this.#size = Math.max(this.#size, offset + data.length);
  }

  truncate(size: number): void {
    this.#reserve(size);
    if (size < this.#size) this.#memory.fill(0, size, this.#size);
    this.#size = size;
  }

  /** Zeros, as far as the content goes. */
  zero(from: number, to: number): void {
    if (from < this.#size) this.#memory.fill(0, from, Math.min(to, this.#size));
  }

  #reserve(size: number): void {
    if (size <= this.#memory.length) return;
    const larger = Buffer.alloc(Math.max(size, 2 * this.#memory.length));
    larger.set(this.#memory);
    this.#memory = larger;
  }
}

export interface FileNode {
  readonly kind: 'file';
  bytes: Bytes;
  mode: number;
  /** null: whenever it was. */
  mtime_s: number | null;
}

export interface DirectoryNode {
  readonly kind: 'directory';
  /** null: whatever it is. */
  mode: number | null;
}

export type Node = FileNode | DirectoryNode | { readonly kind: 'link'; readonly target: string };

/** What one request changes; as one step, or not at all. */
export type Change =
  | { readonly does: 'make'; readonly path: string; readonly node: Node }
  | { readonly does: 'write'; readonly file: FileNode; readonly offset: number; readonly data: Uint8Array }
  | { readonly does: 'zero'; readonly file: FileNode; readonly from: number; readonly to: number }
  | { readonly does: 'size'; readonly file: FileNode; readonly size: number }
  | { readonly does: 'mode'; readonly file: FileNode | DirectoryNode; readonly mode: number }
  | { readonly does: 'mtime'; readonly file: FileNode; readonly mtime_s: number }
  | { readonly does: 'remove'; readonly path: string }
  | { readonly does: 'rename'; readonly from: string; readonly to: string };

/** What a bucket has under a name: the content, and what its metadata says. */
export interface Seen {
  readonly content: Buffer;
  readonly mode: number | null;
  readonly mtime_s: number | null;
}

const PERMISSIONS = 0o7777;
/** The daemon's, where an object says nothing. */
export const DEFAULT_FILE_MODE = 0o644;
export const DEFAULT_DIRECTORY_MODE = 0o755;

/** Everything below a prefix, by key without the prefix; markers of directories end with a slash. */
export async function readBucket(store: ObjectStore, prefix: string): Promise<Map<string, Seen>> {
  const seen = new Map<string, Seen>();
  let token: string | undefined;
  do {
    const page = await store.list({ prefix, ...(token === undefined ? {} : { token }) });
    for (const { key } of page.objects) {
      const info = await store.head(key);
      const content = Buffer.alloc(info.size);
      const read = info.size === 0 ? 0 : await store.read(key, { offset: 0, into: content });
      const { posix } = readPosix(info.metadata ?? {});
      seen.set(key.slice(prefix.length), { content: content.subarray(0, read), mode: posix.mode, mtime_s: posix.mtime?.seconds ?? null });
    }
    token = page.next ?? undefined;
  } while (token !== undefined);
  return seen;
}

export class Manifest {
  /** By path without a slash at either end. */
  readonly nodes = new Map<string, Node>();

  apply(change: Change): void {
    switch (change.does) {
      case 'make':
        return void this.nodes.set(change.path, change.node);
      case 'write':
        change.file.bytes.write(change.offset, change.data);
        change.file.mtime_s = null;
        return;
      case 'zero':
        change.file.bytes.zero(change.from, change.to);
        change.file.mtime_s = null;
        return;
      case 'size':
        change.file.bytes.truncate(change.size);
        change.file.mtime_s = null;
        return;
      case 'mode':
        change.file.mode = change.mode;
        return;
      case 'mtime':
        change.file.mtime_s = change.mtime_s;
        return;
      case 'remove':
        return void this.nodes.delete(change.path);
      case 'rename':
        return this.#rename(change.from, change.to);
    }
  }

  #rename(from: string, to: string): void {
    for (const path of this.below(to)) this.nodes.delete(path);
    for (const path of this.below(from)) {
      const node = this.nodes.get(path)!;
      this.nodes.delete(path);
      this.nodes.set(to + path.slice(from.length), node);
    }
  }

  /** The path itself and everything in it. */
  below(path: string): string[] {
    return [...this.nodes.keys()].filter((one) => one === path || one.startsWith(`${path}/`));
  }

  /** The name that a file has now. */
  pathOf(node: Node): string | null {
    for (const [path, one] of this.nodes) if (one === node) return path;
    return null;
  }

  /**
   * What is not as it has to be, for people. `pending`: the one request that was not answered; it happened or it did not. Of data that it
   * was to write any part may be there, as after a crash of any file system. The manifest is what was found, afterwards.
   */
  differences(seen: ReadonlyMap<string, Seen>, pending: Change | null): string[] {
    if (pending !== null && (pending.does === 'write' || pending.does === 'zero')) this.#blend(seen, pending);
    const without = this.#compare(seen);
    if (without.length === 0 || pending === null) return without;
    this.apply(pending);
    const along = this.#compare(seen);
    return along.length === 0 ? [] : [...without, ...along.map((line) => `or, with what was not acknowledged: ${line}`)];
  }

  /** Take over what is there, where each byte is either the old or the new one. */
  #blend(seen: ReadonlyMap<string, Seen>, pending: Change & { does: 'write' | 'zero' }): void {
    const path = this.pathOf(pending.file);
    const there = path === null ? undefined : seen.get(path);
    if (there === undefined) return;
    const old = pending.file.bytes.view;
    const after = Bytes.of(old);
    new Manifest().apply({ ...pending, file: { kind: 'file', bytes: after, mode: 0, mtime_s: null } });
    const { content } = there;
    if (content.length !== old.length && content.length !== after.size) return;
    const next = after.view;
    for (let i = 0; i < content.length; i++) if (content[i] !== (old[i] ?? 0) && content[i] !== (next[i] ?? 0)) return;
    pending.file.bytes = Bytes.of(content);
    pending.file.mtime_s = null;
  }

  #compare(seen: ReadonlyMap<string, Seen>): string[] {
    const wrong: string[] = [];
    for (const [path, node] of this.nodes) {
      if (node.kind === 'directory') wrong.push(...compareDirectory(path, node.mode, seen));
      else wrong.push(...compareObject(path, node, seen.get(path)));
    }
    for (const key of seen.keys()) {
      const path = key.replace(/\/$/, '');
      if ((this.nodes.get(path)?.kind === 'directory') !== key.endsWith('/') || !this.nodes.has(path)) wrong.push(`${key} is there`);
    }
    return wrong;
  }
}

function compareDirectory(path: string, mode: number | null, seen: ReadonlyMap<string, Seen>): string[] {
  const marker = seen.get(`${path}/`);
  if (marker === undefined) return [...seen.keys()].some((key) => key.startsWith(`${path}/`)) ? [] : [`the directory ${path} is not there`];
  const actual = (marker.mode ?? DEFAULT_DIRECTORY_MODE) & PERMISSIONS;
  return mode === null || actual === mode ? [] : [`the directory ${path} has mode ${actual.toString(8)}, not ${mode.toString(8)}`];
}

function compareObject(path: string, node: FileNode | (Node & { kind: 'link' }), there: Seen | undefined): string[] {
  if (there === undefined) return [`${path} is not there`];
  const isLink = there.mode !== null && (there.mode & S_IFMT) === S_IFLNK;
  if (node.kind === 'link') return isLink && there.content.toString() === node.target ? [] : [`${path} is no link to ${node.target}`];
  if (isLink) return [`${path} is a link`];
  const wrong = compareContent(path, node.bytes.view, there.content);
  const mode = (there.mode ?? DEFAULT_FILE_MODE) & PERMISSIONS;
  if (mode !== node.mode) wrong.push(`${path} has mode ${mode.toString(8)}, not ${node.mode.toString(8)}`);
  if (node.mtime_s !== null && there.mtime_s !== node.mtime_s) wrong.push(`${path} was changed at ${there.mtime_s}, not at ${node.mtime_s}`);
  return wrong;
}

function compareContent(path: string, expected: Buffer, actual: Buffer): string[] {
  if (expected.equals(actual)) return [];
  const shorter = Math.min(expected.length, actual.length);
  let at = 0;
  while (at < shorter && expected[at] === actual[at]) at++;
  let last = shorter;
  while (last > at && expected[last - 1] === actual[last - 1]) last--;
  const hex = (bytes: Buffer): string => bytes.subarray(at, at + 8).toString('hex');
  const zeros = actual.subarray(at, last).every((byte) => byte === 0) ? ', all zeros' : '';
  return [`${path} has ${actual.length} bytes, not ${expected.length}; from ${at} to ${last} they differ${zeros}: ${hex(actual)}, not ${hex(expected)}`];
}
