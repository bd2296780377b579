/**
 * Whoever may put an object is not root in the guest. Claims that were tried, each in the metadata of objects and from a guest:
 * set-user-ID and set-group-ID in every convention (mode in decimal and octal, gcloud's, DataSync's, with and without a type), device nodes of both kinds,
 * attributes of other classes than user.*, --file-mode; of files, links, FIFOs and markers; in LOOKUP, GETATTR, READDIRPLUS, on a marker that two have made, set by others while a guest changes the file;
 * CREATE, MKNOD, SETATTR of a guest, before a commit and after one.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { parseCommandLine } from '../../src/cli.js';
import { describeObject } from '../../src/storage/object/facts.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectInfo } from '../../src/storage/object/store.js';
import { describedBy } from '../../src/storage/object/write/attributes.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { setattr } from '../support/deferred.js';
import { Files, ROOT } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);
const xattrs = (values: Record<string, string>): string =>
  encodeURIComponent(JSON.stringify(Object.fromEntries(Object.entries(values).map(([key, value]) => [key, Buffer.from(value).toString('base64')]))));
const CAPABILITY = xattrs({ 'security.capability': 'x', 'trusted.overlay.opaque': 'y', 'user.mine': 'z' });

/** Metadata of an object, and the mode that a guest sees by default and with --privileged-metadata. */
const CLAIMS: readonly (readonly [what: string, metadata: Record<string, string>, plain: number, privileged: number])[] = [
  ['s3fs', { mode: String(0o104755) }, 0o100755, 0o104755],
  ['octal', { mode: '106711' }, 0o100711, 0o106711],
  ['without a type', { mode: '04755' }, 0o100755, 0o104755],
  ['gcloud', { 'goog-reserved-posix-mode': '2755' }, 0o100755, 0o102755],
  ['DataSync', { 'file-permissions': '6777' }, 0o100777, 0o106777],
  ['a set-group-ID that nobody may execute', { mode: String(0o102644) }, 0o100644, 0o102644],
  ['a disk', { mode: String(0o060666), rdev: '2048' }, 0o100666, 0o060666],
  ['memory', { mode: String(0o024666), rdev: '257' }, 0o100666, 0o024666],
  ['a whiteout, which no kernel opens', { mode: String(0o020000), rdev: '0' }, 0o020000, 0o020000],
  ['a FIFO', { mode: String(0o016644) }, 0o010644, 0o016644],
  ['sticky', { mode: String(0o101755) }, 0o101755, 0o101755],
];

async function withGuest(memory: MemoryStore, privileged: boolean, run: (g: ObjectGuest) => Promise<void>): Promise<void> {
  const g = await ObjectGuest.start(memory, { metadataTtl_ms: 0, privileged });
  try {
    await run(g);
  } finally {
    await g.close();
  }
}

const listXattrs = async (g: ObjectGuest, node: bigint): Promise<string[]> => {
  const { data, error } = await g.call(OP.LISTXATTR, node, u32(4096, 0), 4096);
  assert.equal(error, 0);
  return Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)).toString().split('\0').filter((text) => text !== '').sort();
};
const getXattr = async (g: ObjectGuest, node: bigint, attribute: string): Promise<number> =>
  (await g.call(OP.GETXATTR, node, concat(u32(100, 0), name(attribute)), 100)).error;

