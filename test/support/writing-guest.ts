/** A guest that writes to a bucket: files as programs make them, in a few requests each. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from './frontend.js';
import { name, OP } from './guest.js';
import type { MortalStore } from './mortal-store.js';
import { ObjectGuest, type GuestOptions } from './object-guest.js';

const ROOT = 1n;
/** So that a few hundred kilobytes are an upload in parts. */
export const SMALL = { putMaxBytes: 64 << 10, partBytes: 32 << 10, copyMaxBytes: 256 << 10, growAfterParts: 4, partsAtOnce: 3 };
export const PARTS = { partMinBytes: 16 << 10, partMaxBytes: 1 << 20, parts: 100 };

/** What tests of writing ask for again and again. */
export class Guest {
  constructor(readonly g: ObjectGuest) {}

  async flush(node: bigint, fh: bigint): Promise<number> {
    return (await this.g.call(OP.FLUSH, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error;
  }

  async release(node: bigint, fh: bigint): Promise<void> {
    assert.equal((await this.g.call(OP.RELEASE, node, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
  }

  async fsync(node: bigint, fh: bigint): Promise<number> {
    return (await this.g.call(OP.FSYNC, node, concat(u64(fh), u32(0, 0)), 0)).error;
  }

  async write(node: bigint, fh: bigint, offset: number, content: Uint8Array): Promise<void> {
    for (let at = 0; at < content.length; at += 65536) {
      const piece = content.subarray(at, at + 65536);
      const { error, data } = await this.g.write(node, fh, offset + at, piece);
      assert.equal(error, 0);
      assert.equal(data.getUint32(0, true), piece.length);
    }
  }

  async close(node: bigint, fh: bigint): Promise<number> {
    const error = await this.flush(node, fh);
    await this.release(node, fh);
    return error;
  }

  async put(file: string, content: Uint8Array, parent = ROOT): Promise<bigint> {
    const { entry, fh } = await this.g.create(parent, file);
    await this.write(entry.node, fh, 0, content);
    assert.equal(await this.close(entry.node, fh), 0);
    return entry.node;
  }

  async content(node: bigint): Promise<Buffer> {
    const fh = await this.g.open(node, 0);
    const content = await this.readAll(node, fh);
    await this.release(node, fh);
    return content;
  }

  async readAll(node: bigint, fh: bigint): Promise<Buffer> {
    const out: Buffer[] = [];
    for (let at = 0; ; ) {
      const { data, error } = await this.g.read(node, fh, at, 65536);
      assert.equal(error, 0);
      if (data.byteLength === 0) return Buffer.concat(out);
      out.push(Buffer.from(new Uint8Array(data.buffer, data.byteOffset, data.byteLength)));
      at += data.byteLength;
    }
  }

  async truncate(node: bigint, size: number): Promise<number> {
    const args = new DataView(new ArrayBuffer(88));
    args.setUint32(0, 8, true);
    args.setBigUint64(16, BigInt(size), true);
    return (await this.g.call(OP.SETATTR, node, new Uint8Array(args.buffer), 104)).error;
  }
}

export async function withGuest(store: ObjectStore, body: (guest: Guest) => Promise<void>, options: GuestOptions = {}): Promise<void> {
  const g = await ObjectGuest.start(store, options);
  try {
    await body(new Guest(g));
  } finally {
    await g.close();
  }
}

/** The daemon is killed when its store dies, which happens while it renames something in the root. */
export async function killedInRename(g: ObjectGuest, mortal: MortalStore, from: string, to: string): Promise<void> {
  g.queue.chain([g.request(OP.RENAME2, ROOT, concat(u64(ROOT), u32(0, 0), name(from), name(to))).bytes], [16], true);
  g.queue.kick();
  while (!mortal.dead) await turn();
  const killed = g.kill();
  mortal.end();
  await killed;
}

/** The content of an object, without a guest. */
export async function objectOf(store: ObjectStore, key: string): Promise<Buffer> {
  const { size } = await store.head(key);
  const into = new Uint8Array(size);
  assert.equal(await store.read(key, { offset: 0, into }), size);
  return Buffer.from(into);
}
