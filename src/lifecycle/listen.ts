/** The listening socket: made at a path, or inherited and checked. */
import { closeSync, fstatSync, lstatSync, readFileSync, unlinkSync, type BigIntStats } from 'node:fs';
import { resolve } from 'node:path';
import { E, errnoName } from '../base/errno.js';
import * as c from '../ffi/libc.js';
import { groupId } from '../ffi/accounts.js';
import { bindUnix, connectUnix, socketOption, SOCKET_PATH_MAX_BYTES, unixSocket } from '../ffi/socket.js';
import { AF_UNIX, O_NONBLOCK, SO_ACCEPTCONN, SO_DOMAIN, SOCK_STREAM, F_GETFL, F_SETFD, F_SETFL, FD_CLOEXEC } from '../ffi/constants.js';
import { StartError } from './errors.js';
import { directoryError, PidFile } from './pid-file.js';
import { settleOwner, umaskFor } from './socket-owner.js';

export type ListenSpec =
  | { readonly kind: 'path'; readonly path: string; readonly group: string | null }
  | { readonly kind: 'fd'; readonly fd: number; readonly origin: '--fd' | 'LISTEN_FDS' };

/** Frontends that may wait for accept(2). */
const BACKLOG = 16;
const SO_TYPE = 3;
/** __SO_ACCEPTCON in the flags column of /proc/net/unix. */
const PROC_LISTENING = 0x10000;

/** A non-blocking, close-on-exec socket to accept(2) on. */
export interface Listener {
  readonly fd: number;
  /** For messages: the path, or where the descriptor came from. */
  readonly name: string;
  /** Absolute path of the socket that was made, or null. */
  readonly path: string | null;
  /** Descriptor that holds the lock of the pid file, or null. */
  readonly pidFd: number | null;
  /** Stops listening and removes what was made: socket and pid file. May be called twice. */
  close(): void;
}

/** Throws StartError with one sentence if it cannot be done. */
export function openListener(spec: ListenSpec): Listener {
  return spec.kind === 'path' ? listenAt(spec.path, spec.group) : inherit(spec.fd, spec.origin);
}

/** The listener of the process image before execve(2), of which the descriptors have come along; `path` is where its socket is seen now. */
export function adoptListener({ fd, name, path, pidFd }: Omit<Listener, 'close'>): Listener {
  for (const kept of [fd, pidFd]) if (kept !== null) c.check(c.fcntl(kept, F_SETFD, FD_CLOEXEC), 'fcntl');
  if (path === null || pidFd === null) return inherited(fd, name);
  return new PathListener(fd, name, path, adoptedSocket(name, path), PidFile.adopt(`${path}.pid`, pidFd));
}

function adoptedSocket(name: string, path: string): BigIntStats {
  try {
    return lstatSync(path, { bigint: true });
  } catch (error) {
    throw new StartError(`the daemon cannot reach ${name} any more (${(error as NodeJS.ErrnoException).code}): the user that --uid-map makes of it must have access to the directory`);
  }
}

function listenAt(givenPath: string, group: string | null): Listener {
  const path = resolve(givenPath);
  if (Buffer.byteLength(givenPath) > SOCKET_PATH_MAX_BYTES) {
    throw new StartError(`the socket path is too long: Unix sockets allow ${SOCKET_PATH_MAX_BYTES} bytes, not ${Buffer.byteLength(givenPath)}`);
  }
  const gid = group === null ? null : groupId(group);
  if (group !== null && gid === null) throw new StartError(`there is no group ${JSON.stringify(group)} for --socket-group`);
  const pidFile = PidFile.lock(`${path}.pid`, path);
  try {
    removeStale(givenPath, path);
    return listenLocked(givenPath, path, gid, pidFile);
  } catch (error) {
    pidFile.release();
    throw error;
  }
}

function listenLocked(givenPath: string, path: string, gid: number | null, pidFile: PidFile): Listener {
  const fd = unixSocket();
  try {
    const mask = process.umask(umaskFor(gid));
    const bound = bindUnix(fd, givenPath);
    process.umask(mask);
    if (bound < 0) throw directoryError({ code: errnoName(bound), message: errnoName(bound) }, path, path);
    const made = settleOwner(path, gid);
    c.check(c.listen(fd, BACKLOG), 'listen', path);
    return new PathListener(fd, path, path, made, pidFile);
  } catch (error) {
    closeSync(fd);
    throw error;
  }
}

