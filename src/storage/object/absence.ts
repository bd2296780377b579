/** That nothing has a name, where a guest is about to give it to something. */
import { E } from '../../base/errno.js';
import { contradicted, isGone } from './asking.js';
import type { ObjectNode } from './nodes.js';
import { FileError, type Tree } from './tree.js';

/** A provider that goes on contradicting itself. */
const ATTEMPTS = 3;

/**
 * The node of a name; null: there is none. Rule: where something would be lost if that were wrong, one answer that says so is not enough, and a listing has to say the
 * same. So it is where a file is open under the name, which another one would get, and with `overwrites` (--on-conflict=overwrite), where an object that is there is replaced
 * unseen. @throws FileError, StorageError
 */
export async function nodeOrNone(tree: Tree, parent: ObjectNode, name: Uint8Array, overwrites: boolean): Promise<ObjectNode | null> {
  for (let attempt = 1; ; attempt++) {
    if (parent.unlinked) throw new FileError(E.NOENT);
    try {
      return await tree.lookup(parent, name);
    } catch (error) {
      if (!(error instanceof FileError) || error.errno !== E.NOENT) throw error;
    }
    const key = tree.keyOf(parent, name);
    const known = tree.nodes.find(false, key);
    const isOpen = known !== null && known.opens > 0;
    if (!(isOpen || overwrites) || (await isGone(tree.store, key))) return null;
    if (attempt === ATTEMPTS) throw contradicted(`head ${tree.store.location}/${key}`);
    tree.changed(key);
  }
}
