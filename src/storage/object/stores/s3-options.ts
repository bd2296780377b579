/** What an S3 store is told. */
import type { Capabilities } from '../store.js';

export interface S3Options {
  readonly bucket: string;
  readonly region?: string;
  readonly endpoint?: string;
  readonly pathStyle?: boolean;
  readonly profile?: string;
  readonly unsigned?: boolean;
  readonly requesterPays?: boolean;
  readonly expectedBucketOwner?: string;
  readonly storageClass?: string;
  /** Certificates in PEM. */
  readonly ca?: string;
  readonly serverSideEncryption?: 'AES256' | 'aws:kms';
  readonly kmsKeyId?: string;
  /** Instead of the SDK's chain. */
  readonly credentials?: { readonly accessKeyId: string; readonly secretAccessKey: string; readonly sessionToken?: string };
  readonly capabilities?: Capabilities;
  /** See boundedRequests(); in tests. */
  readonly credentialsWithin_ms?: number;
}

/**
 * Whether content has checksums besides those of TLS: sent for each body, and asked for and compared with each read. Amazon's
 * endpoints do; many others refuse what they do not know.
 */
export const hasChecksums = (options: S3Options): boolean => options.endpoint === undefined;
