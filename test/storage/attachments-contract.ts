/** What others attach to objects, and that it stays: a part of the contract. */
import assert from 'node:assert/strict';
import { describe, test } from 'node:test';
import type { ObjectInfo, ObjectStore } from '../../src/storage/object/store.js';

const bytes = (text: string): Uint8Array => new TextEncoder().encode(text);

export interface Others {
  /** An object with all that can be attached to one. */
  put(key: string, content: Uint8Array): Promise<void>;
  /** What is attached to an object now. */
  attached(key: string): Promise<unknown>;
}

/** By the port: what every store takes, and those of other providers leave out. */
export const byPort = (store: ObjectStore): Others => ({
  put: async (key, content) => void (await store.put(key, content, { headers: { 'content-type': 'text/x-a', 'cache-control': 'no-store', 'x-amz-tagging': 'a=1&b=%20%2F', 'x-amz-storage-class': 'STANDARD_IA' } })),
  attached: async (key) => (await store.head(key, { attachments: true })).headers,
});

export function attachmentsStay(storeOf: () => ObjectStore, fresh: () => string, given?: () => Others): void {
  let sequence = 0;
  describe('what others have attached to an object stays', () => {
    const others = (): Others => given?.() ?? byPort(storeOf());
    const setup = async (): Promise<{ key: string; info: ObjectInfo; content: Uint8Array }> => {
      const key = `${fresh()}a`;
      const content = new Uint8Array(Math.max(1000, storeOf().limits.partMinBytes)).fill(++sequence);
      await others().put(key, content);
      return { key, info: await storeOf().head(key), content };
    };
    /** The change, and the key where the object is then. */
    const ways: [string, (key: string, info: ObjectInfo) => Promise<string | null>][] = [
      ['when it is put in place', async (key, { headers, version }) => (await storeOf().put(key, bytes('in place'), { headers: headers!, metadata: { n: '1' }, condition: { version } }), key)],
      ['when it is put, whatever is there', async (key, { headers }) => (await storeOf().put(key, bytes('overwritten'), { headers: headers! }), key)],
      ['when parts are appended to it', async (key, { headers, version, size }) => {
        const upload = await storeOf().beginUpload(key, { headers: headers!, metadata: { n: '2' } });
        const first = storeOf().capabilities.copyPart === 'none'
          ? await storeOf().putPart(upload, 1, new Uint8Array(size)) : await storeOf().copyPart(upload, 1, { key, version, offset: 0, bytes: size });
        await storeOf().completeUpload(upload, [first, await storeOf().putPart(upload, 2, bytes('tail'))], { condition: { version } });
        return key;
      }],
      ['when its metadata is replaced', async (key, { version }) => (await storeOf().setMetadata(key, version, { n: '3' }), key)],
      ['when it is copied', async (key, { version }) => (await storeOf().copy(key, `${key}-copy`, { sourceVersion: version }), `${key}-copy`)],
      ['when it is copied with other metadata', async (key, { headers, version }) =>
        (await storeOf().copy(key, `${key}-copy`, { sourceVersion: version, metadata: { n: '4' }, headers: headers! }), `${key}-copy`)],
      ['when it is copied over another one', async (key, { headers, version }) => {
        await storeOf().put(`${key}-other`, bytes('other'), { headers: { 'content-type': 'text/x-other', 'content-language': 'fr', 'x-amz-tagging': 'other=1' } });
        await storeOf().copy(key, `${key}-other`, { sourceVersion: version, metadata: { n: '5' }, headers: headers! });
        return `${key}-other`;
      }],
      ['when it is renamed', async (key, { version }) => (storeOf().capabilities.rename ? (await storeOf().rename(key, `${key}-new`, { version }), `${key}-new`) : null)],
      ['when it is changed twice', async (key, { headers, version }) => {
        await storeOf().put(key, bytes('once'), { headers: headers!, condition: { version } });
        const now = await storeOf().head(key);
        await storeOf().put(key, bytes('twice'), { headers: now.headers!, condition: { version: now.version } });
        return key;
      }],
    ];
    for (const [what, change] of ways) {
      test(what, async (t) => {
        const { key, info } = await setup();
        const attached = await others().attached(key);
        const there = await change(key, info);
        if (there === null) return t.diagnostic('no such operation here');
        assert.deepEqual(await others().attached(there), attached);
      });
    }

    test('and what is put where there was nothing has none of it', async () => {
      const { key, info } = await setup();
      await storeOf().put(`${key}-new`, bytes('x'), { headers: info.headers!, condition: { absent: true } });
      assert.equal((await storeOf().head(`${key}-new`)).headers!['x-amz-tagging-count'], undefined, 'whose tags nobody could read');
    });
  });
}
