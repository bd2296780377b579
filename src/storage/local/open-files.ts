/** Open files: open, release, and reading and writing them. */
import { E } from '../../base/errno.js';
import * as c from '../../ffi/libc.js';
import {
  F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, O_ACCMODE, O_APPEND, O_CLOEXEC, O_DIRECT, O_DSYNC, O_NOATIME, O_NONBLOCK, O_RDONLY, O_RDWR, O_SYNC, O_TRUNC, O_WRONLY, RWF_APPEND,
  RWF_DSYNC, RWF_NOWAIT, SEEK_DATA, SEEK_HOLE, S_IFDIR,
} from '../../ffi/constants.js';
import { FAR_OFFSET, PENDING, type FileSystemRequest } from '../filesystem.js';
import { HANDLE_FILE } from '../handles.js';
import { FOPEN, OPEN_KILL_SUIDGID, WRITE_CACHE, WRITE_KILL_SUIDGID } from '../fuse-flags.js';
import { DirectAppends, writeFlags } from './placement.js';
import type { Share, StepPool } from './share.js';
import type { Step } from './steps.js';

/** Handle flags: reads may be tried without waiting; the host's descriptor has O_SYNC or O_DSYNC, it has O_DIRECT now, it can have none. */
const NOWAIT = 1;
const SYNCHRONOUS = 2;
const DIRECT = 4;
const NEVER_DIRECT = 8;
/** Handle flag: the host's inode is append-only, and the descriptor has O_APPEND. */
const APPEND_ONLY = 16;
/** Handle flag: reads are done inline, since the file is in memory or there is no pool. */
const INLINE = 32;
/** Handle flag: the file is on a remote mount, so that nothing is asked of it here. Such a handle has no NOWAIT. */
const REMOTE = 64;
/** Larger writes are all timed: that costs nothing beside them. */
const TIMED_BYTES = 1 << 17;

export class OpenFiles {
  readonly #directAppends = new DirectAppends();

  constructor(readonly share: Share) {}

  /** Open flags for the host from those of the guest; never O_APPEND (placement.ts). O_NONBLOCK is for leases, and means nothing to an open file. */
  hostFlags(r: FileSystemRequest, flags: number): number {
    const { options } = this.share;
    let host = flags & (O_ACCMODE | O_TRUNC | O_SYNC);
    if (options.allowDirectIo) host |= flags & O_DIRECT;
    if (options.preserveNoatime) host |= flags & O_NOATIME;
    // The guest's cache reads to fill pages that it writes
    if (r.session.writeback && (host & O_ACCMODE) === O_WRONLY) host = (host & ~O_ACCMODE) | O_RDWR;
    return host | O_CLOEXEC | O_NONBLOCK;
  }

  /** Whether an open that the host has refused with EPERM is to be tried with O_APPEND: an append-only inode takes no other. */
  mayBeAppendOnly(r: FileSystemRequest, flags: number): boolean {
    return (flags & O_APPEND) !== 0 && !r.session.writeback;
  }

  readonly open = (r: FileSystemRequest): number => {
    const slot = this.share.node(r);
    if (slot < 0) return slot;
    return this.openSlot(r, slot, r.flags);
  };

