/** Nodes of a bucket: what the guest knows by a nodeid, one for each key and kind, while it knows it. */
import { createHash } from 'node:crypto';
import { ROOT_NODE } from '../filesystem.js';
import type { Facts } from './facts.js';
import type { Version } from './store.js';

export interface ObjectNode {
  /** The nodeid: low and high half. */
  readonly slot: number;
  readonly sequence: number;
  readonly directory: boolean;
  /** Of the object; of a directory what its keys begin with: '' or something that ends with a slash. */
  readonly key: string;
  readonly inoLow: number;
  readonly inoHigh: number;
  /** References of the guest, and open handles. */
  refs: number;
  opens: number;
  facts: Facts;
  /** Until then the facts are believed, by performance.now(). */
  expires_ms: number;
  /** The version whose attributes the guest was told last. */
  told: Version | null;
  /** When a LOOKUP that no OPEN has used yet was answered. */
  lookedUp_ms: number;
}

const REFS_MAX = 2 ** 53;

export class ObjectNodes {
  readonly #slots: (ObjectNode | undefined)[] = [];
  readonly #free: number[] = [];
  readonly #known = new Map<string, ObjectNode>();
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

  /** The node of a key, with facts as of now; made if need be, without a reference. */
  put(directory: boolean, key: string, facts: Facts, expires_ms: number): ObjectNode {
    const known = this.find(directory, key);
    if (known !== null) {
      known.facts = facts;
      known.expires_ms = expires_ms;
      return known;
    }
    const root = this.#known.size === 0;
    const slot = root ? ROOT_NODE : this.#free.pop() ?? Math.max(this.#slots.length, ROOT_NODE + 1);
    const hash = createHash('sha1').update(identity(directory, key)).digest();
    const node: ObjectNode = {
      slot, sequence: root ? 0 : ++this.#sequence >>> 0 || (this.#sequence = 1), directory, key,
      // Positive as a 64-bit number, and never 0 or 1
      inoLow: hash.readInt32LE(0), inoHigh: (hash.readUInt32LE(4) & 0x7fffffff) | 0x40000000, refs: 0, opens: 0, facts, expires_ms, told: null, lookedUp_ms: -Infinity,
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
    if (node.refs > 0 || node.opens > 0 || node.slot === ROOT_NODE || this.#slots[node.slot] !== node) return;
    this.#slots[node.slot] = undefined;
    this.#free.push(node.slot);
    this.#known.delete(identity(node.directory, node.key));
  }

  /** Forget all but the root. */
  clear(): void {
    const root = this.#slots[ROOT_NODE];
    this.#slots.length = 0;
    this.#free.length = 0;
    this.#known.clear();
    if (root === undefined) return;
    this.#slots[ROOT_NODE] = root;
    this.#known.set(identity(true, root.key), root);
  }
}

const identity = (directory: boolean, key: string): string => (directory ? 'd' : 'o') + key;
