/**
 * How many staging files have a descriptor. As many files as the disk has room for may wait to be committed; what the daemon may have open is
 * needed for frontends and connections too. So the descriptors used least lately are closed, and opened again when they are needed.
 */

/** Of a daemon that may have very many. */
const DESCRIPTORS_MAX = 16_384;
/** Left for frontends, guest memory, queues, connections to the provider, and what Node.js has open itself. */
const RESERVED = 384;
const DESCRIPTORS_MIN = 16;
/** Above this share of the bound descriptors are closed before anybody has to wait for it. */
const CLOSING_SHARE = 0.75;

export interface DescriptorOwner {
  /** It was used since this was set to false. */
  used: boolean;
  /** Nothing is lost if the descriptor is closed now. */
  readonly idle: boolean;
  /** Its data is on the disk, and the descriptor is closed unless it was used meanwhile. Never rejects. */
  retire(): Promise<void>;
  /** The same, while everybody waits. */
  retireNow(): void;
}

export class StagingDescriptors {
  readonly #open = new Set<DescriptorOwner>();
  readonly #retiring = new Set<DescriptorOwner>();

  constructor(readonly max: number) {}

  /** Of a process that may have so many descriptors. */
  static within(limit: number): StagingDescriptors {
    return new StagingDescriptors(Math.max(DESCRIPTORS_MIN, Math.min(DESCRIPTORS_MAX, Math.floor((limit - RESERVED) / 2))));
  }

  get count(): number {
    return this.#open.size;
  }

  /** A descriptor is going to be opened. */
  makeRoom(): void {
    if (this.#open.size >= this.max) this.#leastUsed(() => true)?.retireNow();
    if (this.#open.size - this.#retiring.size < this.max * CLOSING_SHARE) return;
    const owner = this.#leastUsed((one) => !this.#retiring.has(one));
    if (owner === null) return;
    this.#retiring.add(owner);
    void owner.retire().finally(() => this.#retiring.delete(owner));
  }

  opened(owner: DescriptorOwner): void {
    this.#open.add(owner);
  }

  closed(owner: DescriptorOwner): void {
    this.#open.delete(owner);
  }

  /** In the order of opening, but those that were used since have a second chance. */
  #leastUsed(wanted: (owner: DescriptorOwner) => boolean): DescriptorOwner | null {
    for (let left = 2 * this.#open.size; left > 0; left--) {
      const [owner] = this.#open;
      this.#open.delete(owner);
      this.#open.add(owner);
      if (owner.used) owner.used = false;
      else if (owner.idle && wanted(owner)) return owner;
    }
    return null;
  }
}
