import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { GcsServer } from '../support/gcs/server.js';
import type { Others } from './attachments-contract.js';
import { contract } from './contract.js';

const FIELDS = {
  contentType: 'text/x-a', cacheControl: 'no-store', contentDisposition: 'inline', contentLanguage: 'fr', storageClass: 'NEARLINE', customTime: '2026-01-01T00:00:05Z',
  contexts: { custom: { team: { value: 'a b' }, '日': { value: '' } } },
};

const othersAt = (server: GcsServer): Others => ({
  put: async (key, content) => void server.bucket('bucket').insert(key, { content: Buffer.from(content), fields: FIELDS }, new Map([['kmsKeyName', 'projects/p/locations/l/keyRings/r/cryptoKeys/k']])),
  attached: async (key) => {
    const { metadata: _metadata, ...fields } = server.bucket('bucket').objects.get(key)!.fields;
    return fields;
  },
});

for (const [name, options] of [
  ['gcs', {}],
  ['gcs, every body by a resumable session, copies in steps', { resumableFromBytes: 1 }],
] as const) {
  let server: GcsServer;
  contract(name, {
    open: async () => {
      server = await GcsServer.start({ rewriteBytesPerCall: 2 });
      server.createBucket('bucket');
      return new GcsStore({ bucket: 'bucket', endpoint: server.url, credentials: 'anonymous', ...options });
    },
    close: async () => server.close(),
    others: () => othersAt(server),
  });
}
