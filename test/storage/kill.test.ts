/**
 * What was acknowledged survives the daemon. A guest changes files of a bucket at random; at a random moment the daemon is killed with
 * SIGKILL, while requests are in flight. Another one starts on the same cache directory, or `bucketfsd recover` runs; sometimes it is
 * killed as well. When the last one has ended by itself the cache directory is removed, and the bucket, read by another client, has to be
 * what the guest was told: each WRITE that was answered, whether fsynced or not, each name, mode and time. Only the one request that
 * was not answered may have happened or not.
 *
 *   SEED=123 BUCKETFSD_KILL_POINTS=1 node --test build/test/storage/kill.test.js      # one point of each row again, or nearly
 */
import assert from 'node:assert/strict';
import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { setImmediate as turn, setTimeout as sleep } from 'node:timers/promises';
import { after, describe, test } from 'node:test';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { Random } from '../model/random.js';
import { DaemonProcess, killDaemons } from '../support/daemon.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { FuseClient, OP } from '../support/guest.js';
import { Bytes, DEFAULT_FILE_MODE, Manifest, readBucket, type Change, type FileNode } from '../support/manifest.js';
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js';
import { Rgw } from '../support/rgw.js';
import { PROFILES, Workload, noise } from '../support/workload.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);
const POINTS = process.env['BUCKETFSD_KILL_POINTS'] === undefined ? null : Number(process.env['BUCKETFSD_KILL_POINTS']);
/** Points at the same time: the daemons wait for the server, and for each other. */
const LANES = 3;
const REQUESTS_MAX = 2000;
/** A commit may wait for two others, on a busy machine. */
const PATIENCE_MS = 50_000;
const MIB = 1 << 20;
const ROOT = 1n;

type Durability = 'remote' | 'writeback';

/** All rows together, in CI: what BUCKETFSD_KILL_POINTS does not shorten. */
const POINTS_LEAST = 100;

class Totals {
  /** Kills while the guest was changing files, and kills of daemons that were to recover from those. */
  points = 0;
  again = 0;
  recovered = 0;
  changes = 0;
  inFlight = 0;
  uploads = 0;
  readonly lost: string[] = [];

  add(other: Totals): void {
    for (const field of ['points', 'again', 'recovered', 'changes', 'inFlight', 'uploads'] as const) this[field] += other[field];
    this.lost.push(...other.lost);
  }

  toString(): string {
    const { points, again, recovered, changes, inFlight, uploads, lost } = this;
    return `kill -9: points ${points}, recovered ${recovered}, lost ${lost.length} (seed ${SEED}; ${changes} changes acknowledged, ${inFlight} in flight, ` +
      `${again} more kills during recovery, ${uploads} uploads left)`;
  }
}

after(killDaemons);

/** A prefix of its own in the bucket, a cache directory, and the daemons that have them one after the other. */
class Point {
  readonly random: Random;
  readonly prefix: string;
  readonly manifest = new Manifest();
  readonly #directory = mkdtempSync(join(tmpdir(), 'bucketfsd-kill-'));
  readonly #cache = join(this.#directory, 'cache');
  #daemons = 0;

  constructor(
    readonly provider: Provider,
    readonly durability: Durability,
    readonly seed: number,
  ) {
    this.random = new Random(seed);
    this.prefix = `point-${durability}-${seed}/`;
  }

