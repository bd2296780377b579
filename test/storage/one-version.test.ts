/** Random programs of a guest and random changes by another client: whatever is read through one open file is one version of it. The seed is printed. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { Random } from '../model/random.js';
import { GuestKernel, type Description } from '../support/guest-kernel.js';
import { ObjectGuest } from '../support/object-guest.js';
import { objectOf } from '../support/writing-guest.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 50);
const STEPS = 60;
const NAMES = ['f', 'g'];
const BYTES_MAX = 150_000;
const OPEN_MAX = 6;
const O_RDWR = 2;

/** What an inode is, as long as it is open. */
interface Opened {
  readonly name: string;
  content: Buffer;
  /** Written to since it was stored last. */
  dirty: boolean;
  /** A conflict was heard of, or may have come unheard: there is perhaps nothing to be had of it any more. */
  lost: boolean;
  readonly files: Set<Description>;
}

interface Mode {
  /** That there is no object is believed for the rest of the sequence. */
  readonly absentStays: boolean;
  readonly readonly: boolean;
  /** fsync does not wait for the bucket, and commits come when they come. */
  readonly writeback: boolean;
  readonly idle: () => Promise<void>;
}

class World {
  readonly steps: string[] = [];
  readonly opened = new Map<bigint, Opened>();
  /** What was written to each node last. One that others have replaced has no name any more, so its bytes are not what the name leads to. */
  readonly written = new Map<bigint, Buffer>();

  constructor(readonly random: Random, readonly store: MemoryStore, readonly kernel: GuestKernel, readonly mode: Mode) {}

  /** null: there is none. */
  async object(name: string): Promise<Buffer | null> {
    return objectOf(this.store, name).catch(() => null);
  }

  async step(): Promise<void> {
    const { random } = this;
    const name = random.pick(NAMES);
    const files = [...this.opened.values()].flatMap((opened) => [...opened.files].map((file) => [opened, file] as const));
    const what = random.below(100);
    if (what < 20) return this.put(name);
    if (what < 24) return this.remove(name);
    if (what < 26) return this.note('idle', this.mode.idle);
    if (what < 45 || files.length === 0) return files.length < OPEN_MAX ? this.open(name) : this.close(...random.pick(files));
    if (what < 50) return this.note(`lookup ${name}`, () => this.kernel.lookup(name));
    if (what < 54) return this.note('readdirplus', () => this.kernel.readdirplus());
    const [opened, file] = random.pick(files);
    if (what < 58) return this.note(`stat ${file.fh}`, () => this.kernel.stat(file));
    if (what < 62) return this.chmod(file);
    if (what < 82) return this.read(opened, file);
    if (what < 90) return this.write(opened, file);
    if (what < 95) return this.close(opened, file);
    return this.fsync(opened, file);
  }

  async note(step: string, body: () => Promise<unknown>): Promise<void> {
    this.steps.push(step);
    await body();
  }

  async put(name: string): Promise<void> {
    const content = this.random.bytes(this.random.pick([0, 10, 5000, this.random.below(BYTES_MAX)]));
    await this.note(`put ${name} of ${content.length}`, () => this.store.put(name, content));
    this.mayBeLost(name);
  }

  async remove(name: string): Promise<void> {
    await this.note(`remove ${name}`, () => this.store.remove(name));
    this.mayBeLost(name);
  }

  /** With writeback nobody says when a commit has found another version. */
  mayBeLost(name: string): void {
    if (this.mode.writeback) for (const one of this.opened.values()) if (one.name === name && one.dirty) one.lost = true;
  }

  async open(name: string): Promise<void> {
    const flags = !this.mode.readonly && this.random.chance(40) ? O_RDWR : 0;
    this.steps.push(`open ${name} ${flags}`);
    const file = await this.kernel.open(name, flags);
    const there = await this.object(name);
    if (typeof file === 'number') {
      assert.ok(file === -E.NOENT && (there === null || this.mode.absentStays), `open: ${file}`);
      return;
    }
    this.steps.push(`  is ${file.fh} of node ${file.inode.node}`);
    const known = this.opened.get(file.inode.node);
    const opened = known ?? { name, content: there!, dirty: false, lost: false, files: new Set() };
    if (this.mode.writeback && known === undefined) {
      // What was written here may not be in the bucket yet
      const ours = this.written.get(file.inode.node);
      const content = await this.direct(file);
      // It was ours, and in the meantime a commit has found another version
      if (content === null) opened.lost = true;
      opened.content = content ?? ours!;
      const isOurs = ours !== undefined && Buffer.compare(opened.content, ours) === 0;
      opened.dirty = isOurs;
      assert.ok(isOurs || (there !== null && Buffer.compare(opened.content, there) === 0), 'what is opened is what is stored, or what was written');
    } else if (!opened.dirty) {
      assert.equal(Buffer.compare(opened.content, there!), 0, 'what is opened is what is stored');
    }
    opened.files.add(file);
    this.opened.set(file.inode.node, opened);
  }

