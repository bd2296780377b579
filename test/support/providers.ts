/** Buckets on real and test servers, for the tests and the demo in real guests. */
import { CreateBucketCommand, GetObjectCommand, S3Client } from '@aws-sdk/client-s3';
import type { ObjectStore } from '../../src/storage/object/store.js';
import { GcsStore } from '../../src/storage/object/stores/gcs.js';
import { S3Store } from '../../src/storage/object/stores/s3.js';
import { GcsServer } from './gcs/server.js';
import { Rgw } from './rgw.js';

/** A server with one empty bucket, another client on it, and how the daemon gets there. */
export interface Provider {
  readonly store: ObjectStore;
  /** "s3://BUCKET" */
  readonly source: string;
  readonly options: readonly string[];
  readonly env: Readonly<Record<string, string>>;
  /** What a client that is not ours gets: the provider's own SDK, or plain HTTP. */
  get(key: string): Promise<Buffer>;
  stop(): Promise<void>;
}

export const credentialsOf = (rgw: Rgw): Record<string, string> => ({
  AWS_ACCESS_KEY_ID: rgw.credentials.accessKeyId, AWS_SECRET_ACCESS_KEY: rgw.credentials.secretAccessKey,
});

/** Ceph RGW; see Rgw.unavailable(). */
export async function s3Provider(bucket: string): Promise<Provider & { readonly rgw: Rgw }> {
  const rgw = await Rgw.start();
  const config = { endpoint: rgw.endpoint, region: 'us-east-1', credentials: rgw.credentials };
  const client = new S3Client({ ...config, forcePathStyle: true });
  await client.send(new CreateBucketCommand({ Bucket: bucket }));
  const store = new S3Store({ ...config, bucket, pathStyle: true });
  return {
    rgw, store, source: `s3://${bucket}`, options: ['--endpoint', rgw.endpoint, '--path-style'], env: credentialsOf(rgw),
    get: async (key) => Buffer.from(await (await client.send(new GetObjectCommand({ Bucket: bucket, Key: key }))).Body!.transformToByteArray()),
    stop: async () => {
      client.destroy();
      await store.close();
      rgw.stop();
    },
  };
}

/** The server of the tests. */
export async function gcsProvider(bucket: string): Promise<Provider> {
  const server = await GcsServer.start();
  server.createBucket(bucket);
  const store = new GcsStore({ bucket, endpoint: server.url, credentials: 'anonymous' });
  return {
    store, source: `gs://${bucket}`, options: ['--endpoint', server.url, '--unsigned'], env: {},
    get: async (key) => {
      const response = await fetch(`${server.url}/storage/v1/b/${bucket}/o/${encodeURIComponent(key)}?alt=media`);
      if (!response.ok) throw new Error(`GET ${key}: HTTP ${response.status}`);
      return Buffer.from(await response.arrayBuffer());
    },
    stop: async () => {
      await store.close();
      await server.close();
    },
  };
}
