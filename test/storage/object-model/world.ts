/** One random sequence on a bucket: guest and store on one side, the model on the other, and how their answers are compared. */
import assert from 'node:assert/strict';
import { E, errnoName } from '../../../src/base/errno.js';
import { ObjectGuest } from '../../support/object-guest.js';
import { MortalStore } from '../../support/mortal-store.js';
import type { PosixMode } from '../../../src/storage/object/tree.js';
import type { Capabilities, ListOptions, ListPage } from '../../../src/storage/object/store.js';
import { MemoryStore } from '../../../src/storage/object/stores/memory.js';
import type { Durability } from '../../../src/storage/object/write/committer.js';
import { concat, u32, u64 } from '../../support/frontend.js';
import { OP, name, type Reply } from '../../support/guest.js';
import { Model, type Inode } from '../../model/model.js';
import { Random } from '../../model/random.js';

const ENTRY_ATTR = 40;
const ATTR_OUT_ATTR = 16;
export const ENTRY_BYTES = 128;
export const ATTR_BYTES = 104;
export const ROOT_ID = 1n;
export const NAMES = ['a', 'b', 'c', 'd', 'e', 'a.b', 'Ünï'];
/** So that some kilobytes are an upload in parts, and ranges of an object are copied on the server. */
const SIZES = { putMaxBytes: 8 << 10, partBytes: 4 << 10, copyMaxBytes: 32 << 10, growAfterParts: 4, partsAtOnce: 3 };
const LIMITS = { partMinBytes: 4 << 10, partMaxBytes: 64 << 10, parts: 100 };
const TURNS_MAX = 4;

export interface Settings {
  readonly seed: number;
  readonly durability: Durability;
  readonly posix: PosixMode;
  readonly prefix: string;
  readonly readdirplus: boolean;
  readonly writebackDelay_ms: number;
  readonly capabilities: Partial<Capabilities>;
  /** Entries of a page of the store's listings. */
  readonly pageEntries: number;
}

export interface Handle {
  readonly fh: bigint;
  readonly node: bigint;
  readonly inode: Inode;
  readonly flags: number;
  /** Somebody else has put another object in the place of the one that it was opened as. */
  lost: boolean;
}

/** A name in a directory. */
export interface Place {
  readonly dir: Inode;
  readonly name: string;
  readonly inode: Inode;
}

/** Listings in small pages. */
class PagedStore extends MemoryStore {
  constructor(readonly pageEntries: number, options: ConstructorParameters<typeof MemoryStore>[0]) {
    super(options);
  }

  override list(options: ListOptions): Promise<ListPage> {
    return super.list({ ...options, limit: Math.min(options.limit ?? this.pageEntries, this.pageEntries) });
  }
}

export class World {
  readonly model = new Model();
  readonly store: MemoryStore;
  guest!: ObjectGuest;
  mortal!: MortalStore;
  handles: Handle[] = [];
  /** What the guest has looked up and not forgotten. */
  readonly nodes = new Map<Inode, bigint>();
  readonly references = new Map<bigint, number>();
  readonly #inos = new Map<bigint, bigint>();
  /** Of which something may not be in the bucket. */
  readonly dirty = new Set<Inode>();
  /** Of those, what is going to be committed without being closed. */
  readonly due = new Set<Inode>();
  /** Directories that others made: they need no marker. */
  readonly implicit = new Set<Inode>();
  /** Metadata that others keep in an object. */
  readonly foreign = new Map<Inode, string>();
  readonly history: string[] = [];
  /** What each daemon had. */
  readonly mortals: MortalStore[] = [];
  random = new Random(0);

  constructor(
    readonly settings: Settings,
    readonly cacheDirectory: string,
  ) {
    this.store = new PagedStore(settings.pageEntries, { limits: LIMITS, capabilities: settings.capabilities });
  }

