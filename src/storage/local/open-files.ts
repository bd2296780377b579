/** Open files: open, release, and reading and writing them. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import {
  O_ACCMODE, O_APPEND, O_CLOEXEC, O_DIRECT, O_DSYNC, O_NOATIME, O_RDONLY, O_RDWR, O_SYNC, O_TRUNC, O_WRONLY, RWF_NOWAIT, S_IFDIR, S_ISGID, S_ISUID,
} from '../../ffi/constants.js';
import { PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_FILE } from '../handles.js';
import { STATX } from '../statx.js';
import type { BlockingCall, Share } from './share.js';

const FOPEN_DIRECT_IO = 1;
const FOPEN_KEEP_CACHE = 2;
const FOPEN_NOFLUSH = 32;
const FOPEN_PARALLEL_DIRECT_WRITES = 64;
const FUSE_OPEN_KILL_SUIDGID = 1;
const FUSE_WRITE_KILL_SUIDGID = 4;
/** Handle flags: reads may be tried without waiting; writes wait for the disk. */
const NOWAIT = 1;
const SYNCHRONOUS = 2;
const WRITE_SLOW_MS = 5;
/** After a write that took long inline, writes go to the pool for so long. */
const SLOW_HOLD_MS = 2000;
const SAMPLE = 16;