  async run(totals: Totals): Promise<void> {
    try {
      const profile = this.random.pick(['mixed', 'mixed', 'mixed', 'mixed', 'names', 'names', 'stream', 'edit'] as const);
      await this.#fill(profile === 'edit');
      const { trace, pending, changes } = await this.#killedWhile(profile);
      totals.points++;
      totals.changes += changes;
      if (pending !== null) totals.inFlight++;
      totals.again += await this.#recover(pending);
      rmSync(this.#cache, { recursive: true });
      const lost = this.manifest.differences(await readBucket(this.provider.store, this.prefix), pending);
      totals.uploads += (await this.provider.store.listUploads({ prefix: this.prefix })).uploads.length;
      if (lost.length > 0) {
        const way = `${this.provider.source}, ${this.durability}, ${profile}, seed ${this.seed}`;
        totals.lost.push(`${way}: ${lost.slice(0, 10).join('; ')}\n  not acknowledged: ${pending === null ? 'nothing' : say(pending)}\n  ${trace.join('\n  ')}`);
      } else {
        totals.recovered++;
        for (const key of (await readBucket(this.provider.store, this.prefix)).keys()) await this.provider.store.remove(this.prefix + key);
      }
    } finally {
      rmSync(this.#directory, { recursive: true, force: true });
    }
  }

  /** What is there before the daemon is; of other tools, that know no modes. */
  async #fill(large: boolean): Promise<void> {
    const put = async (path: string, bytes: number): Promise<void> => {
      const content = noise(this.random, bytes);
      await this.provider.store.put(this.prefix + path, content);
      this.manifest.apply({ does: 'make', path, node: { kind: 'file', bytes: Bytes.of(content), mode: DEFAULT_FILE_MODE, mtime_s: null } });
    };
    this.manifest.apply({ does: 'make', path: 'old', node: { kind: 'directory', mode: null } });
    await put('old/empty', 0);
    await put('old/small', 1 + this.random.below(5000));
    await put('top', 300_000);
    if (large) await put('large', (12 + this.random.below(12)) * MIB + this.random.below(1000));
  }

  #arguments(socket: string): string[] {
    const { provider, prefix, durability } = this;
    const delay_s = durability === 'writeback' ? ['--writeback-delay', String(this.random.below(2))] : [];
    return ['--socket-path', socket, '--source', `${provider.source}/${prefix}`, ...provider.options, '--durability', durability, '--cache-dir', this.#cache, ...delay_s];
  }

  /** A daemon that has been started, and may not serve yet. */
  #spawn(): { daemon: DaemonProcess; socket: string } {
    const socket = join(this.#directory, `socket-${this.#daemons++}`);
    return { daemon: new DaemonProcess(this.#arguments(socket), { env: { ...this.provider.env } }), socket };
  }

  async #start(): Promise<{ daemon: DaemonProcess; client: FuseClient }> {
    const { daemon, socket } = this.#spawn();
    await daemon.until(/"sharing /);
    const client = new FuseClient(socket);
    client.queue.patience_ms = PATIENCE_MS;
    await client.begin();
    return { daemon, client };
  }

  /** Changes of a guest, until the daemon is killed at some moment: after some answers, then some time. */
  async #killedWhile(profile: keyof typeof PROFILES): Promise<{ trace: readonly string[]; pending: Change | null; changes: number }> {
    const { daemon, client } = await this.#start();
    const workload = new Workload(client, this.manifest, this.random, PROFILES[profile]);
    const replies = this.random.below(profile === 'stream' ? 60 : 100);
    const turns = this.random.below(30);
    const delay_ms = this.random.pick([0, 0, 1, 1 + this.random.below(5), this.random.below(50), this.random.below(250)]);
    let killed: Promise<void> | null = null;
    const kill = async (): Promise<void> => {
      for (let i = 0; i < turns; i++) await turn();
      if (delay_ms > 0) await sleep(delay_ms);
      const ended = await daemon.stop('SIGKILL');
      client.queue.abandon();
      assert.deepEqual(ended, { code: null, signal: 'SIGKILL' }, `it was to be killed, but had ended: ${daemon.stderr}`);
    };
    try {
      await workload.run(REQUESTS_MAX, (count) => {
        if (count >= replies) killed ??= kill();
      });
      assert.ok(killed !== null, 'the daemon was to be killed');
    } catch (error) {
      throw new Error(`seed ${this.seed}, ${this.durability}, ${profile}: ${(error as Error).message}\n${daemon.stderr}`, { cause: error });
    } finally {
      await killed;
      await daemon.stop('SIGKILL');
      client.leave();
    }
    return { trace: workload.trace, pending: workload.pending, changes: workload.changes };
  }

  /** @returns how often somebody was killed meanwhile */
  async #recover(pending: Change | null): Promise<number> {
    let killed = 0;
    while (killed < 3 && this.random.chance(20)) {
      const { daemon } = this.#spawn();
      await sleep(this.random.below(1200));
      const ended = await daemon.stop('SIGKILL');
      assert.equal(ended.signal, 'SIGKILL', `a restart failed: ${daemon.stderr}`);
      killed++;
    }
    if (this.random.chance(15)) await this.#recoverByCommand();
    else await this.#recoverByRestart(pending);
    return killed;
  }

  async #recoverByCommand(): Promise<void> {
    const daemon = new DaemonProcess(['recover', '--cache-dir', this.#cache, '--endpoint', this.provider.options[this.provider.options.indexOf('--endpoint') + 1]], { env: { ...this.provider.env } });
    const { code } = await daemon.ended;
    assert.equal(code, 0, `bucketfsd recover, seed ${this.seed}: ${daemon.stderr}`);
  }

  async #recoverByRestart(pending: Change | null): Promise<void> {
    const { daemon, client } = await this.#start();
    try {
      if (this.random.chance(50)) await this.#read(client, pending);
    } catch (error) {
      throw new Error(`seed ${this.seed}, ${this.durability}: ${(error as Error).message}\n${daemon.stderr}`, { cause: error });
    } finally {
      client.leave();
      const { code } = await daemon.stop();
      assert.equal(code, 0, `the end after recovery, seed ${this.seed}: ${daemon.stderr}`);
    }
  }

  /** The guest that comes next finds what the one before was told. */
  async #read(client: FuseClient, pending: Change | null): Promise<void> {
    for (const [path, node] of this.manifest.nodes) {
      if (node.kind !== 'file' || touches(pending, path, node)) continue;
      let at = ROOT;
      for (const part of path.split('/')) at = (await client.lookup(at, part)).node;
      const fh = await client.open(at, 0);
      const expected = node.bytes.view;
      for (let offset = 0; offset <= expected.length; offset += MIB) {
        const { error, data } = await client.read(at, fh, offset, MIB);
        assert.equal(error, 0, `reading ${path} at ${offset}`);
        const found = Buffer.from(data.buffer, data.byteOffset, data.byteLength);
        assert.ok(found.equals(expected.subarray(offset, offset + MIB)), `${path} at ${offset}, after recovery: ${found.length} bytes that differ`);
      }
      await client.call(OP.RELEASE, at, concat(u64(fh), u32(0, 0), u64(0)), 0);
    }
  }
}

