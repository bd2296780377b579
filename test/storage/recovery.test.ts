/**
 * What a start does with what the last run has left: it serves the guest first, whatever is left to be done, needs no more memory or stack for
 * many files than for few, and knows what has got into the bucket although nothing here says so.
 */
import assert from 'node:assert/strict';
import { existsSync, mkdtempSync, mkdirSync, rmSync, unlinkSync, writeFileSync, readdirSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { Journal } from '../../src/storage/object/journal.js';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { Attributes, JournalRecord } from '../../src/storage/object/write/records.js';
import { FaultyStore } from '../../src/storage/object/stores/faulty.js';
import { ObjectGuest } from '../support/object-guest.js';
import { Files, ROOT } from '../support/object-files.js';
import { Guest, objectOf } from '../support/writing-guest.js';

const MEMORY = existsSync('/dev/shm') ? '/dev/shm' : tmpdir();
const O_RDWR = 2;
const bytes = (text: string): Buffer => Buffer.from(text);
const directoryOf = (): string => mkdtempSync(join(MEMORY, 'bucketfsd-recovery-'));

const TIME = { seconds: 1, nanoseconds: 0 };
const ATTRIBUTES: Attributes = { mode: 0o100644, uid: 0, gid: 0, rdev: 0, mtime: TIME, atime: TIME, ctime: TIME, symlink: null, xattrs: {}, kept: {}, headers: {} };

test('the guest is served before any of 1,000 files of the last run is in the bucket, or was asked for', async () => {
  const memory = new MemoryStore();
  const cacheDirectory = directoryOf();
  const write = { cacheDirectory, durability: 'writeback', writebackDelay_ms: 3_600_000 } as const;
  const first = await ObjectGuest.start(memory, { write });
  const files = new Files(first);
  for (let n = 0; n < 1000; n++) assert.equal(await files.write(await files.create(`f${n}`), 0, bytes(`content ${n}`)), 0);
  await first.kill();
  let calls = 0;
  let release = (): void => undefined;
  const held = new Promise<void>((resolve) => (release = resolve));
  const store = intercept(memory, async (call, attempt) => {
    calls++;
    await held;
    return attempt(call.signal);
  });
  const second = await ObjectGuest.start(store, { write: { ...write, writebackDelay_ms: 0 }, metadataTtl_ms: 60_000 });
  assert.ok(calls <= 16, `${calls} calls at the same time`);
  const { size, node } = await second.lookup(ROOT, 'f999');
  assert.equal(size, 'content 999'.length);
  assert.equal(String(await new Files(second).read({ node, fh: await second.open(node, O_RDWR) })), 'content 999');
  assert.equal(second.recovered.filter((line) => line.startsWith('goes on: ')).length, 21, 'a line for each of 20, and one for all others');
  release();
  await second.opened.idle();
  assert.equal(await second.close(), 0);
  for (let n = 0; n < 1000; n++) assert.equal(String(await objectOf(memory, `f${n}`)), `content ${n}`);
  rmSync(cacheDirectory, { recursive: true });
});

test('130,000 files of the last run are taken up', async () => {
  const cacheDirectory = directoryOf();
  mkdirSync(join(cacheDirectory, 'staging'));
  const { journal } = Journal.open<JournalRecord>(join(cacheDirectory, 'journal'), () => undefined);
  journal.rewrite((function* () {
    for (let id = 1; id <= 130_000; id++) {
      const staged = [{ from: 0, to: 1 }];
      yield { t: 'file', id, token: `token${id}`, key: `d${id % 100}/f${id}`, base: null, size: 1, objectBytes: 0, staged, attributes: ATTRIBUTES, doubts: [] } as const;
    }
  })());
  journal.close();
  for (let id = 1; id <= 130_000; id++) writeFileSync(join(cacheDirectory, 'staging', String(id)), 'x');
  const faulty = new FaultyStore(new MemoryStore());
  const g = await ObjectGuest.start(faulty.store, { write: { cacheDirectory, durability: 'writeback', writebackDelay_ms: 3_600_000 }, metadataTtl_ms: 60_000 });
  assert.equal(g.opened.left().files, 130_000);
  assert.equal((await g.lookup((await g.lookup(ROOT, 'd0')).node, 'f130000')).size, 1);
  await g.kill();
  rmSync(cacheDirectory, { recursive: true });
});

test('a staging file that is gone is no obstacle if its data has got into the bucket; if not, the start says which it is, and changes nothing', async () => {
  const memory = new MemoryStore();
  const cacheDirectory = directoryOf();
  const write = { cacheDirectory, durability: 'writeback', writebackDelay_ms: 3_600_000 } as const;
  const first = new Guest(await ObjectGuest.start(memory, { write }));
  for (const file of ['in', 'out']) await first.put(file, bytes(`content of ${file}`));
  await first.g.kill();
  const records: JournalRecord[] = [];
  Journal.read<JournalRecord>(join(cacheDirectory, 'journal'), (record) => records.push(record));
  const idOf = (key: string): { id: number; token: string } => {
    const record = records.find((one) => one.t === 'file' && one.key === key);
    assert.ok(record?.t === 'file' && record.token !== undefined);
    return { id: record.id, token: record.token };
  };
  // As a commit that nobody has heard of leaves it
  await memory.put('in', bytes('content of in'), { metadata: { 'bucketfsd-commit': `${idOf('in').token}.commit` } });
  unlinkSync(join(cacheDirectory, 'staging', String(idOf('in').id)));
  const second = await ObjectGuest.start(memory, { write });
  assert.match(second.recovered.join('\n'), /memory:\/in had been written/);
  await second.kill();
  const path = join(cacheDirectory, 'staging', String(idOf('out').id));
  unlinkSync(path);
  await assert.rejects(ObjectGuest.start(memory, { write }), (error: Error) => error.message.includes(`${path} is missing, which has data of memory:/out that is nowhere else`));
  writeFileSync(path, 'content of out');
  const third = await ObjectGuest.start(memory, { write });
  assert.equal(await third.close(), 0);
  assert.equal(String(await objectOf(memory, 'out')), 'content of out');
  assert.equal(String(await objectOf(memory, 'in')), 'content of in');
  rmSync(cacheDirectory, { recursive: true });
});

for (const [what, count, detail] of [['certainly', 3000, {}], ['perhaps', 300, { ambiguous: true }]] as const) {
  test(`an fsync that has ${what} failed ${count} times leaves as much as one that has failed once, and is done at last`, async () => {
    const memory = new MemoryStore();
    const faulty = new FaultyStore(memory);
    const cacheDirectory = directoryOf();
    const write = { cacheDirectory };
    const first = new Guest(await ObjectGuest.start(faulty.store, { write }));
    const { entry: { node }, fh } = await first.g.create(ROOT, 'f');
    for (let n = 0; n < count; n++) {
      await first.write(node, fh, n, bytes('x'));
      faulty.inject({ operation: 'put', nth: 1, fault: { kind: 'before', code: 'denied', detail } });
      assert.equal(await first.fsync(node, fh), -E.ACCES);
    }
    await first.g.kill();
    const second = await ObjectGuest.start(memory, { write });
    while (readdirSync(cacheDirectory).includes('journal.new')) await turn();
    let records = 0;
    Journal.read<JournalRecord>(join(cacheDirectory, 'journal'), () => records++);
    assert.ok(records < 100, `${records} records`);
    assert.equal(await second.close(), 0);
    assert.equal(String(await objectOf(memory, 'f')), 'x'.repeat(count));
    rmSync(cacheDirectory, { recursive: true });
  });
}
