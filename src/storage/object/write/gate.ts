/**
 * A tree of keys that gets another name takes as many calls as it has objects. Meanwhile nothing below either name is changed or looked
 * at: who comes waits until it is over, and it begins when those who came before are done.
 *
 * Whoever has passed must not wait for the gate again before it has left.
 */

interface Closed {
  readonly prefixes: readonly string[];
  readonly opened: Promise<void>;
}

interface Inside {
  readonly key: string;
  readonly left: Promise<void>;
}

export class Gate {
  /** Trees are moved one after the other. */
  #closed: Closed | null = null;
  readonly #inside = new Set<Inside>();

  /** What to wait for before anything at this key is done; null: nothing. */
  waiting(key: string): Promise<void> | null {
    return this.#closed !== null && covers(this.#closed.prefixes, key) ? this.#closed.opened : null;
  }

  /** Wait until a key may be looked at; it is asked for again, since the move may have changed it. */
  async pass(key: () => string): Promise<void> {
    for (let wait = this.waiting(key()); wait !== null; wait = this.waiting(key())) await wait;
  }

  /** Do something at a key when it may be done. */
  async through<T>(key: () => string, body: () => Promise<T>): Promise<T> {
    await this.pass(key);
    return this.enter(key(), body);
  }

  /** At once: nothing has been waited for since the key was seen to be free. */
  async enter<T>(key: string, body: () => Promise<T>): Promise<T> {
    let leave = (): void => undefined;
    const inside: Inside = { key, left: new Promise((resolve) => (leave = resolve)) };
    this.#inside.add(inside);
    try {
      return await body();
    } finally {
      this.#inside.delete(inside);
      leave();
    }
  }

  /** Do something to the trees below these prefixes while nobody else does. */
  async closed<T>(prefixes: readonly string[], body: () => Promise<T>): Promise<T> {
    let open = (): void => undefined;
    this.#closed = { prefixes, opened: new Promise((resolve) => (open = resolve)) };
    try {
      await Promise.all([...this.#inside].filter(({ key }) => covers(prefixes, key)).map(({ left }) => left));
      return await body();
    } finally {
      this.#closed = null;
      open();
    }
  }
}

/** A prefix ends with a slash; its own directory counts as below. */
const covers = (prefixes: readonly string[], key: string): boolean => prefixes.some((prefix) => key.startsWith(prefix) || `${key}/` === prefix);
