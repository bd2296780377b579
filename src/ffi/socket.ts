/** Unix stream sockets with descriptors in ancillary data (unix(7), cmsg(3)). */
import { assert } from '../base/assert.js';
import { E } from '../base/errno.js';
import * as c from './libc.js';
import { NativeMemory } from './memory.js';
import { SysError } from './errors.js';
import {
  AF_UNIX, MSG_CMSG_CLOEXEC, MSG_CTRUNC, MSG_DONTWAIT, MSG_NOSIGNAL, SCM_RIGHTS, SOCK_CLOEXEC, SOCK_NONBLOCK, SOCK_STREAM, SOL_SOCKET,
} from './constants.js';

/** SCM_MAX_FD of Linux: no message carries more descriptors. */
export const SCM_MAX_FD = 253;
/** sockaddr_un.sun_path less its NUL. */
export const SOCKET_PATH_MAX_BYTES = 107;

const SO_PEERCRED = 17;
/** struct ucred: pid, uid, gid. */
const UCRED_BYTES = 12;
const POLLHUP = 16;

// One block for all arguments: calls are synchronous, so one per thread is enough.
// 0 msghdr(56) | 64 iovec(16) | 128 sockaddr_un(110) | 512 control | 2048 data
const IOV = 64;
const ADDR = 128;
const CONTROL = 512;
const CONTROL_BYTES = 16 + SCM_MAX_FD * 4 + 4;
const DATA = 2048;
const mem = NativeMemory.allocate(DATA + (1 << 17));
export const SOCKET_DATA_MAX_BYTES = 1 << 17;

function putAddress(offset: number, value: number): void {
  mem.u32[offset >> 2] = value >>> 0;
  mem.u32[(offset >> 2) + 1] = Math.floor(value / 2 ** 32);
}

function prepare(bytes: number, controlBytes: number): void {
  mem.u8.fill(0, 0, ADDR);
  putAddress(16, mem.address + IOV);
  mem.u32[24 >> 2] = 1;
  if (controlBytes > 0) {
    putAddress(32, mem.address + CONTROL);
    mem.u32[40 >> 2] = controlBytes;
  }
  putAddress(IOV, mem.address + DATA);
  putAddress(IOV + 8, bytes);
}

export interface Received {
  /** Bytes received, 0 at end of stream, or −errno. */
  length: number;
  /** Valid until the next receive or send. */
  data: Uint8Array;
  /** The caller owns and must close each. */
  fds: number[];
  /** Descriptors were lost because there were too many or the process had no room for them. */
  truncated: boolean;
}

/** Up to `max` bytes without blocking, with all descriptors that came along (close-on-exec). */
export function receive(fd: number, max: number): Received {
  assert(max > 0 && max <= SOCKET_DATA_MAX_BYTES, 'receive size');
  prepare(max, CONTROL_BYTES);
  const n = c.neg(c.recvmsg(fd, mem.address, MSG_DONTWAIT | MSG_CMSG_CLOEXEC));
  const fds: number[] = [];
  if (n < 0) return { length: n, data: mem.u8.subarray(DATA, DATA), fds, truncated: false };
  const end = CONTROL + mem.u32[40 >> 2];
  for (let at = CONTROL; at + 16 <= end; ) {
    const length = mem.u32[at >> 2];
    if (length < 16 || at + length > end) break;
    if (mem.i32[(at + 8) >> 2] === SOL_SOCKET && mem.i32[(at + 12) >> 2] === SCM_RIGHTS) {
      for (let i = at + 16; i + 4 <= at + length; i += 4) fds.push(mem.i32[i >> 2]);
    }
    at += (length + 7) & ~7;
  }
  return { length: n, data: mem.u8.subarray(DATA, DATA + n), fds, truncated: (mem.u32[48 >> 2] & MSG_CTRUNC) !== 0 };
}

