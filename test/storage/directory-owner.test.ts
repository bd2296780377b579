/** Cache directories that other users of the host have a hand in: nothing is read, written or followed there. */
import assert from 'node:assert/strict';
import { chmodSync, chownSync, existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { cacheDirectoryOf } from '../../src/bucket/state-directory.js';
import { parseCommandLine } from '../../src/cli.js';
import { CacheDirectory, CacheDirectoryError } from '../../src/storage/object/write/cache-directory.js';

const SHARE = { location: 's3://bucket', prefix: '' };
const USER = 12_345;

let dir = '';
let path = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-directory-'));
  path = join(dir, 'above', 'cache');
  mkdirSync(path, { recursive: true, mode: 0o755 });
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

/** Neither the store's part nor what comes before it. */
async function isRefused(sentence: RegExp): Promise<void> {
  const before = readdirSync(path);
  assert.throws(() => CacheDirectory.open(path, SHARE), (error) => error instanceof CacheDirectoryError && error.reason === null && sentence.test(error.message));
  const command = parseCommandLine(['check', '--source=s3://bucket', `--cache-dir=${path}`], {});
  assert.ok(command.action === 'check');
  await assert.rejects(cacheDirectoryOf(command.settings), sentence);
  assert.deepEqual(readdirSync(path), before);
}

describe('a cache directory', { skip: process.getuid?.() !== 0 && 'needs root' }, () => {
  test('of another user is refused, and a symlink in it is not followed', async () => {
    const victim = join(dir, 'victim');
    writeFileSync(victim, 'precious');
    symlinkSync(victim, join(path, 'lock'));
    chownSync(path, USER, USER);
    await isRefused(/above\/cache belongs to another user \(uid 12345\)/);
    assert.equal(readFileSync(victim, 'utf8'), 'precious');
    // Nor by root who recovers what is there
    writeFileSync(join(path, 'share.json'), '{}');
    assert.throws(() => CacheDirectory.reopen(path), /cache\/lock is no file: remove it/);
    assert.equal(readFileSync(victim, 'utf8'), 'precious');
  });

  test('to which a group or anybody may write is refused', async () => {
    writeFileSync(join(path, 'share.json'), '{}');
    for (const mode of [0o775, 0o757, 0o1777]) {
      chmodSync(path, mode);
      await isRefused(/others may write to .*chmod go-w/);
      assert.throws(() => CacheDirectory.reopen(path), /others may write to/);
    }
  });

  test('below a directory of somebody else, or one to which anybody may write, is refused, also where a symlink leads to it', async () => {
    chownSync(join(dir, 'above'), USER, USER);
    await isRefused(/above above .* belongs to another user/);
    chownSync(join(dir, 'above'), 0, 0);
    chmodSync(join(dir, 'above'), 0o777);
    await isRefused(/anybody may write to .*above above/);
    chmodSync(join(dir, 'above'), 0o1777);
    CacheDirectory.open(path, SHARE).close();
    const theirs = join(dir, 'theirs');
    mkdirSync(theirs);
    chownSync(theirs, USER, USER);
    symlinkSync(path, join(theirs, 'link'));
    path = join(theirs, 'link');
    await isRefused(/theirs above .* belongs to another user/);
  });

  test('of its own, made where there was none, is taken', () => {
    const made = join(dir, 'x', 'y');
    CacheDirectory.open(made, SHARE).close();
    assert.ok(existsSync(join(made, 'share.json')));
    CacheDirectory.reopen(made).directory.close();
  });
});
