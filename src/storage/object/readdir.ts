/** OPENDIR, READDIR and READDIRPLUS: what listings show, as entries and nodes of the guest. */
import { E } from '../../base/errno.js';
import { S_IFMT } from '../../ffi/constants.js';
import type { FileSystemRequest } from '../filesystem.js';
import { DirectoryHandle, DOTS } from './directory-handles.js';
import { DirectoryMemory } from './directory-memory.js';
import type { Head } from './heads-ahead.js';
import type { Entry } from './listing.js';
import type { InodeNumber, ObjectNode } from './nodes.js';
import type { Tree, TreeOptions } from './tree.js';
import { Turns } from './turns.js';

const DT_DIR = 4;
const DT_REG = 8;
/** Entries behind those of a READDIRPLUS whose metadata is asked for with theirs. */
const ENTRIES_AHEAD = 128;
/** READDIR and READDIRPLUS, and entries of them, that go to the store at the same time; the others wait. */
const READING_MAX = 16;
const ASKING_MAX = 1024;

export class DirectoryReader {
  readonly #handles = new Map<number, DirectoryHandle>();
  readonly #memory: DirectoryMemory;
  /** Each request that reads on has a page in memory, */
  readonly #reading = new Turns(READING_MAX);
  /** and room for hundreds of entries, each of which may have to be asked for. */
  readonly #asking = new Turns(ASKING_MAX);
  /** Whoever went through a directory last wanted to know more than names. */
  #walks = false;

  /** `nextHandle`: a number, or −errno; `putEntry`: the guest is told of a node, and has a reference to it. */
  constructor(
    readonly tree: Tree,
    readonly options: TreeOptions,
    readonly nextHandle: () => number,
    readonly putEntry: (r: FileSystemRequest, node: ObjectNode) => void,
  ) {
    this.#memory = new DirectoryMemory(tree.small.budget);
  }

  /** Open directories. */
  get count(): number {
    return this.#handles.size;
  }

  open(r: FileSystemRequest): number {
    const node = this.tree.nodes.get(r.nodeLow, r.nodeHigh);
    if (node === null) return -E.STALE;
    if (!node.directory) return -E.NOTDIR;
    const handle = this.nextHandle();
    if (handle < 0) return handle;
    node.opens++;
    this.#handles.set(handle, new DirectoryHandle(node, this.tree, this.#memory, this.#asking));
    r.fhLow = handle;
    r.fhHigh = 0;
    r.openFlags = 0;
    return 0;
  }

  /** Whether the request's handle is one of an open directory. */
  isOpen(r: FileSystemRequest): boolean {
    return r.fhHigh === 0 && this.#handles.has(r.fhLow);
  }

  release(r: FileSystemRequest): number {
    const directory = r.fhHigh === 0 ? this.#handles.get(r.fhLow) : undefined;
    if (directory === undefined) return -E.BADF;
    this.#handles.delete(r.fhLow);
    directory.close();
    directory.node.opens--;
    this.tree.nodes.release(directory.node);
    return 0;
  }

  async read(r: FileSystemRequest, plus: boolean): Promise<number> {
    const directory = r.fhHigh === 0 ? this.#handles.get(r.fhLow) : undefined;
    if (directory === undefined) return -E.BADF;
    let number = r.node2High * 2 ** 32 + r.node2Low;
    if (!Number.isSafeInteger(number)) return -E.INVAL;
    await this.tree.gate.pass(() => directory.node.key);
    if (number >= DOTS) this.#walks = plus;
    for (; number < DOTS; number++) {
      const key = number === 0 ? directory.node.key : this.#above(directory.node.key);
      if (!this.#put(r, this.tree.nodes.numberOf(true, key), DOT_NAMES[number], DT_DIR, number + 1, false)) return r.entries.used > 0 ? r.entries.used : -E.INVAL;
    }
    try {
      return await this.tree.walks.run((signal) => this.#reading.run(1, () => this.#fill(r, directory, number, plus, signal), signal));
    } catch (error) {
      // The guest gets the nodes that are in the reply, and asks again for the rest
      if (r.entries.used > 0) return r.entries.used;
      throw error;
    }
  }

  /** Until the reply is full or the directory ends: an empty reply would say that it ends. */
  async #fill(r: FileSystemRequest, directory: DirectoryHandle, from: number, plus: boolean, signal: AbortSignal): Promise<number> {
    for (let position = from - DOTS; ; ) {
      const { from: first, entries } = await directory.entries(position, signal);
      if (entries.length === 0) return r.entries.used;
      const fitting = r.entries.fitting(entries);
      if (fitting === 0) return r.entries.used > 0 ? r.entries.used : -E.INVAL;
      const heads = plus ? await this.#headsOf(directory, entries, fitting, signal) : [];
      position = first;
      for (let i = 0; i < fitting; i++) {
        const node = plus ? this.#nodeOf(directory, entries[i], heads[i]) : null;
        if (node !== null) this.putEntry(r, node);
        const known = node ?? this.#provenOf(directory, entries[i]);
        this.#put(r, known ?? this.#numberOf(directory.node, entries[i]), entries[i].name, this.#type(entries[i], known), ++position + DOTS, node !== null);
      }
    }
  }

  /** The type of a file may be known: then nobody has to look the name up for it. */
  #provenOf(directory: DirectoryHandle, entry: Entry): ObjectNode | null {
    const key = keyOf(directory, entry);
    return entry.object === null || !directory.isCurrent(key) ? null : this.tree.proven(key, entry.object);
  }

