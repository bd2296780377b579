/**
 * What a guest was told until power failed, and what may be found afterwards: of each file a state that it had since it was last synced, under a name that it
 * had since then. All is plain data, to be kept with a state that failed.
 */
import type { Durability } from '../../../src/storage/object/write/committer.js';
import { Bytes, DEFAULT_DIRECTORY_MODE, DEFAULT_FILE_MODE, type Seen } from '../../support/manifest.js';

export type NodeId = number;

/** What one request changes. */
export type Change =
  | { readonly does: 'make'; readonly node: NodeId; readonly path: string; readonly kind: 'file' | 'directory' | 'link'; readonly mode: number; readonly target?: string }
  | { readonly does: 'write'; readonly node: NodeId; readonly offset: number; readonly data: Uint8Array }
  | { readonly does: 'zero'; readonly node: NodeId; readonly from: number; readonly to: number }
  | { readonly does: 'size'; readonly node: NodeId; readonly size: number }
  | { readonly does: 'mode'; readonly node: NodeId; readonly mode: number }
  | { readonly does: 'mtime'; readonly node: NodeId; readonly mtime_s: number }
  | { readonly does: 'remove'; readonly path: string }
  | { readonly does: 'rename'; readonly from: string; readonly to: string };

export interface Request {
  readonly change?: Change;
  /** The answer promises that what was changed before is safe: of this file, or (fsync of a directory, syncfs) names and attributes of all, and that new files of the share's own directory exist. */
  readonly confirms?: NodeId | 'names';
}

/** `failed`: it may have happened or not. */
export type Told = { readonly t: 'asked'; readonly id: number; readonly request: Request } | { readonly t: 'answered' | 'failed'; readonly id: number };

/** Without a power failure all that was answered is safe. */
export type End = 'power failure' | 'orderly';

/** What is there before the daemon is. */
export interface Given {
  readonly node: NodeId;
  readonly path: string;
  readonly content: Uint8Array;
}

type DataChange = Extract<Change, { does: 'write' | 'zero' | 'size' }>;

interface Dated<T> {
  /** Its place among the changes of all. */
  readonly turn: number;
  readonly value: T;
}

interface Node {
  readonly id: NodeId;
  readonly kind: 'file' | 'directory' | 'link';
  readonly target: string;
  readonly given: Uint8Array | null;
  readonly made: number;
  readonly data: Dated<DataChange>[];
  readonly modes: Dated<number>[];
  /** null: whenever data was changed. */
  readonly mtimes: Dated<number | null>[];
  /** Changes up to this turn are safe; −1: not even that it exists. */
  safe: number;
  /** Fsync or close has failed: whatever it was since it was safe. */
  isUnsure: boolean;
}

type Names = ReadonlyMap<string, NodeId>;

const PERMISSIONS = 0o7777;

export class History {
  readonly #nodes = new Map<NodeId, Node>();
  /** Each state of all names. */
  readonly #names: Dated<Names>[];
  readonly #pending = new Map<number, { request: Request; turn: number }>();
  /** Names up to this turn are safe, and attributes. */
  #safe = 0;
  #safeAttributes = 0;
  #turn = 0;

