/** What a profile of ~/.aws/config and ~/.aws/credentials needs of the host, found before anything is hidden: files, and programs. */
import { join } from 'node:path';
import type { BucketSettings } from '../cli.js';
import { readSmall } from './small-file.js';

export interface AwsFiles {
  /** Which may be written anew while the daemon runs. */
  readonly renewed: readonly string[];
  /** Directories in which the SDK keeps what it has renewed itself. */
  readonly written: readonly string[];
  /** The credential_process, which is run as the SDK needs new credentials; null: there is none. */
  readonly program: string | null;
}

type Profile = ReadonlyMap<string, string>;
type Settings = Pick<BucketSettings, 'profile' | 'unsigned'>;

export function awsFiles({ profile, unsigned }: Settings, env: NodeJS.ProcessEnv, home: string): AwsFiles {
  const folder = join(home, '.aws');
  const files = [env['AWS_CONFIG_FILE'] ?? join(folder, 'config'), env['AWS_SHARED_CREDENTIALS_FILE'] ?? join(folder, 'credentials')];
  const name = profile ?? env['AWS_PROFILE'] ?? null;
  const inEnvironment = name === null && has(env['AWS_ACCESS_KEY_ID']) && has(env['AWS_SECRET_ACCESS_KEY']);
  // Other settings, such as the region, come from the files in any case
  if (unsigned || inEnvironment) return { renewed: files, written: [], program: null };
  const used = chainOf(profilesOf(files.map(readSmall)), name ?? 'default');
  const tokens = [env['AWS_WEB_IDENTITY_TOKEN_FILE'], env['AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE'], ...used.map((one) => one.get('web_identity_token_file'))];
  const signsIn = used.some((one) => [...one.keys()].some((key) => key.startsWith('sso_') || key.startsWith('login_')));
  return {
    renewed: [...files, ...tokens.filter(has)],
    written: signsIn ? [join(folder, 'sso/cache'), env['AWS_LOGIN_CACHE_DIRECTORY'] ?? join(folder, 'login/cache')] : [],
    program: used.filter((one) => !hasKeys(one)).map((one) => one.get('credential_process')).find(has) ?? null,
  };
}

const has = (text: string | undefined): text is string => text !== undefined && text !== '';
/** They come before a program. */
const hasKeys = (profile: Profile): boolean => has(profile.get('aws_access_key_id')) && has(profile.get('aws_secret_access_key'));

/** The profile, and those that it takes its credentials from. */
function chainOf(profiles: ReadonlyMap<string, Profile>, name: string): Profile[] {
  const seen = new Set<string>();
  const chain: Profile[] = [];
  for (let next: string | undefined = name; next !== undefined && !seen.has(next); next = chain.at(-1)?.get('source_profile')) {
    seen.add(next);
    const found = profiles.get(next);
    if (found === undefined) break;
    chain.push(found);
  }
  return chain;
}

/** Sections of all files by the names of their profiles; a later file adds to an earlier one. https://docs.aws.amazon.com/sdkref/latest/guide/file-format.html */
function profilesOf(texts: readonly (string | null)[]): Map<string, Map<string, string>> {
  const profiles = new Map<string, Map<string, string>>();
  for (const text of texts) {
    let current: Map<string, string> | null = null;
    for (const line of (text ?? '').split(/\r?\n/)) {
      const section = /^\s*\[\s*(?:profile\s+)?(["']?)(.+?)\1\s*\]/.exec(line);
      if (section !== null) {
        current = profiles.get(section[2]) ?? new Map<string, string>();
        profiles.set(section[2], current);
        continue;
      }
      const setting = /^\s*([\w-]+)\s*=\s*(.*?)\s*$/.exec(line);
      if (setting !== null) current?.set(setting[1].toLowerCase(), setting[2]);
    }
  }
  return profiles;
}
