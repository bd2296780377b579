/**
 * Objects that another client replaces while programs of the guest have them open. A program that reads an open file sees one version, or ESTALE: never a
 * clean end before the end of what was opened, never bytes of two versions.
 *
 * The guest can hear of the other version by whatever tells it attributes or a node: GETATTR with and without a handle, LOOKUP, READDIRPLUS, OPEN by another
 * program, SETATTR. It can be longer, shorter, of the same size or empty; made anew after a removal by the other client or by this guest; read from the store,
 * the block cache or what came with the LOOKUP; and written to through a handle of the version before.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { GuestKernel, type Description, type KernelOptions } from '../support/guest-kernel.js';
import { answersHeld } from '../support/held-answers.js';
import { ObjectGuest, type GuestOptions } from '../support/object-guest.js';
import { objectOf, PARTS, withGuest } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const O_RDWR = 2;
const KIB = 1 << 10;
const MIB = 1 << 20;

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

async function withKernel(store: ObjectStore, body: (kernel: GuestKernel, g: ObjectGuest) => Promise<void>, options: GuestOptions = {}, kernel: KernelOptions = {}): Promise<void> {
  const g = await ObjectGuest.start(store, options);
  try {
    await body(new GuestKernel(g, kernel), g);
  } finally {
    await g.close();
  }
}

function opened(file: Description | number): Description {
  assert.ok(typeof file !== 'number', `open: ${file}`);
  return file;
}

interface Read {
  readonly content: Uint8Array;
  /** What ended it: 0 for what the program takes for the end of the file, or −errno. */
  readonly error: number;
}

/** As cat(1): from the beginning to the end, in pieces; `between` is awaited before each. */
async function cat(kernel: GuestKernel, file: Description, between: (at: number) => Promise<unknown> = async () => undefined): Promise<Read> {
  const out: Uint8Array[] = [];
  for (let at = 0; ; ) {
    await between(at);
    const piece = await kernel.read(file, at, 64 * KIB);
    if (typeof piece === 'number') return { content: Buffer.concat(out), error: piece };
    if (piece.length === 0) return { content: Buffer.concat(out), error: 0 };
    out.push(piece);
    at += piece.length;
  }
}

/** All of what was opened, or so much of it and then ESTALE. */
function isOneVersion({ content, error }: Read, whole: Uint8Array): void {
  assert.ok(error === 0 || error === -E.STALE, `errno ${error}`);
  assert.equal(Buffer.compare(content, whole.subarray(0, content.length)), 0, 'bytes of another version');
  if (error === 0) assert.equal(content.length, whole.length, 'a clean end before the end of what was opened');
}

describe('a program that reads what another client replaces', () => {
  const hearing: Readonly<Record<string, { hear: (kernel: GuestKernel, g: ObjectGuest) => Promise<unknown>; kernel?: KernelOptions }>> = {
    'GETATTR': { hear: async () => undefined },
    'GETATTR with a handle': { hear: async () => undefined, kernel: { withHandle: true } },
    'LOOKUP': { hear: (kernel) => kernel.lookup('f') },
    'READDIRPLUS': { hear: (kernel) => kernel.readdirplus() },
    'OPEN by another program': { hear: (kernel) => kernel.open('f'), kernel: { attributesAreCached: true } },
    'OPEN by another program with the name still cached': { hear: (kernel) => kernel.open('f'), kernel: { attributesAreCached: true, namesAreCached: true } },
    'SETATTR': { hear: async (kernel) => kernel.chmod(opened(await kernel.open('f')).inode, 0o600), kernel: { attributesAreCached: true } },
  };
  const sizes: Readonly<Record<string, readonly [before: number, read: number, after: number]>> = {
    'a large one by a short one': [9 * MIB, 8 * MIB, 1000],
    'a log by ten bytes': [300 * KIB, 64 * KIB, 10],
    'one by a longer one': [100 * KIB, 64 * KIB, 300 * KIB],
    'one by another of its size': [300 * KIB, 64 * KIB, 300 * KIB],
    'one by nothing': [300 * KIB, 64 * KIB, 0],
  };
  for (const [how, { hear, kernel: cached }] of Object.entries(hearing)) {
    for (const [what, [before, read, after]] of Object.entries(sizes)) {
      if (before > MIB && !how.startsWith('GETATTR')) continue;
      test(`hears ${how} of ${what}: it reads one version or ESTALE, and who opens it then reads the other one`, async () => {
        const store = new MemoryStore({ capabilities: { metadataInPlace: false } });
        const [old, next] = [pattern(before, 1), pattern(after, 2)];
        await store.put('f', old);
        await withKernel(store, async (kernel, g) => {
          const file = opened(await kernel.open('f'));
          const first = await cat(kernel, file, async (at) => {
            if (at !== read) return;
            await store.put('f', next);
            await hear(kernel, g);
          });
          isOneVersion(first, old);
          const second = opened(await kernel.open('f'));
          assert.deepEqual(await cat(kernel, second), { content: Buffer.from(next), error: 0 });
          // The first one again, now that the guest knows both
          isOneVersion(await cat(kernel, file), old);
          isOneVersion(await cat(kernel, second), next);
          await kernel.close(file);
          await kernel.close(second);
        }, {}, cached);
      });
    }
  }
});

