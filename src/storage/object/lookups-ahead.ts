/**
 * Names of a directory that are looked up in the order of its listing, as find(1) does behind a READDIR: metadata of those that follow are asked for before the
 * guest gets to them, more of them each time that it does. So a walk takes a round trip for many objects, not one for each.
 */
import { HeadsAhead, type Head } from './heads-ahead.js';
import type { ObjectInfo } from './store.js';
import type { Tree } from './tree.js';

/** Objects that are asked for ahead in one directory, at most. */
const AHEAD_MAX = 128;
const AHEAD_MIN = 4;
/** Directories that are walked through at the same time. */
const WALKS_MAX = 16;

interface Walk {
  readonly heads: HeadsAhead;
  /** Keys that were asked for ahead and are not looked up yet; and how many are to be. */
  readonly asked: Set<string>;
  ahead: number;
  /** The key that is expected to be looked up next. */
  expected: string | null;
}

export class LookupsAhead {
  readonly #walks = new Map<string, Walk>();

  constructor(readonly tree: Tree) {}

  /**
   * The answer for an object of a listing, by its directory, if it was asked for ahead; undefined: it was not, or could not be had, or is out of date, or `elsewhere`:
   * it is asked for with its content, and the answer that there may be is no longer wanted.
   */
  async head(prefix: string, { key }: ObjectInfo, elsewhere: boolean): Promise<Head> {
    const walk = this.#of(prefix);
    const wasAsked = walk.asked.delete(key);
    if (elsewhere) return walk.heads.drop(key);
    const isInOrder = wasAsked || key === walk.expected;
    walk.ahead = isInOrder ? Math.min(AHEAD_MAX, Math.max(AHEAD_MIN, walk.ahead * 2)) : 0;
    const taken = wasAsked ? walk.heads.take([key]) : null;
    if (walk.asked.size <= walk.ahead / 2) this.#prepare(walk, this.tree.listed.following(prefix, key, Math.max(1, walk.ahead)));
    return taken === null ? undefined : (await taken)[0];
  }

  #prepare(walk: Walk, following: readonly ObjectInfo[]): void {
    walk.expected = following[0]?.key ?? null;
    walk.asked.clear();
    if (walk.ahead > 0) for (const object of following) if (this.#isWanted(object)) walk.asked.add(object.key);
    walk.heads.prepare([...walk.asked]);
  }

  /** The listing and what is known do not suffice. */
  #isWanted(object: ObjectInfo): boolean {
    const { tree } = this;
    if (tree.knowsFromListing(object)) return false;
    const known = tree.nodes.find(false, object.key);
    return known === null || (known.staged?.dirty !== true && (performance.now() >= known.expires_ms || known.facts.version !== object.version) && tree.proven(object.key, object) === null);
  }

  #of(prefix: string): Walk {
    const known = this.#walks.get(prefix);
    const walk = known ?? { heads: new HeadsAhead(this.tree), asked: new Set<string>(), ahead: 0, expected: null };
    this.#walks.delete(prefix);
    this.#walks.set(prefix, walk);
    if (this.#walks.size > WALKS_MAX) this.#walks.delete(this.#walks.keys().next().value!);
    return walk;
  }
}
