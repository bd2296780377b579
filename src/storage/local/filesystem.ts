/** A host directory as a file system: the parts put together. */
import type { Log } from '../../base/log.js';
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import type { Capabilities, FileSystem, FileSystemRequest } from '../filesystem.js';
import { Attributes } from './attributes.js';
import { Directories } from './directories.js';
import { Locks } from './locks.js';
import { Namespace } from './namespace.js';
import { OpenFiles } from './open-files.js';
import { Share, type BlockingCalls, type LocalOptions } from './share.js';
import { Xattrs } from './xattrs.js';

/** @throws SysError when the directory cannot be opened, or mandatory file handles do not work. */
export function openLocalFileSystem(options: LocalOptions, pool: BlockingCalls | null, log: Log): FileSystem {
  const share = new Share(options, pool, log);
  const files = new OpenFiles(share);
  const namespace = new Namespace(share, files);
  const attributes = new Attributes(share);
  const directories = new Directories(share, namespace, files);
  const xattrs = new Xattrs(share);
  const locks = new Locks(share);

  return {
    capabilities: capabilities(share),
    entryTimeout: share.entryTimeout,
    attrTimeout: share.attrTimeout,
    reset() {
      locks.clear();
      for (const handle of [...share.handles.slots()]) c.close(share.handles.fd(handle));
      share.handles.clear();
      share.inodes.clear();
      share.insertRoot();
    },
    cancelWaiting: () => locks.cancelWaiting(),
    interrupt: (low, high) => locks.interrupt(low, high),
    lookup: namespace.lookup,
    forget: (low, high, count) => namespace.forget(low, high, count),
    getattr: attributes.getattr,
    setattr: attributes.setattr,
    readlink: namespace.readlink,
    symlink: namespace.symlink,
    mknod: namespace.mknod,
    mkdir: namespace.mkdir,
    unlink: namespace.unlink,
    rmdir: namespace.rmdir,
    rename: namespace.rename,
    link: namespace.link,
    open: files.open,
    opendir: directories.opendir,
    create: namespace.create,
    tmpfile: namespace.tmpfile,
    read: files.read,
    write: files.write,
    flush(r) {
      if (options.posixLock) locks.dropOwner(r);
      return files.flush(r);
    },
    release(r) {
      const result = files.release(r);
      if (options.flock) locks.released();
      return result;
    },
    releasedir: directories.releasedir,
    fsync: files.fsync,
    fsyncdir: directories.fsyncdir,
    statfs: attributes.statfs,
    readdir: directories.readdir,
    readdirplus: directories.readdirplus,
    access: namespace.access,
    setxattr: xattrs.setxattr,
    getxattr: xattrs.getxattr,
    listxattr: xattrs.listxattr,
    removexattr: xattrs.removexattr,
    fallocate: files.fallocate,
    lseek: files.lseek,
    copyFileRange: files.copyFileRange,
    syncfs: (r) => syncfs(share, files, r),
    getlk: locks.getlk,
    setlk: locks.setlk,
    ioctl: attributes.ioctl,
  };
}

/** Sync the file system of the node's mount, through the directory descriptor kept for it. */
function syncfs(share: Share, files: OpenFiles, r: FileSystemRequest): number {
  const slot = share.node(r);
  if (slot < 0) return slot;
  const fd = share.inodes.mountFd(slot);
  if (fd < 0) return -E.OPNOTSUPP;
  if (share.pool !== null) return files.inPool(r, -1, -1, 'syncfs', fd, 0, 0, 0, 0, 0);
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
