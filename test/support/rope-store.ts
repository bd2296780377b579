/**
 * Objects of terabytes in memory: content is a rope of pieces, and zeros take no room. It does what the stores do that a file with holes needs, copies
 * parts as S3 (`range`) or as Google Cloud Storage (`whole`), and counts what it was sent.
 */
import { bodyBytes, bodyContent, targetView } from '../../src/storage/object/body.js';
import { StorageError } from '../../src/storage/object/errors.js';
import type {
  Body, CallOptions, Capabilities, Condition, CopyOptions, Limits, ListOptions, ListPage, Metadata, ObjectInfo, ObjectStore, Part, PartSource, PutOptions, ReadOptions,
  Upload, Version,
} from '../../src/storage/object/store.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { S3_LIMITS } from '../../src/storage/object/stores/s3.js';

/** Bytes, or so many zeros. */
type Piece = Uint8Array | number;

const lengthOf = (piece: Piece): number => (typeof piece === 'number' ? piece : piece.length);
const sizeOf = (rope: readonly Piece[]): number => rope.reduce((sum: number, piece) => sum + lengthOf(piece), 0);

function cut(rope: readonly Piece[], from: number, to: number): Piece[] {
  const out: Piece[] = [];
  let at = 0;
  for (const piece of rope) {
    const [low, high] = [Math.max(from, at) - at, Math.min(to, at + lengthOf(piece)) - at];
    if (low < high) out.push(typeof piece === 'number' ? high - low : piece.subarray(low, high));
    at += lengthOf(piece);
  }
  return out;
}

interface Stored {
  readonly rope: readonly Piece[];
  readonly info: ObjectInfo;
}

interface Begun {
  readonly key: string;
  readonly options: PutOptions;
  readonly parts: Map<number, { readonly rope: readonly Piece[]; readonly tag: string }>;
}

export class RopeStore implements ObjectStore {
  readonly kind = 'memory';
  readonly location = 'memory:rope';
  readonly limits: Limits;
  readonly capabilities: Capabilities;
  readonly objects = new Map<string, Stored>();
  readonly uploads = new Map<string, Begun>();
  /** Bytes of bodies that came. */
  sentBytes = 0;
  /** Calls, by name. */
  readonly calls = new Map<string, number>();
  /** Awaited in each copyPart(); a test that holds it back obeys the signal. */
  copying: (options: CallOptions) => Promise<void> = async () => undefined;
  #sequence = 0;

  constructor(copyPart: Capabilities['copyPart'], limits: Partial<Limits> = {}) {
    this.capabilities = { ...new MemoryStore().capabilities, copyPart, rename: copyPart === 'whole', metadataInPlace: copyPart === 'whole', fetch: false };
    this.limits = { ...S3_LIMITS, ...(copyPart === 'whole' ? { partMinBytes: 1, partMaxBytes: 2 ** 42, objectBytes: 5 * 2 ** 40 } : {}), ...limits };
  }

  async check(): Promise<void> {}
  async close(): Promise<void> {}

  async head(key: string): Promise<ObjectInfo> {
    return this.#existing(key).info;
  }

  async read(key: string, { version, offset, into }: ReadOptions): Promise<number> {
    const { rope, info } = this.#existing(key);
    if (version !== undefined && version !== info.version) throw new StorageError('changed', `read ${key}`);
    const view = targetView(into);
    let at = 0;
    for (const piece of cut(rope, offset, offset + view.length)) {
      if (typeof piece === 'number') view.fill(0, at, at + piece);
      else view.set(piece, at);
      at += lengthOf(piece);
    }
    return at;
  }

  async fetch(key: string): Promise<never> {
    throw new StorageError('unsupported', `fetch ${key}`);
  }

  async put(key: string, body: Body, options: PutOptions = {}): Promise<Version> {
    this.#count('put');
    return this.#store(key, this.#received(body), options);
  }

  async remove(key: string, { version }: CallOptions & { version?: Version } = {}): Promise<void> {
    if (version !== undefined) this.#require(key, { version });
    this.objects.delete(key);
  }

  async copy(from: string, to: string, options: CopyOptions = {}): Promise<Version> {
    const { rope, info } = this.#existing(from);
    this.#requireOne(info);
    return this.#store(to, rope, { ...options, metadata: options.metadata ?? info.metadata!, headers: options.headers ?? info.headers! });
  }

  async rename(from: string, to: string): Promise<Version> {
    const version = await this.copy(from, to);
    this.objects.delete(from);
    return version;
  }

  async setMetadata(key: string, version: Version, metadata: Metadata): Promise<Version> {
    const { rope, info } = this.#existing(key);
    this.#requireOne(info);
    return this.#store(key, rope, { metadata, headers: info.headers!, condition: { version } });
  }