/** Whether a change is about what has this name. */
function touches(change: Change | null, path: string, node: FileNode): boolean {
  if (change === null) return false;
  const within = (top: string): boolean => path === top || path.startsWith(`${top}/`);
  switch (change.does) {
    case 'make':
    case 'remove':
      return within(change.path);
    case 'rename':
      return within(change.from) || within(change.to);
    default:
      return change.file === node;
  }
}

function say(change: Change): string {
  return JSON.stringify(change, (key, value: unknown) => (value instanceof Uint8Array ? `${value.length} bytes` : key === 'file' || key === 'node' ? undefined : value));
}

/** Of every row that ran. */
const all = new Totals();

async function killPoints(provider: Provider, durability: Durability, points: number, row: number): Promise<Totals> {
  const totals = new Totals();
  let next = 0;
  let failed = false;
  const lane = async (): Promise<void> => {
    try {
      while (next < points && !failed) await new Point(provider, durability, (SEED + row * 10_000 + next++) % 2 ** 31).run(totals);
    } catch (error) {
      failed = true;
      throw error;
    }
  };
  const ended = await Promise.allSettled(Array.from({ length: Math.min(LANES, points) }, lane));
  for (const one of ended) if (one.status === 'rejected') throw one.reason;
  return totals;
}

function suite(what: string, skip: string | false, points: number, row: number, open: () => Promise<Provider>): void {
  for (const [i, durability] of (['remote', 'writeback'] as const).entries()) {
    test(`what was acknowledged survives kill -9: ${what}, durability ${durability}`, { skip }, async (context) => {
      const provider = await open();
      try {
        const totals = await killPoints(provider, durability, POINTS ?? points, row + i);
        context.diagnostic(String(totals));
        all.add(totals);
        assert.equal(totals.lost.length, 0, totals.lost.join('\n'));
        assert.equal(totals.recovered, POINTS ?? points);
      } finally {
        await provider.stop();
      }
    });
  }
}

