/** What all parts of the local file system share: options, inodes, open handles, identity, the pool. */
import { E } from '../../base/errno.js';
import type { Log } from '../../base/log.js';
import * as c from '../../ffi/libc.js';
import { NativeMemory } from '../../ffi/memory.js';
import { AT_EMPTY_PATH, O_CLOEXEC, O_DIRECTORY, O_PATH, S_IFDIR, S_IFLNK, S_IFREG } from '../../ffi/constants.js';
import { SysError } from '../../ffi/errors.js';
import type { FileSystemRequest, Negotiation } from '../filesystem.js';
import { HandleTable } from '../handles.js';
import { ROOT_NODE } from '../filesystem.js';
import { STATX, STATX_ATTR_MOUNT_ROOT } from '../statx.js';
import { Credentials } from './credentials.js';
import { ATTR_SUBMOUNT } from '../fuse-flags.js';
import type { IdMap } from './idmap.js';
import { Inodes, type HandleMode } from './inodes.js';
import { LEASED, Leases } from './leases.js';
import { MountTable, kindOfType, type MountKind } from './mount-table.js';
import { Mounts } from './mounts.js';
import { Pace, type Offload } from './pace.js';
import { RemoteCloser } from './remote-closer.js';
import { ATTR_MASK, type Step } from './steps.js';
import type { XattrMap } from './xattrmap.js';

export type CacheMode = 'auto' | 'always' | 'never' | 'metadata';

export interface LocalOptions {
  /** The directory to share, an absolute path. */
  directory: string;
  /** Where it is to be opened, if that is another path than the one for messages. */
  openAs?: string;
  cache: CacheMode;
  readonly: boolean;
  xattr: boolean;
  xattrMap: XattrMap | null;
  posixAcl: Negotiation;
  securityLabel: Negotiation;
  writeback: boolean;
  allowDirectIo: boolean;
  allowMmap: boolean;
  /** Guests may change the project ids of inodes, and whether they are inherited. */
  allowProjectIds: boolean;
  announceSubmounts: boolean;
  handles: HandleMode;
  preserveNoatime: boolean;
  killprivV2: boolean;
  readdirplus: boolean;
  flock: boolean;
  posixLock: boolean;
  uidMap: IdMap | null;
  gidMap: IdMap | null;
  /** Which operations go to the pool, if there is one. */
  offload: Offload;
  /** Soft limit of open descriptors of the process. */
  nofile: number;
}

/** Runs steps off the main thread; see src/pool. */
export interface StepPool {
  run(step: Step, ...args: number[]): Promise<number>;
}

/** Seconds: a day stands for "as long as you like". */
const LONG_TIMEOUT_S = 86400;
/** Descriptors for everything else: sockets, rings, mounts, locks, the runtime. */
const DESCRIPTORS_RESERVE = 1024;

/**
 * Offsets in a request's `attr` page, behind the attributes, for arguments of steps in other threads: two paths, a name,
 * and a struct file_handle. The page is the request's own until it completes.
 */
export const SCRATCH_PATH = 512;
export const SCRATCH_PATH2 = 576;
export const SCRATCH_NAME = 1024;
export const SCRATCH_HANDLE = 2048;

const names = NativeMemory.allocate(4096);
/** Address of an empty path: with AT_EMPTY_PATH, the descriptor itself. */
export const EMPTY_PATH = names.address;
/** Address of ".". */
export const DOT = names.putString(8, '.');

export class Share {
  readonly inodes: Inodes;
  readonly handles: HandleTable;
  readonly credentials = new Credentials();
  readonly leases = new Leases();
  readonly entryTimeout: number;
  readonly attrTimeout: number;
  /** File handles replace O_PATH descriptors when these run out. */
  readonly usesHandles: boolean;
  /** Of names and attributes, and of writes. */
  readonly pace: Pace;
  readonly writePace: Pace;

