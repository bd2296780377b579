/** The region that requests to S3 are signed for. */
import { S3Client } from '@aws-sdk/client-s3';
import type { S3Options } from './s3-options.js';

/** Where every bucket is known; the answer names the one that it is in, and calls go there (S3Connection). */
const DEFAULT = 'us-east-1';

/** As told, or as the SDK finds it (AWS_REGION, the profile); where nobody has said one, the default, of which others than Amazon take no notice. */
export function regionOf({ region, profile }: S3Options): string | (() => Promise<string>) {
  if (region !== undefined) return region;
  const { config } = new S3Client(profile === undefined ? {} : { profile });
  return async () => {
    try {
      return await config.region();
    } catch (error) {
      // A variable that is empty says nothing
      if (!/^Region is missing$|^Region not accepted: region=""/.test((error as Error).message)) throw error;
      return DEFAULT;
    }
  };
}
