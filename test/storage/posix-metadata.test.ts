/** Conventions for POSIX attributes in object metadata: see src/storage/object/posix-metadata.ts. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { readPosix, writePosix, type PosixMetadata } from '../../src/storage/object/posix-metadata.js';

const NOTHING: PosixMetadata = { mode: null, uid: null, gid: null, rdev: null, mtime: null, atime: null, ctime: null, symlink: null, xattrs: null };
const at = (seconds: number, nanoseconds = 0): { seconds: number; nanoseconds: number } => ({ seconds, nanoseconds });

describe('reading', () => {
  /** As these tools write them. */
  const table: [string, Record<string, string>, Partial<PosixMetadata>][] = [
    ['s3fs, a file', { mode: '33188', uid: '1000', gid: '100', mtime: '1700000000', ctime: '1700000001.5', atime: '1700000002.000000007' },
      { mode: 0o100644, uid: 1000, gid: 100, mtime: at(1700000000), ctime: at(1700000001, 500_000_000), atime: at(1700000002, 7) }],
    ['s3fs, a directory', { mode: '16877', uid: '0', gid: '0' }, { mode: 0o40755, uid: 0, gid: 0 }],
    ['s3fs, a link', { mode: '41471' }, { mode: 0o120777, symlink: '' }],
    ['geesefs, a device', { mode: '25008', rdev: '2049' }, { mode: 0o060660, rdev: 2049 }],
    ['geesefs, a link', { '--symlink-target': 'a/b' }, { mode: 0o120777, symlink: 'a/b' }],
    ['rclone', { mode: '100644', uid: '7', mtime: '2023-11-14T22:13:20.123456789Z' }, { mode: 0o100644, uid: 7, mtime: at(1700000000, 123456789) }],
    ['rclone, older', { mtime: '1700000000.123456789' }, { mtime: at(1700000000, 123456789) }],
    ['gcsfuse', { gcsfuse_mtime: '2023-11-14T22:13:20Z', gcsfuse_symlink_target: 'x' }, { mtime: at(1700000000), mode: 0o120777, symlink: 'x' }],
    ['gcloud', { 'goog-reserved-posix-mode': '640', 'goog-reserved-posix-uid': '5', 'goog-reserved-file-mtime': '1700000000', 'goog-reserved-file-is-symlink': 'false' },
      { mode: 0o640, uid: 5, mtime: at(1700000000) }],
    ['gcloud, a link', { 'goog-reserved-file-is-symlink': 'true' }, { mode: 0o120777, symlink: '' }],
    ['DataSync', { 'file-permissions': '0100664', 'file-owner': '500', 'file-group': '501', 'file-mtime': '1700000000123456789ns' },
      { mode: 0o100664, uid: 500, gid: 501, mtime: at(1700000000, 123456789) }],
    ['DataSync, permissions alone', { 'file-permissions': '0755' }, { mode: 0o755 }],
    ['before 1970', { mtime: '-1.5', atime: '-3' }, { mtime: at(-2, 500_000_000), atime: at(-3) }],
    ['extended attributes', { xattr: '%7B%22user.a%22%3A%22AAEC%22%7D' }, { xattrs: new Map([['user.a', new Uint8Array([0, 1, 2])]]) }],
    ['nothing', { unrelated: 'x' }, {}],
  ];
  for (const [what, metadata, expected] of table) {
    test(what, () => assert.deepEqual(readPosix(metadata), { posix: { ...NOTHING, ...expected }, ignored: [] }));
  }

  test('values that lie are as if absent, and named', () => {
    const lies = {
      mode: 'rwx', uid: '-1', gid: '4294967295', mtime: 'soon', atime: '99999999999999', ctime: '1e9', rdev: '', xattr: '{"user.a":1}', 'file-permissions': '999',
      'file-mtime': '2023-13-45T00:00:00Z',
    };
    const { posix, ignored } = readPosix(lies);
    assert.deepEqual(posix, NOTHING);
    assert.deepEqual([...ignored].sort(), ['atime', 'ctime', 'file-mtime', 'file-permissions', 'gid', 'mode', 'mtime', 'uid', 'xattr']);
  });

  test('impossible types and numbers are no modes', () => {
    for (const mode of ['0', '777777', '1777777', '0170000', '33188.0', '0x81a4', '99999']) {
      const { posix } = readPosix({ mode });
      assert.ok(posix.mode === null || (posix.mode & 0o170000) === 0, `${mode} is read as ${posix.mode}`);
    }
  });

  test('one convention that makes no sense leaves room for another', () => {
    assert.equal(readPosix({ mtime: 'x', gcsfuse_mtime: '2023-11-14T22:13:20Z' }).posix.mtime?.seconds, 1700000000);
  });
});

describe('writing', () => {
  const file: PosixMetadata = {
    ...NOTHING, mode: 0o100640, uid: 1, gid: 2, mtime: at(1700000000, 1), atime: at(1600000000), ctime: at(1700000001, 999_999_999),
    xattrs: new Map([['user.x', new Uint8Array([255, 0])], ['security.y', new Uint8Array(0)]]),
  };

  test("on S3 it is s3fs's, on Google Cloud Storage gcloud's and gcsfuse's", () => {
    assert.deepEqual(writePosix({ ...file, xattrs: null }, 's3', {}), {
      mode: '33184', uid: '1', gid: '2', mtime: '1700000000.000000001', atime: '1600000000', ctime: '1700000001.999999999',
    });
    assert.deepEqual(writePosix({ ...file, xattrs: null, ctime: null }, 'gcs', {}), {
      'goog-reserved-posix-mode': '640', 'goog-reserved-posix-uid': '1', 'goog-reserved-posix-gid': '2', 'goog-reserved-file-mtime': '1700000000',
      gcsfuse_mtime: '2023-11-14T22:13:20.000000001Z', 'goog-reserved-file-atime': '1600000000',
    });
  });

  test('what is written is read again as it was', () => {
    const shapes: PosixMetadata[] = [
      file, NOTHING, { ...NOTHING, mode: 0o40755 }, { ...NOTHING, mode: 0o020600, rdev: 0x0103 }, { ...NOTHING, mode: 0o010644 },
      { ...NOTHING, mtime: at(-5, 250_000_000), ctime: at(-1, 1) }, { ...NOTHING, uid: 4294967294, gid: 0 },
    ];
    for (const shape of shapes) assert.deepEqual(readPosix(writePosix(shape, 's3', {})), { posix: shape, ignored: [] });
    for (const shape of shapes) {
      const { posix, ignored } = readPosix(writePosix({ ...shape, ...(shape.atime === null ? {} : { atime: at(shape.atime.seconds) }) }, 'gcs', {}));
      assert.deepEqual(ignored, []);
      // a regular file's type is not written there: it is the object's
      assert.deepEqual({ ...posix, mode: shape.mode === null ? null : posix.mode! | (shape.mode & 0o170000) }, shape);
    }
    const link = { ...NOTHING, mode: 0o120777, symlink: 'to/there' };
    assert.deepEqual(readPosix(writePosix(link, 'gcs', {})).posix, link);
    assert.equal(readPosix(writePosix(link, 's3', {})).posix.symlink, '', 'the body has it');
  });

  test('other names stay, and what would contradict goes', () => {
    const kept = { 'my-tag': 'x', mode: '100600', 'file-permissions': '0100600', 'goog-reserved-posix-mode': '600', mtime: '1', gcsfuse_mtime: '1970-01-01T00:00:01Z' };
    assert.deepEqual(writePosix({ ...NOTHING, mode: 0o100644 }, 's3', kept), { 'my-tag': 'x', mode: '33188' });
  });
});
