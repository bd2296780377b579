/**
 * One file of a bucket under random reads and writes, each checked against memory: write, truncate, allocate, punch holes, close and open,
 * fsync, forget and look up, and the daemon ended or killed and started anew on its cache directory. After an fsync of durability `remote`,
 * and whenever the daemon has ended by itself, another client has to read the same. Files are small, larger, and so large that commits
 * are uploads in parts.
 *
 *   SEED=123 BUCKETFSD_FSX_SECONDS=600 node --test build/test/storage/fsx.test.js       # 600 s in all, the first sequence from that seed
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { Random } from '../model/random.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, OP } from '../support/guest.js';
import { Bytes, readBucket } from '../support/manifest.js';
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js';
import { Rgw } from '../support/rgw.js';
import { noise } from '../support/workload.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const SECONDS = Number(process.env['BUCKETFSD_FSX_SECONDS'] ?? 60);
/** Of one sequence, and of all of a provider. */
const OPERATIONS = 200;
const OPERATIONS_MAX = 40_000;
const PATIENCE_MS = 50_000;
const KIB = 1 << 10;
const MIB = 1 << 20;
const ROOT = 1n;
const NAME = 'file';
const FATTR_SIZE_FH = 8 | 64;
/** fallocate(2): as is, without growing, and a hole. */
const ALLOCATE = 0;
const KEEP_SIZE = 1;
const PUNCH_HOLE = 3;
const SEEK_DATA = 3;
const SEEK_HOLE = 4;

interface Shape {
  readonly fileBytes: number;
  readonly ioBytes: number;
}

const SHAPES: readonly Shape[] = [
  { fileBytes: 64 * KIB, ioBytes: 16 * KIB },
  { fileBytes: 64 * KIB, ioBytes: 16 * KIB },
  { fileBytes: MIB, ioBytes: 128 * KIB },
  { fileBytes: MIB, ioBytes: 128 * KIB },
  { fileBytes: 28 * MIB, ioBytes: MIB },
];

const STEPS = [
  ...Array<'read'>(25).fill('read'), ...Array<'write'>(30).fill('write'), ...Array<'append'>(6).fill('append'), ...Array<'truncate'>(7).fill('truncate'),
  ...Array<'punch'>(6).fill('punch'), ...Array<'allocate'>(4).fill('allocate'), ...Array<'seek'>(3).fill('seek'), ...Array<'reopen'>(8).fill('reopen'),
  ...Array<'fsync'>(5).fill('fsync'), ...Array<'forget'>(3).fill('forget'), 'restart', 'kill', 'whole',
] as const;
type Step = (typeof STEPS)[number];

after(killDaemons);

class Sequence {
  readonly random: Random;
  readonly expected = new Bytes();
  readonly trace: string[] = [];
  readonly shape: Shape;
  readonly durability: 'remote' | 'writeback';
  readonly #directory = mkdtempSync(join(tmpdir(), 'bucketfsd-fsx-'));
  readonly #prefix: string;
  #daemon!: DaemonProcess;
  #client!: FuseClient;
  #node = 0n;
  #fh = 0n;
  #sockets = 0;

  constructor(
    readonly provider: Provider,
    readonly seed: number,
  ) {
    this.random = new Random(seed);
    this.shape = this.random.pick(SHAPES);
    this.durability = this.random.pick(['remote', 'writeback']);
    this.#prefix = `fsx-${seed}/`;
  }

