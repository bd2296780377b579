/** Locks for paths: programs of one guest use the same name one after the other, so that the model knows its state. */
interface Holder {
  readonly paths: readonly string[];
}

export class PathLocks {
  readonly #holders = new Set<Holder>();
  readonly #waiting: { readonly holder: Holder; readonly go: () => void }[] = [];

  async locked<T>(paths: readonly string[], body: () => Promise<T>): Promise<T> {
    const holder = { paths };
    if (this.#isFree(holder)) this.#holders.add(holder);
    else await new Promise<void>((go) => this.#waiting.push({ holder, go }));
    try {
      return await body();
    } finally {
      this.#holders.delete(holder);
      for (const next of [...this.#waiting]) {
        if (!this.#isFree(next.holder)) continue;
        this.#waiting.splice(this.#waiting.indexOf(next), 1);
        this.#holders.add(next.holder);
        next.go();
      }
    }
  }

  #isFree({ paths }: Holder): boolean {
    return ![...this.#holders].some((other) => other.paths.some((one) => paths.some((path) => touches(one, path))));
  }
}

/** The same, or one below the other. */
const touches = (a: string, b: string): boolean => a === b || a.startsWith(`${b}/`) || b.startsWith(`${a}/`);
