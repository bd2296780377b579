/** Open files: open, release, and reading and writing them. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import {
  F_DUPFD_CLOEXEC, O_ACCMODE, O_APPEND, O_CLOEXEC, O_DIRECT, O_DSYNC, O_NOATIME, O_RDONLY, O_RDWR, O_SYNC, O_TRUNC, O_WRONLY, RWF_NOWAIT, SEEK_DATA, SEEK_HOLE,
  S_IFDIR,
} from '../../ffi/constants.js';
import { PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_FILE } from '../handles.js';
import { FOPEN, OPEN_KILL_SUIDGID, WRITE_KILL_SUIDGID } from '../fuse-flags.js';
import { SCRATCH_NAME, SCRATCH_PATH, type Share } from './share.js';
import type { Step } from './steps.js';

/** Handle flags: reads may be tried without waiting; writes wait for the disk. */
const NOWAIT = 1;
const SYNCHRONOUS = 2;
/** Larger writes are all timed: that costs nothing beside them. */
const TIMED_BYTES = 1 << 17;

export class OpenFiles {
  constructor(readonly share: Share) {}

  /** Open flags for the host from those of the guest. */
  hostFlags(r: FileSystemRequest, flags: number): number {
    const { options } = this.share;
    let host = flags & (O_ACCMODE | O_APPEND | O_TRUNC | O_SYNC);
    if (options.allowDirectIo) host |= flags & O_DIRECT;
    if (options.preserveNoatime) host |= flags & O_NOATIME;
    if (r.session.writeback) {
      // The guest's cache reads to fill pages that it writes, and places appends itself
      if ((host & O_ACCMODE) === O_WRONLY) host = (host & ~O_ACCMODE) | O_RDWR;
      host &= ~O_APPEND;
    }
    return host | O_CLOEXEC;
  }

  readonly open = (r: FileSystemRequest): number => {
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    return this.openSlot(r, slot, r.flags);
  };

  /** Open a node for the request: file handle results, or −errno. */
  openSlot(r: FileSystemRequest, slot: number, flags: number): number {
    const { share } = this;
    const refused = this.refusal(slot, flags);
    if (refused < 0) return refused;
    const kill = this.killsPrivileges(r, flags);
    const host = this.hostFlags(r, flags);
    const fd = kill ? share.credentials.withoutFsetid(true, () => share.openNode(slot, host)) : share.openNode(slot, host);
    if (fd < 0) return fd;
    const result = this.install(r, slot, fd, flags);
    if (result < 0) c.close(fd);
    return result;
  }

  /** −errno if the node is no file to be opened so, else 0. */
  refusal(slot: number, flags: number): number {
    if (this.share.options.readonly && ((flags & O_ACCMODE) !== O_RDONLY || (flags & O_TRUNC) !== 0)) return -E.ROFS;
    return this.share.inodes.type(slot) === S_IFDIR ? -E.ISDIR : this.share.openable(slot);
  }

  /** Whether opening the file must clear its set-id bits, since it is truncated and the guest leaves that to us. */
  killsPrivileges(r: FileSystemRequest, flags: number): boolean {
    return (r.fuseFlags & OPEN_KILL_SUIDGID) !== 0 && (flags & O_TRUNC) !== 0;
  }

  /** Make a handle of an open descriptor. On −errno the descriptor is still the caller's. */
  install(r: FileSystemRequest, slot: number, fd: number, flags: number): number {
    const { share } = this;
    const synchronous = (flags & (O_SYNC | O_DSYNC)) !== 0 || ((flags & O_DIRECT) !== 0 && share.options.allowDirectIo);
    const handle = share.handles.open(fd, slot, HANDLE_FILE, (share.pool === null ? 0 : NOWAIT) | (synchronous ? SYNCHRONOUS : 0));
    if (handle < 0) return -E.NFILE;
    share.inodes.addOpen(slot);
    r.fhLow = handle;
    r.fhHigh = share.handles.sequence(handle);
    r.openFlags = this.#openFlags(r, flags);
    return 0;
  }

