/** A name that no object of the store can have is refused when it is made, not when it is committed: with --durability=writeback nobody would hear of it. */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { E } from '../../src/base/errno.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { gcsProvider } from '../support/providers.js';
import { withGuest } from '../support/writing-guest.js';

const ROOT = 1n;

for (const durability of ['remote', 'writeback'] as const) {
  test(`${durability}: names with line ends are EINVAL on Google Cloud Storage, whatever makes them`, async () => {
    const provider = await gcsProvider('keys');
    try {
      await withGuest(provider.store, async (guest) => {
        await guest.put('f', new Uint8Array(1));
        for (const bad of ['new\nline', '\r']) {
          for (const [opcode, args] of [
            [OP.CREATE, concat(u32(0o102, 0o100644, 0, 0), name(bad))], [OP.MKDIR, concat(u32(0o755, 0), name(bad))], [OP.SYMLINK, concat(name(bad), name('target'))],
            [OP.MKNOD, concat(u32(0o010644, 0, 0, 0), name(bad))], [OP.RENAME2, concat(u64(ROOT), u32(0, 0), name('f'), name(bad))],
          ] as const) assert.equal((await guest.g.call(opcode, ROOT, args, 160)).error, -E.INVAL, `opcode ${opcode} of ${JSON.stringify(bad)}`);
          assert.equal((await guest.g.call(OP.LOOKUP, ROOT, name(bad), 128)).error, -E.NOENT);
        }
        assert.deepEqual(await guest.g.list(ROOT), ['f']);
      }, { write: { durability } });
      assert.deepEqual((await provider.store.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
    } finally {
      await provider.stop();
    }
  });
}
