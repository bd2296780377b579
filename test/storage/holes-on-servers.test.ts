/** Files with large holes on a real S3 server and on the server of Google Cloud Storage: what is sent, what is stored, what is left. */
import assert from 'node:assert/strict';
import { after, before, describe, test } from 'node:test';
import { bodyBytes } from '../../src/storage/object/body.js';
import { probe } from '../../src/storage/object/probe.js';
import type { ObjectHeaders, ObjectStore } from '../../src/storage/object/store.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { gcsProvider, s3Provider, type Provider } from '../support/providers.js';
import { Rgw } from '../support/rgw.js';
import { withGuest } from '../support/writing-guest.js';

const ROOT = 1n;
const O_RDWR = 2;
const MIB = 1 << 20;
const SIZE = 300 * MIB;

const bytes = (content: string): Uint8Array => new TextEncoder().encode(content);

/** The store, and what it is sent. */
function counted(inner: ObjectStore): { store: ObjectStore; sent: () => number } {
  let sent = 0;
  const proxy = new Proxy(inner, {
    get: (target, property) => {
      const member = Reflect.get(target, property) as unknown;
      if (typeof member !== 'function') return member;
      return (...args: unknown[]) => {
        if (property === 'put') sent += bodyBytes(args[1] as Uint8Array);
        if (property === 'putPart') sent += bodyBytes(args[2] as Uint8Array);
        return (member as (...args: unknown[]) => unknown).apply(target, args);
      };
    },
  });
  return { store: proxy, sent: () => sent };
}

const SERVERS: readonly (readonly [string, string | false, () => Promise<Provider & { readonly writing?: ObjectStore }>, ObjectHeaders])[] = [
  ['Ceph RGW', Rgw.unavailable(), async () => {
    const provider = await s3Provider('holes');
    const plain = provider.store as S3Store;
    const writing = new S3Store({ ...plain.options, capabilities: await probe(plain, '.probe/') });
    return { ...provider, writing, stop: async () => (await writing.close(), provider.stop()) };
  }, { 'x-amz-server-side-encryption': 'aws:kms', 'x-amz-server-side-encryption-aws-kms-key-id': 'first' }],
  ['the server of Google Cloud Storage', false, () => gcsProvider('holes'), { 'x-goog-storage-class': 'NEARLINE', 'x-goog-encryption-kms-key-name': 'projects/p/locations/l/keyRings/r/cryptoKeys/k' }],
];

for (const [name, skip, open, headers] of SERVERS) {
  describe(`a file with a hole of ${SIZE / MIB} MiB on ${name}`, { skip }, () => {
    let provider: Awaited<ReturnType<typeof open>>;
    before(async () => void (provider = await open()), { timeout: 300_000 });
    after(() => provider.stop());

    test('is stored for little traffic, read by others, and appended to; nothing else is left', async (t) => {
      const { store, sent } = counted(provider.writing ?? provider.store);
      await withGuest(store, async (guest) => {
        const { entry: { node }, fh } = await guest.g.create(ROOT, 'far');
        await guest.write(node, fh, 0, bytes('near'));
        await guest.write(node, fh, SIZE, bytes('far'));
        assert.equal(await guest.close(node, fh), 0);
        await guest.g.opened.idle();
        t.diagnostic(`${Math.round(sent() / MIB)} MiB were sent of ${SIZE / MIB}`);
        assert.ok(sent() < 80 * MIB, `${sent()} bytes were sent`);
        const again = await guest.g.open(node, O_RDWR);
        await guest.write(node, again, SIZE + 3, bytes(' away'));
        assert.equal(await guest.close(node, again), 0);
      });
      const content = await provider.get('far');
      assert.equal(content.length, SIZE + 8);
      assert.deepEqual([content.subarray(0, 5).toString(), content.subarray(SIZE - 1).toString()], ['near\0', '\0far away']);
      assert.ok(content.subarray(4, SIZE).every((byte) => byte === 0));
      const { objects } = await provider.store.list({ prefix: '' });
      assert.deepEqual(objects.map(({ key }) => key), ['far']);
      assert.deepEqual((await provider.store.listUploads({ prefix: '' })).uploads, []);
    });

    test('behind an object of a class, or a key, of its own it is of these as well', async () => {
      const { store, sent } = counted(provider.writing ?? provider.store);
      await provider.store.put('own', new Uint8Array(17 * MIB).fill(1), { headers });
      await withGuest(store, async (guest) => {
        const { node } = await guest.g.lookup(ROOT, 'own');
        const fh = await guest.g.open(node, O_RDWR);
        await guest.write(node, fh, 150 * MIB, bytes('far'));
        assert.equal(await guest.close(node, fh), 0);
      });
      assert.ok(sent() < 80 * MIB, `${sent()} bytes were sent`);
      const content = await provider.get('own');
      assert.ok(content.length === 150 * MIB + 3 && content.subarray(0, 17 * MIB).every((byte) => byte === 1) && content.subarray(17 * MIB, 150 * MIB).every((byte) => byte === 0));
      const now = (await provider.store.head('own')).headers!;
      for (const [name, value] of Object.entries(headers)) assert.equal(now[name], value);
    });
  });
}