describe('the comparison sees', () => {
  const bytes = Buffer.from('0123456789');
  const file = (): FileNode => ({ kind: 'file', bytes: Bytes.of(bytes), mode: 0o644, mtime_s: null });

  async function differences(change: (store: MemoryStore) => Promise<unknown>, pending?: (f: FileNode) => Change): Promise<string[]> {
    const store = new MemoryStore();
    const manifest = new Manifest();
    const f = file();
    await store.put('p/f', bytes, { metadata: { mode: '33188', mtime: '5' } });
    manifest.apply({ does: 'make', path: 'f', node: f });
    await store.put('p/d/', new Uint8Array(0));
    manifest.apply({ does: 'make', path: 'd', node: { kind: 'directory', mode: 0o755 } });
    await change(store);
    return manifest.differences(await readBucket(store, 'p/'), pending?.(f) ?? null);
  }
  const put = (content: string, metadata: Record<string, string> = {}) => (store: MemoryStore): Promise<unknown> => store.put('p/f', Buffer.from(content), { metadata });

  test('nothing where there is nothing', async () => assert.deepEqual(await differences(async () => undefined), []));
  test('a byte, a missing end, a mode', async () => {
    assert.match((await differences(put('0123456x89')))[0], /from 7 to 8/);
    assert.match((await differences(put('012345678')))[0], /9 bytes, not 10/);
    assert.match((await differences(put('0123456789', { mode: '33184' })))[0], /mode/);
  });
  test('what is missing, and what is too much', async () => {
    assert.deepEqual(await differences((store) => store.remove('p/f')), ['f is not there']);
    assert.deepEqual(await differences((store) => store.remove('p/d/')), ['the directory d is not there']);
    assert.deepEqual(await differences((store) => store.put('p/.bucketfsd-conflicts/f.1', bytes)), ['.bucketfsd-conflicts/f.1 is there']);
  });
  test('of a write in flight any part, but nothing else', async () => {
    const pending = (f: FileNode): Change => ({ does: 'write', file: f, offset: 8, data: Buffer.from('ABCD') });
    for (const good of ['0123456789', '01234567ABCD', '0123456789CD', '01234567AB']) assert.deepEqual(await differences(put(good), pending), [], good);
    for (const bad of ['01234567xBCD', '0123x567ABCD', '01234567ABC', '012345678']) assert.notDeepEqual(await differences(put(bad), pending), [], bad);
  });
  test('of another change in flight all or nothing', async () => {
    const pending = (): Change => ({ does: 'rename', from: 'f', to: 'd/g' });
    assert.deepEqual(await differences(put('0123456789'), pending), []);
    assert.deepEqual(await differences((store) => store.put('p/d/g', bytes).then(() => store.remove('p/f')), pending), []);
    assert.notDeepEqual(await differences((store) => store.put('p/d/g', bytes), pending), []);
    assert.notDeepEqual(await differences((store) => store.remove('p/f'), pending), []);
  });
});

suite('Google Cloud Storage (a server of the tests)', false, 40, 0, () => gcsProvider('kill'));
suite('S3 (Ceph RGW)', Rgw.unavailable(), 16, 2, () => s3Provider('kill'));

test('of all points nothing is lost', (context) => {
  context.diagnostic(String(all));
  assert.equal(all.lost.length, 0);
  assert.equal(all.recovered, all.points);
  if (POINTS === null && Rgw.unavailable() === false) assert.ok(all.points >= POINTS_LEAST, `${all.points} points`);
});
