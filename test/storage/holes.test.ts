/**
 * Files with large holes: zeros are sent once and copied within the store, so that a hole costs requests instead of traffic.
 *
 * Tried besides: holes made by a write far behind the end, by truncation with a handle and by name, by punching; holes behind and inside of an object that was
 * there; a file that was sent while it was written, and then got a hole; changes while the hole is copied; reading back, and changing what was stored so; a
 * daemon that is killed meanwhile; zeros that somebody has removed; providers that copy whole objects, or nothing; sizes that no object has.
 */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import type { Part } from '../../src/storage/object/store.js';
import type { CommitSizes } from '../../src/storage/object/write/layout.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';
import { RopeStore } from '../support/rope-store.js';
import { Guest, withGuest } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;
const O_RDWR = 2;
const [KIB, MIB, GIB, TIB] = [2 ** 10, 2 ** 20, 2 ** 30, 2 ** 40];
const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);
/** As large ones, of which a test can have data as well. */
const TINY: Partial<CommitSizes> = { putMaxBytes: 64 * KIB, partBytes: 32 * KIB, copyMaxBytes: MIB, growAfterParts: 4, partsAtOnce: 3, zeroBytes: 64 * KIB, holeBytes: 128 * KIB };
const TINY_LIMITS = { partMinBytes: 16 * KIB };

async function reads({ g }: Guest, node: bigint, fh: bigint, expected: readonly (readonly [offset: number, content: Uint8Array])[]): Promise<void> {
  for (const [offset, content] of expected) {
    const { error, data } = await g.read(node, fh, offset, content.length);
    assert.equal(error, 0);
    assert.deepEqual(Buffer.from(data.buffer, data.byteOffset, data.byteLength), Buffer.from(content), `at ${offset}`);
  }
}

const fallocate = async ({ g }: Guest, node: bigint, fh: bigint, mode: number, offset: number, length: number): Promise<number> =>
  (await g.call(OP.FALLOCATE, node, concat(u64(fh, BigInt(offset), BigInt(length)), u32(mode, 0)), 0)).error;
const PUNCH = 3;

/** Only what was stored is left. */
function onlyObjects(store: RopeStore, ...keys: string[]): void {
  assert.deepEqual([...store.objects.keys()].sort(), keys.sort());
  assert.equal(store.uploads.size, 0);
}