describe('a file that another client has replaced while it is open', () => {
  test('is another one when this guest makes the name anew after the other client has removed it', async () => {
    const store = new MemoryStore();
    const old = pattern(200 * KIB, 1);
    await store.put('f', old);
    await withKernel(store, async (kernel, g) => {
      const file = opened(await kernel.open('f'));
      await kernel.read(file, 0, 1);
      await store.remove('f');
      const { entry, fh } = await g.create(1n, 'f');
      assert.notEqual(entry.node, file.inode.node);
      assert.equal((await g.write(entry.node, fh, 0, bytes('new'))).error, 0);
      isOneVersion(await cat(kernel, file), old);
      assert.deepEqual(await cat(kernel, opened(await kernel.open('f'))), { content: Buffer.from('new'), error: 0 });
    });
    assert.equal((await objectOf(store, 'f')).toString(), 'new');
  });

  test('has no name any more (nlink 0), is opened again as what it is by /proc/self/fd, and for writing is ESTALE', async () => {
    const store = new MemoryStore({ etags: true });
    const old = pattern(100 * KIB, 1);
    await store.put('f', old);
    await withKernel(store, async (kernel) => {
      const file = opened(await kernel.open('f'));
      await store.put('f', bytes('next'));
      assert.equal(opened(await kernel.open('f')).inode.size, 4);
      await kernel.stat(file);
      assert.deepEqual([file.inode.nlink, file.inode.size], [0, old.length]);
      // Linux tries again after ESTALE, and has no name to look up
      let again = await kernel.reopen(file.inode);
      if (again === -E.STALE) again = await kernel.reopen(file.inode);
      await store.put('f', old);
      assert.deepEqual(await cat(kernel, opened(again)), { content: Buffer.from(old), error: 0 });
      for (let attempt = 0; attempt < 2; attempt++) assert.equal(await kernel.reopen(file.inode, O_RDWR), -E.STALE);
    });
  });

  test('is ESTALE for what is done to it without a handle, so that Linux looks the name up again', async () => {
    const store = new MemoryStore();
    await store.put('f', bytes('first'));
    await withKernel(store, async (kernel) => {
      const file = opened(await kernel.open('f'));
      await store.put('f', bytes('second'));
      assert.equal(await kernel.truncate(file.inode, 1), -E.STALE);
      assert.equal(await kernel.chmod(file.inode, 0o600), -E.STALE);
      const next = await kernel.lookup('f');
      assert.ok(typeof next !== 'number');
      assert.equal(await kernel.chmod(next, 0o600), 0);
      assert.equal(await kernel.truncate(next, 3), 0);
    });
    assert.equal((await objectOf(store, 'f')).toString(), 'sec');
  });

  const written: Readonly<Record<'keep' | 'overwrite', string>> = { keep: 'second', overwrite: 'HEREn' };
  for (const onConflict of ['keep', 'overwrite'] as const) {
    for (const known of ['before', 'after'] as const) {
      test(`is written to through a handle, and the other version is looked up ${known} that (--on-conflict=${onConflict})`, async () => {
        const store = new MemoryStore();
        await store.put('f', bytes('first'));
        await withKernel(store, async (kernel) => {
          const file = opened(await kernel.open('f', O_RDWR));
          await store.put('f', bytes('second'));
          const other = known === 'before' ? opened(await kernel.open('f')) : null;
          assert.equal(await kernel.write(file, 0, bytes('HERE')), 4);
          if (known === 'before') assert.notEqual(other!.inode, file.inode);
          assert.equal(await kernel.fsync(file), onConflict === 'keep' ? -E.STALE : 0);
          assert.deepEqual(await cat(kernel, opened(await kernel.open('f'))), { content: Buffer.from(written[onConflict]), error: 0 });
          if (other !== null) isOneVersion(await cat(kernel, other), bytes('second'));
        }, { write: { onConflict } });
        assert.equal((await objectOf(store, 'f')).toString(), written[onConflict]);
        const { objects } = await store.list({ prefix: '.bucketfsd-conflicts/' });
        assert.equal(objects.length, onConflict === 'keep' ? 1 : 0);
        if (onConflict === 'keep') assert.equal((await objectOf(store, objects[0].key)).toString().slice(0, 4), 'HERE');
      });
    }
  }

  test('and the one in its place are both written to: nothing of either is lost, after a kill neither', async () => {
    for (const killed of [false, true]) {
      const store = new MemoryStore();
      await store.put('f', bytes('first.'));
      let g = await ObjectGuest.start(store, { write: { durability: 'writeback', writebackDelay_ms: 3_600_000 } });
      let kernel = new GuestKernel(g);
      const first = opened(await kernel.open('f', O_RDWR));
      await store.put('f', bytes('second'));
      const second = opened(await kernel.open('f', O_RDWR));
      assert.equal(await kernel.write(first, 0, bytes('OLD')), 3);
      assert.equal(await kernel.write(second, 0, bytes('NEW')), 3);
      assert.deepEqual(await cat(kernel, second), { content: Buffer.from('NEWond'), error: 0 });
      assert.deepEqual([await kernel.fsync(first), await kernel.fsync(second)], [0, 0]);
      if (killed) {
        await g.kill();
        g = await ObjectGuest.start(store, { write: { durability: 'writeback', writebackDelay_ms: 0, cacheDirectory: g.cacheDirectory! } });
        kernel = new GuestKernel(g);
      }
      await g.opened.idle();
      assert.equal((await objectOf(store, 'f')).toString(), 'NEWond');
      const { objects } = await store.list({ prefix: '.bucketfsd-conflicts/' });
      assert.deepEqual(objects.length, 1);
      assert.equal((await objectOf(store, objects[0].key)).toString().slice(0, 3), 'OLD');
      await g.close();
      g.discard();
    }
  });

  test('stays what it is when the name is removed, renamed or replaced here: the one in its place is what goes', async () => {
    for (const what of ['unlink', 'rename', 'rename over'] as const) {
      const store = new MemoryStore({ etags: true });
      await store.put('f', bytes('first'));
      await store.put('other', bytes('other'));
      await withKernel(store, async (kernel, g) => {
        const file = opened(await kernel.open('f'));
        await store.put('f', bytes('second'));
        const next = opened(await kernel.open('f'));
        const [from, to] = what === 'rename' ? ['f', 'g'] : ['other', 'f'];
        const { error } = what === 'unlink' ? await g.call(OP.UNLINK, 1n, name('f'), 0) : await g.call(OP.RENAME2, 1n, concat(u64(1n), u32(0, 0), name(from), name(to)), 0);
        assert.equal(error, 0);
        assert.deepEqual(await cat(kernel, next), { content: Buffer.from('second'), error: 0 });
        isOneVersion(await cat(kernel, file), bytes('first'));
        // As if it had come back
        await store.put('f', bytes('first'));
        assert.deepEqual(await cat(kernel, file), { content: Buffer.from('first'), error: 0 });
      });
    }
  });

  test('gives its name to what comes there with the directory around it', async () => {
    const store = new MemoryStore();
    await store.put('d/f', bytes('first'));
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const lookup = async (): Promise<bigint> => (await g.lookup((await g.lookup(1n, 'd')).node, 'f')).node;
      const old = await lookup();
      const fh = await g.open(old, O_RDWR);
      await store.remove('d/f');
      await store.put('e/f', bytes('second'));
      assert.equal((await g.call(OP.RENAME2, 1n, concat(u64(1n), u32(0, 0), name('e'), name('d')), 0)).error, 0);
      assert.equal((await g.write(old, fh, 0, bytes('to the first'))).error, -E.STALE);
      const node = await lookup();
      assert.notEqual(node, old);
      assert.equal(String(await guest.content(node)), 'second');
      await guest.release(old, fh);
    });
  });

  test('has no name that this guest has given to another file since, after a kill neither', async () => {
    const store = new MemoryStore();
    await store.put('f', bytes('first'));
    await store.put('other', bytes('other'));
    const first = await ObjectGuest.start(store, { write: { durability: 'writeback', writebackDelay_ms: 600_000 } });
    const { node: old } = await first.lookup(1n, 'f');
    const fh = await first.open(old, O_RDWR);
    await store.put('f', bytes('second'));
    assert.notEqual((await first.lookup(1n, 'f')).node, old);
    assert.equal((await first.call(OP.RENAME2, 1n, concat(u64(1n), u32(0, 0), name('other'), name('f')), 0)).error, 0);
    assert.equal((await first.write(old, fh, 0, bytes('written'))).error, -E.STALE);
    await first.kill();
    await withGuest(store, async (next) => {
      assert.equal(String(await next.content((await next.g.lookup(1n, 'f')).node)), 'other');
    }, { write: { cacheDirectory: first.cacheDirectory! } });
    first.discard();
    assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
  });

  test('has no name that this guest has renamed another file to since somebody else removed it', async () => {
    const memory = new MemoryStore();
    for (const key of ['f', 'g']) await memory.put(key, bytes(key));
    await withGuest(memory, async ({ g }) => {
      const { node: old } = await g.lookup(1n, 'f');
      const fh = await g.open(old);
      await memory.remove('f');
      await g.lookup(1n, 'g');
      assert.equal((await g.call(OP.RENAME2, 1n, concat(u64(1n), u32(0, 0), name('g'), name('f')))).error, 0);
      assert.equal((await g.write(old, fh, 0, bytes('written'))).error, -E.STALE);
    }, { metadataTtl_ms: 0 });
    assert.equal((await objectOf(memory, 'f')).toString(), 'g');
    assert.deepEqual((await memory.list({ prefix: '' })).objects.map(({ key }) => key), ['f']);
  });

  test('can be removed and renamed over by who has not heard of that', async () => {
    for (const ttl of [0, 3_600_000]) {
      for (const size of [10, 9 * MIB]) {
        for (const over of [false, true]) {
          const store = new MemoryStore();
          await store.put('f', pattern(size, 1));
          await store.put('other', bytes('other'));
          await withKernel(store, async (kernel, g) => {
            await kernel.readdirplus();
            const file = opened(await kernel.open('f'));
            await store.put('f', pattern(size, 2));
            const ask = async (): Promise<number> =>
              (over ? await g.call(OP.RENAME2, 1n, concat(u64(1n), u32(0, 0), name('other'), name('f')), 0) : await g.call(OP.UNLINK, 1n, name('f'), 0)).error;
            let error = await ask();
            if (error === -E.STALE) error = await ask();
            assert.equal(error, 0);
            isOneVersion(await cat(kernel, file), pattern(size, 1));
          }, { metadataTtl_ms: ttl });
          assert.deepEqual((await store.list({ prefix: '' })).objects.map(({ key }) => key), over ? ['f'] : ['other']);
        }
      }
    }
  });

  test('is forgotten when it is closed and forgotten, as the one in its place', async () => {
    const store = new MemoryStore();
    await store.put('f', bytes('0'));
    await withKernel(store, async (kernel, g) => {
      const nodes: bigint[] = [];
      const { ino } = await g.lookup(1n, 'f');
      for (let round = 1; round <= 100; round++) {
        const file = opened(await kernel.open('f'));
        await store.put('f', bytes(String(round)));
        const next = await kernel.lookup('f');
        assert.ok(typeof next !== 'number');
        nodes.push(file.inode.node, next.node);
        await kernel.close(file);
        for (const node of new Set([file.inode.node, next.node])) await g.call(OP.FORGET, node, u64(1000), 0);
      }
      for (const node of nodes) assert.equal((await g.call(OP.GETATTR, node, new Uint8Array(16), 104)).error, -E.STALE);
      assert.equal((await g.lookup(1n, 'f')).ino, ino, 'the inode number is that of the key again');
    });
  });
});

