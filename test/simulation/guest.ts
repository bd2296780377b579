/** A guest: walks names as Linux does, and knows which answers are right while others change the bucket. */
import { E, errnoName } from '../../src/base/errno.js';
import { u64 } from '../support/frontend.js';
import { name as nameBytes, OP } from '../support/guest.js';
import type { Bucket } from './bucket.js';
import type { Daemon } from './daemon.js';
import type { Book } from './model/book.js';
import type { Oracle } from './model/oracle.js';
import { named } from './model/wording.js';
import { PathLocks } from './path-locks.js';
import type { Reply } from './ring.js';

export interface GuestOptions {
  readonly prefix: string;
  /** fsync and close are answered when the object is there. */
  readonly waits: boolean;
  /** So long names and attributes are believed, at most. */
  readonly ttl_ms: number;
  /** Errors of the store may come through. */
  readonly mayFail: boolean;
}

const ROOT = 1n;
export const ENTRY_BYTES = 128;
export const ATTR_BYTES = 104;
/** Errors of a failing store, as a program gets them. */
const OF_THE_STORE: readonly number[] = [E.IO, E.ACCES];

export const errnoText = (error: number): string => (error === 0 ? '0' : errnoName(error));

export const isOneOf = (error: number, errnos: readonly number[]): boolean => errnos.includes(-error);

/** The last part of a path. */
export const baseOf = (path: string): string => path.slice(path.lastIndexOf('/') + 1);

export class Guest {
  readonly locks = new PathLocks();
  readonly #lookups = new Map<bigint, number>();
  /** Of each path's last lookup that took long: the changes that its answer may not know of, and when it came. */
  readonly #answers = new Map<string, { readonly since: number; readonly at_ms: number }>();

  constructor(
    readonly daemon: Daemon,
    readonly book: Book,
    readonly oracle: Oracle,
    readonly bucket: Bucket,
    readonly options: GuestOptions,
    readonly note: (line: string) => void,
  ) {}

  /** Forget nodes and handles: another daemon serves. */
  restarted(): void {
    this.#lookups.clear();
    for (const file of this.book.files) {
      file.handles = 0;
      file.node = 0n;
      if (file.names.size < 2 || file.isDirty) continue;
      // Recovery has finished or given up the rename
      const there = [...file.names].filter((key) => file.versions.has(this.bucket.at(key)?.version ?? ''));
      if (there.length === 1) for (const key of [...file.names]) if (key !== there[0]) file.loses(key, this.bucket.changes.length);
    }
  }

  key(path: string): string {
    return this.options.prefix + path;
  }

  // Names

  /** @returns the node, or −errno */
  walk(path: string): Promise<bigint | number> {
    return this.asking(path, () => this.#walk(path));
  }

  /** Requests that ask for a path; what they are answered may be old by then, and is believed for a while. */
  async asking<T>(path: string, body: () => Promise<T>): Promise<T> {
    const since = this.#believed(this.key(path));
    const answer = await body();
    const last = this.#answers.get(path);
    const at_ms = this.daemon.machine.now_ms();
    if (last === undefined || last.at_ms < at_ms - 2 * this.options.ttl_ms || since < last.since) this.#answers.set(path, { since, at_ms });
    return answer;
  }

  async #walk(path: string): Promise<bigint | number> {
    let node = ROOT;
    if (path === '') return node;
    for (const part of path.split('/')) {
      const found = await this.lookup(node, part);
      if (typeof found === 'number') return found;
      node = found;
    }
    return node;
  }

  async lookup(parent: bigint, part: string): Promise<bigint | number> {
    const reply = await this.daemon.call(OP.LOOKUP, parent, nameBytes(part), ENTRY_BYTES);
    return this.entry(reply);
  }

  /** @returns the node of a reply with an entry, or −errno */
  entry(reply: Reply): bigint | number {
    if (reply.error !== 0) return reply.error;
    const node = reply.data.getBigUint64(0, true);
    this.#lookups.set(node, (this.#lookups.get(node) ?? 0) + 1);
    return node;
  }

  /** Send FORGET for a node that nobody uses at the moment. */
  async forget(node: bigint): Promise<void> {
    const count = this.#lookups.get(node) ?? 0;
    this.#lookups.delete(node);
    if (count > 0) await this.daemon.call(OP.FORGET, node, u64(count));
  }

  /** @returns the number of the last change that an answer of now must know of: what it was told is believed for a while after the answer has come */
  now(key: string): number {
    const at = this.#believed(key);
    const last = this.#answers.get(key.slice(this.options.prefix.length));
    return last !== undefined && last.at_ms >= this.daemon.machine.now_ms() - this.options.ttl_ms ? Math.max(this.#own(key), Math.min(at, last.since)) : at;
  }

  /** Changes of its own it sees at once. */
  #own(key: string): number {
    const { changes } = this.bucket;
    return (this.bucket.history.get(key) ?? []).findLast(({ change }) => changes[change - 1].call.client === this.daemon.name)?.change ?? 0;
  }

  #believed(key: string): number {
    const { changes } = this.bucket;
    if (this.options.ttl_ms === 0) return changes.length;
    const from_ms = this.daemon.machine.now_ms() - 2 * this.options.ttl_ms;
    let at = changes.length;
    const own = this.#own(key);
    while (at > own && changes[at - 1].at_ms >= from_ms) at--;
    return at;
  }

  /** @returns the node of the directory that a path is in, or −errno */
  parentOf(path: string): Promise<bigint | number> {
    return this.walk(path.includes('/') ? path.slice(0, path.lastIndexOf('/')) : '');
  }

  /** Check an error for which only a failing store can be the reason. */
  unexpected(what: string, error: number): void {
    if (!(this.options.mayFail && isOneOf(error, OF_THE_STORE))) this.oracle.fail('errno', `${this.daemon.name}: ${what} is ${errnoText(error)}`);
  }

  /** Check an ENOENT: the name must have been free at some moment since then. */
  checkAbsent(key: string, since: number, what: string): void {
    const file = this.book.current(key);
    const others = this.bucket.statesSince(key, since).some((one) => one === null);
    if (others || this.book.isUnclear(key) || this.oracle.excused.has(key) || this.options.mayFail) return;
    this.oracle.fail('name', `${this.daemon.name}: ${what} is ENOENT, and ${file === null ? named(this.bucket.at(key)!) : String(file)} is there`);
  }
}
