/**
 * The operations on names, attributes and open files once more, for storage that may take long: each system call that
 * may wait for it is a step in the pool (steps.ts), and everything that is ours (nodes, handles, replies) happens on the
 * main thread when a step has come back. What the guest sees is the same, but that READDIRPLUS gives no attributes.
 *
 * A node that a step uses is kept by addOpen() (neither evicted nor freed), a handle by hold(), so that no descriptor
 * number can come to mean another file meanwhile, whatever the guest forgets or releases.
 */
import { E } from '../../base/errno.js';
import { NativeMemory } from '../../ffi/memory.js';
import { AT_REMOVEDIR, O_APPEND, O_CLOEXEC, O_CREAT, O_EXCL, O_NOFOLLOW, O_PATH, O_TRUNC, S_IFDIR, S_IFLNK, S_IFMT, S_IFREG } from '../../ffi/constants.js';
import { FAR_OFFSET, PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_FILE } from '../handles.js';
import type { Attributes } from './attributes.js';
import { BUFFER_BYTES, DIRECTORY_FLAGS, positionOf, type Directories } from './directories.js';
import { FATTR, SETXATTR_ACL_KILL_SGID } from '../fuse-flags.js';
import { LEASED } from './leases.js';
import { renameRefusal, tmpfileFlags, type Namespace } from './namespace.js';
import type { OpenFiles } from './open-files.js';
import { DOT, SCRATCH_HANDLE, SCRATCH_NAME, SCRATCH_PATH, SCRATCH_PATH2, type Share, type StepPool } from './share.js';
import { MAKE_DIRECTORY, MAKE_NODE, MAKE_SYMLINK, NOT_HERE, type Step } from './steps.js';
import { XATTR_MAX, hostName, type Xattrs } from './xattrs.js';

type Later = (r: FileSystemRequest) => Promise<number>;

export class Deferred {
  constructor(
    readonly pool: StepPool,
    readonly share: Share,
    readonly files: OpenFiles,
    readonly namespace: Namespace,
    readonly attributes: Attributes,
    readonly directories: Directories,
    readonly xattrs: Xattrs,
  ) {}

  /** Begin an operation; the request completes when it is done. */
  begin(r: FileSystemRequest, operation: Later): number {
    r.defer();
    operation(r).then((result) => (result === LEASED ? this.share.leases.retry(r, () => operation(r)) : result)).then(
      (result) => r.complete(result),
      (error: unknown) => {
        this.share.log.error({ err: error }, 'a request failed inside the daemon: please report this');
        r.complete(-E.IO);
      },
    );
    return PENDING;
  }