  constructor(
    readonly durability: Durability,
    given: readonly Given[],
    told: readonly Told[],
    end: End = 'power failure',
  ) {
    for (const { node, content } of given) {
      const modes = [{ turn: 0, value: DEFAULT_FILE_MODE }];
      this.#nodes.set(node, { id: node, kind: 'file', target: '', given: content, made: 0, data: [], modes, mtimes: [{ turn: 0, value: null }], safe: 0, isUnsure: false });
    }
    this.#names = [{ turn: 0, value: new Map(given.map(({ path, node }) => [path, node])) }];
    for (const one of told) {
      if (one.t === 'asked') this.#pending.set(one.id, { request: one.request, turn: this.#turn });
      else if (one.t === 'answered') this.#answered(one.id);
      else this.#failed(one.id);
    }
    if (end === 'power failure') return;
    this.#safe = this.#safeAttributes = this.#turn;
    for (const node of this.#nodes.values()) if (!node.isUnsure) node.safe = this.#turn;
  }

  /** Files of which fsync or close has failed, and not succeeded since. */
  get unsure(): string[] {
    const names = this.#names.at(-1)!.value;
    return [...names].filter(([, id]) => this.#nodes.get(id)!.isUnsure).map(([path]) => path);
  }

  #failed(id: number): void {
    const { confirms } = this.#pending.get(id)!.request;
    if (typeof confirms === 'number') this.#nodes.get(confirms)!.isUnsure = true;
    // New files were synced for that, perhaps
    else if (confirms === 'names') for (const node of this.#nodes.values()) if (node.safe < node.made) node.isUnsure = true;
  }

  #answered(id: number): void {
    const { request, turn } = this.#pending.get(id)!;
    this.#pending.delete(id);
    const { change, confirms } = request;
    if (change !== undefined) this.#apply(change);
    if (confirms === undefined) return;
    if (confirms === 'names') {
      this.#safe = Math.max(this.#safe, turn);
      if (this.durability === 'remote') return;
      // Of a file that is changed they go along with its commit
      this.#safeAttributes = this.#safe;
      const names = this.#names.findLast((one) => one.turn <= turn)!.value;
      for (const [path, id] of names) if (!path.includes('/')) this.#exists(this.#nodes.get(id)!);
      return;
    }
    const node = this.#nodes.get(confirms)!;
    const changed = Math.max(node.made, lastOf(node.data), lastOf(node.modes), lastOf(node.mtimes));
    // The journal is written to the disk in order: with what a file needed, all before it
    if (this.durability === 'writeback' && changed > node.safe && changed <= turn) this.#safe = this.#safeAttributes = Math.max(this.#safe, turn);
    node.safe = Math.max(node.safe, turn);
    node.isUnsure = false;
  }

  /** Whatever it has become. */
  #exists(node: Node): void {
    if (!node.isUnsure) node.safe = Math.max(node.safe, node.made);
  }

  #apply(change: Change): void {
    const turn = ++this.#turn;
    switch (change.does) {
      case 'make': {
        const { node: id, kind, mode, target = '' } = change;
        const atOnce = this.durability === 'remote' && kind !== 'file';
        this.#nodes.set(id, { id, kind, target, given: null, made: turn, data: [], modes: [{ turn, value: mode }], mtimes: [{ turn, value: null }], safe: atOnce ? turn : -1, isUnsure: false });
        break;
      }
      case 'write':
      case 'zero':
      case 'size': {
        const node = this.#nodes.get(change.node)!;
        node.data.push({ turn, value: change });
        node.mtimes.push({ turn, value: null });
        break;
      }
      case 'mode':
        this.#nodes.get(change.node)!.modes.push({ turn, value: change.mode });
        break;
      case 'mtime':
        this.#nodes.get(change.node)!.mtimes.push({ turn, value: change.mtime_s });
        break;
    }
    const names = renamed(this.#names.at(-1)!.value, change);
    if (names !== null) this.#names.push({ turn, value: names });
  }

  /** All that names may be: each state since they were safe, and with what was asked for. */
  #possible(): Names[] {
    const first = this.#names.findLastIndex(({ turn }) => turn <= this.#safe);
    const possible = this.#names.slice(first).map(({ value }) => value);
    let all = possible.at(-1)!;
    for (const { request } of this.#pending.values()) {
      if (request.change === undefined) continue;
      const alone = renamed(this.#names.at(-1)!.value, request.change);
      if (alone === null) continue;
      possible.push(alone);
      all = renamed(all, request.change)!;
      possible.push(all);
    }
    return possible;
  }

