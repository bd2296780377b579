/** A vhost-user frontend for tests: guest memory in a memfd, messages over a real Unix socket, descriptors and all. */
import assert from 'node:assert/strict';
import { setImmediate as turn } from 'node:timers/promises';
import * as c from '../../src/ffi/libc.js';
import { viewOf } from '../../src/ffi/memory.js';
import { connectUnix, receive, send, unixSocket } from '../../src/ffi/socket.js';
import { EFD_NONBLOCK, MAP_SHARED, MFD_ALLOW_SEALING, MFD_CLOEXEC, PROT_READ, PROT_WRITE, EFD_CLOEXEC } from '../../src/ffi/constants.js';

export const MESSAGE = {
  GET_FEATURES: 1, SET_FEATURES: 2, SET_OWNER: 3, SET_MEM_TABLE: 5, SET_LOG_BASE: 6, SET_LOG_FD: 7, SET_VRING_NUM: 8, SET_VRING_ADDR: 9, SET_VRING_BASE: 10,
  GET_VRING_BASE: 11, SET_VRING_KICK: 12, SET_VRING_CALL: 13, SET_VRING_ERR: 14, GET_PROTOCOL_FEATURES: 15, SET_PROTOCOL_FEATURES: 16,
  GET_QUEUE_NUM: 17, SET_VRING_ENABLE: 18, SET_BACKEND_REQ_FD: 21, GET_CONFIG: 24, SET_CONFIG: 25, GET_INFLIGHT_FD: 31, SET_INFLIGHT_FD: 32,
  RESET_DEVICE: 34, GET_MAX_MEM_SLOTS: 36, ADD_MEM_REG: 37, REM_MEM_REG: 38, SET_STATUS: 39, GET_STATUS: 40,
} as const;

export const F_VERSION_1 = 1n << 32n;
export const F_PROTOCOL_FEATURES = 1n << 30n;
export const F_EVENT_IDX = 1n << 29n;
export const F_INDIRECT = 1n << 28n;
export const F_LOG_ALL = 1n << 26n;
export const NEED_REPLY = 8;

const TIMEOUT_MS = 10_000;
/** Guest-physical and frontend addresses of the first byte of memory: unlike, so that mixing them up shows. */
export const GPA = 0x1_0000_0000;
export const USER = 0x7e00_0000_0000;

export function u64(...values: (number | bigint)[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 8);
  values.forEach((v, i) => new DataView(bytes.buffer).setBigUint64(i * 8, BigInt(v), true));
  return bytes;
}

export function u32(...values: number[]): Uint8Array {
  const bytes = new Uint8Array(values.length * 4);
  values.forEach((v, i) => new DataView(bytes.buffer).setUint32(i * 4, v, true));
  return bytes;
}

