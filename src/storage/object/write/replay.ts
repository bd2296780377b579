/**
 * The state that a journal describes: a `file` record is the whole of one file, and each record behind it is a change.
 *
 * Rule: nothing is believed after a power failure that was not synced. If the machine was started anew since, a file's content is what
 * its last sync made sure of, or its object if a commit had more than that; never a range of the staging file that only the memory
 * of the machine had. Names and attributes are in the journal itself, and count as far as it goes.
 */
import { S_IFLNK, S_IFMT, S_IFREG } from '../../../ffi/constants.js';
import { Extents, without, type Extent } from '../extents.js';
import type { Upload } from '../store.js';
import { contentOf, isSameContent, uploadId, type Content, type Doubt, type FileState, type JournalRecord, type LeftFile, type Operation } from './records.js';

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

type FileRecord = Extract<JournalRecord, { t: 'file' }>;
type ContentRecord = Extract<JournalRecord, { t: 'wrote' | 'cut' }>;

/** Where a commit stood when it was begun. */
interface Begun {
  readonly contents: number;
  readonly changes: number;
}

class ReplayedFile {
  state: Omit<FileState, keyof Content | 'doubts'>;
  #now: Extents;
  /** The content at the last sync, or of the `file` record if there was none. */
  #origin: Extents;
  /** Records of content since then. */
  #since: ContentRecord[] = [];
  /** Records of content so far; those that the last sync, and the last commit, had: −1 for none. */
  #contents = 0;
  #synced = -1;
  #committed = -1;
  /** The content is that of so many records: fewer than there were after a power failure. */
  #contentAt = 0;
  /** Changes of any kind so far, and at the last one of attributes or key. */
  #changes = 0;
  #describedAt = 0;
  readonly #begun = new Map<string, Begun>();
  #lost: readonly Extent[] = [];
  #touched = false;
  #fellBack = false;

  constructor({ t: _t, size, objectBytes, staged, doubts, ...state }: FileRecord) {
    this.state = { token: '', replaces: false, described: true, unheard: false, ...state };
    this.#now = Extents.of(size, objectBytes, staged);
    this.#origin = this.#now.copy();
    for (const commit of doubts) this.#begun.set(commit, { contents: -1, changes: -1 });
  }

