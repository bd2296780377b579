/** From names to objects and directories, by asking the store as little as the guest's patience allows. */
import { E, thrownErrno } from '../../base/errno.js';
import { describeDirectory, describeObject, timeOf, type Defaults, type Described } from './facts.js';
import { firstBelow, ifThere, isGone, isRemoved, longComponent } from './asking.js';
import { ChangeClock } from './change-clock.js';
import { StorageError, toErrno } from './errors.js';
import type { AskedBeside, Moment } from './heads-ahead.js';
import { ListedDirectories, type Listed } from './listed.js';
import { proofOf, proves } from './listing-proof.js';
import { ListingWalks } from './listing-walks.js';
import { LookupsAhead } from './lookups-ahead.js';
import { directoryOf, parseName, type Named } from './names.js';
import { isBeingReplaced, isOvertaken, ObjectNodes, type ObjectNode } from './nodes.js';
import type { SmallFiles } from './small-files.js';
import type { ObjectInfo, ObjectStore, Version } from './store.js';
import { Gate } from './write/gate.js';

/** Metadata of objects: ignored, read where one object is asked for, or read also for each entry of a listing. */
export type PosixMode = 'off' | 'lazy' | 'full';

export interface TreeOptions extends Defaults {
  /** What every key begins with: '' or something that ends with a slash. */
  readonly prefix: string;
  readonly metadataTtl_ms: number;
  readonly posix: PosixMode;
  /** So many nodes that nobody uses are not packed; in tests. */
  readonly idleNodes?: number;
}

/** A request that fails for a reason of ours. */
export class FileError extends Error {
  constructor(readonly errno: number) {
    // Nobody wants to know where ENOENT came from, and a stack costs more than the rest of such a LOOKUP
    const { stackTraceLimit } = Error;
    Error.stackTraceLimit = 0;
    super(`errno ${errno}`);
    Error.stackTraceLimit = stackTraceLimit;
  }
}

export interface TreeLog {
  guest(key: string, fields: object, message: string, level?: 'warn' | 'info'): unknown;
  error(fields: object, message: string): unknown;
}

/** Linux sends LOOKUP right before OPEN: what the store has said then is not asked for again. */
const LOOKUP_SERVES_OPEN_MS = 10;
/** Names that are known not to be there. */
const ABSENT_MAX = 10_000;

export class Tree {
  readonly nodes: ObjectNodes;
  readonly gate = new Gate();
  readonly walks = new ListingWalks();
  readonly listed: ListedDirectories;
  readonly #started = timeOf(Date.now());
  /** Keys at which there is nothing, neither object nor directory, and until when that is believed. */
  readonly #absent = new Map<string, number>();
  readonly #clock = new ChangeClock();
  readonly #ahead: LookupsAhead;
  /** Lookups under way: another one for the same name waits for the same answer. */
  readonly #looking = new Map<string, Promise<ObjectNode>>();

  constructor(
    readonly store: ObjectStore,
    readonly options: TreeOptions,
    readonly log: TreeLog,
    readonly small: SmallFiles,
  ) {
    this.nodes = new ObjectNodes(options.idleNodes);
    const root = this.nodes.put(true, options.prefix, this.#directory(null).facts, 0);
    root.refs = 1;
    this.#ahead = new LookupsAhead(this);
    this.listed = new ListedDirectories(store, this, options.metadataTtl_ms, small.budget);
  }

  /** The node of a name, not referenced yet. @throws FileError, StorageError */
  async lookup(parent: ObjectNode, name: Uint8Array): Promise<ObjectNode> {
    if (!parent.directory) throw new FileError(E.NOTDIR);
    const named = parseName(name);
    if (named === null) throw new FileError(E.NOENT);
    const key = `${parent.key}\0${Buffer.from(name).toString('latin1')}`;
    const under = this.#looking.get(key);
    if (under !== undefined) return under;
    const began_ms = performance.now();
    const looking = this.#look(parent, named).then((node) => {
      node.suffixed = named.object;
      // This one did not ask: the OPEN that follows it has to
      if (node.lookedUp_ms < began_ms) node.lookedUp_ms = -Infinity;
      return node;
    }).finally(() => this.#looking.delete(key));
    this.#looking.set(key, looking);
    return looking;
  }

