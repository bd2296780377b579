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
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 60);
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
  /** A conflict was heard of: there is nothing to be had of it any more. */
  lost: boolean;
  readonly files: Set<Description>;
}

class World {
  readonly steps: string[] = [];
  readonly opened = new Map<bigint, Opened>();

  /** `absentStays`: that there is no object is believed for the rest of the sequence. */
  constructor(readonly random: Random, readonly store: MemoryStore, readonly kernel: GuestKernel, readonly absentStays: boolean) {}

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
    if (what < 24) return this.note(`remove ${name}`, () => this.store.remove(name));
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
  }

  async open(name: string): Promise<void> {
    const flags = this.random.chance(40) ? O_RDWR : 0;
    this.steps.push(`open ${name} ${flags}`);
    const file = await this.kernel.open(name, flags);
    const there = await this.object(name);
    if (typeof file === 'number') {
      assert.ok(file === -E.NOENT && (there === null || this.absentStays), `open: ${file}`);
      return;
    }
    this.steps.push(`  is ${file.fh} of node ${file.inode.node}`);
    const known = this.opened.get(file.inode.node);
    const opened = known ?? { name, content: there!, dirty: false, lost: false, files: new Set() };
    if (!opened.dirty) assert.equal(Buffer.compare(opened.content, there!), 0, 'what is opened is what is stored');
    opened.files.add(file);
    this.opened.set(file.inode.node, opened);
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
    if (written < 0) return assert.ok(written === -E.BADF || (written === -E.STALE && opened.lost), `write: ${written}`);
    const { content: before } = opened;
    opened.content = Buffer.concat([before.subarray(0, offset), content, before.subarray(offset + content.length)]);
    opened.dirty = true;
  }

  async chmod(file: Description): Promise<void> {
    const mode = this.random.pick([0o600, 0o644]);
    this.steps.push(`chmod ${file.fh} ${mode.toString(8)}`);
    const error = await this.kernel.chmod(file.inode, mode);
    assert.ok(error === 0 || error === -E.STALE || error === -E.NOENT, `chmod: ${error}`);
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
      assert.ok(opened.dirty || opened.lost, 'ESTALE without a conflict');
      opened.lost = true;
    }
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
    const g = await ObjectGuest.start(store, options);
    const world = new World(random, store, new GuestKernel(g, kernel), options.metadataTtl_ms > 0);
    try {
      for (const name of NAMES) await world.put(name);
      for (let step = 0; step < STEPS; step++, clock_ms += 1000) await world.step();
    } catch (error) {
      throw new Error(`SEED=${seed} ${JSON.stringify({ kernel, options })}\n${world.steps.join('\n')}\n${(error as Error).message}`, { cause: error });
    } finally {
      await g.close();
    }
  }
});