  /** A daemon and a guest that knows nothing yet. */
  async start(cacheDirectory = this.cacheDirectory): Promise<void> {
    const { seed, posix, prefix, readdirplus, durability, writebackDelay_ms } = this.settings;
    const turns = new Random(seed);
    this.mortal = new MortalStore(this.store, () => turns.below(TURNS_MAX));
    this.mortals.push(this.mortal);
    this.nodes.clear();
    this.references.clear();
    this.#inos.clear();
    this.nodes.set(this.model.root, ROOT_ID);
    this.guest = await ObjectGuest.start(this.mortal.store, {
      // Nodes that nobody uses are packed at once, or not at all
      posix, prefix, readdirplus, idleNodes: seed % 2 === 0 ? 0 : 1000, write: { cacheDirectory, durability, writebackDelay_ms, sizes: SIZES },
    });
    // No LOOKUP tells of the root
    const reply = await this.call(OP.GETATTR, ROOT_ID, new Uint8Array(16), ATTR_BYTES);
    if (this.same(reply, 0)) this.attrOut(this.model.root, reply.data);
  }

  /** The daemon is gone, and with it what was open. */
  async kill(): Promise<void> {
    this.mortal.die();
    const killed = this.guest.kill();
    this.mortal.end();
    await killed;
    this.forgetHandles();
  }

  /** @returns files that could not be committed */
  async stop(): Promise<number> {
    const left = await this.guest.close();
    this.forgetHandles();
    return left;
  }

  forgetHandles(): void {
    for (const { inode } of this.handles) inode.opens = 0;
    this.handles = [];
  }

  // What to try

  /** Directories that have a path, the root first. */
  directories(): Inode[] {
    const all = [this.model.root];
    for (const dir of all) for (const inode of dir.entries.values()) if (inode.isDirectory) all.push(inode);
    return all;
  }

  places(accept: (inode: Inode) => boolean = () => true): Place[] {
    return this.directories().flatMap((dir) => [...dir.entries].map(([entry, inode]) => ({ dir, name: entry, inode })).filter((place) => accept(place.inode)));
  }

  pickDirectory(): Inode {
    return this.random.pick(this.directories());
  }

  pickFile(): Place | null {
    const files = this.places((inode) => inode.kind === 'file');
    return files.length === 0 ? null : this.random.pick(files);
  }

  pickName(dir: Inode): string {
    const there = [...dir.entries.keys()];
    return there.length > 0 && this.random.chance(50) ? this.random.pick(there) : this.random.pick(NAMES);
  }

  pickOffset(size: number): number {
    const dice = this.random.below(20);
    if (dice < 12) return this.random.below(size + 1);
    return dice < 19 ? this.random.below(40_000) : this.random.below(150_000);
  }

  pickBytes(): number {
    return this.random.chance(70) ? this.random.below(3000) : this.random.below(16_000);
  }

  placeOf(inode: Inode): Place | null {
    return this.places((one) => one === inode)[0] ?? null;
  }

  depth(dir: Inode): number {
    return this.steps(dir).length;
  }

  /** Names from the root to a directory that has a path. */
  steps(dir: Inode): string[] {
    const steps: string[] = [];
    for (let at = dir; at.parent !== null; at = at.parent) steps.unshift([...at.parent.entries].find(([, inode]) => inode === at)![0]);
    return steps;
  }

  /** What the keys below a directory begin with. */
  prefixOf(dir: Inode): string {
    return this.settings.prefix + this.steps(dir).map((step) => `${step}/`).join('');
  }

  /** Where the model has something, as text. */
  label(inode: Inode): string {
    if (inode === this.model.root) return '/';
    const place = this.placeOf(inode);
    return place === null ? `(${inode.kind} without a name)` : `/${[...this.steps(place.dir), place.name].join('/')}`;
  }

  note(text: string): void {
    this.history.push(text);
  }

  // Asking and comparing

  call(opcode: number, node: bigint, args: Uint8Array, room = 0): Promise<Reply> {
    return this.guest.call(opcode, node, args, room);
  }

