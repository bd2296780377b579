/** What a file takes that the guest knows and nobody uses: at most 200 bytes, which are given back when the guest forgets it. */
import assert from 'node:assert/strict';
import { createHash } from 'node:crypto';
import { test } from 'node:test';
import { setFlagsFromString } from 'node:v8';
import { runInNewContext } from 'node:vm';
import { intercept } from '../../src/storage/object/layers/intercept.js';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';
import type { ListPage, ObjectInfo, ObjectStore } from '../../src/storage/object/store.js';
import { concat, u32, u64 } from '../support/frontend.js';
import { OP } from '../support/guest.js';
import { ObjectGuest } from '../support/object-guest.js';

const NODES = Number(process.env.BUCKETFSD_NODES ?? 200_000);
const BYTES_MAX = 200;
/** What stays of each, of what the table is for so many. */
const LEFT_MAX = 20;
const PAGE = 1000;
const REPLY_BYTES = 65_536;
const ROOT = 1n;

setFlagsFromString('--expose-gc');
const collect = runInNewContext('gc') as () => void;

/** Of JavaScript, and what it has mapped. */
function used(): number {
  for (let i = 0; i < 4; i++) collect();
  const { heapUsed, external } = process.memoryUsage();
  return heapUsed + external;
}

const keyOf = (i: number): string => `photos-of-the-year-${String(i).padStart(9, '0')}-a.jpeg`;

/** As bucketfsd itself writes it: all times are others, and none is that of the upload. */
function infoOf(i: number): ObjectInfo {
  const metadata = { mode: '33188', uid: '1000', gid: '1000', mtime: `${1_700_000_000 + i}.123456789`, atime: `${1_700_000_001 + i}.5`, ctime: `${1_700_000_002 + i}.25` };
  return { key: keyOf(i), size: 1000 + i, version: createHash('md5').update(String(i)).digest('hex'), modified_ms: 1.7e12 + i, metadata, headers: { 'content-type': 'image/jpeg' } };
}

/** Very many objects, which take no memory. */
function bucket(): ObjectStore {
  const memory = new MemoryStore();
  const list = async ({ token = '0', limit = PAGE }: { readonly token?: string; readonly limit?: number }): Promise<ListPage> => {
    const from = Number(token);
    const to = Math.min(NODES, from + limit);
    return { objects: Array.from({ length: to - from }, (_, i) => infoOf(from + i)), prefixes: [], next: to === NODES ? null : String(to) };
  };
  const head = async (key: string): Promise<ObjectInfo> => infoOf(Number(/\d+/.exec(key)![0]));
  return Object.assign(intercept(memory, (call, attempt) => attempt(call.signal)), { list, head });
}

/** Nodes of all entries, by READDIRPLUS. */
async function walk(g: ObjectGuest, nodes: BigUint64Array): Promise<void> {
  const opened = await g.call(OP.OPENDIR, ROOT, u32(0, 0), 16);
  const fh = opened.data.getBigUint64(0, true);
  let count = 0;
  for (let offset = 0n; ; ) {
    const { data, error } = await g.call(OP.READDIRPLUS, ROOT, concat(u64(fh, offset), u32(REPLY_BYTES, 0), u64(0), u32(0, 0)), REPLY_BYTES);
    assert.equal(error, 0);
    if (data.byteLength === 0) break;
    for (let at = 0; at < data.byteLength; at += (152 + data.getUint32(at + 144, true) + 7) & ~7) {
      offset = data.getBigUint64(at + 136, true);
      if (data.getBigUint64(at, true) !== 0n) nodes[count++] = data.getBigUint64(at, true);
    }
  }
  assert.equal(count, NODES);
  assert.equal((await g.call(OP.RELEASEDIR, ROOT, concat(u64(fh), u32(0, 0), u64(0)), 0)).error, 0);
}

async function forget(g: ObjectGuest, nodes: BigUint64Array): Promise<void> {
  for (const node of nodes) await g.call(OP.FORGET, node, u64(1), 0);
}

test(`${NODES} known files take at most ${BYTES_MAX} bytes each, and give them back`, { timeout: 900_000 }, async (context) => {
  const g = await ObjectGuest.start(bucket(), { metadataTtl_ms: 1000 });
  try {
    const nodes = new BigUint64Array(NODES);
    // What the daemon takes whatever is known
    await walk(g, nodes);
    await forget(g, nodes);
    const before = used();
    const { rss } = process.memoryUsage();
    await walk(g, nodes);
    const each = (used() - before) / NODES;
    context.diagnostic(`${each.toFixed(1)} bytes each, RSS ${((process.memoryUsage().rss - rss) / NODES).toFixed(1)}`);
    assert.ok(each <= BYTES_MAX, `${each} bytes each`);
    const middle = nodes[NODES >> 1];
    assert.equal((await g.call(OP.GETATTR, middle, new Uint8Array(16), 104)).data.getBigUint64(24, true), BigInt(1000 + (NODES >> 1)));
    await forget(g, nodes);
    const left = (used() - before) / NODES;
    context.diagnostic(`${left.toFixed(1)} bytes each are left, RSS ${((process.memoryUsage().rss - rss) / NODES).toFixed(1)}`);
    assert.ok(left <= LEFT_MAX, `${left} bytes each are left`);
    assert.equal((await g.call(OP.GETATTR, middle, new Uint8Array(16), 104)).error < 0, true);
  } finally {
    await g.close();
  }
});
