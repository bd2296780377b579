/** The server that all share: Ceph RGW on loopback, long lines to it, and the objects that are read. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { readFileSync } from 'node:fs';
import { createInterface } from 'node:readline';
import { CreateBucketCommand, S3Client } from '@aws-sdk/client-s3';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { Rgw } from '../../test/support/rgw.js';
import { vufsBinary } from '../vufs.js';
import { content, flatName, SMALL_FILE_BYTES, treeName } from './content.js';
import type { Bucket } from './contenders.js';
import { each } from './each.js';
import { PREPARED, type Job, type Sizes } from './rows.js';

const BUCKET = 'bench-bucket';
const PART_BYTES = 16 << 20;
/** Of the objects that are only listed. */
const LISTED_BYTES = 100;
const CALLS = 48;

export interface Stored {
  readonly objects: number;
  readonly bytes: number;
}

export class Server {
  /** Without latency: for preparing and checking. */
  readonly store: ObjectStore;
  readonly #proxies: ChildProcess[] = [];
  readonly #endpoints = new Map<number, string>();

  private constructor(readonly rgw: Rgw) {
    this.store = new S3Store({ bucket: BUCKET, endpoint: rgw.endpoint, region: 'us-east-1', pathStyle: true, credentials: rgw.credentials });
    this.#endpoints.set(0, rgw.endpoint);
  }

  static async start(): Promise<Server> {
    const rgw = await Rgw.start();
    const client = new S3Client({ endpoint: rgw.endpoint, region: 'us-east-1', credentials: rgw.credentials, forcePathStyle: true });
    await client.send(new CreateBucketCommand({ Bucket: BUCKET }));
    client.destroy();
    return new Server(rgw);
  }

  /** The process that all of RGW's descend from. */
  get pid(): number {
    return Number(readFileSync(`/run/rgw-${this.rgw.port}.pid`, 'utf8'));
  }

  /** The bucket behind a line with so much latency in each direction. */
  async bucket(latency_ms: number): Promise<Bucket> {
    const known = this.#endpoints.get(latency_ms);
    const endpoint = known ?? (await this.#proxy(latency_ms));
    this.#endpoints.set(latency_ms, endpoint);
    return { name: BUCKET, endpoint, ...this.rgw.credentials };
  }

  /** It ends with its standard input. */
  async #proxy(latency_ms: number): Promise<string> {
    const child = spawn(vufsBinary, ['delay', '0', String(this.rgw.port), '--delay', String(latency_ms)], { stdio: ['pipe', 'pipe', 'inherit'] });
    this.#proxies.push(child);
    const [port] = (await once(createInterface({ input: child.stdout }), 'line')) as [string];
    return `http://127.0.0.1:${port}`;
  }

  async stop(): Promise<void> {
    for (const proxy of this.#proxies) proxy.stdin?.end();
    await this.store.close();
    this.rgw.stop();
  }

  /** What these jobs read. */
  async prepare(jobs: readonly Job[], sizes: Sizes, say: (text: string) => void): Promise<void> {
    const wanted = new Set(jobs.map(({ job }) => PREPARED[job]));
    if (wanted.has('large')) {
      say(`preparing an object of ${sizes.size >> 20} MiB`);
      await this.#putLarge('large', sizes.size);
    }
    const many = async (folder: string, count: number, bytes: number, name: (index: number) => string): Promise<void> => {
      if (!wanted.has(folder)) return;
      say(`preparing ${count} objects below ${folder}/`);
      await each(count, CALLS, async (index) => void (await this.store.put(`${folder}/${name(index)}`, content(0, bytes, index))));
    };
    await many('small', sizes.files, SMALL_FILE_BYTES, flatName);
    await many('tree', sizes.tree, LISTED_BYTES, treeName);
    await many('flat', sizes.list, LISTED_BYTES, flatName);
  }

  async #putLarge(key: string, bytes: number): Promise<void> {
    const upload = await this.store.beginUpload(key);
    const count = Math.ceil(bytes / PART_BYTES);
    const parts = new Array<Awaited<ReturnType<ObjectStore['putPart']>>>(count);
    await each(count, 4, async (index) => {
      const offset = index * PART_BYTES;
      parts[index] = await this.store.putPart(upload, index + 1, content(offset, Math.min(PART_BYTES, bytes - offset), 0));
    });
    await this.store.completeUpload(upload, parts);
  }

  async #keys(prefix: string): Promise<{ key: string; size: number }[]> {
    const found: { key: string; size: number }[] = [];
    for (let token: string | null = null; ; ) {
      const page = await this.store.list({ prefix, ...(token === null ? {} : { token }) });
      for (const { key, size } of page.objects) if (key === prefix || key.startsWith(`${prefix}/`)) found.push({ key, size });
      if ((token = page.next) === null) return found;
    }
  }

  /** The object `name`, or what is below it; markers of directories do not count. */
  async stored(name: string): Promise<Stored> {
    const files = (await this.#keys(name)).filter(({ key }) => !key.endsWith('/'));
    return { objects: files.length, bytes: files.reduce((sum, { size }) => sum + size, 0) };
  }

  /** Whether a page of an object is what the guest wrote there. */
  async holds(key: string, offset: number, bytes: number, seed: number): Promise<boolean> {
    const into = new Uint8Array(bytes);
    const got = await this.store.read(key, { offset, into });
    return got === bytes && Buffer.compare(into, content(offset, bytes, seed)) === 0;
  }

  /** Removes `name` and all below, and gives up uploads that nobody completes. */
  async remove(name: string): Promise<void> {
    const keys = await this.#keys(name);
    await each(keys.length, CALLS, (index) => this.store.remove(keys[index].key));
    const { uploads } = await this.store.listUploads({ prefix: name });
    await each(uploads.length, CALLS, (index) => this.store.abortUpload(uploads[index]));
  }
}
