/**
 * The root directory of a confined daemon: a file system in memory, in which there is the share, or the cache directory of a bucket and what its connections
 * need; the directory of the socket; and what the program itself is made of. Nothing else of the host has a name there.
 */
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, readlinkSync, realpathSync, rmdirSync, statSync, symlinkSync, writeFileSync } from 'node:fs';
import { basename, dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';
import * as ns from '../ffi/namespaces.js';
import { StartError } from '../lifecycle/errors.js';
import { follow, type HostPath, type HostPaths, type Link } from './host-paths.js';

/** Where the share is, whatever its path on the host: that may be above or below the program's own files. */
export const SHARE_AT = '/.share';
/** Where the directory of the socket is, so that the daemon can remove socket and pid file when it ends. */
export const SOCKET_AT = '/.socket';

const { RDONLY, NOSUID, NODEV, NOEXEC } = ns.MOUNT_ATTR;
/** Node of /dev/null: the only one that must work. */
const DEV_NULL = '/dev/null';
/** Looked at by the dynamic loader, and by whoever writes local times. */
const SMALL_FILES = ['/etc/ld.so.cache', '/etc/localtime'];

/** Room for mount points and links, in bytes. */
const ROOT_SIZE = 1 << 20;

/** Mounts at and below a path of the host, at a path of the new root. */
interface Tree {
  readonly source: string;
  readonly target: string;
  readonly attributes: number;
  /** `scratch`: not the host's, but empty and in memory. */
  readonly purpose: 'program' | 'descriptors' | 'mounts' | 'null' | 'share' | 'socket' | 'read' | 'write' | 'scratch';
}

export interface RootContents {
  /** A directory that is shared, or what a bucket's daemon has of the host. */
  readonly share: string | HostPaths;
  readonly readonly: boolean;
  /** Directory of the socket that the daemon made; null: it inherited one. */
  readonly socketDirectory: string | null;
}

/** Symbolic links and mounts of the new root. */
export interface RootPlan {
  readonly links: readonly Link[];
  readonly trees: readonly Tree[];
  readonly workingDirectory: string;
  /** The host's network stays. */
  readonly network: boolean;
}

/** The folder with package.json: this file is build/src/confine/new-root.js in it. */
const PACKAGE = fileURLToPath(new URL('../../../', import.meta.url)).replace(/\/$/, '');

/** What the new root will hold, as the host is now. */
export function planRoot({ share, readonly, socketDirectory }: RootContents): RootPlan {
  const links: Link[] = [];
  const trees: Tree[] = [];
  const program = (path: string): void => {
    if (!existsSync(path) || trees.some(({ target }) => isWithin(path, target))) return;
    if (lstatSync(path).isSymbolicLink()) links.push({ path, to: readlinkSync(path) });
    else trees.push({ source: path, target: path, attributes: RDONLY | NOSUID | NODEV, purpose: 'program' });
  };
  for (const path of programPaths()) program(path);
  const descriptors = `/proc/${process.pid}/fd`;
  trees.push({ source: descriptors, target: '/proc/self/fd', attributes: RDONLY | NOSUID | NODEV | NOEXEC, purpose: 'descriptors' });
  trees.push({ source: DEV_NULL, target: DEV_NULL, attributes: NOSUID | NOEXEC, purpose: 'null' });
  if (socketDirectory !== null) {
    trees.push({ source: socketDirectory, target: SOCKET_AT, attributes: NOSUID | NODEV | NOEXEC, purpose: 'socket' });
  }
  if (typeof share !== 'string') return withHostPaths({ links, trees }, share);
  // What is mounted below the share, and when that changes
  trees.push({ source: `/proc/${process.pid}/mountinfo`, target: '/proc/self/mountinfo', attributes: RDONLY | NOSUID | NODEV | NOEXEC, purpose: 'mounts' });
  // A device node that a guest made is not opened even by a daemon that a guest has taken over.
  trees.push({ source: share, target: SHARE_AT, attributes: NOSUID | NODEV | (readonly ? RDONLY : 0), purpose: 'share' });
  return { links, trees, workingDirectory: '/', network: false };
}

/** Each at its place on the host, whatever is above or below it: outer ones are mounted first. */
function withHostPaths(program: Pick<RootPlan, 'links' | 'trees'>, { paths, scratch, workingDirectory }: HostPaths): RootPlan {
  const trees = new Map<string, Tree>(program.trees.map((tree) => [tree.target, tree]));
  const links = new Map<string, Link>(program.links.map((link) => [link.path, link]));
  const isReadable = (path: string): boolean => [...trees.values()].some(({ purpose, target }) => (purpose === 'program' || purpose === 'read') && isWithin(path, target));
  const add = (real: string, purpose: 'read' | 'write' | 'scratch'): void => {
    // A file in a directory that is there is that directory's: a mount of its own would keep it when it is replaced
    if (trees.has(real) || (purpose === 'read' && isReadable(real))) return;
    trees.set(real, { source: real, target: real, attributes: NOSUID | NODEV | NOEXEC | (purpose === 'read' ? RDONLY : 0), purpose });
  };
  const resolved = (which: readonly HostPath[]): string[] =>
    which.flatMap(({ path }) => {
      const found = follow(path);
      for (const link of found?.links ?? []) links.set(link.path, link);
      return found?.real ?? [];
    }).sort(outerFirst);
  if (scratch !== null) for (const real of resolved([{ path: scratch, writable: true }])) add(real, 'scratch');
  for (const real of resolved(paths.filter(({ writable }) => writable))) add(real, 'write');
  for (const real of resolved(paths.filter(({ writable }) => !writable))) add(real, 'read');
  const mounted = [...trees.values()].sort((a, b) => outerFirst(a.target, b.target));
  return { links: [...links.values()].filter(({ path }) => !mounted.some(({ target }) => isWithin(path, target))), trees: mounted, workingDirectory, network: true };
}

const outerFirst = (a: string, b: string): number => a.split('/').length - b.split('/').length;

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
 * Moves this thread into a root and namespaces of its own (mounts, IPC; the network of a directory's daemon), to stay there through execve(2). Other threads
 * of the process stay where they are.
 * @throws RootUnavailable if this user or this kernel cannot: then every name leads where it did; StartError
 */
export function enterRoot(plan: RootPlan): void {
  // Any directory but / will do to build in: this one exists, and its copy is taken.
  const top = dirname(process.execPath);
  explained(RootUnavailable, () => {
    ns.unshare(ns.CLONE_NEWNS | ns.CLONE_NEWIPC | (plan.network ? 0 : ns.CLONE_NEWNET));
    ns.receiveMountsOnly();
    // All copies are made before anything is covered by the new root.
    const copies = plan.trees.map(copyOf);
    ns.mountTmpfs(top, '0755', ROOT_SIZE);
    try {
      build(plan, copies, top);
    } catch (error) {
      ns.detachMount(top);
      throw error;
    }
  });
  explained(StartError, () => {
    process.chdir(top);
    ns.pivotHere();
    ns.makeReadOnly('/');
    process.chdir(plan.workingDirectory);
  });
}

/** There is no new root, and nothing has changed for it. */
export class RootUnavailable extends StartError {
  override name = 'RootUnavailable';
}

function explained<T>(Failure: typeof StartError, step: () => T): T {
  try {
    return step();
  } catch (error) {
    const { code, syscall, message } = error as NodeJS.ErrnoException;
    if (code !== undefined && syscall !== undefined) throw new Failure(sentence({ code, syscall, message }));
    throw error;
  }
}

interface Copy {
  /** null: of nothing. */
  readonly fd: number | null;
  readonly source: string;
  readonly target: string;
  readonly directory: boolean;
}

function copyOf({ source, target, attributes, purpose }: Tree): Copy {
  return { fd: purpose === 'scratch' ? null : ns.copyMounts(source, attributes), source, target, directory: statSync(source).isDirectory() };
}

function build({ links, workingDirectory }: RootPlan, copies: readonly Copy[], top: string): void {
  for (const { path, to } of links) {
    mkdirSync(dirname(join(top, path)), { recursive: true, mode: 0o755 });
    symlinkSync(to, join(top, path));
  }
  for (const { fd, source, target, directory } of copies) {
    const place = join(top, target);
    if (!existsSync(place)) {
      mkdirSync(directory ? place : dirname(place), { recursive: true, mode: 0o755 });
      if (!directory) writeFileSync(place, '');
    }
    if (fd !== null) {
      ns.attachMounts(fd, place);
      continue;
    }
    ns.mountTmpfs(place, '0700', null);
    rmdirSync(source);
  }
  if (!existsSync(join(top, workingDirectory))) mkdirSync(join(top, workingDirectory), { recursive: true, mode: 0o755 });
}

function sentence(error: { readonly code: string; readonly syscall: string; readonly message: string }): string {
  const outside = 'use --sandbox=none and confine the daemon from outside, as the units in deploy/ do';
  if (error.syscall === 'unshare' && error.code === 'EPERM') return `--sandbox=namespace needs CAP_SYS_ADMIN, which this process does not have: ${outside}`;
  if (error.code === 'ENOSYS') return `--sandbox=namespace needs Linux 5.12 or later (${error.message}): ${outside}`;
  return `--sandbox=namespace cannot be set up here (${error.message}): ${outside}`;
}