  #openFlags(r: FileSystemRequest, flags: number): number {
    const { options } = this.share;
    let open = 0;
    if (options.cache === 'always') open |= FOPEN.KEEP_CACHE;
    // metadata: names and attributes are cached, data never
    if (options.cache === 'never' || options.cache === 'metadata') open |= FOPEN.DIRECT_IO;
    if ((flags & O_DIRECT) !== 0 && options.allowDirectIo) open |= FOPEN.PARALLEL_DIRECT_WRITES;
    // A close of what was only read has nothing to flush; with remote locks FLUSH is also what drops them
    if ((flags & O_ACCMODE) === O_RDONLY && !r.session.writeback && !r.session.posixLocks) open |= FOPEN.NOFLUSH;
    return open;
  }

  /** Slot of the request's file handle, or −EBADF. */
  handle(r: FileSystemRequest): number {
    const slot = this.share.handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    return slot < 0 ? -E.BADF : slot;
  }

  readonly release = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    this.closeHandle(handle);
    return 0;
  };

  closeHandle(handle: number): void {
    const { handles, inodes } = this.share;
    if (handles.deferClose(handle)) return;
    const slot = handles.node(handle);
    c.close(handles.fd(handle));
    handles.close(handle);
    inodes.dropOpen(slot);
  }

  readonly read = (r: FileSystemRequest): number => {
    const { handles, pool } = this.share;
    const handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) return -E.BADF;
    const fd = handles.fd(handle);
    if (pool === null) {
      const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, 0);
      return n < 0 ? -c.errno() : n;
    }
    if ((handles.flags(handle) & NOWAIT) === 0) return this.#readInPool(r, handle, fd);
    const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, RWF_NOWAIT);
    if (n === r.size) return n;
    if (n >= 0) return this.#shortRead(r, handle, fd, n);
    const error = c.errno();
    if (error === E.AGAIN) return this.#readInPool(r, handle, fd);
    if (error !== E.OPNOTSUPP) return -error;
    // The file system cannot tell whether it would block: then every read may
    handles.setFlags(handle, handles.flags(handle) & ~NOWAIT);
    return this.#readInPool(r, handle, fd);
  };

  /** Fewer bytes without waiting: the end of the file, or of what is cached. */
  #shortRead(r: FileSystemRequest, handle: number, fd: number, n: number): number {
    if (n === 0) return 0;
    if (this.share.pace.slow) return this.#readInPool(r, handle, fd); // asking for the size may take as long
    const size = this.share.statFd(r, fd) < 0 ? 0 : r.attr.u32[10] + r.attr.u32[11] * 2 ** 32;
    return r.offset + n >= size ? n : this.#readInPool(r, handle, fd);
  }

  #readInPool(r: FileSystemRequest, handle: number, fd: number): number {
    return this.inPool(r, handle, -1, 'read', fd, r.iovecs, r.iovecCount, r.offset);
  }

  readonly write = (r: FileSystemRequest): number => {
    const { handles, pool, options, writePace } = this.share;
    const handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) return -E.BADF;
    const fd = handles.fd(handle);
    const kill = (r.fuseFlags & WRITE_KILL_SUIDGID) !== 0;
    if (pool !== null && (writePace.slow || (handles.flags(handle) & SYNCHRONOUS) !== 0)) return this.#writeInPool(r, handle, fd, kill);
    if (options.xattrMap !== null) this.share.dropCapability(fd);
    // Writing to the page cache does not block but when the kernel throttles the writer: that is watched for
    const sampled = pool !== null && (r.size >= TIMED_BYTES || writePace.sampled);
    const before = sampled ? performance.now() : 0;
    const n = kill ? this.#writeWithoutFsetid(r, fd) : c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, 0));
    if (sampled) writePace.took(performance.now() - before);
    return n;
  };

  #writeWithoutFsetid(r: FileSystemRequest, fd: number): number {
    return this.share.credentials.withoutFsetid(true, () => c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, 0)));
  }

  #writeInPool(r: FileSystemRequest, handle: number, fd: number, kill: boolean): number {
    const { options } = this.share;
    const attribute = options.xattrMap?.securityCapability ?? null;
    const path = attribute === null ? 0 : r.attr.putString(SCRATCH_PATH, `/proc/self/fd/${fd}`);
    const capability = attribute === null ? 0 : r.attr.putString(SCRATCH_NAME, attribute);
    return this.inPool(r, handle, -1, 'write', fd, r.iovecs, r.iovecCount, r.offset, Number(kill), path, capability);
  }

  /**
   * Run a step in the pool; the request completes with its result. The handles (−1: none) keep their descriptors
   * until then, whatever the guest releases meanwhile.
   */
  inPool(r: FileSystemRequest, handle: number, handle2: number, step: Step, ...args: number[]): number {
    const { pool, handles } = this.share;
    if (pool === null) throw new Error('inPool without a pool');
    r.defer();
    if (handle >= 0) handles.hold(handle);
    if (handle2 >= 0) handles.hold(handle2);
    const done = (result: number): void => {
      if (handle >= 0) this.unhold(handle);
      if (handle2 >= 0) this.unhold(handle2);
      r.complete(result);
    };
    pool.run(step, ...args).then(done, () => done(-E.IO));
    return PENDING;
  }

  /** A call in another thread no longer uses the handle's descriptor. */
  unhold(handle: number): void {
    if (this.share.handles.unhold(handle)) this.closeHandle(handle);
  }

  readonly flush = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    // What close(2) would report (NFS, quotas) is reported now, as for a local file
    const fd = c.fcntl(this.share.handles.fd(handle), F_DUPFD_CLOEXEC, 0);
    return fd < 0 ? -c.errno() : c.neg(c.close(fd));
  };

  readonly fsync = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    return this.sync(r, handle);
  };

  /** fsync or fdatasync of any handle. */
  sync(r: FileSystemRequest, handle: number): number {
    const fd = this.share.handles.fd(handle);
    const dataOnly = (r.flags & 1) !== 0;
    if (this.share.pool !== null) return this.inPool(r, handle, -1, dataOnly ? 'fdatasync' : 'fsync', fd);
    return c.neg(dataOnly ? c.fdatasync(fd) : c.fsync(fd));
  }

  // With HANDLE_KILLPRIV_V2 the guest leaves the clearing of set-id bits to us, and these two have no flag to say so
  readonly fallocate = (r: FileSystemRequest): number => {
    if (this.share.options.readonly) return -E.ROFS;
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const fd = this.share.handles.fd(handle);
    const drop = r.session.killprivV2;
    if (this.share.pool !== null) return this.inPool(r, handle, -1, 'fallocate', fd, r.flags, r.offset, r.length, Number(drop));
    return this.share.credentials.withoutFsetid(drop, () => c.neg(c.fallocate(fd, r.flags, r.offset, r.length)));
  };

  readonly lseek = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const refused = this.seekRefusal(r);
    return refused < 0 ? refused : this.putPosition(r, c.neg(c.lseek(this.share.handles.fd(handle), r.offset, r.flags)));
  };

  /** −errno for a seek that the guest does itself, else 0. */
  seekRefusal(r: FileSystemRequest): number {
    return r.flags === SEEK_DATA || r.flags === SEEK_HOLE ? 0 : -E.INVAL;
  }

  /** LSEEK's answer from that of lseek(2). */
  putPosition(r: FileSystemRequest, at: number): number {
    if (at < 0) return at;
    if (!Number.isSafeInteger(at)) return -E.OVERFLOW;
    r.position = at;
    return 0;
  }

  readonly copyFileRange = (r: FileSystemRequest): number => {
    const { handles, pool } = this.share;
    if (this.share.options.readonly) return -E.ROFS;
    const from = this.handle(r);
    const to = handles.slotOf(r.fh2Low, r.fh2High, HANDLE_FILE);
    if (from < 0 || to < 0) return -E.BADF;
    // copy_file_range(2) takes the offsets by address; they live in the request's own reply block
    const memory = r.reply;
    memory.u32[0] = r.offset >>> 0;
    memory.u32[1] = Math.floor(r.offset / 2 ** 32);
    memory.u32[2] = r.offset2 >>> 0;
    memory.u32[3] = Math.floor(r.offset2 / 2 ** 32);
    const a = memory.address;
    const drop = r.session.killprivV2;
    if (pool !== null) return this.inPool(r, from, to, 'copyFileRange', handles.fd(from), a, handles.fd(to), a + 8, r.length, Number(drop));
    return this.share.credentials.withoutFsetid(drop, () => c.neg(c.copyFileRange(handles.fd(from), a, handles.fd(to), a + 8, r.length, 0)));
  };
}
