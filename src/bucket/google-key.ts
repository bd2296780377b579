/** What the credentials of Google Cloud need of the host: the file with a key, and those that it names, such as a token that is renewed. */
import { isAbsolute, join } from 'node:path';
import { readSmall } from './small-file.js';

export interface GoogleFiles {
  readonly read: readonly string[];
  /** Which may be written anew while the daemon runs. */
  readonly renewed: readonly string[];
  /** A program that gives tokens; null: there is none, or it may not be run. */
  readonly program: string | null;
}

/** JSON has no more levels that we look at. */
const DEPTH_MAX = 8;

/** https://cloud.google.com/docs/authentication/application-default-credentials */
export function googleFiles(env: NodeJS.ProcessEnv, home: string): GoogleFiles {
  const folder = join(home, '.config/gcloud');
  const key = env['GOOGLE_APPLICATION_CREDENTIALS'] || env['google_application_credentials'] || join(folder, 'application_default_credentials.json');
  const certificate = env['GOOGLE_API_CERTIFICATE_CONFIG'] ?? join(folder, 'certificate_config.json');
  const read = [key, certificate];
  const renewed: string[] = [];
  let program: string | null = null;
  for (const file of read) {
    visit(parsed(readSmall(file)), DEPTH_MAX, (name, text) => {
      if (name !== 'command') {
        if (isAbsolute(text)) renewed.push(text);
      } else if (env['GOOGLE_EXTERNAL_ACCOUNT_ALLOW_EXECUTABLES'] === '1') program = text;
    });
  }
  return { read, renewed, program };
}

function parsed(text: string | null): unknown {
  try {
    return JSON.parse(text ?? 'null');
  } catch {
    return null; // the library has a sentence for it
  }
}

/** Every text in it, by the name that it has there. */
function visit(value: unknown, depth: number, seen: (name: string, text: string) => void, name = ''): void {
  if (typeof value === 'string') seen(name, value);
  else if (typeof value === 'object' && value !== null && depth > 0) for (const [key, below] of Object.entries(value)) visit(below, depth - 1, seen, key);
}
