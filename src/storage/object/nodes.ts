/**
 * Nodes of a bucket: what the guest knows by a nodeid, one for each key and kind, while it knows it.
 *
 * A guest may know millions. A node is an object while somebody uses it, and a while longer; the others are packed (packed-nodes.ts). Whoever has a node keeps it across his waiting: a request says when it begins and ends, and nothing that was
 * given out since the oldest one began is taken apart. What is open or staged, and what has lost its name, stays an object.
 */
import { createHash } from 'node:crypto';
import { E, systemError } from '../../base/errno.js';
import { ROOT_NODE } from '../filesystem.js';
import type { Facts } from './facts.js';
import { NODES_MAX } from './node-records.js';
import { PackedNodes } from './packed-nodes.js';
import { StagedNodes } from './staged-nodes.js';
import type { ObjectInfo, Version } from './store.js';
import type { StagedFile } from './write/staged-file.js';

export interface InodeNumber {
  readonly inoLow: number;
  readonly inoHigh: number;
}

export interface ObjectNode extends InodeNumber {
  /** The nodeid: low and high half. */
  readonly slot: number;
  readonly sequence: number;
  readonly directory: boolean;
  /** Of the object; of a directory what its keys begin with: '' or something that ends with a slash. */
  key: string;
  /** It has no name any more: only who has it open, or is in it, still sees it. */
  unlinked: boolean;
  /**
   * Another client has put another object in its place while it was open here. It stays the version that was opened: the key, which is
   * another node's name, is only where a change made through its handles would go.
   */
  replaced: boolean;
  /** The name that the guest was told last is that of an object beside a directory (names.ts). */
  suffixed: boolean;
  /** OPEN has said once that it is replaced, so that Linux looked its name up again. */
  refused: boolean;
  /** References of the guest, and open handles. */
  refs: number;
  opens: number;
  /** Those of the object; of what was changed and is not committed, ask `staged`: presentFacts() does. Without what only the store knows (`kept`) after a while. */
  facts: Facts;
  /** Until then the facts are believed, by performance.now(). */
  expires_ms: number;
  /** The second since 1970 in which the object was stored that the facts are of, if a listing can prove them by it (listing-proof.ts); 0: it cannot. */
  proof_s: number;
  /** The version whose attributes the guest was told last. */
  told: Version | null;
  /** When the store has answered the last lookup, if no OPEN has used it yet; −∞: that was answered by a listing, or by what was changed here. */
  lookedUp_ms: number;
  /** The version whose content the guest may have in its cache. */
  cached: Version | null;
  /** What the guest has changed, or was about to; of a directory its attributes, or that it is there. */
  staged: StagedFile | null;
  /** Changes of names and attributes of one node come one after the other. */
  turn: Promise<unknown>;
  /** One of them that makes another version of the object, or moves it: no commit begins until that is over. */
  replacing: Promise<unknown> | null;
  /** For the table: the last moment at which it was given out, when it was put at its place in the order of that, and its neighbours there. */
  given: number;
  queued: number;
  older: ObjectNode | null;
  newer: ObjectNode | null;
}

const REFS_MAX = 2 ** 53;
/** Objects that are kept though nobody uses them: so many, or one of so many nodes. */
const IDLE_MIN = 2048;
const IDLE_SHARE = 128;
/** How many are looked at for each that is added, and at the end of each request. */
const SWEEP = 4;
const NO_TURN: Promise<unknown> = Promise.resolve();

export class ObjectNodes {
  /** Those of files and directories that were changed, or are about to be. */
  readonly staged = new StagedNodes();
  readonly #packed = new PackedNodes();
  /** Those that are objects, by slot. */
  readonly #objects = new Map<number, ObjectNode>();
  /** Inode numbers of nodes whose key is no longer the one that they were made from, in 53 bits each. */
  readonly #moved = new Set<number>();
  /** Those that go on without the name, since another client has put another object in their place. */
  readonly #replaced = new Set<ObjectNode>();
  #sequence = 0;
  /** Requests that have begun, and those that have not ended, in that order. */
  #moment = 0;
  readonly #underWay = new Set<number>();
  /** Of the objects but the root, those that were given out first and last. */
  #oldest: ObjectNode | null = null;
  #newest: ObjectNode | null = null;

  /** `idleMin`: so many objects are kept though nobody uses them; in tests. */
  constructor(readonly idleMin = IDLE_MIN) {}

  /** Nodes known now, by name. */
  get count(): number {
    return this.#packed.records.hashed;
  }

  /** A request begins that may wait with nodes in its hands. @returns what end() takes */
  begin(): number {
    this.#underWay.add(++this.#moment);
    return this.#moment;
  }

