/**
 * Many directories that are read at the same time. What is asked for, and held, together is bounded; who has gone waits for none of it.
 *
 * What else could take memory or time without bound: requests of one handle, which wait for each other; entries asked for ahead, for each handle; pages of handles
 * that are not read on; renames that wait for their turn.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { setImmediate as turn } from 'node:timers/promises';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { name, OP } from '../support/guest.js';
import { ROOT } from '../support/object-files.js';
import { ObjectGuest } from '../support/object-guest.js';
import { settled } from '../support/settled.js';

const OBJECTS = 3000;
const HANDLES = 60;
const ROOM = 65_536;
/** Of the port: HEADs of entries, and listings. */
const ASKING_MAX = 1024;
const READING_MAX = 16;

class Counted {
  readonly most = { head: 0, list: 0 };
  readonly #open = { head: 0, list: 0 };
  readonly total = { head: 0, list: 0 };
  held = true;
  readonly store: MemoryStore;
  readonly #waiting: (() => void)[] = [];

  constructor(readonly inner = new MemoryStore({ capabilities: { listingHasMetadata: false, rename: false } })) {
    this.store = intercept(inner, async (call, attempt) => {
      const kind = call.operation;
      if (kind !== 'head' && kind !== 'list') return attempt(call.signal);
      this.total[kind]++;
      this.most[kind] = Math.max(this.most[kind], ++this.#open[kind]);
      if (kind === 'head' && this.held) await new Promise<void>((resolve) => this.#waiting.push(resolve));
      await turn();
      this.#open[kind]--;
      return attempt(call.signal);
    }) as MemoryStore;
  }

  get asked(): number {
    return this.total.head + this.total.list;
  }

  release(): void {
    this.held = false;
    for (const resolve of this.#waiting.splice(0)) resolve();
  }
}

const filled = async (): Promise<Counted> => {
  const counted = new Counted();
  for (let i = 0; i < OBJECTS; i++) await counted.inner.put(`f${String(i).padStart(4, '0')}`, new Uint8Array(1));
  return counted;
};

const opendir = async (guest: ObjectGuest): Promise<bigint> => (await guest.call(OP.OPENDIR, ROOT, u32(0, 0), 16)).data.getBigUint64(0, true);
const position = (fh: bigint, offset: number, bytes: number): Uint8Array => concat(u64(fh, offset), u32(bytes, 0), u64(0), u32(0, 0));

test('of as many READDIRPLUS as there may be a few go to the store, with entries for a few replies; when the guest has gone the others ask for nothing', async () => {
  const counted = await filled();
  const guest = await ObjectGuest.start(counted.store, { metadataTtl_ms: 1000 });
  const handles: bigint[] = [];
  for (let i = 0; i < HANDLES; i++) handles.push(await opendir(guest));
  for (const fh of handles) guest.queue.chain([guest.request(OP.READDIRPLUS, ROOT, position(fh, 0, ROOM)).bytes], [16 + ROOM], true);
  guest.queue.kick();
  await settled(() => counted.asked, 200);
  assert.ok(counted.most.head > 300 && counted.most.head <= ASKING_MAX, `${counted.most.head} HEADs at once`);
  assert.ok(counted.most.list <= READING_MAX, `${counted.most.list} listings at once`);
  const before = counted.asked;
  const gone = guest.close();
  // What has been asked for is answered only when the others have been given up
  await new Promise((resolve) => setTimeout(resolve, 2500));
  counted.release();
  await gone;
  assert.ok(counted.asked - before <= ASKING_MAX, `${counted.asked - before} further requests`);
});

test('an entry that was asked for ahead is not asked for again by a reply that has room for more', async () => {
  const counted = await filled();
  counted.release();
  const guest = await ObjectGuest.start(counted.store, { metadataTtl_ms: 60_000 });
  try {
    const fh = await opendir(guest);
    for (let offset = 0; ; ) {
      const { data, error } = await guest.call(OP.READDIRPLUS, ROOT, position(fh, offset, ROOM), ROOM);
      assert.equal(error, 0);
      if (data.byteLength === 0) break;
      for (let at = 0; at < data.byteLength; at += (128 + 24 + data.getUint32(at + 128 + 16, true) + 7) & ~7) offset = Number(data.getBigUint64(at + 128 + 8, true));
    }
    // None for an entry, but one for the marker of the directory
    assert.ok(counted.total.head >= OBJECTS && counted.total.head <= OBJECTS + 1, `${counted.total.head} HEADs of ${OBJECTS} objects`);
  } finally {
    await guest.close();
  }
});

test('directories of which more pages are held than there is room for are read to their ends, each entry once', async () => {
  const counted = await filled();
  counted.release();
  const guest = await ObjectGuest.start(counted.store, { metadataTtl_ms: 1000 }, 4 << 20);
  try {
    const reading = [];
    for (let i = 0; i < HANDLES; i++) reading.push({ fh: await opendir(guest), offset: 0, names: [] as string[], isOver: false });
    while (reading.some(({ isOver }) => !isOver)) {
      for (const one of reading.filter(({ isOver }) => !isOver)) {
        const { data, error } = await guest.call(OP.READDIR, ROOT, position(one.fh, one.offset, 8192), 8192);
        assert.equal(error, 0);
        one.isOver = data.byteLength === 0;
        for (let at = 0; at < data.byteLength; ) {
          const length = data.getUint32(at + 16, true);
          one.offset = Number(data.getBigUint64(at + 8, true));
          one.names.push(Buffer.from(data.buffer, data.byteOffset + at + 24, length).toString());
          at += (24 + length + 7) & ~7;
        }
      }
    }
    const expected = Array.from({ length: OBJECTS }, (_, i) => `f${String(i).padStart(4, '0')}`);
    assert.ok(counted.asked > (HANDLES * OBJECTS) / 1000, 'some pages were given up, and asked for again');
    for (const { names } of reading) assert.deepEqual(names.filter((one) => one !== '.' && one !== '..'), expected);
  } finally {
    await guest.close();
  }
});

test('renames that wait for one that takes its time are given up when the guest has gone', async () => {
  const counted = new Counted();
  counted.held = false;
  for (let i = 0; i < 20; i++) await counted.inner.put(`d${i}/f`, new Uint8Array(1));
  let begun = 0;
  let open: () => void = () => undefined;
  const opened = new Promise<void>((resolve) => (open = resolve));
  const slow = intercept(counted.store, async (call, attempt) => {
    if (call.operation === 'copy') {
      begun++;
      await opened;
    }
    return attempt(call.signal);
  });
  const guest = await ObjectGuest.start(slow);
  for (let i = 0; i < 20; i++) guest.queue.chain([guest.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(`d${i}`), name(`e${i}`))).bytes], [16], true);
  guest.queue.kick();
  while (begun === 0) await turn();
  const gone = guest.close();
  await new Promise((resolve) => setTimeout(resolve, 2500));
  open();
  await gone;
  assert.equal(begun, 1);
  assert.deepEqual((await counted.inner.list({ prefix: 'e' })).objects.map(({ key }) => key), ['e0/f']);
});

test('a file that others have made, or changed, meanwhile is opened by CREATE at once', async () => {
  const store = new MemoryStore();
  const guest = await ObjectGuest.start(store);
  try {
    await store.put('f', Buffer.from('of somebody else'));
    const { error, data } = await guest.call(OP.CREATE, ROOT, concat(u32(0o102, 0o100644, 0o22, 0), name('f')), 144);
    assert.equal(error, 0);
    assert.equal(data.getBigUint64(40 + 8, true), 16n, 'its size');
  } finally {
    await guest.close();
  }
});
