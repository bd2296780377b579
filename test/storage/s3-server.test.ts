/** The S3 server of the tests behaves as the contract says, so that its misbehaviour is what a test asked for. */
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { S3Server } from '../support/s3/server.js';
import { contract } from './contract.js';
import { after, before, describe } from 'node:test';
import { MemoryStore } from '../../src/storage/object/stores/memory.js';

describe('the S3 server of the tests', () => {
  let server: S3Server;
  before(async () => (server = await S3Server.start()));
  after(() => server.stop());

  contract('S3 on the server of the tests', {
    open: async () => {
      server.store = new MemoryStore({ capabilities: { listingHasMetadata: false } });
      return new S3Store({ bucket: S3Server.BUCKET, endpoint: server.endpoint, region: 'us-east-1', pathStyle: true, credentials: S3Server.CREDENTIALS });
    },
  });
});