  /** All of it, past the pages of the guest; null: ESTALE. */
  async direct({ inode, fh }: Description): Promise<Buffer | null> {
    const out: Buffer[] = [];
    for (let at = 0; ; ) {
      const { error, data } = await this.kernel.g.read(inode.node, fh, at, 65_536);
      if (error === -E.STALE) return null;
      assert.equal(error, 0);
      if (data.byteLength === 0) return Buffer.concat(out);
      out.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
      at += data.byteLength;
    }
  }

  async read(opened: Opened, file: Description): Promise<void> {
    const offset = this.random.below(opened.content.length + 1);
    const bytes = this.random.pick([1, 4096, 70_000, BYTES_MAX]);
    this.steps.push(`read ${file.fh} ${offset}+${bytes} of ${opened.content.length}`);
    const read = await this.kernel.read(file, offset, bytes);
    if (typeof read === 'number') return assert.equal(read, -E.STALE);
    assert.equal(Buffer.compare(read, opened.content.subarray(offset, offset + read.length)), 0, 'bytes of another version');
    if (read.length === 0) assert.equal(offset, opened.content.length, 'a clean end before the end of what was opened');
  }

  async write(opened: Opened, file: Description): Promise<void> {
    const offset = this.random.below(opened.content.length + 1);
    const content = this.random.bytes(this.random.pick([1, 100, 10_000]));
    this.steps.push(`write ${file.fh} ${offset}+${content.length}`);
    const written = await this.kernel.write(file, offset, content);
    if (written < 0) return assert.ok(written === -E.BADF || (written === -E.STALE && (opened.lost || this.mode.writeback)), `write: ${written}`);
    const { content: before } = opened;
    opened.content = Buffer.concat([before.subarray(0, offset), content, before.subarray(offset + content.length)]);
    opened.dirty = true;
    this.written.set(file.inode.node, opened.content);
  }

  async chmod(file: Description): Promise<void> {
    const mode = this.random.pick([0o600, 0o644]);
    this.steps.push(`chmod ${file.fh} ${mode.toString(8)}`);
    const error = await this.kernel.chmod(file.inode, mode);
    assert.ok(error === 0 || error === -E.STALE || error === -E.NOENT || (error === -E.ROFS && this.mode.readonly), `chmod: ${error}`);
  }

  async fsync(opened: Opened, file: Description): Promise<void> {
    this.steps.push(`fsync ${file.fh}`);
    await this.stored(opened, await this.kernel.fsync(file));
  }

  async close(opened: Opened, file: Description): Promise<void> {
    this.steps.push(`close ${file.fh}`);
    await this.stored(opened, await this.kernel.close(file));
    opened.files.delete(file);
    if (opened.files.size === 0) this.opened.delete(file.inode.node);
  }

  async stored(opened: Opened, error: number): Promise<void> {
    if (error !== 0) {
      assert.equal(error, -E.STALE);
      assert.ok(opened.dirty || opened.lost || this.mode.writeback, 'ESTALE without a conflict');
      opened.lost = true;
    }
    // Until it is committed it counts as dirty
    if (this.mode.writeback && error === 0) return;
    if (opened.dirty && !opened.lost) assert.equal(Buffer.compare((await this.object(opened.name))!, opened.content), 0, 'what was written is stored');
    opened.dirty = false;
  }
}

test(`one handle, one version (SEED=${SEED}, ${SEQUENCES} sequences)`, { timeout: 600_000 }, async (context) => {
  // So long after a LOOKUP that no OPEN takes its answer for its own
  let clock_ms = 0;
  context.mock.method(performance, 'now', () => clock_ms);
  for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
    const random = new Random(seed);
    const store = new MemoryStore({ etags: random.chance(50), capabilities: { metadataInPlace: random.chance(50), rename: random.chance(50) } });
    const kernel = { namesAreCached: random.chance(50), attributesAreCached: random.chance(30), withHandle: random.chance(50), readBytes: random.pick([4096, 32_768, 131_072]) };
    const options = { idleNodes: random.pick([0, 1000]), metadataTtl_ms: random.pick([0, 3_600_000]), posix: random.pick(['full', 'lazy'] as const), ...(random.chance(50) ? { blocks: { bytes: 8 << 20, blockBytes: 65_536 } } : {}) };
    const readonly = random.chance(15);
    const writeback = !readonly && random.chance(40);
    const write = readonly ? null : writeback ? { durability: 'writeback' as const, writebackDelay_ms: random.pick([0, 3_600_000]) } : {};
    // The block cache has the cache directory of what is written
    const { blocks, ...rest } = options;
    const g = await ObjectGuest.start(store, { ...rest, write, ...(blocks === undefined || readonly ? {} : { blocks }) });
    const mode = { absentStays: options.metadataTtl_ms > 0, readonly, writeback, idle: () => g.opened.idle() };
    const world = new World(random, store, new GuestKernel(g, kernel), mode);
    try {
      for (const name of NAMES) await world.put(name);
      for (let step = 0; step < STEPS; step++, clock_ms += 1000) await world.step();
    } catch (error) {
      throw new Error(`SEED=${seed} ${JSON.stringify({ kernel, options, write })}\n${world.steps.join('\n')}\n${(error as Error).message}`, { cause: error });
    } finally {
      await g.close();
    }
  }
});
