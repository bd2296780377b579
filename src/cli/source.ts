/** What --source names. A bucket is a second kind later; whoever uses a Source switches on its kind. */
import { resolve } from 'node:path';
import { fileURLToPath } from 'node:url';
import { UsageError } from '../lifecycle/errors.js';

export interface LocalSource {
  readonly kind: 'local';
  /** Absolute path of the directory on the host. */
  readonly path: string;
}

export type Source = LocalSource;

/** A path, or a URL with a scheme; a relative path starts at the working directory. */
export function parseSource(text: string): Source {
  const scheme = /^([A-Za-z][A-Za-z0-9+.-]*):\/\//.exec(text)?.[1]?.toLowerCase();
  switch (scheme) {
    case undefined:
      return Object.freeze({ kind: 'local', path: resolve(text) });
    case 'file':
      return Object.freeze({ kind: 'local', path: fileUrlPath(text) });
    case 's3':
    case 'gs':
      throw new UsageError(`--source ${scheme}:// is not available yet: this version shares host directories only`);
    default:
      throw new UsageError(`--source takes a directory or a file:// URL, not one that starts with ${scheme}://`);
  }
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
