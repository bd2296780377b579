/** A file that the guest has open. */
import type { ObjectNode } from './nodes.js';
import type { Reader } from './reader.js';
import type { Base } from './write/records.js';
import type { StagedFile } from './write/staged-file.js';

export interface FileHandle {
  readonly node: ObjectNode;
  /** What it was opened as; null for a file that was not in the bucket. */
  base: Base | null;
  reader: Reader | null;
  staged: StagedFile | null;
  readonly readable: boolean;
  readonly writable: boolean;
  readonly synchronous: boolean;
  /** Somebody else's object has taken the name, and what was written here was put aside. */
  stale: boolean;
  /** What was written is in an object with bytes of another client's version (--on-conflict=overwrite): it can be written to, and not be read. */
  merged: boolean;
}
