/**
 * Checks every change of the bucket when it happens. A daemon writes only content that its guest has made of a file of that name, and replaces or
 * removes only what it knew to be there. At the end everything acknowledged is somewhere.
 */
import { COMMIT } from '../../../src/storage/object/settle.js';
import type { Bucket, Change, Revision } from '../bucket.js';
import { maps, mapsBack, wasUnderWay, type Book } from './book.js';
import { attributesOf, between, containedUpTo, exactly, type GuestFile, sameAttributes, type Attributes, type Log } from './guest-file.js';
import { described, explained, named } from './wording.js';

export const VIOLATIONS = [
  'lost', 'overwritten', 'false conflict', 'content', 'attributes', 'nobody', 'came back', 'left behind', 'gone', 'old name', 'read', 'name', 'errno', 'stuck', 'defect', 'start', 'body',
] as const;
export type ViolationKind = (typeof VIOLATIONS)[number];

export class Violation extends Error {
  constructor(
    readonly kind: ViolationKind,
    what: string,
  ) {
    super(`${kind}: ${what}`);
  }
}

export const CONFLICTS = '.bucketfsd-conflicts/';
export const HIDDEN = '.bucketfsd-unlinked/';

export interface OracleOptions {
  readonly prefix: string;
  readonly overwrites: boolean;
  /** Content of up to so many bytes is one put, and one state of a file. */
  readonly putMaxBytes: number;
  readonly fail: (violation: Violation) => void;
  readonly note: (line: string) => void;
}

export class Oracle {
  readonly books = new Map<string, Book>();
  /** Keys at which a late request of our own may have left something, with the reason. */
  readonly excused = new Map<string, string>();

  constructor(
    readonly bucket: () => Bucket,
    readonly options: OracleOptions,
  ) {}

  fail(kind: ViolationKind, what: string): void {
    this.options.fail(new Violation(kind, what));
  }

