/** Copies that stand for objects which were removed or replaced while they were open: they go when the last handle does. */
import { randomUUID } from 'node:crypto';
import { Underway } from '../../base/underway.js';
import { contentOnly } from './attachments.js';
import type { ObjectNode } from './nodes.js';
import type { ObjectStore } from './store.js';
import { copyToOwnKey, removeFromOwnKey } from './unconditional-writes.js';
import type { Base } from './write/records.js';
import type { Ledger } from './write/ledger.js';

/** Objects that only the daemon needs are nobody's entries. */
export const HIDDEN = '.bucketfsd-unlinked';

/** A key for one of them, which nobody has. */
export const hiddenKey = (prefix: string): string => `${prefix}${HIDDEN}/${randomUUID()}`;

export class HiddenObjects {
  readonly #keys = new Map<ObjectNode, string>();
  readonly #copies = new Map<ObjectNode, Base>();
  readonly #removing = new Underway();

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
  ) {}

  /** @returns the copy. @throws StorageError */
  async copy(node: ObjectNode, base: Base, key: string): Promise<Base> {
    // Known before it is there: the next start removes it
    this.ledger.hide(key);
    this.#keys.set(node, key);
    const version = await copyToOwnKey(this.store, base.key, key, { sourceVersion: base.version, metadata: {}, headers: contentOnly(node.facts.headers ?? {}) });
    const copy = { ...base, key, version };
    this.#copies.set(node, copy);
    return copy;
  }

  /** What stands for the object of a node that has lost its name. */
  copyOf(node: ObjectNode): Base | null {
    return node.unlinked ? this.#copies.get(node) ?? null : null;
  }

  /** If nobody has the node open any more. */
  release(node: ObjectNode): void {
    const key = this.#keys.get(node);
    if (key === undefined || node.opens > 0) return;
    this.#keys.delete(node);
    this.#copies.delete(node);
    this.#removing.add(removeFromOwnKey(this.store, key).then(
      () => this.ledger.removed(key),
      () => undefined, // the next start does it
    ));
  }

  async settled(): Promise<void> {
    await this.#removing.settled();
  }
}

/** Where the content of a file is that is not being changed; null: nowhere yet. */
export function baseOf(node: ObjectNode, hidden: HiddenObjects | null): Base | null {
  const { version, size } = node.facts;
  return hidden?.copyOf(node) ?? (version === null ? null : { key: node.key, version, size });
}
