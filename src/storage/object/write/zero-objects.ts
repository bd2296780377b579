/**
 * Objects of zeros, from which the server copies the holes of files: zeros are sent once, and a hole costs requests instead of traffic. The smallest is
 * sent, each larger one is made of copies of the one before. They are below the reserved prefix of this share, in the journal before they are
 * made, and go a while after the last commit that needs them, or at the next start.
 */
import { closeSync, ftruncateSync } from 'node:fs';
import { Underway } from '../../../base/underway.js';
import * as c from '../../../ffi/libc.js';
import { placeOf } from '../attachments.js';
import { ifThere } from '../asking.js';
import { isLost, StorageError } from '../errors.js';
import type { CallOptions, ObjectHeaders, ObjectStore, Part, PartSource, Upload, Version } from '../store.js';
import { completeOwnKey, putToOwnKey, removeFromOwnKey } from '../unconditional-writes.js';
import type { Ledger } from './ledger.js';
import { zeroSizes, type CommitSizes } from './layout.js';

/** Another commit may need them soon. */
const LINGER_MS = 30_000;
const COPIES_AT_ONCE = 4;

interface Made {
  readonly key: string;
  readonly version: Version;
  readonly bytes: number;
}

export class ZeroObjects {
  /** By size, and by how they are stored. */
  readonly #made = new Map<string, Promise<Made>>();
  /** Those of them that are there. */
  readonly #ready = new Set<Made>();
  readonly #keys = new Set<string>();
  readonly #removing = new Underway();
  #users = 0;
  #timer: NodeJS.Timeout | null = null;
  /** Ends what is being made when nobody waits for it any more. */
  #making = new AbortController();

  constructor(
    readonly store: ObjectStore,
    readonly ledger: Ledger,
    readonly sizes: CommitSizes,
    /** A reserved key that nobody has. */
    readonly freshKey: () => string,
  ) {}

  /** For one upload; `headers`: those of the object to be, which parts have to be stored like. */
  lease(headers: ObjectHeaders): ZeroLease {
    return new ZeroLease(this, placeOf(headers));
  }

  begin(): void {
    this.#users++;
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#timer = null;
  }