  changed(change: Change): void {
    const book = this.books.get(change.call.client);
    this.options.note(`  = ${described(change)}`);
    if (book === undefined) return;
    const { key, after } = change;
    const name = key.slice(this.options.prefix.length);
    if (name.startsWith(HIDDEN)) return;
    if (name.startsWith(CONFLICTS)) {
      if (after !== null) this.#kept(book, change, after, name.slice(CONFLICTS.length));
      return;
    }
    // Markers of directories have no content
    if (key.endsWith('/')) return void (change.before !== null && this.#whenSent(change.before, change.call.issuedAt));
    if (after === null) this.#removed(book, change);
    else if (after.call.source !== null && after.call.source.key !== key) this.#moved(book, change, after, after.call.source);
    else if (after.call.source !== null || change.call.operation === 'patch') this.#described(book, change, after);
    else if (this.#isDescription(book, change, after) && !this.#isSameByChance(book, change, after)) this.#described(book, change, after);
    else if ((this.#isWriting(book, change, after) && change.before?.content.equals(after.content) !== true) || !this.#isCopied(book, change, after)) this.#written(book, change, after);
  }

  /** Whether it is a state of a file of that name; one that had it before may have the content of a file that is renamed to it. */
  #isWriting(book: Book, { key, before }: Change, after: Revision): boolean {
    if (before === null && this.#late(book, key, after).length > 0) return true;
    return book.at(key).some(({ data }) => exactly(data, after.content, data.committed) >= 0 || (after.call.operation === 'completeUpload' && this.#isState(data, after.content, true)));
  }

  /** Whether only attributes change. */
  #isDescription(book: Book, { key, before, call }: Change, after: Revision): boolean {
    return before !== null && before.content.equals(after.content) && book.attributeChanges.some((one) => one.key === key && one.begunAt <= call.issuedAt);
  }

  /** Whether what others had there, or a file that a rename has replaced or is replacing, had the same content: the guest's own file replaces it. */
  #isSameByChance(book: Book, { key, before, call }: Change, after: Revision): boolean {
    const { by, version } = before!;
    const there = attributesOf(after.metadata);
    const isOther = ({ versions, replaces }: GuestFile): boolean => by !== book.guest || (replaces.has(version) && !versions.has(version));
    const isRenamed = ({ names, replaces, attributes }: GuestFile): boolean => names.size > 1 && isUnderWay(book, key) && replaces.has(version) && sameAttributes(attributes.value, there);
    const own = book.at(key).filter((one) => call.operation === 'put' && !one.isPutAside);
    return own.some((one) => (isOther(one) && exactly(one.data, after.content, one.data.committed + 1) >= 0) || (isRenamed(one) && exactly(one.data, after.content, one.data.committed) >= 0));
  }

  /** Check a copy made by reading and writing, where the provider's copies honour no condition. @returns whether it is one */
  #isCopied(book: Book, change: Change, after: Revision): boolean {
    const { key, call } = change;
    for (const operation of book.operations) {
      if (operation.kind !== 'move' || !wasUnderWay(operation, call.issued_ms)) continue;
      const from = [maps(operation, key), mapsBack(operation, key)].filter((one) => one !== null);
      const source = from.flatMap((one) => this.bucket().statesSince(one, operation.begunAt)).find((one) => one !== null && one.content.equals(after.content));
      if (source == null || source.key === key) continue;
      this.#moved(book, change, after, source);
      return true;
    }
    return false;
  }

  #removed(book: Book, { key, before, call }: Change): void {
    if (before === null || call.operation === 'rename') return;
    const what = `${call.client} removes ${key} by request #${call.number}`;
    if (!book.removesAt(call.issued_ms, key) && !book.undoesAt(call.issued_ms, before)) return this.fail('nobody', `${what}, which nobody has asked for at that time`);
    // What stands for a removed object, and comes when nobody waits for the removal any more, stays
    if (call.operation === 'put' && !book.removesAt(book.now_ms(), key)) this.excused.set(key, 'a removal that came late');
    // The provider compares before it removes, not in one step
    if (call.comparedAt !== null && !this.bucket().provider.capabilities.atomicDelete && this.bucket().stateAt(key, call.comparedAt)?.id !== before.id) return;
    this.#mayReplace(book, before, call.issuedAt, what);
  }

  /** Check that the replaced object existed, and was known, when the request was sent. */
  #mayReplace(book: Book, before: Revision, issuedAt: number, what: string): void {
    const { provider } = this.bucket();
    if (this.options.overwrites) return;
    if (what.includes(' removes ') && !provider.capabilities.deleteIfVersion) return;
    const then = this.#whenSent(before, issuedAt);
    const isNewer = then?.version !== before.version;
    if (isNewer && !this.#wasThere(before, issuedAt)) return this.fail('overwritten', `${what}: ${named(before)} has come after that was asked for`);
    if (before.by !== book.guest && !book.knows(before)) this.fail('overwritten', `${what}: ${named(before)}, of which it has not been told`);
  }

  /** What was there when a request was sent. One that comes late, when content is there again, is excused: its ETag is the same. */
  #whenSent(before: Revision, issuedAt: number): Revision | null {
    const then = this.bucket().stateAt(before.key, issuedAt);
    if (then?.id !== before.id && this.#wasThere(before, issuedAt)) this.excused.set(before.key, 'a late request, and content that came back');
    return then;
  }

  /** Whether it is other than what was there when a request was sent, and has the same ETag. */
  #hasComeBack(before: Revision, issuedAt: number): boolean {
    const then = this.#whenSent(before, issuedAt);
    return then !== null && then.id !== before.id && then.version === before.version;
  }

  /** With ETags, content that comes back is the same version. */
  #wasThere({ key, version }: Revision, time: number): boolean {
    return (this.bucket().history.get(key) ?? []).some((one) => one.change <= time && one.revision?.version === version);
  }

