/** Other clients of an S3 bucket, with the SDK: what they attach to objects, and what is attached to them. */
import { GetObjectTaggingCommand, HeadObjectCommand, PutObjectCommand, type PutObjectCommandInput, type S3Client } from '@aws-sdk/client-s3';
import type { Others } from '../../storage/attachments-contract.js';

export const TAGGING = 'team=a%20b&%E6%97%A5=1%2F2&empty=';

export const othersOf = (client: S3Client, Bucket: string, more: Partial<PutObjectCommandInput> = {}): Others => ({
  put: async (Key, Body) => {
    await client.send(new PutObjectCommand({
      Bucket, Key, Body, Tagging: TAGGING, ContentType: 'text/x-a', CacheControl: 'no-store', ContentDisposition: 'inline', ContentLanguage: 'fr',
      Expires: new Date('2031-01-01T00:00:00Z'), WebsiteRedirectLocation: '/there', ...more,
    }));
  },
  attached: async (Key) => {
    const head = await client.send(new HeadObjectCommand({ Bucket, Key }));
    const { TagSet = [] } = await client.send(new GetObjectTaggingCommand({ Bucket, Key }));
    return {
      tags: Object.fromEntries(TagSet.map((tag) => [tag.Key, tag.Value])), type: head.ContentType, cache: head.CacheControl, disposition: head.ContentDisposition,
      language: head.ContentLanguage, expires: head.ExpiresString, redirect: head.WebsiteRedirectLocation, class: head.StorageClass ?? 'STANDARD',
      encryption: head.ServerSideEncryption, key: head.SSEKMSKeyId, lock: head.ObjectLockMode, until: head.ObjectLockRetainUntilDate?.getTime(), hold: head.ObjectLockLegalHoldStatus,
    };
  },
});
