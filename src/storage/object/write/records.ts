/**
 * What the journal says, and what follows from it when it is read again. Each record is a change; a `file` record is the
 * whole of one file and stands for all before it.
 */
import type { Extent } from '../extents.js';
import { Extents } from '../extents.js';
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

export interface FileState {
  readonly id: number;
  /** null: it has no name any more, and is not to be committed. */
  readonly key: string | null;
  /** What a commit replaces; null: nothing is there. */
  readonly base: Base | null;
  readonly size: number;
  readonly objectBytes: number;
  readonly staged: readonly Extent[];
  readonly attributes: Attributes;
  /** Commits that were begun and may have happened. */
  readonly doubts: readonly string[];
}

/** A file of a journal: `touched` when its data was changed after its times were set. */
export type LeftFile = FileState & { readonly touched: boolean };

/** Something that takes several calls of the store, and is to be finished if it was begun. */
export interface Operation {
  readonly op: number;
  readonly kind: 'rename' | 'remove';
  /** Keys of objects, or prefixes of trees; what is removed has no `to`. */
  readonly from: string;
  readonly to: string;
  readonly tree: boolean;
  /** Of an object: what is moved or removed, and under which id. */
  readonly version: Version | null;
  readonly commit: string;
}

export type JournalRecord =
  | ({ readonly t: 'file' } & FileState)
  /** A range is in the staging file; `fetched`: as the object has it. */
  | { readonly t: 'wrote'; readonly id: number; readonly from: number; readonly to: number; readonly fetched?: true }
  /** The file has this size now. */
  | { readonly t: 'cut'; readonly id: number; readonly size: number }
  | { readonly t: 'attributes'; readonly id: number; readonly attributes: Attributes }
  /** It has another name, and replaces something else, or has none any more. */
  | { readonly t: 'key'; readonly id: number; readonly key: string | null; readonly base: Base | null }
  /** What is not staged is read from somewhere else. */
  | { readonly t: 'base'; readonly id: number; readonly base: Base | null }
  /** A commit of this id is on its way. */
  | { readonly t: 'begin'; readonly id: number; readonly commit: string }
  /** A commit made this object; `clean`: nothing was changed since it was begun. */
  | { readonly t: 'done'; readonly id: number; readonly base: Base; readonly clean: boolean }
  /** The file need not be committed. */
  | { readonly t: 'drop'; readonly id: number }
  | { readonly t: 'upload'; readonly upload: Upload }
  | { readonly t: 'uploaded'; readonly upload: Upload }
  | ({ readonly t: 'operation' } & Operation)
  | { readonly t: 'finished'; readonly op: number }
  /** An object that only open files need: to be removed when they are closed, or the daemon was killed. */
  | { readonly t: 'hidden'; readonly key: string }
  | { readonly t: 'removed'; readonly key: string };

/** What is left to do. */
export interface Pending {
  readonly files: Map<number, LeftFile>;
  readonly operations: Map<number, Operation>;
  readonly uploads: Map<string, Upload>;
  readonly hidden: Set<string>;
  /** No id of a file or an operation is larger. */
  readonly lastId: number;
}

export class UnknownRecord extends Error {}

/** @throws UnknownRecord for one that this version does not know: then nothing may be done. */
export function replay(records: readonly JournalRecord[]): Pending {
  const files = new Map<number, { state: LeftFile; extents: Extents }>();
  const operations = new Map<number, Operation>();
  const uploads = new Map<string, Upload>();
  const hidden = new Set<string>();
  let lastId = 0;
  const change = (id: number, by: (file: { state: LeftFile; extents: Extents }) => Partial<LeftFile> | void): void => {
    const file = files.get(id);
    if (file === undefined) return;
    const changes = by(file);
    if (changes !== undefined) file.state = { ...file.state, ...changes };
  };
  for (const record of records) {
    switch (record.t) {
      case 'file': {
        const { t: _t, ...state } = record;
        files.set(record.id, { state: { ...state, touched: false }, extents: Extents.of(state.size, state.objectBytes, state.staged) });
        lastId = Math.max(lastId, record.id);
        break;
      }
      case 'wrote':
        change(record.id, ({ extents }) => {
          extents.write(record.from, record.to);
          return record.fetched === true ? {} : { touched: true };
        });
        break;
      case 'cut':
        change(record.id, ({ extents }) => {
          extents.truncate(record.size);
          return { touched: true };
        });
        break;
      case 'attributes':
        change(record.id, () => ({ attributes: record.attributes, touched: false }));
        break;
      case 'key':
        change(record.id, () => ({ key: record.key, base: record.base }));
        break;
      case 'base':
        change(record.id, () => ({ base: record.base }));
        break;
      case 'begin':
        change(record.id, ({ state }) => ({ doubts: [...state.doubts, record.commit] }));
        break;
      case 'done':
        if (record.clean) files.delete(record.id);
        else change(record.id, () => ({ base: record.base, doubts: [] }));
        break;
      case 'drop':
        files.delete(record.id);
        break;
      case 'upload':
        uploads.set(uploadId(record.upload), record.upload);
        break;
      case 'uploaded':
        uploads.delete(uploadId(record.upload));
        break;
      case 'operation': {
        const { t: _t, ...operation } = record;
        operations.set(record.op, operation);
        lastId = Math.max(lastId, record.op);
        break;
      }
      case 'finished':
        operations.delete(record.op);
        break;
      case 'hidden':
        hidden.add(record.key);
        break;
      case 'removed':
        hidden.delete(record.key);
        break;
      default:
        throw new UnknownRecord(`the journal has a record that this bucketfsd does not know (${String((record as { t?: unknown }).t)})`);
    }
  }
  const states = [...files].map(([id, { state, extents }]) => [id, { ...state, size: extents.size, objectBytes: extents.objectBytes, staged: extents.staged }] as const);
  return { files: new Map(states), operations, uploads, hidden, lastId };
}

export const uploadId = ({ key, id }: Upload): string => `${key}\0${id}`;
