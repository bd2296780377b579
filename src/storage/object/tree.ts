/** From names to objects and directories, by asking the store as little as the guest's patience allows. */
import { E } from '../../base/errno.js';
import { describeDirectory, describeObject, timeOf, type Defaults, type Described } from './facts.js';
import { StorageError, toErrno } from './errors.js';
import { isLong, parseName, type Named } from './names.js';
import { ObjectNodes, type ObjectNode } from './nodes.js';
import type { ObjectInfo, ObjectStore } from './store.js';

/** Metadata of objects: ignored, read where one object is asked for, or read also for each entry of a listing. */
export type PosixMode = 'off' | 'lazy' | 'full';

export interface TreeOptions extends Defaults {
  /** What every key begins with: '' or something that ends with a slash. */
  readonly prefix: string;
  readonly metadataTtl_ms: number;
  readonly posix: PosixMode;
}

/** A request that fails for a reason of ours. */
export class FileError extends Error {
  constructor(readonly errno: number) {
    super(`errno ${errno}`);
  }
}

export interface TreeLog {
  guest(key: string, fields: object, message: string, level?: 'warn' | 'info'): unknown;
}

export class Tree {
  readonly nodes = new ObjectNodes();
  readonly #started = timeOf(Date.now());
  /** Lookups under way: another one for the same name waits for the same answer. */
  readonly #looking = new Map<string, Promise<ObjectNode>>();

  constructor(
    readonly store: ObjectStore,
    readonly options: TreeOptions,
    readonly log: TreeLog,
  ) {
    const root = this.nodes.put(true, options.prefix, this.#directory(null).facts, 0);
    root.refs = 1;
  }

  /** The node of a name, not referenced yet. @throws FileError, StorageError */
  async lookup(parent: ObjectNode, name: Uint8Array): Promise<ObjectNode> {
    if (!parent.directory) throw new FileError(E.NOTDIR);
    const named = parseName(name);
    if (named === null) throw new FileError(E.NOENT);
    const key = `${parent.key}\0${Buffer.from(name).toString('latin1')}`;
    const under = this.#looking.get(key);
    if (under !== undefined) return under;
    const looking = this.#look(parent, named).finally(() => this.#looking.delete(key));
    this.#looking.set(key, looking);
    return looking;
  }

  async #look(parent: ObjectNode, named: Named): Promise<ObjectNode> {
    const component = named.kind === 'component' ? named.component : await this.#longComponent(parent.key, named);
    const key = parent.key + component;
    if (Buffer.byteLength(key) > this.store.limits.keyBytes) throw new FileError(E.NOENT);
    const [object, directory] = await Promise.all([component === '' && !named.object ? null : this.#head(key), this.#firstBelow(`${key}/`)]);
    if (directory !== null && !named.object) return this.#putDirectory(`${key}/`, directory);
    // The plain name is the directory's: the other one is the object's only where there is a directory
    if (object !== null && (directory !== null) === named.object) return this.putObject(object);
    if (component === '' && !named.object) {
      const marker = await this.#head(key);
      if (marker !== null && marker.size > 0) return this.putObject(marker);
    }
    throw new FileError(E.NOENT);
  }

  /** The component that a long name stands for, by listing those that begin like it. */
  async #longComponent(prefix: string, named: Named & { kind: 'long' }): Promise<string> {
    const begins = prefix + named.head.split('__')[0];
    let token: string | undefined;
    do {
      const page = await this.store.list({ prefix: begins, delimiter: '/', ...(token === undefined ? {} : { token }) });
      const keys = [...page.objects.map((object) => object.key), ...page.prefixes.map((one) => one.slice(0, -1))];
      const found = keys.map((key) => key.slice(prefix.length)).find((component) => isLong(component, named));
      if (found !== undefined) return found;
      token = page.next ?? undefined;
    } while (token !== undefined);
    throw new FileError(E.NOENT);
  }

  async #head(key: string): Promise<ObjectInfo | null> {
    if (key === '') return null;
    try {
      return await this.store.head(key);
    } catch (error) {
      if (error instanceof StorageError && error.code === 'not-found') return null;
      throw error;
    }
  }

  /** The first object below a prefix, which shows that the directory is there. */
  async #firstBelow(prefix: string): Promise<ObjectInfo | null> {
    if (Buffer.byteLength(prefix) > this.store.limits.keyBytes) return null;
    let token: string | undefined;
    do {
      const page = await this.store.list({ prefix, limit: 1, ...(token === undefined ? {} : { token }) });
      if (page.objects.length > 0) return page.objects[0];
      token = page.next ?? undefined;
    } while (token !== undefined);
    return null;
  }

  async #putDirectory(prefix: string, first: ObjectInfo): Promise<ObjectNode> {
    const isMarker = first.key === prefix;
    const marker = !isMarker ? null : first.metadata !== null || this.options.posix === 'off' ? first : await this.#head(prefix);
    return this.nodes.put(true, prefix, this.#told(prefix, this.#directory(marker)), this.#expiry());
  }

  /** The node of a directory that a listing shows; its marker's metadata is unknown, so what is known of it stays. */
  listedDirectory(prefix: string): ObjectNode | null {
    return this.options.posix === 'off' ? this.nodes.put(true, prefix, this.#directory(null).facts, this.#expiry()) : null;
  }

  putObject(info: ObjectInfo): ObjectNode {
    const { posix } = this.options;
    return this.nodes.put(false, info.key, this.#told(info.key, describeObject(info, this.options, posix !== 'off')), this.#expiry());
  }

  /** Whether a listing tells all that the guest is to know of an object. */
  knowsFromListing(info: ObjectInfo): boolean {
    return this.options.posix === 'off' || info.metadata !== null;
  }

  /** Facts that are not too old. @throws FileError ENOENT when it is gone */
  async fresh(node: ObjectNode): Promise<ObjectNode> {
    return performance.now() < node.expires_ms ? node : this.refresh(node);
  }

  /** Ask the store, however young the facts are. */
  async refresh(node: ObjectNode): Promise<ObjectNode> {
    if (!node.directory) {
      const info = await this.#head(node.key);
      if (info === null) throw new FileError(E.NOENT);
      return this.putObject(info);
    }
    const first = await this.#firstBelow(node.key);
    if (first !== null) return this.#putDirectory(node.key, first);
    if (node.key !== this.options.prefix) throw new FileError(E.NOENT);
    return this.nodes.put(true, node.key, this.#directory(null).facts, this.#expiry());
  }

  #directory(marker: ObjectInfo | null): Described {
    return describeDirectory(marker, this.options, this.options.posix !== 'off', this.#started);
  }

  #told(key: string, described: Described): Described['facts'] {
    if (described.ignored.length > 0) {
      this.log.guest('metadata', { key, names: described.ignored }, `metadata of ${this.store.location}/${key} makes no sense and is ignored: ${described.ignored.join(', ')}`);
    }
    return described.facts;
  }

  #expiry(): number {
    return performance.now() + this.options.metadataTtl_ms;
  }
}

/** −errno for what a request failed with. */
export function errnoOf(error: unknown): number {
  if (error instanceof FileError) return -error.errno;
  if (error instanceof StorageError) return -toErrno(error.code);
  throw error;
}