  end(request: number): void {
    this.#underWay.delete(request);
    // While one took long, many may have become objects
    if (this.#isCrowded) this.#sweep();
  }

  get(low: number, high: number): ObjectNode | null {
    const node = this.#objects.get(low);
    if (node === undefined) return high !== 0 && this.#packed.records.sequence(low) === high ? this.#unpack(low) : null;
    if (node.sequence !== high) return null;
    node.given = this.#moment;
    return node;
  }

  find(directory: boolean, key: string): ObjectNode | null {
    const slot = this.#slotOf(directory, key);
    if (slot === 0) return null;
    const node = this.#objects.get(slot);
    if (node === undefined) return this.#unpack(slot);
    node.given = this.#moment;
    return node;
  }

  has(directory: boolean, key: string): boolean {
    return this.#slotOf(directory, key) !== 0;
  }

  /** Which inode number a node of this key has, or would have. */
  numberOf(directory: boolean, key: string): InodeNumber {
    const slot = this.#slotOf(directory, key);
    if (slot === 0) return this.#ino(directory, key);
    return this.#objects.get(slot) ?? this.#packed.numberOf(slot);
  }

  /** Whatever is known of the node of a key, if there is one, is believed no more. */
  expire(directory: boolean, key: string): void {
    const slot = this.#slotOf(directory, key);
    if (slot !== 0) this.#expire(slot);
  }

  /** The same for a prefix's own node, and all below it. */
  expireBelow(prefix: string): void {
    for (const slot of this.#slotsBelow(prefix)) this.#expire(slot);
  }

  /** The node of a key, with facts as of now; made if need be, without a reference. @throws ENFILE */
  put(directory: boolean, key: string, facts: Facts, expires_ms: number, proof_s = 0): ObjectNode {
    const known = this.find(directory, key);
    if (known !== null) {
      known.facts = facts;
      known.expires_ms = expires_ms;
      known.proof_s = proof_s;
      return known;
    }
    const { records } = this.#packed;
    if (records.used >= NODES_MAX) throw systemError(E.NFILE, 'lookup', 'the guest knows too many files');
    const slot = records.allocate();
    const root = slot === ROOT_NODE;
    const { inoLow, inoHigh } = this.#ino(directory, key);
    const node: ObjectNode = {
      slot, sequence: root ? 0 : ++this.#sequence >>> 0 || (this.#sequence = 1), directory, key, unlinked: false, replaced: false, refused: false, suffixed: false,
      inoLow, inoHigh, refs: 0, opens: 0, facts, expires_ms, proof_s, told: null, lookedUp_ms: -Infinity, cached: null, staged: null, turn: NO_TURN, replacing: null,
      given: 0, queued: 0, older: null, newer: null,
    };
    records.addHash(slot, hashOf(directory, key));
    this.#addObject(node);
    return node;
  }

  ref(node: ObjectNode): void {
    node.refs = Math.min(REFS_MAX, node.refs + 1);
  }

  /** Take references of a nodeid away; a node without any, and without open handles, is forgotten. */
  forget(low: number, high: number, count: number): void {
    const node = this.#objects.get(low);
    if (node === undefined) {
      if (high !== 0 && this.#packed.records.sequence(low) === high && !this.#packed.unref(low, count)) this.#removePacked(low);
    } else if (node.sequence === high && low !== ROOT_NODE) {
      node.refs = Math.max(0, node.refs - count);
      this.release(node);
    }
  }

  /** Forget the node if nobody needs it: also one that was put and never referenced. */
  release(node: ObjectNode): void {
    const { slot } = node;
    if (node.refs > 0 || node.opens > 0 || node.staged !== null || slot === ROOT_NODE || this.#objects.get(slot) !== node) return;
    this.#objects.delete(slot);
    this.#replaced.delete(node);
    this.#unlink(node);
    this.#moved.delete(numberIn53(node));
    if (isNamed(node)) this.#packed.records.removeHash(slot);
    this.#packed.records.free(slot);
  }

  /** The node has another key now. A node that had it loses its name. */
  rename(node: ObjectNode, key: string): void {
    const there = this.find(node.directory, key);
    if (there !== null && there !== node) this.detach(there);
    // Nobody knows it any more: whoever asks for the key is given another one
    if (this.#objects.get(node.slot) !== node) return;
    this.#unname(node);
    this.#moved.add(numberIn53(node));
    const isStaged = this.staged.delete(node);
    node.key = key;
    if (isStaged) this.staged.add(node);
    node.unlinked = node.replaced = false;
    this.#replaced.delete(node);
    this.#packed.records.addHash(node.slot, hashOf(node.directory, key));
  }

  /**
   * A prefix's own node, and all below it, have keys that begin with another one now; what is known of them is believed no more. There had been nothing below
   * that one: who has something open there has what others have removed.
   */
  renameBelow(from: string, to: string): void {
    for (const slot of this.#slotsBelow(to)) {
      const node = this.#objects.get(slot) ?? this.#unpack(slot);
      if (!node.directory && (node.opens > 0 || node.staged !== null)) this.replace(node);
      else this.detach(node);
    }
    for (const slot of this.#slotsBelow(from)) {
      const node = this.#objects.get(slot);
      // One that was in the way of another one before may be gone, or an object
      if (node === undefined && this.#packed.records.sequence(slot) !== 0) this.#renamePacked(slot, to + this.#packed.keyOf(slot).slice(from.length));
      if (node === undefined || !isNamed(node) || !node.key.startsWith(from)) continue;
      this.rename(node, to + node.key.slice(from.length));
      node.expires_ms = -Infinity;
    }
  }

  /** The node has no name any more. */
  detach(node: ObjectNode): void {
    this.#unname(node);
    this.#moved.add(numberIn53(node));
    node.unlinked = true;
    this.#replaced.delete(node);
    this.release(node);
  }

  /** Another client has put another object in its place: the node goes on without the name. */
  replace(node: ObjectNode): void {
    this.#unname(node);
    this.#moved.add(numberIn53(node));
    node.replaced = true;
    this.#replaced.add(node);
    this.release(node);
  }

  /** Nodes that had this key, or one that begins with this prefix, when another client put another object there, and are in use. */
  replacedAt(keyOrPrefix: string): ObjectNode[] {
    return [...this.#replaced].filter(({ key }) => key === keyOrPrefix || (keyOrPrefix.endsWith('/') && key.startsWith(keyOrPrefix)));
  }

  /** What was changed through a node that was replaced is at its key now: it has the name again. */
  restore(node: ObjectNode): void {
    const there = this.find(node.directory, node.key);
    if (there !== null) this.replace(there);
    node.replaced = node.refused = false;
    this.#replaced.delete(node);
    this.#packed.records.addHash(node.slot, hashOf(node.directory, node.key));
  }

  /** Forget all but the root, and what is not committed. */
  clear(): void {
    for (const slot of [...this.#packed.records.recorded()]) this.#removePacked(slot);
    for (const node of [...this.#objects.values()]) {
      node.opens = 0;
      node.refs = node.slot === ROOT_NODE ? 1 : 0;
      this.release(node);
    }
  }

  #slotOf(directory: boolean, key: string): number {
    const { records } = this.#packed;
    const hash = hashOf(directory, key);
    for (let slot = records.first(hash); slot !== 0; slot = records.next(slot)) {
      if (records.hash(slot) !== hash) continue;
      const node = this.#objects.get(slot);
      if (node === undefined ? this.#packed.isDirectory(slot) === directory && this.#packed.hasKey(slot, key) : node.directory === directory && node.key === key) return slot;
    }
    return 0;
  }

  /** Every node with a name that begins with a prefix, or is it. */
  #slotsBelow(prefix: string): number[] {
    const objects = [...this.#objects.values()].filter((node) => isNamed(node) && node.key.startsWith(prefix)).map(({ slot }) => slot);
    return [...objects, ...[...this.#packed.records.recorded()].filter((slot) => this.#packed.isBelow(slot, prefix))];
  }

  #expire(slot: number): void {
    const node = this.#objects.get(slot);
    if (node === undefined) this.#packed.expire(slot);
    else node.expires_ms = -Infinity;
  }

  #unname(node: ObjectNode): void {
    if (isNamed(node) && this.#objects.get(node.slot) === node) this.#packed.records.removeHash(node.slot);
  }

  #removePacked(slot: number): void {
    if (this.#moved.size > 0) this.#moved.delete(numberIn53(this.#packed.numberOf(slot)));
    this.#packed.drop(slot);
    this.#packed.records.removeHash(slot);
    this.#packed.records.free(slot);
  }

  #renamePacked(slot: number, key: string): void {
    const directory = this.#packed.isDirectory(slot);
    const there = this.find(directory, key);
    if (there !== null) this.detach(there);
    this.#moved.add(numberIn53(this.#packed.numberOf(slot)));
    this.#packed.records.removeHash(slot);
    this.#packed.rename(slot, key);
    this.#packed.records.addHash(slot, hashOf(directory, key));
    this.#packed.expire(slot);
  }

  #pack(node: ObjectNode): void {
    this.#objects.delete(node.slot);
    this.#unlink(node);
    this.#packed.pack(node);
  }

  #unpack(slot: number): ObjectNode {
    const node = this.#packed.unpack(slot);
    this.#addObject(node);
    return node;
  }

  #addObject(node: ObjectNode): void {
    this.#objects.set(node.slot, node);
    node.given = this.#moment;
    if (node.slot === ROOT_NODE) return;
    this.#append(node);
    if (this.#isCrowded) this.#sweep();
  }

  get #isCrowded(): boolean {
    return this.#objects.size > Math.max(this.idleMin, this.#packed.records.used / IDLE_SHARE);
  }

  /** Those that were given out longest ago, and are not in use, are packed. */
  #sweep(): void {
    // What was given out to a request that has not ended may be in its hands; also what it was given right before it said that it begins
    const [oldest = this.#moment] = this.#underWay;
    const first = oldest - 1;
    for (let count = 0; count < SWEEP && this.#oldest !== null; count++) {
      const node = this.#oldest;
      if (node.queued >= first) return;
      if (node.given > node.queued || node.opens > 0 || node.staged !== null || !isNamed(node) || !this.#packed.fits(node)) {
        this.#unlink(node);
        this.#append(node);
      } else if (node.refs === 0) {
        // It was looked up for the daemon itself
        this.release(node);
      } else {
        this.#pack(node);
      }
    }
  }

  #append(node: ObjectNode): void {
    node.queued = this.#moment;
    node.older = this.#newest;
    node.newer = null;
    if (this.#newest === null) this.#oldest = node;
    else this.#newest.newer = node;
    this.#newest = node;
  }

  #unlink(node: ObjectNode): void {
    const { older, newer } = node;
    if (older === null) this.#oldest = newer;
    else older.newer = newer;
    if (newer === null) this.#newest = older;
    else newer.older = older;
    node.older = node.newer = null;
  }

  /** From the key, so that it stays the same; another one while a node that had the key has it. Positive, and never 0 or 1. */
  #ino(directory: boolean, key: string): InodeNumber {
    const name = (directory ? 'd' : 'o') + key;
    for (let salt = ''; ; salt += '\0') {
      const hash = createHash('sha1').update(salt + name).digest();
      const number = { inoLow: hash.readInt32LE(0), inoHigh: (hash.readUInt32LE(4) & 0x7fffffff) | 0x40000000 };
      if (this.#moved.size === 0 || !this.#moved.has(numberIn53(number))) return number;
    }
  }
}

const isNamed = ({ unlinked, replaced }: ObjectNode): boolean => !unlinked && !replaced;

/** FNV-1a, mixed once more. */
function hashOf(directory: boolean, key: string): number {
  let hash = directory ? 0x811c9dc5 : 0x1000193;
  for (let i = 0; i < key.length; i++) hash = Math.imul(hash ^ key.charCodeAt(i), 0x01000193);
  hash = Math.imul(hash ^ (hash >>> 15), 0x2c1b3c6d);
  return hash ^ (hash >>> 13);
}

/** Two that are the same by chance only cost one of them its usual number. */
const numberIn53 = ({ inoLow, inoHigh }: InodeNumber): number => (inoHigh & 0x1fffff) * 2 ** 32 + (inoLow >>> 0);

/** What a node is for this guest: changes that are not in the bucket count. */
export function presentFacts({ staged, unlinked, facts }: ObjectNode): Facts {
  return staged !== null && (staged.dirty || unlinked) ? staged.facts() : facts;
}

/** Replace or move the object of a node, and say so to whoever has it open. */
export async function replacing<T>(node: ObjectNode, body: () => Promise<T>): Promise<T> {
  const done = body();
  node.replacing = done.catch(() => undefined);
  try {
    return await done;
  } finally {
    node.replacing = null;
  }
}

/** What is done to one node comes one after the other. */
export async function inTurn<T>(node: ObjectNode, body: () => Promise<T>): Promise<T> {
  const turn = node.turn.then(body);
  node.turn = turn.catch(() => undefined);
  return turn;
}

/** What the store says of the object counts, and not what was changed here and is not committed. */
export const isOvertaken = ({ staged }: ObjectNode, info: ObjectInfo): boolean => staged?.dirty !== true || staged.isOvertakenBy(info);

/** The other version may be our own, of which we have not heard yet. */
export const isBeingReplaced = ({ replacing, facts }: ObjectNode, info: ObjectInfo): boolean => replacing !== null && facts.version !== info.version;