describe('what an object says of rights', () => {
  test('set-id bits and device nodes are nothing without --privileged-metadata, in every convention; with it they are what they say', async () => {
    for (const privileged of [false, true]) {
      const memory = new MemoryStore();
      for (const [what, metadata] of CLAIMS) await memory.put(`d/${what}`, bytes('body'), { metadata });
      await withGuest(memory, privileged, async (g) => {
        const { node } = await g.lookup(ROOT, 'd');
        for (const [what, , plain, claimed] of CLAIMS) {
          const entry = await g.lookup(node, what);
          assert.equal(entry.mode.toString(8), (privileged ? claimed : plain).toString(8), what);
          if (!privileged && (plain & 0o170000) === 0o100000) assert.equal(entry.size, 4, `${what}: the content of what is an ordinary file can be read`);
        }
        const complaints = g.log.filter((line) => line.includes('--privileged-metadata'));
        assert.equal(complaints.length > 0, !privileged, g.log.join('\n'));
      });
    }
  });

  test('a directory keeps the group that its files inherit: that lends nobody a right', async () => {
    const memory = new MemoryStore();
    await memory.put('d/', bytes(''), { metadata: { mode: String(0o042775), xattr: CAPABILITY } });
    await withGuest(memory, false, async (g) => {
      const { node, mode } = await g.lookup(ROOT, 'd');
      assert.equal(mode, 0o042775);
      assert.deepEqual(await listXattrs(g, node), ['user.mine']);
    });
  });

  test('attributes other than user.* are not shown, and stay with the object whatever the guest does to it', async () => {
    const memory = new MemoryStore();
    await memory.put('f', bytes('content'), { metadata: { mode: String(0o100755), xattr: CAPABILITY } });
    const there = async (): Promise<string[]> => [...readPosix((await memory.head('f')).metadata!).posix.xattrs!.keys()].sort();
    await withGuest(memory, false, async (g) => {
      const { node } = await g.lookup(ROOT, 'f');
      assert.deepEqual(await listXattrs(g, node), ['user.mine']);
      for (const hidden of ['security.capability', 'trusted.overlay.opaque']) {
        assert.equal(await getXattr(g, node, hidden), -E.NODATA);
        assert.ok((await g.call(OP.REMOVEXATTR, node, name(hidden), 0)).error < 0);
      }
      assert.equal(await setattr(g, node, { mode: 0o700 }), 0);
      assert.deepEqual(await there(), ['security.capability', 'trusted.overlay.opaque', 'user.mine']);
      const files = new Files(g);
      const open = await files.open('f');
      assert.equal(await files.write(open, 0, bytes('changed')), 0);
      assert.equal(await files.close(open), 0);
      assert.equal((await g.call(OP.REMOVEXATTR, node, name('user.mine'), 0)).error, 0);
      assert.deepEqual(await there(), ['security.capability', 'trusted.overlay.opaque']);
      assert.deepEqual(await listXattrs(g, (await g.lookup(ROOT, 'f')).node), []);
    });
    await withGuest(memory, true, async (g) => {
      assert.deepEqual(await listXattrs(g, (await g.lookup(ROOT, 'f')).node), ['security.capability', 'trusted.overlay.opaque']);
    });
  });

  test('nor does the marker of a directory that somebody else has made while ours waited for the bucket', async () => {
    const memory = new MemoryStore();
    const g = await ObjectGuest.start(memory, { metadataTtl_ms: 600_000, privileged: false, write: { durability: 'writeback', writebackDelay_ms: 600_000 } });
    try {
      const { node } = g.entry(await g.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), name('d')), 128));
      await memory.put('d/', bytes(''), { metadata: { mode: String(0o040755), xattr: CAPABILITY } });
      await g.opened.idle();
      assert.deepEqual(await listXattrs(g, node), ['user.mine']);
    } finally {
      await g.close();
    }
  });

  test('an object of a disk that a guest writes to becomes the ordinary file that it was shown as', async () => {
    const memory = new MemoryStore();
    await memory.put('disk', bytes('body'), { metadata: { mode: String(0o064660), rdev: '2048' } });
    await withGuest(memory, false, async (g) => {
      const files = new Files(g);
      const open = await files.open('disk');
      assert.equal(await files.write(open, 4, bytes('!')), 0);
      assert.equal(await files.close(open), 0);
      const { posix } = readPosix((await memory.head('disk')).metadata!);
      assert.deepEqual([posix.mode, posix.rdev], [0o100660, null]);
    });
  });
});

test('attributes that somebody else sets of an object while a guest changes it lend no rights either', () => {
  const defaults = { uid: 0, gid: 0, fileMode: 0o644, directoryMode: 0o755, privileged: false };
  const info = (metadata: Record<string, string>): ObjectInfo => ({ key: 'f', size: 0, version: 'v', modified_ms: 0, metadata, headers: null });
  const { facts } = describeObject(info({}), defaults, true);
  const claims = info({ mode: String(0o106755), xattr: CAPABILITY });
  assert.deepEqual([describedBy(facts, claims, false).mode, [...describedBy(facts, claims, false).xattrs.keys()]], [0o100755, ['user.mine']]);
  assert.equal(describedBy(facts, claims, true).mode, 0o106755);
});

describe('a guest', () => {
  test('is told EPERM when it gives a mode that would not be believed later, and nothing is made', async () => {
    const memory = new MemoryStore();
    const make = (g: ObjectGuest, mode: number, rdev: number, text: string): Promise<{ error: number }> => g.call(OP.MKNOD, ROOT, concat(u32(mode, rdev, 0, 0), name(text)), 128);
    await withGuest(memory, false, async (g) => {
      for (const [mode, rdev] of [[0o104755, 0], [0o102755, 0], [0o060600, 0x800], [0o020600, 0x101], [0o014600, 0]]) {
        assert.equal((await make(g, mode, rdev, 'x')).error, -E.PERM, mode.toString(8));
      }
      assert.equal((await g.call(OP.CREATE, ROOT, concat(u32(2, 0o104755, 0, 0), name('x')), 144)).error, -E.PERM);
      assert.equal((await g.call(OP.LOOKUP, ROOT, name('x'), 128)).error, -E.NOENT);
      const { entry, fh } = await g.create(ROOT, 'f', 2, 0o755);
      assert.equal(await setattr(g, entry.node, { mode: 0o4755 }), -E.PERM, 'before it is in the bucket');
      assert.equal((await g.call(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0)), 0)).error, 0);
      assert.equal(await setattr(g, entry.node, { mode: 0o2755 }), -E.PERM, 'and after that');
      assert.equal((await g.lookup(ROOT, 'f')).mode, 0o100755);
      assert.equal((await make(g, 0o020000, 0, 'white')).error, 0);
      assert.equal((await make(g, 0o010600, 0, 'fifo')).error, 0);
    });
    await withGuest(memory, true, async (g) => {
      assert.equal((await make(g, 0o060600, 0x800, 'disk')).error, 0);
      assert.equal(await setattr(g, (await g.lookup(ROOT, 'f')).node, { mode: 0o4755 }), 0);
    });
  });
});

test('--file-mode gives no set-id bits to every object unless --privileged-metadata is there', () => {
  const line = ['--fd=3', '--source=s3://bucket', '--file-mode=4755'];
  assert.throws(() => parseCommandLine(line, {}), /--file-mode with set-id bits .* --privileged-metadata allows it/);
  const command = parseCommandLine([...line, '--privileged-metadata'], {});
  assert.ok(command.action === 'run' && command.options.fileMode === 0o4755);
});