for (const copyPart of ['range', 'whole'] as const) {
  for (const durability of ['remote', 'writeback'] as const) {
    describe(`where the provider copies ${copyPart === 'range' ? 'ranges' : 'whole objects'}, ${durability}`, () => {
      test('three bytes at a TiB are a small upload; they are read back, and changed', async () => {
        const store = new RopeStore(copyPart);
        await withGuest(store, async (guest) => {
          const { entry: { node }, fh } = await guest.g.create(ROOT, 'far');
          await guest.write(node, fh, TIB, bytes('far'));
          assert.equal(await guest.close(node, fh), 0);
          await guest.g.opened.idle();
          onlyObjects(store, 'far');
          assert.equal((await store.head('far')).size, TIB + 3);
          assert.ok(store.sentBytes <= 80 * MIB, `${store.sentBytes} bytes were sent`);
          assert.ok(store.calls.get('copyPart')! <= 1300, `${store.calls.get('copyPart')} copies`);

          store.sentBytes = 0;
          const again = await guest.g.open(node, O_RDWR);
          await reads(guest, node, again, [[TIB - 5, bytes('\0\0\0\0\0far')], [12345, new Uint8Array(1000)], [TIB / 2, new Uint8Array(10)]]);
          // Of an object that is copied as a whole nothing can be changed but its end: all of it would have to be fetched
          if (copyPart === 'range') await guest.write(node, again, TIB / 2, bytes('middle'));
          await guest.write(node, again, TIB + 3, bytes(' away'));
          assert.equal(await guest.close(node, again), 0);
          await guest.g.opened.idle();
          assert.ok(store.sentBytes <= 80 * MIB, `${store.sentBytes} bytes were sent`);
          const last = await guest.g.open(node, O_RDWR);
          await reads(guest, node, last, [[TIB - 2, bytes('\0\0far away')], [TIB / 2 - 2, copyPart === 'range' ? bytes('\0\0middle\0\0') : new Uint8Array(10)]]);
          await guest.release(node, last);
        }, { write: { durability } });
        onlyObjects(store, 'far');
      });

      test('a disk image of a TiB made by truncation, by name, takes no data at all', async () => {
        const store = new RopeStore(copyPart);
        await withGuest(store, async (guest) => {
          const { entry: { node }, fh } = await guest.g.create(ROOT, 'disk');
          assert.equal(await guest.close(node, fh), 0);
          assert.equal(await guest.truncate(node, TIB), 0);
          await guest.g.opened.idle();
          assert.equal((await store.head('disk')).size, TIB);
          assert.ok(store.sentBytes <= 64 * MIB, `${store.sentBytes} bytes were sent`);
        }, { write: { durability } });
        onlyObjects(store, 'disk');
      });
    });
  }

  test(`holes anywhere, made in any way, are the file that it should be, where ${copyPart} objects are copied`, async () => {
    const store = new RopeStore(copyPart, TINY_LIMITS);
    const data = pattern(900 * KIB);
    await store.put('old', data);
    await withGuest(store, async (guest) => {
      const { node } = await guest.g.lookup(ROOT, 'old');
      const fh = await guest.g.open(node, O_RDWR);
      const model = Buffer.alloc(40 * MIB);
      model.set(data);
      store.sentBytes = 0;
      await guest.write(node, fh, 20 * MIB, bytes('behind a hole'));
      model.write('behind a hole', 20 * MIB);
      assert.equal(await fallocate(guest, node, fh, PUNCH, 100 * KIB, 700 * KIB), 0);
      model.fill(0, 100 * KIB, 800 * KIB);
      assert.equal(await guest.fsync(node, fh), 0);
      assert.ok(store.sentBytes < (copyPart === 'range' ? 500 : 700) * KIB, `${store.sentBytes} bytes were sent`);
      const check = async (): Promise<void> => {
        const { size } = await store.head('old');
        const content = Buffer.alloc(size);
        await store.read('old', { offset: 0, into: content });
        assert.ok(content.equals(model.subarray(0, size)));
      };
      await check();
      // What was copied is changed, cut and grown again
      await guest.write(node, fh, 10 * MIB + 7, pattern(50 * KIB));
      model.set(pattern(50 * KIB), 10 * MIB + 7);
      assert.equal(await guest.fsync(node, fh), 0);
      await check();
      assert.equal(await guest.truncate(node, 5 * MIB), 0);
      assert.equal(await guest.truncate(node, 40 * MIB), 0);
      model.fill(0, 5 * MIB);
      assert.equal(await guest.fsync(node, fh), 0);
      await check();
      assert.equal(await guest.close(node, fh), 0);
    }, { write: { sizes: TINY } });
    onlyObjects(store, 'old');
  });
}