  /** Open a node for the request: file handle results, −errno, or LEASED. */
  openSlot(r: FileSystemRequest, slot: number, flags: number): number {
    const { share } = this;
    const refused = this.refusal(slot, flags);
    if (refused < 0) return refused;
    const kill = this.killsPrivileges(r, flags);
    const host = this.hostFlags(r, flags);
    let fd = kill ? share.credentials.withoutFsetid(true, () => share.openNode(slot, host)) : share.openNode(slot, host);
    const appendOnly = fd === -E.PERM && this.mayBeAppendOnly(r, flags);
    if (appendOnly) fd = share.openNode(slot, host | O_APPEND);
    if (fd < 0) return fd;
    if ((flags & O_TRUNC) !== 0) share.dropCapability(fd);
    const result = this.install(r, slot, fd, flags, appendOnly);
    if (result < 0) share.inodes.close(slot, fd);
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

  /** Make a handle of an open descriptor. On −errno the descriptor is still the caller's. `appendOnly`: it has O_APPEND. */
  install(r: FileSystemRequest, slot: number, fd: number, flags: number, appendOnly = false): number {
    const { share } = this;
    let state = share.pool === null || share.inodes.isInMemory(slot) ? INLINE : share.inodes.isRemote(slot) ? REMOTE : NOWAIT;
    if ((flags & (O_SYNC | O_DSYNC)) !== 0) state |= SYNCHRONOUS;
    if ((flags & O_DIRECT) !== 0 && share.options.allowDirectIo) state |= DIRECT;
    if (appendOnly) state |= APPEND_ONLY;
    const handle = share.handles.open(fd, slot, HANDLE_FILE, state);
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
    inodes.close(slot, handles.fd(handle));
    this.forget(handle);
    inodes.dropOpen(slot);
  }

  /** The handle is no more; its descriptor is the caller's to close. */
  forget(handle: number): void {
    this.#directAppends.forget(handle);
    this.share.handles.close(handle);
  }

  /** The guest has gone. */
  reset(): void {
    const { handles, inodes } = this.share;
    for (const handle of [...handles.slots()]) inodes.close(handles.node(handle), handles.fd(handle));
    handles.clear();
    this.#directAppends.clear();
  }

  readonly read = (r: FileSystemRequest): number => {
    const { handles } = this.share;
    const handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) return -E.BADF;
    const fd = handles.fd(handle);
    if (r.offset === FAR_OFFSET) return this.#readFar(r, handle, fd);
    if (this.share.options.allowDirectIo) this.#setDirect(handle, fd, (r.flags & O_DIRECT) !== 0);
    const state = handles.flags(handle);
    if ((state & INLINE) !== 0) {
      const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, 0);
      return n < 0 ? -c.errno() : n;
    }
    if ((state & NOWAIT) === 0) return this.#readInPool(r, handle, fd);
    const n = c.preadv2(fd, r.iovecs, r.iovecCount, r.offset, RWF_NOWAIT);
    if (n === r.size) return n;
    if (n >= 0) return this.#shortRead(r, handle, fd, n);
    const error = c.errno();
    if (error === E.AGAIN) return this.#readInPool(r, handle, fd);
    if (error !== E.OPNOTSUPP) return -error;
    // The file system cannot tell whether it would block: then every read may
    handles.setFlags(handle, state & ~NOWAIT);
    return this.#readInPool(r, handle, fd);
  };

  #readFar(r: FileSystemRequest, handle: number, fd: number): number {
    const { handles } = this.share;
    if ((handles.flags(handle) & REMOTE) === 0) {
      return c.preadv2(fd, r.iovecs, 0, 0, 0) < 0 ? -c.errno() : this.beyond(r, this.share.statFd(r, fd), 0);
    }
    const pool = this.#poolOf(handle);
    return this.#later(r, [handle], async () => {
      const refused = await pool.run('read', fd, r.iovecs, 0, 0);
      return refused < 0 ? refused : this.beyond(r, await pool.run('stat', fd, r.attr.address), 0);
    });
  }

  /** Fewer bytes without waiting: the end of the file, or of what is cached. */
  #shortRead(r: FileSystemRequest, handle: number, fd: number, n: number): number {
    if (n === 0) return 0;
    if (this.share.pace.slow) return this.#readInPool(r, handle, fd); // asking for the size may take as long
    const size = this.share.statFd(r, fd) < 0 ? 0 : r.attr.u32[10] + r.attr.u32[11] * 2 ** 32;
    return r.offset + n >= size ? n : this.#readInPool(r, handle, fd);
  }

  #readInPool(r: FileSystemRequest, handle: number, fd: number): number {
    return this.inPool(r, this.#poolOf(handle), [handle], 'read', fd, r.iovecs, r.iovecCount, r.offset);
  }

  readonly write = (r: FileSystemRequest): number => {
    const { handles, pool, options, writePace } = this.share;
    const handle = handles.slotOf(r.fhLow, r.fhHigh, HANDLE_FILE);
    if (handle < 0) return -E.BADF;
    const fd = handles.fd(handle);
    const rwf = writeFlags(r);
    if (options.allowDirectIo) this.#setDirect(handle, fd, (r.flags & O_DIRECT) !== 0 && (r.fuseFlags & WRITE_CACHE) === 0);
    const state = handles.flags(handle);
    if ((state & APPEND_ONLY) !== 0 && (rwf & RWF_APPEND) === 0) return -E.PERM;
    const toPool = pool !== null && (writePace.slow || (state & (SYNCHRONOUS | DIRECT | REMOTE)) !== 0 || (rwf & RWF_DSYNC) !== 0);
    if ((rwf & RWF_APPEND) !== 0 && (r.flags & O_DIRECT) !== 0) return this.#appendDirectly(r, handle, fd, rwf & ~RWF_APPEND, toPool);
    if (toPool) return this.inPool(r, this.#poolOf(handle), [handle], 'write', ...this.#writeArguments(r, fd, rwf));
    // Writing to the page cache does not block but when the kernel throttles the writer: that is watched for
    const sampled = pool !== null && (r.size >= TIMED_BYTES || writePace.sampled);
    const before = sampled ? performance.now() : 0;
    const n = this.#writeNow(r, fd, rwf);
    if (sampled) writePace.took(performance.now() - before);
    return n;
  };

  #writeNow(r: FileSystemRequest, fd: number, rwf: number): number {
    this.share.dropCapability(fd);
    if ((r.fuseFlags & WRITE_KILL_SUIDGID) === 0) return c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, rwf));
    return this.share.credentials.withoutFsetid(true, () => c.neg(c.pwritev2(fd, r.iovecs, r.iovecCount, r.offset, rwf)));
  }

  /** Of the step "write". */
  #writeArguments(r: FileSystemRequest, fd: number, rwf: number): number[] {
    return [fd, r.iovecs, r.iovecCount, r.offset, rwf, Number((r.fuseFlags & WRITE_KILL_SUIDGID) !== 0), ...this.share.capability(r, fd)];
  }

  /** A part or the whole of an append past the guest's cache; `rwf` without RWF_APPEND. */
  #appendDirectly(r: FileSystemRequest, handle: number, fd: number, rwf: number, toPool: boolean): number {
    const appends = this.#directAppends;
    const placed = (): number => rwf | appends.place(handle, r.offset, r.size, r.attr.u32[10] + r.attr.u32[11] * 2 ** 32);
    if (!toPool && !appends.isBusy(handle)) {
      const error = this.share.statFd(r, fd);
      return error < 0 ? error : this.#writeNow(r, fd, placed());
    }
    const pool = this.#poolOf(handle);
    return this.#later(r, [handle], () => appends.inTurn(handle, async () => {
      const error = await pool.run('stat', fd, r.attr.address);
      return error < 0 ? error : pool.run('write', ...this.#writeArguments(r, fd, placed()));
    }));
  }

  /**
   * O_DIRECT of the host's descriptor as the guest's has it now. While a call in another thread uses the descriptor it is not set, since that call may be
   * one that goes through the page cache, unaligned: then this one does, too.
   */
  #setDirect(handle: number, fd: number, wanted: boolean): void {
    const { handles } = this.share;
    const state = handles.flags(handle);
    if (((state & DIRECT) !== 0) === wanted || (wanted && ((state & NEVER_DIRECT) !== 0 || handles.isHeld(handle)))) return;
    const flags = c.fcntl(fd, F_GETFL, 0);
    const set = flags >= 0 && c.fcntl(fd, F_SETFL, wanted ? flags | O_DIRECT : flags & ~O_DIRECT) === 0;
    handles.setFlags(handle, set ? state ^ DIRECT : state | NEVER_DIRECT);
  }

  /**
   * Run a step in the pool; the request completes with its result. The handles keep their descriptors
   * until then, whatever the guest releases meanwhile.
   */
  inPool(r: FileSystemRequest, pool: StepPool, held: readonly number[], step: Step, ...args: number[]): number {
    return this.#later(r, held, () => pool.run(step, ...args));
  }

  /** The pool for the handle's file. */
  #poolOf(handle: number): StepPool {
    return this.share.poolOf(this.share.handles.node(handle));
  }

  /** The request completes with the result of `body`, until which the handles keep their descriptors. */
  #later(r: FileSystemRequest, held: readonly number[], body: () => Promise<number>): number {
    r.defer();
    for (const handle of held) this.share.handles.hold(handle);
    const done = (result: number): void => {
      for (const handle of held) this.unhold(handle);
      r.complete(result);
    };
    body().then(done, () => done(-E.IO));
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
    if (this.share.pool !== null) return this.inPool(r, this.#poolOf(handle), [handle], dataOnly ? 'fdatasync' : 'fsync', fd);
    return c.neg(dataOnly ? c.fdatasync(fd) : c.fsync(fd));
  }

  // With HANDLE_KILLPRIV_V2 the guest leaves the clearing of set-id bits to us, and these two have no flag to say so
  readonly fallocate = (r: FileSystemRequest): number => {
    if (this.share.options.readonly) return -E.ROFS;
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const fd = this.share.handles.fd(handle);
    const drop = r.session.killprivV2;
    if (this.share.pool !== null) {
      return this.inPool(r, this.#poolOf(handle), [handle], 'fallocate', fd, r.flags, r.offset, r.length, Number(drop), ...this.share.capability(r, fd));
    }
    this.share.dropCapability(fd);
    return this.share.credentials.withoutFsetid(drop, () => c.neg(c.fallocate(fd, r.flags, r.offset, r.length)));
  };

  readonly lseek = (r: FileSystemRequest): number => {
    const handle = this.handle(r);
    if (handle < 0) return handle;
    const fd = this.share.handles.fd(handle);
    const refused = this.seekRefusal(r);
    if (refused < 0) return refused;
    if (r.offset === FAR_OFFSET) return this.beyond(r, this.share.statFd(r, fd), -E.NXIO);
    return this.putPosition(r, c.neg(c.lseek(fd, r.offset, r.flags)));
  };

  /** The answer for FAR_OFFSET, when the attributes have been asked for (`error`): `end` where the file ends before it, and EOVERFLOW for a longer one that only the host can have made. */
  beyond(r: FileSystemRequest, error: number, end: number): number {
    return error < 0 ? error : r.attr.u32[11] > 0x1fffff ? -E.OVERFLOW : end;
  }

  /** −errno for a seek that the guest does itself, else 0. */
  seekRefusal(r: FileSystemRequest): number {
    // What the guest has not written back yet would be told for a hole: it then takes all for data
    if (r.session.writeback) return -E.NOSYS;
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
    const { share } = this;
    const { handles, pool } = share;
    if (share.options.readonly) return -E.ROFS;
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
    const target = handles.fd(to);
    if (pool !== null) {
      return this.inPool(r, this.#poolOf(share.inodes.isRemoteSubmount(handles.node(from)) ? from : to), [from, to], 'copyFileRange', handles.fd(from), a, target, a + 8, r.length, Number(drop), ...this.share.capability(r, target));
    }
    this.share.dropCapability(target);
    return this.share.credentials.withoutFsetid(drop, () => c.neg(c.copyFileRange(handles.fd(from), a, target, a + 8, r.length, 0)));
  };
}
