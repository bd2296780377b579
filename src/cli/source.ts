/** What --source names; whoever uses a Source switches on its kind. */
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UsageError } from '../lifecycle/errors.js';

/** Keys have at most 1,024 bytes, and a name must fit behind it. */
const PREFIX_MAX_BYTES = 768;

export interface LocalSource {
  readonly kind: 'local';
  /** Absolute path of the directory on the host. */
  readonly path: string;
}

export interface BucketSource {
  readonly kind: 's3' | 'gcs' | 'memory';
  readonly bucket: string;
  /** What every key begins with: '' or something that ends with a slash. */
  readonly prefix: string;
  /** As the user wrote it, for messages. */
  readonly path: string;
}

export type Source = LocalSource | BucketSource;

/** A path, or a URL with a scheme; a relative path starts at the working directory. */
export function parseSource(text: string): Source {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(text)?.[1]?.toLowerCase();
  // Every other colon may be part of a path
  if (text === 'memory:') return Object.freeze({ kind: 'memory', bucket: 'memory', prefix: '', path: text });
  switch (scheme) {
    case undefined:
      return Object.freeze({ kind: 'local', path: resolve(text) });
    case 'file':
      return Object.freeze({ kind: 'local', path: fileUrlPath(text) });
    case 's3':
    case 'gs':
      return bucketSource(scheme, text);
    default:
      throw new UsageError(`--source takes a directory, a file:// URL, s3://BUCKET, gs://BUCKET or memory:, not one that starts with ${scheme}://`);
  }
}

/** Not by URL: keys are taken literally, percent signs, question marks and all. */
function bucketSource(scheme: 's3' | 'gs', text: string): BucketSource {
  const [, bucket, rest = ''] = /^[^/]*\/\/([^/]*)(?:\/(.*))?$/s.exec(text) ?? [];
  // https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucketnamingrules.html, .../storage/docs/buckets#naming
  if (bucket === undefined || !/^[a-z0-9][a-z0-9._-]{1,220}[a-z0-9]$/i.test(bucket)) {
    throw new UsageError(`--source ${JSON.stringify(text)} names no bucket: write ${scheme}://BUCKET or ${scheme}://BUCKET/PREFIX`);
  }
  const prefix = rest === '' || rest.endsWith('/') ? rest : `${rest}/`;
  if (Buffer.byteLength(prefix) > PREFIX_MAX_BYTES) throw new UsageError(`--source has a prefix of more than ${PREFIX_MAX_BYTES} bytes`);
  return Object.freeze({ kind: scheme === 's3' ? 's3' : 'gcs', bucket, prefix, path: text });
}

function fileUrlPath(text: string): string {
  try {
    const url = new URL(text);
    if (url.search === '' && url.hash === '') return resolve(fileURLToPath(url));
  } catch {
    // The sentence below says what is wrong in words of ours.
  }
  throw new UsageError(`--source ${JSON.stringify(text)} is not a file URL of this host: write file:///absolute/path, with %23 for # and %3F for ?`);
}
