/** Objects that are made at once: markers of directories, symlinks, special files. */
import { randomUUID } from 'node:crypto';
import { E } from '../../base/errno.js';
import { StorageError } from './errors.js';
import type { Facts } from './facts.js';
import type { ObjectNode } from './nodes.js';
import { modeRefusal } from './privileges.js';
import { COMMIT, settledPut } from './settle.js';
import { EMPTY_MD5, type Metadata, type ObjectInfo, type ObjectStore, type Version } from './store.js';
import { FileError, type Tree } from './tree.js';
import { metadataFits, metadataOf } from './write/attributes.js';

export class SmallObjects {
  constructor(
    readonly store: ObjectStore,
    readonly tree: Tree,
  ) {}

  /** @throws FileError EEXIST, or that the metadata is too large */
  async put(key: string, body: Uint8Array, facts: Facts): Promise<Pick<Facts, 'version' | 'kept'>> {
    const metadata = this.metadata(facts, key.endsWith('/') ? E.NOSPC : E.NAMETOOLONG);
    try {
      const commit = randomUUID();
      const { version, described } = await settledPut(this.store, key, body, { commit, metadata, condition: { absent: true } });
      return { version, kept: keptOf(metadata, commit, described) };
    } catch (error) {
      if (error instanceof StorageError && error.code === 'changed') throw new FileError(E.EXIST);
      throw error;
    }
  }

  /** Another one in place of a directory's own object, if that is known to be empty and its store would copy it. @returns null otherwise */
  async replaceMarker(node: ObjectNode, facts: Facts, metadata: Metadata): Promise<Pick<Facts, 'version' | 'kept'> & { readonly version: Version } | null> {
    const { capabilities } = this.store;
    const { version } = node.facts;
    if (capabilities.metadataInPlace || version !== EMPTY_MD5) return null;
    const commit = randomUUID();
    const { version: made, described } = await settledPut(this.store, node.key, new Uint8Array(0), { commit, metadata, headers: facts.headers ?? {}, condition: { version } });
    return { version: made, kept: keptOf(metadata, commit, described) };
  }

  /** A directory's own object. */
  async putMarker(prefix: string, facts: Facts): Promise<ObjectNode> {
    const made = await this.put(prefix, new Uint8Array(0), facts);
    this.tree.changed(prefix);
    return this.tree.nodes.put(true, prefix, { ...facts, ...made }, performance.now() + this.tree.options.metadataTtl_ms);
  }

  metadata(facts: Facts, tooLarge: number): Metadata {
    const metadata = metadataOf(facts, this.store, this.tree.options.posix);
    if (!metadataFits(metadata, this.store)) throw new FileError(tooLarge);
    return metadata;
  }
}

/** null, where somebody else has set attributes since: then the object is asked before they are changed. */
const keptOf = (metadata: Metadata, commit: string, described: ObjectInfo | null): Metadata | null => (described === null ? { ...metadata, [COMMIT]: commit } : null);

/** @throws FileError where the mode that a guest gives would lend rights that nobody may claim: see privileges.ts */
export function requirePrivilege({ options }: Tree, mode: number, rdev: number): void {
  const errno = options.posix === 'off' ? 0 : modeRefusal(mode, rdev, options.privileged);
  if (errno !== 0) throw new FileError(errno);
}

/** @throws FileError where metadata of objects is not used */
export function requirePosix(tree: Tree): void {
  if (tree.options.posix === 'off') throw new FileError(E.PERM);
}
