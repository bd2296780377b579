/** Changes of attributes: in the metadata of the object, or with the next commit of what is being changed; with `writeback` always. */
import { E } from '../../base/errno.js';
import { S_IFMT } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { FATTR, FATTR_CHANGES } from '../fuse-flags.js';
import { StorageError } from './errors.js';
import type { Facts } from './facts.js';
import { inTurn, presentFacts, replacing, type ObjectNode } from './nodes.js';
import type { StagingRegistry } from './staging-registry.js';
import { PERMISSIONS, type Time } from './posix-metadata.js';
import { isUserXattr } from './privileges.js';
import { CHANGE, changeId, COMMIT, settledSetMetadata } from './settle.js';
import { requirePosix, requirePrivilege, SmallObjects } from './small-objects.js';
import type { Metadata, ObjectStore, Version } from './store.js';
import { FileError, type Tree } from './tree.js';
import { requireWritable } from './write-access.js';
import { now, withoutPrivileges } from './write/attributes.js';

const XATTR_CREATE = 1;
const XATTR_REPLACE = 2;
const XATTR_VALUE_MAX = 65_536;
/** No user and no group: what chown(2) leaves as it is. */
export const NO_ID = 0xffff_ffff;
/** Special values of tv_nsec (utimensat(2)). */
const UTIME_NOW = 0x3fffffff;
const UTIME_OMIT = 0x3ffffffe;
/** The years 1 to 9999, which all conventions can write. */
const SECONDS_MIN = -62_135_596_800;
const SECONDS_MAX = 253_402_300_799;
const ATTEMPTS = 3;

export class AttributeChanges {
  readonly #small: SmallObjects;

  constructor(
    readonly store: ObjectStore,
    readonly tree: Tree,
    readonly staging: StagingRegistry,
  ) {
    this.#small = new SmallObjects(store, tree);
  }

  /** Whether a SETATTR asks for no change but has to clear set-id bits (FATTR_CHANGES). */
  givesToItself(r: FileSystemRequest, node: ObjectNode): boolean {
    const { mode } = presentFacts(node);
    return keepsOwner(r) && !node.directory && withoutPrivileges(mode) !== mode;
  }

