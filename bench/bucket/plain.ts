/**
 * The limit: the same work as plain calls of the ObjectStore, with nothing around them. A process of its own that speaks as
 * `vufs guest` does: a line when it is ready, a line after each pass, and on with each line of standard input.
 */
import { once } from 'node:events';
import { createInterface } from 'node:readline';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import type { Part } from '../../src/storage/object/store.js';
import { content, flatName, SMALL_FILE_BYTES, SOURCE_BYTES, sourceName } from './content.js';
import type { Bucket } from './contenders.js';
import { each } from './each.js';
import type { Job } from './rows.js';

export interface PlainTask {
  readonly bucket: Bucket;
  readonly job: Job['job'];
  readonly path: string;
  /** Of the large object, and of one random read. */
  readonly size: number;
  readonly bs: number;
  /** Files, entries or reads. */
  readonly count: number;
  readonly limit_s: number;
}

/** Large objects go in pieces of this size, so many at a time. */
const PIECE_BYTES = 8 << 20;
const PIECES = 8;

const task = JSON.parse(process.argv[2]) as PlainTask;
const { bucket, path, size, count } = task;
const store = new S3Store({ bucket: bucket.name, endpoint: bucket.endpoint, region: 'us-east-1', pathStyle: true, credentials: bucket });
const go = createInterface({ input: process.stdin });

class Pass {
  done = 0;
  bytes = 0;
  readonly #begun = performance.now();

  constructor(readonly name: string, readonly total: number) {}

  get late(): boolean {
    return performance.now() - this.#begun > task.limit_s * 1000;
  }

  add(done: number, bytes: number): void {
    this.done += done;
    this.bytes += bytes;
  }

  finish(): void {
    const { name, total, done, bytes } = this;
    const seconds = (performance.now() - this.#begun) / 1000;
    process.stdout.write(`${JSON.stringify({ pass: name, seconds, done, total, bytes, complete: done === total, errors: 0, bad_data: 0, anomalies: 0, first_error: '' })}\n`);
  }
}

/** Waits to be told, works, tells. */
async function pass(name: string, total: number, work: (pass: Pass) => Promise<void>): Promise<void> {
  await once(go, 'line');
  const one = new Pass(name, total);
  await work(one);
  one.finish();
}

/** One after the other, as the guest does it. */
async function inTurn(one: Pass, work: (index: number) => Promise<number>): Promise<void> {
  for (let index = 0; index < one.total && !one.late; index++) one.add(1, await work(index));
}

const pieces = Math.ceil(size / PIECE_BYTES);
const pieceBytes = (index: number): number => Math.min(PIECE_BYTES, size - index * PIECE_BYTES);

async function readLarge(one: Pass): Promise<void> {
  await each(pieces, PIECES, async (index) => {
    if (one.late) return;
    const got = await store.read(path, { offset: index * PIECE_BYTES, into: new Uint8Array(pieceBytes(index)) });
    one.add(got, got);
  });
}

async function writeLarge(one: Pass): Promise<void> {
  const upload = await store.beginUpload(path);
  const parts: Part[] = [];
  await each(pieces, PIECES, async (index) => {
    if (one.late) return;
    parts[index] = await store.putPart(upload, index + 1, content(index * PIECE_BYTES, pieceBytes(index), 0));
    one.add(pieceBytes(index), pieceBytes(index));
  });
  await store.completeUpload(upload, parts.filter((part) => part !== undefined));
}

async function put(key: string, bytes: number, seed: number): Promise<number> {
  await store.put(`${path}/${key}`, content(0, bytes, seed));
  return bytes;
}

async function list(one: Pass): Promise<void> {
  for (let token: string | null = null; !one.late; ) {
    const page = await store.list({ prefix: `${path}/`, ...(token === null ? {} : { token }) });
    one.add(page.objects.length, 0);
    if ((token = page.next) === null) return;
  }
}

function randomReads(one: Pass): Promise<void> {
  const into = new Uint8Array(task.bs);
  const blocks = Math.floor(size / task.bs);
  return inTurn(one, (index) => store.read(path, { offset: (Math.imul(index + 1, 0x9e3779b1) >>> 0) % blocks * task.bs, into }));
}

const JOBS: Readonly<Record<Job['job'], () => Promise<void>>> = {
  'write-file': () => pass('write', size, writeLarge),
  'read-file': () => pass('read', size, readLarge),
  'random-read': async () => {
    await pass('cold', count, randomReads);
    await pass('warm', count, randomReads);
  },
  'write-files': () => pass('write', count, (one) => inTurn(one, (index) => put(flatName(index), SMALL_FILE_BYTES, index))),
  'read-files': () => pass('read', count, (one) => inTurn(one, (index) => store.read(`${path}/${flatName(index)}`, { offset: 0, into: new Uint8Array(SMALL_FILE_BYTES) }))),
  find: () => pass('find', count, list),
  list: () => pass('list', count, list),
  untar: () => pass('untar', count, (one) => inTurn(one, (index) => put(sourceName(index), SOURCE_BYTES[index % SOURCE_BYTES.length], index))),
};

await store.check();
process.stdout.write('{"ready":true}\n');
await JOBS[task.job]();
await once(go, 'line');
go.close();
await store.close();