class PathListener implements Listener {
  #open = true;

  constructor(
    readonly fd: number,
    readonly name: string,
    readonly path: string,
    readonly made: BigIntStats,
    readonly pidFile: PidFile,
  ) {}

  get pidFd(): number {
    return this.pidFile.fd;
  }

  close(): void {
    if (!this.#open) return;
    this.#open = false;
    c.close(this.fd);
    // Somebody may have put another socket in its place: that one is not ours to remove.
    const named = lstatSync(this.path, { bigint: true, throwIfNoEntry: false });
    if (named !== undefined && named.ino === this.made.ino && named.dev === this.made.dev) unlinkSync(this.path);
    this.pidFile.release();
  }
}

/** Removes a socket whose daemon is dead; the caller holds the pid file's lock. */
function removeStale(givenPath: string, path: string): void {
  const found = lstatSync(path, { throwIfNoEntry: false });
  if (found === undefined) return;
  if (!found.isSocket()) throw new StartError(`${path} exists and is not a socket: remove it, or choose another --socket-path`);
  // Connecting would end a daemon that serves a single connection, so the kernel's table is asked first.
  if (isListening(path) || isListening(givenPath) || connects(givenPath)) {
    throw new StartError(`${path} is in use: another program is listening on it`);
  }
  try {
    unlinkSync(path);
  } catch (error) {
    throw new StartError(`cannot replace the stale socket ${path} (${(error as NodeJS.ErrnoException).code}): remove it, or choose another --socket-path`);
  }
}

function isListening(path: string): boolean {
  let table: string;
  try {
    table = readFileSync('/proc/net/unix', 'utf8');
  } catch {
    return false;
  }
  return table.split('\n').some((line) => {
    // Num RefCount Protocol Flags Type St Inode Path
    const match = /^\S+ \S+ \S+ ([0-9a-fA-F]+) \S+ \S+ +\S+ (.*)$/.exec(line);
    return match !== null && match[2] === path && (parseInt(match[1], 16) & PROC_LISTENING) !== 0;
  });
}

function connects(path: string): boolean {
  const fd = unixSocket();
  const result = connectUnix(fd, path);
  c.close(fd);
  switch (result) {
    case -E.CONNREFUSED:
    case -E.NOENT:
      return false;
    case -E.ACCES:
    case -E.PERM:
      throw new StartError(`${path} exists and there is no permission to find out whether a daemon is using it`);
    default:
      // 0, or EAGAIN: its backlog is full, so somebody lives.
      return true;
  }
}

function inherit(fd: number, origin: string): Listener {
  const name = origin === '--fd' ? `--fd ${fd}` : `descriptor ${fd} from systemd`;
  if (!isSocket(fd)) throw new StartError(`${name} is not a socket: it must be inherited open, and listening`);
  if (socketOption(fd, SO_DOMAIN) !== AF_UNIX || socketOption(fd, SO_TYPE) !== SOCK_STREAM) {
    throw new StartError(`${name} is not a Unix stream socket`);
  }
  if (socketOption(fd, SO_ACCEPTCONN) !== 1) throw new StartError(`${name} is not a listening socket: call listen(2) on it before passing it on`);
  c.check(c.fcntl(fd, F_SETFD, FD_CLOEXEC), 'fcntl');
  c.check(c.fcntl(fd, F_SETFL, c.check(c.fcntl(fd, F_GETFL, 0), 'fcntl') | O_NONBLOCK), 'fcntl');
  return inherited(fd, name);
}

function inherited(fd: number, name: string): Listener {
  let open = true;
  const close = (): void => {
    if (open) c.close(fd);
    open = false;
  };
  return { fd, name, path: null, pidFd: null, close };
}

function isSocket(fd: number): boolean {
  try {
    return fstatSync(fd).isSocket();
  } catch {
    return false;
  }
}
