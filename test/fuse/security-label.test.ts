/** --security-label: creations come with the attribute that the guest's kernel wants on the new file. */
import assert from 'node:assert/strict';
import { mkdirSync, readdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import * as c from '../../src/ffi/libc.js';
import { NativeMemory } from '../../src/ffi/memory.js';
import type { LocalOptions } from '../../src/storage/local/share.js';
import { parseXattrMap } from '../../src/storage/local/xattrmap.js';
import { openDescriptors } from '../support/backend.js';
import { concat, u32 } from '../support/frontend.js';
import { OP, TestGuest, name, type Reply } from '../support/guest.js';

const ROOT = 1n;
const LABEL = 'security.test';
/** No file system has this kind of attribute. */
const IMPOSSIBLE = 'nonsense.test';
const VALUE = new TextEncoder().encode('system_u:object_r:test_t:s0');
const S_IFREG = 0o100000;
const S_IFIFO = 0o010000;
const O_EXCL = 0o200;
const SECURITY_CTX_IN_FLAGS2 = 1;
const TOTAL_EXTLEN_AT = 36;
const skip = process.getuid!() === 0 ? false : 'needs root';

/** struct fuse_secctx_header, one fuse_secctx, its name and value, to a multiple of 8 bytes. */
function context(label: string): Uint8Array {
  const one = concat(u32(VALUE.length, 0), name(label), VALUE);
  const size = (8 + one.length + 7) & ~7;
  return concat(u32(size, 1), one, new Uint8Array(size - 8 - one.length));
}

/** A creation with a label. `marked`: the header counts the extension, as from Linux 6.3 on. */
function create(g: TestGuest, opcode: number, args: Uint8Array, label: string, marked = true): Promise<Reply> {
  const extension = context(label);
  const { bytes, unique } = g.request(opcode, ROOT, concat(args, extension));
  if (marked) new DataView(bytes.buffer).setUint16(TOTAL_EXTLEN_AT, extension.length / 8, true);
  return g.raw([bytes], [16 + 144], unique);
}

const CREATIONS = [
  ['CREATE', OP.CREATE, concat(u32(2, S_IFREG | 0o644, 0, 0), name('n'))],
  ['MKDIR', OP.MKDIR, concat(u32(0o755, 0), name('n'))],
  ['MKNOD', OP.MKNOD, concat(u32(S_IFIFO | 0o644, 0, 0, 0), name('n'))],
  ['SYMLINK', OP.SYMLINK, concat(name('n'), name('target'))],
  ['TMPFILE', OP.TMPFILE, concat(u32(2, S_IFREG | 0o644, 0, 0), name('/'))],
] as const;

function labelled(fact: string, options: Partial<LocalOptions>, body: (g: TestGuest) => Promise<void>): void {
  test(fact, { skip }, async () => {
    const guest = await TestGuest.start({ securityLabel: 'always', ...options });
    try {
      await body(guest);
    } finally {
      await guest.close();
    }
  });
}

const valueOf = async (g: TestGuest, node: bigint, attribute: string): Promise<string | number> => {
  const { error, data } = await g.call(OP.GETXATTR, node, concat(u32(100, 0), name(attribute)), 100);
  return error === 0 ? new TextDecoder().decode(data) : error;
};
const memory = NativeMemory.allocate(8192);

/** Names of a file's attributes on the host. */
function attributesOf(path: string): string[] {
  const bytes = c.check(c.listxattr(memory.putString(0, path), memory.address + 4096, 4096), 'listxattr');
  return new TextDecoder().decode(memory.u8.slice(4096, 4096 + bytes)).split('\0').slice(0, -1);
}

for (const [what, opcode, args] of CREATIONS) {
  labelled(`${what} stores the label that comes with it`, {}, async (g) => {
    for (const marked of [true, false]) {
      const reply = await create(g, opcode, args, LABEL, marked);
      assert.equal(await valueOf(g, g.entry(reply).node, LABEL), new TextDecoder().decode(VALUE));
      if (opcode === OP.CREATE || opcode === OP.MKDIR) assert.ok(attributesOf(join(g.directory, 'n')).includes(LABEL));
      if (opcode !== OP.TMPFILE) assert.equal((await g.call(opcode === OP.MKDIR ? OP.RMDIR : OP.UNLINK, ROOT, name('n'), 0)).error, 0);
    }
  });

  labelled(`${what} whose label cannot be stored fails, and leaves nothing`, {}, async (g) => {
    const before = openDescriptors();
    for (const [label, error] of [[IMPOSSIBLE, E.OPNOTSUPP], ['system.posix_acl_access', E.OPNOTSUPP], ['', E.RANGE]] as const) {
      assert.equal((await create(g, opcode, args, label)).error, -error, label);
      assert.deepEqual(readdirSync(g.directory), []);
    }
    assert.equal(openDescriptors(), before);
  });
}

labelled('a label takes the name that --xattrmap gives it, and the guest reads it by its own', { xattrMap: parseXattrMap(':map:security.:trusted.virtiofs.:') }, async (g) => {
  const { node } = g.entry(await create(g, OP.CREATE, CREATIONS[0][2], LABEL));
  assert.deepEqual(attributesOf(join(g.directory, 'n')), [`trusted.virtiofs.${LABEL}`]);
  assert.equal(await valueOf(g, node, LABEL), new TextDecoder().decode(VALUE));
});

labelled('a label whose name --xattrmap refuses fails the creation with its errno', { xattrMap: parseXattrMap(':unsupported:all:security.:security.: :ok:all:::') }, async (g) => {
  for (const [what, opcode, args] of CREATIONS) {
    assert.equal((await create(g, opcode, args, LABEL)).error, -E.OPNOTSUPP, what);
    assert.deepEqual(readdirSync(g.directory), [], what);
  }
});

labelled('CREATE of a file that exists leaves its attributes alone, and a refused one leaves the file', {}, async (g) => {
  writeFileSync(join(g.directory, 'n'), 'there');
  mkdirSync(join(g.directory, 'd'));
  assert.equal((await create(g, OP.CREATE, CREATIONS[0][2], LABEL)).error, 0);
  assert.ok(!attributesOf(join(g.directory, 'n')).includes(LABEL));
  assert.equal((await create(g, OP.CREATE, concat(u32(2 | O_EXCL, S_IFREG | 0o644, 0, 0), name('n')), IMPOSSIBLE)).error, -E.EXIST);
  assert.equal((await create(g, OP.MKDIR, concat(u32(0o755, 0), name('d')), IMPOSSIBLE)).error, -E.EXIST);
  assert.deepEqual(readdirSync(g.directory).sort(), ['d', 'n']);
});

test('SECURITY_CTX is granted with --security-label only', async () => {
  for (const securityLabel of ['always', 'auto', 'never'] as const) {
    const guest = await TestGuest.start({ securityLabel });
    try {
      const flags2 = (await guest.init()).data.getUint32(32, true);
      assert.equal((flags2 & SECURITY_CTX_IN_FLAGS2) !== 0, securityLabel !== 'never');
    } finally {
      await guest.close();
    }
  }
});

test('--security-label=always and --posix-acl=always refuse a guest without with EPROTO, and auto serves it without', async () => {
  const POSIX_ACL = 1 << 20;
  const [withoutAcl, withoutLabels] = [~POSIX_ACL >>> 0, 0xbfffffff]; // without INIT_EXT there are no flags2
  for (const [options, flags] of [[{ posixAcl: 'always' }, withoutAcl], [{ securityLabel: 'always' }, withoutLabels]] as const) {
    const guest = await TestGuest.start(options, 0, false);
    try {
      assert.equal((await guest.init(7, 45, flags)).error, -E.PROTO);
      assert.equal((await guest.init()).error, 0);
    } finally {
      await guest.close();
    }
  }
  const guest = await TestGuest.start({ posixAcl: 'auto', securityLabel: 'auto' }, 0, false);
  try {
    const setAcl = async (): Promise<number> => {
      const { entry } = await guest.create(ROOT, `f${Math.random()}`);
      return (await guest.call(OP.SETXATTR, entry.node, concat(u32(4, 0, 0, 0), name('system.posix_acl_access'), u32(2)), 0)).error;
    };
    assert.equal((await guest.init(7, 45, withoutAcl)).error, 0);
    assert.equal(await setAcl(), -E.OPNOTSUPP, 'a guest that does not enforce them sets none');
    assert.equal((await guest.init()).error, 0);
    assert.notEqual(await setAcl(), -E.OPNOTSUPP);
  } finally {
    await guest.close();
  }
});