  #moved(book: Book, { key, before, call }: Change, after: Revision, source: Revision): void {
    const what = `${call.client} writes ${key} by request #${call.number}, a copy of ${named(source)}`;
    const operation = book.movesAt(call.issued_ms, source.key, key);
    if (operation === null) return this.fail('nobody', `${what}, which nobody has asked for at that time`);
    const own = book.files.filter((one) => one.versions.has(source.version) && exactly(one.data, source.content, one.data.committed) >= 0);
    let file = own.findLast((one) => one.names.has(source.key)) ?? (operation.result === 'under way' ? undefined : own.findLast((one) => one.hasHad(source.key) || one.hasHad(key)));
    if (file === undefined) {
      file = book.add(key, source, call.issuedAt);
      file.names.add(source.key);
      // One that was moved long ago and is moved back now, or by an answer that is late
      if (operation.result === 'done') file.loses(source.key, call.issuedAt);
    }
    if (before !== null && !file.versions.has(before.version)) {
      const target = book.files.some((one) => one.hasHad(key) && one.versions.has(before.version));
      if (!target) this.#mayReplace(book, before, call.issuedAt, what);
    }
    file.versions.add(after.version);
    // One that the model has met since the move began, whose daemon was killed
    if (operation.result === 'lost' && file.names.has(source.key)) file.names.add(key);
    // With ETags the daemon cannot tell attributes that others have set meanwhile
    const there = attributesOf(after.metadata);
    if (!sameAttributes(there, file.attributes.value) && this.others(book.guest, source.key, 0)) {
      file.attributes.push(there, false);
      file.attributes.committed = file.attributes.last;
    }
    if (operation.result === 'failed') this.excused.set(key, 'a rename of it has failed');
  }

  #described(book: Book, { key, before, call }: Change, after: Revision): void {
    const source = call.source ?? before!;
    const what = `${call.client} sets attributes of ${key} by request #${call.number}`;
    const file = this.#fileOf(book, key, source);
    if (before === null) {
      if (!this.options.overwrites) this.fail('came back', `${what}, which was removed meanwhile`);
    } else if (before.version !== source.version && !before.content.equals(source.content) && !this.options.overwrites) {
      this.fail('overwritten', `${what}: a copy of ${named(source)} over ${named(before)}`);
    }
    // With ETags, those that come late replace what was set since
    const isLate = before !== null && this.#whenSent(before, call.issuedAt)?.id !== before.id;
    this.#attributes(book, file, after, what, isLate);
    file.versions.add(after.version);
    file.data.committed = Math.max(file.data.committed, exactly(file.data, after.content, file.data.committed));
  }

  /** A request that was sent before others removed the object has made an old state of a file anew: that is another file by now. */
  #cameLate(book: Book, file: GuestFile, { key, number }: Change, after: Revision): void {
    this.excused.set(key, 'a request that came late');
    if (!file.isDirty && file.handles === 0) file.loses(key, number);
    book.add(key, after, number);
  }

  #fileOf(book: Book, key: string, revision: Revision): GuestFile {
    // With ETags, what a file was once comes back as another one, if others have made it so
    const isOld = ({ data }: GuestFile): boolean => exactly(data, revision.content, data.committed) < 0 && exactly(data, revision.content, 0) >= 0;
    const own = book.files.filter((one) => one.versions.has(revision.version) && one.hasHad(key) && !one.isPutAside && !isOld(one));
    const known = own.findLast((one) => one.names.has(key)) ?? own.at(-1);
    if (known !== undefined) return known;
    for (const one of book.at(key)) if (one.handles === 0 && !one.isDirty) one.loses(key, this.bucket().changes.length);
    return book.add(key, revision, this.bucket().changes.length - 1);
  }

  /** Check that the attributes are some that the guest has set, or is setting. */
  #attributes(book: Book, file: GuestFile, { key, metadata, call }: Revision, what: string, isLate = false): void {
    const there = attributesOf(metadata);
    const log = file.attributes;
    for (const one of book.attributeChanges) {
      if (file.hasHad(one.key) && one.begunAt <= call.issuedAt && sameAttributes(one.change(there), there)) one.seen = true;
    }
    // A failed change may be there or not. An upload begins with older attributes
    const from = isLate || call.operation === 'completeUpload' ? 0 : Math.max(0, Math.min(log.committed, log.acknowledged));
    for (let at = log.last; at >= from; at--) {
      if (!sameAttributes(log.values[at], there)) continue;
      // Older ones, or set once more when nobody could tell of which object
      const isSetAgain = at < log.acknowledged && file.mayHaveSet(there);
      if (isSetAgain) log.push(there, false);
      log.committed = isSetAgain ? log.last : at;
      file.isAttributesAnswered = () => call.answered && file.described_ms < call.issued_ms;
      return;
    }
    // Others may have set attributes under the same ETag; changes of our own go on top of any
    const names = [...file.names, ...file.formerNames.map((one) => one.key)];
    const seen = names.flatMap((name) => this.bucket().history.get(name) ?? []).filter(({ change, revision }) => change > file.since && revision !== null && revision.by !== book.guest);
    const possible: Attributes[] = [];
    const add = (value: Attributes): void => {
      if (!possible.some((other) => sameAttributes(value, other))) possible.push(value);
    };
    for (const value of [...log.values.slice(from), ...seen.map(({ revision }) => attributesOf(revision!.metadata))]) add(value);
    for (const one of book.attributeChanges) {
      if (!file.hasHad(one.key) || one.begunAt > call.issuedAt) continue;
      if (one.result === 'under way') for (const state of this.bucket().statesSince(one.key, one.begunAt)) if (state !== null && file.versions.has(state.version)) add(attributesOf(state.metadata));
      for (const value of possible.map(one.change)) add(value);
    }
    if (possible.some((value) => sameAttributes(value, there))) {
      log.push(there, false);
      log.committed = log.last;
      file.isAttributesAnswered = () => call.answered && file.described_ms < call.issued_ms;
      return;
    }
    // With two names, a request that was sent before the rename may come late
    if (file.names.size > 1) return void this.excused.set(key, 'a request that came late');
    if (book.fog.has(key) || file.uncertain) return;
    this.fail('attributes', `${what}: ${JSON.stringify(there)} is not what the guest has set: ${JSON.stringify(log.values.slice(Math.max(0, log.committed)))} (${String(file)})`);
  }

  #written(book: Book, change: Change, after: Revision): void {
    const { key, before, call } = change;
    const what = `${call.client} writes ${key} by request #${call.number}, ${after.content.length} bytes`;
    if (book.fog.has(key)) return;
    const parted = call.operation === 'completeUpload';
    const there = attributesOf(after.metadata);
    const fits = (one: GuestFile): number => (parted || exactly(one.data, after.content, one.data.committed) >= 0 ? 4 : 0) + (this.#follows(one, before) ? 2 : 0) + (one.attributes.values.slice(parted ? 0 : Math.max(0, one.attributes.committed)).some((value) => sameAttributes(value, there)) ? 1 : 0) + (one.names.size === 1 ? 0.5 : 0);
    const own = book.at(key);
    const file = own.filter((one) => this.#isState(one.data, after.content, parted)).sort((a, b) => fits(a) - fits(b) || a.id - b.id).at(-1);
    if (file === undefined) {
      if (this.#late(book, key, after).length > 0) {
        // Sent before the name was given up: where nothing is there, nothing can stop it
        if (before === null) this.excused.set(key, 'a request that came late');
        else if (!this.#hasComeBack(before, call.issuedAt) && !this.options.overwrites) this.fail('overwritten', `${what}, which has had that name: ${named(before)}`);
        return;
      }
      if (own.length > 0) return this.fail('content', `${what}: ${own.map((one) => `${explained(after.content, one.data)} (${String(one)})`).join('; ')}`);
      return this.fail(book.files.some((one) => one.hasHad(key)) ? 'came back' : 'nobody', `${what}: the guest has no file of that name`);
    }
    // Of a rename, which replaces what is there, whoever made it
    if (!this.#follows(file, before) && before !== null && file.names.size > 1 && isUnderWay(book, key)) {
      this.#mayReplace(book, before, call.issuedAt, what);
    } else if (!this.#follows(file, before) && !this.#takesOver(file, before, there) && !this.options.overwrites) {
      const removedAt = this.bucket().history.get(key)!.at(-2)?.change ?? 0;
      // The request was sent before others removed the object
      if (before === null && call.issuedAt < removedAt) return this.#cameLate(book, file, change, after);
      if (this.#isCopied(book, change, after)) return;
      // Nobody can tell a commit that never happened from one whose answer was lost, and whose object others have replaced or removed
      if (before === null && this.#isUnheard(book, file, key, after)) {
        this.excused.set(key, 'a commit whose answer was lost');
      } else {
        return before === null
          ? this.fail('came back', `${what}, which others have removed`)
          : this.fail('overwritten', `${what}: ${named(before)} is no state of this file (${String(file)})`);
      }
    }
    const at = parted ? containedUpTo(file.data, after.content) : exactly(file.data, after.content, file.data.committed);
    // Sent of a state with the same content, as one that was cut to the size that it has
    const isEarlier = !parted && exactly(file.data, after.content, file.data.committed + (file.isDataAnswered() ? 1 : 0), at - 1) >= 0;
    if (at < 0) return this.fail('content', `${what}: content from before what has been committed (${String(file)})`);
    file.data.committed = at;
    // Changes that came while parts were sent are sent again, even if they are in it
    const isWhole = parted ? Math.max(file.changed_ms, file.described_ms) < call.begun_ms : !isEarlier;
    file.isDataAnswered = () => isWhole && call.answered;
    if (file.names.size > 1) for (const name of [...file.names]) if (name !== key && !isUnderWay(book, name)) file.loses(name, this.bucket().changes.length);
    file.versions.add(after.version);
    this.#attributes(book, file, after, what);
  }

  /** Whether no commit of the file under that name was answered, and others have removed what is not there any more. */
  #isUnheard(book: Book, file: GuestFile, key: string, after: Revision): boolean {
    const history = this.bucket().history.get(key)!;
    const own = history.flatMap(({ revision }) => (revision !== null && revision !== after && revision.by === book.guest && file.versions.has(revision.version) ? [revision] : []));
    return own.length > 0 && own.every(({ call }) => !call.answered) && this.bucket().changes[history.at(-2)!.change - 1].call.client !== book.guest;
  }

  /** Files that had that name and content when the request was sent. */
  #late(book: Book, key: string, { content, call }: Revision): GuestFile[] {
    return book.files.filter((one) => one.formerNames.some((former) => former.key === key && former.until >= call.issuedAt) && exactly(one.data, content, 0) >= 0);
  }

  #isState(data: Log<Buffer>, content: Buffer, parted: boolean): boolean {
    return parted ? between(data, content, data.committed, data.last) : exactly(data, content, 0) >= 0;
  }

  /** Whether the replaced object is a state of this file, or of one that a rename replaces. */
  #follows(file: GuestFile, before: Revision | null): boolean {
    if (before !== null) return file.versions.has(before.version) || file.replaces.has(before.version);
    return file.versions.size === 0 || file.names.size > 1 || file.uncertain;
  }

  /** Whether the replaced object is a commit of this file of which others have set attributes since, and these go on. */
  #takesOver(file: GuestFile, before: Revision | null, there: Attributes): boolean {
    if (before === null || before.metadata[COMMIT] === undefined || !sameAttributes(there, attributesOf(before.metadata))) return false;
    const made = this.bucket().history.get(before.key)!.map(({ revision }) => revision);
    return made.some((one) => one !== null && file.versions.has(one.version) && one.metadata[COMMIT] === before.metadata[COMMIT] && one.content.equals(before.content));
  }

  /** Check a conflict copy. */
  #kept(book: Book, { call }: Change, after: Revision, name: string): void {
    const what = `${call.client} keeps ${after.key} by request #${call.number}`;
    const key = this.options.prefix + name.replace(/\.[0-9a-f]{8}$|\.\d+$/, '');
    const files = book.files.filter((one) => one.hasHad(key));
    const missing = missingIn(after);
    const named = (file: GuestFile): number => (file.names.has(key) ? 1 : 0);
    files.sort((a, b) => named(b) - named(a) || b.id - a.id);
    const kept = files.map((file) => ({ file, at: this.#keptState(file, after.content, missing) })).filter(({ at }) => at >= 0);
    // Not one that is committed, whose content of long ago was the same
    const one = kept.find(({ file, at }) => at > file.data.committed && this.hasConflict(book, file)) ?? kept.at(0);
    if (one !== undefined) {
      const { file, at } = one;
      if (!this.hasConflict(book, file)) this.fail('false conflict', `${what}, and nobody else has changed ${[...file.names].join()} (${String(file)})`);
      file.data.kept = Math.max(file.data.kept, at);
      file.isKeptAnswered = () => call.answered;
      return;
    }
    if (book.fog.has(key)) return;
    this.fail('content', `${what}: of no file of that name: ${files.map((file) => `${explained(after.content, file.data)} (${String(file)})`).join('; ')}`);
  }

  #keptState({ data }: GuestFile, content: Buffer, missing: Missing): number {
    const base = data.committed >= 0 ? data.values[data.committed] : Buffer.alloc(0);
    for (let at = data.last; at >= 0; at--) {
      const value = data.values[at];
      if (value.length !== content.length) continue;
      // Only bytes that the guest has not written may be missing
      let same = true;
      for (let i = 0; same && i < value.length; i++) same = content[i] === value[i] || (content[i] === 0 && value[i] === base[i] && isMissing(missing, i));
      if (same) return at;
    }
    return -1;
  }

  /** Whether somebody else has changed the file's object, or its state is unknown. */
  hasConflict(book: Book, file: GuestFile): boolean {
    if (file.uncertain || file.names.size > 1 || this.options.overwrites) return true;
    const names = [...file.names, ...file.formerNames.map((one) => one.key)];
    return names.some((key) => book.fog.has(key) || this.others(book.guest, key, file.knownAt(key)) || this.excused.has(key));
  }

  /** Whether others have changed a key since then. */
  others(guest: string, key: string, since: number): boolean {
    return (this.bucket().history.get(key) ?? []).some(({ change }) => change > since && this.bucket().changes[change - 1].call.client !== guest);
  }

  /** Check an answered FSYNC or FLUSH: the states of when it was sent are in the bucket. */
  isDurable(book: Book, file: GuestFile, data: number, attributes: number): void {
    // A file that is being removed or replaced need not be there
    if ([...file.names].some((key) => isUnderWay(book, key))) return;
    if (file.isRemoved || file.uncertain || [...file.names].some((key) => this.#isFoggy(key))) return;
    if (Math.max(file.data.committed, file.data.kept) < data) this.fail('lost', `fsync or close is answered, and the ${data}th content is not in the bucket (${String(file)})`);
    // Attributes that wait go with the version that they were set of
    if (file.attributes.committed < attributes && file.data.kept < 0 && !this.hasConflict(book, file)) this.fail('lost', `fsync or close is answered, and the ${attributes}th attributes are not in the bucket (${String(file)})`);
  }

  #isFoggy(key: string): boolean {
    return [...this.books.values()].some((book) => book.fog.has(key));
  }

  /** Check an ESTALE. */
  isOvertaken(book: Book, file: GuestFile, what: string): void {
    if (!this.hasConflict(book, file)) this.fail('false conflict', `${what}, and nobody else has changed ${[...file.names].join()} (${String(file)})`);
  }

  /** Check the end: nothing is under way any more. */
  finish(): void {
    for (const book of this.books.values()) for (const file of book.files) this.#finished(book, file);
    for (const key of this.bucket().keys()) this.#mayBeThere(this.bucket().at(key)!);
    for (const key of this.bucket().removed()) if (!this.excused.has(key)) this.fail('left behind', `what stands for the removed object ${key}`);
  }

  #finished(book: Book, file: GuestFile): void {
    if (file.isRemoved || file.uncertain || [...file.names].some((key) => book.fog.has(key))) return;
    if (!file.data.isSafe) this.fail('lost', `content that was acknowledged is nowhere (${String(file)})`);
    const overtaken = file.stale || this.hasConflict(book, file);
    if (!file.attributes.isSafe && !overtaken) this.fail('lost', `attributes that were acknowledged are nowhere: ${JSON.stringify(file.attributes.values.at(file.attributes.acknowledged))} (${String(file)})`);
    // A newer file of that name has replaced it
    if ([...file.names].some((key) => this.excused.get(key)?.includes('came back') === true)) return;
    const isNewest = [...file.names].some((key) => book.files.findLast((one) => one.names.has(key)) === file);
    if (overtaken || !isNewest) return;
    const there = [...file.names].map((key) => this.bucket().at(key)).filter((one) => one !== null);
    if (!there.some(({ content }) => exactly(file.data, content, file.data.acknowledged) >= 0)) this.fail('gone', `what was in the bucket is not there any more (${String(file)}): ${there.map(named).join() || 'nothing'}`);
  }

  #mayBeThere(revision: Revision): void {
    const { key, by, version } = revision;
    const book = this.books.get(by);
    const name = key.slice(this.options.prefix.length);
    if (book === undefined || key.endsWith('/') || name.startsWith(CONFLICTS)) return;
    if (name.startsWith(HIDDEN)) return this.fail('left behind', named(revision));
    if (book.fog.has(key) || this.excused.has(key)) return;
    if (!book.files.some((file) => (file.names.has(key) || (file.uncertain && file.hasHad(key))) && file.versions.has(version))) {
      this.fail('came back', `${named(revision)} is no file of ${by}: ${book.files.filter((file) => file.hasHad(key)).map(String).join('; ')}`);
    }
  }
}

const isUnderWay = (book: Book, key: string): boolean => book.operations.some((one) => one.ended_ms === null && (one.tree ? key.startsWith(one.from) || key.startsWith(one.to) : key === one.from || key === one.to));

interface Missing {
  readonly ranges: readonly (readonly [number, number])[];
  /** The list was cut. */
  readonly isCut: boolean;
}

function missingIn({ metadata }: Revision): Missing {
  const text = metadata['bucketfsd-missing'] ?? '';
  const isCut = text.endsWith('...');
  const ranges = text.split(',').map((range) => range.split('-').map(Number) as [number, number]);
  return { ranges: text === '' ? [] : ranges.slice(0, isCut ? -1 : undefined), isCut };
}

const isMissing = ({ ranges, isCut }: Missing, at: number): boolean => ranges.some(([from, to]) => at >= from && at < to) || (isCut && at >= (ranges.at(-1)?.[1] ?? 0));
