/**
 * The root directory of a confined daemon: a file system in memory, in which there is the share, the directory of the
 * socket, and what the program itself is made of. Nothing else of the host has a name there.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, realpathSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import { SysError } from '../ffi/errors.js';
import * as ns from '../ffi/namespaces.js';
import { StartError } from '../lifecycle/errors.js';

/** Where the share is, whatever its path on the host: that may be above or below the program's own files. */
export const SHARE_AT = '/.share';
/** Where the directory of the socket is, so that the daemon can remove socket and pid file when it ends. */
export const SOCKET_AT = '/.socket';

const { RDONLY, NOSUID, NODEV, NOEXEC } = ns.MOUNT_ATTR;
/** Node of /dev/null: the only one that must work. */
const DEV_NULL = '/dev/null';
/** Looked at by the dynamic loader, and by whoever writes local times. */
const SMALL_FILES = ['/etc/ld.so.cache', '/etc/localtime'];

/** Mounts at and below a path of the host, at a path of the new root. */
interface Tree {
  readonly source: string;
  readonly target: string;
  readonly attributes: number;
}

export interface RootContents {
  readonly share: string;
  readonly readonly: boolean;
  /** Directory of the socket that the daemon made; null: it inherited one. */
  readonly socketDirectory: string | null;
}

/** Symbolic links and mounts of the new root. */
export interface RootPlan {
  readonly links: readonly { readonly path: string; readonly to: string }[];
  readonly trees: readonly Tree[];
}

/** The folder with package.json: this file is build/src/confine/new-root.js in it. */
const PACKAGE = fileURLToPath(new URL('../../../', import.meta.url)).replace(/\/$/, '');

/** What the new root will hold, as the host is now. */
export function planRoot(contents: RootContents): RootPlan {
  const links: { path: string; to: string }[] = [];
  const trees: Tree[] = [];
  const program = (path: string): void => {
    if (!existsSync(path) || trees.some(({ target }) => isWithin(path, target))) return;
    if (lstatSync(path).isSymbolicLink()) links.push({ path, to: readlinkSync(path) });
    else trees.push({ source: path, target: path, attributes: RDONLY | NOSUID | NODEV });
  };
  for (const path of programPaths()) program(path);
  const descriptors = `/proc/${process.pid}/fd`;
  trees.push({ source: descriptors, target: '/proc/self/fd', attributes: RDONLY | NOSUID | NODEV | NOEXEC });
  trees.push({ source: DEV_NULL, target: DEV_NULL, attributes: NOSUID | NOEXEC });
  // A device node that a guest made is not opened even by a daemon that a guest has taken over.
  trees.push({ source: contents.share, target: SHARE_AT, attributes: NOSUID | NODEV | (contents.readonly ? RDONLY : 0) });
  if (contents.socketDirectory !== null) {
    trees.push({ source: contents.socketDirectory, target: SOCKET_AT, attributes: NOSUID | NODEV | NOEXEC });
  }
  return { links, trees };
}

/** Files and folders that Node and the daemon read, outer ones first. */
function programPaths(): string[] {
  const libraryFolders = readdirSync('/').filter((name) => name.startsWith('lib')).map((name) => `/${name}`);
  const build = fileURLToPath(new URL('../', import.meta.url)).replace(/\/$/, '');
  const own = [...packageFolders(), build, join(PACKAGE, 'package.json')];
  return ['/usr', ...libraryFolders, process.execPath, ...loadedFolders(), ...own, ...SMALL_FILES];
}

