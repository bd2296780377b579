/** What a hostile guest can say in FUSE: an error, and everything else goes on. */
import assert from 'node:assert/strict';
import { mkdirSync, readFileSync, symlinkSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { after, before, describe, test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { OPERATIONS } from '../../src/fuse/ops.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { OP, TestGuest, name, type FuseClient } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { objectOf } from '../support/writing-guest.js';

const ROOT = 1n;
const LARGE = Buffer.alloc(5 << 20, 'bucket');

/** A share with a file of 7 bytes, one of 5 MiB, and a directory. */
interface Served {
  readonly guest: FuseClient;
  /** "file" as others see it. */
  readonly content: () => Promise<string>;
  readonly close: () => Promise<unknown>;
}

async function directory(): Promise<Served> {
  const guest = await TestGuest.start();
  writeFileSync(join(guest.directory, 'file'), 'content');
  writeFileSync(join(guest.directory, 'large'), LARGE);
  mkdirSync(join(guest.directory, 'dir'));
  return { guest, content: async () => readFileSync(join(guest.directory, 'file'), 'utf8'), close: () => guest.close() };
}

async function bucket(): Promise<Served> {
  const store = new MemoryStore();
  await store.put('file', Buffer.from('content'));
  await store.put('large', LARGE);
  await store.put('dir/', new Uint8Array(0));
  const guest = await ObjectGuest.start(store);
  return { guest, content: async () => (await objectOf(store, 'file')).toString(), close: () => guest.close() };
}

for (const serve of [directory, bucket]) describe(`malformed FUSE requests to a ${serve.name}`, () => {
  let served: Served;
  let guest: FuseClient;

  before(async () => {
    served = await serve();
    guest = served.guest;
  });
  after(() => served.close());

  const works = async (): Promise<void> => assert.equal((await guest.lookup(ROOT, 'file')).size, 7);

  test('an unknown opcode is ENOSYS', async () => {
    for (const opcode of [0, 7, 19, 37, 40, 48, 49, 54, 63, 64, 65, 4096, 0xffffffff]) {
      assert.equal((await guest.call(opcode, ROOT)).error, -E.NOSYS, `opcode ${opcode}`);
    }
  });

  test('a request shorter than its header is returned without an answer', async () => {
    for (const bytes of [1, 16, 39]) assert.equal((await guest.raw([new Uint8Array(bytes)], [64])).used, 0);
    await works();
  });

  test('a header length that the buffers do not hold is EINVAL', async () => {
    for (const length of [0, 39, 40 + 8 + 1, 4096, 0xffffffff]) {
      const { bytes, unique } = guest.request(OP.OPEN, ROOT, u32(0, 0), length);
      assert.equal((await guest.raw([bytes], [16, 16], unique)).error, -E.INVAL, `length ${length}`);
    }
  });

  test('every operation with its arguments cut off at every length is an error and nothing worse', async () => {
    for (const op of OPERATIONS) {
      for (let bytes = 0; bytes < op.in; bytes++) {
        const reply = await guest.call(op.code, ROOT, new Uint8Array(bytes), 512);
        assert.ok(reply.error < 0 && reply.error > -512, `${op.name} with ${bytes} bytes of arguments: ${reply.error}`);
      }
    }
    await works();
  });

  test('every operation with arguments of all ones is an error and nothing worse', async () => {
    for (const op of OPERATIONS) {
      const reply = await guest.call(op.code, ROOT, new Uint8Array(op.in + 300).fill(0xff), 512);
      if (op.name !== 'STATFS' && op.name !== 'GETATTR' && op.name !== 'STATX' && op.name !== 'ACCESS' && op.name !== 'LISTXATTR' && op.name !== 'SYNCFS' && op.name !== 'OPENDIR') {
        assert.ok(reply.error < 0, `${op.name}: ${reply.error}`);
      }
    }
    await works();
  });

  test('too little room for the reply is an error, and with no room at all nothing is written', async () => {
    for (const op of OPERATIONS.filter((o) => o.out > 0)) {
      const { bytes, unique } = guest.request(op.code, ROOT, new Uint8Array(op.in + 8));
      const reply = await guest.raw([bytes], [16 + op.out - 1], unique);
      assert.ok(reply.error < 0, op.name);
      assert.equal(reply.used, 16, op.name);
      assert.equal((await guest.raw([bytes], [15])).used, 0, op.name);
    }
    const room = await guest.call(OP.LOOKUP, ROOT, name('file'), 127);
    assert.equal(room.error, -E.INVAL);
  });

  test('names that are no names are refused', async () => {
    const bad: [Uint8Array, number][] = [
      [name(''), -E.INVAL], [name('.'), -E.INVAL], [name('..'), -E.INVAL], [name('a/b'), -E.INVAL], [name('/'), -E.INVAL],
      [new TextEncoder().encode('no-nul'), -E.INVAL], [new Uint8Array(0), -E.INVAL], [name('x'.repeat(256)), -E.NAMETOOLONG],
      [new Uint8Array(5000).fill(65), -E.NAMETOOLONG],
    ];
    for (const [bytes, error] of bad) {
      for (const opcode of [OP.LOOKUP, OP.UNLINK, OP.RMDIR]) assert.equal((await guest.call(opcode, ROOT, bytes, 128)).error, error);
      assert.equal((await guest.call(OP.MKDIR, ROOT, concat(u32(0o755, 0), bytes), 128)).error, error);
      assert.equal((await guest.call(OP.RENAME2, ROOT, concat(u64(1), u32(0, 0), name('file'), bytes), 0)).error, error);
      assert.equal((await guest.call(OP.MKNOD, ROOT, concat(u32(0o100644, 0, 0, 0), bytes), 128)).error, error);
      assert.equal((await guest.call(OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0, 0), bytes), 144)).error, error);
      assert.equal((await guest.call(OP.LINK, ROOT, concat(u64(ROOT), bytes), 128)).error, error);
      // Its target follows the name, so that a name without NUL ends there and has to be too long
      if (bytes.at(-1) === 0 || error === -E.NAMETOOLONG) assert.equal((await guest.call(OP.SYMLINK, ROOT, concat(bytes, name('target')), 128)).error, error);
    }
    await guest.lookup(ROOT, 'x'.repeat(255)).catch(() => undefined);
    await works();
  });

  test('nodes that were never given out, or are forgotten, are ESTALE', async () => {
    for (const node of [0n, 2n ** 32n + 1n, 99n, 0xffffffffn, 1n << 63n, 2n ** 64n - 1n]) {
      assert.equal((await guest.call(OP.GETATTR, node, new Uint8Array(16), 104)).error, -E.STALE, `node ${node}`);
      assert.equal((await guest.call(OP.LOOKUP, node, name('file'), 128)).error, -E.STALE);
    }
    const { node } = await guest.lookup(ROOT, 'dir');
    await guest.call(OP.FORGET, node, u64(1), 0);
    assert.equal((await guest.call(OP.GETATTR, node, new Uint8Array(16), 104)).error, -E.STALE);
    assert.notEqual((await guest.lookup(ROOT, 'dir')).node, node, 'a nodeid is never used again');
  });

  test('FORGET below zero, of the root, and BATCH_FORGET that lies about its count do no harm', async () => {
    const { node } = await guest.lookup(ROOT, 'dir');
    await guest.call(OP.FORGET, node, u64(2n ** 64n - 1n), 0);
    await guest.call(OP.FORGET, ROOT, u64(1000), 0);
    await guest.call(OP.BATCH_FORGET, 0n, concat(u32(0xffffffff, 0), u64(ROOT, 5)), 0);
    await guest.call(OP.BATCH_FORGET, 0n, u32(1000, 0), 0);
    await works();
  });

  test('file handles that were never given out, are closed, or are of the other kind are EBADF', async () => {
    const { node } = await guest.lookup(ROOT, 'file');
    const fh = await guest.open(node);
    for (const bad of [0n, fh + (1n << 32n), fh + 1n, 2n ** 64n - 1n]) assert.equal((await guest.read(node, bad, 0, 16)).error, -E.BADF);
    const directory = (await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
    assert.equal((await guest.read(node, directory, 0, 16)).error, -E.BADF);
    assert.equal((await guest.call(OP.READDIR, ROOT, concat(u64(fh, 0), u32(4096, 0), u64(0), u32(0, 0)), 4096)).error, -E.BADF);
    assert.equal((await guest.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
    assert.equal((await guest.read(node, fh, 0, 16)).error, -E.BADF);
    assert.equal((await guest.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, -E.BADF);
  });

  test('READ through a handle that is open for writing only, and WRITE through one for reading only, are EBADF', async () => {
    const { node } = await guest.lookup(ROOT, 'file');
    const [reader, writer] = [await guest.open(node, 0), await guest.open(node, 1)];
    assert.equal((await guest.read(node, writer, 0, 16)).error, -E.BADF);
    assert.equal((await guest.write(node, reader, 0, new Uint8Array(4))).error, -E.BADF);
    assert.equal((await guest.call(OP.FALLOCATE, node, concat(u64(reader, 0, 100), u32(0, 0)), 0)).error, -E.BADF);
    assert.equal(await served.content(), 'content');
  });

  test('READ of 4 GiB or more than the room is EINVAL', async () => {
    const { node } = await guest.lookup(ROOT, 'file');
    const fh = await guest.open(node);
    assert.equal((await guest.read(node, fh, 0, 0xffffffff, 4096)).error, -E.INVAL);
    assert.equal((await guest.read(node, fh, 0, 4097, 4096)).error, -E.INVAL);
    assert.equal((await guest.read(node, fh, 0, 7)).data.byteLength, 7);
  });

  test('READ of more than 1 MiB is served: 256 pages of a guest may have 64 KiB each', async () => {
    const { node } = await guest.lookup(ROOT, 'large');
    const reply = await guest.read(node, await guest.open(node), 0, LARGE.length);
    assert.ok(reply.error === 0 && LARGE.equals(new Uint8Array(reply.data.buffer, reply.data.byteOffset, reply.data.byteLength)), `${reply.error}`);
  });

  test('WRITE larger than its payload is EINVAL and writes nothing', async () => {
    const { node } = await guest.lookup(ROOT, 'file');
    const fh = await guest.open(node);
    for (const size of [5, 4096, 0xffffffff]) assert.equal((await guest.write(node, fh, 0, new TextEncoder().encode('evil'), size)).error, -E.INVAL);
    assert.equal(await served.content(), 'content');
  });

  test('READDIR at offsets made up ends or is EINVAL, with a buffer too small EINVAL', async () => {
    const fh = (await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
    for (const offset of [1n, 12345n, 2n ** 31n, 2n ** 53n, 2n ** 62n, 2n ** 63n - 1n, 2n ** 63n, 2n ** 64n - 1n]) {
      const reply = await guest.call(OP.READDIRPLUS, ROOT, concat(u64(fh, offset), u32(4096, 0), u64(0), u32(0, 0)), 4096);
      assert.ok(reply.error === 0 || reply.error === -E.INVAL, `offset ${offset}: ${reply.error}`);
    }
    assert.equal((await guest.call(OP.READDIR, ROOT, concat(u64(fh, 0), u32(16, 0), u64(0), u32(0, 0)), 16)).error, -E.INVAL);
  });

  test('replies are right when buffers are cut at every byte', async () => {
    for (let cut = 1; cut < 40 + 5; cut++) {
      const { bytes, unique } = guest.request(OP.LOOKUP, ROOT, name('file'));
      const reply = await guest.raw([bytes.subarray(0, cut), bytes.subarray(cut)], [cut, 144 - cut], unique);
      assert.equal(guest.entry(reply).size, 7, `cut at ${cut}`);
    }
    const { node } = await guest.lookup(ROOT, 'file');
    const fh = await guest.open(node);
    for (let cut = 1; cut < 23; cut++) {
      const { bytes, unique } = guest.request(OP.READ, node, concat(u64(fh, 0), u32(7, 0), u64(0), u32(0, 0)));
      const reply = await guest.raw([bytes.subarray(0, 60), bytes.subarray(60)], [cut, 23 - cut], unique);
      assert.equal(new TextDecoder().decode(reply.data), 'content');
    }
  });

  test('FIFOs and devices are never opened by the daemon', async () => {
    assert.equal((await guest.call(OP.MKNOD, ROOT, concat(u32(0o010644, 0, 0, 0), name('fifo')), 128)).error, 0);
    const { node } = await guest.lookup(ROOT, 'fifo');
    for (const flags of [0, 1, 2]) assert.equal((await guest.call(OP.OPEN, node, u32(flags, 0), 16)).error, -E.NXIO);
  });

  test('INIT: versions are negotiated, the old refused, and a new INIT starts a new session', async () => {
    assert.equal((await guest.init(7, 26)).error, -E.PROTO);
    assert.equal((await guest.init(6, 0)).error, -E.PROTO);
    assert.equal((await guest.init(8, 0)).data.getUint32(0, true), 7);
    for (const [asked, granted] of [[27, 27], [31, 31], [45, 45], [46, 45], [99, 45]]) {
      assert.equal((await guest.init(7, asked)).data.getUint32(4, true), granted);
    }
    const { node } = await guest.lookup(ROOT, 'file');
    await guest.open(node);
    assert.equal((await guest.init()).error, 0);
    assert.equal((await guest.call(OP.GETATTR, node, new Uint8Array(16), 104)).error, -E.STALE);
    await works();
  });
});

test('symlinks are never followed on the host', async () => {
  const guest = await TestGuest.start();
  try {
    symlinkSync('/etc', join(guest.directory, 'etc'));
    symlinkSync('/etc/passwd', join(guest.directory, 'passwd'));
    const etc = await guest.lookup(ROOT, 'etc');
    assert.equal(etc.mode & 0o170000, 0o120000);
    assert.equal((await guest.call(OP.LOOKUP, etc.node, name('passwd'), 128)).error, -E.NOTDIR);
    assert.equal((await guest.call(OP.OPENDIR, etc.node, u32(0, 0), 16)).error, -E.NOTDIR);
    const passwd = await guest.lookup(ROOT, 'passwd');
    assert.equal((await guest.call(OP.OPEN, passwd.node, u32(0, 0), 16)).error, -E.LOOP);
    assert.equal((await guest.call(OP.CREATE, ROOT, concat(u32(0o101, 0o100644, 0, 0), name('passwd')), 144)).error, -E.LOOP);
  } finally {
    await guest.close();
  }
});