  /** What a name stands for as a key. @throws FileError for a name that no object can have */
  keyOf(parent: ObjectNode, name: Uint8Array): string {
    const named = parseName(name);
    if (named === null || named.kind !== 'component' || named.component === '') throw new FileError(E.INVAL);
    const key = parent.key + named.component;
    // A directory's marker has a slash more
    if (Buffer.byteLength(key) >= this.store.limits.keyBytes) throw new FileError(E.NAMETOOLONG);
    if (named.object && !this.nodes.has(true, `${key}/`)) throw new FileError(E.INVAL);
    if (this.store.limits.excludedKeys?.test(key) === true) throw new FileError(E.INVAL);
    return key;
  }

  /** We made, changed or removed something at this key: whatever was known of it is known no more. */
  changed(key: string): void {
    for (const name of this.#clock.note(key)) this.#absent.delete(name);
    for (const directory of [false, true]) this.nodes.expire(directory, key);
  }

  /** Whatever was known of names is known no more. */
  allChanged(): void {
    this.#clock.noteAll();
    this.#absent.clear();
  }

  /** How many changes of ours there were. */
  get changes(): number {
    return this.#clock.changes;
  }

  /** Whether we have changed something at a key, with or without the slash of a directory, since there were so many changes. */
  isChangedSince(key: string, changes: number): boolean {
    return this.#clock.isChangedSince(key, changes);
  }

  /** The same of what is in the directory of that name, at any depth. */
  isChangedBelowSince(key: string, changes: number): boolean {
    return this.#clock.isChangedBelowSince(key, changes);
  }

  /** The guest has gone. */
  reset(): void {
    this.#ahead.clear();
    this.listed.clear();
    this.nodes.clear();
  }

  /** Whether an answer about a key may still be used: it is young, and we have changed nothing there since it was asked for. */
  isBelieved(key: string, { stamp, asked_ms }: Moment): boolean {
    return performance.now() - asked_ms <= this.options.metadataTtl_ms && !this.isChangedSince(key, stamp);
  }

  /** The object of a key as it is, null: there is none. @throws StorageError */
  head(key: string): Promise<ObjectInfo | null> {
    return this.#current(key, () => this.#head(key));
  }

  /** Ask the store about a key, again if the answer may be older than a change of ours. */
  async #current<T>(key: string, ask: () => Promise<T>): Promise<T> {
    for (;;) {
      const before = this.#clock.changes;
      const answer = await ask();
      if (!this.isChangedSince(key, before)) return answer;
    }
  }

