/** A host directory as a file system: the parts put together. */
import type { Log } from '../../base/log.js';
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import type { Capabilities, FileSystem, FileSystemRequest, Method } from '../filesystem.js';
import { Attributes } from './attributes.js';
import { Deferred } from './deferred.js';
import { Directories } from './directories.js';
import { LEASED } from './leases.js';
import { Locks } from './locks.js';
import { Namespace } from './namespace.js';
import { OpenFiles } from './open-files.js';
import { Share, type LocalOptions, type StepPool } from './share.js';
import { TOUCHED, touchesRemote } from './touched.js';
import { Xattrs } from './xattrs.js';

const { NODE, NAME, NODE2, NAME2, FILE, DIRECTORY } = TOUCHED;

/**
 * `remotePool`: for what is asked of remote mounts below the share, which may keep all of its threads.
 * @throws SysError when the directory cannot be opened, or mandatory file handles do not work.
 */
export function openLocalFileSystem(options: LocalOptions, pool: StepPool | null, log: Log, remotePool = pool): FileSystem {
  const share = new Share(options, pool, log, remotePool);
  const files = new OpenFiles(share);
  const namespace = new Namespace(share, files);
  const attributes = new Attributes(share);
  const directories = new Directories(share, namespace, files);
  const xattrs = new Xattrs(share);
  const locks = new Locks(share);
  const locking = options.posixLock || options.flock;

  const deferredIn = (pool: StepPool): Deferred => new Deferred(pool, share, files, namespace, attributes, directories, xattrs);
  const deferred = pool === null || remotePool === null ? null : { here: deferredIn(pool), remote: deferredIn(remotePool) };

  return {
    capabilities: capabilities(share),
    entryTimeout: share.entryTimeout,
    attrTimeout: share.attrTimeout,
    reset() {
      locks.clear();
      files.reset();
      share.inodes.clear();
    },
    cancelWaiting() {
      locks.cancelWaiting();
      share.leases.cancel();
    },
    interrupt: (low, high) => locks.interrupt(low, high) || share.leases.interrupt(low, high),
    lookup: paced(share, deferred, NODE | NAME, namespace.lookup, (d) => d.lookup),
    forget: (low, high, count) => namespace.forget(low, high, count),
    getattr: paced(share, deferred, NODE | FILE, attributes.getattr, (d) => d.getattr),
    setattr: paced(share, deferred, NODE | FILE, unleased(share, attributes.setattr), (d) => d.setattr),
    readlink: paced(share, deferred, NODE, namespace.readlink, (d) => d.readlink),
    symlink: paced(share, deferred, NODE | NAME, namespace.symlink, (d) => d.symlink),
    mknod: paced(share, deferred, NODE | NAME, namespace.mknod, (d) => d.mknod),
    mkdir: paced(share, deferred, NODE | NAME, namespace.mkdir, (d) => d.mkdir),
    unlink: paced(share, deferred, NODE | NAME, namespace.unlink, (d) => d.unlink),
    rmdir: paced(share, deferred, NODE | NAME, namespace.rmdir, (d) => d.rmdir),
    rename: paced(share, deferred, NODE | NAME | NODE2 | NAME2, namespace.rename, (d) => d.rename),
    link: paced(share, deferred, NODE | NAME | NODE2, namespace.link, (d) => d.link),
    open: paced(share, deferred, NODE, unleased(share, files.open), (d) => d.open),
    opendir: paced(share, deferred, NODE, directories.opendir, (d) => d.opendir),
    create: paced(share, deferred, NODE | NAME, unleased(share, namespace.create), (d) => d.create),
    tmpfile: paced(share, deferred, NODE, namespace.tmpfile, (d) => d.tmpfile),
    read: files.read,
    write: files.write,
    flush: paced(share, deferred, FILE,
      (r) => {
        if (options.posixLock) locks.flushed(r);
        return files.flush(r);
      },
      (d) => (r) => {
        if (options.posixLock) locks.flushed(r);
        return d.flush(r);
      }),
    release: paced(share, deferred, FILE,
      (r) => {
        if (locking) releaseLocks(locks, files.handle(r));
        return files.release(r);
      },
      (d) => (r) => {
        if (locking) releaseLocks(locks, files.handle(r));
        return d.release(r);
      }),
    releasedir: paced(share, deferred, DIRECTORY,
      (r) => {
        if (locking) releaseLocks(locks, directories.handle(r));
        return directories.releasedir(r);
      },
      (d) => (r) => {
        if (locking) releaseLocks(locks, directories.handle(r));
        return d.releasedir(r);
      }),
    fsync: files.fsync,
    fsyncdir: directories.fsyncdir,
    statfs: paced(share, deferred, NODE, attributes.statfs, (d) => d.statfs),
    readdir: paced(share, deferred, DIRECTORY, directories.readdir, (d) => d.readdir),
    readdirplus: paced(share, deferred, DIRECTORY, directories.readdirplus, (d) => d.readdir),
    access: paced(share, deferred, NODE, namespace.access, (d) => d.access),
    setxattr: paced(share, deferred, NODE, xattrs.setxattr, (d) => d.setxattr),
    getxattr: paced(share, deferred, NODE, xattrs.getxattr, (d) => d.getxattr),
    listxattr: paced(share, deferred, NODE, xattrs.listxattr, (d) => d.listxattr),
    removexattr: paced(share, deferred, NODE, xattrs.removexattr, (d) => d.removexattr),
    fallocate: files.fallocate,
    lseek: paced(share, deferred, FILE, files.lseek, (d) => d.lseek),
    copyFileRange: files.copyFileRange,
    syncfs: (r) => syncfs(share, files, r),
    getlk: locks.getlk,
    setlk: locks.setlk,
    ioctl: paced(share, deferred, NODE | FILE | DIRECTORY, unleased(share, attributes.ioctl), (d) => d.ioctl),
  };
}

