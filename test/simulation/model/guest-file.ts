/** A file as its guest knows it: all its states, and the last of them in the bucket. */
import { S_IFMT } from '../../../src/ffi/constants.js';
import { readPosix } from '../../../src/storage/object/posix-metadata.js';
import type { Metadata, Version } from '../../../src/storage/object/store.js';
import type { Revision } from '../bucket.js';

/** The attributes that the model follows. */
export interface Attributes {
  /** Permissions. */
  readonly mode: number;
  /** user.tag; null: there is none. */
  readonly tag: string | null;
}

export const FILE_MODE = 0o644;

export function attributesOf(metadata: Metadata): Attributes {
  const { mode, xattrs } = readPosix(metadata).posix;
  const tag = xattrs?.get('user.tag');
  return { mode: mode === null ? FILE_MODE : mode & ~S_IFMT, tag: tag === undefined ? null : Buffer.from(tag).toString() };
}

export const sameAttributes = (a: Attributes, b: Attributes): boolean => a.mode === b.mode && a.tag === b.tag;

/** States in order. */
export class Log<T> {
  readonly values: T[] = [];
  /** Index of the last acknowledged state. */
  acknowledged = -1;
  /** Index of the last state in the bucket, under the file's name; and in a conflict copy. */
  committed = -1;
  kept = -1;

  constructor(first: T, isCommitted: boolean) {
    this.push(first);
    if (isCommitted) this.committed = 0;
  }

  get last(): number {
    return this.values.length - 1;
  }

  get value(): T {
    return this.values[this.last];
  }

  push(value: T, acknowledged = true): void {
    this.values.push(value);
    if (acknowledged) this.acknowledged = this.last;
  }

  get isSafe(): boolean {
    return Math.max(this.committed, this.kept) >= this.acknowledged;
  }
}

export class GuestFile {
  /** Keys; none: it was removed. Two while a rename is under way, or ended unknown. */
  readonly names = new Set<string>();
  /** Former keys, with the number of the bucket's changes when the file lost them. */
  readonly formerNames: { readonly key: string; readonly until: number }[] = [];
  readonly data: Log<Buffer>;
  readonly attributes: Log<Attributes>;
  /** Versions of objects that are states of this file, under any key. */
  readonly versions = new Set<Version>();
  /** Versions under its new name that a rename lets it replace. */
  readonly replaces = new Set<Version>();
  /** Of names that renames gave it: the number of changes of which its guest knew there. */
  readonly #known = new Map<string, number>();
  /** The last commit was answered, and nothing has changed since it began. */
  isDataAnswered: () => boolean = () => true;
  isAttributesAnswered: () => boolean = () => true;
  /** The daemon knows that it was put aside. */
  isKeptAnswered: () => boolean = () => true;
  /** Time of the last change of data, and of attributes. */
  changed_ms = 0;
  described_ms = -1;
  /** Open handles of its guest, and the node that they are or were of; 0: this daemon has not opened it. */
  handles = 0;
  node = 0n;
  /** The guest has heard ESTALE. */
  stale = false;
  /** A rename or removal of it failed or ended unknown: both outcomes are right. */
  uncertain = false;
  /** Requests under way that change data. */
  changing = 0;
  /** It is being opened with O_TRUNC: whoever changes it waits. */
  emptied: Promise<unknown> = Promise.resolve();
  /** Changes of attributes that are this file's or another one's of that name, each after which state. */
  readonly #unclear: { readonly after: number; readonly change: (before: Attributes) => Attributes }[] = [];
  /** States of data whose requests are not answered: they may be there or not. */
  readonly #asked = new Set<number>();

  constructor(
    /** Number among its guest's files. */
    readonly id: number,
    key: string,
    base: Revision | null,
    /** Number of changes after which those of others are conflicts. */
    public since: number,
  ) {
    this.names.add(key);
    this.data = new Log(base?.content ?? Buffer.alloc(0), base !== null);
    this.attributes = new Log(base === null ? { mode: FILE_MODE, tag: null } : attributesOf(base.metadata), base !== null);
    if (base !== null) this.versions.add(base.version);
  }

  /** A rename gives it this name; `since`: changes of others after those are conflicts. */
  takes(key: string, since: number): void {
    this.names.add(key);
    this.#known.set(key, Math.min(this.#known.get(key) ?? this.since, since));
  }