  /** What is not as it may be, for people; nothing: all is well. */
  problems(seen: ReadonlyMap<string, Seen>): string[] {
    for (const { request } of this.#pending.values()) {
      const { change } = request;
      // What was being made may be there, empty
      if (change?.does === 'make') this.#nodes.set(change.node, { id: change.node, kind: change.kind, target: change.target ?? '', given: null, made: Infinity, data: [], modes: [{ turn: 0, value: change.mode }], mtimes: [{ turn: 0, value: null }], safe: -1, isUnsure: false });
    }
    const possible = this.#possible();
    const problems: string[] = [];
    const found = new Set<NodeId>();
    const paths = new Set([...possible.flatMap((names) => [...names.keys()]), ...[...seen.keys()].map((key) => key.replace(/\/$/, ''))]);
    for (const path of paths) {
      const ids = [...new Set(possible.map((names) => names.get(path)))];
      // What the disk has lost has not taken the place of what was there
      if (ids.some((id) => id !== undefined && this.#nodes.get(id)!.isUnsure)) ids.push(...this.#names.map(({ value }) => value.get(path)));
      for (const id of ids) if (id !== undefined && this.#nodes.get(id)!.safe < this.#nodes.get(id)!.made) ids.push(this.#before(path, id));
      const nodes = [...new Set(ids)].filter((id) => id !== undefined).map((id) => this.#nodes.get(id)!);
      const there = seen.get(path) ?? seen.get(`${path}/`);
      if (there === undefined) {
        const isImplied = [...seen.keys()].some((key) => key.startsWith(`${path}/`));
        if (isImplied) for (const node of nodes) if (node.kind === 'directory') found.add(node.id);
        if (!isImplied && !ids.includes(undefined) && nodes.every((node) => node.safe >= node.made)) problems.push(`${path} is not there`);
        continue;
      }
      const complaints: string[] = [];
      let fits = false;
      for (const node of nodes) {
        const complaint = this.#complaint(node, there, seen.has(path));
        if (complaint === null) {
          fits = true;
          found.add(node.id);
        } else {
          complaints.push(complaint);
        }
      }
      if (!fits) problems.push(complaints.length === 0 ? `${path} is there (${there.content.length} bytes)` : `${path}: ${complaints.join('; or ')}`);
    }
    for (const node of this.#nodes.values()) {
      if (node.safe < node.made || found.has(node.id)) continue;
      const names = possible.map((one) => [...one].find(([, id]) => id === node.id)?.[0]);
      if (!names.includes(undefined)) problems.push(`nothing has become of what was safe as ${[...new Set(names)].join(' or ')}`);
    }
    return [...new Set(problems)];
  }

  /** What had the path when a new file took it that was never synced: that is there still if the new one is not. */
  #before(path: string, id: NodeId): NodeId | undefined {
    const holders = this.#names.map(({ value }) => value.get(path));
    const at = holders.indexOf(id);
    return holders[(at < 0 ? holders.length : at) - 1];
  }

  /** @returns null if this may have become of the node */
  #complaint(node: Node, there: Seen, isFile: boolean): string | null {
    if ((node.kind !== 'directory') !== isFile) return `there is ${isFile ? 'a file' : 'a directory'}, not a ${node.kind}`;
    const mode = (there.mode ?? (isFile ? DEFAULT_FILE_MODE : DEFAULT_DIRECTORY_MODE)) & PERMISSIONS;
    const isLink = there.mode !== null && (there.mode & 0o170000) === 0o120000;
    if (node.kind === 'link') return isLink && there.content.toString() === node.target ? null : `it is no link to ${node.target}`;
    if (isLink) return 'it is a link';
    const safe = Math.max(node.safe, this.#safeAttributes);
    const modes = [...since(node.modes, safe), ...this.#pendingOf(node).flatMap((change) => (change.does === 'mode' ? [change.mode] : []))];
    if (!modes.includes(mode)) return `its mode is ${mode.toString(8)}, not ${modes.map((one) => one.toString(8)).join(' or ')}`;
    if (node.kind === 'directory') return null;
    const mtimes = [...since(node.mtimes, safe), ...this.#pendingOf(node).map((change) => (change.does === 'mtime' ? change.mtime_s : null))];
    if (!mtimes.includes(null) && !mtimes.includes(there.mtime_s)) return `it was changed at ${there.mtime_s}, not at ${mtimes.join(' or ')}`;
    return this.#contentComplaint(node, there.content);
  }

  #pendingOf(node: Node): Change[] {
    return [...this.#pending.values()].flatMap(({ request: { change } }) => (change !== undefined && 'node' in change && change.node === node.id ? [change] : []));
  }

  /**
   * The file has a size that it had since it was safe, and each byte is one that it had there since then: as on any local file system, what was not synced
   * may be there in any part. A byte that nobody wrote, be it zero, is not.
   */
  #contentComplaint(node: Node, found: Buffer): string | null {
    const content = Bytes.of(node.given ?? new Uint8Array(0));
    const first = node.data.findLastIndex(({ turn }) => turn <= node.safe) + 1;
    for (const { value } of node.data.slice(0, first)) change(content, value);
    const oldest = Buffer.from(content.view);
    const explained = new Explanation(found, content);
    for (const { value } of node.data.slice(first)) explained.changed(value);
    const newest = Buffer.from(content.view);
    const doubtful = this.#pendingOf(node).filter((one) => one.does === 'write' || one.does === 'zero' || one.does === 'size');
    // Those that were not answered: each alone, and all in their order
    for (const one of doubtful) new Explanation(found, Bytes.of(newest), explained).changed(one);
    for (const one of doubtful) explained.changed(one);
    if (explained.isWhole) return null;
    const states = node.data.length - first + 1;
    return `${describe(found, newest)} (the last of ${states} states${states > 1 ? `; ${describe(found, oldest)} (the first)` : ''})${explained.complaint}`;
  }
}

/** Which bytes of what was found are known from states of a file. */
class Explanation {
  readonly #known: Uint8Array;
  readonly #sizes: Set<number>;

  /** `content` is the first state; `more`: what is already known. */
  constructor(
    readonly found: Buffer,
    readonly content: Bytes,
    more: Explanation | null = null,
  ) {
    this.#known = more === null ? new Uint8Array(found.length) : more.#known;
    this.#sizes = more === null ? new Set() : more.#sizes;
    this.#sizes.add(content.size);
    if (more === null) this.#look(0, content.size);
  }

  changed(one: DataChange): void {
    const before = this.content.size;
    change(this.content, one);
    this.#sizes.add(this.content.size);
    if (one.does === 'write') this.#look(Math.min(before, one.offset), one.offset + one.data.length);
    else if (one.does === 'zero') this.#look(one.from, one.to);
    else this.#look(Math.min(before, one.size), one.size);
  }

  #look(from: number, to: number): void {
    const { view } = this.content;
    const end = Math.min(to, view.length, this.found.length);
    for (let i = from; i < end; i++) if (this.found[i] === view[i]) this.#known[i] = 1;
  }

  get isWhole(): boolean {
    return this.#sizes.has(this.found.length) && !this.#known.includes(0);
  }

  get complaint(): string {
    const at = this.#known.indexOf(0);
    return `${this.#sizes.has(this.found.length) ? '' : ', it never had that size'}${at < 0 ? '' : `, nobody wrote what is at ${at} (of ${this.#known.filter((known) => known === 0).length} such bytes)`}`;
  }
}

const lastOf = (dated: readonly Dated<unknown>[]): number => dated.at(-1)?.turn ?? 0;

/** The last value up to a turn, and all after it. */
function since<T>(dated: readonly Dated<T>[], turn: number): T[] {
  const first = Math.max(0, dated.findLastIndex((one) => one.turn <= turn));
  return dated.slice(first).map(({ value }) => value);
}

/** @returns null if the change is not one of names */
function renamed(names: Names, change: Change): Names | null {
  const next = new Map(names);
  const take = (top: string): [string, NodeId][] => {
    const taken = [...next].filter(([path]) => path === top || path.startsWith(`${top}/`));
    for (const [path] of taken) next.delete(path);
    return taken;
  };
  switch (change.does) {
    case 'make':
      return next.set(change.path, change.node);
    case 'remove':
      take(change.path);
      return next;
    case 'rename':
      take(change.to);
      for (const [path, id] of take(change.from)) next.set(change.to + path.slice(change.from.length), id);
      return next;
    default:
      return null;
  }
}

function change(content: Bytes, one: DataChange): void {
  if (one.does === 'write') content.write(one.offset, one.data);
  else if (one.does === 'zero') content.zero(one.from, one.to);
  else content.truncate(one.size);
}

function describe(found: Buffer, expected: Buffer): string {
  const shorter = Math.min(found.length, expected.length);
  let at = 0;
  while (at < shorter && found[at] === expected[at]) at++;
  let last = shorter;
  while (last > at && found[last - 1] === expected[last - 1]) last--;
  const size = found.length === expected.length ? `${found.length} bytes` : `${found.length} bytes, not ${expected.length}`;
  if (at === last) return `${size}, the same as far as both go`;
  let zeros = 0;
  for (let i = at; i < last; i++) if (found[i] === 0 && expected[i] !== 0) zeros++;
  return `${size}, from ${at} to ${last} not the same, with ${zeros} zeros where there are none`;
}
