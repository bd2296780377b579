/** Virtual-hosted and path style are tried where nobody says which. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { openAddressed, stylesOf } from '../../src/bucket/addressing.js';
import type { BucketSettings } from '../../src/cli.js';
import { parseSource } from '../../src/cli/source.js';
import { StorageError, type StorageErrorCode } from '../../src/storage/object/errors.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';

const settingsOf = (endpoint: string | null, pathStyle = false, source = 's3://bucket'): BucketSettings =>
  ({ source: parseSource(source), endpoint, pathStyle }) as unknown as BucketSettings;

test('which styles are tried follows from endpoint and option', () => {
  for (const endpoint of ['http://127.0.0.1:7480', 'http://[::1]:7480', 'http://localhost:9000', 'http://minio:9000', 'http://s3.localhost']) {
    assert.deepEqual(stylesOf(settingsOf(endpoint)), [true], endpoint);
  }
  assert.deepEqual(stylesOf(settingsOf('https://s3.example.org')), [false, true]);
  assert.deepEqual(stylesOf(settingsOf('https://s3.example.org', true)), [true]);
  assert.deepEqual(stylesOf(settingsOf(null)), [false], "Amazon's own");
  assert.deepEqual(stylesOf(settingsOf('https://s.example.org', false, 'gs://bucket')), [false]);
});

describe('a name that has dots', () => {
  /** Opens with each style as `says` it: null is good. */
  const open = async (virtual: StorageErrorCode | null, path: StorageErrorCode | null): Promise<{ tried: boolean[]; closed: number; style: boolean | StorageErrorCode }> => {
    const tried: boolean[] = [];
    let closed = 0;
    const opening = openAddressed(
      settingsOf('https://s3.example.org'),
      async ({ pathStyle }) => (tried.push(pathStyle), Object.assign(new MemoryStore(), { close: async () => void closed++ })),
      async () => {
        const code = tried.at(-1) === true ? path : virtual;
        if (code !== null) throw new StorageError(code, 'check');
      },
      null,
    );
    const style = await opening.then(({ settings }) => settings.pathStyle, (error: StorageError) => error.code);
    return { tried, closed, style };
  };

  test('keeps the first style if it works, and takes the second if that does', async () => {
    assert.deepEqual(await open(null, 'denied'), { tried: [false], closed: 0, style: false });
    for (const code of ['unreachable', 'no-bucket', 'invalid'] as const) assert.deepEqual(await open(code, null), { tried: [false, true], closed: 1, style: true });
  });

  test('what neither style changes is not tried twice, and the better answer is told', async () => {
    for (const code of ['expired', 'clock-skew', 'throttled', 'timeout'] as const) assert.deepEqual(await open(code, null), { tried: [false], closed: 1, style: code });
    assert.equal((await open('no-bucket', 'denied')).style, 'no-bucket');
    assert.equal((await open('unreachable', 'bad-credentials')).style, 'bad-credentials');
  });
});
