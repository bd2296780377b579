/** Requests that overtake each other: the server has done what one of ours asked for, and nobody here has heard of it yet. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { E } from '../../src/base/errno.js';
import { StorageError } from '../../src/storage/object/errors.js';
import { intercept, type Call } from '../../src/storage/object/layers/intercept.js';
import { readPosix } from '../../src/storage/object/posix-metadata.js';
import { COMMIT } from '../../src/storage/object/settle.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { answersHeld } from '../support/held-answers.js';
import type { ObjectGuest } from '../support/object-guest.js';
import { objectOf, PARTS, SMALL, withGuest } from '../support/writing-guest.js';
import { pattern } from './contract.js';

const ROOT = 1n;

const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

describe('reads', () => {
  const overtakers: Readonly<Record<string, { held: Call['operation']; ask: (g: ObjectGuest, node: bigint, fh: bigint) => { opcode: number; node: bigint; args: Uint8Array } }>> = {
    'a commit': { held: 'completeUpload', ask: (_g, node, fh) => ({ opcode: OP.FSYNC, node, args: concat(u64(fh), u32(0, 0)) }) },
    'a change of the metadata': {
      held: 'setMetadata', ask: (_g, node) => ({ opcode: OP.SETATTR, node, args: concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)) }),
    },
    'a rename': { held: 'remove', ask: () => ({ opcode: OP.RENAME2, node: ROOT, args: concat(u64(ROOT), u32(0, 0), name('f'), name('g')) }) },
  };
  test('a read that a conflict of its file overtakes is ESTALE', async () => {
    const memory = new MemoryStore();
    await memory.put('f', pattern(300_000));
    let come = (): void => undefined;
    const comes = new Promise<void>((resolve) => (come = resolve));
    let reads = 0;
    const store = intercept(memory, async (call, attempt) => {
      const result = await attempt(call.signal);
      if (call.operation === 'read' && ++reads === 1) await comes;
      return result;
    });
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { node } = await g.lookup(ROOT, 'f');
      const fh = await g.open(node);
      await guest.write(node, fh, 0, bytes('here'));
      const answers: number[] = [];
      for (const request of [g.request(OP.READ, node, concat(u64(fh, 0), u32(1000, 0), u64(0), u32(0, 0))).bytes, g.request(OP.FSYNC, node, concat(u64(fh), u32(0, 0))).bytes]) {
        answers.push(g.queue.chain([request], [2000], true).writable[0]);
        g.queue.kick();
        while (reads === 0) await turn();
        await memory.put('f', bytes('of others'));
      }
      await g.queue.wait(1);
      // It is given up
      for (let turns = 0; turns < 100; turns++) await turn();
      come();
      await g.queue.wait(1);
      assert.deepEqual(answers.map((answer) => g.memory.dv.getInt32(answer + 4, true)), [-E.STALE, -E.STALE]);
      assert.deepEqual(g.log.filter((line) => line.includes('inside the daemon')), []);
      await guest.release(node, fh);
    });
  });

  for (const [what, { held, ask }] of Object.entries(overtakers)) {
    test(`a read that ${what} of ours overtakes is no ESTALE: it reads what is there then`, async () => {
      const memory = new MemoryStore({ limits: PARTS, capabilities: { rename: false, metadataInPlace: false } });
      const content = pattern(300_000);
      await memory.put('f', content);
      const { store, done, open } = answersHeld(memory, [held]);
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const { node } = await g.lookup(ROOT, 'f');
        const fh = await g.open(node);
        if (held === 'completeUpload') await guest.write(node, fh, 0, bytes('here'));
        const { opcode, node: at, args } = ask(g, node, fh);
        const pending = [g.request(opcode, at, args).bytes, g.request(OP.READ, node, concat(u64(fh, 200_000), u32(1000, 0), u64(0), u32(0, 0))).bytes];
        const answers: number[] = [];
        for (const request of pending) {
          answers.push(g.queue.chain([request], [2000], true).writable[0]);
          g.queue.kick();
          while (done() === 0) await turn();
        }
        // The read has been refused by now
        for (let i = 0; i < 20; i++) await turn();
        open();
        await g.queue.wait(2);
        for (const answer of answers) assert.equal(g.memory.dv.getInt32(answer + 4, true), 0);
        assert.deepEqual(Buffer.from(g.memory.u8.slice(answers[1] + 16, answers[1] + 1016)), Buffer.from(content.subarray(200_000, 201_000)));
        assert.equal(await guest.close(node, fh), 0);
      }, { write: { sizes: SMALL } });
    });
  }
});

test('attributes that are being sent when another client replaces the object go with what they were set of', async () => {
  const memory = new MemoryStore({ limits: PARTS, capabilities: { rename: false, metadataInPlace: false } });
  await memory.put('f', bytes('former'));
  let refuse = (): void => undefined;
  const refused = new Promise<void>((resolve) => (refuse = resolve));
  let sent = (): void => undefined;
  const isSent = new Promise<void>((resolve) => (sent = resolve));
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation !== 'setMetadata') return attempt(call.signal);
    sent();
    await refused;
    throw new StorageError('denied', call.subject);
  });
  const log: string[] = [];
  await withGuest(store, async (guest) => {
    const { g } = guest;
    const { node } = await g.lookup(ROOT, 'f');
    // The next OPEN asks the store, and is not answered by this lookup
    assert.equal(await guest.close(node, await g.open(node)), 0);
    assert.equal((await g.call(OP.SETATTR, node, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)), 104)).error, 0);
    await isSent;
    await memory.put('f', bytes('another'));
    await g.call(OP.OPEN, node, u32(0, 0), 16);
    refuse();
    await g.opened.idle();
    log.push(...g.log);
  }, { metadataTtl_ms: 0, write: { sizes: SMALL, durability: 'writeback', writebackDelay_ms: 0 } });
  assert.deepEqual(log.filter((line) => /inside the daemon|could not be written/.test(line)), []);
  assert.equal(readPosix((await memory.head('f')).metadata ?? {}).posix.mode, null);
});

describe('a read of a file that goes', () => {
  for (const isStaged of [false, true]) {
    test(`is of what has been kept of it, also if it was sent before and comes late (${isStaged ? 'written to' : 'only read'})`, async () => {
      const memory = new MemoryStore({ limits: PARTS });
      const content = pattern(60_000);
      await memory.put('f', content);
      let reads = 0;
      let late = (): void => undefined;
      const removed = new Promise<void>((resolve) => (late = resolve));
      const store = intercept(memory, async (call, attempt) => {
        if ((call.operation === 'read' || call.operation === 'fetch') && ++reads === 1) await removed;
        const done = await attempt(call.signal);
        if (call.operation === 'remove') late();
        return done;
      });
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const { node } = await g.lookup(ROOT, 'f');
        const fh = await g.open(node);
        if (isStaged) await guest.write(node, fh, 59_990, content.subarray(59_990));
        const answers: number[] = [];
        for (const request of [g.request(OP.READ, node, concat(u64(fh, 20_000), u32(1000, 0), u64(0), u32(0, 0))).bytes, g.request(OP.UNLINK, ROOT, name('f')).bytes]) {
          answers.push(g.queue.chain([request], [2000], true).writable[0]);
          g.queue.kick();
          while (reads === 0) await turn();
        }
        await g.queue.wait(2);
        for (const answer of answers) assert.equal(g.memory.dv.getInt32(answer + 4, true), 0);
        assert.deepEqual(Buffer.from(g.memory.u8.slice(answers[0] + 16, answers[0] + 1016)), Buffer.from(content.subarray(20_000, 21_000)));
        await guest.close(node, fh);
      });
      assert.deepEqual((await memory.list({ prefix: '' })).objects, []);
    });
  }
});

describe('attributes of a file that is changed, and is on its way to the bucket, while the store is asked for those that it has', () => {
  const setxattr = concat(u32(5, 0, 0, 0), name('user.tag'), bytes('value'));
  const requests: readonly (readonly [what: string, opcode: number, args: Uint8Array, isSet: (metadata: Record<string, string>) => boolean])[] = [
    ['chmod', OP.SETATTR, concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0)), (metadata) => (readPosix(metadata).posix.mode! & 0o777) === 0o600],
    ['setxattr', OP.SETXATTR, setxattr, (metadata) => readPosix(metadata).posix.xattrs?.has('user.tag') === true],
  ];
  for (const [what, opcode, args, isSet] of requests) {
    test(`go with the next commit, and none undoes them (${what})`, async () => {
      const memory = new MemoryStore();
      await memory.put('f', bytes('content'), { metadata: { [COMMIT]: 'theirs' } });
      const calls: string[] = [];
      let [held, heard] = [false, false];
      let send = (): void => undefined;
      const sending = new Promise<void>((resolve) => (send = resolve));
      let answer = (): void => undefined;
      const described = new Promise<void>((resolve) => (answer = resolve));
      const store = intercept(memory, async (call, attempt) => {
        if (call.operation === 'put') {
          send();
          await described;
        }
        const result = await attempt(call.signal);
        calls.push(call.operation);
        if (call.operation !== 'head' || !held) return result;
        heard = true;
        await sending;
        return result;
      });
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const { node } = await g.lookup(ROOT, 'f');
        const fh = await g.open(node);
        const answers: number[] = [];
        const ask = (opcode: number, args: Uint8Array): void => {
          answers.push(g.queue.chain([g.request(opcode, node, args).bytes], [400], true).writable[0]);
          g.queue.kick();
        };
        held = true;
        ask(opcode, args);
        while (!heard) await turn();
        held = false;
        ask(OP.WRITE, concat(u64(fh, 0), u32(4, 0), u64(0), u32(0, 0), bytes('here')));
        ask(OP.FSYNC, concat(u64(fh), u32(0, 0)));
        await g.queue.wait(2);
        answer();
        await g.queue.wait(1);
        for (const at of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
        assert.equal(await guest.close(node, fh), 0);
      }, { metadataTtl_ms: 0 });
      assert.deepEqual(calls.filter((call) => call !== 'head').slice(-2), ['put', 'setMetadata']);
      assert.equal((await objectOf(memory, 'f')).toString(), 'hereent');
      assert.ok(isSet((await memory.head('f')).metadata!));
    });
  }
});

describe('what is written while the object is replaced or moved by ourselves', () => {
  const chmod = concat(u32(1, 0), u64(0, 0, 0, 0, 0, 0), u32(0, 0, 0, 0o600, 0, 0, 0, 0));
  const move = concat(u64(ROOT), u32(0, 0), name('f'), name('g'));
  for (const [held, rename] of [['setMetadata', false], ['copy', false], ['remove', false], ['rename', true]] as const) {
    test(`comes on top of it, and is no conflict (${held})`, async () => {
      const memory = new MemoryStore({ capabilities: { metadataInPlace: false, rename } });
      // One that this daemon could find again: else it is copied, where it is open
      await memory.put('f', bytes('content'), { metadata: { [COMMIT]: 'theirs' } });
      const { store, done, open } = answersHeld(memory, [held]);
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const { node } = await g.lookup(ROOT, 'f');
        const fh = await g.open(node);
        const answers: number[] = [];
        const ask = (opcode: number, at: bigint, args: Uint8Array): void => {
          answers.push(g.queue.chain([g.request(opcode, at, args).bytes], [400], true).writable[0]);
          g.queue.kick();
        };
        if (held === 'setMetadata') ask(OP.SETATTR, node, chmod);
        else ask(OP.RENAME2, ROOT, move);
        while (done() === 0) await turn();
        ask(OP.WRITE, node, concat(u64(fh, 0), u32(4, 0), u64(0), u32(0, 0), bytes('here')));
        ask(OP.FSYNC, node, concat(u64(fh), u32(0, 0)));
        for (let i = 0; i < 20; i++) await turn();
        open();
        await g.queue.wait(3);
        for (const at of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
        assert.equal(await guest.close(node, fh), 0);
      });
      const key = held === 'setMetadata' ? 'f' : 'g';
      assert.deepEqual((await memory.list({ prefix: '' })).objects.map((object) => object.key), [key]);
      assert.equal((await objectOf(memory, key)).toString(), 'hereent');
      assert.equal(readPosix((await memory.head(key)).metadata!).posix.mode! & 0o777, held === 'setMetadata' ? 0o600 : 0o644);
    });
  }

  for (const [held, rename] of [['remove', false], ['copy', false], ['rename', true]] as const) {
    for (const way of ['removed', 'replaced'] as const) {
      if (way === 'removed' && held !== 'remove') continue;
      test(`goes with the name that is being ${way} (${held})`, async () => {
        const memory = new MemoryStore({ capabilities: { rename } });
        for (const key of ['f', 'other']) await memory.put(key, bytes(key), { metadata: { [COMMIT]: key } });
        const { store, done, open } = answersHeld(memory, [held]);
        await withGuest(store, async (guest) => {
          const { g } = guest;
          const { node } = await g.lookup(ROOT, 'f');
          const fh = await g.open(node);
          await guest.write(node, fh, 0, bytes('before'));
          const answers: number[] = [];
          const ask = (opcode: number, at: bigint, args: Uint8Array): void => {
            answers.push(g.queue.chain([g.request(opcode, at, args).bytes], [400], true).writable[0]);
            g.queue.kick();
          };
          if (way === 'removed') ask(OP.UNLINK, ROOT, name('f'));
          else ask(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('other'), name('f')));
          while (done() === 0) await turn();
          ask(OP.WRITE, node, concat(u64(fh, 0), u32(4, 0), u64(0), u32(0, 0), bytes('late')));
          ask(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)));
          for (let i = 0; i < 20; i++) await turn();
          open();
          await g.queue.wait(3);
          for (const at of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
          assert.equal((await guest.readAll(node, fh)).toString(), 'latere');
          assert.equal(await guest.close(node, fh), 0);
        });
        assert.deepEqual((await memory.list({ prefix: '' })).objects.map((object) => object.key), [way === 'removed' ? 'other' : 'f']);
        if (way === 'replaced') assert.equal((await objectOf(memory, 'f')).toString(), 'other');
      });
    }
  }
});

describe('a rename of a file that is not in the bucket yet', () => {
  test('goes on with the new name when a commit begins while the upload to the old one is given up', async () => {
    const memory = new MemoryStore({ limits: PARTS });
    const { store, done, open } = answersHeld(memory, ['abortUpload']);
    const content = pattern(200_000);
    await withGuest(store, async (guest) => {
      const { g } = guest;
      const { entry, fh } = await g.create(ROOT, 'f');
      await guest.write(entry.node, fh, 0, content);
      while ((await memory.listUploads({ prefix: '' })).uploads.length === 0) await turn();
      const answers: number[] = [];
      const ask = (opcode: number, at: bigint, args: Uint8Array): void => {
        answers.push(g.queue.chain([g.request(opcode, at, args).bytes], [400], true).writable[0]);
        g.queue.kick();
      };
      ask(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name('f'), name('g')));
      while (done() === 0) await turn();
      ask(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0)));
      // As far as it comes meanwhile
      for (let i = 0; i < 100; i++) await turn();
      open();
      await g.queue.wait(2);
      for (const at of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
      assert.equal((await g.lookup(ROOT, 'g')).node, entry.node);
      assert.equal(await guest.close(entry.node, fh), 0);
    }, { write: { sizes: SMALL } });
    assert.deepEqual((await memory.list({ prefix: '' })).objects.map((object) => object.key), ['g']);
    assert.deepEqual(await objectOf(memory, 'g'), Buffer.from(content));
  });
});

describe('a directory that is only there because of what was written into it', () => {
  for (const [what, request] of [['LOOKUP', { opcode: OP.LOOKUP, args: name('d') }], ['GETATTR', { opcode: OP.GETATTR, args: new Uint8Array(16) }]] as const) {
    test(`is there while that gets into the bucket (${what})`, async () => {
      const memory = new MemoryStore();
      await memory.put('d/theirs', bytes('x'));
      let held = 0;
      let open = (): void => undefined;
      let opened: Promise<void> | null = null;
      const store = intercept(memory, async (call, attempt) => {
        const result = await attempt(call.signal);
        if (call.operation === 'list' && opened !== null) {
          held++;
          await opened;
        }
        return result;
      });
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const d = await g.lookup(ROOT, 'd');
        const { entry, fh } = await g.create(d.node, 'f');
        await memory.remove('d/theirs');
        opened = new Promise((resolve) => (open = resolve));
        const answers: number[] = [];
        const ask = (opcode: number, at: bigint, args: Uint8Array): void => {
          answers.push(g.queue.chain([g.request(opcode, at, args).bytes], [400], true).writable[0]);
          g.queue.kick();
        };
        ask(request.opcode, what === 'LOOKUP' ? ROOT : d.node, request.args);
        while (held === 0) await turn();
        ask(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0)));
        await g.queue.wait();
        await memory.head('d/f');
        open();
        await g.queue.wait();
        for (const at of answers) assert.equal(g.memory.dv.getInt32(at + 4, true), 0);
        assert.equal(await guest.close(entry.node, fh), 0);
      });
    });
  }
});

test('a part that is copied while a shorter version is there for a moment is copied anew: its ETag is back', async () => {
  const memory = new MemoryStore({ etags: true, limits: PARTS, capabilities: { copyPartIfVersion: false } });
  const content = pattern(300_000);
  await memory.put('f', content);
  let copies = 0;
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation !== 'copyPart' || ++copies > 1) return attempt(call.signal);
    await memory.put('f', bytes('short'));
    return attempt(call.signal).finally(() => memory.put('f', content));
  });
  await withGuest(store, async (guest) => {
    const { node } = await guest.g.lookup(ROOT, 'f');
    const fh = await guest.g.open(node);
    await guest.write(node, fh, 0, bytes('here'));
    assert.equal(await guest.fsync(node, fh), 0);
    assert.equal(await guest.close(node, fh), 0);
  }, { write: { sizes: SMALL } });
  assert.ok(copies > 1);
  assert.deepEqual(await objectOf(memory, 'f'), Buffer.concat([bytes('here'), content.subarray(4)]));
});