  /** @returns how many operations were done and found right */
  async run(until_ms: number): Promise<number> {
    let done = 0;
    try {
      await this.#begin();
      for (; done < OPERATIONS && performance.now() < until_ms; done++) await this.#step(this.random.pick(STEPS));
      await this.#restart('SIGTERM');
      await this.#whole();
      return done;
    } catch (error) {
      const log = this.#daemon?.stderr.split('\n').slice(-10).join('\n');
      const what = `${this.provider.source}, ${this.durability}, at most ${this.shape.fileBytes} bytes, seed ${this.seed}, operation ${done}`;
      throw new Error(`${what}: ${(error as Error).message}\n${this.trace.join('\n')}\n${log}`, { cause: error });
    } finally {
      await this.#daemon?.stop('SIGKILL');
      this.#client?.leave();
      for (const key of (await readBucket(this.provider.store, this.#prefix)).keys()) await this.provider.store.remove(this.#prefix + key);
      rmSync(this.#directory, { recursive: true, force: true });
    }
  }

  /** The file may be there before, by somebody else. */
  async #begin(): Promise<void> {
    if (this.random.chance(50)) {
      this.expected.write(0, noise(this.random, 1 + this.random.below(this.shape.fileBytes)));
      await this.provider.store.put(this.#prefix + NAME, this.expected.view);
      await this.#start();
      return this.#open();
    }
    await this.#start();
    const { entry, fh } = await this.#client.create(ROOT, NAME);
    this.#node = entry.node;
    this.#fh = fh;
  }

  async #start(): Promise<void> {
    const { source, options, env } = this.provider;
    const socket = join(this.#directory, `socket-${this.#sockets++}`);
    const share = ['--source', `${source}/${this.#prefix}`, ...options, '--durability', this.durability, '--cache-dir', join(this.#directory, 'cache')];
    const more = ['--memory-budget', '32', '--writeback-delay', String(this.random.below(2))];
    this.#daemon = await DaemonProcess.start(['--socket-path', socket, ...more, ...share], { env: { ...env } });
    this.#client = new FuseClient(socket);
    this.#client.queue.patience_ms = PATIENCE_MS;
    await this.#client.begin();
  }

  async #open(): Promise<void> {
    const entry = await this.#client.lookup(ROOT, NAME);
    assert.equal(entry.size, this.expected.size, 'the size that LOOKUP gives');
    this.#node = entry.node;
    this.#fh = await this.#client.open(entry.node);
  }

  async #ask(opcode: number, args: Uint8Array, room = 0): Promise<DataView> {
    const { error, data } = await this.#client.call(opcode, this.#node, args, room);
    assert.equal(error, 0);
    return data;
  }

  async #close(): Promise<void> {
    await this.#ask(OP.FLUSH, concat(u64(this.#fh), u32(0, 0), u64(0)));
    await this.#ask(OP.RELEASE, concat(u64(this.#fh), u32(2, 0), u64(0)));
  }

  #say(line: string): void {
    this.trace.push(line);
    if (this.trace.length > 25) this.trace.shift();
  }

  async #step(step: Step): Promise<void> {
    const { random, shape, expected } = this;
    const { size } = expected;
    const offset = random.below(Math.min(shape.fileBytes, size + shape.ioBytes));
    const bytes = 1 + random.below(Math.min(shape.ioBytes, shape.fileBytes - offset));
    switch (step) {
      case 'read':
        return this.#read(offset, 1 + random.below(shape.ioBytes));
      case 'write':
        return this.#write(offset, bytes);
      case 'append':
        return size + bytes <= shape.fileBytes ? this.#write(size, bytes) : undefined;
      case 'truncate':
        return this.#truncate(random.chance(15) ? 0 : random.below(shape.fileBytes));
      case 'punch':
        return this.#allocate(PUNCH_HOLE, offset, bytes);
      case 'allocate':
        return this.#allocate(random.pick([ALLOCATE, KEEP_SIZE]), offset, bytes);
      case 'seek':
        return this.#seek(offset);
      case 'fsync':
        return this.#fsync();
      case 'reopen':
        this.#say('close, open');
        await this.#close();
        this.#fh = await this.#client.open(this.#node, 2);
        return;
      case 'forget':
        this.#say('close, forget, lookup, open');
        await this.#close();
        await this.#client.call(OP.FORGET, this.#node, u64(1), 0);
        return this.#open();
      case 'restart':
        return this.#restart('SIGTERM');
      case 'kill':
        return this.#restart('SIGKILL');
      case 'whole':
        return this.#whole();
    }
  }

  async #read(offset: number, bytes: number): Promise<void> {
    this.#say(`read ${offset}+${bytes}`);
    const { error, data } = await this.#client.read(this.#node, this.#fh, offset, bytes);
    assert.equal(error, 0);
    same(Buffer.from(data.buffer, data.byteOffset, data.byteLength), this.expected.view.subarray(offset, offset + bytes), offset);
  }

