/** Nodes of a bucket: what the guest knows by a nodeid, one for each key and kind, while it knows it. */
import { createHash } from 'node:crypto';
import { ROOT_NODE } from '../filesystem.js';
import type { Facts } from './facts.js';
import { StagedNodes } from './staged-nodes.js';
import type { Version } from './store.js';
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
  /** Those of the object; of what was changed and is not committed, ask `staged`: presentFacts() does. */
  facts: Facts;
  /** Until then the facts are believed, by performance.now(). */
  expires_ms: number;
  /** The version whose attributes the guest was told last. */
  told: Version | null;
  /** When the store has answered a lookup that no OPEN has used yet; what a listing has told before is too old for one. */
  lookedUp_ms: number;
  /** The version whose content the guest may have in its cache. */
  cached: Version | null;
  /** What the guest has changed, or was about to; of a directory its attributes, or that it is there. */
  staged: StagedFile | null;
  /** Changes of names and attributes of one node come one after the other. */
  turn: Promise<unknown>;
  /** One of them that makes another version of the object, or moves it: no commit begins until that is over. */
  replacing: Promise<unknown> | null;
}

const REFS_MAX = 2 ** 53;

export class ObjectNodes {
  /** Those of files and directories that were changed, or are about to be. */
  readonly staged = new StagedNodes();
  readonly #slots: (ObjectNode | undefined)[] = [];
  readonly #free: number[] = [];
  readonly #known = new Map<string, ObjectNode>();
  /** Inode numbers of nodes whose key is no longer the one that they were made from. */
  readonly #moved = new Set<string>();
  #sequence = 0;

  /** Nodes known now. */
  get count(): number {
    return this.#known.size;
  }

  get(low: number, high: number): ObjectNode | null {
    const node = this.#slots[low];
    return node !== undefined && node.sequence === high ? node : null;
  }

  find(directory: boolean, key: string): ObjectNode | null {
    return this.#known.get(identity(directory, key)) ?? null;
  }

  /** Which inode number a node of this key has, or would have. */
  numberOf(directory: boolean, key: string): InodeNumber {
    return this.find(directory, key) ?? this.#ino(identity(directory, key));
  }

  /** Every node below a prefix, and the prefix's own. */
  below(prefix: string): ObjectNode[] {
    return [...this.#known.values()].filter((node) => node.key.startsWith(prefix));
  }

  /** Every node, with a name or without. */
  all(): ObjectNode[] {
    return this.#slots.filter((node) => node !== undefined);
  }

  /** The node of a key, with facts as of now; made if need be, without a reference. */
  put(directory: boolean, key: string, facts: Facts, expires_ms: number): ObjectNode {
    const known = this.find(directory, key);
    if (known !== null) {
      known.facts = facts;
      known.expires_ms = expires_ms;
      return known;
    }
    const root = this.#slots[ROOT_NODE] === undefined;
    const slot = root ? ROOT_NODE : this.#free.pop() ?? Math.max(this.#slots.length, ROOT_NODE + 1);
    const { inoLow, inoHigh } = this.#ino(identity(directory, key));
    const node: ObjectNode = {
      slot, sequence: root ? 0 : ++this.#sequence >>> 0 || (this.#sequence = 1), directory, key, unlinked: false,
      replaced: false, refused: false, suffixed: false,
      inoLow, inoHigh, refs: 0, opens: 0, facts, expires_ms, told: null, lookedUp_ms: -Infinity, cached: null, staged: null, turn: Promise.resolve(), replacing: null,
    };
    this.#slots[slot] = node;
    this.#known.set(identity(directory, key), node);
    return node;
  }

  ref(node: ObjectNode): void {
    node.refs = Math.min(REFS_MAX, node.refs + 1);
  }

  /** Take references away; a node without any, and without open handles, is forgotten. */
  unref(node: ObjectNode, count: number): void {
    node.refs = Math.max(0, node.refs - count);
    this.release(node);
  }

  /** Forget the node if nobody needs it: also one that was put and never referenced. */
  release(node: ObjectNode): void {
    if (node.refs > 0 || node.opens > 0 || node.staged !== null || node.slot === ROOT_NODE || this.#slots[node.slot] !== node) return;
    this.#slots[node.slot] = undefined;
    this.#free.push(node.slot);
    this.#moved.delete(`${node.inoLow} ${node.inoHigh}`);
    this.#unname(node);
  }

  /** The node has another key now. A node that had it loses its name. */
  rename(node: ObjectNode, key: string): void {
    const there = this.find(node.directory, key);
    if (there !== null && there !== node) this.detach(there);
    // Nobody knows it any more: whoever asks for the key is given another one
    if (this.#slots[node.slot] !== node) return;
    this.#unname(node);
    this.#moved.add(`${node.inoLow} ${node.inoHigh}`);
    const isStaged = this.staged.delete(node);
    node.key = key;
    if (isStaged) this.staged.add(node);
    node.unlinked = node.replaced = false;
    this.#known.set(identity(node.directory, key), node);
  }

  /** The node has no name any more. */
  detach(node: ObjectNode): void {
    this.#unname(node);
    this.#moved.add(`${node.inoLow} ${node.inoHigh}`);
    node.unlinked = true;
    this.release(node);
  }

  /** Another client has put another object in its place: the node goes on without the name. */
  replace(node: ObjectNode): void {
    this.#unname(node);
    this.#moved.add(`${node.inoLow} ${node.inoHigh}`);
    node.replaced = true;
    this.release(node);
  }

  /** What was changed through a node that was replaced is at its key now: it has the name again. */
  restore(node: ObjectNode): void {
    const there = this.find(node.directory, node.key);
    if (there !== null) this.replace(there);
    node.replaced = node.refused = false;
    this.#known.set(identity(node.directory, node.key), node);
  }

  /** Forget all but the root, and what is not committed. */
  clear(): void {
    for (const node of this.all()) {
      node.opens = 0;
      node.refs = node.slot === ROOT_NODE ? 1 : 0;
      this.release(node);
    }
  }

  #unname(node: ObjectNode): void {
    const name = identity(node.directory, node.key);
    if (this.#known.get(name) === node) this.#known.delete(name);
  }

  /** From the key, so that it stays the same; another one while a node that had the key has it. Positive, and never 0 or 1. */
  #ino(name: string): InodeNumber {
    for (let salt = ''; ; salt += '\0') {
      const hash = createHash('sha1').update(salt + name).digest();
      const inoLow = hash.readInt32LE(0);
      const inoHigh = (hash.readUInt32LE(4) & 0x7fffffff) | 0x40000000;
      if (!this.#moved.has(`${inoLow} ${inoHigh}`)) return { inoLow, inoHigh };
    }
  }
}

const identity = (directory: boolean, key: string): string => (directory ? 'd' : 'o') + key;

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
