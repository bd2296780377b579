/** Nodes with something staged, by the directories that they are below: there may be many, and each lookup asks whether a directory has any. */
import type { ObjectNode } from './nodes.js';

export class StagedNodes implements Iterable<ObjectNode> {
  readonly #below = new Map<string, Set<ObjectNode>>();

  add(node: ObjectNode): void {
    for (const prefix of prefixesOf(node.key)) {
      const nodes = this.#below.get(prefix);
      if (nodes === undefined) this.#below.set(prefix, new Set([node]));
      else nodes.add(node);
    }
  }

  /** With the key that it was added with; one that is not there is no error. @returns whether it was there */
  delete(node: ObjectNode): boolean {
    let there = false;
    for (const prefix of prefixesOf(node.key)) {
      const nodes = this.#below.get(prefix);
      there = nodes?.delete(node) ?? false;
      if (nodes?.size === 0) this.#below.delete(prefix);
    }
    return there;
  }

  /** Those whose keys begin with `prefix`, which is empty or ends with a slash. */
  below(prefix: string): ReadonlySet<ObjectNode> {
    return this.#below.get(prefix) ?? NONE;
  }

  [Symbol.iterator](): Iterator<ObjectNode> {
    return this.below('')[Symbol.iterator]();
  }
}

const NONE: ReadonlySet<ObjectNode> = new Set();

function* prefixesOf(key: string): Generator<string> {
  yield '';
  for (let at = key.indexOf('/') + 1; at > 0; at = key.indexOf('/', at) + 1) yield key.slice(0, at);
}
