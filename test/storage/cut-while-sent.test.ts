/** A file that gets shorter, or longer again, while its parts are sent: the object is never of the length of before with zeros where there had been bytes. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import { test } from 'node:test';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { objectOf, PARTS, SMALL, withGuest } from '../support/writing-guest.js';

const ROOT = 1n;
const SIZE = 300_000;
/** In the middle, and within the last part. */
const CUTS = [100_000, 297_000];

for (const [CUT, number] of CUTS.flatMap((cut) => [1, 3, 6].map((part) => [cut, part] as const))) {
  for (const grows of [false, true]) {
    test(`cut to ${CUT} ${grows ? 'and grown again ' : ''}when part ${number} is sent: an object that another client reads is what the file was at one moment`, async () => {
      const memory = new MemoryStore({ limits: PARTS });
      let reached = false;
      let release = (): void => undefined;
      const cutDone = new Promise<void>((resolve) => (release = resolve));
      const seen: number[] = [];
      const bad: string[] = [];
      const store = intercept(memory, async (call, attempt) => {
        if (call.operation === 'putPart' && ++parts >= number) {
          reached = true;
          await cutDone;
        }
        const result = await attempt(call.signal);
        if (call.operation === 'completeUpload' || call.operation === 'put') {
          const content = await objectOf(memory, 'f');
          const isFull = content.every((byte) => byte === 7);
          const isCut = content.subarray(0, CUT).every((byte) => byte === 7) && content.length === (grows ? SIZE : CUT) && content.subarray(CUT).every((byte) => byte === 0);
          if (!(isFull && content.length === SIZE) && !isCut && !(isFull && content.length === CUT)) bad.push(`${content.length} bytes, zeros from ${content.indexOf(0)}`);
          seen.push(content.length);
        }
        return result;
      });
      let parts = 0;
      await memory.put('f', new Uint8Array(SIZE).fill(7));
      await withGuest(store, async (guest) => {
        const { g } = guest;
        const { node } = await g.lookup(ROOT, 'f');
        const entry = { node };
        const fh = await g.open(node, 2);
        // Something in each part, from the end on: they are sent when it is synced
        for (let at = SIZE - 10_000; at >= 0; at -= 10_000) await guest.write(node, fh, at, new Uint8Array(10).fill(7));
        g.queue.chain([g.request(OP.FSYNC, entry.node, concat(u64(fh), u32(0, 0))).bytes], [16], true);
        const sizes = grows ? [CUT, SIZE] : [CUT];
        while (!reached) {
          g.queue.kick();
          await turn();
        }
        for (const size of sizes) {
          const args = new DataView(new ArrayBuffer(88));
          args.setUint32(0, 8 | 64, true);
          args.setBigUint64(8, fh, true);
          args.setBigUint64(16, BigInt(size), true);
          g.queue.chain([g.request(OP.SETATTR, entry.node, new Uint8Array(args.buffer)).bytes], [16, 104], true);
        }
        g.queue.kick();
        await g.queue.wait(sizes.length);
        release();
        await g.queue.wait(1);
        assert.equal(await guest.close(entry.node, fh), 0);
      }, { write: { sizes: SMALL } });
      const content = await objectOf(memory, 'f');
      assert.equal(content.length, grows ? SIZE : CUT);
      assert.ok(content.subarray(0, CUT).every((byte) => byte === 7) && content.subarray(CUT).every((byte) => byte === 0));
      assert.ok(seen.length > 0);
      assert.deepEqual(bad, []);
    });
  }
}

test('cut, and written to its old length again, whenever its last part is sent: no object is of that length with zeros where there had been bytes', async () => {
  const CUT = 290_000;
  const memory = new MemoryStore({ limits: PARTS });
  await memory.put('f', new Uint8Array(SIZE).fill(7));
  const bad: string[] = [];
  let [sent, made] = [0, 0];
  let ask = async (_opcode: number, _args: (fh: bigint) => Uint8Array): Promise<void> => undefined;
  const store = intercept(memory, async (call, attempt) => {
    if (call.operation === 'putPart' && ++sent <= 4) {
      await ask(OP.SETATTR, (fh) => concat(u32(8 | 64, 0), u64(fh, CUT), new Uint8Array(64)));
      const result = await attempt(call.signal);
      await ask(OP.WRITE, (fh) => concat(u64(fh, CUT), u32(SIZE - CUT, 0), u64(0), u32(0, 0), new Uint8Array(SIZE - CUT).fill(7)));
      return result;
    }
    const result = await attempt(call.signal);
    if (call.operation !== 'completeUpload') return result;
    made++;
    const content = await objectOf(memory, 'f');
    if (!content.every((byte) => byte === 7)) bad.push(`${content.length} bytes, zeros from ${content.indexOf(0)}`);
    return result;
  });
  await withGuest(store, async (guest) => {
    const { g } = guest;
    const { node } = await g.lookup(ROOT, 'f');
    const fh = await g.open(node, 2);
    await guest.write(node, fh, SIZE - 10, new Uint8Array(10).fill(7));
    let answered = 0;
    ask = async (opcode, args) => {
      const before = answered;
      g.queue.chain([g.request(opcode, node, args(fh)).bytes], [opcode === OP.WRITE ? 24 : 120], true);
      g.queue.kick();
      while (answered === before) await turn();
    };
    const { head } = g.queue.chain([g.request(OP.FSYNC, node, concat(u64(fh), u32(0, 0))).bytes], [16], true);
    g.queue.kick();
    while ((await g.queue.wait(1))[0].head !== head) answered++;
    ask = async () => undefined;
    assert.equal(await guest.close(node, fh), 0);
  }, { write: { sizes: SMALL } });
  assert.ok(sent >= 3 && made > 0, `${sent} parts, ${made} objects`);
  assert.deepEqual(bad, []);
});