/** A handle, or −errno, is about to be released. */
function releaseLocks(locks: Locks, handle: number): void {
  if (handle >= 0) locks.released(handle);
}

/** Operations as steps in the pool, and in that of remote mounts. */
interface Pools {
  readonly here: Deferred;
  readonly remote: Deferred;
}

/**
 * An operation that is done inline while the storage is quick, and as steps in the pool while it is not, or where it touches (bits of TOUCHED) a remote mount.
 * A sample of the former is timed.
 */
function paced(share: Share, deferred: Pools | null, touched: number, inline: Method, later: (d: Deferred) => (r: FileSystemRequest) => Promise<number>): Method {
  if (deferred === null) return inline;
  const { pace, inodes: { mounts } } = share;
  const { here, remote } = deferred;
  const [laterHere, laterRemote] = [later(here), later(remote)];
  return (r) => {
    if (mounts.hasRemote && touchesRemote(share, r, touched)) return remote.begin(r, laterRemote);
    if (pace.slow) return here.begin(r, laterHere);
    if (!pace.sampled) return inline(r);
    const before = performance.now();
    const result = inline(r);
    pace.took(performance.now() - before);
    return result;
  };
}

/** An operation that is tried again while somebody has a lease on the file. */
function unleased(share: Share, inline: Method): Method {
  return (r) => {
    const result = inline(r);
    return result === LEASED ? share.leases.later(r, () => inline(r)) : result;
  };
}

/** Sync the file system of the node's mount, through the directory descriptor kept for it. */
function syncfs(share: Share, files: OpenFiles, r: FileSystemRequest): number {
  const slot = share.node(r);
  if (slot < 0) return slot;
  const fd = share.inodes.mountFd(slot);
  if (fd < 0) return -E.OPNOTSUPP;
  if (share.pool !== null) return files.inPool(r, share.poolOf(slot), [], 'syncfs', fd);
  return c.neg(c.syncfs(fd));
}

function capabilities(share: Share): Capabilities {
  const { options, credentials } = share;
  return {
    writeback: options.writeback,
    killprivV2: options.killprivV2,
    posixAcl: options.posixAcl,
    securityContext: options.securityLabel,
    submounts: options.announceSubmounts,
    posixLocks: options.posixLock,
    flockLocks: options.flock,
    readdirplus: options.readdirplus,
    allowMmap: options.allowMmap,
    suppGroups: credentials.canSwitch,
    idmap: options.uidMap === null && options.gidMap === null,
  };
}