  #numberOf({ key }: ObjectNode, { object, component }: Entry): InodeNumber {
    return this.tree.nodes.numberOf(object === null, object === null ? `${key}${component}/` : object.key);
  }

  /** The directory that one is in; of the share itself, itself. */
  #above(key: string): string {
    return key === this.options.prefix ? key : key.slice(0, key.lastIndexOf('/', key.length - 2) + 1);
  }

  /** For the entry of a listing; 0 where only its metadata would tell. */
  #type({ object }: Entry, node: ObjectNode | null): number {
    if (object === null) return DT_DIR;
    if (node !== null) return (node.facts.mode & S_IFMT) >>> 12;
    return this.options.posix === 'off' ? DT_REG : 0;
  }

  #put(r: FileSystemRequest, { inoLow, inoHigh }: InodeNumber, name: Uint8Array, type: number, next: number, known: boolean): boolean {
    if (!r.entries.fits(name.length)) return false;
    r.entries.put(inoLow, inoHigh, next >>> 0, Math.floor(next / 2 ** 32), type, name, 0, name.length, known);
    return true;
  }

  /** What entries of a listing need besides to be described; what comes behind them is asked for already. */
  #headsOf(directory: DirectoryHandle, entries: readonly Entry[], fitting: number, signal: AbortSignal): Promise<(Head | undefined)[]> {
    const key = (entry: Entry): string => keyOf(directory, entry);
    const heads = directory.heads.take(entries.slice(0, fitting).map((entry) => (this.#needsHead(directory, entry) ? key(entry) : null)), signal);
    // Linux begins with a READDIRPLUS also where nobody wants to know more than names
    const ahead = this.#walks && this.options.metadataTtl_ms > 0 ? entries.slice(fitting, fitting + ENTRIES_AHEAD) : [];
    directory.heads.prepare(ahead.filter((entry) => this.#needsHead(directory, entry)).map(key));
    return heads;
  }

  #needsHead(directory: DirectoryHandle, entry: Entry): boolean {
    const { object } = entry;
    if (this.options.posix !== 'full') return false;
    const key = keyOf(directory, entry);
    if (object !== null && directory.isCurrent(key) && (this.tree.knowsFromListing(object) || this.tree.proven(key, object) !== null)) return false;
    const known = this.tree.nodes.find(object === null, key);
    if (known?.staged?.dirty === true) return false;
    return known === null || performance.now() >= known.expires_ms || (object !== null && known.facts.version !== object.version);
  }

  /** The node for an entry of a listing, null where its attributes are not known. */
  #nodeOf(directory: DirectoryHandle, entry: Entry, head: Head | undefined): ObjectNode | null {
    const { tree } = this;
    const { object } = entry;
    const key = keyOf(directory, entry);
    const known = tree.nodes.find(object === null, key);
    // Of one that its object may know better nothing is told before it was asked
    if (known?.staged?.dirty === true) return known.staged.commits.isUnheard ? null : known;
    if (head === undefined && this.options.posix === 'full' && known !== null && performance.now() < known.expires_ms) return known;
    if (object === null) {
      if (this.options.posix === 'off') return tree.putListedDirectory(key, null);
      return head === undefined ? null : tree.putListedDirectory(key, head.object, head.asked_ms);
    }
    if (head !== undefined) return head.object === null ? null : tree.putObject(head.object, head.asked_ms);
    if (!directory.isCurrent(key)) return null;
    return tree.knowsFromListing(object) ? tree.putObject(object) : tree.proven(key, object);
  }

  /** The guest has gone. */
  reset(): void {
    for (const directory of this.#handles.values()) {
      directory.node.opens = 0;
      directory.close();
    }
    this.#handles.clear();
  }
}

/** Of an object, or of a directory's marker. */
const keyOf = ({ node }: DirectoryHandle, { component, object }: Entry): string => `${node.key}${component}${object === null ? '/' : ''}`;

const DOT_NAMES = [Buffer.from('.'), Buffer.from('..')];