/** node_modules that Node finds the packages in: by the path that it looks at, and by where links lead, to a store (pnpm), a workspace, another checkout (npm link). */
function packageFolders(): string[] {
  const { dependencies } = JSON.parse(readFileSync(join(PACKAGE, 'package.json'), 'utf8')) as { readonly dependencies: Readonly<Record<string, string>> };
  const candidates = ancestors(PACKAGE).map((folder) => join(folder, 'node_modules'));
  const folders = Object.keys(dependencies).flatMap((name) => {
    const modules = candidates.find((path) => existsSync(join(path, name)));
    return modules === undefined ? [] : [modules, realpathSync(modules), outermostModules(realpathSync(join(modules, name)))];
  });
  return [...new Set(folders)].sort((a, b) => a.length - b.length);
}

/** A folder and those that it is in, without the root. */
const ancestors = (folder: string): string[] => (folder === '/' ? [] : [folder, ...ancestors(dirname(folder))]);

/** The node_modules that all packages beside a package are in; the package alone where it is in none. */
function outermostModules(path: string): string {
  const at = path.indexOf('/node_modules/');
  return at < 0 ? path : path.slice(0, at + '/node_modules'.length);
}

/** Folders of the libraries that this process runs with: not all systems keep them below /usr and /lib. */
function loadedFolders(): string[] {
  const paths = readFileSync('/proc/self/maps', 'utf8').split('\n').flatMap((line) => /\sr-xp\s.*?\s(\/.*)$/.exec(line)?.[1] ?? []);
  return [...new Set(paths.filter((path) => /\.so(\.|$)/.test(basename(path)) && existsSync(path)).map((path) => dirname(path)))];
}

function isWithin(path: string, folder: string): boolean {
  return path === folder || path.startsWith(`${folder}/`);
}

/**
 * Moves this thread into a root and namespaces of its own (mounts, IPC, network), to stay there through execve(2). Other threads
 * of the process stay where they are.
 * @throws RootUnavailable if this user or this kernel cannot: then every name leads where it did; StartError
 */
export function enterRoot(plan: RootPlan): void {
  // Any directory but / will do to build in: this one exists, and its copy is taken.
  const top = dirname(process.execPath);
  const copies = explained(RootUnavailable, () => {
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWIPC | ns.CLONE_NEWNET);
    ns.receiveMountsOnly();
    // All copies are made before anything is covered by the new root.
    const made = plan.trees.map(({ source, target, attributes }) => ({ fd: ns.copyMounts(source, attributes), target, directory: statSync(source).isDirectory() }));
    ns.mountTmpfs(top);
    return made;
  });
  explained(StartError, () => build(plan, copies, top));
}

/** There is no new root, and nothing has changed for it. */
export class RootUnavailable extends StartError {
  override name = 'RootUnavailable';
}

function explained<T>(Failure: typeof StartError, step: () => T): T {
  try {
    return step();
  } catch (error) {
    if (error instanceof SysError) throw new Failure(sentence(error));
    throw error;
  }
}

interface Copy {
  readonly fd: number;
  readonly target: string;
  readonly directory: boolean;
}

function build({ links }: RootPlan, copies: readonly Copy[], top: string): void {
  for (const { path, to } of links) {
    mkdirSync(dirname(join(top, path)), { recursive: true, mode: 0o755 });
    symlinkSync(to, join(top, path));
  }
  for (const { fd, target, directory } of copies) {
    const place = join(top, target);
    mkdirSync(directory ? place : dirname(place), { recursive: true, mode: 0o755 });
    if (!directory) writeFileSync(place, '');
    ns.attachMounts(fd, place);
  }
  process.chdir(top);
  ns.pivotHere();
  ns.makeReadOnly('/');
}

function sentence(error: SysError): string {
  const outside = 'use --sandbox=none and confine the daemon from outside, as deploy/bucketfsd@.service does';
  if (error.syscall === 'unshare' && error.code === 'EPERM') return `--sandbox=namespace needs CAP_SYS_ADMIN, which this process does not have: ${outside}`;
  if (error.code === 'ENOSYS') return `--sandbox=namespace needs Linux 5.12 or later (${error.message}): ${outside}`;
  return `--sandbox=namespace cannot be set up here (${error.message}): ${outside}`;
}
