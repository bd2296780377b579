/**
 * The table of nodes against a plain one: what is given out, what is packed meanwhile, and what a request has in its hands while it waits. The seed is printed.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { ByteSlabs, ENTRY_MAX_BYTES } from '../../src/storage/object/byte-slabs.js';
import type { Facts } from '../../src/storage/object/facts.js';
import { ObjectNodes, type ObjectNode } from '../../src/storage/object/nodes.js';
import { Random } from '../model/random.js';

const SEED = Number(process.env.SEED ?? Date.now() % 1_000_000);
const SEQUENCES = Number(process.env.BUCKETFSD_OBJECT_SEQUENCES ?? 40);
const COMPONENTS = ['a', 'b', 'dir', 'é', '名前', '\u{1f600}', 'x'.repeat(200), 'L'.repeat(250)];
const VERSIONS = ['d41d8cd98f00b204e9800998ecf8427e', 'D41D8CD98F00B204E9800998ECF8427E', '1700000000000001', '"quoted-7"', 'd41d8cd98f00b204e9800998ecf8427', 'é', 'v'.repeat(1500), null];

function factsOf(random: Random): Facts {
  const time = (): Facts['mtime'] => ({ seconds: random.pick([0, -62_135_596_800, 253_402_300_799, 1_700_000_000, -1]), nanoseconds: random.pick([0, 999_999_999, 1]) });
  const mtime = time();
  return {
    mode: random.pick([0o100644, 0o107777, 0o040755, 0o060600, 0o140000]), uid: random.pick([0, 0xffff_fffe]), gid: random.pick([0, 0x8000_0000]), rdev: random.pick([0, 0xffff_ffff]),
    size: random.pick([0, 1, 2 ** 40, 2 ** 53 - 1]), mtime, atime: random.chance(50) ? mtime : time(), ctime: random.chance(50) ? mtime : time(), version: random.pick(VERSIONS),
    symlink: random.chance(5) ? 'target' : null, xattrs: random.chance(5) ? new Map([['user.x', new Uint8Array(1)]]) : new Map(), kept: { some: 'thing' }, headers: {},
  };
}

/** As the guest has it. */
interface Known {
  readonly slot: number;
  readonly sequence: number;
  readonly directory: boolean;
  readonly ino: string;
  key: string;
  refs: number;
  facts: Facts;
  expires_ms: number;
  told: boolean;
  /** null: it is no more than known. */
  held: ObjectNode | null;
}

class World {
  readonly nodes = new ObjectNodes(0);
  readonly known: Known[] = [];
  /** Requests that wait, and the nodes in their hands. */
  readonly waiting: { readonly request: number; readonly nodes: (readonly [ObjectNode, Known])[] }[] = [];

  constructor(readonly random: Random) {
    this.nodes.put(true, '', factsOf(random), 0).refs = 1;
  }

  named(directory: boolean, key: string): Known | undefined {
    return this.known.find((one) => one.directory === directory && one.key === key);
  }

  key(directory: boolean): string {
    const { random } = this;
    return Array.from({ length: 1 + random.below(3) }, () => random.pick(COMPONENTS)).join('/') + (directory ? '/' : '');
  }

  compare(node: ObjectNode | null, known: Known): ObjectNode {
    assert.ok(node !== null, `${known.key} is known`);
    const { slot, sequence, directory, key, refs } = node;
    assert.deepEqual([slot, sequence, directory, key, refs, `${node.inoLow} ${node.inoHigh}`], [known.slot, known.sequence, known.directory, known.key, known.refs, known.ino]);
    if (known.held !== null) assert.equal(node, known.held, 'whoever holds it has the same one');
    const { kept: _kept, headers: _headers, xattrs, symlink, ...rest } = node.facts;
    const { kept: _1, headers: _2, xattrs: xattrsThen, symlink: symlinkThen, ...expected } = known.facts;
    assert.deepEqual(rest, expected);
    // What is not kept of it is not believed either
    if (xattrs.size === xattrsThen.size && symlink === symlinkThen) assert.ok(node.expires_ms === known.expires_ms || node.expires_ms === -Infinity);
    else assert.equal(node.expires_ms, -Infinity);
    assert.ok(node.told === (known.told ? known.facts.version : null) || known.facts.version === null);
    return node;
  }

  step(): void {
    const { random, nodes, known } = this;
    const what = random.below(100);
    if (what < 10) this.waiting.push({ request: nodes.begin(), nodes: [] });
    else if (what < 20 && this.waiting.length > 0) this.end();
    else if (what < 45) this.put();
    else if (known.length === 0) return;
    else if (what < 60) {
      const one = random.pick(known);
      this.hold(this.compare(random.chance(50) ? nodes.get(one.slot, one.sequence) : nodes.find(one.directory, one.key), one), one);
    } else if (what < 70) this.forget(random.pick(known));
    else if (what < 78) this.rename(random.pick(known));
    else if (what < 82) this.renameBelow();
    else if (what < 86) {
      const one = random.pick(known);
      nodes.expire(one.directory, one.key);
      one.expires_ms = -Infinity;
    } else if (what < 92) {
      // What is changed by whoever has it in his hands is there afterwards
      const [wait] = this.waiting;
      const pair = wait === undefined || wait.nodes.length === 0 ? undefined : random.pick(wait.nodes);
      if (pair === undefined || !known.includes(pair[1])) return;
      [pair[0].facts, pair[0].expires_ms] = [pair[1].facts, pair[1].expires_ms] = [factsOf(random), random.below(1000)];
      pair[0].told = pair[1].told ? pair[1].facts.version : null;
    } else {
      const one = random.pick(known);
      assert.equal(`${nodes.numberOf(one.directory, one.key).inoLow} ${nodes.numberOf(one.directory, one.key).inoHigh}`, one.ino);
      assert.equal(nodes.get(one.slot, one.sequence + 1), null);
    }
  }

