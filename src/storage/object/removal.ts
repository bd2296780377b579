/** The object of a name goes: who has it open keeps it, and what was changed of it is not committed any more. */
import { objectAt } from './asking.js';
import { hiddenKey } from './hidden.js';
import type { ObjectNode } from './nodes.js';
import { removeAny } from './settle.js';
import type { StagingRegistry, WriteSide } from './staging-registry.js';
import type { ObjectStore, Version } from './store.js';
import type { Tree } from './tree.js';
import type { StagedFile } from './write/staged-file.js';

export class Removal {
  constructor(
    readonly store: ObjectStore,
    readonly tree: Tree,
    readonly staging: StagingRegistry,
    readonly write: WriteSide,
  ) {}

  /** What is there, whoever made it, by the version that was seen last; `found`: just now. @throws StorageError */
  async remove(node: ObjectNode, found: Version | null = null): Promise<void> {
    const file = node.staged;
    await this.staging.keepReplaced(node.key);
    if (file !== null) await this.write.committer.stop(file);
    try {
      await this.preserve(node);
      if (file?.dirty === true) await this.#removeChanged(node, file, found);
      else await this.#removeObject(node, found);
    } catch (error) {
      // The guest has been told, and goes on with the file
      if (file !== null) this.write.committer.later(file);
      throw error;
    }
    await this.staging.unlinked(node);
    this.staging.gaveUp(node.key);
    this.tree.changed(node.key);
    this.tree.nodes.detach(node);
  }

  /** Who has a file open that is about to lose its name keeps what it is. @throws StorageError */
  preserve(node: ObjectNode): Promise<void> {
    return this.staging.preserve(node, () => hiddenKey(this.tree.options.prefix));
  }

  async #removeObject(node: ObjectNode, found: Version | null): Promise<void> {
    await this.write.shop.ledger.settle(node.key);
    await removeAny(this.store, node.key, found ?? node.facts.version);
  }

  /** Its data is in the journal: what is begun here is finished there. */
  async #removeChanged(node: ObjectNode, file: StagedFile, found: Version | null): Promise<void> {
    const { ledger } = this.write.shop;
    const inBucket = found !== null || file.base !== null || file.mayBeCommitted;
    const known = found ?? (file.mayBeCommitted ? undefined : file.base?.version);
    const version = !inBucket ? null : known ?? (await objectAt(this.store, node.key))?.version ?? null;
    if (version === null) return;
    const operation = { op: ledger.nextId(), kind: 'remove', from: node.key, to: '', tree: false, version, commit: '' } as const;
    try {
      await ledger.beginSafely(operation);
      await removeAny(this.store, node.key, version);
    } catch (error) {
      // Nor is it done by the next start
      ledger.finish(operation);
      throw error;
    }
    file.rename(null, file.base);
    ledger.finish(operation);
  }
}
