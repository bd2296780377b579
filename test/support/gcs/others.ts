/** Other clients of a bucket: what they attach to objects, and what is attached to them. */
import type { Others } from '../../storage/attachments-contract.js';
import type { GcsServer } from './server.js';

const FIELDS = {
  contentType: 'text/x-a', cacheControl: 'no-store', contentDisposition: 'inline', contentLanguage: 'fr', storageClass: 'NEARLINE', customTime: '2026-01-01T00:00:05Z',
  contexts: { custom: { team: { value: 'a b' }, '日': { value: '' } } },
};

/** Of the bucket `bucket`. */
export const othersAt = (server: GcsServer): Others => ({
  put: async (key, content) => void server.bucket('bucket').insert(key, { content: Buffer.from(content), fields: FIELDS }, new Map([['kmsKeyName', 'projects/p/locations/l/keyRings/r/cryptoKeys/k']])),
  attached: async (key) => {
    const { metadata: _metadata, ...fields } = server.bucket('bucket').objects.get(key)!.fields;
    return fields;
  },
});