  #step(step: Step, ...args: number[]): Promise<number> {
    return this.pool.run(step, ...args);
  }

  /** Run `body` with the node's slot and O_PATH descriptor, both good until it is done. */
  async #withNode(r: FileSystemRequest, low: number, high: number, body: (slot: number, fd: number) => Promise<number>): Promise<number> {
    const { inodes } = this.share;
    const slot = inodes.table.slotOf(low, high);
    if (slot < 0) return -E.STALE;
    inodes.addOpen(slot);
    try {
      if (inodes.isEvicted(slot)) {
        const error = await this.#restore(r, slot);
        if (error < 0) return error;
      }
      return await body(slot, inodes.fd(slot));
    } finally {
      inodes.dropOpen(slot);
    }
  }

  async #restore(r: FileSystemRequest, slot: number): Promise<number> {
    const { inodes } = this.share;
    const mountFd = inodes.copyHandle(slot, r.attr.i32, SCRATCH_HANDLE >> 2);
    if (mountFd < 0) return mountFd;
    const fd = await this.#step('openHandle', mountFd, r.attr.address + SCRATCH_HANDLE, O_PATH | O_NOFOLLOW | O_CLOEXEC);
    if (fd >= 0) inodes.restore(slot, fd);
    return Math.min(0, fd);
  }

  #node(r: FileSystemRequest, body: (slot: number, fd: number) => Promise<number>): Promise<number> {
    return this.#withNode(r, r.nodeLow, r.nodeHigh, body);
  }

  /** Run `body` with the descriptor of a handle (a slot, or −errno). */
  async #withHandle(handle: number, body: (fd: number) => Promise<number>): Promise<number> {
    if (handle < 0) return handle;
    const { handles } = this.share;
    handles.hold(handle);
    try {
      return await body(handles.fd(handle));
    } finally {
      this.files.unhold(handle);
    }
  }

  /** Address of the number of a descriptor, as a name below /proc/self/fd. */
  #number(r: FileSystemRequest, fd: number, at = SCRATCH_PATH): number {
    return r.attr.putString(at, String(fd));
  }

  /** The answer to a name: an O_PATH descriptor with its attributes in the request, or −errno. */
  async #entry(r: FileSystemRequest, fd: number): Promise<number> {
    if (fd < 0) return fd;
    const { inodes } = this.share;
    const directoryFd = inodes.wantsDirectory(r.attr.i32) ? await this.#step('open', fd, DOT, DIRECTORY_FLAGS, 0) : -1;
    const slot = inodes.adopt(fd, r.attr.i32, directoryFd);
    return slot < 0 ? slot : this.share.putEntry(r, slot);
  }

  readonly lookup: Later = (r) =>
    this.#node(r, async (_slot, dir) => this.#entry(r, await this.#step('find', dir, r.name.address, r.attr.address)));

  readonly getattr: Later = (r) =>
    this.#inode(r, async (slot, fd) => {
      const error = await this.#step('stat', fd, r.attr.address);
      if (error === 0) this.share.putAttr(r, slot);
      return error;
    });

  /** The node by its own descriptor, or, if it is evicted and open, by that of the handle, since it may be unlinked. */
  async #inode(r: FileSystemRequest, body: (slot: number, fd: number) => Promise<number>): Promise<number> {
    const { share } = this;
    const slot = share.node(r);
    if (slot < 0) return slot;
    const handle = r.hasFh && share.inodes.isEvicted(slot) ? share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE) : -1;
    if (handle >= 0 && share.handles.node(handle) === slot) return this.#withHandle(handle, (fd) => body(slot, fd));
    return this.#node(r, body);
  }

  readonly setattr: Later = async (r) => {
    const { share, attributes } = this;
    if (share.options.readonly) return -E.ROFS;
    const uid = attributes.newUid(r);
    const gid = attributes.newGid(r);
    if (uid < 0 || gid < 0) return -E.PERM;
    return this.#inode(r, async (slot, fd) => {
      const sizes = (r.valid & FATTR.SIZE) !== 0;
      const type = share.inodes.type(slot);
      if (sizes && type !== S_IFREG) return type === S_IFDIR ? -E.ISDIR : -E.INVAL;
      const attribute = share.options.xattrMap?.securityCapability ?? null;
      const capability = attribute === null ? 0 : r.attr.putString(SCRATCH_NAME, attribute);
      const set = (handleFd: number): Promise<number> =>
        this.#step('setattr', fd, share.inodes.procFd, this.#number(r, fd), attributes.changes(r), r.mode & 0o7777, uid, gid, handleFd, r.size,
          r.timesAddress, r.attr.address, capability);
      const error = await (sizes && r.hasFh ? this.#withHandle(this.files.handle(r), set) : set(-1));
      if (error === 0) share.putAttr(r, slot);
      return error;
    });
  };

  readonly readlink: Later = (r) =>
    this.#node(r, async (slot, fd) =>
      this.share.inodes.type(slot) === S_IFLNK ? this.#step('readlink', fd, r.reply.address, 4096) : -E.INVAL);

  readonly mknod: Later = (r) => this.#make(r, MAKE_NODE, r.rdev, this.namespace.mknod);
  readonly mkdir: Later = (r) => this.#make(r, MAKE_DIRECTORY, 0, this.namespace.mkdir);
  readonly symlink: Later = (r) => this.#make(r, MAKE_SYMLINK, r.payload, this.namespace.symlink);

  async #make(r: FileSystemRequest, kind: number, extra: number, inline: (r: FileSystemRequest) => number): Promise<number> {
    if (this.share.options.readonly) return -E.ROFS;
    const caller = this.share.caller(r);
    if (caller === null) return -E.PERM;
    const label = this.#label(r);
    if (label[0] < 0) return label[0];
    return this.#node(r, async (_slot, dir) => {
      const fd = await this.#step('make', kind, dir, r.name.address, r.mode, extra, ...caller, this.#umask(r), r.attr.address, ...label);
      return fd === NOT_HERE ? inline(r) : this.#entry(r, fd);
    });
  }

  /** The umask to apply on the host, 0 for none: where there may be default ACLs the guest leaves it to us. */
  #umask(r: FileSystemRequest): number {
    return r.session.dontMask ? r.umask : 0;
  }

  /** Name, value and length of the security context to set, zeroes for none; the name −errno if it may not be set. */
  #label(r: FileSystemRequest): [number, number, number] {
    if (!r.securityContext || this.share.options.securityLabel === 'never') return [0, 0, 0];
    return [hostName(this.share, r, r.labelName, r.attr, SCRATCH_NAME), r.labelValue, r.labelLength];
  }

  readonly unlink: Later = (r) => this.#remove(r, 0);
  readonly rmdir: Later = (r) => this.#remove(r, AT_REMOVEDIR);

  async #remove(r: FileSystemRequest, flags: number): Promise<number> {
    if (this.share.options.readonly) return -E.ROFS;
    return this.#node(r, (_slot, dir) => this.#step('unlink', dir, r.name.address, flags));
  }

  readonly rename: Later = async (r) => {
    const refused = renameRefusal(r, this.share);
    if (refused < 0) return refused;
    return this.#node(r, (_slot, from) =>
      this.#withNode(r, r.node2Low, r.node2High, (_slot2, to) =>
        this.#step('rename', from, r.name.address, to, r.name2.address, r.flags)));
  };

  readonly link: Later = async (r) => {
    if (this.share.options.readonly) return -E.ROFS;
    const { procFd } = this.share.inodes;
    return this.#node(r, (_slot, dir) =>
      this.#withNode(r, r.node2Low, r.node2High, async (_slot2, fd) =>
        this.#entry(r, await this.#step('link', procFd, this.#number(r, fd), dir, r.name.address, r.attr.address))));
  };

  readonly open: Later = (r) => this.#node(r, (slot, fd) => this.#open(r, slot, fd, r.flags));

  async #open(r: FileSystemRequest, slot: number, pathFd: number, flags: number): Promise<number> {
    const { files, share } = this;
    const refused = files.refusal(slot, flags);
    if (refused < 0) return refused;
    const kill = files.killsPrivileges(r, flags);
    const host = files.hostFlags(r, flags);
    const open = (hostFlags: number): Promise<number> => this.#step('open', share.inodes.procFd, this.#number(r, pathFd), hostFlags, Number(kill));
    let fd = await open(host);
    const appendOnly = fd === -E.PERM && files.mayBeAppendOnly(r, flags);
    if (appendOnly) fd = await open(host | O_APPEND);
    if (fd < 0) return fd === -E.AGAIN ? LEASED : fd;
    const [path, capability] = share.capability(r, fd);
    if (capability !== 0 && (flags & O_TRUNC) !== 0) await this.#step('removexattr', path, capability);
    const result = files.install(r, slot, fd, flags, appendOnly);
    if (result < 0) share.inodes.close(slot, fd);
    return result;
  }

  readonly create: Later = async (r) => {
    const { share, files } = this;
    if (share.options.readonly) return -E.ROFS;
    return this.#node(r, async (_slot, dir) => {
      const flags = files.hostFlags(r, r.flags) | O_CREAT | O_NOFOLLOW | O_EXCL;
      const made = await this.#create(r, dir, r.name.address, flags, true);
      if (made === NOT_HERE) return this.namespace.create(r);
      if (made !== -E.EXIST || (r.flags & O_EXCL) !== 0) return made;
      // Somebody else has made it: then this is an ordinary open of what is there
      const found = await this.#entry(r, await this.#step('find', dir, r.name.address, r.attr.address));
      return found < 0 ? found : this.#openEntry(r);
    });
  };

  /** Open what the request's entry is, keeping its attributes; on failure the guest has not got the entry. */
  async #openEntry(r: FileSystemRequest): Promise<number> {
    const opened = await this.#withNode(r, r.entryLow, r.entryHigh, (slot, fd) => this.#open(r, slot, fd, r.flags & ~(O_CREAT | O_EXCL)));
    if (opened < 0) this.namespace.forget(r.entryLow, r.entryHigh, 1);
    if (opened < 0 || (r.flags & O_TRUNC) === 0) return opened;
    // The attributes from before it was truncated are out of date
    const error = await this.#withHandle(this.files.handle(r), (fd) => this.#step('stat', fd, r.attr.address));
    if (error === 0) this.share.putAttr(r, r.entryLow);
    return opened;
  }

  readonly tmpfile: Later = async (r) => {
    if (this.share.options.readonly) return -E.ROFS;
    return this.#node(r, async (_slot, dir) => {
      const made = await this.#create(r, dir, DOT, tmpfileFlags(r), false);
      return made === NOT_HERE ? this.namespace.tmpfile(r) : made;
    });
  };

  async #create(r: FileSystemRequest, dir: number, name: number, flags: number, named: boolean): Promise<number> {
    const { share } = this;
    const caller = share.caller(r);
    if (caller === null) return -E.PERM;
    const label = this.#label(r);
    if (label[0] < 0) return label[0];
    const fd = await this.#step('create', dir, name, flags, r.mode & ~S_IFMT, ...caller, this.#umask(r), Number(named), ...label);
    if (fd < 0) return fd;
    const pathFd = await this.#step('reopen', share.inodes.procFd, this.#number(r, fd), r.attr.address);
    let result = await this.#entry(r, pathFd);
    if (result === 0) {
      result = this.files.install(r, r.entryLow, fd, r.flags);
      if (result < 0) this.namespace.forget(r.entryLow, r.entryHigh, 1);
    }
    if (result < 0) {
      await this.#step('close', fd);
      if (named) await this.#step('unlink', dir, name, 0);
    }
    return result;
  }

  readonly access: Later = async (r) => {
    const caller = this.share.caller(r);
    if (caller === null) return -E.PERM;
    return this.#node(r, (_slot, fd) => this.#step('access', this.share.inodes.procFd, this.#number(r, fd), r.flags, ...caller));
  };

  readonly opendir: Later = (r) =>
    this.#node(r, async (slot, pathFd) => {
      if (this.share.inodes.type(slot) !== S_IFDIR) return -E.NOTDIR;
      const fd = await this.#step('open', this.share.inodes.procFd, this.#number(r, pathFd), DIRECTORY_FLAGS, 0);
      return fd < 0 ? fd : this.directories.install(r, slot, fd);
    });

  readonly readdir: Later = (r) => {
    const handle = this.directories.handle(r);
    // The descriptor's position is about to move: what was read ahead inline no longer precedes it
    this.directories.dropListing(handle);
    return this.#withHandle(handle, async (fd) => {
      const position = positionOf(r.node2Low, r.node2High);
      if (position < 0) return -E.INVAL;
      const memory = NativeMemory.allocate(BUFFER_BYTES);
      try {
        // The host's records are no longer than the guest's: what was read fits, nearly
        const bytes = await this.#step('list', fd, position, memory.address, Math.min(BUFFER_BYTES, Math.max(r.size, 280)));
        return bytes < 0 ? bytes : this.directories.putRead(r, memory, bytes);
      } finally {
        memory.free();
      }
    });
  };

  readonly releasedir: Later = async (r) => {
    const handle = this.directories.handle(r);
    if (handle < 0) return handle;
    this.directories.dropListing(handle);
    return this.#close(handle);
  };

  readonly release: Later = async (r) => this.#close(this.files.handle(r));

  async #close(handle: number): Promise<number> {
    const { handles, inodes } = this.share;
    if (handle < 0) return handle;
    if (handles.deferClose(handle)) return 0;
    const fd = handles.fd(handle);
    const slot = handles.node(handle);
    this.files.forget(handle);
    // The descriptor is gone whatever close(2) says, and the guest does not look at the answer to RELEASE
    await this.#step('close', fd);
    inodes.dropOpen(slot);
    return 0;
  }

  readonly flush: Later = (r) => this.#withHandle(this.files.handle(r), (fd) => this.#step('flush', fd));

  readonly lseek: Later = (r) =>
    this.#withHandle(this.files.handle(r), async (fd) => {
      const refused = this.files.seekRefusal(r);
      if (refused < 0) return refused;
      if (r.offset === FAR_OFFSET) return this.files.beyond(r, await this.#step('stat', fd, r.attr.address), -E.NXIO);
      return this.files.putPosition(r, await this.#step('lseek', fd, r.offset, r.flags));
    });

  readonly statfs: Later = (r) => this.#node(r, (_slot, fd) => this.#step('statfs', fd, r.reply.address));

  readonly ioctl: Later = async (r) => {
    const answer = this.attributes.prepareIoctl(r);
    if (answer < 0) return answer;
    const run = async (fd: number, pathFd: number): Promise<number> => {
      const name = pathFd < 0 ? 0 : this.#number(r, pathFd);
      const result = await this.#step('ioctl', fd, this.share.inodes.procFd, name, r.flags >>> 0, r.reply.address, Number(this.share.options.allowProjectIds));
      return result < 0 ? result : answer;
    };
    if (r.hasFh) {
      const file = this.files.handle(r);
      return this.#withHandle(file < 0 ? this.directories.handle(r) : file, (fd) => run(fd, -1));
    }
    return this.#node(r, async (slot, pathFd) => {
      const refused = this.share.openable(slot);
      return refused < 0 ? refused : run(-1, pathFd);
    });
  };

  /** Run `body` with the address of a path to the request's inode, and of the attribute's name on the host. */
  async #attribute(r: FileSystemRequest, changes: boolean, body: (path: number, name: number) => Promise<number>): Promise<number> {
    if (changes && this.share.options.readonly) return -E.ROFS;
    if (!this.share.options.xattr) return -E.NOSYS;
    return this.#node(r, async (_slot, fd) => {
      const name = hostName(this.share, r, r.name, r.attr, SCRATCH_NAME);
      return name < 0 ? name : body(r.attr.putString(SCRATCH_PATH2, `/proc/self/fd/${fd}`), name);
    });
  }

  readonly setxattr: Later = (r) =>
    this.#attribute(r, true, (path, name) =>
      this.#step('setxattr', path, name, r.payload, r.payloadLength, r.flags, r.fuseFlags & SETXATTR_ACL_KILL_SGID));

  readonly getxattr: Later = (r) =>
    this.#attribute(r, false, (path, name) => this.#step('getxattr', path, name, r.reply.address, Math.min(r.size, XATTR_MAX)));

  readonly removexattr: Later = (r) => this.#attribute(r, true, (path, name) => this.#step('removexattr', path, name));

  readonly listxattr: Later = async (r) => {
    if (!this.share.options.xattr) return -E.NOSYS;
    return this.#node(r, async (_slot, fd) => {
      const names = NativeMemory.allocate(XATTR_MAX);
      try {
        const path = r.attr.putString(SCRATCH_PATH2, `/proc/self/fd/${fd}`);
        const bytes = await this.#step('listxattr', path, names.address, XATTR_MAX);
        return bytes < 0 ? bytes : this.xattrs.putList(r, names, bytes);
      } finally {
        names.free();
      }
    });
  };
}
