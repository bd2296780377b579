/**
 * What the journal says, and what follows from it when it is read again. Each record is a change; a `file` record is the
 * whole of one file and stands for all before it.
 */
import type { Extent, Extents } from '../extents.js';
import type { Time } from '../posix-metadata.js';
import type { Metadata, ObjectHeaders, Upload, Version } from '../store.js';

/** The object that a changed file was opened from, and where what is not staged is read from. */
export interface Base {
  readonly key: string;
  readonly version: Version;
  /** Bytes. */
  readonly size: number;
}

/** What goes along as metadata with the next commit. */
export interface Attributes {
  readonly mode: number;
  readonly uid: number;
  readonly gid: number;
  readonly rdev: number;
  readonly mtime: Time;
  readonly atime: Time;
  readonly ctime: Time;
  readonly symlink: string | null;
  /** Names and values in base64. */
  readonly xattrs: Readonly<Record<string, string>>;
  /** Metadata of the object under names of others. */
  readonly kept: Metadata;
  readonly headers: ObjectHeaders;
}

/** The bytes of a file that is being changed: see Extents. */
export interface Content {
  readonly size: number;
  readonly objectBytes: number;
  readonly staged: readonly Extent[];
}

export interface FileState extends Content {
  readonly id: number;
  /** Begins the id of each commit of this file; '' in journals of version 1. */
  readonly token: string;
  /** null: it has no name any more, and is not to be committed. */
  readonly key: string | null;
  /** The object that a commit replaces; null: nothing is there. */
  readonly base: Base | null;
  /** The file was not opened from `base`, but got its name from a rename over it. */
  readonly replaces: boolean;
  readonly attributes: Attributes;
  /** Attributes were changed since the object was made. */
  readonly described: boolean;
  /** The machine was started anew: there may be commits whose records only its memory had. */
  readonly unheard: boolean;
  /** Commits that may have happened, and were begun before the content got this far. */
  readonly doubts: readonly string[];
}

/** A commit that may have happened. */
export interface Doubt {
  readonly commit: string;
  /** It has all of the file's content, or all of the file. */
  readonly covers: 'nothing' | 'content' | 'all';
}

/** A file of a journal, as this daemon takes it over. */
export interface LeftFile extends Omit<FileState, 'doubts'> {
  readonly doubts: readonly Doubt[];
  /** What of it was synced, of which a power failure leaves this; null: nothing, and a power failure leaves the object. */
  readonly synced: Content | null;
  /** Its data was changed after its times were set. */
  readonly touched: boolean;
  /** Content that was not synced was lost with the machine: a commit of before may have had more than there is now. */
  readonly fellBack: boolean;
  /** Ranges that the disk has lost. */
  readonly lost: readonly Extent[];
}

/** Something that takes several calls of the store, and is to be finished if it was begun; or after which an object is another version. */
export interface Operation {
  readonly op: number;
  /** `attributes`: new metadata of an object that a guest has open. `clear`: what stands for an object that was removed, and could not be removed itself. */
  readonly kind: 'rename' | 'remove' | 'attributes' | 'clear';
  /** Keys of objects, or prefixes of trees; what is not moved has no `to`. */
  readonly from: string;
  readonly to: string;
  readonly tree: boolean;
  /** Of an object: what is moved, removed or described. */
  readonly version: Version | null;
  /** The id by which it is known afterwards: under COMMIT in the metadata of what was moved (of a tree: see copyId()), under CHANGE of what was described. */
  readonly commit: string;
  /** What a rename replaces; null or absent: nothing. Of a tree the marker. */
  readonly over?: Version | null;
  /** Of a tree: objects that it had when it was looked through before; absent in journals of before. */
  readonly objects?: number;
}

/** What journals of version 1 do not have. */
type Later = 'token' | 'replaces' | 'described' | 'unheard';

export type JournalRecord =
  /** The machine was started anew, if this is another boot than that of the records before. */
  | { readonly t: 'boot'; readonly boot: string }
  | ({ readonly t: 'file' } & Omit<FileState, Later> & Partial<Pick<FileState, Later>>)
  /** A range is in the staging file; `fetched`: as the object has it. */
  | { readonly t: 'wrote'; readonly id: number; readonly from: number; readonly to: number; readonly fetched?: true }
  /** The file has this size now; `fetched`: that is no change, but describes one of before. */
  | { readonly t: 'cut'; readonly id: number; readonly size: number; readonly fetched?: true }
  /** The file's content is on the disk, but for the last `after` records of it ('wrote' and 'cut'). */
  | { readonly t: 'synced'; readonly id: number; readonly after: number }
  /** The disk has lost these ranges of the staging file. */
  | { readonly t: 'lost'; readonly id: number; readonly ranges: readonly Extent[] }
  | { readonly t: 'attributes'; readonly id: number; readonly attributes: Attributes }
  /** It has another name, and replaces something else, or has none any more. */
  | { readonly t: 'key'; readonly id: number; readonly key: string | null; readonly base: Base | null; readonly replaces?: boolean }
  /** What is not staged is read from somewhere else. */
  | { readonly t: 'base'; readonly id: number; readonly base: Base | null }
  /** A commit of this id is on its way, with all that was recorded so far. */
  | { readonly t: 'begin'; readonly id: number; readonly commit: string }
  /** A commit made this object; `clean`: nothing was changed since it was begun. */
  | { readonly t: 'done'; readonly id: number; readonly base: Base; readonly clean: boolean; readonly commit?: string }
  /** The file need not be committed. */
  | { readonly t: 'drop'; readonly id: number }
  | { readonly t: 'upload'; readonly upload: Upload }
  | { readonly t: 'uploaded'; readonly upload: Upload }
  | ({ readonly t: 'operation' } & Operation)
  | { readonly t: 'finished'; readonly op: number }
  /** An object that only open files need: to be removed when they are closed, or the daemon was killed. */
  | { readonly t: 'hidden'; readonly key: string }
  | { readonly t: 'removed'; readonly key: string };

export const uploadId = ({ key, id }: Upload): string => `${key}\0${id}`;

export const contentOf = ({ size, objectBytes, staged }: Extents): Content => ({ size, objectBytes, staged: [...staged] });

export function isSameContent(a: Content, b: Content): boolean {
  return a.size === b.size && a.objectBytes === b.objectBytes && a.staged.length === b.staged.length &&
    a.staged.every(({ from, to }, index) => from === b.staged[index].from && to === b.staged[index].to);
}

/** Nothing but attributes is to be committed. */
export const isAttributesOnly = ({ base, replaces, size, objectBytes, staged }: Pick<FileState, 'base' | 'replaces' | 'size' | 'objectBytes' | 'staged'>): boolean =>
  base !== null && !replaces && staged.length === 0 && size === base.size && size <= objectBytes;