describe('while a hole is copied', () => {
  /** Copies wait until they are let go, or given up. */
  const held = (store: RopeStore): { begun: Promise<void>; release: () => void } => {
    let release = (): void => undefined;
    let begin = (): void => undefined;
    const begun = new Promise<void>((resolve) => (begin = resolve));
    const released = new Promise<void>((resolve) => (release = resolve));
    store.copying = ({ signal }) => {
      begin();
      return Promise.race([released, new Promise<void>((resolve) => signal?.addEventListener('abort', () => resolve()))]);
    };
    return { begun, release };
  };

  const ask = (g: ObjectGuest, opcode: number, node: bigint, args: Uint8Array): (() => number) => {
    const { writable } = g.queue.chain([g.request(opcode, node, args).bytes], [400], true);
    g.queue.kick();
    return () => new DataView(g.memory.u8.buffer, g.memory.u8.byteOffset + writable[0]).getInt32(4, true);
  };

  test('the file can be removed: its upload ends at once, who waits for it hears that all is well, and nothing is left', async () => {
    for (const before of [null, 'before']) {
      const store = new RopeStore('range');
      if (before !== null) await store.put('far', bytes(before));
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const node = before === null ? (await g.create(ROOT, 'far')).entry.node : (await g.lookup(ROOT, 'far')).node;
        const fh = await g.open(node, O_RDWR);
        await guest.write(node, fh, TIB, bytes('far'));
        const { begun } = held(store);
        const flushed = ask(g, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
        await begun;
        const removed = ask(g, OP.UNLINK, ROOT, name('far'));
        await g.queue.wait(2);
        assert.deepEqual([removed(), flushed()], [0, 0]);
        store.copying = async () => undefined;
        await reads(guest, node, fh, [[TIB, bytes('far')]]);
        await guest.release(node, fh);
        await g.opened.idle();
      });
      onlyObjects(store);
    }
  });

  test('an INTERRUPT of the FLUSH ends it, and so do rings that are drained; the commit goes on', async () => {
    const store = new RopeStore('range');
    const g = await ObjectGuest.start(store, {});
    try {
      const guest = new Guest(g);
      const { entry: { node }, fh } = await g.create(ROOT, 'far');
      await guest.write(node, fh, TIB, bytes('far'));
      const { begun, release } = held(store);
      const { bytes: request, unique } = g.request(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
      const { writable } = g.queue.chain([request], [400], true);
      g.queue.kick();
      await begun;
      g.queue.chain([g.request(OP.INTERRUPT, 0n, u64(unique)).bytes], [16], true);
      g.queue.kick();
      assert.deepEqual((await g.queue.wait(2)).map(({ length }) => length).sort(), [0, 16], 'an INTERRUPT has no reply');
      assert.equal(new DataView(g.memory.u8.buffer, g.memory.u8.byteOffset + writable[0]).getInt32(4, true), -E.INTR);
      const synced = ask(g, OP.FSYNC, node, concat(u64(fh), u32(0, 0)));
      await g.lookup(ROOT, 'far'); // which comes behind it
      g.opened.fs.cancelWaiting(); // as when rings are drained
      await g.queue.wait();
      assert.equal(synced(), -E.INTR);
      await g.depart();
      assert.equal(store.objects.has('far'), false);
      release();
      assert.equal(await g.opened.close(), 0, 'nothing is left');
      assert.equal((await store.head('far')).size, TIB + 3);
    } finally {
      g.discard();
    }
    onlyObjects(store, 'far');
  });

  test('others are committed, however many large ones are under way', async () => {
    const store = new RopeStore('range');
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { begun, release } = held(store);
      for (let i = 0; i < 20; i++) {
        const { entry: { node }, fh } = await g.create(ROOT, `large${i}`);
        await guest.write(node, fh, 2 * GIB, bytes('far'));
        await guest.release(node, fh);
      }
      await begun;
      const { entry: { node }, fh } = await g.create(ROOT, 'small');
      await guest.write(node, fh, 0, bytes('small'));
      await guest.release(node, fh);
      while (!store.objects.has('small')) await turn();
      assert.equal([...store.objects.keys()].some((key) => key.startsWith('large')), false);
      release();
    }, { write: { durability: 'writeback', writebackDelay_ms: 1 } });
    onlyObjects(store, 'small', ...Array.from({ length: 20 }, (_, i) => `large${i}`));
  });

  test('a file that is cut copies no more of it', async () => {
    const store = new RopeStore('range');
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { entry: { node }, fh } = await g.create(ROOT, 'far');
      await guest.write(node, fh, TIB, bytes('far'));
      const flushed = ask(g, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
      let copies = 0;
      let cut: (() => number) | null = null;
      store.copying = async () => {
        await turn();
        if (++copies === 100) cut = ask(g, OP.SETATTR, node, concat(u32(8 | 64, 0), u64(fh, 3n, 0n, 0n, 0n, 0n), u32(0, 0, 0, 0, 0, 0, 0, 0)));
      };
      await g.queue.wait(2);
      assert.deepEqual([flushed(), cut!()], [0, 0]);
      assert.ok(copies < 200, `${copies} copies`);
      assert.equal(await guest.close(node, fh), 0);
      assert.equal((await store.head('far')).size, 3);
    });
    onlyObjects(store, 'far');
  });

  test('what is written to it counts, in this commit or the next', async () => {
    const store = new RopeStore('range');
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { entry: { node }, fh } = await g.create(ROOT, 'far');
      await guest.write(node, fh, TIB, bytes('far'));
      const { begun, release } = held(store);
      const flushed = ask(g, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
      await begun;
      const written: (() => number)[] = [];
      for (let i = 1; i < 5; i++) {
        written.push(ask(g, OP.WRITE, node, concat(u64(fh, BigInt(i * 100 * GIB)), u32(6, 0), u64(0), u32(0, 0), bytes(`hole ${i}`))));
        await g.queue.wait();
      }
      release();
      await g.queue.wait();
      assert.deepEqual([flushed(), ...written.map((one) => one())], [0, 0, 0, 0, 0]);
      assert.equal(await guest.close(node, fh), 0);
      for (let i = 1; i < 5; i++) {
        const into = new Uint8Array(8);
        await store.read('far', { offset: i * 100 * GIB - 1, into });
        assert.equal(Buffer.from(into).toString(), `\0hole ${i}\0`);
      }
    });
    onlyObjects(store, 'far');
  });

  test('a daemon that is killed leaves zeros and an upload, which the next one removes, and commits', async () => {
    const store = new RopeStore('range');
    const g = await ObjectGuest.start(store, { write: { durability: 'remote' } });
    try {
      const guest = new Guest(g);
      const { entry: { node }, fh } = await g.create(ROOT, 'far');
      await guest.write(node, fh, TIB, bytes('far'));
      const copies = { left: 100, stopped: (): void => undefined, die: (): void => undefined };
      const stopped = new Promise<void>((resolve) => (copies.stopped = resolve));
      const dead = new Promise<void>((resolve) => (copies.die = resolve));
      store.copying = async () => {
        if (copies.left-- > 0) return;
        copies.stopped();
        await dead;
        throw new StorageError('interrupted', 'copy part');
      };
      ask(g, OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
      await stopped;
      const killed = g.kill();
      store.abortUpload = async () => Promise.reject(new StorageError('interrupted', 'abort'));
      copies.die();
      await killed;
      Reflect.deleteProperty(store, 'abortUpload');
      assert.ok([...store.objects.keys()].some((key) => key.startsWith('.bucketfsd-unlinked/')) && store.uploads.size > 0);
      store.copying = async () => undefined;
      const next = await ObjectGuest.start(store, { write: { cacheDirectory: g.cacheDirectory! } });
      assert.deepEqual(await next.list(ROOT), ['far']);
      assert.equal(await next.close(), 0);
      onlyObjects(store, 'far');
      assert.equal((await store.head('far')).size, TIB + 3);
    } finally {
      g.discard();
    }
  });

  test('zeros that somebody removes are made anew', async () => {
    const store = new RopeStore('range');
    await withGuest(store, async (guest) => {
      const { entry: { node }, fh } = await guest.g.create(ROOT, 'far');
      await guest.write(node, fh, TIB, bytes('far'));
      let copies = 0;
      store.copying = async () => {
        if (++copies === 200) for (const key of store.objects.keys()) store.objects.delete(key);
      };
      assert.equal(await guest.close(node, fh), 0);
      assert.equal((await store.head('far')).size, TIB + 3);
    });
    onlyObjects(store, 'far');
  });
});