  async #look(parent: ObjectNode, named: Named): Promise<ObjectNode> {
    const component = named.kind === 'component' ? named.component : await this.walks.run((signal) => longComponent(this.store, parent.key, named, signal));
    if (component === null) throw new FileError(E.NOENT);
    const key = parent.key + component;
    if (parent.unlinked || Buffer.byteLength(key) > this.store.limits.keyBytes) throw new FileError(E.NOENT);
    const asked = this.stagedAt(key, named.object);
    if (asked !== null) await this.settled(asked);
    const staged = this.stagedAt(key, named.object);
    // The plain name of a file beside a directory is the directory's, if it is still there
    if (staged !== null && (staged.directory || named.object || !staged.suffixed)) return staged;
    if ((this.#absent.get(key) ?? -Infinity) > performance.now()) throw new FileError(E.NOENT);
    const node = await this.#ask(key, component, named);
    if (node !== null) return node;
    // It may have been made here while we asked
    const made = this.stagedAt(key, named.object);
    if (made !== null) return made;
    if (!named.object && this.options.metadataTtl_ms > 0) this.#remember(key);
    throw new FileError(E.NOENT);
  }

  /** What was changed here and is not in the bucket, of which the name is then; `object`: of the file beside a directory. */
  stagedAt(key: string, object = false): ObjectNode | null {
    const directory = object ? null : this.nodes.find(true, `${key}/`);
    if (directory?.staged?.dirty === true) return directory;
    const file = this.nodes.find(false, key);
    return file?.staged?.dirty === true ? file : null;
  }

  #remember(absent: string): void {
    this.#absent.delete(absent);
    this.#absent.set(absent, this.#expiry());
    if (this.#absent.size > ABSENT_MAX) this.#absent.delete(this.#absent.keys().next().value!);
  }

  /**
   * The plain name is the directory's where there is one. The other one is the object's whether there is a directory or not: a listing may have told it
   * before the directory was removed.
   */
  async #ask(key: string, component: string, named: Named): Promise<ObjectNode | null> {
    const prefix = key.slice(0, key.length - component.length);
    const listed = component === '' ? undefined : this.listed.find(prefix, key);
    if (listed !== undefined) return this.#askListed(key, listed, named);
    const page = component === '' ? null : this.listed.pageFor(prefix, key, this.#ahead.foresees(prefix, key));
    if (page !== null) {
      // Instead of what is below this one: what the whole directory has, from here on; and at the same time the object, if the page will not suffice
      const former = this.#ahead.unasked(prefix, key);
      const head = former === null ? undefined : { answer: this.#headOf(former).then((info) => ({ info, at_ms: performance.now() })), stamp: this.changes, asked_ms: performance.now() };
      head?.answer.catch(() => undefined);
      await this.#current(key, () => this.listed.list(prefix, page.after, 1));
      const found = this.listed.find(prefix, key);
      if (found !== undefined) return this.#askListed(key, found, named, head);
    }
    const [object, { first: directory, ours }] = await this.#current(key, () =>
      Promise.all([component === '' && !named.object ? null : this.#head(key), this.#below(`${key}/`)]));
    if (directory !== null && !named.object) return this.#putDirectory(`${key}/`, directory);
    if (directory === null && !named.object && ours) return this.#stagedDirectory(`${key}/`);
    if (component === '' && !named.object) {
      const marker = await this.#head(key);
      return marker === null || marker.size === 0 ? null : this.#lookedUp(marker);
    }
    // An empty marker is no file
    return object === null || (component === '' && object.size === 0) ? null : this.#lookedUp(object);
  }

  /** A listing has shown what there is: only what listings do not have is asked for. */
  async #askListed(key: string, { object, directory }: Listed, named: Named, head?: AskedBeside): Promise<ObjectNode | null> {
    if (directory && !named.object) return this.putListedDirectory(`${key}/`, this.options.posix === 'off' ? null : await this.head(`${key}/`));
    if (!directory && !named.object && this.hasStagedBelow(`${key}/`)) return this.#stagedDirectory(`${key}/`);
    if (object === null) return null;
    if (this.knowsFromListing(object)) return this.putObject(object);
    const known = this.proven(key, object);
    if (known !== null) return known;
    const ahead = await this.#ahead.head(directoryOf(key), object, !this.#hasContentOf(object) && this.small.bringsContent(key, object));
    // It may be as old as what a listing tells: no OPEN takes it for its own; and where the two differ, it may be older
    if (ahead !== undefined && ahead.object?.version === object.version) return this.putObject(ahead.object, ahead.asked_ms);
    const beside = await head?.answer;
    // The page may have come long after it: then what was changed here since, or believed for long enough, is asked for again
    if (head !== undefined && beside !== undefined && this.isBelieved(key, head)) {
      return beside.info === null ? null : this.#lookedUp(beside.info, head.asked_ms, beside.at_ms);
    }
    const info = await this.#headOf(object);
    return info === null ? null : this.#lookedUp(info);
  }

  /** An object that a listing has shown, as it is; with its content where that is how its directory is used. @throws StorageError */
  #headOf(object: ObjectInfo): Promise<ObjectInfo | null> {
    const { key } = object;
    return this.#current(key, () => this.#head(key, this.#hasContentOf(object) ? undefined : this.small.lookup(key, object)));
  }

  #hasContentOf({ key, version }: ObjectInfo): boolean {
    return hasContent(this.nodes.find(false, key), version);
  }

  /** The node of an object that the store was asked about, as it has answered at `at_ms`. */
  #lookedUp(info: ObjectInfo, asked_ms = performance.now(), at_ms = asked_ms): ObjectNode {
    const node = this.putObject(info, asked_ms);
    node.lookedUp_ms = at_ms;
    return node;
  }