describe('what is not another client\'s doing', () => {
  for (const held of ['setMetadata', 'put'] as const) {
    test(`a version of ours, of which the answer has not come yet, is no other file (${held})`, async () => {
      const memory = new MemoryStore({ capabilities: { metadataInPlace: false } });
      await memory.put('f', bytes('first'));
      const { store, done, open } = answersHeld(memory, [held]);
      await withKernel(store, async (kernel, g) => {
        const file = opened(await kernel.open('f', O_RDWR));
        if (held === 'put') assert.equal(await kernel.write(file, 0, bytes('F')), 1);
        const { node } = file.inode;
        const ask = (opcode: number, at: bigint, args: Uint8Array): void => {
          g.queue.chain([g.request(opcode, at, args).bytes], [400], true);
          g.queue.kick();
        };
        if (held === 'put') ask(OP.FSYNC, node, concat(u64(file.fh), u32(0, 0)));
        else ask(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)));
        while (done() === 0) await turn();
        ask(OP.LOOKUP, 1n, name('f'));
        ask(OP.GETATTR, node, new Uint8Array(16));
        for (let i = 0; i < 20; i++) await turn();
        open();
        await g.queue.wait(3);
        const again = await kernel.lookup('f');
        assert.ok(typeof again !== 'number');
        assert.deepEqual([again.node, again.nlink], [node, 1]);
        assert.deepEqual(await cat(kernel, file), { content: Buffer.from(held === 'put' ? 'First' : 'first'), error: 0 });
        assert.equal(await kernel.close(file), 0);
      });
    });
  }
});