  end(): void {
    if (--this.#users > 0) return;
    this.#making.abort();
    this.#making = new AbortController();
    if (this.#keys.size > 0) this.#timer = setTimeout(() => this.#removeAll(), LINGER_MS).unref();
  }

  /** So many zeros at least, or exactly where only whole objects are copied. */
  of(headers: ObjectHeaders, bytes: number): Promise<Made> {
    const { limits, capabilities } = this.store;
    const sizes = zeroSizes(this.sizes, limits);
    const wanted = capabilities.copyPart === 'whole' ? bytes : sizes.find((one) => one >= bytes) ?? limits.partMaxBytes;
    const name = JSON.stringify([wanted, headers]);
    let made = this.#made.get(name);
    if (made === undefined) {
      made = this.#make(headers, wanted, sizes.filter((one) => one < wanted).at(-1), { signal: this.#making.signal });
      this.#made.set(name, made);
      made.then((one) => this.#ready.add(one), () => this.#forget(made!));
    }
    return made;
  }

  /** Whether somebody has removed it; then those that it was made of, and made for, are in doubt as well. */
  async isGone(made: Made): Promise<boolean> {
    if ((await ifThere(this.store.head(made.key)))?.version === made.version) return false;
    if (this.#ready.has(made)) {
      this.#ready.clear();
      this.#made.clear();
    }
    return true;
  }

  /** Nothing is left of what nobody needs. */
  async settled(): Promise<void> {
    if (this.#users === 0) this.#removeAll();
    await this.#removing.settled();
  }

  /** As a killed daemon leaves them. */
  abandon(): void {
    if (this.#timer !== null) clearTimeout(this.#timer);
    this.#keys.clear();
  }

  #forget(made: Promise<Made>): void {
    for (const [name, one] of this.#made) if (one === made) this.#made.delete(name);
  }

  async #make(headers: ObjectHeaders, bytes: number, lower: number | undefined, call: CallOptions): Promise<Made> {
    const source = lower === undefined ? null : await this.of(headers, lower);
    const key = this.freshKey();
    this.ledger.hide(key);
    this.#keys.add(key);
    const version = source === null ? await this.#put(key, headers, bytes, call) : await this.#copies(key, headers, bytes, source, call);
    return { key, version, bytes };
  }

  async #put(key: string, headers: ObjectHeaders, bytes: number, call: CallOptions): Promise<Version> {
    const fd = c.memfdCreate('zeros', 0);
    if (fd < 0) throw new StorageError('unexpected', `put ${this.store.location}/${key}`, { providerMessage: `memfd_create: errno ${c.errno()}` });
    try {
      ftruncateSync(fd, bytes);
      return await putToOwnKey(this.store, key, { fd, offset: 0, bytes }, { ...call, headers });
    } finally {
      closeSync(fd);
    }
  }

  async #copies(key: string, headers: ObjectHeaders, bytes: number, source: Made, call: CallOptions): Promise<Version> {
    const { store, ledger } = this;
    const upload = await store.beginUpload(key, { headers });
    ledger.uploadBegun(upload);
    try {
      const parts = new Array<Part>(Math.ceil(bytes / source.bytes));
      let next = 0;
      const lane = async (): Promise<void> => {
        for (let i = next++; i < parts.length; i = next++) parts[i] = await store.copyPart(upload, i + 1, zerosOf(source, Math.min(source.bytes, bytes - i * source.bytes)), call);
      };
      const ended = await Promise.allSettled(Array.from({ length: COPIES_AT_ONCE }, () => lane().finally(() => (next = parts.length))));
      for (const one of ended) if (one.status === 'rejected') throw one.reason;
      return await completeOwnKey(store, upload, parts);
    } finally {
      await store.abortUpload(upload).then(() => ledger.uploadEnded(upload), () => undefined); // else the next start does it
    }
  }

  #removeAll(): void {
    this.#timer = null;
    const made = [...this.#made.values()];
    this.#made.clear();
    this.#ready.clear();
    for (const key of this.#keys) this.#removing.add(Promise.allSettled(made).then(() => this.#remove(key)));
    this.#keys.clear();
  }

  async #remove(key: string): Promise<void> {
    await removeFromOwnKey(this.store, key).then(
      () => this.ledger.removed(key),
      () => undefined, // the next start does it
    );
  }
}

/** Zeros for the parts of one upload. */
export class ZeroLease {
  #used = false;
  #ended = false;

  constructor(
    readonly zeros: ZeroObjects,
    readonly headers: ObjectHeaders,
  ) {}

  /** A part of so many zeros. @throws StorageError */
  async copyTo(upload: Upload, number: number, bytes: number, options: CallOptions): Promise<Part> {
    if (this.#ended) throw new StorageError('aborted', `copy zeros to ${upload.key}`);
    if (!this.#used) this.zeros.begin();
    this.#used = true;
    for (let again = false; ; again = true) {
      const made = await unlessAborted(this.zeros.of(this.headers, bytes), options);
      try {
        return await this.zeros.store.copyPart(upload, number, zerosOf(made, bytes), options);
      } catch (error) {
        if (!isLost(error) || again || !(await this.zeros.isGone(made))) throw error;
      }
    }
  }

  end(): void {
    if (this.#used && !this.#ended) this.zeros.end();
    this.#ended = true;
  }
}

/** What is waited for may go on for others. */
function unlessAborted<T>(waited: Promise<T>, { signal }: CallOptions): Promise<T> {
  if (signal === undefined) return waited;
  return new Promise((resolve, reject) => {
    const giveUp = (): void => reject(new StorageError('aborted', 'wait for zeros'));
    if (signal.aborted) giveUp();
    signal.addEventListener('abort', giveUp, { once: true });
    waited.then(resolve, reject).finally(() => signal.removeEventListener('abort', giveUp));
  });
}

const zerosOf = ({ key, version }: Made, bytes: number): PartSource => ({ key, version, offset: 0, bytes });
