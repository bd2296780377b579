/**
 * A host user who may write to the directory of the socket gets nothing that is not his. Tried: a symlink, a hard link, a file, a FIFO and another user's socket in the
 * place of the socket; links and other users' files as pid file; a lock on the pid file of a daemon that is gone.
 */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { chmodSync, chownSync, closeSync, existsSync, linkSync, mkdtempSync, readFileSync, rmSync, statSync, symlinkSync, unlinkSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterEach, beforeEach, describe, test } from 'node:test';
import { bindUnix, unixSocket } from '../../src/ffi/socket.js';
import { openListener } from '../../src/lifecycle/listen.js';
import { settleOwner } from '../../src/lifecycle/socket-owner.js';

const ROOT = process.getuid?.() === 0 ? false : 'needs root';
const NOBODY = 65534;
const GID = 1;

let dir = '';
let path = '';
beforeEach(() => {
  dir = mkdtempSync(join(tmpdir(), 'bucketfsd-owner-'));
  path = join(dir, 's');
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

function socketAt(place: string): void {
  const fd = unixSocket();
  assert.equal(bindUnix(fd, place), 0);
  closeSync(fd);
}

/** What must not change, whatever a name leads to. */
function secret(): { path: string; unchanged(): void } {
  const at = join(dir, 'secret');
  writeFileSync(at, 'precious');
  chmodSync(at, 0o600);
  const unchanged = (): void => {
    const { mode, gid } = statSync(at);
    assert.deepEqual([readFileSync(at, 'utf8'), mode & 0o7777, gid], ['precious', 0o600, 0]);
  };
  return { path: at, unchanged };
}

describe('the group of the socket', { skip: ROOT }, () => {
  test('is given to no file that somebody has put in the place of the socket', () => {
    const file = secret();
    const other = (): void => {
      socketAt(path);
      chownSync(path, NOBODY, NOBODY);
    };
    const twice = (): void => {
      socketAt(join(dir, 'daemon'));
      linkSync(join(dir, 'daemon'), path);
    };
    // Of this user as well: another daemon's
    const elsewhere = (): void => {
      socketAt(join(dir, 'other'));
      symlinkSync(join(dir, 'other'), path);
    };
    const puts = [elsewhere, () => symlinkSync(file.path, path), () => linkSync(file.path, path), () => writeFileSync(path, ''), () => void execFileSync('mkfifo', [path]), other, twice];
    for (const put of puts) {
      put();
      const before = existsSync(path) ? statSync(path).gid : 0;
      assert.throws(() => settleOwner(path, GID), /something else was put in the place of|ELOOP/);
      assert.equal(existsSync(path) ? statSync(path).gid : 0, before);
      file.unchanged();
      unlinkSync(path);
    }
  });
});

describe('the pid file', { skip: ROOT }, () => {
  test('is for its owner only: nobody else can hold its lock', () => {
    for (const left of [false, true]) {
      if (left) writeFileSync(`${path}.pid`, '1\n', { mode: 0o644 });
      const listener = openListener({ kind: 'path', path, group: 'daemon' });
      assert.equal(statSync(`${path}.pid`).mode & 0o7777, 0o600);
      const other = spawnSync('flock', ['-n', `${path}.pid`, 'true'], { uid: NOBODY, gid: NOBODY, encoding: 'utf8' });
      assert.match(other.stderr, /Permission denied/);
      listener.close();
    }
  });

  test('is neither a link to another file nor what another user has put there', () => {
    const file = secret();
    const foreign = (): void => {
      writeFileSync(`${path}.pid`, '');
      chownSync(`${path}.pid`, NOBODY, NOBODY);
    };
    for (const put of [() => symlinkSync(file.path, `${path}.pid`), () => linkSync(file.path, `${path}.pid`), () => void execFileSync('mkfifo', [`${path}.pid`]), foreign]) {
      put();
      assert.throws(() => openListener({ kind: 'path', path, group: null }), /cannot use .*s\.pid as pid file|symbolic link/);
      file.unchanged();
      unlinkSync(`${path}.pid`);
    }
  });
});