  constructor(
    readonly options: LocalOptions,
    readonly pool: StepPool | null,
    readonly log: Log,
    readonly remotePool = pool,
  ) {
    const rootFd = c.check(c.open(options.openAs ?? options.directory, O_PATH | O_DIRECTORY | O_CLOEXEC, 0), 'open', options.directory);
    const procFd = c.check(c.open('/proc/self/fd', O_PATH | O_DIRECTORY | O_CLOEXEC, 0), 'open', '/proc/self/fd');
    // Once, before anybody is served: later no file system is asked in this thread that may not answer
    const fsType = c.statfs(rootFd, names.address + 512) === 0 ? names.u32[128] : 0;
    this.pace = new Pace(options.offload, fsType);
    this.writePace = new Pace(options.offload, fsType);
    const timeout = options.cache === 'never' ? 0 : options.cache === 'auto' ? 1 : LONG_TIMEOUT_S;
    this.entryTimeout = timeout;
    this.attrTimeout = timeout;
    const descriptors = Math.max(128, options.nofile - DESCRIPTORS_RESERVE);
    this.handles = new HandleTable(Math.floor(descriptors / 2));
    const mounts = new Mounts(pool !== null && options.offload !== 'never', new RemoteCloser(pool), new RemoteCloser(remotePool));
    this.inodes = new Inodes(rootFd, procFd, options.handles, Math.min(descriptors, NODE_FDS_MAX), mounts);
    this.#insertRoot(kindOfType(fsType));
    if (pool !== null) mounts.consult(new MountTable({ rootFd, log, onChange: () => mounts.update() }));
    this.usesHandles = options.handles !== 'never' && this.#handlesWork();
    if (!this.usesHandles && options.handles === 'mandatory') {
      throw new SysError(E.OPNOTSUPP, 'file handles (--inode-file-handles=mandatory)', options.directory);
    }
    if (!this.usesHandles) this.inodes.mode = 'never';
    this.#logLimits();
  }

