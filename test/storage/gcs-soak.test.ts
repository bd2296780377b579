/**
 * Random conditional writes on a provider that fails at every seventh request, behind retries and settled by commit
 * ids: each says rightly what it did. A failure names its seed; SEED=n runs that one.
 */
import assert from 'node:assert/strict';
import { test } from 'node:test';
import { withRetry } from '../../src/storage/object/layers/retry.js';
import { COMMIT, settledComplete, settledPut, settledRemove } from '../../src/storage/object/settle.js';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import type { Harm } from '../support/gcs/faults.js';
import { GcsServer } from '../support/gcs/server.js';
import { pattern } from './contract.js';

const STEPS = 150;
const KEYS = 8;
const RESUMABLE_FROM = 300_000;
const PROBABILITY = 0.15;
const RETRIES = { base_ms: 1, max_ms: 3, attempts: 12 };
const SETTLE = { attempts: 15, pause_ms: 1 };

const HARMS: readonly Harm[] = [
  { kind: 'drop' }, { kind: 'drop-after' }, { kind: 'status', status: 503 }, { kind: 'status', status: 429 }, { kind: 'status-after', status: 503 },
  { kind: 'truncate', bytes: 5 }, { kind: 'drop-body', bytes: 270_000 }, { kind: 'delay', ms: 5 },
];
/** Only where the answer has a checksum: that of a resource has none but the connection's own. */
const MEDIA_HARMS: readonly Harm[] = [...HARMS, { kind: 'corrupt' }, { kind: 'shorten', bytes: 3 }];

/** 0 ≤ x < 1: the upper bits of a linear congruence. */
function generator(seed: number): () => number {
  let state = seed >>> 0;
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return (state >>> 8) / 2 ** 24;
  };
}

interface Known {
  readonly version: string;
  readonly content: Uint8Array;
}

class Soak {
  readonly known = new Map<string, Known>();

  constructor(readonly store: ObjectStore, readonly random: () => number) {}

  below(n: number): number {
    return Math.floor(this.random() * n);
  }

  async step(number: number): Promise<void> {
    const key = `k${this.below(KEYS)}`;
    const content = pattern(1 + this.below(this.random() < 0.2 ? 3 * RESUMABLE_FROM : 3000), number + 1);
    const there = this.known.get(key);
    const options = { commit: `c${number}`, condition: there === undefined ? { absent: true as const } : { version: there.version } };
    const kind = this.random();
    if (kind < 0.5) {
      this.known.set(key, { content, version: (await settledPut(this.store, key, content, options, SETTLE)).version });
    } else if (kind < 0.7) {
      const upload = await this.store.beginUpload(key, { metadata: { [COMMIT]: options.commit } });
      const cut = content.length >> 1;
      const parts = [await this.store.putPart(upload, 1, content.subarray(0, cut)), await this.store.putPart(upload, 2, content.subarray(cut))];
      this.known.set(key, { content, version: (await settledComplete(this.store, upload, parts, options, SETTLE)).version });
      await this.store.abortUpload(upload);
    } else if (there !== undefined && kind < 0.8) {
      await settledRemove(this.store, key, there.version, {}, SETTLE);
      this.known.delete(key);
    } else if (there !== undefined) {
      const into = new Uint8Array(there.content.length + 5);
      const n = await this.store.read(key, { version: there.version, offset: 0, into });
      assert.ok(Buffer.from(there.content).equals(into.subarray(0, n)), `${key} is read as it was written`);
    }
  }
}

const seeds = process.env.SEED === undefined ? [1, 2, 3, 4] : [Number(process.env.SEED)];
for (const seed of seeds) {
  test(`what writes say they did is what they did, whatever fails (seed ${seed})`, async () => {
    const server = await GcsServer.start();
    const bucket = server.createBucket('b');
    const raw = new GcsStore({ bucket: 'b', endpoint: server.url, credentials: 'anonymous', resumableFromBytes: RESUMABLE_FROM });
    const random = generator(seed);
    const soak = new Soak(withRetry(raw, RETRIES), random);
    let harmed = 0;
    server.faults.draw = (operation) => {
      if (random() >= PROBABILITY) return null;
      harmed++;
      const harms = operation === 'objects.media' ? MEDIA_HARMS : HARMS;
      return harms[Math.floor(random() * harms.length)];
    };
    try {
      for (let number = 0; number < STEPS; number++) await soak.step(number);
      server.faults.heal();
      assert.ok(harmed > STEPS / 10, `only ${harmed} faults`);
      const { objects } = await raw.list({ prefix: '' });
      assert.deepEqual(objects.map(({ key, version }) => [key, version]), [...soak.known].map(([key, { version }]) => [key, version]).sort());
      for (const [key, { content }] of soak.known) assert.ok(bucket.objects.get(key)?.content.equals(content), key);
    } finally {
      server.faults.heal();
      await raw.close();
      await server.close();
    }
  });
}
