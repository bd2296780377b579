/** Unix datagram sockets, for sd_notify(3) and syslog. */
import { assert } from '../base/assert.js';
import { E } from '../base/errno.js';
import * as c from './libc.js';
import { NativeMemory } from './memory.js';
import { AF_UNIX, F_SETFD, FD_CLOEXEC, MSG_DONTWAIT, MSG_NOSIGNAL, SOCK_CLOEXEC } from './constants.js';
import { SOCKET_PATH_MAX_BYTES } from './socket.js';

const SOCK_DGRAM = 2;
/** Longest message, in bytes. */
export const DATAGRAM_MAX_BYTES = 8192;

// 0 sockaddr_un | 256 data. SAFETY: used by synchronous calls of one thread only.
const DATA = 256;
const mem = NativeMemory.allocate(DATA + DATAGRAM_MAX_BYTES);

/**
 * A datagram socket connected to `address`: a path, or `@name` for one in the abstract name space (unix(7)).
 * The caller owns the descriptor; or −errno.
 */
export function connectDatagram(address: string): number {
  const bytes = Buffer.from(address);
  if (bytes.length < 2 || bytes.length > SOCKET_PATH_MAX_BYTES) return -E.INVAL;
  const fd = c.neg(c.socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0));
  if (fd < 0) return fd;
  mem.u8.fill(0, 0, DATA);
  mem.dv.setUint16(0, AF_UNIX, true);
  mem.u8.set(bytes, 2);
  const abstract = bytes[0] === 0x40;
  if (abstract) mem.u8[2] = 0;
  const result = c.neg(c.connect(fd, mem.address, 2 + bytes.length + (abstract ? 0 : 1)));
  if (result >= 0) return fd;
  c.close(fd);
  return result;
}

/** 0, or −errno. */
export function sendDatagram(fd: number, text: string): number {
  return Math.min(0, c.neg(c.write(fd, mem.address + DATA, put(text))));
}

/** The same without waiting for room: −EAGAIN if the receiver has none. */
export function trySendDatagram(fd: number, text: string): number {
  return Math.min(0, c.neg(c.send(fd, mem.address + DATA, put(text), MSG_DONTWAIT | MSG_NOSIGNAL)));
}

/** A descriptor that an earlier process image left open goes no further. */
export function setCloseOnExec(fd: number): void {
  c.check(c.fcntl(fd, F_SETFD, FD_CLOEXEC), 'fcntl');
}

function put(text: string): number {
  const bytes = Buffer.from(text);
  assert(bytes.length > 0 && bytes.length <= DATAGRAM_MAX_BYTES, 'datagram size');
  mem.u8.set(bytes, DATA);
  return bytes.length;
}
