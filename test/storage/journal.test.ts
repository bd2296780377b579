/** The journal survives what it says it survives: see src/storage/object/journal.ts. */
import assert from 'node:assert/strict';
import { spawn, spawnSync } from 'node:child_process';
import { pbkdf2 } from 'node:crypto';
import { once } from 'node:events';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { after, before, test } from 'node:test';
import { promisify } from 'node:util';
import { Journal, type JournalTail } from '../../src/storage/object/journal.js';
import { JournalError } from '../../src/storage/object/journal-frames.js';

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

/** A journal, and what it has. */
function open(path: string): { journal: Journal<Record>; records: Record[]; tail: JournalTail | null } {
  const records: Record[] = [];
  return { ...Journal.open<Record>(path, (record) => records.push(record)), records };
}

function written(path: string): Buffer {
  const { journal } = open(path);
  for (const one of RECORDS) journal.append([one]);
  journal.close();
  return readFileSync(path);
}

function reopened(path: string): { records: Record[]; tail: number } {
  const { journal, records, tail } = open(path);
  journal.close();
  return { records, tail: tail?.bytes ?? 0 };
}

test('what was appended is there after opening again, and more can be appended', async () => {
  const path = fresh();
  written(path);
  const { journal, records } = open(path);
  assert.deepEqual(records, RECORDS);
  journal.append([record(100)]);
  await journal.sync();
  assert.equal(journal.bytes, readFileSync(path).length);
  journal.close();
  assert.deepEqual(reopened(path).records, [...RECORDS, record(100)]);
});

test('a sync that has nothing of its own to do waits for the one that is under way', async () => {
  const { journal } = open(fresh());
  journal.append([record(1)]);
  let done = false;
  void journal.sync().then(() => (done = true));
  await journal.sync();
  assert.ok(done);
  journal.close();
});

test('a sync that is under way while all is rewritten neither fails nor closes what it should not', async () => {
  const path = fresh();
  const { journal } = open(path);
  journal.append([record(1)]);
  // Every thread is busy, so that the sync begins when the file has been replaced
  const busy = Array.from({ length: Number(process.env['UV_THREADPOOL_SIZE'] ?? 4) }, () => promisify(pbkdf2)('', '', 50_000, 64, 'sha512'));
  const syncing = journal.sync();
  await Promise.resolve();
  journal.rewrite([record(2)]);
  await syncing;
  await Promise.all(busy);
  journal.append([record(3)]);
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
    const { journal } = open(path);
    journal.append([record(7)]);
    journal.close();
    assert.deepEqual(reopened(path), { records: [...records, record(7)], tail: 0 });
  }
  assert.equal(most, RECORDS.length - 1);
});

/** A file system of so many bytes. */
function onSmallDisk(size: string, body: (disk: string) => void): void {
  const disk = mkdtempSync(join(directory, 'disk'));
  assert.equal(spawnSync('mount', ['-t', 'tmpfs', '-o', `size=${size}`, 'small', disk]).status, 0);
  try {
    body(disk);
  } finally {
    spawnSync('umount', [disk]);
  }
}

/** Files in which one bit is flipped each. */
function* flips(whole: Buffer): Generator<{ at: number; path: string; flipped: Buffer }> {
  for (let at = 0; at < whole.length; at++) {
    const path = fresh();
    const flipped = Buffer.from(whole);
    flipped[at] ^= 1 << (at & 7);
    writeFileSync(path, flipped);
    yield { at, path, flipped };
  }
}

test('a flipped bit in what had been synced is refused and nothing changes; behind that it is a tail, whatever follows', async () => {
  const path = fresh();
  const { journal } = open(path);
  journal.append(RECORDS.slice(0, 3));
  await journal.sync();
  const synced = readFileSync(path).length;
  for (const one of RECORDS.slice(3)) journal.append([one]);
  journal.close();
  const whole = readFileSync(path);
  const saysSo = whole.indexOf('BFS1');
  assert.equal(saysSo, synced);
  for (const { at, path: damaged, flipped } of flips(whole)) {
    if (at < synced) {
      assert.throws(() => open(damaged), JournalError, `byte ${at}`);
      assert.deepEqual(readFileSync(damaged), flipped);
    } else {
      const { records, tail } = reopened(damaged);
      assert.deepEqual(records, RECORDS.slice(0, records.length), `byte ${at}`);
      assert.ok(records.length >= 3 && records.length < RECORDS.length && tail > 0);
      assert.deepEqual(readFileSync(`${damaged}.tail`), flipped.subarray(whole.length - tail));
    }
  }
});

test('a page that was not on the disk when the machine went down ends the journal, though there are records behind it', () => {
  const path = fresh();
  const { journal } = open(path);
  const many = Array.from({ length: 100 }, (_, n) => record(n));
  for (const one of many) journal.append([one]);
  journal.close();
  const whole = readFileSync(path);
  whole.fill(0, 4096, 8192);
  writeFileSync(path, whole);
  const { records, tail } = reopened(path);
  assert.ok(records.length > 10 && records.length < 100 && tail > whole.length / 2);
  assert.deepEqual(records, many.slice(0, records.length));
});

