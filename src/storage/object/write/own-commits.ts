/**
 * The commits of one file of which nobody knows whether they have happened, so that an object that such a commit made is not taken for somebody
 * else's. The id of a commit is in the object's metadata; it begins with the file's token.
 */
import { randomBytes, randomUUID } from 'node:crypto';
import type { Doubt, LeftFile } from './records.js';

/** Remembered one by one; of those before only the token is. */
const DOUBTS_MAX = 64;
const TOKEN_BYTES = 9;

/** Which of the file's changes, and of the records of its content, a commit has. */
export interface Begun {
  readonly changes: number;
  readonly contents: number;
}

/** What a commit of a former daemon has, in the numbers of this one: the content is the file's first change, attributes and name the second. */
const BEGUN: Readonly<Record<Doubt['covers'], Begun>> = {
  all: { changes: 2, contents: 1 }, content: { changes: 1, contents: 1 }, nothing: { changes: -1, contents: -1 },
};

export const newToken = (): string => randomBytes(TOKEN_BYTES).toString('base64url');

export class OwnCommits {
  readonly #doubts: Map<string, Begun>;
  /** Of those: begun more than once. */
  readonly #repeated = new Set<string>();
  /** There were commits that are not in `#doubts`: what bears the token is ours, but for the one that is known to have happened. */
  #trustsToken: boolean;
  #last: string | null = null;
  #isUnheard: boolean;

  constructor(
    readonly token: string,
    doubts: readonly (readonly [commit: string, begun: Begun])[] = [],
    unheard = false,
  ) {
    this.#doubts = new Map(doubts);
    this.#trustsToken = this.#isUnheard = unheard;
  }

  static of({ token, doubts, unheard }: LeftFile): OwnCommits {
    return new OwnCommits(token, doubts.map(({ commit, covers }) => [commit, BEGUN[covers]] as const), unheard);
  }

  /** The object may be newer than what the journal has: nobody is told of the file before it was asked (see CommitMaker.settle()). */
  get isUnheard(): boolean {
    return this.#isUnheard;
  }

  /** The object was asked, and is none of ours that is newer. */
  heard(): void {
    this.#isUnheard = false;
  }

  /** There may be an object of this file, of which nobody has heard. */
  get possible(): boolean {
    return this.#doubts.size > 0 || this.#trustsToken;
  }

  get doubts(): ReadonlyMap<string, Begun> {
    return this.#doubts;
  }

  /** What a commit that is ours has; undefined: nobody knows. One that an unheard file does not know was begun behind all that is known of it. */
  begun(commit: string): Begun | undefined {
    return this.#doubts.get(commit) ?? (this.#isUnheard ? BEGUN.all : undefined);
  }

  /** Doubts that have at least `from` of the records of the content, and less than `to`. */
  between(from: number, to: number): string[] {
    return [...this.#doubts].flatMap(([commit, { contents }]) => (contents >= from && contents < to ? [commit] : []));
  }

  has(commit: string): boolean {
    return this.#doubts.has(commit) || (this.#trustsToken && commit.startsWith(`${this.token}.`) && commit !== this.#last);
  }

  /** The same id for the same changes: to try again must not leave one more. */
  next(changes: number): string {
    const same = [...this.#doubts].find(([, begun]) => begun.changes === changes);
    return same?.[0] ?? this.another();
  }

  another(): string {
    return `${this.token}.${randomUUID().slice(-12)}`;
  }

  /** One that is in doubt already stays what it was: whatever is begun under its id now, it may be the former attempt that happens. */
  begin(commit: string, begun: Begun): void {
    if (this.#doubts.has(commit)) return void this.#repeated.add(commit);
    this.#doubts.set(commit, begun);
    if (this.#doubts.size <= DOUBTS_MAX) return;
    this.#doubts.delete(this.#doubts.keys().next().value!);
    this.#trustsToken = true;
  }

  /** This attempt has certainly not happened; a former one under the same id may have, or may still. */
  failed(commit: string): void {
    if (!this.#repeated.has(commit)) this.#doubts.delete(commit);
  }

  /** It has happened: on condition of what was there before, so that none of the others can any more. */
  done(commit: string): void {
    this.#doubts.clear();
    this.#repeated.clear();
    this.#trustsToken = this.#isUnheard = false;
    this.#last = commit;
  }
}