test('what is too large to be copied by one request is renamed, and described, by copies of parts', async () => {
  const store = new RopeStore('range');
  const headers = { 'content-type': 'text/x-far' };
  const upload = await store.beginUpload('far', { headers });
  const version = await store.put('zeros', new Uint8Array(5 * MIB));
  const zeros: Part[] = [];
  for (let n = 1; n <= 1200; n++) zeros.push(await store.copyPart(upload, n, { key: 'zeros', version, offset: 0, bytes: 5 * MIB }));
  await store.completeUpload(upload, [...zeros, await store.putPart(upload, 1201, bytes('end'))]);
  await store.remove('zeros');
  await withGuest(store, async (guest) => {
    const { g } = guest;
    const { node } = await g.lookup(ROOT, 'far');
    assert.equal((await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)))).error, 0);
    assert.equal((await g.call(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('far'), name('away')), 0)).error, 0);
    const fh = await g.open(node, 0);
    await reads(guest, node, fh, [[6000 * MIB - 1, bytes('\0end')]]);
    await guest.release(node, fh);
  });
  onlyObjects(store, 'away');
  const info = await store.head('away');
  assert.deepEqual([info.metadata!['mode'], info.headers], [String(0o100600), headers]);
});

test('a file that was sent while it was written, and then gets a hole, does not send the hole', async () => {
  const store = new RopeStore('range', TINY_LIMITS);
  await withGuest(store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'streamed');
    await guest.write(node, fh, 0, pattern(600 * KIB));
    // In the middle of a part of 128 MiB, as it would be by then
    await guest.write(node, fh, GIB + 64 * MIB, bytes('far'));
    assert.equal(await guest.close(node, fh), 0);
    assert.ok(store.sentBytes < 2 * MIB, `${store.sentBytes} bytes were sent`);
    const into = new Uint8Array(600 * KIB + 10);
    await store.read('streamed', { offset: 0, into });
    assert.ok(Buffer.concat([pattern(600 * KIB), new Uint8Array(10)]).equals(into));
  }, { write: { sizes: TINY } });
  onlyObjects(store, 'streamed');
});