  /** As one request of S3 copies no more. */
  #requireOne({ key, size }: ObjectInfo): void {
    if (this.capabilities.copyPart === 'range' && size > 5 * 2 ** 30) throw new StorageError('too-large', `copy ${key}`);
  }

  async list({ prefix, delimiter }: ListOptions): Promise<ListPage> {
    const names = [...this.objects.keys()].filter((key) => key.startsWith(prefix)).sort();
    const folder = (key: string): string => (delimiter === undefined || !key.slice(prefix.length).includes('/') ? '' : key.slice(0, key.indexOf('/', prefix.length) + 1));
    return { objects: names.filter((key) => folder(key) === '').map((key) => this.objects.get(key)!.info), prefixes: [...new Set(names.map(folder).filter((one) => one !== ''))], next: null };
  }

  async beginUpload(key: string, options: PutOptions = {}): Promise<Upload> {
    const id = String(++this.#sequence);
    this.uploads.set(id, { key, options, parts: new Map() });
    return { key, id };
  }

  async putPart(upload: Upload, number: number, body: Body, options: CallOptions = {}): Promise<Part> {
    this.#count('putPart');
    if (options.signal?.aborted === true) throw new StorageError('aborted', 'put part');
    return this.#part(upload, number, this.#received(body));
  }

  async copyPart(upload: Upload, number: number, { key, version, offset, bytes }: PartSource, options: CallOptions = {}): Promise<Part> {
    this.#count('copyPart');
    await this.copying(options);
    if (options.signal?.aborted === true) throw new StorageError('aborted', 'copy part');
    const { rope, info } = this.#existing(key);
    if (info.version !== version) throw new StorageError('changed', `copy part of ${key}`);
    const whole = offset === 0 && bytes === info.size;
    if (this.capabilities.copyPart === 'none' || (this.capabilities.copyPart === 'whole' && !whole)) throw new StorageError('unsupported', `copy part of ${key}`);
    if (bytes === 0 || offset + bytes > info.size) throw new StorageError('invalid', `copy part of ${key}`);
    return this.#part(upload, number, cut(rope, offset, offset + bytes));
  }

  async completeUpload(upload: Upload, parts: readonly Part[], { condition }: CallOptions & { condition?: Condition } = {}): Promise<Version> {
    const begun = this.#begun(upload);
    const ropes = parts.map(({ number, tag }, i) => {
      const part = begun.parts.get(number);
      const least = i < parts.length - 1 ? this.limits.partMinBytes : 0;
      if (part === undefined || part.tag !== tag || sizeOf(part.rope) < least || (i > 0 && number <= parts[i - 1].number)) throw new StorageError('invalid', `complete ${upload.key}`);
      return part.rope;
    });
    if (parts.length < begun.parts.size) throw new StorageError('invalid', `complete ${upload.key}`);
    const version = this.#store(upload.key, ropes.flat(), { ...begun.options, ...(condition === undefined ? {} : { condition }) });
    this.uploads.delete(upload.id);
    return version;
  }

  async abortUpload({ id }: Upload): Promise<void> {
    this.uploads.delete(id);
  }

  async listUploads(): Promise<{ uploads: []; next: null }> {
    return { uploads: [], next: null };
  }

  #count(call: string): void {
    this.calls.set(call, (this.calls.get(call) ?? 0) + 1);
  }

  #received(body: Body): Piece[] {
    this.sentBytes += bodyBytes(body);
    const content = bodyContent(body, 'put').slice();
    return content.every((byte) => byte === 0) ? [content.length] : [content];
  }

  #part(upload: Upload, number: number, rope: readonly Piece[]): Part {
    if (number < 1 || number > this.limits.parts || sizeOf(rope) > this.limits.partMaxBytes) throw new StorageError('invalid', `part ${number}`);
    const tag = String(++this.#sequence);
    this.#begun(upload).parts.set(number, { rope, tag });
    return { number, tag, bytes: sizeOf(rope) };
  }

  #begun({ id }: Upload): Begun {
    const begun = this.uploads.get(id);
    if (begun === undefined) throw new StorageError('not-found', 'upload');
    return begun;
  }

  #existing(key: string): Stored {
    const stored = this.objects.get(key);
    if (stored === undefined) throw new StorageError('not-found', key);
    return stored;
  }

  #require(key: string, condition: Condition | undefined): void {
    if (condition === undefined) return;
    const there = this.objects.get(key)?.info.version;
    if (there !== ('absent' in condition ? undefined : condition.version)) throw new StorageError('changed', key);
  }

  #store(key: string, rope: readonly Piece[], { metadata = {}, headers = {}, condition }: PutOptions): Version {
    this.#require(key, condition);
    if (sizeOf(rope) > this.limits.objectBytes) throw new StorageError('too-large', key);
    const version = String(++this.#sequence);
    this.objects.set(key, { rope, info: { key, size: sizeOf(rope), version, modified_ms: Date.now(), metadata, headers } });
    return version;
  }
}