  /** One line about what will not work. */
  #logLimits(): void {
    const { log, options } = this;
    const descriptors = 'every known file keeps a descriptor';
    const missing = !this.usesHandles && options.handles === 'prefer';
    if (!this.credentials.canSwitch) {
      const uid = process.geteuid!();
      log.info({ uid }, `not running as root: all files are made as user ${uid}, for the guest's root and that user only; no change of owner, no device nodes${missing ? `, no file handles: ${descriptors}` : ''}`);
    } else if (missing) {
      log.info({ directory: options.directory }, `file handles do not work here (no CAP_DAC_READ_SEARCH, or the file system has none): ${descriptors}`);
    }
  }

  /**
   * Rule: a file's capabilities go with its old content and owner, before either is changed: WRITE, FALLOCATE, COPY_FILE_RANGE, truncation by SETATTR, a new
   * owner, and an open with O_TRUNC as soon as it has succeeded. The host's kernel does that; not where --xattrmap has renamed the attribute.
   */
  dropCapability(fd: number): void {
    const { xattrMap } = this.options;
    if (xattrMap === null || xattrMap.securityCapability === null) return;
    const name = names.putString(3072, xattrMap.securityCapability);
    c.removexattr(this.inodes.procPath(fd), name);
  }

  /** For a step in the pool that does the same: addresses of a path to the descriptor's inode and of the attribute, 0 for none. */
  capability(r: FileSystemRequest, fd: number): readonly [path: number, name: number] {
    const name = this.options.xattrMap?.securityCapability ?? null;
    return name === null ? [0, 0] : [r.attr.putString(SCRATCH_PATH, `/proc/self/fd/${fd}`), r.attr.putString(SCRATCH_NAME, name)];
  }

  #insertRoot(kind: MountKind): void {
    if (c.statx(this.inodes.rootFd, EMPTY_PATH, AT_EMPTY_PATH, ATTR_MASK, names.address + 512) < 0) {
      throw new SysError(c.errno(), 'statx', this.options.directory);
    }
    this.inodes.insertRoot(names.i32.subarray(128, 128 + STATX.WORDS), kind);
  }

  /**
   * Rule: what is asked of a remote mount below the share has a pool of its own. All of its threads may wait for a file system that does not answer; whatever else
   * needs a thread gets one.
   * @throws Error where there is no pool
   */
  poolOf(slot: number): StepPool {
    const pool = this.inodes.isRemoteSubmount(slot) ? this.remotePool : this.pool;
    if (pool === null) throw new Error('a step without a pool');
    return pool;
  }

  /** Slot of the request's node, or −ESTALE for an id that names none. */
  node(r: FileSystemRequest): number {
    const slot = this.inodes.table.slotOf(r.nodeLow, r.nodeHigh);
    return slot < 0 ? -E.STALE : slot;
  }

  /** O_PATH descriptor of the request's node, or −errno; valid as long as the request is served. */
  nodeFd(r: FileSystemRequest): number {
    const slot = this.inodes.table.slotOf(r.nodeLow, r.nodeHigh);
    return slot < 0 ? -E.STALE : this.inodes.fdOfRequest(slot);
  }

  /** Fill the entry results for a referenced node whose attributes are in r.attr. */
  putEntry(r: FileSystemRequest, slot: number): number {
    r.entryLow = slot;
    r.entryHigh = this.inodes.table.sequence(slot);
    this.putAttr(r, slot);
    return 0;
  }

  /** Attributes as the guest shall see them. */
  putAttr(r: FileSystemRequest, slot: number): void {
    const { uidMap, gidMap } = this.options;
    const words = r.attr.i32;
    if (uidMap !== null) words[STATX.UID] = uidMap.toGuest(words[STATX.UID] >>> 0);
    if (gidMap !== null) words[STATX.GID] = gidMap.toGuest(words[STATX.GID] >>> 0);
    r.attrFlags =
      (words[STATX.ATTRIBUTES] & STATX_ATTR_MOUNT_ROOT) !== 0 && slot !== ROOT_NODE && r.session.submounts ? ATTR_SUBMOUNT : 0;
  }

  /** statx of a descriptor into the request; 0 or −errno. */
  statFd(r: FileSystemRequest, fd: number): number {
    return c.statx(fd, EMPTY_PATH, AT_EMPTY_PATH, ATTR_MASK, r.attr.address) < 0 ? -c.errno() : 0;
  }

  /** Become the guest's user for a creation; 0 or −errno. */
  enter(r: FileSystemRequest): number {
    const { uidMap, gidMap } = this.options;
    if (uidMap === null && gidMap === null) return this.credentials.enter(r.uid, r.gid, r.suppGid);
    const uid = uidMap === null ? r.uid : uidMap.toHost(r.uid);
    const gid = gidMap === null ? r.gid : gidMap.toHost(r.gid);
    const supp = r.suppGid < 0 || gidMap === null ? r.suppGid : gidMap.toHost(r.suppGid);
    if (uid < 0 || gid < 0) return -E.PERM;
    return this.credentials.enter(uid, gid, supp);
  }

  /** The caller as a user of the host: uid, gid, and a supplementary group or −1; null for one who is none. */
  caller(r: FileSystemRequest): readonly [uid: number, gid: number, supp: number] | null {
    const { uidMap, gidMap } = this.options;
    const uid = uidMap === null ? r.uid : uidMap.toHost(r.uid);
    const gid = gidMap === null ? r.gid : gidMap.toHost(r.gid);
    const supp = r.suppGid < 0 || gidMap === null ? r.suppGid : gidMap.toHost(r.suppGid);
    return uid < 0 || gid < 0 ? null : [uid, gid, supp];
  }

  leave(r: FileSystemRequest): void {
    const { uidMap, gidMap } = this.options;
    const uid = uidMap === null ? r.uid : uidMap.toHost(r.uid);
    const gid = gidMap === null ? r.gid : gidMap.toHost(r.gid);
    this.credentials.leave(uid, gid, r.suppGid);
  }

  /**
   * A new descriptor with access to the inode; only regular files and directories, so that no device or FIFO of the
   * host is ever opened. `flags` without O_CREAT. −errno, or LEASED if they have O_NONBLOCK.
   */
  openNode(slot: number, flags: number): number {
    const refused = this.openable(slot);
    if (refused < 0) return refused;
    const opened = this.#open(slot, flags);
    return opened === -E.AGAIN ? LEASED : opened;
  }

  #open(slot: number, flags: number): number {
    if (this.inodes.isEvicted(slot)) return this.inodes.openByHandle(slot, flags);
    const fd = this.inodes.fd(slot);
    if (fd < 0) return fd;
    return c.neg(c.openat(this.inodes.procFd, this.inodes.procName(fd), flags | O_CLOEXEC, 0));
  }

  /** 0 for what may be opened on the host, else −errno. */
  openable(slot: number): number {
    const type = this.inodes.type(slot);
    return type === S_IFREG || type === S_IFDIR ? 0 : type === S_IFLNK ? -E.LOOP : -E.NXIO;
  }

  #handlesWork(): boolean {
    const mountFd = this.inodes.mounts.fd(this.inodes.table.words[ROOT_NODE * 16 + 4]);
    if (mountFd < 0) return false;
    names.u32[256] = 128; // MAX_HANDLE_SZ
    if (c.nameToHandleAt(this.inodes.rootFd, EMPTY_PATH, names.address + 1024, names.address + 2048, AT_EMPTY_PATH) !== 0) return false;
    const fd = c.openByHandleAt(mountFd, names.address + 1024, O_PATH | O_CLOEXEC);
    if (fd < 0) return false;
    c.close(fd);
    return true;
  }
}

/** Nodes and files hold at most so many descriptors even where the limit would allow more: each pins kernel memory. */
const NODE_FDS_MAX = 65536;