test('where the provider copies nothing, a hole that would have to be sent is EFBIG when it is made; smaller ones are sent', async () => {
  const store = new RopeStore('none', TINY_LIMITS);
  await withGuest(store, async (guest) => {
    const { g } = guest;
    const { entry: { node }, fh } = await g.create(ROOT, 'f');
    const far = 20 * GIB;
    assert.equal((await g.write(node, fh, far, bytes('far'))).error, -E.FBIG);
    assert.equal(await guest.truncate(node, far), -E.FBIG);
    assert.equal(await fallocate(guest, node, fh, 0, 0, far), -E.FBIG);
    await guest.write(node, fh, 20 * MIB, bytes('near'));
    assert.equal(await guest.close(node, fh), 0);
    assert.equal((await store.head('f')).size, 20 * MIB + 4);
  });
  onlyObjects(store, 'f');
});

test('what is larger than any object, or than parts can make, is EFBIG when it is written, not when it is closed', async () => {
  for (const limits of [{ objectBytes: 10 * TIB }, { partMaxBytes: 64 * MIB, parts: 100 }]) {
    const store = new RopeStore('range', limits);
    const most = limits.objectBytes ?? limits.partMaxBytes * limits.parts;
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { entry: { node }, fh } = await g.create(ROOT, 'f');
      assert.equal((await g.write(node, fh, most - 2, bytes('far'))).error, -E.FBIG);
      assert.equal(await guest.truncate(node, most + 1), -E.FBIG);
      assert.equal(await fallocate(guest, node, fh, 0, most, 1), -E.FBIG);
      assert.equal((await g.write(node, fh, most - 3, bytes('far'))).error, 0);
      assert.equal(await guest.close(node, fh), 0);
      assert.equal((await store.head('f')).size, most);
    });
  }
});

test('what fails for good ends the upload with the first part that fails', async () => {
  const store = new RopeStore('range');
  await withGuest(store, async (guest) => {
    const { entry: { node }, fh } = await guest.g.create(ROOT, 'far');
    await guest.write(node, fh, TIB, bytes('far'));
    let copies = 0;
    store.copying = async () => {
      if (++copies > 40) throw new StorageError('denied', 'copy part');
    };
    assert.equal(await guest.flush(node, fh), -E.ACCES);
    assert.ok(copies < 60, `${copies} copies were asked for`);
    store.copying = async () => undefined;
    assert.equal(await guest.close(node, fh), 0);
  });
  onlyObjects(store, 'far');
});
