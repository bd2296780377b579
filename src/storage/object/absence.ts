/** That nothing has a name, where a guest is about to give it to something. */
import { E } from '../../base/errno.js';
import { isGone } from './asking.js';
import { StorageError } from './errors.js';
import type { ObjectNode } from './nodes.js';
import { FileError, type Tree } from './tree.js';

/** A provider that goes on contradicting itself. */
const ATTEMPTS = 3;

/**
 * The node of a name; null: there is none. The file that is open under it would lose it to another one: so one answer that says so may be wrong, and a listing
 * has to say the same. @throws FileError, StorageError
 */
export async function nodeOrNone(tree: Tree, parent: ObjectNode, name: Uint8Array): Promise<ObjectNode | null> {
  for (let attempt = 1; ; attempt++) {
    if (parent.unlinked) throw new FileError(E.NOENT);
    try {
      return await tree.lookup(parent, name);
    } catch (error) {
      if (!(error instanceof FileError) || error.errno !== E.NOENT) throw error;
    }
    const key = tree.keyOf(parent, name);
    const known = tree.nodes.find(false, key);
    if (known === null || known.opens === 0 || (await isGone(tree.store, key))) return null;
    if (attempt === ATTEMPTS) throw new StorageError('unavailable', `head ${tree.store.location}/${key}`, { providerMessage: 'it is listed, and not found' });
    tree.changed(key);
  }
}