  async #head(key: string, asked?: Promise<ObjectInfo>): Promise<ObjectInfo | null> {
    if (key === '') return null;
    const there = await ifThere(asked ?? this.store.head(key));
    return there === null || isRemoved(there) ? null : there;
  }

  /** The first object below a prefix, which shows that the directory is there. */
  async firstBelow(prefix: string): Promise<ObjectInfo | null> {
    if (Buffer.byteLength(prefix) > this.store.limits.keyBytes) return null;
    return firstBelow(this.store, prefix);
  }

  /** The same, and whether there is anything that is not in the bucket yet; or was not when it was asked, since it may have got there after the answer. */
  async #below(prefix: string): Promise<{ first: ObjectInfo | null; ours: boolean }> {
    const before = this.hasStagedBelow(prefix);
    const first = await this.firstBelow(prefix);
    return { first, ours: before || this.hasStagedBelow(prefix) };
  }

  /** Whether there is anything in a directory that is not in the bucket yet. */
  hasStagedBelow(prefix: string): boolean {
    for (const node of this.nodes.staged.below(prefix)) if (isPending(node, prefix)) return true;
    return false;
  }

  /** Nodes below a prefix that were changed and are not committed; that of the directory itself is none of them. */
  stagedBelow(prefix: string): ObjectNode[] {
    return [...this.nodes.staged.below(prefix)].filter((node) => isPending(node, prefix));
  }

  async #putDirectory(prefix: string, first: ObjectInfo): Promise<ObjectNode> {
    const isMarker = first.key === prefix;
    const known = this.#changedDirectory(prefix) ?? (isMarker ? this.proven(prefix, first, true) : null);
    if (known !== null) return known;
    const marker = !isMarker ? null : first.metadata !== null || this.options.posix === 'off' ? first : await this.#head(prefix);
    return this.putListedDirectory(prefix, marker);
  }

  /** The node of a directory that a listing shows, and its marker if it has one. */
  putListedDirectory(prefix: string, marker: ObjectInfo | null, asked_ms = performance.now()): ObjectNode {
    return this.#changedDirectory(prefix) ?? this.nodes.put(true, prefix, this.#told(prefix, this.#directory(marker)), asked_ms + this.options.metadataTtl_ms, marker === null ? 0 : proofOf(marker));
  }

  /** What was changed here counts more than what the store says. */
  #changedDirectory(prefix: string): ObjectNode | null {
    const known = this.nodes.find(true, prefix);
    return known?.staged?.dirty === true ? known : null;
  }

  /** The node of an object. What was changed here and is not committed counts more than what the store says; but attributes go with the version that they are of. */
  putObject(info: ObjectInfo, asked_ms = performance.now()): ObjectNode {
    const { posix } = this.options;
    const known = this.nodes.find(false, info.key);
    if (known !== null && (!isOvertaken(known, info) || isBeingReplaced(known, info))) return known;
    if (known !== null && !this.#isReplacedBy(known, info) && known.staged !== null && known.staged.base?.version !== info.version) this.replaced(known);
    return this.nodes.put(false, info.key, this.#told(info.key, describeObject(info, this.options, posix !== 'off')), asked_ms + this.options.metadataTtl_ms, proofOf(info));
  }

  /**
   * The rule *one handle, one version*: a file that is open is one version of its object. Where another client has put another one in its place,
   * that is another file with a node of its own; the one that is open loses the name. Nobody has it open: then the node becomes the other version,
   * whose pages the guest reads anew (OPEN without FOPEN_KEEP_CACHE).
   */
  #isReplacedBy(node: ObjectNode, info: ObjectInfo): boolean {
    if (node.opens === 0 || node.facts.version === info.version) return false;
    this.nodes.replace(node);
    return true;
  }

  /** What was changed here is in this object now. */
  committed(node: ObjectNode, info: ObjectInfo): void {
    const { version: before } = node.facts;
    const knows = node.told === before;
    const has = node.cached === before;
    this.changed(node.key);
    // As the object says, since that is what it will say from now on
    node.facts = (node.directory ? this.#directory(info) : describeObject(info, this.options, this.options.posix !== 'off')).facts;
    node.expires_ms = this.#expiry();
    node.proof_s = 0;
    // What the guest has written it knows
    if (knows) node.told = info.version;
    if (has) node.cached = info.version;
  }

  /** The node of an object, or of the directory whose marker it is, of which a listing, younger than any change of ours, shows that what was asked before still holds; null: it does not. */
  proven(key: string, listed: ObjectInfo, directory = false): ObjectNode | null {
    const node = this.options.metadataTtl_ms > 0 ? this.nodes.find(directory, key) : null;
    if (node === null || !proves(listed, node)) return null;
    node.expires_ms = this.#expiry();
    return node;
  }

  /** Whether a listing tells all that the guest is to know of an object. */
  knowsFromListing(info: ObjectInfo): boolean {
    return this.options.posix === 'off' || info.metadata !== null;
  }

  /** What a power failure left behind is as its object is; null: it is. Set by who commits. @throws StorageError */
  settled: (node: ObjectNode) => Promise<void> | null = () => null;

  /** Another version is there than the one that was about to be changed; whoever has it open keeps that one. Set by who has the handles. */
  replaced: (node: ObjectNode) => void = () => undefined;

  /** Facts that are not too old. @throws FileError ENOENT when it is gone */
  async fresh(node: ObjectNode): Promise<ObjectNode> {
    if (isSettled(node) || performance.now() < node.expires_ms) return node;
    const object = node.directory ? null : this.listed.find(directoryOf(node.key), node.key)?.object ?? null;
    return (object === null ? null : this.proven(node.key, object)) ?? this.refresh(node);
  }

  /** Close-to-open: what others have closed by now is what is opened. @throws FileError ENOENT when it is gone */
  async atOpen(node: ObjectNode, writable: boolean, reading: boolean): Promise<ObjectNode> {
    await node.replacing;
    const lookedUp = performance.now() - node.lookedUp_ms <= LOOKUP_SERVES_OPEN_MS;
    node.lookedUp_ms = -Infinity;
    if (lookedUp && reading) this.small.note(node.key, 'opens');
    return lookedUp && !(writable && node.facts.kept === null) ? node : this.refresh(node, reading);
  }

  /** Ask the store, however young the facts are; `reading`: its content is going to be asked for next. */
  async refresh(node: ObjectNode, reading = false): Promise<ObjectNode> {
    if (node.unlinked || node.replaced || (node.staged?.dirty === true && (node.directory || !node.staged.onlyDescribed))) return node;
    const { key } = node;
    if (!node.directory) {
      const fetches = reading && !hasContent(node, node.facts.version);
      const info = await this.#current(node.key, () => this.#head(node.key, fetches ? this.small.open(node.key, node.facts) : undefined));
      this.listed.compare(node.key, info);
      if (node.unlinked || node.replaced) return node;
      // Whoever asks goes on with the version that is open; who looks the name up finds the other one
      if (info !== null && this.nodes.find(false, info.key) === node && isOvertaken(node, info) && !isBeingReplaced(node, info) && this.#isReplacedBy(node, info)) return node;
      if (info !== null) return this.putObject(info);
      const waits = (): boolean => node.key === key && node.staged?.dirty === true && node.staged.onlyDescribed;
      if (waits() && (await isGone(this.store, key)) && waits()) this.replaced(node);
      if (this.nodes.find(false, node.key)?.staged?.dirty === true) return node;
      throw new FileError(E.NOENT);
    }
    const { first, ours } = await this.#current(node.key.slice(0, -1), () => this.#below(node.key));
    if (node.unlinked) return node;
    if (first !== null) return this.#putDirectory(node.key, first);
    if (ours) return node;
    if (node.key !== this.options.prefix) throw new FileError(E.NOENT);
    return this.nodes.put(true, node.key, this.#directory(null).facts, this.#expiry());
  }

  /** One that is only there because of files that are not in the bucket yet. */
  #stagedDirectory(prefix: string): ObjectNode {
    return this.nodes.find(true, prefix) ?? this.nodes.put(true, prefix, this.#directory(null).facts, this.#expiry());
  }

  #directory(marker: ObjectInfo | null): Described {
    return describeDirectory(marker, this.options, this.options.posix !== 'off', this.#started);
  }

  #told(key: string, described: Described): Described['facts'] {
    if (described.ignored.length > 0) {
      this.log.guest('metadata', { key, names: described.ignored }, `metadata of ${this.store.location}/${key} makes no sense or does not count, and is ignored: ${described.ignored.join(', ')}`);
    }
    return described.facts;
  }

  #expiry(): number {
    return performance.now() + this.options.metadataTtl_ms;
  }
}

/** Below a prefix, apart from the directory itself. */
const isPending = ({ unlinked, replaced, staged, directory, key }: ObjectNode, prefix: string): boolean =>
  !unlinked && !replaced && staged?.dirty === true && !(directory && key === prefix);

/** The store is not asked about it: it has no object of its own any more, or what was changed here counts. */
export const isSettled = ({ unlinked, replaced, staged }: ObjectNode): boolean => unlinked || replaced || staged?.dirty === true;

/** The guest has it in its cache, or the daemon in a staging file: it is not going to be read from the store. */
const hasContent = (node: ObjectNode | null, version: Version | null): boolean => node !== null && (node.cached === version || node.staged !== null);

/** −errno for what a request failed with. */
export function errnoOf(error: unknown): number {
  if (error instanceof FileError) return -error.errno;
  if (error instanceof StorageError) return -toErrno(error.code);
  // Of the cache directory, or of memory
  const errno = thrownErrno(error);
  if (errno !== null) return errno;
  throw error;
}
