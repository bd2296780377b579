/** What a file is, apart from its content: from facts to metadata and back. */
import { S_IFDIR, S_IFLNK, S_IFMT, S_ISGID, S_ISUID } from '../../../ffi/constants.js';
import { inherited } from '../attachments.js';
import { timeOf, type Facts } from '../facts.js';
import { PERMISSIONS, writePosix, type Time } from '../posix-metadata.js';
import { foreignXattrs, readBelieved } from '../privileges.js';
import { CHANGE, COMMIT } from '../settle.js';
import type { Metadata, ObjectInfo, ObjectStore } from '../store.js';
import type { PosixMode } from '../tree.js';
import type { Attributes, Base } from './records.js';

/** HTTP headers carry printable ASCII; other text is sent in base64 with an envelope around (RFC 2047). */
const PLAIN = /^(?! )[\x20-\x7e]*(?<! )$/;
const ENVELOPE_BYTES = 12;
/** A commit's id, which is a UUID, that of a change of attributes, which is short, and their names. */
const ID_BYTES = COMMIT.length + 36 + CHANGE.length + 12;

const S_IXGRP = 0o010;

export function attributesOf(facts: Facts): Attributes {
  const { mode, uid, gid, rdev, mtime, atime, ctime, symlink, kept, headers } = facts;
  const xattrs = Object.fromEntries([...facts.xattrs].map(([name, value]) => [name, Buffer.from(value).toString('base64')]));
  return { mode, uid, gid, rdev, mtime, atime, ctime, symlink, xattrs, kept: kept ?? {}, headers: inherited(headers ?? {}) };
}

/** `version`: null for an object that is not there yet. */
export function factsOf(attributes: Attributes, size: number, base: Base | null): Facts {
  const { mode, uid, gid, rdev, mtime, atime, ctime, symlink, kept, headers } = attributes;
  const xattrs = new Map(Object.entries(attributes.xattrs).map(([name, value]) => [name, new Uint8Array(Buffer.from(value, 'base64'))]));
  return { mode, uid, gid, rdev, size, mtime, atime, ctime, version: base?.version ?? null, symlink, xattrs, kept, headers };
}

/** Attributes that somebody else has set of the object since these were known; what it does not say stays. */
export function describedBy(facts: Facts, { metadata }: ObjectInfo, privileged: boolean): Facts {
  const { mode, uid, gid, mtime, atime, ctime, xattrs } = readBelieved(metadata ?? {}, privileged, (facts.mode & S_IFMT) === S_IFDIR).posix;
  return {
    ...facts, mode: mode === null ? facts.mode : (facts.mode & S_IFMT) | (mode & PERMISSIONS), uid: uid ?? facts.uid, gid: gid ?? facts.gid,
    mtime: mtime ?? facts.mtime, atime: atime ?? facts.atime, ctime: ctime ?? facts.ctime, xattrs: xattrs ?? new Map<string, Uint8Array>(), kept: metadata,
  };
}

/** What Linux leaves of a mode when the owner or, by somebody without rights, the content changes: set-group-id only where nobody of it may execute. */
export const withoutPrivileges = (mode: number): number => mode & ~(S_ISUID | ((mode & S_IXGRP) !== 0 ? S_ISGID : 0));

/** The user metadata that the object gets. `posix` off: nothing of ours. */
export function metadataOf(facts: Omit<Facts, 'size' | 'version'>, store: Pick<ObjectStore, 'kind'>, posix: PosixMode): Metadata {
  const { [COMMIT]: _commit, [CHANGE]: _change, ...kept } = facts.kept ?? {};
  if (posix === 'off') return kept;
  const { mode, uid, gid, mtime, atime, ctime, symlink } = facts;
  const xattrs = new Map([...foreignXattrs(kept), ...facts.xattrs]);
  const device = (mode & S_IFMT) === 0o020000 || (mode & S_IFMT) === 0o060000;
  return writePosix(
    { mode, uid, gid, rdev: device ? facts.rdev : null, mtime, atime, ctime, symlink: (mode & S_IFMT) === S_IFLNK ? symlink : null, xattrs },
    store.kind === 'gcs' ? 'gcs' : 's3', kept,
  );
}

/** Bytes of times in each convention, at their longest: the next write may make one as long, and must be possible. */
const TIME_BYTES = new Map([['mtime', 22], ['atime', 22], ['ctime', 22], ['gcsfuse_mtime', 30], ['goog-reserved-file-mtime', 12], ['goog-reserved-file-atime', 12]]);

/** Whether the provider takes so much, whatever the times are, and our ids beside it. */
export function metadataFits(metadata: Metadata, store: Pick<ObjectStore, 'limits'>): boolean {
  let bytes = ID_BYTES;
  // It comes with the nanoseconds
  if (metadata['goog-reserved-file-atime'] !== undefined && metadata['atime'] === undefined) bytes += 'atime'.length + TIME_BYTES.get('atime')!;
  for (const [name, value] of Object.entries(metadata)) {
    const atLeast = TIME_BYTES.get(name);
    if (atLeast !== undefined) bytes += name.length + Math.max(atLeast, value.length);
    else bytes += name.length + (PLAIN.test(value) ? value.length : ENVELOPE_BYTES + 4 * Math.ceil(Buffer.byteLength(value) / 3));
  }
  return bytes <= store.limits.metadataBytes;
}

export const now = (): Time => timeOf(Date.now());