  /** Number of changes after which those of others under this name are conflicts. */
  knownAt(key: string): number {
    return this.#known.get(key) ?? this.since;
  }

  get isDirty(): boolean {
    return this.data.committed < this.data.last || this.attributes.committed < this.attributes.last;
  }

  /** Its content is in a conflict copy, or its guest has heard so: what has its name is another file. */
  get isPutAside(): boolean {
    return this.stale || this.data.kept >= 0;
  }

  /** Whether its daemon may take it for dirty. */
  get mayBeDirty(): boolean {
    return this.data.committed < this.visible || this.attributes.committed < this.attributes.last || !this.isDataAnswered() || !this.isAttributesAnswered();
  }

  /** The first state of data that a request of now may find. */
  get visible(): number {
    return this.#asked.size === 0 ? this.data.last : Math.min(...this.#asked) - 1;
  }

  /** The daemon is going to answer later. @returns the number of the state */
  asks(after: Buffer): number {
    this.data.push(after, false);
    this.#asked.add(this.data.last);
    return this.data.last;
  }

  /** `state`: see asks(). One that failed may be there or not. */
  answered(state: number, isDone: boolean): void {
    if (!this.#asked.delete(state)) return;
    if (isDone) this.data.acknowledged = Math.max(this.data.acknowledged, state);
    else this.uncertain = true;
  }

  /** It has not happened: see asks(). */
  withdraw(state: number): void {
    if (!this.#asked.delete(state)) return;
    if (state === this.data.last && this.data.committed < state) this.data.values.pop();
    else this.uncertain = true;
  }

  /** Attributes were set of a name that nobody can tell to be this file's. */
  mayBeDescribed(change: (before: Attributes) => Attributes): void {
    this.isAttributesAnswered = () => false;
    this.#unclear.push({ after: this.attributes.last, change });
  }

  /** Whether these attributes may have been set so since the last that are certain. */
  mayHaveSet(there: Attributes): boolean {
    const { acknowledged, values } = this.attributes;
    return this.#unclear.some(({ after, change }) => after >= acknowledged && values.slice(Math.max(0, acknowledged)).some((value) => sameAttributes(change(value), there)));
  }

  /** Whether a name with that node may be this file's, also where others have changed what is there: to the guest's kernel another node is another file. */
  mayBeOf(node: bigint): boolean {
    return this.node === node || this.node === 0n || (this.handles === 0 && !this.mayBeDirty);
  }

  get isRemoved(): boolean {
    return this.names.size === 0;
  }

  hasHad(key: string): boolean {
    return this.names.has(key) || this.formerNames.some((one) => one.key === key);
  }

  loses(key: string, changes: number): void {
    if (this.names.delete(key)) this.formerNames.push({ key, until: changes });
  }

  /** For people. */
  toString(): string {
    const { data, attributes } = this;
    const log = (one: Log<unknown>): string => `${one.last} acknowledged ${one.acknowledged} committed ${one.committed}${one.kept < 0 ? '' : ` kept ${one.kept}`}`;
    return `file ${this.id} [${[...this.names].join()}] data ${log(data)}, attributes ${log(attributes)}${this.stale ? ', stale' : ''}${this.uncertain ? ', uncertain' : ''}`;
  }
}

/** @returns the index of the last state, from `from` to `to`, with exactly this content; −1: none */
export function exactly(log: Log<Buffer>, content: Buffer, from: number, to = log.last): number {
  for (let at = to; at >= Math.max(0, from); at--) if (log.values[at].equals(content)) return at;
  return -1;
}

/** Whether length and each byte are those of some state from `from` to `to`. */
export function between(log: Log<Buffer>, content: Uint8Array, from: number, to: number, offset = 0, bytes = Infinity): boolean {
  const window = log.values.slice(Math.max(0, from), to + 1).map((value) => value.subarray(Math.min(offset, value.length), Math.min(value.length, offset + bytes)));
  if (!window.some((value) => value.length === content.length)) return false;
  if (window.some((value) => value.equals(content))) return true;
  for (let i = 0; i < content.length; i++) if (!window.some((value) => value[i] === content[i])) return false;
  return true;
}

/** @returns the last state that is wholly in the content, apart from bytes of later ones; −1: none since the committed one */
export function containedUpTo(log: Log<Buffer>, content: Buffer): number {
  for (let from = log.last; from >= Math.max(0, log.committed); from--) if (between(log, content, from, log.last)) return from;
  return -1;
}