  /** Mode, owner, times. */
  async setattr(r: FileSystemRequest, given: ObjectNode): Promise<void> {
    if (((r.valid & FATTR.UID) !== 0 && r.setUid === NO_ID) || ((r.valid & FATTR.GID) !== 0 && r.setGid === NO_ID)) throw new FileError(E.INVAL);
    if (((r.valid & FATTR.ATIME) !== 0 && !isTime(r, 0)) || ((r.valid & FATTR.MTIME) !== 0 && !isTime(r, 1))) throw new FileError(E.INVAL);
    // touch(1) of what was just made: the object will have the time of its making
    if (this.tree.options.posix === 'off' && given.staged?.dirty === true && (r.valid & (FATTR.MODE | FATTR.UID | FATTR.GID)) === 0 && isNow(r)) return;
    await this.#describe(given, (facts) => {
      const mode = (r.valid & FATTR.MODE) !== 0 ? (facts.mode & S_IFMT) | (r.mode & PERMISSIONS) : chowns(r) && !given.directory ? withoutPrivileges(facts.mode) : facts.mode;
      if ((r.valid & FATTR.MODE) !== 0) requirePrivilege(this.tree, mode, 0);
      const uid = (r.valid & FATTR.UID) === 0 ? facts.uid : r.setUid;
      const gid = (r.valid & FATTR.GID) === 0 ? facts.gid : r.setGid;
      const [atime, mtime] = timesOf(r, facts);
      return { ...facts, mode, uid, gid, atime, mtime, ctime: now() };
    });
  }

  async setxattr(r: FileSystemRequest, node: ObjectNode): Promise<void> {
    const name = xattrName(r);
    const value = r.payloadBytes();
    if (value.length > XATTR_VALUE_MAX) throw new FileError(E.BIG);
    const { flags } = r;
    if ((flags & ~(XATTR_CREATE | XATTR_REPLACE)) !== 0) throw new FileError(E.INVAL);
    await this.#describe(node, (facts) => {
      const there = facts.xattrs.has(name);
      if (there && (flags & XATTR_CREATE) !== 0) throw new FileError(E.EXIST);
      if (!there && (flags & XATTR_REPLACE) !== 0) throw new FileError(E.NODATA);
      return { ...facts, xattrs: new Map([...facts.xattrs, [name, value]]), ctime: now() };
    });
  }

  async removexattr(r: FileSystemRequest, node: ObjectNode): Promise<void> {
    const name = xattrName(r);
    await this.#describe(node, (facts) => {
      if (!facts.xattrs.has(name)) throw new FileError(E.NODATA);
      const xattrs = new Map(facts.xattrs);
      xattrs.delete(name);
      return { ...facts, xattrs, ctime: now() };
    });
  }

  /** Attributes of a node: with the next commit of what is changed, or would be, else in the metadata of its object. */
  async #describe(given: ObjectNode, change: (facts: Facts) => Facts): Promise<void> {
    requirePosix(this.tree);
    const { committer } = this.staging.write;
    await this.tree.gate.through(() => given.key, () => inTurn(given, async () => {
      for (let attempt = 1; ; attempt++) {
        // What has no object any more is only here
        const file = given.unlinked && !given.directory ? this.staging.stageNode(given) : given.staged;
        if (file !== null && (file.dirty || given.unlinked)) {
          const facts = change(file.facts());
          this.#small.metadata(facts, E.NOSPC);
          file.setAttributes(facts);
          return;
        }
        if (given.unlinked) throw new FileError(E.NOENT);
        const node = attempt === 1 && given.facts.kept !== null ? await this.tree.fresh(given) : await this.tree.refresh(given);
        if (node.replaced) throw new FileError(E.STALE);
        // Changed while it was asked for: a commit may be on its way, and would undo what is set beside it
        if (given.staged?.dirty === true) continue;
        // The bucket's root has no place for them
        const defers = committer.defers && (node.facts.version !== null || (node.directory && node.key !== ''));
        // In place, metadata can be changed whatever there is to say of the content
        if (defers && !node.directory && !this.store.capabilities.metadataInPlace) await requireWritable(this.tree, node, node.facts.size > 0);
        // With what was changed while it was asked for
        const facts = change(defers ? presentFacts(node) : node.facts);
        const metadata = this.#small.metadata(facts, E.NOSPC);
        if (defers) return committer.later(this.staging.describe(node, facts));
        try {
          await replacing(given, async () => {
            await this.#setMetadata(node, facts, metadata);
            // It has been changed meanwhile: the next commit is not to undo this
            if (given.staged?.dirty === true) given.staged.setAttributes(change(given.staged.facts()));
          });
          return;
        } catch (error) {
          if (!(error instanceof StorageError) || error.code !== 'changed' || attempt === ATTEMPTS) throw error;
        }
      }
    }));
    await committer.madeRoom(given.staged);
  }

  async #setMetadata(node: ObjectNode, facts: Facts, metadata: Metadata): Promise<void> {
    const { version } = node.facts;
    if (version === null) {
      // A directory without a marker; the bucket itself has no place for attributes
      if (!node.directory || node.key === '') throw new FileError(E.PERM);
      await this.#small.putMarker(node.key, facts);
      return;
    }
    const commit = node.facts.kept?.[COMMIT];
    const replaced = node.directory ? await this.#small.replaceMarker(node, facts, metadata) : null;
    const kept = replaced !== null ? replaced.kept : { ...metadata, ...(commit === undefined ? {} : { [COMMIT]: commit }), [CHANGE]: changeId() };
    const told = (now: Version): void => {
      this.tree.changed(node.key);
      if (!node.directory) this.staging.moved(node, node.key, { version: now, described: null });
      node.facts = { ...facts, version: now, kept };
      node.expires_ms = performance.now() + this.tree.options.metadataTtl_ms;
      if (node.staged?.base != null && !node.staged.dirty) node.staged.adopt(node.facts, { ...node.staged.base, version: now });
    };
    if (replaced !== null) told(replaced.version);
    else await this.#replaceMetadata(node, version, kept!, told);
  }

  /** What is written meanwhile to one that is open is of the version before: who starts after a daemon that was killed knows the new one by its id. */
  async #replaceMetadata(node: ObjectNode, version: Version, metadata: Metadata, told: (now: Version) => void): Promise<void> {
    if (node.staged === null && node.opens === 0) return told((await settledSetMetadata(this.store, node.key, version, metadata)).version);
    const { ledger } = this.staging.write.shop;
    const operation = { op: ledger.nextId(), kind: 'attributes', from: node.key, to: '', tree: false, version, commit: metadata[CHANGE] } as const;
    try {
      if (node.staged?.content.hasSynced === true) await ledger.beginSafely(operation);
      else ledger.begin(operation);
      told((await settledSetMetadata(this.store, node.key, version, metadata)).version);
    } finally {
      ledger.finish(operation);
    }
  }
}

function xattrName(r: FileSystemRequest): string {
  const name = xattrNameOf(r.nameBytes());
  if (name === null) throw new FileError(E.INVAL);
  // The others mean something to a kernel; here nobody would keep their promises
  if (!isUserXattr(name)) throw new FileError(E.OPNOTSUPP);
  return name;
}

/** null: a prefix without a name behind it, or bytes that are no text, which metadata cannot have. */
export function xattrNameOf(bytes: Uint8Array): string | null {
  const name = Buffer.from(bytes).toString();
  return name === 'user.' || (name.includes('\ufffd') && !Buffer.from(name).equals(bytes)) ? null : name;
}

const keepsOwner = (r: FileSystemRequest): boolean => (r.valid & FATTR_CHANGES) === 0 && r.session.killprivV2;
const chowns = (r: FileSystemRequest): boolean => (r.valid & (FATTR.UID | FATTR.GID)) !== 0 || keepsOwner(r);

const isTime = (r: FileSystemRequest, index: number): boolean => {
  const { nanoseconds } = r.time(index);
  return nanoseconds < 1_000_000_000 || nanoseconds === UTIME_NOW || nanoseconds === UTIME_OMIT;
};

const isNow = (r: FileSystemRequest): boolean => [0, 1].every((index) => r.time(index).nanoseconds === UTIME_NOW);

function timesOf(r: FileSystemRequest, { atime, mtime }: Facts): [atime: Time, mtime: Time] {
  return [(r.valid & FATTR.ATIME) === 0 ? atime : timeAt(r, 0, atime), (r.valid & FATTR.MTIME) === 0 ? mtime : timeAt(r, 1, mtime)];
}

function timeAt(r: FileSystemRequest, index: number, before: Time): Time {
  const { seconds, nanoseconds } = r.time(index);
  if (nanoseconds === UTIME_OMIT) return before;
  if (nanoseconds === UTIME_NOW) return now();
  return { seconds: Math.max(SECONDS_MIN, Math.min(SECONDS_MAX, seconds)), nanoseconds };
}
