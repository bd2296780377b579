/**
 * What a bucket's daemon needs of the host when all else is hidden: its cache directory, the look-up of names, certificates, and the files that credentials
 * come from. A file that may be replaced while the daemon runs (a token that the kubelet renews) is there with its directory.
 */
import { realpathSync, statSync } from 'node:fs';
import { homedir } from 'node:os';
import { dirname, resolve } from 'node:path';
import type { BucketSettings } from '../cli.js';
import { awsFiles } from './aws-profile.js';
import { googleFiles } from './google-key.js';

interface NeededPath {
  readonly path: string;
  readonly writable: boolean;
}

export interface HostNeeds {
  readonly paths: readonly NeededPath[];
  /** Sentences for the log about directories that have more than they are needed for. */
  readonly notes: readonly string[];
  /** Why there can be no sandbox; null: there can. */
  readonly obstacle: string | null;
}

/** resolv.conf(5), hosts(5), nsswitch.conf(5), host.conf(5), gai.conf(5), services(5). */
const NAMES = ['/etc/hosts', '/etc/nsswitch.conf', '/etc/host.conf', '/etc/gai.conf', '/etc/services'];
const RESOLVER = '/etc/resolv.conf';
/** Without the private keys that lie beside some of them. */
const CERTIFICATES = [
  '/etc/ssl/certs', '/etc/ssl/cert.pem', '/etc/ssl/openssl.cnf', '/etc/pki/tls/certs', '/etc/pki/tls/cert.pem', '/etc/pki/tls/openssl.cnf', '/etc/pki/ca-trust',
  '/etc/ca-certificates', '/etc/crypto-policies',
];
/** Of the environment, read at the start. */
const CERTIFICATE_VARIABLES = ['NODE_EXTRA_CA_CERTS', 'SSL_CERT_FILE', 'OPENSSL_CONF'];
/** A list, with colons. */
const CERTIFICATE_LIST = 'SSL_CERT_DIR';
/** Whether this is the boot in which the cache directory was written; whether this machine is one of Google's. */
const OF_THE_MACHINE = ['/proc/sys/kernel/random/boot_id', '/sys/class/dmi/id/bios_date', '/sys/class/dmi/id/bios_vendor'];
/** Directories in which everybody has something. */
const WIDE = ['/etc', '/root', '/home', '/tmp', '/var', '/var/tmp', '/var/lib', '/run', '/var/run', '/opt', '/srv', '/mnt', '/media', '/dev/shm', '/usr', '/boot'];
/** They lead to everything. */
const WHOLE = ['/', '/proc', '/sys', '/dev'];

/** `cacheDirectory`: null if nothing is kept on the disk. */
export function hostNeeds(settings: BucketSettings, cacheDirectory: string | null, env: NodeJS.ProcessEnv = process.env): HostNeeds {
  const { source } = settings;
  const home = homedir();
  const aws = source.kind === 's3' ? awsFiles(settings, env, home) : null;
  const google = source.kind === 'gcs' && !settings.unsigned ? googleFiles(env, home) : null;
  const certificates = [...CERTIFICATES, ...CERTIFICATE_VARIABLES.map((name) => env[name] ?? ''), ...(env[CERTIFICATE_LIST] ?? '').split(':'), settings.caBundle ?? ''].filter((path) => path !== '');
  const paths: NeededPath[] = [];
  const notes: string[] = [];
  const add = (path: string, writable = false): void => void paths.push({ path: resolve(path), writable });
  if (cacheDirectory !== null) add(cacheDirectory, true);
  for (const path of [...NAMES, ...certificates, ...OF_THE_MACHINE, ...(google?.read ?? [])]) add(path);
  for (const path of aws?.written ?? []) add(path, true);
  add(RESOLVER);
  // Only where it is a link there is a directory of its own, in which whoever knows the servers of today replaces it
  const servers = realOf(RESOLVER);
  if (servers !== null && servers !== RESOLVER && !isWide(dirname(servers), home)) add(dirname(servers));
  for (const file of [...(aws?.renewed ?? []), ...(google?.renewed ?? [])]) notes.push(...addRenewed(file, home, add));
  return { paths, notes: [...new Set(notes)], obstacle: obstacleOf(settings, aws?.program ?? google?.program ?? null) };
}

/** The file with the directories that its name, and a link in its place, are in. @returns what is to be said of them */
function addRenewed(file: string, home: string, add: (path: string) => void): string[] {
  const found = realOf(file);
  add(file);
  const folders = new Set([dirname(resolve(file)), ...(found === null ? [] : [dirname(found)])]);
  return [...folders].flatMap((folder) => {
    const real = realOf(folder);
    // What is not there is not replaced either
    if (real === null || (found === null && isWide(real, home))) return [];
    if (isWhole(real)) return [`${file} lies in ${folder}, which is not in the sandbox: when that file is replaced, start the daemon again, or give it a directory of its own`];
    add(folder);
    return isWide(real, home) ? [`all of ${folder} can be read by the daemon, since ${file} may be replaced there: give it a directory of its own`] : [];
  });
}

const isWide = (folder: string, home: string): boolean => folder === (realOf(home) ?? home) || WIDE.includes(folder) || isWhole(folder);
const isWhole = (folder: string): boolean => !WIDE.includes(folder) && WHOLE.some((whole) => folder === whole || (whole !== '/' && folder.startsWith(`${whole}/`)));

function realOf(path: string): string | null {
  try {
    return realpathSync(path);
  } catch {
    return null;
  }
}

function obstacleOf({ caBundle }: BucketSettings, program: string | null): string | null {
  if (program !== null) return 'the credentials come from a program (credential_process), which may need anything of the host';
  if (caBundle !== null && !hasName(caBundle)) return `--ca-bundle ${caBundle} is no file with a name of its own`;
  return null;
}

/** A pipe of the shell's has none; of what is not there something else is said later. */
function hasName(path: string): boolean {
  try {
    return statSync(path).isFile() && !/^\/(?:dev|proc)\//.test(resolve(path));
  } catch {
    return true;
  }
}