  async #whole(): Promise<void> {
    for (let at = 0; at < this.expected.size; at += MIB) await this.#read(at, MIB);
  }

  async #write(offset: number, bytes: number): Promise<void> {
    this.#say(`write ${offset}+${bytes}`);
    const data = noise(this.random, bytes);
    const { error, data: answer } = await this.#client.write(this.#node, this.#fh, offset, data);
    assert.deepEqual([error, answer.byteLength > 0 ? answer.getUint32(0, true) : 0], [0, bytes]);
    this.expected.write(offset, data);
  }

  async #truncate(size: number): Promise<void> {
    this.#say(`truncate ${this.expected.size} to ${size}`);
    const data = await this.#ask(OP.SETATTR, concat(u32(FATTR_SIZE_FH, 0), u64(this.#fh, size, 0, 0, 0, 0), new Uint8Array(32)), 104);
    // struct fuse_attr_out: attr from 16 on, its size at 8
    assert.equal(Number(data.getBigUint64(24, true)), size, 'the size that SETATTR gives');
    this.expected.truncate(size);
  }

  async #allocate(mode: number, offset: number, bytes: number): Promise<void> {
    this.#say(`fallocate ${mode} ${offset}+${bytes}`);
    const { error } = await this.#client.call(OP.FALLOCATE, this.#node, concat(u64(this.#fh, offset, bytes), u32(mode, 0)), 0);
    // Objects have no room that could be set aside
    assert.ok(error === 0 || (mode === KEEP_SIZE && error === -E.OPNOTSUPP), `fallocate: ${error}`);
    if (mode === PUNCH_HOLE) this.expected.zero(offset, offset + bytes);
    if (mode === ALLOCATE && offset + bytes > this.expected.size) this.expected.truncate(offset + bytes);
  }

  /** What SEEK_DATA passes over is zeros, and SEEK_HOLE ends at the end at the latest. */
  async #seek(offset: number): Promise<void> {
    const { size, view } = this.expected;
    if (offset >= size) return;
    this.#say(`seek ${offset}`);
    const ask = (whence: number) => this.#client.call(OP.LSEEK, this.#node, concat(u64(this.#fh, offset), u32(whence, 0)), 8);
    const data = await ask(SEEK_DATA);
    const at = data.error === -E.NXIO ? size : Number(data.data.getBigUint64(0, true));
    assert.ok(data.error === 0 || data.error === -E.NXIO, `SEEK_DATA: ${data.error}`);
    assert.ok(at >= offset && at <= size && view.subarray(offset, at).every((byte) => byte === 0), `SEEK_DATA from ${offset} is ${at}`);
    const hole = await ask(SEEK_HOLE);
    assert.equal(hole.error, 0, 'SEEK_HOLE');
    const to = Number(hole.data.getBigUint64(0, true));
    assert.ok(to >= offset && to <= size, `SEEK_HOLE from ${offset} is ${to}`);
  }

  async #fsync(): Promise<void> {
    this.#say('fsync');
    await this.#ask(OP.FSYNC, concat(u64(this.#fh), u32(this.random.below(2), 0)));
    if (this.durability === 'remote') await this.#elsewhere();
  }

  /** Another client reads what is here. */
  async #elsewhere(): Promise<void> {
    const content = Buffer.alloc(this.expected.size + 1);
    const read = await this.provider.store.read(this.#prefix + NAME, { offset: 0, into: content });
    same(content.subarray(0, read), this.expected.view, 0);
  }

  async #restart(signal: 'SIGTERM' | 'SIGKILL'): Promise<void> {
    this.#say(signal);
    const orderly = signal === 'SIGTERM';
    if (orderly) await this.#close();
    this.#client.disconnect();
    const { code } = await this.#daemon.stop(signal);
    this.#client.free();
    if (orderly) {
      assert.equal(code, 0, 'the exit code');
      await this.#elsewhere();
    }
    await this.#start();
    await this.#open();
  }
}

function same(actual: Buffer, expected: Buffer, offset: number): void {
  assert.equal(actual.length, expected.length, 'bytes');
  if (actual.equals(expected)) return;
  const at = actual.findIndex((byte, i) => byte !== expected[i]);
  assert.fail(`at ${offset + at}: ${actual.subarray(at, at + 8).toString('hex')} instead of ${expected.subarray(at, at + 8).toString('hex')}`);
}

function suite(what: string, skip: string | false, seed: number, open: () => Promise<Provider>): void {
  test(`random reads and writes are what memory says: ${what}`, { skip }, async (context) => {
    const provider = await open();
    try {
      const until_ms = performance.now() + (SECONDS / 2) * 1000;
      let [operations, sequences] = [0, 0];
      for (; operations < OPERATIONS_MAX && (sequences === 0 || performance.now() < until_ms); sequences++) {
        operations += await new Sequence(provider, (seed + sequences) % 2 ** 31).run(until_ms);
      }
      context.diagnostic(`${operations} operations in ${sequences} sequences (seed ${seed})`);
      assert.ok(operations > 0);
    } finally {
      await provider.stop();
    }
  });
}

suite('Google Cloud Storage (a server of the tests)', false, SEED, () => gcsProvider('fsx'));
suite('S3 (Ceph RGW)', Rgw.unavailable(), SEED, () => s3Provider('fsx'));
