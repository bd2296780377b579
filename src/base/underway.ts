/** Work that nobody waits for, until the end. */
export class Underway {
  readonly #works = new Set<Promise<unknown>>();

  /** It handles its own errors: `work` never rejects. */
  add(work: Promise<unknown>): void {
    this.#works.add(work);
    void work.then(() => this.#works.delete(work));
  }

  get isEmpty(): boolean {
    return this.#works.size === 0;
  }

  /** What is under way now is over. */
  async settled(): Promise<void> {
    await Promise.all(this.#works);
  }
}