  /** The daemon's answer has to be the model's. @returns whether it was done */
  same(reply: { error: number }, expected: unknown): boolean {
    const errno = typeof expected === 'number' && expected < 0 ? expected : 0;
    assert.equal(errnoText(reply.error), errnoText(errno), 'the errno');
    return errno === 0;
  }

  /** LOOKUP, compared. @returns the node, or null if the model does not have it either */
  async lookup(dir: Inode, entry: string): Promise<bigint | null> {
    const parent = this.nodes.get(dir);
    assert.ok(parent !== undefined);
    const reply = await this.call(OP.LOOKUP, parent, name(entry), ENTRY_BYTES);
    const inode = this.model.lookup(dir, entry);
    if (!this.same(reply, inode) || typeof inode === 'number') return null;
    return this.learn(inode, reply.data);
  }

  /** The node of a directory that has a path, as Linux walks there when nothing may be cached. */
  async reach(dir: Inode): Promise<bigint> {
    let at = this.model.root;
    for (const step of this.steps(dir)) {
      await this.lookup(at, step);
      at = at.entries.get(step)!;
    }
    return this.nodes.get(dir)!;
  }

  async reachPlace({ dir, name: entry }: Place): Promise<bigint> {
    await this.reach(dir);
    return (await this.lookup(dir, entry))!;
  }