describe('a file whose commit came on top of another client\'s version (--on-conflict=overwrite)', () => {
  const write = { onConflict: 'overwrite' } as const;
  const size = 256 * KIB;
  const [old, next] = [pattern(size, 1), pattern(size, 2)];

  /** Written at its beginning, and read as far as `read`, when the other version comes; and stored on top of that. */
  async function overwritten(read: number, body: (kernel: GuestKernel, file: Description, store: MemoryStore, stored: Buffer) => Promise<void>): Promise<void> {
    const store = new MemoryStore();
    await store.put('f', old);
    await withKernel(store, async (kernel) => {
      const file = opened(await kernel.open('f', O_RDWR));
      assert.equal(await kernel.write(file, 0, bytes('HERE')), 4);
      await kernel.stat(file);
      if (read > 0) assert.ok(typeof (await kernel.read(file, 0, read)) !== 'number');
      await store.put('f', next);
      assert.equal(await kernel.fsync(file), 0);
      const stored = await objectOf(store, 'f');
      assert.equal(stored.toString('latin1', 0, 4), 'HERE');
      // What was read with what was written is staged, too
      assert.equal(Buffer.compare(stored.subarray(64 * KIB), next.subarray(64 * KIB)), 0);
      await body(kernel, file, store, stored);
    }, { write });
  }

  test('is read anew by who opens it then, whatever pages the guest has of the former one', () => overwritten(size, async (kernel, file, _store, stored) => {
    const read = async (): Promise<Read> => cat(kernel, opened(await kernel.open('f')));
    assert.deepEqual(await read(), { content: stored, error: 0 });
    await kernel.close(file);
    assert.deepEqual(await read(), { content: stored, error: 0 });
  }));

  test('is read anew also when nobody had it open any more', async () => {
    const store = new MemoryStore();
    await store.put('f', old);
    await withKernel(store, async (kernel, g) => {
      const file = opened(await kernel.open('f', O_RDWR));
      assert.equal(await kernel.write(file, 0, bytes('HERE')), 4);
      await kernel.stat(file);
      assert.equal((await cat(kernel, file)).error, 0);
      await kernel.close(file);
      await store.put('f', next);
      await g.opened.idle();
      const stored = await objectOf(store, 'f');
      assert.equal(Buffer.compare(stored.subarray(64 * KIB), next.subarray(64 * KIB)), 0);
      assert.deepEqual(await cat(kernel, opened(await kernel.open('f'))), { content: stored, error: 0 });
    }, { write: { ...write, durability: 'writeback', writebackDelay_ms: 3_600_000 } });
  });

  test('has nothing of the other version in what was open before: reading on is ESTALE', () => overwritten(64 * KIB, async (kernel, file) => {
    const before = Buffer.from(old);
    before.set(bytes('HERE'), 0);
    isOneVersion(await cat(kernel, file), before);
  }));

  test('is written to on: the last commit counts', () => overwritten(0, async (kernel, file, store, stored) => {
    assert.equal(await kernel.write(file, 4, bytes('AND THERE')), 9);
    assert.equal(await kernel.fsync(file), 0);
    const content = Buffer.from(stored);
    content.set(bytes('AND THERE'), 4);
    assert.equal(Buffer.compare(await objectOf(store, 'f'), content), 0);
    assert.deepEqual(await cat(kernel, opened(await kernel.open('f'))), { content, error: 0 });
    assert.equal(await kernel.close(file), 0);
  }));

  test('has only bytes of the other version and of what was written, also where parts of the former one had been fetched ahead', async () => {
    const large = 3 * MIB;
    const [before, after] = [pattern(large, 1), pattern(large, 2)];
    const store = new MemoryStore({ limits: PARTS });
    await store.put('f', before);
    await withKernel(store, async (kernel) => {
      const file = opened(await kernel.open('f', O_RDWR));
      assert.equal(await kernel.write(file, large - 10, bytes('HERE')), 4);
      assert.ok(typeof (await kernel.read(file, 0, MIB)) !== 'number');
      await store.put('f', after);
      assert.equal(await kernel.fsync(file), 0);
      const content = Buffer.from(after);
      content.set(bytes('HERE'), large - 10);
      assert.equal(Buffer.compare(await objectOf(store, 'f'), content), 0);
    }, { write });
  });
});