  content(record: ContentRecord): void {
    apply(this.#now, record);
    this.#since.push(record);
    this.#contentAt = ++this.#contents;
    this.#changes++;
    this.#lost = record.t === 'wrote' ? without(this.#lost, record.from, record.to) : without(this.#lost, record.size, Infinity);
    if (record.fetched !== true) this.#touched = true;
  }

  synced(after: number): void {
    const synced = this.#contents - after;
    const count = Math.max(0, Math.min(this.#since.length, this.#since.length - after));
    for (const record of this.#since.slice(0, count)) apply(this.#origin, record);
    this.#since = this.#since.slice(count);
    this.#synced = Math.max(this.#synced, synced);
  }

  lost(ranges: readonly Extent[]): void {
    this.#lost = [...this.#lost, ...ranges];
  }

  described(attributes: FileState['attributes']): void {
    this.state = { ...this.state, attributes, described: true };
    this.#describedAt = ++this.#changes;
    this.#touched = false;
  }

  renamed(key: string | null, base: FileState['base']): void {
    const replaces = base !== null && (this.state.base === null || this.state.replaces);
    this.state = { ...this.state, key, base, replaces };
    this.#describedAt = ++this.#changes;
  }

  rebased(base: FileState['base']): void {
    this.state = { ...this.state, base };
  }

  /** See OwnCommits.begin(). */
  begun(commit: string): void {
    if (!this.#begun.has(commit)) this.#begun.set(commit, { contents: this.#contents, changes: this.#changes });
  }

  /** @param commit absent in journals of version 1: the last one that was begun */
  done(base: NonNullable<FileState['base']>, commit: string | undefined): void {
    const begun = commit === undefined ? [...this.#begun.values()].at(-1) : this.#begun.get(commit);
    this.#committed = Math.max(this.#committed, begun?.contents ?? this.#contents);
    this.state = { ...this.state, base, replaces: false, unheard: false, described: this.state.described && begun !== undefined && this.#describedAt > begun.changes };
    this.#begun.clear();
  }

  /** The machine was started anew. @returns whether there is still something to be done about the file */
  fallBack(): boolean {
    // Nobody was promised that it is there, and it may have been removed, or moved, or replaced since it was made
    if (!this.#hasSync && this.state.base === null && (this.state.attributes.mode & S_IFMT) === S_IFREG) return false;
    const safe = this.#safe();
    if (safe === null) return false;
    this.#lost = [];
    this.state = { ...this.state, unheard: this.state.token !== '' };
    if (!isSameContent(safe, this.#now)) {
      this.#fellBack = true;
      this.#touched = false;
      this.#contentAt = this.#hasSync ? this.#synced : -1;
      this.#now = safe;
    }
    this.#origin = this.#now.copy();
    this.#since = [];
    this.#synced = this.#hasSync ? this.#contents : -1;
    const { base, key, described, replaces } = this.state;
    // An empty file that takes the place of an empty object has other attributes
    return base === null || key !== base.key || described || replaces || !isSameContent(this.#now, Extents.of(base.size, base.size, []));
  }

  /** What is certain to be there without the machine's memory; null: nothing, and another file has that name. */
  #safe(): Extents | null {
    const { base, replaces, attributes } = this.state;
    if (this.#hasSync) return this.#origin.copy();
    if (base !== null) return replaces ? null : Extents.of(base.size, base.size, []);
    const isLink = (attributes.mode & S_IFMT) === S_IFLNK;
    return Extents.of(isLink ? this.#now.size : 0, 0, []);
  }

  /** The last sync is what counts: no commit had more. */
  get #hasSync(): boolean {
    return this.#synced > this.#committed;
  }

  left(): LeftFile {
    const doubts: Doubt[] = [...this.#begun].map(([commit, { contents, changes }]) => ({
      commit, covers: contents < this.#contentAt ? 'nothing' : changes < this.#describedAt ? 'content' : 'all',
    }));
    const content = contentOf(this.#now);
    return {
      ...this.state, ...content, doubts, synced: this.#hasSync ? contentOf(this.#origin) : null, touched: this.#touched, fellBack: this.#fellBack,
      lost: this.#lost.filter(({ from, to }) => from < to),
    };
  }
}

export class Replay {
  readonly #files = new Map<number, ReplayedFile>();
  readonly #operations = new Map<number, Operation>();
  readonly #uploads = new Map<string, Upload>();
  readonly #hidden = new Set<string>();
  #lastId = 0;
  #boot: string | null = null;

  /** `boot`: that of the machine now. */
  constructor(readonly boot: string) {}

  /** @throws UnknownRecord for one that this version does not know: then nothing may be done. */
  add(record: JournalRecord): void {
    switch (record.t) {
      case 'boot':
        this.#bootedAs(record.boot);
        break;
      case 'file':
        this.#files.set(record.id, new ReplayedFile(record));
        this.#lastId = Math.max(this.#lastId, record.id);
        break;
      case 'wrote':
      case 'cut':
        this.#files.get(record.id)?.content(record);
        break;
      case 'synced':
        this.#files.get(record.id)?.synced(record.after);
        break;
      case 'lost':
        this.#files.get(record.id)?.lost(record.ranges);
        break;
      case 'attributes':
        this.#files.get(record.id)?.described(record.attributes);
        break;
      case 'key':
        this.#files.get(record.id)?.renamed(record.key, record.base);
        break;
      case 'base':
        this.#files.get(record.id)?.rebased(record.base);
        break;
      case 'begin':
        this.#files.get(record.id)?.begun(record.commit);
        break;
      case 'done':
        if (record.clean) this.#files.delete(record.id);
        else this.#files.get(record.id)?.done(record.base, record.commit);
        break;
      case 'drop':
        this.#files.delete(record.id);
        break;
      case 'upload':
        this.#uploads.set(uploadId(record.upload), record.upload);
        break;
      case 'uploaded':
        this.#uploads.delete(uploadId(record.upload));
        break;
      case 'operation': {
        const { t: _t, ...operation } = record;
        this.#operations.set(record.op, operation);
        this.#lastId = Math.max(this.#lastId, record.op);
        break;
      }
      case 'finished':
        this.#operations.delete(record.op);
        break;
      case 'hidden':
        this.#hidden.add(record.key);
        break;
      case 'removed':
        this.#hidden.delete(record.key);
        break;
      default:
        throw new UnknownRecord(`the journal has a record that this bucketfsd does not know (${String((record as { t?: unknown }).t)})`);
    }
  }

  /** All records were added. */
  end(): Pending {
    if (this.#boot !== null && this.#boot !== this.boot) this.#fallBack();
    const files = new Map([...this.#files].map(([id, file]) => [id, file.left()] as const));
    return { files, operations: this.#operations, uploads: this.#uploads, hidden: this.#hidden, lastId: this.#lastId };
  }

  #bootedAs(boot: string): void {
    if (this.#boot !== null && this.#boot !== boot) this.#fallBack();
    this.#boot = boot;
  }

  #fallBack(): void {
    for (const [id, file] of this.#files) if (!file.fallBack()) this.#files.delete(id);
  }
}

function apply(extents: Extents, record: ContentRecord): void {
  if (record.t === 'wrote') extents.write(record.from, record.to);
  else extents.truncate(record.size);
}