export class OpenFiles {
  #writes = 0;
  #slowUntil = 0;
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
    if (share.options.readonly && ((flags & O_ACCMODE) !== O_RDONLY || (flags & O_TRUNC) !== 0)) return -E.ROFS;
    if (share.inodes.type(slot) === S_IFDIR) return -E.ISDIR;
    const kill = (r.fuseFlags & FUSE_OPEN_KILL_SUIDGID) !== 0 && (flags & O_TRUNC) !== 0;
    const host = this.hostFlags(r, flags);
    const fd = kill ? share.credentials.withoutFsetid(true, () => share.openNode(slot, host)) : share.openNode(slot, host);
    if (fd < 0) return fd;
    const result = this.install(r, slot, fd, flags);
    if (result < 0) c.close(fd);
    return result;
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
    if (options.cache === 'always') open |= FOPEN_KEEP_CACHE;
    // metadata: names and attributes are cached, data never
    if (options.cache === 'never' || options.cache === 'metadata') open |= FOPEN_DIRECT_IO;
    if ((flags & O_DIRECT) !== 0 && options.allowDirectIo) open |= FOPEN_PARALLEL_DIRECT_WRITES;
    // A close of what was only read has nothing to flush; with remote locks FLUSH is also what drops them
    if ((flags & O_ACCMODE) === O_RDONLY && !r.session.writeback && !r.session.posixLocks) open |= FOPEN_NOFLUSH;
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
    if (pool === null || (handles.flags(handle) & NOWAIT) === 0) {
      const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, 0);
      return n < 0 ? -c.errno() : n;
    }
    const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, RWF_NOWAIT);
    if (n === r.size) return n;
    if (n >= 0) return this.#shortRead(r, handle, fd, n);
    const error = c.errno();
    if (error === E.AGAIN) return this.#later(r, handle, 'preadv2', fd);
    if (error !== E.OPNOTSUPP) return -error;
    // The file system cannot tell whether it would block: then every read may
    handles.setFlags(handle, handles.flags(handle) & ~NOWAIT);
    return this.#later(r, handle, 'preadv2', fd);
  };

  /** Fewer bytes without waiting: the end of the file, or of what is cached. */
  #shortRead(r: FileSystemRequest, handle: number, fd: number, n: number): number {
    if (n === 0) return 0;
    const size = this.share.statFd(r, fd) < 0 ? 0 : r.attr.u32[10] + r.attr.u32[11] * 2 ** 32;
    return r.offset + n >= size ? n : this.#later(r, handle, 'preadv2', fd);
  }

  readonly write = (r: FileSystemRequest): number => {
    const { handles, pool } = this.share;
    const handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) return -E.BADF;
    const fd = handles.fd(handle);
    if (this.share.options.xattrMap !== null) this.share.dropCapability(fd);
    if ((r.fuseFlags & FUSE_WRITE_KILL_SUIDGID) !== 0) {
      return this.share.credentials.withoutFsetid(true, () => c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, 0)));
    }
    if (pool === null) {
      const n = c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, 0);
      return n < 0 ? -c.errno() : n;
    }
    const slow = this.#slowUntil !== 0 && performance.now() < this.#slowUntil;
    if (slow || (handles.flags(handle) & SYNCHRONOUS) !== 0) return this.#later(r, handle, 'pwritev2', fd);
    // Writing to the page cache does not block but when the kernel throttles the writer: watch a sample for that
    const sampled = (++this.#writes & (SAMPLE - 1)) === 0 || r.size >= 1 << 17;
    const before = sampled ? performance.now() : 0;
    const n = c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, 0));
    if (sampled) {
      const now = performance.now();
      this.#slowUntil = now - before > WRITE_SLOW_MS ? now + SLOW_HOLD_MS : 0;
    }
    return n;
  };

  #later(r: FileSystemRequest, handle: number, call: BlockingCall, fd: number): number {
    return this.inPool(r, handle, -1, call, fd, r.iovecs, r.iovecCount, r.offset, 0, 0);
  }

  /**
   * Run a call in the pool; the request completes with its result. The handles (−1: none) keep their descriptors
   * until then, whatever the guest releases meanwhile.
   */
  inPool(r: FileSystemRequest, handle: number, handle2: number, call: BlockingCall, a1: number, a2: number, a3: number, a4: number, a5: number, a6: number): number {
    const { pool, handles } = this.share;
    if (pool === null) throw new Error('inPool without a pool');
    r.defer();
    if (handle >= 0) handles.hold(handle);
    if (handle2 >= 0) handles.hold(handle2);
    const done = (result: number): void => {
      if (handle >= 0 && handles.unhold(handle)) this.closeHandle(handle);
      if (handle2 >= 0 && handles.unhold(handle2)) this.closeHandle(handle2);
      r.complete(result);
    };
    pool.run(call, a1, a2, a3, a4, a5, a6).then(done, () => done(-E.IO));
    return PENDING;
  }

  readonly flush = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    // What close(2) would report (NFS, quotas) is reported now, as for a local file
    const fd = c.fcntl(this.share.handles.fd(handle), 1030 /* F_DUPFD_CLOEXEC */, 0);
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
    if (this.share.pool !== null) return this.inPool(r, handle, -1, dataOnly ? 'fdatasync' : 'fsync', fd, 0, 0, 0, 0, 0);
    return c.neg(dataOnly ? c.fdatasync(fd) : c.fsync(fd));
  }

  readonly fallocate = (r: FileSystemRequest): number => {
    if (this.share.options.readonly) return -E.ROFS;
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const fd = this.share.handles.fd(handle);
    if (this.#hasPrivileges(r, fd)) return this.share.credentials.withoutFsetid(true, () => c.neg(c.fallocate(fd, r.flags, r.offset, r.length)));
    if (this.share.pool !== null) return this.inPool(r, handle, -1, 'fallocate', fd, r.flags, r.offset, r.length, 0, 0);
    return c.neg(c.fallocate(fd, r.flags, r.offset, r.length));
  };

  readonly lseek = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    if (r.flags !== 3 && r.flags !== 4) return -E.INVAL; // the guest does all but SEEK_DATA and SEEK_HOLE itself
    const at = c.neg(c.lseek(this.share.handles.fd(handle), r.offset, r.flags));
    if (at < 0) return at;
    if (!Number.isSafeInteger(at)) return -E.OVERFLOW;
    r.position = at;
    return 0;
  };

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
    if (this.#hasPrivileges(r, handles.fd(to))) {
      return this.share.credentials.withoutFsetid(true, () =>
        c.neg(c.copyFileRange(handles.fd(from), a, handles.fd(to), a + 8, r.length, 0)));
    }
    if (pool !== null) return this.inPool(r, from, to, 'copy_file_range', handles.fd(from), a, handles.fd(to), a + 8, r.length, 0);
    return c.neg(c.copyFileRange(handles.fd(from), a, handles.fd(to), a + 8, r.length, 0));
  };

  /**
   * Whether a change of the file's data must clear set-user-ID or set-group-ID here: with HANDLE_KILLPRIV_V2 the guest
   * leaves that to us, and these operations have no flag to say so.
   */
  #hasPrivileges(r: FileSystemRequest, fd: number): boolean {
    return r.session.killprivV2 && this.share.statFd(r, fd) === 0 && (r.attr.i32[STATX.MODE] & (S_ISUID | S_ISGID)) !== 0;
  }
}
