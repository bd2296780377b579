/** What the list of mounts says: see src/storage/local/mount-table.ts. */
import assert from 'node:assert/strict';
import { execFileSync, spawnSync } from 'node:child_process';
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { mock, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { SILENT_LOG } from '../../src/base/log.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import { MOUNT_KIND, MountTable, parseMounts, type MountTableOptions } from '../../src/storage/local/mount-table.js';
import { HeldFileSystem } from '../support/held-fs.js';

const { DISK, MEMORY, REMOTE } = MOUNT_KIND;
const memory = NativeMemory.allocate(4096);

/** Type and device number of a mount, and whose it is. */
const KINDS: readonly (readonly [type: string, device: string, kind: number])[] = [
  ['ext4', '254:0', DISK], ['xfs', '8:1', DISK], ['vfat', '8:2', DISK], ['btrfs', '0:30', DISK], ['overlay', '0:31', DISK], ['proc', '0:5', DISK],
  ['tmpfs', '0:40', MEMORY], ['ramfs', '0:41', MEMORY], ['hugetlbfs', '0:42', MEMORY],
  ['nfs', '0:50', REMOTE], ['nfs4', '0:51', REMOTE], ['cifs', '0:52', REMOTE], ['smb3', '0:53', REMOTE], ['fuse', '0:54', REMOTE], ['fuse.sshfs', '0:55', REMOTE],
  ['fuseblk', '8:3', REMOTE], ['9p', '0:56', REMOTE], ['ceph', '0:57', REMOTE], ['afs', '0:58', REMOTE], ['lustre', '0:59', REMOTE], ['gfs2', '253:1', REMOTE],
  ['ocfs2', '253:2', REMOTE], ['gpfs', '0:60', REMOTE], ['virtiofs', '0:61', REMOTE], ['beegfs', '0:62', REMOTE], ['autofs', '0:63', REMOTE],
  ['one that nobody knows', '0:64', REMOTE],
];

test('a mount is of a disk, in memory, or remote, by its type and whether it has a device', () => {
  const text = KINDS.map(([type, device], i) => `${i + 1} 1 ${device} / /m${i} rw,relatime shared:1 master:2 - ${type.replaceAll(' ', '\\040')} source rw\n`).join('');
  assert.deepEqual(parseMounts(text), KINDS.map(([, , kind], i) => ({ id: i + 1, point: `/m${i}`, kind })));
});

test('mount points with spaces, newlines and backslashes are what they are, whatever optional fields there are', () => {
  const points = ['/a b', '/a\nb', '/a\\b', '/a\tb', '/a - b', '/\u00c3\u00a4'];
  const escaped = (text: string): string => text.replace(/[ \t\n\\]/g, (one) => `\\${one.charCodeAt(0).toString(8).padStart(3, '0')}`);
  const text = points.map((point, i) => `${i} 1 0:9 / ${escaped(point)} rw${' shared:7'.repeat(i)} - nfs - rw\n`).join('');
  assert.deepEqual(parseMounts(text).map(({ point }) => point), points);
  assert.deepEqual(parseMounts('\nnot a mount\n1 2 3\n'), []);
});

/** A table of this process's mounts for a share. */
async function withTable(options: Partial<MountTableOptions>, body: (table: MountTable, isName: (name: string) => boolean, log: string[], directory: string) => Promise<void>): Promise<void> {
  const directory = mkdtempSync(join(tmpdir(), 'bucketfsd-mounts-'));
  const rootFd = openSync(directory, 'r');
  const log: string[] = [];
  const table = new MountTable({ rootFd, log: { ...SILENT_LOG, warn: (_fields, message) => void log.push(message) }, onChange: () => undefined, ...options });
  const isName = (name: string): boolean => table.isName({ address: memory.putString(0, name), length: Buffer.byteLength(name) });
  try {
    await body(table, isName, log, directory);
  } finally {
    table.close();
    closeSync(rootFd);
    rmSync(directory, { recursive: true, force: true });
  }
}

for (const [what, options] of Object.entries({ 'cannot be watched': { list: '/etc/passwd' }, 'is not there': { list: '/none' }, 'is too long': { maxBytes: 1 } })) {
  test(`a list that ${what} is said, and every mount is remote`, () =>
    withTable(options, async (table, isName, log) => {
      assert.equal(log.length, 1);
      assert.match(log[0], /^the mounts below the share are not known \(/);
      assert.equal(table.kindOf(1), REMOTE);
      assert.ok(table.hasNames);
      assert.ok(isName('any name'));
    }));
}

test('while a list that takes long to read has changed and is not read again, every name may be one', { skip: process.getuid!() !== 0 && 'needs root, to mount' }, async () => {
  let now = 0;
  // Each reading takes a second of the table's clock
  const clock = mock.method(performance, 'now', () => (now += 1000));
  let changed = (): void => undefined;
  try {
    await withTable({ onChange: () => changed() }, async (table, isName, log, directory) => {
      assert.ok(!table.hasNames && !isName('any name'));
      const keep = setInterval(() => undefined, 1000);
      mock.timers.enable({ apis: ['setTimeout'] });
      try {
        for (let i = 0; i < 3; i++) await turn(); // it is watched
        execFileSync('mount', ['-t', 'tmpfs', 'test', directory]);
        while (!isName('any name')) await new Promise<void>((resolve) => (changed = resolve));
        assert.ok(table.hasNames);
        mock.timers.tick(60_000);
        assert.ok(!table.hasNames && !isName('any name'), 'it was read');
        assert.deepEqual(log, []);
      } finally {
        mock.timers.reset();
        clearInterval(keep);
        spawnSync('umount', ['-l', directory]);
      }
    });
  } finally {
    clock.mock.restore();
  }
});

test('a mount that is made before the event loop watches the list is known', { skip: process.getuid!() !== 0 && 'needs root, to mount' }, async () => {
  let changed = (): void => undefined;
  await withTable({ onChange: () => changed() }, async (table, _isName, _log, directory) => {
    execFileSync('mount', ['-t', 'tmpfs', 'test', directory]);
    try {
      const { id } = parseMounts(readFileSync('/proc/self/mountinfo', 'latin1')).find(({ point }) => point === directory)!;
      while (table.listedKind(id) !== MEMORY) await new Promise<void>((resolve) => (changed = resolve));
    } finally {
      execFileSync('umount', [directory]);
    }
  });
});

test('names are those of remote mounts below the share, as they come and go', { skip: process.getuid!() !== 0 && 'needs root, to mount' }, async () => {
  let changed = (): void => undefined;
  const change = (): Promise<void> => new Promise((resolve) => (changed = resolve));
  await withTable({ onChange: () => changed() }, async (table, isName, log, directory) => {
    assert.ok(!table.hasNames, 'nothing is mounted below');
    const memoryPoint = join(directory, 'memory');
    const remotePoint = join(directory, 'not here');
    for (const point of [memoryPoint, remotePoint]) mkdirSync(point);
    const settled = async (wanted: () => boolean): Promise<void> => {
      while (!wanted()) await change();
    };
    const keep = setInterval(() => undefined, 1000); // the table alone keeps no process alive
    try {
      execFileSync('mount', ['-t', 'tmpfs', 'test', memoryPoint]);
      const held = await HeldFileSystem.mount(remotePoint);
      try {
        await settled(() => isName('not here') && !isName('elsewhere'));
        assert.ok(!isName('not there') && !isName('memory'), 'of the same length, or local');
      } finally {
        await held.unmount();
      }
      await settled(() => !table.hasNames);
      assert.deepEqual(log, []);
    } finally {
      clearInterval(keep);
      for (const point of [memoryPoint, remotePoint]) while (spawnSync('umount', ['-l', point]).status === 0);
    }
  });
});