  /** The guest was given a node, once more. */
  learn(inode: Inode, data: DataView): bigint {
    const id = data.getBigUint64(0, true);
    const known = this.nodes.get(inode);
    if (known !== undefined) assert.equal(id, known, `${this.label(inode)} keeps its nodeid while the guest knows it`);
    assert.ok(!this.handles.some((handle) => handle.node === id && handle.inode !== inode), `${this.label(inode)} has not the nodeid of what is open as another version`);
    const ino = data.getBigUint64(ENTRY_ATTR, true);
    assert.equal(this.#inos.get(id) ?? ino, ino, `${this.label(inode)} keeps its inode number`);
    this.#inos.set(id, ino);
    this.nodes.set(inode, id);
    this.references.set(id, (this.references.get(id) ?? 0) + 1);
    this.attributes(inode, data, ENTRY_ATTR);
    return id;
  }

  attrOut(inode: Inode, data: DataView): void {
    this.attributes(inode, data, ATTR_OUT_ATTR);
  }

  /** struct fuse_attr as it has to be. */
  attributes(inode: Inode, data: DataView, at: number): void {
    const u32At = (field: number): number => data.getUint32(at + field, true);
    const u64At = (field: number): bigint => data.getBigUint64(at + field, true);
    const mtime = u64At(32) * 1_000_000_000n + BigInt(u32At(52));
    const size = Number(u64At(8));
    const real = { mode: u32At(60).toString(8), nlink: u32At(64), uid: u32At(68), gid: u32At(72), size, mtime };
    const expected = {
      mode: inode.stMode.toString(8), nlink: inode.isDead ? 0 : 1, uid: inode.uid, gid: inode.gid, size: inode.size < 0 ? size : inode.size, mtime: inode.mtime ?? mtime,
    };
    assert.deepEqual(real, expected, `attributes of ${this.label(inode)}`);
  }

  async forget(node: bigint): Promise<void> {
    const count = this.references.get(node) ?? 0;
    await this.call(OP.FORGET, node, u64(count));
    this.references.delete(node);
    this.#inos.delete(node);
    for (const [inode, id] of this.nodes) if (id === node && inode !== this.model.root) this.nodes.delete(inode);
  }

  /** Data or attributes have changed. */
  changed(inode: Inode): void {
    this.dirty.add(inode);
    this.due.delete(inode);
  }

  /** It was made by one request, or given attributes: with writeback the bucket gets that later, without anybody closing it. */
  described(inode: Inode): void {
    if (this.dirty.has(inode) || this.settings.durability === 'writeback') this.changed(inode);
  }

  /** FLUSH or FSYNC has succeeded. */
  flushed(inode: Inode): void {
    if (this.settings.durability === 'remote') this.dirty.delete(inode);
    else if (this.dirty.has(inode)) this.due.add(inode);
  }

  async idle(): Promise<void> {
    await this.guest.opened.idle();
    for (const inode of this.dirty) if (inode.opens === 0 || this.due.has(inode)) this.dirty.delete(inode);
  }

  // Open files

  opened(node: bigint, fh: bigint, inode: Inode, flags: number): Handle {
    assert.ok(!this.handles.some((other) => other.fh === fh), 'a file handle of its own');
    const handle = { fh, node, inode, flags, lost: false };
    this.handles.push(handle);
    inode.opens++;
    return handle;
  }

  /** OPEN, and again after ESTALE, as Linux does it. @returns the reply of the last */
  async openReply(place: Place, flags: number): Promise<{ reply: Reply; node: bigint }> {
    const node = await this.reachPlace(place);
    const reply = await this.call(OP.OPEN, node, u32(flags, 0), 16);
    if (reply.error !== -E.STALE) return { reply, node };
    const again = await this.reachPlace(place);
    return { reply: await this.call(OP.OPEN, again, u32(flags, 0), 16), node: again };
  }

  async release(handle: Handle): Promise<void> {
    const { fh, node, flags, inode } = handle;
    assert.equal((await this.call(OP.RELEASE, node, concat(u64(fh), u32(flags, 0), u64(0)))).error, 0);
    this.handles.splice(this.handles.indexOf(handle), 1);
    inode.opens--;
  }

  async flush(handle: Handle, opcode: number = OP.FLUSH): Promise<number> {
    const args = opcode === OP.FLUSH ? concat(u64(handle.fh), u32(0, 0), u64(0)) : concat(u64(handle.fh), u32(this.random.below(2), 0));
    return (await this.call(opcode, handle.node, args)).error;
  }

  /** The whole of a file through a handle of its own. */
  async content(place: Place): Promise<Buffer> {
    const { reply, node } = await this.openReply(place, 0);
    this.same(reply, 0);
    const fh = reply.data.getBigUint64(0, true);
    const pieces: Buffer[] = [];
    for (let at = 0; ; ) {
      const { data, error } = await this.guest.read(node, fh, at, 65_536);
      assert.equal(errnoText(error), 'success', `reading ${this.label(place.inode)} at ${at}`);
      if (data.byteLength === 0) break;
      pieces.push(Buffer.from(bytesOf(data)));
      at += data.byteLength;
    }
    assert.equal((await this.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)))).error, 0);
    return Buffer.concat(pieces);
  }

  // The other side

  async objectBytes(key: string): Promise<Buffer> {
    const { size } = await this.store.head(key);
    const into = new Uint8Array(size);
    await this.store.read(key, { offset: 0, into });
    return Buffer.from(into);
  }

  async keys(prefix = this.settings.prefix): Promise<string[]> {
    const keys: string[] = [];
    let token: string | undefined;
    do {
      const page = await this.store.list({ prefix, ...(token === undefined ? {} : { token }) });
      keys.push(...page.objects.map((object) => object.key));
      token = page.next ?? undefined;
    } while (token !== undefined);
    return keys;
  }
}

export function errnoText(error: number): string {
  return error === 0 ? 'success' : errnoName(error);
}

export const bytesOf = (data: DataView): Uint8Array => new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** The difference of two contents in a few words. */
export function assertSame(real: Uint8Array, expected: Uint8Array, what: string): void {
  if (Buffer.from(real.buffer, real.byteOffset, real.length).equals(expected)) return;
  let at = 0;
  while (at < real.length && real[at] === expected[at]) at++;
  let end = Math.min(real.length, expected.length);
  while (end > at && real[end - 1] === expected[end - 1]) end--;
  assert.fail(`${what}: ${real.length} bytes instead of ${expected.length}, other ones from ${at} to ${end}`);
}
