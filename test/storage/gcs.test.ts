import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { GcsServer } from '../support/gcs/server.js';
import { othersAt } from '../support/gcs/others.js';
import { contract } from './contract.js';

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
