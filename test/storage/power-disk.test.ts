/**
 * The disk on which power fails in tests (test/storage/power/): what a program has synced is there after every failure, and what it has not may be
 * lost, so that those who rely on it are found out. Without bucketfsd.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { Random } from '../model/random.js';
import { diskFormats, disksUnavailable } from './power/disk.js';
import { splitAt, survivors, type LogRecord } from './power/disk-log.js';
import { isolated } from './power/isolated.js';
import type { PlainParameters, PlainResult } from './power/plain-program.js';

const SEED = Number(process.env['SEED'] ?? Date.now() % 2 ** 31);

const record = (kind: 'write' | 'flush', at: number, bytes = 0): LogRecord => ({ kind, at, end: at + 16 + bytes, offset: at * 10, bytes });

describe('what a disk may have lost', () => {
  const records = [record('write', 0, 512), record('write', 600, 512), record('flush', 1200), record('write', 1300, 8192), record('write', 9600, 512)];

  test('begins behind the last flush before power failed', () => {
    assert.deepEqual(splitAt(records, 1150), { durable: [], loose: records.slice(0, 2) });
    assert.deepEqual(splitAt(records, 9700), { durable: records.slice(0, 2), loose: [records[3]] });
  });

  test('is everything, nothing, or any part in pieces of a sector', () => {
    const loose = records.slice(3);
    const random = new Random(SEED);
    assert.deepEqual(survivors(loose, 'all', 512, random), []);
    assert.deepEqual(survivors(loose, 'none', 512, random), loose.map((one) => ({ record: one, from: 0, to: one.bytes })));
    const sizes = new Set<number>();
    for (let i = 0; i < 1000; i++) {
      const pieces = survivors(loose, 'some', 512, random);
      assert.ok(pieces.every(({ from, to, record: one }) => from % 512 === 0 && to <= one.bytes && from < to));
      sizes.add(pieces.reduce((sum, { from, to }) => sum + to - from, 0));
    }
    assert.ok(sizes.size > 10, `only ${sizes.size} different losses, seed ${SEED}`);
  });
});

describe('a program on a disk whose power fails', { skip: disksUnavailable() }, () => {
  const formats = disksUnavailable() === false ? diskFormats((line) => console.log(line)) : [];
  for (const format of formats) {
    test(`finds what it has synced, and may lose the rest: ${format.name}`, { timeout: 120_000 }, async (context) => {
      const results: PlainResult[] = [];
      const parameters: PlainParameters = { format, seed: SEED, files: 60, states: 15, lies: false };
      await isolated<PlainResult>('plain-program.js', parameters, (one) => void results.push(one));
      const lost = results.filter((one) => one.lost.length > 0);
      const total = (count: (one: PlainResult) => number): number => results.reduce((sum, one) => sum + count(one), 0);
      context.diagnostic(`${results.length} states, seed ${SEED}: of ${total(({ unsynced }) => unsynced)} files that were not synced ${total(({ unsyncedLost }) => unsyncedLost)} were lost`);
      assert.deepEqual(lost.map(({ state, lost: files }) => `${state}: ${files.join(', ')}`), [], `seed ${SEED}`);
      assert.equal(results.length, 30);
      assert.ok(total(({ unsyncedLost }) => unsyncedLost) > 0, `nothing was lost, which no disk can promise, seed ${SEED}`);
    });
  }

  test('would be seen to lose what it has synced, on a disk that lies about that', { timeout: 120_000 }, async () => {
    const results: PlainResult[] = [];
    await isolated<PlainResult>('plain-program.js', { format: formats[0], seed: SEED, files: 60, states: 15, lies: true } satisfies PlainParameters, (one) => void results.push(one));
    assert.ok(results.some(({ lost }) => lost.length > 0), `seed ${SEED}`);
  });
});
