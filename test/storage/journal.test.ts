/** The journal survives what it says it survives: see src/storage/object/journal.ts. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { pbkdf2 } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { Journal, JournalError } from '../../src/storage/object/journal.js';

interface Record {
  readonly n: number;
  readonly text: string;
}

let directory: string;
let files = 0;
before(() => (directory = mkdtempSync(join(tmpdir(), 'bucketfsd-journal-'))));
after(() => rmSync(directory, { recursive: true }));
const fresh = (): string => join(directory, `j${++files}`);

const record = (n: number): Record => ({ n, text: `é🎈${'x'.repeat(n * 3)}` });
const RECORDS = Array.from({ length: 6 }, (_, i) => record(i));

function written(path: string): Buffer {
  const { journal } = Journal.open<Record>(path);
  for (const one of RECORDS) journal.append(one);
  journal.close();
  return readFileSync(path);
}

function reopened(path: string): { records: Record[]; tail: number } {
  const { journal, records, tail } = Journal.open<Record>(path);
  journal.close();
  return { records, tail: tail?.bytes ?? 0 };
}

test('what was appended is there after opening again, and more can be appended', async () => {
  const path = fresh();
  written(path);
  const { journal, records } = Journal.open<Record>(path);
  assert.deepEqual(records, RECORDS);
  journal.append(record(100));
  await journal.sync();
  assert.equal(journal.bytes, readFileSync(path).length);
  journal.close();
  assert.deepEqual(reopened(path).records, [...RECORDS, record(100)]);
});

test('a sync that has nothing of its own to do waits for the one that is under way', async () => {
  const { journal } = Journal.open<Record>(fresh());
  journal.append(record(1));
  let done = false;
  void journal.sync().then(() => (done = true));
  await journal.sync();
  assert.ok(done);
  journal.close();
});

test('a sync that is under way while all is rewritten neither fails nor closes what it should not', async () => {
  const path = fresh();
  const { journal } = Journal.open<Record>(path);
  journal.append(record(1));
  // Every thread is busy, so that the sync begins when the file has been replaced
  const busy = Array.from({ length: Number(process.env['UV_THREADPOOL_SIZE'] ?? 4) }, () => promisify(pbkdf2)('', '', 50_000, 64, 'sha512'));
  const syncing = journal.sync();
  await Promise.resolve();
  journal.rewrite([record(2)]);
  await syncing;
  await Promise.all(busy);
  journal.append(record(3));
  await journal.sync();
  journal.close();
  assert.deepEqual(reopened(path).records, [record(2), record(3)]);
});

test('cut off at any byte, the whole records are there, the rest is kept aside, and it goes on', () => {
  const whole = written(fresh());
  let most = 0;
  for (let length = 0; length < whole.length; length++) {
    const path = fresh();
    writeFileSync(path, whole.subarray(0, length));
    const { records, tail } = reopened(path);
    assert.deepEqual(records, RECORDS.slice(0, records.length));
    assert.ok(records.length >= most, 'a longer file has no fewer records');
    most = records.length;
    if (tail > 0) assert.deepEqual(readFileSync(`${path}.tail`), whole.subarray(length - tail, length));
    const { journal } = Journal.open<Record>(path);
    journal.append(record(7));
    journal.close();
    assert.deepEqual(reopened(path), { records: [...records, record(7)], tail: 0 });
  }
  assert.equal(most, RECORDS.length - 1);
});

test('a flipped bit before the last record is refused and nothing changes; in the last record it is a tail', () => {
  const whole = written(fresh());
  const lastAt = whole.lastIndexOf('BFJ1');
  for (let at = 0; at < whole.length; at++) {
    const path = fresh();
    const flipped = Buffer.from(whole);
    flipped[at] ^= 1 << (at & 7);
    writeFileSync(path, flipped);
    if (at < lastAt) {
      assert.throws(() => Journal.open(path), JournalError, `byte ${at}`);
      assert.deepEqual(readFileSync(path), flipped);
    } else {
      assert.deepEqual(reopened(path).records, RECORDS.slice(0, -1), `byte ${at}`);
    }
  }
});

test('a version of the future is refused with its number, and something else than a journal too', () => {
  const path = fresh();
  writeFileSync(path, 'bucketfsd journal 2\nwhatever');
  assert.throws(() => Journal.open(path), (error: JournalError) => error.code === 'version' && error.message.includes('version 2'));
  assert.equal(readFileSync(path, 'utf8'), 'bucketfsd journal 2\nwhatever');
  writeFileSync(path, 'once upon a time there was a file that somebody loved');
  assert.throws(() => Journal.open(path), (error: JournalError) => error.code === 'damaged');
});

test('rewriting replaces all records as one step', () => {
  const path = fresh();
  written(path);
  const { journal } = Journal.open<Record>(path);
  const before = journal.bytes;
  journal.rewrite([record(1)]);
  assert.ok(journal.bytes < before && !existsSync(`${path}.new`));
  journal.append(record(2));
  journal.close();
  assert.deepEqual(reopened(path).records, [record(1), record(2)]);
});

test('a process that is killed while it appends leaves whole records, none of which it had acknowledged is missing', async () => {
  const path = fresh();
  const program = `
    import { writeSync } from 'node:fs';
    import { Journal } from ${JSON.stringify(new URL('../../src/storage/object/journal.js', import.meta.url).href)};
    const { journal } = Journal.open(${JSON.stringify(path)});
    for (let n = 0; ; n++) { journal.append({ n, text: 'x'.repeat(n % 3000) }); writeSync(1, n + '\\n'); }`;
  for (let round = 0, had = 0; round < 5; round++) {
    const child = spawn(process.execPath, ['--input-type=module', '-e', program], { stdio: ['ignore', 'pipe', 'inherit'] });
    let output = '';
    child.stdout.on('data', (data: Buffer) => (output += data.toString()));
    while (output.length < 2000) await once(child.stdout, 'data');
    child.kill('SIGKILL');
    await once(child, 'close');
    const acknowledged = output.slice(0, output.lastIndexOf('\n')).split('\n').length;
    const { records } = reopened(path);
    assert.ok(records.length - had >= acknowledged, `${records.length - had} records, ${acknowledged} acknowledged`);
    records.slice(had).forEach(({ n }, i) => assert.equal(n, i));
    had = records.length;
  }
});

test('a record that is too large is refused, and the journal is as it was', () => {
  const path = fresh();
  written(path);
  const { journal } = Journal.open<Record>(path);
  assert.throws(() => journal.append({ n: 1, text: 'x'.repeat(5 << 20) }), RangeError);
  journal.append(record(9));
  journal.close();
  assert.deepEqual(reopened(path).records, [...RECORDS, record(9)]);
});

test('a full disk fails the append with ENOSPC; what was acknowledged is there, and no part of what was not', { skip: process.geteuid!() !== 0 && 'needs root' }, () => {
  const disk = join(directory, 'small');
  mkdirSync(disk);
  assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=64k', 'small', disk]).status, 0);
  try {
    const path = join(disk, 'j');
    const { journal } = Journal.open<Record>(path);
    let acknowledged = 0;
    assert.throws(() => {
      for (; ; acknowledged++) journal.append({ n: acknowledged, text: 'x'.repeat(5000) });
    }, (error: NodeJS.ErrnoException) => error.code === 'ENOSPC');
    assert.ok(acknowledged > 5);
    assert.equal(journal.bytes, readFileSync(path).length);
    journal.close();
    const { records, tail } = reopened(path);
    assert.deepEqual([records.map(({ n }) => n), tail], [Array.from({ length: acknowledged }, (_, i) => i), 0]);
  } finally {
    spawnSync('umount', [disk]);
  }
});

test('on a full disk there is room for as much as was to be spared, and a rewrite that has none leaves everything', { skip: process.geteuid!() !== 0 && 'needs root' }, () => {
  const disk = join(directory, 'spare');
  mkdirSync(disk);
  assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', 'size=1M', 'spare', disk]).status, 0);
  const full = (error: NodeJS.ErrnoException): boolean => error.code === 'ENOSPC';
  try {
    const path = join(disk, 'j');
    const { journal } = Journal.open<Record>(path);
    journal.append(record(0), 100_000);
    assert.equal(journal.bytes, readFileSync(path).length, 'it is no longer than what it says');
    assert.throws(() => writeFileSync(join(disk, 'other'), Buffer.alloc(2 << 20)), full);
    let acknowledged = 1;
    assert.throws(() => {
      for (; ; acknowledged++) journal.append({ n: acknowledged, text: 'x'.repeat(5000) }, 100_000);
    }, full);
    assert.throws(() => journal.rewrite([record(1)], 100_000), full);
    assert.equal(existsSync(`${path}.new`), false);
    for (let i = 0; i < 19; i++) journal.append({ n: acknowledged++, text: 'x'.repeat(5000) });
    journal.close();
    assert.deepEqual(reopened(path).records.map(({ n }) => n), Array.from({ length: acknowledged }, (_, i) => i));
  } finally {
    spawnSync('umount', [disk]);
  }
});