test('a tail that there is no room for ends no start', { skip: process.geteuid!() !== 0 && 'needs root' }, () => onSmallDisk('64k', (disk) => {
  const path = join(disk, 'j');
  writeFileSync(path, written(fresh()).subarray(0, -1));
  assert.throws(() => writeFileSync(join(disk, 'other'), Buffer.alloc(1 << 20)), /ENOSPC/);
  const { journal, records, tail } = open(path);
  journal.close();
  assert.deepEqual(records, RECORDS.slice(0, -1));
  assert.equal(tail?.path, null);
}));

test('records that are appended together are there together or not at all', () => {
  const whole = (() => {
    const path = fresh();
    const { journal } = open(path);
    journal.append(RECORDS.slice(0, 2));
    journal.append(RECORDS.slice(2));
    journal.close();
    return path;
  })();
  assert.deepEqual(reopened(whole).records, RECORDS);
});

test('a journal of 100,000 records is read in bounded memory', () => {
  const path = fresh();
  const { journal } = open(path);
  journal.rewrite((function* () {
    for (let n = 0; n < 100_000; n++) yield { n, text: 'x'.repeat(200) };
  })());
  journal.close();
  let count = 0;
  let sum = 0;
  const before = process.memoryUsage().arrayBuffers;
  let most = 0;
  Journal.open<Record>(path, ({ n }) => {
    count++;
    sum += n;
    most = Math.max(most, process.memoryUsage().arrayBuffers);
  }).journal.close();
  assert.equal(count, 100_000);
  assert.equal(sum, (100_000 * 99_999) / 2);
  assert.ok(most - before < 12 << 20, `${most - before} bytes`);
});

test('a version of the future is refused with its number, and something else than a journal too', () => {
  const path = fresh();
  writeFileSync(path, 'bucketfsd journal 3\nwhatever');
  assert.throws(() => open(path), (error: JournalError) => error.code === 'version' && error.message.includes('version 3'));
  assert.equal(readFileSync(path, 'utf8'), 'bucketfsd journal 3\nwhatever');
  writeFileSync(path, 'once upon a time there was a file that somebody loved');
  assert.throws(() => open(path), (error: JournalError) => error.code === 'damaged');
});

test('rewriting replaces all records as one step', () => {
  const path = fresh();
  written(path);
  const { journal } = open(path);
  const before = journal.bytes;
  journal.rewrite([record(1)]);
  assert.ok(journal.bytes < before && !existsSync(`${path}.new`));
  journal.append([record(2)]);
  journal.close();
  assert.deepEqual(reopened(path).records, [record(1), record(2)]);
});

test('a process that is killed while it appends leaves whole records, none of which it had acknowledged is missing', async () => {
  const path = fresh();
  const program = `
    import { writeSync } from 'node:fs';
    import { Journal } from ${JSON.stringify(new URL('../../src/storage/object/journal.js', import.meta.url).href)};
    const { journal } = Journal.open(${JSON.stringify(path)}, () => undefined);
    for (let n = 0; ; n++) { journal.append([{ n, text: 'x'.repeat(n % 3000) }]); writeSync(1, n + '\\n'); }`;
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
  const { journal } = open(path);
  assert.throws(() => journal.append([{ n: 1, text: 'x'.repeat(5 << 20) }]), RangeError);
  journal.append([record(9)]);
  journal.close();
  assert.deepEqual(reopened(path).records, [...RECORDS, record(9)]);
});

test('a full disk fails the append with ENOSPC; what was acknowledged is there, and no part of what was not', { skip: process.geteuid!() !== 0 && 'needs root' }, () => {
  onSmallDisk('64k', (disk) => {
    const path = join(disk, 'j');
    const { journal } = open(path);
    let acknowledged = 0;
    assert.throws(() => {
      for (; ; acknowledged++) journal.append([{ n: acknowledged, text: 'x'.repeat(5000) }]);
    }, (error: NodeJS.ErrnoException) => error.code === 'ENOSPC');
    assert.ok(acknowledged > 5);
    assert.equal(journal.bytes, readFileSync(path).length);
    journal.close();
    const { records, tail } = reopened(path);
    assert.deepEqual([records.map(({ n }) => n), tail], [Array.from({ length: acknowledged }, (_, i) => i), 0]);
  });
});

test('on a full disk there is room for as much as was to be spared, and a rewrite that has none leaves everything', { skip: process.geteuid!() !== 0 && 'needs root' }, () => {
  const full = (error: NodeJS.ErrnoException): boolean => error.code === 'ENOSPC';
  onSmallDisk('1M', (disk) => {
    const path = join(disk, 'j');
    const { journal } = open(path);
    journal.append([record(0)], 100_000);
    assert.equal(journal.bytes, readFileSync(path).length, 'it is no longer than what it says');
    assert.throws(() => writeFileSync(join(disk, 'other'), Buffer.alloc(2 << 20)), full);
    let acknowledged = 1;
    assert.throws(() => {
      for (; ; acknowledged++) journal.append([{ n: acknowledged, text: 'x'.repeat(5000) }], 100_000);
    }, full);
    assert.throws(() => journal.rewrite([record(1)], 100_000), full);
    assert.equal(existsSync(`${path}.new`), false);
    for (let i = 0; i < 19; i++) journal.append([{ n: acknowledged++, text: 'x'.repeat(5000) }]);
    journal.close();
    assert.deepEqual(reopened(path).records.map(({ n }) => n), Array.from({ length: acknowledged }, (_, i) => i));
  });
});