export function concat(...parts: Uint8Array[]): Uint8Array {
  const all = new Uint8Array(parts.reduce((bytes, part) => bytes + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

export function eventfd(): number {
  return c.check(c.eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC), 'eventfd');
}

/** Memory shared with the backend. */
export class SharedMemory {
  readonly fd: number;
  readonly address: number;
  readonly u8: Uint8Array;
  readonly dv: DataView;
  #next = 4096;

  constructor(readonly bytes: number, flags = MFD_CLOEXEC | MFD_ALLOW_SEALING) {
    this.fd = c.check(c.memfdCreate('test-guest', flags), 'memfd_create');
    c.check(c.ftruncate(this.fd, bytes), 'ftruncate');
    this.address = c.check(c.mmap(0, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, this.fd, 0), 'mmap');
    const buffer = viewOf(this.address, bytes);
    this.u8 = new Uint8Array(buffer);
    this.dv = new DataView(buffer);
  }

  /** Offset of a fresh block. */
  take(bytes: number, align = 16): number {
    const at = Math.ceil(this.#next / align) * align;
    assert.ok(at + bytes <= this.bytes, 'test memory is used up');
    this.#next = at + bytes;
    return at;
  }

  /** Start over with the blocks: nothing is in flight. */
  rewind(to: number): void {
    this.#next = to;
  }

  get mark(): number {
    return this.#next;
  }

  close(): void {
    c.munmap(this.address, this.bytes);
    c.close(this.fd);
  }
}

export interface ReplyMessage {
  code: number;
  flags: number;
  payload: DataView;
  fds: number[];
}

export class Frontend {
  readonly fd: number;
  #bytes: Uint8Array = new Uint8Array(0);
  #fds: number[] = [];

  private constructor(fd: number) {
    this.fd = fd;
  }

  static connect(path: string): Frontend {
    const fd = unixSocket();
    c.check(connectUnix(fd, path), `connect ${path}`);
    return new Frontend(fd);
  }

  /** Exactly these bytes. */
  raw(bytes: Uint8Array, fds: readonly number[] = []): void {
    send(this.fd, bytes, fds);
  }

  /** Without waiting; false if the socket has no room. */
  trySend(code: number, payload: Uint8Array = new Uint8Array(0)): boolean {
    return send(this.fd, concat(u32(code, 1, payload.length), payload), [], 0) === 0;
  }

  send(code: number, payload: Uint8Array = new Uint8Array(0), fds: readonly number[] = [], flags = 0): void {
    this.raw(concat(u32(code, 1 | flags, payload.length), payload), fds);
  }

  /** The next message from the backend, or null when it has closed the connection. */
  async reply(): Promise<ReplyMessage | null> {
    const deadline = Date.now() + TIMEOUT_MS;
    for (;;) {
      const header = new DataView(this.#bytes.buffer, this.#bytes.byteOffset, this.#bytes.length);
      const size = this.#bytes.length < 12 ? 0 : header.getUint32(8, true);
      const missing = 12 + size - this.#bytes.length;
      if (this.#bytes.length >= 12 && missing === 0) {
        const payload = new Uint8Array(this.#bytes.slice(12));
        const message = { code: header.getUint32(0, true), flags: header.getUint32(4, true), payload: new DataView(payload.buffer), fds: this.#fds };
        this.#bytes = new Uint8Array(0);
        this.#fds = [];
        return message;
      }
      // No more than this message, so that descriptors belong to it
      const received = receive(this.fd, missing);
      this.#fds.push(...received.fds);
      if (received.length > 0) this.#bytes = concat(this.#bytes, received.data);
      else if (received.length === 0 || received.length !== -11) return null;
      else if (Date.now() > deadline) throw new Error('the backend does not answer');
      else await turn();
    }
  }

  async call(code: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<ReplyMessage> {
    this.send(code, payload, fds);
    const reply = await this.reply();
    assert.ok(reply, `the backend closed the connection instead of answering ${code}`);
    assert.equal(reply.code, code);
    assert.equal(reply.flags, 5, 'version 1, reply');
    return reply;
  }

  /** Send with NEED_REPLY; true for an acknowledgement of success, false for a refusal. */
  async ack(code: number, payload?: Uint8Array, fds: readonly number[] = []): Promise<boolean> {
    this.send(code, payload, fds, NEED_REPLY);
    const reply = await this.reply();
    assert.ok(reply, `the backend closed the connection instead of acknowledging ${code}`);
    assert.equal(reply.code, code);
    assert.equal(reply.payload.byteLength, 8);
    return reply.payload.getBigUint64(0, true) === 0n;
  }

  async getU64(code: number): Promise<bigint> {
    return (await this.call(code)).payload.getBigUint64(0, true);
  }

  /** Whether the backend has closed, or closes soon. */
  async closed(): Promise<boolean> {
    return (await this.reply()) === null;
  }

  /** Features and protocol features as offered, less `without`. */
  async negotiate(without: { features?: bigint; protocol?: bigint } = {}): Promise<{ features: bigint; protocol: bigint }> {
    const features = (await this.getU64(MESSAGE.GET_FEATURES)) & ~(without.features ?? 0n);
    const protocol = (await this.getU64(MESSAGE.GET_PROTOCOL_FEATURES)) & ~(without.protocol ?? 0n);
    this.send(MESSAGE.SET_PROTOCOL_FEATURES, u64(protocol));
    this.send(MESSAGE.SET_OWNER);
    this.send(MESSAGE.SET_FEATURES, u64(features));
    return { features, protocol };
  }

  /** One region that covers all of `memory`. */
  setMemory(memory: SharedMemory, gpa = GPA, user = USER): Promise<boolean> {
    return this.ack(MESSAGE.SET_MEM_TABLE, concat(u32(1, 0), u64(gpa, memory.bytes, user, 0)), [memory.fd]);
  }

  close(): void {
    for (const fd of this.#fds.splice(0)) c.close(fd);
    c.close(this.fd);
  }
}
