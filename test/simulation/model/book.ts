/** One guest's files, and its operations on names and attributes. */
import type { Revision } from '../bucket.js';
import type { Version } from '../../../src/storage/object/store.js';
import { GuestFile, type Attributes } from './guest-file.js';

export interface Operation {
  readonly kind: 'move' | 'remove' | 'directory';
  /** Keys; of a tree prefixes. */
  readonly from: string;
  readonly to: string;
  readonly tree: boolean;
  /** Changes of the bucket that there had been then. */
  readonly begunAt: number;
  readonly begun_ms: number;
  /** null: it is under way, or its daemon was killed and the next one has not recovered yet. */
  ended_ms: number | null;
  result: 'under way' | 'done' | 'failed' | 'lost';
}

export interface AttributeChange {
  readonly key: string;
  readonly change: (before: Attributes) => Attributes;
  readonly begunAt: number;
  /** It was seen in the bucket. */
  seen: boolean;
  result: 'under way' | 'done' | 'failed' | 'lost';
}

export class Book {
  readonly files: GuestFile[] = [];
  readonly operations: Operation[] = [];
  readonly attributeChanges: AttributeChange[] = [];
  /** Versions of each key that the daemon was told of. */
  readonly known = new Map<string, Set<Version>>();
  /** Keys whose right state the model cannot tell any more, with the reason. */
  readonly fog = new Map<string, string>();

  constructor(
    readonly guest: string,
    readonly changes: () => number,
    readonly now_ms: () => number,
  ) {}

  /** Add a file. */
  add(key: string, base: Revision | null, since: number): GuestFile {
    const file = new GuestFile(this.files.length + 1, key, base, since);
    this.files.push(file);
    return file;
  }

  reveal(key: string, version: Version): void {
    const versions = this.known.get(key) ?? new Set();
    this.known.set(key, versions.add(version));
  }

  knows({ key, version }: Revision): boolean {
    return this.known.get(key)?.has(version) === true;
  }

  /** Files that have, or may have, this name. */
  at(key: string): GuestFile[] {
    return this.files.filter((file) => file.names.has(key));
  }

  /** The newest file with a name that was not put aside. */
  current(key: string): GuestFile | null {
    return this.files.findLast((file) => file.names.has(key) && !file.isPutAside) ?? null;
  }

  /** Whether the model cannot tell the state of a name. */
  isUnclear(key: string): boolean {
    return this.fog.has(key) || this.files.some((file) => file.names.has(key) && (file.names.size > 1 || file.uncertain));
  }

  blur(key: string, why: string): void {
    if (!this.fog.has(key)) this.fog.set(key, why);
  }

  begin(kind: Operation['kind'], from: string, to: string, tree: boolean): Operation {
    const operation: Operation = { kind, from, to, tree, begunAt: this.changes(), begun_ms: this.now_ms(), ended_ms: null, result: 'under way' };
    this.operations.push(operation);
    return operation;
  }

  end(operation: Operation, result: Operation['result']): void {
    operation.result = result;
    if (result !== 'lost') operation.ended_ms = this.now_ms();
  }

  /** Recovery has finished or given up what the former daemon had begun. */
  recovered(): void {
    for (const operation of this.operations) operation.ended_ms ??= this.now_ms();
  }

  /** @returns the move, under way at that time, that takes one key to the other or back */
  movesAt(time_ms: number, from: string, to: string): Operation | null {
    return this.operations.findLast((one) => one.kind === 'move' && wasUnderWay(one, time_ms) && (maps(one, from) === to || maps(one, to) === from)) ?? null;
  }

  /** Whether a move that was under way at that time has made this object, and takes it back. */
  undoesAt(time_ms: number, { key, by, call }: Revision): boolean {
    return by === this.guest && this.operations.some((one) => one.kind === 'move' && one.to === key && wasUnderWay(one, time_ms) && call.issued_ms >= one.begun_ms);
  }

  /** Whether an operation that was under way at that time removes a key. */
  removesAt(time_ms: number, key: string): boolean {
    return this.operations.some((one) => wasUnderWay(one, time_ms) && (one.kind === 'move' ? maps(one, key) !== null || (one.tree && key.startsWith(one.to)) : one.from === key));
  }
}

export const wasUnderWay = ({ begun_ms, ended_ms }: Operation, time_ms: number): boolean => begun_ms <= time_ms && (ended_ms === null || time_ms <= ended_ms);

/** @returns the key that a move gives to a key; null: it moves others */
export function maps({ from, to, tree }: Operation, key: string): string | null {
  if (!tree) return key === from ? to : null;
  return key.startsWith(from) ? to + key.slice(from.length) : null;
}

/** @returns the key that a move takes to this one; null: it moves others */
export const mapsBack = ({ from, to, tree }: Operation, key: string): string | null => maps({ from: to, to: from, tree } as Operation, key);