/** Send all of `data` with `fds` attached to its first byte; 0, or −errno. Waits up to `timeout_ms` for room. */
export function send(fd: number, data: Uint8Array, fds: readonly number[] = [], timeout_ms = 1000): number {
  assert(data.length > 0 && data.length <= SOCKET_DATA_MAX_BYTES && fds.length <= SCM_MAX_FD, 'send size');
  mem.u8.set(data, DATA);
  for (let done = 0; done < data.length; ) {
    const control = done === 0 && fds.length > 0 ? (16 + fds.length * 4 + 7) & ~7 : 0;
    prepare(data.length - done, control);
    putAddress(IOV, mem.address + DATA + done);
    if (control > 0) {
      mem.u32[CONTROL >> 2] = 16 + fds.length * 4;
      mem.u32[(CONTROL >> 2) + 1] = 0;
      mem.i32[(CONTROL + 8) >> 2] = SOL_SOCKET;
      mem.i32[(CONTROL + 12) >> 2] = SCM_RIGHTS;
      for (let i = 0; i < fds.length; i++) mem.i32[((CONTROL + 16) >> 2) + i] = fds[i];
    }
    const n = c.neg(c.sendmsg(fd, mem.address, MSG_DONTWAIT | MSG_NOSIGNAL));
    if (n >= 0) {
      done += n;
    } else if (n === -E.AGAIN) {
      if (!waitWritable(fd, timeout_ms)) return n;
    } else if (n !== -E.INTR) {
      return n;
    }
  }
  return 0;
}

function waitWritable(fd: number, timeout_ms: number): boolean {
  mem.i32[ADDR >> 2] = fd;
  mem.i32[(ADDR >> 2) + 1] = 4; // POLLOUT
  return c.poll(mem.address + ADDR, 1, timeout_ms) > 0;
}

function putUnixAddress(path: string): number {
  const bytes = Buffer.from(path);
  if (bytes.length === 0 || bytes.length > SOCKET_PATH_MAX_BYTES) throw new SysError(E.NAMETOOLONG, 'socket path', path);
  mem.u8.fill(0, ADDR, ADDR + 110);
  mem.dv.setUint16(ADDR, AF_UNIX, true);
  mem.u8.set(bytes, ADDR + 2);
  return 2 + bytes.length + 1;
}

/** A non-blocking, close-on-exec Unix stream socket. */
export function unixSocket(): number {
  return c.check(c.socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), 'socket');
}

/** 0 or −errno. */
export function bindUnix(fd: number, path: string): number {
  const length = putUnixAddress(path);
  return c.neg(c.bind(fd, mem.address + ADDR, length));
}

/** 0 or −errno. */
export function connectUnix(fd: number, path: string): number {
  const length = putUnixAddress(path);
  return c.neg(c.connect(fd, mem.address + ADDR, length));
}

/** A connected, non-blocking socket, or −errno (EAGAIN: nobody waits). */
export function accept(fd: number): number {
  return c.neg(c.accept4(fd, 0, 0, SOCK_CLOEXEC | SOCK_NONBLOCK));
}

/** Two connected, non-blocking sockets. */
export function socketPair(): [number, number] {
  c.check(c.socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, mem.address + ADDR), 'socketpair');
  return [mem.i32[ADDR >> 2], mem.i32[(ADDR >> 2) + 1]];
}

/** The process and user at the other end of a Unix socket, as they were when it connected; null where that is not known. */
export function peerOf(fd: number): { pid: number; uid: number } | null {
  mem.u32[ADDR >> 2] = UCRED_BYTES;
  if (c.getsockopt(fd, SOL_SOCKET, SO_PEERCRED, mem.address + ADDR + 4, mem.address + ADDR) < 0) return null;
  return { pid: mem.u32[(ADDR + 4) >> 2], uid: mem.u32[(ADDR + 8) >> 2] };
}

/** Whether the other end of a stream socket is closed, also where bytes are left to be read. */
export function isHungUp(fd: number): boolean {
  mem.i32[ADDR >> 2] = fd;
  mem.i32[(ADDR >> 2) + 1] = 0;
  return c.poll(mem.address + ADDR, 1, 0) > 0 && (mem.i32[(ADDR >> 2) + 1] & (POLLHUP << 16)) !== 0;
}

/** An integer socket option, or −errno as a negative number. */
export function socketOption(fd: number, name: number): number {
  mem.u32[ADDR >> 2] = 0;
  mem.u32[(ADDR >> 2) + 1] = 4;
  const result = c.neg(c.getsockopt(fd, SOL_SOCKET, name, mem.address + ADDR, mem.address + ADDR + 4));
  return result < 0 ? result : mem.i32[ADDR >> 2];
}