  put(): void {
    const { random, nodes } = this;
    const directory = random.chance(30);
    const [key, facts, expires_ms] = [this.key(directory), factsOf(random), random.below(1000)];
    const node = nodes.put(directory, key, facts, expires_ms);
    nodes.ref(node);
    let one = this.named(directory, key);
    if (one === undefined) {
      one = { slot: node.slot, sequence: node.sequence, directory, ino: `${node.inoLow} ${node.inoHigh}`, key, refs: 0, facts, expires_ms, told: false, held: null };
      this.known.push(one);
    }
    one.refs++;
    [one.facts, one.expires_ms, one.told] = [facts, expires_ms, random.chance(50)];
    node.told = one.told ? facts.version : null;
    this.hold(this.compare(node, one), one);
  }

  hold(node: ObjectNode, one: Known): void {
    const wait = this.waiting.at(-1);
    if (wait === undefined) return;
    wait.nodes.push([node, one]);
    one.held = node;
  }

  end(): void {
    const [wait] = this.waiting.splice(this.random.below(this.waiting.length), 1);
    this.nodes.end(wait.request);
    for (const [, one] of wait.nodes) if (!this.waiting.some((other) => other.nodes.some(([, held]) => held === one))) one.held = null;
  }

  forget(one: Known): void {
    const count = 1 + this.random.below(one.refs + 1);
    this.nodes.forget(one.slot, one.sequence, count);
    one.refs = Math.max(0, one.refs - count);
    if (one.refs === 0) this.gone(one);
  }

  gone(one: Known): void {
    this.known.splice(this.known.indexOf(one), 1);
    assert.equal(this.nodes.get(one.slot, one.sequence), null);
    assert.equal(this.nodes.find(one.directory, one.key), null);
  }

  rename(one: Known): void {
    const key = this.key(one.directory);
    const there = this.named(one.directory, key);
    const node = this.nodes.get(one.slot, one.sequence)!;
    this.nodes.rename(node, key);
    if (there !== undefined && there !== one) this.detached(there);
    one.key = key;
  }

  renameBelow(): void {
    const [from, to] = [`${this.random.pick(COMPONENTS)}/`, 'to/'];
    if (this.known.some(({ key }) => key.startsWith(to))) return;
    this.nodes.renameBelow(from, to);
    for (const one of this.known) {
      if (!one.key.startsWith(from)) continue;
      one.key = to + one.key.slice(from.length);
      one.expires_ms = -Infinity;
    }
    // Back, so that there is something again
    this.nodes.renameBelow(to, from);
    for (const one of this.known) if (one.key.startsWith(to)) one.key = from + one.key.slice(to.length);
  }

  /** It has lost its name, and is what it was as long as the guest has it. */
  detached(one: Known): void {
    assert.equal(this.nodes.get(one.slot, one.sequence)!.unlinked, true);
    this.nodes.forget(one.slot, one.sequence, one.refs);
    this.known.splice(this.known.indexOf(one), 1);
    assert.equal(this.nodes.get(one.slot, one.sequence), null);
  }
}

test(`nodes are what they were when they come back (SEED=${SEED}, ${SEQUENCES} sequences)`, { timeout: 300_000 }, () => {
  for (let seed = SEED; seed < SEED + SEQUENCES; seed++) {
    const world = new World(new Random(seed));
    try {
      for (let step = 0; step < 600; step++) world.step();
      assert.equal(world.nodes.count, world.known.length + 1);
      for (const one of [...world.known]) world.compare(world.nodes.find(one.directory, one.key), one);
      world.nodes.clear();
      assert.equal(world.nodes.count, 1);
      for (const one of world.known) assert.equal(world.nodes.get(one.slot, one.sequence), null);
    } catch (error) {
      throw new Error(`SEED=${seed}: ${(error as Error).message}`, { cause: error });
    }
  }
});

test('a nodeid that nobody was given is no node', () => {
  const nodes = new ObjectNodes(0);
  nodes.put(true, '', factsOf(new Random(1)), 0).refs = 1;
  for (const [low, high] of [[0, 0], [0, 1], [1, 1], [2, 0], [4095, 0], [4096, 0], [16_777_216, 0], [4_294_967_295, 0], [4_294_967_295, 4_294_967_295]]) {
    assert.equal(nodes.get(low, high), null);
    nodes.forget(low, high, 1);
  }
  assert.equal(nodes.get(1, 0)?.key, '');
});

test(`runs of bytes stay what they are while others come and go (SEED=${SEED})`, () => {
  const random = new Random(SEED);
  const slabs = new ByteSlabs();
  const there = new Map<number, Uint8Array>();
  for (let step = 0; step < 30_000; step++) {
    if (there.size === 0 || random.chance(step < 15_000 ? 60 : 40)) {
      const content = random.bytes(1 + random.below(random.pick([30, 200, ENTRY_MAX_BYTES])));
      const id = slabs.allocate(content.length);
      assert.ok(id > 0 && !there.has(id));
      slabs.bytes.set(content, slabs.offset);
      there.set(id, content);
    } else {
      const id = random.below(2) === 0 ? there.keys().next().value! : [...there.keys()].at(-1)!;
      slabs.free(id);
      there.delete(id);
    }
  }
  for (const [id, content] of there) {
    slabs.locate(id);
    assert.equal(Buffer.compare(slabs.bytes.subarray(slabs.offset, slabs.offset + content.length), content), 0);
  }
});
